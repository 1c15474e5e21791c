/* On-disk blocks of the quantised types tenon computes with, byte for byte as in the file.
 * d, m and dmin are float16 bits; every member is little-endian. Mapped data may be unaligned by
 * file corruption only, but rows of odd block sizes are 2-byte aligned at best: read wider values
 * with memcpy.
 * Source: the public block layouts of ggml (ggml-common.h). */
#ifndef TN_BLOCKS_H
#define TN_BLOCKS_H

#include <stdint.h>

enum {
    TN_QK = 32,   /* elements of a small block */
    TN_QK_K = 256 /* elements of a super-block */
};

/* value = d * (q - 8); element j in the low nibble of qs[j], element j + 16 in the high one */
typedef struct tn_block_q4_0 {
    uint16_t d;
    uint8_t qs[16];
} tn_block_q4_0;
_Static_assert(sizeof(tn_block_q4_0) == 18, "Q4_0");

/* value = d * q + m; nibbles as in Q4_0 */
typedef struct tn_block_q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
} tn_block_q4_1;
_Static_assert(sizeof(tn_block_q4_1) == 20, "Q4_1");

/* value = d * (q - 16); nibbles as in Q4_0, bit j of qh is the fifth bit of element j */
typedef struct tn_block_q5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
} tn_block_q5_0;
_Static_assert(sizeof(tn_block_q5_0) == 22, "Q5_0");

/* value = d * q + m; bits as in Q5_0 */
typedef struct tn_block_q5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
} tn_block_q5_1;
_Static_assert(sizeof(tn_block_q5_1) == 24, "Q5_1");

/* value = d * q */
typedef struct tn_block_q8_0 {
    uint16_t d;
    int8_t qs[32];
} tn_block_q8_0;
_Static_assert(sizeof(tn_block_q8_0) == 34, "Q8_0");

/* Activation format of other engines; never in files. s = d * sum of qs */
typedef struct tn_block_q8_1 {
    uint16_t d, s;
    int8_t qs[32];
} tn_block_q8_1;
_Static_assert(sizeof(tn_block_q8_1) == 36, "Q8_1");

/* Super-blocks below: element e = 128 * n + 32 * j + l, with n < 2, j < 4, l < 32.
 *
 * value = d * (scales[e / 16] & 15) * q - dmin * (scales[e / 16] >> 4);
 * q = bits 2 j and 2 j + 1 of qs[32 * n + l] */
typedef struct tn_block_q2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, dmin;
} tn_block_q2_k;
_Static_assert(sizeof(tn_block_q2_k) == 84, "Q2_K");

/* value = d * (scale[e / 16] - 32) * (q - 4); the low two bits of q as in Q2_K, its third is bit
 * 4 n + j of hmask[l]. Scale i has 6 bits: the low four in nibble i / 8 of scales[i % 8], the high
 * two at bit 2 * (i / 4) of scales[8 + i % 4] */
typedef struct tn_block_q3_k {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
} tn_block_q3_k;
_Static_assert(sizeof(tn_block_q3_k) == 110, "Q3_K");

/* value = d * scale[e / 32] * q - dmin * min[e / 32]; q = nibble (e / 32) % 2 of
 * qs[32 * (e / 64) + l]. For i < 4 scale i = scales[i] & 63 and min i = scales[4 + i] & 63; for
 * i >= 4 the low four bits are the nibbles (scale low, min high) of scales[4 + i], the high two the
 * top bits of scales[i - 4] and scales[i] */
typedef struct tn_block_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
} tn_block_q4_k;
_Static_assert(sizeof(tn_block_q4_k) == 144, "Q4_K");

/* As Q4_K; bit e / 32 of qh[l] is the fifth bit of q */
typedef struct tn_block_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
} tn_block_q5_k;
_Static_assert(sizeof(tn_block_q5_k) == 176, "Q5_K");

/* value = d * scales[e / 16] * (q - 32); the low four bits of q are nibble j / 2 of
 * ql[64 * n + 32 * (j % 2) + l], the high two are bits 2 j and 2 j + 1 of qh[32 * n + l] */
typedef struct tn_block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
} tn_block_q6_k;
_Static_assert(sizeof(tn_block_q6_k) == 210, "Q6_K");

/* Activation format of other engines; never in files. bsums[i] = sum of 16 qs */
typedef struct tn_block_q8_k {
    float d;
    int8_t qs[256];
    int16_t bsums[16];
} tn_block_q8_k;
_Static_assert(sizeof(tn_block_q8_k) == 292, "Q8_K");

#endif
