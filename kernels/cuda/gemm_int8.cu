/* Products of quantised weights with a batch, on the 8-bit tensor cores.
 *
 * A block computes 32 rows for up to 64 vectors, 128 columns at a time. Each of its 128 threads
 * unpacks one unit of 32 columns into shared memory, where the next 128 columns of the activations
 * arrive meanwhile; the quants of the next unit are on their way in registers. A warp then
 * multiplies 16 rows with 32 vectors. Both sides have a scale for each half of 16 columns, which is
 * what one instruction takes: its sums are exact, and are scaled and added in float32, as in the
 * mat-vec. Weights are read once for 64 vectors, packed as they are. */
#include "gemm.h"
#include "weights.h"

enum { ROWS = 32, TOKENS = 64, UNITS = 4, THREADS = 128 };
/* 16-byte words from one row of 128 bytes to the next: 9, so that 8 rows lie in different banks. */
enum { PITCH = 2 * UNITS + 1 };

struct Int8Args {
    tn_dweight w;
    const int8_t *q;
    const tn_dscale *scale;
    int n, cols;
    float *y;
    int64_t y_stride;
    const float *bias;
    int add;
};

/* Activations of up to 64 vectors and 4 units: rounded, and their scales. Zeros where there are
 * none. */
__device__ __forceinline__ void fetch_acts(const Int8Args &m, int4 (*x)[PITCH], int4 (*meta)[UNITS],
                                           int token0, int u0)
{
    const int units = m.cols / 32, tokens = min((int)TOKENS, (m.n - token0 + 7) / 8 * 8);
    for (int i = threadIdx.x; i < tokens * UNITS * 2; i += THREADS) {
        const int t = i / (UNITS * 2), k = i % (UNITS * 2);
        const bool there = token0 + t < m.n && u0 + k / 2 < units;
        const int64_t at = (int64_t)(token0 + t) * m.cols + 32 * u0 + 16 * k;
        cp_async16(&x[t][k], m.q + (there ? at : 0), there);
    }
    for (int i = threadIdx.x; i < tokens * UNITS; i += THREADS) {
        const int t = i / UNITS, k = i % UNITS;
        const bool there = token0 + t < m.n && u0 + k < units;
        const int64_t at = (int64_t)(token0 + t) * units + u0 + k;
        cp_async16(&meta[t][k], m.scale + (there ? at : 0), there);
    }
}

/* Unpacks unit u of a row into 32 bytes and its factors {a[0], a[1], b[0], b[1]}. */
template <int T>
__device__ __forceinline__ void put_unit(int4 *to, float4 *factors, const RawUnit &raw, int u,
                                         bool there)
{
    Unit unit = {};
    if (there) unpack_unit<T>(unit, raw, u);
    to[0] = make_int4(unit.q[0], unit.q[1], unit.q[2], unit.q[3]);
    to[1] = make_int4(unit.q[4], unit.q[5], unit.q[6], unit.q[7]);
    *factors = make_float4(unit.a[0], unit.a[1], unit.b[0], unit.b[1]);
}

/* acc += the products of half h of a unit: 16 rows, 8 vectors. s, meta: of this lane's rows and
 * vectors. */
