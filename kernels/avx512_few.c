/* Products of 2 to 16 tokens with 16-row interleaved weights, AVX-512 VNNI. A step of 32 rows is
 * unpacked into registers once, and all tokens run over it; their sums stay in L1. What is
 * computed, in which order, and so every bit is as in avx512_many.c, whose panels would be written
 * to be read only once or twice. avx512_many.c also says why sums start at the bits of BASE.
 *
 * 32 columns of 32 rows and a token take 24 to 28 vector instructions, at two a cycle; 16 of them
 * are products. So 8 tokens of Q4_K are bound by arithmetic from about 14 GB/s a core on, at 3 GHz.
 * Measured (one core of a Xeon, weights from memory, kernel alone): 8 tokens cost 1.4 (Q6_K, Q8_0)
 * to 1.6 (Q4_K, Q4_0) times what one does, 4 tokens 1.2; by panels 1.9 to 2.5. */
#include "avx512_r16.h"

/* The scales and minima of a unit: [step][half, where there is one a half][group]. */
typedef struct unit_scales {
    __m512 d[8][2][GROUPS], m[8][2][GROUPS];
} unit_scales;

/* Where the next block of each token lies, and how far the one after it is. */
typedef struct blocks_of_tokens {
    const act *at[TN_SEVERAL_TOKENS];
    int64_t next[TN_SEVERAL_TOKENS];
} blocks_of_tokens;

/* g groups in step (a constant), `next` bytes apart. */
typedef struct rows_in_step {
    uint32_t type;
    int g;
    int64_t next, n; /* n: tokens */
} rows_in_step;

/* Asks for the cache lines of [w, w + bytes) of every group. */
INLINE void fetch_groups(rows_in_step r, const uint8_t *w, int64_t bytes)
{
#pragma GCC unroll 2
    for (int i = 0; i < r.g; i++)
        for (int64_t at = 0; at < bytes; at += 64)
            _mm_prefetch((const char *)w + i * r.next + at, _MM_HINT_T0);
}

/* Of group i, from the unit at u. */
INLINE void read_scales(uint32_t type, const uint8_t *u, int i, unit_scales *o)
{
    r16_head h;
    r16_read_head(type, u, &h);
    h.d = _mm512_mul_ps(h.d, _mm512_set1_ps(UNITS));
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

/* sum[i] = half h of a block of one token times group i's quants v[i], from `start` on. */
INLINE void half_sums(int g, const wide v[GROUPS][8], const act *a, int h, int32_t start,
                      wide sum[GROUPS])
{
#pragma GCC unroll 2
    for (int i = 0; i < g; i++)
        sum[i] = _mm512_set1_epi32(start);
#pragma GCC unroll 4
    for (int j = 4 * h; j < 4 * h + 4; j++) {
        const wide x = broadcast4(a->q + 4 * j);
#pragma GCC unroll 2
        for (int i = 0; i < g; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], v[i][j], x);
    }
}

/* The sums of a step with one scale: half 0's in units of half 1, plus those of half 1. So both
 * halves can be under way at once, which counts more here than an addition. */
INLINE void whole_sums(int g, const wide v[GROUPS][8], const act *a, wide sum[GROUPS])
{
    wide other[GROUPS];
    half_sums(g, v, a, 0, a->c[0], other);
    half_sums(g, v, a, 1, 0, sum);
#pragma GCC unroll 2
    for (int i = 0; i < g; i++)
        sum[i] = _mm512_add_epi32(sum[i], _mm512_castps_si512(value_of(other[i], a, 0)));
}

INLINE void add_values(int g, const wide sum[GROUPS], const act *a, int h, const __m512 d[GROUPS],
                       __m512 *acc)
{
#pragma GCC unroll 2
    for (int i = 0; i < g; i++)
        acc[i] = _mm512_fmadd_ps(value_of(sum[i], a, h), d[i], acc[i]);
}

/* acc[group] += a step times a block of one token. */
INLINE void step(uint32_t type, int g, const wide v[GROUPS][8], const __m512 d[2][GROUPS],
                 const __m512 m[2][GROUPS], const act *a, __m512 *acc)
{
    const bool by_16 = scaled_by_16(type);
    wide sum[GROUPS];
    if (by_16) {
        half_sums(g, v, a, 0, a->c[0], sum);
        add_values(g, sum, a, 0, d[0], acc);
        half_sums(g, v, a, 1, a->c[1], sum);
        add_values(g, sum, a, 1, d[1], acc);
    } else {
        whole_sums(g, v, a, sum);
        add_values(g, sum, a, 1, d[0], acc);
    }
    if (!has_min(type)) return;
#pragma GCC unroll 2
    for (int i = 0; i < g; i++) {
        acc[i] = _mm512_fmadd_ps(m[0][i], _mm512_set1_ps(a->s[0]), acc[i]);
        if (by_16) acc[i] = _mm512_fmadd_ps(m[1][i], _mm512_set1_ps(a->s[1]), acc[i]);
    }
}

