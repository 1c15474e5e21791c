/* Placements on a machine one need not own: predicted, not measured. */
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
    const char *model; /* path, or SHAPE:TYPE */
    const char *hardware, *placement, *vram, *kv;
    int32_t threads, batch;
    int64_t n_ctx;
} tn_bench_place;

/* Predicted tokens per second of c's prompt and generation; c has both, and one plan serves both.
 * *plan: what was planned, new reference; NULL for a candidate that is not the planner's choice.
 * TN_ENOMEM if it does not fit, else as tn_placement_open. */
tn_status tn_bench_place_predict(const tn_bench_place *p, const tn_bench_cell *c,
                                 double *prompt_rate, double *gen_rate, json_t **plan,
                                 tn_error *err);

#endif
