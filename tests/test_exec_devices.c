/* Whole models over two devices that have unequal memory, emulated ones unless --cuda is given:
 * what one device computes, both together do, and a fault on either leaves nothing behind. Any mix
 * of sides on two devices: see test_exec_device.c. */
#include "device_bytes.h"
#include "golden.h"
#include "slow_machine.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../engine/placement.h"
#include "../kernels/device_ops.h"
#include "../kernels/emu/emu.h"

#include <unistd.h>

static const char *devices = "emu:2";

/* The thread sanitizer is slow: of a list every so manieth will do for it. */
#ifdef __SANITIZE_THREAD__
enum { sample = 3 };
#else
enum { sample = 1 };
#endif
enum { page = 16, n_ctx = 96, n_prompt = 30, n_steps = 6 };

/* ---- running --------------------------------------------------------------------------------- */

typedef struct moves {
    int of[2]; /* layers that moved on each device, by the engine's log */
    const tn_model *m;
} moves;

static void listen(void *user, tn_log_level level, const char *line)
{
    moves *w = user;
    const char *layer = strstr(line, ": layer ");
    (void)level;
    if (strncmp(line, "boundary: ", 10) != 0 || !layer || !w->m) return;
    w->of[tn_segment_of(&w->m->on_device, (int32_t)strtol(layer + 8, NULL, 10))]++;
}

typedef struct two {
    tn_engine *engine;
    tn_model *model;
    tn_context *ctx;
    moves moves;
} two;

static void close_two(two *x)
{
    tn_context_free(x->ctx);
    tn_model_close(x->model);
    tn_engine_free(x->engine);
    memset(x, 0, sizeof *x);
}

static tn_status open_engine(two *x, const size_t limit[2], tn_error *err)
{
    memset(x, 0, sizeof *x);
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .log = listen,
                                  .log_user = &x->moves,
                                  .device = devices,
                                  .vram_limits = {limit[0], limit[1]}};
    return tn_engine_new(&x->engine, &eo, err);
}

/* Under rules, or a plan. */
static tn_status open_model(two *x, const char *path, const char *place, const tn_placement *plan,
                            tn_cancel_fn cancel, void *user, tn_error *err)
{
    const tn_model_options mo = {.struct_size = sizeof mo,
                                 .place = &place,
                                 .n_place = place != NULL,
                                 .granule = plan ? 0 : 16,
                                 .plan = plan};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page,
                                   .cancel = cancel,
                                   .user = user};
    tn_status s = tn_model_open(&x->model, x->engine, path, &mo, err);
    x->moves.m = x->model;
    return s ? s : tn_context_new(&x->ctx, x->model, &co, err);
}

static bool open_two(two *x, const char *path, const char *place, const tn_placement *plan,
                     const size_t limit[2])
{
    tn_error err = {0};
    tn_status s = open_engine(x, limit, &err);
    if (!s) s = open_model(x, path, place, plan, NULL, NULL, &err);
    if (!s && x->model->on_device.n_segments == 2) return true;
    FAIL("%s: %s", path, s ? err.msg : "one device has all layers");
    close_two(x);
    return false;
}

/* A prompt in batches, then tokens one by one: [n_steps + 1] rows of logits,
 * freed by the caller. */
static float *run_two(const golden *g, const char *place, const tn_placement *plan,
                      const size_t limit[2])
{
    two x;
    tn_error err = {0};
    const size_t row = (size_t)g->n_vocab;
    if (!open_two(&x, g->path, place, plan, limit)) return NULL;
    float *out = malloc((n_steps + 1) * row * sizeof *out);
    tn_status s = out ? tn_context_eval(x.ctx, g->tokens, n_prompt, &err) : TN_ENOMEM;
    for (int32_t i = 0; i <= n_steps && !s; i++) {
        memcpy(out + (size_t)i * row, tn_context_logits(x.ctx), row * sizeof *out);
        if (i < n_steps) s = tn_context_eval(x.ctx, g->tokens + n_prompt + i, 1, &err);
    }
    close_two(&x);
    if (!s) return out;
    FAIL("%s: %s", g->path, err.msg);
    free(out);
    return NULL;
}

