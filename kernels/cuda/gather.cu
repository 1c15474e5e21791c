/* Weights on their way out: rows dequantised to float32 (embeddings) or float16 (for a GEMM). */
#include "weights.h"
#include "ops.h"

enum { THREADS = 128 };

__device__ __forceinline__ int4 pack(const float *v, float)
{
    int4 word;
    memcpy(&word, v, 16);
    return word;
}

__device__ __forceinline__ int4 pack(const float *v, half)
{
    half2 h[4];
    for (int i = 0; i < 4; i++)
        h[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
    int4 word;
    memcpy(&word, h, 16);
    return word;
}

/* 16-byte words of a unit of Out, and elements in one. Word c of thread t's unit lies at slot(t, c)
 * of its row of shared memory, so that eight threads with the same c meet different banks. */
template <class Out> struct Words {
    static constexpr int n = 32 * (int)sizeof(Out) / 16, each = 32 / n;
    static __device__ __forceinline__ int slot(int t, int c)
    {
        return c ^ t / (8 / n) % n;
    }
};

/* Unit u of row `row`, times scale, to words; a row that does not exist is NaN. */
template <int T, class Out>
__device__ __forceinline__ void unpack_to(int4 *words, const tn_dweight &w, int64_t row, int u,
                                          float scale)
{
    typedef Words<Out> W;
    const bool there = row >= 0 && row < w.rows;
    RawUnit raw;
    Unit unit;
    load_unit<T>(raw, row_planes(w, there ? row : 0), u);
    unpack_unit<T>(unit, raw, u);
    if (!there) scale = NAN;
#pragma unroll
    for (int c = 0; c < W::n; c++) {
        float v[W::each];
#pragma unroll
        for (int j = 0; j < W::each; j++)
            v[j] = scale * unit_value<T>(unit, c * W::each + j);
        words[W::slot((int)threadIdx.x, c)] = pack(v, Out());
    }
}

/* One thread a unit of `units` a row; rows are those named by ids, or all from 0 where ids is NULL.
 * A warp's units go through shared memory, so that its stores fill whole sectors. */
template <int T, class Out>
__global__ void __launch_bounds__(THREADS)
    unpack_rows(tn_dweight w, const int32_t *ids, unsigned n, unsigned units, float scale, Out *out,
                int64_t stride)
{
    typedef Words<Out> W;
    SHARED(int4, words, [THREADS][W::n]);
    SHARED(Out *, to, [THREADS]);
    const int me = (int)threadIdx.x, lane = me % 32;
    const unsigned at = blockIdx.x * THREADS + threadIdx.x, i = at / units, u = at % units;
    to[me] = i < n ? out + i * stride + 32 * u : nullptr;
    if (i < n) unpack_to<T, Out>(words[me], w, ids ? ids[i] : i, (int)u, scale);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < W::n; j++) {
        const int t = me - lane + (32 * j + lane) / W::n, c = lane % W::n;
        if (to[t]) ((int4 *)to[t])[c] = words[t][W::slot(t, c)];
    }
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
    const int64_t units = w->cols / 32;
    if (n > INT32_MAX / units) return TN_EARG;
    const unsigned blocks = (unsigned)((n * units + THREADS - 1) / THREADS);
#define CALL(T)                                                                                    \
    LAUNCH(KERNEL(unpack_rows<T, float>), blocks, THREADS, 0, s, *w, ids, (unsigned)n,             \
           (unsigned)units, scale, out, stride)
    TN_FOR_QUANT(w->type, CALL, return TN_EUNSUPPORTED)
#undef CALL
    return tn_cuda_launched();
}

tn_status tn_cuda_to_f16(cudaStream_t s, const tn_dweight *w, half *out)
{
    const int64_t units = w->cols / 32;
    if (w->rows > INT32_MAX / units) return TN_EARG;
    const unsigned blocks = (unsigned)((w->rows * units + THREADS - 1) / THREADS);
    const int32_t *all = nullptr;
#define CALL(T)                                                                                    \
    LAUNCH(KERNEL(unpack_rows<T, half>), blocks, THREADS, 0, s, *w, all, (unsigned)w->rows,        \
           (unsigned)units, 1.0f, out, w->cols)
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
