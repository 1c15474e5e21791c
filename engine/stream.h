/* Internal: prefill streaming. For a batch, the FFN weights that the host has may be carried to the
 * device piece by piece, into one of two places while the device computes with the other; whether
 * that is quicker than to compute them where they lie is tn_cost_streams(), for the batch at hand
 * and what of the layer the device has already. exec_stream.c. */
#ifndef TN_STREAM_H
#define TN_STREAM_H

#include "model.h"
#include "placement.h"

typedef struct tn_streamer tn_streamer;

/* For a segment of a model whose tensors have been loaded under the plan p, which outlives it. *out
 * is NULL where no batch of the plan's size would be streamed. TN_ENOMEM, TN_EDEVICE. */
tn_status tn_streamer_new(tn_streamer **out, tn_model *m, int32_t segment, const tn_placement *p,
                          tn_error *err);
void tn_streamer_free(tn_streamer *t); /* NULL is fine */
/* Neurons of a layer's pieces; 0 where it is never streamed, or t is NULL. */
int64_t tn_streamer_neurons(const tn_streamer *t, int32_t layer);

#endif
