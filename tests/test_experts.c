/* How often experts are chosen: what a run counts is kept, the next plan puts those chosen most on
 * the device, and what comes out is the same. On the emulated device unless --cuda is given. */
#include "golden.h"
#include "plan_random.h"
#include "scarce.h"
#include "slow_machine.h"

#include "../engine/file.h"
#include "../engine/model.h"
#include "../engine/placement.h"
#include "../engine/plan_chain.h"
#include "../engine/simulate.h"

#include <sys/stat.h>
#include <unistd.h>

static const tn_allocator *const heap = &tn_default_allocator;
static const char *device = "emu";
static char dir[64];

static bool fresh_dir(void)
{
    snprintf(dir, sizeof dir, "%s/tn-experts-XXXXXX", P_tmpdir);
    return mkdtemp(dir) != NULL;
}

static void remove_dir(const char *hash)
{
    char *path = tn_experts_path(dir, hash, heap);
    if (path) remove(path);
    tn_free(heap, path);
    CHECK_MSG(rmdir(dir) == 0, "something is left in %s", dir);
}

/* ---- sets of experts ------------------------------------------------------------------------- */

/* One layer of experts under counts; its tensors do not matter. */
static bool one_layer(tn_shape *s, tn_shape_layer *l, int32_t n, int32_t used,
                      const uint64_t *count)
{
    const tn_expert_counts c = {heap, 1, n, (uint64_t *)(uintptr_t)count};
    *l = (tn_shape_layer){.n_expert = n, .n_units = n, .n_used = used};
    *s = (tn_shape){.a = heap, .n_layers = 1, .layer = l};
    return tn_shape_count(s, &c, NULL) == TN_OK;
}

/* Every set of `used` experts in turn, each as likely as the product of its odds. */
static void check_sets(const tn_shape_layer *l)
{
    const int n = l->n_expert, used = l->n_used;
    double all = 0, chance[16] = {0}, hits[17][17] = {{0}}, pmf[17];
    for (unsigned set = 0; set < 1u << n; set++) {
        double p = 1;
        if (__builtin_popcount(set) != used) continue;
        for (int e = 0; e < n; e++)
            if (set >> e & 1) p *= l->use->odds[e];
        all += p;
        for (int e = 0; e < n; e++)
            chance[e] += set >> e & 1 ? p : 0;
        for (int units = 0; units <= n; units++)
            hits[units][__builtin_popcount(set & ((1u << units) - 1))] += p;
    }
    for (int e = 0; e < n; e++)
        CHECK_MSG(fabs(chance[e] / all - l->use->chance[e]) <= 1e-9, "expert %d: %.12g, want %.12g",
                  e, chance[e] / all, l->use->chance[e]);
    for (int units = 0; units <= n; units++) {
        double mean = 0;
        tn_cost_hits(l, units, pmf);
        for (int h = 0; h <= used; h++) {
            CHECK_NEAR(pmf[h], hits[units][h] / all, 1e-9);
            mean += h * pmf[h];
        }
        CHECK_NEAR(mean, l->use->sum[units], 1e-9);
        CHECK_NEAR(tn_shape_hit_share(l, units), mean / used, 1e-9);
        CHECK_NEAR(tn_cost_met(l, 0, units, 1), mean, 1e-9);
    }
}

