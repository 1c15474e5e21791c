/* Internal: the KV cache of one sequence, in pages behind a page table.
 * A page holds page_size positions of every layer; it is allocated when a position in it is first
 * needed and kept until the cache is freed. Layers that attend on the device have their part of
 * every page there. */
#ifndef TN_KV_H
#define TN_KV_H

#include "model.h"

typedef struct tn_kv_device {
    tn_device *device;                   /* of one segment; NULL: no layer's cache is there */
    size_t k_bytes, v_bytes, page_bytes; /* of one layer's page; of a page of all layers there */
    void **pages;                        /* [n_pages] device memory, one allocation each */
    void *table;                         /* [cap_pages] the same addresses, in device memory */
    size_t n_pages, cap_pages;
} tn_kv_device;

typedef struct tn_kv {
    const tn_allocator *a;
    const tn_model *m;
    uint32_t type; /* TN_TYPE_F16, TN_TYPE_F32 or TN_TYPE_Q8_0 */
    int32_t page_size, n_layers, n_head_kv, head_dim_k, head_dim_v;
    size_t k_bytes, v_bytes; /* of one layer's page */
    void **pages;            /* [n_pages] one allocation each, all layers */
    size_t n_pages, cap_pages;
    void **k, **v;           /* [n_layers][cap_pages] views into the pages; NULL for layers elsewhere */
    tn_kv_device dev[TN_DEVICES]; /* of each segment */
    int32_t short_of;        /* segment whose device last had too little memory, -1: none yet */
    _Atomic int64_t live;    /* positions in use, see tn_kv_live */
} tn_kv;

/* An empty cache for up to cap positions of heads that tn_kv_check allows. On failure what there is
 * is for tn_kv_free. */
tn_status tn_kv_init(tn_kv *kv, const tn_model *m, uint32_t type, int32_t page_size, int64_t cap,
                     tn_error *err);
void tn_kv_free(tn_kv *kv); /* no stream may be using it */
/* Positions in use, or about to be: what the boundary keeps device memory for. Any thread. */
static inline int64_t tn_kv_live(const tn_kv *kv)
{
    return kv->live;
}
/* Gives back the devices' pages past the live positions. */
void tn_kv_trim(tn_kv *kv);
/* Makes positions [0, n) writable. On failure the pages there already are kept. */
tn_status tn_kv_reserve(tn_kv *kv, int64_t n, tn_error *err);
tn_kv_view tn_kv_layer(const tn_kv *kv, int32_t layer);
/* Writes one position of a layer: k[n_head_kv * head_dim_k], v[n_head_kv * head_dim_v]. */
void tn_kv_put(const tn_kv *kv, const tn_kernels *kern, int32_t layer, int64_t pos, const float *k,
               const float *v);
uint64_t tn_kv_bytes(const tn_kv *kv);
/* kv_device.c. The devices' part, for tn_kv_init, free, reserve and bytes. */
tn_status tn_kv_device_init(tn_kv *kv, int64_t cap, tn_error *err);
void tn_kv_device_free(tn_kv *kv);
tn_status tn_kv_device_reserve(tn_kv *kv, int64_t n, tn_error *err);
uint64_t tn_kv_device_bytes(const tn_kv *kv);
/* A layer that attends on the device. */
tn_dkv tn_kv_device_layer(const tn_kv *kv, int32_t layer);

/* Positions of a cache that nobody gave a length: what the model was trained for, or what fits into
 * memory (bytes; 0 = unknown), but not below 4,096. */
int32_t tn_kv_default_length(uint64_t memory, uint64_t position_bytes, int32_t trained);

/* TN_EUNSUPPORTED where heads of the model are no whole number of the type's blocks. */
tn_status tn_kv_check(const tn_model *m, uint32_t type, tn_error *err);
/* Bytes of one position over all layers. */
size_t tn_kv_position_bytes(const tn_hparams *hp, uint32_t type);

#endif
