/* Internal: what a placement costs. Seconds, for one model on one machine under given constraints.
 *
 * d is the device that serves a layer (TN_HOST = there is none), home whether its attention part is
 * on it. n is the number of tokens evaluated at once: 1 is a step of decoding.
 *
 *   decode, FFN cut into units, share f of its bytes on the device:
 *       X [where the FFN is not all at home] + max(f F / B_device, (1 - f) F / B_host)
 *       (experts: the mean over which experts a token meets); both slowed by each other as measured
 *   prefill of n tokens: per layer the cheapest of
 *       computed where it lies      2 x + max(device share, host share)
 *       streamed                    max(all arithmetic on the device, copying)
 *       shared                      2 x + the host computes a part of its share while the rest is
 *                                   streamed; where copies do not need the host, which pinned
 *                                   memory makes possible
 *     where x = X / 2 + the activations' bytes / link; of experts those that are met
 *   single tensors on either side: op after op, each with the hops that its place costs. */
#ifndef TN_PLAN_COST_H
#define TN_PLAN_COST_H

#include "plan.h"

typedef struct tn_cost {
    const tn_shape *s;
    const tn_profile *p;
    tn_constraints c;            /* complete */
    const float *fixed;          /* [n_tensors] share that an override asks for, NaN = none */
    const tn_plan_layer *stay; /* [n_layers] whose devices are as they are; NULL: free */
    double host_scale;           /* of the host's rates, for the number of threads */
    double link[TN_MAX_DEVICES]; /* bytes/s of streamed weights: pinned as far as that goes */
    bool pinned;                 /* that is all of them */
    uint64_t device_buffers;     /* bytes for activations, logits and streaming on a device */
} tn_cost;

/* Bytes of weights that may be pinned on a machine with so much memory. */
uint64_t tn_cost_pin_limit(uint64_t memory_bytes);
/* The share of so many bytes that is. */
double tn_cost_pinned(const tn_cost *k, uint64_t bytes);
/* Sets link and pinned for a share of the carried weights that is pinned; tn_cost_init sets that of
 * the constraints. */
void tn_cost_pin(tn_cost *k, double share);

void tn_cost_init(tn_cost *k, const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                  const float *fixed);

/* There and back again: how long two jobs take that start together, given their times when alone
 * and what each keeps of its speed beside the other. */
double tn_cost_join(double x, double y, double x_kept, double y_kept);
/* Moving n activation vectors between host and device d, one way. */
double tn_cost_hop(const tn_cost *k, int d, int64_t n);
/* Moving the residual stream from one side to another (TN_HOST or a device). */
double tn_cost_move(const tn_cost *k, int from, int to, int64_t n);
/* Before a batch of tokens meets experts on device d, the host groups it by their choices. */
double tn_cost_choice(const tn_cost *k, int32_t l, int d);
/* Of n tokens that enter layer l, how many go on after its KV is stored: behind the last layer none
 * is looked at but the prompt's last (wanted: it is among them), see forward.c. */
int64_t tn_cost_outputs(const tn_cost *k, int32_t l, int64_t n, bool wanted);
/* Attention part of layer l: KV of n tokens, and n_out of them that together attend to `attended`
 * positions and go on. */
double tn_cost_attn(const tn_cost *k, int32_t l, int d, bool home, int64_t n, int64_t n_out,
                    double attended);
/* Whether that is, of a batch on the host, with the projections computed on device d, their weights
 * being carried there (of the last layer those of the KV): the decision of the planner, of the
 * simulator and of exec. */
bool tn_cost_attn_streams(const tn_cost *k, int32_t l, int d, bool home, int64_t n);
/* Then activations cross so often: to be projected and back, and so on. */
int tn_cost_attn_hops(const tn_cost *k, int32_t l);
/* Bytes of the projections that are then carried. */
uint64_t tn_cost_projections(const tn_cost *k, int32_t l);
/* FFN with units on the device; layers whose overrides name single tensors: mode, see below. */
double tn_cost_ffn(const tn_cost *k, int32_t l, int d, bool home, int32_t units, int64_t n);
double tn_cost_head(const tn_cost *k, int d, bool home, int32_t units);
/* Sum over the n tokens after `start` ones of the positions each attends to (window 0 = all). */
double tn_cost_attended(int64_t start, int64_t n, int64_t window);

