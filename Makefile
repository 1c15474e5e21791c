# `make help` lists the targets. Objects go to build/<config>/, so that switching needs no clean.
#
#   CONFIG=release|asan|tsan   what to build; the programs of release stand at the top of the tree
#   CFLAGS, EXTRA_CFLAGS       optimisation, and what to add to it (EXTRA_CFLAGS=-Werror)
#   CUDA=auto|off|on|emu       which device plug-in to build besides: auto is that for GPUs where there
#                              is nvcc, for this machine's or, without one, as PTX; off leaves all
#                              device code out; emu is the emulated device (0 and 1 are off and on);
#                              an nvcc that cannot compile is an error for on, for auto as if none
#   CUDA_ARCHS='75 90'         build for these compute capabilities instead of this machine's
#   PREFIX, DESTDIR            where `make install` puts things

CC      ?= cc
CLANG   ?= clang
CONFIG  ?= release
BUILD   ?= build/$(CONFIG)
PREFIX  ?= /usr/local
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON  ?= python3
# Rules for device code come first in this file, yet `make` alone is `make all`.
.DEFAULT_GOAL := all
COMMIT  := $(shell git describe --always --dirty --abbrev=12 2>/dev/null)
VERSION := $(shell sed -n 's/^.define TN_VERSION_[MP][A-Z]* //p' engine/tenon.h | paste -sd .)
SOMAJOR := $(firstword $(subst ., ,$(VERSION)))

# ---- flags ---------------------------------------------------------------------------------------

PKGS := libpcre2-8 libutf8proc jansson

flags.release := -O2 -g
flags.asan    := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
flags.tsan    := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
flags.fuzz    := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined,fuzzer-no-link \
                 -fno-sanitize-recover=all
$(if $(flags.$(CONFIG)),,$(error CONFIG=$(CONFIG): use release, asan or tsan))

CFLAGS ?= $(flags.release)
WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-sign-compare
# -ffp-contract=off: scalar.c defines results, so no compiler may fuse what it did not write.
OWN_CFLAGS := $(if $(filter release,$(CONFIG)),$(CFLAGS),$(flags.$(CONFIG))) $(EXTRA_CFLAGS)
TN_CFLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno \
             $(WARN) $(shell pkg-config --cflags $(PKGS) 2>/dev/null) $(OWN_CFLAGS)
LDLIBS    := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -lpthread -ldl $(EXTRA_LDFLAGS)
EDIT_CFLAGS := $(shell pkg-config --cflags libedit 2>/dev/null)
EDIT_LIBS   := $(shell pkg-config --libs libedit 2>/dev/null)

# ---- files ---------------------------------------------------------------------------------------

