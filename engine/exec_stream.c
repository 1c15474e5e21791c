/* A batch through an FFN that the host has: carried to the device in pieces, two at a time on their
 * way, and multiplied there. */
#include "boundary.h"
#include "engine.h"
#include "exec_internal.h"
#include "plan_cost.h"
#include "stream.h"

#include <string.h>

/* Where a piece is while the device computes with it. Filled by the carrier's stream, read by the
 * executor's: each waits for the other by an event. */
typedef struct slot {
    char *memory; /* [capacity] gate, up and down one after the other */
    tn_event *filled, *read;
} slot;

struct tn_streamer {
    tn_model *m;
    tn_device *d;
    const tn_placement *place;
    tn_cost cost;
    tn_carrier *carrier;
    slot slot[2];
    size_t capacity;
    int turn;
};

/* ---- making ------------------------------------------------------------------------------------
 */

static const tn_plan_layer *planned(const tn_streamer *t, int32_t layer)
{
    return &t->place->planned.plan.layer[layer];
}

/* Whether a batch would be streamed with so many of the layer's units on the device. */
static bool pays(const tn_streamer *t, int32_t layer, int32_t units, int64_t n)
{
    const tn_plan_layer *p = planned(t, layer);
    return tn_cost_streams(&t->cost, layer, p->device, p->attn, units, n);
}

int64_t tn_streamer_neurons(const tn_streamer *t, int32_t layer)
{
    if (!t || !t->m->layers[layer].ffn_gate.data || t->m->hp.n_expert) return 0;
    return t->place->shape.layer[layer].granule;
}

/* Bytes of a piece on the device, and at least those of the carrier's buffers. */
static size_t piece_bytes(const tn_streamer *t, int32_t layer, size_t *buffer)
{
    const tn_layer *y = &t->m->layers[layer];
    const int64_t n = tn_streamer_neurons(t, layer), cols = t->m->hp.n_embd;
    const size_t gate = tn_dweight_bytes(y->ffn_gate.type, n, cols);
    const size_t up = tn_dweight_bytes(y->ffn_up.type, n, cols);
    const size_t down = tn_dweight_bytes(y->ffn_down.type, cols, n);
    const size_t each[5] = {gate, up, down, tn_carrier_least(&y->ffn_gate, cols),
                            tn_carrier_least(&y->ffn_up, cols)};
    for (int i = 0; i < 5; i++)
        if (each[i] > *buffer) *buffer = each[i];
    return gate + up + down;
}

static tn_status fill(tn_streamer *t, int32_t segment, tn_error *err)
{
    const tn_device_api *api = t->d->api;
    const tn_segment *y = &t->m->on_device.segment[segment];
    size_t buffer = 0;
    for (int32_t l = y->first; l < y->end; l++) {
        const size_t bytes = tn_streamer_neurons(t, l) ? piece_bytes(t, l, &buffer) : 0;
        if (bytes > t->capacity) t->capacity = bytes;
    }
    tn_status s = tn_carrier_new(&t->carrier, t->m, segment, buffer, err);
    for (int i = 0; i < 2 && !s; i++) {
        void *p = NULL;
        s = api->alloc(t->d, t->capacity, "weights on their way", &p, err);
        t->slot[i].memory = p;
        if (!s) s = api->event_create(t->d, false, &t->slot[i].filled, err);
        if (!s) s = api->event_create(t->d, false, &t->slot[i].read, err);
        if (!s) s = api->event_record(t->d, t->slot[i].read, tn_carrier_stream(t->carrier), err);
    }
    return s;
}

tn_status tn_streamer_new(tn_streamer **out, tn_model *m, int32_t segment, const tn_placement *p,
                          tn_error *err)
{
    const tn_segment *y = &m->on_device.segment[segment];
    tn_streamer t = {.m = m, .d = y->device, .place = p};
    bool any = false;
    *out = NULL;
    tn_cost_init(&t.cost, &p->shape, &p->profile, &p->planned.c, NULL);
    for (int32_t l = y->first; l < y->end && !any; l++)
        any = tn_streamer_neurons(&t, l) && pays(&t, l, 0, p->planned.c.n_batch);
    if (!any) return TN_OK;
    *out = tn_alloc(m->a, 1, sizeof **out);
    if (!*out) return tn_fail_nomem(err, sizeof **out, "the streaming of weights");
    **out = t;
    const tn_status s = fill(*out, segment, err);
    if (!s) return TN_OK;
    tn_streamer_free(*out);
    *out = NULL;
    return s;
}

void tn_streamer_free(tn_streamer *t)
{
    if (!t) return;
    tn_carrier_free(t->carrier);
    for (int i = 0; i < 2; i++) {
        t->d->api->event_destroy(t->d, t->slot[i].filled);
        t->d->api->event_destroy(t->d, t->slot[i].read);
        t->d->api->free(t->d, t->slot[i].memory);
    }
    tn_free(t->m->a, t);
}

