/* Options of contexts: which are refused, and how long a context is. */
#include "golden.h"

#include "../engine/hardware.h"
#include "../engine/kv.h"

static const char llama[] = "tests/data/arch/llama/model-f16.gguf";
static const char llama3[] = "tests/data/arch/llama3/model-f16.gguf"; /* heads of 32 */

static int32_t info_ctx_train(const tn_model *m)
{
    tn_model_info info = {.struct_size = sizeof info};
    CHECK_INT(tn_model_get_info(m, &info, NULL), TN_OK);
    return info.n_ctx_train;
}

TEST(options_out_of_range_are_refused_by_name)
{
    static const struct {
        tn_context_options o;
        const char *name;
    } bad[] = {
        {{.n_ctx = -1}, "n_ctx"},
        {{.n_ctx = INT32_MAX}, "n_ctx"},
        {{.n_batch = -1}, "n_batch"},
        {{.n_batch = INT32_MAX}, "n_batch"},
        {{.n_batch = 65536}, "n_batch"},
        {{.kv = 3}, "kv"},
        {{.kv = -1}, "kv"},
        {{.page_size = -16}, "page_size"},
        {{.page_size = 8}, "page_size"},
        {{.page_size = 48}, "page_size"},
        {{.page_size = 1 << 30}, "page_size"},
    };
    run r;
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tn_context *c = (tn_context *)&r;
        tn_error err;
        CHECK_INT(try_context(r.model, bad[i].o, &c, &err), TN_EARG);
        CHECK(c == NULL);
        CHECK_MSG(strstr(err.msg, bad[i].name), "case %zu: no '%s' in: %s", i, bad[i].name,
                  err.msg);
    }
    tn_context *c = NULL;
    CHECK_INT(tn_context_new(&c, r.model, &(tn_context_options){.struct_size = 0}, NULL), TN_EARG);
    run_close(&r);
}

TEST(a_q8_0_cache_needs_whole_blocks)
{
    run r;
    tn_context *c;
    tn_error err;
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    CHECK_INT(try_context(r.model, (tn_context_options){.kv = TN_KV_Q8_0}, &c, &err),
              TN_EUNSUPPORTED);
    CHECK(c == NULL && strstr(err.msg, "multiples of 32") && strstr(err.msg, "they are 16"));
    run_close(&r);
    REQUIRE(run_open(&r, llama3, &(run_options){.kv = TN_KV_Q8_0, .page_size = 16}));
    CHECK_INT(tn_context_eval(r.ctx, (int32_t[]){1, 2, 3}, 3, NULL), TN_OK);
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(r.ctx, &s, NULL), TN_OK);
    const uint64_t position = 3 * 2 * 2 * 34; /* layers, K and V, heads, a block */
    CHECK_INT(s.kv_bytes_held, 16 * position);
    CHECK_INT(s.host.kv_bytes, 3 * position);
    run_close(&r);
}

TEST(capacity_is_what_was_trained_or_asked)
{
    static const struct {
        tn_context_options o;
        int32_t capacity;
    } cases[] = {
        {{0}, 512}, {{.n_ctx = 1}, 1}, {{.n_ctx = 100000}, 100000}, {{.n_ctx = 1 << 30}, 1 << 30}};
    run r;
    REQUIRE(run_open(&r, llama, &(run_options){0}));
    CHECK_INT(info_ctx_train(r.model), 512);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_context *c;
        tn_error err;
        CHECK_INT(try_context(r.model, cases[i].o, &c, &err), TN_OK);
        CHECK_INT(tn_context_capacity(c), cases[i].capacity);
        CHECK_INT(tn_context_eval(c, (int32_t[]){1}, 1, NULL), TN_OK);
        tn_context_free(c);
    }
    run_close(&r);
}

/* The file's bytes with another trained context; freed by the caller. */
static uint8_t *trained_for(uint32_t n_ctx, size_t *size)
{
    static const char key[] = "llama.context_length";
    FILE *f = fopen(llama, "rb");
    uint8_t *bytes = malloc(1 << 22);
    if (!f || !bytes) abort();
    *size = fread(bytes, 1, 1 << 22, f);
    fclose(f);
    uint8_t *at = memmem(bytes, *size, key, sizeof key - 1);
    if (!at) abort();
    memcpy(at + sizeof key - 1 + 4, &n_ctx, 4);
    return bytes;
}

static void keep_line(void *user, tn_log_level level, const char *message)
{
    (void)level;
    if (strstr(message, "context")) snprintf(user, 200, "%s", message);
}

TEST(length_of_a_cache_that_nobody_chose)
{
    CHECK_INT(tn_kv_default_length(1 << 30, 1 << 10, 0, 131072), 131072);
    CHECK_INT(tn_kv_default_length(1 << 30, 1 << 14, 0, 131072), 65536); /* what fits */
    CHECK_INT(tn_kv_default_length(1 << 30, 1 << 14, 1 << 28, 131072), 49152);
    CHECK_INT(tn_kv_default_length(1 << 30, 1 << 14, 1u << 31, 131072), 4096); /* nothing is left */
    CHECK_INT(tn_kv_default_length(1 << 30, 1 << 19, 0, 131072), 4096);        /* 2,048 fit */
    CHECK_INT(tn_kv_default_length(1 << 30, 1 << 19, 0, 3000), 3000);
    CHECK_INT(tn_kv_default_length(0, 1 << 10, 0, 131072), 131072); /* unknown */
}

TEST(capacity_is_what_fits_where_that_is_less)
{
    enum { trained = 1 << 30 }; /* 384 GiB of keys and values */
    char line[200] = "";
    size_t size;
    uint8_t *bytes = trained_for(trained, &size);
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = 1, .log = keep_line, .log_user = line};
    tn_engine *e;
    tn_model *m;
    tn_context *c;
    tn_error err;
    REQUIRE(tn_engine_new(&e, &eo, NULL) == TN_OK);
    REQUIRE(tn_model_open_memory(&m, e, bytes, size, "far.gguf", NULL, &err) == TN_OK);
    const uint64_t fits = tn_host_memory_available() / 384;
    if (fits > trained) SKIP("this machine has memory for more");
    CHECK_INT(try_context(m, (tn_context_options){0}, &c, &err), TN_OK);
    const int32_t n = tn_context_capacity(c);
    CHECK_MSG(n >= 4096 && n > (int64_t)fits / 2 && n / 2 < (int64_t)fits, "%d of %llu", n,
              (unsigned long long)fits);
    char number[20];
    snprintf(number, sizeof number, "%d", n);
    CHECK_MSG(strstr(line, number) && strstr(line, "1073741824"), "logged: '%s'", line);
    /* nothing of it is taken before it is used */
    CHECK_INT(tn_context_eval(c, (int32_t[]){1}, 1, NULL), TN_OK);
    tn_context_free(c);
    tn_model_close(m);
    tn_engine_free(e);
    free(bytes);
}

TEST(a_vocabulary_alone_makes_no_context)
{
    tn_engine *e;
    tn_model *m;
    tn_context *c;
    tn_error err = {0};
    const tn_model_options mo = {.struct_size = sizeof mo, .vocab_only = true};
    REQUIRE(tn_engine_new(&e, NULL, NULL) == TN_OK);
    REQUIRE(tn_model_open(&m, e, llama, &mo, &err) == TN_OK);
    CHECK_INT(tn_context_new(&c, m, NULL, &err), TN_EARG);
    CHECK(c == NULL && strstr(err.msg, "vocab_only"));
    tn_model_close(m);
    tn_engine_free(e);
}

TEST_MAIN