TEST(chances_are_those_of_the_counts)
{
    for (uint64_t i = 0; i < 40 && !tn_failures; i++) {
        uint64_t seed = 500 + i, count[12] = {0};
        tn_shape s;
        tn_shape_layer l;
        const int n = test_int(&seed, 2, 12), used = test_int(&seed, 1, n - 1);
        /* Tokens that like some experts far more than others. */
        for (int t = 0; t < 2000; t++)
            for (int u = 0, e = 0; u < used; u++, e++) {
                while (e < n - used + u && test_int(&seed, 0, 3 + 2 * (e % 3)) == 0)
                    e++;
                count[(5 * e + (int)i) % n]++;
            }
        if (n % 5 == 0) continue; /* 5 e would meet an expert twice */
        REQUIRE(one_layer(&s, &l, n, used, count));
        REQUIRE(l.use);
        double tokens = 0;
        for (int e = 0; e < n; e++)
            tokens += (double)count[e] / used;
        for (int r = 0; r < n; r++) {
            const double plain = (double)count[l.use->order[r]];
            CHECK_INT(l.use->rank[l.use->order[r]], r);
            CHECK(r == 0 || count[l.use->order[r]] <= count[l.use->order[r - 1]]);
            CHECK_NEAR(l.use->chance[r], (plain + 64.0 * used / n) / (tokens + 64), 1e-12);
        }
        check_sets(&l);
        /* Of many tokens together: each expert that any of them meets. */
        double met = 0;
        for (int e = 1; e < n; e++)
            met += 1 - pow(1 - l.use->chance[e], 9);
        CHECK_NEAR(tn_cost_met(&l, 1, n, 9), met, 1e-9);
        tn_free(heap, l.use);
    }
}

TEST(equal_counts_are_as_no_counts)
{
    static const uint64_t equal[8] = {900, 900, 900, 900, 900, 900, 900, 900};
    static const uint64_t few[8] = {40, 40, 3, 9, 1, 9, 1, 24};
    static const uint64_t absurd[8] = {900, 1, 1, 1,
                                       1,   1, 1, 1}; /* more often than there are tokens */
    tn_shape s;
    tn_shape_layer l;
    const tn_shape_layer plain = {.n_expert = 8, .n_units = 8, .n_used = 3};
    REQUIRE(one_layer(&s, &l, 8, 3, equal) && l.use);
    for (int units = 0; units <= 8; units++) {
        double a[4], b[4];
        tn_cost_hits(&l, units, a);
        tn_cost_hits(&plain, units, b);
        for (int h = 0; h < 4; h++)
            CHECK_NEAR(a[h], b[h], 1e-12);
        CHECK_NEAR(tn_cost_met(&l, 2, 8, 7), tn_cost_met(&plain, 2, 8, 7), 1e-12);
        if (units < 8) CHECK_INT(l.use->order[units], units);
    }
    tn_free(heap, l.use);
    CHECK(one_layer(&s, &l, 8, 3, few) && !l.use);
    CHECK(one_layer(&s, &l, 8, 3, absurd) && !l.use);
    CHECK(one_layer(&s, &l, 8, 8, equal) && !l.use); /* every token meets all of them */
    const tn_expert_counts other = {heap, 1, 7, NULL};
    CHECK_INT(tn_shape_count(&s, &other, NULL), TN_EARG);
}

/* ---- the file -------------------------------------------------------------------------------- */

TEST(what_was_counted_adds_up_and_fades)
{
    static const char hash[] = "0123456789abcdef";
    uint64_t n[6] = {1, 2, 3, 4, 5, 6};
    tn_expert_counts c = {heap, 2, 3, n}, got;
    bool broken = true;
    tn_error err = {0};
    REQUIRE(fresh_dir());
    char *path = tn_experts_path(dir, hash, heap);
    REQUIRE(path && strstr(path, hash));
    CHECK_INT(tn_experts_read(&got, path, hash, heap, &err), TN_ENOENT);
    for (int i = 1; i <= 2; i++) {
        REQUIRE(tn_experts_keep(&c, path, hash, &broken, heap, &err) == TN_OK && !broken);
        REQUIRE(tn_experts_read(&got, path, hash, heap, &err) == TN_OK);
        CHECK(got.n_layers == 2 && got.n_expert == 3);
        for (int e = 0; e < 6; e++)
            CHECK_INT(got.n[e], n[e] * i);
        tn_expert_counts_free(&got);
    }
    n[3] = 3ull * TN_EXPERTS_MOST; /* the second layer fades, the first does not */
    REQUIRE(tn_experts_keep(&c, path, hash, &broken, heap, &err) == TN_OK);
    REQUIRE(tn_experts_read(&got, path, hash, heap, &err) == TN_OK);
    CHECK_INT(got.n[0], 3);
    CHECK(got.n[3] < TN_EXPERTS_MOST && got.n[3] > TN_EXPERTS_MOST / 2);
    CHECK_INT(got.n[4], 15 / 4);
    tn_expert_counts_free(&got);
    CHECK_INT(tn_experts_read(&got, path, "another", heap, &err), TN_EFORMAT);
    CHECK(strstr(err.msg, path));
    tn_free(heap, path);
    remove_dir(hash);
}

