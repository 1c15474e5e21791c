/* The kernel tables of all levels the machine has: no kernel of an instruction set that the level
 * lacks, and some of each file that is for it. A kernel that is taken for a higher level's gives
 * the right numbers where the machine has both, so other tests do not see it. */
#include "harness.h"

#include "../kernels/kernels.h"

#include <stddef.h>

enum {
    AVX2 = TN_ISA_AVX2,
    AVXVNNI = AVX2 | TN_ISA_AVXVNNI,
    AVX512 = AVX2 | TN_ISA_AVX512,
    VNNI512 = AVX512 | TN_ISA_VNNI512,
    FIRST = offsetof(tn_kernels, matmul), /* of what are pointers to functions */
    SLOTS = (sizeof(tn_kernels) - FIRST) / sizeof(uintptr_t)
};

static const unsigned levels[] = {TN_ISA_SCALAR, AVX2, AVXVNNI, AVX512, VNNI512};

/* isa: what the layer's kernels need. */
static const struct {
    const char *name;
    void (*fill)(tn_kernels *);
    unsigned isa;
} layers[] = {
    {"avx2_rows", tn_kernels_avx2_rows, AVX2},
    {"avx2_many", tn_kernels_avx2_many, AVX2},
    {"avx2_float", tn_kernels_avx2_float, AVX2},
    {"avx2_ops", tn_kernels_avx2_ops, AVX2},
    {"avx2_attend", tn_kernels_avx2_attend, AVX2},
    {"avxvnni_many", tn_kernels_avxvnni_many, AVXVNNI},
    {"avx512_ops", tn_kernels_avx512_ops, AVX512},
    {"avx512_attend", tn_kernels_avx512_attend, AVX512},
    {"avx512_attend with VNNI", tn_kernels_avx512_attend, VNNI512},
    {"avx512_many", tn_kernels_avx512_many, VNNI512},
    {"avx512_r16", tn_kernels_avx512_r16, VNNI512},
};
enum { LAYERS = sizeof layers / sizeof *layers };

static uintptr_t slot(const tn_kernels *k, int i)
{
    uintptr_t p;
    memcpy(&p, (const char *)k + FIRST + i * sizeof p, sizeof p);
    return p;
}

/* Slots of `table` that hold what layer i fills them with for a table of `isa`. */
static int slots_of(const tn_kernels *table, int i, unsigned isa)
{
    tn_kernels own = {.isa = isa, .prefetch = table->prefetch};
    int n = 0;
    layers[i].fill(&own);
    for (int s = 0; s < SLOTS; s++)
        n += slot(&own, s) && slot(&own, s) == slot(table, s);
    return n;
}

TEST(levels_keep_to_their_instructions)
{
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        const unsigned level = levels[l];
        tn_kernels table;
        if (level & ~tn_isa_detect()) continue;
        tn_kernels_init(&table, level);
        CHECK_INT(table.isa, level);
        for (int i = 0; i < LAYERS; i++) {
            const unsigned lacks = layers[i].isa & ~level;
            const int n = slots_of(&table, i, level | layers[i].isa);
            CHECK_MSG(!lacks || n == 0, "level %u has %d kernels of %s", level, n, layers[i].name);
            CHECK_MSG(layers[i].isa != level || n > 0, "level %u has none of %s", level,
                      layers[i].name);
        }
    }
}

TEST_MAIN
