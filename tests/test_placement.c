/* Overrides, plan files and the plan's JSON. */
#include "plan_random.h"

#include "../engine/placement.h"
#include "../engine/plan_chain.h"

#include <jansson.h>

static const tn_allocator *const heap = &tn_default_allocator;

/* ---- rules ----------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    int n; /* rules; 0 = refused */
    const char *last;
    double share; /* of the last one */
} grammar[] = {
    {"ffn_.*=host", 1, "ffn_.*", 0},
    {"a=host,b=device", 2, "b", 1},
    {"a=host,b=device,c=split:0.25", 3, "c", 0.25},
    {"x{1,2}=split:.5", 1, "x{1,2}", 0.5},
    {"x{1,2}=host,[a,b]=device", 2, "[a,b]", 1},
    {"blk\\.(1|2),?=host", 1, "blk\\.(1|2),?", 0},
    {"(?=a)b=host", 1, "(?=a)b", 0},
    {"a=b=device", 1, "a=b", 1},
    {"a=split:0", 1, "a", 0},
    {"a=split:1", 1, "a", 1},
    {"", 0, NULL, 0},
    {"a", 0, NULL, 0},
    {"=host", 0, NULL, 0},
    {"a=left", 0, NULL, 0},
    {"a=Host", 0, NULL, 0},
    {"a=host ", 0, NULL, 0},
    {"a=host,", 0, NULL, 0},
    {"a=host,b", 0, NULL, 0},
    {"a=gpu,b=host", 0, NULL, 0},
    {"a=split:1.1", 0, NULL, 0},
    {"a=split:-0.1", 0, NULL, 0},
    {"a=split:nan", 0, NULL, 0},
    {"a=split:", 0, NULL, 0},
    {"a=split", 0, NULL, 0},
    {"(=host", 0, NULL, 0},
    {"a=host,*=device", 0, NULL, 0},
};

TEST(rules_are_read_as_written)
{
    for (size_t i = 0; i < sizeof grammar / sizeof *grammar; i++) {
        tn_rules r = {.a = heap};
        tn_error err = {0};
        const tn_status s = tn_rules_add(&r, grammar[i].text, &err);
        CHECK_MSG((s == TN_OK) == (grammar[i].n > 0), "'%s': %d", grammar[i].text, (int)s);
        if (s) CHECK_MSG(s == TN_EARG && strstr(err.msg, "--place"), "'%s'", err.msg);
        if (!s && grammar[i].n) {
            CHECK_INT(r.n, grammar[i].n);
            CHECK_STR(r.rule[r.n - 1].regex, grammar[i].last);
            CHECK_NEAR(r.rule[r.n - 1].share, grammar[i].share, 0);
        }
        tn_rules_free(&r);
    }
}

TEST(the_first_match_anywhere_in_the_name_decides)
{
    tn_rules r = {.a = heap};
    REQUIRE(tn_rules_add(&r, "blk\\.1\\.=device,ffn_up=host", NULL) == TN_OK);
    REQUIRE(tn_rules_add(&r, "ffn=split:0.5", NULL) == TN_OK);
    CHECK_INT(tn_rules_match(&r, "blk.1.ffn_up.weight"), 0);
    CHECK_INT(tn_rules_match(&r, "blk.11.ffn_up.weight"), 1);
    CHECK_INT(tn_rules_match(&r, "blk.2.ffn_down.weight"), 2);
    CHECK_INT(tn_rules_match(&r, "blk.2.attn_q.weight"), -1);
    tn_rules_free(&r);
    REQUIRE(tn_rules_add(&r, "(a+)+$=host", NULL) == TN_OK); /* must end, not hang */
    CHECK_INT(tn_rules_match(&r, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"), -2);
    tn_rules_free(&r);
}

static void warns(const char *place, const char *word)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    tn_rules r = {.a = heap};
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3090-ddr5"));
    REQUIRE(tn_rules_add(&r, place, NULL) == TN_OK);
    const tn_constraints c = {.n_ctx = 4096, .rules = &r};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    if (word) {
        CHECK_INT(out.n_warnings, 1);
        CHECK_MSG(strstr(out.warning[0], word), "'%s' lacks '%s'", out.warning[0], word);
    } else {
        CHECK_INT(out.n_warnings, 0);
    }
    tn_planned_free(&out);
    tn_rules_free(&r);
    tn_shape_free(&s);
}

TEST(rules_without_a_match_warn_with_near_names)
{
    warns("ffn_gat=host", NULL); /* unanchored: "ffn_gat" is in ffn_gate */
    warns("ffn_dwn=host", "near: ffn_down");
    warns("blk\\.3\\.attn_qq\\.=host", "attn_q");
    warns("ffn_up=host,ffn_u=device", "'ffn_u' decides nothing: earlier rules");
    warns("zzzzzz=host", "matches no tensor");
}

/* ---- overrides in plans ---------------------------------------------------------------------- */

static void random_rules(uint64_t *seed, tn_rules *r)
{
    static const char *const what[] = {
        "ffn_up", "ffn_gate[._]", "ffn_down",    "ffn_(up|gate|down)", "attn_q",
        "attn_k", "attn_output",  "blk\\.0\\.",  "blk\\.1\\.ffn",      "^output\\.",
        "norm",   "token_embd",   "attn_[kv]\\."};
    static const char *const side[] = {"host", "device", "split:0.4", "split:0.75"};
    const int n = test_int(seed, 1, 3);
    for (int i = 0; i < n; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s=%s", what[test_int(seed, 0, 12)],
                 side[test_int(seed, 0, 3)]);
        REQUIRE(tn_rules_add(r, text, NULL) == TN_OK);
    }
}

