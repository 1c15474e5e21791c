/* The language kernels are written in: the only header that a .cu file includes for CUDA itself.
 *
 * The same source is compiled by nvcc for a GPU and, with TN_EMU defined, by a C++17 compiler for
 * the emulated device of kernels/emu/. That works for a subset of CUDA C:
 *
 *   1. Launch by LAUNCH(kernel, grid, block, shared_bytes, stream, args...), a template kernel by
 *      LAUNCH(KERNEL(k<1, 2>), ...); never by <<<>>>. The arguments are plain values and pointers
 * to device or pinned memory; no pointer to host memory hides inside a struct or an array.
 *   2. Shared memory by SHARED(type, name, [A][B]) and at most one SHARED_DYN(type, name) a kernel,
 *      never by a bare __shared__. It starts as NaN. Above 48 KiB of dynamic shared memory
 *      GPU_ALLOW_SHARED(kernel, bytes) comes first, or the launch fails, as on the hardware.
 *   3. Every thread of a block reaches the same __syncthreads(): no return before one. In a kernel
 *      without barriers whole warps may leave early.
 *   4. Blocks are whole warps. Shuffles name exactly the lanes that take part. What a lane wrote to
 *      shared memory is seen by others after __syncwarp() or __syncthreads() only; a shuffle orders
 *      nothing. Prefer the collectives of prim.h: one rendezvous each in the emulator.
 *   5. Inline PTX lives in prim.h only, each function beside its portable twin.
 *   6. No spin-waiting between blocks, grid.sync, dynamic parallelism, __activemask, __match_*,
 *      textures, device globals, device malloc or printf, static locals, std:: containers.
 *      "The last block to arrive finishes" (an atomic counter) replaces a grid barrier.
 *   7. __constant__ holds constexpr tables only. Type punning by memcpy. 16-byte vector loads from
 *      16-byte aligned addresses. Scalars from <stdint.h>.
 *   8. Floating point: nvcc builds with -fmad=false would be slow, so a * b + c may or may not
 * fuse; write fmaf() where it matters and compare with tolerances.
 *   9. Streams are always named: the default stream is refused by the emulator.
 *
 * Code for newer hardware stands behind `#if GPU_ARCH >= 800` with a fallback that also compiles
 * for 750; in the emulator GPU_ARCH is whatever its build says (900 unless told), so both get
 * executed. */
#ifndef TN_GPU_H
#define TN_GPU_H

#ifdef TN_EMU

#include "../emu/cuda_emu.h"

#else

#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
#include <stdint.h>
#include <string.h>

/* Compute capability being compiled for, times 10, as in 750, 900; on the host side 0. */
#ifdef __CUDA_ARCH__
#define GPU_ARCH __CUDA_ARCH__
#else
#define GPU_ARCH 0
#endif

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                     \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define KERNEL(...) (__VA_ARGS__)

/* A cudaError_t: lets `kernel` be launched with up to `bytes` of dynamic shared memory on the
 * current device. Needed once per device for more than 48 KiB. */
#define GPU_ALLOW_SHARED(kernel, bytes)                                                            \
    cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (bytes))

#define SHARED(type, name, dims) __shared__ type name dims
#define SHARED_DYN(type, name)                                                                     \
    extern __shared__ __align__(16) unsigned char tn_dynamic_shared[];                             \
    type *name = reinterpret_cast<type *>(tn_dynamic_shared)

#endif

#include "prim.h"

#endif
