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
    json_t *about; /* the report's object, borrowed */
    bool described;
    tn_model_info info; /* its strings are not to be used: they die with the model */
} tn_bench_source;

/* Appends the object that describes it to `models`. */
void tn_bench_source_init(tn_bench_source *s, const char *name, bool file, json_t *models);
void tn_bench_source_free(tn_bench_source *s);
/* load: "auto", "read", "map". */
tn_status tn_bench_source_open(tn_bench_source *s, tn_engine *engine, const char *load,
                               tn_model **out, tn_error *err);
/* The tokens that the settings ask for. */
tn_status tn_bench_source_tokens(tn_bench_source *s, const tn_bench_settings *set,
                                 const tn_model *model, tn_bench_tokens *out, tn_error *err);
/* Fills in what only the open model tells; once. */
void tn_bench_source_describe(tn_bench_source *s, const tn_model *model);
/* A copy of the name that outlives the engine. */
const char *tn_bench_isa_name(const char *name);

#endif
