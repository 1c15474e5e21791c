/* Carries weights from the host's layout to the device's, which rearranges them. Pinned weights are
 * copied from where they are; others are packed by all threads into one of two pinned buffers and
 * copied while the other buffer is filled. */
#include "boundary.h"
#include "engine.h"
#include "exec_sizes.h"
#include "pin.h"

#include <string.h>

typedef struct slot {
    void *pinned, *device; /* [capacity] */
    tn_event *free;        /* the device has read both */
} slot;

struct tn_carrier {
    tn_model *m;
    tn_device *d;
    tn_stream *stream;
    slot slot[2];
    size_t capacity;
    int turn;
};

enum { packed_bytes = 64 << 10 }; /* by a thread at a time, of what lies in one piece */

/* Pieces of `bytes` bytes, `stride` apart, the last of `last` bytes. */
typedef struct packing {
    char *to;
    const char *from;
    size_t bytes, stride, last;
    int64_t items;
} packing;

static int64_t padded(int64_t rows)
{
    return (rows + TN_CARRIED_ROWS - 1) / TN_CARRIED_ROWS * TN_CARRIED_ROWS;
}

/* At least one group of rows, at most TN_CARRIED_BYTES where that is more. */
static size_t wanted(const tn_weight *w)
{
    const size_t least = TN_CARRIED_ROWS * w->row_bytes, all = (size_t)w->rows * w->row_bytes;
    const size_t most = all < TN_CARRIED_BYTES ? all : TN_CARRIED_BYTES;
    return least > most ? least : most;
}

size_t tn_carrier_capacity(const tn_model *m, const tn_segment *s)
{
    size_t bytes = 0;
    for (int32_t l = s->first; l < s->end; l++) {
        const tn_layer *y = &m->layers[l];
        const tn_weight *const w[3] = {&y->ffn_gate, &y->ffn_up, &y->ffn_down};
        for (int i = 0; i < 3 && m->on_device.layers[l].moves; i++)
            if (wanted(w[i]) > bytes) bytes = wanted(w[i]);
    }
    return bytes;
}

tn_status tn_carrier_new(tn_carrier **out, tn_model *m, int32_t segment, size_t capacity,
                         tn_error *err)
{
    tn_device *d = m->on_device.segment[segment].device;
    const tn_device_api *api = d->api;
    *out = NULL;
    tn_carrier *c = tn_alloc(m->a, 1, sizeof *c);
    if (!c) return tn_fail_nomem(err, sizeof *c, "the upload of moving weights");
    *c = (tn_carrier){.m = m, .d = d, .capacity = capacity};
    tn_status s = api->stream_create(d, &c->stream, err);
    for (int i = 0; i < 2 && !s; i++) {
        slot *t = &c->slot[i];
        s = api->alloc_pinned(d, c->capacity, "a buffer of moving weights", &t->pinned, err);
        if (!s) s = api->alloc(d, c->capacity, "a buffer of moving weights", &t->device, err);
        if (!s) s = api->event_create(d, false, &t->free, err);
        if (!s) s = api->event_record(d, t->free, c->stream, err);
    }
    if (s)
        tn_carrier_free(c);
    else
        *out = c;
    return s;
}

void tn_carrier_free(tn_carrier *c)
{
    if (!c) return;
    const tn_device_api *api = c->d->api;
    api->stream_destroy(c->d, c->stream);
    for (int i = 0; i < 2; i++) {
        api->event_destroy(c->d, c->slot[i].free);
        api->free(c->d, c->slot[i].device);
        api->free_pinned(c->d, c->slot[i].pinned);
    }
    tn_free(c->m->a, c);
}

size_t tn_carrier_least(const tn_weight *w, int64_t cols)
{
    const tn_type_info *t = tn_type_get(w->type);
    return TN_CARRIED_ROWS * (size_t)(cols / t->block) * t->bytes;
}

static void pack_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const packing *p = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        memcpy(p->to + (size_t)i * p->bytes, p->from + (size_t)i * p->stride,
               i + 1 < p->items ? p->bytes : p->last);
}

/* Through the pinned buffer of a slot, which the device has read before. */
static tn_status bounce(tn_carrier *c, slot *s, packing p, tn_error *err)
{
    const tn_device_api *api = c->d->api;
    p.to = s->pinned;
    const tn_status st = api->event_sync(c->d, s->free, err);
    if (st) return st;
    tn_pool_run(c->m->engine->pool, pack_task, &p, p.items, 1);
    return api->upload_async(c->d, c->stream, s->device, s->pinned,
                             (size_t)(p.items - 1) * p.bytes + p.last, err);
}

/* What lies in one piece. */
static tn_status copy(tn_carrier *c, slot *s, const char *from, size_t bytes, bool pinned,
                      tn_error *err)
{
    const size_t items = (bytes + packed_bytes - 1) / packed_bytes;
    const packing p = {.from = from,
                       .bytes = packed_bytes,
                       .stride = packed_bytes,
                       .items = (int64_t)items,
                       .last = bytes - (items - 1) * packed_bytes};
    if (!pinned) return bounce(c, s, p, err);
    return c->d->api->upload_async(c->d, c->stream, s->device, from, bytes, err);
}

/* n rows that lie as in the file, of which only `bytes` each are wanted. */
static tn_status copy_parts(tn_carrier *c, slot *s, const tn_weight *rows, const char *from,
                            size_t bytes, int64_t n, tn_error *err)
{
    const packing p = {
        .from = from, .bytes = bytes, .stride = rows->row_bytes, .items = n, .last = bytes};
    if (!tn_pins_have(c->m->pins, rows->data)) return bounce(c, s, p, err);
    return c->d->api->upload_pieces_async(c->d, c->stream, s->device, from, bytes, (size_t)n,
                                          rows->row_bytes, err);
}

