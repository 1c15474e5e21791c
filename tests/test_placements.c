/* Random plans: rules name some tensors, the planner and the elastic boundary decide about the rest
 * while the context grows and shrinks. Of every architecture, on one device and on two that have
 * unequal memory: the logits are those of the reference, every rule is obeyed at every moment, and
 * no device has a byte too many. On emulated devices unless --cuda is given. Any tensor anywhere,
 * by rules alone: see test_exec_device.c. */
#include "device_bytes.h"
#include "golden.h"
#include "slow_machine.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../engine/placement.h"
#include "../engine/sides.h"
#include "../kernels/device_ops.h"

#include <pthread.h>

static const char *one_device = "emu", *two_devices = "emu:2";

static const char *const archs[] = {"llama",      "llama-mha", "llama-bias", "llama-yarn",
                                    "llama3",     "mistral",   "mixtral",    "qwen2",
                                    "qwen2-yarn", "qwen3",     "qwen3moe",   "gemma3"};
enum { n_archs = sizeof archs / sizeof *archs };

/* The sanitizers are slow: a sample will do for them. */
#if defined(__SANITIZE_THREAD__)
enum { n_plans = 1, sample = n_archs, n_rounds = 1 };
#elif defined(__SANITIZE_ADDRESS__)
enum { n_plans = 1, sample = 1, n_rounds = 4 };
#else
enum { n_plans = 4, sample = 1, n_rounds = 8 };
#endif

enum { page = 16, n_ctx = 96, n_prompt = 12, n_grown = 53, max_layers = 8, n_kinds = 7 };

/* ---- rules -------------------------------------------------------------------------------------
 */

static const char *const kinds[n_kinds] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                           "ffn_gate", "ffn_up", "ffn_down"};

/* What a rule says of each tensor: TN_MIXED where there is none. */
typedef struct rules {
    tn_side side[max_layers][n_kinds];
    char text[3000];
} rules;

static int32_t below(uint64_t *seed, int32_t n)
{
    return (int32_t)(test_rand(seed) % (uint64_t)n);
}

/* Attention of some layers tensor by tensor, and the FFN of one at most. */
static void random_rules(rules *r, int32_t n_layers, uint64_t *seed)
{
    const int32_t fixed_ffn = below(seed, 2 * n_layers);
    size_t n = 0;
    r->text[0] = 0;
    for (int32_t l = 0; l < n_layers; l++) {
        const bool attn = below(seed, 2);
        for (int i = 0; i < n_kinds; i++) {
            r->side[l][i] = TN_MIXED;
            if (i < 4 ? !attn : l != fixed_ffn) continue;
            r->side[l][i] = below(seed, 3) ? TN_ON_DEVICE : TN_ON_HOST;
            n += (size_t)snprintf(r->text + n, sizeof r->text - n, "%sblk.%d.%s[._]=%s",
                                  n ? "," : "", (int)l, kinds[i],
                                  r->side[l][i] == TN_ON_HOST ? "host" : "device");
        }
    }
    if (!n) snprintf(r->text, sizeof r->text, "token_embd=host");
}

/* ---- plans -------------------------------------------------------------------------------------
 */

typedef struct setup {
    const golden *g;
    const char *devices;
    int32_t n_devices, granule;
    rules rules;
    tn_placement *p;
    size_t limit[2], fixed[2]; /* of memory, and of this what does not move */
    struct events *events; /* NULL: nobody listens */
} setup;

/* What the log has told of the boundary. */
typedef struct events {
    int32_t units[max_layers]; /* on a device */
    bool evaluating;           /* a batch at least of the running evaluation is done */
    int n;
} events;

/* Every move is told, with what was there before, and before the evaluation begins. */
static void listen(void *user, tn_log_level level, const char *line)
{
    events *e = user;
    const char *what = strstr(line, ": layer ");
    int32_t l, now, of, before;
    char units[20];
    (void)level;
    if (strncmp(line, "boundary: ", 10) != 0) return;
    const int found = what ? sscanf(what, ": layer %d has %d of %d %19s on the device, had %d", &l, &now,
                                    &of, units, &before)
                           : 0;
    CHECK_MSG(found == 5 && l >= 0 && l < max_layers && !e->evaluating, "'%s'", line);
    if (found != 5 || l < 0 || l >= max_layers) return;
    CHECK_MSG(before == e->units[l] && now != before && now <= of, "'%s' after %d", line, e->units[l]);
    e->units[l] = now;
    e->n++;
}

