/* The scales of a file block in the head of a unit. Inlined with a constant type. */
#ifndef TN_REPACK_HEAD_H
#define TN_REPACK_HEAD_H

#include "repack.h"

#include "../gguf/blocks.h"

#include <string.h>

/* Where d, the second scale (-1: none) and the scale bytes (-1: none) lie in a file block. */
typedef struct tn_head_map {
    int d, m, scales;
} tn_head_map;

static inline __attribute__((always_inline)) tn_head_map tn_head_map_of(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q2_K:
        return (tn_head_map){offsetof(tn_block_q2_k, d), offsetof(tn_block_q2_k, dmin),
                                offsetof(tn_block_q2_k, scales)};
    case TN_TYPE_Q3_K:
        return (tn_head_map){offsetof(tn_block_q3_k, d), -1, offsetof(tn_block_q3_k, scales)};
    case TN_TYPE_Q4_K:
    case TN_TYPE_Q5_K: return (tn_head_map){0, 2, offsetof(tn_block_q4_k, scales)};
    case TN_TYPE_Q6_K:
        return (tn_head_map){offsetof(tn_block_q6_k, d), -1, offsetof(tn_block_q6_k, scales)};
    case TN_TYPE_Q4_1:
    case TN_TYPE_Q5_1: return (tn_head_map){0, 2, -1};
    default: return (tn_head_map){0, -1, -1};
    }
}

/* Writes what block b of row r says into the head of its unit. */
static inline __attribute__((always_inline)) void tn_put_head(uint32_t type, int32_t rows,
                                                              uint8_t *unit, const uint8_t *b,
                                                              int64_t r)
{
    const tn_group_shape s = tn_group_shape_of(type, rows);
    const tn_head_map h = tn_head_map_of(type);
    memcpy(unit + 2 * r, b + h.d, 2);
    if (h.m >= 0) memcpy(unit + 2 * rows + 2 * r, b + h.m, 2);
    for (int k = 0; h.scales >= 0 && k < (s.head - s.scales) / (4 * rows); k++)
        memcpy(unit + s.scales + 4 * rows * k + 4 * r, b + h.scales + 4 * k, 4);
}

#endif
