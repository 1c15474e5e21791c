#include "run.h"

#include "peer.h"
#include "stats.h"
#include "term.h"
#include "watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one run --------------------------------------------------------------------------------- */

/* A part of a run: prompt or generation. Bytes are sums over all runs. */
typedef struct part {
    double seconds;
    double weight_bytes, kv_bytes, tokens;
    double hops, join_wait_s, host_bytes, device_bytes;
    double device_memory; /* the most that was in use */
} part;

typedef struct timing {
    part prompt, generate;
    double ttft_s;
    double *token_s; /* [n_gen] */
} timing;

/* Adds what the library counted since the last reset. */
static void count_bytes(const tn_context *ctx, part *p, int32_t n)
{
    tn_stats stats = {.struct_size = sizeof stats};
    if (tn_context_stats(ctx, &stats, NULL)) return;
    p->weight_bytes += (double)(stats.host.weight_bytes + stats.device.weight_bytes);
    p->kv_bytes += (double)(stats.host.kv_bytes + stats.device.kv_bytes);
    p->host_bytes += (double)(stats.host.weight_bytes + stats.host.kv_bytes);
    p->device_bytes += (double)(stats.device.weight_bytes + stats.device.kv_bytes);
    p->device_memory = fmax(p->device_memory, (double)stats.device_bytes_held);
    p->hops += (double)stats.hops;
    p->join_wait_s += stats.join_wait_s;
    p->tokens += n;
}

static tn_status run_prompt(const tn_bench_run *run, int32_t n, timing *t, tn_error *err)
{
    tn_context_stats_reset(run->ctx);
    const tn_status s = tn_bench_prompt(run->ctx, run->tokens, n, &t->prompt.seconds, err);
    if (s) return s;
    const double start = tn_bench_clock();
    const float *logits = tn_context_logits(run->ctx);
    /* The comparison always holds; it keeps the search from being left out. */
    if (logits && tn_bench_argmax(logits, run->source->info.n_vocab) >= 0)
        t->ttft_s = t->prompt.seconds + (tn_bench_clock() - start);
    count_bytes(run->ctx, &t->prompt, n);
    return TN_OK;
}

static tn_status run_generate(const tn_bench_run *run, int32_t n, timing *t, tn_error *err)
{
    tn_context_stats_reset(run->ctx);
    const tn_status s =
        tn_bench_generate(run->ctx, run->tokens, n, &t->generate.seconds, t->token_s, err);
    if (!s) count_bytes(run->ctx, &t->generate, n);
    return s;
}

/* From the row's depth, and back. */
static tn_status run_once(const tn_bench_run *run, const tn_bench_row *row, timing *t,
                          tn_error *err)
{
    tn_error ignored;
    tn_status s = TN_OK;
    if (row->what != TN_BENCH_GENERATE) s = run_prompt(run, row->n_prompt, t, err);
    if (!s && row->what != TN_BENCH_PROMPT) s = run_generate(run, row->n_gen, t, err);
    const tn_status back =
        tn_bench_walk(run->ctx, run->tokens, row->params.depth, s ? &ignored : err);
    return s ? s : back;
}

static void keep(tn_bench_row *row, tn_bench_row *generated, const timing *t)
{
    if (row->what != TN_BENCH_GENERATE) {
        tn_bench_samples_add(&row->rate, row->n_prompt / t->prompt.seconds);
        tn_bench_samples_add(&row->ttft_s, t->ttft_s);
    }
    if (!generated) return;
    tn_bench_samples_add(&generated->rate, generated->n_gen / t->generate.seconds);
    for (int32_t i = 0; i < generated->n_gen; i++)
        tn_bench_samples_add(&generated->token_s, t->token_s[i]);
}

/* ---- many ------------------------------------------------------------------------------------ */

static void tick(const tn_bench_run *run, const tn_bench_row *row, const char *phase, int i, int n)
{
    char name[64], what[160];
    if (!run->tick) return;
    snprintf(what, sizeof what, "%s, %s %d of %d", tn_bench_test_name(row, name), phase, i, n);
    run->tick(run->user, what);
}

/* Runs until the last three agree, at most as often as the settings say and no longer than
 * `patience` seconds once one run is done. */
static tn_status warm_up(const tn_bench_run *run, tn_bench_row *row, timing *t, tn_error *err)
{
    const double start = tn_bench_clock(), patience = 60;
    tn_bench_samples seconds = {0};
    tn_status s = TN_OK;
    while (!s && (int)seconds.n < run->set->warmup && !row->settled &&
           (seconds.n == 0 || tn_bench_clock() - start < patience)) {
        tick(run, row, "warm-up", (int)seconds.n + 1, run->set->warmup);
        s = run_once(run, row, t, err);
        tn_bench_samples_add(&seconds, t->prompt.seconds + t->generate.seconds);
        row->settled = tn_bench_settled(seconds.at, seconds.n, 0.02);
    }
    row->warmup_runs = (int32_t)seconds.n;
    free(seconds.at);
    return s;
}

