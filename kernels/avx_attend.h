/* The attention slot with the vectors of avx_vec.h. */
#ifndef TN_AVX_ATTEND_H
#define TN_AVX_ATTEND_H

#include "avx_attend_many.h"
#include "avx_attend_one.h"

/* Whether whole vectors make up the heads. */
INLINE bool attend_fits(const tn_attend *a)
{
    const tn_kv_view *kv = &a->kv;
    return kv->head_dim_k % LANES == 0 && kv->head_dim_v % LANES == 0 &&
           kv->head_dim_k <= MAX_DIM && kv->head_dim_v <= MAX_DIM;
}

/* Rows that are many are worth converting an F16 cache for, once for all of them; a Q8_0 cache is
 * multiplied in integers by few and by many alike (with VNNI see avx512_attend_lanes.h). */
INLINE void attend_item(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                        void *scratch)
{
    const int64_t rows = (t1 - t0) * (a->n_head / a->kv.n_head_kv);
    if (t1 - t0 > 1 && rows > MAX_ONE && a->kv.type != TN_TYPE_Q8_0)
        attend_many(a, kv_head, t0, t1, c, scratch);
    else
        attend_rows(a, kv_head, t0, t1, c, scratch);
}

#endif
