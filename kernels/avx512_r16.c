/* Products of one token with 16-row interleaved weights, AVX-512 VNNI: what decoding does. Integer
 * scales are applied in float within a unit, the float scale once per unit. The order of additions
 * of a row depends on nothing but its length.
 *
 * It is bound by memory. Measured on Emerald Rapids, Q4_K from DRAM, two threads, % of the best
 * plain read: one stream 70, four groups in step unit by unit 79, step by step 97 (with software
 * prefetch to the first level 1 KB ahead in each; 4 KB ahead 85). A whole token of a 1B model takes
 * 5 % less with requests at two distances, and for the right rows behind the last units. On Zen 4
 * one stream without it is best, see avx2_r8.c: a whole token takes 18 % more with four streams and
 * 28 % with two, 2 to 12 % with requests half to 4.5 KB ahead, and up to 12 % with a single one for
 * each unit. */
#include "avx512_r16.h"
#include "avx_fetch.h"

enum {
    FAR = 4608,  /* bytes between what is read and what is asked for, in each stream, about, */
    NEAR = 1152, /* and what is brought to the first level */
    STREAMS = 4  /* groups in step, at most */
};

/* The sums of both halves of a step with one token's activations, times the activations' scales. */
INLINE void halves(uint32_t type, const wide v[8], const act *a, __m512 p[2])
{
    const bool offset = tn_quant_offset(type) != 0;
    wide i0 = offset ? _mm512_set1_epi32(a->c[0]) : _mm512_setzero_si512();
    wide i1 = offset ? _mm512_set1_epi32(a->c[1]) : _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        i0 = dot4(i0, v[j], a->q + 4 * j);
        i1 = dot4(i1, v[4 + j], a->q + 16 + 4 * j);
    }
    p[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(i0), _mm512_set1_ps(a->d[0]));
    if (scaled_by_16(type))
        p[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(i1), _mm512_set1_ps(a->d[1]));
    else
        p[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(i1), _mm512_set1_ps(a->d[1]), p[0]);
}

/* One step: sum += scale * (q * activation), min += minimum * activation. */
INLINE void step(uint32_t type, const r16_head *h, int j, const uint8_t *p, const act *a,
                 __m512 *sum, __m512 *min)
{
    const bool by_16 = scaled_by_16(type), k_type = tn_group_shape_of(type, 16).cols == 256;
    const __m512 scale = k_type ? r16_scale(type, h->scale, j, 0) : h->d;
    wide v[8];
    __m512 part[2];
    r16_quants(type, p, v);
    halves(type, v, a, part);
    *sum = _mm512_fmadd_ps(part[0], scale, *sum);
    if (by_16) *sum = _mm512_fmadd_ps(part[1], r16_scale(type, h->scale, j, 1), *sum);
    if (!has_min(type)) return;
    const __m512 m = k_type ? r16_scale(type, h->min, j, 0) : h->m;
    *min = _mm512_fmadd_ps(m, _mm512_set1_ps(a->s[0]), *min);
    if (by_16) *min = _mm512_fmadd_ps(r16_scale(type, h->min, j, 1), _mm512_set1_ps(a->s[1]), *min);
}

/* g groups in step (a constant). */
typedef struct tile {
    uint32_t type;
    int g;
    bool ahead;          /* software prefetch */
    int64_t group_bytes; /* from a group to the next */
    int64_t units;
    int64_t far; /* bytes to what is asked for */
} tile;

/* One unit of a K type; acc[group]. */
INLINE void unit_256(tile k, const uint8_t *w, const act *a, __m512 *acc)
{
    const tn_group_shape s = tn_group_shape_of(k.type, 16);
    const int64_t step_bytes = tn_step_bytes(s);
    r16_head h[STREAMS];
    __m512 sum[STREAMS], min[STREAMS];
#pragma GCC unroll 4
    for (int i = 0; i < k.g; i++) {
        if (k.ahead) fetch_stream(w + i * k.group_bytes, s.head, NEAR, k.far);
        r16_read_head(k.type, w + i * k.group_bytes, &h[i]);
        sum[i] = min[i] = _mm512_setzero_ps();
    }
    w += s.head;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++, w += step_bytes, a++)
