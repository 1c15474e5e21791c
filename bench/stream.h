/* What the memory of this machine gives: the rows' speed is shown as a part of it. */
#ifndef TN_BENCH_STREAM_H
#define TN_BENCH_STREAM_H

#include <stddef.h>

/* Bytes per second that `threads` threads together read at best from `bytes` bytes which they go
 * through again and again (at least 1 MiB a thread; at most 1 GiB in all, or a quarter of what is
 * free): the best of several passes with and without software prefetch. The size matters: what fits
 * into a cache is read faster. Takes about half a second. NaN if memory or threads are lacking. */
double tn_bench_read_peak(int threads, double bytes);

/* The same, remembered: sizes within 10 % share a measurement. */
typedef struct tn_bench_peak {
    int threads;
    double bytes, per_second;
} tn_bench_peak;
typedef struct tn_bench_peaks {
    tn_bench_peak *at;
    size_t n;
} tn_bench_peaks;
double tn_bench_peaks_find(tn_bench_peaks *peaks, int threads, double bytes);

#endif
