/* Attention with the vectors of avx_vec.h: what decoding and prefill share. All query heads of a KV
 * head are computed together, so that K and V are read once for the group. A query row is
 * one head of one token. Both keep per row the running max m, sum l and weighted V o of the online
 * softmax:
 *     m' = max(m, max s),  l' = l e^(m - m') + sum e^(s - m'),  o' = o e^(m-m') + sum v e^(s-m') */
#ifndef TN_AVX_ATTEND_ROW_H
#define TN_AVX_ATTEND_ROW_H

#include "attend.h"

#include "avx_fetch.h"
#include "avx_math.h"
#include "kv_page.h"

#include <math.h>
#include <string.h>

enum { TILE = 64 }; /* keys at a time */

/* Of functions whose loops need all registers: where gcc inlines them, it keeps constants of
 * others there, and spills. */
#define APART static __attribute__((noinline))

/* First byte of the unit of a KV head that holds position `pos`. */
static inline const char *kv_unit(const tn_kv_view *kv, void *const *pages, int32_t dim,
                                  int32_t head, int64_t pos)
{
    return (const char *)pages[pos / kv->page_size] +
           tn_kv_unit_at(kv, dim, head, pos & (kv->page_size - 1));
}

/* ---- online softmax -------------------------------------------------------------------------- */

/* State of a row's online softmax: the running max, and the sum by lane. Meanwhile `lines` lines
 * from each of ahead on, of which the second may be NULL, are asked for, a part beside each vector.
 */
typedef struct soft_row {
    float *max, *sum; /* sum: [LANES] */
    float softcap;
    const char *ahead[2];
    int64_t lines;
} soft_row;

INLINE void fetch_beside(const soft_row *r, int64_t vector)
{
    for (int64_t i = vector; i < r->lines; i += TILE / LANES) {
        fetch(r->ahead[0] + 64 * i);
        if (r->ahead[1]) fetch(r->ahead[1] + 64 * i);
    }
}

/* Scores s[TILE] of a row become weights; `whole`, a constant: all are seen, as they are, else
 * those of [skip, n), and the others become zero. The running max is looked for only where some
 * lane is above it. Returns the factor on what was summed before; *most: the largest weights. */
INLINE float soften_tile(const soft_row *r, float *s, int64_t skip, int64_t n, vf *most,
                         const bool whole)
{
    vf m = v_set(-INFINITY), v[TILE / LANES];
    UNROLL for (int i = 0; i < TILE / LANES; i++)
    {
        v[i] = v_load(s + i * LANES);
        if (!whole) {
            const vf cap = v_set(r->softcap);
            if (r->softcap > 0) v[i] = v_mul(v_tanh(v_div(v[i], cap)), cap);
            const vmask seen = v_between(skip - i * LANES, n - i * LANES);
            v[i] = v_select(seen, v[i], v_set(-INFINITY));
        }
        m = v_max(v[i], m);
    }
    float fade = 1;
    if (v_any(v_less(v_set(*r->max), m))) {
        const float top = v_max_lanes(m);
        fade = expf(*r->max - top);
        *r->max = top;
    }
    /* With every score -inf nothing is seen, but a NaN must come through. */
    const vf base = v_set(*r->max == -INFINITY ? 0 : *r->max);
    vf l = v_mul(v_load(r->sum), v_set(fade));
    *most = v_zero();
    UNROLL for (int i = 0; i < TILE / LANES; i++)
    {
        const vf e = v_exp(v_sub(v[i], base));
        v_store(s + i * LANES, e);
        l = v_add(l, e);
        *most = v_max(e, *most);
        fetch_beside(r, i);
    }
    v_store(r->sum, l);
    return fade;
}

INLINE float soften(const soft_row *r, float *s, int64_t skip, int64_t n, vf *most)
{
    if (skip <= 0 && n >= TILE && !(r->softcap > 0)) return soften_tile(r, s, 0, TILE, most, true);
    return soften_tile(r, s, skip, n, most, false);
}

/* Writes a finished row to out, or as the partial of chunk c. */
static inline void store_row(const tn_attend *a, int64_t t, int32_t h, int64_t c, float max,
                             float sum, const float *o)
{
    const int32_t dim = a->kv.head_dim_v;
    float *out = a->out + t * a->out_stride + (int64_t)h * dim;
    vf f = v_set(sum == 0 ? 0 : 1 / sum);
    if (a->chunk) {
        float *part = tn_attend_partial(a, t, h, c);
        part[0] = max;
        part[1] = sum;
        out = part + 2;
        f = v_set(1);
    }
    for (int32_t i = 0; i < dim; i += LANES)
        v_store(out + i, v_mul(v_load(o + i), f));
}

#endif