#pragma GCC unroll 4
        for (int i = 0; i < k.g; i++) {
            const uint8_t *p = w + i * k.group_bytes;
            if (k.ahead) fetch_stream(p, step_bytes, NEAR, k.far);
            step(k.type, &h[i], j, p, a, sum + i, min + i);
        }
#pragma GCC unroll 4
    for (int i = 0; i < k.g; i++) {
        acc[i] = _mm512_fmadd_ps(sum[i], h[i].d, acc[i]);
        if (has_min(k.type)) acc[i] = _mm512_fmadd_ps(min[i], h[i].m, acc[i]);
    }
}

/* One unit of another type. */
INLINE void unit_32(tile k, const uint8_t *w, const act *a, __m512 *acc)
{
    const tn_group_shape s = tn_group_shape_of(k.type, 16);
#pragma GCC unroll 4
    for (int i = 0; i < k.g; i++, w += k.group_bytes) {
        r16_head h;
        if (k.ahead) fetch_stream(w, tn_unit_bytes(s), NEAR, k.far);
        r16_read_head(k.type, w, &h);
        step(k.type, &h, 0, w + s.head, a, acc + i, acc + i);
    }
}

/* Writes y[row] for rows [0, left) or all rows of the groups. Behind the last units what the next
 * groups begin with is asked for. */
INLINE void multiply(tile k, const uint8_t *w, const act *a, float *y, int64_t left)
{
    const tn_group_shape s = tn_group_shape_of(k.type, 16);
    __m512 acc[STREAMS];
#pragma GCC unroll 4
    for (int i = 0; i < k.g; i++)
        acc[i] = _mm512_setzero_ps();
    const int64_t unit = tn_unit_bytes(s), later = FAR / unit > 1 ? FAR / unit : 1;
    for (int64_t u = 0; u < k.units; u++, w += unit, a += s.cols / 32) {
        k.far = later * unit + (u + later < k.units ? 0 : (k.g - 1) * k.group_bytes);
        if (s.cols == 256)
            unit_256(k, w, a, acc);
        else
            unit_32(k, w, a, acc);
    }
#pragma GCC unroll 4
    for (int i = 0; i < k.g; i++)
        _mm512_mask_storeu_ps(y + 16 * i, first_rows(left - 16 * i), acc[i]);
}

INLINE void matmul(uint32_t type, bool ahead, const tn_weight *w, const tn_acts *x, float *y,
                   int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    const int64_t blocks = w->cols / 32;
    if (x->n > 1 || blocks > TN_SCRATCH_BYTES / (int64_t)sizeof(act)) {
        tn_avx512_many(type)(w, x, y, y_stride, row0, row1, scratch);
        return;
    }
    act *a = scratch;
    for (int64_t b = 0; b < blocks; b++)
        pack(type, r16_high(type), a + b, x->q + b);
    tile k = {.type = type, .g = 1, .ahead = ahead};
    k.group_bytes = 16 * (int64_t)w->row_bytes;
    k.units = w->cols / tn_group_shape_of(type, 16).cols;
    const uint8_t *p = (const uint8_t *)w->data + (size_t)row0 * w->row_bytes;
    int64_t r = row0;
    if (ahead) {
        for (k.g = 4; r + 64 <= row1; r += 64, p += 4 * k.group_bytes)
            multiply(k, p, a, y + r, 64);
        for (k.g = 2; r + 32 <= row1; r += 32, p += 2 * k.group_bytes)
            multiply(k, p, a, y + r, 32);
    }
    for (k.g = 1; r < row1; r += 16, p += k.group_bytes)
        multiply(k, p, a, y + r, row1 - r);
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
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define SET(name, type) f[type] = k->prefetch ? matmul_##name##_ahead : matmul_##name;
void tn_kernels_avx512_r16(tn_kernels *k)
{
    tn_matmul_fn *f = k->matmul[TN_LAYOUT_R16];
    k->packed = TN_LAYOUT_R16;
    TN_INTERLEAVED_TYPES(SET)
}
