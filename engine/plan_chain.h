/* Internal: the planner's steps between the cost model and the answer. */
#ifndef TN_PLAN_CHAIN_H
#define TN_PLAN_CHAIN_H

#include "plan_cost.h"
#include "plan_solve.h"

/* How device memory is accounted for. */
typedef enum tn_room {
    TN_ROOM_ELASTIC, /* units may use what the live KV leaves; the host has masters of all of them
                      */
    TN_ROOM_STATIC,  /* room for n_ctx tokens is kept; no masters */
    TN_ROOM_HOST     /* no device at all */
} tn_room;

/* One problem ready for the solver. */
typedef struct tn_planner {
    tn_cost k;
    const tn_allocator *a;
    tn_room room;
    tn_chain chain;
    int32_t *cls;    /* [n_layers + 1] */
    int32_t *member; /* [n_classes] one layer of each; the head is n_layers */
    tn_menu *menu;
    double *hop;
    tn_choice *choice; /* [n_layers + 1] */
} tn_planner;

/* k is copied; what it points to must outlive the planner. TN_ENOMEM. */
tn_status tn_planner_make(tn_planner *p, const tn_cost *k, tn_room room, const tn_allocator *a,
                          tn_error *err);
void tn_planner_free(tn_planner *p);
/* Index of the mode of a stage whose units are nearest to those wanted; -1 if the place is barred.
 */
int32_t tn_planner_mode(const tn_planner *p, int32_t stage, int32_t place, int32_t units);
/* Allocates the plan that p->choice stands for, with memory table and prediction. rule: [n_tensors]
 * or NULL. */
tn_status tn_planner_plan(tn_planner *p, tn_strategy strategy, const int16_t *rule, tn_plan *out,
                          tn_error *err);
/* Fills p->choice with a candidate; false if it does not fit or overrides bar it. */
bool tn_planner_candidate(tn_planner *p, tn_strategy strategy);

/* plan.c. The choice that needs the least host memory, if that were no matter; *p is to be freed.
 */
tn_status tn_plan_frugal(const tn_cost *k, tn_planner *p, double *cost, const tn_allocator *a,
                         tn_error *err);
/* The best of elastic, static and no device; feasible is false where none fits. quick: without a
 * certificate. */
tn_status tn_plan_solve(const tn_cost *k, bool quick, const int16_t *rule, tn_plan *best,
                        double *gap, const tn_allocator *a, tn_error *err);
/* What a quick search predicts; request_s is +infinity if nothing fits. */
tn_status tn_plan_predict_best(const tn_cost *k, tn_prediction *best, const tn_allocator *a,
                               tn_error *err);

/* plan_input.c. What rules decide. */
typedef struct tn_overrides {
    float *fixed;  /* [n_tensors], NaN = free; NULL without rules */
    int16_t *rule; /* [n_tensors], -1 = free */
} tn_overrides;
/* Rules that match nothing become warnings of out. To be freed either way. TN_EARG, TN_ENOMEM. */
tn_status tn_overrides_make(tn_planned *out, tn_overrides *o, const tn_shape *s,
                            const tn_profile *p, const tn_rules *rules, const tn_allocator *a,
                            tn_error *err);
void tn_overrides_free(tn_overrides *o, const tn_allocator *a);
void tn_plan_warn(tn_planned *out, const char *fmt, ...) TN_PRINTF(2, 3);

/* plan_advice.c. A plan that breaks limits as little as possible, for the message and the memory
 * table: the least host memory, or where overrides exceed a device, as if it were larger. */
tn_status tn_plan_hopeless(const tn_cost *k, const int16_t *rule, tn_plan *plan,
                           const tn_allocator *a, tn_error *err);
/* What would make out->plan fit, and what more memory, another KV type or a longer context are
 * worth. */
tn_status tn_plan_find_remedies(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                                tn_error *err);
tn_status tn_plan_find_prices(tn_planned *out, const tn_cost *k, const tn_allocator *a,
                              tn_error *err);

/* Device the head is on, and whether the residual stream ends there. */
int tn_plan_head_device(const tn_plan *plan);
/* Fills memory tables and prediction from the decisions. */
tn_status tn_plan_account(tn_plan *plan, const tn_cost *k, const tn_allocator *a, tn_error *err);
/* Seconds of one decoded token with c tokens live before it, units[n_layers] as given. */
double tn_plan_step(const tn_plan *plan, const tn_cost *k, int64_t c, const int32_t *units);
/* Seconds of the whole request. */
double tn_plan_request(const tn_plan *plan, const tn_cost *k);
/* Bytes of weights in host memory that are carried to devices at times: units that move, and what
 * batches have streamed. What execution page-locks (pin.c). */
uint64_t tn_plan_carried(const tn_plan *plan, const tn_cost *k);
tn_status tn_plan_units(const tn_plan *plan, const tn_cost *k, int64_t live, int32_t *units,
                        const tn_allocator *a, tn_error *err);
/* Where they are in a context that has grown from nothing to `live` tokens: room is kept in steps.
 */
tn_status tn_plan_units_grown(const tn_plan *plan, const tn_cost *k, int64_t live, int32_t *units,
                              const tn_allocator *a, tn_error *err);
/* The same for a number of bytes that units which move may take on each device. */
tn_status tn_plan_units_in(const tn_plan *plan, const tn_cost *k,
                           const uint64_t room[TN_MAX_DEVICES], int32_t *units,
                           const tn_allocator *a, tn_error *err);
/* plan_again.c. Makes of an elastic plan one whose units stay where a full context leaves them: its
 * memory, its prediction and k's page-locked share with it. *moved: its units were not there at any
 * number of live tokens. */
tn_status tn_plan_settle(tn_plan *plan, tn_cost *k, bool *moved, const tn_allocator *a,
                         tn_error *err);
/* Defaults filled in, contradictions refused. */
tn_status tn_constraints_fill(tn_constraints *out, const tn_constraints *c, const tn_shape *s,
                              const tn_profile *p, tn_error *err);
/* Bytes all devices and the host may use together. */
uint64_t tn_cost_budget(const tn_cost *k, int32_t d);
uint64_t tn_cost_host_budget(const tn_cost *k);
/* The overrides a plan was made under, as tn_cost wants them; freed by the caller, NULL = no
 * memory. */
float *tn_plan_fixed(const tn_plan *plan, const tn_shape *s, const tn_allocator *a);
tn_status tn_plan_alloc(tn_plan *plan, const tn_shape *s, const tn_allocator *a, tn_error *err);

#endif
