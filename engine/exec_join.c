/* Where host and device meet: hand-overs, and the recording and replay of a decoded token. */
#include "exec_internal.h"

#include <sched.h>
#include <string.h>

enum {
    flag_stride = 16,     /* words: a flag has a cache line of its own */
    flags_per_layer = 16, /* more than the most mixed layer needs */
    spins = 200,          /* looks at a flag before the thread gives way, */
    yields = 64           /* and how often it does so before it asks whether the device lives */
};

static uint32_t *flag(const tn_exec *x, int32_t i)
{
    return x->rec.flags + (size_t)i * flag_stride;
}

/* ---- recording ------------------------------------------------------------------------------- */

static void fail(tn_exec *x, tn_status s)
{
    if (!x->status) x->status = s;
}

static void push(tn_exec *x, tn_step step)
{
    tn_recording *r = &x->rec;
    if (!tn_grow(x->m->a, (void **)&r->steps, &r->cap_steps, r->n_steps, r->n_steps + 1,
                 sizeof step))
        fail(x, tn_fail_nomem(x->batch.err, sizeof step, "a recorded step"));
    else
        r->steps[r->n_steps++] = step;
}

static int32_t new_flag(tn_exec *x)
{
    if (x->rec.n_flags < x->rec.cap_flags) return x->rec.n_flags++;
    fail(x, tn_fail(x->batch.err, TN_EINTERNAL, -1, "too many hand-overs in a token"));
    return 0;
}

void tn_exec_host(tn_exec *x, tn_host_op op, int32_t arg)
{
    tn_exec_look(x);
    if (x->status) return;
    if (x->mode == TN_EXEC_RECORD) {
        push(x, (tn_step){TN_STEP_OP, op, arg});
        return;
    }
    const double start = tn_now();
    op(x, arg);
    x->on_host.seconds += tn_now() - start;
}

void tn_exec_record_poll(tn_exec *x)
{
    push(x, (tn_step){TN_STEP_POLL, NULL, 0});
}

void tn_exec_look(tn_exec *x)
{
    for (int32_t i = 0; i < x->n_devs; i++)
        if (x->devs[i].status) fail(x, x->devs[i].status);
}

tn_status tn_exec_sync(tn_exec *x)
{
    const double start = tn_now();
    for (int32_t i = 0; i < x->n_devs; i++)
        fail(x, tn_dev_sync(&x->devs[i]));
    x->on_device.seconds += tn_now() - start;
    x->busy = false;
    if (!x->status) tn_exec_count_there(x);
    x->choices_coming = 0;
    return x->status;
}

static void count_hop(tn_exec *x)
{
    ++*(x->mode == TN_EXEC_RECORD ? &x->rec.hops : &x->hops);
}

void tn_exec_to_host(tn_exec *x, void *to, const void *from, int64_t count)
{
    tn_dev *d = x->dev;
    if (x->status) return;
    count_hop(x);
    tn_dev_download(d, to, from, count);
    if (x->mode != TN_EXEC_RECORD) {
        const double before = x->on_device.seconds;
        tn_exec_sync(x);
        x->join_wait_s += x->on_device.seconds - before;
        return;
    }
    const int32_t f = new_flag(x);
    if (!d->status) d->status = d->api->flag_write(d->device, d->stream, flag(x, f), 1, d->err);
    push(x, (tn_step){TN_STEP_WAIT, NULL, f});
}

void tn_exec_to_device(tn_exec *x, void *to, const void *from, int64_t count)
{
    tn_dev *d = x->dev;
    if (x->status) return;
    count_hop(x);
    if (x->mode == TN_EXEC_RECORD) {
        const int32_t f = new_flag(x);
        push(x, (tn_step){TN_STEP_SIGNAL, NULL, f});
        if (!d->status) d->status = d->api->flag_wait(d->device, d->stream, flag(x, f), 1, d->err);
    }
    tn_dev_upload(d, to, from, count);
}

/* ---- activations ----------------------------------------------------------------------------- */

typedef struct place {
    void *host, *device;
    int64_t count; /* elements of 4 bytes */
} place;

