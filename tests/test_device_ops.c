/* Everything on the device that is neither a product nor attention: norms, rounding, activations,
 * sums, routing, sampling, against the host's scalar kernels. */
#include "device_lib.h"

/* ---- rounding to 8 bits ---------------------------------------------------------------------- */

/* Every half has its own scale, and every element is within half a step. */
static void check_rounding(const char *what, const float *x, int64_t stride, int64_t n,
                           int64_t cols, const int8_t *q, const tn_dscale *s, double slack)
{
    for (int64_t t = 0; t < n; t++)
        for (int64_t c = 0; c < cols && tn_failures < 5; c += 16) {
            const int64_t at = t * cols + c;
            const double d = s[at / 32].d[at % 32 / 16];
            double amax = 0;
            int sum = 0;
            for (int i = 0; i < 16; i++)
                amax = fmax(amax, fabs((double)x[t * stride + c + i]));
            CHECK_MSG(fabs(d - amax / 127) <= 1e-6 * d + slack, "%s: scale %g, maximum %g", what, d,
                      amax);
            for (int i = 0; i < 16; i++) {
                const double v = x[t * stride + c + i];
                CHECK_MSG(fabs(d * q[at + i] - v) <= d * 0.5001 + slack, "%s: %g became %d * %g",
                          what, v, q[at + i], d);
                sum += q[at + i];
            }
            CHECK_INT(s[at / 32].sum[at % 32 / 16], sum);
        }
}

TEST(quantize)
{
    NEED_DEVICE;
    uint64_t seed = 1;
    static const int64_t shapes[][2] = {{1, 32}, {3, 96}, {2, 576}, {5, 2080}, {530, 32}};
    for (int i = 0; i < 5; i++) {
        const int64_t n = shapes[i][0], cols = shapes[i][1];
        tn_dacts x = {.n = n, .cols = cols, .f_stride = cols + 4};
        float *f = random_floats((size_t)(n * x.f_stride), 3, &seed);
        for (int j = 0; j < 16; j++)
            f[j] = 0;
        x.f = device_floats((size_t)(n * x.f_stride), f);
        x.q = device_new((size_t)(n * cols), NULL);
        x.scale = device_new((size_t)(n * cols / 32) * sizeof *x.scale, NULL);
        CHECK_INT(ops->quantize(stream, &x), TN_OK);
        int8_t *q = device_get(x.q, (size_t)(n * cols));
        tn_dscale *s = device_get(x.scale, (size_t)(n * cols / 32) * sizeof *s);
        check_rounding("quantize", f, x.f_stride, n, cols, q, s, 0);
        CHECK(s[0].d[0] == 0 && s[0].sum[0] == 0);
        free(f), free(q), free(s);
        done("quantize");
    }
}

/* Every word once, after what was there. */
TEST(read_sums)
{
    NEED_DEVICE;
    static const size_t words[] = {4, 1020, 4096, 2048 * 256 * 4 + 36};
    for (size_t k = 0; k < sizeof words / sizeof *words; k++) {
        uint32_t want = 7, *w = malloc(words[k] * sizeof *w);
        for (size_t i = 0; i < words[k]; i++)
            want += w[i] = (uint32_t)i * 2654435761u + 12345u;
        const uint32_t before = 7;
        const void *p = device_new(words[k] * sizeof *w, w);
        uint32_t *sum = device_new(sizeof before, &before);
        CHECK_INT(ops->read(stream, p, words[k] * sizeof *w, sum), TN_OK);
        uint32_t *got = device_get(sum, sizeof before);
        CHECK_MSG(*got == want, "%zu words: %u, want %u", words[k], *got, want);
        CHECK_INT(ops->read(stream, p, 20, sum), TN_EARG);
        CHECK_INT(ops->read(stream, (const char *)p + 4, 16, sum), TN_EARG);
        CHECK_INT(ops->read(stream, p, 0, sum), TN_EARG);
        free(w), free(got);
        done("read");
    }
}

