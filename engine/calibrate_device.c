/* The device's side of calibration, and what host and device do to each other. */
#include "calibrate_internal.h"
#include "../kernels/device_ops.h"
#include "exec_device.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    cols = 4096,
    kv_heads = 8,
    group = 4,
    head_dim = 128,
    page_size = 256,
    most_splits = 128,
    vector_bytes = 16384, /* of a hand-over */
    crossings = 60,
    launches = 8
};

typedef struct device_bench {
    tn_engine *e;
    tn_device *d;
    tn_stream *stream, *copies;
    tn_error *err;
    tn_status status; /* after the first failure nothing more is done */
    bool emulated;
    size_t set_bytes, copy_bytes;
    void *set, *target; /* device: weights or KV; where copies go */
    void *pinned, *pageable;
    uint32_t *flags; /* pinned: to the host, to the device */
    float *x, *y;    /* device: [512][cols] */
    int8_t *q;
    tn_dscale *scale;
    void *workspace;
    size_t workspace_bytes;
    void **pages;
    int32_t *pos;
} device_bench;

static void *take(device_bench *b, size_t bytes, bool pinned)
{
    void *p = NULL;
    if (!b->status)
        b->status = (pinned ? b->d->api->alloc_pinned
                            : b->d->api->alloc)(b->d, bytes, "calibration", &p, b->err);
    return p;
}

static void release(device_bench *b)
{
    const tn_device_api *api = b->d->api;
    void *const memory[] = {b->set,   b->target,    b->x,     b->y,  b->q,
                            b->scale, b->workspace, b->pages, b->pos};
    api->stream_destroy(b->d, b->stream); /* waits for what uses the memory */
    api->stream_destroy(b->d, b->copies);
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        api->free(b->d, memory[i]);
    if (b->pinned) api->free_pinned(b->d, b->pinned);
    if (b->flags) api->free_pinned(b->d, b->flags);
    tn_free(&b->e->a, b->pageable);
}

/* A page of F32 keys and values must fit. */
enum { least_set = 4 << 20 };

static void acquire(device_bench *b, tn_engine *e, tn_device *d, tn_error *err)
{
    const tn_device_api *api = d->api;
    const bool emulated = api->info(d)->kind == TN_DEVICE_EMULATED;
    *b = (device_bench){.e = e, .d = d, .err = err, .emulated = emulated};
    tn_device_memory m;
    b->status = api->memory(b->d, &m, err);
    if (b->status) return;
    const size_t batch = 512 * cols;
    size_t room = m.free_bytes;
    if (m.limit_bytes - m.used_bytes < room) room = m.limit_bytes - m.used_bytes;
    b->set_bytes = emulated ? least_set : 512u << 20;
    while (b->set_bytes > room / 4 && b->set_bytes > least_set)
        b->set_bytes /= 2;
    b->copy_bytes = emulated ? 1u << 20 : 64u << 20;
    if (b->copy_bytes > b->set_bytes) b->copy_bytes = b->set_bytes;
    b->workspace_bytes = d->ops->gemm_bytes(TN_TYPE_Q4_K, 512, emulated ? 64 : cols, cols);
    const size_t attend = d->ops->attend_bytes(1, kv_heads * group, head_dim, most_splits);
    if (b->workspace_bytes < attend) b->workspace_bytes = attend;
    b->status = api->stream_create(b->d, &b->stream, err);
    if (!b->status) b->status = api->stream_create(b->d, &b->copies, err);
    b->set = take(b, b->set_bytes, false);
    b->target = take(b, b->copy_bytes, false);
    b->x = take(b, batch * sizeof(float), false);
    b->y = take(b, (b->set_bytes > batch * 4 ? b->set_bytes : batch * 4), false);
    b->q = take(b, batch, false);
    b->scale = take(b, batch / 32 * sizeof(tn_dscale), false);
    b->workspace = take(b, b->workspace_bytes, false);
    b->pages = take(b, (b->set_bytes >> 16) * sizeof(void *) + 256, false);
    b->pos = take(b, 256, false);
    b->pinned = take(b, b->copy_bytes, true);
    b->flags = take(b, 4096, true);
    b->pageable = tn_alloc(&e->a, b->copy_bytes, 1);
    if (!b->status && !b->pageable) b->status = tn_fail_nomem(err, b->copy_bytes, "calibration");
}

