/* Mat-vecs of unquantised weights: float32 activations and sums. Also the entry of all mat-vecs. */
#include "matvec.h"

/* Elements in a 16-byte word, and their values. */
template <int T> struct Word {
    static constexpr int n = T == TN_TYPE_F32 ? 4 : 8;
    static __device__ __forceinline__ void unpack(float v[n], const int4 &w)
    {
        const int word[4] = {w.x, w.y, w.z, w.w};
        if constexpr (T == TN_TYPE_F32) {
            memcpy(v, word, 16);
        } else {
#pragma unroll
            for (int i = 0; i < n; i++) {
                const uint32_t bits = (uint32_t)word[i / 2] >> 16 * (i % 2) & 0xffff;
                v[i] = T == TN_TYPE_F16 ? f16_bits_to_f32(bits) : bf16_bits_to_f32(bits);
            }
        }
    }
};

/* The products of one word of both rows with the vectors; `count` elements of it are there. */
template <int T, int N>
__device__ __forceinline__ void float_step(const MatvecArgs &m, const MatvecPlace &p,
                                           const int4 raw[2], int u, int count, float acc[2][N])
{
    constexpr int n = Word<T>::n;
    float w[2][n];
    Word<T>::unpack(w[0], raw[0]);
    Word<T>::unpack(w[1], raw[1]);
#pragma unroll
    for (int t = 0; t < N; t++) {
        const int64_t v = p.x0 + (N == 1 ? 0 : min(t, m.n - 1));
        const float *x = m.f + v * m.f_stride + (int64_t)n * u;
        if (count < n) {
            for (int i = 0; i < count; i++)
                for (int r = 0; r < 2; r++)
                    acc[r][t] = fmaf(w[r][i], x[i], acc[r][t]);
            continue;
        }
#pragma unroll
        for (int i = 0; i < n; i += 4) {
            const float4 f = *(const float4 *)(x + i);
            const float xs[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    acc[r][t] = fmaf(w[r][i + j], xs[j], acc[r][t]);
        }
    }
}

template <int T, int N>
__global__ void __launch_bounds__(MATVEC_WARPS * 32) matvec_float(MatvecArgs m)
{
    constexpr int n = Word<T>::n;
    const MatvecPlace p = matvec_place(m);
    float acc[2][N] = {};
    if (p.active && !p.zero) {
        const tn_dweight &w = m.part[p.part].w, &second = m.up.plane[0] ? m.up : w;
        const int4 *w0 = (const int4 *)(w.plane[0] + (p.base + p.row[0]) * w.stride[0]);
        const int4 *w1 = (const int4 *)(second.plane[0] + (p.base + p.row[1]) * second.stride[0]);
        const int words = (m.cols + n - 1) / n, step = 32 * m.split;
        int u = threadIdx.x % 32 + 32 * (threadIdx.x / 32 % m.split);
        int4 raw[2] = {}, next[2] = {};
        if (u < words) {
            raw[0] = w0[u];
            raw[1] = w1[u];
        }
        for (; u < words; u += step) {
            if (u + step < words) {
                next[0] = w0[u + step];
                next[1] = w1[u + step];
            }
            float_step<T, N>(m, p, raw, u, m.cols - n * u, acc);
            raw[0] = next[0];
            raw[1] = next[1];
        }
    }
    matvec_finish<N>(m, p, acc);
}

template <int T> static tn_status launch_float(cudaStream_t s, const tn_dmatvec *a)
{
    const MatvecArgs m = tn_cuda_matvec_args(a);
    const dim3 grid = tn_cuda_matvec_grid(m, a);
    if (m.n == 1)
        LAUNCH(KERNEL(matvec_float<T, 1>), grid, MATVEC_WARPS * 32, 0, s, m);
    else if (m.n == 2)
        LAUNCH(KERNEL(matvec_float<T, 2>), grid, MATVEC_WARPS * 32, 0, s, m);
    else if (m.n <= 4)
        LAUNCH(KERNEL(matvec_float<T, 4>), grid, MATVEC_WARPS * 32, 0, s, m);
    else
        LAUNCH(KERNEL(matvec_float<T, 8>), grid, MATVEC_WARPS * 32, 0, s, m);
    return tn_cuda_launched();
}

tn_status tn_cuda_matvec_float(cudaStream_t s, const tn_dmatvec *a)
{
    switch (a->w.type) {
    case TN_TYPE_F32: return launch_float<TN_TYPE_F32>(s, a);
    case TN_TYPE_F16: return launch_float<TN_TYPE_F16>(s, a);
    case TN_TYPE_BF16: return launch_float<TN_TYPE_BF16>(s, a);
    default: return TN_EUNSUPPORTED;
    }
}

/* Whether the products beside the first are of its kind, and without gaps. */
static bool valid_more(const tn_dmatvec *a)
{
    bool last = false;
    for (const tn_dproduct &p : a->more) {
        if (!p.w.plane[0]) {
            last = true;
            continue;
        }
        if (last || a->up.plane[0] || a->add || a->expert || p.w.type != a->w.type ||
            p.w.cols != a->w.cols || p.w.rows < 1 || p.y_stride < p.w.rows)
            return false;
    }
    return true;
}

static bool valid(const tn_dmatvec *a, bool quantised)
{
    const bool glu = a->up.plane[0] != nullptr;
    if (a->w.rows < 1 || a->w.cols < 1 || a->w.cols > INT32_MAX / 2 || a->x.cols != a->w.cols)
        return false;
    if (glu &&
        (a->add || a->up.type != a->w.type || a->up.rows != a->w.rows || a->up.cols != a->w.cols))
        return false;
    if (quantised ? !a->x.q || !a->x.scale : !a->x.f || a->x.f_stride % 4) return false;
    if (!valid_more(a)) return false;
    if (a->expert)
        return a->rows > 0 && a->w.rows % a->rows == 0 && a->n_items > 0 && a->per_token > 0 &&
               a->per_token <= GRID_ROWS && a->y_stride >= a->rows;
    return a->x.n >= 1 && a->x.n <= TN_MATVEC_MAX && a->y_stride >= a->w.rows;
}

static tn_status matvec_any(cudaStream_t s, const tn_dmatvec *a, uint32_t block)
{
    return block == 1    ? tn_cuda_matvec_float(s, a)
           : block == 32 ? tn_cuda_matvec_small(s, a)
                         : tn_cuda_matvec_k(s, a);
}

/* As many tokens' items at a time as a grid holds. */
static tn_status matvec_items(cudaStream_t s, const tn_dmatvec *a, uint32_t block)
{
    const int64_t step = GRID_ROWS / a->per_token * a->per_token;
    tn_status status = TN_OK;
    for (int64_t i = 0; i < a->n_items && !status; i += step) {
        const int64_t token = i / a->per_token;
        tn_dmatvec part = *a;
        part.n_items = a->n_items - i < step ? a->n_items - i : step;
        part.expert += i;
        part.y += i * a->y_stride;
        if (part.x.f) part.x.f += token * a->x.f_stride;
        if (part.x.q) part.x.q += token * a->x.cols;
        if (part.x.scale) part.x.scale += token * (a->x.cols / 32);
        status = matvec_any(s, &part, block);
    }
    return status;
}

tn_status tn_cuda_matvec(tn_stream *stream, const tn_dmatvec *a)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const tn_type_info *t = tn_type_get(a->w.type);
    if (!t || !t->matmul) return TN_EUNSUPPORTED;
    if (!valid(a, t->block > 1)) return TN_EARG;
    const tn_status status =
        a->expert ? matvec_items(s, a, t->block) : matvec_any(s, a, t->block);
    return status ? status : tn_cuda_slow_matvec(stream, a);
}
