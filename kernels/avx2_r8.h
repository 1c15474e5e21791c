/* Reading R8 units in AVX2 registers, and multiplying a step by one activation block.
 * Every function is inlined with a constant type, so that all switches fold away. */
#ifndef TN_AVX2_R8_H
#define TN_AVX2_R8_H

#include "repack.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m256i vec;

/* Puts the AVX2 repack functions of both layouts into tables by type. avx2_repack.c */
void tn_repack_avx2(tn_repack_fn *r8, tn_repack_fn *r16);

/* The AVX2 product of a type with an R8 layout, NULL for others; with software prefetch or without.
 * avx2_r8.c */
tn_matmul_fn tn_r8_matmul_avx2(uint32_t type, bool ahead);

/* The tn_pack_fn that goes with it. */
tn_pack_fn tn_r8_pack_avx2(uint32_t type);

/* What a unit's head says, lane = row. Step j of a type with one scale per 32 columns is worth
 * d[j] * (q - offset) + m[j]; of a type with one per 16 columns, d[0] * scale * (q - offset) +
 * m[0] * min, where pair[j] and min[j] hold the two integer scales and minima of a row as
 * neighbouring int16. */
typedef struct r8_head {
    __m256 d[8], m[8];
    vec pair[8], min[8];
} r8_head;

/* An activation block as the kernels read it: q in the order of the quant vectors, dword j holding
 * columns 2j, 2j + 1, 16 + 2j, 17 + 2j. */
typedef struct r8_act {
    int8_t q[32];
    float d;
    int16_t m[2];
    /* Types without an offset: the sum of the block, and the sums of the q of both halves as two
     * int16. Others: offset times the sums of the q of both halves, as two int16; where quants have
     * 6 bits those of dwords 0 to 3, then those of the others. */
    union {
        float s;
        int32_t c;
    };
    int32_t c1;
} r8_act;

/* What was added to a type's quants to make them unsigned: those of Q8_0 stay signed in R8. */
INLINE int quant_offset(uint32_t type)
{
    return type == TN_TYPE_Q8_0 ? 0 : tn_quant_offset(type);
}
INLINE bool has_min(uint32_t type)
{
    return type == TN_TYPE_Q4_1 || type == TN_TYPE_Q5_1 || type == TN_TYPE_Q2_K ||
           type == TN_TYPE_Q4_K || type == TN_TYPE_Q5_K;
}
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

/* Keeps the compiler from reordering a chain of sums (left alone it computes all products first and
 * spills them) and from loading a value twice. */
INLINE vec pinned(vec v)
{
    __asm__("" : "+x"(v));
    return v;
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* The first `left` of 8 lanes. */
INLINE vec first_lanes(int64_t left)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Sums of 8 rows, or of the `left` that there are: stores by a mask take AMD's CPUs 10 cycles. */
INLINE __m256 load_rows(const float *y, int64_t left)
{
    return left < 8 ? _mm256_maskload_ps(y, first_lanes(left)) : _mm256_loadu_ps(y);
}
INLINE void store_rows(float *y, __m256 sums, int64_t left)
{
    if (left < 8)
        _mm256_maskstore_ps(y, first_lanes(left), sums);
    else
        _mm256_storeu_ps(y, sums);
}

/* ---- activations ----------------------------------------------------------------------------- */

/* The sums of both halves of four dwords of q, as two int16 in every dword. */
INLINE __m128i dword_sums(__m128i q)
{
    __m128i s = _mm_maddubs_epi16(_mm_set1_epi8(1), q);
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1));
}