/* One unit times all tokens; asks for what is `ahead` bytes on. */
INLINE void unit(rows_in_step r, const uint8_t *w, int64_t ahead, blocks_of_tokens *x,
                 __m512 (*acc)[GROUPS])
{
    const tn_group_shape s = tn_group_shape_of(r.type, 16);
    const int64_t step_bytes = tn_step_bytes(s);
    unit_scales scales;
    fetch_groups(r, w + ahead, s.head);
    read_scales(r.type, w, 0, &scales);
    if (r.g > 1) read_scales(r.type, w + r.next, 1, &scales);
    w += s.head;
#pragma GCC unroll 1
    for (int j = 0; j < s.cols / 32; j++, w += step_bytes) {
        wide v[GROUPS][8];
        fetch_groups(r, w + ahead, step_bytes);
#pragma GCC unroll 2
        for (int i = 0; i < r.g; i++)
            r16_quants_for_sums(r.type, w + i * r.next, v[i]);
        for (int64_t t = 0; t < r.n; t++) {
            step(r.type, r.g, v, scales.d[j], scales.m[j], x->at[t], acc[t]);
            x->at[t] += x->next[t];
        }
    }
}

/* The groups' rows at y, of which `left` are wanted, times a piece. w: the first group. What is
 * read 256 columns later is asked for; behind the last ones that is what the next groups begin
 * with. */
INLINE void multiply(rows_in_step r, const uint8_t *w, const piece *p, int tile, float *y,
                     int64_t y_stride, int64_t left)
{
    const tn_group_shape s = tn_group_shape_of(r.type, 16);
    const int64_t per = s.cols / 32, bytes = (p->b1 - p->b0) / per * tn_unit_bytes(s);
    const int64_t later = 256 / s.cols * tn_unit_bytes(s);
    blocks_of_tokens x;
    __m512 acc[TN_SEVERAL_TOKENS][GROUPS];
    w += p->b0 / per * tn_unit_bytes(s);
    for (int64_t t = 0; t < r.n; t++) {
        const int64_t first = t / tile * tile;
        x.next[t] = r.n - first < tile ? r.n - first : tile;
        x.at[t] = (const act *)p->a + first * p->blocks + (p->b0 - p->a_b0) * x.next[t] + (t - first);
        for (int i = 0; i < r.g; i++)
            acc[t][i] = _mm512_maskz_loadu_ps(p->b0 ? first_rows(left - 16 * i) : 0,
                                              y + t * y_stride + 16 * i);
    }
    for (int64_t at = 0; at < bytes; at += tn_unit_bytes(s))
        unit(r, w + at, at + later < bytes ? later : later - bytes + r.g * r.next, &x, acc);
    for (int64_t t = 0; t < r.n; t++)
        for (int i = 0; i < r.g; i++)
            _mm512_mask_storeu_ps(y + t * y_stride + 16 * i, first_rows(left - 16 * i), acc[t][i]);
}

INLINE void several(uint32_t type, const tn_weight *w, const piece *p, int tile, float *y,
                    int64_t y_stride, int64_t row0, int64_t row1)
{
    rows_in_step r = {type, GROUPS, 16 * (int64_t)w->row_bytes, p->n};
    const uint8_t *at = (const uint8_t *)w->data + row0 / 16 * r.next;
    for (; row0 + 16 < row1; row0 += 16 * GROUPS, at += GROUPS * r.next)
        multiply(r, at, p, tile, y + row0, y_stride, row1 - row0);
    r.g = 1;
    if (row0 < row1) multiply(r, at, p, tile, y + row0, y_stride, row1 - row0);
}

#define SEVERAL(name, type)                                                                        \
    static void several_##name(const tn_weight *w, const piece *p, int tile, float *y,             \
                               int64_t y_stride, int64_t row0, int64_t row1)                       \
    {                                                                                              \
        several(type, w, p, tile, y, y_stride, row0, row1);                                        \
    }
TN_INTERLEAVED_TYPES(SEVERAL)

#define CASE(name, type)                                                                           \
    case type: return several_##name;
tn_several_fn tn_avx512_several(uint32_t type)
{
    switch (type) {
        TN_INTERLEAVED_TYPES(CASE)
    default: return NULL;
    }
}
