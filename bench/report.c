#include "report.h"

#include "peer.h"
#include "regret.h"
#include "stats.h"
#include "term.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- columns of tables ----------------------------------------------------------------------- */

/* Everything the Markdown table may show; parameters that the whole sweep leaves at their default
 * are left out. */
typedef struct column {
    const char *head;
    int width; /* negative = to the left; 0 = as long as the longest name */
    void (*print)(const tn_bench_report *r, const tn_bench_row *row, char *text, size_t cap);
    bool (*wanted)(const tn_bench_report *r); /* NULL = always */
} column;

static void number(char *text, size_t cap, double x, int digits)
{
    if (isfinite(x))
        snprintf(text, cap, "%.*f", digits, x);
    else
        *text = 0;
}

/* Four digits that count: 1234, 123.4, 12.34. */
static void rate(char *text, size_t cap, double x)
{
    number(text, cap, x, fabs(x) >= 1000 ? 0 : fabs(x) >= 100 ? 1 : 2);
}

#define COLUMN(name)                                                                               \
    static void name(const tn_bench_report *r, const tn_bench_row *row, char *t, size_t cap)

COLUMN(c_model)
{
    const char *name =
        json_string_value(json_object_get(json_array_get(r->models, row->model), "label"));
    snprintf(t, cap, "%s", name ? name : "");
}
COLUMN(c_engine)
{
    (void)r;
    snprintf(t, cap, "%s", row->engine);
}
COLUMN(c_threads)
{
    (void)r;
    snprintf(t, cap, "%d", row->threads_used);
}
COLUMN(c_batch)
{
    (void)r;
    snprintf(t, cap, "%d", row->params.batch);
}
COLUMN(c_kv)
{
    (void)r;
    snprintf(t, cap, "%s", row->params.kv);
}
COLUMN(c_isa)
{
    (void)r;
    snprintf(t, cap, "%s", row->isa_used ? row->isa_used : row->params.isa);
}
COLUMN(c_load)
{
    (void)r;
    snprintf(t, cap, "%s", row->params.load);
}
/* A file's name is enough. */
static const char *placement_name(const char *placement)
{
    const char *slash = strrchr(placement, '/');
    return slash ? slash + 1 : placement;
}

COLUMN(c_placement)
{
    (void)r;
    snprintf(t, cap, "%s", placement_name(row->params.placement));
}
COLUMN(c_vram)
{
    (void)r;
    snprintf(t, cap, "%s", row->params.vram ? row->params.vram : "");
}
COLUMN(c_test)
{
    char name[64];
    (void)r;
    snprintf(t, cap, "%s", tn_bench_test_name(row, name));
}
COLUMN(c_rate)
{
    (void)r;
    if (row->error) {
        snprintf(t, cap, "%s", row->error);
        return;
    }
    rate(t, cap, tn_bench_quantile(row->rate.at, row->rate.n, 0.5));
    if (tn_bench_is_load(row)) strncat(t, " GB/s", cap - strlen(t) - 1);
    if (row->disturbed) strncat(t, " *", cap - strlen(t) - 1);
}
COLUMN(c_interval)
{
    const tn_bench_summary s = tn_bench_summarise(row->rate.at, row->rate.n);
    char low[32], high[32];
    (void)r;
    *t = 0;
    if (!isfinite(s.low)) return;
    rate(low, sizeof low, s.low);
    rate(high, sizeof high, s.high);
    snprintf(t, cap, "%s - %s", low, high);
}
COLUMN(c_ttft)
{
    (void)r;
    number(t, cap, 1000 * tn_bench_quantile(row->ttft_s.at, row->ttft_s.n, 0.5), 1);
}
COLUMN(c_token_ms)
{
    const tn_bench_samples *s = &row->token_s;
    (void)r;
    *t = 0;
    if (s->n)
        snprintf(t, cap, "%.2f / %.2f / %.2f", 1000 * tn_bench_quantile(s->at, s->n, 0.5),
                 1000 * tn_bench_quantile(s->at, s->n, 0.95),
                 1000 * tn_bench_quantile(s->at, s->n, 0.99));
}
COLUMN(c_gb)
{
    (void)r;
    number(t, cap, tn_bench_gb_per_second(row), 2);
}
COLUMN(c_percent)
{
    (void)r;
    number(t, cap, tn_bench_percent(row), 0);
}
COLUMN(c_tflops)
{
    (void)r;
    number(t, cap, tn_bench_tflop_per_second(row), 2);
}
COLUMN(c_percent_f16)
{
    (void)r;
    number(t, cap, tn_bench_percent_f16(row), 0);
}
COLUMN(c_rss)
{
    (void)r;
    number(t, cap, row->peak_rss_bytes / 1048576, 0);
}

