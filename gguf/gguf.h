/* Reading GGUF files (v2, v3, little-endian): metadata keys and the tensor directory.
 *
 * Two levels. tn_gguf_parse() works on bytes in memory, does no I/O and is what the fuzzer drives.
 * tn_gguf_open() maps one file, or all parts of a split file, and parses them.
 * Everything returned points into the tn_gguf object (or into the caller's bytes, which must
 * outlive it) and stays valid until tn_gguf_close(). A tn_gguf is immutable: any number of threads
 * may read.
 * Source of the format: the GGUF specification in the ggml repository (docs/gguf.md). */
#ifndef TN_GGUF_H
#define TN_GGUF_H

#include "status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_gguf tn_gguf;

/* Value types as numbered in the file. */
typedef enum tn_gguf_kind {
    TN_GGUF_U8 = 0, TN_GGUF_I8 = 1, TN_GGUF_U16 = 2, TN_GGUF_I16 = 3, TN_GGUF_U32 = 4,
    TN_GGUF_I32 = 5, TN_GGUF_F32 = 6, TN_GGUF_BOOL = 7, TN_GGUF_STRING = 8, TN_GGUF_ARRAY = 9,
    TN_GGUF_U64 = 10, TN_GGUF_I64 = 11, TN_GGUF_F64 = 12
} tn_gguf_kind;

/* A string inside the file: not zero-terminated, may hold any bytes. */
typedef struct tn_str {
    const char *data;
    size_t len;
} tn_str;

/* One metadata entry. */
typedef struct tn_gguf_key {
    tn_str name;
    tn_gguf_kind kind;    /* TN_GGUF_ARRAY for arrays */
    tn_gguf_kind element; /* kind of the elements of an array; = kind for scalars */
    uint64_t n;           /* number of elements; 1 for scalars */
    int64_t offset;       /* byte offset of the key in its file, for error messages */
    const uint8_t *data;  /* first value byte, unaligned; use the typed accessors below */
    size_t data_bytes;    /* bytes of all values, length prefixes of strings included */
} tn_gguf_key;

/* One tensor. shape[0] is the fastest dimension (columns of a matrix); unused dimensions are 1. */
typedef struct tn_gguf_tensor {
    tn_str name;
    uint32_t type; /* type id, see types.h */
    uint32_t n_dims;
    uint64_t shape[4];
    uint32_t part;   /* which file of a split model, 0-based */
    uint64_t offset; /* byte offset of the data in that file */
    uint64_t bytes;
    int64_t header_offset; /* byte offset of the directory entry, for error messages */
} tn_gguf_tensor;

/* How a file is to be read. All zero = defaults. */
typedef struct tn_gguf_options {
    size_t struct_size;
    bool header_only;              /* do not require the tensor data to be present in the file */
    const tn_allocator *allocator; /* NULL = malloc; must outlive the tn_gguf */
} tn_gguf_options;

/* Parses `size` bytes that hold a whole GGUF file (or, with header_only, at least its header).
 * name is used in error messages only (copied). Rejects, naming byte offset and key or tensor:
 * bad magic, versions other than 2 and 3 (big-endian files by that name), counts that cannot fit
 * into the bytes, nested arrays, unknown value or tensor types, removed tensor types by name,
 * duplicate, empty or non-UTF-8 names, zero bytes in names, names over 64 bytes for tensors and
 * 65,535 for keys, bools other than 0 and 1, an alignment that is no power of two from 8 to 65,536,
 * dimensions of 0, unaligned, overlapping or out-of-file tensor extents.
 * Returns TN_OK, TN_EFORMAT, TN_EUNSUPPORTED (removed or unknown tensor types, other versions,
 * big-endian files, nested arrays), TN_ENOMEM, TN_EARG. *out is NULL on failure. */
TN_API tn_status tn_gguf_parse(tn_gguf **out, const void *bytes, size_t size, const char *name,
                               const tn_gguf_options *opt, tn_error *err);

