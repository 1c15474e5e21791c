/* What a plan that exists is asked for later: its boundary, its times, and another like it. */
#include "plan_chain.h"

#include <math.h>
#include <string.h>

/* The share that a rule asked for, from what became of it: units are whole. */
static float asked_share(const tn_plan *plan, const tn_shape *s, int32_t i)
{
    const tn_shape_tensor *t = &s->tensor[i];
    if (i == s->head) return (float)plan->head_units / (float)s->head_units;
    const bool unit =
        t->part >= TN_PART_GATE && t->part <= TN_PART_DOWN && !plan->layer[t->layer].mixed;
    if (!unit || s->layer[t->layer].n_units == 0) return plan->share[i];
    return (float)plan->layer[t->layer].units / (float)s->layer[t->layer].n_units;
}

float *tn_plan_fixed(const tn_plan *plan, const tn_shape *s, const tn_allocator *a)
{
    float *fixed = tn_alloc(a, (size_t)plan->n_tensors, sizeof *fixed);
    for (int32_t i = 0; fixed && i < plan->n_tensors; i++)
        fixed[i] = plan->rule[i] >= 0 ? asked_share(plan, s, i) : NAN;
    return fixed;
}

/* room NULL: what `live` tokens leave. */
static tn_status boundary(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                          const tn_constraints *c, int64_t live, const uint64_t *room,
                          int32_t *units, const tn_allocator *a, tn_error *err)
{
    tn_cost k;
    tn_constraints full;
    tn_status status = tn_constraints_fill(&full, c, s, p, err);
    if (status) return status;
    full.rules = NULL;
    float *fixed = tn_plan_fixed(plan, s, a);
    if (!fixed) return tn_fail_nomem(err, (size_t)plan->n_tensors * sizeof *fixed, "the boundary");
    tn_cost_init(&k, s, p, &full, fixed);
    status = room ? tn_plan_units_in(plan, &k, room, units, a, err)
                  : tn_plan_units(plan, &k, live, units, a, err);
    tn_free(a, fixed);
    return status;
}

tn_status tn_plan_boundary(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                           const tn_constraints *c, int64_t live, int32_t *units,
                           const tn_allocator *a, tn_error *err)
{
    return boundary(plan, s, p, c, live, NULL, units, a, err);
}

tn_status tn_plan_boundary_in(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                              const tn_constraints *c, const uint64_t room[TN_MAX_DEVICES],
                              int32_t *units, const tn_allocator *a, tn_error *err)
{
    return boundary(plan, s, p, c, 0, room, units, a, err);
}

/* units[n_layers] when n tokens are live; *moved: they are others than the plan's. */
static tn_status units_at(const tn_plan *plan, const tn_cost *k, int64_t n, int32_t *units,
                          bool *moved, const tn_allocator *a, tn_error *err)
{
    const tn_status s = tn_plan_units(plan, k, n, units, a, err);
    for (int32_t l = 0; l < plan->n_layers && !s; l++)
        *moved |= units[l] != plan->layer[l].ffn_mode;
    return s;
}

tn_status tn_plan_settle(tn_plan *plan, tn_cost *k, bool *moved, const tn_allocator *a,
                         tn_error *err)
{
    *moved = false;
    if (!plan->elastic) return TN_OK;
    int32_t *units = tn_alloc(a, (size_t)plan->n_layers, sizeof *units);
    if (!units) return tn_fail_nomem(err, (size_t)plan->n_layers * sizeof *units, "the boundary");
    tn_status s = units_at(plan, k, 1, units, moved, a, err);
    if (!s) s = units_at(plan, k, k->c.n_ctx, units, moved, a, err);
    for (int32_t l = 0; l < plan->n_layers && !s; l++) {
        tn_plan_layer *y = &plan->layer[l];
        y->ffn_mode = units[l];
        y->units = y->mixed ? 0 : units[l];
    }
    tn_free(a, units);
    if (s) return s;
    plan->elastic = plan->dropping = false;
    plan->live = (uint64_t)k->c.n_ctx;
    if (!k->c.mapped) { /* less is carried, so that more of it is page-locked */
        k->c.pinned = tn_cost_pinned(k, tn_plan_carried(plan, k));
        tn_cost_pin(k, k->c.pinned);
    }
    return tn_plan_account(plan, k, a, err);
}

/* The machine with devices that take no time. */
static void take_no_time(tn_profile *p)
{
    static const double fast = 1e9;
    for (int32_t d = 0; d < p->n_devices; d++) {
        tn_profile_device *y = &p->device[d];
        for (int i = 0; i < TN_TYPE_COUNT; i++)
            y->rate.matvec[i] *= fast;
        for (int i = 0; i < TN_KV_KINDS; i++)
            y->rate.kv[i] *= fast;
        y->rate.op_s = y->cross_s = 0;
        y->pinned *= fast;
        y->pageable *= fast;
    }
}

tn_status tn_plan_token(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                        const tn_constraints *c, int64_t depth, const int32_t *units,
                        double *host_s, double *total_s, const tn_allocator *a, tn_error *err)
{
    tn_cost k;
    tn_constraints full;
    tn_status status = tn_constraints_fill(&full, c, s, p, err);
    if (status) return status;
    full.rules = NULL;
    float *fixed = tn_plan_fixed(plan, s, a);
    tn_profile *host = tn_alloc(a, 1, sizeof *host);
    if (fixed && host) {
        tn_cost_init(&k, s, p, &full, fixed);
        *total_s = tn_plan_step(plan, &k, depth, units);
        *host = *p;
        take_no_time(host);
        tn_cost_init(&k, s, host, &full, fixed);
        *host_s = tn_plan_step(plan, &k, depth, units);
    } else {
        status = tn_fail_nomem(err, sizeof *host, "a prediction");
    }
    tn_free(a, host);
    tn_free(a, fixed);
    return status;
}

tn_status tn_plan_again(tn_plan *out, const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                        const tn_constraints *c, const bool *moves, const tn_allocator *a,
                        tn_error *err)
{
    tn_cost k;
    tn_constraints full;
    double gap;
    *out = (tn_plan){.feasible = false};
    tn_status status = tn_constraints_fill(&full, c, s, p, err);
    if (status) return status;
    full.rules = NULL;
    float *fixed = tn_alloc(a, (size_t)s->n_tensors, sizeof *fixed);
    if (!fixed) return tn_fail_nomem(err, (size_t)s->n_tensors * sizeof *fixed, "planning again");
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const tn_shape_tensor *t = &s->tensor[i];
        const bool ffn = t->part >= TN_PART_GATE && t->part <= TN_PART_DOWN;
        fixed[i] = ffn && moves[t->layer] ? NAN : plan->share[i];
    }
    tn_cost_init(&k, s, p, &full, fixed);
    k.stay = plan->layer;
    status = tn_plan_solve(&k, false, plan->rule, out, &gap, a, err);
    tn_free(a, fixed);
    return status;
}
