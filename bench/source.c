#include "source.h"

#include "pagecache.h"
#include "row.h"
#include "sha256.h"
#include "term.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

tn_status tn_bench_fail(tn_error *err, tn_status status, const char *fmt, ...)
{
    va_list ap;
    err->code = status;
    err->offset = -1;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return status;
}

/* ---- what is known of it --------------------------------------------------------------------- */

static void set_text(json_t *o, const char *key, const char *s)
{
    json_t *value = s && *s ? json_string(s) : NULL;
    json_object_set_new(o, key, value ? value : json_null());
}

/* Bytes by tensor type, from the header. */
static void read_header(tn_bench_source *s)
{
    tn_inspect *in;
    tn_inspect_info info = {.struct_size = sizeof info};
    if (tn_inspect_open(&in, s->name, NULL, NULL)) return;
    if (!tn_inspect_get_info(in, &info, NULL)) {
        json_t *mix = json_object();
        s->n_parts = info.n_parts;
        s->file_bytes = (double)info.file_bytes;
        for (uint64_t i = 0; i < info.n_tensors; i++) {
            tn_inspect_tensor t;
            if (tn_inspect_get_tensor(in, i, &t, NULL)) continue;
            const json_int_t sum = json_integer_value(json_object_get(mix, t.type));
            json_object_set_new(mix, t.type, json_integer(sum + (json_int_t)t.bytes));
        }
        json_object_set_new(s->about, "file_bytes", json_integer((json_int_t)info.file_bytes));
        json_object_set_new(s->about, "files", json_integer(info.n_parts));
        json_object_set_new(s->about, "bytes_by_type", mix);
    }
    tn_inspect_close(in);
}

void tn_bench_source_init(tn_bench_source *s, const char *name, bool file, json_t *models)
{
    *s = (tn_bench_source){.name = name, .file = file, .about = json_object(), .file_bytes = NAN};
    const char *slash = file ? strrchr(name, '/') : NULL;
    set_text(s->about, "label", slash ? slash + 1 : name);
    set_text(s->about, "path", file ? name : NULL);
    json_object_set_new(s->about, "synthetic", json_boolean(!file));
    json_object_set_new(s->about, "sha256", json_null());
    json_array_append_new(models, s->about);
    if (file) read_header(s);
}

/* "sha256" of the first file; with several, "sha256_of_files" lists them all. */
static void add_hash(tn_bench_source *s)
{
    json_t *all = json_array();
    for (unsigned i = 0; i < s->n_parts; i++) {
        char hex[65], *path = tn_bench_part_path(s->name, i, s->n_parts);
        const bool ok = tn_bench_sha256_file(path, tn_bench_cancel, hex);
        json_array_append_new(all, ok ? json_string(hex) : json_null());
        free(path);
    }
    if (json_array_size(all)) json_object_set(s->about, "sha256", json_array_get(all, 0));
    if (json_array_size(all) > 1) json_object_set(s->about, "sha256_of_files", all);
    json_decref(all);
}

void tn_bench_source_describe(tn_bench_source *s, const tn_model *model, bool hash)
{
    if (s->described) return;
    s->info.struct_size = sizeof s->info;
    if (tn_model_get_info(model, &s->info, NULL)) return;
    s->described = true;
    set_text(s->about, "name", s->info.name);
    set_text(s->about, "architecture", s->info.arch);
    set_text(s->about, "quantisation", s->info.type);
    json_object_set_new(s->about, "parameters", json_integer((json_int_t)s->info.n_params));
    json_object_set_new(s->about, "weight_bytes", json_integer((json_int_t)s->info.weight_bytes));
    json_object_set_new(s->about, "weight_bytes_per_token",
                        json_integer((json_int_t)s->info.token_bytes));
    if (hash) add_hash(s);
}

/* ---- opening --------------------------------------------------------------------------------- */

static tn_status open_synthetic(tn_bench_source *s, tn_engine *engine, const tn_model_options *opt,
                                tn_model **out, tn_error *err)
{
    char shape[80];
    const char *colon = strchr(s->name, ':');
    const size_t len = colon ? (size_t)(colon - s->name) : 0;
    if (len == 0 || len >= sizeof shape || !colon[1])
        return tn_bench_fail(err, TN_EARG,
                             "synthetic model '%.100s' is not of the form SHAPE:TYPE, such as "
                             "llama-1b:q4_k_m",
                             s->name);
    memcpy(shape, s->name, len);
    shape[len] = 0;
    return tn_model_open_synthetic(out, engine, shape, colon + 1, opt, err);
}

static void note_load(tn_bench_source *s, double seconds, double cached)
{
    json_t *o = json_object();
    json_object_set_new(o, "seconds", tn_bench_number(seconds));
    json_object_set_new(o, "gb_per_second", tn_bench_number(s->file_bytes * 1e-9 / seconds));
    json_object_set_new(o, "page_cache_percent", tn_bench_number(100 * cached));
    json_object_set_new(s->about, "first_load", o);
}

