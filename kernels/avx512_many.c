/* Products of many tokens with interleaved weights, AVX-512 VNNI.
 *
 * Up to GROUPS times 16 rows (one lane a row: two groups of 8 rows or one of 16) are unpacked into
 * a panel, once for many tokens: per 32 columns and 16 rows eight vectors of unsigned bytes, dword
 * r of vector j being columns 4j .. 4j + 3 of row r, then the scales as floats. A tile of up to 6
 * tokens runs over the panel with one dot product instruction per vector and token. Activations are
 * broadcast from memory, each once for both halves of 32 rows: with 16 rows the load ports would be
 * as busy as the arithmetic. Offsets of the quants are in the start values of the integer sums, or
 * in what their conversion adds. Each half of 32 columns has its own activation scale: two sums
 * where the weights' scales are by 16, too; otherwise one, see high_of.
 *
 * What a sum costs beside its products counts: these are 8 of 11 or 12 instructions per 32 columns.
 * No conversion is among them, because sums start at the bits of the float BASE; then they are,
 * read as a float f, BASE + sum / UNITS, and f * d - BASE * d is sum * d / UNITS. The UNITS are in
 * the panel's scales. BASE is so small that BASE * d is finite for every d, and no smaller, so that
 * small products are not lost; it has two bits, and d only 22, so that BASE * d is exact. On Zen 4
 * these 11 or 12 share the multipliers: of 460 GOP/s a core (at 3.6 GHz) that leaves 335 or 307,
 * and a tile in L1 is as fast as that.
 *
 * A long row is cut into pieces of columns whose activations stay in L2, and those into slabs whose
 * panel stays in L1; sums continue in y. The order of additions of a row depends on nothing but its
 * length. */
#include "avx512_r16.h"

enum { TOKENS = 6 }; /* of a tile */

/* Bytes of 32 columns of 16 rows: quants, then scales and minima of the rows as floats. */
INLINE int64_t panel_block(form f)
{
    return 512 + 64 * (f.by_16 ? 2 : 1) * (f.min ? 2 : 1);
}

/* ---- activations ----------------------------------------------------------------------------- */

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
    int sum = 0;
    for (int i = 16; i < 32; i++) {
        const int twice = 2 * x->q[i] * x->m[1];
        other->q[i] = (int8_t)((twice + (twice < 0 ? -m : m)) / (2 * m));
        sum += other->q[i];
    }
    other->s[1] = x->d * (float)(m * sum); /* minima must see the same activations */
    return other;
}

/* The nearest float with 22 significant bits that is a multiple of 2^-22, so that BASE - BASE * r
 * is exact. */
INLINE float short_ratio(float r)
{
    return shorter((r + 2.0f) - 2.0f);
}

/* From what pack() says to what sums start with and become. c[1] is without meaning where half 1
 * goes on from half 0: what an offset adds to its sums is in base[1]. */
INLINE void prepare_sums(uint32_t type, act *o, const tn_q8 *x)
{
    for (int h = 0; h < 2; h++) {
        o->d[h] = shorter(o->d[h]);
        o->base[h] = -BASE * o->d[h];
    }
    if (!scaled_by_16(type)) {
        o->base[1] = ((float)o->c[1] / UNITS - BASE) * o->d[1];
        o->d[0] = short_ratio((float)(high_of(type) * x->m[0]) / (float)x->m[1]);
        o->base[0] = BASE - BASE * o->d[0];
    }
    for (int h = 0; h < 2; h++)
        o->c[h] += BASE_BITS;
}

INLINE void pack_for_tiles(uint32_t type, act *o, const tn_q8 *x)
{
    tn_q8 other;
    if (!scaled_by_16(type)) x = with_least_step(x, &other);
    pack(type, high_of(type), o, x);
    prepare_sums(type, o, x);
}

