#include "simulate.h"

#include <math.h>
#include <string.h>

enum { host_server, first_device, n_servers = 1 + 2 * TN_MAX_DEVICES, ring_slots = 2 };

typedef struct job {
    double work;     /* seconds when nobody disturbs */
    int32_t wait[3]; /* indices of jobs that must be done before, -1 = none */
    int8_t server;
    bool done;
} job;

typedef struct sim {
    const tn_plan *plan;
    const tn_cost *k;
    const int32_t *units; /* [n_layers] */
    uint64_t rng;
    const tn_allocator *a;
    job *jobs;
    size_t n, cap;
    int32_t *queue[n_servers]; /* jobs of each server in order */
    size_t queued[n_servers], queue_cap[n_servers];
    bool no_memory;
    int at;                                   /* where the residual stream is */
    int32_t last;                             /* the job that made it */
    int32_t slot[TN_MAX_DEVICES][ring_slots]; /* the job that frees each slot, -1 = free */
    int n_copied[TN_MAX_DEVICES];
    bool *met;       /* [largest n_expert] some token has */
    int32_t *chosen; /* [largest n_expert] of the running token */
    tn_simulated out;
} sim;

static int stream_of(int d)
{
    return first_device + 2 * d;
}

static int link_of(int d)
{
    return first_device + 2 * d + 1;
}

static int server_of(int side)
{
    return side == TN_HOST ? host_server : stream_of(side);
}

/* ---- events ---------------------------------------------------------------------------------- */

static void count_busy(sim *s, int server, double work)
{
    double *sum = server == host_server         ? &s->out.host_busy_s
                  : (server - first_device) % 2 ? &s->out.link_busy_s
                                                : &s->out.device_busy_s;
    *sum += work;
}

static int32_t add(sim *s, int server, double work, int32_t wait1, int32_t wait2)
{
    const int32_t i = (int32_t)s->n;
    if (s->no_memory ||
        !tn_grow(s->a, (void **)&s->jobs, &s->cap, s->n, s->n + 1, sizeof *s->jobs) ||
        !tn_grow(s->a, (void **)&s->queue[server], &s->queue_cap[server], s->queued[server],
                 s->queued[server] + 1, sizeof **s->queue)) {
        s->no_memory = true;
        return -1;
    }
    count_busy(s, server, work);
    s->jobs[s->n++] = (job){work, {wait1, wait2, -1}, (int8_t)server, false};
    s->queue[server][s->queued[server]++] = i;
    return i;
}

static bool ready(const sim *s, const job *j)
{
    for (int i = 0; i < 3; i++)
        if (j->wait[i] >= 0 && !s->jobs[j->wait[i]].done) return false;
    return true;
}

/* What a server keeps of its speed beside those that are busy: the worst pair decides. */
static double speed(const sim *s, int server, const bool *busy)
{
    const tn_profile_contended *c = &s->k->p->contended;
    bool device = false, copy = false;
    for (int d = 0; d < TN_MAX_DEVICES; d++) {
        device = device || busy[stream_of(d)];
        copy = copy || busy[link_of(d)];
    }
    if (server == host_server)
        return fmin(device ? c->host_beside_device : 1, copy ? c->host_beside_copy : 1);
    if (!busy[host_server]) return 1;
    return (server - first_device) % 2 ? c->copy_beside_host : c->device_beside_host;
}

/* Works off all jobs and forgets them. Returns the seconds that takes. */
static double run(sim *s)
{
    size_t next[n_servers] = {0};
    double now = 0;
    for (;;) {
        bool busy[n_servers];
        double rate[n_servers], step = INFINITY;
        for (int v = 0; v < n_servers; v++)
            busy[v] = next[v] < s->queued[v] && ready(s, &s->jobs[s->queue[v][next[v]]]);
        for (int v = 0; v < n_servers; v++) {
            rate[v] = speed(s, v, busy);
            if (busy[v]) step = fmin(step, s->jobs[s->queue[v][next[v]]].work / rate[v]);
        }
        if (!isfinite(step)) break;
        now += step;
        for (int v = 0; v < n_servers; v++) {
            if (!busy[v]) continue;
            job *j = &s->jobs[s->queue[v][next[v]]];
            const double did = fmin(step * rate[v], j->work);
            j->done = j->work - did <= 1e-12 * step * rate[v];
            j->work -= did;
            next[v] += j->done;
        }
    }
    s->out.n_jobs += s->n;
    s->n = 0;
    memset(s->queued, 0, sizeof s->queued);
    memset(s->slot, 0xff, sizeof s->slot);
    return now;
}

