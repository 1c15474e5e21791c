/* Exact choice of modes along a chain.
 *
 * 1. Prices. Each limited resource gets a price per byte; with prices instead of limits the chain
 * is solved by one backward sweep. Raising a price until its limit holds gives a lower bound (the
 *    Lagrangian dual), and choices that fit, which greedy filling improves.
 * 2. Certificate. A forward sweep keeps, for every stage and place, the states that no other state
 *    beats in cost and in every resource, and of those only the ones whose cost so far plus the
 *    priced cost to go is below the best choice known. With good prices few are left. For one
 *    device plan_exact.c counts members of classes instead, which needs far fewer. */
#include "plan_solve_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { max_work = 20000000, max_pairs = 70000, max_knobs = 12, max_tries = 120 };

/* ---- prices ---------------------------------------------------------------------------------- */

static void price_menus(solver *s)
{
    const tn_chain *c = s->c;
    for (int32_t k = 0; k < c->n_classes; k++)
        for (int32_t p = 0; p < c->n_places; p++) {
            const tn_menu *menu = &c->menu[k * c->n_places + p];
            const double live = s->price[TN_USE_LIVE][p / 2], full = s->price[TN_USE_FULL][p / 2];
            const double host = s->price[TN_USE_HOST][0];
            double low = INFINITY;
            int32_t at = -1;
            for (int32_t i = 0; i < menu->n; i++) { /* what takes longest */
                const tn_mode *m = &menu->mode[i];
                const double v = m->cost + live * (double)m->use[0] + full * (double)m->use[1] +
                                 host * (double)m->use[2];
                if (v < low) low = v, at = i;
            }
            if (at >= 0) low = priced(s, &menu->mode[at], p); /* homes, too */
            s->low[k * c->n_places + p] = low;
            s->low_at[k * c->n_places + p] = at;
        }
}

/* Solves the priced chain: fills best and arg, and the path of the optimum. */
static double sweep(solver *s)
{
    const tn_chain *c = s->c;
    const int32_t np = c->n_places, last = c->n_stages - 1;
    price_menus(s);
    for (int32_t i = last; i >= 0; i--)
        for (int32_t p = 0; p < np; p++) {
            double v = i == last ? 0 : INFINITY;
            for (int32_t q = 0; i < last && q < np; q++) {
                const double w = hop_cost(c, i + 1, p, q) + s->best[(i + 1) * np + q];
                if (w < v) v = w, s->arg[i * np + p] = q;
            }
            s->best[i * np + p] = v + s->low[c->cls[i] * np + p];
        }
    double total = INFINITY;
    int32_t at = 0;
    for (int32_t p = 0; p < np; p++) {
        const double v = hop_cost(c, 0, 0, p) + s->best[p];
        if (v < total) total = v, at = p;
    }
    for (int32_t i = 0; i <= last; i++) {
        s->path[i] = (tn_choice){at, s->low_at[c->cls[i] * np + at]};
        at = s->arg[i * np + at];
    }
    for (int u = 0; u < TN_USES; u++)
        for (int d = 0; d < n_rows(c, u); d++)
            total -= s->price[u][d] * (double)c->cap[u][d];
    return total;
}

static void usage(const tn_chain *c, const tn_choice *choice, double use[TN_USES][max_segments])
{
    memset(use, 0, sizeof(double[TN_USES][max_segments]));
    for (int32_t i = 0; i < c->n_stages; i++) {
        const tn_mode *m = &menu_at(c, i, choice[i].place)->mode[choice[i].mode];
        for (int u = 0; u < TN_USES; u++)
            use[u][row(choice[i].place, u)] += (double)m->use[u];
    }
}

double tn_chain_cost(const tn_chain *c, const tn_choice *choice)
{
    double use[TN_USES][max_segments], cost = 0;
    for (int32_t i = 0; i < c->n_stages; i++) {
        if (choice[i].mode < 0 || choice[i].mode >= menu_at(c, i, choice[i].place)->n)
            return INFINITY;
        cost += hop_cost(c, i, i ? choice[i - 1].place : 0, choice[i].place) +
                menu_at(c, i, choice[i].place)->mode[choice[i].mode].cost;
    }
    usage(c, choice, use);
    for (int u = 0; u < TN_USES; u++)
        for (int d = 0; d < n_rows(c, u); d++)
            if (use[u][d] > (double)c->cap[u][d]) return INFINITY;
    return cost;
}

