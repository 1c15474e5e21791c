/* Internal: which side holds each tensor of an open model, from the rules of the caller.
 *
 * Afterwards the placement is in the model's pointers: a weight whose data is NULL is on the device
 * alone, one whose plane[0] is NULL is on the host alone, and one with both is split. */
#ifndef TN_SIDES_H
#define TN_SIDES_H

#include "model.h"

/* Fills l->place from the model's hyper-parameters and l->opt. Nothing to do without a device.
 * TN_EARG says which rule is wrong, TN_EUNSUPPORTED which tensor the device cannot compute with. */
tn_status tn_sides_make(tn_load *l);

/* segments.c. Which layers each device has, from the plan or in proportion to its memory; and with
 * them all their tensors. For tn_sides_make, once it is known what goes to devices at all. */
tn_status tn_segments_make(tn_load *l);

/* The KV cache is where most of what makes it is: with attn_k and attn_v, or, where they are apart,
 * with what reads the result. */
bool tn_sides_attend(const tn_layer *y);

static inline bool tn_on_device(const tn_dweight *w)
{
    return w->plane[0] != NULL;
}
/* Both sides have a part. */
static inline bool tn_is_split(const tn_weight *w, const tn_dweight *d)
{
    return w->data && d->plane[0];
}

/* Where parts of a layer are computed. */
typedef enum tn_side {
    TN_ON_HOST,
    TN_ON_DEVICE,
    TN_ON_BOTH, /* split: at the same time, joined once */
    TN_MIXED    /* tensor by tensor */
} tn_side;

typedef struct tn_sides {
    tn_side q, k, v, attn; /* the projections; all that makes q and the cache */
    tn_side kv;            /* the cache and attention; where shares of the FFN are joined */
    tn_side out, router, gate, up, down, ffn;
} tn_sides;
tn_sides tn_sides_of(const tn_layer *y, const tn_layer_device *d);

#endif
