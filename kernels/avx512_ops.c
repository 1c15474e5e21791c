/* AVX-512 forms of the small operations that show in prefill. Quantisation agrees with scalar_ops.c
 * bit for bit: eight blocks at a time, so that the scales of all 16 halves are one vector. */
#include "avx_glu.h"
#include "kernels.h"

#include <float.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m512i wide;

enum { AT_ONCE = 8 }; /* blocks */

INLINE wide max_of(wide a, wide b, __mmask16 high, wide swapped)
{
    return _mm512_max_epi32(_mm512_mask_blend_epi32(high, a, b), swapped);
}

/* Lane i: the largest lane of a[i]. One level halves the number of vectors and the lanes of each:
 * where `high` is set they come from b, and `swapped` is the other half of both. */
INLINE wide max_lanes(const wide a[16])
{
    const wide i4 = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    const wide i2 = _mm512_setr_epi32(2, 3, 16, 17, 6, 7, 20, 21, 10, 11, 24, 25, 14, 15, 28, 29);
    const wide i1 = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    wide b[8];
    UNROLL for (int i = 0; i < 8; i++) b[i] =
        max_of(a[i], a[i + 8], 0xff00, _mm512_shuffle_i32x4(a[i], a[i + 8], 0x4e));
    UNROLL for (int i = 0; i < 4; i++) b[i] =
        max_of(b[i], b[i + 4], 0xf0f0, _mm512_permutex2var_epi32(b[i], i4, b[i + 4]));
    UNROLL for (int i = 0; i < 2; i++) b[i] =
        max_of(b[i], b[i + 2], 0xcccc, _mm512_permutex2var_epi32(b[i], i2, b[i + 2]));
    return max_of(b[0], b[1], 0xaaaa, _mm512_permutex2var_epi32(b[0], i1, b[1]));
}

/* Lane i of all: half i / 8 of block i % 8. */
typedef struct scales {
    __m512 d, inverse; /* of the step */
    wide m;
} scales;

INLINE __m512 other_half(__m512 v)
{
    return _mm512_shuffle_f32x4(v, v, 0x4e);
}

/* False where a block is special: not finite, or too small. */
INLINE bool find_scales(const float *x, scales *s)
{
    wide a[16];
    UNROLL for (int i = 0; i < 16; i++) a[i] =
        _mm512_and_si512(_mm512_loadu_si512(x + 32 * (i % 8) + 16 * (i / 8)),
                         _mm512_set1_epi32(0x7fffffff));
    /* Magnitudes order like integers, and then whatever is not finite is the largest. */
    const wide top = max_lanes(a);
    const __m512 h = _mm512_div_ps(_mm512_castsi512_ps(top), _mm512_set1_ps(127));
    s->d = _mm512_div_ps(_mm512_max_ps(h, other_half(h)), _mm512_set1_ps(127));
    if (_mm512_cmpge_epi32_mask(top, _mm512_set1_epi32(0x7f800000)) |
        _mm512_cmp_ps_mask(s->d, _mm512_set1_ps(FLT_MIN), _CMP_NGE_UQ))
        return false;
    __m512 m = _mm512_roundscale_ps(_mm512_div_ps(h, s->d), _MM_FROUND_TO_POS_INF);
    m = _mm512_min_ps(_mm512_max_ps(m, _mm512_set1_ps(1)), _mm512_set1_ps(127));
    s->inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_mul_ps(s->d, m));
    s->m = _mm512_cvtps_epi32(m);
    return true;
}

/* q[64]: two blocks. x / step is x * inverse up to an error of 2.3e-5 below 128, so that both round
 * to the same integer unless they are nearer to the middle of two; *worst is
 * the largest distance. */
INLINE wide round_two(const float *x, const float *inverse, __m512 *worst)
{
    wide n[4];
    UNROLL for (int i = 0; i < 4; i++)
    {
        const __m512 f = _mm512_set1_ps(inverse[i / 2 + 8 * (i % 2)]);
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), f);
        n[i] = _mm512_cvtps_epi32(v);
        const __m512 off = _mm512_sub_ps(v, _mm512_cvtepi32_ps(n[i]));
        *worst = _mm512_max_ps(*worst, _mm512_abs_ps(off));
    }
    const wide q =
        _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), q);
}

