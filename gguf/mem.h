/* Internal: allocation through the caller's allocator, checked arithmetic, error filling.
 * Owns no state. Everything that allocates in gguf/, kernels/ and engine/ goes through here. */
#ifndef TN_MEM_H
#define TN_MEM_H

#include "status.h"

#include <stdarg.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Fills err (may be NULL) and returns code, so that failing is one line:
 *     return tn_fail(err, TN_EFORMAT, off, "%s: key '%s' is missing", path, key);
 * offset is a byte offset or -1. The first failure should be the one reported: callers return at
 * once. */
tn_status tn_fail(tn_error *err, tn_status code, int64_t offset, const char *fmt, ...)
    TN_PRINTF(4, 5);

/* "out of memory: could not allocate N MiB for WHAT" */
tn_status tn_fail_nomem(tn_error *err, size_t bytes, const char *what);

/* malloc/free behind the tn_allocator interface: used where the caller gave none. */
extern const tn_allocator tn_default_allocator;

/* count * size bytes, zeroed, 64-byte aligned; NULL on overflow or when memory is short.
 * count * size == 0 gives a valid pointer that may be freed. */
void *tn_alloc(const tn_allocator *a, size_t count, size_t size);
/* The same without zeroing: for large buffers that are overwritten at once. */
void *tn_alloc_raw(const tn_allocator *a, size_t count, size_t size);
void tn_free(const tn_allocator *a, void *p); /* NULL is fine */
/* Grows an array to at least `need` elements (doubling), keeping the first `used`. False = no
 * memory, the old array stays valid. */
bool tn_grow(const tn_allocator *a, void **array, size_t *cap, size_t used, size_t need,
             size_t size);
/* Copy of len bytes plus a terminating zero, or NULL. */
char *tn_strndup(const tn_allocator *a, const char *s, size_t len);

/* Checked arithmetic: false on overflow, *out untouched. */
static inline bool tn_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool tn_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

#ifdef __cplusplus
}
#endif
#endif