/* Halves of few bits and short rows: sums are exact. */
TEST(multiply_halves)
{
    NEED_DEVICE;
    static const int64_t shapes[][3] = {{1, 1, 8}, {7, 3, 16}, {64, 40, 72}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        const int64_t rows = shapes[k][0], n = shapes[k][1], cols = shapes[k][2];
        uint16_t w[64 * 72], x[40 * 72];
        for (int64_t i = 0; i < rows * cols; i++)
            w[i] = tn_f32_to_f16((float)(i * 7 % 13 - 6) / 4);
        for (int64_t i = 0; i < n * cols; i++)
            x[i] = tn_f32_to_f16((float)(i * 5 % 11 - 5) / 2);
        const void *dw = device_new((size_t)(rows * cols * 2), w);
        const void *dx = device_new((size_t)(n * cols * 2), x);
        float *y = device_floats((size_t)(n * rows), NULL);
        CHECK_INT(ops->multiply(stream, dw, dx, y, rows, n, cols), TN_OK);
        float *got = device_get(y, (size_t)(n * rows) * sizeof *got);
        for (int64_t i = 0; i < n * rows; i++) {
            float want = 0;
            for (int64_t c = 0; c < cols; c++)
                want += tn_f16_to_f32(w[i % rows * cols + c]) *
                        tn_f16_to_f32(x[i / rows * cols + c]);
            CHECK_MSG(got[i] == want, "%d: %g, want %g", (int)i, got[i], want);
        }
        CHECK_INT(ops->multiply(stream, dw, dx, y, 0, n, cols), TN_EARG);
        CHECK_INT(ops->multiply(stream, dw, NULL, y, rows, n, cols), TN_EARG);
        free(got);
        done("multiply");
    }
}

/* What is not finite must come out as NaN, whatever its neighbours; tiny values as zeros. */
TEST(quantize_extremes)
{
    NEED_DEVICE;
    float f[128];
    for (int i = 0; i < 128; i++)
        f[i] = (float)i;
    f[5] = NAN;
    f[40] = INFINITY;
    f[63] = -INFINITY;
    for (int i = 80; i < 96; i++)
        f[i] = 1e-40f;
    f[127] = 3e38f;
    tn_dacts x = {.n = 1, .cols = 128, .f_stride = 128, .f = device_floats(128, f)};
    x.q = device_new(128, NULL);
    x.scale = device_new(4 * sizeof *x.scale, NULL);
    CHECK_INT(ops->quantize(stream, &x), TN_OK);
    tn_dscale *s = device_get(x.scale, 4 * sizeof *s);
    int8_t *q = device_get(x.q, 128);
    CHECK(isnan(s[0].d[0]) && !isnan(s[0].d[1]) && isnan(s[1].d[0]) && isnan(s[1].d[1]));
    CHECK(s[2].d[1] == 0 && s[2].sum[1] == 0);
    CHECK(s[3].d[1] > 0 && q[127] == 127);
    free(s), free(q);
    done("extremes");
}

/* ---- norms ----------------------------------------------------------------------------------- */

typedef struct norm_case {
    int64_t n, cols;
    bool residual, r_norm, w, f, q;
} norm_case;

