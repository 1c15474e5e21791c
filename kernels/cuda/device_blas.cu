/* The cuBLAS handle of a device. */
#include "blas.h"

bool tn_cuda_open_blas(tn_cuda_device *d)
{
    cublasHandle_t h;
    if (d->blas) return true;
    if (cublasCreate(&h) != CUBLAS_STATUS_SUCCESS) return false;
    d->blas = (struct cublasContext *)h;
    return true;
}

cublasHandle_t tn_cuda_blas(tn_stream *s)
{
    tn_cuda_device *d = s->device;
    tn_cuda_enter(d);
    if (!tn_cuda_open_blas(d)) return NULL;
    const cublasHandle_t h = (cublasHandle_t)d->blas;
    if (cublasSetStream(h, s->stream) != CUBLAS_STATUS_SUCCESS ||
        cublasSetMathMode(h, CUBLAS_DEFAULT_MATH) != CUBLAS_STATUS_SUCCESS)
        return NULL;
    return h;
}

void tn_cuda_close_blas(tn_cuda_device *d)
{
    /* It waits for the stream it was set to last, which is gone by now. */
    if (d->blas && cublasSetStream((cublasHandle_t)d->blas, d->copies) == CUBLAS_STATUS_SUCCESS)
        cublasDestroy((cublasHandle_t)d->blas);
    d->blas = NULL;
}
