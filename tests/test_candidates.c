/* The simple ways to place, which of all plans is chosen, and what is said beside it. */
#include "plan_random.h"

static const tn_allocator *const heap = &tn_default_allocator;

/* ---- the choice ------------------------------------------------------------------------------ */

/* Whether a candidate takes at most `gate` times as long as the optimum, for the request and, if
 * asked, for a token at each depth. */
static bool within(const tn_candidate *c, const tn_prediction *best, double gate, bool depths)
{
    if (!c->feasible || !(c->predicted.request_s <= gate * best->request_s)) return false;
    for (int i = 0; depths && i < best->n_depths; i++)
        if (!(c->predicted.decode_tok_s[i] * gate >= best->decode_tok_s[i])) return false;
    return true;
}

/* The simplest candidate that is within; the closed form is none that people know by name. */
static tn_strategy simplest(const tn_planned *out, double gate, bool depths)
{
    for (int i = 0; i < TN_PLAN_WATER_FILL; i++)
        if (within(&out->candidate[i], &out->optimum.predicted, gate, depths))
            return (tn_strategy)i;
    return TN_PLAN_OPTIMUM;
}

TEST(the_simplest_plan_within_three_percent_is_chosen)
{
    int n = 0, simple = 0, barred = 0, deep = 0;
    for (uint64_t i = 0; i < 240; i++) {
        uint64_t seed = 21000 + i;
        tn_shape s;
        tn_planned out;
        tn_constraints c;
        const test_model m = random_model(&seed, 2 + (int)(i % 3), i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        random_constraints(&seed, &s, &p, &c);
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        const tn_strategy want = simplest(&out, 1.03, true);
        if (out.optimum.feasible) {
            CHECK_MSG(out.plan.strategy == want, "case %d: %s instead of %s", (int)i,
                      tn_strategy_name(out.plan.strategy), tn_strategy_name(want));
            for (int j = 0; j < out.n_candidates; j++)
                CHECK_MSG(!out.candidate[j].feasible || out.optimum.predicted.request_s <=
                                                            out.candidate[j].predicted.request_s,
                          "case %d: %s is better than the optimum", (int)i,
                          tn_strategy_name(out.candidate[j].strategy));
            n++;
            simple += want != TN_PLAN_OPTIMUM;
            barred += want != simplest(&out, 1.06, true);
            deep += want != simplest(&out, 1.03, false);
        }
        tn_planned_free(&out);
        tn_shape_free(&s);
    }
    CHECK_MSG(n > 200 && simple > 20 && n - simple > 20 && barred >= 5 && deep >= 5,
              "%d plans, %d simple ones, %d barred by few percent, %d by a depth", n, simple,
              barred, deep);
}

/* ---- the candidates -------------------------------------------------------------------------- */

static uint64_t left_of(const tn_plan_memory *m)
{
    return m->budget - m->weights - m->kv_full - m->buffers;
}

/* Of a layer's FFN the device has all or nothing. */
static bool is_whole(const tn_plan *p, const tn_shape *s, int l)
{
    return p->layer[l].units == s->layer[l].n_units;
}

/* The last layers whole on the device, those before them not at all: as many as fit. */
static void check_layers(const tn_plan *p, const tn_shape *s, const tn_constraints *c,
                         const char *what)
{
    int first = 0;
    while (first < p->n_layers && !p->layer[first].attn)
        first++;
    for (int l = 0; l < p->n_layers; l++)
        CHECK_MSG(p->layer[l].attn == (l >= first) &&
                      (l >= first ? is_whole(p, s, l) : p->layer[l].units == 0),
                  "%s: layer %d of those from %d on", what, l, first);
    if (first == 0) return;
    uint64_t bytes = tn_shape_kv_bytes(&s->layer[first - 1], c, c->n_ctx);
    for (int j = 0; j < s->layer[first - 1].n; j++)
        bytes += s->tensor[s->of_layer[s->layer[first - 1].first + j]].bytes;
    CHECK_MSG(left_of(&p->device[0]) < bytes, "%s: layer %d fits, too", what, first - 1);
}

/* Attention on the device, and FFNs whole from the first layer on that all fit. */
static void check_blocks(const tn_plan *p, const tn_shape *s, bool none, const char *what)
{
    int first = 0;
    while (first < p->n_layers && p->layer[first].units == 0)
        first++;
    for (int l = 0; l < p->n_layers; l++)
        CHECK_MSG(p->layer[l].attn && (l < first ? p->layer[l].units == 0 : is_whole(p, s, l)),
                  "%s: layer %d of those from %d on", what, l, first);
    if (none)
        CHECK_MSG(first == p->n_layers, "%s: an FFN is on the device", what);
    else if (first > 0 && p->head_units == s->head_units)
        CHECK_MSG(left_of(&p->device[0]) < s->layer[first - 1].ffn_bytes, "%s: FFN %d fits, too",
                  what, first - 1);
}

static void check_host(const tn_plan *p, const char *what)
{
    bool host = p->head_units == 0;
    for (int l = 0; l < p->n_layers; l++)
        host = host && p->layer[l].device == TN_HOST && !p->layer[l].attn && p->layer[l].units == 0;
    for (int i = 0; i < p->n_tensors; i++)
        host = host && p->share[i] == 0;
    CHECK_MSG(host && p->device[0].weights + p->device[0].kv == 0, "%s: not all is there", what);
}

/* Each is what its name says; the closed form is nearly the best. */
TEST(candidates_are_what_people_place_by_hand)
{
    static const test_model *const models[] = {&model_8b, &model_70b, &model_30b_a3b,
                                               &model_gemma_27b};
    int seen[TN_STRATEGIES] = {0};
    for (int i = 0; i < 12; i++) {
        tn_shape s;
        tn_profile p;
        tn_planned out;
        REQUIRE(test_shape(&s, models[i % 4], 0) == TN_OK);
        REQUIRE(tn_profile_shipped(&p, i % 2 ? "rtx3060-ddr4" : "rtx3090-ddr5"));
        p.host.memory_bytes = 1ull << 36;
        const tn_constraints c = {.n_ctx = 8192, .vram = {(2ull + (uint64_t)i / 2) << 30}};
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        for (int j = 0; j < TN_PLAN_OPTIMUM; j++) {
            char what[64];
            tn_plan plan;
            const tn_strategy strategy = (tn_strategy)j;
            REQUIRE(tn_plan_candidate(&plan, &s, &p, &c, strategy, heap, NULL) == TN_OK);
            snprintf(what, sizeof what, "%s, case %d", tn_strategy_name(strategy), i);
            seen[j] += plan.feasible;
            if (plan.feasible && strategy == TN_PLAN_ALL_HOST) check_host(&plan, what);
            if (plan.feasible && strategy == TN_PLAN_LAYERS) check_layers(&plan, &s, &out.c, what);
            if (plan.feasible && strategy == TN_PLAN_FFN_HOST) check_blocks(&plan, &s, true, what);
            if (plan.feasible && strategy == TN_PLAN_FFN_BLOCKS)
                check_blocks(&plan, &s, false, what);
            if (plan.feasible && strategy == TN_PLAN_WATER_FILL)
                CHECK_MSG(plan.predicted.request_s <= 1.03 * out.optimum.predicted.request_s,
                          "%s: %.2f times the optimum", what,
                          plan.predicted.request_s / out.optimum.predicted.request_s);
            tn_plan_free(&plan, heap);
        }
        tn_planned_free(&out);
        tn_shape_free(&s);
    }
    for (int j = 0; j < TN_PLAN_OPTIMUM; j++)
        CHECK_MSG(seen[j] >= 6, "%s: %d plans", tn_strategy_name((tn_strategy)j), seen[j]);
}

/* ---- reasons --------------------------------------------------------------------------------- */

/* What an FFN's reason has to begin with. */
static const char *why(const tn_plan_layer *y, int32_t n_units, double now, double whole)
{
    if (y->device == TN_HOST) return "no device";
    if (y->units == n_units) return "fits whole";
    if (y->units == 0) return now <= whole ? "no gain" : "no room";
    return now <= whole ? "" : "as much as fits"; /* balanced, or experts on both sides */
}

TEST(reasons_are_true)
{
    static const char *const all[] = {"no device", "fits whole", "no gain", "no room",
                                      "as much as fits"};
    int seen[5] = {0};
    for (uint64_t i = 0; i < 200; i++) {
        uint64_t seed = 23000 + i;
        tn_shape s;
        tn_planned out;
        tn_constraints c;
        const test_model m = random_model(&seed, 3, i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        random_constraints(&seed, &s, &p, &c);
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        tn_cost k;
        tn_cost_init(&k, &s, &p, &out.c, NULL);
        for (int l = 0; l < s.n_layers && out.plan.feasible; l++) {
            char text[200];
            const tn_plan_layer *y = &out.plan.layer[l];
            const int32_t n = s.layer[l].n_units;
            const char *want = why(y, n, tn_cost_ffn(&k, l, y->device, y->attn, y->units, 1),
                                   tn_cost_ffn(&k, l, y->device, y->attn, n, 1));
            tn_plan_reason(&out, &s, &p, l, true, text, sizeof text);
            CHECK_MSG(strncmp(text, want, strlen(want)) == 0, "case %d, layer %d: '%s' is no '%s'",
                      (int)i, l, text, want);
            for (int j = 0; j < 5; j++)
                seen[j] += strcmp(want, all[j]) == 0;
        }
        tn_planned_free(&out);
        tn_shape_free(&s);
    }
    for (int j = 0; j < 5; j++)
        CHECK_MSG(seen[j] >= 5, "'%s': %d layers", all[j], seen[j]);
}

/* ---- prices and remedies --------------------------------------------------------------------- */

/* The optimum under changed constraints. */
static tn_prediction best(const tn_shape *s, const tn_profile *p, const tn_constraints *c)
{
    tn_planned out;
    tn_prediction none = {.step_s = NAN};
    if (tn_plan_make(&out, s, p, c, heap, NULL)) return none;
    if (out.optimum.feasible) none = out.optimum.predicted;
    tn_planned_free(&out);
    return none;
}

/* The figure in a price, as the text says it. */
static double figure(const tn_planned *out, const char *format)
{
    double x = NAN;
    for (int i = 0; i < out->n_prices; i++)
        if (sscanf(out->price[i].text, format, &x) == 1) return x;
    return NAN;
}

/* Prices are the differences of plans that anybody can make. */
TEST(prices_are_true)
{
    for (int i = 0; i < 3; i++) {
        tn_shape s;
        tn_profile p;
        tn_planned out;
        REQUIRE(test_shape(&s, i == 2 ? &model_30b_a3b : &model_70b, 0) == TN_OK);
        REQUIRE(tn_profile_shipped(&p, i ? "rtx3060-ddr4" : "rtx3090-ddr5"));
        p.host.memory_bytes = 1ull << 36;
        const tn_constraints c = {.n_ctx = 16384, .vram = {9ull << 30}};
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK && out.plan.feasible);
        const double now = out.optimum.predicted.step_s;
        tn_constraints other = c;
        other.vram[0] += 1ull << 30;
        const double memory = 1e3 * (best(&s, &p, &other).step_s - now);
        other = c;
        other.kv = TN_KV_KIND_Q8_0;
        const double kv = 100 * (now / best(&s, &p, &other).step_s - 1);
        other = c;
        other.request = (tn_request){1024, 2048, 512};
        const double depth = 1e3 * (best(&s, &p, &other).step_s - now);
        CHECK(memory < 0 && kv > 0 && depth > 0);
        CHECK_NEAR(figure(&out, "1 GiB more device memory = %lf ms") / memory, 1, 0.02);
        CHECK_NEAR(figure(&out, "KV q8_0 instead of f16 = %lf %%") / kv, 1, 0.05);
        CHECK_NEAR(figure(&out, "1,024 more tokens in the context = %lf ms") / depth, 1, 0.02);
        tn_planned_free(&out);
        tn_shape_free(&s);
    }
}

/* Rules that ask too much of a card, of which nobody said how much to use. */
TEST(rules_that_do_not_fit_may_be_lifted)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    tn_rules r = {.a = heap};
    REQUIRE(test_shape(&s, &model_gemma_27b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    REQUIRE(tn_rules_add(&r, ".*=device", NULL) == TN_OK);
    tn_constraints c = {.n_ctx = 8192, .rules = &r};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(!out.plan.feasible && out.n_remedies == 2);
    c.rules = NULL;
    const double want = best(&s, &p, &c).request_s;
    int n = 0;
    for (int i = 0; i < out.n_remedies; i++)
        if (strcmp(out.remedy[i].text, "without --place") == 0) {
            CHECK_NEAR(out.remedy[i].request_s / want, 1, 0.02);
            n++;
        }
    CHECK_INT(n, 1);
    tn_planned_free(&out);
    tn_rules_free(&r);
    tn_shape_free(&s);
}

/* ---- the boundary ---------------------------------------------------------------------------- */

/* With more room than planned no layer could gain by what is left of it: by one unit, or by all of
 * them, which pays where some do not. *whole: layers that are whole only then. */
static void check_room(const tn_planned *out, const tn_shape *s, const tn_profile *p, double more,
                       int *whole)
{
    const tn_plan *plan = &out->plan;
    uint64_t room[TN_MAX_DEVICES] = {0};
    int32_t units[8];
    tn_cost k;
    tn_cost_init(&k, s, p, &out->c, NULL);
    for (int l = 0; l < s->n_layers; l++)
        if (plan->layer[l].device != TN_HOST)
            room[plan->layer[l].device] += tn_shape_ffn_bytes(&s->layer[l], plan->layer[l].units);
    for (int d = 0; d < p->n_devices; d++)
        room[d] += (uint64_t)(more * (double)s->layer[0].ffn_bytes);
    REQUIRE(tn_plan_boundary_in(plan, s, p, &out->c, room, units, heap, NULL) == TN_OK);
    for (int l = 0; l < s->n_layers; l++)
        if (plan->layer[l].device != TN_HOST)
            room[plan->layer[l].device] -= tn_shape_ffn_bytes(&s->layer[l], units[l]);
    for (int l = 0; l < s->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        const int32_t n = s->layer[l].n_units, to[2] = {units[l] + 1, n};
        CHECK_MSG(units[l] >= y->units, "layer %d lost units", l);
        *whole += units[l] == n && y->units < n;
        for (int i = 0; i < 2 && y->device != TN_HOST && units[l] < n; i++) {
            const uint64_t bytes = tn_shape_ffn_bytes(&s->layer[l], to[i]) -
                                   tn_shape_ffn_bytes(&s->layer[l], units[l]);
            const double now = tn_cost_ffn(&k, l, y->device, y->attn, units[l], 1),
                         then = tn_cost_ffn(&k, l, y->device, y->attn, to[i], 1);
            CHECK_MSG(bytes > room[y->device] || then >= now * (1 - 1e-9),
                      "layer %d: %d units take %g s, %d would take %g", l, units[l], now, to[i],
                      then);
        }
    }
}

TEST(room_that_is_left_is_used)
{
    int n = 0, whole = 0;
    for (uint64_t i = 0; i < 200; i++) {
        uint64_t seed = 27000 + i;
        tn_shape s;
        tn_planned out;
        tn_constraints c;
        const test_model m = random_model(&seed, 3, i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        random_constraints(&seed, &s, &p, &c);
        c.fixed = false;
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        if (out.plan.feasible && out.plan.elastic) {
            check_room(&out, &s, &p, test_uniform(&seed, 0, 2), &whole);
            n++;
        }
        tn_planned_free(&out);
        tn_shape_free(&s);
    }
    CHECK_MSG(n > 60 && whole > 20, "%d plans, %d layers whole", n, whole);
}

/* ---- a pure function ------------------------------------------------------------------------- */

TEST(the_same_question_has_the_same_answer)
{
    for (uint64_t i = 0; i < 12; i++) {
        uint64_t seed = 26000 + i;
        char *text[2];
        const test_model m = random_model(&seed, 3, i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        for (int j = 0; j < 2; j++) {
            tn_shape s;
            tn_planned out;
            tn_constraints c;
            uint64_t again = seed;
            REQUIRE(test_shape(&s, &m, 16) == TN_OK);
            random_constraints(&again, &s, &p, &c);
            REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
            REQUIRE(tn_planned_json(&out, &s, &p, &text[j], heap, NULL) == TN_OK);
            tn_planned_free(&out);
            tn_shape_free(&s);
        }
        CHECK_STR(text[0], text[1]);
        for (int j = 0; j < 2; j++)
            tn_free(heap, text[j]);
    }
}

/* A rule for what makes keys and values says where they live; fewer threads are slower. */
TEST(rules_and_threads_decide)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    tn_rules r = {.a = heap};
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3090-ddr5"));
    REQUIRE(tn_rules_add(&r, "blk\\.3\\.attn_[kv]\\.=host", NULL) == TN_OK);
    tn_constraints c = {.n_ctx = 4096, .rules = &r};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    for (int l = 0; l < s.n_layers; l++)
        CHECK_INT(out.plan.layer[l].attn, l != 3);
    tn_planned_free(&out);
    tn_rules_free(&r);
    double step[2] = {0};
    c.rules = NULL;
    c.vram[0] = UINT64_MAX;
    for (int i = 0; i < 2; i++) {
        c.threads = i;
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        step[i] = 1 / out.plan.predicted.decode_tok_s[0];
        tn_planned_free(&out);
    }
    CHECK_MSG(step[1] > 1.2 * step[0], "%g s with one thread, %g s with all", step[1], step[0]);
    tn_shape_free(&s);
}

TEST_MAIN
