/* The two ways of a product with a batch: gemm.cu chooses. */
#ifndef TN_CUDA_GEMM_H
#define TN_CUDA_GEMM_H

#include "ops.h"

/* Whether 8 bits are the better way for this product of quantised weights. */
bool tn_cuda_gemm_int8_pays(const tn_dgemm *a);
/* The product with x, which is a's activations rounded. Quantised types only. */
tn_status tn_cuda_gemm_int8(cudaStream_t s, const tn_dgemm *a, const tn_dacts *x);

#endif
