/* Matrix products of every type, layout and level: scalar against double precision, the rest
 * against scalar; odd shapes, extreme values, row ranges, canaries and unreadable pages behind
 * every operand. `test_matmul --bench [MiB of weights]` times the same kernels instead. */
#include "kernel_cases.h"

#include "../engine/exec_host.h"

#include <time.h>

/* Largest error accepted, relative to the sum of magnitudes of a row's terms. */
static const double TOLERANCE = 1e-6;
static const float CANARY = 4711.25f;
enum { PAD = 5, MAX_N = 17, MANY = 150 };

/* ---- levels ---------------------------------------------------------------------------------- */

typedef struct level {
    const char *name;
    unsigned isa;
} level;
static const level levels[] = {
    {"scalar", TN_ISA_SCALAR},
    {"avx2", TN_ISA_AVX2},
    {"avxvnni", TN_ISA_AVX2 | TN_ISA_AVXVNNI},
    {"avx512", TN_ISA_AVX2 | TN_ISA_AVX512},
    {"vnni512", TN_ISA_AVX2 | TN_ISA_AVX512 | TN_ISA_VNNI512},
};
enum { N_LEVELS = sizeof levels / sizeof *levels };

static bool have_level(int i)
{
    return (levels[i].isa & ~tn_isa_detect()) == 0;
}

static const char *const layout_names[TN_LAYOUT_COUNT] = {"rows", "r8",
                                                          "r16"}; /* r8: in slabs too */

static void *scratch(void)
{
    static guarded mem;
    if (!mem.map) mem = guarded_new(TN_SCRATCH_BYTES, 64);
    memset(mem.data, 0xff, TN_SCRATCH_BYTES); /* what is read before it is written is NaN */
    return mem.data;
}

/* ---- one case -------------------------------------------------------------------------------- */

typedef struct test_case {
    tn_weight w;   /* row-major */
    tn_acts x;     /* MAX_N vectors or fewer */
    float *want;   /* [n][rows], by scalar */
    double *sizes; /* [n][rows]: sums of the terms' magnitudes; scale * q and offset count each,
                    * because the two cancel in the weight but not in the rounding */
    double *rounding; /* [n][rows]: what rounding a block's sums may add, see tn_matmul_fn */
    char text[120];
} test_case;

/* No more than the largest weight that a block can hold. `part` is of weights without offsets. */
static double largest_weight(uint32_t type, const void *block, const float *row, const float *part)
{
    double most = 0;
    uint16_t d;
    for (int i = 0; i < TN_QK; i++)
        most = fmax(most, fabs(part[i]) + fabs((double)row[i] - part[i]));
    if (type != TN_TYPE_Q8_0) return most;
    memcpy(&d, block, sizeof d); /* its quants may all be small in these tests */
    return 127 * fabs((double)tn_f16_to_f32(d));
}

/* A block's sum may be off by the step of its second half times a 64th of its largest weight, and
 * where the first half's step is seven times that, by half a seventh of it for each of the second
 * half's weights. */
static double block_rounding(const tn_q8 *x, const float *row, double most)
{
    double second = 0;
    for (int i = TN_QK / 2; i < TN_QK; i++)
        second += fabs((double)row[i]);
    const bool small = 7 * x->m[1] < x->m[0];
    const double step = (double)x->d * (small ? x->m[0] / 7.0 : x->m[1]);
    return step * (most / 64 + (small ? second / 2 : 0));
}

static double row_rounding(const test_case *c, int64_t t, int64_t r, const float *row,
                           const float *part)
{
    const int64_t blocks = c->w.cols / TN_QK, bytes = (int64_t)c->w.row_bytes;
    const char *w = (const char *)c->w.data + r * bytes;
    double sum = 0;
    for (int64_t b = 0; c->x.q && b < blocks; b++) {
        const double most = largest_weight(c->w.type, w + bytes / blocks * b, row + b * TN_QK,
                                           part + b * TN_QK);
        sum += block_rounding(c->x.q + t * blocks + b, row + b * TN_QK, most);
    }
    return sum;
}

