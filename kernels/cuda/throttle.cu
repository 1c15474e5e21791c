/* A fast card made slow, so that on it can be tried what is decided for slower ones: whatever waits
 * for the device's memory (mat-vecs, decode attention, plain reads) is followed by reads of a
 * ballast, `extra` bytes for each byte of weights, keys and values.
 *
 * The ops themselves could be repeated instead. But a matrix that has just been read lies in L2, so
 * the second time is too quick, and every repetition of a small one costs its latency again, which
 * a slow card pays once. A ballast is read in turn and is larger than any L2, fractions are exact
 * to a word, and results cannot change. It lies in the stream, so a graph records it. */
#include "ops.h"

enum { SLOW_THREADS = 256, SAMPLES = 5, IN_A_ROW = 8 };
#ifdef TN_EMU
enum { SLOW_BLOCKS = 2 }; /* a thread there is a call */
static const size_t ballast_bytes = (size_t)1 << 20;
#else
enum { SLOW_BLOCKS = 1024 };
static const size_t ballast_bytes = (size_t)1 << 28;
#endif
static const double word = sizeof(uint4);

/* What is to be read, for each of the grid's rows: `words`, or none where its expert is not here;
 * or where pos is set so many for each position that its token sees. */
struct SlowArgs {
    int64_t words;
    const int32_t *expert, *pos;
    int window;
    double per_position;
};

__device__ __forceinline__ int64_t words_of(const SlowArgs &a, int item)
{
    if (a.expert && a.expert[item] < 0) return 0;
    if (!a.pos) return a.words;
    const int live = a.pos[item] + 1;
    return (int64_t)((a.window > 0 && live > a.window ? a.window : live) * a.per_position);
}

/* *read += the words read: each of the ballast's counts as 1. mask + 1 words are there, a power of
 * two. */
__global__ void __launch_bounds__(SLOW_THREADS)
    read_ballast(const uint4 *ballast, int64_t mask, int64_t at, SlowArgs a,
                 unsigned long long *read)
{
    SHARED(int, part, [SLOW_THREADS / 32]);
    const int64_t step = (int64_t)gridDim.x * blockDim.x, n = words_of(a, (int)blockIdx.y);
    int mine = 0;
    at += blockIdx.y * n;
#pragma unroll 4
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const uint4 v = ballast[(at + i) & mask];
        mine += (int)(v.x & v.y & v.z & v.w & 1);
    }
    mine = warp_sum(mine);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < SLOW_THREADS / 32; w++)
        mine += part[w];
    if (mine) atomicAdd(read, (unsigned long long)mine);
}

static tn_status launch(tn_cuda_device *d, cudaStream_t s, const SlowArgs &a, int64_t items)
{
    const int64_t words = (int64_t)(ballast_bytes / sizeof(uint4));
    /* As far as is known; elsewhere the next read goes on half the ballast away. */
    const int64_t next = a.pos ? words / 2 + 1 : a.words * items;
    const int64_t at = (int64_t)d->slow.next.fetch_add((uint64_t)next) & (words - 1);
    const int64_t share = SLOW_BLOCKS / items > 1 ? SLOW_BLOCKS / items : 1;
    const int64_t need = (a.words + SLOW_THREADS - 1) / SLOW_THREADS;
    LAUNCH(read_ballast, dim3((unsigned)(a.pos || need > share ? share : need), (unsigned)items),
           SLOW_THREADS, 0, s, (const uint4 *)d->slow.ballast, words - 1, at, a, d->slow.read);
    return tn_cuda_launched();
}

/* Items of so many bytes each, as many at a time as a grid holds. */
static tn_status slow_items(tn_stream *stream, double bytes, const int32_t *expert, int64_t items)
{
    tn_cuda_device *d = stream->device;
    SlowArgs a = {};
    a.words = (int64_t)(bytes * d->slow.extra / word + 0.5);
    const cudaStream_t s = tn_cuda_stream(stream);
    tn_status status = TN_OK;
    for (int64_t i = 0; i < items && a.words && !status; i += GRID_ROWS) {
        a.expert = expert ? expert + i : expert;
        status = launch(d, s, a, items - i < GRID_ROWS ? items - i : (int64_t)GRID_ROWS);
    }
    return status;
}

tn_status tn_cuda_slow_read(tn_stream *stream, size_t bytes)
{
    return stream->device->slow.extra > 0 ? slow_items(stream, (double)bytes, nullptr, 1) : TN_OK;
}

tn_status tn_cuda_slow_matvec(tn_stream *stream, const tn_dmatvec *a)
{
    size_t row;
    if (!(stream->device->slow.extra > 0)) return TN_OK;
    if (!tn_type_row_bytes(a->w.type, (uint64_t)a->w.cols, &row)) return TN_EARG;
    int64_t rows = (a->expert ? a->rows : a->w.rows) * (a->up.plane[0] ? 2 : 1);
    for (const tn_dproduct &p : a->more)
        rows += p.w.plane[0] ? p.w.rows : 0;
    const double bytes = (double)row * (double)rows;
    return slow_items(stream, bytes, a->expert, a->expert ? a->n_items : 1);
}

