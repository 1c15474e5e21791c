#include "sweep.h"

#include "cells.h"
#include "env.h"
#include "gpu.h"
#include "place.h"
#include "report.h"
#include "run.h"
#include "svg.h"
#include "term.h"
#include "watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { kv_page = 256 }; /* positions */

typedef struct sweep {
    const tn_bench_settings *set;
    tn_bench_report report;
    tn_bench_source source; /* the model of now */
    tn_engine *engine;
    tn_model *model;
    tn_bench_tokens tokens;
    tn_context *ctx;
    double kv_per_token; /* bytes */
    int64_t fits;        /* tokens that the context holds, 0 = there is none because of */
    tn_error too_big;
    tn_bench_peaks peaks;
    char *profile;           /* of this machine with its device, NULL = not measured */
    double device_peak, device_f16; /* bytes per second; flop per second */
    tn_bench_planned placed; /* what the open model carries out; placement NULL = nothing */
    double predicted[2];     /* tokens per second of prompt and generation; NaN = nothing was */
    char *places;            /* all rules of --place in one text */
    char *label;             /* of measured rows, which name it; NULL: no engine was opened yet */
    tn_bench_row like;       /* what rows of now have in common */
    tn_bench_cell *cells;
    size_t n_cells;
    tn_bench_estimate estimate;
    int code;          /* not 0: stop, with this exit code */
    int failed;        /* exit code of the first row that could not be measured */
    char failure[500]; /* and why */
    size_t n_good;     /* rows that could */
} sweep;

/* ---- rows ------------------------------------------------------------------------------------ */

/* peer: number, -1 = our own row. */
static tn_bench_row *add_row(sweep *w, const tn_bench_cell *c, tn_bench_what what, int peer)
{
    tn_bench_row *row = tn_bench_rows_add(&w->report.rows, &w->like);
    row->what = what;
    row->n_prompt = c->n_prompt;
    row->n_gen = c->n_gen;
    row->params.depth = c->depth;
    if (peer >= 0) {
        row->peer = w->set->peers.at[peer];
        row->engine = w->report.peer_names.at[peer];
    }
    const bool prompt = what == TN_BENCH_PROMPT || what == TN_BENCH_PAIR_PROMPT;
    if (peer < 0 && !tn_bench_is_load(row)) row->predicted = w->predicted[prompt ? 0 : 1];
    return row;
}

/* A cell's row, or both rows of a pair, and those of the peers; returns the index of the first. */
static size_t add_rows(sweep *w, const tn_bench_cell *c)
{
    const size_t first = w->report.rows.n;
    if (c->pair) {
        add_row(w, c, TN_BENCH_PAIR_PROMPT, -1);
        add_row(w, c, TN_BENCH_PAIR_GENERATE, -1);
        return first;
    }
    const tn_bench_what what = c->n_prompt ? TN_BENCH_PROMPT : TN_BENCH_GENERATE;
    add_row(w, c, what, -1);
    for (size_t i = 0; i < w->set->peers.n; i++)
        add_row(w, c, what, (int)i);
    return first;
}

static void note_failure(sweep *w, int code, const char *why)
{
    if (w->failed) return;
    w->failed = code;
    snprintf(w->failure, sizeof w->failure, "%s", why);
}

/* Writes the outcome of the rows from `first` on and shows them. What a signal cut short is
 * dropped. */
static void finish_rows(sweep *w, size_t first, tn_status status, const tn_error *err)
{
    if (status == TN_ECANCELED && tn_bench_signal()) {
        tn_bench_rows_cut(&w->report.rows, first);
        w->code = TN_EXIT_SIGNAL + tn_bench_signal();
        return;
    }
    for (size_t i = first; i < w->report.rows.n && !w->code; i++) {
        tn_bench_row *row = &w->report.rows.at[i];
        if (status && !row->error)
            row->error = tn_bench_strdup(err->msg[0] ? err->msg : tn_status_name(status));
        if (row->error)
            note_failure(w, status ? tn_bench_exit_code(status) : TN_EXIT_IO, row->error);
        else
            w->n_good++;
        w->code = tn_bench_report_row(&w->report, i);
    }
    if (!w->code && tn_bench_signal()) w->code = TN_EXIT_SIGNAL + tn_bench_signal();
}

/* ---- cells ----------------------------------------------------------------------------------- */

