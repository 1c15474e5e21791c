/* Runs kernels: one block at a time, its threads as fibers.
 *
 * A thread gets a fiber of its own only when it must: one that ends without having waited runs on
 * its predecessor's stack. Ready threads are bits (per warp, and of warps), so the next one is a
 * count of trailing zeros away; which one that is is the schedule. */
#include "fiber.h"

#include <sys/mman.h>

#include <mutex>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace emu
{

struct thread *current;
uint3 block_index;
dim3 block_dim, grid_dim;
unsigned char *dynamic_shared;

static const char *kernel_name = "?";
static const call *kernel_call;
static std::vector<thread> threads;
static std::vector<warp> warps;
static dim3 shape(0); /* that `threads` is made for */
static uint32_t ready_warps;
static int current_warp;
static int n_unfinished; /* threads of the block */
static int n_at_barrier;
static unsigned random_state;
static std::mutex device_lock;

/* In TSan mode two threads on one stack would look like a race. */
static const bool KEEP_STACKS = TSAN(true ||) false;

const char *running_kernel()
{
    return current ? kernel_name : nullptr;
}
int thread_index(const thread *t)
{
    return (int)(t - threads.data());
}

/* ---- what the thread sanitizer sees ---------------------------------------------------------- */

#ifdef TN_EMU_TSAN
/* The threads of a block, to the sanitizer: fibers with a stack each, and what its barriers order.
 * A fiber takes the sanitizer about as long to make as thousands of switches, so the blocks of a
 * kernel take turns over a few sets of them. Those of one set seem ordered with each other: a race
 * of two blocks is seen unless their numbers are equal modulo the number of sets. Each stream has
 * sets of its own, or its kernels would seem ordered with those of others. */
enum { SETS = 4, FIBERS = 256 }; /* FIBERS: so many in all sets, unless one block needs more */
struct fiber_set {
    std::vector<fiber *> fibers;
    char barrier[2], warps[32][2];
};
struct stream_view {
    fiber_set set[SETS];
    char start, end; /* of kernels */
};
static std::vector<stream_view *> free_views; /* of streams that are gone */
static struct stream_view *view;              /* of the stream whose block runs */
static fiber_set *set;                        /* of the block */
static void *tsan_main;

/* This thread's, which is a stream's worker. */
struct view_owner {
    stream_view *v = nullptr;
    ~view_owner()
    {
        std::lock_guard<std::mutex> hold(device_lock);
        if (v) free_views.push_back(v);
    }
};
static stream_view *own_view()
{
    static thread_local view_owner own;
    if (!own.v && !free_views.empty()) {
        own.v = free_views.back();
        free_views.pop_back();
    }
    if (!own.v) own.v = new stream_view();
    return own.v;
}

/* Before the block's threads are reset: memory is not to be allocated in a fiber. */
static void take_set(unsigned long long block, int n_threads)
{
    const int n = FIBERS / n_threads;
    view = own_view();
    set = &view->set[block % (unsigned)(n < 1 ? 1 : n > SETS ? SETS : n)];
    while ((int)set->fibers.size() < n_threads)
        set->fibers.push_back(fiber_get());
}
#endif

/* ---- shared memory --------------------------------------------------------------------------- */

static const size_t ARENA_BYTES = 1 << 20, GAP_BYTES = 64;
static unsigned char *arena;
static size_t arena_used, shared_used, shared_limit;

struct variable {
    const void *key;
    unsigned char *p;
};
static std::vector<variable> variables;

static void shared_begin(size_t dynamic_bytes)
{
    const int how = MAP_PRIVATE | MAP_ANONYMOUS;
    if (!arena)
        arena = (unsigned char *)mmap(nullptr, ARENA_BYTES, PROT_READ | PROT_WRITE, how, -1, 0);
    /* TSan takes mmap for memory that nobody has touched yet. */
    TSAN(if (arena_used) arena = (unsigned char *)mmap(arena, arena_used, PROT_READ | PROT_WRITE,
                                                       how | MAP_FIXED, -1, 0);)
    if (arena == MAP_FAILED) fail("no memory for a block's shared memory");
    variables.clear();
    variables.reserve(64);
    dynamic_shared = arena;
    ASAN_UNPOISON_MEMORY_REGION(arena, ARENA_BYTES);
    if (settings.poison) memset(arena, 0xff, dynamic_bytes);
    ASAN_POISON_MEMORY_REGION(arena + dynamic_bytes, ARENA_BYTES - dynamic_bytes);
    arena_used = (dynamic_bytes + 2 * GAP_BYTES - 1) & ~(GAP_BYTES - 1);
    shared_used = dynamic_bytes;
    shared_limit = dynamic_bytes > SHARED_DEFAULT ? SHARED_MAX : SHARED_DEFAULT;
}

/* Variables stand apart, so that the address sanitizer sees an overrun. */
void *shared_variable(const void *key, size_t bytes, const char *name)
{
    for (const variable &v : variables)
        if (v.key == key) return v.p;
    shared_used += bytes;
    if (shared_used > shared_limit)
        fail("%s brings the block's shared memory to %zu bytes of %zu", name, shared_used,
             shared_limit);
    unsigned char *p = arena + arena_used;
    ASAN_UNPOISON_MEMORY_REGION(p, bytes);
    /* In TSan mode this would count as the thread's own writing. */
    if (settings.poison && !KEEP_STACKS) memset(p, 0xff, bytes);
    arena_used += (bytes + 2 * GAP_BYTES - 1) & ~(GAP_BYTES - 1);
    variables.push_back({key, p});
    return p;
}

/* ---- which thread is next -------------------------------------------------------------------- */

INLINE static int pick(uint32_t bits, int after)
{
    if (settings.schedule == 0) {
        uint32_t higher = after < 31 ? bits & (~0u << (after + 1)) : 0;
        return __builtin_ctz(higher ? higher : bits);
    }
    if (settings.schedule == 1) {
        uint32_t lower = after > 0 ? bits & ((1u << after) - 1) : 0;
        return 31 - __builtin_clz(lower ? lower : bits);
    }
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    for (int k = (int)(random_state % (unsigned)__builtin_popcount(bits)); k > 0; k--)
        bits &= bits - 1;
    return __builtin_ctz(bits);
}

INLINE static thread *next_thread()
{
    warp *w = &warps[current_warp];
    if (!w->ready || settings.schedule >= 2) {
        if (!ready_warps) return nullptr;
        current_warp = pick(ready_warps, current_warp);
        w = &warps[current_warp];
    }
    return &w->lane(pick(w->ready, current->lane));
}

INLINE static int warp_index(const warp *w)
{
    return (int)(w - warps.data());
}
static void set_ready(thread *t)
{
    t->warp->ready |= 1u << t->lane;
    ready_warps |= 1u << warp_index(t->warp);
}
static void clear_ready(thread *t)
{
    t->warp->ready &= ~(1u << t->lane);
    if (!t->warp->ready) ready_warps &= ~(1u << warp_index(t->warp));
}

[[noreturn]] static void deadlock()
{
    for (const thread &t : threads)
        if (!t.done) {
            current = const_cast<thread *>(&t);
            fail("no thread of the block can go on; this one waits at %s %s:%d (mask %08x)",
                 t.waiting == AT_BARRIER ? "__syncthreads" : "a warp collective", t.at.file,
                 t.at.line, t.mask);
        }
    fail("no thread of the block can go on");
}

/* Leaves the current thread, which waits or is done, for another one. */
INLINE static void go_on(bool from_done)
{
    thread *t = next_thread();
    if (!t) {
        if (n_unfinished) deadlock();
        switch_to(&main_fiber);
        return;
    }
    current = t;
    if (!t->started) { /* fiber_main begins with the current thread */
        if (from_done && !KEEP_STACKS) return;
        switch_to(KEEP_STACKS ? t->fiber : fiber_get());
        return;
    }
    if (t->fiber == running) return;
    if (from_done && !KEEP_STACKS) fiber_put(running);
    switch_to(t->fiber);
}

INLINE static void wait_here()
{
    thread *me = current;
    go_on(false);
    current = me;
    current_warp = warp_index(me->warp);
    TSAN(__tsan_switch_to_fiber(me->fiber->tsan, 1);)
}

/* ---- barriers and collectives ---------------------------------------------------------------- */

static bool same_site(site a, site b)
{
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

static void barrier_release()
{
    if (!n_at_barrier || n_at_barrier != n_unfinished) return;
    const thread *first = nullptr;
    for (thread &t : threads) {
        if (t.waiting != AT_BARRIER) continue;
        if (first && !same_site(first->at, t.at))
            fail("divergent __syncthreads: some threads at %s:%d, others at %s:%d", first->at.file,
                 first->at.line, t.at.file, t.at.line);
        first = &t;
        t.waiting = NOT_WAITING;
        set_ready(&t);
    }
    n_at_barrier = 0;
    counters.barriers++;
}

void block_barrier(site at)
{
    thread *me = current;
    if (n_unfinished != (int)threads.size())
        fail("__syncthreads at %s:%d, but %d threads of the block have ended", at.file, at.line,
             (int)threads.size() - n_unfinished);
    me->at = at;
    me->waiting = AT_BARRIER;
    n_at_barrier++;
    clear_ready(me);
    /* Two sync objects in turn: a fast thread may be at the next barrier already. */
    TSAN(char *sync = &set->barrier[counters.barriers & 1]; __tsan_release(sync);)
    barrier_release();
    if (me->waiting) wait_here();
    TSAN(__tsan_acquire(sync);)
}

static void collective_release(warp &w, uint32_t mask, collective_fn fn)
{
    if (mask & ~w.live)
        fail("warp collective at %s:%d: mask %08x names lanes that have ended or do not exist "
             "(live: %08x)",
             current->at.file, current->at.line, mask, w.live);
    if ((w.arrived & mask) != mask) return;
    const thread *first = nullptr;
    for (uint32_t m = mask; m; m &= m - 1) {
        const thread &t = w.lane(__builtin_ctz(m));
        if (t.mask != mask)
            fail("warp collective with different masks: %08x and %08x", t.mask, mask);
        if (first && !same_site(first->at, t.at))
            fail("lanes of one warp at different collectives: %s:%d and %s:%d", first->at.file,
                 first->at.line, t.at.file, t.at.line);
        first = &t;
    }
    if (fn) fn(w, mask);
    w.arrived &= ~mask;
    w.generation++;
    counters.collectives++;
    for (uint32_t m = mask; m; m &= m - 1)
        w.lane(__builtin_ctz(m)).waiting = NOT_WAITING;
    w.ready |= mask;
    ready_warps |= 1u << warp_index(&w);
}

void collective(uint32_t mask, site at, void *arg, collective_fn fn, bool fence)
{
    thread *me = current;
    warp &w = *me->warp;
    (void)fence;
    if (!(mask >> me->lane & 1))
        fail("warp collective at %s:%d: lane %d calls it, but is not in mask %08x", at.file,
             at.line, me->lane, mask);
    me->at = at;
    me->arg = arg;
    me->mask = mask;
    me->waiting = AT_COLLECTIVE;
    w.arrived |= 1u << me->lane;
    clear_ready(me);
    TSAN(char *sync = &set->warps[warp_index(&w)][w.generation & 1];
         if (fence) __tsan_release(sync);)
    collective_release(w, mask, fn);
    if (me->waiting) wait_here();
    TSAN(if (fence) __tsan_acquire(sync);)
}

/* ---- threads and blocks ---------------------------------------------------------------------- */

static void thread_end(thread *t)
{
    warp &w = *t->warp;
    copies_check(thread_index(t));
    t->done = true;
    n_unfinished--;
    clear_ready(t);
    w.live &= ~(1u << t->lane);
    for (const thread &x : threads)
        if (n_at_barrier && x.waiting == AT_BARRIER)
            fail("the thread ends while others wait at __syncthreads (%s:%d)", x.at.file,
                 x.at.line);
    for (uint32_t a = w.arrived; a; a &= a - 1) {
        const thread &x = w.lane(__builtin_ctz(a));
        if (x.mask >> t->lane & 1)
            fail("the thread ends while lane %d waits for it at %s:%d", x.lane, x.at.file,
                 x.at.line);
    }
}

void fiber_main()
{
    for (;;) {
        thread *t = current;
        t->started = true;
        t->fiber = running;
        current_warp = warp_index(t->warp);
        TSAN(__tsan_switch_to_fiber(running->tsan, 1); __tsan_acquire(&view->start);)
        kernel_call->run();
        TSAN(__tsan_release(&view->end);)
        thread_end(t);
        if (n_unfinished) {
            go_on(true);
            continue;
        }
        if (!KEEP_STACKS) fiber_put(running);
        TSAN(__tsan_switch_to_fiber(tsan_main, 1);)
        switch_to(&main_fiber);
    }
}

/* The thread records are made once per block shape and reset for each block. */
static void threads_make(dim3 b)
{
    int n = (int)(b.x * b.y * b.z);
    if ((int)threads.size() == n && shape.x == b.x && shape.y == b.y) return;
    threads.assign((size_t)n, thread());
    warps.assign((size_t)(n + 31) / 32, warp());
    shape = b;
    for (int i = 0; i < n; i++) {
        thread &t = threads[i];
        t.id = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
        t.lane = i & 31;
        t.warp = &warps[i / 32];
    }
}

static void threads_reset()
{
    int n = (int)threads.size(), n_warps = (int)warps.size();
    for (thread &t : threads) {
        t.started = t.done = false;
        t.waiting = NOT_WAITING;
        TSAN(t.fiber = set->fibers[(size_t)thread_index(&t)];)
    }
    for (int i = 0; i < n_warps; i++) {
        int lanes = n - 32 * i < 32 ? n - 32 * i : 32;
        uint32_t all = lanes == 32 ? FULL_WARP : (1u << lanes) - 1;
        warps[i] = warp{all, all, 0, 0, 32 * i, threads.data()};
    }
    ready_warps = n_warps == 32 ? ~0u : (1u << n_warps) - 1;
    n_unfinished = n;
    n_at_barrier = 0;
    counters.threads += (unsigned)n;
}

static void run_block()
{
    threads_reset();
    copies_reset((int)threads.size());
    counters.blocks++;
    current = &threads[0];
    current_warp = settings.schedule == 1 ? (int)warps.size() - 1 : 0;
    if (settings.schedule) current = next_thread();
    TSAN(tsan_main = __tsan_get_current_fiber(); __tsan_release(&view->start);)
    running = &main_fiber;
    fiber_begin();
    switch_to(KEEP_STACKS ? current->fiber : fiber_get());
    current = nullptr;
}

void run_kernel(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const call &c)
{
    {
        std::lock_guard<std::mutex> hold(device_lock);
        counters.launches++;
    }
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                std::lock_guard<std::mutex> hold(device_lock);
                kernel_name = name;
                kernel_call = &c;
                grid_dim = grid;
                block_dim = block;
                block_index = {x, y, z};
                random_state = (unsigned)settings.schedule * 2654435761u + x * 97u + y * 31u + 1;
                threads_make(block);
                shared_begin(shared_bytes);
                TSAN(take_set(x + (unsigned long long)grid.x * (y + (unsigned long long)grid.y * z),
                              (int)threads.size());)
                run_block();
            }
    /* Blocks of a grid are not ordered with each other; what follows in the stream is. */
    TSAN(__tsan_acquire(&own_view()->end);)
}

} // namespace emu
