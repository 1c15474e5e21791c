/* The exact choice for one segment, by counting.
 *
 * A run is a stretch of a menu in which the modes use bytes in equal steps and each further step
 * saves no more than the one before. Stages of one class and place in a run can share their steps
 * evenly: that costs no more and uses the same. So it only matters how many of them are in the run
 * and how many steps they have together; a state of the forward sweep says how many are *open*, and
 * the steps are dealt out at the end, when it is known what memory is left. All other modes (all on
 * the host, whole) are chosen stage by stage. */
#include "plan_solve_internal.h"

#include <stdlib.h>
#include <string.h>

enum { max_groups = 8, max_open = 255, max_work = 4000000 };

/* The stages of a class at a place, and the run of their menu. */
typedef struct group {
    const tn_mode *mode; /* the run's first */
    int32_t n;           /* steps in the run: modes - 1 */
    uint64_t step;       /* bytes of the resource that runs share out */
    double low;          /* cheapest priced mode */
    int32_t low_at, cheapest;
    int32_t first; /* of the run in the menu */
    int32_t cls, place;
} group;

typedef struct counter {
    solver *s;
    int u; /* the resource of which runs use more and more */
    int32_t n_groups;
    group group[max_groups];
    double caps;  /* what the limits are worth at the prices in force */
    double limit; /* of priced costs; falls with what is found */
    int64_t work;
    /* While the open stages of one final state are settled: */
    const state *end;
    double best; /* cost */
    int32_t steps[max_groups], best_steps[max_groups];
} counter;

static int32_t open_of(uint64_t open, int32_t g)
{
    return (int32_t)(open >> (8 * g) & max_open);
}

/* ---- runs ------------------------------------------------------------------------------------ */

static uint64_t step_to(const tn_menu *m, int32_t i, int u)
{
    return m->mode[i].use[u] - m->mode[i - 1].use[u];
}

/* Whether mode i of a menu uses more than the one before of the one resource alone. */
static bool only_more(const counter *k, const tn_menu *m, int32_t i)
{
    for (int u = 0; u < TN_USES; u++)
        if (k->s->active[u] && (u == k->u) != (step_to(m, i, u) != 0)) return false;
    return true;
}

/* The longest run of a menu; n < 2 if there is none. */
static group find_run(const counter *k, const tn_menu *m)
{
    group best = {.n = 0};
    double top = 0;
    for (int32_t i = 0; i < m->n; i++)
        top = fmax(top, fabs(m->mode[i].cost));
    for (int32_t lo = 0, i = 2; i < m->n; i++) {
        const tn_mode *x = &m->mode[i];
        const bool on = only_more(k, m, i - 1) && only_more(k, m, i) &&
                        step_to(m, i, k->u) == step_to(m, i - 1, k->u) &&
                        x[-2].cost - 2 * x[-1].cost + x->cost >= -1e-13 * top;
        if (!on) lo = i - 1;
        if (i - lo > best.n) best = (group){.mode = &m->mode[lo], .n = i - lo, .first = lo};
    }
    return best;
}

static void add_group(counter *k, int32_t cls, int32_t place)
{
    const solver *s = k->s;
    group g = find_run(k, &s->c->menu[cls * s->c->n_places + place]);
    if (g.n < 2 || s->members[cls] > max_open || k->n_groups == max_groups) return;
    g.step = g.mode[1].use[k->u] - g.mode[0].use[k->u];
    g.low = INFINITY;
    for (int32_t i = 0; i <= g.n; i++) {
        const double v = priced(s, &g.mode[i], place);
        if (v < g.low) g.low = v, g.low_at = i;
        if (g.mode[i].cost < g.mode[g.cheapest].cost) g.cheapest = i;
    }
    g.cls = cls;
    g.place = place;
    k->group[k->n_groups++] = g;
}

/* Classes of many stages first: there is room for a few groups only. */
static void find_groups(counter *k)
{
    const tn_chain *c = k->s->c;
    for (int one = 0; one < 2; one++)
        for (int32_t i = 0; i < c->n_classes; i++)
            for (int32_t q = 0; q < c->n_places; q++)
                if ((k->s->members[i] == 1) == one) add_group(k, i, q);
}

static const group *group_of(const counter *k, int32_t cls, int32_t place, int32_t *index)
{
    for (*index = 0; *index < k->n_groups; ++*index)
        if (k->group[*index].cls == cls && k->group[*index].place == place)
            return &k->group[*index];
    return NULL;
}

/* ---- the open stages ------------------------------------------------------------------------- */

