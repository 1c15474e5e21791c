/* Contexts: one sequence over a model. Feeding tokens, taking some back, statistics. */
#include "boundary.h"
#include "engine.h"
#include "exec.h"
#include "hardware.h"
#include "kv.h"
#include "later.h"
#include "tune.h"

#include <stdatomic.h>
#include <string.h>

enum {
    default_batch = 512,
    max_batch = (1 << 16) - 1, /* what a grid of blocks on a GPU can have in its second dimension */
    default_page = 256,
    min_page = 16,
    max_page = 1 << 16,
    max_ctx = 1 << 30,
    slice_bytes = 8 << 20 /* of logits handed out at once */
};

struct tn_context {
    tn_model *m;
    const tn_allocator *a;
    tn_context_options opt;
    tn_kv kv;
    tn_exec *exec;
    int32_t *tokens; /* [n_tokens] */
    size_t n_tokens, cap_tokens;
    float *logits; /* [n_vocab] */
    bool has_logits;
    float *slice; /* [slice_rows][n_vocab], from the first tn_context_eval_all on */
    int32_t slice_rows;
    tn_tune tune;
    double prefill_s, decode_s;
    double arrival_s; /* of an evaluation: weights came from the mapped file */
    uint64_t prefill_tokens, decode_tokens;
    atomic_flag busy;
};

/* ---- making ---------------------------------------------------------------------------------- */

static uint32_t stored_type(tn_kv_type kv)
{
    return kv == TN_KV_F32 ? TN_TYPE_F32 : kv == TN_KV_Q8_0 ? TN_TYPE_Q8_0 : TN_TYPE_F16;
}

static tn_status check_options(const tn_model *m, const tn_context_options *o, tn_error *err)
{
    if (!m->layers)
        return tn_fail(err, TN_EARG, -1, "%s: opened with vocab_only, so it cannot make a context",
                       m->name);
    if (o->n_ctx < 0 || o->n_ctx > max_ctx)
        return tn_fail(err, TN_EARG, -1,
                       "n_ctx is %d; use 0 (what the model was trained for) to %d", o->n_ctx,
                       (int)max_ctx);
    if (o->n_batch < 0 || o->n_batch > max_batch)
        return tn_fail(err, TN_EARG, -1, "n_batch is %d; use 0 (%d) to %d", o->n_batch,
                       (int)default_batch, (int)max_batch);
    if (o->kv != TN_KV_F16 && o->kv != TN_KV_F32 && o->kv != TN_KV_Q8_0)
        return tn_fail(err, TN_EARG, -1, "kv type %d is unknown", (int)o->kv);
    const int32_t page = o->page_size;
    if (page && (page < min_page || page > max_page || (page & (page - 1))))
        return tn_fail(err, TN_EARG, -1,
                       "page_size is %d; use 0 (%d) or a power of two from %d to %d", page,
                       (int)default_page, (int)min_page, (int)max_page);
    return tn_kv_check(m, stored_type(o->kv), err);
}

static int32_t default_ctx(const tn_model *m, uint32_t kv_type, int32_t n_batch)
{
    const uint64_t ring = tn_kv_position_bytes(m, kv_type, TN_KV_LOCAL) *
                          (uint64_t)tn_kv_ring(m->hp.n_swa, n_batch, default_page) * default_page;
    const int32_t n = tn_kv_default_length(tn_host_memory_available(),
                                           tn_kv_position_bytes(m, kv_type, TN_KV_GLOBAL), ring,
                                           m->hp.n_ctx_train);
    if (n == m->hp.n_ctx_train) return n;
    tn_engine_log(
        m->engine, TN_LOG_WARN,
        "%s: %d positions of context instead of the %d it was trained for: memory is short",
        m->name, n, m->hp.n_ctx_train);
    return n;
}

static tn_status make_buffers(tn_context *c, uint32_t kv_type, tn_error *err)
{
    const tn_context_options *o = &c->opt;
    const tn_status s = tn_kv_init(&c->kv, c->m, kv_type, o->page_size, o->n_ctx, o->n_batch, err);
    return s ? s : tn_exec_new(&c->exec, c->m, &c->kv, c->opt.n_batch, err);
}

/* All in one turn, so that no weights move meanwhile. Those on devices, of any model, that are
 * there only because there was room make way; from now on the model's boundary follows this
 * context, too. */
