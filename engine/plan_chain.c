/* From a model, a machine and constraints to the solver's chain, and from its choice to a plan. */
#include "plan_chain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t no_limit = 1ull << 52;

uint64_t tn_cost_budget(const tn_cost *k, int32_t d)
{
    const tn_profile_device *dev = &k->p->device[d];
    const uint64_t free_bytes = dev->memory_bytes - dev->reserved_bytes;
    return k->c.vram[d] ? k->c.vram[d] : free_bytes;
}

uint64_t tn_cost_host_budget(const tn_cost *k)
{
    return k->c.ram ? k->c.ram : k->p->host.memory_bytes - k->p->host.reserved_bytes;
}

/* Bytes a device keeps for anything but layers and head. */
static uint64_t overhead(const tn_cost *k, int32_t d)
{
    uint64_t bytes = k->device_buffers;
    for (int32_t i = 0; k->fixed && d == 0 && i < k->s->n_tensors; i++) {
        const tn_shape_tensor *t = &k->s->tensor[i];
        if (t->layer < 0 && i != k->s->head && k->fixed[i] > 0) bytes += t->bytes;
    }
    return bytes;
}

/* A device that has no room for its buffers serves nothing, streams nothing. */
static bool usable(const tn_cost *k, int32_t d)
{
    return tn_cost_budget(k, d) > overhead(k, d);
}

/* Whether layer l may have work on device d. */
static bool serves(const tn_cost *k, int32_t l, int32_t d)
{
    return usable(k, d) && !(k->stay && k->stay[l].device == TN_HOST);
}

/* ---- menus ----------------------------------------------------------------------------------- */

static void layer_use(const tn_planner *p, int32_t l, bool home, int32_t units, bool cut,
                      uint64_t use[TN_USES])
{
    const tn_cost *k = &p->k;
    const tn_shape_layer *y = &k->s->layer[l];
    const uint64_t device = tn_cost_ffn_device_bytes(k, l, units);
    const uint64_t attn = tn_cost_attn_bytes(k, l, home), all_attn = tn_cost_attn_bytes(k, l, true);
    const uint64_t live = tn_shape_kv_bytes(y, &k->c, tn_cost_live(k));
    const uint64_t full = tn_shape_kv_bytes(y, &k->c, k->c.n_ctx);
    const bool drops = p->room == TN_ROOM_ELASTIC && cut;
    use[TN_USE_LIVE] = attn + device + (home ? live : 0);
    use[TN_USE_FULL] = attn + (drops ? 0 : device) + (home ? full : 0);
    use[TN_USE_HOST] = (all_attn > attn ? all_attn - attn : 0) + (home ? 0 : full) +
                       (drops ? y->ffn_bytes : y->ffn_bytes - device);
    use[TN_USE_HOMES] = home;
}

static void head_use(const tn_planner *p, int32_t units, uint64_t use[TN_USES])
{
    const tn_shape *s = p->k.s;
    const uint64_t all = s->tensor[s->head].bytes, device = tn_shape_head_bytes(s, units);
    use[TN_USE_LIVE] = use[TN_USE_FULL] = device;
    use[TN_USE_HOST] = s->tied ? all : all - device;
    use[TN_USE_HOMES] = 0;
}

/* Marks modes on the straight line between their neighbours. */
static void mark_interior(tn_menu *m)
{
    double top = 0;
    for (int32_t i = 0; i < m->n; i++)
        top = fmax(top, fabs(m->mode[i].cost));
    for (int32_t i = 1; i + 1 < m->n; i++) {
        const tn_mode *a = &m->mode[i - 1], *b = &m->mode[i], *c = &m->mode[i + 1];
        bool even = fabs(a->cost - 2 * b->cost + c->cost) <= 1e-12 * top;
        for (int u = 0; u < TN_USES; u++)
            if (a->use[u] + c->use[u] != 2 * b->use[u]) even = false;
        m->mode[i].interior = even;
    }
}