TEST(a_broken_file_is_replaced)
{
    static const char hash[] = "0123456789abcdef";
    static const char *const texts[] = {
        "",
        "{",
        "{\"format\":\"tenon-experts-1\",\"model\":\"0123456789abcdef\",\"layers\":[]}",
        "{\"format\":\"tenon-experts-1\",\"model\":\"0123456789abcdef\",\"layers\":[[1,2],[1]]}",
        "{\"format\":\"tenon-experts-1\",\"model\":\"0123456789abcdef\",\"layers\":[[1,-2],[1,1]]}",
        "{\"format\":\"tenon-experts-1\",\"model\":\"0123456789abcdef\",\"layers\":[[1,1e3],[1,1]]"
        "}",
        "{\"format\":\"tenon-experts-1\",\"model\":\"0123456789abcdef\",\"layers\":[[1,99999999],["
        "1,1]]}",
        "{\"format\":\"tenon-experts-2\",\"model\":\"0123456789abcdef\",\"layers\":[[1,1],[1,1]]}",
        "{\"format\":\"tenon-experts-1\",\"model\":\"other\",\"layers\":[[1,1],[1,1]]}",
        "{\"format\":\"tenon-experts-1\",\"model\":\"0123456789abcdef\",\"layers\":[[1,1,1]]}"};
    uint64_t n[4] = {1, 2, 3, 4};
    const tn_expert_counts c = {heap, 2, 2, n};
    REQUIRE(fresh_dir());
    char *path = tn_experts_path(dir, hash, heap);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        tn_expert_counts got;
        tn_error err = {0};
        bool broken = false;
        REQUIRE(tn_file_replace(path, texts[i], heap, NULL) == TN_OK);
        const tn_status s = tn_experts_read(&got, path, hash, heap, &err);
        CHECK_MSG(s == (i == 9 ? TN_OK : TN_EFORMAT), "'%s': %d %s", texts[i], (int)s, err.msg);
        if (!s) tn_expert_counts_free(&got);
        CHECK_INT(tn_experts_keep(&c, path, hash, &broken, heap, NULL), TN_OK);
        CHECK(broken);
        CHECK_INT(tn_experts_read(&got, path, hash, heap, NULL), TN_OK);
        CHECK(got.n && memcmp(got.n, n, sizeof n) == 0);
        tn_expert_counts_free(&got);
    }
    tn_free(heap, path);
    remove_dir(hash);
}

TEST(memory_may_be_short)
{
    static const char hash[] = "0123456789abcdef";
    uint64_t n[4] = {900, 2, 300, 4};
    const tn_expert_counts c = {heap, 2, 2, n};
    bool broken;
    REQUIRE(fresh_dir());
    char *path = tn_experts_path(dir, hash, heap);
    tn_status s = TN_ENOMEM;
    for (long i = 0; s && i < 100 && !tn_failures; i++) {
        scarce mem = {i, 0};
        const tn_allocator few = scarce_allocator(&mem);
        s = tn_experts_keep(&c, path, hash, &broken, &few, NULL);
        CHECK(s == TN_OK || s == TN_ENOMEM);
        CHECK_INT(mem.live, 0);
    }
    CHECK_INT(s, TN_OK);
    tn_free(heap, path);
    remove_dir(hash);
}