X86 := $(filter x86_64% i%86%,$(shell $(CC) -dumpmachine 2>/dev/null))
LIB_SRC  := $(wildcard gguf/*.c kernels/*.c engine/*.c)
LIB_SRC  := $(if $(X86),$(LIB_SRC),$(filter-out kernels/avx%,$(LIB_SRC)))
LIB_SRC  := $(filter-out kernels/$(if $(filter 0 off,$(CUDA)),device,nodevice).c,$(LIB_SRC))
objects   = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB_OBJ  := $(call objects,$(LIB_SRC))
CLI_OBJ  := $(call objects,$(wildcard cli/*.c))
BENCH_OBJ := $(call objects,$(wildcard bench/*.c))
program   = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard $(1)))
TESTS    := $(call program,tests/test_*.c) $(BUILD)/tests/test_emu_bugs
MODELTESTS := $(call program,tests/modeltest_*.c)
# What runs threads; the rest has nothing for the thread sanitizer to see.
THREADED := $(call program,$(patsubst %,tests/test_%.c,pool blas context engine forward device \
                device_ops device_attend device_weights exec_device exec_device_best exec_devices placements turns \
                stream later)) \
            $(BUILD)/tests/test_emu_bugs
BIN      := $(if $(filter release,$(CONFIG)),,$(BUILD)/)
STATIC   := $(BUILD)/libtenon.a
SHARED   := $(BUILD)/libtenon.so.$(VERSION)
HEADERS  := engine/tenon.h gguf/gguf.h gguf/status.h

# ---- the device plug-ins -------------------------------------------------------------------------

# kernels/cuda/ is compiled by nvcc for GPUs and by a C++ compiler for the emulated device.
CUDA    ?= auto
CXX     ?= c++
TOOLKIT := build/toolkit/nvidia/cu13# where `make deps-cuda` puts one
NVCC    ?= $(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc)) \
             $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc) \
             $(wildcard $(TOOLKIT)/bin/nvcc))
GPU     := $(wildcard /dev/nvidiactl)
# cuBLAS is found where the compiler's own is, whatever the loader knows of that place.
CUDA_LIBS  = $(firstword $(wildcard $(abspath $(dir $(NVCC))..)/lib64 $(abspath $(dir $(NVCC))..)/lib))
CUDA_RPATH = $(foreach d,$(CUDA_LIBS),-L$d -Xlinker -rpath -Xlinker $d)
CUBLAS     = $(wildcard $(CUDA_LIBS:%=%/libcublas.so) $(CUDA_LIBS:%=%/x86_64-linux-gnu/libcublas.so))
CUDA_SRC := $(wildcard kernels/cuda/*.cu)
EMU_SRC  := $(wildcard kernels/emu/*.cpp)
$(if $(filter auto 0 1 off on emu,$(CUDA)),,$(error CUDA=$(CUDA): use auto, off, on or emu))

EMU_PLUGIN  := $(BUILD)/libtenon-emu.so
CUDA_PLUGIN := $(BUILD)/libtenon-cuda.so
PLUGINS.0    :=
PLUGINS.off  :=
PLUGINS.emu  := $(EMU_PLUGIN)
PLUGINS.1    := $(CUDA_PLUGIN)
PLUGINS.on   := $(CUDA_PLUGIN)
# Without a GPU only where cuBLAS is: `make deps-cuda` fetches no more than compiles.
PLUGINS.auto := $(if $(NVCC),$(if $(GPU)$(CUBLAS),auto-plugin))
PLUGINS      := $(PLUGINS.$(CUDA))

# The emulated device computes the same on every machine: no contraction. Its runtime is left
# uninstrumented by the thread sanitizer, see kernels/emu/internal.h.
EMU_ISA := $(if $(X86),$(if $(shell grep -m1 avx2 /proc/cpuinfo 2>/dev/null),-mavx2 -mfma -mf16c))
EMU_CXXFLAGS = -std=c++17 -D_GNU_SOURCE -DTN_EMU -fPIC -fvisibility=hidden -ffp-contract=off \
               -fno-math-errno -fno-strict-aliasing $(EMU_ISA) -Wall -Wextra -Wshadow \
               -Wno-unknown-pragmas $(if $(filter release,$(CONFIG)),$(CFLAGS),$(flags.$(CONFIG))) \
               $(EXTRA_CFLAGS)
EMU_RUNTIME_FLAGS := $(if $(filter tsan,$(CONFIG)),-fno-sanitize=thread -DTN_EMU_TSAN \
    -fno-tree-loop-distribute-patterns)
# What of libtenon the plug-ins use: they bring their own copy.
PLUGIN_LIB := $(call objects,gguf/mem.c gguf/types.c kernels/blas.c \
                $(wildcard kernels/device_weights.c))
EMU_OBJ = $(CUDA_SRC:%.cu=$(BUILD)/emu/%.o) $(EMU_SRC:%.cpp=$(BUILD)/emu/%.o)

$(BUILD)/emu/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(EMU_CXXFLAGS) -MMD -MP -x c++ -c $< -o $@

$(BUILD)/emu/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(EMU_CXXFLAGS) $(EMU_RUNTIME_FLAGS) -MMD -MP -c $< -o $@

$(EMU_PLUGIN): $(EMU_OBJ) $(PLUGIN_LIB)
	$(CXX) $(EMU_CXXFLAGS) -shared $^ -o $@ -lm -lpthread -ldl

# The same device with the hardware of compute capability 7.5: smaller shared memory, no asynchronous
# copies, products in parts. What depends on that is compiled anew; two tests run on it.
SM75 := $(BUILD)/sm75
SM75_OBJ := $(patsubst %,$(SM75)/kernels/cuda/%.o,attend_decode attend_tensor gemm_int8) \
            $(patsubst %,$(SM75)/kernels/emu/%.o,block memory stream)
SM75_TESTS := $(patsubst %,$(SM75)/test_device_%,attend weights)

$(SM75)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(EMU_CXXFLAGS) -DGPU_ARCH=750 -MMD -MP -x c++ -c $< -o $@

$(SM75)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(EMU_CXXFLAGS) -DGPU_ARCH=750 -MMD -MP -c $< -o $@

$(SM75)/libtenon-emu.so: $(SM75_OBJ) $(PLUGIN_LIB) \
    $(filter-out $(SM75_OBJ:$(SM75)/%=$(BUILD)/emu/%),$(EMU_OBJ))
	$(CXX) $(EMU_CXXFLAGS) -shared $^ -o $@ -lm -lpthread -ldl

# The plug-in beside a test program is the one that it opens.
$(SM75)/test_%: $(BUILD)/tests/test_% $(SM75)/libtenon-emu.so
	@ln -f $< $@

# Seeded bugs, the emulated device's own test.
$(BUILD)/tests/test_emu_bugs: $(patsubst %,$(BUILD)/emu/tests/emu_bugs%.o,_block _host) \
    $(BUILD)/emu/tests/emu_bugs.o \
    $(filter $(BUILD)/emu/kernels/emu/%,$(EMU_OBJ)) $(PLUGIN_LIB)
	@mkdir -p $(@D)
	$(CXX) $(EMU_CXXFLAGS) $^ -o $@ -lm -lpthread -ldl

# For this machine's GPUs; without any for the oldest we know, as PTX that the driver translates.
NATIVE := $(if $(CUDA_ARCHS),,$(if $(GPU),1))
comma := ,
gencode = -gencode arch=compute_$(1)$(comma)code=$(2)_$(1)
NVCC_ARCH = $(if $(CUDA_ARCHS),$(foreach a,$(CUDA_ARCHS),$(call gencode,$a,sm)) \
              $(call gencode,$(lastword $(CUDA_ARCHS)),compute),\
              $(if $(NATIVE),-arch=native,$(call gencode,75,compute)))
NVCCFLAGS = -std=c++17 -O3 -lineinfo -ccbin $(CXX) \
            -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter $(NVCC_EXTRA)

$(BUILD)/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(NVCC_ARCH) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(CUDA_PLUGIN): $(CUDA_SRC:%.cu=$(BUILD)/cuda/%.o) $(PLUGIN_LIB)
	@$(if $(CUDA_ARCHS)$(NATIVE),:,echo 'No GPU is visible here: this plug-in holds PTX for compute \
	    capability 7.5, which the driver translates at the first start.' >&2)
	$(NVCC) $(NVCC_ARCH) -shared $^ -o $@ $(CUDA_RPATH) -lcublas -lpthread -ldl

# CUDA=auto goes on where nvcc cannot compile, for it does not know the host compiler or half of the
# toolkit is missing. That it can is remembered, with what did.
PROBE := $(BUILD)/cuda/compiles
auto-plugin: $(PLUGIN_LIB)
	@mkdir -p $(dir $(PROBE)); \
	key="$(strip $(NVCC) $(NVCC_ARCH)) $$($(CXX) --version | head -n 1)"; \
	[ "$$key" = "$$(cat $(PROBE) 2>/dev/null)" ] && exit; rm -f $(PROBE); \
	printf '#include <%s>\n' cublas_v2.h vector >$(PROBE).cu; \
	echo '__global__ void probe(float *p) { *p = 1; }' >>$(PROBE).cu; \
	if $(NVCC) $(NVCCFLAGS) $(NVCC_ARCH) -shared $(PROBE).cu -o $(PROBE).so $(CUDA_RPATH) -lcublas \
	    >$(PROBE).log 2>&1; then echo "$$key" >$(PROBE); else \
	why=$$(grep -i -m 1 error $(PROBE).log || head -n 1 $(PROBE).log); \
	echo "$(NVCC) cannot compile a test program ($${why:-it says nothing}): building without the CUDA" \
	    "plug-in. CUDA=on shows its errors, CUDA=off leaves device code out." >&2; fi
	@+[ ! -f $(PROBE) ] || $(SUBMAKE) cuda-plugin

need-nvcc:
	@[ -n '$(NVCC)' ] || { echo "There is no nvcc: 'make deps-cuda' fetches what compiles device" \
	    'code; a program for GPUs needs the CUDA toolkit, or set NVCC=...' >&2; exit 1; }

# Turing, Ampere (A100, RTX 30), Ada, Hopper, Blackwell (B200, RTX 50), and PTX for what comes.
ALL_ARCHS := 75 80 86 89 90 100 120

cuda-all: need-nvcc ## the plug-in for every GPU from Turing to Blackwell, for releases
	@+$(SUBMAKE) CUDA=on CUDA_ARCHS='$(ALL_ARCHS)' BUILD=build/cuda-all cuda-plugin

cuda-plugin: $(CUDA_PLUGIN)

# Compiling needs no GPU, no driver and no library to link with.
CHECK_OBJ := $(CUDA_SRC:%.cu=build/cuda-check/cuda/%.o)

cuda-check: ## compile all device code with nvcc for sm_75 and sm_90; a warning is an error
	@sh deps.sh build cuda </dev/null
	@+$(SUBMAKE) CUDA_ARCHS='75 90' BUILD=build/cuda-check run-cuda-check \
	    NVCC_EXTRA='-Werror all-warnings -Xcompiler -Werror'

run-cuda-check: need-nvcc $(CHECK_OBJ)
	@echo '$(words $(CHECK_OBJ)) passed, 0 failed'

# ---- building ------------------------------------------------------------------------------------

all: lib tenon tenon-bench plugins ## library and programs

plugins: $(if $(filter 1 on,$(CUDA)),need-nvcc) $(PLUGINS) ## the device plug-in that CUDA= asks for

lib: $(STATIC) $(SHARED) ## libtenon.a and libtenon.so
tenon: ## the chat program
tenon-bench: ## the benchmark
tests: $(TESTS) ## the test programs, without running them

$(BUILD)/kernels/avx2_%.o:    TN_CFLAGS += -mavx2 -mfma -mf16c -mbmi2
$(BUILD)/kernels/avxvnni_%.o: TN_CFLAGS += -mavx2 -mfma -mf16c -mbmi2 -mavxvnni
$(BUILD)/kernels/avx512_%.o:  TN_CFLAGS += -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw \
                                           -mavx512vl -mavx512dq -mavx512vnni
# clang takes minutes to add the checks of fuzzing to these; make asan has them checked with gcc.
build/fuzz/kernels/avx%.o: TN_CFLAGS += -fno-sanitize=undefined,fuzzer-no-link
$(BUILD)/cli/%.o:             TN_CFLAGS += $(EDIT_CFLAGS) $(if $(EDIT_LIBS),-DTN_HAVE_EDIT)
$(BUILD)/bench/text.o:        bench/alice.txt
# All that makes other kernels of the same sources; measured rates are kept under it.
$(BUILD)/engine/version.o:    TN_CFLAGS += -DTN_COMMIT='"$(COMMIT)"' \
    -DTN_FLAGS='"$(strip $(OWN_CFLAGS) $(if $(filter 0 off,$(CUDA)),CUDA=off))"'
$(BUILD)/engine/version.o:    $(BUILD)/commit $(BUILD)/devices

$(BUILD)/%.o: %.c | check-deps
	@mkdir -p $(@D)
	$(CC) $(TN_CFLAGS) -MMD -MP -c $< -o $@

# Changes when the commit does, so that --version tells the truth.
$(BUILD)/commit: FORCE
	@mkdir -p $(@D)
	@echo '$(COMMIT)' | cmp -s - $@ || echo '$(COMMIT)' >$@

# Changes when device code is left out or let in again.
$(BUILD)/devices: FORCE
	@mkdir -p $(@D)
	@echo '$(filter 0 off,$(CUDA))' | cmp -s - $@ || echo '$(filter 0 off,$(CUDA))' >$@

$(STATIC): $(LIB_OBJ) $(BUILD)/devices
	@rm -f $@
	$(AR) rcs $@ $(LIB_OBJ)

$(SHARED): $(LIB_OBJ) $(BUILD)/devices
	$(CC) $(TN_CFLAGS) -shared -Wl,-soname,libtenon.so.$(SOMAJOR) $(LIB_OBJ) -o $@ $(LDLIBS)
	ln -sf $(@F) $(BUILD)/libtenon.so.$(SOMAJOR)
	ln -sf $(@F) $(BUILD)/libtenon.so

$(BIN)tenon: $(CLI_OBJ) $(STATIC)
	$(CC) $(TN_CFLAGS) $^ -o $@ $(LDLIBS) $(EDIT_LIBS)

$(BIN)tenon-bench: $(BENCH_OBJ) $(STATIC)
	$(CC) $(TN_CFLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/tests/test_% $(BUILD)/tests/modeltest_%: TN_CFLAGS += -Itests
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(STATIC)
	$(CC) $(TN_CFLAGS) $^ -o $@ $(LDLIBS)
# Device code left out, whatever the build: the library's own table of devices is not taken then.
$(BUILD)/tests/test_nodevice: $(BUILD)/tests/test_nodevice.o $(BUILD)/kernels/nodevice.o $(STATIC)
	$(CC) $(TN_CFLAGS) $^ -o $@ $(LDLIBS)
# These test the benchmark's own parts.
$(BUILD)/tests/test_bench_%: $(BUILD)/tests/test_bench_%.o $(filter-out %/main.o,$(BENCH_OBJ)) $(STATIC)
	$(CC) $(TN_CFLAGS) $^ -o $@ $(LDLIBS)

# ---- using ---------------------------------------------------------------------------------------

# Everything but the chat itself writes to stderr and leaves stdin alone, so that a question can
# come through a pipe: echo "What is a tenon?" | make -s chat
SUBMAKE = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))
MODEL ?= smollm2-135m

# Of several goals in one call, what is built here is done before another make builds it, too.
chat test test-models test-gpu bench-gpu: | $(filter all lib tenon tenon-bench plugins tests,$(MAKECMDGOALS))

chat: ## talk to MODEL=id or file (installs, builds and fetches what is missing); ARGS='...'
	@sh deps.sh build models </dev/null >&2
	@+$(SUBMAKE) tenon plugins </dev/null >&2
	@model=$$($(PYTHON) python/fetch_models.py --path $(MODEL) </dev/null) || exit 1; \
	./tenon chat "$$model" $(ARGS); s=$$?; [ $$s -eq 130 ] || exit $$s

models: ## fetch models: ID='a b' or, without it, those that the tests need; LIST=1 shows all
	@sh deps.sh models </dev/null
	@$(PYTHON) python/fetch_models.py $(if $(LIST),--list,$(if $(ID),$(ID),smollm2-135m gemma3-270m))

bench: tenon-bench ## measure MODEL=id or file; ARGS='...'
	@./tenon-bench -m "$$($(PYTHON) python/fetch_models.py --path $(MODEL))" $(ARGS)

bench-peers: tenon tenon-bench $(BUILD)/tests/make_model ## README's table against every llama-bench on PATH; MINUTES=9 for a piece of it, ROWS='regex'
	@$(PYTHON) bench/peers.py --readme README.md $(if $(ROWS),--rows '$(ROWS)') \
	    $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

simulate: $(BUILD)/tests/simulate_table ## compute the README's table of simulated speeds anew
	@$< >$(BUILD)/simulated.md
	@sed -i -e '/^<!-- simulated -->$$/,/^<!-- end -->$$/{/^<!--/!d}' \
	    -e '/^<!-- simulated -->$$/r $(BUILD)/simulated.md' README.md

# ---- testing -------------------------------------------------------------------------------------

test: ## all tests that need no network, no GPU and no model from outside
	@sh deps.sh build test </dev/null
	@+$(SUBMAKE) run-tests

# The longest first, so that no processor waits for another's last test.
LONG := $(call program,$(patsubst %,tests/test_%.c,placements exec_device budget calibrate exec_devices elastic \
          plan))
MORE := $(if $(filter release,$(CONFIG)),$(SM75_TESTS) $(wildcard tests/test_*.py),tests/test_cli.py tests/test_bench.py)
run-tests: $(TESTS) $(EMU_PLUGIN) $(BIN)tenon $(BIN)tenon-bench $(STATIC) $(SHARED) $(filter-out %.py,$(MORE))
	@sh tests/run.sh $(BIN)tenon $(LONG) $(MORE) $(filter-out $(LONG),$(TESTS))

test-models: ## tests on the real models, which are fetched first
	@sh deps.sh build models test </dev/null
	@$(PYTHON) python/fetch_models.py smollm2-135m gemma3-270m
	@+$(SUBMAKE) run-test-models

run-test-models: $(MODELTESTS) $(EMU_PLUGIN) $(BIN)tenon $(BIN)tenon-bench
	@sh tests/run.sh $(BIN)tenon $(MODELTESTS) $(wildcard tests/modeltest_*.py)

# Both say so and succeed where there is no GPU. REPORT=FILE is where the JSON report goes.
GPU_PY = $(PYTHON) tests/gpu.py
test-gpu: ## the device tests on this machine's GPU, compute-sanitizer included; writes a JSON report
	@+$(if $(GPU),$(SUBMAKE) CUDA=on run-test-gpu,$(GPU_PY) test)

GPU_TESTS := $(call program,tests/test_device*.c tests/test_exec_device*.c tests/test_elastic.c \
    tests/test_stream.c tests/test_placements.c tests/test_turns.c tests/test_experts.c \
    tests/modeltest_forward.c)

run-test-gpu: need-nvcc $(CUDA_PLUGIN) $(GPU_TESTS)
	@$(GPU_PY) test --build $(BUILD) $(if $(REPORT),--out '$(REPORT)')

bench-gpu: ## generated models of 1B to 70B on this machine's GPU; writes a JSON report
	@+$(if $(GPU),$(SUBMAKE) CUDA=on run-bench-gpu,$(GPU_PY) bench)

run-bench-gpu: need-nvcc $(CUDA_PLUGIN) $(BIN)tenon $(BIN)tenon-bench
	@$(GPU_PY) bench --build $(BUILD) $(if $(REPORT),--out '$(REPORT)')

# For a machine that has a GPU but not what a build needs: unpack this tree there and run
#     python3 tests/gpu.py test --build build/gpu-kit      (or bench)
gpu-kit: ## what test-gpu and bench-gpu run, for CUDA_ARCHS='80 86 89 90', gathered in build/gpu-kit
	@+$(SUBMAKE) CUDA=on CUDA_ARCHS='$(or $(CUDA_ARCHS),80 86 89 90)' BUILD=build/gpu BIN=build/gpu/ \
	    run-gpu-kit

run-gpu-kit: need-nvcc $(CUDA_PLUGIN) $(GPU_TESTS) $(BIN)tenon $(BIN)tenon-bench
	@rm -rf build/gpu-kit && mkdir -p build/gpu-kit/tests build/gpu-kit/lib
	@cp $(CUDA_PLUGIN) build/gpu-kit
	@for p in tenon tenon-bench; do strip -o build/gpu-kit/$$p $(BIN)$$p || exit 1; done
	@for t in $(GPU_TESTS); do strip -o build/gpu-kit/tests/$${t##*/} $$t || exit 1; done
	@ldd $(BIN)tenon $(BIN)tenon-bench | awk '$$3 ~ /^\// && $$1 !~ /^lib(c|m)\.so/ && !seen[$$3]++ {print $$3}' | \
	    xargs cp -Lt build/gpu-kit/lib
	@du -sh build/gpu-kit

