/* Internal: the host side of exec. Activations of one batch live here, between one operation and
 * the next; every operation runs on the engine's pool. Only exec.c calls these. */
#ifndef TN_EXEC_HOST_H
#define TN_EXEC_HOST_H

#include "engine.h"
#include "kv.h"
#include "model.h"

/* The rows of one batch that an expert computes; the dense FFN is one expert that gets every row.
 * Rows are those of `x`, results go to rows [first, first + x.n) of the hidden activations. */
typedef struct tn_host_group {
    tn_weight gate, up, down;
    tn_acts x;
    int64_t first;
} tn_host_group;

/* The 8-bit input of the coming products as they read it (tn_pack_fn). fn: NULL where it is not
 * there, because few tokens or other kernels have no use for it. */
typedef struct tn_host_packed {
    void *data;
    tn_pack_fn fn;
    tn_layout layout;
    uint32_t type;
} tn_host_packed;

typedef struct tn_host {
    const tn_model *m;
    tn_engine *e;
    const tn_kernels *kern;
    const tn_kv *kv;
    int32_t n_batch;
    /* 8-bit vectors that stand for one activation vector in products: 1, or 2 where the KV cache is
     * in F32, which asks for accuracy: the second is what the first leaves. */
    int32_t parts;
    void *arena; /* holds all buffers below */

    /* The batch: n rows at positions pos0 ..., of which forward() may drop leading ones. */
    const int32_t *tokens; /* [n] */
    int64_t n, pos0;

    float *h;     /* [n][n_embd] residual stream */
    float *in;    /* [n][cols] input of the coming product: a normed h, or what attention gives */
    tn_q8 *in_q;  /* [n][parts][cols / 32] the same for quantised weights */
    tn_host_packed in_packed;
    float *q;     /* [n][n_head * head_dim_k] */
    float *k, *v; /* [n][n_head_kv * head_dim] */
    float *out;   /* [n][n_embd] what is added to h; shares its memory with q */
    float *other; /* [n][n_embd] the device's share of out; NULL without a device */
    float *gate,
        *up; /* [n * used][n_ff] in the order of choices, where a layer is mixed; or NULL */
    int64_t n_hidden; /* neurons of the running FFN that are computed here, */
    int64_t skip;     /* and how many are before them on the device */
    float *hidden;    /* [n * used][n_ff] input of ffn_down; NULL where no ffn_down reads float32 */
    tn_q8 *hidden_q;  /* [n * used][parts][n_ff / 32]; NULL where no ffn_down is quantised */
    tn_host_packed hidden_packed;
    float *angles[2]; /* [n][n_rot / 2][2] cos and sin of both ropes */
    float *partial;   /* attention of few tokens over split context */
    float **tile;     /* [threads] tile_floats each: results of a thread before they are combined */
    int64_t tile_floats;
    const tn_blas *blas; /* NULL: our own kernels serve, or nothing here is unquantised */
    float **wide;        /* [threads] rows of F16 or BF16 weights as float32, for OpenBLAS */
    float **repacked;    /* [threads] mapped rows; NULL: there are none, or few tokens */
    float **part_sums;   /* [threads] part_floats each, where there are two parts */
    int64_t part_floats;

    /* Experts. used: per token. Slots are (token, choice) pairs, sorted by expert, then token. */
    int32_t used;
    float *router;         /* [n][n_expert] */
    int32_t *choice;       /* [n][used] */
    float *choice_weight;  /* [n][used] */
    int32_t *expert;       /* [n][used] choice, -1 where that expert is not on the device */
    int32_t *slot_token;   /* [n * used] */
    int32_t *slot_item;    /* [n * used] index of the pair: token * used + rank */
    float *slot_weight;    /* [n * used] */
    float *slot_in;        /* [n * used][n_embd]; NULL where no expert reads float32 */
    tn_q8 *slot_q;         /* [n * used][parts][n_embd / 32] */
    int32_t *slots;        /* [n_expert + 1] first slot of each expert */
    bool *there;           /* [n_expert] computed by the device in the running layer */
    int32_t *rows_there;   /* [2][n * used] for tn_dev_take_rows */
    tn_host_group *groups; /* [n_expert] those with work */
    int32_t n_groups;
} tn_host;

/* Buffers for batches of up to n_batch tokens. On failure nothing is held. */
tn_status tn_host_init(tn_host *h, const tn_model *m, const tn_kv *kv, int32_t n_batch,
                       tn_error *err);
void tn_host_free(tn_host *h);

/* A new batch, n <= n_batch; its KV pages are there. */
void tn_host_begin(tn_host *h, const int32_t *tokens, int64_t n, int64_t pos0);
/* Drops all but the last n rows. */
void tn_host_keep_last(tn_host *h, int64_t n);

