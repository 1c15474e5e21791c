/* The small operations: scalar against double precision, the vector levels against scalar
 * (quantisation and float16 bit for bit), odd sizes, extreme values, canaries. `test_ops --bench`
 * times them instead. */
#include "harness.h"

#include "../gguf/blocks.h"
#include "../kernels/f16.h"
#include "../kernels/kernels.h"

#include <float.h>
#include <time.h>

enum { MAX_N = 1100, PAD = 16, LEVELS = 3 };

static const float CANARY = 4711.25f;

static int n_levels(void)
{
    const unsigned isa = tn_isa_detect();
    return isa & TN_ISA_AVX512 ? 3 : isa & TN_ISA_AVX2 ? 2 : 1;
}

static tn_kernels table(int level)
{
    tn_kernels k = {0};
    tn_kernels_scalar_ops(&k);
    if (level > 0) tn_kernels_avx2_ops(&k);
    if (level > 1) tn_kernels_avx512_ops(&k);
    return k;
}

static void guard(float *x, int64_t n)
{
    for (int i = 0; i < PAD; i++) x[i] = x[PAD + n + i] = CANARY;
}
static void check_guard(const float *x, int64_t n)
{
    for (int i = 0; i < PAD; i++)
        CHECK_MSG(x[i] == CANARY && x[PAD + n + i] == CANARY, "canary overwritten, n %lld",
                  (long long)n);
}

/* Kind 0: uniform in [-8, 8); 1: magnitudes from 1e-20 to 1e15; 2: mostly zero; 3: tiny. */
static void fill(float *x, int64_t n, int kind, uint64_t *seed)
{
    for (int64_t i = 0; i < n; i++) {
        const float u = test_randf(seed);
        x[i] = kind == 0 ? 8 * u : kind == 1 ? u * powf(10, (float)(test_rand(seed) % 36) - 20)
             : kind == 2 ? (test_rand(seed) % 9 ? 0 : u) : u * 1e-38f;
    }
}

static const int64_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 1023, 1024};
#define FOR_SIZES(n)                                                                               \
    for (size_t i_ = 0, n = 0; i_ < sizeof sizes / sizeof *sizes && (n = (size_t)sizes[i_], 1);    \
         i_++)

/* ---- float16 --------------------------------------------------------------------------------- */

