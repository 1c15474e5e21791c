/* The host kernel table: one slot and one contract per operation.
 *
 * Every kernel is synchronous and pure: it never allocates, takes no lock, starts no thread,
 * touches only what it is given. The caller splits work by row or item ranges and gives each thread
 * its own scratch. scalar.c fills every slot and *defines* the result; the other levels override
 * what they have (dispatch.c), under an ISA mask passed in, never a global.
 *
 * A row is always reduced by one call in a fixed order, so results do not depend on how rows are
 * split. Float sums may be grouped differently by different levels: tests compare against scalar
 * with an error relative to the sum of magnitudes. */
#ifndef TN_KERNELS_H
#define TN_KERNELS_H

#include "../gguf/mem.h"
#include "../gguf/types.h"

/* ---- ISA levels ------------------------------------------------------------------------------ */

typedef enum tn_isa {
    TN_ISA_SCALAR = 0,
    TN_ISA_AVX2 = 1 << 0,    /* AVX2 + FMA + F16C + BMI2 */
    TN_ISA_AVXVNNI = 1 << 1, /* VEX-encoded vpdpbusd */
    TN_ISA_AVX512 = 1 << 2,  /* F, BW, DQ, VL */
    TN_ISA_VNNI512 = 1 << 3  /* AVX512_VNNI */
} tn_isa;

/* Levels this CPU and operating system support. Any thread. */
unsigned tn_isa_detect(void);

/* ---- weights --------------------------------------------------------------------------------- */

/* How the rows of a matrix lie in memory. All layouts of a type have the same bytes per row. */
typedef enum tn_layout {
    TN_LAYOUT_ROWS = 0, /* row-major, blocks exactly as in the file */
    TN_LAYOUT_R8,       /* groups of 8 rows interleaved, see repack.h; rows padded to 8 with
                           zeros */
    TN_LAYOUT_R16,      /* groups of 16 rows */
    TN_LAYOUT_COUNT
} tn_layout;

/* Rows of a group. */
static inline int32_t tn_layout_rows(tn_layout layout)
{
    return layout == TN_LAYOUT_ROWS ? 1 : layout == TN_LAYOUT_R8 ? 8 : 16;
}

/* A weight matrix; y = W x has rows outputs. A view: it owns nothing.
 *
 * One in R8 may lie *slab-major*: its columns are cut into slabs of `slab` columns (a multiple of
 * the type's block; the last may have fewer), and each slab lies as a matrix in R8 of its own, one
 * behind the other. So what a device computes of an ffn_down is one extent of memory a slab. Those
 * of experts are not cut, as an expert travels whole. */
typedef struct tn_weight {
    uint32_t type;    /* tn_type */
    tn_layout layout;
    int64_t rows;     /* outputs */
    int64_t cols;     /* inputs; a multiple of the type's block */
    size_t row_bytes; /* bytes of one row in the file's layout; a group takes as much as its rows */
    const void *data; /* ROWS: 32-byte aligned in our memory, 1-byte aligned when mapped; else 64 */
    int64_t slab;      /* 0: not slab-major, and what follows has no meaning */
    int64_t slab_rows; /* rows of a slab in memory, a multiple of 8 */
    int64_t row0;      /* which of those is row 0 of this view; a multiple of 8 */
} tn_weight;

/* ---- activations ----------------------------------------------------------------------------- */

/* 32 activations rounded to 8 bits. Value of element i: d * m[i / 16] * q[i].
 * The two halves have integer scales m (1..127) under the common float scale d, because a scale per
 * 16 halves the step where the halves differ, and an integer scale costs nothing in the kernels:
 * it takes the place of the ones in vpmaddwd. A block of zeros has d = 0, m = 1.
 * s[h] = d * m[h] * sum of q in half h, for weights with an offset or a minimum.
 * scalar.c's quantize defines the rounding. */
typedef struct tn_q8 {
    int8_t q[32];
    float d;
    int16_t m[2];
    float s[2];
} tn_q8;

/* n activation vectors of `cols` elements. f is always valid; q is NULL where only unquantised
 * weights read it. packed: NULL, or q as the layout's pack of packed_type has arranged it; a
 * product for which that serves uses it instead of arranging q itself, with the same result. Owns
 * nothing. */
typedef struct tn_acts {
    int64_t n, cols;
    const float *f;    /* [n][f_stride] */
    int64_t f_stride;
    const tn_q8 *q;    /* [n][cols / 32] */
    const void *packed;
    tn_layout packed_layout;
    uint32_t packed_type;
} tn_acts;

/* A part of the activations to arrange: blocks [b0, b1) (32 columns each) of tokens [t0, t1). */
typedef struct tn_packing {
    void *out;         /* the whole: TN_PACKED_BYTES * n * blocks, 64-byte aligned */
    int64_t n, blocks; /* of the whole */
    int64_t t0, t1, b0, b1;
    const tn_q8 *q;    /* [t1 - t0][q_stride], the first is block b0 of token t0 */
    int64_t q_stride;
} tn_packing;
enum { TN_PACKED_BYTES = 68 }; /* of a block, at most */

