/* Attention of every level against a naive softmax in double precision over many shapes. What a
 * kernel must not read (later positions of a page, pages outside the window) holds NaN or is NULL.
 * `test_attend --bench` times the kernels instead. */
#include "harness.h"
#include "kernel_cases.h"

#include "../gguf/blocks.h"
#include "../kernels/f16.h"
#include "../kernels/kernels.h"

#include <time.h>

typedef struct shape {
    uint32_t type;
    int32_t page, n_head, n_head_kv, dim_k, dim_v, window;
    float softcap;
    int64_t n, pos0, chunk;
} shape;

typedef struct fixture {
    tn_attend a;
    void **pages[2];                  /* K, V */
    guarded *memory[2];               /* of the pages, which end where nothing can be read */
    int64_t n_pages, len;             /* len: positions that exist */
    float *q, *out, *partial, *kv[2]; /* kv: the cache's values, [n_head_kv][len][dim] */
    float sharp;                      /* factor on the scores, and so on their rounding errors */
    double *want, *scale;             /* [n][n_head][dim_v]; scale: sum of weight * |v| */
    size_t n_out, n_partial;
} fixture;

static const float CANARY = 12345.5f;

static const char *const level_names[] = {"scalar", "avx2", "avx512", "avx512+vnni"};

/* Levels of this CPU. */
static int n_levels(void)
{
    const unsigned isa = tn_isa_detect();
    return isa & TN_ISA_VNNI512 ? 4 : isa & TN_ISA_AVX512 ? 3 : isa & TN_ISA_AVX2 ? 2 : 1;
}

static tn_kernels table(int level)
{
    tn_kernels k = {0};
    tn_kernels_scalar_ops(&k);
    if (level >= 1) {
        tn_kernels_avx2_ops(&k);
        tn_kernels_avx2_attend(&k);
    }
    if (level >= 3) k.isa = TN_ISA_VNNI512;
    if (level >= 2) tn_kernels_avx512_attend(&k);
    return k;
}

static const char *type_name(const shape *s)
{
    return s->type == TN_TYPE_F16 ? "f16" : s->type == TN_TYPE_F32 ? "f32" : "q8_0";
}

/* Bytes of `count` elements of the cache. */
static size_t bytes_of(const shape *s, size_t count)
{
    if (s->type == TN_TYPE_Q8_0) return count / 32 * sizeof(tn_block_q8_0);
    return count * (s->type == TN_TYPE_F16 ? 2 : 4);
}

/* Element d at position `slot` of a head's part of a page as the cache can hold it, near x; a
 * block's scale comes with its first one. Units of 16 positions: see tn_kv_view. */
static float store(const shape *s, void *part, int which, int64_t slot, int32_t d, float x)
{
    const size_t dim = (size_t)(which ? s->dim_v : s->dim_k), e = (size_t)d, i = (size_t)slot % 16;
    uint8_t *unit = (uint8_t *)part + (size_t)slot / 16 * bytes_of(s, 16 * dim);
    const size_t at = which ? i * dim + e : e * 16 + i;
    if (s->type == TN_TYPE_F32) return ((float *)(void *)unit)[at] = x;
    uint16_t *half = (uint16_t *)(void *)unit;
    if (s->type == TN_TYPE_F16) return tn_f16_to_f32(half[at] = tn_f32_to_f16(x));
    half += e / 32 * 16 + i;
    if (d % 32 == 0) *half = tn_f32_to_f16(isnan(x) ? x : (1 + (float)fabs((double)x)) / 250);
    const int q = isnan(x) ? 1 : (int)(127 * x);
    if (which)
        unit[dim + i / 4 * 4 * dim + 4 * e + i % 4] = (uint8_t)(int8_t)q;
    else
        unit[dim + e / 4 * 64 + 4 * i + e % 4] = (uint8_t)(q + 128);
    return tn_f16_to_f32(*half) * (float)q;
}

