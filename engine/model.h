/* Internal: the model. Shapes and hyper-parameters are validated in model.c and nowhere else. */
#ifndef TN_MODEL_H
#define TN_MODEL_H

#include "tenon.h"
#include "arch.h"
#include "experts.h"
#include "../gguf/gguf.h"
#include "../gguf/mem.h"
#include "../kernels/device.h"
#include "../kernels/device_ops.h"
#include "../kernels/kernels.h"

typedef struct tn_vocab tn_vocab;

/* For the files of one noun each (tokenizer, sample, template) that need no more of a model. */
const tn_vocab *tn_model_vocab(const tn_model *m);         /* NULL for a synthetic model */
const tn_gguf *tn_model_gguf(const tn_model *m);           /* never NULL */
const tn_allocator *tn_model_allocator(const tn_model *m); /* never NULL */
const tn_allocator *tn_engine_allocator(const tn_engine *e); /* never NULL */

/* Sizes and constants of a model, all checked. */
typedef struct tn_hparams {
    int32_t n_layers, n_embd, n_head, n_head_kv, head_dim_k, head_dim_v;
    int32_t n_ff;                 /* per expert where there are experts */
    int32_t n_expert, n_expert_used;
    int32_t n_vocab, n_ctx_train, n_rot;
    int32_t n_swa, swa_period;    /* window of local layers (0 = none); every period-th is global */
    float eps, attn_scale, expert_scale, logit_softcap;
} tn_hparams;

/* Frequencies of one rope: angle of pair i at position p is p * inv_freq[i]. */
typedef struct tn_rope {
    float *inv_freq; /* (n_rot / 2) */
    float magnitude; /* factor on cos and sin (YaRN) */
} tn_rope;

/* One transformer layer. Biases and norms are float32 or NULL. Expert weights hold all experts one
 * after the other, tn_expert() picks one. A weight with data NULL lies on the device alone. */
typedef struct tn_layer {
    float *attn_norm;                  /* (n_embd) */
    tn_weight attn_q, attn_k, attn_v;  /* (n_head * head_dim_k | n_head_kv * ..., n_embd) */
    float *attn_q_bias, *attn_k_bias, *attn_v_bias;
    float *attn_q_norm, *attn_k_norm;  /* (head_dim_k) */
    tn_weight attn_output;             /* (n_embd, n_head * head_dim_v) */
    float *attn_output_bias;
    float *post_attention_norm;        /* (n_embd) */
    float *ffn_norm;                   /* (n_embd) */
    tn_weight ffn_gate, ffn_up;        /* (n_ff, n_embd); experts: (n_expert * n_ff, n_embd) */
    tn_weight ffn_down;                /* (n_embd, n_ff); experts: (n_expert * n_embd, n_ff) */
    float *ffn_gate_bias, *ffn_up_bias, *ffn_down_bias;
    tn_weight ffn_gate_inp;            /* (n_expert, n_embd): the router */
    float *post_ffw_norm;              /* (n_embd) */
    bool local;                        /* sliding window */
    const tn_rope *rope;
    /* The device has experts in an order of its own: the one at rank r is order[r] of the file, and
     * of the host. NULL: as in the file. Of the plan, see tn_expert_use. */
    const int32_t *expert_order, *expert_rank; /* (n_expert) */
} tn_layer;

static inline int32_t tn_expert_rank(const tn_layer *y, int32_t e)
{
    return y->expert_rank ? y->expert_rank[e] : e;
}
static inline int32_t tn_expert_at(const tn_layer *y, int32_t rank)
{
    return y->expert_order ? y->expert_order[rank] : rank;
}

/* What of a layer lies on the device, under the same names. A weight with plane[0] NULL is on the
 * host alone. What is on both sides is split, the device having the first part: neurons of a dense
 * FFN (rows of gate and up, columns of down), experts, or rows of the head. Norms and biases are on
 * both sides. */
