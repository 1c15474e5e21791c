/* Bugs of device code, each beside its correct form: the emulated device's own test.
 *
 * Case n with BUG must be noticed in the modes that emu_bugs.cpp lists for it, without BUG it must
 * be silent in all. A case returns whether its result is right. */
#include "emu_bugs.h"

#include <unistd.h>

static cudaStream_t s1, s2;

template <class T> static T *device(size_t n)
{
    void *p = nullptr;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) _exit(99);
    return (T *)p;
}
template <class T> static T *pinned(size_t n)
{
    void *p = nullptr;
    if (cudaHostAlloc(&p, n * sizeof(T), cudaHostAllocMapped) != cudaSuccess) _exit(99);
    memset(p, 0, n * sizeof(T));
    return (T *)p;
}
static void up(void *to, const void *from, size_t bytes, cudaStream_t s = s1)
{
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s);
}
static void down(void *to, const void *from, size_t bytes, cudaStream_t s = s1)
{
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s);
    cudaStreamSynchronize(s);
}
/* Whether n floats on the device are what f says. */
template <class F> static bool holds(const float *p, int n, F f)
{
    float *h = pinned<float>((size_t)n);
    down(h, p, (size_t)n * sizeof(float));
    for (int i = 0; i < n; i++)
        if (!(h[i] == f(i))) return false;
    return true;
}

/* ---- within a block -------------------------------------------------------------------------- */

template <bool BUG> __global__ void exchange(float *out)
{
    SHARED(float, s, [64]);
    s[threadIdx.x] = (float)threadIdx.x;
    if (!BUG) __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
template <bool BUG> static bool barrier_missing()
{
    float *d = device<float>(64);
    LAUNCH(exchange<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int i) { return 63.0f - (float)i; });
}

template <bool BUG> __global__ void tiles(float *out)
{
    SHARED(float, s, [64]);
    float a = 0;
    for (int t = 0; t < 4; t++) {
        s[threadIdx.x] = (float)(t * 64 + (int)threadIdx.x);
        __syncthreads();
        a += s[63 - threadIdx.x];
        if (!BUG) __syncthreads();
    }
    out[threadIdx.x] = a;
}
template <bool BUG> static bool barrier_after_missing()
{
    float *d = device<float>(64);
    LAUNCH(tiles<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int i) { return 4.0f * (63.0f - (float)i) + 64 * 6; });
}

