/* Attention with the vectors of avx_vec.h: what decoding and prefill share. All query heads of a KV
 * head are computed together, so that K and V are read once for the group. A query row is
 * one head of one token. Both keep per row the running max m, sum l and weighted V o of the online
 * softmax:
 *     m' = max(m, max s),  l' = l e^(m - m') + sum e^(s - m'),  o' = o e^(m-m') + sum v e^(s-m') */
#ifndef TN_AVX_ATTEND_ROW_H
#define TN_AVX_ATTEND_ROW_H

#include "attend.h"

#include "avx_math.h"
#include "kv_page.h"

#include <math.h>
#include <string.h>

enum { TILE = 64 }; /* keys at a time */

/* First byte of the unit of a KV head that holds position `pos`. */
static inline const char *kv_unit(const tn_kv_view *kv, void *const *pages, int32_t dim,
                                  int32_t head, int64_t pos)
{
    return (const char *)pages[pos / kv->page_size] +
           tn_kv_unit_at(kv, dim, head, pos & (kv->page_size - 1));
}

/* Asks for the cache lines of [p, p + bytes), to the second level: measured, a cache in DRAM is
 * read 10 % faster than with prefetch to the first, and one in L3 as fast. */
INLINE void fetch(const char *p, const int bytes)
{
    UNROLL for (int i = 0; i < bytes; i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
}

/* ---- online softmax -------------------------------------------------------------------------- */

/* Scores s[skip .. n) of a row become weights, the others, up to n rounded up to a vector, zero.
 * Returns the factor on what was summed before. */
static inline float softmax_tile(float *s, int64_t skip, int64_t n, float softcap, float *max,
                                 float *sum)
{
    vf m = v_set(-INFINITY);
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = v_load(s + i);
        if (softcap > 0) v = v_mul(v_tanh(v_div(v, v_set(softcap))), v_set(softcap));
        v = v_select(v_between(skip - i, n - i), v, v_set(-INFINITY));
        v_store(s + i, v);
        m = v_max(v, m);
    }
    const float old = *max, tile = v_max_lanes(m), top = tile > old ? tile : old;
    /* With every score -inf nothing is seen, but a NaN must come through. */
    const vf base = v_set(top == -INFINITY ? 0 : top);
    vf l = v_zero();
    for (int64_t i = 0; i < n; i += LANES) {
        vf e = v_exp(v_sub(v_load(s + i), base));
        v_store(s + i, e);
        l = v_add(l, e);
    }
    const float fade = old == top ? 1 : expf(old - top);
    *max = top;
    *sum = *sum * fade + v_sum_lanes(l);
    return fade;
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