template <int T>
__device__ __forceinline__ void multiply_half(float acc[4], const int a[2], int b, int h,
                                              const float4 s[2], const int4 meta[2])
{
    const int sum[2] = {h ? meta[0].w : meta[0].z, h ? meta[1].w : meta[1].z};
    const int bits[2] = {h ? meta[0].y : meta[0].x, h ? meta[1].y : meta[1].x};
    float dx[2];
    memcpy(dx, bits, 8);
    int d[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        d[i] = -Traits<T>::offset * sum[i % 2];
    mma_m16n8k16_s8(d, a, b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float v = (h ? s[i / 2].y : s[i / 2].x) * (float)d[i];
        if (Traits<T>::minimum) v -= (h ? s[i / 2].w : s[i / 2].z) * (float)sum[i % 2];
        acc[i] += dx[i % 2] * v;
    }
}

template <int T> __global__ void __launch_bounds__(THREADS) gemm_int8(Int8Args m)
{
    SHARED(int4, w, [ROWS][PITCH]);
    SHARED(float4, factors, [ROWS][UNITS]);
    SHARED(int4, x, [2][TOKENS][PITCH]);
    SHARED(int4, meta, [2][TOKENS][UNITS]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int token0 = blockIdx.y * TOKENS, units = m.cols / 32;
    const int64_t row0 = (int64_t)blockIdx.x * ROWS;
    /* What this thread unpacks, and where in the block's results this warp's lie. */
    const int row = threadIdx.x / UNITS, unit = threadIdx.x % UNITS;
    const int r0 = warp % 2 * 16, t0 = warp / 2 * 32, tiles = (m.n - token0 - t0 + 7) / 8;
    const RowPlanes planes = row_planes(m.w, min(row0 + row, m.w.rows - 1));
    float acc[4][4] = {};
    RawUnit raw = {};
    if (unit < units) load_unit<T>(raw, planes, unit);
    fetch_acts(m, x[0], meta[0], token0, 0);
    cp_async_commit();
    for (int u0 = 0, now = 0; u0 < units; u0 += UNITS, now ^= 1) {
        put_unit<T>(&w[row][2 * unit], &factors[row][unit], raw, u0 + unit, u0 + unit < units);
        if (u0 + UNITS + unit < units) load_unit<T>(raw, planes, u0 + UNITS + unit);
        if (u0 + UNITS < units) fetch_acts(m, x[now ^ 1], meta[now ^ 1], token0, u0 + UNITS);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        for (int u = 0; u < UNITS; u++) {
            const int *w0 = (const int *)&w[r0 + g][2 * u] + q;
            const int *w1 = (const int *)&w[r0 + g + 8][2 * u] + q;
            const float4 s[2] = {factors[r0 + g][u], factors[r0 + g + 8][u]};
            const int a[2][2] = {{w0[0], w1[0]}, {w0[4], w1[4]}};
#pragma unroll
            for (int t = 0; t < 4; t++) {
                if (t >= tiles) continue; /* the same for the whole warp */
                const int at = t0 + 8 * t;
                const int *b = (const int *)&x[now][at + g][2 * u] + q;
                const int4 of[2] = {meta[now][at + 2 * q][u], meta[now][at + 2 * q + 1][u]};
                multiply_half<T>(acc[t], a[0], b[0], 0, s, of);
                multiply_half<T>(acc[t], a[1], b[4], 1, s, of);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int t = 0; t < 4; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t r = row0 + r0 + g + i / 2 * 8;
            const int token = token0 + t0 + 8 * t + 2 * q + i % 2;
            if (r >= m.w.rows || token >= m.n) continue;
            float *y = m.y + token * m.y_stride + r;
            *y = (m.add ? *y : 0) + (m.bias ? m.bias[r] : 0) + acc[t][i];
        }
}

/* Up to how many vectors this path is taken. Not measured, as no GPU was at hand: a choice from
 * counting. The other path reads the packed weights, writes them as float16 and reads those, at
 * least 4.5 bytes a weight of 4 bits, where this one reads 0.6; but it does more than ten
 * operations in float32 for 64 products, so that with hundreds of vectors float16 tensor cores are
 * ahead. One pass over the weights, 64 vectors, is well on this side of where both meet. */
static const int64_t MOST_VECTORS = 64;

bool tn_cuda_gemm_int8_pays(const tn_dgemm *a)
{
#ifdef TN_EMU
    /* Here the other path is far ahead; small products come this way so that they are tested. */
    if (a->x.n * a->w.cols > ((int64_t)1 << 22) / a->w.rows) return false;
#endif
    return a->x.n <= MOST_VECTORS;
}

tn_status tn_cuda_gemm_int8(cudaStream_t s, const tn_dgemm *a, const tn_dacts *x)
{
    Int8Args m = {a->w, x->q,        x->scale, (int)x->n, (int)a->w.cols,
                  a->y, a->y_stride, a->bias,  a->add};
    const dim3 grid((unsigned)((a->w.rows + ROWS - 1) / ROWS),
                    (unsigned)((x->n + TOKENS - 1) / TOKENS));
#define LAUNCH_TYPE(T) LAUNCH(KERNEL(gemm_int8<T>), grid, THREADS, 0, s, m)
    TN_FOR_QUANT(a->w.type, LAUNCH_TYPE, return TN_EUNSUPPORTED)
#undef LAUNCH_TYPE
    return tn_cuda_launched();
}
