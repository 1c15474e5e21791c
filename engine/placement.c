/* The planner behind the public header: files in, a placement to look at out. */
#include "calibrate.h"
#include "engine.h"
#include "file.h"
#include "hardware.h"
#include "placement.h"
#include "synthetic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { max_file = 16 << 20 };

/* ---- inputs ---------------------------------------------------------------------------------- */

/* This machine: as it was measured, or without that the generic rates with its own memory. */
static void profile_here(tn_profile *p, const char *cache_dir, const tn_allocator *a)
{
    tn_host_info host;
    char key[TN_PROFILE_TEXT], *path = cache_dir ? tn_calibration_path(cache_dir, false, a) : NULL;
    tn_calibration_key(tn_isa_name(tn_isa_detect()), tn_flags(), key);
    const bool measured = path && tn_calibration_read(p, path, key, a);
    tn_free(a, path);
    if (measured) return;
    tn_profile_generic(p);
    tn_host_info_get(&host);
    const uint64_t free_bytes = tn_host_memory_available();
    if (*host.cpu) snprintf(p->host.name, sizeof p->host.name, "%s", host.cpu);
    if (!free_bytes) return;
    p->host.memory_bytes = free_bytes;
    p->host.reserved_bytes = 0;
}

static void list_profiles(char *out, size_t cap)
{
    size_t used = 0;
    out[0] = 0;
    for (size_t i = 0; tn_profile_shipped_name(i) && used + 2 < cap; i++)
        used += (size_t)snprintf(out + used, cap - used, "%s%s", i ? ", " : "",
                                 tn_profile_shipped_name(i));
}

static tn_status find_profile(tn_profile *p, const char *name, const char *cache_dir,
                              const tn_allocator *a, tn_error *err)
{
    char *text, names[300];
    size_t len;
    if (!name) {
        profile_here(p, cache_dir, a);
        return TN_OK;
    }
    if (*name == '{') return tn_profile_parse(p, name, strlen(name), "hardware", err);
    if (tn_profile_shipped(p, name)) return TN_OK;
    tn_status s = tn_file_read(name, max_file, "a profile", &text, &len, a, err);
    if (s == TN_ENOENT) {
        list_profiles(names, sizeof names);
        return tn_fail(err, s, -1, "--hardware: '%.100s' is no file and no shipped profile (%s)",
                       name, names);
    }
    if (s) return s;
    s = tn_profile_parse(p, text, len, name, err);
    tn_free(a, text);
    return s;
}

/* Splits "llama-70b:q4_k_m"; false if it is not of that form. */
static bool split_synthetic(const char *path, char shape[64], const char **type)
{
    const char *colon = strrchr(path, ':');
    if (!colon || colon == path || colon - path >= 64 || strchr(path, '/')) return false;
    memcpy(shape, path, (size_t)(colon - path));
    shape[colon - path] = 0;
    *type = colon + 1;
    return true;
}

/* As many devices as are asked for. The machine is another one then, and has another name. */
static tn_status set_devices(tn_profile *p, int32_t n, tn_error *err)
{
    char name[TN_PROFILE_TEXT];
    if (n < 0 || n > TN_MAX_DEVICES)
        return tn_fail(err, TN_EARG, -1, "tn_placement_options: n_devices is %d; use 0 to %d", n,
                       (int)TN_MAX_DEVICES);
    if (!n || !p->n_devices || n == p->n_devices) return TN_OK;
    for (int32_t i = p->n_devices; i < n; i++)
        p->device[i] = p->device[p->n_devices - 1];
    p->n_devices = n;
    memcpy(name, p->name, sizeof name);
    snprintf(p->name, sizeof p->name, "%.130s with %d device%s", name, n, n == 1 ? "" : "s");
    return TN_OK;
}

static tn_status read_shape(tn_placement *p, const char *path, int32_t granule, tn_error *err)
{
    const tn_gguf_options opt = {sizeof opt, true, &p->a};
    tn_gguf *g = NULL;
    void *header = NULL;
    size_t size;
    char shape[64];
    const char *type;
    tn_status s = tn_gguf_open(&g, path, &opt, err);
    if (s == TN_ENOENT && split_synthetic(path, shape, &type)) {
        s = tn_synthetic_header(&header, &size, shape, type, &p->a, err);
        if (!s) s = tn_gguf_parse(&g, header, size, path, &opt, err);
    }
    if (!s) s = tn_shape_read(&p->shape, g, path, granule, &p->a, err);
    tn_gguf_close(g);
    tn_free(&p->a, header);
    return s;
}

