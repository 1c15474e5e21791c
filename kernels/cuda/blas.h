/* cuBLAS, or the emulated device's, for ops. */
#ifndef TN_CUDA_BLAS_H
#define TN_CUDA_BLAS_H

#include "impl.h"

#ifdef TN_EMU
#include "../emu/cublas.h"
#else
#include <cublas_v2.h>
#endif

/* The device's handle, made on first use, set to the stream; TF32 is off. NULL if cuBLAS fails.
 * One thread at a time per device. What is queued with it is launched in the stream, so
 * tn_cuda_launched follows. May be used while a graph is recorded once it has been used before. */
cublasHandle_t tn_cuda_blas(tn_stream *s);

#endif