INLINE void pack_all(uint32_t type, const tn_packing *p)
{
    for (int64_t t = p->t0; t < p->t1; t++) {
        const tn_q8 *x = p->q + (t - p->t0) * p->q_stride;
        for (int64_t b = p->b0; b < p->b1; b++)
            pack_for_tiles(type, (act *)p->out + packed_at(TOKENS, p->n, p->blocks, t, b),
                           x + (b - p->b0));
    }
}

/* The packed activations that x brings along, if they serve this type too. */
static const act *brought(uint32_t type, const tn_acts *x)
{
    return x->packed && tn_quant_offset(x->packed_type) == tn_quant_offset(type) &&
                   high_of(x->packed_type) == high_of(type) &&
                   scaled_by_16(x->packed_type) == scaled_by_16(type)
               ? x->packed
               : NULL;
}

/* ---- panels ---------------------------------------------------------------------------------- */

INLINE wide join(vec low, vec high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
INLINE __m512 in_units(__m512 scale)
{
    return _mm512_mul_ps(scale, _mm512_set1_ps(UNITS));
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
        _mm512_store_si512(out + 64 * (4 + j), times(v1, high_of(type)));
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
        _mm512_store_ps(out, in_units(join_ps(low->d[j], high->d[j])));
        if (has_min(type)) _mm512_store_ps(out + 16, join_ps(low->m[j], high->m[j]));
        return;
    }
    put_pairs(out, low->pair[j], high->pair[j], in_units(join_ps(low->d[0], high->d[0])));
    if (has_min(type))
        put_pairs(out + 32, low->min[j], high->min[j], join_ps(low->m[0], high->m[0]));
}

/* Units [u0, u1) of two groups of 8 rows. Where there is no second one it is the first again.
 * stride: bytes from a block of the panel to the next. */
