/* Contexts: what a call may and may not change, cancelling, misuse, sharing an engine; and that
 * batches, pages, slices and threads do not change what is computed. */
#include "golden.h"

#include <pthread.h>
#include <stdatomic.h>

enum { n_vocab = 384, n_long = 300 };
static const char llama[] = "tests/data/arch/llama/model-f16.gguf";
static const char llama3[] = "tests/data/arch/llama3/model-f16.gguf"; /* heads of 32 */
static const char gemma3[] = "tests/data/arch/gemma3/model-f16.gguf";
static const char qwen3moe[] = "tests/data/arch/qwen3moe/model-f16.gguf";
static const char q4_k[] = "tests/data/quant/Q4_K_S.gguf";

/* Pseudo-random tokens, the same in every test. */
static int32_t random_tokens[n_long];

__attribute__((constructor)) static void fill_tokens(void)
{
    uint64_t seed = 5;
    for (int i = 0; i < n_long; i++)
        random_tokens[i] = (int32_t)(test_rand(&seed) % n_vocab);
}

static const int32_t *some_tokens(void)
{
    return random_tokens;
}

/* ---- bad calls change nothing ---------------------------------------------------------------- */

static bool never(void *user, int32_t first, int32_t n, const float *rows)
{
    (void)first, (void)n, (void)rows;
    *(bool *)user = true;
    return true;
}

TEST(refused_evaluations_change_nothing)
{
    run r;
    tn_error err = {0};
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    CHECK(tn_context_logits(r.ctx) == NULL);
    CHECK_INT(tn_context_length(r.ctx), 0);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 5, &err), TN_OK);
    const float *logits = tn_context_logits(r.ctx);
    float before[n_vocab];
    REQUIRE(logits);
    memcpy(before, logits, sizeof before);
    static const struct {
        int32_t n, token;
    } bad[] = {{0, 1}, {-3, 1}, {1, -1}, {1, n_vocab}, {1, INT32_MIN}, {1, INT32_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_INT(tn_context_eval(r.ctx, &bad[i].token, bad[i].n, &err), TN_EARG);
    bool called = false;
    static const int32_t rows[] = {-1, 3, 4, INT32_MAX};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_INT(tn_context_eval_all(r.ctx, some_tokens(), 3, rows[i], never, &called, &err),
                  TN_EARG);
    CHECK_INT(tn_context_eval_all(r.ctx, some_tokens(), 3, 0, NULL, NULL, &err), TN_EARG);
    CHECK(!called);
    CHECK_INT(tn_context_length(r.ctx), 5);
    CHECK(tn_context_logits(r.ctx) == logits && memcmp(before, logits, sizeof before) == 0);
    CHECK(memcmp(tn_context_tokens(r.ctx), some_tokens(), 5 * sizeof(int32_t)) == 0);
    run_close(&r);
}

TEST(a_full_context_refuses_with_counts)
{
    run r;
    tn_context *c;
    tn_error err;
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    REQUIRE(try_context(r.model, (tn_context_options){.n_ctx = 40}, &c, &err) == TN_OK);
    CHECK_INT(tn_context_eval(c, some_tokens(), 41, &err), TN_EFULL);
    CHECK_INT(tn_context_eval(c, some_tokens(), 33, &err), TN_OK);
    CHECK_INT(tn_context_eval(c, some_tokens(), 8, &err), TN_EFULL);
    CHECK_MSG(strstr(err.msg, "40") && strstr(err.msg, "33") && strstr(err.msg, "8"), "%s",
              err.msg);
    CHECK_INT(tn_context_length(c), 33);
    CHECK(tn_context_logits(c) != NULL);
    CHECK_INT(tn_context_eval(c, some_tokens(), 7, &err), TN_OK);
    CHECK_INT(tn_context_eval(c, some_tokens(), 1, &err), TN_EFULL);
    tn_context_free(c);
    run_close(&r);
}

static void *dirty_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    void *p = aligned_alloc(align, (bytes + align - 1) / align * align);
    return p ? memset(p, 0xff, (bytes + align - 1) / align * align) : NULL;
}

