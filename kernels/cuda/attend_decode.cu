/* Attention of single tokens over a long context: the keys are split over blocks, each walks its
 * part with an online softmax, a second kernel joins the parts.
 *
 * A block serves up to HB query heads of one KV head, so K and V are read once for all of them.
 * Tiles of 32 keys: K goes through shared memory (asynchronously, the next tile during the current
 * V), a lane computes the score of one key, a warp the softmax of one head; V goes straight from
 * memory into registers, eight columns a thread. */
#include "kv.h"
#include "ops.h"

enum { TILE = 32, THREADS = 128, WARPS = 4, PAD = 16 };

struct DecodeArgs {
    KvPlane kp, vp;
    const float *q;
    int64_t q_stride;
    int n_head, group,
        head_blocks; /* group: query heads of a KV head; head_blocks: blocks for them */
    float scale, softcap;
    int window;
    const int32_t *pos, *seq;
    int n_splits;
    float *partial; /* [n][n_head][n_splits][2 + dim_v]: maximum, sum, weighted V */
};

template <int T> static constexpr __host__ __device__ int key_bytes(int dim)
{
    return T == TN_TYPE_F32 ? 4 * dim : T == TN_TYPE_F16 ? 2 * dim : dim;
}

/* Shared memory: a tile of keys (rows padded against bank conflicts, Q8_0 with 8 scales behind),
 * the queries, scores by part, weights. */
template <int T, int HB> struct DecodeShared {
    int row, tile, q, scores; /* bytes */
    __host__ __device__ DecodeShared(int dim_k)
    {
        row = key_bytes<T>(dim_k) + PAD;
        if (T == TN_TYPE_Q8_0) row = (row + 16 + 15) / 16 * 16;
        tile = row * TILE;
        if (tile < THREADS * 8 * 4) tile = THREADS * 8 * 4; /* reused to join the threads' sums */
        q = HB * dim_k * 4;
        scores = WARPS * (HB > WARPS ? HB / WARPS : 1) * TILE * 4;
    }
    __host__ __device__ int bytes() const
    {
        return tile + q + scores;
    }
};

/* Keys [lo, hi) that this block walks. */
__device__ __forceinline__ void decode_range(const DecodeArgs &a, int pos, int split, int *lo,
                                             int *hi)
{
    const int end = pos + 1, begin = a.window > 0 && end > a.window ? end - a.window : 0;
    const int chunk = ((end - begin + a.n_splits - 1) / a.n_splits + TILE - 1) / TILE * TILE;
    *lo = begin + split * chunk;
    *hi = min(end, *lo + chunk);
}

/* Starts copying keys [t0, t0 + TILE) to shared memory; rows behind hi become zero. */
template <int T>
__device__ __forceinline__ void fetch_keys(const DecodeArgs &a, uint8_t *tile, int row_bytes,
                                           int seq, int head, int t0, int hi)
{
    const int words = key_bytes<T>(a.kp.dim) / 16;
    for (int i = threadIdx.x; i < TILE * words; i += THREADS) {
        const int key = i / words, w = i % words, pos = min(t0 + key, hi - 1);
        const uint8_t *page = kv_page(a.kp, seq, pos);
        const uint8_t *from = page + key_bytes<T>(1) * kv_offset(a.kp, head, pos) + 16 * w;
        cp_async16(tile + key * row_bytes + 16 * w, from, t0 + key < hi);
    }
    if (T == TN_TYPE_Q8_0) {
        const int n = a.kp.dim / 32;
        for (int i = threadIdx.x; i < TILE * n; i += THREADS) {
            const int key = i / n, pos = min(t0 + key, hi - 1);
            uint16_t *to = (uint16_t *)(tile + key * row_bytes + a.kp.dim) + i % n;
            *to = kv_scales(a.kp, kv_page(a.kp, seq, pos))[kv_offset(a.kp, head, pos) / 32 + i % n];
        }
    }
    cp_async_commit();
}

