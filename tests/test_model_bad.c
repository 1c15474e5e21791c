/* Damaged models, whole: every truncation and every flipped bit of the header of a tiny model of
 * each architecture ends in an error that names the file, or in a model that runs. */
#include "tiny_model.h"
#include "use_model.h"

#include "../engine/plan.h"
#include "../engine/tokenizer.h"

#include <math.h>

/* Bytes before the data of the first tensor. */
static size_t header_size(const uint8_t *bytes, size_t size)
{
    tn_gguf *g = NULL;
    if (tn_gguf_parse(&g, bytes, size, "tiny", NULL, NULL) != TN_OK) return 0;
    const size_t n = (size_t)(tn_gguf_tensor_data(g, tn_gguf_tensor_at(g, 0)) - bytes);
    tn_gguf_close(g);
    return n;
}

/* What the planner says of a file, or of its header alone; *parsed: that it is one at all. */
static tn_status plan_shape(const void *bytes, size_t size, bool header, bool *parsed,
                            tn_error *err)
{
    const tn_gguf_options opt = {sizeof opt, header, NULL};
    tn_gguf *g = NULL;
    tn_shape shape;
    tn_status s = tn_gguf_parse(&g, bytes, size, "file.gguf", &opt, err);
    *parsed = s == TN_OK;
    if (!s) s = tn_shape_read(&shape, g, "file.gguf", 0, &tn_default_allocator, err);
    if (!s) tn_shape_free(&shape);
    tn_gguf_close(g);
    return s;
}

static bool vocab_is_broken(const void *bytes, size_t size)
{
    tn_gguf *g = NULL;
    tn_vocab *v = NULL;
    tn_status s = tn_gguf_parse(&g, bytes, size, "file.gguf", NULL, NULL);
    if (!s && tn_gguf_find(g, "tokenizer.ggml.model"))
        s = tn_vocab_new(&v, g, &tn_default_allocator, NULL);
    tn_vocab_free(v);
    tn_gguf_close(g);
    return g && s;
}

/* There is a plan for what can be opened and for nothing else; why not, in the same words. What the
 * planner does not look at: that the data end too early, the values of rope_freqs, and what a
 * vocabulary is like, but for its size. */
static void check_plan(const void *bytes, size_t size, tn_status opened, const tn_error *err)
{
    tn_error head = {0}, all = {0};
    bool complete, parsed;
    const tn_status s = plan_shape(bytes, size, false, &complete, &all);
    const tn_status t = plan_shape(bytes, size, true, &parsed, &head);
    if (opened && strstr(err->msg, "'rope_freqs.weight' holds")) return;
    if (opened && vocab_is_broken(bytes, size)) return;
    CHECK_MSG(s == opened && (!s || !strcmp(all.msg, err->msg)) && all.offset == err->offset,
              "opening: %d %s; planning: %d %s", (int)opened, err->msg, (int)s, all.msg);
    CHECK_MSG(!complete || (parsed && t == s && !strcmp(head.msg, all.msg)),
              "planning: %d %s; from the header alone: %d %s", (int)s, all.msg, (int)t, head.msg);
}

typedef struct damaged {
    tn_gguf_writer *writer;
    const uint8_t *bytes;
    uint8_t *copy; /* [size], what is damaged */
    size_t size, header;
    use_memory memory;
    tn_engine *engine;
    long opened, refused;
} damaged;

static bool begin(damaged *d, const tiny_kind *k)
{
    memset(d, 0, sizeof *d);
    tiny_model(k, &d->writer, &d->bytes, &d->size);
    d->header = header_size(d->bytes, d->size);
    d->copy = malloc(d->size);
    d->engine = use_engine(&d->memory);
    if (!d->copy) abort();
    memcpy(d->copy, d->bytes, d->size);
    CHECK_MSG(d->size <= 65536 && d->header > 0, "%s: %zu bytes", k->arch, d->size);
    tn_error err = {0};
    const tn_status s = use_model(d->engine, d->bytes, d->size, TN_LOAD_READ, &err);
    CHECK_MSG(s == TN_OK, "%s: the undamaged model is refused", k->arch);
    return s == TN_OK;
}

