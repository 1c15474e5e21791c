#include "kv.h"

#include "../kernels/kv_page.h"

#include <string.h>

size_t tn_kv_layer_position_bytes(const tn_hparams *hp, uint32_t type)
{
    const size_t head =
        tn_kv_row_bytes(type, hp->head_dim_k) + tn_kv_row_bytes(type, hp->head_dim_v);
    return (size_t)hp->n_head_kv * head;
}

size_t tn_kv_position_bytes(const tn_model *m, uint32_t type, tn_kv_layers kind)
{
    size_t n = 0;
    for (int32_t l = 0; l < m->hp.n_layers; l++)
        n += m->layers[l].local == (kind == TN_KV_LOCAL);
    return n * tn_kv_layer_position_bytes(&m->hp, type);
}

int32_t tn_kv_default_length(uint64_t memory, uint64_t position_bytes, uint64_t ring_bytes,
                             int32_t trained)
{
    enum { least = 4096 };
    const uint64_t left = memory > ring_bytes ? memory - ring_bytes : 0;
    if (!memory || trained <= least || left / (uint64_t)trained >= position_bytes) return trained;
    const uint64_t fits = left / position_bytes;
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

/* Layers of a kind whose cache is here. */
static size_t n_here(const tn_kv *kv, tn_kv_layers kind)
{
    size_t n = 0;
    for (int32_t l = 0; l < kv->n_layers; l++)
        n += !kv->m->on_device.layers[l].attends && tn_kv_kind_of(kv, l) == kind;
    return n;
}

/* Pages of a kind that are allocated at once, for up to cap positions: attention reads them from
 * end to end, and the allocator has huge pages for what is as large as some of those. */
static size_t pages_at_once(const tn_kv *kv, tn_kv_layers kind, int64_t cap)
{
    enum { large = 64 << 10, block = 16 << 20 };
    const size_t bytes = n_here(kv, kind) * (kv->k_bytes + kv->v_bytes);
    const size_t all = tn_kv_held(kv, kind, (size_t)((cap + kv->page_size - 1) / kv->page_size));
    const size_t n = bytes < large ? 1 : (block + bytes - 1) / bytes;
    return all > 0 && n > all ? all : n;
}

tn_status tn_kv_init(tn_kv *kv, const tn_model *m, uint32_t type, int32_t page_size, int64_t cap,
                     int32_t n_batch, tn_error *err)
{
    const tn_hparams *hp = &m->hp;
    *kv = (tn_kv){.a = m->a, .m = m, .type = type, .page_size = page_size, .n_layers = hp->n_layers,
                  .n_head_kv = hp->n_head_kv, .head_dim_k = hp->head_dim_k,
                  .head_dim_v = hp->head_dim_v, .ring = SIZE_MAX, .short_of = -1};
    const size_t rows = (size_t)hp->n_head_kv * (size_t)page_size;
    kv->k_bytes = rows * tn_kv_row_bytes(type, hp->head_dim_k);
    kv->v_bytes = rows * tn_kv_row_bytes(type, hp->head_dim_v);
    if (tn_kv_position_bytes(m, type, TN_KV_LOCAL))
        kv->ring = (size_t)tn_kv_ring(hp->n_swa, n_batch, page_size);
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++)
        kv->at_once[kind] = pages_at_once(kv, kind, cap);
    const size_t here = n_here(kv, TN_KV_GLOBAL) + n_here(kv, TN_KV_LOCAL);
    return here < (size_t)hp->n_layers ? tn_kv_device_init(kv, cap, err) : TN_OK;
}

void tn_kv_free(tn_kv *kv)
{
    tn_kv_device_free(kv);
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++) {
        const size_t n = kv->pages[kind] ? tn_kv_held(kv, kind, kv->n_pages) : 0;
        for (size_t p = 0; p < n; p += kv->at_once[kind])
            tn_free(kv->a, kv->pages[kind][p]);
        tn_free(kv->a, kv->pages[kind]);
    }
    tn_free(kv->a, kv->k);
    tn_free(kv->a, kv->v);
}

void tn_kv_put_next(tn_kv *kv, int64_t pos, int64_t n)
{
    if (pos + n > kv->written) kv->written = pos + n;
}

