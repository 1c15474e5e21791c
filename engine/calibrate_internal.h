/* Internal: between the host's and the device's side of calibration. */
#ifndef TN_CALIBRATE_INTERNAL_H
#define TN_CALIBRATE_INTERNAL_H

#include "calibrate.h"

/* Seconds of one pass of host work. */
typedef double (*tn_bench_host_fn)(void *arg);

/* calibrate_device.c. Adds the engine's devices to a profile, and the contended pairs with the
 * first. */
tn_status tn_calibrate_device(tn_profile *p, tn_engine *e, tn_bench_host_fn host, void *host_arg,
                              tn_error *err);
/* calibrate.c */
void tn_bench_sort(double *t, int n);
void tn_bench_source(tn_profile *p, const char *figure, const char *text);

#endif
