/* From a GGUF header to what the planner knows of a model. */
#include "exec_sizes.h"
#include "model.h"
#include "plan.h"

#include "../gguf/blocks.h"

#include <stdio.h>
#include <string.h>

enum { head_rows_per_unit = 1024, production_granule = 256 };

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

static void read_sizes(tn_shape *s, const tn_hparams *hp, const tn_arch *arch)
{
    snprintf(s->arch, sizeof s->arch, "%s", arch->name);
    s->n_layers = hp->n_layers;
    s->n_embd = hp->n_embd;
    s->n_vocab = hp->n_vocab;
    s->n_ctx_train = hp->n_ctx_train;
    if (hp->head_dim_k % TN_QK || hp->head_dim_v % TN_QK)
        s->odd_head_dim = hp->head_dim_k % TN_QK ? hp->head_dim_k : hp->head_dim_v;
}

static void read_layer(tn_shape_layer *l, const tn_hparams *hp, int32_t i)
{
    const bool local = hp->n_swa && i % hp->swa_period != hp->swa_period - 1;
    l->window = local ? hp->n_swa : 0;
    l->n_head = hp->n_head;
    l->head_dim = hp->head_dim_k;
    l->value_dim = hp->head_dim_v;
    l->kv_elements = (uint64_t)hp->n_head_kv * (uint64_t)(hp->head_dim_k + hp->head_dim_v);
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
static void sort_tensors(tn_shape *s, const tn_gguf *g)
{
    int32_t embed = -1;
    s->head = -1;
    for (int32_t i = 0; i < s->n_tensors; i++) {
        tn_shape_tensor *t = &s->tensor[i];
        read_tensor(t, tn_gguf_tensor_at(g, (uint64_t)i));
        if (t->layer >= 0) s->layer[t->layer].n++;
        if (t->part == TN_PART_HEAD) s->head = i;
        if (t->part == TN_PART_EMBED) embed = i;
        s->weight_bytes += t->bytes;
        s->n_params += t->params;
    }
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
}

static void fill_layer(tn_shape *s, const tn_hparams *hp, int32_t i, int32_t granule)
{
    tn_shape_layer *l = &s->layer[i];
    const tn_shape_tensor *ffn[3] = {NULL, NULL, NULL};
    read_layer(l, hp, i);
    for (int32_t j = 0; j < l->n; j++) {
        const tn_shape_tensor *t = &s->tensor[s->of_layer[l->first + j]];
        if (t->part < TN_PART_GATE || t->part > TN_PART_DOWN) continue;
        l->ffn_bytes += t->bytes;
        if (!strstr(t->name, ".bias")) ffn[t->part - TN_PART_GATE] = t;
    }
    cut_ffn(l, ffn[0], ffn[1], ffn[2], granule);
    if (l->n_ff > s->n_ff_max) s->n_ff_max = l->n_ff;
    if (l->n_expert) l->n_used = hp->n_expert_used;
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

static tn_status fill(tn_shape *s, const tn_gguf *g, const char *name, int32_t granule,
                      tn_error *err)
{
    tn_hparams hp;
    const tn_arch *arch;
    const tn_status status = tn_model_check(&hp, &arch, g, name, s->a, err);
    if (status) return status;
    if (tn_gguf_n_tensors(g) > INT16_MAX)
        return tn_fail(err, TN_EUNSUPPORTED, -1, "%s: %llu tensors are too many to plan", name,
                       (unsigned long long)tn_gguf_n_tensors(g));
    read_sizes(s, &hp, arch);
    s->n_tensors = (int32_t)tn_gguf_n_tensors(g);
    s->layer = tn_alloc(s->a, (size_t)s->n_layers, sizeof *s->layer);
    s->tensor = tn_alloc(s->a, (size_t)s->n_tensors, sizeof *s->tensor);
    s->of_layer = tn_alloc(s->a, (size_t)s->n_tensors, sizeof *s->of_layer);
    if (!s->layer || !s->tensor || !s->of_layer)
        return tn_fail_nomem(err, (size_t)s->n_tensors * sizeof *s->tensor, "the tensor list");
    sort_tensors(s, g);
    bool experts = false;
    for (int32_t i = 0; i < s->n_layers; i++) {
        fill_layer(s, &hp, i, granule);
        experts |= s->layer[i].n_expert > 0;
    }
    cut_head(s);
    tn_shape_classify(s);
    tn_shape_hash(g, s->hash);
    if (experts) tn_header_hash(g, s->header);
    return TN_OK;
}

tn_status tn_shape_read(tn_shape *out, const tn_gguf *g, const char *name, int32_t granule,
                        const tn_allocator *a, tn_error *err)
{
    *out = (tn_shape){.a = a};
    const tn_status s = fill(out, g, name, granule > 0 ? granule : production_granule, err);
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
