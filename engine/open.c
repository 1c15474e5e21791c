/* Opening and closing models, and telling about them. */
#include "boundary.h"
#include "experts.h"
#include "pin.h"
#include "plan.h"
#include "stream.h"
#include "engine.h"
#include "hardware.h"
#include "image.h"
#include "later.h"
#include "model.h"
#include "synthetic.h"
#include "template.h"
#include "tokenizer.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { max_granule = 1 << 16 };

static tn_status new_model(tn_model **out, tn_engine *e, const char *name, tn_error *err)
{
    tn_model *m = tn_alloc(&e->a, 1, sizeof *m);
    if (!m) return tn_fail_nomem(err, sizeof *m, "the model");
    m->engine = e;
    m->a = &e->a;
    atomic_fetch_add(&e->n_models, 1);
    m->name = tn_strndup(m->a, name, strlen(name));
    if (!m->name) {
        tn_model_close(m);
        return tn_fail_nomem(err, strlen(name), "the model's name");
    }
    *out = m;
    return TN_OK;
}

/* What was counted of experts is for the next plan; that it cannot be kept is no failure. */
static void keep_counts(const tn_model *m)
{
    const tn_engine *e = m->engine;
    const tn_expert_counts *c = &m->chosen;
    char hash[17], *path;
    bool broken = false, any = false;
    tn_error err = {0};
    for (int64_t i = 0; c->n && i < (int64_t)c->n_layers * c->n_expert && !any; i++)
        any = c->n[i] > 0;
    if (!any || !e->cache_dir) return;
    tn_header_hash(m->gguf, hash);
    path = tn_experts_path(e->cache_dir, hash, m->a);
    const tn_status s = path ? tn_experts_keep(c, path, hash, &broken, m->a, &err)
                             : tn_fail_nomem(&err, strlen(e->cache_dir), "a file's name");
    if (broken)
        tn_engine_log(e, TN_LOG_WARN, "%s is no file of counters of this model's experts%s", path,
                      s ? "" : ": it is replaced");
    if (s) tn_engine_log(e, TN_LOG_WARN, "what was counted of experts is not kept: %s", err.msg);
    tn_free(m->a, path);
}

void tn_model_close(tn_model *m)
{
    if (!m) return;
    const tn_allocator *a = m->a;
    keep_counts(m);
    tn_expert_counts_free(&m->chosen);
    pthread_mutex_lock(&m->engine->turn);
    tn_boundary_free(m->boundary);
    tn_boundary_look_again(m->engine);
    for (int32_t i = 0; i < m->on_device.n_segments; i++) {
        const tn_segment *y = &m->on_device.segment[i];
        tn_streamer_free(y->streamer);
        y->device->api->free(y->device, y->arena);
    }
    tn_pins_free(m->pins);
    pthread_mutex_unlock(&m->engine->turn);
    for (size_t i = 0; i < m->n_owned; i++) tn_free(a, m->owned[i]);
    tn_free(a, m->owned);
    tn_image_close(m->image);
    tn_later_free(m);
    tn_vocab_free(m->vocab);
    tn_gguf_close(m->gguf);
    tn_free(a, m->header);
    tn_free(a, m->title);
    tn_free(a, m->name);
    atomic_fetch_sub(&m->engine->n_models, 1);
    tn_free(a, m);
}

static tn_status find_arch(tn_model *m, tn_error *err)
{
    tn_str name = {NULL, 0};
    tn_status s = tn_gguf_get_str(m->gguf, "general.architecture", &name, err);
    if (s) return s;
    if (!name.data)
        return tn_fail(err, TN_EFORMAT, -1, "%s: key 'general.architecture' is missing", m->name);
    m->arch = tn_arch_find(name);
    if (m->arch) return TN_OK;
    return tn_fail(err, TN_EUNSUPPORTED, tn_gguf_find(m->gguf, "general.architecture")->offset,
                   "%s: architecture '%.*s' is not supported; tenon runs %s", m->name,
                   (int)(name.len < 60 ? name.len : 60), name.data, tn_arch_names());
}

