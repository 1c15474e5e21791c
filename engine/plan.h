/* Internal: the placement planner. A pure function from (model header, hardware profile,
 * constraints) to a plan: no device, no files, no globals, no threads.
 *
 * The words: a layer's attention part (projections, norms, router, shared experts and its KV cache)
 * is on one side, its *home*, where the residual stream is while the layer runs. Its FFN is cut
 * into units: slabs of a dense FFN (`granule` neurons: rows of gate and up, columns of down), or
 * experts. The device holds units [0, units), the host has the rest; both compute at the same time
 * and join once. The output head is cut into units of rows in the same way. Devices serve
 * contiguous segments of layers, in order. */
#ifndef TN_PLAN_H
#define TN_PLAN_H

#include "arch.h"
#include "experts.h"
#include "profile.h"
#include "../gguf/gguf.h"

/* ---- what the planner knows of a model ------------------------------------------------------- */

typedef enum tn_part {
    TN_PART_EMBED, /* token embedding: one row is read per token */
    TN_PART_NORM,  /* norms, biases and other small tensors of the attention part */
    TN_PART_QKV,   /* everything multiplied with the layer's normed input */
    TN_PART_OUT,   /* attention output */
    TN_PART_FFN_NORM,
    TN_PART_ROUTER,
    TN_PART_SHARED, /* shared experts: always active, so they live with attention */
    TN_PART_GATE,   /* of the FFN, dense or experts */
    TN_PART_UP,
    TN_PART_DOWN,
    TN_PART_HEAD_NORM,
    TN_PART_HEAD,
    TN_PART_REST, /* read once at load: rope factors */
    TN_PARTS
} tn_part;

typedef struct tn_shape_tensor {
    char name[65]; /* GGUF allows 64 */
    uint32_t type;
    tn_part part;
    int32_t layer; /* -1 outside the layers */
    bool kv;       /* attn_k, attn_v: the KV cache follows them */
    uint64_t bytes;
    uint64_t params;
    uint64_t rows, cols; /* of one matrix */
    int32_t n_expert;    /* matrices; 1 for plain tensors */
} tn_shape_tensor;

/* How often tokens meet the experts of a layer. The planner numbers experts by that, so that units
 * [0, n) are those met most often; what the device holds is in this order. */
typedef struct tn_expert_use {
    uint64_t *count; /* [n_expert] as the file numbers them: what all else was made from */
    int32_t *order;  /* [n_expert] the file's number of each, falling by chance */
    int32_t *rank;   /* [n_expert] the place in that order of each expert of the file */
    double *chance;  /* [n_expert] in order: that a token meets it; their sum is n_used */
    double *sum;     /* [n_expert + 1] of the first chances */
    double
        *odds; /* [n_expert] in order: a token's set of experts is met as the product of its odds */
    double *rest; /* [n_expert + 1][n_used + 1] sum over the sets of h experts from e on */
    double *hits; /* [n_expert + 1][n_used + 1] chance that h of a token's are among the first e */
} tn_expert_use;

typedef struct tn_shape_layer {
    int32_t first, n;         /* its tensors: shape->tensor[shape->of_layer[first .. first + n)] */
    int32_t cls; /* equal for layers that are alike in every size and type; the last is on its
                    own */
    int64_t window;           /* positions attention looks back, 0 = all */
    uint64_t kv_elements;     /* of one position */
    int32_t n_head, head_dim; /* of queries, for the arithmetic of attention */
    int32_t value_dim;
    int32_t n_expert, n_used; /* 0 = dense */
    int32_t n_ff;
    int32_t n_units;     /* 0 = no FFN that can be cut */
    int32_t granule;     /* neurons per slab; the last slab also has the remainder */
    uint64_t ffn_bytes;  /* of gate, up and down, their biases included */
    uint64_t unit_bytes; /* of every unit but the last */
    tn_expert_use *use;  /* NULL: every expert is met alike, and they are in the file's order */
} tn_shape_layer;

