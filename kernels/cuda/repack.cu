/* Weights on their way in: the file's row-major blocks, or the host's interleaved R8 layout, become
 * the planes of weights.h. One thread rearranges 32 columns of one row. */
#include "weights.h"
#include "ops.h"

#include <stddef.h>

#define _Static_assert static_assert /* blocks.h is C */
#include "../../gguf/blocks.h"
#undef _Static_assert

/* What a file block and an R8 unit both have: quants as unsigned integers (Q8_0: signed), d and m
 * as float16 bits, scale bytes in the file's order. */
template <int T> struct FileBlock {
    const uint8_t *b;

    /* Element e of unit i of the block. */
    __device__ int quant(int i, int e) const
    {
        const int l = e, n = i / 4, j = i % 4, hi = e / 16;
        switch (T) {
        case TN_TYPE_Q4_0: return nib(offsetof(tn_block_q4_0, qs), e % 16, hi);
        case TN_TYPE_Q4_1: return nib(offsetof(tn_block_q4_1, qs), e % 16, hi);
        case TN_TYPE_Q5_0:
            return nib(offsetof(tn_block_q5_0, qs), e % 16, hi) |
                   bit(offsetof(tn_block_q5_0, qh) + e / 8, e % 8) << 4;
        case TN_TYPE_Q5_1:
            return nib(offsetof(tn_block_q5_1, qs), e % 16, hi) |
                   bit(offsetof(tn_block_q5_1, qh) + e / 8, e % 8) << 4;
        case TN_TYPE_Q8_0: return b[offsetof(tn_block_q8_0, qs) + e];
        case TN_TYPE_Q2_K: return b[offsetof(tn_block_q2_k, qs) + 32 * n + l] >> 2 * j & 3;
        case TN_TYPE_Q3_K:
            return (b[offsetof(tn_block_q3_k, qs) + 32 * n + l] >> 2 * j & 3) |
                   bit(offsetof(tn_block_q3_k, hmask) + l, i) << 2;
        case TN_TYPE_Q4_K: return nib(offsetof(tn_block_q4_k, qs) + 32 * (i / 2), l, i % 2);
        case TN_TYPE_Q5_K:
            return nib(offsetof(tn_block_q5_k, qs) + 32 * (i / 2), l, i % 2) |
                   bit(offsetof(tn_block_q5_k, qh) + l, i) << 4;
        default: /* Q6_K */
            return nib(offsetof(tn_block_q6_k, ql) + 64 * n + 32 * (j % 2), l, j / 2) |
                   (b[offsetof(tn_block_q6_k, qh) + 32 * n + l] >> 2 * j & 3) << 4;
        }
    }
    __device__ uint16_t d() const
    {
        return word(d_at());
    }
    __device__ uint16_t m() const
    {
        return word(d_at() + 2);
    } /* always right behind d */
    __device__ int scale(int k) const
    {
        return b[scale_at() + k];
    }

    __device__ int nib(size_t at, int byte, int high) const
    {
        return b[at + byte] >> 4 * high & 15;
    }
    __device__ int bit(size_t at, int k) const
    {
        return b[at] >> k & 1;
    }
    __device__ uint16_t word(size_t at) const
    {
        return (uint16_t)(b[at] | b[at + 1] << 8);
    }
    static constexpr __device__ size_t d_at()
    {
        return T == TN_TYPE_Q2_K   ? offsetof(tn_block_q2_k, d)
               : T == TN_TYPE_Q3_K ? offsetof(tn_block_q3_k, d)
               : T == TN_TYPE_Q6_K ? offsetof(tn_block_q6_k, d)
                                   : 0;
    }
    static constexpr __device__ size_t scale_at()
    {
        return T == TN_TYPE_Q2_K   ? offsetof(tn_block_q2_k, scales)
               : T == TN_TYPE_Q3_K ? offsetof(tn_block_q3_k, scales)
               : T == TN_TYPE_Q6_K ? offsetof(tn_block_q6_k, scales)
                                   : offsetof(tn_block_q4_k, scales); /* Q5_K has them there too */
    }
};

