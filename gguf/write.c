#include "write.h"

#include "cursor.h"
#include "internal.h"
#include "types.h"

#include <string.h>

typedef struct buffer {
    uint8_t *p;
    size_t n, cap;
} buffer;

struct tn_gguf_writer {
    const tn_allocator *alloc;
    tn_status status; /* first failure */
    tn_error error;
    uint32_t alignment;
    uint64_t n_keys, n_tensors;
    uint64_t data_bytes; /* of all tensors so far, present or not */
    bool no_data;
    buffer keys, tensors, data, file;
};

static void fail(tn_gguf_writer *w, tn_status code, const char *name, const char *why)
{
    if (w->status == TN_OK) w->status = tn_fail(&w->error, code, -1, "'%s': %s", name, why);
}

/* Room for n more zero bytes; NULL if n is 0, or after a failure. */
static uint8_t *extend(tn_gguf_writer *w, buffer *b, size_t n)
{
    size_t need = 0;
    void *p = b->p;
    if (w->status != TN_OK || n == 0) return NULL;
    if (!tn_add_size(b->n, n, &need) || !tn_grow(w->alloc, &p, &b->cap, b->n, need, 1)) {
        w->status = tn_fail_nomem(&w->error, need, "a GGUF file");
        return NULL;
    }
    b->p = p;
    b->n = need;
    return memset(b->p + need - n, 0, n);
}

static void put(tn_gguf_writer *w, buffer *b, const void *src, size_t n)
{
    uint8_t *p = extend(w, b, n);
    if (p) memcpy(p, src, n);
}

/* The low `bytes` bytes of v, little-endian. */
static void put_int(tn_gguf_writer *w, buffer *b, uint64_t v, size_t bytes)
{
    uint8_t *p = extend(w, b, bytes);
    for (size_t i = 0; p && i < bytes; i++) p[i] = (uint8_t)(v >> (8 * i));
}

static void put_str(tn_gguf_writer *w, buffer *b, const char *s, size_t len)
{
    put_int(w, b, len, 8);
    put(w, b, s, len);
}

static void begin_key(tn_gguf_writer *w, const char *key, size_t len, tn_gguf_kind kind)
{
    put_str(w, &w->keys, key, len);
    put_int(w, &w->keys, (uint64_t)kind, 4);
    w->n_keys++;
}

tn_gguf_writer *tn_gguf_writer_new(const tn_allocator *a)
{
    if (!a) a = &tn_default_allocator;
    tn_gguf_writer *w = tn_alloc(a, 1, sizeof *w);
    if (!w) return NULL;
    w->alloc = a;
    w->alignment = TN_GGUF_DEFAULT_ALIGNMENT;
    return w;
}

void tn_gguf_writer_free(tn_gguf_writer *w)
{
    if (!w) return;
    tn_free(w->alloc, w->keys.p);
    tn_free(w->alloc, w->tensors.p);
    tn_free(w->alloc, w->data.p);
    tn_free(w->alloc, w->file.p);
    tn_free(w->alloc, w);
}

void tn_gguf_writer_alignment(tn_gguf_writer *w, uint32_t alignment)
{
    if (w->n_tensors) fail(w, TN_EARG, "general.alignment", "must be set before the first tensor");
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
        fail(w, TN_EARG, "general.alignment", "must be a power of two");
    w->alignment = alignment;
    tn_gguf_writer_u32(w, "general.alignment", alignment);
}

void tn_gguf_writer_u32(tn_gguf_writer *w, const char *key, uint32_t value)
{
    begin_key(w, key, strlen(key), TN_GGUF_U32);
    put_int(w, &w->keys, value, 4);
}

static bool fits(tn_gguf_kind kind, int64_t v)
{
    switch (kind) {
    case TN_GGUF_U8: return v >= 0 && v <= UINT8_MAX;
    case TN_GGUF_I8: return v >= INT8_MIN && v <= INT8_MAX;
    case TN_GGUF_U16: return v >= 0 && v <= UINT16_MAX;
    case TN_GGUF_I16: return v >= INT16_MIN && v <= INT16_MAX;
    case TN_GGUF_U32: return v >= 0 && v <= UINT32_MAX;
    case TN_GGUF_I32: return v >= INT32_MIN && v <= INT32_MAX;
    case TN_GGUF_U64: return v >= 0;
    case TN_GGUF_I64: return true;
    default: return false;
    }
}

void tn_gguf_writer_int(tn_gguf_writer *w, const char *key, tn_gguf_kind kind, int64_t value)
{
    if (!fits(kind, value)) fail(w, TN_EARG, key, "the value does not fit into its kind");
    begin_key(w, key, strlen(key), kind);
    put_int(w, &w->keys, (uint64_t)value, tn_gguf_kind_bytes((uint32_t)kind));
}

