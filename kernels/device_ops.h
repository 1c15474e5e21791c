/* The device op table: one slot and one contract per operation, in plain C.
 *
 * Every pointer named here is a device pointer unless said otherwise. An op enqueues its work on
 * the stream and returns at once; it allocates nothing, synchronises nothing and may be captured
 * into a graph. What changes from token to token (positions, lengths, page tables, expert choices)
 * is read from device memory, so that a recorded graph is replayed as it is. The structs are read
 * during the call only.
 *
 * An op returns TN_OK, TN_EARG where the arguments break the contract, TN_EUNSUPPORTED where can_do
 * would have said no (nothing has been enqueued then), or TN_EDEVICE where a launch failed. Ops on
 * different streams may be called from different threads at once.
 *
 * scalar.c and scalar_ops.c define the results. Sums are grouped differently here, and activations
 * are rounded by tn_dacts' own rule, so tests compare with an error relative to the sum of
 * magnitudes. */
#ifndef TN_DEVICE_OPS_H
#define TN_DEVICE_OPS_H

#include "device.h"
#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- weights --------------------------------------------------------------------------------- */

/* A matrix on the device; y = W x has rows outputs. The bytes are those of the file, rearranged:
 * what 32 columns of a row hold in one block is spread over up to four planes, so that consecutive
 * lanes load consecutive 16-byte words of quants. kernels/cuda/weights.h documents the planes. A
 * row of a plane starts at a multiple of 16 bytes. A view: it owns nothing. */
enum { TN_DPLANES = 4 };
typedef struct tn_dweight {
    uint32_t type; /* tn_type */
    int64_t rows, cols;
    uint8_t
        *plane[TN_DPLANES]; /* quants or floats, high bits, scale bytes, float16 scales; or NULL */
    int64_t stride[TN_DPLANES]; /* bytes between rows */
} tn_dweight;

/* Bytes of a matrix on the device, a multiple of 256; 0 where the device has no such type, cols is
 * no multiple of its block, or the size overflows. Host only, any thread, as
 * all of this section. */
size_t tn_dweight_bytes(uint32_t type, int64_t rows, int64_t cols);
/* The matrix in tn_dweight_bytes at `base`, which is 256-byte aligned. */
tn_dweight tn_dweight_at(void *base, uint32_t type, int64_t rows, int64_t cols);
/* Rows [row0, row0 + n). */
tn_dweight tn_dweight_rows(const tn_dweight *w, int64_t row0, int64_t n);
/* Columns [col0, col0 + n): both multiples of the type's block, and of 8 where
 * it is unquantised. */
tn_dweight tn_dweight_cols(const tn_dweight *w, int64_t col0, int64_t n);

/* ---- activations ----------------------------------------------------------------------------- */

/* The scales of 32 activations rounded to 8 bits, one for each half of 16:
 * element i is d[i / 16] * q[i], and sum[h] is the sum of the q of half h. d[h] is max|x| / 127 of
 * the half, 0 for zeros and NaN where a value is not finite. */
typedef struct tn_dscale {
    float d[2];
    int32_t sum[2];
} tn_dscale;

/* n vectors of cols elements. Rows of f are 16-byte aligned: f_stride is a multiple of 4. */
typedef struct tn_dacts {
    int64_t n, cols;
    float *f; /* [n][f_stride]; may be NULL where only quantised weights read it */
    int64_t f_stride;
    int8_t *q;        /* [n][cols], 16-byte aligned; may be NULL where only f is read */
    tn_dscale *scale; /* [n][cols / 32], 16-byte aligned */
} tn_dacts;

/* ---- matrix products ------------------------------------------------------------------------- */

/* Most vectors that matvec takes at once. */
enum { TN_MATVEC_MAX = 8 };

/* One more product of the same vectors. */
typedef struct tn_dproduct {
    tn_dweight w; /* plane[0] NULL: none */
    float *y;     /* [x.n][y_stride] */
    int64_t y_stride;
    const float *bias; /* [w.rows] or NULL */
} tn_dproduct;
enum { TN_MATVEC_MORE = 2 };