INLINE void make_panel_8(uint32_t type, const uint8_t *low, const uint8_t *high, int64_t u0,
                         int64_t u1, uint8_t *out, int64_t stride)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    const int64_t unit = tn_unit_bytes(s);
    for (int64_t u = u0; u < u1; u++) {
        const uint8_t *a = low + unit * u, *b = high + unit * u;
        r8_head ha, hb;
        read_head(type, a, &ha);
        read_head(type, b, &hb);
        for (int j = 0; j < s.cols / 32; j++, out += stride) {
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
INLINE void make_panel_16(uint32_t type, const uint8_t *group, int64_t u0, int64_t u1, uint8_t *out,
                          int64_t stride)
{
    const tn_group_shape s = tn_group_shape_of(type, 16);
    for (int64_t u = u0; u < u1; u++) {
        const uint8_t *unit = group + tn_unit_bytes(s) * u;
        r16_head h;
        r16_read_head(type, unit, &h);
        h.d = in_units(h.d);
        for (int j = 0; j < s.cols / 32; j++, out += stride) {
            float *scale = (float *)(void *)(out + 512),
                  *min = scale + (scaled_by_16(type) ? 32 : 16);
            wide v[8];
            r16_quants_for_sums(type, unit + s.head + tn_step_bytes(s) * j, v);
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

/* ---- tiles ----------------------------------------------------------------------------------- */

/* g groups of a panel times n tokens, both constants; of its arrays element i * n + t is of group i
 * and token t. */
typedef struct shape {
    form f;
    int g, n;
} shape;

/* What the sums of half h start with. Types with minima have no offset: their sums all start with
 * the same, which needs no loads. */
INLINE void start_sums(shape s, const act *a, int h, wide *sum)
{
#pragma GCC unroll 12
    for (int i = 0; i < s.g * s.n; i++)
        sum[i] = _mm512_set1_epi32(s.f.min ? BASE_BITS : a[i % s.n].c[h]);
}

/* sum += half h of a block. */
INLINE void add_half(shape s, const uint8_t *w, const act *a, int h, wide *sum)
{
#pragma GCC unroll 4
    for (int j = 4 * h; j < 4 * h + 4; j++) {
        wide v[GROUPS];
#pragma GCC unroll 2
        for (int i = 0; i < s.g; i++)
            v[i] = _mm512_load_si512(w + i * panel_block(s.f) + 64 * j);
#pragma GCC unroll 6
        for (int t = 0; t < s.n; t++) {
            const wide x = broadcast4(a[t].q + 4 * j);
#pragma GCC unroll 2
            for (int i = 0; i < s.g; i++)
                sum[i * s.n + t] = _mm512_dpbusd_epi32(sum[i * s.n + t], v[i], x);
        }
    }
}

/* acc += values of half h's sums times the scales, of which those of the first group are at
 * `scale`. */
INLINE void add_values(shape s, const act *a, int h, const wide *sum, const uint8_t *scale,
                       __m512 *acc)
{
    __m512 d[GROUPS];
#pragma GCC unroll 2
    for (int i = 0; i < s.g; i++)
        d[i] = _mm512_load_ps(scale + i * panel_block(s.f));
#pragma GCC unroll 6
    for (int t = 0; t < s.n; t++)
#pragma GCC unroll 2
        for (int i = t; i < s.g * s.n; i += s.n)
            acc[i] = _mm512_fmadd_ps(value_of(sum[i], a + t, h), d[i / s.n], acc[i]);
}

/* acc += half h of a block. */
INLINE void half_block(shape s, const uint8_t *w, const act *a, int h, const uint8_t *scale,
                       __m512 *acc)
{
    wide sum[GROUPS * TOKENS];
    start_sums(s, a, h, sum);
    add_half(s, w, a, h, sum);
    add_values(s, a, h, sum, scale, acc);
}

/* acc += a block with one scale. */
INLINE void whole_block(shape s, const uint8_t *w, const act *a, const uint8_t *scale, __m512 *acc)
{
    wide sum[GROUPS * TOKENS];
    start_sums(s, a, 0, sum);
    add_half(s, w, a, 0, sum);
#pragma GCC unroll 6
    for (int t = 0; t < s.n; t++)
#pragma GCC unroll 2
        for (int i = t; i < s.g * s.n; i += s.n)
            sum[i] = _mm512_castps_si512(value_of(sum[i], a + t, 0));
    add_half(s, w, a, 1, sum);
    add_values(s, a, 1, sum, scale, acc);
}

/* acc += minimum * sum of the activations in half h, or in both */
INLINE void minima(shape s, __m512 *acc, const act *a, int h, const uint8_t *min)
{
#pragma GCC unroll 12
    for (int i = 0; i < s.g * s.n; i++)
        acc[i] = _mm512_fmadd_ps(_mm512_load_ps(min + i / s.n * panel_block(s.f)),
                                 _mm512_set1_ps(a[i % s.n].s[h]), acc[i]);
}

/* y[t][16 g rows] (+)= panel times tokens. rows: one bit a row. */
INLINE void tile(shape s, const uint8_t *w, const act *a, int64_t blocks, float *y,
                 int64_t y_stride, uint32_t rows, bool add)
{
    __m512 acc[GROUPS * TOKENS];
#pragma GCC unroll 12
    for (int i = 0; i < s.g * s.n; i++) {
        const __mmask16 k = (__mmask16)(rows >> 16 * (i / s.n));
        acc[i] = _mm512_maskz_loadu_ps(add ? k : 0, y + i % s.n * y_stride + 16 * (i / s.n));
    }
    for (int64_t b = 0; b < blocks; b++, w += s.g * panel_block(s.f), a += s.n) {
        const uint8_t *scale = w + 512;
        if (s.f.by_16) {
            half_block(s, w, a, 0, scale, acc);
            half_block(s, w, a, 1, scale + 64, acc);
        } else {
            whole_block(s, w, a, scale, acc);
        }
        if (s.f.min) minima(s, acc, a, 0, scale + (s.f.by_16 ? 128 : 64));
        if (s.f.min && s.f.by_16) minima(s, acc, a, 1, scale + 192);
    }
#pragma GCC unroll 12
    for (int i = 0; i < s.g * s.n; i++)
        _mm512_mask_storeu_ps(y + i % s.n * y_stride + 16 * (i / s.n),
                              (__mmask16)(rows >> 16 * (i / s.n)), acc[i]);
}

INLINE void any_tile(form f, int g, int64_t n, const uint8_t *w, const act *a, int64_t blocks,
                     float *y, int64_t y_stride, uint32_t rows, bool add)
{
    switch (n) {
    case 1: tile((shape){f, g, 1}, w, a, blocks, y, y_stride, rows, add); return;
    case 2: tile((shape){f, g, 2}, w, a, blocks, y, y_stride, rows, add); return;
    case 3: tile((shape){f, g, 3}, w, a, blocks, y, y_stride, rows, add); return;
    case 4: tile((shape){f, g, 4}, w, a, blocks, y, y_stride, rows, add); return;
    case 5: tile((shape){f, g, 5}, w, a, blocks, y, y_stride, rows, add); return;
    default: tile((shape){f, g, 6}, w, a, blocks, y, y_stride, rows, add); return;
    }
}

#define TILE(name, min, by_16)                                                                     \
    static void name(int g, int64_t n, const uint8_t *w, const act *a, int64_t blocks, float *y,   \
                     int64_t y_stride, uint32_t rows, bool add)                                    \
    {                                                                                              \
        if (g == 1)                                                                                \
            any_tile((form){min, by_16}, 1, n, w, a, blocks, y, y_stride, rows, add);              \
        else                                                                                       \
            any_tile((form){min, by_16}, 2, n, w, a, blocks, y, y_stride, rows, add);              \
    }
TILE(tile_plain, false, false)
TILE(tile_min, true, false)
TILE(tile_by_16, false, true)
TILE(tile_min_by_16, true, true)

/* ---- products -------------------------------------------------------------------------------- */

/* Blocks that lie one behind the other, of the rows from row0 on: g panels side by side. */
INLINE void panels_of_run(tn_layout layout, uint32_t type, const tn_group_run *run, int g,
                          int64_t row0, int64_t row1, int64_t blocks, uint8_t *panel)
{
    const int64_t block = panel_block(form_of(type)), per = tn_group_shape_of(type, 8).cols / 32;
    for (int i = 0; i < g; i++, row0 += 16, panel += block) {
        const uint8_t *low = run->at + row0 / tn_layout_rows(layout) * run->next;
        const uint8_t *high = row1 - row0 > 8 ? low + run->next : low;
        if (layout == TN_LAYOUT_R8)
            make_panel_8(type, low, high, 0, blocks / per, panel, g * block);
        else
            make_panel_16(type, low, 0, blocks / per, panel, g * block);
    }
}

/* Blocks [b0, b1) of the rows from row0 on, wherever they lie. */
INLINE void make_panels(tn_layout layout, uint32_t type, const tn_weight *w, int g, int64_t row0,
                        int64_t row1, int64_t b0, int64_t b1, uint8_t *panel)
{
    while (b0 < b1) {
        const tn_group_run run = tn_group_run_at(type, tn_layout_rows(layout), w, b0);
        const int64_t blocks = (run.end < b1 ? run.end : b1) - b0;
        panels_of_run(layout, type, &run, g, row0, row1, blocks, panel);
        panel += blocks * g * panel_block(form_of(type));
        b0 += blocks;
    }
}

/* A piece times the rows from row0 on, at most 16 * GROUPS. */
INLINE void some_rows(tn_layout layout, uint32_t type, const tn_weight *w, const piece *p,
                      uint8_t *panel, float *y, int64_t y_stride, int64_t row0, int64_t row1)
{
    const form f = form_of(type);
    const int64_t left = row1 - row0;
    const int g = left > 16 ? 2 : 1;
    const uint32_t rows = left >= 32 ? 0xffffffff : (1u << left) - 1;
    for (int64_t b0 = p->b0; b0 < p->b1; b0 += SLAB) {
        const int64_t n = p->b1 - b0 < SLAB ? p->b1 - b0 : SLAB;
        const coming next = next_weights(layout, type, w, 16 * GROUPS, row0, row1, b0 + n, p);
        make_panels(layout, type, w, g, row0, row1, b0, b0 + n, panel);
        for (int64_t t = 0; t < p->n; t += TOKENS) {
            const int64_t m = p->n - t < TOKENS ? p->n - t : TOKENS;
            const act *x = (const act *)p->a + t * p->blocks + (b0 - p->a_b0) * m;
            float *to = y + t * y_stride + row0;
            fetch_ahead(&next, t / TOKENS, (p->n + TOKENS - 1) / TOKENS);
            fetch_sums(to + TOKENS * y_stride, y_stride, p->n - t - TOKENS, TOKENS, 16 * GROUPS);
            if (f.min && f.by_16)
                tile_min_by_16(g, m, panel, x, n, to, y_stride, rows, b0 > 0);
            else if (f.by_16)
                tile_by_16(g, m, panel, x, n, to, y_stride, rows, b0 > 0);
            else if (f.min)
                tile_min(g, m, panel, x, n, to, y_stride, rows, b0 > 0);
            else
                tile_plain(g, m, panel, x, n, to, y_stride, rows, b0 > 0);
        }
    }
}

enum { PANEL_BYTES = GROUPS * SLAB * (512 + 4 * 64) };
_Static_assert(PANEL_BYTES + CHUNK_BYTES + TOKENS * PIECE * (int)sizeof(act) <= TN_SCRATCH_BYTES,
               "scratch");

INLINE void many(tn_layout layout, uint32_t type, const tn_weight *w, const tn_acts *x, float *y,
                 int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    const act *ready = brought(type, x);
    const int64_t blocks = w->cols / 32, most = chunk_tokens(TOKENS, sizeof(act), x->n, blocks);
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
            if (layout == TN_LAYOUT_R16 && x->n <= TN_SEVERAL_TOKENS) {
                tn_avx512_several(type)(w, &p, TOKENS, y, y_stride, row0, row1);
                continue;
            }
            for (int64_t r = row0; r < row1; r += 16 * GROUPS)
                some_rows(layout, type, w, &p, panel, y + t * y_stride, y_stride, r, row1);
        }
}

/* R8: the AVX2 kernel of the type serves a few tokens; it packs in its own way. */
INLINE void few(uint32_t type, bool ahead, const tn_weight *w, const tn_acts *x, float *y,
                int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    tn_acts plain = *x;
    plain.packed = NULL;
    tn_r8_matmul_avx2(type, ahead)(w, &plain, y, y_stride, row0, row1, scratch);
}

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
    static void pack_##name(const tn_packing *p)                                                   \
    {                                                                                              \
        pack_all(type, p);                                                                         \
    }                                                                                              \
    static void matmul_##name(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,    \
                              int64_t row0, int64_t row1, void *scratch)                           \
    {                                                                                              \
        if (x->n > TN_FEW_TOKENS)                                                                  \
            r8_##name(w, x, y, y_stride, row0, row1, scratch);                                     \
        else                                                                                       \
            few(type, false, w, x, y, y_stride, row0, row1, scratch);                              \
    }                                                                                              \
    static void matmul_##name##_ahead(const tn_weight *w, const tn_acts *x, float *y,              \
                                      int64_t y_stride, int64_t row0, int64_t row1, void *scratch) \
    {                                                                                              \
        if (x->n > TN_FEW_TOKENS)                                                                  \
            r8_##name(w, x, y, y_stride, row0, row1, scratch);                                     \
        else                                                                                       \
            few(type, true, w, x, y, y_stride, row0, row1, scratch);                               \
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

#define SET(name, type)                                                                            \
    f[type] = k->prefetch ? matmul_##name##_ahead : matmul_##name;                                 \
    k->pack[TN_LAYOUT_R8][type] = k->pack[TN_LAYOUT_R16][type] = pack_##name;
void tn_kernels_avx512_many(tn_kernels *k)
{
    _Static_assert(sizeof(act) <= TN_PACKED_BYTES, "act");
    tn_matmul_fn *f = k->matmul[TN_LAYOUT_R8];
    TN_INTERLEAVED_TYPES(SET)
}