static tn_status ask_peer(const tn_bench_run *run, const tn_bench_row *row, double *rate,
                          tn_error *err)
{
    const tn_bench_peer_test test = {.model = run->source->name,
                                     .kv = row->params.kv,
                                     .n_prompt = row->n_prompt,
                                     .n_gen = row->n_gen,
                                     .depth = row->params.depth,
                                     .threads = row->threads_used,
                                     .batch = row->params.batch,
                                     .no_depth =
                                         row->params.depth && !tn_bench_peer_has_depth(row->peer)};
    if (!run->source->file) return tn_bench_fail(err, TN_EUNSUPPORTED, "a peer needs a model file");
    const char *why = tn_bench_peer_cannot(row->peer, &test);
    if (why) return tn_bench_fail(err, TN_EUNSUPPORTED, "%s", why);
    char *text = NULL, *command = tn_bench_peer_command(row->peer, &test);
    size_t len = 0;
    tn_status s = tn_bench_peer_run(command, &text, &len, err);
    if (!s) s = tn_bench_peer_parse(text, len, &test, rate, err);
    free(text);
    free(command);
    return s;
}

static tn_status run_peer(const tn_bench_run *run, tn_bench_row *row)
{
    tn_error err = {0};
    double rate = NAN;
    const tn_status s = ask_peer(run, row, &rate, &err);
    if (!s) tn_bench_samples_add(&row->rate, rate);
    if (s && s != TN_ECANCELED) row->error = tn_bench_strdup(err.msg);
    return s == TN_ECANCELED ? s : TN_OK;
}

/* The peers' turn; each brings its own warm-up. Then one run of ours that does not count, because
 * theirs have emptied the caches. */
static tn_status run_peers(const tn_bench_run *run, const tn_bench_row *row, tn_bench_row *peers,
                           size_t n_peers, timing *t, tn_error *err)
{
    tn_status s = TN_OK;
    for (size_t i = 0; i < n_peers && !s; i++)
        if (!peers[i].error) s = run_peer(run, &peers[i]);
    if (s) return tn_bench_fail(err, s, "interrupted");
    return n_peers ? run_once(run, row, t, err) : TN_OK;
}

static tn_status measure(const tn_bench_run *run, tn_bench_row *rows, size_t n_rows, timing *t,
                         tn_error *err)
{
    const bool pair = rows->what == TN_BENCH_PAIR_PROMPT;
    const size_t n_peers = pair ? 0 : n_rows - 1;
    tn_bench_row *generated = pair ? &rows[1] : rows->what == TN_BENCH_GENERATE ? rows : NULL;
    tn_status s = TN_OK;
    for (int32_t i = 0; i < run->set->runs && !s; i++) {
        tick(run, rows, "run", i + 1, run->set->runs);
        s = run_peers(run, rows, rows + 1, n_peers, t, err);
        if (!s) s = run_once(run, rows, t, err);
        if (!s) keep(rows, generated, t);
    }
    return s;
}

/* ---- what the row says beside its samples ---------------------------------------------------- */

/* What the host reads again and again: for a prompt the bytes of one batch. */
static double working_set(const tn_bench_row *row, const part *p)
{
    const double per_token = p->host_bytes / p->tokens;
    if (row->n_prompt == 0 || row->what == TN_BENCH_PAIR_GENERATE) return per_token;
    return per_token * fmin(row->n_prompt, row->params.batch);
}

/* Seconds that a side needs for a token's bytes at its limit. */
static double least_seconds(const tn_bench_side *s)
{
    return s->bytes > 0 ? s->bytes / (1e9 * s->gb_per_second) : 0;
}

static void set_limit(const tn_bench_run *run, tn_bench_row *row, const part *p)
{
    row->host = (tn_bench_side){p->host_bytes / p->tokens, NAN};
    row->device = (tn_bench_side){p->device_bytes / p->tokens, 1e-9 * run->device_peak};
    if (row->host.bytes > 0)
        row->host.gb_per_second =
            1e-9 * tn_bench_peaks_find(run->peaks, row->threads_used, working_set(row, p));
    const double host = least_seconds(&row->host), device = least_seconds(&row->device);
    if (isnan(host) || isnan(device)) return;
    row->peak_gb_per_second = 1e-9 * (row->host.bytes + row->device.bytes) / fmax(host, device);
}

static void set_bytes(const tn_bench_run *run, tn_bench_row *row, const part *p)
{
    if (!(p->tokens > 0 && p->weight_bytes > 0)) return;
    row->weight_bytes = p->weight_bytes / p->tokens;
    row->kv_bytes = p->kv_bytes / p->tokens;
    row->activation_bytes = (double)run->source->info.activation_bytes;
    row->hops = p->hops / p->tokens;
    row->join_wait_s = p->join_wait_s / p->tokens;
    if (p->device_memory > 0) row->device_memory_bytes = p->device_memory;
    set_limit(run, row, p);
}

