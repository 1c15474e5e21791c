/* Placements: what the planner would put where, and how fast it says that is. */
#ifndef TN_BENCH_PLACE_H
#define TN_BENCH_PLACE_H

#include "cells.h"

#include "../engine/tenon.h"

#include <jansson.h>

/* "12G", "8000M", "1.5T" or bytes, as powers of 1,024; false if it is none of these. */
bool tn_bench_size_read(const char *text, uint64_t *bytes);
/* Whether it names a placement: that of a candidate of the planner, auto, or manual:FILE. */
bool tn_bench_place_known(const char *name);

typedef struct tn_bench_place {
    const char *model;    /* path, or SHAPE:TYPE */
    const char *hardware; /* as tn_placement_options have it */
    const char *placement, *vram, *kv;
    int32_t threads, batch;
    int32_t n_devices; /* 0: as the hardware has */
    int64_t n_ctx;
} tn_bench_place;

typedef struct tn_bench_planned {
    double prompt_rate, gen_rate; /* predicted, tokens per second */
    tn_placement *placement;      /* for tn_model_options.plan */
    json_t *plan;                 /* as tenon plan --json prints it */
    char *layout;                 /* what is where: equal for plans that place alike */
} tn_bench_planned;

/* Plans for a request of c's prompt and generation at its depth; c has both, and one plan serves
 * both. TN_ENOMEM if it does not fit, else as tn_placement_open. Freed by the caller. */
tn_status tn_bench_place_plan(const tn_bench_place *p, const tn_bench_cell *c,
                              tn_bench_planned *out, tn_error *err);
void tn_bench_planned_free(tn_bench_planned *p);

/* The type that --kv names, which was checked. */
tn_kv_type tn_bench_kv_type(const char *name);

#endif
