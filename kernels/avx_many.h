/* What products of many tokens share, whatever the width of their vectors: how a product is cut up,
 * and activations as tiles read them. avx512_many.c explains it; avxvnni_many.c does it with half
 * as wide vectors. */
#ifndef TN_AVX_MANY_H
#define TN_AVX_MANY_H

#include "avx2_r8.h"

enum {
    GROUPS = 2,              /* of vectors of rows in a panel */
    SLAB = 24,               /* blocks of 32 columns of a panel, a whole number of 256 columns */
    PIECE = 3 * SLAB,        /* blocks of activations, */
    CHUNK_BYTES = 640 << 10, /* and bytes, that stay in L2 for all rows */
    TN_FEW_TOKENS = 4        /* for so many a panel is not worth while */
};

#define BASE 96.0f /* 1.5 * 2^6: sums of up to 2^22 in magnitude keep the exponent */
#define UNITS 0x1p17f
enum { BASE_BITS = 0x42c00000 };

/* What distinguishes types once their quants are bytes. */
typedef struct form {
    bool min, by_16;
} form;

INLINE form form_of(uint32_t type)
{
    return (form){has_min(type), scaled_by_16(type)};
}

/* 32 activations of one token. c: what the sums of the halves start with; f * d + base is what half
 * h makes of sums whose bits are f. */
typedef struct act {
    _Alignas(64) int8_t q[32];
    float d[2], s[2]; /* of types with one scale per 32 columns s[0] is the sum of both halves */
    int32_t c[2];
    float base[2];
} act;

/* A float with 22 significant bits. */
INLINE float shorter(float x)
{
    uint32_t v;
    memcpy(&v, &x, sizeof v);
    v = (v + 2) & ~UINT32_C(3);
    memcpy(&x, &v, sizeof x);
    return x;
}

/* With one scale per 32 columns the halves of a block differ in the activations' steps only. So the
 * sums of half 0 are turned into units of half 1, by one multiplication and addition, and half 1
 * goes on from there: that saves a conversion. The quants of half 1 come times `high`, so that
 * units are small, and what is rounded is up to half of one. */
INLINE int high_of(uint32_t type)
{
    return scaled_by_16(type) ? 1 : 1 << (8 - tn_group_shape_of(type, 8).bits);
}

/* x, or, where half 1 has so small a step that sums in units of it may reach 2^22, `other` with a
 * larger one (m is at most 18 then) and the quants rounded to that: they are small beside those of
 * half 0, whose own rounding is several times as much. */
INLINE const tn_q8 *with_least_step(const tn_q8 *x, tn_q8 *other)
{
    const vec q = _mm256_loadu_si256((const __m256i *)(const void *)x->q);
    const vec sums = _mm256_sad_epu8(_mm256_abs_epi8(q), _mm256_setzero_si256());
    const int first = _mm256_extract_epi16(sums, 0) + _mm256_extract_epi16(sums, 4),
              second = _mm256_extract_epi16(sums, 8) + _mm256_extract_epi16(sums, 12);
    const int room = (1 << 14) - 1 - second; /* of sums of bytes, in 256ths of 2^22 */
    if (first * x->m[0] < room * x->m[1]) return x;
    const int m = first * x->m[0] / room + 1;
    *other = *x;
    other->m[1] = (int16_t)m;
    for (int i = 16; i < 32; i++) {
        const int twice = 2 * x->q[i] * x->m[1];
        other->q[i] = (int8_t)((twice + (twice < 0 ? -m : m)) / (2 * m));
    }
    return other;
}

/* The nearest float with 22 significant bits that is a multiple of 2^-22, so that BASE - BASE * r
 * is exact. */
INLINE float short_ratio(float r)
{
    return shorter((r + 2.0f) - 2.0f);
}

/* What products make of their sums. o has q, s, and as c[h] what offsets add to the sums of half h.
 */
INLINE void prepare_sums(uint32_t type, act *o, const tn_q8 *x)
{
    const int high = high_of(type);
    for (int h = 0; h < 2; h++) {
        o->d[h] = shorter(x->d * (float)x->m[h] / (float)(h ? high : 1));
        o->base[h] = -BASE * o->d[h];
    }
    if (!scaled_by_16(type)) {
        o->base[1] = ((float)o->c[1] / UNITS - BASE) * o->d[1];
        o->d[0] = short_ratio((float)(high * x->m[0]) / (float)x->m[1]);
        o->base[0] = BASE - BASE * o->d[0];
    }
    for (int h = 0; h < 2; h++)
        o->c[h] += BASE_BITS;
}

/* The packed activations that x brings along, if they serve this type too. */
INLINE const act *brought(uint32_t type, const tn_acts *x)
{
    return x->packed && tn_quant_offset(x->packed_type) == tn_quant_offset(type) &&
                   high_of(x->packed_type) == high_of(type) &&
                   scaled_by_16(x->packed_type) == scaled_by_16(type)
               ? x->packed
               : NULL;
}

/* Where block b of token t lies among those of n tokens, `tile` of them a tile: [tile][block][token
 * of the tile]. */
INLINE act *packed_at(act *a, int tile, int64_t n, int64_t blocks, int64_t t, int64_t b)
{
    const int64_t t0 = t / tile * tile, m = n - t0 < tile ? n - t0 : tile;
    return a + t0 * blocks + b * m + (t - t0);
}

/* Tokens at a time, as even as tiles allow. */
INLINE int64_t chunk_tokens(int tile, int64_t n, int64_t blocks)
{
    const int64_t most = CHUNK_BYTES / ((blocks < PIECE ? blocks : PIECE) * (int64_t)sizeof(act));
    const int64_t chunks = (n + most - 1) / most;
    return ((n + chunks - 1) / chunks + tile - 1) / tile * tile;
}

/* A piece of the product: blocks [b0, b1) of n tokens of packed activations, whose tiles have
 * `blocks` blocks of which the first is a_b0. */
typedef struct piece {
    const act *a;
    int64_t n, blocks, a_b0, b0, b1;
} piece;

#endif