static void try_one(damaged *d, const void *bytes, size_t size)
{
    const long live = d->memory.live;
    d->memory.used = 0;
    /* READ and MAP take turns. */
    const tn_load_mode load = (d->opened + d->refused) % 2 ? TN_LOAD_MAP : TN_LOAD_READ;
    tn_error err = {0};
    const tn_status s = use_model(d->engine, bytes, size, load, &err);
    if (s == TN_OK) d->opened++;
    else d->refused++;
    check_plan(bytes, size, s, &err);
    CHECK_MSG(d->memory.live == live, "%ld allocations leaked", d->memory.live - live);
}

static void end(damaged *d)
{
    tn_engine_free(d->engine);
    CHECK_INT(d->memory.live, 0);
    free(d->copy);
    tn_gguf_writer_free(d->writer);
}

TEST(every_truncation)
{
    for (int i = 0; i < n_tiny_kinds; i++) {
        damaged d;
        if (begin(&d, &tiny_kinds[i]))
            for (size_t n = 0; n < d.size; n++) {
                uint8_t *exact = malloc(n + !n); /* so that a sanitizer sees a read past the end */
                if (!exact) abort();
                memcpy(exact, d.bytes, n);
                try_one(&d, exact, n);
                free(exact);
            }
        CHECK_MSG(d.opened == 0, "%s: %ld truncated files were opened", tiny_kinds[i].arch,
                  d.opened);
        end(&d);
    }
}

TEST(every_flipped_bit_of_the_header)
{
    for (int i = 0; i < n_tiny_kinds; i++) {
        damaged d;
        if (begin(&d, &tiny_kinds[i]))
            for (size_t bit = 0; bit < d.header * 8; bit++) {
                d.copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
                try_one(&d, d.copy, d.size);
                d.copy[bit / 8] = d.bytes[bit / 8];
            }
        CHECK_MSG(d.opened > 0 && d.refused > d.opened, "%s: %ld opened, %ld refused",
                  tiny_kinds[i].arch, d.opened, d.refused);
        end(&d);
    }
}

/* Weights are data: any bits are a model, at worst one whose logits are no numbers. */
TEST(damaged_weights_do_not_matter)
{
    for (int i = 0; i < n_tiny_kinds; i++) {
        damaged d;
        if (begin(&d, &tiny_kinds[i])) {
            memset(d.copy + d.header, 0xff, d.size - d.header);
            try_one(&d, d.copy, d.size);
            memset(d.copy + d.header, 0, d.size - d.header);
            try_one(&d, d.copy, d.size);
        }
        end(&d);
    }
}

/* ---- hyper-parameters out of range ---- */

typedef union scalar {
    uint32_t u;
    float f;
} scalar;

typedef struct bad_key {
    int kind;           /* of tiny_kinds */
    const char *suffix; /* of the key, which is changed or added */
    char type;          /* of the value: u, f, b or s (a string), or a (an array of u and 1) */
    scalar value;
    const char *word; /* in the message; NULL: the file opens */
} bad_key;

static void write_key(tn_gguf_writer *w, const char *key, const bad_key *b)
{
    const uint32_t pair[] = {b->value.u, 1};
    switch (b->type) {
    case 'u': tn_gguf_writer_u32(w, key, b->value.u); return;
    case 'f': tn_gguf_writer_f32(w, key, b->value.f); return;
    case 'b': tn_gguf_writer_bool(w, key, b->value.u != 0); return;
    case 'a': tn_gguf_writer_array(w, key, TN_GGUF_U32, 2, pair); return;
    default: tn_gguf_writer_str(w, key, "longrope");
    }
}