static void check_norm(const norm_case *k, uint64_t *seed)
{
    const int64_t stride = padded(k->cols) + 4, cols = k->cols;
    float *x = random_floats((size_t)(k->n * stride), 2, seed),
          *r = random_floats((size_t)(k->n * stride), 3, seed);
    float *w = random_floats((size_t)cols, 1, seed), *rw = random_floats((size_t)cols, 1, seed);
    float *y = malloc((size_t)(k->n * stride) * sizeof *y), *u = malloc((size_t)cols * sizeof *u);
    tn_dnorm a = {.x = device_floats((size_t)(k->n * stride), x), .x_stride = stride, .eps = 1e-5f};
    if (k->residual) a.r = device_floats((size_t)(k->n * stride), r), a.r_stride = stride;
    if (k->r_norm) a.r_norm = device_floats((size_t)cols, rw);
    if (k->w) a.w = device_floats((size_t)cols, w);
    a.y = (tn_dacts){.n = k->n, .cols = cols, .f_stride = stride};
    if (k->f) a.y.f = device_floats((size_t)(k->n * stride), NULL);
    if (k->q) {
        a.y.q = device_new((size_t)(k->n * cols), NULL);
        a.y.scale = device_new((size_t)(k->n * cols / 32) * sizeof *a.y.scale, NULL);
    }
    CHECK_INT(ops->norm(stream, &a), TN_OK);
    for (int64_t t = 0; t < k->n; t++) {
        memcpy(u, r + t * stride, (size_t)cols * sizeof *u);
        if (k->r_norm) host.rms_norm(u, u, rw, cols, a.eps);
        if (k->residual) host.add(x + t * stride, u, cols);
        host.rms_norm(y + t * stride, x + t * stride, k->w ? w : NULL, cols, a.eps);
    }
    float *gx = device_get(a.x, (size_t)(k->n * stride) * sizeof *gx);
    for (int64_t i = 0; i < k->n * stride && tn_failures < 5; i++)
        CHECK_NEAR(gx[i], x[i], 5e-6);
    if (k->f) {
        float *gy = device_get(a.y.f, (size_t)(k->n * stride) * sizeof *gy);
        for (int64_t i = 0; i < k->n * stride && tn_failures < 5; i++) {
            if (i % stride < cols)
                CHECK_NEAR(gy[i], y[i], 3e-6 * (1 + fabs((double)y[i])));
            else
                CHECK(isnan(gy[i]));
        }
        free(gy);
    }
    if (k->q) {
        int8_t *q = device_get(a.y.q, (size_t)(k->n * cols));
        tn_dscale *s = device_get(a.y.scale, (size_t)(k->n * cols / 32) * sizeof *s);
        check_rounding("norm", y, stride, k->n, cols, q, s, 1e-5);
        free(q), free(s);
    }
    free(x), free(r), free(w), free(rw), free(y), free(u), free(gx);
    done("norm");
}

TEST(norm)
{
    NEED_DEVICE;
    uint64_t seed = 2;
    static const int64_t sizes[] = {32, 96, 576, 2080, 4128};
    for (int i = 0; i < 5; i++) {
        const norm_case k = {.n = 1 + i % 3, .cols = sizes[i], .w = true, .f = i % 2, .q = true};
        check_norm(&k, &seed);
        check_norm(&(norm_case){.n = 2, .cols = sizes[i], .residual = true, .w = i % 2, .f = true},
                   &seed);
        check_norm(&(norm_case){.n = 3,
                                .cols = sizes[i],
                                .residual = true,
                                .r_norm = true,
                                .w = true,
                                .q = true,
                                .f = true},
                   &seed);
        check_norm(&(norm_case){.n = 2, .cols = sizes[i], .residual = true, .r_norm = true}, &seed);
        check_norm(
            &(norm_case){.n = 2, .cols = sizes[i] + 1, .residual = true, .f = true, .w = true},
            &seed);
        check_norm(&(norm_case){.n = 1, .cols = sizes[i] - 29, .f = true}, &seed);
    }
    tn_dnorm bad = {.x = device_floats(40, NULL), .x_stride = 40, .y = {.n = 1, .cols = 40}};
    bad.y.q = device_new(40, NULL);
    bad.y.scale = device_new(64, NULL);
    CHECK_INT(ops->norm(stream, &bad), TN_EARG);
    done("refused");
}

/* ---- elementwise ----------------------------------------------------------------------------- */

TEST(glu)
{
    NEED_DEVICE;
    uint64_t seed = 3;
    for (int act = TN_ACT_SILU; act <= TN_ACT_GELU; act++) {
        const int64_t n = act == TN_ACT_SILU ? 3 : 300, cols = act == TN_ACT_SILU ? 133 : 9;
        const int64_t gs = cols + 2, us = cols + 7;
        float *g = random_floats((size_t)(n * gs), 12, &seed),
              *u = random_floats((size_t)(n * us), 2, &seed);
        g[0] = 1000, g[1] = -1000, g[2] = -30, g[3] = 0, g[4] = -9;
        float *d = device_floats((size_t)(n * gs), g);
        CHECK_INT(ops->glu(stream, d, gs, device_floats((size_t)(n * us), u), us, n, cols,
                           (tn_activation)act),
                  TN_OK);
        float *got = device_get(d, (size_t)(n * gs) * sizeof *got);
        for (int64_t t = 0; t < n; t++) {
            host.glu(g + t * gs, u + t * us, cols, (tn_activation)act);
            for (int64_t i = 0; i < gs && tn_failures < 5; i++)
                CHECK_NEAR(got[t * gs + i], g[t * gs + i],
                           3e-6 * fabs((double)g[t * gs + i]) + 1e-10);
        }
        free(g), free(u), free(got);
        done("glu");
    }
}