/* The operations, see exec.h. */
void tn_host_embed(tn_host *h);
void tn_host_qkv(tn_host *h, int32_t layer);
void tn_host_attend(tn_host *h, int32_t layer);
void tn_host_attn_out(tn_host *h, int32_t layer);
/* Of the neurons from `skip` on; the others are the device's. */
void tn_host_ffn_in(tn_host *h, int32_t layer, int64_t skip);
void tn_host_ffn_out(tn_host *h, int32_t layer);
void tn_host_route(tn_host *h, int32_t layer);
void tn_host_experts_in(tn_host *h, int32_t layer);
void tn_host_experts_out(tn_host *h, int32_t layer);
/* Of the rows of the head from `skip` on; logits[n_rows][n_vocab]. */
void tn_host_head(tn_host *h, int64_t first, int64_t n_rows, int64_t skip, float *logits);

/* Parts of the operations, for layers whose weights are on both sides. */

/* in = norm(h) with a weight of the layer. */
void tn_host_attn_norm(tn_host *h, int32_t layer);
void tn_host_ffn_norm(tn_host *h, int32_t layer);
/* y = W in + bias (which may be NULL). */
void tn_host_project(tn_host *h, const tn_weight *w, const float *bias, float *y);
/* The rest of qkv: from projections without bias to q and the cache. */
void tn_host_finish_qkv(tn_host *h, int32_t layer);
/* After route on either side: the batch by expert, in `slots`. After ffn_norm as well: what experts
 * that are not `there` read and write. */
void tn_host_sort_experts(tn_host *h);
void tn_host_group_experts(tn_host *h, int32_t layer);
/* rows_there of the experts that are `there`; how many rows that is. */
int64_t tn_host_take_rows(tn_host *h);
/* One half of ffn_in or experts_in, without the activation: y = W in + bias, in the order of
 * choices; w is a weight of the layer. */
void tn_host_half(tn_host *h, int32_t layer, const tn_weight *w, const float *bias, float *y);
/* gate = act(gate) * up, and gate as the input of ffn_out or experts_out. */
void tn_host_glu(tn_host *h);
void tn_host_take_gate(tn_host *h, int32_t layer);
/* out = the host's share of ffn_out or experts_out, without bias and norm. */
void tn_host_share(tn_host *h, int32_t layer);
/* h += post_norm(out + other + bias) */
void tn_host_join(tn_host *h, int32_t layer);

/* ---- shared by exec_host.c, exec_moe.c and exec_rows.c --------------------------------------- */

enum {
    TN_MANY_TOKENS = 16,  /* from here on a call of OpenBLAS and repacking are worth it, */
    TN_PACK_TOKENS = 2,   /* and packing activations once for all pieces */
    TN_PACKED_GRAIN = 32, /* rows of a piece where there is nothing to prepare for each */
};

/* Whether products with w read 8-bit activations. */
bool tn_host_reads_q8(const tn_weight *w);
/* Runs a norm of h over the tokens into `in` (and in_q, and in_packed for `reader` unless NULL). */
void tn_host_norm(tn_host *h, const float *weight, bool to_q8, const tn_weight *reader);
/* y[t][r] = W x over all rows, on all threads. */
void tn_host_product(tn_host *h, const tn_weight *w, const tn_acts *x, float *y);
/* ---- exec_rows.c */

/* What products of w with n 8-bit vectors read: its own layout, or what its
 * rows are repacked to. */
tn_layout tn_host_layout(const tn_host *h, const tn_weight *w, int64_t n);
/* Rows [row0, row1) of a matrix as a matrix; row0 is a multiple of 16. */
tn_weight tn_host_part(const tn_weight *w, int64_t row0, int64_t row1);
/* Columns from col0 on, a multiple of the type's block; of a slab-major matrix, of its slab. Rows
 * keep their distance. */
tn_weight tn_host_cols(const tn_weight *w, int64_t col0);
/* One range of rows of a product, in one thread: y[t * y_stride + (r - row0)]. row0 is a multiple
 * of tn_host_grain() of the batch. */
void tn_host_rows(tn_host *h, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                  int64_t row0, int64_t row1, int worker);
/* hidden = act(gate x) * up x of every group. */
void tn_host_gated(tn_host *h, const tn_layer *y);
/* h += out, after the optional sum with other, bias and post norm. */
void tn_host_residual(tn_host *h, const float *other, const float *bias, const float *post_norm);
/* out = the weighted sum of the experts of all groups. */
void tn_host_sum_experts(tn_host *h);
/* Rows of a product that make one piece of work for n tokens. A multiple of 32, whatever the number
 * of threads. */
int64_t tn_host_grain(int64_t n);
/* A view of hidden rows [first, first + n) as activations. */
tn_acts tn_host_hidden(const tn_host *h, int64_t first, int64_t n);

#endif
