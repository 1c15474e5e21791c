/* Reading R8 units in AVX2 registers, and multiplying a step by one activation block.
 * Every function is inlined with a constant type, so that all switches fold away. */
#ifndef TN_AVX2_R8_H
#define TN_AVX2_R8_H

#include "repack.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m256i vec;

/* What a unit's head says, lane = row. Step j of a type with one scale per 32 columns is worth
 * d[j] * q + m[j]; of a type with one per 16 columns, d[0] * scale * q + m[2 * j + half], where
 * pair[j] holds the two integer scales of a row as neighbouring int16. */
typedef struct r8_head {
    __m256 d[8], m[16];
    vec pair[8];
} r8_head;

INLINE bool scaled_by_16(uint32_t type)
{
    return type == TN_TYPE_Q2_K || type == TN_TYPE_Q3_K || type == TN_TYPE_Q6_K;
}

INLINE vec load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
INLINE __m256 load_halves(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE vec broadcast(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}
/* (v >> shift) & mask, or (v << -shift) & mask, in every byte. */
INLINE vec bits(vec v, int shift, int mask)
{
    vec s = shift > 0 ? _mm256_srli_epi16(v, shift) : _mm256_slli_epi16(v, -shift);
    return _mm256_and_si256(s, _mm256_set1_epi8((char)mask));
}
INLINE vec or3(vec a, vec b, vec c)
{
    return _mm256_or_si256(_mm256_or_si256(a, b), c);
}

/* ---- heads ------------------------------------------------------------------------------------- */

/* Byte k of every dword as a float. */
INLINE __m256 byte_float(vec v, int k)
{
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(v, 8 * k), _mm256_set1_epi32(0xff)));
}

/* Q4_K, Q5_K: see tn_block_q4_k for the packing. */
INLINE void head_k32(const uint8_t *u, r8_head *h)
{
    vec s0 = load(u + 32), s1 = load(u + 64), s2 = load(u + 96);
    vec scale[2] = {bits(s0, 0, 63), _mm256_or_si256(bits(s2, 0, 15), bits(s0, 2, 0x30))};
    vec min[2] = {bits(s1, 0, 63), _mm256_or_si256(bits(s2, 4, 15), bits(s1, 2, 0x30))};
    __m256 d = load_halves(u);
    __m256 dmin = _mm256_sub_ps(_mm256_setzero_ps(), load_halves(u + 16));
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        h->d[j] = _mm256_mul_ps(d, byte_float(scale[j / 4], j % 4));
        h->m[j] = _mm256_mul_ps(dmin, byte_float(min[j / 4], j % 4));
    }
}

/* Bytes 2 * k and 2 * k + 1 of every dword as signed int16 neighbours. */
INLINE vec byte_pair(vec v, int k)
{
    vec low = k ? _mm256_and_si256(_mm256_srli_epi32(v, 8), _mm256_set1_epi32(0xff00))
                : _mm256_slli_epi32(v, 8);
    vec high = k ? v : _mm256_slli_epi32(v, 16);
    return _mm256_srai_epi16(_mm256_blend_epi16(low, high, 0xaa), 8);
}

/* Both int16 of every dword as floats. */
INLINE void pair_floats(vec pair, __m256 f[2])
{
    f[0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(pair, 16), 16));
    f[1] = _mm256_cvtepi32_ps(_mm256_srai_epi32(pair, 16));
}

/* Scale bytes (signed) and what the minima are multiples of (unit) of a type scaled by 16. */
INLINE void head_k16(const vec scale[4], const vec min[4], __m256 unit, r8_head *h)
{
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m256 f[2];
        h->pair[j] = byte_pair(scale[j / 2], j % 2);
        pair_floats(byte_pair(min[j / 2], j % 2), f);
        h->m[2 * j] = _mm256_mul_ps(unit, f[0]);
        h->m[2 * j + 1] = _mm256_mul_ps(unit, f[1]);
    }
}

