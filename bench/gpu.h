/* What NVIDIA's management library tells about GPUs. It is opened where it is there; without it,
 * and for what a card does not tell, everything is unknown. */
#ifndef TN_BENCH_GPU_H
#define TN_BENCH_GPU_H

#include <jansson.h>
#include <stdbool.h>

/* Every GPU of the machine: an array of objects, null without the library; new reference. */
json_t *tn_bench_gpus_json(void);

/* Rows from now on are measured on the GPU that CUDA calls so and counts as `index`. The library
 * may count in another order: a card of that name is found, of several the one with that index. */
void tn_bench_gpu_use(const char *name, int index);

/* The GPU in use at this moment; NaN and false where nothing is known or none is in use. */
typedef struct tn_bench_gpu_moment {
    double clock_mhz;
    bool slowed;    /* by heat, or by hardware that protects itself */
    bool power_cap; /* the clock is as low as the power limit makes it: usual under load */
} tn_bench_gpu_moment;
tn_bench_gpu_moment tn_bench_gpu_look(void);

#endif
