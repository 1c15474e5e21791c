/* Gated activations with the vectors of avx_vec.h. */
#ifndef TN_AVX_GLU_H
#define TN_AVX_GLU_H

#include "avx_math.h"
#include "kernels.h"

/* AVX2's, for what a wider one leaves to it. avx2_ops.c */
void tn_quantize_avx2(tn_q8 *q, const float *x, int64_t n);

/* 0.5 (1 + tanh(u)) is sigmoid(2 u): both activations are x times a sigmoid. */
INLINE vf activate(vf x, tn_activation act)
{
    if (act == TN_ACT_SILU) return v_mul(x, v_sigmoid(x));
    const vf u = v_fma(v_mul(x, x), v_set(0.0713548163f), v_set(1.59576912f));
    return v_mul(x, v_sigmoid(v_mul(u, x)));
}

INLINE void glu(float *gate, const float *up, int64_t n, tn_activation act)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        v_store(gate + i, v_mul(activate(v_load(gate + i), act), v_load(up + i)));
    if (i == n) return;
    const vmask m = v_between(0, n - i);
    v_store_some(gate + i, m,
                 v_mul(activate(v_load_some(gate + i, m), act), v_load_some(up + i, m)));
}

#endif
