/* Which device has which layers. A plan says so; where rules alone place tensors, each device gets
 * layers in proportion to its memory. */
#include "engine.h"
#include "placement.h"
#include "sides.h"

#include <stdio.h>

/* The layer of a tensor; -1: of none. */
static int32_t layer_of(const tn_gguf_tensor *t)
{
    char name[32];
    int32_t layer;
    snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
    return sscanf(name, "blk.%d.", &layer) == 1 ? layer : -1;
}

/* The next layer goes to a device, at or after that of the layer before. */
static void add_layer(tn_load *l, int32_t layer, int32_t device)
{
    tn_model_device *d = &l->m->on_device;
    if (!d->n_segments || d->segment[d->n_segments - 1].index != device)
        d->segment[d->n_segments++] = (tn_segment){
            .device = l->m->engine->devices.at[device], .index = device, .first = layer};
    d->segment[d->n_segments - 1].end = layer + 1;
}

/* Layers without a device go with the one before; the first ones with the first that has one. Where
 * none has, no device is used at all. */
static void follow_plan(tn_load *l)
{
    const tn_plan *p = &l->opt->plan->planned.plan;
    int32_t first = 0;
    while (first < p->n_layers && p->layer[first].device == TN_HOST)
        first++;
    if (first == p->n_layers) return;
    int32_t device = p->layer[first].device;
    for (int32_t i = 0; i < p->n_layers; i++) {
        if (p->layer[i].device != TN_HOST) device = p->layer[i].device;
        add_layer(l, i, device);
    }
}

/* Bytes of a tensor that go to a device. */
static double bytes_there(const tn_load *l, uint64_t i)
{
    const tn_gguf_tensor *t = tn_gguf_tensor_at(l->m->gguf, i);
    const tn_tensor_place *p = &l->place[i];
    const double all = (double)t->shape[0] * (double)(t->shape[1] * t->shape[2]);
    return (double)t->bytes * (double)p->rows * (double)p->cols / all;
}

/* room[i]: the share of the devices up to i of all their memory. */
static tn_status measure(const tn_engine *e, double room[TN_DEVICES], tn_error *err)
{
    double all = 0;
    for (int i = 0; i < e->devices.n; i++) {
        tn_device *d = e->devices.at[i];
        tn_device_memory m;
        const tn_status s = d->api->memory(d, &m, err);
        if (s) return s;
        const size_t left = m.limit_bytes == SIZE_MAX ? m.free_bytes : m.limit_bytes - m.used_bytes;
        room[i] = all += (double)left;
    }
    for (int i = 0; i < e->devices.n; i++)
        room[i] = all > 0 ? room[i] / all : 1;
    return TN_OK;
}

/* The layer with which a tensor goes to a device: its own; the embedding goes with the first,
 * unless it is the head, too, and what is left with the last. */
static int32_t goes_with(const tn_load *l, const tn_gguf_tensor *t)
{
    const int32_t layer = layer_of(t), last = l->m->hp.n_layers - 1;
    const bool tied = !tn_gguf_find_tensor(l->m->gguf, "output.weight");
    if (layer >= 0) return layer < last ? layer : last;
    return !tied && t == tn_gguf_find_tensor(l->m->gguf, "token_embd.weight") ? 0 : last;
}

/* bytes: [n_layers] on devices. A layer is where the middle of it lies. */
static tn_status spread(tn_load *l, double *bytes)
{
    double room[TN_DEVICES], all = 0, before = 0;
    int32_t device = 0;
    const tn_status s = measure(l->m->engine, room, l->err);
    if (s) return s;
    for (uint64_t i = 0; i < tn_gguf_n_tensors(l->m->gguf); i++) {
        bytes[goes_with(l, tn_gguf_tensor_at(l->m->gguf, i))] += bytes_there(l, i);
        all += bytes_there(l, i);
    }
    for (int32_t i = 0; i < l->m->hp.n_layers; i++) {
        while (device + 1 < l->m->engine->devices.n && before + bytes[i] / 2 > all * room[device])
            device++;
        before += bytes[i];
        add_layer(l, i, device);
    }
    return TN_OK;
}

static void place_tensors(tn_load *l)
{
    for (uint64_t i = 0; i < tn_gguf_n_tensors(l->m->gguf); i++)
        l->place[i].segment = tn_segment_of(&l->m->on_device,
                                            goes_with(l, tn_gguf_tensor_at(l->m->gguf, i)));
}

static void say(const tn_load *l)
{
    const tn_model_device *d = &l->m->on_device;
    for (int32_t i = 0; i < d->n_segments && l->m->engine->devices.n > 1; i++)
        tn_engine_log(l->m->engine, TN_LOG_INFO, "%s: layers %d to %d are served by device %d",
                      l->m->name, d->segment[i].first, d->segment[i].end - 1, d->segment[i].index);
}

tn_status tn_segments_make(tn_load *l)
{
    tn_status s = TN_OK;
    if (l->opt->plan) {
        follow_plan(l);
    } else {
        const size_t n = (size_t)l->m->hp.n_layers;
        double *bytes = tn_alloc(l->m->a, n, sizeof *bytes);
        s = bytes ? spread(l, bytes) : tn_fail_nomem(l->err, n * sizeof *bytes, "placement");
        tn_free(l->m->a, bytes);
    }
    if (!s) place_tensors(l);
    if (!s) say(l);
    return s;
}