TEST(f16_and_bf16_values)
{
    static const struct {
        float f;
        uint16_t h;
    } known[] = {{0, 0},
                 {-0.0f, 0x8000},
                 {1, 0x3c00},
                 {-2, 0xc000},
                 {65504, 0x7bff},
                 {65519.99f, 0x7bff},
                 {65520, 0x7c00},
                 {1e30f, 0x7c00},
                 {-INFINITY, 0xfc00},
                 {0x1p-24f, 1},
                 {0x1p-25f, 0},
                 {0x1.8p-24f, 2},
                 {0x1.000002p-25f, 1},
                 {0x1p-14f, 0x400},
                 {1 + 0x1p-11f, 0x3c00},
                 {1 + 0x3p-11f, 0x3c02},
                 {0x1.ff8p-15f, 0x3ff},
                 {0x1.ffcp-15f, 0x400}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        CHECK_MSG(tn_f32_to_f16(known[i].f) == known[i].h, "%a is %04x, want %04x",
                  (double)known[i].f, tn_f32_to_f16(known[i].f), known[i].h);
    for (uint32_t h = 0; h < 65536; h++) {
        const float f = tn_f16_to_f32((uint16_t)h);
        if (isnan(f)) CHECK((h & 0x7c00) == 0x7c00 && (tn_f32_to_f16(f) & 0x7e00) == 0x7e00);
        else CHECK_INT(tn_f32_to_f16(f), h);
        const float b = tn_bf16_to_f32((uint16_t)h);
        if (!isnan(b)) CHECK_INT(tn_f32_to_bf16(b), h);
    }
    CHECK_INT(tn_f32_to_bf16(1 + 0x1p-8f), 0x3f80);
    CHECK_INT(tn_f32_to_bf16(1 + 0x3p-8f), 0x3f82);
    CHECK_INT(tn_f32_to_bf16(FLT_MAX), 0x7f80);
    CHECK(isnan(tn_bf16_to_f32(tn_f32_to_bf16(tn_f32_from_bits(0x7f800001)))));
}

TEST(to_f16_levels_agree)
{
    enum { N = 1003 };
    static float x[N];
    static uint16_t y[LEVELS][N + 1];
    const int levels = n_levels(); /* once: asking a virtual CPU is slow */
    uint64_t seed = 5;
    for (int r = 0; r < 300; r++) {
        for (int i = 0; i < N; i++) x[i] = tn_f32_from_bits((uint32_t)test_rand(&seed));
        for (int l = 0; l < levels; l++) {
            const tn_kernels k = table(l);
            y[l][N] = 0xabcd;
            k.to_f16(y[l], x, N);
            CHECK_INT(y[l][N], 0xabcd);
        }
        for (int i = 0; i < N; i++) {
            CHECK_INT(y[0][i], tn_f32_to_f16(x[i]));
            for (int l = 1; l < levels; l++) CHECK_INT(y[l][i], y[0][i]);
        }
    }
}

/* ---- quantisation ---------------------------------------------------------------------------- */

/* Scale and quants of one block as kernels.h defines them, from the definition in double. */
static void check_q8_0(const tn_block_q8_0 *y, const float *x)
{
    double amax = 0;
    bool finite = true;
    for (int i = 0; i < 32; i++) {
        if (!(fabs((double)x[i]) < 127.0 * 65520)) finite = false;
        if (fabs((double)x[i]) > amax) amax = fabs((double)x[i]);
    }
    const double d = (double)tn_f16_to_f32(y->d), step = amax / 127;
    if (finite) CHECK_NEAR(d, step, step / 2047 + 0x1.1p-25);
    else CHECK(isnan(d));
    for (int i = 0; i < 32; i++) {
        if (!finite || d == 0) {
            CHECK_INT(y->qs[i], 0);
            continue;
        }
        const double q = (double)x[i] / d, want = q > 127 ? 127 : q < -127 ? -127 : q;
        CHECK_NEAR((double)y->qs[i], want, 0.5 + 1e-4);
    }
}

static void q8_0_both(tn_block_q8_0 out[LEVELS][8], const float *x)
{
    for (int l = 0; l < n_levels(); l++) {
        const tn_kernels k = table(l);
        memset(out[l], 0x5a, 8 * sizeof out[l][0]);
        k.to_q8_0(out[l], x, 7 * 32);
        CHECK_INT(out[l][7].d, 0x5a5a);
        for (int b = 0; b < 7; b++) {
            check_q8_0(&out[l][b], x + 32 * b);
            CHECK_MSG(memcmp(&out[l][b], &out[0][b], sizeof out[l][b]) == 0,
                      "level %d differs from scalar in block %d", l, b);
        }
    }
}

TEST(to_q8_0)
{
    tn_block_q8_0 q[LEVELS][8];
    float x[7 * 32];
    uint64_t seed = 11;
    for (int r = 0; r < 2000; r++) {
        fill(x, 7 * 32, r % 4, &seed);
        if (r % 3 == 0) /* scales around float16's subnormals */
            for (int i = 0; i < 7 * 32; i++) x[i] *= powf(2, (float)(-8 - r % 17));
        q8_0_both(q, x);
    }
}

TEST(to_q8_0_ties_and_limits)
{
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN, 127 * 65520.0f, -FLT_MAX};
    tn_block_q8_0 q[LEVELS][8];
    float x[7 * 32] = {0};
    for (int i = 32; i < 64; i++) x[i] = i % 2 ? 127 : 2.5f; /* ties go to even: 2 */
    for (int i = 64; i < 96; i++) x[i] = i % 2 ? -127 : -3.5f;
    for (int i = 96; i < 128; i++) x[i] = 127 * 65000.0f;
    for (int i = 128; i < 160; i++) x[i] = 127 * 0x1.4p-24f; /* d is rounded down: q would be 159 */
    q8_0_both(q, x);
    for (int i = 0; i < 32; i++) {
        CHECK_INT(q[0][0].qs[i], 0);
        CHECK_INT(q[0][1].qs[i], i % 2 ? 127 : 2);
        CHECK_INT(q[0][2].qs[i], i % 2 ? -127 : -4);
        CHECK_INT(q[0][3].qs[i], 127);
        CHECK_INT(q[0][4].qs[i], 127);
    }
    CHECK_INT(q[0][0].d, 0);
    for (size_t v = 0; v < sizeof bad / sizeof *bad; v++)
        for (int at = 0; at < 32; at++) {
            for (int i = 0; i < 7 * 32; i++) x[i] = (float)i;
            x[64 + at] = bad[v];
            q8_0_both(q, x);
            CHECK(isnan(tn_f16_to_f32(q[0][2].d)) && isfinite(tn_f16_to_f32(q[0][3].d)));
        }
}

