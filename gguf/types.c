#include "types.h"
#include "blocks.h"
#include "mem.h"

/* Rows: name, elements per block, bytes per block, usable as weights of a product. */
static const tn_type_info types[TN_TYPE_COUNT] = {
    [TN_TYPE_F32] = {"F32", 1, 4, true},
    [TN_TYPE_F16] = {"F16", 1, 2, true},
    [TN_TYPE_Q4_0] = {"Q4_0", 32, sizeof(tn_block_q4_0), true},
    [TN_TYPE_Q4_1] = {"Q4_1", 32, sizeof(tn_block_q4_1), true},
    [4] = {"Q4_2", 0, 0, false}, /* removed from the format */
    [5] = {"Q4_3", 0, 0, false}, /* removed */
    [TN_TYPE_Q5_0] = {"Q5_0", 32, sizeof(tn_block_q5_0), true},
    [TN_TYPE_Q5_1] = {"Q5_1", 32, sizeof(tn_block_q5_1), true},
    [TN_TYPE_Q8_0] = {"Q8_0", 32, sizeof(tn_block_q8_0), true},
    [TN_TYPE_Q8_1] = {"Q8_1", 32, sizeof(tn_block_q8_1), false},
    [TN_TYPE_Q2_K] = {"Q2_K", 256, sizeof(tn_block_q2_k), true},
    [TN_TYPE_Q3_K] = {"Q3_K", 256, sizeof(tn_block_q3_k), true},
    [TN_TYPE_Q4_K] = {"Q4_K", 256, sizeof(tn_block_q4_k), true},
    [TN_TYPE_Q5_K] = {"Q5_K", 256, sizeof(tn_block_q5_k), true},
    [TN_TYPE_Q6_K] = {"Q6_K", 256, sizeof(tn_block_q6_k), true},
    [TN_TYPE_Q8_K] = {"Q8_K", 256, sizeof(tn_block_q8_k), false},
    [16] = {"IQ2_XXS", 256, 66, false},
    [17] = {"IQ2_XS", 256, 74, false},
    [18] = {"IQ3_XXS", 256, 98, false},
    [19] = {"IQ1_S", 256, 50, false},
    [20] = {"IQ4_NL", 32, 18, false},
    [21] = {"IQ3_S", 256, 110, false},
    [22] = {"IQ2_S", 256, 82, false},
    [23] = {"IQ4_XS", 256, 136, false},
    [TN_TYPE_I8] = {"I8", 1, 1, false},
    [TN_TYPE_I16] = {"I16", 1, 2, false},
    [TN_TYPE_I32] = {"I32", 1, 4, false},
    [TN_TYPE_I64] = {"I64", 1, 8, false},
    [TN_TYPE_F64] = {"F64", 1, 8, false},
    [29] = {"IQ1_M", 256, 56, false},
    [TN_TYPE_BF16] = {"BF16", 1, 2, true},
    [31] = {"Q4_0_4_4", 0, 0, false},   /* removed */
    [32] = {"Q4_0_4_8", 0, 0, false},   /* removed */
    [33] = {"Q4_0_8_8", 0, 0, false},   /* removed */
    [34] = {"TQ1_0", 256, 54, false},
    [35] = {"TQ2_0", 256, 66, false},
    [36] = {"IQ4_NL_4_4", 0, 0, false}, /* removed */
    [37] = {"IQ4_NL_4_8", 0, 0, false}, /* removed */
    [38] = {"IQ4_NL_8_8", 0, 0, false}, /* removed */
    [39] = {"MXFP4", 32, 17, false},
    [40] = {"NVFP4", 64, 36, false},
    [41] = {"Q1_0", 128, 18, false},
    [42] = {"Q2_0", 64, 18, false},
};

const tn_type_info *tn_type_get(uint32_t id)
{
    return id < TN_TYPE_COUNT ? &types[id] : NULL;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

int tn_type_from_name(const char *name)
{
    for (int id = 0; id < TN_TYPE_COUNT; id++) {
        const char *a = types[id].name, *b = name;
        while (*a && lower(*a) == lower(*b)) a++, b++;
        if (!*a && !*b) return id;
    }
    return -1;
}

bool tn_type_row_bytes(uint32_t id, uint64_t cols, size_t *bytes)
{
    const tn_type_info *t = tn_type_get(id);
    if (!t || t->block == 0 || cols % t->block) return false;
    uint64_t n = cols / t->block;
    return n <= SIZE_MAX && tn_mul_size((size_t)n, t->bytes, bytes);
}
