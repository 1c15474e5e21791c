/* Products of many tokens with 8-row interleaved weights, AVX-VNNI. avx512_many.c says why sums
 * start at the bits of BASE. The sums of a block's halves stay apart: with six at a time, one after
 * the other is slower by a twentieth. (8 tokens: 2.3 times the price of one by way of
 * avx2_r8.c, 3.2 by way of panels.) */
#include "avx_many.h"

enum {
    TOKENS = 3, /* of a tile */
    MOST_PANEL_BLOCK = 256 + 4 * 32
};

/* Quants, then scales and minima of the rows as floats. */
INLINE int quant_bytes(uint32_t type)
{
    (void)type;
    return 256;
}
INLINE int64_t panel_block(uint32_t type)
{
    return quant_bytes(type) + 32 * (scaled_by_16(type) ? 2 : 1) * (has_min(type) ? 2 : 1);
}

/* ---- activations ----------------------------------------------------------------------------- */

INLINE int64_t act_bytes(uint32_t type)
{
    (void)type;
    return sizeof(act);
}

INLINE void pack_block(uint32_t type, void *out, const tn_q8 *x)
{
    act *o = out;
    const vec q = _mm256_loadu_si256((const __m256i *)(const void *)x->q);
    vec sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    sums = _mm256_madd_epi16(sums, _mm256_set1_epi16((int16_t)-tn_quant_offset(type)));
    sums = _mm256_hadd_epi32(sums, sums);
    sums = _mm256_hadd_epi32(sums, sums);
    _mm256_store_si256((__m256i *)(void *)o->q, q);
    for (int h = 0; h < 2; h++) {
        o->d[h] = shorter(x->d * (float)x->m[h]);
        o->base[h] = -BASE * o->d[h];
        o->s[h] = x->s[h];
    }
    o->c[0] = BASE_BITS + _mm256_extract_epi32(sums, 0);
    o->c[1] = BASE_BITS + _mm256_extract_epi32(sums, 4);
    if (!scaled_by_16(type)) o->s[0] += o->s[1];
}

INLINE bool packed_alike(uint32_t type, uint32_t other)
{
    return tn_quant_offset(type) == tn_quant_offset(other) &&
           scaled_by_16(type) == scaled_by_16(other);
}

/* ---- panels ---------------------------------------------------------------------------------- */

/* Dword r of vector j becomes columns 4j .. 4j + 3 of row r, unsigned. The 8-row form has columns
 * 2j, 2j + 1, 16 + 2j, 17 + 2j there. */
INLINE void panel_quants(uint32_t type, const uint8_t *step, uint8_t *out)
{
    const int width = tn_group_shape_of(type, 8).bits;
    const vec flip = _mm256_set1_epi8(width == 8 ? (char)0x80 : 0);
    vec v[8];
    read_quants(width, step, v);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const vec even = _mm256_xor_si256(v[2 * j], flip),
                  odd = _mm256_xor_si256(v[2 * j + 1], flip);
        _mm256_store_si256((vec *)(void *)(out + 32 * j),
                           _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa));
        _mm256_store_si256((vec *)(void *)(out + 32 * (4 + j)),
                           _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa));
    }
}

/* The low and the high int16 of every dword times d. */
INLINE void put_pairs(float *out, vec v, __m256 d)
{
    const vec first = _mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16);
    _mm256_store_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(first), d));
    _mm256_store_ps(out + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(v, 16)), d));
}

INLINE void panel_scales(uint32_t type, const r8_head *h, int j, float *out)
{
    const __m256 units = _mm256_set1_ps(UNITS);
    if (!scaled_by_16(type)) {
        _mm256_store_ps(out, _mm256_mul_ps(h->d[j], units));
        if (has_min(type)) _mm256_store_ps(out + 8, h->m[j]);
        return;
    }
    put_pairs(out, h->pair[j], _mm256_mul_ps(h->d[0], units));
    if (has_min(type)) put_pairs(out + 16, h->min[j], h->m[0]);
}

INLINE void panel_step(uint32_t type, const uint8_t *step, const r8_head *h, int j, uint8_t *out)
{
    panel_quants(type, step, out);
    panel_scales(type, h, j, (float *)(void *)(out + quant_bytes(type)));
}

/* ---- tiles ----------------------------------------------------------------------------------- */

INLINE int sums_of_block(uint32_t type)
{
    (void)type;
    return 2;
}

INLINE vec first_sum(uint32_t type, const void *a, int t, int part)
{
    (void)type;
    return _mm256_set1_epi32(((const act *)a)[t].c[part]);
}

INLINE vec add_product(uint32_t type, vec sum, vec weights, vec x)
{
    (void)type;
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
}

/* acc += minimum * sum of the activations in half h, or in both */
INLINE void minima(uint32_t type, int g, int n, __m256 *acc, const act *a, int h,
                   const uint8_t *min)
{
#pragma GCC unroll 6
    for (int i = 0; i < g * n; i++) {
        const float *m = (const float *)(const void *)(min + i / n * panel_block(type));
        acc[i] = _mm256_fmadd_ps(_mm256_load_ps(m), _mm256_broadcast_ss(&a[i % n].s[h]), acc[i]);
    }
}

INLINE void finish_part(uint32_t type, int g, int n, const uint8_t *w, const void *acts, int part,
                        const vec *sum, vec *total, __m256 *acc)
{
    const act *a = acts;
    const uint8_t *scales = w + quant_bytes(type);
    const bool by_16 = scaled_by_16(type);
    (void)total;
#pragma GCC unroll 6
    for (int k = 0; k < g * n; k++) {
        const act *x = a + k % n;
        const __m256 q =
            _mm256_fmadd_ps(_mm256_castsi256_ps(sum[k]), _mm256_broadcast_ss(&x->d[part]),
                            _mm256_broadcast_ss(&x->base[part]));
        const uint8_t *d = scales + k / n * panel_block(type) + (by_16 ? 32 * part : 0);
        acc[k] = _mm256_fmadd_ps(q, _mm256_load_ps((const float *)(const void *)d), acc[k]);
    }
    if (part == 0 || !has_min(type)) return;
    minima(type, g, n, acc, a, 0, scales + (by_16 ? 64 : 32));
    if (by_16) minima(type, g, n, acc, a, 1, scales + 96);
}

#define TILES(X)                                                                                   \
    X(plain, TN_TYPE_Q8_0)                                                                         \
    X(min, TN_TYPE_Q4_K)                                                                           \
    X(by_16, TN_TYPE_Q6_K)                                                                         \
    X(min_by_16, TN_TYPE_Q2_K)

INLINE uint32_t tile_type(uint32_t type)
{
    if (scaled_by_16(type)) return has_min(type) ? TN_TYPE_Q2_K : TN_TYPE_Q6_K;
    return has_min(type) ? TN_TYPE_Q4_K : TN_TYPE_Q8_0;
}

#define MANY_TYPES TN_INTERLEAVED_TYPES

/* The signs of 8 bits cost avx2_r8.c as much as the products. */
INLINE int64_t few_tokens(uint32_t type)
{
    return type == TN_TYPE_Q8_0 ? 4 : 8;
}

#include "avx_many_r8.h"

void tn_kernels_avxvnni_many(tn_kernels *k)
{
    _Static_assert(sizeof(act) <= TN_PACKED_BYTES, "act");
    set_r8(k);
}
