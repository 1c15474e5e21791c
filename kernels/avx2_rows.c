/* Products with row-major quantised weights, as they lie in a mapped file.
 *
 * One body serves all types. Rows are walked in chunks of 8 blocks of 32 (one super-block of the K
 * types), as tiles of 4 rows x 1 token or 1 row x up to 4 tokens. Per block, row and token:
 *     maddubs  32 products of 8 bits, summed in pairs of 16 bits
 *     madd     times the half's integer activation scale (and the weight's, where it has one per
 *              half), summed to 8 x 32 bits; the halves are the 128-bit lanes
 *     fma      times weight scale x activation scale, in float
 * Signed weights go through |w| * (x with the sign of w): maddubs wants its first factor unsigned,
 * and |-128| = 128 is right as an unsigned byte. No pair saturates: 2 * 128 * 127 < 32768.
 *
 * type, n_rows and n_tok are constants in every stamped copy, so all branches on them vanish. */
#include "avx2_util.h"
#include "kernels.h"

#include "../gguf/blocks.h"

#include <stddef.h>

enum {
    MAX_TILE = 4,      /* rows or tokens of a tile */
    PANEL = 2048,      /* blocks of 32 per pass over the columns; bounds the scratch */
    ROW_BLOCK = 64,    /* rows that stay in cache while all tokens pass */
    PREFETCH = 1024    /* bytes ahead */
};

/* Scales of one chunk. Value = a * q - b, b per half; where the type has a scale per half, a is the
 * common float scale and lane h of sc holds the 8 integer scales of half h. */
typedef struct scales {
    __m256 a, b[2];
    __m256i sc;
} scales;

/* The float parts of one token's blocks, gathered so that 8 load at once. */
typedef struct token {
    const tn_q8 *q;
    float *d, *s[2];
} token;
_Static_assert(sizeof(float) * 3 * MAX_TILE * PANEL <= TN_SCRATCH_BYTES, "scratch");

ALWAYS_INLINE bool is_signed(uint32_t type)
{
    return type == TN_TYPE_Q4_0 || type == TN_TYPE_Q5_0 || type == TN_TYPE_Q8_0 ||
           type == TN_TYPE_Q3_K || type == TN_TYPE_Q6_K;
}

ALWAYS_INLINE bool has_half_scales(uint32_t type)
{
    return type == TN_TYPE_Q2_K || type == TN_TYPE_Q3_K || type == TN_TYPE_Q6_K;
}

ALWAYS_INLINE bool has_half_mins(uint32_t type)
{
    return type == TN_TYPE_Q2_K;
}

ALWAYS_INLINE size_t chunk_bytes(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q4_0: return 8 * sizeof(tn_block_q4_0);
    case TN_TYPE_Q4_1: return 8 * sizeof(tn_block_q4_1);
    case TN_TYPE_Q5_0: return 8 * sizeof(tn_block_q5_0);
    case TN_TYPE_Q5_1: return 8 * sizeof(tn_block_q5_1);
    case TN_TYPE_Q8_0: return 8 * sizeof(tn_block_q8_0);
    case TN_TYPE_Q2_K: return sizeof(tn_block_q2_k);
    case TN_TYPE_Q3_K: return sizeof(tn_block_q3_k);
    case TN_TYPE_Q4_K: return sizeof(tn_block_q4_k);
    case TN_TYPE_Q5_K: return sizeof(tn_block_q5_k);
    default: return sizeof(tn_block_q6_k);
    }
}

/* ---- scales ---------------------------------------------------------------------------------- */

/* float16 at p + i * stride for i < n, zeros after. */
ALWAYS_INLINE __m256 f16_strided(const uint8_t *p, size_t stride, int n)
{
    uint16_t h[8];
    for (int i = 0; i < 8; i++) h[i] = 0;
    if (n == 8)
        return _mm256_cvtph_ps(_mm_setr_epi16(
            (short)load_u16(p), (short)load_u16(p + stride), (short)load_u16(p + 2 * stride),
            (short)load_u16(p + 3 * stride), (short)load_u16(p + 4 * stride),
            (short)load_u16(p + 5 * stride), (short)load_u16(p + 6 * stride),
            (short)load_u16(p + 7 * stride)));
    for (int i = 0; i < n; i++) h[i] = load_u16(p + (size_t)i * stride);
    return _mm256_cvtph_ps(load_128(h));
}

