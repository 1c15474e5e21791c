/* Two reports side by side. */
#ifndef TN_BENCH_COMPARE_H
#define TN_BENCH_COMPARE_H

#include "options.h"

#include <jansson.h>

/* Compares the JSON (or JSON lines) reports rest.at[0] and rest.at[1] and prints a table, or with
 * -o json an object. TN_EXIT_OK; TN_EXIT_SLOWER if a row of the second is slower by more than the
 * threshold and the Mann-Whitney test calls the difference real (p < 0.05); other exit codes after
 * saying why. */
int tn_bench_compare(const tn_bench_settings *set);

/* The comparison of two reports as an object with "rows" and "notes"; new reference. threshold in
 * percent. Each row: "test", "old", "new", "ratio", "ci95", "p", "verdict" ("same", "faster",
 * "slower", "unsure"). *n_slower counts the regressions. */
json_t *tn_bench_compare_reports(const json_t *a, const json_t *b, double threshold,
                                 size_t *n_slower);

#endif
