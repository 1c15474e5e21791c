/* Planning: constraints and overrides in, the best plan with its reasons out. */
#include "plan_chain.h"

#include <math.h>
#include <string.h>

static const double gate = 1.03; /* a simpler plan may cost this much more */
static const double MiB = 1024.0 * 1024.0;

/* ---- the optimum ----------------------------------------------------------------------------- */

/* Prices a problem by the host memory it takes, time being a tie-breaker. */
static void price_by_bytes(tn_planner *p)
{
    const int32_t np = p->chain.n_places;
    for (int32_t i = 0; i < p->chain.n_classes * np; i++)
        for (int32_t j = 0; j < p->menu[i].n; j++) {
            tn_mode *m = &p->menu[i].mode[j];
            m->cost = 1e-9 * (double)m->use[TN_USE_HOST] + 1e-6 * m->cost;
        }
    for (int32_t i = 0; i < (np + 1) * np; i++)
        p->hop[i] *= 1e-6;
}

/* The choice that needs the least host memory, if that were no matter; *p is to be freed. */
tn_status tn_plan_frugal(const tn_cost *k, tn_planner *p, double *cost, const tn_allocator *a,
                         tn_error *err)
{
    tn_cost loose = *k;
    double gap;
    loose.c.ram = 1ull << 50;
    tn_status s =
        tn_planner_make(p, &loose, k->p->n_devices ? TN_ROOM_STATIC : TN_ROOM_HOST, a, err);
    if (s) return s;
    price_by_bytes(p);
    p->chain.quick = true;
    s = tn_chain_solve(&p->chain, p->choice, cost, &gap, a, err);
    if (s) tn_planner_free(p);
    return s;
}

/* Where host memory is so short that the search found nothing: starts from the frugal choice. */
static tn_status solve_tight(tn_planner *p, double *cost, double *gap, const tn_allocator *a,
                             tn_error *err)
{
    tn_planner f;
    tn_status s = tn_plan_frugal(&p->k, &f, cost, a, err);
    if (s) return s;
    memcpy(p->choice, f.choice, (size_t)p->chain.n_stages * sizeof *p->choice);
    tn_planner_free(&f);
    return tn_chain_solve(&p->chain, p->choice, cost, gap, a, err);
}

/* The best candidate is where the search starts, so that its result is never worse. */
static tn_status start_search(tn_planner *p, tn_error *err)
{
    const size_t bytes = (size_t)p->chain.n_stages * sizeof *p->choice;
    tn_choice *best = tn_alloc(p->a, (size_t)p->chain.n_stages, sizeof *best);
    if (!best) return tn_fail_nomem(err, bytes, "the planner's search");
    double least = tn_chain_cost(&p->chain, p->choice);
    memcpy(best, p->choice, bytes);
    for (int i = TN_PLAN_LAYERS; i <= TN_PLAN_WATER_FILL; i++) {
        if (p->room == TN_ROOM_HOST || !tn_planner_candidate(p, (tn_strategy)i)) continue;
        const double cost = tn_chain_cost(&p->chain, p->choice);
        if (!(cost < least)) continue;
        least = cost;
        memcpy(best, p->choice, bytes);
    }
    memcpy(p->choice, best, bytes);
    tn_free(p->a, best);
    return TN_OK;
}

static tn_status solve_room(const tn_cost *k, tn_room room, bool quick, const int16_t *rule,
                            tn_plan *plan, double *gap, const tn_allocator *a, tn_error *err)
{
    tn_planner p;
    double cost;
    tn_status s = tn_planner_make(&p, k, room, a, err);
    if (s) return s;
    p.chain.quick = quick;
    s = start_search(&p, err);
    if (!s) s = tn_chain_solve(&p.chain, p.choice, &cost, gap, a, err);
    if (!s && !isfinite(cost) && room == TN_ROOM_STATIC) s = solve_tight(&p, &cost, gap, a, err);
    if (!s && isfinite(cost)) s = tn_planner_plan(&p, TN_PLAN_OPTIMUM, rule, plan, err);
    tn_planner_free(&p);
    return s;
}

