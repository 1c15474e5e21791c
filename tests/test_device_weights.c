/* Weights on the device: repack from both layouts, gather, mat-vecs and GEMMs of every type,
 * against the host's scalar kernels. */
#include "device_lib.h"

static const uint32_t types[] = {TN_TYPE_F32,  TN_TYPE_F16,  TN_TYPE_BF16, TN_TYPE_Q4_0,
                                 TN_TYPE_Q4_1, TN_TYPE_Q5_0, TN_TYPE_Q5_1, TN_TYPE_Q8_0,
                                 TN_TYPE_Q2_K, TN_TYPE_Q3_K, TN_TYPE_Q4_K, TN_TYPE_Q5_K,
                                 TN_TYPE_Q6_K};
enum { N_TYPES = sizeof types / sizeof *types };

/* A matrix on both sides. */
typedef struct matrix {
    guarded mem;
    tn_weight w;
    tn_dweight d;
    float *value, *plain; /* [rows][cols] dequantised; the same without minima */
} matrix;

static void dequantise(const tn_weight *w, float *out)
{
    for (int64_t r = 0; r < w->rows; r++)
        host.dequantize[w->layout][w->type](w, r, out + r * w->cols);
}

static matrix make_matrix(uint32_t type, int64_t rows, int64_t cols, weight_fill fill,
                          uint64_t *seed)
{
    matrix m = {0};
    guarded mem;
    m.w = make_weight(&m.mem, type, rows, cols, fill, 0, seed);
    m.value = malloc((size_t)(rows * cols) * sizeof(float));
    m.plain = malloc((size_t)(rows * cols) * sizeof(float));
    dequantise(&m.w, m.value);
    const tn_weight plain = without_offsets(&mem, &m.w);
    dequantise(&plain, m.plain);
    guarded_free(&mem);
    const size_t bytes = tn_dweight_bytes(type, rows, cols);
    if (!bytes) abort();
    m.d = tn_dweight_at(device_new(bytes, NULL), type, rows, cols);
    const void *src = device_new((size_t)rows * m.w.row_bytes, m.w.data);
    CHECK_INT(ops->repack(stream, &m.d, src, m.w.row_bytes), TN_OK);
    return m;
}

static void free_matrix(matrix *m)
{
    guarded_free(&m->mem);
    free(m->value);
    free(m->plain);
}

/* ---- repack and gather ----------------------------------------------------------------------- */

/* Rows come back as the host dequantises them, but for one rounding in value = a * q - b. */
static void check_gather(const matrix *m, const char *what)
{
    const int64_t cols = m->w.cols, stride = padded(cols), rows = m->w.rows;
    const int32_t ids[4] = {(int32_t)rows - 1, 0, (int32_t)rows / 2, (int32_t)rows};
    const int32_t *d_ids = device_new(sizeof ids, ids);
    float *out = device_floats((size_t)(4 * stride), NULL);
    CHECK_INT(ops->gather(stream, &m->d, d_ids, 4, 0.5f, out, stride), TN_OK);
    float *got = device_get(out, (size_t)(4 * stride) * sizeof *got);
    for (int i = 0; i < 3; i++)
        for (int64_t c = 0; c < cols; c++) {
            const float v = m->value[ids[i] * cols + c], p = m->plain[ids[i] * cols + c];
            CHECK_NEAR(got[i * stride + c], 0.5f * v,
                       1.2e-7 * (fabs((double)p) + fabs((double)(v - p))));
            if (tn_failures) {
                FAIL("%s %s: row %d, column %lld", what, tn_type_get(m->w.type)->name, (int)ids[i],
                     (long long)c);
                free(got);
                return;
            }
        }
    for (int64_t c = 0; c < cols; c++)
        CHECK(isnan(got[3 * stride + c]));
    free(got);
}

TEST(repack_and_gather)
{
    NEED_DEVICE;
    uint64_t seed = 1;
    for (int i = 0; i < N_TYPES; i++)
        for (int fill = 0; fill < FILL_COUNT; fill++) {
            const int64_t block = tn_type_get(types[i])->block, cols = block == 1 ? 37 : 3 * block;
            matrix m = make_matrix(types[i], 11, cols, (weight_fill)fill, &seed);
            check_gather(&m, "rows");
            done("repack");
            free_matrix(&m);
        }
}

