/* Attention of several tokens (prefill) to a Q8_0 cache, with VNNI. Up to 48 rows at a time, a row
 * being one head of one token, lie in the lanes of up to three vectors: scores, weights and sums
 * are [key or dim][rows], and nothing of the softmax goes across lanes. K and V are widened to 16
 * bits once for all rows, and broadcast in pairs of dims, or of positions, for vpdpwssd. Queries
 * and weights have 16 bits as in avx_attend_q8.h, which says why sums fit. Of a
 * tile whose largest score of a row is top
 *     w = e^(s - top),  l' = l + e^(top - m) sum w,  o' = o + e^(top - m) sum w v
 * where m is near the largest score: it moves, and l and o with it, where top leaves it behind. */
#ifndef TN_AVX512_ATTEND_Q8_H
#define TN_AVX512_ATTEND_Q8_H

#include "avx_attend_one.h"

enum {
    MAX_VECS = 3,
    KEYS = 8, /* of scores, and dims of values, that registers hold sums of */
    PAIRS = TILE / 2,
    FAR = 16 /* what top may be above m: e^FAR times a weight is far from overflow */
};

/* Rows [row0, row0 + n_rows) of an item, row r being of token t0 + r / group; in scratch.
 * R: 16 * vecs. Rows that fill up the vectors have scores of zero. */
typedef struct lanes {
    const tn_attend *a;
    int32_t kv_head, group, dim_k, dim_v, vecs;
    int64_t t0, c, row0, n_rows;
    int32_t *q;      /* [dim_k / 2][R] pairs of dims, see q8_split */
    float *q_scale;  /* [dim_k / 32][R] */
    float *s;        /* [TILE][R]: scores */
    int32_t *weight; /* [PAIRS][R] pairs of keys, where s was */
    int32_t *share;  /* [PAIRS][R]: weight times the scales of a block of V; where s was */
    int16_t *k;      /* [dim_k / 4][TN_KV_UNIT][4]: a unit of K */
    float *k_scale;  /* [dim_k / 32][TN_KV_UNIT] */
    int16_t *v;      /* [TILE / 4][32][4]: a block of V */
    float *o;        /* [dim_v][R] */
    float *max, *sum, *factor; /* [R]: m, l, e^(top - m) */
    float *v_factor;           /* [R]: the same times the scale of a block of V */
    int32_t *lo, *hi;          /* [R]: keys of the tile that a row sees, where they differ */
    float *out;                /* [dim_v]: a row */
} lanes;

/* A tile, and whether all rows see all of it. */
typedef struct many_keys {
    keys at;
    int64_t start;
    int32_t n; /* x.n up to whole units */
    bool whole;
} many_keys;

static inline int64_t token_of(const lanes *z, int64_t r)
{
    return z->t0 + (z->row0 + r) / z->group;
}

/* sum += a times b in pairs, in place: see q8_dot. */
INLINE void dot_pairs(vi *sum, vi a, vi b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}

INLINE vi load_int(const void *p)
{
    return _mm512_loadu_si512(p);
}

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

/* ---- weights --------------------------------------------------------------------------------- */

/* Whether rows from r on see key k of the tile. */
INLINE vmask sees(const lanes *z, int32_t r, int32_t k)
{
    return _mm512_cmple_epi32_mask(load_int(z->lo + r), q8_set(k)) &
           _mm512_cmpgt_epi32_mask(load_int(z->hi + r), q8_set(k));
}

/* Scores of keys that a row does not see are -inf; scores are capped where they are at all. */
static void mask_scores(const lanes *z, const many_keys *x)
{
    const int32_t n = LANES * z->vecs;
    const vf cap = v_set(z->a->softcap);
    for (int32_t k = 0; k < x->n; k++)
        for (int32_t r = 0; r < n; r += LANES) {
            vf s = v_load(z->s + k * n + r);
            if (z->a->softcap > 0) s = v_mul(v_tanh(v_div(s, cap)), cap);
            v_store(z->s + k * n + r, v_select(sees(z, r, k), s, v_set(-INFINITY)));
        }
}

/* e^x q8_most within 3 ulp of e^x and an ulp of x, below 2^-125 exactly 0 (subnormal numbers are
 * slow); NaN stays NaN. 2^r, r from 0 to 1, is a polynomial within 8e-8 (equal ripples). */
INLINE vf power(vf x)
{
    const vf y = v_mul(x, v_set(1.44269504088896341f));
    const vf r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* y - floor(y) */
    vf p = v_set(0x1.ec2e32p+5f);
    p = v_fma(p, r, v_set(0x1.268dcp+8f));
    p = v_fma(p, r, v_set(0x1.c950b4p+10f));
    p = v_fma(p, r, v_set(0x1.ebd1d2p+12f));
    p = v_fma(p, r, v_set(0x1.62e23p+14f));
    p = v_fma(p, r, v_set(0x1.fffbfep+14f));
    return _mm512_maskz_scalef_ps(v_not_less(y, v_set(-125)), p, y);
}

