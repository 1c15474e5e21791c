/* AVX2 attention. All query heads of a KV head are computed together, so that each K and V row is
 * read once for the group. A query row is one head of one token; row r of an item belongs to token
 * t0 + r / group.
 *
 * One token (decode): dot products straight from the cache, several heads for each load. A Q8_0
 * cache is converted to float32 in scratch, a few rows at a time, once for all heads of a group.
 * Several tokens (prefill): 64 keys at a time are converted to float32 in scratch, K transposed to
 * panels [dim][16 keys], and both products run as small matrix products of 6 rows x 16 columns.
 *
 * Both keep per row the running max m, sum l and weighted V o of the online softmax:
 *     m' = max(m, max s),  l' = l e^(m - m') + sum e^(s - m'),  o' = o e^(m-m') + sum v e^(s-m') */
#include "attend.h"

#include "../gguf/blocks.h"

#include "avx2_math.h"

#include <math.h>
#include <string.h>

enum { TILE = 64, PANEL = 16, ROWS = 6, MAX_SLICE = 192 };

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE __m256 load8(const char *p, bool f16)
{
    return f16 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p))
               : _mm256_loadu_ps((const float *)(const void *)p);
}

INLINE __m256 scale_of(const tn_block_q8_0 *b)
{
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(b->d)));
}

INLINE __m256 quants(const tn_block_q8_0 *b, int32_t i)
{
    __m128i q = _mm_loadl_epi64((const __m128i *)(const void *)(b->qs + i));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

/* Elements d .. d + 7 of a row of the cache; d is a multiple of 8. */
INLINE __m256 load8_of(const char *row, int32_t d, uint32_t type)
{
    if (type != TN_TYPE_Q8_0)
        return load8(row + (size_t)d * (type == TN_TYPE_F16 ? 2 : 4), type == TN_TYPE_F16);
    const tn_block_q8_0 *b = (const tn_block_q8_0 *)(const void *)row + d / TN_QK;
    return _mm256_mul_ps(scale_of(b), quants(b, d % TN_QK));
}

static size_t row_bytes_of(uint32_t type, int32_t dim)
{
    if (type == TN_TYPE_Q8_0) return (size_t)dim / TN_QK * sizeof(tn_block_q8_0);
    return (size_t)dim * (type == TN_TYPE_F16 ? 2 : 4);
}

/* First byte of row `pos` of a KV head. */
static const char *kv_row(const tn_kv_view *kv, void *const *pages, int32_t dim, int32_t head,
                          int64_t pos)
{
    const size_t row = (size_t)head * (size_t)kv->page_size + (size_t)(pos & (kv->page_size - 1));
    return (const char *)pages[pos / kv->page_size] + row * row_bytes_of(kv->type, dim);
}

/* ---- online softmax -------------------------------------------------------------------------- */

/* Scores s[skip .. n) of a row become weights, the others, up to n rounded up to 8, zero. Returns
 * the factor on what was summed before. */
static float softmax_tile(float *s, int64_t skip, int64_t n, float softcap, float *max, float *sum)
{
    const __m256 none = _mm256_set1_ps(-INFINITY);
    __m256 m = none;
    for (int64_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_loadu_ps(s + i);
        if (softcap > 0) {
            v = tanh8(_mm256_div_ps(v, _mm256_set1_ps(softcap)));
            v = _mm256_mul_ps(v, _mm256_set1_ps(softcap));
        }
        __m256i seen = _mm256_andnot_si256(first8(skip - i), first8(n - i));
        v = _mm256_blendv_ps(none, v, _mm256_castsi256_ps(seen));
        _mm256_storeu_ps(s + i, v);
        m = _mm256_max_ps(v, m);
    }
    const float old = *max, tile = max8(m), top = tile > old ? tile : old;
    /* With every score -inf nothing is seen, but a NaN must come through. */
    const __m256 base = _mm256_set1_ps(top == -INFINITY ? 0 : top);
    __m256 l = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) {
        __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(s + i), base));
        _mm256_storeu_ps(s + i, e);
        l = _mm256_add_ps(l, e);
    }
    const float fade = old == top ? 1 : expf(old - top);
    *max = top;
    *sum = *sum * fade + sum8(l);
    return fade;
}

