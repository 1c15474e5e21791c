#include "compare.h"

#include "row.h"
#include "stats.h"
#include "term.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Differences below this chance of being noise are called real. */
static const double alpha = 0.05;

/* What must be the same in both for rows to be compared. "depth" is in the test's name as well. */
static const char *const keys[] = {"threads", "batch", "kv", "isa", "load", "placement", "vram"};
enum { n_keys = sizeof keys / sizeof *keys };

/* ---- pairing rows ---------------------------------------------------------------------------- */

static const json_t *param(const json_t *row, const char *key)
{
    return json_object_get(json_object_get(row, "parameters"), key);
}

/* The value that all rows share, NULL if they differ or have none. */
static const json_t *common(const json_t *rows, const char *key)
{
    const json_t *first = param(json_array_get(rows, 0), key);
    for (size_t i = 1; i < json_array_size(rows); i++)
        if (!json_equal(first, param(json_array_get(rows, i), key))) return NULL;
    return first;
}

/* A report about one machine with 8 threads and one about another with 4 can still be compared: a
 * parameter that neither sweeps is no part of a row's name, only a note. */
static void note_differences(const json_t *a, const json_t *b, bool ignore[n_keys], json_t *notes)
{
    for (int i = 0; i < n_keys; i++) {
        const json_t *old = common(a, keys[i]), *new = common(b, keys[i]);
        ignore[i] = old && new && !json_equal(old, new);
        if (!ignore[i]) continue;
        char text[200];
        char *x = json_dumps(old, JSON_ENCODE_ANY), *y = json_dumps(new, JSON_ENCODE_ANY);
        snprintf(text, sizeof text, "%s: %.60s in the old report, %.60s in the new", keys[i],
                 x ? x : "?", y ? y : "?");
        free(x);
        free(y);
        json_array_append_new(notes, json_string(text));
    }
}

static bool same_text(const json_t *a, const json_t *b, const char *key)
{
    const json_t *x = json_object_get(a, key), *y = json_object_get(b, key);
    return (!x && !y) || json_equal(x, y);
}

static bool same_row(const json_t *a, const json_t *b, const bool ignore[n_keys])
{
    for (int i = 0; i < n_keys; i++)
        if (!ignore[i] && !json_equal(param(a, keys[i]), param(b, keys[i])) &&
            (param(a, keys[i]) || param(b, keys[i])))
            return false;
    return same_text(a, b, "test") && same_text(a, b, "engine") && same_text(a, b, "model") &&
           same_text(a, b, "label");
}

static const json_t *find_row(const json_t *rows, const json_t *like, const bool ignore[n_keys])
{
    for (size_t i = 0; i < json_array_size(rows); i++)
        if (same_row(json_array_get(rows, i), like, ignore)) return json_array_get(rows, i);
    return NULL;
}

/* ---- one pair -------------------------------------------------------------------------------- */

static tn_bench_samples samples_of(const json_t *row)
{
    tn_bench_samples s = {0};
    const json_t *list = json_object_get(row, "samples");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const double v = json_number_value(json_array_get(list, i));
        if (v > 0 && isfinite(v)) tn_bench_samples_add(&s, v);
    }
    return s;
}

/* A difference that is large but not certain is not called a regression, only named. */
static const char *verdict(const tn_bench_ratio *r, double threshold)
{
    const double part = threshold / 100;
    const bool slower = r->ratio<1 - part, faster = r->ratio> 1 + part;
    if (!slower && !faster) return isfinite(r->ratio) ? "same" : "unsure";
    if (!(r->p < alpha)) return "unsure";
    return slower ? "slower" : "faster";
}

static bool disturbed(const json_t *row)
{
    return json_is_string(json_object_get(row, "disturbed"));
}

static json_t *compare_rows(const json_t *a, const json_t *b, double threshold)
{
    tn_bench_samples x = samples_of(a), y = samples_of(b);
    const tn_bench_ratio r = tn_bench_compare_samples(x.at, x.n, y.at, y.n);
    json_t *o = json_object();
    json_object_set(o, "test", json_object_get(a, "test"));
    json_object_set(o, "model", json_object_get(a, "model"));
    json_object_set(o, "engine", json_object_get(a, "engine"));
    json_object_set(o, "label", json_object_get(a, "label"));
    json_object_set(o, "parameters", json_object_get(b, "parameters"));
    json_object_set_new(o, "old", tn_bench_number(tn_bench_quantile(x.at, x.n, 0.5)));
    json_object_set_new(o, "new", tn_bench_number(tn_bench_quantile(y.at, y.n, 0.5)));
    json_object_set_new(o, "ratio", tn_bench_number(r.ratio));
    json_object_set_new(o, "ci95",
                        isfinite(r.low) ? json_pack("[f,f]", r.low, r.high) : json_null());
    json_object_set_new(o, "p", tn_bench_number(r.p));
    json_object_set_new(o, "verdict", json_string(verdict(&r, threshold)));
    json_object_set_new(o, "disturbed", json_boolean(disturbed(a) || disturbed(b)));
    free(x.at);
    free(y.at);
    return o;
}

static void note_missing(json_t *notes, const json_t *row, const char *where)
{
    char text[200];
    const char *test = json_string_value(json_object_get(row, "test"));
    snprintf(text, sizeof text, "%.80s: only in the %s report", test ? test : "?", where);
    json_array_append_new(notes, json_string(text));
}