/* ---- choices that fit ------------------------------------------------------------------------ */

static bool fits(const tn_chain *c, double use[TN_USES][max_segments], const tn_mode *from,
                 const tn_mode *to, int32_t place)
{
    for (int u = 0; u < TN_USE_BYTES; u++) {
        const int32_t d = row(place, u);
        const double after = use[u][d] - (double)from->use[u] + (double)to->use[u];
        if (to->use[u] > from->use[u] && after > (double)c->cap[u][d]) return false;
    }
    return true;
}

/* What a change takes of the limits, as a share of them. */
static double taken(const tn_chain *c, const tn_mode *from, const tn_mode *to, int32_t place)
{
    double sum = 0;
    for (int u = 0; u < TN_USE_BYTES; u++)
        if (to->use[u] > from->use[u] && c->cap[u][row(place, u)])
            sum += (double)(to->use[u] - from->use[u]) / (double)c->cap[u][row(place, u)];
    return sum;
}

static void change(const tn_chain *c, double use[TN_USES][max_segments], tn_choice *x,
                   int32_t stage, int32_t mode)
{
    const tn_menu *menu = menu_at(c, stage, x->place);
    for (int u = 0; u < TN_USE_BYTES; u++)
        use[u][row(x->place, u)] +=
            (double)menu->mode[mode].use[u] - (double)menu->mode[x->mode].use[u];
    x->mode = mode;
}

/* Whether an earlier stage is in the same class, place and mode. */
static bool repeated(const tn_chain *c, const tn_choice *choice, int32_t i)
{
    for (int32_t j = 0; j < i; j++)
        if (c->cls[j] == c->cls[i] && choice[j].place == choice[i].place &&
            choice[j].mode == choice[i].mode)
            return true;
    return false;
}

/* Spends what is left: again and again the change of one stage's mode that gains most for what it
 * takes (`thrifty`), or most. */
static void fill(const tn_chain *c, tn_choice *choice, double use[TN_USES][max_segments],
                 bool thrifty)
{
    for (int32_t round = 0; round < 4 * c->n_stages; round++) {
        double best = 0, best_gain = 0;
        int32_t stage = -1, mode = -1;
        for (int32_t i = 0; i < c->n_stages; i++) {
            const tn_menu *menu = menu_at(c, i, choice[i].place);
            const tn_mode *from = &menu->mode[choice[i].mode];
            if (repeated(c, choice, i)) continue;
            for (int32_t j = 0; j < menu->n; j++) {
                const tn_mode *to = &menu->mode[j];
                const double gain = from->cost - to->cost;
                if (!(gain > 0) || !fits(c, use, from, to, choice[i].place)) continue;
                const double value =
                    thrifty ? gain / (taken(c, from, to, choice[i].place) + 1e-9) : gain;
                const bool tie = value > best * (1 - 1e-9) && gain > best_gain;
                if (!(value > best * (1 + 1e-9)) && !tie) continue;
                best = value;
                best_gain = gain;
                stage = i;
                mode = j;
            }
        }
        if (stage < 0) return;
        change(c, use, &choice[stage], stage, mode);
    }
}

/* Makes a choice that fits better without moving anything to another place. */
void tn_solver_improve(const tn_chain *c, tn_choice *choice)
{
    double use[TN_USES][max_segments];
    usage(c, choice, use);
    fill(c, choice, use, true);
    fill(c, choice, use, false);
}

void tn_solver_offer(solver *s, const tn_choice *choice)
{
    const double cost = tn_chain_cost(s->c, choice);
    if (!(cost < s->incumbent_cost)) return;
    s->incumbent_cost = cost;
    memcpy(s->incumbent, choice, (size_t)s->c->n_stages * sizeof *choice);
}

/* One sweep with the prices in force: a bound, and perhaps a better choice. True if price (u, d)'s
 * limit holds. */
static bool probe(solver *s, int u, int32_t d, bool use_path)
{
    double use[TN_USES][max_segments];
    const double bound = sweep(s);
    if (!isfinite(bound)) return true;
    if (bound > s->bound) {
        s->bound = bound;
        memcpy(s->best_price, s->price, sizeof s->price);
    }
    usage(s->c, s->path, use);
    const bool ok = use[u][d] <= (double)s->c->cap[u][d];
    if (use_path && isfinite(tn_chain_cost(s->c, s->path))) {
        tn_solver_improve(s->c, s->path);
        tn_solver_offer(s, s->path);
    }
    return ok;
}