/* Row `row` of a unit of 8 rows; repack.h documents the vectors. */
template <int T> struct R8Block {
    const uint8_t *b;
    int row;

    static constexpr __device__ int bits()
    {
        return Traits<T>::two      ? (T == TN_TYPE_Q3_K ? 3 : 2)
               : Traits<T>::five   ? 5
               : T == TN_TYPE_Q6_K ? 6
               : T == TN_TYPE_Q8_0 ? 8
                                   : 4;
    }
    static constexpr __device__ int scales_at()
    {
        return Traits<T>::minimum ? 32 : 16;
    }
    static constexpr __device__ int head()
    {
        return scales_at() + (!Traits<T>::super ? 0 : Traits<T>::packed ? 96 : 128);
    }
    __device__ int quant(int i, int e) const
    {
        const uint8_t *step = b + head() + 32 * bits() * i + 4 * row + e / 16 * 2 + e % 2;
        const int v = e % 16 / 2;
        auto a = [=](int k) { return (int)step[32 * k]; };
        switch (bits()) {
        case 2: return a(v / 4) >> 2 * (v % 4) & 3;
        case 3:
            if (v < 6) return a(v / 2) >> 3 * (v % 2) & 7;
            return a(v == 6 ? 0 : 2) >> 6 | (a(1) >> (v == 6 ? 7 : 6) & 1) << 2;
        case 4: return a(v % 4) >> 4 * (v / 4) & 15;
        case 5:
            if (v < 5) return a(v) & 31;
            if (v < 7) return a(2 * (v - 5)) >> 5 | a(2 * (v - 5) + 1) >> 6 << 3;
            return a(4) >> 5 | (a(1) >> 5 & 1) << 3 | (a(3) >> 5 & 1) << 4;
        case 6: {
            const int k = 3 * (v / 4);
            if (v % 4 < 3) return a(k + v % 4) & 63;
            return a(k) >> 6 << 4 | a(k + 1) >> 6 << 2 | a(k + 2) >> 6;
        }
        default: return a(v);
        }
    }
    __device__ uint16_t d() const
    {
        return word(2 * row);
    }
    __device__ uint16_t m() const
    {
        return word(16 + 2 * row);
    }
    __device__ int scale(int k) const
    {
        return b[scales_at() + 32 * (k / 4) + 4 * row + k % 4];
    }
    __device__ uint16_t word(int at) const
    {
        return (uint16_t)(b[at] | b[at + 1] << 8);
    }
};

template <class T> __device__ __forceinline__ void put(uint8_t *at, T v)
{
    *(T *)at = v;
}

/* The quant planes of unit `u` of a row, u being unit i of its block. */
template <int T, class Block>
__device__ void pack_quants(const RowPlanes &to, int64_t u, const Block &b, int i)
{
    typedef Traits<T> Ty;
    uint32_t w[8] = {}, high[2] = {};
    for (int e = 0; e < 32; e++) {
        const uint32_t q = (uint32_t)b.quant(i, e), h = (uint32_t)e / 16, k = e % 16 / 4,
                       byte = e % 4;
        if (T == TN_TYPE_Q8_0)
            w[e / 4] |= q << 8 * byte;
        else if (Ty::two)
            w[h] |= (q & 3) << (8 * byte + 2 * k);
        else
            w[k] |= (q & 15) << (8 * byte + 4 * h);
        if (Ty::five) high[0] |= (q >> 4) << (8 * byte + 4 * h + k);
        if (T == TN_TYPE_Q3_K) high[0] |= (q >> 2) << (8 * byte + 4 * h + k);
        if (T == TN_TYPE_Q6_K) high[h] |= (q >> 4) << (8 * byte + 2 * k);
    }
    constexpr int n = T == TN_TYPE_Q8_0 ? 8 : Ty::two ? 2 : 4;
    for (int k = 0; k < n; k++)
        put((uint8_t *)to.p[0] + 4 * (n * u + k), w[k]);
    if constexpr (Ty::high_words > 0)
        for (int k = 0; k < Ty::high_words; k++)
            put((uint8_t *)to.p[1] + 4 * (Ty::high_words * u + k), high[k]);
}

/* The three words of six-bit scales (and minima) of a block. */
template <int T, class Block> __device__ void pack_six_bits(uint32_t w[3], const Block &b)
{
    for (int s = 0; T == TN_TYPE_Q3_K && s < 16; s++) {
        const uint32_t low = (uint32_t)b.scale(s % 8) >> 4 * (s / 8) & 15;
        const uint32_t top = (uint32_t)b.scale(8 + s % 4) >> 2 * (s / 4) & 3;
        w[s / 8] |= low << 4 * (s % 8);
        w[2] |= top << 2 * s;
    }
    for (int s = 0; T != TN_TYPE_Q3_K && s < 8; s++) {
        const uint32_t x = (uint32_t)(s < 4 ? b.scale(s) : b.scale(4 + s));
        const uint32_t y = (uint32_t)(s < 4 ? b.scale(4 + s) : 0);
        const uint32_t sc = s < 4 ? x & 63 : (x & 15) | (uint32_t)b.scale(s - 4) >> 6 << 4;
        const uint32_t mn = s < 4 ? y & 63 : x >> 4 | (uint32_t)b.scale(s) >> 6 << 4;
        w[0] |= (sc & 15) << 4 * s;
        w[1] |= (mn & 15) << 4 * s;
        w[2] |= (sc >> 4) << 2 * s | (mn >> 4) << (16 + 2 * s);
    }
}