/* ---- operations ------------------------------------------------------------------------------ */

/* y[t][r - 0] = sum_c W[r][c] * x[t][c] for t in [0, x->n), r in [row0, row1).
 * row0 is a multiple of 8 and of the layout's rows; row1 is such a multiple or w->rows. Writes y +
 * t * y_stride + r, nothing else. Quantised types read x->q, unquantised ones x->f. scratch:
 * TN_SCRATCH_BYTES, 64-byte aligned, this thread's own. Any row range and any n >= 1 is allowed.
 * Sums of 32 quants are exact integers, but that kernels of several tokens may round them: to the
 * second half's step (d * m[1]) times a 64th of the largest weight that the block can hold; and
 * where that step is less than a seventh of the first half's, they may round the second half's
 * activations to such a seventh. */
typedef void (*tn_matmul_fn)(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                             int64_t row0, int64_t row1, void *scratch);
enum { TN_SCRATCH_BYTES = 1 << 20 };

/* Arranges activations as products of many tokens with weights of one layout and type read them,
 * once for all of them and all their ranges of rows. Writes only what the part says; any parts, any
 * order. */
typedef void (*tn_pack_fn)(const tn_packing *p);

/* Converts row `row` of w to float32: out[cols]. Works for every layout. */
typedef void (*tn_dequantize_fn)(const tn_weight *w, int64_t row, float *out);

/* Rearranges up to 8 or 16 file rows (missing ones become zero) into one group of the layout. */
typedef void (*tn_repack_fn)(void *dst, const void *src, int64_t n_rows, int64_t cols);

/* One head-major KV cache read through its page table. Page p holds positions
 * [p * page_size, (p + 1) * page_size) of one layer, [n_head_kv][page_size / 16] units of 16
 * positions of `type`: F16, F32, or Q8_0, whose head dims are multiples of 32. Vectors of positions
 * give scores without sums across lanes: F16, F32: K [dim][16], V [16][dim] Q8_0:     scales [dim /
 * 32][16], float16 and not negative, then bytes: K [dim / 4][16][4] plus 128, V [4][dim][4], that
 * is four dims or four positions in a dword kv_page.h has the offsets. What lies at positions that
 * no token has been put to may be anything, and has no effect. */
typedef struct tn_kv_view {
    uint32_t type;
    int32_t page_size; /* a power of two, at least 16 */
    int32_t n_head_kv, head_dim_k, head_dim_v;
    void *const *k; /* [n_pages] */
    void *const *v; /* [n_pages] */
} tn_kv_view;

/* Causal attention of n query tokens at positions pos0 .. pos0 + n - 1. */
typedef struct tn_attend {
    tn_kv_view kv;
    const float *q; /* [n][q_stride], head h at h * head_dim_k */
    int64_t q_stride;
    float *out; /* [n][out_stride], head h at h * head_dim_v */
    int64_t out_stride;
    int64_t n, pos0;
    int32_t n_head;  /* a multiple of kv.n_head_kv; head h reads KV head h / (n_head / n_head_kv) */
    float scale;     /* scores are scale * q.k */
    float softcap;   /* > 0: scores become softcap * tanh(score / softcap) */
    int32_t window;  /* > 0: position p sees keys (p - window, p]; 0: all keys up to p */
    /* Decode splits the context: chunk c covers keys [c * chunk, (c + 1) * chunk). 0: not split.
     * Weights of a Q8_0 cache are rounded by 64 keys: the same bits need a multiple of 64. */
    int64_t chunk;
    float *partial; /* [n][n_head][n_chunks][2 + head_dim_v]: running max, sum, weighted V */
    int64_t n_chunks;
} tn_attend;

/* One item of attention: query tokens [t0, t1) (t1 - t0 <= TN_ATTEND_TILE) of one KV head, that is
 * all its query heads. With chunk == 0 writes out; otherwise writes partials of chunk `c` only.
 * Online softmax, no n x n matrix; scratch as for matmul. */
typedef void (*tn_attend_fn)(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                             void *scratch);
enum { TN_ATTEND_TILE = 64 };
/* Joins the partials of token t, query head h into out, chunks in ascending order. A chunk that saw
 * no key has sum 0 and is skipped. */
typedef void (*tn_attend_join_fn)(const tn_attend *a, int64_t t, int32_t h);

/* How rope pairs the elements of a head. */
typedef enum tn_rope_style {
    TN_ROPE_NONE = 0,
    TN_ROPE_NORM, /* neighbours (2i, 2i + 1) */
    TN_ROPE_NEOX  /* halves (i, i + n_rot / 2) */
} tn_rope_style;

/* Rotates the first n_rot elements of each of n_heads heads of one token, in place.
 * cs: [n_rot / 2] pairs (cos, sin), prepared per position by the caller (magnitude included). */