TEST(axpby_and_softcap)
{
    NEED_DEVICE;
    uint64_t seed = 4;
    const int64_t n = 3, cols = 130, ys = 131, xs = 134;
    for (int what = 0; what < 4; what++) {
        float *y = random_floats((size_t)(n * ys), 40, &seed),
              *x = random_floats((size_t)(n * xs), 2, &seed);
        float *b = random_floats((size_t)cols, 2, &seed), *d = device_floats((size_t)(n * ys), y);
        const float *dx = what & 1 ? device_floats((size_t)(n * xs), x) : NULL;
        const float *db = what & 2 ? device_floats((size_t)cols, b) : NULL;
        CHECK_INT(ops->axpby(stream, d, ys, 0.5f, dx, xs, -3, db, n, cols), TN_OK);
        CHECK_INT(ops->softcap(stream, d, ys, n, cols, 7), TN_OK);
        float *got = device_get(d, (size_t)(n * ys) * sizeof *got);
        for (int64_t i = 0; i < n * ys && tn_failures < 5; i++) {
            const int64_t c = i % ys;
            double v = 0.5 * y[i] + (dx ? -3.0 * x[i / ys * xs + c] : 0);
            if (c < cols && db) v += b[c];
            CHECK_NEAR(got[i], c < cols ? 7 * tanh(v / 7) : (double)y[i], 1e-5);
        }
        free(y), free(x), free(b), free(got);
        done("axpby");
    }
    float *y = device_floats(4, NULL);
    CHECK_INT(ops->softcap(stream, y, 4, 1, 4, 0), TN_EARG);
    done("refused");
}

/* ---- experts --------------------------------------------------------------------------------- */

static double gate_of(tn_gating g, const float *s, int n, int e)
{
    double sum = 0;
    if (g == TN_GATING_SIGMOID) return 1 / (1 + exp(-(double)s[e]));
    for (int i = 0; i < n; i++)
        sum += exp((double)s[i] - (double)s[e]);
    return 1 / sum;
}

static void check_route(int n, int n_expert, int used, tn_gating gating, bool biased,
                        bool renormalise, uint64_t *seed)
{
    const int stride = n_expert + 3;
    float *s = random_floats((size_t)(n * stride), 4, seed),
          *bias = random_floats((size_t)n_expert, 1, seed);
    int32_t *where = malloc((size_t)n_expert * sizeof *where);
    for (int e = 0; e < n_expert; e++)
        where[e] = e % 3 ? 1000 + e : -1;
    if (n_expert > 4 && !biased) s[1] = s[3] = s[4]; /* equal scores: the lower index */
    tn_droute a = {.scores = device_floats((size_t)(n * stride), s),
                   .scores_stride = stride,
                   .n = n,
                   .n_expert = n_expert,
                   .used = used,
                   .gating = gating,
                   .renormalise = renormalise,
                   .scale = 2.5f,
                   .where = device_new((size_t)n_expert * sizeof *where, where)};
    const size_t count = (size_t)(n * used);
    a.expert = device_new(count * 4, NULL), a.chosen = device_new(count * 4, NULL);
    a.weight = device_floats(count, NULL);
    if (biased) a.select_bias = device_floats((size_t)n_expert, bias);
    CHECK_INT(ops->route(stream, &a), TN_OK);
    int32_t *chosen = device_get(a.chosen, count * 4), *expert = device_get(a.expert, count * 4);
    float *weight = device_get(a.weight, count * 4);
    for (int t = 0; t < n; t++) {
        const float *row = s + t * stride;
        bool *taken = calloc((size_t)n_expert, sizeof *taken);
        double sum = 0;
        for (int i = 0; i < used; i++) {
            int best = -1;
            double best_rank = 0;
            for (int e = 0; e < n_expert; e++) {
                const double rank =
                    biased ? gate_of(gating, row, n_expert, e) + (double)bias[e] : (double)row[e];
                if (!taken[e] && (best < 0 || rank > best_rank)) best = e, best_rank = rank;
            }
            taken[best] = true;
            CHECK_INT(chosen[t * used + i], best);
            CHECK_INT(expert[t * used + i], where[best]);
            sum += gate_of(gating, row, n_expert, best);
        }
        for (int i = 0; i < used; i++) {
            const double g = gate_of(gating, row, n_expert, chosen[t * used + i]);
            CHECK_NEAR(weight[t * used + i], 2.5 * (renormalise ? g / sum : g), 3e-6);
        }
        free(taken);
    }
    free(s), free(bias), free(where), free(chosen), free(expert), free(weight);
    done("route");
}

