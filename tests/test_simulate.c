/* The planner's predictions against the discrete-event simulator. */
#include "plan_random.h"

#include "../engine/simulate.h"

static const tn_allocator *const heap = &tn_default_allocator;

typedef struct tally {
    int n, split, streamed;
    double worst;
} tally;

static void compare_request(const tn_plan *plan, const tn_cost *k, uint64_t seed, const char *what,
                            tally *t)
{
    tn_simulated sim;
    REQUIRE(tn_simulate_request(&sim, plan, k, seed, heap, NULL) == TN_OK);
    const double got = sim.prefill_s + sim.decode_s, want = plan->predicted.request_s;
    const double off = got / want - 1;
    t->n++;
    if (fabs(off) > t->worst) t->worst = fabs(off);
    for (int l = 0; l < plan->n_layers; l++)
        t->split += plan->layer[l].units > 0 && plan->layer[l].units < k->s->layer[l].n_units;
    t->streamed += sim.link_busy_s > 0.05 * sim.prefill_s;
    CHECK_MSG(fabs(off) <= 0.03,
              "%s %llu (%s): predicted %.6g s, simulated %.6g s (%+.2f %%; prompt %.6g, %.6g)",
              what, (unsigned long long)seed, tn_strategy_name(plan->strategy), want, got,
              100 * off, k->c.request.n_prompt ? plan->predicted.ttft_s : 0, sim.prefill_s);
}

static void compare_depths(const tn_plan *plan, const tn_cost *k, uint64_t seed, const char *what,
                           tally *t)
{
    for (int i = 0; i < plan->predicted.n_depths; i++) {
        tn_simulated sim;
        int64_t live = plan->predicted.depth[i];
        if (live >= k->c.n_ctx) live = k->c.n_ctx - 1;
        const int n = k->s->layer[0].n_expert ? 1000 : 1;
        REQUIRE(tn_simulate_decode(&sim, plan, k, live, n, seed, heap, NULL) == TN_OK);
        const double off = n / sim.decode_s / plan->predicted.decode_tok_s[i] - 1;
        if (fabs(off) > t->worst) t->worst = fabs(off);
        CHECK_MSG(fabs(off) <= 0.03, "%s %llu (%s): %+.2f %% tok/s at %lld", what,
                  (unsigned long long)seed, tn_strategy_name(plan->strategy), 100 * off,
                  (long long)live);
    }
}

/* The optimum, if it fits. */
static void compare_best(const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                         uint64_t seed, bool depths, const char *what, tally *t)
{
    tn_plan plan;
    tn_constraints full;
    tn_cost k;
    REQUIRE(tn_constraints_fill(&full, c, s, p, NULL) == TN_OK);
    REQUIRE(tn_plan_candidate(&plan, s, p, c, TN_PLAN_OPTIMUM, heap, NULL) == TN_OK);
    tn_cost_init(&k, s, p, &full, NULL);
    if (plan.feasible) compare_request(&plan, &k, seed, what, t);
    if (plan.feasible && depths) compare_depths(&plan, &k, seed, what, t);
    tn_plan_free(&plan, heap);
}

/* A model whose FFNs have enough slabs that a ring of two of them is a small part. */
static test_model streaming_model(uint64_t *seed, int layers, bool experts)
{
    test_model m = random_model(seed, layers, experts);
    m.embd = 256;
    m.ff = test_int(seed, 32, 96) * 32 + 16 * (m.down == TN_TYPE_F16 && m.type == TN_TYPE_F16);
    if (experts)
        m.experts = test_int(seed, 32, 96), m.used = test_int(seed, 1, 8), m.ff = 256, m.ctx = 2048;
    return m;
}