static void check_block(const tn_q8 *q, const float *x)
{
    double amax[2] = {0, 0};
    for (int i = 0; i < 32; i++)
        if (fabs((double)x[i]) > amax[i / 16]) amax[i / 16] = fabs((double)x[i]);
    const double top = amax[0] > amax[1] ? amax[0] : amax[1];
    if (top < 127.0 * 127 * FLT_MIN) { /* too small for a scale: zeros */
        if (q->d != 0) CHECK_NEAR(q->d, top / 127 / 127, FLT_MIN);
        else for (int i = 0; i < 32; i++) CHECK_INT(q->q[i], 0);
        return;
    }
    CHECK_NEAR((double)q->d, top / 127 / 127, 2e-7 * top / 127 / 127);
    for (int h = 0; h < 2; h++) {
        const double step = (double)q->d * q->m[h];
        int sum = 0;
        CHECK(q->m[h] >= 1 && q->m[h] <= 127);
        if (amax[h] == top) CHECK_INT(q->m[h], 127);
        CHECK(step * 127 >= amax[h] * (1 - 1e-6));           /* nothing clips */
        CHECK((step - (double)q->d) * 127 <= amax[h] * (1 + 1e-6)); /* and no step is too large */
        for (int i = 16 * h; i < 16 * h + 16; i++) {
            CHECK_NEAR(step * q->q[i], (double)x[i], step * (0.5 + 1e-4));
            CHECK(q->q[i] >= -127);
            sum += q->q[i];
        }
        CHECK_NEAR((double)q->s[h], step * sum, 3e-7 * fabs(step * sum));
    }
}