tn_status tn_bench_source_open(tn_bench_source *s, tn_engine *engine, const char *load,
                               tn_model **out, tn_error *err)
{
    const tn_model_options opt = {.struct_size = sizeof opt,
                                  .load = strcmp(load, "read") == 0  ? TN_LOAD_READ
                                          : strcmp(load, "map") == 0 ? TN_LOAD_MAP
                                                                     : TN_LOAD_AUTO,
                                  .cancel = tn_bench_cancel,
                                  .place = s->places,
                                  .n_place = s->n_places,
                                  .plan = s->plan};
    *out = NULL;
    const bool first = !json_object_get(s->about, "first_load");
    const double cached = first && s->file ? tn_bench_source_cached(s) : NAN;
    const double start = tn_bench_clock();
    const tn_status status = s->file ? tn_model_open(out, engine, s->name, &opt, err)
                                     : open_synthetic(s, engine, &opt, out, err);
    if (!status && first) note_load(s, tn_bench_clock() - start, cached);
    return status;
}

/* ---- the page cache -------------------------------------------------------------------------- */

double tn_bench_source_cached(const tn_bench_source *s)
{
    double sum = 0; /* parts of a split model are about equally large */
    for (unsigned i = 0; i < s->n_parts; i++) {
        char *path = tn_bench_part_path(s->name, i, s->n_parts);
        sum += tn_bench_cached(path);
        free(path);
    }
    return s->n_parts ? sum / s->n_parts : NAN;
}

tn_status tn_bench_source_cool(const tn_bench_source *s, tn_error *err)
{
    for (unsigned i = 0; i < s->n_parts; i++) {
        char *path = tn_bench_part_path(s->name, i, s->n_parts);
        tn_bench_drop_cache(path);
        free(path);
    }
    const double left = tn_bench_source_cached(s);
    if (left <= 0.02) return TN_OK;
    return tn_bench_fail(err, TN_EUNSUPPORTED,
                         "%.0f %% of the file stays in the page cache (another program has it "
                         "open, or it lies in memory); there is no cold load to measure",
                         100 * left);
}

tn_status tn_bench_source_warm(const tn_bench_source *s, tn_error *err)
{
    enum { piece = 1 << 20 };
    char *buffer = tn_bench_alloc(piece);
    for (unsigned i = 0; i < s->n_parts && !tn_bench_signal(); i++) {
        char *path = tn_bench_part_path(s->name, i, s->n_parts);
        const int fd = open(path, O_RDONLY | O_CLOEXEC);
        while (fd >= 0 && !tn_bench_signal() && read(fd, buffer, piece) > 0)
            ;
        if (fd >= 0) close(fd);
        free(path);
    }
    free(buffer);
    const double held = tn_bench_source_cached(s);
    if (!(held < 0.98)) return TN_OK;
    return tn_bench_fail(err, TN_EUNSUPPORTED,
                         "only %.0f %% of the file fits into the page cache; there is no warm load "
                         "to measure",
                         100 * held);
}

double tn_bench_source_read_rate(const tn_bench_source *s, int threads)
{
    double seconds = 0;
    for (unsigned i = 0; i < s->n_parts; i++) {
        char *path = tn_bench_part_path(s->name, i, s->n_parts);
        seconds += tn_bench_read_seconds(path, threads);
        free(path);
    }
    return seconds > 0 ? s->file_bytes / seconds : NAN;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* The first 8 MiB of a file, freed by the caller: as many tokens as any context holds. */
static tn_status read_text(const char *path, char **text, size_t *len, tn_error *err)
{
    enum { most = 8 << 20 };
    FILE *f = fopen(path, "re");
    if (!f)
        return tn_bench_fail(err, errno == ENOENT ? TN_ENOENT : TN_EIO, "cannot read '%.200s': %s",
                             path, strerror(errno));
    *text = tn_bench_alloc(most);
    *len = fread(*text, 1, most, f);
    const bool bad = ferror(f);
    fclose(f);
    if (!bad && *len > 0) return TN_OK;
    free(*text);
    return tn_bench_fail(err, TN_EIO, "cannot read '%.200s': %s", path,
                         bad ? strerror(errno) : "it is empty");
}

tn_status tn_bench_source_tokens(const tn_bench_settings *set, const tn_model *model,
                                 tn_bench_tokens *out, tn_error *err)
{
    const uint64_t seed = (uint64_t)set->seed;
    if (set->random) return tn_bench_tokens_make(out, model, NULL, 0, seed, err);
    if (!set->text)
        return tn_bench_tokens_make(out, model, tn_bench_text, (size_t)tn_bench_text_len, seed,
                                    err);
    char *text = NULL;
    size_t len = 0;
    tn_status s = read_text(set->text, &text, &len, err);
    if (s) return s;
    s = tn_bench_tokens_make(out, model, text, len, seed, err);
    free(text);
    return s;
}

const char *tn_bench_isa_name(const char *name)
{
    static const char *const known[] = {"scalar", "avx2", "avxvnni", "avx512"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i], name) == 0) return known[i];
    return NULL;
}
