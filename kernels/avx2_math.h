/* exp, sigmoid and tanh of 8 floats; only for files compiled with AVX2 and FMA. */
#ifndef TN_AVX2_MATH_H
#define TN_AVX2_MATH_H

#include <immintrin.h>

/* exp(x) for x <= 88.3 within 2 ulp; below -87.33 exactly 0 (also for -inf); NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of degree 7, 2^n by the
 * exponent. */
static inline __m256 exp8(__m256 x)
{
    const __m256 lowest = _mm256_set1_ps(-87.33f), zero = _mm256_setzero_ps();
    __m256 seen = _mm256_cmp_ps(x, lowest, _CMP_NLT_UQ);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, _mm256_set1_ps(1)));
    __m256i e =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_blendv_ps(zero, _mm256_mul_ps(p, _mm256_castsi256_ps(e)), seen);
}

/* 1 / (1 + exp(-x)) through exp(-|x|), which cannot overflow. */
static inline __m256 sigmoid8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1);
    __m256 e = exp8(_mm256_or_ps(x, _mm256_set1_ps(-0.0f)));
    __m256 top = _mm256_blendv_ps(one, e, x); /* by the sign of x */
    return _mm256_div_ps(top, _mm256_add_ps(one, e));
}

/* tanh(x): odd Taylor polynomial below 0.25, where the other form cancels. */
static inline __m256 tanh8(__m256 x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1);
    __m256 a = _mm256_andnot_ps(sign, x), x2 = _mm256_mul_ps(x, x);
    __m256 e = exp8(_mm256_mul_ps(a, _mm256_set1_ps(-2)));
    __m256 big = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
    big = _mm256_or_ps(big, _mm256_and_ps(sign, x));
    __m256 p = _mm256_set1_ps(62.0f / 2835);
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(-17.0f / 315));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(2.0f / 15));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(-1.0f / 3));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, x2), x, x);
    return _mm256_blendv_ps(big, p, _mm256_cmp_ps(a, _mm256_set1_ps(0.25f), _CMP_LT_OQ));
}

/* All lanes combined. */
static inline float max8(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static inline float sum8(__m256 v)
{
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_movehdup_ps(m)));
}

/* Lanes below n: all ones. */
static inline __m256i first8(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#endif