typedef struct tn_layer_device {
    float *attn_norm;
    tn_dweight attn_q, attn_k, attn_v;
    float *attn_q_bias, *attn_k_bias, *attn_v_bias;
    float *attn_q_norm, *attn_k_norm;
    tn_dweight attn_output;
    float *attn_output_bias;
    float *post_attention_norm;
    float *ffn_norm;
    tn_dweight ffn_gate, ffn_up, ffn_down;
    float *ffn_gate_bias, *ffn_up_bias, *ffn_down_bias;
    tn_dweight ffn_gate_inp;
    float *post_ffw_norm;
    bool attends; /* the KV cache of this layer is on the device */
    bool moves;   /* the host has all of the FFN, and the boundary decides how much is here, too */
    bool streams; /* parts of it may be carried here for a batch; */
    bool projects; /* those of the attention may, which is the host's */
} tn_layer_device;

/* A run of layers whose device work one device does, and what else of the model that device has.
 * Segments follow one another in the order of devices; together they have all layers, those of the
 * host included. */
typedef struct tn_segment {
    tn_device *device;  /* the engine's */
    int32_t index;      /* of it among the engine's */
    int32_t first, end; /* layers [first, end) */
    void *arena;        /* device memory that holds all weights */
    size_t bytes;
    float *inv_freq[2]; /* of the ropes */
    struct tn_streamer *streamer; /* NULL: no weights are carried here for a batch */
} tn_segment;

typedef struct tn_model_device {
    int32_t n_segments; /* 0: everything is on the host */
    tn_segment segment[TN_DEVICES];
    tn_dweight token_embd; /* with the first segment; where it is also the head, with the last */
    tn_dweight output;     /* with the last, as its norm */
    float *output_norm;
    tn_layer_device *layers; /* (n_layers) */
} tn_model_device;

/* The segment that a layer belongs to; 0 where there are none. */
static inline int32_t tn_segment_of(const tn_model_device *d, int32_t layer)
{
    int32_t s = 0;
    while (s + 1 < d->n_segments && layer >= d->segment[s].end)
        s++;
    return s;
}

struct tn_model {
    tn_engine *engine;
    const tn_allocator *a;
    tn_gguf *gguf;
    void *header; /* synthetic models: the bytes gguf was parsed from */
    tn_vocab *vocab;
    const tn_arch *arch;
    tn_hparams hp;
    tn_weight token_embd;  /* (n_vocab, n_embd) */
    tn_weight output;      /* (n_vocab, n_embd); a view of token_embd where tied */
    bool tied;
    float *output_norm;    /* (n_embd) */
    tn_layer *layers;      /* (n_layers) */
    tn_rope rope[2];       /* global, local */
    tn_model_device on_device;
    struct tn_boundary *boundary; /* NULL: nothing moves between the sides */
    struct tn_pins *pins;         /* NULL: none of the weights is pinned */
    tn_expert_counts
        chosen; /* since it was opened; n NULL: no experts. Written in the engine's turn */
    void **owned;          /* every buffer to free at close */
    size_t n_owned, cap_owned;
    struct tn_later *later; /* NULL: no weights wait in the mapped file */
    struct tn_image *image; /* NULL: weights are in memory of our own or the model's own pages */
    size_t held_bytes;     /* memory of weights in our layout */
    uint64_t n_params, weight_bytes, token_bytes, activation_bytes, prompt_flop;
    uint32_t main_type;    /* type of most weight bytes */
    char *name;  /* path or given name, for messages */
    char *title; /* general.name, or "" */
    _Atomic double load_s;
    _Atomic int n_contexts;
};

/* Where a tensor goes: rows [0, rows) and columns [0, cols) of it to the device (0: nothing), the
 * whole of it to the host or nothing. */
typedef struct tn_tensor_place {
    int64_t rows, cols;
    int32_t segment; /* whose device */
    bool host;
    const int32_t *order; /* experts of the file in the order of the device; NULL: the same */
    int64_t slab;         /* columns of the pieces in which it travels; 0: rows, or experts */
} tn_tensor_place;

/* What one thread does while the others read weights. */
typedef tn_status (*tn_beside_fn)(tn_model *m, tn_error *err);

/* How tensors become weights; made by tn_model_open from the options and the memory at hand. */
typedef struct tn_load {
    tn_model *m;
    const tn_model_options *opt; /* a full-size copy */
    bool map;                    /* nothing is copied; set before binding: only the shape counts */
    bool exact, random;          /* random: synthetic weights, no file */
    bool later;                  /* weights stay in the mapped file for the first batch (later.h) */
    bool arriving;               /* they come from there now, in the engine's turn */
    bool check;                  /* only the header counts: no weight is read or kept */
    tn_error *err;
    bool *used;                  /* per tensor of the directory: bound to a field */
    tn_tensor_place *place;      /* per tensor of the directory; NULL: all on the host */
    struct tn_load_job *jobs;    /* reading still to be done */
    size_t n_jobs, cap_jobs;
    struct tn_upload *uploads;   /* what still goes to the device */
    size_t n_uploads, cap_uploads;
    uint64_t total_bytes, done_bytes; /* of all reading, for progress */
    tn_beside_fn beside;              /* or NULL */
} tn_load;

