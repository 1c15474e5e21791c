/* Streams, events, graphs, and the flags by which host and device hand over to each other. */
#include "impl.h"

#include <new>
#include <sched.h>

#ifndef TN_EMU
#include <cuda.h>
#include <dlfcn.h>
#endif

/* An object of the device table, in memory of its allocator; NULL if there is none. */
template <class T> static T *make(tn_cuda_device *d)
{
    void *p = d->allocator.alloc(d->allocator.user, sizeof(T), alignof(T));
    if (!p) return NULL;
    T *t = new (p) T();
    t->device = d;
    return t;
}
template <class T> static void drop(T *t)
{
    tn_allocator a = t->device->allocator;
    t->~T();
    a.free(a.user, t);
}

/* ---- streams --------------------------------------------------------------------------------- */

static tn_status stream_create(tn_device *dev, tn_stream **out, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    *out = NULL;
    tn_stream *s = make<tn_stream>(d);
    if (!s) return tn_fail_nomem(err, sizeof *s, "a stream");
    cudaError_t e = cudaErrorInvalidDevice;
    if (tn_cuda_enter(d)) e = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) {
        drop(s);
        return tn_cuda_fail(d, err, "making a stream", e);
    }
    *out = s;
    return TN_OK;
}

static void stream_destroy(tn_device *dev, tn_stream *s)
{
    if (!s) return;
    tn_cuda_enter(tn_cuda(dev));
    cudaStreamSynchronize(s->stream);
    cudaStreamDestroy(s->stream);
    cudaGetLastError();
    drop(s);
}

static tn_status stream_sync(tn_device *dev, tn_stream *s, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = tn_cuda_enter(d) ? cudaStreamSynchronize(s->stream) : cudaErrorInvalidDevice;
    return tn_cuda_result(d, NULL, err, "work in a stream", e);
}

static tn_status stream_query(tn_device *dev, tn_stream *s, bool *done, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = tn_cuda_enter(d) ? cudaStreamQuery(s->stream) : cudaErrorInvalidDevice;
    *done = e == cudaSuccess;
    if (e == cudaErrorNotReady) {
        cudaGetLastError();
        return TN_OK;
    }
    return tn_cuda_result(d, NULL, err, "work in a stream", e);
}

/* ---- events ---------------------------------------------------------------------------------- */

static tn_status event_create(tn_device *dev, bool timed, tn_event **out, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    *out = NULL;
    tn_event *ev = make<tn_event>(d);
    if (!ev) return tn_fail_nomem(err, sizeof *ev, "an event");
    cudaError_t e = cudaErrorInvalidDevice;
    if (tn_cuda_enter(d))
        e = cudaEventCreateWithFlags(&ev->event, timed ? 0 : cudaEventDisableTiming);
    if (e != cudaSuccess) {
        drop(ev);
        return tn_cuda_fail(d, err, "making an event", e);
    }
    *out = ev;
    return TN_OK;
}

static void event_destroy(tn_device *dev, tn_event *ev)
{
    if (!ev) return;
    tn_cuda_enter(tn_cuda(dev));
    cudaEventDestroy(ev->event);
    cudaGetLastError();
    drop(ev);
}

static tn_status event_record(tn_device *dev, tn_event *ev, tn_stream *s, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e =
        tn_cuda_enter(d) ? cudaEventRecord(ev->event, s->stream) : cudaErrorInvalidDevice;
    return tn_cuda_result(d, s, err, "recording an event", e);
}

static tn_status event_sync(tn_device *dev, tn_event *ev, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = tn_cuda_enter(d) ? cudaEventSynchronize(ev->event) : cudaErrorInvalidDevice;
    return tn_cuda_result(d, NULL, err, "work before an event", e);
}

static tn_status event_wait(tn_device *dev, tn_stream *s, tn_event *ev, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = tn_cuda_enter(s->device) ? cudaStreamWaitEvent(s->stream, ev->event, 0)
                                             : cudaErrorInvalidDevice;
    return tn_cuda_result(d, s, err, "waiting for an event", e);
}