static void check_rows(const golden *g, const float *got, const char *how)
{
    const size_t row = (size_t)g->n_vocab;
    if (!got) return;
    const distance d = compare(got, g->logits + (n_prompt - 1) * row, (n_steps + 1) * row);
    CHECK_MSG(d.max_abs <= g->tolerance, "%s, %s: a logit is off by %g (at most %g)", g->path, how,
              d.max_abs, g->tolerance);
}

static bool two_there(void)
{
    int n = 0;
    tn_device_count(strstr(devices, "emu") ? TN_DEVICE_EMULATED : TN_DEVICE_CUDA, &n, NULL);
    if (n < 2) tn_skipped = "there are no two devices";
    return n > 1;
}

/* ---- the same bits, however the devices reach each other ------------------------------------- */

static void set_peers(const two *x, bool peers)
{
    tn_emu_settings s;
    const tn_emu_control *emu = x->engine->device->api->emu;
    if (!emu) return;
    emu->get(&s);
    s.peers = peers;
    emu->set(&s);
}

static const size_t unequal[2] = {16 << 20, 12 << 20};

/* Where devices do not reach each other the residual stream goes through the host's memory. */
static void use_peers(bool peers)
{
    two x;
    tn_error err = {0};
    if (open_engine(&x, unequal, &err)) return;
    set_peers(&x, peers);
    close_two(&x);
}

static const char *const places[] = {
    ".=device", "ffn_=split:0.4,blk.1.attn=host,output=split:0.5",
    "blk.0.=host,token_embd=device,output=device", "blk.1.=host,blk.2.ffn_up=host",
    "attn_[qkv]=host"};

TEST(the_same_placement_gives_the_same_bits)
{
    static const char *const names[] = {"qwen3", "gemma3", "mixtral"};
    if (!two_there()) return;
    for (size_t m = 0; m < sizeof names / sizeof *names; m += sample) {
        golden g;
        if (!golden_load(&g, names[m])) return;
        const size_t bytes = (n_steps + 1) * (size_t)g.n_vocab * sizeof(float);
        for (size_t p = 0; p < sizeof places / sizeof *places; p += sample) {
            float *a = run_two(&g, places[p], NULL, unequal);
            float *b = run_two(&g, places[p], NULL, unequal);
            use_peers(false);
            float *c = run_two(&g, places[p], NULL, unequal);
            use_peers(true);
            check_rows(&g, a, places[p]);
            CHECK_MSG(a && b && memcmp(a, b, bytes) == 0, "%s: not the same bits", places[p]);
            CHECK_MSG(a && c && memcmp(a, c, bytes) == 0, "%s: other bits by way of the host",
                      places[p]);
            free(a);
            free(b);
            free(c);
        }
        golden_free(&g);
    }
}

static uint64_t calls(const two *x, int d, tn_device_fault kind)
{
    tn_device *y = x->engine->devices.at[d];
    return y->api->fail_at(y, kind, 0);
}

/* One hand-over a token, where everything is on the devices; both do their part of the work. Of the
 * copies only that between the devices is not in the recording. */
