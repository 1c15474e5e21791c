/* The type table, and scalar dequantisation bit for bit against published blocks and by hand. */
#include "harness.h"

#include "../gguf/blocks.h"
#include "../kernels/f16.h"
#include "../kernels/kernels.h"

/* ---- the table ------------------------------------------------------------------------------- */

/* Written down independently of the table: names, block sizes and bits per weight of the format. */
static const struct {
    uint32_t id;
    const char *name;
    uint32_t block;
    double bits;
} expected[] = {
    {0, "F32", 1, 32},         {1, "F16", 1, 16},          {2, "Q4_0", 32, 4.5},
    {3, "Q4_1", 32, 5},        {6, "Q5_0", 32, 5.5},       {7, "Q5_1", 32, 6},
    {8, "Q8_0", 32, 8.5},      {9, "Q8_1", 32, 9},         {10, "Q2_K", 256, 2.625},
    {11, "Q3_K", 256, 3.4375}, {12, "Q4_K", 256, 4.5},     {13, "Q5_K", 256, 5.5},
    {14, "Q6_K", 256, 6.5625}, {15, "Q8_K", 256, 9.125},   {16, "IQ2_XXS", 256, 2.0625},
    {17, "IQ2_XS", 256, 2.3125}, {18, "IQ3_XXS", 256, 3.0625}, {19, "IQ1_S", 256, 1.5625},
    {20, "IQ4_NL", 32, 4.5},   {21, "IQ3_S", 256, 3.4375}, {22, "IQ2_S", 256, 2.5625},
    {23, "IQ4_XS", 256, 4.25}, {24, "I8", 1, 8},           {25, "I16", 1, 16},
    {26, "I32", 1, 32},        {27, "I64", 1, 64},         {28, "F64", 1, 64},
    {29, "IQ1_M", 256, 1.75},  {30, "BF16", 1, 16},        {34, "TQ1_0", 256, 1.6875},
    {35, "TQ2_0", 256, 2.0625}, {39, "MXFP4", 32, 4.25},   {40, "NVFP4", 64, 4.5},
    {41, "Q1_0", 128, 1.125},  {42, "Q2_0", 64, 2.25},
};
enum { N_EXPECTED = sizeof expected / sizeof *expected };

static const struct {
    uint32_t id;
    const char *name;
} removed[] = {{4, "Q4_2"},        {5, "Q4_3"},        {31, "Q4_0_4_4"},   {32, "Q4_0_4_8"},
               {33, "Q4_0_8_8"},   {36, "IQ4_NL_4_4"}, {37, "IQ4_NL_4_8"}, {38, "IQ4_NL_8_8"}};
enum { N_REMOVED = sizeof removed / sizeof *removed };

TEST(every_type_has_its_name_and_size)
{
    CHECK_INT(N_EXPECTED + N_REMOVED, TN_TYPE_COUNT);
    for (int i = 0; i < N_EXPECTED; i++) {
        const tn_type_info *t = tn_type_get(expected[i].id);
        REQUIRE(t && t->name);
        CHECK_STR(t->name, expected[i].name);
        CHECK_MSG(t->block == expected[i].block, "%s: %u elements", t->name, t->block);
        CHECK_MSG(t->bytes * 8.0 == expected[i].bits * t->block, "%s: %u bytes", t->name, t->bytes);
    }
}

TEST(removed_types_keep_a_name_but_have_no_block)
{
    for (int i = 0; i < N_REMOVED; i++) {
        const tn_type_info *t = tn_type_get(removed[i].id);
        size_t bytes;
        REQUIRE(t && t->name);
        CHECK_STR(t->name, removed[i].name);
        CHECK(t->block == 0 && t->bytes == 0 && !t->matmul);
        CHECK(!tn_type_row_bytes(removed[i].id, 256, &bytes));
    }
    CHECK(tn_type_get(TN_TYPE_COUNT) == NULL);
    CHECK(tn_type_get(UINT32_MAX) == NULL);
}

TEST(matmul_types_have_their_kernels)
{
    static const int with[] = {TN_TYPE_F32,  TN_TYPE_F16,  TN_TYPE_BF16, TN_TYPE_Q4_0, TN_TYPE_Q4_1,
                               TN_TYPE_Q5_0, TN_TYPE_Q5_1, TN_TYPE_Q8_0, TN_TYPE_Q2_K, TN_TYPE_Q3_K,
                               TN_TYPE_Q4_K, TN_TYPE_Q5_K, TN_TYPE_Q6_K};
    tn_kernels k = {0};
    int n = 0;
    tn_kernels_scalar(&k);
    for (uint32_t id = 0; id < TN_TYPE_COUNT; id++) {
        const bool matmul = tn_type_get(id)->matmul;
        n += matmul;
        CHECK_MSG(matmul == (k.matmul[TN_LAYOUT_ROWS][id] != NULL), "matmul of type %u", id);
        CHECK_MSG(matmul == (k.dequantize[TN_LAYOUT_ROWS][id] != NULL), "dequantize of type %u",
                  id);
    }
    for (size_t i = 0; i < sizeof with / sizeof *with; i++)
        CHECK_MSG(tn_type_get((uint32_t)with[i])->matmul, "type %d", with[i]);
    CHECK_INT(n, sizeof with / sizeof *with);
}