/* The best of elastic, static and no device; feasible is false where none fits. */
tn_status tn_plan_solve(const tn_cost *k, bool quick, const int16_t *rule, tn_plan *best,
                        double *gap, const tn_allocator *a, tn_error *err)
{
    static const tn_room rooms[] = {TN_ROOM_ELASTIC, TN_ROOM_STATIC, TN_ROOM_HOST};
    *best = (tn_plan){.feasible = false};
    *gap = 0;
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) {
        tn_plan plan = {.feasible = false};
        double g = 0;
        if (rooms[i] != TN_ROOM_HOST && k->p->n_devices == 0) continue;
        if (rooms[i] == TN_ROOM_ELASTIC && k->c.fixed) continue;
        if (rooms[i] == TN_ROOM_STATIC && best->feasible) continue; /* elastic is never worse */
        const tn_status s = solve_room(k, rooms[i], quick, rule, &plan, &g, a, err);
        if (s) {
            tn_plan_free(best, a);
            return s;
        }
        const bool better = plan.feasible && (!best->feasible ||
                                              plan.predicted.request_s < best->predicted.request_s);
        if (better) *gap = g;
        tn_plan_free(better ? best : &plan, a);
        if (better) *best = plan;
    }
    return TN_OK;
}

static tn_status candidate(const tn_cost *k, tn_strategy strategy, const int16_t *rule,
                           tn_plan *plan, const tn_allocator *a, tn_error *err)
{
    tn_planner p;
    const bool host = strategy == TN_PLAN_ALL_HOST;
    *plan = (tn_plan){.strategy = strategy, .feasible = false};
    if (!host && k->p->n_devices == 0) return TN_OK;
    const bool elastic = strategy == TN_PLAN_WATER_FILL && !k->c.fixed;
    tn_status s = tn_planner_make(&p, k,
                                  host      ? TN_ROOM_HOST
                                  : elastic ? TN_ROOM_ELASTIC
                                            : TN_ROOM_STATIC,
                                  a, err);
    if (s) return s;
    if (tn_planner_candidate(&p, strategy)) s = tn_planner_plan(&p, strategy, rule, plan, err);
    tn_planner_free(&p);
    return s;
}

/* What a quick search predicts; request_s is +infinity if nothing fits. */
tn_status tn_plan_predict_best(const tn_cost *k, tn_prediction *best, const tn_allocator *a,
                               tn_error *err)
{
    tn_plan plan;
    double gap;
    *best = (tn_prediction){.request_s = INFINITY, .step_s = NAN};
    const tn_status s = tn_plan_solve(k, true, NULL, &plan, &gap, a, err);
    if (!s && plan.feasible) *best = plan.predicted;
    tn_plan_free(&plan, a);
    return s;
}

/* ---- all together ---------------------------------------------------------------------------- */

/* Whether a simpler plan is as good as the optimum, for the request and at every depth. */
static bool good_enough(const tn_prediction *simple, const tn_prediction *best)
{
    if (!(simple->request_s <= gate * best->request_s)) return false;
    for (int32_t i = 0; i < best->n_depths; i++)
        if (!(simple->decode_tok_s[i] * gate >= best->decode_tok_s[i])) return false;
    return true;
}

static tn_status copy_plan(tn_plan *out, const tn_plan *from, const tn_shape *s,
                           const tn_allocator *a, tn_error *err)
{
    tn_plan copy;
    const tn_status status = tn_plan_alloc(&copy, s, a, err);
    if (status) return status;
    memcpy(copy.layer, from->layer, (size_t)s->n_layers * sizeof *copy.layer);
    memcpy(copy.share, from->share, (size_t)s->n_tensors * sizeof *copy.share);
    memcpy(copy.rule, from->rule, (size_t)s->n_tensors * sizeof *copy.rule);
    *out = *from;
    out->layer = copy.layer;
    out->share = copy.share;
    out->rule = copy.rule;
    return TN_OK;
}

