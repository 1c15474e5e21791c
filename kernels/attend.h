/* Internal: what the attention kernels of all levels share. */
#ifndef TN_ATTEND_H
#define TN_ATTEND_H

#include "kernels.h"

/* Keys [*lo, *hi) that query token t sees, cut to chunk c. May be empty (*lo >= *hi). */
static inline void tn_attend_range(const tn_attend *a, int64_t t, int64_t c, int64_t *lo,
                                   int64_t *hi)
{
    int64_t p = a->pos0 + t;
    *hi = p + 1;
    *lo = a->window > 0 && p + 1 > a->window ? p + 1 - a->window : 0;
    if (!a->chunk) return;
    if (*lo < c * a->chunk) *lo = c * a->chunk;
    if (*hi > (c + 1) * a->chunk) *hi = (c + 1) * a->chunk;
}

/* Where the partial of chunk c of token t, query head h lies. */
static inline float *tn_attend_partial(const tn_attend *a, int64_t t, int32_t h, int64_t c)
{
    return a->partial + ((t * a->n_head + h) * a->n_chunks + c) * (2 + (int64_t)a->kv.head_dim_v);
}

/* The kernels of lower levels, for shapes that a faster one leaves to them. */
void tn_attend_scalar(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                      void *scratch);
void tn_attend_avx2(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                    void *scratch);
void tn_attend_join_scalar(const tn_attend *a, int64_t t, int32_t h);

#endif
