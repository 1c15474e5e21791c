/* Overrides, plan files and the plan's JSON. */
#include "plan_random.h"

#include "../engine/plan_chain.h"
#include "../engine/tenon.h"

#include <jansson.h>
#include <unistd.h>

static const tn_allocator *const heap = &tn_default_allocator;

/* ---- rules -------------------------------------------------------------------------------------
 */

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

/* ---- overrides in plans ------------------------------------------------------------------------
 */

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

/* ---- plan files --------------------------------------------------------------------------------
 */

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

TEST(plan_files_replay_exactly)
{
    int n = 0, split = 0;
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
        const tn_constraints c = {.n_batch = 16,
                                  .page_size = 16,
                                  .rules = &r,
                                  .request = {5, 20, 10},
                                  .vram = {room, p.n_devices > 1 ? room : 0}};
        if (tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK) {
            tn_constraints same = c;
            same.rules = NULL;
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
                check_replay(&out, &again, &s, &p, 47000 + i);
            }
            if (!status) tn_planned_free(&again);
            tn_free(heap, text);
            tn_planned_free(&out);
        }
        tn_rules_free(&r);
        tn_shape_free(&s);
    }
    CHECK_MSG(n >= 60 && split >= 20, "%d plans, %d split layers", n, split);
}

typedef struct other {
    const test_model *model;
    const char *machine;
    tn_constraints c;
    const char *word1, *word2;
} other;