/* A search that was cut short may be beaten within its gap: then that plan is the best known. */
static tn_status take_over(tn_planned *out, const tn_plan *plan, const tn_shape *s, tn_error *err)
{
    tn_plan copy;
    const double before = out->optimum.predicted.request_s, bound = before * (1 - out->gap);
    const tn_status status = copy_plan(&copy, plan, s, out->a, err);
    if (status) return status;
    tn_plan_free(&out->optimum, out->a);
    out->optimum = copy;
    out->optimum.strategy = TN_PLAN_OPTIMUM;
    out->gap = fmax(0, 1 - bound / copy.predicted.request_s);
    return TN_OK;
}

/* Lists the candidates and takes the simplest that is good enough. */
static tn_status choose(tn_planned *out, const tn_cost *k, const int16_t *rule, tn_error *err)
{
    tn_plan plan[TN_PLAN_OPTIMUM] = {{.feasible = false}};
    tn_status s = TN_OK;
    for (int i = 0; i < TN_PLAN_OPTIMUM && !s; i++) {
        s = candidate(k, (tn_strategy)i, rule, &plan[i], out->a, err);
        out->candidate[out->n_candidates++] =
            (tn_candidate){(tn_strategy)i, plan[i].feasible, plan[i].predicted};
        if (!s && plan[i].feasible &&
            plan[i].predicted.request_s < out->optimum.predicted.request_s)
            s = take_over(out, &plan[i], k->s, err);
    }
    bool chosen = false;
    for (int i = 0; i < TN_PLAN_OPTIMUM; i++) {
        const bool take = !s && !chosen && plan[i].feasible && i < TN_PLAN_WATER_FILL &&
                          good_enough(&plan[i].predicted, &out->optimum.predicted);
        if (take)
            out->plan = plan[i];
        else
            tn_plan_free(&plan[i], out->a);
        chosen = chosen || take;
    }
    return s || chosen ? s : copy_plan(&out->plan, &out->optimum, k->s, out->a, err);
}

static uint64_t used_bytes(const tn_plan_memory *m)
{
    return m->weights + m->kv + m->buffers + m->masters;
}

/* Overrides that do not fit a budget which was asked for, while other placements would. */
static tn_status refuse_contradiction(const tn_plan *plan, const tn_cost *k,
                                      const tn_constraints *asked, const tn_allocator *a,
                                      tn_error *err)
{
    tn_cost free_choice = *k;
    tn_prediction best;
    if (!k->fixed) return TN_OK;
    free_choice.fixed = NULL;
    const tn_status s = tn_plan_predict_best(&free_choice, &best, a, err);
    if (s || !isfinite(best.request_s)) return s;
    for (int32_t d = TN_HOST; d < k->p->n_devices; d++) {
        const tn_plan_memory *m = d == TN_HOST ? &plan->host : &plan->device[d];
        const uint64_t limit = d == TN_HOST ? asked->ram : asked->vram[d];
        if (limit == 0 || used_bytes(m) <= m->budget) continue;
        if (limit == UINT64_MAX)
            return tn_fail(err, TN_EARG, -1,
                           "--place '%.100s' and --device none contradict each other: the rules "
                           "need %.0f MiB of device memory",
                           asked->rules->rule[0].regex, ceil((double)used_bytes(m) / MiB));
        return tn_fail(err, TN_EARG, -1,
                       "--place '%.100s' and --%s contradict each other: the rules need %.0f MiB "
                       "of %s memory, %.0f MiB more than there may be",
                       asked->rules->rule[0].regex, d == TN_HOST ? "ram" : "vram",
                       ceil((double)used_bytes(m) / MiB), d == TN_HOST ? "host" : "device",
                       ceil((double)(used_bytes(m) - m->budget) / MiB));
    }
    return TN_OK;
}

/* The optimum. What of its weights is page-locked depends on which are carried to devices: first it
 * is found as if all of these were, and where they are too many, once more with
 * the share that is. */