TEST(repack_from_r8)
{
    NEED_DEVICE;
    uint64_t seed = 2;
    for (int i = 0; i < N_TYPES; i++) {
        const int64_t block = tn_type_get(types[i])->block, cols = 3 * block;
        const tn_device_shape shape = {.cols = cols};
        CHECK_INT(ops->can_do(TN_DOP_REPACK_R8, types[i], shape), block > 1);
        if (block == 1) continue;
        matrix m = make_matrix(types[i], 11, cols, FILL_RANDOM, &seed);
        guarded mem;
        const tn_weight r8 = make_packed(&mem, &host, TN_LAYOUT_R8, &m.w);
        const void *src = device_new(16 * r8.row_bytes, r8.data);
        const size_t bytes = tn_dweight_bytes(types[i], 11, cols);
        m.d = tn_dweight_at(device_new(bytes, NULL), types[i], 11, cols);
        CHECK_INT(ops->repack_r8(stream, &m.d, src, r8.row_bytes), TN_OK);
        check_gather(&m, "r8");
        done("repack_r8");
        guarded_free(&mem);
        free_matrix(&m);
    }
}

TEST(weight_sizes)
{
    for (int i = 0; i < N_TYPES; i++) {
        const tn_type_info *t = tn_type_get(types[i]);
        const size_t file = 4096 / t->block * (size_t)t->bytes * 512;
        CHECK_INT(tn_dweight_bytes(types[i], 512, 4096), file);
        CHECK_INT(tn_dweight_bytes(types[i], 0, 4096), 0);
        CHECK_INT(tn_dweight_bytes(types[i], INT64_MAX / 4, 4096), 0);
        if (t->block > 1) CHECK_INT(tn_dweight_bytes(types[i], 1, 4096 + t->block / 2), 0);
    }
    CHECK_INT(tn_dweight_bytes(TN_TYPE_Q8_K, 1, 256), 0);
    CHECK_INT(tn_dweight_bytes(TN_TYPE_COUNT, 1, 256), 0);
}

/* Whole blocks of types that the format's table knows for weights, and nothing else. */
TEST(matrices_it_can_use)
{
    NEED_DEVICE;
    static const tn_device_op uses[] = {TN_DOP_MATVEC, TN_DOP_GEMM, TN_DOP_GATHER,
                                        TN_DOP_REPACK_R8};
    for (int u = 0; u < 4; u++) {
        for (int i = 0; i < N_TYPES; i++) {
            const int64_t block = tn_type_get(types[i])->block;
            const bool can = uses[u] != TN_DOP_REPACK_R8 || block > 1;
            CHECK_INT(ops->can_do(uses[u], types[i], (tn_device_shape){.cols = 3 * block}), can);
            CHECK(!ops->can_do(uses[u], types[i], (tn_device_shape){.cols = 0}));
            CHECK(!ops->can_do(uses[u], types[i], (tn_device_shape){.cols = -block}));
            if (block > 1)
                CHECK(!ops->can_do(uses[u], types[i], (tn_device_shape){.cols = 3 * block / 2}));
        }
        CHECK(!ops->can_do(uses[u], TN_TYPE_Q8_K, (tn_device_shape){.cols = 256}));
        CHECK(!ops->can_do(uses[u], TN_TYPE_COUNT, (tn_device_shape){.cols = 256}));
    }
}

/* ---- activations ----------------------------------------------------------------------------- */

typedef struct acts {
    tn_dacts d;
    float *f;      /* [n][padded(cols)] */
    double *value; /* [n][cols] as the device's 8-bit form has them */
} acts;

/* n vectors, on the device in both forms where cols allows. */
static acts make_device_acts(int64_t n, int64_t cols, float size, uint64_t *seed)
{
    acts a = {.d = {.n = n, .cols = cols, .f_stride = padded(cols)}};
    a.f = random_rows(n, cols, size, seed);
    a.d.f = device_floats((size_t)(n * a.d.f_stride), a.f);
    a.value = malloc((size_t)(n * cols) * sizeof *a.value);
    if (cols % 32) return a;
    a.d.q = device_new((size_t)(n * cols), NULL);
    a.d.scale = device_new((size_t)(n * cols / 32) * sizeof *a.d.scale, NULL);
    CHECK_INT(ops->quantize(stream, &a.d), TN_OK);
    int8_t *q = device_get(a.d.q, (size_t)(n * cols));
    tn_dscale *s = device_get(a.d.scale, (size_t)(n * cols / 32) * sizeof *s);
    for (int64_t i = 0; i < n * cols; i++)
        a.value[i] = (double)s[i / 32].d[i % 32 / 16] * q[i];
    free(q);
    free(s);
    return a;
}

static void free_device_acts(acts *a)
{
    free(a->f);
    free(a->value);
}

/* What the vector is to weights of a type. */
static double act_of(const acts *a, uint32_t type, int64_t t, int64_t c)
{
    return is_quantised(type) ? a->value[t * a->d.cols + c] : (double)a->f[t * a->d.f_stride + c];
}

