/* Headers of models for the planner's tests: real shapes and random small ones. */
#ifndef TN_PLAN_SHAPES_H
#define TN_PLAN_SHAPES_H

#include "../engine/plan.h"
#include "../gguf/write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct test_model {
    const char *arch;
    int layers, embd, heads, kv_heads, head_dim, ff, vocab, ctx, experts, used, window;
    int tied;
    uint32_t type, down, head, attn; /* attn: of attn_v; odd layers of `mixed` use the base type */
    int mixed;
} test_model;

static inline void test_tensor(tn_gguf_writer *w, const char *name, uint32_t type, int cols,
                               int rows, int n)
{
    const uint64_t shape[3] = {(uint64_t)cols, (uint64_t)rows, (uint64_t)n};
    tn_gguf_writer_tensor(w, name, type, n > 1 ? 3 : rows > 1 ? 2 : 1, shape, NULL);
}

static inline const tn_arch *test_arch(const test_model *m)
{
    return tn_arch_find((tn_str){m->arch, strlen(m->arch)});
}

static inline void test_layer(tn_gguf_writer *w, const test_model *m, int i)
{
    char name[64];
    const bool plain = m->mixed && i % 2;
    const uint32_t down = plain ? m->type : m->down, v = plain ? m->type : m->attn;
    const int n = m->experts ? m->experts : 1, q = m->heads * m->head_dim,
              k = m->kv_heads * m->head_dim;
    const tn_arch *arch = test_arch(m);
    const struct {
        const char *name;
        uint32_t type;
        int cols, rows, n;
    } rows[] = {
        {"attn_norm", TN_TYPE_F32, m->embd, 1, 1},
        {"attn_q", m->type, m->embd, q, 1},
        {"attn_k", m->type, m->embd, k, 1},
        {"attn_v", v, m->embd, k, 1},
        {"attn_output", m->type, q, m->embd, 1},
        {"attn_q_norm", TN_TYPE_F32, m->head_dim, arch->qk_norm, 1},
        {"attn_k_norm", TN_TYPE_F32, m->head_dim, arch->qk_norm, 1},
        {"post_attention_norm", TN_TYPE_F32, m->embd, arch->post_norms, 1},
        {"post_ffw_norm", TN_TYPE_F32, m->embd, arch->post_norms, 1},
        {"ffn_norm", TN_TYPE_F32, m->embd, 1, 1},
        {"ffn_gate_inp", TN_TYPE_F32, m->embd, m->experts, 1},
        {m->experts ? "ffn_gate_exps" : "ffn_gate", m->type, m->embd, m->ff, n},
        {m->experts ? "ffn_up_exps" : "ffn_up", m->type, m->embd, m->ff, n},
        {m->experts ? "ffn_down_exps" : "ffn_down", down, m->ff, m->embd, n},
    };
    for (size_t j = 0; j < sizeof rows / sizeof *rows; j++) {
        if (rows[j].rows == 0) continue;
        snprintf(name, sizeof name, "blk.%d.%s.weight", i, rows[j].name);
        test_tensor(w, name, rows[j].type, rows[j].cols, rows[j].rows, rows[j].n);
    }
}

static inline void test_key(tn_gguf_writer *w, const test_model *m, const char *key, uint32_t value)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", m->arch, key);
    tn_gguf_writer_u32(w, name, value);
}

/* A header; *w owns the bytes. */
static inline tn_status test_header(tn_gguf_writer **w, const uint8_t **bytes, size_t *size,
                                    const test_model *m)
{
    char eps[96];
    *w = tn_gguf_writer_new(NULL);
    tn_gguf_writer_str(*w, "general.architecture", m->arch);
    test_key(*w, m, "block_count", (uint32_t)m->layers);
    test_key(*w, m, "embedding_length", (uint32_t)m->embd);
    test_key(*w, m, "context_length", (uint32_t)m->ctx);
    test_key(*w, m, test_arch(m)->moe ? "expert_feed_forward_length" : "feed_forward_length",
             (uint32_t)m->ff);
    test_key(*w, m, "attention.head_count", (uint32_t)m->heads);
    test_key(*w, m, "attention.head_count_kv", (uint32_t)m->kv_heads);
    test_key(*w, m, "attention.key_length", (uint32_t)m->head_dim);
    test_key(*w, m, "attention.value_length", (uint32_t)m->head_dim);
    snprintf(eps, sizeof eps, "%s.attention.layer_norm_rms_epsilon", m->arch);
    tn_gguf_writer_f32(*w, eps, 1e-5f);
    if (m->experts) test_key(*w, m, "expert_count", (uint32_t)m->experts);
    if (m->experts) test_key(*w, m, "expert_used_count", (uint32_t)m->used);
    if (m->window) test_key(*w, m, "attention.sliding_window", (uint32_t)m->window);
    test_tensor(*w, "token_embd.weight", m->type, m->embd, m->vocab, 1);
    for (int i = 0; i < m->layers; i++)
        test_layer(*w, m, i);
    test_tensor(*w, "output_norm.weight", TN_TYPE_F32, m->embd, 1, 1);
    if (!m->tied) test_tensor(*w, "output.weight", m->head, m->embd, m->vocab, 1);
    return tn_gguf_writer_finish(*w, bytes, size, NULL);
}

static inline tn_status test_shape(tn_shape *s, const test_model *m, int granule)
{
    tn_gguf_writer *w;
    const uint8_t *bytes;
    size_t size;
    tn_gguf *g = NULL;
    tn_error err = {0};
    const tn_gguf_options opt = {sizeof opt, true, NULL};
    tn_status status = test_header(&w, &bytes, &size, m);
    if (!status) status = tn_gguf_parse(&g, bytes, size, "test", &opt, &err);
    if (!status) status = tn_shape_read(s, g, "test", granule, &tn_default_allocator, &err);
    if (status) fprintf(stderr, "test_shape: %s\n", err.msg);
    tn_gguf_close(g);
    tn_gguf_writer_free(w);
    return status;
}

/* Real shapes in the mix that Q4_K_M makes. */
static const test_model model_8b = {
    "llama",      32, 4096, 32, 8, 128,          14336,        128256,
    131072,       0,  0,    0,  0, TN_TYPE_Q4_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K,
    TN_TYPE_Q6_K, 1};
static const test_model model_70b = {
    "llama",      80, 8192, 64, 8, 128,          28672,        128256,
    131072,       0,  0,    0,  0, TN_TYPE_Q4_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K,
    TN_TYPE_Q6_K, 1};
static const test_model model_405b = {
    "llama",      126, 16384, 128, 8, 128,          53248,        128256,
    131072,       0,   0,     0,   0, TN_TYPE_Q4_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K,
    TN_TYPE_Q6_K, 1};
static const test_model model_30b_a3b = {
    "qwen3moe",   48,           2048,         32, 4, 128, 768,
    151936,       40960,        128,          8,  0, 0,   TN_TYPE_Q4_K,
    TN_TYPE_Q6_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K, 1};
static const test_model model_gemma_27b = {
    "gemma3", 62, 5376, 32, 16,           128,          21504,        262208,       131072,
    0,        0,  1024, 1,  TN_TYPE_Q4_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K, 1};

#endif