/* What was counted of the experts in earlier runs; a file that is none does no harm, but *why says
 * so. */
static tn_status read_experts(tn_placement *p, const char *cache_dir, tn_error *why, tn_error *err)
{
    tn_expert_counts c;
    bool any = false;
    for (int32_t l = 0; l < p->shape.n_layers; l++)
        any |= p->shape.layer[l].n_expert > 0;
    if (!any || !cache_dir) return TN_OK;
    char *path = tn_experts_path(cache_dir, p->shape.header, &p->a);
    if (!path) return tn_fail_nomem(err, strlen(cache_dir), "a file's name");
    tn_status s = tn_experts_read(&c, path, p->shape.header, &p->a, why);
    tn_free(&p->a, path);
    if (!s) {
        s = tn_shape_count(&p->shape, &c, why);
        tn_expert_counts_free(&c);
    }
    if (s == TN_ENOENT) *why = (tn_error){0};
    return s == TN_ENOMEM ? tn_fail_nomem(err, 1, "the use of experts") : TN_OK;
}

/* ---- options --------------------------------------------------------------------------------- */

/* A count that ends at `end` or one of its characters; -1 if it is none. */
static int64_t count(const char **s, const char *ends)
{
    char *end;
    if (**s < '0' || **s > '9') return -1;
    errno = 0;
    const long long v = strtoll(*s, &end, 10);
    if (errno || v > 1 << 30 || (*end && !strchr(ends, *end))) return -1;
    *s = end;
    return v;
}

static tn_status read_request(tn_request *r, const char *text, int64_t n_ctx, tn_error *err)
{
    static const struct {
        const char *name;
        tn_request request;
    } named[] = {{"long", {0, 24576, 512}}, {"batch", {0, 8192, 32}}};
    *r = (tn_request){0, 0, 0};
    if (!text || strcmp(text, "chat") == 0)
        return TN_OK; /* the planner's default fits any context */
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        if (strcmp(text, named[i].name) != 0) continue;
        *r = named[i].request;
        const int64_t over = r->n_prompt + r->n_gen - n_ctx;
        if (n_ctx && over > 0) /* a short context: as much of it as there is */
            r->n_prompt = r->n_prompt > over ? r->n_prompt - over : n_ctx - n_ctx / 8,
            r->n_gen = r->n_gen < n_ctx - r->n_prompt ? r->n_gen : n_ctx - r->n_prompt;
        return TN_OK;
    }
    const char *s = text;
    r->n_prompt = count(&s, "+");
    r->n_gen = r->n_prompt >= 0 && *s == '+' ? (s++, count(&s, "@")) : -1;
    r->depth = r->n_gen >= 0 && *s == '@' ? (s++, count(&s, "")) : 0;
    if (r->n_prompt >= 0 && r->n_gen >= 0 && r->depth >= 0 && !*s && r->n_prompt + r->n_gen > 0)
        return TN_OK;
    return tn_fail(err, TN_EARG, -1,
                   "--for: '%.60s' is not chat, long, batch or PROMPT+GENERATED[@DEPTH] in tokens",
                   text);
}

static tn_status read_rules(tn_rules *rules, const tn_placement_options *opt, tn_error *err)
{
    tn_status s = TN_OK;
    for (size_t i = 0; i < opt->n_place && !s; i++)
        s = tn_rules_add(rules, opt->place[i], err);
    if (!s && opt->n_place && opt->plan_file)
        s = tn_fail(err, TN_EARG, -1,
                    "--plan %.100s and --place '%.100s' contradict each other: a plan file is "
                    "replayed as it is",
                    opt->plan_file, opt->place[0]);
    if (!s && opt->candidate && opt->plan_file)
        s = tn_fail(err, TN_EARG, -1,
                    "tn_placement_options: a plan file and candidate '%.40s' contradict each other",
                    opt->candidate);
    return s;
}

static tn_status replay(tn_placement *p, const char *path, const tn_constraints *c, tn_error *err)
{
    char *text;
    size_t len;
    tn_status s = tn_file_read(path, max_file, "a plan", &text, &len, &p->a, err);
    if (s) return s;
    s = tn_plan_parse_experts(&p->shape, text, len, path, err);
    if (!s) s = tn_plan_parse(&p->planned, text, len, path, &p->shape, &p->profile, c, &p->a, err);
    tn_free(&p->a, text);
    return s;
}

