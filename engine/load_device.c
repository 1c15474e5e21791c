/* Carries weights to the device: rows are read as they lie in the file into one of two pinned
 * buffers, copied, and rearranged by the device, while the other buffer is filled. */
#include "engine.h"
#include "exec_sizes.h"
#include "load.h"

#include <string.h>

enum {
    piece_bytes = 1 << 18,
    max_pieces = TN_CARRIED_BYTES / piece_bytes + 1
};

/* A matrix, or (tensor NULL) a vector. */
struct tn_upload {
    const tn_gguf_tensor *tensor;
    const tn_weight *file;
    uint32_t type;
    int64_t rows, cols; /* the device's part */
    tn_dweight *weight;
    float **vector;
    const float *from;
    int32_t segment;
    const int32_t *order; /* of experts: which of the file comes where; NULL: as in the file */
    size_t at, bytes;     /* in its arena */
};

static tn_status queue(tn_load *l, struct tn_upload u)
{
    tn_segment *d = &l->m->on_device.segment[u.segment];
    if (!tn_grow(l->m->a, (void **)&l->uploads, &l->cap_uploads, l->n_uploads, l->n_uploads + 1,
                 sizeof u))
        return tn_fail_nomem(l->err, sizeof u, "the load queue");
    u.at = d->bytes;
    const size_t padded = (u.bytes + TN_DEVICE_ALIGN - 1) / TN_DEVICE_ALIGN * TN_DEVICE_ALIGN;
    if (!tn_add_size(d->bytes, padded, &d->bytes))
        return tn_fail(l->err, TN_EDEVICE, -1, "the weights are larger than any device memory");
    l->uploads[l->n_uploads++] = u;
    return TN_OK;
}

tn_status tn_load_device_weight(tn_load *l, tn_dweight *d, const tn_gguf_tensor *t,
                                const tn_weight *file, uint32_t type, const tn_tensor_place *p)
{
    struct tn_upload u = {
        .tensor = t, .file = file, .type = type, .rows = p->rows, .cols = p->cols};
    u.weight = d;
    u.segment = p->segment;
    u.order = p->order;
    u.bytes = tn_dweight_bytes(type, p->rows, p->cols);
    if (!u.bytes)
        return tn_fail(l->err, TN_EUNSUPPORTED, t->header_offset,
                       "%s: the device cannot hold tensor '%.*s'", l->m->name, (int)t->name.len,
                       t->name.data);
    l->total_bytes += (uint64_t)p->rows * file->row_bytes;
    return queue(l, u);
}

tn_status tn_load_device_vector(tn_load *l, int32_t segment, float **d, const float *v, int64_t n)
{
    if (!l->m->on_device.n_segments || !v) return TN_OK;
    struct tn_upload u = {.rows = 1, .cols = n, .vector = d, .from = v, .segment = segment};
    u.bytes = (size_t)n * sizeof *v;
    return queue(l, u);
}

tn_status tn_load_device_alloc(tn_load *l)
{
    tn_model_device *d = &l->m->on_device;
    for (int32_t i = 0; i < d->n_segments; i++) {
        tn_segment *y = &d->segment[i];
        tn_status s = y->device->api->alloc(y->device, y->bytes, "the weights", &y->arena, l->err);
        if (s) return s;
        l->m->held_bytes += y->bytes;
    }
    for (size_t i = 0; i < l->n_uploads; i++) {
        const struct tn_upload *u = &l->uploads[i];
        char *p = (char *)d->segment[u->segment].arena + u->at;
        if (u->weight)
            *u->weight = tn_dweight_at(p, u->type, u->rows, u->cols);
        else
            *u->vector = (float *)(void *)p;
    }
    return TN_OK;
}

/* ---- uploading ------------------------------------------------------------------------------- */

typedef struct slot {
    void *pinned, *device; /* [capacity] */
    tn_event *free;        /* the device has read both */
} slot;

typedef struct uploader {
    tn_load *l;
    int32_t segment;
    tn_device *d;
    tn_stream *stream;
    slot slot[2];
    size_t capacity;
    int turn;
} uploader;

/* Bytes of a row on its way to the device. */
static size_t row_bytes(const struct tn_upload *u)
{
    return u->type == u->file->type ? u->file->row_bytes : (size_t)u->file->cols * sizeof(float);
}

/* Reads rows [row0, row0 + n) of the file on all threads. */
static tn_status fill(uploader *p, const struct tn_upload *u, slot *to, int64_t row0, int64_t n)
{
    struct tn_load_job jobs[max_pieces];
    size_t n_jobs = 0;
    int64_t step = (n + max_pieces - 1) / max_pieces;
    const int64_t least = (int64_t)(piece_bytes / row_bytes(u)) + 1;
    if (step < least) step = least;
    for (int64_t r = 0; r < n; r += step)
        jobs[n_jobs++] =
            (struct tn_load_job){.tensor = u->tensor,
                                 .file = u->file,
                                 .file_offset = (size_t)(row0 + r) * u->file->row_bytes,
                                 .n_rows = n - r < step ? n - r : step,
                                 .dst = (char *)to->pinned + (size_t)r * row_bytes(u),
                                 .to_f32 = u->type != u->file->type};
    return tn_load_jobs(p->l, jobs, n_jobs);
}

