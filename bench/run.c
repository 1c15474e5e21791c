#include "run.h"

#include "stats.h"
#include "term.h"

#include <math.h>
#include <stdlib.h>

/* One run from the row's depth, and back. Times are kept where the lists are not NULL. */
typedef struct timing {
    double prompt_s, gen_s, ttft_s;
    double *token_s; /* [n_gen] */
} timing;

static tn_status run_once(const tn_bench_run *run, const tn_bench_row *row, timing *t,
                          tn_error *err)
{
    const bool prompt = row->what != TN_BENCH_GENERATE;
    const bool generate = row->what != TN_BENCH_PROMPT;
    tn_status s = TN_OK;
    if (prompt) {
        s = tn_bench_prompt(run->ctx, run->tokens, row->n_prompt, &t->prompt_s, err);
        const double start = tn_bench_clock();
        const float *logits = s ? NULL : tn_context_logits(run->ctx);
        /* The comparison is always true; it keeps the search from being left out. */
        if (logits && tn_bench_argmax(logits, run->source->info.n_vocab) >= 0)
            t->ttft_s = t->prompt_s + (tn_bench_clock() - start);
    }
    if (!s && generate)
        s = tn_bench_generate(run->ctx, run->tokens, row->n_gen, &t->gen_s, t->token_s, err);
    tn_error ignored;
    const tn_status back =
        tn_bench_walk(run->ctx, run->tokens, row->params.depth, s ? &ignored : err);
    return s ? s : back;
}

static void keep(tn_bench_row *row, tn_bench_row *second, const timing *t)
{
    tn_bench_row *gen = second ? second : row->what == TN_BENCH_GENERATE ? row : NULL;
    if (row->what != TN_BENCH_GENERATE) {
        tn_bench_samples_add(&row->rate, row->n_prompt / t->prompt_s);
        tn_bench_samples_add(&row->ttft_s, t->ttft_s);
    }
    if (!gen) return;
    tn_bench_samples_add(&gen->rate, gen->n_gen / t->gen_s);
    for (int32_t i = 0; i < gen->n_gen; i++)
        tn_bench_samples_add(&gen->token_s, t->token_s[i]);
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
        s = run_once(run, row, t, err);
        tn_bench_samples_add(&seconds, t->prompt_s + t->gen_s);
        row->settled = tn_bench_settled(seconds.at, seconds.n, 0.02);
    }
    row->warmup_runs = (int32_t)seconds.n;
    free(seconds.at);
    return s;
}

tn_status tn_bench_run_cell(const tn_bench_run *run, tn_bench_row *row, tn_bench_row *second,
                            tn_error *err)
{
    timing t = {0};
    t.token_s = tn_bench_alloc((size_t)row->n_gen * sizeof *t.token_s);
    tn_status s = warm_up(run, row, &t, err);
    for (int32_t i = 0; i < run->set->runs && !s; i++) {
        s = run_once(run, row, &t, err);
        if (!s) keep(row, second, &t);
    }
    if (second) {
        second->warmup_runs = row->warmup_runs;
        second->settled = row->settled;
    }
    free(t.token_s);
    return s;
}
