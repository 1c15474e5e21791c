#include "stream.h"

#include "term.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define WIDE __attribute__((target("avx2")))
#define HAS_WIDE __builtin_cpu_supports("avx2")
#else
#define WIDE
#define HAS_WIDE 0
#endif

/* Two cache lines at a time, added into eight sums so that additions never wait for each other. */
typedef uint64_t lanes __attribute__((vector_size(32)));
enum { step = 128, ahead = 4096 };

#define READ_LOOP(fetch)                                                                           \
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};                                                  \
    for (size_t i = 0; i < n; i += step) {                                                         \
        const lanes *v = (const lanes *)(p + i);                                                   \
        if (fetch) {                                                                               \
            __builtin_prefetch(p + i + ahead);                                                     \
            __builtin_prefetch(p + i + ahead + 64);                                                \
        }                                                                                          \
        s0 += v[0];                                                                                \
        s1 += v[1];                                                                                \
        s2 += v[2];                                                                                \
        s3 += v[3];                                                                                \
    }                                                                                              \
    s0 += s1 + s2 + s3;                                                                            \
    return s0[0] + s0[1] + s0[2] + s0[3]

/* p[n], n a multiple of step. */
WIDE static uint64_t read_wide(const char *p, size_t n)
{
    READ_LOOP(false);
}
WIDE static uint64_t read_wide_prefetch(const char *p, size_t n)
{
    READ_LOOP(true);
}
static uint64_t read_plain(const char *p, size_t n)
{
    READ_LOOP(false);
}
static uint64_t read_plain_prefetch(const char *p, size_t n)
{
    READ_LOOP(true);
}

typedef uint64_t (*reader)(const char *p, size_t n);

/* Threads that read their own parts of a buffer at the same time. */
typedef struct crew {
    int n;
    reader read;
    char *buffer;
    size_t part;              /* bytes of each */
    atomic_int go;            /* 0 = wait, 1 = all threads are there, -1 = go home */
    atomic_int arrived, turn; /* of the barrier */
    bool stop;                /* the leader's word, behind the barrier */
    double best;              /* seconds of the quickest pass */
    _Atomic uint64_t sum;     /* of what was read: so that reading is not left out */
} crew;

typedef struct member {
    crew *crew;
    int number;
} member;

/* Spins: waking a sleeper takes as long as reading half a megabyte. */
static void meet(crew *c)
{
    const int turn = atomic_load(&c->turn);
    if (atomic_fetch_add(&c->arrived, 1) == c->n - 1) {
        atomic_store(&c->arrived, 0);
        atomic_fetch_add(&c->turn, 1);
    }
    while (atomic_load(&c->turn) == turn)
        sched_yield();
}

/* Bytes that each thread reads in a pass: small parts several times, so that meeting costs nothing.
 */
static size_t pass_bytes(const crew *c)
{
    const size_t least = 32u << 20;
    return c->part >= least ? c->part : (least + c->part - 1) / c->part * c->part;
}

static void *work(void *arg)
{
    const member *m = arg;
    crew *c = m->crew;
    char *mine = c->buffer + (size_t)m->number * c->part;
    while (atomic_load(&c->go) == 0)
        sched_yield();
    if (atomic_load(&c->go) < 0) return NULL;
    const double begin = tn_bench_clock();
    uint64_t sum = 0;
    memset(mine, 1, c->part); /* first touched by the thread that reads it */
    for (int pass = 0; !c->stop; pass++) {
        meet(c);
        const double start = tn_bench_clock();
        for (size_t done = 0; done < pass_bytes(c); done += c->part)
            sum += c->read(mine, c->part);
        meet(c);
        if (m->number == 0) {
            const double now = tn_bench_clock();
            if (now - start < c->best) c->best = now - start;
            c->stop = (pass >= 5 && now - begin > 0.2) || tn_bench_signal();
        }
        meet(c);
    }
    atomic_fetch_add(&c->sum, sum);
    return NULL;
}

/* Bytes per second; NaN if a thread could not be had. */
static double measure(char *buffer, int threads, size_t part, reader read)
{
    crew c = {.n = threads, .read = read, .buffer = buffer, .part = part, .best = INFINITY};
    pthread_t *ids = tn_bench_alloc((size_t)threads * sizeof *ids);
    member *members = tn_bench_alloc((size_t)threads * sizeof *members);
    int n = 1;
    for (; n < threads; n++) {
        members[n] = (member){&c, n};
        if (pthread_create(&ids[n], NULL, work, &members[n]) != 0) break;
    }
    atomic_store(&c.go, n == threads ? 1 : -1);
    members[0] = (member){&c, 0};
    work(&members[0]);
    for (int i = 1; i < n; i++)
        pthread_join(ids[i], NULL);
    free(members);
    free(ids);
    return n == threads ? (double)threads * (double)pass_bytes(&c) / c.best : NAN;
}

/* Bytes of each thread's part: a multiple of `step`. */
static size_t part_bytes(int threads, double bytes)
{
    const size_t least = 64u << 10;
    struct sysinfo si;
    double most = 1 << 30;
    if (sysinfo(&si) == 0) most = fmin(most, (double)si.freeram * si.mem_unit / 4);
    const double part = fmin(bytes, most) / threads;
    return part > (double)least ? (size_t)part / step * step : least;
}

double tn_bench_read_peak(int threads, double bytes)
{
    static const reader readers[] = {read_plain, read_plain_prefetch, read_wide,
                                     read_wide_prefetch};
    if (threads < 1 || !(bytes > 0)) return NAN;
    const size_t part = part_bytes(threads, bytes), total = part * (size_t)threads;
    /* Prefetch may run past the end: what is behind it need not be there. */
    char *buffer = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return NAN;
    madvise(buffer, total, MADV_HUGEPAGE);
    const int first = HAS_WIDE ? 2 : 0;
    const double plain = measure(buffer, threads, part, readers[first]);
    const double prefetch = measure(buffer, threads, part, readers[first + 1]);
    munmap(buffer, total);
    return prefetch > plain ? prefetch : plain;
}

double tn_bench_peaks_find(tn_bench_peaks *peaks, int threads, double bytes)
{
    if (!(bytes > 0)) return NAN;
    for (size_t i = 0; i < peaks->n; i++) {
        const tn_bench_peak *p = &peaks->at[i];
        if (p->threads == threads && fabs(p->bytes - bytes) <= 0.1 * p->bytes) return p->per_second;
    }
    const double per_second = tn_bench_read_peak(threads, bytes);
    peaks->at = tn_bench_realloc(peaks->at, (peaks->n + 1) * sizeof *peaks->at);
    peaks->at[peaks->n++] = (tn_bench_peak){threads, bytes, per_second};
    return per_second;
}
