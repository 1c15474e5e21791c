/* The simple placements that the optimum has to beat. */
#include "plan_chain.h"

#include <math.h>
#include <string.h>

const char *tn_strategy_name(tn_strategy s)
{
    static const char *const names[TN_STRATEGIES] = {
        "all-host", "layers", "ffn-host", "ffn-blocks", "water-fill", "optimum", "file"};
    return s < TN_STRATEGIES ? names[s] : "unknown";
}

/* Puts a stage at a place with the units nearest to those wanted; on the other side of the same
 * segment where an override says so. */
static bool put(tn_planner *p, int32_t stage, int32_t place, int32_t units)
{
    int32_t mode = tn_planner_mode(p, stage, place, units);
    if (mode < 0) mode = tn_planner_mode(p, stage, place ^= 1, units);
    p->choice[stage] = (tn_choice){place, mode};
    return mode >= 0;
}

static bool fits(const tn_planner *p)
{
    return isfinite(tn_chain_cost(&p->chain, p->choice));
}

static int32_t all_units(const tn_planner *p, int32_t stage)
{
    return stage == p->k.s->n_layers ? p->k.s->head_units : p->k.s->layer[stage].n_units;
}

/* Share of the layers that segment d gets when budgets decide. */
static int32_t segment_end(const tn_planner *p, int32_t n_layers, int32_t d)
{
    double sum = 0, all = 0;
    for (int32_t i = 0; i < p->chain.n_places / 2; i++) {
        all += (double)p->chain.cap[TN_USE_FULL][i];
        if (i <= d) sum += (double)p->chain.cap[TN_USE_FULL][i];
    }
    return all > 0 ? (int32_t)lround(n_layers * sum / all) : 0;
}

static int32_t segment_of(const tn_planner *p, int32_t i, int32_t n_layers)
{
    int32_t d = 0;
    while (d + 1 < p->chain.n_places / 2 && i >= segment_end(p, n_layers, d))
        d++;
    return d;
}

/* The last `n` stages whole on the devices, the layers before them on the host. */
static bool whole_layers(tn_planner *p, int32_t n)
{
    const int32_t n_layers = p->k.s->n_layers, first = n_layers + 1 - n;
    bool ok = true;
    for (int32_t i = 0; i < n_layers && ok; i++) {
        const bool on = i >= first;
        const int32_t d = on ? segment_of(p, i - first, n_layers - first) : 0;
        ok = put(p, i, 2 * d + on, on ? all_units(p, i) : 0);
    }
    const int32_t end = n_layers ? p->choice[n_layers - 1].place : 0;
    return ok && put(p, n_layers, end, n > 0 ? all_units(p, n_layers) : 0) &&
           p->choice[n_layers].place == end && fits(p);
}

static bool layers(tn_planner *p)
{
    for (int32_t n = p->k.s->n_layers + 1; n >= 0; n--)
        if (whole_layers(p, n)) return true;
    return false;
}

/* Attention on the devices; the FFNs of the first n_host layers of each segment on the host. */
static bool ffn_split(tn_planner *p, int32_t n_host, bool head)
{
    const int32_t n_layers = p->k.s->n_layers;
    bool ok = true;
    for (int32_t i = 0; i < n_layers && ok; i++) {
        const int32_t d = segment_of(p, i, n_layers);
        const int32_t begin = d ? segment_end(p, n_layers, d - 1) : 0;
        const int32_t length = segment_end(p, n_layers, d) - begin;
        const bool host = i - begin < (int64_t)n_host * length / n_layers;
        ok = put(p, i, 2 * d + 1, host ? 0 : all_units(p, i));
    }
    return ok &&
           put(p, n_layers, p->choice[n_layers - 1].place, head ? all_units(p, n_layers) : 0) &&
           fits(p);
}

static bool ffn_host(tn_planner *p)
{
    return ffn_split(p, p->k.s->n_layers, true) || ffn_split(p, p->k.s->n_layers, false);
}

