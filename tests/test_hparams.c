/* Hyper-parameters that no published golden sets. A golden's model is written anew with the key and
 * with weights that undo it, so that its logits must be those of the reference again. */
#include "golden.h"

#include "../engine/model.h"
#include "../gguf/types.h"
#include "../gguf/write.h"
#include "../kernels/f16.h"

typedef struct change {
    const char *key; /* set to `value`, a float32, or to `text` */
    float value;
    const char *text_key, *text;
    const char *scaled[2]; /* ends of the names of tensors that are multiplied by `scale` */
    float scale;
    const char *layers_key; /* of a model of n_layers, the new ones of which change nothing */
    uint32_t n_layers;
    float freqs; /* > 0: every value of rope_freqs.weight, by which frequencies are divided */
} change;

enum { rope_pairs = 8 }; /* of a head of the golden llama */

static bool ends_in(const char *name, const char *end)
{
    const size_t n = strlen(name), m = end ? strlen(end) : n + 1;
    return m <= n && strcmp(name + n - m, end) == 0;
}

static bool is_key(const tn_gguf_key *k, const char *name)
{
    return name && k->name.len == strlen(name) && memcmp(k->name.data, name, k->name.len) == 0;
}

static void write_keys(tn_gguf_writer *w, const tn_gguf *g, const change *c)
{
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++) {
        const tn_gguf_key *k = tn_gguf_key_at(g, i);
        if (!is_key(k, c->key) && !is_key(k, c->text_key) && !is_key(k, c->layers_key))
            tn_gguf_writer_copy(w, k);
    }
    if (c->key) tn_gguf_writer_f32(w, c->key, c->value);
    if (c->text_key) tn_gguf_writer_str(w, c->text_key, c->text);
    if (c->layers_key) tn_gguf_writer_u32(w, c->layers_key, c->n_layers);
}

/* The tensor's values times `scale`, in its type: F32 or F16. Freed by the caller. */
static void *times(const tn_gguf *g, const tn_gguf_tensor *t, float scale)
{
    const void *data = tn_gguf_tensor_data(g, t);
    const size_t n = t->shape[0] * t->shape[1] * t->shape[2];
    void *out = calloc(n, sizeof(float));
    if (!out) abort();
    for (size_t i = 0; i < n; i++)
        if (t->type == TN_TYPE_F32)
            ((float *)out)[i] = ((const float *)data)[i] * scale;
        else
            ((uint16_t *)out)[i] =
                tn_f32_to_f16(tn_f16_to_f32(((const uint16_t *)data)[i]) * scale);
    return out;
}

static void write_tensor(tn_gguf_writer *w, const tn_gguf *g, const tn_gguf_tensor *t,
                         const char *name, float scale)
{
    void *data = times(g, t, scale);
    tn_gguf_writer_tensor(w, name, t->type, t->n_dims, t->shape, data);
    free(data);
}

static void write_tensors(tn_gguf_writer *w, const tn_gguf *g, const change *c, uint32_t n_layers)
{
    char name[100];
    float freqs[rope_pairs];
    const uint64_t n_freqs = rope_pairs;
    for (int i = 0; i < rope_pairs; i++)
        freqs[i] = c->freqs;
    if (c->freqs > 0)
        tn_gguf_writer_tensor(w, "rope_freqs.weight", TN_TYPE_F32, 1, &n_freqs, freqs);
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        const bool scaled = ends_in(name, c->scaled[0]) || ends_in(name, c->scaled[1]);
        write_tensor(w, g, t, name, scaled ? c->scale : 1);
        if (strncmp(name, "blk.0.", 6) != 0) continue;
        for (uint32_t l = n_layers; l < c->n_layers; l++) {
            snprintf(name, sizeof name, "blk.%u.%.*s", l, (int)t->name.len - 6, t->name.data + 6);
            write_tensor(w, g, t, name, 0);
        }
    }
}

/* The changed file; owned by the writer. */
static tn_gguf_writer *rewrite(const golden *from, const change *c, const uint8_t **bytes,
                               size_t *size)
{
    tn_gguf *g = NULL;
    uint32_t n_layers = 0;
    tn_error err = {0};
    tn_gguf_writer *w = tn_gguf_writer_new(NULL);
    if (!w || tn_gguf_open(&g, from->path, NULL, &err)) abort();
    if (c->layers_key) CHECK_INT(tn_gguf_get_u32(g, c->layers_key, &n_layers, &err), TN_OK);
    write_keys(w, g, c);
    write_tensors(w, g, c, n_layers);
    if (tn_gguf_writer_finish(w, bytes, size, &err)) abort();
    tn_gguf_close(g);
    return w;
}