static place place_of(const tn_exec *x, tn_act a)
{
    const tn_hparams *hp = &x->m->hp;
    const tn_host *h = &x->host;
    const tn_dev *d = x->dev;
    const int64_t n = x->n, items = n * h->used;
    switch (a) {
    case TN_ACT_H: return (place){h->h, d->h, n * hp->n_embd};
    case TN_ACT_Q: return (place){h->q, d->q, n * hp->n_head * hp->head_dim_k};
    case TN_ACT_K: return (place){h->k, d->k, n * hp->n_head_kv * hp->head_dim_k};
    case TN_ACT_V: return (place){h->v, d->v, n * hp->n_head_kv * hp->head_dim_v};
    case TN_ACT_ATTENDED: return (place){h->in, d->in, n * hp->n_head * hp->head_dim_v};
    case TN_ACT_GATE: return (place){h->gate, d->gate, items * hp->n_ff};
    case TN_ACT_UP: return (place){h->up, d->up, items * hp->n_ff};
    case TN_ACT_CHOSEN: return (place){h->choice, d->chosen, items};
    case TN_ACT_EXPERT: return (place){h->expert, d->expert, items};
    case TN_ACT_WEIGHT: return (place){h->choice_weight, d->choice_weight, items};
    default: return (place){0};
    }
}

void tn_exec_need(tn_exec *x, tn_act a, tn_side side)
{
    if (x->valid[a] & 1u << side) return;
    const place p = place_of(x, a);
    if (side == TN_ON_HOST)
        tn_exec_to_host(x, p.host, p.device, p.count);
    else
        tn_exec_to_device(x, p.device, p.host, p.count);
    x->valid[a] |= 1u << side;
}

void tn_exec_wrote(tn_exec *x, tn_act a, tn_side side)
{
    x->valid[a] = 1u << side;
}

/* ---- devices --------------------------------------------------------------------------------- */

/* Begins to record what a device does next. */
static void begin_piece(tn_exec *x, tn_piece piece)
{
    tn_recording *r = &x->rec;
    const tn_dev *d = piece.dev;
    if (r->n_pieces == TN_PIECES) {
        fail(x, tn_fail(x->batch.err, TN_EINTERNAL, -1, "too many devices in a token"));
        return;
    }
    fail(x, d->api->graph_begin(d->device, d->stream, x->batch.err));
    if (x->status) return;
    push(x, (tn_step){TN_STEP_LAUNCH, NULL, r->n_pieces});
    r->pieces[r->n_pieces++] = piece;
    x->mode = TN_EXEC_RECORD;
}

/* Ends it, with no recording under way whatever happens. */
static void end_piece(tn_exec *x)
{
    const tn_dev *d = x->dev;
    tn_exec_look(x);
    x->mode = TN_EXEC_DIRECT;
    fail(x, d->api->graph_end(d->device, d->stream, &x->rec.pieces[x->rec.n_pieces - 1].graph,
                              x->status ? NULL : d->err));
}

void tn_exec_hand_over(tn_exec *x, tn_dev *to)
{
    const tn_piece piece = {
        .dev = to, .from = x->dev, .h = x->valid[TN_ACT_H] == 1u << TN_ON_DEVICE};
    if (x->status) return;
    if (piece.h) count_hop(x);
    if (x->mode == TN_EXEC_RECORD) {
        end_piece(x);
        if (!x->status) begin_piece(x, piece);
    } else {
        tn_dev_hand_over(x->dev, to, piece.h, x->host.h);
    }
    x->dev = to;
    if (!piece.h) x->valid[TN_ACT_H] &= ~(1u << TN_ON_DEVICE);
    if (!x->status) tn_dev_begin(to);
}

/* ---- a token --------------------------------------------------------------------------------- */

tn_status tn_exec_join_init(tn_exec *x, tn_error *err)
{
    tn_recording *r = &x->rec;
    void *p;
    r->cap_flags = (x->m->hp.n_layers + 1) * flags_per_layer;
    tn_status s = x->dev->api->alloc_pinned(x->dev->device,
                                           (size_t)r->cap_flags * flag_stride * sizeof *r->flags,
                                           "hand-over flags", &p, err);
    if (!s) r->flags = p;
    return s;
}

void tn_exec_forget(tn_exec *x)
{
    tn_recording *r = &x->rec;
    for (int32_t i = 0; i < r->n_pieces; i++)
        r->pieces[i].dev->api->graph_destroy(r->pieces[i].dev->device, r->pieces[i].graph);
    memset(r->pieces, 0, sizeof r->pieces);
    r->n_pieces = 0;
    r->n_steps = 0;
    r->n_flags = 0;
    r->hops = 0;
    r->choices = 0;
    r->on_device = (tn_side_stats){0};
}

