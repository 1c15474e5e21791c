/* OpenBLAS for prefill with unquantised weights, opened with dlopen on first use.
 * blas.c is the only file that knows OpenBLAS. */
#ifndef TN_BLAS_H
#define TN_BLAS_H

#include "../gguf/mem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Single-thread sgemm handle; immutable once opened and safe for concurrent callers. */
typedef struct tn_blas tn_blas;

/* Opens the pthread build of OpenBLAS, sets it to one thread, and refuses builds whose
 * openblas_get_parallel() is 0 (Debian's serial build gives silently wrong results from concurrent
 * calls) or whose chosen core is older than this CPU (5x slower): *out stays NULL, `why` (a static
 * sentence) says so, and the caller uses its own FMA kernel. why may be NULL. TN_OK either way;
 * TN_ENOMEM if the handle itself could not be allocated. */
tn_status tn_blas_open(tn_blas **out, const tn_allocator *a, const char **why);
/* Frees the handle; the library itself stays loaded. NULL is fine. */
void tn_blas_close(tn_blas *b);
const char *tn_blas_describe(const tn_blas *b); /* "OpenBLAS 0.3.21 Haswell pthread" */

/* What OPENBLAS_CORETYPE should say on this CPU, since releases older than the CPU choose a core of
 * long ago; NULL where OpenBLAS may choose. */
const char *tn_blas_core(void);
/* Whether OpenBLAS's name of a core is one without AVX2: on a CPU with AVX2 the wrong choice. */
bool tn_blas_core_is_old(const char *core);

/* y[t][r] = sum_c w[r][c] * x[t][c]: w [rows][cols] float32, x [n][x_stride], y [n][y_stride]. */
void tn_blas_matmul(const tn_blas *b, const float *w, int64_t rows, int64_t cols, const float *x,
                    int64_t x_stride, int64_t n, float *y, int64_t y_stride);

#ifdef __cplusplus
}
#endif
#endif