static bool splits(const tn_shape_tensor *t)
{
    return t->part == TN_PART_QKV || t->part == TN_PART_OUT || t->part == TN_PART_GATE ||
           t->part == TN_PART_UP || t->part == TN_PART_DOWN || t->part == TN_PART_SHARED ||
           t->part == TN_PART_HEAD;
}

/* Counts the tensors that rules decide about; each is where its first rule says. */
static int check_obeyed(const tn_planned *out, const tn_shape *s, const tn_rules *r,
                        unsigned long long seed)
{
    int n = 0;
    for (int i = 0; i < s->n_tensors; i++) {
        const tn_shape_tensor *t = &s->tensor[i];
        const int m = tn_rules_match(r, t->name);
        if (m < 0) continue;
        const double want = r->rule[m].share, got = (double)out->plan.share[i];
        if (want > 0 && want < 1 && !splits(t)) continue;
        n++;
        /* Whole units, the last of which may be nearly twice as large as the others. */
        const double step = want <= 0 || want >= 1 ? 0
                            : i == s->head         ? 1.0 / s->head_units
                            : t->layer >= 0 && s->layer[t->layer].n_units && t->part >= TN_PART_GATE
                                ? 2.0 / (s->layer[t->layer].n_units + 1)
                                : 0;
        CHECK_MSG(fabs(got - want) <= step + 1e-7, "seed %llu: '%s' wants %g of %s, has %g", seed,
                  r->rule[m].regex, want, t->name, got);
    }
    return n;
}

