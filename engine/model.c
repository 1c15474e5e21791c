/* From GGUF names to struct fields: hyper-parameters and shapes are checked
 * here and nowhere else. */
#include "model.h"
#include "placement.h"
#include "sides.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { max_layers = 2048, max_dim = 1 << 20, max_experts = 4096, max_ctx = 1 << 30 };

const tn_vocab *tn_model_vocab(const tn_model *m)
{
    return m->vocab;
}

const tn_gguf *tn_model_gguf(const tn_model *m)
{
    return m->gguf;
}

const tn_allocator *tn_model_allocator(const tn_model *m)
{
    return m->a;
}

/* ---- hyper-parameters ------------------------------------------------------------------------ */

static const char *arch_key(const tn_model *m, const char *suffix, char key[160])
{
    snprintf(key, 160, "%s.%s", m->arch->name, suffix);
    return key;
}

int64_t tn_model_key_offset(const tn_model *m, const char *suffix)
{
    char key[160];
    const tn_gguf_key *k = tn_gguf_find(m->gguf, arch_key(m, suffix, key));
    return k ? k->offset : -1;
}

/* A scalar, or an array whose elements are all the same: some converters write
 * one value a layer. */
tn_status tn_model_key_u32(const tn_model *m, const char *suffix, uint32_t *value, tn_error *err)
{
    char key[160];
    const tn_gguf_key *k = tn_gguf_find(m->gguf, arch_key(m, suffix, key));
    if (!k || k->kind != TN_GGUF_ARRAY) return tn_gguf_get_u32(m->gguf, key, value, err);
    int64_t first = 0, v = 0;
    for (uint64_t i = 0; i < k->n; i++) {
        if (!tn_gguf_value_i64(k, i, &v) || v < 0 || v > UINT32_MAX)
            return tn_fail(err, TN_EFORMAT, k->offset, "%s: key '%s' must hold integers", m->name,
                           key);
        if (i && v != first)
            return tn_fail(
                err, TN_EUNSUPPORTED, k->offset,
                "%s: key '%s' differs from layer to layer; such models are not supported", m->name,
                key);
        first = v;
    }
    if (k->n) *value = (uint32_t)first;
    return TN_OK;
}

tn_status tn_model_key_f32(const tn_model *m, const char *suffix, float *value, tn_error *err)
{
    char key[160];
    return tn_gguf_get_f32(m->gguf, arch_key(m, suffix, key), value, err);
}

/* A count within [lo, hi]; `absent` when the key is missing (-1: it is required). */
static tn_status read_count(tn_load *l, const char *suffix, int64_t absent, int64_t lo, int64_t hi,
                            int32_t *out)
{
    const tn_model *m = l->m;
    char key[160];
    const tn_gguf_key *k = tn_gguf_find(m->gguf, arch_key(m, suffix, key));
    uint32_t value = (uint32_t)absent;
    if (!k && absent < 0)
        return tn_fail(l->err, TN_EFORMAT, -1, "%s: key '%s' is missing", m->name, key);
    tn_status s = tn_model_key_u32(m, suffix, &value, l->err);
    if (s) return s;
    if (value < lo || value > hi)
        return tn_fail(l->err, TN_EFORMAT, k ? k->offset : -1,
                       "%s: key '%s' is %u, expected %lld to %lld", m->name, key, value,
                       (long long)lo, (long long)hi);
    *out = (int32_t)value;
    return TN_OK;
}

static tn_status read_heads(tn_load *l)
{
    tn_hparams *hp = &l->m->hp;
    tn_status s = read_count(l, "attention.head_count", -1, 1, 65536, &hp->n_head);
    if (!s) s = read_count(l, "attention.head_count_kv", hp->n_head, 1, 65536, &hp->n_head_kv);
    if (s) return s;
    int32_t even = hp->n_embd / hp->n_head;
    if (!s) s = read_count(l, "attention.key_length", even, 2, 8192, &hp->head_dim_k);
    if (!s) s = read_count(l, "attention.value_length", even, 2, 8192, &hp->head_dim_v);
    if (!s) s = read_count(l, "rope.dimension_count", hp->head_dim_k, 2, 8192, &hp->n_rot);
    if (s) return s;
    if (hp->n_head % hp->n_head_kv)
        return tn_fail(
            l->err, TN_EFORMAT, tn_model_key_offset(l->m, "attention.head_count_kv"),
            "%s: key '%s.attention.head_count_kv': %d heads are no multiple of %d KV heads",
            l->m->name, l->m->arch->name, hp->n_head, hp->n_head_kv);
    if (hp->n_rot % 2 || hp->n_rot > hp->head_dim_k)
        return tn_fail(
            l->err, TN_EFORMAT, tn_model_key_offset(l->m, "rope.dimension_count"),
            "%s: key '%s.rope.dimension_count' is %d, expected an even "
            "number up to the head size %d",
            l->m->name, l->m->arch->name, hp->n_rot, hp->head_dim_k);
    return TN_OK;
}