COLUMN(c_device_memory)
{
    (void)r;
    number(t, cap, row->device_memory_bytes / 1048576, 0);
}
COLUMN(c_hops)
{
    (void)r;
    number(t, cap, row->hops, 2);
}
COLUMN(c_wait)
{
    (void)r;
    number(t, cap, 1000 * row->join_wait_s, 3);
}
COLUMN(c_predicted)
{
    (void)r;
    rate(t, cap, row->predicted);
}

COLUMN(c_against)
{
    const tn_bench_ratio *a = &row->against;
    (void)r;
    *t = 0;
    if (isfinite(a->low))
        snprintf(t, cap, "%.2f (%.2f - %.2f)", a->ratio, a->low, a->high);
    else if (isfinite(a->ratio))
        snprintf(t, cap, "%.2f", a->ratio);
}

static bool any_peer(const tn_bench_report *r)
{
    return r->set->peers.n > 0;
}
static bool not_default(const tn_bench_words *w, const char *value)
{
    return w->n > 1 || strcmp(w->at[0], value) != 0;
}
static bool any_batch(const tn_bench_report *r)
{
    return r->set->batch.n > 1 || r->set->batch.at[0] != 512;
}
static bool any_kv(const tn_bench_report *r)
{
    return not_default(&r->set->kv, "f16");
}
static bool any_isa(const tn_bench_report *r)
{
    return not_default(&r->set->isa, "best");
}
static bool any_placement(const tn_bench_report *r)
{
    return r->set->placements.n > 0 || r->set->device;
}
static bool any_device(const tn_bench_report *r)
{
    return r->set->device != NULL;
}
static bool any_predicted(const tn_bench_report *r)
{
    return r->set->placements.n > 0 && r->set->device;
}
static bool any_measured(const tn_bench_report *r)
{
    return r->set->placements.n == 0 || r->set->device;
}
static bool any_vram(const tn_bench_report *r)
{
    return r->set->vram.n > 0;
}
static bool any_load(const tn_bench_report *r)
{
    return not_default(&r->set->load, "auto");
}

static bool any_model(const tn_bench_report *r)
{
    return r->set->models.n + r->set->synthetic.n > 1;
}
static bool any_threads(const tn_bench_report *r)
{
    return r->set->threads.n > 1;
}

static const column columns[] = {
    {"model", 0, c_model, any_model},
    {"engine", 0, c_engine, any_peer},
    {"threads", 7, c_threads, any_threads},
    {"batch", 6, c_batch, any_batch},
    {"kv", -4, c_kv, any_kv},
    {"isa", -7, c_isa, any_isa},
    {"load", -5, c_load, any_load},
    {"vram", 6, c_vram, any_vram},
    {"placement", 0, c_placement, any_placement},
    {"test", -18, c_test, NULL},
    {"tok/s", 11, c_rate, NULL},
    {"95 %", 17, c_interval, any_measured},
    {"predicted", 9, c_predicted, any_predicted},
    {"tenon / peer", 19, c_against, any_peer},
    {"TTFT ms", 8, c_ttft, any_measured},
    {"ms/token p50 / p95 / p99", 24, c_token_ms, any_measured},
    {"GB/s", 6, c_gb, any_measured},
    {"% limit", 7, c_percent, any_measured},
    {"TFLOP/s", 7, c_tflops, any_device},
    {"% F16", 5, c_percent_f16, any_device},
    {"RSS MiB", 7, c_rss, any_measured},
    {"device MiB", 10, c_device_memory, any_device},
    {"hops/token", 10, c_hops, any_device},
    {"wait ms/token", 13, c_wait, any_device},
};
enum { n_columns = sizeof columns / sizeof *columns };

