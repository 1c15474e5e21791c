#!/bin/sh
# Static analysis: sh tests/lint.sh 'COMPILER FLAGS' FILE.c...
# clang-tidy with the checks of .clang-tidy, then cppcheck. Each file is a case of each tool; closes
# with "N passed, N failed".
set -u
flags=$1
shift

# isa FILE: the instruction sets the Makefile grants it
isa() {
    case $1 in
    kernels/avx512*) echo '-mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni' ;;
    kernels/avxvnni*) echo '-mavx2 -mfma -mf16c -mbmi2 -mavxvnni' ;;
    kernels/avx*) echo '-mavx2 -mfma -mf16c -mbmi2' ;;
    esac
}
# verdict CODE TEXT FILE: counts a case; shows what the tool printed to FILE when it failed
verdict() {
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '%s:\n' "$2"
        cat "$3"
    fi
}

# One for each processor at a time, each into a report of its own.
if [ "$flags" = --one ]; then # --one FOLDER 'COMPILER FLAGS' FILE.c
    report=$1/$(echo "$3" | tr / _)
    # shellcheck disable=SC2046,SC2086 # lists of flags
    clang-tidy --quiet "$3" -- $2 $(isa "$3") >"$report" 2>/dev/null
    echo $? >"$report.code"
    exit 0
fi
passed=0 failed=0
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
printf '%s\n' "$@" | xargs -n 1 -P "$jobs" sh "$0" --one "$dir" "$flags"
for f in "$@"; do
    report=$dir/$(echo "$f" | tr / _)
    verdict "$(cat "$report.code" 2>/dev/null || echo none)" "clang-tidy $f" "$report"
done
# Suppressed: what other libraries' macros hide from it, and two checks that take a loop for skipped or
# a condition for redundant where it is neither.
cppcheck --quiet --std=c11 --language=c --inline-suppr --error-exitcode=1 -j "$jobs" \
    --enable=warning,performance,portability --suppress=missingIncludeSystem \
    --suppress=unknownMacro --suppress=invalidFunctionArg \
    --suppress=arrayIndexOutOfBoundsCond \
    -D_GNU_SOURCE -D__x86_64__ "$@" >"$dir/cppcheck" 2>&1
verdict $? cppcheck "$dir/cppcheck"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