/* The scale planes of block number k of a row. */
template <int T, class Block>
__device__ void pack_scales(const RowPlanes &to, int64_t k, const Block &b)
{
    typedef Traits<T> Ty;
    if constexpr (Ty::minimum)
        put((uint8_t *)to.p[3] + 4 * k, (uint32_t)b.d() | (uint32_t)b.m() << 16);
    else
        put((uint8_t *)to.p[3] + 2 * k, b.d());
    if constexpr (Ty::packed) {
        uint32_t w[3] = {};
        pack_six_bits<T>(w, b);
        for (int j = 0; j < 3; j++)
            put((uint8_t *)to.p[2] + 12 * k + 4 * j, w[j]);
    } else if constexpr (Ty::super) {
        for (int j = 0; j < 16; j++)
            ((uint8_t *)to.p[2])[16 * k + j] = (uint8_t)b.scale(j);
    }
}

template <int T, class Block>
__device__ void pack_unit(const tn_dweight &w, int64_t row, int64_t u, const Block &b)
{
    const int per_block = Traits<T>::super ? 8 : 1, i = (int)(u % per_block);
    const RowPlanes to = row_planes(w, row);
    pack_quants<T>(to, u, b, i);
    if (i == 0) pack_scales<T>(to, u / per_block, b);
}

template <int T>
__global__ void repack_rows(tn_dweight w, const uint8_t *src, int64_t row_bytes, int block_bytes)
{
    const int64_t units = w.cols / 32, at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= units * w.rows) return;
    const int64_t row = at / units, u = at % units;
    const int per_block = Traits<T>::super ? 8 : 1;
    const FileBlock<T> b = {src + row * row_bytes + u / per_block * block_bytes};
    pack_unit<T>(w, row, u, b);
}

template <int T>
__global__ void repack_groups(tn_dweight w, const uint8_t *src, int64_t row_bytes, int block_bytes)
{
    const int64_t units = w.cols / 32, at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= units * w.rows) return;
    const int64_t row = at / units, u = at % units;
    const int per_block = Traits<T>::super ? 8 : 1;
    const R8Block<T> b = {src + row / 8 * 8 * row_bytes + u / per_block * 8 * block_bytes,
                          (int)(row % 8)};
    pack_unit<T>(w, row, u, b);
}

/* Rows of unquantised elements: copied, the padding behind a row zeroed. One thread a 16-byte word.
 */
__global__ void repack_words(uint8_t *dst, int64_t dst_stride, const uint8_t *src,
                             int64_t src_stride, int64_t bytes, int64_t rows)
{
    const int64_t words = dst_stride / 16, at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= words * rows) return;
    const int64_t row = at / words, first = at % words * 16;
    uint16_t w[8];
    for (int i = 0; i < 8; i++) /* 2-byte loads: a source row may be aligned to no more */
        w[i] =
            first + 2 * i < bytes ? *(const uint16_t *)(src + row * src_stride + first + 2 * i) : 0;
    int4 word;
    memcpy(&word, w, 16);
    *(int4 *)(dst + row * dst_stride + first) = word;
}

static unsigned blocks_for(int64_t n, int threads)
{
    return (unsigned)((n + threads - 1) / threads);
}

static tn_status check(const tn_dweight *w, size_t row_bytes)
{
    size_t least;
    if (!tn_type_row_bytes(w->type, (uint64_t)w->cols, &least)) return TN_EUNSUPPORTED;
    return row_bytes >= least && w->rows > 0 ? TN_OK : TN_EARG;
}

tn_status tn_cuda_repack(tn_stream *stream, const tn_dweight *w, const void *src, size_t row_bytes)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const tn_type_info *t = tn_type_get(w->type);
    const tn_status status = check(w, row_bytes);
    if (status) return status;
    if (t->block == 1) {
        const int64_t row = w->cols * t->bytes, words = (row + 15) / 16 * w->rows;
        if (row % 16 && w->stride[0] - row >= 16) return TN_EARG;
        LAUNCH(repack_words, blocks_for(words, 128), 128, 0, s, w->plane[0], w->stride[0],
               (const uint8_t *)src, (int64_t)row_bytes, row, w->rows);
        return tn_cuda_launched();
    }
    const unsigned n = blocks_for(w->rows * (w->cols / 32), 128);
#define CALL(T)                                                                                    \
    LAUNCH(KERNEL(repack_rows<T>), n, 128, 0, s, *w, (const uint8_t *)src, (int64_t)row_bytes,     \
           (int)t->bytes)
    TN_FOR_QUANT(w->type, CALL, return TN_EUNSUPPORTED)
#undef CALL
    return tn_cuda_launched();
}

tn_status tn_cuda_repack_r8(tn_stream *stream, const tn_dweight *w, const void *src,
                            size_t row_bytes)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const tn_type_info *t = tn_type_get(w->type);
    const tn_status status = check(w, row_bytes);
    if (status) return status;
    const unsigned n = blocks_for(w->rows * (w->cols / 32), 128);
#define CALL(T)                                                                                    \
    LAUNCH(KERNEL(repack_groups<T>), n, 128, 0, s, *w, (const uint8_t *)src, (int64_t)row_bytes,   \
           (int)t->bytes)
    TN_FOR_QUANT(w->type, CALL, return TN_EUNSUPPORTED)
#undef CALL
    return tn_cuda_launched();
}