TEST(predictions_agree_with_the_simulator)
{
    tally t = {0, 0, 0, 0};
    for (uint64_t i = 0; i < 120; i++) {
        uint64_t seed = 71000 + i;
        tn_shape s;
        const bool experts = i % 6 == 5;
        const test_model m = streaming_model(&seed, 2 + (int)(i % 3), experts);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        if (i % 12 == 11) REQUIRE(test_count(&s, &seed, 3));
        const double share = test_uniform(&seed, 0.1, 1.2) / p.n_devices;
        tn_constraints c = {.n_batch = test_int(&seed, 1, 4) * 32, .page_size = 16};
        c.request =
            (tn_request){0, test_int(&seed, 0, 150), experts ? 1500 : test_int(&seed, 5, 80)};
        if (c.request.n_prompt + c.request.n_gen > m.ctx) c.request.n_gen = m.ctx - 150;
        for (int d = 0; d < p.n_devices; d++)
            c.vram[d] = (uint64_t)(share * (double)s.weight_bytes) + (8u << 20);
        for (int j = TN_PLAN_ALL_HOST; j <= TN_PLAN_OPTIMUM; j++) {
            tn_plan plan;
            tn_cost k;
            tn_constraints full;
            REQUIRE(tn_constraints_fill(&full, &c, &s, &p, NULL) == TN_OK);
            REQUIRE(tn_plan_candidate(&plan, &s, &p, &c, (tn_strategy)j, heap, NULL) == TN_OK);
            tn_cost_init(&k, &s, &p, &full, NULL);
            if (plan.feasible) {
                compare_request(&plan, &k, 71000 + i, "seed", &t);
                compare_depths(&plan, &k, 71000 + i, "seed", &t);
            }
            tn_plan_free(&plan, heap);
        }
        tn_shape_free(&s);
    }
    printf("%d random plans, %d split layers, %d with streaming: worst %.2f %%\n", t.n, t.split,
           t.streamed, 100 * t.worst);
    CHECK_MSG(t.n > 600 && t.split > 100 && t.streamed > 50, "%d plans, %d split, %d streaming",
              t.n, t.split, t.streamed);
}

/* Placements nobody would choose: rules of every kind, single tensors apart from their layer. */
TEST(predictions_agree_under_random_overrides)
{
    static const char *const what[] = {"ffn_up", "ffn_gate[._]", "ffn_down",   "ffn",
                                       "attn_q", "attn_output",  "blk\\.0\\.", "^output",
                                       "attn_k", "attn"};
    static const char *const side[] = {"host", "device", "split:0.4", "split:0.75"};
    tally t = {0, 0, 0, 0};
    int mixed = 0, experts = 0;
    for (uint64_t i = 0; i < 150; i++) {
        uint64_t seed = 83000 + i;
        tn_shape s;
        tn_planned out;
        tn_cost k;
        tn_rules r = {.a = heap};
        const test_model m = streaming_model(&seed, 2 + (int)(i % 3), i % 5 == 4);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        for (int n = test_int(&seed, 1, 3); n > 0; n--) {
            char text[64];
            snprintf(text, sizeof text, "%s=%s", what[test_int(&seed, 0, 9)],
                     side[test_int(&seed, 0, 3)]);
            REQUIRE(tn_rules_add(&r, text, NULL) == TN_OK);
        }
        /* Many tokens where chance has a say. */
        const tn_constraints c = {.n_batch = 64,
                                  .page_size = 16,
                                  .rules = &r,
                                  .request = {0, 100, m.experts ? 1000 : 50}};
        if (tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK) {
            float *fixed = tn_plan_fixed(&out.plan, &s, heap);
            tn_cost_init(&k, &s, &p, &out.c, fixed);
            for (int l = 0; l < s.n_layers; l++)
                mixed += out.plan.layer[l].mixed;
            if (out.plan.feasible) compare_request(&out.plan, &k, 83000 + i, "rules", &t);
            experts += out.plan.feasible && m.experts;
            tn_free(heap, fixed);
            tn_planned_free(&out);
        }
        tn_rules_free(&r);
        tn_shape_free(&s);
    }
    printf("%d plans under overrides, %d mixed layers: worst %.2f %%\n", t.n, mixed, 100 * t.worst);
    CHECK_MSG(t.n > 100 && mixed > 50 && experts > 15, "%d plans, %d mixed layers, %d with experts",
              t.n, mixed, experts);
}

