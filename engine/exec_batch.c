/* A batch where the device computes more than lies there, or experts: what the host has is carried
 * to it, and the tokens of each expert are multiplied with it at once. */
#include "exec_internal.h"
#include "stream.h"

#include <string.h>

/* ---- who computes what ----------------------------------------------------------------------- */

/* Units of a layer on the device. */
static int32_t units_there(const tn_exec *x, int32_t layer)
{
    const tn_hparams *hp = &x->m->hp;
    const tn_dweight *gate = &x->m->on_device.layers[layer].ffn_gate;
    const int64_t step =
        hp->n_expert ? hp->n_ff : tn_streamer_neurons(x->dev->segment->streamer, layer);
    return tn_on_device(gate) && step ? (int32_t)(gate->rows / step) : 0;
}

/* The neuron from which on the host computes its part of a dense layer, in whole pieces; n_ff where
 * that is none. One piece at least is carried. */
static int64_t cut_at(const tn_exec *x, int32_t layer)
{
    const int64_t step = tn_streamer_neurons(x->dev->segment->streamer, layer);
    const int64_t first = x->m->on_device.layers[layer].ffn_gate.rows, n_ff = x->m->hp.n_ff;
    const int64_t n = (n_ff - first) / step;
    int64_t here = (int64_t)(x->host_part * (double)n + 0.5);
    if (here >= n) here = n - 1;
    return here > 0 ? first + (n - here) * step : n_ff;
}

tn_way tn_exec_way(tn_exec *x, int32_t layer)
{
    const tn_side side = x->sides[layer].ffn;
    const bool experts = x->m->hp.n_expert > 0;
    const tn_streamer *t = x->dev ? x->dev->segment->streamer : NULL;
    tn_prefill choice = {TN_PREFILL_IN_PLACE, 1, 0};
    if (x->mode != TN_EXEC_DIRECT || !x->dev || side == TN_MIXED || x->n <= TN_MATVEC_MAX)
        return TN_WAY_IN_PLACE;
    if (side != TN_ON_DEVICE && tn_streamer_neurons(t, layer))
        choice = tn_streamer_choose(t, layer, units_there(x, layer), x->n);
    x->host_part = choice.host_part;
    if (choice.way == TN_PREFILL_IN_PLACE) {
        if (!experts || side == TN_ON_HOST) return TN_WAY_IN_PLACE;
        return side == TN_ON_DEVICE ? TN_WAY_DEVICE : TN_WAY_BOTH;
    }
    if (experts) return choice.way == TN_PREFILL_STREAM ? TN_WAY_DEVICE : TN_WAY_BOTH;
    x->cut = cut_at(x, layer);
    return x->cut < x->m->hp.n_ff ? TN_WAY_BOTH : TN_WAY_DEVICE;
}

/* ---- dense ----------------------------------------------------------------------------------- */

/* Bytes of a neuron as the host has them. */
static uint64_t neuron_bytes(const tn_layer *y)
{
    return y->ffn_gate.row_bytes + y->ffn_up.row_bytes +
           (uint64_t)y->ffn_down.rows * y->ffn_down.row_bytes / (uint64_t)y->ffn_down.cols;
}

static void dense(tn_exec *x, int32_t layer)
{
    tn_dev *d = x->dev;
    const tn_layer_device *y = &x->m->on_device.layers[layer];
    const int64_t there = y->ffn_gate.rows, end = x->cut;
    tn_streamer *t = d->segment->streamer;
    const int64_t step = tn_streamer_neurons(t, layer);
    tn_streamed p;
    tn_dev_ffn_norm(d, layer);
    x->on_device.weight_bytes += (uint64_t)there * neuron_bytes(&x->m->layers[layer]);
    if (there) tn_dev_ffn_part(d, layer, &y->ffn_gate, &y->ffn_up, &y->ffn_down, 0, false);
    for (int64_t i = there; i < end && !d->status; i += step) {
        d->status = tn_streamer_bring(t, d, layer, i, end - i < step ? end - i : step, &p);
        if (d->status) return;
        tn_dev_ffn_part(d, layer, &p.gate, &p.up, &p.down, i, i > 0);
        if (!d->status) d->status = tn_streamer_done(t, d);
        x->streamed_bytes += p.bytes;
        x->on_device.weight_bytes += p.bytes;
    }
}

/* ---- experts --------------------------------------------------------------------------------- */

/* Leaves to the host the n experts of the fewest tokens, of those that are met and not among the
 * device's `there`; the later of equals. */
static void leave(tn_host *h, const tn_layer *y, int32_t there, int32_t n)
{
    for (; n > 0; n--) {
        int32_t least = -1;
        for (int32_t e = 0; e < h->m->hp.n_expert; e++) {
            const int32_t tokens = h->slots[e + 1] - h->slots[e];
            if (h->there[e] && tokens && tn_expert_rank(y, e) >= there &&
                (least < 0 || tokens <= h->slots[least + 1] - h->slots[least]))
                least = e;
        }
        if (least < 0) return;
        h->there[least] = false;
    }
}

/* Sorts the batch by expert; the device computes those it has and, of the others that are met, all
 * but the host's part. */
static void choose_experts(tn_exec *x, int32_t layer)
{
    tn_host *h = &x->host;
    const tn_layer *y = &x->m->layers[layer];
    const int32_t n = x->m->hp.n_expert, there = units_there(x, layer);
    int32_t met = 0;
    tn_host_sort_experts(h);
    for (int32_t e = 0; e < n; e++)
        met += h->slots[e + 1] > h->slots[e] && tn_expert_rank(y, e) >= there;
    for (int32_t e = 0; e < n; e++)
        h->there[e] = true;
    leave(h, y, there, (int32_t)(x->host_part * (double)met + 0.5));
    x->n_rows = tn_host_take_rows(h);
}

