/* A row of the report: one test under one set of parameters. */
#ifndef TN_BENCH_ROW_H
#define TN_BENCH_ROW_H

#include "measure.h"
#include "stats.h"

#include <jansson.h>

typedef enum tn_bench_what {
    TN_BENCH_PROMPT,      /* pp */
    TN_BENCH_GENERATE,    /* tg */
    TN_BENCH_PAIR_PROMPT, /* the two parts of --pg */
    TN_BENCH_PAIR_GENERATE,
    TN_BENCH_LOAD_COLD,
    TN_BENCH_LOAD_WARM
} tn_bench_what;

typedef struct tn_bench_params {
    int32_t threads; /* as asked for, 0 = default; the row's JSON has what was used */
    int32_t batch, depth;
    const char *kv, *isa, *load;  /* names as on the command line */
    const char *placement, *vram; /* NULL = all on the host; as much as there is */
} tn_bench_params;

/* What a side reads for a token, and the most it was seen to read. */
typedef struct tn_bench_side {
    double bytes, gb_per_second;
} tn_bench_side;

typedef struct tn_bench_row {
    size_t model; /* index */
    tn_bench_what what;
    int32_t n_prompt, n_gen;
    tn_bench_params params;
    int32_t threads_used;
    const char *isa_used; /* NULL = unknown */
    const char *peer;     /* another program's row: its command; NULL = ours */
    const char *engine;   /* its name, or "tenon" */
    const char *label;    /* "simulated", or what the engine calls its speeds: "measured",
                             "emulated", ... */

    tn_bench_samples rate;    /* tokens (load: 1e9 bytes) per second of each run */
    tn_bench_samples ttft_s;  /* time to first token */
    tn_bench_samples token_s; /* of every generated token of all runs */
    int32_t warmup_runs;
    bool settled; /* the warm-up ended because its runs agreed */

    double weight_bytes, kv_bytes; /* read per token, both sides; NaN = unknown, here and below */
    double activation_bytes;       /* read and written per token, mostly in caches */
    double hops, join_wait_s;      /* per token: moves between the sides, waiting for the other */
    tn_bench_side host, device;
    double flop;               /* with weights for a token of a prompt, see tn_model_info */
    double f16_flop_per_second; /* the most that the device was seen to multiply */
    double peak_gb_per_second; /* if each side read its part at its limit, both at the same time */
    double peak_rss_bytes, device_memory_bytes;
    double cached;          /* of a load: the part of the file that was in the page cache before it;
                               of all runs that part which fits the row's name least */
    double predicted;       /* tokens per second, by the plan that was carried out */
    tn_bench_ratio against; /* a peer's row: ours over theirs */
    char *disturbed;        /* why the row should not be trusted, NULL = nothing seen */
    json_t *watch;          /* what was seen, or NULL */
    char *error;            /* why there is nothing to report, NULL = there is */
} tn_bench_row;

typedef struct tn_bench_rows {
    tn_bench_row *at;
    size_t n;
} tn_bench_rows;

/* A copy of `like` without results, at the end. Valid until the next one. */
tn_bench_row *tn_bench_rows_add(tn_bench_rows *rows, const tn_bench_row *like);
/* Removes all but the first n. */
void tn_bench_rows_cut(tn_bench_rows *rows, size_t n);
void tn_bench_rows_free(tn_bench_rows *rows);

bool tn_bench_is_load(const tn_bench_row *row);
/* "pp512", "tg128 @ d4096", "pp512+tg128 (tg)", "load (cold)". Returns text. */
const char *tn_bench_test_name(const tn_bench_row *row, char text[64]);
/* GB/s = 1e9 bytes per second at the median, and percent of the measured peak; NaN = unknown. */
double tn_bench_gb_per_second(const tn_bench_row *row);
double tn_bench_percent(const tn_bench_row *row);
/* 1e12 multiplications and additions a second with a prompt's weights, and percent of what the
 * device multiplies F16 at; NaN = unknown. */
double tn_bench_tflop_per_second(const tn_bench_row *row);
double tn_bench_percent_f16(const tn_bench_row *row);
/* New reference. */
json_t *tn_bench_row_json(const tn_bench_row *row);

/* A JSON number, or null where x is not finite. */
json_t *tn_bench_number(double x);

#endif