TEST(types_are_found_by_name)
{
    for (int id = 0; id < TN_TYPE_COUNT; id++)
        CHECK_INT(tn_type_from_name(tn_type_get((uint32_t)id)->name), id);
    CHECK_INT(tn_type_from_name("q4_k"), TN_TYPE_Q4_K);
    CHECK_INT(tn_type_from_name("bF16"), TN_TYPE_BF16);
    static const char *const none[] = {"",      "Q4",    "Q4_",    "Q4_KK",
                                       "Q4_K ", " Q4_K", "Q4_K_M", "q4-k"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        CHECK_MSG(tn_type_from_name(none[i]) == -1, "'%s' found", none[i]);
}

TEST(row_bytes_are_checked)
{
    size_t bytes = 77;
    CHECK(tn_type_row_bytes(TN_TYPE_Q6_K, 512, &bytes));
    CHECK_INT(bytes, 420);
    CHECK(tn_type_row_bytes(TN_TYPE_Q4_0, 0, &bytes));
    CHECK_INT(bytes, 0);
    bytes = 77;
    CHECK(!tn_type_row_bytes(TN_TYPE_Q6_K, 128, &bytes));
    CHECK(!tn_type_row_bytes(TN_TYPE_Q8_0, 33, &bytes));
    CHECK(!tn_type_row_bytes(TN_TYPE_F32, UINT64_MAX, &bytes));
    CHECK(!tn_type_row_bytes(TN_TYPE_F32, UINT64_MAX / 4 + 1, &bytes));
    CHECK(!tn_type_row_bytes(TN_TYPE_Q8_0, UINT64_MAX - 31, &bytes));
    CHECK(!tn_type_row_bytes(TN_TYPE_COUNT, 256, &bytes));
    CHECK_INT(bytes, 77);
    CHECK(tn_type_row_bytes(TN_TYPE_F32, SIZE_MAX / 4, &bytes));
    CHECK(bytes == SIZE_MAX / 4 * 4);
}

/* ---- dequantisation -------------------------------------------------------------------------- */

enum { ROWS = 8, COLS = 256 };

static bool read_golden(const char *type, const char *what, void *to, size_t bytes)
{
    char path[100];
    snprintf(path, sizeof path, "tests/data/quant/%s.%s", type, what);
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    bool ok = fread(to, 1, bytes, f) == bytes && fgetc(f) == EOF;
    fclose(f);
    return ok;
}

static void check_golden(uint32_t type)
{
    static uint8_t blocks[ROWS * COLS * 4];
    static float want[ROWS][COLS];
    const char *name = tn_type_get(type)->name;
    tn_weight w = {.type = type, .rows = ROWS, .cols = COLS, .data = blocks};
    tn_kernels k = {0};
    tn_kernels_scalar(&k);
    REQUIRE(tn_type_row_bytes(type, COLS, &w.row_bytes));
    CHECK_MSG(read_golden(name, "blocks.bin", blocks, ROWS * w.row_bytes), "%s: no blocks", name);
    CHECK_MSG(read_golden(name, "dequant.f32", want, sizeof want), "%s: no values", name);
    for (int r = 0; r < ROWS; r++) {
        float got[COLS];
        k.dequantize[TN_LAYOUT_ROWS][type](&w, r, got);
        for (int c = 0; c < COLS; c++)
            CHECK_MSG(tn_f32_bits(got[c]) == tn_f32_bits(want[r][c]),
                      "%s [%d][%d]: %.9g, want %.9g", name, r, c, got[c], want[r][c]);
    }
}

TEST(golden_blocks_dequantise_bit_for_bit)
{
    for (uint32_t id = 0; id < TN_TYPE_COUNT; id++)
        if (tn_type_get(id)->matmul && id != TN_TYPE_F32 && id != TN_TYPE_F16) check_golden(id);
}

static void dequantize_one(uint32_t type, const void *block, float *out)
{
    const tn_type_info *t = tn_type_get(type);
    tn_weight w = {.type = type, .rows = 1, .cols = t->block, .row_bytes = t->bytes, .data = block};
    tn_kernels k = {0};
    tn_kernels_scalar(&k);
    k.dequantize[TN_LAYOUT_ROWS][type](&w, 0, out);
}

/* Expected values by the formulas of blocks.h, element by element, with its own bit picking. */
static const uint16_t scales[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc01, 0x2e66, 0x7bff};
#define FOR_SCALES(d)                                                                              \
    for (size_t s_ = 0, d = 0; s_ < sizeof scales / sizeof *scales && (d = scales[s_], 1); s_++)
#define CHECK_VALUE(got, want)                                                                     \
    CHECK_MSG(tn_f32_bits(got) == tn_f32_bits(want), "element %d: %.9g, want %.9g", i, got, want)

static void random_bytes(void *p, size_t n, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++) ((uint8_t *)p)[i] = (uint8_t)test_rand(seed);
}

