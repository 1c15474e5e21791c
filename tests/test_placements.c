/* Random placements: any tensor anywhere, any split, on one device and on two that have unequal
 * memory; rules name all tensors, or some, and the planner and the elastic boundary decide about
 * the rest while the context grows and shrinks. Of every architecture: the logits are those of the
 * reference, every rule is obeyed at every moment, and no device has a byte too many. On emulated
 * devices unless --cuda is given. */
#include "placed.h"

#include <stdarg.h>

static const char *const archs[] = {"llama",      "llama-mha", "llama-bias", "llama-yarn",
                                    "llama3",     "mistral",   "mixtral",    "qwen2",
                                    "qwen2-yarn", "qwen3",     "qwen3moe",   "gemma3"};
enum { n_archs = sizeof archs / sizeof *archs };

/* The sanitizers are slow: a sample will do for them. sample: every so manieth architecture. */
#if defined(__SANITIZE_THREAD__)
enum { n_placements = 10, first_placement = 7, sample = n_archs };
#elif defined(__SANITIZE_ADDRESS__)
enum { n_placements = 10, first_placement = 5, sample = 1 };
#else
enum { n_placements = 50, first_placement = 0, sample = 1 };
#endif

enum { n_grown = 53 };

/* ---- rules ----------------------------------------------------------------------------------- */

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

/* ---- a walk ---------------------------------------------------------------------------------- */

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
        CHECK_MSG(now == b->base[d] + kv + moving, "device %d has %llu bytes: %llu + %llu + %llu",
                  d, (unsigned long long)now, (unsigned long long)b->base[d],
                  (unsigned long long)kv, (unsigned long long)moving);
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
              "%s on %s, placed %s, %d after %d tokens: off by %g (at most %g)", g->path,
              t->devices, t->rules.text, count, at, d.max_abs, g->tolerance);
    free(got);
    return tn_failures == 0;
}

static void count_moves(const run *r, tn_stats *s)
{
    s->struct_size = sizeof *s;
    CHECK_INT(tn_context_stats(r->ctx, s, NULL), TN_OK);
}

/* Grows to n_grown tokens, the last ones one by one where nothing moves, so that they are recorded
 * and replayed; where something does, back to the start, and grows again. */
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

/* A first look, for who cannot wait for all of them. */
TEST(a_placement_by_rules_and_one_that_moves)
{
    golden g;
    seen what = {0};
    uint64_t seed = 1;
    if (!have_device(one_device) || !golden_load(&g, "qwen3")) return;
    for (int i = 3; i < 5; i++)
        check_placement(&g, i, layers_of(&g), false, &seed, &what);
    CHECK_INT(what.moving, 1);
    CHECK(what.ruled > 0 && what.dropped > 0);
    golden_free(&g);
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

int main(int argc, char **argv)
{
    return placed_main(argc, argv);
}