tn_status tn_cuda_slow_attend(tn_stream *stream, const tn_dattend *a)
{
    tn_cuda_device *d = stream->device;
    const tn_dkv *kv = &a->kv;
    if (!(d->slow.extra > 0)) return TN_OK;
    const size_t page = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_k) +
                        tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_v);
    SlowArgs r = {};
    r.window = a->window;
    r.per_position = (double)page / kv->page_size * d->slow.extra / word;
    const cudaStream_t s = tn_cuda_stream(stream);
    tn_status status = TN_OK;
    for (int64_t i = 0; i < a->n && !status; i += GRID_ROWS) {
        r.pos = a->pos + i;
        status = launch(d, s, r, a->n - i < GRID_ROWS ? a->n - i : (int64_t)GRID_ROWS);
    }
    return status;
}

/* ---- switching it on ------------------------------------------------------------------------- */

/* Seconds for reading the whole ballast, the best of several times; 0 where that fails. */
static double time_ballast(tn_cuda_device *d)
{
    cudaEvent_t from = NULL, to = NULL;
    float best = 0, ms = 0;
    SlowArgs a = {};
    a.words = (int64_t)(ballast_bytes / sizeof(uint4));
    bool ok = cudaEventCreateWithFlags(&from, 0) == cudaSuccess &&
              cudaEventCreateWithFlags(&to, 0) == cudaSuccess;
    for (int i = 0; i < SAMPLES && ok; i++) {
        ok = cudaEventRecord(from, d->copies) == cudaSuccess;
        for (int k = 0; k < IN_A_ROW && ok; k++)
            ok = launch(d, d->copies, a, 1) == TN_OK;
        ok = ok && cudaEventRecord(to, d->copies) == cudaSuccess &&
             cudaEventSynchronize(to) == cudaSuccess &&
             cudaEventElapsedTime(&ms, from, to) == cudaSuccess;
        if (ok && (i == 0 || ms < best)) best = ms;
    }
    if (from) cudaEventDestroy(from);
    if (to) cudaEventDestroy(to);
    return ok ? (double)best * 1e-3 / IN_A_ROW : 0;
}

static bool make_ballast(tn_cuda_device *d)
{
    if (d->slow.ballast) return true;
    if (cudaMalloc(&d->slow.ballast, ballast_bytes + 256) != cudaSuccess) return false;
    d->slow.read = (unsigned long long *)((char *)d->slow.ballast + ballast_bytes);
    return cudaMemsetAsync(d->slow.ballast, 1, ballast_bytes, d->copies) == cudaSuccess &&
           cudaMemsetAsync(d->slow.read, 0, 256, d->copies) == cudaSuccess;
}

static tn_status throttle(tn_device *dev, double bytes_per_second, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    d->slow.extra = d->about.throttle = 0;
    d->about.slower = 1;
    if (bytes_per_second == 0) return TN_OK;
    tn_cuda_set_launching(NULL); /* these launches are no op's */
    if (!tn_cuda_enter(d) || !make_ballast(d)) {
        cudaGetLastError();
        return tn_fail(err, TN_EDEVICE, -1,
                       "out of device memory: %.1f MiB missing for what throttles device %d",
                       (double)ballast_bytes / (1 << 20), d->about.index);
    }
    const double seconds = time_ballast(d), rate = (double)ballast_bytes / seconds;
    if (!(seconds > 0)) return tn_cuda_fail(d, err, "timing reads", cudaGetLastError());
    if (!(bytes_per_second > 0 && bytes_per_second <= rate))
        return tn_fail(err, TN_EARG, -1,
                       "throttle: device %d (%s) reads %.4g GB/s and cannot be slowed to %.4g GB/s",
                       d->about.index, d->about.name, rate * 1e-9, bytes_per_second * 1e-9);
    d->slow.extra = rate / bytes_per_second - 1;
    d->about.throttle = bytes_per_second;
    d->about.slower = rate / bytes_per_second;
    return TN_OK;
}

static tn_status throttled_bytes(tn_device *dev, uint64_t *bytes, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    unsigned long long words = 0;
    *bytes = 0;
    cudaError_t e = tn_cuda_enter(d) ? cudaDeviceSynchronize() : cudaErrorInvalidDevice;
    if (e == cudaSuccess && d->slow.read)
        e = cudaMemcpyAsync(&words, d->slow.read, sizeof words, cudaMemcpyDeviceToHost, d->copies);
    if (e == cudaSuccess) e = cudaStreamSynchronize(d->copies);
    *bytes = words * sizeof(uint4);
    return tn_cuda_result(d, NULL, err, "counting reads", e);
}

void tn_cuda_end_throttle(tn_cuda_device *d)
{
    if (d->slow.ballast) cudaFree(d->slow.ballast);
    d->slow.ballast = NULL;
}

void tn_cuda_fill_throttle(tn_device_api *api)
{
    api->throttle = throttle;
    api->throttled_bytes = throttled_bytes;
}
