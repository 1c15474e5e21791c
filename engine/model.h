/* Internal: the model. Shapes and hyper-parameters are validated in model.c and nowhere else. */
#ifndef TN_MODEL_H
#define TN_MODEL_H

#include "tenon.h"
#include "arch.h"
#include "../gguf/gguf.h"
#include "../gguf/mem.h"
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

/* One transformer layer. A weight with data NULL is absent; biases and norms are float32 or NULL.
 * Expert weights hold all experts one after the other, tn_expert() picks one. */
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
} tn_layer;

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
    float *output_norm;    /* (n_embd) */
    tn_layer *layers;      /* (n_layers) */
    tn_rope rope[2];       /* global, local */
    void **owned;          /* every buffer to free at close */
    size_t n_owned, cap_owned;
    bool mapped;           /* weights are the file's own pages */
    size_t held_bytes;     /* memory of weights in our layout */
    uint64_t n_params, weight_bytes, token_bytes;
    uint32_t main_type;    /* type of most weight bytes */
    char *name;  /* path or given name, for messages */
    char *title; /* general.name, or "" */
    double load_s;
    _Atomic int n_contexts;
};

/* How tensors become weights; made by tn_model_open from the options and the memory at hand. */
typedef struct tn_load {
    tn_model *m;
    const tn_model_options *opt; /* a full-size copy */
    bool map, exact, random;     /* random: synthetic weights, no file */
    tn_error *err;
    bool *used;                  /* per tensor of the directory: bound to a field */
    struct tn_load_job *jobs;    /* reading still to be done */
    size_t n_jobs, cap_jobs;
    uint64_t total_bytes;        /* of all jobs, for progress */
} tn_load;

/* load.c. Binds tensor `t` as a matrix of rows x cols (x n_experts, 0 = a plain matrix) and queues its
 * reading; row_major keeps the file's layout (embeddings that are only looked up). */
tn_status tn_load_weight(tn_load *l, tn_weight *w, const tn_gguf_tensor *t, int32_t n_experts,
                         bool row_major);
/* Binds a vector as float32, read at once. */
tn_status tn_load_vector(tn_load *l, float **v, const tn_gguf_tensor *t);
/* Reads everything queued, on all threads. */
tn_status tn_load_run(tn_load *l);
/* Memory the model will own; added to m->owned. NULL when memory is short. */
void *tn_load_alloc(tn_load *l, size_t bytes);

/* rope.c. Fills both ropes from the file's keys and the rope_freqs tensor (NULL if absent). */
tn_status tn_rope_init(tn_load *l, const float *freq_factors);
/* cs[n][n_rot / 2][2] for positions pos0 .. pos0 + n - 1. */
void tn_rope_table(const tn_rope *r, int32_t n_rot, int64_t pos0, int64_t n, float *cs);

/* model.c. Reads hyper-parameters and binds every tensor of the directory. */
tn_status tn_model_bind(tn_load *l);
/* A u32 key "<arch>.<suffix>"; *value untouched if absent. */
tn_status tn_model_key_u32(const tn_model *m, const char *suffix, uint32_t *value, tn_error *err);
tn_status tn_model_key_f32(const tn_model *m, const char *suffix, float *value, tn_error *err);

/* Rows of one expert in memory: padded to a group of 8 where the layout is interleaved. */
static inline int64_t tn_expert_rows(const tn_weight *w, int64_t rows)
{
    return w->layout == TN_LAYOUT_ROWS ? rows : (rows + 7) / 8 * 8;
}
/* The matrix of expert e out of n_experts stored one after the other. */
static inline tn_weight tn_expert(const tn_weight *all, int32_t e, int64_t rows)
{
    tn_weight w = *all;
    w.rows = rows;
    w.data = (const char *)all->data + (size_t)e * (size_t)tn_expert_rows(all, rows) * all->row_bytes;
    return w;
}

#endif