/* ---- timing ---------------------------------------------------------------------------------- */

typedef tn_status (*queue_fn)(device_bench *b, void *arg);

/* Seconds of one of several operations queued one after another. */
static double seconds(device_bench *b, queue_fn queue, void *arg, tn_stream *stream)
{
    const tn_device_api *api = b->d->api;
    const int n = b->emulated ? 1 : launches;
    double best = INFINITY;
    for (int pass = 0; pass < (b->emulated ? 2 : 5) && !b->status; pass++) {
        const double start = tn_now();
        for (int i = 0; i < n && !b->status; i++)
            b->status = queue(b, arg);
        if (!b->status) b->status = api->stream_sync(b->d, stream, b->err);
        const double t = (tn_now() - start) / n;
        if (t < best) best = t;
    }
    return best;
}

static tn_status queue_matvec(device_bench *b, void *arg)
{
    return b->d->ops->matvec(b->stream, arg);
}

static tn_dacts acts(const device_bench *b, int64_t n)
{
    return (tn_dacts){n, cols, b->x, cols, b->q, b->scale};
}

/* The matrix of a type that fills the working set; rows 0 where the device has no kernel. */
static tn_dmatvec matrix(const device_bench *b, uint32_t type)
{
    tn_dmatvec m = {.x = acts(b, 1), .y = b->y};
    const size_t group_bytes = tn_dweight_bytes(type, 64, cols);
    const tn_device_shape shape = {.cols = cols};
    if (!group_bytes || !b->d->ops->can_do(TN_DOP_MATVEC, type, shape)) return m;
    m.rows = 64;
    while (!b->emulated && tn_dweight_bytes(type, 2 * m.rows, cols) <= b->set_bytes)
        m.rows *= 2;
    m.w = tn_dweight_at(b->set, type, m.rows, cols);
    m.y_stride = m.rows;
    return m;
}

static void measure_matvec(device_bench *b, tn_side_rates *r)
{
    double slowest = 1e15;
    for (uint32_t i = 0; i < TN_TYPE_COUNT && !b->status; i++) {
        size_t row;
        tn_dmatvec m = {.rows = 0};
        if (tn_type_get(i)->block && tn_type_row_bytes(i, cols, &row)) m = matrix(b, i);
        const int64_t rows = m.rows;
        if (!rows) continue;
        m.rows = 0; /* of experts only */
        r->matvec[i] = (double)rows * (double)row / seconds(b, queue_matvec, &m, b->stream);
        slowest = fmin(slowest, r->matvec[i]);
    }
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block && !(r->matvec[i] > 0)) r->matvec[i] = slowest;
}

static tn_status queue_gemm(device_bench *b, void *arg)
{
    return b->d->ops->gemm(b->stream, arg);
}

static double measure_flops(device_bench *b, int64_t n)
{
    const int64_t rows = b->emulated ? 64 : cols;
    tn_dgemm g = {.w = tn_dweight_at(b->set, TN_TYPE_Q4_K, rows, cols),
                  .x = acts(b, n),
                  .y = b->y,
                  .y_stride = rows,
                  .workspace = b->workspace,
                  .workspace_bytes = b->workspace_bytes};
    return 2.0 * (double)rows * cols * (double)n / seconds(b, queue_gemm, &g, b->stream);
}

static tn_status queue_attend(device_bench *b, void *arg)
{
    return b->d->ops->attend(b->stream, arg);
}

