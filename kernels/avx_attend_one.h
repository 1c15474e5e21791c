/* Attention of one token (decode): dot products straight from the cache, up to four heads for each
 * load, with the next rows on their way from memory meanwhile. */
#ifndef TN_AVX_ATTEND_ONE_H
#define TN_AVX_ATTEND_ONE_H

#include "avx_attend_row.h"

enum {
    MAX_ONE = 16,  /* heads of a group at a time */
    MAX_DIM = 1024 /* of a head */
};

/* State of one token's heads, in scratch; rows of dim_k and dim_v floats. */
typedef struct one {
    int32_t group, dim_k, dim_v;
    size_t k_bytes, v_bytes; /* of a row */
    float *q, *o, *max, *sum, *fade;
    float *s;                 /* [group][TILE] */
    float *k_scale, *v_scale; /* [TILE][blocks], [blocks][TILE] of a Q8_0 tile */
    float *weight;            /* [group][blocks][TILE]: s times the scale of V */
} one;

/* A tile of keys; `next`: K of the tile after it. */
typedef struct keys {
    const char *k, *v, *next;
    int64_t n;
} keys;

/* Asks for the cache lines of [p, p + bytes). */
INLINE void fetch(const char *p, const int bytes)
{
    UNROLL for (int i = 0; i < bytes; i += 64) _mm_prefetch(p + i, _MM_HINT_T0);
}

/* Heads and keys of a block of scores fit the registers together with what they are made of. */
INLINE int keys_at_once(int heads)
{
    if (LANES == 16) return heads == 4 ? 4 : 8;
    return heads == 1 ? 8 : heads == 4 ? 2 : 4;
}

/* s[h * TILE + i]: the sum of a[h][i]. */
#ifdef __AVX512F__
INLINE void put_sums(const vf *a, int heads, int n, float *s)
{
    if (n == 8) {
        UNROLL for (int h = 0; h < heads; h++) _mm256_storeu_ps(s + h * TILE, v_sums8(a + 8 * h));
        return;
    }
    const __m512 x = v_sums16(a);
    _mm_storeu_ps(s, _mm512_castps512_ps128(x));
    _mm_storeu_ps(s + TILE, _mm512_extractf32x4_ps(x, 1));
    _mm_storeu_ps(s + 2 * TILE, _mm512_extractf32x4_ps(x, 2));
    _mm_storeu_ps(s + 3 * TILE, _mm512_extractf32x4_ps(x, 3));
}
#else
INLINE void put_sums(const vf *a, int heads, int n, float *s)
{
    if (n == 8) {
        _mm256_storeu_ps(s, v_sums8(a));
    } else if (n == 4) {
        UNROLL for (int h = 0; h < heads; h++) _mm_storeu_ps(s + h * TILE, v_sums4(a + 4 * h));
    } else {
        UNROLL for (int h = 0; h < heads; h += 2)
        {
            const __m128 x = v_sums4(a + 2 * h);
            _mm_storel_pi((__m64 *)(void *)(s + h * TILE), x);
            _mm_storeh_pi((__m64 *)(void *)(s + (h + 1) * TILE), x);
        }
    }
}
#endif

/* Scores of heads h .. h + heads - 1 with keys j .. j + n - 1 (heads, n constants); keys after the
 * last repeat it. V of the same keys is asked for. */
INLINE void dots(const one *z, const keys *x, int64_t j, int32_t h, uint32_t type, const int heads,
                 const int n, bool ahead)
{
    const int32_t step = type == TN_TYPE_Q8_0 ? TN_QK : LANES;
    const float *q = z->q + (int64_t)h * z->dim_k;
    const char *key[8];
    const float *scale[8];
    const char *v = x->v + (size_t)j * z->v_bytes;
    const int share = n * (int)row_bytes_of(type, step); /* of V, for each step */
    vf acc[24];
    UNROLL for (int i = 0; i < n; i++)
    {
        const int64_t at = j + i < x->n ? j + i : x->n - 1;
        key[i] = x->k + (size_t)at * z->k_bytes;
        scale[i] = z->k_scale + at * (z->dim_k / TN_QK);
    }
    UNROLL for (int i = 0; i < heads * n; i++) acc[i] = v_zero();
    for (int32_t d = 0; d < z->dim_k; d += step, v += share) {
        if (ahead) fetch(v, share);
        UNROLL for (int32_t u = 0; u < step; u += LANES)
        {
            vf w[4];
            UNROLL for (int i = 0; i < heads; i++) w[i] = v_load(q + (int64_t)i * z->dim_k + d + u);
            UNROLL for (int i = 0; i < n; i++)
            {
                vf y = row_piece(key[i], d + u, type);
                if (type == TN_TYPE_Q8_0) y = v_mul(y, v_set(scale[i][d / TN_QK]));
                UNROLL for (int g = 0; g < heads; g++) acc[g * n + i] =
                    v_fma(w[g], y, acc[g * n + i]);
            }
        }
    }
    put_sums(acc, heads, n, z->s + h * TILE + j);
}