static void progress(void *user, uint64_t done, uint64_t total)
{
    events *e = user;
    if (e) e->evaluating = done < total;
}

static bool moves(const tn_plan *p)
{
    int32_t units = 0;
    for (int32_t l = 0; l < p->n_layers; l++)
        units += p->layer[l].mixed ? 0 : p->layer[l].units;
    return p->feasible && p->elastic && p->dropping && units > 0;
}

static bool serves(const tn_plan *p, int32_t n_devices)
{
    int32_t n[2] = {0, 0};
    for (int32_t l = 0; l < p->n_layers; l++)
        if (p->layer[l].device >= 0) n[p->layer[l].device]++;
    return n[0] && (n_devices < 2 || n[1]);
}

/* The first budget with which slabs are on the device that do not fit beside a full context. */
static bool make_plan(setup *t)
{
    const char *place = t->rules.text;
    char *machine = slow_machine();
    tn_error err = {0};
    for (uint64_t vram = 100 << 10; machine && !t->p && vram < 6 << 20; vram += 12 << 10) {
        const tn_placement_options o = {
            .struct_size = sizeof o,
            .hardware = machine,
            .place = &place,
            .n_place = 1,
            .n_devices = t->n_devices,
            .request = "8+8",
            .n_ctx = n_ctx,
            .n_batch = page,
            .kv = TN_KV_F32,
            .vram = {t->n_devices == 2 ? vram + vram / 8 : vram, t->n_devices == 2 ? vram : 0},
            .granule = t->granule,
            .page_size = page};
        /* What the rules alone need may be more than a small budget. */
        if (tn_placement_open(&t->p, t->g->path, &o, &err)) continue;
        if (moves(&t->p->planned.plan) && serves(&t->p->planned.plan, t->n_devices)) break;
        tn_placement_close(t->p);
        t->p = NULL;
    }
    if (!t->p)
        FAIL("%s on %s, placed %s: no plan moves (%s)", t->g->path, t->devices, place, err.msg);
    free(machine);
    return t->p != NULL;
}

static bool open_planned(run *r, const setup *t)
{
    tn_error err = {0};
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .device = t->devices,
                                  .log = t->events ? listen : NULL,
                                  .log_user = t->events,
                                  .vram_limits = {t->limit[0], t->limit[1]}};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = t->p};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page,
                                   .progress = progress,
                                   .user = t->events};
    memset(r, 0, sizeof *r);
    if (t->events) memset(t->events, 0, sizeof *t->events);
    tn_status s = tn_engine_new(&r->engine, &eo, &err);
    if (!s) s = tn_model_open(&r->model, r->engine, t->g->path, &mo, &err);
    if (!s) s = tn_context_new(&r->ctx, r->model, &co, &err);
    if (!s) return true;
    FAIL("%s: %s", t->g->path, err.msg);
    run_close(r);
    return false;
}

/* Limits with room for a full context and a third of what moves. */
static bool tight_limits(setup *t)
{
    run r;
    if (!open_planned(&r, t)) return false;
    CHECK_INT(tn_context_eval(r.ctx, t->g->tokens, 1, NULL), TN_OK);
    for (int d = 0; d < r.model->on_device.n_segments; d++) {
        uint64_t all;
        const uint64_t moving = moving_bytes(r.model, d, &all);
        const uint64_t kv =
            live_kv_bytes(r.model, d, n_ctx, page) - live_kv_bytes(r.model, d, 1, page);
        t->fixed[d] = (size_t)(device_used(r.engine, d) + kv - moving);
        t->limit[d] = t->fixed[d] + (size_t)all / 3;
    }
    run_close(&r);
    return true;
}

/* ---- a walk ------------------------------------------------------------------------------------
 */

typedef struct seen {
    int splits, uneven, pages, dropped, promoted, ruled, two;
    uint64_t page_bytes; /* of the first tokens, which are on one page */
} seen;

