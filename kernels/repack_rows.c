/* File rows -> groups of interleaved rows. Plain C on 64-bit words: eight quants at a time. */
#include "repack_head.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EACH(byte) (0x0101010101010101u * (byte))

INLINE uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* `width` bits at `shift` of each byte, moved to bit 0. */
INLINE uint64_t field(uint64_t v, int shift, int width)
{
    return v >> shift & EACH((1u << width) - 1);
}

/* Bit i of b as byte i, 0 or 1. */
INLINE uint64_t spread(uint8_t b)
{
    uint64_t v = EACH(b) & 0x8040201008040201u; /* bit i of byte i */
    return (v + EACH(0x7f)) >> 7 & EACH(1);
}

/* Nibbles as in Q4_0, and the fifth bits where qh is given. */
INLINE void small_quants(const uint8_t *qs, const uint8_t *qh, uint64_t c[4])
{
    for (int i = 0; i < 2; i++) {
        uint64_t v = load64(qs + 8 * i);
        c[i] = field(v, 0, 4);
        c[i + 2] = field(v, 4, 4);
    }
    for (int i = 0; qh && i < 4; i++)
        c[i] |= spread(qh[i]) << 4;
}

/* Quants of columns 32 * step .. + 31 of a file block, 8 in each word. */
INLINE void quants(uint32_t type, const uint8_t *b, int step, uint64_t c[4])
{
    int n = step / 4, j = step % 4;
    switch (type) {
    case TN_TYPE_Q4_0: small_quants(b + 2, NULL, c); return;
    case TN_TYPE_Q4_1: small_quants(b + 4, NULL, c); return;
    case TN_TYPE_Q5_0: small_quants(b + 6, b + 2, c); return;
    case TN_TYPE_Q5_1: small_quants(b + 8, b + 4, c); return;
    case TN_TYPE_Q8_0: memcpy(c, b + 2, 32); return;
    default: break;
    }
    for (int i = 0; i < 4; i++) {
        int l = 8 * i;
        switch (type) {
        case TN_TYPE_Q2_K:
            c[i] = field(load64(b + offsetof(tn_block_q2_k, qs) + 32 * n + l), 2 * j, 2);
            break;
        case TN_TYPE_Q3_K:
            c[i] = field(load64(b + offsetof(tn_block_q3_k, qs) + 32 * n + l), 2 * j, 2) |
                   field(load64(b + offsetof(tn_block_q3_k, hmask) + l), step, 1) << 2;
            break;
        case TN_TYPE_Q4_K:
            c[i] = field(load64(b + offsetof(tn_block_q4_k, qs) + 32 * (step / 2) + l),
                         4 * (step % 2), 4);
            break;
        case TN_TYPE_Q5_K:
            c[i] = field(load64(b + offsetof(tn_block_q5_k, qs) + 32 * (step / 2) + l),
                         4 * (step % 2), 4) |
                   field(load64(b + offsetof(tn_block_q5_k, qh) + l), step, 1) << 4;
            break;
        default: /* Q6_K */
            c[i] = field(load64(b + offsetof(tn_block_q6_k, ql) + 64 * n + 32 * (j % 2) + l),
                         4 * (j / 2), 4) |
                   field(load64(b + offsetof(tn_block_q6_k, qh) + 32 * n + l), 2 * j, 2) << 4;
            break;
        }
    }
}

/* The row's dwords of quant vectors 4 * half + 0..3. R8: from two words that lie 16 columns apart;
 * R16: from two neighbours. */
INLINE void dwords(int32_t rows, uint32_t v[4], uint64_t low, uint64_t high)
{
    for (int i = 0; i < 4; i++)
        v[i] = rows == 8
                   ? (uint32_t)(low >> 16 * i & 0xffff) | (uint32_t)(high >> 16 * i & 0xffff) << 16
                   : (uint32_t)((i < 2 ? low : high) >> 32 * (i % 2));
}

/* `width` bits at `shift` of each byte of v, moved to bit `to`. */
INLINE uint32_t bits(uint32_t v, int shift, int width, int to)
{
    return (v >> shift & 0x01010101u * ((1u << width) - 1)) << to;
}