/* ---- durations ------------------------------------------------------------------------------- */

static const tn_side_rates *rates(const sim *s, int side)
{
    return side == TN_HOST ? &s->k->p->host.rate : &s->k->p->device[side].rate;
}

static double scale(const sim *s, int side)
{
    return side == TN_HOST ? s->k->host_scale : 1;
}

/* So many of n vectors meet one matrix of a tensor, on average, at once. */
static int64_t vectors(const sim *s, const tn_shape_tensor *t, int64_t n)
{
    if (t->layer < 0 || t->n_expert <= 1) return n;
    const tn_shape_layer *y = &s->k->s->layer[t->layer];
    const int64_t each = y->n_expert ? n * y->n_used / y->n_expert : n;
    return each > 1 ? each : 1;
}

/* n vectors times `read` of a tensor's bytes and `used` of its parameters per vector. */
static double product(const sim *s, const tn_shape_tensor *t, int side, int64_t n, double read,
                      double used)
{
    const double bytes_s = rates(s, side)->matvec[t->type] * scale(s, side);
    const double by_bytes = read * (double)t->bytes / bytes_s;
    if (n == 1 || t->part == TN_PART_NORM || t->part == TN_PART_FFN_NORM) return by_bytes;
    const double flops = 2.0 * used * (double)t->params * (double)n;
    const double rate = tn_profile_flops(rates(s, side), vectors(s, t, n));
    return fmax(by_bytes, flops / (rate * scale(s, side)));
}

/* Parts [from, to] of a layer on one side, the same share of every one of their tensors. */
static double parts(const sim *s, int32_t l, int side, int64_t n, tn_part from, tn_part to,
                    double read, double used)
{
    const tn_shape *m = s->k->s;
    double sum = 0;
    for (int32_t j = 0; j < m->layer[l].n; j++) {
        const tn_shape_tensor *t = &m->tensor[m->of_layer[m->layer[l].first + j]];
        if (t->part >= from && t->part <= to) sum += product(s, t, side, n, read, used);
    }
    return sum;
}

static double attend(const sim *s, int32_t l, int side, int64_t start, int64_t n)
{
    const tn_shape_layer *y = &s->k->s->layer[l];
    double positions = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t seen = start + i + 1;
        positions += (double)(y->window && seen > y->window ? y->window : seen);
    }
    const double sharing = n > 64 ? 64 : (double)n; /* queries per pass over the KV */
    const double bytes = positions / sharing * tn_kv_kind_bytes(s->k->c.kv, y->kv_elements);
    const double read = bytes / (rates(s, side)->kv[s->k->c.kv] * scale(s, side));
    if (n == 1) return read;
    const double flops = 4.0 * positions * y->n_head * y->head_dim;
    return fmax(read, flops / (tn_profile_flops(rates(s, side), n) * scale(s, side)));
}

/* ---- a layer --------------------------------------------------------------------------------- */

/* An operation on one side after the residual stream is there. */
static void op(sim *s, int side, double work)
{
    s->last = add(s, server_of(side), work + rates(s, side)->op_s, s->last, -1);
}

static void hop(sim *s, int d, int64_t n)
{
    s->last = add(s, stream_of(d), tn_cost_hop(s->k, d, n), s->last, -1);
}

static void move(sim *s, int to, int64_t n)
{
    if (s->at == to) return;
    if (s->at != TN_HOST) hop(s, s->at, n);
    if (to != TN_HOST) hop(s, to, n);
    s->at = to;
}

/* Both sides at once, between two hops of device d. */
static void both(sim *s, int d, double host, double device, int64_t n)
{
    hop(s, d, n);
    const int32_t start = s->last;
    const int32_t h = host > 0 ? add(s, host_server, host, start, -1) : -1;
    const int32_t g = device > 0 ? add(s, stream_of(d), device, start, -1) : -1;
    s->last = add(s, stream_of(d), tn_cost_hop(s->k, d, n), h, g);
    if (h < 0 && g < 0 && s->last >= 0) s->jobs[s->last].wait[0] = start;
}

