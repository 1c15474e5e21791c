/* Runs each operation on the side that holds its weights, keeps the sticky status, and counts. */
#include "exec.h"
#include "boundary.h"
#include "exec_internal.h"

#include <math.h>
#include <string.h>

/* ---- making ---------------------------------------------------------------------------------- */

static void find_sides(tn_exec *x)
{
    const tn_model *m = x->m;
    for (int32_t i = 0; i < m->hp.n_layers; i++)
        x->sides[i] = tn_sides_of(&m->layers[i], &m->on_device.layers[i]);
    if (m->boundary) x->version = tn_boundary_version(m->boundary);
}

static tn_status fill(tn_exec *x, int32_t n_batch, tn_error *err)
{
    const tn_model *m = x->m;
    x->sides = tn_alloc(m->a, (size_t)m->hp.n_layers, sizeof *x->sides);
    if (!x->sides) return tn_fail_nomem(err, sizeof *x->sides, "the executor");
    find_sides(x);
    const size_t n_experts = (size_t)m->hp.n_layers * (size_t)m->hp.n_expert;
    if (n_experts && !(x->experts = tn_alloc(m->a, n_experts, sizeof *x->experts)))
        return tn_fail_nomem(err, n_experts * sizeof *x->experts, "counters of experts");
    tn_status s = tn_host_init(&x->host, m, x->kv, n_batch, err);
    for (int32_t i = 0; i < m->on_device.n_segments && !s; i++) {
        x->n_devs++;
        s = tn_dev_init(&x->devs[i], m, i, x->kv, n_batch, err);
    }
    if (s || !x->n_devs) return s;
    x->dev = x->devs;
    return tn_exec_join_init(x, err);
}

tn_status tn_exec_new(tn_exec **out, const tn_model *m, const tn_kv *kv, int32_t n_batch,
                      tn_error *err)
{
    *out = NULL;
    tn_exec *x = tn_alloc(m->a, 1, sizeof *x);
    if (!x) return tn_fail_nomem(err, sizeof *x, "the executor");
    x->m = m;
    x->kv = kv;
    tn_status s = fill(x, n_batch, err);
    if (s)
        tn_exec_free(x);
    else
        *out = x;
    return s;
}

void tn_exec_free(tn_exec *x)
{
    if (!x) return;
    if (x->n_devs) tn_exec_join_free(x);
    for (int32_t i = 0; i < x->n_devs; i++)
        tn_dev_free(&x->devs[i]);
    tn_host_free(&x->host);
    tn_free(x->m->a, x->experts);
    tn_free(x->m->a, x->sides);
    tn_free(x->m->a, x);
}

void tn_exec_settle(tn_exec *x)
{
    if (x->n_devs) tn_exec_abandon(x);
    for (int32_t i = 0; i < x->n_devs; i++)
        x->devs[i].api->stream_sync(x->devs[i].device, x->devs[i].stream, NULL);
}

/* ---- counting -------------------------------------------------------------------------------- */

static void count(tn_exec *x, const tn_weight *w)
{
    x->on_host.weight_bytes += (uint64_t)w->rows * w->row_bytes;
}

static tn_side_stats *device_side(tn_exec *x)
{
    return x->mode == TN_EXEC_RECORD ? &x->rec.on_device : &x->on_device;
}

/* The device's part of a weight, in the bytes of the file; of experts what n choices read at most.
 */
static void count_there(tn_exec *x, const tn_weight *w, const tn_dweight *d, int64_t rows_each)
{
    int64_t rows = d->rows;
    if (rows_each && x->n * x->host.used * rows_each < rows) rows = x->n * x->host.used * rows_each;
    device_side(x)->weight_bytes += (uint64_t)(rows * d->cols) * w->row_bytes / (uint64_t)w->cols;
}

