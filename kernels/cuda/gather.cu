/* Weights on their way out: rows dequantised to float32 (embeddings) or float16 (for a GEMM). */
#include "weights.h"
#include "ops.h"

__device__ __forceinline__ void store8(float *to, const float *v)
{
    *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
    *(float4 *)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ __forceinline__ void store8(half *to, const float *v)
{
    half2 h[4];
    for (int i = 0; i < 4; i++)
        h[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
    int4 word;
    memcpy(&word, h, 16);
    *(int4 *)to = word;
}

/* Unit u of row `row`, times scale, to out[32]. */
template <int T, class Out>
__device__ void unpack_to(Out *out, const tn_dweight &w, int64_t row, int64_t u, float scale)
{
    RawUnit raw;
    Unit unit;
    load_unit<T>(raw, row_planes(w, row), (int)u);
    unpack_unit<T>(unit, raw, (int)u);
#pragma unroll
    for (int i = 0; i < 32; i += 8) {
        float v[8];
        for (int j = 0; j < 8; j++)
            v[j] = scale * unit_value<T>(unit, i + j);
        store8(out + i, v);
    }
}

/* One thread a unit; rows are those named by ids, or all from 0 where ids is NULL. */
template <int T, class Out>
__global__ void unpack_rows(tn_dweight w, const int32_t *ids, int64_t n, float scale, Out *out,
                            int64_t stride)
{
    const int64_t units = w.cols / 32, at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= units * n) return;
    const int64_t i = at / units, u = at % units, row = ids ? ids[i] : i;
    Out *to = out + i * stride + 32 * u;
    if (row >= 0 && row < w.rows) {
        unpack_to<T>(to, w, row, u, scale);
        return;
    }
    const float nan[8] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    for (int j = 0; j < 32; j += 8)
        store8(to + j, nan);
}

__device__ __forceinline__ float element(const tn_dweight &w, int64_t row, int64_t c)
{
    const uint8_t *p = w.plane[0] + row * w.stride[0];
    if (w.type == TN_TYPE_F32) return load<float>(p + 4 * c);
    const uint32_t bits = load<uint16_t>(p + 2 * c);
    return w.type == TN_TYPE_F16 ? f16_bits_to_f32(bits) : bf16_bits_to_f32(bits);
}

__global__ void unpack_floats(tn_dweight w, const int32_t *ids, int64_t n, float scale, float *out,
                              int64_t stride)
{
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= w.cols * n) return;
    const int64_t i = at / w.cols, c = at % w.cols, row = ids ? ids[i] : i;
    out[i * stride + c] = row >= 0 && row < w.rows ? scale * element(w, row, c) : NAN;
}

tn_status tn_cuda_gather(tn_stream *stream, const tn_dweight *w, const int32_t *ids, int64_t n,
                         float scale, float *out, int64_t stride)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const tn_type_info *t = tn_type_get(w->type);
    if (!t || n < 1 || stride % 4 || stride < w->cols) return TN_EARG;
    if (t->block == 1) {
        LAUNCH(unpack_floats, (unsigned)((n * w->cols + 127) / 128), 128, 0, s, *w, ids, n, scale,
               out, stride);
        return tn_cuda_launched();
    }
    const unsigned blocks = (unsigned)((n * (w->cols / 32) + 127) / 128);
#define CALL(T)                                                                                    \
    LAUNCH(KERNEL(unpack_rows<T, float>), blocks, 128, 0, s, *w, ids, n, scale, out, stride)
    TN_FOR_QUANT(w->type, CALL, return TN_EUNSUPPORTED)
#undef CALL
    return tn_cuda_launched();
}

tn_status tn_cuda_to_f16(cudaStream_t s, const tn_dweight *w, half *out)
{
    const unsigned blocks = (unsigned)((w->rows * (w->cols / 32) + 127) / 128);
    const int32_t *all = nullptr;
#define CALL(T)                                                                                    \
    LAUNCH(KERNEL(unpack_rows<T, half>), blocks, 128, 0, s, *w, all, w->rows, 1.0f, out, w->cols)
    TN_FOR_QUANT(w->type, CALL, return TN_EUNSUPPORTED)
#undef CALL
    return tn_cuda_launched();
}

tn_status tn_cuda_to_f32(cudaStream_t s, const tn_dweight *w, float *out, int64_t stride)
{
    const int32_t *all = nullptr;
    LAUNCH(unpack_floats, (unsigned)((w->rows * w->cols + 127) / 128), 128, 0, s, *w, all, w->rows,
           1.0f, out, stride);
    return tn_cuda_launched();
}