/* y[t][r] = (add ? y[t][r] : 0) + bias[r] + sum_c w[r][c] x[t][c]; with a second matrix `up`
 * y[t][r] = act(w x + bias) * (up x + up_bias), and add must be false. Quantised types read x.q and
 * x.scale, the others x.f in float32.
 *
 * more: products with other matrices in the same launch, in order and without gaps; their type and
 * columns are those of w, and there is neither `up` nor `add` nor `expert` beside them.
 *
 * Experts: where `expert` is set, w (and up, the biases) hold n_experts matrices of `rows` rows
 * each one after the other, so w.rows is rows * n_experts; there are n_items results, item i being
 * y[i] = W[expert[i]] x[i / per_token]. A negative expert gives zeros. */
typedef struct tn_dmatvec {
    tn_dweight w, up; /* up.plane[0] NULL: none; else the type and shape of w */
    tn_activation act;
    tn_dacts x; /* n <= TN_MATVEC_MAX unless there are experts */
    float *y;   /* [x.n or n_items][y_stride] */
    int64_t y_stride;
    const float *bias, *up_bias; /* [w.rows] or NULL */
    tn_dproduct more[TN_MATVEC_MORE];
    bool add;
    const int32_t *expert; /* [n_items] or NULL */
    int64_t n_items, rows;
    int32_t per_token;
} tn_dmatvec;
typedef tn_status (*tn_device_matvec_fn)(tn_stream *s, const tn_dmatvec *a);

/* How gemm multiplies quantised weights; the others know one way only. */
typedef enum tn_gemm_path {
    TN_GEMM_AUTO = 0, /* by the number of vectors */
    TN_GEMM_F16,      /* weights dequantised to float16, x rounded to it (under a common power of
                         two where it would overflow), sums in float32, by cuBLAS */
    TN_GEMM_INT8      /* x rounded to 8 bits as by quantize, integer tensor cores: as matvec */
} tn_gemm_path;

/* The same product for many vectors: no experts, no `up`, n <= 65535; always reads x.f. One thread
 * at a time per device, unlike the other ops: they share one cuBLAS handle. F32, F16 and BF16
 * weights are multiplied in float32 with TF32 off, by cuBLAS. workspace: 256-byte aligned,
 * gemm_bytes of some number of rows >= 1; so many rows are multiplied at a time. */
typedef struct tn_dgemm {
    tn_dweight w;
    tn_dacts x;
    float *y; /* [x.n][y_stride] */
    int64_t y_stride;
    const float *bias;
    bool add;
    tn_gemm_path path;
    void *workspace;
    size_t workspace_bytes;
} tn_dgemm;
typedef tn_status (*tn_device_gemm_fn)(tn_stream *s, const tn_dgemm *a);
/* Workspace for `rows` rows at a time; w.rows lets the product run in one pass. Host only. */
typedef size_t (*tn_device_gemm_bytes_fn)(uint32_t type, int64_t n, int64_t rows, int64_t cols);

/* y[n][rows] = x w^T of float16 w[rows][cols] and x[n][cols], sums and y in float32, by cuBLAS:
 * what gemm leaves to it once quantised weights are dequantised, and nothing else, so that the
 * speed of the tensor cores can be measured. Rows lie one after another. One thread at a time, as
 * gemm. */
typedef tn_status (*tn_device_multiply_fn)(tn_stream *s, const void *w, const void *x, float *y,
                                           int64_t rows, int64_t n, int64_t cols);

/* ---- weights in and out ---------------------------------------------------------------------- */

/* Fills the matrix w from rows as they lie in the file, which are in device memory at src,
 * row_bytes apart (2-byte aligned for quantised types, else aligned to an element). */
typedef tn_status (*tn_device_repack_fn)(tn_stream *s, const tn_dweight *w, const void *src,
                                         size_t row_bytes);
/* The same from the host's interleaved layout R8 (kernels/repack.h): groups of 8 rows, 4-byte
 * aligned. */
