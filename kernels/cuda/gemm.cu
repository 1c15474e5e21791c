/* Products with many vectors: on the 8-bit tensor cores (gemm_int8.cu), or weights are dequantised
 * piece by piece and cuBLAS multiplies.
 *
 * Quantised weights go to float16, and so do the activations. Should one of those be too large, all
 * are divided by a power of two, common to the batch and found on the device; the results are
 * multiplied by it again. Where it is 1, the kernels that apply it return at once. */
#include "blas.h"
#include "gemm.h"
#include "quantize.h"

enum { ALIGN = 256 };

/* The power of two that brings |x| <= amax below 32768; 1 where none is needed or nothing helps. */
__device__ __forceinline__ float batch_scale(const int *amax_bits)
{
    float amax, scale = 1;
    memcpy(&amax, amax_bits, 4);
    if (!(amax <= FLT_MAX)) return 1;
    while (amax > 32768.0f) {
        amax *= 0.5f;
        scale *= 2.0f;
    }
    return scale;
}

/* *amax_bits = maximum of |x|, as bits: those of non-negative floats have the floats' order. The
 * grid's first dimension goes over a row's columns, its second one over the rows. */
__global__ void find_amax(const float *x, int64_t x_stride, int cols, int n, int *amax_bits)
{
    const int c = 4 * (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float amax = 0;
    for (int64_t t = blockIdx.y; t < n && c < cols; t += gridDim.y) {
        float v[4];
        load4(v, x + t * x_stride, c, cols);
        for (int j = 0; j < 4; j++)
            amax = fmaxf(amax, fabsf(v[j]));
    }
    amax = warp_max(amax);
    int bits;
    memcpy(&bits, &amax, 4);
    if (threadIdx.x % 32 == 0) atomicMax(amax_bits, bits);
}

/* One thread for 8 columns, a divisor of cols, of every gridDim.y-th row. */
__global__ void to_half(half *out, const float *x, int64_t x_stride, int cols, int n,
                        const int *amax_bits)
{
    const int c = 8 * (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= cols) return;
    const float factor = 1.0f / batch_scale(amax_bits);
    for (int64_t t = blockIdx.y; t < n; t += gridDim.y) {
        float v[8];
        load4(v, x + t * x_stride, c, cols);
        load4(v + 4, x + t * x_stride, c + 4, cols);
        half2 h[4];
        for (int i = 0; i < 4; i++)
            h[i] = __floats2half2_rn(v[2 * i] * factor, v[2 * i + 1] * factor);
        int4 word;
        memcpy(&word, h, 16);
        *(int4 *)(out + t * cols + c) = word;
    }
}

/* y = y * scale (or / scale) + bias, one block for 1024 columns of a row. */
__global__ void rescale(float *y, int64_t y_stride, int64_t rows, const int *amax_bits, bool divide,
                        const float *bias)
{
    float factor = batch_scale(amax_bits);
    if (factor == 1 && !bias) return;
    if (divide) factor = 1.0f / factor;
    float *to = y + blockIdx.y * y_stride;
    const int64_t end = blockIdx.x * 1024 + 1024 < rows ? blockIdx.x * 1024 + 1024 : rows;
    for (int64_t r = blockIdx.x * 1024 + threadIdx.x; r < end; r += blockDim.x)
        to[r] = to[r] * factor + (bias ? bias[r] : 0);
}

static size_t padded(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* Where the pieces lie in the workspace, and how many rows of weights fit behind them. */
struct Plan {
    int *amax;
    half *x;
    void *weights;
    int64_t rows, ld; /* elements from one row of weights to the next */
};

static size_t fixed_bytes(bool quantised, int64_t n, int64_t cols)
{
    return quantised ? ALIGN + padded((size_t)n * (size_t)cols * 2) : 0;
}

static size_t row_bytes(uint32_t type, int64_t cols)
{
    if (type == TN_TYPE_F32) return 0;
    return tn_type_get(type)->block > 1 ? (size_t)cols * 2 : (size_t)(cols + 3) / 4 * 16;
}

size_t tn_cuda_gemm_bytes(uint32_t type, int64_t n, int64_t rows, int64_t cols)
{
    return fixed_bytes(tn_type_get(type)->block > 1, n, cols) +
           padded((size_t)rows * row_bytes(type, cols));
}

static Plan plan_of(const tn_dgemm *a, bool quantised)
{
    const size_t fixed = fixed_bytes(quantised, a->x.n, a->w.cols),
                 row = row_bytes(a->w.type, a->w.cols);
    uint8_t *at = (uint8_t *)a->workspace;
    Plan p = {};
    p.amax = (int *)at;
    p.x = (half *)(at + ALIGN);
    p.weights = at + fixed;
    p.ld = quantised ? a->w.cols : (int64_t)row / 4;
    p.rows = a->w.rows;
    if (row)
        p.rows = a->workspace_bytes < fixed ? 0 : (int64_t)((a->workspace_bytes - fixed) / row);
    if (p.rows > a->w.rows) p.rows = a->w.rows;
    return p;
}

/* y[n][m] = x w^T + beta y of float16 w[m][k] and x[n][k], in float32. */
static cublasStatus_t multiply_halves(cublasHandle_t h, const void *w, const void *x, float *y,
                                      int64_t y_stride, int m, int n, int k, float beta)
{
    const float one = 1;
    return cublasGemmEx(h, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one, w, CUDA_R_16F, k, x, CUDA_R_16F,
                        k, &beta, y, CUDA_R_32F, (int)y_stride, CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT);
}

tn_status tn_cuda_multiply(tn_stream *stream, const void *w, const void *x, float *y, int64_t rows,
                           int64_t n, int64_t cols)
{
    if (!w || !x || !y || rows < 1 || rows > INT32_MAX || n < 1 || n > INT32_MAX || cols < 1 ||
        cols > INT32_MAX)
        return TN_EARG;
    tn_cuda_stream(stream);
    const cublasHandle_t h = tn_cuda_blas(stream);
    if (!h) return TN_EDEVICE;
    const cublasStatus_t status =
        multiply_halves(h, w, x, y, rows, (int)rows, (int)n, (int)cols, 0);
    return status == CUBLAS_STATUS_SUCCESS ? tn_cuda_launched() : TN_EDEVICE;
}

/* y[n][rows] (+)= x w^T of the rows in the workspace, or of w itself where it is F32. */
static tn_status multiply(cublasHandle_t h, const tn_dgemm *a, const tn_dweight *w, const Plan *p,
                          bool quantised, float *y)
{
    const float one = 1, beta = a->add ? 1.0f : 0.0f;
    const int m = (int)w->rows, n = (int)a->x.n, k = (int)w->cols;
    cublasStatus_t status;
    if (quantised)
        status = multiply_halves(h, p->weights, p->x, y, a->y_stride, m, n, k, beta);
    else {
        const bool direct = w->type == TN_TYPE_F32;
        status = cublasSgemm(h, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one,
                             (const float *)(direct ? w->plane[0] : p->weights),
                             (int)(direct ? w->stride[0] / 4 : p->ld), a->x.f, (int)a->x.f_stride,
                             &beta, y, (int)a->y_stride);
    }
    return status == CUBLAS_STATUS_SUCCESS ? tn_cuda_launched() : TN_EDEVICE;
}

static tn_status prepare(cudaStream_t s, const tn_dgemm *a, const Plan *p)
{
    if (cudaMemsetAsync(p->amax, 0, sizeof(int), s) != cudaSuccess) return TN_EDEVICE;
    const int n = (int)a->x.n, cols = (int)a->x.cols;
    const unsigned across = (unsigned)(cols + 511) / 512, halves = (unsigned)(cols + 1023) / 1024;
    /* A block of the first ends in four maxima at one place, which wait for each other. */
    const unsigned down = across < 512 ? 512 / across : 1;
    LAUNCH(find_amax, dim3(across, down < (unsigned)n ? down : (unsigned)n), 128, 0, s,
           (const float *)a->x.f, a->x.f_stride, cols, n, p->amax);
    tn_status status = tn_cuda_launched();
    if (status) return status;
    LAUNCH(to_half, dim3(halves, (unsigned)(n < GRID_ROWS ? n : (int)GRID_ROWS)), 128, 0, s, p->x,
           (const float *)a->x.f, a->x.f_stride, cols, n, (const int *)p->amax);
    return tn_cuda_launched();
}

static tn_status apply_scale(cudaStream_t s, const tn_dgemm *a, const Plan *p, bool divide)
{
    const dim3 grid((unsigned)((a->w.rows + 1023) / 1024), (unsigned)a->x.n);
    LAUNCH(rescale, grid, 256, 0, s, a->y, a->y_stride, a->w.rows, (const int *)p->amax, divide,
           divide ? (const float *)nullptr : a->bias);
    return tn_cuda_launched();
}

/* All rows of w, as many at a time as the workspace holds. */
static tn_status pieces(tn_stream *stream, cudaStream_t s, const tn_dgemm *a, const Plan *p,
                        bool quantised)
{
    const cublasHandle_t h = tn_cuda_blas(stream);
    tn_status status = h ? TN_OK : TN_EDEVICE;
    for (int64_t r = 0; r < a->w.rows && !status; r += p->rows) {
        const tn_dweight w =
            tn_dweight_rows(&a->w, r, a->w.rows - r < p->rows ? a->w.rows - r : p->rows);
        if (quantised)
            status = tn_cuda_to_f16(s, &w, (half *)p->weights);
        else if (w.type != TN_TYPE_F32)
            status = tn_cuda_to_f32(s, &w, (float *)p->weights, p->ld);
        if (!status) status = multiply(h, a, &w, p, quantised, a->y + r);
    }
    return status;
}

/* Both roundings of x fit where the larger one, float16, would lie. */
static tn_status gemm_in_8_bits(tn_stream *stream, cudaStream_t s, const tn_dgemm *a, const Plan *p)
{
    tn_dacts x = a->x;
    x.q = (int8_t *)p->x;
    x.scale = (tn_dscale *)(x.q + x.n * x.cols);
    const tn_status status = tn_cuda_quantize(stream, &x);
    return status ? status : tn_cuda_gemm_int8(s, a, &x);
}

tn_status tn_cuda_gemm(tn_stream *stream, const tn_dgemm *a)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const tn_type_info *t = tn_type_get(a->w.type);
    if (!t || !t->matmul) return TN_EUNSUPPORTED;
    const bool quantised = t->block > 1;
    if (a->w.rows < 1 || a->w.rows > INT32_MAX || a->w.cols > INT32_MAX / 2 || a->x.n < 1 ||
        a->x.n > 65535 || !a->x.f || a->x.f_stride % 4 || a->x.cols != a->w.cols ||
        a->y_stride < a->w.rows || a->y_stride > INT32_MAX)
        return TN_EARG;
    const Plan p = plan_of(a, quantised);
    if (p.rows < 1) return TN_EARG;
    tn_status status = TN_OK;
    if (quantised && (a->path == TN_GEMM_INT8 ||
                      (a->path == TN_GEMM_AUTO && tn_cuda_gemm_int8_pays(a))))
        return gemm_in_8_bits(stream, s, a, &p);
    if (quantised) {
        status = prepare(s, a, &p);
        if (!status && a->add) status = apply_scale(s, a, &p, true);
        if (!status) status = pieces(stream, s, a, &p, true);
        return status ? status : apply_scale(s, a, &p, false);
    }
    status = pieces(stream, s, a, &p, false);
    if (status || !a->bias) return status;
    return tn_cuda_axpby(stream, a->y, a->y_stride, 1, nullptr, 0, 0, a->bias, a->x.n, a->w.rows);
}
