/* Layers with a sliding window keep a ring of KV pages: the same logits, less memory; what a long
 * rewind needs again is evaluated again. */
#include "device_bytes.h"
#include "golden.h"

enum { n_vocab = 384, n_long = 170, page = 16, batch = 7, n_ctx = 192 };
enum { layer_bytes = page * 2 * (32 + 32) * 4 }; /* of a page in float32; heads of 32 need no
                                                    padding */
static const char gemma3[] = "tests/data/arch/gemma3/model-f16.gguf"; /* window of 16, 1 of 7
                                                                         global */
static const run_options on_host = {0}, on_device = {.device = "emu", .place = ".*=device"};

typedef struct walk {
    run r;
    tn_context *narrow; /* batches of 7, pages of 16: a ring of 3 pages */
    int32_t tokens[n_long];
    float *want; /* [n_long][n_vocab], of one batch, whose ring is as long as the context */
    int calls, cancel_at; /* of the narrow context; 0 = never */
} walk;

static bool cancel(void *user)
{
    walk *w = user;
    return ++w->calls == w->cancel_at;
}

static bool take_rows(void *user, int32_t row, int32_t n, const float *logits)
{
    walk *w = user;
    memcpy(w->want + (size_t)row * n_vocab, logits, (size_t)n * n_vocab * sizeof *logits);
    return true;
}

static bool begin(walk *w, const run_options *o)
{
    const tn_context_options narrow = {.struct_size = sizeof narrow,
                                       .n_ctx = n_ctx,
                                       .n_batch = batch,
                                       .page_size = page,
                                       .kv = TN_KV_F32,
                                       .cancel = cancel,
                                       .user = w};
    const tn_context_options wide = {.struct_size = sizeof wide, .n_ctx = n_ctx, .kv = TN_KV_F32};
    tn_context *c = NULL;
    uint64_t seed = 5;
    memset(w, 0, sizeof *w);
    for (int i = 0; i < n_long; i++)
        w->tokens[i] = (int32_t)(test_rand(&seed) % n_vocab);
    w->want = malloc((size_t)n_long * n_vocab * sizeof *w->want);
    if (!w->want || !run_open(&w->r, gemma3, o)) return false;
    CHECK_INT(tn_context_new(&c, w->r.model, &wide, NULL), TN_OK);
    CHECK_INT(tn_context_eval_all(c, w->tokens, n_long, 0, take_rows, w, NULL), TN_OK);
    tn_context_free(c);
    CHECK_INT(tn_context_new(&w->narrow, w->r.model, &narrow, NULL), TN_OK);
    return tn_failures == 0;
}

static void end(walk *w)
{
    tn_context_free(w->narrow);
    run_close(&w->r);
    free(w->want);
}

/* Evaluates n tokens more; the last one's logits are those of one batch. */
static void feed(walk *w, int32_t n, const char *when)
{
    const int32_t at = tn_context_length(w->narrow);
    tn_error err = {0};
    const tn_status s = tn_context_eval(w->narrow, w->tokens + at, n, &err);
    CHECK_MSG(s == TN_OK, "%s, %d tokens after %d: %s", when, n, at, err.msg);
    if (s) return;
    const distance d = compare(tn_context_logits(w->narrow),
                               w->want + (size_t)(at + n - 1) * n_vocab, n_vocab);
    CHECK_MSG(d.max_abs <= 2e-4, "%s, %d tokens after %d: off by %g", when, n, at, d.max_abs);
}

static tn_stats stats_of(const tn_context *c)
{
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(c, &s, NULL), TN_OK);
    return s;
}

/* Of one global layer and six local ones. */
static uint64_t ring_bytes(int32_t n)
{
    const int32_t pages = (n + page - 1) / page;
    return (uint64_t)((pages + 6 * (pages < 3 ? pages : 3)) * layer_bytes);
}

static void check_memory(const run_options *o)
{
    walk w;
    if (begin(&w, o)) {
        CHECK_INT(w.r.model->hp.n_swa, 16);
        for (int32_t n = 1; tn_context_length(w.narrow) + n <= n_long && !tn_failures;
             n = n % 20 + 1) {
            feed(&w, n, "on the way");
            CHECK_INT(stats_of(w.narrow).kv_bytes_held, ring_bytes(tn_context_length(w.narrow)));
        }
        CHECK(tn_context_length(w.narrow) > n_long - 20);
    }
    end(&w);
}