static tn_status read_experts(tn_load *l)
{
    const tn_arch *arch = l->m->arch;
    tn_hparams *hp = &l->m->hp;
    tn_status s =
        read_count(l, "expert_count", arch->moe ? -1 : 0, arch->moe, max_experts, &hp->n_expert);
    if (s) return s;
    if (hp->n_expert && !arch->moe && !arch->maybe_moe)
        return tn_fail(l->err, TN_EUNSUPPORTED, tn_model_key_offset(l->m, "expert_count"),
                       "%s: key '%s.expert_count': experts in architecture '%s' are not supported",
                       l->m->name, arch->name, arch->name);
    s = read_count(l, "expert_used_count", hp->n_expert ? -1 : 0, hp->n_expert > 0, hp->n_expert,
                   &hp->n_expert_used);
    if (s) return s;
    const bool own_size = arch->moe;
    s = read_count(l, own_size ? "expert_feed_forward_length" : "feed_forward_length", -1, 1,
                   max_dim, &hp->n_ff);
    hp->expert_scale = 1.0f;
    if (!s) s = tn_model_key_f32(l->m, "expert_weights_scale", &hp->expert_scale, l->err);
    if (hp->expert_scale == 0.0f) hp->expert_scale = 1.0f; /* converters write 0 for "none" */
    if (s || (hp->expert_scale > 0.0f && hp->expert_scale < 1e6f)) return s;
    return tn_fail(l->err, TN_EFORMAT, tn_model_key_offset(l->m, "expert_weights_scale"),
                   "%s: key '%s.expert_weights_scale' is %g", l->m->name, arch->name,
                   (double)hp->expert_scale);
}

static tn_status read_window(tn_load *l)
{
    tn_hparams *hp = &l->m->hp;
    tn_status s = read_count(l, "attention.sliding_window", 0, 0, max_ctx, &hp->n_swa);
    if (s) return s;
    return read_count(l, "attention.sliding_window_pattern", l->m->arch->swa_period, 1, max_layers,
                      &hp->swa_period);
}

/* Embedding models of these architectures look ahead; every row here looks back only. */
static tn_status check_causal(tn_load *l)
{
    char key[160];
    bool causal = true;
    const tn_model *m = l->m;
    tn_status s = tn_gguf_get_bool(m->gguf, arch_key(m, "attention.causal", key), &causal, l->err);
    if (s || causal) return s;
    return tn_fail(l->err, TN_EUNSUPPORTED, tn_model_key_offset(m, "attention.causal"),
                   "%s: key '%s' is false: attention to later tokens is not supported", m->name,
                   key);
}