static void keep(const solver *s, tn_choice *copy)
{
    memcpy(copy, s->path, (size_t)s->c->n_stages * sizeof *copy);
}

/* The first n stages of one path and the rest of the other; true if that fits. */
static bool blend_at(solver *s, const tn_choice *first, const tn_choice *rest, int32_t n)
{
    memcpy(s->blend, rest, (size_t)s->c->n_stages * sizeof *rest);
    memcpy(s->blend, first, (size_t)n * sizeof *first);
    return isfinite(tn_chain_cost(s->c, s->blend));
}

/* Where many stages are alike they all change sides at one price, from too much to too little: the
 * best is a mixture of the paths just above and below the limit. */
static void blend_paths(solver *s)
{
    enum { samples = 12 };
    const int32_t n_stages = s->c->n_stages, step = n_stages > samples ? n_stages / samples : 1;
    for (int order = 0; order < 2; order++) {
        const tn_choice *first = order ? s->under : s->over, *rest = order ? s->over : s->under;
        int32_t edge = -1; /* where it stops fitting, or begins to */
        bool before = blend_at(s, first, rest, 0);
        for (int32_t n = 1; n <= n_stages; n++) {
            const bool now = blend_at(s, first, rest, n);
            if (now != before) edge = now ? n : n - 1;
            before = now;
            if (!now || n % step) continue;
            tn_solver_improve(s->c, s->blend);
            tn_solver_offer(s, s->blend);
        }
        if (edge < 0 || !blend_at(s, first, rest, edge)) continue;
        tn_solver_improve(s->c, s->blend);
        tn_solver_offer(s, s->blend);
    }
}

/* The lowest price at which the limit of (u, d) holds, all other prices as they are. False where it
 * is nothing. */
static bool find_price(solver *s, int u, int32_t d, double scale)
{
    double lo = 0, hi = s->price[u][d] > 0 ? s->price[u][d] : scale;
    s->price[u][d] = 0;
    if (probe(s, u, d, true)) return false;
    bool holds = false;
    keep(s, s->over);
    for (int i = 0; i < 40 && !holds; i++) {
        s->price[u][d] = hi;
        holds = probe(s, u, d, false);
        if (holds) break;
        keep(s, s->over);
        lo = hi;
        hi *= 4;
    }
    if (!holds) {
        s->impossible = true;
        return false;
    }
    for (int i = 0; i < 40 && hi - lo > 1e-7 * hi; i++) {
        s->price[u][d] = 0.5 * (lo + hi);
        if (probe(s, u, d, false)) {
            hi = s->price[u][d];
            keep(s, s->under);
        } else {
            lo = s->price[u][d];
            keep(s, s->over);
        }
    }
    s->price[u][d] = hi;
    return true;
}

static void raise_price(solver *s, int u, int32_t d, double scale)
{
    if (!find_price(s, u, d, scale)) return;
    probe(s, u, d, true);
    blend_paths(s);
}

/* The bound at a price of what must be there at full depth, and the best for the planned one. */
static double bound_at(solver *s, double full, double scale)
{
    s->price[TN_USE_FULL][0] = full;
    find_price(s, TN_USE_LIVE, 0, scale);
    return sweep(s);
}

/* Where both of a device's limits hold a choice back, one price after the other may get stuck:
 * looks for the best pair by golden section. */
static void search_pair(solver *s, double scale)
{
    static const double part = 0.381966;
    double lo = 0, hi = 4 * s->price[TN_USE_FULL][0];
    double x = lo + part * (hi - lo), y = hi - part * (hi - lo);
    double at_x = bound_at(s, x, scale), at_y = bound_at(s, y, scale);
    for (int i = 0; i < 30; i++)
        if (at_x < at_y) {
            lo = x, x = y, at_x = at_y;
            at_y = bound_at(s, y = hi - part * (hi - lo), scale);
        } else {
            hi = y, y = x, at_y = at_x;
            at_x = bound_at(s, x = lo + part * (hi - lo), scale);
        }
    bound_at(s, 0.5 * (lo + hi), scale);
    probe(s, TN_USE_LIVE, 0, true);
    blend_paths(s);
}

