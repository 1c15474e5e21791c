/* float16 and bfloat16 <-> float32 in portable C, bit for bit what F16C hardware does. */
#ifndef TN_F16_H
#define TN_F16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t tn_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
static inline float tn_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Exact; a signalling NaN becomes quiet. */
static inline float tn_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 0x1fu, man = h & 0x3ffu;
    if (exp == 0x1f)
        return tn_f32_from_bits(sign | 0x7f800000u | (man ? 0x400000u : 0) | man << 13);
    if (exp) return tn_f32_from_bits(sign | (exp + 112) << 23 | man << 13);
    float f = (float)man * 0x1p-24f; /* subnormal or zero */
    return sign ? -f : f;
}

/* Round to nearest even; too large becomes infinity; NaN stays NaN, quiet. */
static inline uint16_t tn_f32_to_f16(float f)
{
    uint32_t u = tn_f32_bits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and up */
    if (a >= 0x38800000u) /* normal in float16 */
        return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13));
    if (a < 0x33000000u) return (uint16_t)sign; /* below half of the smallest subnormal */
    /* Subnormal: shift the full mantissa down, to nearest, ties to even. */
    uint32_t man = (a & 0x7fffffu) | 0x800000u, shift = 126 - (a >> 23);
    uint32_t q = man >> shift, rest = man & ((1u << shift) - 1), half = 1u << (shift - 1);
    return (uint16_t)(sign | (q + (rest > half || (rest == half && (q & 1)))));
}

static inline float tn_bf16_to_f32(uint16_t h)
{
    return tn_f32_from_bits((uint32_t)h << 16);
}

/* Round to nearest even; NaN stays NaN, quiet. */
static inline uint16_t tn_f32_to_bf16(float f)
{
    uint32_t u = tn_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

#endif
