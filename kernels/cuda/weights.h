/* Weights on the device: what the planes of a tn_dweight hold, and how 32 columns are unpacked.
 *
 * Unit u of a row is its columns 32 u .. 32 u + 31; elements 0..15 of a unit are half 0, the others
 * half 1. Types with super-blocks have 8 units a super-block, b = u / 8, i = u % 8.
 *
 * plane 0, quants
 *   4-, 5-, 6-bit types  16 bytes a unit: byte j holds the low four bits of element j in its low
 *                        nibble and of element j + 16 in its high nibble
 *   Q2_K, Q3_K           two words a unit, one a half: bits 8 e + 2 k, + 1 of word h are the low
 * two bits of element 16 h + 4 k + e Q8_0                 32 bytes a unit, signed plane 1, high
 * bits Q5_0, Q5_1, Q5_K, Q3_K  a word a unit: bit 8 e + 4 h + k belongs to element 16 h + 4 k + e
 *   Q6_K                 two words a unit, as the quants of Q2_K
 * plane 2, scale bytes
 *   Q2_K, Q6_K           16 bytes a super-block, as in the file
 *   Q4_K, Q5_K           three words a super-block: nibble i of word 0 and of word 1 are the low
 * four bits of scale i and minimum i; bits 2 i, + 1 and 16 + 2 i, + 1 of word 2 the high two Q3_K
 * three words a super-block: nibble s % 8 of word s / 8 holds the low four bits of scale s, bits 2
 * s, + 1 of word 2 the high two plane 3, float16 scales d of a block; d and m of Q4_1, Q5_1; d and
 * dmin of Q2_K, Q4_K, Q5_K, side by side */
#ifndef TN_CUDA_WEIGHTS_H
#define TN_CUDA_WEIGHTS_H

#include "common.h"

/* The planes of one row. */
struct RowPlanes {
    const uint8_t *p[TN_DPLANES];
};

__device__ __forceinline__ RowPlanes row_planes(const tn_dweight &w, int64_t row)
{
    RowPlanes r;
#pragma unroll
    for (int i = 0; i < TN_DPLANES; i++)
        r.p[i] = w.plane[i] + row * w.stride[i];
    return r;
}

/* 32 columns: element 16 h + 4 k + e is byte e of q[4 h + k], and stands for
 * a[h] * (q - offset) - b[h], where offset is a constant of the type. */
struct Unit {
    int q[8];
    float a[2], b[2];
};

template <int T> struct Traits {
    static constexpr bool five = T == TN_TYPE_Q5_0 || T == TN_TYPE_Q5_1 || T == TN_TYPE_Q5_K;
    static constexpr bool two = T == TN_TYPE_Q2_K || T == TN_TYPE_Q3_K;
    static constexpr bool super =
        two || T == TN_TYPE_Q4_K || T == TN_TYPE_Q5_K || T == TN_TYPE_Q6_K;
    static constexpr bool minimum = T == TN_TYPE_Q4_1 || T == TN_TYPE_Q5_1 || T == TN_TYPE_Q2_K ||
                                    T == TN_TYPE_Q4_K || T == TN_TYPE_Q5_K;
    static constexpr bool packed = T == TN_TYPE_Q3_K || T == TN_TYPE_Q4_K || T == TN_TYPE_Q5_K;
    static constexpr int offset = T == TN_TYPE_Q4_0   ? 8
                                  : T == TN_TYPE_Q5_0 ? 16
                                  : T == TN_TYPE_Q6_K ? 32
                                  : T == TN_TYPE_Q3_K ? 4
                                                      : 0;
    static constexpr int high_words = T == TN_TYPE_Q6_K ? 2 : five || T == TN_TYPE_Q3_K ? 1 : 0;
};

/* A unit as it is loaded, unpacked later so that several loads are in flight. Members that a type
 * does not use cost nothing once the compiler is through. */
struct RawUnit {
    int4 q0, q1;
    uint32_t high[2], scale[3], d;
};

template <int T> __device__ __forceinline__ void load_unit(RawUnit &r, const RowPlanes &w, int u)
{
    typedef Traits<T> Ty;
    const int64_t i = u;
    r = RawUnit();
    if (T == TN_TYPE_Q8_0) {
        r.q0 = load<int4>(w.p[0] + 32 * i);
        r.q1 = load<int4>(w.p[0] + 32 * i + 16);
    } else if (Ty::two) {
        const int2 q = load<int2>(w.p[0] + 8 * i);
        r.q0.x = q.x;
        r.q0.y = q.y;
    } else {
        r.q0 = load<int4>(w.p[0] + 16 * i);
    }
    if (Ty::high_words == 1) r.high[0] = load<uint32_t>(w.p[1] + 4 * i);
    if (Ty::high_words == 2) {
        const uint2 h = load<uint2>(w.p[1] + 8 * i);
        r.high[0] = h.x;
        r.high[1] = h.y;
    }
    if (Ty::packed) {
        const uint8_t *s = w.p[2] + 12 * (i / 8);
        r.scale[0] = load<uint32_t>(s);
        r.scale[1] = load<uint32_t>(s + 4);
        r.scale[2] = load<uint32_t>(s + 8);
    } else if (Ty::super) {
        r.scale[0] = load<uint16_t>(w.p[2] + 2 * i);
    }
    const int64_t block = Ty::super ? i / 8 : i;
    r.d = Ty::minimum ? load<uint32_t>(w.p[3] + 4 * block) : load<uint16_t>(w.p[3] + 2 * block);
}

