/* Attention of several tokens (prefill) to an F16 or F32 cache: 64 keys at a time are converted to
 * float32 in scratch, K to panels [dim][two vectors of keys], and both products run as small matrix
 * products of ROWS rows x 2 vectors. Row r of an item belongs to token t0 + r / group. */
#ifndef TN_AVX_ATTEND_MANY_H
#define TN_AVX_ATTEND_MANY_H

#include "avx_attend_row.h"

enum { PANEL = 2 * LANES, ROWS = LANES == 16 ? 12 : 6, MAX_SLICE = 288 };

/* A slice of an item's rows, in scratch. */
typedef struct slice {
    const tn_attend *a;
    int32_t kv_head, group;
    int64_t t0, c;
    int64_t row0, n_rows; /* of the item */
    int32_t dim_k, dim_v;
    float *k; /* [TILE / PANEL][dim_k][PANEL] */
    float *v; /* [TILE][dim_v] */
    float *q; /* [rows / ROWS][dim_k][ROWS], scaled */
    float *o; /* [rows][dim_v] */
    float *max, *sum; /* [rows], [rows][LANES] */
    float *s, *fade;  /* [ROWS][TILE], [ROWS]: of the rows at hand */
} slice;

static inline int64_t row_token(const slice *z, int64_t r)
{
    return z->t0 + (z->row0 + r) / z->group;
}

/* Keys that any of the rows [r0, r1) sees. */
static inline void rows_range(const slice *z, int64_t r0, int64_t r1, int64_t *lo, int64_t *hi)
{
    int64_t unused;
    tn_attend_range(z->a, row_token(z, r0), z->c, lo, &unused);
    tn_attend_range(z->a, row_token(z, r1 - 1), z->c, &unused, hi);
}

INLINE vf load_floats(const char *at, uint32_t type)
{
    return type == TN_TYPE_F16 ? v_halves(at) : v_load((const float *)(const void *)at);
}

/* Keys [pos, pos + PANEL) to a panel. Those of units without a key in [lo, hi) are zero; what else
 * is outside is whatever lies there, and its scores are masked later. */
INLINE void load_panel(const slice *z, int64_t pos, int64_t lo, int64_t hi, float *panel,
                       uint32_t type)
{
    const tn_kv_view *kv = &z->a->kv;
    for (int i = 0; i < PANEL; i += TN_KV_UNIT) {
        const bool some = pos + i < hi && pos + i + TN_KV_UNIT > lo;
        const char *unit = some ? kv_unit(kv, kv->k, z->dim_k, z->kv_head, pos + i) : NULL;
        for (int32_t d = 0; d < z->dim_k; d++)
            UNROLL for (int l = 0; l < TN_KV_UNIT; l += LANES) v_store(
                panel + (size_t)d * PANEL + i + l,
                some ? load_floats(unit + tn_kv_k_at(type, z->dim_k, l, d), type) : v_zero());
    }
}

/* V rows [pos, pos + n) in float32, zero outside [lo, hi): a weight of 0 must not meet a NaN.
 * pos is where a unit begins. */
INLINE void load_values(const slice *z, int64_t pos, int64_t n, int64_t lo, int64_t hi,
                        uint32_t type)
{
    const tn_kv_view *kv = &z->a->kv;
    const char *unit = NULL;
    for (int64_t i = 0; i < n; i++) {
        float *v = z->v + i * z->dim_v;
        if (pos + i < lo || pos + i >= hi) {
            memset(v, 0, (size_t)z->dim_v * sizeof *v);
            continue;
        }
        const int32_t in_unit = (int32_t)(i % TN_KV_UNIT);
        if (!unit || !in_unit) unit = kv_unit(kv, kv->v, z->dim_v, z->kv_head, pos + i);
        const char *row = unit + tn_kv_v_at(type, z->dim_v, in_unit, 0);
        const size_t size = type == TN_TYPE_F16 ? 2 : 4;
        for (int32_t d = 0; d < z->dim_v; d += LANES)
            v_store(v + d, load_floats(row + (size_t)d * size, type));
    }
}

