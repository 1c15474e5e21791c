/* Reading what was parsed: lookups, typed values, and the wording of errors about them. */
#include "internal.h"

#include "cursor.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t bytes;
} kinds[] = {
    [TN_GGUF_U8] = {"U8", 1}, [TN_GGUF_I8] = {"I8", 1},
    [TN_GGUF_U16] = {"U16", 2}, [TN_GGUF_I16] = {"I16", 2},
    [TN_GGUF_U32] = {"U32", 4}, [TN_GGUF_I32] = {"I32", 4},
    [TN_GGUF_F32] = {"F32", 4}, [TN_GGUF_BOOL] = {"BOOL", 1},
    [TN_GGUF_STRING] = {"STRING", 0}, [TN_GGUF_ARRAY] = {"ARRAY", 0},
    [TN_GGUF_U64] = {"U64", 8}, [TN_GGUF_I64] = {"I64", 8},
    [TN_GGUF_F64] = {"F64", 8},
};
enum { n_kinds = sizeof kinds / sizeof *kinds };

const char *tn_gguf_kind_name(tn_gguf_kind kind)
{
    return (unsigned)kind < n_kinds ? kinds[kind].name : "?";
}

size_t tn_gguf_kind_bytes(uint32_t kind)
{
    return kind < n_kinds ? kinds[kind].bytes : 0;
}

