/* Vectors of floats as wide as the file is compiled for: 16 lanes with AVX-512, else 8. What is
 * written with these serves both levels; only for files compiled with AVX2, FMA and F16C. */
#ifndef TN_AVX_VEC_H
#define TN_AVX_VEC_H

#include <immintrin.h>
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
INLINE vf v_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
}

/* 2^n for whole n in [-126, 127]. */
INLINE vf v_pow2(vf n)
{
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
INLINE vf v_halves(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vf v_bytes(const int8_t *p)
{
    __m128i q = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
}

INLINE vmask v_less(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
INLINE vmask v_not_less(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ);
}
INLINE vmask v_negative(vf x)
{
    return _mm512_movepi32_mask(_mm512_castps_si512(x));
} /* sign */
INLINE vf v_select(vmask m, vf a, vf b)
{
    return _mm512_mask_blend_ps(m, b, a);
} /* m ? a : b */
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

/* Sums of all lanes of many vectors: one level halves the number of vectors and the lanes of each.
 * Lanes where `high` is set come from b and `swapped` is the other half of both, so that a level
 * costs one shuffle and not two. */
INLINE vf halved(vf a, vf b, vmask high, vf swapped)
{
    return v_add(v_select(high, b, a), swapped);
}
INLINE vf halved_8(vf a, vf b)
{
    return halved(a, b, 0xff00, _mm512_shuffle_f32x4(a, b, 0x4e));
}
INLINE vf halved_4(vf a, vf b)
{
    const __m512i i = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    return halved(a, b, 0xf0f0, _mm512_permutex2var_ps(a, i, b));
}
INLINE vf halved_2(vf a, vf b)
{
    return halved(a, b, 0xcccc, _mm512_shuffle_ps(a, b, 0x4e));
}
INLINE vf halved_1(vf a, vf b)
{
    const __m512i i = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    return halved(a, b, 0xaaaa, _mm512_permutex2var_ps(a, i, b));
}
/* Lane i: the sum of a[i]. */
INLINE __m512 v_sums16(const vf *a)
{
    vf b[8];
    UNROLL for (int i = 0; i < 8; i++) b[i] = halved_8(a[i], a[i + 8]);
    UNROLL for (int i = 0; i < 4; i++) b[i] = halved_4(b[i], b[i + 4]);
    return halved_1(halved_2(b[0], b[2]), halved_2(b[1], b[3]));
}
INLINE __m256 v_sums8(const vf *a)
{
    vf b[4];
    UNROLL for (int i = 0; i < 4; i++) b[i] = halved_8(a[i], a[i + 4]);
    const vf c = halved_2(halved_4(b[0], b[2]), halved_4(b[1], b[3]));
    return _mm512_castps512_ps256(
        _mm512_maskz_compress_ps(0x5555, v_add(c, _mm512_permute_ps(c, 0xb1))));
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
INLINE vf v_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^n for whole n in [-126, 127]. */
INLINE vf v_pow2(vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
INLINE vf v_halves(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE vf v_bytes(const int8_t *p)
{
    __m128i q = _mm_loadl_epi64((const __m128i *)(const void *)p);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

INLINE vmask v_less(vf a, vf b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE vmask v_not_less(vf a, vf b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
INLINE vmask v_negative(vf x)
{
    return _mm256_castps_si256(x);
} /* by the sign */
INLINE vf v_select(vmask m, vf a, vf b) /* m ? a : b */
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m));
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

/* Lane i: the sum of a[i]. */
INLINE __m128 v_sums4(const vf *a)
{
    vf t = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}
INLINE __m256 v_sums8(const vf *a)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(v_sums4(a)), v_sums4(a + 4), 1);
}

#endif
#endif