typedef tn_status (*tn_device_repack_r8_fn)(tn_stream *s, const tn_dweight *w, const void *src,
                                            size_t row_bytes);
/* out[i][c] = scale * w[ids[i]][c] for i < n: rows of an embedding. ids outside [0, w.rows) give
 * NaN. */
typedef tn_status (*tn_device_gather_fn)(tn_stream *s, const tn_dweight *w, const int32_t *ids,
                                         int64_t n, float scale, float *out, int64_t out_stride);

/* ---- norms and elementwise ------------------------------------------------------------------- */

/* For each of n rows, in this order, every step optional:
 *   x += r                        (r set, r_norm NULL)
 *   x += rms_norm(r) * r_norm     (r_norm set: the norm after an attention or FFN block)
 *   y = rms_norm(x) * w           (y.f or y.q set; w NULL: without a weight)
 * and y goes to y.f (if not NULL) and, rounded to 8 bits, to y.q and y.scale (if not NULL; then
 * y.cols must be a multiple of 32). y.n, y.cols: rows and length. */
typedef struct tn_dnorm {
    float *x; /* [n][x_stride], changed only where r is set */
    int64_t x_stride;
    const float *r; /* [n][r_stride] or NULL */
    int64_t r_stride;
    const float *r_norm; /* [cols] or NULL */
    const float *w;      /* [cols] or NULL */
    tn_dacts y;
    float eps;
} tn_dnorm;
typedef tn_status (*tn_device_norm_fn)(tn_stream *s, const tn_dnorm *a);

/* Rounds x.f to x.q and x.scale; cols is a multiple of 32. */
typedef tn_status (*tn_device_quantize_fn)(tn_stream *s, const tn_dacts *x);
/* gate[t][i] = act(gate[t][i]) * up[t][i] for n rows of cols elements. */
typedef tn_status (*tn_device_glu_fn)(tn_stream *s, float *gate, int64_t gate_stride,
                                      const float *up, int64_t up_stride, int64_t n, int64_t cols,
                                      tn_activation act);
/* y[t][i] = a * y[t][i] + b * x[t][i] + bias[i]; x and bias may be NULL. */
typedef tn_status (*tn_device_axpby_fn)(tn_stream *s, float *y, int64_t y_stride, float a,
                                        const float *x, int64_t x_stride, float b,
                                        const float *bias, int64_t n, int64_t cols);
/* *sum += all 32-bit words of p[bytes], modulo 2^32: reads and does nothing else, so that the speed
 * of the memory can be measured. p is 16-byte aligned, bytes a multiple of 16. */
typedef tn_status (*tn_device_read_fn)(tn_stream *s, const void *p, size_t bytes, uint32_t *sum);
/* y[t][i] = cap * tanh(y[t][i] / cap) */
typedef tn_status (*tn_device_softcap_fn)(tn_stream *s, float *y, int64_t y_stride, int64_t n,
                                          int64_t cols, float cap);

/* ---- attention ------------------------------------------------------------------------------- */

/* One layer's KV cache behind page tables. The page at index p of a sequence holds positions
 * [p * page_size, (p + 1) * page_size); its base address is pages[seq * pages_stride + p], and this
 * layer's K and V lie k_at and v_at bytes behind it (multiples of 16).
 * F32, F16: [n_head_kv][page_size][head_dim] elements, as on the host.
 * Q8_0: the quants [n_head_kv][page_size][head_dim], then the float16 scales
 * [n_head_kv][page_size][head_dim / 32]: the same bytes as blocks of 34, but aligned. */
