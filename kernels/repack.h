/* The interleaved weight layouts, TN_LAYOUT_R8 and TN_LAYOUT_R16.
 *
 * A matrix is a sequence of groups of 8 or 16 rows, the last one padded with zero rows; a group
 * takes exactly what its rows take in the file. A group is a sequence of *units*: what its rows
 * have in one block of the file's type (32 columns, 256 for the K types). A unit is a head (the
 * rows' scales of each kind) and one *step* per 32 columns.
 *
 * A step holds the quants as vectors of one dword a row, dword r of a vector being row r, so that
 * no kernel ever sums across a vector and an activation operand is one broadcast dword. A step has
 * eight quant vectors V0..V7: R8: byte e of a row's dword in Vj is column 16 * (e / 2) + 2 * j + e
 * % 2. The even int16 lanes of a vpmaddubsw are of the first 16 columns and the odd ones of the
 * last 16, so that one vpmaddwd applies the two integer scales of a tn_q8 (whose q the kernels
 * permute in the same way). R16: column 4 * j + e, for vpdpbusd: a sum is of V0..V3 or V4..V7, the
 * halves of a tn_q8. Its first factor is unsigned, so Q8_0 is stored with 128 added.
 *
 * They are stored in `bits` vectors A0..:
 *   2 bits  Ai = V[4i] | V[4i+1] << 2 | V[4i+2] << 4 | V[4i+3] << 6
 *   3 bits  Ai = V[2i] | V[2i+1] << 3, top bits: A0 = V6 & 3, A1 = V7 >> 2 | V6 >> 2 << 1, A2 = V7
 * & 3 4 bits  Ai = V[i] | V[i+4] << 4 5 bits  Ai = V[i], top bits: A0 = V5 & 7, A2 = V6 & 7, A4 =
 * V7 & 7, A1 = V7 >> 3 & 1 | V5 >> 3 << 1, A3 = V7 >> 4 | V6 >> 3 << 1 6 bits  for k = 0, 4: A =
 * V[k], V[k+1], V[k+2], top bits: V[k+3] >> 4, V[k+3] >> 2 & 3, V[k+3] & 3 8 bits  Ai = V[i]
 *
 * Heads: float16 d of the rows; for Q4_1 Q5_1 m, for Q2_K Q4_K Q5_K dmin of the rows; then for the
 * K types the row's scale bytes as in the file, dword k of all rows after dword k - 1. */
#ifndef TN_REPACK_H
#define TN_REPACK_H

#include "kernels.h"

/* X(name, type) for every type that has interleaved layouts. */
#define TN_INTERLEAVED_TYPES(X)                                                                    \
    X(q4_0, TN_TYPE_Q4_0)                                                                          \
    X(q4_1, TN_TYPE_Q4_1)                                                                          \
    X(q5_0, TN_TYPE_Q5_0)                                                                          \
    X(q5_1, TN_TYPE_Q5_1)                                                                          \
    X(q8_0, TN_TYPE_Q8_0)                                                                          \
    X(q2_k, TN_TYPE_Q2_K)                                                                          \
    X(q3_k, TN_TYPE_Q3_K)                                                                          \
    X(q4_k, TN_TYPE_Q4_K)                                                                          \
    X(q5_k, TN_TYPE_Q5_K)                                                                          \
    X(q6_k, TN_TYPE_Q6_K)

/* A slab-major matrix is a sequence of such matrices, see tn_weight. */

/* Functions that take `type` and `rows` (8 or 16, of a group) fold to constants where these are. */
typedef struct tn_group_shape {
    int32_t rows;   /* of the group */
    int32_t cols;   /* of a unit */
    int32_t head;   /* bytes before the first step */
    int32_t bits;   /* of a quant; a step has so many vectors of 4 * rows bytes */
    int32_t scales; /* offset of the scale dwords in the head (K types) */
} tn_group_shape;

