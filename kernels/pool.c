/* Every loop is cut into units of `grain` items and each thread owns a contiguous share of them. A
 * thread takes half of what is left of its own share at a time, and helps the others grain by grain
 * when its own is empty: a slow or pre-empted thread costs its current piece, not a phase.
 *
 * On a machine with several NUMA nodes neighbouring threads belong to one node, so that a node owns
 * a contiguous share too; a thread helps its own node before the others.
 *
 * `state` holds generation | CLOSED | number of workers inside. A worker may enter only while the
 * loop is open, and run() returns only when the loop is closed and empty, so that a worker that
 * wakes too late finds nothing, and costs nothing. A worker that made the others wait because
 * another process took its core takes a leave: beside a busy process n - 1 undisturbed threads beat
 * n disturbed ones. */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum {
    MAX_THREADS = 4096,
    SPIN_MAX_NS = 50000, /* longer than the gaps between phases, shorter than a wake-up is worth */
    SPIN_MIN_NS = 1000,
    DISTURBED_NS = 100000, /* a pause this long means that another process had our core */
    PAUSES = 16,           /* between two looks at the clock */
    YIELDS = 4,
    LATE_NS = 500000,       /* the others waited this long for a pre-empted worker: a leave */
    LEAVE_MIN_NS = 5000000, /* doubled when it soon happens again */
    LEAVE_MAX_NS = 160000000
};
static const uint64_t INSIDE = 0xffff, CLOSED = 0x10000, GENERATION = 0x20000;

/* A thread's share in units; two cache lines, because the adjacent one is prefetched. */
typedef struct share {
    _Alignas(128) _Atomic int64_t next;
    int64_t end;
    int first, last; /* threads of its owner's node */
} share;

typedef struct worker {
    struct tn_pool *pool;
    int index;
    pthread_t thread;
    int64_t spin_ns;
    int64_t leave_ns, leave_end; /* the last leave: length, end */
    atomic_bool away;            /* on leave */
    long preempted;   /* involuntary context switches at the last look */
} worker;

struct tn_pool {
    _Alignas(128) _Atomic uint64_t state;
    _Alignas(128) atomic_int sleepers; /* workers that need a signal */
    atomic_bool caller_sleeps;
    atomic_bool stop;
    atomic_int in_use;  /* threads that work; workers from there on rest */
    _Atomic int64_t closed_at; /* when the caller began to wait for those inside */
    int n_threads, n_started;
    int64_t caller_spin_ns;
    /* The loop: written while it is closed and empty, read by those inside. */
    tn_task_fn fn;
    void *arg;
    int64_t n_items, grain;
    tn_pool_nodes nodes;
    share *shares;   /* [n_threads] */
    worker *workers; /* [n_threads], 0 unused */
    pthread_mutex_t mutex;
    pthread_cond_t opened, emptied, stopped, resumed;
    const tn_allocator *a;
    void *mem; /* what to free: the pool lies at the next 128 bytes */
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* True when the worker that has seen generation `seen` must look again, or, for the caller (seen is
 * UINT64_MAX), when nobody is inside. */
static bool ready(tn_pool *p, uint64_t seen)
{
    uint64_t s = atomic_load(&p->state);
    return seen == UINT64_MAX ? (s & INSIDE) == 0 : s / GENERATION != seen;
}

/* Spins for *spin_ns, then yields. False: still not ready, time to sleep. *spin_ns shrinks at once
 * when another process was seen on this core, and grows again slowly. */
static bool spin(tn_pool *p, uint64_t seen, int64_t *spin_ns)
{
    if (ready(p, seen)) return true;
    int64_t start = now_ns(), last = start;
    bool ok = false, disturbed = false;
    while (!ok && last - start < *spin_ns) {
        for (int i = 0; i < PAUSES && !ok; i++) {
            pause_cpu();
            ok = ready(p, seen);
        }
        int64_t t = now_ns();
        disturbed |= t - last > DISTURBED_NS;
        last = t;
    }
    for (int i = 0; i < YIELDS && !ok; i++) {
        sched_yield();
        int64_t t = now_ns();
        disturbed |= t - last > DISTURBED_NS;
        last = t;
        ok = ready(p, seen);
    }
    if (disturbed) *spin_ns = SPIN_MIN_NS;
    else if (ok && *spin_ns < SPIN_MAX_NS) *spin_ns += *spin_ns / 16 + 100;
    return ok;
}

static void wait_opened(tn_pool *p, uint64_t seen, int64_t *spin_ns)
{
    if (spin(p, seen, spin_ns)) return;
    pthread_mutex_lock(&p->mutex);
    /* Before looking again: next_generation() looks at sleepers after changing state. */
    atomic_fetch_add(&p->sleepers, 1);
    while (!ready(p, seen)) pthread_cond_wait(&p->opened, &p->mutex);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->mutex);
}

