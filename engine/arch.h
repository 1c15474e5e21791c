/* ONE table: architecture name -> switches of the forward pass. Nothing else compares names. */
#ifndef TN_ARCH_H
#define TN_ARCH_H

#include "../gguf/gguf.h"
#include "../kernels/kernels.h"

typedef struct tn_arch {
    const char *name; /* value of general.architecture and prefix of its keys */
    tn_rope_style rope;
    tn_activation activation;
    bool qkv_bias;     /* attn_q/k/v have biases (where false they may still be present) */
    bool qk_norm;      /* RMS norm of every query and key head before rope */
    bool post_norms;   /* further RMS norms after attention and after the FFN, before the
                          residual */
    bool scaled_embed; /* embeddings are multiplied by sqrt(n_embd) */
    bool moe;          /* experts: required for true; optional (by expert_count) for maybe_moe */
    bool maybe_moe;
    uint32_t swa_period;    /* > 0: of so many layers the last attends globally, the others
                               locally */
    float rope_base_swa;    /* default base of local layers */
    uint32_t wide_n_layers; /* model size whose attention scale is 1/sqrt(n_embd / n_head); 0 =
                               none */
} tn_arch;

/* The row of a name, or NULL. */
const tn_arch *tn_arch_find(tn_str name);
/* Comma-separated names of all rows, for messages. */
const char *tn_arch_names(void);

#endif