TEST(route)
{
    NEED_DEVICE;
    uint64_t seed = 5;
    static const int shapes[][2] = {{8, 2}, {1, 1}, {64, 6}, {128, 8}, {33, 33}, {1024, 64}};
    for (int i = 0; i < 6; i++)
        for (int v = 0; v < 8; v++)
            check_route(1 + i % 3, shapes[i][0], shapes[i][1],
                        v & 1 ? TN_GATING_SIGMOID : TN_GATING_SOFTMAX, v & 2, v & 4, &seed);
    const tn_device_shape many = {.cols = 1025, .used = 1};
    CHECK(!ops->can_do(TN_DOP_ROUTE, 0, many));
}

TEST(combine)
{
    NEED_DEVICE;
    uint64_t seed = 6;
    const int64_t n = 3, cols = 70, ys = 71, xs = 73;
    const int32_t used = 3;
    /* A row for each choice, none for two of them; what no choice names is NaN. */
    const int32_t rows[] = {4, -1, 0, 2, 8, 6, -1, 1, 3};
    for (int mode = 0; mode < 4; mode++) {
        const int add = mode & 1;
        const int32_t *row_of = mode & 2 ? rows : NULL;
        float *y = random_floats((size_t)(n * ys), 1, &seed),
              *x = random_floats((size_t)(n * used * xs), 1, &seed);
        float *w = random_floats((size_t)(n * used), 1, &seed),
              *d = device_floats((size_t)(n * ys), y);
        for (int64_t c = 0; row_of && c < xs; c++)
            x[5 * xs + c] = x[7 * xs + c] = NAN;
        CHECK_INT(ops->combine(stream, d, ys, device_floats((size_t)(n * used * xs), x), xs,
                               row_of ? device_new(sizeof rows, row_of) : NULL,
                               device_floats((size_t)(n * used), w), used, n, cols, add),
                  TN_OK);
        float *got = device_get(d, (size_t)(n * ys) * sizeof *got);
        for (int64_t i = 0; i < n * ys && tn_failures < 5; i++) {
            const int64_t t = i / ys, c = i % ys;
            double v = add || c >= cols ? y[i] : 0;
            for (int j = 0; j < used && c < cols; j++) {
                const int64_t row = row_of ? row_of[t * used + j] : t * used + j;
                if (row >= 0) v += (double)w[t * used + j] * x[row * xs + c];
            }
            CHECK_NEAR(got[i], v, 2e-6);
        }
        free(y), free(x), free(w), free(got);
        done("combine");
    }
}

/* ---- sampling -------------------------------------------------------------------------------- */

static const float *sort_values;
static int by_value(const void *a, const void *b)
{
    const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    const float x = isnan(sort_values[i]) ? -INFINITY : sort_values[i];
    const float y = isnan(sort_values[j]) ? -INFINITY : sort_values[j];
    return x > y ? -1 : x < y ? 1 : i < j ? -1 : i > j;
}

