/* Device and pinned memory: accounting, the limit, copies. */
#include "impl.h"

#include <math.h>
#include <stdint.h>

/* MiB to print with one decimal: of what is wanted rounded up, so that little is not nothing; of
 * what is there rounded down. */
static double mib_wanted(size_t bytes)
{
    return ceil((double)bytes * 10 / (1 << 20)) / 10;
}
static double mib_there(size_t bytes)
{
    return floor((double)bytes * 10 / (1 << 20)) / 10;
}

/* ---- allocation ------------------------------------------------------------------------------ */

static tn_status memory(tn_device *dev, tn_device_memory *m, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    size_t total = 0;
    cudaError_t e =
        tn_cuda_enter(d) ? cudaMemGetInfo(&m->free_bytes, &total) : cudaErrorInvalidDevice;
    if (e != cudaSuccess) return tn_cuda_fail(d, err, "asking for free memory", e);
    std::lock_guard<std::mutex> hold(d->lock);
    m->used_bytes = d->used_bytes;
    m->limit_bytes = d->limit_bytes;
    m->allocations = d->allocated.size();
    m->pinned_bytes = d->pinned_bytes;
    return TN_OK;
}

/* bytes do not fit into what is available: says how much is missing. */
static tn_status no_memory(tn_cuda_device *d, size_t bytes, size_t available, const char *what,
                           tn_error *err)
{
    size_t missing = bytes > available ? bytes - available : bytes;
    return tn_fail(err, TN_EDEVICE, -1,
                   "out of device memory: %.1f MiB missing for %s (%.1f MiB asked for, %.1f MiB "
                   "available on device %d, %s)",
                   mib_wanted(missing), what, mib_wanted(bytes), mib_there(available),
                   d->about.index, d->about.name);
}

static tn_status alloc(tn_device *dev, size_t bytes, const char *what, void **p, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    *p = NULL;
    size_t free_bytes = 0, total = 0;
    std::lock_guard<std::mutex> hold(d->lock);
    if (!tn_cuda_enter(d)) return tn_cuda_fail(d, err, "an allocation", cudaErrorInvalidDevice);
    size_t room = d->limit_bytes - d->used_bytes;
    if (bytes > room) return no_memory(d, bytes, room, what, err);
    bool fault = tn_cuda_fault(d, TN_FAULT_ALLOC);
    cudaError_t e = fault ? cudaErrorMemoryAllocation : cudaMalloc(p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        if (fault || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) free_bytes = 0;
        return no_memory(d, bytes, free_bytes < room ? free_bytes : room, what, err);
    }
    if (e != cudaSuccess) return tn_cuda_fail(d, err, "an allocation", e);
    d->allocated[*p] = bytes;
    d->used_bytes += bytes;
    return TN_OK;
}

static void free_device(tn_device *dev, void *p)
{
    tn_cuda_device *d = tn_cuda(dev);
    if (!p) return;
    {
        std::lock_guard<std::mutex> hold(d->lock);
        auto it = d->allocated.find(p);
        if (it != d->allocated.end()) {
            d->used_bytes -= it->second;
            d->allocated.erase(it);
        }
    }
    tn_cuda_enter(d);
    cudaFree(p);
}

static tn_status count_pinned(tn_cuda_device *d, void *p, size_t bytes)
{
    std::lock_guard<std::mutex> hold(d->lock);
    d->pinned[p] = bytes;
    d->pinned_bytes += bytes;
    return TN_OK;
}
static void uncount_pinned(tn_cuda_device *d, void *p)
{
    std::lock_guard<std::mutex> hold(d->lock);
    auto it = d->pinned.find(p);
    if (it == d->pinned.end()) return;
    d->pinned_bytes -= it->second;
    d->pinned.erase(it);
}

static tn_status alloc_pinned(tn_device *dev, size_t bytes, const char *what, void **p,
                              tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    *p = NULL;
    cudaError_t e = cudaErrorMemoryAllocation;
    if (!tn_cuda_fault(d, TN_FAULT_ALLOC) && tn_cuda_enter(d))
        e = cudaHostAlloc(p, bytes ? bytes : 1, cudaHostAllocPortable | cudaHostAllocMapped);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return tn_fail(err, TN_EDEVICE, -1, "out of pinned memory: %.1f MiB missing for %s",
                       mib_wanted(bytes), what);
    }
    if (e != cudaSuccess) return tn_cuda_fail(d, err, "an allocation of pinned memory", e);
    return count_pinned(d, *p, bytes);
}

