/* Planning: constraints and overrides in, the best plan with its reasons out. */
#include "plan_chain.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double gate = 1.03; /* a simpler plan may cost this much more */
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
        return tn_fail(err, TN_EUNSUPPORTED, -1,
                       "a KV cache in Q8_0 needs head dims that are multiples of 32, but one is %d; "
                       "use F16 (--kv f16)",
                       s->odd_head_dim);
    if (!out->n_ctx) out->n_ctx = s->n_ctx_train;
    if (!out->n_batch) out->n_batch = 512;
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

/* ---- overrides ---------------------------------------------------------------------------------
 */

typedef struct overrides {
    float *fixed;  /* [n_tensors], NaN = free; NULL without rules */
    int16_t *rule; /* [n_tensors], -1 = free */
} overrides;

static bool unsplittable(const tn_shape_tensor *t)
{
    return t->part == TN_PART_NORM || t->part == TN_PART_FFN_NORM || t->part == TN_PART_ROUTER ||
           t->part == TN_PART_HEAD_NORM || t->part == TN_PART_REST || t->part == TN_PART_EMBED ||
           t->rows <= 1;
}

static void warn(tn_planned *out, const char *fmt, ...) TN_PRINTF(2, 3);
static void warn(tn_planned *out, const char *fmt, ...)
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

static tn_status match_all(tn_planned *out, const overrides *o, const tn_shape *s,
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
        tn_rules_near(&rules->rule[m], &names, near_names, sizeof near_names);
        warn(out, "--place '%.60s' matches no tensor (or only ones that earlier rules took)%s%s",
             rules->rule[m].regex, *near_names ? "; near: " : "", near_names);
    }
    return TN_OK;
}