static void dirty_free(void *user, void *p)
{
    (void)user;
    free(p);
}

/* Kernels may read past the last position: what lies there must not come
 * through, whatever it was. */
TEST(fresh_memory_need_not_be_zero)
{
    const run_options o = {.kv = TN_KV_F16, .threads = 1, .page_size = 16};
    enum { n = 21 };
    float *want = run_logits(llama, &o, some_tokens(), n, n_vocab);
    run r = {0};
    tn_error err = {0};
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = 1, .allocator = {dirty_alloc, dirty_free, NULL}};
    REQUIRE(want && tn_engine_new(&r.engine, &eo, &err) == TN_OK);
    REQUIRE(tn_model_open(&r.model, r.engine, llama, NULL, &err) == TN_OK);
    REQUIRE(try_context(r.model, (tn_context_options){.page_size = 16}, &r.ctx, &err) == TN_OK);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), n, &err), TN_OK);
    const float *got = tn_context_logits(r.ctx);
    REQUIRE(got);
    const distance d = compare(got, want + (n - 1) * n_vocab, n_vocab);
    CHECK_MSG(d.max_abs <= 1e-4, "off by %g", d.max_abs);
    run_close(&r);
    free(want);
}

TEST(rewind_takes_any_length_held)
{
    run r;
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    CHECK_INT(tn_context_rewind(r.ctx, 0, NULL), TN_OK);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 20, NULL), TN_OK);
    CHECK_INT(tn_context_rewind(r.ctx, -1, NULL), TN_EARG);
    CHECK_INT(tn_context_rewind(r.ctx, 21, NULL), TN_EARG);
    CHECK_INT(tn_context_length(r.ctx), 20);
    CHECK(tn_context_logits(r.ctx) != NULL);
    CHECK_INT(tn_context_rewind(r.ctx, 20, NULL), TN_OK);
    CHECK(tn_context_logits(r.ctx) == NULL);
    CHECK_INT(tn_context_rewind(r.ctx, 7, NULL), TN_OK);
    CHECK_INT(tn_context_length(r.ctx), 7);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens() + 50, 1, NULL), TN_OK);
    CHECK_INT(tn_context_tokens(r.ctx)[7], some_tokens()[50]);
    run_close(&r);
}

/* ---- the same logits whichever way ----------------------------------------------------------- */

static void check_same(const float *a, const float *b, size_t n, double tolerance, const char *what)
{
    if (!a || !b) return;
    const distance d = compare(a, b, n);
    CHECK_MSG(d.max_abs <= tolerance, "%s: off by %g, rms %g", what, d.max_abs, d.rms);
}

/* Long enough for several pages and for attention over a context split in pieces. */
TEST(batches_and_pages_agree)
{
    static const char *const models[] = {llama, gemma3, qwen3moe};
    static const int32_t batches[] = {1, 7, 64, 512}, pages[] = {16, 64, 256};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        const size_t count = (size_t)n_long * n_vocab;
        run_options o = {.kv = TN_KV_F32};
        float *want = run_logits(models[m], &o, some_tokens(), n_long, n_vocab);
        for (size_t b = 0; want && b < sizeof batches / sizeof *batches; b++) {
            char what[80];
            o.n_batch = batches[b];
            o.page_size = pages[b % 3];
            snprintf(what, sizeof what, "%.40s, batch %d", models[m], batches[b]);
            float *got = run_logits(models[m], &o, some_tokens(), n_long, n_vocab);
            check_same(got, want, count, 2e-4, what);
            free(got);
        }
        for (size_t p = 0; want && p < sizeof pages / sizeof *pages; p++) {
            o = (run_options){.kv = TN_KV_F32, .page_size = pages[p], .step = true};
            float *got = run_logits(models[m], &o, some_tokens(), n_long, n_vocab);
            check_same(got, want, count, 2e-4, "token by token");
            free(got);
        }
        free(want);
    }
}

