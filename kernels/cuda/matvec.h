/* The mat-vec of quantised weights, for 1, 2, 4 or 8 vectors at once.
 *
 * A warp computes two rows: neighbours, or the same row of gate and up. Its lanes take the units of
 * 32 columns in turn, so that they load consecutive 16-byte words of quants; the next units are
 * loaded while the current ones are multiplied. Activations come from L1, once for both rows. Where
 * a matrix has too few rows to fill the device, 2 or 4 warps share a row and add up in shared
 * memory, always in the same order. */
#ifndef TN_CUDA_MATVEC_H
#define TN_CUDA_MATVEC_H

#include "ops.h"
#include "weights.h"

enum { MATVEC_WARPS = 4 };

/* A matrix with its results. */
struct MatvecPart {
    tn_dweight w;
    float *y;
    int64_t y_stride;
    const float *bias;
    int64_t rows, first; /* of the result; the pair of rows of the launch that its first ones are */
};

enum { MATVEC_PARTS = 1 + TN_MATVEC_MORE };

/* tn_dmatvec as the kernels take it. */
struct MatvecArgs {
    MatvecPart part[MATVEC_PARTS];
    tn_dweight up; /* up.plane[0] NULL: none; its results are those of part[0] */
    const float *f;
    int64_t f_stride;
    const int8_t *q;
    const tn_dscale *scale;
    int n, cols; /* n <= the kernel's N */
    int64_t pairs; /* of rows, of all parts */
    const float *up_bias;
    const int32_t *expert;
    int per_token, split; /* split: warps that share a pair of rows: 1, 2 or 4 */
    int n_parts, act, add;
};

static inline void tn_cuda_matvec_part(MatvecArgs *m, const tn_dproduct &p, int64_t rows, bool glu)
{
    m->part[m->n_parts++] = {p.w, p.y, p.y_stride, p.bias, rows, m->pairs};
    m->pairs += glu ? rows : (rows + 1) / 2;
}

static inline MatvecArgs tn_cuda_matvec_args(const tn_dmatvec *a)
{
    MatvecArgs m = {};
    const tn_dproduct first = {a->w, a->y, a->y_stride, a->bias};
    tn_cuda_matvec_part(&m, first, a->expert ? a->rows : a->w.rows, a->up.plane[0] != nullptr);
    for (const tn_dproduct &p : a->more)
        if (p.w.plane[0]) tn_cuda_matvec_part(&m, p, p.w.rows, false);
    m.up = a->up;
    m.f = a->x.f;
    m.f_stride = a->x.f_stride;
    m.q = a->x.q;
    m.scale = a->x.scale;
    m.n = a->expert ? 1 : (int)a->x.n;
    m.cols = (int)a->w.cols;
    m.up_bias = a->up_bias;
    m.expert = a->expert;
    m.per_token = a->per_token;
    m.act = a->act;
    m.add = a->add;
    /* Below about 8 warps on each of some 130 multiprocessors latency is what limits. */
    m.split = m.pairs >= 1024 || m.cols <= 1024 ? 1 : m.pairs >= 512 || m.cols <= 2048 ? 2 : 4;
    return m;
}

static inline dim3 tn_cuda_matvec_grid(const MatvecArgs &m, const tn_dmatvec *a)
{
    const int64_t per_block = MATVEC_WARPS / m.split;
    return dim3((unsigned)((m.pairs + per_block - 1) / per_block),
                a->expert ? (unsigned)a->n_items : 1);
}

/* The pair of rows of this warp, and where results go. */
struct MatvecPlace {
    int part;       /* whose rows they are */
    int64_t row[2]; /* of the result; the same twice for gate and up, or at an odd end */
    int64_t base;   /* first row of the expert's matrix */
    int64_t x0, y0; /* first vector read and written */
    bool zero;      /* an expert that is not here */
    bool active;    /* the warp has rows */
};

__device__ __forceinline__ MatvecPlace matvec_place(const MatvecArgs &m)
{
    MatvecPlace p;
    const bool glu = m.up.plane[0] != nullptr;
    int64_t pair = (int64_t)blockIdx.x * (MATVEC_WARPS / m.split) + threadIdx.x / 32 / m.split;
    p.active = pair < m.pairs;
    p.part = 0;
    while (p.part + 1 < m.n_parts && pair >= m.part[p.part + 1].first)
        p.part++;
    pair -= m.part[p.part].first;
    const int64_t rows = m.part[p.part].rows;
    p.row[0] = glu ? pair : 2 * pair;
    p.row[1] = glu || 2 * pair + 1 >= rows ? p.row[0] : 2 * pair + 1;
    p.base = p.x0 = p.y0 = 0;
    p.zero = false;
    if (m.expert) {
        const int expert = m.expert[blockIdx.y];
        p.zero = expert < 0;
        p.base = p.zero ? 0 : expert * rows;
        p.x0 = blockIdx.y / m.per_token;
        p.y0 = blockIdx.y;
    }
    return p;
}