/* Scalar against float64: dequantised weights times dequantised activations. */
static void make_expected(test_case *c)
{
    static tn_kernels k;
    tn_kernels_init(&k, TN_ISA_SCALAR);
    const int64_t rows = c->w.rows, cols = c->w.cols;
    guarded mem;
    const tn_weight scaled = without_offsets(&mem, &c->w);
    float *row = calloc((size_t)cols, sizeof *row), *part = calloc((size_t)cols, sizeof *part);
    c->want = calloc((size_t)(c->x.n * rows), sizeof *c->want);
    c->sizes = calloc((size_t)(c->x.n * rows), sizeof *c->sizes);
    c->rounding = calloc((size_t)(c->x.n * rows), sizeof *c->rounding);
    k.matmul[TN_LAYOUT_ROWS][c->w.type](&c->w, &c->x, c->want, rows, 0, rows, scratch());
    for (int64_t r = 0; r < rows; r++) {
        k.dequantize[TN_LAYOUT_ROWS][c->w.type](&c->w, r, row);
        k.dequantize[TN_LAYOUT_ROWS][c->w.type](&scaled, r, part);
        for (int64_t t = 0; t < c->x.n; t++) {
            double sum = 0, size = 0;
            for (int64_t i = 0; i < cols; i++) {
                const double v = act_value(&c->x, c->w.type, t, i);
                sum += row[i] * v;
                size += (fabs(part[i]) + fabs((double)row[i] - part[i])) * fabs(v);
            }
            c->sizes[t * rows + r] = size;
            c->rounding[t * rows + r] = row_rounding(c, t, r, row, part);
            const double got = c->want[t * rows + r];
            CHECK_MSG(fabs(got - sum) <= TOLERANCE * size,
                      "%s, scalar, token %d, row %d: %.9g, want %.9g", c->text, (int)t, (int)r, got,
                      sum);
        }
    }
    free(row);
    free(part);
    guarded_free(&mem);
}

/* y with a canary on every side of every value that may be written. */
static float *new_output(int64_t n, int64_t stride)
{
    const int64_t total = n * stride + PAD;
    float *y = calloc((size_t)total, sizeof *y);
    for (int64_t i = 0; i < total; i++) y[i] = CANARY;
    return y;
}

/* Whether a kernel may round a block's sums: some of many tokens do. */
static bool may_round(const test_case *c, const char *how, int64_t n)
{
    const uint32_t type = c->w.type;
    return n > 1 && strstr(how, "vnni512") && type != TN_TYPE_Q2_K && type != TN_TYPE_Q3_K &&
           type != TN_TYPE_Q6_K;
}

static void check_output(const test_case *c, const char *how, const float *y, int64_t stride,
                         int64_t n, int64_t row0, int64_t row1)
{
    const bool rounds = may_round(c, how, n);
    for (int64_t i = 0; i < PAD; i++)
        CHECK_MSG(y[i] == CANARY, "%s, %s: wrote before y", c->text, how);
    for (int64_t i = 0; i < n * stride; i++) {
        const int64_t t = i / stride, r = i % stride;
        const double got = y[PAD + i];
        if (r < row0 || r >= row1) {
            CHECK_MSG(got == CANARY, "%s, %s: wrote token %d, row %d outside the range", c->text,
                      how, (int)t, (int)r);
            continue;
        }
        const double want = c->want[t * c->w.rows + r], size = c->sizes[t * c->w.rows + r];
        const double bound = TOLERANCE * size + (rounds ? c->rounding[t * c->w.rows + r] : 0);
        CHECK_MSG(fabs(got - want) <= bound,
                  "%s, %s, n %d, token %d, row %d: %.9g, want %.9g up to %.3g", c->text, how,
                  (int)n, (int)t, (int)r, got, want, bound);
    }
}

/* In four parts, the last first. */
static void pack_in_parts(tn_pack_fn pack, void *out, const tn_acts *x)
{
    const int64_t blocks = x->cols / 32;
    memset(out, 0xff, (size_t)(x->n * blocks * TN_PACKED_BYTES));
    tn_packing p = {.out = out, .n = x->n, .blocks = blocks, .q_stride = blocks};
    for (int i = 3; i >= 0; i--) {
        p.t0 = i / 2 ? x->n / 2 : 0;
        p.t1 = i / 2 ? x->n : x->n / 2;
        p.b0 = i % 2 ? blocks / 3 : 0;
        p.b1 = i % 2 ? blocks : blocks / 3;
        p.q = x->q + p.t0 * blocks + p.b0;
        pack(&p);
    }
}