static const struct {
    const char *name;
    const test_model *model;
} real[] = {{"8b", &model_8b},
            {"70b", &model_70b},
            {"30b-a3b", &model_30b_a3b},
            {"gemma-27b", &model_gemma_27b},
            {"405b", &model_405b}};
enum { n_real = sizeof real / sizeof *real, n_varied = 4 /* the smaller ones */ };

TEST(predictions_agree_for_real_shapes_on_shipped_machines)
{
    tally t = {0, 0, 0, 0};
    int of_405b = 0;
    for (int i = 0; i < n_real; i++) {
        const int before = t.n;
        tn_shape s;
        REQUIRE(test_shape(&s, real[i].model, 0) == TN_OK);
        for (size_t j = 0; tn_profile_shipped_name(j); j++) {
            tn_profile p;
            char what[80];
            snprintf(what, sizeof what, "%s on %s", real[i].name, tn_profile_shipped_name(j));
            REQUIRE(tn_profile_shipped(&p, tn_profile_shipped_name(j)));
            compare_best(&s, &p, &(tn_constraints){.n_ctx = 32768, .request = {0, 2048, 128}}, j,
                         false, what, &t);
        }
        if (real[i].model == &model_405b) of_405b = t.n - before;
        tn_shape_free(&s);
    }
    printf("%d real plans: worst %.2f %%\n", t.n, 100 * t.worst);
    CHECK(t.n >= 30 && of_405b >= 2);
}

static void vary(uint64_t *seed, double *rate)
{
    *rate *= test_scale(seed, 0.4, 2.5);
}

static void vary_rates(uint64_t *seed, tn_side_rates *r)
{
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        vary(seed, &r->matvec[i]);
    for (int i = 0; i < TN_KV_KINDS; i++)
        vary(seed, &r->kv[i]);
    vary(seed, &r->flops[0]);
    vary(seed, &r->flops[1]);
    vary(seed, &r->op_s);
}

/* Machines as nobody sells them: every figure of a shipped one by a factor of its own. */
TEST(predictions_agree_on_varied_machines)
{
    tally t = {0, 0, 0, 0};
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t seed = 91000 + i;
        tn_shape s;
        tn_profile p;
        char what[120];
        REQUIRE(test_shape(&s, real[i % n_varied].model, 0) == TN_OK);
        REQUIRE(tn_profile_shipped(&p, tn_profile_shipped_name(i % 7)));
        vary_rates(&seed, &p.host.rate);
        for (int d = 0; d < p.n_devices; d++) {
            tn_profile_device *dev = &p.device[d];
            vary_rates(&seed, &dev->rate);
            vary(&seed, &dev->pinned);
            dev->pageable = dev->pinned * test_uniform(&seed, 0.2, 1);
            vary(&seed, &dev->cross_s);
            dev->memory_bytes =
                (uint64_t)(test_uniform(&seed, 0.3, 1.2) * (double)dev->memory_bytes);
        }
        p.host.memory_bytes = (uint64_t)(test_uniform(&seed, 0.6, 2) * (double)p.host.memory_bytes);
        snprintf(what, sizeof what, "%s on another %.80s", real[i % n_varied].name, p.name);
        const tn_constraints c = {.n_ctx = 1024 << test_int(&seed, 2, 5),
                                  .request = {test_int(&seed, 0, 1500), 1500, 128}};
        compare_best(&s, &p, &c, i, !s.layer[0].n_expert, what, &t);
        tn_shape_free(&s);
    }
    printf("%d plans on varied machines, %d split layers, %d with streaming: worst %.2f %%\n", t.n,
           t.split, t.streamed, 100 * t.worst);
    CHECK_MSG(t.n >= 15 && t.split > 100 && t.streamed >= 5, "%d plans, %d split, %d streaming",
              t.n, t.split, t.streamed);
}