/* Words of 8 elements c = part, part + parts, ... of q . k. */
template <int T>
__device__ __forceinline__ float score_part(const float *q, const uint8_t *k, int dim, int part,
                                            int parts)
{
    float s = 0;
    for (int c = 8 * part; c < dim; c += 8 * parts) {
        float v[8];
        if (T == TN_TYPE_F32) {
            const float4 x = load<float4>(k + 4 * c), y = load<float4>(k + 4 * c + 16);
            v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
            v[4] = y.x, v[5] = y.y, v[6] = y.z, v[7] = y.w;
        } else if (T == TN_TYPE_F16) {
            const int4 w = load<int4>(k + 2 * c);
            const int word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = f16_bits_to_f32((uint32_t)word[i / 2] >> 16 * (i % 2) & 0xffff);
        } else {
            const float d = f16_bits_to_f32(load<uint16_t>(k + dim + c / 32 * 2));
            const int2 w = load<int2>(k + c);
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = d * (float)(int8_t)((i < 4 ? w.x : w.y) >> 8 * (i % 4));
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            s = fmaf(q[c + i], v[i], s);
    }
    return s;
}

/* The rounds in which the block's four warps cover HB heads, and how many warps share one head. */
template <int HB> struct Rounds {
    static constexpr int rounds = HB > WARPS ? HB / WARPS : 1;
    static constexpr int parts = HB > WARPS ? 1 : WARPS / HB;
};

/* scores[round][warp][key] = this warp's part of the score of its head. */
template <int T, int HB>
__device__ __forceinline__ void tile_scores(float *scores, const float *q, const uint8_t *tile,
                                            int row_bytes, int dim)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < Rounds<HB>::rounds; r++) {
        const int head = HB > WARPS ? r * WARPS + warp : warp % HB;
        scores[(r * WARPS + warp) * TILE + lane] =
            score_part<T>(q + head * dim, tile + lane * row_bytes, dim, HB > WARPS ? 0 : warp / HB,
                          Rounds<HB>::parts);
    }
}

/* Running maximum and sum of a head, the same in all lanes of its warp. */
struct Running {
    float max, sum;
};

/* Turns the scores of a head into weights, in place; returns the factor on what was summed so far.
 */
template <int HB>
__device__ __forceinline__ float tile_softmax(const DecodeArgs &a, float *scores, int head, int nt,
                                              Running *run)
{
    const int lane = threadIdx.x % 32;
    float s = 0;
    for (int p = 0; p < Rounds<HB>::parts; p++)
        s += scores[(p * HB + head) * TILE + lane];
    s *= a.scale;
    if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
    if (lane >= nt) s = -INFINITY;
    const float max = fmaxf(run->max, warp_max(s));
    const float fade = run->max == -INFINITY ? 0 : expf(run->max - max);
    const float p = s == -INFINITY ? 0 : expf(s - max);
    run->sum = run->sum * fade + warp_sum(p);
    run->max = max;
    scores[head * TILE + lane] = p;
    return fade;
}

/* acc[h] += weights of head h times V, over the keys key, key + step, ... of the tile. */
template <int T, int HB>
__device__ __forceinline__ void tile_values(const DecodeArgs &a, float acc[HB][8],
                                            const float *weights, int seq, int head, int t0, int nt,
                                            int key, int step, int c)
{
#pragma unroll 4
    for (; key < nt; key += step) {
        float v[8];
        kv_load8<T>(v, a.vp, kv_page(a.vp, seq, t0 + key), kv_offset(a.vp, head, t0 + key), c);
#pragma unroll
        for (int h = 0; h < HB; h++) {
            const float p = weights[h * TILE + key];
#pragma unroll
            for (int i = 0; i < 8; i++)
                acc[h][i] = fmaf(p, v[i], acc[h][i]);
        }
    }
}

