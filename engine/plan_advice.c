/* What is said beside a plan: what would make it fit, and what other circumstances are worth. */
#include "plan_chain.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static const double MiB = 1024.0 * 1024.0;
static const char *const kv_names[TN_KV_KINDS] = {"f16", "f32", "q8_0"};

/* KV types that take less memory than that in force, the largest first; returns how many. */
static int smaller_kv(const tn_cost *k, tn_kv_kind kv[TN_KV_KINDS])
{
    int n = 0;
    if (k->c.kv == TN_KV_KIND_F32) kv[n++] = TN_KV_KIND_F16;
    if (k->c.kv != TN_KV_KIND_Q8_0 && !k->s->odd_head_dim) kv[n++] = TN_KV_KIND_Q8_0;
    return n;
}

/* ---- what does not fit ----------------------------------------------------------------------- */

static tn_status frugal_plan(const tn_cost *k, const int16_t *rule, tn_plan *plan,
                             const tn_allocator *a, tn_error *err)
{
    tn_planner p;
    double cost;
    *plan = (tn_plan){.feasible = false};
    tn_status s = tn_plan_frugal(k, &p, &cost, a, err);
    if (s) return s;
    if (isfinite(cost)) s = tn_planner_plan(&p, TN_PLAN_OPTIMUM, rule, plan, err);
    tn_planner_free(&p);
    return s;
}

/* A plan that breaks limits as little as possible, for the message and the memory table: the least
 * host memory, or where overrides exceed a device, as if it were larger. */