/* Fine-tunes have the tensors of the model that they are made from, and their own keys. */
TEST(another_key_is_another_model)
{
    static const char *const path = "tests/data/arch/qwen3moe/model-f16.gguf";
    char *bytes, shape[2][17], header[2][17];
    size_t n;
    tn_gguf *g = NULL;
    REQUIRE(tn_file_read(path, 64 << 20, "a model", &bytes, &n, heap, NULL) == TN_OK);
    for (int i = 0; i < 2; i++) {
        REQUIRE(tn_gguf_parse(&g, bytes, n, path, NULL, NULL) == TN_OK);
        tn_shape_hash(g, shape[i]);
        tn_header_hash(g, header[i]);
        const tn_gguf_key *k = tn_gguf_find(g, "qwen3moe.context_length");
        REQUIRE(k);
        bytes[k->data - (const uint8_t *)bytes] ^= 1;
        tn_gguf_close(g);
    }
    CHECK_STR(shape[0], shape[1]);
    CHECK(strcmp(header[0], header[1]) != 0 && strcmp(header[0], shape[0]) != 0);
    tn_free(heap, bytes);
}

/* ---- plans ----------------------------------------------------------------------------------- */

TEST(those_chosen_most_are_on_the_device)
{
    tn_shape plain, counted;
    tn_profile p;
    tn_planned a, b;
    char *text = NULL;
    uint64_t seed = 7;
    REQUIRE(test_shape(&plain, &model_30b_a3b, 0) == TN_OK);
    REQUIRE(test_shape(&counted, &model_30b_a3b, 0) == TN_OK && test_count(&counted, &seed, 3));
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    const tn_constraints c = {.n_ctx = 32768, .request = {0, 2048, 256}};
    REQUIRE(tn_plan_make(&a, &plain, &p, &c, heap, NULL) == TN_OK);
    REQUIRE(tn_plan_make(&b, &counted, &p, &c, heap, NULL) == TN_OK);
    REQUIRE(a.optimum.feasible && b.optimum.feasible);
    CHECK_MSG(b.optimum.predicted.request_s < 0.97 * a.optimum.predicted.request_s,
              "%g s with counters, %g s without", b.optimum.predicted.request_s,
              a.optimum.predicted.request_s);
    CHECK_MSG(b.gap <= 1e-3, "gap %g", b.gap);
    int split = 0;
    for (int l = 0; l < counted.n_layers; l++) {
        const tn_shape_layer *y = &counted.layer[l];
        const int32_t units = b.optimum.layer[l].units;
        if (units == 0 || units == y->n_units) continue;
        double sum = 0;
        for (int32_t r = 0; r < units; r++)
            sum += y->use->chance[r];
        CHECK_NEAR(tn_shape_hit_share(y, units), sum / y->n_used, 1e-12);
        CHECK(tn_shape_hit_share(y, units) > (double)units / y->n_units);
        split++;
    }
    CHECK_MSG(split > 20, "%d split layers", split);
    /* The prediction is what a simulation says in which tokens choose like that. */
    tn_cost k;
    tn_simulated sim;
    tn_cost_init(&k, &counted, &p, &b.c, NULL);
    REQUIRE(tn_simulate_request(&sim, &b.optimum, &k, 3, heap, NULL) == TN_OK);
    /* Of a batch bound by arithmetic, experts take their share of the choices. */
    const tn_shape_layer *first = &counted.layer[0];
    const int32_t half = first->n_units / 2;
    const double part = tn_cost_ffn_part(&k, 0, TN_HOST, 0, half, 1 << 20) /
                        tn_cost_ffn_part(&k, 0, TN_HOST, 0, first->n_units, 1 << 20);
    CHECK(tn_shape_hit_share(first, half) > 0.55);
    CHECK_NEAR(part, tn_shape_hit_share(first, half), 0.01);
    CHECK_MSG(fabs((sim.prefill_s + sim.decode_s) / b.optimum.predicted.request_s - 1) <= 0.03,
              "predicted %g s, simulated %g s", b.optimum.predicted.request_s,
              sim.prefill_s + sim.decode_s);
    REQUIRE(tn_planned_json(&b, &counted, &p, &text, heap, NULL) == TN_OK);
    json_t *doc = json_loads(text, 0, NULL);
    CHECK_INT(json_array_size(json_object_get(doc, "experts")), 48);
    int shares = 0;
    const json_t *units = json_object_get(doc, "units");
    for (size_t i = 0; i < json_array_size(units); i++)
        shares += json_is_real(json_object_get(json_array_get(units, i), "hit_share"));
    CHECK_INT(shares, 48);
    json_decref(doc);
    /* The file replays with its own counts, whatever else is known. */
    tn_planned again;
    tn_shape other;
    tn_error err = {0};
    REQUIRE(test_shape(&other, &model_30b_a3b, 0) == TN_OK);
    CHECK_INT(tn_plan_parse_experts(&other, text, strlen(text), "x", &err), TN_OK);
    REQUIRE(tn_plan_parse(&again, text, strlen(text), "x", &other, &p, &c, heap, &err) == TN_OK);
    CHECK(again.plan.predicted.request_s == b.plan.predicted.request_s);
    for (int l = 0; l < 48; l++)
        CHECK(memcmp(other.layer[l].use->order, counted.layer[l].use->order,
                     128 * sizeof(int32_t)) == 0);
    tn_planned_free(&again);
    tn_shape_free(&other);
    tn_free(heap, text);
    tn_planned_free(&a);
    tn_planned_free(&b);
    tn_shape_free(&plain);
    tn_shape_free(&counted);
}