/* Nibble k of a word. */
__device__ __forceinline__ int nibble(uint32_t w, int k)
{
    return (int)(w >> 4 * k & 15);
}
__device__ __forceinline__ int pair(uint32_t w, int k)
{
    return (int)(w >> 2 * k & 3);
}

template <int T> __device__ __forceinline__ void unpack_quants(Unit &u, const RawUnit &r)
{
    typedef Traits<T> Ty;
    const int w[8] = {r.q0.x, r.q0.y, r.q0.z, r.q0.w, r.q1.x, r.q1.y, r.q1.z, r.q1.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t lo, hi;
        if (T == TN_TYPE_Q8_0) {
            u.q[k] = w[k];
            u.q[4 + k] = w[4 + k];
            continue;
        }
        if (Ty::two) {
            lo = (uint32_t)w[0] >> 2 * k & 0x03030303;
            hi = (uint32_t)w[1] >> 2 * k & 0x03030303;
        } else {
            lo = (uint32_t)w[k] & 0x0f0f0f0f;
            hi = (uint32_t)w[k] >> 4 & 0x0f0f0f0f;
        }
        if (Ty::five) {
            lo |= r.high[0] << (4 - k) & 0x10101010;
            hi |= r.high[0] >> k & 0x10101010;
        }
        if (T == TN_TYPE_Q3_K) {
            lo |= (k < 2 ? r.high[0] << (2 - k) : r.high[0] >> (k - 2)) & 0x04040404;
            hi |= r.high[0] >> (k + 2) & 0x04040404;
        }
        if (T == TN_TYPE_Q6_K) {
            lo |= (k < 2 ? r.high[0] << (4 - 2 * k) : r.high[0] >> (2 * k - 4)) & 0x30303030;
            hi |= (k < 2 ? r.high[1] << (4 - 2 * k) : r.high[1] >> (2 * k - 4)) & 0x30303030;
        }
        u.q[k] = (int)lo;
        u.q[4 + k] = (int)hi;
    }
}

/* Unpacks unit number `index` of its row. */
template <int T> __device__ __forceinline__ void unpack_unit(Unit &u, const RawUnit &r, int index)
{
    typedef Traits<T> Ty;
    const int i = index % 8;
    const float d = f16_bits_to_f32(r.d & 0xffff), m = Ty::minimum ? f16_bits_to_f32(r.d >> 16) : 0;
    unpack_quants<T>(u, r);
    u.b[0] = u.b[1] = 0;
    if (T == TN_TYPE_Q4_K || T == TN_TYPE_Q5_K) {
        const int sc = nibble(r.scale[0], i) | pair(r.scale[2], i) << 4;
        const int mn = nibble(r.scale[1], i) | pair(r.scale[2], 8 + i) << 4;
        u.a[0] = u.a[1] = d * (float)sc;
        u.b[0] = u.b[1] = m * (float)mn;
    } else if (Ty::super) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int byte = (int)(r.scale[0] >> 8 * h & 255), s = 2 * i + h;
            if (T == TN_TYPE_Q2_K) {
                u.a[h] = d * (float)(byte & 15);
                u.b[h] = m * (float)(byte >> 4);
            } else if (T == TN_TYPE_Q6_K) {
                u.a[h] = d * (float)(int8_t)byte;
            } else {
                const int low = nibble(i < 4 ? r.scale[0] : r.scale[1], s % 8);
                u.a[h] = d * (float)((low | pair(r.scale[2], s) << 4) - 32);
            }
        }
    } else {
        u.a[0] = u.a[1] = d;
        if (Ty::minimum) u.b[0] = u.b[1] = -m;
    }
}

/* Element e (0..31) of an unpacked unit. */
template <int T> __device__ __forceinline__ float unit_value(const Unit &u, int e)
{
    const int q = (int)(int8_t)(u.q[e / 4] >> 8 * (e % 4));
    return u.a[e / 16] * (float)(q - Traits<T>::offset) - u.b[e / 16];
}

/* CALL(T) for the quantised type id `type`; `otherwise` for any other. */
#define TN_FOR_QUANT(type, CALL, otherwise)                                                        \
    switch (type) {                                                                                \
    case TN_TYPE_Q4_0: CALL(TN_TYPE_Q4_0); break;                                                  \
    case TN_TYPE_Q4_1: CALL(TN_TYPE_Q4_1); break;                                                  \
    case TN_TYPE_Q5_0: CALL(TN_TYPE_Q5_0); break;                                                  \
    case TN_TYPE_Q5_1: CALL(TN_TYPE_Q5_1); break;                                                  \
    case TN_TYPE_Q8_0: CALL(TN_TYPE_Q8_0); break;                                                  \
    case TN_TYPE_Q2_K: CALL(TN_TYPE_Q2_K); break;                                                  \
    case TN_TYPE_Q3_K: CALL(TN_TYPE_Q3_K); break;                                                  \
    case TN_TYPE_Q4_K: CALL(TN_TYPE_Q4_K); break;                                                  \
    case TN_TYPE_Q5_K: CALL(TN_TYPE_Q5_K); break;                                                  \
    case TN_TYPE_Q6_K: CALL(TN_TYPE_Q6_K); break;                                                  \
    default: otherwise;                                                                            \
    }

#endif
