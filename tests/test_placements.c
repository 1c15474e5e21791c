/* Random placements: any tensor anywhere, any split, on one device and on two that have unequal
 * memory; rules name all tensors, or some, and the planner and the elastic boundary decide about the
 * rest while the context grows and shrinks. Of every architecture: the logits are those of the
 * reference, every rule is obeyed at every moment, and no device has a byte too many. On emulated
 * devices unless --cuda is given. */
#include "device_bytes.h"
#include "golden.h"
#include "slow_machine.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../engine/placement.h"
#include "../engine/sides.h"
#include "../kernels/device_ops.h"

#include <pthread.h>
#include <stdarg.h>

static const char *one_device = "emu", *two_devices = "emu:2";

static const char *const archs[] = {"llama",      "llama-mha", "llama-bias", "llama-yarn",
                                    "llama3",     "mistral",   "mixtral",    "qwen2",
                                    "qwen2-yarn", "qwen3",     "qwen3moe",   "gemma3"};
enum { n_archs = sizeof archs / sizeof *archs };

/* The sanitizers are slow: a sample will do for them. sample: every so manieth architecture. */
#if defined(__SANITIZE_THREAD__)
enum { n_placements = 10, first_placement = 7, sample = n_archs, n_rounds = 1 };
#elif defined(__SANITIZE_ADDRESS__)
enum { n_placements = 10, first_placement = 5, sample = 1, n_rounds = 4 };
#else
enum { n_placements = 50, first_placement = 0, sample = 1, n_rounds = 8 };
#endif

enum { page = 16, n_ctx = 96, n_grown = 53, max_layers = 8, n_kinds = 7 };

/* ---- rules -------------------------------------------------------------------------------------
 */

static const char *const kinds[n_kinds] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                           "ffn_gate", "ffn_up", "ffn_down"};
enum { first_ffn = 4 };

/* What a rule says of each tensor: TN_MIXED where there is none, or a share. */
typedef struct rules {
    tn_side side[max_layers][n_kinds];
    char text[4000];
    size_t n;
} rules;

static int32_t below(uint64_t *seed, int32_t n)
{
    return (int32_t)(test_rand(seed) % (uint64_t)n);
}

static void add(rules *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    if (r->n) r->text[r->n++] = ',';
    r->n += (size_t)vsnprintf(r->text + r->n, sizeof r->text - r->n, fmt, args);
    va_end(args);
    if (r->n >= sizeof r->text - 1) FAIL("the rules are too long");
}

/* One time in `of` that is the host. */
static tn_side random_side(uint64_t *seed, int32_t of)
{
    return below(seed, of) ? TN_ON_DEVICE : TN_ON_HOST;
}

static const char *side_name(tn_side s)
{
    return s == TN_ON_HOST ? "host" : "device";
}

/* Tensors [first, end) of a layer, each by itself. */
static void place_each(rules *r, int32_t l, int first, int end, int32_t of, uint64_t *seed)
{
    for (int i = first; i < end; i++) {
        r->side[l][i] = random_side(seed, of);
        add(r, "blk.%d.%s[._]=%s", (int)l, kinds[i], side_name(r->side[l][i]));
    }
}

static void clear(rules *r)
{
    *r = (rules){.n = 0};
    for (int32_t l = 0; l < max_layers; l++)
        for (int i = 0; i < n_kinds; i++)
            r->side[l][i] = TN_MIXED;
}

/* Every tensor: FFNs are split, on one side, or on both tensor by tensor. */
static void place_all(rules *r, int32_t n_layers, uint64_t *seed)
{
    static const char *const embeddings[] = {"split:0.7", "host", "device"};
    static const char *const heads[] = {"split:0.4", "host", "device"};
    clear(r);
    for (int32_t l = 0; l < n_layers; l++) {
        const int style = below(seed, 4);
        place_each(r, l, 0, first_ffn, 2, seed);
        add(r, "blk.%d.ffn_gate_inp[._]=%s", (int)l, side_name(random_side(seed, 2)));
        if (style < 2)
            add(r, "blk.%d.ffn_(gate|up|down)(_exps)?.weight=split:%.2f", (int)l,
                0.05 + 0.009 * below(seed, 100));
        if (style < 3) place_each(r, l, first_ffn, n_kinds, 2, seed);
        for (int i = first_ffn; i < n_kinds && style < 2; i++)
            r->side[l][i] = TN_MIXED; /* that was for biases */
        if (style < 3) continue;
        const tn_side side = random_side(seed, 2);
        add(r, "blk.%d.ffn=%s", (int)l, side_name(side));
        for (int i = first_ffn; i < n_kinds; i++)
            r->side[l][i] = side;
    }
    add(r, "^output.weight=%s", heads[below(seed, 3)]);
    add(r, "token_embd=%s", embeddings[below(seed, 3)]);
}