/* Puts the plan of a named candidate in the place of the best. */
static tn_status take_candidate(tn_placement *p, const char *name, const tn_constraints *c,
                                tn_error *err)
{
    int i = 0;
    while (i < TN_PLAN_FILE && strcmp(tn_strategy_name((tn_strategy)i), name) != 0)
        i++;
    if (i == TN_PLAN_FILE)
        return tn_fail(err, TN_EARG, -1, "tn_placement_options: there is no candidate '%.40s'",
                       name);
    tn_plan taken = {.feasible = false};
    tn_constraints as_listed = *c;
    as_listed.pinned = p->planned.c.pinned;
    tn_status s =
        tn_plan_candidate(&taken, &p->shape, &p->profile, &as_listed, (tn_strategy)i, &p->a, err);
    if (!s && !taken.feasible)
        s = tn_fail(err, TN_ENOMEM, -1, "'%s' does not fit into the memory of %s", name,
                    p->profile.name);
    if (s) {
        tn_plan_free(&taken, &p->a);
        return s;
    }
    tn_plan_free(&p->planned.plan, &p->a);
    p->planned.plan = taken;
    return TN_OK;
}

static tn_status plan(tn_placement *p, const tn_placement_options *opt, tn_error *err)
{
    tn_rules rules = {.a = &p->a};
    tn_constraints c = {.n_ctx = opt->n_ctx,
                        .n_batch = opt->n_batch,
                        .page_size = opt->page_size,
                        .threads = opt->threads,
                        .kv = (tn_kv_kind)opt->kv,
                        .ram = opt->ram,
                        .fixed = opt->fixed,
                        .mapped = opt->load == TN_LOAD_MAP,
                        .rules = &rules};
    for (int d = 0; d < TN_MAX_DEVICES; d++)
        c.vram[d] = opt->vram[d];
    if (opt->kv != TN_KV_F16 && opt->kv != TN_KV_F32 && opt->kv != TN_KV_Q8_0)
        return tn_fail(err, TN_EARG, -1, "tn_placement_options: kv %d is unknown", (int)opt->kv);
    if (opt->load < TN_LOAD_AUTO || opt->load > TN_LOAD_LATER)
        return tn_fail(err, TN_EARG, -1, "tn_placement_options: load mode %d is unknown",
                       (int)opt->load);
    tn_status s =
        read_request(&c.request, opt->request, opt->n_ctx ? opt->n_ctx : p->shape.n_ctx_train, err);
    if (!s) s = read_rules(&rules, opt, err);
    if (!s && opt->plan_file)
        s = replay(p, opt->plan_file, &c, err);
    else if (!s)
        s = tn_plan_make(&p->planned, &p->shape, &p->profile, &c, &p->a, err);
    if (!s && opt->candidate) s = take_candidate(p, opt->candidate, &c, err);
    tn_rules_free(&rules);
    return s;
}

tn_status tn_placement_open(tn_placement **out, const char *path,
                            const tn_placement_options *options, tn_error *err)
{
    *out = NULL;
    tn_placement_options opt;
    tn_status s = tn_options_copy(&opt, sizeof opt, options, "tn_placement_options", err);
    if (s) return s;
    const tn_allocator a = opt.allocator.alloc ? opt.allocator : tn_default_allocator;
    tn_error why = {0};
    tn_placement *p = tn_alloc(&a, 1, sizeof *p);
    if (!p) return tn_fail_nomem(err, sizeof *p, "the placement");
    p->a = a;
    s = find_profile(&p->profile, opt.hardware, opt.cache_dir, &p->a, err);
    if (!s) s = set_devices(&p->profile, opt.n_devices, err);
    if (!s) s = read_shape(p, path, opt.granule, err);
    if (!s && !opt.plan_file) s = read_experts(p, opt.cache_dir, &why, err);
    if (!s) s = plan(p, &opt, err);
    if (!s && *why.msg && p->planned.n_warnings < TN_MAX_NOTES)
        snprintf(p->planned.warning[p->planned.n_warnings++], sizeof p->planned.warning[0],
                 "what was counted of experts is ignored: %.150s", why.msg);
    if (s) {
        tn_placement_close(p);
        return s;
    }
    *out = p;
    return TN_OK;
}

bool tn_placement_free(const tn_placement *p, int32_t layer)
{
    const tn_plan *plan_ = &p->planned.plan;
    const tn_plan_layer *y = &plan_->layer[layer];
    const tn_shape_layer *z = &p->shape.layer[layer];
    if (!plan_->elastic || p->planned.c.fixed || y->device == TN_HOST || y->mixed) return false;
    for (int32_t j = 0; j < z->n; j++) {
        const int32_t i = p->shape.of_layer[z->first + j];
        const tn_part part = p->shape.tensor[i].part;
        if (part >= TN_PART_GATE && part <= TN_PART_DOWN && plan_->rule[i] >= 0) return false;
    }
    return true;
}

