/* Integer products with a Q8_0 cache. Its bytes lie in quads, one dword of four dims (K) or of four
 * positions (V) for each lane; the other factor, a query or weights, has 16 bits and comes as two
 * dwords for a quad:
 *     AVX-512  the lower and the upper digit of 8 bits of all four, for vpdpbusd
 *     AVX2     numbers 0 and 2, and 1 and 3, as int16, for vpmaddwd
 * An int32 holds the sum of 32 dims (32 * 32639 * 255 < 2^28) and of 64 positions
 * (64 * 32767 * 128 < 2^29).
 * A weight is the softmax's times the scale of V's block; both come as int16, q8_most being 1, in
 * the order of the quads, so that a multiplication and little more makes the weights of a block. */
#ifndef TN_AVX_ATTEND_Q8_H
#define TN_AVX_ATTEND_Q8_H

#include "avx_vec.h"
#include "kv_page.h"

enum {
    q8_most_query = 32639, /* 127 * 257: the upper digit fits a byte */
    q8_most = 32767,
    q8_vectors = 32 / LANES /* of 64 words */
};
/* What the product of q8_most and q8_most is the q8_most_weight-fold of. */
static const float q8_most_weight = 32767.0f * 32767.0f / 32768.0f;

#ifdef __AVX512F__

typedef __m512i vi, q8_quads;
typedef struct q8_sum {
    vi low, high;
} q8_sum;
enum { q8_second = 16 /* dwords from the first of a quad of weights to the second */ };

INLINE vi q8_set(int32_t x)
{
    return _mm512_set1_epi32(x);
}
INLINE q8_sum q8_start(int32_t seed)
{
    return (q8_sum){q8_set(seed), _mm512_setzero_si512()};
}
INLINE q8_quads q8_keys(const char *p)
{
    return _mm512_loadu_si512(p);
}
INLINE q8_quads q8_values(const char *p)
{
    return _mm512_loadu_si512(p);
}
/* sum += unsigned times signed bytes, in place: with the intrinsic gcc copies every sum twice. */
INLINE void q8_dot(vi *sum, vi u, vi s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(u), "v"(s));
}
INLINE void q8_add_keys(q8_sum *s, q8_quads k, vi q0, vi q1)
{
    q8_dot(&s->low, k, q0);
    q8_dot(&s->high, k, q1);
}
INLINE void q8_add_values(q8_sum *s, q8_quads v, vi w0, vi w1)
{
    q8_dot(&s->low, w0, v);
    q8_dot(&s->high, w1, v);
}
INLINE vf q8_float(q8_sum s)
{
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(s.high, 8), s.low));
}

/* Where the first dword of quad t of unit i is among those of 64 weights. */
INLINE int q8_weight_at(int i, int t)
{
    return t * 4 + i;
}
/* 64 numbers in [0, q8_most] as int16. */
INLINE void q8_words(vi *out, const vf *x)
{
    UNROLL for (int i = 0; i < 2; i++) out[i] =
        _mm512_packus_epi32(_mm512_cvtps_epi32(x[2 * i]), _mm512_cvtps_epi32(x[2 * i + 1]));
}
/* Products of 64 words as weights. */
INLINE void q8_weights(int32_t *out, const vi *s, const vi *share)
{
    const vi low = _mm512_set1_epi16(255);
    const vi a = _mm512_mulhrs_epi16(s[0], share[0]), b = _mm512_mulhrs_epi16(s[1], share[1]);
    const vi l = _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low));
    const vi h = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
    _mm512_storeu_si512(out, l);
    _mm512_storeu_si512(out + q8_second, h);
}

/* 16 numbers as four quads, each `stride` dwords after the one before. */
INLINE void q8_put_query(int32_t *out, int64_t stride, vi q)
{
    const vi low = _mm512_srai_epi32(_mm512_slli_epi32(q, 24), 24);
    const __m128i l = _mm512_cvtepi32_epi8(q);
    const __m128i h = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(q, low), 8));
    const __m128i a = _mm_unpacklo_epi32(l, h), b = _mm_unpackhi_epi32(l, h);
    _mm_storel_epi64((__m128i *)(void *)out, a);
    _mm_storel_epi64((__m128i *)(void *)(out + stride), _mm_unpackhi_epi64(a, a));
    _mm_storel_epi64((__m128i *)(void *)(out + 2 * stride), b);
    _mm_storel_epi64((__m128i *)(void *)(out + 3 * stride), _mm_unpackhi_epi64(b, b));
}
INLINE vi q8_round(vf x)
{
    return _mm512_cvtps_epi32(x);
}
INLINE int32_t q8_total(vi a)
{
    return _mm512_reduce_add_epi32(a);
}
INLINE vi q8_plus(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}