typedef void (*tn_rope_fn)(float *x, int32_t n_heads, int32_t head_dim, int32_t n_rot,
                           tn_rope_style style, const float *cs);

/* y = x / sqrt(mean(x^2) + eps) * w over n elements; w may be NULL; y may be x. Sum in float64. */
typedef void (*tn_rms_norm_fn)(float *y, const float *x, const float *w, int64_t n, float eps);

typedef enum tn_activation {
    TN_ACT_SILU = 0, /* x / (1 + exp(-x)) */
    TN_ACT_GELU      /* tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
} tn_activation;
/* gate[i] = act(gate[i]) * up[i] for n elements. */
typedef void (*tn_glu_fn)(float *gate, const float *up, int64_t n, tn_activation act);

/* q[n / 32] = rounded x[n]; n is a multiple of 32. */
typedef void (*tn_quantize_fn)(tn_q8 *q, const float *x, int64_t n);
/* y += x; y += a * x */
typedef void (*tn_add_fn)(float *y, const float *x, int64_t n);
typedef void (*tn_axpy_fn)(float *y, const float *x, float a, int64_t n);
/* In place softmax over n >= 1 scores. */
typedef void (*tn_softmax_fn)(float *x, int64_t n);
/* float32 <-> float16 (round to nearest even, IEEE) over n elements. */
typedef void (*tn_to_f16_fn)(uint16_t *y, const float *x, int64_t n);
/* y[n / 32] = x[n] as Q8_0 blocks; n is a multiple of 32. d is max|x| / 127 rounded to float16, q
 * is x / d of that rounded d to nearest even, at most 127 in magnitude. Where d is 0 the block
 * counts as zeros; where something is not finite, or d would not be, d is NaN and q is 0. */
struct tn_block_q8_0; /* gguf/blocks.h */
typedef void (*tn_to_q8_0_fn)(struct tn_block_q8_0 *y, const float *x, int64_t n);

typedef struct tn_kernels {
    unsigned isa;  /* levels in use */
    bool prefetch; /* products with one token ask for weights ahead of use */
    tn_layout packed; /* what weights are best repacked to, where repack has their type */
    tn_matmul_fn matmul[TN_LAYOUT_COUNT][TN_TYPE_COUNT]; /* NULL: no such layout for this type */
    tn_pack_fn pack[TN_LAYOUT_COUNT][TN_TYPE_COUNT]; /* NULL: products have no use for it */
    tn_dequantize_fn dequantize[TN_LAYOUT_COUNT][TN_TYPE_COUNT];
    tn_repack_fn repack[TN_LAYOUT_COUNT][TN_TYPE_COUNT]; /* NULL: no such layout for this type */
    tn_attend_fn attend;
    tn_attend_join_fn attend_join;
    tn_rope_fn rope;
    tn_rms_norm_fn rms_norm;
    tn_glu_fn glu;
    tn_quantize_fn quantize;
    tn_add_fn add;
    tn_axpy_fn axpy;
    tn_softmax_fn softmax;
    tn_to_f16_fn to_f16;
    tn_to_q8_0_fn to_q8_0;
} tn_kernels;

/* Fills the table with the best kernels among `isa` (a mask of tn_isa; levels the CPU lacks are
 * ignored). Any thread. */
void tn_kernels_init(tn_kernels *k, unsigned isa);

/* The layers of the table, lowest first; each overrides what it has. Called by tn_kernels_init. */
void tn_kernels_scalar(tn_kernels *k);      /* scalar.c: matmul and dequantize of TN_LAYOUT_ROWS */
void tn_kernels_scalar_ops(tn_kernels *k);  /* scalar_ops.c: every other slot */
void tn_kernels_repack(tn_kernels *k);      /* repack.c: repack, and scalar slots of the interleaved
                                               layouts */
void tn_kernels_avx2_rows(tn_kernels *k);   /* avx2_rows.c: matmul of row-major weights */
void tn_kernels_avx2_many(tn_kernels *k);   /* avx2_many.c: R8 weights, and repack of R16 */
void tn_kernels_avxvnni_many(tn_kernels *k); /* avxvnni_many.c: many tokens times R8 weights */
void tn_kernels_avx2_float(tn_kernels *k);  /* avx2_float.c: F32/F16/BF16 matmul, row-major */
void tn_kernels_avx2_ops(tn_kernels *k);    /* avx2_ops.c: quantize, norm, rope, glu, softmax,
                                               ... */
void tn_kernels_avx2_attend(tn_kernels *k); /* avx2_attend.c */
void tn_kernels_avx512_ops(tn_kernels *k);  /* avx512_ops.c: quantize, glu */
void tn_kernels_avx512_attend(tn_kernels *k); /* avx512_attend.c; a Q8_0 cache with VNNI only */
void tn_kernels_avx512_many(tn_kernels *k); /* avx512_many.c: many tokens times interleaved weights
                                               (VNNI) */
void tn_kernels_avx512_r16(tn_kernels *k);  /* avx512_r16.c: matmul of R16 weights (VNNI) */

#endif