/* Attention of some layers, and the FFN of one at most, tensor by tensor. */
static void place_some(rules *r, int32_t n_layers, uint64_t *seed)
{
    const int32_t fixed_ffn = below(seed, 2 * n_layers);
    clear(r);
    for (int32_t l = 0; l < n_layers; l++) {
        if (below(seed, 2)) place_each(r, l, 0, first_ffn, 3, seed);
        if (l == fixed_ffn) place_each(r, l, first_ffn, n_kinds, 3, seed);
    }
    if (!r->n) add(r, "token_embd=host");
}

/* ---- plans -------------------------------------------------------------------------------------
 */

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

/* ---- a walk ------------------------------------------------------------------------------------
 */

/* What the placements of an architecture have in them. */
typedef struct seen {
    int splits, heads, uneven, mixed_attention, mixed_ffns, ruled;
    int dropped, promoted, moving, two;
    int embedded_last; /* the first device gets its input from the last */
    bool even;         /* no granule leaves a rest: experts, or 96 neurons */
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
    const int64_t rows = d->ffn_gate.rows;
    if (d->moves) {
        const tn_shape_layer *z = &t->p->shape.layer[l];
        const int64_t each = z->n_expert ? z->n_ff : z->granule;
        CHECK_MSG(t->events->units[l] == (rows == y->ffn_gate.rows ? z->n_units : rows / each),
                  "layer %d has %lld rows, the log tells of %d units", l, (long long)rows,
                  t->events->units[l]);
    }
    what->mixed_attention += s.attn == TN_MIXED;
    what->mixed_ffns += s.ffn == TN_MIXED;
    if (s.ffn != TN_ON_BOTH) return;
    CHECK(rows > 0 && rows < y->ffn_gate.rows);
    what->splits++;
    what->uneven += !r->model->hp.n_expert && r->model->hp.n_ff % t->granule != 0;
}

static void look_at_all(const setup *t, const run *r, seen *what)
{
    const tn_model *m = r->model;
    const tn_dweight *head = &m->on_device.output;
    for (int32_t l = 0; l < m->hp.n_layers; l++)
        look_at_layer(t, r, l, what);
    what->heads += tn_is_split(&m->output, head) && head->rows < m->output.rows;
    what->even = m->hp.n_expert > 0 || m->hp.n_ff % 48 == 0;
    what->two += m->on_device.n_segments == 2;
    what->embedded_last += m->on_device.n_segments == 2 && m->tied && !m->token_embd.data;
}

/* Bytes of memory and of the cache. */
typedef struct held {
    uint64_t base[2], kv, page; /* page: the least that the cache grew by */
} held;

static void look_at_bytes(const setup *t, const run *r, held *b)
{
    tn_stats s = {.struct_size = sizeof s};
    for (int d = 0; d < r->model->on_device.n_segments; d++) {
        uint64_t all;
        const uint64_t now = device_used(r->engine, d), moving = moving_bytes(r->model, d, &all);
        const uint64_t kv = live_kv_bytes(r->model, d, tn_context_length(r->ctx), page);
        CHECK_MSG(!t->limit[d] || now <= t->limit[d], "device %d has %llu of %zu bytes", d,
                  (unsigned long long)now, t->limit[d]);
        if (!t->p) continue;
        if (!b->base[d]) b->base[d] = now - kv - moving;
        CHECK_MSG(now == b->base[d] + kv + moving, "device %d has %llu bytes: %llu + %llu + %llu", d,
                  (unsigned long long)now, (unsigned long long)b->base[d], (unsigned long long)kv,
                  (unsigned long long)moving);
    }
    CHECK_INT(tn_context_stats(r->ctx, &s, NULL), TN_OK);
    const uint64_t grown = s.kv_bytes_held > b->kv ? s.kv_bytes_held - b->kv : 0;
    if (grown && (!b->page || grown < b->page)) b->page = grown;
    b->kv = s.kv_bytes_held;
}

/* n tokens more, or -n of which only the logits of the last are wanted. */
static bool step(const setup *t, const run *r, int32_t n)
{
    const golden *g = t->g;
    tn_error err = {0};
    const int32_t at = tn_context_length(r->ctx), count = abs(n), wanted = n < 0 ? 1 : n;
    const size_t row = (size_t)g->n_vocab;
    const float *want = g->logits + (size_t)(at + count - wanted) * row;
    float *got = malloc((size_t)wanted * row * sizeof *got);
    for (size_t i = 0; got && i < (size_t)wanted * row; i++)
        got[i] = NAN; /* what is not written must not pass */
    rows_sink sink = {got, g->n_vocab};
    const tn_status s =
        n < 0 ? tn_context_eval(r->ctx, g->tokens + at, count, &err)
              : tn_context_eval_all(r->ctx, g->tokens + at, n, 0, keep_rows, &sink, &err);
    if (!s && n < 0) keep_rows(&sink, 0, 1, tn_context_logits(r->ctx));
    const distance d = compare(got, want, (size_t)wanted * row);
    CHECK_MSG(s == TN_OK, "placed %s: %s", t->rules.text, err.msg);
    CHECK_MSG(d.max_abs <= g->tolerance,
              "%s on %s, placed %s, %d after %d tokens: off by %g (at most %g)", g->path, t->devices,
              t->rules.text, count, at, d.max_abs, g->tolerance);
    free(got);
    return tn_failures == 0;
}

