/* The paged KV cache as kernels see it. */
#ifndef TN_CUDA_KV_H
#define TN_CUDA_KV_H

#include "common.h"

/* One of K and V of a layer. */
struct KvPlane {
    const uint64_t *pages; /* addresses of the pages of all sequences */
    int64_t pages_stride, at;
    int type, page_shift, n_head_kv, dim;
};

static inline KvPlane tn_cuda_kv_plane(const tn_dkv &kv, bool value)
{
    KvPlane p = {};
    p.pages = (const uint64_t *)kv.pages;
    p.pages_stride = kv.pages_stride;
    p.at = value ? kv.v_at : kv.k_at;
    p.type = (int)kv.type;
    p.n_head_kv = kv.n_head_kv;
    p.dim = value ? kv.head_dim_v : kv.head_dim_k;
    while (1 << p.page_shift < kv.page_size)
        p.page_shift++;
    return p;
}

/* Host side: whether kernels can work with this cache. */
static inline bool tn_cuda_kv_valid(uint32_t type, int32_t dim_k, int32_t dim_v)
{
    const int32_t unit = type == TN_TYPE_Q8_0 ? 32 : 8;
    if (type != TN_TYPE_F16 && type != TN_TYPE_F32 && type != TN_TYPE_Q8_0) return false;
    return dim_k > 0 && dim_v > 0 && dim_k <= 256 && dim_v <= 256 && dim_k % unit == 0 &&
           dim_v % unit == 0;
}

/* The page that holds position pos of sequence seq. */
__device__ __forceinline__ uint8_t *kv_page(const KvPlane &p, int seq, int pos)
{
    return (uint8_t *)p.pages[seq * p.pages_stride + (pos >> p.page_shift)] + p.at;
}

/* Elements before position pos of a head in its page. */
__device__ __forceinline__ int64_t kv_offset(const KvPlane &p, int head, int pos)
{
    const int slot = pos & ((1 << p.page_shift) - 1);
    return (((int64_t)head << p.page_shift) + slot) * p.dim;
}

/* Float16 scales of Q8_0 pages, one for 32 elements. */
__device__ __forceinline__ uint16_t *kv_scales(const KvPlane &p, uint8_t *page)
{
    return (uint16_t *)(page + ((int64_t)p.n_head_kv << p.page_shift) * p.dim);
}

/* Eight elements c .. c + 7 of a head at a position; c is a multiple of 8. */
template <int T>
__device__ __forceinline__ void kv_load8(float v[8], const KvPlane &p, uint8_t *page, int64_t row,
                                         int c)
{
    if (T == TN_TYPE_F32) {
        const float4 a = load<float4>(page + 4 * (row + c)),
                     b = load<float4>(page + 4 * (row + c + 4));
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else if (T == TN_TYPE_F16) {
        const int4 w = load<int4>(page + 2 * (row + c));
        const int word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = f16_bits_to_f32((uint32_t)word[i / 2] >> 16 * (i % 2) & 0xffff);
    } else {
        const int2 w = load<int2>(page + row + c);
        const float d = f16_bits_to_f32(kv_scales(p, page)[(row + c) / 32]);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = d * (float)(int8_t)((i < 4 ? w.x : w.y) >> 8 * (i % 4));
    }
}

#endif
