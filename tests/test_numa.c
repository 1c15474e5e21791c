/* Several NUMA nodes, made up on whatever machine this is: which thread reads which rows, and that
 * nothing of it changes a bit. The pool's own part is in test_pool. */
#include "golden.h"

#include "../engine/engine.h"
#include "../engine/load.h"

static const tn_pool_nodes two_nodes = {2, {0, 2, 3}, {{{0}}}};

/* As run_logits, on an engine whose pool has two nodes. */
static float *logits_on_two_nodes(const char *path, const golden *g, bool step)
{
    run r = {0};
    tn_error err = {0};
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 3};
    const size_t count = (size_t)g->n * (size_t)g->n_vocab;
    float *out = calloc(count, sizeof *out);
    rows_sink sink = {out, g->n_vocab};
    tn_status s = out ? tn_engine_new(&r.engine, &eo, &err) : TN_ENOMEM;
    if (!s) {
        tn_pool_free(r.engine->pool);
        s = tn_pool_new(&r.engine->pool, 3, &two_nodes, &r.engine->a, &err);
    }
    if (!s) s = tn_model_open(&r.model, r.engine, path, NULL, &err);
    if (!s) s = tn_context_new(&r.ctx, r.model, NULL, &err);
    if (!s && !step) s = tn_context_eval_all(r.ctx, g->tokens, g->n, 0, keep_rows, &sink, &err);
    for (int32_t i = 0; i < g->n && !s && step; i++) {
        s = tn_context_eval(r.ctx, g->tokens + i, 1, &err);
        if (!s) keep_rows(&sink, i, 1, tn_context_logits(r.ctx));
    }
    if (s) FAIL("%s: %s", path, err.msg);
    run_close(&r);
    return out;
}

static void same_bits(const char *path, const golden *g)
{
    for (int step = 0; step < 2; step++) {
        const run_options o = {.threads = 3, .step = step};
        float *want = run_logits(path, &o, g->tokens, g->n, g->n_vocab);
        float *got = logits_on_two_nodes(path, g, step);
        CHECK_MSG(want && got &&
                      memcmp(want, got, (size_t)g->n * (size_t)g->n_vocab * sizeof *got) == 0,
                  "%s, %s: other logits", path, step ? "token by token" : "in batches");
        free(want);
        free(got);
    }
}

TEST(nodes_do_not_change_a_bit)
{
    golden g;
    REQUIRE(golden_load(&g, "llama"));
    same_bits(g.path, &g);
    same_bits("tests/data/quant/Q4_K_S.gguf", &g);
    golden_free(&g);
    REQUIRE(golden_load(&g, "qwen3moe"));
    same_bits(g.path, &g);
    golden_free(&g);
}

/* Two matrices of 48 and 30 rows in jobs of 16, and one whose rows are nobody's: threads 0 and 1
 * own the first two thirds of the rows, thread 2 the others. */
TEST(rows_are_read_by_those_who_own_them)
{
    static const size_t want[] = {0, 1, 3, 2, 4, 5}, as_they_are[] = {0, 1, 2, 3, 4, 5};
    static const struct tn_load_job jobs[] = {
        {.row0 = 0, .n_rows = 16, .rows = 48}, {.row0 = 16, .n_rows = 16, .rows = 48},
        {.row0 = 32, .n_rows = 16, .rows = 48}, {.row0 = 0, .n_rows = 16, .rows = 30},
        {.row0 = 16, .n_rows = 14, .rows = 30}, {.n_rows = 16}};
    size_t order[6];
    tn_pool *p = NULL;
    REQUIRE(tn_pool_new(&p, 3, &two_nodes, &tn_default_allocator, NULL) == TN_OK);
    CHECK_INT(tn_pool_nodes_count(p), 2);
    CHECK(tn_pool_node_first(p, 0, 30) == 0 && tn_pool_node_first(p, 1, 30) == 20 &&
          tn_pool_node_first(p, 2, 30) == 30);
    tn_load_order(p, jobs, 6, order);
    CHECK(memcmp(order, want, sizeof want) == 0);
    tn_pool_free(p);
    REQUIRE(tn_pool_new(&p, 3, NULL, &tn_default_allocator, NULL) == TN_OK);
    CHECK_INT(tn_pool_nodes_count(p), 1);
    tn_load_order(p, jobs, 6, order);
    CHECK(memcmp(order, as_they_are, sizeof order) == 0);
    tn_pool_free(p);
}

TEST_MAIN
