#include "regret.h"

#include <math.h>
#include <string.h>

static bool is_prompt(const tn_bench_row *row)
{
    return row->what == TN_BENCH_PROMPT || row->what == TN_BENCH_PAIR_PROMPT;
}

static bool is_pair(const tn_bench_row *row)
{
    return row->what == TN_BENCH_PAIR_PROMPT || row->what == TN_BENCH_PAIR_GENERATE;
}

static bool counts(const tn_bench_row *row)
{
    return !row->error && !row->peer && isfinite(row->predicted) && row->rate.n > 0;
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* But for the placement, if `other_placement`. */
static bool same_parameters(const tn_bench_row *a, const tn_bench_row *b, bool other_placement)
{
    const tn_bench_params *x = &a->params, *y = &b->params;
    return a->model == b->model && x->threads == y->threads && x->batch == y->batch &&
           x->depth == y->depth && same_text(x->kv, y->kv) && same_text(x->isa, y->isa) &&
           same_text(x->load, y->load) && same_text(x->vram, y->vram) && is_pair(a) == is_pair(b) &&
           (!is_pair(a) || (a->n_prompt == b->n_prompt && a->n_gen == b->n_gen)) &&
           (other_placement || same_text(x->placement, y->placement));
}

/* A request under one placement; both NULL where a part was not measured. */
typedef struct request {
    const tn_bench_row *prompt, *generated;
} request;

static request find_request(const tn_bench_rows *rows, const tn_bench_row *like)
{
    request q = {NULL, NULL};
    for (size_t i = 0; i < rows->n; i++) {
        const tn_bench_row *row = &rows->at[i];
        if (!counts(row) || !same_parameters(row, like, false)) continue;
        const tn_bench_row **part = is_prompt(row) ? &q.prompt : &q.generated;
        const bool longer = !*part || (is_prompt(row) ? row->n_prompt > (*part)->n_prompt
                                                      : row->n_gen > (*part)->n_gen);
        if (longer) *part = row;
    }
    return q.prompt && q.generated ? q : (request){NULL, NULL};
}

/* Of the whole request, at the speed that was measured or predicted. */
static double seconds(const request *q, bool predicted)
{
    const tn_bench_row *p = q->prompt, *g = q->generated;
    const double prompt = predicted ? p->predicted : tn_bench_quantile(p->rate.at, p->rate.n, 0.5);
    const double gen = predicted ? g->predicted : tn_bench_quantile(g->rate.at, g->rate.n, 0.5);
    return p->n_prompt / prompt + g->n_gen / gen;
}

/* Whether no earlier row names the same request (under any placement, or the same one). */
static bool is_first(const tn_bench_rows *rows, size_t i, bool other_placement)
{
    for (size_t k = 0; k < i; k++)
        if (counts(&rows->at[k]) && same_parameters(&rows->at[k], &rows->at[i], other_placement))
            return false;
    return true;
}

static json_t *text_or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

static json_t *costs(const tn_bench_rows *rows, const request *q)
{
    return json_pack("{s:f,s:f,s:[i,i]}", "seconds", seconds(q, false), "predicted_seconds",
                     seconds(q, true), "rows", (int)(q->prompt - rows->at),
                     (int)(q->generated - rows->at));
}

static json_t *describe(const request *q)
{
    char text[64];
    const tn_bench_row *row = q->prompt;
    snprintf(text, sizeof text, "%d+%d @ d%d", row->n_prompt, q->generated->n_gen,
             row->params.depth);
    return json_pack("{s:s,s:i,s:o,s:s,s:i,s:i,s:s,s:s,s:s}", "request", text, "model",
                     (int)row->model, "vram", text_or_null(row->params.vram), "kv", row->params.kv,
                     "batch", row->params.batch, "threads", row->threads_used, "isa",
                     row->isa_used ? row->isa_used : row->params.isa, "load", row->params.load,
                     "label", row->label);
}

static void set_regrets(json_t *o, json_t *placements)
{
    const char *name, *fastest = NULL;
    json_t *value;
    double least = INFINITY;
    json_object_foreach(placements, name, value)
    {
        const double s = json_number_value(json_object_get(value, "seconds"));
        if (!(s < least)) continue;
        least = s;
        fastest = name;
    }
    json_object_foreach(placements, name, value)
    {
        const double s = json_number_value(json_object_get(value, "seconds"));
        json_object_set_new(value, "regret", json_real(s / least - 1));
    }
    json_object_set_new(o, "fastest", text_or_null(fastest));
    json_object_set_new(o, "placements", placements);
}

/* Of the request that row i is a part of; NULL if there is nothing to compare. */
static json_t *regret_of(const tn_bench_rows *rows, size_t i)
{
    json_t *placements = json_object(), *o = NULL;
    for (size_t k = i; k < rows->n; k++) {
        const tn_bench_row *row = &rows->at[k];
        if (!counts(row) || !same_parameters(row, &rows->at[i], true) || !is_first(rows, k, false))
            continue;
        const request q = find_request(rows, row);
        if (!q.prompt) continue;
        if (!o) o = describe(&q);
        json_object_set_new(placements, row->params.placement, costs(rows, &q));
    }
    if (json_object_size(placements) > 1) {
        set_regrets(o, placements);
        return o;
    }
    json_decref(placements);
    json_decref(o);
    return NULL;
}

json_t *tn_bench_regret_json(const tn_bench_rows *rows)
{
    json_t *list = json_array();
    for (size_t i = 0; i < rows->n; i++) {
        if (!counts(&rows->at[i]) || !is_first(rows, i, true)) continue;
        json_t *o = regret_of(rows, i);
        if (o) json_array_append_new(list, o);
    }
    return list;
}

void tn_bench_regret_print(FILE *f, const tn_bench_rows *rows)
{
    json_t *list = tn_bench_regret_json(rows);
    if (json_array_size(list))
        fprintf(f, "\n| request | vram | placement | seconds | predicted | regret |\n"
                   "|:--|--:|:--|--:|--:|--:|\n");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        const char *vram = json_string_value(json_object_get(o, "vram")), *name;
        json_t *value;
        json_object_foreach(json_object_get(o, "placements"), name, value)
        {
            const char *slash = strrchr(name, '/');
            fprintf(f, "| %s | %s | %s | %.3f | %.3f | %.1f %% |\n",
                    json_string_value(json_object_get(o, "request")), vram ? vram : "all",
                    slash ? slash + 1 : name, json_number_value(json_object_get(value, "seconds")),
                    json_number_value(json_object_get(value, "predicted_seconds")),
                    100 * json_number_value(json_object_get(value, "regret")));
        }
    }
    json_decref(list);
}
