#include "sweep.h"

#include "report.h"
#include "run.h"
#include "source.h"
#include "term.h"

#include <stdlib.h>
#include <string.h>

typedef struct sweep {
    const tn_bench_settings *set;
    tn_bench_report report;
    tn_bench_source source; /* the model of now */
    tn_engine *engine;
    tn_model *model;
    tn_bench_tokens tokens;
    tn_context *ctx;
    tn_bench_row like; /* what rows of now have in common */
    int code;          /* not 0: stop, with this exit code */
    int failed;        /* exit code of the first row that could not be measured */
    size_t n_good;     /* rows that could */
} sweep;

/* A test to run at some depth, in the order of the walk. */
typedef struct cell {
    int32_t depth, n_prompt, n_gen;
    bool pair;
} cell;

/* ---- rows ---------------------------------------------------------------------------------------
 */

static void finish_row(sweep *w, tn_status status)
{
    if (status && !w->failed) w->failed = tn_bench_exit_code(status);
    if (!status) w->n_good++;
}

/* Shows the rows from `first` on. */
static void show_rows(sweep *w, size_t first)
{
    for (size_t i = first; i < w->report.rows.n; i++) {
        const int code = tn_bench_report_row(&w->report, i);
        if (!w->code) w->code = code;
    }
    if (tn_bench_signal()) w->code = TN_EXIT_SIGNAL + tn_bench_signal();
}

static tn_bench_row *add_row(sweep *w, const cell *c, tn_bench_what what)
{
    tn_bench_row *row = tn_bench_rows_add(&w->report.rows, &w->like);
    row->what = what;
    row->n_prompt = c->n_prompt;
    row->n_gen = c->n_gen;
    row->params.depth = c->depth;
    return row;
}

/* The row or the two rows of a cell; returns the index of the first. */
static size_t add_rows(sweep *w, const cell *c)
{
    const size_t first = w->report.rows.n;
    if (c->pair) {
        add_row(w, c, TN_BENCH_PAIR_PROMPT);
        add_row(w, c, TN_BENCH_PAIR_GENERATE);
    } else {
        add_row(w, c, c->n_prompt ? TN_BENCH_PROMPT : TN_BENCH_GENERATE);
    }
    return first;
}

static void fail_rows(sweep *w, size_t first, tn_status status, const tn_error *err)
{
    for (size_t i = first; i < w->report.rows.n; i++) {
        tn_bench_row *row = &w->report.rows.at[i];
        row->error = tn_bench_strdup(err->msg[0] ? err->msg : tn_status_name(status));
        finish_row(w, status);
    }
}

/* ---- cells --------------------------------------------------------------------------------------
 */