static const char *model_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static const char *as_it_is(const char *name)
{
    return name;
}

static int longest(const tn_bench_words *words, const char *(*name)(const char *), int least)
{
    for (size_t i = 0; i < words->n; i++) {
        const int len = (int)strlen(name(words->at[i]));
        if (len > least && len <= 60) least = len;
    }
    return least;
}

/* Of the column; negative = to the left. */
static int width_of(const tn_bench_report *r, const column *c)
{
    if (c->print == c_model)
        return -longest(&r->set->synthetic, model_name, longest(&r->set->models, model_name, 5));
    if (c->print == c_engine) return -longest(&r->peer_names, as_it_is, 6);
    if (c->print == c_placement) return -longest(&r->set->placements, placement_name, 9);
    return c->print == c_test && r->set->pairs.n ? c->width - 6 : c->width;
}

/* ---- Markdown -------------------------------------------------------------------------------- */

static bool shown(const tn_bench_report *r, const column *c)
{
    return !c->wanted || c->wanted(r);
}

/* Settings of the whole sweep that are not at their default. */
static void md_settings(const tn_bench_report *r, FILE *f)
{
    const tn_bench_settings *set = r->set;
    if (set->runs != 5) fprintf(f, "%d run%s, ", set->runs, set->runs == 1 ? "" : "s");
    if (set->warmup != 8) fprintf(f, "warm-up of at most %d, ", set->warmup);
    if (set->random) fprintf(f, "random tokens (seed %d), ", set->seed);
    if (set->text && !set->random) fprintf(f, "text of %s, ", model_name(set->text));
}

/* What the device's memory and its cuBLAS were seen to give. */
static void md_peaks(const tn_bench_report *r, FILE *f)
{
    const json_t *read = json_object_get(r->environment, "device_read_peak_gb_per_second");
    const json_t *f16 = json_object_get(r->environment, "device_f16_tflop_per_second");
    if (json_is_real(read)) fprintf(f, "reads %.4g GB/s, ", json_real_value(read));
    if (json_is_real(f16)) fprintf(f, "multiplies F16 at %.3g TFLOP/s, ", json_real_value(f16));
}

/* What the columns do not say, because it is the same in every row. */
static void md_title(const tn_bench_report *r, const tn_bench_row *row, FILE *f)
{
    const json_t *model = json_array_get(r->models, row->model);
    const char *label = json_string_value(json_object_get(model, "label"));
    const char *type = json_string_value(json_object_get(model, "quantisation"));
    const double bytes = json_number_value(json_object_get(model, "weight_bytes"));
    const char *cpu =
        json_string_value(json_object_get(json_object_get(r->environment, "cpu"), "model"));
    if (!any_model(r) && label) {
        const bool random = json_is_true(json_object_get(model, "synthetic"));
        fprintf(f, "%s%s", label, random ? " with random weights" : "");
        if (type) fprintf(f, " (%s, %.0f MB)", type, bytes * 1e-6);
        fprintf(f, ", ");
    }
    if (!any_measured(r)) {
        fprintf(f, "simulated: predicted for %s, not measured, tenon %s%s%.12s\n\n",
                model_name(r->set->hardware), tn_version(), *tn_commit() ? " " : "", tn_commit());
        return;
    }
    if (!any_threads(r) && row->threads_used)
        fprintf(f, "%d thread%s, ", row->threads_used, row->threads_used == 1 ? "" : "s");
    if (!any_isa(r) && row->isa_used) fprintf(f, "%s, ", row->isa_used);
    md_settings(r, f);
    if (r->set->device) fprintf(f, "device %s (%s), ", r->set->device, row->label);
    md_peaks(r, f);
    if (r->set->device && r->set->hardware)
        fprintf(f, "planned and predicted for %s, ", model_name(r->set->hardware));
    fprintf(f, "%s, tenon %s%s%.12s\n\n", cpu ? cpu : "unknown CPU", tn_version(),
            *tn_commit() ? " " : "", tn_commit());
}

