/* Products of many tokens with interleaved weights, AVX-512 VNNI.
 *
 * Two groups of 8 rows or one of 16 (one lane a row) are unpacked into a panel, once for many
 * tokens: per 32 columns eight vectors of unsigned bytes, dword r of vector j being columns 4j ..
 * 4j + 3 of row r, then the scales as floats. A tile of up to 8 tokens runs over the panel with one
 * dot product instruction per vector and token, whose activations are broadcast from memory;
 * offsets of the quants are the start values of the integer sums. The two halves of 32 columns are
 * summed apart, because each has its own activation scale.
 *
 * A long row is cut into slabs of columns, so that panel and activations stay in the caches; sums
 * continue in y. The order of additions of a row depends on nothing but its length. */
#include "avx512_r16.h"

enum {
    TOKENS = 8,             /* of a tile */
    SLAB = 24,              /* blocks of 32 columns; of a whole number of 256 columns */
    CHUNK_BYTES = 640 << 10 /* of packed activations, 512 tokens of 640 columns: they stay in L2 */
};

/* What distinguishes types once their quants are bytes. */
typedef struct form {
    bool min, by_16;
} form;

INLINE form form_of(uint32_t type)
{
    return (form){has_min(type), scaled_by_16(type)};
}
INLINE int64_t panel_block(form f)
{
    return 512 + 64 * (f.by_16 ? 2 : 1) * (f.min ? 2 : 1);
}

/* ---- activations -------------------------------------------------------------------------------
 */

/* Tokens of tile i of n_tiles over n tokens are [tile_start(i), tile_start(i + 1)). */
INLINE int64_t tile_start(int64_t n, int64_t n_tiles, int64_t i)
{
    return n / n_tiles * i + (i < n % n_tiles ? i : n % n_tiles);
}

/* [tile][block][token of the tile] */
INLINE void pack_all(uint32_t type, int high, act *out, const tn_q8 *x, int64_t n, int64_t n_tiles,
                     int64_t blocks)
{
    for (int64_t i = 0; i < n_tiles; i++) {
        const int64_t t0 = tile_start(n, n_tiles, i), t1 = tile_start(n, n_tiles, i + 1);
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t t = t0; t < t1; t++)
                pack(type, high, out++, x + t * blocks + b);
    }
}

/* ---- panels ------------------------------------------------------------------------------------
 */

INLINE wide join(vec low, vec high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
INLINE __m512 join_ps(__m256 low, __m256 high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

/* A step of two groups as eight vectors. The 8-row form has columns 2j, 2j + 1, 16 + 2j, 17 + 2j in
 * a dword of vector j. */
INLINE void panel_quants(uint32_t type, const uint8_t *low, const uint8_t *high, uint8_t *out)
{
    const int width = tn_group_shape_of(type, 8).bits;
    vec a[8], b[8];
    read_quants(width, low, a);
    read_quants(width, high, b);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const wide even = join(a[2 * j], b[2 * j]), odd = join(a[2 * j + 1], b[2 * j + 1]);
        wide v0 = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
        wide v1 = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd);
        if (width == 8) {
            v0 = _mm512_xor_si512(v0, _mm512_set1_epi8((char)0x80));
            v1 = _mm512_xor_si512(v1, _mm512_set1_epi8((char)0x80));
        }
        _mm512_store_si512(out + 64 * j, v0);
        _mm512_store_si512(out + 64 * (4 + j), v1);
    }
}

/* The low and the high int16 of every dword times d. */
INLINE void put_pairs(float *out, vec low, vec high, __m512 d)
{
    const wide v = join(low, high);
    const wide first = _mm512_srai_epi32(_mm512_slli_epi32(v, 16), 16);
    _mm512_store_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(first), d));
    _mm512_store_ps(out + 16, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(v, 16)), d));
}