static void wait_emptied(tn_pool *p)
{
    if (spin(p, UINT64_MAX, &p->caller_spin_ns)) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->caller_sleeps, true);
    while (!ready(p, UINT64_MAX)) pthread_cond_wait(&p->emptied, &p->mutex);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->mutex);
}

/* ---- one loop -------------------------------------------------------------------------------- */

/* Runs up to `want` units of a share (0: half of what is left). False when the share is empty. */
static bool run_piece(tn_pool *p, share *s, int64_t want, int self)
{
    int64_t at = atomic_load_explicit(&s->next, memory_order_relaxed), n;
    do {
        int64_t left = s->end - at;
        if (left <= 0) return false;
        n = want ? want : (left + 1) / 2;
    } while (!atomic_compare_exchange_weak_explicit(&s->next, &at, at + n, memory_order_relaxed,
                                                    memory_order_relaxed));
    int64_t end = at + n > p->n_items / p->grain ? p->n_items : (at + n) * p->grain;
    p->fn(p->arg, at * p->grain, end, self);
    return true;
}

/* Helps threads [first, last), the next one first: grain by grain, but those who are away as if
 * their share were its own, because many small pieces cost more than a few large ones. */
static void help(tn_pool *p, int self, int first, int last)
{
    const int n = last - first;
    for (int i = 1; i < n; i++) {
        const int other = first + (self - first + i) % n;
        const bool away = atomic_load_explicit(&p->workers[other].away, memory_order_relaxed);
        while (run_piece(p, &p->shares[other], away ? 0 : 1, self)) {
        }
    }
}

static void run_shares(tn_pool *p, int self)
{
    share *own = &p->shares[self];
    while (run_piece(p, own, 0, self)) {
    }
    help(p, self, own->first, own->last);
    help(p, self, 0, p->n_threads);
}

static bool enter(tn_pool *p, uint64_t generation)
{
    uint64_t s = atomic_load(&p->state);
    do {
        if (s / GENERATION != generation || (s & CLOSED)) return false;
    } while (!atomic_compare_exchange_weak(&p->state, &s, s + 1));
    return true;
}

/* Whether others waited for this worker because it was not running; to be asked before leaving. */
static bool was_late(worker *w)
{
    if (!(atomic_load(&w->pool->state) & CLOSED)) return false;
    if (now_ns() - atomic_load(&w->pool->closed_at) < LATE_NS) return false;
    struct rusage u;
    if (getrusage(RUSAGE_THREAD, &u) != 0) return false;
    bool late = u.ru_nivcsw != w->preempted;
    w->preempted = u.ru_nivcsw;
    return late;
}

/* Sleeps until the leave or the pool ends. */
static void take_leave(worker *w)
{
    tn_pool *p = w->pool;
    int64_t now = now_ns(), until;
    if (now - w->leave_end > 4 * w->leave_ns) w->leave_ns = LEAVE_MIN_NS;
    else if (w->leave_ns < LEAVE_MAX_NS) w->leave_ns *= 2;
    w->leave_end = until = now + w->leave_ns;
    struct timespec t = {until / 1000000000, until % 1000000000};
    atomic_store_explicit(&w->away, true, memory_order_relaxed);
    pthread_mutex_lock(&p->mutex);
    while (!atomic_load(&p->stop) && pthread_cond_timedwait(&p->stopped, &p->mutex, &t) == 0) {
    }
    pthread_mutex_unlock(&p->mutex);
    atomic_store_explicit(&w->away, false, memory_order_relaxed);
}