static void md_head(const tn_bench_report *r, FILE *f)
{
    for (int i = 0; i < n_columns; i++)
        if (shown(r, &columns[i])) fprintf(f, "| %*s ", width_of(r, &columns[i]), columns[i].head);
    fprintf(f, "|\n");
    for (int i = 0; i < n_columns; i++) {
        if (!shown(r, &columns[i])) continue;
        const int width = width_of(r, &columns[i]);
        fprintf(f, "|%c", width < 0 ? ':' : '-');
        for (int k = 0; k < abs(width); k++)
            fputc('-', f);
        fputc(width < 0 ? '-' : ':', f);
    }
    fprintf(f, "|\n");
}

/* A cell may hold what a file or another program says. */
static void md_cell(FILE *f, const char *text, int width)
{
    int n = 0;
    fputs("| ", f);
    const int pad = abs(width) - (int)strlen(text);
    if (width > 0 && pad > 0) fprintf(f, "%*s", pad, "");
    for (; *text; text++, n++) {
        if (*text == '|') fputc('\\', f);
        fputc((unsigned char)*text < ' ' || *text == 127 ? '?' : *text, f);
    }
    fprintf(f, "%*s", width < 0 && pad > 0 ? pad + 1 : 1, "");
}

static void md_row(const tn_bench_report *r, const tn_bench_row *row, FILE *f)
{
    char text[640];
    for (int i = 0; i < n_columns; i++) {
        if (!shown(r, &columns[i])) continue;
        columns[i].print(r, row, text, sizeof text);
        md_cell(f, text, width_of(r, &columns[i]));
    }
    fprintf(f, "|\n");
}

/* What the columns before the test say of a row: all that tells it from others. */
static void md_which(const tn_bench_report *r, const tn_bench_row *row, FILE *f)
{
    for (int i = 0; columns[i].print != c_test; i++) {
        char text[640];
        if (!shown(r, &columns[i]) || columns[i].print == c_engine) continue;
        columns[i].print(r, row, text, sizeof text);
        if (*text) fprintf(f, ", %s %s", columns[i].head, text);
    }
}

static void md_end(const tn_bench_report *r, FILE *f)
{
    bool first = true;
    for (size_t i = 0; i < r->rows.n; i++) {
        char name[64];
        const tn_bench_row *row = &r->rows.at[i];
        if (!row->disturbed || row->peer) continue;
        if (first) fprintf(f, "\n\\* disturbed, measure again on a quiet machine:\n");
        first = false;
        fprintf(f, "- %s", tn_bench_test_name(row, name));
        md_which(r, row, f);
        fprintf(f, ": %s\n", row->disturbed);
    }
    tn_bench_regret_print(f, &r->rows);
}

/* ---- CSV ------------------------------------------------------------------------------------- */

static void csv_field(FILE *f, const char *text, bool first)
{
    if (!first) fputc(',', f);
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}

static void csv_value(FILE *f, const json_t *value, bool first)
{
    char text[640] = "";
    if (json_is_string(value)) snprintf(text, sizeof text, "%s", json_string_value(value));
    if (json_is_integer(value))
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
    if (json_is_real(value)) snprintf(text, sizeof text, "%.9g", json_real_value(value));
    if (json_is_boolean(value)) snprintf(text, sizeof text, "%d", json_is_true(value));
    csv_field(f, text, first);
}

static void csv_interval(FILE *f, const char *key, const json_t *value, bool head, bool first)
{
    static const char *const ends[] = {"_low", "_high"};
    for (size_t i = 0; i < 2; i++) {
        char text[640];
        snprintf(text, sizeof text, "%s%s", key, ends[i]);
        if (head)
            csv_field(f, text, first && i == 0);
        else
            csv_value(f, json_array_get(value, i), first && i == 0);
    }
}

/* What the row's JSON object holds, nested objects as "a.b", without lists of samples: every row
 * has the same fields. */
