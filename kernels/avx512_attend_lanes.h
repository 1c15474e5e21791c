/* Attention of several tokens (prefill) in integers, with VNNI: what F16 and Q8_0 caches share. Up
 * to 48 rows at a time, a row being one head of one token, lie in the lanes of up to three vectors:
 * scores, weights and sums are [key or dim][rows], and nothing of the softmax goes across lanes. K
 * and V come as 16 bits, and are broadcast in pairs of dims, or of positions, for vpdpwssd, which
 * multiplies twice as many as a float instruction does. Of a tile whose largest score of a row is
 * top
 *     w = e^(s - top),  l' = l + e^(top - m) sum w,  o' = o + e^(top - m) sum w v
 * where m is near the largest score: it moves, and l and o with it, where top leaves it behind. */
#ifndef TN_AVX512_ATTEND_LANES_H
#define TN_AVX512_ATTEND_LANES_H

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
    int32_t *q;                /* [dim_k / 2][R] pairs of dims */
    float *q_scale;            /* [R], of Q8_0 [dim_k / 32][R]: what an integer of q stands for */
    float *s;                  /* [TILE][R]: scores */
    int32_t *weight;           /* [PAIRS][R] pairs of keys, where s was */
    float *o;                  /* [dim_v][R] */
    float *max, *sum, *factor; /* [R]: m, l, e^(top - m) */
    int32_t *lo, *hi;          /* [R]: keys of the tile that a row sees, where they differ */
    float *out;                /* [dim_v]: a row */
    union {
        struct {             /* of Q8_0 */
            int32_t *share;  /* [PAIRS][R]: weight times the scales of a block of V; where s was */
            int16_t *k;      /* [dim_k / 4][TN_KV_UNIT][4]: a unit of K */
            float *k_scale;  /* [dim_k / 32][TN_KV_UNIT] */
            int16_t *v;      /* [TILE / 4][32][4]: a block of V */
            float *v_factor; /* [R]: factor times the scale of a block of V */
        };
        struct {              /* of F16: a tile, which all rows of an item share */
            int32_t *pairs_k; /* [TILE / TN_KV_UNIT][dim_k / 2][TN_KV_UNIT] pairs of dims */
            float *scale_k;   /* [TILE]: what an integer of a key stands for */
            int32_t *pairs_v; /* [PAIRS][dim_v] pairs of positions */
            float *scale_v;   /* [dim_v] */
            float *column;    /* [TILE or dim_k][16]: numbers on their way to integers */
        };
    };
} lanes;

/* A tile, and whether all rows see all of it. */
typedef struct many_keys {
    keys at; /* of a Q8_0 cache */
    int64_t start;
    int32_t n; /* positions, whole units */
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

/* Numbers in [-q8_most, q8_most] as the first and second words of dwords; others as anything. */
INLINE vi words_of(vf a, vf b)
{
    const __mmask64 upper = 0xcccccccccccccccc; /* bytes of second words */
    const __m128i from = _mm_setr_epi32(0x01000000, 0x05040000, 0x09080000, 0x0d0c0000);
    return _mm512_mask_shuffle_epi8(_mm512_cvtps_epi32(a), upper, _mm512_cvtps_epi32(b),
                                    _mm512_broadcast_i32x4(from));
}

/* Scores become weights, of at most e^-margin q8_most; the softmax goes on. */
INLINE void soften_lanes(const lanes *z, const many_keys *x, const float margin, const int vecs)
{
    const int32_t n = LANES * vecs;
    vf top[2 * MAX_VECS], sum[MAX_VECS];
    UNROLL for (int v = 0; v < 2 * vecs; v++) top[v] = v_set(-INFINITY);
    for (int32_t k = 0; k < x->n; k += 2)
        UNROLL for (int v = 0; v < 2 * vecs; v++) top[v] =
            v_max(v_load(z->s + k * n + LANES * v), top[v]);
    UNROLL for (int v = 0; v < vecs; v++)
    {
        const vf most = top[v] = v_add(v_max(top[v], top[v + vecs]), v_set(margin));
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
typedef void (*lanes_stage)(const lanes *z, const many_keys *x);

/* Scores, weights and values of a tile. */
static void lanes_tile(const lanes *z, const many_keys *x, const lanes_stage stages[3])
{
    stages[0](z, x);
    if (!x->whole || z->a->softcap > 0) mask_scores(z, x);
    stages[1](z, x);
    stages[2](z, x);
}

/* Of row r. */
static const float *query_of(const lanes *z, int64_t r)
{
    const int64_t h = (int64_t)z->kv_head * z->group + (z->row0 + r) % z->group;
    return z->a->q + token_of(z, r) * z->a->q_stride + h * z->dim_k;
}

static void lanes_start(const lanes *z)
{
    const size_t n = (size_t)(LANES * z->vecs), size = sizeof(float);
    memset(z->o, 0, (size_t)z->dim_v * n * size);
    memset(z->sum, 0, n * size);
    for (size_t r = 0; r < n; r++)
        z->max[r] = -INFINITY;
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

/* Which keys of the tile each row sees. */
static void note_sight(const lanes *z, const many_keys *x)
{
    for (int32_t r = 0; r < LANES * z->vecs; r++) {
        int64_t from = 0, to = 0;
        if (r < z->n_rows) tn_attend_range(z->a, token_of(z, r), z->c, &from, &to);
        z->lo[r] = (int32_t)(from > x->start ? from - x->start : 0);
        z->hi[r] = (int32_t)(to < x->start ? 0 : to < x->start + TILE ? to - x->start : TILE);
    }
}

/* Rows from row0 on of `all`: blocks as even as may be. */
static void take_rows(lanes *z, int64_t all)
{
    const int64_t left = (all - z->row0 + LANES - 1) / LANES; /* vectors */
    const int64_t blocks = (left + MAX_VECS - 1) / MAX_VECS;
    z->vecs = (int32_t)((left + blocks - 1) / blocks);
    z->n_rows = all - z->row0 < LANES * z->vecs ? all - z->row0 : LANES * z->vecs;
}

static lanes lanes_of(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t c)
{
    return (lanes){.a = a,
                   .kv_head = kv_head,
                   .group = a->n_head / a->kv.n_head_kv,
                   .dim_k = a->kv.head_dim_k,
                   .dim_v = a->kv.head_dim_v,
                   .t0 = t0,
                   .c = c};
}

/* What is needed of a tile and forgotten with it. */
static void take_scores(lanes *z, char **scratch)
{
    const int64_t n = LANES * MAX_VECS;
    z->s = floats(scratch, TILE * n);
    z->weight = (int32_t *)(void *)z->s;
    z->factor = floats(scratch, n);
    z->lo = (int32_t *)(void *)floats(scratch, n);
    z->hi = (int32_t *)(void *)floats(scratch, n);
    z->out = floats(scratch, z->dim_v);
}

/* What rows sum up from tile to tile. */
static void take_sums(lanes *z, char **scratch)
{
    const int64_t n = LANES * MAX_VECS;
    z->o = floats(scratch, z->dim_v * n);
    z->max = floats(scratch, n);
    z->sum = floats(scratch, n);
}

#endif
