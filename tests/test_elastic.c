/* The elastic boundary: slabs of FFNs leave the device as contexts grow and come back as they
 * shrink; logits stay those of the reference, and no byte too many is used. On the emulated device
 * unless --cuda is given. */
#include "device_bytes.h"
#include "golden.h"
#include "slow_machine.h"

#include "../engine/boundary.h"
#include "../engine/engine.h"
#include "../engine/model.h"

#include <unistd.h>

static const char *device = "emu";

enum { page = 16, n_ctx = 96 };

/* ---- a plan that has to move ----------------------------------------------------------------- */

static bool must_move(const tn_placement *p)
{
    const tn_plan *plan = &p->planned.plan;
    bool all = plan->feasible && plan->elastic && plan->dropping;
    int32_t units = 0;
    for (int32_t l = 0; l < plan->n_layers; l++) {
        all &= plan->layer[l].attn;
        units += plan->layer[l].units;
    }
    return all && units > 0;
}

/* A plan with all attention on the device, and slabs that do not fit beside a full context. */
static tn_placement *moving_plan(const char *path, int32_t granule, const char *file)
{
    char *machine = slow_machine();
    tn_placement *p = NULL;
    tn_error err = {0};
    for (uint64_t vram = 200 << 10; machine && !p && vram < 8 << 20; vram += 4 << 10) {
        const tn_placement_options o = {.struct_size = sizeof o,
                                        .hardware = machine,
                                        .request = "8+8",
                                        .n_ctx = n_ctx,
                                        .n_batch = page,
                                        .kv = TN_KV_F32,
                                        .vram = {vram},
                                        .granule = granule,
                                        .page_size = page};
        if (tn_placement_open(&p, path, &o, &err)) break;
        if (must_move(p)) break;
        tn_placement_close(p);
        p = NULL;
    }
    char *text = NULL;
    if (p && file && tn_placement_json(p, &text, NULL) == TN_OK) {
        FILE *f = fopen(file, "w");
        if (f) fputs(text, f);
        if (f) fclose(f);
        tn_placement_string_free(p, text);
    }
    if (!p) FAIL("%s: no plan moves (%s)", path, err.msg);
    free(machine);
    return p;
}

/* ---- a model under it ------------------------------------------------------------------------ */

typedef struct events {
    int moves, drifts;
    char last[200];
} events;

static void listen(void *user, tn_log_level level, const char *line)
{
    events *e = user;
    (void)level;
    e->drifts += strncmp(line, "drift: ", 7) == 0;
    if (strncmp(line, "boundary: ", 10) != 0) return;
    e->moves++;
    snprintf(e->last, sizeof e->last, "%s", line);
}

typedef struct elastic {
    tn_engine *engine;
    tn_model *model;
    tn_context *ctx;
    events events;
} elastic;

static void close_all(elastic *x)
{
    tn_context_free(x->ctx);
    tn_model_close(x->model);
    tn_engine_free(x->engine);
    x->ctx = NULL;
    x->model = NULL;
    x->engine = NULL;
}

static tn_status new_context(elastic *x, tn_context **c, tn_error *err)
{
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = n_ctx,
                                   .n_batch = page,
                                   .kv = TN_KV_F32,
                                   .page_size = page};
    return tn_context_new(c, x->model, &co, err);
}

static tn_status open_status(elastic *x, const char *path, const tn_placement *p, size_t vram,
                             tn_error *err)
{
    memset(x, 0, sizeof *x);
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .log = listen,
                                  .log_user = &x->events,
                                  .device = device,
                                  .vram_limits = {vram}};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
    tn_status s = tn_engine_new(&x->engine, &eo, err);
    if (!s) s = tn_model_open(&x->model, x->engine, path, &mo, err);
    return s ? s : new_context(x, &x->ctx, err);
}

static bool open_all(elastic *x, const char *path, const tn_placement *p, size_t vram)
{
    tn_error err = {0};
    if (open_status(x, path, p, vram, &err) == TN_OK) return true;
    FAIL("%s: %s", path, err.msg);
    close_all(x);
    return false;
}

static uint64_t used(const elastic *x)
{
    return device_used(x->engine, 0);
}

