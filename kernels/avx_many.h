/* What products of many tokens share, with panels (avx_many_r8.h) or without (avx512_many.c): how a
 * product is cut up, and activations as VNNI reads them, which avx512_many.c explains. */
#ifndef TN_AVX_MANY_H
#define TN_AVX_MANY_H

#include "avx2_r8.h"

enum {
    PIECE = 72,             /* blocks of activations, a whole number of 256 columns, */
    CHUNK_BYTES = 640 << 10 /* and bytes, that stay in L2 for all rows */
};

#define BASE 96.0f /* 1.5 * 2^6: sums of up to 2^22 in magnitude keep the exponent */
#define UNITS 0x1p17f
enum { BASE_BITS = 0x42c00000 };

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

/* Which of the blocks of n tokens is block b of token t, `tile` tokens a tile: [tile][block][token
 * of the tile]. */
INLINE int64_t packed_at(int tile, int64_t n, int64_t blocks, int64_t t, int64_t b)
{
    const int64_t t0 = t / tile * tile, m = n - t0 < tile ? n - t0 : tile;
    return t0 * blocks + b * m + (t - t0);
}

/* Tokens at a time, as even as tiles allow; act_bytes: of a block of activations. */
INLINE int64_t chunk_tokens(int tile, int64_t act_bytes, int64_t n, int64_t blocks)
{
    const int64_t fit = CHUNK_BYTES / ((blocks < PIECE ? blocks : PIECE) * act_bytes);
    const int64_t most = fit / tile * tile;
    const int64_t chunks = (n + most - 1) / most;
    return ((n + chunks - 1) / chunks + tile - 1) / tile * tile;
}

/* A piece of the product: blocks [b0, b1) of n tokens of packed activations, whose tiles have
 * `blocks` blocks of which the first is a_b0. */
typedef struct piece {
    const void *a;
    int64_t n, blocks, a_b0, b0, b1;
} piece;

#endif