static tn_status event_elapsed(tn_device *dev, tn_event *from, tn_event *to, float *ms,
                               tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    *ms = 0;
    cudaError_t e = tn_cuda_enter(d) ? cudaEventElapsedTime(ms, from->event, to->event)
                                     : cudaErrorInvalidDevice;
    return tn_cuda_result(d, NULL, err, "timing", e);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

/* A flag that a host function serves, in a graph or on its way. */
struct tn_flag_step {
    tn_cuda_device *device;
    uint32_t *flag, value;
    bool once; /* not in a graph: freed by the function */
};
static void drop_steps(std::vector<tn_flag_step *> *steps)
{
    for (tn_flag_step *f : *steps)
        drop(f);
    steps->clear();
}

static tn_status graph_begin(tn_device *dev, tn_stream *s, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = cudaErrorInvalidDevice;
    /* Relaxed, because a kernel's code may be loaded by its first launch, within the recording. */
    if (tn_cuda_enter(d)) e = cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeRelaxed);
    if (e != cudaSuccess) return tn_cuda_fail(d, err, "beginning to record a graph", e);
    s->capturing = true;
    s->broken = TN_OK;
    return TN_OK;
}

static tn_status graph_end(tn_device *dev, tn_stream *s, tn_graph **out, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    *out = NULL;
    cudaGraph_t recorded = NULL;
    tn_graph *g = make<tn_graph>(d);
    tn_cuda_enter(d);
    cudaError_t e = cudaStreamEndCapture(s->stream, &recorded);
    s->capturing = false;
    tn_status status = s->broken;
    if (e != cudaSuccess)
        status = tn_cuda_fail(d, err, "recording a graph", e);
    else if (status < 0)
        tn_fail(err, status, -1, "a graph is incomplete: an operation could not be recorded");
    else if (!g)
        status = tn_fail_nomem(err, sizeof *g, "a graph");
    else if ((e = cudaGraphInstantiateWithFlags(&g->exec, recorded, 0)) != cudaSuccess)
        status = tn_cuda_fail(d, err, "preparing a graph", e);
    if (recorded) cudaGraphDestroy(recorded);
    if (status < 0) {
        drop_steps(&s->steps);
        if (g) drop(g);
        return status;
    }
    g->steps.swap(s->steps);
    *out = g;
    return TN_OK;
}

static tn_status graph_launch(tn_device *dev, tn_graph *g, tn_stream *s, tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    cudaError_t e = cudaErrorInvalidDevice;
    if (tn_cuda_fault(d, TN_FAULT_LAUNCH))
        e = cudaErrorInvalidConfiguration;
    else if (tn_cuda_enter(d))
        e = cudaGraphLaunch(g->exec, s->stream);
    return tn_cuda_result(d, s, err, "launching a graph", e);
}

static void graph_destroy(tn_device *dev, tn_graph *g)
{
    if (!g) return;
    tn_cuda_enter(tn_cuda(dev));
    cudaGraphExecDestroy(g->exec);
    cudaGetLastError();
    drop_steps(&g->steps);
    drop(g);
}

/* ---- flags ----------------------------------------------------------------------------------- */

/* The driver's functions, found at run time, so that the plug-in loads without a driver. */
typedef CUresult (*value_fn)(CUstream s, CUdeviceptr p, cuuint32_t value, unsigned flags);
struct memory_ops {
    value_fn wait, write;
};

#ifdef TN_EMU
static const memory_ops driver_ops()
{
    return {cuStreamWaitValue32, cuStreamWriteValue32};
}
#else
/* By their names in the driver, which are the same for every toolkit, unlike the runtime's way of
 * asking for them; without a driver there is none. */
static const memory_ops driver_ops()
{
    static void *const driver = dlopen("libcuda.so.1", RTLD_NOW);
    static const memory_ops m = {
        driver ? (value_fn)dlsym(driver, "cuStreamWaitValue32_v2") : NULL,
        driver ? (value_fn)dlsym(driver, "cuStreamWriteValue32_v2") : NULL};
    return m;
}
#endif

/* A graph that writes 1 to the flag and then waits for it. */
static bool record_flag(cudaStream_t s, CUdeviceptr flag, cudaGraphExec_t *x)
{
    const memory_ops m = driver_ops();
    cudaGraph_t g = NULL;
    if (cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed) != cudaSuccess) return false;
    bool works = m.write((CUstream)s, flag, 1, CU_STREAM_WRITE_VALUE_DEFAULT) == CUDA_SUCCESS &&
                 m.wait((CUstream)s, flag, 1, CU_STREAM_WAIT_VALUE_GEQ) == CUDA_SUCCESS;
    if (cudaStreamEndCapture(s, &g) != cudaSuccess) works = false;
    if (works) works = cudaGraphInstantiateWithFlags(x, g, 0) == cudaSuccess;
    if (g) cudaGraphDestroy(g);
    return works;
}