TEST(both_devices_work)
{
    golden g;
    two x;
    if (!two_there() || !golden_load(&g, "llama")) return;
    if (open_two(&x, g.path, "token_embd=host,.=device", NULL, unequal)) {
        tn_stats s = {.struct_size = sizeof s};
        tn_device *const d0 = x.engine->devices.at[0], *const d1 = x.engine->devices.at[1];
        CHECK_INT(tn_context_eval(x.ctx, g.tokens, 10, NULL), TN_OK);
        tn_context_stats_reset(x.ctx);
        const uint64_t before[2] = {calls(&x, 0, TN_FAULT_LAUNCH), calls(&x, 1, TN_FAULT_LAUNCH)};
        CHECK_INT(tn_context_eval(x.ctx, g.tokens + 10, 1, NULL), TN_OK);
        CHECK(calls(&x, 0, TN_FAULT_LAUNCH) - before[0] > 10 &&
              calls(&x, 1, TN_FAULT_LAUNCH) - before[1] > 10);
        const uint64_t copies[2] = {calls(&x, 0, TN_FAULT_COPY), calls(&x, 1, TN_FAULT_COPY)};
        for (int i = 11; i < 13; i++)
            CHECK_INT(tn_context_eval(x.ctx, g.tokens + i, 1, NULL), TN_OK);
        CHECK_INT(calls(&x, 0, TN_FAULT_COPY) - copies[0], 2);
        CHECK_INT(calls(&x, 1, TN_FAULT_COPY) - copies[1], d0->api->reaches(d0, d1) ? 0 : 2);
        CHECK_INT(tn_context_stats(x.ctx, &s, NULL), TN_OK);
        CHECK_INT(s.hops, 3 * 2); /* the embedding comes from the host */
        close_two(&x);
    }
    golden_free(&g);
}

/* ---- plans ----------------------------------------------------------------------------------- */

static int32_t layers_on(const tn_plan *p, int8_t device)
{
    int32_t n = 0;
    for (int32_t l = 0; l < p->n_layers; l++)
        n += p->layer[l].device == device && p->layer[l].attn;
    return n;
}

/* A plan with attention on both devices, and slabs that do not fit beside a full context; and the
 * file it is written to. */
static tn_placement *moving_plan(const char *path, const char *file)
{
    char *machine = slow_machine(), *text = NULL;
    tn_placement *p = NULL;
    tn_error err = {0};
    for (uint64_t vram = 100 << 10; machine && !p && vram < 4 << 20; vram += 4 << 10) {
        const tn_placement_options o = {.struct_size = sizeof o,
                                        .hardware = machine,
                                        .n_devices = 2,
                                        .request = "8+8",
                                        .n_ctx = n_ctx,
                                        .n_batch = page,
                                        .kv = TN_KV_F32,
                                        .vram = {vram + vram / 16, vram},
                                        .granule = 16,
                                        .page_size = page};
        if (tn_placement_open(&p, path, &o, &err)) break;
        const tn_plan *y = &p->planned.plan;
        if (y->feasible && y->elastic && y->dropping && layers_on(y, 0) && layers_on(y, 1)) break;
        tn_placement_close(p);
        p = NULL;
    }
    if (!p) FAIL("%s: no plan moves on two devices (%s)", path, err.msg);
    if (p && tn_placement_json(p, &text, NULL) == TN_OK) {
        FILE *f = fopen(file, "w");
        if (f) fputs(text, f);
        if (f) fclose(f);
        tn_placement_string_free(p, text);
    }
    free(machine);
    return p;
}

/* Limits with room for a full context and a quarter of what moves on each device. */
static bool tight_limits(const golden *g, const tn_placement *p, size_t limit[2])
{
    static const size_t none[2] = {0, 0};
    two x;
    if (!open_two(&x, g->path, NULL, p, none)) return false;
    CHECK_INT(tn_context_eval(x.ctx, g->tokens, 1, NULL), TN_OK);
    for (int d = 0; d < 2; d++) {
        uint64_t all, ffn = moving_bytes(x.model, d, &all);
        const uint64_t kv =
            live_kv_bytes(x.model, d, n_ctx, page) - live_kv_bytes(x.model, d, 1, page);
        limit[d] = (size_t)(device_used(x.engine, d) + kv - ffn + all / 4);
    }
    close_two(&x);
    return true;
}

