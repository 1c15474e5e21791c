/* Products of two and more tokens with interleaved weights, AVX-512 VNNI. 32 columns of 32 rows
 * (one lane a row) are unpacked into 16 registers, and all tokens of a batch run over them: a
 * broadcast of four activations serves both vectors of rows, and the float sums of the batch stay
 * in L1, where to add to them costs no arithmetic. A row is made of one group of 16 rows or of two
 * of 8.
 *
 * What an integer sum costs beside its products counts: those are 16 of 24 to 28 instructions for
 * 32 columns. No conversion is among them, because sums start at the bits of the float BASE; then
 * they are, read as a float f, BASE + sum / UNITS, and f * d - BASE * d is sum * d / UNITS. The
 * UNITS are in the weights' scales. BASE is so small that BASE * d is finite for every d, and no
 * smaller, so that small products are not lost; it has two bits, and d only 22, so that BASE * d is
 * exact. Offsets of the quants are in the start values of the integer sums, or in what their
 * conversion adds. Each half of 32 columns has its own activation scale: two sums where the
 * weights' scales are by 16, too; otherwise one, see high_of.
 *
 * Measured on Zen 4, where a product of 512 bits takes a clock and the multiplications beside them
 * share its units: of 460 GOP/s a core (at 3.6 GHz) these leave 335 or, with minima, 307. Weights
 * in L2 make 334 and 306, from memory 313 and 298, for 64 to 512 tokens alike. Panels of unpacked
 * weights in L1, with tiles of 6 tokens, made up to 8 % less of 512 tokens (as much of rows of 576
 * columns) and 15 to 25 % less of 24. (One core of a Xeon, weights from memory: 8 tokens cost 1.4
 * (Q6_K, Q8_0) to 1.6 (Q4_K, Q4_0) times what one does, 4 tokens 1.2.)
 *
 * A long row is cut into pieces of columns whose activations stay in L2; sums continue in y. The
 * order of additions of a row depends on nothing but its length. */
#include "avx512_r16.h"

enum {
    FEW = 3,    /* tokens that R8 weights are left to avx2_r8.c for */
    BATCH = 64, /* tokens whose sums stay in L1 */
    VECTORS = 2 /* of rows in step, at most */
};

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