INLINE void pack_act(uint32_t type, r8_act *o, const tn_q8 *a)
{
    const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)a->q);
    const __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(a->q + 16));
    const __m128i first = _mm_unpacklo_epi16(low, high), second = _mm_unpackhi_epi16(low, high);
    _mm_store_si128((__m128i *)(void *)o->q, first);
    _mm_store_si128((__m128i *)(void *)(o->q + 16), second);
    o->d = a->d;
    memcpy(o->m, a->m, sizeof o->m);
    const __m128i offset = _mm_set1_epi16((int16_t)quant_offset(type));
    __m128i s0 = dword_sums(first), s1 = dword_sums(second);
    if (tn_group_shape_of(type, 8).bits != 6) s0 = s1 = _mm_add_epi16(s0, s1);
    o->c1 = _mm_cvtsi128_si32(quant_offset(type) ? _mm_mullo_epi16(s1, offset) : s1);
    if (quant_offset(type))
        o->c = _mm_cvtsi128_si32(_mm_mullo_epi16(s0, offset));
    else
        o->s = a->s[0] + a->s[1];
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* Byte k of every dword as a float. */
INLINE __m256 byte_float(vec v, int k)
{
    const vec at = _mm256_add_epi32(
        _mm256_setr_epi32((int)0x80808000, (int)0x80808004, (int)0x80808008, (int)0x8080800c,
                          (int)0x80808000, (int)0x80808004, (int)0x80808008, (int)0x8080800c),
        _mm256_set1_epi32(k));
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v, at));
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
    const int n = 0x02000200 * k; /* the high bytes are taken, the low ones become zero */
    const vec at =
        _mm256_add_epi32(_mm256_setr_epi32(0x01800080, 0x05800480, 0x09800880, 0x0d800c80,
                                           0x01800080, 0x05800480, 0x09800880, 0x0d800c80),
                         _mm256_set1_epi32(n));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, at), 8);
}

INLINE void pairs(const vec bytes[4], vec out[8])
{
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        out[j] = byte_pair(bytes[j / 2], j % 2);
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
    pairs(scale, h->pair);
    pairs(min, h->min);
    h->d[0] = load_halves(u);
    h->m[0] = _mm256_sub_ps(_mm256_setzero_ps(), load_halves(u + 16));
}

INLINE void head_q3_k(const uint8_t *u, r8_head *h)
{
    vec s0 = load(u + 16), s1 = load(u + 48), s2 = load(u + 80), scale[4];
    scale[0] = _mm256_or_si256(bits(s0, 0, 15), bits(s2, -4, 0x30));
    scale[1] = _mm256_or_si256(bits(s1, 0, 15), bits(s2, -2, 0x30));
    scale[2] = _mm256_or_si256(bits(s0, 4, 15), bits(s2, 0, 0x30));
    scale[3] = _mm256_or_si256(bits(s1, 4, 15), bits(s2, 2, 0x30));
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        scale[k] = _mm256_sub_epi8(scale[k], _mm256_set1_epi8(32));
    pairs(scale, h->pair);
    h->d[0] = load_halves(u);
}

