/* Internal to gguf/: the object behind tn_gguf, the name index, and how errors are worded. */
#ifndef TN_GGUF_INTERNAL_H
#define TN_GGUF_INTERNAL_H

#include "gguf.h"
#include "mem.h"

/* Limits the format states (tensor names), or that keep a hostile file cheap (the others). */
enum {
    TN_GGUF_MAX_KEY_NAME = 65535,
    TN_GGUF_MAX_TENSOR_NAME = 64,
    TN_GGUF_MAX_DIMS = 4,
    TN_GGUF_MIN_ALIGNMENT = 8,
    TN_GGUF_MAX_ALIGNMENT = 65536,
    TN_GGUF_DEFAULT_ALIGNMENT = 32
};

/* Open-addressing hash table over records that begin with their tn_str name. */
typedef struct tn_gguf_index {
    const void *base; /* first record */
    size_t stride;    /* bytes per record */
    size_t mask;      /* slots - 1, slots a power of two; no slots when the table is empty */
    struct tn_gguf_slot {
        uint32_t hash;
        uint32_t at; /* record number + 1; 0 = free */
    } *slots;
} tn_gguf_index;

/* One file. mapped and fd are set by tn_gguf_open() only. */
typedef struct tn_gguf_part {
    char *path;
    const uint8_t *data;
    size_t size;
    int fd;
    bool mapped;
} tn_gguf_part;

struct tn_gguf {
    const tn_allocator *alloc;
    bool header_only;
    uint32_t version;
    uint64_t alignment;
    uint64_t hash_key[2]; /* drawn anew for every object, see tn_gguf_draw_hash_key() */
    tn_gguf_part *parts;
    size_t n_parts, cap_parts;
    tn_gguf_key *keys;
    size_t n_keys, cap_keys;
    tn_gguf_tensor *tensors;
    size_t n_tensors, cap_tensors;
    tn_gguf_index key_index, tensor_index;
};

/* Frees the memory of g, but neither unmaps nor closes files. NULL is fine. */
void tn_gguf_free(tn_gguf *g);

/* Fills hash_key with random bytes: whoever writes a file cannot know which names will collide. */
void tn_gguf_draw_hash_key(tn_gguf *g);
/* Indexes `count` records by name in linear time, replacing what the index held. TN_EFORMAT if two
 * names are equal: *dup is then the number of the later record. TN_ENOMEM otherwise; err is not
 * filled for TN_EFORMAT. */
tn_status tn_gguf_index_build(tn_gguf *g, tn_gguf_index *ix, const void *base, size_t count,
                              size_t stride, size_t *dup, tn_error *err);
/* Record with that name, or NULL. */
const void *tn_gguf_index_find(const tn_gguf *g, const tn_gguf_index *ix, tn_str name);

/* Valid UTF-8 without zero bytes: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool tn_gguf_name_valid(tn_str s);

typedef struct tn_gguf_quoted {
    char text[160];
} tn_gguf_quoted;
/* A name fit for a terminal: shortened, with control characters and broken UTF-8 as \xNN. */
tn_gguf_quoted tn_gguf_quote(tn_str s);

/* "STRING", "U32"; "type 77" does not happen: unknown kinds give "?". */
const char *tn_gguf_kind_name(tn_gguf_kind kind);
/* Bytes of one value; 0 for strings, arrays and unknown kinds. */
size_t tn_gguf_kind_bytes(uint32_t kind);

/* Last component of part 1's path: how error messages call the file. */
const char *tn_gguf_label(const tn_gguf *g);
/* "FILE: key 'NAME' at byte N: ..." */
tn_status tn_gguf_fail_key(const tn_gguf *g, const tn_gguf_key *k, tn_error *err, tn_status code,
                           const char *fmt, ...) TN_PRINTF(5, 6);
/* "FILE: tensor 'NAME' at byte N: ..." */
tn_status tn_gguf_fail_tensor(const tn_gguf *g, const tn_gguf_tensor *t, tn_error *err,
                              tn_status code, const char *fmt, ...) TN_PRINTF(5, 6);

#endif