INLINE void pack_for_sums(uint32_t type, act *o, const tn_q8 *x)
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
            pack_for_sums(type, (act *)p->out + packed_at(BATCH, p->n, p->blocks, t, b),
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

/* ---- reading weights ------------------------------------------------------------------------- */

/* Rows in step, as n vectors. layout, type and n are constants. */
typedef struct rows_in_step {
    tn_layout layout;
    uint32_t type;
    int n;
    int64_t left; /* rows there are */
    int64_t next; /* bytes from a group to the next */
} rows_in_step;

/* The scales and minima of a unit: [step][half, where there is one a half][vector]. */
typedef struct unit_scales {
    __m512 d[8][2][VECTORS], m[8][2][VECTORS];
} unit_scales;

/* Vector i of groups of 8 rows begins so many bytes on, and its second half so many after that:
 * where there are no such rows, it is the first one again. */
INLINE int64_t lower_8(rows_in_step r, int i)
{
    return 2 * i * r.next;
}
INLINE int64_t upper_8(rows_in_step r, int i)
{
    return r.left - 16 * i > 8 ? r.next : 0;
}

INLINE wide join(vec low, vec high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
INLINE __m512 join_ps(__m256 low, __m256 high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
INLINE __m512 in_units(__m512 scale)
{
    return _mm512_mul_ps(scale, _mm512_set1_ps(UNITS));
}

/* The low and the high int16 of every dword times d, for the first and the second half. */
INLINE void put_pairs(__m512 (*out)[VECTORS], int i, vec low, vec high, __m512 d)
{
    const wide v = join(low, high);
    const wide first = _mm512_srai_epi32(_mm512_slli_epi32(v, 16), 16);
    out[0][i] = _mm512_mul_ps(_mm512_cvtepi32_ps(first), d);
    out[1][i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(v, 16)), d);
}

/* Of vector i, from the units at u and `upper` bytes on. */
INLINE void read_scales_8(uint32_t type, const uint8_t *u, int64_t upper, int i, unit_scales *o)
{
    r8_head a, b;
    read_head(type, u, &a);
    read_head(type, u + upper, &b);
#pragma GCC unroll 8
    for (int j = 0; j < tn_group_shape_of(type, 8).cols / 32; j++) {
        if (scaled_by_16(type)) {
            put_pairs(o->d[j], i, a.pair[j], b.pair[j], in_units(join_ps(a.d[0], b.d[0])));
            if (has_min(type)) put_pairs(o->m[j], i, a.min[j], b.min[j], join_ps(a.m[0], b.m[0]));
            continue;
        }
        o->d[j][0][i] = in_units(join_ps(a.d[j], b.d[j]));
        if (has_min(type)) o->m[j][0][i] = join_ps(a.m[j], b.m[j]);
    }
}

INLINE void read_scales_16(uint32_t type, const uint8_t *u, int i, unit_scales *o)
{
    r16_head h;
    r16_read_head(type, u, &h);
    h.d = in_units(h.d);
    if (tn_group_shape_of(type, 16).cols == 32) {
        o->d[0][0][i] = h.d;
        if (has_min(type)) o->m[0][0][i] = h.m;
        return;
    }
    const int halves = scaled_by_16(type) ? 2 : 1;
#pragma GCC unroll 16
    for (int k = 0; k < 8 * halves; k++) {
        const int j = k / halves, half = k % halves;
        o->d[j][half][i] = _mm512_mul_ps(r16_scale(type, h.scale, j, half), h.d);
        if (has_min(type)) o->m[j][half][i] = _mm512_mul_ps(r16_scale(type, h.min, j, half), h.m);
    }
}

INLINE void read_scales(rows_in_step r, const uint8_t *unit, unit_scales *o)
{
#pragma GCC unroll 2
    for (int i = 0; i < r.n; i++)
        if (r.layout == TN_LAYOUT_R8)
            read_scales_8(r.type, unit + lower_8(r, i), upper_8(r, i), i, o);
        else
            read_scales_16(r.type, unit + i * r.next, i, o);
}

/* A step of two groups of 8 rows as r16_quants_for_sums() has it of 16. The 8-row form has columns
 * 2j, 2j + 1, 16 + 2j, 17 + 2j in a dword of vector j, and bytes signed. */
INLINE void r8_quants_for_sums(uint32_t type, const uint8_t *low, const uint8_t *high, wide v[8])
{
    const int width = tn_group_shape_of(type, 8).bits;
    vec a[8], b[8];
    read_quants(width, low, a);
    read_quants(width, high, b);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const wide even = join(a[2 * j], b[2 * j]), odd = join(a[2 * j + 1], b[2 * j + 1]);
        v[j] = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
        v[4 + j] = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd);
        if (width == 8) {
            v[j] = _mm512_xor_si512(v[j], _mm512_set1_epi8((char)0x80));
            v[4 + j] = _mm512_xor_si512(v[4 + j], _mm512_set1_epi8((char)0x80));
        }
        v[4 + j] = times(v[4 + j], high_of(type));
    }
}

INLINE void read_step(rows_in_step r, const uint8_t *step, wide v[VECTORS][8])
{
#pragma GCC unroll 2
    for (int i = 0; i < r.n; i++)
        if (r.layout == TN_LAYOUT_R8)
            r8_quants_for_sums(r.type, step + lower_8(r, i), step + lower_8(r, i) + upper_8(r, i),
                               v[i]);
        else
            r16_quants_for_sums(r.type, step + i * r.next, v[i]);
}

