/* Attention of several tokens (prefill) to an F16 cache in 16 bits: avx512_attend_lanes.h. A tile
 * of K and V becomes integers once for all rows of an item. How large these may be follows from how
 * sums are bounded, |sum a b| <= |a| |b|, whatever the number of dims:
 *     query, key    |a| <= 2^15: of a head's dims; each has a scale of its own
 *     weight        w <= 2^14, of TILE keys, so that |w| <= 2^17
 *     value         |b| < 2^14 - 10: of a dim, over the tile's keys; each dim has a scale
 * A product of norms is then below 2^31, with what rounding adds. Queries and keys of 64 dims alike
 * are rounded to 2^-13, F16 itself to between 2^-12 and 2^-11. What is not finite has no
 * such norm: float32 does the whole item then. */
#ifndef TN_AVX512_ATTEND_F16_H
#define TN_AVX512_ATTEND_F16_H

#include "avx512_attend_lanes.h"

enum { MAX_BLOCKS = 16 /* of rows that share a tile */ };
static const float f16_most = 32767, f16_most_value = 16370, f16_margin = 0.693147181f; /* ln 2 */

/* What a vector of this squared norm is multiplied with to have the norm `most`; *scale: what an
 * integer then stands for. False where some lane is no number. */
INLINE bool norm_factor(vf squares, float most, vf *factor, vf *scale)
{
    const vf norm = _mm512_sqrt_ps(squares);
    const vmask some = v_less(v_set(1e-15f), norm);
    *factor = v_select(some, v_div(v_set(most), norm), v_zero());
    *scale = v_select(some, v_mul(norm, v_set(1 / most)), v_zero());
    return !v_any(v_not_less(norm, v_set(INFINITY)));
}

/* ---- a tile ---------------------------------------------------------------------------------- */

/* n vectors of the column become integers: pairs of them, `step` dwords apart. *scale: what an
 * integer then stands for. False where some lane is no number. */
static bool column_to_pairs(const lanes *z, int32_t n, float most, int32_t *to, int64_t step,
                            vf *scale)
{
    vf squares[2] = {v_zero(), v_zero()}, factor;
    const float *x = z->column;
    for (int32_t j = 0; j < n; j += 2)
        UNROLL for (int i = 0; i < 2; i++)
        {
            const vf y = v_load(x + (j + i) * LANES);
            squares[i] = v_fma(y, y, squares[i]);
        }
    if (!norm_factor(v_add(squares[0], squares[1]), most, &factor, scale)) return false;
    for (int32_t j = 0; j < n; j += 2, x += 2 * LANES, to += step)
        _mm512_storeu_si512(to,
                            words_of(v_mul(v_load(x), factor), v_mul(v_load(x + LANES), factor)));
    return true;
}

/* Unit u of the tile, of which positions of `seen` are keys; others become zero. */
static bool take_keys(const lanes *z, const char *unit, int u, vmask seen)
{
    vf scale;
    for (int32_t d = 0; d < z->dim_k; d++) {
        const vf x = v_halves(unit + d * 2 * TN_KV_UNIT);
        v_store(z->column + d * LANES, v_select(seen, x, v_zero()));
    }
    int32_t *to = z->pairs_k + u * TN_KV_UNIT * z->dim_k / 2;
    if (!column_to_pairs(z, z->dim_k, f16_most, to, TN_KV_UNIT, &scale)) return false;
    v_store(z->scale_k + u * TN_KV_UNIT, scale);
    return true;
}

/* Dims d .. d + 15 of n positions (whole units), whose rows are at row[n], NULL for zeros. */
static bool take_values(const lanes *z, const char *const *row, int32_t n, int32_t d)
{
    vf scale;
    for (int32_t k = 0; k < n; k++)
        v_store(z->column + k * LANES, row[k] ? v_halves(row[k] + d * 2) : v_zero());
    if (!column_to_pairs(z, n, f16_most_value, z->pairs_v + d, z->dim_v, &scale)) return false;
    v_store(z->scale_v + d, v_mul(scale, v_set(1.0f / q8_most)));
    return true;
}

/* Positions from `start` on, of which some row sees those in [lo, hi). False where one of these
 * holds what is not finite. */
static bool take_tile(const lanes *z, int64_t start, int64_t lo, int64_t hi)
{
    const tn_kv_view *kv = &z->a->kv;
    const char *row[TILE];
    int32_t n = 0;
    for (; n < TILE && start + n < hi; n += TN_KV_UNIT) {
        const int64_t pos = start + n;
        const char *v = kv_unit(kv, kv->v, z->dim_v, z->kv_head, pos);
        for (int i = 0; i < TN_KV_UNIT; i++)
            row[n + i] = pos + i >= lo && pos + i < hi ? v + i * 2 * z->dim_v : NULL;
        if (!take_keys(z, kv_unit(kv, kv->k, z->dim_k, z->kv_head, pos), n / TN_KV_UNIT,
                       v_between(lo - pos, hi - pos)))
            return false;
    }
    for (int32_t d = 0; d < z->dim_v; d += LANES)
        if (!take_values(z, row, n, d)) return false;
    return true;
}

