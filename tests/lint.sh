#!/bin/sh
# Static analysis: sh tests/lint.sh 'COMPILER FLAGS' FILE.c...
# clang-tidy with the checks of .clang-tidy, then cppcheck. Each file is a case of each tool; closes
# with "N passed, N failed".
set -u
flags=$1
shift
passed=0 failed=0
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT

# isa FILE: the instruction sets the Makefile grants it
isa() {
    case $1 in
    kernels/avx512*) echo '-mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni' ;;
    kernels/avxvnni*) echo '-mavx2 -mfma -mf16c -mbmi2 -mavxvnni' ;;
    kernels/avx*) echo '-mavx2 -mfma -mf16c -mbmi2' ;;
    esac
}
# verdict CODE TEXT: counts a case; shows what the tool printed when it failed
verdict() {
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '%s:\n' "$2"
        cat "$out"
    fi
}

# Two at a time, each into a report of its own.
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir" "$out"' EXIT
check_file() {
    # shellcheck disable=SC2046,SC2086 # lists of flags
    clang-tidy --quiet "$1" -- $flags $(isa "$1") >"$dir/$2" 2>/dev/null
    echo $? >"$dir/$2.code"
}
i=0
for f in "$@"; do
    i=$((i + 1))
    check_file "$f" $i &
    [ $((i % 2)) = 0 ] && wait
done
wait
i=0
for f in "$@"; do
    i=$((i + 1))
    cp "$dir/$i" "$out"
    verdict "$(cat "$dir/$i.code")" "clang-tidy $f"
done
# Suppressed: what other libraries' macros hide from it, and two checks that take a loop for skipped or
# a condition for redundant where it is neither.
cppcheck --quiet --std=c11 --language=c --inline-suppr --error-exitcode=1 -j 2 \
    --enable=warning,performance,portability --suppress=missingIncludeSystem \
    --suppress=unknownMacro --suppress=invalidFunctionArg \
    --suppress=arrayIndexOutOfBoundsCond \
    -D_GNU_SOURCE -D__x86_64__ "$@" >"$out" 2>&1
verdict $? cppcheck

echo "$passed passed, $failed failed"
[ $failed = 0 ]