static bool ffn_blocks(tn_planner *p)
{
    for (int32_t n = 0; n <= p->k.s->n_layers; n++)
        if (ffn_split(p, n, true)) return true;
    return ffn_split(p, p->k.s->n_layers, false);
}

/* ---- water-fill ------------------------------------------------------------------------------ */

/* Units at which both sides are done together: f* of the layer's own curve. */
static int32_t balance(const tn_planner *p, int32_t stage, int32_t place)
{
    const tn_menu *m = &p->chain.menu[p->chain.cls[stage] * p->chain.n_places + place];
    int32_t best = 0;
    for (int32_t i = 1; i + 1 < m->n; i++)
        if (m->mode[i].cost < m->mode[best].cost) best = i;
    return m->n ? m->mode[best].units : 0;
}

/* Largest even fill: every layer but the first n_full has the share x/1000 of its balance. */
static bool fill_at(tn_planner *p, int32_t n_full, int32_t x, bool head)
{
    const int32_t n_layers = p->k.s->n_layers;
    bool ok = true;
    for (int32_t i = 0; i < n_layers && ok; i++) {
        const int32_t place = 2 * segment_of(p, i, n_layers) + 1;
        const int32_t units =
            i < n_full ? all_units(p, i) : (int32_t)((int64_t)balance(p, i, place) * x / 1000);
        ok = put(p, i, place, units);
    }
    return ok &&
           put(p, n_layers, p->choice[n_layers - 1].place, head ? all_units(p, n_layers) : 0) &&
           fits(p);
}

static bool fill_most(tn_planner *p, int32_t n_full, bool head)
{
    int32_t lo = 0, hi = 1000;
    if (fill_at(p, n_full, hi, head)) return true;
    if (!fill_at(p, n_full, lo, head)) return false;
    while (hi - lo > 1) {
        const int32_t mid = (lo + hi) / 2;
        if (fill_at(p, n_full, mid, head))
            lo = mid;
        else
            hi = mid;
    }
    return fill_at(p, n_full, lo, head);
}

/* Attention on the devices, n_full layers whole, the rest evenly up to the balance; the best
 * n_full. */
static bool water_fill(tn_planner *p)
{
    double best = INFINITY;
    int32_t best_full = -1;
    bool best_head = false;
    const int32_t n = p->k.s->n_layers, step = n > 32 ? n / 32 : 1;
    for (int head = 0; head < 2; head++)
        for (int32_t full = 0; full <= n; full = full < n && full + step > n ? n : full + step) {
            if (!fill_most(p, full, head)) break;
            const double cost = tn_chain_cost(&p->chain, p->choice);
            if (!(cost < best)) continue;
            best = cost;
            best_full = full;
            best_head = head;
        }
    return best_full >= 0 && fill_most(p, best_full, best_head);
}

static bool has_room(const tn_planner *p)
{
    for (int32_t d = 0; d < p->chain.n_places / 2; d++)
        if (p->chain.cap[TN_USE_FULL][d] > 0) return true;
    return false;
}

bool tn_planner_candidate(tn_planner *p, tn_strategy strategy)
{
    if (strategy != TN_PLAN_ALL_HOST && !has_room(p)) return false;
    switch (strategy) {
    case TN_PLAN_ALL_HOST: {
        bool ok = true;
        for (int32_t i = 0; i <= p->k.s->n_layers && ok; i++) {
            p->choice[i] = (tn_choice){0, 0};
            ok = p->chain.menu[p->chain.cls[i] * p->chain.n_places].n > 0;
        }
        return ok && fits(p);
    }
    case TN_PLAN_LAYERS: return layers(p);
    case TN_PLAN_FFN_HOST: return ffn_host(p);
    case TN_PLAN_FFN_BLOCKS: return ffn_blocks(p);
    case TN_PLAN_WATER_FILL: return water_fill(p);
    case TN_PLAN_OPTIMUM:
    case TN_PLAN_FILE:
    case TN_STRATEGIES: break;
    }
    return false;
}