static tn_status settle(tn_context *c, uint32_t kv_type, tn_error *err)
{
    tn_boundary *b = c->m->boundary;
    pthread_mutex_lock(&c->m->engine->turn);
    tn_status s = make_buffers(c, kv_type, err);
    if (s == TN_EDEVICE && tn_boundary_give_way(c->m->engine, NULL)) {
        tn_kv_free(&c->kv);
        s = make_buffers(c, kv_type, err);
    }
    if (!s && b) s = tn_boundary_join(b, &c->kv, c->opt.n_ctx, err);
    if (!s && b) s = tn_boundary_move(b, err);
    pthread_mutex_unlock(&c->m->engine->turn);
    return s;
}

/* Gives back what devices hold, too, in the engine's turn: giving memory back waits for the device,
 * which may wait for the host thread that evaluates, and the driver may let neither of the two in
 * meanwhile. */
static void give_back(tn_context *c)
{
    pthread_mutex_lock(&c->m->engine->turn);
    tn_exec_free(c->exec);
    if (c->m->boundary) tn_boundary_leave(c->m->boundary, &c->kv);
    tn_kv_free(&c->kv);
    tn_boundary_look_again(c->m->engine);
    pthread_mutex_unlock(&c->m->engine->turn);
}

static tn_status fill(tn_context *c, tn_error *err)
{
    const tn_model *m = c->m;
    tn_context_options *o = &c->opt;
    const uint32_t kv_type = stored_type(o->kv);
    if (!o->n_batch) o->n_batch = default_batch;
    if (!o->n_ctx) o->n_ctx = default_ctx(m, kv_type, o->n_batch);
    if (o->n_batch > o->n_ctx) o->n_batch = o->n_ctx;
    if (!o->page_size) o->page_size = default_page;
    if (o->n_ctx > m->hp.n_ctx_train)
        tn_engine_log(m->engine, TN_LOG_WARN, "%s: a context of %d, but it was trained for %d",
                      m->name, o->n_ctx, m->hp.n_ctx_train);
    const tn_status s = settle(c, kv_type, err);
    if (s) return s;
    c->logits = tn_alloc_raw(c->a, (size_t)m->hp.n_vocab, sizeof *c->logits);
    return c->logits ? TN_OK : tn_fail_nomem(err, (size_t)m->hp.n_vocab * 4, "logits");
}

tn_status tn_context_new(tn_context **out, tn_model *m, const tn_context_options *options,
                         tn_error *err)
{
    *out = NULL;
    tn_context_options opt;
    tn_status s = tn_options_copy(&opt, sizeof opt, options, "tn_context_options", err);
    if (!s) s = check_options(m, &opt, err);
    if (s) return s;
    tn_context *c = tn_alloc(m->a, 1, sizeof *c);
    if (!c) return tn_fail_nomem(err, sizeof *c, "the context");
    c->m = m;
    c->a = m->a;
    c->opt = opt;
    atomic_flag_clear(&c->busy);
    atomic_fetch_add(&m->n_contexts, 1);
    s = fill(c, err);
    if (s)
        tn_context_free(c);
    else
        *out = c;
    return s;
}

void tn_context_free(tn_context *c)
{
    if (!c) return;
    give_back(c);
    tn_free(c->a, c->tokens);
    tn_free(c->a, c->logits);
    tn_free(c->a, c->slice);
    atomic_fetch_sub(&c->m->n_contexts, 1);
    tn_free(c->a, c);
}

/* ---- evaluating ------------------------------------------------------------------------------ */

static tn_status check_tokens(const tn_context *c, const int32_t *tokens, int32_t n, tn_error *err)
{
    if (n < 1) return tn_fail(err, TN_EARG, -1, "%d tokens to evaluate; give at least 1", n);
    const int32_t n_vocab = c->m->hp.n_vocab;
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= n_vocab)
            return tn_fail(err, TN_EARG, -1, "token %d at index %d is outside the vocabulary of %d",
                           tokens[i], i, n_vocab);
    const int64_t left = (int64_t)c->opt.n_ctx - (int64_t)c->n_tokens;
    if (n > left)
        return tn_fail(err, TN_EFULL, -1,
                       "%d more tokens do not fit: the context holds %d and %zu are used", n,
                       c->opt.n_ctx, c->n_tokens);
    return TN_OK;
}

/* One call: the tokens, and for which rows logits are wanted. */
typedef struct evaluation {
    tn_context *c;
    const int32_t *tokens;
    int32_t n, first_row;
    tn_logits_fn fn; /* NULL: of the last row only */
    void *user;
    tn_error *err;
    int32_t *best; /* NULL, or in place of the logits: the likeliest token */
    bool no_output; /* for the cache's sake only */
} evaluation;