/* Of FFNs that move; *layers: how many of them are split. */
static uint64_t ffn_bytes(const elastic *x, int *split)
{
    uint64_t bytes = 0;
    if (split) *split = 0;
    for (int32_t l = 0; l < x->model->hp.n_layers; l++) {
        const tn_layer_device *y = &x->model->on_device.layers[l];
        if (!y->moves) continue;
        bytes += matrix_bytes(&y->ffn_gate) + matrix_bytes(&y->ffn_up) + matrix_bytes(&y->ffn_down);
        if (split && y->ffn_gate.rows > 0 && y->ffn_gate.rows < x->model->layers[l].ffn_gate.rows)
            ++*split;
    }
    return bytes;
}

static tn_stats stats(const elastic *x)
{
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(x->ctx, &s, NULL), TN_OK);
    return s;
}

/* Memory beside KV and what moves, and bytes of one KV page. */
static uint64_t base_bytes(const elastic *x, uint64_t *page_bytes)
{
    const uint64_t kv = stats(x).kv_bytes_held;
    const int32_t n = tn_context_length(x->ctx);
    if (page_bytes) *page_bytes = kv / (uint64_t)((n + page - 1) / page);
    return used(x) - kv - ffn_bytes(x, NULL);
}

/* A limit with room for a full context and `part` quarters of what moves. */
static size_t tight_limit(const char *path, const tn_placement *p, const golden *g, int part)
{
    elastic x;
    uint64_t limit = 0, page_bytes;
    if (!open_all(&x, path, p, 0)) return 0;
    CHECK_INT(tn_context_eval(x.ctx, g->tokens, 1, NULL), TN_OK);
    limit = base_bytes(&x, &page_bytes) + n_ctx / page * page_bytes;
    for (int32_t l = 0; l < x.model->hp.n_layers; l++) {
        const tn_layer *y = &x.model->layers[l];
        const tn_weight *const w[3] = {&y->ffn_gate, &y->ffn_up, &y->ffn_down};
        for (int i = 0; i < 3; i++)
            limit += tn_dweight_bytes(w[i]->type, w[i]->rows, w[i]->cols) * (uint64_t)part / 4;
    }
    close_all(&x);
    return (size_t)limit;
}

/* ---- growing and shrinking ------------------------------------------------------------------- */

typedef struct walk {
    const golden *g;
    elastic *x;
    uint64_t limit, base, page_bytes;
    int splits, pages; /* seen */
    uint64_t most;     /* bytes ever used */
} walk;

static void look(walk *w)
{
    int split;
    const uint64_t now = used(w->x), kv = stats(w->x).kv_bytes_held, ffn = ffn_bytes(w->x, &split);
    if (!w->base) w->base = base_bytes(w->x, &w->page_bytes);
    CHECK_MSG(now == w->base + kv + ffn, "%llu bytes are not accounted for",
              (unsigned long long)(now - w->base - kv - ffn));
    CHECK_MSG(now <= w->limit, "%llu of %llu bytes", (unsigned long long)now,
              (unsigned long long)w->limit);
    if (now > w->most) w->most = now;
    w->splits += split;
    const int pages = (tn_context_length(w->x->ctx) + page - 1) / page;
    if (pages > w->pages) w->pages = pages;
}

/* Tokens [from, to), the first `batch` of them at once, each logit against the golden. */
static void feed(walk *w, int32_t from, int32_t to, int32_t batch)
{
    const golden *g = w->g;
    tn_error err = {0};
    CHECK_INT(tn_context_length(w->x->ctx), from);
    for (int32_t i = from; i < to && !tn_failures;) {
        const int32_t n = i == from && batch > 1 ? batch : 1;
        const tn_status s = tn_context_eval(w->x->ctx, g->tokens + i, n, &err);
        CHECK_MSG(s == TN_OK, "token %d: %s", i, err.msg);
        if (s) return;
        i += n;
        const distance d =
            compare(tn_context_logits(w->x->ctx), g->logits + (size_t)(i - 1) * (size_t)g->n_vocab,
                    (size_t)g->n_vocab);
        CHECK_MSG(d.max_abs <= g->tolerance, "token %d: a logit is off by %g (at most %g): %s", i,
                  d.max_abs, g->tolerance, w->x->events.last);
        look(w);
    }
}

static void shrink(walk *w, int32_t to)
{
    CHECK_INT(tn_context_rewind(w->x->ctx, to, NULL), TN_OK);
}