/* Pieces of the context end at multiples of 128: the last of a few tokens may be alone in one. */
TEST(a_few_tokens_behind_a_prompt)
{
    static const char *const models[] = {llama, gemma3};
    static const int32_t few[] = {2, 3, 5, 16, 17, 40};
    enum { prompt = 255 };
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        run_options o = {.kv = TN_KV_F32, .step = true};
        float *want = run_logits(models[m], &o, some_tokens(), n_long, n_vocab);
        for (size_t i = 0; want && i < sizeof few / sizeof *few; i++) {
            run r;
            tn_error err = {0};
            REQUIRE(run_open(&r, models[m], &o));
            CHECK_INT(tn_context_eval(r.ctx, some_tokens(), prompt, &err), TN_OK);
            CHECK_INT(tn_context_eval(r.ctx, some_tokens() + prompt, few[i], &err), TN_OK);
            CHECK(tn_context_logits(r.ctx) != NULL);
            check_same(tn_context_logits(r.ctx), want + (prompt + few[i] - 1) * n_vocab, n_vocab,
                       2e-4, "a few tokens");
            run_close(&r);
        }
        free(want);
    }
}

/* Rewound positions are written anew: what the cache holds depends on the tokens alone. */
TEST(a_rewound_q8_0_cache_is_as_new)
{
    enum { n = 84 };
    const run_options o = {.kv = TN_KV_Q8_0, .page_size = 16, .n_batch = 7};
    float want[n_vocab];
    run r;
    REQUIRE(run_open(&r, llama3, &o));
    REQUIRE(tn_context_eval(r.ctx, some_tokens(), n, NULL) == TN_OK);
    memcpy(want, tn_context_logits(r.ctx), sizeof want);
    run_close(&r);
    REQUIRE(run_open(&r, llama3, &o));
    for (int32_t at = 0; at < n; at += 7) {
        CHECK_INT(tn_context_eval(r.ctx, some_tokens() + 100 + at, n + 30 - at, NULL), TN_OK);
        CHECK_INT(tn_context_rewind(r.ctx, at, NULL), TN_OK);
        CHECK_INT(tn_context_eval(r.ctx, some_tokens() + at, n - at, NULL), TN_OK);
        REQUIRE(tn_context_logits(r.ctx));
        CHECK(memcmp(tn_context_logits(r.ctx), want, sizeof want) == 0);
        CHECK_INT(tn_context_rewind(r.ctx, at + 7, NULL), TN_OK);
    }
    run_close(&r);
}

TEST(threads_do_not_change_a_bit)
{
    static const char *const models[] = {llama, gemma3, qwen3moe, q4_k};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int step = 0; step < 2; step++) {
            run_options o = {.step = step, .threads = 1, .n_batch = 100};
            float *want = run_logits(models[m], &o, some_tokens(), n_long, n_vocab);
            for (o.threads = 2; want && o.threads <= 3; o.threads++) {
                float *got = run_logits(models[m], &o, some_tokens(), n_long, n_vocab);
                if (got && memcmp(got, want, (size_t)n_long * n_vocab * sizeof *got) != 0)
                    FAIL("%s: other bits with %d threads (step %d)", models[m], o.threads, step);
                free(got);
            }
            free(want);
        }
}

typedef struct rows_seen {
    float *rows;
    int32_t next, calls, stop_at; /* stop_at: the call that returns false, -1 none */
} rows_seen;

static bool see_rows(void *user, int32_t first, int32_t n, const float *rows)
{
    rows_seen *s = user;
    CHECK_INT(first, s->next);
    CHECK(n >= 1 && first + n <= n_long);
    if (s->calls++ == s->stop_at) return false;
    memcpy(s->rows + (size_t)first * n_vocab, rows, (size_t)n * n_vocab * sizeof *rows);
    s->next = first + n;
    return true;
}

