/* exp, sigmoid and tanh of the vectors of avx_vec.h. */
#ifndef TN_AVX_MATH_H
#define TN_AVX_MATH_H

#include "avx_vec.h"

/* exp(x) for x <= 88.3 within 2 ulp; below -87.33 exactly 0 (also for -inf); NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of degree 7, 2^n by the
 * exponent. */
INLINE vf v_exp(vf x)
{
    const vmask seen = v_not_less(x, v_set(-87.33f));
    vf n = v_round(v_mul(x, v_set(1.44269504088896341f)));
    vf r = v_fnma(n, v_set(0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    vf p = v_set(1.0f / 5040);
    p = v_fma(p, r, v_set(1.0f / 720));
    p = v_fma(p, r, v_set(1.0f / 120));
    p = v_fma(p, r, v_set(1.0f / 24));
    p = v_fma(p, r, v_set(1.0f / 6));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(v_mul(p, r), r, v_add(r, v_set(1)));
    return v_select(seen, v_mul(p, v_pow2(n)), v_zero());
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