bool tn_kv_is_whole(const tn_kv *kv, int64_t n)
{
    const int64_t pages = (kv->written + kv->page_size - 1) / kv->page_size;
    const int64_t gone = pages - (int64_t)tn_kv_held(kv, TN_KV_LOCAL, (size_t)pages);
    const int64_t first = n < kv->m->hp.n_swa ? 0 : n + 1 - kv->m->hp.n_swa; /* that n attends to */
    return kv->written >= n && gone * kv->page_size <= first;
}

/* Room for n pages in the tables. The old tables stay valid on failure. */
static tn_status grow_tables(tn_kv *kv, size_t n, tn_error *err)
{
    if (n <= kv->cap_pages) return TN_OK;
    const size_t cap = n > 2 * kv->cap_pages ? n : 2 * kv->cap_pages;
    const size_t n_layers = (size_t)kv->n_layers;
    void **pages[TN_KV_LAYERS] = {tn_alloc(kv->a, cap, sizeof *pages[0]),
                                  tn_alloc(kv->a, cap, sizeof *pages[0])};
    void **k = tn_alloc(kv->a, cap * n_layers, sizeof *k);
    void **v = tn_alloc(kv->a, cap * n_layers, sizeof *v);
    if (!pages[0] || !pages[1] || !k || !v) {
        tn_free(kv->a, pages[0]);
        tn_free(kv->a, pages[1]);
        tn_free(kv->a, k);
        tn_free(kv->a, v);
        return tn_fail_nomem(err, cap * n_layers * 2 * sizeof *k, "the KV page table");
    }
    for (size_t l = 0; l < n_layers && kv->n_pages; l++) {
        memcpy(k + l * cap, kv->k + l * kv->cap_pages, kv->n_pages * sizeof *k);
        memcpy(v + l * cap, kv->v + l * kv->cap_pages, kv->n_pages * sizeof *v);
    }
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++) {
        const size_t held = tn_kv_held(kv, kind, kv->n_pages);
        if (held) memcpy(pages[kind], kv->pages[kind], held * sizeof *pages[kind]);
        tn_free(kv->a, kv->pages[kind]);
        kv->pages[kind] = pages[kind];
    }
    tn_free(kv->a, kv->k);
    tn_free(kv->a, kv->v);
    kv->k = k;
    kv->v = v;
    kv->cap_pages = cap;
    return TN_OK;
}

/* Page p of positions of the layers of a kind is at `page`. */
static void set_page(tn_kv *kv, tn_kv_layers kind, size_t p, char *page)
{
    for (int32_t l = 0; l < kv->n_layers; l++) {
        if (kv->m->on_device.layers[l].attends || tn_kv_kind_of(kv, l) != kind) continue;
        kv->k[(size_t)l * kv->cap_pages + p] = page;
        kv->v[(size_t)l * kv->cap_pages + p] = page + kv->k_bytes;
        page += kv->k_bytes + kv->v_bytes;
    }
}

/* Page p of a kind, NULL if memory is short. Not zeroed: after a rewind, too, there is something
 * past the last position. */
static void *new_page(const tn_kv *kv, tn_kv_layers kind, size_t p)
{
    const size_t bytes = n_here(kv, kind) * (kv->k_bytes + kv->v_bytes), n = kv->at_once[kind];
    if (p % n) return (char *)kv->pages[kind][p - 1] + bytes;
    return tn_alloc_raw(kv->a, n, bytes);
}

static tn_status add_page(tn_kv *kv, tn_error *err)
{
    const size_t layer_bytes = kv->k_bytes + kv->v_bytes, p = kv->n_pages;
    const bool goes_round = p >= kv->ring;
    void *page[TN_KV_LAYERS] = {NULL, goes_round ? kv->pages[TN_KV_LOCAL][p % kv->ring] : NULL};
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++) {
        if (page[kind] || !n_here(kv, kind)) continue;
        page[kind] = new_page(kv, kind, p);
        if (page[kind]) continue;
        if (kind == TN_KV_LOCAL && p % kv->at_once[TN_KV_GLOBAL] == 0)
            tn_free(kv->a, page[TN_KV_GLOBAL]);
        return tn_fail_nomem(err, layer_bytes * n_here(kv, kind) * kv->at_once[kind], "KV pages");
    }
    kv->pages[TN_KV_GLOBAL][p] = page[TN_KV_GLOBAL];
    if (!goes_round) kv->pages[TN_KV_LOCAL][p] = page[TN_KV_LOCAL];
    for (tn_kv_layers kind = 0; kind < TN_KV_LAYERS; kind++)
        if (page[kind]) set_page(kv, kind, p, page[kind]);
    kv->n_pages++;
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