static tn_status read_hparams(tn_load *l)
{
    tn_model *m = l->m;
    tn_hparams *hp = &m->hp;
    tn_status s = read_count(l, "block_count", -1, 1, max_layers, &hp->n_layers);
    if (!s) s = read_count(l, "embedding_length", -1, 1, max_dim, &hp->n_embd);
    if (!s) s = read_count(l, "context_length", -1, 1, max_ctx, &hp->n_ctx_train);
    if (!s) s = read_heads(l);
    if (!s) s = read_experts(l);
    if (!s && m->arch->swa_period) s = read_window(l);
    if (!s) s = check_causal(l);
    if (!s) s = tn_model_key_f32(m, "attention.layer_norm_rms_epsilon", &hp->eps, l->err);
    if (!s) s = tn_model_key_f32(m, "final_logit_softcapping", &hp->logit_softcap, l->err);
    if (s) return s;
    if (!(hp->eps > 0.0f && hp->eps < 1.0f))
        return tn_fail(l->err, TN_EFORMAT,
                       tn_model_key_offset(m, "attention.layer_norm_rms_epsilon"),
                       "%s: key '%s.attention.layer_norm_rms_epsilon' is missing or out of range",
                       m->name, m->arch->name);
    if (!(hp->logit_softcap >= 0.0f && hp->logit_softcap < 1e6f))
        return tn_fail(l->err, TN_EFORMAT, tn_model_key_offset(m, "final_logit_softcapping"),
                       "%s: key '%s.final_logit_softcapping' is %g", m->name, m->arch->name,
                       (double)hp->logit_softcap);
    const bool wide = m->arch->wide_n_layers == (uint32_t)hp->n_layers;
    hp->attn_scale = 1.0f / sqrtf((float)(wide ? hp->n_embd / hp->n_head : hp->head_dim_k));
    return TN_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* A tensor by name; layer < 0 for those outside the blocks. NULL (and no error) if it is absent. */
static const tn_gguf_tensor *find(tn_load *l, int32_t layer, const char *name, const char *suffix,
                                  char full[96])
{
    if (layer < 0) snprintf(full, 96, "%s.%s", name, suffix);
    else snprintf(full, 96, "blk.%d.%s.%s", layer, name, suffix);
    const tn_gguf_tensor *t = tn_gguf_find_tensor(l->m->gguf, full);
    if (t) l->used[t - tn_gguf_tensor_at(l->m->gguf, 0)] = true;
    return t;
}

static tn_status missing(tn_load *l, const char *full)
{
    return tn_fail(l->err, TN_EFORMAT, -1, "%s: tensor '%s' is missing", l->m->name, full);
}

static tn_status check_shape(tn_load *l, const tn_gguf_tensor *t, int64_t cols, int64_t rows,
                             int64_t n)
{
    if (t->shape[0] == (uint64_t)cols && t->shape[1] == (uint64_t)rows &&
        t->shape[2] == (uint64_t)n && t->shape[3] == 1)
        return TN_OK;
    return tn_fail(l->err, TN_EFORMAT, t->header_offset,
                   "%s: tensor '%.*s' has shape [%llu, %llu, %llu], expected [%lld, %lld, %lld]",
                   l->m->name, (int)t->name.len, t->name.data, (unsigned long long)t->shape[0],
                   (unsigned long long)t->shape[1], (unsigned long long)t->shape[2],
                   (long long)cols, (long long)rows, (long long)n);
}

enum presence { required, optional };

static tn_status bind_vector(tn_load *l, int32_t layer, const char *name, const char *suffix,
                             int64_t n, enum presence presence, float **out, float **device)
{
    char full[96];
    const tn_gguf_tensor *t = find(l, layer, name, suffix, full);
    if (!t) return presence == optional ? TN_OK : missing(l, full);
    tn_status s = check_shape(l, t, n, 1, 1);
    return s ? s : tn_load_vector(l, out, device, t);
}

static tn_status bind_matrix(tn_load *l, int32_t layer, const char *name, int64_t rows,
                             int64_t cols, int32_t n_experts, tn_weight *out, tn_dweight *device)
{
    char full[96];
    const tn_gguf_tensor *t = find(l, layer, name, "weight", full);
    if (!t) return missing(l, full);
    tn_status s = check_shape(l, t, cols, rows, n_experts ? n_experts : 1);
    return s ? s : tn_load_weight(l, out, device, t, n_experts, false);
}

static tn_status bind_attention(tn_load *l, int32_t i, tn_layer *y, tn_layer_device *d)
{
    const tn_hparams *hp = &l->m->hp;
    const tn_arch *arch = l->m->arch;
    const int64_t q = (int64_t)hp->n_head * hp->head_dim_k,
                  k = (int64_t)hp->n_head_kv * hp->head_dim_k;
    const int64_t v = (int64_t)hp->n_head_kv * hp->head_dim_v,
                  o = (int64_t)hp->n_head * hp->head_dim_v;
    const enum presence bias = arch->qkv_bias ? required : optional;
    tn_status s = bind_vector(l, i, "attn_norm", "weight", hp->n_embd, required, &y->attn_norm,
                              &d->attn_norm);
    if (!s) s = bind_matrix(l, i, "attn_q", q, hp->n_embd, 0, &y->attn_q, &d->attn_q);
    if (!s) s = bind_matrix(l, i, "attn_k", k, hp->n_embd, 0, &y->attn_k, &d->attn_k);
    if (!s) s = bind_matrix(l, i, "attn_v", v, hp->n_embd, 0, &y->attn_v, &d->attn_v);
    if (!s)
        s = bind_matrix(l, i, "attn_output", hp->n_embd, o, 0, &y->attn_output, &d->attn_output);
    if (!s) s = bind_vector(l, i, "attn_q", "bias", q, bias, &y->attn_q_bias, &d->attn_q_bias);
    if (!s) s = bind_vector(l, i, "attn_k", "bias", k, bias, &y->attn_k_bias, &d->attn_k_bias);
    if (!s) s = bind_vector(l, i, "attn_v", "bias", v, bias, &y->attn_v_bias, &d->attn_v_bias);
    if (!s)
        s = bind_vector(l, i, "attn_output", "bias", hp->n_embd, optional, &y->attn_output_bias,
                        &d->attn_output_bias);
    if (!s && arch->qk_norm)
        s = bind_vector(l, i, "attn_q_norm", "weight", hp->head_dim_k, required, &y->attn_q_norm,
                        &d->attn_q_norm);
    if (!s && arch->qk_norm)
        s = bind_vector(l, i, "attn_k_norm", "weight", hp->head_dim_k, required, &y->attn_k_norm,
                        &d->attn_k_norm);
    if (!s && arch->post_norms)
        s = bind_vector(l, i, "post_attention_norm", "weight", hp->n_embd, required,
                        &y->post_attention_norm, &d->post_attention_norm);
    return s;
}

static tn_status bind_ffn(tn_load *l, int32_t i, tn_layer *y, tn_layer_device *d)
{
    const tn_hparams *hp = &l->m->hp;
    const int32_t n = hp->n_expert;
    tn_status s =
        bind_vector(l, i, "ffn_norm", "weight", hp->n_embd, required, &y->ffn_norm, &d->ffn_norm);
    if (!s && l->m->arch->post_norms)
        s = bind_vector(l, i, "post_ffw_norm", "weight", hp->n_embd, required, &y->post_ffw_norm,
                        &d->post_ffw_norm);
    if (!s && n)
        s = bind_matrix(l, i, "ffn_gate_inp", n, hp->n_embd, 0, &y->ffn_gate_inp, &d->ffn_gate_inp);
    if (!s)
        s = bind_matrix(l, i, n ? "ffn_gate_exps" : "ffn_gate", hp->n_ff, hp->n_embd, n,
                        &y->ffn_gate, &d->ffn_gate);
    if (!s)
        s = bind_matrix(l, i, n ? "ffn_up_exps" : "ffn_up", hp->n_ff, hp->n_embd, n, &y->ffn_up,
                        &d->ffn_up);
    if (!s)
        s = bind_matrix(l, i, n ? "ffn_down_exps" : "ffn_down", hp->n_embd, hp->n_ff, n,
                        &y->ffn_down, &d->ffn_down);
    if (s || n) return s;
    s = bind_vector(l, i, "ffn_gate", "bias", hp->n_ff, optional, &y->ffn_gate_bias,
                    &d->ffn_gate_bias);
    if (!s)
        s = bind_vector(l, i, "ffn_up", "bias", hp->n_ff, optional, &y->ffn_up_bias,
                        &d->ffn_up_bias);
    if (!s)
        s = bind_vector(l, i, "ffn_down", "bias", hp->n_embd, optional, &y->ffn_down_bias,
                        &d->ffn_down_bias);
    return s;
}

static tn_status bind_embeddings(tn_load *l)
{
    tn_model *m = l->m;
    char full[96];
    const tn_gguf_tensor *embd = find(l, -1, "token_embd", "weight", full);
    if (!embd) return missing(l, full);
    const tn_gguf_tensor *output = find(l, -1, "output", "weight", full);
    if (embd->shape[1] > INT32_MAX / 2)
        return tn_fail(l->err, TN_EFORMAT, embd->header_offset, "%s: the vocabulary is too large",
                       m->name);
    m->hp.n_vocab = (int32_t)embd->shape[1];
    tn_status s = check_shape(l, embd, m->hp.n_embd, m->hp.n_vocab, 1);
    if (!s && output) s = check_shape(l, output, m->hp.n_embd, m->hp.n_vocab, 1);
    /* Where they are tied the embedding is the head as well and wants the fast layout. */
    if (!s)
        s = tn_load_weight(l, &m->token_embd, &m->on_device.token_embd, embd, 0, output != NULL);
    if (!s && output) s = tn_load_weight(l, &m->output, &m->on_device.output, output, 0, false);
    if (!s)
        s = bind_vector(l, -1, "output_norm", "weight", m->hp.n_embd, required, &m->output_norm,
                        &m->on_device.output_norm);
    m->tied = !output;
    return s;
}

/* Files of Mixtral made before April 2024 hold each expert in tensors of its own. */
static tn_status check_experts(tn_load *l)
{
    const char *name = "blk.0.ffn_gate.0.weight";
    const tn_gguf_tensor *t = tn_gguf_find_tensor(l->m->gguf, name);
    if (!t || !l->m->hp.n_expert) return TN_OK;
    return tn_fail(l->err, TN_EUNSUPPORTED, t->header_offset,
                   "%s: tensor '%s': the file holds experts one by one, as was done before "
                   "April 2024; get a newer file of the model",
                   l->m->name, name);
}

/* A tensor nobody asked for may change what the model computes: better refused than ignored. */
static tn_status check_all_used(tn_load *l)
{
    const tn_gguf *g = l->m->gguf;
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        if (!l->used[i])
            return tn_fail(l->err, TN_EUNSUPPORTED, t->header_offset,
                           "%s: tensor '%.*s' is not part of architecture '%s' as tenon knows it",
                           l->m->name, (int)t->name.len, t->name.data, l->m->arch->name);
    }
    return TN_OK;
}

