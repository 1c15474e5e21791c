/* Threads on one engine: models and contexts come and go while others evaluate and weights move;
 * evaluations take turns. On the emulated device unless --cuda is given. */
#include "placed.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

/* The sanitizers are slow: a sample will do for them. every: so manieth allocation is
 * disturbed, 0: none. */
#if defined(__SANITIZE_THREAD__)
enum { n_rounds = 1, every = 0 };
#elif defined(__SANITIZE_ADDRESS__)
enum { n_rounds = 4, every = 2 };
#else
enum { n_rounds = 8, every = 2 };
#endif

/* ---- models and contexts --------------------------------------------------------------------- */

static const tn_context_options context_options = {.struct_size = sizeof context_options,
                                                   .n_ctx = n_ctx,
                                                   .n_batch = page,
                                                   .kv = TN_KV_F32,
                                                   .page_size = page};

/* A thread that uses an engine which others use, too. */
typedef struct guest {
    const setup *t;
    tn_engine *engine;
    tn_model *model; /* NULL: opens one of its own every time */
    int rounds;
    const tn_context *until; /* NULL, or more rounds until enough of its weights made way */
    char why[500]; /* "" where all went well */
} guest;

static void complain(guest *u, const char *what, int32_t at, tn_status s, const tn_error *err)
{
    snprintf(u->why, sizeof u->why, "%s, %s at %d: %d %.120s", u->t->g->path, what, at, (int)s,
             err->msg);
}

/* Statistics may be asked for while others evaluate and move weights. */
static void ask(guest *u, const tn_context *c)
{
    tn_stats st = {.struct_size = sizeof st};
    tn_error err = {0};
    const tn_status s = tn_context_stats(c, &st, &err);
    if (s || st.units_on_device > st.units || !st.kv_bytes_held)
        complain(u, "statistics", tn_context_length(c), s, &err);
}

static tn_stats stats(const tn_context *c)
{
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(c, &s, NULL), TN_OK);
    return s;
}

static uint64_t moved(const tn_context *c)
{
    const tn_stats s = stats(c);
    return s.units_dropped + s.units_promoted;
}

/* A context of a model: a prompt, tokens, back, and tokens again. */
static void talk(guest *u, tn_model *m)
{
    static const int32_t steps[] = {20, 1, 1, 14, 1, -30, 1, 12, 1};
    const golden *g = u->t->g;
    tn_context *c = NULL;
    tn_error err = {0};
    tn_status s = tn_context_new(&c, m, &context_options, &err);
    if (s) complain(u, "a context", 0, s, &err);
    for (size_t i = 0; i < sizeof steps / sizeof *steps && !s && !*u->why; i++) {
        const int32_t at = tn_context_length(c), n = steps[i];
        s = n < 0 ? tn_context_rewind(c, at + n, &err)
                  : tn_context_eval(c, g->tokens + at, n, &err);
        if (s) complain(u, "a step", at, s, &err);
        if (!s) ask(u, c);
        if (s || n < 0) continue;
        const distance d =
            compare(tn_context_logits(c), g->logits + (size_t)(at + n - 1) * (size_t)g->n_vocab,
                    (size_t)g->n_vocab);
        if (!(d.max_abs <= g->tolerance)) complain(u, "wrong logits", at, s, &err);
    }
    tn_context_free(c);
}

enum { enough = 5 * n_rounds }; /* units */

/* How often weights have to give way is chance: it depends on who comes when. */
static bool another_round(const guest *u, int i)
{
    return !*u->why && (i < u->rounds || (u->until && i < 20 * u->rounds &&
                                          stats(u->until).units_dropped <= enough));
}

static void *visit(void *arg)
{
    guest *u = arg;
    for (int i = 0; another_round(u, i); i++) {
        tn_model *m = u->model;
        tn_error err = {0};
        const tn_model_options mo = {.struct_size = sizeof mo, .plan = u->t->p};
        const tn_status s = m ? TN_OK : tn_model_open(&m, u->engine, u->t->g->path, &mo, &err);
        if (s) complain(u, "a model", i, s, &err);
        if (!s) talk(u, m);
        if (!u->model) tn_model_close(m);
    }
    return NULL;
}

/* Bytes of a context of a model that holds as much as it can, with nothing of it moving. */
static uint64_t context_bytes(const setup *t)
{
    run r;
    tn_context *c = NULL;
    if (!open_placed(&r, t)) return 0;
    const uint64_t before = device_used(r.engine, 0);
    CHECK_INT(tn_context_new(&c, r.model, &context_options, NULL), TN_OK);
    const uint64_t bytes =
        device_used(r.engine, 0) - before + live_kv_bytes(r.model, 0, n_ctx, page);
    tn_context_free(c);
    run_close(&r);
    return bytes;
}

