/* Internal: the device side of exec, the counterpart of exec_host.h. Every operation enqueues its
 * work on the side's stream and returns; a failure stays (status) and makes the rest do nothing.
 * Within begin and head the same calls are either done or recorded into a graph. Only exec*.c call
 * these. */
#ifndef TN_EXEC_DEVICE_H
#define TN_EXEC_DEVICE_H

#include "kv.h"
#include "model.h"

typedef struct tn_dev {
    const tn_model *m;
    const tn_segment *segment; /* whose layers run here */
    const tn_layer_device *layers;
    const tn_kv *kv;
    tn_device *device;
    const tn_device_api *api;
    const tn_device_ops *ops;
    tn_stream *stream;
    tn_event *handed; /* what was to be handed to another device is on its way */
    bool begun;       /* the running batch */
    bool has_head;
    int32_t n_batch, used, n_splits, logit_rows;
    tn_status status; /* the first failure */
    tn_error *err;    /* where it is told, may be NULL */

    int64_t n;             /* rows of the batch that are left, see keep_last */
    int64_t batch_n;       /* all rows of it */
    void *arena;           /* device memory that holds all of the following */
    int32_t *numbers;      /* [2 * n_batch] */
    int32_t *pos, *tokens; /* [n] in numbers */
    float *rows;           /* [n_batch][n_embd], of which h are the last n */
    float *h;              /* [n][n_embd] residual stream */
    float *in;             /* [n][cols] input of the coming product */
    int8_t *in_q;          /* the same for quantised weights */
    tn_dscale *in_scale;
    float *queries; /* [n_batch][n_head * head_dim_k], of which q are the last n */
    float *q, *k, *v;
    float *out;       /* [n][n_embd] what is added to h */
    float *other;     /* [n][n_embd] the host's share of out */
    float *gate, *up; /* [n * used][n_ff]; gate is also the result of both */
    int8_t *hidden_q; /* [n * used][n_ff] */
    tn_dscale *hidden_scale;
    float *angles[2];     /* [n][n_rot / 2][2] */
    float *partial;       /* attention over split context */
    float *router;        /* [n][n_expert] */
    int32_t *choices;     /* [n_layers][batch_n][used] experts of the whole batch, and */
    int32_t *chosen;      /* [n][used] those of the running layer */
    int32_t *expert;      /* [n][used] the same among those on the device, -1: not there */
    float *choice_weight; /* [n][used] */
    int32_t *where;       /* [n_layers][n_expert] from chosen to expert; NULL: no layer is split */
    float *slots;         /* [n * used][n_embd] results of experts; of a batch their inputs
                             before */
    int32_t *rows_there;  /* [2][n * used] of a batch, see tn_dev_take_rows */
    float *logits;        /* [logit_rows][rows of the head] */
    void *workspace;      /* of GEMMs */
    size_t workspace_bytes;

    int32_t *pinned_numbers; /* as numbers */
    float *pinned_logits;    /* as logits, or as tn_dev_best says */
    int32_t *pinned_choices; /* as choices */
} tn_dev;

/* Buffers for batches of up to n_batch tokens on the device of a segment. On failure free is for
 * what is there. */
tn_status tn_dev_init(tn_dev *d, const tn_model *m, int32_t segment, const tn_kv *kv,
                      int32_t n_batch, tn_error *err);
void tn_dev_free(tn_dev *d);
/* Looks again which experts are on the device: the first ones of a layer. */
tn_status tn_dev_find_experts(tn_dev *d, tn_error *err);

/* A new batch on the host's side: what begin uploads. Nothing of the batch before is under way. */
void tn_dev_set(tn_dev *d, const int32_t *tokens, int64_t n, int64_t pos0);
/* The first work of a batch on the device; nothing where it has begun. */
void tn_dev_begin(tn_dev *d);
void tn_dev_keep_last(tn_dev *d, int64_t n);
/* Waits for all that was enqueued. */
tn_status tn_dev_sync(tn_dev *d);
/* Blocks over which each of n decoded tokens, the last at position pos, splits its context for each
 * KV head on a device with so many multiprocessors. A power of two, 1 .. 128; for n up to
 * TN_MATVEC_MAX n times as many parts are no more than TN_MATVEC_MAX * TN_MAX_SPLITS. */
