/* One thread an element: activations, sums, scales, caps. */
#include "ops.h"

__global__ void glu_rows(float *gate, int64_t gate_stride, const float *up, int64_t up_stride,
                         int cols, int act)
{
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= cols) return;
    float *g = gate + blockIdx.y * gate_stride + c;
    *g = activate(*g, act) * up[blockIdx.y * up_stride + c];
}

__global__ void axpby_rows(float *y, int64_t y_stride, float a, const float *x, int64_t x_stride,
                           float b, const float *bias, int cols)
{
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= cols) return;
    float *to = y + blockIdx.y * y_stride + c;
    float v = a * *to;
    if (x) v += b * x[blockIdx.y * x_stride + c];
    if (bias) v += bias[c];
    *to = v;
}

__global__ void softcap_rows(float *y, int64_t y_stride, int cols, float cap)
{
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= cols) return;
    float *to = y + blockIdx.y * y_stride + c;
    *to = cap * tanhf(*to / cap);
}

/* Calls launch(first row, rows) for runs of rows that fit into a grid. */
template <class Launch> static tn_status for_rows(int64_t n, int64_t cols, Launch launch)
{
    if (n < 1 || cols < 1 || cols > INT32_MAX / 2) return TN_EARG;
    const unsigned columns = (unsigned)((cols + 127) / 128);
    for (int64_t i = 0; i < n; i += GRID_ROWS) {
        const int64_t rows = n - i < GRID_ROWS ? n - i : (int64_t)GRID_ROWS;
        launch(i, dim3(columns, (unsigned)rows));
        const tn_status status = tn_cuda_launched();
        if (status) return status;
    }
    return TN_OK;
}

tn_status tn_cuda_glu(tn_stream *stream, float *gate, int64_t gate_stride, const float *up,
                      int64_t up_stride, int64_t n, int64_t cols, tn_activation act)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    return for_rows(n, cols, [=](int64_t i, dim3 grid) {
        LAUNCH(glu_rows, grid, 128, 0, s, gate + i * gate_stride, gate_stride, up + i * up_stride,
               up_stride, (int)cols, (int)act);
    });
}

tn_status tn_cuda_axpby(tn_stream *stream, float *y, int64_t y_stride, float a, const float *x,
                        int64_t x_stride, float b, const float *bias, int64_t n, int64_t cols)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    return for_rows(n, cols, [=](int64_t i, dim3 grid) {
        LAUNCH(axpby_rows, grid, 128, 0, s, y + i * y_stride, y_stride, a, x ? x + i * x_stride : x,
               x_stride, b, bias, (int)cols);
    });
}

tn_status tn_cuda_softcap(tn_stream *stream, float *y, int64_t y_stride, int64_t n, int64_t cols,
                          float cap)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (!(cap > 0)) return TN_EARG;
    return for_rows(n, cols, [=](int64_t i, dim3 grid) {
        LAUNCH(softcap_rows, grid, 128, 0, s, y + i * y_stride, y_stride, (int)cols, cap);
    });
}