/* Whether all rows of a resource together hold their limits at one price. */
static bool holds_at(solver *s, int u, double price)
{
    double use[TN_USES][max_segments], over = 0;
    for (int32_t d = 0; d < n_rows(s->c, u); d++)
        s->price[u][d] = price;
    probe(s, u, 0, true);
    usage(s->c, s->path, use);
    for (int32_t d = 0; d < n_rows(s->c, u); d++)
        over += use[u][d] - (double)s->c->cap[u][d];
    return over <= 0;
}

/* The lowest price of a resource on all segments alike: raised one by one from nothing, each would
 * only send its stages to the next. */
static void raise_together(solver *s, int u, double scale)
{
    double lo = 0, hi = scale;
    bool holds = holds_at(s, u, 0);
    if (holds) return;
    for (int i = 0; i < 40 && !holds; i++, hi *= holds ? 1 : 4)
        holds = holds_at(s, u, hi);
    for (int i = 0; i < 30 && holds && hi - lo > 1e-6 * hi; i++) {
        const double mid = 0.5 * (lo + hi);
        if (holds_at(s, u, mid))
            hi = mid;
        else
            lo = mid;
    }
    holds_at(s, u, holds ? hi : 0);
}

/* Where a stage is large for its device the bound is higher with prices of homes, and with those of
 * what they use only as far as that leaves something to be held. */
static void price_homes(solver *s)
{
    static const int of[TN_USES] = {TN_USE_HOMES, TN_USE_LIVE, TN_USE_FULL, TN_USE_HOST};
    const double scale = fabs(s->bound) / 1e11;
    memset(s->price, 0, sizeof s->price);
    for (int i = 0; i < TN_USES; i++)
        if (s->active[of[i]] && n_rows(s->c, of[i]) > 1) raise_together(s, of[i], scale);
    double before = -INFINITY, now = sweep(s);
    for (int round = 0; round < 6 && now - before > 1e-6 * fabs(now); round++) {
        before = now;
        for (int i = 0; i < TN_USES; i++)
            for (int32_t d = 0; s->active[of[i]] && d < n_rows(s->c, of[i]); d++)
                find_price(s, of[i], d, scale);
        now = sweep(s);
    }
}

static void find_prices(solver *s)
{
    const double first = sweep(s);
    s->bound = first;
    const double scale = isfinite(first) ? fabs(first) / 1e11 + 1e-30 : 1e-12;
    for (int u = 0; u < TN_USE_HOST; u++)
        if (s->active[u] && n_rows(s->c, u) > 1) raise_together(s, u, scale);
    for (int round = 0; round < 6 && !s->impossible; round++) {
        const double before = s->bound;
        for (int u = 0; u < TN_USE_BYTES; u++)
            for (int32_t d = 0; s->active[u] && d < n_rows(s->c, u) && !s->impossible; d++)
                raise_price(s, u, d, scale);
        if (round && s->bound - before <= 1e-6 * fabs(before)) break;
    }
    if (s->impossible) return;
    if (s->c->n_places == 2 && s->price[TN_USE_FULL][0] > 0 && s->price[TN_USE_LIVE][0] > 0)
        search_pair(s, scale);
    for (int i = 0; i < 30 && !isfinite(s->incumbent_cost); i++) {
        for (int u = 0; u < TN_USES; u++)
            for (int32_t d = 0; s->active[u] && d < n_rows(s->c, u); d++)
                s->price[u][d] = 4 * s->price[u][d] + scale / 64;
        probe(s, 0, 0, true);
    }
}

/* ---- certificate ----------------------------------------------------------------------------- */

static int by_cost(const void *x, const void *y)
{
    const state *a = x, *b = y;
    if (a->cost != b->cost) return a->cost < b->cost ? -1 : 1;
    if (a->use[0] != b->use[0]) return a->use[0] < b->use[0] ? -1 : 1;
    return 0;
}

/* Whose interior modes are which plays no part. What follows b may bring a second one of a class
 * that a has in one already: then units are shifted from it to a's, at no cost, until one of the
 * two is at an end of its line. A best choice whose first stages are dropped here is so replaced by
 * another best one: by a's first stages, and by less on the later of the two. That ends. */
static bool beats(const state *a, const state *b)
{
    return a->use[0] <= b->use[0] && a->use[1] <= b->use[1] && a->use[2] <= b->use[2];
}