/* coarse: few different values, so that indices decide. */
static void check_best(int64_t n, int64_t cols, int32_t k, bool coarse, uint64_t *seed)
{
    const int64_t stride = cols + 1;
    float *x = random_floats((size_t)(n * stride), 20, seed);
    for (int64_t i = 0; coarse && i < n * stride; i++)
        x[i] = rintf(x[i] / 10);
    for (int64_t i = 0; coarse && i < n * stride; i += 3)
        x[i] = x[i] == 0 ? -0.0f : x[i];
    if (cols > 9 && !coarse) x[7] = NAN;
    if (cols > 1100) x[cols - 1] = x[1029] = x[700] = 50; /* the lower index wins */
    if (cols > 1100 && !coarse) x[1031] = 60;             /* seen by the thread of x[7] */
    float *d = device_floats((size_t)(n * stride), x), *best = device_floats((size_t)n, NULL);
    int32_t *id = device_new((size_t)n * 4, NULL), *ids = device_new((size_t)(n * k) * 4, NULL);
    float *values = device_floats((size_t)(n * k), NULL);
    CHECK_INT(ops->argmax(stream, d, stride, n, cols, id, best), TN_OK);
    CHECK_INT(ops->top_k(stream, d, stride, n, cols, k, ids, values), TN_OK);
    int32_t *got_id = device_get(id, (size_t)n * 4), *got = device_get(ids, (size_t)(n * k) * 4);
    float *got_best = device_get(best, (size_t)n * 4),
          *got_values = device_get(values, (size_t)(n * k) * 4);
    int32_t *order = malloc((size_t)cols * sizeof *order);
    for (int64_t t = 0; t < n; t++) {
        sort_values = x + t * stride;
        for (int32_t i = 0; i < cols; i++)
            order[i] = i;
        qsort(order, (size_t)cols, sizeof *order, by_value);
        CHECK_INT(got_id[t], order[0]);
        CHECK(memcmp(&got_best[t], &sort_values[order[0]], 4) == 0);
        for (int32_t i = 0; i < k && tn_failures < 5; i++) {
            CHECK_INT(got[t * k + i], order[i]);
            CHECK(memcmp(&got_values[t * k + i], &sort_values[order[i]], 4) == 0);
        }
    }
    free(x), free(got_id), free(got), free(got_best), free(got_values), free(order);
    done("best");
}

TEST(argmax_and_top_k)
{
    NEED_DEVICE;
    uint64_t seed = 7;
    check_best(1, 1, 1, false, &seed);
    check_best(3, 33, 32, false, &seed);
    check_best(2, 1500, 7, false, &seed);
    check_best(1, 5000, 1, false, &seed);
    check_best(1, 20000, 40, false, &seed);
    check_best(1, 3000, 1024, false, &seed);
    check_best(2, 3000, 100, true, &seed);
    check_best(1, 2000, 500, true, &seed);
    check_best(1, 300, 250, true, &seed); /* zeros of both signs among the chosen */
    float *x = device_floats(8, NULL), *v = device_floats(8, NULL);
    int32_t *id = device_new(32, NULL);
    CHECK_INT(ops->top_k(stream, x, 8, 1, 8, 9, id, v), TN_EARG);
    CHECK_INT(ops->top_k(stream, x, 8, 1, 8, 0, id, v), TN_EARG);
    done("refused");
}

/* Every load of every turn of a thread counts. */
TEST(argmax_looks_everywhere)
{
    NEED_DEVICE;
    enum { cols = 20000 };
    float *x = calloc(cols, sizeof *x), *d = device_floats(cols, x), one = 1, none = 0;
    int32_t *id = device_new(sizeof *id, NULL);
    tn_error err = {0};
    for (int32_t at = 0; at < cols; at = at + 511 < cols || at == cols - 1 ? at + 511 : cols - 1) {
        CHECK_INT(dev->api->upload(dev, d + at, &one, sizeof one, &err), TN_OK);
        CHECK_INT(ops->argmax(stream, d, cols, 1, cols, id, NULL), TN_OK);
        int32_t *got = device_get(id, sizeof *got);
        CHECK_INT(*got, at);
        CHECK_INT(dev->api->upload(dev, d + at, &none, sizeof none, &err), TN_OK);
        free(got);
    }
    free(x);
    done("everywhere");
}

DEVICE_MAIN
