/* Internal: the seam between what is computed (forward.c) and where.
 *
 * forward() speaks in macro-operations on one batch of tokens; exec runs each where its weights
 * live and keeps the activations in between. The status is sticky: after the first failure every
 * operation returns at once, so that forward() reads as maths and looks once a layer. One tn_exec
 * belongs to one context; the caller holds the engine's turn while operations run. */
#ifndef TN_EXEC_H
#define TN_EXEC_H

#include "kv.h"
#include "model.h"

typedef struct tn_exec tn_exec;

/* Buffers for batches of up to n_batch tokens over the cache kv. Both m and kv outlive it. With the
 * engine's turn held, because it looks where weights are. */
tn_status tn_exec_new(tn_exec **out, const tn_model *m, const tn_kv *kv, int32_t n_batch,
                      tn_error *err);
void tn_exec_free(tn_exec *x);
/* After an evaluation that failed or was canceled: waits for what of it is still under way on the
 * devices, because memory that it uses may be given back before the next one. */
void tn_exec_settle(tn_exec *x);

/* One batch: n tokens at positions pos0 .., whose KV pages have been reserved. */
typedef struct tn_batch {
    const int32_t *tokens; /* [n] */
    int64_t n, pos0;
    int64_t n_out;       /* of how many rows at the end the output is wanted: 0 .. n */
    bool best;           /* what is wanted of it is tn_exec_best; n_out is 1 */
    tn_cancel_fn cancel; /* polled once a layer, may be NULL */
    void *user;
    tn_error *err;
} tn_batch;
void tn_exec_begin(tn_exec *x, const tn_batch *b);

/* h = embeddings of the tokens (scaled where the architecture says so). */
void tn_exec_embed(tn_exec *x);
/* q, k, v = W norm(h) + bias; q and k normed per head where there is a norm, then rotated; k and v
 * go to the cache. */
void tn_exec_qkv(tn_exec *x, int32_t layer);
/* a = softmax(scale q k) v over the keys that each row may see. */
void tn_exec_attend(tn_exec *x, int32_t layer);
/* h += post_norm(W a + bias). */
void tn_exec_attn_out(tn_exec *x, int32_t layer);
/* g = act(W_gate norm(h)) * (W_up norm(h)). */
void tn_exec_ffn_in(tn_exec *x, int32_t layer);
/* h += post_norm(W_down g). */
void tn_exec_ffn_out(tn_exec *x, int32_t layer);
/* The FFN of a layer with experts: norm(h) and the choice of experts with their weights; g for
 * every chosen expert; h += post_norm(the weighted sum of W_down g). */
void tn_exec_route(tn_exec *x, int32_t layer);
void tn_exec_experts_in(tn_exec *x, int32_t layer);
void tn_exec_experts_out(tn_exec *x, int32_t layer);
/* From here on only the last n rows of the batch are computed. */
void tn_exec_keep_last(tn_exec *x, int64_t n);
/* Ends a layer: polls cancel. The first failure so far. */
tn_status tn_exec_layer_done(tn_exec *x, int32_t layer);
/* logits[n_rows][n_vocab] = W norm(h) of the rows [first, first + n_rows) that were kept. */
tn_status tn_exec_head(tn_exec *x, int64_t first, int64_t n_rows, float *logits);
/* The likeliest token after the one row that was kept of a batch that says `best`, the lowest id of
 * equals. logits[n_vocab] is for use where no device has the whole head. TN_EINTERNAL: no logit is
 * a number above -infinity. */
tn_status tn_exec_best(tn_exec *x, float *logits, int32_t *best);

/* Sums since the last reset; the fields that exec knows. */
void tn_exec_stats(const tn_exec *x, tn_stats *s);
void tn_exec_stats_reset(tn_exec *x);
/* How often each expert of a layer was chosen since then: [n_expert]; NULL: there are none. */
const uint64_t *tn_exec_experts(const tn_exec *x, int32_t layer);

/* forward.c: the transformer over one batch. Afterwards tn_exec_head gives the logits of the last
 * b->n_out rows. */
tn_status tn_forward(tn_exec *x, const tn_model *m, const tn_batch *b);

#endif
