/* Attention of many tokens on tensor cores, for F16 and Q8_0 caches.
 *
 * A block takes 64 queries of one head, a warp 16 of them, and walks the keys in tiles of 32 with
 * an online softmax that never leaves the registers: the scores of m16n8k16 are laid out as the
 * next product's left operand. K and V lie in shared memory as float16 and arrive asynchronously,
 * the next K during the softmax, the next V during the next scores. Tiles that no query may see are
 * skipped. */
#include "kv.h"
#include "ops.h"

enum { QUERIES = 64, TILE = 32, THREADS = 128, PAD = 8 };

struct TilesArgs {
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

__device__ __forceinline__ uint32_t pack_half2(float a, float b)
{
    const half2 h = __floats2half2_rn(a, b);
    uint32_t u;
    memcpy(&u, &h, 4);
    return u;
}

/* Starts copying rows of keys [t0, t0 + TILE) to tile[TILE][D + PAD]; what does not exist is zero.
 */
template <int T, int D>
__device__ __forceinline__ void fetch(const KvPlane &p, half *tile, int seq, int head, int t0,
                                      int hi)
{
    for (int i = threadIdx.x; i < TILE * (D / 8); i += THREADS) {
        const int key = i / (D / 8), c = i % (D / 8) * 8, pos = min(t0 + key, hi - 1);
        const bool valid = t0 + key < hi && c < p.dim;
        uint8_t *page = kv_page(p, seq, pos);
        const int64_t row = kv_offset(p, head, pos);
        half *to = tile + key * (D + PAD) + c;
        if (T == TN_TYPE_F16) {
            cp_async16(to, page + 2 * (row + (valid ? c : 0)), valid);
            continue;
        }
        float v[8] = {};
        if (valid) kv_load8<T>(v, p, page, row, c);
        *(int4 *)to = make_int4((int)pack_half2(v[0], v[1]), (int)pack_half2(v[2], v[3]),
                                (int)pack_half2(v[4], v[5]), (int)pack_half2(v[6], v[7]));
    }
    cp_async_commit();
}

/* Two columns of a query as a register of the left operand. */
__device__ __forceinline__ uint32_t query_pair(const TilesArgs &a, int row, int head, int c)
{
    if (row >= a.n || c >= a.kp.dim) return 0;
    const float *q = a.q + row * a.q_stride + head * a.kp.dim + c;
    return pack_half2(q[0], q[1]);
}

/* s[16 x 32] = Q K^T. */
template <int D>
__device__ __forceinline__ void tile_scores(float s[4][4], const uint32_t q[D / 16][4],
                                            const half *k)
{
    const int lane = threadIdx.x % 32;
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++)
            s[j][i] = 0;
    /* Lane 8 i + r names row r of matrix i: keys in steps of 8 by i / 2, columns by i % 2. */
    const half *at = k + (lane / 16 * 8 + lane % 8) * (D + PAD) + lane / 8 % 2 * 8;
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, at + j * 8 * (D + PAD) + 16 * c);
            mma_m16n8k16_f16(s[j], q[c], b);
            mma_m16n8k16_f16(s[j + 1], q[c], b + 2);
        }
}

/* o[16 x D] += P V, P being the weights in s. */
template <int D>
__device__ __forceinline__ void tile_values(float o[D / 8][4], const float s[4][4], const half *v)
{
    const int lane = threadIdx.x % 32;
    /* Keys by i % 2, columns by i / 2. */
    const half *at = v + (lane / 8 % 2 * 8 + lane % 8) * (D + PAD) + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const uint32_t p[4] = {pack_half2(s[2 * k][0], s[2 * k][1]),
                               pack_half2(s[2 * k][2], s[2 * k][3]),
                               pack_half2(s[2 * k + 1][0], s[2 * k + 1][1]),
                               pack_half2(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, at + 16 * k * (D + PAD) + 8 * j);
            mma_m16n8k16_f16(o[j], p, b);
            mma_m16n8k16_f16(o[j + 1], p, b + 2);
        }
    }
}

/* Scores of keys t0 .. t0 + 31 become weights; max and sum of the lane's rows g and g + 8 go on,
 * sum being the lane's own part; fade is the factor on what was summed so far. */
__device__ __forceinline__ void tile_softmax(const TilesArgs &a, float s[4][4], const int pos[2],
                                             int t0, float max[2], float sum[2], float fade[2])
{
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = max[r];
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                const int key = t0 + 8 * j + 2 * q + i % 2;
                float x = s[j][i] * a.scale;
                if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
                if (key > pos[r] || (a.window > 0 && key <= pos[r] - a.window)) x = -INFINITY;
                s[j][i] = x;
                top = fmaxf(top, x);
            }
        top = group_max<4>(top);
        const float base = top == -INFINITY ? 0 : top;
        fade[r] = max[r] == -INFINITY ? 0 : expf(max[r] - base);
        max[r] = top;
        sum[r] *= fade[r];
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[j][i] = s[j][i] == -INFINITY ? 0 : expf(s[j][i] - base);
                sum[r] += s[j][i];
            }
    }
}

