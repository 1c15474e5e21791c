#include "arch.h"

#include <string.h>

/* Sources: the model cards' configurations and the published reference implementations
 * (transformers: modeling_llama, _mixtral, _qwen2, _qwen3, _qwen3_moe, _gemma3); key and tensor
 * names from the GGUF specification. gemma3's 62-layer model (27B) scales queries by the embedding
 * size. */
static const tn_arch archs[] = {
    {.name = "llama", .rope = TN_ROPE_NORM, .activation = TN_ACT_SILU, .maybe_moe = true},
    {.name = "qwen2", .rope = TN_ROPE_NEOX, .activation = TN_ACT_SILU, .qkv_bias = true},
    {.name = "qwen3", .rope = TN_ROPE_NEOX, .activation = TN_ACT_SILU, .qk_norm = true},
    {.name = "qwen3moe", .rope = TN_ROPE_NEOX, .activation = TN_ACT_SILU, .qk_norm = true,
     .moe = true},
    {.name = "gemma3", .rope = TN_ROPE_NEOX, .activation = TN_ACT_GELU, .qk_norm = true,
     .post_norms = true, .scaled_embed = true, .swa_period = 6, .rope_base_swa = 10000.0f,
     .wide_n_layers = 62},
};

const tn_arch *tn_arch_find(tn_str name)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (strlen(archs[i].name) == name.len && memcmp(archs[i].name, name.data, name.len) == 0)
            return &archs[i];
    return NULL;
}

const char *tn_arch_names(void)
{
    return "llama, qwen2, qwen3, qwen3moe, gemma3";
}
