/* The files of a model and how much of them the page cache holds: what makes a load cold or warm.
 */
#ifndef TN_BENCH_PAGECACHE_H
#define TN_BENCH_PAGECACHE_H

#include <stdbool.h>

/* Path of part i of the n that `path` is the first of, "NAME-00001-of-0000N.gguf"; for n <= 1 the
 * path itself. Freed by the caller. */
char *tn_bench_part_path(const char *path, unsigned i, unsigned n);

/* Part of the file that is in memory, 0 to 1; NaN if it cannot be told. */
double tn_bench_cached(const char *path);
/* Asks the kernel to drop the file from memory. False if it cannot be opened. */
bool tn_bench_drop_cache(const char *path);
/* Seconds that so many threads together take to read the file once, from memory or from where it
 * lies; NaN if it or a thread cannot be had. */
double tn_bench_read_seconds(const char *path, int threads);

#endif
