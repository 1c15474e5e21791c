/* Attention of few tokens (decode), or of any number to a Q8_0 cache: scores of a vector of
 * positions at a time straight from the cache, up to four rows for each load, with what comes next
 * on its way from memory meanwhile. */
#ifndef TN_AVX_ATTEND_ONE_H
#define TN_AVX_ATTEND_ONE_H

#include "avx_attend_row.h"
#include "avx_attend_q8.h"

enum {
    MAX_ONE = 16,  /* rows at a time */
    MAX_DIM = 1024 /* of a head */
};

/* What is asked for with fetch_near is half a tile ahead of its use, V while K is used and the next
 * K while V is, where K of a tile is at most NEAR_TILE bytes, so that the first level holds both.
 * Of larger tiles it is so many bytes ahead in a unit of K, and rows of V. */
enum { NEAR_TILE = 16384, NEAR_BYTES = 64 * LANES, NEAR_ROWS = LANES };

/* What is asked for beside the softmax, which reads neither K nor V: without it the queue to memory
 * runs empty meanwhile. Of other caches than Q8_0 SOFT_LINES of the next V for each row. */
enum { SOFT_LINES = LANES == 16 ? 4 : 0 };

/* Of a Q8_0 cache K and V are asked for together: the second halves of the next tile while scores
 * are made, the first halves of the one after it while values are weighed. Of the HALF_LINES lines
 * that half a tile has of 32 dims SCORE_LINES of each go with the scores and the rest with the
 * softmax; WEIGHT_LINES of V with the integer weights, the rest of V and K with the values. With
 * AVX2 arithmetic takes longer than memory. */
enum {
    HALF_LINES = TILE / 2 * 34 / 64,
    SCORE_QUADS = LANES == 16 ? 6 : 8, /* of 8, that ask */
    SCORE_LINES = TILE * 4 * SCORE_QUADS / 2 / 64,
    WEIGHT_LINES = LANES == 16 ? 8 : 0
};

/* f(z, x, h, type, heads) with constants. */
#define BY_TYPE(f, type, heads)               \
    if ((type) == TN_TYPE_F16)                \
        f(z, x, h, TN_TYPE_F16, heads);       \
    else if ((type) == TN_TYPE_Q8_0)          \
        f(z, x, h, TN_TYPE_Q8_0, heads);      \
    else                                      \
        f(z, x, h, TN_TYPE_F32, heads)

/* State of query rows, in scratch: heads of one or more tokens, all of one KV head. */
typedef struct one {
    int32_t n_rows, dim_k, dim_v;
    int32_t from, to;     /* rows that see the tile */
    int32_t soft_lines;   /* see soft_row */
    int32_t weight_lines; /* of V, asked for beside the weights of a row and a block */
    uint32_t type;
    size_t k_bytes, v_bytes; /* of a unit */
    float *q;                /* [n_rows][dim_k], scaled */
    float *o;                /* [n_rows][dim_v] */
    float *s;                /* [n_rows][TILE]: scores, then weights */
    float *max, *fade;       /* [n_rows] */
    float *sum;              /* [n_rows][LANES] */
    /* Q8_0: q as integers q_scale apart, see q8_split, and what K's offset adds
     * to their products. */
    int32_t *q_int;  /* [dim_k / 4][n_rows][2] */
    float *q_scale;  /* [dim_k / 32][n_rows] */
    int32_t *q_seed; /* [dim_k / 32][n_rows] */
    vi *v_share;     /* [dim_v / 32][q8_vectors]: scales of V as shares of */
    float *v_most;   /* [dim_v / 32] the largest */
    float *s_most;   /* [n_rows] largest weight of the tile */
    int32_t *weight; /* [dim_v / 32][n_rows][TILE / 2]: s times the scale of V, see q8_weights */
} one;

/* A tile of keys, whole units, and the two tiles after it, of which much is asked for while this
 * one is used. Beside k and v stands what is brought near while the same bytes of them are used. */
typedef struct keys {
    const char *k, *v, *next_k, *next_v, *far_k, *far_v, *near_k, *near_v;
    int64_t skip, n; /* positions [skip, n) are seen */
} keys;

