/* How many threads are worth starting on this machine. */
#ifndef TN_TOPOLOGY_H
#define TN_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

/* Physical performance cores among the processors of `mask` (bit i % 64 of word i / 64), at most
 * the CPU quota of the control group, at least 1. Reads /sys and /proc below `root` ("" for the
 * real ones, another directory in tests). What cannot be read does not limit. */
int tn_topology_threads(const char *root, const uint64_t *mask, size_t n_words);

#endif