static void csv_fields(FILE *f, const json_t *o, const char *prefix, bool head, bool *first)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)o, key, value)
    {
        char text[600];
        snprintf(text, sizeof text, "%s%s", prefix, key);
        const bool list = strcmp(key, "samples") == 0 || strstr(key, "_samples");
        if (list || strcmp(key, "watch") == 0) continue;
        if (json_is_object(value)) {
            strncat(text, ".", sizeof text - strlen(text) - 1);
            csv_fields(f, value, text, head, first);
            continue;
        }
        if (strcmp(key, "ci95") == 0)
            csv_interval(f, text, value, head, *first);
        else if (head)
            csv_field(f, text, *first);
        else
            csv_value(f, value, *first);
        *first = false;
    }
}

/* o: the row's JSON, taken over. */
static void csv_line(const tn_bench_report *r, const tn_bench_row *row, json_t *o, bool head,
                     FILE *f)
{
    char model[300];
    bool first = false;
    c_model(r, row, model, sizeof model);
    csv_field(f, head ? "model_label" : model, true);
    if (any_predicted(r) && !json_object_get(o, "regret"))
        json_object_set_new(o, "regret", json_null());
    csv_fields(f, o, "", head, &first);
    json_decref(o);
    fputc('\n', f);
}

/* Nulls for all that was measured, in objects inside as well. */
static void clear_row(json_t *o)
{
    static const char *const kept[] = {"model", "parameters", "engine", "label"};
    const char *key;
    json_t *value;
    json_object_foreach(o, key, value)
    {
        bool keep = false;
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
            keep = keep || strcmp(key, kept[i]) == 0;
        if (!keep && json_is_object(value))
            clear_row(value);
        else if (!keep)
            json_object_set_new(o, key, json_null());
    }
}

/* A request under a placement as a row of its own: described as its prompt's row is, with its
 * seconds as the median and its regret. */
static json_t *csv_request(const tn_bench_row *prompt, const char *request, const json_t *cost)
{
    json_t *o = tn_bench_row_json(prompt);
    clear_row(o);
    json_object_set_new(o, "test", json_string(request));
    json_object_set_new(o, "unit", json_string("s"));
    json_object_set(o, "median", json_object_get(cost, "seconds"));
    json_object_set(o, "regret", json_object_get(cost, "regret"));
    return o;
}

static void csv_end(const tn_bench_report *r, FILE *f)
{
    json_t *list = tn_bench_regret_json(&r->rows);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        const char *request = json_string_value(json_object_get(o, "request")), *name;
        json_t *cost;
        json_object_foreach(json_object_get(o, "placements"), name, cost)
        {
            const json_t *index = json_array_get(json_object_get(cost, "rows"), 0);
            const tn_bench_row *row = &r->rows.at[json_integer_value(index)];
            csv_line(r, row, csv_request(row, request, cost), false, f);
        }
    }
    json_decref(list);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

enum { json_flags = JSON_REAL_PRECISION(9) | JSON_ENSURE_ASCII };

json_t *tn_bench_report_json(const tn_bench_report *r)
{
    json_t *o = json_object(), *list = json_array(), *first = json_array_get(r->models, 0);
    json_object_set_new(o, "program", json_string("tenon-bench"));
    json_object_set_new(o, "format", json_integer(1));
    json_object_set(o, "environment", r->environment);
    json_object_set(o, "model", first ? first : json_null());
    json_object_set(o, "models", r->models);
    for (size_t i = 0; i < r->rows.n; i++)
        json_array_append_new(list, tn_bench_row_json(&r->rows.at[i]));
    json_object_set_new(o, "results", list);
    json_object_set_new(o, "regret", tn_bench_regret_json(&r->rows));
    return o;
}

static void dump(json_t *o, FILE *f, size_t flags)
{
    json_dumpf(o, f, flags | json_flags);
    fputc('\n', f);
    json_decref(o);
}