# The build without device code (CUDA=off) differs in one file, so what is built already is taken over.
OFF_TESTS := $(call program,$(patsubst %,tests/test_%.c,nodevice device engine))
off-check: lib tenon tests ## that the build without device code (CUDA=off) builds, starts, and says so
	@rm -rf build/off && mkdir -p build/off
	@cd $(BUILD) && find cli engine gguf kernels tests -name '*.o' -exec cp -p --parents -t ../off '{}' +
	@+$(SUBMAKE) CUDA=off BUILD=build/off BIN=build/off/ run-off-check

run-off-check: $(BIN)tenon $(OFF_TESTS)
	@$(BIN)tenon --version | grep -x 'devices none'
	@$(BIN)tenon --version --device emu 2>&1 | grep 'CUDA=off'
	@sh tests/run.sh $(BIN)tenon $(OFF_TESTS)

asan: ## all tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@+$(SUBMAKE) CONFIG=asan BUILD=build/asan run-tests

tsan: ## the tests of what runs threads under ThreadSanitizer
	@+$(SUBMAKE) CONFIG=tsan BUILD=build/tsan run-threaded

run-threaded: $(THREADED) $(EMU_PLUGIN)
	@sh tests/run.sh $(BIN)tenon $(THREADED)

FUZZERS := $(patsubst tests/%.c,%,$(wildcard tests/fuzz_*.c))
SECONDS ?= 60