static void count_kv(tn_exec *x, int32_t layer)
{
    const tn_hparams *hp = &x->m->hp;
    const bool local = x->m->layers[layer].local;
    int64_t keys = x->pos0 + x->n;
    if (local && keys > hp->n_swa + x->n - 1) keys = hp->n_swa + x->n - 1;
    tn_side_stats *s = x->sides[layer].kv == TN_ON_HOST ? &x->on_host : &x->on_device;
    s->kv_bytes += (uint64_t)keys * tn_kv_layer_position_bytes(hp, x->kv->type);
}

/* ---- the host's work ------------------------------------------------------------------------- */

static void host_begin(tn_exec *x, int32_t arg)
{
    (void)arg;
    tn_host_begin(&x->host, x->batch.tokens, x->batch.n, x->batch.pos0);
}

static void host_keep_last(tn_exec *x, int32_t n)
{
    tn_host_keep_last(&x->host, n);
}

static void host_embed(tn_exec *x, int32_t arg)
{
    (void)arg;
    tn_host_embed(&x->host);
    x->on_host.weight_bytes += (uint64_t)x->n * x->m->token_embd.row_bytes;
}

static void host_qkv(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    tn_host_qkv(&x->host, layer);
    count(x, &y->attn_q);
    count(x, &y->attn_k);
    count(x, &y->attn_v);
}

static void host_attend(tn_exec *x, int32_t layer)
{
    tn_host_attend(&x->host, layer);
}

static void host_attn_out(tn_exec *x, int32_t layer)
{
    tn_host_attn_out(&x->host, layer);
    count(x, &x->m->layers[layer].attn_output);
}

static void host_ffn_in(tn_exec *x, int32_t layer)
{
    const bool split = x->sides[layer].ffn == TN_ON_BOTH;
    const int64_t there = split ? x->m->on_device.layers[layer].ffn_gate.rows : 0;
    tn_host_ffn_in(&x->host, layer, x->way == TN_WAY_BOTH ? x->cut : there);
    count(x, &x->host.groups[0].gate);
    count(x, &x->host.groups[0].up);
}

static void host_ffn_out(tn_exec *x, int32_t layer)
{
    tn_host_ffn_out(&x->host, layer);
    count(x, &x->m->layers[layer].ffn_down);
}

static void host_route(tn_exec *x, int32_t layer)
{
    tn_host_route(&x->host, layer);
    tn_exec_count_here(x, layer);
    count(x, &x->m->layers[layer].ffn_gate_inp);
}

static void host_group_experts(tn_exec *x, int32_t layer)
{
    tn_host *h = &x->host;
    const bool split = x->sides[layer].ffn == TN_ON_BOTH;
    const int64_t there =
        split ? x->m->on_device.layers[layer].ffn_gate.rows / x->m->hp.n_ff : 0;
    if (x->way == TN_WAY_IN_PLACE) {
        tn_host_sort_experts(h);
        for (int32_t e = 0; e < x->m->hp.n_expert; e++)
            h->there[e] = tn_expert_rank(&x->m->layers[layer], e) < there;
    }
    tn_host_group_experts(h, layer);
}

static void host_experts_in(tn_exec *x, int32_t layer)
{
    tn_host_experts_in(&x->host, layer);
    for (int32_t i = 0; i < x->host.n_groups; i++) {
        count(x, &x->host.groups[i].gate);
        count(x, &x->host.groups[i].up);
    }
}

static void host_experts_out(tn_exec *x, int32_t layer)
{
    tn_host_experts_out(&x->host, layer);
    for (int32_t i = 0; i < x->host.n_groups; i++)
        count(x, &x->host.groups[i].down);
}

static void host_head(tn_exec *x, int32_t skip)
{
    tn_host_head(&x->host, x->head_first, x->head_rows, skip, x->logits);
    x->on_host.weight_bytes += (uint64_t)(x->m->output.rows - skip) * x->m->output.row_bytes;
}

/* ---- parts of it, where a layer is on both sides --------------------------------------------- */