/* Made from a header; immutable afterwards. */
typedef struct tn_shape {
    const tn_allocator *a;
    char arch[32];
    char hash[17]; /* of names, types and shapes: identifies the model for plan files */
    char header[17]; /* of these and all keys: tells fine-tunes apart; "" without experts */
    int32_t n_layers, n_classes, n_tensors;
    int32_t n_embd, n_vocab, n_ctx_train, n_ff_max;
    int32_t odd_head_dim;     /* a head dim that is no whole number of Q8_0 blocks; 0 = none */
    uint64_t weight_bytes, n_params;
    uint64_t embed_bytes;     /* token_embd where it is only looked up */
    bool tied;                /* the head is token_embd */
    int32_t head;             /* index of the head's tensor */
    int32_t head_units;       /* row slabs of the head */
    uint64_t head_unit_bytes; /* of every one but the last */
    tn_shape_layer *layer;    /* [n_layers] */
    tn_shape_tensor *tensor;  /* [n_tensors], in file order */
    int32_t *of_layer;        /* indices of tensors, grouped by layer */
} tn_shape;

/* granule: wanted neurons per slab (0 = 256), rounded up to a multiple of lcm(block of down, 16).
 * Refuses what tn_model_check refuses; TN_EUNSUPPORTED: too many tensors; TN_ENOMEM. */
tn_status tn_shape_read(tn_shape *out, const tn_gguf *g, const char *name, int32_t granule,
                        const tn_allocator *a, tn_error *err);
void tn_shape_free(tn_shape *s);
/* The same hashes as in tn_shape, from the header alone; out: 17 characters. */
void tn_shape_hash(const tn_gguf *g, char out[17]);
void tn_header_hash(const tn_gguf *g, char out[17]);
/* Gives layers that are alike the same class. */
void tn_shape_classify(tn_shape *s);
/* plan_experts.c. Once after tn_shape_read: what is known of how often experts are met. Layers for
 * which too little was counted stay as they are. TN_EARG: the counts are of another model;
 * TN_ENOMEM. */
tn_status tn_shape_count(tn_shape *s, const tn_expert_counts *c, tn_error *err);
/* Of a token's experts those among the first `units`, expected share; of a dense FFN its bytes. */
double tn_shape_hit_share(const tn_shape_layer *l, int32_t units);
/* Bytes of units [0, n) of a layer's FFN, and of rows of the head. */
uint64_t tn_shape_ffn_bytes(const tn_shape_layer *l, int32_t units);
uint64_t tn_shape_head_bytes(const tn_shape *s, int32_t units);
/* Bytes of one position of one layer. */
double tn_kv_kind_bytes(tn_kv_kind kv, uint64_t elements);

/* ---- overrides ------------------------------------------------------------------------------- */

typedef struct tn_rule {
    char *regex;  /* as written */
    void *code;   /* compiled */
    double share; /* 0 = host, 1 = device, between = split */
} tn_rule;

/* place.c. Rules in order; the first that matches a tensor's name anywhere decides. */
typedef struct tn_rules {
    const tn_allocator *a;
    tn_rule *rule;
    size_t n, cap;
} tn_rules;

/* Adds the rules of one --place text: REGEX=host|device|split:X, several separated by commas; a
 * comma separates only where another REGEX=side follows. TN_EARG says what is wrong with which
 * rule. */
tn_status tn_rules_add(tn_rules *r, const char *text, tn_error *err);
void tn_rules_free(tn_rules *r);
/* Index of the rule that decides about a name, -1 if none, -2 when matching failed. */
int tn_rules_match(const tn_rules *r, const char *name);
/* A list of tensors' names, wherever they are kept. */
typedef struct tn_names {
    tn_str (*at)(const void *of, int64_t i);
    const void *of;
    int64_t n;
} tn_names;
/* For a rule that matched nothing: names that look like it, "attn_q, attn_k"; "" if none. */
void tn_rules_near(const tn_rule *rule, const tn_names *names, char *out, size_t cap);

/* ---- constraints ----------------------------------------------------------------------------- */

/* The request that is to be fast. */
typedef struct tn_request {
    int64_t depth;    /* tokens live before it */
    int64_t n_prompt; /* tokens evaluated in batches */
    int64_t n_gen;    /* tokens generated one by one */
} tn_request;