/* A machine whose host does nothing but read, weights of any type and KV at these rates. */
static tn_profile plain_profile(uint64_t *seed, double matvec, double kv)
{
    tn_profile p = random_profile(seed, 1);
    p.host.rate.op_s = 0;
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block) p.host.rate.matvec[i] = matvec;
    p.host.rate.kv[TN_KV_KIND_F16] = kv;
    return p;
}

/* One layer by hand: nothing of the planner's arithmetic is involved. */
TEST(a_token_on_the_host_takes_as_long_as_its_bytes)
{
    uint64_t seed = 5;
    tn_shape s;
    tn_plan plan;
    tn_cost k;
    tn_simulated sim;
    tn_constraints full;
    test_model m = random_model(&seed, 2, false);
    m.arch = "llama", m.window = 0, m.tied = 0;
    tn_profile p = plain_profile(&seed, 1e6, 1e5);
    REQUIRE(test_shape(&s, &m, 16) == TN_OK);
    const tn_constraints c = {.n_batch = 16, .page_size = 16, .request = {0, 8, 8}};
    REQUIRE(tn_constraints_fill(&full, &c, &s, &p, NULL) == TN_OK);
    REQUIRE(tn_plan_candidate(&plan, &s, &p, &c, TN_PLAN_ALL_HOST, heap, NULL) == TN_OK);
    tn_cost_init(&k, &s, &p, &full, NULL);
    REQUIRE(tn_simulate_decode(&sim, &plan, &k, 9, 1, 1, heap, NULL) == TN_OK);
    double bytes = 0;
    for (int i = 0; i < s.n_tensors; i++)
        if (s.tensor[i].layer >= 0 || i == s.head) bytes += (double)s.tensor[i].bytes;
    const double kv = 2.0 * 10 * 2 * m.kv_heads * m.head_dim * 2; /* layers, tokens, K and V, F16 */
    CHECK_NEAR(sim.decode_s, bytes / 1e6 + kv / 1e5, 1e-9);
    /* The last token that a context has room for. */
    CHECK_NEAR(plan.predicted.decode_tok_s[plan.predicted.n_depths - 1] *
                   (bytes / 1e6 + kv / 10 * full.n_ctx / 1e5),
               1, 1e-9);
    CHECK_NEAR(sim.host_busy_s, sim.decode_s, 1e-9);
    CHECK(sim.device_busy_s == 0 && sim.link_busy_s == 0);
    tn_plan_free(&plan, heap);
    tn_shape_free(&s);
}

/* A prompt of two batches by hand: in the last layer all tokens are stored as KV, and the last one
 * alone goes on (forward.c). */