/* A tiny model of that kind with one key changed. */
static tn_gguf_writer *with_key(const bad_key *b, char key[100], const uint8_t **bytes,
                                size_t *size)
{
    tn_gguf_writer *tiny, *w = tn_gguf_writer_new(NULL);
    tn_gguf *g = NULL;
    tiny_model(&tiny_kinds[b->kind], &tiny, bytes, size);
    if (!w || tn_gguf_parse(&g, *bytes, *size, "tiny", NULL, NULL)) abort();
    snprintf(key, 100, "%s.%s", tiny_kinds[b->kind].arch, b->suffix);
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++) {
        const tn_gguf_key *k = tn_gguf_key_at(g, i);
        if (k->name.len != strlen(key) || memcmp(k->name.data, key, k->name.len) != 0)
            tn_gguf_writer_copy(w, k);
    }
    write_key(w, key, b);
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        tn_gguf_writer_tensor(w, name, t->type, t->n_dims, t->shape, tn_gguf_tensor_data(g, t));
    }
    if (tn_gguf_writer_finish(w, bytes, size, NULL)) abort();
    tn_gguf_close(g);
    tn_gguf_writer_free(tiny);
    return w;
}

/* A tiny model whose tensor number `which` is longer by one in dimension `dim`; NULL if it has no
 * such dimension. */
static tn_gguf_writer *with_shape(const tiny_kind *kind, uint64_t which, uint32_t dim,
                                  char name[80], const uint8_t **bytes, size_t *size)
{
    static float ones[4096];
    for (int i = 0; i < 4096; i++)
        ones[i] = 1;
    tn_gguf_writer *tiny, *w = tn_gguf_writer_new(NULL);
    tn_gguf *g = NULL;
    tiny_model(kind, &tiny, bytes, size);
    if (!w || tn_gguf_parse(&g, *bytes, *size, "tiny", NULL, NULL)) abort();
    const bool there = dim < tn_gguf_tensor_at(g, which)->n_dims;
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++)
        tn_gguf_writer_copy(w, tn_gguf_key_at(g, i));
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        uint64_t shape[4];
        memcpy(shape, t->shape, sizeof shape);
        shape[dim] += i == which;
        char any[80];
        snprintf(i == which ? name : any, 80, "%.*s", (int)t->name.len, t->name.data);
        tn_gguf_writer_tensor(w, i == which ? name : any, t->type, t->n_dims, shape, ones);
    }
    if (tn_gguf_writer_finish(w, bytes, size, NULL)) abort();
    tn_gguf_close(g);
    tn_gguf_writer_free(tiny);
    if (there) return w;
    tn_gguf_writer_free(w);
    return NULL;
}

static uint64_t n_tensors(const tiny_kind *kind)
{
    tn_gguf_writer *tiny;
    const uint8_t *bytes;
    size_t size;
    tn_gguf *g = NULL;
    tiny_model(kind, &tiny, &bytes, &size);
    if (tn_gguf_parse(&g, bytes, size, "tiny", NULL, NULL)) abort();
    const uint64_t n = tn_gguf_n_tensors(g);
    tn_gguf_close(g);
    tn_gguf_writer_free(tiny);
    return n;
}

static void check_shape(tn_engine *engine, const tiny_kind *kind, uint64_t which, uint32_t dim)
{
    char name[80];
    const uint8_t *bytes;
    size_t size;
    tn_gguf_writer *w = with_shape(kind, which, dim, name, &bytes, &size);
    if (!w) return;
    tn_model *m = NULL;
    tn_error err = {0};
    const tn_status s = tn_model_open_memory(&m, engine, bytes, size, "file.gguf", NULL, &err);
    CHECK_MSG(s == TN_EFORMAT, "%s, %s: dimension %u: status %d", kind->arch, name, dim, (int)s);
    /* of two tensors with a row for each token either may be the one that is wrong */
    CHECK_MSG(strstr(err.msg, name) || (dim == 1 && strstr(err.msg, "'output.weight'")) ||
                  strstr(err.msg, "tokenizer"),
              "%s: %s", name, err.msg);
    check_plan(bytes, size, s, &err);
    tn_model_close(m);
    tn_gguf_writer_free(w);
}