static tn_status not_rearranged(tn_status s, tn_error *err)
{
    return tn_fail(err, s, -1, "the device cannot rearrange weights on the move");
}

/* Rows [row0, row0 + n) of a matrix; skip, row_bytes: of each, what is left out and then taken. */
static tn_status carry_rows(tn_carrier *c, const tn_dweight *to, const tn_weight *from, size_t skip,
                            size_t row_bytes, int64_t row0, int64_t n, tn_error *err)
{
    const bool r8 = from->layout == TN_LAYOUT_R8;
    const int64_t rows = r8 ? padded(n) : n;
    const tn_dweight part = tn_dweight_rows(to, row0, n);
    const char *at = (const char *)from->data + (size_t)row0 * from->row_bytes;
    slot *s = &c->slot[c->turn ^= 1];
    tn_status st = row_bytes < from->row_bytes
                       ? copy_parts(c, s, from, at + skip, row_bytes, n, err)
                       : copy(c, s, at, (size_t)rows * row_bytes,
                              tn_pins_have(c->m->pins, from->data), err);
    if (st) return st;
    st = (r8 ? c->d->ops->repack_r8 : c->d->ops->repack)(c->stream, &part, s->device, row_bytes);
    return st ? not_rearranged(st, err) : c->d->api->event_record(c->d, s->free, c->stream, err);
}

/* Bytes of n columns of a row, or (as often) of all rows. */
static size_t cols_bytes(const tn_weight *w, int64_t n)
{
    const tn_type_info *t = tn_type_get(w->type);
    return (size_t)(n / t->block) * t->bytes;
}

/* Slabs from column col0 on, all of whose rows lie in one piece; they fill `to`. */
static tn_status carry_slabs(tn_carrier *c, const tn_dweight *to, const tn_weight *from,
                             int64_t col0, tn_error *err)
{
    const size_t rows = (size_t)from->slab_rows;
    const char *at = (const char *)from->data + rows * cols_bytes(from, col0);
    slot *s = &c->slot[c->turn ^= 1];
    tn_status st = copy(c, s, at, rows * cols_bytes(from, to->cols),
                        tn_pins_have(c->m->pins, from->data), err);
    if (st) return st;
    for (int64_t i = 0; i < to->cols; i += from->slab) {
        const int64_t n = to->cols - i < from->slab ? to->cols - i : from->slab;
        const tn_dweight slab = tn_dweight_cols(to, i, n);
        st = c->d->ops->repack_r8(c->stream, &slab, (char *)s->device + rows * cols_bytes(from, i),
                                  cols_bytes(from, n));
        if (st) return not_rearranged(st, err);
    }
    return c->d->api->event_record(c->d, s->free, c->stream, err);
}

/* A slab as a matrix of its own. */
static tn_weight slab_at(const tn_weight *w, int64_t col0, int64_t cols)
{
    return (tn_weight){.type = w->type,
                       .layout = w->layout,
                       .rows = w->rows,
                       .cols = cols,
                       .row_bytes = cols_bytes(w, cols),
                       .data = (const char *)w->data + (size_t)w->slab_rows * cols_bytes(w, col0)};
}

/* As many slabs at a time as a buffer holds; parts of one that it does not hold. */
static tn_status send_slabs(tn_carrier *c, const tn_dweight *to, const tn_weight *from,
                            int64_t col0, tn_error *err)
{
    const size_t slab = (size_t)from->slab_rows * cols_bytes(from, from->slab);
    const int64_t step =
        c->capacity < slab ? from->slab : (int64_t)(c->capacity / slab) * from->slab;
    tn_status s = TN_OK;
    for (int64_t i = 0; i < to->cols && !s; i += step) {
        const int64_t n = to->cols - i < step ? to->cols - i : step;
        const tn_dweight part = tn_dweight_cols(to, i, n);
        const tn_weight one = slab_at(from, col0 + i, n);
        s = c->capacity < slab ? tn_carrier_send(c, &part, &one, 0, err)
                               : carry_slabs(c, &part, from, col0 + i, err);
    }
    return s;
}

tn_stream *tn_carrier_stream(const tn_carrier *c)
{
    return c->stream;
}

tn_status tn_carrier_send(tn_carrier *c, const tn_dweight *to, const tn_weight *from, int64_t col0,
                          tn_error *err)
{
    const size_t skip = cols_bytes(from, col0), row_bytes = cols_bytes(from, to->cols);
    if (from->slab) return send_slabs(c, to, from, col0, err);
    const int64_t step = (int64_t)(c->capacity / row_bytes) / TN_CARRIED_ROWS * TN_CARRIED_ROWS;
    tn_status s = TN_OK;
    for (int64_t r = 0; r < to->rows && !s; r += step)
        s = carry_rows(c, to, from, skip, row_bytes, r, to->rows - r < step ? to->rows - r : step,
                       err);
    return s;
}

tn_status tn_carrier_carry(tn_carrier *c, const tn_dweight *to, const tn_weight *from,
                           tn_error *err)
{
    const tn_status s = tn_carrier_send(c, to, from, 0, err);
    const tn_status synced = c->d->api->stream_sync(c->d, c->stream, s ? NULL : err);
    return s ? s : synced;
}