static void host_attn_norm(tn_exec *x, int32_t layer)
{
    tn_host_attn_norm(&x->host, layer);
}

/* The device has no other moment to add the bias; the host does it in finish_qkv. */
static void project(tn_exec *x, int32_t layer, const tn_weight *w, const float *bias, float *y)
{
    tn_host_project(&x->host, w, x->sides[layer].kv == TN_ON_DEVICE ? bias : NULL, y);
    count(x, w);
}

static void host_project_q(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    project(x, layer, &y->attn_q, y->attn_q_bias, x->host.q);
}

static void host_project_k(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    project(x, layer, &y->attn_k, y->attn_k_bias, x->host.k);
}

static void host_project_v(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    project(x, layer, &y->attn_v, y->attn_v_bias, x->host.v);
}

static void host_finish_qkv(tn_exec *x, int32_t layer)
{
    tn_host_finish_qkv(&x->host, layer);
}

static void host_ffn_norm(tn_exec *x, int32_t layer)
{
    tn_host_ffn_norm(&x->host, layer);
}

static void host_gate(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    tn_host_half(&x->host, layer, &y->ffn_gate, y->ffn_gate_bias, x->host.gate);
    count(x, &y->ffn_gate);
}

static void host_up(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    tn_host_half(&x->host, layer, &y->ffn_up, y->ffn_up_bias, x->host.up);
    count(x, &y->ffn_up);
}

static void host_glu(tn_exec *x, int32_t layer)
{
    (void)layer;
    tn_host_glu(&x->host);
}

static void host_take_gate(tn_exec *x, int32_t layer)
{
    tn_host_take_gate(&x->host, layer);
}

static void host_share(tn_exec *x, int32_t layer)
{
    tn_host_share(&x->host, layer);
    for (int32_t i = 0; i < x->host.n_groups; i++)
        count(x, &x->host.groups[i].down);
}

static void host_join(tn_exec *x, int32_t layer)
{
    tn_host_join(&x->host, layer);
}

/* ---- begin, embed ---------------------------------------------------------------------------- */

/* Nothing to do: after a failure, when no row is left, or when all of it is in the recording. */
static bool idle(tn_exec *x)
{
    tn_exec_look(x);
    return x->status || !x->n || x->mode == TN_EXEC_REPLAY;
}

/* Weights have moved since the last batch. */
static void look_again(tn_exec *x)
{
    tn_exec_abandon(x);
    tn_exec_forget(x);
    find_sides(x);
    for (int32_t i = 0; i < x->n_devs && !x->status; i++)
        x->status = tn_dev_find_experts(&x->devs[i], x->batch.err);
    if (x->status) x->version = UINT64_MAX;
}

void tn_exec_begin(tn_exec *x, const tn_batch *b)
{
    x->batch = *b;
    x->n = b->n;
    x->pos0 = b->pos0;
    x->status = TN_OK;
    x->way = TN_WAY_IN_PLACE;
    x->mode = x->mode == TN_EXEC_RECORD ? TN_EXEC_RECORD : TN_EXEC_DIRECT;
    memset(x->valid, 0, sizeof x->valid);
    for (int32_t i = 0; i < x->n_devs; i++) {
        x->devs[i].err = b->err;
        x->devs[i].status = TN_OK;
    }
    if (x->dev) {
        if (x->busy && tn_exec_sync(x)) return;
        if (x->m->boundary && x->version != tn_boundary_version(x->m->boundary)) look_again(x);
        for (int32_t i = 0; i < x->n_devs; i++)
            tn_dev_set(&x->devs[i], b->tokens, b->n, b->pos0);
        tn_exec_choose_mode(x);
        if (x->mode != TN_EXEC_REPLAY && !x->status) tn_dev_begin(x->dev);
        x->busy = x->mode == TN_EXEC_DIRECT;
    }
    if (!x->status) host_begin(x, 0);
}