/* Writes a row's dwords of one step; dst is the row's place in the first vector. */
INLINE void place(int32_t rows, int width, uint8_t *dst, const uint64_t c[4])
{
    const int far = rows == 8 ? 2 : 1; /* from a word to its partner */
    uint32_t v[8], a[8];
    if (width == 4 && rows == 8) { /* packing before splitting saves half of the work */
        dwords(rows, a, c[0] | c[1] << 4, c[2] | c[3] << 4);
    } else if (width == 4) {
        dwords(rows, a, c[0] | c[2] << 4, c[1] | c[3] << 4);
    } else {
        dwords(rows, v, c[0], c[far]);
        dwords(rows, v + 4, c[3 - far], c[3]);
    }
    switch (width) {
    case 2:
        for (int i = 0; i < 2; i++)
            a[i] = v[4 * i] | v[4 * i + 1] << 2 | v[4 * i + 2] << 4 | v[4 * i + 3] << 6;
        break;
    case 3:
        a[0] = v[0] | v[1] << 3 | bits(v[6], 0, 2, 6);
        a[1] = v[2] | v[3] << 3 | bits(v[7], 2, 1, 6) | bits(v[6], 2, 1, 7);
        a[2] = v[4] | v[5] << 3 | bits(v[7], 0, 2, 6);
        break;
    case 5:
        a[0] = v[0] | bits(v[5], 0, 3, 5);
        a[1] = v[1] | bits(v[7], 3, 1, 5) | bits(v[5], 3, 2, 6);
        a[2] = v[2] | bits(v[6], 0, 3, 5);
        a[3] = v[3] | bits(v[7], 4, 1, 5) | bits(v[6], 3, 2, 6);
        a[4] = v[4] | bits(v[7], 0, 3, 5);
        break;
    case 6:
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < 3; i++)
                a[3 * k + i] = v[4 * k + i] | bits(v[4 * k + 3], 4 - 2 * i, 2, 6);
        break;
    case 8: memcpy(a, v, sizeof v); break;
    default: break;
    }
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        memcpy(dst + 4 * rows * i, a + i, 4);
}

/* One block of row r into its unit. */
INLINE void put_block(uint32_t type, int32_t rows, uint8_t *unit, const uint8_t *b, int64_t r)
{
    const tn_group_shape s = tn_group_shape_of(type, rows);
    tn_put_head(type, rows, unit, b, r);
#pragma GCC unroll 8
    for (int j = 0; j < s.cols / 32; j++) {
        uint64_t c[4];
        quants(type, b, j, c);
        for (int i = 0; type == TN_TYPE_Q8_0 && rows == 16 && i < 4; i++)
            c[i] ^= EACH(0x80); /* + 128 */
        place(rows, s.bits, unit + s.head + tn_step_bytes(s) * j + 4 * r, c);
    }
}

INLINE void repack(uint32_t type, int32_t rows, void *dst, const void *src, int64_t n_rows,
                   int64_t cols)
{
    const tn_group_shape s = tn_group_shape_of(type, rows);
    const int64_t unit = tn_unit_bytes(s), block = unit / rows, n = cols / s.cols;
    static const uint8_t zero[sizeof(tn_block_q8_0) * 8];
    for (int64_t u = 0; u < n; u++)
        for (int64_t r = 0; r < rows; r++)
            put_block(type, rows, (uint8_t *)dst + unit * u,
                      r < n_rows ? (const uint8_t *)src + (r * n + u) * block : zero, r);
}

#define REPACK(name, type)                                                                         \
    static void r8_##name(void *dst, const void *src, int64_t n_rows, int64_t cols)                \
    {                                                                                              \
        repack(type, 8, dst, src, n_rows, cols);                                                   \
    }                                                                                              \
    static void r16_##name(void *dst, const void *src, int64_t n_rows, int64_t cols)               \
    {                                                                                              \
        repack(type, 16, dst, src, n_rows, cols);                                                  \
    }
TN_INTERLEAVED_TYPES(REPACK)

#define CASE(name, type) case type: return r8 ? r8_##name : r16_##name;
tn_repack_fn tn_group_repack(tn_layout layout, uint32_t type)
{
    const bool r8 = layout == TN_LAYOUT_R8;
    switch (type) {
        TN_INTERLEAVED_TYPES(CASE)
    default: return NULL;
    }
}