bool tn_placement_moves(const tn_placement *p, int32_t layer)
{
    const tn_plan *y = &p->planned.plan;
    return tn_placement_free(p, layer) &&
           (y->dropping || y->layer[layer].units < p->shape.layer[layer].n_units);
}

void tn_placement_close(tn_placement *p)
{
    if (!p) return;
    const tn_allocator a = p->a;
    tn_planned_free(&p->planned);
    tn_shape_free(&p->shape);
    tn_free(&a, p);
}

/* ---- outputs --------------------------------------------------------------------------------- */

static tn_placement_prediction prediction(const tn_prediction *p)
{
    tn_placement_prediction out = {.request_s = p->request_s,
                                   .ttft_s = p->ttft_s,
                                   .prefill_tok_s = p->prefill_tok_s,
                                   .step_s = p->step_s,
                                   .streamed_from = p->streamed_from,
                                   .n_depths = p->n_depths};
    memcpy(out.depth, p->depth, sizeof out.depth);
    memcpy(out.decode_tok_s, p->decode_tok_s, sizeof out.decode_tok_s);
    return out;
}

/* Of all choices of experts, expected share on a device; *counted: as far as
 * known, not all alike. */
static double hit_share(const tn_placement *p, bool *counted)
{
    double sum = 0;
    int32_t n = 0;
    *counted = false;
    for (int32_t l = 0; l < p->shape.n_layers; l++) {
        const tn_shape_layer *z = &p->shape.layer[l];
        const tn_plan_layer *y = &p->planned.plan.layer[l];
        if (!z->n_expert || y->mixed) continue;
        sum += y->device == TN_HOST ? 0 : tn_shape_hit_share(z, y->units);
        *counted |= z->use != NULL;
        n++;
    }
    return n ? sum / n : 0;
}

static bool devices_used(const tn_placement *p)
{
    bool used = p->planned.plan.predicted.streamed_from > 0;
    for (int32_t d = 0; d < p->profile.n_devices; d++)
        used |= p->planned.plan.device[d].weights > 0;
    return used;
}

tn_status tn_placement_get_info(const tn_placement *p, tn_placement_info *info, tn_error *err)
{
    if (info->struct_size < sizeof info->struct_size || info->struct_size > 4096)
        return tn_fail(err, TN_EARG, -1, "tn_placement_info: set struct_size to sizeof the struct");
    const tn_plan *plan_ = &p->planned.plan;
    const tn_constraints *c = &p->planned.c;
    tn_placement_info full = {
        .struct_size = info->struct_size,
        .arch = p->shape.arch,
        .hardware = p->profile.name,
        .label = p->profile.label,
        .chosen = plan_->feasible ? tn_strategy_name(plan_->strategy) : "none",
        .feasible = plan_->feasible,
        .short_bytes = plan_->short_bytes,
        .elastic = plan_->elastic,
        .n_layers = p->shape.n_layers,
        .n_devices = p->profile.n_devices,
        .n_ctx = c->n_ctx,
        .n_prompt = c->request.n_prompt,
        .n_generated = c->request.n_gen,
        .depth = c->request.depth,
        .weight_bytes = p->shape.weight_bytes,
        .predicted = prediction(&plan_->predicted),
        .optimum_s = p->planned.optimum.feasible ? p->planned.optimum.predicted.request_s : 0,
        .gap = p->planned.gap,
        .devices_used = devices_used(p),
    };
    full.hit_share = hit_share(p, &full.experts_counted);
    memcpy(info, &full, info->struct_size < sizeof full ? info->struct_size : sizeof full);
    return TN_OK;
}

tn_status tn_placement_get_memory(const tn_placement *p, int32_t device, tn_placement_memory *mem,
                                  tn_error *err)
{
    if (device < -1 || device >= p->profile.n_devices)
        return tn_fail(err, TN_EARG, -1, "there is no device %d", device);
    const tn_plan_memory *m = device < 0 ? &p->planned.plan.host : &p->planned.plan.device[device];
    *mem = (tn_placement_memory){.name = device < 0 ? p->profile.host.name
                                                    : p->profile.device[device].name,
                                 .budget_bytes = m->budget,
                                 .weight_bytes = m->weights,
                                 .kv_bytes = m->kv,
                                 .buffer_bytes = m->buffers,
                                 .kv_full_bytes = m->kv_full,
                                 .master_bytes = m->masters};
    return TN_OK;
}