TEST(overrides_are_always_obeyed)
{
    int feasible = 0, decided = 0, mixed = 0;
    for (uint64_t i = 0; i < 300 && tn_failures == 0; i++) {
        uint64_t seed = 31000 + i;
        tn_shape s;
        tn_planned out;
        tn_error err = {0};
        tn_rules r = {.a = heap};
        const test_model m = random_model(&seed, 2 + (int)(i % 3), i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        random_rules(&seed, &r);
        const tn_constraints c = {.n_batch = 16,
                                  .page_size = 16,
                                  .rules = &r,
                                  .request = {0, 20, 10},
                                  .vram = {2 * s.weight_bytes}};
        const tn_status status = tn_plan_make(&out, &s, &p, &c, heap, &err);
        CHECK_MSG(status == TN_OK || (status == TN_EARG && strstr(err.msg, "--place")),
                  "seed %llu: %d %s", (unsigned long long)(31000 + i), (int)status, err.msg);
        if (status == TN_OK && out.plan.feasible) {
            feasible++;
            decided += check_obeyed(&out, &s, &r, 31000 + i);
            for (int l = 0; l < s.n_layers; l++)
                mixed += out.plan.layer[l].mixed;
        }
        if (status == TN_OK) tn_planned_free(&out);
        tn_rules_free(&r);
        tn_shape_free(&s);
    }
    CHECK_MSG(feasible >= 200 && decided >= 1000 && mixed >= 100, "%d plans, %d tensors, %d layers",
              feasible, decided, mixed);
}

/* The recipe that started it all: one tensor kind on the host, and everything else stays. */
TEST(ffn_up_on_the_host_alone)
{
    tn_shape s;
    tn_profile p;
    tn_planned out, plain;
    tn_rules r = {.a = heap};
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    REQUIRE(tn_rules_add(&r, "ffn_up=host", NULL) == TN_OK);
    const tn_constraints free_c = {.n_ctx = 4096}, c = {.n_ctx = 4096, .rules = &r};
    REQUIRE(tn_plan_make(&plain, &s, &p, &free_c, heap, NULL) == TN_OK);
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    for (int i = 0; i < s.n_tensors; i++) {
        const tn_shape_tensor *t = &s.tensor[i];
        if (t->layer < 0) continue;
        CHECK_NEAR(out.plan.share[i], t->part == TN_PART_UP ? 0.0 : 1.0, 0);
    }
    CHECK(out.plan.predicted.step_s > plain.plan.predicted.step_s + 32 * p.device[0].cross_s);
    tn_planned_free(&out);
    tn_planned_free(&plain);
    tn_rules_free(&r);
    tn_shape_free(&s);
}

TEST(overrides_and_budgets_that_contradict_are_named)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    tn_error err = {0};
    tn_rules r = {.a = heap};
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    REQUIRE(tn_rules_add(&r, ".*=device", NULL) == TN_OK);
    tn_constraints c = {.n_ctx = 4096, .rules = &r, .vram = {2ull << 30}};
    CHECK(tn_plan_make(&out, &s, &p, &c, heap, &err) == TN_EARG);
    CHECK_MSG(strstr(err.msg, "--place") && strstr(err.msg, "--vram") && strstr(err.msg, "MiB"),
              "'%s'", err.msg);
    tn_rules_free(&r);
    REQUIRE(tn_rules_add(&r, ".*=host", NULL) == TN_OK);
    c = (tn_constraints){.n_ctx = 4096, .rules = &r, .ram = 2ull << 30};
    CHECK(tn_plan_make(&out, &s, &p, &c, heap, &err) == TN_EARG);
    CHECK_MSG(strstr(err.msg, "--place") && strstr(err.msg, "--ram"), "'%s'", err.msg);
    tn_rules_free(&r);
    tn_shape_free(&s);
}

/* ---- plan files ------------------------------------------------------------------------------ */

static bool same_prediction(const tn_prediction *a, const tn_prediction *b)
{
    bool same = a->request_s == b->request_s && a->ttft_s == b->ttft_s &&
                a->prefill_tok_s == b->prefill_tok_s && a->step_s == b->step_s &&
                a->n_depths == b->n_depths;
    for (int i = 0; same && i < a->n_depths; i++)
        same = a->depth[i] == b->depth[i] && a->decode_tok_s[i] == b->decode_tok_s[i];
    return same;
}

static void check_replay(const tn_planned *out, const tn_planned *again, const tn_shape *s,
                         const tn_profile *p, unsigned long long seed)
{
    const tn_plan *x = &out->plan, *y = &again->plan;
    for (int l = 0; l < s->n_layers; l++)
        CHECK_MSG(
            x->layer[l].device == y->layer[l].device && x->layer[l].attn == y->layer[l].attn &&
                x->layer[l].mixed == y->layer[l].mixed && x->layer[l].units == y->layer[l].units &&
                x->layer[l].ffn_mode == y->layer[l].ffn_mode,
            "seed %llu: layer %d differs", seed, l);
    CHECK(memcmp(x->share, y->share, (size_t)s->n_tensors * sizeof *x->share) == 0);
    CHECK(x->head_units == y->head_units && x->elastic == y->elastic && x->live == y->live &&
          x->dropping == y->dropping && x->feasible == y->feasible);
    CHECK_MSG(
        memcmp(&x->host, &y->host, sizeof x->host) == 0,
        "seed %llu: host weights %llu %llu, kv %llu %llu, buffers %llu %llu, masters %llu %llu",
        seed, (unsigned long long)x->host.weights, (unsigned long long)y->host.weights,
        (unsigned long long)x->host.kv, (unsigned long long)y->host.kv,
        (unsigned long long)x->host.buffers, (unsigned long long)y->host.buffers,
        (unsigned long long)x->host.masters, (unsigned long long)y->host.masters);
    CHECK(memcmp(x->device, y->device, sizeof x->device) == 0);
    CHECK_MSG(same_prediction(&x->predicted, &y->predicted), "seed %llu: %.17g, again %.17g", seed,
              x->predicted.request_s, y->predicted.request_s);
    int32_t units[8], others[8];
    for (int64_t live = 1; live <= out->c.n_ctx; live += out->c.n_ctx / 5 + 1) {
        CHECK(tn_plan_boundary(x, s, p, &out->c, live, units, heap, NULL) == TN_OK);
        CHECK(tn_plan_boundary(y, s, p, &again->c, live, others, heap, NULL) == TN_OK);
        CHECK(memcmp(units, others, (size_t)s->n_layers * sizeof *units) == 0);
    }
}

