/* The k-th allocation fails, for every k: "out of memory", nothing leaked, and the same works
 * again. Allocations of the library come through tn_allocator (PCRE2's among them), those of
 * jansson through its own hooks, which are this program's to set. */
#include "golden.h"

#include <pthread.h>

/* Counts what is held; fails the allocation number `fail_at` (from 0), -1 none. */
typedef struct meter {
    pthread_mutex_t lock;
    long n_allocs, n_held, fail_at;
    bool failed;
} meter;

static bool may_allocate(meter *m)
{
    pthread_mutex_lock(&m->lock);
    const bool fail = m->n_allocs++ == m->fail_at;
    m->failed |= fail;
    m->n_held += !fail;
    pthread_mutex_unlock(&m->lock);
    return !fail;
}

static void give_back(meter *m, const void *p)
{
    pthread_mutex_lock(&m->lock);
    m->n_held -= p != NULL;
    pthread_mutex_unlock(&m->lock);
}

static void *meter_alloc(void *user, size_t bytes, size_t align)
{
    void *p = NULL;
    if (!may_allocate(user)) return NULL;
    return posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, bytes) ? NULL : p;
}

static void meter_free(void *user, void *p)
{
    give_back(user, p);
    free(p);
}

static meter jansson_meter = {.lock = PTHREAD_MUTEX_INITIALIZER, .fail_at = -1};

static void *jansson_alloc(size_t bytes)
{
    return may_allocate(&jansson_meter) ? malloc(bytes) : NULL;
}

static void jansson_free(void *p)
{
    give_back(&jansson_meter, p);
    free(p);
}

/* What a program does, from engine to text. The first failure ends it; everything is given back. */
typedef struct work {
    const char *path; /* NULL: from memory */
    const void *bytes;
    size_t size;
    const char *synthetic; /* shape, instead of a file */
    bool exact, environment;
    tn_load_mode load;
} work;

static bool any_rows(void *user, int32_t first, int32_t n, const float *rows)
{
    (void)user, (void)first, (void)n, (void)rows;
    return true;
}

static tn_status open_model(const work *w, tn_engine *e, tn_model **m, tn_error *err)
{
    const tn_model_options o = {.struct_size = sizeof o, .exact = w->exact, .load = w->load};
    if (w->synthetic) return tn_model_open_synthetic(m, e, w->synthetic, "q4_0", &o, err);
    if (w->path) return tn_model_open(m, e, w->path, &o, err);
    return tn_model_open_memory(m, e, w->bytes, w->size, "memory", &o, err);
}

static tn_status use_context(tn_model *m, tn_error *err)
{
    tn_context *c = NULL;
    const tn_context_options o = {.struct_size = sizeof o, .n_batch = 4, .page_size = 16};
    int32_t ids[32] = {1, 2, 3, 4};
    tn_status s = tn_context_new(&c, m, &o, err);
    for (int i = 0; i < 4 && !s; i++)
        s = tn_context_eval(c, ids, 1, err);
    if (!s) s = tn_context_eval_all(c, ids, 32, 0, any_rows, NULL, err);
    if (s) CHECK_INT(c ? tn_context_length(c) < 36 : 0, c != NULL);
    tn_context_free(c);
    return s;
}

static tn_status do_work(const work *w, const tn_allocator *a, tn_error *err)
{
    tn_engine *e = NULL;
    tn_model *m = NULL;
    char *text = NULL;
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 2, .allocator = *a};
    tn_status s = tn_engine_new(&e, &eo, err);
    CHECK((s == TN_OK) == (e != NULL));
    if (!s && w->environment) s = tn_env_json(e, &text, err);
    if (!s && !w->environment) s = open_model(w, e, &m, err);
    if (!w->environment) CHECK((s == TN_OK) == (m != NULL));
    if (!s && m) s = use_context(m, err);
    tn_model_close(m);
    if (e) tn_string_free(e, text);
    tn_engine_free(e);
    return s;
}

/* Fails every allocation of `failing` in turn until the work gets by without it. */
static long fail_each(const work *w, meter *failing, meter *m, const char *what)
{
    const tn_allocator a = {meter_alloc, meter_free, m};
    long k = 0;
    for (;; k++) {
        tn_error err = {0};
        failing->n_allocs = 0;
        failing->failed = false;
        failing->fail_at = k;
        const tn_status s = do_work(w, &a, &err);
        failing->fail_at = -1;
        if (m->n_held || jansson_meter.n_held) {
            FAIL("%s, allocation %ld: %ld and %ld leaked", what, k, m->n_held,
                 jansson_meter.n_held);
            break;
        }
        if (!failing->failed) {
            CHECK_MSG(s == TN_OK, "%s: %s", what, err.msg);
            break;
        }
        CHECK_MSG(s == TN_ENOMEM && err.code == TN_ENOMEM && strstr(err.msg, "out of memory"),
                  "%s, allocation %ld: status %d, '%s'", what, k, (int)s, err.msg);
    }
    CHECK_INT(do_work(w, &a, NULL), TN_OK);
    CHECK_INT(m->n_held, 0);
    return k;
}

static void check_work(const work *w, const char *what, long at_least)
{
    meter m = {.lock = PTHREAD_MUTEX_INITIALIZER, .fail_at = -1};
    const long n = fail_each(w, &m, &m, what);
    CHECK_MSG(n >= at_least, "%s: only %ld allocations", what, n);
}

TEST(engine_model_context_and_tokens)
{
    static const char *const models[] = {
        "tests/data/arch/llama/model-f16.gguf", "tests/data/arch/qwen3moe/model-f16.gguf",
        "tests/data/arch/gemma3/model-f16.gguf", "tests/data/quant/Q4_K_S.gguf"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        check_work(&(work){.path = models[i]}, models[i], 40);
}

TEST(weights_that_come_later)
{
    const char *path = "tests/data/quant/Q4_0.gguf";
    check_work(&(work){.path = path, .load = TN_LOAD_LATER}, "later", 40);
}

TEST(exact_weights)
{
    check_work(&(work){.path = "tests/data/quant/Q4_0.gguf", .exact = true}, "exact", 40);
}

TEST(a_model_in_memory)
{
    FILE *f = fopen("tests/data/arch/qwen2/model-f16.gguf", "rb");
    REQUIRE(f);
    static _Alignas(64) char bytes[8 << 20];
    const size_t size = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    check_work(&(work){.bytes = bytes, .size = size}, "memory", 40);
}

TEST(the_environment)
{
    json_set_alloc_funcs(jansson_alloc, jansson_free);
    const work w = {.environment = true};
    meter m = {.lock = PTHREAD_MUTEX_INITIALIZER, .fail_at = -1};
    CHECK(fail_each(&w, &m, &m, "environment") >= 5);
    CHECK(fail_each(&w, &jansson_meter, &m, "environment, jansson") >= 20);
    json_set_alloc_funcs(malloc, free);
}

TEST_MAIN