ALWAYS_INLINE void scales_min(scales *s, const uint8_t *p, size_t stride, int n)
{
    s->a = f16_strided(p, stride, n);
    s->b[0] = _mm256_sub_ps(_mm256_setzero_ps(), f16_strided(p + 2, stride, n));
}

ALWAYS_INLINE __m256 bytes_to_floats(uint64_t bytes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)));
}

ALWAYS_INLINE uint64_t join_u32(uint32_t low, uint32_t high)
{
    return low | (uint64_t)high << 32;
}

/* Q4_K, Q5_K: 8 scales and 8 minima of 6 bits in 12 bytes, 4 bytes of the result at a time. */
ALWAYS_INLINE void scales_45k(scales *s, const uint8_t *d, const uint8_t *packed)
{
    const uint32_t w0 = load_u32(packed), w1 = load_u32(packed + 4), w2 = load_u32(packed + 8);
    const uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, high2 = 0x30303030;
    uint64_t sc = join_u32(w0 & low6, (w2 & low4) | (w0 >> 2 & high2));
    uint64_t mn = join_u32(w1 & low6, (w2 >> 4 & low4) | (w1 >> 2 & high2));
    s->a = _mm256_mul_ps(f16_set1(d), bytes_to_floats(sc));
    s->b[0] = _mm256_mul_ps(f16_set1(d + 2), bytes_to_floats(mn));
}

/* Scales of 16 weights in order -> those of first halves in the lower 8 bytes,
 * second in the upper. */
ALWAYS_INLINE __m128i by_half(__m128i v)
{
    return _mm_shuffle_epi8(v, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

ALWAYS_INLINE void scales_q2_k(scales *s, const uint8_t *p)
{
    const __m128i v = by_half(load_128(p + offsetof(tn_block_q2_k, scales)));
    const __m128i low = _mm_set1_epi8(15);
    const __m256 dmin = f16_set1(p + offsetof(tn_block_q2_k, dmin));
    const __m128i mn = _mm_and_si128(_mm_srli_epi16(v, 4), low);
    s->a = f16_set1(p + offsetof(tn_block_q2_k, d));
    s->sc = _mm256_cvtepu8_epi16(_mm_and_si128(v, low));
    s->b[0] = _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(mn)));
    s->b[1] = _mm256_mul_ps(
        dmin, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(mn, mn))));
}

ALWAYS_INLINE void scales_q3_k(scales *s, const uint8_t *p)
{
    const uint8_t *packed = p + offsetof(tn_block_q3_k, scales);
    const uint32_t w0 = load_u32(packed), w1 = load_u32(packed + 4), w2 = load_u32(packed + 8);
    const uint32_t low4 = 0x0f0f0f0f, high2 = 0x30303030;
    uint64_t first = join_u32((w0 & low4) | (w2 << 4 & high2), (w1 & low4) | (w2 << 2 & high2));
    uint64_t second =
        join_u32((w0 >> 4 & low4) | (w2 & high2), (w1 >> 4 & low4) | (w2 >> 2 & high2));
    __m128i v = by_half(_mm_set_epi64x((long long)second, (long long)first));
    s->a = f16_set1(p + offsetof(tn_block_q3_k, d));
    s->sc = _mm256_cvtepi8_epi16(_mm_sub_epi8(v, _mm_set1_epi8(32)));
}

ALWAYS_INLINE void scales_q6_k(scales *s, const uint8_t *p)
{
    s->a = f16_set1(p + offsetof(tn_block_q6_k, d));
    s->sc = _mm256_cvtepi8_epi16(by_half(load_128(p + offsetof(tn_block_q6_k, scales))));
}