/* ---- its products ---------------------------------------------------------------------------- */

/* sum[KEYS][R] of n pairs: those of rows, one after the other, times KEYS of `pairs`, `step` dwords
 * apart. */
INLINE void pair_sums(vi *sum, const int32_t *rows, const int32_t *pairs, int64_t step, int32_t n,
                      const int vecs)
{
    UNROLL for (int i = 0; i < KEYS * vecs; i++) sum[i] = q8_set(0);
    for (int32_t j = 0; j < n; j++, rows += LANES * vecs, pairs += step) {
        vi x[MAX_VECS];
        UNROLL for (int v = 0; v < vecs; v++) x[v] = load_int(rows + LANES * v);
        UNROLL for (int i = 0; i < KEYS; i++)
        {
            const vi y = q8_set(pairs[i]);
            UNROLL for (int v = 0; v < vecs; v++) dot_pairs(&sum[i * vecs + v], x[v], y);
        }
    }
    __asm__ volatile("" ::: "memory"); /* else gcc keeps scales in registers, and sums not */
}

/* s[KEYS][R] of the tile's keys from `key` on. */
INLINE void f16_score_keys(const lanes *z, int32_t key, const int vecs)
{
    const int32_t n = LANES * vecs;
    const int32_t *k = z->pairs_k + key / TN_KV_UNIT * TN_KV_UNIT * z->dim_k / 2 + key % TN_KV_UNIT;
    vi sum[KEYS * MAX_VECS];
    pair_sums(sum, z->q, k, TN_KV_UNIT, z->dim_k / 2, vecs);
    UNROLL for (int i = 0; i < KEYS; i++) UNROLL for (int v = 0; v < vecs; v++)
    {
        const vf both = v_mul(v_set(z->scale_k[key + i]), v_load(z->q_scale + LANES * v));
        v_store(z->s + (key + i) * n + LANES * v,
                v_mul(_mm512_cvtepi32_ps(sum[i * vecs + v]), both));
    }
}

INLINE void f16_scores(const lanes *z, const many_keys *x, const int vecs)
{
    for (int32_t key = 0; key < x->n; key += KEYS)
        f16_score_keys(z, key, vecs);
}

INLINE void f16_weights(const lanes *z, const many_keys *x, const int vecs)
{
    soften_lanes(z, x, f16_margin, vecs);
}

/* o[KEYS dims from d on][R] += the tile's weights times V. */
INLINE void f16_value_dims(const lanes *z, const many_keys *x, int32_t d, const int vecs)
{
    const int32_t n = LANES * vecs;
    vi sum[KEYS * MAX_VECS];
    pair_sums(sum, z->weight, z->pairs_v + d, z->dim_v, x->n / 2, vecs);
    UNROLL for (int i = 0; i < KEYS; i++) UNROLL for (int v = 0; v < vecs; v++)
    {
        float *o = z->o + (d + i) * n + LANES * v;
        const vf both = v_mul(v_set(z->scale_v[d + i]), v_load(z->factor + LANES * v));
        v_store(o, v_fma(_mm512_cvtepi32_ps(sum[i * vecs + v]), both, v_load(o)));
    }
}

INLINE void f16_values(const lanes *z, const many_keys *x, const int vecs)
{
    for (int32_t d = 0; d < z->dim_v; d += KEYS)
        f16_value_dims(z, x, d, vecs);
}

BY_VECS(f16_scores)
BY_VECS(f16_weights)
BY_VECS(f16_values)

/* ---- rows ------------------------------------------------------------------------------------ */

/* q[dim_k] as row r. False where it is no number. */
static bool f16_query(const lanes *z, int32_t r, const float *q)
{
    const int32_t n = LANES * z->vecs;
    vf squares = v_zero(), factor, scale;
    for (int32_t d = 0; d < z->dim_k; d += LANES)
        squares = v_fma(v_load(q + d), v_load(q + d), squares);
    if (!norm_factor(v_set(v_sum_lanes(squares)), f16_most, &factor, &scale)) return false;
    z->q_scale[r] = _mm512_cvtss_f32(scale) * z->a->scale;
    for (int32_t d = 0; d < z->dim_k; d += LANES) {
        int32_t pairs[LANES / 2];
        _mm256_storeu_si256((__m256i *)(void *)pairs,
                            _mm512_cvtepi32_epi16(q8_round(v_mul(v_load(q + d), factor))));
        for (int i = 0; i < LANES / 2; i++)
            z->q[(d / 2 + i) * n + r] = pairs[i];
    }
    return true;
}