TEST(plans_for_another_model_or_machine_are_refused)
{
    static const other cases[] = {
        {&model_70b, "rtx3060-ddr4", {.n_ctx = 0}, "the model", "this is"},
        {&model_30b_a3b, "rtx3060-ddr4", {.n_ctx = 0}, "'llama'", "'qwen3moe'"},
        {&model_8b, "rtx3090-ddr5", {.n_ctx = 0}, "'rtx3060-ddr4'", "'rtx3090-ddr5'"},
        {&model_8b, "rtx3060-ddr4", {.n_ctx = 2048}, "--ctx 4096", "--ctx 2048"},
        {&model_8b, "rtx3060-ddr4", {.kv = TN_KV_KIND_F32}, "'f16'", "'f32'"},
        {&model_8b, "rtx3060-ddr4", {.n_batch = 32}, "--batch 512", "--batch 32"},
        {&model_8b, "rtx3060-ddr4", {.request = {0, 9, 9}}, "2048+512", "--for 9+9"},
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

/* ---- JSON --------------------------------------------------------------------------------------
 */

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
    CHECK(json_integer_value(json_object_get(doc, "device_bytes")) <=
          json_integer_value(json_object_get(doc, "budget_bytes")));
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

/* The remedy is as long as it can be, in steps of 256; more than the model was trained for is said. */
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

/* ---- the public header -------------------------------------------------------------------------
 */

static const char *const tiny = "tests/data/arch/llama/model-f16.gguf";

TEST(placement_of_a_file)
{
    tn_placement *p;
    tn_error err = {0};
    tn_placement_options opt = {.struct_size = sizeof opt, .hardware = "rtx3060-ddr4"};
    REQUIRE(tn_placement_open(&p, tiny, &opt, &err) == TN_OK);
    tn_placement_info f = {.struct_size = sizeof f};
    CHECK(tn_placement_get_info(p, &f, &err) == TN_OK);
    CHECK(f.feasible && f.n_layers > 0 && f.n_devices == 1 && f.predicted.request_s > 0);
    CHECK_STR(f.hardware, "rtx3060-ddr4");
    for (int32_t l = 0; l <= f.n_layers; l++) {
        tn_placement_row row;
        CHECK(tn_placement_get_row(p, l, &row, &err) == TN_OK);
        CHECK(row.ffn_share >= 0 && row.ffn_share <= 1 && *row.ffn_reason);
    }
    tn_placement_row row;
    tn_placement_memory mem;
    CHECK(tn_placement_get_row(p, f.n_layers + 1, &row, &err) == TN_EARG);
    CHECK(tn_placement_get_row(p, -1, &row, &err) == TN_EARG);
    CHECK(tn_placement_get_memory(p, 1, &mem, &err) == TN_EARG);
    CHECK(tn_placement_get_memory(p, -1, &mem, &err) == TN_OK && mem.budget_bytes > 0);
    tn_placement_close(p);
}

TEST(placement_of_this_machine_knows_its_memory)
{
    tn_placement *p;
    tn_placement_memory host;
    tn_error err = {0};
    REQUIRE(tn_placement_open(&p, tiny, NULL, &err) == TN_OK);
    tn_placement_info f = {.struct_size = sizeof f};
    CHECK(tn_placement_get_info(p, &f, &err) == TN_OK);
    CHECK(tn_placement_get_memory(p, -1, &host, &err) == TN_OK);
    const uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    CHECK_MSG(host.budget_bytes > 0 && host.budget_bytes <= all, "%llu of %llu bytes",
              (unsigned long long)host.budget_bytes, (unsigned long long)all);
    for (size_t i = 0; tn_hardware_name(i); i++)
        CHECK_MSG(strcmp(f.hardware, tn_hardware_name(i)) != 0, "this machine is no %s",
                  f.hardware);
    tn_placement_close(p);
}

TEST(placement_refuses_by_name)
{
    static const struct {
        const char *path, *hardware, *plan, *request;
        tn_status status;
        const char *word;
    } cases[] = {
        {"tests/data/nothing.gguf", NULL, NULL, NULL, TN_ENOENT, "nothing.gguf"},
        {"tests/harness.h", NULL, NULL, NULL, TN_EFORMAT, "harness.h"},
        {"tests/data/arch/llama/model-f16.gguf", "rtx9999", NULL, NULL, TN_ENOENT, "rtx3060-ddr4"},
        {"tests/data/arch/llama/model-f16.gguf", "tests/harness.h", NULL, NULL, TN_EFORMAT,
         "harness.h"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, "tests/none.json", NULL, TN_ENOENT,
         "none.json"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, "tests/harness.h", NULL, TN_EFORMAT,
         "harness.h"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "soon", TN_EARG, "--for"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "1+", TN_EARG, "--for"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "1+1@x", TN_EARG, "--for"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "0+0", TN_EARG, "--for"},
        {"llama-9000b:q4_k_m", NULL, NULL, NULL, TN_EARG, "llama-70b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_placement *p;
        tn_error err = {0};
        tn_placement_options opt = {.struct_size = sizeof opt,
                                    .hardware = cases[i].hardware,
                                    .plan_file = cases[i].plan,
                                    .request = cases[i].request};
        const tn_status s = tn_placement_open(&p, cases[i].path, &opt, &err);
        CHECK_MSG(s == cases[i].status && !p && strstr(err.msg, cases[i].word), "case %zu: %d '%s'",
                  i, (int)s, err.msg);
        if (!s) tn_placement_close(p);
    }
}

/* Every way to place can be asked for, and is then planned as it was predicted beside the best. */
TEST(candidates_by_name)
{
    tn_placement *best, *p;
    tn_error err = {0};
    tn_placement_options opt = {.struct_size = sizeof opt,
                                .hardware = "rtx3060-ddr4",
                                .request = "512+128@4096",
                                .n_ctx = 8192,
                                .vram = {4ull << 30}};
    REQUIRE(tn_placement_open(&best, "llama-8b:q4_k_m", &opt, &err) == TN_OK);
    bool fits;
    tn_placement_prediction want;
    size_t n = 0;
    for (; (opt.candidate = tn_placement_candidate(best, n, &fits, &want)); n++) {
        tn_placement_info f = {.struct_size = sizeof f};
        const tn_status s = tn_placement_open(&p, "llama-8b:q4_k_m", &opt, &err);
        CHECK_MSG(s == (fits ? TN_OK : TN_ENOMEM), "%s: %d", opt.candidate, (int)s);
        if (s) continue;
        CHECK(tn_placement_get_info(p, &f, &err) == TN_OK && f.feasible);
        CHECK_STR(f.chosen, opt.candidate);
        CHECK_NEAR(f.predicted.request_s, want.request_s, 0);
        CHECK_NEAR(f.predicted.step_s, want.step_s, 0);
        tn_placement_close(p);
    }
    CHECK_INT(n, 5);
    tn_placement_close(best);
    opt.candidate = "best";
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_EARG && strstr(err.msg, "'best'"));
    opt.candidate = "layers";
    opt.plan_file = "tests/none.json";
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_EARG && strstr(err.msg, "'layers'"));
    opt.plan_file = NULL;
    opt.candidate = "ffn-host";
    opt.vram[0] = 4096;
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_ENOMEM && strstr(err.msg, "does not fit"));
}