ALWAYS_INLINE void load_scales(scales *s, uint32_t type, const uint8_t *p, int n)
{
    s->b[0] = s->b[1] = _mm256_setzero_ps();
    s->sc = _mm256_setzero_si256();
    switch (type) {
    case TN_TYPE_Q4_1:
    case TN_TYPE_Q5_1: scales_min(s, p, chunk_bytes(type) / 8, n); break;
    case TN_TYPE_Q4_K:
        scales_45k(s, p, p + offsetof(tn_block_q4_k, scales));
        break;
    case TN_TYPE_Q5_K:
        scales_45k(s, p, p + offsetof(tn_block_q5_k, scales));
        break;
    case TN_TYPE_Q2_K: scales_q2_k(s, p); break;
    case TN_TYPE_Q3_K: scales_q3_k(s, p); break;
    case TN_TYPE_Q6_K: scales_q6_k(s, p); break;
    default: s->a = f16_strided(p, chunk_bytes(type) / 8, n); break; /* Q4_0, Q5_0, Q8_0 */
    }
}

/* ---- weights --------------------------------------------------------------------------------- */

ALWAYS_INLINE __m256i shift_right(__m256i v, int by)
{
    return by >= 0 ? _mm256_srli_epi16(v, by) : _mm256_slli_epi16(v, -by);
}

/* Bits `from`, from + 1, ... of each byte, moved to bit `to`, under `mask`. */
ALWAYS_INLINE __m256i bits(__m256i v, int from, int to, int mask)
{
    return _mm256_and_si256(shift_right(v, from - to), _mm256_set1_epi8((char)mask));
}

/* 16 bytes of nibbles: low ones in the lower lane, high ones in the upper. */
ALWAYS_INLINE __m256i nibbles(const uint8_t *p)
{
    __m128i v = load_128(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
}

/* 16 in byte i where bit i of the 32 bits at p is set, else 0. */
ALWAYS_INLINE __m256i fifth_bits(const uint8_t *p)
{
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                              0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int)load_u32(p)), spread);
    v = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
    return _mm256_and_si256(v, _mm256_set1_epi8(16));
}

ALWAYS_INLINE __m256i minus(__m256i v, int offset)
{
    return _mm256_sub_epi8(v, _mm256_set1_epi8((char)offset));
}

ALWAYS_INLINE __m256i q6_k_weights(const uint8_t *p, int i)
{
    const int n = i / 4, j = i % 4;
    const uint8_t *ql = p + offsetof(tn_block_q6_k, ql) + 64 * n + 32 * (j % 2);
    const uint8_t *qh = p + offsetof(tn_block_q6_k, qh) + 32 * n;
    __m256i low = bits(load_256(ql), 4 * (j / 2), 0, 0x0f);
    __m256i high = bits(load_256(qh), 2 * j, 4, 0x30);
    return minus(_mm256_or_si256(low, high), 32);
}

ALWAYS_INLINE __m256i q5_k_weights(const uint8_t *p, int i)
{
    __m256i low =
        bits(load_256(p + offsetof(tn_block_q5_k, qs) + 32 * (i / 2)), 4 * (i % 2), 0, 0x0f);
    __m256i high = bits(load_256(p + offsetof(tn_block_q5_k, qh)), i, 4, 0x10);
    return _mm256_or_si256(low, high);
}

ALWAYS_INLINE __m256i q3_k_weights(const uint8_t *p, int i)
{
    __m256i low = bits(load_256(p + offsetof(tn_block_q3_k, qs) + 32 * (i / 4)), 2 * (i % 4), 0, 3);
    __m256i high = bits(load_256(p + offsetof(tn_block_q3_k, hmask)), i, 2, 4);
    return minus(_mm256_or_si256(low, high), 4);
}