/* Writes a finished row to out, or as the partial of chunk c. */
static void store_row(const tn_attend *a, int64_t t, int32_t h, int64_t c, float max, float sum,
                      const float *o)
{
    const int32_t dim = a->kv.head_dim_v;
    float *out = a->out + t * a->out_stride + (int64_t)h * dim;
    __m256 f = _mm256_set1_ps(sum == 0 ? 0 : 1 / sum);
    if (a->chunk) {
        float *part = tn_attend_partial(a, t, h, c);
        part[0] = max;
        part[1] = sum;
        out = part + 2;
        f = _mm256_set1_ps(1);
    }
    for (int32_t i = 0; i < dim; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_load_ps(o + i), f));
}

/* ---- one token ------------------------------------------------------------------------------- */

/* Lane i: the sum of a[i]. */
INLINE __m256 sum_each(const __m256 *a)
{
    __m256 t0 = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    __m256 t1 = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(t0, t1, 0x20),
                         _mm256_permute2f128_ps(t0, t1, 0x31));
}

/* s[h * TILE + key] for `keys` keys from j on and 8 / keys heads; keys after the last repeat it. */
INLINE void dots(const char *k, size_t row_bytes, int64_t j, int64_t last, const float *q,
                 int32_t dim, float *s, bool f16, const int keys)
{
    const int heads = 8 / keys;
    const char *key[8];
    __m256 acc[8];
    UNROLL for (int i = 0; i < keys; i++)
        key[i] = k + (size_t)(j + i < last ? j + i : last) * row_bytes;
    UNROLL for (int i = 0; i < 8; i++) acc[i] = _mm256_setzero_ps();
    for (int32_t d = 0; d < dim; d += 8) {
        __m256 x[8];
        UNROLL for (int i = 0; i < heads; i++)
            x[i] = _mm256_load_ps(q + (size_t)i * (size_t)dim + d);
        UNROLL for (int i = 0; i < keys; i++) {
            __m256 y = load8(key[i] + (size_t)d * (f16 ? 2 : 4), f16);
            UNROLL for (int h = 0; h < heads; h++)
                acc[h * keys + i] = _mm256_fmadd_ps(x[h], y, acc[h * keys + i]);
        }
    }
    __m256 sums = sum_each(acc);
    if (keys == 8) {
        _mm256_storeu_ps(s + j, sums);
    } else if (keys == 4) {
        _mm_storeu_ps(s + j, _mm256_castps256_ps128(sums));
        _mm_storeu_ps(s + TILE + j, _mm256_extractf128_ps(sums, 1));
    } else {
        __m128 lo = _mm256_castps256_ps128(sums), hi = _mm256_extractf128_ps(sums, 1);
        _mm_storel_pi((__m64 *)(void *)(s + j), lo);
        _mm_storeh_pi((__m64 *)(void *)(s + TILE + j), lo);
        _mm_storel_pi((__m64 *)(void *)(s + 2 * TILE + j), hi);
        _mm_storeh_pi((__m64 *)(void *)(s + 3 * TILE + j), hi);
    }
}

/* o[h] = o[h] * fade[h] + sum over keys of s[h * TILE + key] * V row, 8 * vecs columns. */
INLINE void weigh(const char *v, size_t row_bytes, int64_t n, const float *s, const float *fade,
                  float *o, int32_t dim, bool f16, const int heads, const int vecs)
{
    __m256 acc[8];
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < vecs; i++)
            acc[h * vecs + i] = _mm256_mul_ps(_mm256_load_ps(o + (size_t)h * (size_t)dim + 8 * i),
                                              _mm256_set1_ps(fade[h]));
    for (int64_t k = 0; k < n; k++, v += row_bytes) {
        __m256 w[4];
        UNROLL for (int h = 0; h < heads; h++) w[h] = _mm256_broadcast_ss(s + h * TILE + k);
        UNROLL for (int i = 0; i < vecs; i++) {
            __m256 y = load8(v + (size_t)i * (f16 ? 16 : 32), f16);
            UNROLL for (int h = 0; h < heads; h++)
                acc[h * vecs + i] = _mm256_fmadd_ps(w[h], y, acc[h * vecs + i]);
        }
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < vecs; i++)
            _mm256_store_ps(o + (size_t)h * (size_t)dim + 8 * i, acc[h * vecs + i]);
}