/* Hands out the logits of the last `rows` rows of a batch that ends at row `end`. */
static tn_status hand_out(const evaluation *e, int32_t end, int32_t rows)
{
    tn_context *c = e->c;
    const size_t n_vocab = (size_t)c->m->hp.n_vocab;
    for (int32_t i = 0; i < rows; i += c->slice_rows) {
        const int32_t n = rows - i < c->slice_rows ? rows - i : c->slice_rows;
        pthread_mutex_lock(&c->m->engine->turn);
        tn_status s = tn_exec_head(c->exec, i, n, c->slice);
        if (s) tn_exec_settle(c->exec);
        pthread_mutex_unlock(&c->m->engine->turn);
        if (s) return s;
        if (!e->fn(e->user, end - rows + i, n, c->slice))
            return tn_fail(e->err, TN_ECANCELED, -1, "the evaluation was canceled");
        if (end - rows + i + n == e->n)
            memcpy(c->logits, c->slice + (size_t)(n - 1) * n_vocab, n_vocab * sizeof *c->logits);
    }
    return TN_OK;
}

static double host_seconds(const tn_context *c)
{
    tn_stats s = {0};
    tn_exec_stats(c->exec, &s);
    return s.host.seconds;
}

/* The emulated device's times say nothing about the machine that the plan is for. */
static tn_status note_time(tn_context *c, tn_token_time t, tn_error *err)
{
    tn_device *d = c->m->engine->device;
    if (!c->m->boundary || d->api->info(d)->kind == TN_DEVICE_EMULATED) return TN_OK;
    return tn_boundary_note(c->m->boundary, (int64_t)c->n_tokens, t, err);
}

/* Prompts are bound by arithmetic and use every thread. */
static void choose_threads(tn_context *c, int32_t n)
{
    tn_engine *e = c->m->engine;
    if (!e->tunes) return;
    if (!c->tune.threads) tn_tune_begin(&c->tune, e->n_threads);
    tn_pool_use(e->pool, n == 1 ? c->tune.threads : e->n_threads);
}

static void note_threads(tn_context *c, double seconds)
{
    tn_engine *e = c->m->engine;
    if (!e->tunes || c->tune.settled) return;
    tn_tune_note(&c->tune, seconds);
    if (c->tune.settled)
        tn_engine_log(e, TN_LOG_INFO, "a token is decoded on %d of %d threads", c->tune.threads,
                      e->n_threads);
}

/* Weights that wait in the mapped file; their time is part of loading. */
static tn_status take_weights(tn_context *c, tn_error *err)
{
    double seconds;
    pthread_mutex_lock(&c->m->engine->turn);
    const tn_status s = tn_later_arrive(c->m, c->opt.cancel, c->opt.user, &seconds, err);
    pthread_mutex_unlock(&c->m->engine->turn);
    c->arrival_s += seconds;
    return s;
}

static tn_status eval_batch(const evaluation *e, int32_t at, int32_t n)
{
    tn_context *c = e->c;
    tn_status s = take_weights(c, e->err);
    if (s) return s;
    tn_batch b = {.tokens = e->tokens + at,
                  .n = n,
                  .pos0 = (int64_t)c->n_tokens + at,
                  .cancel = c->opt.cancel,
                  .user = c->opt.user,
                  .err = e->err};
    if (e->fn)
        b.n_out = at + n <= e->first_row ? 0 : at > e->first_row ? n : at + n - e->first_row;
    else
        b.n_out = at + n == e->n && !e->no_output;
    b.best = e->best && b.n_out;
    tn_kv_put_next(&c->kv, b.pos0, n);
    pthread_mutex_lock(&c->m->engine->turn);
    choose_threads(c, n);
    const double start = tn_now(), host_s = host_seconds(c);
    s = tn_forward(c->exec, c->m, &b);
    if (!s && b.best)
        s = tn_exec_best(c->exec, c->logits, e->best);
    else if (!s && !e->fn && b.n_out)
        s = tn_exec_head(c->exec, 0, 1, c->logits);
    if (!s && e->n == 1) {
        const double seconds = tn_now() - start;
        note_threads(c, seconds);
        s = note_time(c, (tn_token_time){host_seconds(c) - host_s, seconds}, e->err);
    }
    if (s) tn_exec_settle(c->exec);
    pthread_mutex_unlock(&c->m->engine->turn);
    return s || !e->fn ? s : hand_out(e, at + n, (int32_t)b.n_out);
}