/* The 32 weights of block i of the chunk at p. */
ALWAYS_INLINE __m256i load_weights(uint32_t type, const uint8_t *p, int i)
{
    const uint8_t *b = p + (size_t)i * (chunk_bytes(type) / 8); /* of a small block */
    switch (type) {
    case TN_TYPE_Q4_0: return minus(nibbles(b + 2), 8);
    case TN_TYPE_Q4_1: return nibbles(b + 4);
    case TN_TYPE_Q5_0: return minus(_mm256_or_si256(nibbles(b + 6), fifth_bits(b + 2)), 16);
    case TN_TYPE_Q5_1: return _mm256_or_si256(nibbles(b + 8), fifth_bits(b + 4));
    case TN_TYPE_Q8_0: return load_256(b + 2);
    case TN_TYPE_Q2_K:
        return bits(load_256(p + offsetof(tn_block_q2_k, qs) + 32 * (i / 4)), 2 * (i % 4), 0, 3);
    case TN_TYPE_Q3_K: return q3_k_weights(p, i);
    case TN_TYPE_Q4_K:
        return bits(load_256(p + offsetof(tn_block_q4_k, qs) + 32 * (i / 2)), 4 * (i % 2), 0, 0x0f);
    case TN_TYPE_Q5_K: return q5_k_weights(p, i);
    default: return q6_k_weights(p, i);
    }
}

/* ---- dot products ---------------------------------------------------------------------------- */

/* 16-bit integer i of each lane in all places of that lane. */
ALWAYS_INLINE __m256i spread_16(__m256i v, int i)
{
    return _mm256_shuffle_epi8(v, _mm256_set1_epi16((short)((2 * i + 1) << 8 | 2 * i)));
}

/* m[0] in all 16-bit places of the lower lane, m[1] in those of the upper. */
ALWAYS_INLINE __m256i spread_m(const tn_q8 *x)
{
    const __m256i places = _mm256_setr_epi64x(0x0100010001000100, 0x0100010001000100,
                                              0x0302030203020302, 0x0302030203020302);
    return _mm256_shuffle_epi8(_mm256_set1_epi32((int)load_u32(x->m)), places);
}

/* Sums of a tile: up to MAX_TILE rows x 1 token or 1 row x MAX_TILE tokens. */
typedef struct sums {
    __m256 of[MAX_TILE][MAX_TILE];
} sums;

/* Adds block i of a chunk: sum += scale * (integer dot product). */
ALWAYS_INLINE void add_block(uint32_t type, int n_rows, int n_tok, const uint8_t *const *p, int i,
                             const scales *s, const token *x, int64_t block,
                             float (*scale)[MAX_TILE][8], sums *sum)
{
    __m256i w[MAX_TILE];
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++) w[r] = load_weights(type, p[r], i);
#pragma GCC unroll 4
    for (int t = 0; t < n_tok; t++) {
        const tn_q8 *q = &x[t].q[block + i];
        const __m256i v = load_256(q->q), m = spread_m(q);
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            __m256i pairs = is_signed(type) ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[r]),
                                                                   _mm256_sign_epi8(v, w[r]))
                                            : _mm256_maddubs_epi16(w[r], v);
            __m256i factor =
                has_half_scales(type) ? _mm256_mullo_epi16(m, spread_16(s[r].sc, i)) : m;
            __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, factor));
            sum->of[r][t] = _mm256_fmadd_ps(dot, _mm256_set1_ps(scale[r][t][i]), sum->of[r][t]);
        }
    }
}

/* Adds n blocks (8, or what is left of a row of small blocks) from `block` on. */
ALWAYS_INLINE void add_chunk(uint32_t type, int n_rows, int n_tok, int n, const uint8_t *const *p,
                             const token *x, int64_t block, sums *sum)
{
    _Alignas(32) float scale[MAX_TILE][MAX_TILE][8];
    scales s[MAX_TILE];
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++) {
        load_scales(&s[r], type, p[r], n);
#pragma GCC unroll 4
        for (int t = 0; t < n_tok; t++) {
            __m256 *to = &sum->of[r][t], d = _mm256_loadu_ps(x[t].d + block);
            _mm256_store_ps(scale[r][t], _mm256_mul_ps(s[r].a, d));
            if (is_signed(type)) continue;
            *to = _mm256_fnmadd_ps(s[r].b[0], _mm256_loadu_ps(x[t].s[0] + block), *to);
            *to = _mm256_fnmadd_ps(s[r].b[has_half_mins(type)],
                                   _mm256_loadu_ps(x[t].s[1] + block), *to);
        }
    }
    /* The compiler would extract each scale from the vector with two shuffles; a broadcast from
     * memory costs none, so it must not know what memory holds. */
    __asm__("" : "+m"(scale));
    if (n == 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) add_block(type, n_rows, n_tok, p, i, s, x, block, scale, sum);
    } else {
        for (int i = 0; i < n; i++) add_block(type, n_rows, n_tok, p, i, s, x, block, scale, sum);
    }
}