static void look_at_layer(const setup *t, const run *r, int32_t l, seen *what)
{
    const tn_layer *y = &r->model->layers[l];
    const tn_layer_device *d = &r->model->on_device.layers[l];
    const tn_sides s = tn_sides_of(y, d);
    const tn_side side[n_kinds] = {s.q, s.k, s.v, s.out, s.gate, s.up, s.down};
    for (int i = 0; i < n_kinds; i++) {
        if (t->rules.side[l][i] == TN_MIXED) continue;
        CHECK_MSG(side[i] == t->rules.side[l][i], "placed %s: layer %d, %s is on side %d",
                  t->rules.text, l, kinds[i], (int)side[i]);
        what->ruled++;
    }
    const tn_shape_layer *z = &t->p->shape.layer[l];
    const int64_t rows = d->ffn_gate.rows, each = z->n_expert ? z->n_ff : z->granule;
    if (!d->moves) return;
    CHECK_MSG(t->events->units[l] == (rows == y->ffn_gate.rows ? z->n_units : rows / each),
              "layer %d has %lld rows, the log tells of %d units", l, (long long)rows,
              t->events->units[l]);
    if (s.ffn != TN_ON_BOTH) return;
    CHECK(d->ffn_gate.rows > 0 && d->ffn_gate.rows < y->ffn_gate.rows);
    what->splits++;
    what->uneven += !r->model->hp.n_expert && r->model->hp.n_ff % t->granule != 0;
}

static void look(const setup *t, const run *r, uint64_t base[2], seen *what)
{
    tn_stats s = {.struct_size = sizeof s};
    for (int d = 0; d < r->model->on_device.n_segments; d++) {
        uint64_t all;
        const uint64_t now = device_used(r->engine, d), moving = moving_bytes(r->model, d, &all);
        const uint64_t kv = live_kv_bytes(r->model, d, tn_context_length(r->ctx), page);
        if (!base[d]) base[d] = now - kv - moving;
        CHECK_MSG(now == base[d] + kv + moving && now <= t->limit[d],
                  "device %d has %llu bytes: %llu + %llu + %llu, of %zu", d,
                  (unsigned long long)now, (unsigned long long)base[d], (unsigned long long)kv,
                  (unsigned long long)moving, t->limit[d]);
    }
    for (int32_t l = 0; l < r->model->hp.n_layers; l++)
        look_at_layer(t, r, l, what);
    CHECK_INT(tn_context_stats(r->ctx, &s, NULL), TN_OK);
    if (tn_context_length(r->ctx) == n_prompt) what->page_bytes = s.kv_bytes_held;
    const int pages = (int)(s.kv_bytes_held / what->page_bytes);
    if (pages > what->pages) what->pages = pages;
}

static bool step(const setup *t, const run *r, int32_t n, uint64_t base[2], seen *what)
{
    const golden *g = t->g;
    tn_error err = {0};
    const int32_t at = tn_context_length(r->ctx) + n;
    const tn_status s = tn_context_eval(r->ctx, g->tokens + at - n, n, &err);
    CHECK_MSG(s == TN_OK, "placed %s: %s", t->rules.text, err.msg);
    if (s) return false;
    const distance d =
        compare(tn_context_logits(r->ctx), g->logits + (size_t)(at - 1) * (size_t)g->n_vocab,
                (size_t)g->n_vocab);
    CHECK_MSG(d.max_abs <= g->tolerance,
              "%s on %s, placed %s, after %d tokens: off by %g (at most %g)", g->path, t->devices,
              t->rules.text, at, d.max_abs, g->tolerance);
    look(t, r, base, what);
    return tn_failures == 0;
}

static void count_moves(const run *r, tn_stats *s)
{
    s->struct_size = sizeof *s;
    CHECK_INT(tn_context_stats(r->ctx, s, NULL), TN_OK);
}

/* A prompt, tokens, back to the start, and tokens again. */
static void walk(const setup *t, seen *what)
{
    run r;
    uint64_t base[2] = {0, 0};
    tn_stats grown, shrunk;
    if (!open_planned(&r, t)) return;
    bool ok = step(t, &r, n_prompt, base, what);
    for (int n = 1; ok && tn_context_length(r.ctx) < n_grown; n = n == 5 ? 1 : n + 2)
        ok = step(t, &r, n, base, what);
    count_moves(&r, &grown);
    CHECK_INT(tn_context_rewind(r.ctx, 3, NULL), TN_OK);
    for (int i = 0; i < 3 && ok; i++)
        ok = step(t, &r, 1, base, what);
    count_moves(&r, &shrunk);
    what->two += r.model->on_device.n_segments == 2;
    what->dropped += (int)grown.units_dropped;
    what->promoted += (int)(shrunk.units_promoted - grown.units_promoted);
    run_close(&r);
}