/* n stages of a group with `steps` together: what they cost, or with the prices in force. */
static double shared_out(const counter *k, const group *g, int32_t n, int32_t steps,
                         bool with_prices)
{
    const int32_t each = steps / n, more = steps % n;
    const tn_mode *a = &g->mode[each], *b = &g->mode[more ? each + 1 : each];
    const double x = with_prices ? priced(k->s, a, g->place) : a->cost;
    const double y = with_prices ? priced(k->s, b, g->place) : b->cost;
    return (n - more) * x + more * y;
}

/* The group whose steps follow from what the others leave: that with the most to choose from. */
static int32_t last_group(const counter *k)
{
    int64_t most = -1;
    int32_t at = -1;
    for (int32_t g = 0; g < k->n_groups; g++) {
        const int64_t n = (int64_t)open_of(k->end->mask, g) * k->group[g].n;
        if (n > 0 && n > most) most = n, at = g;
    }
    return at;
}

static void settle_last(counter *k, int32_t g, uint64_t room, double cost)
{
    const group *y = &k->group[g];
    const int32_t n = open_of(k->end->mask, g);
    int64_t steps = (int64_t)n * y->cheapest;
    if (room / y->step < (uint64_t)steps) steps = (int64_t)(room / y->step);
    const double total = cost + shared_out(k, y, n, (int32_t)steps, false);
    k->work++;
    if (!(total < k->best)) return;
    k->steps[g] = (int32_t)steps;
    k->best = total;
    memcpy(k->best_steps, k->steps, sizeof k->steps);
}

/* Steps for group g and those after it: all that the prices do not rule out. */
static void settle(counter *k, int32_t g, int32_t last, uint64_t room, double cost, double slack)
{
    while (g < k->n_groups && (g == last || !open_of(k->end->mask, g)))
        g++;
    if (g == k->n_groups) {
        settle_last(k, last, room, cost);
        return;
    }
    const group *y = &k->group[g];
    const int32_t n = open_of(k->end->mask, g), from = n * y->low_at;
    for (int way = 0; way < 2; way++) /* down from the cheapest, then up */
        for (int32_t x = from - way + 2 * way; x >= 0 && x <= n * y->n && k->work < max_work;
             x += way ? 1 : -1) {
            const double over = shared_out(k, y, n, x, true) - n * y->low;
            const uint64_t bytes = (uint64_t)x * y->step;
            if (over > slack || (way && bytes > room)) break;
            if (bytes > room) continue;
            k->steps[g] = x;
            settle(k, g + 1, last, room - bytes, cost + shared_out(k, y, n, x, false),
                   slack - over);
        }
}

/* The choice that a final state and steps for its open stages stand for. */
static void offer(counter *k, const state *end)
{
    solver *s = k->s;
    int32_t left[max_groups];
    for (int32_t g = 0; g < k->n_groups; g++)
        left[g] = open_of(end->mask, g) ? k->best_steps[g] % open_of(end->mask, g) : 0;
    const state *x = end;
    for (int32_t i = s->c->n_stages - 1; i >= 0; i--) {
        int32_t at, mode = x->mode;
        if (mode < 0) {
            const group *g = group_of(k, s->c->cls[i], x->place, &at);
            mode = g->first + k->best_steps[at] / open_of(end->mask, at) + (left[at]-- > 0);
        }
        s->path[i] = (tn_choice){x->place, mode};
        x = x->parent < 0 ? x : &s->states[x->parent];
    }
    tn_solver_offer(s, s->path);
}

static void set_limit(counter *k)
{
    k->limit = k->s->incumbent_cost * (1 - TN_SOLVER_EXACT) + k->caps;
}

static void finish(counter *k, const state *end)
{
    k->end = end;
    k->best = k->s->incumbent_cost;
    memset(k->steps, 0, sizeof k->steps);
    memset(k->best_steps, 0, sizeof k->best_steps);
    const int32_t last = last_group(k);
    const uint64_t room = k->s->c->cap[k->u][0] - end->use[k->u];
    if (last >= 0)
        settle(k, 0, last, room, end->cost, k->limit - end->priced);
    else
        k->best = fmin(k->best, end->cost);
    if (!(k->best < k->s->incumbent_cost)) return;
    offer(k, end);
    set_limit(k);
}

/* ---- the sweep ------------------------------------------------------------------------------- */

static int by_open(const void *x, const void *y)
{
    const state *a = x, *b = y;
    if (a->mask != b->mask) return a->mask < b->mask ? -1 : 1;
    if (a->cost != b->cost) return a->cost < b->cost ? -1 : 1;
    return a->use[0] < b->use[0] ? -1 : a->use[0] > b->use[0];
}

