/* From a GGUF header to what the planner knows of a model. */
#include "exec_sizes.h"
#include "plan.h"

#include "../gguf/blocks.h"

#include <stdio.h>
#include <string.h>

enum { max_layers = 2048, head_rows_per_unit = 1024, production_granule = 256 };

/* ---- names ----------------------------------------------------------------------------------- */

static bool starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* The class of a tensor inside a layer; name is what follows "blk.N.". */
static tn_part layer_part(const char *name, bool matrix)
{
    static const struct {
        const char *prefix;
        tn_part part;
    } rows[] = {
        {"ffn_gate_inp", TN_PART_ROUTER}, {"ffn_norm", TN_PART_FFN_NORM},
        {"ffn_gate_sh", TN_PART_SHARED},  {"ffn_up_sh", TN_PART_SHARED},
        {"ffn_down_sh", TN_PART_SHARED},  {"ffn_gate", TN_PART_GATE},
        {"ffn_up", TN_PART_UP},           {"ffn_down", TN_PART_DOWN},
        {"attn_output", TN_PART_OUT},
    };
    if (strstr(name, "norm") && !starts(name, "ffn_norm")) return TN_PART_NORM;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (starts(name, rows[i].prefix)) {
            const bool ffn = rows[i].part >= TN_PART_GATE;
            return matrix || ffn                      ? rows[i].part
                   : rows[i].part == TN_PART_FFN_NORM ? TN_PART_FFN_NORM
                                                      : TN_PART_NORM;
        }
    return matrix ? TN_PART_QKV : TN_PART_NORM;
}

static tn_part outer_part(const char *name)
{
    if (starts(name, "token_embd.")) return TN_PART_EMBED;
    if (starts(name, "output_norm.")) return TN_PART_HEAD_NORM;
    if (starts(name, "output.")) return TN_PART_HEAD;
    return TN_PART_REST;
}

/* The layer of "blk.N.rest", *rest its end; -1 for other names. */
static int32_t layer_of(const char *name, const char **rest)
{
    int n = -1, used = 0;
    if (sscanf(name, "blk.%d.%n", &n, &used) != 1 || used == 0 || n < 0) return -1;
    *rest = name + used;
    return n;
}

static void read_tensor(tn_shape_tensor *t, const tn_gguf_tensor *g)
{
    *t = (tn_shape_tensor){.type = g->type, .bytes = g->bytes, .n_expert = 1, .layer = -1};
    const size_t len = g->name.len < sizeof t->name ? g->name.len : sizeof t->name - 1;
    memcpy(t->name, g->name.data, len);
    t->cols = g->shape[0];
    t->rows = g->shape[1];
    t->params = g->shape[0] * g->shape[1] * g->shape[2] * g->shape[3];
    if (g->n_dims > 2) t->n_expert = (int32_t)g->shape[2];
    const char *rest = t->name;
    t->layer = layer_of(t->name, &rest);
    t->part = t->layer >= 0 ? layer_part(rest, g->n_dims > 1) : outer_part(t->name);
    t->kv = t->part == TN_PART_QKV && (starts(rest, "attn_k") || starts(rest, "attn_v"));
}

/* ---- sizes ----------------------------------------------------------------------------------- */

uint64_t tn_shape_ffn_bytes(const tn_shape_layer *l, int32_t units)
{
    return units >= l->n_units ? (l->n_units ? l->ffn_bytes : 0) : (uint64_t)units * l->unit_bytes;
}

uint64_t tn_shape_head_bytes(const tn_shape *s, int32_t units)
{
    return units >= s->head_units ? s->tensor[s->head].bytes : (uint64_t)units * s->head_unit_bytes;
}

double tn_kv_kind_bytes(tn_kv_kind kv, uint64_t elements)
{
    static const double per_element[TN_KV_KINDS] = {2.0, 4.0, 34.0 / 32.0};
    return (double)elements * per_element[kv];
}

uint64_t tn_shape_kv_bytes(const tn_shape_layer *l, const tn_constraints *c, int64_t n)
{
    int64_t pages = (n + c->page_size - 1) / c->page_size;
    const int64_t ring = tn_kv_ring(l->window, c->n_batch, c->page_size);
    if (l->window && pages > ring) pages = ring;
    return (uint64_t)pages * (uint64_t)(tn_kv_kind_bytes(c->kv, l->kv_elements) * c->page_size);
}

static int64_t gcd(int64_t a, int64_t b)
{
    return b ? gcd(b, a % b) : a;
}