/* Tries whether flags work in a graph, in a stream of the current device: a driver may record what
 * it cannot run. */
bool tn_cuda_has_memory_ops(cudaStream_t s)
{
    const memory_ops m = driver_ops();
    if (!m.wait || !m.write) return false;
    void *flag = NULL;
    cudaGraphExec_t x = NULL;
    bool works = cudaHostAlloc(&flag, 64, cudaHostAllocMapped) == cudaSuccess;
    if (works) {
        *(volatile uint32_t *)flag = 0;
        works = record_flag(s, (CUdeviceptr)(uintptr_t)flag, &x) &&
                cudaGraphLaunch(x, s) == cudaSuccess && cudaStreamSynchronize(s) == cudaSuccess &&
                *(volatile uint32_t *)flag == 1;
    }
    if (x) cudaGraphExecDestroy(x);
    cudaFreeHost(flag);
    cudaGetLastError();
    return works;
}

/* Where the driver has no such operations a host function in the stream does it. */

static void step_done(tn_flag_step *f)
{
    if (f->once) drop(f);
}
static void CUDART_CB wait_on_host(void *user)
{
    tn_flag_step *f = (tn_flag_step *)user;
    while ((int32_t)(__atomic_load_n(f->flag, __ATOMIC_ACQUIRE) - f->value) < 0)
        sched_yield();
    step_done(f);
}
static void CUDART_CB write_on_host(void *user)
{
    tn_flag_step *f = (tn_flag_step *)user;
    __atomic_store_n(f->flag, f->value, __ATOMIC_RELEASE);
    step_done(f);
}

static tn_status host_step(tn_cuda_device *d, tn_stream *s, cudaHostFn_t fn, uint32_t *flag,
                           uint32_t value, tn_error *err)
{
    tn_flag_step *f = make<tn_flag_step>(d);
    if (!f) return tn_fail_nomem(err, sizeof *f, "a flag's step");
    f->flag = flag;
    f->value = value;
    f->once = !s->capturing;
    cudaError_t e = cudaLaunchHostFunc(s->stream, fn, f);
    if (e != cudaSuccess)
        drop(f);
    else if (s->capturing)
        s->steps.push_back(f);
    return tn_cuda_result(d, s, err, "queueing a flag", e);
}

static tn_status flag_step(tn_device *dev, tn_stream *s, uint32_t *flag, uint32_t value, bool wait,
                           tn_error *err)
{
    tn_cuda_device *d = tn_cuda(dev);
    if (!tn_cuda_enter(d)) return tn_cuda_fail(d, err, "queueing a flag", cudaErrorInvalidDevice);
    if (!d->about.memory_ops)
        return host_step(d, s, wait ? wait_on_host : write_on_host, flag, value, err);
    const memory_ops m = driver_ops();
    CUstream stream = (CUstream)s->stream;
    CUdeviceptr p = (CUdeviceptr)(uintptr_t)flag; /* unified addresses: the host's own */
    CUresult r = wait ? m.wait(stream, p, value, CU_STREAM_WAIT_VALUE_GEQ)
                      : m.write(stream, p, value, CU_STREAM_WRITE_VALUE_DEFAULT);
    return tn_cuda_result(d, s, err, "queueing a flag",
                          r == CUDA_SUCCESS ? cudaSuccess : cudaErrorNotSupported);
}
static tn_status flag_wait(tn_device *dev, tn_stream *s, uint32_t *flag, uint32_t value,
                           tn_error *err)
{
    return flag_step(dev, s, flag, value, true, err);
}
static tn_status flag_write(tn_device *dev, tn_stream *s, uint32_t *flag, uint32_t value,
                            tn_error *err)
{
    return flag_step(dev, s, flag, value, false, err);
}

void tn_cuda_fill_streams(tn_device_api *api)
{
    api->stream_create = stream_create;
    api->stream_destroy = stream_destroy;
    api->stream_sync = stream_sync;
    api->stream_query = stream_query;
    api->event_create = event_create;
    api->event_destroy = event_destroy;
    api->event_record = event_record;
    api->event_sync = event_sync;
    api->event_wait = event_wait;
    api->event_elapsed = event_elapsed;
    api->graph_begin = graph_begin;
    api->graph_end = graph_end;
    api->graph_launch = graph_launch;
    api->graph_destroy = graph_destroy;
    api->flag_wait = flag_wait;
    api->flag_write = flag_write;
}