static double measure_kv(device_bench *b, uint32_t type)
{
    const size_t half = tn_dkv_bytes(type, page_size, kv_heads, head_dim);
    const int64_t n_pages = b->emulated ? 1 : (int64_t)(b->set_bytes / (2 * half));
    const int32_t last = (int32_t)(n_pages * page_size - 1);
    void **table = tn_alloc(&b->e->a, (size_t)n_pages, sizeof *table);
    if (!table) {
        b->status = tn_fail_nomem(b->err, (size_t)n_pages * sizeof *table, "calibration");
        return INFINITY;
    }
    for (int64_t i = 0; i < n_pages; i++)
        table[i] = (char *)b->set + (size_t)i * 2 * half;
    b->status = b->d->api->upload(b->d, b->pages, table, (size_t)n_pages * sizeof *table, b->err);
    if (!b->status) b->status = b->d->api->upload(b->d, b->pos, &last, sizeof last, b->err);
    tn_free(&b->e->a, table);
    tn_dattend a = {
        .kv = {type, page_size, kv_heads, head_dim, head_dim, b->pages, n_pages, 0, (int64_t)half},
        .q = b->x,
        .q_stride = cols,
        .out = b->y,
        .out_stride = cols,
        .n = 1,
        .n_head = kv_heads * group,
        .scale = 0.1f,
        .pos = b->pos,
        .n_splits = tn_dev_splits(b->d->api->info(b->d)->processors, kv_heads, 1, last),
        .workspace = b->workspace};
    return 2.0 * (double)half * (double)n_pages / seconds(b, queue_attend, &a, b->stream);
}

static tn_status queue_op(device_bench *b, void *arg)
{
    (void)arg;
    return b->d->ops->axpby(b->stream, b->y, 32, 1, NULL, 0, 0, NULL, 1, 32);
}

static tn_status queue_read(device_bench *b, void *arg)
{
    (void)arg;
    return b->d->ops->read(b->stream, b->set, b->set_bytes, (uint32_t *)b->pos);
}

tn_status tn_engine_device_read(tn_engine *e, double *bytes_per_second, tn_error *err)
{
    device_bench b;
    if (!e->device)
        return tn_fail(err, TN_EUNSUPPORTED, -1, "the engine was opened without a device");
    pthread_mutex_lock(&e->turn);
    acquire(&b, e, e->device, err);
    if (!b.status) b.status = b.d->api->fill_async(b.d, b.stream, b.set, 0x3c, b.set_bytes, err);
    if (!b.status) b.status = b.d->api->fill_async(b.d, b.stream, b.pos, 0, 256, err);
    const double t = seconds(&b, queue_read, NULL, b.stream);
    if (!b.status) *bytes_per_second = (double)b.set_bytes / t;
    release(&b);
    pthread_mutex_unlock(&e->turn);
    return b.status;
}

/* Matrices of random halves between 1 and 2, of either sign: products of constants draw less power,
 * and a card that its power limits is faster with them. */
static void fill_halves(device_bench *b)
{
    uint16_t *h = b->pageable;
    uint64_t z = 1;
    for (size_t i = 0; !b->status && i < b->copy_bytes / sizeof *h; i++) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        h[i] = (uint16_t)(0x3c00 | (z >> 48 & 0x83ff));
    }
    for (size_t at = 0; !b->status && at < b->set_bytes; at += b->copy_bytes)
        b->status = b->d->api->upload(b->d, (char *)b->set + at, h, b->copy_bytes, b->err);
}

/* The set holds both matrices, y the result. */
static tn_status queue_multiply(device_bench *b, void *arg)
{
    const int64_t n = *(const int64_t *)arg;
    return b->d->ops->multiply(b->stream, b->set, (char *)b->set + 2 * n * n, b->y, n, n, n);
}

tn_status tn_engine_device_multiply(tn_engine *e, double *flop_per_second, tn_error *err)
{
    device_bench b;
    if (!e->device)
        return tn_fail(err, TN_EUNSUPPORTED, -1, "the engine was opened without a device");
    pthread_mutex_lock(&e->turn);
    acquire(&b, e, e->device, err);
    int64_t n = b.emulated ? 256 : 8192;
    while ((size_t)(4 * n * n) > b.set_bytes)
        n /= 2;
    fill_halves(&b);
    const double t = seconds(&b, queue_multiply, &n, b.stream);
    if (!b.status) *flop_per_second = 2.0 * (double)n * (double)n * (double)n / t;
    release(&b);
    pthread_mutex_unlock(&e->turn);
    return b.status;
}

/* ---- copies ---------------------------------------------------------------------------------- */