/* Without a device every layer has one mode, if overrides allow it. */
static tn_status host_menu(tn_planner *p, int32_t stage, tn_menu *m, tn_error *err)
{
    const tn_cost *k = &p->k;
    const bool head = stage == k->s->n_layers;
    const int32_t first = head ? k->s->head : 0, n = head ? 1 : k->s->layer[stage].n;
    for (int32_t j = 0; k->fixed && j < n; j++) {
        const int32_t i = head ? first : k->s->of_layer[k->s->layer[stage].first + j];
        if (k->fixed[i] > 0) return TN_OK;
    }
    m->mode = tn_alloc(p->a, 1, sizeof *m->mode);
    if (!m->mode) return tn_fail_nomem(err, sizeof *m->mode, "the planner's menus");
    m->n = 1;
    if (head) {
        m->mode->cost = tn_cost_head_request(k, TN_HOST, false, 0);
        head_use(p, 0, m->mode->use);
    } else {
        m->mode->cost = tn_cost_layer_request(k, stage, TN_HOST, false, 0);
        layer_use(p, stage, false, 0, false, m->mode->use);
    }
    return TN_OK;
}

static tn_status layer_menu(tn_planner *p, int32_t l, int d, bool home, tn_menu *m, tn_error *err)
{
    const tn_cost *k = &p->k;
    int32_t fixed, n_modes;
    const tn_ffn_kind kind = tn_cost_ffn_kind(k, l, &fixed, &n_modes);
    if (k->stay && k->stay[l].device != TN_HOST && k->stay[l].device != d) return TN_OK;
    if (!serves(k, l, d)) return home ? TN_OK : host_menu(p, l, m, err);
    if (!tn_cost_home_allowed(k, l, home)) return TN_OK;
    m->n = kind == TN_FFN_FREE ? k->s->layer[l].n_units + 1 : n_modes;
    m->mode = tn_alloc(p->a, (size_t)m->n, sizeof *m->mode);
    if (!m->mode) return tn_fail_nomem(err, (size_t)m->n * sizeof *m->mode, "the planner's menus");
    const double attn = tn_cost_attn_request(k, l, d, home);
    for (int32_t i = 0; i < m->n; i++) {
        const int32_t units = kind == TN_FFN_FIXED ? fixed : i;
        m->mode[i].units = units;
        m->mode[i].cost = attn + tn_cost_ffn_request(k, l, d, home, units);
        layer_use(p, l, home, units, kind == TN_FFN_FREE, m->mode[i].use);
    }
    if (kind == TN_FFN_FREE) mark_interior(m);
    return TN_OK;
}

static tn_status head_menu(tn_planner *p, int d, bool home, tn_menu *m, tn_error *err)
{
    const tn_cost *k = &p->k;
    const float f = k->fixed ? k->fixed[k->s->head] : NAN;
    if (!serves(k, k->s->n_layers - 1, d))
        return home ? TN_OK : host_menu(p, k->s->n_layers, m, err);
    m->n = isnan(f) ? k->s->head_units + 1 : 1;
    m->mode = tn_alloc(p->a, (size_t)m->n, sizeof *m->mode);
    if (!m->mode) return tn_fail_nomem(err, (size_t)m->n * sizeof *m->mode, "the planner's menus");
    for (int32_t i = 0; i < m->n; i++) {
        const int32_t units = isnan(f) ? i : (int32_t)lround((double)f * k->s->head_units);
        m->mode[i].units = units;
        m->mode[i].cost = tn_cost_head_request(k, d, home, units);
        head_use(p, units, m->mode[i].use);
    }
    return TN_OK;
}

/* ---- classes --------------------------------------------------------------------------------- */

/* Layers are alike for the solver if overrides treat them alike, too. */
static bool same_rules(const tn_cost *k, int32_t x, int32_t y)
{
    const tn_shape_layer *a = &k->s->layer[x], *b = &k->s->layer[y];
    if (k->stay && k->stay[x].device != k->stay[y].device) return false;
    for (int32_t j = 0; k->fixed && j < a->n; j++) {
        const float f = k->fixed[k->s->of_layer[a->first + j]],
                    g = k->fixed[k->s->of_layer[b->first + j]];
        if (isnan(f) != isnan(g) || (!isnan(f) && f != g)) return false;
    }
    return true;
}

static void classify(tn_planner *p)
{
    const tn_shape *s = p->k.s;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_layers; i++) {
        int32_t c = 0;
        while (c < n && (s->layer[p->member[c]].cls != s->layer[i].cls ||
                         !same_rules(&p->k, p->member[c], i)))
            c++;
        if (c == n) p->member[n++] = i;
        p->cls[i] = c;
    }
    p->member[n] = s->n_layers;
    p->cls[s->n_layers] = n;
    p->chain.n_classes = n + 1;
}

