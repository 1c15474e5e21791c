/* Weights that the host has, on their way to a device for one batch: in pieces, two at a time. */
#include "boundary.h"
#include "engine.h"
#include "exec_sizes.h"
#include "pin.h"
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

/* ---- making ---------------------------------------------------------------------------------- */

tn_prefill tn_streamer_choose(const tn_streamer *t, int32_t layer, int32_t units, int64_t n)
{
    const tn_plan_layer *p = &t->place->planned.plan.layer[layer];
    return tn_cost_prefill(&t->cost, layer, p->device, p->attn, units, n);
}

int64_t tn_streamer_neurons(const tn_streamer *t, int32_t layer)
{
    if (!t || !t->m->on_device.layers[layer].streams) return 0;
    const tn_shape_layer *y = &t->place->shape.layer[layer];
    return y->n_expert ? y->n_ff : y->granule;
}

/* Whether a batch would be streamed with nothing of the layer on the device. */
static bool streams(const tn_streamer *t, int32_t layer)
{
    return t->m->layers[layer].ffn_gate.data &&
           tn_streamer_choose(t, layer, 0, t->place->planned.c.n_batch).way != TN_PREFILL_IN_PLACE;
}

static bool projects(const tn_streamer *t, int32_t layer)
{
    const tn_layer *y = &t->m->layers[layer];
    const tn_plan_layer *p = &t->place->planned.plan.layer[layer];
    return y->attn_q.data && y->attn_k.data && y->attn_v.data && y->attn_output.data &&
           tn_cost_attn_streams(&t->cost, layer, p->device, p->attn, t->place->planned.c.n_batch);
}

bool tn_streamer_projects(const tn_streamer *t, int32_t layer, int64_t n)
{
    const tn_plan_layer *p = t ? &t->place->planned.plan.layer[layer] : NULL;
    return t && t->m->on_device.layers[layer].projects &&
           tn_cost_attn_streams(&t->cost, layer, p->device, p->attn, n);
}

int64_t tn_streamer_rows(const tn_streamer *t, const tn_weight *w)
{
    const int64_t rows =
        (int64_t)(t->capacity / tn_dweight_bytes(w->type, TN_STREAMED_ROWS, w->cols)) *
        TN_STREAMED_ROWS;
    return rows < w->rows ? rows : w->rows;
}

/* So that a piece holds some rows of each projection. */
static size_t projection_bytes(const tn_streamer *t, int32_t layer, size_t *buffer)
{
    const tn_layer *y = &t->m->layers[layer];
    const tn_weight *const w[4] = {&y->attn_q, &y->attn_k, &y->attn_v, &y->attn_output};
    size_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        const size_t each = tn_dweight_bytes(w[i]->type, TN_STREAMED_ROWS, w[i]->cols);
        const size_t least = tn_carrier_least(w[i], w[i]->cols);
        if (each > bytes) bytes = each;
        if (least > *buffer) *buffer = least;
    }
    return bytes;
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
        const size_t ffn = tn_streamer_neurons(t, l) ? piece_bytes(t, l, &buffer) : 0;
        const bool attn = t->m->on_device.layers[l].projects;
        const size_t rows = attn ? projection_bytes(t, l, &buffer) : 0;
        if (ffn > t->capacity) t->capacity = ffn;
        if (rows > t->capacity) t->capacity = rows;
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
    if (tn_pins_share(m->pins) < 1) tn_cost_pin(&t.cost, tn_pins_share(m->pins));
    for (int32_t l = y->first; l < y->end; l++) {
        tn_layer_device *z = &m->on_device.layers[l];
        z->streams = streams(&t, l);
        z->projects = projects(&t, l);
        any |= z->streams || z->projects;
    }
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

/* ---- a piece --------------------------------------------------------------------------------- */

static void lay_out(const tn_streamer *t, int32_t layer, char *at, int64_t n, tn_streamed *p)
{
    const tn_layer *y = &t->m->layers[layer];
    const int64_t cols = t->m->hp.n_embd;
    const size_t gate = tn_dweight_bytes(y->ffn_gate.type, n, cols);
    const size_t up = tn_dweight_bytes(y->ffn_up.type, n, cols);
    p->gate = tn_dweight_at(at, y->ffn_gate.type, n, cols);
    p->up = tn_dweight_at(at + gate, y->ffn_up.type, n, cols);
    p->down = tn_dweight_at(at + gate + up, y->ffn_down.type, cols, n);
    p->bytes = (uint64_t)n * (y->ffn_gate.row_bytes + y->ffn_up.row_bytes) +
               (uint64_t)(cols * n) * y->ffn_down.row_bytes / (uint64_t)y->ffn_down.cols;
}

/* An expert's matrices, or rows of gate and up from `first` on and those columns of down. */
static tn_status send(tn_streamer *t, int32_t layer, const tn_streamed *p, int64_t first,
                      tn_error *err)
{
    const tn_layer *y = &t->m->layers[layer];
    const tn_hparams *hp = &t->m->hp;
    const int64_t row0 = hp->n_expert ? 0 : first;
    tn_weight w[3] = {y->ffn_gate, y->ffn_up, y->ffn_down};
    for (int i = 0; i < 3 && hp->n_expert; i++)
        w[i] = tn_expert(&w[i], (int32_t)first, i < 2 ? hp->n_ff : hp->n_embd);
    for (int i = 0; i < 2; i++)
        w[i].data = (const char *)w[i].data + (size_t)row0 * w[i].row_bytes;
    tn_status s = tn_carrier_send(t->carrier, &p->gate, &w[0], 0, err);
    if (!s) s = tn_carrier_send(t->carrier, &p->up, &w[1], 0, err);
    return s ? s : tn_carrier_send(t->carrier, &p->down, &w[2], row0, err);
}

/* The next slot, when all that reads it has been done. */
static tn_status begin(tn_streamer *t, tn_dev *d)
{
    t->turn ^= 1;
    return t->d->api->event_wait(t->d, tn_carrier_stream(t->carrier), t->slot[t->turn].read,
                                 d->err);
}

/* What d enqueues from now on finds what has been sent. */
static tn_status end(tn_streamer *t, tn_dev *d)
{
    const tn_device_api *api = t->d->api;
    tn_event *filled = t->slot[t->turn].filled;
    const tn_status s = api->event_record(t->d, filled, tn_carrier_stream(t->carrier), d->err);
    return s ? s : api->event_wait(t->d, d->stream, filled, d->err);
}

tn_status tn_streamer_bring(tn_streamer *t, tn_dev *d, int32_t layer, int64_t first, int64_t n,
                            tn_streamed *out)
{
    tn_status s = begin(t, d);
    lay_out(t, layer, t->slot[t->turn].memory, n, out);
    if (!s) s = send(t, layer, out, first, d->err);
    return s ? s : end(t, d);
}

tn_status tn_streamer_bring_rows(tn_streamer *t, tn_dev *d, const tn_weight *w, int64_t first,
                                 int64_t n, tn_dweight *out)
{
    tn_weight from = *w;
    tn_status s = begin(t, d);
    from.data = (const char *)w->data + (size_t)first * w->row_bytes;
    *out = tn_dweight_at(t->slot[t->turn].memory, w->type, n, w->cols);
    if (!s) s = tn_carrier_send(t->carrier, out, &from, 0, d->err);
    return s ? s : end(t, d);
}

tn_status tn_streamer_done(tn_streamer *t, tn_dev *d)
{
    return t->d->api->event_record(t->d, t->slot[t->turn].read, d->stream, d->err);
}
