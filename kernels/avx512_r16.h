/* Reading R16 units in AVX-512 registers, and activations as the products read them.
 * Every function is inlined with a constant type, so that all switches fold away. */
#ifndef TN_AVX512_R16_H
#define TN_AVX512_R16_H

#include "avx_many.h"

typedef __m512i wide;

/* Products of any number of tokens with R16 weights, for two and more the fastest. avx512_many.c */
tn_matmul_fn tn_avx512_many(uint32_t type);

/* ---- activations ----------------------------------------------------------------------------- */

/* With one scale per 32 columns the halves of a block differ in the activations' steps only. So the
 * sums of half 0 are turned into units of half 1, by one multiplication and addition, and half 1
 * goes on from there: that saves a conversion. The quants of half 1 come times `high`, so that
 * units are small, and what is rounded is up to half of one. */
INLINE int high_of(uint32_t type)
{
    return scaled_by_16(type) ? 1 : 1 << (8 - tn_group_shape_of(type, 8).bits);
}

/* high: what the quants of the second half are multiplied with in the kernel, a power of two. */
INLINE void pack(uint32_t type, int high, act *o, const tn_q8 *x)
{
    const vec q = _mm256_loadu_si256((const __m256i *)(const void *)x->q);
    _mm256_store_si256((__m256i *)(void *)o->q, q);
    for (int h = 0; h < 2; h++) {
        o->d[h] = x->d * (float)x->m[h];
        o->s[h] = x->s[h];
        o->c[h] = 0;
    }
    o->d[1] *= 1.0f / (float)high;
    if (!scaled_by_16(type)) o->s[0] += o->s[1];
    if (!tn_quant_offset(type)) return;
    vec sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    sums = _mm256_madd_epi16(sums, _mm256_set1_epi16((int16_t)-tn_quant_offset(type)));
    sums = _mm256_hadd_epi32(sums, sums);
    sums = _mm256_hadd_epi32(sums, sums);
    o->c[0] = _mm256_extract_epi32(sums, 0);
    o->c[1] = high * _mm256_extract_epi32(sums, 4);
}

/* acc += four unsigned bytes of w times the four signed ones at p, in every lane. The intrinsic
 * would spend an instruction on the broadcast. */
INLINE wide dot4(wide acc, wide w, const int8_t *p)
{
    __asm__ volatile("vpdpbusd %2%{1to16%}, %1, %0"
                     : "+v"(acc)
                     : "v"(w), "m"(*(const int32_t *)(const void *)p));
    return acc;
}

/* Four activations in every lane, for several such products. */
INLINE wide broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* What the sums of half h make of f, their bits as a float. */
INLINE __m512 value_of(wide sum, const act *a, int h)
{
    return _mm512_fmadd_ps(_mm512_castsi512_ps(sum), _mm512_set1_ps(a->d[h]),
                           _mm512_set1_ps(a->base[h]));
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* What a unit's head says, lane = row: d, and the minimum as what is to be added. The K types'
 * integer scales and minima are bytes: of step j byte j % 4 of number j / 4, or bytes 2 * (j % 2)
 * and the next of number j / 2 where they are by 16 columns. */
typedef struct r16_head {
    __m512 d, m;
    wide scale[4], min[4];
} r16_head;

INLINE wide load_wide(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
INLINE __m512 load_16_halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* (v >> shift) & mask, or (v << -shift) & mask, in every byte. */
INLINE wide field(wide v, int shift, int mask)
{
    if (shift > 0) v = _mm512_srli_epi16(v, (unsigned)shift);
    if (shift < 0) v = _mm512_slli_epi16(v, (unsigned)-shift);
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}
/* One bit for each of the first `left` rows of a group. */
INLINE __mmask16 first_rows(int64_t left)
{
    return (__mmask16)(left >= 16 ? 0xffff : (1u << left) - 1);
}
/* In every byte the bits of a that are set in mask, and the others of b. */
INLINE wide select_bits(int mask, wide a, wide b)
{
    return _mm512_ternarylogic_epi64(_mm512_set1_epi8((char)mask), a, b, 0xca);
}

/* Byte k of every dword, signed, times 2^24: d and m of a K type are times 2^-24. So the sum of a
 * unit before that is up to 2^52 times the scale of the activations, which overflows from a scale
 * of about 1e22 on, that is from activations of about 1e26 on; to take it off them instead would
 * lose small ones. */
INLINE __m512 byte_times(wide v, int k)
{
    const wide at = _mm512_add_epi32(
        _mm512_broadcast_i32x4(_mm_setr_epi32(0x00808080, 0x04808080, 0x08808080, 0x0c808080)),
        _mm512_set1_epi32(k << 24));
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(v, at));
}

INLINE void r16_scales(uint32_t type, const uint8_t *u, r16_head *h)
{
    wide s[4];
    const tn_group_shape shape = tn_group_shape_of(type, 16);
#pragma GCC unroll 4
    for (int i = 0; i < (shape.head - shape.scales) / 64; i++)
        s[i] = load_wide(u + shape.scales + 64 * i);
    switch (type) {
    case TN_TYPE_Q2_K:
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            h->scale[i] = field(s[i], 0, 15);
            h->min[i] = field(s[i], 4, 15);
        }
        return;
    case TN_TYPE_Q3_K:
        h->scale[0] = select_bits(15, s[0], field(s[2], -4, 0x30));
        h->scale[1] = select_bits(15, s[1], field(s[2], -2, 0x30));
        h->scale[2] = _mm512_or_si512(field(s[0], 4, 15), field(s[2], 0, 0x30));
        h->scale[3] = _mm512_or_si512(field(s[1], 4, 15), field(s[2], 2, 0x30));
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            h->scale[i] = _mm512_sub_epi8(h->scale[i], _mm512_set1_epi8(32));
        return;
    case TN_TYPE_Q6_K:
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            h->scale[i] = s[i];
        return;
    default:
        h->scale[0] = field(s[0], 0, 63);
        h->scale[1] = select_bits(15, s[2], field(s[0], 2, 0x30));
        h->min[0] = field(s[1], 0, 63);
        h->min[1] = select_bits(15, field(s[2], 4, 15), field(s[1], 2, 0x30));
        return;
    }
}