/* Copies bytes to device d through the ring and computes with them there. */
static void stream(sim *s, int d, double bytes, double work)
{
    const int slot = s->n_copied[d]++ % ring_slots;
    const int32_t copy = add(s, link_of(d), bytes / s->k->link[d], s->slot[d][slot], -1);
    s->last = s->slot[d][slot] = add(s, stream_of(d), work, copy, s->last);
}

/* A share of the projections' bytes to device d, from now on, and the work with them. */
static void carry(sim *s, int d, double bytes, double work)
{
    enum { pieces = 16 };
    for (int i = 0; i < pieces; i++) {
        int32_t *slot = &s->slot[d][s->n_copied[d]++ % ring_slots];
        const int32_t copy =
            add(s, link_of(d), bytes / s->k->link[d] / pieces, *slot, i ? -1 : s->last);
        s->last = *slot = add(s, stream_of(d), work / pieces, copy, s->last);
    }
}

/* Attention on the host whose projections are on device d; of the last layer those of the KV. */
static void attend_between(sim *s, int32_t l, int64_t start, int64_t n, int64_t n_out)
{
    const int d = s->plan->layer[l].device;
    const double in = parts(s, l, d, n, TN_PART_QKV, TN_PART_QKV, 1, 1);
    const double out = parts(s, l, d, n, TN_PART_OUT, TN_PART_OUT, 1, 1);
    const double bytes = (double)tn_cost_projections(s->k, l);
    const double first = n_out < n ? bytes : bytes * in / (in + out);
    op(s, TN_HOST, parts(s, l, TN_HOST, n, TN_PART_NORM, TN_PART_NORM, 1, 1));
    hop(s, d, n);
    carry(s, d, first, in);
    hop(s, d, n);
    if (!n_out) return;
    op(s, TN_HOST, attend(s, l, TN_HOST, start + n - n_out, n_out));
    if (n_out == n) {
        hop(s, d, n);
        carry(s, d, bytes - first, out);
        for (int i = 3; i < tn_cost_attn_hops(s->k, l); i++)
            hop(s, d, n);
        op(s, TN_HOST, parts(s, l, TN_HOST, n, TN_PART_FFN_NORM, TN_PART_SHARED, 1, 1));
    } else {
        op(s, TN_HOST, parts(s, l, TN_HOST, n_out, TN_PART_OUT, TN_PART_SHARED, 1, 1));
    }
    op(s, TN_HOST, 0);
}

static void attention(sim *s, int32_t l, int64_t start, int64_t n, int64_t n_out)
{
    const tn_plan_layer *y = &s->plan->layer[l];
    const int d = y->device, side = y->attn ? d : TN_HOST;
    if (tn_cost_attn_streams(s->k, l, d, y->attn, n)) {
        attend_between(s, l, start, n, n_out);
        return;
    }
    op(s, side, parts(s, l, side, n, TN_PART_NORM, TN_PART_QKV, 1, 1));
    if (!n_out) return;
    op(s, side, attend(s, l, side, start + n - n_out, n_out));
    op(s, side, parts(s, l, side, n_out, TN_PART_OUT, TN_PART_OUT, 1, 1));
    op(s, side, parts(s, l, side, n_out, TN_PART_FFN_NORM, TN_PART_SHARED, 1, 1));
}

/* Groups of tensors that overrides put on either side, one after another. */
static void walk(sim *s, const tn_walk_op *ops, int n_ops, int d, bool home, int64_t n)
{
    for (int i = 0; i < n_ops;) {
        double host = 0, device = 0;
        const int group = ops[i].group;
        for (; i < n_ops && ops[i].group == group; i++) {
            host += (1 - ops[i].share) * ops[i].host_s;
            device += ops[i].share * ops[i].device_s;
        }
        if (host > 0 && device > 0) {
            both(s, d, host, device, n);
            continue;
        }
        move(s, device > 0 ? d : TN_HOST, n);
        s->last = add(s, server_of(s->at), host + device, s->last, -1);
    }
    move(s, home ? d : TN_HOST, n);
}

