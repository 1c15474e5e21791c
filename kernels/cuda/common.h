/* What every kernel file needs: CUDA's language, the op contracts, a few small helpers. */
#ifndef TN_CUDA_COMMON_H
#define TN_CUDA_COMMON_H

#include "gpu.h"

#include "../device_ops.h"

/* Most blocks in the second dimension of a grid. Fewer on the emulated device, so that tests go
 * past it. */
#ifdef TN_EMU
enum { GRID_ROWS = 256 };
#else
enum { GRID_ROWS = 65535 };
#endif

/* Loads of words that are read once, and of words that many threads read. The address is aligned to
 * the word. */
template <class T> __device__ __forceinline__ T load(const void *p)
{
    return *(const T *)p;
}

__device__ __forceinline__ float f16_bits_to_f32(uint32_t bits)
{
    const uint16_t u = (uint16_t)bits;
    half h;
    memcpy(&h, &u, 2);
    return __half2float(h);
}

__device__ __forceinline__ float bf16_bits_to_f32(uint32_t bits)
{
    const uint32_t u = bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

__device__ __forceinline__ float activate(float x, int act)
{
    if (act == TN_ACT_SILU) return x / (1.0f + expf(-x));
    /* 1 + tanh(u) = 2 / (1 + exp(-2u)) does not cancel where tanh is close to -1. */
    const float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

#endif