/* Asks for the cache lines of [w, w + bytes) of every group. */
INLINE void fetch_groups(rows_in_step r, const uint8_t *w, int64_t bytes)
{
    const int groups = r.n * 16 / tn_layout_rows(r.layout);
#pragma GCC unroll 4
    for (int i = 0; i < groups; i++)
        for (int64_t at = 0; at < bytes; at += 64)
            _mm_prefetch((const char *)w + i * r.next + at, _MM_HINT_T0);
}

/* ---- products -------------------------------------------------------------------------------- */

/* sum[i] = `start` + half h of a block of one token times vectors v[i]. */
INLINE void half_sums(int n, const wide v[VECTORS][8], const act *a, int h, int32_t start,
                      wide sum[VECTORS])
{
#pragma GCC unroll 2
    for (int i = 0; i < n; i++)
        sum[i] = _mm512_set1_epi32(start);
#pragma GCC unroll 4
    for (int j = 4 * h; j < 4 * h + 4; j++) {
        const wide x = broadcast4(a->q + 4 * j);
#pragma GCC unroll 2
        for (int i = 0; i < n; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], v[i][j], x);
    }
}

/* The sums of a step with one scale: half 0's in units of half 1, plus those of half 1. So both
 * halves can be under way at once, which counts more than an addition. */
INLINE void whole_sums(int n, const wide v[VECTORS][8], const act *a, wide sum[VECTORS])
{
    wide other[VECTORS];
    half_sums(n, v, a, 0, a->c[0], other);
    half_sums(n, v, a, 1, 0, sum);
#pragma GCC unroll 2
    for (int i = 0; i < n; i++)
        sum[i] = _mm512_add_epi32(sum[i], _mm512_castps_si512(value_of(other[i], a, 0)));
}

INLINE void add_values(int n, const wide sum[VECTORS], const act *a, int h, const __m512 d[VECTORS],
                       __m512 *acc)
{
#pragma GCC unroll 2
    for (int i = 0; i < n; i++)
        acc[i] = _mm512_fmadd_ps(value_of(sum[i], a, h), d[i], acc[i]);
}

/* acc[vector] += a step times a block of one token. */
INLINE void step(uint32_t type, int n, const wide v[VECTORS][8], const __m512 d[2][VECTORS],
                 const __m512 m[2][VECTORS], const act *a, __m512 *acc)
{
    const bool by_16 = scaled_by_16(type);
    wide sum[VECTORS];
    if (by_16) {
        half_sums(n, v, a, 0, a->c[0], sum);
        add_values(n, sum, a, 0, d[0], acc);
        half_sums(n, v, a, 1, a->c[1], sum);
        add_values(n, sum, a, 1, d[1], acc);
    } else {
        whole_sums(n, v, a, sum);
        add_values(n, sum, a, 1, d[0], acc);
    }
    if (!has_min(type)) return;
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
        acc[i] = _mm512_fmadd_ps(m[0][i], _mm512_set1_ps(a->s[0]), acc[i]);
        if (by_16) acc[i] = _mm512_fmadd_ps(m[1][i], _mm512_set1_ps(a->s[1]), acc[i]);
    }
}

/* Sums in y that are to be stored soon: of `tokens`, of so many asked for in a step. */
typedef struct coming_sums {
    const float *y;
    int64_t y_stride, tokens, in_step;
} coming_sums;

INLINE void fetch_sums(rows_in_step r, coming_sums *s)
{
    for (int64_t t = 0; t < s->in_step && s->tokens; t++, s->tokens--, s->y += s->y_stride)
#pragma GCC unroll 2
        for (int i = 0; i < r.n; i++)
            _mm_prefetch((const char *)(s->y + 16 * i), _MM_HINT_T0);
}