static void walk_attention(sim *s, int32_t l, int64_t start, int64_t n, int64_t n_out)
{
    const tn_plan_layer *y = &s->plan->layer[l];
    const int64_t window = s->k->s->layer[l].window;
    tn_walk_op ops[TN_WALK_OPS];
    int n_ops = tn_cost_walk_qkv(s->k, l, y->device, y->attn, n, ops);
    walk(s, ops, n_ops, y->device, y->attn, n);
    if (!n_out) return;
    const double attended = tn_cost_attended(start + n - n_out, n_out, window);
    n_ops = tn_cost_walk_attend(s->k, l, y->device, y->attn, n_out, attended, ops);
    walk(s, ops, n_ops, y->device, y->attn, n_out);
}

static uint64_t draw(sim *s)
{
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 7;
    s->rng ^= s->rng << 17;
    return s->rng;
}

/* A number from 0 to 1. */
static double draw_share(sim *s)
{
    return (double)(draw(s) >> 11) / 9007199254740992.0;
}

/* The experts of one token, different ones, in the plan's order: by their odds where these are
 * known, one after the other, each with its chance given those before. */
static void draw_experts(sim *s, const tn_shape_layer *y, int32_t *chosen)
{
    const tn_expert_use *use = y->use;
    const int32_t row = y->n_used + 1;
    int32_t left = y->n_used;
    for (int32_t e = 0; use && left > 0; e++) {
        const double in = use->odds[e] * use->rest[(int64_t)(e + 1) * row + left - 1];
        if (draw_share(s) * use->rest[(int64_t)e * row + left] < in || y->n_expert - e == left)
            chosen[--left] = e;
    }
    while (left > 0) {
        const int32_t e = (int32_t)((draw(s) >> 33) % (uint64_t)y->n_expert);
        bool again = false;
        for (int32_t u = left; u < y->n_used; u++)
            again |= chosen[u] == e;
        if (!again) chosen[--left] = e;
    }
}

/* What n tokens ask of the experts: of each side the share met, and the share of all choices. */
typedef struct demand {
    double read_device, read_host, used_device, used_host;
} demand;

static demand meet(sim *s, int32_t l, int32_t units, int64_t n)
{
    const tn_shape_layer *y = &s->k->s->layer[l];
    int64_t ours = 0, met_ours = 0, met_all = 0;
    memset(s->met, 0, (size_t)y->n_expert * sizeof *s->met);
    for (int64_t t = 0; t < n; t++) {
        draw_experts(s, y, s->chosen);
        for (int32_t u = 0; u < y->n_used; u++) {
            const int32_t e = s->chosen[u];
            met_all += !s->met[e];
            met_ours += e < units && !s->met[e];
            s->met[e] = true;
            ours += e < units;
        }
    }
    const double choices = (double)n * y->n_expert; /* share of all parameters, per vector */
    return (demand){(double)met_ours / y->n_expert, (double)(met_all - met_ours) / y->n_expert,
                    (double)ours / choices, (double)(n * y->n_used - ours) / choices};
}

static demand demand_of(sim *s, int32_t l, int32_t units, int64_t n)
{
    const tn_shape_layer *y = &s->k->s->layer[l];
    if (y->n_expert) return meet(s, l, units, n);
    const double f = (double)tn_shape_ffn_bytes(y, units) / (double)y->ffn_bytes;
    return (demand){f, 1 - f, f, 1 - f};
}

static double ffn(const sim *s, int32_t l, int side, int64_t n, double read, double used)
{
    return read > 0 ? parts(s, l, side, n, TN_PART_GATE, TN_PART_DOWN, read, used) : 0;
}

/* All of the host's units but the part that it computes itself, through the ring to the device. */
static void stream_units(sim *s, int32_t l, int64_t n, const demand *w, double part)
{
    const tn_plan_layer *p = &s->plan->layer[l];
    const tn_shape_layer *y = &s->k->s->layer[l];
    const double read = (1 - part) * w->read_host, used = (1 - part) * w->used_host;
    int n_units = (int)lround((1 - part) * (y->n_units - s->units[l]));
    if (n_units < 1) n_units = 1;
    const double own = ffn(s, l, p->device, n, w->read_device, w->used_device);
    const double work = ffn(s, l, p->device, n, w->read_device + read, w->used_device + used) - own;
    for (int i = 0; i < n_units; i++) {
        /* The device's own units are computed between the streamed ones, so that two slots do. */
        if (own > 0) s->last = add(s, stream_of(p->device), own / n_units, s->last, -1);
        stream(s, p->device, read * (double)y->ffn_bytes / n_units, work / n_units);
    }
}

