/* Internal: executes a plan's schedule against a hardware profile without computing the model.
 *
 * Discrete events over servers that each work off their jobs in order: the host's team, and for
 * each device its stream and its link. A job waits for the jobs it depends on; while jobs of
 * different servers run beside each other, each keeps the share of its speed that the profile
 * measured. Unlike the planner's closed formulas the simulator goes token by token with the context
 * as long as it is then, draws the experts each token meets, and streams slab by slab through two
 * slots. The team is one server, because its threads share the memory's bandwidth. */
#ifndef TN_SIMULATE_H
#define TN_SIMULATE_H

#include "plan_chain.h"

typedef struct tn_simulated {
    double prefill_s, decode_s; /* of the prompt, of all generated tokens */
    uint64_t n_jobs;
    double host_busy_s, device_busy_s, link_busy_s; /* sums over their jobs, all devices */
} tn_simulated;

/* The request of k->c with units where the plan has them when it ends. seed: of the experts drawn.
 * TN_ENOMEM. */
tn_status tn_simulate_request(tn_simulated *out, const tn_plan *plan, const tn_cost *k,
                              uint64_t seed, const tn_allocator *a, tn_error *err);
/* n tokens decoded, each with `live` tokens before it and units as the plan's boundary says. */
tn_status tn_simulate_decode(tn_simulated *out, const tn_plan *plan, const tn_cost *k, int64_t live,
                             int64_t n, uint64_t seed, const tn_allocator *a, tn_error *err);

#endif