#else

typedef __m256i vi;
typedef struct q8_quads {
    vi even, odd; /* of each dword, as int16 */
} q8_quads;
typedef struct q8_sum {
    vi all;
} q8_sum;
enum { q8_second = 1 };

INLINE vi q8_set(int32_t x)
{
    return _mm256_set1_epi32(x);
}
INLINE q8_sum q8_start(int32_t seed)
{
    return (q8_sum){q8_set(seed)};
}
INLINE q8_quads q8_keys(const char *p)
{
    const vi v = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return (q8_quads){_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)};
}
INLINE q8_quads q8_values(const char *p)
{
    const vi v = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return (q8_quads){_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
INLINE void q8_add_keys(q8_sum *s, q8_quads k, vi q0, vi q1)
{
    s->all = _mm256_add_epi32(s->all, _mm256_madd_epi16(k.even, q0));
    s->all = _mm256_add_epi32(s->all, _mm256_madd_epi16(k.odd, q1));
}
INLINE void q8_add_values(q8_sum *s, q8_quads v, vi w0, vi w1)
{
    q8_add_keys(s, v, w0, w1);
}
INLINE vf q8_float(q8_sum s)
{
    return _mm256_cvtepi32_ps(s.all);
}

/* 8 numbers as two quads, each `stride` dwords after the one before. */
INLINE void q8_put_query(int32_t *out, int64_t stride, vi q)
{
    const vi second = _mm256_slli_epi32(_mm256_shuffle_epi32(q, 0xee), 16);
    const vi pairs = _mm256_or_si256(_mm256_and_si256(q, _mm256_set1_epi32(0xffff)), second);
    _mm_storel_epi64((__m128i *)(void *)out, _mm256_castsi256_si128(pairs));
    _mm_storel_epi64((__m128i *)(void *)(out + stride), _mm256_extracti128_si256(pairs, 1));
}
/* Quads 0, 2, 1, 3 of a unit, as its two vectors of words are packed. */
INLINE int q8_weight_at(int i, int t)
{
    return 8 * i + (t & 1) * 4 + (t >> 1) * 2;
}
INLINE void q8_words(vi *out, const vf *x)
{
    UNROLL for (int i = 0; i < 4; i++)
    {
        const vi a = _mm256_shuffle_epi32(_mm256_cvtps_epi32(x[2 * i]), 0xd8);
        const vi b = _mm256_shuffle_epi32(_mm256_cvtps_epi32(x[2 * i + 1]), 0xd8);
        out[i] = _mm256_packus_epi32(a, b);
    }
}
INLINE void q8_weights(int32_t *out, const vi *s, const vi *share)
{
    UNROLL for (int i = 0; i < 4; i++)
        _mm256_storeu_si256((__m256i *)(void *)(out + 8 * i), _mm256_mulhrs_epi16(s[i], share[i]));
}
INLINE vi q8_round(vf x)
{
    return _mm256_cvtps_epi32(x);
}
INLINE int32_t q8_total(vi a)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
INLINE vi q8_plus(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}

#endif

/* What q[32] is multiplied with to become integers of 16 bits. As numbers times `factor` these are
 * *scale apart, which is NaN where one of q is not finite. */
INLINE vf q8_factor(const float *q, float factor, float *scale)
{
    vf most = v_zero(), check = v_zero();
    UNROLL for (int i = 0; i < 32; i += LANES)
    {
        const vf x = v_load(q + i);
        most = v_max(v_andnot(v_set(-0.0f), x), most);
        check = v_fma(x, v_zero(), check);
    }
    const float top = v_max_lanes(most);
    const bool any = top > 1e-30f;
    *scale = (any ? top * factor / (float)q8_most_query : 0) + v_sum_lanes(check);
    return v_set(any ? (float)q8_most_query / top : 0);
}

/* A vector of q times f; what is no number becomes one. */
INLINE vi q8_integers(const float *q, vf f)
{
    return q8_round(v_max(v_mul(v_load(q), f), v_set(-q8_most_query)));
}

/* q[32] * factor as integers, eight quads `stride` dwords apart; *scale: see q8_factor. *seed: what
 * takes back the offset of stored keys. */
INLINE void q8_split(const float *q, float factor, int32_t *out, int64_t stride, float *scale,
                     int32_t *seed)
{
    const vf f = q8_factor(q, factor, scale);
    vi total = q8_set(0);
    UNROLL for (int i = 0; i < 32; i += LANES)
    {
        const vi x = q8_integers(q + i, f);
        q8_put_query(out + i / 4 * stride, stride, x);
        total = q8_plus(total, x);
    }
    *seed = (int32_t)(-(uint32_t)TN_KV_K_OFFSET * (uint32_t)q8_total(total));
}

#endif
