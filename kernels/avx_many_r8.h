/* Products of many tokens with 8-row interleaved weights. GROUPS times 8 rows are unpacked into a
 * panel in L1, once for many tokens, so that a broadcast of activations serves all of them: 16
 * registers do not hold the unpacked weights of 16 rows, as those of AVX-512 do. Tiles of 3 tokens
 * run over the panel: 6 integer sums, 6 float sums, 2 vectors of weights and an activation are 15
 * registers. A long row is cut into pieces of columns whose activations stay in L2, and those into
 * slabs whose panel stays in L1; sums continue in y. A few tokens are left to avx2_r8.c: they are
 * bound by memory, or by unpacking.
 *
 * What a block is, and how it is multiplied, is the including file's. Before this one it has, each
 * with a constant `type`:
 *   int64_t act_bytes(type), void pack_block(type, void *out, const tn_q8 *x): the activations
 *     of a block;
 *   bool packed_alike(type, other): what is packed for the one serves the other, too;
 *   int64_t panel_block(type), void panel_step(type, const uint8_t *step, const r8_head *h, int j,
 *     uint8_t *out): the 32 columns of a group in a panel, 32-byte aligned, made of step j;
 *   int quant_bytes(type), int sums_of_block(type): bytes of the vectors that a block begins with,
 *     and how many integer sums these give: each is of as many of them, one after the other;
 *   vec first_sum(type, const void *a, int t, int part): what sum `part` of token t begins with;
 *   vec add_product(type, vec sum, vec weights, vec x): + a vector times four bytes of a block of
 *     activations, which begins with the quants in the vectors' order;
 *   void finish_part(type, int g, int n, const uint8_t *w, const void *a, int part, const vec *sum,
 *     vec *total, __m256 *acc): acc += what the sums of g groups of a panel times n tokens, both
 *     constants, say; element i * n + t is of group i and token t; total: for integers from one
 *     part to the next;
 *   TILES(X), uint32_t tile_type(type): types for which there is a tile, and which serves a type;
 *   MANY_TYPES(X), int64_t few_tokens(type): types that panels are for, and for how many tokens
 *     avx2_r8.c, which needs none, is faster.
 *   TOKENS, MOST_PANEL_BLOCK: tokens of a tile, and the largest panel_block(). */
#ifndef TN_AVX_MANY_R8_H
#define TN_AVX_MANY_R8_H

#include "avx_many.h"

enum {
    GROUPS = 2, /* of 8 rows in a panel */
    SLAB = 24   /* blocks of 32 columns of a panel, a whole number of 256 columns */
};

/* ---- activations ----------------------------------------------------------------------------- */

INLINE void pack_all(uint32_t type, const tn_packing *p)
{
    for (int64_t t = p->t0; t < p->t1; t++) {
        const tn_q8 *x = p->q + (t - p->t0) * p->q_stride;
        for (int64_t b = p->b0; b < p->b1; b++)
            pack_block(type,
                       (uint8_t *)p->out +
                           packed_at(TOKENS, p->n, p->blocks, t, b) * act_bytes(type),
                       x + (b - p->b0));
    }
}

/* The packed activations that x brings along, if they serve this type too. */
static const uint8_t *brought(uint32_t type, const tn_acts *x)
{
    if (!x->packed || x->packed_layout != TN_LAYOUT_R8 || x->n <= few_tokens(x->packed_type))
        return NULL;
    return packed_alike(type, x->packed_type) ? x->packed : NULL;
}

/* ---- panels ---------------------------------------------------------------------------------- */

/* All units of a group. stride: bytes from a block of the panel to the next. */
INLINE void make_panel(uint32_t type, const uint8_t *group, int64_t units, uint8_t *out,
                       int64_t stride)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    for (int64_t u = 0; u < units; u++) {
        const uint8_t *unit = group + tn_unit_bytes(s) * u;
        r8_head h;
        read_head(type, unit, &h);
        for (int j = 0; j < s.cols / 32; j++, out += stride)
            panel_step(type, unit + s.head + tn_step_bytes(s) * j, &h, j, out);
    }
}

