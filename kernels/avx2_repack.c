/* File rows -> groups of interleaved rows, AVX2: a step is an 8 x 8 transposition of dwords
 * between unpacking the rows and packing the quant vectors. */
#include "avx2_r8.h"
#include "repack_head.h"

INLINE vec load_nibbles(const uint8_t *qs)
{
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)qs);
    return bits(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), 0, 15);
}

/* 16 in every byte whose bit in qh is set. */
INLINE vec fifth_bits(const uint8_t *qh)
{
    const vec byte =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const vec bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    vec b = _mm256_and_si256(_mm256_shuffle_epi8(broadcast(qh), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(b, bit), _mm256_set1_epi8(16));
}

/* Bits `shift` .. of 32 bytes at p, moved to bit `to`. */
INLINE vec field(const uint8_t *p, int shift, int mask, int to)
{
    return _mm256_slli_epi16(bits(load(p), shift, mask), to);
}

/* The quants of columns 32 * step .. + 31 of a file block. */
INLINE vec row_quants(uint32_t type, const uint8_t *b, int step)
{
    const int n = step / 4, j = step % 4;
    switch (type) {
    case TN_TYPE_Q4_0: return load_nibbles(b + offsetof(tn_block_q4_0, qs));
    case TN_TYPE_Q4_1: return load_nibbles(b + offsetof(tn_block_q4_1, qs));
    case TN_TYPE_Q5_0:
        return _mm256_or_si256(load_nibbles(b + offsetof(tn_block_q5_0, qs)),
                               fifth_bits(b + offsetof(tn_block_q5_0, qh)));
    case TN_TYPE_Q5_1:
        return _mm256_or_si256(load_nibbles(b + offsetof(tn_block_q5_1, qs)),
                               fifth_bits(b + offsetof(tn_block_q5_1, qh)));
    case TN_TYPE_Q8_0: return load(b + offsetof(tn_block_q8_0, qs));
    case TN_TYPE_Q2_K: return field(b + offsetof(tn_block_q2_k, qs) + 32 * n, 2 * j, 3, 0);
    case TN_TYPE_Q3_K:
        return _mm256_or_si256(field(b + offsetof(tn_block_q3_k, qs) + 32 * n, 2 * j, 3, 0),
                               field(b + offsetof(tn_block_q3_k, hmask), step, 1, 2));
    case TN_TYPE_Q4_K:
        return field(b + offsetof(tn_block_q4_k, qs) + 32 * (step / 2), 4 * (step % 2), 15, 0);
    case TN_TYPE_Q5_K:
        return _mm256_or_si256(
            field(b + offsetof(tn_block_q5_k, qs) + 32 * (step / 2), 4 * (step % 2), 15, 0),
            field(b + offsetof(tn_block_q5_k, qh), step, 1, 4));
    default: /* Q6_K */
        return _mm256_or_si256(
            field(b + offsetof(tn_block_q6_k, ql) + 64 * n + 32 * (j % 2), 4 * (j / 2), 15, 0),
            field(b + offsetof(tn_block_q6_k, qh) + 32 * n, 2 * j, 3, 4));
    }
}

/* R8: dword j becomes columns 2j, 2j + 1, 16 + 2j, 17 + 2j. */
INLINE vec column_order(vec q)
{
    const vec words = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return _mm256_shuffle_epi8(_mm256_permute4x64_epi64(q, 0xd8), words);
}

/* v[j] dword r = x[r] dword j. */
INLINE void transpose(const vec x[8], vec v[8])
{
    vec a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
        v[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
}

INLINE vec left(vec v, int n)
{
    return _mm256_slli_epi16(v, n);
}
/* `mask` of v >> shift, moved to bit `to`. */
INLINE vec top(vec v, int shift, int mask, int to)
{
    return left(bits(v, shift, mask), to);
}

/* Packs the quant vectors of a step and stores them; see repack.h for the order of bits. */
INLINE void store_step(int32_t rows, int width, uint8_t *p, const vec v[8])
{
    vec a[8];
    switch (width) {
    case 2:
        for (int i = 0; i < 2; i++)
            a[i] = _mm256_or_si256(or3(v[4 * i], left(v[4 * i + 1], 2), left(v[4 * i + 2], 4)),
                                   left(v[4 * i + 3], 6));
        break;
    case 3:
        a[0] = or3(v[0], left(v[1], 3), top(v[6], 0, 3, 6));
        a[1] = _mm256_or_si256(or3(v[2], left(v[3], 3), top(v[7], 2, 1, 6)), top(v[6], 2, 1, 7));
        a[2] = or3(v[4], left(v[5], 3), top(v[7], 0, 3, 6));
        break;
    case 4:
        for (int i = 0; i < 4; i++)
            a[i] = _mm256_or_si256(v[i], left(v[i + 4], 4));
        break;
    case 5:
        a[0] = _mm256_or_si256(v[0], top(v[5], 0, 7, 5));
        a[1] = or3(v[1], top(v[7], 3, 1, 5), top(v[5], 3, 3, 6));
        a[2] = _mm256_or_si256(v[2], top(v[6], 0, 7, 5));
        a[3] = or3(v[3], top(v[7], 4, 1, 5), top(v[6], 3, 3, 6));
        a[4] = _mm256_or_si256(v[4], top(v[7], 0, 7, 5));
        break;
    case 6:
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < 3; i++)
                a[3 * k + i] = _mm256_or_si256(v[4 * k + i], top(v[4 * k + 3], 4 - 2 * i, 3, 6));
        break;
    default:
        for (int i = 0; i < 8; i++)
            a[i] = v[i];
        break;
    }
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        _mm256_storeu_si256((__m256i *)(void *)(p + 4 * rows * i), a[i]);
}

/* Step j of 8 rows, whose blocks lie `stride` bytes apart, to their place in a group's first
 * vector. */
INLINE void repack_step(uint32_t type, int32_t rows, int j, uint8_t *out, const uint8_t *b,
                        int64_t stride)
{
    vec x[8], v[8];
#pragma GCC unroll 8
    for (int64_t r = 0; r < 8; r++) {
        x[r] = row_quants(type, b + r * stride, j);
        if (rows == 8)
            x[r] = column_order(x[r]);
        else if (type == TN_TYPE_Q8_0)
            x[r] = _mm256_xor_si256(x[r], _mm256_set1_epi8((char)0x80));
    }
    transpose(x, v);
    store_step(rows, tn_group_shape_of(type, rows).bits, out, v);
}

INLINE void repack(uint32_t type, int32_t rows, void *dst, const void *src, int64_t n_rows,
                   int64_t cols)
{
    if (n_rows < rows) {
        tn_group_repack(rows == 8 ? TN_LAYOUT_R8 : TN_LAYOUT_R16, type)(dst, src, n_rows, cols);
        return;
    }
    const tn_group_shape s = tn_group_shape_of(type, rows);
    const int64_t unit_bytes = tn_unit_bytes(s), block = unit_bytes / rows, n = cols / s.cols;
    const uint8_t *b = src;
    uint8_t *unit = dst;
    const char *next = (const char *)src + n * unit_bytes;
    for (int64_t u = 0; u < n; u++, unit += unit_bytes, b += block) {
        for (int64_t at = 0; at < unit_bytes; at += 64)
            _mm_prefetch(next + u * unit_bytes + at, _MM_HINT_T1);
        for (int64_t r = 0; r < rows; r++)
            tn_put_head(type, rows, unit, b + r * n * block, r);
        for (int64_t r = 0; r < rows; r += 8)
#pragma GCC unroll 8
            for (int j = 0; j < s.cols / 32; j++)
                repack_step(type, rows, j, unit + s.head + tn_step_bytes(s) * j + 4 * r,
                            b + r * n * block, n * block);
    }
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

#define SET(name, type) r8[type] = r8_##name, r16[type] = r16_##name;
void tn_repack_avx2(tn_repack_fn *r8, tn_repack_fn *r16)
{
    TN_INTERLEAVED_TYPES(SET)
}