TEST(a_prompt_takes_of_the_last_layer_what_is_looked_at)
{
    enum { batch = 16, rest = 8, prompt = batch + rest };
    const double flops = 3e6, bandwidth = 1e6, kv_rate = 1e5;
    uint64_t seed = 5;
    tn_shape s;
    tn_plan plan;
    tn_cost k;
    tn_simulated sim;
    tn_constraints full;
    test_model m = random_model(&seed, 2, false);
    m.arch = "llama", m.window = 0, m.tied = 0;
    tn_profile p = plain_profile(&seed, bandwidth, kv_rate);
    p.host.rate.flops[0] = p.host.rate.flops[1] = flops;
    REQUIRE(test_shape(&s, &m, 16) == TN_OK);
    const tn_constraints c = {.n_batch = batch, .page_size = 16, .request = {0, prompt, 0}};
    REQUIRE(tn_constraints_fill(&full, &c, &s, &p, NULL) == TN_OK);
    REQUIRE(tn_plan_candidate(&plan, &s, &p, &c, TN_PLAN_ALL_HOST, heap, NULL) == TN_OK);
    tn_cost_init(&k, &s, &p, &full, NULL);
    REQUIRE(tn_simulate_request(&sim, &plan, &k, 1, heap, NULL) == TN_OK);
    double want = 0;
    for (int i = 0; i < s.n_tensors; i++) {
        const tn_shape_tensor *t = &s.tensor[i];
        const bool last = t->layer == 1,
                   stores = strstr(t->name, "attn_norm") || strstr(t->name, "attn_q.") ||
                            strstr(t->name, "attn_k.") || strstr(t->name, "attn_v.");
        if (t->layer < 0 && i != s.head) continue;
        for (int n = batch; n >= rest; n -= rest) {
            if (n == batch && (i == s.head || (last && !stores))) continue;
            const int rows = i == s.head || (last && !stores) ? 1 : n;
            const double by_bytes = (double)t->bytes / bandwidth,
                         by_flops = 2.0 * (double)t->params * rows / flops;
            want += rows == 1 || strstr(t->name, "norm") ? by_bytes : fmax(by_bytes, by_flops);
        }
    }
    /* Positions attended to: in the first layer by all, in the last by one. */
    const double kv = 2.0 * m.kv_heads * m.head_dim * 2, score = 4.0 * m.heads * m.head_dim,
                 first = batch * (batch + 1) / 2.0, second = prompt * (prompt + 1) / 2.0 - first;
    want += fmax(first / batch * kv / kv_rate, first * score / flops) +
            fmax(second / rest * kv / kv_rate, second * score / flops) + prompt * kv / kv_rate;
    CHECK_NEAR(sim.prefill_s / want, 1, 1e-9);
    CHECK_NEAR(plan.predicted.request_s / want, 1, 1e-9);
    tn_plan_free(&plan, heap);
    tn_shape_free(&s);
}

/* Attention on the device; FFNs on the host, on both sides, torn apart, or on the host with what
 * follows attention, by hand: every hand-over counts half a crossing and a batch's activations. */
