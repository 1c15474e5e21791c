/* RMS norms with what surrounds them: the residual before, the rounding to 8 bits after. */
#include "ops.h"
#include "quantize.h"

/* Sum over the block; `part` is shared memory for one value a warp, used for one sum only. */
__device__ __forceinline__ float block_sum(float v, float *part)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        v += part[i];
    return v;
}

struct NormArgs {
    float *x;
    int64_t x_stride;
    const float *r;
    int64_t r_stride;
    const float *r_norm, *w;
    float *f;
    int64_t f_stride;
    int8_t *q;
    tn_dscale *scale;
    int cols;
    float eps;
};

__device__ __forceinline__ float sum_of_squares(const float v[4])
{
    return v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
}

/* One block a row, four columns a thread at a time; a warp holds 128 consecutive columns. */
__global__ void __launch_bounds__(1024) norm_rows(NormArgs a)
{
    SHARED(float, part, [2][32]);
    const int64_t row = blockIdx.x;
    float *x = a.x + row * a.x_stride;
    const float *r = a.r ? a.r + row * a.r_stride : nullptr;
    const int step = 4 * blockDim.x, first = 4 * threadIdx.x, n = a.cols;
    float v[4], u[4], w[4], factor = 1;
    if (r && a.r_norm) {
        float sum = 0;
        for (int c = first; c < n; c += step) {
            load4(u, r, c, n);
            sum += sum_of_squares(u);
        }
        factor = 1.0f / sqrtf(block_sum(sum, part[0]) / (float)n + a.eps);
    }
    float sum = 0;
    for (int c = first; c < n; c += step) {
        load4(v, x, c, n);
        if (r) {
            load4(u, r, c, n);
            w[0] = w[1] = w[2] = w[3] = 1;
            if (a.r_norm) load4(w, a.r_norm, c, n);
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] += u[i] * factor * w[i];
            store4(x, v, c, n);
        }
        sum += sum_of_squares(v);
    }
    if (!a.f && !a.q) return;
    factor = 1.0f / sqrtf(block_sum(sum, part[1]) / (float)n + a.eps);
    for (int base = first - first % 128; base < n; base += step) { /* whole warps: they quantise */
        const int c = base + first % 128;
        load4(v, x, c, n);
        w[0] = w[1] = w[2] = w[3] = 1;
        if (a.w) load4(w, a.w, c, n);
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = v[i] * factor * w[i];
        if (a.f && c < n) store4(a.f + row * a.f_stride, v, c, n);
        if (a.q) quantize4(a.q + row * n, a.scale + row * (n / 32), v, c, c < n);
    }
}

/* One warp for 128 columns of a row. */
__global__ void quantize_rows(const float *f, int64_t f_stride, int8_t *q, tn_dscale *scale,
                              int cols)
{
    const int64_t row = blockIdx.y;
    const int c = 4 * (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float v[4] = {};
    if (c < cols) load4(v, f + row * f_stride, c, cols);
    quantize4(q + row * cols, scale + row * (cols / 32), v, c, c < cols);
}

static bool valid_q8(const tn_dacts *x)
{
    return x->q && x->scale && x->cols % 32 == 0;
}

static bool valid_size(int64_t n, int64_t cols)
{
    return n >= 1 && n <= INT32_MAX && cols >= 1 && cols <= INT32_MAX / 2;
}

tn_status tn_cuda_norm(tn_stream *stream, const tn_dnorm *a)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const int64_t cols = a->y.cols;
    if (!valid_size(a->y.n, cols) || !a->x || a->x_stride % 4 || (a->r && a->r_stride % 4))
        return TN_EARG;
    if ((a->y.f && a->y.f_stride % 4) || (a->y.q && !valid_q8(&a->y)) || (a->r_norm && !a->r))
        return TN_EARG;
    const NormArgs args = {a->x,   a->x_stride,   a->r,   a->r_stride, a->r_norm, a->w,
                           a->y.f, a->y.f_stride, a->y.q, a->y.scale,  (int)cols, a->eps};
    const int64_t threads = (cols + 127) / 128 * 32;
    LAUNCH(norm_rows, (unsigned)a->y.n, (unsigned)(threads < 1024 ? threads : 1024), 0, s, args);
    return tn_cuda_launched();
}

tn_status tn_cuda_quantize(tn_stream *stream, const tn_dacts *x)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (!valid_size(x->n, x->cols) || !x->f || x->f_stride % 4 || !valid_q8(x)) return TN_EARG;
    tn_status status = TN_OK;
    for (int64_t i = 0; i < x->n && !status; i += GRID_ROWS) {
        const int64_t rows = x->n - i < GRID_ROWS ? x->n - i : (int64_t)GRID_ROWS;
        const dim3 grid((unsigned)((x->cols + 511) / 512), (unsigned)rows);
        LAUNCH(quantize_rows, grid, 128, 0, s, (const float *)x->f + i * x->f_stride, x->f_stride,
               x->q + i * x->cols, x->scale + i * (x->cols / 32), (int)x->cols);
        status = tn_cuda_launched();
    }
    return status;
}