/* The choice of experts is looked at by the host before a device computes with them. */
static void choose(sim *s, int32_t l, int d)
{
    if (!s->k->s->layer[l].n_expert) return;
    hop(s, d, 1);
    hop(s, d, 1);
}

/* A batch through an FFN with units on both sides, the way the engine would choose. */
static void prefill(sim *s, int32_t l, int64_t n)
{
    const tn_plan_layer *p = &s->plan->layer[l];
    const int d = p->device;
    const demand w = demand_of(s, l, s->units[l], n);
    const double host = ffn(s, l, TN_HOST, n, w.read_host, w.used_host);
    const double device = ffn(s, l, d, n, w.read_device, w.used_device);
    const tn_prefill choice = tn_cost_prefill(s->k, l, d, p->attn, s->units[l], n);
    if (choice.way == TN_PREFILL_SHARE) {
        hop(s, d, n);
        const int32_t h = add(s, host_server, choice.host_part * host, s->last, -1);
        stream_units(s, l, n, &w, choice.host_part);
        s->last = add(s, stream_of(d), tn_cost_hop(s->k, d, n), h, s->last);
    } else if (choice.way == TN_PREFILL_STREAM) {
        choose(s, l, d);
        if (!p->attn) hop(s, d, n);
        stream_units(s, l, n, &w, 0);
        if (!p->attn) hop(s, d, n);
    } else if (p->attn || device > 0) {
        both(s, d, host, device, n);
    } else {
        s->last = add(s, host_server, host, s->last, -1);
    }
    s->last = add(s, host_server, 2 * rates(s, TN_HOST)->op_s, s->last, -1);
}

static void feed_forward(sim *s, int32_t l, int64_t n)
{
    const tn_plan_layer *p = &s->plan->layer[l];
    const int d = p->device, n_units = s->k->s->layer[l].n_units;
    int32_t fixed, n_modes;
    if (d != TN_HOST && tn_cost_ffn_kind(s->k, l, &fixed, &n_modes) == TN_FFN_MIXED) {
        tn_walk_op ops[TN_WALK_OPS];
        const int n_ops = tn_cost_walk_ffn(s->k, l, d, p->attn, p->ffn_mode, n, ops);
        walk(s, ops, n_ops, d, p->attn, n);
        return;
    }
    const bool one_side = d == TN_HOST || s->units[l] >= n_units || (n == 1 && s->units[l] == 0);
    if (!one_side && n > 1) {
        prefill(s, l, n);
        return;
    }
    const demand w = demand_of(s, l, s->units[l], n);
    const double host = ffn(s, l, TN_HOST, n, w.read_host, w.used_host);
    const double device = d == TN_HOST ? 0 : ffn(s, l, d, n, w.read_device, w.used_device);
    if (!one_side) {
        both(s, d, host > 0 ? host + 2 * rates(s, TN_HOST)->op_s : 0,
             device > 0 ? device + 2 * rates(s, d)->op_s : 0, n);
        return;
    }
    const int side = d != TN_HOST && s->units[l] >= n_units ? d : TN_HOST;
    const int home = s->at;
    move(s, side, n);
    if (n > 1 && side != TN_HOST) choose(s, l, d);
    op(s, side, (host + device) / 2);
    op(s, side, (host + device) / 2);
    move(s, home, n);
}