TEST(hand_overs_by_hand)
{
    enum { prompt = 8, embd = 64 };
    const double host = 1e6, device = 4e6, kv_rate = 1e5, cross = 1e-3, pinned = 1e7;
    const double on_host = 3e-4, on_device = 1e-4; /* of one operation, at least */
    static const char *const places[] = {"ffn_(up|gate|down)\\.=host",
                                         "ffn_(up|gate|down)\\.=split:0.5",
                                         "ffn_down=host,ffn_(up|gate)\\.=device",
                                         "attn_output=host,ffn_(up|gate|down)\\.=host"};
    for (int way = 0; way < 4; way++) {
        /* Of a layer: of its FFN, and of the projection behind its attention. */
        const int hops = way == 3 ? 4 : 2;
        uint64_t seed = 5;
        tn_shape s;
        tn_planned out;
        tn_cost k;
        tn_simulated batch, token;
        tn_rules r = {.a = heap};
        test_model m = random_model(&seed, 2, false);
        m.arch = "llama", m.window = 0, m.tied = 0;
        tn_profile p = plain_profile(&seed, host, kv_rate);
        tn_profile_device *dev = &p.device[0];
        p.contended = (tn_profile_contended){1, 1, 1, 1};
        for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
            if (tn_type_get(i)->block) dev->rate.matvec[i] = device;
        dev->rate.kv[TN_KV_KIND_F16] = kv_rate;
        dev->rate.op_s = on_device, p.host.rate.op_s = on_host;
        p.host.rate.flops[0] = p.host.rate.flops[1] = 1e30;
        dev->rate.flops[0] = dev->rate.flops[1] = 1e30;
        dev->cross_s = cross, dev->pinned = pinned;
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        REQUIRE(tn_rules_add(&r, places[way], NULL) == TN_OK);
        REQUIRE(tn_rules_add(&r, "attn=device,ffn_norm=device,output=device", NULL) == TN_OK);
        const tn_constraints c = {
            .n_batch = prompt, .page_size = 16, .rules = &r, .request = {0, prompt, 1}};
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK && out.plan.feasible);
        float *fixed = tn_plan_fixed(&out.plan, &s, heap);
        tn_cost_init(&k, &s, &p, &out.c, fixed);
        REQUIRE(tn_simulate_request(&batch, &out.plan, &k, 1, heap, NULL) == TN_OK);
        REQUIRE(tn_simulate_decode(&token, &out.plan, &k, prompt, 1, 1, heap, NULL) == TN_OK);
        const double hop1 = cross / 2, hop = cross / 2 + prompt * embd * 4 / pinned;
        const double kv = 2.0 * m.kv_heads * m.head_dim * 2; /* bytes of a layer and position */
        const double head = (double)s.tensor[s.head].bytes / device;
        /* Norm with projections, attention, output, norm; or each tensor for itself. */
        const double ops = way == 3 ? 6 * on_device + on_host : 4 * on_device;
        double all = on_device, ffn = 0, prompt_ffn = 0; /* the head's */
        for (int l = 0; l < 2; l++) {
            const tn_shape_layer *y = &s.layer[l];
            for (int j = 0; j < y->n; j++) {
                const tn_shape_tensor *t = &s.tensor[s.of_layer[y->first + j]];
                const bool there = way == 3 && strstr(t->name, "attn_output");
                all += (double)t->bytes / (there ? host : device);
            }
            all -= (double)y->ffn_bytes / device;
            double on = (double)tn_shape_ffn_bytes(y, out.plan.layer[l].units);
            const double whole = (double)y->ffn_bytes;
            if (way == 2)
                on = whole - (double)s.tensor[s.of_layer[y->first + y->n - 1]].bytes; /* down */
            CHECK(way == 1 || way == 2 ? on > 0 && on < whole : on == 0);
            const double on_it = on / device, here = (whole - on) / host;
            const double both = on > 0 ? fmax(on_it + 2 * on_device, here + 2 * on_host)
                                       : here + 2 * on_host;
            const double token_s = way == 2 ? on_it + 2 * on_device + here + on_host : both;
            all += ops;
            ffn += token_s;
            prompt_ffn += way == 2 || l == 1 ? token_s : fmax(on_it, here) + 2 * on_host;
        }
        /* In, out and in again for both layers, and the logits out. */
        CHECK_NEAR(token.decode_s / (hop1 + all + 2 * (prompt + 1) * kv / kv_rate +
                                     2 * hops * hop1 + ffn + head + hop1),
                   1, 1e-9);
        /* A KV read serves the batch: (1 + 2 + ... + n) / n; behind the last layer one token goes
         * on. */
        const double want = hop + all + (prompt + 1) / 2.0 * kv / kv_rate + prompt * kv / kv_rate +
                            hops * (hop + hop1) + prompt_ffn + head + hop1;
        CHECK_NEAR(batch.prefill_s / want, 1, 1e-9);
        CHECK_NEAR(out.plan.predicted.request_s / (want + token.decode_s), 1, 1e-9);
        tn_free(heap, fixed);
        tn_planned_free(&out);
        tn_rules_free(&r);
        tn_shape_free(&s);
    }
}

/* What a head costs on either side and on both, moves between devices of all batches, and the
 * projections of the last layer carried to the device for a batch: hand-overs too small to show in
 * a whole request. */
