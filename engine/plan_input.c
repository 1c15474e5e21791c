/* What a planning run is given: constraints with their defaults, and which tensors rules decide. */
#include "plan_chain.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const double MiB = 1024.0 * 1024.0;

/* ---- constraints ---------------------------------------------------------------------------- */

static tn_status fill_request(tn_constraints *c, tn_error *err)
{
    tn_request *r = &c->request;
    if (r->depth < 0 || r->n_prompt < 0 || r->n_gen < 0)
        return tn_fail(err, TN_EARG, -1, "--for: counts must not be negative");
    if (r->n_prompt + r->n_gen == 0) {
        const int64_t room = c->n_ctx - r->depth;
        if (room < 1)
            return tn_fail(err, TN_EARG, -1,
                           "--for: a live depth of %lld leaves no room in --ctx %lld",
                           (long long)r->depth, (long long)c->n_ctx);
        r->n_prompt = room >= 2560 ? 2048 : room * 4 / 5;
        r->n_gen = room >= 2560 ? 512 : room - r->n_prompt;
    }
    if (r->depth > c->n_ctx || r->n_prompt > c->n_ctx || r->n_gen > c->n_ctx ||
        r->depth + r->n_prompt + r->n_gen > c->n_ctx)
        return tn_fail(err, TN_EARG, -1,
                       "--for asks for %lld + %lld + %lld tokens, but --ctx has room for %lld",
                       (long long)r->depth, (long long)r->n_prompt, (long long)r->n_gen,
                       (long long)c->n_ctx);
    return TN_OK;
}

tn_status tn_constraints_fill(tn_constraints *out, const tn_constraints *c, const tn_shape *s,
                              const tn_profile *p, tn_error *err)
{
    *out = *c;
    if (c->n_ctx < 0 || c->n_ctx > 1 << 30)
        return tn_fail(err, TN_EARG, -1, "--ctx: %lld is out of range", (long long)c->n_ctx);
    if (c->n_batch < 0 || c->page_size < 0 || c->threads < 0 || c->kv >= TN_KV_KINDS)
        return tn_fail(err, TN_EARG, -1, "--batch, page size, --threads or --kv is out of range");
    if (c->kv == TN_KV_KIND_Q8_0 && s->odd_head_dim)
        return tn_fail(
            err, TN_EUNSUPPORTED, -1,
            "a KV cache in Q8_0 needs head dims that are multiples of 32, but one is %d; "
            "use F16 (--kv f16)",
            s->odd_head_dim);
    if (!out->n_ctx) out->n_ctx = s->n_ctx_train;
    if (!out->n_batch) out->n_batch = 512;
    if (out->n_batch > out->n_ctx) out->n_batch = (int32_t)out->n_ctx;
    if (!out->page_size) out->page_size = 256;
    for (int32_t d = 0; d < TN_MAX_DEVICES; d++) {
        if (c->vram[d] == UINT64_MAX || (d >= p->n_devices && c->vram[d])) {
            if (c->vram[d] != UINT64_MAX)
                return tn_fail(
                    err, TN_EARG, -1,
                    "--vram names a budget for device %d, but the hardware profile '%s' has %d "
                    "device%s",
                    d, p->name, p->n_devices, p->n_devices == 1 ? "" : "s");
            out->vram[d] = 1; /* nothing fits into it */
        }
        if (d < p->n_devices && c->vram[d] != UINT64_MAX && c->vram[d] > p->device[d].memory_bytes)
            return tn_fail(
                err, TN_EARG, -1,
                "--vram %.0fM exceeds the %.0f MiB of device %d ('%s') in the hardware profile",
                (double)c->vram[d] / MiB, (double)p->device[d].memory_bytes / MiB, d,
                p->device[d].name);
    }
    return fill_request(out, err);
}

/* ---- overrides ------------------------------------------------------------------------------- */

static bool unsplittable(const tn_shape_tensor *t)
{
    return t->part == TN_PART_NORM || t->part == TN_PART_FFN_NORM || t->part == TN_PART_ROUTER ||
           t->part == TN_PART_HEAD_NORM || t->part == TN_PART_REST || t->part == TN_PART_EMBED ||
           t->rows <= 1;
}