static int by_depth(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Every test at every depth, depths growing. Freed by the caller. */
static cell *make_cells(const tn_bench_settings *set, size_t *n)
{
    const size_t per_depth = set->prompt.n + set->generate.n + set->pairs.n;
    cell *cells = tn_bench_alloc(set->depth.n * per_depth * sizeof *cells);
    int32_t *depths = tn_bench_alloc(set->depth.n * sizeof *depths);
    memcpy(depths, set->depth.at, set->depth.n * sizeof *depths);
    qsort(depths, set->depth.n, sizeof *depths, by_depth);
    *n = 0;
    for (size_t d = 0; d < set->depth.n; d++) {
        for (size_t i = 0; i < set->prompt.n; i++)
            if (set->prompt.at[i]) cells[(*n)++] = (cell){depths[d], set->prompt.at[i], 0, false};
        for (size_t i = 0; i < set->generate.n; i++)
            if (set->generate.at[i])
                cells[(*n)++] = (cell){depths[d], 0, set->generate.at[i], false};
        for (size_t i = 0; i < set->pairs.n; i++) {
            tn_bench_ints two = {0};
            tn_bench_ints_read(&two, set->pairs.at[i], 1, INT32_MAX);
            cells[(*n)++] = (cell){depths[d], two.at[0], two.at[1], true};
            free(two.at);
        }
    }
    free(depths);
    return cells;
}

static int64_t cell_tokens(const cell *c)
{
    return (int64_t)c->depth + c->n_prompt + c->n_gen;
}

/* A context that holds the largest of the cells it can; *fits is how many tokens that is. */
static tn_status open_context(sweep *w, const cell *cells, size_t n, int64_t *fits, tn_error *err)
{
    tn_context_options opt = {.struct_size = sizeof opt,
                              .n_batch = w->like.params.batch,
                              .kv = strcmp(w->like.params.kv, "f32") == 0 ? TN_KV_F32 : TN_KV_F16,
                              .cancel = tn_bench_cancel};
    tn_status s = TN_EARG;
    int64_t limit = INT32_MAX;
    while (s && s != TN_ECANCELED) {
        *fits = 0;
        for (size_t i = 0; i < n; i++)
            if (cell_tokens(&cells[i]) > *fits && cell_tokens(&cells[i]) <= limit)
                *fits = cell_tokens(&cells[i]);
        if (*fits == 0) return s;
        opt.n_ctx = (int32_t)*fits;
        s = tn_context_new(&w->ctx, w->model, &opt, err);
        limit = *fits - 1;
    }
    return s;
}

static void run_cell(sweep *w, const cell *c, int64_t fits, const tn_error *too_big)
{
    tn_error err = {0};
    tn_status s = TN_OK;
    const size_t first = add_rows(w, c);
    if (cell_tokens(c) > fits) {
        fail_rows(w, first, too_big->code ? too_big->code : TN_EFULL, too_big);
    } else {
        const tn_bench_run run = {w->set, w->ctx, &w->tokens, &w->source};
        tn_bench_row *row = &w->report.rows.at[first];
        s = tn_bench_walk(w->ctx, &w->tokens, c->depth, &err);
        if (!s) s = tn_bench_run_cell(&run, row, c->pair ? row + 1 : NULL, &err);
        if (s)
            fail_rows(w, first, s, &err);
        else
            for (size_t i = first; i < w->report.rows.n; i++)
                finish_row(w, TN_OK);
    }
    show_rows(w, first);
}

static void run_context(sweep *w)
{
    size_t n;
    int64_t fits = 0;
    tn_error err = {0};
    cell *cells = make_cells(w->set, &n);
    const tn_status s = open_context(w, cells, n, &fits, &err);
    if (s) fits = 0;
    if (s && !err.msg[0]) snprintf(err.msg, sizeof err.msg, "%s", tn_status_name(s));
    for (size_t i = 0; i < n && !w->code; i++)
        run_cell(w, &cells[i], fits, &err);
    tn_context_free(w->ctx);
    w->ctx = NULL;
    free(cells);
}

/* ---- models and engines -------------------------------------------------------------------------
 */

static void fail_all_cells(sweep *w, tn_status status, const tn_error *err)
{
    size_t n;
    cell *cells = make_cells(w->set, &n);
    for (size_t i = 0; i < n && !w->code; i++) {
        const size_t first = add_rows(w, &cells[i]);
        fail_rows(w, first, status, err);
        show_rows(w, first);
    }
    free(cells);
}

/* Runs what shares a model: KV types and batch sizes. */
static void run_contexts(sweep *w)
{
    for (size_t k = 0; k < w->set->kv.n && !w->code; k++) {
        for (size_t b = 0; b < w->set->batch.n && !w->code; b++) {
            w->like.params.kv = w->set->kv.at[k];
            w->like.params.batch = w->set->batch.at[b];
            run_context(w);
        }
    }
}

static void run_model(sweep *w)
{
    tn_error err = {0};
    tn_status s = tn_bench_source_open(&w->source, w->engine, w->like.params.load, &w->model, &err);
    if (!s) s = tn_bench_source_tokens(&w->source, w->set, w->model, &w->tokens, &err);
    if (s) {
        w->like.params.kv = w->set->kv.at[0];
        w->like.params.batch = w->set->batch.at[0];
        fail_all_cells(w, s, &err);
    } else {
        tn_bench_source_describe(&w->source, w->model);
        run_contexts(w);
    }
    free(w->tokens.at);
    w->tokens = (tn_bench_tokens){0};
    tn_model_close(w->model);
    w->model = NULL;
}

static void run_engine(sweep *w)
{
    tn_error err = {0};
    const bool best = strcmp(w->like.params.isa, "best") == 0;
    const tn_engine_options opt = {.struct_size = sizeof opt,
                                   .threads = w->like.params.threads,
                                   .isa = best ? NULL : w->like.params.isa};
    const tn_status s = tn_engine_new(&w->engine, &opt, &err);
    w->like.threads_used = s ? w->like.params.threads : tn_engine_threads(w->engine);
    w->like.isa_used = s ? NULL : tn_bench_isa_name(tn_engine_isa(w->engine));
    for (size_t i = 0; i < w->set->load.n && !w->code; i++) {
        w->like.params.load = w->set->load.at[i];
        w->like.params.kv = w->set->kv.at[0];
        w->like.params.batch = w->set->batch.at[0];
        if (s)
            fail_all_cells(w, s, &err);
        else
            run_model(w);
    }
    tn_engine_free(w->engine);
    w->engine = NULL;
}

static void run_source(sweep *w)
{
    for (size_t i = 0; i < w->set->isa.n && !w->code; i++) {
        for (size_t t = 0; t < w->set->threads.n && !w->code; t++) {
            w->like.params.isa = w->set->isa.at[i];
            w->like.params.threads = w->set->threads.at[t];
            run_engine(w);
        }
    }
}

int tn_bench_sweep(const tn_bench_settings *set)
{
    sweep w = {.set = set};
    const size_t n_models = set->models.n + set->synthetic.n;
    if ((w.code = tn_bench_report_open(&w.report, set))) return w.code;
    for (size_t m = 0; m < n_models && !w.code; m++) {
        const bool file = m < set->models.n;
        w.like.model = m;
        tn_bench_source_init(&w.source,
                             file ? set->models.at[m] : set->synthetic.at[m - set->models.n], file,
                             w.report.models);
        run_source(&w);
        tn_bench_source_free(&w.source);
    }
    if (!w.code && w.n_good == 0) w.code = w.failed;
    const int written = tn_bench_report_close(&w.report);
    return w.code ? w.code : written;
}