/* Sleeps until the worker is used again or the pool ends. */
static void rest(worker *w)
{
    tn_pool *p = w->pool;
    pthread_mutex_lock(&p->mutex);
    while (!atomic_load(&p->stop) && w->index >= atomic_load(&p->in_use))
        pthread_cond_wait(&p->resumed, &p->mutex);
    pthread_mutex_unlock(&p->mutex);
}

static void leave(tn_pool *p)
{
    uint64_t s = atomic_fetch_sub(&p->state, 1) - 1;
    if ((s & INSIDE) || !(s & CLOSED) || !atomic_load(&p->caller_sleeps)) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_signal(&p->emptied);
    pthread_mutex_unlock(&p->mutex);
}

/* The next generation, open or closed; nobody is inside. */
static void next_generation(tn_pool *p, uint64_t closed)
{
    uint64_t s = atomic_load_explicit(&p->state, memory_order_relaxed);
    atomic_store(&p->state, (s / GENERATION + 1) * GENERATION | closed);
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->opened);
    pthread_mutex_unlock(&p->mutex);
}

/* Where the i-th of n equal shares of `units` begins. */
static int64_t share_begin(int64_t units, int64_t i, int64_t n)
{
    return units / n * i + units % n * i / n;
}

void tn_pool_run(tn_pool *p, tn_task_fn fn, void *arg, int64_t n_items, int64_t grain)
{
    if (n_items <= 0) return;
    if (tn_pool_in_use(p) == 1 || n_items <= grain) {
        fn(arg, 0, n_items, 0);
        return;
    }
    const int64_t units = n_items / grain + (n_items % grain != 0);
    const int n = tn_pool_in_use(p);
    for (int i = 0; i < p->n_threads; i++) {
        p->shares[i].end = i < n ? share_begin(units, i + 1, n) : 0;
        atomic_store_explicit(&p->shares[i].next, i < n ? share_begin(units, i, n) : 0,
                              memory_order_relaxed);
    }
    p->fn = fn;
    p->arg = arg;
    p->n_items = n_items;
    p->grain = grain;
    next_generation(p, 0);
    run_shares(p, 0);
    atomic_store(&p->closed_at, now_ns()); /* before CLOSED: was_late() reads it after */
    atomic_fetch_or(&p->state, CLOSED);
    wait_emptied(p);
}

/* ---- life ------------------------------------------------------------------------------------ */

/* A worker that cannot be bound runs anywhere: that is slower, no error. */
static void bind_to_node(const tn_pool *p, int index)
{
    union {
        cpu_set_t set;
        tn_cpu_set cpus;
    } m;
    int k = 0;
    while (index >= p->nodes.first[k + 1]) k++;
    memset(&m, 0, sizeof m);
    m.cpus = p->nodes.set[k];
    if (p->nodes.n > 1) pthread_setaffinity_np(pthread_self(), sizeof m, &m.set);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    tn_pool *p = w->pool;
    bind_to_node(p, w->index);
    for (uint64_t seen = 0;;) {
        wait_opened(p, seen, &w->spin_ns);
        seen = atomic_load(&p->state) / GENERATION;
        /* In this order: whoever has seen the last generation sees stop. */
        if (atomic_load(&p->stop)) return NULL;
        if (w->index >= atomic_load(&p->in_use)) {
            rest(w);
            continue;
        }
        if (!enter(p, seen)) continue;
        run_shares(p, w->index);
        bool late = was_late(w);
        leave(p);
        if (late) take_leave(w);
    }
}

static tn_status start_threads(tn_pool *p, tn_error *err)
{
    for (int i = 1; i < p->n_threads; i++, p->n_started++) {
        p->workers[i].pool = p;
        p->workers[i].index = i;
        p->workers[i].spin_ns = SPIN_MAX_NS;
        p->workers[i].leave_ns = LEAVE_MIN_NS;
        int rc = pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]);
        if (rc)
            return tn_fail(err, TN_EINTERNAL, -1,
                           "could not start thread %d of %d (%s); ask for fewer threads", i + 1,
                           p->n_threads,
                           rc == EAGAIN ? "the system's limit is reached" : "refused");
    }
    return TN_OK;
}

