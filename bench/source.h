/* Where a model comes from: a file, or a shape with random weights; and what the report says of it.
 */
#ifndef TN_BENCH_SOURCE_H
#define TN_BENCH_SOURCE_H

#include "measure.h"
#include "options.h"

#include <jansson.h>

typedef struct tn_bench_source {
    const char *name; /* path, or SHAPE:TYPE */
    bool file;
    unsigned n_parts;  /* files; 0 = not known or no file */
    double file_bytes; /* of all parts; NaN = not known */
    json_t *about;     /* the report's object, borrowed */
    bool described;
    const char *const *places; /* [n_places] rules for the device */
    size_t n_places;
    const tn_placement *plan; /* instead of rules; NULL = none */
    tn_model_info info;       /* its strings are not to be used: they die with the model */
} tn_bench_source;

/* Appends the object that describes it to `models`; reads a file's header. */
void tn_bench_source_init(tn_bench_source *s, const char *name, bool file, json_t *models);
/* load: "auto", "read", "map". The first opening's time is noted in `about`. */
tn_status tn_bench_source_open(tn_bench_source *s, tn_engine *engine, const char *load,
                               tn_model **out, tn_error *err);
/* The tokens that the settings ask for. TN_ENOENT, TN_EIO: the text file. */
tn_status tn_bench_source_tokens(const tn_bench_settings *set, const tn_model *model,
                                 tn_bench_tokens *out, tn_error *err);
/* Fills in what only the open model tells, and the hash of its files unless told not to; once. */
void tn_bench_source_describe(tn_bench_source *s, const tn_model *model, bool hash);

/* Part of the model's files that is in memory, 0 to 1; NaN if unknown. */
double tn_bench_source_cached(const tn_bench_source *s);
/* Drops them from memory, or reads them into it. TN_EUNSUPPORTED with a reason where the kernel
 * does not follow. */
tn_status tn_bench_source_cool(const tn_bench_source *s, tn_error *err);
tn_status tn_bench_source_warm(const tn_bench_source *s, tn_error *err);

/* Bytes per second that so many threads read from its files as they lie now; NaN if unknown. */
double tn_bench_source_read_rate(const tn_bench_source *s, int threads);

/* A copy of the name that outlives the engine; NULL if unknown. */
const char *tn_bench_isa_name(const char *name);

/* Fills err with a status and a sentence; returns the status. */
tn_status tn_bench_fail(tn_error *err, tn_status status, const char *fmt, ...) TN_PRINTF(3, 4);

#endif