/* Pages of one of K and V; positions outside what is visible get NaN, pages wholly outside NULL. */
static void **make_pages(const shape *s, int which, int64_t len, float *values, guarded *memory,
                         uint64_t *seed)
{
    const int32_t dim = which ? s->dim_v : s->dim_k;
    const int64_t n_pages = (len + s->page - 1) / s->page;
    const int64_t first = s->window > 0 && s->pos0 + 1 > s->window ? s->pos0 + 1 - s->window : 0;
    void **pages = calloc((size_t)n_pages, sizeof *pages);
    for (int64_t p = 0; p < n_pages; p++) {
        if ((p + 1) * s->page <= first) continue;
        const size_t count = (size_t)s->n_head_kv * (size_t)s->page * (size_t)dim;
        memory[p] = guarded_new(bytes_of(s, count), 2);
        void *page = pages[p] = memory[p].data;
        for (size_t i = 0; i < count; i++) {
            const int64_t slot = (int64_t)(i / (size_t)dim) % s->page, pos = p * s->page + slot;
            const int64_t head = (int64_t)(i / (size_t)dim) / s->page;
            const int32_t d = (int32_t)(i % (size_t)dim);
            float x = pos < first || pos >= len ? NAN : test_randf(seed);
            x = store(s, (char *)page + bytes_of(s, (size_t)head * s->page * dim), which, slot, d,
                      x);
            if (pos < len) values[(head * len + pos) * dim + d] = x;
        }
    }
    return pages;
}

/* The definition in double: softmax(scale * q.k), capped, over the keys in sight. */
static void reference(const shape *s, const fixture *f, int64_t t, int32_t h)
{
    const int64_t p = s->pos0 + t, lo = s->window > 0 && p + 1 > s->window ? p + 1 - s->window : 0;
    const int32_t kv = h / (s->n_head / s->n_head_kv);
    const float *q = f->q + t * f->a.q_stride + (int64_t)h * s->dim_k;
    double *w = malloc((size_t)(p + 1) * sizeof *w), max = -INFINITY, sum = 0;
    for (int64_t j = lo; j <= p; j++) {
        w[j] = 0;
        for (int32_t i = 0; i < s->dim_k; i++)
            w[j] += (double)q[i] * f->kv[0][(kv * f->len + j) * s->dim_k + i];
        w[j] *= (double)f->a.scale;
        if (s->softcap > 0) w[j] = s->softcap * tanh(w[j] / s->softcap);
        if (w[j] > max) max = w[j];
    }
    for (int64_t j = lo; j <= p; j++)
        sum += w[j] = exp(w[j] - max);
    for (int32_t i = 0; i < s->dim_v; i++) {
        const size_t at =
            ((size_t)t * (size_t)s->n_head + (size_t)h) * (size_t)s->dim_v + (size_t)i;
        f->want[at] = f->scale[at] = 0;
        for (int64_t j = lo; j <= p; j++) {
            const double x = w[j] / sum * (double)f->kv[1][(kv * f->len + j) * s->dim_v + i];
            f->want[at] += x;
            f->scale[at] += fabs(x);
        }
    }
    free(w);
}