typedef struct tn_constraints {
    int64_t n_ctx;     /* 0 = what the model was trained for */
    int32_t n_batch;   /* 0 = 512 */
    int32_t page_size; /* positions per KV page, 0 = 256 */
    int32_t threads;   /* 0 = as the profile says */
    tn_kv_kind kv;
    uint64_t
        vram[TN_MAX_DEVICES]; /* budget per device, 0 = memory less reserve; UINT64_MAX = none */
    uint64_t ram;             /* host budget, 0 = memory less reserve */
    tn_request request;    /* all 0 = 2,048 prompt and 512 generated tokens from an empty context */
    const tn_rules *rules; /* NULL = none */
    bool fixed; /* no elastic boundary: what is on the device stays, room for n_ctx is kept free */
    bool mapped; /* the host's weights are pages of the file, which are never page-locked */
    double pinned; /* share of the weights that are carried to devices at times which is
                      page-locked, as tn_plan_make finds; 0 = as if all weights were carried */
} tn_constraints;

/* KV memory of a layer when n positions are live: whole pages, in a layer with a window a ring of
 * them, see kv.h. Of the constraints n_batch, page_size and kv count, filled in. */
uint64_t tn_shape_kv_bytes(const tn_shape_layer *l, const tn_constraints *c, int64_t n);

/* ---- the plan -------------------------------------------------------------------------------- */

enum { TN_HOST = -1 };

typedef struct tn_plan_layer {
    int8_t device;    /* that serves this layer's device work (its segment), TN_HOST = none */
    bool attn;        /* attention, norms, router and KV are on the device: the layer's home */
    bool mixed;       /* tensors of this layer are placed one by one: see tn_plan.share */
    bool elastic;     /* the host has a master of the device's units */
    int32_t units;    /* FFN units [0, units) on the device at the planned depth */
    int32_t ffn_mode; /* of a mixed layer: which of its combinations; else = units */
} tn_plan_layer;

typedef struct tn_prediction {
    double request_s, prefill_tok_s, ttft_s;
    int32_t n_depths;
    int64_t depth[5]; /* live tokens: 0, 4,096, 16,384, n_ctx as far as they fit */
    double decode_tok_s[5];
    double step_s; /* one token, mean over the request */
    int64_t streamed_from; /* tokens in a batch from which on FFNs of the host are carried to a
                              device, at the planned units; 0: in no batch of this size */
} tn_prediction;

typedef struct tn_plan_memory {
    uint64_t budget;               /* what may be used */
    uint64_t weights, kv, buffers; /* at the planned depth */
    uint64_t kv_full;              /* KV when n_ctx tokens are live */
    uint64_t masters; /* host only: copies of what the device holds, so that it can be dropped */
} tn_plan_memory;

/* Which of the ways to place is in force. */
typedef enum tn_strategy {
    TN_PLAN_ALL_HOST,   /* no device at all */
    TN_PLAN_LAYERS,     /* whole layers, the last ones on the device */
    TN_PLAN_FFN_HOST,   /* attention on the device, every FFN on the host */
    TN_PLAN_FFN_BLOCKS, /* attention on the device, the FFNs of the first layers on the host */
    TN_PLAN_WATER_FILL, /* the closed form */
    TN_PLAN_OPTIMUM,
    TN_PLAN_FILE, /* replayed */
    TN_STRATEGIES
} tn_strategy;
const char *tn_strategy_name(tn_strategy s);

typedef struct tn_plan {
    tn_strategy strategy;
    int32_t n_layers;
    tn_plan_layer *layer; /* [n_layers] */
    int32_t head_units;   /* rows of the head on the device of the last segment */
    int32_t n_tensors;
    float *share;  /* [n_tensors] of the device: 0 host, 1 device; file order */
    int16_t *rule; /* [n_tensors] the override that decided, -1 = the planner */
    uint64_t live; /* tokens for whose KV room is kept at these units */
    bool elastic;  /* units move with the live context, see tn_plan_boundary */
    bool dropping; /* the host has masters, so that units may also go below the planned ones */
    bool feasible;
    uint64_t short_bytes; /* by how much it does not fit, 0 if it does */
    tn_prediction predicted;
    tn_plan_memory host, device[TN_MAX_DEVICES];
} tn_plan;

typedef struct tn_candidate {
    tn_strategy strategy;
    bool feasible;
    tn_prediction predicted;
} tn_candidate;

enum { TN_MAX_NOTES = 8 };

/* What a change would do. */
typedef struct tn_plan_note {
    char text[200];
    double request_s; /* predicted with it; 0 = the text says it all */
} tn_plan_note;