static bool make_setup(setup *t, golden *g, const char *arch)
{
    *t = (setup){
        .g = g, .devices = one_device, .n_devices = 1, .granule = 16, .n_batch = page};
    if (!golden_load(g, arch)) return false;
    snprintf(t->rules.text, sizeof t->rules.text, "token_embd=host");
    return make_plan(t);
}

/* Three threads: two talk to one model, the third opens and closes another; there is room for all
 * of them only where what moves gives way. */
static void check_guests(setup *t, size_t limit)
{
    setup first = t[0];
    run r;
    pthread_t thread[3];
    tn_device_memory left = {0};
    first.limit[0] = limit;
    if (!open_placed(&r, &first)) return;
    guest u[3] = {{.t = &t[0], .model = r.model, .rounds = n_rounds, .until = r.ctx},
                  {.t = &t[0], .model = r.model, .rounds = n_rounds, .until = r.ctx},
                  {.t = &t[1], .engine = r.engine, .rounds = n_rounds, .until = r.ctx}};
    for (int i = 0; i < 3; i++)
        REQUIRE(pthread_create(&thread[i], NULL, visit, &u[i]) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < 3; i++)
        CHECK_MSG(!*u[i].why, "thread %d: %s", i, u[i].why);
    const tn_stats s = stats(r.ctx);
    CHECK_MSG(s.units_dropped > enough, "%llu dropped", (unsigned long long)s.units_dropped);
    tn_context_free(r.ctx);
    tn_model_close(r.model);
    r.ctx = NULL;
    r.model = NULL;
    CHECK_INT(r.engine->device->api->memory(r.engine->device, &left, NULL), TN_OK);
    CHECK_MSG(!left.allocations && !left.used_bytes && !left.pinned_bytes, "%zu bytes are left",
              left.used_bytes);
    run_close(&r);
}

/* ---- while others evaluate ------------------------------------------------------------------- */

/* A thread with a context that evaluates when it is asked to, so that weights
 * move every time where its steps are long. Asking
 * and waiting are relaxed on purpose: the thread sanitizer sees nothing in it that orders what the
 * threads do, so whatever the library leaves unordered is found, always. */
typedef struct other {
    tn_engine *engine;
    tn_context *ctx;
    const golden *g;
    pthread_t thread;
    atomic_int asked, done; /* evaluations; asked < 0: it ends */
    int step;               /* tokens, until there are many; then it begins again */
    int moving;             /* evaluations that moved weights */
    bool intrudes;          /* evaluates at every so manieth allocation of the asking thread */
    int every, calls;
} other;

static void take_a_nap(void)
{
    const struct timespec t = {.tv_nsec = 20000};
    nanosleep(&t, NULL);
}

static _Thread_local bool is_other;

static void *evaluate_when_asked(void *arg)
{
    other *o = arg;
    tn_error err = {0};
    is_other = true;
    for (int n = 0;;) {
        const int asked = atomic_load_explicit(&o->asked, memory_order_relaxed);
        if (asked < 0) return NULL;
        if (asked == n) {
            take_a_nap();
            continue;
        }
        const uint64_t before = moved(o->ctx);
        const bool long_one = tn_context_length(o->ctx) > 30;
        if (long_one) CHECK_INT(tn_context_rewind(o->ctx, 5, NULL), TN_OK);
        const int32_t at = tn_context_length(o->ctx);
        const tn_status s =
            tn_context_eval(o->ctx, o->g->tokens + at, long_one ? 1 : o->step, &err);
        CHECK_MSG(s == TN_OK, "the other one: %s", err.msg);
        o->moving += moved(o->ctx) > before;
        atomic_store_explicit(&o->done, n = asked, memory_order_relaxed);
    }
}

static void start(other *o, const run *r, const golden *g)
{
    o->engine = r->engine;
    o->ctx = r->ctx;
    o->g = g;
    if (pthread_create(&o->thread, NULL, evaluate_when_asked, o)) abort();
}

static void let_evaluate(other *o)
{
    const int n = atomic_load_explicit(&o->asked, memory_order_relaxed) + 1;
    atomic_store_explicit(&o->asked, n, memory_order_relaxed);
    while (atomic_load_explicit(&o->done, memory_order_relaxed) < n)
        take_a_nap();
}

static void stop(other *o)
{
    atomic_store_explicit(&o->asked, -1, memory_order_relaxed);
    pthread_join(o->thread, NULL);
}

