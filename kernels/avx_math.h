/* exp, sigmoid and tanh of the vectors of avx_vec.h. */
#ifndef TN_AVX_MATH_H
#define TN_AVX_MATH_H

#include "avx_vec.h"

/* exp(x) for x <= 88.3 within 2 ulp; below -87.33 exactly 0 (also for -inf); NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by a polynomial within 2e-9 (least squares,
 * reweighted until the largest relative error was least), 2^n by the exponent. n is rounded by
 * adding a number whose last bit is worth 1, which leaves it in the lowest bits of the sum. */
INLINE vf v_exp(vf x)
{
    const vmask seen = v_not_less(x, v_set(-87.33f));
    const vf whole = v_set(12582912); /* 1.5 * 2^23 */
    const vf sum = v_fma(x, v_set(1.44269504088896341f), whole), n = v_sub(sum, whole);
    vf r = v_fnma(n, v_set(0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    vf p = v_set(0x1.6ae6dep-10f);
    p = v_fma(p, r, v_set(0x1.1267d8p-7f));
    p = v_fma(p, r, v_set(0x1.555824p-5f));
    p = v_fma(p, r, v_set(0x1.555418p-3f));
    p = v_fma(p, r, v_set(0x1.fffffcp-2f));
    p = v_fma(p, r, v_set(1));
    p = v_fma(p, r, v_set(1));
    return v_times_pow2(p, sum, seen);
}

/* 1 / (1 + exp(-x)) through exp(-|x|), which cannot overflow. */
INLINE vf v_sigmoid(vf x)
{
    const vf one = v_set(1), e = v_exp(v_or(x, v_set(-0.0f)));
    return v_div(v_select(v_negative(x), e, one), v_add(one, e));
}

/* tanh(x): odd Taylor polynomial below 0.25, where the other form cancels. */
INLINE vf v_tanh(vf x)
{
    const vf sign = v_set(-0.0f), one = v_set(1), a = v_andnot(sign, x), x2 = v_mul(x, x);
    const vf e = v_exp(v_mul(a, v_set(-2)));
    const vf big = v_or(v_div(v_sub(one, e), v_add(one, e)), v_and(sign, x));
    vf p = v_set(62.0f / 2835);
    p = v_fma(p, x2, v_set(-17.0f / 315));
    p = v_fma(p, x2, v_set(2.0f / 15));
    p = v_fma(p, x2, v_set(-1.0f / 3));
    p = v_fma(v_mul(p, x2), x, x);
    return v_select(v_less(a, v_set(0.25f)), p, big);
}

#endif