/* ---- a piece -----------------------------------------------------------------------------------
 */

typedef struct piece {
    tn_dweight gate, up, down;
} piece;

static piece lay_out(const tn_streamer *t, int32_t layer, char *at, int64_t neurons)
{
    const tn_layer *y = &t->m->layers[layer];
    const int64_t cols = t->m->hp.n_embd;
    const size_t gate = tn_dweight_bytes(y->ffn_gate.type, neurons, cols);
    const size_t up = tn_dweight_bytes(y->ffn_up.type, neurons, cols);
    return (piece){.gate = tn_dweight_at(at, y->ffn_gate.type, neurons, cols),
                   .up = tn_dweight_at(at + gate, y->ffn_up.type, neurons, cols),
                   .down = tn_dweight_at(at + gate + up, y->ffn_down.type, cols, neurons)};
}

/* Rows [first, first + n) of gate and up, those columns of down. */
static tn_status send(tn_streamer *t, int32_t layer, const piece *p, int64_t first, tn_error *err)
{
    const tn_layer *y = &t->m->layers[layer];
    tn_weight gate = y->ffn_gate, up = y->ffn_up;
    gate.data = (const char *)gate.data + (size_t)first * gate.row_bytes;
    up.data = (const char *)up.data + (size_t)first * up.row_bytes;
    tn_status s = tn_carrier_send(t->carrier, &p->gate, &gate, 0, err);
    if (!s) s = tn_carrier_send(t->carrier, &p->up, &up, 0, err);
    return s ? s : tn_carrier_send(t->carrier, &p->down, &y->ffn_down, first, err);
}

/* Neurons [first, first + n) of a layer, added to the device's sum. */
static tn_status one_piece(tn_streamer *t, tn_dev *d, int32_t layer, int64_t first, int64_t n)
{
    const tn_device_api *api = t->d->api;
    slot *at = &t->slot[t->turn ^= 1];
    const piece p = lay_out(t, layer, at->memory, n);
    tn_stream *copies = tn_carrier_stream(t->carrier);
    tn_status s = api->event_wait(t->d, copies, at->read, d->err);
    if (!s) s = send(t, layer, &p, first, d->err);
    if (!s) s = api->event_record(t->d, at->filled, copies, d->err);
    if (!s) s = api->event_wait(t->d, d->stream, at->filled, d->err);
    if (s) return s;
    tn_dev_ffn_part(d, layer, &p.gate, &p.up, &p.down, first, first > 0);
    return d->status ? d->status : api->event_record(t->d, at->read, d->stream, d->err);
}

/* ---- a layer -----------------------------------------------------------------------------------
 */

bool tn_exec_streams(const tn_exec *x, int32_t layer)
{
    const tn_sides *s = &x->sides[layer];
    if (x->mode != TN_EXEC_DIRECT || !x->dev || (s->ffn != TN_ON_HOST && s->ffn != TN_ON_BOTH))
        return false;
    const tn_streamer *t = x->dev->segment->streamer;
    const int64_t granule = tn_streamer_neurons(t, layer);
    if (!granule) return false;
    const int64_t there = x->m->on_device.layers[layer].ffn_gate.rows;
    return pays(t, layer, (int32_t)(there / granule), x->n);
}

static void count(tn_exec *x, int32_t layer, int64_t carried)
{
    const tn_layer *y = &x->m->layers[layer];
    const uint64_t bytes = (uint64_t)y->ffn_gate.rows * y->ffn_gate.row_bytes +
                           (uint64_t)y->ffn_up.rows * y->ffn_up.row_bytes +
                           (uint64_t)y->ffn_down.rows * y->ffn_down.row_bytes;
    x->on_device.weight_bytes += bytes;
    x->streamed_bytes += bytes * (uint64_t)carried / (uint64_t)x->m->hp.n_ff;
}

void tn_exec_stream(tn_exec *x, int32_t layer)
{
    tn_dev *d = x->dev;
    const tn_layer_device *y = &x->m->on_device.layers[layer];
    const int64_t n_ff = x->m->hp.n_ff, there = y->ffn_gate.rows;
    tn_streamer *t = d->segment->streamer;
    const int64_t step = tn_streamer_neurons(t, layer);
    tn_exec_need(x, TN_ACT_H, TN_ON_DEVICE);
    tn_dev_ffn_norm(d, layer);
    if (there) tn_dev_ffn_part(d, layer, &y->ffn_gate, &y->ffn_up, &y->ffn_down, 0, false);
    for (int64_t i = there; i < n_ff && !d->status && !x->status; i += step)
        d->status = one_piece(t, d, layer, i, n_ff - i < step ? n_ff - i : step);
    tn_dev_ffn_end(d, layer);
    tn_exec_look(x);
    if (x->status) return;
    count(x, layer, n_ff - there);
    tn_exec_wrote(x, TN_ACT_H, TN_ON_DEVICE);
}