/* An allocator of the engine: where the turn is free, another context evaluates meanwhile. */
static void *intruding_alloc(void *user, size_t bytes, size_t align)
{
    other *o = user;
    if (!is_other && o->intrudes && ++o->calls % o->every == 0 &&
        !pthread_mutex_trylock(&o->engine->turn)) {
        pthread_mutex_unlock(&o->engine->turn);
        let_evaluate(o);
    }
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void plain_free(void *user, void *p)
{
    (void)user;
    free(p);
}

/* A model, and a context that evaluates whenever the turn is free at an allocation. */
static bool open_disturbed(run *r, other *o, const setup *t, size_t limit)
{
    tn_error err = {0};
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .device = one_device,
                                  .allocator = {intruding_alloc, plain_free, o},
                                  .vram_limits = {limit}};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = t->p};
    memset(r, 0, sizeof *r);
    tn_status s = tn_engine_new(&r->engine, &eo, &err);
    if (!s) s = tn_model_open(&r->model, r->engine, t->g->path, &mo, &err);
    if (!s) s = tn_context_new(&r->ctx, r->model, &context_options, &err);
    if (!s) s = tn_context_eval(r->ctx, t->g->tokens, 5, &err);
    if (!s) start(o, r, t->g);
    if (!s) return true;
    FAIL("%s: %s", t->g->path, err.msg);
    run_close(r);
    return false;
}

/* A context arrives: only itself and its logits are allocated outside of the turn, so no weights
 * move while it looks where they are. */
static void check_context(const setup *t, size_t limit)
{
    run r;
    tn_context *c = NULL;
    tn_error err = {0};
    other o = {.step = 36, .every = 1};
    if (!open_disturbed(&r, &o, t, limit)) return;
    o.intrudes = true;
    CHECK_MSG(!tn_context_new(&c, r.model, &context_options, &err), "%s", err.msg);
    o.intrudes = false;
    CHECK_MSG(o.calls > 10 && o.done == 2, "%d evaluations at %d allocations", o.done, o.calls);
    stop(&o);
    CHECK_INT(o.moving, 2);
    tn_context_free(c);
    run_close(&r);
}

/* A model, and a context of the first one, arrive while a context of the first one goes on. */
static void check_arrivals(setup *t, size_t limit)
{
    run r;
    other o = {.step = 1, .every = every};
    if (!open_disturbed(&r, &o, t, limit)) return;
    guest u[2] = {{.t = &t[1], .engine = r.engine, .rounds = 1},
                  {.t = &t[0], .model = r.model, .rounds = 1}};
    o.intrudes = true;
    for (int k = 0; k < 2; k++) {
        visit(&u[k]);
        CHECK_MSG(!*u[k].why, "%s", u[k].why);
    }
    o.intrudes = false;
    stop(&o);
    CHECK_MSG(o.done > 5 && o.moving > 0, "%d evaluations meanwhile, %d move", o.done,
              o.moving);
    run_close(&r);
}

/* Of a context whose pages another one's evaluation takes, and of weights that it moves. */
static void check_statistics(setup *t, size_t limit)
{
    run r;
    tn_context *c = NULL;
    tn_error err = {0};
    other o = {.step = 36, .every = 1};
    setup first = *t;
    first.limit[0] = limit;
    if (!open_placed(&r, &first)) return;
    CHECK_MSG(!tn_context_new(&c, r.model, &context_options, &err), "%s", err.msg);
    CHECK_INT(tn_context_eval(r.ctx, t->g->tokens, 5, &err), TN_OK);
    start(&o, &r, t->g);
    for (int i = 0; i < 2 && c; i++) {
        CHECK_INT(tn_context_eval(c, t->g->tokens + tn_context_length(c), 70, &err), TN_OK);
        CHECK_INT(tn_context_rewind(c, 1, &err), TN_OK);
        const uint64_t held = stats(c).kv_bytes_held;
        let_evaluate(&o);
        const uint64_t now = stats(c).kv_bytes_held;
        CHECK_MSG(now < held, "%llu of %llu bytes", (unsigned long long)now,
                  (unsigned long long)held);
    }
    stop(&o);
    CHECK_INT(o.moving, 2);
    tn_context_free(c);
    run_close(&r);
}

/* ---- memory that devices use ----------------------------------------------------------------- */

/* The engine whose devices are watched, their functions, and the calls of each kind. */
typedef struct watch {
    tn_engine *engine;
    const tn_device_api *api;
    int allocs, frees, pinned_allocs, pinned_frees, pins, unpins;
} watch;

static watch w;

/* The engine's mutex knows no owner; here only one thread asks for it. */
static void count_in_turn(int *calls, const char *what)
{
    if (!pthread_mutex_trylock(&w.engine->turn)) {
        pthread_mutex_unlock(&w.engine->turn);
        FAIL("%s, but not in the engine's turn", what);
    }
    ++*calls;
}

static tn_status watched_alloc(tn_device *d, size_t bytes, const char *what, void **p,
                               tn_error *err)
{
    count_in_turn(&w.allocs, what);
    return w.api->alloc(d, bytes, what, p, err);
}