/* Of fresh[], sorted by cost, keeps what nothing before it beats. False when there are too many. */
static bool keep_best(solver *s)
{
    const int32_t start = s->n_states;
    qsort(s->fresh, (size_t)s->n_fresh, sizeof *s->fresh, by_cost);
    for (int32_t i = 0; i < s->n_fresh; i++) {
        bool beaten = false;
        for (int32_t j = s->n_states - 1; j >= start && !beaten; j--, s->work++)
            beaten = beats(&s->states[j], &s->fresh[i]);
        if (beaten) continue;
        if (s->n_states == max_states || s->work > max_work) return false;
        s->states[s->n_states++] = s->fresh[i];
    }
    return true;
}

static bool over(const tn_chain *c, const state *x)
{
    for (int u = 0; u < TN_USES; u++)
        if (x->use[u] > c->cap[u][row(x->place, u)]) return true;
    return false;
}

/* Every way on from one state to one place of stage i. */
static bool extend(solver *s, int32_t i, int32_t from, int32_t q, double limit)
{
    const tn_chain *c = s->c;
    static const state start = {.parent = -1, .place = 0};
    const state *p = from < 0 ? &start : &s->states[from];
    const double hop = hop_cost(c, i, p->place, q);
    const tn_menu *menu = menu_at(c, i, q);
    const double low = s->low[c->cls[i] * c->n_places + q];
    const double to_go = s->best[i * c->n_places + q] - low;
    if (!(p->priced + hop + low + to_go < limit)) return true;
    const bool same = from >= 0 && p->place / 2 == q / 2;
    s->work += menu->n;
    for (int32_t j = 0; j < menu->n; j++) {
        const tn_mode *m = &menu->mode[j];
        const double value = p->priced + hop + priced(s, m, q);
        if (!(value + to_go < limit)) continue;
        state x = {p->cost + hop + m->cost, value, {0}, 0, from, (int16_t)q, (int16_t)j};
        for (int u = 0; u < TN_USES; u++)
            if (s->active[u]) x.use[u] = (same || u == TN_USE_HOST ? p->use[u] : 0) + m->use[u];
        x.mask = same ? p->mask : 0;
        if (m->interior && s->members[c->cls[i]] > 1 && c->cls[i] < 32) {
            const uint64_t bit = 1ull << (2 * c->cls[i] + q % 2);
            if (x.mask & bit) continue;
            x.mask |= bit;
        }
        if (over(c, &x)) continue;
        if (s->n_fresh == max_states || s->work > max_work) return false;
        s->fresh[s->n_fresh++] = x;
    }
    return true;
}

/* The forward sweep; false when it was cut short. A better choice replaces the incumbent. */
static bool certify(solver *s, double limit)
{
    const tn_chain *c = s->c;
    s->n_states = 0;
    int32_t lo = -1, hi = 0; /* states of the stage before; -1: the start */
    for (int32_t i = 0; i < c->n_stages; i++) {
        const int32_t begin = s->n_states;
        for (int32_t q = 0; q < c->n_places; q++) {
            s->n_fresh = 0;
            for (int32_t k = lo; k < hi; k++)
                if (!extend(s, i, k, q, limit)) return false;
            if (!keep_best(s)) return false;
        }
        lo = begin;
        hi = s->n_states;
        if (lo == hi) return true; /* nothing can beat the incumbent */
    }
    int32_t at = lo;
    for (int32_t k = lo; k < hi; k++)
        if (s->states[k].cost < s->states[at].cost) at = k;
    for (int32_t i = c->n_stages - 1; i >= 0; i--) {
        s->path[i] = (tn_choice){s->states[at].place, s->states[at].mode};
        at = s->states[at].parent;
    }
    tn_solver_offer(s, s->path);
    return true;
}

/* A resource of which the chain's greediest modes together stay within all limits plays no part. */
static void find_active(solver *s)
{
    const tn_chain *c = s->c;
    for (int u = 0; u < TN_USES; u++) {
        double most = 0;
        for (int32_t i = 0; i < c->n_stages; i++) {
            uint64_t top = 0;
            for (int32_t p = 0; p < c->n_places; p++)
                for (int32_t j = 0; j < menu_at(c, i, p)->n; j++)
                    if (menu_at(c, i, p)->mode[j].use[u] > top)
                        top = menu_at(c, i, p)->mode[j].use[u];
            most += (double)top;
        }
        for (int32_t d = 0; d < n_rows(c, u); d++)
            if (most > (double)c->cap[u][d]) s->active[u] = true;
    }
}

/* ---- all together ---------------------------------------------------------------------------- */