TEST(pages_out_of_the_window_are_used_again)
{
    check_memory(&on_host);
    if (have_device("emu")) check_memory(&on_device);
}

/* Back from `from` to `to`, and on; the tokens that were evaluated for it. */
static uint64_t go_back(walk *w, int32_t from, int32_t to)
{
    CHECK_INT(tn_context_rewind(w->narrow, 0, NULL), TN_OK);
    feed(w, from, "there");
    CHECK_INT(tn_context_rewind(w->narrow, to, NULL), TN_OK);
    const uint64_t before = stats_of(w->narrow).prefill_tokens;
    feed(w, 2, "back");
    CHECK_INT(tn_context_length(w->narrow), to + 2);
    return stats_of(w->narrow).prefill_tokens - before;
}

TEST(long_rewinds_are_evaluated_again)
{
    walk w;
    if (begin(&w, &on_host)) {
        /* positions up to 100 are on 7 pages; the last 3 are there, from 64 on, so that a window of
         * 16 is whole from 79 on */
        for (int32_t to = 100; to >= 79; to -= 7)
            CHECK_INT(go_back(&w, 100, to), 2);
        CHECK_INT(go_back(&w, 100, 79), 2);
        for (int32_t to = 78; to > 0; to -= 13)
            CHECK_INT(go_back(&w, 100, to), to + 2);
        CHECK_INT(go_back(&w, 100, 0), 2);
        CHECK_INT(go_back(&w, 48, 1), 2); /* nothing has left yet */
        CHECK_INT(go_back(&w, 49, 1), 3);
        for (int32_t at = 9; at < 100 && !tn_failures; at += 9) { /* on and back, further each
                                                                     time */
            CHECK_INT(tn_context_rewind(w.narrow, at / 3, NULL), TN_OK);
            feed(&w, at - at / 3 + 9, "zigzag");
        }
    }
    end(&w);
}

TEST(rewinds_on_a_device)
{
    walk w;
    if (!have_device("emu")) return;
    if (begin(&w, &on_device)) {
        CHECK_INT(go_back(&w, 70, 47), 2);
        CHECK_INT(go_back(&w, 70, 46), 48);
    }
    end(&w);
}

/* Room for a page of the local layers, but not for that of the global one. */
TEST(half_a_page_is_given_back)
{
    run r;
    run_options o = on_device;
    o.n_batch = o.page_size = page;
    o.kv = TN_KV_F32;
    if (!have_device("emu") || !run_open(&r, gemma3, &o)) return;
    const uint64_t before = device_used(r.engine, 0);
    run_close(&r);
    o.vram[0] = (size_t)before + 6 * layer_bytes + layer_bytes / 2;
    if (!run_open(&r, gemma3, &o)) return;
    const int32_t token = 5;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(tn_context_eval(r.ctx, &token, 1, NULL), TN_EDEVICE);
        CHECK_INT(device_used(r.engine, 0), before);
    }
    run_close(&r);
}

/* A canceled prompt may have gone far beyond the window of what is held; so may a canceled second
 * evaluation of that. */
TEST(canceled_evaluations_lose_nothing)
{
    walk w;
    if (begin(&w, &on_host)) {
        feed(&w, 30, "at first");
        for (int k = 1; k <= 12; k++) {
            w.calls = 0;
            w.cancel_at = 40 * k;
            const tn_status s = tn_context_eval(w.narrow, w.tokens + 30, n_long - 30, NULL);
            CHECK(s == TN_OK || s == TN_ECANCELED);
            CHECK_INT(tn_context_rewind(w.narrow, 30, NULL), TN_OK);
            w.calls = 0;
            w.cancel_at = 10 * k; /* while the 30 are evaluated again, if they are */
            const tn_status t = tn_context_eval(w.narrow, w.tokens + 30, 1, NULL);
            CHECK(t == TN_OK || t == TN_ECANCELED);
            CHECK_INT(tn_context_rewind(w.narrow, 30, NULL), TN_OK);
            w.cancel_at = 0;
            feed(&w, 1, "after it");
            CHECK_INT(tn_context_rewind(w.narrow, 30, NULL), TN_OK);
        }
    }
    end(&w);
}

TEST_MAIN
