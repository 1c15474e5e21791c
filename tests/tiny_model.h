/* Whole models of a few KiB for the tests of bad input: one layer or two, random F32 and F16
 * weights, a vocabulary of two dozen tokens. Every architecture and both kinds of tokenizer are
 * here. */
#ifndef TN_TEST_TINY_MODEL_H
#define TN_TEST_TINY_MODEL_H

#include "harness.h"

#include "../gguf/write.h"
#include "../gguf/types.h"

typedef struct tiny_kind {
    const char *arch;
    bool bpe;      /* tokenizer: gpt2, else llama */
    bool moe, qk_norm, qkv_bias, post_norms, output;
    bool extras;   /* scaled rope, biases everywhere, sampling keys, a chat template */
} tiny_kind;

static const tiny_kind tiny_kinds[] = {
    {.arch = "llama", .output = true},
    {.arch = "llama", .bpe = true, .moe = true},
    {.arch = "qwen2", .bpe = true, .qkv_bias = true, .output = true},
    {.arch = "qwen3", .bpe = true, .qk_norm = true},
    {.arch = "qwen3moe", .bpe = true, .moe = true, .qk_norm = true, .output = true},
    {.arch = "gemma3", .qk_norm = true, .post_norms = true},
    {.arch = "llama", .qkv_bias = true, .output = true, .extras = true},
};
enum { n_tiny_kinds = sizeof tiny_kinds / sizeof *tiny_kinds };

enum { tiny_embd = 8, tiny_heads = 2, tiny_head_dim = 4, tiny_ff = 8, tiny_experts = 2 };

typedef struct tiny_writer {
    tn_gguf_writer *w;
    const tiny_kind *k;
    uint64_t rng;
} tiny_writer;

static inline void tiny_key(tiny_writer *t, const char *suffix, uint32_t value)
{
    char key[80];
    snprintf(key, sizeof key, "%s.%s", t->k->arch, suffix);
    tn_gguf_writer_u32(t->w, key, value);
}

