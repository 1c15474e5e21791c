/* Warp collectives and the instructions that CUDA C lacks: matrix fragments, asynchronous copies.
 * Included by gpu.h. Each function exists twice: PTX for a GPU, a twin of the documented behaviour
 * for the emulated device. All of them are executed by whole warps.
 *
 * Fragment layouts (PTX ISA, "Matrix Fragments"), with g = lane / 4 and q = lane % 4:
 *   8-bit,  m16n8k16:  a[0] A[g][4q..4q+3]      a[1] A[g+8][4q..]      b B[4q..4q+3][g]
 *   16-bit, m16n8k16:  a[0] A[g][2q..2q+1]      a[1] A[g+8][2q..]      a[2] A[g][2q+8..]
 *                      a[3] A[g+8][2q+8..]      b[0] B[2q..2q+1][g]    b[1] B[2q+8..][g]
 *   result, m16n8:     d[0] D[g][2q]  d[1] D[g][2q+1]  d[2] D[g+8][2q]  d[3] D[g+8][2q+1] */
#ifndef TN_PRIM_H
#define TN_PRIM_H

#ifndef TN_GPU_H
#include "gpu.h"
#endif

#ifdef TN_EMU

#include "../emu/prim_emu.h"

#else

/* Sum, maximum, minimum over the warp, the same in every lane: the xor tree 16, 8, 4, 2, 1. */
__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}
__device__ __forceinline__ int warp_sum(int v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}
__device__ __forceinline__ float warp_min(float v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1)
        v = fminf(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}
/* The same over aligned groups of 16, 8, 4 or 2 lanes. */
template <int N> __device__ __forceinline__ float group_sum(float v)
{
#pragma unroll
    for (int m = N / 2; m; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}
template <int N> __device__ __forceinline__ float group_max(float v)
{
#pragma unroll
    for (int m = N / 2; m; m >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}

/* d[8x8] += a[8x16] * b[16x8], signed 8-bit to 32-bit: a A[g][4q..4q+3], b B[4q..4q+3][g], d
 * D[g][2q], D[g][2q+1]. */
__device__ __forceinline__ void mma_m8n8k16_s8(int d[2], int a, int b)
{
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a), "r"(b));
}
/* d[16x8] += a[16x8] * b[8x8], float16 to float32: as m16n8k16 with the first
 * half of its columns. */
__device__ __forceinline__ void mma_m16n8k8_f16(float d[4], const uint32_t a[2], uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

#endif

/* The products below from what hardware before 800 has; on newer one only tests call these. */
__device__ __forceinline__ void mma_m16n8k16_s8_parts(int d[4], const int a[2], int b)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        mma_m8n8k16_s8(d + 2 * i, a[i], b);
}
__device__ __forceinline__ void mma_m16n8k16_f16_parts(float d[4], const uint32_t a[4],
                                                       const uint32_t b[2])
{
#pragma unroll
    for (int k = 0; k < 2; k++)
        mma_m16n8k8_f16(d, a + 2 * k, b[k]);
}

#if GPU_ARCH < 800

__device__ __forceinline__ void mma_m16n8k16_s8(int d[4], const int a[2], int b)
{
    mma_m16n8k16_s8_parts(d, a, b);
}
__device__ __forceinline__ void mma_m16n8k16_f16(float d[4], const uint32_t a[4],
                                                 const uint32_t b[2])
{
    mma_m16n8k16_f16_parts(d, a, b);
}

#elif !defined TN_EMU

/* d[16x8] += a[16x16] * b[16x8], signed 8-bit to 32-bit. */
__device__ __forceinline__ void mma_m16n8k16_s8(int d[4], const int a[2], int b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

/* d[16x8] += a[16x16] * b[16x8], float16 to float32. a, b: two elements a register. */
__device__ __forceinline__ void mma_m16n8k16_f16(float d[4], const uint32_t a[4],
                                                 const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

#ifndef TN_EMU

/* Loads four (two) 8x8 matrices of 16-bit elements from shared memory. Lane 8i + r gives the
 * address of row r of matrix i, 16-byte aligned; r[i] of lane 4r + q receives elements 2q, 2q + 1
 * of row r. With x2 the addresses of lanes 16 and up do not matter, but must be valid. trans: of
 * column r. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t r[2], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}

/* Copies 16 aligned bytes from device to shared memory, or zeroes them where !valid. The bytes are
 * there for this thread after cp_async_wait, for the others after a barrier following it. Where the
 * hardware lacks asynchronous copies it copies at once. A kernel waits for all its copies. */
__device__ __forceinline__ void cp_async16(void *shared, const void *device, bool valid = true)
{
#if GPU_ARCH >= 800
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(device),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    *(int4 *)shared = valid ? *(const int4 *)device : make_int4(0, 0, 0, 0);
#endif
}
/* Ends a group of copies. */
__device__ __forceinline__ void cp_async_commit()
{
#if GPU_ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* Waits until at most N of the newest groups are on their way. */
template <int N> __device__ __forceinline__ void cp_async_wait()
{
#if GPU_ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

#endif
#endif
