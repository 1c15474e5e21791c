/* The devices' parts of a KV cache: pages in device memory, and their table there too. */
#include "kv.h"

/* Layers [first, end) of a kind whose cache is on a device. */
static size_t n_there(const tn_kv *kv, tn_kv_layers kind, int32_t first, int32_t end)
{
    size_t n = 0;
    for (int32_t l = first; l < end; l++)
        n += kv->m->on_device.layers[l].attends && tn_kv_kind_of(kv, l) == kind;
    return n;
}

static tn_status check(const tn_kv *kv, const tn_device *device, tn_error *err)
{
    const tn_device_shape shape = {.head_dim_k = kv->head_dim_k, .head_dim_v = kv->head_dim_v};
    if (device->ops->can_do(TN_DOP_ATTEND, kv->type, shape)) return TN_OK;
    return tn_fail(err, TN_EUNSUPPORTED, -1,
                   "%s: the device has no attention for heads of %d and %d with a cache in %s; "
                   "place attn_k and attn_v on the host",
                   kv->m->name, kv->head_dim_k, kv->head_dim_v, tn_type_get(kv->type)->name);
}

static tn_status init_tables(tn_kv *kv, tn_kv_device *d, tn_error *err)
{
    tn_status s = TN_OK;
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS && !s; kind++) {
        if (!d->page_bytes[kind]) continue;
        const size_t bytes = d->cap_pages * sizeof(void *);
        d->pages[kind] = tn_alloc(kv->a, tn_kv_held(kv, kind, d->cap_pages), sizeof(void *));
        if (!d->pages[kind]) return tn_fail_nomem(err, bytes, "the KV page table");
        s = d->device->api->alloc(d->device, bytes, "the KV page table", &d->table[kind], err);
    }
    return s;
}

static tn_status init_segment(tn_kv *kv, int32_t segment, int64_t cap, tn_error *err)
{
    tn_kv_device *d = &kv->dev[segment];
    const tn_segment *y = &kv->m->on_device.segment[segment];
    const size_t layers[TN_KV_LAYERS] = {n_there(kv, TN_KV_GLOBAL, y->first, y->end),
                                         n_there(kv, TN_KV_LOCAL, y->first, y->end)};
    if (!layers[TN_KV_GLOBAL] && !layers[TN_KV_LOCAL]) return TN_OK;
    const tn_status s = check(kv, y->device, err);
    if (s) return s;
    d->device = y->device;
    d->k_bytes = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_k);
    d->v_bytes = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_v);
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++)
        d->page_bytes[kind] = layers[kind] * (d->k_bytes + d->v_bytes);
    d->cap_pages = (size_t)((cap + kv->page_size - 1) / kv->page_size);
    return init_tables(kv, d, err);
}

tn_status tn_kv_device_init(tn_kv *kv, int64_t cap, tn_error *err)
{
    tn_status s = TN_OK;
    for (int32_t i = 0; i < kv->m->on_device.n_segments && !s; i++)
        s = init_segment(kv, i, cap, err);
    return s;
}

/* The pages that n_pages of positions have beyond those of `keep`. */
static void drop_pages(const tn_kv *kv, tn_kv_device *d, size_t keep)
{
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++) {
        const size_t end = d->pages[kind] ? tn_kv_held(kv, kind, d->n_pages) : 0;
        for (size_t p = tn_kv_held(kv, kind, keep); p < end; p++)
            d->device->api->free(d->device, d->pages[kind][p]);
    }
    d->n_pages = keep;
}

void tn_kv_device_free(tn_kv *kv)
{
    for (int32_t i = 0; i < TN_DEVICES; i++) {
        tn_kv_device *d = &kv->dev[i];
        if (!d->device) continue;
        drop_pages(kv, d, 0);
        for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++) {
            d->device->api->free(d->device, d->table[kind]);
            tn_free(kv->a, d->pages[kind]);
        }
    }
}

