/* Reading reference data: JSON with token ids, raw float32 logits; and evaluating a model to
 * compare. Functions of tests, so they report through the harness and end the process when memory
 * is short. */
#ifndef TN_TEST_GOLDEN_H
#define TN_TEST_GOLDEN_H

#include "../engine/tenon.h"
#include "harness.h"

#include <jansson.h>

__attribute__((unused)) static float *read_floats(const char *path, size_t n)
{
    float *x = malloc(n * sizeof *x + 1);
    FILE *f = fopen(path, "rb");
    const size_t got = f && x ? fread(x, sizeof *x, n + 1, f) : 0;
    if (f) fclose(f);
    if (got == n) return x;
    FAIL("%s: %zu floats, want %zu", path, got, n);
    free(x);
    return NULL;
}

/* An array of integers as int32; *n receives their number. */
__attribute__((unused)) static int32_t *json_ids(const json_t *array, int32_t *n)
{
    *n = (int32_t)json_array_size(array);
    int32_t *ids = malloc(((size_t)*n + 1) * sizeof *ids);
    for (int32_t i = 0; ids && i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    return ids;
}

/* How a model is run. */
typedef struct run_options {
    const char *isa;    /* NULL = best */
    int threads;        /* 0 = 2 */
    tn_load_mode load;
    bool exact;
    tn_kv_type kv;
    int32_t n_batch, page_size; /* 0 = the default */
    bool step;                  /* token by token */
    const char *device, *place; /* NULL = none */
    size_t vram[2];             /* of the first two devices */
    int32_t granule;
} run_options;

typedef struct run {
    tn_engine *engine;
    tn_model *model;
    tn_context *ctx;
} run;

__attribute__((unused)) static void run_close(run *r)
{
    tn_context_free(r->ctx);
    tn_model_close(r->model);
    tn_engine_free(r->engine);
    memset(r, 0, sizeof *r);
}

__attribute__((unused)) static tn_status try_context(tn_model *m, tn_context_options o,
                                                     tn_context **out, tn_error *err)
{
    o.struct_size = sizeof o;
    memset(err, 0, sizeof *err);
    return tn_context_new(out, m, &o, err);
}

/* "SHAPE:TYPE" is a synthetic model. */
static tn_status run_open_model(run *r, const char *path, const tn_model_options *mo, tn_error *err)
{
    const char *type = strchr(path, ':');
    char shape[40];
    if (!type) return tn_model_open(&r->model, r->engine, path, mo, err);
    snprintf(shape, sizeof shape, "%.*s", (int)(type - path), path);
    return tn_model_open_synthetic(&r->model, r->engine, shape, type + 1, mo, err);
}

__attribute__((unused)) static bool run_open(run *r, const char *path, const run_options *o)
{
    memset(r, 0, sizeof *r);
    tn_error err = {0};
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = o->threads ? o->threads : 2, .isa = o->isa,
        .device = o->device, .vram_limits = {o->vram[0], o->vram[1]}};
    const tn_model_options mo = {.struct_size = sizeof mo,
                                 .load = o->load,
                                 .exact = o->exact,
                                 .place = &o->place,
                                 .n_place = o->place != NULL,
                                 .granule = o->granule};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .kv = o->kv,
                                   .n_batch = o->n_batch,
                                   .page_size = o->page_size};
    if (tn_engine_new(&r->engine, &eo, &err) == TN_OK &&
        run_open_model(r, path, &mo, &err) == TN_OK &&
        tn_context_new(&r->ctx, r->model, &co, &err) == TN_OK)
        return true;
    FAIL("%s: %s", path, err.msg);
    run_close(r);
    return false;
}

/* The case is skipped where nothing was built for such devices; a GPU is asked for, so it fails. */
__attribute__((unused)) static bool have_device(const char *device)
{
    tn_engine *e;
    tn_error err = {0};
    const tn_engine_options o = {.struct_size = sizeof o, .threads = 1, .device = device};
    const tn_status s = tn_engine_new(&e, &o, &err);
    if (s == TN_OK) tn_engine_free(e);
    if (s == TN_EUNSUPPORTED && strncmp(device, "cuda", 4) != 0)
        tn_skipped = "no device";
    else if (s)
        FAIL("%s", err.msg);
    return s == TN_OK;
}

__attribute__((unused)) static int32_t run_vocab(const run *r)
{
    tn_model_info info = {.struct_size = sizeof info};
    return tn_model_get_info(r->model, &info, NULL) == TN_OK ? info.n_vocab : -1;
}

typedef struct rows_sink {
    float *out;
    int32_t n_vocab;
} rows_sink;

static bool keep_rows(void *user, int32_t first, int32_t n_rows, const float *rows)
{
    const rows_sink *s = user;
    memcpy(s->out + (size_t)first * (size_t)s->n_vocab, rows,
           (size_t)n_rows * (size_t)s->n_vocab * sizeof *rows);
    return true;
}

/* All logits [n][n_vocab] of a fresh evaluation, NULL after reporting a failure. Freed by the
 * caller. */