static void fill_hops(tn_planner *p)
{
    const int32_t np = p->chain.n_places;
    for (int32_t from = 0; from <= np; from++)
        for (int32_t to = 0; to < np; to++) {
            const int a = from < np && from % 2 ? from / 2 : TN_HOST;
            const int b = to % 2 ? to / 2 : TN_HOST;
            p->hop[from * np + to] =
                p->room == TN_ROOM_HOST ? 0 : tn_cost_move_request(&p->k, a, b);
        }
}

/* Whether overrides put something on the first device beside layers and head,
 * and it has no room. */
static bool no_room_for_rules(const tn_cost *k)
{
    for (int32_t i = 0; k->fixed && i < k->s->n_tensors; i++)
        if (k->s->tensor[i].layer < 0 && i != k->s->head && k->fixed[i] > 0) return !usable(k, 0);
    return false;
}

static int by_size(const void *x, const void *y)
{
    const uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
    return a < b ? -1 : a > b;
}

/* How many layers can be at home on each device, the smallest first. */
static tn_status fill_homes(tn_planner *p, tn_error *err)
{
    const tn_cost *k = &p->k;
    const int32_t n = k->s->n_layers;
    uint64_t *bytes = tn_alloc(p->a, (size_t)n, sizeof *bytes);
    if (!bytes) return tn_fail_nomem(err, (size_t)n * sizeof *bytes, "the planner");
    for (int32_t l = 0; l < n; l++)
        bytes[l] = tn_cost_attn_bytes(k, l, true) +
                   tn_shape_kv_bytes(&k->s->layer[l], &k->c, k->c.n_ctx);
    qsort(bytes, (size_t)n, sizeof *bytes, by_size);
    for (int32_t d = 0; d < p->chain.n_places / 2; d++) {
        uint64_t room = p->chain.cap[TN_USE_FULL][d], *fit = &p->chain.cap[TN_USE_HOMES][d];
        for (*fit = 0; *fit < (uint64_t)n && bytes[*fit] <= room; ++*fit)
            room -= bytes[*fit];
    }
    tn_free(p->a, bytes);
    return TN_OK;
}

static void fill_caps(tn_planner *p)
{
    const tn_cost *k = &p->k;
    for (int32_t d = 0; d < p->chain.n_places / 2; d++) {
        uint64_t cap = 0;
        if (p->room != TN_ROOM_HOST && usable(k, d)) cap = tn_cost_budget(k, d) - overhead(k, d);
        p->chain.cap[TN_USE_LIVE][d] = p->room == TN_ROOM_STATIC ? no_limit : cap;
        p->chain.cap[TN_USE_FULL][d] = cap;
    }
    const uint64_t ram = tn_cost_host_budget(k), used = tn_cost_host_buffers(k);
    p->chain.cap[TN_USE_HOST][0] = ram > used ? ram - used : 0;
    if (no_room_for_rules(k)) p->chain.cap[TN_USE_HOST][0] = 0;
}

static tn_status fill_menus(tn_planner *p, tn_error *err)
{
    const int32_t np = p->chain.n_places, n_layers = p->k.s->n_layers;
    tn_status s = TN_OK;
    for (int32_t c = 0; c < p->chain.n_classes; c++)
        for (int32_t place = 0; place < np && !s; place++) {
            tn_menu *m = &p->menu[c * np + place];
            const int d = place / 2;
            const int32_t stage = p->member[c];
            if (p->room == TN_ROOM_HOST)
                s = place == 0 ? host_menu(p, stage, m, err) : TN_OK;
            else if (stage == n_layers)
                s = head_menu(p, d, place % 2, m, err);
            else
                s = layer_menu(p, stage, d, place % 2, m, err);
        }
    return s;
}