/* Rows [from, from + n) of the file become rows [to, to + n) on the device. */
static tn_status upload_rows(uploader *p, const struct tn_upload *u, int64_t from, int64_t to,
                             int64_t n)
{
    slot *s = &p->slot[p->turn ^= 1];
    const tn_device_api *api = p->d->api;
    tn_error *err = p->l->err;
    const size_t bytes = (size_t)n * row_bytes(u);
    const tn_dweight part = tn_dweight_rows(u->weight, to, n);
    tn_status st = api->event_sync(p->d, s->free, err);
    if (!st) st = fill(p, u, s, from, n);
    if (!st) st = api->upload_async(p->d, p->stream, s->device, s->pinned, bytes, err);
    if (st) return st;
    st = p->d->ops->repack(p->stream, &part, s->device, row_bytes(u));
    if (st)
        return tn_fail(err, st, -1, "%s: the device cannot rearrange tensor '%.*s'", p->l->m->name,
                       (int)u->tensor->name.len, u->tensor->name.data);
    return api->event_record(p->d, s->free, p->stream, err);
}

static tn_status upload(uploader *p, const struct tn_upload *u)
{
    if (!u->weight) return p->d->api->upload(p->d, *u->vector, u->from, u->bytes, p->l->err);
    const int64_t step = (int64_t)(p->capacity / row_bytes(u));
    const int64_t each = u->order ? (int64_t)u->tensor->shape[1] : u->rows; /* rows in one piece */
    tn_status s = TN_OK;
    for (int64_t at = 0; at < u->rows; at += each) {
        const int64_t from = u->order ? u->order[at / each] * each : at;
        for (int64_t r = 0; r < each && !s; r += step)
            s = upload_rows(p, u, from + r, at + r, each - r < step ? each - r : step);
    }
    return s;
}

/* All of a small matrix, at least one row of a large one. */
static size_t wanted(const struct tn_upload *u)
{
    const size_t row = row_bytes(u), all = (size_t)u->rows * row;
    const size_t most = all < TN_CARRIED_BYTES ? all : TN_CARRIED_BYTES;
    return row > most ? row : most;
}

static tn_status begin(uploader *p)
{
    const tn_device_api *api = p->d->api;
    tn_error *err = p->l->err;
    for (size_t i = 0; i < p->l->n_uploads; i++) {
        const struct tn_upload *u = &p->l->uploads[i];
        if (u->weight && u->segment == p->segment && wanted(u) > p->capacity)
            p->capacity = wanted(u);
    }
    tn_status s = api->stream_create(p->d, &p->stream, err);
    for (int i = 0; i < 2 && !s; i++) {
        slot *t = &p->slot[i];
        s = api->alloc_pinned(p->d, p->capacity, "a read buffer", &t->pinned, err);
        if (!s) s = api->alloc(p->d, p->capacity, "an upload buffer", &t->device, err);
        if (!s) s = api->event_create(p->d, false, &t->free, err);
        if (!s) s = api->event_record(p->d, t->free, p->stream, err);
    }
    return s;
}

static void end(uploader *p)
{
    const tn_device_api *api = p->d->api;
    api->stream_destroy(p->d, p->stream);
    for (int i = 0; i < 2; i++) {
        api->event_destroy(p->d, p->slot[i].free);
        api->free(p->d, p->slot[i].device);
        api->free_pinned(p->d, p->slot[i].pinned);
    }
}

static tn_status run_segment(tn_load *l, int32_t segment)
{
    uploader p = {.l = l, .segment = segment, .d = l->m->on_device.segment[segment].device};
    pthread_mutex_t *turn = &l->m->engine->turn;
    pthread_mutex_lock(turn);
    tn_status s = begin(&p);
    pthread_mutex_unlock(turn);
    for (size_t i = 0; i < l->n_uploads && !s; i++)
        if (l->uploads[i].segment == segment) s = upload(&p, &l->uploads[i]);
    if (!s) s = p.d->api->stream_sync(p.d, p.stream, l->err);
    pthread_mutex_lock(turn);
    end(&p);
    pthread_mutex_unlock(turn);
    return s;
}

tn_status tn_load_device_run(tn_load *l)
{
    tn_status s = TN_OK;
    for (int32_t i = 0; i < l->m->on_device.n_segments && !s; i++)
        s = run_segment(l, i);
    return s;
}
