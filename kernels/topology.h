/* The machine's processors: kinds of cores, NUMA nodes, and how many threads are worth starting.
 * Everything is read from /sys and /proc below `root`: "" for the real ones, another directory in
 * tests. Pure but for these files; any thread. */
#ifndef TN_TOPOLOGY_H
#define TN_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

enum { TN_CPU_WORDS = 128, TN_CPU_KINDS = 4, TN_CPU_NODES = 16 };

/* Processors as the system numbers them: bit i % 64 of word i / 64. */
typedef struct tn_cpu_set {
    uint64_t word[TN_CPU_WORDS];
} tn_cpu_set;

typedef struct tn_cpu_kind {
    int cores, processors; /* physical cores, and their hardware threads */
    int mhz;               /* the highest clock, 0: unknown */
    tn_cpu_set set;
} tn_cpu_kind;

typedef struct tn_cpu_node {
    int number; /* the system's */
    int cores, processors; /* 0 where there is only memory */
    uint64_t memory_bytes; /* 0: unknown */
    tn_cpu_set set;
} tn_cpu_node;

typedef struct tn_topology {
    int n_kinds; /* the fastest first: performance cores, efficiency cores, ... */
    tn_cpu_kind kind[TN_CPU_KINDS];
    int n_nodes; /* at least 1: a machine that tells of none is one */
    tn_cpu_node node[TN_CPU_NODES];
} tn_topology;

/* Of the processors of `allowed`. A core is of a slower kind where the system says so, or where its
 * capacity or highest clock is below 0.8 of the next faster kind's. More kinds than TN_CPU_KINDS
 * are counted as the last; nodes beyond TN_CPU_NODES are left out. */
void tn_topology_read(tn_topology *t, const char *root, const tn_cpu_set *allowed);
/* The processors that this process may use. */
void tn_topology_allowed(tn_cpu_set *allowed);

/* Physical cores of the fastest kind among the processors of `mask`, at most the CPU quota of the
 * control group, at least 1. What cannot be read does not limit. */
int tn_topology_threads(const char *root, const uint64_t *mask, size_t n_words);

#endif
