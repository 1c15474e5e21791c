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