INLINE void panel_scales(uint32_t type, const r8_head *low, const r8_head *high, int j, float *out)
{
    if (!scaled_by_16(type)) {
        _mm512_store_ps(out, join_ps(low->d[j], high->d[j]));
        if (has_min(type)) _mm512_store_ps(out + 16, join_ps(low->m[j], high->m[j]));
        return;
    }
    put_pairs(out, low->pair[j], high->pair[j], join_ps(low->d[0], high->d[0]));
    if (has_min(type))
        put_pairs(out + 32, low->min[j], high->min[j], join_ps(low->m[0], high->m[0]));
}

/* Units [u0, u1) of two groups of 8 rows. Where there is no second one it is the first again. */
INLINE void make_panel_8(uint32_t type, const uint8_t *low, const uint8_t *high, int64_t u0,
                         int64_t u1, uint8_t *out)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    const int64_t unit = tn_unit_bytes(s);
    for (int64_t u = u0; u < u1; u++) {
        const uint8_t *a = low + unit * u, *b = high + unit * u;
        r8_head ha, hb;
        read_head(type, a, &ha);
        read_head(type, b, &hb);
        for (int j = 0; j < s.cols / 32; j++, out += panel_block(form_of(type))) {
            const int64_t at = s.head + tn_step_bytes(s) * j;
            panel_quants(type, a + at, b + at, out);
            panel_scales(type, &ha, &hb, j, (float *)(void *)(out + 512));
        }
    }
}

/* d times the integer scales of step j, one vector or one for each half. */
INLINE void put_scales(uint32_t type, const wide *bytes, __m512 d, int j, float *out)
{
    for (int h = 0; h < (scaled_by_16(type) ? 2 : 1); h++)
        _mm512_store_ps(out + 16 * h, _mm512_mul_ps(r16_scale(type, bytes, j, h), d));
}

