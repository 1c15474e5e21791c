/* Bugs of device code between host, streams and memory, each beside its correct form: the emulated
 * device's own test.
 *
 * Case n with BUG must be noticed in the modes that emu_bugs.cpp lists for it, without BUG it must
 * be silent in all. A case returns whether its result is right. */
#include "emu_bugs_cases.h"

#include <pthread.h>

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

/* The same inside a struct, which is how kernels take matrices. Between its members lies what was
 * in that memory before: here, with `low`, the whole of a pointer that is none. */
struct Slab {
    float *y;
    const float *x;
    int low;
    double scale;
};
__global__ void scale_slab(Slab s, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) s.y[i] = (float)s.scale * s.x[i];
}
static __attribute__((noinline)) const Slab &slab_at(float *y, const float *x, const float *stale)
{
    static Slab s;
    const uint64_t word = (uintptr_t)stale;
    for (size_t at = 0; at < sizeof s; at += sizeof word)
        memcpy((char *)&s + at, &word, sizeof word);
    s.y = y;
    s.x = x;
    s.low = (int)(uint32_t)word;
    s.scale = 2;
    return s;
}
template <bool BUG> static bool freed_slab_in_struct()
{
    float *x = device<float>(64), *y = device<float>(64), *stale = device<float>(64);
    LAUNCH(fill, 1, 64, 0, s1, x, 1.0f, 64);
    cudaStreamSynchronize(s1);
    cudaFree(stale);
    emu::check_argument(slab_at(y, x, stale), "scale_slab", 0); /* as it lies here */
    LAUNCH(scale_slab, 1, 64, 0, s1, slab_at(y, BUG ? stale : x, stale), 64);
    return holds(y, 64, [](int) { return 2.0f; });
}
template <bool BUG> static bool wrong_device_in_struct()
{
    cudaSetDevice(1);
    float *there = device<float>(64);
    cudaSetDevice(0);
    float *x = device<float>(64), *y = device<float>(64);
    LAUNCH(fill, 1, 64, 0, s1, x, 1.0f, 64);
    LAUNCH(scale_slab, 1, 64, 0, s1, slab_at(y, BUG ? there : x, x), 64);
    return holds(y, 64, [](int) { return 2.0f; });
}
template <bool BUG> static bool graph_of_freed_slab()
{
    float *x = device<float>(64), *y = device<float>(64), *unused = device<float>(64);
    cudaGraph_t g;
    cudaGraphExec_t token;
    LAUNCH(fill, 1, 64, 0, s1, x, 1.0f, 64);
    cudaStreamSynchronize(s1);
    cudaStreamBeginCapture(s1, cudaStreamCaptureModeThreadLocal);
    LAUNCH(scale_slab, 1, 64, 0, s1, slab_at(y, x, x), 64);
    cudaStreamEndCapture(s1, &g);
    cudaGraphInstantiateWithFlags(&token, g, 0);
    cudaFree(BUG ? x : unused);
    cudaGraphLaunch(token, s1);
    return holds(y, 64, [](int) { return 2.0f; });
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
enum use { COPIED, ARGUMENT, IN_STRUCT };
template <bool BUG> static bool freed_behind_sleep(use how)
{
    cudaEvent_t e;
    float *d = device<float>(64), *unused = device<float>(64), *h = pinned<float>(64);
    float *y = device<float>(64);
    cudaStream_t other = elsewhere();
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    cudaLaunchHostFunc(other, sleep_a_while, nullptr);
    cudaEventRecord(e, other);
    cudaSetDevice(0);
    cudaStreamWaitEvent(s1, e, 0);
    switch (how) {
    case COPIED: up(d, h, 64 * sizeof(float)); break;
    case ARGUMENT: LAUNCH(fill, 1, 64, 0, s1, d, 1.0f, 64); break;
    case IN_STRUCT: LAUNCH(scale_slab, 1, 64, 0, s1, slab_at(y, d, y), 64); break;
    }
    return cudaFree(BUG ? d : unused) == cudaSuccess;
}
template <bool BUG> static bool freed_while_used()
{
    return freed_behind_sleep<BUG>(ARGUMENT);
}
template <bool BUG> static bool freed_while_copied()
{
    return freed_behind_sleep<BUG>(COPIED);
}
template <bool BUG> static bool freed_while_in_struct()
{
    return freed_behind_sleep<BUG>(IN_STRUCT);
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
/* Page-locking and its end may wait for all devices. What makes each go well here by waiting is a
 * thread, as a host function would be waited for, too. */
static void *write_later(void *flag)
{
    write_flag(flag);
    return nullptr;
}
template <bool BUG, class Call> static bool beside_wait(Call call)
{
    uint32_t *flag = pinned<uint32_t>(1);
    pthread_t writer;
    if (BUG)
        pthread_create(&writer, nullptr, write_later, flag);
    else
        __atomic_store_n(flag, 1, __ATOMIC_RELEASE); /* it need not have been seen */
    cuStreamWaitValue32(s1, (CUdeviceptr)(uintptr_t)flag, 1, CU_STREAM_WAIT_VALUE_GEQ);
    const bool right = call() == cudaSuccess;
    if (BUG) pthread_join(writer, nullptr);
    return right;
}
static __attribute__((aligned(4096))) unsigned char own_page[4096];
template <bool BUG> static bool pinned_allocated_while_host_awaited()
{
    void *p;
    return beside_wait<BUG>([&] { return cudaHostAlloc(&p, 64, cudaHostAllocMapped); });
}
template <bool BUG> static bool pinned_freed_while_host_awaited()
{
    float *p = pinned<float>(64);
    return beside_wait<BUG>([=] { return cudaFreeHost(p); });
}
template <bool BUG> static bool registered_while_host_awaited()
{
    return beside_wait<BUG>(
        [] { return cudaHostRegister(own_page, sizeof own_page, cudaHostRegisterMapped); });
}
template <bool BUG> static bool unregistered_while_host_awaited()
{
    cudaHostRegister(own_page, sizeof own_page, cudaHostRegisterMapped);
    return beside_wait<BUG>([] { return cudaHostUnregister(own_page); });
}
/* A copy out of memory that is page-locked no more when it happens. */
template <bool BUG> static bool unregistered_while_copied()
{
    float *d = device<float>(N);
    cudaHostRegister(own_page, sizeof own_page, cudaHostRegisterMapped);
    for (int i = 0; i < 64; i++)
        fill_all(d, 1, s1);
    up(d, own_page, sizeof own_page);
    if (!BUG) cudaStreamSynchronize(s1);
    return cudaHostUnregister(own_page) == cudaSuccess;
}
template <bool BUG> static bool freed_while_host_works()
{
    float *d = device<float>(64);
    cudaLaunchHostFunc(s1, sleep_a_while, nullptr);
    if (!BUG) cudaStreamSynchronize(s1);
    return cudaFree(d) == cudaSuccess;
}

const struct emu_case emu_host_cases[] = {
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
    CASE(graph_of_freed_memory),
    CASE(fork_not_joined),
    CASE(join_too_early),
    CASE(wrong_device),
    CASE(freed_slab_in_struct),
    CASE(wrong_device_in_struct),
    CASE(graph_of_freed_slab),
    CASE(allocation_recorded),
    CASE(grid_too_high),
    CASE(freed_while_used),
    CASE(freed_while_copied),
    CASE(freed_while_in_struct),
    CASE(freed_while_host_awaited),
    CASE(freed_while_host_works),
    CASE(allocated_while_host_awaited),
    CASE(pinned_allocated_while_host_awaited),
    CASE(pinned_freed_while_host_awaited),
    CASE(registered_while_host_awaited),
    CASE(unregistered_while_host_awaited),
    CASE(unregistered_while_copied),
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
