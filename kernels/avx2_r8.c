/* Products with 8-row interleaved weights, AVX2: a step is unpacked once and used for a tile of
 * tokens, whose activations lie packed in scratch in the order of use. A row is reduced in the same
 * order with the same operations for any n: results do not depend on it. Many tokens of most types
 * are avx2_many.c's or avxvnni_many.c's, see few_tokens() there.
 *
 * One token is bound by memory. Measured on Zen 4: one stream reaches 95 % of what plain reading
 * does, several groups in step only half of that, and software prefetch costs 5 to 15 %. On Xeons
 * software prefetch in four groups in step is best; so a CPU gets what suits it. With prefetch and
 * two groups in step 2 and 4 tokens cost 1.3 and 1.5 times what one does (one core of a Xeon, from
 * memory), and 1.8 and 2.1 times without. From 5 tokens on one group is best: sums take the
 * registers, and arithmetic is the limit. With prefetch 5 and 8 tokens cost 1.8 and 2.2 times
 * one, 2.4 and 3.0 without. On Zen 4, too, requests pay from 4 tokens on: there is time between
 * loads then (Q4_K from memory, GOP/s a core without and with: 3 tokens 172 and 170, 4 161 and 170,
 * 5 149 and 180, 8 168 and 203). */
#include "avx2_r8.h"
#include "avx_fetch.h"

enum {
    TILE = 64,       /* most tokens of a tile */
    PIECE = 64,      /* blocks of columns at a time: a tile's activations stay in L2 */
    FEW = 4,         /* tokens whose weights are read in several streams: */
    STREAMS = 4,     /* groups in step, with software prefetch; */
    FEW_STREAMS = 2, /* of several tokens */
    ASKING = 4,      /* tokens from which on one stream is asked for on every CPU */
    FAR = 3456,      /* bytes between what is read and what is asked for, in each, */
    NEAR = 1152      /* and what is brought to the first level */
};

/* Tokens of a tile, as even as possible. */
static int64_t tile_tokens(int64_t n)
{
    const int64_t tiles = (n + TILE - 1) / TILE;
    return (n + tiles - 1) / tiles;
}

/* A part of [tile][block][token of the tile], with tiles of `tile` tokens. */
INLINE void pack_acts(uint32_t type, const tn_packing *p, int64_t tile)
{
    for (int64_t t = p->t0; t < p->t1; t++) {
        const int64_t first = t / tile * tile, n = p->n - first < tile ? p->n - first : tile;
        r8_act *out = (r8_act *)p->out + first * p->blocks + (t - first);
        const tn_q8 *q = p->q + (t - p->t0) * p->q_stride;
        for (int64_t b = p->b0; b < p->b1; b++)
            pack_act(type, out + b * n, q + (b - p->b0));
    }
}

/* The packed activations that x brings along, if they serve this type too. */
static const r8_act *brought(uint32_t type, const tn_acts *x)
{
    if (!x->packed || x->packed_layout != TN_LAYOUT_R8) return NULL;
    return quant_offset(type) == quant_offset(x->packed_type) ? x->packed : NULL;
}

/* Asks for the cache lines of [w, w + bytes). */
INLINE void fetch_lines(const uint8_t *w, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)w + i, _MM_HINT_T0);
}

/* acc += units of one group times n tokens of the packed activations a. ahead: asks for what is
 * read 256 columns later, and behind the last ones for what the group `next`
 * bytes on begins with. */
INLINE void group_tile(uint32_t type, bool ahead, const uint8_t *w, int64_t next, const r8_act *a,
                       int64_t n, int64_t units, __m256 *acc)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    const int steps = s.cols / 32, step_bytes = 32 * s.bits;
    const int64_t later = 256 / s.cols, jump = next - units * tn_unit_bytes(s);
    for (int64_t u = 0; u < units; u++, w += tn_unit_bytes(s)) {
        const uint8_t *then = w + later * tn_unit_bytes(s) + (u + later < units ? 0 : jump);
        r8_head h;
        if (ahead) fetch_lines(then, s.head);
        read_head(type, w, &h);
#pragma GCC unroll 1
        for (int j = 0; j < steps; j++, a += n) {
            const int64_t at = s.head + step_bytes * j;
            vec v[8];
            if (ahead) fetch_lines(then + at, step_bytes);
            read_quants(s.bits, w + at, v);
#pragma GCC unroll 4
            for (int64_t t = 0; t < n; t++)
                acc[t] = step_product(type, &h, j, v, a + t, acc[t]);
        }
    }
}

/* Where the sums of groups in step are: those of group i and token t at y + i * next + t *
 * y_stride, `left` rows of each group, or all 8. */
typedef struct sums_at {
    float *y;
    int64_t y_stride, next, left;
} sums_at;

