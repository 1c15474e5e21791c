/* Products of many tokens with 8-row interleaved weights, AVX-VNNI: avx512_many.c with half as wide
 * vectors, which says why sums start at the bits of BASE and what a panel is for. Here a panel is
 * of GROUPS times 8 rows, and a tile of 16 rows and 3 tokens: 6 integer sums, 6 float sums, 2
 * vectors of weights and an activation are 15 of 16 registers. The sums of a block's halves stay
 * apart: with six at a time, one after the other is slower by a twentieth. A few tokens are left to
 * avx2_r8.c: they are bound by memory, or by unpacking (8 tokens: 2.3 times the price of one, 3.2
 * by way of panels). */
#include "avx_many.h"

enum { TOKENS = 3 }; /* of a tile */

/* Bytes of 32 columns of a group: quants, then scales and minima of the rows as floats. */
INLINE int64_t panel_block(form f)
{
    return 256 + 32 * (f.by_16 ? 2 : 1) * (f.min ? 2 : 1);
}

/* ---- activations ----------------------------------------------------------------------------- */

INLINE void pack(uint32_t type, act *o, const tn_q8 *x)
{
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

INLINE void pack_all(uint32_t type, const tn_packing *p)
{
    for (int64_t t = p->t0; t < p->t1; t++) {
        const tn_q8 *x = p->q + (t - p->t0) * p->q_stride;
        for (int64_t b = p->b0; b < p->b1; b++)
            pack(type, packed_at(p->out, TOKENS, p->n, p->blocks, t, b), x + (b - p->b0));
    }
}

/* The packed activations that x brings along, if they serve this type too. */
static const act *brought(uint32_t type, const tn_acts *x)
{
    if (!x->packed || x->packed_layout != TN_LAYOUT_R8) return NULL;
    return tn_quant_offset(x->packed_type) == tn_quant_offset(type) &&
                   scaled_by_16(x->packed_type) == scaled_by_16(type)
               ? x->packed
               : NULL;
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

/* Units [u0, u1) of a group. stride: bytes from a block of the panel to the next. */
INLINE void make_panel(uint32_t type, const uint8_t *group, int64_t u0, int64_t u1, uint8_t *out,
                       int64_t stride)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    for (int64_t u = u0; u < u1; u++) {
        const uint8_t *unit = group + tn_unit_bytes(s) * u;
        r8_head h;
        read_head(type, unit, &h);
        for (int j = 0; j < s.cols / 32; j++, out += stride) {
            panel_quants(type, unit + s.head + tn_step_bytes(s) * j, out);
            panel_scales(type, &h, j, (float *)(void *)(out + 256));
        }
    }
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* g groups of a panel times n tokens, both constants; of its arrays element i * n + t is of group i
 * and token t. */
typedef struct shape {
    form f;
    int g, n;
} shape;

/* acc += half h of a block, whose scales of the first group are at `scale`. */
INLINE void half_block(shape s, const uint8_t *w, const act *a, int h, const uint8_t *scale,
                       __m256 *acc)
{
    vec sum[GROUPS * TOKENS];
#pragma GCC unroll 6
    for (int i = 0; i < s.g * s.n; i++)
        sum[i] = _mm256_set1_epi32(a[i % s.n].c[h]);
#pragma GCC unroll 4
    for (int j = 4 * h; j < 4 * h + 4; j++) {
        vec v[GROUPS];
#pragma GCC unroll 2
        for (int i = 0; i < s.g; i++)
            v[i] = load(w + i * panel_block(s.f) + 32 * j);
#pragma GCC unroll 3
        for (int t = 0; t < s.n; t++) {
            const vec x = broadcast(a[t].q + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < s.g; i++)
                sum[i * s.n + t] = _mm256_dpbusd_avx_epi32(sum[i * s.n + t], v[i], x);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < s.g * s.n; i++) {
        const act *x = a + i % s.n;
        const __m256 q = _mm256_fmadd_ps(_mm256_castsi256_ps(sum[i]), _mm256_broadcast_ss(&x->d[h]),
                                         _mm256_broadcast_ss(&x->base[h]));
        const float *d = (const float *)(const void *)(scale + i / s.n * panel_block(s.f));
        acc[i] = _mm256_fmadd_ps(q, _mm256_load_ps(d), acc[i]);
    }
}

/* acc += minimum * sum of the activations in half h, or in both */
INLINE void minima(shape s, __m256 *acc, const act *a, int h, const uint8_t *min)
{
#pragma GCC unroll 6
    for (int i = 0; i < s.g * s.n; i++) {
        const float *m = (const float *)(const void *)(min + i / s.n * panel_block(s.f));
        acc[i] = _mm256_fmadd_ps(_mm256_load_ps(m), _mm256_broadcast_ss(&a[i % s.n].s[h]), acc[i]);
    }
}

/* The first `left` of 8 lanes. */
INLINE vec first_rows(int64_t left)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(left < 8 ? (int)left : 8),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* y[t][rows] (+)= panel times tokens, for rows 0 to rows - 1. */
INLINE void tile(shape s, const uint8_t *w, const act *a, int64_t blocks, float *y,
                 int64_t y_stride, int64_t rows, bool add)
{
    __m256 acc[GROUPS * TOKENS];
#pragma GCC unroll 6
    for (int i = 0; i < s.g * s.n; i++)
        acc[i] = add ? _mm256_maskload_ps(y + i % s.n * y_stride + 8 * (i / s.n),
                                          first_rows(rows - 8 * (i / s.n)))
                     : _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, w += s.g * panel_block(s.f), a += s.n) {
        const uint8_t *scale = w + 256;
        half_block(s, w, a, 0, scale, acc);
        half_block(s, w, a, 1, scale + (s.f.by_16 ? 32 : 0), acc);
        if (s.f.min) minima(s, acc, a, 0, scale + (s.f.by_16 ? 64 : 32));
        if (s.f.min && s.f.by_16) minima(s, acc, a, 1, scale + 96);
    }
#pragma GCC unroll 6
    for (int i = 0; i < s.g * s.n; i++)
        _mm256_maskstore_ps(y + i % s.n * y_stride + 8 * (i / s.n),
                            first_rows(rows - 8 * (i / s.n)), acc[i]);
}

#define TILE(name, min, by_16)                                                                     \
    static void name(int64_t n, const uint8_t *w, const act *a, int64_t blocks, float *y,          \
                     int64_t y_stride, int64_t rows, bool add)                                     \
    {                                                                                              \
        const form f = {min, by_16};                                                               \
        switch ((rows > 8 ? 10 : 0) + (int)n) {                                                    \
        case 1: tile((shape){f, 1, 1}, w, a, blocks, y, y_stride, rows, add); return;              \
        case 2: tile((shape){f, 1, 2}, w, a, blocks, y, y_stride, rows, add); return;              \
        case 3: tile((shape){f, 1, 3}, w, a, blocks, y, y_stride, rows, add); return;              \
        case 11: tile((shape){f, 2, 1}, w, a, blocks, y, y_stride, rows, add); return;             \
        case 12: tile((shape){f, 2, 2}, w, a, blocks, y, y_stride, rows, add); return;             \
        default: tile((shape){f, 2, 3}, w, a, blocks, y, y_stride, rows, add); return;             \
        }                                                                                          \
    }
TILE(tile_plain, false, false)
TILE(tile_min, true, false)
TILE(tile_by_16, false, true)
TILE(tile_min_by_16, true, true)

/* ---- products -------------------------------------------------------------------------------- */

/* Blocks [b0, b1) of g groups from row0 on, wherever they lie: panels side by side. */
INLINE void make_panels(uint32_t type, const tn_weight *w, int64_t g, int64_t row0, int64_t b0,
                        int64_t b1, uint8_t *panel)
{
    const int64_t block = panel_block(form_of(type)), per = tn_group_shape_of(type, 8).cols / 32;
    while (b0 < b1) {
        const tn_group_run run = tn_group_run_at(type, 8, w, b0);
        const int64_t blocks = (run.end < b1 ? run.end : b1) - b0;
        for (int64_t i = 0; i < g; i++)
            make_panel(type, run.at + (row0 / 8 + i) * run.next, 0, blocks / per, panel + i * block,
                       g * block);
        panel += blocks * g * block;
        b0 += blocks;
    }
}

/* A piece times the rows from row0 on, at most 8 * GROUPS. */
INLINE void some_rows(uint32_t type, const tn_weight *w, const piece *p, uint8_t *panel, float *y,
                      int64_t y_stride, int64_t row0, int64_t row1)
{
    const form f = form_of(type);
    const int64_t left = row1 - row0 < 8 * GROUPS ? row1 - row0 : 8 * GROUPS, g = left > 8 ? 2 : 1;
    for (int64_t b0 = p->b0; b0 < p->b1; b0 += SLAB) {
        const int64_t n = p->b1 - b0 < SLAB ? p->b1 - b0 : SLAB;
        make_panels(type, w, g, row0, b0, b0 + n, panel);
        for (int64_t t = 0; t < p->n; t += TOKENS) {
            const int64_t m = p->n - t < TOKENS ? p->n - t : TOKENS;
            const act *x = p->a + t * p->blocks + (b0 - p->a_b0) * m;
            float *to = y + t * y_stride + row0;
            if (f.min && f.by_16)
                tile_min_by_16(m, panel, x, n, to, y_stride, left, b0 > 0);
            else if (f.by_16)
                tile_by_16(m, panel, x, n, to, y_stride, left, b0 > 0);
            else if (f.min)
                tile_min(m, panel, x, n, to, y_stride, left, b0 > 0);
            else
                tile_plain(m, panel, x, n, to, y_stride, left, b0 > 0);
        }
    }
}

enum { PANEL_BYTES = GROUPS * SLAB * (256 + 4 * 32) };
_Static_assert(PANEL_BYTES + CHUNK_BYTES + TOKENS * PIECE * (int)sizeof(act) <= TN_SCRATCH_BYTES,
               "scratch");

INLINE void many(uint32_t type, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                 int64_t row0, int64_t row1, void *scratch)
{
    const act *ready = brought(type, x);
    const int64_t blocks = w->cols / 32, most = chunk_tokens(TOKENS, x->n, blocks);
    uint8_t *panel = scratch;
    act *own = (act *)(void *)(panel + PANEL_BYTES);
    for (int64_t t = 0; t < x->n; t += most)
        for (int64_t b = 0; b < blocks; b += PIECE) {
            const int64_t n = x->n - t < most ? x->n - t : most;
            const int64_t size = blocks - b < PIECE ? blocks - b : PIECE;
            piece p = {ready ? ready + t * blocks : own, n, blocks, 0, b, b + size};
            if (!ready) {
                pack_all(type,
                         &(tn_packing){own, n, size, 0, n, 0, size, x->q + t * blocks + b, blocks});
                p = (piece){own, n, size, b, b, b + size};
            }
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
TN_INTERLEAVED_TYPES(MANY)

#define CASE(name, type) case type: return many_##name;
INLINE tn_matmul_fn many_of(uint32_t type)
{
    switch (type) {
        TN_INTERLEAVED_TYPES(CASE)
    default: return NULL;
    }
}

/* For so many avx2_r8.c, which needs no panel, is faster; with 8 bits for fewer, as their signs
 * cost it as much as the products. */
INLINE int64_t avx2_tokens(uint32_t type)
{
    return type == TN_TYPE_Q8_0 ? TN_FEW_TOKENS : 2 * TN_FEW_TOKENS;
}

INLINE void any(uint32_t type, bool ahead, const tn_weight *w, const tn_acts *x, float *y,
                int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    tn_acts plain = *x;
    plain.packed = NULL; /* avx2_r8.c packs in its own way */
    if (x->n > avx2_tokens(type))
        many_of(type)(w, x, y, y_stride, row0, row1, scratch);
    else
        tn_r8_matmul_avx2(type, ahead)(w, &plain, y, y_stride, row0, row1, scratch);
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
        pack_all(type, p);                                                                         \
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define SET(name, type)                                                                            \
    k->matmul[TN_LAYOUT_R8][type] = k->prefetch ? matmul_##name##_ahead : matmul_##name;           \
    k->pack[TN_LAYOUT_R8][type] = pack_##name;
void tn_kernels_avxvnni_many(tn_kernels *k)
{
    _Static_assert(sizeof(act) == TN_PACKED_BYTES, "act");
    TN_INTERLEAVED_TYPES(SET)
}
