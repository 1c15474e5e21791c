/* How many threads decode uses: made-up machines, and a context that lets some
 * of its threads rest. */
#include "golden.h"

#include "../engine/engine.h"
#include "../engine/tune.h"

/* Seconds of a token with n threads. */
typedef double (*machine)(int n);

static double every_core_counts(int n)
{
    return 1.0 / n;
}

/* Memory is saturated by six threads, and each further one costs. */
static double six_saturate(int n)
{
    return (n < 6 ? 6.0 / n : 1) + 0.02 * n;
}

static double one_is_best(int n)
{
    return 1 + 0.1 * n;
}

static double same_with_any(int n)
{
    (void)n;
    return 1;
}

/* Runs 60 tokens; *extra receives what the trials cost, in tokens of all threads. Noisy: every
 * third token takes four times as long, and the first of each count a little longer. */
static int settled_at(machine m, int threads, bool noisy, double *extra)
{
    tn_tune t;
    tn_tune_begin(&t, threads);
    *extra = 0;
    for (int i = 0; i < 60; i++) {
        const double s = m(t.threads);
        if (i < 2) CHECK_INT(t.threads, threads);
        if (s > m(threads)) *extra += s / m(threads) - 1;
        tn_tune_note(&t, s * (!noisy ? 1 : t.n_tokens == 0 ? 1.15 : i % 3 == 1 ? 4 : 1));
    }
    CHECK(t.settled);
    return t.threads;
}

TEST(the_fastest_count_is_found)
{
    double extra;
    CHECK_INT(settled_at(every_core_counts, 16, false, &extra), 16);
    CHECK(extra < 0.5); /* one token at three quarters */
    CHECK_INT(settled_at(six_saturate, 16, false, &extra), 6);
    CHECK(extra < 1);
    CHECK_INT(settled_at(one_is_best, 16, false, &extra), 1);
    CHECK_INT(settled_at(same_with_any, 16, false, &extra), 16);
}

TEST(a_disturbed_token_decides_nothing)
{
    double extra;
    CHECK_INT(settled_at(every_core_counts, 8, true, &extra), 8);
    CHECK_INT(settled_at(same_with_any, 8, true, &extra), 8);
    CHECK_INT(settled_at(six_saturate, 16, true, &extra), 6);
    tn_tune t;
    tn_tune_begin(&t, 16);
    for (int i = 0; i < 60; i++) /* only tokens with all threads are disturbed */
        tn_tune_note(&t, every_core_counts(t.threads) * (t.threads == 16 && i % 2 ? 4 : 1));
    CHECK_INT(t.threads, 16);
}

TEST(few_threads_are_left_alone)
{
    double extra;
    for (int n = 1; n < 4; n++) {
        tn_tune t;
        tn_tune_begin(&t, n);
        CHECK(t.settled);
        CHECK_INT(settled_at(one_is_best, n, false, &extra), n);
    }
}

/* Six threads on however many cores this machine has: the ninth token is the first that tries
 * fewer. The logits are those of an engine that was told its threads. */
TEST(tuning_does_not_change_a_bit)
{
    golden g;
    run r = {0};
    tn_error err = {0};
    REQUIRE(golden_load(&g, "llama"));
    const run_options o = {.threads = 6, .step = true};
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 6};
    float *want = run_logits(g.path, &o, g.tokens, g.n, g.n_vocab);
    REQUIRE(want && tn_engine_new(&r.engine, &eo, &err) == TN_OK);
    CHECK(!r.engine->tunes); /* the number was asked for */
    r.engine->tunes = true;
    REQUIRE(tn_model_open(&r.model, r.engine, g.path, NULL, &err) == TN_OK);
    REQUIRE(tn_context_new(&r.ctx, r.model, NULL, &err) == TN_OK);
    for (int32_t i = 0; i < 9; i++) {
        REQUIRE(tn_context_eval(r.ctx, g.tokens + i, 1, &err) == TN_OK);
        CHECK_INT(tn_pool_in_use(r.engine->pool), i < 8 ? 6 : 4);
        CHECK_MSG(memcmp(tn_context_logits(r.ctx), want + (size_t)i * (size_t)g.n_vocab,
                         (size_t)g.n_vocab * sizeof *want) == 0,
                  "token %d has other logits with %d threads", i, tn_pool_in_use(r.engine->pool));
    }
    REQUIRE(tn_context_eval(r.ctx, g.tokens, 3, &err) == TN_OK); /* prompts use them all */
    CHECK_INT(tn_pool_in_use(r.engine->pool), 6);
    run_close(&r);
    free(want);
    golden_free(&g);
}

TEST_MAIN
