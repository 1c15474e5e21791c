#!/bin/sh
# Runs test programs and adds up their closing lines: sh tests/run.sh TENON TEST...
# A test is a program, or a .py file that gets TENON and the data folder. One that ends badly without
# a closing line, or says "0 failed" and exits non-zero, counts as one failure.
set -u
tenon=$1
shift
passed=0 failed=0 skipped=0
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
for t in "$@"; do
    case $t in
    *.py) timeout 1200 "${PYTHON:-python3}" "$t" "$tenon" tests/data >"$out" ;;
    *) timeout 1200 "$t" >"$out" ;;
    esac
    code=$?
    line=$(tail -n 1 "$out")
    printf '%-40s %s\n' "$t" "$line"
    numbers=$(echo "$line" |
        sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed\(, \([0-9]*\) skipped\)*$/\1 \2 \4/p')
    # shellcheck disable=SC2086 # three numbers
    set -- $numbers
    p=${1:-0} f=${2:-0} s=${3:-0}
    if [ $code -ne 0 ] && [ "$f" = 0 ] || [ -z "$numbers" ]; then
        cat "$out"
        echo "$t: exit code $code"
        f=1
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
tail=''
[ $skipped = 0 ] || tail=", $skipped skipped"
echo "$passed passed, $failed failed$tail"
[ $failed = 0 ]
