/* The interleaved layouts: they mean the same numbers as the file's rows, and the AVX2 products
 * with R8 agree with the scalar ones. */
#include "kernel_cases.h"

#include "../kernels/repack.h"

#include <time.h>

static const uint32_t types[] = {TN_TYPE_Q4_0, TN_TYPE_Q4_1, TN_TYPE_Q5_0, TN_TYPE_Q5_1,
                                 TN_TYPE_Q8_0, TN_TYPE_Q2_K, TN_TYPE_Q3_K, TN_TYPE_Q4_K,
                                 TN_TYPE_Q5_K, TN_TYPE_Q6_K};
enum { N_TYPES = sizeof types / sizeof types[0] };
#define FOR_LAYOUTS(layout) \
    for (tn_layout layout = TN_LAYOUT_R8; layout < TN_LAYOUT_COUNT; \
         layout = (tn_layout)(layout + 1))

static const char *name_of(uint32_t type)
{
    return tn_type_get(type)->name;
}

static void *read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *p = malloc(1 << 16);
    *bytes = p ? fread(p, 1, 1 << 16, f) : 0;
    fclose(f);
    return p;
}

/* Every row of w in both layouts, bit for bit. */
static void check_rows(const tn_kernels *k, const tn_weight *rows, const tn_weight *packed)
{
    float *a = malloc((size_t)rows->cols * sizeof *a), *b = malloc((size_t)rows->cols * sizeof *b);
    for (int64_t r = 0; r < rows->rows; r++) {
        k->dequantize[TN_LAYOUT_ROWS][rows->type](rows, r, a);
        k->dequantize[packed->layout][rows->type](packed, r, b);
        CHECK_MSG(memcmp(a, b, (size_t)rows->cols * sizeof *a) == 0,
                  "%s, layout %d: row %lld of %lld differs", name_of(rows->type), packed->layout,
                  (long long)r, (long long)rows->rows);
    }
    free(a);
    free(b);
}

TEST(same_values_as_rows)
{
    tn_kernels k;
    tn_kernels_init(&k, TN_ISA_SCALAR);
    uint64_t seed = 1;
    for (int i = 0; i < N_TYPES; i++)
        for (int64_t n = 1; n <= 17; n++)
            for (int64_t cols = 256; cols <= 768; cols += 512) {
                guarded m, m8;
                tn_weight w = make_weight(&m, types[i], n, cols, FILL_RANDOM, 0, &seed);
                FOR_LAYOUTS(layout)
                {
                    tn_weight packed = make_packed(&m8, &k, layout, &w);
                    check_rows(&k, &w, &packed);
                    guarded_free(&m8);
                }
                guarded_free(&m);
            }
}

/* Slab-major: all values where they belong, and every slab is the R8 matrix of its columns, one
 * behind the other. */
static void check_slabs(const tn_kernels *k, const tn_weight *rows, int64_t slab)
{
    const tn_type_info *t = tn_type_get(rows->type);
    const int64_t padded = (rows->rows + 7) / 8 * 8;
    guarded m8, m, m1, ms;
    const tn_weight r8 = make_packed(&m8, k, TN_LAYOUT_R8, rows), cut = make_slabs(&m, &r8, slab);
    const uint8_t *at = cut.data;
    check_rows(k, rows, &cut);
    for (int64_t c = 0; c < rows->cols; c += slab) {
        tn_weight part = *rows;
        part.cols = rows->cols - c < slab ? rows->cols - c : slab;
        part.row_bytes = (size_t)(part.cols / t->block) * t->bytes;
        const size_t bytes = (size_t)padded * part.row_bytes;
        m1 = guarded_new((size_t)rows->rows * part.row_bytes, 1);
        for (int64_t r = 0; r < rows->rows; r++)
            memcpy(m1.data + (size_t)r * part.row_bytes,
                   (const uint8_t *)rows->data + (size_t)r * rows->row_bytes +
                       (size_t)(c / t->block) * t->bytes,
                   part.row_bytes);
        part.data = m1.data;
        const tn_weight want = make_packed(&ms, k, TN_LAYOUT_R8, &part);
        CHECK_MSG(memcmp(at, want.data, bytes) == 0, "%s, %lld rows: slab of %lld at column %lld",
                  name_of(rows->type), (long long)rows->rows, (long long)slab, (long long)c);
        at += bytes;
        guarded_free(&m1);
        guarded_free(&ms);
    }
    guarded_free(&m);
    guarded_free(&m8);
}

