/* One cell of the sweep: warm-up, measured runs, and what was seen meanwhile. */
#ifndef TN_BENCH_RUN_H
#define TN_BENCH_RUN_H

#include "options.h"
#include "row.h"
#include "source.h"
#include "stream.h"

typedef struct tn_bench_run {
    const tn_bench_settings *set;
    tn_context *ctx; /* at the cell's depth */
    const tn_bench_tokens *tokens;
    const tn_bench_source *source;
    tn_bench_peaks *peaks;
    double device_peak; /* bytes per second; NaN = unknown, here and below */
    double device_f16;  /* multiplications and additions per second */
    /* Called between runs with what comes next, for people who wait. */
    void (*tick)(void *user, const char *what);
    void *user;
} tn_bench_run;

/* Measures the cell that rows[0] describes, and leaves the context at its depth. For a pair,
 * rows[0] gets the prompt's part and rows[1] the generation's; otherwise rows[1..n_rows) belong to
 * the peers, whose runs alternate with ours. A peer's failure is written into its row. */
tn_status tn_bench_run_cell(const tn_bench_run *run, tn_bench_row *rows, size_t n_rows,
                            tn_error *err);

/* Measures opening the model, cold or warm as row->what says. *model is open before and after; it
 * is NULL after a failure. The row's context must not exist. */
tn_status tn_bench_run_load(const tn_bench_run *run, tn_engine *engine, tn_model **model,
                            tn_bench_source *source, tn_bench_row *row, tn_error *err);

#endif