/* State of one token's heads, in scratch; rows of dim_k and dim_v floats. */
typedef struct decode {
    int32_t group, dim_k, dim_v;
    float *q, *s, *o, *max, *sum, *fade;
    float *k, *v; /* [8][dim_k], [TILE][dim_v] of a Q8_0 cache */
} decode;

/* Scores of n <= TILE keys, and V on its way to the cache meanwhile. */
INLINE void decode_scores(const decode *z, const char *k, const char *v, int64_t n, bool f16)
{
    const size_t size = f16 ? 2 : 4, k_bytes = (size_t)z->dim_k * size,
                 v_bytes = (size_t)z->dim_v * size;
    for (int64_t j = 0; j < n; j += 8) {
        const size_t end = (size_t)(j + 8 < n ? j + 8 : n) * v_bytes;
        for (size_t at = (size_t)j * v_bytes; at < end; at += 64) _mm_prefetch(v + at, _MM_HINT_T0);
        int32_t h = 0;
        for (; h + 4 <= z->group; h += 4)
            for (int64_t i = j; i < j + 8; i += 2)
                dots(k, k_bytes, i, n - 1, z->q + h * z->dim_k, z->dim_k, z->s + h * TILE, f16, 2);
        if (z->group - h >= 2) {
            dots(k, k_bytes, j, n - 1, z->q + h * z->dim_k, z->dim_k, z->s + h * TILE, f16, 4);
            dots(k, k_bytes, j + 4, n - 1, z->q + h * z->dim_k, z->dim_k, z->s + h * TILE, f16, 4);
            h += 2;
        }
        if (h < z->group)
            dots(k, k_bytes, j, n - 1, z->q + h * z->dim_k, z->dim_k, z->s + h * TILE, f16, 8);
    }
}

INLINE void weigh_heads(const decode *z, const char *v, int64_t n, int32_t h, bool f16,
                        const int heads, const int vecs)
{
    const size_t size = f16 ? 2 : 4, bytes = (size_t)z->dim_v * size;
    const float *s = z->s + h * TILE, *fade = z->fade + h;
    float *o = z->o + (int64_t)h * z->dim_v;
    int32_t d = 0;
    for (; d + 8 * vecs <= z->dim_v; d += 8 * vecs)
        weigh(v + (size_t)d * size, bytes, n, s, fade, o + d, z->dim_v, f16, heads, vecs);
    for (; d < z->dim_v; d += 8)
        weigh(v + (size_t)d * size, bytes, n, s, fade, o + d, z->dim_v, f16, heads, 1);
}

INLINE void decode_weigh(const decode *z, const char *v, int64_t n, bool f16)
{
    int32_t h = 0;
    for (; h + 4 <= z->group; h += 4) weigh_heads(z, v, n, h, f16, 4, 2);
    if (z->group - h >= 2) {
        weigh_heads(z, v, n, h, f16, 2, 4);
        h += 2;
    }
    if (h < z->group) weigh_heads(z, v, n, h, f16, 1, 8);
}

/* n rows of Q8_0 blocks, which follow one another without gaps, to float32. */
static const char *unpack_rows(float *out, const char *rows, int64_t n, int32_t dim)
{
    const tn_block_q8_0 *b = (const tn_block_q8_0 *)(const void *)rows;
    for (int64_t i = 0; i < n * dim; i += TN_QK, b++) {
        const __m256 scale = scale_of(b); /* a store might change it, as far as the compiler knows */
        _mm_prefetch((const char *)(b + 32), _MM_HINT_T0);
        UNROLL for (int32_t d = 0; d < TN_QK; d += 8)
            _mm256_store_ps(out + i + d, _mm256_mul_ps(scale, quants(b, d)));
    }
    return (const char *)out;
}