const char *tn_gguf_label(const tn_gguf *g)
{
    const char *path = g->parts[0].path, *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

static TN_PRINTF(7, 0) tn_status fail_record(const tn_gguf *g, const char *what, tn_str name,
                                             int64_t offset, tn_error *err, tn_status code,
                                             const char *fmt, va_list ap)
{
    char text[sizeof err->msg];
    vsnprintf(text, sizeof text, fmt, ap);
    return tn_fail(err, code, offset, "%.120s: %s '%s' at byte %lld: %s", tn_gguf_label(g), what,
                   tn_gguf_quote(name).text, (long long)offset, text);
}

tn_status tn_gguf_fail_key(const tn_gguf *g, const tn_gguf_key *k, tn_error *err, tn_status code,
                           const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fail_record(g, "key", k->name, k->offset, err, code, fmt, ap);
    va_end(ap);
    return code;
}

tn_status tn_gguf_fail_tensor(const tn_gguf *g, const tn_gguf_tensor *t, tn_error *err,
                              tn_status code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fail_record(g, "tensor", t->name, t->header_offset, err, code, fmt, ap);
    va_end(ap);
    return code;
}

uint32_t tn_gguf_parts(const tn_gguf *g)
{
    return (uint32_t)g->n_parts;
}

const char *tn_gguf_part_path(const tn_gguf *g, uint32_t part)
{
    return part < g->n_parts ? g->parts[part].path : NULL;
}

int tn_gguf_part_fd(const tn_gguf *g, uint32_t part)
{
    return part < g->n_parts ? g->parts[part].fd : -1;
}

const uint8_t *tn_gguf_part_data(const tn_gguf *g, uint32_t part, size_t *size)
{
    if (size) *size = part < g->n_parts ? g->parts[part].size : 0;
    return part < g->n_parts ? g->parts[part].data : NULL;
}

uint32_t tn_gguf_version(const tn_gguf *g)
{
    return g->version;
}

uint64_t tn_gguf_alignment(const tn_gguf *g)
{
    return g->alignment;
}

uint64_t tn_gguf_n_keys(const tn_gguf *g)
{
    return g->n_keys;
}

const tn_gguf_key *tn_gguf_key_at(const tn_gguf *g, uint64_t i)
{
    return i < g->n_keys ? &g->keys[i] : NULL;
}

const tn_gguf_key *tn_gguf_find(const tn_gguf *g, const char *name)
{
    return tn_gguf_index_find(g, &g->key_index, (tn_str){name, strlen(name)});
}

uint64_t tn_gguf_n_tensors(const tn_gguf *g)
{
    return g->n_tensors;
}

const tn_gguf_tensor *tn_gguf_tensor_at(const tn_gguf *g, uint64_t i)
{
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const tn_gguf_tensor *tn_gguf_find_tensor(const tn_gguf *g, const char *name)
{
    return tn_gguf_index_find(g, &g->tensor_index, (tn_str){name, strlen(name)});
}

const uint8_t *tn_gguf_tensor_data(const tn_gguf *g, const tn_gguf_tensor *t)
{
    return g->header_only ? NULL : g->parts[t->part].data + t->offset;
}

/* First byte of element i, or NULL if i is out of range or the elements have no fixed size. */
static const uint8_t *element_at(const tn_gguf_key *k, uint64_t i)
{
    size_t size = tn_gguf_kind_bytes(k->element);
    return size && i < k->n ? k->data + (size_t)i * size : NULL;
}

static bool is_integer(tn_gguf_kind kind)
{
    return kind <= TN_GGUF_I32 || kind == TN_GGUF_U64 || kind == TN_GGUF_I64;
}

/* Integer element as two's complement; *negative tells what the 64 bits mean. */
static bool load_integer(const tn_gguf_key *k, uint64_t i, uint64_t *out, bool *negative)
{
    const uint8_t *p = element_at(k, i);
    if (!p || !is_integer(k->element)) return false;
    int64_t s = 0;
    switch (k->element) {
    case TN_GGUF_I8: s = (int8_t)p[0]; break;
    case TN_GGUF_I16: s = (int16_t)tn_load_u16(p); break;
    case TN_GGUF_I32: s = (int32_t)tn_load_u32(p); break;
    case TN_GGUF_I64: s = (int64_t)tn_load_u64(p); break;
    case TN_GGUF_U8: s = p[0]; break;
    case TN_GGUF_U16: s = tn_load_u16(p); break;
    case TN_GGUF_U32: s = tn_load_u32(p); break;
    default: *out = tn_load_u64(p), *negative = false; return true;
    }
    *out = (uint64_t)s;
    *negative = s < 0;
    return true;
}

bool tn_gguf_value_i64(const tn_gguf_key *k, uint64_t i, int64_t *out)
{
    uint64_t bits;
    bool negative;
    if (!load_integer(k, i, &bits, &negative) || (!negative && bits > INT64_MAX)) return false;
    *out = (int64_t)bits;
    return true;
}

bool tn_gguf_value_f64(const tn_gguf_key *k, uint64_t i, double *out)
{
    const uint8_t *p = element_at(k, i);
    if (p && k->element == TN_GGUF_F32) {
        uint32_t bits = tn_load_u32(p);
        float f;
        memcpy(&f, &bits, sizeof f);
        *out = f;
        return true;
    }
    if (p && k->element == TN_GGUF_F64) {
        uint64_t bits = tn_load_u64(p);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    return false;
}

bool tn_gguf_value_bool(const tn_gguf_key *k, uint64_t i, bool *out)
{
    const uint8_t *p = k->element == TN_GGUF_BOOL ? element_at(k, i) : NULL;
    if (!p) return false;
    *out = *p != 0;
    return true;
}

bool tn_gguf_str_walk(const tn_gguf_key *k, size_t *pos, tn_str *out)
{
    if (k->element != TN_GGUF_STRING || *pos >= k->data_bytes) return false;
    tn_cursor c;
    tn_cursor_init(&c, k->data + *pos, k->data_bytes - *pos);
    uint64_t len = tn_cursor_u64(&c);
    const uint8_t *p = tn_cursor_take(&c, len);
    if (!p) return false;
    *out = (tn_str){(const char *)p, (size_t)len};
    *pos += c.pos;
    return true;
}

bool tn_gguf_value_str(const tn_gguf_key *k, uint64_t i, tn_str *out)
{
    if (i >= k->n) return false;
    size_t pos = 0;
    tn_str s = {NULL, 0};
    for (uint64_t j = 0; j <= i; j++)
        if (!tn_gguf_str_walk(k, &pos, &s)) return false;
    *out = s;
    return true;
}

static tn_status fail_kind(const tn_gguf *g, const tn_gguf_key *k, const char *want, tn_error *err)
{
    bool array = k->kind == TN_GGUF_ARRAY;
    return tn_gguf_fail_key(g, k, err, TN_EFORMAT, "found %s%s where %s is needed",
                            array ? "ARRAY of " : "", tn_gguf_kind_name(k->element), want);
}

/* Reads an integer scalar of 0..max. */
static tn_status get_unsigned(const tn_gguf *g, const tn_gguf_key *k, uint64_t max, uint64_t *out,
                              tn_error *err)
{
    uint64_t bits;
    bool negative;
    if (k->kind == TN_GGUF_ARRAY || !load_integer(k, 0, &bits, &negative))
        return fail_kind(g, k, "an integer", err);
    if (negative)
        return tn_gguf_fail_key(g, k, err, TN_EFORMAT,
                                "the value %lld is negative, 0 to %llu is allowed", (long long)bits,
                                (unsigned long long)max);
    if (bits > max)
        return tn_gguf_fail_key(g, k, err, TN_EFORMAT,
                                "the value %llu is too large, 0 to %llu is allowed",
                                (unsigned long long)bits, (unsigned long long)max);
    *out = bits;
    return TN_OK;
}

tn_status tn_gguf_get_u64(const tn_gguf *g, const char *key, uint64_t *out, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(g, key);
    return k ? get_unsigned(g, k, UINT64_MAX, out, err) : TN_OK;
}

tn_status tn_gguf_get_u32(const tn_gguf *g, const char *key, uint32_t *out, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(g, key);
    if (!k) return TN_OK;
    uint64_t wide;
    tn_status st = get_unsigned(g, k, UINT32_MAX, &wide, err);
    if (st == TN_OK) *out = (uint32_t)wide;
    return st;
}

tn_status tn_gguf_get_f32(const tn_gguf *g, const char *key, float *out, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(g, key);
    if (!k) return TN_OK;
    double v;
    if (k->kind == TN_GGUF_ARRAY || !tn_gguf_value_f64(k, 0, &v))
        return fail_kind(g, k, "a floating-point number", err);
    if (!isfinite(v) || fabs(v) > (double)FLT_MAX)
        return tn_gguf_fail_key(g, k, err, TN_EFORMAT,
                                "the value %g is not a finite 32-bit number", v);
    *out = (float)v;
    return TN_OK;
}

tn_status tn_gguf_get_bool(const tn_gguf *g, const char *key, bool *out, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(g, key);
    if (!k) return TN_OK;
    bool v;
    if (k->kind == TN_GGUF_ARRAY || !tn_gguf_value_bool(k, 0, &v))
        return fail_kind(g, k, "BOOL", err);
    *out = v;
    return TN_OK;
}

tn_status tn_gguf_get_str(const tn_gguf *g, const char *key, tn_str *out, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(g, key);
    if (!k) return TN_OK;
    tn_str v;
    if (k->kind == TN_GGUF_ARRAY || !tn_gguf_value_str(k, 0, &v))
        return fail_kind(g, k, "STRING", err);
    *out = v;
    return TN_OK;
}
