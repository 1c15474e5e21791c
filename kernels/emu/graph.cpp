/* Events, and graphs captured from streams. */
#include "stream.h"

#include <chrono>

using namespace emu;

static thread_local int recordings; /* that this thread has begun and not ended */

void emu::not_while_recording(const char *what)
{
    if (recordings) host_error("%s while this thread records a graph", what);
}

static double now()
{
    auto t = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(t).count();
}

/* ---- events ---------------------------------------------------------------------------------- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    *e = new emu_event();
    (*e)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    cudaEventSynchronize(e); /* operations that are still queued use it */
    delete e;
    return cudaSuccess;
}

static size_t branch_of(const emu_graph *g, const emu_stream *s)
{
    size_t i = 0;
    while (g->branches[i].source != s)
        i++;
    return i;
}

/* An event inside a graph happens anew in every launch. */
static void record_captured(cudaEvent_t e, cudaStream_t s)
{
    int id = s->capture->n_events++;
    e->graph = s->capture;
    e->in_graph = id;
    e->branch = branch_of(s->capture, s);
    bool joined = s->capture->branches[e->branch].joined;
    s->push([id](replay *r) {
        std::lock_guard<std::mutex> hold(r->lock);
        r->happened[(size_t)id] = 1;
        r->changed.notify_all();
    });
    s->capture->branches[e->branch].joined = joined; /* an event is nothing to wait for */
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (!s) host_error("cudaEventRecord: the default stream is not allowed");
    if (e->device != s->device) return set_error(cudaErrorInvalidResourceHandle);
    if (s->capture) {
        record_captured(e, s);
        return cudaSuccess;
    }
    long n;
    {
        std::lock_guard<std::mutex> hold(e->lock);
        n = ++e->recorded;
        e->graph = nullptr;
    }
    s->push([=](replay *) {
        std::lock_guard<std::mutex> hold(e->lock);
        if (e->happened < n) e->happened = n;
        e->seconds = now();
        e->changed.notify_all();
    });
    return cudaSuccess;
}

/* A stream that waits for an event of a capture takes part in it from then on. */
static void wait_captured(cudaStream_t s, cudaEvent_t e)
{
    emu_graph *g = e->graph;
    if (!s->capture) {
        s->capture = g;
        g->branches.emplace_back();
        g->branches.back().source = s;
        g->branches.back().device = s->device;
    }
    if (s->capture != g) host_error("cudaStreamWaitEvent: two captures would depend on each other");
    if (s == g->branches[0].source) g->branches[e->branch].joined = true;
    size_t id = (size_t)e->in_graph;
    s->push([id](replay *r) {
        std::unique_lock<std::mutex> hold(r->lock);
        r->changed.wait(hold, [&] { return r->happened[id] != 0; });
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    if (!s) host_error("cudaStreamWaitEvent: the default stream is not allowed");
    if (e->graph) {
        wait_captured(s, e);
        return cudaSuccess;
    }
    if (s->capture) host_error("cudaStreamWaitEvent: a capture waits for an event outside of it");
    long n;
    {
        std::lock_guard<std::mutex> hold(e->lock);
        n = e->recorded;
    }
    s->push([=](replay *) {
        std::unique_lock<std::mutex> hold(e->lock);
        e->changed.wait(hold, [&] { return e->happened >= n; });
    });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    std::unique_lock<std::mutex> hold(e->lock);
    long n = e->recorded;
    e->changed.wait(hold, [&] { return e->happened >= n; });
    return is_broken(e->device) ? set_error(cudaErrorLaunchFailure) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    std::lock_guard<std::mutex> hold(e->lock);
    return e->happened >= e->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    if (!from->timed || !to->timed || !from->recorded || !to->recorded)
        return set_error(cudaErrorInvalidValue);
    if (cudaEventQuery(from) != cudaSuccess || cudaEventQuery(to) != cudaSuccess)
        return set_error(cudaErrorNotReady);
    *ms = (float)((to->seconds - from->seconds) * 1e3);
    return cudaSuccess;
}

/* ---- graphs ---------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode)
{
    if (!s || s->capture) return set_error(cudaErrorInvalidValue);
    s->capture = new emu_graph();
    s->capture->branches.emplace_back();
    s->capture->branches[0].source = s;
    recordings++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    if (!s || !s->capture || s->capture->branches[0].source != s)
        return set_error(cudaErrorInvalidValue);
    emu_graph *made = s->capture;
    bool joined = true;
    recordings--;
    for (auto &b : made->branches) {
        b.source->capture = nullptr;
        b.source = nullptr;
        joined = joined && b.joined;
    }
    if (!joined) host_error("cudaStreamEndCapture: the stream does not wait for all that forked");
    *g = made;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long)
{
    *x = new emu_graph(*g);
    __atomic_fetch_add(&counters.graphs, 1, __ATOMIC_RELAXED);
    const int before = current_device();
    cudaError_t e = cudaSuccess;
    for (size_t i = 1; i < (*x)->branches.size() && e == cudaSuccess; i++) {
        cudaSetDevice((*x)->branches[i].device);
        e = cudaStreamCreateWithFlags(&(*x)->branches[i].own, cudaStreamNonBlocking);
    }
    cudaSetDevice(before);
    return e;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    if (!s) host_error("cudaGraphLaunch: the default stream is not allowed");
    if (s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    auto launch = std::make_shared<replay>();
    launch->happened.resize((size_t)x->n_events);
    for (auto &b : x->branches)
        for (auto &op : b.operations)
            (b.own ? b.own : s)->push(queued{op, launch});
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    for (auto &b : x->branches)
        if (b.own) cudaStreamDestroy(b.own);
    delete x;
    return cudaSuccess;
}