/* A float32 tensor of random numbers around `mean`. */
static inline void tiny_tensor(tiny_writer *t, int layer, const char *name, float mean,
                               uint64_t cols, uint64_t rows, uint64_t n)
{
    char full[80];
    float x[2048];
    const uint64_t shape[3] = {cols, rows, n}, count = cols * rows * n;
    if (layer < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    if (count > sizeof x / sizeof *x) abort();
    for (uint64_t i = 0; i < count; i++) x[i] = mean + 0.5f * test_randf(&t->rng);
    tn_gguf_writer_tensor(t->w, full, TN_TYPE_F32, n > 1 ? 3 : rows > 1 ? 2 : 1, shape, x);
}

static inline void tiny_layer(tiny_writer *t, int i)
{
    const tiny_kind *k = t->k;
    const uint64_t e = tiny_embd, q = tiny_heads * tiny_head_dim, kv = tiny_head_dim;
    tiny_tensor(t, i, "attn_norm.weight", 1, e, 1, 1);
    tiny_tensor(t, i, "attn_q.weight", 0, e, q, 1);
    tiny_tensor(t, i, "attn_k.weight", 0, e, kv, 1);
    tiny_tensor(t, i, "attn_v.weight", 0, e, kv, 1);
    tiny_tensor(t, i, "attn_output.weight", 0, q, e, 1);
    if (k->qkv_bias) {
        tiny_tensor(t, i, "attn_q.bias", 0, q, 1, 1);
        tiny_tensor(t, i, "attn_k.bias", 0, kv, 1, 1);
        tiny_tensor(t, i, "attn_v.bias", 0, kv, 1, 1);
    }
    if (k->qk_norm) {
        tiny_tensor(t, i, "attn_q_norm.weight", 1, tiny_head_dim, 1, 1);
        tiny_tensor(t, i, "attn_k_norm.weight", 1, tiny_head_dim, 1, 1);
    }
    if (k->post_norms) {
        tiny_tensor(t, i, "post_attention_norm.weight", 1, e, 1, 1);
        tiny_tensor(t, i, "post_ffw_norm.weight", 1, e, 1, 1);
    }
    if (k->extras) {
        tiny_tensor(t, i, "attn_output.bias", 0, e, 1, 1);
        tiny_tensor(t, i, "ffn_gate.bias", 0, tiny_ff, 1, 1);
        tiny_tensor(t, i, "ffn_up.bias", 0, tiny_ff, 1, 1);
        tiny_tensor(t, i, "ffn_down.bias", 0, e, 1, 1);
    }
    tiny_tensor(t, i, "ffn_norm.weight", 1, e, 1, 1);
    if (k->moe) tiny_tensor(t, i, "ffn_gate_inp.weight", 0, e, tiny_experts, 1);
    const uint64_t n = k->moe ? tiny_experts : 1;
    tiny_tensor(t, i, k->moe ? "ffn_gate_exps.weight" : "ffn_gate.weight", 0, e, tiny_ff, n);
    tiny_tensor(t, i, k->moe ? "ffn_up_exps.weight" : "ffn_up.weight", 0, e, tiny_ff, n);
    tiny_tensor(t, i, k->moe ? "ffn_down_exps.weight" : "ffn_down.weight", 0, tiny_ff, e, n);
}

/* Returns the size of the vocabulary. */
static inline int tiny_vocab(tiny_writer *t)
{
    static const char *const spm[] = {"<unk>", "<s>", "</s>", "<0x0A>", "<0x41>", "\xe2\x96\x81",
                                      "a", "b", "c", "\xe2\x96\x81\x61", "ab", "abc"};
    static const char *const bpe[] = {"<|end|>",      "a",  "b",   "c", "d", "\xc4\xa0",
                                      "\xc4\xa0\x61", "ab", "abc", "1", "2", "\xc4\x8a"};
    static const char *const merges[] = {"\xc4\xa0 a", "a b", "ab c"};
    enum { n = sizeof spm / sizeof *spm, n_merges = sizeof merges / sizeof *merges };
    _Static_assert(n == sizeof bpe / sizeof *bpe, "one size for both");
    tn_str tokens[n], pairs[n_merges];
    int32_t types[n];
    float scores[n];
    for (int i = 0; i < n; i++) {
        const char *s = t->k->bpe ? bpe[i] : spm[i];
        tokens[i] = (tn_str){s, strlen(s)};
        types[i] = t->k->bpe ? (i ? 1 : 3) : i == 0 ? 2 : i < 3 ? 3 : i < 5 ? 6 : 1;
        scores[i] = (float)-i;
    }
    for (int i = 0; i < n_merges; i++) pairs[i] = (tn_str){merges[i], strlen(merges[i])};
    tn_gguf_writer_str(t->w, "tokenizer.ggml.model", t->k->bpe ? "gpt2" : "llama");
    tn_gguf_writer_strings(t->w, "tokenizer.ggml.tokens", n, tokens);
    tn_gguf_writer_array(t->w, "tokenizer.ggml.token_type", TN_GGUF_I32, n, types);
    if (t->k->bpe) {
        tn_gguf_writer_str(t->w, "tokenizer.ggml.pre", "qwen2");
        tn_gguf_writer_strings(t->w, "tokenizer.ggml.merges", n_merges, pairs);
    } else {
        tn_gguf_writer_array(t->w, "tokenizer.ggml.scores", TN_GGUF_F32, n, scores);
    }
    tn_gguf_writer_u32(t->w, "tokenizer.ggml.bos_token_id", t->k->bpe ? 0 : 1);
    tn_gguf_writer_u32(t->w, "tokenizer.ggml.eos_token_id", t->k->bpe ? 0 : 2);
    return n;
}

static inline void tiny_extras(tiny_writer *t)
{
    static const char chatml[] = "{% for message in messages %}{{'<|im_start|>' + message['role'] "
                                 "+ '\\n' + message['content'] + "
                                 "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
                                 "{{ '<|im_start|>assistant\\n' }}{% endif %}";
    tn_gguf_writer_str(t->w, "llama.rope.scaling.type", "yarn");
    tn_gguf_writer_f32(t->w, "llama.rope.scaling.factor", 2);
    tn_gguf_writer_f32(t->w, "llama.rope.scaling.attn_factor", 1);
    tiny_key(t, "rope.scaling.original_context_length", 32);
    tn_gguf_writer_f32(t->w, "llama.rope.freq_base", 5000);
    tn_gguf_writer_f32(t->w, "general.sampling.temp", 0.5f);
    tn_gguf_writer_u32(t->w, "general.sampling.top_k", 5);
    tn_gguf_writer_bool(t->w, "tokenizer.ggml.add_eos_token", true);
    tn_gguf_writer_bool(t->w, "tokenizer.ggml.remove_extra_whitespaces", true);
    tn_gguf_writer_str(t->w, "tokenizer.chat_template", chatml);
    tiny_tensor(t, -1, "rope_freqs.weight", 1.5f, tiny_head_dim / 2, 1, 1);
}

/* The file's bytes: owned by *w, which the caller frees with tn_gguf_writer_free. */
static inline void tiny_model(const tiny_kind *k, tn_gguf_writer **w, const uint8_t **bytes,
                              size_t *size)
{
    tiny_writer t = {.w = tn_gguf_writer_new(NULL), .k = k, .rng = 7};
    const int n_layers = k->post_norms ? 2 : 1;
    if (!t.w) abort();
    tn_gguf_writer_str(t.w, "general.architecture", k->arch);
    tiny_key(&t, "block_count", (uint32_t)n_layers);
    tiny_key(&t, "embedding_length", tiny_embd);
    tiny_key(&t, "context_length", 64);
    tiny_key(&t, "attention.head_count", tiny_heads);
    tiny_key(&t, "attention.head_count_kv", 1);
    tiny_key(&t, "attention.key_length", tiny_head_dim);
    tiny_key(&t, "attention.value_length", tiny_head_dim);
    tiny_key(&t, strcmp(k->arch, "qwen3moe") ? "feed_forward_length" : "expert_feed_forward_length",
             tiny_ff);
    if (k->moe) tiny_key(&t, "expert_count", tiny_experts);
    if (k->moe) tiny_key(&t, "expert_used_count", 1);
    if (k->post_norms) tiny_key(&t, "attention.sliding_window", 3);
    char eps[80];
    snprintf(eps, sizeof eps, "%s.attention.layer_norm_rms_epsilon", k->arch);
    tn_gguf_writer_f32(t.w, eps, 1e-5f);
    const uint64_t n_vocab = (uint64_t)tiny_vocab(&t);
    if (k->extras) tiny_extras(&t);
    tiny_tensor(&t, -1, "token_embd.weight", 0, tiny_embd, n_vocab, 1);
    tiny_tensor(&t, -1, "output_norm.weight", 1, tiny_embd, 1, 1);
    if (k->output) tiny_tensor(&t, -1, "output.weight", 0, tiny_embd, n_vocab, 1);
    for (int i = 0; i < n_layers; i++) tiny_layer(&t, i);
    tn_error err;
    if (tn_gguf_writer_finish(t.w, bytes, size, &err) != TN_OK) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    *w = t.w;
}

#endif