/* Positions [0, n) of the cache, and weights on the device as they are to be at that length. */
static tn_status reserve_kv(tn_context *c, int64_t n, tn_error *err)
{
    tn_boundary *b = c->m->boundary;
    pthread_mutex_lock(&c->m->engine->turn);
    c->kv.live = n;
    tn_status s = b ? tn_boundary_move(b, err) : TN_OK;
    if (!s) s = tn_kv_reserve(&c->kv, n, err);
    if (s == TN_EDEVICE && tn_boundary_give_way(c->m->engine, b)) s = tn_kv_reserve(&c->kv, n, err);
    if (s == TN_EDEVICE && b && tn_boundary_clear(b, c->kv.short_of))
        s = tn_kv_reserve(&c->kv, n, err);
    pthread_mutex_unlock(&c->m->engine->turn);
    return s;
}

/* Everything that can fail for lack of memory comes before the first batch. */
static tn_status reserve(const evaluation *e)
{
    tn_context *c = e->c;
    const size_t need = c->n_tokens + (size_t)e->n, n_vocab = (size_t)c->m->hp.n_vocab;
    if (!tn_grow(c->a, (void **)&c->tokens, &c->cap_tokens, c->n_tokens, need, sizeof *c->tokens))
        return tn_fail_nomem(e->err, need * sizeof *c->tokens, "the context's tokens");
    if (e->fn && !c->slice) {
        size_t rows = slice_bytes / (n_vocab * sizeof(float));
        if (rows < 1) rows = 1;
        if (rows > (size_t)c->opt.n_batch) rows = (size_t)c->opt.n_batch;
        c->slice_rows = (int32_t)rows;
        c->slice = tn_alloc_raw(c->a, rows * n_vocab, sizeof *c->slice);
        if (!c->slice) return tn_fail_nomem(e->err, rows * n_vocab * sizeof *c->slice, "logits");
    }
    return reserve_kv(c, (int64_t)need, e->err);
}

static tn_status eval_batches(const evaluation *e)
{
    tn_context *c = e->c;
    tn_status s = TN_OK;
    const double start = tn_now();
    c->arrival_s = 0;
    const bool tell = c->opt.progress && !e->no_output;
    for (int32_t at = 0; at < e->n && !s; at += c->opt.n_batch) {
        const int32_t n = e->n - at < c->opt.n_batch ? e->n - at : c->opt.n_batch;
        s = eval_batch(e, at, n);
        if (!s && tell) c->opt.progress(c->opt.user, (uint64_t)(at + n), (uint64_t)e->n);
    }
    const double seconds = tn_now() - start - c->arrival_s;
    *(e->n > 1 ? &c->prefill_s : &c->decode_s) += seconds;
    return s;
}

/* After a long rewind the layers with a window lack what has left their rings since: the tokens
 * held are evaluated anew. */
static tn_status make_whole(const evaluation *e)
{
    tn_context *c = e->c;
    const size_t held = c->n_tokens;
    if (tn_kv_is_whole(&c->kv, (int64_t)held)) return TN_OK;
    c->kv.written = 0;
    c->n_tokens = 0;
    const evaluation again = {.c = c, .tokens = c->tokens, .n = (int32_t)held, .err = e->err,
                              .no_output = true};
    const tn_status s = eval_batches(&again);
    c->n_tokens = held;
    if (s) c->kv.written = 0;
    else c->prefill_tokens += held;
    return s;
}

static tn_status evaluate(const evaluation *e)
{
    tn_context *c = e->c;
    tn_status s = check_tokens(c, e->tokens, e->n, e->err);
    if (!s && (e->first_row < 0 || e->first_row >= e->n))
        s = tn_fail(e->err, TN_EARG, -1, "first_row is %d of %d tokens", e->first_row, e->n);
    if (!s) s = reserve(e);
    if (!s) s = make_whole(e);
    if (!s) s = eval_batches(e);
    if (s) {
        c->kv.live = (int64_t)c->n_tokens; /* room for what did not come is others' again */
        return s;
    }
    *(e->n > 1 ? &c->prefill_tokens : &c->decode_tokens) += (uint64_t)e->n;
    memcpy(c->tokens + c->n_tokens, e->tokens, (size_t)e->n * sizeof *c->tokens);
    c->n_tokens += (size_t)e->n;
    c->has_logits = !e->best;
    return TN_OK;
}

static bool enter(tn_context *c, tn_status *s, tn_error *err)
{
    if (!atomic_flag_test_and_set(&c->busy)) return true;
    *s = tn_fail(err, TN_EBUSY, -1, "the context is in use by another call");
    return false;
}

static void leave(tn_context *c)
{
    atomic_flag_clear(&c->busy);
}

tn_status tn_context_eval(tn_context *c, const int32_t *tokens, int32_t n, tn_error *err)
{
    tn_status s;
    if (!enter(c, &s, err)) return s;
    const evaluation e = {.c = c, .tokens = tokens, .n = n, .err = err};
    s = evaluate(&e);
    leave(c);
    return s;
}

