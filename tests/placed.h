/* Models opened as rules say, or under a plan whose FFNs move while contexts grow and shrink, on
 * one device or two. Functions of tests; they report through the harness. */
#ifndef TN_TEST_PLACED_H
#define TN_TEST_PLACED_H

#include "device_bytes.h"
#include "golden.h"
#include "slow_machine.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../engine/placement.h"
#include "../engine/sides.h"

static const char *one_device = "emu", *two_devices = "emu:2";

enum { page = 16, n_ctx = 96, max_layers = 8, n_kinds = 7 };

enum { first_ffn = 4 }; /* of the kinds */
__attribute__((unused)) static const char *const kinds[n_kinds] = {
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};

/* What a rule says of each tensor: TN_MIXED where there is none, or a share. */
typedef struct rules {
    tn_side side[max_layers][n_kinds];
    char text[4000];
    size_t n;
} rules;

/* ---- plans ----------------------------------------------------------------------------------- */

typedef struct setup {
    const golden *g;
    const char *devices;
    int32_t n_devices, granule, n_batch;
    rules rules;
    tn_placement *p; /* NULL: all is as the rules say */
    size_t limit[2], fixed[2]; /* of memory, 0: none; and of this what does not move */
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
    const int found = what ? sscanf(what, ": layer %d has %d of %d %19s on the device, had %d", &l,
                                    &now, &of, units, &before)
                           : 0;
    CHECK_MSG(found == 5 && l >= 0 && l < max_layers && !e->evaluating, "'%s'", line);
    if (found != 5 || l < 0 || l >= max_layers) return;
    CHECK_MSG(before == e->units[l] && now != before && now <= of, "'%s' after %d", line,
              e->units[l]);
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

static bool open_placed(run *r, const setup *t)
{
    tn_error err = {0};
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .device = t->devices,
                                  .log = t->events ? listen : NULL,
                                  .log_user = t->events,
                                  .vram_limits = {t->limit[0], t->limit[1]}};
    const char *place = t->rules.text;
    tn_model_options mo = {.struct_size = sizeof mo, .plan = t->p};
    if (!t->p) {
        mo.place = &place;
        mo.n_place = 1;
        mo.granule = t->granule;
    }
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = t->n_batch,
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
    if (!open_placed(&r, t)) return false;
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

/* Whether there are two devices. */
__attribute__((unused)) static bool two_there(void)
{
    int n = 0;
    tn_device_count(strcmp(one_device, "emu") == 0 ? TN_DEVICE_EMULATED : TN_DEVICE_CUDA, &n, NULL);
    return n > 1;
}

/* --cuda: on the machine's devices. */
static int placed_main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) {
        one_device = "cuda";
        two_devices = "cuda:0,1";
    }
    return tn_test_main(argc, argv);
}

#endif