static void check_elastic(const char *name, int32_t granule, int *n_streamed)
{
    golden g;
    elastic x;
    if (!golden_load(&g, name)) return;
    tn_placement *p = moving_plan(g.path, granule, NULL);
    const size_t limit = p ? tight_limit(g.path, p, &g, 1) : 0;
    const int32_t n = g.n < n_ctx ? g.n : n_ctx;
    if (limit && open_all(&x, g.path, p, limit)) {
        walk w = {.g = &g, .x = &x, .limit = limit};
        feed(&w, 0, n, 5);
        const tn_stats grown = stats(&x);
        shrink(&w, 3);
        feed(&w, 3, 8, 1);
        const tn_stats shrunk = stats(&x);
        feed(&w, 8, n, 20);
        const tn_stats again = stats(&x);
        CHECK_MSG(w.pages >= 3 && grown.units_dropped >= 2 && w.splits > 0,
                  "%s: %d pages, %llu dropped, %d splits", name, w.pages,
                  (unsigned long long)grown.units_dropped, w.splits);
        CHECK_MSG(shrunk.units_promoted > grown.units_promoted &&
                      shrunk.units_on_device > grown.units_on_device,
                  "%s: nothing came back", name);
        CHECK_INT(again.units_on_device, grown.units_on_device);
        CHECK(again.units_dropped > grown.units_dropped && x.events.moves > 3);
        /* Within the same limit FFNs, or experts, were carried to the device for the batch. */
        *n_streamed += again.streamed_bytes > shrunk.streamed_bytes;
        /* The plan's steps are pages and units: hardly one more of each would have fitted. */
        const uint64_t unit = p->shape.layer[0].unit_bytes + w.page_bytes;
        CHECK_MSG(w.most <= limit && limit - w.most <= 2 * unit, "%s: %llu of %zu bytes, unit %llu",
                  name, (unsigned long long)w.most, limit, (unsigned long long)unit);
        close_all(&x);
    }
    tn_placement_close(p);
    golden_free(&g);
}

TEST(logits_stay_right_across_moves)
{
    static const char *const names[] = {"llama", "qwen3", "gemma3", "qwen3moe"};
    if (!have_device(device)) return;
    int n_streamed = 0;
    int experts = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_elastic(names[i], 16, strcmp(names[i], "qwen3moe") ? &n_streamed : &experts);
    check_elastic("llama-bias", 48, &n_streamed); /* 128 neurons: the last slab is larger */
    CHECK_MSG(n_streamed >= 3 && experts, "weights of %d models were streamed, experts: %d",
              n_streamed, experts);
}

/* A quantised model and its exact logits; the tolerance is what llama.cpp's rounding deserves. */
static bool quantised_load(golden *g, const char *type)
{
    char path[200];
    memset(g, 0, sizeof *g);
    json_t *j = json_load_file("tests/data/quant/logits.json", 0, NULL);
    const json_t *t = json_object_get(json_object_get(j, "types"), type);
    g->tokens = json_ids(json_object_get(j, "tokens"), &g->n);
    g->n_vocab = (int32_t)json_integer_value(json_object_get(j, "n_vocab"));
    g->tolerance = 2 * json_real_value(json_object_get(t, "max_abs"));
    json_decref(j);
    snprintf(g->path, sizeof g->path, "tests/data/quant/%s.gguf", type);
    snprintf(path, sizeof path, "tests/data/quant/%s.exact_logits.f32", type);
    if (g->n > 0 && g->n_vocab > 0 && g->tolerance > 0)
        g->logits = read_floats(path, (size_t)g->n * (size_t)g->n_vocab);
    if (g->logits) return true;
    FAIL("%s: the golden cannot be read", type);
    golden_free(g);
    return false;
}

/* What moves is in the host's interleaved layout. */
TEST(quantised_weights_move)
{
    static const char *const types[] = {"Q4_0", "Q4_K_S", "Q6_K"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        golden g;
        elastic x;
        if (!quantised_load(&g, types[i])) return;
        tn_placement *p = moving_plan(g.path, 16, NULL);
        const size_t limit = p ? tight_limit(g.path, p, &g, 2) : 0;
        if (limit && open_all(&x, g.path, p, limit)) {
            walk w = {.g = &g, .x = &x, .limit = limit};
            feed(&w, 0, g.n < n_ctx ? g.n : n_ctx, 5);
            /* Types with blocks of 256 move as whole layers: there are no more neurons. */
            CHECK_MSG(x.model->layers[0].ffn_up.layout == TN_LAYOUT_R8 && x.events.moves > 0 &&
                          (i > 0 || (w.splits > 0 && x.events.moves > 1)),
                      "%s: layout %d, %d splits, %d moves", types[i],
                      (int)x.model->layers[0].ffn_up.layout, w.splits, x.events.moves);
            close_all(&x);
        }
        tn_placement_close(p);
        golden_free(&g);
    }
}

