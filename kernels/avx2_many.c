/* Products of many tokens with 8-row interleaved weights, AVX2. A block is what step_product() of
 * avx2_r8.h makes of it, by the same operations, so that results do not depend on the number of
 * tokens. What panels gain is that a broadcast of activations serves 16 rows: avx2_r8.c, whose
 * weights stay in registers, needs as many loads as products. On Zen 4, where products and
 * additions alone come to 380 GOP/s a core, a tile of Q4_K in L1 makes 267, and avx2_r8.c 237.
 *
 * Products of signed bytes (Q8_0) do not add up in 16 bits, and to get at their signs costs as much
 * as they do: bytes are made 16 bits wide here, once for many tokens, and activations are packed
 * with their scale multiplied in. */
#include "avx_many.h"

enum {
    TOKENS = 3, /* of a tile */
    MOST_PANEL_BLOCK = 512 + 32
};

/* Activations for weights of 8 bits: m * q, in order. */
typedef struct wide_act {
    int16_t q[32];
    float d;
} wide_act;

/* Quants become 16 bits wide. */
INLINE bool is_wide(uint32_t type)
{
    return tn_group_shape_of(type, 8).bits == 8;
}

/* Bytes of the quants of a block. Behind them are vectors of what the rows have: d, then minima, or
 * scales by 16 columns as pairs of integers. */
INLINE int quant_bytes(uint32_t type)
{
    return is_wide(type) ? 512 : 256;
}
INLINE int64_t panel_block(uint32_t type)
{
    return quant_bytes(type) + (scaled_by_16(type) || has_min(type) ? 64 : 32);
}

/* ---- activations ----------------------------------------------------------------------------- */

INLINE int64_t act_bytes(uint32_t type)
{
    return is_wide(type) ? sizeof(wide_act) : sizeof(r8_act);
}

INLINE void pack_wide(wide_act *o, const tn_q8 *x)
{
    for (int h = 0; h < 2; h++) {
        const vec q =
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(x->q + 16 * h)));
        _mm256_storeu_si256((__m256i *)(void *)(o->q + 16 * h),
                            _mm256_mullo_epi16(q, _mm256_set1_epi16(x->m[h])));
    }
    o->d = x->d;
}

INLINE void pack_block(uint32_t type, void *out, const tn_q8 *x)
{
    if (is_wide(type))
        pack_wide(out, x);
    else
        pack_act(type, out, x);
}

INLINE bool packed_alike(uint32_t type, uint32_t other)
{
    return quant_offset(type) == quant_offset(other) && is_wide(type) == is_wide(other);
}

/* ---- panels ---------------------------------------------------------------------------------- */

/* The low, or the high, int16 of every dword of v made of its bytes: the columns 2j and 2j + 1, or
 * 16 + 2j and 17 + 2j, of a vector j in R8. */
INLINE vec widened(vec v, bool high)
{
    const vec up = high ? v : _mm256_slli_epi32(v, 16); /* bytes 2 and 3 of every dword */
    const vec second = _mm256_srai_epi32(up, 24);
    const vec first = _mm256_srai_epi32(_mm256_slli_epi32(up, 8), 24);
    return _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xaa);
}

INLINE void panel_step(uint32_t type, const uint8_t *step, const r8_head *h, int j, uint8_t *out)
{
    vec v[8], *to = (vec *)(void *)out, *rows = (vec *)(void *)(out + quant_bytes(type));
    const int k = scaled_by_16(type) ? 0 : j;
    read_quants(tn_group_shape_of(type, 8).bits, step, v);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        to[i] = is_wide(type) ? widened(v[i], false) : v[i];
        if (is_wide(type)) to[8 + i] = widened(v[i], true);
    }
    rows[0] = _mm256_castps_si256(h->d[k]);
    if (has_min(type)) rows[1] = _mm256_castps_si256(h->m[k]);
    if (scaled_by_16(type)) rows[1] = h->pair[j];
}

/* ---- tiles ----------------------------------------------------------------------------------- */

INLINE int sums_of_block(uint32_t type)
{
    return is_wide(type) ? 1 : sum_parts(type);
}

INLINE vec first_sum(uint32_t type, const void *a, int t, int part)
{
    (void)type, (void)a, (void)t, (void)part;
    return _mm256_setzero_si256();
}

INLINE vec add_product(uint32_t type, vec sum, vec weights, vec x)
{
    return is_wide(type) ? pinned(add32(sum, _mm256_madd_epi16(weights, x)))
                         : add16(sum, _mm256_maddubs_epi16(weights, x));
}