template <int T, int D> __global__ void __launch_bounds__(THREADS) attend_tensor(TilesArgs a)
{
    SHARED(__align__(16) half, ks, [TILE * (D + PAD)]);
    SHARED(__align__(16) half, vs, [TILE * (D + PAD)]);
    const int lane = threadIdx.x % 32, g = lane / 4, c2 = lane % 4 * 2;
    const int head = blockIdx.y, kv_head = head / a.group, seq = a.seq ? a.seq[0] : 0;
    const int first = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES; /* long rows first */
    const int last = min(first + QUERIES, a.n) - 1, pos0 = a.pos[0];
    const int row[2] = {first + (int)threadIdx.x / 32 * 16 + g,
                        first + (int)threadIdx.x / 32 * 16 + g + 8};
    const int pos[2] = {pos0 + row[0], pos0 + row[1]};
    const int hi = pos0 + last + 1;
    const int lo = a.window > 0 ? max(0, pos0 + first + 1 - a.window) : 0;

    uint32_t q[D / 16][4];
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            q[c][i] = query_pair(a, row[i % 2], head, 16 * c + i / 2 * 8 + c2);
    float o[D / 8][4] = {}, s[4][4];
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, fade[2];
    fetch<T, D>(a.kp, ks, seq, kv_head, lo, hi);
    fetch<T, D>(a.vp, vs, seq, kv_head, lo, hi);
    for (int t0 = lo; t0 < hi; t0 += TILE) {
        const bool more = t0 + TILE < hi;
        cp_async_wait<1>();
        __syncthreads();
        tile_scores<D>(s, q, ks);
        __syncthreads();
        if (more)
            fetch<T, D>(a.kp, ks, seq, kv_head, t0 + TILE, hi);
        else
            cp_async_commit();
        tile_softmax(a, s, pos, t0, max, sum, fade);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[j][i] *= fade[i / 2];
        cp_async_wait<1>();
        __syncthreads();
        tile_values<D>(o, s, vs);
        __syncthreads();
        if (more)
            fetch<T, D>(a.vp, vs, seq, kv_head, t0 + TILE, hi);
        else
            cp_async_commit();
    }
    cp_async_wait<0>();
    for (int r = 0; r < 2; r++) {
        float total = group_sum<4>(sum[r]), factor = 1;
        if (a.sinks) {
            const float top = fmaxf(max[r], a.sinks[head]);
            factor = max[r] == -INFINITY ? 0 : expf(max[r] - top);
            total = total * factor + expf(a.sinks[head] - top);
        }
        factor = total == 0 ? 0 : factor / total;
        if (row[r] >= a.n) continue;
        float *out = a.out + row[r] * a.out_stride + (int64_t)head * a.vp.dim;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const int c = 8 * j + c2;
            if (c < a.vp.dim)
                *(float2 *)(out + c) = make_float2(o[j][2 * r] * factor, o[j][2 * r + 1] * factor);
        }
    }
}

template <int T> static void launch(cudaStream_t s, const TilesArgs &t, int n_head)
{
    const dim3 grid((unsigned)((t.n + QUERIES - 1) / QUERIES), (unsigned)n_head);
    const int dim = t.kp.dim > t.vp.dim ? t.kp.dim : t.vp.dim;
    if (dim <= 32)
        LAUNCH(KERNEL(attend_tensor<T, 32>), grid, THREADS, 0, s, t);
    else if (dim <= 64)
        LAUNCH(KERNEL(attend_tensor<T, 64>), grid, THREADS, 0, s, t);
    else if (dim <= 96)
        LAUNCH(KERNEL(attend_tensor<T, 96>), grid, THREADS, 0, s, t);
    else if (dim <= 128)
        LAUNCH(KERNEL(attend_tensor<T, 128>), grid, THREADS, 0, s, t);
    else
        LAUNCH(KERNEL(attend_tensor<T, 256>), grid, THREADS, 0, s, t);
}

tn_status tn_cuda_attend_tensor(cudaStream_t s, const tn_dattend *a)
{
    TilesArgs t = {};
    t.kp = tn_cuda_kv_plane(a->kv, false), t.vp = tn_cuda_kv_plane(a->kv, true);
    t.q = a->q, t.q_stride = a->q_stride, t.out = a->out, t.out_stride = a->out_stride;
    t.n = a->n, t.group = a->n_head / a->kv.n_head_kv;
    t.scale = a->scale, t.softcap = a->softcap, t.window = a->window;
    t.sinks = a->sinks, t.pos = a->pos, t.seq = a->seq;
    if (a->kv.type == TN_TYPE_F16)
        launch<TN_TYPE_F16>(s, t, a->n_head);
    else
        launch<TN_TYPE_Q8_0>(s, t, a->n_head);
    return tn_cuda_launched();
}
