/* Attention of several tokens (prefill) to a Q8_0 cache in 16 bits: avx512_attend_lanes.h. K and V
 * are widened once for all rows. Queries and weights are as in avx_attend_q8.h, which says why sums
 * fit. */
#ifndef TN_AVX512_ATTEND_Q8_H
#define TN_AVX512_ATTEND_Q8_H

#include "avx512_attend_lanes.h"

INLINE vi two_words(const int16_t *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return q8_set(pair);
}

/* ---- scores ---------------------------------------------------------------------------------- */

INLINE void widen_keys(const lanes *z, const char *unit)
{
    const char *quads = unit + z->dim_k;
    for (int32_t j = 0; j < z->dim_k * TN_KV_UNIT; j += 32) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(quads + j));
        const vi wide = _mm512_cvtepu8_epi16(x);
        _mm512_storeu_si512(z->k + j, _mm512_sub_epi16(wide, _mm512_set1_epi16(TN_KV_K_OFFSET)));
    }
    for (int32_t b = 0; b < z->dim_k / TN_QK; b++)
        v_store(z->k_scale + b * TN_KV_UNIT, v_halves(unit + b * 2 * TN_KV_UNIT));
}

/* s[KEYS][R] of keys `first` and on of the unit: block b adds its part. */
INLINE void score_keys(const lanes *z, int32_t b, int first, float *s, const int vecs)
{
    const int32_t n = LANES * vecs;
    const int32_t *q = z->q + b * 16 * n;
    const int16_t *k = z->k + (b * 8 * TN_KV_UNIT + first) * 4;
    vi sum[KEYS * MAX_VECS];
    UNROLL for (int i = 0; i < KEYS * vecs; i++) sum[i] = q8_set(0);
    for (int j = 0; j < 8; j++, k += TN_KV_UNIT * 4)
        UNROLL for (int p = 0; p < 2; p++, q += n)
        {
            vi x[MAX_VECS];
            UNROLL for (int v = 0; v < vecs; v++) x[v] = load_int(q + LANES * v);
            UNROLL for (int i = 0; i < KEYS; i++)
            {
                const vi y = two_words(k + i * 4 + p * 2);
                UNROLL for (int v = 0; v < vecs; v++) dot_pairs(&sum[i * vecs + v], x[v], y);
            }
        }
    const float *scale = z->k_scale + b * TN_KV_UNIT + first;
    const vmask add = b ? 0xffff : 0;
    UNROLL for (int v = 0; v < vecs; v++)
    {
        const vf q_scale = v_load(z->q_scale + b * n + LANES * v);
        UNROLL for (int i = 0; i < KEYS; i++)
        {
            float *at = s + i * n + LANES * v;
            const vf both = v_mul(v_set(scale[i]), q_scale);
            v_store(at, v_fma(_mm512_cvtepi32_ps(sum[i * vecs + v]), both, v_load_some(at, add)));
        }
    }
}

