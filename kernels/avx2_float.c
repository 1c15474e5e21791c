/* Products with unquantised row-major weights: float32 activations, float32 sums.
 *
 * Tiles of 4 rows x 3 tokens keep 12 sums in registers: 7 loads feed 12 fused multiply-adds, so the
 * arithmetic is the limit. Columns go in panels that fit into the first cache level; the order in
 * which an element of the result is summed is the same for every tile size. */
#include "avx2_util.h"
#include "kernels.h"

enum {
    TILE_ROWS = 4,
    TILE_TOK = 3,
    PANEL = 1024,    /* columns */
    TOKEN_BLOCK = 72 /* tokens whose panel stays in the second cache level; a multiple of
                        TILE_TOK */
};
_Static_assert(sizeof(float) * TILE_ROWS * PANEL <= TN_SCRATCH_BYTES, "scratch");

ALWAYS_INLINE size_t element_bytes(uint32_t type)
{
    return type == TN_TYPE_F32 ? 4 : 2;
}

ALWAYS_INLINE __m256 load8(uint32_t type, const uint8_t *p)
{
    if (type == TN_TYPE_F32) return _mm256_castsi256_ps(load_256(p));
    if (type == TN_TYPE_F16) return _mm256_cvtph_ps(load_128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16));
}

/* The first n < 8 elements, zeros after; reads nothing behind them. */
ALWAYS_INLINE __m256 load_part(uint32_t type, const uint8_t *p, int64_t n)
{
    _Alignas(32) uint8_t whole[32] = {0};
    memcpy(whole, p, (size_t)n * element_bytes(type));
    return load8(type, whole);
}

/* out[t][r] = product of row r and token t over n columns. Rows lie w_stride bytes apart. */
ALWAYS_INLINE void tile(uint32_t type, int n_rows, int n_tok, const uint8_t *w, size_t w_stride,
                        const float *x, int64_t x_stride, int64_t n, float out[TILE_TOK][TILE_ROWS])
{
    const size_t size = element_bytes(type);
    __m256 sum[TILE_ROWS][TILE_TOK];
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 3
        for (int t = 0; t < n_tok; t++) sum[r][t] = _mm256_setzero_ps();
    int64_t c = 0;
    for (; c + 8 <= n; c += 8) {
        __m256 v[TILE_TOK];
#pragma GCC unroll 3
        for (int t = 0; t < n_tok; t++) v[t] = _mm256_loadu_ps(x + t * x_stride + c);
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            const __m256 u = load8(type, w + (size_t)r * w_stride + (size_t)c * size);
#pragma GCC unroll 3
            for (int t = 0; t < n_tok; t++) sum[r][t] = _mm256_fmadd_ps(u, v[t], sum[r][t]);
        }
    }
#pragma GCC unroll 3
    for (int t = 0; t < n_tok; t++) {
        if (n_rows == 1) out[t][0] = hsum8(sum[0][t]);
        else _mm_storeu_ps(out[t], hsum8x4(sum[0][t], sum[1][t], sum[2][t], sum[3][t]));
    }
    for (int r = 0; c < n && r < n_rows; r++) {
        const __m256 u = load_part(type, w + (size_t)r * w_stride + (size_t)c * size, n - c);
        for (int t = 0; t < n_tok; t++) {
            const __m256 v = load_part(TN_TYPE_F32, (const uint8_t *)(x + t * x_stride + c), n - c);
            out[t][r] += hsum8(_mm256_mul_ps(u, v));
        }
    }
}

typedef void (*tile_fn)(const uint8_t *w, size_t w_stride, const float *x, int64_t x_stride,
                        int64_t n, float out[TILE_TOK][TILE_ROWS]);

