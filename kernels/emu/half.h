/* float16 and bfloat16: the functions of <cuda_fp16.h> and <cuda_bf16.h> that the kernels use.
 * Arithmetic rounds once per operation, as the hardware does; a fused one rounds once in all. */
#ifndef TN_EMU_HALF_H
#define TN_EMU_HALF_H

#include "../f16.h"
#include "vector.h"

#include <math.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

struct __half {
    uint16_t bits;
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct __attribute__((aligned(4))) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __half half;
typedef __half2 half2;

inline float __half2float(half h)
{
#ifdef __F16C__
    return _cvtsh_ss(h.bits);
#else
    return tn_f16_to_f32(h.bits);
#endif
}
inline half __float2half(float f)
{
#ifdef __F16C__
    return half{(uint16_t)_cvtss_sh(f, 0)};
#else
    return half{tn_f32_to_f16(f)};
#endif
}
inline half __float2half_rn(float f)
{
    return __float2half(f);
}
inline float __bfloat162float(__nv_bfloat16 h)
{
    return tn_bf16_to_f32(h.bits);
}
inline __nv_bfloat16 __float2bfloat16(float f)
{
    return __nv_bfloat16{tn_f32_to_bf16(f)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
    return __float2bfloat16(f);
}

inline half __ushort_as_half(unsigned short bits)
{
    return half{bits};
}
inline unsigned short __half_as_ushort(half h)
{
    return h.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits)
{
    return __nv_bfloat16{bits};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h)
{
    return h.bits;
}

inline half __hadd(half a, half b)
{
    return __float2half(__half2float(a) + __half2float(b));
}
inline half __hsub(half a, half b)
{
    return __float2half(__half2float(a) - __half2float(b));
}
inline half __hmul(half a, half b)
{
    return __float2half(__half2float(a) * __half2float(b));
}
inline half __hfma(half a, half b, half c)
{
    /* The product and the sum of halves are exact in double: rounded once, to float16. */
    double exact = (double)__half2float(a) * __half2float(b) + __half2float(c);
    float f = (float)exact;
    if (f != exact && f - exact == f - exact) { /* sticky last bit, so that float16 rounds right */
        uint32_t u = tn_f32_bits(f);
        if (!(u & 1)) u += (f < exact) == (f > 0) ? 1u : ~0u;
        f = tn_f32_from_bits(u);
    }
    return __float2half(f);
}
inline bool __hisnan(half h)
{
    return (h.bits & 0x7fff) > 0x7c00;
}
inline int __hisinf(half h)
{
    return (h.bits & 0x7fff) == 0x7c00 ? (h.bits >> 15 ? -1 : 1) : 0;
}
inline half operator+(half a, half b)
{
    return __hadd(a, b);
}
inline half operator-(half a, half b)
{
    return __hsub(a, b);
}
inline half operator*(half a, half b)
{
    return __hmul(a, b);
}

inline half2 __halves2half2(half a, half b)
{
    return half2{a, b};
}
inline half2 __half2half2(half a)
{
    return half2{a, a};
}
inline half __low2half(half2 h)
{
    return h.x;
}
inline half __high2half(half2 h)
{
    return h.y;
}
inline float __low2float(half2 h)
{
    return __half2float(h.x);
}
inline float __high2float(half2 h)
{
    return __half2float(h.y);
}
inline float2 __half22float2(half2 h)
{
    return {__half2float(h.x), __half2float(h.y)};
}
inline half2 __floats2half2_rn(float a, float b)
{
    return {__float2half(a), __float2half(b)};
}
inline half2 __float22half2_rn(float2 f)
{
    return __floats2half2_rn(f.x, f.y);
}
inline half2 __hadd2(half2 a, half2 b)
{
    return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
inline half2 __hsub2(half2 a, half2 b)
{
    return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
inline half2 __hmul2(half2 a, half2 b)
{
    return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
inline half2 __hfma2(half2 a, half2 b, half2 c)
{
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

inline float2 __bfloat1622float2(__nv_bfloat162 h)
{
    return {__bfloat162float(h.x), __bfloat162float(h.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b)
{
    return {__float2bfloat16(a), __float2bfloat16(b)};
}

#endif