/* load.c. Whether the weights of the host are pages of the file: as asked for; else where their
 * bytes and what else there is to hold, which a plan has counted, are more than is available (0:
 * unknown). */
bool tn_load_maps(tn_load_mode mode, bool planned, uint64_t host_bytes, uint64_t available);
/* Bytes of the tensors that the host is to hold, as they are in the file or as float32. */
uint64_t tn_load_host_bytes(const tn_load *l);
/* Chooses l->map unless it is set, once it is known which tensors the host holds.
 * TN_ENOMEM: more than the machine has. */
tn_status tn_load_choose(tn_load *l);
/* Binds tensor `t` as a matrix of rows x cols (x n_experts, 0 = a plain matrix) and queues
 * its reading, to the sides where it belongs; row_major keeps the file's layout on the host
 * (embeddings that are only looked up). */
tn_status tn_load_weight(tn_load *l, tn_weight *w, tn_dweight *d, const tn_gguf_tensor *t,
                         int32_t n_experts, bool row_major);
/* Binds a vector as float32 on the sides in use; on the host it is read at once. */
tn_status tn_load_vector(tn_load *l, float **v, float **d, const tn_gguf_tensor *t);
/* Reads everything queued, on all threads, and does what is to be done beside. */
tn_status tn_load_run(tn_load *l);
/* Memory the model will own; added to m->owned. NULL when memory is short. */
void *tn_load_alloc(tn_load *l, size_t bytes);

/* load_device.c. Queues a float32 vector that the host has, for the device of a segment. */
tn_status tn_load_device_vector(tn_load *l, int32_t segment, float **d, const float *v, int64_t n);

/* rope.c. Fills both ropes from the file's keys and the rope_freqs tensor (NULL if absent). */
tn_status tn_rope_init(tn_load *l, const float *freq_factors);
/* cs[n][n_rot / 2][2] for positions pos0 .. pos0 + n - 1. */
void tn_rope_table(const tn_rope *r, int32_t n_rot, int64_t pos0, int64_t n, float *cs);

/* model.c. Reads hyper-parameters and binds every tensor of the directory. */
tn_status tn_model_bind(tn_load *l);
/* open.c. Refuses a header that tn_model_open refuses, in the same words; *hp and *arch are what it
 * says. Left to opening: what only data show (a file cut short, values of rope_freqs.weight), what
 * depends on the machine, and of the vocabulary, which takes long, all but its size. TN_EFORMAT,
 * TN_EUNSUPPORTED, TN_ENOMEM. */
tn_status tn_model_check(tn_hparams *hp, const tn_arch **arch, const tn_gguf *g, const char *name,
                         const tn_allocator *a, tn_error *err);
/* A u32 key "<arch>.<suffix>"; *value untouched if absent. */
tn_status tn_model_key_u32(const tn_model *m, const char *suffix, uint32_t *value, tn_error *err);
tn_status tn_model_key_f32(const tn_model *m, const char *suffix, float *value, tn_error *err);
/* Byte offset of the key "<arch>.<suffix>", for messages; -1 if absent. */
int64_t tn_model_key_offset(const tn_model *m, const char *suffix);

/* Rows of one expert in memory: padded to a group where the layout is interleaved. */
static inline int64_t tn_expert_rows(const tn_weight *w, int64_t rows)
{
    const int64_t group = tn_layout_rows(w->layout);
    return (rows + group - 1) / group * group;
}
/* The matrix of expert e out of n_experts stored one after the other. */
static inline tn_weight tn_expert(const tn_weight *all, int32_t e, int64_t rows)
{
    tn_weight w = *all;
    w.rows = rows;
    w.data =
        (const char *)all->data + (size_t)e * (size_t)tn_expert_rows(all, rows) * all->row_bytes;
    return w;
}

#endif
