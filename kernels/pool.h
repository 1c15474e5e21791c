/* A pool of worker threads that run one loop at a time. Spins briefly between loops, then yields,
 * then sleeps, so that it neither wastes 25 us per phase nor collapses beside another busy process. */
#ifndef TN_POOL_H
#define TN_POOL_H

#include "../gguf/mem.h"

typedef struct tn_pool tn_pool;

/* Work on items [begin, end). worker: 0 .. n_threads - 1, 0 is the caller. Must not fail or block. */
typedef void (*tn_task_fn)(void *arg, int64_t begin, int64_t end, int worker);

/* n_threads >= 1, the calling thread included. TN_ENOMEM, or TN_EINTERNAL if a thread cannot start. */
tn_status tn_pool_new(tn_pool **out, int n_threads, const tn_allocator *a, tn_error *err);
void tn_pool_free(tn_pool *p); /* NULL is fine */
int tn_pool_threads(const tn_pool *p);

/* Runs fn over [0, n_items) and returns when all is done. Ranges start at multiples of `grain` and
 * end at one or at n_items. Each thread first takes a contiguous share (the same one every time, so
 * that its cache stays warm), the rest is handed out grain by grain to whoever is free.
 * One caller at a time. */
void tn_pool_run(tn_pool *p, tn_task_fn fn, void *arg, int64_t n_items, int64_t grain);

/* Threads worth starting by default: physical performance cores allowed by affinity and cgroup quota. */
int tn_pool_default_threads(void);

#endif
