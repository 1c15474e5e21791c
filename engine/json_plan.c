/* Plans as JSON: the report for programs, and the file that replays. */
#include "json_read.h"
#include "json_text.h"
#include "plan_chain.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const format = "tenon-plan-1";
static const char *const kv_names[TN_KV_KINDS] = {"f16", "f32", "q8_0"};

/* ---- writing --------------------------------------------------------------------------------- */

/* A number, or null where there is none. */
static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *prediction(const tn_prediction *p)
{
    json_t *depths = json_object();
    for (int32_t i = 0; i < p->n_depths; i++) {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)p->depth[i]);
        json_object_set_new(depths, key, number(p->decode_tok_s[i]));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:I}", "request_s", number(p->request_s),
                     "decode_tok_s", depths, "prefill_tok_s", number(p->prefill_tok_s), "ttft_s",
                     number(p->ttft_s), "step_ms", number(1e3 * p->step_s), "streamed_from",
                     (json_int_t)p->streamed_from);
}

static uint64_t used(const tn_plan_memory *m)
{
    return m->weights + m->kv + m->buffers + m->masters;
}

static json_t *memory(const tn_plan_memory *m)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "budget_bytes", (json_int_t)m->budget,
                     "bytes", (json_int_t)used(m), "weights_bytes", (json_int_t)m->weights,
                     "kv_bytes", (json_int_t)m->kv, "kv_full_bytes", (json_int_t)m->kv_full,
                     "buffer_bytes", (json_int_t)m->buffers, "master_bytes",
                     (json_int_t)m->masters);
}

static const char *where(double share)
{
    return share <= 0 ? "host" : share >= 1 ? "device" : "split";
}

static json_t *unit(const tn_planned *p, const tn_shape *s, const tn_profile *profile,
                    int32_t layer, const char *part, double share, int32_t units, int32_t of)
{
    char match[96], reason[200];
    const bool ffn = strcmp(part, "ffn") == 0, head = layer == s->n_layers;
    const int device = head ? tn_plan_head_device(&p->plan) : p->plan.layer[layer].device;
    /* A layer's FFN, or "(?!" everything of the layer but it. */
    if (head)
        snprintf(match, sizeof match, "%s", s->tied ? "^token_embd\\." : "^output\\.");
    else
        snprintf(match, sizeof match, "^blk\\.%d\\.(?%cffn_(gate|up|down)(_exps)?\\.)", layer,
                 ffn ? ':' : '!');
    tn_plan_reason(p, s, profile, layer, ffn, reason, sizeof reason);
    json_t *j =
        json_pack("{s:s, s:s, s:f, s:s, s:i, s:s, s:i, s:i, s:i}", "match", match, "where",
                  where(share), "share", share, "reason", reason, "layer", head ? -1 : layer,
                  "part", part, "device", device, "units", units, "of", of);
    if (ffn && of && s->layer[layer].n_expert)
        json_object_set_new(j, "hit_share", json_real(tn_shape_hit_share(&s->layer[layer], units)));
    return j;
}

/* Tensors that are placed one by one, because of overrides; they come first, so that the first row
 * that matches a name is right. */
static void single_tensors(json_t *list, const tn_plan *plan, const tn_shape *s)
{
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const tn_shape_tensor *t = &s->tensor[i];
        const bool ffn = t->part >= TN_PART_GATE && t->part <= TN_PART_DOWN;
        const bool own = ffn            ? plan->layer[t->layer].mixed
                         : t->layer < 0 ? plan->rule[i] >= 0 && i != s->head
                                        : plan->share[i] != plan->layer[t->layer].attn;
        if (!own) continue;
        char match[160], *out = match;
        *out++ = '^';
        for (const char *c = t->name; *c; *out++ = *c++)
            if (!isalnum((unsigned char)*c) && *c != '_') *out++ = '\\';
        memcpy(out, "$", 2);
        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:f, s:s, s:i, s:s}", "match", match, "where",
                      where(plan->share[i]), "share", (double)plan->share[i], "reason",
                      plan->rule[i] < 0 ? "beside what an override moved" : "an override says so",
                      "layer", t->layer, "part", "tensor"));
    }
}