/* Sums = or += units of groups, each `next` bytes after the one before, times tokens; g groups in
 * step and n tokens (constants). What is read after the last units, and asked for during them, lies
 * `jump` bytes behind their end. */
INLINE void groups_in_step(uint32_t type, int g, int n, const uint8_t *w, int64_t next,
                           int64_t jump, const r8_act *a, int64_t units, const sums_at *o, bool add)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    const int steps = s.cols / 32, step_bytes = 32 * s.bits;
    __m256 sum[STREAMS * FEW];
#pragma GCC unroll 16
    for (int i = 0; i < g * n; i++)
        sum[i] = _mm256_setzero_ps();
    if (add) {
#pragma GCC unroll 16
        for (int i = 0; i < g * n; i++)
            sum[i] = load_rows(o->y + i / n * o->next + i % n * o->y_stride, o->left);
    }
    const int64_t unit = tn_unit_bytes(s), later = FAR / unit > 1 ? FAR / unit : 1;
    for (int64_t u = 0; u < units; u++, w += unit) {
        const int64_t far = later * unit + (u + later < units ? 0 : jump);
        r8_head h[STREAMS];
#pragma GCC unroll 4
        for (int i = 0; i < g; i++) {
            fetch_stream(w + i * next, s.head, NEAR, far);
            read_head(type, w + i * next, &h[i]);
        }
#pragma GCC unroll 1
        for (int j = 0; j < steps; j++, a += n)
#pragma GCC unroll 4
            for (int i = 0; i < g; i++) {
                const uint8_t *step = w + i * next + s.head + step_bytes * j;
                vec v[8];
                fetch_stream(step, step_bytes, NEAR, far);
                read_quants(s.bits, step, v);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++)
                    sum[i * n + t] = step_product(type, &h[i], j, v, a + t, sum[i * n + t]);
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < g * n; i++)
        store_rows(o->y + i / n * o->next + i % n * o->y_stride, sum[i], o->left);
}

/* A run of rows' groups, and where the same of the next run lies (NULL: this one is the last). */
typedef struct rows_of_run {
    tn_group_run run;
    const uint8_t *then;
    bool slabs;
} rows_of_run;

/* All rows times n tokens (a constant). What is read in step should be far apart, for as many pages
 * to be read ahead of: rows next to each other, or, in a slab, where they lie close, parts of the
 * rows. The last of a slab ask for the first of the next one. */
INLINE void few_tokens(uint32_t type, int n, const rows_of_run *r, const r8_act *a, int64_t units,
                       float *y, int64_t y_stride, int64_t row0, int64_t row1, bool add)
{
    const int streams = n == 1 ? STREAMS : FEW_STREAMS;
    const int64_t first = row0 / 8, sets = (row1 - row0) / 8 / streams, apart = r->slabs ? sets : 1;
    const int64_t row = units * tn_unit_bytes(tn_group_shape_of(type, 8));
    for (int64_t k = 0; k < sets; k++) {
        const int64_t g = first + (r->slabs ? k : k * streams);
        const uint8_t *at = r->run.at + g * r->run.next;
        const uint8_t *then = at + (r->slabs ? 1 : streams) * r->run.next;
        if (r->then && k + 1 == sets) then = r->then;
        const sums_at o = {y + 8 * g, y_stride, 8 * apart, 8};
        groups_in_step(type, streams, n, at, apart * r->run.next, then - at - row, a, units, &o,
                       add);
    }
    for (int64_t g = first + sets * streams; 8 * g < row1; g++) {
        const sums_at o = {y + 8 * g, y_stride, 0, row1 - 8 * g};
        groups_in_step(type, 1, n, r->run.at + g * r->run.next, 0, 0, a, units, &o, add);
    }
}

INLINE void few_rows(uint32_t type, int64_t n, const rows_of_run *r, const r8_act *a, int64_t units,
                     float *y, int64_t y_stride, int64_t row0, int64_t row1, bool add)
{
    switch (n) {
    case 1: few_tokens(type, 1, r, a, units, y, y_stride, row0, row1, add); return;
    case 2: few_tokens(type, 2, r, a, units, y, y_stride, row0, row1, add); return;
    case 3: few_tokens(type, 3, r, a, units, y, y_stride, row0, row1, add); return;
    default: few_tokens(type, 4, r, a, units, y, y_stride, row0, row1, add); return;
    }
}

/* acc += blocks [b0, b1) of group g times n tokens. */
INLINE void group_runs(uint32_t type, bool ahead, const tn_weight *w, int64_t g, const r8_act *a,
                       int64_t n, int64_t b0, int64_t b1, __m256 *acc)
{
    const int64_t per = tn_group_shape_of(type, 8).cols / 32;
    while (b0 < b1) {
        const tn_group_run run = tn_group_run_at(type, 8, w, b0);
        const int64_t blocks = (run.end < b1 ? run.end : b1) - b0;
        group_tile(type, ahead, run.at + g * run.next, run.next, a, n, blocks / per, acc);
        a += blocks * n;
        b0 += blocks;
    }
}

