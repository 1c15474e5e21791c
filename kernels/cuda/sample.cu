/* The best of many logits, so that they need not cross to the host: a block of 1024 threads a row.
 */
#include "ops.h"

enum { THREADS = 1024, MOST = 1024, AT_ONCE = 8 };

__global__ void __launch_bounds__(THREADS)
    argmax_rows(const float *x, int64_t x_stride, int cols, int32_t *id, float *value)
{
    SHARED(float, best_of, [32]);
    SHARED(int, at_of, [32]);
    const float *row = x + blockIdx.x * x_stride;
    float best = -INFINITY;
    int at = cols;
    /* One multiprocessor reads them all: several loads in flight. */
    for (int i0 = threadIdx.x; i0 < cols; i0 += AT_ONCE * THREADS) {
        float v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            v[k] = i0 + k * THREADS < cols ? row[i0 + k * THREADS] : NAN;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = i0 + k * THREADS;
            if (!(v[k] > best) && at < cols) continue;
            best = v[k] == v[k] ? v[k] : -INFINITY;
            at = i;
        }
    }
    const float top = warp_max(best);
    const int first = (int)warp_min(best == top ? (float)at : (float)cols);
    if (threadIdx.x % 32 == 0) {
        best_of[threadIdx.x / 32] = top;
        at_of[threadIdx.x / 32] = first;
    }
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 0; w < 32; w++)
        if (best_of[w] > best || (best_of[w] == best && at_of[w] < at)) {
            best = best_of[w];
            at = at_of[w];
        }
    id[blockIdx.x] = at;
    if (value) value[blockIdx.x] = row[at];
}

/* A number whose order is that of the values, lower indices first; no two elements have the same.
 */
__device__ __forceinline__ uint64_t key_of(float v, int i)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    u = u >> 31 ? ~u : u | 0x80000000u;
    if (v != v) u = 0;
    if (v == 0) u = 0x80000000u; /* of either sign */
    return (uint64_t)u << 32 | (0xffffffffu - (uint32_t)i);
}

/* Finds the digit with which the k-th largest key goes on, given counts of each; by one thread.
 * Returns how many of the wanted keys have exactly this digit. */
__device__ __forceinline__ int pick_digit(const int *counts, int wanted, int *digit)
{
    int d = 255;
    while (d > 0 && counts[d] < wanted)
        wanted -= counts[d--];
    *digit = d;
    return wanted;
}

__device__ __forceinline__ void sort_descending(uint64_t *keys, int n)
{
    for (int size = 2; size <= n; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            const int i = (int)threadIdx.x, j = i ^ step;
            if (j > i && i < n) {
                const uint64_t a = keys[i], b = keys[j];
                const bool descending = (i & size) == 0;
                if (descending ? a < b : a > b) {
                    keys[i] = b;
                    keys[j] = a;
                }
            }
            __syncthreads();
        }
}

/* Radix selection: 8 bits of the keys at a time, from the top, until the k largest are separated.
 */
__global__ void __launch_bounds__(THREADS)
    top_k_rows(const float *x, int64_t x_stride, int cols, int k, int32_t *id, float *value)
{
    SHARED(int, counts, [256]);
    SHARED(uint64_t, keys, [MOST]);
    SHARED(uint64_t, prefix, [1]);
    SHARED(int, state, [3]); /* wanted among those with the prefix, all of them so, found so far */
    const float *row = x + blockIdx.x * x_stride;
    if (threadIdx.x == 0) {
        prefix[0] = 0;
        state[0] = k;
        state[1] = state[2] = 0;
    }
    int shift = 56;
    for (;; shift -= 8) {
        if (threadIdx.x < 256) counts[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < cols; i += THREADS) {
            const uint64_t key = key_of(row[i], i);
            if (shift == 56 || key >> (shift + 8) == prefix[0])
                atomicAdd(&counts[key >> shift & 255], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit;
            state[0] = pick_digit(counts, state[0], &digit);
            state[1] = counts[digit] == state[0];
            prefix[0] = prefix[0] << 8 | (uint64_t)digit;
        }
        __syncthreads();
        if (state[1] || shift == 0) break;
    }
    const uint64_t least = prefix[0] << shift;
    int n = 1;
    while (n < k)
        n *= 2;
    if ((int)threadIdx.x < n) keys[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < cols; i += THREADS) {
        const uint64_t key = key_of(row[i], i);
        if (key >= least) keys[atomicAdd(&state[2], 1)] = key;
    }
    __syncthreads();
    sort_descending(keys, n);
    if ((int)threadIdx.x >= k) return;
    const int i = (int)(0xffffffffu - (uint32_t)keys[threadIdx.x]);
    id[(int64_t)blockIdx.x * k + threadIdx.x] = i;
    value[(int64_t)blockIdx.x * k + threadIdx.x] = row[i];
}

static bool valid(int64_t n, int64_t cols)
{
    return n >= 1 && n <= INT32_MAX && cols >= 1 && cols < 1 << 24;
}

tn_status tn_cuda_argmax(tn_stream *stream, const float *x, int64_t x_stride, int64_t n,
                         int64_t cols, int32_t *id, float *value)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (!valid(n, cols)) return TN_EARG;
    LAUNCH(argmax_rows, (unsigned)n, THREADS, 0, s, x, x_stride, (int)cols, id, value);
    return tn_cuda_launched();
}

tn_status tn_cuda_top_k(tn_stream *stream, const float *x, int64_t x_stride, int64_t n,
                        int64_t cols, int32_t k, int32_t *id, float *value)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (!valid(n, cols) || k < 1 || k > cols || k > MOST) return TN_EARG;
    LAUNCH(top_k_rows, (unsigned)n, THREADS, 0, s, x, x_stride, (int)cols, (int)k, id, value);
    return tn_cuda_launched();
}