/* s[ROWS][PANEL columns] = q[dim][ROWS] x panel[dim][PANEL] */
APART void score_block(const float *q, const float *panel, int32_t dim, float *s)
{
    vf acc[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = v_zero();
    for (int32_t d = 0; d < dim; d++, q += ROWS, panel += PANEL) {
        vf b0 = v_load(panel), b1 = v_load(panel + LANES);
        UNROLL for (int i = 0; i < ROWS; i++)
        {
            vf x = v_set(q[i]);
            acc[i][0] = v_fma(x, b0, acc[i][0]);
            acc[i][1] = v_fma(x, b1, acc[i][1]);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
    {
        v_store(s + i * TILE, acc[i][0]);
        v_store(s + i * TILE + LANES, acc[i][1]);
    }
}

/* o[ROWS][LANES * vecs columns from d on] = o * fade + s[ROWS][n] x v[n][dim] */
INLINE void value_columns(const float *s, const float *fade, const float *v, int64_t n, int32_t dim,
                          float *o, const int vecs)
{
    vf acc[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < vecs; j++) acc[i][j] =
        v_mul(v_load(o + (size_t)i * (size_t)dim + LANES * j), v_set(fade[i]));
    for (int64_t k = 0; k < n; k++, v += dim) {
        vf b[2];
        UNROLL for (int j = 0; j < vecs; j++) b[j] = v_load(v + LANES * j);
        UNROLL for (int i = 0; i < ROWS; i++)
        {
            vf x = v_set(s[i * TILE + k]);
            UNROLL for (int j = 0; j < vecs; j++) acc[i][j] = v_fma(x, b[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < vecs; j++)
        v_store(o + (size_t)i * (size_t)dim + LANES * j, acc[i][j]);
}

/* o[ROWS][dim] = o * fade + s[ROWS][n] x v[n][dim] */
APART void value_block(const float *s, const float *fade, const float *v, int64_t n, int32_t dim,
                       float *o)
{
    int32_t d = 0;
    for (; d + 2 * LANES <= dim; d += 2 * LANES)
        value_columns(s, fade, v + d, n, dim, o + d, 2);
    if (d < dim) value_columns(s, fade, v + d, n, dim, o + d, 1);
}

/* Turns the scores of rows [r, end), in s, against the tile at pos into weights. */
APART void weigh_rows(const slice *z, int64_t r, int64_t end, int64_t pos)
{
    for (int64_t i = r; i < end; i++) {
        const soft_row row = {
            .max = z->max + i, .sum = z->sum + i * LANES, .softcap = z->a->softcap};
        int64_t lo, hi;
        vf most;
        tn_attend_range(z->a, row_token(z, i), z->c, &lo, &hi);
        z->fade[i - r] = soften(&row, z->s + (i - r) * TILE, lo - pos, hi - pos, &most);
    }
}

INLINE void load_tile(const slice *z, int64_t pos, int64_t n, int64_t lo, int64_t hi, uint32_t type)
{
    for (int64_t k = 0; k < n; k += PANEL)
        load_panel(z, pos + k, lo, hi, z->k + k * z->dim_k, type);
    load_values(z, pos, n, lo, hi, type);
}

/* All rows against keys [pos, pos + n), of which [lo, hi) are seen by some row. */
static inline void slice_tile(const slice *z, int64_t pos, int64_t n, int64_t lo, int64_t hi)
{
    const uint32_t type = z->a->kv.type;
    if (type == TN_TYPE_F16)
        load_tile(z, pos, n, lo, hi, TN_TYPE_F16);
    else
        load_tile(z, pos, n, lo, hi, TN_TYPE_F32);
    for (int64_t r = 0; r < z->n_rows; r += ROWS) {
        const int64_t end = r + ROWS < z->n_rows ? r + ROWS : z->n_rows;
        int64_t from, to;
        rows_range(z, r, end, &from, &to);
        from = from > pos ? (from - pos) / PANEL * PANEL : 0;
        to = to < pos + n ? to - pos : n;
        if (from >= to) continue;
        for (int64_t k = from; k < to; k += PANEL)
            score_block(z->q + r * z->dim_k, z->k + k * z->dim_k, z->dim_k, z->s + k);
        weigh_rows(z, r, end, pos);
        value_block(z->s + from, z->fade, z->v + from * z->dim_v, to - from, z->dim_v,
                    z->o + r * z->dim_v);
    }
}

/* Query rows scaled and packed; the rows that fill the last block are zero, and stay so. */
static inline void slice_start(slice *z)
{
    const int64_t padded = (z->n_rows + ROWS - 1) / ROWS * ROWS;
    for (int64_t r = 0; r < padded; r++) {
        float *to = z->q + r / ROWS * ROWS * z->dim_k + r % ROWS;
        for (int32_t d = 0; d < z->dim_k; d++)
            to[d * ROWS] = 0;
        z->max[r] = -INFINITY;
        if (r >= z->n_rows) continue;
        const int64_t h = (int64_t)z->kv_head * z->group + (z->row0 + r) % z->group;
        const float *q = z->a->q + row_token(z, r) * z->a->q_stride + h * z->dim_k;
        for (int32_t d = 0; d < z->dim_k; d++)
            to[d * ROWS] = q[d] * z->a->scale;
    }
    memset(z->o, 0, (size_t)padded * (size_t)z->dim_v * sizeof(float));
    memset(z->sum, 0, (size_t)padded * LANES * sizeof(float));
    memset(z->s, 0, ROWS * TILE * sizeof(float));
    memset(z->fade, 0, ROWS * sizeof(float));
}

static inline void slice_run(slice *z)
{
    int64_t lo, hi;
    slice_start(z);
    rows_range(z, 0, z->n_rows, &lo, &hi);
    for (int64_t pos = lo / TILE * TILE; pos < hi; pos += TILE)
        slice_tile(z, pos, hi - pos < TILE ? hi - pos : TILE, lo, hi);
    for (int64_t r = 0; r < z->n_rows; r++)
        store_row(z->a, row_token(z, r),
                  z->kv_head * z->group + (int32_t)((z->row0 + r) % z->group), z->c, z->max[r],
                  v_sum_lanes(v_load(z->sum + r * LANES)), z->o + r * z->dim_v);
}

/* As many rows at a time as scratch holds. */
static inline void attend_many(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1,
                               int64_t c, float *scratch)
{
    slice z = {.a = a, .kv_head = kv_head, .group = a->n_head / a->kv.n_head_kv, .t0 = t0, .c = c};
    z.dim_k = a->kv.head_dim_k;
    z.dim_v = a->kv.head_dim_v;
    const int64_t dims = (int64_t)z.dim_k + z.dim_v;
    const int64_t room =
        (int64_t)TN_SCRATCH_BYTES / (int64_t)sizeof(float) - TILE * dims - ROWS * (TILE + 1);
    int64_t most = room / (dims + LANES + 1) / 48 * 48; /* of ROWS and of 16 */
    if (most > MAX_SLICE) most = MAX_SLICE;
    z.k = scratch;
    z.v = z.k + (int64_t)TILE * z.dim_k;
    z.q = z.v + (int64_t)TILE * z.dim_v;
    z.o = z.q + most * z.dim_k;
    z.sum = z.o + most * z.dim_v;
    z.max = z.sum + most * LANES;
    z.s = z.max + most;
    z.fade = z.s + ROWS * TILE;
    const int64_t rows = (t1 - t0) * z.group;
    for (z.row0 = 0; z.row0 < rows; z.row0 += most) {
        z.n_rows = rows - z.row0 < most ? rows - z.row0 : most;
        slice_run(&z);
    }
}

#endif