tn_status tn_planner_make(tn_planner *p, const tn_cost *k, tn_room room, const tn_allocator *a,
                          tn_error *err)
{
    *p = (tn_planner){.k = *k, .a = a, .room = room};
    const size_t n = (size_t)k->s->n_layers + 1;
    const int32_t np = room == TN_ROOM_HOST ? 2 : 2 * k->p->n_devices;
    p->cls = tn_alloc(a, n, sizeof *p->cls);
    p->member = tn_alloc(a, n, sizeof *p->member);
    p->choice = tn_alloc(a, n, sizeof *p->choice);
    p->hop = tn_alloc(a, (size_t)(np + 1) * (size_t)np, sizeof *p->hop);
    if (p->cls && p->member && p->choice && p->hop) {
        p->chain.n_places = np;
        classify(p);
        p->menu = tn_alloc(a, (size_t)p->chain.n_classes * (size_t)np, sizeof *p->menu);
    }
    if (!p->menu) {
        tn_planner_free(p);
        return tn_fail_nomem(err, n * sizeof *p->choice, "the planner");
    }
    p->chain.n_stages = (int32_t)n;
    p->chain.cls = p->cls;
    p->chain.menu = p->menu;
    p->chain.hop = p->hop;
    fill_hops(p);
    fill_caps(p);
    tn_status s = fill_homes(p, err);
    if (!s) s = fill_menus(p, err);
    if (s) tn_planner_free(p);
    return s;
}

void tn_planner_free(tn_planner *p)
{
    if (!p->a) return;
    for (int32_t i = 0; p->menu && i < p->chain.n_classes * p->chain.n_places; i++)
        tn_free(p->a, p->menu[i].mode);
    tn_free(p->a, p->menu);
    tn_free(p->a, p->cls);
    tn_free(p->a, p->member);
    tn_free(p->a, p->choice);
    tn_free(p->a, p->hop);
    *p = (tn_planner){.a = NULL};
}

int32_t tn_planner_mode(const tn_planner *p, int32_t stage, int32_t place, int32_t units)
{
    const tn_menu *m = &p->menu[p->cls[stage] * p->chain.n_places + place];
    if (m->n == 0) return -1;
    /* Menus list their units in steps of one. */
    const int32_t i = units - m->mode[0].units;
    return i < 0 ? 0 : i < m->n ? i : m->n - 1;
}

/* ---- the plan -------------------------------------------------------------------------------- */

tn_status tn_plan_alloc(tn_plan *plan, const tn_shape *s, const tn_allocator *a, tn_error *err)
{
    *plan = (tn_plan){.n_layers = s->n_layers, .n_tensors = s->n_tensors};
    plan->layer = tn_alloc(a, (size_t)s->n_layers, sizeof *plan->layer);
    plan->share = tn_alloc(a, (size_t)s->n_tensors, sizeof *plan->share);
    plan->rule = tn_alloc(a, (size_t)s->n_tensors, sizeof *plan->rule);
    if (plan->layer && plan->share && plan->rule) return TN_OK;
    tn_plan_free(plan, a);
    return tn_fail_nomem(err, (size_t)s->n_tensors * sizeof *plan->share, "the plan");
}

void tn_plan_free(tn_plan *plan, const tn_allocator *a)
{
    tn_free(a, plan->layer);
    tn_free(a, plan->share);
    tn_free(a, plan->rule);
    plan->layer = NULL;
    plan->share = NULL;
    plan->rule = NULL;
}

/* Gives two stages of the same menu about the same modes, if that costs no
 * more and uses no more. */
static bool share_out(const tn_menu *m, tn_choice *x, tn_choice *y)
{
    const int32_t mean = (x->mode + y->mode) / 2, rest = x->mode + y->mode - mean;
    const double before = m->mode[x->mode].cost + m->mode[y->mode].cost;
    const double after = m->mode[mean].cost + m->mode[rest].cost;
    if (!(after <= before + 1e-12 * before)) return false;
    for (int u = 0; u < TN_USES; u++)
        if (m->mode[mean].use[u] + m->mode[rest].use[u] >
            m->mode[x->mode].use[u] + m->mode[y->mode].use[u])
            return false;
    x->mode = rest;
    y->mode = mean;
    return true;
}

/* In the linear part of the costs it does not matter which layer has the units: spread them evenly,
 * so that no layer is a straggler when units move. */
