/* Vectors of floats as wide as the file is compiled for: 16 lanes with AVX-512, else 8. What is
 * written with these serves both levels; only for files compiled with AVX2, FMA and F16C. */
#ifndef TN_AVX_VEC_H
#define TN_AVX_VEC_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

/* Eight lanes of either level. */
INLINE float max8(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
INLINE float sum8(__m256 v)
{
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_movehdup_ps(m)));
}
#ifdef __AVX512F__

enum { LANES = 16 };
typedef __m512 vf;
typedef __mmask16 vmask;

INLINE vf v_set(float x)
{
    return _mm512_set1_ps(x);
}
INLINE vf v_zero(void)
{
    return _mm512_setzero_ps();
}
INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
} /* b where one is NaN */
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
} /* a b + c */
INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
} /* c - a b */
INLINE vf v_and(vf a, vf b)
{
    return _mm512_and_ps(a, b);
}
INLINE vf v_or(vf a, vf b)
{
    return _mm512_or_ps(a, b);
}
INLINE vf v_andnot(vf a, vf b)
{
    return _mm512_andnot_ps(a, b);
} /* ~a & b */
INLINE vf v_halves(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE vmask v_less(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
INLINE vmask v_not_less(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ);
}
INLINE bool v_any(vmask m)
{
    return m != 0;
}
INLINE vmask v_negative(vf x)
{
    return _mm512_movepi32_mask(_mm512_castps_si512(x));
} /* sign */
INLINE vf v_select(vmask m, vf a, vf b)
{
    return _mm512_mask_blend_ps(m, b, a);
} /* m ? a : b */
/* m ? p * 2^n : 0 for the whole n in the lowest bits of `bits`; both are normal numbers. */
INLINE vf v_times_pow2(vf p, vf bits, vmask m)
{
    const __m512i e = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(m, _mm512_castps_si512(p), e));
}
/* Lanes from `from` on, below `to`. */
INLINE vmask v_between(int64_t from, int64_t to)
{
    const unsigned high = to < 16 ? (1u << (to > 0 ? to : 0)) - 1 : 0xffff;
    const unsigned low = from < 16 ? (1u << (from > 0 ? from : 0)) - 1 : 0xffff;
    return (vmask)(high & ~low);
}
/* The lanes of m, others zero; and only them. */
INLINE vf v_load_some(const float *p, vmask m)
{
    return _mm512_maskz_loadu_ps(m, p);
}
INLINE void v_store_some(float *p, vmask m, vf x)
{
    _mm512_mask_storeu_ps(p, m, x);
}

INLINE float v_max_lanes(vf v)
{
    return max8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
INLINE float v_sum_lanes(vf v)
{
    return sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

#else

enum { LANES = 8 };
typedef __m256 vf;
typedef __m256i vmask;

INLINE vf v_set(float x)
{
    return _mm256_set1_ps(x);
}
INLINE vf v_zero(void)
{
    return _mm256_setzero_ps();
}
INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
INLINE void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
} /* b where one is NaN */
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
} /* a b + c */
INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
} /* c - a b */
INLINE vf v_and(vf a, vf b)
{
    return _mm256_and_ps(a, b);
}
INLINE vf v_or(vf a, vf b)
{
    return _mm256_or_ps(a, b);
}
INLINE vf v_andnot(vf a, vf b)
{
    return _mm256_andnot_ps(a, b);
} /* ~a & b */
INLINE vf v_halves(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

INLINE vmask v_less(vf a, vf b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE vmask v_not_less(vf a, vf b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
INLINE bool v_any(vmask m)
{
    return _mm256_movemask_ps(_mm256_castsi256_ps(m)) != 0;
}
INLINE vmask v_negative(vf x)
{
    return _mm256_castps_si256(x);
} /* by the sign */
INLINE vf v_select(vmask m, vf a, vf b) /* m ? a : b */
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m));
}
/* m ? p * 2^n : 0 for the whole n in the lowest bits of `bits`; both are normal numbers. */
INLINE vf v_times_pow2(vf p, vf bits, vmask m)
{
    const __m256i e = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
    const __m256i x = _mm256_add_epi32(_mm256_castps_si256(p), e);
    return _mm256_castsi256_ps(_mm256_and_si256(x, m));
}
/* Lanes below n: all ones. */
INLINE __m256i first8(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* Lanes from `from` on, below `to`. */
INLINE vmask v_between(int64_t from, int64_t to)
{
    return _mm256_andnot_si256(first8(from), first8(to));
}
INLINE vf v_load_some(const float *p, vmask m)
{
    return _mm256_maskload_ps(p, m);
}
INLINE void v_store_some(float *p, vmask m, vf x)
{
    _mm256_maskstore_ps(p, m, x);
}

INLINE float v_max_lanes(vf v)
{
    return max8(v);
}
INLINE float v_sum_lanes(vf v)
{
    return sum8(v);
}

#endif
#endif
