#include "source.h"

#include "term.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void tn_bench_source_init(tn_bench_source *s, const char *name, bool file, json_t *models)
{
    *s = (tn_bench_source){.name = name, .file = file, .about = json_object()};
    const char *slash = strrchr(name, '/');
    const char *label = file && slash ? slash + 1 : name;
    json_object_set_new(s->about, "label", json_string(label));
    json_object_set_new(s->about, "path", file ? json_string(name) : json_null());
    json_object_set_new(s->about, "synthetic", json_boolean(!file));
    json_object_set_new(s->about, "sha256", json_null());
    json_array_append_new(models, s->about);
}

void tn_bench_source_free(tn_bench_source *s)
{
    *s = (tn_bench_source){0};
}

static tn_status open_synthetic(tn_bench_source *s, tn_engine *engine, const tn_model_options *opt,
                                tn_model **out, tn_error *err)
{
    char shape[80];
    const char *colon = strchr(s->name, ':');
    const size_t len = colon ? (size_t)(colon - s->name) : 0;
    if (len == 0 || len >= sizeof shape || !colon[1]) {
        *err = (tn_error){.code = TN_EARG, .offset = -1};
        snprintf(err->msg, sizeof err->msg,
                 "synthetic model '%.100s' is not of the form SHAPE:TYPE, such as llama-1b:q4_k_m",
                 s->name);
        return TN_EARG;
    }
    memcpy(shape, s->name, len);
    shape[len] = 0;
    return tn_model_open_synthetic(out, engine, shape, colon + 1, opt, err);
}

tn_status tn_bench_source_open(tn_bench_source *s, tn_engine *engine, const char *load,
                               tn_model **out, tn_error *err)
{
    const tn_model_options opt = {.struct_size = sizeof opt,
                                  .load = strcmp(load, "read") == 0  ? TN_LOAD_READ
                                          : strcmp(load, "map") == 0 ? TN_LOAD_MAP
                                                                     : TN_LOAD_AUTO,
                                  .cancel = tn_bench_cancel};
    if (!s->file) return open_synthetic(s, engine, &opt, out, err);
    return tn_model_open(out, engine, s->name, &opt, err);
}

tn_status tn_bench_source_tokens(tn_bench_source *s, const tn_bench_settings *set,
                                 const tn_model *model, tn_bench_tokens *out, tn_error *err)
{
    (void)s;
    return tn_bench_tokens_make(out, model, NULL, 0, (uint64_t)set->seed, err);
}

void tn_bench_source_describe(tn_bench_source *s, const tn_model *model)
{
    if (s->described) return;
    s->info.struct_size = sizeof s->info;
    if (tn_model_get_info(model, &s->info, NULL)) return;
    s->described = true;
    json_object_set_new(s->about, "name", json_string(s->info.name));
    json_object_set_new(s->about, "architecture", json_string(s->info.arch));
    json_object_set_new(s->about, "quantisation", json_string(s->info.type));
    json_object_set_new(s->about, "parameters", json_integer((json_int_t)s->info.n_params));
    json_object_set_new(s->about, "weight_bytes", json_integer((json_int_t)s->info.weight_bytes));
    json_object_set_new(s->about, "weight_bytes_per_token",
                        json_integer((json_int_t)s->info.token_bytes));
}

const char *tn_bench_isa_name(const char *name)
{
    static const char *const known[] = {"scalar", "avx2", "avxvnni", "avx512"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i], name) == 0) return known[i];
    return NULL;
}