/* The next page of positions in layers of a kind: a new one, or the one that
 * has left the window. */
static tn_status add_page_of(const tn_kv *kv, tn_kv_device *d, tn_kv_layers kind, bool goes_round,
                             tn_error *err)
{
    const tn_device_api *api = d->device->api;
    const size_t p = d->n_pages;
    void **page = &d->pages[kind][goes_round ? p % kv->ring : p];
    tn_status s = TN_OK;
    if (!goes_round) s = api->alloc(d->device, d->page_bytes[kind], "a KV page", page, err);
    if (s) return s;
    s = api->upload(d->device, (void **)d->table[kind] + p, page, sizeof *page, err);
    if (s && !goes_round) api->free(d->device, *page);
    return s;
}

static tn_status add_page(const tn_kv *kv, tn_kv_device *d, tn_error *err)
{
    const bool local = d->page_bytes[TN_KV_LOCAL] > 0, goes_round = d->n_pages >= kv->ring;
    tn_status s = TN_OK;
    if (local) s = add_page_of(kv, d, TN_KV_LOCAL, goes_round, err);
    if (s) return s;
    if (d->page_bytes[TN_KV_GLOBAL]) s = add_page_of(kv, d, TN_KV_GLOBAL, false, err);
    if (s && local && !goes_round)
        d->device->api->free(d->device, d->pages[TN_KV_LOCAL][d->n_pages]);
    d->n_pages += !s;
    return s;
}

tn_status tn_kv_device_reserve(tn_kv *kv, int64_t n, tn_error *err)
{
    tn_status s = TN_OK;
    for (int32_t i = 0; i < kv->m->on_device.n_segments && !s; i++) {
        tn_kv_device *d = &kv->dev[i];
        while (d->device && (int64_t)d->n_pages * kv->page_size < n && !s)
            s = add_page(kv, d, err);
        if (s) kv->short_of = i;
    }
    return s;
}

uint64_t tn_kv_device_pages_bytes(const tn_kv *kv, int32_t segment, size_t n)
{
    const tn_kv_device *d = &kv->dev[segment];
    return (uint64_t)n * d->page_bytes[TN_KV_GLOBAL] +
           (uint64_t)tn_kv_held(kv, TN_KV_LOCAL, n) * d->page_bytes[TN_KV_LOCAL];
}

uint64_t tn_kv_device_bytes(const tn_kv *kv)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < TN_DEVICES; i++)
        bytes += tn_kv_device_pages_bytes(kv, i, kv->dev[i].n_pages);
    return bytes;
}

void tn_kv_trim(tn_kv *kv)
{
    const size_t keep = (size_t)((tn_kv_live(kv) + kv->page_size - 1) / kv->page_size);
    for (int32_t i = 0; i < TN_DEVICES; i++) {
        tn_kv_device *d = &kv->dev[i];
        if (d->device && d->n_pages > keep) drop_pages(kv, d, keep);
    }
}

tn_dkv tn_kv_device_layer(const tn_kv *kv, int32_t layer)
{
    const int32_t segment = tn_segment_of(&kv->m->on_device, layer);
    const tn_kv_device *d = &kv->dev[segment];
    const int32_t first = kv->m->on_device.segment[segment].first;
    const tn_kv_layers kind = tn_kv_kind_of(kv, layer);
    const int64_t at = (int64_t)(n_there(kv, kind, first, layer) * (d->k_bytes + d->v_bytes));
    return (tn_dkv){.type = kv->type,
                    .page_size = kv->page_size,
                    .n_head_kv = kv->n_head_kv,
                    .head_dim_k = kv->head_dim_k,
                    .head_dim_v = kv->head_dim_v,
                    .pages = d->table[kind],
                    .pages_stride = (int64_t)d->cap_pages,
                    .k_at = at,
                    .v_at = at + (int64_t)d->k_bytes};
}