fuzz: ## the libFuzzer targets (with clang), in build/fuzz/tests/
	@+$(SUBMAKE) CONFIG=fuzz BUILD=build/fuzz CC=$(CLANG) $(FUZZERS:%=build/fuzz/tests/%)

fuzz-run: fuzz ## run every fuzz target for SECONDS=60
	@sh tests/fuzz.sh build/fuzz/tests $(SECONDS) $(FUZZERS)

build/fuzz/tests/fuzz_%: build/fuzz/tests/fuzz_%.o build/fuzz/libtenon.a
	$(CC) $(TN_CFLAGS) -fsanitize=fuzzer $^ -o $@ $(LDLIBS)

check-includes: ## who may include whom; headers that stand alone; forbidden calls
	@sh tests/check_includes.sh

lint: ## clang-tidy and cppcheck with the checks of .clang-tidy
	@sh tests/lint.sh '$(TN_CFLAGS)' $(LIB_SRC) $(wildcard cli/*.c bench/*.c)

format: ## clang-format what was changed since the last commit
	@git diff --name-only --diff-filter=d HEAD -- '*.c' '*.h' | xargs -r clang-format -i

# ---- installing ----------------------------------------------------------------------------------

INSTALLED = bin/tenon bin/tenon-bench lib/libtenon.a lib/libtenon.so.$(VERSION) \
    lib/libtenon.so.$(SOMAJOR) lib/libtenon.so lib/pkgconfig/tenon.pc \
    $(addprefix include/tenon/,$(notdir $(HEADERS))) \
    share/man/man1/tenon.1 share/man/man1/tenon-bench.1 \
    share/bash-completion/completions/tenon share/zsh/site-functions/_tenon \
    share/fish/vendor_completions.d/tenon.fish

define PC_FILE
prefix=$(PREFIX)
libdir=$${prefix}/lib
includedir=$${prefix}/include

Name: tenon
Description: GGUF language model inference
Version: $(VERSION)
Requires.private: $(PKGS)
Libs: -L$${libdir} -ltenon
Libs.private: -lm -lpthread -ldl
Cflags: -I$${includedir}/tenon -I$${includedir}
endef
export PC_FILE

install: all ## programs, library, headers, pkg-config file, man pages, completions to PREFIX
	@for f in $(INSTALLED); do install -d "$(DESTDIR)$(PREFIX)/$$(dirname $$f)"; done
	install -m 755 tenon tenon-bench '$(DESTDIR)$(PREFIX)/bin'
	install -m 644 $(STATIC) '$(DESTDIR)$(PREFIX)/lib'
	install -m 755 $(SHARED) '$(DESTDIR)$(PREFIX)/lib'
	cp -dP $(BUILD)/libtenon.so.$(SOMAJOR) $(BUILD)/libtenon.so '$(DESTDIR)$(PREFIX)/lib'
	@for f in $(HEADERS); do \
	    sed 's|"../gguf/|"|' $$f >"$(DESTDIR)$(PREFIX)/include/tenon/$${f##*/}"; done
	@printf '%s\n' "$$PC_FILE" >'$(DESTDIR)$(PREFIX)/lib/pkgconfig/tenon.pc'
	./tenon --generate man >'$(DESTDIR)$(PREFIX)/share/man/man1/tenon.1'
	./tenon-bench --generate man >'$(DESTDIR)$(PREFIX)/share/man/man1/tenon-bench.1'
	./tenon --generate bash >'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/tenon'
	./tenon --generate zsh >'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tenon'
	./tenon --generate fish >'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tenon.fish'
	@[ -n '$(DESTDIR)' ] || ldconfig 2>/dev/null || :

