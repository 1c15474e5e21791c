/* Why things are where they are, in a sentence each. */
#include "plan_chain.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double MiB = 1024.0 * 1024.0;

/* Whether an override decided about any tensor of a layer's attention part or FFN. */
static bool overridden(const tn_plan *plan, const tn_shape *s, int32_t layer, bool ffn)
{
    if (layer == s->n_layers) return plan->rule[s->head] >= 0;
    for (int32_t j = 0; j < s->layer[layer].n; j++) {
        const int32_t i = s->of_layer[s->layer[layer].first + j];
        const bool is_ffn = s->tensor[i].part >= TN_PART_GATE && s->tensor[i].part <= TN_PART_DOWN;
        if (is_ffn == ffn && plan->rule[i] >= 0) return true;
    }
    return false;
}

static void attn_reason(const tn_planned *p, const tn_cost *k, int32_t l, char *out, size_t cap)
{
    const tn_plan_layer *y = &p->plan.layer[l];
    const int64_t live = tn_cost_live(k);
    if (y->device == TN_HOST) {
        snprintf(out, cap, "no device");
        return;
    }
    const double attended = tn_cost_attended(live - 1, 1, k->s->layer[l].window);
    const double here = tn_cost_attn(k, l, y->device, true, 1, 1, attended);
    const double there = tn_cost_attn(k, l, y->device, false, 1, 1, attended);
    const uint64_t need =
        tn_cost_attn_bytes(k, l, true) + tn_shape_kv_bytes(&k->s->layer[l], &k->c, k->c.n_ctx);
    if (y->attn)
        snprintf(out, cap, "weights and KV at device speed: %.3g instead of %.3g ms/token",
                 1e3 * here, 1e3 * there);
    else
        snprintf(out, cap,
                 "weights and KV of a full context (%.0f MiB) are worth less than what is there",
                 (double)need / MiB);
}

static void ffn_reason(const tn_planned *p, const tn_cost *k, int32_t l, char *out, size_t cap)
{
    const tn_plan_layer *y = &p->plan.layer[l];
    const tn_shape_layer *z = &k->s->layer[l];
    if (y->device == TN_HOST) {
        snprintf(out, cap, "no device");
        return;
    }
    const double now = tn_cost_ffn(k, l, y->device, y->attn, y->units, 1);
    const double whole = tn_cost_ffn(k, l, y->device, y->attn, z->n_units, 1);
    if (y->units == z->n_units)
        snprintf(out, cap, "fits whole: no hand-over, %.3g ms/token", 1e3 * whole);
    else if (y->units == 0 && now <= whole)
        snprintf(out, cap,
                 "no gain: the host reads it in %.3g ms/token, the device would take %.3g",
                 1e3 * now, 1e3 * whole);
    else if (y->units == 0)
        snprintf(out, cap, "no room: the host reads it in %.3g ms/token, %.3g if it fitted whole",
                 1e3 * now, 1e3 * whole);
    else if (now <= whole)
        snprintf(out, cap, "%s: both sides together take %.3g ms/token, the device alone %.3g",
                 z->n_expert ? "experts on both sides" : "balanced", 1e3 * now, 1e3 * whole);
    else
        snprintf(out, cap, "as much as fits: %.3g ms/token, the host alone %.3g", 1e3 * now,
                 1e3 * tn_cost_ffn(k, l, y->device, y->attn, 0, 1));
}

static void head_reason(const tn_planned *p, const tn_cost *k, char *out, size_t cap)
{
    const int d = tn_plan_head_device(&p->plan);
    const bool home = p->plan.layer[p->plan.n_layers - 1].attn;
    if (d == TN_HOST)
        snprintf(out, cap, "no device");
    else
        snprintf(out, cap, "%.3g ms/token; %.3g on the host, %.3g on the device",
                 1e3 * tn_cost_head(k, d, home, p->plan.head_units),
                 1e3 * tn_cost_head(k, d, home, 0),
                 1e3 * tn_cost_head(k, d, home, k->s->head_units));
}

void tn_plan_reason(const tn_planned *p, const tn_shape *s, const tn_profile *profile,
                    int32_t layer, bool ffn, char *out, size_t cap)
{
    tn_cost k;
    tn_cost_init(&k, s, profile, &p->c, NULL);
    if (overridden(&p->plan, s, layer, ffn))
        snprintf(out, cap, "an override says so");
    else if (layer == s->n_layers)
        head_reason(p, &k, out, cap);
    else if (ffn)
        ffn_reason(p, &k, layer, out, cap);
    else
        attn_reason(p, &k, layer, out, cap);
}