static void head(sim *s)
{
    const tn_plan *p = s->plan;
    const tn_shape_tensor *t = &s->k->s->tensor[s->k->s->head];
    const int d = tn_plan_head_device(p);
    const double f = (double)tn_shape_head_bytes(s->k->s, p->head_units) / (double)t->bytes;
    const double host = f < 1 ? product(s, t, TN_HOST, 1, 1 - f, 1) + rates(s, TN_HOST)->op_s : 0;
    if (d == TN_HOST || p->head_units == 0) {
        move(s, TN_HOST, 1);
        s->last = add(s, host_server, host, s->last, -1);
        return;
    }
    const double device = product(s, t, d, 1, f, 1) + rates(s, d)->op_s;
    if (p->head_units < s->k->s->head_units) {
        both(s, d, host, device, 1);
        return;
    }
    move(s, d, 1);
    s->last = add(s, stream_of(d), device, s->last, -1);
    move(s, TN_HOST, 1); /* the logits */
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* n tokens after `start` ones; the head for the last of them where asked for. */
static double evaluate(sim *s, int64_t start, int64_t n, bool with_head)
{
    s->at = TN_HOST;
    s->last = -1;
    for (int32_t l = 0; l < s->plan->n_layers; l++) {
        const tn_plan_layer *y = &s->plan->layer[l];
        move(s, y->attn ? y->device : TN_HOST, n);
        const int64_t n_out = tn_cost_outputs(s->k, l, n, with_head);
        if (y->device != TN_HOST && !tn_cost_attn_plain(s->k, l, y->attn))
            walk_attention(s, l, start, n, n_out);
        else
            attention(s, l, start, n, n_out);
        if (l < s->plan->n_layers - 1)
            feed_forward(s, l, n);
        else if (with_head)
            feed_forward(s, l, 1);
    }
    if (with_head) head(s);
    return run(s);
}

static tn_status begin(sim *s, const tn_plan *plan, const tn_cost *k, const int32_t *units,
                       uint64_t seed, const tn_allocator *a, tn_error *err)
{
    int32_t most = 1;
    for (int32_t l = 0; l < k->s->n_layers; l++)
        if (k->s->layer[l].n_expert > most) most = k->s->layer[l].n_expert;
    *s = (sim){.plan = plan, .k = k, .units = units, .rng = seed * 2 + 1, .a = a};
    memset(s->slot, 0xff, sizeof s->slot);
    s->met = tn_alloc(a, (size_t)most, sizeof *s->met);
    s->chosen = tn_alloc(a, (size_t)most, sizeof *s->chosen);
    if (s->met && s->chosen) return TN_OK;
    tn_free(a, s->met);
    tn_free(a, s->chosen);
    return tn_fail_nomem(err, (size_t)most * sizeof *s->chosen, "the simulation");
}

static tn_status end(sim *s, tn_simulated *out, tn_error *err)
{
    for (int v = 0; v < n_servers; v++)
        tn_free(s->a, s->queue[v]);
    tn_free(s->a, s->jobs);
    tn_free(s->a, s->met);
    tn_free(s->a, s->chosen);
    *out = s->out;
    return s->no_memory ? tn_fail_nomem(err, sizeof(job), "the simulation") : TN_OK;
}

tn_status tn_simulate_request(tn_simulated *out, const tn_plan *plan, const tn_cost *k,
                              uint64_t seed, const tn_allocator *a, tn_error *err)
{
    sim s;
    const tn_request *r = &k->c.request;
    int32_t *units = tn_alloc(a, (size_t)plan->n_layers, sizeof *units);
    if (!units) return tn_fail_nomem(err, (size_t)plan->n_layers * sizeof *units, "the simulation");
    for (int32_t l = 0; l < plan->n_layers; l++)
        units[l] = plan->layer[l].ffn_mode;
    tn_status status = begin(&s, plan, k, units, seed, a, err);
    for (int64_t at = 0; !status && at < r->n_prompt; at += k->c.n_batch) {
        const int64_t n = r->n_prompt - at < k->c.n_batch ? r->n_prompt - at : k->c.n_batch;
        s.out.prefill_s += evaluate(&s, r->depth + at, n, at + n == r->n_prompt);
    }
    for (int64_t i = 0; !status && i < r->n_gen && !s.no_memory; i++)
        s.out.decode_s += evaluate(&s, r->depth + r->n_prompt + i, 1, true);
    if (!status) status = end(&s, out, err);
    tn_free(a, units);
    return status;
}

tn_status tn_simulate_decode(tn_simulated *out, const tn_plan *plan, const tn_cost *k, int64_t live,
                             int64_t n, uint64_t seed, const tn_allocator *a, tn_error *err)
{
    sim s;
    int32_t *units = tn_alloc(a, (size_t)plan->n_layers, sizeof *units);
    if (!units) return tn_fail_nomem(err, (size_t)plan->n_layers * sizeof *units, "the simulation");
    tn_status status = tn_plan_units_grown(plan, k, live + 1, units, a, err);
    if (!status) status = begin(&s, plan, k, units, seed, a, err);
    if (!status) {
        for (int64_t i = 0; i < n && !s.no_memory; i++)
            s.out.decode_s += evaluate(&s, live, 1, true);
        status = end(&s, out, err);
    }
    tn_free(a, units);
    return status;
}