/* Activations packed for any type must give the bits `want` of those that are not packed. */
static void run_packed(const test_case *c, const char *how, const tn_kernels *k, const tn_weight *w,
                       tn_acts x, const float *want)
{
    const int64_t stride = w->rows + PAD;
    guarded mem = guarded_new((size_t)(x.n * (x.cols / 32) * TN_PACKED_BYTES), 64);
    x.packed = mem.data;
    x.packed_layout = w->layout;
    for (x.packed_type = 0; x.packed_type < TN_TYPE_COUNT; x.packed_type++) {
        if (!k->pack[w->layout][x.packed_type]) continue;
        if (x.packed_type != w->type && w->rows != 33 && x.n != MANY) continue; /* enough of them */
        pack_in_parts(k->pack[w->layout][x.packed_type], mem.data, &x);
        float *y = new_output(x.n, stride);
        k->matmul[w->layout][w->type](w, &x, y + PAD, stride, 0, w->rows, scratch());
        CHECK_MSG(memcmp(want, y, (size_t)(x.n * stride + PAD) * sizeof *y) == 0,
                  "%s, %s, n %d: packed for %s changes bits", c->text, how, (int)x.n,
                  tn_type_get(x.packed_type)->name);
        free(y);
    }
    guarded_free(&mem);
}

/* AVX2 products of a token have the bits `many`, whatever the number of tokens. */
static void check_alone(const test_case *c, const tn_weight *w, tn_matmul_fn f, tn_acts x,
                        const float *many)
{
    const int64_t stride = w->rows + PAD;
    float *alone = new_output(1, stride);
    x.n = 1;
    f(w, &x, alone + PAD, stride, 0, w->rows, scratch());
    CHECK_MSG(memcmp(alone + PAD, many + PAD, (size_t)w->rows * sizeof *many) == 0,
              "%s: more tokens change bits", c->text);
    free(alone);
}

/* All n, the whole matrix; then in two ranges, which must give the same bits. */
static void run_case(const test_case *c, const char *how, const tn_kernels *k, const tn_weight *w)
{
    static const int64_t counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 17, MANY};
    const tn_matmul_fn f = k->matmul[w->layout][w->type];
    const int64_t stride = w->rows + PAD;
    const int64_t part = tn_layout_rows(w->layout),
                  cut = w->rows / 2 / (part < 8 ? 8 : part) * (part < 8 ? 8 : part);
    for (size_t i = 0; i < sizeof counts / sizeof *counts && counts[i] <= c->x.n; i++) {
        tn_acts x = c->x;
        x.n = counts[i];
        if (c->x.n == MANY && x.n != MANY) continue;
        float *whole = new_output(x.n, stride), *split = new_output(x.n, stride);
        f(w, &x, whole + PAD, stride, 0, w->rows, scratch());
        check_output(c, how, whole, stride, x.n, 0, w->rows);
        if (cut) {
            f(w, &x, split + PAD, stride, cut, w->rows, scratch());
            check_output(c, how, split, stride, x.n, cut, w->rows);
            f(w, &x, split + PAD, stride, 0, cut, scratch());
            CHECK_MSG(memcmp(whole, split, (size_t)(x.n * stride + PAD) * sizeof *whole) == 0,
                      "%s, %s, n %d: a split at row %d changes bits", c->text, how, (int)x.n,
                      (int)cut);
        }
        if (x.n > 1 && k->pack[w->layout][w->type]) run_packed(c, how, k, w, x, whole);
        if (strcmp(how, "avx2 r8") == 0) check_alone(c, w, f, x, whole);
        free(whole);
        free(split);
    }
}

/* Rows [row0, row1) of a product into y of all rows. */
static void some_rows(const tn_kernels *k, const tn_weight *w, const tn_acts *x, float *y,
                      int64_t stride, int64_t row0, int64_t row1)
{
    k->matmul[w->layout][w->type](w, x, y + PAD, stride, row0, row1, scratch());
}