typedef struct tn_dkv {
    uint32_t type;                             /* TN_TYPE_F16, TN_TYPE_F32 or TN_TYPE_Q8_0 */
    int32_t page_size;                         /* a power of two, at least 16 */
    int32_t n_head_kv, head_dim_k, head_dim_v; /* dims: multiples of 8 (Q8_0: of 32), at most 256:
                                                  with more, a warp's part of the output no longer
                                                  fits its registers, nor a tile of float32 keys the
                                                  64 KiB that sm_75 shares. No architecture of
                                                  engine/arch.c has more. */
    void *const *pages;
    int64_t pages_stride, k_at, v_at;
} tn_dkv;
/* Bytes of K (dim = head_dim_k) or V in one page of one layer; host only. */
size_t tn_dkv_bytes(uint32_t type, int32_t page_size, int32_t n_head_kv, int32_t dim);

/* cs[n][n_rot / 2][2] = magnitude * (cos, sin) of pos[t] * inv_freq[i]. */
typedef tn_status (*tn_device_rope_table_fn)(tn_stream *s, float *cs, const int32_t *pos, int64_t n,
                                             const float *inv_freq, int32_t n_rot, float magnitude);

/* Between the projections and attention, for each of n tokens: heads of q and of k are normed
 * (where there is a weight), q and k rotated (where style is not NONE), and k and v written to the
 * cache at pos[t] of sequence seq[t] (where kv.pages is set; else k stays normed and rotated in
 * place). q, and k and v together, may be NULL. */
typedef struct tn_drope {
    float *q, *k, *v; /* [n][stride], head h at h * head_dim */
    int64_t q_stride, k_stride, v_stride;
    int32_t n, n_head; /* n_head: of q; k and v have kv.n_head_kv; dims are those of kv */
    const float *q_norm, *k_norm; /* [head_dim_k] or NULL */
    float eps;
    tn_rope_style style;
    int32_t n_rot;
    const float *cs;    /* as rope_table makes it */
    tn_dkv kv;          /* pages NULL: no cache, but the shape is valid */
    const int32_t *pos; /* [n] */
    const int32_t *seq; /* [n] or NULL: all 0 */
} tn_drope;
typedef tn_status (*tn_device_rope_append_fn)(tn_stream *s, const tn_drope *a);

/* Attention of n query tokens, token t at position pos[t] of sequence seq[t], over the keys that
 * window lets it see (as in tn_attend). Both ops compute the same thing:
 * attend   splits the context of every token over n_splits blocks and joins the parts: for
 * decoding, any mix of sequences. workspace: attend_bytes(n, n_head, head_dim_v, n_splits).
 * attend_tiles  works on tiles of queries: for a run of tokens of ONE sequence (seq[0]) at
 * consecutive positions from pos[0] on. No workspace. With F16 pages the products are those of
 * tensor cores: q and the weights are rounded to float16, sums are float32. */
typedef struct tn_dattend {
    tn_dkv kv;
    const float *q; /* [n][q_stride], head h at h * head_dim_k; 16-byte aligned rows */
    int64_t q_stride;
    float *out; /* [n][out_stride], head h at h * head_dim_v; 16-byte aligned rows */
    int64_t out_stride;
    int32_t n, n_head;
    float scale, softcap; /* as in tn_attend */
    int32_t window;
    const float *sinks; /* [n_head] a score without a value for each head, or NULL */
    const int32_t *pos; /* [n] */
    const int32_t *seq; /* [n] or NULL */
    int32_t n_splits;   /* 1 .. 128 */
    float *workspace;
} tn_dattend;
typedef tn_status (*tn_device_attend_fn)(tn_stream *s, const tn_dattend *a);
typedef size_t (*tn_device_attend_bytes_fn)(int64_t n, int32_t n_head, int32_t head_dim_v,
                                            int32_t n_splits);

/* ---- experts --------------------------------------------------------------------------------- */

typedef enum tn_gating { TN_GATING_SOFTMAX = 0, TN_GATING_SIGMOID } tn_gating;
/* From the router's scores of n tokens to `used` experts each: p = gating(scores); the experts with
 * the largest p + select_bias are chosen, in descending order, the lower index where equal; their
 * weights are p, divided by their sum if renormalise, times scale. */