/* Moves m of a vector of rows to where top is. */
static void move_max(const lanes *z, int32_t r, vmask above, vf top)
{
    const int32_t n = LANES * z->vecs;
    const vf old = v_load(z->max + r);
    const vf fade = v_select(above, v_mul(power(v_sub(old, top)), v_set(1.0f / q8_most)), v_set(1));
    v_store(z->max + r, v_select(above, top, old));
    v_store(z->sum + r, v_mul(v_load(z->sum + r), fade));
    for (int32_t d = 0; d < z->dim_v; d++) {
        float *o = z->o + d * n + r;
        v_store(o, v_mul(v_load(o), fade));
    }
}

/* Numbers in [0, q8_most] as the first and second words of dwords; others as anything. */
INLINE vi words_of(vf a, vf b)
{
    const __mmask64 upper = 0xcccccccccccccccc; /* bytes of second words */
    const __m128i from = _mm_setr_epi32(0x01000000, 0x05040000, 0x09080000, 0x0d0c0000);
    return _mm512_mask_shuffle_epi8(_mm512_cvtps_epi32(a), upper, _mm512_cvtps_epi32(b),
                                    _mm512_broadcast_i32x4(from));
}

/* Scores become weights; the softmax goes on. */
INLINE void weigh_tile(const lanes *z, const many_keys *x, const int vecs)
{
    const int32_t n = LANES * vecs;
    vf top[2 * MAX_VECS], sum[MAX_VECS];
    UNROLL for (int v = 0; v < 2 * vecs; v++) top[v] = v_set(-INFINITY);
    for (int32_t k = 0; k < x->n; k += 2)
        UNROLL for (int v = 0; v < 2 * vecs; v++) top[v] =
            v_max(v_load(z->s + k * n + LANES * v), top[v]);
    UNROLL for (int v = 0; v < vecs; v++)
    {
        const vf most = top[v] = v_max(top[v], top[v + vecs]);
        const vf far = v_add(v_load(z->max + LANES * v), v_set(FAR));
        const vmask above = v_less(far, most);
        if (v_any(above)) move_max(z, LANES * v, above, most);
        /* What is too small beside 1 counts as nothing. */
        const vf y = v_sub(most, v_load(z->max + LANES * v));
        const vf f = v_mul(power(y), v_set(1.0f / q8_most));
        v_store(z->factor + LANES * v, v_select(v_less(v_set(-70), y), f, v_zero()));
        /* With every score -inf nothing is seen, but a NaN must come through. */
        top[v] = v_select(v_less(v_set(-INFINITY), most), most, v_zero());
        sum[v] = v_zero();
    }
    for (int32_t k = 0; k < x->n; k += 2)
        UNROLL for (int v = 0; v < vecs; v++)
        {
            const float *s = z->s + k * n + LANES * v;
            const vf a = power(v_sub(v_load(s), top[v]));
            const vf b = power(v_sub(v_load(s + n), top[v]));
            sum[v] = v_add(sum[v], v_add(a, b));
            _mm512_storeu_si512(z->weight + k / 2 * n + LANES * v, words_of(a, b));
        }
    UNROLL for (int v = 0; v < vecs; v++)
        v_store(z->sum + LANES * v,
                v_fma(sum[v], v_load(z->factor + LANES * v), v_load(z->sum + LANES * v)));
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

#define BY_VECS(name)                                                                              \
    APART void name##_3(const lanes *z, const many_keys *x)                                        \
    {                                                                                              \
        name(z, x, 3);                                                                             \
    }                                                                                              \
    APART void name##_2(const lanes *z, const many_keys *x)                                        \
    {                                                                                              \
        name(z, x, 2);                                                                             \
    }                                                                                              \
    APART void name##_1(const lanes *z, const many_keys *x)                                        \
    {                                                                                              \
        name(z, x, 1);                                                                             \
    }
BY_VECS(score_tile)
BY_VECS(weigh_tile)
BY_VECS(value_tile)

static void lanes_tile(const lanes *z, const many_keys *x)
{
    static void (*const stages[MAX_VECS][3])(const lanes *, const many_keys *) = {
        {score_tile_1, weigh_tile_1, value_tile_1},
        {score_tile_2, weigh_tile_2, value_tile_2},
        {score_tile_3, weigh_tile_3, value_tile_3}};
    stages[z->vecs - 1][0](z, x);
    if (!x->whole || z->a->softcap > 0) mask_scores(z, x);
    stages[z->vecs - 1][1](z, x);
    stages[z->vecs - 1][2](z, x);
}

/* q[dim_k] as row r. */
static void lanes_query(const lanes *z, int32_t r, const float *q)
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

static void lanes_start(const lanes *z)
{
    const size_t n = (size_t)(LANES * z->vecs), size = sizeof(float);
    memset(z->q_scale, 0, (size_t)z->dim_k / TN_QK * n * size);
    memset(z->o, 0, (size_t)z->dim_v * n * size);
    memset(z->sum, 0, n * size);
    for (size_t r = 0; r < n; r++)
        z->max[r] = -INFINITY;
    for (int32_t r = 0; r < z->n_rows; r++) {
        const int64_t h = (int64_t)z->kv_head * z->group + (z->row0 + r) % z->group;
        lanes_query(z, r, z->a->q + token_of(z, r) * z->a->q_stride + h * z->dim_k);
    }
}

static void lanes_finish(const lanes *z)
{
    const int32_t n = LANES * z->vecs;
    for (int32_t r = 0; r < z->n_rows; r++) {
        for (int32_t d = 0; d < z->dim_v; d++)
            z->out[d] = z->o[d * n + r];
        store_row(z->a, token_of(z, r), z->kv_head * z->group + (int32_t)((z->row0 + r) % z->group),
                  z->c, z->max[r], z->sum[r] / (float)q8_most, z->out);
    }
}

/* Keys [lo, hi) of some row, up to the end of a tile; all of them see [all_lo, all_hi). */
static many_keys keys_of(const lanes *z, int64_t lo, int64_t hi, int64_t all_lo, int64_t all_hi)
{
    many_keys x = {.at = keys_at(z->a, z->kv_head, lo, hi), .start = lo / TN_KV_UNIT * TN_KV_UNIT};
    x.n = (int32_t)((x.at.n + TN_KV_UNIT - 1) / TN_KV_UNIT * TN_KV_UNIT);
    x.whole = x.start >= all_lo && x.start + x.n <= all_hi;
    if (x.whole && !(z->a->softcap > 0)) return x;
    for (int32_t r = 0; r < LANES * z->vecs; r++) {
        int64_t from = 0, to = 0;
        if (r < z->n_rows) tn_attend_range(z->a, token_of(z, r), z->c, &from, &to);
        z->lo[r] = (int32_t)(from > x.start ? from - x.start : 0);
        z->hi[r] = (int32_t)(to < x.start ? 0 : to < x.start + TILE ? to - x.start : TILE);
    }
    return x;
}

static void lanes_run(const lanes *z)
{
    int64_t lo, hi, all_lo, all_hi;
    tn_attend_range(z->a, token_of(z, 0), z->c, &lo, &all_hi);
    tn_attend_range(z->a, token_of(z, z->n_rows - 1), z->c, &all_lo, &hi);
    lanes_start(z);
    while (lo < hi) {
        const many_keys x = keys_of(z, lo, hi, all_lo, all_hi);
        lanes_tile(z, &x);
        lo = x.start + x.at.n;
    }
    lanes_finish(z);
}

static void lanes_init(lanes *z, char *scratch)
{
    const int64_t n = LANES * MAX_VECS, dim_k = z->dim_k, dim_v = z->dim_v;
    z->q = (int32_t *)(void *)floats(&scratch, dim_k / 2 * n);
    z->q_scale = floats(&scratch, dim_k / TN_QK * n);
    z->s = floats(&scratch, TILE * n);
    z->k = (int16_t *)(void *)floats(&scratch, dim_k / 2 * TN_KV_UNIT);
    z->k_scale = floats(&scratch, dim_k / TN_QK * TN_KV_UNIT);
    z->v = (int16_t *)(void *)floats(&scratch, TILE * TN_QK / 2);
    z->o = floats(&scratch, dim_v * n);
    z->max = floats(&scratch, n);
    z->sum = floats(&scratch, n);
    z->factor = floats(&scratch, n);
    z->v_factor = floats(&scratch, n);
    z->lo = (int32_t *)(void *)floats(&scratch, n);
    z->hi = (int32_t *)(void *)floats(&scratch, n);
    z->out = floats(&scratch, dim_v);
}

/* Blocks of rows as even as may be. */
static inline void attend_lanes(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1,
                                int64_t c, void *scratch)
{
    lanes z = {.a = a, .kv_head = kv_head, .group = a->n_head / a->kv.n_head_kv, .t0 = t0, .c = c};
    z.dim_k = a->kv.head_dim_k;
    z.dim_v = a->kv.head_dim_v;
    lanes_init(&z, scratch);
    const int64_t all = (t1 - t0) * z.group;
    for (; z.row0 < all; z.row0 += z.n_rows) {
        const int64_t left = (all - z.row0 + LANES - 1) / LANES; /* vectors */
        const int64_t blocks = (left + MAX_VECS - 1) / MAX_VECS;
        z.vecs = (int32_t)((left + blocks - 1) / blocks);
        z.n_rows = all - z.row0 < LANES * z.vecs ? all - z.row0 : LANES * z.vecs;
        z.weight = (int32_t *)(void *)z.s;
        z.share = z.weight + PAIRS * LANES * z.vecs;
        lanes_run(&z);
    }
}

#endif