TEST(small_hand_overs_by_hand)
{
    enum { n = 64, rest = 5, embd = 64 };
    const double host = 1e6, device = 4e6, cross = 1e-3, pinned = 1e7;
    const double on_host = 3e-4, on_device = 1e-4, host_flops = 1e6;
    uint64_t seed = 5;
    tn_shape s;
    tn_constraints full;
    tn_cost k;
    test_model m = random_model(&seed, 2, false);
    m.arch = "llama", m.window = 0, m.tied = 0;
    tn_profile p = plain_profile(&seed, host, 1e5);
    tn_profile_device *dev = &p.device[0];
    p.contended = (tn_profile_contended){1, 1, 1, 1};
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block) dev->rate.matvec[i] = device;
    dev->rate.op_s = on_device, p.host.rate.op_s = on_host;
    p.host.rate.flops[0] = p.host.rate.flops[1] = host_flops;
    dev->rate.flops[0] = dev->rate.flops[1] = 1e30;
    dev->cross_s = cross, dev->pinned = pinned;
    REQUIRE(test_shape(&s, &m, 16) == TN_OK);
    const tn_constraints c = {.n_batch = n, .page_size = 16, .request = {0, 2 * n + rest, 7}};
    REQUIRE(tn_constraints_fill(&full, &c, &s, &p, NULL) == TN_OK);
    tn_cost_init(&k, &s, &p, &full, NULL);

    const double hop1 = cross / 2, hop = cross / 2 + n * embd * 4 / pinned;
    const double head = (double)s.tensor[s.head].bytes;
    const double there = head / device + on_device, here = head / host + on_host;
    const int32_t half = s.head_units / 2;
    const double on = (double)tn_shape_head_bytes(&s, half);
    REQUIRE(half > 0 && on < head);
    const double both = 2 * hop1 + fmax(on / device + on_device, (head - on) / host + on_host);
    CHECK_NEAR(tn_cost_head(&k, 0, true, 0), here + hop1, 1e-12);
    CHECK_NEAR(tn_cost_head(&k, 0, false, 0), here, 1e-12);
    CHECK_NEAR(tn_cost_head(&k, TN_HOST, false, 0), here, 1e-12);
    CHECK_NEAR(tn_cost_head(&k, 0, true, s.head_units), hop1 + there, 1e-12);
    CHECK_NEAR(tn_cost_head(&k, 0, false, s.head_units), 2 * hop1 + there, 1e-12);
    CHECK_NEAR(tn_cost_head(&k, 0, true, half), both, 1e-12);
    CHECK_NEAR(tn_cost_head(&k, 0, false, half), both, 1e-12);

    const double short_hop = cross / 2 + rest * embd * 4 / pinned;
    CHECK_NEAR(tn_cost_move_request(&k, 0, TN_HOST), 7 * hop1 + 2 * hop + short_hop, 1e-12);
    CHECK_NEAR(tn_cost_move_request(&k, TN_HOST, 0), 7 * hop1 + 2 * hop + short_hop, 1e-12);

    double norm = 0, bytes = 0;
    for (int j = 0; j < s.layer[1].n; j++) {
        const tn_shape_tensor *t = &s.tensor[s.of_layer[s.layer[1].first + j]];
        if (strstr(t->name, "attn_norm")) norm += (double)t->bytes;
        if (strstr(t->name, "attn_q.") || strstr(t->name, "attn_k.") || strstr(t->name, "attn_v."))
            bytes += (double)t->bytes;
    }
    /* Activations in, and K and V out for attention on the host, which nobody asks for. */
    CHECK(tn_cost_attn_streams(&k, 1, 0, false, n));
    CHECK_NEAR(tn_cost_attn(&k, 1, 0, false, n, 0, 0),
               on_host + norm / host + 2 * hop + fmax(bytes / device, bytes / pinned), 1e-12);
    tn_shape_free(&s);
}

TEST(the_same_seed_gives_the_same_bits)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    tn_cost k;
    tn_simulated a, b, other;
    REQUIRE(test_shape(&s, &model_30b_a3b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    const tn_constraints c = {.n_ctx = 8192, .request = {0, 0, 16}};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    tn_cost_init(&k, &s, &p, &out.c, NULL);
    REQUIRE(tn_simulate_request(&a, &out.optimum, &k, 1, heap, NULL) == TN_OK);
    REQUIRE(tn_simulate_request(&b, &out.optimum, &k, 1, heap, NULL) == TN_OK);
    REQUIRE(tn_simulate_request(&other, &out.optimum, &k, 2, heap, NULL) == TN_OK);
    CHECK(memcmp(&a, &b, sizeof a) == 0);
    CHECK(a.decode_s != other.decode_s); /* other experts */
    tn_planned_free(&out);
    tn_shape_free(&s);
}

TEST_MAIN