static void make(fixture *f, const shape *s, float sharp, bool with_reference)
{
    uint64_t seed = (uint64_t)(s->dim_k * 131 + s->n * 17 + s->pos0 + s->n_head);
    memset(f, 0, sizeof *f);
    f->sharp = sharp;
    f->len = s->pos0 + s->n;
    for (int i = 0; i < 2; i++) {
        const size_t dim = (size_t)(i ? s->dim_v : s->dim_k);
        f->kv[i] = calloc((size_t)s->n_head_kv * (size_t)f->len * dim, sizeof(float));
        f->memory[i] = calloc((size_t)((f->len + s->page - 1) / s->page), sizeof(guarded));
        f->pages[i] = make_pages(s, i, f->len, f->kv[i], f->memory[i], &seed);
    }
    f->n_pages = (f->len + s->page - 1) / s->page;
    tn_attend *a = &f->a;
    a->kv =
        (tn_kv_view){s->type, s->page, s->n_head_kv, s->dim_k, s->dim_v, f->pages[0], f->pages[1]};
    a->q_stride = (int64_t)s->n_head * s->dim_k + 3;
    a->out_stride = (int64_t)s->n_head * s->dim_v + 5;
    a->n = s->n;
    a->pos0 = s->pos0;
    a->n_head = s->n_head;
    a->scale = 3.0f / sqrtf((float)s->dim_k) * sharp;
    a->softcap = s->softcap;
    a->window = s->window;
    a->chunk = s->chunk;
    a->n_chunks = s->chunk ? (f->len + s->chunk - 1) / s->chunk : 0;
    f->n_out = (size_t)(s->n * a->out_stride);
    f->n_partial = (size_t)(s->n * s->n_head * a->n_chunks * (2 + s->dim_v));
    f->q = malloc((size_t)(s->n * a->q_stride) * sizeof(float));
    f->out = malloc((f->n_out + 16) * sizeof(float));
    f->partial = malloc((f->n_partial + 16) * sizeof(float));
    for (int64_t i = 0; i < s->n * a->q_stride; i++)
        f->q[i] = 2 * test_randf(&seed);
    f->want = calloc((size_t)s->n * (size_t)s->n_head * (size_t)s->dim_v, sizeof(double));
    f->scale = calloc((size_t)s->n * (size_t)s->n_head * (size_t)s->dim_v, sizeof(double));
    a->q = f->q;
    a->out = f->out + 8;
    a->partial = f->partial + 8;
    for (int64_t t = 0; with_reference && t < s->n; t++)
        for (int32_t h = 0; h < s->n_head; h++)
            reference(s, f, t, h);
}

static void drop(fixture *f)
{
    for (int i = 0; i < 2; i++) {
        for (int64_t p = 0; p < f->n_pages; p++)
            if (f->pages[i][p]) guarded_free(&f->memory[i][p]);
        free(f->memory[i]);
        free(f->pages[i]);
        free(f->kv[i]);
    }
    free(f->q), free(f->out), free(f->partial), free(f->want), free(f->scale);
}

/* All items of one call, in tiles of `tile` tokens. */
static void run(const tn_kernels *k, const tn_attend *a, int64_t tile, void *scratch)
{
    for (int32_t h = 0; h < a->kv.n_head_kv; h++)
        for (int64_t t = 0; t < a->n; t += tile)
            for (int64_t c = 0; c < (a->chunk ? a->n_chunks : 1); c++)
                k->attend(a, h, t, t + tile < a->n ? t + tile : a->n, c, scratch);
    for (int64_t t = 0; a->chunk && t < a->n; t++)
        for (int32_t h = 0; h < a->n_head; h++)
            k->attend_join(a, t, h);
}

/* coarse: what is multiplied had 16 bits, and is as exact as the largest of it, of an F16 cache as
 * the norm of vectors; |v| is at most 1. */