INLINE void scores_of(const one *z, const keys *x, int32_t h, uint32_t type, const int heads,
                      bool ahead)
{
    const int n = keys_at_once(heads);
    for (int64_t j = 0; j < x->n; j += n) {
        dots(z, x, j, h, type, heads, n, ahead);
    }
}

INLINE void scores(const one *z, const keys *x, uint32_t type)
{
    int32_t h = 0;
    for (; z->group - h >= 4; h += 4)
        scores_of(z, x, h, type, 4, h == 0);
    switch (z->group - h) {
    case 3: scores_of(z, x, h, type, 3, h == 0); return;
    case 2: scores_of(z, x, h, type, 2, h == 0); return;
    case 1: scores_of(z, x, h, type, 1, h == 0); return;
    default: return;
    }
}

/* o[h] = o[h] * fade[h] + sum over keys of weight * V row, for `vecs` vectors of columns from d on.
 */
INLINE void weigh(const one *z, const keys *x, int32_t h, int32_t d, uint32_t type, const int heads,
                  const int vecs, bool ahead)
{
    const bool q8 = type == TN_TYPE_Q8_0;
    const int size = q8 ? 1 : type == TN_TYPE_F16 ? 2 : 4;
    const int64_t blocks = z->dim_v / TN_QK, row = q8 ? blocks * TILE : TILE;
    const float *s = (q8 ? z->weight + d / TN_QK * TILE : z->s) + h * row;
    float *o = z->o + (int64_t)h * z->dim_v + d;
    const char *v = x->v, *next = x->next + row_bytes_of(type, d);
    vf acc[16];
    UNROLL for (int g = 0; g < heads; g++) UNROLL for (int i = 0; i < vecs; i++) acc[g * vecs + i] =
        v_mul(v_load(o + (int64_t)g * z->dim_v + LANES * i), v_set(z->fade[h + g]));
    for (int64_t k = 0; k < x->n; k++, v += z->v_bytes, next += z->k_bytes) {
        if (ahead) fetch(next, vecs * LANES * size);
        UNROLL for (int i = 0; i < vecs; i++)
        {
            const vf y = row_piece(v, d + LANES * i, type);
            const float *w = s + k + (q8 ? d % TN_QK + LANES * i : 0) / TN_QK * TILE;
            UNROLL for (int g = 0; g < heads; g++) acc[g * vecs + i] =
                v_fma(y, v_set(w[g * row]), acc[g * vecs + i]);
        }
    }
    UNROLL for (int g = 0; g < heads; g++) UNROLL for (int i = 0; i < vecs; i++)
        v_store(o + (int64_t)g * z->dim_v + LANES * i, acc[g * vecs + i]);
}

INLINE void weigh_heads(const one *z, const keys *x, int32_t h, uint32_t type, const int heads,
                        bool ahead)
{
    const int most = LANES == 16 ? (heads <= 2 ? 8 : 4) : (heads == 1 ? 8 : heads == 4 ? 2 : 4);
    int32_t d = 0, left = z->dim_v / LANES;
    for (; left >= most; left -= most, d += most * LANES)
        weigh(z, x, h, d, type, heads, most, ahead);
    if (most > 4 && left >= 4) {
        weigh(z, x, h, d, type, heads, 4, ahead);
        left -= 4;
        d += 4 * LANES;
    }
    if (most > 2 && left >= 2) {
        weigh(z, x, h, d, type, heads, 2, ahead);
        left -= 2;
        d += 2 * LANES;
    }
    if (left) weigh(z, x, h, d, type, heads, 1, ahead);
}

INLINE void weigh_all(const one *z, const keys *x, uint32_t type)
{
    int32_t h = 0;
    for (; z->group - h >= 4; h += 4)
        weigh_heads(z, x, h, type, 4, h == 0);
    switch (z->group - h) {
    case 3: weigh_heads(z, x, h, type, 3, h == 0); return;
    case 2: weigh_heads(z, x, h, type, 2, h == 0); return;
    case 1: weigh_heads(z, x, h, type, 1, h == 0); return;
    default: return;
    }
}

/* The scales of n blocks as floats, each `stride` blocks after the one before. */
static inline void read_scales(const tn_block_q8_0 *b, int64_t n, int64_t stride, float *out)
{
    uint16_t half[TILE];
    for (; n > 0; n -= TILE, b += TILE * stride, out += TILE) {
        const int64_t m = n < TILE ? n : TILE;
#pragma GCC unroll 4
        for (int64_t i = 0; i < m; i++)
            half[i] = b[i * stride].d;
        for (int64_t i = 0; i < m; i += LANES)
            v_store(out + i, v_halves(half + i));
    }
}

