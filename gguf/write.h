/* Internal: builds GGUF v3 files in memory, for tests and tools. Nothing is written to disk here.
 *
 * Calls after a failure do nothing; tn_gguf_writer_finish() reports the first one. The writer takes
 * what it is given: equal names or overlapping shapes are for the reader to refuse. One thread at a
 * time. Keys come out in the order of the calls, and so do tensors. */
#ifndef TN_GGUF_WRITE_H
#define TN_GGUF_WRITE_H

#include "gguf.h"

typedef struct tn_gguf_writer tn_gguf_writer;

/* NULL allocator = malloc; it must outlive the writer. NULL if memory is short. */
tn_gguf_writer *tn_gguf_writer_new(const tn_allocator *a);
void tn_gguf_writer_free(tn_gguf_writer *w); /* NULL is fine */

/* Adds general.alignment (a power of two) and uses it; before the first tensor. Default 32. */
void tn_gguf_writer_alignment(tn_gguf_writer *w, uint32_t alignment);

/* Scalar keys. _int writes any integer kind; a value that does not fit into it is TN_EARG. */
void tn_gguf_writer_u32(tn_gguf_writer *w, const char *key, uint32_t value);
void tn_gguf_writer_int(tn_gguf_writer *w, const char *key, tn_gguf_kind kind, int64_t value);
void tn_gguf_writer_f32(tn_gguf_writer *w, const char *key, float value);
void tn_gguf_writer_bool(tn_gguf_writer *w, const char *key, bool value);
void tn_gguf_writer_str(tn_gguf_writer *w, const char *key, const char *value);
/* n elements of a fixed size as they lie in memory (bools: one byte each); TN_EARG for strings. */
void tn_gguf_writer_array(tn_gguf_writer *w, const char *key, tn_gguf_kind element, uint64_t n,
                          const void *values);
void tn_gguf_writer_strings(tn_gguf_writer *w, const char *key, uint64_t n, const tn_str *values);
/* A key of another file, with its name. */
void tn_gguf_writer_copy(tn_gguf_writer *w, const tn_gguf_key *k);

/* shape: n_dims (1-4) sizes, fastest first. data: the tensor's bytes in the type's layout (copied),
 * or NULL in all calls to write a header only, as if the data were left out of the file. */
void tn_gguf_writer_tensor(tn_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                           const uint64_t *shape, const void *data);

/* The whole file. *bytes belongs to the writer, lives until it is freed, and nothing may be added
 * after this call. Returns TN_OK, TN_ENOMEM, TN_EARG. */
tn_status tn_gguf_writer_finish(tn_gguf_writer *w, const uint8_t **bytes, size_t *size,
                                tn_error *err);

#endif
