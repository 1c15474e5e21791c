/* Internal: the 8-bit input of products: rounded, and packed once for all that read it. */
#ifndef TN_EXEC_PACKED_H
#define TN_EXEC_PACKED_H

#include "exec_host.h"

/* Before n tokens are packed for products with w; w == NULL: they are not. */
static inline void tn_packed_begin(const tn_host *h, tn_host_packed *p, const tn_weight *w,
                                   int64_t n)
{
    p->fn = NULL;
    if (!w || !p->data || n * h->parts < TN_PACK_TOKENS) return;
    p->layout = tn_host_layout(h, w, n * h->parts);
    p->type = w->type;
    p->fn = h->kern->pack[p->layout][p->type];
}

/* Packs blocks [b0, b1) of vector t, of which q is the first, among n vectors
 * of `blocks` blocks. */
static inline void tn_packed_put(const tn_host_packed *p, const tn_q8 *q, int64_t n, int64_t blocks,
                                 int64_t t, int64_t b0, int64_t b1)
{
    if (p->fn) p->fn(&(tn_packing){p->data, n, blocks, t, t + 1, b0, b1, q, blocks});
}

/* rest[i] = what 8 bits leave of x[i], for n blocks. */
static inline void tn_host_rest(const tn_host *h, tn_q8 *rest, const tn_q8 *q, const float *x,
                                int64_t n)
{
    for (int64_t b = 0; b < n; b++) {
        float left[32];
        for (int i = 0; i < 32; i++) {
            const int value = q[b].m[i / 16] * q[b].q[i];
            left[i] = x[32 * b + i] - q[b].d * (float)value;
        }
        h->kern->quantize(rest + b, left, 32);
    }
}

/* Blocks [b0, b1) of token t, whose columns begin at x, as input of products: into
 * q[n][parts][blocks], and packed. */
static inline void tn_host_round(const tn_host *h, const tn_host_packed *p, tn_q8 *q,
                                 const float *x, int64_t n, int64_t blocks, int64_t t, int64_t b0,
                                 int64_t b1)
{
    t *= h->parts;
    n *= h->parts;
    q += t * blocks + b0;
    h->kern->quantize(q, x, 32 * (b1 - b0));
    tn_packed_put(p, q, n, blocks, t, b0, b1);
    if (h->parts == 1) return;
    tn_host_rest(h, q + blocks, q, x, b1 - b0);
    tn_packed_put(p, q + blocks, n, blocks, t + 1, b0, b1);
}

/* x with what was packed of it. */
static inline tn_acts tn_packed_with(tn_acts x, const tn_host_packed *p)
{
    if (!p->fn) return x;
    x.packed = p->data;
    x.packed_layout = p->layout;
    x.packed_type = p->type;
    return x;
}

#endif