/* weight[h][block][key] = s[h][key] * scale of V */
static inline void scale_weights(const one *z, int64_t n)
{
    const int32_t blocks = z->dim_v / TN_QK;
    for (int32_t h = 0; h < z->group; h++)
        for (int32_t b = 0; b < blocks; b++)
            for (int64_t i = 0; i < n; i += LANES)
                v_store(z->weight + (h * blocks + b) * TILE + i,
                        v_mul(v_load(z->s + h * TILE + i), v_load(z->v_scale + b * TILE + i)));
}

INLINE void one_tile(const tn_attend *a, const one *z, const keys *x, uint32_t type)
{
    const int64_t k_blocks = z->dim_k / TN_QK, v_blocks = z->dim_v / TN_QK;
    if (type == TN_TYPE_Q8_0) read_scales((const void *)x->k, x->n * k_blocks, 1, z->k_scale);
    scores(z, x, type);
    for (int32_t h = 0; h < z->group; h++)
        z->fade[h] = softmax_tile(z->s + h * TILE, 0, x->n, a->softcap, &z->max[h], &z->sum[h]);
    if (type == TN_TYPE_Q8_0) {
        for (int64_t j = 0; j < v_blocks; j++)
            read_scales((const tn_block_q8_0 *)(const void *)x->v + j, x->n, v_blocks,
                        z->v_scale + j * TILE);
        scale_weights(z, x->n);
    }
    weigh_all(z, x, type);
}

/* Keys from lo on, of one page. */
static inline int64_t tile_keys(const tn_kv_view *kv, int64_t lo, int64_t hi)
{
    int64_t n = kv->page_size - (lo & (kv->page_size - 1));
    if (n > hi - lo) n = hi - lo;
    return n < TILE ? n : TILE;
}

INLINE void one_context(const tn_attend *a, const one *z, int32_t kv_head, int64_t lo, int64_t hi,
                        uint32_t type)
{
    const tn_kv_view *kv = &a->kv;
    for (int64_t n; lo < hi; lo += n) {
        n = tile_keys(kv, lo, hi);
        keys x = {.n = n};
        x.k = kv_row(kv, kv->k, z->dim_k, kv_head, lo);
        x.v = kv_row(kv, kv->v, z->dim_v, kv_head, lo);
        x.next = lo + n < hi ? kv_row(kv, kv->k, z->dim_k, kv_head, lo + n) : x.k;
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

static inline void one_init(one *z, const tn_attend *a, int32_t group, char *scratch)
{
    const int64_t dim_k = a->kv.head_dim_k, dim_v = a->kv.head_dim_v;
    *z = (one){.group = group, .dim_k = (int32_t)dim_k, .dim_v = (int32_t)dim_v};
    z->k_bytes = row_bytes_of(a->kv.type, z->dim_k);
    z->v_bytes = row_bytes_of(a->kv.type, z->dim_v);
    z->q = floats(&scratch, group * dim_k);
    z->o = floats(&scratch, group * dim_v);
    z->s = floats(&scratch, group * TILE);
    z->max = floats(&scratch, group);
    z->sum = floats(&scratch, group);
    z->fade = floats(&scratch, group);
    z->k_scale = floats(&scratch, dim_k / TN_QK * TILE);
    z->v_scale = floats(&scratch, dim_v / TN_QK * TILE);
    z->weight = floats(&scratch, group * (dim_v / TN_QK) * TILE);
}

/* Heads [h0, h0 + group) of token t, all of one KV head; group is at most MAX_ONE. */
static inline void attend_one(const tn_attend *a, int32_t kv_head, int64_t t, int32_t h0,
                              int32_t group, int64_t c, void *scratch)
{
    one z;
    one_init(&z, a, group, scratch);
    const float *q = a->q + t * a->q_stride + (int64_t)h0 * z.dim_k;
    for (int64_t i = 0; i < (int64_t)group * z.dim_k; i += LANES)
        v_store(z.q + i, v_mul(v_load(q + i), v_set(a->scale)));
    memset(z.o, 0, (size_t)group * (size_t)z.dim_v * sizeof(float));
    for (int32_t h = 0; h < group; h++) {
        z.max[h] = -INFINITY;
        z.sum[h] = 0;
    }
    int64_t lo, hi;
    tn_attend_range(a, t, c, &lo, &hi);
    if (a->kv.type == TN_TYPE_F16)
        one_context(a, &z, kv_head, lo, hi, TN_TYPE_F16);
    else if (a->kv.type == TN_TYPE_F32)
        one_context(a, &z, kv_head, lo, hi, TN_TYPE_F32);
    else
        one_context(a, &z, kv_head, lo, hi, TN_TYPE_Q8_0);
    for (int32_t h = 0; h < group; h++)
        store_row(a, t, h0 + h, c, z.max[h], z.sum[h], z.o + (int64_t)h * z.dim_v);
}

#endif
