/* Internal: where the elements of a page of the KV cache lie; see tn_kv_view for why. */
#ifndef TN_KV_PAGE_H
#define TN_KV_PAGE_H

#include "kernels.h"

#include "../gguf/blocks.h"

enum {
    TN_KV_UNIT = 16,     /* positions of a unit; every page is a whole number of them */
    TN_KV_K_OFFSET = 128 /* stored Q8_0 keys are this much above their value, and so unsigned */
};

/* Bytes of one position of one head. */
static inline size_t tn_kv_row_bytes(uint32_t type, int32_t dim)
{
    if (type == TN_TYPE_Q8_0) return (size_t)dim / TN_QK * sizeof(tn_block_q8_0);
    return (size_t)dim * (type == TN_TYPE_F16 ? 2 : 4);
}

/* First byte, in a page, of the unit of `head` that holds position `slot` of the page. */
static inline size_t tn_kv_unit_at(const tn_kv_view *kv, int32_t dim, int32_t head, int64_t slot)
{
    const size_t row =
        (size_t)head * (size_t)kv->page_size + (size_t)slot / TN_KV_UNIT * TN_KV_UNIT;
    return row * tn_kv_row_bytes(kv->type, dim);
}

/* Byte of a unit where element d of its position i begins: of Q8_0 the quant. */
static inline size_t tn_kv_k_at(uint32_t type, int32_t dim, int32_t i, int32_t d)
{
    if (type == TN_TYPE_Q8_0) /* scales, then [dim / 4][16][4] */
        return (size_t)dim + (size_t)d / 4 * 64 + (size_t)i * 4 + (size_t)d % 4;
    return ((size_t)d * TN_KV_UNIT + (size_t)i) * (type == TN_TYPE_F16 ? 2 : 4);
}
static inline size_t tn_kv_v_at(uint32_t type, int32_t dim, int32_t i, int32_t d)
{
    if (type == TN_TYPE_Q8_0) /* scales, then [4][dim][4] */
        return (size_t)dim + ((size_t)i / 4 * (size_t)dim + (size_t)d) * 4 + (size_t)i % 4;
    return ((size_t)i * (size_t)dim + (size_t)d) * (type == TN_TYPE_F16 ? 2 : 4);
}

/* Byte of a Q8_0 unit, of K or V, where the scale of position i's block of element d begins:
 * [dim / 32][16] float16. */
static inline size_t tn_kv_scale_at(int32_t i, int32_t d)
{
    return ((size_t)d / TN_QK * TN_KV_UNIT + (size_t)i) * 2;
}

#endif