INLINE void head_q2_k(const uint8_t *u, r8_head *h)
{
    vec scale[4], min[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        vec s = load(u + 32 + 32 * k);
        scale[k] = bits(s, 0, 15);
        min[k] = bits(s, 4, 15);
    }
    h->d[0] = load_halves(u);
    head_k16(scale, min, _mm256_sub_ps(_mm256_setzero_ps(), load_halves(u + 16)), h);
}

INLINE void head_q3_k(const uint8_t *u, r8_head *h)
{
    vec s0 = load(u + 16), s1 = load(u + 48), s2 = load(u + 80), scale[4];
    scale[0] = _mm256_or_si256(bits(s0, 0, 15), bits(s2, -4, 0x30));
    scale[1] = _mm256_or_si256(bits(s1, 0, 15), bits(s2, -2, 0x30));
    scale[2] = _mm256_or_si256(bits(s0, 4, 15), bits(s2, 0, 0x30));
    scale[3] = _mm256_or_si256(bits(s1, 4, 15), bits(s2, 2, 0x30));
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) scale[k] = _mm256_sub_epi8(scale[k], _mm256_set1_epi8(32));
    h->d[0] = load_halves(u);
    head_k16(scale, scale, _mm256_mul_ps(h->d[0], _mm256_set1_ps(-4)), h);
}

INLINE void head_q6_k(const uint8_t *u, r8_head *h)
{
    vec scale[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) scale[k] = load(u + 16 + 32 * k);
    h->d[0] = load_halves(u);
    head_k16(scale, scale, _mm256_mul_ps(h->d[0], _mm256_set1_ps(-32)), h);
}

INLINE void read_head(uint32_t type, const uint8_t *u, r8_head *h)
{
    switch (type) {
    case TN_TYPE_Q2_K: head_q2_k(u, h); return;
    case TN_TYPE_Q3_K: head_q3_k(u, h); return;
    case TN_TYPE_Q4_K:
    case TN_TYPE_Q5_K: head_k32(u, h); return;
    case TN_TYPE_Q6_K: head_q6_k(u, h); return;
    default: break;
    }
    h->d[0] = load_halves(u);
    if (type == TN_TYPE_Q4_1 || type == TN_TYPE_Q5_1) h->m[0] = load_halves(u + 16);
    if (type == TN_TYPE_Q4_0) h->m[0] = _mm256_mul_ps(h->d[0], _mm256_set1_ps(-8));
    if (type == TN_TYPE_Q5_0) h->m[0] = _mm256_mul_ps(h->d[0], _mm256_set1_ps(-16));
}

/* ---- quants ------------------------------------------------------------------------------------ */

/* The eight quant vectors of a step, unsigned except for Q8_0. */
INLINE void read_quants(int width, const uint8_t *p, vec v[8])
{
    vec a[8];
#pragma GCC unroll 8
    for (int i = 0; i < width; i++) a[i] = load(p + 32 * i);
    switch (width) {
    case 2:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) v[j] = bits(a[j / 4], 2 * (j % 4), 3);
        break;
    case 3:
#pragma GCC unroll 8
        for (int j = 0; j < 6; j++) v[j] = bits(a[j / 2], 3 * (j % 2), 7);
        v[6] = _mm256_or_si256(bits(a[0], 6, 3), bits(a[1], 5, 4));
        v[7] = _mm256_or_si256(bits(a[2], 6, 3), bits(a[1], 4, 4));
        break;
    case 4:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) v[j] = bits(a[j % 4], 4 * (j / 4), 15);
        break;
    case 5:
#pragma GCC unroll 8
        for (int j = 0; j < 5; j++) v[j] = bits(a[j], 0, 31);
        v[5] = _mm256_or_si256(bits(a[0], 5, 7), bits(a[1], 3, 0x18));
        v[6] = _mm256_or_si256(bits(a[2], 5, 7), bits(a[3], 3, 0x18));
        v[7] = or3(bits(a[4], 5, 7), bits(a[1], 2, 8), bits(a[3], 1, 16));
        break;
    case 6:
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            const vec *s = a + 3 * k;
            v[4 * k] = bits(s[0], 0, 63);
            v[4 * k + 1] = bits(s[1], 0, 63);
            v[4 * k + 2] = bits(s[2], 0, 63);
            v[4 * k + 3] = or3(bits(s[0], 2, 0x30), bits(s[1], 4, 12), bits(s[2], 6, 3));
        }
        break;
    default:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) v[j] = a[j];
        break;
    }
}