TEST(plans_with_broken_counts_are_refused)
{
    static const char *const texts[] = {"{\"experts\":7}", "{\"experts\":[[1]]}",
                                        "{\"experts\":[[1],[2]]}", "{\"experts\":[[-1,1],[1,1]]}",
                                        "{\"experts\":[{},[1,1]]}"};
    uint64_t seed = 11;
    tn_shape s;
    test_model m = random_model(&seed, 2, true);
    m.experts = 2, m.used = 1;
    REQUIRE(test_shape(&s, &m, 16) == TN_OK);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        tn_error err = {0};
        const tn_status status =
            tn_plan_parse_experts(&s, texts[i], strlen(texts[i]), "x.json", &err);
        CHECK_MSG(status == TN_EFORMAT && strstr(err.msg, "x.json") && strstr(err.msg, "experts"),
                  "%s: %d '%s'", texts[i], (int)status, err.msg);
    }
    CHECK_INT(tn_plan_parse_experts(&s, "{\"experts\":[]}", 14, "x", NULL), TN_OK);
    CHECK_INT(tn_plan_parse_experts(&s, "{}", 2, "x", NULL), TN_OK);
    CHECK(!s.layer[0].use && !s.layer[1].use);
    tn_shape_free(&s);
}

/* ---- a run ----------------------------------------------------------------------------------- */

enum { page = 16, n_ctx = 96, n_experts = 8 };

static const char *const model = "tests/data/arch/qwen3moe/model-f16.gguf";

static tn_placement *place(uint64_t vram, bool fixed, const char *cache_dir)
{
    tn_placement *p = NULL;
    tn_error err = {0};
    char *machine = slow_machine();
    const tn_placement_options o = {.struct_size = sizeof o,
                                    .hardware = machine,
                                    .request = "8+8",
                                    .n_ctx = n_ctx,
                                    .n_batch = page,
                                    .kv = TN_KV_F32,
                                    .vram = {vram},
                                    .fixed = fixed,
                                    .page_size = page,
                                    .cache_dir = cache_dir};
    if (tn_placement_open(&p, model, &o, &err)) FAIL("%s", err.msg);
    free(machine);
    return p;
}