void tn_exec_keep_last(tn_exec *x, int64_t n)
{
    if (idle(x) || n == x->n) return;
    /* The host moves rows that may be on their way to the device. */
    if (x->dev && tn_exec_sync(x)) return;
    tn_exec_host(x, host_keep_last, (int32_t)n);
    for (int32_t i = 0; i < x->n_devs; i++)
        tn_dev_keep_last(&x->devs[i], n);
    x->pos0 += x->n - n;
    x->n = n;
}

/* What follows is a segment's; its device goes on with the residual stream, unless that is next
 * needed on the host. */
static void enter(tn_exec *x, int32_t segment, tn_side side)
{
    if (!x->dev || x->dev == &x->devs[segment]) return;
    if (side == TN_ON_HOST) tn_exec_need(x, TN_ACT_H, side);
    tn_exec_hand_over(x, &x->devs[segment]);
}

void tn_exec_embed(tn_exec *x)
{
    if (idle(x)) return;
    const tn_side side = x->m->token_embd.data ? TN_ON_HOST : TN_ON_DEVICE;
    if (side == TN_ON_HOST)
        tn_exec_host(x, host_embed, 0);
    else {
        enter(x, x->m->tied ? x->n_devs - 1 : 0, TN_ON_DEVICE);
        tn_dev_embed(x->dev);
        device_side(x)->weight_bytes += (uint64_t)x->n * x->m->token_embd.row_bytes;
    }
    tn_exec_wrote(x, TN_ACT_H, side);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Projections of one side after the other, gathered where the cache is. */
static void mixed_qkv(tn_exec *x, int32_t layer)
{
    static const tn_host_op here[3] = {host_project_q, host_project_k, host_project_v};
    const tn_sides *s = &x->sides[layer];
    const tn_layer *y = &x->m->layers[layer];
    const tn_layer_device *w = &x->m->on_device.layers[layer];
    tn_dev *d = x->dev;
    const tn_side side[3] = {s->q, s->k, s->v};
    const tn_weight *const weight[3] = {&y->attn_q, &y->attn_k, &y->attn_v};
    const tn_dweight *const there[3] = {&w->attn_q, &w->attn_k, &w->attn_v};
    const float *const bias[3] = {w->attn_q_bias, w->attn_k_bias, w->attn_v_bias};
    float *const to[3] = {d->q, d->k, d->v};
    for (int i = 0; i < 3; i++)
        tn_exec_need(x, TN_ACT_H, side[i]);
    tn_dev_attn_norm(d, layer);
    for (int i = 0; i < 3; i++) {
        if (side[i] == TN_ON_HOST) continue;
        tn_dev_project(d, there[i], s->kv == TN_ON_DEVICE ? bias[i] : NULL, to[i]);
        count_there(x, weight[i], there[i], 0);
    }
    tn_exec_host(x, host_attn_norm, layer);
    for (int i = 0; i < 3; i++) {
        if (side[i] == TN_ON_HOST) tn_exec_host(x, here[i], layer);
        tn_exec_wrote(x, TN_ACT_Q + i, side[i]);
        tn_exec_need(x, TN_ACT_Q + i, s->kv);
    }
    if (s->kv == TN_ON_DEVICE)
        tn_dev_finish_qkv(d, layer);
    else
        tn_exec_host(x, host_finish_qkv, layer);
}

void tn_exec_qkv(tn_exec *x, int32_t layer)
{
    if (idle(x)) return;
    const tn_sides *s = &x->sides[layer];
    const tn_layer *y = &x->m->layers[layer];
    const tn_layer_device *w = &x->m->on_device.layers[layer];
    enter(x, tn_segment_of(&x->m->on_device, layer), s->attn);
    if (s->attn == TN_MIXED) {
        mixed_qkv(x, layer);
    } else if (tn_exec_projects_there(x, layer)) {
        tn_exec_project_there(x, layer);
        tn_exec_host(x, host_finish_qkv, layer);
    } else if (s->attn == TN_ON_HOST) {
        tn_exec_need(x, TN_ACT_H, TN_ON_HOST);
        tn_exec_host(x, host_qkv, layer);
    } else {
        tn_exec_need(x, TN_ACT_H, TN_ON_DEVICE);
        tn_dev_qkv(x->dev, layer);
        count_there(x, &y->attn_q, &w->attn_q, 0);
        count_there(x, &y->attn_k, &w->attn_k, 0);
        count_there(x, &y->attn_v, &w->attn_v, 0);
    }
    tn_exec_wrote(x, TN_ACT_Q, s->kv);
}

void tn_exec_attend(tn_exec *x, int32_t layer)
{
    if (idle(x)) return;
    const tn_side side = x->sides[layer].kv;
    if (side == TN_ON_HOST)
        tn_exec_host(x, host_attend, layer);
    else
        tn_dev_attend(x->dev, layer);
    if (x->mode == TN_EXEC_DIRECT) count_kv(x, layer);
    tn_exec_wrote(x, TN_ACT_ATTENDED, side);
}

void tn_exec_attn_out(tn_exec *x, int32_t layer)
{
    if (idle(x)) return;
    const tn_side side = x->sides[layer].out;
    x->normed = 0;
    x->grouped = false;
    if (tn_exec_projects_there(x, layer)) {
        tn_exec_attn_out_there(x, layer);
        return;
    }
    tn_exec_need(x, TN_ACT_ATTENDED, side);
    tn_exec_need(x, TN_ACT_H, side);
    if (side == TN_ON_HOST) {
        tn_exec_host(x, host_attn_out, layer);
    } else {
        tn_dev_attn_out(x->dev, layer);
        count_there(x, &x->m->layers[layer].attn_output, &x->m->on_device.layers[layer].attn_output,
                    0);
    }
    tn_exec_wrote(x, TN_ACT_H, side);
}

/* ---- FFN, dense and with experts ------------------------------------------------------------- */

/* Rows of one expert, for counting; 0 where there are none. */
static int64_t rows_each(const tn_exec *x, int64_t rows)
{
    return x->m->hp.n_expert ? rows : 0;
}

static void count_in(tn_exec *x, int32_t layer)
{
    const tn_layer *y = &x->m->layers[layer];
    const tn_layer_device *w = &x->m->on_device.layers[layer];
    count_there(x, &y->ffn_gate, &w->ffn_gate, rows_each(x, x->m->hp.n_ff));
    count_there(x, &y->ffn_up, &w->ffn_up, rows_each(x, x->m->hp.n_ff));
}

static void count_down(tn_exec *x, int32_t layer)
{
    count_there(x, &x->m->layers[layer].ffn_down, &x->m->on_device.layers[layer].ffn_down,
                rows_each(x, x->m->hp.n_embd));
}

/* What a side must have before it computes a part of the FFN. */
static void need_input(tn_exec *x, tn_side side)
{
    tn_exec_need(x, TN_ACT_H, side);
    if (!x->m->hp.n_expert) return;
    tn_exec_need(x, side == TN_ON_HOST ? TN_ACT_CHOSEN : TN_ACT_EXPERT, side);
    tn_exec_need(x, TN_ACT_WEIGHT, side);
}

/* Norm, and grouping by expert, where a side has not done them for the router. */
static void prepare(tn_exec *x, int32_t layer, tn_side side)
{
    if (!(x->normed & 1u << side)) {
        if (side == TN_ON_HOST)
            tn_exec_host(x, host_ffn_norm, layer);
        else
            tn_dev_ffn_norm(x->dev, layer);
        x->normed |= 1u << side;
    }
    if (side == TN_ON_DEVICE || x->grouped || !x->m->hp.n_expert) return;
    tn_exec_host(x, host_group_experts, layer);
    x->grouped = true;
}

static void mixed_in(tn_exec *x, int32_t layer)
{
    const tn_sides *s = &x->sides[layer];
    const tn_layer *y = &x->m->layers[layer];
    const tn_layer_device *w = &x->m->on_device.layers[layer];
    tn_dev *d = x->dev;
    need_input(x, s->gate);
    need_input(x, s->up);
    if (s->gate == TN_ON_DEVICE || s->up == TN_ON_DEVICE) prepare(x, layer, TN_ON_DEVICE);
    if (s->gate == TN_ON_DEVICE) tn_dev_half(d, &w->ffn_gate, w->ffn_gate_bias, d->gate);
    if (s->up == TN_ON_DEVICE) tn_dev_half(d, &w->ffn_up, w->ffn_up_bias, d->up);
    if (s->gate == TN_ON_DEVICE)
        count_there(x, &y->ffn_gate, &w->ffn_gate, rows_each(x, x->m->hp.n_ff));
    if (s->up == TN_ON_DEVICE) count_there(x, &y->ffn_up, &w->ffn_up, rows_each(x, x->m->hp.n_ff));
    if (s->gate == TN_ON_HOST || s->up == TN_ON_HOST) prepare(x, layer, TN_ON_HOST);
    if (s->gate == TN_ON_HOST) tn_exec_host(x, host_gate, layer);
    if (s->up == TN_ON_HOST) tn_exec_host(x, host_up, layer);
    tn_exec_wrote(x, TN_ACT_GATE, s->gate);
    tn_exec_wrote(x, TN_ACT_UP, s->up);
    tn_exec_need(x, TN_ACT_GATE, s->down);
    tn_exec_need(x, TN_ACT_UP, s->down);
    if (s->down == TN_ON_HOST)
        tn_exec_host(x, host_glu, layer);
    else
        tn_dev_glu(d);
}

static void in_here(tn_exec *x, int32_t layer)
{
    if (!x->m->hp.n_expert) {
        tn_exec_host(x, host_ffn_in, layer);
        return;
    }
    prepare(x, layer, TN_ON_HOST);
    tn_exec_host(x, host_experts_in, layer);
}

static void in_there(tn_exec *x, int32_t layer)
{
    if (!x->m->hp.n_expert) {
        tn_dev_ffn_in(x->dev, layer);
    } else {
        prepare(x, layer, TN_ON_DEVICE);
        tn_dev_experts_in(x->dev, layer);
    }
    count_in(x, layer);
}

/* The device first: it goes on by itself. */
static void batch_in(tn_exec *x, int32_t layer)
{
    if (x->way == TN_WAY_BOTH) need_input(x, TN_ON_HOST);
    tn_exec_batch_there(x, layer);
    if (x->way == TN_WAY_BOTH) in_here(x, layer);
}

static void ffn_in(tn_exec *x, int32_t layer)
{
    if (idle(x)) return;
    const tn_side side = x->sides[layer].ffn;
    x->way = tn_exec_way(x, layer);
    if (x->way != TN_WAY_IN_PLACE) {
        batch_in(x, layer);
        return;
    }
    if (side == TN_MIXED) {
        mixed_in(x, layer);
        return;
    }
    if (side != TN_ON_DEVICE) need_input(x, TN_ON_HOST);
    if (side != TN_ON_HOST) need_input(x, TN_ON_DEVICE);
    /* The device first: it goes on by itself. */
    if (side != TN_ON_HOST) in_there(x, layer);
    if (side != TN_ON_DEVICE) in_here(x, layer);
}

/* h += the sum of both sides' shares, where the layer's attention is. */
static void join(tn_exec *x, int32_t layer)
{
    tn_dev *d = x->dev;
    const int64_t n = x->n * x->m->hp.n_embd;
    const tn_side side = x->sides[layer].kv;
    tn_exec_need(x, TN_ACT_H, side);
    if (side == TN_ON_DEVICE) {
        tn_exec_to_device(x, d->other, x->host.out, n);
        tn_dev_join(d, layer);
    } else {
        tn_exec_to_host(x, x->host.other, d->out, n);
        tn_exec_host(x, host_join, layer);
    }
    tn_exec_wrote(x, TN_ACT_H, side);
}

static void out_here(tn_exec *x, int32_t layer)
{
    if (x->sides[layer].ffn == TN_MIXED) {
        if (x->m->hp.n_expert) need_input(x, TN_ON_HOST);
        if (x->m->hp.n_expert) prepare(x, layer, TN_ON_HOST);
        tn_exec_host(x, host_take_gate, layer);
    }
    tn_exec_need(x, TN_ACT_H, TN_ON_HOST);
    tn_exec_host(x, x->m->hp.n_expert ? host_experts_out : host_ffn_out, layer);
    tn_exec_wrote(x, TN_ACT_H, TN_ON_HOST);
}

static void out_there(tn_exec *x, int32_t layer)
{
    need_input(x, TN_ON_DEVICE);
    if (x->m->hp.n_expert)
        tn_dev_experts_out(x->dev, layer);
    else
        tn_dev_ffn_out(x->dev, layer);
    count_down(x, layer);
    tn_exec_wrote(x, TN_ACT_H, TN_ON_DEVICE);
}

static void ffn_out(tn_exec *x, int32_t layer)
{
    if (idle(x) || x->way == TN_WAY_DEVICE) return;
    if (x->way == TN_WAY_BOTH) {
        tn_exec_host(x, host_share, layer);
        join(x, layer);
    } else if (x->sides[layer].ffn == TN_ON_BOTH) {
        tn_dev_share(x->dev, layer);
        count_down(x, layer);
        tn_exec_host(x, host_share, layer);
        join(x, layer);
    } else if (x->sides[layer].down == TN_ON_HOST) {
        out_here(x, layer);
    } else {
        out_there(x, layer);
    }
}

void tn_exec_ffn_in(tn_exec *x, int32_t layer)
{
    ffn_in(x, layer);
}

void tn_exec_ffn_out(tn_exec *x, int32_t layer)
{
    ffn_out(x, layer);
}

void tn_exec_route(tn_exec *x, int32_t layer)
{
    if (idle(x)) return;
    const tn_side side = x->sides[layer].router;
    tn_exec_need(x, TN_ACT_H, side);
    if (side == TN_ON_HOST) {
        tn_exec_host(x, host_route, layer);
    } else {
        tn_dev_route(x->dev, layer);
        count_there(x, &x->m->layers[layer].ffn_gate_inp,
                    &x->m->on_device.layers[layer].ffn_gate_inp, 0);
    }
    for (tn_act a = TN_ACT_CHOSEN; a <= TN_ACT_WEIGHT; a++)
        tn_exec_wrote(x, a, side);
    x->normed = 1u << side;
}

void tn_exec_experts_in(tn_exec *x, int32_t layer)
{
    ffn_in(x, layer);
}

void tn_exec_experts_out(tn_exec *x, int32_t layer)
{
    ffn_out(x, layer);
}

tn_status tn_exec_layer_done(tn_exec *x, int32_t layer)
{
    const tn_batch *b = &x->batch;
    tn_exec_look(x);
    if (x->experts && !x->status && x->mode != TN_EXEC_REPLAY) tn_exec_fetch_choices(x, layer);
    tn_exec_look(x);
    if (x->mode == TN_EXEC_RECORD && !x->status) tn_exec_record_poll(x);
    if (x->mode == TN_EXEC_DIRECT && !x->status && b->cancel && b->cancel(b->user))
        x->status = tn_fail(b->err, TN_ECANCELED, -1, "the evaluation was canceled");
    if (x->status) tn_exec_abandon(x);
    return x->status;
}

/* ---- head ------------------------------------------------------------------------------------ */

/* Whether the likeliest token is found where the logits are. */
static bool best_there(const tn_exec *x)
{
    return x->batch.best && tn_on_device(&x->m->on_device.output) && !x->m->output.data;
}

/* Puts the device's part of each row where it belongs. */
static void take_logits(tn_exec *x)
{
    if (best_there(x)) return;
    const int64_t rows = x->m->on_device.output.rows, n_vocab = x->m->hp.n_vocab;
    const tn_dev *last = &x->devs[x->n_devs - 1];
    for (int64_t t = 0; t < x->head_rows; t++)
        memcpy(x->logits + t * n_vocab, last->pinned_logits + t * rows,
               (size_t)rows * sizeof *x->logits);
}

/* Rows [head_first, head_first + head_rows) on the sides that have rows of the head. */
static void head(tn_exec *x)
{
    const tn_model *m = x->m;
    const tn_dweight *w = &m->on_device.output;
    if (m->output.data) tn_exec_need(x, TN_ACT_H, TN_ON_HOST);
    if (tn_on_device(w)) {
        tn_exec_need(x, TN_ACT_H, TN_ON_DEVICE);
        if (best_there(x))
            tn_dev_best(x->dev, x->head_first);
        else
            tn_dev_head(x->dev, x->head_first, x->head_rows);
        count_there(x, &m->output, w, 0);
    }
    if (m->output.data) tn_exec_host(x, host_head, (int32_t)w->rows);
}

static void count_token_kv(tn_exec *x)
{
    for (int32_t l = 0; l < x->m->hp.n_layers; l++)
        count_kv(x, l);
}

/* As many rows at a time as the device has room for. */
static void head_direct(tn_exec *x, int64_t first, int64_t n_rows, float *logits)
{
    const bool there = tn_on_device(&x->m->on_device.output);
    const int64_t step = there ? x->dev->logit_rows : n_rows;
    for (int64_t i = 0; i < n_rows && !idle(x); i += step) {
        x->head_first = first + i;
        x->head_rows = n_rows - i < step ? n_rows - i : step;
        x->logits = logits + i * x->m->hp.n_vocab;
        head(x);
        if (x->dev && !tn_exec_sync(x) && there) take_logits(x);
    }
}

tn_status tn_exec_head(tn_exec *x, int64_t first, int64_t n_rows, float *logits)
{
    if (x->status || !x->n) return x->status;
    if (x->mode == TN_EXEC_DIRECT) {
        head_direct(x, first, n_rows, logits);
        return x->status;
    }
    x->head_first = first;
    x->head_rows = n_rows;
    x->logits = logits;
    if (x->mode == TN_EXEC_RECORD) {
        head(x);
        tn_exec_recorded(x);
    }
    tn_exec_replay(x);
    if (x->status) return x->status;
    if (tn_on_device(&x->m->on_device.output)) take_logits(x);
    count_token_kv(x);
    return TN_OK;
}

/* The largest of n numbers; NaN is none. */
static float find_best(const float *v, int32_t n, int32_t *at)
{
    float best = -INFINITY;
    for (int32_t i = 0; i < n; i++)
        if (v[i] > best) best = v[*at = i];
    return best;
}

tn_status tn_exec_best(tn_exec *x, float *logits, int32_t *best)
{
    const tn_status s = tn_exec_head(x, 0, 1, logits);
    float value;
    if (s) return s;
    if (best_there(x)) {
        const float *there = x->devs[x->n_devs - 1].pinned_logits;
        memcpy(best, there, sizeof *best);
        value = there[1];
    } else {
        value = find_best(logits, x->m->hp.n_vocab, best);
    }
    if (value > -INFINITY) return TN_OK;
    return tn_fail(x->batch.err, TN_EINTERNAL, -1,
                   "no token is the likeliest: no logit is a number above -infinity");
}
