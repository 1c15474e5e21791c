/* Products with 8-row interleaved weights, AVX2: a step is unpacked once and used for a tile of
 * tokens, whose activations lie packed in scratch in the order of use. A row is reduced in the same
 * order with the same operations for any n: results do not depend on it.
 *
 * One token is bound by memory. Measured on Zen 4: one stream reaches 95 % of what plain reading
 * does, several groups in step only half of that, and software prefetch costs 5 to 15 %. On Xeons
 * it brings a third more; so a CPU gets what suits it. */
#include "avx2_r8.h"

enum {
    TILE = 64,               /* most tokens of a tile */
    PANEL_BYTES = 192 << 10, /* of a tile's activations: they stay in L2 */
    AHEAD = 4096,            /* bytes between what is read and what is asked for */
};

/* The sums of both halves of q as int16 neighbours. */
INLINE int32_t half_sums(__m256i q)
{
    vec s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    s = _mm256_hadd_epi32(s, s);
    s = _mm256_hadd_epi32(s, s);
    __m128i low = _mm256_castsi256_si128(s), high = _mm256_extracti128_si256(s, 1);
    return _mm_cvtsi128_si32(_mm_unpacklo_epi16(low, high));
}

INLINE void pack_act(uint32_t type, r8_act *o, const tn_q8 *a)
{
    __m128i low = _mm_loadu_si128((const __m128i *)(const void *)a->q);
    __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(a->q + 16));
    _mm_store_si128((__m128i *)(void *)o->q, _mm_unpacklo_epi16(low, high));
    _mm_store_si128((__m128i *)(void *)(o->q + 16), _mm_unpackhi_epi16(low, high));
    o->d = a->d;
    memcpy(o->m, a->m, sizeof o->m);
    o->s = a->s[0] + a->s[1];
    o->c = 0;
    if (!scaled_by_16(type) && !quant_offset(type)) return;
    o->c = half_sums(_mm256_set_m128i(high, low));
    if (!scaled_by_16(type))
        o->c = quant_offset(type) * ((int16_t)o->c * a->m[0] + (o->c >> 16) * a->m[1]);
}

/* Activations of n tokens as [block][token]. */
INLINE void pack_acts(uint32_t type, r8_act *out, const tn_q8 *x, int64_t n, int64_t blocks)
{
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t t = 0; t < n; t++)
            pack_act(type, out + b * n + t, x + t * blocks + b);
}

/* Stores the rows of group g that lie before row1. */
INLINE void store_rows(float *y, int64_t g, int64_t row1, __m256 v)
{
    int64_t left = row1 - 8 * g;
    float tmp[8];
    if (left >= 8) {
        _mm256_storeu_ps(y + 8 * g, v);
        return;
    }
    _mm256_storeu_ps(tmp, v);
    memcpy(y + 8 * g, tmp, (size_t)left * sizeof *tmp);
}

/* Asks for the cache lines of [w, w + bytes). */
INLINE void fetch_lines(const uint8_t *w, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)w + i, _MM_HINT_T0);
}

/* One group times n tokens of the packed activations a. */
INLINE void group_tile(uint32_t type, bool ahead, const uint8_t *w, const r8_act *a, int64_t n,
                       int64_t units, __m256 *acc)
{
    const tn_group_shape s = tn_group_shape_of(type, 8);
    const int steps = s.cols / 32, step_bytes = 32 * s.bits;
    for (int64_t t = 0; t < n; t++)
        acc[t] = _mm256_setzero_ps();
    for (int64_t u = 0; u < units; u++, w += tn_unit_bytes(s)) {
        r8_head h;
        read_head(type, w, &h);
        if (ahead) fetch_lines(w + AHEAD, s.head);
#pragma GCC unroll 1
        for (int j = 0; j < steps; j++, a += n) {
            const uint8_t *step = w + s.head + step_bytes * j;
            vec v[8];
            if (ahead) fetch_lines(step + AHEAD, step_bytes);
            read_quants(s.bits, step, v);
            for (int64_t t = 0; t < n; t++)
                acc[t] = step_product(type, &h, j, v, a + t, acc[t]);
        }
    }
}

/* Tokens of a tile, as even as possible. */
static int64_t tile_tokens(int64_t n, int64_t blocks)
{
    int64_t most = PANEL_BYTES / (blocks * (int64_t)sizeof(r8_act));
    most = most > TILE ? TILE : most < 4 ? 4 : most;
    if (most > TN_SCRATCH_BYTES / (blocks * (int64_t)sizeof(r8_act)))
        most = TN_SCRATCH_BYTES / (blocks * (int64_t)sizeof(r8_act));
    int64_t tiles = (n + most - 1) / most;
    return (n + tiles - 1) / tiles;
}

INLINE void matmul(uint32_t type, bool ahead, const tn_weight *w, const tn_acts *x, float *y,
                   int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    int64_t blocks = w->cols / 32, units = w->cols / tn_group_shape_of(type, 8).cols;
    if (blocks > TN_SCRATCH_BYTES / (int64_t)sizeof(r8_act)) {
        tn_group_matmul(w, x, y, y_stride, row0, row1, scratch);
        return;
    }
    r8_act *panel = scratch;
    int64_t tile = tile_tokens(x->n, blocks);
    for (int64_t t0 = 0; t0 < x->n; t0 += tile) {
        int64_t n = x->n - t0 < tile ? x->n - t0 : tile;
        pack_acts(type, panel, x->q + t0 * blocks, n, blocks);
        for (int64_t g = row0 / 8; 8 * g < row1; g++) {
            const uint8_t *group = (const uint8_t *)w->data + (size_t)g * 8 * w->row_bytes;
            __m256 acc[TILE];
            if (n == 1)
                group_tile(type, ahead, group, panel, 1, units, acc);
            else
                group_tile(type, false, group, panel, n, units, acc);
            for (int64_t t = 0; t < n; t++)
                store_rows(y + (t0 + t) * y_stride, g, row1, acc[t]);
        }
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
    }
TN_INTERLEAVED_TYPES(MATMUL)

#define CASE(name, type) case type: return ahead ? matmul_##name##_ahead : matmul_##name;
tn_matmul_fn tn_r8_matmul_avx2(uint32_t type, bool ahead)
{
    switch (type) {
        TN_INTERLEAVED_TYPES(CASE)
    default: return NULL;
    }
}

void tn_kernels_avx2_r8(tn_kernels *k)
{
    tn_repack_avx2(k->repack[TN_LAYOUT_R8], k->repack[TN_LAYOUT_R16]);
    for (uint32_t type = 0; type < TN_TYPE_COUNT; type++) {
        tn_matmul_fn f = tn_r8_matmul_avx2(type, k->prefetch);
        if (f) k->matmul[TN_LAYOUT_R8][type] = f;
    }
}