TEST(slabs_lie_one_behind_the_other)
{
    tn_kernels k;
    tn_kernels_init(&k, TN_ISA_SCALAR);
    uint64_t seed = 12;
    for (int i = 0; i < N_TYPES; i++)
        for (int64_t n = 1; n <= 25; n += 6)
            for (int64_t slab = 1; slab <= 3; slab++) {
                guarded m;
                const int64_t least = least_slab(types[i]);
                tn_weight w = make_weight(&m, types[i], n, 5 * least, FILL_RANDOM, 0, &seed);
                check_slabs(&k, &w, slab * least);
                guarded_free(&m);
            }
}

TEST(golden_blocks)
{
    tn_kernels k;
    tn_kernels_init(&k, TN_ISA_SCALAR);
    for (int i = 0; i < N_TYPES; i++) {
        char path[64];
        size_t bytes = 0, want_bytes = 0;
        snprintf(path, sizeof path, "tests/data/quant/%s.blocks.bin", name_of(types[i]));
        uint8_t *blocks = read_file(path, &bytes);
        snprintf(path, sizeof path, "tests/data/quant/%s.dequant.f32", name_of(types[i]));
        float *want = read_file(path, &want_bytes), got[256];
        REQUIRE(blocks && want);
        tn_weight w = {.type = types[i], .layout = TN_LAYOUT_ROWS, .rows = 8, .cols = 256};
        w.row_bytes = bytes / 8;
        w.data = blocks;
        CHECK_INT(want_bytes, 8 * sizeof got);
        FOR_LAYOUTS(layout)
        {
            guarded mem;
            tn_weight packed = make_packed(&mem, &k, layout, &w);
            for (int r = 0; r < 8; r++) {
                k.dequantize[layout][types[i]](&packed, r, got);
                CHECK_MSG(memcmp(got, want + 256 * r, sizeof got) == 0, "%s: row %d differs",
                          name_of(types[i]), r);
            }
            guarded_free(&mem);
        }
        free(blocks);
        free(want);
    }
}

/* A group of fewer rows is written in full, with zeros for the missing ones: so it equals the group
 * of which the others are zero in the file. */
static void check_padding(const tn_kernels *k, tn_layout layout, uint32_t type, int n,
                          uint64_t *seed)
{
    const int rows = tn_layout_rows(layout);
    guarded m;
    tn_weight w = make_weight(&m, type, rows, 512, FILL_RANDOM, 0, seed);
    const size_t bytes = (size_t)rows * w.row_bytes;
    uint8_t *part = malloc(bytes + 1), *full = malloc(bytes);
    memset(part, 0xa5, bytes + 1);
    k->repack[layout][type](part, m.data, n, 512);
    memset(m.data + (size_t)n * w.row_bytes, 0, (size_t)(rows - n) * w.row_bytes);
    k->repack[layout][type](full, m.data, rows, 512);
    CHECK_MSG(memcmp(part, full, bytes) == 0, "%s: group of %d rows out of %d", name_of(type), n,
              rows);
    CHECK_INT(part[bytes], 0xa5);
    free(part);
    free(full);
    guarded_free(&m);
}

TEST(padding_is_zero)
{
    tn_kernels k;
    tn_kernels_init(&k, TN_ISA_SCALAR);
    uint64_t seed = 2;
    for (int i = 0; i < N_TYPES; i++)
        FOR_LAYOUTS(layout)
    for (int n = 1; n < tn_layout_rows(layout); n++)
        check_padding(&k, layout, types[i], n, &seed);
}

/* Both kernels, or false where this CPU has no AVX2. */
static bool levels(tn_kernels *fast, tn_kernels *slow)
{
    tn_kernels_init(fast, TN_ISA_AVX2);
    tn_kernels_init(slow, TN_ISA_SCALAR);
    return fast->isa & TN_ISA_AVX2;
}