static bool f16_start(const lanes *z)
{
    const size_t n = (size_t)(LANES * z->vecs);
    lanes_start(z);
    memset(z->q, 0, (size_t)z->dim_k / 2 * n * sizeof *z->q);
    memset(z->q_scale, 0, n * sizeof *z->q_scale);
    for (int32_t r = 0; r < z->n_rows; r++)
        if (!f16_query(z, r, query_of(z, r))) return false;
    return true;
}

/* Rows against the tile at `start`, if they see any of it. */
static void f16_rows(const lanes *z, int64_t start)
{
    static const lanes_stage stages[MAX_VECS][3] = {{f16_scores_1, f16_weights_1, f16_values_1},
                                                    {f16_scores_2, f16_weights_2, f16_values_2},
                                                    {f16_scores_3, f16_weights_3, f16_values_3}};
    int64_t lo, hi, all_lo, all_hi;
    tn_attend_range(z->a, token_of(z, 0), z->c, &lo, &all_hi);
    tn_attend_range(z->a, token_of(z, z->n_rows - 1), z->c, &all_lo, &hi);
    if (lo >= start + TILE || hi <= start) return;
    const int64_t n = hi - start < TILE ? hi - start : TILE;
    many_keys x = {.start = start, .n = (int32_t)((n + TN_KV_UNIT - 1) / TN_KV_UNIT * TN_KV_UNIT)};
    x.whole = start >= all_lo && start + x.n <= all_hi;
    if (!x.whole || z->a->softcap > 0) note_sight(z, &x);
    lanes_tile(z, &x, stages[z->vecs - 1]);
}

/* False where something is not finite: nothing is written then. */
static bool f16_blocks(const lanes *z, int n)
{
    const lanes *last = z + n - 1;
    int64_t lo, hi, unused;
    tn_attend_range(z->a, token_of(z, 0), z->c, &lo, &unused);
    tn_attend_range(z->a, token_of(last, last->n_rows - 1), z->c, &unused, &hi);
    for (int i = 0; i < n; i++)
        if (!f16_start(z + i)) return false;
    for (int64_t at = lo / TN_KV_UNIT * TN_KV_UNIT; at < hi; at += TILE) {
        if (!take_tile(z, at, lo, hi)) return false;
        for (int i = 0; i < n; i++)
            f16_rows(z + i, at);
    }
    for (int i = 0; i < n; i++)
        lanes_finish(z + i);
    return true;
}

static void f16_init(lanes *z, char **scratch)
{
    z->pairs_k = (int32_t *)(void *)floats(scratch, TILE / 2 * z->dim_k);
    z->pairs_v = (int32_t *)(void *)floats(scratch, TILE / 2 * z->dim_v);
    z->scale_k = floats(scratch, TILE);
    z->scale_v = floats(scratch, z->dim_v);
    z->column = floats(scratch, (z->dim_k > TILE ? z->dim_k : TILE) * LANES);
    take_scores(z, scratch);
}

/* Floats of what a tile needs, and of what a block of rows does, for `dims` of K and of V. */
#define F16_TILE_FLOATS(dims) ((TILE + LANES + 2) * (dims) + (TILE + 3) * LANES * MAX_VECS + TILE)
#define F16_BLOCK_FLOATS(dims) (((dims) / 2 + (dims) + 3) * LANES * MAX_VECS)
_Static_assert((F16_TILE_FLOATS(MAX_DIM) + F16_BLOCK_FLOATS(MAX_DIM)) * sizeof(float) <=
                   TN_SCRATCH_BYTES,
               "scratch for one block of rows");

/* As many blocks of rows at a time as scratch holds. False where float32 has to do it all. */
static inline bool attend_f16(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1,
                              int64_t c, void *scratch)
{
    lanes z = lanes_of(a, kv_head, t0, c), block[MAX_BLOCKS];
    char *own = scratch, *const end = own + TN_SCRATCH_BYTES;
    const int64_t all = (t1 - t0) * z.group;
    f16_init(&z, &own);
    while (z.row0 < all) {
        char *at = own;
        int n = 0;
        for (; n < MAX_BLOCKS && z.row0 < all; n++) {
            lanes *b = block + n;
            *b = z;
            take_rows(b, all);
            take_sums(b, &at);
            b->q = (int32_t *)(void *)floats(&at, b->dim_k / 2 * LANES * MAX_VECS);
            b->q_scale = floats(&at, LANES * MAX_VECS);
            if (at > end) break;
            z.row0 += b->n_rows;
        }
        if (!f16_blocks(block, n)) return false;
    }
    return true;
}

#endif