static bool same_bits(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (tn_f32_bits(a[i]) != tn_f32_bits(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}
static bool same_block(const tn_q8 *a, const tn_q8 *b)
{
    return memcmp(a->q, b->q, 32) == 0 && memcmp(a->m, b->m, sizeof a->m) == 0 &&
           same_bits(&a->d, &b->d, 1) && same_bits(a->s, b->s, 2);
}

/* Of eight blocks at once there are two, and one block is left; the special ones come first. */
enum { BLOCKS = 17 };

static void quantize_both(tn_q8 out[LEVELS][BLOCKS + 1], const float *x)
{
    for (int l = 0; l < n_levels(); l++) {
        const tn_kernels k = table(l);
        memset(out[l], 0x5a, (BLOCKS + 1) * sizeof out[l][0]);
        k.quantize(out[l], x, BLOCKS * 32);
        CHECK_INT(out[l][BLOCKS].q[0], 0x5a);
        for (int b = 0; b < BLOCKS; b++)
            CHECK_MSG(same_block(&out[l][b], &out[0][b]),
                      "level %d differs from scalar in block %d", l, b);
    }
}

TEST(quantize_random_and_extreme)
{
    tn_q8 q[LEVELS][BLOCKS + 1];
    float x[BLOCKS * 32];
    uint64_t seed = 9;
    for (int r = 0; r < 2000; r++) {
        fill(x, BLOCKS * 32, r % 4, &seed);
        if (r % 5 == 0) /* halves of different size */
            for (int i = 0; i < BLOCKS * 32; i++) x[i] *= i / 16 % 2 ? 1e-3f : 1;
        quantize_both(q, x);
        for (int b = 0; b < BLOCKS; b++) check_block(&q[0][b], x + 32 * b);
    }
}

/* Where a product with the reciprocal of the step may round to the other side. */
TEST(quantize_near_ties)
{
    tn_q8 q[LEVELS][BLOCKS + 1];
    float x[BLOCKS * 32];
    uint64_t seed = 10;
    for (int r = 0; r < 300; r++) {
        const float unit = (float)exp2((double)(r % 40) - 20) * (1 + (float)(r % 7) / 8);
        for (int i = 0; i < BLOCKS * 32; i++) {
            const float half = (float)((int)(test_rand(&seed) % 254) - 127) + 0.5f;
            const float off = (float)((int)(test_rand(&seed) % 9) - 4) * 0x1p-24f;
            x[i] = i % 16 ? half * unit * (1 + (i / 32 % 8 == r % 8 ? off : 0.01f)) : 127 * unit;
        }
        quantize_both(q, x);
    }
}

TEST(quantize_zeros_ties_and_limits)
{
    tn_q8 q[LEVELS][BLOCKS + 1];
    float x[BLOCKS * 32] = {0};
    for (int i = 32; i < 64; i++) x[i] = i % 2 ? 127 : 0.5f; /* ties go to even: 0 */
    for (int i = 64; i < 96; i++) x[i] = i % 2 ? -127 : 1.5f;
    for (int i = 96; i < 128; i++) x[i] = FLT_MAX;
    for (int i = 128; i < 160; i++) x[i] = i < 144 ? 1e-30f : 1e30f;
    for (int i = 160; i < 192; i++) x[i] = i % 2 ? -1e-45f : 1e-38f;
    x[192] = 1;
    quantize_both(q, x);
    for (int i = 0; i < 32; i++) {
        CHECK_INT(q[0][0].q[i], 0);
        CHECK_INT(q[0][1].q[i], i % 2 ? 127 : 0);
        CHECK_INT(q[0][2].q[i], i % 2 ? -127 : 2);
        CHECK_INT(q[0][3].q[i], 127);
        CHECK_INT(q[0][4].q[i], i < 16 ? 0 : 127);
        CHECK_INT(q[0][5].q[i], 0);
    }
    for (int b = 0; b <= 5; b += 5) {
        CHECK(q[0][b].d == 0 && q[0][b].s[0] == 0 && q[0][b].s[1] == 0);
        CHECK(q[0][b].m[0] == 1 && q[0][b].m[1] == 1);
    }
    CHECK_INT(q[0][4].m[0], 1);
    CHECK(q[0][6].m[0] == 127 && q[0][6].m[1] == 1 && q[0][6].q[0] == 127);
}

TEST(quantize_not_finite)
{
    tn_q8 q[LEVELS][BLOCKS + 1];
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    for (int v = 0; v < 4; v++)
        for (int at = 0; at < 32; at++) {
            float x[BLOCKS * 32];
            for (int i = 0; i < BLOCKS * 32; i++) x[i] = (float)i;
            x[64 + at] = bad[v];
            quantize_both(q, x);
            CHECK(isnan(q[0][2].d) && isnan(q[0][2].s[0]) && isnan(q[0][2].s[1]));
            CHECK(isfinite(q[0][1].d) && isfinite(q[0][3].d));
        }
}

/* ---- float operations ------------------------------------------------------------------------ */

TEST(rms_norm)
{
    uint64_t seed = 1;
    float x[MAX_N], w[MAX_N], y[MAX_N + 2 * PAD];
    for (int l = 0; l < n_levels(); l++)
        for (int kind = 0; kind < 4; kind++) FOR_SIZES(n) for (int mode = 0; mode < 3; mode++) {
            const tn_kernels k = table(l);
            fill(x, (int64_t)n, kind, &seed);
            fill(w, (int64_t)n, 0, &seed);
            guard(y, (int64_t)n);
            if (mode == 2) memcpy(y + PAD, x, n * sizeof(float)); /* in place */
            k.rms_norm(y + PAD, mode == 2 ? y + PAD : x, mode == 1 ? NULL : w, (int64_t)n, 1e-5f);
            check_guard(y, (int64_t)n);
            double sum = 0;
            for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
            for (size_t i = 0; i < n; i++) {
                const double want = (double)x[i] / sqrt(sum / (double)n + (double)1e-5f) *
                                    (mode == 1 ? 1 : (double)w[i]);
                CHECK_NEAR((double)y[PAD + i], want, 3e-7 * fabs(want) + 1e-37);
            }
        }
    x[0] = FLT_MAX, x[1] = 1; /* the sum of squares overflows float32 */
    for (int l = 0; l < n_levels(); l++) {
        const tn_kernels k = table(l);
        k.rms_norm(y, x, NULL, 2, 0);
        CHECK_NEAR((double)y[0], sqrt(2), 1e-6);
    }
}

static double activation(double x, tn_activation act)
{
    if (act == TN_ACT_SILU) return x / (1 + exp(-x));
    const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    return x / (1 + exp(-2 * u)); /* the same as 0.5 x (1 + tanh u), without cancellation */
}

TEST(glu)
{
    static const float extreme[] = {0,        -0.0f,  88,      -88,   -87.5f, 100,
                                    -100,     1e4f,   -1e4f,   1e30f, -1e30f, FLT_MAX,
                                    -FLT_MAX, 1e-40f, -1e-30f, -10,   -9.5f,  1e-5f};
    uint64_t seed = 2;
    float g[MAX_N], up[MAX_N], y[MAX_N + 2 * PAD];
    for (int l = 0; l < n_levels(); l++)
        for (int act = 0; act < 2; act++) FOR_SIZES(n) for (int kind = 0; kind < 5; kind++) {
            const tn_kernels k = table(l);
            fill(g, (int64_t)n, kind % 4, &seed);
            fill(up, (int64_t)n, 0, &seed);
            for (size_t i = 0; kind == 4 && i < n; i++)
                g[i] = extreme[i % (sizeof extreme / sizeof *extreme)], up[i] = 0.5f;
            guard(y, (int64_t)n);
            memcpy(y + PAD, g, n * sizeof(float));
            k.glu(y + PAD, up, (int64_t)n, (tn_activation)act);
            check_guard(y, (int64_t)n);
            for (size_t i = 0; i < n; i++) {
                /* The scalar definition's 1 + tanh loses what is below 1e-16 |x|. */
                const double a = activation((double)g[i], (tn_activation)act),
                             want = a * (double)up[i];
                const double x = fabs((double)g[i] * (double)up[i]);
                const double rel =
                    act == TN_ACT_GELU && g[i] < 0 ? 1e-6 * (1 + (double)g[i] * g[i]) : 1e-6;
                CHECK_MSG(fabs((double)y[PAD + i] - want) <= rel * fabs(want) + 2e-16 * x + 1e-36,
                          "level %d act %d: %.9g of %.9g, want %.9g", l, act, (double)y[PAD + i],
                          (double)g[i], want);
            }
        }
    for (int l = 0; l < n_levels(); l++) {
        float v[9] = {1, NAN, 1, 1, 1, 1, 1, 1, NAN}, one[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
        const tn_kernels k = table(l);
        k.glu(v, one, 9, TN_ACT_SILU);
        CHECK(isnan(v[1]) && isnan(v[8]) && !isnan(v[0]));
    }
}

TEST(softmax)
{
    uint64_t seed = 3;
    float x[MAX_N], y[MAX_N + 2 * PAD];
    for (int l = 0; l < n_levels(); l++)
        for (int kind = 0; kind < 5; kind++) FOR_SIZES(n) {
            const tn_kernels k = table(l);
            fill(x, (int64_t)n, kind % 4, &seed);
            for (size_t i = 0; kind == 4 && i < n; i++)
                x[i] = i % 3 ? -INFINITY : 60 * test_randf(&seed);
            guard(y, (int64_t)n);
            memcpy(y + PAD, x, n * sizeof(float));
            k.softmax(y + PAD, (int64_t)n);
            check_guard(y, (int64_t)n);
            double max = -INFINITY, sum = 0, total = 0;
            for (size_t i = 0; i < n; i++) max = fmax(max, (double)x[i]);
            for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
            for (size_t i = 0; i < n; i++) {
                /* x - max rounds; the error of the difference multiplies the result. */
                const double want = exp((double)x[i] - max) / sum, gap = max - (double)x[i];
                CHECK_NEAR((double)y[PAD + i], want,
                           want * (5e-7 + (gap < 200 ? gap : 0) * 1e-7) + 2e-38);
                total += (double)y[PAD + i];
            }
            CHECK_NEAR(total, 1, 1e-5);
        }
    for (int l = 0; l < n_levels(); l++) {
        const tn_kernels k = table(l);
        for (int i = 0; i < 11; i++) y[i] = -INFINITY;
        k.softmax(y, 11);
        for (int i = 0; i < 11; i++) CHECK(y[i] == 0);
        for (int i = 0; i < 11; i++) y[i] = i == 4 ? NAN : 1;
        k.softmax(y, 11);
        for (int i = 0; i < 11; i++) CHECK(isnan(y[i]));
        for (int i = 0; i < 11; i++) y[i] = i == 4 ? FLT_MAX : -FLT_MAX;
        k.softmax(y, 11);
        for (int i = 0; i < 11; i++) CHECK(y[i] == (i == 4));
    }
}

TEST(rope)
{
    static const int32_t dims[][2] = {{2, 2},   {8, 8},   {16, 10},   {64, 64}, {80, 20},
                                      {80, 80}, {96, 38}, {128, 128}, {256, 64}};
    uint64_t seed = 4;
    float x[MAX_N], y[MAX_N + 2 * PAD], cs[256];
    for (int l = 0; l < n_levels(); l++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            for (int style = TN_ROPE_NONE; style <= TN_ROPE_NEOX; style++)
                for (int32_t heads = 1; heads <= 3; heads++) {
                    const tn_kernels k = table(l);
                    const int32_t dim = dims[d][0], n_rot = dims[d][1], n = heads * dim;
                    fill(x, n, 0, &seed);
                    fill(cs, n_rot, 0, &seed);
                    guard(y, n);
                    memcpy(y + PAD, x, (size_t)n * sizeof(float));
                    k.rope(y + PAD, heads, dim, n_rot, (tn_rope_style)style, cs);
                    check_guard(y, n);
                    for (int32_t i = 0; i < n; i++) {
                        const int32_t e = i % dim, base = i - e;
                        double want = (double)x[i], tol = 0;
                        if (style != TN_ROPE_NONE && e < n_rot) {
                            const bool norm = style == TN_ROPE_NORM;
                            const int32_t pair = norm ? e / 2 : e % (n_rot / 2);
                            const bool second = norm ? e % 2 : e >= n_rot / 2;
                            const double a = (double)x[base + (norm ? 2 * pair : pair)];
                            const double b =
                                (double)x[base + (norm ? 2 * pair + 1 : pair + n_rot / 2)];
                            const double c = (double)cs[2 * pair], s = (double)cs[2 * pair + 1];
                            want = second ? a * s + b * c : a * c - b * s;
                            tol = 2e-7 * (fabs(a) + fabs(b)) * (fabs(c) + fabs(s));
                        }
                        CHECK_NEAR((double)y[PAD + i], want, tol);
                    }
                }
}

TEST(add_and_axpy)
{
    uint64_t seed = 6;
    float x[MAX_N], y[MAX_N], r[MAX_N + 2 * PAD];
    for (int l = 0; l < n_levels(); l++)
        for (int kind = 0; kind < 4; kind++) FOR_SIZES(n) for (int axpy = 0; axpy < 2; axpy++) {
            const tn_kernels k = table(l);
            const float a = test_randf(&seed);
            fill(x, (int64_t)n, kind, &seed);
            fill(y, (int64_t)n, kind, &seed);
            guard(r, (int64_t)n);
            memcpy(r + PAD, y, n * sizeof(float));
            if (axpy) k.axpy(r + PAD, x, a, (int64_t)n);
            else k.add(r + PAD, x, (int64_t)n);
            check_guard(r, (int64_t)n);
            for (size_t i = 0; i < n; i++) {
                const double t = (double)x[i] * (axpy ? (double)a : 1);
                CHECK_NEAR((double)r[PAD + i], (double)y[i] + t,
                           1.3e-7 * (fabs(t) + fabs((double)y[i])) + 1e-44);
            }
        }
}

/* ---- timing ---------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define BENCH(name, call)                                                                          \
    do {                                                                                           \
        double t = now();                                                                          \
        for (int r = 0; r < (l ? 5000 : 300); r++) call;                                           \
        printf("%-10s %s %8.2f us for 4096\n", name, l ? "avx2  " : "scalar",                      \
               (now() - t) * 1e6 / (l ? 5000 : 300));                                              \
    } while (0)

static int bench_all(void)
{
    enum { N = 4096 };
    static float x[N], y[N], w[N], z[N];
    static tn_q8 q[N / 32];
    static uint16_t h[N];
    uint64_t seed = 1;
    fill(x, N, 0, &seed), fill(w, N, 0, &seed);
    for (int l = 0; l < n_levels(); l++) {
        const tn_kernels k = table(l);
        BENCH("quantize", k.quantize(q, x, N));
        BENCH("rms_norm", k.rms_norm(y, x, w, N, 1e-5f));
        BENCH("silu", (memcpy(z, x, sizeof z), k.glu(z, w, N, TN_ACT_SILU)));
        BENCH("gelu", (memcpy(z, x, sizeof z), k.glu(z, w, N, TN_ACT_GELU)));
        BENCH("softmax", (memcpy(z, x, sizeof z), k.softmax(z, N)));
        BENCH("rope neox", k.rope(x, 32, 128, 128, TN_ROPE_NEOX, w));
        fill(x, N, 0, &seed);
        BENCH("rope norm", k.rope(x, 32, 128, 128, TN_ROPE_NORM, w));
        fill(x, N, 0, &seed);
        BENCH("add", k.add(y, x, N));
        BENCH("to_f16", k.to_f16(h, x, N));
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench_all();
    return tn_test_main(argc, argv);
}
