/* Internal: the KV cache of one sequence, in pages behind page tables.
 * A page holds page_size positions of every layer of a kind: of those that attend to everything,
 * or of those with a sliding window. It is allocated, and with large pages some after it, when a
 * position in it is first needed, and kept until the cache is freed. What has left the window of a
 * batch is never read again, so layers with windows have a ring of pages: their tables name the
 * same ones over and over. Layers that attend on the device have their part of every page there. */
#ifndef TN_KV_H
#define TN_KV_H

#include "exec_sizes.h"
#include "model.h"

typedef enum tn_kv_layers { TN_KV_GLOBAL, TN_KV_LOCAL, TN_KV_LAYERS } tn_kv_layers;

typedef struct tn_kv_device {
    tn_device *device;               /* of one segment; NULL: no layer's cache is there */
    size_t k_bytes, v_bytes;         /* of one layer's page */
    size_t page_bytes[TN_KV_LAYERS]; /* of a page of all layers of a kind there, 0: there are
                                        none */
    void **pages[TN_KV_LAYERS];      /* [tn_kv_held] device memory, one allocation each */
    void *table[TN_KV_LAYERS];       /* [cap_pages] their addresses by position, in device memory */
    _Atomic size_t n_pages; /* of positions; tn_kv_trim, in another's evaluation, gives some back */
    size_t cap_pages;
} tn_kv_device;

typedef struct tn_kv {
    const tn_allocator *a;
    const tn_model *m;
    uint32_t type; /* TN_TYPE_F16, TN_TYPE_F32 or TN_TYPE_Q8_0 */
    int32_t page_size, n_layers, n_head_kv, head_dim_k, head_dim_v;
    size_t k_bytes, v_bytes; /* of one layer's page */
    size_t ring;             /* pages of layers with windows; SIZE_MAX without any */
    int64_t written;         /* positions [0, written) have been put, or are being put, in this
                                order */
    void **pages[TN_KV_LAYERS]; /* [tn_kv_held] all layers of a kind; at_once of them are */
    size_t at_once[TN_KV_LAYERS]; /* one allocation, whose first is that of a multiple of it */
    size_t n_pages, cap_pages;  /* pages of positions */
    void **k, **v;           /* [n_layers][cap_pages] views into the pages; NULL for layers
                                elsewhere */
    tn_kv_device dev[TN_DEVICES]; /* of each segment */
    int32_t short_of;        /* segment whose device last had too little memory, -1: none yet */
    _Atomic int64_t live;    /* positions in use, see tn_kv_live */
} tn_kv;

/* An empty cache for up to cap positions of heads that tn_kv_check allows, put in batches of up to
 * n_batch. On failure what there is is for tn_kv_free. */
tn_status tn_kv_init(tn_kv *kv, const tn_model *m, uint32_t type, int32_t page_size, int64_t cap,
                     int32_t n_batch, tn_error *err);
void tn_kv_free(tn_kv *kv); /* no stream may be using it */
/* Positions in use, or about to be: what the boundary keeps device memory for. Any thread. */
static inline int64_t tn_kv_live(const tn_kv *kv)
{
    return kv->live;
}
/* Gives back the devices' pages past the live positions. */
void tn_kv_trim(tn_kv *kv);
/* Pages held for n pages of positions in layers of a kind. */
static inline size_t tn_kv_held(const tn_kv *kv, tn_kv_layers kind, size_t n)
{
    return kind == TN_KV_LOCAL && n > kv->ring ? kv->ring : n;
}
static inline tn_kv_layers tn_kv_kind_of(const tn_kv *kv, int32_t layer)
{
    return kv->m->layers[layer].local ? TN_KV_LOCAL : TN_KV_GLOBAL;
}
/* Positions [pos, pos + n) are put next. */
void tn_kv_put_next(tn_kv *kv, int64_t pos, int64_t n);
/* Whether what position n attends to is still there: after a rewind the ring may have gone on. */
bool tn_kv_is_whole(const tn_kv *kv, int64_t n);
/* Makes positions [0, n) writable. On failure the pages there already are kept. */
tn_status tn_kv_reserve(tn_kv *kv, int64_t n, tn_error *err);
tn_kv_view tn_kv_layer(const tn_kv *kv, int32_t layer);
/* Writes one position of a layer: k[n_head_kv * head_dim_k], v[n_head_kv * head_dim_v]. */
void tn_kv_put(const tn_kv *kv, const tn_kernels *kern, int32_t layer, int64_t pos, const float *k,
               const float *v);
/* Whoever has the context may ask, even while another context's evaluation trims this cache. */
uint64_t tn_kv_bytes(const tn_kv *kv);
/* kv_device.c. The devices' part, for tn_kv_init, free, reserve and bytes. */
tn_status tn_kv_device_init(tn_kv *kv, int64_t cap, tn_error *err);
void tn_kv_device_free(tn_kv *kv);
tn_status tn_kv_device_reserve(tn_kv *kv, int64_t n, tn_error *err);
uint64_t tn_kv_device_bytes(const tn_kv *kv);
/* Bytes on a segment's device of n pages of positions. */
uint64_t tn_kv_device_pages_bytes(const tn_kv *kv, int32_t segment, size_t n);
/* A layer that attends on the device. */
tn_dkv tn_kv_device_layer(const tn_kv *kv, int32_t layer);

/* Positions of a cache that nobody gave a length: what the model was trained for, or what fits into
 * memory (bytes; 0 = unknown), but not below 4,096. ring_bytes: of layers with windows, at any
 * length. */
int32_t tn_kv_default_length(uint64_t memory, uint64_t position_bytes, uint64_t ring_bytes,
                             int32_t trained);

/* TN_EUNSUPPORTED where heads of the model are no whole number of the type's blocks. */
tn_status tn_kv_check(const tn_model *m, uint32_t type, tn_error *err);
/* Bytes of one position in a layer; over all layers of a kind. */
size_t tn_kv_layer_position_bytes(const tn_hparams *hp, uint32_t type);
size_t tn_kv_position_bytes(const tn_model *m, uint32_t type, tn_kv_layers kind);

#endif