static bool compare(const shape *s, const fixture *f, const char *level, bool coarse)
{
    for (size_t i = 0; i < 8; i++)
        if (f->out[i] != CANARY || f->out[f->n_out + 8 + i] != CANARY || f->partial[i] != CANARY ||
            f->partial[f->n_partial + 8 + i] != CANARY) {
            FAIL("%s: canary overwritten", level);
            return false;
        }
    for (int64_t t = 0; t < s->n; t++)
        for (int64_t i = 0; i < f->a.out_stride; i++) {
            const double got = (double)f->a.out[t * f->a.out_stride + i];
            if (i >= (int64_t)s->n_head * s->dim_v) {
                if (got == (double)CANARY) continue;
                FAIL("%s: wrote between rows", level);
                return false;
            }
            const int64_t at = t * s->n_head * s->dim_v + i;
            /* A score is a float sum of dim_k terms; its error multiplies the weight. */
            const double tol = 4e-6 * (s->dim_k > 128 ? s->dim_k / 128.0 : 1) * (double)f->sharp;
            const double fine = tol * f->scale[at] + 1e-9;
            /* |q| |k| of an F16 cache grow with their dims */
            const double norms = 2.5e-4 + 4e-5 * sqrt(s->dim_k);
            const double rough = (s->type == TN_TYPE_F16 ? norms : 2e-4) * (double)f->sharp;
            const double most = coarse ? rough : fine;
            if (!(fabs(got - f->want[at]) <= most)) {
                FAIL("%s token %lld element %lld: %.9g, want %.9g", level, (long long)t,
                     (long long)i, got, f->want[at]);
                return false;
            }
        }
    return true;
}

/* Vector kernels multiply a Q8_0 cache in integers, and those with VNNI many rows with an F16 one.
 */
static bool in_integers(const shape *s, int level, int64_t tile)
{
    if (s->type == TN_TYPE_Q8_0) return level > 0;
    return s->type == TN_TYPE_F16 && level == 3 && tile > 1 && s->n > 1;
}

static void check_sharp(const shape *s, float sharp)
{
    fixture f;
    void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES + 64);
    unsigned char *guard = (unsigned char *)scratch + TN_SCRATCH_BYTES;
    make(&f, s, sharp, true);
    for (int level = 0; level < n_levels(); level++)
        for (int i_tile = 0; i_tile < 3; i_tile++) {
            static const int64_t tiles[] = {TN_ATTEND_TILE, 5, 1};
            const int64_t tile = tiles[i_tile];
            const tn_kernels k = table(level);
            memset(scratch, 0xff, TN_SCRATCH_BYTES + 64);
            for (size_t i = 0; i < f.n_out + 16; i++)
                f.out[i] = CANARY;
            for (size_t i = 0; i < f.n_partial + 16; i++)
                f.partial[i] = CANARY;
            run(&k, &f.a, tile, scratch);
            const bool coarse = in_integers(s, level, tile);
            if (!compare(s, &f, level_names[level], coarse))
                FAIL("type %u page %d heads %d/%d dims %d/%d window %d cap %g n %lld pos0 %lld "
                     "chunk %lld tile %lld",
                     s->type, s->page, s->n_head, s->n_head_kv, s->dim_k, s->dim_v, s->window,
                     (double)s->softcap, (long long)s->n, (long long)s->pos0, (long long)s->chunk,
                     (long long)tile);
            for (int i = 0; i < 64; i++)
                CHECK(guard[i] == 0xff);
        }
    drop(&f);
    free(scratch);
}

static void check(const shape *s)
{
    check_sharp(s, 1);
}

TEST(head_dims_and_groups)
{
    static const int32_t dims[] = {16, 24, 64, 80, 96, 128, 256, 20, 512};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (int32_t group = 1; group <= 8; group++)
            for (int f16 = 0; f16 < 2; f16++) {
                shape s = {.type = f16 ? TN_TYPE_F16 : TN_TYPE_F32,
                           .page = group % 2 ? 16 : 256,
                           .n_head_kv = 1 + group % 2,
                           .dim_k = dims[d],
                           .dim_v = dims[d],
                           .n = 7,
                           .pos0 = 71 + 3 * group};
                s.n_head = s.n_head_kv * group;
                check(&s);
            }
}