/* Blocks [b0, b1) of g groups from row0 on, wherever they lie: panels side by side. */
INLINE void make_panels(uint32_t type, const tn_weight *w, int64_t g, int64_t row0, int64_t b0,
                        int64_t b1, uint8_t *panel)
{
    const int64_t block = panel_block(type), per = tn_group_shape_of(type, 8).cols / 32;
    while (b0 < b1) {
        const tn_group_run run = tn_group_run_at(type, 8, w, b0);
        const int64_t blocks = (run.end < b1 ? run.end : b1) - b0;
        for (int64_t i = 0; i < g; i++)
            make_panel(type, run.at + (row0 / 8 + i) * run.next, blocks / per, panel + i * block,
                       g * block);
        panel += blocks * g * block;
        b0 += blocks;
    }
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* sum += vectors j0 to j1 - 1 of a panel's block times activations. */
INLINE void add_products(uint32_t type, int g, int n, const uint8_t *w, const uint8_t *a, int j0,
                         int j1, vec *sum)
{
#pragma GCC unroll 16
    for (int j = j0; j < j1; j++) {
        vec v[GROUPS];
#pragma GCC unroll 2
        for (int i = 0; i < g; i++)
            v[i] = load(w + i * panel_block(type) + 32 * j);
#pragma GCC unroll 3
        for (int t = 0; t < n; t++) {
            const vec x = broadcast(a + t * act_bytes(type) + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < g; i++)
                sum[i * n + t] = add_product(type, sum[i * n + t], v[i], x);
        }
    }
}

/* acc += a block */
INLINE void add_block(uint32_t type, int g, int n, const uint8_t *w, const uint8_t *a, __m256 *acc)
{
    const int parts = sums_of_block(type), per = quant_bytes(type) / 32 / parts;
    vec sum[GROUPS * TOKENS], total[GROUPS * TOKENS];
#pragma GCC unroll 2
    for (int part = 0; part < parts; part++) {
#pragma GCC unroll 6
        for (int k = 0; k < g * n; k++)
            sum[k] = first_sum(type, a, k % n, part);
        add_products(type, g, n, w, a, part * per, part * per + per, sum);
        finish_part(type, g, n, w, a, part, sum, total, acc);
    }
}

/* y[t][rows] (+)= g groups of a panel times n tokens, for rows 0 to rows - 1. */
INLINE void tile(uint32_t type, int g, int n, const uint8_t *w, const uint8_t *a, int64_t blocks,
                 float *y, int64_t y_stride, int64_t rows, bool add)
{
    __m256 acc[GROUPS * TOKENS];
#pragma GCC unroll 6
    for (int i = 0; i < g * n; i++)
        acc[i] = add ? load_rows(y + i % n * y_stride + 8 * (i / n), rows - 8 * (i / n))
                     : _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, w += g * panel_block(type), a += n * act_bytes(type))
        add_block(type, g, n, w, a, acc);
#pragma GCC unroll 6
    for (int i = 0; i < g * n; i++)
        store_rows(y + i % n * y_stride + 8 * (i / n), acc[i], rows - 8 * (i / n));
}

/* Not inlined where there is one caller: its registers would be spilled within the loops. */
#define TILE(name, type)                                                                           \
    static __attribute__((noinline)) void tile_##name(int64_t n, const uint8_t *w,                 \
                                                      const uint8_t *a, int64_t blocks, float *y,  \
                                                      int64_t y_stride, int64_t rows, bool add)    \
    {                                                                                              \
        switch ((rows > 8 ? 10 : 0) + (int)n) {                                                    \
        case 1: tile(type, 1, 1, w, a, blocks, y, y_stride, rows, add); return;                    \
        case 2: tile(type, 1, 2, w, a, blocks, y, y_stride, rows, add); return;                    \
        case 3: tile(type, 1, 3, w, a, blocks, y, y_stride, rows, add); return;                    \
        case 11: tile(type, 2, 1, w, a, blocks, y, y_stride, rows, add); return;                   \
        case 12: tile(type, 2, 2, w, a, blocks, y, y_stride, rows, add); return;                   \
        default: tile(type, 2, 3, w, a, blocks, y, y_stride, rows, add); return;                   \
        }                                                                                          \
    }
TILES(TILE)

/* ---- what is read next ----------------------------------------------------------------------- */

/* Weights that are read next: `streams` groups of rows, or slabs of all these rows, `stride` bytes
 * apart, `bytes` of each. */
typedef struct coming {
    const uint8_t *at;
    int64_t streams, stride, bytes;
} coming;

/* What follows the blocks of a piece up to b1 of the rows from row0 on, `most` at a time: the rest
 * of these rows, or other rows. */
INLINE coming next_weights(uint32_t type, const tn_weight *w, int64_t most, int64_t row0,
                           int64_t row1, int64_t b1, const piece *p)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
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

/* ---- products -------------------------------------------------------------------------------- */

typedef void (*tile_fn)(int64_t n, const uint8_t *w, const uint8_t *a, int64_t blocks, float *y,
                        int64_t y_stride, int64_t rows, bool add);

#define TILE_CASE(name, type)                                                                      \
    case type: return tile_##name;
INLINE tile_fn tile_of(uint32_t type)
{
    switch (tile_type(type)) {
        TILES(TILE_CASE)
    default: return NULL;
    }
}