void tn_gguf_writer_f32(tn_gguf_writer *w, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    begin_key(w, key, strlen(key), TN_GGUF_F32);
    put_int(w, &w->keys, bits, 4);
}

void tn_gguf_writer_bool(tn_gguf_writer *w, const char *key, bool value)
{
    begin_key(w, key, strlen(key), TN_GGUF_BOOL);
    put_int(w, &w->keys, value, 1);
}

void tn_gguf_writer_str(tn_gguf_writer *w, const char *key, const char *value)
{
    begin_key(w, key, strlen(key), TN_GGUF_STRING);
    put_str(w, &w->keys, value, strlen(value));
}

static void begin_array(tn_gguf_writer *w, const char *key, size_t len, tn_gguf_kind element,
                        uint64_t n)
{
    begin_key(w, key, len, TN_GGUF_ARRAY);
    put_int(w, &w->keys, (uint64_t)element, 4);
    put_int(w, &w->keys, n, 8);
}

void tn_gguf_writer_array(tn_gguf_writer *w, const char *key, tn_gguf_kind element, uint64_t n,
                          const void *values)
{
    size_t size = tn_gguf_kind_bytes((uint32_t)element), bytes = 0;
    if (size == 0 || !tn_mul_size((size_t)n, size, &bytes))
        fail(w, TN_EARG, key, "needs elements of a fixed size");
    begin_array(w, key, strlen(key), element, n);
    put(w, &w->keys, values, bytes);
}

void tn_gguf_writer_strings(tn_gguf_writer *w, const char *key, uint64_t n, const tn_str *values)
{
    begin_array(w, key, strlen(key), TN_GGUF_STRING, n);
    for (uint64_t i = 0; i < n && w->status == TN_OK; i++)
        put_str(w, &w->keys, values[i].data, values[i].len);
}

void tn_gguf_writer_copy(tn_gguf_writer *w, const tn_gguf_key *k)
{
    if (k->kind == TN_GGUF_ARRAY)
        begin_array(w, k->name.data, k->name.len, k->element, k->n);
    else
        begin_key(w, k->name.data, k->name.len, k->kind);
    put(w, &w->keys, k->data, k->data_bytes);
}

/* Bytes of a tensor, or 0 if type and shape do not go together. */
static uint64_t tensor_bytes(uint32_t type, uint32_t n_dims, const uint64_t *shape)
{
    size_t row;
    if (n_dims < 1 || n_dims > TN_GGUF_MAX_DIMS) return 0;
    if (!tn_type_row_bytes(type, shape[0], &row)) return 0;
    uint64_t bytes = row;
    for (uint32_t d = 1; d < n_dims; d++)
        if (!tn_mul_u64(bytes, shape[d], &bytes)) return 0;
    return bytes;
}

void tn_gguf_writer_tensor(tn_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                           const uint64_t *shape, const void *data)
{
    uint64_t bytes = tensor_bytes(type, n_dims, shape), offset, end;
    if (bytes == 0) {
        fail(w, TN_EARG, name, "its type and shape do not go together");
        return;
    }
    if (!tn_align_u64(w->data_bytes, w->alignment, &offset) || !tn_add_u64(offset, bytes, &end)) {
        fail(w, TN_EARG, name, "the tensors are too large together");
        return;
    }
    if (w->n_tensors && w->no_data != !data)
        fail(w, TN_EARG, name, "either all tensors have data or none");
    w->no_data = !data;
    put_str(w, &w->tensors, name, strlen(name));
    put_int(w, &w->tensors, n_dims, 4);
    for (uint32_t d = 0; d < n_dims; d++) put_int(w, &w->tensors, shape[d], 8);
    put_int(w, &w->tensors, type, 4);
    put_int(w, &w->tensors, offset, 8);
    if (data) {
        extend(w, &w->data, (size_t)(offset - w->data_bytes));
        put(w, &w->data, data, (size_t)bytes);
    }
    w->data_bytes = end;
    w->n_tensors++;
}

tn_status tn_gguf_writer_finish(tn_gguf_writer *w, const uint8_t **bytes, size_t *size,
                                tn_error *err)
{
    buffer *f = &w->file;
    put(w, f, "GGUF", 4);
    put_int(w, f, 3, 4);
    put_int(w, f, w->n_tensors, 8);
    put_int(w, f, w->n_keys, 8);
    put(w, f, w->keys.p, w->keys.n);
    put(w, f, w->tensors.p, w->tensors.n);
    extend(w, f, (w->alignment - f->n % w->alignment) % w->alignment);
    put(w, f, w->data.p, w->data.n);
    if (w->status != TN_OK) {
        if (err) *err = w->error;
        return w->status;
    }
    *bytes = f->p;
    *size = f->n;
    return TN_OK;
}