/* Cuts a dense FFN into slabs of whole blocks of down, or an expert FFN into its experts. */
static void cut_ffn(tn_shape_layer *l, const tn_shape_tensor *gate, const tn_shape_tensor *up,
                    const tn_shape_tensor *down, int32_t wanted)
{
    if (!up || !down || !l->ffn_bytes) return;
    const tn_type_info *type = tn_type_get(down->type);
    if (down->n_expert > 1) {
        l->n_expert = l->n_units = down->n_expert;
        l->n_ff = (int32_t)down->cols;
        l->unit_bytes = l->ffn_bytes / (uint64_t)l->n_expert;
        return;
    }
    l->n_ff = (int32_t)down->cols;
    const int64_t step = (int64_t)type->block * 16 / gcd(type->block, 16);
    const int64_t granule = (wanted + step - 1) / step * step;
    l->granule = (int32_t)(granule < l->n_ff ? granule : l->n_ff);
    l->n_units = l->n_ff / l->granule;
    const uint64_t in_row = up->bytes / up->rows + (gate ? gate->bytes / gate->rows : 0);
    const uint64_t down_block = down->rows * type->bytes;
    l->unit_bytes = l->n_units == 1 ? l->ffn_bytes
                                    : (uint64_t)l->granule * in_row +
                                          (uint64_t)l->granule / type->block * down_block;
}

static void cut_head(tn_shape *s)
{
    const tn_shape_tensor *t = &s->tensor[s->head];
    s->head_units = t->rows > head_rows_per_unit ? (int32_t)(t->rows / head_rows_per_unit) : 1;
    s->head_unit_bytes = s->head_units == 1 ? t->bytes : t->bytes / t->rows * head_rows_per_unit;
}

/* ---- keys ------------------------------------------------------------------------------------ */

typedef struct reader {
    tn_shape *s;
    const tn_gguf *g;
    const char *name;
    const tn_arch *arch;
    tn_error *err;
} reader;

/* Value i of a key of the architecture: a scalar, or one value a layer. *out is kept if absent. */
static tn_status count_at(const reader *r, const char *suffix, int32_t i, bool required,
                          int64_t max, int64_t *out)
{
    char key[160];
    snprintf(key, sizeof key, "%s.%s", r->arch->name, suffix);
    const tn_gguf_key *k = tn_gguf_find(r->g, key);
    if (!k && !required) return TN_OK;
    if (!k) return tn_fail(r->err, TN_EFORMAT, -1, "%s: key '%s' is missing", r->name, key);
    int64_t v;
    if (!tn_gguf_value_i64(k, k->kind == TN_GGUF_ARRAY ? (uint64_t)i : 0, &v))
        return tn_fail(r->err, TN_EFORMAT, k->offset,
                       "%s: key '%s' has no whole number for layer %d", r->name, key, i);
    if (v < 0 || v > max)
        return tn_fail(r->err, TN_EFORMAT, k->offset, "%s: key '%s' is %lld, expected 0 to %lld",
                       r->name, key, (long long)v, (long long)max);
    *out = v;
    return TN_OK;
}

/* Sliding window of layer i, 0 = all. */
static tn_status read_window(const reader *r, int32_t i, int64_t *window)
{
    int64_t period = r->arch->swa_period;
    *window = 0;
    if (!period) return TN_OK;
    tn_status s = count_at(r, "attention.sliding_window", i, false, 1 << 30, window);
    if (!s) s = count_at(r, "attention.sliding_window_pattern", i, false, max_layers, &period);
    if (period > 0 && i % period == period - 1) *window = 0;
    return s;
}

static tn_status read_layer(const reader *r, int32_t i, tn_shape_layer *l)
{
    int64_t heads = 0, heads_kv, used = 0;
    tn_status s = count_at(r, "attention.head_count", i, true, 65536, &heads);
    heads_kv = heads;
    if (!s) s = count_at(r, "attention.head_count_kv", i, false, 65536, &heads_kv);
    if (!s && heads < 1)
        return tn_fail(r->err, TN_EFORMAT, -1, "%s: layer %d has no attention heads", r->name, i);
    if (s) return s;
    int64_t key = r->s->n_embd / heads, value = key;
    s = count_at(r, "attention.key_length", i, false, 8192, &key);
    if (!s) s = count_at(r, "attention.value_length", i, false, 8192, &value);
    if (!s) s = count_at(r, "expert_used_count", i, false, 4096, &used);
    if (!s) s = read_window(r, i, &l->window);
    l->n_head = (int32_t)heads;
    l->head_dim = (int32_t)key;
    l->value_dim = (int32_t)value;
    l->kv_elements = (uint64_t)(heads_kv * (key + value));
    if (key % TN_QK || value % TN_QK)
        r->s->odd_head_dim = (int32_t)(key % TN_QK ? key : value);
    l->n_used = (int32_t)used;
    return s;
}