TEST(q8_0_dims_and_groups)
{
    static const int32_t dims[] = {32, 64, 96, 128, 256, 1024};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (int32_t group = 1; group <= 8; group++)
            for (int64_t n = 1; n <= 7; n += 6) {
                shape s = {.type = TN_TYPE_Q8_0,
                           .page = group % 2 ? 16 : 256,
                           .n_head_kv = 1 + group % 2,
                           .dim_k = dims[d],
                           .dim_v = dims[group % 3 ? d : 1],
                           .n = n,
                           .pos0 = 71 + 3 * group};
                s.n_head = s.n_head_kv * group;
                check(&s);
            }
    check(&(shape){TN_TYPE_Q8_0, 16, 71, 1, 128, 128, 0, 0, 3, 70, 0});
}

TEST(q8_0_windows_caps_and_chunks)
{
    static const int32_t windows[] = {0, 1, 7, 16, 63, 100};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        for (int64_t n = 1; n <= 70; n += 23)
            for (int64_t chunk = 0; chunk <= 48; chunk += 24)
                check(&(shape){TN_TYPE_Q8_0, i % 2 ? 16 : 256, 4, 2, 32, 64, windows[i],
                               i % 3 == 1 ? 5.0f : 0, n, 133, chunk});
    check_sharp(&(shape){TN_TYPE_Q8_0, 16, 4, 2, 64, 64, 0, 0, 14, 150, 32}, 300);
}

TEST(different_key_and_value_dims)
{
    check(&(shape){TN_TYPE_F16, 16, 4, 2, 96, 64, 0, 0, 9, 40, 0});
    check(&(shape){TN_TYPE_F32, 16, 4, 1, 24, 136, 0, 0, 9, 40, 16});
    check(&(shape){TN_TYPE_F16, 16, 6, 2, 40, 20, 0, 0, 9, 40, 16});
}

TEST(every_number_of_tokens)
{
    for (int64_t n = 1; n <= 70; n++)
        check(&(shape){n % 2 ? TN_TYPE_F16 : TN_TYPE_F32, n % 3 ? 16 : 256, 6, 2, 32, 32, 0, 0, n,
                       n % 5 * 37, 0});
}

/* Windows smaller than, equal to and larger than tiles and pages. */
TEST(windows)
{
    static const int32_t windows[] = {1, 2, 7, 16, 17, 63, 64, 65, 100, 1000};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        for (int64_t n = 1; n <= 70; n += 23)
            for (int64_t chunk = 0; chunk <= 48; chunk += 24)
                check(&(shape){i % 2 ? TN_TYPE_F16 : TN_TYPE_F32, i % 3 ? 16 : 256, 4, 2, 16, 16,
                               windows[i], i % 4 == 1 ? 5.0f : 0, n, 133, chunk});
}

TEST(soft_caps)
{
    for (int64_t n = 1; n <= 40; n += 13) {
        check(&(shape){TN_TYPE_F16, 16, 4, 2, 64, 64, 0, 50, n, 90, 0});
        check(&(shape){TN_TYPE_F32, 16, 4, 1, 64, 64, 0, 0.5f, n, 90, 32});
    }
}

/* Differences of scores that overflow exp without the running maximum. */
TEST(large_scores)
{
    for (int64_t n = 1; n <= 40; n += 13)
        for (int64_t chunk = 0; chunk <= 32; chunk += 32)
            check_sharp(&(shape){TN_TYPE_F32, 16, 4, 2, 64, 64, 0, 0, n, 150, chunk}, 300);
}

/* Chunks of a page, of odd sizes, and chunks that some token does not see at all. */
TEST(chunks)
{
    static const int64_t chunks[] = {1, 7, 16, 64, 100, 256, 5000};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++)
        for (int64_t n = 1; n <= 33; n += 16)
            check(&(shape){i % 2 ? TN_TYPE_F16 : TN_TYPE_F32, i % 2 ? 256 : 16, 8, 2, 24, 24, 0, 0,
                           n, i % 3 ? 301 : 0, chunks[i]});
}