/* Every byte on either device is accounted for, and none is too many. */
static void look(const two *x, const size_t limit[2], uint64_t base[2])
{
    uint64_t all;
    for (int d = 0; d < 2; d++) {
        const uint64_t now = device_used(x->engine, d), ffn = moving_bytes(x->model, d, &all);
        const uint64_t kv = live_kv_bytes(x->model, d, tn_context_length(x->ctx), page);
        if (!base[d]) base[d] = now - kv - ffn;
        CHECK_MSG(now == base[d] + kv + ffn, "device %d: %llu bytes are not accounted for", d,
                  (unsigned long long)(now - base[d] - kv - ffn));
        CHECK_MSG(now <= limit[d], "device %d: %llu of %zu bytes", d, (unsigned long long)now,
                  limit[d]);
    }
}

static void feed(const two *x, const golden *g, int32_t to, const size_t limit[2], uint64_t base[2])
{
    tn_error err = {0};
    for (int32_t i = tn_context_length(x->ctx); i < to && !tn_failures; i++) {
        const tn_status s = tn_context_eval(x->ctx, g->tokens + i, 1, &err);
        CHECK_MSG(s == TN_OK, "token %d: %s", i, err.msg);
        if (s) return;
        const distance d = compare(tn_context_logits(x->ctx),
                                   g->logits + (size_t)i * (size_t)g->n_vocab, (size_t)g->n_vocab);
        CHECK_MSG(d.max_abs <= g->tolerance, "token %d: a logit is off by %g (at most %g)", i,
                  d.max_abs, g->tolerance);
        look(x, limit, base);
    }
}

static void check_devices(const two *x, const tn_plan *p)
{
    const tn_model_device *d = &x->model->on_device;
    for (int32_t l = 0; l < p->n_layers; l++)
        CHECK_INT(d->segment[tn_segment_of(d, l)].index, p->layer[l].device);
}

/* Slabs leave both devices as the context grows and come back to both as it shrinks. */
static void check_walk(const golden *g, const tn_placement *p, const size_t limit[2])
{
    two x;
    uint64_t base[2] = {0, 0};
    if (!open_two(&x, g->path, NULL, p, limit)) return;
    check_devices(&x, &p->planned.plan);
    feed(&x, g, 3 * page + 5, limit, base);
    const moves grown = x.moves;
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(x.ctx, &s, NULL), TN_OK);
    const uint64_t units = s.units_on_device;
    CHECK_MSG(grown.of[0] > 1 && grown.of[1] > 1 && s.units_dropped > 1, "%d and %d moves",
              grown.of[0], grown.of[1]);
    CHECK_INT(tn_context_rewind(x.ctx, 3, NULL), TN_OK);
    feed(&x, g, 6, limit, base);
    CHECK_INT(tn_context_stats(x.ctx, &s, NULL), TN_OK);
    CHECK_MSG(
        x.moves.of[0] > grown.of[0] && x.moves.of[1] > grown.of[1] && s.units_on_device > units,
        "%d and %d moves, %d and %d after", grown.of[0], grown.of[1], x.moves.of[0], x.moves.of[1]);
    close_two(&x);
}

/* The plan's file says which layers are on which device, and is carried out so. */
static void check_file(const golden *g, const tn_placement *p, const char *path,
                       const size_t limit[2])
{
    char *machine = slow_machine();
    tn_placement *file = NULL;
    tn_error err = {0};
    tn_placement_options o = {.struct_size = sizeof o,
                              .hardware = machine,
                              .plan_file = path,
                              .n_ctx = n_ctx,
                              .n_batch = page,
                              .kv = TN_KV_F32,
                              .granule = 16,
                              .page_size = page};
    CHECK_INT(tn_placement_open(&file, g->path, &o, &err), TN_EARG);
    CHECK_MSG(strstr(err.msg, "with 2 devices"), "%s", err.msg);
    o.n_devices = 2;
    CHECK_MSG(tn_placement_open(&file, g->path, &o, &err) == TN_OK, "%s", err.msg);
    for (int32_t l = 0; file && l < p->planned.plan.n_layers; l++)
        CHECK_INT(file->planned.plan.layer[l].device, p->planned.plan.layer[l].device);
    float *a = file ? run_two(g, NULL, file, limit) : NULL;
    float *b = file ? run_two(g, NULL, file, limit) : NULL;
    check_rows(g, a, "replayed");
    CHECK(a && b && memcmp(a, b, (n_steps + 1) * (size_t)g->n_vocab * sizeof *a) == 0);
    free(a);
    free(b);
    free(machine);
    tn_placement_close(file);
}