static tn_status load_vocab(tn_model *m, tn_error *err)
{
    if (!tn_gguf_find(m->gguf, "tokenizer.ggml.model")) return TN_OK;
    return tn_vocab_new(&m->vocab, m->gguf, m->a, err);
}

/* Whether every token of a prompt is multiplied with the matrix, not only the last one. */
static bool all_tokens_use(const tn_model *m, const tn_gguf_tensor *t)
{
    char last[32], name[16] = "";
    const int n = snprintf(last, sizeof last, "blk.%d.", m->hp.n_layers - 1);
    if (t->n_dims < 2 || t->name.len < 4 || memcmp(t->name.data, "blk.", 4) != 0) return false;
    if (t->name.len < (size_t)n || memcmp(t->name.data, last, (size_t)n) != 0) return true;
    memcpy(name, t->name.data + n, t->name.len - (size_t)n < 6 ? t->name.len - (size_t)n : 6);
    return strcmp(name, "attn_q") == 0 || strcmp(name, "attn_k") == 0 ||
           strcmp(name, "attn_v") == 0;
}

static tn_status check_vocab(const tn_model *m, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(m->gguf, "tokenizer.ggml.tokens");
    const bool wanted = k && tn_gguf_find(m->gguf, "tokenizer.ggml.model");
    if (!wanted || k->n == (uint64_t)m->hp.n_vocab) return TN_OK;
    return tn_fail(err, TN_EFORMAT, k->offset,
                   "%s: key 'tokenizer.ggml.tokens' has %llu tokens, but token_embd.weight %d rows",
                   m->name, (unsigned long long)k->n, m->hp.n_vocab);
}

static void count_weights(tn_model *m)
{
    uint64_t per_type[TN_TYPE_COUNT] = {0};
    for (uint64_t i = 0; i < tn_gguf_n_tensors(m->gguf); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(m->gguf, i);
        const bool expert = t->shape[2] > 1;
        const uint64_t used = expert ? (uint64_t)m->hp.n_expert_used : 1;
        m->n_params += t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
        m->weight_bytes += t->bytes;
        per_type[t->type] += t->bytes;
        if (all_tokens_use(m, t)) m->prompt_flop += 2 * t->shape[0] * t->shape[1] * used;
        const bool lookup = !m->tied && t->n_dims == 2 &&
                            t->name.len == 17 && memcmp(t->name.data, "token_embd.weight", 17) == 0;
        if (lookup) continue;
        if (t->n_dims > 1)
            m->activation_bytes += sizeof(float) * (t->shape[0] + t->shape[1]) * used;
        m->token_bytes += t->bytes / t->shape[2] * used;
    }
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (per_type[i] > per_type[m->main_type]) m->main_type = i;
}

/* With a device, what the host holds differs from plan to plan. */
static tn_status find_image(tn_model *m, tn_error *err)
{
    const tn_status s = m->engine->device ? TN_OK : tn_image_open(&m->image, m, err);
    if (!s && !m->image)
        tn_engine_log(m->engine, TN_LOG_WARN, "%s: the weights cannot be kept for the next start%s",
                      m->name, m->engine->device ? " where there is a device" : "");
    return s;
}

/* All that carries weights later. In the engine's turn: while somebody evaluates, a stream may wait
 * for the host, and memory that devices use is not allocated then (device.h, flag_wait). */
static tn_status make_carriers(tn_load *l)
{
    tn_model *m = l->m;
    const tn_placement *plan = l->opt->plan;
    tn_status s = TN_OK;
    pthread_mutex_lock(&m->engine->turn);
    if (!l->map) s = tn_pins_new(&m->pins, m, plan, l->err);
    for (int32_t i = 0; i < m->on_device.n_segments && !s; i++)
        s = tn_streamer_new(&m->on_device.segment[i].streamer, m, i, plan, l->err);
    if (!s) s = tn_boundary_new(&m->boundary, m, plan, l->err);
    pthread_mutex_unlock(&m->engine->turn);
    return s;
}

/* What other models have on the devices only because there was room comes back with what is left.
 */
