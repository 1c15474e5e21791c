#!/bin/sh
# Runs fuzz targets: sh tests/fuzz.sh FOLDER SECONDS TARGET... Seeds come from tests/corpus/NAME of
# target fuzz_NAME; new inputs and findings stay in FOLDER/NAME-found. A finding is a failure.
set -u
folder=$1 seconds=$2
shift 2
passed=0 failed=0
for target in "$@"; do
    name=${target#fuzz_}
    found=$folder/$name-found
    mkdir -p "$found/corpus"
    seeds=tests/corpus/$name
    [ -d "$seeds" ] || seeds=''
    # shellcheck disable=SC2086 # no seeds: no word
    if "$folder/$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$found/" "$found/corpus" $seeds \
        >"$found/log" 2>&1; then
        passed=$((passed + 1))
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$found/log") runs"
    else
        failed=$((failed + 1))
        tail -n 60 "$found/log"
        echo "$target: finding in $found"
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