TEST(avx2_same_bytes)
{
    tn_kernels fast, slow;
    if (!levels(&fast, &slow)) SKIP("no AVX2");
    uint64_t seed = 8;
    for (int i = 0; i < N_TYPES; i++)
        for (int64_t rows = 7; rows <= 33; rows += rows == 17 ? 14 : 1) {
            guarded m, a, b;
            tn_weight w = make_weight(&m, types[i], rows, 768, FILL_RANDOM, 0, &seed);
            FOR_LAYOUTS(layout)
            {
                const int64_t n = tn_layout_rows(layout), padded = (rows + n - 1) / n * n;
                make_packed(&a, &fast, layout, &w);
                make_packed(&b, &slow, layout, &w);
                CHECK_MSG(memcmp(a.data, b.data, (size_t)padded * w.row_bytes) == 0,
                          "%s, layout %d: %lld rows", name_of(types[i]), layout, (long long)rows);
                guarded_free(&a);
                guarded_free(&b);
            }
            guarded_free(&m);
        }
}

/* ---- products -------------------------------------------------------------------------------- */

/* Sum of the magnitudes of what a kernel adds for one output: scale part and minimum part. */
static double magnitude(const tn_weight *w8, const tn_q8 *a, int64_t row)
{
    double sum = 0;
    const uint8_t *group = (const uint8_t *)w8->data + (size_t)(row / 8) * 8 * w8->row_bytes;
    const int offset = w8->type == TN_TYPE_Q4_0   ? 8
                       : w8->type == TN_TYPE_Q5_0 ? 16
                       : w8->type == TN_TYPE_Q3_K ? 4
                       : w8->type == TN_TYPE_Q6_K ? 32
                                                  : 0;
    for (int64_t b = 0; b < w8->cols / 32; b++) {
        tn_group_step s;
        tn_group_read(w8->type, 8, group, b, (int)(row % 8), &s);
        for (int c = 0; c < 32; c++) {
            double x = fabs((double)a[b].d * a[b].m[c / 16] * a[b].q[c]);
            sum += x * (fabs((double)s.d[c / 16]) * (abs(s.q[c]) + offset) + fabs(s.m[c / 16]));
        }
    }
    return sum;
}

static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

typedef struct product {
    tn_weight w;
    tn_acts x;
    int64_t row0, row1, stride;
} product;

enum { CANARY = 5 };

/* Results as [n][stride] with CANARY untouched floats at both ends, which are checked. */
static float *multiply(const product *p, tn_matmul_fn f, void *scratch)
{
    const int64_t n = p->x.n * p->stride;
    float *y = malloc((size_t)(n + 2 * CANARY) * sizeof *y);
    for (int64_t i = 0; i < n + 2 * CANARY; i++)
        y[i] = 1.25f;
    f(&p->w, &p->x, y + CANARY, p->stride, p->row0, p->row1, scratch);
    for (int64_t i = 0; i < n + 2 * CANARY; i++) {
        int64_t r = (i - CANARY + p->stride) % p->stride;
        bool inside = i >= CANARY && i < n + CANARY && r >= p->row0 && r < p->row1;
        if (!inside)
            CHECK_MSG(same(y[i], 1.25f), "%s: wrote outside its rows at %lld", name_of(p->w.type),
                      (long long)(i - CANARY));
    }
    return y;
}