void tn_plan_warn(tn_planned *out, const char *fmt, ...)
{
    if (out->n_warnings == TN_MAX_NOTES) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out->warning[out->n_warnings++], sizeof out->warning[0], fmt, ap);
    va_end(ap);
}

static tn_status check_side(const tn_shape_tensor *t, const tn_rule *rule, const tn_profile *p,
                            tn_error *err)
{
    if (rule->share > 0 && p->n_devices == 0)
        return tn_fail(
            err, TN_EARG, -1,
            "--place '%.100s' puts %s on a device, but the hardware profile '%s' has none",
            rule->regex, t->name, p->name);
    return TN_OK;
}

static tn_str shape_name(const void *of, int64_t i)
{
    const char *name = ((const tn_shape *)of)->tensor[i].name;
    return (tn_str){name, strlen(name)};
}

/* Whether a rule would match a tensor if there were no others. */
static bool alone_matches(const tn_rule *rule, const tn_shape *s)
{
    tn_rule one = *rule;
    const tn_rules rules = {.rule = &one, .n = 1};
    for (int32_t i = 0; i < s->n_tensors; i++)
        if (tn_rules_match(&rules, s->tensor[i].name) == 0) return true;
    return false;
}

static tn_status match_all(tn_planned *out, const tn_overrides *o, const tn_shape *s,
                           const tn_profile *p, const tn_rules *rules, bool *hit, tn_error *err)
{
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const tn_shape_tensor *t = &s->tensor[i];
        const int m = tn_rules_match(rules, t->name);
        o->fixed[i] = NAN;
        o->rule[i] = -1;
        if (m == -2)
            return tn_fail(err, TN_EARG, -1,
                           "--place: matching '%s' takes too long or too much memory", t->name);
        if (m < 0) continue;
        hit[m] = true;
        const double share = rules->rule[m].share;
        if (share > 0 && share < 1 && unsplittable(t)) continue;
        const tn_status status = check_side(t, &rules->rule[m], p, err);
        if (status) return status;
        o->fixed[i] = (float)share;
        o->rule[i] = (int16_t)m;
    }
    for (size_t m = 0; m < rules->n; m++) {
        char near_names[100];
        if (hit[m]) continue;
        const tn_names names = {shape_name, s, s->n_tensors};
        if (alone_matches(&rules->rule[m], s)) {
            tn_plan_warn(out, "--place '%.60s' decides nothing: earlier rules took what it matches",
                         rules->rule[m].regex);
            continue;
        }
        tn_rules_near(&rules->rule[m], &names, near_names, sizeof near_names);
        tn_plan_warn(out, "--place '%.60s' matches no tensor%s%s", rules->rule[m].regex,
                     *near_names ? "; near: " : "", near_names);
    }
    return TN_OK;
}

tn_status tn_overrides_make(tn_planned *out, tn_overrides *o, const tn_shape *s,
                            const tn_profile *p, const tn_rules *rules, const tn_allocator *a,
                            tn_error *err)
{
    *o = (tn_overrides){NULL, NULL};
    if (!rules || !rules->n) return TN_OK;
    o->fixed = tn_alloc(a, (size_t)s->n_tensors, sizeof *o->fixed);
    o->rule = tn_alloc(a, (size_t)s->n_tensors, sizeof *o->rule);
    bool *hit = tn_alloc(a, rules->n, sizeof *hit);
    tn_status status = TN_OK;
    if (!o->fixed || !o->rule || !hit)
        status = tn_fail_nomem(err, (size_t)s->n_tensors * sizeof *o->fixed, "the overrides");
    if (!status) status = match_all(out, o, s, p, rules, hit, err);
    tn_free(a, hit);
    return status;
}

void tn_overrides_free(tn_overrides *o, const tn_allocator *a)
{
    tn_free(a, o->fixed);
    tn_free(a, o->rule);
}
