/* A pool of worker threads that run one loop at a time. Spins briefly between loops, then yields,
 * then sleeps, so that it neither wastes 25 us per phase nor collapses beside
 * another busy process. */
#ifndef TN_POOL_H
#define TN_POOL_H

#include "../gguf/mem.h"
#include "topology.h"

typedef struct tn_pool tn_pool;

/* Work on items [begin, end). worker: 0 .. n_threads - 1, 0 is the caller. Must
 * not fail or block. */
typedef void (*tn_task_fn)(void *arg, int64_t begin, int64_t end, int worker);

/* Which threads of a pool belong together: threads [first[k], first[k + 1]) are bound to the
 * processors of node k, next to its memory; but for thread 0, the caller, whose affinity is not
 * ours to change. With one node nothing is bound. first[0] is 0, first[n] the number of threads. */
typedef struct tn_pool_nodes {
    int n;
    int first[TN_CPU_NODES + 1];
    tn_cpu_set set[TN_CPU_NODES];
} tn_pool_nodes;

/* Divides threads by the nodes' cores; the first nodes where threads are few. */
void tn_pool_nodes_of(tn_pool_nodes *out, const tn_topology *t, int n_threads);

/* n_threads >= 1, the calling thread included. nodes: copied; NULL: one. TN_ENOMEM, or TN_EINTERNAL
 * if a thread cannot start. */
tn_status tn_pool_new(tn_pool **out, int n_threads, const tn_pool_nodes *nodes,
                      const tn_allocator *a, tn_error *err);
void tn_pool_free(tn_pool *p); /* NULL is fine */
int tn_pool_threads(const tn_pool *p);
int tn_pool_nodes_count(const tn_pool *p);
/* Of a loop over n units node k's threads own [tn_pool_node_first(p, k, n), ...(p, k + 1, n)). */
int64_t tn_pool_node_first(const tn_pool *p, int k, int64_t n);

/* Runs fn over [0, n_items) and returns when all is done. Ranges start at multiples of `grain` and
 * end at one or at n_items. Each thread first takes a contiguous share (the same one every time, so
 * that its cache stays warm and its node's memory near), the rest is handed out grain by grain to
 * whoever is free, on the same node first.
 * One caller at a time. */
void tn_pool_run(tn_pool *p, tn_task_fn fn, void *arg, int64_t n_items, int64_t grain);

/* From the next loop on threads 0 .. n - 1 work and the others rest, without a cost to the loops;
 * 1 <= n <= threads. The caller of loops calls it, too. */
void tn_pool_use(tn_pool *p, int n);
int tn_pool_in_use(const tn_pool *p);

/* Threads worth starting by default: physical performance cores allowed by affinity and cgroup
 * quota. */
int tn_pool_default_threads(void);

#endif