TEST(logits_of_all_rows_come_in_order)
{
    static const int32_t first_rows[] = {0, 1, 6, 7, 63, 150, 298, 299};
    run r;
    REQUIRE(run_open(&r, gemma3, &(run_options){.n_batch = 7, .kv = TN_KV_F32}));
    rows_seen s = {calloc((size_t)n_long * n_vocab, sizeof(float)), 0, 0, -1};
    float *want = calloc((size_t)n_long * n_vocab, sizeof(float));
    REQUIRE(s.rows && want);
    CHECK_INT(tn_context_eval_all(r.ctx, some_tokens(), n_long, 0, see_rows, &s, NULL), TN_OK);
    CHECK_INT(s.next, n_long);
    memcpy(want, s.rows, (size_t)n_long * n_vocab * sizeof *want);
    for (size_t i = 0; i < sizeof first_rows / sizeof *first_rows; i++) {
        const size_t skipped = (size_t)first_rows[i] * n_vocab;
        CHECK_INT(tn_context_rewind(r.ctx, 0, NULL), TN_OK);
        s.next = first_rows[i];
        CHECK_INT(
            tn_context_eval_all(r.ctx, some_tokens(), n_long, first_rows[i], see_rows, &s, NULL),
            TN_OK);
        CHECK_INT(s.next, n_long);
        check_same(s.rows + skipped, want + skipped, (size_t)n_long * n_vocab - skipped, 2e-4,
                   "some rows");
        const float *last = tn_context_logits(r.ctx);
        REQUIRE(last);
        CHECK(memcmp(last, s.rows + (size_t)(n_long - 1) * n_vocab, n_vocab * sizeof *last) == 0);
    }
    free(s.rows);
    free(want);
    run_close(&r);
}

/* Counts the largest request. */
static void *largest_alloc(void *user, size_t bytes, size_t align)
{
    size_t *largest = user;
    if (bytes > *largest) *largest = bytes;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

TEST(a_slice_of_logits_is_at_most_a_batch)
{
    run r = {0};
    tn_error err;
    size_t largest = 0;
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = 1, .allocator = {largest_alloc, dirty_free, &largest}};
    REQUIRE(tn_engine_new(&r.engine, &eo, &err) == TN_OK);
    REQUIRE(tn_model_open(&r.model, r.engine, llama, NULL, &err) == TN_OK);
    const tn_context_options o = {.n_batch = 7, .page_size = 16};
    REQUIRE(try_context(r.model, o, &r.ctx, &err) == TN_OK);
    rows_seen s = {calloc((size_t)n_long * n_vocab, sizeof(float)), 0, 0, -1};
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 30, &err), TN_OK); /* the pages */
    CHECK_INT(tn_context_rewind(r.ctx, 0, &err), TN_OK);
    largest = 0;
    CHECK_INT(tn_context_eval_all(r.ctx, some_tokens(), 30, 0, see_rows, &s, &err), TN_OK);
    CHECK_INT(s.next, 30);
    CHECK_MSG(largest >= 7 * n_vocab * sizeof(float) && largest < 8 * n_vocab * sizeof(float),
              "%zu bytes at once for rows of %zu", largest, n_vocab * sizeof(float));
    free(s.rows);
    run_close(&r);
}

TEST(a_logits_callback_that_stops_undoes_the_evaluation)
{
    run r;
    float before[n_vocab];
    REQUIRE(run_open(&r, llama, &(run_options){.n_batch = 16}));
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 4, NULL), TN_OK);
    memcpy(before, tn_context_logits(r.ctx), sizeof before);
    rows_seen s = {calloc((size_t)n_long * n_vocab, sizeof(float)), 0, 0, 0};
    for (; s.stop_at < 4; s.stop_at++) {
        s.next = s.calls = 0;
        CHECK_INT(tn_context_eval_all(r.ctx, some_tokens(), 60, 0, see_rows, &s, NULL),
                  TN_ECANCELED);
        CHECK_INT(s.calls, s.stop_at + 1);
        CHECK_INT(tn_context_length(r.ctx), 4);
        CHECK(tn_context_logits(r.ctx) &&
              memcmp(before, tn_context_logits(r.ctx), sizeof before) == 0);
    }
    free(s.rows);
    run_close(&r);
}

/* ---- cancelling ------------------------------------------------------------------------------ */

typedef struct cancel_state {
    atomic_int calls, at; /* true at that call and after */
    atomic_uint_least64_t done, total;
} cancel_state;

static bool cancel_at(void *user)
{
    cancel_state *s = user;
    return atomic_fetch_add(&s->calls, 1) >= atomic_load(&s->at);
}