template <int T, int HB> __global__ void __launch_bounds__(THREADS) attend_split(DecodeArgs a)
{
    SHARED_DYN(uint8_t, memory);
    SHARED(float, fades, [HB]);
    const DecodeShared<T, HB> at(a.kp.dim);
    uint8_t *tile = memory;
    float *q = (float *)(memory + at.tile), *scores = (float *)(memory + at.tile + at.q);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim_k = a.kp.dim, dim_v = a.vp.dim;
    const int kv_head = blockIdx.y / a.head_blocks;
    const int h0 = kv_head * a.group + blockIdx.y % a.head_blocks * HB;
    const int n_heads = min(HB, (kv_head + 1) * a.group - h0);
    const int64_t t = blockIdx.z;
    const int seq = a.seq ? a.seq[t] : 0;
    int lo, hi;
    decode_range(a, a.pos[t], blockIdx.x, &lo, &hi);

    float acc[HB][8] = {};
    Running run[Rounds<HB>::rounds];
    for (int r = 0; r < Rounds<HB>::rounds; r++)
        run[r] = {-INFINITY, 0};
    const int columns = dim_v / 8, step = THREADS / columns;
    const int c = threadIdx.x % columns * 8, first = threadIdx.x / columns;
    for (int i = threadIdx.x; i < HB * dim_k; i += THREADS)
        q[i] = i < n_heads * dim_k ? a.q[t * a.q_stride + h0 * dim_k + i] : 0;
    if (lo < hi) fetch_keys<T>(a, tile, at.row, seq, kv_head, lo, hi);
    for (int t0 = lo; t0 < hi; t0 += TILE) {
        const int nt = min((int)TILE, hi - t0);
        cp_async_wait<0>();
        __syncthreads();
        tile_scores<T, HB>(scores, q, tile, at.row, dim_k);
        __syncthreads();
        if (t0 + TILE < hi) fetch_keys<T>(a, tile, at.row, seq, kv_head, t0 + TILE, hi);
#pragma unroll
        for (int r = 0; r < Rounds<HB>::rounds; r++) {
            const int head = r * WARPS + warp;
            if (head >= HB) break;
            const float fade = tile_softmax<HB>(a, scores, head, nt, &run[r]);
            if (lane == 0) fades[head] = fade;
        }
        __syncthreads();
#pragma unroll
        for (int h = 0; h < HB; h++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                acc[h][i] *= fades[h];
        if (first < step) tile_values<T, HB>(a, acc, scores, seq, kv_head, t0, nt, first, step, c);
    }

    float *sums = (float *)tile;
#pragma unroll
    for (int h = 0; h < HB; h++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (first < step) sums[first * dim_v + c + i] = acc[h][i];
        __syncthreads();
        if (h >= n_heads) continue;
        float *part = a.partial + ((t * a.n_head + h0 + h) * a.n_splits + blockIdx.x) * (2 + dim_v);
        for (int i = threadIdx.x; i < dim_v; i += THREADS) {
            float v = 0;
            for (int g = 0; g < step; g++)
                v += sums[g * dim_v + i];
            part[2 + i] = v;
        }
        if (threadIdx.x == (unsigned)(h % WARPS) * 32) {
            part[0] = run[h / WARPS].max;
            part[1] = run[h / WARPS].sum;
        }
    }
}

/* One block of THREADS a head of a token: a thread turns what a part says into its weight, then it
 * sums a column. */
__global__ void __launch_bounds__(THREADS)
    attend_join(const float *partial, float *out, int64_t out_stride, int n_splits, int dim_v,
                const float *sinks)
{
    SHARED(float, weights, [THREADS]);
    SHARED(float, maxima, [WARPS]);
    SHARED(float, sums, [WARPS]);
    const int h = blockIdx.x, n_head = gridDim.x, c = threadIdx.x, warp = c / 32;
    const int64_t t = blockIdx.y;
    const float *part = partial + (t * n_head + h) * n_splits * (2 + dim_v);
    const float s = c < n_splits ? part[c * (2 + dim_v) + 1] : 0;
    const float m = s != 0 ? part[c * (2 + dim_v)] : -INFINITY, most = warp_max(m);
    if (c % 32 == 0) maxima[warp] = most;
    __syncthreads();
    float max = sinks ? sinks[h] : -INFINITY, sum = 0;
    for (int w = 0; w < WARPS; w++)
        max = fmaxf(max, maxima[w]);
    weights[c] = s != 0 ? expf(m - max) : 0;
    const float warps = warp_sum(weights[c] * s);
    if (c % 32 == 0) sums[warp] = warps;
    __syncthreads();
    if (sinks) sum = expf(sinks[h] - max);
    for (int w = 0; w < WARPS; w++)
        sum += sums[w];
    for (int i = c; i < dim_v; i += THREADS) {
        float v = 0;
#pragma unroll 16
        for (int k = 0; k < n_splits; k++)
            v = fmaf(weights[k], part[k * (2 + dim_v) + 2 + i], v);
        out[t * out_stride + h * dim_v + i] = sum == 0 ? 0 : v / sum;
    }
}

bool tn_cuda_attend_valid(const tn_dattend *a)
{
    const tn_dkv *kv = &a->kv;
    return a->n >= 1 && a->n <= 65535 && a->n_head >= 1 && kv->n_head_kv >= 1 &&
           a->n_head % kv->n_head_kv == 0 && kv->page_size >= 16 &&
           !(kv->page_size & (kv->page_size - 1)) && kv->pages && a->pos && a->q && a->out &&
           a->q_stride % 4 == 0 && a->out_stride % 4 == 0 &&
           tn_cuda_kv_valid(kv->type, kv->head_dim_k, kv->head_dim_v);
}

template <int T, int HB> static tn_status launch_split(cudaStream_t s, const DecodeArgs &d, int n)
{
    const DecodeShared<T, HB> shared(d.kp.dim);
    const dim3 grid((unsigned)d.n_splits, (unsigned)(d.kp.n_head_kv * d.head_blocks), (unsigned)n);
    LAUNCH(KERNEL(attend_split<T, HB>), grid, THREADS, (size_t)shared.bytes(), s, d);
    return tn_cuda_launched();
}

template <int T> static tn_status launch_type(cudaStream_t s, DecodeArgs d, int n)
{
    const int hb = d.group >= 5 ? 8 : d.group >= 3 ? 4 : d.group;
    d.head_blocks = (d.group + hb - 1) / hb;
    switch (hb) {
    case 1: return launch_split<T, 1>(s, d, n);
    case 2: return launch_split<T, 2>(s, d, n);
    case 4: return launch_split<T, 4>(s, d, n);
    default: return launch_split<T, 8>(s, d, n);
    }
}

tn_status tn_cuda_attend(tn_stream *stream, const tn_dattend *a)
{
    if (!tn_cuda_attend_valid(a) || a->n_splits < 1 || a->n_splits > THREADS || !a->workspace)
        return TN_EARG;
    const cudaStream_t s = tn_cuda_stream(stream);
    DecodeArgs d = {};
    d.kp = tn_cuda_kv_plane(a->kv, false), d.vp = tn_cuda_kv_plane(a->kv, true);
    d.q = a->q, d.q_stride = a->q_stride;
    d.n_head = a->n_head, d.group = a->n_head / a->kv.n_head_kv;
    d.scale = a->scale, d.softcap = a->softcap, d.window = a->window;
    d.pos = a->pos, d.seq = a->seq;
    d.n_splits = a->n_splits, d.partial = a->workspace;
    tn_status status = a->kv.type == TN_TYPE_F32   ? launch_type<TN_TYPE_F32>(s, d, a->n)
                             : a->kv.type == TN_TYPE_F16 ? launch_type<TN_TYPE_F16>(s, d, a->n)
                                                         : launch_type<TN_TYPE_Q8_0>(s, d, a->n);
    if (status) return status;
    LAUNCH(attend_join, dim3((unsigned)a->n_head, (unsigned)a->n), THREADS, 0, s,
           (const float *)a->workspace, a->out, a->out_stride, (int)a->n_splits,
           (int)a->kv.head_dim_v, a->sinks);
    status = tn_cuda_launched();
    return status ? status : tn_cuda_slow_attend(stream, a);
}

size_t tn_cuda_attend_bytes(int64_t n, int32_t n_head, int32_t head_dim_v, int32_t n_splits)
{
    return (size_t)n * (size_t)n_head * (size_t)n_splits * (size_t)(2 + head_dim_v) * sizeof(float);
}