/* Of the expert at a rank of the device's order, which is there. */
static tn_streamed resident(const tn_exec *x, int32_t layer, int32_t rank)
{
    const tn_layer_device *y = &x->m->on_device.layers[layer];
    const int64_t n_ff = x->m->hp.n_ff, n_embd = x->m->hp.n_embd;
    return (tn_streamed){.gate = tn_dweight_rows(&y->ffn_gate, rank * n_ff, n_ff),
                         .up = tn_dweight_rows(&y->ffn_up, rank * n_ff, n_ff),
                         .down = tn_dweight_rows(&y->ffn_down, rank * n_embd, n_embd)};
}

static uint64_t expert_bytes(const tn_layer *y, const tn_hparams *hp)
{
    return (uint64_t)hp->n_ff * (y->ffn_gate.row_bytes + y->ffn_up.row_bytes) +
           (uint64_t)hp->n_embd * y->ffn_down.row_bytes;
}

static void experts(tn_exec *x, int32_t layer)
{
    tn_dev *d = x->dev;
    const tn_host *h = &x->host;
    tn_streamer *t = d->segment->streamer;
    const int32_t there = units_there(x, layer);
    int64_t row = 0;
    tn_exec_need(x, TN_ACT_CHOSEN, TN_ON_HOST);
    tn_exec_need(x, TN_ACT_WEIGHT, TN_ON_DEVICE);
    tn_exec_host(x, choose_experts, layer);
    if (x->status) return;
    tn_dev_ffn_norm(d, layer);
    tn_dev_take_rows(d, h->rows_there, x->n_rows);
    for (int32_t e = 0; e < x->m->hp.n_expert && !d->status; e++) {
        const int64_t n = h->there[e] ? h->slots[e + 1] - h->slots[e] : 0;
        const int32_t rank = tn_expert_rank(&x->m->layers[layer], e);
        tn_streamed p;
        if (!n) continue;
        if (rank < there)
            p = resident(x, layer, rank);
        else
            d->status = tn_streamer_bring(t, d, layer, e, x->m->hp.n_ff, &p);
        tn_dev_expert(d, &p.gate, &p.up, &p.down, row, n);
        if (rank >= there && !d->status) d->status = tn_streamer_done(t, d);
        if (rank >= there) x->streamed_bytes += p.bytes;
        x->on_device.weight_bytes += expert_bytes(&x->m->layers[layer], &x->m->hp);
        row += n;
    }
    tn_dev_sum_rows(d);
}

void tn_exec_batch_there(tn_exec *x, int32_t layer)
{
    tn_dev *d = x->dev;
    tn_exec_need(x, TN_ACT_H, TN_ON_DEVICE);
    if (x->m->hp.n_expert)
        experts(x, layer);
    else
        dense(x, layer);
    if (x->way == TN_WAY_DEVICE) tn_dev_ffn_end(d, layer);
    tn_exec_look(x);
    if (x->status || x->way != TN_WAY_DEVICE) return;
    tn_exec_wrote(x, TN_ACT_H, TN_ON_DEVICE);
}

/* ---- projections of attention on the host ---------------------------------------------------- */

bool tn_exec_projects_there(const tn_exec *x, int32_t layer)
{
    const tn_sides *s = &x->sides[layer];
    return x->mode == TN_EXEC_DIRECT && x->dev && x->n > TN_MATVEC_MAX && s->attn == TN_ON_HOST &&
           s->out == TN_ON_HOST &&
           tn_streamer_projects(x->dev->segment->streamer, layer, x->n);
}

/* y[n][w->rows] = w in, piece by piece. */
static void project(tn_exec *x, const tn_weight *w, float *y)
{
    tn_dev *d = x->dev;
    tn_streamer *t = d->segment->streamer;
    const int64_t step = tn_streamer_rows(t, w);
    tn_dweight part;
    for (int64_t r = 0; r < w->rows && !d->status; r += step) {
        d->status =
            tn_streamer_bring_rows(t, d, w, r, w->rows - r < step ? w->rows - r : step, &part);
        if (d->status) return;
        tn_dev_project_rows(d, &part, y + r, w->rows);
        if (!d->status) d->status = tn_streamer_done(t, d);
    }
    x->streamed_bytes += (uint64_t)w->rows * w->row_bytes;
    x->on_device.weight_bytes += (uint64_t)w->rows * w->row_bytes;
}

void tn_exec_project_there(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    tn_dev *d = x->dev;
    tn_exec_need(x, TN_ACT_H, TN_ON_DEVICE);
    tn_dev_attn_norm(d, layer);
    project(x, &y->attn_q, d->q);
    project(x, &y->attn_k, d->k);
    project(x, &y->attn_v, d->v);
    for (tn_act a = TN_ACT_Q; a <= TN_ACT_V; a++) {
        tn_exec_wrote(x, a, TN_ON_DEVICE);
        tn_exec_need(x, a, TN_ON_HOST);
    }
}

void tn_exec_attn_out_there(tn_exec *x, int32_t layer)
{
    tn_exec_need(x, TN_ACT_ATTENDED, TN_ON_DEVICE);
    tn_exec_need(x, TN_ACT_H, TN_ON_DEVICE);
    project(x, &x->m->layers[layer].attn_output, x->dev->out);
    tn_dev_attn_end(x->dev, layer);
    tn_exec_look(x);
    tn_exec_wrote(x, TN_ACT_H, TN_ON_DEVICE);
}