int32_t tn_dev_splits(int32_t processors, int32_t n_head_kv, int64_t n, int64_t pos);

/* Copies between the sides, count elements of 4 bytes; the host's memory is pinned. */
void tn_dev_upload(tn_dev *d, void *to, const void *from, int64_t count);
void tn_dev_download(tn_dev *d, void *to, const void *from, int64_t count);

/* `to` goes on after all that has been enqueued on d; where `h`, with d's residual stream. Where
 * the devices cannot reach each other it goes through `between`, pinned memory for all of it that
 * nobody else uses. */
void tn_dev_hand_over(tn_dev *d, tn_dev *to, bool h, void *between);

/* The operations, see exec.h. */
void tn_dev_embed(tn_dev *d);
void tn_dev_qkv(tn_dev *d, int32_t layer);
void tn_dev_attend(tn_dev *d, int32_t layer);
void tn_dev_attn_out(tn_dev *d, int32_t layer);
void tn_dev_ffn_in(tn_dev *d, int32_t layer);
void tn_dev_ffn_out(tn_dev *d, int32_t layer);
void tn_dev_route(tn_dev *d, int32_t layer);
/* What the layers of the segment have chosen, into pinned_choices, there after a sync. */
void tn_dev_fetch_choices(tn_dev *d);
void tn_dev_experts_in(tn_dev *d, int32_t layer);
void tn_dev_experts_out(tn_dev *d, int32_t layer);
/* Logits of up to logit_rows rows into pinned_logits, there after a sync. */
void tn_dev_head(tn_dev *d, int64_t first, int64_t n_rows);
/* Of one row only the likeliest token, an int32_t, and its logit: there after a sync. The device
 * has the whole head. */
void tn_dev_best(tn_dev *d, int64_t row);

/* Parts of the operations, for layers whose weights are on both sides. */

/* in = norm(h) with a weight of the layer. */
void tn_dev_attn_norm(tn_dev *d, int32_t layer);
void tn_dev_ffn_norm(tn_dev *d, int32_t layer);
/* y = W in + bias. */
void tn_dev_project(tn_dev *d, const tn_dweight *w, const float *bias, float *y);
/* The same of a part of the rows that y[n][stride] has, for more than TN_MATVEC_MAX tokens. */
void tn_dev_project_rows(tn_dev *d, const tn_dweight *w, float *y, int64_t stride);
/* h += post_norm(out + bias), of attention. */
void tn_dev_attn_end(tn_dev *d, int32_t layer);
/* The rest of qkv: from projections with their biases to q and the cache. */
void tn_dev_finish_qkv(tn_dev *d, int32_t layer);
/* One half of ffn_in or experts_in, without the activation: y = W in + bias. */
void tn_dev_half(tn_dev *d, const tn_dweight *w, const float *bias, float *y);
/* gate = act(gate) * up */
void tn_dev_glu(tn_dev *d);
/* out = the device's share of ffn_out or experts_out, without bias and norm. */
void tn_dev_share(tn_dev *d, int32_t layer);
/* out (+)= down act(gate in) * (up in) of the neurons that the three matrices have, of which
 * `first` come before them in the layer, without bias and norm; for more than
 * TN_MATVEC_MAX rows. */
void tn_dev_ffn_part(tn_dev *d, int32_t layer, const tn_dweight *gate, const tn_dweight *up,
                     const tn_dweight *down, int64_t first, bool add);
/* Experts of a batch, whose rows follow one another in slots. rows: pinned, [2][n * used]: tokens
 * of the first n_rows of them, and the row of each choice, or -1. Then slots[first .. first + n] =
 * down act(gate x) * (up x) of those rows; out = the weighted sum of each token's rows. */
void tn_dev_take_rows(tn_dev *d, const int32_t *rows, int64_t n_rows);
void tn_dev_expert(tn_dev *d, const tn_dweight *gate, const tn_dweight *up, const tn_dweight *down,
                   int64_t first, int64_t n);
void tn_dev_sum_rows(tn_dev *d);
/* h += post_norm(out + bias). */
void tn_dev_ffn_end(tn_dev *d, int32_t layer);
/* h += post_norm(out + other + bias) */
void tn_dev_join(tn_dev *d, int32_t layer);

#endif