static void tick(void *user, const char *what)
{
    sweep *w = user;
    char text[300];
    const char *label = w->source.name;
    const char *slash = w->source.file ? strrchr(label, '/') : NULL;
    snprintf(text, sizeof text, "%.60s: %s", slash ? slash + 1 : label, what);
    double done, total;
    tn_bench_estimate_now(&w->estimate, &done, &total);
    tn_bench_progress(done, total, text);
}

/* A context that holds the largest of the cells it can; *fits is how many tokens that is. */
static tn_status open_context(sweep *w, int64_t *fits, tn_error *err)
{
    tn_context_options opt = {.struct_size = sizeof opt,
                              .n_batch = w->like.params.batch,
                              .page_size = kv_page,
                              .kv = tn_bench_kv_type(w->like.params.kv),
                              .cancel = tn_bench_cancel};
    tn_status s = TN_EARG;
    int64_t limit = INT32_MAX;
    while (s && s != TN_ECANCELED) {
        *fits = tn_bench_largest_cell(w->cells, w->n_cells, limit);
        if (*fits == 0) return s;
        opt.n_ctx = (int32_t)*fits;
        s = tn_context_new(&w->ctx, w->model, &opt, err);
        limit = *fits - 1;
    }
    return s;
}

static tn_bench_run make_run(sweep *w)
{
    return (tn_bench_run){w->set,    w->ctx,         &w->tokens, &w->source,
                          &w->peaks, w->device_peak, w->device_f16, tick,       w};
}

/* KV bytes per token, from a page that one token makes; the context is left empty. */
static double kv_bytes_per_token(sweep *w)
{
    tn_stats stats = {.struct_size = sizeof stats};
    tn_error ignored;
    double bytes = 0;
    if (!tn_bench_walk(w->ctx, &w->tokens, 1, &ignored) &&
        !tn_context_stats(w->ctx, &stats, &ignored))
        bytes = (double)stats.kv_bytes_held / kv_page;
    tn_context_rewind(w->ctx, 0, NULL);
    return bytes;
}

/* The kernel promises more memory than there is and kills who uses it: a cell that cannot fit must
 * be refused before. */
static tn_status check_memory(sweep *w, const tn_bench_cell *c, tn_error *err)
{
    tn_stats stats = {.struct_size = sizeof stats};
    const double gib = 1 << 30, need = (double)tn_bench_cell_tokens(c) * w->kv_per_token;
    const double have = tn_bench_memory_available();
    if (tn_context_stats(w->ctx, &stats, err)) return err->code;
    const double more = need - (double)stats.kv_bytes_held;
    if (!(more > 0.95 * have)) return TN_OK;
    return tn_bench_fail(err, TN_ENOMEM,
                         "%lld tokens need %.1f GiB for the KV cache, %.1f GiB more than now, and "
                         "only %.1f GiB are free",
                         (long long)tn_bench_cell_tokens(c), need / gib, more / gib, have / gib);
}

static void run_cell(sweep *w, const tn_bench_cell *c)
{
    tn_error err = w->too_big;
    tn_status s = TN_OK;
    const size_t first = add_rows(w, c);
    tn_bench_estimate_cell_begins(&w->estimate, c);
    if (tn_bench_cell_tokens(c) > INT32_MAX) {
        s = tn_bench_fail(&err, TN_EFULL, "%lld tokens are more than any context holds",
                          (long long)tn_bench_cell_tokens(c));
    } else if (tn_bench_cell_tokens(c) > w->fits) {
        s = err.code;
    } else if (!(s = check_memory(w, c, &err))) {
        const tn_bench_run run = make_run(w);
        tn_bench_row *rows = &w->report.rows.at[first];
        tick(w, "walking to the depth");
        s = tn_bench_walk(w->ctx, &w->tokens, c->depth, &err);
        if (!s) s = tn_bench_run_cell(&run, rows, w->report.rows.n - first, &err);
        if (!s) tn_bench_estimate_learn(&w->estimate, rows);
    }
    tn_bench_estimate_cell_ends(&w->estimate);
    finish_rows(w, first, s, &err);
}

static void make_context(sweep *w)
{
    w->too_big = (tn_error){0};
    const tn_status s = open_context(w, &w->fits, &w->too_big);
    if (s) w->fits = 0;
    if (!s) w->kv_per_token = kv_bytes_per_token(w);
}

