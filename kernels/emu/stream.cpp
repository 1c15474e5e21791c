/* Streams: a worker thread and a queue each. Copies, kernels, flags and host functions in them. */
#include "stream.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <utility>

using namespace emu;

static std::vector<emu_stream *> streams;
static std::mutex streams_lock;
static thread_local emu_stream *working; /* whose worker this is */

/* ---- broken devices -------------------------------------------------------------------------- */

static std::atomic<uint64_t> until_broken[TN_EMU_DEVICES]; /* things still to do; 0: no end */
static std::atomic<bool> broken[TN_EMU_DEVICES];

void emu::break_at(int device, uint64_t k)
{
    broken[device] = false;
    until_broken[device] = k;
}
bool emu::is_broken(int device)
{
    return broken[device];
}

/* One thing more is to be done. False: the device is broken. */
static bool goes_on(int device)
{
    uint64_t left = until_broken[device];
    while (left && !until_broken[device].compare_exchange_weak(left, left - 1)) {}
    if (left == 1) broken[device] = true;
    return !broken[device];
}

/* What a broken device does not do. */
static operation work(operation op)
{
    const auto run = op.run;
    op.run = [run](replay *r) {
        if (goes_on(working->device)) run(r);
    };
    return op;
}

static cudaError_t end_of_work(int device)
{
    return is_broken(device) ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}

/* ---- the worker ------------------------------------------------------------------------------ */

emu_stream::emu_stream() : worker([this] { run(); }) {}

emu_stream::~emu_stream()
{
    drain();
    {
        std::lock_guard<std::mutex> hold(lock);
        quit = true;
        changed.notify_all();
    }
    worker.join();
}

void emu_stream::open()
{
    if (!opened) device_open();
    opened = true;
}
void emu_stream::close()
{
    if (opened) device_close();
    opened = false;
}

void emu_stream::run()
{
    static std::atomic<unsigned> n_streams;
    unsigned random = 12345 + 7919 * n_streams++;
    working = this;
    cudaSetDevice(device);
    for (;;) {
        queued *q;
        {
            std::unique_lock<std::mutex> hold(lock);
            if (queue.empty()) close(); /* once a burst: protecting costs time per page */
            changed.notify_all();
            changed.wait(hold, [this] { return quit || !queue.empty(); });
            if (queue.empty()) return;
            q = &queue.front();
        }
        open();
        if (settings.delay_us > 0) {
            unsigned least = (unsigned)settings.delay_us / 2 + 1;
            random = random * 1664525u + 1013904223u;
            usleep(least + (random >> 8) % least);
        }
        q->op.run(q->launch.get());
        /* TSan does not see that the last owner of something shared is the last. */
        TSAN(if (q->launch) __tsan_release(q->launch.get());)
        std::lock_guard<std::mutex> hold(lock);
        queue.pop_front();
    }
}

void emu_stream::push(queued q)
{
    std::lock_guard<std::mutex> hold(lock);
    queue.push_back(std::move(q));
    changed.notify_all();
}

void emu_stream::push(operation op)
{
    if (!capture) {
        push(queued{std::move(op), nullptr});
        return;
    }
    for (auto &b : capture->branches)
        if (b.source == this) {
            b.operations.push_back(std::move(op));
            b.joined = &b == &capture->branches[0];
        }
}

void emu_stream::drain()
{
    std::unique_lock<std::mutex> hold(lock);
    changed.wait(hold, [this] { return queue.empty(); });
}
bool emu_stream::idle()
{
    std::lock_guard<std::mutex> hold(lock);
    return queue.empty();
}

static void need(cudaStream_t s, const char *what)
{
    if (!s) host_error("%s: the default stream is not allowed", what);
}

