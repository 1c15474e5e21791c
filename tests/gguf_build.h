/* Builds GGUF bytes by hand, right or wrong, for tests; and walks parsed files through every
 * accessor. For well-formed test models gguf/write.h is less work. */
#ifndef TN_GGUF_BUILD_H
#define TN_GGUF_BUILD_H

#include "../gguf/gguf.h"

#include <stdlib.h>
#include <string.h>

typedef struct gb {
    uint8_t *p;
    size_t n, cap;
} gb;

/* n more zero bytes; a test without memory may as well stop. */
static inline uint8_t *gb_zeros(gb *b, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = realloc(b->p, b->cap);
        if (!b->p) abort();
    }
    if (n) memset(b->p + b->n, 0, n);
    b->n += n;
    return b->p + b->n - n;
}
static inline void gb_free(gb *b)
{
    free(b->p);
    *b = (gb){0};
}
static inline void gb_bytes(gb *b, const void *src, size_t n)
{
    if (n) memcpy(gb_zeros(b, n), src, n);
}
/* The low `bytes` bytes of v, little-endian. */
static inline void gb_int(gb *b, uint64_t v, int bytes)
{
    uint8_t *p = gb_zeros(b, (size_t)bytes);
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> (8 * i));
}
static inline void gb_u8(gb *b, uint64_t v) { gb_int(b, v, 1); }
static inline void gb_u16(gb *b, uint64_t v) { gb_int(b, v, 2); }
static inline void gb_u32(gb *b, uint64_t v) { gb_int(b, v, 4); }
static inline void gb_u64(gb *b, uint64_t v) { gb_int(b, v, 8); }
static inline void gb_f32(gb *b, float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    gb_u32(b, u);
}
static inline void gb_f64(gb *b, double v)
{
    uint64_t u;
    memcpy(&u, &v, 8);
    gb_u64(b, u);
}
static inline void gb_strn(gb *b, const char *s, size_t len)
{
    gb_u64(b, len);
    gb_bytes(b, s, len);
}
static inline void gb_str(gb *b, const char *s) { gb_strn(b, s, strlen(s)); }
static inline void gb_header(gb *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    gb_bytes(b, "GGUF", 4);
    gb_u32(b, version);
    gb_u64(b, n_tensors);
    gb_u64(b, n_keys);
}
/* Name and kind of a key; the value follows. */
static inline void gb_key(gb *b, const char *name, uint32_t kind)
{
    gb_str(b, name);
    gb_u32(b, kind);
}
static inline void gb_key_u32(gb *b, const char *name, uint32_t v)
{
    gb_key(b, name, TN_GGUF_U32);
    gb_u32(b, v);
}
static inline void gb_key_str(gb *b, const char *name, const char *v)
{
    gb_key(b, name, TN_GGUF_STRING);
    gb_str(b, v);
}
/* An array key up to its count; the elements follow. */
static inline void gb_array(gb *b, const char *name, uint32_t element, uint64_t n)
{
    gb_key(b, name, TN_GGUF_ARRAY);
    gb_u32(b, element);
    gb_u64(b, n);
}
/* A directory entry; offset is relative to the start of the data. */
static inline void gb_tensor(gb *b, const char *name, uint32_t n_dims, const uint64_t *shape,
                             uint32_t type, uint64_t offset)
{
    gb_str(b, name);
    gb_u32(b, n_dims);
    for (uint32_t d = 0; d < n_dims; d++) gb_u64(b, shape[d]);
    gb_u32(b, type);
    gb_u64(b, offset);
}
static inline void gb_tensor1(gb *b, const char *name, uint64_t n, uint32_t type, uint64_t offset)
{
    gb_tensor(b, name, 1, &n, type, offset);
}
static inline void gb_pad(gb *b, size_t align)
{
    while (b->n % align) gb_u8(b, 0);
}

static inline bool gguf_inside(const uint8_t *p, size_t n, const uint8_t *all, size_t size)
{
    return p && p >= all && n <= size && (size_t)(p - all) <= size - n;
}

/* Reads every byte a string claims, so that a sanitizer sees whether it is there. */
static inline unsigned gguf_touch(tn_str s)
{
    unsigned sum = 0;
    for (size_t i = 0; i < s.len; i++) sum += (uint8_t)s.data[i];
    return sum;
}

static inline bool gguf_walk_key(const tn_gguf *g, const tn_gguf_key *k, const uint8_t *all,
                                 size_t size)
{
    char name[256];
    bool ok = k->name.len > 0 &&
              gguf_inside((const uint8_t *)k->name.data, k->name.len, all, size) &&
              gguf_inside(k->data, k->data_bytes, all, size) && k->offset >= 0;
    if (ok && k->name.len < sizeof name) {
        memcpy(name, k->name.data, k->name.len);
        name[k->name.len] = 0;
        uint32_t u32 = 0;
        uint64_t u64 = 0;
        float f = 0;
        bool b = false;
        tn_str s = {"", 0};
        tn_error err;
        ok = tn_gguf_find(g, name) == k;
        tn_gguf_get_u32(g, name, &u32, &err);
        tn_gguf_get_u64(g, name, &u64, &err);
        tn_gguf_get_f32(g, name, &f, &err);
        tn_gguf_get_bool(g, name, &b, &err);
        tn_gguf_get_str(g, name, &s, &err);
        ok = ok && f - f == 0.0f && gguf_touch(s) + 1;
    }
    uint64_t n = 0;
    size_t pos = 0;
    tn_str s;
    while (tn_gguf_str_walk(k, &pos, &s)) {
        ok = ok && gguf_inside((const uint8_t *)s.data, s.len, all, size) && gguf_touch(s) + 1;
        n++;
    }
    if (k->element == TN_GGUF_STRING) return ok && n == k->n && pos == k->data_bytes;
    for (uint64_t i = 0; i <= k->n && i < 100000; i++) {
        int64_t i64;
        double f64;
        bool b;
        int kinds = tn_gguf_value_i64(k, i, &i64) + tn_gguf_value_f64(k, i, &f64) +
                    tn_gguf_value_bool(k, i, &b);
        ok = ok && !tn_gguf_value_str(k, i, &s) && kinds <= (i < k->n);
        if (i < k->n && k->element != TN_GGUF_U64) ok = ok && kinds == 1;
    }
    return ok;
}

/* Calls every accessor on everything in g; false if an answer breaks what gguf.h promises. */
static inline bool gguf_walk(const tn_gguf *g)
{
    size_t size;
    const uint8_t *all = tn_gguf_part_data(g, 0, &size);
    bool ok = tn_gguf_parts(g) >= 1 && tn_gguf_part_path(g, 0) && tn_gguf_version(g) >= 2;
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++)
        ok = gguf_walk_key(g, tn_gguf_key_at(g, i), all, size) && ok;
    for (uint64_t i = 0; i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        char name[65] = {0};
        if (t->name.len < 1 || t->name.len > 64) return false;
        memcpy(name, t->name.data, t->name.len);
        all = tn_gguf_part_data(g, t->part, &size);
        const uint8_t *data = tn_gguf_tensor_data(g, t);
        ok = ok && tn_gguf_find_tensor(g, name) == t && t->bytes > 0 && t->n_dims >= 1;
        ok = ok && (!data || gguf_inside(data, t->bytes, all, size));
        ok = ok && gguf_inside((const uint8_t *)t->name.data, t->name.len, all, size);
    }
    return ok && !tn_gguf_key_at(g, tn_gguf_n_keys(g)) &&
           !tn_gguf_tensor_at(g, tn_gguf_n_tensors(g));
}

#endif