/* What R8 has of the rows of group i of a panel's block. */
INLINE const vec *of_rows(uint32_t type, const uint8_t *w, int i)
{
    return (const vec *)(const void *)(w + i * panel_block(type) + quant_bytes(type));
}

/* total (+)= sums in 16 bits, less the offset, times the integer scales. */
INLINE void add_sums(uint32_t type, int g, int n, const uint8_t *w, const r8_act *a, int part,
                     const vec *sum, vec *total)
{
#pragma GCC unroll 3
    for (int t = 0; t < n; t++) {
        const vec m = broadcast(a[t].m);
#pragma GCC unroll 2
        for (int i = 0; i < g; i++) {
            vec s = sum[i * n + t];
            if (quant_offset(type)) s = _mm256_sub_epi16(s, broadcast(part ? &a[t].c1 : &a[t].c));
            s = _mm256_madd_epi16(s, step_factor(type, m, of_rows(type, w, i) + 1));
            total[i * n + t] = part ? add32(total[i * n + t], s) : s;
        }
    }
}

INLINE void finish_wide(uint32_t type, int g, int n, const uint8_t *w, const wide_act *a,
                        const vec *sum, __m256 *acc)
{
#pragma GCC unroll 6
    for (int k = 0; k < g * n; k++) {
        const __m256 d = _mm256_mul_ps(*(const __m256 *)of_rows(type, w, k / n),
                                       _mm256_broadcast_ss(&a[k % n].d));
        acc[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[k]), d, acc[k]);
    }
}

INLINE void finish_part(uint32_t type, int g, int n, const uint8_t *w, const void *acts, int part,
                        const vec *sum, vec *total, __m256 *acc)
{
    const r8_act *a = acts;
    if (is_wide(type)) {
        finish_wide(type, g, n, w, acts, sum, acc);
        return;
    }
    add_sums(type, g, n, w, a, part, sum, total);
    if (part + 1 < sums_of_block(type)) return;
#pragma GCC unroll 3
    for (int t = 0; t < n; t++)
#pragma GCC unroll 2
        for (int i = 0; i < g; i++) {
            const vec *rows = of_rows(type, w, i);
            acc[i * n + t] = add_step(type, a + t, total[i * n + t], (const __m256 *)rows,
                                      (const __m256 *)(rows + 1), NULL, acc[i * n + t]);
        }
}

/* Types whose blocks are alike: by the parts of sums, offsets, minima and integer scales. */
#define TILES(X)                                                                                   \
    X(q4_0, TN_TYPE_Q4_0)                                                                          \
    X(q4_1, TN_TYPE_Q4_1)                                                                          \
    X(q5_1, TN_TYPE_Q5_1)                                                                          \
    X(q8_0, TN_TYPE_Q8_0)                                                                          \
    X(q3_k, TN_TYPE_Q3_K)                                                                          \
    X(q6_k, TN_TYPE_Q6_K)

INLINE uint32_t tile_type(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q5_0: return TN_TYPE_Q4_0;
    case TN_TYPE_Q4_K: return TN_TYPE_Q4_1;
    case TN_TYPE_Q5_K: return TN_TYPE_Q5_1;
    default: return type;
    }
}

/* Q2_K, with scales and minima by 16 columns, is faster without panels for any number. */
#define MANY_TYPES(X)                                                                              \
    X(q4_0, TN_TYPE_Q4_0)                                                                          \
    X(q4_1, TN_TYPE_Q4_1)                                                                          \
    X(q5_0, TN_TYPE_Q5_0)                                                                          \
    X(q5_1, TN_TYPE_Q5_1)                                                                          \
    X(q8_0, TN_TYPE_Q8_0)                                                                          \
    X(q3_k, TN_TYPE_Q3_K)                                                                          \
    X(q4_k, TN_TYPE_Q4_K)                                                                          \
    X(q5_k, TN_TYPE_Q5_K)                                                                          \
    X(q6_k, TN_TYPE_Q6_K)

INLINE int64_t few_tokens(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q2_K: return INT64_MAX;
    case TN_TYPE_Q8_0: return 24; /* to widen its panels takes time */
    default: return 20;           /* from memory; from L3 panels are faster from 9 tokens on */
    }
}

#include "avx_many_r8.h"

void tn_kernels_avx2_many(tn_kernels *k)
{
    _Static_assert(sizeof(wide_act) <= TN_PACKED_BYTES, "wide_act");
    _Static_assert(sizeof(r8_act) <= TN_PACKED_BYTES, "r8_act");
    tn_repack_avx2(k->repack[TN_LAYOUT_R8], k->repack[TN_LAYOUT_R16]);
    set_r8(k);
}