static tn_status apply_rules(tn_planned *out, overrides *o, const tn_shape *s, const tn_profile *p,
                             const tn_rules *rules, const tn_allocator *a, tn_error *err)
{
    *o = (overrides){NULL, NULL};
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

static void free_overrides(overrides *o, const tn_allocator *a)
{
    tn_free(a, o->fixed);
    tn_free(a, o->rule);
}

/* ---- the optimum -------------------------------------------------------------------------------
 */

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
static tn_status frugal(const tn_cost *k, tn_planner *p, double *cost, const tn_allocator *a,
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
    tn_status s = frugal(&p->k, &f, cost, a, err);
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
static tn_status solve(const tn_cost *k, bool quick, const int16_t *rule, tn_plan *best,
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
static tn_status predict_best(const tn_cost *k, tn_prediction *best, const tn_allocator *a,
                              tn_error *err)
{
    tn_plan plan;
    double gap;
    *best = (tn_prediction){.request_s = INFINITY, .step_s = NAN};
    const tn_status s = solve(k, true, NULL, &plan, &gap, a, err);
    if (!s && plan.feasible) *best = plan.predicted;
    tn_plan_free(&plan, a);
    return s;
}

/* ---- what does not fit -------------------------------------------------------------------------
 */

static tn_status frugal_plan(const tn_cost *k, const int16_t *rule, tn_plan *plan,
                             const tn_allocator *a, tn_error *err)
{
    tn_planner p;
    double cost;
    *plan = (tn_plan){.feasible = false};
    tn_status s = frugal(k, &p, &cost, a, err);
    if (s) return s;
    if (isfinite(cost)) s = tn_planner_plan(&p, TN_PLAN_OPTIMUM, rule, plan, err);
    tn_planner_free(&p);
    return s;
}

/* A plan that breaks limits as little as possible, for the message and the memory table: the least
 * host memory, or where overrides exceed a device, as if it were larger. */
static tn_status hopeless(const tn_cost *k, const int16_t *rule, tn_plan *plan,
                          const tn_allocator *a, tn_error *err)
{
    tn_status s = frugal_plan(k, rule, plan, a, err);
    if (!s && !plan->layer) {
        tn_cost loose = *k;
        tn_profile big = *k->p;
        for (int32_t d = 0; d < big.n_devices; d++) {
            big.device[d].memory_bytes = 1ull << 50;
            loose.c.vram[d] = 0;
        }
        loose.p = &big;
        s = frugal_plan(&loose, rule, plan, a, err);
    }
    if (s || !plan->layer) return s;
    plan->feasible = false;
    return tn_plan_account(plan, k, a, err);
}

static void note_remedy(tn_planned *out, double request_s, const char *fmt, ...) TN_PRINTF(3, 4);
static void note_remedy(tn_planned *out, double request_s, const char *fmt, ...)
{
    if (out->n_remedies == TN_MAX_NOTES) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out->remedy[out->n_remedies].text, sizeof out->remedy[0].text, fmt, ap);
    va_end(ap);
    out->remedy[out->n_remedies++].request_s = request_s;
}

/* Request time with changed constraints, +infinity if that does not fit either. */
static tn_status try_with(const tn_cost *k, const tn_profile *p, const tn_constraints *c,
                          double *request_s, const tn_allocator *a, tn_error *err)
{
    tn_cost other;
    tn_prediction best;
    tn_cost_init(&other, k->s, p, c, k->fixed);
    const tn_status s = predict_best(&other, &best, a, err);
    *request_s = best.request_s;
    return s;
}

/* Whether anything at all fits into the devices and the host with n_ctx tokens. */
static tn_status fits_at_all(const tn_cost *k, int64_t n_ctx, bool *fits, const tn_allocator *a,
                             tn_error *err)
{
    tn_plan plan;
    tn_cost other = *k;
    other.c.n_ctx = n_ctx;
    *fits = false;
    const tn_request *r = &k->c.request;
    if (r->depth + r->n_prompt + r->n_gen > n_ctx) return TN_OK; /* the request itself needs more */
    const tn_status s = frugal_plan(&other, NULL, &plan, a, err);
    if (s || !plan.layer) return s;
    other.fixed = k->fixed;
    const tn_status t = tn_plan_account(&plan, &other, a, err);
    *fits = !t && plan.short_bytes == 0;
    tn_plan_free(&plan, a);
    return t;
}

/* The longest context that fits, in steps of 256. */
static tn_status smaller_context(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                                 tn_error *err)
{
    int64_t lo = 0, hi = k->c.n_ctx / 256;
    double t;
    while (hi - lo > 1) {
        bool fits;
        const int64_t mid = (lo + hi) / 2;
        const tn_status s = fits_at_all(k, mid * 256, &fits, a, err);
        if (s) return s;
        if (fits)
            lo = mid;
        else
            hi = mid;
    }
    if (!lo) return TN_OK;
    tn_constraints c = k->c;
    c.n_ctx = lo * 256;
    const tn_status s = try_with(k, k->p, &c, &t, a, err);
    if (!s && isfinite(t)) note_remedy(out, t, "--ctx %lld", (long long)lo * 256);
    return s;
}

/* What the missing bytes would cost as memory of the host, or of the first device. */
static tn_status more_memory(tn_planned *out, const tn_cost *k, bool device, const tn_allocator *a,
                             tn_error *err)
{
    double t;
    tn_constraints c = k->c;
    tn_profile p = *k->p;
    const uint64_t more = ((out->plan.short_bytes >> 20) + 1) << 20;
    if (device && k->p->n_devices == 0) return TN_OK;
    uint64_t *budget = device ? &c.vram[0] : &c.ram;
    *budget = (device ? tn_cost_budget(k, 0) : tn_cost_host_budget(k)) + more;
    p.device[0].memory_bytes += device ? more : 0;
    const tn_status s = try_with(k, &p, &c, &t, a, err);
    if (!s && isfinite(t))
        note_remedy(out, t, "%.0f MiB more %s memory (--%s %.0fM)", (double)more / MiB,
                    device ? "device" : "host", device ? "vram" : "ram",
                    ceil((double)*budget / MiB));
    return s;
}

static tn_status find_remedies(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                               tn_error *err)
{
    double t;
    tn_status s = smaller_context(out, k, a, err);
    tn_constraints c = k->c;
    if (!s && c.kv == TN_KV_KIND_F32) {
        c.kv = TN_KV_KIND_F16;
        s = try_with(k, k->p, &c, &t, a, err);
        if (!s && isfinite(t)) note_remedy(out, t, "a KV cache of f16 (--kv f16)");
    }
    if (!s) s = more_memory(out, k, false, a, err);
    if (!s) s = more_memory(out, k, true, a, err);
    if (!s && k->fixed) {
        tn_cost free_choice = *k;
        free_choice.fixed = NULL;
        s = try_with(&free_choice, k->p, &k->c, &t, a, err);
        if (!s && isfinite(t)) note_remedy(out, t, "without --place");
    }
    for (int32_t i = 1; i < out->n_remedies; i++) /* cheapest first */
        for (int32_t j = i; j > 0 && out->remedy[j].request_s < out->remedy[j - 1].request_s; j--) {
            const __typeof__(out->remedy[0]) swap = out->remedy[j];
            out->remedy[j] = out->remedy[j - 1];
            out->remedy[j - 1] = swap;
        }
    if (out->n_remedies > 2) out->n_remedies = 2;
    return s;
}

/* ---- prices ------------------------------------------------------------------------------------
 */

static void note_price(tn_planned *out, double request_s, const char *fmt, ...) TN_PRINTF(3, 4);
static void note_price(tn_planned *out, double request_s, const char *fmt, ...)
{
    if (out->n_prices == TN_MAX_NOTES) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out->price[out->n_prices].text, sizeof out->price[0].text, fmt, ap);
    va_end(ap);
    out->price[out->n_prices++].request_s = request_s;
}

/* What the best plan would be under other constraints. */
static tn_status price_with(const tn_cost *k, const tn_profile *p, const tn_constraints *c,
                            tn_prediction *out, const tn_allocator *a, tn_error *err)
{
    tn_cost other;
    tn_cost_init(&other, k->s, p, c, k->fixed);
    return predict_best(&other, out, a, err);
}

static tn_status find_prices(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                             tn_error *err)
{
    const double now = out->optimum.predicted.step_s;
    tn_status s = TN_OK;
    tn_prediction p;
    tn_constraints c = k->c;
    tn_profile more = *k->p;
    if (!(now > 0)) return TN_OK;
    if (k->p->n_devices) {
        for (int32_t d = 0; d < k->p->n_devices; d++) {
            more.device[d].memory_bytes += 1ull << 30;
            if (c.vram[d]) c.vram[d] += 1ull << 30;
        }
        s = price_with(k, &more, &c, &p, a, err);
        if (!s && !(p.request_s < out->optimum.predicted.request_s))
            p = out->optimum.predicted; /* it fits as before; a quick search may not find it */
        if (!s)
            note_price(out, p.request_s, "1 GiB more device memory = %+.3g ms/token",
                       1e3 * (p.step_s - now));
    }
    c = k->c;
    if (c.kv == TN_KV_KIND_F32) c.kv = TN_KV_KIND_F16;
    else if (!k->s->odd_head_dim) c.kv = TN_KV_KIND_Q8_0;
    if (!s && c.kv != k->c.kv) s = price_with(k, k->p, &c, &p, a, err);
    if (!s && c.kv != k->c.kv && isfinite(p.step_s))
        note_price(out, p.request_s, "KV %s instead of %s = %+.1f %% tok/s",
                   c.kv == TN_KV_KIND_F16 ? "f16" : "q8_0",
                   k->c.kv == TN_KV_KIND_F32 ? "f32" : "f16", 100 * (now / p.step_s - 1));
    c = k->c;
    c.request.depth += 1024;
    if (s || c.request.depth + c.request.n_prompt + c.request.n_gen > c.n_ctx) return s;
    s = price_with(k, k->p, &c, &p, a, err);
    if (!s && isfinite(p.step_s))
        note_price(out, p.request_s, "1,024 more tokens in the context = %+.3g ms/token",
                   1e3 * (p.step_s - now));
    return s;
}

/* ---- all together ------------------------------------------------------------------------------
 */

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
    const tn_status s = predict_best(&free_choice, &best, a, err);
    if (s || !isfinite(best.request_s)) return s;
    for (int32_t d = TN_HOST; d < k->p->n_devices; d++) {
        const tn_plan_memory *m = d == TN_HOST ? &plan->host : &plan->device[d];
        const uint64_t limit = d == TN_HOST ? asked->ram : asked->vram[d];
        if (limit == 0 || used_bytes(m) <= m->budget) continue;
        return tn_fail(err, TN_EARG, -1,
                       "--place '%.100s' and --%s contradict each other: the rules need %.0f MiB "
                       "of %s memory, %.0f MiB more than there may be",
                       asked->rules->rule[0].regex, d == TN_HOST ? "ram" : "vram",
                       ceil((double)used_bytes(m) / MiB), d == TN_HOST ? "host" : "device",
                       ceil((double)(used_bytes(m) - m->budget) / MiB));
    }
    return TN_OK;
}