static tn_status fetch_weights(tn_load *l)
{
    tn_model *m = l->m;
    const bool devices = m->on_device.n_segments > 0;
    if (devices) tn_boundary_make_room(m->engine);
    tn_status s = tn_load_run(l);
    if (!s && l->opt->plan) s = make_carriers(l);
    if (devices) tn_boundary_has_room(m->engine);
    return s;
}

static tn_status load_weights(tn_model *m, const tn_model_options *opt, bool random, tn_error *err)
{
    tn_load l = {.m = m, .opt = opt, .err = err, .exact = opt->exact, .random = random};
    l.beside = load_vocab;
    tn_status s = TN_OK;
    if (opt->load == TN_LOAD_IMAGE && !opt->exact && !random) s = find_image(m, err);
    if (s) return s;
    l.used = tn_alloc(m->a, (size_t)tn_gguf_n_tensors(m->gguf), sizeof *l.used);
    s = l.used ? tn_model_bind(&l) : tn_fail_nomem(err, 1, "the tensor list");
    if (!s && m->hp.n_expert && !random)
        s = tn_expert_counts_make(&m->chosen, m->hp.n_layers, m->hp.n_expert, m->a, err);
    if (!s) s = fetch_weights(&l);
    tn_free(m->a, l.used);
    tn_free(m->a, l.place);
    tn_free(m->a, l.jobs);
    tn_free(m->a, l.uploads);
    if (s) return s;
    if (m->tied) {
        m->output = m->token_embd;
        m->on_device.output = m->on_device.token_embd;
    }
    count_weights(m);
    return check_vocab(m, err);
}

static tn_status copy_title(tn_model *m, tn_error *err)
{
    tn_str s = {"", 0};
    tn_status status = tn_gguf_get_str(m->gguf, "general.name", &s, err);
    if (status) return status;
    m->title = tn_strndup(m->a, s.data, s.len);
    return m->title ? TN_OK : tn_fail_nomem(err, s.len, "the model's title");
}

tn_status tn_model_check(tn_hparams *hp, const tn_arch **arch, const tn_gguf *g, const char *name,
                         const tn_allocator *a, tn_error *err)
{
    static const tn_model_options none = {.struct_size = sizeof none};
    tn_model m = {.a = a, .gguf = (tn_gguf *)g, .name = (char *)name}; /* neither is written to */
    tn_load l = {.m = &m, .opt = &none, .check = true, .err = err};
    tn_status s = copy_title(&m, err);
    if (!s) s = find_arch(&m, err);
    l.used = tn_alloc(a, (size_t)tn_gguf_n_tensors(g), sizeof *l.used);
    if (!s && !l.used) s = tn_fail_nomem(err, 1, "the tensor list");
    if (!s) s = tn_model_bind(&l);
    if (!s) s = check_vocab(&m, err);
    for (size_t i = 0; i < m.n_owned; i++)
        tn_free(a, m.owned[i]);
    tn_free(a, m.owned);
    tn_free(a, l.used);
    tn_free(a, m.title);
    *hp = m.hp;
    *arch = m.arch;
    return s;
}

/* Everything after the header has been parsed into m->gguf. Closes m on failure. */
static tn_status finish(tn_model **out, tn_model *m, const tn_model_options *opt, bool random,
                        double start, tn_error *err)
{
    tn_status s = copy_title(m, err);
    if (!s && !opt->vocab_only) s = find_arch(m, err);
    if (!s) s = opt->vocab_only ? load_vocab(m, err) : load_weights(m, opt, random, err);
    if (s) {
        tn_model_close(m);
        return s;
    }
    m->load_s = tn_now() - start;
    *out = m;
    return TN_OK;
}

