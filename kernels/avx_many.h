/* What products of many tokens share, whatever the width of their vectors: how a product is cut up,
 * and activations as the tiles with VNNI read them. avx512_many.c explains it; avx_many_r8.h does it
 * with half as wide vectors. */
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
    const int64_t most = CHUNK_BYTES / ((blocks < PIECE ? blocks : PIECE) * act_bytes);
    const int64_t chunks = (n + most - 1) / most;
    return ((n + chunks - 1) / chunks + tile - 1) / tile * tile;
}

/* A piece of the product: blocks [b0, b1) of n tokens of packed activations, whose tiles have
 * `blocks` blocks of which the first is a_b0. */
typedef struct piece {
    const void *a;
    int64_t n, blocks, a_b0, b0, b1;
} piece;

/* Weights that are read next: `streams` groups of rows, or slabs of all these rows, `stride` bytes
 * apart, `bytes` of each. */
typedef struct coming {
    const uint8_t *at;
    int64_t streams, stride, bytes;
} coming;

/* What follows the blocks of a piece up to b1 of the rows from row0 on, `most` at a time: the rest
 * of these rows, or other rows. */
INLINE coming next_weights(tn_layout layout, uint32_t type, const tn_weight *w, int64_t most,
                           int64_t row0, int64_t row1, int64_t b1, const piece *p)
{
    const tn_group_shape s = tn_group_shape_of(type, tn_layout_rows(layout));
    const bool more = b1 < p->b1;
    const int64_t row = more ? row0 : row0 + most, b0 = more ? b1 : p->b0;
    const int64_t rows = row1 - row < most ? row1 - row : most;
    const int64_t b = p->b1 - b0 < SLAB ? p->b1 - b0 : SLAB;
    if (rows <= 0) return (coming){NULL, 0, 0, 0};
    const int64_t unit = tn_unit_bytes(s), per = s.cols / 32, groups = (rows + s.rows - 1) / s.rows;
    const tn_group_run run = tn_group_run_at(type, s.rows, w, b0);
    const uint8_t *at = run.at + row / s.rows * run.next;
    if (!w->slab) return (coming){at, groups, run.next, b / per * unit};
    const int64_t slab = w->slab / 32;
    return (coming){at, (b + slab - 1) / slab, slab / per * unit * (w->slab_rows / s.rows),
                    groups * run.next};
}

/* Asks for part i of n of them. */
INLINE void fetch_ahead(const coming *a, int64_t i, int64_t n)
{
    const int64_t from = a->bytes * i / n / 64 * 64, to = a->bytes * (i + 1) / n;
    for (int64_t s = 0; s < a->streams; s++)
        for (int64_t at = from; at < to; at += 64)
            _mm_prefetch((const char *)a->at + s * a->stride + at, _MM_HINT_T1);
}

/* Asks for `rows` sums of up to n tokens, those of the next tile if it has `most`. With rows of a
 * power of two they share few sets of the caches, and are far away by now. */
INLINE void fetch_sums(const float *y, int64_t y_stride, int64_t n, int64_t most, int64_t rows)
{
    for (int64_t t = 0; t < n && t < most; t++, y += y_stride)
        for (int64_t r = 0; r < rows; r += 16)
            _mm_prefetch((const char *)(y + r), _MM_HINT_T0);
}

#endif
