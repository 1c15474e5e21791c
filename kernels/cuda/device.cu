/* Opening and closing a device; errors; faults for tests. The plug-in's entry. */
#include "impl.h"

#include <new>
#include <stdio.h>
#include <string.h>

#ifdef TN_EMU
#include "../emu/emu.h"
#define DEVICE_KIND TN_DEVICE_EMULATED
#else
#define DEVICE_KIND TN_DEVICE_CUDA
#endif

extern "C" const struct tn_device_ops *tn_cuda_ops(void) __attribute__((weak));

/* ---- errors ---------------------------------------------------------------------------------- */

bool tn_cuda_enter(tn_cuda_device *d)
{
    int now = -1;
    if (cudaGetDevice(&now) == cudaSuccess && now == d->about.index) return true;
    return cudaSetDevice(d->about.index) == cudaSuccess;
}

tn_status tn_cuda_fail(tn_cuda_device *d, tn_error *err, const char *what, cudaError_t e)
{
    cudaGetLastError(); /* it has been reported */
    return tn_fail(err, TN_EDEVICE, -1, "%s failed on device %d (%s): %s (%s)", what,
                   d->about.index, d->about.name, cudaGetErrorString(e), cudaGetErrorName(e));
}

bool tn_cuda_fault(tn_cuda_device *d, tn_device_fault what)
{
    tn_cuda_device::fault *f = &d->faults[what];
    uint64_t n = f->calls.fetch_add(1) + 1;
    return f->fail_at.load() == n;
}

tn_status tn_cuda_result(tn_cuda_device *d, tn_stream *s, tn_error *err, const char *what,
                         cudaError_t e)
{
    if (e == cudaSuccess) return TN_OK;
    tn_status status = tn_cuda_fail(d, err, what, e);
    if (s && s->capturing) s->broken = status;
    return status;
}

static uint64_t fail_at(tn_device *dev, tn_device_fault what, uint64_t k)
{
    tn_cuda_device::fault *f = &tn_cuda(dev)->faults[what];
    uint64_t calls = f->calls.load();
    f->fail_at.store(k ? calls + k : 0);
    return calls;
}

/* ---- launches -------------------------------------------------------------------------------- */

static thread_local tn_stream *launching; /* the stream of the op that this thread is in */

void tn_cuda_set_launching(tn_stream *s)
{
    launching = s;
}

cudaStream_t tn_cuda_stream(tn_stream *s)
{
    tn_cuda_set_launching(s);
    tn_cuda_enter(s->device);
    return s->stream;
}

tn_status tn_cuda_launched(void)
{
    cudaError_t e = cudaGetLastError();
    tn_stream *s = launching;
    if (s && tn_cuda_fault(s->device, TN_FAULT_LAUNCH)) e = cudaErrorInvalidConfiguration;
    if (e == cudaSuccess) return TN_OK;
    if (s && s->capturing) s->broken = TN_EDEVICE;
    return TN_EDEVICE;
}

/* ---- open and close -------------------------------------------------------------------------- */

static const tn_device_info *info(const tn_device *d)
{
    return &static_cast<const tn_cuda_device *>(d)->about;
}

static void close_device(tn_device *dev)
{
    tn_cuda_device *d = tn_cuda(dev);
    tn_allocator a = d->allocator;
    tn_cuda_enter(d);
    cudaDeviceSynchronize();
    tn_cuda_close_blas(d);
    tn_cuda_end_throttle(d);
    if (d->copies) cudaStreamDestroy(d->copies);
    cudaGetLastError();
    d->~tn_cuda_device();
    a.free(a.user, d);
}

static tn_status count(int *n, tn_error *err)
{
    cudaError_t e = cudaGetDeviceCount(n);
    if (e == cudaSuccess) return TN_OK;
    cudaGetLastError();
    *n = 0;
    return tn_fail(err, TN_EDEVICE, -1, "no CUDA device can be used: %s (%s)",
                   cudaGetErrorString(e), cudaGetErrorName(e));
}

static cudaError_t describe(tn_device_info *about, int index)
{
    struct cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, index);
    if (e != cudaSuccess) return e;
    about->kind = DEVICE_KIND;
    about->index = index;
    snprintf(about->name, sizeof about->name, "%.127s", p.name);
    about->pci[0] = 0;
    if (DEVICE_KIND == TN_DEVICE_CUDA)
        snprintf(about->pci, sizeof about->pci, "%04x:%02x:%02x.0", p.pciDomainID & 0xffff,
                 p.pciBusID & 0xff, p.pciDeviceID & 0xff);
    about->slower = 1;
    about->capability = p.major * 10 + p.minor;
    about->processors = p.multiProcessorCount;
    about->total_bytes = p.totalGlobalMem;
    about->l2_bytes = (size_t)p.l2CacheSize;
    about->shared_bytes = p.sharedMemPerBlockOptin;
    cudaDriverGetVersion(&about->driver_version);
    cudaRuntimeGetVersion(&about->api_version);
    return cudaSuccess;
}

static const tn_device_api *api(void)
{
    static const tn_device_api table = [] {
        tn_device_api t = {};
        t.close = close_device;
        t.info = info;
        t.fail_at = fail_at;
#ifdef TN_EMU
        t.emu = &tn_emu;
#endif
        tn_cuda_fill_memory(&t);
        tn_cuda_fill_streams(&t);
        tn_cuda_fill_throttle(&t);
        return t;
    }();
    return &table;
}

static tn_status start(tn_cuda_device *d, const tn_device_options *o, tn_error *err)
{
    d->about.index = o->index;
    snprintf(d->about.name, sizeof d->about.name, "not open");
    cudaError_t e = cudaSetDevice(o->index);
    if (e == cudaSuccess) e = describe(&d->about, o->index);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->copies, cudaStreamNonBlocking);
    if (e != cudaSuccess) return tn_cuda_fail(d, err, "opening", e);
    d->about.memory_ops = tn_cuda_has_memory_ops(d->copies);
#ifndef TN_EMU
    /* It takes memory for its code and its workspace: before anybody asks how much is free. */
    tn_cuda_open_blas(d);
    cudaGetLastError();
#endif
    return TN_OK;
}

static tn_status open_device(const tn_device_options *o, tn_device **out, tn_error *err)
{
    int n;
    tn_status status = count(&n, err);
    if (status < 0) return status;
    if (o->index < 0 || o->index >= n)
        return tn_fail(err, TN_EARG, -1, "there is no device %d: this machine has %d", o->index, n);
    tn_allocator a = o->allocator ? *o->allocator : tn_default_allocator;
    void *p = a.alloc(a.user, sizeof(tn_cuda_device), 64);
    if (!p) return tn_fail_nomem(err, sizeof(tn_cuda_device), "a device");
    tn_cuda_device *d = new (p) tn_cuda_device();
    d->allocator = a;
    d->limit_bytes = o->memory_limit ? o->memory_limit : SIZE_MAX;
    d->api = api();
    d->ops = tn_cuda_ops ? tn_cuda_ops() : NULL;
    status = start(d, o, err);
    if (status < 0) {
        close_device(d);
        return status;
    }
    *out = d;
    return TN_OK;
}

extern "C" TN_API const tn_device_plugin tn_device_plugin_entry;
const tn_device_plugin tn_device_plugin_entry = {TN_DEVICE_PLUGIN_VERSION, DEVICE_KIND, count,
                                                 open_device};