/* One line each: the environment, then a model before its first row, then rows. */
static void jsonl_row(const tn_bench_report *r, size_t i, FILE *f)
{
    const tn_bench_row *row = &r->rows.at[i];
    if (i == 0) dump(json_pack("{s:O}", "environment", r->environment), f, JSON_COMPACT);
    if (i == 0 || row[-1].model != row->model)
        dump(json_pack("{s:O}", "model", json_array_get(r->models, row->model)), f, JSON_COMPACT);
    dump(json_pack("{s:o}", "result", tn_bench_row_json(row)), f, JSON_COMPACT);
}

/* Known only at the end: who was fastest. */
static void jsonl_end(const tn_bench_report *r, FILE *f)
{
    json_t *regret = tn_bench_regret_json(&r->rows);
    if (json_array_size(regret))
        dump(json_pack("{s:o}", "regret", regret), f, JSON_COMPACT);
    else
        json_decref(regret);
}

/* ---- places ---------------------------------------------------------------------------------- */

int tn_bench_report_open(tn_bench_report *r, const tn_bench_settings *set)
{
    *r = (tn_bench_report){.set = set, .environment = json_object(), .models = json_array()};
    for (size_t i = 0; i < set->peers.n; i++) {
        char *name = tn_bench_peer_label(set->peers.at, set->peers.n, i);
        tn_bench_words_add(&r->peer_names, name, strlen(name));
        free(name);
    }
    tn_bench_sink *sink = &r->sinks[0];
    sink->f = set->out ? fopen(set->out, "we") : stdout;
    sink->name = set->out ? set->out : "standard output";
    sink->format = (tn_bench_format)set->format;
    if (!sink->f) {
        tn_bench_say("cannot write %s: %s", sink->name, strerror(errno));
        json_decref(r->environment);
        json_decref(r->models);
        tn_bench_words_free(&r->peer_names);
        return TN_EXIT_IO;
    }
    r->n_sinks = 1;
    if (set->out && isatty(STDOUT_FILENO))
        r->sinks[r->n_sinks++] = (tn_bench_sink){stdout, "standard output", TN_BENCH_MD, false};
    return TN_EXIT_OK;
}

static int show(tn_bench_report *r, tn_bench_sink *sink, size_t i)
{
    const tn_bench_row *row = &r->rows.at[i];
    switch (sink->format) {
    case TN_BENCH_MD:
        if (!sink->begun) md_title(r, row, sink->f);
        if (!sink->begun) md_head(r, sink->f);
        md_row(r, row, sink->f);
        break;
    case TN_BENCH_CSV:
        if (!sink->begun) csv_line(r, row, tn_bench_row_json(row), true, sink->f);
        csv_line(r, row, tn_bench_row_json(row), false, sink->f);
        break;
    case TN_BENCH_JSONL: jsonl_row(r, i, sink->f); break;
    case TN_BENCH_JSON: return TN_EXIT_OK;
    }
    sink->begun = true;
    return tn_bench_flush(sink->f, sink->name);
}

int tn_bench_report_row(tn_bench_report *r, size_t i)
{
    int code = TN_EXIT_OK;
    tn_bench_progress_clear();
    for (int k = 0; k < r->n_sinks && !code; k++)
        code = show(r, &r->sinks[k], i);
    return code;
}

int tn_bench_report_close(tn_bench_report *r)
{
    int code = TN_EXIT_OK;
    tn_bench_progress_clear();
    for (int k = 0; k < r->n_sinks; k++) {
        tn_bench_sink *sink = &r->sinks[k];
        if (!ferror(sink->f)) {
            if (sink->format == TN_BENCH_MD) md_end(r, sink->f);
            if (sink->format == TN_BENCH_CSV) csv_end(r, sink->f);
            if (sink->format == TN_BENCH_JSONL) jsonl_end(r, sink->f);
            if (sink->format == TN_BENCH_JSON)
                dump(tn_bench_report_json(r), sink->f, JSON_INDENT(1));
            const int flushed = tn_bench_flush(sink->f, sink->name);
            if (!code) code = flushed;
        }
        if (sink->f != stdout) fclose(sink->f);
    }
    tn_bench_rows_free(&r->rows);
    tn_bench_words_free(&r->peer_names);
    json_decref(r->environment);
    json_decref(r->models);
    return code;
}