/* ---- streams --------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    if (!(flags & cudaStreamNonBlocking)) host_error("streams must be cudaStreamNonBlocking");
    *s = new emu_stream();
    std::lock_guard<std::mutex> hold(streams_lock);
    streams.push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    need(s, "cudaStreamDestroy");
    {
        std::lock_guard<std::mutex> hold(streams_lock);
        for (size_t i = 0; i < streams.size(); i++)
            if (streams[i] == s) {
                streams.erase(streams.begin() + (long)i);
                break;
            }
    }
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    need(s, "cudaStreamSynchronize");
    if (s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    not_while_recording("cudaStreamSynchronize of another stream");
    s->drain();
    return end_of_work(s->device);
}
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    need(s, "cudaStreamQuery");
    if (s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    return is_broken(s->device) || s->idle() ? end_of_work(s->device) : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize()
{
    std::lock_guard<std::mutex> hold(streams_lock);
    for (emu_stream *s : streams)
        if (s != working) s->drain();
    return cudaSuccess;
}

/* ---- what waits for a device ----------------------------------------------------------------- */

static bool overlap(const void *p, size_t bytes, const void *q, size_t q_bytes)
{
    return bytes && q_bytes && (const char *)p < (const char *)q + q_bytes &&
           (const char *)q < (const char *)p + bytes;
}

bool operation::uses(const void *p, size_t bytes) const
{
    for (const auto &r : range)
        if (overlap(p, bytes, r.p, r.bytes)) return true;
    return (kernel && kernel->names(p, bytes)) || overlap(p, bytes, flag, sizeof *flag);
}

static bool reached(uint32_t now, uint32_t value, bool equal)
{
    return equal ? now == value : (int32_t)(now - value) >= 0;
}

bool operation::waits() const
{
    return kind == HOST ||
           (kind == WAITS && !reached(__atomic_load_n(flag, __ATOMIC_ACQUIRE), value, equal));
}

/* Whether a device writes what op waits for: in another stream, or in its own before it. */
static bool served(const operation &op, const emu_stream *own, size_t at)
{
    for (emu_stream *s : streams) {
        std::unique_lock<std::mutex> hold(s->lock, std::defer_lock);
        if (s != own) hold.lock(); /* the own one is held */
        const size_t n = s == own ? at : s->queue.size();
        for (size_t i = 0; i < n; i++) {
            const operation &w = s->queue[i].op;
            if (w.kind == operation::WRITES && w.flag == op.flag &&
                reached(w.value, op.value, op.equal))
                return true;
        }
    }
    return false;
}

/* Rules for what waits for a whole device: its streams get on without the caller, or neither does;
 * and what they still use is not given back, whether or not the call would wait for them. */