static bool make(solver *s)
{
    const size_t n = (size_t)s->c->n_stages, np = (size_t)s->c->n_places;
    const size_t nc = (size_t)s->c->n_classes;
    s->best = tn_alloc(s->a, n * np, sizeof *s->best);
    s->arg = tn_alloc(s->a, n * np, sizeof *s->arg);
    s->low = tn_alloc(s->a, nc * np, sizeof *s->low);
    s->low_at = tn_alloc(s->a, nc * np, sizeof *s->low_at);
    s->members = tn_alloc(s->a, nc, sizeof *s->members);
    s->path = tn_alloc(s->a, n, sizeof *s->path);
    s->over = tn_alloc(s->a, n, sizeof *s->over);
    s->under = tn_alloc(s->a, n, sizeof *s->under);
    s->blend = tn_alloc(s->a, n, sizeof *s->blend);
    s->incumbent = tn_alloc(s->a, n, sizeof *s->incumbent);
    s->states = tn_alloc_raw(s->a, max_states, sizeof *s->states);
    s->fresh = tn_alloc_raw(s->a, max_states, sizeof *s->fresh);
    for (int i = 0; i < 2; i++)
        s->pair[i] = tn_alloc_raw(s->a, max_pairs, sizeof *s->pair[i]);
    return s->best && s->arg && s->low && s->low_at && s->members && s->path && s->over &&
           s->under && s->blend && s->incumbent && s->states && s->fresh && s->pair[0] &&
           s->pair[1];
}

