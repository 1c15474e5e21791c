/* The report while it grows: every row goes to one or two places as soon as it is finished. */
#ifndef TN_BENCH_REPORT_H
#define TN_BENCH_REPORT_H

#include "options.h"
#include "row.h"

typedef struct tn_bench_sink {
    FILE *f;
    const char *name; /* for messages */
    tn_bench_format format;
    bool begun;
} tn_bench_sink;

typedef struct tn_bench_report {
    const tn_bench_settings *set;
    tn_bench_sink sinks[2];
    int n_sinks;
    json_t *environment;       /* object */
    json_t *models;            /* array of objects with "name", "sha256" ... */
    tn_bench_words peer_names; /* as rows name them, in the order of the settings' peers */
    tn_bench_rows rows;
} tn_bench_report;

/* Opens the places that the settings name. TN_EXIT_OK or TN_EXIT_IO after saying why. */
int tn_bench_report_open(tn_bench_report *r, const tn_bench_settings *set);
/* Shows rows[i]; from now on it does not change. TN_EXIT_OK or TN_EXIT_IO. */
int tn_bench_report_row(tn_bench_report *r, size_t i);
/* Shows what only the end can tell, and closes. TN_EXIT_OK or TN_EXIT_IO. */
int tn_bench_report_close(tn_bench_report *r);
/* The whole report as JSON, new reference. */
json_t *tn_bench_report_json(const tn_bench_report *r);

#endif