/* Of a prompt, which arithmetic limits. */
static void set_arithmetic(const tn_bench_run *run, tn_bench_row *row)
{
    if (run->source->info.prompt_flop) row->flop = (double)run->source->info.prompt_flop;
    row->f16_flop_per_second = run->device_f16;
}

static void set_watch(tn_bench_row *row, const tn_bench_watch *w)
{
    char why[300];
    row->watch = tn_bench_watch_json(w);
    row->peak_rss_bytes = row->peer ? NAN : tn_bench_peak_rss();
    if (tn_bench_watch_verdict(w, why, sizeof why)) row->disturbed = tn_bench_strdup(why);
}

static void finish(const tn_bench_run *run, tn_bench_row *rows, size_t n_rows, const timing *t,
                   const tn_bench_watch *w)
{
    const bool pair = rows->what == TN_BENCH_PAIR_PROMPT;
    for (size_t i = 0; i < n_rows; i++)
        set_watch(&rows[i], w); /* first: the test of the memory's speed takes memory itself */
    set_bytes(run, &rows[0], rows->what == TN_BENCH_GENERATE ? &t->generate : &t->prompt);
    if (rows->what != TN_BENCH_GENERATE) set_arithmetic(run, &rows[0]);
    if (pair) {
        set_bytes(run, &rows[1], &t->generate);
        rows[1].warmup_runs = rows->warmup_runs;
        rows[1].settled = rows->settled;
    }
    for (size_t i = 0; i < n_rows; i++)
        if (rows[i].peer)
            rows[i].against = tn_bench_compare_samples(rows[i].rate.at, rows[i].rate.n,
                                                       rows[0].rate.at, rows[0].rate.n);
}

tn_status tn_bench_run_cell(const tn_bench_run *run, tn_bench_row *rows, size_t n_rows,
                            tn_error *err)
{
    timing t = {0};
    t.token_s = tn_bench_alloc((size_t)rows->n_gen * sizeof *t.token_s);
    tn_bench_peak_rss_reset();
    tn_status s = warm_up(run, rows, &t, err);
    if (!s) {
        const tn_bench_moment before = tn_bench_look();
        s = measure(run, rows, n_rows, &t, err);
        const tn_bench_moment after = tn_bench_look();
        const tn_bench_watch w = tn_bench_watch_make(&before, &after);
        if (!s) finish(run, rows, n_rows, &t, &w);
    }
    free(t.token_s);
    return s;
}

/* ---- loading --------------------------------------------------------------------------------- */

static tn_status prepare_cache(const tn_bench_source *source, bool cold, tn_error *err)
{
    return cold ? tn_bench_source_cool(source, err) : tn_bench_source_warm(source, err);
}

/* What plain reading of the files reaches, of two passes. */
static tn_status set_load_limit(const tn_bench_source *source, tn_bench_row *row, bool cold,
                                tn_error *err)
{
    tn_status s = TN_OK;
    for (int i = 0; i < 2 && !s; i++)
        if (!(s = prepare_cache(source, cold, err)))
            row->peak_gb_per_second =
                fmax(row->peak_gb_per_second,
                     1e-9 * tn_bench_source_read_rate(source, row->threads_used));
    return s;
}

tn_status tn_bench_run_load(const tn_bench_run *run, tn_engine *engine, tn_model **model,
                            tn_bench_source *source, tn_bench_row *row, tn_error *err)
{
    const bool cold = row->what == TN_BENCH_LOAD_COLD;
    tn_model_close(*model);
    *model = NULL;
    tn_status s = set_load_limit(source, row, cold, err);
    tn_bench_peak_rss_reset();
    const tn_bench_moment before = tn_bench_look();
    for (int32_t i = 0; i < run->set->runs && !s; i++) {
        tick(run, row, "run", i + 1, run->set->runs);
        tn_model_close(*model);
        *model = NULL;
        s = prepare_cache(source, cold, err);
        const double cached = tn_bench_source_cached(source);
        row->cached = cold ? fmax(row->cached, cached) : fmin(row->cached, cached);
        const double start = tn_bench_clock();
        if (!s) s = tn_bench_source_open(source, engine, row->params.load, model, err);
        if (!s)
            tn_bench_samples_add(&row->rate,
                                 source->file_bytes * 1e-9 / (tn_bench_clock() - start));
    }
    const tn_bench_moment after = tn_bench_look();
    const tn_bench_watch w = tn_bench_watch_make(&before, &after);
    if (!s) set_watch(row, &w);
    /* What follows needs the model, also after a row that could not be measured. */
    tn_error ignored;
    if (!*model) {
        const tn_status again =
            tn_bench_source_open(source, engine, row->params.load, model, s ? &ignored : err);
        if (!s) s = again;
    }
    return s;
}
