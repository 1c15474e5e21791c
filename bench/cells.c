#include "cells.h"

#include "term.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_depth(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

tn_bench_cell *tn_bench_cells_make(const tn_bench_settings *set, size_t *n)
{
    const size_t per_depth = set->prompt.n + set->generate.n + set->pairs.n;
    tn_bench_cell *cells = tn_bench_alloc(set->depth.n * per_depth * sizeof *cells);
    int32_t *depths = tn_bench_alloc(set->depth.n * sizeof *depths);
    memcpy(depths, set->depth.at, set->depth.n * sizeof *depths);
    qsort(depths, set->depth.n, sizeof *depths, by_depth);
    *n = 0;
    for (size_t d = 0; d < set->depth.n; d++) {
        if (d > 0 && depths[d] == depths[d - 1]) continue;
        for (size_t i = 0; i < set->prompt.n; i++)
            if (set->prompt.at[i])
                cells[(*n)++] = (tn_bench_cell){depths[d], set->prompt.at[i], 0, false};
        for (size_t i = 0; i < set->generate.n; i++)
            if (set->generate.at[i])
                cells[(*n)++] = (tn_bench_cell){depths[d], 0, set->generate.at[i], false};
        for (size_t i = 0; i < set->pairs.n; i++) {
            tn_bench_ints two = {0};
            tn_bench_ints_read(&two, set->pairs.at[i], 1, INT32_MAX);
            cells[(*n)++] = (tn_bench_cell){depths[d], two.at[0], two.at[1], true};
            free(two.at);
        }
    }
    free(depths);
    return cells;
}

int64_t tn_bench_cell_tokens(const tn_bench_cell *c)
{
    return (int64_t)c->depth + c->n_prompt + c->n_gen;
}

int64_t tn_bench_largest_cell(const tn_bench_cell *cells, size_t n, int64_t limit)
{
    int64_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const int64_t tokens = tn_bench_cell_tokens(&cells[i]);
        if (tokens > most && tokens <= limit) most = tokens;
    }
    return most;
}

/* ---- how long -------------------------------------------------------------------------------- */

static double cell_seconds(const tn_bench_estimate *e, const tn_bench_cell *c)
{
    /* Most warm-ups agree after three or four runs; with peers every run of ours is done twice, and
     * theirs take about as long again with loading and their own warm-up. */
    const int warm = e->set->warmup < 4 ? e->set->warmup : 4;
    const double per_run = e->set->peers.n && !c->pair ? 2 + 3 * (double)e->set->peers.n : 1;
    return (warm + e->set->runs * per_run) *
           (c->n_prompt / e->prompt_rate + c->n_gen / e->gen_rate);
}

/* The cells of a context from number `from` on, and the walk between them. */
static double block_seconds(const tn_bench_estimate *e, size_t from)
{
    double seconds = 0;
    for (size_t i = from; i < e->n_cells; i++) {
        const int32_t before = i ? e->cells[i - 1].depth : 0;
        seconds += cell_seconds(e, &e->cells[i]) + (e->cells[i].depth - before) / e->prompt_rate;
    }
    return seconds;
}

void tn_bench_estimate_init(tn_bench_estimate *e, const tn_bench_settings *set,
                            const tn_bench_cell *cells, size_t n, size_t n_models)
{
    *e = (tn_bench_estimate){.set = set, .cells = cells, .n_cells = n, .begun = tn_bench_clock()};
    e->blocks_left =
        n_models * set->isa.n * set->threads.n * set->load.n * set->kv.n * set->batch.n;
    if (set->placements.n) e->blocks_left *= set->placements.n;
    if (set->device && set->vram.n) e->blocks_left *= set->vram.n;
    e->prompt_rate = e->gen_rate = INFINITY;
}

void tn_bench_estimate_model(tn_bench_estimate *e, double bytes_per_token)
{
    /* A first guess: 15 GB/s in generation, and ten times as many tokens of a prompt. */
    e->gen_rate = 15e9 / fmax(bytes_per_token, 1e6);
    e->prompt_rate = 10 * e->gen_rate;
    if (e->told) return;
    e->told = true;
    double done, total;
    char text[32];
    tn_bench_estimate_now(e, &done, &total);
    if (tn_bench_err_is_terminal() && total - done > 10)
        tn_bench_say("this may take about %s", tn_bench_duration(total - done, text));
}

static void learn(double *rate, const tn_bench_samples *s)
{
    const double median = tn_bench_quantile(s->at, s->n, 0.5);
    if (median > 0) *rate = median;
}

void tn_bench_estimate_learn(tn_bench_estimate *e, const tn_bench_row *row)
{
    if (row->what == TN_BENCH_PROMPT || row->what == TN_BENCH_PAIR_PROMPT)
        learn(&e->prompt_rate, &row->rate);
    if (row->what == TN_BENCH_GENERATE) learn(&e->gen_rate, &row->rate);
    if (row->what == TN_BENCH_PAIR_PROMPT) learn(&e->gen_rate, &row[1].rate);
}

void tn_bench_estimate_cell_begins(tn_bench_estimate *e, const tn_bench_cell *c)
{
    if (c == e->cells && e->blocks_left) e->blocks_left--;
    e->next = (size_t)(c - e->cells) + 1;
    e->cell_begun = tn_bench_clock();
    e->cell_seconds = cell_seconds(e, c);
}

void tn_bench_estimate_cell_ends(tn_bench_estimate *e)
{
    e->cell_seconds = 0;
}

void tn_bench_estimate_skip(tn_bench_estimate *e, size_t n)
{
    e->blocks_left -= n < e->blocks_left ? n : e->blocks_left;
}

void tn_bench_estimate_now(const tn_bench_estimate *e, double *done, double *total)
{
    const double now = tn_bench_clock();
    *done = now - e->begun;
    double left = e->cell_seconds ? fmax(0, e->cell_seconds - (now - e->cell_begun)) : 0;
    if (isfinite(e->prompt_rate)) {
        if (e->next) left += block_seconds(e, e->next);
        left += (double)e->blocks_left * block_seconds(e, 0);
    }
    *total = *done + left;
}
