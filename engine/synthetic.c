/* Random models in the shape of real ones. Shapes are those of the published configurations. */
#include "synthetic.h"
#include "../gguf/blocks.h"
#include "../gguf/types.h"
#include "../gguf/write.h"
#include "../kernels/f16.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

typedef struct shape {
    const char *name, *arch;
    uint32_t n_layers, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab, n_ctx;
    uint32_t n_expert, n_expert_used, n_swa;
    bool tied;
    float rope_base;
} shape;

/* The tiny ones are nobody's: whole models that tests run in every quantisation, in a blink. */
static const shape shapes[] = {
    {"tiny-llama", "llama", 2, 256, 4, 2, 64, 768, 512, 1024, 0, 0, 0, false, 1e4f},
    {"tiny-moe", "qwen3moe", 2, 256, 4, 2, 64, 256, 512, 1024, 8, 2, 0, false, 1e4f},
    {"llama-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 0, 0, 0, true, 1e5f},
    {"llama-1b", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 0, 0, 0, true, 5e5f},
    {"llama-3b", "llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 0, 0, 0, true, 5e5f},
    {"llama-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 0, 0, 0, false, 5e5f},
    {"llama-70b", "llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072, 0, 0, 0, false, 5e5f},
    {"llama-405b", "llama", 126, 16384, 128, 8, 128, 53248, 128256, 131072, 0, 0, 0, false, 5e5f},
    {"mistral-7b", "llama", 32, 4096, 32, 8, 128, 14336, 32768, 32768, 0, 0, 0, false, 1e6f},
    {"mixtral-8x7b", "llama", 32, 4096, 32, 8, 128, 14336, 32000, 32768, 8, 2, 0, false, 1e6f},
    {"qwen2-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768, 0, 0, 0, false, 1e6f},
    {"qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 0, 0, 0, true, 1e6f},
    {"qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 0, 0, 0, false, 1e6f},
    {"qwen3-32b", "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, 40960, 0, 0, 0, false, 1e6f},
    {"qwen3-30b-a3b", "qwen3moe", 48, 2048, 32, 4, 128, 768, 151936, 40960, 128, 8, 0, false, 1e6f},
    {"qwen3-235b-a22b", "qwen3moe", 94, 4096, 64, 4, 128, 1536, 151936, 40960, 128, 8, 0, false,
     1e6f},
    {"gemma3-270m", "gemma3", 18, 640, 4, 1, 256, 2048, 262144, 32768, 0, 0, 512, true, 1e6f},
    {"gemma3-1b", "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, 32768, 0, 0, 512, true, 1e6f},
    {"gemma3-27b", "gemma3", 62, 5376, 32, 16, 128, 21504, 262208, 131072, 0, 0, 1024, true, 1e6f},
};

/* The mixes of llama.cpp's quantiser that people download. `more`: what attn_v and ffn_down have in
 * the layers that matter most; `output`: the head. */
typedef struct mix {
    const char *name;
    uint32_t base, more, output;
} mix;

static const mix mixes[] = {
    {"q4_k_s", TN_TYPE_Q4_K, TN_TYPE_Q4_K, TN_TYPE_Q6_K},
    {"q4_k_m", TN_TYPE_Q4_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K},
    {"q5_k_s", TN_TYPE_Q5_K, TN_TYPE_Q5_K, TN_TYPE_Q6_K},
    {"q5_k_m", TN_TYPE_Q5_K, TN_TYPE_Q6_K, TN_TYPE_Q6_K},
};

/* ---- names ----------------------------------------------------------------------------------- */

static const shape *find_shape(const char *name, tn_error *err)
{
    char all[400] = "";
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
        const size_t n = strlen(all);
        snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", shapes[i].name);
    }
    tn_fail(err, TN_EARG, -1, "shape '%s' is unknown; known are %s", name, all);
    return NULL;
}

static bool find_mix(const char *name, mix *out, tn_error *err)
{
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        if (strcasecmp(mixes[i].name, name) == 0) {
            *out = mixes[i];
            return true;
        }
    const int type = tn_type_from_name(name);
    if (type >= 0 && tn_type_get((uint32_t)type)->matmul) {
        *out = (mix){name, (uint32_t)type, (uint32_t)type, (uint32_t)type};
        return true;
    }
    tn_fail(err, TN_EARG, -1,
            "type '%s' is unknown; use a tensor type such as q4_0, q8_0, q4_k, f16, or one of the "
            "mixes q4_k_s, q4_k_m, q5_k_s, q5_k_m",
            name);
    return false;
}

/* The type that the quantiser falls back to where rows are no multiple of 256. */
static uint32_t type_for(uint32_t type, uint64_t cols)
{
    if (cols % tn_type_get(type)->block == 0) return type;
    switch (type) {
    case TN_TYPE_Q4_K: return TN_TYPE_Q5_0;
    case TN_TYPE_Q5_K: return TN_TYPE_Q5_1;
    case TN_TYPE_Q6_K: return TN_TYPE_Q8_0;
    default: return TN_TYPE_Q4_0;
    }
}

/* Whether layer i of n gets the better type: the first and last eighth, and every third between. */
static bool matters_more(uint32_t i, uint32_t n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

/* ---- the header ------------------------------------------------------------------------------ */

static void key_u32(tn_gguf_writer *w, const shape *s, const char *suffix, uint32_t value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->arch, suffix);
    tn_gguf_writer_u32(w, key, value);
}

static void key_f32(tn_gguf_writer *w, const shape *s, const char *suffix, float value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->arch, suffix);
    tn_gguf_writer_f32(w, key, value);
}

static void write_keys(tn_gguf_writer *w, const shape *s)
{
    const bool own_expert_size = strcmp(s->arch, "qwen3moe") == 0;
    tn_gguf_writer_str(w, "general.architecture", s->arch);
    tn_gguf_writer_str(w, "general.name", s->name);
    key_u32(w, s, "block_count", s->n_layers);
    key_u32(w, s, "context_length", s->n_ctx);
    key_u32(w, s, "embedding_length", s->n_embd);
    key_u32(w, s, "feed_forward_length", s->n_ff);
    key_u32(w, s, "attention.head_count", s->n_head);
    key_u32(w, s, "attention.head_count_kv", s->n_head_kv);
    key_u32(w, s, "attention.key_length", s->head_dim);
    key_u32(w, s, "attention.value_length", s->head_dim);
    key_u32(w, s, "rope.dimension_count", s->head_dim);
    key_f32(w, s, "rope.freq_base", s->rope_base);
    key_f32(w, s, "attention.layer_norm_rms_epsilon", 1e-6f);
    if (s->n_expert) key_u32(w, s, "expert_count", s->n_expert);
    if (s->n_expert) key_u32(w, s, "expert_used_count", s->n_expert_used);
    if (own_expert_size) key_u32(w, s, "expert_feed_forward_length", s->n_ff);
    if (s->n_swa) key_u32(w, s, "attention.sliding_window", s->n_swa);
}

static void vector(tn_gguf_writer *w, uint32_t layer, const char *name, const char *suffix,
                   uint64_t n)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s.%s", layer, name, suffix);
    tn_gguf_writer_tensor(w, full, TN_TYPE_F32, 1, (uint64_t[]){n}, NULL);
}

static void matrix(tn_gguf_writer *w, uint32_t layer, const char *name, uint32_t type,
                   uint64_t rows, uint64_t cols, uint64_t n)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s.weight", layer, name);
    tn_gguf_writer_tensor(w, full, type_for(type, cols), n ? 3 : 2, (uint64_t[]){cols, rows, n},
                          NULL);
}

static void write_attention(tn_gguf_writer *w, const shape *s, const mix *m, uint32_t i)
{
    const uint64_t q = (uint64_t)s->n_head * s->head_dim, kv = (uint64_t)s->n_head_kv * s->head_dim;
    vector(w, i, "attn_norm", "weight", s->n_embd);
    matrix(w, i, "attn_q", m->base, q, s->n_embd, 0);
    matrix(w, i, "attn_k", m->base, kv, s->n_embd, 0);
    matrix(w, i, "attn_v", matters_more(i, s->n_layers) ? m->more : m->base, kv, s->n_embd, 0);
    matrix(w, i, "attn_output", m->base, s->n_embd, q, 0);
    if (strcmp(s->arch, "qwen2") == 0) {
        vector(w, i, "attn_q", "bias", q);
        vector(w, i, "attn_k", "bias", kv);
        vector(w, i, "attn_v", "bias", kv);
    }
    if (strncmp(s->arch, "qwen3", 5) == 0 || s->n_swa) {
        vector(w, i, "attn_q_norm", "weight", s->head_dim);
        vector(w, i, "attn_k_norm", "weight", s->head_dim);
    }
    if (s->n_swa) vector(w, i, "post_attention_norm", "weight", s->n_embd);
}

static void write_ffn(tn_gguf_writer *w, const shape *s, const mix *m, uint32_t i)
{
    const uint32_t n = s->n_expert, down = matters_more(i, s->n_layers) ? m->more : m->base;
    vector(w, i, "ffn_norm", "weight", s->n_embd);
    if (s->n_swa) vector(w, i, "post_ffw_norm", "weight", s->n_embd);
    if (n) matrix(w, i, "ffn_gate_inp", TN_TYPE_F32, n, s->n_embd, 0);
    matrix(w, i, n ? "ffn_gate_exps" : "ffn_gate", m->base, s->n_ff, s->n_embd, n);
    matrix(w, i, n ? "ffn_up_exps" : "ffn_up", m->base, s->n_ff, s->n_embd, n);
    matrix(w, i, n ? "ffn_down_exps" : "ffn_down", down, s->n_embd, s->n_ff, n);
}

static void write_tensors(tn_gguf_writer *w, const shape *s, const mix *m)
{
    const uint64_t head[] = {s->n_embd, s->n_vocab};
    tn_gguf_writer_tensor(w, "token_embd.weight",
                          type_for(s->tied ? m->output : m->base, s->n_embd), 2, head, NULL);
    if (!s->tied)
        tn_gguf_writer_tensor(w, "output.weight", type_for(m->output, s->n_embd), 2, head, NULL);
    tn_gguf_writer_tensor(w, "output_norm.weight", TN_TYPE_F32, 1, head, NULL);
    for (uint32_t i = 0; i < s->n_layers; i++) {
        write_attention(w, s, m, i);
        write_ffn(w, s, m, i);
    }
}

tn_status tn_synthetic_header(void **bytes, size_t *size, const char *shape_name, const char *type,
                              const tn_allocator *a, tn_error *err)
{
    mix m;
    *bytes = NULL;
    const shape *s = find_shape(shape_name, err);
    if (!s || !find_mix(type, &m, err)) return TN_EARG;
    tn_gguf_writer *w = tn_gguf_writer_new(a);
    if (!w) return tn_fail_nomem(err, 1, "a synthetic model's header");
    write_keys(w, s);
    write_tensors(w, s, &m);
    const uint8_t *written;
    tn_status status = tn_gguf_writer_finish(w, &written, size, err);
    if (!status) {
        *bytes = tn_alloc_raw(a, *size, 1);
        if (*bytes)
            memcpy(*bytes, written, *size);
        else
            status = tn_fail_nomem(err, *size, "a synthetic model's header");
    }
    tn_gguf_writer_free(w);
    return status;
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Where the float16 scales of a block lie, and which values give weights around zero with a
 * standard deviation of about 0.02 when all other bits are random. */
typedef struct scales {
    size_t at[2]; /* bytes into the block; the second is that of a minimum, or equals the first */
    float value[2];
} scales;

static scales scales_of(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q4_0: return (scales){{0, 0}, {0.004f, 0.004f}};
    case TN_TYPE_Q4_1: return (scales){{0, 2}, {0.004f, -0.03f}};
    case TN_TYPE_Q5_0: return (scales){{0, 0}, {0.002f, 0.002f}};
    case TN_TYPE_Q5_1: return (scales){{0, 2}, {0.002f, -0.031f}};
    case TN_TYPE_Q8_0: return (scales){{0, 0}, {0.0003f, 0.0003f}};
    case TN_TYPE_Q2_K:
        return (scales){{offsetof(tn_block_q2_k, d), offsetof(tn_block_q2_k, dmin)},
                        {0.0015f, 0.00225f}};
    case TN_TYPE_Q3_K:
        return (scales){{offsetof(tn_block_q3_k, d), offsetof(tn_block_q3_k, d)},
                        {0.0005f, 0.0005f}};
    case TN_TYPE_Q4_K: return (scales){{0, 2}, {0.00012f, 0.0009f}};
    case TN_TYPE_Q5_K: return (scales){{0, 2}, {0.00006f, 0.0009f}};
    default:
        return (scales){{offsetof(tn_block_q6_k, d), offsetof(tn_block_q6_k, d)},
                        {0.00002f, 0.00002f}};
    }
}

/* splitmix64 (Steele, Lea and Flood 2014). */
static uint64_t mix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void fill_floats(char *dst, uint32_t type, size_t bytes, uint64_t seed)
{
    const size_t size = type == TN_TYPE_F32 ? 4 : 2;
    for (size_t i = 0; i < bytes / size; i++) {
        const float x = ((float)(mix64(&seed) >> 40) * 0x1p-24f - 0.5f) * 0.07f;
        const uint16_t h = type == TN_TYPE_F16 ? tn_f32_to_f16(x) : tn_f32_to_bf16(x);
        if (size == 4)
            memcpy(dst + i * size, &x, size);
        else
            memcpy(dst + i * size, &h, size);
    }
}

void tn_synthetic_fill(void *dst, uint32_t type, size_t bytes, uint64_t seed)
{
    char *p = dst;
    if (type == TN_TYPE_F32 || type == TN_TYPE_F16 || type == TN_TYPE_BF16) {
        fill_floats(p, type, bytes, seed);
        return;
    }
    for (size_t i = 0; i < bytes; i += sizeof seed) {
        const uint64_t bits = mix64(&seed);
        memcpy(p + i, &bits, bytes - i < sizeof bits ? bytes - i : sizeof bits);
    }
    const scales s = scales_of(type);
    const uint16_t value[2] = {tn_f32_to_f16(s.value[0]), tn_f32_to_f16(s.value[1])};
    const size_t block = tn_type_get(type)->bytes;
    for (size_t b = 0; b < bytes; b += block) {
        memcpy(p + b + s.at[1], &value[1], sizeof *value);
        memcpy(p + b + s.at[0], &value[0], sizeof *value);
    }
}