static json_t *units(const tn_planned *p, const tn_shape *s, const tn_profile *profile)
{
    json_t *list = json_array();
    const tn_plan *plan = &p->plan;
    single_tensors(list, plan, s);
    for (int32_t l = 0; l < s->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        const tn_shape_layer *z = &s->layer[l];
        double share = (double)tn_shape_ffn_bytes(z, y->units) / (double)z->ffn_bytes;
        if (y->mixed) {
            uint64_t bytes = 0;
            for (int32_t j = 0; j < z->n; j++) {
                const int32_t i = s->of_layer[z->first + j];
                if (s->tensor[i].part >= TN_PART_GATE && s->tensor[i].part <= TN_PART_DOWN)
                    bytes += (uint64_t)((double)plan->share[i] * (double)s->tensor[i].bytes);
            }
            share = (double)bytes / (double)z->ffn_bytes;
        }
        json_array_append_new(list, unit(p, s, profile, l, "attn", y->attn, y->attn, 1));
        json_array_append_new(
            list, unit(p, s, profile, l, "ffn", share, y->ffn_mode, y->mixed ? 0 : z->n_units));
    }
    const double share =
        (double)tn_shape_head_bytes(s, plan->head_units) / (double)s->tensor[s->head].bytes;
    json_array_append_new(
        list, unit(p, s, profile, s->n_layers, "head", share, plan->head_units, s->head_units));
    return list;
}

static json_t *overrides(const tn_plan *plan, const tn_shape *s, const tn_allocator *a)
{
    json_t *j = json_object();
    float *fixed = tn_plan_fixed(plan, s, a);
    for (int32_t i = 0; fixed && i < s->n_tensors; i++)
        if (!isnan(fixed[i]))
            json_object_set_new(j, s->tensor[i].name, json_real((double)fixed[i]));
    if (!fixed) {
        json_decref(j);
        return NULL;
    }
    tn_free(a, fixed);
    return j;
}

