#!/bin/sh
# Runs test programs, one for each processor at a time, and adds up their closing lines:
#     [JOBS=N] sh tests/run.sh TENON TEST...
# A test is a program, or a .py file that gets TENON and the data folder. One that ends badly without
# a closing line, or says "0 failed" and exits non-zero, counts as one failure.
set -u

# run TENON TEST FILE: what it prints goes to FILE.out, what it says besides to FILE.err
run() {
    case $2 in
    *.py) timeout 1200 "${PYTHON:-python3}" "$2" "$1" tests/data ;;
    *) timeout 1200 "$2" ;;
    esac >"$3.out" 2>"$3.err" </dev/null
    echo $? >"$3.code"
    printf '%-40s %s\n' "$2" "$(tail -n 1 "$3.out")"
}
if [ "$1" = --one ]; then
    run "$2" "$4" "$3/$(echo "$4" | tr / _)"
    exit 0
fi

tenon=$1
shift
passed=0 failed=0 skipped=0
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
printf '%s\n' "$@" | xargs -n 1 -P "${JOBS:-$(nproc 2>/dev/null || echo 2)}" \
    sh "$0" --one "$tenon" "$dir"
for t in "$@"; do
    out=$dir/$(echo "$t" | tr / _)
    code=$(cat "$out.code" 2>/dev/null || echo none)
    numbers=$(tail -n 1 "$out.out" 2>/dev/null |
        sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed\(, \([0-9]*\) skipped\)*$/\1 \2 \4/p')
    # shellcheck disable=SC2086 # three numbers
    set -- $numbers
    p=${1:-0} f=${2:-0} s=${3:-0}
    if [ "$code" != 0 ] && [ "$f" = 0 ] || [ -z "$numbers" ]; then
        cat "$out.out"
        echo "$t: exit code $code"
        f=1
    fi
    [ ! -s "$out.err" ] || { echo "$t says:" && cat "$out.err"; }
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
tail=''
[ $skipped = 0 ] || tail=", $skipped skipped"
echo "$passed passed, $failed failed$tail"
[ $failed = 0 ]