/* The columns from `col0` on of a matrix and of its vectors. */
static float *last_columns(const tn_kernels *k, const tn_weight *w, tn_acts x, int64_t col0)
{
    const int64_t blocks = (x.cols - col0) / 32, stride = w->rows + PAD;
    const tn_weight part = tn_host_cols(w, col0);
    guarded q = guarded_new((size_t)(x.n * blocks) * sizeof(tn_q8), 1);
    float *y = new_output(x.n, stride);
    for (int64_t t = 0; t < x.n; t++)
        memcpy(q.data + (size_t)(t * blocks) * sizeof(tn_q8), x.q + t * (x.cols / 32) + col0 / 32,
               (size_t)blocks * sizeof(tn_q8));
    x.q = (const tn_q8 *)(const void *)q.data;
    x.cols -= col0;
    some_rows(k, &part, &x, y, stride, 0, w->rows);
    guarded_free(&q);
    return y;
}

/* Slab-major a matrix gives the bits that it gives in one piece: all of it, in ranges and views of
 * rows, with packed vectors, and from any slab on. */
static void run_slabs(const test_case *c, const char *how, const tn_kernels *k, const tn_weight *w,
                      int64_t slab)
{
    guarded mem;
    const tn_weight cut = make_slabs(&mem, w, slab);
    const int64_t stride = w->rows + PAD, half = w->rows / 16 * 8,
                  col0 = (w->cols - 1) / slab * slab;
    const size_t bytes = (size_t)(c->x.n * stride + PAD) * sizeof(float);
    for (int64_t n = c->x.n; n; n = n > 4 ? 4 : n - 1) {
        tn_acts x = c->x;
        x.n = n;
        float *want = new_output(c->x.n, stride), *got = new_output(c->x.n, stride);
        const tn_weight rest = tn_host_part(&cut, half, w->rows);
        some_rows(k, w, &x, want, stride, 0, w->rows);
        some_rows(k, &cut, &x, got, stride, 0, half);
        some_rows(k, &rest, &x, got + half, stride, 0, rest.rows);
        CHECK_MSG(memcmp(want, got, bytes) == 0, "%s, %s, n %d: slabs of %d change bits", c->text,
                  how, (int)n, (int)slab);
        if (n > 1 && k->pack[w->layout][w->type]) run_packed(c, how, k, &cut, x, want);
        free(want);
        free(got);
    }
    float *want = last_columns(k, w, c->x, col0), *got = last_columns(k, &cut, c->x, col0);
    CHECK_MSG(memcmp(want, got, bytes) == 0, "%s, %s: columns from %d on, slabs of %d", c->text,
              how, (int)col0, (int)slab);
    free(want);
    free(got);
    guarded_free(&mem);
}

/* Every level and layout that has a kernel for the case. */
static void run_all(const test_case *c)
{
    for (int l = 0; l < N_LEVELS; l++) {
        if (!have_level(l)) continue;
        tn_kernels k;
        tn_kernels_init(&k, levels[l].isa);
        for (int layout = 0; layout < TN_LAYOUT_COUNT; layout++) {
            tn_matmul_fn f = k.matmul[layout][c->w.type];
            char how[40];
            guarded mem = {0};
            if (!f || (l == 0 && (layout == TN_LAYOUT_ROWS || c->x.n == MANY))) continue;
            snprintf(how, sizeof how, "%s %s", levels[l].name, layout_names[layout]);
            tn_weight w = layout ? make_packed(&mem, &k, (tn_layout)layout, &c->w) : c->w;
            run_case(c, how, &k, &w);
            const int64_t slab = least_slab(w.type) * (1 + 2 * ((w.rows + w.cols / 32) % 5));
            if (layout == TN_LAYOUT_R8 && slab < w.cols) run_slabs(c, how, &k, &w, slab);
            if (mem.map) guarded_free(&mem);
        }
    }
}