INLINE void score_tile(const lanes *z, const many_keys *x, const int vecs)
{
    const size_t bytes = TN_KV_UNIT * tn_kv_row_bytes(TN_TYPE_Q8_0, z->dim_k);
    for (int32_t i = 0; i < x->n; i += TN_KV_UNIT) {
        widen_keys(z, x->at.k + (size_t)i / TN_KV_UNIT * bytes);
        for (int first = 0; first < TN_KV_UNIT; first += KEYS) {
            float *s = z->s + (i + first) * LANES * vecs;
            for (int32_t b = 0; b < z->dim_k / TN_QK; b++) {
                score_keys(z, b, first, s, vecs);
                __asm__ volatile("" ::: "memory"); /* else gcc keeps s in registers, and spills */
            }
        }
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Scales of block b of V at the units of a tile; `none`, zeros, stands for what is behind it. */
INLINE void value_scales(const lanes *z, const many_keys *x, int32_t b, const char *none,
                         const char **at)
{
    const size_t bytes = TN_KV_UNIT * tn_kv_row_bytes(TN_TYPE_Q8_0, z->dim_v);
    UNROLL for (int u = 0; u < TILE / TN_KV_UNIT; u++) at[u] =
        u * TN_KV_UNIT < x->n ? x->at.v + (size_t)u * bytes + b * 2 * TN_KV_UNIT : none;
}

/* weight times scales of V, as shares of the largest. */
INLINE void share_whole(const lanes *z, const many_keys *x, const char *const *at, const int vecs)
{
    const int32_t n = LANES * vecs;
    int16_t share[TILE];
    const float most = largest_scale(at);
    const vf f = v_set(most > 0 ? (float)q8_most / most : 0);
    UNROLL for (int u = 0; u < TILE / TN_KV_UNIT; u++)
    {
        const vi words = _mm512_cvtps_epi32(v_mul(v_halves(at[u]), f));
        _mm256_storeu_si256((__m256i *)(void *)(share + u * TN_KV_UNIT),
                            _mm512_cvtepi32_epi16(words));
    }
    UNROLL for (int v = 0; v < vecs; v++)
        v_store(z->v_factor + LANES * v,
                v_mul(v_load(z->factor + LANES * v), v_set(most / q8_most_weight)));
    for (int32_t p = 0; p < x->n / 2; p++)
        UNROLL for (int v = 0; v < vecs; v++)
        {
            const int32_t i = p * n + LANES * v;
            const vi pair = two_words(share + 2 * p);
            _mm512_storeu_si512(z->share + i, _mm512_mulhrs_epi16(load_int(z->weight + i), pair));
        }
}

/* The same where rows see different keys: the largest scale is that of keys that a row sees, as
 * where it is computed alone. As integers, too, scales stand in order, and NaN above them. */
static void share_edge(const lanes *z, const many_keys *x, const char *const *at)
{
    const int32_t n = LANES * z->vecs;
    int32_t bits[TILE];
    float scale[TILE];
    for (int u = 0; u < TILE / TN_KV_UNIT; u++) {
        const __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)at[u]);
        _mm512_storeu_si512(bits + u * TN_KV_UNIT, _mm512_cvtepu16_epi32(halves));
        v_store(scale + u * TN_KV_UNIT, v_halves(at[u]));
    }
    for (int32_t r = 0; r < n; r += LANES) {
        vi top = q8_set(0);
        for (int32_t k = 0; k < x->n; k++)
            top = _mm512_mask_max_epi32(top, sees(z, r, k), top, q8_set(bits[k]));
        const vf most = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(top));
        const vf f = v_select(v_less(v_zero(), most), v_div(v_set(q8_most), most), v_zero());
        v_store(z->v_factor + r, v_mul(v_load(z->factor + r), v_div(most, v_set(q8_most_weight))));
        for (int32_t p = 0; p < x->n / 2; p++) {
            const vf a = v_mul(v_set(scale[2 * p]), f), b = v_mul(v_set(scale[2 * p + 1]), f);
            const vi w = load_int(z->weight + p * n + r); /* 0 where a or b may be anything */
            _mm512_storeu_si512(z->share + p * n + r, _mm512_mulhrs_epi16(w, words_of(a, b)));
        }
    }
}

INLINE void widen_values(const lanes *z, const many_keys *x, int32_t b)
{
    const size_t bytes = TN_KV_UNIT * tn_kv_row_bytes(TN_TYPE_Q8_0, z->dim_v);
    int16_t *to = z->v;
    for (int32_t i = 0; i < x->n; i += 4) {
        const char *quads = x->at.v + (size_t)(i / TN_KV_UNIT) * bytes + z->dim_v +
                            ((size_t)i % TN_KV_UNIT * (size_t)z->dim_v) + b * TN_QK * 4;
        UNROLL for (int j = 0; j < 128; j += 32, to += 32)
        {
            const __m256i y = _mm256_loadu_si256((const __m256i *)(const void *)(quads + j));
            _mm512_storeu_si512(to, _mm512_cvtepi8_epi16(y));
        }
    }
}

/* o[KEYS dims from d of block b on][R] += the tile's weights times V. */
INLINE void value_dims(const lanes *z, const many_keys *x, int32_t b, int d, const int vecs)
{
    const int32_t n = LANES * vecs;
    const int32_t *w = z->share;
    const int16_t *values = z->v + d * 4;
    vi sum[KEYS * MAX_VECS];
    UNROLL for (int i = 0; i < KEYS * vecs; i++) sum[i] = q8_set(0);
    for (int32_t k = 0; k < x->n; k += 4, values += 4 * TN_QK)
        UNROLL for (int p = 0; p < 2; p++, w += n)
        {
            vi y[MAX_VECS];
            UNROLL for (int v = 0; v < vecs; v++) y[v] = load_int(w + LANES * v);
            UNROLL for (int i = 0; i < KEYS; i++)
            {
                const vi pair = two_words(values + i * 4 + p * 2);
                UNROLL for (int v = 0; v < vecs; v++) dot_pairs(&sum[i * vecs + v], y[v], pair);
            }
        }
    __asm__ volatile("" ::: "memory"); /* else gcc keeps factors in registers, and sums not */
    float *o = z->o + (b * TN_QK + d) * n;
    UNROLL for (int i = 0; i < KEYS; i++) UNROLL for (int v = 0; v < vecs; v++)
    {
        float *at = o + i * n + LANES * v;
        const vf factor = v_load(z->v_factor + LANES * v);
        v_store(at, v_fma(_mm512_cvtepi32_ps(sum[i * vecs + v]), factor, v_load(at)));
    }
}

