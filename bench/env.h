/* The machine, the build and the moment: what somebody needs to judge or repeat a figure. */
#ifndef TN_BENCH_ENV_H
#define TN_BENCH_ENV_H

#include <jansson.h>

/* Fills the environment object, except for what needs an engine. */
void tn_bench_env_fill(json_t *environment, int argc, char **argv);

#endif