tn_status tn_plan_hopeless(const tn_cost *k, const int16_t *rule, tn_plan *plan,
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

/* Appends to the *n of TN_MAX_NOTES notes; what there is no room for is left out. */
static void note(tn_plan_note *notes, int32_t *n, double request_s, const char *fmt, ...)
    TN_PRINTF(4, 5);
static void note(tn_plan_note *notes, int32_t *n, double request_s, const char *fmt, ...)
{
    if (*n == TN_MAX_NOTES) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(notes[*n].text, sizeof notes->text, fmt, ap);
    va_end(ap);
    notes[(*n)++].request_s = request_s;
}

/* What the best plan would be under other constraints. */
static tn_status best_with(const tn_cost *k, const tn_profile *p, const tn_constraints *c,
                           tn_prediction *out, const tn_allocator *a, tn_error *err)
{
    tn_cost other;
    tn_cost_init(&other, k->s, p, c, k->fixed);
    return tn_plan_predict_best(&other, out, a, err);
}

/* Request time with changed constraints, +infinity if that does not fit either. */
static tn_status try_with(const tn_cost *k, const tn_profile *p, const tn_constraints *c,
                          double *request_s, const tn_allocator *a, tn_error *err)
{
    tn_prediction best;
    const tn_status s = best_with(k, p, c, &best, a, err);
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
    if (!s && isfinite(t))
        note(out->remedy, &out->n_remedies, t, "--ctx %lld", (long long)lo * 256);
    return s;
}

/* What the missing bytes would cost as memory of the host, or of the first device; that one may
 * need buffers besides. */
static tn_status more_memory(tn_planned *out, const tn_cost *k, bool device, const tn_allocator *a,
                             tn_error *err)
{
    tn_status s = TN_OK;
    double t = INFINITY;
    tn_constraints c = k->c;
    tn_profile p = *k->p;
    uint64_t more = ((out->plan.short_bytes >> 20) + 1) << 20;
    if (device && k->p->n_devices == 0) return TN_OK;
    uint64_t *budget = device ? &c.vram[0] : &c.ram;
    for (int tries = device ? 4 : 1; !s && !isfinite(t) && tries > 0; tries--) {
        *budget = (device ? tn_cost_budget(k, 0) : tn_cost_host_budget(k)) + more;
        if (device) p.device[0].memory_bytes = k->p->device[0].memory_bytes + more;
        s = try_with(k, &p, &c, &t, a, err);
        if (!isfinite(t)) more += ((k->device_buffers >> 20) + 1) << 20;
    }
    if (s || !isfinite(t)) return s;
    /* The option helps where it was that which held the memory back. */
    char option[40] = "";
    if (*budget <= (device ? k->p->device[0].memory_bytes : k->p->host.memory_bytes))
        snprintf(option, sizeof option, " (--%s %.0fM)", device ? "vram" : "ram",
                 ceil((double)*budget / MiB));
    note(out->remedy, &out->n_remedies, t, "%.0f MiB more %s memory%s", (double)more / MiB,
         device ? "device" : "host", option);
    return TN_OK;
}

/* A KV cache in fewer bytes. */
static tn_status other_kv(tn_planned *out, const tn_cost *k, const tn_allocator *a, tn_error *err)
{
    tn_kv_kind kv[TN_KV_KINDS];
    const int n = smaller_kv(k, kv);
    tn_constraints c = k->c;
    for (int i = 0; i < n; i++) {
        double t;
        c.kv = kv[i];
        const tn_status s = try_with(k, k->p, &c, &t, a, err);
        if (s) return s;
        if (isfinite(t))
            note(out->remedy, &out->n_remedies, t, "a KV cache of %s (--kv %s)", kv_names[kv[i]],
                 kv_names[kv[i]]);
    }
    return TN_OK;
}

static tn_status no_rules(tn_planned *out, const tn_cost *k, const tn_allocator *a, tn_error *err)
{
    double t;
    tn_cost free_choice = *k;
    if (!k->fixed) return TN_OK;
    free_choice.fixed = NULL;
    const tn_status s = try_with(&free_choice, k->p, &k->c, &t, a, err);
    if (!s && isfinite(t)) note(out->remedy, &out->n_remedies, t, "without --place");
    return s;
}

tn_status tn_plan_find_remedies(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                                tn_error *err)
{
    tn_status s = smaller_context(out, k, a, err);
    if (!s) s = other_kv(out, k, a, err);
    if (!s) s = more_memory(out, k, false, a, err);
    if (!s) s = more_memory(out, k, true, a, err);
    if (!s) s = no_rules(out, k, a, err);
    for (int32_t i = 1; i < out->n_remedies; i++) /* cheapest first */
        for (int32_t j = i; j > 0 && out->remedy[j].request_s < out->remedy[j - 1].request_s; j--) {
            const tn_plan_note swap = out->remedy[j];
            out->remedy[j] = out->remedy[j - 1];
            out->remedy[j - 1] = swap;
        }
    if (out->n_remedies > 2) out->n_remedies = 2;
    return s;
}

/* ---- prices ---------------------------------------------------------------------------------- */

static tn_status price_memory(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                              tn_error *err)
{
    const tn_prediction *now = &out->optimum.predicted;
    tn_constraints c = k->c;
    tn_profile more = *k->p;
    tn_prediction p;
    if (!k->p->n_devices) return TN_OK;
    for (int32_t d = 0; d < k->p->n_devices; d++) {
        more.device[d].memory_bytes += 1ull << 30;
        if (c.vram[d]) c.vram[d] += 1ull << 30;
    }
    const tn_status s = best_with(k, &more, &c, &p, a, err);
    if (s) return s;
    if (!(p.request_s < now->request_s))
        p = *now; /* it fits as before; a quick search may not find it */
    const char *where = k->p->n_devices > 1 ? "memory on each device" : "device memory";
    if (p.step_s == now->step_s)
        note(out->price, &out->n_prices, p.request_s, "1 GiB more %s gains nothing", where);
    else
        note(out->price, &out->n_prices, p.request_s, "1 GiB more %s = %+.3g ms/token", where,
             1e3 * (p.step_s - now->step_s));
    return TN_OK;
}

static tn_status price_kv(tn_planned *out, const tn_cost *k, const tn_allocator *a, tn_error *err)
{
    tn_kv_kind kv[TN_KV_KINDS];
    tn_constraints c = k->c;
    tn_prediction p;
    if (smaller_kv(k, kv) == 0) return TN_OK;
    c.kv = kv[0];
    const tn_status s = best_with(k, k->p, &c, &p, a, err);
    if (!s && isfinite(p.step_s))
        note(out->price, &out->n_prices, p.request_s, "KV %s instead of %s = %+.1f %% tok/s",
             kv_names[c.kv], kv_names[k->c.kv],
             100 * (out->optimum.predicted.step_s / p.step_s - 1));
    return s;
}

static tn_status price_depth(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                             tn_error *err)
{
    tn_constraints c = k->c;
    tn_prediction p;
    c.request.depth += 1024;
    if (c.request.depth + c.request.n_prompt + c.request.n_gen > c.n_ctx) return TN_OK;
    const tn_status s = best_with(k, k->p, &c, &p, a, err);
    if (!s && isfinite(p.step_s))
        note(out->price, &out->n_prices, p.request_s,
             "1,024 more tokens in the context = %+.3g ms/token",
             1e3 * (p.step_s - out->optimum.predicted.step_s));
    return s;
}

tn_status tn_plan_find_prices(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                              tn_error *err)
{
    if (!(out->optimum.predicted.step_s > 0)) return TN_OK;
    tn_status s = price_memory(out, k, a, err);
    if (!s) s = price_kv(out, k, a, err);
    return s ? s : price_depth(out, k, a, err);
}