static int32_t layers_of(const golden *g)
{
    run r;
    tn_model_info info = {.struct_size = sizeof info};
    const run_options o = {.threads = 1};
    if (!run_open(&r, g->path, &o)) return 0;
    CHECK_INT(tn_model_get_info(r.model, &info, NULL), TN_OK);
    run_close(&r);
    CHECK(info.n_layers <= max_layers);
    return info.n_layers <= max_layers ? info.n_layers : 0;
}

/* Whether there are two devices. */
static bool two_there(void)
{
    int n = 0;
    tn_device_count(strcmp(one_device, "emu") == 0 ? TN_DEVICE_EMULATED : TN_DEVICE_CUDA, &n, NULL);
    return n > 1;
}

static void check_plan(const golden *g, int i, int32_t n_layers, bool two, uint64_t *seed,
                       seen *what)
{
    events heard;
    setup t = {.g = g, .granule = i % 2 ? 16 : 48, .events = &heard};
    t.n_devices = two ? 2 : 1;
    t.devices = two ? two_devices : one_device;
    random_rules(&t.rules, n_layers, seed);
    if (make_plan(&t) && tight_limits(&t)) walk(&t, what);
    tn_placement_close(t.p);
}

TEST(random_plans_move)
{
    if (!have_device(one_device)) return;
    seen all = {0};
    const bool several = two_there();
    for (size_t a = 0; a < n_archs; a += sample) {
        golden g;
        seen what = {0};
        uint64_t seed = 77 + a;
        if (!golden_load(&g, archs[a])) return;
        const int32_t n_layers = layers_of(&g);
        for (int i = 0; i < n_plans && n_layers; i++)
            check_plan(&g, i, n_layers, several && i % 5 == 3, &seed, &what);
        CHECK_MSG(what.splits > 3 * n_plans && what.pages >= 3 &&
                      (n_plans < 4 || what.dropped >= 2) && (n_plans < 4 || what.promoted > 0),
                  "%s: %d splits, %d pages, %d dropped, %d promoted", archs[a], what.splits,
                  what.pages, what.dropped, what.promoted);
        all.uneven += what.uneven;
        all.ruled += what.ruled;
        all.two += what.two;
        golden_free(&g);
    }
    CHECK_MSG(n_plans < 4 ||
                  (all.uneven > 50 && all.ruled > 1000 && (!several || all.two == n_archs)),
              "%d uneven splits, %d tensors under rules, %d times two devices", all.uneven,
              all.ruled, all.two);
}

/* ---- several at once ---------------------------------------------------------------------------
 */

