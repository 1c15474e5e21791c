#!/bin/sh
# The arrows of the tree, gguf <- kernels <- engine <- {cli, bench}, and what the library must not do.
# Prints every line that breaks a rule and closes with "N passed, N failed".
set -u
passed=0 failed=0
library='gguf kernels engine'
all='gguf kernels engine cli bench'

# rule NAME LINES: broken unless there are none
rule() {
    if [ -n "$2" ]; then
        printf '%s:\n%s\n' "$1" "$2"
        failed=$((failed + 1))
    else
        passed=$((passed + 1))
    fi
}
# includes PATTERN FOLDER...: "file:line:#include ..." that match
includes() {
    pattern=$1
    shift
    grep -rniE "^[[:space:]]*#[[:space:]]*include.*$pattern" --include='*.[ch]' \
        --include='*.cu' --include='*.cpp' "$@"
}
# calls 'f|g|h' FOLDER...: "file: line" that call one of them, comments and strings left out
calls() {
    names=$1
    shift
    find "$@" -name '*.[ch]' | while read -r f; do
        ${CC:-cc} -fpreprocessed -dD -E -P "$f" 2>/dev/null |
            sed -e 's/"\([^"\\]\|\\.\)*"/""/g' -e "s|^|$f: |"
    done | grep -E "(^|[^A-Za-z0-9_>.])($names)[[:space:]]*\("
}
but() { grep -vE "$1"; }

rule 'gguf/ includes nothing but itself' "$(includes '"\.\./' gguf)"
rule 'kernels/ includes itself and gguf/' "$(includes '"\.\./' kernels |
        but '"\.\./gguf/|^kernels/(cuda|emu)/.*"\.\./((cuda|emu)/)?[a-z0-9_]+\.h"|"\.\./\.\./gguf/')"
rule 'engine/ includes itself, kernels/ and gguf/' \
    "$(includes '"\.\./' engine | but '"\.\./(gguf|kernels)/')"
rule 'cli/ and bench/ include engine/tenon.h only' \
    "$(includes '"\.\./' cli bench | but '"(\.\./)+engine/tenon\.h"')"
# shellcheck disable=SC2086 # lists of folders
{
    rule 'intrinsics only in kernels/avx* and the emulated device' "$(includes intrin $all | but '^kernels/(avx|emu/)')"
    rule 'BLAS only in kernels/blas.c' "$(includes '<.*blas' $all | but '^kernels/(blas\.c|cuda/blas\.h)')"
    rule 'CUDA only in kernels/cuda/' "$(includes '<cu(da|blas)' $all | but '^kernels/cuda/')"
    rule 'JSON in the library only in engine/json_*.c' \
        "$(includes jansson $library | but '^engine/json_')"
    rule 'line editing only in cli/' \
        "$(includes '(editline|readline|histedit)' $library bench)"
    rule 'the library never prints' \
        "$(calls 'v?f?printf|f?puts|f?putc|putchar|perror' $library)"
    rule 'the library never ends the process' \
        "$(calls '_?exit|abort|quick_exit|raise|kill' $library)"
    rule 'the library and the benchmark never read the environment' \
        "$(calls '(secure_)?getenv' $library bench)"
    rule 'the library never sets the environment' "$(calls 'setenv|putenv' $library)"
    rule 'memory only through the allocator of gguf/mem.c' \
        "$(calls '[mc]alloc|realloc|strn?dup|v?asprintf' $library | but '^gguf/mem\.c')"
}
rule 'kernels are launched by LAUNCH only' \
    "$(grep -n '<<<' kernels/cuda/* | but '^kernels/cuda/gpu\.h')"
rule 'no -ffast-math' "$(grep -nE 'ffast-math|-Ofast' Makefile .ci/run)"

for h in gguf/*.h kernels/*.h engine/*.h cli/*.h bench/*.h; do
    [ -e "$h" ] || continue
    case $h in
    kernels/avx_many_r8.h) continue ;; # needs what it says that the including file has
    kernels/avx512*) isa='-mavx512f -mavx512bw -mavx512vl -mavx2 -mfma -mf16c' ;;
    kernels/avx*) isa='-mavx2 -mfma -mf16c -mbmi2' ;;
    *) isa='' ;;
    esac
    # shellcheck disable=SC2086 # several flags
    rule "$h stands alone" "$(${CC:-cc} -std=c11 -D_GNU_SOURCE $isa -fsyntax-only -x c "$h" 2>&1)"
done
# A stranger's program may be C99 or C++11, and pedantic.
rule 'tenon.h is clean C99' \
    "$(${CC:-cc} -std=c99 -pedantic -Wall -Wextra -fsyntax-only -x c engine/tenon.h 2>&1)"
if command -v "${CXX:-c++}" >/dev/null; then
    rule 'tenon.h is clean C++11' \
        "$(${CXX:-c++} -std=c++11 -pedantic -Wall -Wextra -fsyntax-only -x c++ engine/tenon.h 2>&1)"
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]