__attribute__((unused)) static float *run_logits(const char *path, const run_options *o,
                                                 const int32_t *tokens, int32_t n, int32_t n_vocab)
{
    run r;
    if (!run_open(&r, path, o)) return NULL;
    const size_t count = (size_t)n * (size_t)n_vocab;
    float *out = malloc(count * sizeof *out);
    for (size_t i = 0; out && i < count; i++) out[i] = NAN; /* what is not written must not pass */
    rows_sink sink = {out, n_vocab};
    tn_error err = {0};
    tn_status st = out ? TN_OK : TN_ENOMEM;
    if (run_vocab(&r) != n_vocab) FAIL("%s: n_vocab is %d, want %d", path, run_vocab(&r), n_vocab);
    else if (!o->step) st = tn_context_eval_all(r.ctx, tokens, n, 0, keep_rows, &sink, &err);
    else
        for (int32_t i = 0; i < n && !st; i++) {
            st = tn_context_eval(r.ctx, tokens + i, 1, &err);
            if (!st) keep_rows(&sink, i, 1, tn_context_logits(r.ctx));
        }
    run_close(&r);
    if (st) FAIL("%s: %s", path, err.msg);
    if (!st && out) return out;
    free(out);
    return NULL;
}

typedef struct distance {
    double max_abs, rms; /* NaN if any difference is */
} distance;

__attribute__((unused)) static distance compare(const float *a, const float *b, size_t n)
{
    distance d = {0, 0};
    for (size_t i = 0; i < n; i++) {
        const double x = fabs((double)a[i] - b[i]);
        if (!(x <= d.max_abs)) d.max_abs = x;
        d.rms += x * x;
        if (isnan(d.rms)) d.max_abs = NAN;
    }
    d.rms = sqrt(d.rms / (double)n);
    return d;
}

__attribute__((unused)) static int32_t argmax(const float *x, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* How far the largest value lies above the second. */
__attribute__((unused)) static double top_gap(const float *x, int32_t n)
{
    const int32_t best = argmax(x, n);
    double second = -INFINITY;
    for (int32_t i = 0; i < n; i++)
        if (i != best && x[i] > second) second = x[i];
    return x[best] - second;
}

/* A model of tests/data/arch and the logits its reference gives for one sequence. */
typedef struct golden {
    char path[200];
    int32_t *tokens, n, n_vocab;
    float *logits; /* [n][n_vocab] */
    double tolerance;
} golden;

__attribute__((unused)) static void golden_free(golden *g)
{
    free(g->tokens);
    free(g->logits);
    memset(g, 0, sizeof *g);
}

__attribute__((unused)) static bool golden_load(golden *g, const char *name)
{
    char path[200];
    memset(g, 0, sizeof *g);
    snprintf(g->path, sizeof g->path, "tests/data/arch/%s/model-f16.gguf", name);
    snprintf(path, sizeof path, "tests/data/arch/%s/golden.json", name);
    json_t *j = json_load_file(path, 0, NULL);
    const json_t *s = json_array_get(json_object_get(j, "sequences"), 0);
    g->tokens = json_ids(json_object_get(s, "tokens"), &g->n);
    g->n_vocab = (int32_t)json_integer_value(json_array_get(json_object_get(s, "shape"), 1));
    g->tolerance =
        json_real_value(json_object_get(json_object_get(j, "tolerance"), "f32_activations"));
    json_decref(j);
    snprintf(path, sizeof path, "tests/data/arch/%s/logits.f32", name);
    if (g->n > 0 && g->n_vocab > 0 && g->tolerance > 0 && g->tolerance < 1e-3)
        g->logits = read_floats(path, (size_t)g->n * (size_t)g->n_vocab);
    if (g->logits) return true;
    FAIL("%s: the golden cannot be read", name);
    golden_free(g);
    return false;
}

/* A cancel callback: yes at its call number `at`, once. */
typedef struct canceler {
    int calls, at;
} canceler;

__attribute__((unused)) static bool cancel_once(void *user)
{
    canceler *c = user;
    return ++c->calls == c->at;
}

/* Whether a message says which memory ran out, for what, and how many MiB were missing: more than
 * none, and no more than were asked for where it says so. */
__attribute__((unused)) static bool says_missing(const char *msg)
{
    double missing = 0, asked = 0;
    int end = 0;
    const bool pinned =
        sscanf(msg, "out of pinned memory: %lf MiB missing for %n", &missing, &end) == 1;
    if (!pinned &&
        (sscanf(msg, "out of device memory: %lf MiB missing for %*[^(](%lf MiB asked for%n",
                &missing, &asked, &end) != 2))
        return false;
    return end > 0 && msg[end] && missing > 0 && (pinned || missing <= asked);
}

/* Whether --cuda, for the real device in place of the emulated one, comes first; takes it away. */
__attribute__((unused)) static bool take_cuda(int *argc, char ***argv)
{
    if (*argc < 2 || strcmp((*argv)[1], "--cuda") != 0) return false;
    (*argv)[1] = (*argv)[0];
    ++*argv;
    --*argc;
    return true;
}

#endif
