/* Attention of many tokens over a float32 cache, in float32: the exact path. A block takes 16
 * queries of one head and tiles of 16 keys; a thread computes the scores of one key for two
 * queries, then owns up to two columns of the output for all 16. The other caches go to
 * attend_tensor.cu. */
#include "kv.h"
#include "ops.h"

enum { QUERIES = 16, TILE = 16, THREADS = 128, PAD = 4 };

struct FloatTilesArgs {
    KvPlane kp, vp;
    const float *q;
    int64_t q_stride;
    float *out;
    int64_t out_stride;
    int n, group;
    float scale, softcap;
    int window;
    const float *sinks;
    const int32_t *pos, *seq;
};

/* tile[16][dim + PAD] = 16 rows of floats; from(row) is where a row lies, NULL: zeros. */
template <class From> __device__ __forceinline__ void load_rows(float *tile, int dim, From from)
{
    for (int i = threadIdx.x; i < 16 * (dim / 4); i += THREADS) {
        const int row = i / (dim / 4), c = i % (dim / 4) * 4;
        const float *p = from(row);
        *(float4 *)(tile + row * (dim + PAD) + c) =
            p ? *(const float4 *)(p + c) : make_float4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ float dot_rows(const float *a, const float *b, int dim)
{
    float s = 0;
    for (int c = 0; c < dim; c += 4) {
        const float4 x = *(const float4 *)(a + c), y = *(const float4 *)(b + c);
        s = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, s))));
    }
    return s;
}

__global__ void __launch_bounds__(THREADS) attend_float(FloatTilesArgs a)
{
    SHARED_DYN(float, memory);
    SHARED(float, weights, [QUERIES][TILE]);
    SHARED(float, fades, [QUERIES]);
    SHARED(float, factors, [QUERIES]);
    const int dim = a.kp.dim, dim_v = a.vp.dim, key = threadIdx.x % TILE, q0 = threadIdx.x / TILE;
    float *qs = memory, *ks = memory + QUERIES * (dim + PAD);
    const int head = blockIdx.y, kv_head = head / a.group, seq = a.seq ? a.seq[0] : 0;
    const int first = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;
    const int last = min(first + QUERIES, a.n) - 1, pos0 = a.pos[0], hi = pos0 + last + 1;
    const int lo = a.window > 0 ? max(0, pos0 + first + 1 - a.window) : 0;
    float acc[QUERIES][2] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    load_rows(qs, dim, [&](int r) {
        return first + r <= last ? a.q + (first + r) * a.q_stride + (int64_t)head * dim : nullptr;
    });
    for (int t0 = lo; t0 < hi; t0 += TILE) {
        __syncthreads();
        load_rows(ks, dim, [&](int r) -> const float * {
            if (t0 + r >= hi) return nullptr;
            return (const float *)kv_page(a.kp, seq, t0 + r) + kv_offset(a.kp, kv_head, t0 + r);
        });
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int query = q0 + 8 * r, pos = pos0 + first + query;
            float s = dot_rows(qs + query * (dim + PAD), ks + key * (dim + PAD), dim) * a.scale;
            if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
            if (t0 + key > pos || (a.window > 0 && t0 + key <= pos - a.window)) s = -INFINITY;
            const float top = fmaxf(max[r], group_max<TILE>(s)), base = top == -INFINITY ? 0 : top;
            const float fade = max[r] == -INFINITY ? 0 : expf(max[r] - base);
            const float p = s == -INFINITY ? 0 : expf(s - base);
            sum[r] = sum[r] * fade + group_sum<TILE>(p);
            max[r] = top;
            weights[query][key] = p;
            if (key == 0) fades[query] = fade;
        }
        __syncthreads();
        const int nt = min((int)TILE, hi - t0);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int c = threadIdx.x + THREADS * i;
            if (c >= dim_v) break;
#pragma unroll
            for (int r = 0; r < QUERIES; r++)
                acc[r][i] *= fades[r];
            for (int k = 0; k < nt; k++) {
                const float *page = (const float *)kv_page(a.vp, seq, t0 + k);
                const float v = page[kv_offset(a.vp, kv_head, t0 + k) + c];
#pragma unroll
                for (int r = 0; r < QUERIES; r++)
                    acc[r][i] = fmaf(weights[r][k], v, acc[r][i]);
            }
        }
    }
    if (key == 0)
        for (int r = 0; r < 2; r++) {
            float total = sum[r], factor = 1;
            if (a.sinks) {
                const float top = fmaxf(max[r], a.sinks[head]);
                factor = max[r] == -INFINITY ? 0 : expf(max[r] - top);
                total = total * factor + expf(a.sinks[head] - top);
            }
            factors[q0 + 8 * r] = total == 0 ? 0 : factor / total;
        }
    __syncthreads();
    for (int i = 0; i < 2; i++) {
        const int c = threadIdx.x + THREADS * i;
        if (c >= dim_v) break;
#pragma unroll
        for (int r = 0; r < QUERIES; r++)
            if (first + r <= last)
                a.out[(first + r) * a.out_stride + (int64_t)head * dim_v + c] =
                    acc[r][i] * factors[r];
    }
}

tn_status tn_cuda_attend_tiles(tn_stream *stream, const tn_dattend *a)
{
    if (!tn_cuda_attend_valid(a)) return TN_EARG;
    const cudaStream_t s = tn_cuda_stream(stream);
    if (a->kv.type != TN_TYPE_F32) return tn_cuda_attend_tensor(s, a);
    FloatTilesArgs t = {};
    t.kp = tn_cuda_kv_plane(a->kv, false), t.vp = tn_cuda_kv_plane(a->kv, true);
    t.q = a->q, t.q_stride = a->q_stride, t.out = a->out, t.out_stride = a->out_stride;
    t.n = a->n, t.group = a->n_head / a->kv.n_head_kv;
    t.scale = a->scale, t.softcap = a->softcap, t.window = a->window;
    t.sinks = a->sinks, t.pos = a->pos, t.seq = a->seq;
    const dim3 grid((unsigned)((t.n + QUERIES - 1) / QUERIES), (unsigned)a->n_head);
    const size_t shared = (size_t)(QUERIES + TILE) * (size_t)(t.kp.dim + PAD) * sizeof(float);
    LAUNCH(attend_float, grid, THREADS, shared, s, t);
    return tn_cuda_launched();
}