static tn_status read_sizes(reader *r)
{
    tn_str arch = {NULL, 0};
    tn_status s = tn_gguf_get_str(r->g, "general.architecture", &arch, r->err);
    if (s) return s;
    r->arch = arch.data ? tn_arch_find(arch) : NULL;
    if (!r->arch)
        return tn_fail(r->err, arch.data ? TN_EUNSUPPORTED : TN_EFORMAT, -1,
                       "%s: architecture '%.*s' is not supported; tenon runs %s", r->name,
                       (int)(arch.len < 60 ? arch.len : 60), arch.data ? arch.data : "",
                       tn_arch_names());
    snprintf(r->s->arch, sizeof r->s->arch, "%s", r->arch->name);
    int64_t layers = 0, embd = 0, ctx = 0;
    s = count_at(r, "block_count", 0, true, max_layers, &layers);
    if (!s) s = count_at(r, "embedding_length", 0, true, 1 << 20, &embd);
    if (!s) s = count_at(r, "context_length", 0, true, 1 << 30, &ctx);
    if (!s && (layers < 1 || embd < 1 || ctx < 1))
        return tn_fail(r->err, TN_EFORMAT, -1,
                       "%s: block_count, embedding_length or context_length is 0", r->name);
    r->s->n_layers = (int32_t)layers;
    r->s->n_embd = (int32_t)embd;
    r->s->n_ctx_train = (int32_t)ctx;
    return s;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* FNV-1a. */
static uint64_t mix(uint64_t h, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
    return h;
}

/* Over names, types and sizes. */
static uint64_t hash_tensors(const tn_gguf *g)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        char line[192];
        const int n = snprintf(line, sizeof line, "%.*s %u %llu %llu %d\n",
                               (int)(t->name.len < 64 ? t->name.len : 64), t->name.data, t->type,
                               (unsigned long long)t->shape[1], (unsigned long long)t->shape[0],
                               (int)t->shape[2]);
        h = mix(h, line, (size_t)n);
    }
    return h;
}

void tn_shape_hash(const tn_gguf *g, char out[17])
{
    snprintf(out, 17, "%016llx", (unsigned long long)hash_tensors(g));
}

void tn_header_hash(const tn_gguf *g, char out[17])
{
    uint64_t h = hash_tensors(g);
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++) {
        const tn_gguf_key *k = tn_gguf_key_at(g, i);
        h = mix(mix(h, k->name.data, k->name.len), k->data, k->data_bytes);
    }
    snprintf(out, 17, "%016llx", (unsigned long long)h);
}

/* Fills tensor, of_layer and the layers' ranges. */
static tn_status sort_tensors(reader *r)
{
    tn_shape *s = r->s;
    s->head = -1;
    int32_t embed = -1;
    for (int32_t i = 0; i < s->n_tensors; i++) {
        tn_shape_tensor *t = &s->tensor[i];
        read_tensor(t, tn_gguf_tensor_at(r->g, (uint64_t)i));
        if (t->layer >= s->n_layers)
            return tn_fail(r->err, TN_EFORMAT, -1,
                           "%s: tensor '%s' is of layer %d, but block_count is %d", r->name,
                           t->name, t->layer, s->n_layers);
        if (t->layer >= 0) s->layer[t->layer].n++;
        if (t->part == TN_PART_HEAD && t->rows > 1) s->head = i;
        if (t->part == TN_PART_EMBED) embed = i;
        s->weight_bytes += t->bytes;
        s->n_params += t->params;
    }
    if (embed < 0)
        return tn_fail(r->err, TN_EFORMAT, -1, "%s: tensor 'token_embd.weight' is missing",
                       r->name);
    s->n_vocab = (int32_t)s->tensor[embed].rows;
    s->tied = s->head < 0;
    if (s->tied)
        s->head = embed;
    else
        s->embed_bytes = s->tensor[embed].bytes;
    int32_t at = 0;
    for (int32_t l = 0; l < s->n_layers; l++) {
        s->layer[l].first = at;
        at += s->layer[l].n;
        s->layer[l].n = 0;
    }
    for (int32_t i = 0; i < s->n_tensors; i++)
        if (s->tensor[i].layer >= 0) {
            tn_shape_layer *l = &s->layer[s->tensor[i].layer];
            s->of_layer[l->first + l->n++] = i;
        }
    return TN_OK;
}

