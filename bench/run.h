/* One cell of the sweep: warm-up, measured runs, and what was seen meanwhile. */
#ifndef TN_BENCH_RUN_H
#define TN_BENCH_RUN_H

#include "options.h"
#include "row.h"
#include "source.h"

typedef struct tn_bench_run {
    const tn_bench_settings *set;
    tn_context *ctx; /* at the cell's depth */
    const tn_bench_tokens *tokens;
    const tn_bench_source *source;
} tn_bench_run;

/* Measures the cell that row describes, and leaves the context at its depth. For a pair, row gets
 * the prompt's part and second the generation's; otherwise second is NULL. */
tn_status tn_bench_run_cell(const tn_bench_run *run, tn_bench_row *row, tn_bench_row *second,
                            tn_error *err);

#endif