static tn_status watched_alloc_pinned(tn_device *d, size_t bytes, const char *what, void **p,
                                      tn_error *err)
{
    count_in_turn(&w.pinned_allocs, what);
    return w.api->alloc_pinned(d, bytes, what, p, err);
}

static tn_status watched_pin(tn_device *d, void *p, size_t bytes, tn_error *err)
{
    count_in_turn(&w.pins, "weights are pinned");
    return w.api->pin(d, p, bytes, err);
}

static void watched_free(tn_device *d, void *p)
{
    if (p) count_in_turn(&w.frees, "a free");
    w.api->free(d, p);
}

static void watched_free_pinned(tn_device *d, void *p)
{
    if (p) count_in_turn(&w.pinned_frees, "a free of pinned memory");
    w.api->free_pinned(d, p);
}

static void watched_unpin(tn_device *d, void *p)
{
    count_in_turn(&w.unpins, "weights are unpinned");
    w.api->unpin(d, p);
}

/* While somebody evaluates, the device may wait for the host, and allocating and freeing wait for
 * the device: so all of it happens in the engine's turn. A model with weights that stay, that move
 * and that are streamed, with a context, comes and goes. */
static void check_memory(const setup *t)
{
    tn_model *m = NULL;
    tn_context *c = NULL;
    tn_error err = {0};
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 1, .device = one_device};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = t->p};
    w = (watch){0};
    REQUIRE(!tn_engine_new(&w.engine, &eo, &err));
    w.api = w.engine->device->api;
    tn_device_api watched = *w.api;
    watched.alloc = watched_alloc;
    watched.alloc_pinned = watched_alloc_pinned;
    watched.pin = watched_pin;
    watched.free = watched_free;
    watched.free_pinned = watched_free_pinned;
    watched.unpin = watched_unpin;
    w.engine->device->api = &watched;
    tn_status s = tn_model_open(&m, w.engine, t->g->path, &mo, &err);
    CHECK(w.allocs > 3 && w.pins > 0);
    const int of_model = w.allocs;
    if (!s) s = tn_context_new(&c, m, &context_options, &err);
    if (!s) s = tn_context_eval(c, t->g->tokens, 4, &err);
    CHECK_MSG(!s && w.allocs > of_model, "%s: %s", t->g->path, err.msg);
    tn_context_free(c);
    tn_model_close(m);
    w.engine->device->api = w.api;
    CHECK_INT(w.frees, w.allocs);
    CHECK_INT(w.pinned_frees, w.pinned_allocs);
    CHECK_INT(w.unpins, w.pins);
    tn_engine_free(w.engine);
}

static void forget(setup *t, golden *g)
{
    tn_placement_close(t->p);
    golden_free(g);
}

TEST(models_and_contexts_come_and_go)
{
    golden g[2];
    setup t[2];
    if (!have_device(one_device)) return;
    REQUIRE(make_setup(&t[0], &g[0], "qwen3moe") && make_setup(&t[1], &g[1], "qwen3"));
    /* The context that open_placed makes beside those of the threads stays empty. */
    const size_t contexts = (size_t)(2 * context_bytes(&t[0]));
    if (tight_limits(&t[0]) && tight_limits(&t[1])) {
        const size_t spare = (t[0].limit[0] - t[0].fixed[0]) / 3;
        check_guests(t, t[0].fixed[0] + contexts + t[1].fixed[0] + spare);
        if (every) check_arrivals(t, t[0].fixed[0] + t[1].fixed[0] + spare);
    }
    for (int i = 0; i < 2; i++)
        forget(&t[i], &g[i]);
}

/* A model whose experts need more room than a context's buffers. */
TEST(no_weights_move_while_a_context_looks_where_they_are)
{
    golden g;
    setup t;
    if (!have_device(one_device)) return;
    REQUIRE(make_setup(&t, &g, "qwen3moe"));
    if (tight_limits(&t)) check_context(&t, 2 * t.limit[0] - t.fixed[0]);
    forget(&t, &g);
}

TEST(statistics_are_read_while_others_evaluate)
{
    golden g;
    setup t;
    if (!have_device(one_device)) return;
    REQUIRE(make_setup(&t, &g, "llama"));
    const size_t context = (size_t)context_bytes(&t);
    if (tight_limits(&t))
        check_statistics(&t, t.fixed[0] + context + (t.limit[0] - t.fixed[0]) / 3);
    forget(&t, &g);
}

TEST(memory_that_devices_use_comes_and_goes_in_turn)
{
    golden g;
    setup t;
    if (!have_device(one_device)) return;
    REQUIRE(make_setup(&t, &g, "llama"));
    check_memory(&t);
    forget(&t, &g);
}

int main(int argc, char **argv)
{
    return placed_main(argc, argv);
}
