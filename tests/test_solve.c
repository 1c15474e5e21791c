/* The planner's solver on chains that no model has: what it calls the best is the best of all. */
#include "harness.h"
#include "plan_random.h"

#include <math.h>

enum { most_places = 4, most_stages = 5, most_modes = 6, n_classes = 3 };

/* ---- random chains --------------------------------------------------------------------------- */

typedef struct problem {
    tn_chain c;
    int32_t cls[most_stages];
    tn_menu menu[n_classes * most_places];
    tn_mode mode[n_classes * most_places][most_modes];
    double hop[(most_places + 1) * most_places];
} problem;

/* A cost; with ties a multiple of a quarter, so that many choices cost the same to the bit. */
static double cost_of(uint64_t *seed, double lo, double hi, bool ties)
{
    const double v = test_uniform(seed, lo, hi);
    return ties ? floor(4 * v) / 4 : v;
}

/* Units that are alike up to the last, which brings a step; `on` on the segment's device. */
static void make_menu(uint64_t *seed, tn_menu *menu, tn_mode *mode, int n, bool ties)
{
    const double least = cost_of(seed, ties ? 1 : 0, 2, ties), each = cost_of(seed, 0.25, 2, ties);
    const uint64_t unit = (uint64_t)test_int(seed, 2, ties ? 3 : 9),
                   base = (uint64_t)test_int(seed, 0, 9);
    const uint64_t full = (uint64_t)test_int(seed, 0, (int)unit);
    const double step = cost_of(seed, -0.5, 0.5, ties);
    *menu = (tn_menu){mode, n};
    for (int i = 0; i < n; i++) {
        mode[i] = (tn_mode){
            .cost = least + each * (n - 1 - i),
            .use = {base + unit * (uint64_t)i, full * (uint64_t)i, unit * (uint64_t)(n - 1 - i)},
            .units = i,
            .interior = i > 0 && i + 2 < n};
        if (i == n - 1) mode[i].cost += step;
    }
}

static void make(uint64_t *seed, problem *p, int n_segments, bool ties)
{
    const int n_places = 2 * n_segments, n_stages = test_int(seed, 3, most_stages);
    *p = (problem){.c = {.n_stages = n_stages, .n_classes = n_classes, .n_places = n_places}};
    p->c.cls = p->cls;
    p->c.menu = p->menu;
    p->c.hop = p->hop;
    for (int i = 0; i < n_stages; i++) /* the last is on its own */
        p->cls[i] = i + 1 == n_stages ? 2 : test_int(seed, 0, 3) == 0;
    for (int i = 0; i < n_classes * n_places; i++)
        make_menu(seed, &p->menu[i], p->mode[i], test_int(seed, 3, most_modes), ties);
    for (int i = 0; i < (n_places + 1) * n_places; i++)
        p->hop[i] = i / n_places == i % n_places ? 0 : cost_of(seed, 0, 0.5, ties);
    for (int u = 0; u < TN_USES; u++)
        for (int d = 0; d < n_segments; d++)
            p->c.cap[u][d] = (uint64_t)test_int(seed, 10, u == TN_USE_HOST ? 160 : ties ? 40 : 90);
}

/* Every stage on a device keeps so much there that few fit, and their number is limited, too: as
 * many as can be, which is no limit of its own. */
static void add_homes(uint64_t *seed, problem *p)
{
    uint64_t least[n_classes], size[most_stages];
    tn_chain *c = &p->c;
    for (int k = 0; k < n_classes; k++) {
        least[k] = (uint64_t)test_int(seed, 10, 40);
        for (int q = 1; q < c->n_places; q += 2)
            for (int j = 0; j < p->menu[k * c->n_places + q].n; j++) {
                p->mode[k * c->n_places + q][j].use[TN_USE_FULL] += least[k];
                p->mode[k * c->n_places + q][j].use[TN_USE_HOMES] = 1;
            }
    }
    for (int i = 0; i < c->n_stages; i++) { /* sorted */
        int j = i;
        for (; j > 0 && size[j - 1] > least[p->cls[i]]; j--)
            size[j] = size[j - 1];
        size[j] = least[p->cls[i]];
    }
    for (int d = 0; d < c->n_places / 2; d++) {
        uint64_t n = 0, room = c->cap[TN_USE_FULL][d];
        while (n < (uint64_t)c->n_stages && size[n] <= room)
            room -= size[n++];
        c->cap[TN_USE_HOMES][d] = n;
    }
}

/* ---- all choices ----------------------------------------------------------------------------- */

typedef struct search {
    const problem *p;
    tn_choice at[most_stages], best[most_stages];
    double least;
} search;

static void try_all(search *x, int stage)
{
    const tn_chain *c = &x->p->c;
    if (stage == c->n_stages) {
        const double cost = tn_chain_cost(c, x->at);
        if (!(cost < x->least)) return;
        x->least = cost;
        memcpy(x->best, x->at, sizeof x->best);
        return;
    }
    const bool last = stage + 1 == c->n_stages;
    for (int32_t q = 0; q < c->n_places; q++) {
        const int32_t before = stage ? x->at[stage - 1].place : 0;
        if (stage && (q / 2 < before / 2 || (last && q != before))) continue;
        for (int32_t j = 0; j < c->menu[c->cls[stage] * c->n_places + q].n; j++) {
            x->at[stage] = (tn_choice){q, j};
            try_all(x, stage + 1);
        }
    }
}

static bool has_interior(const search *x)
{
    for (int i = 0; i < x->p->c.n_stages; i++) {
        const tn_choice *y = &x->best[i];
        if (x->p->mode[x->p->cls[i] * x->p->c.n_places + y->place][y->mode].interior) return true;
    }
    return false;
}

TEST(chains_are_solved_exactly)
{
    int solved = 0, inside = 0;
    for (uint64_t i = 0; i < 1080; i++) {
        uint64_t seed = 12540 + i;
        problem p;
        tn_choice choice[most_stages] = {{0, -1}};
        double cost, gap;
        make(&seed, &p, 1 + (i % 6 > 0), i >= 360 && i < 720);
        if (i >= 720) add_homes(&seed, &p);
        search x = {.p = &p, .least = INFINITY};
        try_all(&x, 0);
        REQUIRE(!tn_chain_solve(&p.c, choice, &cost, &gap, &tn_default_allocator, NULL));
        if (!isfinite(x.least)) continue;
        solved++;
        inside += has_interior(&x);
        CHECK_MSG(fabs(cost / x.least - 1) <= 1e-9 && gap <= 1e-9,
                  "seed %llu: %.12g, best %.12g, gap %g", (unsigned long long)(12540 + i), cost,
                  x.least, gap);
    }
    CHECK_MSG(solved >= 800 && inside >= 150, "%d, %d with an interior mode", solved, inside);
}

TEST_MAIN
