/* Rounding activations to 8 bits with a scale for every 16, shared by the ops that produce them. */
#ifndef TN_CUDA_QUANTIZE_H
#define TN_CUDA_QUANTIZE_H

#include "common.h"

#include <float.h>

/* Elements c .. c + 3 of a row of n; those behind its end are 0. p + c is 16-byte aligned. */
__device__ __forceinline__ void load4(float v[4], const float *p, int c, int n)
{
    v[0] = v[1] = v[2] = v[3] = 0;
    if (c + 4 <= n) {
        const float4 f = *(const float4 *)(p + c);
        v[0] = f.x;
        v[1] = f.y;
        v[2] = f.z;
        v[3] = f.w;
        return;
    }
    for (int i = 0; c + i < n; i++)
        v[i] = p[c + i];
}

__device__ __forceinline__ void store4(float *p, const float v[4], int c, int n)
{
    if (c + 4 <= n)
        *(float4 *)(p + c) = make_float4(v[0], v[1], v[2], v[3]);
    else
        for (int i = 0; c + i < n; i++)
            p[c + i] = v[i];
}

/* Stores four elements of a row at column c, a multiple of 4, as 8-bit numbers. The whole warp
 * calls it, its lanes holding consecutive columns from a multiple of 32 on; lanes without elements
 * (!valid) must come in groups of 8. */
__device__ __forceinline__ void quantize4(int8_t *q, tn_dscale *scale, const float v[4], int c,
                                          bool valid)
{
    float amax = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float a = fabsf(v[i]);
        amax = a <= FLT_MAX ? fmaxf(amax, a) : INFINITY; /* a NaN must not be lost in a maximum */
    }
    amax = group_max<4>(valid ? amax : 0);
    const bool finite = amax <= FLT_MAX;
    float d = finite ? amax / 127.0f : 0;
    if (d < FLT_MIN) d = 0;
    uint32_t word = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = d > 0 ? __float2int_rn(v[i] / d) : 0;
        sum += r;
        word |= (uint32_t)(r & 255) << 8 * i;
    }
    sum = (int)group_sum<4>((float)sum);
    if (!valid) return;
    *(uint32_t *)(q + c) = word;
    if (c % 16) return;
    scale[c / 32].d[c % 32 / 16] = finite ? d : NAN;
    scale[c / 32].sum[c % 32 / 16] = sum;
}

#endif
