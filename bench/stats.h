/* What a handful of samples says. Everything here is pure. */
#ifndef TN_BENCH_STATS_H
#define TN_BENCH_STATS_H

#include <stdbool.h>
#include <stddef.h>

/* NaN where a number cannot be told: all of them for n = 0, the interval for n = 1. */
typedef struct tn_bench_summary {
    double median;
    double mad; /* median of |x - median|, not scaled */
    double min, max, mean;
    double low, high; /* 95 % confidence interval of the median */
} tn_bench_summary;

/* The interval: for n >= 6 the tightest pair of order statistics, placed symmetrically, that covers
 * the median with at least 95 % (sign test, free of any assumption). Fewer samples cannot reach 95
 * % that way: Student's interval of the mean logarithm, widened to hold all
 * samples. */
tn_bench_summary tn_bench_summarise(const double *samples, size_t n);

/* Quantile q in [0, 1], linear between order statistics (type 7). NaN for n = 0. */
double tn_bench_quantile(const double *samples, size_t n, double q);

/* Whether the last three samples lie within `part` of their median (largest minus smallest). */
bool tn_bench_settled(const double *samples, size_t n, double part);

/* Two-sided Mann-Whitney test of a[na] against b[nb]: exact without ties while na * nb <= 400, else
 * the normal approximation with corrections for ties and continuity. 1 if either is empty. */
double tn_bench_mann_whitney(const double *a, size_t na, const double *b, size_t nb);

/* b over a, all samples positive. ratio: of the medians. low, high: the 95 % interval of the ratio
 * that the Mann-Whitney test does not reject (of all pairwise ratios); NaN where the samples are
 * too few for it. */
typedef struct tn_bench_ratio {
    double ratio, low, high, p;
} tn_bench_ratio;
tn_bench_ratio tn_bench_compare_samples(const double *a, size_t na, const double *b, size_t nb);

#endif
