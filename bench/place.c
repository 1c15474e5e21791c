#include "place.h"

#include "source.h"
#include "term.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool tn_bench_size_read(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char *end;
    if (*text < '0' || *text > '9') return false;
    double v = strtod(text, &end);
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    if (*end && !unit) return false;
    for (const char *u = units; unit && u <= unit; u++)
        v *= 1024;
    if (unit && end[1]) return false;
    *bytes = (uint64_t)v;
    return v >= 1 && v < 1e15;
}

bool tn_bench_place_known(const char *name)
{
    static const char *const names[] = {"all-host",   "layers",     "ffn-host",
                                        "ffn-blocks", "water-fill", "auto"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return strncmp(name, "manual:", 7) == 0 && name[7];
}

/* The rules of a file, one a line, without empty lines and comments; NULL if it is a plan in JSON.
 * The lines lie in *text. Both freed by the caller. */
static tn_status read_rules(const char *path, char **text, const char ***rules, size_t *n,
                            tn_error *err)
{
    enum { most = 1 << 20 };
    FILE *f = fopen(path, "re");
    if (!f)
        return tn_bench_fail(err, errno == ENOENT ? TN_ENOENT : TN_EIO, "cannot read '%.200s': %s",
                             path, strerror(errno));
    *text = tn_bench_alloc(most);
    const size_t len = fread(*text, 1, most - 1, f);
    fclose(f);
    (*text)[len] = 0;
    if ((*text)[strspn(*text, " \t\r\n")] == '{') return TN_OK;
    char *save = NULL;
    for (char *line = strtok_r(*text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
        line += strspn(line, " \t");
        if (!*line || *line == '#') continue;
        *rules = tn_bench_realloc(*rules, (*n + 1) * sizeof **rules);
        (*rules)[(*n)++] = line;
    }
    if (*n) return TN_OK;
    return tn_bench_fail(err, TN_EARG, "'%.200s' has neither rules REGEX=host|device nor a plan",
                         path);
}

/* The named candidate's prediction; false if it does not fit or there is none. */
static bool candidate(const tn_placement *t, const char *name, tn_placement_prediction *out)
{
    bool fits = false;
    const char *found;
    for (size_t i = 0; (found = tn_placement_candidate(t, i, &fits, out)); i++)
        if (strcmp(found, name) == 0) return fits;
    return false;
}

static tn_status read_out(const tn_bench_place *p, const tn_bench_cell *c, const tn_placement *t,
                          double *prompt_rate, double *gen_rate, json_t **plan, tn_error *err)
{
    tn_placement_info info = {.struct_size = sizeof info};
    const tn_status s = tn_placement_get_info(t, &info, err);
    if (s) return s;
    const bool chosen = strcmp(p->placement, "auto") == 0 || p->placement[6] == ':';
    tn_placement_prediction predicted = info.predicted;
    const bool fits = chosen ? info.feasible : candidate(t, p->placement, &predicted);
    if (!fits)
        return tn_bench_fail(err, TN_ENOMEM,
                             "%s with %lld tokens does not fit into %s device memory on %s",
                             p->placement, (long long)tn_bench_cell_tokens(c),
                             p->vram ? p->vram : "the free", info.hardware);
    *prompt_rate = predicted.prefill_tok_s;
    *gen_rate = 1 / predicted.step_s;
    char *text;
    if (!chosen || tn_placement_json(t, &text, NULL)) return TN_OK;
    *plan = json_loads(text, 0, NULL);
    tn_placement_string_free(t, text);
    return TN_OK;
}

tn_status tn_bench_place_predict(const tn_bench_place *p, const tn_bench_cell *c,
                                 double *prompt_rate, double *gen_rate, json_t **plan,
                                 tn_error *err)
{
    char request[80], *text = NULL;
    const char *file = strncmp(p->placement, "manual:", 7) == 0 ? p->placement + 7 : NULL;
    const char **rules = NULL;
    size_t n_rules = 0;
    tn_placement *t = NULL;
    *plan = NULL;
    snprintf(request, sizeof request, "%d+%d@%d", c->n_prompt, c->n_gen, c->depth);
    tn_placement_options opt = {.struct_size = sizeof opt,
                                .hardware = p->hardware,
                                .request = request,
                                .n_ctx = p->n_ctx,
                                .n_batch = p->batch,
                                .threads = p->threads,
                                .kv = strcmp(p->kv, "f32") == 0 ? TN_KV_F32 : TN_KV_F16};
    if (p->vram) tn_bench_size_read(p->vram, &opt.vram[0]);
    tn_status s = file ? read_rules(file, &text, &rules, &n_rules, err) : TN_OK;
    opt.place = rules;
    opt.n_place = n_rules;
    if (file && !rules) opt.plan_file = file;
    if (!s) s = tn_placement_open(&t, p->model, &opt, err);
    if (!s) s = read_out(p, c, t, prompt_rate, gen_rate, plan, err);
    tn_placement_close(t);
    free(rules);
    free(text);
    return s;
}