/* ---- the same calls, the same bits ----------------------------------------------------------- */

/* Grows, shrinks and grows again; all logits of what was evaluated, freed by the caller. */
static float *life(const golden *g, const tn_placement *p, size_t limit, events *seen)
{
    static const struct {
        int32_t to, n;
    } steps[] = {{0, 30}, {0, 1}, {0, 35}, {7, 2}, {0, 40}};
    elastic x;
    const size_t row = (size_t)g->n_vocab;
    if (!open_all(&x, g->path, p, limit)) return NULL;
    float *out = malloc(sizeof steps / sizeof *steps * row * sizeof *out);
    for (size_t i = 0; out && i < sizeof steps / sizeof *steps; i++) {
        if (steps[i].to) CHECK_INT(tn_context_rewind(x.ctx, steps[i].to, NULL), TN_OK);
        const int32_t at = tn_context_length(x.ctx);
        const int32_t n = at + steps[i].n < n_ctx ? steps[i].n : n_ctx - at;
        CHECK_INT(tn_context_eval(x.ctx, g->tokens, n, NULL), TN_OK);
        memcpy(out + i * row, tn_context_logits(x.ctx), row * sizeof *out);
    }
    *seen = x.events;
    close_all(&x);
    return out;
}

TEST(the_same_calls_give_the_same_bits)
{
    golden g;
    events a, b;
    if (!have_device(device) || !golden_load(&g, "qwen3")) return;
    tn_placement *p = moving_plan(g.path, 16, NULL);
    const size_t limit = p ? tight_limit(g.path, p, &g, 2) : 0;
    float *x = p ? life(&g, p, limit, &a) : NULL, *y = p ? life(&g, p, limit, &b) : NULL;
    CHECK(x && y && memcmp(x, y, 5 * (size_t)g.n_vocab * sizeof *x) == 0);
    CHECK(x && y && a.moves > 5 && a.moves == b.moves && strcmp(a.last, b.last) == 0);
    free(x);
    free(y);
    tn_placement_close(p);
    golden_free(&g);
}