/* cols = 0 if the type has no interleaved layout. */
static inline tn_group_shape tn_group_shape_of(uint32_t type, int32_t rows)
{
    switch (type) {
    case TN_TYPE_Q4_0: return (tn_group_shape){rows, 32, 2 * rows, 4, 0};
    case TN_TYPE_Q4_1: return (tn_group_shape){rows, 32, 4 * rows, 4, 0};
    case TN_TYPE_Q5_0: return (tn_group_shape){rows, 32, 2 * rows, 5, 0};
    case TN_TYPE_Q5_1: return (tn_group_shape){rows, 32, 4 * rows, 5, 0};
    case TN_TYPE_Q8_0: return (tn_group_shape){rows, 32, 2 * rows, 8, 0};
    case TN_TYPE_Q2_K: return (tn_group_shape){rows, 256, 20 * rows, 2, 4 * rows};
    case TN_TYPE_Q3_K: return (tn_group_shape){rows, 256, 14 * rows, 3, 2 * rows};
    case TN_TYPE_Q4_K: return (tn_group_shape){rows, 256, 16 * rows, 4, 4 * rows};
    case TN_TYPE_Q5_K: return (tn_group_shape){rows, 256, 16 * rows, 5, 4 * rows};
    case TN_TYPE_Q6_K: return (tn_group_shape){rows, 256, 18 * rows, 6, 2 * rows};
    default: return (tn_group_shape){rows, 0, 0, 0, 0};
    }
}

static inline int64_t tn_step_bytes(tn_group_shape s)
{
    return 4 * (int64_t)s.rows * s.bits;
}
/* Bytes of a unit: as many blocks of the file as the group has rows. */
static inline int64_t tn_unit_bytes(tn_group_shape s)
{
    return s.head + s.cols / 32 * tn_step_bytes(s);
}

/* Blocks (of 32 columns) that lie one behind the other in every group of rows: those from the one
 * asked for up to `end`, in group g of the matrix from at + g * next on. */
typedef struct tn_group_run {
    const uint8_t *at;
    int64_t next, end;
} tn_group_run;

/* The run that begins at block b, the first of a unit, of a matrix in a layout of groups of `rows`
 * rows. Constant time; any thread. */
static inline tn_group_run tn_group_run_at(uint32_t type, int32_t rows, const tn_weight *w,
                                           int64_t b)
{
    const tn_group_shape s = tn_group_shape_of(type, rows);
    const int64_t blocks = w->cols / 32, per = s.cols / 32, unit = tn_unit_bytes(s);
    const uint8_t *data = (const uint8_t *)w->data;
    if (!w->slab)
        return (tn_group_run){data + b / per * unit, rows * (int64_t)w->row_bytes, blocks};
    const int64_t slab = w->slab / 32, first = b / slab * slab;
    const int64_t end = first + slab < blocks ? first + slab : blocks;
    const int64_t next = (end - first) / per * unit;
    return (tn_group_run){data + first / per * unit * (w->slab_rows / rows) +
                              w->row0 / rows * next + (b - first) / per * unit,
                          next, end};
}

/* What is added to a type's quants to make them unsigned; Q8_0 is stored so in R16 only. */
static inline int tn_quant_offset(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q4_0: return 8;
    case TN_TYPE_Q5_0: return 16;
    case TN_TYPE_Q8_0: return 128;
    case TN_TYPE_Q3_K: return 4;
    case TN_TYPE_Q6_K: return 32;
    default: return 0;
    }
}

/* 32 columns of one row in plain form: column c has the value d[c / 16] * q[c] - m[c / 16]. */
typedef struct tn_group_step {
    int16_t q[32];
    float d[2], m[2];
} tn_group_step;

/* Reads step `step` (columns 32 * step ...) of row `row` of a group of `rows` rows: the reference
 * for what the bytes mean. */
void tn_group_read(uint32_t type, int32_t rows, const void *group, int64_t step, int row,
                   tn_group_step *out);

/* Puts a group in R8, the one of `row`, into a slab-major matrix, whose data is written. */
void tn_group_to_slabs(const tn_weight *w, int64_t row, const void *group);

/* The scalar tn_matmul_fn of every type and interleaved layout. */
void tn_group_matmul(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride, int64_t row0,
                     int64_t row1, void *scratch);

/* tn_repack_fn of a type, see kernels.h; repack_rows.c. */
tn_repack_fn tn_group_repack(tn_layout layout, uint32_t type);

#endif
