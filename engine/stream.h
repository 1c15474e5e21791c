/* Internal: prefill streaming. For a batch, the FFN weights that the host has may be carried to the
 * device piece by piece, into one of two places while the device computes with the other; whether
 * that is quicker than to compute them where they lie, or for which part of them, is
 * tn_cost_prefill(), for the batch at hand and what of the layer the device has already.
 * exec_stream.c. */
#ifndef TN_STREAM_H
#define TN_STREAM_H

#include "exec_device.h"
#include "placement.h"
#include "plan_cost.h"

typedef struct tn_streamer tn_streamer;

/* For a segment of a model whose tensors have been loaded, and pinned, under the plan p, which
 * outlives it. *out is NULL where no batch of the plan's size would be streamed. TN_ENOMEM,
 * TN_EDEVICE. */
tn_status tn_streamer_new(tn_streamer **out, tn_model *m, int32_t segment, const tn_placement *p,
                          tn_error *err);
void tn_streamer_free(tn_streamer *t); /* NULL is fine */
/* Neurons of a layer's pieces, those of one expert where there are experts; 0 where it is never
 * streamed, or t is NULL. */
int64_t tn_streamer_neurons(const tn_streamer *t, int32_t layer);
/* How n tokens go through a layer of which so many units are on the device. */
tn_prefill tn_streamer_choose(const tn_streamer *t, int32_t layer, int32_t units, int64_t n);

/* A piece on the device: neurons of a dense FFN, or an expert. */
typedef struct tn_streamed {
    tn_dweight gate, up, down;
    uint64_t bytes; /* as the host has them */
} tn_streamed;
/* Neurons [first, first + n) of a layer, or its expert `first`; what d enqueues next finds them. */
tn_status tn_streamer_bring(tn_streamer *t, tn_dev *d, int32_t layer, int64_t first, int64_t n,
                            tn_streamed *out);
/* Whether n tokens are projected for a layer's attention on the device; how many rows of such a
 * matrix, or at least, come at once; and those from `first` on. */
bool tn_streamer_projects(const tn_streamer *t, int32_t layer, int64_t n);
int64_t tn_streamer_rows(const tn_streamer *t, const tn_weight *w);
tn_status tn_streamer_bring_rows(tn_streamer *t, tn_dev *d, const tn_weight *w, int64_t first,
                                 int64_t n, tn_dweight *out);
/* d has enqueued all that reads the piece brought last. */
tn_status tn_streamer_done(tn_streamer *t, tn_dev *d);

#endif