void tn_exec_abandon(tn_exec *x)
{
    if (x->mode != TN_EXEC_RECORD) return;
    end_piece(x);
    tn_exec_forget(x);
}

void tn_exec_join_free(tn_exec *x)
{
    tn_exec_abandon(x);
    tn_exec_forget(x);
    x->devs[0].api->free_pinned(x->devs[0].device, x->rec.flags);
    tn_free(x->m->a, x->rec.steps);
}

void tn_exec_choose_mode(tn_exec *x)
{
    tn_exec_abandon(x);
    x->dev = x->devs;
    x->mode = TN_EXEC_DIRECT;
    if (x->batch.n != 1 || x->batch.n_out != 1) return;
    int32_t n_splits = 0;
    for (int32_t i = 0; i < x->n_devs; i++)
        n_splits += x->devs[i].n_splits;
    if (x->rec.n_pieces && x->rec.n_splits == n_splits && x->rec.best == x->batch.best) {
        x->mode = TN_EXEC_REPLAY;
        return;
    }
    tn_exec_forget(x);
    x->rec.n_splits = n_splits;
    x->rec.best = x->batch.best;
    begin_piece(x, (tn_piece){.dev = x->dev});
}

void tn_exec_recorded(tn_exec *x)
{
    end_piece(x);
    if (x->status)
        tn_exec_forget(x);
    else
        x->mode = TN_EXEC_REPLAY;
}

/* Waits until the device has written a flag. It spins, because the wait is short; now and then it
 * asks whether the device still runs, because a failed one writes no flags. */
static void wait_for(tn_exec *x, int32_t i)
{
    const tn_dev *d = x->dev;
    const double start = tn_now();
    bool done = false;
    for (int looks = 0, turns = 0; !__atomic_load_n(flag(x, i), __ATOMIC_ACQUIRE); looks++) {
        if (looks % spins != spins - 1) continue;
        sched_yield();
        if (++turns % yields) continue;
        /* The flag is read once more after the stream has ended. */
        if (done) fail(x, tn_fail(d->err, TN_EDEVICE, -1, "the device ended a token early"));
        if (x->status) break;
        fail(x, d->api->stream_query(d->device, d->stream, &done, d->err));
    }
    const double waited = tn_now() - start;
    x->join_wait_s += waited;
    x->on_device.seconds += waited;
}

static void poll(tn_exec *x)
{
    const tn_batch *b = &x->batch;
    if (!x->status && b->cancel && b->cancel(b->user))
        fail(x, tn_fail(b->err, TN_ECANCELED, -1, "the evaluation was canceled"));
}

static void launch(tn_exec *x, const tn_piece *p)
{
    if (p->from) tn_dev_hand_over(p->from, p->dev, p->h, x->host.h);
    tn_exec_look(x);
    x->dev = p->dev;
    if (!x->status)
        fail(x, p->dev->api->graph_launch(p->dev->device, p->graph, p->dev->stream, p->dev->err));
}

static void run_step(tn_exec *x, const tn_step *s)
{
    switch (s->kind) {
    case TN_STEP_LAUNCH: launch(x, &x->rec.pieces[s->arg]); break;
    case TN_STEP_OP: tn_exec_host(x, s->op, s->arg); break;
    case TN_STEP_WAIT:
        wait_for(x, s->arg);
        poll(x);
        break;
    case TN_STEP_SIGNAL: __atomic_store_n(flag(x, s->arg), 1, __ATOMIC_RELEASE); break;
    case TN_STEP_POLL: poll(x); break;
    }
}

/* Lets the device run to the end of a token that nobody wants any more. */
static void release(tn_exec *x)
{
    for (size_t i = 0; i < x->rec.n_steps; i++)
        if (x->rec.steps[i].kind == TN_STEP_SIGNAL)
            __atomic_store_n(flag(x, x->rec.steps[i].arg), 1, __ATOMIC_RELEASE);
}

void tn_exec_replay(tn_exec *x)
{
    tn_recording *r = &x->rec;
    if (x->status) return;
    for (int32_t i = 0; i < r->n_flags; i++)
        __atomic_store_n(flag(x, i), 0, __ATOMIC_RELEASE);
    for (size_t i = 0; i < r->n_steps && !x->status; i++)
        run_step(x, &r->steps[i]);
    if (x->status) release(x);
    x->choices_coming = r->choices;
    tn_exec_sync(x);
    x->on_device.weight_bytes += r->on_device.weight_bytes;
    x->hops += r->hops;
}