TEST(shipped_profiles_are_readable_and_say_their_sources)
{
    static const char *const figures[] = {"host.memory_bytes",    "host.cores",
                                          "host.matvec_gb_s",     "host.kv_gb_s",
                                          "host.prefill_tflops",  "host.op_us",
                                          "devices.memory_bytes", "devices.matvec_gb_s",
                                          "devices.kv_gb_s",      "devices.prefill_tflops",
                                          "devices.pinned_gb_s",  "devices.pageable_gb_s",
                                          "devices.crossing_us",  "devices.op_us",
                                          "devices.pcie",         "contended"};
    int n = 0;
    for (; tn_hardware_name((size_t)n); n++) {
        tn_profile p, q;
        tn_error err = {0};
        char *text, *again;
        REQUIRE(tn_hardware_json(tn_hardware_name((size_t)n), &text, &err) == TN_OK);
        CHECK_MSG(tn_profile_parse(&p, text, strlen(text), "x", &err) == TN_OK, "%s", err.msg);
        REQUIRE(tn_profile_shipped(&q, tn_hardware_name((size_t)n)));
        REQUIRE(tn_profile_json(&q, &again, heap, &err) == TN_OK);
        CHECK_STR(text, again);
        tn_free(heap, again);
        for (size_t j = 0; j < sizeof figures / sizeof *figures; j++) {
            int found = 0;
            for (int i = 0; i < p.n_sources; i++)
                found +=
                    strcmp(p.source[i].figure, figures[j]) == 0 && strlen(p.source[i].text) > 9;
            CHECK_MSG(found == 1, "%s: %d sources of %s", p.name, found, figures[j]);
        }
        CHECK(strstr(p.label, "assumed"));
        int cores = 0, of_nodes = 0;
        for (int i = 0; i < p.host.n_kinds; i++)
            cores += p.host.kind[i].cores;
        for (int i = 0; i < p.host.n_nodes; i++)
            of_nodes += p.host.node[i].cores;
        CHECK(cores == p.host.cores && of_nodes == p.host.cores && p.host.n_nodes >= 1);
        /* No copy is faster than its link: transfers, lanes, and 128 of 130 bits of payload. */
        for (int i = 0; i < p.n_devices; i++) {
            const tn_pci_link *k = &p.device[i].link;
            const double most = k->gt_s * 1e9 / 8 * k->width * 128 / 130;
            CHECK_MSG(p.device[i].pinned > 0.5 * most && p.device[i].pinned < most,
                      "%s: %.3g of %.3g bytes per second", p.name, p.device[i].pinned, most);
        }
        tn_hardware_string_free(text);
    }
    CHECK(n >= 5);
}

/* A machine with cores of two kinds, two nodes and a slow slot, through JSON and back; and what no
 * machine has. */
TEST(profiles_know_cores_nodes_and_links)
{
    static const struct {
        const char *from, *to, *word;
    } bad[] = {{"\"kinds\": [", "\"kinds\": [7, ", "kinds[0]"},
               {"\"processors\": 12", "\"processors\": -1", "kinds[0].processors"},
               {"\"mhz\": 5000", "\"mhz\": \"fast\"", "kinds[0].mhz"},
               {"\"mhz\": 5000", "\"ghz\": 5", "ghz"},
               {"\"nodes\": [", "\"nodes\": [[], ", "nodes[0]"},
               {"\"memory_bytes\": 1073741824", "\"memory_bytes\": -1", "nodes[1].memory_bytes"},
               {"\"gt_s\": 2.5", "\"gt_s\": -2.5", "pcie.gt_s"},
               {"\"width\": 4", "\"width\": 400", "pcie.width"},
               {"\"width\": 4", "\"lanes\": 4", "lanes"}};
    tn_profile p, q;
    char *text;
    tn_error err = {0};
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    p.host.n_kinds = p.host.n_nodes = 2;
    p.host.kind[0].cores = 6, p.host.kind[0].processors = 12, p.host.kind[0].mhz = 5000;
    p.host.kind[1].cores = 8, p.host.kind[1].processors = 8, p.host.kind[1].mhz = 3900;
    p.host.node[0].cores = 14, p.host.node[0].memory_bytes = 1ull << 35;
    p.host.node[1].cores = 0, p.host.node[1].memory_bytes = 1ull << 30;
    p.device[0].link = (tn_pci_link){2.5, 16, 4, 16};
    REQUIRE(tn_profile_json(&p, &text, heap, NULL) == TN_OK);
    CHECK_MSG(tn_profile_parse(&q, text, strlen(text), "x", &err) == TN_OK, "%s", err.msg);
    CHECK(memcmp(&p.host.kind, &q.host.kind, sizeof p.host.kind) == 0);
    CHECK(memcmp(&p.host.node, &q.host.node, sizeof p.host.node) == 0);
    CHECK(q.host.n_kinds == 2 && q.host.n_nodes == 2);
    CHECK(memcmp(&p.device[0].link, &q.device[0].link, sizeof p.device[0].link) == 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char broken[16384];
        const char *at = strstr(text, bad[i].from);
        REQUIRE(at && strlen(text) + 64 < sizeof broken);
        snprintf(broken, sizeof broken, "%.*s%s%s", (int)(at - text), text, bad[i].to,
                 at + strlen(bad[i].from));
        CHECK_MSG(tn_profile_parse(&q, broken, strlen(broken), "x", &err) == TN_EFORMAT &&
                      strstr(err.msg, bad[i].word),
                  "%s: '%s'", bad[i].to, err.msg);
    }
    tn_free(heap, text);
}

TEST_MAIN
