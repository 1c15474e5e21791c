/* Attention with the vectors of avx_vec.h: what decoding and prefill share. All query heads of a KV
 * head are computed together, so that each K and V row is read once for the group. A query row is
 * one head of one token. Both keep per row the running max m, sum l and weighted V o of the online
 * softmax:
 *     m' = max(m, max s),  l' = l e^(m - m') + sum e^(s - m'),  o' = o e^(m-m') + sum v e^(s-m') */
#ifndef TN_AVX_ATTEND_ROW_H
#define TN_AVX_ATTEND_ROW_H

#include "attend.h"

#include "../gguf/blocks.h"
#include "avx_math.h"

#include <math.h>
#include <string.h>

enum { TILE = 64 }; /* keys at a time */

INLINE size_t row_bytes_of(uint32_t type, int32_t dim)
{
    if (type == TN_TYPE_Q8_0) return (size_t)dim / TN_QK * sizeof(tn_block_q8_0);
    return (size_t)dim * (type == TN_TYPE_F16 ? 2 : 4);
}

/* First byte of row `pos` of a KV head. */
static inline const char *kv_row(const tn_kv_view *kv, void *const *pages, int32_t dim,
                                 int32_t head, int64_t pos)
{
    const size_t row = (size_t)head * (size_t)kv->page_size + (size_t)(pos & (kv->page_size - 1));
    return (const char *)pages[pos / kv->page_size] + row * row_bytes_of(kv->type, dim);
}

/* Elements d .. d + LANES - 1 of a row of the cache, d a multiple of LANES; those of a Q8_0 row
 * without their scale. */
INLINE vf row_piece(const char *row, int32_t d, uint32_t type)
{
    if (type == TN_TYPE_F16) return v_halves(row + 2 * (size_t)d);
    if (type == TN_TYPE_F32) return v_load((const float *)(const void *)row + d);
    const tn_block_q8_0 *b = (const tn_block_q8_0 *)(const void *)row + d / TN_QK;
    return v_bytes(b->qs + d % TN_QK);
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