uninstall: ## remove what install put under PREFIX
	rm -f $(INSTALLED:%='$(DESTDIR)$(PREFIX)/%')
	@rmdir '$(DESTDIR)$(PREFIX)/include/tenon' 2>/dev/null || :

# ---- housekeeping --------------------------------------------------------------------------------

deps: ## install the Debian packages to build, fetch models and test
	@sh deps.sh build models test

deps-ci: ## install clang, clang-tidy and cppcheck as well
	@sh deps.sh build models test ci

deps-cuda: ## fetch nvcc to build/toolkit where there is none: enough to compile device code
	@sh deps.sh build cuda

check-deps:
	@sh deps.sh --check build

clean: ## remove everything built (models/ stays)
	rm -rf build tenon tenon-bench

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	    while IFS='|' read -r t d; do printf '  make %-16s %s\n' "$$t" "$$d"; done

FORCE:
.PHONY: all lib plugins auto-plugin need-nvcc cuda-all cuda-plugin cuda-check run-cuda-check deps-cuda tests \
    chat models bench bench-peers simulate test run-tests test-models run-test-models test-gpu run-test-gpu bench-gpu \
    run-bench-gpu gpu-kit run-gpu-kit off-check run-off-check asan tsan run-threaded fuzz fuzz-run check-includes lint format install \
    uninstall deps deps-ci check-deps clean help FORCE
.SECONDARY:
-include $(wildcard $(BUILD)/*/*.d $(BUILD)/emu/*/*.d $(BUILD)/emu/*/*/*.d $(SM75)/*/*/*.d $(BUILD)/cuda/kernels/cuda/*.d)