#define STAMP_TILE(TYPE, R, T)                                                                     \
    static void tile_##TYPE##_##R##_##T(const uint8_t *w, size_t w_stride, const float *x,         \
                                        int64_t x_stride, int64_t n,                               \
                                        float out[TILE_TOK][TILE_ROWS])                            \
    {                                                                                              \
        tile(TN_TYPE_##TYPE, R, T, w, w_stride, x, x_stride, n, out);                              \
    }
#define STAMP(TYPE)                                                                                \
    STAMP_TILE(TYPE, 1, 1)                                                                         \
    STAMP_TILE(TYPE, 1, 2)                                                                         \
    STAMP_TILE(TYPE, 1, 3)                                                                         \
    STAMP_TILE(TYPE, 4, 1)                                                                         \
    STAMP_TILE(TYPE, 4, 2)                                                                         \
    STAMP_TILE(TYPE, 4, 3)
STAMP(F32)
STAMP(F16)
STAMP(BF16)

/* The tiles of a type by [1 or 4 rows][tokens - 1]. */
#define TILES(TYPE)                                                                                \
    {                                                                                              \
        {tile_##TYPE##_1_1, tile_##TYPE##_1_2, tile_##TYPE##_1_3},                                 \
        {tile_##TYPE##_4_1, tile_##TYPE##_4_2, tile_##TYPE##_4_3},                                 \
    }
typedef struct tiles {
    uint32_t type;
    tile_fn of[2][TILE_TOK];
} tiles;
static const tiles f32_tiles = {TN_TYPE_F32, TILES(F32)};
static const tiles f16_tiles = {TN_TYPE_F16, TILES(F16)};
static const tiles bf16_tiles = {TN_TYPE_BF16, TILES(BF16)};

/* Converts n columns of n_rows rows to float32, PANEL apart. */
static void widen(const tiles *k, float *to, const uint8_t *w, size_t w_stride, int n_rows,
                  int64_t n)
{
    for (int r = 0; r < n_rows; r++, w += w_stride, to += PANEL) {
        int64_t c = 0;
        for (; c + 8 <= n; c += 8)
            _mm256_storeu_ps(to + c, k->type == TN_TYPE_F16 ? load8(TN_TYPE_F16, w + 2 * c)
                                                            : load8(TN_TYPE_BF16, w + 2 * c));
        if (c < n)
            _mm256_storeu_ps(to + c, k->type == TN_TYPE_F16
                                         ? load_part(TN_TYPE_F16, w + 2 * c, n - c)
                                         : load_part(TN_TYPE_BF16, w + 2 * c, n - c));
    }
}

/* A piece of the product: n_rows <= TILE_ROWS rows from `row`, n_tok tokens from t0, columns
 * [c, c + n). Adds to y unless c is 0. */
typedef struct piece {
    const tn_weight *w;
    const tn_acts *x;
    float *y;
    int64_t y_stride, row, t0, n_tok, c, n;
    int n_rows;
} piece;

static void multiply(const tiles *k, const piece *p, float *scratch)
{
    const uint8_t *w = (const uint8_t *)p->w->data + (size_t)p->row * p->w->row_bytes +
                       (size_t)p->c * element_bytes(k->type);
    size_t w_stride = p->w->row_bytes;
    if (k->type != TN_TYPE_F32 && p->n_tok > 2 * TILE_TOK) {
        widen(k, scratch, w, w_stride, p->n_rows, p->n);
        w = (const uint8_t *)scratch;
        w_stride = PANEL * sizeof(float);
        k = &f32_tiles;
    }
    for (int64_t t = 0; t < p->n_tok; t += TILE_TOK) {
        const int64_t n_tok = p->n_tok - t < TILE_TOK ? p->n_tok - t : TILE_TOK;
        const float *x = p->x->f + (p->t0 + t) * p->x->f_stride + p->c;
        float out[TILE_TOK][TILE_ROWS];
        k->of[p->n_rows == TILE_ROWS][n_tok - 1](w, w_stride, x, p->x->f_stride, p->n, out);
        for (int i = 0; i < n_tok; i++) {
            float *to = p->y + (p->t0 + t + i) * p->y_stride + p->row;
            for (int r = 0; r < p->n_rows; r++) to[r] = p->c ? to[r] + out[i][r] : out[i][r];
        }
    }
}

/* One block of tokens: all rows of a panel before the next panel, so that the panel of the
 * activations stays in cache; few tokens: all panels of a row first, so that weights stream. */
static void matmul_block(const tiles *k, piece p, int64_t row0, int64_t row1, float *scratch)
{
    const int64_t cols = p.w->cols;
    const int64_t row_block = p.n_tok <= TILE_TOK ? TILE_ROWS : row1 - row0;
    for (int64_t r0 = row0; r0 < row1; r0 += row_block) {
        const int64_t r1 = r0 + row_block < row1 ? r0 + row_block : row1;
        for (p.c = 0; p.c < cols; p.c += PANEL) {
            p.n = cols - p.c < PANEL ? cols - p.c : PANEL;
            for (p.row = r0; p.row < r1; p.row += p.n_rows) {
                p.n_rows = r1 - p.row < TILE_ROWS ? 1 : TILE_ROWS;
                multiply(k, &p, scratch);
            }
        }
    }
}

static void matmul(const tiles *k, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                   int64_t row0, int64_t row1, void *scratch)
{
    piece p = {.w = w, .x = x, .y = y, .y_stride = y_stride};
    for (p.t0 = 0; p.t0 < x->n; p.t0 += TOKEN_BLOCK) {
        p.n_tok = x->n - p.t0 < TOKEN_BLOCK ? x->n - p.t0 : TOKEN_BLOCK;
        matmul_block(k, p, row0, row1, scratch);
    }
}

static void matmul_f32(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                       int64_t row0, int64_t row1, void *scratch)
{
    matmul(&f32_tiles, w, x, y, y_stride, row0, row1, scratch);
}

static void matmul_f16(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                       int64_t row0, int64_t row1, void *scratch)
{
    matmul(&f16_tiles, w, x, y, y_stride, row0, row1, scratch);
}

static void matmul_bf16(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                        int64_t row0, int64_t row1, void *scratch)
{
    matmul(&bf16_tiles, w, x, y, y_stride, row0, row1, scratch);
}

void tn_kernels_avx2_float(tn_kernels *k)
{
    k->matmul[TN_LAYOUT_ROWS][TN_TYPE_F32] = matmul_f32;
    k->matmul[TN_LAYOUT_ROWS][TN_TYPE_F16] = matmul_f16;
    k->matmul[TN_LAYOUT_ROWS][TN_TYPE_BF16] = matmul_bf16;
}