/* Blocks [b0, b0 + blocks) of all groups times a tile of n tokens, of few within a run; sums
 * continue in y. */
INLINE void piece_rows(uint32_t type, bool ahead, const tn_weight *w, const r8_act *a, int64_t n,
                       int64_t b0, int64_t blocks, float *y, int64_t y_stride, int64_t row0,
                       int64_t row1)
{
    const int64_t units = blocks / (tn_group_shape_of(type, 8).cols / 32);
    if (n <= FEW && ahead) {
        rows_of_run r = {tn_group_run_at(type, 8, w, b0), NULL, w->slab > 0};
        if (r.slabs && r.run.end < w->cols / 32) {
            const tn_group_run then = tn_group_run_at(type, 8, w, r.run.end);
            r.then = then.at + row0 / 8 * then.next;
        }
        few_rows(type, n, &r, a, units, y, y_stride, row0, row1, b0 > 0);
        return;
    }
    for (int64_t g = row0 / 8; 8 * g < row1; g++) {
        const int64_t left = row1 - 8 * g;
        __m256 acc[TILE];
        for (int64_t t = 0; t < n; t++)
            acc[t] = b0 ? load_rows(y + t * y_stride + 8 * g, left) : _mm256_setzero_ps();
        if (n == 1)
            group_runs(type, ahead, w, g, a, 1, b0, b0 + blocks, acc);
        else
            group_runs(type, ahead || n >= ASKING, w, g, a, n, b0, b0 + blocks, acc);
        for (int64_t t = 0; t < n; t++)
            store_rows(y + t * y_stride + 8 * g, acc[t], left);
    }
}

/* Blocks of a piece from block b0 on for n tokens. Few are bound by memory, so that all rows of one
 * slab come before those of the next. */
INLINE int64_t piece_blocks(uint32_t type, const tn_weight *w, int64_t b0, int64_t most, int64_t n)
{
    const int64_t end = n <= FEW ? tn_group_run_at(type, 8, w, b0).end : w->cols / 32;
    return end - b0 < most ? end - b0 : most;
}

INLINE void matmul(uint32_t type, bool ahead, const tn_weight *w, const tn_acts *x, float *y,
                   int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    const int64_t blocks = w->cols / 32, tile = tile_tokens(x->n);
    const int64_t most = tile > 1 ? PIECE : TN_SCRATCH_BYTES / (int64_t)sizeof(r8_act) / 8 * 8;
    const r8_act *ready = tile > 1 ? brought(type, x) : NULL;
    for (int64_t t0 = 0; t0 < x->n; t0 += tile)
        for (int64_t b0 = 0, b; b0 < blocks; b0 += b) {
            const int64_t n = x->n - t0 < tile ? x->n - t0 : tile;
            b = piece_blocks(type, w, b0, most, n);
            const tn_packing part = {scratch, n, b, 0, n, 0, b, x->q + t0 * blocks + b0, blocks};
            if (!ready) pack_acts(type, &part, n);
            piece_rows(type, ahead, w, ready ? ready + t0 * blocks + b0 * n : scratch, n, b0, b,
                       y + t0 * y_stride, y_stride, row0, row1);
        }
}

#define MATMUL(name, type)                                                                         \
    static void matmul_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,    \
                              int64_t row0, int64_t row1, void *scratch)                           \
    {                                                                                              \
        matmul(type, false, w, x, y, y_stride, row0, row1, scratch);                               \
    }                                                                                              \
    static void matmul_##name##_ahead(const tn_weight *w, const tn_acts *x, float *y,              \
                                      int64_t y_stride, int64_t row0, int64_t row1, void *scratch) \
    {                                                                                              \
        matmul(type, true, w, x, y, y_stride, row0, row1, scratch);                                \
    }                                                                                              \
    static void pack_##name(const tn_packing *p)                                                   \
    {                                                                                              \
        pack_acts(type, p, tile_tokens(p->n));                                                     \
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define CASE(name, type)                                                                           \
    case type: return ahead ? matmul_##name##_ahead : matmul_##name;
tn_matmul_fn tn_r8_matmul_avx2(uint32_t type, bool ahead)
{
    switch (type) {
        TN_INTERLEAVED_TYPES(CASE)
    default: return NULL;
    }
}

#define PACK_CASE(name, type)                                                                      \
    case type: return pack_##name;
tn_pack_fn tn_r8_pack_avx2(uint32_t type)
{
    switch (type) {
        TN_INTERLEAVED_TYPES(PACK_CASE)
    default: return NULL;
    }
}