/* Everything a planning run says. */
typedef struct tn_planned {
    const tn_allocator *a;
    tn_plan plan; /* what is chosen */
    tn_plan optimum;
    tn_candidate candidate[TN_STRATEGIES];
    int32_t n_candidates;
    double gap;       /* proven distance of the optimum from a lower bound, relative */
    tn_constraints c; /* with all defaults filled in; rules = NULL */
    tn_plan_note price[TN_MAX_NOTES], remedy[TN_MAX_NOTES];
    int32_t n_prices, n_remedies;
    char warning[TN_MAX_NOTES][200];
    int32_t n_warnings;
} tn_planned;

/* TN_EARG: contradicting constraints, both named. TN_ENOMEM. A plan that cannot fit is no error:
 * out->plan.feasible is false, short_bytes and remedies say more. */
tn_status tn_plan_make(tn_planned *out, const tn_shape *s, const tn_profile *p,
                       const tn_constraints *c, const tn_allocator *a, tn_error *err);
void tn_planned_free(tn_planned *p);
/* The plan of one strategy, whatever the others predict. */
tn_status tn_plan_candidate(tn_plan *out, const tn_shape *s, const tn_profile *p,
                            const tn_constraints *c, tn_strategy strategy, const tn_allocator *a,
                            tn_error *err);
void tn_plan_free(tn_plan *plan, const tn_allocator *a);

/* The elastic boundary: units[n_layers] of each layer's FFN on the device when `live` tokens are,
 * always the same for the same plan and number, whatever happened before. Where the plan is not
 * elastic: the plan's own units. */
tn_status tn_plan_boundary(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                           const tn_constraints *c, int64_t live, int32_t *units,
                           const tn_allocator *a, tn_error *err);
/* The same where what moves has `room` bytes on each device (of weights as
 * they are in the file). */
tn_status tn_plan_boundary_in(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                              const tn_constraints *c, const uint64_t room[TN_MAX_DEVICES],
                              int32_t *units, const tn_allocator *a, tn_error *err);

/* Tokens that contexts which may hold `cap` keep room for when `live` are in them: whole steps, so
 * that units seldom move, and up to what the request of the plan needs, just that, so that its
 * units do not move at all. live 0: before the first token, that of the request. */
int64_t tn_plan_level(const tn_plan *plan, int64_t page, int64_t cap, int64_t live);
/* The distance of two levels; units come back where the level would be lower by more than that. */
int64_t tn_plan_level_step(int64_t page, int64_t cap);

/* Seconds of one decoded token at a live depth with units[n_layers] on the devices; *host_s: of
 * that, what the host itself computes. */
tn_status tn_plan_token(const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                        const tn_constraints *c, int64_t depth, const int32_t *units,
                        double *host_s, double *total_s, const tn_allocator *a, tn_error *err);
/* The best plan for a machine whose rates turned out to be others, in which only what may move is
 * other than in `plan`. out->feasible is false where there is none. TN_ENOMEM. */
tn_status tn_plan_again(tn_plan *out, const tn_plan *plan, const tn_shape *s, const tn_profile *p,
                        const tn_constraints *c, const bool *moves, const tn_allocator *a,
                        tn_error *err);

/* Why a layer's attention part (ffn false) or FFN is where it is, or the head
 * (layer = n_layers). */
void tn_plan_reason(const tn_planned *p, const tn_shape *s, const tn_profile *profile,
                    int32_t layer, bool ffn, char *out, size_t cap);

/* json_plan.c. What the plan in a text knows of experts, for a shape just read: before
 * tn_plan_parse. TN_EFORMAT, TN_EARG (another model), TN_ENOMEM. */
tn_status tn_plan_parse_experts(tn_shape *s, const char *text, size_t len, const char *where,
                                tn_error *err);
/* The plan and all that is said about it. */
tn_status tn_planned_json(const tn_planned *p, const tn_shape *s, const tn_profile *profile,
                          char **out, const tn_allocator *a, tn_error *err);
/* Reads a plan back and predicts it anew. TN_EFORMAT names the key; TN_EARG: the plan is for
 * another model, machine, context or KV type (both are named). */
tn_status tn_plan_parse(tn_planned *out, const char *text, size_t len, const char *where,
                        const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                        const tn_allocator *a, tn_error *err);

#endif