static tn_status begin(tn_model **m, tn_engine *e, const char *name,
                       const tn_model_options *options, tn_model_options *opt,
                       tn_gguf_options *gopt, tn_error *err)
{
    tn_status s = tn_options_copy(opt, sizeof *opt, options, "tn_model_options", err);
    if (s) return s;
    if (opt->load < TN_LOAD_AUTO || opt->load > TN_LOAD_LATER)
        return tn_fail(err, TN_EARG, -1, "load mode %d is unknown", (int)opt->load);
    if (opt->granule < 0 || opt->granule > max_granule)
        return tn_fail(err, TN_EARG, -1, "granule is %d; use 0 (256) to %d", opt->granule,
                       (int)max_granule);
    *gopt = (tn_gguf_options){sizeof *gopt, opt->vocab_only, &e->a};
    return new_model(m, e, name, err);
}

tn_status tn_model_open(tn_model **out, tn_engine *e, const char *path,
                        const tn_model_options *options, tn_error *err)
{
    *out = NULL;
    const double start = tn_now();
    tn_model_options opt;
    tn_gguf_options gopt;
    tn_model *m;
    tn_status s = begin(&m, e, path, options, &opt, &gopt, err);
    if (s) return s;
    s = tn_gguf_open(&m->gguf, path, &gopt, err);
    if (!s) return finish(out, m, &opt, false, start, err);
    tn_model_close(m);
    return s;
}

tn_status tn_model_open_memory(tn_model **out, tn_engine *e, const void *bytes, size_t size,
                               const char *name, const tn_model_options *options, tn_error *err)
{
    *out = NULL;
    const double start = tn_now();
    tn_model_options opt;
    tn_gguf_options gopt;
    tn_model *m;
    tn_status s = begin(&m, e, name, options, &opt, &gopt, err);
    if (s) return s;
    s = tn_gguf_parse(&m->gguf, bytes, size, name, &gopt, err);
    if (!s) return finish(out, m, &opt, false, start, err);
    tn_model_close(m);
    return s;
}

tn_status tn_model_open_synthetic(tn_model **out, tn_engine *e, const char *shape, const char *type,
                                  const tn_model_options *options, tn_error *err)
{
    *out = NULL;
    const double start = tn_now();
    tn_model_options opt;
    tn_gguf_options gopt;
    tn_model *m;
    size_t size;
    tn_status s = begin(&m, e, shape, options, &opt, &gopt, err);
    if (s) return s;
    gopt.header_only = true;
    s = tn_synthetic_header(&m->header, &size, shape, type, m->a, err);
    if (!s) s = tn_gguf_parse(&m->gguf, m->header, size, shape, &gopt, err);
    if (!s) return finish(out, m, &opt, true, start, err);
    tn_model_close(m);
    return s;
}

tn_status tn_model_get_info(const tn_model *m, tn_model_info *info, tn_error *err)
{
    if (info->struct_size < sizeof info->struct_size || info->struct_size > 4096)
        return tn_fail(err, TN_EARG, -1, "tn_model_info: set struct_size to sizeof the struct");
    tn_str tmpl = {NULL, 0};
    tn_status s = tn_gguf_get_str(m->gguf, "tokenizer.chat_template", &tmpl, err);
    if (s) return s;
    tn_model_info full = {
        .struct_size = info->struct_size,
        .arch = m->arch ? m->arch->name : "",
        .name = m->title,
        .type = m->arch ? tn_type_get(m->main_type)->name : "",
        .n_params = m->n_params, .weight_bytes = m->weight_bytes, .token_bytes = m->token_bytes,
        .n_layers = m->hp.n_layers, .n_embd = m->hp.n_embd, .n_head = m->hp.n_head,
        .n_head_kv = m->hp.n_head_kv, .n_ff = m->hp.n_ff, .n_expert = m->hp.n_expert,
        .n_expert_used = m->hp.n_expert_used, .n_ctx_train = m->hp.n_ctx_train,
        .n_vocab = m->arch ? m->hp.n_vocab : (m->vocab ? tn_vocab_size(m->vocab) : 0),
        .has_chat_template = tmpl.data != NULL,
        .chat_template = tmpl.data ? tn_chat_format_detect(tmpl.data, tmpl.len) : NULL,
        .activation_bytes = m->activation_bytes,
        .prompt_flop = m->prompt_flop,
    };
    memcpy(info, &full, info->struct_size < sizeof full ? info->struct_size : sizeof full);
    return TN_OK;
}
