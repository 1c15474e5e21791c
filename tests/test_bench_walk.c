/* The benchmark's walk to growing depths leaves a context as if it had been filled to that depth.
 */
#include "golden.h"

#include "../bench/measure.h"

static const char *const models[] = {"llama", "gemma3", "qwen3moe"};

/* Logits after one more token at `depth`, in a context filled in one go. */
static float *filled(const char *path, const run_options *o, const tn_bench_tokens *tokens,
                     int32_t depth)
{
    run r;
    tn_error err = {0};
    double seconds;
    if (!run_open(&r, path, o)) return NULL;
    const size_t bytes = (size_t)run_vocab(&r) * sizeof(float);
    float *logits = malloc(bytes);
    tn_status s = depth ? tn_bench_prompt(r.ctx, tokens, depth, &seconds, &err) : TN_OK;
    if (!s) s = tn_bench_prompt(r.ctx, tokens, 1, &seconds, &err);
    CHECK_MSG(!s && logits, "%s: filling to %d: %s", path, depth, err.msg);
    if (!s && logits) memcpy(logits, tn_context_logits(r.ctx), bytes);
    run_close(&r);
    return logits;
}

/* A test at the depth the context has, as the sweep runs it, and back. */
static tn_status test_here(run *r, const tn_bench_tokens *tokens, int32_t depth, tn_error *err)
{
    double seconds;
    tn_status s = tn_bench_prompt(r->ctx, tokens, 9, &seconds, err);
    if (!s) s = tn_bench_generate(r->ctx, tokens, 5, &seconds, NULL, err);
    return s ? s : tn_bench_walk(r->ctx, tokens, depth, err);
}

static void walk(const char *name, const run_options *o)
{
    static const int32_t depths[] = {0, 3, 16, 40, 41, 100};
    char path[300];
    run r;
    tn_error err = {0};
    double seconds;
    snprintf(path, sizeof path, "tests/data/arch/%s/model-f16.gguf", name);
    if (!run_open(&r, path, o)) return;
    const int32_t n_vocab = run_vocab(&r);
    tn_bench_tokens tokens;
    REQUIRE(tn_bench_tokens_make(&tokens, r.model, NULL, 0, 1, &err) == TN_OK);
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        tn_status s = tn_bench_walk(r.ctx, &tokens, depths[i], &err);
        if (!s) s = test_here(&r, &tokens, depths[i], &err);
        if (!s) s = test_here(&r, &tokens, depths[i], &err);
        CHECK_INT(tn_context_length(r.ctx), depths[i]);
        if (!s) s = tn_bench_prompt(r.ctx, &tokens, 1, &seconds, &err);
        CHECK_MSG(!s, "%s at %d: %s", name, depths[i], err.msg);
        float *want = filled(path, o, &tokens, depths[i]);
        if (s || !want) {
            free(want);
            break;
        }
        const distance d = compare(tn_context_logits(r.ctx), want, n_vocab);
        CHECK_MSG(d.max_abs <= 1e-4, "%s at %d: logits differ by %g", name, depths[i], d.max_abs);
        free(want);
    }
    free(tokens.at);
    run_close(&r);
}

TEST(walked_is_filled)
{
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        walk(models[m], &(run_options){.kv = TN_KV_F32, .page_size = 16, .n_batch = 16});
        walk(models[m], &(run_options){.kv = TN_KV_F32, .threads = 1});
    }
}

/* The tokens of a position never depend on how it was reached. */
TEST(tokens_of_positions)
{
    int32_t ids[] = {5, 6, 7};
    const tn_bench_tokens t = {ids, 3};
    CHECK_INT(tn_bench_token(&t, 0), 5);
    CHECK_INT(tn_bench_token(&t, 2), 7);
    CHECK_INT(tn_bench_token(&t, 3), 5);
    CHECK_INT(tn_bench_token(&t, 5000000000), 5 + 5000000000 % 3);
}

TEST(text_or_random_tokens)
{
    run r;
    tn_error err = {0};
    static const char text[] = "Once upon a time there was a king.";
    if (!run_open(&r, "tests/data/arch/llama/model-f16.gguf", &(run_options){0})) return;
    tn_bench_tokens a, b, c, d;
    REQUIRE(!tn_bench_tokens_make(&a, r.model, text, strlen(text), 1, &err));
    REQUIRE(!tn_bench_tokens_make(&b, r.model, NULL, 0, 1, &err));
    REQUIRE(!tn_bench_tokens_make(&c, r.model, NULL, 0, 1, &err));
    REQUIRE(!tn_bench_tokens_make(&d, r.model, NULL, 0, 2, &err));
    CHECK(a.n > 1 && a.n <= strlen(text) + 2);
    CHECK(b.n == c.n && memcmp(b.at, c.at, b.n * sizeof *b.at) == 0);
    CHECK(memcmp(b.at, d.at, b.n * sizeof *b.at) != 0);
    for (size_t i = 0; i < b.n; i++)
        CHECK(b.at[i] >= 0 && b.at[i] < run_vocab(&r));
    free(a.at);
    free(b.at);
    free(c.at);
    free(d.at);
    run_close(&r);
}

TEST_MAIN