/* Of fresh[] keeps what no other with the same stages open beats. False when there are too many. */
static bool keep_best(counter *k)
{
    solver *s = k->s;
    int32_t start = s->n_states;
    qsort(s->fresh, (size_t)s->n_fresh, sizeof *s->fresh, by_open);
    for (int32_t i = 0; i < s->n_fresh; i++) {
        const state *x = &s->fresh[i];
        bool beaten = false;
        if (s->n_states > start && s->states[s->n_states - 1].mask != x->mask) start = s->n_states;
        for (int32_t j = s->n_states - 1; j >= start && !beaten; j--, k->work++) {
            const state *y = &s->states[j];
            beaten = y->use[0] <= x->use[0] && y->use[1] <= x->use[1] && y->use[2] <= x->use[2];
        }
        if (beaten) continue;
        if (s->n_states == max_states || k->work > max_work) return false;
        s->states[s->n_states++] = *x;
    }
    return true;
}

/* Adds a state unless it breaks a limit; mode -1 = open. False when there are too many. */
static bool add(counter *k, state x, const tn_mode *m, uint64_t open)
{
    solver *s = k->s;
    for (int u = 0; u < TN_USES; u++) {
        if (!s->active[u]) continue;
        x.use[u] += m->use[u];
        if (x.use[u] > s->c->cap[u][0]) return true;
    }
    x.mask += open;
    if (s->n_fresh == max_states) return false;
    s->fresh[s->n_fresh++] = x;
    return true;
}

/* Every way on from one state to one place of stage i. */
static bool extend(counter *k, int32_t i, int32_t from, int32_t q)
{
    solver *s = k->s;
    const tn_chain *c = s->c;
    static const state start = {.parent = -1, .place = 0};
    const state *p = from < 0 ? &start : &s->states[from];
    const double hop = hop_cost(c, i, p->place, q);
    const tn_menu *menu = menu_at(c, i, q);
    const double to_go = s->best[i * c->n_places + q] - s->low[c->cls[i] * c->n_places + q];
    int32_t at;
    const group *g = group_of(k, c->cls[i], q, &at);
    if (!isfinite(hop)) return true;
    state x = *p;
    x.parent = from;
    x.place = (int16_t)q;
    x.cost += hop;
    x.priced += hop;
    if (g && x.priced + g->low + to_go < k->limit) {
        state y = x;
        y.priced += g->low;
        y.mode = -1;
        if (!add(k, y, g->mode, 1ull << (8 * at))) return false;
    }
    for (int32_t j = 0; j < menu->n; j++) {
        const double value = x.priced + priced(s, &menu->mode[j], q);
        if ((g && j >= g->first && j <= g->first + g->n) || !(value + to_go < k->limit)) continue;
        state y = x;
        y.cost += menu->mode[j].cost;
        y.priced = value;
        y.mode = (int16_t)j;
        if (!add(k, y, &menu->mode[j], 0)) return false;
    }
    return true;
}

bool tn_solver_count(solver *s, double caps)
{
    counter k = {.s = s, .caps = caps};
    set_limit(&k);
    k.u = s->price[TN_USE_FULL][0] > s->price[TN_USE_LIVE][0] ? TN_USE_FULL : TN_USE_LIVE;
    if (s->active[k.u]) find_groups(&k);
    s->n_states = 0;
    int32_t lo = -1, hi = 0; /* states of the stage before; -1: the start */
    for (int32_t i = 0; i < s->c->n_stages; i++) {
        const int32_t begin = s->n_states;
        for (int32_t q = 0; q < s->c->n_places; q++) {
            s->n_fresh = 0;
            for (int32_t from = lo; from < hi; from++)
                if (!extend(&k, i, from, q)) return false;
            if (!keep_best(&k)) return false;
        }
        lo = begin;
        hi = s->n_states;
        if (lo == hi) return true; /* nothing can be better */
    }
    for (int32_t j = lo; j < hi && k.work < max_work; j++)
        if (s->states[j].priced < k.limit) finish(&k, &s->states[j]);
    return k.work < max_work;
}

/* ---- first choices --------------------------------------------------------------------------- */

/* Stages [from, end) on the host, the others on the device, all in their least modes; false if that
 * does not fit. */
static bool lay_out(solver *s, int32_t from, int32_t end)
{
    for (int32_t i = 0; i < s->c->n_stages; i++)
        s->blend[i] = (tn_choice){i < from || i >= end, 0};
    return isfinite(tn_chain_cost(s->c, s->blend));
}

void tn_solver_runs(solver *s)
{
    enum { more = 3 };
    const int32_t n = s->c->n_stages;
    for (int last = 0; last < 2; last++)
        for (int32_t i = 0, tried = 0; i <= n && tried < more; i++) {
            if (!lay_out(s, last ? n - i : 0, last ? n : i)) continue;
            tn_solver_improve(s->c, s->blend);
            tn_solver_offer(s, s->blend);
            tried++;
        }
}
