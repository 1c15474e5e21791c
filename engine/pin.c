#include "pin.h"
#include "engine.h"
#include "hardware.h"
#include "plan_cost.h"

#include <stdlib.h>
#include <unistd.h>

typedef struct range {
    char *at;
    size_t bytes; /* whole pages */
    tn_device *device;
} range;

struct tn_pins {
    const tn_allocator *a;
    range *ranges; /* ascending */
    size_t n, cap;
    uint64_t wanted, bytes;
    uint64_t limit;
    bool refused;
};

/* A matrix has pages of its own, see load.c. */
static size_t whole_pages(const tn_weight *w, int64_t n_expert)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const int64_t each = n_expert ? n_expert : 1;
    const size_t bytes = (size_t)(each * tn_expert_rows(w, w->rows / each)) * w->row_bytes;
    return (bytes + page - 1) / page * page;
}

static tn_status pin(tn_pins *p, tn_model *m, tn_device *d, const tn_weight *w, int32_t n_expert,
                     tn_error *err)
{
    tn_error why = {0};
    const range r = {(char *)w->data, whole_pages(w, n_expert), d};
    p->wanted += r.bytes;
    if (p->refused || p->bytes + r.bytes > p->limit) return TN_OK;
    if (!tn_grow(p->a, (void **)&p->ranges, &p->cap, p->n, p->n + 1, sizeof r))
        return tn_fail_nomem(err, sizeof r, "pinned weights");
    if (d->api->pin(d, r.at, r.bytes, &why)) {
        p->refused = true;
        tn_engine_log(m->engine, TN_LOG_INFO, "%s: weights are copied through buffers: %s", m->name,
                      why.msg);
        return TN_OK;
    }
    p->ranges[p->n++] = r;
    p->bytes += r.bytes;
    return TN_OK;
}

/* Whether the FFN of a layer is copied to the device at times; and the projections. */
static bool ffn_leaves(const tn_model *m, const tn_placement *p, const tn_cost *k, int32_t l)
{
    const tn_plan_layer *y = &p->planned.plan.layer[l];
    if (!m->layers[l].ffn_gate.data || y->device == TN_HOST) return false;
    return m->on_device.layers[l].moves ||
           tn_cost_prefill(k, l, y->device, y->attn, 0, k->c.n_batch).way != TN_PREFILL_IN_PLACE;
}

static bool attn_leaves(const tn_model *m, const tn_placement *p, const tn_cost *k, int32_t l)
{
    const tn_plan_layer *y = &p->planned.plan.layer[l];
    const tn_layer *z = &m->layers[l];
    return z->attn_q.data && z->attn_k.data && z->attn_v.data && z->attn_output.data &&
           tn_cost_attn_streams(k, l, y->device, y->attn, k->c.n_batch);
}

static int ascending(const void *x, const void *y)
{
    const char *a = ((const range *)x)->at, *b = ((const range *)y)->at;
    return (a > b) - (a < b);
}

static tn_status fill(tn_pins *p, tn_model *m, const tn_placement *place, tn_error *err)
{
    tn_cost k;
    tn_status s = TN_OK;
    tn_cost_init(&k, &place->shape, &place->profile, &place->planned.c, NULL);
    for (int32_t l = 0; l < m->hp.n_layers && !s; l++) {
        const tn_layer *y = &m->layers[l];
        const tn_weight *const w[7] = {&y->attn_q,   &y->attn_k, &y->attn_v,  &y->attn_output,
                                       &y->ffn_gate, &y->ffn_up, &y->ffn_down};
        tn_device *d = m->on_device.segment[tn_segment_of(&m->on_device, l)].device;
        const int first = attn_leaves(m, place, &k, l) ? 0 : 4;
        const int end = ffn_leaves(m, place, &k, l) ? 7 : 4;
        for (int i = first; i < end && !s; i++)
            s = pin(p, m, d, w[i], i < 4 ? 0 : m->hp.n_expert, err);
    }
    if (p->n) qsort(p->ranges, p->n, sizeof *p->ranges, ascending);
    return s;
}

tn_status tn_pins_new(tn_pins **out, tn_model *m, const tn_placement *p, tn_error *err)
{
    tn_host_info h;
    *out = NULL;
    if (!m->on_device.n_segments) return TN_OK;
    tn_pins *pins = tn_alloc(m->a, 1, sizeof *pins);
    if (!pins) return tn_fail_nomem(err, sizeof *pins, "pinned weights");
    tn_host_info_get(&h);
    pins->a = m->a;
    pins->limit = tn_cost_pin_limit(p->profile.host.memory_bytes);
    if (h.memory_bytes && tn_cost_pin_limit(h.memory_bytes) < pins->limit)
        pins->limit = tn_cost_pin_limit(h.memory_bytes);
    const tn_status s = fill(pins, m, p, err);
    if (s)
        tn_pins_free(pins);
    else
        *out = pins;
    return s;
}

void tn_pins_free(tn_pins *p)
{
    if (!p) return;
    for (size_t i = 0; i < p->n; i++)
        p->ranges[i].device->api->unpin(p->ranges[i].device, p->ranges[i].at);
    tn_free(p->a, p->ranges);
    tn_free(p->a, p);
}

bool tn_pins_have(const tn_pins *p, const void *weights)
{
    size_t first = 0, end = p ? p->n : 0;
    while (first < end) {
        const size_t i = first + (end - first) / 2;
        if ((const char *)weights < p->ranges[i].at)
            end = i;
        else if ((const char *)weights >= p->ranges[i].at + p->ranges[i].bytes)
            first = i + 1;
        else
            return true;
    }
    return false;
}

double tn_pins_share(const tn_pins *p)
{
    if (!p) return 0;
    return p->wanted ? (double)p->bytes / (double)p->wanted : 1;
}
