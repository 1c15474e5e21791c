/* Random small models, machines and constraints for the planner's tests. */
#ifndef TN_PLAN_RANDOM_H
#define TN_PLAN_RANDOM_H

#include "harness.h"
#include "plan_shapes.h"

#include "../engine/plan_chain.h"

static inline double test_uniform(uint64_t *seed, double lo, double hi)
{
    return lo + (hi - lo) * (double)(test_rand(seed) >> 11) / 9007199254740992.0;
}

static inline int test_int(uint64_t *seed, int lo, int hi)
{
    return lo + (int)(test_rand(seed) % (uint64_t)(hi - lo + 1));
}

/* Log-uniform: small and large values alike. */
static inline double test_scale(uint64_t *seed, double lo, double hi)
{
    return lo * exp(test_uniform(seed, 0, log(hi / lo)));
}

static inline test_model random_model(uint64_t *seed, int layers, bool experts)
{
    static const uint32_t types[] = {TN_TYPE_Q4_0, TN_TYPE_Q8_0, TN_TYPE_F16};
    test_model m = {.arch = experts                ? "qwen3moe"
                            : test_int(seed, 0, 3) ? "llama"
                                                   : "gemma3",
                    .layers = layers,
                    .embd = 64,
                    .heads = 4,
                    .kv_heads = test_int(seed, 1, 2) * 2,
                    .head_dim = 16,
                    .ff = test_int(seed, 3, 5) * 32,
                    .ctx = test_int(seed, 1, 4) * 256};
    if (test_int(seed, 0, 1)) m.ff += 16; /* no multiple of the granule */
    m.type = types[test_int(seed, 0, 2)];
    m.down = m.ff % 32 ? TN_TYPE_F16 : types[test_int(seed, 0, 2)];
    m.head = types[test_int(seed, 0, 2)];
    m.attn = types[test_int(seed, 0, 2)];
    m.mixed = test_int(seed, 0, 1);
    if (m.mixed && m.ff % 32) m.type = TN_TYPE_F16;
    m.vocab = test_int(seed, 1, 3) * 1024 + 7;
    m.tied = test_int(seed, 0, 2) == 0;
    m.window = strcmp(m.arch, "gemma3") ? 0 : 128;
    if (experts) m.experts = test_int(seed, 2, 4), m.used = test_int(seed, 1, 2);
    return m;
}

/* Counters under which each layer has favourites of its own, as of 100,000 tokens; chances differ
 * by up to favour squared. */
static inline bool test_count(tn_shape *s, uint64_t *seed, double favour)
{
    tn_expert_counts c;
    const int32_t n = s->layer[0].n_expert;
    if (tn_expert_counts_make(&c, s->n_layers, n, &tn_default_allocator, NULL)) return false;
    for (int64_t i = 0; i < (int64_t)s->n_layers * n; i++)
        c.n[i] = (uint64_t)(1e5 * s->layer[0].n_used / n * test_scale(seed, 1 / favour, favour));
    const bool ok = tn_shape_count(s, &c, NULL) == TN_OK;
    tn_expert_counts_free(&c);
    return ok;
}

static inline tn_side_rates random_rates(uint64_t *seed, double lo, double hi)
{
    tn_side_rates r = {.op_s = test_scale(seed, 1e-8, 2e-5)};
    const double base = test_scale(seed, lo, hi);
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block) r.matvec[i] = base * test_uniform(seed, 0.6, 1);
    for (int i = 0; i < TN_KV_KINDS; i++)
        r.kv[i] = base * test_scale(seed, 0.05, 1);
    r.flops[0] = base * test_scale(seed, 4, 100);
    r.flops[1] = r.flops[0] * test_scale(seed, 1, 5);
    return r;
}

static inline tn_profile random_profile(uint64_t *seed, int n_devices)
{
    tn_profile p = {.name = "random", .label = "random", .n_devices = n_devices};
    p.host.memory_bytes = 1ull << 40;
    p.host.cores = p.host.threads = 4;
    p.host.rate = random_rates(seed, 1e6, 1e8);
    p.contended = (tn_profile_contended){test_uniform(seed, 0.5, 1), test_uniform(seed, 0.5, 1),
                                         test_uniform(seed, 0.6, 1), test_uniform(seed, 0.6, 1)};
    for (int i = 0; i < n_devices; i++) {
        tn_profile_device *d = &p.device[i];
        d->memory_bytes = 1ull << 40;
        d->rate = random_rates(seed, 1e7, 1e9);
        d->pinned = test_scale(seed, 1e6, 1e9);
        d->pageable = d->pinned * test_uniform(seed, 0.2, 1);
        d->cross_s = test_scale(seed, 1e-7, 1e-3);
        d->cross_p95_s = d->cross_s;
    }
    return p;
}

/* Budgets from nothing to plenty. */
static inline void random_constraints(uint64_t *seed, const tn_shape *s, const tn_profile *p,
                                      tn_constraints *c)
{
    *c = (tn_constraints){
        .n_batch = 1 << test_int(seed, 2, 6), .page_size = 16, .fixed = test_int(seed, 0, 3) == 0};
    c->request = (tn_request){0, test_int(seed, 0, 60), test_int(seed, 1, 40)};
    tn_cost k;
    tn_constraints full;
    tn_constraints_fill(&full, c, s, p, NULL);
    tn_cost_init(&k, s, p, &full, NULL);
    const double all = (double)s->weight_bytes + (double)s->n_layers * 64 * 4 * full.n_ctx;
    for (int d = 0; d < p->n_devices; d++)
        c->vram[d] = tn_cost_device_buffers(&k) +
                     (uint64_t)(test_uniform(seed, 0, 1.1) * all / p->n_devices);
    if (test_int(seed, 0, 3) == 0)
        c->ram = tn_cost_host_buffers(&k) + (uint64_t)(test_uniform(seed, 0.3, 1.3) * all);
}

#endif