TEST(tensors_of_another_shape_are_refused_by_name)
{
    use_memory memory = {0};
    tn_engine *engine = use_engine(&memory);
    for (int k = 0; k < n_tiny_kinds; k++) {
        const uint64_t n = n_tensors(&tiny_kinds[k]);
        for (uint64_t i = 0; i < n; i++)
            for (uint32_t dim = 0; dim < 3; dim++) {
                memory.used = 0;
                check_shape(engine, &tiny_kinds[k], i, dim);
            }
    }
    tn_engine_free(engine);
    CHECK_INT(memory.live, 0);
}

static void check_key(tn_engine *engine, const bad_key *b)
{
    char key[100];
    const uint8_t *bytes;
    size_t size;
    tn_gguf_writer *w = with_key(b, key, &bytes, &size);
    tn_model *m = NULL;
    tn_error err = {0};
    const tn_status s = tn_model_open_memory(&m, engine, bytes, size, "file.gguf", NULL, &err);
    if (!b->word) {
        CHECK_MSG(s == TN_OK, "%s: %s", key, err.msg);
    } else {
        CHECK_MSG(s == TN_EFORMAT || s == TN_EUNSUPPORTED, "%s: status %d", key, (int)s);
        CHECK_MSG(strstr(err.msg, key) && strstr(err.msg, b->word), "%s: %s", key, err.msg);
        /* a key of that name is where the error says */
        const int64_t at = err.offset + 8;
        CHECK_MSG(at >= 8 && at + (int64_t)strlen(key) < (int64_t)size &&
                      memcmp(bytes + at, key, strlen(key)) == 0,
                  "%s: offset %lld", key, (long long)err.offset);
    }
    check_plan(bytes, size, s, &err);
    tn_model_close(m);
    tn_gguf_writer_free(w);
}

TEST(hyper_parameters_out_of_range_are_refused_by_name)
{
    enum { llama = 0, moe = 1, qwen2 = 2, gemma3 = 5 };
    static const bad_key keys[] = {
        {llama, "block_count", 'u', {.u = 0}, "is 0"},
        {llama, "block_count", 'u', {.u = 4000000000u}, "is 4000000000"},
        {llama, "block_count", 'f', {.f = 1}, ""},
        {llama, "embedding_length", 'u', {.u = 0}, "is 0"},
        {llama, "context_length", 'u', {.u = 0}, "is 0"},
        {llama, "feed_forward_length", 'u', {.u = 1u << 30}, "is 1073741824"},
        {llama, "attention.head_count", 'u', {.u = 0}, "is 0"},
        {llama, "attention.head_count_kv", 'u', {.u = 0}, "is 0"},
        {llama, "attention.head_count_kv", 'u', {.u = 3}, "2 heads"},
        {llama, "attention.head_count_kv", 'a', {.u = 1}, NULL},
        {llama, "attention.head_count_kv", 'a', {.u = 2}, "differs from layer to layer"},
        {llama, "attention.key_length", 'u', {.u = 0}, "is 0"},
        {llama, "attention.value_length", 'u', {.u = 100000}, "is 100000"},
        {llama, "attention.layer_norm_rms_epsilon", 'f', {.f = NAN}, ""},
        {llama, "attention.layer_norm_rms_epsilon", 'f', {.f = 0}, "out of range"},
        {llama, "attention.layer_norm_rms_epsilon", 'f', {.f = 1e10f}, "out of range"},
        {llama, "attention.causal", 'b', {.u = 1}, NULL},
        {llama, "attention.causal", 'b', {.u = 0}, "later tokens"},
        {llama, "expert_count", 'u', {.u = 5000}, "is 5000"},
        {qwen2, "expert_count", 'u', {.u = 2}, ""},
        {moe, "expert_used_count", 'u', {.u = 0}, "is 0"},
        {moe, "expert_used_count", 'u', {.u = 3}, "is 3"},
        {moe, "expert_weights_scale", 'f', {.f = -1}, "is -1"},
        {moe, "expert_weights_scale", 'f', {.f = 1e30f}, "is 1e+30"},
        {moe, "expert_weights_scale", 'f', {.f = 0}, NULL},
        {llama, "rope.dimension_count", 'u', {.u = 3}, "is 3"},
        {llama, "rope.dimension_count", 'u', {.u = 6}, "is 6"},
        {llama, "rope.freq_base", 'f', {.f = 0}, "is 0"},
        {llama, "rope.freq_base", 'f', {.f = INFINITY}, ""},
        {llama, "rope.scaling.type", 's', {.u = 0}, "'longrope'"},
        {llama, "rope.scaling.factor", 'f', {.f = -2}, "is -2"},
        {llama, "rope.scaling.factor", 'f', {.f = 0}, NULL},
        {llama, "rope.scale_linear", 'f', {.f = 1e30f}, "is 1e+30"},
        {llama, "rope.scaling.attn_factor", 'f', {.f = 0}, "is 0"},
        {llama, "rope.scaling.yarn_beta_fast", 'f', {.f = -1}, "is -1"},
        {llama, "rope.scaling.yarn_beta_slow", 'f', {.f = 0}, "is 0"},
        {llama, "rope.scaling.yarn_ext_factor", 'f', {.f = 2}, "is 2"},
        {llama, "rope.scaling.yarn_ext_factor", 'f', {.f = -1}, NULL},
        {llama, "rope.scaling.original_context_length", 'u', {.u = 0}, "is 0"},
        {gemma3, "rope.freq_base_swa", 'f', {.f = 0.5f}, "is 0.5"},
        {gemma3, "attention.sliding_window", 'u', {.u = UINT32_MAX}, "is 4294967295"},
        {gemma3, "attention.sliding_window_pattern", 'u', {.u = 0}, "is 0"},
        {gemma3, "final_logit_softcapping", 'f', {.f = -1}, "is -1"},
        {gemma3, "final_logit_softcapping", 'f', {.f = 30}, NULL},
    };
    use_memory memory = {0};
    tn_engine *engine = use_engine(&memory);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        memory.used = 0;
        check_key(engine, &keys[i]);
    }
    tn_engine_free(engine);
    CHECK_INT(memory.live, 0);
}