/* A plan that moves, replayed without its moves: what a full context leaves, at every depth, and
 * priced as that. */
static void check_stays(const tn_planned *out, const tn_planned *again, const tn_shape *s,
                        const tn_profile *p, unsigned long long seed, int *moved)
{
    const tn_plan *x = &out->plan, *y = &again->plan;
    const tn_prediction *a = &x->predicted, *b = &y->predicted;
    int32_t full[8], units[8];
    bool others = false;
    CHECK(!y->elastic && !y->dropping && y->live == (uint64_t)out->c.n_ctx && y->feasible);
    CHECK(tn_plan_boundary(x, s, p, &out->c, out->c.n_ctx, full, heap, NULL) == TN_OK);
    for (int64_t live = 1; live <= out->c.n_ctx; live += out->c.n_ctx / 5 + 1) {
        CHECK(tn_plan_boundary(y, s, p, &again->c, live, units, heap, NULL) == TN_OK);
        CHECK_MSG(memcmp(units, full, (size_t)s->n_layers * sizeof *units) == 0,
                  "seed %llu: not there with %lld tokens", seed, (long long)live);
        CHECK(tn_plan_boundary(x, s, p, &out->c, live, units, heap, NULL) == TN_OK);
        others |= memcmp(units, full, (size_t)s->n_layers * sizeof *units) != 0;
    }
    for (int l = 0; l < s->n_layers; l++)
        others |= x->layer[l].ffn_mode != full[l];
    for (int i = 0; i < b->n_depths; i++) {
        const int64_t before = b->depth[i] < out->c.n_ctx ? b->depth[i] : out->c.n_ctx - 1;
        double host_s, total_s;
        CHECK(!tn_plan_token(x, s, p, &out->c, before, full, &host_s, &total_s, heap, NULL));
        CHECK_MSG(fabs(b->decode_tok_s[i] * total_s - 1) < 1e-9, "seed %llu: %g of %g tok/s", seed,
                  b->decode_tok_s[i], 1 / total_s);
    }
    CHECK(a->decode_tok_s[a->n_depths - 1] == b->decode_tok_s[b->n_depths - 1]);
    const tn_request *r = &again->c.request;
    const double prefill = r->n_prompt ? b->ttft_s : 0;
    CHECK(fabs((b->request_s - prefill) / ((double)r->n_gen * b->step_s) - 1) < 1e-9);
    CHECK(b->decode_tok_s[0] >= (1 - 1e-9) / b->step_s && b->ttft_s > 0);
    CHECK_INT(again->n_warnings, others);
    *moved += others;
}

