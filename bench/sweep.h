/* Every combination of the sweep, in the order that opens the fewest models. */
#ifndef TN_BENCH_SWEEP_H
#define TN_BENCH_SWEEP_H

#include "options.h"

/* Measures and reports. Returns the program's exit code. */
int tn_bench_sweep(const tn_bench_settings *set, int argc, char **argv);

#endif
