/* Internal: random models in the shape of real ones, for benchmarks and tests. */
#ifndef TN_SYNTHETIC_H
#define TN_SYNTHETIC_H

#include "../gguf/mem.h"

/* Writes the GGUF header (keys and tensor directory, no data) of a shape in a type or type mix.
 * *bytes is freed by the caller. TN_EARG lists the known shapes and types. */
tn_status tn_synthetic_header(void **bytes, size_t *size, const char *shape, const char *type,
                              const tn_allocator *a, tn_error *err);

/* Fills `bytes` bytes (whole blocks of `type`) with reproducible random weights: all finite, of a
 * size that keeps a forward pass in range. */
void tn_synthetic_fill(void *dst, uint32_t type, size_t bytes, uint64_t seed);

#endif