/* out[r][t] = n_rows rows, row_bytes apart, times n_tok tokens over n_blocks blocks. */
ALWAYS_INLINE void dot_tile(uint32_t type, int n_rows, int n_tok, const uint8_t *row,
                            size_t row_bytes, const token *x, int64_t n_blocks,
                            float out[MAX_TILE][MAX_TILE])
{
    const uint8_t *p[MAX_TILE];
    sums sum;
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++) {
        p[r] = row + (size_t)r * row_bytes;
#pragma GCC unroll 4
        for (int t = 0; t < n_tok; t++) sum.of[r][t] = _mm256_setzero_ps();
    }
    int64_t block = 0;
    for (; block + 8 <= n_blocks; block += 8) {
        add_chunk(type, n_rows, n_tok, 8, p, x, block, &sum);
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            for (size_t ahead = 0; ahead < chunk_bytes(type); ahead += 64)
                _mm_prefetch((const char *)p[r] + PREFETCH + ahead, _MM_HINT_T0);
            p[r] += chunk_bytes(type);
        }
    }
    if (block < n_blocks && type < TN_TYPE_Q2_K) /* rows of super-blocks end with a chunk */
        add_chunk(type, n_rows, n_tok, (int)(n_blocks - block), p, x, block, &sum);
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < n_tok; t++) out[r][t] = hsum8(sum.of[r][t]);
}

/* Gathers the float parts of blocks [first, first + n) of n_tok tokens, zeros up to a multiple
 * of 8. */
static void gather(token *x, float *scratch, const tn_q8 *q, int64_t q_stride, int n_tok, int64_t n)
{
    for (int t = 0; t < n_tok; t++) {
        float *base = scratch + (ptrdiff_t)t * 3 * PANEL;
        x[t] = (token){q + t * q_stride, base, {base + PANEL, base + 2 * PANEL}};
        for (int64_t i = 0; i < n; i++) {
            x[t].d[i] = x[t].q[i].d;
            x[t].s[0][i] = x[t].q[i].s[0];
            x[t].s[1][i] = x[t].q[i].s[1];
        }
        for (int64_t i = n; i % 8; i++) x[t].d[i] = x[t].s[0][i] = x[t].s[1][i] = 0;
    }
}

/* A piece of the product: rows [row0, row1), n_tok tokens from t0, blocks [first, first + n) of the
 * columns. Adds to y unless first is 0. */
typedef struct piece {
    const tn_weight *w;
    const tn_acts *x;
    float *y;
    int64_t y_stride, row0, row1, t0, n_tok, first, n;
} piece;

ALWAYS_INLINE void put_tile(const piece *p, int n_rows, int n_tok, int64_t row,
                            float out[MAX_TILE][MAX_TILE])
{
    for (int t = 0; t < n_tok; t++) {
        float *to = p->y + (p->t0 + t) * p->y_stride + row;
        for (int r = 0; r < n_rows; r++) to[r] = p->first ? to[r] + out[r][t] : out[r][t];
    }
}