/* For every layer how often each of its experts was chosen, as far as that is known. */
static json_t *experts(const tn_shape *s)
{
    json_t *list = json_array();
    bool any = false;
    for (int32_t l = 0; l < s->n_layers; l++)
        any |= s->layer[l].use != NULL;
    for (int32_t l = 0; any && l < s->n_layers; l++) {
        json_t *row = json_array();
        for (int32_t e = 0; s->layer[l].use && e < s->layer[l].n_expert; e++)
            json_array_append_new(row, json_integer((json_int_t)s->layer[l].use->count[e]));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *candidates(const tn_planned *p)
{
    json_t *all = json_object();
    for (int32_t i = 0; i < p->n_candidates; i++) {
        const tn_candidate *c = &p->candidate[i];
        json_t *j = c->feasible ? prediction(&c->predicted) : json_object();
        json_object_set_new(j, "feasible", json_boolean(c->feasible));
        json_object_set_new(all, tn_strategy_name(c->strategy), j);
    }
    return all;
}

static json_t *notes(const tn_planned *p, bool remedies)
{
    json_t *list = json_array();
    const int32_t n = remedies ? p->n_remedies : p->n_prices;
    for (int32_t i = 0; i < n; i++) {
        const char *text = remedies ? p->remedy[i].text : p->price[i].text;
        const double t = remedies ? p->remedy[i].request_s : p->price[i].request_s;
        json_array_append_new(list, json_pack("{s:s, s:o}", "text", text, "request_s", number(t)));
    }
    return list;
}

static json_t *device_list(const tn_planned *p, const tn_profile *profile)
{
    json_t *list = json_array();
    for (int32_t d = 0; d < profile->n_devices; d++) {
        json_t *j = memory(&p->plan.device[d]);
        json_object_set_new(j, "name", json_string(profile->device[d].name));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *hardware(const tn_profile *p)
{
    json_t *sources = json_object();
    for (int32_t i = 0; i < p->n_sources; i++)
        json_object_set_new(sources, p->source[i].figure, json_string(p->source[i].text));
    return json_pack("{s:s, s:s, s:s, s:o}", "name", p->name, "key", p->key, "label", p->label,
                     "sources", sources);
}

static void set_totals(json_t *doc, const tn_planned *p, int32_t n_devices)
{
    uint64_t budget = 0, bytes = 0;
    for (int32_t d = 0; d < n_devices; d++) {
        budget += p->plan.device[d].budget;
        bytes += used(&p->plan.device[d]);
    }
    json_object_set_new(doc, "budget_bytes", json_integer((json_int_t)budget));
    json_object_set_new(doc, "device_bytes", json_integer((json_int_t)bytes));
    json_object_set_new(doc, "host_budget_bytes", json_integer((json_int_t)p->plan.host.budget));
    json_object_set_new(doc, "host_bytes", json_integer((json_int_t)used(&p->plan.host)));
}

static json_t *warnings(const tn_planned *p)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < p->n_warnings; i++)
        json_array_append_new(list, json_string(p->warning[i]));
    return list;
}

tn_status tn_planned_json(const tn_planned *p, const tn_shape *s, const tn_profile *profile,
                          char **out, const tn_allocator *a, tn_error *err)
{
    const tn_constraints *c = &p->c;
    const tn_plan *plan = &p->plan;
    json_t *doc =
        json_pack("{s:s, s:{s:s, s:s, s:i}, s:o, s:I, s:s, s:i, s:i, s:i, s:b, s:{s:I, s:I, s:I}}",
                  "format", format, "model", "arch", s->arch, "hash", s->hash, "layers",
                  s->n_layers, "hardware", hardware(profile), "n_ctx", (json_int_t)c->n_ctx, "kv",
                  kv_names[c->kv], "n_batch", c->n_batch, "page_size", c->page_size, "threads",
                  c->threads ? c->threads : profile->host.threads, "mapped", c->mapped, "request",
                  "depth", (json_int_t)c->request.depth, "prompt", (json_int_t)c->request.n_prompt,
                  "generate", (json_int_t)c->request.n_gen);
    if (!doc) return tn_fail_nomem(err, 1, "the plan's JSON");
    set_totals(doc, p, profile->n_devices);
    json_t *rest = json_pack(
        "{s:b, s:I, s:s, s:b, s:b, s:I, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "feasible",
        plan->feasible, "short_bytes", (json_int_t)plan->short_bytes, "chosen",
        plan->feasible ? tn_strategy_name(plan->strategy) : "none", "elastic", plan->elastic,
        "dropping", plan->dropping, "live", (json_int_t)plan->live, "pinned_share", c->pinned,
        "predicted", prediction(&plan->predicted), "candidates", candidates(p), "prices",
        notes(p, false), "remedies", notes(p, true), "warnings", warnings(p), "units",
        units(p, s, profile), "overrides", overrides(plan, s, a), "experts", experts(s));
    const bool ok = rest && json_object_update(doc, rest) == 0;
    json_decref(rest);
    if (ok && p->optimum.feasible) {
        json_t *best = prediction(&p->optimum.predicted);
        json_object_set_new(best, "gap", json_real(p->gap));
        json_object_set_new(doc, "optimum", best);
    }
    json_object_set_new(doc, "host", memory(&plan->host));
    json_object_set_new(doc, "devices", device_list(p, profile));
    if (ok) return tn_json_text(doc, JSON_INDENT(1), a, out, err);
    json_decref(doc);
    return tn_fail_nomem(err, 1, "the plan's JSON");
}

/* ---- reading --------------------------------------------------------------------------------- */

static void same_text(tn_json_reader *r, const char *what, const char *file, const char *ours)
{
    if (r->status || strcmp(file, ours) == 0) return;
    r->status = tn_fail(r->err, TN_EARG, -1, "%s: the plan is for %s '%s', but this is '%s'",
                        r->where, what, file, ours);
}

/* ours: 0 = not given. */
static void same_count(tn_json_reader *r, const char *option, int64_t file, int64_t ours)
{
    if (r->status || ours == 0 || file == ours) return;
    r->status = tn_fail(r->err, TN_EARG, -1, "%s: the plan is for %s %lld, but %s %lld was given",
                        r->where, option, (long long)file, option, (long long)ours);
}

/* Pages of the file are never page-locked, so that other batches are carried to a device. */
static void same_load(tn_json_reader *r, bool file, bool ours)
{
    if (r->status || file == ours) return;
    r->status = tn_fail(r->err, TN_EARG, -1, "%s: the plan is %sfor --load map, which was %sgiven",
                        r->where, file ? "" : "not ", ours ? "" : "not ");
}

static void check_origin(tn_json_reader *r, const json_t *doc, const tn_shape *s,
                         const tn_profile *p, const tn_constraints *c)
{
    const json_t *model = tn_json_object(r, doc, "model"),
                 *hardware = tn_json_object(r, doc, "hardware");
    size_t up = tn_json_enter(r, "model", -1);
    same_text(r, "a model of architecture", tn_json_string(r, model, "arch"), s->arch);
    same_text(r, "the model", tn_json_string(r, model, "hash"), s->hash);
    tn_json_leave(r, up);
    up = tn_json_enter(r, "hardware", -1);
    same_text(r, "the machine", tn_json_string(r, hardware, "name"), p->name);
    same_text(r, "the machine and build", tn_json_string(r, hardware, "key"), p->key);
    tn_json_leave(r, up);
    same_text(r, "a KV cache of", tn_json_string(r, doc, "kv"), kv_names[c->kv]);
    same_count(r, "--ctx", tn_json_int(r, doc, "n_ctx", 1, 1 << 30), c->n_ctx);
    same_count(r, "--batch", tn_json_int(r, doc, "n_batch", 1, 65536), c->n_batch);
    if (json_object_get(doc, "threads")) /* plans by hand may leave these out */
        same_count(r, "--threads", tn_json_int(r, doc, "threads", 1, 4096), c->threads);
    if (json_object_get(doc, "mapped")) same_load(r, tn_json_bool(r, doc, "mapped"), c->mapped);
}

static void check_request(tn_json_reader *r, const tn_request *file, const tn_request *ours)
{
    const bool given = ours->n_prompt || ours->n_gen || ours->depth;
    const bool same = file->n_prompt == ours->n_prompt && file->n_gen == ours->n_gen &&
                      file->depth == ours->depth;
    if (r->status || !given || same) return;
    r->status =
        tn_fail(r->err, TN_EARG, -1,
                "%s: the plan is for a request of %lld+%lld@%lld, but --for %lld+%lld@%lld "
                "was given",
                r->where, (long long)file->n_prompt, (long long)file->n_gen, (long long)file->depth,
                (long long)ours->n_prompt, (long long)ours->n_gen, (long long)ours->depth);
}

static void read_constraints(tn_json_reader *r, const json_t *doc, tn_constraints *c)
{
    const json_t *request = tn_json_object(r, doc, "request");
    c->n_ctx = tn_json_int(r, doc, "n_ctx", 1, 1 << 30);
    c->n_batch = (int32_t)tn_json_int(r, doc, "n_batch", 1, 65536);
    c->page_size = (int32_t)tn_json_int(r, doc, "page_size", 1, 65536);
    if (doc && json_object_get(doc, "threads"))
        c->threads = (int32_t)tn_json_int(r, doc, "threads", 1, 4096);
    if (doc && json_object_get(doc, "pinned_share")) /* plans by hand may leave it out */
        c->pinned = tn_json_number(r, doc, "pinned_share");
    if (!(c->pinned >= 0 && c->pinned <= 1))
        tn_json_fail(r, "pinned_share", "must be from 0 to 1");
    const size_t up = tn_json_enter(r, "request", -1);
    c->request.depth = tn_json_int(r, request, "depth", 0, 1 << 30);
    c->request.n_prompt = tn_json_int(r, request, "prompt", 0, 1 << 30);
    c->request.n_gen = tn_json_int(r, request, "generate", 0, 1 << 30);
    tn_json_leave(r, up);
}

static void read_overrides(tn_json_reader *r, const json_t *doc, const tn_shape *s, tn_plan *plan,
                           float *fixed)
{
    const json_t *j = tn_json_object(r, doc, "overrides");
    const size_t up = tn_json_enter(r, "overrides", -1);
    size_t found = 0;
    for (int32_t i = 0; !r->status && i < s->n_tensors; i++) {
        fixed[i] = NAN;
        plan->rule[i] = -1;
        if (!json_object_get(j, s->tensor[i].name)) continue;
        const double share = tn_json_number(r, j, s->tensor[i].name);
        if (!(share >= 0 && share <= 1)) tn_json_fail(r, s->tensor[i].name, "must be from 0 to 1");
        fixed[i] = (float)share;
        plan->rule[i] = 0;
        found++;
    }
    if (!r->status && found != json_object_size(j))
        tn_json_fail(r, "*", "names a tensor the model lacks");
    tn_json_leave(r, up);
}

static void read_unit(tn_json_reader *r, const json_t *j, const tn_cost *k, tn_plan *plan,
                      bool *seen)
{
    const tn_shape *s = k->s;
    if (strcmp(tn_json_string(r, j, "part"), "tensor") == 0) return; /* "overrides" says it, too */
    const int32_t layer = (int32_t)tn_json_int(r, j, "layer", -1, s->n_layers - 1);
    const int32_t device = (int32_t)tn_json_int(r, j, "device", -1, k->p->n_devices - 1);
    const char *part = tn_json_string(r, j, "part");
    if (r->status) return;
    if (layer < 0) {
        plan->head_units = (int32_t)tn_json_int(r, j, "units", 0, s->head_units);
        if (plan->head_units && device < 0) tn_json_fail(r, "units", "needs a device");
        seen[2 * s->n_layers] = true;
        return;
    }
    const bool ffn = strcmp(part, "ffn") == 0;
    if (!ffn && strcmp(part, "attn") != 0) tn_json_fail(r, "part", "must be attn, ffn or head");
    int32_t fixed, n_modes;
    tn_plan_layer *y = &plan->layer[layer];
    y->device = (int8_t)device;
    y->mixed = device >= 0 && tn_cost_ffn_kind(k, layer, &fixed, &n_modes) == TN_FFN_MIXED;
    const int32_t most = !ffn ? 1 : y->mixed ? n_modes - 1 : s->layer[layer].n_units;
    const int32_t n = (int32_t)tn_json_int(r, j, "units", 0, device < 0 ? 0 : most);
    if (ffn)
        y->ffn_mode = n;
    else
        y->attn = n > 0;
    y->units = y->mixed ? 0 : y->ffn_mode;
    seen[2 * layer + ffn] = true;
}

static void read_units(tn_json_reader *r, const json_t *doc, const tn_cost *k, tn_plan *plan,
                       bool *seen)
{
    const json_t *list = tn_json_array(r, doc, "units");
    for (size_t i = 0; !r->status && i < json_array_size(list); i++) {
        const size_t up = tn_json_enter(r, "units", (int)i);
        read_unit(r, json_array_get(list, i), k, plan, seen);
        tn_json_leave(r, up);
    }
    for (int32_t i = 0; i <= 2 * k->s->n_layers; i++)
        if (!seen[i]) tn_json_fail(r, "units", "does not place every layer and the head");
    int8_t last = TN_HOST;
    for (int32_t l = 0; l < k->s->n_layers; l++) {
        if (plan->layer[l].device == TN_HOST) continue;
        if (plan->layer[l].device < last)
            tn_json_fail(r, "units", "goes back to an earlier device");
        last = plan->layer[l].device;
    }
}

/* Plans by hand may leave them out. */
static void read_experts(tn_json_reader *r, const json_t *doc, tn_shape *s, tn_expert_counts *c)
{
    const json_t *list =
        doc && json_object_get(doc, "experts") ? tn_json_array(r, doc, "experts") : NULL;
    if (r->status || json_array_size(list) == 0) return;
    if (json_array_size(list) != (size_t)s->n_layers)
        tn_json_fail(r, "experts", "is of another number of layers");
    for (int32_t l = 0; l < s->n_layers && !r->status; l++) {
        const json_t *row = json_array_get(list, (size_t)l);
        if (!json_is_array(row) ||
            (json_array_size(row) && json_array_size(row) != (size_t)s->layer[l].n_expert))
            tn_json_fail(r, "experts", "must hold a list for each layer, empty or of all experts");
        for (size_t e = 0; e < json_array_size(row) && !r->status; e++) {
            const json_t *v = json_array_get(row, e);
            if (!json_is_integer(v) || json_integer_value(v) < 0 ||
                json_integer_value(v) > TN_EXPERTS_MOST)
                tn_json_fail(r, "experts", "must hold counts");
            c->n[(int64_t)l * c->n_expert + (int64_t)e] = (uint64_t)json_integer_value(v);
        }
    }
    if (!r->status) r->status = tn_shape_count(s, c, r->err);
}

tn_status tn_plan_parse_experts(tn_shape *s, const char *text, size_t len, const char *where_from,
                                tn_error *err)
{
    tn_json_reader r = {.where = where_from, .err = err};
    tn_expert_counts c;
    int32_t most = 0;
    for (int32_t l = 0; l < s->n_layers; l++)
        if (s->layer[l].n_expert > most) most = s->layer[l].n_expert;
    if (!most) return TN_OK;
    const tn_status status = tn_expert_counts_make(&c, s->n_layers, most, s->a, err);
    if (status) return status;
    json_t *doc = tn_json_parse(&r, text, len);
    read_experts(&r, doc, s, &c);
    json_decref(doc);
    tn_expert_counts_free(&c);
    return r.status;
}

/* A budget that was asked for and the file contradict each other where the plan exceeds it. */
static tn_status check_budgets(tn_json_reader *r, const tn_plan *plan, const tn_profile *p,
                               const tn_constraints *c)
{
    for (int32_t d = TN_HOST; d < p->n_devices; d++) {
        const tn_plan_memory *m = d == TN_HOST ? &plan->host : &plan->device[d];
        if (!(d == TN_HOST ? c->ram : c->vram[d]) || used(m) <= m->budget) continue;
        return tn_fail(r->err, TN_EARG, -1,
                       "--plan %s and --%s contradict each other: the plan needs %.0f MiB of %s "
                       "memory, --%s allows %.0f MiB",
                       r->where, d == TN_HOST ? "ram" : "vram", ceil((double)used(m) / 1048576),
                       d == TN_HOST ? "host" : "device", d == TN_HOST ? "ram" : "vram",
                       (double)m->budget / 1048576);
    }
    return TN_OK;
}

/* Of a plan that moves, what does not: its units are where a full context in the memory that it was
 * made for leaves them, whatever there is now. */
static tn_status settle(tn_json_reader *r, const json_t *doc, tn_planned *out, tn_cost *k)
{
    const json_t *list = doc && json_object_get(doc, "devices") /* plans by hand may not name it */
                             ? tn_json_array(r, doc, "devices")
                             : NULL;
    bool moved;
    for (int32_t d = 0; d < k->p->n_devices && (size_t)d < json_array_size(list); d++) {
        const size_t up = tn_json_enter(r, "devices", d);
        const int64_t then =
            tn_json_int(r, json_array_get(list, (size_t)d), "budget_bytes", 1, 1ll << 52);
        tn_json_leave(r, up);
        if (!r->status && (uint64_t)then < tn_cost_budget(k, d)) k->c.vram[d] = (uint64_t)then;
    }
    if (r->status) return r->status;
    const tn_status status = tn_plan_settle(&out->plan, k, &moved, out->a, r->err);
    out->c = k->c;
    if (!status && moved)
        tn_plan_warn(out,
                     "the plan in %.60s moves weights with the context, its replay keeps them "
                     "where %lld tokens leave them",
                     r->where, (long long)k->c.n_ctx);
    return status;
}

/* Everything of a plan but its predictions. */
static tn_status read_plan(tn_json_reader *r, const json_t *doc, tn_planned *out, const tn_shape *s,
                           const tn_profile *p, const tn_constraints *c)
{
    float *fixed = tn_alloc(out->a, (size_t)s->n_tensors, sizeof *fixed);
    bool *seen = tn_alloc(out->a, (size_t)(2 * s->n_layers + 1), sizeof *seen);
    tn_status status = fixed && seen ? tn_plan_alloc(&out->plan, s, out->a, r->err)
                                     : tn_fail_nomem(r->err, (size_t)s->n_tensors, "the plan");
    if (!status) {
        tn_cost k;
        tn_constraints wanted = *c;
        read_constraints(r, doc, &wanted);
        wanted.fixed = false; /* the file knows whether it moves */
        check_request(r, &wanted.request, &c->request);
        if (!r->status) r->status = tn_constraints_fill(&out->c, &wanted, s, p, r->err);
        out->c.rules = NULL;
        read_overrides(r, doc, s, &out->plan, fixed);
        if (!r->status) {
            tn_cost_init(&k, s, p, &out->c, fixed);
            read_units(r, doc, &k, &out->plan, seen);
        }
        out->plan.strategy = TN_PLAN_FILE;
        out->plan.elastic = tn_json_bool(r, doc, "elastic");
        out->plan.dropping = tn_json_bool(r, doc, "dropping");
        out->plan.live = (uint64_t)tn_json_int(r, doc, "live", 0, 1 << 30);
        status = r->status ? r->status : tn_plan_account(&out->plan, &k, out->a, r->err);
        if (!status) status = check_budgets(r, &out->plan, p, c);
        if (!status && out->plan.elastic && c->fixed) status = settle(r, doc, out, &k);
        out->plan.feasible = !status && out->plan.short_bytes == 0;
    }
    tn_free(out->a, fixed);
    tn_free(out->a, seen);
    return status;
}

tn_status tn_plan_parse(tn_planned *out, const char *text, size_t len, const char *where_from,
                        const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                        const tn_allocator *a, tn_error *err)
{
    tn_json_reader r = {.where = where_from, .err = err};
    *out = (tn_planned){.a = a};
    json_t *doc = tn_json_parse(&r, text, len);
    if (doc && strcmp(tn_json_string(&r, doc, "format"), format) != 0)
        tn_json_fail(&r, "format", "must be \"tenon-plan-1\"");
    if (doc) check_origin(&r, doc, s, p, c);
    tn_status status = r.status;
    if (!status) status = read_plan(&r, doc, out, s, p, c);
    json_decref(doc);
    if (status) tn_planned_free(out);
    return status;
}