INLINE void r16_read_head(uint32_t type, const uint8_t *u, r16_head *h)
{
    h->d = load_16_halves(u);
    if (has_min(type)) h->m = load_16_halves(u + 32);
    if (tn_group_shape_of(type, 16).cols == 32) return;
    h->d = _mm512_mul_ps(h->d, _mm512_set1_ps(0x1p-24f));
    if (has_min(type)) h->m = _mm512_mul_ps(h->m, _mm512_set1_ps(-0x1p-24f));
    r16_scales(type, u, h);
}

/* The integer scale of half `half` of step j, of a K type. */
INLINE __m512 r16_scale(uint32_t type, const wide *bytes, int j, int half)
{
    return scaled_by_16(type) ? byte_times(bytes[j / 2], j % 2 * 2 + half)
                              : byte_times(bytes[j / 4], j % 4);
}

/* ---- quants ---------------------------------------------------------------------------------- */

INLINE void r16_quants_5(const wide a[5], wide v[8])
{
#pragma GCC unroll 5
    for (int j = 0; j < 5; j++)
        v[j] = field(a[j], 0, 31);
    v[5] = select_bits(7, _mm512_srli_epi16(a[0], 5), _mm512_srli_epi16(a[1], 3));
    v[6] = select_bits(7, _mm512_srli_epi16(a[2], 5), _mm512_srli_epi16(a[3], 3));
    v[7] = select_bits(7, _mm512_srli_epi16(a[4], 5), _mm512_srli_epi16(a[1], 2));
    v[7] = select_bits(15, v[7], _mm512_srli_epi16(a[3], 1));
#pragma GCC unroll 3
    for (int j = 5; j < 8; j++)
        v[j] = field(v[j], 0, 31);
}

INLINE void r16_quants_6(const wide a[3], wide v[4])
{
#pragma GCC unroll 3
    for (int j = 0; j < 3; j++)
        v[j] = field(a[j], 0, 63);
    v[3] = select_bits(0x30, _mm512_srli_epi16(a[0], 2), _mm512_srli_epi16(a[1], 4));
    v[3] = field(select_bits(0x3c, v[3], _mm512_srli_epi16(a[2], 6)), 0, 63);
}

/* What the quants of the second half come multiplied with, where that saves shifting them down. */
INLINE int r16_high(uint32_t type)
{
    return tn_group_shape_of(type, 16).bits == 4 ? 16 : 1;
}

/* The eight quant vectors of a step, unsigned. */
INLINE void r16_quants(uint32_t type, const uint8_t *p, wide v[8])
{
    const int width = tn_group_shape_of(type, 16).bits;
    wide a[8];
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        a[i] = load_wide(p + 64 * i);
    switch (width) {
    case 2:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            v[j] = field(a[j / 4], 2 * (j % 4), 3);
        break;
    case 3:
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++)
            v[j] = field(a[j / 2], 3 * (j % 2), 7);
        v[6] = select_bits(3, _mm512_srli_epi16(a[0], 6), _mm512_srli_epi16(a[1], 5));
        v[7] = select_bits(3, _mm512_srli_epi16(a[2], 6), _mm512_srli_epi16(a[1], 4));
        v[6] = field(v[6], 0, 7);
        v[7] = field(v[7], 0, 7);
        break;
    case 4:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            v[j] = field(a[j % 4], 0, j < 4 ? 0x0f : 0xf0);
        break;
    case 5: r16_quants_5(a, v); break;
    case 6:
        r16_quants_6(a, v);
        r16_quants_6(a + 3, v + 4);
        break;
    default:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            v[j] = a[j];
        break;
    }
}

/* Bytes times a power of two that leaves them bytes. */
INLINE wide times(wide bytes, int power)
{
    return _mm512_slli_epi16(bytes, (unsigned)__builtin_ctz((unsigned)power));
}

/* The same, the second half times high_of. */
INLINE void r16_quants_for_sums(uint32_t type, const uint8_t *p, wide v[8])
{
    r16_quants(type, p, v);
#pragma GCC unroll 4
    for (int j = 4; j < 8; j++)
        v[j] = times(v[j], high_of(type) / r16_high(type));
}

#endif