/* One unit times a batch of n tokens; asks for what is `ahead` bytes on, and for sums. */
INLINE void unit(rows_in_step r, const uint8_t *w, int64_t ahead, const act *a, int64_t n,
                 coming_sums *sums, __m512 (*acc)[VECTORS])
{
    const tn_group_shape s = tn_group_shape_of(r.type, tn_layout_rows(r.layout));
    const int64_t step_bytes = tn_step_bytes(s);
    unit_scales scales;
    fetch_groups(r, w + ahead, s.head);
    read_scales(r, w, &scales);
    w += s.head;
#pragma GCC unroll 1
    for (int j = 0; j < s.cols / 32; j++, w += step_bytes) {
        wide v[VECTORS][8];
        fetch_groups(r, w + ahead, step_bytes);
        read_step(r, w, v);
        fetch_sums(r, sums);
        for (int64_t t = 0; t < n; t++, a++)
            step(r.type, r.n, v, scales.d[j], scales.m[j], a, acc[t]);
    }
}

/* acc += units of a run at w times a batch. What is read 256 columns later is asked for; behind the
 * last ones that is what is at `then`. */
INLINE void run_units(rows_in_step r, const uint8_t *w, const uint8_t *then, int64_t units,
                      const act *a, int64_t n, coming_sums *sums, __m512 (*acc)[VECTORS])
{
    const tn_group_shape s = tn_group_shape_of(r.type, tn_layout_rows(r.layout));
    const int64_t bytes = tn_unit_bytes(s), later = 256 / s.cols;
    for (int64_t u = 0; u < units; u++, w += bytes, a += s.cols / 32 * n) {
        const int64_t ahead =
            u + later < units ? later * bytes : then - w + (u + later - units) * bytes;
        unit(r, w, ahead, a, n, sums, acc);
    }
}

/* Where the groups from `row` on begin in the run of block b. */
INLINE const uint8_t *rows_at(rows_in_step r, const tn_weight *w, int64_t row, int64_t b,
                              tn_group_run *run)
{
    *run = tn_group_run_at(r.type, tn_layout_rows(r.layout), w, b);
    return run->at + row / tn_layout_rows(r.layout) * run->next;
}

/* acc += a batch of n tokens of a piece, which begin at a, times the rows from `row` on. */
INLINE void piece_batch(rows_in_step r, const tn_weight *w, int64_t row, const piece *p,
                        const act *a, int64_t n, coming_sums *sums, __m512 (*acc)[VECTORS])
{
    const int64_t per = tn_group_shape_of(r.type, 16).cols / 32;
    tn_group_run run, next;
    const uint8_t *at = rows_at(r, w, row, p->b0, &run);
    for (int64_t b = p->b0, end; b < p->b1; b = end, run = next) {
        const bool last = run.end >= p->b1;
        end = last ? p->b1 : run.end;
        const uint8_t *then = rows_at(r, w, last ? row + 16 * r.n : row, last ? p->b0 : end, &next);
        r.next = run.next;
        run_units(r, at, then, (end - b) / per, a, n, sums, acc);
        a += (end - b) * n;
        at = then;
    }
}

/* Sums so far of n tokens: zero, or those of the pieces before. */
INLINE void load_sums(rows_in_step r, const float *y, int64_t y_stride, int64_t n, bool first,
                      __m512 (*acc)[VECTORS])
{
    for (int64_t t = 0; t < n; t++, y += y_stride)
#pragma GCC unroll 2
        for (int i = 0; i < r.n; i++)
            acc[t][i] = first ? _mm512_setzero_ps()
                              : _mm512_maskz_loadu_ps(first_rows(r.left - 16 * i), y + 16 * i);
}