static void test_shape(uint32_t type, int64_t rows, int64_t cols, int64_t n, weight_fill fill,
                       act_fill act, uint64_t *seed)
{
    guarded mem;
    const size_t before_end = test_rand(seed) % 2;
    test_case c = {.w = make_weight(&mem, type, rows, cols, fill, before_end, seed)};
    test_acts a = make_acts(n, cols, act, seed);
    c.x = a.x;
    snprintf(c.text, sizeof c.text, "%s %dx%d, weights %d, activations %d", tn_type_get(type)->name,
             (int)rows, (int)cols, fill, act);
    make_expected(&c);
    run_all(&c);
    free(c.want);
    free(c.sizes);
    free(c.rounding);
    free_acts(&a);
    guarded_free(&mem);
}

/* ---- the cases ------------------------------------------------------------------------------- */

#define FOR_MATMUL_TYPES(type)                                                                     \
    for (uint32_t type = 0; type < TN_TYPE_COUNT; type++)                                          \
        if (tn_type_get(type)->matmul)

/* The smallest width is one block, and 8 and 24 elements where the type allows them. */
static bool width_fits(uint32_t type, int64_t cols)
{
    return cols % tn_type_get(type)->block == 0;
}

TEST(odd_shapes)
{
    static const int64_t rows[] = {1, 7, 8, 9, 31, 33, 100};
    static const int64_t cols[] = {1, 9, 32, 96, 256, 288, 512, 1120, 1280};
    uint64_t seed = 3;
    FOR_MATMUL_TYPES(type)
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t c = 0; c < sizeof cols / sizeof *cols; c++)
            if (width_fits(type, cols[c]))
                test_shape(type, rows[r], cols[c], rows[r] > 40 && cols[c] > 512 ? 5 : MAX_N,
                           FILL_RANDOM, ACT_RANDOM, &seed);
}

TEST(extreme_values)
{
    uint64_t seed = 4;
    FOR_MATMUL_TYPES(type)
    for (int fill = 0; fill < FILL_COUNT; fill++)
        for (int act = 0; act < ACT_COUNT; act++) {
            test_shape(type, 17, 256, 9, (weight_fill)fill, (act_fill)act, &seed);
            if (width_fits(type, 32))
                test_shape(type, 9, 160, 5, (weight_fill)fill, (act_fill)act, &seed);
        }
    FOR_MATMUL_TYPES(type)
    {
        /* The K types' products of few tokens are 2^24 times too large within a unit. */
        if (width_fits(type, 32)) test_shape(type, 17, 256, 9, FILL_RANDOM, ACT_LARGE, &seed);
        test_shape(type, 17, 256, 9, FILL_RANDOM, ACT_SMALL, &seed);
    }
}

/* Wider than one panel of columns that kernels cut rows into, and more tokens
 * than scratch holds. */
TEST(wide_rows)
{
    uint64_t seed = 5;
    FOR_MATMUL_TYPES(type)
    {
        test_shape(type, 9, 65536 + 256, 9, FILL_RANDOM, ACT_RANDOM, &seed);
        if (width_fits(type, 32))
            test_shape(type, 8, 65536 + 96, 3, FILL_RANDOM, ACT_RANDOM, &seed);
    }
}

/* More rows and tokens than one block of either. */
TEST(many_rows_and_tokens)
{
    uint64_t seed = 6;
    FOR_MATMUL_TYPES(type) test_shape(type, 200, 256, MAX_N, FILL_RANDOM, ACT_RANDOM, &seed);
}

/* More tokens than one tile or one chunk has, more columns than a piece. */
TEST(many_tokens)
{
    uint64_t seed = 8;
    FOR_MATMUL_TYPES(type)
    {
        test_shape(type, 3, 2560, MANY, FILL_RANDOM, ACT_RANDOM, &seed);
        test_shape(type, 17, 256, MANY, FILL_ONES, ACT_EXTREME, &seed);
        test_shape(type, 25, 256, MANY, FILL_ONES, ACT_MAX, &seed);
    }
}

