/* Internal: choosing one mode for every stage (layer, head) of a chain at least cost, under memory
 * limits. Knows nothing of models or machines.
 *
 * Stage i has a class; stages of one class have the same menus. In every stage one is at a *place*:
 * place = 2 * segment + side (0 = the residual stream is on the host, 1 = on the segment's device).
 * Segments never decrease along the chain. Going from place p to q costs hop[p][q]. */
#ifndef TN_PLAN_SOLVE_H
#define TN_PLAN_SOLVE_H

#include "../gguf/mem.h"

/* Resources a mode uses: the device's memory at the planned depth, what of it must be there at full
 * depth, and host memory; and stages, one for each that is at home on the device, the same for all
 * modes of a menu. No more of these may be allowed than fit at full depth: that follows from the
 * limits of memory, and changes nothing but what is proven, where a stage is large for a device and
 * prices would have it take a part of one. */
enum {
    TN_USE_LIVE,
    TN_USE_FULL,
    TN_USE_HOST,
    TN_USE_BYTES, /* number of those that are memory */
    TN_USE_HOMES = TN_USE_BYTES,
    TN_USES
};

typedef struct tn_mode {
    double cost;
    uint64_t use[TN_USES];
    int32_t units;
    /* On the straight line between its neighbours: of the stages of one class and place, one at
     * most need be in such a mode, because two could shift units between them at no cost. */
    bool interior;
} tn_mode;

typedef struct tn_menu {
    tn_mode *mode; /* NULL where the place is not allowed */
    int32_t n;
} tn_menu;

typedef struct tn_chain {
    int32_t n_stages, n_classes, n_places;
    const int32_t *cls;  /* [n_stages] */
    const tn_menu *menu; /* [n_classes][n_places] */
    const double *hop;   /* [n_places + 1][n_places]; row n_places: into the first stage */
    bool quick; /* no certificate: what the prices and filling give, typically within 0.1 % */
    uint64_t cap[TN_USES][8]; /* live and full per segment; host in [TN_USE_HOST][0] */
} tn_chain;

typedef struct tn_choice {
    int32_t place, mode; /* index in the menu */
} tn_choice;

/* Fills choice[n_stages]; what is in it before serves as a first guess if it fits. The last stage
 * stays at the place of the one before. *cost: of the choice, +infinity if nothing fits. *gap:
 * proven relative distance to the best, at most 1e-9 unless the search had to be cut short: for one
 * segment only where stages are worth as much at either place, so that there are many thousands of
 * ways to share them out; then less than one unit's worth is unproven.
 * TN_ENOMEM. */
tn_status tn_chain_solve(const tn_chain *c, tn_choice *choice, double *cost, double *gap,
                         const tn_allocator *a, tn_error *err);
/* Cost of a choice, +infinity where it breaks a limit or is not allowed. */
double tn_chain_cost(const tn_chain *c, const tn_choice *choice);

#endif