/* Sums of the quants of every half, in the order of scales; q[i] holds blocks 2 i and 2 i + 1. */
INLINE wide sum_halves(const wide q[4])
{
    wide s[4];
    UNROLL for (int i = 0; i < 4; i++) s[i] = _mm512_madd_epi16(
        _mm512_maddubs_epi16(_mm512_set1_epi8(1), q[i]), _mm512_set1_epi16(1));
    const wide a =
        _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
    const wide b =
        _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15),
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)));
}

/* What follows q in eight blocks: d, m and s of each are 16 bytes in a row. */
INLINE void store_scales(tn_q8 *y, const scales *s, wide sums)
{
    const __m512 sum = _mm512_mul_ps(s->d, _mm512_cvtepi32_ps(_mm512_mullo_epi32(s->m, sums)));
    const __m256i m = _mm256_or_si256(_mm512_castsi512_si256(s->m),
                                      _mm256_slli_epi32(_mm512_extracti64x4_epi64(s->m, 1), 16));
    const __m256 d = _mm512_castps512_ps256(s->d), dm = _mm256_castsi256_ps(m);
    const __m256 s0 = _mm512_castps512_ps256(sum), s1 = _mm512_extractf32x8_ps(sum, 1);
    const __m256d d_lo = _mm256_castps_pd(_mm256_unpacklo_ps(d, dm)),
                  d_hi = _mm256_castps_pd(_mm256_unpackhi_ps(d, dm)),
                  s_lo = _mm256_castps_pd(_mm256_unpacklo_ps(s0, s1)),
                  s_hi = _mm256_castps_pd(_mm256_unpackhi_ps(s0, s1));
    const __m256d v[4] = {_mm256_unpacklo_pd(d_lo, s_lo), _mm256_unpackhi_pd(d_lo, s_lo),
                          _mm256_unpacklo_pd(d_hi, s_hi), _mm256_unpackhi_pd(d_hi, s_hi)};
    UNROLL for (int i = 0; i < 4; i++)
    {
        _mm_storeu_pd((double *)(void *)&y[i].d, _mm256_castpd256_pd128(v[i]));
        _mm_storeu_pd((double *)(void *)&y[i + 4].d, _mm256_extractf128_pd(v[i], 1));
    }
}

/* False, and nothing written, where the blocks need the exact way. */
INLINE bool quantize_eight(tn_q8 *y, const float *x)
{
    scales s;
    float inverse[16];
    wide q[4];
    __m512 worst = _mm512_setzero_ps();
    if (!find_scales(x, &s)) return false;
    _mm512_storeu_ps(inverse, s.inverse);
    UNROLL for (int i = 0; i < 4; i++) q[i] = round_two(x + 64 * i, inverse + 2 * i, &worst);
    if (_mm512_cmp_ps_mask(worst, _mm512_set1_ps(0.49996f), _CMP_NLT_UQ)) return false;
    UNROLL for (int i = 0; i < 4; i++)
    {
        _mm256_storeu_si256((__m256i *)(void *)y[2 * i].q, _mm512_castsi512_si256(q[i]));
        _mm256_storeu_si256((__m256i *)(void *)y[2 * i + 1].q, _mm512_extracti64x4_epi64(q[i], 1));
    }
    store_scales(y, &s, sum_halves(q));
    return true;
}

static void quantize_avx512(tn_q8 *q, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + 32 * AT_ONCE <= n; i += 32 * AT_ONCE)
        if (!quantize_eight(q + i / 32, x + i))
            tn_quantize_avx2(q + i / 32, x + i, (int64_t)32 * AT_ONCE);
    tn_quantize_avx2(q + i / 32, x + i, n - i);
}

static void glu_avx512(float *gate, const float *up, int64_t n, tn_activation act)
{
    glu(gate, up, n, act);
}

void tn_kernels_avx512_ops(tn_kernels *k)
{
    _Static_assert(offsetof(tn_q8, m) == offsetof(tn_q8, d) + 4, "d, m and s in a row");
    _Static_assert(offsetof(tn_q8, s) == offsetof(tn_q8, d) + 8, "d, m and s in a row");
    k->quantize = quantize_avx512;
    k->glu = glu_avx512;
}