static tn_status make(tn_planned *out, const tn_shape *s, const tn_profile *p, const overrides *o,
                      const tn_constraints *asked, const tn_allocator *a, tn_error *err)
{
    tn_cost k;
    tn_cost_init(&k, s, p, &out->c, o->fixed);
    tn_status status = solve(&k, false, o->rule, &out->optimum, &out->gap, a, err);
    if (status) return status;
    if (out->optimum.feasible) {
        status = choose(out, &k, o->rule, err);
        return status ? status : find_prices(out, &k, a, err);
    }
    status = hopeless(&k, o->rule, &out->plan, a, err);
    if (!status && !out->plan.layer)
        return tn_fail(err, TN_EARG, -1,
                       "--place: the rules contradict each other or the hardware: no "
                       "placement obeys them all");
    if (!status) status = refuse_contradiction(&out->plan, &k, asked, a, err);
    return status ? status : find_remedies(out, &k, a, err);
}

tn_status tn_plan_make(tn_planned *out, const tn_shape *s, const tn_profile *p,
                       const tn_constraints *c, const tn_allocator *a, tn_error *err)
{
    overrides o = {NULL, NULL};
    *out = (tn_planned){.a = a};
    tn_status status = tn_constraints_fill(&out->c, c, s, p, err);
    if (!status) status = apply_rules(out, &o, s, p, c->rules, a, err);
    out->c.rules = NULL;
    if (!status && out->c.n_ctx > s->n_ctx_train)
        warn(out, "--ctx %lld is more than the %d tokens this model was trained for",
             (long long)out->c.n_ctx, s->n_ctx_train);
    if (!status) status = make(out, s, p, &o, c, a, err);
    free_overrides(&o, a);
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
    overrides o = {NULL, NULL};
    tn_cost k;
    double gap;
    tn_status status = tn_constraints_fill(&run.c, c, s, p, err);
    if (!status) status = apply_rules(&run, &o, s, p, c->rules, a, err);
    run.c.rules = NULL;
    tn_cost_init(&k, s, p, &run.c, o.fixed);
    if (!status)
        status = strategy == TN_PLAN_OPTIMUM ? solve(&k, false, o.rule, out, &gap, a, err)
                                             : candidate(&k, strategy, o.rule, out, a, err);
    free_overrides(&o, a);
    return status;
}

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
    status = solve(&k, false, plan->rule, out, &gap, a, err);
    tn_free(a, fixed);
    return status;
}