/* A thread that uses an engine which others use, too. */
typedef struct guest {
    const setup *t;
    tn_engine *engine;
    tn_model *model; /* NULL: opens one of its own every time */
    int rounds;
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

/* A context of a model: a prompt, tokens, back, and tokens again. */
static void talk(guest *u, tn_model *m)
{
    static const int32_t steps[] = {20, 1, 1, 14, 1, -30, 1, 12, 1};
    const golden *g = u->t->g;
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page};
    tn_context *c = NULL;
    tn_error err = {0};
    tn_status s = tn_context_new(&c, m, &co, &err);
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

static void *visit(void *arg)
{
    guest *u = arg;
    for (int i = 0; i < u->rounds && !*u->why; i++) {
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
    if (!open_planned(&r, t)) return 0;
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page};
    const uint64_t before = device_used(r.engine, 0);
    CHECK_INT(tn_context_new(&c, r.model, &co, NULL), TN_OK);
    const uint64_t bytes = device_used(r.engine, 0) - before + live_kv_bytes(r.model, 0, n_ctx, page);
    tn_context_free(c);
    run_close(&r);
    return bytes;
}

static bool make_setup(setup *t, golden *g, const char *arch)
{
    *t = (setup){.g = g, .devices = one_device, .n_devices = 1, .granule = 16};
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
    tn_stats s;
    tn_device_memory left = {0};
    first.limit[0] = limit;
    if (!open_planned(&r, &first)) return;
    guest u[3] = {{.t = &t[0], .model = r.model, .rounds = n_rounds},
                  {.t = &t[0], .model = r.model, .rounds = n_rounds},
                  {.t = &t[1], .engine = r.engine, .rounds = n_rounds}};
    for (int i = 0; i < 3; i++)
        REQUIRE(pthread_create(&thread[i], NULL, visit, &u[i]) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < 3; i++)
        CHECK_MSG(!*u[i].why, "thread %d: %s", i, u[i].why);
    count_moves(&r, &s);
    CHECK_MSG(s.units_dropped > 5 * n_rounds, "%llu dropped", (unsigned long long)s.units_dropped);
    tn_context_free(r.ctx);
    tn_model_close(r.model);
    r.ctx = NULL;
    r.model = NULL;
    CHECK_INT(r.engine->device->api->memory(r.engine->device, &left, NULL), TN_OK);
    CHECK_MSG(!left.allocations && !left.used_bytes && !left.pinned_bytes, "%zu bytes are left",
              left.used_bytes);
    run_close(&r);
}

/* An allocator of the engine that lets another context evaluate a token now and then: what arrives at
 * the moment must find its room all the same. */
typedef struct intruder {
    tn_engine *engine;
    tn_context *ctx; /* NULL: it sleeps */
    const golden *g;
    int calls, evals;
    bool inside;
} intruder;

static void intrude(intruder *i)
{
    tn_error err = {0};
    if (!i->ctx || i->inside || ++i->calls % 2 || pthread_mutex_trylock(&i->engine->turn)) return;
    pthread_mutex_unlock(&i->engine->turn);
    i->inside = true;
    if (tn_context_length(i->ctx) > 40) CHECK_INT(tn_context_rewind(i->ctx, 5, NULL), TN_OK);
    const tn_status s =
        tn_context_eval(i->ctx, i->g->tokens + tn_context_length(i->ctx), 1, &err);
    CHECK_MSG(s == TN_OK, "the intruder: %s", err.msg);
    i->evals++;
    i->inside = false;
}

static void *intruding_alloc(void *user, size_t bytes, size_t align)
{
    intrude(user);
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void plain_free(void *user, void *p)
{
    (void)user;
    free(p);
}

/* A model, and a context of the first one, arrive while a context of the first one goes on. */
static void check_arrivals(setup *t, size_t limit)
{
    run r = {NULL, NULL, NULL};
    tn_error err = {0};
    intruder i = {.g = t[0].g};
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .device = one_device,
                                  .allocator = {intruding_alloc, plain_free, &i},
                                  .vram_limits = {limit}};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = t[0].p};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page};
    REQUIRE(tn_engine_new(&r.engine, &eo, &err) == TN_OK);
    REQUIRE(tn_model_open(&r.model, r.engine, t[0].g->path, &mo, &err) == TN_OK);
    REQUIRE(tn_context_new(&r.ctx, r.model, &co, &err) == TN_OK);
    CHECK_INT(tn_context_eval(r.ctx, t[0].g->tokens, 10, &err), TN_OK);
    guest u[2] = {{.t = &t[1], .engine = r.engine, .rounds = 1},
                  {.t = &t[0], .model = r.model, .rounds = 1}};
    i.engine = r.engine;
    i.ctx = r.ctx;
    for (int k = 0; k < 2; k++) {
        visit(&u[k]);
        CHECK_MSG(!*u[k].why, "%s", u[k].why);
    }
    CHECK_MSG(i.evals > 5, "%d tokens meanwhile", i.evals);
    i.ctx = NULL;
    run_close(&r);
}

TEST(models_and_contexts_come_and_go)
{
    golden g[2];
    setup t[2];
    if (!have_device(one_device)) return;
    REQUIRE(make_setup(&t[0], &g[0], "llama") && make_setup(&t[1], &g[1], "qwen3"));
    /* The context that open_planned makes beside those of the threads stays empty. */
    const size_t contexts = (size_t)(2 * context_bytes(&t[0]));
    if (tight_limits(&t[0]) && tight_limits(&t[1])) {
        const size_t spare = (t[0].limit[0] - t[0].fixed[0]) / 3;
        check_guests(t, t[0].fixed[0] + contexts + t[1].fixed[0] + spare);
        check_arrivals(t, t[0].fixed[0] + t[1].fixed[0] + spare);
    }
    for (int i = 0; i < 2; i++) {
        tn_placement_close(t[i].p);
        golden_free(&g[i]);
    }
}

int main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) {
        one_device = "cuda";
        two_devices = "cuda:0,1";
    }
    return tn_test_main(argc, argv);
}
