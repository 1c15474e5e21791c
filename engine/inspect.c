/* Telling what a GGUF file holds, for people and tools: no model, no engine. */
#include "inspect.h"
#include "../gguf/types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *tn_inspect_kind_name(tn_gguf_kind kind)
{
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return (size_t)kind < sizeof names / sizeof *names ? names[kind] : "unknown";
}

tn_status tn_inspect_open(tn_inspect **out, const char *path, const tn_allocator *allocator,
                          tn_error *err)
{
    *out = NULL;
    const tn_allocator a = allocator ? *allocator : tn_default_allocator;
    tn_inspect *in = tn_alloc(&a, 1, sizeof *in);
    if (!in) return tn_fail_nomem(err, sizeof *in, "the inspection");
    in->a = a;
    const tn_gguf_options opt = {sizeof opt, true, &in->a};
    tn_status s = tn_gguf_open(&in->gguf, path, &opt, err);
    if (s) {
        tn_free(&a, in);
        return s;
    }
    *out = in;
    return TN_OK;
}

void tn_inspect_close(tn_inspect *in)
{
    if (!in) return;
    const tn_allocator a = in->a;
    tn_gguf_close(in->gguf);
    tn_free(&a, in);
}

void tn_inspect_string_free(const tn_inspect *in, char *s)
{
    tn_free(&in->a, s);
}

static uint64_t elements(const tn_gguf_tensor *t)
{
    return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
}

tn_status tn_inspect_get_info(const tn_inspect *in, tn_inspect_info *info, tn_error *err)
{
    if (info->struct_size < sizeof info->struct_size || info->struct_size > 4096)
        return tn_fail(err, TN_EARG, -1, "tn_inspect_info: set struct_size to sizeof the struct");
    const tn_gguf *g = in->gguf;
    tn_inspect_info full = {
        .struct_size = info->struct_size,
        .version = tn_gguf_version(g),
        .n_parts = tn_gguf_parts(g),
        .alignment = tn_gguf_alignment(g),
        .n_keys = tn_gguf_n_keys(g),
        .n_tensors = tn_gguf_n_tensors(g),
    };
    for (uint32_t i = 0; i < full.n_parts; i++) {
        size_t size = 0;
        tn_gguf_part_data(g, i, &size);
        full.file_bytes += size;
    }
    for (uint64_t i = 0; i < full.n_tensors; i++) {
        full.n_params += elements(tn_gguf_tensor_at(g, i));
        full.tensor_bytes += tn_gguf_tensor_at(g, i)->bytes;
    }
    memcpy(info, &full, info->struct_size < sizeof full ? info->struct_size : sizeof full);
    return TN_OK;
}

tn_status tn_inspect_get_key(const tn_inspect *in, uint64_t i, tn_inspect_key *key, tn_error *err)
{
    if (i >= tn_gguf_n_keys(in->gguf))
        return tn_fail(err, TN_EARG, -1, "there is no metadata entry %llu", (unsigned long long)i);
    const tn_gguf_key *k = tn_gguf_key_at(in->gguf, i);
    *key = (tn_inspect_key){k->name.data,
                            k->name.len,
                            tn_inspect_kind_name(k->kind),
                            tn_inspect_kind_name(k->element),
                            k->n,
                            (uint64_t)k->offset};
    return TN_OK;
}

tn_status tn_inspect_get_tensor(const tn_inspect *in, uint64_t i, tn_inspect_tensor *tensor,
                                tn_error *err)
{
    if (i >= tn_gguf_n_tensors(in->gguf))
        return tn_fail(err, TN_EARG, -1, "there is no tensor %llu", (unsigned long long)i);
    const tn_gguf_tensor *t = tn_gguf_tensor_at(in->gguf, i);
    *tensor = (tn_inspect_tensor){.name = t->name.data,
                                  .name_len = t->name.len,
                                  .type = tn_type_get(t->type)->name,
                                  .n_dims = t->n_dims,
                                  .part = t->part,
                                  .offset = t->offset,
                                  .bytes = t->bytes};
    memcpy(tensor->shape, t->shape, sizeof tensor->shape);
    return TN_OK;
}

/* Shortest decimal that reads back as the same float (single) or double. */
static size_t float_text(double v, bool single, char *text)
{
    const int last = single ? 9 : 17;
    for (int digits = 6; digits <= last; digits++) {
        snprintf(text, TN_INSPECT_NUMBER_CHARS, "%.*g", digits, v);
        if (single ? strtof(text, NULL) == (float)v : strtod(text, NULL) == v) break;
    }
    return strlen(text);
}

size_t tn_inspect_number(const tn_gguf_key *k, uint64_t i, char text[TN_INSPECT_NUMBER_CHARS])
{
    int64_t v;
    double d;
    bool b;
    if (tn_gguf_value_bool(k, i, &b))
        return (size_t)snprintf(text, TN_INSPECT_NUMBER_CHARS, "%s", b ? "true" : "false");
    if (tn_gguf_value_i64(k, i, &v))
        return (size_t)snprintf(text, TN_INSPECT_NUMBER_CHARS, "%lld", (long long)v);
    if (tn_gguf_value_f64(k, i, &d)) return float_text(d, k->element == TN_GGUF_F32, text);
    /* What is left: an unsigned 64-bit number above the signed range. */
    uint64_t u = 0;
    for (int byte = 7; byte >= 0; byte--)
        u = u << 8 | k->data[i * 8 + (uint64_t)byte];
    return (size_t)snprintf(text, TN_INSPECT_NUMBER_CHARS, "%llu", (unsigned long long)u);
}

tn_status tn_inspect_value(const tn_inspect *in, uint64_t i, uint64_t element, char *text,
                           size_t cap, size_t *n, tn_error *err)
{
    *n = 0;
    const tn_gguf_key *k = i < tn_gguf_n_keys(in->gguf) ? tn_gguf_key_at(in->gguf, i) : NULL;
    if (!k || element >= k->n)
        return tn_fail(err, TN_EARG, -1, "there is no value %llu of metadata entry %llu",
                       (unsigned long long)element, (unsigned long long)i);
    char number[TN_INSPECT_NUMBER_CHARS];
    tn_str value = {number, 0};
    if (!tn_gguf_value_str(k, element, &value)) value.len = tn_inspect_number(k, element, number);
    *n = value.len;
    const size_t fits = value.len < cap ? value.len : cap ? cap - 1 : 0;
    if (cap) {
        memcpy(text, value.data, fits);
        text[fits] = 0;
    }
    if (fits == value.len && cap) return TN_OK;
    return tn_fail(err, TN_EFULL, -1, "the value has %zu bytes, the buffer %zu", value.len, cap);
}