static void run_context(sweep *w)
{
    make_context(w);
    for (size_t i = 0; i < w->n_cells && !w->code; i++)
        run_cell(w, &w->cells[i]);
    tn_context_free(w->ctx);
    w->ctx = NULL;
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

/* ---- models and engines ---------------------------------------------------------------------- */

static void run_load(sweep *w, tn_bench_what what)
{
    tn_error err = {0};
    const size_t first = w->report.rows.n;
    add_row(w, &(tn_bench_cell){0}, what, -1);
    const tn_bench_run run = make_run(w);
    const tn_status s =
        tn_bench_run_load(&run, w->engine, &w->model, &w->source, &w->report.rows.at[first], &err);
    finish_rows(w, first, s, &err);
    if (!w->model && !w->code) w->code = tn_bench_exit_code(s ? s : TN_EINTERNAL);
}

static void fail_all_cells(sweep *w, tn_status status, const tn_error *err)
{
    for (size_t i = 0; i < w->n_cells && !w->code; i++)
        finish_rows(w, add_rows(w, &w->cells[i]), status, err);
    tn_bench_estimate_skip(&w->estimate, w->set->kv.n * w->set->batch.n);
}

static tn_status open_model(sweep *w, tn_error *err)
{
    tick(w, "loading");
    tn_status s = tn_bench_source_open(&w->source, w->engine, w->like.params.load, &w->model, err);
    if (!s) s = tn_bench_source_tokens(w->set, w->model, &w->tokens, err);
    if (s) return s;
    tick(w, "hashing");
    tn_bench_source_describe(&w->source, w->model, !w->set->no_hash);
    if (tn_bench_signal()) w->code = TN_EXIT_SIGNAL + tn_bench_signal();
    tn_bench_estimate_model(&w->estimate, (double)w->source.info.token_bytes);
    return TN_OK;
}

static void close_model(sweep *w)
{
    free(w->tokens.at);
    w->tokens = (tn_bench_tokens){0};
    tn_model_close(w->model);
    w->model = NULL;
}

static void run_model(sweep *w)
{
    tn_error err = {0};
    const tn_status s = open_model(w, &err);
    if (s) {
        fail_all_cells(w, s, &err);
    } else {
        if (w->set->load_time && w->source.file && !w->code) run_load(w, TN_BENCH_LOAD_COLD);
        if (w->set->load_time && w->source.file && !w->code) run_load(w, TN_BENCH_LOAD_WARM);
        run_contexts(w);
    }
    close_model(w);
}

/* ---- placements ------------------------------------------------------------------------------ */

/* The longest prompt and generation of the sweep complete a cell that has only one: the same plan
 * serves prompt and generation. */
static tn_bench_cell completed(const sweep *w, const tn_bench_cell *c)
{
    tn_bench_cell whole = *c;
    for (size_t i = 0; i < w->n_cells && !c->pair; i++) {
        if (!c->n_prompt && w->cells[i].n_prompt > whole.n_prompt)
            whole.n_prompt = w->cells[i].n_prompt;
        if (!c->n_gen && w->cells[i].n_gen > whole.n_gen) whole.n_gen = w->cells[i].n_gen;
    }
    return whole;
}

/* Of all cells, so that all plan with the same memory. */
static int64_t tokens_of_all(const sweep *w)
{
    int64_t n_ctx = 0;
    for (size_t i = 0; i < w->n_cells; i++) {
        const tn_bench_cell whole = completed(w, &w->cells[i]);
        if (tn_bench_cell_tokens(&whole) > n_ctx) n_ctx = tn_bench_cell_tokens(&whole);
    }
    return n_ctx;
}

static void note_plan(sweep *w, const tn_bench_cell *c, json_t *plan)
{
    char key[300];
    json_t *plans = json_object_get(w->source.about, "plans");
    if (!plans) json_object_set_new(w->source.about, "plans", plans = json_object());
    const tn_bench_params *p = &w->like.params;
    snprintf(key, sizeof key, "%.200s, %s, %d+%d @ d%d, KV %s, batch %d, threads %d", p->placement,
             p->vram ? p->vram : "all", c->n_prompt, c->n_gen, c->depth, p->kv, p->batch,
             p->threads);
    json_object_set(plans, key, plan);
}

/* Devices that a name of --device stands for: "emu:2" are two, "cuda:0,2" as well. */
static int count_devices(const char *name)
{
    int n = 1;
    if (!name) return 0;
    if (strncmp(name, "emu:", 4) == 0) n = atoi(name + 4);
    for (const char *c = name; (c = strchr(c, ',')); c++)
        n++;
    return n < TN_ENGINE_DEVICES ? n : TN_ENGINE_DEVICES;
}

/* What the planner says about a cell under the parameters of now; the plan goes into the report. */
static tn_status plan_cell(sweep *w, const tn_bench_cell *cell, const char *hardware,
                           tn_bench_planned *out, tn_error *err)
{
    const tn_bench_params *p = &w->like.params;
    const tn_bench_place place = {.model = w->source.name,
                                  .hardware = hardware,
                                  .placement = p->placement,
                                  .vram = p->vram,
                                  .kv = p->kv,
                                  .threads = p->threads,
                                  .batch = p->batch,
                                  .n_devices = count_devices(w->set->device),
                                  .n_ctx = tokens_of_all(w)};
    const tn_bench_cell whole = completed(w, cell);
    const tn_status s = tn_bench_place_plan(&place, &whole, out, err);
    if (!s) note_plan(w, &whole, out->plan);
    return s;
}

static void forget_placed(sweep *w)
{
    tn_context_free(w->ctx);
    w->ctx = NULL;
    close_model(w);
    tn_bench_planned_free(&w->placed);
    w->source.plan = NULL;
    w->predicted[0] = w->predicted[1] = NAN;
}

/* Opens model and context as planned, unless they are open so. Takes the plan. */
static tn_status open_placed(sweep *w, tn_bench_planned *planned, tn_error *err)
{
    if (w->placed.layout && strcmp(w->placed.layout, planned->layout) == 0) {
        tn_bench_planned_free(planned);
        return TN_OK;
    }
    forget_placed(w);
    w->placed = *planned;
    w->source.plan = w->placed.placement;
    const tn_status s = open_model(w, err);
    if (s)
        forget_placed(w);
    else
        make_context(w);
    return s;
}

static void run_placed_cell(sweep *w, const tn_bench_cell *c)
{
    tn_error err = {0};
    tn_bench_planned planned;
    const char *hardware = w->set->hardware ? w->set->hardware : w->profile;
    tn_status s = plan_cell(w, c, hardware, &planned, &err);
    const double prompt = planned.prompt_rate, generated = planned.gen_rate;
    if (!s) s = open_placed(w, &planned, &err);
    w->predicted[0] = s ? NAN : prompt;
    w->predicted[1] = s ? NAN : generated;
    if (s)
        finish_rows(w, add_rows(w, c), s, &err);
    else
        run_cell(w, c);
}

/* Every placement on the engine's device. The model is opened anew where the plan is another. */
static void run_placed(sweep *w)
{
    const tn_bench_settings *set = w->set;
    const size_t n_kv = set->kv.n, n_batch = set->batch.n, n = n_kv * n_batch * w->n_cells;
    for (size_t i = 0; i < set->placements.n * n && !w->code; i++) {
        const size_t cell = i % w->n_cells, k = i / w->n_cells;
        if (cell == 0) forget_placed(w);
        w->like.params.batch = set->batch.at[k % n_batch];
        w->like.params.kv = set->kv.at[k / n_batch % n_kv];
        w->like.params.placement = set->placements.at[k / n_batch / n_kv];
        run_placed_cell(w, &w->cells[cell]);
    }
    forget_placed(w);
}

/* What the library says about the machine and itself, once. */
static void add_engine_json(sweep *w)
{
    char *text;
    json_t *environment = w->report.environment;
    if (json_object_get(environment, "engine")) return;
    if (tn_env_json(w->engine, &text, NULL)) return;
    json_t *o = json_loads(text, 0, NULL);
    tn_string_free(w->engine, text);
    if (!o) return;
    json_t *flags = json_object_get(json_object_get(o, "build"), "flags");
    if (flags) json_object_set(json_object_get(environment, "build"), "flags", flags);
    const json_t *device = json_array_get(json_object_get(o, "devices"), 0);
    if (device && json_is_false(json_object_get(device, "emulated")))
        tn_bench_gpu_use(json_string_value(json_object_get(device, "name")),
                         (int)json_integer_value(json_object_get(device, "index")));
    json_object_set_new(environment, "engine", o);
}

static tn_status open_engine(sweep *w, const char *vram, tn_error *err)
{
    const bool best = strcmp(w->like.params.isa, "best") == 0;
    uint64_t bytes = 0;
    if (vram) tn_bench_size_read(vram, &bytes);
    tn_engine_options opt = {.struct_size = sizeof opt,
                             .threads = w->like.params.threads,
                             .device = w->set->device,
                             .throttle = w->set->throttle * 1e9,
                             .isa = best ? NULL : w->like.params.isa};
    for (int i = 0; i < count_devices(w->set->device); i++)
        opt.vram_limits[i] = bytes;
    return tn_engine_new(&w->engine, &opt, err);
}

static void close_engine(sweep *w)
{
    tn_engine_free(w->engine);
    w->engine = NULL;
}

/* What the planner plans with, unless it is for another machine. */
static void calibrate(sweep *w)
{
    char *text;
    if (tn_engine_calibrate(w->engine, false, &text, NULL)) return;
    w->profile = tn_bench_strdup(text);
    json_object_set_new(w->report.environment, "calibration", json_loads(text, 0, NULL));
    tn_string_free(w->engine, text);
}

/* NaN: not known. */
static void set_device_peaks(sweep *w, double peak, double f16)
{
    w->device_peak = peak;
    w->device_f16 = f16;
    json_object_set_new(w->report.environment, "device_read_peak_gb_per_second",
                        tn_bench_number(peak * 1e-9));
    json_object_set_new(w->report.environment, "device_f16_tflop_per_second",
                        tn_bench_number(f16 * 1e-12));
}

/* Measures the device's limits, and the machine for the planner; before any model takes memory of
 * it. A failure shows when the engine opens for the rows. */
static void measure_device(sweep *w)
{
    free(w->profile);
    w->profile = NULL;
    set_device_peaks(w, NAN, NAN);
    if (!w->set->device || open_engine(w, NULL, NULL)) return;
    tick(w, "measuring the device");
    double peak = NAN, f16 = NAN;
    tn_engine_device_read(w->engine, &peak, NULL);
    tn_engine_device_multiply(w->engine, &f16, NULL);
    set_device_peaks(w, peak, f16);
    if (w->set->placements.n && !w->set->hardware) calibrate(w);
    close_engine(w);
}

/* The rules of --place, where no plan makes them. */
static void take_places(sweep *w)
{
    w->source.places = (const char *const *)w->set->places.at;
    w->source.n_places = w->set->places.n;
}

static void run_loads(sweep *w)
{
    for (size_t i = 0; i < w->set->load.n && !w->code; i++) {
        w->like.params.load = w->set->load.at[i];
        if (w->set->placements.n)
            run_placed(w);
        else
            run_model(w);
    }
}

static void fail_engine(sweep *w, tn_status status, const tn_error *err)
{
    const tn_bench_words *placements = &w->set->placements;
    for (size_t i = 0; i < (placements->n ? placements->n : 1); i++) {
        if (placements->n) w->like.params.placement = placements->at[i];
        fail_all_cells(w, status, err);
    }
}

static void run_engine(sweep *w, const char *vram)
{
    tn_error err = {0};
    w->like.params.vram = vram;
    w->like.params.load = w->set->load.at[0];
    w->like.params.kv = w->set->kv.at[0];
    w->like.params.batch = w->set->batch.at[0];
    w->like.params.placement = w->set->device ? w->places : NULL;
    const tn_status s = open_engine(w, vram, &err);
    w->like.threads_used = s ? w->like.params.threads : tn_engine_threads(w->engine);
    w->like.isa_used = s ? NULL : tn_bench_isa_name(tn_engine_isa(w->engine));
    take_places(w);
    if (s) {
        fail_engine(w, s, &err);
        return;
    }
    add_engine_json(w);
    if (!w->label) w->label = tn_bench_strdup(tn_engine_label(w->engine));
    w->like.label = w->label;
    run_loads(w);
    close_engine(w);
}

/* ---- predictions ----------------------------------------------------------------------------- */

static void predict(sweep *w, const tn_bench_cell *cell)
{
    const size_t first = add_rows(w, cell);
    tn_error err = {0};
    tn_bench_planned planned;
    const tn_status s = plan_cell(w, cell, w->set->hardware, &planned, &err);
    for (size_t i = first; !s && i < w->report.rows.n; i++) {
        tn_bench_row *row = &w->report.rows.at[i];
        const bool prompt = row->what == TN_BENCH_PROMPT || row->what == TN_BENCH_PAIR_PROMPT;
        tn_bench_samples_add(&row->rate, prompt ? planned.prompt_rate : planned.gen_rate);
    }
    tn_bench_planned_free(&planned);
    finish_rows(w, first, s, &err);
}

/* Every placement at every device memory and depth, from the header alone. */
static void run_placements(sweep *w)
{
    const tn_bench_settings *set = w->set;
    w->like.label = "simulated";
    w->like.params.load = set->load.at[0];
    w->like.params.isa = set->isa.at[0];
    const size_t n_vram = set->vram.n ? set->vram.n : 1, n_kv = set->kv.n, n_batch = set->batch.n;
    const size_t n = set->threads.n * n_kv * n_batch * n_vram * set->placements.n;
    for (size_t i = 0; i < n * w->n_cells && !w->code; i++) {
        size_t k =
            i / w->n_cells; /* digits of a number in mixed radix, the last changes quickest */
        w->like.params.placement = set->placements.at[k % set->placements.n];
        k /= set->placements.n;
        w->like.params.vram = set->vram.n ? set->vram.at[k % n_vram] : NULL;
        k /= n_vram;
        w->like.params.batch = set->batch.at[k % n_batch];
        k /= n_batch;
        w->like.params.kv = set->kv.at[k % n_kv];
        w->like.params.threads = w->like.threads_used = set->threads.at[k / n_kv];
        predict(w, &w->cells[i % w->n_cells]);
    }
}

static void run_source(sweep *w, const char *name, bool file)
{
    const tn_bench_settings *set = w->set;
    tn_bench_source_init(&w->source, name, file, w->report.models);
    if (set->placements.n && !set->device) {
        run_placements(w);
        return;
    }
    const size_t n_vram = set->device && set->vram.n ? set->vram.n : 1;
    for (size_t i = 0; i < set->isa.n * set->threads.n && !w->code; i++) {
        w->like.params.isa = set->isa.at[i / set->threads.n];
        w->like.params.threads = set->threads.at[i % set->threads.n];
        measure_device(w);
        for (size_t v = 0; v < n_vram && !w->code; v++)
            run_engine(w, set->device && set->vram.n ? set->vram.at[v] : NULL);
    }
}

/* What the threads read at most, for every number and size that was asked about. */
static void add_peaks_json(sweep *w)
{
    json_t *list = json_array();
    for (size_t i = 0; i < w->peaks.n; i++) {
        const tn_bench_peak *p = &w->peaks.at[i];
        json_array_append_new(list,
                              json_pack("{s:i,s:f,s:o}", "threads", p->threads, "bytes", p->bytes,
                                        "gb_per_second", tn_bench_number(p->per_second * 1e-9)));
    }
    json_object_set_new(w->report.environment, "read_peak", list);
    free(w->peaks.at);
}

int tn_bench_sweep(const tn_bench_settings *set, int argc, char **argv)
{
    sweep w = {.set = set, .predicted = {NAN, NAN}};
    const size_t n_models = set->models.n + set->synthetic.n;
    if ((w.code = tn_bench_report_open(&w.report, set))) return w.code;
    tn_bench_env_fill(w.report.environment, argc, argv);
    set_device_peaks(&w, NAN, NAN);
    w.cells = tn_bench_cells_make(set, &w.n_cells);
    w.places = tn_bench_words_join(&set->places, "device");
    tn_bench_estimate_init(&w.estimate, set, w.cells, w.n_cells, n_models);
    for (size_t m = 0; m < n_models && !w.code; m++) {
        const bool file = m < set->models.n;
        w.like.model = m;
        run_source(&w, file ? set->models.at[m] : set->synthetic.at[m - set->models.n], file);
    }
    if (!w.code && w.n_good == 0 && w.failed) {
        tn_bench_say("%s", w.failure);
        w.code = w.failed;
    }
    free(w.cells);
    free(w.profile);
    add_peaks_json(&w);
    const int drawn = set->svg ? tn_bench_svg_write(set->svg, &w.report) : TN_EXIT_OK;
    const int written = tn_bench_report_close(&w.report);
    free(w.places); /* rows named it */
    free(w.label);
    return w.code ? w.code : written ? written : drawn;
}