/* Units [u0, u1) of a group of 16 rows. */
INLINE void make_panel_16(uint32_t type, const uint8_t *group, int64_t u0, int64_t u1, uint8_t *out)
{
    const tn_group_shape s = tn_group_shape_of(type, 16);
    for (int64_t u = u0; u < u1; u++) {
        const uint8_t *unit = group + tn_unit_bytes(s) * u;
        r16_head h;
        r16_read_head(type, unit, &h);
        for (int j = 0; j < s.cols / 32; j++, out += panel_block(form_of(type))) {
            float *scale = (float *)(void *)(out + 512),
                  *min = scale + (scaled_by_16(type) ? 32 : 16);
            wide v[8];
            r16_quants(type, unit + s.head + tn_step_bytes(s) * j, v);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                _mm512_store_si512(out + 64 * i, v[i]);
            if (s.cols == 256) {
                put_scales(type, h.scale, h.d, j, scale);
                if (has_min(type)) put_scales(type, h.min, h.m, j, min);
                continue;
            }
            _mm512_store_ps(scale, h.d);
            if (has_min(type)) _mm512_store_ps(min, h.m);
        }
    }
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

/* p[t] (+)= half h of a block, as far as activations know its scale. */
INLINE void half_block(const uint8_t *w, const act *a, int n, int h, bool add, __m512 *p)
{
    wide sum[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        sum[t] = _mm512_set1_epi32(a[t].c[h]);
#pragma GCC unroll 4
    for (int j = 4 * h; j < 4 * h + 4; j++) {
        const wide v = _mm512_load_si512(w + 64 * j);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            sum[t] = dot4(sum[t], v, a[t].q + 4 * j);
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++) {
        const __m512 f = _mm512_cvtepi32_ps(sum[t]), d = _mm512_set1_ps(a[t].d[h]);
        p[t] = add ? _mm512_fmadd_ps(f, d, p[t]) : _mm512_mul_ps(f, d);
    }
}

/* acc[t] += p[t] * scale */
INLINE void scaled(int n, __m512 *acc, const __m512 *p, const float *scale)
{
    const __m512 d = _mm512_load_ps(scale);
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_fmadd_ps(p[t], d, acc[t]);
}

/* acc[t] += minimum * sum of the activations in half h, or in both */
INLINE void minima(int n, __m512 *acc, const act *a, int h, const float *min)
{
    const __m512 m = _mm512_load_ps(min);
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(a[t].s[h]), acc[t]);
}

/* y[t][16 rows] (+)= panel times n (a constant) tokens. */
INLINE void tile(form f, int n, const uint8_t *w, const act *a, int64_t blocks, float *y,
                 int64_t y_stride, __mmask16 rows, bool add)
{
    __m512 acc[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_maskz_loadu_ps(add ? rows : 0, y + t * y_stride);
    for (int64_t b = 0; b < blocks; b++, w += panel_block(f), a += n) {
        const float *scale = (const float *)(const void *)(w + 512);
        __m512 p[TOKENS];
        half_block(w, a, n, 0, false, p);
        if (f.by_16) scaled(n, acc, p, scale);
        half_block(w, a, n, 1, !f.by_16, p);
        scaled(n, acc, p, scale + (f.by_16 ? 16 : 0));
        if (f.min) minima(n, acc, a, 0, scale + (f.by_16 ? 32 : 16));
        if (f.min && f.by_16) minima(n, acc, a, 1, scale + 48);
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        _mm512_mask_storeu_ps(y + t * y_stride, rows, acc[t]);
}

INLINE void any_tile(form f, int64_t n, const uint8_t *w, const act *a, int64_t blocks, float *y,
                     int64_t y_stride, __mmask16 rows, bool add)
{
    switch (n) {
    case 1: tile(f, 1, w, a, blocks, y, y_stride, rows, add); return;
    case 2: tile(f, 2, w, a, blocks, y, y_stride, rows, add); return;
    case 3: tile(f, 3, w, a, blocks, y, y_stride, rows, add); return;
    case 4: tile(f, 4, w, a, blocks, y, y_stride, rows, add); return;
    case 5: tile(f, 5, w, a, blocks, y, y_stride, rows, add); return;
    case 6: tile(f, 6, w, a, blocks, y, y_stride, rows, add); return;
    case 7: tile(f, 7, w, a, blocks, y, y_stride, rows, add); return;
    default: tile(f, 8, w, a, blocks, y, y_stride, rows, add); return;
    }
}

#define TILE(name, min, by_16)                                                                     \
    static void name(int64_t n, const uint8_t *w, const act *a, int64_t blocks, float *y,          \
                     int64_t y_stride, __mmask16 rows, bool add)                                   \
    {                                                                                              \
        any_tile((form){min, by_16}, n, w, a, blocks, y, y_stride, rows, add);                     \
    }
TILE(tile_plain, false, false)
TILE(tile_min, true, false)
TILE(tile_by_16, false, true)
TILE(tile_min_by_16, true, true)

/* ---- products ----------------------------------------------------------------------------------
 */

/* Packed activations of n tokens times the 16 rows from row0 on. */
INLINE void rows_16(tn_layout layout, uint32_t type, const tn_weight *w, const act *a, int64_t n,
                    int64_t n_tiles, uint8_t *panel, float *y, int64_t y_stride, int64_t row0,
                    int64_t row1)
{
    const form f = form_of(type);
    const int64_t blocks = w->cols / 32, per_unit = tn_group_shape_of(type, 8).cols / 32;
    const int64_t left = row1 - row0;
    const uint8_t *low = (const uint8_t *)w->data + (size_t)row0 * w->row_bytes;
    const uint8_t *high = left > 8 ? low + 8 * w->row_bytes : low;
    const __mmask16 rows = (__mmask16)(left >= 16 ? 0xffff : (1u << left) - 1);
    for (int64_t b0 = 0; b0 < blocks; b0 += SLAB) {
        const int64_t b1 = b0 + SLAB < blocks ? b0 + SLAB : blocks;
        if (layout == TN_LAYOUT_R8)
            make_panel_8(type, low, high, b0 / per_unit, b1 / per_unit, panel);
        else
            make_panel_16(type, low, b0 / per_unit, b1 / per_unit, panel);
        for (int64_t i = 0; i < n_tiles; i++) {
            const int64_t t0 = tile_start(n, n_tiles, i), m = tile_start(n, n_tiles, i + 1) - t0;
            const act *x = a + t0 * blocks + b0 * m;
            float *to = y + t0 * y_stride + row0;
            if (f.min && f.by_16)
                tile_min_by_16(m, panel, x, b1 - b0, to, y_stride, rows, b0 > 0);
            else if (f.by_16)
                tile_by_16(m, panel, x, b1 - b0, to, y_stride, rows, b0 > 0);
            else if (f.min)
                tile_min(m, panel, x, b1 - b0, to, y_stride, rows, b0 > 0);
            else
                tile_plain(m, panel, x, b1 - b0, to, y_stride, rows, b0 > 0);
        }
    }
}

enum { PANEL_BYTES = SLAB * (512 + 4 * 64) };

INLINE void many(tn_layout layout, uint32_t type, const tn_weight *w, const tn_acts *x, float *y,
                 int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    const int64_t blocks = w->cols / 32, token_bytes = blocks * (int64_t)sizeof(act);
    const int64_t room = (TN_SCRATCH_BYTES - PANEL_BYTES) / token_bytes;
    int64_t most = CHUNK_BYTES / token_bytes / TOKENS * TOKENS;
    if (most < 4 * TOKENS) most = 4 * TOKENS < room ? 4 * TOKENS : room;
    if (most < 1) {
        tn_group_matmul(w, x, y, y_stride, row0, row1, scratch);
        return;
    }
    uint8_t *panel = scratch;
    act *a = (act *)(void *)(panel + PANEL_BYTES);
    const int64_t chunks = (x->n + most - 1) / most;
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t t0 = tile_start(x->n, chunks, c), n = tile_start(x->n, chunks, c + 1) - t0;
        const int64_t n_tiles = (n + TOKENS - 1) / TOKENS;
        pack_all(type, layout == TN_LAYOUT_R8 ? 1 : r16_high(type), a, x->q + t0 * blocks, n,
                 n_tiles, blocks);
        for (int64_t r = row0; r < row1; r += 16)
            rows_16(layout, type, w, a, n, n_tiles, panel, y + t0 * y_stride, y_stride, r, row1);
    }
}

/* R8: the AVX2 kernel of the type serves a few tokens. */
#define MATMUL(name, type)                                                                         \
    static void r16_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,       \
                           int64_t row0, int64_t row1, void *scratch)                              \
    {                                                                                              \
        many(TN_LAYOUT_R16, type, w, x, y, y_stride, row0, row1, scratch);                         \
    }                                                                                              \
    static void r8_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,        \
                          int64_t row0, int64_t row1, void *scratch)                               \
    {                                                                                              \
        many(TN_LAYOUT_R8, type, w, x, y, y_stride, row0, row1, scratch);                          \
    }                                                                                              \
    static void matmul_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,    \
                              int64_t row0, int64_t row1, void *scratch)                           \
    {                                                                                              \
        tn_matmul_fn f = x->n > TN_FEW_TOKENS ? r8_##name : tn_r8_matmul_avx2(type, false);        \
        f(w, x, y, y_stride, row0, row1, scratch);                                                 \
    }                                                                                              \
    static void matmul_##name##_ahead(const tn_weight *w, const tn_acts *x, float *y,              \
                                      int64_t y_stride, int64_t row0, int64_t row1, void *scratch) \
    {                                                                                              \
        tn_matmul_fn f = x->n > TN_FEW_TOKENS ? r8_##name : tn_r8_matmul_avx2(type, true);         \
        f(w, x, y, y_stride, row0, row1, scratch);                                                 \
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define CASE(name, type)                                                                           \
    case type: return r8 ? r8_##name : r16_##name;
tn_matmul_fn tn_avx512_many(tn_layout layout, uint32_t type)
{
    const bool r8 = layout == TN_LAYOUT_R8;
    switch (type) {
        TN_INTERLEAVED_TYPES(CASE)
    default: return NULL;
    }
}

#define SET(name, type) f[type] = k->prefetch ? matmul_##name##_ahead : matmul_##name;
void tn_kernels_avx512_many(tn_kernels *k)
{
    tn_matmul_fn *f = k->matmul[TN_LAYOUT_R8];
    TN_INTERLEAVED_TYPES(SET)
}