static tn_status find_optimum(tn_planned *out, tn_cost *k, const int16_t *rule,
                              const tn_allocator *a, tn_error *err)
{
    const bool short_of_pins = !k->pinned && !k->c.mapped;
    if (short_of_pins) tn_cost_pin(k, 1);
    tn_status s = tn_plan_solve(k, false, rule, &out->optimum, &out->gap, a, err);
    if (s || !short_of_pins || !out->optimum.feasible) return s;
    const double share = tn_cost_pinned(k, tn_plan_carried(&out->optimum, k));
    k->c.pinned = out->c.pinned = share;
    if (share >= 1) return TN_OK;
    tn_cost_pin(k, share);
    tn_plan_free(&out->optimum, a);
    return tn_plan_solve(k, false, rule, &out->optimum, &out->gap, a, err);
}

static tn_status make(tn_planned *out, const tn_shape *s, const tn_profile *p,
                      const tn_overrides *o, const tn_constraints *asked, const tn_allocator *a,
                      tn_error *err)
{
    tn_cost k;
    tn_cost_init(&k, s, p, &out->c, o->fixed);
    tn_status status = find_optimum(out, &k, o->rule, a, err);
    if (status) return status;
    if (out->optimum.feasible) {
        status = choose(out, &k, o->rule, err);
        return status ? status : tn_plan_find_prices(out, &k, a, err);
    }
    status = tn_plan_hopeless(&k, o->rule, &out->plan, a, err);
    if (!status && !out->plan.layer)
        return tn_fail(err, TN_EARG, -1,
                       "--place: the rules contradict each other or the hardware: no "
                       "placement obeys them all");
    if (!status) status = refuse_contradiction(&out->plan, &k, asked, a, err);
    return status ? status : tn_plan_find_remedies(out, &k, a, err);
}

tn_status tn_plan_make(tn_planned *out, const tn_shape *s, const tn_profile *p,
                       const tn_constraints *c, const tn_allocator *a, tn_error *err)
{
    tn_overrides o = {NULL, NULL};
    *out = (tn_planned){.a = a};
    tn_status status = tn_constraints_fill(&out->c, c, s, p, err);
    if (!status) status = tn_overrides_make(out, &o, s, p, c->rules, a, err);
    out->c.rules = NULL;
    if (!status && out->c.n_ctx > s->n_ctx_train)
        tn_plan_warn(out, "--ctx %lld is more than the %d tokens this model was trained for",
                     (long long)out->c.n_ctx, s->n_ctx_train);
    if (!status && c->ram > p->host.memory_bytes)
        tn_plan_warn(out, "--ram %.0fM is more than the %.0f MiB of the host in '%s'",
                     (double)c->ram / MiB, (double)p->host.memory_bytes / MiB, p->name);
    if (!status) status = make(out, s, p, &o, c, a, err);
    tn_overrides_free(&o, a);
    if (status) tn_planned_free(out);
    return status;
}

void tn_planned_free(tn_planned *p)
{
    if (!p->a) return;
    tn_plan_free(&p->plan, p->a);
    tn_plan_free(&p->optimum, p->a);
    *p = (tn_planned){.a = NULL};
}

tn_status tn_plan_candidate(tn_plan *out, const tn_shape *s, const tn_profile *p,
                            const tn_constraints *c, tn_strategy strategy, const tn_allocator *a,
                            tn_error *err)
{
    tn_planned run = {.a = a};
    tn_overrides o = {NULL, NULL};
    tn_cost k;
    double gap;
    tn_status status = tn_constraints_fill(&run.c, c, s, p, err);
    if (!status) status = tn_overrides_make(&run, &o, s, p, c->rules, a, err);
    run.c.rules = NULL;
    tn_cost_init(&k, s, p, &run.c, o.fixed);
    if (!status)
        status = strategy == TN_PLAN_OPTIMUM ? tn_plan_solve(&k, false, o.rule, out, &gap, a, err)
                                             : candidate(&k, strategy, o.rule, out, a, err);
    tn_overrides_free(&o, a);
    return status;
}