/* Old files of Mixtral: an expert is a tensor by itself. */
TEST(experts_one_by_one_are_refused_as_such)
{
    const uint8_t *bytes;
    size_t size;
    tn_gguf_writer *tiny, *w = tn_gguf_writer_new(NULL);
    tn_gguf *g = NULL;
    tiny_model(&tiny_kinds[1], &tiny, &bytes, &size);
    if (!w || tn_gguf_parse(&g, bytes, size, "tiny", NULL, NULL)) abort();
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++)
        tn_gguf_writer_copy(w, tn_gguf_key_at(g, i));
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        if (!strcmp(name, "blk.0.ffn_gate_exps.weight")) strcpy(name, "blk.0.ffn_gate.0.weight");
        tn_gguf_writer_tensor(w, name, t->type, t->n_dims, t->shape, tn_gguf_tensor_data(g, t));
    }
    if (tn_gguf_writer_finish(w, &bytes, &size, NULL)) abort();
    use_memory memory = {0};
    tn_engine *engine = use_engine(&memory);
    tn_model *m = NULL;
    tn_error err = {0};
    const tn_status s = tn_model_open_memory(&m, engine, bytes, size, "file.gguf", NULL, &err);
    CHECK_INT(s, TN_EUNSUPPORTED);
    CHECK_MSG(strstr(err.msg, "file.gguf: tensor 'blk.0.ffn_gate.0.weight'"), "%s", err.msg);
    CHECK_MSG(strstr(err.msg, "newer file"), "%s", err.msg);
    CHECK_MSG(err.offset > 0, "offset %lld", (long long)err.offset);
    check_plan(bytes, size, s, &err);
    tn_model_close(m);
    tn_engine_free(engine);
    CHECK_INT(memory.live, 0);
    tn_gguf_close(g);
    tn_gguf_writer_free(tiny);
    tn_gguf_writer_free(w);
}

TEST_MAIN