static tn_status fill_layer(const reader *r, int32_t i, int32_t granule)
{
    tn_shape_layer *l = &r->s->layer[i];
    const tn_shape_tensor *ffn[3] = {NULL, NULL, NULL};
    tn_status s = read_layer(r, i, l);
    if (s) return s;
    for (int32_t j = 0; j < l->n; j++) {
        const tn_shape_tensor *t = &r->s->tensor[r->s->of_layer[l->first + j]];
        if (t->part < TN_PART_GATE || t->part > TN_PART_DOWN) continue;
        l->ffn_bytes += t->bytes;
        if (t->cols > 1 && t->rows > 1) ffn[t->part - TN_PART_GATE] = t;
    }
    cut_ffn(l, ffn[0], ffn[1], ffn[2], granule);
    if (l->n_ff > r->s->n_ff_max) r->s->n_ff_max = l->n_ff;
    if (!l->n_expert) l->n_used = 0;
    if (l->n_expert && (l->n_used < 1 || l->n_used > l->n_expert))
        return tn_fail(r->err, TN_EFORMAT, -1, "%s: %d of %d experts are used in layer %d", r->name,
                       l->n_used, l->n_expert, i);
    if (!l->n_units)
        return tn_fail(r->err, TN_EFORMAT, -1, "%s: layer %d has no ffn_up and ffn_down", r->name,
                       i);
    return TN_OK;
}

static bool alike(const tn_shape *s, const tn_shape_layer *x, const tn_shape_layer *y)
{
    if (x->use || y->use) return false; /* no two are met alike */
    if (x->n != y->n || x->window != y->window || x->kv_elements != y->kv_elements ||
        x->n_head != y->n_head || x->n_units != y->n_units || x->n_used != y->n_used)
        return false;
    for (int32_t i = 0; i < x->n; i++) {
        const tn_shape_tensor *t = &s->tensor[s->of_layer[x->first + i]];
        const tn_shape_tensor *u = &s->tensor[s->of_layer[y->first + i]];
        if (t->part != u->part || t->type != u->type || t->bytes != u->bytes || t->kv != u->kv)
            return false;
    }
    return true;
}

void tn_shape_classify(tn_shape *s)
{
    s->n_classes = 0;
    for (int32_t i = 0; i < s->n_layers; i++) {
        s->layer[i].cls = -1;
        /* The last one does less for a prompt. */
        for (int32_t j = i - 1; j >= 0 && i < s->n_layers - 1 && s->layer[i].cls < 0; j--)
            if (alike(s, &s->layer[i], &s->layer[j])) s->layer[i].cls = s->layer[j].cls;
        if (s->layer[i].cls < 0) s->layer[i].cls = s->n_classes++;
    }
}

static tn_status fill(reader *r, int32_t granule)
{
    tn_shape *s = r->s;
    tn_status status = read_sizes(r);
    if (status) return status;
    if (tn_gguf_n_tensors(r->g) > INT16_MAX)
        return tn_fail(r->err, TN_EUNSUPPORTED, -1, "%s: %llu tensors are too many to plan",
                       r->name, (unsigned long long)tn_gguf_n_tensors(r->g));
    s->n_tensors = (int32_t)tn_gguf_n_tensors(r->g);
    s->layer = tn_alloc(s->a, (size_t)s->n_layers, sizeof *s->layer);
    s->tensor = tn_alloc(s->a, (size_t)s->n_tensors, sizeof *s->tensor);
    s->of_layer = tn_alloc(s->a, (size_t)s->n_tensors, sizeof *s->of_layer);
    if (!s->layer || !s->tensor || !s->of_layer)
        return tn_fail_nomem(r->err, (size_t)s->n_tensors * sizeof *s->tensor, "the tensor list");
    status = sort_tensors(r);
    bool experts = false;
    for (int32_t i = 0; i < s->n_layers && !status; i++)
        if (!(status = fill_layer(r, i, granule))) experts |= s->layer[i].n_expert > 0;
    if (status) return status;
    cut_head(s);
    tn_shape_classify(s);
    tn_shape_hash(r->g, s->hash);
    if (experts) tn_header_hash(r->g, s->header);
    return TN_OK;
}

tn_status tn_shape_read(tn_shape *out, const tn_gguf *g, const char *name, int32_t granule,
                        const tn_allocator *a, tn_error *err)
{
    *out = (tn_shape){.a = a};
    reader r = {out, g, name, NULL, err};
    const tn_status s = fill(&r, granule > 0 ? granule : production_granule);
    if (s) tn_shape_free(out);
    return s;
}

void tn_shape_free(tn_shape *s)
{
    if (!s->a) return;
    for (int32_t l = 0; s->layer && l < s->n_layers; l++)
        tn_free(s->a, s->layer[l].use);
    tn_free(s->a, s->layer);
    tn_free(s->a, s->tensor);
    tn_free(s->a, s->of_layer);
    *s = (tn_shape){.a = NULL};
}