template <bool BUG> __global__ void two_barriers(float *out)
{
    if (BUG && threadIdx.x < 32) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 1;
        __syncthreads();
    }
}
template <bool BUG> static bool barrier_divergent()
{
    float *d = device<float>(64);
    LAUNCH(two_barriers<BUG>, 1, 64, 0, s1, d);
    return holds(d, BUG ? 0 : 64, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void leaves(float *out, int n)
{
    if (BUG && (int)threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
template <bool BUG> static bool exit_before_barrier()
{
    float *d = device<float>(64);
    LAUNCH(leaves<BUG>, 1, 64, 0, s1, d, 40);
    return holds(d, BUG ? 40 : 64, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void one_past(float *out)
{
    out[threadIdx.x + (BUG && threadIdx.x == 63 ? 1 : 0)] = 1;
}
template <bool BUG> static bool global_overrun()
{
    float *d = device<float>(64);
    LAUNCH(one_past<BUG>, 1, 64, 0, s1, d);
    return holds(d, 63, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void shared_past(float *out)
{
    SHARED(float, s, [64]);
    s[threadIdx.x + (BUG ? 1 : 0)] = 1;
    __syncthreads();
    if (threadIdx.x) out[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> static bool shared_overrun()
{
    float *d = device<float>(64);
    LAUNCH(shared_past<BUG>, 1, 64, 0, s1, d);
    return holds(d + 1, 63, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void count(float *out)
{
    if (threadIdx.x) return;
    if (BUG)
        *out += 1;
    else
        atomicAdd(out, 1.0f);
}
template <bool BUG> static bool race_of_blocks()
{
    float *d = device<float>(64);
    cudaMemsetAsync(d, 0, 64 * sizeof(float), s1);
    LAUNCH(count<BUG>, 4, 32, 0, s1, d);
    return holds(d, 1, [](int) { return 4.0f; });
}

/* Barriers order the threads of a block, not blocks. */
template <bool BUG> __global__ void count_synced(float *out)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        if (BUG)
            *out += 1;
        else
            atomicAdd(out, 1.0f);
    }
    __syncthreads();
}
template <bool BUG> static bool race_of_synced_blocks()
{
    float *d = device<float>(64);
    cudaMemsetAsync(d, 0, 64 * sizeof(float), s1);
    LAUNCH(count_synced<BUG>, 4, 64, 0, s1, d);
    return holds(d, 1, [](int) { return 4.0f; });
}

template <bool BUG> __global__ void half_filled(float *out)
{
    SHARED(float, s, [64]);
    if (!BUG || threadIdx.x < 63) s[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> static bool shared_uninitialised()
{
    float *d = device<float>(64);
    LAUNCH(half_filled<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int) { return 1.0f; });
}

/* What nobody has written would do if it were zero: it is not. */
template <bool BUG> __device__ void sum_first(float *s, float *out)
{
    if (!BUG || threadIdx.x < 60) s[threadIdx.x] = threadIdx.x < 60 ? 1.0f : 0.0f;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < 64; i++)
        sum += s[i];
    out[threadIdx.x] = sum;
}
template <bool BUG> __global__ void sum_shared(float *out)
{
    SHARED(float, s, [64]);
    sum_first<BUG>(s, out);
}
template <bool BUG> __global__ void sum_dynamic(float *out)
{
    SHARED_DYN(float, s);
    sum_first<BUG>(s, out);
}
template <bool BUG> static bool shared_taken_for_zero()
{
    float *d = device<float>(64);
    LAUNCH(sum_shared<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int) { return 60.0f; });
}
template <bool BUG> static bool dynamic_taken_for_zero()
{
    float *d = device<float>(64);
    LAUNCH(sum_dynamic<BUG>, 1, 64, 64 * sizeof(float), s1, d);
    return holds(d, 64, [](int) { return 60.0f; });
}
template <bool BUG> static bool device_taken_for_zero()
{
    float *d = device<float>(64);
    if (!BUG) cudaMemsetAsync(d, 0, 64 * sizeof(float), s1);
    LAUNCH(count<false>, 4, 32, 0, s1, d);
    return holds(d, 1, [](int) { return 4.0f; });
}
template <bool BUG> static bool pinned_taken_for_zero()
{
    void *p = nullptr;
    float *d = device<float>(64);
    if (cudaHostAlloc(&p, 64 * sizeof(float), cudaHostAllocMapped) != cudaSuccess) _exit(99);
    if (!BUG) memset(p, 0, 64 * sizeof(float));
    up(d, p, 64 * sizeof(float));
    return holds(d, 64, [](int) { return 0.0f; });
}

template <bool BUG> __global__ void half_warp(float *out)
{
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16) v += __shfl_xor_sync(BUG ? 0xffffffffu : 0xffffu, v, 1);
    out[threadIdx.x] = v;
}
template <bool BUG> static bool shuffle_without_lanes()
{
    float *d = device<float>(32);
    LAUNCH(half_warp<BUG>, 1, 32, 0, s1, d);
    return holds(d, 32, [](int i) { return i < 16 ? (float)(i + (i ^ 1)) : (float)i; });
}

template <bool BUG> __global__ void absent_source(float *out)
{
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16) v += __shfl_down_sync(0xffffu, v, 8, BUG ? 32 : 16);
    out[threadIdx.x] = v;
}
template <bool BUG> static bool shuffle_from_outside()
{
    float *d = device<float>(32);
    LAUNCH(absent_source<BUG>, 1, 32, 0, s1, d);
    return holds(d, 16, [](int i) { return (float)(i + (i < 8 ? i + 8 : i)); });
}

template <bool BUG> __global__ void shuffle_orders(float *out)
{
    SHARED(float, s, [32]);
    s[threadIdx.x] = (float)threadIdx.x;
    float one = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    if (!BUG) __syncwarp();
    out[threadIdx.x] = s[31 - threadIdx.x] + one;
}
template <bool BUG> static bool syncwarp_missing()
{
    float *d = device<float>(32);
    LAUNCH(shuffle_orders<BUG>, 1, 32, 0, s1, d);
    return holds(d, 32, [](int i) { return 32.0f - (float)i; });
}

template <bool BUG> __global__ void dynamic_past(float *out)
{
    SHARED_DYN(float, s);
    s[threadIdx.x + (BUG ? 64 : 0)] = 1;
    out[threadIdx.x] = 1;
}
template <bool BUG> static bool dynamic_overrun()
{
    float *d = device<float>(64);
    LAUNCH(dynamic_past<BUG>, 1, 64, 64 * sizeof(float), s1, d);
    return holds(d, 64, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void half_sum(const float *x, float *out, int n)
{
    float f = 0;
    half h = __float2half(0.0f);
    for (int i = 0; i < n; i++) {
        f += x[i];
        h = __hadd(h, __float2half(x[i]));
    }
    *out = BUG ? __half2float(h) : f;
}
template <bool BUG> static bool half_overflow()
{
    float *d = device<float>(5), *h = pinned<float>(4);
    for (int i = 0; i < 4; i++)
        h[i] = 20000;
    up(d, h, 4 * sizeof(float));
    LAUNCH(half_sum<BUG>, 1, 1, 0, s1, d, d + 4, 4);
    return holds(d + 4, 1, [](int) { return 80000.0f; });
}

template <bool BUG> __global__ void copy_through(const float *x, float *out)
{
    SHARED(__align__(16) float, s, [128]);
    cp_async16(&s[4 * threadIdx.x], x + 4 * threadIdx.x);
    cp_async_commit();
    if (!BUG) cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++)
        out[4 * threadIdx.x + i] = s[127 - 4 * threadIdx.x - i];
    cp_async_wait<0>();
}
template <bool BUG> static bool async_copy_early()
{
    float *d = device<float>(256), *h = pinned<float>(128);
    for (int i = 0; i < 128; i++)
        h[i] = (float)i;
    up(d, h, 128 * sizeof(float));
    LAUNCH(copy_through<BUG>, 1, 32, 0, s1, d, d + 128);
    return holds(d + 128, 128, [](int i) { return 127.0f - (float)i; });
}

template <bool BUG> __global__ void copy_lost(const float *x, float *out)
{
    SHARED(__align__(16) float, s, [128]);
    cp_async16(&s[4 * threadIdx.x], x + 4 * threadIdx.x);
    cp_async_commit();
    if (!BUG) cp_async_wait<0>();
    out[threadIdx.x] = 1;
}
template <bool BUG> static bool async_copy_never_awaited()
{
    float *d = device<float>(256);
    LAUNCH(copy_lost<BUG>, 1, 32, 0, s1, d, d + 128);
    return holds(d + 128, 32, [](int) { return 1.0f; });
}

/* A GPU reads 16 bytes at once only where they are aligned to as many. */
template <bool BUG> __global__ void wide_loads(const float *x, float *out)
{
    const float4 v = *(const float4 *)(x + 4 * threadIdx.x + (BUG ? 1 : 0));
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
template <bool BUG> static bool load_misaligned()
{
    float *d = device<float>(256), *h = pinned<float>(160);
    for (int i = 0; i < 160; i++)
        h[i] = (float)i;
    up(d, h, 160 * sizeof(float));
    LAUNCH(wide_loads<BUG>, 1, 32, 0, s1, d, d + 192);
    return holds(d + 192, 32, [](int i) { return 16.0f * (float)i + (BUG ? 10 : 6); });
}

/* What is put together from the products that older hardware has is what newer hardware computes.
 * The bug: rows 8 to 15 and the second half of the columns change places. */
template <bool BUG> __global__ void products(int *out)
{
    const int l = (int)threadIdx.x, x = BUG ? 2 : 1;
    int a[2], b = (int)((uint32_t)l * 0x07050301u - 0x21436587u), d[8];
    uint32_t fa[4], fb[2];
    float f[8] = {};
    for (int i = 0; i < 4; i++)
        fa[i] = 0x3c003800u + (uint32_t)(l * 64 + i * 4096);
    for (int i = 0; i < 2; i++) {
        a[i] = (int)((uint32_t)l * 0x01030507u + (uint32_t)i * 0x11213141u);
        fb[i] = 0x38003c00u + (uint32_t)(l * 32 + i * 8192);
    }
    const int other[2] = {a[BUG ? 1 : 0], a[BUG ? 0 : 1]};
    const uint32_t fother[4] = {fa[0], fa[x], fa[3 - x], fa[3]};
    mma_m16n8k16_f16(f, fa, fb);
    mma_m16n8k16_f16_parts(f + 4, fother, fb);
    for (int i = 0; i < 8; i++)
        d[i] = i;
    mma_m16n8k16_s8(d, a, b);
    mma_m16n8k16_s8_parts(d + 4, other, b);
    for (int i = 0; i < 4; i++) {
        out[8 * l + i] = f[i] == f[i + 4] && f[i] != 0;
        out[8 * l + 4 + i] = d[i] == d[i + 4] - 4;
    }
}
template <bool BUG> static bool products_in_parts()
{
    int *d = device<int>(256), *h = pinned<int>(256);
    LAUNCH(products<BUG>, 1, 32, 0, s1, d);
    down(h, d, 256 * sizeof(int));
    for (int i = 0; i < 256; i++)
        if (!h[i]) return false;
    return true;
}

/* ---- between host, streams and memory -------------------------------------------------------- */

static const int N = 1 << 11; /* TSan takes its time over every thread */

__global__ void fill(float *p, float v, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) p[i] = v;
}
static void fill_all(float *p, float v, cudaStream_t s)
{
    LAUNCH(fill, N / 64, 64, 0, s, p, v, N);
}

template <bool BUG> static bool host_reads_device()
{
    float *d = device<float>(64), h = 7;
    LAUNCH(fill, 1, 64, 0, s1, d, 7.0f, 64);
    cudaStreamSynchronize(s1);
    if (BUG)
        h = *(volatile float *)d;
    else
        down(&h, d, sizeof h);
    return h == 7;
}

template <bool BUG> static bool host_pointer_to_kernel()
{
    float pageable[4];
    float *p = BUG ? pageable : pinned<float>(4);
    LAUNCH(fill, 1, 64, 0, s1, p, 1.0f, 4);
    cudaStreamSynchronize(s1);
    return p[3] == 1;
}

template <bool BUG> static bool copy_overrun()
{
    float *d = device<float>(64), *h = pinned<float>(N);
    LAUNCH(fill, 1, 64, 0, s1, d, 1.0f, 64);
    down(h, d, (BUG ? 128 : 64) * sizeof(float));
    return h[63] == 1;
}

template <bool BUG> static bool event_missing()
{
    float *d = device<float>(N), *h = pinned<float>(N);
    cudaEvent_t e;
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    for (int v = 4; v <= 7; v++)
        fill_all(d, (float)v, s1);
    cudaEventRecord(e, s1);
    if (!BUG) cudaStreamWaitEvent(s2, e, 0);
    down(h, d, N * sizeof(float), s2);
    return h[N - 1] == 7;
}

template <bool BUG> static bool source_reused_early()
{
    float *d = device<float>(N), *h = pinned<float>(N), *back = pinned<float>(N);
    for (int i = 0; i < N; i++)
        h[i] = 3;
    up(d, h, N * sizeof(float));
    if (!BUG) cudaStreamSynchronize(s1);
    for (int i = 0; i < N; i++)
        h[i] = 4;
    down(back, d, N * sizeof(float));
    return back[0] == 3 && back[N - 1] == 3;
}

template <bool BUG> static bool synchronise_missing()
{
    float *d = device<float>(N), *h = pinned<float>(N);
    fill_all(d, 7, s1);
    cudaMemcpyAsync(h, d, N * sizeof(float), cudaMemcpyDeviceToHost, s1);
    if (!BUG) cudaStreamSynchronize(s1);
    return h[N - 1] == 7;
}

template <bool BUG> static bool freed_pointer_to_kernel()
{
    float *d = device<float>(64);
    if (BUG) cudaFree(d);
    LAUNCH(fill, 1, 64, 0, s1, d, 1.0f, 64);
    cudaStreamSynchronize(s1);
    return true;
}

template <bool BUG> static bool host_copies_device()
{
    float *d = device<float>(64), h = 7;
    LAUNCH(fill, 1, 64, 0, s1, d, 7.0f, 64);
    cudaStreamSynchronize(s1);
    if (BUG)
        memcpy(&h, (void *)d, sizeof h);
    else
        down(&h, d, sizeof h);
    return h == 7;
}

/* A recorded token waits for the host's part. The device has to take the flag back, or the next
 * token does not wait. */
__global__ void take(const float *part, float *sum)
{
    *sum += *part;
}
template <bool BUG> static bool flag_never_reset()
{
    float *sum = device<float>(1), *part = pinned<float>(1);
    uint32_t *flag = pinned<uint32_t>(1);
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)flag;
    cudaGraph_t g;
    cudaGraphExec_t token;
    cudaMemsetAsync(sum, 0, sizeof(float), s1);
    cudaStreamBeginCapture(s1, cudaStreamCaptureModeThreadLocal);
    cuStreamWaitValue32(s1, at, 1, CU_STREAM_WAIT_VALUE_GEQ);
    LAUNCH(take, 1, 1, 0, s1, part, sum);
    if (!BUG) cuStreamWriteValue32(s1, at, 0, CU_STREAM_WRITE_VALUE_DEFAULT);
    cudaStreamEndCapture(s1, &g);
    cudaGraphInstantiateWithFlags(&token, g, 0);
    for (int i = 0; i < 3; i++) {
        cudaGraphLaunch(token, s1);
        usleep(20000); /* the host computes */
        *part = 10.0f + (float)i;
        __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
        cudaStreamSynchronize(s1);
    }
    return holds(sum, 1, [](int) { return 33.0f; });
}

/* A table of slabs in device memory still names one that was dropped. */
__global__ void sum_slabs(const float *const *slabs, int n, float *out)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += slabs[i][0];
    *out = sum;
}
template <bool BUG> static bool freed_slab_used()
{
    float **table = device<float *>(2), **h = pinned<float *>(2), *out = device<float>(1);
    for (int i = 0; i < 2; i++) {
        h[i] = device<float>(64);
        LAUNCH(fill, 1, 64, 0, s1, h[i], 1.0f, 64);
    }
    up(table, h, 2 * sizeof *h);
    cudaStreamSynchronize(s1);
    cudaFree(h[1]);
    LAUNCH(sum_slabs, 1, 1, 0, s1, (const float *const *)table, BUG ? 2 : 1, out);
    return holds(out, 1, [](int) { return BUG ? 2.0f : 1.0f; });
}

/* A position is looked up in the page behind its own. */
__global__ void read_paged(const float *const *pages, int n, int page, int shift, float *out)
{
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        out[i] = pages[i / page + shift][i % page];
}
template <bool BUG> static bool page_off_by_one()
{
    const int page = 16, pages = 4, live = 3; /* the table has a page that nobody has filled yet */
    float **table = device<float *>(pages), **h = pinned<float *>(pages);
    float *out = device<float>(page * live);
    for (int i = 0; i < pages; i++) {
        h[i] = device<float>(page);
        if (i < live) LAUNCH(fill, 1, 32, 0, s1, h[i], (float)i, page);
    }
    up(table, h, pages * sizeof *h);
    LAUNCH(read_paged, 1, 32, 0, s1, (const float *const *)table, page * live, page, BUG ? 1 : 0,
           out);
    return holds(out, page * live, [](int i) { return (float)(i / 16); });
}

/* Weights are streamed through two pinned buffers; a buffer may be filled again only when the copy
 * out of it has happened. */
template <bool BUG> static bool ring_overrun()
{
    const int pieces = 6, n = 4096;
    float *d = device<float>(pieces * n), *ring = pinned<float>(2 * n);
    cudaEvent_t done[2];
    for (cudaEvent_t &e : done)
        cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    for (int i = 0; i < pieces; i++) {
        float *slot = ring + i % 2 * n;
        if (!BUG && i >= 2) cudaEventSynchronize(done[i % 2]);
        for (int k = 0; k < n; k++)
            slot[k] = (float)i;
        up(d + i * n, slot, n * sizeof(float));
        cudaEventRecord(done[i % 2], s1);
    }
    return holds(d, pieces * n, [](int i) { return (float)(i / 4096); });
}

template <bool BUG> static bool graph_of_freed_memory()
{
    float *d = device<float>(64);
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaStreamBeginCapture(s1, cudaStreamCaptureModeThreadLocal);
    LAUNCH(fill, 1, 64, 0, s1, d, 1.0f, 64);
    cudaStreamEndCapture(s1, &g);
    cudaGraphInstantiateWithFlags(&x, g, 0);
    if (BUG) cudaFree(d);
    cudaGraphLaunch(x, s1);
    cudaStreamSynchronize(s1);
    return true;
}

template <bool BUG> static bool fork_not_joined()
{
    float *a = device<float>(N), *b = device<float>(N);
    cudaEvent_t fork, join;
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
    cudaStreamBeginCapture(s1, cudaStreamCaptureModeThreadLocal);
    cudaEventRecord(fork, s1);
    cudaStreamWaitEvent(s2, fork, 0);
    fill_all(a, 1, s1);
    fill_all(b, 1, s2);
    cudaEventRecord(join, s2);
    if (!BUG) cudaStreamWaitEvent(s1, join, 0);
    cudaStreamEndCapture(s1, &g);
    cudaGraphInstantiateWithFlags(&x, g, 0);
    cudaGraphLaunch(x, s1);
    return holds(b, N, [](int) { return 1.0f; });
}

/* The join inside a recording: the sum of two branches. */
__global__ void add(float *y, const float *x, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] += x[i];
}
template <bool BUG> static bool join_too_early()
{
    float *a = device<float>(N), *b = device<float>(N);
    cudaEvent_t fork, join;
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
    cudaMemsetAsync(b, 0, N * sizeof(float), s1);
    cudaStreamBeginCapture(s1, cudaStreamCaptureModeThreadLocal);
    cudaEventRecord(fork, s1);
    cudaStreamWaitEvent(s2, fork, 0);
    fill_all(a, 1, s1);
    for (int v = 8; v >= 2; v -= 2)
        fill_all(b, (float)v, s2);
    cudaEventRecord(join, s2);
    if (!BUG) cudaStreamWaitEvent(s1, join, 0);
    LAUNCH(add, N / 64, 64, 0, s1, a, b, N);
    if (BUG) cudaStreamWaitEvent(s1, join, 0);
    cudaStreamEndCapture(s1, &g);
    cudaGraphInstantiateWithFlags(&x, g, 0);
    cudaGraphLaunch(x, s1);
    return holds(a, N, [](int) { return 3.0f; });
}

template <bool BUG> static bool wrong_device()
{
    cudaStream_t other;
    cudaSetDevice(1);
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    float *d = device<float>(64);
    if (BUG) cudaSetDevice(0);
    LAUNCH(fill, 1, 64, 0, other, d, 1.0f, 64);
    cudaStreamSynchronize(other);
    cudaSetDevice(0);
    return true;
}

template <bool BUG> static bool shared_not_allowed()
{
    float *d = device<float>(64);
    if (!BUG) GPU_ALLOW_SHARED(dynamic_past<false>, 64 << 10);
    LAUNCH(dynamic_past<false>, 1, 64, 64 << 10, s1, d);
    return holds(d, 64, [](int) { return 1.0f; });
}

/* A launch with too many blocks in the second dimension does nothing at all. */
__global__ void fill_rows(float *p, int row0)
{
    if (threadIdx.x == 0) p[row0 + (int)blockIdx.y] = 1;
}
template <bool BUG> static bool grid_too_high()
{
    const int first = BUG ? 0 : 65535, rows = 65535 + 32;
    float *d = device<float>(rows);
    LAUNCH(fill_rows, dim3(1, (unsigned)(rows - first)), 32, 0, s1, d, first);
    return holds(d + 65535, 32, [](int) { return 1.0f; });
}

/* Memory is to be had before a recording begins. */
template <bool BUG> static bool allocation_recorded()
{
    cudaGraph_t g;
    float *d = BUG ? nullptr : device<float>(64);
    cudaStreamBeginCapture(s1, cudaStreamCaptureModeRelaxed);
    if (BUG) d = device<float>(64);
    LAUNCH(fill, 1, 64, 0, s1, d, 1.0f, 64);
    cudaStreamEndCapture(s1, &g);
    return cudaGraphDestroy(g) == cudaSuccess;
}

/* What streams still use is not given back, and nothing is while one waits for the host: the call
 * waits for the device, the device for the host. Each of these would go well by waiting, as another
 * device lets the stream go on after a while. */
static void CUDART_CB sleep_a_while(void *)
{
    usleep(200000);
}
static void CUDART_CB write_flag(void *flag)
{
    usleep(200000);
    __atomic_store_n((uint32_t *)flag, 1, __ATOMIC_RELEASE);
}
/* A stream of the other device. */
static cudaStream_t elsewhere()
{
    cudaStream_t s;
    cudaSetDevice(1);
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    return s;
}
template <bool BUG> static bool freed_behind_sleep(bool copied)
{
    cudaEvent_t e;
    float *d = device<float>(64), *unused = device<float>(64), *h = pinned<float>(64);
    cudaStream_t other = elsewhere();
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    cudaLaunchHostFunc(other, sleep_a_while, nullptr);
    cudaEventRecord(e, other);
    cudaSetDevice(0);
    cudaStreamWaitEvent(s1, e, 0);
    if (copied)
        up(d, h, 64 * sizeof(float));
    else
        LAUNCH(fill, 1, 64, 0, s1, d, 1.0f, 64);
    return cudaFree(BUG ? d : unused) == cudaSuccess;
}
template <bool BUG> static bool freed_while_used()
{
    return freed_behind_sleep<BUG>(false);
}
template <bool BUG> static bool freed_while_copied()
{
    return freed_behind_sleep<BUG>(true);
}
template <bool BUG> static bool freed_while_host_awaited()
{
    float *used = device<float>(64), *d = device<float>(64);
    uint32_t *flag = pinned<uint32_t>(1), *other_flag = pinned<uint32_t>(1);
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)flag, by_device = (CUdeviceptr)(uintptr_t)other_flag;
    cudaStream_t other = elsewhere();
    if (BUG) cudaLaunchHostFunc(other, write_flag, flag);
    cudaSetDevice(0);
    cuStreamWaitValue32(s1, at, 1, CU_STREAM_WAIT_VALUE_GEQ);
    LAUNCH(fill, 1, 64, 0, s1, used, 1.0f, 64);
    if (!BUG) {
        __atomic_store_n(flag, 1, __ATOMIC_RELEASE); /* it need not have been seen */
        cuStreamWaitValue32(s2, by_device, 1, CU_STREAM_WAIT_VALUE_GEQ);
        cuStreamWriteValue32(s1, by_device, 1, CU_STREAM_WRITE_VALUE_DEFAULT);
    }
    return cudaFree(d) == cudaSuccess;
}
/* Allocations may wait for a device, too. */
template <bool BUG> static bool allocated_while_host_awaited()
{
    uint32_t *flag = pinned<uint32_t>(1);
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)flag;
    cudaStream_t other = elsewhere();
    if (BUG) cudaLaunchHostFunc(other, write_flag, flag);
    cudaSetDevice(0);
    cuStreamWaitValue32(s1, at, 1, CU_STREAM_WAIT_VALUE_GEQ);
    if (!BUG) __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
    return device<float>(64) != nullptr;
}
template <bool BUG> static bool freed_while_host_works()
{
    float *d = device<float>(64);
    cudaLaunchHostFunc(s1, sleep_a_while, nullptr);
    if (!BUG) cudaStreamSynchronize(s1);
    return cudaFree(d) == cudaSuccess;
}

#define CASE(name)                                                                                 \
    {                                                                                              \
#name, name < false>, name < true>                                                         \
    }
const struct emu_case emu_cases[] = {CASE(barrier_missing),
                                     CASE(barrier_after_missing),
                                     CASE(barrier_divergent),
                                     CASE(exit_before_barrier),
                                     CASE(global_overrun),
                                     CASE(shared_overrun),
                                     CASE(race_of_blocks),
                                     CASE(race_of_synced_blocks),
                                     CASE(shared_uninitialised),
                                     CASE(shared_taken_for_zero),
                                     CASE(dynamic_taken_for_zero),
                                     CASE(device_taken_for_zero),
                                     CASE(pinned_taken_for_zero),
                                     CASE(shuffle_without_lanes),
                                     CASE(shuffle_from_outside),
                                     CASE(syncwarp_missing),
                                     CASE(dynamic_overrun),
                                     CASE(host_reads_device),
                                     CASE(host_pointer_to_kernel),
                                     CASE(copy_overrun),
                                     CASE(event_missing),
                                     CASE(source_reused_early),
                                     CASE(synchronise_missing),
                                     CASE(freed_pointer_to_kernel),
                                     CASE(host_copies_device),
                                     CASE(flag_never_reset),
                                     CASE(freed_slab_used),
                                     CASE(page_off_by_one),
                                     CASE(ring_overrun),
                                     CASE(half_overflow),
                                     CASE(products_in_parts),
                                     CASE(async_copy_early),
                                     CASE(async_copy_never_awaited),
                                     CASE(graph_of_freed_memory),
                                     CASE(fork_not_joined),
                                     CASE(join_too_early),
                                     CASE(wrong_device),
                                     CASE(shared_not_allowed),
                                     CASE(allocation_recorded),
                                     CASE(load_misaligned),
                                     CASE(grid_too_high),
                                     CASE(freed_while_used),
                                     CASE(freed_while_copied),
                                     CASE(freed_while_host_awaited),
                                     CASE(freed_while_host_works),
                                     CASE(allocated_while_host_awaited),
                                     {nullptr, nullptr, nullptr}};

bool emu_case_run(const struct emu_case *c, bool bug)
{
    cudaStreamCreateWithFlags(&s1, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking);
    bool right = bug ? c->wrong() : c->correct();
    cudaStreamDestroy(s1);
    cudaStreamDestroy(s2);
    return right;
}
