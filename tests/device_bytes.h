/* What a model has on its devices, counted from its weights and cache, to compare with what the
 * devices say. Functions of tests; they report through the harness. */
#ifndef TN_TEST_DEVICE_BYTES_H
#define TN_TEST_DEVICE_BYTES_H

#include "harness.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../kernels/device_ops.h"

__attribute__((unused)) static uint64_t device_used(const tn_engine *e, int d)
{
    tn_device_memory m = {0};
    CHECK_INT(e->devices.at[d]->api->memory(e->devices.at[d], &m, NULL), TN_OK);
    return m.used_bytes;
}

__attribute__((unused)) static uint64_t matrix_bytes(const tn_dweight *w)
{
    return w->plane[0] ? tn_dweight_bytes(w->type, w->rows, w->cols) : 0;
}

/* Of what moves on a segment's device; *all: of what might. */
__attribute__((unused)) static uint64_t moving_bytes(const tn_model *m, int d, uint64_t *all)
{
    uint64_t bytes = 0;
    const tn_segment *s = &m->on_device.segment[d];
    *all = 0;
    for (int32_t l = s->first; l < s->end; l++) {
        const tn_layer_device *y = &m->on_device.layers[l];
        const tn_layer *h = &m->layers[l];
        const tn_weight *const w[3] = {&h->ffn_gate, &h->ffn_up, &h->ffn_down};
        if (!y->moves) continue;
        bytes += matrix_bytes(&y->ffn_gate) + matrix_bytes(&y->ffn_up) + matrix_bytes(&y->ffn_down);
        for (int i = 0; i < 3; i++)
            *all += tn_dweight_bytes(w[i]->type, w[i]->rows, w[i]->cols);
    }
    return bytes;
}

/* Of KV in F32 on a segment's device when n tokens are live, in pages, and batches, of so many
 * positions. */
__attribute__((unused)) static uint64_t live_kv_bytes(const tn_model *m, int d, int32_t n,
                                                      int32_t page_size)
{
    const tn_hparams *hp = &m->hp;
    const tn_segment *s = &m->on_device.segment[d];
    const uint64_t layer = tn_dkv_bytes(TN_TYPE_F32, page_size, hp->n_head_kv, hp->head_dim_k) +
                           tn_dkv_bytes(TN_TYPE_F32, page_size, hp->n_head_kv, hp->head_dim_v);
    const uint64_t all = (uint64_t)((n + page_size - 1) / page_size);
    const uint64_t ring = (uint64_t)((hp->n_swa + page_size - 1) / page_size) + 2;
    uint64_t pages = 0;
    for (int32_t l = s->first; l < s->end; l++)
        if (m->on_device.layers[l].attends) pages += m->layers[l].local && all > ring ? ring : all;
    return pages * layer;
}

#endif