/* A vector with NaN (a block with d = NaN) gives NaN in every row, and only for that token. */
TEST(nan_stays_nan)
{
    enum { ROWS = 9, COLS = 512, N = 6, BAD = 4 };
    uint64_t seed = 7;
    FOR_MATMUL_TYPES(type)
    for (int l = 0; l < N_LEVELS; l++) {
        if (!have_level(l)) continue;
        guarded mem, mem8 = {0};
        tn_kernels k;
        tn_kernels_init(&k, levels[l].isa);
        test_acts a = make_acts(N, COLS, ACT_RANDOM, &seed);
        ((float *)a.f.data)[BAD * a.x.f_stride + 300] = NAN;
        ((tn_q8 *)a.q.data)[BAD * (COLS / 32) + 9] =
            (tn_q8){.d = NAN, .m = {1, 1}, .s = {NAN, NAN}};
        tn_weight w = make_weight(&mem, type, ROWS, COLS, FILL_RANDOM, 0, &seed);
        for (int layout = 0; layout < TN_LAYOUT_COUNT; layout++) {
            float y[N * ROWS];
            if (!k.matmul[layout][type]) continue;
            tn_weight v = layout ? make_packed(&mem8, &k, (tn_layout)layout, &w) : w;
            k.matmul[layout][type](&v, &a.x, y, ROWS, 0, ROWS, scratch());
            for (int i = 0; i < N * ROWS; i++)
                CHECK_MSG(isnan(y[i]) == (i / ROWS == BAD), "%s %s %s, token %d: %g",
                          tn_type_get(type)->name, levels[l].name, layout_names[layout], i / ROWS,
                          y[i]);
            if (mem8.map) guarded_free(&mem8);
        }
        guarded_free(&mem);
        free_acts(&a);
    }
}

/* At this level every quantised type has a product of its own in this layout,
 * not that of `below`. */
static void check_own(unsigned isa, unsigned below, tn_layout layout)
{
    tn_kernels k, lower;
    if (isa & ~tn_isa_detect()) return;
    tn_kernels_init(&k, isa);
    tn_kernels_init(&lower, below);
    FOR_MATMUL_TYPES(type)
    CHECK_MSG(!is_quantised(type) || k.matmul[layout][type] != lower.matmul[layout][type],
              "%s, %s: level %u has the product of level %u", tn_type_get(type)->name,
              layout_names[layout], isa, below);
}

TEST(levels_have_products_of_their_own)
{
    const unsigned avx512 = TN_ISA_AVX2 | TN_ISA_AVX512 | TN_ISA_VNNI512;
    check_own(TN_ISA_AVX2, TN_ISA_SCALAR, TN_LAYOUT_R8);
    check_own(TN_ISA_AVX2 | TN_ISA_AVXVNNI, TN_ISA_AVX2, TN_LAYOUT_R8);
    check_own(avx512, TN_ISA_AVX2, TN_LAYOUT_R8);
    check_own(avx512, TN_ISA_SCALAR, TN_LAYOUT_R16);
}

/* Levels the CPU lacks are left out, and every level fills the same slots as scalar or more. */
TEST(tables_are_complete)
{
    tn_kernels base, k;
    tn_kernels_init(&base, TN_ISA_SCALAR);
    CHECK_INT(base.isa, TN_ISA_SCALAR);
    tn_kernels_init(&k, ~0u);
    CHECK_INT(k.isa, tn_isa_detect());
    FOR_MATMUL_TYPES(type)
    {
        CHECK(base.matmul[TN_LAYOUT_ROWS][type] && k.matmul[TN_LAYOUT_ROWS][type]);
        for (int layout = TN_LAYOUT_R8; layout < TN_LAYOUT_COUNT; layout++) {
            CHECK(!base.repack[layout][type] == !base.matmul[layout][type]);
            CHECK(!base.repack[layout][type] == !base.dequantize[layout][type]);
            CHECK(!base.repack[layout][type] == !is_quantised(type));
        }
    }
    CHECK(k.attend && k.attend_join && k.rope && k.rms_norm && k.glu && k.quantize && k.add &&
          k.axpy && k.softmax && k.to_f16);
    if (tn_isa_detect() & TN_ISA_AVX2)
        FOR_MATMUL_TYPES(type)
        CHECK(!k.pack[k.packed][type] == !k.repack[k.packed][type]);
    if (tn_isa_detect() & TN_ISA_AVX2)
        FOR_MATMUL_TYPES(type)
    CHECK_MSG(base.matmul[0][type] != k.matmul[0][type], "no AVX2 kernel: %s",
              tn_type_get(type)->name);
}