static tn_status queue_copy(device_bench *b, void *arg)
{
    (void)arg;
    return b->d->api->upload_async(b->d, b->copies, b->target, b->pinned, b->copy_bytes, b->err);
}

static tn_status queue_pageable(device_bench *b, void *arg)
{
    (void)arg;
    return b->d->api->upload(b->d, b->target, b->pageable, b->copy_bytes, b->err);
}

/* A vector to the host, which answers, and back. */
static double cross(device_bench *b, uint32_t turn)
{
    const tn_device_api *api = b->d->api;
    _Atomic uint32_t *there = (_Atomic uint32_t *)&b->flags[0];
    _Atomic uint32_t *back = (_Atomic uint32_t *)&b->flags[64];
    const double start = tn_now();
    tn_status s = api->download_async(b->d, b->stream, b->pinned, b->target, vector_bytes, b->err);
    if (!s) s = api->flag_write(b->d, b->stream, &b->flags[0], turn, b->err);
    if (!s) s = api->flag_wait(b->d, b->stream, &b->flags[64], turn, b->err);
    if (!s) s = api->upload_async(b->d, b->stream, b->target, b->pinned, vector_bytes, b->err);
    /* A stream that failed never writes; it must not wait for us either. */
    while (!s && *there != turn && tn_now() - start < 2) {
    }
    *back = turn;
    const tn_status synced = api->stream_sync(b->d, b->stream, s ? NULL : b->err);
    b->status = s ? s : synced;
    return tn_now() - start;
}

static void measure_crossing(device_bench *b, tn_profile_device *p)
{
    double t[crossings];
    if (b->status) return;
    memset(b->flags, 0, 4096);
    for (int i = 0; i < crossings && !b->status; i++)
        t[i] = cross(b, (uint32_t)i + 1);
    if (b->status) return;
    tn_bench_sort(t, crossings);
    p->cross_s = t[crossings / 2];
    p->cross_p95_s = t[crossings * 95 / 100];
}

/* ---- both at once ---------------------------------------------------------------------------- */

/* What a host pass keeps of its speed while the device works, and the device of its own. */
static void beside(device_bench *b, tn_bench_host_fn host, void *host_arg, queue_fn queue,
                   void *arg, tn_stream *stream, double *host_keeps, double *device_keeps)
{
    const double alone = host(host_arg), device = seconds(b, queue, arg, stream);
    int n = (int)ceil(2 * alone / device);
    if (n > 200) n = 200;
    const double start = tn_now();
    for (int i = 0; i < n && !b->status; i++)
        b->status = queue(b, arg);
    const double together = host(host_arg);
    if (!b->status) b->status = b->d->api->stream_sync(b->d, stream, b->err);
    const double all = tn_now() - start;
    *host_keeps = fmin(1, fmax(0.05, alone / together));
    *device_keeps = fmin(1, fmax(0.05, n * device / all));
    if (*host_keeps + *device_keeps < 1) *device_keeps = 1 - *host_keeps;
}

static void describe(tn_device *device, tn_profile *p, tn_profile_device *d)
{
    const tn_device_info *info = device->api->info(device);
    tn_device_memory m;
    snprintf(d->name, sizeof d->name, "%s", info->name);
    d->memory_bytes = info->total_bytes;
    if (device->api->memory(device, &m, NULL) == TN_OK) {
        size_t room = m.free_bytes;
        if (m.limit_bytes - m.used_bytes < room) room = m.limit_bytes - m.used_bytes;
        d->reserved_bytes = info->total_bytes > room ? info->total_bytes - room : 0;
    }
    if (info->kind == TN_DEVICE_EMULATED)
        snprintf(p->label, sizeof p->label,
                 "measured; the device is emulated: its figures are those "
                 "of this processor");
    if (info->throttle > 0)
        snprintf(p->label, sizeof p->label, "measured; the device is %sthrottled to %.4g GB/s",
                 info->kind == TN_DEVICE_EMULATED ? "emulated and " : "", info->throttle * 1e-9);
}