static void note_progress(void *user, uint64_t done, uint64_t total)
{
    cancel_state *s = user;
    CHECK(done > atomic_load(&s->done) || done <= 16);
    atomic_store(&s->done, done);
    atomic_store(&s->total, total);
}

/* Cancels at every moment that is polled; then the same evaluation gives the same bits as in a
 * context that was never disturbed. */
TEST(cancelling_at_every_moment_leaves_the_context_as_it_was)
{
    run r;
    tn_context *c, *calm;
    tn_error err;
    cancel_state s = {.at = INT32_MAX};
    REQUIRE(run_open(&r, gemma3, &(run_options){0}));
    const tn_context_options quiet = {.n_batch = 16};
    tn_context_options o = quiet;
    o.cancel = cancel_at;
    o.progress = note_progress;
    o.user = &s;
    REQUIRE(try_context(r.model, o, &c, &err) == TN_OK);
    REQUIRE(try_context(r.model, quiet, &calm, &err) == TN_OK);
    CHECK_INT(tn_context_eval(c, some_tokens(), 10, &err), TN_OK);
    CHECK_INT(tn_context_eval(calm, some_tokens(), 10, &err), TN_OK);
    float before[n_vocab];
    memcpy(before, tn_context_logits(c), sizeof before);
    int moments = 0;
    for (;; moments++) {
        atomic_store(&s.calls, 0);
        atomic_store(&s.at, moments);
        const tn_status st = tn_context_eval(c, some_tokens() + 10, 40, &err);
        if (st == TN_OK) break;
        CHECK_INT(st, TN_ECANCELED);
        CHECK_INT(tn_context_length(c), 10);
        CHECK(tn_context_logits(c) && memcmp(before, tn_context_logits(c), sizeof before) == 0);
    }
    CHECK_INT(moments, 3 * 7); /* batches x layers */
    CHECK_INT(atomic_load(&s.done), 40);
    CHECK_INT(atomic_load(&s.total), 40);
    CHECK_INT(tn_context_eval(calm, some_tokens() + 10, 40, &err), TN_OK);
    CHECK_INT(tn_context_length(c), 50);
    CHECK(memcmp(tn_context_logits(c), tn_context_logits(calm), sizeof before) == 0);
    CHECK(memcmp(tn_context_tokens(c), some_tokens(), 50 * sizeof(int32_t)) == 0);
    tn_context_free(c);
    tn_context_free(calm);
    run_close(&r);
}

typedef struct shared_flag {
    atomic_bool running, stop;
} shared_flag;

static bool cancel_on_flag(void *user)
{
    shared_flag *f = user;
    atomic_store(&f->running, true);
    return atomic_load(&f->stop);
}

static void *stop_when_running(void *arg)
{
    shared_flag *f = arg;
    while (!atomic_load(&f->running))
        sched_yield();
    atomic_store(&f->stop, true);
    return NULL;
}

TEST(another_thread_cancels)
{
    run r;
    tn_context *c;
    tn_error err;
    shared_flag f = {false, false};
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    const tn_context_options o = {
        .n_ctx = 1 << 20, .n_batch = 1, .cancel = cancel_on_flag, .user = &f};
    REQUIRE(try_context(r.model, o, &c, &err) == TN_OK);
    pthread_t t;
    REQUIRE(pthread_create(&t, NULL, stop_when_running, &f) == 0);
    /* Endless for a test unless the other thread stops it. */
    static int32_t many[1 << 20];
    CHECK_INT(tn_context_eval(c, many, 1 << 20, &err), TN_ECANCELED);
    CHECK_INT(tn_context_length(c), 0);
    pthread_join(t, NULL);
    tn_context_free(c);
    run_close(&r);
}

/* ---- one caller at a time -------------------------------------------------------------------- */

typedef struct intruder {
    tn_context *ctx;
    tn_status eval, eval_all, rewind;
    bool tried;
} intruder;

