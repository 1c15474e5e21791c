/* The ops of the CUDA device, one per slot of tn_device_ops; contracts there. */
#ifndef TN_CUDA_OPS_H
#define TN_CUDA_OPS_H

#include "common.h"
#include "impl.h"

tn_status tn_cuda_repack(tn_stream *s, const tn_dweight *w, const void *src, size_t row_bytes);
tn_status tn_cuda_repack_r8(tn_stream *s, const tn_dweight *w, const void *src, size_t row_bytes);
tn_status tn_cuda_gather(tn_stream *s, const tn_dweight *w, const int32_t *ids, int64_t n,
                         float scale, float *out, int64_t out_stride);
tn_status tn_cuda_matvec(tn_stream *s, const tn_dmatvec *a);
tn_status tn_cuda_gemm(tn_stream *s, const tn_dgemm *a);
tn_status tn_cuda_multiply(tn_stream *s, const void *w, const void *x, float *y, int64_t rows,
                           int64_t n, int64_t cols);
size_t tn_cuda_gemm_bytes(uint32_t type, int64_t n, int64_t rows, int64_t cols);
tn_status tn_cuda_norm(tn_stream *s, const tn_dnorm *a);
tn_status tn_cuda_quantize(tn_stream *s, const tn_dacts *x);
tn_status tn_cuda_glu(tn_stream *s, float *gate, int64_t gate_stride, const float *up,
                      int64_t up_stride, int64_t n, int64_t cols, tn_activation act);
tn_status tn_cuda_axpby(tn_stream *s, float *y, int64_t y_stride, float a, const float *x,
                        int64_t x_stride, float b, const float *bias, int64_t n, int64_t cols);
tn_status tn_cuda_softcap(tn_stream *s, float *y, int64_t y_stride, int64_t n, int64_t cols,
                          float cap);
tn_status tn_cuda_read(tn_stream *s, const void *p, size_t bytes, uint32_t *sum);
tn_status tn_cuda_rope_table(tn_stream *s, float *cs, const int32_t *pos, int64_t n,
                             const float *inv_freq, int32_t n_rot, float magnitude);
tn_status tn_cuda_rope_append(tn_stream *s, const tn_drope *a);
tn_status tn_cuda_attend(tn_stream *s, const tn_dattend *a);
tn_status tn_cuda_attend_tiles(tn_stream *s, const tn_dattend *a);
size_t tn_cuda_attend_bytes(int64_t n, int32_t n_head, int32_t head_dim_v, int32_t n_splits);
tn_status tn_cuda_route(tn_stream *s, const tn_droute *a);
tn_status tn_cuda_combine(tn_stream *s, float *y, int64_t y_stride, const float *x,
                          int64_t x_stride, const int32_t *row_of, const float *weight,
                          int32_t used, int64_t n, int64_t cols, bool add);
tn_status tn_cuda_argmax(tn_stream *s, const float *x, int64_t x_stride, int64_t n, int64_t cols,
                         int32_t *id, float *value);
tn_status tn_cuda_top_k(tn_stream *s, const float *x, int64_t x_stride, int64_t n, int64_t cols,
                        int32_t k, int32_t *id, float *value);

/* ---- shared between the files of this folder ------------------------------------------------- */

/* out[rows][cols] = w dequantised to float16; gather.cu. Quantised types only. */
tn_status tn_cuda_to_f16(cudaStream_t s, const tn_dweight *w, half *out);
/* out[rows][stride] = w in float32. Unquantised types only. */
tn_status tn_cuda_to_f32(cudaStream_t s, const tn_dweight *w, float *out, int64_t stride);
/* Whether both attention ops can run; attend_decode.cu. */
bool tn_cuda_attend_valid(const tn_dattend *a);
/* attend_tiles on tensor cores, for F16 and Q8_0 pages. */
tn_status tn_cuda_attend_tensor(cudaStream_t s, const tn_dattend *a);
/* What makes a throttled device slow, behind the op that reads so much; throttle.cu. */
tn_status tn_cuda_slow_read(tn_stream *s, size_t bytes);
tn_status tn_cuda_slow_matvec(tn_stream *s, const tn_dmatvec *a);
tn_status tn_cuda_slow_attend(tn_stream *s, const tn_dattend *a);
/* The families of matvec; matvec_*.cu. */
tn_status tn_cuda_matvec_small(cudaStream_t s, const tn_dmatvec *a); /* blocks of 32 */
tn_status tn_cuda_matvec_k(cudaStream_t s, const tn_dmatvec *a);     /* super-blocks */
tn_status tn_cuda_matvec_float(cudaStream_t s, const tn_dmatvec *a); /* F32, F16, BF16 */

#endif