/* One device, and with the first one the contended pairs. */
static tn_status measure_device(tn_profile *p, int at, tn_engine *e, tn_bench_host_fn host,
                                void *host_arg, tn_error *err)
{
    device_bench b;
    tn_profile_device *d = &p->device[at];
    acquire(&b, e, e->devices.at[at], err);
    if (!b.status) b.status = b.d->api->fill_async(b.d, b.stream, b.set, 0x3c, b.set_bytes, err);
    if (!b.status) b.status = b.d->api->fill_async(b.d, b.stream, b.x, 0x3c, 512 * cols * 4, err);
    if (!b.status) b.status = b.d->api->fill_async(b.d, b.stream, b.y, 0, 1 << 16, err);
    const tn_dacts all = acts(&b, 512);
    if (!b.status) b.status = b.d->ops->quantize(b.stream, &all);
    if (!b.status) describe(b.d, p, d);
    measure_matvec(&b, &d->rate);
    static const uint32_t kinds[TN_KV_KINDS] = {TN_TYPE_F16, TN_TYPE_F32, TN_TYPE_Q8_0};
    for (int i = 0; i < TN_KV_KINDS && !b.status; i++)
        d->rate.kv[i] = measure_kv(&b, kinds[i]);
    d->rate.flops[0] = b.status ? 0 : measure_flops(&b, TN_BATCH_SMALL);
    d->rate.flops[1] = b.status ? 0 : measure_flops(&b, TN_BATCH_LARGE);
    d->rate.op_s = b.status ? 0 : seconds(&b, queue_op, NULL, b.stream);
    d->pinned = (double)b.copy_bytes / seconds(&b, queue_copy, NULL, b.copies);
    d->pageable = (double)b.copy_bytes / seconds(&b, queue_pageable, NULL, b.copies);
    tn_pci_link_read(&d->link, "", b.d->api->info(b.d)->pci); /* while it is awake */
    measure_crossing(&b, d);
    tn_profile_contended *c = &p->contended;
    tn_dmatvec m = {.rows = 0};
    if (!b.status) m = matrix(&b, TN_TYPE_Q4_K);
    m.rows = 0;
    if (!b.status && at == 0)
        beside(&b, host, host_arg, queue_copy, NULL, b.copies, &c->host_beside_copy,
               &c->copy_beside_host);
    if (!b.status && at == 0)
        beside(&b, host, host_arg, queue_matvec, &m, b.stream, &c->host_beside_device,
               &c->device_beside_host);
    release(&b);
    return b.status;
}

/* A device like one before it, such as the second of two equal cards with as many lanes, is
 * measured already. */
static bool measured(tn_profile *p, int i, const tn_engine *e)
{
    tn_device *d = e->devices.at[i];
    for (int j = 0; j < i; j++) {
        tn_pci_link link;
        tn_pci_link_read(&link, "", d->api->info(d)->pci);
        if (strcmp(d->api->info(d)->name, p->device[j].name) != 0 ||
            link.width != p->device[j].link.width)
            continue;
        p->device[i] = p->device[j];
        describe(d, p, &p->device[i]);
        return true;
    }
    return false;
}

tn_status tn_calibrate_device(tn_profile *p, tn_engine *e, tn_bench_host_fn host, void *host_arg,
                              tn_error *err)
{
    const tn_device_info *info = e->device->api->info(e->device);
    char how[TN_PROFILE_TEXT];
    int n = snprintf(how, sizeof how, "measured%s",
                     info->kind == TN_DEVICE_EMULATED ? " on the emulated device" : "");
    if (info->throttle > 0)
        snprintf(how + n, sizeof how - (size_t)n,
                 ", throttled to %.4g GB/s: mat-vecs and attention take %.3g times as long",
                 info->throttle * 1e-9, info->slower);
    for (int i = 0; i < e->devices.n; i++) {
        const tn_status s =
            measured(p, i, e) ? TN_OK : measure_device(p, i, e, host, host_arg, err);
        if (s) return s;
    }
    p->n_devices = e->devices.n;
    tn_bench_source(p, "devices.memory_bytes", "the driver; what is not free is reserved");
    tn_bench_source(p, "devices.pcie", "the kernel's word, right after copies");
    tn_bench_source(p, "devices", how);
    tn_bench_source(p, "contended", how);
    return TN_OK;
}
