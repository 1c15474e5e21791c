/* The tests of a sweep in the order of the walk, and how long they will take. */
#ifndef TN_BENCH_CELLS_H
#define TN_BENCH_CELLS_H

#include "options.h"
#include "row.h"

/* A test at some depth. pair: prompt and generation in one run, reported apart. */
typedef struct tn_bench_cell {
    int32_t depth, n_prompt, n_gen;
    bool pair;
} tn_bench_cell;

/* Every test at every depth, depths growing and each once. Freed by the caller. */
tn_bench_cell *tn_bench_cells_make(const tn_bench_settings *set, size_t *n);
/* Tokens that the context must hold. */
int64_t tn_bench_cell_tokens(const tn_bench_cell *c);
/* Of the largest cell that needs at most `limit`; 0 if there is none. */
int64_t tn_bench_largest_cell(const tn_bench_cell *cells, size_t n, int64_t limit);

/* Remaining work, first guessed from the model's size, then from what was measured. */
typedef struct tn_bench_estimate {
    const tn_bench_settings *set;
    const tn_bench_cell *cells;
    size_t n_cells, blocks_left, next; /* blocks: contexts still to come; next cell of this one */
    double prompt_rate, gen_rate;      /* tokens per second */
    double begun, cell_begun;          /* clock */
    double cell_seconds;               /* expected of the cell that runs, 0 = none */
    bool told;
} tn_bench_estimate;

void tn_bench_estimate_init(tn_bench_estimate *e, const tn_bench_settings *set,
                            const tn_bench_cell *cells, size_t n, size_t n_models);
/* A model is open: guesses its speed, and says once on a terminal how long the sweep may take. */
void tn_bench_estimate_model(tn_bench_estimate *e, double bytes_per_token);
void tn_bench_estimate_learn(tn_bench_estimate *e, const tn_bench_row *row);
void tn_bench_estimate_cell_begins(tn_bench_estimate *e, const tn_bench_cell *c);
void tn_bench_estimate_cell_ends(tn_bench_estimate *e);
/* n contexts will not be opened. */
void tn_bench_estimate_skip(tn_bench_estimate *e, size_t n);
/* Seconds so far, and in all. */
void tn_bench_estimate_now(const tn_bench_estimate *e, double *done, double *total);

#endif
