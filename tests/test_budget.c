/* Small budgets: what the planner calls feasible loads and runs until its context is full, and no
 * device ever holds a byte more than it may. On the emulated device. */
#include "golden.h"
#include "plan_random.h"
#include "slow_machine.h"

#include "../engine/engine.h"
#include "../engine/placement.h"

enum { page = 16 };

typedef struct sample {
    const char *path;
    const int32_t *tokens;
    int32_t n, n_ctx, n_batch, n_devices, granule;
    tn_kv_type kv;
    bool fixed;
    const char *place;
    uint64_t vram[2];
} sample;

typedef struct seen {
    int fit, not, split, two, elastic, fixed;
} seen;

static tn_placement *plan(const sample *c, const char *machine, tn_error *err)
{
    tn_placement *p = NULL;
    const tn_placement_options o = {.struct_size = sizeof o,
                                    .hardware = machine,
                                    .place = &c->place,
                                    .n_place = c->place != NULL,
                                    .request = "8+8",
                                    .n_ctx = c->n_ctx,
                                    .n_batch = c->n_batch,
                                    .kv = c->kv,
                                    .vram = {c->vram[0], c->vram[1]},
                                    .fixed = c->fixed,
                                    .granule = c->granule,
                                    .page_size = page,
                                    .n_devices = c->n_devices};
    return tn_placement_open(&p, c->path, &o, err) ? NULL : p;
}

static void check_limits(const tn_engine *e, const sample *c)
{
    for (int i = 0; i < c->n_devices; i++) {
        tn_device_memory m = {0};
        CHECK_INT(e->devices.at[i]->api->memory(e->devices.at[i], &m, NULL), TN_OK);
        CHECK_MSG(m.used_bytes <= c->vram[i], "device %d holds %llu of %llu bytes", i,
                  (unsigned long long)m.used_bytes, (unsigned long long)c->vram[i]);
    }
}

/* A batch, then tokens one by one, until the context is full. */
static tn_status fill(tn_engine *e, tn_context *ctx, const sample *c, tn_error *err)
{
    tn_status s = TN_OK;
    for (int32_t at = 0; at < c->n_ctx && !s;) {
        const int32_t left = c->n_ctx - at, n = at == 0 && left > c->n_batch ? c->n_batch : 1;
        s = tn_context_eval(ctx, c->tokens + at % (c->n - n + 1), n, err);
        check_limits(e, c);
        at += n;
    }
    return s;
}

static tn_status carry_out(const sample *c, const tn_placement *p, tn_error *err)
{
    tn_engine *e = NULL;
    tn_model *m = NULL;
    tn_context *ctx = NULL;
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .device = c->n_devices > 1 ? "emu:2" : "emu",
                                  .vram_limits = {c->vram[0], c->vram[1]}};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = c->n_ctx,
                                   .n_batch = c->n_batch,
                                   .kv = c->kv,
                                   .page_size = page};
    tn_status s = tn_engine_new(&e, &eo, err);
    if (!s) s = tn_model_open(&m, e, c->path, &mo, err);
    if (!s) s = tn_context_new(&ctx, m, &co, err);
    if (!s) s = fill(e, ctx, c, err);
    tn_context_free(ctx);
    tn_model_close(m);
    tn_engine_free(e);
    return s;
}

static void look(const tn_plan *p, const sample *c, seen *n)
{
    n->fit++;
    n->fixed += c->fixed;
    n->elastic += p->elastic && p->dropping;
    int last = TN_HOST;
    bool two = false;
    for (int32_t l = 0; l < p->n_layers; l++) {
        if (!p->layer[l].attn && !p->layer[l].units) continue;
        two |= last != TN_HOST && last != p->layer[l].device;
        last = p->layer[l].device;
    }
    n->two += two;
    for (int32_t i = 0; i < p->n_tensors; i++)
        if (p->share[i] > 0 && p->share[i] < 1) {
            n->split++;
            return;
        }
}

static void try(const sample *c, const char *machine, uint64_t seed, seen *n)
{
    tn_error err = {0};
    tn_placement *p = plan(c, machine, &err);
    if (!p || !p->planned.plan.feasible) {
        n->not ++;
        tn_placement_close(p);
        return;
    }
    look(&p->planned.plan, c, n);
    const tn_status s = carry_out(c, p, &err);
    CHECK_MSG(
        s == TN_OK,
        "%s, seed %llu: %llu and %llu bytes, %d tokens of context, batch %d, kv %d, fixed %d, "
        "place %s: %s",
        c->path, (unsigned long long)seed, (unsigned long long)c->vram[0],
        (unsigned long long)c->vram[1], c->n_ctx, c->n_batch, (int)c->kv, c->fixed,
        c->place ? c->place : "-", err.msg);
    tn_placement_close(p);
}

static void try_model(const char *name, int n_cases, seen *n)
{
    static const char *const places[] = {NULL,
                                         NULL,
                                         "attn=device",
                                         "ffn_down=device",
                                         "attn=device,ffn=device",
                                         "output=device,token_embd=device",
                                         "blk.[01].=device"};
    golden g;
    char *machine = slow_machine();
    if (!golden_load(&g, name)) return;
    for (uint64_t i = 0; machine && (int)i < n_cases; i++) {
        uint64_t seed = 100 * (uint64_t)name[0] + i;
        sample c = {.path = g.path, .tokens = g.tokens, .n = g.n};
        c.n_devices = test_int(&seed, 1, 2);
        c.n_ctx = test_int(&seed, 2, 12) * 8;
        c.n_batch = 1 << test_int(&seed, 2, 5);
        c.granule = 16 * test_int(&seed, 1, 2);
        c.kv = test_int(&seed, 0, 2) ? TN_KV_F32 : TN_KV_F16;
        c.fixed = test_int(&seed, 0, 2) == 0;
        c.place = places[test_int(&seed, 0, (int)(sizeof places / sizeof *places) - 1)];
        for (int d = 0; d < c.n_devices; d++)
            c.vram[d] = (uint64_t)test_scale(&seed, 150e3, 2.5e6);
        try(&c, machine, i, n);
    }
    free(machine);
    golden_free(&g);
}

TEST(feasible_plans_fill_their_contexts)
{
    static const char *const names[] = {"llama", "gemma3", "qwen3moe"};
    seen n = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        try_model(names[i], 20, &n);
    CHECK_MSG(n.fit >= 30 && n.not >= 10 && n.split >= 5 && n.two >= 3 && n.elastic >= 3 &&
                  n.fixed >= 8,
              "%d fit (%d elastic, %d fixed, %d split, %d on two devices), %d do not", n.fit,
              n.elastic, n.fixed, n.split, n.two, n.not );
}

TEST_MAIN
