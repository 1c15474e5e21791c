/* Counters of experts as JSON. */
#include "experts.h"

#include "json_read.h"
#include "json_text.h"

#include <string.h>

static const char *const format = "tenon-experts-1";

tn_status tn_experts_json(const tn_expert_counts *c, const char *hash, char **out,
                          const tn_allocator *a, tn_error *err)
{
    json_t *layers = json_array();
    for (int32_t l = 0; l < c->n_layers; l++) {
        json_t *row = json_array();
        for (int32_t e = 0; e < c->n_expert; e++)
            json_array_append_new(row,
                                  json_integer((json_int_t)c->n[(int64_t)l * c->n_expert + e]));
        json_array_append_new(layers, row);
    }
    return tn_json_text(
        json_pack("{s:s, s:s, s:o}", "format", format, "model", hash, "layers", layers),
        JSON_COMPACT, a, out, err);
}

static void read_layers(tn_json_reader *r, const json_t *list, tn_expert_counts *out)
{
    for (int32_t l = 0; l < out->n_layers && !r->status; l++) {
        const json_t *row = json_array_get(list, (size_t)l);
        if (json_array_size(row) != (size_t)out->n_expert)
            tn_json_fail(r, "layers", "must be lists of equal lengths");
        for (int32_t e = 0; e < out->n_expert && !r->status; e++) {
            const json_t *v = json_array_get(row, (size_t)e);
            if (!json_is_integer(v) || json_integer_value(v) < 0 ||
                json_integer_value(v) > TN_EXPERTS_MOST)
                tn_json_fail(r, "layers", "must hold counts");
            else
                out->n[(int64_t)l * out->n_expert + e] = (uint64_t)json_integer_value(v);
        }
    }
}

static void read_counts(tn_json_reader *r, const json_t *doc, const char *hash,
                        const tn_allocator *a, tn_expert_counts *out)
{
    static const char *const keys[] = {"format", "model", "layers", NULL};
    if (strcmp(tn_json_string(r, doc, "format"), format) != 0)
        tn_json_fail(r, "format", "must be \"tenon-experts-1\"");
    tn_json_only(r, doc, keys);
    if (strcmp(tn_json_string(r, doc, "model"), hash) != 0)
        tn_json_fail(r, "model", "is another one");
    const json_t *list = tn_json_array(r, doc, "layers");
    const size_t n_layers = json_array_size(list),
                 n_expert = json_array_size(json_array_get(list, 0));
    if (n_layers < 1 || n_layers > TN_EXPERTS_LAYERS || n_expert > TN_EXPERTS_EACH)
        tn_json_fail(r, "layers", "has too few or too many entries");
    if (r->status) return;
    r->status = tn_expert_counts_make(out, (int32_t)n_layers, (int32_t)n_expert, a, r->err);
    read_layers(r, list, out);
}

tn_status tn_experts_parse(tn_expert_counts *out, const char *text, size_t len, const char *where,
                           const char *hash, const tn_allocator *a, tn_error *err)
{
    tn_json_reader r = {.where = where, .err = err};
    *out = (tn_expert_counts){.a = NULL};
    json_t *doc = tn_json_parse(&r, text, len);
    if (doc) read_counts(&r, doc, hash, a, out);
    json_decref(doc);
    if (r.status) tn_expert_counts_free(out);
    return r.status;
}
