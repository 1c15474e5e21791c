/* CUDA's built-in functions on one thread: integer dot products, atomics, fast mathematics. */
#ifndef TN_EMU_INTRINSICS_H
#define TN_EMU_INTRINSICS_H

#include <stdint.h>
#include <string.h>
#include <math.h>
#include <type_traits>
#ifdef __SSE4_1__
#include <immintrin.h>
#endif

/* c + the sum of four products of signed bytes */
inline int __dp4a(int a, int b, int c)
{
#ifdef __SSE4_1__
    __m128i p = _mm_madd_epi16(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(a)),
                               _mm_cvtepi8_epi16(_mm_cvtsi32_si128(b)));
    return (int)((unsigned)c + (unsigned)_mm_extract_epi32(p, 0) +
                 (unsigned)_mm_extract_epi32(p, 1));
#else
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 32; i += 8)
        sum += (unsigned)((int8_t)((unsigned)a >> i) * (int8_t)((unsigned)b >> i));
    return (int)sum;
#endif
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 32; i += 8)
        c += (a >> i & 255) * (b >> i & 255);
    return c;
}

/* Four bytes at once: wrapping, saturating. */
inline unsigned __vsub4(unsigned a, unsigned b)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8)
        r |= (((a >> i) - (b >> i)) & 255) << i;
    return r;
}
inline unsigned __vadd4(unsigned a, unsigned b)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8)
        r |= (((a >> i) + (b >> i)) & 255) << i;
    return r;
}
inline unsigned __vsubss4(unsigned a, unsigned b)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8) {
        int d = (int8_t)(a >> i) - (int8_t)(b >> i);
        r |= ((unsigned)(d < -128 ? -128 : d > 127 ? 127 : d) & 255) << i;
    }
    return r;
}
/* 0xff in each byte where they are equal, or not */
inline unsigned __vcmpeq4(unsigned a, unsigned b)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8)
        if (!(((a ^ b) >> i) & 255)) r |= 255u << i;
    return r;
}
inline unsigned __vcmpne4(unsigned a, unsigned b)
{
    return ~__vcmpeq4(a, b);
}
/* Each digit of s picks one of the eight bytes of (y, x). */
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s)
{
    uint64_t all = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = s >> 4 * i & 15, byte = (unsigned)(all >> 8 * (pick & 7)) & 255;
        if (pick & 8) byte = byte >> 7 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}

template <class V> inline V __ldg(const V *p)
{
    return *p;
}
template <class V> inline V __ldcs(const V *p)
{
    return *p;
}
template <class V> inline V __ldcg(const V *p)
{
    return *p;
}

/* Blocks of one grid are not ordered with each other: relaxed, as on the device. */
template <class V> inline V atomicAdd(V *p, V v)
{
    if constexpr (std::is_floating_point<V>::value) {
        V old, sum;
        __atomic_load(p, &old, __ATOMIC_RELAXED);
        do
            sum = old + v;
        while (
            !__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return old;
    } else {
        return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
    }
}
template <class V> inline V atomicMax(V *p, V v)
{
    V old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < v &&
           !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class V> inline V atomicMin(V *p, V v)
{
    V old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v < old &&
           !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class V> inline V atomicExch(V *p, V v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
template <class V> inline V atomicCAS(V *p, V expected, V v)
{
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
/* Adds 1, or starts again at 0 after `last`. */
inline unsigned atomicInc(unsigned *p, unsigned last)
{
    unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, old >= last ? 0 : old + 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}
inline void __threadfence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_system()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

inline float __expf(float x)
{
    return expf(x);
}
inline float __logf(float x)
{
    return logf(x);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __frcp_rn(float x)
{
    return 1.0f / x;
}
inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline float __fadd_rn(float a, float b)
{
    return a + b;
}
inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
inline void __sincosf(float x, float *s, float *c)
{
    *s = sinf(x);
    *c = cosf(x);
}
inline float __int2float_rn(int x)
{
    return (float)x;
}
inline int __float2int_rn(float x)
{
    return (int)lrintf(x);
}
inline int __float_as_int(float x)
{
    int i;
    memcpy(&i, &x, sizeof i);
    return i;
}
inline float __int_as_float(int x)
{
    float f;
    memcpy(&f, &x, sizeof f);
    return f;
}
inline unsigned __float_as_uint(float x)
{
    return (unsigned)__float_as_int(x);
}
inline float __uint_as_float(unsigned x)
{
    return __int_as_float((int)x);
}
inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

template <class V> inline V min(V a, V b)
{
    return b < a ? b : a;
}
template <class V> inline V max(V a, V b)
{
    return a < b ? b : a;
}

#endif