/* The request's whole cost of one layer, of the head, of one move of the residual stream. */
double tn_cost_layer_request(const tn_cost *k, int32_t l, int d, bool home, int32_t units);
double tn_cost_attn_request(const tn_cost *k, int32_t l, int d, bool home);
double tn_cost_ffn_request(const tn_cost *k, int32_t l, int d, bool home, int32_t units);
double tn_cost_head_request(const tn_cost *k, int d, bool home, int32_t units);
double tn_cost_move_request(const tn_cost *k, int from, int to);

/* How overrides shape a layer's FFN: cut into units with free choice, cut with a fixed number, or
 * mixed: each of gate, up and down on a side of its own. A mixed FFN's modes number the
 * combinations of its free tensors, bit i = the i-th free one of gate, up, down is on the device.
 */
typedef enum tn_ffn_kind { TN_FFN_FREE, TN_FFN_FIXED, TN_FFN_MIXED } tn_ffn_kind;
tn_ffn_kind tn_cost_ffn_kind(const tn_cost *k, int32_t l, int32_t *fixed_units, int32_t *n_modes);
/* The share of tensor i of the model under a layer's decisions. */
double tn_cost_share(const tn_cost *k, int32_t i, bool home, int32_t units);
/* Whether the override allows the attention part at home on that side: the KV cache's tensors rule.
 */
bool tn_cost_home_allowed(const tn_cost *k, int32_t l, bool home);
/* Whether every tensor of the attention part is where its home is. */
bool tn_cost_attn_plain(const tn_cost *k, int32_t l, bool home);
/* Bytes on the device: of the attention part's weights, of the FFN's. */
uint64_t tn_cost_attn_bytes(const tn_cost *k, int32_t l, bool home);
uint64_t tn_cost_ffn_device_bytes(const tn_cost *k, int32_t l, int32_t units);
/* plan_buffers.c. Counts device_buffers, for tn_cost_init. */
uint64_t tn_cost_device_buffers(const tn_cost *k);
/* The same on the host. */
uint64_t tn_cost_host_buffers(const tn_cost *k);
/* Tokens live when the request ends. */
int64_t tn_cost_live(const tn_cost *k);

/* One step of an FFN or attention part whose tensors lie on either side: used by the price above
 * and by the simulator, which executes it. Fills ops in order; returns how many. */
enum { TN_WALK_OPS = 24 };
typedef struct tn_walk_op {
    double device_s, host_s; /* if all of it ran there */
    double share;            /* of the device */
    int group;               /* equal for neighbours that have the same input */
} tn_walk_op;
int tn_cost_walk_qkv(const tn_cost *k, int32_t l, int d, bool home, int64_t n,
                     tn_walk_op op[TN_WALK_OPS]);
int tn_cost_walk_attend(const tn_cost *k, int32_t l, int d, bool home, int64_t n, double attended,
                        tn_walk_op op[TN_WALK_OPS]);
int tn_cost_walk_ffn(const tn_cost *k, int32_t l, int d, bool home, int32_t mode, int64_t n,
                     tn_walk_op op[TN_WALK_OPS]);

/* The ways to run n > 1 tokens through an FFN of which the device holds `units`: each side computes
 * its own share; all of the host's share is carried to the device (exec_stream.c); or a part of it,
 * while the host computes the rest. */
typedef enum tn_prefill_way {
    TN_PREFILL_IN_PLACE,
    TN_PREFILL_STREAM,
    TN_PREFILL_SHARE
} tn_prefill_way;
typedef struct tn_prefill {
    tn_prefill_way way;
    double host_part; /* of its own share that the host computes */
    double seconds;
} tn_prefill;
/* The cheapest way for layer l: the decision of the planner, of the simulator and of exec. In place
 * where there is no choice; seconds are then not for overrides that name single tensors. */
tn_prefill tn_cost_prefill(const tn_cost *k, int32_t l, int d, bool home, int32_t units, int64_t n);
/* Bytes of a layer's FFN and its time on one side (d or TN_HOST) for n tokens, experts as they are
 * met. */
double tn_cost_ffn_side(const tn_cost *k, int32_t l, int d, int64_t n);
/* Experts that n tokens meet among those of the plan's order from one to another, expected number.
 */
double tn_cost_met(const tn_shape_layer *l, int32_t from, int32_t to, int64_t n);
/* Time of n tokens with units [from, to) of an FFN on one side. */
double tn_cost_ffn_part(const tn_cost *k, int32_t l, int d, int32_t from, int32_t to, int64_t n);
/* pmf[h]: h of the n_used experts of a token are among the `units` on the device. */
void tn_cost_hits(const tn_shape_layer *l, int32_t units, double *pmf);

#endif