TEST(small_blocks_by_hand)
{
    uint64_t seed = 1;
    float got[32];
    FOR_SCALES(d)
    {
        tn_block_q4_0 a;
        tn_block_q5_1 b;
        tn_block_q8_0 c;
        random_bytes(&a, sizeof a, &seed);
        random_bytes(&b, sizeof b, &seed);
        random_bytes(&c, sizeof c, &seed);
        a.d = b.d = c.d = (uint16_t)d;
        b.m = (uint16_t)(d ^ 0x8000);
        const float f = tn_f16_to_f32((uint16_t)d);
        dequantize_one(TN_TYPE_Q4_0, &a, got);
        for (int i = 0; i < 32; i++) {
            int q = i < 16 ? a.qs[i] % 16 : a.qs[i - 16] / 16;
            CHECK_VALUE(got[i], f * (float)(q - 8));
        }
        dequantize_one(TN_TYPE_Q5_1, &b, got);
        for (int i = 0; i < 32; i++) {
            int q = i < 16 ? b.qs[i] % 16 : b.qs[i - 16] / 16;
            if (b.qh[i / 8] & (1 << i % 8)) q += 16;
            CHECK_VALUE(got[i], f * (float)q + -f);
        }
        dequantize_one(TN_TYPE_Q8_0, &c, got);
        for (int i = 0; i < 32; i++) CHECK_VALUE(got[i], f * (float)c.qs[i]);
    }
}

TEST(super_blocks_by_hand)
{
    uint64_t seed = 2;
    float got[256];
    FOR_SCALES(d)
    {
        tn_block_q6_k a;
        tn_block_q4_k b;
        random_bytes(&a, sizeof a, &seed);
        random_bytes(&b, sizeof b, &seed);
        a.d = b.d = (uint16_t)d;
        b.dmin = (uint16_t)(d ^ 0x8000);
        const float f = tn_f16_to_f32((uint16_t)d);
        dequantize_one(TN_TYPE_Q6_K, &a, got);
        for (int i = 0; i < 256; i++) {
            const int n = i / 128, l = i % 32, j = i % 128 / 32;
            const int low = a.ql[64 * n + l + (j & 1 ? 32 : 0)], high = a.qh[32 * n + l];
            const int q = (j >= 2 ? low / 16 : low % 16) + 16 * (high >> 2 * j & 3) - 32;
            CHECK_VALUE(got[i], f * (float)a.scales[i / 16] * (float)q);
        }
        dequantize_one(TN_TYPE_Q4_K, &b, got);
        for (int i = 0; i < 256; i++) {
            const int g = i / 32;
            const int byte = b.qs[i / 64 * 32 + i % 32], q = g & 1 ? byte / 16 : byte % 16;
            int scale = b.scales[g % 4] % 64, min = b.scales[4 + g % 4] % 64;
            if (g >= 4) {
                scale = b.scales[4 + g] % 16 + b.scales[g - 4] / 64 * 16;
                min = b.scales[4 + g] / 16 + b.scales[g] / 64 * 16;
            }
            const float part = f * (float)scale * (float)q;
            CHECK_VALUE(got[i], part - -f * (float)min);
        }
    }
}

TEST(unquantised_values)
{
    static const struct {
        uint16_t bits;
        float f16, bf16;
    } known[] = {{0x0000, 0, 0},
                 {0x3c00, 1, 0x1p-7f},
                 {0xc000, -2, -2},
                 {0x0001, 0x1p-24f, 0x1p-133f},
                 {0x7bff, 65504, 0x1.fep120f}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        float got;
        dequantize_one(TN_TYPE_F16, &known[i].bits, &got);
        CHECK(got == known[i].f16);
        dequantize_one(TN_TYPE_BF16, &known[i].bits, &got);
        CHECK(got == known[i].bf16);
        dequantize_one(TN_TYPE_F32, &known[i].bf16, &got);
        CHECK(got == known[i].bf16);
    }
}

TEST_MAIN