INLINE const char *vector_at(const char *units, size_t unit_bytes, int64_t i, size_t lane_bytes)
{
    if (LANES == 16) return units + i * (int64_t)unit_bytes;
    const int64_t pos = i * LANES;
    return units + (size_t)(pos / TN_KV_UNIT) * unit_bytes +
           (size_t)(pos % TN_KV_UNIT) * lane_bytes;
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* Vectors of positions for `heads` heads that fit the registers. */
INLINE int vectors_at_once(int heads, uint32_t type)
{
    if (LANES == 16) return heads == 1 || type != TN_TYPE_Q8_0 ? 4 : 2;
    return heads == 1 ? 4 : heads == 2 ? 4 : 2;
}

/* Scores of heads h .. h + heads - 1 with vectors i .. i + n - 1 of the tile
 * (heads, n constants). */
INLINE void scores_float(const one *z, const keys *x, int64_t i, int32_t h, uint32_t type,
                         const int heads, const int n)
{
    const size_t size = type == TN_TYPE_F16 ? 2 : 4;
    const char *k[4], *near[4], *next = x->next_k + (size_t)(i * LANES * z->dim_k) * size;
    const float *q = z->q + (int64_t)h * z->dim_k;
    const int step = n * LANES * (int)size;
    vf acc[16];
    UNROLL for (int u = 0; u < n; u++)
    {
        k[u] = vector_at(x->k, z->k_bytes, i + u, size);
        near[u] = vector_at(x->near_k, z->k_bytes, i + u, size);
    }
    UNROLL for (int a = 0; a < heads * n; a++) acc[a] = v_zero();
    for (int32_t d = 0; d < z->dim_k; d += 4, next += 4 * step) {
        UNROLL for (int e = 0; e < 4 * LANES * (int)size; e += 64)
            UNROLL for (int u = 0; u < n; u++)
                fetch_near(near[u] + (size_t)d * TN_KV_UNIT * size + e);
        UNROLL for (int e = 0; e < 4 * step; e += 64) fetch(next + e);
        UNROLL for (int e = 0; e < 4; e++, q++)
        {
            vf y[4];
            UNROLL for (int u = 0; u < n; u++)
            {
                const size_t off = (size_t)(d + e) * TN_KV_UNIT * size;
                const char *at = k[u] + off;
                y[u] = type == TN_TYPE_F16 ? v_halves(at) : v_load((const float *)(const void *)at);
            }
            UNROLL for (int g = 0; g < heads; g++)
            {
                const vf w = v_set(q[g * z->dim_k]);
                UNROLL for (int u = 0; u < n; u++) acc[g * n + u] = v_fma(w, y[u], acc[g * n + u]);
            }
        }
    }
    UNROLL for (int g = 0; g < heads; g++) UNROLL for (int u = 0; u < n; u++)
        v_store(z->s + (h + g) * TILE + (i + u) * LANES, acc[g * n + u]);
}

/* What quad j asks for of K and V, `bytes` each; of less than a line they take turns. */
INLINE void fetch_both(const char *k, const char *v, const int j, const int bytes)
{
    if (bytes < 64) {
        fetch((j % 2 ? v : k) + j * bytes / 64 * 64);
        return;
    }
    UNROLL for (int i = 0; i < bytes; i += 64)
    {
        fetch(k + j * bytes + i);
        fetch(v + j * bytes + i);
    }
}

/* sum[heads][n] += a block of K, the first quads of whose vectors are at[n]. */
INLINE void add_block(q8_sum *sum, const int32_t *q, int64_t rows, const char *const *at,
                      const char *const *near, const char *next_k, const char *next_v,
                      const int heads, const int n)
{
    for (int j = 0; j < 8; j++, q += 2 * rows) {
        q8_quads y[4];
        UNROLL for (int u = 0; u < n; u++)
        {
            if (u * 4 * LANES % 64 == 0) fetch_near(near[u] + j * 64);
            y[u] = q8_keys(at[u] + j * 64);
        }
        if (j < SCORE_QUADS) fetch_both(next_k, next_v, j, n * 2 * LANES);
        UNROLL for (int g = 0; g < heads; g++)
        {
            const vi q0 = q8_set(q[2 * g]), q1 = q8_set(q[2 * g + 1]);
            UNROLL for (int u = 0; u < n; u++) q8_add_keys(&sum[g * n + u], y[u], q0, q1);
        }
    }
}

/* The same of a Q8_0 cache: sums of 32 dims are integers. */
INLINE void scores_q8(const one *z, const keys *x, int64_t i, int32_t h, const int heads,
                      const int n)
{
    const int64_t rows = z->n_rows, dim = z->dim_k;
    const int64_t asked = i * (2 * LANES) * (dim / TN_QK) * SCORE_QUADS;
    const char *next_k = x->next_k + 2 * z->k_bytes + asked;
    const char *next_v = x->next_v + 2 * z->v_bytes + asked;
    const char *k[4], *near[4], *scales[4];
    const int32_t *q = z->q_int + h * 2, *seed = z->q_seed + h;
    const float *q_scale = z->q_scale + h;
    float *s = z->s + h * TILE + i * LANES;
    vf acc[16];
    UNROLL for (int u = 0; u < n; u++)
    {
        k[u] = vector_at(x->k, z->k_bytes, i + u, 4);
        near[u] = vector_at(x->near_k, z->k_bytes, i + u, 4);
        scales[u] = vector_at(x->k, z->k_bytes, i + u, 2);
    }
    UNROLL for (int a = 0; a < heads * n; a++) acc[a] = v_zero();
    for (int64_t d = 0; d < dim; d += TN_QK, q += 16 * rows, seed += rows, q_scale += rows) {
        q8_sum sum[16];
        const char *at[4], *near_at[4];
        UNROLL for (int u = 0; u < n; u++)
        {
            at[u] = k[u] + dim + d * 16;
            near_at[u] = near[u] + dim + d * 16;
        }
        UNROLL for (int g = 0; g < heads; g++) UNROLL for (int u = 0; u < n; u++) sum[g * n + u] =
            q8_start(seed[g]);
        add_block(sum, q, rows, at, near_at, next_k, next_v, heads, n);
        next_k += SCORE_QUADS * n * 2 * LANES;
        next_v += SCORE_QUADS * n * 2 * LANES;
        UNROLL for (int u = 0; u < n; u++)
        {
            if (u * 4 * LANES % 64 == 0) fetch_near(near[u] + d);
            const vf scale = v_halves(scales[u] + d);
            UNROLL for (int g = 0; g < heads; g++) acc[g * n + u] =
                v_fma(q8_float(sum[g * n + u]), v_mul(scale, v_set(q_scale[g])), acc[g * n + u]);
        }
    }
    UNROLL for (int g = 0; g < heads; g++) UNROLL for (int u = 0; u < n; u++)
        v_store(s + g * TILE + u * LANES, acc[g * n + u]);
}

INLINE void scores_at(const one *z, const keys *x, int64_t i, int32_t h, uint32_t type,
                      const int heads, const int n)
{
    if (type == TN_TYPE_Q8_0)
        scores_q8(z, x, i, h, heads, n);
    else
        scores_float(z, x, i, h, type, heads, n);
}

INLINE void scores_of(const one *z, const keys *x, int32_t h, uint32_t type, const int heads)
{
    const int n = vectors_at_once(heads, type);
    const int64_t all = (x->n + TN_KV_UNIT - 1) / TN_KV_UNIT * (TN_KV_UNIT / LANES);
    int64_t i = 0;
    for (; i + n <= all; i += n)
        scores_at(z, x, i, h, type, heads, n);
    for (; i < all; i++)
        scores_at(z, x, i, h, type, heads, 1);
}

/* Scores of 1 to 4 heads from h on. */
APART void scores_4(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(scores_of, type, 4);
}
APART void scores_3(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(scores_of, type, 3);
}
APART void scores_2(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(scores_of, type, 2);
}
APART void scores_1(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(scores_of, type, 1);
}

static inline void scores(const one *z, const keys *x, uint32_t type)
{
    int32_t h = z->from;
    for (; z->to - h >= 4; h += 4)
        scores_4(z, x, h, type);
    switch (z->to - h) {
    case 3: scores_3(z, x, h, type); return;
    case 2: scores_2(z, x, h, type); return;
    case 1: scores_1(z, x, h, type); return;
    default: return;
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* o[h] = o[h] * fade[h] + sum over keys of weight * V row, for `vecs` vectors of
 * columns from d on. */
INLINE void weigh(const one *z, const keys *x, int32_t h, int32_t d, uint32_t type, const int heads,
                  const int vecs)
{
    const size_t size = type == TN_TYPE_F16 ? 2 : 4, row = (size_t)z->dim_v * size;
    const float *s = z->s + h * TILE;
    float *o = z->o + (int64_t)h * z->dim_v + d;
    const size_t first = (size_t)x->skip * row + (size_t)d * size;
    const char *v = x->v + first, *near = x->near_v + first;
    const char *next = x->next_v + (size_t)d * size;
    vf acc[16];
    UNROLL for (int g = 0; g < heads; g++) UNROLL for (int i = 0; i < vecs; i++) acc[g * vecs + i] =
        v_mul(v_load(o + (int64_t)g * z->dim_v + LANES * i), v_set(z->fade[h + g]));
    for (int64_t k = x->skip; k < x->n; k++, v += row, near += row, next += row) {
        UNROLL for (int i = 0; i < vecs; i++)
        {
            const size_t off = (size_t)(LANES * i) * size;
            const char *at = v + off;
            if (off % 64 == 0) {
                fetch_near(near + off);
                fetch(next + off);
            }
            const vf y =
                type == TN_TYPE_F16 ? v_halves(at) : v_load((const float *)(const void *)at);
            UNROLL for (int g = 0; g < heads; g++) acc[g * vecs + i] =
                v_fma(y, v_set(s[g * TILE + k]), acc[g * vecs + i]);
        }
    }
    UNROLL for (int g = 0; g < heads; g++) UNROLL for (int i = 0; i < vecs; i++)
        v_store(o + (int64_t)g * z->dim_v + LANES * i, acc[g * vecs + i]);
}

INLINE void weigh_float(const one *z, const keys *x, int32_t h, uint32_t type, const int heads)
{
    const int most = LANES == 16 ? (heads <= 2 ? 8 : 4) : (heads == 1 ? 8 : heads == 4 ? 2 : 4);
    int32_t d = 0, left = z->dim_v / LANES;
    for (; left >= most; left -= most, d += most * LANES)
        weigh(z, x, h, d, type, heads, most);
    if (most > 4 && left >= 4) {
        weigh(z, x, h, d, type, heads, 4);
        left -= 4;
        d += 4 * LANES;
    }
    if (most > 2 && left >= 2) {
        weigh(z, x, h, d, type, heads, 2);
        left -= 2;
        d += 2 * LANES;
    }
    if (left) weigh(z, x, h, d, type, heads, 1);
}

/* sum[heads][2] += a unit of V, `row` bytes for four positions, from two vectors of columns on; w:
 * its weights. */
INLINE void add_unit(q8_sum *sum, const int32_t *w, const char *v, const char *near, int64_t row,
                     int unit, const char *next_k, const char *next_v, const int heads)
{
    UNROLL for (int t = 0; t < 4; t++)
    {
        const int32_t *at = w + q8_weight_at(unit, t);
        const char *x0 = v + t * row, *x1 = x0 + 4 * LANES;
        const q8_quads y0 = q8_values(x0), y1 = q8_values(x1);
        fetch_near(near + t * row);
        if (4 * LANES % 64 == 0) fetch_near(near + t * row + 4 * LANES);
        if (LANES == 16) fetch(next_k + t * 64);
        if (LANES == 8 && t % 2 == 0) fetch(next_k + t / 2 * 64);
        if (t % 2) fetch(next_v + t / 2 * 64);
        UNROLL for (int g = 0; g < heads; g++)
        {
            const int32_t *quad = at + g * (TILE / 2);
            const vi w0 = q8_set(quad[0]), w1 = q8_set(quad[q8_second]);
            q8_add_values(&sum[2 * g], y0, w0, w1);
            q8_add_values(&sum[2 * g + 1], y1, w0, w1);
        }
    }
}

/* The same for a Q8_0 cache: sums over the tile are integers. */
INLINE void weigh_q8(const one *z, const keys *x, int32_t h, const int heads)
{
    const int64_t dim = z->dim_v, unit = (int64_t)z->v_bytes;
    const int64_t units = (x->n + TN_KV_UNIT - 1) / TN_KV_UNIT;
    const float *s_most = z->s_most + h, *fade = z->fade + h;
    const char *next_k = x->far_k;
    const char *next_v = x->far_v + z->n_rows * (dim / TN_QK) * z->weight_lines * 64;
    float *o = z->o + h * dim;
    for (int64_t d = 0; d < dim; d += 2 * LANES, o += 2 * LANES) {
        const int64_t b = d / TN_QK;
        const int32_t *w = z->weight + (b * z->n_rows + h) * (TILE / 2);
        const char *v = x->v + dim + 4 * d, *near = x->near_v + dim + 4 * d;
        const float most = z->v_most[b] / q8_most_weight;
        q8_sum sum[8];
        UNROLL for (int i = 0; i < TILE / TN_KV_UNIT; i++)
            fetch_near(x->near_v + i * unit + b * 32);
        UNROLL for (int a = 0; a < 2 * heads; a++) sum[a] = q8_start(0);
        for (int i = 0; i < units; i++, v += unit, near += unit) {
            add_unit(sum, w, v, near, 4 * dim, i, next_k, next_v, heads);
            next_k += LANES == 16 ? 256 : 128;
            next_v += 128;
        }
        fetch(next_k);
        fetch(next_v);
        next_k += 64;
        next_v += 64;
        UNROLL for (int g = 0; g < heads; g++) UNROLL for (int i = 0; i < 2; i++)
        {
            float *to = o + g * dim + LANES * i;
            v_store(to, v_fma(q8_float(sum[2 * g + i]), v_set(s_most[g] * most),
                              v_mul(v_load(to), v_set(fade[g]))));
        }
    }
}

INLINE void weigh_heads(const one *z, const keys *x, int32_t h, uint32_t type, const int heads)
{
    if (type == TN_TYPE_Q8_0)
        weigh_q8(z, x, h, heads);
    else
        weigh_float(z, x, h, type, heads);
}

/* The values of 1 to 4 heads from h on. */
APART void weigh_4(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(weigh_heads, type, 4);
}
APART void weigh_3(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(weigh_heads, type, 3);
}
APART void weigh_2(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(weigh_heads, type, 2);
}
APART void weigh_1(const one *z, const keys *x, int32_t h, uint32_t type)
{
    BY_TYPE(weigh_heads, type, 1);
}

static inline void weigh_all(const one *z, const keys *x, uint32_t type)
{
    int32_t h = z->from;
    for (; z->to - h >= 4; h += 4)
        weigh_4(z, x, h, type);
    switch (z->to - h) {
    case 3: weigh_3(z, x, h, type); return;
    case 2: weigh_2(z, x, h, type); return;
    case 1: weigh_1(z, x, h, type); return;
    default: return;
    }
}

/* Scales of a unit, float16 and not negative, those outside [from, to) zero. */
INLINE __m256i seen_scales(const char *unit, int64_t from, int64_t to)
{
    const __m256i i = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (to <= 0) return _mm256_setzero_si256();
    const __m256i scales = _mm256_loadu_si256((const __m256i *)(const void *)unit);
    const __m256i before = _mm256_cmpgt_epi16(_mm256_set1_epi16((short)from), i);
    const __m256i below = _mm256_cmpgt_epi16(_mm256_set1_epi16((short)to), i);
    return _mm256_and_si256(_mm256_andnot_si256(before, scales), below);
}

/* The largest of the scales at at[0 .. 3], NaN where one of them is: as integers, too, float16 that
 * are not negative stand in order, and NaN above them. */
INLINE float largest_scale(const char *const *at)
{
    __m256i most = _mm256_setzero_si256();
    UNROLL for (int u = 0; u < TILE / TN_KV_UNIT; u++) most =
        _mm256_max_epu16(most, _mm256_loadu_si256((const __m256i *)(const void *)at[u]));
    const __m128i m =
        _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(m, _mm_set1_epi16(-1)));
    return _cvtsh_ss((unsigned short)~_mm_cvtsi128_si32(least));
}

/* Scales of V as shares of the largest of each block of dims; those of positions not seen are zero.
 * whole, a constant: all are seen. */
INLINE void read_scales(const one *z, const keys *x, const bool whole)
{
    for (int32_t b = 0; b < z->dim_v / TN_QK; b++) {
        __m256i seen[TILE / TN_KV_UNIT];
        const char *at[TILE / TN_KV_UNIT];
        UNROLL for (int u = 0; u < TILE / TN_KV_UNIT; u++)
        {
            const int64_t first = u * TN_KV_UNIT;
            at[u] = x->v + (size_t)u * z->v_bytes + b * 2 * TN_KV_UNIT;
            if (whole) continue;
            seen[u] = seen_scales(at[u], x->skip - first, x->n - first);
            at[u] = (const char *)&seen[u];
        }
        const float top = z->v_most[b] = largest_scale(at);
        const vf f = v_set(top > 0 ? (float)q8_most / top : 0);
        vf share[TILE / LANES];
        UNROLL for (int i = 0; i < TILE / LANES; i++)
        {
            const int pos = i * LANES;
            share[i] = v_mul(v_halves(at[pos / TN_KV_UNIT] + pos % TN_KV_UNIT * 2), f);
        }
        q8_words(z->v_share + b * q8_vectors, share);
    }
}

/* weight[block][h] = s[h] times the scales of V, as integers. */
INLINE void scale_weights(const one *z, const keys *x)
{
    const int64_t rows = z->to - z->from, blocks = z->dim_v / TN_QK, lines = z->weight_lines;
    const int64_t step = z->n_rows * (int64_t)(TILE / 2);
    const float *s = z->s + z->from * TILE, *most = z->s_most + z->from;
    const char *next = x->far_v;
    int32_t *out = z->weight + z->from * (TILE / 2);
    for (int64_t r = 0; r < rows; r++, s += TILE, out += TILE / 2) {
        /* What is too small beside 1, the weight of the largest score, counts as nothing. */
        const vf f = v_set(most[r] > 1e-30f ? (float)q8_most / most[r] : 0);
        vf w[TILE / LANES];
        vi words[q8_vectors];
        UNROLL for (int i = 0; i < TILE / LANES; i++) w[i] = v_mul(v_load(s + i * LANES), f);
        q8_words(words, w);
        const vi *share = z->v_share;
        int32_t *at = out;
        for (int64_t b = 0; b < blocks; b++, share += q8_vectors, at += step) {
            for (int64_t i = 0; i < lines; i++, next += 64)
                fetch(next);
            q8_weights(at, words, share);
        }
    }
}

/* The softmax of the first row, and what is asked for beside it. */
INLINE soft_row first_row(const tn_attend *a, const one *z, const keys *x, uint32_t type)
{
    const int64_t asked = z->dim_k / TN_QK * SCORE_LINES * 64;
    soft_row row = {.softcap = a->softcap, .ahead = {x->next_v}, .lines = z->soft_lines};
    row.max = z->max + z->from;
    row.sum = z->sum + z->from * LANES;
    if (type == TN_TYPE_Q8_0) {
        row.ahead[0] = x->next_k + 2 * z->k_bytes + asked;
        row.ahead[1] = x->next_v + 2 * z->v_bytes + asked;
    }
    return row;
}

INLINE void to_next_row(soft_row *r)
{
    r->max++;
    r->sum += LANES;
    r->ahead[0] += r->lines * 64;
    if (r->ahead[1]) r->ahead[1] += r->lines * 64;
}

INLINE void one_tile(const tn_attend *a, const one *z, const keys *x, uint32_t type)
{
    vf most[MAX_ONE];
    scores(z, x, type);
    soft_row row = first_row(a, z, x, type);
    for (int32_t h = z->from; h < z->to; h++, to_next_row(&row))
        z->fade[h] = soften(&row, z->s + h * TILE, x->skip, x->n, &most[h]);
    if (type == TN_TYPE_Q8_0) {
        /* Apart from the softmax, so that no row waits for the lanes of the one before. */
        for (int32_t h = z->from; h < z->to; h++)
            z->s_most[h] = v_max_lanes(most[h]);
        if (x->skip <= 0 && x->n >= TILE)
            read_scales(z, x, true);
        else
            read_scales(z, x, false);
        scale_weights(z, x);
    }
    weigh_all(z, x, type);
}

/* ---- rows of one or more tokens -------------------------------------------------------------- */

/* Rows [0, n_rows) are heads [h0, h0 + group) of tokens [t0, t1), chunk c. */
typedef struct one_item {
    int32_t kv_head, h0, group;
    int64_t t0, t1, c;
} one_item;

/* The keys of [lo, hi) up to the next multiple of TILE or the end of the page. Tiles lie alike
 * however the keys are cut into chunks and tokens into batches, as weights are rounded by tile. */
INLINE keys keys_at(const tn_attend *a, int32_t kv_head, int64_t lo, int64_t hi)
{
    const tn_kv_view *kv = &a->kv;
    const int64_t tile = kv->page_size < TILE ? kv->page_size : TILE;
    const int64_t start = lo / TN_KV_UNIT * TN_KV_UNIT, end = (lo / tile + 1) * tile;
    keys x = {.skip = lo - start, .n = (end < hi ? end : hi) - start};
    x.k = kv_unit(kv, kv->k, kv->head_dim_k, kv_head, start);
    x.v = kv_unit(kv, kv->v, kv->head_dim_v, kv_head, start);
    const int64_t last = a->pos0 + a->n - 1;
    const int64_t next = end <= last ? end : start, far = end + tile <= last ? end + tile : start;
    x.next_k = kv_unit(kv, kv->k, kv->head_dim_k, kv_head, next);
    x.next_v = kv_unit(kv, kv->v, kv->head_dim_v, kv_head, next);
    x.far_k = kv_unit(kv, kv->k, kv->head_dim_k, kv_head, far);
    x.far_v = kv_unit(kv, kv->v, kv->head_dim_v, kv_head, far);
    return x;
}

/* As keys_at, and what to bring near meanwhile. */
INLINE keys near_keys_at(const tn_attend *a, const one *z, int32_t kv_head, int64_t lo, int64_t hi)
{
    keys x = keys_at(a, kv_head, lo, hi);
    if (TILE / TN_KV_UNIT * z->k_bytes <= NEAR_TILE) {
        x.near_k = x.v;
        x.near_v = x.next_k;
    } else {
        x.near_k = x.k + NEAR_BYTES;
        const size_t rows = NEAR_ROWS * z->v_bytes / TN_KV_UNIT;
        /* of Q8_0 the next dims */
        x.near_v = x.v + (z->type == TN_TYPE_Q8_0 ? 8 * LANES : rows);
    }
    return x;
}

/* Keys [lo, hi) of a tile, where tokens do not see the same ones. */
INLINE void edge_tile(const tn_attend *a, one *z, const one_item *m, int64_t lo, int64_t hi,
                      uint32_t type)
{
    for (int64_t t = m->t0; t < m->t1; t++) {
        int64_t from, to;
        tn_attend_range(a, t, m->c, &from, &to);
        if (from < lo) from = lo;
        if (to > hi) to = hi;
        if (from >= to) continue;
        const keys x = near_keys_at(a, z, m->kv_head, from, to);
        z->from = (int32_t)(t - m->t0) * m->group;
        z->to = z->from + m->group;
        one_tile(a, z, &x, type);
    }
}

INLINE void one_context(const tn_attend *a, one *z, const one_item *m, uint32_t type)
{
    int64_t lo, hi, all_lo, all_hi; /* keys that some row sees, and that all see */
    tn_attend_range(a, m->t0, m->c, &lo, &all_hi);
    tn_attend_range(a, m->t1 - 1, m->c, &all_lo, &hi);
    for (int64_t n; lo < hi; lo += n) {
        const keys x = near_keys_at(a, z, m->kv_head, lo, hi);
        n = x.n - x.skip;
        if (lo < all_lo || lo + n > all_hi) {
            edge_tile(a, z, m, lo, lo + n, type);
            continue;
        }
        z->from = 0;
        z->to = z->n_rows;
        one_tile(a, z, &x, type);
    }
}

/* Takes n floats of scratch. */
INLINE float *floats(char **scratch, int64_t n)
{
    float *p = (float *)(void *)*scratch;
    *scratch += (size_t)(n + 15) / 16 * 64;
    return p;
}

static inline void one_init(one *z, const tn_attend *a, int32_t n_rows, char *scratch)
{
    const int64_t dim_k = a->kv.head_dim_k, dim_v = a->kv.head_dim_v, n = n_rows;
    *z = (one){.n_rows = n_rows, .dim_k = (int32_t)dim_k, .dim_v = (int32_t)dim_v};
    z->type = a->kv.type;
    z->k_bytes = TN_KV_UNIT * tn_kv_row_bytes(z->type, z->dim_k);
    z->v_bytes = TN_KV_UNIT * tn_kv_row_bytes(z->type, z->dim_v);
    z->o = floats(&scratch, n * dim_v);
    z->s = floats(&scratch, n * TILE);
    z->max = floats(&scratch, n);
    z->fade = floats(&scratch, n);
    z->sum = floats(&scratch, n * LANES);
    z->s_most = floats(&scratch, n);
    memset(z->o, 0, (size_t)(n * dim_v) * sizeof(float));
    memset(z->sum, 0, (size_t)(n * LANES) * sizeof(float));
    z->soft_lines = SOFT_LINES;
    if (z->type != TN_TYPE_Q8_0) {
        z->q = floats(&scratch, n * dim_k);
        return;
    }
    const int64_t left = dim_k / TN_QK * (HALF_LINES - SCORE_LINES);
    z->soft_lines = (int32_t)((left + n - 1) / n);
    z->weight_lines = WEIGHT_LINES / n_rows;
    z->q_int = (int32_t *)(void *)floats(&scratch, n * dim_k / 2);
    z->q_scale = floats(&scratch, n * dim_k / TN_QK);
    z->q_seed = (int32_t *)(void *)floats(&scratch, n * dim_k / TN_QK);
    z->v_share = (vi *)(void *)floats(&scratch, dim_v / TN_QK * (TILE / 2));
    z->v_most = floats(&scratch, dim_v / TN_QK);
    z->weight = (int32_t *)(void *)floats(&scratch, dim_v / TN_QK * n * TILE / 2);
}

/* Query q becomes row h, scaled, as the kernels read it. */
INLINE void put_query(const one *z, int32_t h, const float *q, float scale)
{
    z->max[h] = -INFINITY;
    if (z->type != TN_TYPE_Q8_0) {
        for (int32_t d = 0; d < z->dim_k; d += LANES)
            v_store(z->q + (int64_t)h * z->dim_k + d, v_mul(v_load(q + d), v_set(scale)));
        return;
    }
    for (int32_t b = 0; b < z->dim_k / TN_QK; b++) {
        const int32_t at = b * z->n_rows + h;
        q8_split(q + b * TN_QK, scale, z->q_int + (b * 8 * z->n_rows + h) * 2, 2 * z->n_rows,
                 z->q_scale + at, z->q_seed + at);
    }
}

static inline void run_item(const tn_attend *a, const one_item *m, void *scratch)
{
    one z;
    const int32_t n = (int32_t)(m->t1 - m->t0) * m->group;
    one_init(&z, a, n, scratch);
    for (int32_t r = 0; r < n; r++)
        put_query(&z, r,
                  a->q + (m->t0 + r / m->group) * a->q_stride +
                      (int64_t)(m->h0 + r % m->group) * z.dim_k,
                  a->scale);
    if (z.type == TN_TYPE_F16)
        one_context(a, &z, m, TN_TYPE_F16);
    else if (z.type == TN_TYPE_F32)
        one_context(a, &z, m, TN_TYPE_F32);
    else
        one_context(a, &z, m, TN_TYPE_Q8_0);
    for (int32_t r = 0; r < n; r++)
        store_row(a, m->t0 + r / m->group, m->h0 + r % m->group, m->c, z.max[r],
                  v_sum_lanes(v_load(z.sum + r * LANES)), z.o + (int64_t)r * z.dim_v);
}

/* As many tokens at a time as MAX_ONE rows are, or the heads of one in several parts. */
static inline void attend_rows(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1,
                               int64_t c, void *scratch)
{
    const int32_t group = a->n_head / a->kv.n_head_kv;
    const int64_t n = group < MAX_ONE ? MAX_ONE / group : 1;
    for (int64_t t = t0; t < t1; t += n)
        for (int32_t h = 0; h < group; h += MAX_ONE) {
            const one_item m = {.kv_head = kv_head,
                                .h0 = kv_head * group + h,
                                .group = group - h < MAX_ONE ? group - h : MAX_ONE,
                                .t0 = t,
                                .t1 = t + n < t1 ? t + n : t1,
                                .c = c};
            run_item(a, &m, scratch);
        }
}

#endif
