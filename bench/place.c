#include "place.h"

#include "source.h"
#include "term.h"

#include <errno.h>
#include <math.h>
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

/* ---- what was planned ------------------------------------------------------------------------ */

static tn_status does_not_fit(const tn_bench_place *p, const tn_bench_cell *c, tn_error *err)
{
    return tn_bench_fail(err, TN_ENOMEM, "%s with %lld tokens does not fit into %s device memory",
                         p->placement, (long long)tn_bench_cell_tokens(c),
                         p->vram ? p->vram : "the free");
}

static char *layout_of(const json_t *plan)
{
    const json_t *units = json_object_get(plan, "units");
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f) return NULL;
    for (size_t i = 0; i < json_array_size(units); i++) {
        const json_t *u = json_array_get(units, i);
        fprintf(f, "%s=%g,", json_string_value(json_object_get(u, "match")),
                json_number_value(json_object_get(u, "share")));
    }
    fprintf(f, "%s, live %g", json_is_true(json_object_get(plan, "elastic")) ? "elastic" : "fixed",
            json_number_value(json_object_get(plan, "live")));
    fclose(f);
    return text;
}

static tn_status read_out(const tn_bench_place *p, const tn_bench_cell *c, const tn_placement *t,
                          tn_bench_planned *out, tn_error *err)
{
    tn_placement_info info = {.struct_size = sizeof info};
    tn_status s = tn_placement_get_info(t, &info, err);
    if (s) return s;
    if (!info.feasible) return does_not_fit(p, c, err);
    out->prompt_rate = info.predicted.prefill_tok_s;
    out->gen_rate = 1 / info.predicted.step_s;
    char *text;
    if ((s = tn_placement_json(t, &text, err))) return s;
    out->plan = json_loads(text, 0, NULL);
    tn_placement_string_free(t, text);
    out->layout = layout_of(out->plan);
    return out->layout ? TN_OK : tn_bench_fail(err, TN_ENOMEM, "out of memory for a plan");
}

tn_kv_type tn_bench_kv_type(const char *name)
{
    return strcmp(name, "f32") == 0    ? TN_KV_F32
           : strcmp(name, "q8_0") == 0 ? TN_KV_Q8_0
                                       : TN_KV_F16;
}

/* Devices of a profile; 1 if it cannot be read, which the planner then says. */
static int devices_of(const char *hardware)
{
    char *text = NULL;
    if (tn_hardware_json(hardware, &text, NULL)) return 1;
    json_t *profile = json_loads(text, 0, NULL);
    const size_t n = json_array_size(json_object_get(profile, "devices"));
    tn_hardware_string_free(text);
    json_decref(profile);
    return n < TN_PLACEMENT_DEVICES ? (int)n : TN_PLACEMENT_DEVICES;
}

static tn_placement_options options_of(const tn_bench_place *p, const char *request)
{
    tn_placement_options opt = {.struct_size = sizeof opt,
                                .hardware = p->hardware,
                                .request = request,
                                .n_ctx = p->n_ctx,
                                .n_batch = p->batch,
                                .n_devices = p->n_devices,
                                .threads = p->threads,
                                .kv = tn_bench_kv_type(p->kv)};
    const int n = p->n_devices ? p->n_devices : devices_of(p->hardware);
    for (int i = 0; i < n && i < TN_PLACEMENT_DEVICES; i++) { /* each device may use as much */
        if (p->vram) tn_bench_size_read(p->vram, &opt.vram[i]);
    }
    return opt;
}

tn_status tn_bench_place_plan(const tn_bench_place *p, const tn_bench_cell *c,
                              tn_bench_planned *out, tn_error *err)
{
    char request[80], *text = NULL;
    const char *file = strncmp(p->placement, "manual:", 7) == 0 ? p->placement + 7 : NULL;
    const char **rules = NULL;
    size_t n_rules = 0;
    *out = (tn_bench_planned){.prompt_rate = NAN, .gen_rate = NAN};
    snprintf(request, sizeof request, "%d+%d@%d", c->n_prompt, c->n_gen, c->depth);
    tn_placement_options opt = options_of(p, request);
    tn_status s = file ? read_rules(file, &text, &rules, &n_rules, err) : TN_OK;
    opt.place = rules;
    opt.n_place = n_rules;
    if (file && !rules) opt.plan_file = file;
    opt.fixed |= opt.plan_file != NULL;
    if (!file && strcmp(p->placement, "auto") != 0) opt.candidate = p->placement;
    if (!s) s = tn_placement_open(&out->placement, p->model, &opt, err);
    if (s == TN_ENOMEM && opt.candidate) s = does_not_fit(p, c, err);
    if (!s) s = read_out(p, c, out->placement, out, err);
    free(rules);
    free(text);
    if (s) tn_bench_planned_free(out);
    return s;
}

void tn_bench_planned_free(tn_bench_planned *p)
{
    tn_placement_close(p->placement);
    json_decref(p->plan);
    free(p->layout);
    *p = (tn_bench_planned){.plan = NULL};
}
