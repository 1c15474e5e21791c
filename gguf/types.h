/* The one table of tensor types: GGUF type id -> name, elements and bytes per block, support.
 * Source of ids and sizes: the GGUF specification and ggml's public type list (ids 0-42). */
#ifndef TN_TYPES_H
#define TN_TYPES_H

#include "status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_type {
    TN_TYPE_F32 = 0,
    TN_TYPE_F16 = 1,
    TN_TYPE_Q4_0 = 2,
    TN_TYPE_Q4_1 = 3,
    TN_TYPE_Q5_0 = 6,
    TN_TYPE_Q5_1 = 7,
    TN_TYPE_Q8_0 = 8,
    TN_TYPE_Q8_1 = 9,
    TN_TYPE_Q2_K = 10,
    TN_TYPE_Q3_K = 11,
    TN_TYPE_Q4_K = 12,
    TN_TYPE_Q5_K = 13,
    TN_TYPE_Q6_K = 14,
    TN_TYPE_Q8_K = 15,
    TN_TYPE_I8 = 24,
    TN_TYPE_I16 = 25,
    TN_TYPE_I32 = 26,
    TN_TYPE_I64 = 27,
    TN_TYPE_F64 = 28,
    TN_TYPE_BF16 = 30,
    TN_TYPE_COUNT = 43 /* one past the largest known id */
} tn_type;

typedef struct tn_type_info {
    const char *name;   /* as the field writes it: "Q4_K"; NULL never for id < TN_TYPE_COUNT */
    uint32_t block;     /* elements per block; 0 if the id was removed from the format */
    uint32_t bytes;     /* bytes per block */
    bool matmul;        /* tenon can multiply with weights of this type */
} tn_type_info;

/* The row for a type id, or NULL if the id is not known at all. Any thread. */
const tn_type_info *tn_type_get(uint32_t id);
/* Id for a name as in the table, any letter case ("q4_k"); -1 if there is none. */
int tn_type_from_name(const char *name);
/* Bytes of a row of `cols` elements; false on overflow, or if cols is no multiple of the block. */
bool tn_type_row_bytes(uint32_t id, uint64_t cols, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