TEST(plans_are_carried_out)
{
    static const char *const names[] = {"llama", "qwen3moe", "gemma3"};
    char path[64];
    if (!two_there()) return;
    snprintf(path, sizeof path, "/tmp/tenon-two-%ld.json", (long)getpid());
    for (size_t i = 0; i < sizeof names / sizeof *names; i += sample) {
        golden g;
        size_t limit[2];
        if (!golden_load(&g, names[i])) return;
        tn_placement *p = moving_plan(g.path, path);
        if (p && tight_limits(&g, p, limit)) {
            CHECK(limit[0] != limit[1]);
            check_walk(&g, p, limit);
            check_file(&g, p, path, limit);
        }
        tn_placement_close(p);
        golden_free(&g);
    }
    unlink(path);
}

/* A plan for two devices needs two. */
TEST(a_plan_for_more_devices_than_there_are_is_refused)
{
    golden g;
    char path[64];
    tn_engine *e = NULL;
    tn_model *m = NULL;
    tn_error err = {0};
    if (!two_there() || !golden_load(&g, "llama")) return;
    snprintf(path, sizeof path, "/tmp/tenon-two-%ld.json", (long)getpid());
    tn_placement *p = moving_plan(g.path, path);
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = 1, .device = strstr(devices, "emu") ? "emu" : "cuda"};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
    if (p && tn_engine_new(&e, &eo, &err) == TN_OK) {
        CHECK_INT(tn_model_open(&m, e, g.path, &mo, &err), TN_EARG);
        CHECK_MSG(strstr(err.msg, "needs device 1, and the engine has 1"), "%s", err.msg);
    }
    tn_engine_free(e);
    tn_placement_close(p);
    unlink(path);
    golden_free(&g);
}

/* ---- faults and cancels ---------------------------------------------------------------------- */

static void check_nothing_left(const two *x, const char *what)
{
    for (int d = 0; d < 2; d++) {
        tn_device_memory m = {0};
        tn_device *y = x->engine->devices.at[d];
        CHECK_INT(y->api->memory(y, &m, NULL), TN_OK);
        CHECK_MSG(!m.allocations && !m.used_bytes && !m.pinned_bytes,
                  "%s: device %d has %zu allocations, %zu bytes, %zu pinned", what, d,
                  m.allocations, m.used_bytes, m.pinned_bytes);
    }
}

/* Fails some calls of a kind on a device, one in each life; how far they reached. */
static int check_faults(int device, tn_device_fault kind, int step, const golden *g)
{
    two x;
    tn_error err = {0};
    int k = 1 - sample * step;
    tn_status s;
    if (open_engine(&x, unequal, &err)) return 0;
    do {
        char what[60];
        tn_device *d = x.engine->devices.at[device];
        k += sample * step;
        snprintf(what, sizeof what, "device %d, fault %d of kind %d", device, k, (int)kind);
        const uint64_t calls = d->api->fail_at(d, kind, (uint64_t)k);
        s = open_model(&x, g->path, places[1], NULL, NULL, NULL, &err);
        if (!s) s = tn_context_eval(x.ctx, g->tokens, 12, &err);
        for (int i = 12; i < 15 && !s; i++)
            s = tn_context_eval(x.ctx, g->tokens + i, 1, &err);
        const bool failed = d->api->fail_at(d, kind, 0) >= calls + (uint64_t)k;
        CHECK_MSG(s == (failed ? TN_EDEVICE : TN_OK), "%s: %d (%s)", what, (int)s, err.msg);
        CHECK_MSG(!failed || kind != TN_FAULT_ALLOC || says_missing(err.msg), "%s: %s", what,
                  err.msg);
        tn_context_free(x.ctx);
        tn_model_close(x.model);
        x.ctx = NULL;
        x.model = NULL;
        check_nothing_left(&x, what);
    } while (s && k < 2000 && !tn_failures);
    close_two(&x);
    return k;
}