/* More rows than scratch holds at once. */
TEST(large_groups_and_dims)
{
    check(&(shape){TN_TYPE_F16, 16, 64, 1, 512, 512, 0, 0, 33, 20, 0});
    check(&(shape){TN_TYPE_F32, 16, 71, 1, 128, 128, 0, 0, 3, 70, 0});
    check(&(shape){TN_TYPE_F16, 16, 71, 1, 32, 32, 0, 0, 33, 20, 0});
}

/* Scores of -inf are not seen, a row of them gives 0; a NaN comes out as NaN. */
TEST(infinities_and_nan)
{
    const shape s = {TN_TYPE_F32, 16, 3, 1, 16, 16, 0, 0, 9, 60, 0};
    for (int level = 0; level < n_levels(); level++)
        for (int64_t tile = 1; tile <= 32; tile += 31)
            for (int64_t chunk = 0; chunk <= 16; chunk += 16) {
                fixture f;
                shape with = s;
                void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES);
                const tn_kernels k = table(level);
                with.chunk = chunk;
                make(&f, &with, 1, false);
                for (int64_t i = 0; i < s.n * f.a.q_stride; i++)
                    f.q[i] = 1;
                for (int64_t p = 0; p < f.len; p++) /* -inf for all keys but position 20 */
                    for (int i = 0; i < 16; i++)
                        ((float *)f.pages[0][p / 16])[i * 16 + p % 16] = p == 20 ? -1e37f : -3e38f;
                run(&k, &f.a, tile, scratch);
                for (int i = 0; i < 16; i++)
                    CHECK_NEAR(f.a.out[i], ((float *)f.pages[1][1])[4 * 16 + i], 0);
                for (int i = 0; i < 16; i++)
                    ((float *)f.pages[0][1])[i * 16 + 4] = -3e38f;
                run(&k, &f.a, tile, scratch);
                for (int i = 0; i < 48; i++)
                    CHECK_NEAR(f.a.out[i], 0, 0);
                ((float *)f.pages[0][1])[4] = NAN;
                run(&k, &f.a, tile, scratch);
                for (int i = 0; i < 48; i++)
                    CHECK(isnan(f.a.out[i]));
                drop(&f);
                free(scratch);
            }
}

/* A cache and queries `what` of which is no number, at position 20: comes out where it belongs. */
static void check_nan(const tn_kernels *k, const shape *s, int what)
{
    fixture f;
    const bool q8 = s->type == TN_TYPE_Q8_0;
    void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES);
    make(&f, s, 1, false);
    uint16_t *key = f.pages[0][1], *value = f.pages[1][1]; /* of positions 16 .. 31 */
    for (int64_t i = 0; what == 0 && i < s->n * f.a.q_stride; i++)
        f.q[i] = 0; /* even weights */
    if (what == 1) key[(q8 ? 0 : 40 * 16) + 20 % 16] = tn_f32_to_f16(NAN);
    if (what == 2) value[q8 ? 16 + 20 % 16 : 20 % 16 * 64 + 40] = tn_f32_to_f16(NAN);
    if (what == 3) f.q[64 + 40] = NAN;
    if (what == 4) f.q[64 + 40] = INFINITY;
    run(k, &f.a, TN_ATTEND_TILE, scratch);
    for (int64_t t = 0; t < s->n; t++)
        for (int i = 0; i < 3 * 64; i++) {
            const bool sees = s->pos0 + t >= 20, of = q8 ? i % 64 >= 32 : i % 64 == 40;
            const bool nan = (what == 1 && sees) || (what == 2 && sees && of) ||
                             (what >= 3 && t == 0 && i / 64 == 1);
            if (nan)
                CHECK(isnan(f.a.out[t * f.a.out_stride + i]));
            else
                CHECK(isfinite(f.a.out[t * f.a.out_stride + i]));
        }
    drop(&f);
    free(scratch);
}