static tn_status new_layers(tn_load *l)
{
    tn_model *m = l->m;
    const size_t n = (size_t)m->hp.n_layers,
                 bytes = n * (sizeof *m->layers + sizeof(tn_layer_device));
    m->layers = tn_load_alloc(l, n * sizeof *m->layers);
    m->on_device.layers = tn_load_alloc(l, n * sizeof *m->on_device.layers);
    if (!m->layers || !m->on_device.layers) {
        m->layers = NULL;
        return tn_fail_nomem(l->err, bytes, "layers");
    }
    memset(m->layers, 0, n * sizeof *m->layers);
    memset(m->on_device.layers, 0, n * sizeof *m->on_device.layers);
    return TN_OK;
}

tn_status tn_model_bind(tn_load *l)
{
    tn_model *m = l->m;
    tn_status s = read_hparams(l);
    if (!s) s = check_experts(l);
    if (!s && !l->check) s = tn_sides_make(l);
    if (!s && !l->check) s = tn_load_choose(l);
    if (!s) s = bind_embeddings(l);
    if (s) return s;
    float *factors = NULL;
    s = bind_vector(l, -1, "rope_freqs", "weight", m->hp.n_rot / 2, optional, &factors, NULL);
    if (!s) s = tn_rope_init(l, factors);
    for (int32_t i = 0; i < 2 * m->on_device.n_segments && !s; i++)
        s = tn_load_device_vector(l, i / 2, &m->on_device.segment[i / 2].inv_freq[i % 2],
                                  m->rope[i % 2].inv_freq, m->hp.n_rot / 2);
    if (!s) s = new_layers(l);
    for (int32_t i = 0; i < m->hp.n_layers && !s; i++) {
        tn_layer *y = &m->layers[i];
        tn_layer_device *d = &m->on_device.layers[i];
        y->local = m->hp.n_swa > 0 && i % m->hp.swa_period != m->hp.swa_period - 1;
        y->rope = &m->rope[y->local];
        const tn_expert_use *use = l->opt->plan ? l->opt->plan->shape.layer[i].use : NULL;
        y->expert_order = use ? use->order : NULL;
        y->expert_rank = use ? use->rank : NULL;
        s = bind_attention(l, i, y, d);
        if (!s) s = bind_ffn(l, i, y, d);
        d->attends = tn_sides_attend(y);
        d->moves = l->opt->plan && tn_placement_moves(l->opt->plan, i);
    }
    return s ? s : check_all_used(l);
}