/* The AVX2 product against the scalar one, and against itself one token at a time. */
static void check_product(const tn_kernels *fast, const tn_kernels *slow, const product *p,
                          void *scratch)
{
    const uint32_t type = p->w.type;
    float *want = multiply(p, slow->matmul[TN_LAYOUT_R8][type], scratch);
    float *got = multiply(p, fast->matmul[TN_LAYOUT_R8][type], scratch);
    for (int64_t t = 0; t < p->x.n; t++) {
        product one = *p;
        one.x.n = 1;
        one.x.q += t * (p->w.cols / 32);
        float *single = multiply(&one, fast->matmul[TN_LAYOUT_R8][type], scratch);
        for (int64_t r = p->row0; r < p->row1; r++) {
            double g = got[CANARY + t * p->stride + r], w = want[CANARY + t * p->stride + r];
            double limit = 2e-6 * magnitude(&p->w, one.x.q, r) + 1e-37;
            CHECK_MSG(fabs(g - w) <= limit,
                      "%s n=%lld rows %lld-%lld: y[%lld][%lld] is %.9g, want %.9g +- %.3g",
                      name_of(type), (long long)p->x.n, (long long)p->row0, (long long)p->row1,
                      (long long)t, (long long)r, g, w, limit);
            CHECK_MSG(same(single[CANARY + r], got[CANARY + t * p->stride + r]),
                      "%s: y[%lld][%lld] depends on n", name_of(type), (long long)t, (long long)r);
        }
        free(single);
    }
    free(want);
    free(got);
}

static void check_case(uint32_t type, int64_t rows, int64_t cols, int64_t n, weight_fill wf,
                       act_fill af, uint64_t *seed)
{
    tn_kernels fast, slow;
    levels(&fast, &slow);
    guarded m, m8, scratch = guarded_new(TN_SCRATCH_BYTES, 64);
    tn_weight w = make_weight(&m, type, rows, cols, wf, 0, seed);
    test_acts a = make_acts(n, cols, af, seed);
    product p = {make_packed(&m8, &slow, TN_LAYOUT_R8, &w), a.x, 0, rows, rows + 3};
    check_product(&fast, &slow, &p, scratch.data);
    if (rows > 8) { /* a part of the rows, on group boundaries */
        p.row0 = 8;
        p.row1 = rows > 16 ? 16 : rows;
        check_product(&fast, &slow, &p, scratch.data);
    }
    guarded_free(&m);
    guarded_free(&m8);
    guarded_free(&scratch);
    free_acts(&a);
}

TEST(avx2_ragged_rows)
{
    tn_kernels fast, slow;
    if (!levels(&fast, &slow)) SKIP("no AVX2");
    uint64_t seed = 3;
    for (int i = 0; i < N_TYPES; i++)
        for (int64_t rows = 1; rows <= 17; rows++)
            check_case(types[i], rows, 512, 1 + rows % 3, FILL_RANDOM, ACT_RANDOM, &seed);
}

TEST(avx2_token_counts)
{
    tn_kernels fast, slow;
    if (!levels(&fast, &slow)) SKIP("no AVX2");
    static const int64_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33, 65, 130};
    uint64_t seed = 4;
    for (int i = 0; i < N_TYPES; i++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            check_case(types[i], 40, 256, counts[c], FILL_RANDOM, ACT_RANDOM, &seed);
}

TEST(avx2_column_counts)
{
    tn_kernels fast, slow;
    if (!levels(&fast, &slow)) SKIP("no AVX2");
    static const int64_t counts[] = {32, 64, 96, 576, 1024, 14336};
    uint64_t seed = 5;
    for (int i = 0; i < N_TYPES; i++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            if (counts[c] % tn_type_get(types[i])->block == 0)
                check_case(types[i], 8, counts[c], 24, FILL_RANDOM, ACT_RANDOM, &seed);
}

/* Nothing may overflow in the narrow sums, whatever the bits. */
TEST(avx2_extremes)
{
    tn_kernels fast, slow;
    if (!levels(&fast, &slow)) SKIP("no AVX2");
    uint64_t seed = 6;
    for (int i = 0; i < N_TYPES; i++)
        for (int wf = 0; wf < FILL_COUNT; wf++)
            for (int af = 0; af < ACT_COUNT; af++)
                check_case(types[i], 24, 512, 5, (weight_fill)wf, (act_fill)af, &seed);
}

/* Activations that do not fit into the scratch memory. */
TEST(avx2_endless_row)
{
    tn_kernels fast, slow;
    if (!levels(&fast, &slow)) SKIP("no AVX2");
    uint64_t seed = 7;
    check_case(TN_TYPE_Q4_0, 2, 700160, 2, FILL_RANDOM, ACT_RANDOM, &seed);
}

TEST_MAIN