/* Without a mask where all rows are there: with one a store takes AMD's CPUs 10 cycles. */
INLINE void store_sums(rows_in_step r, float *y, int64_t y_stride, int64_t n,
                       __m512 (*acc)[VECTORS])
{
    if (r.left >= 16 * r.n) {
        for (int64_t t = 0; t < n; t++, y += y_stride)
#pragma GCC unroll 2
            for (int i = 0; i < r.n; i++)
                _mm512_storeu_ps(y + 16 * i, acc[t][i]);
        return;
    }
    for (int64_t t = 0; t < n; t++, y += y_stride)
        for (int i = 0; i < r.n; i++)
            _mm512_mask_storeu_ps(y + 16 * i, first_rows(r.left - 16 * i), acc[t][i]);
}

/* A piece times the rows from `row` on. */
INLINE void some_rows(rows_in_step r, const tn_weight *w, const piece *p, float *y,
                      int64_t y_stride, int64_t row)
{
    for (int64_t t = 0; t < p->n; t += BATCH) {
        const int64_t n = p->n - t < BATCH ? p->n - t : BATCH, blocks = p->b1 - p->b0;
        const act *a = (const act *)p->a + t * p->blocks + (p->b0 - p->a_b0) * n;
        float *to = y + t * y_stride + row;
        coming_sums sums = {to, y_stride, n, (n + blocks - 1) / blocks};
        __m512 acc[BATCH][VECTORS];
        load_sums(r, to, y_stride, n, p->b0 == 0, acc);
        piece_batch(r, w, row, p, a, n, &sums, acc);
        store_sums(r, to, y_stride, n, acc);
    }
}

INLINE void all_rows(tn_layout layout, uint32_t type, const tn_weight *w, const piece *p, float *y,
                     int64_t y_stride, int64_t row0, int64_t row1)
{
    int64_t r = row0;
    for (; r + 16 < row1; r += 16 * VECTORS)
        some_rows((rows_in_step){layout, type, VECTORS, row1 - r, 0}, w, p, y, y_stride, r);
    if (r < row1) some_rows((rows_in_step){layout, type, 1, row1 - r, 0}, w, p, y, y_stride, r);
}

_Static_assert((int)CHUNK_BYTES <= (int)TN_SCRATCH_BYTES, "scratch");
_Static_assert((int)sizeof(act) * BATCH * PIECE <= (int)CHUNK_BYTES, "chunk_tokens");

INLINE void many(tn_layout layout, uint32_t type, const tn_weight *w, const tn_acts *x, float *y,
                 int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    const act *ready = brought(type, x);
    const int64_t blocks = w->cols / 32, most = chunk_tokens(BATCH, sizeof(act), x->n, blocks);
    for (int64_t t = 0; t < x->n; t += most)
        for (int64_t b = 0; b < blocks; b += PIECE) {
            const int64_t n = x->n - t < most ? x->n - t : most;
            const int64_t size = blocks - b < PIECE ? blocks - b : PIECE;
            piece p = {ready ? ready + t * blocks : scratch, n, blocks, 0, b, b + size};
            if (!ready) {
                pack_all(type, &(tn_packing){scratch, n, size, 0, n, 0, size, x->q + t * blocks + b,
                                             blocks});
                p = (piece){scratch, n, size, b, b, b + size};
            }
            all_rows(layout, type, w, &p, y + t * y_stride, y_stride, row0, row1);
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
        if (x->n > FEW)                                                                            \
            r8_##name(w, x, y, y_stride, row0, row1, scratch);                                     \
        else                                                                                       \
            few(type, false, w, x, y, y_stride, row0, row1, scratch);                              \
    }                                                                                              \
    static void matmul_##name##_ahead(const tn_weight *w, const tn_acts *x, float *y,              \
                                      int64_t y_stride, int64_t row0, int64_t row1, void *scratch) \
    {                                                                                              \
        if (x->n > FEW)                                                                            \
            r8_##name(w, x, y, y_stride, row0, row1, scratch);                                     \
        else                                                                                       \
            few(type, true, w, x, y, y_stride, row0, row1, scratch);                               \
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define CASE(name, type)                                                                           \
    case type: return r16_##name;
tn_matmul_fn tn_avx512_many(uint32_t type)
{
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