static void free_pinned(tn_device *dev, void *p)
{
    tn_cuda_device *d = tn_cuda(dev);
    if (!p) return;
    uncount_pinned(d, p);
    tn_cuda_enter(d);
    cudaFreeHost(p);
}

static tn_status pin(tn_device *dev, void *p, size_t bytes, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = cudaErrorMemoryAllocation;
    if (!tn_cuda_fault(d, TN_FAULT_ALLOC) && tn_cuda_enter(d))
        e = cudaHostRegister(p, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return tn_fail(err, TN_EDEVICE, -1, "out of pinned memory: %.1f MiB could not be pinned",
                       mib_wanted(bytes));
    }
    if (e != cudaSuccess) return tn_cuda_fail(d, err, "pinning memory", e);
    return count_pinned(d, p, bytes);
}

static void unpin(tn_device *dev, void *p)
{
    tn_cuda_device *d = tn_cuda(dev);
    if (!p) return;
    uncount_pinned(d, p);
    tn_cuda_enter(d);
    cudaHostUnregister(p);
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* One copy in a stream; `what` for the error. */
static tn_status copy(tn_cuda_device *d, tn_stream *s, cudaStream_t stream, void *to,
                      const void *from, size_t bytes, enum cudaMemcpyKind kind, const char *what,
                      tn_error *err)
{
    cudaError_t e = cudaErrorInvalidDevice;
    if (tn_cuda_fault(d, TN_FAULT_COPY))
        e = cudaErrorInvalidValue;
    else if (tn_cuda_enter(d))
        e = bytes ? cudaMemcpyAsync(to, from, bytes, kind, stream) : cudaSuccess;
    return tn_cuda_result(d, s, err, what, e);
}

static tn_status upload(tn_device *dev, void *to, const void *from, size_t bytes, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    tn_status s =
        copy(d, NULL, d->copies, to, from, bytes, cudaMemcpyHostToDevice, "an upload", err);
    if (s < 0) return s;
    return tn_cuda_result(d, NULL, err, "an upload", cudaStreamSynchronize(d->copies));
}

static tn_status download(tn_device *dev, void *to, const void *from, size_t bytes, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    tn_status s =
        copy(d, NULL, d->copies, to, from, bytes, cudaMemcpyDeviceToHost, "a download", err);
    if (s < 0) return s;
    return tn_cuda_result(d, NULL, err, "a download", cudaStreamSynchronize(d->copies));
}

static tn_status upload_async(tn_device *dev, tn_stream *s, void *to, const void *from,
                              size_t bytes, tn_error *err)
{
    return copy(tn_cuda(dev), s, s->stream, to, from, bytes, cudaMemcpyHostToDevice, "an upload",
                err);
}
static tn_status download_async(tn_device *dev, tn_stream *s, void *to, const void *from,
                                size_t bytes, tn_error *err)
{
    return copy(tn_cuda(dev), s, s->stream, to, from, bytes, cudaMemcpyDeviceToHost, "a download",
                err);
}
static tn_status upload_pieces_async(tn_device *dev, tn_stream *s, void *to, const void *from,
                                     size_t bytes, size_t n, size_t stride, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = cudaErrorInvalidDevice;
    if (bytes == stride || n == 1) return upload_async(dev, s, to, from, n * bytes, err);
    if (tn_cuda_fault(d, TN_FAULT_COPY))
        e = cudaErrorInvalidValue;
    else if (tn_cuda_enter(d))
        e = bytes && n ? cudaMemcpy2DAsync(to, bytes, from, stride, bytes, n,
                                           cudaMemcpyHostToDevice, s->stream)
                       : cudaSuccess;
    return tn_cuda_result(d, s, err, "an upload", e);
}
static tn_status copy_async(tn_device *dev, tn_stream *s, void *to, const void *from, size_t bytes,
                            tn_error *err)
{
    return copy(tn_cuda(dev), s, s->stream, to, from, bytes, cudaMemcpyDeviceToDevice, "a copy",
                err);
}

static tn_status fill_async(tn_device *dev, tn_stream *s, void *to, int byte, size_t bytes,
                            tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = cudaErrorInvalidDevice;
    if (tn_cuda_fault(d, TN_FAULT_COPY))
        e = cudaErrorInvalidValue;
    else if (tn_cuda_enter(d))
        e = bytes ? cudaMemsetAsync(to, byte, bytes, s->stream) : cudaSuccess;
    return tn_cuda_result(d, s, err, "filling memory", e);
}

/* ---- between devices ------------------------------------------------------------------------- */

/* Lets the current device reach the peer's memory; true if it can. */
static bool reach(tn_cuda_device *d, tn_cuda_device *peer)
{
    int can = 0;
    if (cudaDeviceCanAccessPeer(&can, d->about.index, peer->about.index) != cudaSuccess || !can) {
        cudaGetLastError();
        return false;
    }
    cudaError_t e = cudaDeviceEnablePeerAccess(peer->about.index, 0);
    cudaGetLastError();
    return e == cudaSuccess || e == cudaErrorPeerAccessAlreadyEnabled;
}

/* Through pinned memory, in pieces. */
static tn_status bounce(tn_cuda_device *d, tn_stream *s, tn_cuda_device *peer, void *to,
                        const void *from, size_t bytes, tn_error *err)
{
    const size_t most = (size_t)1 << 20;
    size_t piece = bytes < most ? bytes : most;
    void *between;
    tn_status status = alloc_pinned(d, piece, "a copy between devices", &between, err);
    for (size_t at = 0; at < bytes && status == TN_OK; at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        status = download_async(d, s, between, (const char *)from + at, n, err);
        if (status == TN_OK)
            status = tn_cuda_result(d, s, err, "a copy", cudaStreamSynchronize(s->stream));
        if (status == TN_OK) status = upload(peer, (char *)to + at, between, n, err);
    }
    free_pinned(d, between);
    return status;
}

static tn_status copy_peer(tn_device *dev, tn_stream *s, tn_device *peer_dev, void *to,
                           const void *from, size_t bytes, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev), *peer = tn_cuda(peer_dev);
    if (d->about.index == peer->about.index) return copy_async(dev, s, to, from, bytes, err);
    if (!tn_cuda_enter(d)) return tn_cuda_fail(d, err, "a copy", cudaErrorInvalidDevice);
    if (!reach(d, peer)) {
        if (s->capturing)
            return tn_cuda_result(d, s, err,
                                  "recording a copy between devices that cannot reach each other",
                                  cudaErrorNotSupported);
        return bounce(d, s, peer, to, from, bytes, err);
    }
    cudaError_t e = cudaErrorInvalidValue;
    if (!tn_cuda_fault(d, TN_FAULT_COPY))
        e = bytes
                ? cudaMemcpyPeerAsync(to, peer->about.index, from, d->about.index, bytes, s->stream)
                : cudaSuccess;
    return tn_cuda_result(d, s, err, "a copy between devices", e);
}

static bool reaches(tn_device *dev, tn_device *peer_dev)
{
    tn_cuda_device *d = tn_cuda(dev), *peer = tn_cuda(peer_dev);
    if (d->about.index == peer->about.index) return true;
    return tn_cuda_enter(d) && reach(d, peer);
}

void tn_cuda_fill_memory(tn_device_api *api)
{
    api->memory = memory;
    api->alloc = alloc;
    api->free = free_device;
    api->alloc_pinned = alloc_pinned;
    api->free_pinned = free_pinned;
    api->pin = pin;
    api->unpin = unpin;
    api->upload = upload;
    api->download = download;
    api->upload_async = upload_async;
    api->download_async = download_async;
    api->upload_pieces_async = upload_pieces_async;
    api->copy_async = copy_async;
    api->fill_async = fill_async;
    api->copy_peer = copy_peer;
    api->reaches = reaches;
}