static void *intrude(void *arg)
{
    intruder *i = arg;
    bool called = false;
    i->eval = tn_context_eval(i->ctx, (int32_t[]){1}, 1, NULL);
    i->eval_all = tn_context_eval_all(i->ctx, (int32_t[]){1}, 1, 0, never, &called, NULL);
    i->rewind = tn_context_rewind(i->ctx, 0, NULL);
    CHECK(!called);
    return NULL;
}

/* Called while the evaluation runs: a second thread calls on the same context meanwhile. */
static bool let_intrude(void *user)
{
    intruder *i = user;
    pthread_t t;
    if (!i->tried && pthread_create(&t, NULL, intrude, i) == 0) {
        i->tried = true;
        pthread_join(t, NULL);
    }
    return false;
}

TEST(a_second_caller_is_told_that_the_context_is_busy)
{
    run r;
    tn_error err;
    intruder i = {NULL, TN_OK, TN_OK, TN_OK, false};
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    const tn_context_options o = {.cancel = let_intrude, .user = &i};
    REQUIRE(try_context(r.model, o, &i.ctx, &err) == TN_OK);
    CHECK_INT(tn_context_eval(i.ctx, some_tokens(), 9, &err), TN_OK);
    CHECK(i.tried);
    CHECK_INT(i.eval, TN_EBUSY);
    CHECK_INT(i.eval_all, TN_EBUSY);
    CHECK_INT(i.rewind, TN_EBUSY);
    CHECK_INT(tn_context_length(i.ctx), 9);
    CHECK_INT(tn_context_eval(i.ctx, some_tokens(), 1, &err), TN_OK);
    tn_context_free(i.ctx);
    run_close(&r);
}

typedef struct caller {
    tn_model *model;
    const float *want; /* [n_vocab] after 30 tokens */
    pthread_t thread;
    int wrong;
} caller;

static void *call_often(void *arg)
{
    caller *c = arg;
    tn_context *ctx;
    tn_error err;
    const tn_context_options o = {.n_batch = 16};
    if (try_context(c->model, o, &ctx, &err) != TN_OK) {
        c->wrong = 1000;
        return NULL;
    }
    for (int i = 0; i < 5; i++) {
        tn_status s = tn_context_rewind(ctx, 0, NULL);
        if (!s) s = tn_context_eval(ctx, some_tokens(), 25, NULL);
        for (int t = 25; t < 30 && !s; t++)
            s = tn_context_eval(ctx, some_tokens() + t, 1, NULL);
        const float *got = tn_context_logits(ctx);
        c->wrong += s || !got || memcmp(got, c->want, n_vocab * sizeof *got) != 0;
    }
    tn_context_free(ctx);
    return NULL;
}

TEST(two_engines_three_models_eight_threads)
{
    static const char *const files[] = {llama, gemma3, q4_k};
    tn_engine *engines[2];
    tn_model *models[3];
    static float want[3][n_vocab];
    caller callers[8];
    for (int i = 0; i < 2; i++) {
        const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 2};
        REQUIRE(tn_engine_new(&engines[i], &eo, NULL) == TN_OK);
    }
    for (int i = 0; i < 3; i++) {
        tn_error err;
        tn_context *ctx;
        REQUIRE(tn_model_open(&models[i], engines[i % 2], files[i], NULL, NULL) == TN_OK);
        REQUIRE(try_context(models[i], (tn_context_options){.n_batch = 16}, &ctx, &err) == TN_OK);
        CHECK_INT(tn_context_eval(ctx, some_tokens(), 25, NULL), TN_OK);
        for (int t = 25; t < 30; t++)
            CHECK_INT(tn_context_eval(ctx, some_tokens() + t, 1, NULL), TN_OK);
        memcpy(want[i], tn_context_logits(ctx), sizeof want[i]);
        tn_context_free(ctx);
    }
    for (int i = 0; i < 8; i++) {
        callers[i] = (caller){.model = models[i % 3], .want = want[i % 3]};
        REQUIRE(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]) == 0);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK_MSG(callers[i].wrong == 0, "thread %d: %d evaluations went wrong", i,
                  callers[i].wrong);
    }
    for (int i = 0; i < 3; i++)
        tn_model_close(models[i]);
    for (int i = 0; i < 2; i++)
        tn_engine_free(engines[i]);
}