/* A piece times the rows from row0 on, at most 8 * GROUPS. */
INLINE void some_rows(uint32_t type, const tn_weight *w, const piece *p, uint8_t *panel, float *y,
                      int64_t y_stride, int64_t row0, int64_t row1)
{
    const int64_t left = row1 - row0 < 8 * GROUPS ? row1 - row0 : 8 * GROUPS, g = left > 8 ? 2 : 1;
    for (int64_t b0 = p->b0; b0 < p->b1; b0 += SLAB) {
        const int64_t n = p->b1 - b0 < SLAB ? p->b1 - b0 : SLAB;
        const coming next = next_weights(type, w, 8 * GROUPS, row0, row1, b0 + n, p);
        make_panels(type, w, g, row0, b0, b0 + n, panel);
        for (int64_t t = 0; t < p->n; t += TOKENS) {
            const int64_t m = p->n - t < TOKENS ? p->n - t : TOKENS;
            const int64_t at = t * p->blocks + (b0 - p->a_b0) * m;
            float *to = y + t * y_stride + row0;
            fetch_ahead(&next, t / TOKENS, (p->n + TOKENS - 1) / TOKENS);
            fetch_sums(to + TOKENS * y_stride, y_stride, p->n - t - TOKENS, TOKENS, 8 * GROUPS);
            tile_of(type)(m, panel, (const uint8_t *)p->a + at * act_bytes(type), n, to, y_stride,
                          left, b0 > 0);
        }
    }
}

enum { PANEL_BYTES = GROUPS * SLAB * MOST_PANEL_BLOCK };
_Static_assert(PANEL_BYTES + CHUNK_BYTES <= TN_SCRATCH_BYTES, "scratch");

INLINE void many(uint32_t type, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                 int64_t row0, int64_t row1, void *scratch)
{
    const uint8_t *ready = brought(type, x);
    const int64_t blocks = w->cols / 32, most = chunk_tokens(TOKENS, act_bytes(type), x->n, blocks);
    uint8_t *panel = scratch, *own = panel + PANEL_BYTES;
    for (int64_t t = 0; t < x->n; t += most)
        for (int64_t b = 0; b < blocks; b += PIECE) {
            const int64_t n = x->n - t < most ? x->n - t : most;
            const int64_t size = blocks - b < PIECE ? blocks - b : PIECE;
            piece p = {own, n, size, b, b, b + size};
            if (ready)
                p = (piece){ready + t * blocks * act_bytes(type), n, blocks, 0, b, b + size};
            else
                pack_all(type,
                         &(tn_packing){own, n, size, 0, n, 0, size, x->q + t * blocks + b, blocks});
            for (int64_t r = row0; r < row1; r += 8 * GROUPS)
                some_rows(type, w, &p, panel, y + t * y_stride, y_stride, r, row1);
        }
}

#define MANY(name, type)                                                                           \
    static void many_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,      \
                            int64_t row0, int64_t row1, void *scratch)                             \
    {                                                                                              \
        many(type, w, x, y, y_stride, row0, row1, scratch);                                        \
    }
MANY_TYPES(MANY)

#define MANY_CASE(name, type)                                                                      \
    case type: return many_##name;
INLINE tn_matmul_fn many_of(uint32_t type)
{
    switch (type) {
        MANY_TYPES(MANY_CASE)
    default: return NULL;
    }
}

INLINE void any(uint32_t type, bool ahead, const tn_weight *w, const tn_acts *x, float *y,
                int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    if (x->n > few_tokens(type)) {
        many_of(type)(w, x, y, y_stride, row0, row1, scratch);
        return;
    }
    tn_acts few = *x;
    if (few.packed && x->n > few_tokens(x->packed_type)) few.packed = NULL; /* for tiles */
    tn_r8_matmul_avx2(type, ahead)(w, &few, y, y_stride, row0, row1, scratch);
}

#define MATMUL(name, type)                                                                         \
    static void matmul_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,    \
                              int64_t row0, int64_t row1, void *scratch)                           \
    {                                                                                              \
        any(type, false, w, x, y, y_stride, row0, row1, scratch);                                  \
    }                                                                                              \
    static void matmul_##name##_ahead(const tn_weight *w, const tn_acts *x, float *y,              \
                                      int64_t y_stride, int64_t row0, int64_t row1, void *scratch) \
    {                                                                                              \
        any(type, true, w, x, y, y_stride, row0, row1, scratch);                                   \
    }                                                                                              \
    static void pack_##name(const tn_packing *p)                                                   \
    {                                                                                              \
        if (p->n > few_tokens(type))                                                               \
            pack_all(type, p);                                                                     \
        else                                                                                       \
            tn_r8_pack_avx2(type)(p);                                                              \
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define SET(name, type)                                                                            \
    k->matmul[TN_LAYOUT_R8][type] = k->prefetch ? matmul_##name##_ahead : matmul_##name;           \
    k->pack[TN_LAYOUT_R8][type] = pack_##name;
static void set_r8(tn_kernels *k)
{
    TN_INTERLEAVED_TYPES(SET)
}

#endif
