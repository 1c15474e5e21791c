/* The devices' parts of a KV cache: pages in device memory, and their table there too. */
#include "kv.h"

/* Layers [first, end) whose cache is on a device. */
static size_t n_there(const tn_kv *kv, int32_t first, int32_t end)
{
    size_t n = 0;
    for (int32_t l = first; l < end; l++)
        n += kv->m->on_device.layers[l].attends;
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

static tn_status init_segment(tn_kv *kv, int32_t segment, int64_t cap, tn_error *err)
{
    tn_kv_device *d = &kv->dev[segment];
    const tn_segment *y = &kv->m->on_device.segment[segment];
    const size_t layers = n_there(kv, y->first, y->end);
    if (!layers) return TN_OK;
    const tn_status s = check(kv, y->device, err);
    if (s) return s;
    d->device = y->device;
    d->k_bytes = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_k);
    d->v_bytes = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_v);
    d->page_bytes = layers * (d->k_bytes + d->v_bytes);
    d->cap_pages = (size_t)((cap + kv->page_size - 1) / kv->page_size);
    d->pages = tn_alloc(kv->a, d->cap_pages, sizeof *d->pages);
    if (!d->pages) return tn_fail_nomem(err, d->cap_pages * sizeof *d->pages, "the KV page table");
    return d->device->api->alloc(d->device, d->cap_pages * sizeof *d->pages, "the KV page table",
                                 &d->table, err);
}

tn_status tn_kv_device_init(tn_kv *kv, int64_t cap, tn_error *err)
{
    tn_status s = TN_OK;
    for (int32_t i = 0; i < kv->m->on_device.n_segments && !s; i++)
        s = init_segment(kv, i, cap, err);
    return s;
}

void tn_kv_device_free(tn_kv *kv)
{
    for (int32_t i = 0; i < TN_DEVICES; i++) {
        tn_kv_device *d = &kv->dev[i];
        if (!d->device) continue;
        for (size_t p = 0; p < d->n_pages; p++)
            d->device->api->free(d->device, d->pages[p]);
        d->device->api->free(d->device, d->table);
        tn_free(kv->a, d->pages);
    }
}

static tn_status add_page(tn_kv_device *d, tn_error *err)
{
    const tn_device_api *api = d->device->api;
    void *page;
    tn_status s = api->alloc(d->device, d->page_bytes, "a KV page", &page, err);
    if (s) return s;
    s = api->upload(d->device, (void **)d->table + d->n_pages, &page, sizeof page, err);
    if (s)
        api->free(d->device, page);
    else
        d->pages[d->n_pages++] = page;
    return s;
}

tn_status tn_kv_device_reserve(tn_kv *kv, int64_t n, tn_error *err)
{
    tn_status s = TN_OK;
    for (int32_t i = 0; i < kv->m->on_device.n_segments && !s; i++) {
        tn_kv_device *d = &kv->dev[i];
        while (d->device && (int64_t)d->n_pages * kv->page_size < n && !s)
            s = add_page(d, err);
        if (s) kv->short_of = i;
    }
    return s;
}

uint64_t tn_kv_device_bytes(const tn_kv *kv)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < TN_DEVICES; i++)
        bytes += (uint64_t)kv->dev[i].n_pages * kv->dev[i].page_bytes;
    return bytes;
}

void tn_kv_trim(tn_kv *kv)
{
    const int64_t keep = (tn_kv_live(kv) + kv->page_size - 1) / kv->page_size;
    for (int32_t i = 0; i < TN_DEVICES; i++) {
        tn_kv_device *d = &kv->dev[i];
        while (d->device && (int64_t)d->n_pages > keep)
            d->device->api->free(d->device, d->pages[--d->n_pages]);
    }
}

tn_dkv tn_kv_device_layer(const tn_kv *kv, int32_t layer)
{
    const int32_t segment = tn_segment_of(&kv->m->on_device, layer);
    const tn_kv_device *d = &kv->dev[segment];
    const int32_t first = kv->m->on_device.segment[segment].first;
    const int64_t at = (int64_t)(n_there(kv, first, layer) * (d->k_bytes + d->v_bytes));
    return (tn_dkv){.type = kv->type,
                    .page_size = kv->page_size,
                    .n_head_kv = kv->n_head_kv,
                    .head_dim_k = kv->head_dim_k,
                    .head_dim_v = kv->head_dim_v,
                    .pages = d->table,
                    .pages_stride = (int64_t)d->cap_pages,
                    .k_at = at,
                    .v_at = at + (int64_t)d->k_bytes};
}