TEST(plan_files_replay_exactly)
{
    int n = 0, split = 0, elastic = 0, stay = 0, moved = 0;
    for (uint64_t i = 0; i < 240 && tn_failures == 0; i++) {
        uint64_t seed = 47000 + i;
        tn_shape s;
        tn_planned out, again;
        tn_error err = {0};
        tn_rules r = {.a = heap};
        char *text = NULL;
        const test_model m = random_model(&seed, 3, i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        if (i % 2) random_rules(&seed, &r);
        const uint64_t room =
            400000 + (uint64_t)(test_uniform(&seed, 0, 1.2) * (double)s.weight_bytes);
        tn_constraints c = {.n_batch = 16,
                            .page_size = 16,
                            .request = {5, 20, 10},
                            .fixed = true,
                            .vram = {room, p.n_devices > 1 ? room : 0}};
        if (i % 3) random_constraints(&seed, &s, &p, &c);
        if (i % 3) c.ram = 0, c.fixed = false;
        c.rules = &r;
        c.threads = (int)(i % 5); /* the profile's are 4 */
        c.mapped = i % 7 == 0;
        if (tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK) {
            tn_constraints same = c;
            if (i % 3 && out.plan.feasible) { /* simple plans do not move */
                same.pinned = out.c.pinned;
                tn_plan_free(&out.plan, heap);
                REQUIRE(!tn_plan_candidate(&out.plan, &s, &p, &same, TN_PLAN_OPTIMUM, heap, &err));
            }
            same.rules = NULL;
            same.fixed = out.plan.elastic && i % 4 < 2;
            if (same.fixed && i % 2) same.vram[0] = same.vram[1] = 0; /* the file knows */
            if (i % 2) same.threads = 0;
            REQUIRE(tn_planned_json(&out, &s, &p, &text, heap, &err) == TN_OK);
            if (!out.plan.feasible) same.vram[0] = same.vram[1] = 0;
            const tn_status status =
                tn_plan_parse(&again, text, strlen(text), "plan.json", &s, &p, &same, heap, &err);
            CHECK_MSG(status == TN_OK, "seed %llu: %s", (unsigned long long)(47000 + i), err.msg);
            if (!status && out.plan.feasible) {
                n++;
                for (int l = 0; l < s.n_layers; l++)
                    split +=
                        out.plan.layer[l].units > 0 && out.plan.layer[l].units < s.layer[l].n_units;
                elastic += out.plan.elastic && !same.fixed;
                stay += same.fixed;
                if (same.fixed)
                    check_stays(&out, &again, &s, &p, 47000 + i, &moved);
                else
                    check_replay(&out, &again, &s, &p, 47000 + i);
            }
            if (!status) tn_planned_free(&again);
            tn_free(heap, text);
            tn_planned_free(&out);
        }
        tn_rules_free(&r);
        tn_shape_free(&s);
    }
    CHECK_MSG(n >= 100 && elastic >= 30 && stay >= 30 && moved >= 15 && split >= 20,
              "%d plans, %d move, %d have stayed, %d elsewhere, %d split layers", n, elastic, stay,
              moved, split);
}

/* It keeps no masters of what is on the device, so that less is carried and more page-locked. */
TEST(replays_page_lock_what_they_carry)
{
    tn_shape s;
    tn_profile p;
    tn_planned out, again;
    tn_error err = {0};
    char *text;
    REQUIRE(test_shape(&s, &model_70b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3090-ddr5"));
    p.host.memory_bytes = 54ull << 30;
    tn_constraints c = {.n_ctx = 8192};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, &err) == TN_OK);
    REQUIRE(tn_planned_json(&out, &s, &p, &text, heap, &err) == TN_OK);
    c.fixed = true;
    REQUIRE(tn_plan_parse(&again, text, strlen(text), "x", &s, &p, &c, heap, &err) == TN_OK);
    CHECK(out.plan.dropping && out.c.pinned < 1 && out.c.pinned > 0.5);
    CHECK_MSG(again.c.pinned > 1.05 * out.c.pinned, "%g, then %g", out.c.pinned, again.c.pinned);
    tn_free(heap, text);
    tn_planned_free(&again);
    tn_planned_free(&out);
    tn_shape_free(&s);
}

/* ---- levels ---------------------------------------------------------------------------------- */

/* Room is kept in steps, but for the request's own tokens in one. */
TEST(levels_are_steps_and_the_request)
{
    static const struct {
        int64_t live, page, cap, want, planned;
    } cases[] = {{0, 256, 32768, 2560, 2560},    {1, 256, 32768, 2048, 2560},
                 {2049, 256, 32768, 2560, 2560}, {2561, 256, 32768, 4096, 2560},
                 {0, 256, 32768, 2560, 2400},    {31000, 256, 32768, 32768, 2560},
                 {1, 16, 96, 16, 20},            {17, 16, 96, 32, 20},
                 {33, 16, 96, 48, 20},           {0, 256, 2048, 2048, 2560},
                 {300, 256, 2048, 512, 2560},    {0, 16, 1 << 20, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const tn_plan plan = {.live = (uint64_t)cases[i].planned};
        CHECK_INT(tn_plan_level(&plan, cases[i].page, cases[i].cap, cases[i].live), cases[i].want);
    }
    CHECK_INT(tn_plan_level_step(256, 1 << 20), 2048);
    CHECK_INT(tn_plan_level_step(256, 32768), 2048);
    CHECK_INT(tn_plan_level_step(256, 4096), 256);
    CHECK_INT(tn_plan_level_step(16, 1000), 64);
}

/* What is predicted at a depth is what is there at its level: while the request lasts, the plan. */
TEST(depths_are_predicted_at_their_levels)
{
    static const struct {
        const char *request;
        int64_t live, level[3]; /* planned; at 0, 4,096 and 16,384 tokens */
    } cases[] = {{"chat", 2560, {2560, 6144, 18432}}, {"long", 25088, {2048, 6144, 18432}}};
    for (size_t i = 0; i < 2; i++) {
        tn_placement *p;
        const tn_placement_options o = {.struct_size = sizeof o,
                                        .hardware = "rtx3090-ddr5",
                                        .request = cases[i].request,
                                        .n_ctx = 32768};
        REQUIRE(tn_placement_open(&p, "llama-70b:q4_k_m", &o, NULL) == TN_OK);
        const tn_plan *plan = &p->planned.plan;
        CHECK_INT(plan->live, cases[i].live);
        for (int d = 0; d < 3; d++) {
            int32_t units[80];
            double host_s, total_s;
            REQUIRE(!tn_plan_boundary(plan, &p->shape, &p->profile, &p->planned.c,
                                      cases[i].level[d], units, heap, NULL));
            REQUIRE(!tn_plan_token(plan, &p->shape, &p->profile, &p->planned.c,
                                   plan->predicted.depth[d], units, &host_s, &total_s, heap, NULL));
            CHECK_NEAR(plan->predicted.decode_tok_s[d] * total_s, 1, 1e-9);
        }
        tn_placement_close(p);
    }
}

typedef struct other {
    const test_model *model;
    const char *machine;
    tn_constraints c;
    const char *word1, *word2;
} other;

TEST(plans_for_another_model_or_machine_are_refused)
{
    test_model quants = model_8b;
    quants.type = TN_TYPE_Q4_0; /* as many bits */
    const other cases[] = {
        {&quants, "rtx3060-ddr4", {.n_ctx = 0}, "the model", "this is"},
        {&model_70b, "rtx3060-ddr4", {.n_ctx = 0}, "the model", "this is"},
        {&model_30b_a3b, "rtx3060-ddr4", {.n_ctx = 0}, "'llama'", "'qwen3moe'"},
        {&model_8b, "rtx3090-ddr5", {.n_ctx = 0}, "'rtx3060-ddr4'", "'rtx3090-ddr5'"},
        {&model_8b, "rtx3060-ddr4", {.n_ctx = 2048}, "--ctx 4096", "--ctx 2048"},
        {&model_8b, "rtx3060-ddr4", {.kv = TN_KV_KIND_F32}, "'f16'", "'f32'"},
        {&model_8b, "rtx3060-ddr4", {.n_batch = 32}, "--batch 512", "--batch 32"},
        {&model_8b, "rtx3060-ddr4", {.request = {0, 9, 9}}, "2048+512", "--for 9+9"},
        {&model_8b, "rtx3060-ddr4", {.threads = 2}, "--threads 6", "--threads 2"},
        {&model_8b, "rtx3060-ddr4", {.mapped = true}, "not for --load map", "which was given"},
        {&model_8b, "rtx3060-ddr4", {.threads = 6}, NULL, NULL},
        {&model_8b, "rtx3060-ddr4", {.vram = {3ull << 30}}, "--plan", "--vram"},
        {&model_8b, "rtx3060-ddr4", {.n_ctx = 4096}, NULL, NULL},
    };
    tn_shape s;
    tn_profile p;
    tn_planned out;
    char *text = NULL;
    const tn_constraints c = {.n_ctx = 4096};
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    REQUIRE(tn_planned_json(&out, &s, &p, &text, heap, NULL) == TN_OK);
    tn_planned_free(&out);
    tn_shape_free(&s);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_error err = {0};
        REQUIRE(test_shape(&s, cases[i].model, 0) == TN_OK);
        REQUIRE(tn_profile_shipped(&p, cases[i].machine));
        const tn_status status =
            tn_plan_parse(&out, text, strlen(text), "x.json", &s, &p, &cases[i].c, heap, &err);
        CHECK_MSG(status == (cases[i].word1 ? TN_EARG : TN_OK), "case %zu: %d", i, (int)status);
        if (cases[i].word1)
            CHECK_MSG(strstr(err.msg, "x.json") && strstr(err.msg, cases[i].word1) &&
                          strstr(err.msg, cases[i].word2),
                      "'%s' lacks '%s' or '%s'", err.msg, cases[i].word1, cases[i].word2);
        if (!status) tn_planned_free(&out);
        tn_shape_free(&s);
    }
    tn_free(heap, text);
}

/* What somebody may have done to a plan by hand. */
static void other_build(json_t *doc)
{
    json_object_set_new(json_object_get(doc, "hardware"), "key", json_string("another"));
}

static void unknown_tensor(json_t *doc)
{
    json_object_set_new(json_object_get(doc, "overrides"), "blk.99.ffn_up.weight", json_real(1));
}

static void no_last_layer(json_t *doc)
{
    json_t *units = json_object_get(doc, "units"), *u;
    size_t i = json_array_size(units);
    while (i-- > 0) {
        u = json_array_get(units, i);
        if (json_integer_value(json_object_get(u, "layer")) == 79) json_array_remove(units, i);
    }
}

static void devices_in_turn(json_t *doc)
{
    json_t *units = json_object_get(doc, "units"), *u;
    size_t i;
    json_array_foreach (units, i, u)
        json_object_set_new(u, "device",
                            json_integer(json_integer_value(json_object_get(u, "layer")) == 0));
}

static void head_without_device(json_t *doc)
{
    json_t *units = json_object_get(doc, "units"), *u;
    size_t i;
    json_array_foreach (units, i, u) {
        json_object_set_new(u, "device", json_integer(-1));
        json_object_set_new(u, "units",
                            json_integer(json_integer_value(json_object_get(u, "layer")) < 0));
    }
}

TEST(plans_edited_by_hand_are_refused_by_name)
{
    static const struct {
        void (*edit)(json_t *doc);
        const char *word;
    } cases[] = {{other_build, "the machine and build"},
                 {unknown_tensor, "names a tensor the model lacks"},
                 {no_last_layer, "does not place every layer"},
                 {devices_in_turn, "goes back to an earlier device"},
                 {head_without_device, "needs a device"},
                 {NULL, ""}};
    const tn_constraints c = {.n_ctx = 4096};
    tn_shape s;
    tn_profile p;
    tn_planned out;
    char *text = NULL;
    REQUIRE(test_shape(&s, &model_70b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "2x-rtx3090-ddr4"));
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    REQUIRE(tn_planned_json(&out, &s, &p, &text, heap, NULL) == TN_OK);
    tn_planned_free(&out);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_error err = {0};
        json_t *doc = json_loads(text, 0, NULL);
        REQUIRE(doc);
        if (cases[i].edit) cases[i].edit(doc);
        char *edited = json_dumps(doc, 0);
        const tn_status status =
            tn_plan_parse(&out, edited, strlen(edited), "x.json", &s, &p, &c, heap, &err);
        CHECK_MSG((status != TN_OK) == (cases[i].edit != NULL) && strstr(err.msg, cases[i].word),
                  "case %zu: %d '%s'", i, (int)status, err.msg);
        if (!status) tn_planned_free(&out);
        free(edited);
        json_decref(doc);
    }
    tn_free(heap, text);
    tn_shape_free(&s);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static uint64_t used_bytes(const tn_plan_memory *m)
{
    return m->weights + m->kv + m->buffers + m->masters;
}

static void check_prediction(const json_t *j, const char *what)
{
    const json_t *depths = json_object_get(j, "decode_tok_s");
    CHECK_MSG(json_number_value(json_object_get(j, "request_s")) > 0 &&
                  json_number_value(json_object_get(j, "prefill_tok_s")) > 0 &&
                  json_number_value(json_object_get(j, "ttft_s")) > 0,
              "%s lacks a time", what);
    static const char *const keys[] = {"0", "4096", "16384", "32768"};
    CHECK_INT(json_object_size(depths), 4);
    for (int i = 0; i < 4; i++)
        CHECK_MSG(json_number_value(json_object_get(depths, keys[i])) > 0, "%s lacks depth %s",
                  what, keys[i]);
}

/* Every tensor of a layer: the first unit whose match fits its name says where it is. */
static void check_units(const json_t *units, const tn_planned *out, const tn_shape *s)
{
    tn_rules r = {.a = heap};
    const json_t *unit;
    size_t n;
    json_array_foreach(units, n, unit)
    {
        char text[220];
        const char *match = json_string_value(json_object_get(unit, "match")),
                   *where = json_string_value(json_object_get(unit, "where")),
                   *reason = json_string_value(json_object_get(unit, "reason"));
        REQUIRE(match && where && reason && *reason);
        snprintf(text, sizeof text, "%s=host", match);
        REQUIRE(tn_rules_add(&r, text, NULL) == TN_OK);
        const double share = json_number_value(json_object_get(unit, "share"));
        CHECK_STR(where, share <= 0 ? "host" : share >= 1 ? "device" : "split");
    }
    for (int i = 0; i < s->n_tensors; i++) {
        const int m = tn_rules_match(&r, s->tensor[i].name);
        if (s->tensor[i].layer < 0 && i != s->head) continue;
        REQUIRE(m >= 0);
        const double share =
            json_number_value(json_object_get(json_array_get(units, (size_t)m), "share"));
        CHECK_MSG(fabs(share - (double)out->plan.share[i]) <= 1e-6, "%s: unit %d says %g, is %g",
                  s->tensor[i].name, m, share, (double)out->plan.share[i]);
    }
    tn_rules_free(&r);
}

static void check_json(const test_model *model, const char *place)
{
    static const char *const sizes[] = {"budget_bytes", "device_bytes", "host_budget_bytes",
                                        "host_bytes"};
    tn_shape s;
    tn_profile p;
    tn_planned out;
    tn_rules r = {.a = heap};
    char *text = NULL;
    REQUIRE(test_shape(&s, model, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3090-ddr5"));
    if (place) REQUIRE(tn_rules_add(&r, place, NULL) == TN_OK);
    const tn_constraints c = {.n_ctx = 32768, .rules = &r};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    REQUIRE(tn_planned_json(&out, &s, &p, &text, heap, NULL) == TN_OK);
    json_t *doc = json_loads(text, 0, NULL);
    REQUIRE(doc);
    for (int i = 0; i < 4; i++)
        CHECK_MSG(json_integer_value(json_object_get(doc, sizes[i])) > 0, "no %s", sizes[i]);
    CHECK_INT(json_integer_value(json_object_get(doc, "device_bytes")),
              used_bytes(&out.plan.device[0]));
    CHECK_INT(json_integer_value(json_object_get(doc, "host_bytes")), used_bytes(&out.plan.host));
    CHECK_INT(json_integer_value(json_object_get(doc, "budget_bytes")), out.plan.device[0].budget);
    CHECK_INT(json_integer_value(json_object_get(doc, "host_budget_bytes")), out.plan.host.budget);
    check_prediction(json_object_get(doc, "predicted"), "predicted");
    check_prediction(json_object_get(doc, "optimum"), "optimum");
    const json_t *all = json_object_get(doc, "candidates");
    CHECK(json_object_get(all, "layers") && json_object_get(all, "ffn-host") &&
          json_object_get(all, "all-host"));
    const char *name;
    json_t *one;
    json_object_foreach((json_t *)(uintptr_t)all, name, one)
    {
        if (json_is_true(json_object_get(one, "feasible"))) check_prediction(one, name);
    }
    CHECK_STR(json_string_value(json_object_get(doc, "chosen")),
              tn_strategy_name(out.plan.strategy));
    check_units(json_object_get(doc, "units"), &out, &s);
    json_decref(doc);
    tn_free(heap, text);
    tn_planned_free(&out);
    tn_rules_free(&r);
    tn_shape_free(&s);
}

TEST(json_says_everything)
{
    check_json(&model_8b, NULL);
    check_json(&model_70b, NULL);
    check_json(&model_30b_a3b, NULL);
    check_json(&model_gemma_27b, NULL);
    check_json(&model_8b, "ffn_up=host,attn_q\\.=host,ffn_down=split:0.5");
    check_json(&model_8b, "blk\\.[0-9]\\.ffn=split:0.3");
}

/* The remedy is as long as it can be, in steps of 256; more than the model was
 * trained for is said. */
TEST(the_context_that_fits_is_the_longest)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    long long ctx = 0;
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    tn_constraints c = {.n_ctx = 1 << 18, .ram = 8ull << 30};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(!out.plan.feasible && out.n_warnings == 1 && strstr(out.warning[0], "trained"));
    for (int i = 0; i < out.n_remedies; i++)
        sscanf(out.remedy[i].text, "--ctx %lld", &ctx);
    tn_planned_free(&out);
    REQUIRE(ctx > 0);
    for (int more = 0; more <= 256; more += 256) {
        c.n_ctx = ctx + more;
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        CHECK_MSG(out.plan.feasible == !more, "%lld tokens", (long long)c.n_ctx);
        tn_planned_free(&out);
    }
    tn_shape_free(&s);
}

TEST_MAIN