/* A plan that knew no counters is replayed as it was, whatever has been counted since. */
static void check_replay(const char *plan)
{
    char *machine = slow_machine();
    char path[100];
    tn_placement *p;
    tn_error err = {0};
    snprintf(path, sizeof path, "%s/plan.json", dir);
    const tn_placement_options o = {.struct_size = sizeof o,
                                    .hardware = machine,
                                    .kv = TN_KV_F32,
                                    .page_size = page,
                                    .cache_dir = dir,
                                    .plan_file = path};
    REQUIRE(tn_file_replace(path, plan, heap, NULL) == TN_OK);
    if (tn_placement_open(&p, model, &o, &err)) FAIL("%s", err.msg);
    CHECK(p && !p->shape.layer[0].use);
    tn_placement_close(p);
    unlink(path);
    free(machine);
}

static int split_layers(const tn_placement *p)
{
    int n = 0;
    for (int32_t l = 0; l < p->shape.n_layers; l++) {
        const int32_t units = p->planned.plan.layer[l].units;
        n += units > 0 && units < n_experts;
    }
    return n;
}

/* A plan under which experts of two layers at least are on either side. */
static tn_placement *split_place(bool fixed, const char *cache_dir)
{
    for (uint64_t vram = 200 << 10; vram < 8 << 20; vram += 4 << 10) {
        tn_placement *p = place(vram, fixed, cache_dir);
        if (!p) return NULL;
        if (p->planned.plan.feasible && split_layers(p) >= 2 && (fixed || p->planned.plan.dropping))
            return p;
        tn_placement_close(p);
    }
    FAIL("no plan splits experts");
    return NULL;
}

static void keep_warning(void *line, tn_log_level level, const char *text)
{
    if (level == TN_LOG_WARN) snprintf(line, 300, "%s", text);
}

/* Logits of all tokens one after the other, after a batch; counts[3][n_experts]. */
static void check_run(const golden *g, const tn_placement *p, size_t limit, const char *cache_dir,
                      char *warning, uint64_t *counts, tn_stats *stats)
{
    run r = {NULL, NULL, NULL};
    tn_error err = {0};
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .log = keep_warning,
                                  .log_user = warning,
                                  .cache_dir = cache_dir,
                                  .device = p ? device : NULL,
                                  .vram_limits = {limit}};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page};
    tn_status s = tn_engine_new(&r.engine, &eo, &err);
    if (!s) s = tn_model_open(&r.model, r.engine, g->path, &mo, &err);
    if (!s) s = tn_context_new(&r.ctx, r.model, &co, &err);
    for (int32_t i = 0; i < g->n && i < n_ctx && !s && !tn_failures;) {
        const int32_t n = i ? 1 : 11;
        s = tn_context_eval(r.ctx, g->tokens + i, n, &err);
        if (s) break;
        i += n;
        const distance d =
            compare(tn_context_logits(r.ctx), g->logits + (size_t)(i - 1) * (size_t)g->n_vocab,
                    (size_t)g->n_vocab);
        CHECK_MSG(d.max_abs <= g->tolerance, "token %d: off by %g", i, d.max_abs);
    }
    CHECK_MSG(s == TN_OK, "%s", err.msg);
    for (int32_t l = 0; l < 3 && !s; l++)
        CHECK_INT(tn_context_experts(r.ctx, l, counts + l * n_experts, n_experts, NULL), TN_OK);
    stats->struct_size = sizeof *stats;
    if (!s) CHECK_INT(tn_context_stats(r.ctx, stats, NULL), TN_OK);
    run_close(&r);
}