tn_status tn_context_eval_all(tn_context *c, const int32_t *tokens, int32_t n, int32_t first_row,
                              tn_logits_fn fn, void *user, tn_error *err)
{
    tn_status s;
    if (!fn)
        return tn_fail(err, TN_EARG, -1, "tn_context_eval_all needs a function for the logits");
    if (!enter(c, &s, err)) return s;
    const evaluation e = {c, tokens, n, first_row, fn, user, err, NULL, false};
    s = evaluate(&e);
    leave(c);
    return s;
}

tn_status tn_context_eval_best(tn_context *c, const int32_t *tokens, int32_t n, int32_t *best,
                               tn_error *err)
{
    tn_status s;
    int32_t id = -1;
    if (!best) return tn_fail(err, TN_EARG, -1, "tn_context_eval_best: best must not be NULL");
    if (!enter(c, &s, err)) return s;
    const evaluation e = {.c = c, .tokens = tokens, .n = n, .err = err, .best = &id};
    s = evaluate(&e);
    leave(c);
    if (!s) *best = id;
    return s;
}

tn_status tn_context_rewind(tn_context *c, int32_t n, tn_error *err)
{
    tn_status s = TN_OK;
    if (!enter(c, &s, err)) return s;
    if (n < 0 || (size_t)n > c->n_tokens) {
        s = tn_fail(err, TN_EARG, -1, "cannot rewind to %d of %zu tokens", n, c->n_tokens);
    } else {
        c->n_tokens = (size_t)n;
        c->kv.live = n;
        c->has_logits = false;
    }
    leave(c);
    return s;
}

/* ---- looking --------------------------------------------------------------------------------- */

const float *tn_context_logits(const tn_context *c)
{
    return c->has_logits ? c->logits : NULL;
}

int32_t tn_context_length(const tn_context *c)
{
    return (int32_t)c->n_tokens;
}

int32_t tn_context_capacity(const tn_context *c)
{
    return c->opt.n_ctx;
}

const int32_t *tn_context_tokens(const tn_context *c)
{
    return c->tokens;
}

static uint64_t device_bytes(const tn_engine *e)
{
    uint64_t bytes = 0;
    for (int i = 0; i < e->devices.n; i++) {
        tn_device_memory m = {0};
        tn_device *d = e->devices.at[i];
        if (d->api->memory(d, &m, NULL) == TN_OK) bytes += m.used_bytes;
    }
    return bytes;
}

tn_status tn_context_stats(const tn_context *c, tn_stats *stats, tn_error *err)
{
    if (stats->struct_size < sizeof stats->struct_size || stats->struct_size > 4096)
        return tn_fail(err, TN_EARG, -1, "tn_stats: set struct_size to sizeof the struct");
    tn_stats full = {.struct_size = stats->struct_size,
                     .prefill_s = c->prefill_s,
                     .decode_s = c->decode_s,
                     .prefill_tokens = c->prefill_tokens,
                     .decode_tokens = c->decode_tokens,
                     .load_s = c->m->load_s,
                     .kv_bytes_held = tn_kv_bytes(&c->kv),
                     .model_bytes_held = c->m->held_bytes,
                     .device_bytes_held = device_bytes(c->m->engine)};
    tn_exec_stats(c->exec, &full);
    if (c->m->boundary) {
        const tn_boundary_counts n = tn_boundary_count(c->m->boundary);
        full.units = (uint64_t)n.of;
        full.units_on_device = (uint64_t)n.units;
        full.units_dropped = n.dropped;
        full.units_promoted = n.promoted;
        full.replans = n.replans;
    }
    memcpy(stats, &full, stats->struct_size < sizeof full ? stats->struct_size : sizeof full);
    return TN_OK;
}

void tn_context_stats_reset(tn_context *c)
{
    c->prefill_s = c->decode_s = 0;
    c->prefill_tokens = c->decode_tokens = 0;
    tn_exec_stats_reset(c->exec);
}

tn_status tn_context_experts(const tn_context *c, int32_t layer, uint64_t *counts, int32_t n,
                             tn_error *err)
{
    const tn_hparams *hp = &c->m->hp;
    if (layer < 0 || layer >= hp->n_layers || n < 0 || n > hp->n_expert)
        return tn_fail(err, TN_EARG, -1, "layer %d with %d experts: the model has %d layers of %d",
                       layer, n, hp->n_layers, hp->n_expert);
    const uint64_t *all = tn_exec_experts(c->exec, layer);
    for (int32_t i = 0; i < n; i++)
        counts[i] = all[i];
    return TN_OK;
}