/* Scores of n <= TILE keys of a Q8_0 cache, 8 at a time. */
static void packed_scores(const decode *z, const char *k, const char *v, int64_t n)
{
    const size_t k_bytes = row_bytes_of(TN_TYPE_Q8_0, z->dim_k);
    const size_t v_bytes = row_bytes_of(TN_TYPE_Q8_0, z->dim_v);
    for (int64_t j = 0; j < n; j += 8) {
        const int64_t m = n - j < 8 ? n - j : 8;
        decode part = *z;
        part.s = z->s + j;
        for (size_t at = 0; at < (size_t)m * v_bytes; at += 64)
            _mm_prefetch(v + (size_t)j * v_bytes + at, _MM_HINT_T0);
        const char *rows = unpack_rows(z->k, k + (size_t)j * k_bytes, m, z->dim_k);
        decode_scores(&part, rows, rows, m, false);
    }
}

static void decode_tile(const tn_attend *a, const decode *z, int32_t kv_head, int64_t pos,
                        int64_t n)
{
    const char *k = kv_row(&a->kv, a->kv.k, z->dim_k, kv_head, pos);
    const char *v = kv_row(&a->kv, a->kv.v, z->dim_v, kv_head, pos);
    const uint32_t type = a->kv.type;
    if (type == TN_TYPE_F16) decode_scores(z, k, v, n, true);
    else if (type == TN_TYPE_F32) decode_scores(z, k, v, n, false);
    else packed_scores(z, k, v, n);
    for (int32_t h = 0; h < z->group; h++)
        z->fade[h] = softmax_tile(z->s + h * TILE, 0, n, a->softcap, &z->max[h], &z->sum[h]);
    if (type == TN_TYPE_F16) decode_weigh(z, v, n, true);
    else if (type == TN_TYPE_F32) decode_weigh(z, v, n, false);
    else decode_weigh(z, unpack_rows(z->v, v, n, z->dim_v), n, false);
}

/* Heads [h0, h0 + group) of token t, all of one KV head. */
static void attend_one(const tn_attend *a, int32_t kv_head, int64_t t, int32_t h0, int32_t group,
                       int64_t c, float *scratch)
{
    decode z = {.group = group, .dim_k = a->kv.head_dim_k, .dim_v = a->kv.head_dim_v};
    z.k = scratch;
    z.v = z.k + (int64_t)8 * z.dim_k;
    z.q = z.v + (int64_t)TILE * z.dim_v;
    z.o = z.q + (int64_t)group * z.dim_k;
    z.s = z.o + (int64_t)group * z.dim_v;
    z.max = z.s + (int64_t)group * TILE;
    z.sum = z.max + group;
    z.fade = z.sum + group;
    const float *q = a->q + t * a->q_stride + (int64_t)h0 * z.dim_k;
    for (int64_t i = 0; i < (int64_t)group * z.dim_k; i++) z.q[i] = q[i] * a->scale;
    memset(z.o, 0, (size_t)group * (size_t)z.dim_v * sizeof(float));
    for (int32_t h = 0; h < group; h++) {
        z.max[h] = -INFINITY;
        z.sum[h] = 0;
    }
    int64_t lo, hi;
    tn_attend_range(a, t, c, &lo, &hi);
    while (lo < hi) {
        int64_t n = a->kv.page_size - (lo & (a->kv.page_size - 1));
        if (n > hi - lo) n = hi - lo;
        if (n > TILE) n = TILE;
        decode_tile(a, &z, kv_head, lo, n);
        lo += n;
    }
    for (int32_t h = 0; h < group; h++)
        store_row(a, t, h0 + h, c, z.max[h], z.sum[h], z.o + (int64_t)h * z.dim_v);
}

/* ---- several tokens -------------------------------------------------------------------------- */

/* A slice of an item's rows, in scratch. */
typedef struct slice {
    const tn_attend *a;
    int32_t kv_head, group;
    int64_t t0, c;
    int64_t row0, n_rows; /* of the item */
    int32_t dim_k, dim_v;
    float *k;   /* [TILE / PANEL][dim_k][PANEL] */
    float *v;   /* [TILE][dim_v] */
    float *q;   /* [rows / ROWS][dim_k][ROWS], scaled */
    float *o;   /* [rows][dim_v] */
    float *s;   /* [rows][TILE] */
    float *max, *sum, *fade;
} slice;

static int64_t row_token(const slice *z, int64_t r)
{
    return z->t0 + (z->row0 + r) / z->group;
}