/* Its logits for the golden's tokens, NULL after a failure; freed by the caller. */
static float *logits_of(const golden *g, const change *c, const char *device)
{
    run r = {0};
    tn_error err = {0};
    const uint8_t *bytes;
    size_t size;
    const size_t n = (size_t)g->n * (size_t)g->n_vocab;
    const char *place = ".*=device";
    tn_gguf_writer *w = rewrite(g, c, &bytes, &size);
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 2, .device = device};
    const tn_model_options mo = {
        .struct_size = sizeof mo, .place = &place, .n_place = device != NULL};
    const tn_context_options co = {.struct_size = sizeof co, .kv = TN_KV_F32};
    float *out = malloc(n * sizeof *out);
    for (size_t i = 0; out && i < n; i++)
        out[i] = NAN;
    rows_sink sink = {out, g->n_vocab};
    if (!out || tn_engine_new(&r.engine, &eo, &err) ||
        tn_model_open_memory(&r.model, r.engine, bytes, size, g->path, &mo, &err) ||
        tn_context_new(&r.ctx, r.model, &co, &err) ||
        tn_context_eval_all(r.ctx, g->tokens, g->n, 0, keep_rows, &sink, &err)) {
        FAIL("%s", err.msg);
        free(out);
        out = NULL;
    }
    run_close(&r);
    tn_gguf_writer_free(w);
    return out;
}

/* With the key alone the logits are others, with key and weights those of the golden. */
static void check_change(const char *name, change c, const char *device)
{
    golden g;
    if (!golden_load(&g, name)) return;
    const char *what = c.key ? c.key : c.layers_key;
    const size_t n = (size_t)g.n * (size_t)g.n_vocab;
    float *both = logits_of(&g, &c, device);
    c.scale = 1;
    c.freqs = 0;
    float *key = logits_of(&g, &c, device);
    if (both && key) {
        const distance d = compare(both, g.logits, n), d_key = compare(key, g.logits, n);
        CHECK_MSG(d.max_abs <= g.tolerance, "%s, %s: off by %g (tolerance %g)", name, what,
                  d.max_abs, g.tolerance);
        CHECK_MSG(d_key.max_abs > 10 * g.tolerance, "%s: %s changes nothing (%g)", name, what,
                  d_key.max_abs);
    }
    free(both);
    free(key);
    golden_free(&g);
}

static const change experts = {.key = "llama.expert_weights_scale",
                               .value = 2,
                               .scaled = {"ffn_down_exps.weight"},
                               .scale = 0.5f};

TEST(weights_of_experts_are_scaled)
{
    check_change("mixtral", experts, NULL);
}

TEST(weights_of_experts_are_scaled_on_a_device)
{
    if (have_device("emu")) check_change("mixtral", experts, "emu");
}

/* Queries and keys, of which rope turns every dimension, are multiplied by the factor. */
TEST(attention_factor_of_every_rope_scaling)
{
    static const char *const types[] = {NULL, "none", "linear", "yarn"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const change c = {.key = "llama.rope.scaling.attn_factor",
                          .value = 2,
                          .text_key = types[i] ? "llama.rope.scaling.type" : NULL,
                          .text = types[i],
                          .scaled = {"attn_q.weight", "attn_k.weight"},
                          .scale = 0.5f};
        check_change(i < 3 ? "llama" : "llama-yarn", c, NULL);
    }
}

TEST(positions_are_scaled_linearly)
{
    static const char *const keys[] = {"llama.rope.scaling.factor", "llama.rope.scale_linear"};
    for (int i = 0; i < 3; i++) {
        const change c = {.key = keys[i == 2],
                          .value = 4,
                          .text_key = i == 1 ? "llama.rope.scaling.type" : NULL,
                          .text = "linear",
                          .freqs = 0.25f};
        check_change("llama", c, NULL);
    }
}

/* The ramp's ends are rounded outwards (Peng et al. 2023, reference implementation): for heads of
 * 16, base 10,000 and 512 original positions from 0.81 and 3.82 to 0 and 4. */
TEST(yarn_interpolates_between_whole_dimensions)
{
    const change c = {.key = "llama.rope.scaling.factor",
                      .value = 4,
                      .text_key = "llama.rope.scaling.type",
                      .text = "yarn"};
    golden g;
    run r = {0};
    tn_error err = {0};
    const uint8_t *bytes;
    size_t size;
    if (!golden_load(&g, "llama")) return;
    tn_gguf_writer *w = rewrite(&g, &c, &bytes, &size);
    REQUIRE(tn_engine_new(&r.engine, NULL, &err) == TN_OK);
    CHECK_INT(tn_model_open_memory(&r.model, r.engine, bytes, size, "yarn", NULL, &err), TN_OK);
    for (int i = 0; r.model && i < rope_pairs; i++) {
        const double ramp = i < 4 ? i / 4.0 : 1, base = pow(10000, -2.0 * i / 16);
        CHECK_NEAR(r.model->rope[0].inv_freq[i], base * (1 - ramp + ramp / 4), 1e-6 * base);
    }
    run_close(&r);
    tn_gguf_writer_free(w);
    golden_free(&g);
}

/* gemma3 27B, known by its 62 layers: queries are divided by the root of n_embd / n_head, here 16,
 * instead of that of the size of a head, here 32. */
TEST(attention_scale_of_gemma3_with_62_layers)
{
    const change c = {.scaled = {"attn_q_norm.weight"},
                      .scale = 0.70710678f,
                      .layers_key = "gemma3.block_count",
                      .n_layers = 62};
    check_change("gemma3", c, NULL);
}

TEST_MAIN