typedef struct tn_droute {
    const float *scores; /* [n][scores_stride] */
    int64_t scores_stride;
    int32_t n, n_expert, used; /* n_expert <= 1024, used <= 64 */
    tn_gating gating;
    const float *select_bias; /* [n_expert] or NULL */
    bool renormalise;
    float scale;
    const int32_t *where; /* [n_expert] index of an expert among those on the device, -1: not there;
                             or NULL: all are, in order */
    int32_t *expert;      /* [n][used] the choice, mapped by `where` */
    int32_t *chosen;      /* [n][used] the choice itself, or NULL */
    float *weight;        /* [n][used] */
} tn_droute;
typedef tn_status (*tn_device_route_fn)(tn_stream *s, const tn_droute *a);
/* y[t][c] (+)= sum_i weight[t][i] * x[row_of[t][i]][c], choices in order; add: +=. Choices whose
 * row is negative are left out; row_of NULL: row t * used + i. */
typedef tn_status (*tn_device_combine_fn)(tn_stream *s, float *y, int64_t y_stride, const float *x,
                                          int64_t x_stride, const int32_t *row_of,
                                          const float *weight, int32_t used, int64_t n,
                                          int64_t cols, bool add);

/* ---- sampling -------------------------------------------------------------------------------- */

/* id[t], and value[t] where not NULL, of the largest of cols values in each of n rows; the lowest
 * index where equal; NaN counts as smallest. */
typedef tn_status (*tn_device_argmax_fn)(tn_stream *s, const float *x, int64_t x_stride, int64_t n,
                                         int64_t cols, int32_t *id, float *value);
/* The k largest of each row in descending order, equal ones by index: id[n][k], value[n][k].
 * k <= min(cols, 1024). */
typedef tn_status (*tn_device_top_k_fn)(tn_stream *s, const float *x, int64_t x_stride, int64_t n,
                                        int64_t cols, int32_t k, int32_t *id, float *value);

/* ---- the table ------------------------------------------------------------------------------- */

typedef enum tn_device_op {
    TN_DOP_MATVEC,       /* type: of the weights; shape.cols */
    TN_DOP_GEMM,         /* type: of the weights; shape.cols */
    TN_DOP_GATHER,       /* type: of the weights; shape.cols */
    TN_DOP_REPACK_R8,    /* type: of the weights; shape.cols */
    TN_DOP_ATTEND,       /* type: of the cache; shape.head_dim_k, head_dim_v */
    TN_DOP_ATTEND_TILES, /* the same */
    TN_DOP_ROUTE         /* type ignored; shape.cols: experts, shape.used */
} tn_device_op;
typedef struct tn_device_shape {
    int64_t cols;
    int32_t head_dim_k, head_dim_v, used;
} tn_device_shape;
/* Whether the op computes this. Host only. */
typedef bool (*tn_device_can_do_fn)(tn_device_op op, uint32_t type, tn_device_shape shape);

typedef struct tn_device_ops {
    tn_device_can_do_fn can_do;
    tn_device_repack_fn repack;
    tn_device_repack_r8_fn repack_r8;
    tn_device_gather_fn gather;
    tn_device_matvec_fn matvec;
    tn_device_gemm_fn gemm;
    tn_device_gemm_bytes_fn gemm_bytes;
    tn_device_norm_fn norm;
    tn_device_quantize_fn quantize;
    tn_device_glu_fn glu;
    tn_device_axpby_fn axpby;
    tn_device_softcap_fn softcap;
    tn_device_rope_table_fn rope_table;
    tn_device_rope_append_fn rope_append;
    tn_device_attend_fn attend, attend_tiles;
    tn_device_attend_bytes_fn attend_bytes;
    tn_device_route_fn route;
    tn_device_combine_fn combine;
    tn_device_argmax_fn argmax;
    tn_device_top_k_fn top_k;
    tn_device_read_fn read;
    tn_device_multiply_fn multiply;
} tn_device_ops;

/* kernels/cuda/ops.cu: the table of the CUDA device, emulated or not. */
const tn_device_ops *tn_cuda_ops(void);

#ifdef __cplusplus
}
#endif
#endif