static void unmake(solver *s)
{
    void *all[] = {s->best,  s->arg,   s->low,       s->low_at, s->members, s->path,    s->over,
                   s->under, s->blend, s->incumbent, s->states, s->fresh,   s->pair[0], s->pair[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) tn_free(s->a, all[i]);
}

/* Proven relative distance of the incumbent from the best. */
static double distance(const solver *s)
{
    if (!isfinite(s->incumbent_cost)) return INFINITY;
    return fmax(0, (s->incumbent_cost - s->bound) / s->incumbent_cost);
}

/* The certificate; for several segments with wider tolerance where the exact one takes too long. */
static double prove(solver *s)
{
    static const double tolerance[] = {TN_SOLVER_EXACT, 1e-4, 1e-3};
    memcpy(s->price, s->best_price, sizeof s->price);
    sweep(s);
    double caps = 0;
    for (int u = 0; u < TN_USES; u++)
        for (int32_t d = 0; d < n_rows(s->c, u); d++)
            caps += s->price[u][d] * (double)s->c->cap[u][d];
    const size_t n = s->c->n_places == 2 ? 1 : sizeof tolerance / sizeof *tolerance;
    for (size_t i = 0; i < n; i++) {
        s->work = 0;
        if (distance(s) <= tolerance[i]) return distance(s);
        const double limit = s->incumbent_cost * (1 - tolerance[i]) + caps;
        if (n == 1 ? tn_solver_count(s, caps) : certify(s, limit)) return tolerance[i];
    }
    return isfinite(s->incumbent_cost) ? distance(s) : 0;
}

/* ---- modes of four stages at once --------------------------------------------------------------
 *
 * Where the time saved per byte is the same for many stages, what prices leave is a sum of subsets:
 * which units together use the last bytes. Two stages have all their pairs of modes listed by
 * bytes, and for every pair of two others the best of them that still fits is looked up. */

static int by_use(const void *x, const void *y)
{
    const pick *a = x, *b = y;
    if (a->use != b->use) return a->use < b->use ? -1 : 1;
    return a->cost < b->cost ? -1 : a->cost > b->cost;
}

/* How much worse than the cheapest a mode is at the prices in force: more than the gap, and it is
 * part of nothing better. */
static double reduced(const solver *s, int32_t stage, int32_t place, const tn_mode *m)
{
    return priced(s, m, place) - s->low[s->c->cls[stage] * s->c->n_places + place];
}

/* All pairs of modes of two stages (-1 = none); 0 when there are too many. */
static int32_t list_pairs(const solver *s, int u, int32_t x, int32_t y, double slack, pick *out)
{
    static const tn_mode nothing = {.cost = 0};
    const tn_menu none = {(tn_mode *)&nothing, 1};
    const int32_t px = x < 0 ? 0 : s->blend[x].place, py = y < 0 ? 0 : s->blend[y].place;
    const tn_menu *a = x < 0 ? &none : menu_at(s->c, x, px);
    const tn_menu *b = y < 0 ? &none : menu_at(s->c, y, py);
    int32_t n = 0;
    for (int32_t i = 0; i < a->n; i++) {
        const double over = x < 0 ? 0 : reduced(s, x, px, &a->mode[i]);
        for (int32_t j = 0; over <= slack && j < b->n; j++) {
            if (y >= 0 && over + reduced(s, y, py, &b->mode[j]) > slack) continue;
            if (n == max_pairs) return 0;
            out[n++] = (pick){a->mode[i].cost + b->mode[j].cost,
                              a->mode[i].use[u] + b->mode[j].use[u], (int16_t)i, (int16_t)j};
        }
    }
    return n;
}

/* Sorted by bytes; only those that cost less than every smaller one stay. */
static int32_t keep_frontier(pick *pair, int32_t n)
{
    int32_t kept = 0;
    qsort(pair, (size_t)n, sizeof *pair, by_use);
    for (int32_t i = 0; i < n; i++)
        if (kept == 0 || pair[i].cost < pair[kept - 1].cost) pair[kept++] = pair[i];
    return kept;
}

/* The last of a frontier that uses at most `room`, NULL if none does. */
static const pick *within(const pick *pair, int32_t n, uint64_t room)
{
    int32_t lo = 0, hi = n;
    while (lo < hi) {
        const int32_t mid = (lo + hi) / 2;
        if (pair[mid].use <= room)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? &pair[lo - 1] : NULL;
}

/* The device's resource that is dearest; -1: neither has a price. */
static int dearest(const solver *s, int32_t d)
{
    const double live = s->price[TN_USE_LIVE][d], full = s->price[TN_USE_FULL][d];
    return live > 0 && live >= full ? TN_USE_LIVE : full > 0 ? TN_USE_FULL : -1;
}

/* The cheapest pair of each list that fit into `room` together and cost less than `most`. */
static bool cheapest_four(const solver *s, int32_t n, int32_t m, double room, double most,
                          int16_t to[4])
{
    bool found = false;
    for (int32_t i = 0; i < n && m; i++) {
        const pick *x = &s->pair[0][i];
        const pick *y =
            (double)x->use > room ? NULL : within(s->pair[1], m, (uint64_t)room - x->use);
        if (!y || !(x->cost + y->cost < most)) continue;
        most = x->cost + y->cost;
        to[0] = x->first, to[1] = x->second, to[2] = y->first, to[3] = y->second;
        found = true;
    }
    return found;
}

/* Takes these modes where the chain costs less than `now` with them. */
static bool take_if_better(solver *s, const int32_t at[4], const int16_t to[4], double now)
{
    tn_choice old[4];
    for (int i = 0; i < 4; i++) {
        if (at[i] < 0) continue;
        old[i] = s->blend[at[i]];
        s->blend[at[i]].mode = to[i];
    }
    if (tn_chain_cost(s->c, s->blend) < now) return true;
    for (int i = 0; i < 4; i++) /* another limit does not hold */
        if (at[i] >= 0) s->blend[at[i]] = old[i];
    return false;
}

/* Best modes of four stages of one segment, all else in s->blend as it is. True if it got better.
 * *sorted: how many pairs of the last two are in s->pair[1] from the call before, -1 = none are. */
static bool tune(solver *s, const int32_t at[4], int32_t *sorted)
{
    const int32_t d = s->blend[at[2]].place / 2; /* the first two may be none */
    const int u = dearest(s, d);
    const double now = tn_chain_cost(s->c, s->blend), slack = now - s->bound;
    double use[TN_USES][max_segments], own = 0, own_cost = 0;
    int16_t to[4];
    if (u < 0) return false;
    usage(s->c, s->blend, use);
    for (int i = 0; i < 4; i++) {
        if (at[i] < 0) continue;
        const tn_mode *m = &menu_at(s->c, at[i], s->blend[at[i]].place)->mode[s->blend[at[i]].mode];
        own += (double)m->use[u];
        own_cost += m->cost;
    }
    const double room = (double)s->c->cap[u][d] - use[u][d] + own;
    const int32_t n = list_pairs(s, u, at[0], at[1], slack, s->pair[0]);
    if (*sorted < 0)
        *sorted = keep_frontier(s->pair[1], list_pairs(s, u, at[2], at[3], slack, s->pair[1]));
    return cheapest_four(s, n, *sorted, room, own_cost - 1e-12 * now, to) &&
           take_if_better(s, at, to, now);
}

/* Stages of segment d that differ, two of those alike; -1 where there are less than four. */
static int32_t list_knobs(const solver *s, int32_t d, int32_t knob[max_knobs])
{
    const tn_choice *x = s->blend;
    int32_t n = 0;
    for (int32_t i = s->c->n_stages - 1; i >= 0 && n < max_knobs; i--) {
        int twins = 0;
        for (int32_t j = 0; j < n; j++)
            twins += s->c->cls[knob[j]] == s->c->cls[i] && x[knob[j]].place == x[i].place &&
                     x[knob[j]].mode == x[i].mode;
        if (x[i].place / 2 == d && twins < 2 && menu_at(s->c, i, x[i].place)->n > 1) knob[n++] = i;
    }
    for (int32_t i = n; i < 4; i++)
        knob[i] = -1;
    return n;
}

/* One round over pairs, then fours of a segment's stages until one gets better; false if none does.
 */
static bool tune_segment(solver *s, int32_t d, int *tries)
{
    int32_t k[max_knobs];
    const int32_t n = list_knobs(s, d, k), end = n > 4 ? n : 4;
    if (n == 0) return false;
    for (int32_t a = 0; a < n; a++)
        for (int32_t b = a + 1; b < n; b++) {
            int32_t sorted = -1;
            if (tune(s, (int32_t[]){k[a], -1, k[b], -1}, &sorted)) return true;
        }
    for (int32_t a = 0; a < end; a++)
        for (int32_t b = a + 1; b < end; b++) {
            int32_t sorted = -1; /* what takes longest */
            for (int32_t c = b + 1; c < end; c++)
                for (int32_t e = c + 1; e < end; e++) {
                    if (--*tries < 0) return false;
                    if (tune(s, (int32_t[]){k[c], k[e], k[a], k[b]}, &sorted)) return true;
                }
        }
    return false;
}

/* Where the prices leave a gap. */
static void polish(solver *s)
{
    int tries = max_tries;
    if (!isfinite(s->incumbent_cost) || distance(s) <= TN_SOLVER_EXACT) return;
    memcpy(s->price, s->best_price, sizeof s->price);
    sweep(s);
    memcpy(s->blend, s->incumbent, (size_t)s->c->n_stages * sizeof *s->blend);
    for (int32_t d = 0; d < s->c->n_places / 2; d++)
        while (distance(s) > TN_SOLVER_EXACT && tune_segment(s, d, &tries))
            tn_solver_offer(s, s->blend);
}

/* Stages among several segments, where the prices leave a gap. False: there was no memory. */
static bool share_out(solver *s)
{
    static const double close = 1e-4, far = 1e-2;
    const double before = s->incumbent_cost;
    if (s->c->n_places == 2 || s->impossible || distance(s) <= close) return true;
    if (!tn_solver_cuts(s)) return false;
    if (s->c->quick || !isfinite(s->incumbent_cost)) return true;
    if (s->incumbent_cost < before) polish(s);
    if (s->active[TN_USE_HOMES] && distance(s) > far) price_homes(s);
    return true;
}

tn_status tn_chain_solve(const tn_chain *c, tn_choice *choice, double *cost, double *gap,
                         const tn_allocator *a, tn_error *err)
{
    solver s = {.c = c, .a = a, .incumbent_cost = INFINITY, .bound = -INFINITY};
    if (!make(&s)) {
        unmake(&s);
        return tn_fail_nomem(err, max_states * sizeof *s.states, "the planner's search");
    }
    for (int32_t i = 0; i < c->n_stages; i++)
        s.members[c->cls[i]]++;
    find_active(&s);
    if (isfinite(tn_chain_cost(c, choice))) {
        tn_solver_improve(c, choice);
        tn_solver_offer(&s, choice);
    }
    find_prices(&s);
    if (c->n_places == 2 && !s.impossible) tn_solver_runs(&s);
    if (!c->quick) polish(&s);
    if (!share_out(&s)) {
        unmake(&s);
        return tn_fail_nomem(err, (size_t)c->n_stages * sizeof *choice, "the planner's search");
    }
    *gap = s.impossible ? 0 : c->quick && isfinite(s.incumbent_cost) ? distance(&s) : prove(&s);
    *cost = s.incumbent_cost;
    memcpy(choice, s.incumbent, (size_t)c->n_stages * sizeof *choice);
    unmake(&s);
    return TN_OK;
}
