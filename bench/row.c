#include "row.h"

#include "term.h"

#include <math.h>
#include <stdlib.h>

tn_bench_row *tn_bench_rows_add(tn_bench_rows *rows, const tn_bench_row *like)
{
    rows->at = tn_bench_realloc(rows->at, (rows->n + 1) * sizeof *rows->at);
    tn_bench_row *row = &rows->at[rows->n++];
    *row = *like;
    row->rate = row->ttft_s = row->token_s = (tn_bench_samples){0};
    row->weight_bytes = row->kv_bytes = row->activation_bytes = NAN;
    row->peak_gb_per_second = row->peak_rss_bytes = row->device_memory_bytes = NAN;
    row->hops = row->join_wait_s = row->predicted = row->cached = NAN;
    row->host = row->device = (tn_bench_side){NAN, NAN};
    row->flop = row->f16_flop_per_second = NAN;
    row->against = (tn_bench_ratio){NAN, NAN, NAN, NAN};
    row->warmup_runs = 0;
    row->settled = false;
    row->disturbed = row->error = NULL;
    row->watch = NULL;
    if (!row->label) row->label = "measured";
    if (!row->engine) row->engine = "tenon";
    return row;
}

void tn_bench_rows_cut(tn_bench_rows *rows, size_t n)
{
    while (rows->n > n) {
        tn_bench_row *row = &rows->at[--rows->n];
        free(row->rate.at);
        free(row->ttft_s.at);
        free(row->token_s.at);
        free(row->disturbed);
        free(row->error);
        json_decref(row->watch);
    }
}

void tn_bench_rows_free(tn_bench_rows *rows)
{
    tn_bench_rows_cut(rows, 0);
    free(rows->at);
    *rows = (tn_bench_rows){0};
}

bool tn_bench_is_load(const tn_bench_row *row)
{
    return row->what == TN_BENCH_LOAD_COLD || row->what == TN_BENCH_LOAD_WARM;
}

const char *tn_bench_test_name(const tn_bench_row *row, char text[64])
{
    int n = 0;
    switch (row->what) {
    case TN_BENCH_PROMPT: n = snprintf(text, 64, "pp%d", row->n_prompt); break;
    case TN_BENCH_GENERATE: n = snprintf(text, 64, "tg%d", row->n_gen); break;
    case TN_BENCH_PAIR_PROMPT:
        n = snprintf(text, 64, "pp%d+tg%d (pp)", row->n_prompt, row->n_gen);
        break;
    case TN_BENCH_PAIR_GENERATE:
        n = snprintf(text, 64, "pp%d+tg%d (tg)", row->n_prompt, row->n_gen);
        break;
    case TN_BENCH_LOAD_COLD: snprintf(text, 64, "load (cold)"); return text;
    case TN_BENCH_LOAD_WARM: snprintf(text, 64, "load (warm)"); return text;
    }
    if (row->params.depth) snprintf(text + n, 64 - (size_t)n, " @ d%d", row->params.depth);
    return text;
}

double tn_bench_gb_per_second(const tn_bench_row *row)
{
    const double rate = tn_bench_quantile(row->rate.at, row->rate.n, 0.5);
    return tn_bench_is_load(row) ? rate : rate * (row->weight_bytes + row->kv_bytes) * 1e-9;
}

double tn_bench_percent(const tn_bench_row *row)
{
    return 100 * tn_bench_gb_per_second(row) / row->peak_gb_per_second;
}

double tn_bench_tflop_per_second(const tn_bench_row *row)
{
    return tn_bench_quantile(row->rate.at, row->rate.n, 0.5) * row->flop * 1e-12;
}

double tn_bench_percent_f16(const tn_bench_row *row)
{
    return 100e12 * tn_bench_tflop_per_second(row) / row->f16_flop_per_second;
}

json_t *tn_bench_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *samples_json(const tn_bench_samples *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n; i++)
        json_array_append_new(list, tn_bench_number(s->at[i]));
    return list;
}

static void set_number(json_t *o, const char *key, double x)
{
    json_object_set_new(o, key, tn_bench_number(x));
}

static json_t *params_json(const tn_bench_row *row)
{
    json_t *o = json_object();
    json_object_set_new(o, "n_prompt", json_integer(row->n_prompt));
    json_object_set_new(o, "n_gen", json_integer(row->n_gen));
    json_object_set_new(o, "depth", json_integer(row->params.depth));
    json_object_set_new(o, "threads", json_integer(row->threads_used));
    json_object_set_new(o, "batch", json_integer(row->params.batch));
    json_object_set_new(o, "kv", json_string(row->params.kv));
    json_object_set_new(o, "isa", json_string(row->isa_used ? row->isa_used : row->params.isa));
    json_object_set_new(o, "load", json_string(row->params.load));
    const char *placement = row->params.placement, *vram = row->params.vram;
    json_object_set_new(o, "placement", json_string(placement ? placement : "host"));
    json_object_set_new(o, "vram", vram ? json_string(vram) : json_null());
    return o;
}

