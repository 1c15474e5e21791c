# tenon: `make help` lists the targets.
CC      ?= cc
CONFIG  ?= release
BUILD   := build/$(CONFIG)
COMMIT  := $(shell git describe --always --dirty --abbrev=12 2>/dev/null)

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-sign-compare
# -ffp-contract=off: scalar.c defines results, so no compiler may fuse what it did not write.
CFLAGS  := -std=c11 -D_GNU_SOURCE -O2 -g -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno $(WARN) $(EXTRA_CFLAGS)
LDLIBS  := -lm -lpthread -ldl $(EXTRA_LDFLAGS)
PKGS    := libpcre2-8 libutf8proc jansson
CFLAGS  += $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LDLIBS  += $(shell pkg-config --libs $(PKGS) 2>/dev/null)
EDIT_CFLAGS := $(shell pkg-config --cflags libedit 2>/dev/null)
EDIT_LIBS   := $(shell pkg-config --libs libedit 2>/dev/null)

LIB_SRC := $(wildcard gguf/*.c kernels/*.c engine/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cli/*.c))
BENCH_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard bench/*.c))
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))

all: tenon

$(BUILD)/kernels/avx2_%.o: CFLAGS += -mavx2 -mfma -mf16c -mbmi2
$(BUILD)/cli/%.o: CFLAGS += $(EDIT_CFLAGS) $(if $(EDIT_LIBS),-DTN_HAVE_EDIT)
$(BUILD)/engine/version.o: CFLAGS += -DTN_COMMIT='"$(COMMIT)"'

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libtenon.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

tenon: $(CLI_OBJ) $(BUILD)/libtenon.a
	$(CC) $(CFLAGS) $^ -o $@ $(LDLIBS) $(EDIT_LIBS)

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(BUILD)/libtenon.a
	$(CC) $(CFLAGS) $^ -o $@ $(LDLIBS)

tests: $(TESTS)

clean:
	rm -rf build tenon tenon-bench

.PHONY: all tests clean
.SECONDARY:
-include $(shell find build -name '*.d' 2>/dev/null)
