#!/bin/sh
# Runs fuzz targets, one for each processor at a time:
#     [JOBS=N] sh tests/fuzz.sh FOLDER SECONDS TARGET...
# Seeds come from tests/corpus/NAME of target fuzz_NAME; new inputs and findings stay in
# FOLDER/NAME-found. A finding is a failure.
set -u

if [ "$1" = --one ]; then # --one FOLDER SECONDS TARGET
    name=${4#fuzz_}
    found=$2/$name-found
    mkdir -p "$found/corpus"
    seeds=tests/corpus/$name
    [ -d "$seeds" ] || seeds=''
    # shellcheck disable=SC2086 # no seeds: no word
    if "$2/$4" -max_total_time="$3" -timeout=60 -rss_limit_mb=2048 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$found/" "$found/corpus" $seeds \
        >"$found/log" 2>&1; then
        echo "$4: $(sed -n 's/^stat::number_of_executed_units: *//p' "$found/log") runs"
        : >"$found/passed"
    fi
    exit 0
fi

folder=$1 seconds=$2
shift 2
passed=0 failed=0
for target in "$@"; do
    rm -f "$folder/${target#fuzz_}-found/passed"
done
printf '%s\n' "$@" | xargs -n 1 -P "${JOBS:-$(nproc 2>/dev/null || echo 2)}" \
    sh "$0" --one "$folder" "$seconds"
for target in "$@"; do
    found=$folder/${target#fuzz_}-found
    if [ -e "$found/passed" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        tail -n 60 "$found/log"
        echo "$target: finding in $found"
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
