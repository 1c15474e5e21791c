/* A GGUF header as JSON. */
#include "inspect.h"
#include "json_text.h"
#include "../gguf/types.h"

#include <string.h>
#include <utf8proc.h>

/* A JSON string of any bytes: what is no UTF-8 becomes U+FFFD. NULL when memory is short. */
static json_t *any_string(const tn_allocator *a, tn_str s)
{
    json_t *j = json_stringn(s.data, s.len);
    if (j || s.len == 0) return j;
    size_t room;
    char *clean = tn_mul_size(s.len, 3, &room) ? tn_alloc_raw(a, room, 1) : NULL;
    if (!clean) return NULL;
    size_t out = 0;
    for (size_t i = 0; i < s.len;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s.data + i,
                                              (utf8proc_ssize_t)(s.len - i), &c);
        memcpy(clean + out, n > 0 ? s.data + i : "\xEF\xBF\xBD", n > 0 ? (size_t)n : 3);
        out += n > 0 ? (size_t)n : 3;
        i += n > 0 ? (size_t)n : 1;
    }
    j = json_stringn(clean, out);
    tn_free(a, clean);
    return j;
}

static json_t *number(const tn_gguf_key *k, uint64_t i)
{
    bool b;
    int64_t v;
    double d;
    if (tn_gguf_value_bool(k, i, &b)) return json_boolean(b);
    if (tn_gguf_value_i64(k, i, &v)) return json_integer(v);
    json_t *j = tn_gguf_value_f64(k, i, &d) ? json_real(d) : NULL;
    if (j) return j;
    char text[TN_INSPECT_NUMBER_CHARS];
    return json_stringn(text, tn_inspect_number(k, i, text));
}

static json_t *values(const tn_allocator *a, const tn_gguf_key *k)
{
    json_t *list = json_array();
    size_t pos = 0;
    tn_str s;
    bool ok = list != NULL;
    if (k->element == TN_GGUF_STRING)
        while (ok && tn_gguf_str_walk(k, &pos, &s))
            ok = json_array_append_new(list, any_string(a, s)) == 0;
    else
        for (uint64_t i = 0; ok && i < k->n; i++)
            ok = json_array_append_new(list, number(k, i)) == 0;
    if (ok) return list;
    json_decref(list);
    return NULL;
}

static json_t *entry(const tn_allocator *a, const tn_gguf_key *k)
{
    const char *kind = tn_inspect_kind_name(k->kind);
    if (k->kind == TN_GGUF_ARRAY)
        return json_pack("{s:s, s:s, s:I, s:o}", "kind", kind, "element",
                         tn_inspect_kind_name(k->element), "n", (json_int_t)k->n, "values",
                         values(a, k));
    tn_str s;
    json_t *value = tn_gguf_value_str(k, 0, &s) ? any_string(a, s) : number(k, 0);
    return json_pack("{s:s, s:o}", "kind", kind, "value", value);
}

static json_t *metadata(const tn_allocator *a, const tn_gguf *g)
{
    json_t *all = json_object();
    bool ok = all != NULL;
    for (uint64_t i = 0; ok && i < tn_gguf_n_keys(g); i++) {
        const tn_gguf_key *k = tn_gguf_key_at(g, i);
        ok = json_object_setn_new(all, k->name.data, k->name.len, entry(a, k)) == 0;
    }
    if (ok) return all;
    json_decref(all);
    return NULL;
}

static json_t *tensor(const tn_gguf_tensor *t)
{
    json_t *shape = json_array();
    bool ok = shape != NULL;
    for (uint32_t i = 0; ok && i < t->n_dims; i++)
        ok = json_array_append_new(shape, json_integer((json_int_t)t->shape[i])) == 0;
    if (!ok) {
        json_decref(shape);
        return NULL;
    }
    return json_pack("{s:s%, s:s, s:o, s:i, s:I, s:I}", "name", t->name.data, t->name.len, "type",
                     tn_type_get(t->type)->name, "shape", shape, "part", (int)t->part, "offset",
                     (json_int_t)t->offset, "bytes", (json_int_t)t->bytes);
}

static json_t *tensors(const tn_gguf *g)
{
    json_t *list = json_array();
    bool ok = list != NULL;
    for (uint64_t i = 0; ok && i < tn_gguf_n_tensors(g); i++)
        ok = json_array_append_new(list, tensor(tn_gguf_tensor_at(g, i))) == 0;
    if (ok) return list;
    json_decref(list);
    return NULL;
}

static json_t *document(const tn_inspect *in)
{
    tn_inspect_info f = {.struct_size = sizeof f};
    if (tn_inspect_get_info(in, &f, NULL) != TN_OK) return NULL;
    return json_pack("{s:i, s:I, s:i, s:I, s:I, s:I, s:o, s:o}", "version", (int)f.version,
                     "alignment", (json_int_t)f.alignment, "parts", (int)f.n_parts, "file_bytes",
                     (json_int_t)f.file_bytes, "n_params", (json_int_t)f.n_params, "tensor_bytes",
                     (json_int_t)f.tensor_bytes, "metadata", metadata(&in->a, in->gguf), "tensors",
                     tensors(in->gguf));
}

tn_status tn_inspect_json(const tn_inspect *in, char **out, tn_error *err)
{
    return tn_json_text(document(in), JSON_COMPACT, &in->a, out, err);
}