static void even_out(tn_planner *p)
{
    enum { most_rounds = 16 }; /* differences about halve in each */
    const tn_chain *c = &p->chain;
    bool changed = p->room != TN_ROOM_HOST;
    for (int round = 0; changed && round < most_rounds; round++) {
        changed = false;
        for (int32_t i = 0; i + 1 < c->n_stages; i++) {
            int32_t fixed, n_modes;
            tn_choice *x = &p->choice[i];
            if (tn_cost_ffn_kind(&p->k, i, &fixed, &n_modes) != TN_FFN_FREE) continue;
            const tn_menu *m = &c->menu[c->cls[i] * c->n_places + x->place];
            for (int32_t j = i + 1; j + 1 < c->n_stages; j++) {
                tn_choice *y = &p->choice[j];
                if (c->cls[i] == c->cls[j] && x->place == y->place && abs(x->mode - y->mode) > 1)
                    changed |= share_out(m, x, y);
            }
        }
    }
}

/* Whether units would have to be dropped before n_ctx tokens are live. */
static bool must_drop(const tn_planner *p)
{
    uint64_t full[TN_MAX_DEVICES] = {0};
    const tn_chain *c = &p->chain;
    for (int32_t i = 0; i < c->n_stages; i++) {
        const int32_t place = p->choice[i].place;
        const tn_mode *m = &c->menu[c->cls[i] * c->n_places + place].mode[p->choice[i].mode];
        full[place / 2] += m->use[TN_USE_LIVE];
        if (i + 1 < c->n_stages && place % 2) {
            const tn_shape_layer *y = &p->k.s->layer[i];
            full[place / 2] +=
                tn_shape_kv_bytes(y, &p->k.c, p->k.c.n_ctx) -
                tn_shape_kv_bytes(y, &p->k.c, tn_cost_live(&p->k));
        }
    }
    for (int32_t d = 0; d < c->n_places / 2; d++)
        if (full[d] > c->cap[TN_USE_FULL][d]) return true;
    return false;
}

static void fill_layers(const tn_planner *p, tn_plan *plan)
{
    const tn_chain *c = &p->chain;
    for (int32_t i = 0; i < c->n_stages; i++) {
        const int32_t place = p->choice[i].place;
        const tn_mode *m = &c->menu[c->cls[i] * c->n_places + place].mode[p->choice[i].mode];
        if (i == p->k.s->n_layers) {
            plan->head_units = m->units;
            continue;
        }
        int32_t fixed, n_modes;
        tn_plan_layer *y = &plan->layer[i];
        const bool served = p->room != TN_ROOM_HOST && serves(&p->k, i, place / 2);
        y->device = served ? (int8_t)(place / 2) : TN_HOST;
        y->attn = place % 2;
        y->mixed = served && tn_cost_ffn_kind(&p->k, i, &fixed, &n_modes) == TN_FFN_MIXED;
        y->ffn_mode = m->units;
        y->units = y->mixed ? 0 : m->units;
    }
}

tn_status tn_planner_plan(tn_planner *p, tn_strategy strategy, const int16_t *rule, tn_plan *out,
                          tn_error *err)
{
    tn_status s = tn_plan_alloc(out, p->k.s, p->a, err);
    if (s) return s;
    /* The others are shown as people place them. */
    if (strategy == TN_PLAN_OPTIMUM || strategy == TN_PLAN_WATER_FILL) even_out(p);
    out->strategy = strategy;
    /* A chain knows what is left for it, which may be nothing, but not less than that. */
    out->feasible = isfinite(tn_chain_cost(&p->chain, p->choice)) &&
                    tn_cost_host_buffers(&p->k) <= tn_cost_host_budget(&p->k);
    fill_layers(p, out);
    out->dropping = p->room == TN_ROOM_ELASTIC && must_drop(p);
    out->elastic = p->room == TN_ROOM_ELASTIC ||
                   (p->room == TN_ROOM_STATIC && strategy == TN_PLAN_OPTIMUM && !p->k.c.fixed);
    out->live = (uint64_t)(p->room == TN_ROOM_ELASTIC ? tn_cost_live(&p->k) : p->k.c.n_ctx);
    for (int32_t i = 0; i < out->n_tensors; i++)
        out->rule[i] = rule ? rule[i] : -1;
    s = tn_plan_account(out, &p->k, p->a, err);
    if (s) tn_plan_free(out, p->a);
    return s;
}