/* ---- mat-vec --------------------------------------------------------------------------------- */

/* Relative to the sum of magnitudes: sums of up to about a hundred floats in a row, then a tree. */
static const double MATVEC_TOLERANCE = 2e-6;

/* The product in double precision, and the sum of magnitudes that its error is measured by. */
static double product(const matrix *m, const acts *x, int64_t r, int64_t t, double *magnitude)
{
    double sum = 0;
    *magnitude = 1e-30;
    for (int64_t c = 0; c < m->w.cols; c++) {
        const double w = m->value[r * m->w.cols + c], p = m->plain[r * m->w.cols + c];
        const double v = act_of(x, m->w.type, t, c);
        sum += w * v;
        *magnitude += (fabs(p) + fabs(w - p)) * fabs(v);
    }
    return sum;
}

static double activation(double x, tn_activation act)
{
    if (act == TN_ACT_SILU) return x / (1 + exp(-x));
    return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

typedef struct matvec_case {
    uint32_t type;
    int64_t rows, cols, n;
    bool glu, bias, add;
    tn_activation act;
    float size; /* of activations */
    weight_fill fill;
} matvec_case;

static void check_matvec(const matvec_case *k, uint64_t *seed)
{
    const int64_t stride = k->rows + 3;
    matrix w = make_matrix(k->type, k->rows, k->cols, k->fill, seed), up = {0};
    if (k->glu) up = make_matrix(k->type, k->rows, k->cols, k->fill, seed);
    acts x = make_device_acts(k->n, k->cols, k->size, seed);
    float *bias = random_floats((size_t)k->rows, 1, seed);
    float *before = random_floats((size_t)(k->n * stride), 1, seed);
    tn_dmatvec a = {.w = w.d, .x = x.d, .y_stride = stride, .add = k->add, .act = k->act};
    if (k->glu) a.up = up.d;
    a.y = device_floats((size_t)(k->n * stride), before);
    if (k->bias) a.bias = device_floats((size_t)k->rows, bias);
    if (k->bias && k->glu) a.up_bias = a.bias;
    CHECK_INT(ops->matvec(stream, &a), TN_OK);
    float *got = device_get(a.y, (size_t)(k->n * stride) * sizeof *got);
    for (int64_t t = 0; t < k->n; t++) {
        for (int64_t r = 0; r < stride && tn_failures < 5; r++) {
            const int64_t at = t * stride + r;
            if (r >= k->rows) {
                CHECK_MSG(got[at] == before[at], "%s: written between rows",
                          tn_type_get(k->type)->name);
                continue;
            }
            double mag, up_mag, want = product(&w, &x, r, t, &mag), tol;
            if (k->bias) want += bias[r];
            tol = MATVEC_TOLERANCE * (mag + (k->bias ? 2 : 0));
            if (k->glu) {
                const double u = product(&up, &x, r, t, &up_mag) + (k->bias ? bias[r] : 0);
                const double g = activation(want, k->act); /* slopes are below 1.2 */
                tol = 1.2 * tol * fabs(u) + MATVEC_TOLERANCE * (up_mag + 2) * fabs(g) +
                      1e-6 * fabs(g * u) + 1e-6 * fabs(u);
                want = g * u;
            }
            if (k->add) want += before[at], tol += 1e-6;
            CHECK_MSG(fabs(got[at] - want) <= tol,
                      "%s %lldx%lld n %lld%s%s%s: y[%lld][%lld] is %.9g, want %.9g within %.3g",
                      tn_type_get(k->type)->name, (long long)k->rows, (long long)k->cols,
                      (long long)k->n, k->glu ? " glu" : "", k->bias ? " bias" : "",
                      k->add ? " add" : "", (long long)t, (long long)r, (double)got[at], want, tol);
        }
    }
    free(got);
    free(bias);
    free(before);
    free_device_acts(&x);
    done("matvec");
    free_matrix(&w);
    if (k->glu) free_matrix(&up);
}

/* Columns of odd sizes for a type: one word, a few, more than one step of a warp or of four. */
static int64_t odd_cols(uint32_t type, int i)
{
    const int64_t block = tn_type_get(type)->block;
    static const int64_t small[4] = {1, 3, 33, 70}, super[4] = {1, 3, 5, 9},
                         plain[4] = {8, 37, 1030, 2300};
    return block == 1 ? plain[i] : block == 32 ? 32 * small[i] : 256 * super[i];
}

TEST(matvec_shapes)
{
    NEED_DEVICE;
    uint64_t seed = 3;
    static const int64_t ns[] = {1, 2, 3, 5, 8}, rows[] = {1, 7, 2, 9};
    for (int i = 0; i < N_TYPES; i++)
        for (int c = 0; c < 4; c++)
            for (int n = 0; n < 5; n++)
                check_matvec(&(matvec_case){.type = types[i],
                                            .rows = rows[(c + n) % 4],
                                            .n = ns[n],
                                            .cols = odd_cols(types[i], c),
                                            .size = 1,
                                            .bias = n == 1,
                                            .add = n % 2},
                             &seed);
}

/* Several products of the same vectors in one launch: odd rows, so that a pair of rows ends with
 * each matrix, and results far from each other. */
static void check_together(uint32_t type, int64_t cols, int64_t n, uint64_t *seed)
{
    enum { parts = 1 + TN_MATVEC_MORE };
    static const int64_t rows[parts] = {5, 7, 4};
    matrix w[parts];
    float *y[parts], *bias = random_floats(7, 1, seed);
    acts x = make_device_acts(n, cols, 1, seed);
    for (int i = 0; i < parts; i++) {
        w[i] = make_matrix(type, rows[i], cols, FILL_RANDOM, seed);
        y[i] = device_floats((size_t)(n * (rows[i] + i)), NULL);
    }
    tn_dmatvec a = {.w = w[0].d, .x = x.d, .y = y[0], .y_stride = rows[0]};
    for (int i = 1; i < parts; i++)
        a.more[i - 1] = (tn_dproduct){.w = w[i].d, .y = y[i], .y_stride = rows[i] + i};
    a.more[0].bias = device_floats(7, bias);
    CHECK_INT(ops->matvec(stream, &a), TN_OK);
    for (int i = 0; i < parts; i++) {
        float *got = device_get(y[i], (size_t)(n * (rows[i] + i)) * sizeof *got);
        for (int64_t at = 0; at < n * (rows[i] + i) && tn_failures < 5; at++) {
            const int64_t t = at / (rows[i] + i), r = at % (rows[i] + i);
            double mag = 0;
            const double want =
                r < rows[i] ? product(&w[i], &x, r, t, &mag) + (i == 1 ? bias[r] : 0) : 0;
            CHECK_MSG(r < rows[i] ? fabs(got[at] - want) <= MATVEC_TOLERANCE * (mag + 2)
                                  : isnan(got[at]),
                      "%s, %lld vectors, matrix %d: y[%lld][%lld] is %.9g, want %.9g",
                      tn_type_get(type)->name, (long long)n, i, (long long)t, (long long)r,
                      (double)got[at], want);
        }
        free(got);
        free_matrix(&w[i]);
    }
    free(bias);
    free_device_acts(&x);
    done("together");
}

TEST(matvec_together)
{
    NEED_DEVICE;
    uint64_t seed = 17;
    for (int i = 0; i < N_TYPES; i++) {
        check_together(types[i], odd_cols(types[i], 1), 1 + i % 2, &seed);
        check_together(types[i], odd_cols(types[i], 3), 3 + i % 6, &seed);
    }
}

/* More products come in order, are of one kind, and go with nothing else. */
TEST(matvec_together_refuses)
{
    NEED_DEVICE;
    uint64_t seed = 18;
    matrix m = make_matrix(TN_TYPE_Q4_0, 4, 64, FILL_RANDOM, &seed);
    matrix wide = make_matrix(TN_TYPE_Q4_0, 4, 96, FILL_RANDOM, &seed);
    acts x = make_device_acts(1, 64, 1, &seed);
    const tn_dproduct p = {.w = m.d, .y = device_floats(4, NULL), .y_stride = 4};
    const int32_t *expert = device_new(4, NULL);
    tn_dmatvec good = {.w = m.d, .x = x.d, .y = device_floats(4, NULL), .y_stride = 4, .more = {p}},
               a;
    CHECK_INT(ops->matvec(stream, &good), TN_OK);
    a = good, a.add = true;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good, a.up = m.d;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good, a.expert = expert, a.n_items = a.per_token = 1, a.rows = 4;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good, a.more[0].w = wide.d;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good, a.more[0].w.type = TN_TYPE_Q8_0;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good, a.more[0].y_stride = 3;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good, a.more[1] = p, a.more[0] = (tn_dproduct){.w = {0}};
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    free_device_acts(&x);
    done("together");
    free_matrix(&m);
    free_matrix(&wide);
}

TEST(matvec_glu)
{
    NEED_DEVICE;
    uint64_t seed = 4;
    for (int i = 0; i < N_TYPES; i++)
        for (int n = 1; n <= 4; n += 3)
            check_matvec(&(matvec_case){.type = types[i],
                                        .rows = 5,
                                        .n = n,
                                        .size = 0.5f,
                                        .glu = true,
                                        .cols = odd_cols(types[i], n == 1 ? 3 : 1),
                                        .bias = n > 1,
                                        .act = n == 1 ? TN_ACT_SILU : TN_ACT_GELU},
                         &seed);
}

TEST(matvec_fills)
{
    NEED_DEVICE;
    uint64_t seed = 5;
    for (int i = 0; i < N_TYPES; i++)
        for (int fill = 1; fill < FILL_COUNT; fill++)
            check_matvec(&(matvec_case){.type = types[i],
                                        .rows = 3,
                                        .n = 2,
                                        .cols = odd_cols(types[i], 1),
                                        .size = fill == FILL_TINY ? 1e4f : 1e-3f,
                                        .fill = (weight_fill)fill},
                         &seed);
}

/* The host's scalar product with its own rounding of the activations: what differs is that
 * rounding, at most half a step of 1/127 of a half's maximum on either side. */
TEST(matvec_against_host_rounding)
{
    NEED_DEVICE;
    uint64_t seed = 6;
    for (int i = 3; i < N_TYPES; i++) {
        const int64_t cols = 768, rows = 8;
        matrix m = make_matrix(types[i], rows, cols, FILL_RANDOM, &seed);
        acts x = make_device_acts(1, cols, 1, &seed);
        tn_q8 *q = malloc((size_t)(cols / 32) * sizeof *q);
        host.quantize(q, x.f, cols);
        const tn_acts a = {.n = 1, .cols = cols, .f = x.f, .f_stride = cols, .q = q};
        float want[8];
        host.matmul[TN_LAYOUT_ROWS][types[i]](&m.w, &a, want, rows, 0, rows, NULL);
        const tn_dmatvec v = {.w = m.d, .x = x.d, .y = device_floats(8, NULL), .y_stride = 8};
        CHECK_INT(ops->matvec(stream, &v), TN_OK);
        float *got = device_get(v.y, sizeof want);
        for (int64_t r = 0; r < rows; r++) {
            double mag = 0;
            for (int64_t c = 0; c < cols; c++)
                mag += fabs((double)m.value[r * cols + c]);
            CHECK_NEAR(got[r], want[r], mag * 0.2 / 127);
        }
        free(got);
        free(q);
        free_device_acts(&x);
        done("host rounding");
        free_matrix(&m);
    }
}

/* A slab of an FFN: a range of rows, or of columns, gives that part of the product. */
TEST(matvec_slabs)
{
    NEED_DEVICE;
    uint64_t seed = 7;
    for (int i = 0; i < N_TYPES; i++) {
        const int64_t block = tn_type_get(types[i])->block, part = block == 1 ? 40 : block;
        const int64_t rows = 9, cols = 3 * part;
        matrix m = make_matrix(types[i], rows, cols, FILL_RANDOM, &seed);
        acts x = make_device_acts(1, 2 * part, 1, &seed);
        tn_dweight view = tn_dweight_cols(&m.d, part, 2 * part);
        view = tn_dweight_rows(&view, 3, 5);
        const tn_dmatvec v = {.w = view, .x = x.d, .y = device_floats(5, NULL), .y_stride = 5};
        CHECK_INT(ops->matvec(stream, &v), TN_OK);
        float *got = device_get(v.y, 5 * sizeof *got);
        for (int64_t r = 0; r < 5; r++) {
            double want = 0, mag = 0;
            for (int64_t c = 0; c < 2 * part; c++) {
                const int64_t at = (3 + r) * cols + part + c;
                const double a = act_of(&x, types[i], 0, c);
                want += m.value[at] * a;
                mag += (fabs((double)m.plain[at]) + fabs((double)(m.value[at] - m.plain[at]))) *
                       fabs(a);
            }
            CHECK_NEAR(got[r], want, MATVEC_TOLERANCE * mag);
        }
        free(got);
        free_device_acts(&x);
        done("slabs");
        free_matrix(&m);
    }
}

/* Experts by index: gate and up with activation for tokens, then down for the items. */
TEST(matvec_experts)
{
    NEED_DEVICE;
    uint64_t seed = 8;
    static const int32_t choice[6] = {2, 0, 3, -1, 1, 2};
    for (int i = 0; i < N_TYPES; i++) {
        const int64_t block = tn_type_get(types[i])->block, cols = block == 1 ? 44 : block,
                      rows = 5;
        matrix m = make_matrix(types[i], 4 * rows, cols, FILL_RANDOM, &seed);
        acts x = make_device_acts(3, cols, 1, &seed);
        float *bias = random_floats((size_t)(4 * rows), 1, &seed);
        const tn_dmatvec v = {.w = m.d,
                              .x = x.d,
                              .y_stride = 7,
                              .y = device_floats(6 * 7, NULL),
                              .expert = device_new(sizeof choice, choice),
                              .n_items = 6,
                              .rows = rows,
                              .per_token = 2,
                              .bias = device_floats((size_t)(4 * rows), bias)};
        CHECK_INT(ops->matvec(stream, &v), TN_OK);
        float *got = device_get(v.y, 6 * 7 * sizeof *got);
        for (int64_t item = 0; item < 6; item++)
            for (int64_t r = 0; r < rows; r++) {
                double want = 0, mag = 0;
                const int64_t row = choice[item] * rows + r;
                if (choice[item] >= 0)
                    want = product(&m, &x, row, item / 2, &mag) + (double)bias[row];
                CHECK_NEAR(got[7 * item + r], want, MATVEC_TOLERANCE * (mag + 2));
            }
        free(got);
        free(bias);
        free_device_acts(&x);
        done("experts");
        free_matrix(&m);
    }
}

/* More items than a grid of blocks can have in one dimension (of the emulated device, whose code
 * has a smaller limit). */
TEST(matvec_experts_of_many_tokens)
{
    NEED_DEVICE;
    uint64_t seed = 16;
    enum { tokens = 201, used = 3, items = tokens * used };
    for (int i = 0; i < 2; i++) {
        int32_t choice[items];
        for (int k = 0; k < items; k++)
            choice[k] = (int32_t)(test_rand(&seed) % 4);
        matrix m = make_matrix(i ? TN_TYPE_F32 : TN_TYPE_Q4_1, 4, 32, FILL_RANDOM, &seed);
        acts x = make_device_acts(tokens, 32, 1, &seed);
        const tn_dmatvec v = {.w = m.d,
                              .x = x.d,
                              .y_stride = 2,
                              .y = device_floats(2 * items, NULL),
                              .expert = device_new(sizeof choice, choice),
                              .n_items = items,
                              .rows = 1,
                              .per_token = used};
        CHECK_INT(ops->matvec(stream, &v), TN_OK);
        float *got = device_get(v.y, 2 * items * sizeof *got);
        for (int64_t item = 0; item < items && tn_failures < 5; item++) {
            double mag, want = product(&m, &x, choice[item], item / used, &mag);
            CHECK_NEAR(got[2 * item], want, MATVEC_TOLERANCE * (mag + 2));
        }
        free(got);
        free_device_acts(&x);
        done("experts of many tokens");
        free_matrix(&m);
    }
}

TEST(matvec_refuses)
{
    NEED_DEVICE;
    uint64_t seed = 9;
    matrix m = make_matrix(TN_TYPE_Q4_0, 4, 64, FILL_RANDOM, &seed);
    acts x = make_device_acts(1, 64, 1, &seed);
    const tn_dmatvec good = {.w = m.d, .x = x.d, .y = device_floats(4, NULL), .y_stride = 4};
    tn_dmatvec a = good;
    a.x.n = TN_MATVEC_MAX + 1;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good;
    a.x.cols = 32;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    a = good;
    a.w.type = TN_TYPE_Q8_1;
    CHECK_INT(ops->matvec(stream, &a), TN_EUNSUPPORTED);
    a = good;
    a.y_stride = 3;
    CHECK_INT(ops->matvec(stream, &a), TN_EARG);
    free_device_acts(&x);
    done("refuses");
    free_matrix(&m);
}

/* ---- GEMM ------------------------------------------------------------------------------------ */

/* Quantised: weights and activations each rounded to 11 bits. The others: float32. */
static double gemm_tolerance(uint32_t type)
{
    return is_quantised(type) ? 1.2e-3 : 2e-6;
}

static void check_gemm(uint32_t type, int64_t n, float size, bool add, int64_t piece,
                       uint64_t *seed)
{
    const int64_t rows = 21, stride = 24, cols = odd_cols(type, 1);
    matrix w = make_matrix(type, rows, cols, FILL_RANDOM, seed);
    acts x = make_device_acts(n, cols, size, seed);
    float *bias = random_floats((size_t)rows, size, seed);
    float *before = random_floats((size_t)(n * stride), size, seed);
    tn_dgemm a = {.w = w.d, .x = x.d, .y_stride = stride, .add = add, .path = TN_GEMM_F16};
    a.workspace_bytes = ops->gemm_bytes(type, n, piece, cols);
    a.workspace = device_new(a.workspace_bytes, NULL);
    a.y = device_floats((size_t)(n * stride), before);
    a.bias = add ? NULL : device_floats((size_t)rows, bias);
    CHECK_INT(ops->gemm(stream, &a), TN_OK);
    float *got = device_get(a.y, (size_t)(n * stride) * sizeof *got);
    for (int64_t t = 0; t < n; t++)
        for (int64_t r = 0; r < stride && tn_failures < 5; r++) {
            const int64_t at = t * stride + r;
            if (r >= rows) {
                CHECK_MSG(got[at] == before[at], "gemm: written between rows");
                continue;
            }
            double want = add ? before[at] : bias[r], mag = fabs(want);
            for (int64_t c = 0; c < cols; c++) {
                const double v = x.f[t * x.d.f_stride + c], p = w.value[r * cols + c];
                want += p * v;
                mag += fabs(p * v);
            }
            CHECK_MSG(fabs(got[at] - want) <= gemm_tolerance(type) * mag,
                      "gemm %s n %lld size %g%s: y[%lld][%lld] is %.9g, want %.9g, magnitudes %g",
                      tn_type_get(type)->name, (long long)n, (double)size, add ? " add" : "",
                      (long long)t, (long long)r, (double)got[at], want, mag);
        }
    free(got);
    free(bias);
    free(before);
    free_device_acts(&x);
    done("gemm");
    free_matrix(&w);
}

TEST(gemm_types)
{
    NEED_DEVICE;
    uint64_t seed = 10;
    for (int i = 0; i < N_TYPES; i++) {
        check_gemm(types[i], 1, 1, false, 21, &seed);
        check_gemm(types[i], 19, 1, true, 4, &seed);
    }
}

/* Activations beyond float16's range: a GEMM in float16 must not turn them into infinities. */
TEST(gemm_large_activations)
{
    NEED_DEVICE;
    uint64_t seed = 11;
    check_gemm(TN_TYPE_Q4_0, 9, 1e7f, false, 21, &seed);
    check_gemm(TN_TYPE_Q6_K, 9, 1e6f, true, 5, &seed);
}

/* One value alone may be too large for float16, wherever it stands: also behind as many vectors as
 * are looked at in one go. */
TEST(gemm_one_large_activation)
{
    NEED_DEVICE;
    enum { n = 700, cols = 544 };
    uint64_t seed = 19;
    static const int at[][2] = {{0, 0}, {n - 1, cols - 1}, {513, 3}, {300, 512}, {255, 40}};
    matrix w = make_matrix(TN_TYPE_Q8_0, 1, cols, FILL_RANDOM, &seed);
    float *x = calloc(n * cols, sizeof *x);
    tn_dgemm a = {.w = w.d, .y = device_floats(n, NULL), .y_stride = 1, .path = TN_GEMM_F16};
    a.workspace_bytes = ops->gemm_bytes(TN_TYPE_Q8_0, n, 1, cols);
    a.workspace = device_new(a.workspace_bytes, NULL);
    for (int i = 0; i < 5; i++) {
        x[at[i][0] * cols + at[i][1]] = 1e6f;
        a.x = (tn_dacts){.n = n, .cols = cols, .f = device_floats(n * cols, x), .f_stride = cols};
        CHECK_INT(ops->gemm(stream, &a), TN_OK);
        float *got = device_get(a.y, n * sizeof *got);
        for (int t = 0; t < n && tn_failures < 5; t++)
            CHECK_NEAR(got[t], t == at[i][0] ? 1e6 * (double)w.value[at[i][1]] : 0,
                       1.2e3 * fabs((double)w.value[at[i][1]]));
        x[at[i][0] * cols + at[i][1]] = 0;
        free(got);
    }
    free(x);
    done("one large value");
    free_matrix(&w);
}

/* The path of 8 bits rounds x as the mat-vec does, and is held to the mat-vec's tolerance. One
 * vector more or less than a tile, more than a block takes; rows and columns likewise. */
static void check_gemm_int8(uint32_t type, int64_t rows, int64_t cols, int64_t n, float size,
                            weight_fill fill, bool add, uint64_t *seed)
{
    const int64_t stride = rows + 3;
    matrix w = make_matrix(type, rows, cols, fill, seed);
    acts x = make_device_acts(n, cols, size, seed);
    float *bias = random_floats((size_t)rows, size, seed);
    float *before = random_floats((size_t)(n * stride), size, seed);
    tn_dgemm a = {.w = w.d, .x = x.d, .y_stride = stride, .add = add, .path = TN_GEMM_INT8};
    a.x.q = NULL, a.x.scale = NULL;
    a.workspace_bytes = ops->gemm_bytes(type, n, 1, cols);
    a.workspace = device_new(a.workspace_bytes, NULL);
    a.y = device_floats((size_t)(n * stride), before);
    a.bias = add ? NULL : device_floats((size_t)rows, bias);
    CHECK_INT(ops->gemm(stream, &a), TN_OK);
    float *got = device_get(a.y, (size_t)(n * stride) * sizeof *got);
    for (int64_t t = 0; t < n; t++)
        for (int64_t r = 0; r < stride && tn_failures < 5; r++) {
            const int64_t at = t * stride + r;
            if (r >= rows) {
                CHECK_MSG(got[at] == before[at], "gemm: written between rows");
                continue;
            }
            double mag, want = product(&w, &x, r, t, &mag);
            const double plus = add ? before[at] : bias[r];
            const double tol = MATVEC_TOLERANCE * (mag + 2 * fabs(plus));
            CHECK_MSG(fabs(got[at] - want - plus) <= tol,
                      "gemm in 8 bits, %s %lldx%lld n %lld%s: y[%lld][%lld] "
                      "is %.9g, want %.9g within %.3g",
                      tn_type_get(type)->name, (long long)rows, (long long)cols, (long long)n,
                      add ? " add" : "", (long long)t, (long long)r, (double)got[at], want + plus,
                      tol);
        }
    free(got);
    free(bias);
    free(before);
    free_device_acts(&x);
    done("gemm in 8 bits");
    free_matrix(&w);
}

TEST(gemm_int8_types)
{
    NEED_DEVICE;
    uint64_t seed = 13;
    for (int i = 0; i < N_TYPES; i++) {
        if (!is_quantised(types[i])) continue;
        check_gemm_int8(types[i], 21, odd_cols(types[i], 1), 9, 1, FILL_RANDOM, true, &seed);
        check_gemm_int8(types[i], 33, odd_cols(types[i], 0), 5, 1e6f, FILL_TINY, false, &seed);
    }
}

TEST(gemm_int8_shapes)
{
    NEED_DEVICE;
    uint64_t seed = 14;
    static const int64_t ns[] = {1, 8, 31, 33, 64, 65, 130}, rows[] = {1, 16, 32, 47, 70, 7, 5};
    for (int i = 0; i < 7; i++) {
        check_gemm_int8(TN_TYPE_Q4_0, rows[i], 32 * (1 + i), ns[i], 1, FILL_RANDOM, i % 2, &seed);
        check_gemm_int8(i % 2 ? TN_TYPE_Q4_K : TN_TYPE_Q6_K, rows[6 - i], 256, ns[i], 1,
                        FILL_RANDOM, i % 2 == 0, &seed);
    }
}

/* What is not finite is not lost, and stays in its vector. */
TEST(gemm_int8_keeps_nan)
{
    NEED_DEVICE;
    uint64_t seed = 15;
    matrix w = make_matrix(TN_TYPE_Q4_K, 8, 256, FILL_RANDOM, &seed);
    float *x = random_floats(10 * 256, 1, &seed);
    x[3 * 256 + 100] = NAN;
    x[7 * 256 + 1] = INFINITY;
    tn_dgemm a = {.w = w.d, .y = device_floats(80, NULL), .y_stride = 8, .path = TN_GEMM_INT8};
    a.x = (tn_dacts){.n = 10, .cols = 256, .f = device_floats(2560, x), .f_stride = 256};
    a.workspace_bytes = ops->gemm_bytes(TN_TYPE_Q4_K, 10, 1, 256);
    a.workspace = device_new(a.workspace_bytes, NULL);
    CHECK_INT(ops->gemm(stream, &a), TN_OK);
    float *got = device_get(a.y, 80 * sizeof *got);
    for (int i = 0; i < 80; i++)
        CHECK_MSG(!isfinite(got[i]) == (i / 8 == 3 || i / 8 == 7), "[%d] is %g", i, (double)got[i]);
    free(got);
    free(x);
    done("gemm with NaN");
    free_matrix(&w);
}

TEST(gemm_refuses_a_small_workspace)
{
    NEED_DEVICE;
    uint64_t seed = 12;
    matrix w = make_matrix(TN_TYPE_Q4_0, 8, 64, FILL_RANDOM, &seed);
    acts x = make_device_acts(2, 64, 1, &seed);
    tn_dgemm a = {.w = w.d, .x = x.d, .y = device_floats(16, NULL), .y_stride = 8};
    a.workspace_bytes = ops->gemm_bytes(TN_TYPE_Q4_0, 2, 1, 64) - 256;
    a.workspace = device_new(a.workspace_bytes, NULL);
    CHECK_INT(ops->gemm(stream, &a), TN_EARG);
    free_device_acts(&x);
    done("workspace");
    free_matrix(&w);
}

DEVICE_MAIN