/* ---- statistics ------------------------------------------------------------------------------ */

static tn_stats stats_of(const tn_context *c)
{
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(c, &s, NULL), TN_OK);
    return s;
}

/* One decoded token reads what tn_model_info promises, and its embedding's row. */
static void check_token_bytes(const char *path, uint64_t embedding_bytes)
{
    run r;
    REQUIRE(run_open(&r, path, &(run_options){0}));
    tn_model_info info = {.struct_size = sizeof info};
    CHECK_INT(tn_model_get_info(r.model, &info, NULL), TN_OK);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 3, NULL), TN_OK);
    tn_context_stats_reset(r.ctx);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 1, NULL), TN_OK);
    const uint64_t read = stats_of(r.ctx).host.weight_bytes - embedding_bytes;
    /* Norms and biases are in token_bytes and not in weight_bytes. */
    CHECK_MSG(read <= info.token_bytes && (double)read > 0.95 * (double)info.token_bytes,
              "%s: %llu bytes read, %llu told", path, (unsigned long long)read,
              (unsigned long long)info.token_bytes);
    run_close(&r);
}

TEST(bytes_read_are_those_of_the_weights)
{
    check_token_bytes(llama, 64 * 2);
    check_token_bytes(gemma3, 64 * 2);
    check_token_bytes(qwen3moe, 64 * 2);
}

/* Seven layers, the sixth global: the others read their window of 16 positions. */
TEST(local_layers_read_their_window)
{
    run r;
    REQUIRE(run_open(&r, gemma3, &(run_options){0}));
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 39, NULL), TN_OK);
    tn_context_stats_reset(r.ctx);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 1, NULL), TN_OK);
    const uint64_t position = 2 * 2 * 32 * 2; /* K and V, heads, head size, bytes */
    CHECK_INT(stats_of(r.ctx).host.kv_bytes, position * (6 * 16 + 40));
    run_close(&r);
}

TEST(statistics_add_up_and_reset)
{
    run r;
    REQUIRE(run_open(&r, llama, &(run_options){.page_size = 16, .kv = TN_KV_F32}));
    tn_stats s = stats_of(r.ctx);
    CHECK_INT(s.prefill_tokens + s.decode_tokens + s.kv_bytes_held, 0);
    CHECK(s.load_s > 0 && s.model_bytes_held > 0);
    CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 16, NULL), TN_OK);
    const uint64_t page = 16 * 3 * 2 * 2 * 16 * 4; /* layers, K and V, heads, head size, bytes */
    CHECK_INT(stats_of(r.ctx).kv_bytes_held, page);
    for (int i = 0; i < 3; i++)
        CHECK_INT(tn_context_eval(r.ctx, some_tokens(), 1, NULL), TN_OK);
    s = stats_of(r.ctx);
    CHECK_INT(s.prefill_tokens, 16);
    CHECK_INT(s.decode_tokens, 3);
    CHECK_INT(s.kv_bytes_held, 2 * page);
    CHECK(s.prefill_s > 0 && s.decode_s > 0);
    CHECK(s.host.seconds > 0 && s.host.seconds <= s.prefill_s + s.decode_s);
    CHECK_INT(s.host.kv_bytes, page / 16 * (16 + 17 + 18 + 19));
    CHECK_INT(s.hops + s.device.weight_bytes, 0);
    tn_context_stats_reset(r.ctx);
    s = stats_of(r.ctx);
    CHECK_INT(s.prefill_tokens + s.decode_tokens + s.host.weight_bytes + s.host.kv_bytes, 0);
    CHECK(s.prefill_s == 0 && s.decode_s == 0 && s.host.seconds == 0);
    CHECK_INT(s.kv_bytes_held, 2 * page);
    tn_stats part = {.struct_size = offsetof(tn_stats, decode_s), .decode_s = -1};
    CHECK_INT(tn_context_stats(r.ctx, &part, NULL), TN_OK);
    CHECK(part.decode_s == -1);
    part.struct_size = 0;
    CHECK_INT(tn_context_stats(r.ctx, &part, NULL), TN_EARG);
    run_close(&r);
}

TEST_MAIN
