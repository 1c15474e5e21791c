#include "kv.h"

#include <string.h>

/* Of one head at one position; dim is a multiple of the type's block. */
static size_t row_bytes(uint32_t type, int32_t dim)
{
    const tn_type_info *t = tn_type_get(type);
    return (size_t)dim / t->block * t->bytes;
}

size_t tn_kv_position_bytes(const tn_hparams *hp, uint32_t type)
{
    return (size_t)hp->n_layers * (size_t)hp->n_head_kv *
           (row_bytes(type, hp->head_dim_k) + row_bytes(type, hp->head_dim_v));
}

int32_t tn_kv_default_length(uint64_t memory, uint64_t position_bytes, int32_t trained)
{
    enum { least = 4096 };
    const uint64_t fits = memory / position_bytes;
    if (!memory || trained <= least || fits >= (uint64_t)trained) return trained;
    return fits > least ? (int32_t)fits : least;
}

tn_status tn_kv_check(const tn_model *m, uint32_t type, tn_error *err)
{
    const tn_type_info *t = tn_type_get(type);
    const int32_t block = (int32_t)t->block, k = m->hp.head_dim_k, v = m->hp.head_dim_v;
    if (k % block == 0 && v % block == 0) return TN_OK;
    return tn_fail(err, TN_EUNSUPPORTED, -1,
                   "%s: a KV cache in %s needs head dims that are multiples of %d, but they are %d "
                   "for keys and %d for values; use F16",
                   m->name, t->name, block, k, v);
}

/* Layers whose cache is here. */
static size_t n_here(const tn_kv *kv)
{
    size_t n = 0;
    for (int32_t l = 0; l < kv->n_layers; l++)
        n += !kv->m->on_device.layers[l].attends;
    return n;
}

tn_status tn_kv_init(tn_kv *kv, const tn_model *m, uint32_t type, int32_t page_size, int64_t cap,
                     tn_error *err)
{
    const tn_hparams *hp = &m->hp;
    *kv = (tn_kv){.a = m->a, .m = m, .type = type, .page_size = page_size, .n_layers = hp->n_layers,
                  .n_head_kv = hp->n_head_kv, .head_dim_k = hp->head_dim_k,
                  .head_dim_v = hp->head_dim_v, .short_of = -1};
    const size_t rows = (size_t)hp->n_head_kv * (size_t)page_size;
    kv->k_bytes = rows * row_bytes(type, hp->head_dim_k);
    kv->v_bytes = rows * row_bytes(type, hp->head_dim_v);
    return n_here(kv) < (size_t)hp->n_layers ? tn_kv_device_init(kv, cap, err) : TN_OK;
}

void tn_kv_free(tn_kv *kv)
{
    tn_kv_device_free(kv);
    for (size_t p = 0; p < kv->n_pages; p++) tn_free(kv->a, kv->pages[p]);
    tn_free(kv->a, kv->pages);
    tn_free(kv->a, kv->k);
    tn_free(kv->a, kv->v);
}

/* Room for n pages in the tables. The old tables stay valid on failure. */
static tn_status grow_tables(tn_kv *kv, size_t n, tn_error *err)
{
    if (n <= kv->cap_pages) return TN_OK;
    const size_t cap = n > 2 * kv->cap_pages ? n : 2 * kv->cap_pages;
    const size_t n_layers = (size_t)kv->n_layers;
    void **pages = tn_alloc(kv->a, cap, sizeof *pages);
    void **k = tn_alloc(kv->a, cap * n_layers, sizeof *k);
    void **v = tn_alloc(kv->a, cap * n_layers, sizeof *v);
    if (!pages || !k || !v) {
        tn_free(kv->a, pages);
        tn_free(kv->a, k);
        tn_free(kv->a, v);
        return tn_fail_nomem(err, cap * n_layers * 2 * sizeof *k, "the KV page table");
    }
    for (size_t l = 0; l < n_layers && kv->n_pages; l++) {
        memcpy(k + l * cap, kv->k + l * kv->cap_pages, kv->n_pages * sizeof *k);
        memcpy(v + l * cap, kv->v + l * kv->cap_pages, kv->n_pages * sizeof *v);
    }
    if (kv->n_pages) memcpy(pages, kv->pages, kv->n_pages * sizeof *pages);
    tn_free(kv->a, kv->pages);
    tn_free(kv->a, kv->k);
    tn_free(kv->a, kv->v);
    kv->pages = pages;
    kv->k = k;
    kv->v = v;
    kv->cap_pages = cap;
    return TN_OK;
}

static tn_status add_page(tn_kv *kv, tn_error *err)
{
    const size_t layer_bytes = kv->k_bytes + kv->v_bytes, p = kv->n_pages;
    /* Not zeroed: after a rewind, too, there is something past the last position. */
    char *page = tn_alloc_raw(kv->a, n_here(kv), layer_bytes);
    if (!page) return tn_fail_nomem(err, layer_bytes * n_here(kv), "a KV page");
    kv->pages[kv->n_pages++] = page;
    for (size_t l = 0; l < (size_t)kv->n_layers; l++) {
        if (kv->m->on_device.layers[l].attends) continue;
        kv->k[l * kv->cap_pages + p] = page;
        kv->v[l * kv->cap_pages + p] = page + kv->k_bytes;
        page += layer_bytes;
    }
    return TN_OK;
}

tn_status tn_kv_reserve(tn_kv *kv, int64_t n, tn_error *err)
{
    tn_status s = grow_tables(kv, (size_t)((n + kv->page_size - 1) / kv->page_size), err);
    while (!s && (int64_t)kv->n_pages * kv->page_size < n) s = add_page(kv, err);
    return s ? s : tn_kv_device_reserve(kv, n, err);
}

tn_kv_view tn_kv_layer(const tn_kv *kv, int32_t layer)
{
    return (tn_kv_view){.type = kv->type, .page_size = kv->page_size, .n_head_kv = kv->n_head_kv,
                        .head_dim_k = kv->head_dim_k, .head_dim_v = kv->head_dim_v,
                        .k = kv->k + (size_t)layer * kv->cap_pages,
                        .v = kv->v + (size_t)layer * kv->cap_pages};
}

/* Scatters one position's heads into a page: x[n_head_kv][dim] -> page[head][slot][dim]. */
static void put(const tn_kv *kv, const tn_kernels *kern, void *page, int32_t slot, int32_t dim,
                const float *x)
{
    const size_t bytes = row_bytes(kv->type, dim);
    for (int32_t h = 0; h < kv->n_head_kv; h++, x += dim) {
        void *to = (char *)page + ((size_t)h * (size_t)kv->page_size + (size_t)slot) * bytes;
        if (kv->type == TN_TYPE_F32) memcpy(to, x, bytes);
        else if (kv->type == TN_TYPE_F16) kern->to_f16(to, x, dim);
        else kern->to_q8_0(to, x, dim);
    }
}

void tn_kv_put(const tn_kv *kv, const tn_kernels *kern, int32_t layer, int64_t pos, const float *k,
               const float *v)
{
    const tn_kv_view view = tn_kv_layer(kv, layer);
    const int64_t page = pos / kv->page_size;
    const int32_t slot = (int32_t)(pos % kv->page_size);
    put(kv, kern, view.k[page], slot, kv->head_dim_k, k);
    put(kv, kern, view.v[page], slot, kv->head_dim_v, v);
}

uint64_t tn_kv_bytes(const tn_kv *kv)
{
    return (uint64_t)kv->n_pages * n_here(kv) * (kv->k_bytes + kv->v_bytes) +
           tn_kv_device_bytes(kv);
}