void tn_pool_nodes_of(tn_pool_nodes *out, const tn_topology *t, int n_threads)
{
    int cores = 0, seen = 0;
    *out = (tn_pool_nodes){.n = 1, .first = {0, n_threads}};
    for (int k = 0; k < t->n_nodes; k++)
        cores += t->node[k].cores;
    if (!cores) return;
    out->n = 0;
    for (int k = 0; k < t->n_nodes; k++) {
        seen += t->node[k].cores;
        const int end = (int)(((int64_t)n_threads * seen + cores - 1) / cores);
        if (end == out->first[out->n]) continue;
        out->set[out->n++] = t->node[k].set;
        out->first[out->n] = end;
    }
}

/* Which threads are each share's neighbours. */
static void set_nodes(tn_pool *p, const tn_pool_nodes *nodes)
{
    p->nodes.n = 1;
    p->nodes.first[1] = p->n_threads;
    if (nodes) p->nodes = *nodes;
    for (int k = 0; k < p->nodes.n; k++)
        for (int i = p->nodes.first[k]; i < p->nodes.first[k + 1]; i++) {
            p->shares[i].first = p->nodes.first[k];
            p->shares[i].last = p->nodes.first[k + 1];
        }
}

tn_status tn_pool_new(tn_pool **out, int n_threads, const tn_pool_nodes *nodes,
                      const tn_allocator *a, tn_error *err)
{
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return tn_fail(err, TN_EARG, -1, "a pool of %d threads was asked for; possible are 1 to %d",
                       n_threads, (int)MAX_THREADS);
    const size_t n = (size_t)n_threads,
                 bytes = sizeof(tn_pool) + n * (sizeof(share) + sizeof(worker));
    char *mem = tn_alloc(a, bytes + 128, 1);
    if (!mem) return tn_fail_nomem(err, bytes, "the thread pool");
    tn_pool *p = (tn_pool *)(((uintptr_t)mem + 127) & ~(uintptr_t)127);
    p->mem = mem;
    p->a = a;
    p->n_threads = n_threads;
    p->caller_spin_ns = SPIN_MAX_NS;
    p->shares = (share *)(p + 1);
    p->workers = (worker *)(p->shares + n);
    set_nodes(p, nodes);
    atomic_init(&p->state, CLOSED);
    atomic_init(&p->in_use, n_threads);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->opened, NULL);
    pthread_cond_init(&p->emptied, NULL);
    pthread_cond_init(&p->resumed, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->stopped, &monotonic);
    pthread_condattr_destroy(&monotonic);
    tn_status st = start_threads(p, err);
    if (st) tn_pool_free(p);
    else *out = p;
    return st;
}

void tn_pool_free(tn_pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->stopped);
    pthread_cond_broadcast(&p->resumed);
    pthread_mutex_unlock(&p->mutex);
    next_generation(p, CLOSED);
    for (int i = 1; i <= p->n_started; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->resumed);
    pthread_cond_destroy(&p->stopped);
    pthread_cond_destroy(&p->emptied);
    pthread_cond_destroy(&p->opened);
    pthread_mutex_destroy(&p->mutex);
    tn_free(p->a, p->mem);
}

int tn_pool_threads(const tn_pool *p)
{
    return p->n_threads;
}

void tn_pool_use(tn_pool *p, int n)
{
    if (n == tn_pool_in_use(p)) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->in_use, n);
    pthread_cond_broadcast(&p->resumed);
    pthread_mutex_unlock(&p->mutex);
}

int tn_pool_in_use(const tn_pool *p)
{
    return atomic_load_explicit(&p->in_use, memory_order_relaxed);
}

int tn_pool_nodes_count(const tn_pool *p)
{
    return p->nodes.n;
}

int64_t tn_pool_node_first(const tn_pool *p, int k, int64_t n)
{
    return share_begin(n, p->nodes.first[k], p->n_threads);
}