TEST(counters_of_a_run_feed_the_next_plan)
{
    golden g;
    uint64_t counts[3 * n_experts], before[3 * n_experts] = {0};
    char warning[300] = "";
    tn_expert_counts kept;
    tn_stats st;
    if (!have_device(device) || !golden_load(&g, "qwen3moe")) return;
    REQUIRE(fresh_dir());
    tn_placement *p = split_place(true, dir);
    REQUIRE(p);
    CHECK(!p->shape.layer[0].use);
    char *path = tn_experts_path(dir, p->shape.header, heap), *plan = NULL;
    REQUIRE(tn_placement_json(p, &plan, NULL) == TN_OK);
    /* The host alone counts, then a split model; what they counted adds up. */
    for (int i = 0; i < 2 && !tn_failures; i++) {
        check_run(&g, i ? p : NULL, 0, dir, warning, counts, &st);
        REQUIRE(tn_experts_read(&kept, path, p->shape.header, heap, NULL) == TN_OK);
        for (int e = 0; e < 3 * n_experts; e++)
            CHECK_INT(kept.n[e], before[e] + counts[e]);
        memcpy(before, kept.n, sizeof before);
        tn_expert_counts_free(&kept);
    }
    CHECK_STR(warning, "");
    /* Favourites that the file's order does not have: odd experts, the last ones first. */
    uint64_t n[3 * n_experts];
    for (int e = 0; e < 3 * n_experts; e++)
        n[e] = 1000u + 10u * (uint64_t)(e % n_experts) + (e % 2 ? 2000 : 0);
    tn_expert_counts c = {heap, 3, n_experts, n};
    char *text;
    REQUIRE(tn_experts_json(&c, p->shape.header, &text, heap, NULL) == TN_OK);
    REQUIRE(tn_file_replace(path, text, heap, NULL) == TN_OK);
    tn_free(heap, text);
    check_replay(plan);
    tn_placement_string_free(p, plan);
    tn_placement_close(p);
    for (int fixed = 0; fixed < 2 && !tn_failures; fixed++) {
        static const int32_t order[n_experts] = {7, 5, 3, 1, 6, 4, 2, 0};
        p = split_place(fixed, dir);
        REQUIRE(p && p->shape.layer[1].use);
        CHECK(memcmp(p->shape.layer[1].use->order, order, sizeof order) == 0);
        tn_placement_info f = {.struct_size = sizeof f};
        CHECK_INT(tn_placement_get_info(p, &f, NULL), TN_OK);
        CHECK(f.experts_counted && f.hit_share > 0 && f.hit_share < 1);
        check_run(&g, p, 0, NULL, warning, counts, &st);
        uint64_t there = 0, ffns = 0;
        for (int32_t l = 0; l < 3; l++)
            ffns += p->shape.layer[l].ffn_bytes;
        /* What moves has taken all the room there was: half of it is left. */
        if (!fixed) CHECK_INT(st.experts_on_device, st.experts_chosen);
        if (!fixed) check_run(&g, p, st.device_bytes_held - ffns / 2, NULL, warning, counts, &st);
        for (int32_t l = 0; l < 3; l++)
            for (int32_t r = 0; r < p->planned.plan.layer[l].units; r++)
                there += counts[l * n_experts + order[r]];
        if (fixed) CHECK_INT(st.experts_on_device, there);
        CHECK(st.experts_on_device > 0 && st.experts_on_device < st.experts_chosen);
        tn_placement_close(p);
    }
    /* A file that is none does no harm and is named; the next run replaces it. */
    REQUIRE(tn_file_replace(path, "rubbish", heap, NULL) == TN_OK);
    p = split_place(true, dir);
    REQUIRE(p);
    CHECK(!p->shape.layer[0].use && p->planned.n_warnings == 1 &&
          strstr(p->planned.warning[0], "experts"));
    check_run(&g, p, 0, dir, warning, counts, &st);
    CHECK_MSG(strstr(warning, path), "warned: '%s'", warning);
    REQUIRE(tn_experts_read(&kept, path, p->shape.header, heap, NULL) == TN_OK);
    CHECK(memcmp(kept.n, counts, sizeof counts) == 0);
    tn_expert_counts_free(&kept);
    tn_free(heap, path);
    remove_dir(p->shape.header);
    /* A directory that cannot be written is said, and nothing else. */
    warning[0] = 0;
    check_run(&g, p, 0, dir, warning, counts, &st);
    CHECK_MSG(strstr(warning, "not kept"), "warned: '%s'", warning);
    tn_placement_close(p);
    golden_free(&g);
}

int main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) device = "cuda";
    return tn_test_main(argc, argv);
}