TEST(faults_on_either_device_leave_nothing)
{
    golden g;
    if (!two_there() || !golden_load(&g, "llama")) return;
    for (int device = 0; device < 2; device++) {
        CHECK(check_faults(device, TN_FAULT_ALLOC, 2, &g) > 8);
        CHECK(check_faults(device, TN_FAULT_COPY, 9, &g) > 20);
        CHECK(check_faults(device, TN_FAULT_LAUNCH, 13, &g) > 40);
    }
    use_peers(false);
    CHECK(check_faults(0, TN_FAULT_COPY, 11, &g) > 20);
    CHECK(check_faults(1, TN_FAULT_COPY, 11, &g) > 20);
    use_peers(true);
    golden_free(&g);
}

/* Cancels tokens at each of their polls: no hand-over hangs, and the context goes on as if nothing
 * had happened. */
TEST(canceled_at_every_join)
{
    golden g;
    two x;
    tn_error err = {0};
    canceler c = {0, 0};
    if (!two_there() || !golden_load(&g, "qwen3")) return;
    float *want = run_two(&g, places[1], NULL, unequal);
    tn_status s = open_engine(&x, unequal, &err);
    if (!s) s = open_model(&x, g.path, places[1], NULL, cancel_once, &c, &err);
    if (!s) s = tn_context_eval(x.ctx, g.tokens, n_prompt, &err);
    int canceled = 0;
    for (int32_t i = 0; i < 3 && !s && want; i++) {
        do {
            c = (canceler){0, c.at + 1};
            s = tn_context_eval(x.ctx, g.tokens + n_prompt + i, 1, &err);
            canceled += s == TN_ECANCELED;
        } while (s == TN_ECANCELED);
        c.at = 0;
        const distance d =
            compare(tn_context_logits(x.ctx), want + (size_t)(i + 1) * (size_t)g.n_vocab,
                    (size_t)g.n_vocab);
        CHECK_MSG(d.max_abs == 0, "token %d after cancels: off by %g", i, d.max_abs);
    }
    CHECK_MSG(s == TN_OK && canceled > 3 * 2 * 3, "%d cancels: %s", canceled, err.msg);
    free(want);
    close_two(&x);
    golden_free(&g);
}

/* ---- without wait nodes ---------------------------------------------------------------------- */

/* Whether streams of the emulated device wait for flags by themselves; how it was before. */
static bool set_memory_ops(bool on)
{
    tn_engine *e = NULL;
    tn_emu_settings s = {0};
    const tn_engine_options o = {.struct_size = sizeof o, .threads = 1, .device = "emu"};
    CHECK_INT(tn_engine_new(&e, &o, NULL), TN_OK);
    const tn_emu_control *emu = e ? e->device->api->emu : NULL;
    if (emu) emu->get(&s);
    const bool before = s.memory_ops;
    s.memory_ops = on;
    if (emu) emu->set(&s);
    tn_engine_free(e);
    return before;
}

