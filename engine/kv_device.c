/* The device's part of a KV cache: pages in device memory, and their table there too. */
#include "kv.h"

static size_t n_there(const tn_kv *kv, int32_t before)
{
    size_t n = 0;
    for (int32_t l = 0; l < before; l++)
        n += kv->m->on_device.layers[l].attends;
    return n;
}

tn_status tn_kv_device_init(tn_kv *kv, int64_t cap, tn_error *err)
{
    tn_kv_device *d = &kv->dev;
    tn_device *device = kv->m->on_device.device;
    const tn_device_shape shape = {.head_dim_k = kv->head_dim_k, .head_dim_v = kv->head_dim_v};
    if (!device->ops->can_do(TN_DOP_ATTEND, kv->type, shape))
        return tn_fail(err, TN_EUNSUPPORTED, -1,
                       "%s: the device has no attention for heads of %d and %d with a cache in %s; "
                       "place attn_k and attn_v on the host",
                       kv->m->name, kv->head_dim_k, kv->head_dim_v, tn_type_get(kv->type)->name);
    d->device = device;
    d->k_bytes = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_k);
    d->v_bytes = tn_dkv_bytes(kv->type, kv->page_size, kv->n_head_kv, kv->head_dim_v);
    d->page_bytes = n_there(kv, kv->n_layers) * (d->k_bytes + d->v_bytes);
    d->cap_pages = (size_t)((cap + kv->page_size - 1) / kv->page_size);
    d->pages = tn_alloc(kv->a, d->cap_pages, sizeof *d->pages);
    if (!d->pages) return tn_fail_nomem(err, d->cap_pages * sizeof *d->pages, "the KV page table");
    return device->api->alloc(device, d->cap_pages * sizeof *d->pages, "the KV page table",
                              &d->table, err);
}

void tn_kv_device_free(tn_kv *kv)
{
    tn_kv_device *d = &kv->dev;
    if (!d->device) return;
    for (size_t p = 0; p < d->n_pages; p++)
        d->device->api->free(d->device, d->pages[p]);
    d->device->api->free(d->device, d->table);
    tn_free(kv->a, d->pages);
}

tn_status tn_kv_device_reserve(tn_kv *kv, int64_t n, tn_error *err)
{
    tn_kv_device *d = &kv->dev;
    const tn_device_api *api = d->device->api;
    while ((int64_t)d->n_pages * kv->page_size < n) {
        void *page;
        tn_status s = api->alloc(d->device, d->page_bytes, "a KV page", &page, err);
        if (s) return s;
        s = api->upload(d->device, (void **)d->table + d->n_pages, &page, sizeof page, err);
        if (s) {
            api->free(d->device, page);
            return s;
        }
        d->pages[d->n_pages++] = page;
    }
    return TN_OK;
}

void tn_kv_trim(tn_kv *kv)
{
    tn_kv_device *d = &kv->dev;
    const int64_t keep = (tn_kv_live(kv) + kv->page_size - 1) / kv->page_size;
    while (d->device && (int64_t)d->n_pages > keep)
        d->device->api->free(d->device, d->pages[--d->n_pages]);
}

tn_dkv tn_kv_device_layer(const tn_kv *kv, int32_t layer)
{
    const tn_kv_device *d = &kv->dev;
    const int64_t at = (int64_t)(n_there(kv, layer) * (d->k_bytes + d->v_bytes));
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