/* Keys that any of the rows [r0, r1) sees. */
static void rows_range(const slice *z, int64_t r0, int64_t r1, int64_t *lo, int64_t *hi)
{
    int64_t unused;
    tn_attend_range(z->a, row_token(z, r0), z->c, lo, &unused);
    tn_attend_range(z->a, row_token(z, r1 - 1), z->c, &unused, hi);
}

static inline void transpose8(__m256 *r)
{
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

/* Keys [pos, pos + 16) of one page to a panel. Keys outside [lo, hi) repeat a neighbour: their
 * scores are masked later, and what lies in their place in the page is never read. */
INLINE void load_panel(const slice *z, int64_t pos, int64_t lo, int64_t hi, float *panel,
                       uint32_t type)
{
    const tn_kv_view *kv = &z->a->kv;
    const char *key[PANEL];
    for (int i = 0; i < PANEL; i++) {
        int64_t p = pos + i < lo ? lo : pos + i >= hi ? hi - 1 : pos + i;
        key[i] = kv_row(kv, kv->k, z->dim_k, z->kv_head, p);
    }
    for (int32_t d = 0; d < z->dim_k; d += 8)
        for (int half = 0; half < PANEL; half += 8) {
            __m256 r[8];
            UNROLL for (int i = 0; i < 8; i++) r[i] = load8_of(key[half + i], d, type);
            transpose8(r);
            UNROLL for (int i = 0; i < 8; i++)
                _mm256_store_ps(panel + (size_t)(d + i) * PANEL + half, r[i]);
        }
}

/* V rows [pos, pos + n) in float32, zero outside [lo, hi): a weight of 0 must not meet a NaN. */
INLINE void load_values(const slice *z, int64_t pos, int64_t n, int64_t lo, int64_t hi,
                        uint32_t type)
{
    const tn_kv_view *kv = &z->a->kv;
    for (int64_t i = 0; i < n; i++) {
        float *v = z->v + i * z->dim_v;
        if (pos + i < lo || pos + i >= hi) {
            memset(v, 0, (size_t)z->dim_v * sizeof *v);
            continue;
        }
        const char *row = kv_row(kv, kv->v, z->dim_v, z->kv_head, pos + i);
        for (int32_t d = 0; d < z->dim_v; d += 8)
            _mm256_store_ps(v + d, load8_of(row, d, type));
    }
}

/* s[ROWS][16 columns] = q[dim][ROWS] x panel[dim][16] */
static void score_block(const float *q, const float *panel, int32_t dim, float *s)
{
    __m256 acc[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    for (int32_t d = 0; d < dim; d++, q += ROWS, panel += PANEL) {
        __m256 b0 = _mm256_load_ps(panel), b1 = _mm256_load_ps(panel + 8);
        UNROLL for (int i = 0; i < ROWS; i++) {
            __m256 x = _mm256_broadcast_ss(q + i);
            acc[i][0] = _mm256_fmadd_ps(x, b0, acc[i][0]);
            acc[i][1] = _mm256_fmadd_ps(x, b1, acc[i][1]);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        _mm256_store_ps(s + i * TILE, acc[i][0]);
        _mm256_store_ps(s + i * TILE + 8, acc[i][1]);
    }
}

/* o[ROWS][8 * vecs columns] = o * fade + s[ROWS][n] x v[n][dim] */
INLINE void value_block(const float *s, const float *fade, const float *v, int64_t n, int32_t dim,
                        float *o, const int vecs)
{
    __m256 acc[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < vecs; j++)
            acc[i][j] = _mm256_mul_ps(_mm256_load_ps(o + (size_t)i * (size_t)dim + 8 * j),
                                      _mm256_broadcast_ss(fade + i));
    for (int64_t k = 0; k < n; k++, v += dim) {
        __m256 b[2];
        UNROLL for (int j = 0; j < vecs; j++) b[j] = _mm256_load_ps(v + 8 * j);
        UNROLL for (int i = 0; i < ROWS; i++) {
            __m256 x = _mm256_broadcast_ss(s + i * TILE + k);
            UNROLL for (int j = 0; j < vecs; j++) acc[i][j] = _mm256_fmadd_ps(x, b[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < vecs; j++)
            _mm256_store_ps(o + (size_t)i * (size_t)dim + 8 * j, acc[i][j]);
}

/* Turns the scores of one row against keys [from, to) of the tile at pos into weights. */
static void weigh_row(const slice *z, int64_t r, int64_t pos, int64_t from, int64_t to)
{
    float *s = z->s + r * TILE + from;
    const int64_t n = to - from;
    int64_t lo, hi;
    tn_attend_range(z->a, row_token(z, r), z->c, &lo, &hi);
    lo = lo > pos + from ? lo - pos - from : 0;
    hi = hi < pos + to ? hi - pos - from : n;
    z->fade[r] = 1;
    if (lo >= hi) {
        memset(s, 0, (size_t)n * sizeof *s);
        return;
    }
    z->fade[r] = softmax_tile(s, lo, hi, z->a->softcap, &z->max[r], &z->sum[r]);
    if (hi < n) memset(s + hi, 0, (size_t)(n - hi) * sizeof *s);
}

INLINE void load_tile(const slice *z, int64_t pos, int64_t n, int64_t lo, int64_t hi, uint32_t type)
{
    for (int64_t k = 0; k < n; k += PANEL)
        load_panel(z, pos + k, lo, hi, z->k + k * z->dim_k, type);
    load_values(z, pos, n, lo, hi, type);
}

/* All rows against keys [pos, pos + n), of which [lo, hi) are seen by some row. */
static void slice_tile(const slice *z, int64_t pos, int64_t n, int64_t lo, int64_t hi)
{
    const uint32_t type = z->a->kv.type;
    if (type == TN_TYPE_F16) load_tile(z, pos, n, lo, hi, TN_TYPE_F16);
    else if (type == TN_TYPE_F32) load_tile(z, pos, n, lo, hi, TN_TYPE_F32);
    else load_tile(z, pos, n, lo, hi, TN_TYPE_Q8_0);
    for (int64_t r = 0; r < z->n_rows; r += ROWS) {
        const int64_t end = r + ROWS < z->n_rows ? r + ROWS : z->n_rows;
        int64_t from, to;
        rows_range(z, r, end, &from, &to);
        from = from > pos ? (from - pos) / PANEL * PANEL : 0;
        to = to < pos + n ? to - pos : n;
        if (from >= to) continue;
        for (int64_t k = from; k < to; k += PANEL)
            score_block(z->q + r * z->dim_k, z->k + k * z->dim_k, z->dim_k, z->s + r * TILE + k);
        for (int64_t i = r; i < end; i++) weigh_row(z, i, pos, from, to);
        const float *s = z->s + r * TILE + from, *v = z->v + from * z->dim_v;
        float *o = z->o + r * z->dim_v;
        int32_t d = 0;
        for (; d + 16 <= z->dim_v; d += 16)
            value_block(s, z->fade + r, v + d, to - from, z->dim_v, o + d, 2);
        if (d < z->dim_v) value_block(s, z->fade + r, v + d, to - from, z->dim_v, o + d, 1);
    }
}

/* Query rows scaled and packed; the rows that fill the last block are zero, and stay so. */
static void slice_start(slice *z)
{
    const int64_t padded = (z->n_rows + ROWS - 1) / ROWS * ROWS;
    for (int64_t r = 0; r < padded; r++) {
        float *to = z->q + r / ROWS * ROWS * z->dim_k + r % ROWS;
        for (int32_t d = 0; d < z->dim_k; d++) to[d * ROWS] = 0;
        z->max[r] = -INFINITY;
        z->sum[r] = 0;
        z->fade[r] = 1;
        if (r >= z->n_rows) continue;
        const int64_t h = (int64_t)z->kv_head * z->group + (z->row0 + r) % z->group;
        const float *q = z->a->q + row_token(z, r) * z->a->q_stride + h * z->dim_k;
        for (int32_t d = 0; d < z->dim_k; d++) to[d * ROWS] = q[d] * z->a->scale;
    }
    memset(z->o, 0, (size_t)padded * (size_t)z->dim_v * sizeof(float));
    memset(z->s, 0, (size_t)padded * TILE * sizeof(float));
}

static void slice_run(slice *z)
{
    int64_t lo, hi;
    slice_start(z);
    rows_range(z, 0, z->n_rows, &lo, &hi);
    for (int64_t pos = lo & ~(int64_t)(PANEL - 1); pos < hi; pos += TILE)
        slice_tile(z, pos, hi - pos < TILE ? hi - pos : TILE, lo, hi);
    for (int64_t r = 0; r < z->n_rows; r++)
        store_row(z->a, row_token(z, r),
                  z->kv_head * z->group + (int32_t)((z->row0 + r) % z->group), z->c, z->max[r],
                  z->sum[r], z->o + r * z->dim_v);
}

/* As many rows at a time as scratch holds. */
static void attend_many(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                        float *scratch)
{
    slice z = {.a = a, .kv_head = kv_head, .group = a->n_head / a->kv.n_head_kv, .t0 = t0, .c = c};
    z.dim_k = a->kv.head_dim_k;
    z.dim_v = a->kv.head_dim_v;
    const int64_t dims = (int64_t)z.dim_k + z.dim_v;
    const int64_t room = (int64_t)TN_SCRATCH_BYTES / (int64_t)sizeof(float) - TILE * dims;
    int64_t most = room / (dims + TILE + 3) / 48 * 48; /* of 6 and of 8: everything stays aligned */
    if (most > MAX_SLICE) most = MAX_SLICE;
    z.k = scratch;
    z.v = z.k + (int64_t)TILE * z.dim_k;
    z.q = z.v + (int64_t)TILE * z.dim_v;
    z.o = z.q + most * z.dim_k;
    z.s = z.o + most * z.dim_v;
    z.max = z.s + most * TILE;
    z.sum = z.max + most;
    z.fade = z.sum + most;
    const int64_t rows = (t1 - t0) * z.group;
    for (z.row0 = 0; z.row0 < rows; z.row0 += most) {
        z.n_rows = rows - z.row0 < most ? rows - z.row0 : most;
        slice_run(&z);
    }
}

/* ---- the slots ------------------------------------------------------------------------------- */

enum { MAX_DIM = 1024, MAX_ONE = 16 };

static bool fits(const tn_attend *a)
{
    const tn_kv_view *kv = &a->kv;
    return kv->head_dim_k % 8 == 0 && kv->head_dim_v % 8 == 0 && kv->head_dim_k <= MAX_DIM &&
           kv->head_dim_v <= MAX_DIM && kv->page_size % PANEL == 0;
}

static void attend_avx2(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                        void *scratch)
{
    if (!fits(a)) {
        tn_attend_scalar(a, kv_head, t0, t1, c, scratch);
    } else if (t1 - t0 > 1) {
        attend_many(a, kv_head, t0, t1, c, scratch);
    } else if (t1 - t0 == 1) {
        const int32_t group = a->n_head / a->kv.n_head_kv;
        for (int32_t h = 0; h < group; h += MAX_ONE)
            attend_one(a, kv_head, t0, kv_head * group + h,
                       group - h < MAX_ONE ? group - h : MAX_ONE, c, scratch);
    }
}

static void attend_join_avx2(const tn_attend *a, int64_t t, int32_t h)
{
    const int32_t dim = a->kv.head_dim_v;
    if (dim % 8) {
        tn_attend_join_scalar(a, t, h);
        return;
    }
    float *out = a->out + t * a->out_stride + (int64_t)h * dim, max = -INFINITY, sum = 0;
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const float *part = tn_attend_partial(a, t, h, c);
        if (part[1] != 0 && part[0] > max) max = part[0];
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const float *part = tn_attend_partial(a, t, h, c);
        if (part[1] == 0) continue;
        const float weight = expf(part[0] - max);
        const __m256 w = _mm256_set1_ps(weight);
        sum += weight * part[1];
        for (int32_t i = 0; i < dim; i += 8)
            _mm256_storeu_ps(out + i, _mm256_fmadd_ps(w, _mm256_loadu_ps(part + 2 + i),
                                                      _mm256_loadu_ps(out + i)));
    }
    const __m256 f = _mm256_set1_ps(sum == 0 ? 0 : 1 / sum);
    for (int32_t i = 0; i < dim; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(out + i), f));
}

void tn_kernels_avx2_attend(tn_kernels *k)
{
    k->attend = attend_avx2;
    k->attend_join = attend_join_avx2;
}