/* Host functions serve then, in recorded tokens, too. */
TEST(hand_overs_work_without_wait_nodes)
{
    golden g;
    run r;
    if (strcmp(devices, "emu:2") != 0 || !have_device("emu") || !golden_load(&g, "qwen3")) return;
    const run_options o = {.kv = TN_KV_F32,
                           .device = "emu",
                           .page_size = 16,
                           .granule = 16,
                           .step = true,
                           .place = "ffn_=split:0.4,blk.1.attn_q=host,output=split:0.5"};
    const bool before = set_memory_ops(false);
    if (run_open(&r, g.path, &o)) {
        CHECK(!r.engine->device->api->info(r.engine->device)->memory_ops);
        run_close(&r);
    }
    float *got = run_logits(g.path, &o, g.tokens, 20, g.n_vocab);
    const distance d = got ? compare(got, g.logits, 20 * (size_t)g.n_vocab) : (distance){NAN, NAN};
    CHECK_MSG(d.max_abs <= g.tolerance, "off by %g", d.max_abs);
    CHECK(before && !set_memory_ops(true));
    free(got);
    golden_free(&g);
}

/* ---- devices that break in the middle of a token --------------------------------------------- */

/* Breaks a device at its k-th step of a token; mends it afterwards, and the token is evaluated
 * again. Returns whether the token has so many steps. */
static bool check_break(two *x, const golden *g, int device, int k)
{
    tn_error err = {0};
    const int32_t at = tn_context_length(x->ctx);
    const tn_emu_control *emu = x->engine->device->api->emu;
    emu->break_at(device, (uint64_t)k);
    const tn_status s = tn_context_eval(x->ctx, g->tokens + at, 1, &err);
    CHECK_MSG(!s || (s == TN_EDEVICE && tn_context_length(x->ctx) == at),
              "device %d, step %d: %d (%s)", device, k, (int)s, err.msg);
    /* It stays broken. */
    if (s) CHECK_INT(tn_context_eval(x->ctx, g->tokens + at, 1, &err), TN_EDEVICE);
    emu->break_at(device, 0);
    if (s) CHECK_MSG(!tn_context_eval(x->ctx, g->tokens + at, 1, &err), "%s", err.msg);
    const distance d = compare(tn_context_logits(x->ctx),
                               g->logits + (size_t)at * (size_t)g->n_vocab, (size_t)g->n_vocab);
    CHECK_MSG(d.max_abs <= g->tolerance, "device %d, after step %d: off by %g", device, k,
              d.max_abs);
    CHECK_INT(tn_context_rewind(x->ctx, at, NULL), TN_OK);
    return s != TN_OK;
}

/* At every so manieth step of a token that has been recorded: with flags before and behind it. */
static void check_breaks(const golden *g, const char *on, int n, int step, bool memory_ops)
{
    const char *before = devices;
    const size_t limit[2] = {unequal[0], n > 1 ? unequal[1] : 0};
    two x;
    devices = on;
    tn_error err = {0};
    tn_status s = open_engine(&x, limit, &err);
    if (!s) s = open_model(&x, g->path, places[1], NULL, NULL, NULL, &err);
    if (!s) s = tn_context_eval(x.ctx, g->tokens, n_prompt, &err);
    if (!s) s = tn_context_eval(x.ctx, g->tokens + n_prompt, 1, &err);
    CHECK_MSG(!s && x.engine->device->api->info(x.engine->device)->memory_ops == memory_ops, "%s",
              err.msg);
    for (int device = 0; device < n && !s && !tn_failures; device++) {
        int k = 1;
        while (k < 1000 && check_break(&x, g, device, k) && !tn_failures)
            k += step * sample;
        CHECK_MSG(k > 25 && k < 1000, "device %d: %d steps", device, k);
    }
    close_two(&x);
    devices = before;
}

/* No hand-over hangs: the host asks now and then whether the device still lives. */
TEST(a_device_may_break_at_every_step)
{
    golden g;
    if (strcmp(devices, "emu:2") != 0 || !two_there() || !golden_load(&g, "qwen3")) return;
    check_breaks(&g, "emu", 1, 1, true);
    check_breaks(&g, "emu:2", 2, 5, true);
    set_memory_ops(false);
    check_breaks(&g, "emu", 1, 7, false);
    set_memory_ops(true);
    golden_free(&g);
}

int main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) devices = "cuda:0,1";
    return tn_test_main(argc, argv);
}