/* n_tok == p->n_tok. One token: rows by four, to unpack its blocks once for all four. */
ALWAYS_INLINE void panel(uint32_t type, int n_tok, const piece *p, void *scratch)
{
    token x[MAX_TILE];
    float out[MAX_TILE][MAX_TILE];
    const int64_t q_stride = p->w->cols / 32;
    const size_t row_bytes = p->w->row_bytes;
    const uint8_t *w = (const uint8_t *)p->w->data + (size_t)(p->first / 8) * chunk_bytes(type);
    gather(x, scratch, p->x->q + p->t0 * q_stride + p->first, q_stride, n_tok, p->n);
    int64_t r = p->row0;
    for (; n_tok == 1 && r + MAX_TILE <= p->row1; r += MAX_TILE) {
        dot_tile(type, MAX_TILE, n_tok, w + (size_t)r * row_bytes, row_bytes, x, p->n, out);
        put_tile(p, MAX_TILE, n_tok, r, out);
    }
    for (; r < p->row1; r++) {
        dot_tile(type, 1, n_tok, w + (size_t)r * row_bytes, row_bytes, x, p->n, out);
        put_tile(p, 1, n_tok, r, out);
    }
}

typedef void (*panel_fn)(const piece *p, void *scratch);

/* Blocks rows and columns so that weights stay in cache while all tokens pass. */
static void matmul(const panel_fn by_tokens[MAX_TILE], const tn_weight *w, const tn_acts *x,
                   float *y, int64_t y_stride, int64_t row0, int64_t row1, void *scratch)
{
    const int64_t n_blocks = w->cols / 32;
    piece p = {.w = w, .x = x, .y = y, .y_stride = y_stride};
    for (p.row0 = row0; p.row0 < row1; p.row0 = p.row1) {
        p.row1 = p.row0 + ROW_BLOCK < row1 ? p.row0 + ROW_BLOCK : row1;
        for (p.first = 0; p.first < n_blocks; p.first += PANEL) {
            p.n = n_blocks - p.first < PANEL ? n_blocks - p.first : PANEL;
            for (p.t0 = 0; p.t0 < x->n; p.t0 += MAX_TILE) {
                p.n_tok = x->n - p.t0 < MAX_TILE ? x->n - p.t0 : MAX_TILE;
                by_tokens[p.n_tok - 1](&p, scratch);
            }
        }
    }
}

#define STAMP_TOKENS(TYPE, N)                                                                      \
    static void TYPE##_##N(const piece *p, void *scratch)                                          \
    {                                                                                              \
        panel(TN_TYPE_##TYPE, N, p, scratch);                                                      \
    }
#define STAMP(TYPE) \
    STAMP_TOKENS(TYPE, 1) \
    STAMP_TOKENS(TYPE, 2) \
    STAMP_TOKENS(TYPE, 3) \
    STAMP_TOKENS(TYPE, 4) \
    static void matmul_##TYPE(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride, \
                              int64_t row0, int64_t row1, void *scratch) \
    { \
        static const panel_fn by_tokens[MAX_TILE] = {TYPE##_1, TYPE##_2, TYPE##_3, TYPE##_4}; \
        matmul(by_tokens, w, x, y, y_stride, row0, row1, scratch); \
    }
STAMP(Q4_0)
STAMP(Q4_1)
STAMP(Q5_0)
STAMP(Q5_1)
STAMP(Q8_0)
STAMP(Q2_K)
STAMP(Q3_K)
STAMP(Q4_K)
STAMP(Q5_K)
STAMP(Q6_K)

void tn_kernels_avx2_rows(tn_kernels *k)
{
    tn_matmul_fn *slot = k->matmul[TN_LAYOUT_ROWS];
    slot[TN_TYPE_Q4_0] = matmul_Q4_0;
    slot[TN_TYPE_Q4_1] = matmul_Q4_1;
    slot[TN_TYPE_Q5_0] = matmul_Q5_0;
    slot[TN_TYPE_Q5_1] = matmul_Q5_1;
    slot[TN_TYPE_Q8_0] = matmul_Q8_0;
    slot[TN_TYPE_Q2_K] = matmul_Q2_K;
    slot[TN_TYPE_Q3_K] = matmul_Q3_K;
    slot[TN_TYPE_Q4_K] = matmul_Q4_K;
    slot[TN_TYPE_Q5_K] = matmul_Q5_K;
    slot[TN_TYPE_Q6_K] = matmul_Q6_K;
}