static void check_nans(uint32_t type)
{
    const shape one = {type, 16, 3, 1, 64, 64, 0, 0, 1, 60, 0};
    const shape edge = {type, 16, 3, 1, 64, 64, 0, 0, 24, 8, 0};
    for (int level = 0; level < n_levels(); level++)
        for (int what = 0; what < 5; what++) {
            const tn_kernels k = table(level);
            check_nan(&k, &one, what);
            check_nan(&k, &edge, what);
        }
}

TEST(q8_0_nan) { check_nans(TN_TYPE_Q8_0); }
TEST(f16_nan) { check_nans(TN_TYPE_F16); }

/* Keys and values all alike: no sum of integers is larger. */
TEST(f16_largest_sums)
{
    const shape s = {TN_TYPE_F16, 256, 3, 1, 64, 64, 0, 0, 24, 200, 0};
    void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES);
    for (int level = 0; level < n_levels(); level++)
        for (float x = -2.5f; x < 3; x += 5) {
            fixture f;
            const tn_kernels k = table(level);
            make(&f, &s, 1, false);
            for (int64_t i = 0; i < s.n * f.a.q_stride; i++)
                f.q[i] = x;
            for (int i = 0; i < 2; i++)
                for (size_t j = 0; j < (size_t)s.page * 64; j++)
                    ((uint16_t *)f.pages[i][0])[j] = tn_f32_to_f16(x);
            run(&k, &f.a, TN_ATTEND_TILE, scratch);
            for (int64_t t = 0; t < s.n; t++)
                for (int i = 0; i < 3 * 64; i++)
                    CHECK_NEAR(f.a.out[t * f.a.out_stride + i], x, 1e-3);
            drop(&f);
        }
    free(scratch);
}

/* A key so long that its score is -inf is not seen: integers know no such score, and leave it to
 * float32, with the bits of AVX-512 without VNNI, which are not theirs otherwise, whatever lies in
 * the rest of the last page. */
TEST(f16_infinities)
{
    const shape s = {TN_TYPE_F16, 16, 3, 1, 64, 64, 0, 0, 23, 8, 0};
    void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES);
    for (int level = 2; level + 1 < n_levels(); level++)
        for (int infinite = 0; infinite < 2; infinite++) {
            fixture f;
            make(&f, &s, 1, false);
            for (int64_t i = 0; i < s.n * f.a.q_stride; i++)
                f.q[i] = (float)fabs((double)f.q[i]) + 0.1f;
            if (infinite) ((uint16_t *)f.pages[0][1])[40 * 16 + 4] = tn_f32_to_f16(-INFINITY);
            float *want = malloc(f.n_out * sizeof *want);
            tn_kernels k = table(level);
            memset(f.out, 0, (f.n_out + 16) * sizeof *f.out);
            run(&k, &f.a, TN_ATTEND_TILE, scratch);
            memcpy(want, f.a.out, f.n_out * sizeof *want);
            k = table(level + 1);
            run(&k, &f.a, TN_ATTEND_TILE, scratch);
            for (int64_t i = 0; i < s.n_head * s.dim_v; i++)
                CHECK(isfinite(f.a.out[(s.n - 1) * f.a.out_stride + i]));
            CHECK((memcmp(want, f.a.out, f.n_out * sizeof *want) == 0) == (infinite == 1));
            free(want);
            drop(&f);
        }
    free(scratch);
}

/* AVX-512 without VNNI leaves a Q8_0 cache to AVX2: it has the bits of that, which those with VNNI
 * are not. */
TEST(q8_0_without_vnni)
{
    const shape s = {TN_TYPE_Q8_0, 16, 6, 2, 64, 64, 0, 0, 9, 150, 0};
    fixture f;
    void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES);
    float *first = NULL;
    make(&f, &s, 1, false);
    for (int level = 1; level < n_levels(); level++) {
        const tn_kernels k = table(level);
        memset(f.out, 0, (f.n_out + 16) * sizeof *f.out);
        run(&k, &f.a, TN_ATTEND_TILE, scratch);
        if (!first) {
            first = malloc(f.n_out * sizeof *first);
            memcpy(first, f.a.out, f.n_out * sizeof *first);
        }
        CHECK((memcmp(first, f.a.out, f.n_out * sizeof *first) == 0) == (level < 3));
    }
    free(first);
    drop(&f);
    free(scratch);
}