INLINE void head_q6_k(const uint8_t *u, r8_head *h)
{
    vec scale[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        scale[k] = load(u + 16 + 32 * k);
    pairs(scale, h->pair);
    h->d[0] = load_halves(u);
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
    if (has_min(type)) h->m[0] = load_halves(u + 16);
}

/* ---- quants ---------------------------------------------------------------------------------- */

/* The eight quant vectors of a step, unsigned except for Q8_0. */
INLINE void read_quants(int width, const uint8_t *p, vec v[8])
{
    vec a[8];
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        a[i] = load(p + 32 * i);
    switch (width) {
    case 2:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            v[j] = bits(a[j / 4], 2 * (j % 4), 3);
        break;
    case 3:
#pragma GCC unroll 8
        for (int j = 0; j < 6; j++)
            v[j] = bits(a[j / 2], 3 * (j % 2), 7);
        v[6] = _mm256_or_si256(bits(a[0], 6, 3), bits(a[1], 5, 4));
        v[7] = _mm256_or_si256(bits(a[2], 6, 3), bits(a[1], 4, 4));
        break;
    case 4:
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            v[j] = bits(a[j % 4], 4 * (j / 4), 15);
        break;
    case 5:
#pragma GCC unroll 8
        for (int j = 0; j < 5; j++)
            v[j] = bits(a[j], 0, 31);
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
        for (int j = 0; j < 8; j++)
            v[j] = a[j];
        break;
    }
}

/* ---- products -------------------------------------------------------------------------------- */

INLINE vec add16(vec a, vec b)
{
    return pinned(_mm256_add_epi16(a, b));
}
INLINE vec add32(vec a, vec b)
{
    return _mm256_add_epi32(a, b);
}

/* Quant vectors times 4 activations a row each, as int16: even lanes are columns of the first half
 * of the step, odd lanes of the second. Two unsigned vectors are added; signed ones (at most 2 *
 * 128 * 127 each, because |activation| <= 127) go to int32 at once. */
INLINE vec mul2(vec v0, vec y0, vec v1, vec y1)
{
    return add16(_mm256_maddubs_epi16(v0, y0), _mm256_maddubs_epi16(v1, y1));
}
INLINE vec mul2_signed(vec v0, vec y0, vec v1, vec y1, vec factor)
{
    vec p0 = _mm256_maddubs_epi16(_mm256_abs_epi8(v0), _mm256_sign_epi8(y0, v0));
    vec p1 = _mm256_maddubs_epi16(_mm256_abs_epi8(v1), _mm256_sign_epi8(y1, v1));
    return pinned(add32(_mm256_madd_epi16(p0, factor), _mm256_madd_epi16(p1, factor)));
}

/* How many sums a step needs in int16. These hold 16 products of 4-bit quants (16 * 15 * 127 =
 * 30480), 8 of 5 bits (31496). The offset is taken off in int16: these wrap before, but what they
 * are then is in range, for 16 products of quants of 5 bits (16 * 16 * 127 = 32512) and 8 of 6
 * bits. */
INLINE int sum_parts(uint32_t type)
{
    const int width = tn_group_shape_of(type, 8).bits;
    return width < 5 || (width == 5 && quant_offset(type)) ? 1 : 2;
}

/* The sum over the step of (q - offset) * activation * factor, lane = row. Short trees, as the
 * length of the chain decides how many steps overlap. Partners are unpacked from the same vector
 * where there is one. int32 holds the sum of a step of Q6_K: 32 * 32 * 127 * 128 * 127 < 2^31. */
INLINE vec step_sum(uint32_t type, const vec v[8], const r8_act *a, vec factor)
{
    const int width = tn_group_shape_of(type, 8).bits, offset = quant_offset(type);
    vec p[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const int j0 = width == 4 ? i : 2 * i, j1 = width == 4 ? i + 4 : 2 * i + 1;
        const vec y0 = broadcast(a->q + 4 * j0), y1 = broadcast(a->q + 4 * j1);
        p[i] = width == 8 ? mul2_signed(v[j0], y0, v[j1], y1, factor) : mul2(v[j0], y0, v[j1], y1);
        if (i % 2) p[i] = width == 8 ? pinned(add32(p[i - 1], p[i])) : add16(p[i - 1], p[i]);
    }
    if (width == 8) return add32(p[1], p[3]);
    if (sum_parts(type) == 1) {
        vec sum = add16(p[1], p[3]);
        if (offset) sum = _mm256_sub_epi16(sum, broadcast(&a->c));
        return _mm256_madd_epi16(sum, factor);
    }
    if (offset) {
        p[1] = _mm256_sub_epi16(p[1], broadcast(&a->c));
        p[3] = _mm256_sub_epi16(p[3], broadcast(&a->c1));
    }
    return add32(_mm256_madd_epi16(p[1], factor), _mm256_madd_epi16(p[3], factor));
}

/* What m is for a step whose scales are `pair`, by 16 columns. */
INLINE vec step_factor(uint32_t type, vec m, const vec *pair)
{
    return scaled_by_16(type) ? _mm256_mullo_epi16(*pair, m) : m;
}

/* acc + *d_w * d * sum, and what the minima *m_w (by 16 columns: times *min) add. */
INLINE __m256 add_step(uint32_t type, const r8_act *a, vec sum, const __m256 *d_w,
                       const __m256 *m_w, const vec *min, __m256 acc)
{
    const __m256 d = _mm256_broadcast_ss(&a->d);
    if (has_min(type) && scaled_by_16(type)) {
        const vec factor = _mm256_mullo_epi16(*min, broadcast(a->m));
        const vec s = _mm256_madd_epi16(factor, broadcast(&a->c1));
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_mul_ps(*m_w, d), acc);
    } else if (has_min(type)) {
        acc = _mm256_fmadd_ps(*m_w, _mm256_broadcast_ss(&a->s), acc);
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(*d_w, d), acc);
}

/* acc + step j of a unit times one activation block. */
INLINE __m256 step_product(uint32_t type, const r8_head *h, int j, const vec v[8], const r8_act *a,
                           __m256 acc)
{
    const int k = scaled_by_16(type) ? 0 : j;
    const vec sum = step_sum(type, v, a, step_factor(type, broadcast(a->m), h->pair + j));
    return add_step(type, a, sum, h->d + k, h->m + k, h->min + j, acc);
}

#endif