void emu::check_wait(int device, const void *p, size_t bytes, const char *what)
{
    std::lock_guard<std::mutex> hold_all(streams_lock);
    for (emu_stream *s : streams) {
        std::lock_guard<std::mutex> hold(s->lock);
        const bool awaited = (device < 0 || s->device == device) && !is_broken(s->device);
        for (size_t i = 0; i < s->queue.size(); i++) {
            const operation &op = s->queue[i].op;
            if (op.uses(p, bytes)) host_error("%s: a stream still uses %p", what, p);
            if (awaited && op.waits() && !served(op, s, i))
                host_error("%s waits for a stream that waits for the host", what);
        }
    }
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* A copy within streams. */
static void push_copy(cudaStream_t s, operation op, void *dst, size_t dst_bytes, const void *src,
                      size_t src_bytes)
{
    op.range[0] = {dst, dst_bytes};
    op.range[1] = {src, src_bytes};
    s->push(work(op));
}

static enum cudaMemcpyKind kind_of(const void *dst, const void *src)
{
    if (is_device(src)) return is_device(dst) ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost;
    return is_device(dst) ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    need(s, "cudaMemcpyAsync");
    if (!bytes) return cudaSuccess;
    if (kind == cudaMemcpyDefault) kind = kind_of(dst, src);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    check_range(dst, bytes, to_device, "destination of cudaMemcpyAsync");
    check_range(src, bytes, from_device, "source of cudaMemcpyAsync");
    bool pageable = (!to_device && !is_pinned(dst)) || (!from_device && !is_pinned(src));
    if (pageable && s->capture) host_error("capturing a copy from or to pageable memory");
    if (pageable) __atomic_fetch_add(&counters.pageable, 1, __ATOMIC_RELAXED);
    if (pageable && to_device) { /* the source may be reused when the call returns */
        std::shared_ptr<char[]> copy(new char[bytes], [](char *last) {
            TSAN(__tsan_acquire(last);)
            delete[] last;
        });
        memcpy(copy.get(), src, bytes);
        const auto run = [=](replay *) {
            memcpy(dst, copy.get(), bytes);
            TSAN(__tsan_release(copy.get());)
        };
        push_copy(s, run, dst, bytes, nullptr, 0);
        return cudaSuccess;
    }
    const auto run = [=](replay *r) {
        if (r) {
            check_range(dst, bytes, to_device, "destination of a recorded copy");
            check_range(src, bytes, from_device, "source of a recorded copy");
        }
        memcpy(dst, src, bytes);
        if (from_device && !to_device)
            __atomic_fetch_add(&counters.downloaded, bytes, __ATOMIC_RELAXED);
    };
    push_copy(s, run, dst, bytes, src, bytes);
    if (pageable) s->drain();
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind, cudaStream_t s)
{
    if (width > dst_pitch || width > src_pitch) return set_error(cudaErrorInvalidValue);
    need(s, "cudaMemcpy2DAsync");
    if (kind == cudaMemcpyHostToDevice && height && is_pinned(src) && !s->capture) {
        const size_t to = (height - 1) * dst_pitch + width, from = (height - 1) * src_pitch + width;
        check_range(dst, to, true, "destination of cudaMemcpy2DAsync");
        check_range(src, from, false, "source of cudaMemcpy2DAsync");
        __atomic_fetch_add(&counters.strided, 1, __ATOMIC_RELAXED);
        const auto run = [=](replay *) {
            for (size_t i = 0; i < height; i++)
                memcpy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
        };
        push_copy(s, run, dst, to, src, from);
        return cudaSuccess;
    }
    for (size_t i = 0; i < height; i++) {
        cudaError_t e = cudaMemcpyAsync((char *)dst + i * dst_pitch,
                                        (const char *)src + i * src_pitch, width, kind, s);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device,
                                size_t bytes, cudaStream_t s)
{
    need(s, "cudaMemcpyPeerAsync");
    if (device_of(dst) != dst_device || device_of(src) != src_device)
        host_error("cudaMemcpyPeerAsync: %p and %p are not on devices %d and %d", dst, src,
                   dst_device, src_device);
    check_range(dst, bytes, true, "destination of cudaMemcpyPeerAsync");
    check_range(src, bytes, true, "source of cudaMemcpyPeerAsync");
    push_copy(s, [=](replay *) { memcpy(dst, src, bytes); }, dst, bytes, src, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    need(s, "cudaMemsetAsync");
    if (!bytes) return cudaSuccess;
    check_range(p, bytes, true, "cudaMemsetAsync");
    push_copy(s, [=](replay *) { memset(p, value, bytes); }, p, bytes, nullptr, 0);
    return cudaSuccess;
}

/* ---- kernels --------------------------------------------------------------------------------- */

static std::map<std::pair<const void *, int>, size_t> allowed_shared; /* by kernel and device */
static std::mutex allowed_lock;

cudaError_t emu_func_set_attribute(const void *f, enum cudaFuncAttribute, int value)
{
    if (value < 0 || (size_t)value > SHARED_MAX) return set_error(cudaErrorInvalidValue);
    std::lock_guard<std::mutex> hold(allowed_lock);
    allowed_shared[{f, current_device()}] = (size_t)value;
    return cudaSuccess;
}

static size_t shared_limit(const void *kernel)
{
    std::lock_guard<std::mutex> hold(allowed_lock);
    auto it = allowed_shared.find({kernel, current_device()});
    return it == allowed_shared.end() || it->second < SHARED_DEFAULT ? SHARED_DEFAULT : it->second;
}

void emu::enqueue_kernel(cudaStream_t s, const char *name, dim3 grid, dim3 block,
                         size_t shared_bytes, call *c)
{
    std::shared_ptr<call> keep(c, [](call *last) {
        TSAN(__tsan_acquire(last);)
        delete last;
    });
    need(s, name);
    if (s->device != current_device())
        host_error("kernel %s: the stream belongs to device %d, the current one is %d", name,
                   s->device, current_device());
    uint64_t n = (uint64_t)block.x * block.y * block.z;
    if (!n || n > 1024 || block.z > 64 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff ||
        grid.y > 65535 || grid.z > 65535) {
        set_error(cudaErrorInvalidConfiguration);
        return;
    }
    if (shared_bytes > shared_limit(c->kernel())) {
        set_error(cudaErrorInvalidValue);
        return;
    }
    const int device = s->device;
    operation op([=](replay *r) {
        if (r) keep->check(name);
        if (current_device() != device)
            host_error("kernel %s was launched on device %d and runs on %d", name, device,
                       current_device());
        run_kernel(name, grid, block, shared_bytes, *keep);
        TSAN(__tsan_release(keep.get());)
    });
    op.kernel = keep;
    s->push(work(op));
}

/* ---- flags and host functions ---------------------------------------------------------------- */

/* Without holding the device open, so that host code that touches it is caught meanwhile. */
static void wait_for(const uint32_t *flag, uint32_t value, bool equal)
{
    const std::chrono::steady_clock::duration stop = std::chrono::milliseconds(50);
    auto last = std::chrono::steady_clock::now();
    auto waited = last - last;
    for (unsigned spins = 0;; spins++) {
        uint32_t now = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
        if (reached(now, value, equal)) break;
        if (spins < 64) continue;
        working->close();
        usleep(20);
        const auto time = std::chrono::steady_clock::now();
        waited += std::min(time - last, stop); /* the process itself may have been stopped */
        last = time;
        if (waited > std::chrono::milliseconds(settings.flag_wait_ms))
            host_error("a stream waits for %u in a flag that holds %u and that nobody writes",
                       value, now);
    }
    TSAN(__tsan_acquire((void *)flag);)
    working->open();
}

/* An operation at a flag. */
static void push_flag(cudaStream_t s, operation op, bool waits, const uint32_t *flag,
                      uint32_t value, bool equal)
{
    op.kind = waits ? operation::WAITS : operation::WRITES;
    op.flag = flag;
    op.value = value;
    op.equal = equal;
    s->push(work(op));
}

CUresult cuStreamWaitValue32(CUstream s, CUdeviceptr p, cuuint32_t value, unsigned flags)
{
    need(s, "cuStreamWaitValue32");
    if (!settings.memory_ops) return CUDA_ERROR_NOT_SUPPORTED;
    const uint32_t *flag = (const uint32_t *)(uintptr_t)p;
    if (!is_pinned(flag)) host_error("cuStreamWaitValue32: %p is not pinned memory", flag);
    bool equal = flags == CU_STREAM_WAIT_VALUE_EQ;
    push_flag(s, [=](replay *) { wait_for(flag, value, equal); }, true, flag, value, equal);
    return CUDA_SUCCESS;
}
CUresult cuStreamWriteValue32(CUstream s, CUdeviceptr p, cuuint32_t value, unsigned)
{
    need(s, "cuStreamWriteValue32");
    if (!settings.memory_ops) return CUDA_ERROR_NOT_SUPPORTED;
    uint32_t *flag = (uint32_t *)(uintptr_t)p;
    if (!is_pinned(flag)) host_error("cuStreamWriteValue32: %p is not pinned memory", flag);
    const auto run = [=](replay *) {
        TSAN(__tsan_release(flag);)
        __atomic_store_n(flag, value, __ATOMIC_RELEASE);
    };
    push_flag(s, run, false, flag, value, false);
    return CUDA_SUCCESS;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *user)
{
    need(s, "cudaLaunchHostFunc");
    operation op([=](replay *) {
        working->close(); /* host code */
        fn(user);
        working->open();
    });
    op.kind = operation::HOST;
    s->push(work(op));
    return cudaSuccess;
}