/* n elements of size bytes each, at x, to places `stride` bytes apart. */
static void scatter(char *to, size_t stride, const void *x, int32_t n, size_t size)
{
    const char *from = x;
    for (int32_t i = 0; i < n; i++)
        memcpy(to + (size_t)i * stride, from + (size_t)i * size, size);
}

/* A Q8_0 block: elements d .. d + 31 of position i of a unit. */
static void put_block(char *unit, bool value, int32_t dim, int32_t i, int32_t d,
                      const tn_block_q8_0 *b)
{
    memcpy(unit + tn_kv_scale_at(i, d), &b->d, sizeof b->d);
    if (value) {
        scatter(unit + tn_kv_v_at(TN_TYPE_Q8_0, dim, i, d), 4, b->qs, TN_QK, 1);
        return;
    }
    uint8_t q[TN_QK];
    for (int j = 0; j < TN_QK; j++)
        q[j] = (uint8_t)(b->qs[j] + TN_KV_K_OFFSET);
    scatter(unit + tn_kv_k_at(TN_TYPE_Q8_0, dim, i, d), 64, q, TN_QK / 4, 4);
}

/* Row x[dim] becomes position i of a unit. */
static void put_row(const tn_kv *kv, const tn_kernels *kern, char *unit, bool value, int32_t dim,
                    int32_t i, const float *x)
{
    enum { piece = 128 };
    for (int32_t d = 0, n; d < dim; d += n) {
        n = dim - d < piece ? dim - d : piece;
        const size_t at = (value ? tn_kv_v_at : tn_kv_k_at)(kv->type, dim, i, d);
        if (kv->type == TN_TYPE_F32) {
            scatter(unit + at, value ? 4 : 4 * TN_KV_UNIT, x + d, n, 4);
        } else if (kv->type == TN_TYPE_F16) {
            uint16_t half[piece];
            kern->to_f16(half, x + d, n);
            scatter(unit + at, value ? 2 : 2 * TN_KV_UNIT, half, n, 2);
        } else {
            tn_block_q8_0 block[piece / TN_QK];
            kern->to_q8_0(block, x + d, n);
            for (int32_t b = 0; b < n; b += TN_QK)
                put_block(unit, value, dim, i, d + b, &block[b / TN_QK]);
        }
    }
}

void tn_kv_put(const tn_kv *kv, const tn_kernels *kern, int32_t layer, int64_t pos, const float *k,
               const float *v)
{
    const tn_kv_view view = tn_kv_layer(kv, layer);
    const int64_t page = pos / kv->page_size, slot = pos % kv->page_size;
    const int32_t i = (int32_t)(pos % TN_KV_UNIT), dim_k = kv->head_dim_k, dim_v = kv->head_dim_v;
    for (int32_t h = 0; h < kv->n_head_kv; h++) {
        char *to_k = (char *)view.k[page] + tn_kv_unit_at(&view, dim_k, h, slot);
        char *to_v = (char *)view.v[page] + tn_kv_unit_at(&view, dim_v, h, slot);
        put_row(kv, kern, to_k, false, dim_k, i, k + (int64_t)h * dim_k);
        put_row(kv, kern, to_v, true, dim_v, i, v + (int64_t)h * dim_v);
    }
}

uint64_t tn_kv_bytes(const tn_kv *kv)
{
    const size_t pages = tn_kv_held(kv, TN_KV_GLOBAL, kv->n_pages) * n_here(kv, TN_KV_GLOBAL) +
                         tn_kv_held(kv, TN_KV_LOCAL, kv->n_pages) * n_here(kv, TN_KV_LOCAL);
    return (uint64_t)pages * (kv->k_bytes + kv->v_bytes) + tn_kv_device_bytes(kv);
}
