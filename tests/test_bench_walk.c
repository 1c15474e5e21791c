/* The benchmark's walk to growing depths leaves a context as if it had been filled to that depth.
 */
#include "golden.h"

#include "../bench/measure.h"

static const char *const models[] = {"llama", "gemma3", "qwen3moe"};

static const int32_t depths[] = {0, 3, 16, 40, 41, 100};
enum { n_depths = sizeof depths / sizeof *depths };

/* Logits after one more token at depth number `to`, in a fresh context: filled in one go, or in the
 * steps of the walk. */
static float *filled(const char *path, const run_options *o, const tn_bench_tokens *tokens, int to,
                     bool steps)
{
    run r;
    tn_error err = {0};
    double seconds;
    if (!run_open(&r, path, o)) return NULL;
    const size_t bytes = (size_t)run_vocab(&r) * sizeof(float);
    float *logits = malloc(bytes);
    tn_status s = TN_OK;
    for (int i = steps ? 1 : to; i <= to && !s; i++) {
        const int32_t n = depths[i] - tn_context_length(r.ctx);
        if (n) s = tn_bench_prompt(r.ctx, tokens, n, &seconds, &err);
    }
    if (!s) s = tn_bench_prompt(r.ctx, tokens, 1, &seconds, &err);
    CHECK_MSG(!s && logits, "%s: filling to %d: %s", path, depths[to], err.msg);
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

static void check_logits(const char *path, const run_options *o, const tn_bench_tokens *tokens,
                         const run *r, int to, bool steps, double most)
{
    float *want = filled(path, o, tokens, to, steps);
    if (!want) return;
    const distance d = compare(tn_context_logits(r->ctx), want, run_vocab(r));
    CHECK_MSG(d.max_abs <= most, "%s at %d%s: logits differ by %g", path, depths[to],
              steps ? " in steps" : "", d.max_abs);
    free(want);
}

/* Filled in the same steps the logits are the same bits. most: largest difference of one to a
 * context that was filled in one go: how prompts are cut into batches changes sums in the last
 * bits, and now and then the rounding of a cached value. In an F16 cache, where many tokens are
 * multiplied in integers with VNNI, that made up to 3.1e-3; in a Q8_0 cache, where few and many
 * tokens have kernels of their own, 3.4e-3, and 1.24e-2 between one token and many in
 * test_forward. */
static void walk(const char *name, const run_options *o, double most)
{
    char path[300];
    run r;
    tn_error err = {0};
    double seconds;
    snprintf(path, sizeof path, "tests/data/arch/%s/model-f16.gguf", name);
    if (!run_open(&r, path, o)) return;
    tn_bench_tokens tokens;
    REQUIRE(tn_bench_tokens_make(&tokens, r.model, NULL, 0, 1, &err) == TN_OK);
    /* An emulated device takes its time. */
    for (int i = 0; i < (o->device ? n_depths - 1 : n_depths); i++) {
        tn_status s = tn_bench_walk(r.ctx, &tokens, depths[i], &err);
        if (!s) s = test_here(&r, &tokens, depths[i], &err);
        if (!s) s = test_here(&r, &tokens, depths[i], &err);
        CHECK_INT(tn_context_length(r.ctx), depths[i]);
        if (!s) s = tn_bench_prompt(r.ctx, &tokens, 1, &seconds, &err);
        CHECK_MSG(!s, "%s at %d: %s", name, depths[i], err.msg);
        if (s) break;
        check_logits(path, o, &tokens, &r, i, true, 0);
        if (isfinite(most)) check_logits(path, o, &tokens, &r, i, false, most);
        if (tn_bench_walk(r.ctx, &tokens, depths[i], &err)) break;
    }
    free(tokens.at);
    run_close(&r);
}

TEST(walked_is_filled)
{
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        walk(models[m], &(run_options){.kv = TN_KV_F32, .page_size = 16, .n_batch = 16}, 1e-4);
        walk(models[m], &(run_options){.kv = TN_KV_F32, .threads = 1}, 1e-4);
    }
}

/* Heads of 32, as blocks of Q8_0 need them, and a sliding window of 16. */
static const char *const wide[] = {"llama3", "gemma3"};

TEST(walked_is_filled_in_narrow_caches)
{
    for (size_t m = 0; m < sizeof wide / sizeof *wide; m++) {
        walk(wide[m], &(run_options){.kv = TN_KV_F16, .page_size = 16, .n_batch = 16}, 1e-2);
        walk(wide[m], &(run_options){.kv = TN_KV_Q8_0, .page_size = 16, .n_batch = 16}, 2.5e-2);
    }
}

/* All on the device; and with attention there and the FFN here, as placements have it. */
TEST(walked_is_filled_on_a_device)
{
    run_options o = {.page_size = 16, .n_batch = 16, .device = "emu", .place = ".*=device"};
    if (!have_device("emu")) return;
    o.kv = TN_KV_F32;
    walk("gemma3", &o, 1e-4);
    o.place = "ffn_=host";
    o.kv = TN_KV_Q8_0;
    walk("llama3", &o, INFINITY);
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
