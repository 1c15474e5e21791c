/* What else happened on the machine while a row was measured. */
#ifndef TN_BENCH_WATCH_H
#define TN_BENCH_WATCH_H

#include "gpu.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Counters of the whole machine and of this process at one moment; negative = unknown. */
typedef struct tn_bench_moment {
    double wall, own_cpu, waited; /* seconds; waited: ready to run, but another had the CPU */
    double busy, steal;           /* CPU seconds of all CPUs since boot */
    double clock_mhz;             /* the fastest CPU's */
    double throttled;             /* events since boot, all CPUs */
    double load;                  /* average of a minute */
    int cpus;
    tn_bench_gpu_moment gpu;
} tn_bench_moment;
tn_bench_moment tn_bench_look(void);

/* What a verdict is made of. Percentages are of all CPUs' time, waited_percent of one CPU's. */
typedef struct tn_bench_watch {
    double others_percent, steal_percent, waited_percent;
    double clock_before_mhz, clock_after_mhz;
    double throttle_events, load;
    double gpu_before_mhz, gpu_after_mhz; /* NaN = unknown */
    bool gpu_slowed, gpu_power_cap;       /* before or after */
} tn_bench_watch;
tn_bench_watch tn_bench_watch_make(const tn_bench_moment *before, const tn_bench_moment *after);
/* Why the time between should not be trusted, in words; false if nothing speaks against it. Marked
 * are: 5 % of the machine used by others, 1 % stolen by a hypervisor, 2 % waited for a CPU, a clock
 * of CPU or GPU that changed by 5 %, any throttling but a GPU's at its power limit. */
bool tn_bench_watch_verdict(const tn_bench_watch *w, char *text, size_t cap);
json_t *tn_bench_watch_json(const tn_bench_watch *w); /* new reference */

/* Largest resident size since the last reset, bytes; NaN if the kernel does not tell. */
double tn_bench_peak_rss(void);
void tn_bench_peak_rss_reset(void);

/* Memory that can be had without swapping, bytes; NaN if the kernel does not tell. */
double tn_bench_memory_available(void);

/* First number in a file of the kernel, or `none`. */
double tn_bench_read_number(const char *path, double none);

#endif