/* ---- products ---------------------------------------------------------------------------------- */

/* Unsigned quant vector times 4 activations a row, as int16: even lanes columns of the first half of
 * the step, odd lanes of the second. */
INLINE vec mul1(vec v, const int8_t *q)
{
    return _mm256_maddubs_epi16(v, broadcast(q));
}
/* The same for signed quants; at most 2 * 128 * 127 because |q| <= 127. */
INLINE vec mul1_signed(vec v, const int8_t *q)
{
    return _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(broadcast(q), v));
}

/* int32 sums of `n` quant vectors times activations times factor, lane = row; n is as many as int16
 * holds: 8 of 4 bits (8 * 2 * 15 * 127 = 30480), 4 of 5 bits (31496), 2 of 6 bits (32004), 1 signed
 * one of 8 bits (32512). */
INLINE vec part_sum(int n, const vec *v, const int8_t *q, vec factor)
{
    vec s = n == 1 ? mul1_signed(v[0], q) : mul1(v[0], q);
#pragma GCC unroll 8
    for (int j = 1; j < n; j++) s = _mm256_add_epi16(s, mul1(v[j], q + 4 * j));
    return _mm256_madd_epi16(s, factor);
}

INLINE vec add32(vec a, vec b)
{
    return _mm256_add_epi32(a, b);
}

/* sum over the step of q * activation * factor. int32 holds it for every type but Q6_K (four parts of
 * at most 2 * 32004 * 128 * 127), which is converted in two parts. */
INLINE __m256 step_sum(int width, const vec v[8], const int8_t *q, vec factor)
{
    if (width <= 4) return _mm256_cvtepi32_ps(part_sum(8, v, q, factor));
    const int n = width == 8 ? 1 : width == 6 ? 2 : 4;
    vec s = part_sum(n, v, q, factor), r = part_sum(n, v + 4, q + 16, factor);
#pragma GCC unroll 4
    for (int j = n; j < 4; j += n) {
        s = add32(s, part_sum(n, v + j, q + 4 * j, factor));
        r = add32(r, part_sum(n, v + 4 + j, q + 16 + 4 * j, factor));
    }
    if (width != 6) return _mm256_cvtepi32_ps(add32(s, r));
    return _mm256_add_ps(_mm256_cvtepi32_ps(s), _mm256_cvtepi32_ps(r));
}

/* acc + step j of a unit times one activation block (permuted, see pack_acts). */
INLINE __m256 step_product(uint32_t type, const vec v[8], const r8_head *h, int j, const tn_q8 *a,
                           __m256 acc)
{
    int width = tn_r8_shape_of(type).bits;
    vec m = broadcast(a->m);
    __m256 da = _mm256_broadcast_ss(&a->d);
    if (scaled_by_16(type)) {
        __m256 sum = step_sum(width, v, a->q, _mm256_mullo_epi16(h->pair[j], m));
        acc = _mm256_fmadd_ps(sum, _mm256_mul_ps(h->d[0], da), acc);
        acc = _mm256_fmadd_ps(h->m[2 * j], _mm256_broadcast_ss(a->s), acc);
        return _mm256_fmadd_ps(h->m[2 * j + 1], _mm256_broadcast_ss(a->s + 1), acc);
    }
    acc = _mm256_fmadd_ps(step_sum(width, v, a->q, m), _mm256_mul_ps(h->d[j], da), acc);
    if (type == TN_TYPE_Q8_0) return acc;
    return _mm256_fmadd_ps(h->m[j], _mm256_broadcast_ss(a->s), acc);
}

#endif
