/* Internal: the 8-bit input of products, packed once for all that read it. */
#ifndef TN_EXEC_PACKED_H
#define TN_EXEC_PACKED_H

#include "exec_host.h"

enum { tn_packed_tokens = 16 }; /* batches from this size on are worth it */

/* Before n tokens are packed for products with w; w == NULL: they are not. */
static inline void tn_packed_begin(const tn_host *h, tn_host_packed *p, const tn_weight *w,
                                   int64_t n)
{
    p->fn = w && p->data && n >= tn_packed_tokens ? h->kern->pack[w->layout][w->type] : NULL;
    if (!p->fn) return;
    p->layout = w->layout;
    p->type = w->type;
}

/* Packs blocks [b0, b1) of token t, of which q is the first, among n tokens of `blocks` blocks. */
static inline void tn_packed_put(const tn_host_packed *p, const tn_q8 *q, int64_t n, int64_t blocks,
                                 int64_t t, int64_t b0, int64_t b1)
{
    if (p->fn) p->fn(&(tn_packing){p->data, n, blocks, t, t + 1, b0, b1, q, blocks});
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
