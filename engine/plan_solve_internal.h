/* Internal: what the parts of the solver share, see plan_solve.h. */
#ifndef TN_PLAN_SOLVE_INTERNAL_H
#define TN_PLAN_SOLVE_INTERNAL_H

#include "plan_solve.h"

#include <math.h>

enum { max_segments = 8, max_states = 100000 };

#define TN_SOLVER_EXACT 1e-9 /* relative distance that counts as none */

typedef struct state {
    double cost, priced;   /* priced: with the prices of everything used so far */
    uint64_t use[TN_USES]; /* of the current segment; host: of the whole chain */
    uint64_t mask;         /* classes that have an interior mode in this place */
    int32_t parent;        /* index among all states, -1 at the start */
    int16_t place, mode;
} state;

/* Modes of two stages. */
typedef struct pick {
    double cost;
    uint64_t use; /* of one resource */
    int16_t first, second;
} pick;

typedef struct solver {
    const tn_chain *c;
    const tn_allocator *a;
    double price[TN_USES][max_segments], best_price[TN_USES][max_segments];
    double *best;     /* [n_stages][n_places] priced cost from this stage on, at this place */
    int32_t *arg;     /* [n_stages][n_places] the place after */
    double *low;      /* [n_classes][n_places] cheapest priced mode */
    int32_t *low_at;  /* its index */
    int32_t *members; /* [n_classes] */
    tn_choice *path, *incumbent;     /* [n_stages] */
    tn_choice *over, *under, *blend; /* [n_stages] the paths just above and below a limit */
    double incumbent_cost, bound;
    bool impossible;      /* a limit that no price can hold */
    bool active[TN_USES]; /* resources of which everything together might exceed a limit */
    state *states;
    int32_t n_states;
    state *fresh;
    int32_t n_fresh;
    int64_t work; /* of the running search: modes tried, states compared */
    pick *pair[2];
} solver;

static inline const tn_menu *menu_at(const tn_chain *c, int32_t stage, int32_t place)
{
    return &c->menu[c->cls[stage] * c->n_places + place];
}

static inline int32_t row(int32_t place, int use)
{
    return use == TN_USE_HOST ? 0 : place / 2;
}

/* Limits on a resource: one a segment, one for the host. */
static inline int32_t n_rows(const tn_chain *c, int use)
{
    return use == TN_USE_HOST ? 1 : c->n_places / 2;
}

/* May q follow p before this stage, and at what cost? The last stage stays where the residual is.
 */
static inline double hop_cost(const tn_chain *c, int32_t stage, int32_t p, int32_t q)
{
    if (stage == c->n_stages - 1 && stage > 0 && p != q) return INFINITY;
    if (stage > 0 && q / 2 < p / 2) return INFINITY;
    return c->hop[(stage == 0 ? c->n_places : p) * c->n_places + q];
}

static inline double priced(const solver *s, const tn_mode *m, int32_t place)
{
    double v = m->cost;
    for (int u = 0; u < TN_USES; u++)
        v += s->price[u][row(place, u)] * (double)m->use[u];
    return v;
}

/* Takes a choice that fits and is better than the best known. */
void tn_solver_offer(solver *s, const tn_choice *choice);
/* Makes a choice that fits better without moving anything to another place. */
void tn_solver_improve(const tn_chain *c, tn_choice *choice);
/* plan_exact.c: for one segment. Offers choices that have the first stages, or the last ones, at
 * home on the host and the others on the device: as few on the host as fit, and some more. */
void tn_solver_runs(solver *s);
/* plan_cuts.c: for several segments. Offers choices found by moving the cuts between them. False:
 * there was no memory. */
bool tn_solver_cuts(solver *s);
/* For one segment. Searches everything that at the prices swept last may be better
 * than the best known; caps: what the limits are worth at them. What is found is offered. False
 * when the search was cut short; else the best known is the best there is. */
bool tn_solver_count(solver *s, double caps);

#endif