/* ---- timing ---------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void bench(const shape *s)
{
    fixture f;
    void *scratch = aligned_alloc(64, TN_SCRATCH_BYTES);
    make(&f, s, 1, false);
    for (int level = s->n > 64 || s->pos0 > 9000; level < n_levels(); level++) {
        const tn_kernels k = table(level);
        double best = 1e30;
        for (int r = 0; r < (level ? 7 : 1); r++) {
            double t = now();
            run(&k, &f.a, TN_ATTEND_TILE, scratch);
            t = now() - t;
            if (t < best) best = t;
        }
        double keys = 0;
        for (int64_t t = 0; t < s->n; t++)
            keys += (double)(s->pos0 + t + 1);
        const double flops = 2 * keys * s->n_head * (s->dim_k + s->dim_v);
        const double bytes = (double)bytes_of(s, (size_t)f.len * (size_t)s->n_head_kv *
                                                     (size_t)(s->dim_k + s->dim_v));
        printf(
            "%-6s %-4s n %4lld at %6lld heads %2d/%d dim %3d: %9.3f ms %7.2f GB/s %7.1f GFLOP/s\n",
            level_names[level], type_name(s), (long long)s->n, (long long)s->pos0, s->n_head,
            s->n_head_kv, s->dim_k, best * 1e3, bytes / best / 1e9, flops / best / 1e9);
    }
    drop(&f);
    free(scratch);
}

static int bench_all(void)
{
    bench(&(shape){TN_TYPE_F16, 256, 8, 8, 128, 128, 0, 0, 1, 16383, 256});
    bench(&(shape){TN_TYPE_F16, 256, 16, 8, 128, 128, 0, 0, 1, 16383, 256});
    bench(&(shape){TN_TYPE_F16, 256, 32, 8, 128, 128, 0, 0, 1, 16383, 256});
    bench(&(shape){TN_TYPE_F16, 256, 64, 8, 128, 128, 0, 0, 1, 16383, 256});
    bench(&(shape){TN_TYPE_F16, 256, 9, 3, 64, 64, 0, 0, 1, 4095, 256});
    bench(&(shape){TN_TYPE_F16, 256, 32, 8, 128, 128, 0, 0, 1, 4095, 256});
    bench(&(shape){TN_TYPE_F32, 256, 32, 8, 128, 128, 0, 0, 1, 4095, 256});
    bench(&(shape){TN_TYPE_Q8_0, 256, 8, 8, 128, 128, 0, 0, 1, 16383, 256});
    bench(&(shape){TN_TYPE_Q8_0, 256, 32, 8, 128, 128, 0, 0, 1, 16383, 256});
    bench(&(shape){TN_TYPE_Q8_0, 256, 9, 3, 64, 64, 0, 0, 1, 4095, 256});
    bench(&(shape){TN_TYPE_Q8_0, 256, 32, 8, 128, 128, 0, 0, 1, 4095, 256});
    bench(&(shape){TN_TYPE_Q8_0, 256, 32, 8, 128, 128, 0, 0, 256, 4096, 0});
    bench(&(shape){TN_TYPE_F16, 256, 9, 3, 64, 64, 0, 0, 512, 0, 0});
    bench(&(shape){TN_TYPE_F16, 256, 32, 8, 128, 128, 0, 0, 512, 0, 0});
    bench(&(shape){TN_TYPE_F16, 256, 8, 4, 256, 256, 0, 0, 512, 0, 0});
    bench(&(shape){TN_TYPE_F16, 256, 32, 8, 128, 128, 0, 0, 256, 4096, 0});
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench_all();
    return tn_test_main(argc, argv);
}