/* At the edge of a step nothing goes to and fro. */
TEST(a_context_at_an_edge_does_not_move_weights)
{
    golden g;
    elastic x;
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    tn_placement *p = moving_plan(g.path, 16, NULL);
    const size_t limit = p ? tight_limit(g.path, p, &g, 1) : 0;
    if (limit && open_all(&x, g.path, p, limit)) {
        CHECK_INT(tn_context_eval(x.ctx, g.tokens, 2 * page, NULL), TN_OK);
        CHECK_INT(tn_context_eval(x.ctx, g.tokens, 1, NULL), TN_OK);
        const int moves = x.events.moves;
        for (int i = 0; i < 5; i++) {
            CHECK_INT(tn_context_rewind(x.ctx, 2 * page - 1, NULL), TN_OK);
            CHECK_INT(tn_context_eval(x.ctx, g.tokens, 1 + i % 2, NULL), TN_OK);
        }
        CHECK(moves > 0);
        CHECK_INT(x.events.moves, moves);
        close_all(&x);
    }
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- switched off ---------------------------------------------------------------------------- */

/* Moves of a whole walk after the context was made, and whether its logits are right. */
static int moves_of(const golden *g, const tn_placement *p, size_t limit)
{
    elastic x;
    int moves = -1;
    if (!open_all(&x, g->path, p, limit)) return -1;
    const int before = x.events.moves;
    walk w = {.g = g, .x = &x, .limit = limit};
    feed(&w, 0, 70, 40);
    shrink(&w, 5);
    feed(&w, 5, 20, 1);
    moves = x.events.moves - before;
    close_all(&x);
    return moves;
}

TEST(a_plan_from_a_file_and_a_fixed_one_do_not_move)
{
    golden g;
    tn_error err = {0};
    char path[64];
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    snprintf(path, sizeof path, "/tmp/tenon-elastic-%d.json", (int)getpid());
    tn_placement *p = moving_plan(g.path, 16, path), *file = NULL, *fixed = NULL;
    const size_t limit = p ? tight_limit(g.path, p, &g, 1) : 0;
    char *machine = slow_machine();
    tn_placement_options o = {.struct_size = sizeof o,
                              .hardware = machine,
                              .n_ctx = n_ctx,
                              .n_batch = page,
                              .kv = TN_KV_F32,
                              .granule = 16,
                              .page_size = page};
    o.plan_file = path;
    o.fixed = true;
    CHECK_MSG(!tn_placement_open(&file, g.path, &o, &err), "%s", err.msg);
    o.plan_file = NULL;
    o.vram[0] = 2 << 20;
    CHECK_MSG(!tn_placement_open(&fixed, g.path, &o, &err), "%s", err.msg);
    if (limit && file && fixed) {
        CHECK(moves_of(&g, p, limit) > 3);
        CHECK_INT(moves_of(&g, file, limit), 0);
        CHECK_INT(moves_of(&g, fixed, 2 << 20), 0);
    }
    unlink(path);
    free(machine);
    tn_placement_close(fixed);
    tn_placement_close(file);
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- two contexts, and faults ---------------------------------------------------------------- */

/* What a canceled evaluation would have needed is not kept free for it. 40 tokens, because there is
 * no room for a fourth page beside the buffers of two contexts. */
static void check_canceled(elastic *x, const golden *g)
{
    canceler cancel = {.at = 2};
    const tn_context_options co = {.struct_size = sizeof co, .n_ctx = n_ctx, .n_batch = page,
                                   .kv = TN_KV_F32, .page_size = page, .cancel = cancel_once,
                                   .user = &cancel};
    tn_context *other = NULL;
    CHECK_INT(tn_context_new(&other, x->model, &co, NULL), TN_OK);
    CHECK_INT(tn_context_eval(x->ctx, g->tokens + 20, 1, NULL), TN_OK);
    const uint64_t before = stats(x).units_on_device;
    CHECK_INT(tn_context_eval(other, g->tokens, 40, NULL), TN_ECANCELED);
    CHECK(stats(x).units_on_device < before);
    CHECK_INT(tn_context_eval(x->ctx, g->tokens + 21, 1, NULL), TN_OK);
    CHECK_INT(stats(x).units_on_device, before);
    tn_context_free(other);
}

TEST(another_context_takes_room_and_gives_it_back)
{
    golden g;
    elastic x;
    tn_error err = {0};
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    tn_placement *p = moving_plan(g.path, 16, NULL);
    const size_t limit = p ? tight_limit(g.path, p, &g, 4) : 0;
    if (limit && open_all(&x, g.path, p, limit)) {
        tn_context *other = NULL;
        CHECK_INT(tn_context_eval(x.ctx, g.tokens, 5, NULL), TN_OK);
        const uint64_t alone = stats(&x).units_on_device;
        CHECK_MSG(new_context(&x, &other, &err) == TN_OK, "%s", err.msg);
        CHECK_INT(tn_context_eval(other, g.tokens, 40, NULL), TN_OK);
        CHECK(used(&x) <= limit);
        const uint64_t together = stats(&x).units_on_device;
        walk w = {.g = &g, .x = &x, .limit = limit};
        feed(&w, 5, 12, 1);
        tn_context_free(other);
        w.base = 0;
        feed(&w, 12, 20, 1);
        CHECK_MSG(together < alone && stats(&x).units_on_device == alone,
                  "%llu units alone, %llu together, %llu after", (unsigned long long)alone,
                  (unsigned long long)together, (unsigned long long)stats(&x).units_on_device);
        check_canceled(&x, &g);
        close_all(&x);
    }
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- two models ------------------------------------------------------------------------------ */

/* Opens a model on an engine that is there. */
static tn_status open_beside(elastic *x, tn_engine *e, const char *path, const tn_placement *p,
                             tn_error *err)
{
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
    memset(x, 0, sizeof *x);
    x->engine = e;
    const tn_status s = tn_model_open(&x->model, e, path, &mo, err);
    return s ? s : new_context(x, &x->ctx, err);
}

typedef struct pair {
    elastic x[2];
    golden g[2];
    tn_placement *p[2];
    size_t limit;
    int both; /* times when both models had split layers */
} pair;

/* The next n tokens of a model, its logits, and the memory of both. */
static void step_pair(pair *q, int i, int32_t n)
{
    const golden *g = &q->g[i];
    tn_error err = {0};
    int split[2] = {0, 0};
    const int32_t at = tn_context_length(q->x[i].ctx) + n;
    const tn_status s = tn_context_eval(q->x[i].ctx, g->tokens + at - n, n, &err);
    CHECK_MSG(!s, "model %d, %d tokens: %s", i, at, err.msg);
    if (s) return;
    const distance d =
        compare(tn_context_logits(q->x[i].ctx), g->logits + (size_t)(at - 1) * (size_t)g->n_vocab,
                (size_t)g->n_vocab);
    CHECK_MSG(d.max_abs <= g->tolerance, "model %d, %d tokens: off by %g", i, at, d.max_abs);
    CHECK_MSG(used(&q->x[i]) <= q->limit, "%llu of %zu bytes", (unsigned long long)used(&q->x[i]),
              q->limit);
    for (int k = 0; k < 2 && q->x[k].model; k++)
        ffn_bytes(&q->x[k], &split[k]);
    q->both += split[0] && split[1];
}

/* What the second one uses alone after the same tokens. */
static uint64_t used_alone(const pair *q, int32_t n)
{
    elastic x;
    uint64_t bytes = 0;
    if (!open_all(&x, q->g[1].path, q->p[1], q->limit)) return 0;
    CHECK_INT(tn_context_eval(x.ctx, q->g[1].tokens, n, NULL), TN_OK);
    bytes = used(&x);
    close_all(&x);
    return bytes;
}

static void check_pair(pair *q)
{
    tn_error err = {0};
    if (!open_all(&q->x[0], q->g[0].path, q->p[0], q->limit)) return;
    step_pair(q, 0, 5);
    const uint64_t alone = stats(&q->x[0]).units_on_device;
    CHECK_MSG(!open_beside(&q->x[1], q->x[0].engine, q->g[1].path, q->p[1], &err), "%s", err.msg);
    for (int i = 0; i < 8 && q->x[1].ctx && !tn_failures; i++) {
        step_pair(q, 1, i % 3 ? 1 : 12);
        step_pair(q, 0, i % 3 ? 1 : 12);
    }
    CHECK_MSG(q->both >= 4, "both models are split at %d of 16 steps", q->both);
    CHECK(stats(&q->x[0]).units_on_device < alone);
    const uint64_t before = stats(&q->x[1]).units_on_device;
    tn_context_free(q->x[0].ctx);
    step_pair(q, 1, 1);
    tn_model_close(q->x[0].model);
    q->x[0].model = NULL;
    step_pair(q, 1, 1);
    const int32_t n = tn_context_length(q->x[1].ctx);
    CHECK(stats(&q->x[1]).units_on_device > before);
    const uint64_t now = used(&q->x[1]), want = used_alone(q, n);
    CHECK_MSG(now == want, "%llu bytes are used, alone %llu", (unsigned long long)now,
              (unsigned long long)want);
    q->x[1].engine = q->x[0].engine;
    close_all(&q->x[1]);
}

TEST(two_models_share_a_device)
{
    pair q = {.both = 0};
    if (!have_device(device)) return;
    const bool ok = golden_load(&q.g[0], "qwen3moe") && golden_load(&q.g[1], "llama");
    for (int i = 0; i < 2 && ok; i++) {
        q.p[i] = moving_plan(q.g[i].path, 16, NULL);
        if (q.p[i]) q.limit += tight_limit(q.g[i].path, q.p[i], &q.g[i], 1);
    }
    if (q.p[0] && q.p[1]) check_pair(&q);
    for (int i = 0; i < 2; i++) {
        tn_placement_close(q.p[i]);
        golden_free(&q.g[i]);
    }
}

/* A model that is only open takes room for its weights, which comes back when it is closed. */
TEST(another_model_takes_room_and_gives_it_back)
{
    golden g, h;
    elastic x;
    tn_model *other = NULL;
    tn_error err = {0};
    if (!have_device(device) || !golden_load(&g, "llama") || !golden_load(&h, "qwen3")) return;
    tn_placement *p = moving_plan(g.path, 16, NULL), *q = moving_plan(h.path, 16, NULL);
    const size_t limit = p && q ? tight_limit(g.path, p, &g, 4) + (96 << 10) : 0;
    if (limit && open_all(&x, g.path, p, limit)) {
        const tn_model_options mo = {.struct_size = sizeof mo, .plan = q};
        walk w = {.g = &g, .x = &x, .limit = limit};
        feed(&w, 0, 5, 5);
        const uint64_t alone = stats(&x).units_on_device;
        CHECK_MSG(!tn_model_open(&other, x.engine, h.path, &mo, &err), "%s", err.msg);
        CHECK_MSG(strncmp(x.events.last, "boundary: memory is short", 25) == 0, "'%s'",
                  x.events.last); /* what gave way is told, too */
        w.base = 0;
        feed(&w, 5, 6, 1);
        const uint64_t together = stats(&x).units_on_device;
        tn_model_close(other);
        w.base = 0;
        feed(&w, 6, 7, 1);
        CHECK_MSG(together < alone && stats(&x).units_on_device == alone,
                  "%llu units alone, %llu together, %llu after", (unsigned long long)alone,
                  (unsigned long long)together, (unsigned long long)stats(&x).units_on_device);
        close_all(&x);
    }
    tn_placement_close(q);
    tn_placement_close(p);
    golden_free(&h);
    golden_free(&g);
}

/* After a failure: as much again, so that weights move again. */
static void check_again(const elastic *x, const golden *g)
{
    tn_error err = {0};
    tn_status s = tn_context_rewind(x->ctx, 0, &err);
    if (!s) s = tn_context_eval(x->ctx, g->tokens, 70, &err);
    CHECK_MSG(!s, "again: %s", err.msg);
    const distance d = compare(tn_context_logits(x->ctx), g->logits + 69 * (size_t)g->n_vocab,
                               (size_t)g->n_vocab);
    CHECK_MSG(d.max_abs <= g->tolerance, "again: off by %g", d.max_abs);
}

/* Opens, grows, shrinks, grows: fails once at every k-th call of a kind, and leaves nothing; works
 * after it where the context is there. */
static int check_faults(tn_device_fault kind, int step, const golden *g, const tn_placement *p,
                        size_t limit)
{
    int k = 1 - step, failed = 1;
    while (failed && k < 1000 && !tn_failures) {
        elastic x = {0};
        tn_error err = {0};
        const tn_engine_options eo = {
            .struct_size = sizeof eo, .threads = 2, .device = device, .vram_limits = {limit}};
        const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
        if (tn_engine_new(&x.engine, &eo, &err)) FAIL("%s", err.msg);
        if (!x.engine) return 0;
        const uint64_t calls =
            x.engine->device->api->fail_at(x.engine->device, kind, (uint64_t)(k += step));
        tn_status s = tn_model_open(&x.model, x.engine, g->path, &mo, &err);
        if (!s) s = new_context(&x, &x.ctx, &err);
        if (!s) s = tn_context_eval(x.ctx, g->tokens, 20, &err);
        if (!s) s = tn_context_eval(x.ctx, g->tokens, 60, &err);
        if (!s) s = tn_context_rewind(x.ctx, 3, &err);
        if (!s) s = tn_context_eval(x.ctx, g->tokens + 3, 1, &err);
        CHECK_MSG(!s || s == TN_EDEVICE, "fault %d: %d (%s)", k, (int)s, err.msg);
        CHECK_MSG(!s || (kind == TN_FAULT_ALLOC ? says_missing(err.msg) : strlen(err.msg) > 10),
                  "fault %d: %s", k, err.msg);
        if (!s) { /* what was missing is computed on the host */
            const distance d = compare(tn_context_logits(x.ctx), g->logits + 3 * (size_t)g->n_vocab,
                                       (size_t)g->n_vocab);
            CHECK_MSG(d.max_abs <= g->tolerance, "fault %d: off by %g", k, d.max_abs);
        }
        failed = x.engine->device->api->fail_at(x.engine->device, kind, 0) >= calls + (uint64_t)k;
        if (s && x.ctx) check_again(&x, g);
        tn_context_free(x.ctx);
        tn_model_close(x.model);
        CHECK_INT(used(&x), 0);
        tn_engine_free(x.engine);
    }
    return k;
}

TEST(faults_during_moves_leave_nothing)
{
    golden g;
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    tn_placement *p = moving_plan(g.path, 16, NULL);
    const size_t limit = p ? tight_limit(g.path, p, &g, 2) : 0;
    if (limit) {
        CHECK(check_faults(TN_FAULT_ALLOC, 1, &g, p, limit) > 15);
        CHECK(check_faults(TN_FAULT_COPY, 5, &g, p, limit) > 40);
        /* Behind others into memory that is given back then. */
        CHECK(check_faults(TN_FAULT_LAUNCH, 9, &g, p, limit) > 100);
    }
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- drift ----------------------------------------------------------------------------------- */

/* n tokens whose host part takes `factor` times what was predicted at first. */
static void live_through(const elastic *x, int n, double factor, tn_token_time first)
{
    const tn_token_time t = {factor * first.host_s, first.total_s + (factor - 1) * first.host_s};
    for (int i = 0; i < n; i++)
        CHECK_INT(tn_boundary_note(x->model->boundary, 30, t, NULL), TN_OK);
}

static void check_drift(const golden *g, const tn_placement *p, size_t limit)
{
    elastic x;
    tn_token_time first = {0}, then = {0};
    if (!open_all(&x, g->path, p, limit)) return;
    walk w = {.g = g, .x = &x, .limit = limit};
    feed(&w, 0, 30, 30);
    tn_boundary *b = x.model->boundary;
    CHECK_INT(tn_boundary_predict(b, 30, &first, NULL), TN_OK);
    CHECK(first.host_s > first.total_s / 4 && first.host_s <= first.total_s);
    live_through(&x, 3 * TN_DRIFT_TOKENS, 1, first);
    live_through(&x, 3 * TN_DRIFT_TOKENS, 1.1, first);
    CHECK_INT(x.events.drifts, 0);
    live_through(&x, 6 * TN_DRIFT_TOKENS, 1.3, first); /* the host became slower by 30 % */
    CHECK_INT(x.events.drifts, 1);
    CHECK_INT(tn_boundary_predict(b, 30, &then, NULL), TN_OK);
    CHECK(fabs(then.host_s / first.host_s - 1.3) < 0.02);
    feed(&w, 30, 40, 1);
    CHECK_INT(stats(&x).replans, 1);
    live_through(&x, 200, 1.3, first);
    feed(&w, 40, 45, 1);
    live_through(&x, 2 * TN_DRIFT_TOKENS, 3, first); /* once, whatever happens */
    CHECK_INT(x.events.drifts, 1);
    close_all(&x);
}

/* A plan from a file is never made again, not even where it moves. */
static void check_no_drift(const golden *g, const tn_placement *file, size_t limit, bool moves)
{
    elastic x;
    if (!open_all(&x, g->path, file, limit)) return;
    walk w = {.g = g, .x = &x, .limit = limit};
    feed(&w, 0, 45, 1);
    CHECK((x.model->boundary != NULL) == moves && (x.events.moves > 0) == moves);
    if (x.model->boundary) {
        tn_token_time first = {0};
        CHECK_INT(tn_boundary_predict(x.model->boundary, 30, &first, NULL), TN_OK);
        live_through(&x, 6 * TN_DRIFT_TOKENS, 3, first);
    }
    CHECK_INT(x.events.drifts, 0);
    CHECK_INT(stats(&x).replans, 0);
    close_all(&x);
}

TEST(one_slower_rate_causes_one_new_plan)
{
    golden g;
    char path[64];
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    snprintf(path, sizeof path, "/tmp/tenon-drift-%d.json", (int)getpid());
    char *machine = slow_machine();
    tn_placement *p = moving_plan(g.path, 16, path), *file = NULL, *moves = NULL;
    const size_t limit = p ? tight_limit(g.path, p, &g, 1) : 0;
    tn_placement_options o = {.struct_size = sizeof o,
                                    .hardware = machine,
                                    .plan_file = path,
                                    .fixed = true,
                                    .n_ctx = n_ctx,
                                    .n_batch = page,
                                    .kv = TN_KV_F32,
                                    .granule = 16,
                                    .page_size = page};
    CHECK_INT(tn_placement_open(&file, g.path, &o, NULL), TN_OK);
    o.fixed = false;
    CHECK_INT(tn_placement_open(&moves, g.path, &o, NULL), TN_OK);
    if (limit && file && moves) {
        check_drift(&g, p, limit);
        check_no_drift(&g, file, limit, false);
        check_no_drift(&g, moves, limit, true);
    }
    unlink(path);
    free(machine);
    tn_placement_close(moves);
    tn_placement_close(file);
    tn_placement_close(p);
    golden_free(&g);
}

int main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) device = "cuda";
    return tn_test_main(argc, argv);
}
