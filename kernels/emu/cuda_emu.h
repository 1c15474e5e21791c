/* The emulated CUDA device, as kernels and device code see it: what <cuda_runtime.h>,
 * <cuda_fp16.h>, <cuda_bf16.h> and <mma.h> would declare, for a C++17 compiler. Included by
 * cuda/gpu.h.
 *
 * One streaming multiprocessor runs one block at a time. Its threads are fibers, created when a
 * thread has to wait and not before; blocks of kernels in different streams alternate. A stream is
 * an operating system thread with a queue, so what is asynchronous on a GPU really is asynchronous
 * here. Whatever a GPU would not forgive ends the process with a sentence on stderr (emu.h). */
#ifndef TN_CUDA_EMU_H
#define TN_CUDA_EMU_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ shared_memory_is_declared_by_SHARED_or_SHARED_DYN

/* The compute capability that is emulated, times 10. */
#ifndef GPU_ARCH
#define GPU_ARCH 900
#endif

#include "vector.h"
#include "half.h"
#include "thread.h"
#include "intrinsics.h"
#include "wmma.h"
#include "cuda_api.h"
#include "launch.h"

#endif