/* ---- timing ---------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Shortest of several runs over all rows, in row ranges as a thread of the pool gets them. */
static double time_matmul(tn_matmul_fn f, const tn_weight *w, const tn_acts *x, float *y,
                          int64_t range)
{
    void *s = scratch();
    double best = 1e9, end = now() + 0.2;
    do {
        const double start = now();
        for (int64_t r = 0; r < w->rows; r += range)
            f(w, x, y, w->rows, r, r + range < w->rows ? r + range : w->rows, s);
        const double took = now() - start;
        if (took < best) best = took;
    } while (now() < end);
    return best;
}

static void bench_weight(tn_matmul_fn f, const char *level_name, const char *layout, tn_weight w,
                         const tn_acts *x, float *y)
{
    tn_weight part = w;
    part.rows = w.rows < 1024 ? w.rows : 1024;
    printf("%-5s %-5s %-8s GB/s:", tn_type_get(w.type)->name, layout, level_name);
    static const int64_t few[] = {1, 2, 4, 8};
    for (size_t i = 0; i < sizeof few / sizeof *few; i++) {
        tn_acts some = *x;
        some.n = few[i];
        printf("%7.2f (n = %d)", (double)w.row_bytes * (double)w.rows * 1e-9 /
               time_matmul(f, &w, &some, y, 256), (int)few[i]);
    }
    printf("%8.1f GOP/s (n = %d)\n", 2e-9 * (double)part.rows * (double)part.cols * (double)x->n /
           time_matmul(f, &part, x, y, 128), (int)x->n);
    fflush(stdout);
}

static void bench_kernel(const tn_kernels *k, const char *level_name, uint32_t type, int layout,
                         const tn_weight *rows, const tn_acts *x, float *y)
{
    tn_matmul_fn f = k->matmul[layout][type];
    tn_kernels scalar;
    tn_kernels_init(&scalar, TN_ISA_SCALAR);
    if (f == scalar.matmul[layout][type]) return;
    guarded mem = {0}, mem_slabs;
    tn_weight w = layout ? make_packed(&mem, k, (tn_layout)layout, rows) : *rows;
    bench_weight(f, level_name, layout_names[layout], w, x, y);
    if (layout == TN_LAYOUT_R8) {
        bench_weight(f, level_name, "slabs", make_slabs(&mem_slabs, &w, 256), x, y);
        guarded_free(&mem_slabs);
    }
    if (mem.map) guarded_free(&mem);
}

/* Weights of `mib` MiB per type: above the last cache level this measures memory, below it the
 * core. */
static int bench(double mib, const char *only)
{
    enum { COLS = 2048, N = 256 };
    uint64_t seed = 9;
    test_acts a = make_acts(N + 1, COLS, ACT_RANDOM, &seed);
    a.x.n = N; /* aligned as the engine's buffers are */
    a.x.f_stride = COLS;
    a.x.f = (const float *)(((uintptr_t)a.x.f + 63) / 64 * 64);
    FOR_MATMUL_TYPES(type)
    {
        size_t row_bytes;
        guarded mem;
        if (only && strcmp(only, tn_type_get(type)->name) != 0) continue;
        if (!tn_type_row_bytes(type, COLS, &row_bytes)) continue;
        const int64_t rows = (int64_t)(mib * 1048576 / (double)row_bytes) / 16 * 16 + 16;
        tn_weight w = make_weight(&mem, type, rows, COLS, FILL_RANDOM, 0, &seed);
        float *y = calloc((size_t)(N * rows), sizeof *y);
        for (int l = 1; l < N_LEVELS; l++) {
            tn_kernels k;
            tn_kernels_init(&k, levels[l].isa);
            for (int layout = 0; have_level(l) && layout < TN_LAYOUT_COUNT; layout++)
                bench_kernel(&k, levels[l].name, type, layout, &w, &a.x, y);
        }
        free(y);
        guarded_free(&mem);
    }
    free_acts(&a);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench(argc > 2 ? atof(argv[2]) : 8, argc > 3 ? argv[3] : NULL);
    return tn_test_main(argc, argv);
}
