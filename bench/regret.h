/* What a placement costs beside the fastest of those that were measured. */
#ifndef TN_BENCH_REGRET_H
#define TN_BENCH_REGRET_H

#include "row.h"

#include <stdio.h>

/* One object for each request whose prompt and generation were measured under several placements
 * and otherwise equal parameters: "request" ("512+128 @ d4096", the longest prompt and generation
 * of that depth, or a pair), "vram", "kv", "batch", "threads", "isa", "load", "label", "fastest",
 * and "placements", an object by name with "seconds", "predicted_seconds" and "regret": how much
 * longer than the fastest, 0.05 = 5 %, and "rows", the indices of its prompt's and its generation's
 * row. New reference. */
json_t *tn_bench_regret_json(const tn_bench_rows *rows);
/* The same as a Markdown table; nothing if there is none. */
void tn_bench_regret_print(FILE *f, const tn_bench_rows *rows);

#endif