json_t *tn_bench_compare_reports(const json_t *a, const json_t *b, double threshold,
                                 size_t *n_slower)
{
    const json_t *old = json_object_get(a, "results"), *new = json_object_get(b, "results");
    json_t *out = json_object(), *rows = json_array(), *notes = json_array();
    bool ignore[n_keys];
    *n_slower = 0;
    note_differences(old, new, ignore, notes);
    for (size_t i = 0; i < json_array_size(old); i++) {
        const json_t *row = json_array_get(old, i), *other = find_row(new, row, ignore);
        if (!other) {
            note_missing(notes, row, "old");
            continue;
        }
        json_t *o = compare_rows(row, other, threshold);
        *n_slower += strcmp(json_string_value(json_object_get(o, "verdict")), "slower") == 0;
        json_array_append_new(rows, o);
    }
    for (size_t i = 0; i < json_array_size(new); i++)
        if (!find_row(old, json_array_get(new, i), ignore))
            note_missing(notes, json_array_get(new, i), "new");
    json_object_set_new(out, "threshold_percent", json_real(threshold));
    json_object_set_new(out, "rows", rows);
    json_object_set_new(out, "notes", notes);
    json_object_set_new(out, "n_slower", json_integer((json_int_t)*n_slower));
    return out;
}

/* ---- files and the table --------------------------------------------------------------------- */

/* JSON lines become the object that -o json would have written. */
static json_t *from_lines(FILE *f)
{
    json_t *results = json_array(), *o;
    size_t n = 0;
    while ((o = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL))) {
        json_t *row = json_object_get(o, "result");
        if (row) json_array_append(results, row);
        n++;
        json_decref(o);
    }
    json_t *out = json_pack("{s:o}", "results", results);
    if (n > 0 && json_array_size(results) > 0) return out;
    json_decref(out);
    return NULL;
}

static json_t *read_report(const char *path, int *code)
{
    json_error_t why;
    FILE *f = fopen(path, "re");
    if (!f) {
        tn_bench_say("cannot read %s: %s", path, strerror(errno));
        *code = errno == ENOENT ? TN_EXIT_NOFILE : TN_EXIT_IO;
        return NULL;
    }
    json_t *o = json_loadf(f, 0, &why);
    if (!json_is_array(json_object_get(o, "results"))) {
        json_decref(o);
        rewind(f);
        o = from_lines(f);
    }
    fclose(f);
    if (o) return o;
    tn_bench_say("%s is no report of tenon-bench -o json or jsonl", path);
    *code = TN_EXIT_MODEL;
    return NULL;
}

static double number_of(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static void print_row(const json_t *o)
{
    const json_t *ci = json_object_get(o, "ci95"), *p = json_object_get(o, "parameters");
    const char *test = json_string_value(json_object_get(o, "test"));
    const char *engine = json_string_value(json_object_get(o, "engine"));
    char interval[40] = "", name[160];
    if (json_array_size(ci) == 2)
        snprintf(interval, sizeof interval, "%.3f - %.3f", json_number_value(json_array_get(ci, 0)),
                 json_number_value(json_array_get(ci, 1)));
    const bool ours = !engine || strcmp(engine, "tenon") == 0;
    const char *label = json_string_value(json_object_get(o, "label"));
    const bool plain = !label || strcmp(label, "measured") == 0;
    snprintf(name, sizeof name, "%.60s%s%.40s%s%.48s", test ? test : "?", ours ? "" : " ",
             ours ? "" : engine, plain ? "" : ", ", plain ? "" : label);
    printf("| %-24s | %7.0f | %11.4g | %11.4g | %6.3f | %-15s | %6.4f | %s%s |\n", name,
           number_of(p, "threads"), number_of(o, "old"), number_of(o, "new"), number_of(o, "ratio"),
           interval, number_of(o, "p"), json_string_value(json_object_get(o, "verdict")),
           json_is_true(json_object_get(o, "disturbed")) ? " *" : "");
}

static void print_table(const json_t *out, size_t n_slower, double threshold)
{
    const json_t *rows = json_object_get(out, "rows"), *notes = json_object_get(out, "notes");
    bool star = false;
    printf("| %-24s | threads | %11s | %11s | %6s | %-15s | %6s | verdict |\n", "test", "old",
           "new", "ratio", "95 %", "p");
    printf("|:-------------------------|--------:|------------:|------------:|-------:|"
           ":----------------|-------:|:--------|\n");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        print_row(json_array_get(rows, i));
        star = star || json_is_true(json_object_get(json_array_get(rows, i), "disturbed"));
    }
    printf("\n");
    if (star) printf("\\* measured on a disturbed machine\n");
    for (size_t i = 0; i < json_array_size(notes); i++)
        printf("- %s\n", json_string_value(json_array_get(notes, i)));
    printf("%zu of %zu rows slower by more than %g %%\n", n_slower, json_array_size(rows),
           threshold);
}

int tn_bench_compare(const tn_bench_settings *set)
{
    int code = TN_EXIT_OK;
    size_t n_slower = 0;
    json_t *a = read_report(set->rest.at[0], &code);
    json_t *b = a ? read_report(set->rest.at[1], &code) : NULL;
    if (b) {
        json_t *out = tn_bench_compare_reports(a, b, set->threshold, &n_slower);
        if (json_array_size(json_object_get(out, "rows")) == 0) {
            tn_bench_say("the reports have no test in common");
            code = TN_EXIT_MODEL;
        } else if (set->format == TN_BENCH_JSON || set->format == TN_BENCH_JSONL) {
            json_dumpf(out, stdout,
                       JSON_REAL_PRECISION(9) |
                           (set->format == TN_BENCH_JSON ? JSON_INDENT(1) : JSON_COMPACT));
            printf("\n");
        } else {
            print_table(out, n_slower, set->threshold);
        }
        json_decref(out);
    }
    json_decref(a);
    json_decref(b);
    return code ? code : n_slower ? TN_EXIT_SLOWER : TN_EXIT_OK;
}