INLINE void block_values(const lanes *z, const many_keys *x, int32_t b, const int vecs)
{
    static const char none[2 * TN_KV_UNIT];
    const char *at[TILE / TN_KV_UNIT];
    value_scales(z, x, b, none, at);
    if (x->whole)
        share_whole(z, x, at, vecs);
    else
        share_edge(z, x, at);
    widen_values(z, x, b);
    for (int d = 0; d < TN_QK; d += KEYS)
        value_dims(z, x, b, d, vecs);
}

INLINE void value_tile(const lanes *z, const many_keys *x, const int vecs)
{
    for (int32_t b = 0; b < z->dim_v / TN_QK; b++)
        block_values(z, x, b, vecs);
}

/* ---- rows ------------------------------------------------------------------------------------ */

INLINE void weigh_tile(const lanes *z, const many_keys *x, const int vecs)
{
    soften_lanes(z, x, 0, vecs);
}
BY_VECS(score_tile)
BY_VECS(weigh_tile)
BY_VECS(value_tile)

/* q[dim_k] as row r. */
static void q8_query(const lanes *z, int32_t r, const float *q)
{
    const int32_t n = LANES * z->vecs;
    for (int32_t b = 0; b < z->dim_k / TN_QK; b++, q += TN_QK) {
        int32_t pairs[TN_QK / 2];
        const vf f = q8_factor(q, z->a->scale, z->q_scale + b * n + r);
        UNROLL for (int i = 0; i < 2; i++)
            _mm256_storeu_si256((__m256i *)(void *)(pairs + i * 8),
                                _mm512_cvtepi32_epi16(q8_integers(q + i * LANES, f)));
        for (int i = 0; i < TN_QK / 2; i++)
            z->q[(b * (TN_QK / 2) + i) * n + r] = pairs[i];
    }
}

/* Keys [lo, hi) of some row, up to the end of a tile; all of them see [all_lo, all_hi). */
static many_keys keys_of(const lanes *z, int64_t lo, int64_t hi, int64_t all_lo, int64_t all_hi)
{
    many_keys x = {.at = keys_at(z->a, z->kv_head, lo, hi), .start = lo / TN_KV_UNIT * TN_KV_UNIT};
    x.n = (int32_t)((x.at.n + TN_KV_UNIT - 1) / TN_KV_UNIT * TN_KV_UNIT);
    x.whole = x.start >= all_lo && x.start + x.n <= all_hi;
    if (!x.whole || z->a->softcap > 0) note_sight(z, &x);
    return x;
}

static void q8_rows(const lanes *z)
{
    static const lanes_stage stages[MAX_VECS][3] = {{score_tile_1, weigh_tile_1, value_tile_1},
                                                    {score_tile_2, weigh_tile_2, value_tile_2},
                                                    {score_tile_3, weigh_tile_3, value_tile_3}};
    int64_t lo, hi, all_lo, all_hi;
    tn_attend_range(z->a, token_of(z, 0), z->c, &lo, &all_hi);
    tn_attend_range(z->a, token_of(z, z->n_rows - 1), z->c, &all_lo, &hi);
    lanes_start(z);
    memset(z->q_scale, 0, (size_t)(z->dim_k / TN_QK * LANES * z->vecs) * sizeof(float));
    for (int32_t r = 0; r < z->n_rows; r++)
        q8_query(z, r, query_of(z, r));
    while (lo < hi) {
        const many_keys x = keys_of(z, lo, hi, all_lo, all_hi);
        lanes_tile(z, &x, stages[z->vecs - 1]);
        lo = x.start + x.at.n;
    }
    lanes_finish(z);
}

static void q8_init(lanes *z, char *scratch)
{
    const int64_t n = LANES * MAX_VECS;
    z->q = (int32_t *)(void *)floats(&scratch, z->dim_k / 2 * n);
    z->q_scale = floats(&scratch, z->dim_k / TN_QK * n);
    z->k = (int16_t *)(void *)floats(&scratch, z->dim_k / 2 * TN_KV_UNIT);
    z->k_scale = floats(&scratch, z->dim_k / TN_QK * TN_KV_UNIT);
    z->v = (int16_t *)(void *)floats(&scratch, TILE * TN_QK / 2);
    z->v_factor = floats(&scratch, n);
    take_scores(z, &scratch);
    take_sums(z, &scratch);
}

static inline void attend_q8(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                             void *scratch)
{
    lanes z = lanes_of(a, kv_head, t0, c);
    q8_init(&z, scratch);
    const int64_t all = (t1 - t0) * z.group;
    for (; z.row0 < all; z.row0 += z.n_rows) {
        take_rows(&z, all);
        z.share = z.weight + PAIRS * LANES * z.vecs;
        q8_rows(&z);
    }
}

#endif