/* Percentiles of the times between tokens, in seconds; nulls where none were generated. */
static json_t *token_times_json(const tn_bench_samples *s)
{
    json_t *o = json_object();
    set_number(o, "p50", tn_bench_quantile(s->at, s->n, 0.50));
    set_number(o, "p95", tn_bench_quantile(s->at, s->n, 0.95));
    set_number(o, "p99", tn_bench_quantile(s->at, s->n, 0.99));
    set_number(o, "max", tn_bench_quantile(s->at, s->n, 1));
    return o;
}

static json_t *ratio_json(const tn_bench_ratio *r)
{
    json_t *o = json_object();
    set_number(o, "ratio", r->ratio);
    json_object_set_new(o, "ci95",
                        isfinite(r->low) ? json_pack("[f,f]", r->low, r->high) : json_null());
    set_number(o, "p", r->p);
    return o;
}

/* The percentage is of the time: what the side would need for its bytes at its limit. */
static json_t *side_json(const tn_bench_side *s, double rate)
{
    json_t *o = json_object();
    set_number(o, "bytes_per_token", s->bytes);
    set_number(o, "limit_gb_per_second", s->gb_per_second);
    set_number(o, "percent_of_limit", 100e-9 * s->bytes * rate / s->gb_per_second);
    return o;
}

json_t *tn_bench_row_json(const tn_bench_row *row)
{
    char name[64];
    const tn_bench_summary s = tn_bench_summarise(row->rate.at, row->rate.n);
    const bool load = tn_bench_is_load(row);
    json_t *o = json_object();
    json_object_set_new(o, "model", json_integer((json_int_t)row->model));
    json_object_set_new(o, "test", json_string(tn_bench_test_name(row, name)));
    json_object_set_new(o, "parameters", params_json(row));
    json_object_set_new(o, "engine", json_string(row->engine));
    json_object_set_new(o, "label", json_string(row->label));
    json_object_set_new(o, "unit", json_string(load ? "GB/s" : "tok/s"));
    set_number(o, "tokens_per_second", load ? NAN : s.median);
    set_number(o, "median", s.median);
    set_number(o, "mad", s.mad);
    json_object_set_new(o, "ci95",
                        isfinite(s.low) ? json_pack("[f,f]", s.low, s.high) : json_null());
    set_number(o, "min", s.min);
    set_number(o, "max", s.max);
    json_object_set_new(o, "samples", samples_json(&row->rate));
    set_number(o, "time_to_first_token", tn_bench_quantile(row->ttft_s.at, row->ttft_s.n, 0.5));
    json_object_set_new(o, "time_to_first_token_samples", samples_json(&row->ttft_s));
    json_object_set_new(o, "token_seconds", token_times_json(&row->token_s));
    set_number(o, "weight_bytes_per_token", row->weight_bytes);
    set_number(o, "kv_bytes_per_token", row->kv_bytes);
    set_number(o, "activation_bytes_per_token", row->activation_bytes);
    json_object_set_new(o, "host", side_json(&row->host, s.median));
    json_object_set_new(o, "device", side_json(&row->device, s.median));
    set_number(o, "hops_per_token", row->hops);
    set_number(o, "join_wait_seconds_per_token", row->join_wait_s);
    set_number(o, "gb_per_second", tn_bench_gb_per_second(row));
    set_number(o, "limit_gb_per_second", row->peak_gb_per_second);
    set_number(o, "percent_of_limit", tn_bench_percent(row));
    set_number(o, "tflop_per_second", tn_bench_tflop_per_second(row));
    set_number(o, "device_f16_tflop_per_second", 1e-12 * row->f16_flop_per_second);
    set_number(o, "percent_of_device_f16", tn_bench_percent_f16(row));
    set_number(o, "peak_rss_bytes", row->peak_rss_bytes);
    set_number(o, "device_memory_bytes", row->device_memory_bytes);
    set_number(o, "page_cache_percent", 100 * row->cached);
    set_number(o, "predicted_tokens_per_second", row->predicted);
    set_number(o, "measured_over_predicted", s.median / row->predicted);
    json_object_set_new(o, "tenon_over_this", ratio_json(&row->against));
    json_object_set_new(o, "warmup_runs", json_integer(row->warmup_runs));
    json_object_set_new(o, "warmup_settled", json_boolean(row->settled));
    json_object_set_new(o, "disturbed", row->disturbed ? json_string(row->disturbed) : json_null());
    json_object_set_new(o, "watch", row->watch ? json_incref(row->watch) : json_null());
    json_object_set_new(o, "error", row->error ? json_string(row->error) : json_null());
    return o;
}