static void count_moves(const run *r, tn_stats *s)
{
    s->struct_size = sizeof *s;
    CHECK_INT(tn_context_stats(r->ctx, s, NULL), TN_OK);
}

/* Grows to n_grown tokens, the last ones one by one where nothing moves, so that they are recorded and
 * replayed; where something does, back to the start, and grows again. */
static void walk(const setup *t, seen *what)
{
    static const int8_t fixed[] = {36, -12, -1, -1, -1, -1, -1},
                        moving[] = {12, -1, -3, 5, -1, -3, 5, -1, -3, 5, -1, -3, 5, -1, -4};
    run r;
    held b = {.kv = 0};
    tn_stats grown, shrunk;
    seen later = {0}; /* counted is what there is after the first step */
    if (!open_placed(&r, t)) return;
    const size_t n = t->p ? sizeof moving : sizeof fixed;
    bool ok = true;
    for (size_t i = 0; i < n && ok; i++) {
        ok = step(t, &r, t->p ? moving[i] : fixed[i]);
        look_at_bytes(t, &r, &b);
        if (t->p || !i) look_at_all(t, &r, i ? &later : what);
    }
    CHECK_MSG(!ok || (tn_context_length(r.ctx) == n_grown && b.kv >= 3 * b.page),
              "%d tokens, %llu bytes of KV in pages of %llu", tn_context_length(r.ctx),
              (unsigned long long)b.kv, (unsigned long long)b.page);
    count_moves(&r, &grown);
    if (t->p) CHECK_INT(tn_context_rewind(r.ctx, 3, NULL), TN_OK);
    for (int i = 0; i < 3 && ok && t->p; i++) {
        ok = step(t, &r, -1);
        look_at_bytes(t, &r, &b);
        look_at_all(t, &r, &later);
    }
    count_moves(&r, &shrunk);
    what->dropped += (int)grown.units_dropped;
    what->promoted += (int)(shrunk.units_promoted - grown.units_promoted);
    what->moving += t->p != NULL;
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

/* Of every ten placements, three are over two devices, and two leave FFNs that move. */
static void check_placement(const golden *g, int i, int32_t n_layers, bool several, uint64_t *seed,
                            seen *what)
{
    events heard;
    const bool two = several && i % 10 >= 7, moving = i % 5 == 4;
    setup t = {.g = g,
               .devices = two ? two_devices : one_device,
               .n_devices = two ? 2 : 1,
               .granule = i % 3 ? 16 : 48,
               .n_batch = moving  ? page
                          : i % 2 ? 5
                                  : 0,
               .events = &heard};
    if (moving) {
        place_some(&t.rules, n_layers, seed);
        if (make_plan(&t) && tight_limits(&t)) walk(&t, what);
    } else {
        place_all(&t.rules, n_layers, seed);
        if (two) t.limit[0] = (size_t)(i % 10 == 7 ? 16 : 10) << 20;
        if (two) t.limit[1] = (size_t)(i % 10 == 7 ? 12 : 16) << 20;
        walk(&t, what);
    }
    tn_placement_close(t.p);
}

/* Whether there was everything that these placements are for. */
static void check_seen(const char *arch, const seen *w, bool several)
{
    CHECK_MSG(!several || w->two * 5 >= n_placements, "%s: %d of %d over two devices", arch, w->two,
              (int)n_placements);
    CHECK_MSG(n_placements < 50 || (w->splits > 20 && w->heads > 5 && w->mixed_attention > 20 &&
                                    w->mixed_ffns > 10 && (w->even || w->uneven > 5)),
              "%s: split %d FFNs (%d unevenly) and %d heads, mixed %d and %d", arch, w->splits,
              w->uneven, w->heads, w->mixed_attention, w->mixed_ffns);
    CHECK_MSG(w->ruled > 0 && w->moving > 0 &&
                  (n_placements < 50 || (w->dropped >= 2 && w->promoted > 0 && w->ruled > 200)),
              "%s: %d tensors under rules; %d placements move: %d units dropped, %d promoted", arch,
              w->ruled, w->moving, w->dropped, w->promoted);
}

TEST(random_placements)
{
    if (!have_device(one_device)) return;
    int embedded_last = 0;
    const bool several = two_there();
    for (size_t a = 0; a < n_archs; a += sample) {
        golden g;
        seen what = {0};
        uint64_t seed = 1000 + a;
        if (!golden_load(&g, archs[a])) return;
        const int32_t n_layers = layers_of(&g);
        for (int i = first_placement; i < n_placements && n_layers; i++)
            check_placement(&g, i, n_layers, several, &seed, &what);
        check_seen(archs[a], &what, several);
        embedded_last += what.embedded_last;
        golden_free(&g);
    }
    CHECK_MSG(!several || n_placements < 50 || embedded_last > 5, "%d tied heads", embedded_last);
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
    if (!open_placed(&r, t)) return 0;
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
    tn_stats s;
    tn_device_memory left = {0};
    first.limit[0] = limit;
    if (!open_placed(&r, &first)) return;
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
    /* The context that open_placed makes beside those of the threads stays empty. */
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