static void layer_row(const tn_placement *p, int32_t l, tn_placement_row *row)
{
    const tn_shape *s = &p->shape;
    const tn_shape_layer *z = &s->layer[l];
    const tn_plan *y = &p->planned.plan;
    *row = (tn_placement_row){.device = y->layer[l].device,
                              .attn = y->layer[l].attn,
                              .units = y->layer[l].units,
                              .of = y->layer[l].mixed ? 0 : z->n_units,
                              .experts = z->n_expert > 0,
                              .window = z->window,
                              .ffn_bytes = z->ffn_bytes};
    if (z->n_expert && !y->layer[l].mixed)
        row->hit_share = tn_shape_hit_share(z, y->layer[l].units);
    row->kv_bytes =
        tn_shape_kv_bytes(z, &p->planned.c, p->planned.c.n_ctx);
    double device = 0;
    for (int32_t j = 0; j < z->n; j++) {
        const int32_t i = s->of_layer[z->first + j];
        const bool ffn = s->tensor[i].part >= TN_PART_GATE && s->tensor[i].part <= TN_PART_DOWN;
        if (!ffn)
            row->attn_bytes += s->tensor[i].bytes;
        else
            device += (double)y->share[i] * (double)s->tensor[i].bytes;
    }
    row->ffn_share = device / (double)z->ffn_bytes;
}

tn_status tn_placement_get_row(const tn_placement *p, int32_t layer, tn_placement_row *row,
                               tn_error *err)
{
    const tn_shape *s = &p->shape;
    if (layer < 0 || layer > s->n_layers)
        return tn_fail(err, TN_EARG, -1, "there is no layer %d", layer);
    if (layer < s->n_layers) {
        layer_row(p, layer, row);
        tn_plan_reason(&p->planned, s, &p->profile, layer, false, row->attn_reason,
                       sizeof row->attn_reason);
    } else {
        const uint64_t bytes = s->tensor[s->head].bytes;
        const int32_t units = p->planned.plan.head_units;
        *row =
            (tn_placement_row){.device = p->planned.plan.layer[s->n_layers - 1].device,
                               .attn = p->planned.plan.layer[s->n_layers - 1].attn,
                               .units = units,
                               .of = s->head_units,
                               .ffn_bytes = bytes,
                               .ffn_share = (double)tn_shape_head_bytes(s, units) / (double)bytes};
    }
    tn_plan_reason(&p->planned, s, &p->profile, layer, true, row->ffn_reason,
                   sizeof row->ffn_reason);
    return TN_OK;
}

const char *tn_placement_candidate(const tn_placement *p, size_t i, bool *fits,
                                   tn_placement_prediction *out)
{
    if (i >= (size_t)p->planned.n_candidates) return NULL;
    const tn_candidate *c = &p->planned.candidate[i];
    *fits = c->feasible;
    *out = prediction(&c->predicted);
    return tn_strategy_name(c->strategy);
}

const char *tn_placement_note(const tn_placement *p, tn_placement_note_kind kind, size_t i,
                              double *request_s)
{
    const tn_planned *y = &p->planned;
    double none;
    if (!request_s) request_s = &none;
    *request_s = 0;
    if (kind == TN_PLACEMENT_WARNING) return i < (size_t)y->n_warnings ? y->warning[i] : NULL;
    const bool price = kind == TN_PLACEMENT_PRICE;
    if (i >= (size_t)(price ? y->n_prices : y->n_remedies)) return NULL;
    *request_s = price ? y->price[i].request_s : y->remedy[i].request_s;
    return price ? y->price[i].text : y->remedy[i].text;
}

tn_status tn_placement_json(const tn_placement *p, char **out, tn_error *err)
{
    return tn_planned_json(&p->planned, &p->shape, &p->profile, out, &p->a, err);
}

void tn_placement_string_free(const tn_placement *p, char *s)
{
    tn_free(&p->a, s);
}

const char *tn_hardware_name(size_t i)
{
    return tn_profile_shipped_name(i);
}

tn_status tn_hardware_json(const char *name, char **out, tn_error *err)
{
    *out = NULL;
    tn_profile *p = tn_alloc(&tn_default_allocator, 1, sizeof *p);
    if (!p) return tn_fail_nomem(err, sizeof *p, "the profile");
    tn_status s = find_profile(p, name, NULL, &tn_default_allocator, err);
    if (!s) s = tn_profile_json(p, out, &tn_default_allocator, err);
    tn_free(&tn_default_allocator, p);
    return s;
}

void tn_hardware_string_free(char *s)
{
    tn_free(&tn_default_allocator, s);
}