/* Opens a file, maps its bytes read-only, and parses it. For a split model (`split.count` > 1, name
 * ending in -00001-of-0000N.gguf) opens all parts, checks that they belong together
 * (`split.no`, `split.count`, `split.tensors.count`) and merges their tensors; metadata is part
 * 1's. With header_only, too, all parts must be there. Returns also TN_ENOENT (also for a missing
 * part) and TN_EIO (also for a directory or anything else that is no regular file).
 * Changing the file while it is open kills the process (SIGBUS). */
TN_API tn_status tn_gguf_open(tn_gguf **out, const char *path, const tn_gguf_options *opt,
                              tn_error *err);

TN_API void tn_gguf_close(tn_gguf *g); /* NULL is fine */

/* Number of parts (1 for a single file), and per part its path, descriptor and mapped bytes.
 * A tn_gguf made by tn_gguf_parse() has one part with fd -1 and the name it was given. */
TN_API uint32_t tn_gguf_parts(const tn_gguf *g);
TN_API const char *tn_gguf_part_path(const tn_gguf *g, uint32_t part);
TN_API int tn_gguf_part_fd(const tn_gguf *g, uint32_t part);
TN_API const uint8_t *tn_gguf_part_data(const tn_gguf *g, uint32_t part, size_t *size);

TN_API uint32_t tn_gguf_version(const tn_gguf *g);
TN_API uint64_t tn_gguf_alignment(const tn_gguf *g);
TN_API uint64_t tn_gguf_n_keys(const tn_gguf *g);
TN_API const tn_gguf_key *tn_gguf_key_at(const tn_gguf *g, uint64_t i);
/* NULL if absent; O(1). */
TN_API const tn_gguf_key *tn_gguf_find(const tn_gguf *g, const char *name);
TN_API uint64_t tn_gguf_n_tensors(const tn_gguf *g);
TN_API const tn_gguf_tensor *tn_gguf_tensor_at(const tn_gguf *g, uint64_t i);
TN_API const tn_gguf_tensor *tn_gguf_find_tensor(const tn_gguf *g, const char *name); /* O(1) */
/* Mapped bytes of a tensor's data, or NULL if the header alone was opened. */
TN_API const uint8_t *tn_gguf_tensor_data(const tn_gguf *g, const tn_gguf_tensor *t);

/* Typed reads of scalars. Absent key: TN_OK and *out untouched, so callers set the default first.
 * Wrong kind or a value that does not fit: TN_EFORMAT naming the key and offset.
 * Integers accept every integer kind (never floats or bools); floats accept F32 and F64, and must
 * be finite. */
TN_API tn_status tn_gguf_get_u32(const tn_gguf *g, const char *key, uint32_t *out, tn_error *err);
TN_API tn_status tn_gguf_get_u64(const tn_gguf *g, const char *key, uint64_t *out, tn_error *err);
TN_API tn_status tn_gguf_get_f32(const tn_gguf *g, const char *key, float *out, tn_error *err);
TN_API tn_status tn_gguf_get_bool(const tn_gguf *g, const char *key, bool *out, tn_error *err);
TN_API tn_status tn_gguf_get_str(const tn_gguf *g, const char *key, tn_str *out, tn_error *err);

/* Element i of an array or scalar entry; false if the kind does not match or i >= n. Integers take
 * every integer kind, but not a U64 above INT64_MAX; floats take F32 and F64, and may be NaN.
 * Strings are found by walking from the start: use tn_gguf_str_walk for whole arrays. */
TN_API bool tn_gguf_value_i64(const tn_gguf_key *k, uint64_t i, int64_t *out);
TN_API bool tn_gguf_value_f64(const tn_gguf_key *k, uint64_t i, double *out);
TN_API bool tn_gguf_value_bool(const tn_gguf_key *k, uint64_t i, bool *out);
TN_API bool tn_gguf_value_str(const tn_gguf_key *k, uint64_t i, tn_str *out);

/* Walks the strings of an array in order: pos starts at 0 and is advanced; false after the last. */
TN_API bool tn_gguf_str_walk(const tn_gguf_key *k, size_t *pos, tn_str *out);

#ifdef __cplusplus
}
#endif
#endif