/* Writes the results of one pair of rows for vector t; by one lane. */
__device__ __forceinline__ void matvec_store(const MatvecArgs &m, const MatvecPlace &p, int t,
                                             float v0, float v1)
{
    const MatvecPart &part = m.part[p.part];
    float *y = part.y + (p.y0 + t) * part.y_stride;
    const float *bias = p.zero ? nullptr : part.bias;
    if (bias) v0 += bias[p.base + p.row[0]];
    if (m.up.plane[0]) {
        if (m.up_bias && !p.zero) v1 += m.up_bias[p.base + p.row[0]];
        y[p.row[0]] = activate(v0, m.act) * v1;
        return;
    }
    y[p.row[0]] = m.add ? y[p.row[0]] + v0 : v0;
    if (p.row[1] == p.row[0]) return;
    if (bias) v1 += bias[p.base + p.row[1]];
    y[p.row[1]] = m.add ? y[p.row[1]] + v1 : v1;
}

/* Adds up the lanes' parts, over the warps that share rows too, and stores. All threads call it. */
template <int N>
__device__ __forceinline__ void matvec_finish(const MatvecArgs &m, const MatvecPlace &p,
                                              float acc[2][N])
{
    SHARED(float, part, [MATVEC_WARPS][2 * N]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int t = 0; t < N; t++) {
        acc[0][t] = warp_sum(acc[0][t]);
        acc[1][t] = warp_sum(acc[1][t]);
    }
    if (m.split > 1) {
        if (lane == 0)
            for (int t = 0; t < N; t++) {
                part[warp][t] = acc[0][t];
                part[warp][N + t] = acc[1][t];
            }
        __syncthreads();
        if (warp % m.split) return;
        for (int i = 1; i < m.split; i++)
#pragma unroll
            for (int t = 0; t < N; t++) {
                acc[0][t] += part[warp + i][t];
                acc[1][t] += part[warp + i][N + t];
            }
    }
    if (!p.active) return;
#pragma unroll
    for (int t = 0; t < N; t++)
        if (lane == t && t < m.n) matvec_store(m, p, t, acc[0][t], acc[1][t]);
}

/* The products of both units with the vectors. */
template <int T, int N>
__device__ __forceinline__ void matvec_step(const MatvecArgs &m, const MatvecPlace &p,
                                            const RawUnit raw[2], int u, float acc[2][N])
{
    Unit unit[2];
    unpack_unit<T>(unit[0], raw[0], u);
    unpack_unit<T>(unit[1], raw[1], u);
#pragma unroll
    for (int t = 0; t < N; t++) {
        const int64_t v = p.x0 + (N == 1 ? 0 : min(t, m.n - 1));
        const int4 *q = (const int4 *)(m.q + v * m.cols + 32 * (int64_t)u);
        const int4 lo = q[0], hi = q[1];
        const int x[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
        const int4 meta = ((const int4 *)m.scale)[v * (m.cols / 32) + u];
        float d[2];
        memcpy(&d[0], &meta.x, 4);
        memcpy(&d[1], &meta.y, 4);
        const int sum[2] = {meta.z, meta.w};
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int s = -Traits<T>::offset * sum[h];
#pragma unroll
                for (int k = 0; k < 4; k++)
                    s = __dp4a(unit[r].q[4 * h + k], x[4 * h + k], s);
                float v1 = unit[r].a[h] * (float)s;
                if (Traits<T>::minimum) v1 -= unit[r].b[h] * (float)sum[h];
                acc[r][t] += d[h] * v1;
            }
    }
}

template <int T, int N> __global__ void __launch_bounds__(MATVEC_WARPS * 32) matvec(MatvecArgs m)
{
    const MatvecPlace p = matvec_place(m);
    float acc[2][N] = {};
    if (p.active && !p.zero) {
        const tn_dweight &w = m.part[p.part].w;
        const RowPlanes w0 = row_planes(w, p.base + p.row[0]);
        const RowPlanes w1 = row_planes(m.up.plane[0] ? m.up : w, p.base + p.row[1]);
        const int units = m.cols / 32, step = 32 * m.split;
        int u = threadIdx.x % 32 + 32 * (threadIdx.x / 32 % m.split);
        RawUnit raw[2], next[2];
        if (u < units) {
            load_unit<T>(raw[0], w0, u);
            load_unit<T>(raw[1], w1, u);
        }
        for (; u < units; u += step) {
            if (u + step < units) {
                load_unit<T>(next[0], w0, u + step);
                load_unit<T>(next[1], w1, u + step);
            }
            matvec_step<T, N>(m, p, raw, u, acc);
            raw[0] = next[0];
            raw[1] = next[1];
        }
    }
    matvec_finish<N>(m, p, acc);
}

template <int T> tn_status matvec_launch(cudaStream_t s, const tn_dmatvec *a)
{
    const MatvecArgs m = tn_cuda_matvec_args(a);
    const dim3 grid = tn_cuda_matvec_grid(m, a);
    if (m.n == 1)
        LAUNCH(KERNEL(matvec<T, 1>), grid, MATVEC_WARPS * 32, 0, s, m);
    else if (m.n == 2)
        LAUNCH(KERNEL(matvec<T, 2>), grid, MATVEC_WARPS * 32, 0, s, m);
    else if (m.n <= 4)
        LAUNCH(KERNEL(matvec<T, 4>), grid, MATVEC_WARPS * 32, 0, s, m);
    else
        LAUNCH(KERNEL(matvec<T, 8>), grid, MATVEC_WARPS * 32, 0, s, m);
    return tn_cuda_launched();
}

#endif
