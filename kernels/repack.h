/* The 8-row interleaved weight layout, TN_LAYOUT_R8.
 *
 * A matrix is a sequence of groups of 8 rows, the last one padded with zero rows; a group takes
 * 8 * row_bytes, exactly what its rows take in the file. A group is a sequence of *units*: what 8
 * rows have in one block of the file's type (32 columns, 256 for the K types). A unit is a head (8
 * scales of each kind) and one *step* per 32 columns.
 *
 * A step holds the quants as vectors of 32 bytes, dword r of a vector being row r, so that no
 * kernel ever sums across a vector and an activation operand is one broadcast dword. Quant vector j
 * < 8 has in byte e of a row's dword column 16 * (e / 2) + 2 * j + e % 2: the even int16 lanes of a
 * vpmaddubsw are of the first 16 columns and the odd ones of the last 16, so that one vpmaddwd
 * applies the two integer scales of a tn_q8 (whose q the kernels permute in the same way).
 *
 * The eight quant vectors V0..V7 are stored in `bits` vectors A0..:
 *   2 bits  Ai = V[4i] | V[4i+1] << 2 | V[4i+2] << 4 | V[4i+3] << 6
 *   3 bits  Ai = V[2i] | V[2i+1] << 3, top bits: A0 = V6 & 3, A1 = V7 >> 2 | V6 >> 2 << 1, A2 = V7
 * & 3 4 bits  Ai = V[i] | V[i+4] << 4 5 bits  Ai = V[i], top bits: A0 = V5 & 7, A2 = V6 & 7, A4 =
 * V7 & 7, A1 = V7 >> 3 & 1 | V5 >> 3 << 1, A3 = V7 >> 4 | V6 >> 3 << 1 6 bits  for k = 0, 4: A =
 * V[k], V[k+1], V[k+2], top bits: V[k+3] >> 4, V[k+3] >> 2 & 3, V[k+3] & 3 8 bits  Ai = V[i]
 *
 * Heads: float16 d of the 8 rows; for Q4_1 Q5_1 m, for Q2_K Q4_K Q5_K dmin of the 8 rows; then for
 * the K types the row's scale bytes as in the file, dword k of all rows after dword k - 1. */
#ifndef TN_REPACK_H
#define TN_REPACK_H

#include "kernels.h"

typedef struct tn_r8_shape {
    int32_t cols;   /* of a unit */
    int32_t head;   /* bytes before the first step */
    int32_t bits;   /* of a quant; a step takes 32 * bits bytes */
    int32_t scales; /* offset of the scale dwords in the head (K types) */
} tn_r8_shape;

/* The shape of a type's units; cols = 0 if the type has no R8 layout. Folds to constants. */
static inline tn_r8_shape tn_r8_shape_of(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q4_0: return (tn_r8_shape){32, 16, 4, 0};
    case TN_TYPE_Q4_1: return (tn_r8_shape){32, 32, 4, 0};
    case TN_TYPE_Q5_0: return (tn_r8_shape){32, 16, 5, 0};
    case TN_TYPE_Q5_1: return (tn_r8_shape){32, 32, 5, 0};
    case TN_TYPE_Q8_0: return (tn_r8_shape){32, 16, 8, 0};
    case TN_TYPE_Q2_K: return (tn_r8_shape){256, 160, 2, 32};
    case TN_TYPE_Q3_K: return (tn_r8_shape){256, 112, 3, 16};
    case TN_TYPE_Q4_K: return (tn_r8_shape){256, 128, 4, 32};
    case TN_TYPE_Q5_K: return (tn_r8_shape){256, 128, 5, 32};
    case TN_TYPE_Q6_K: return (tn_r8_shape){256, 144, 6, 16};
    default: return (tn_r8_shape){0, 0, 0, 0};
    }
}

/* Bytes of a unit: 8 blocks of the file. */
static inline int64_t tn_r8_unit_bytes(tn_r8_shape s)
{
    return s.head + (int64_t)(s.cols / 32) * 32 * s.bits;
}

/* 32 columns of one row in plain form: column c has the value d[c / 16] * q[c] - m[c / 16]. */
typedef struct tn_r8_step {
    int16_t q[32];
    float d[2], m[2];
} tn_r8_step;

/* Reads step `step` (columns 32 * step ...) of row `row` (0..7) of a group: the reference for what
 * the bytes mean. */
void tn_r8_read(uint32_t type, const void *group, int64_t step, int row, tn_r8_step *out);

/* The scalar tn_matmul_fn of every type. */
void tn_r8_matmul(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride, int64_t row0,
                  int64_t row1, void *scratch);

/* tn_repack_fn of each type, see kernels.h; repack_rows.c. */
tn_repack_fn tn_r8_repack(uint32_t type);

#endif
