/* The definition of every operation that is not a matrix product. Obvious, never tuned: the
 * reference for all other levels. */
#include "attend.h"

#include "f16.h"
#include "kv_page.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* ---- attention ------------------------------------------------------------------------------- */

/* Element d at position pos of a head of K, or of V. */
static float kv_element(const tn_kv_view *kv, bool value, int32_t head, int64_t pos, int32_t d)
{
    const int32_t dim = value ? kv->head_dim_v : kv->head_dim_k, i = (int32_t)(pos % TN_KV_UNIT);
    const char *page = (value ? kv->v : kv->k)[pos / kv->page_size];
    const char *unit = page + tn_kv_unit_at(kv, dim, head, pos % kv->page_size);
    const char *at = unit + (value ? tn_kv_v_at : tn_kv_k_at)(kv->type, dim, i, d);
    uint16_t half;
    float f;
    switch (kv->type) {
    case TN_TYPE_Q8_0:
        memcpy(&half, unit + tn_kv_scale_at(i, d), sizeof half);
        return tn_f16_to_f32(half) *
               (float)(value ? *(const int8_t *)at : *(const uint8_t *)at - TN_KV_K_OFFSET);
    case TN_TYPE_F16: memcpy(&half, at, sizeof half); return tn_f16_to_f32(half);
    default: memcpy(&f, at, sizeof f); return f;
    }
}

static float attend_score(const tn_attend *a, const float *q, int32_t kv_head, int64_t pos)
{
    double dot = 0;
    for (int32_t i = 0; i < a->kv.head_dim_k; i++)
        dot += (double)q[i] * kv_element(&a->kv, false, kv_head, pos, i);
    float s = (float)dot * a->scale;
    return a->softcap > 0 ? a->softcap * tanhf(s / a->softcap) : s;
}

/* One query head of one token: v[head_dim_v] = sum of exp(score - *max) V, *sum = sum of exp.
 * A score of -inf counts as not seen; without any key *max is -inf, *sum and v are 0. */
static void attend_head(const tn_attend *a, int32_t kv_head, int64_t t, int32_t h, int64_t c,
                        float *max, float *sum, float *v)
{
    const int32_t dim = a->kv.head_dim_v;
    const float *q = a->q + t * a->q_stride + (int64_t)h * a->kv.head_dim_k;
    int64_t lo, hi;
    tn_attend_range(a, t, c, &lo, &hi);
    *max = -INFINITY;
    *sum = 0;
    for (int32_t i = 0; i < dim; i++) v[i] = 0;
    for (int64_t pos = lo; pos < hi; pos++) {
        float s = attend_score(a, q, kv_head, pos);
        if (s == -INFINITY) continue;
        float old = *max;
        if (s > old) *max = s;
        float fade = old == *max ? 1 : expf(old - *max), weight = expf(s - *max);
        *sum = *sum * fade + weight;
        for (int32_t i = 0; i < dim; i++)
            v[i] = v[i] * fade + weight * kv_element(&a->kv, true, kv_head, pos, i);
    }
}

void tn_attend_scalar(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                      void *scratch)
{
    (void)scratch;
    const int32_t group = a->n_head / a->kv.n_head_kv, dim = a->kv.head_dim_v;
    for (int64_t t = t0; t < t1; t++)
        for (int32_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            if (a->chunk) {
                float *part = tn_attend_partial(a, t, h, c);
                attend_head(a, kv_head, t, h, c, &part[0], &part[1], part + 2);
                continue;
            }
            float max, sum, *out = a->out + t * a->out_stride + (int64_t)h * dim;
            attend_head(a, kv_head, t, h, c, &max, &sum, out);
            if (sum == 0) continue;
            for (int32_t i = 0; i < dim; i++) out[i] /= sum;
        }
}

void tn_attend_join_scalar(const tn_attend *a, int64_t t, int32_t h)
{
    const int32_t dim = a->kv.head_dim_v;
    float *out = a->out + t * a->out_stride + (int64_t)h * dim;
    float max = -INFINITY, sum = 0;
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const float *part = tn_attend_partial(a, t, h, c);
        if (part[1] != 0 && part[0] > max) max = part[0];
    }
    for (int32_t i = 0; i < dim; i++) out[i] = 0;
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const float *part = tn_attend_partial(a, t, h, c);
        if (part[1] == 0) continue;
        float weight = expf(part[0] - max);
        sum += weight * part[1];
        for (int32_t i = 0; i < dim; i++) out[i] += weight * part[2 + i];
    }
    if (sum == 0) return;
    for (int32_t i = 0; i < dim; i++) out[i] /= sum;
}

/* ---- the rest -------------------------------------------------------------------------------- */

static void rope_scalar(float *x, int32_t n_heads, int32_t head_dim, int32_t n_rot,
                        tn_rope_style style, const float *cs)
{
    if (style == TN_ROPE_NONE) return;
    const int32_t half = n_rot / 2;
    for (int32_t h = 0; h < n_heads; h++, x += head_dim)
        for (int32_t i = 0; i < half; i++) {
            float *a = style == TN_ROPE_NORM ? &x[2 * i] : &x[i];
            float *b = style == TN_ROPE_NORM ? &x[2 * i + 1] : &x[i + half];
            float c = cs[2 * i], s = cs[2 * i + 1], xa = *a, xb = *b;
            *a = xa * c - xb * s;
            *b = xa * s + xb * c;
        }
}

static void rms_norm_scalar(float *y, const float *x, const float *w, int64_t n, float eps)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float factor = (float)(1 / sqrt(sum / (double)n + (double)eps));
    for (int64_t i = 0; i < n; i++) y[i] = w ? x[i] * factor * w[i] : x[i] * factor;
}

/* In float64, where neither the cube overflows nor 1 + tanh cancels. */
static float activate(double x, tn_activation act)
{
    if (act == TN_ACT_SILU) return (float)(x / (1 + exp(-x)));
    return (float)(0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))));
}

static void glu_scalar(float *gate, const float *up, int64_t n, tn_activation act)
{
    for (int64_t i = 0; i < n; i++) gate[i] = activate((double)gate[i], act) * up[i];
}

/* One block. A half's own scale would be h[i] = max|x| / 127. The common d is the larger of them
 * / 127, m[i] = h[i] / d rounded up, so that nothing clips. Where d would be subnormal, that is
 * below 2e-34, the block counts as zeros; where x is not finite, d and s are NaN and q is 0. */
static void quantize_block(tn_q8 *y, const float *x)
{
    float amax[2] = {0, 0};
    bool finite = true;
    for (int i = 0; i < 32; i++) {
        float v = fabsf(x[i]);
        if (!(v <= FLT_MAX)) finite = false;
        if (v > amax[i / 16]) amax[i / 16] = v;
    }
    const float h[2] = {amax[0] / 127, amax[1] / 127};
    const float d = (h[0] > h[1] ? h[0] : h[1]) / 127;
    if (!finite || d < FLT_MIN) {
        const float s = finite ? 0 : NAN;
        *y = (tn_q8){.d = s, .m = {1, 1}, .s = {s, s}};
        return;
    }
    y->d = d;
    for (int i = 0; i < 2; i++) {
        float m = fminf(fmaxf(ceilf(h[i] / d), 1), 127), step = d * m;
        int sum = 0;
        for (int j = 16 * i; j < 16 * i + 16; j++) {
            long q = lrintf(x[j] / step);
            y->q[j] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
            sum += y->q[j];
        }
        y->m[i] = (int16_t)m;
        y->s[i] = d * (float)(y->m[i] * sum);
    }
}

static void quantize_scalar(tn_q8 *q, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n / 32; i++) quantize_block(&q[i], x + 32 * i);
}

static void add_scalar(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

static void axpy_scalar(float *y, const float *x, float a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

/* Where every score is -inf nothing is possible, and all results are 0. */
static void softmax_scalar(float *x, int64_t n)
{
    float max = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > max || isnan(x[i])) max = x[i];
    for (int64_t i = 0; i < n; i++) {
        x[i] = x[i] == -INFINITY ? 0 : expf(x[i] - max);
        sum += (double)x[i];
    }
    if (sum == 0) return;
    for (int64_t i = 0; i < n; i++) x[i] = (float)(x[i] / sum);
}

static void to_f16_scalar(uint16_t *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = tn_f32_to_f16(x[i]);
}

static void to_q8_0_scalar(tn_block_q8_0 *y, const float *x, int64_t n)
{
    for (int64_t b = 0; b < n / TN_QK; b++, x += TN_QK) {
        float amax = 0;
        bool finite = true;
        for (int i = 0; i < TN_QK; i++) {
            if (!(fabsf(x[i]) < 127 * 65520.0f)) finite = false;
            if (fabsf(x[i]) > amax) amax = fabsf(x[i]);
        }
        y[b].d = tn_f32_to_f16(finite ? amax / 127 : NAN);
        const float d = tn_f16_to_f32(y[b].d);
        for (int i = 0; i < TN_QK; i++) {
            const long q = d > 0 ? lrintf(x[i] / d) : 0;
            y[b].qs[i] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
        }
    }
}

void tn_kernels_scalar_ops(tn_kernels *k)
{
    k->attend = tn_attend_scalar;
    k->attend_join = tn_attend_join_scalar;
    k->rope = rope_scalar;
    k->rms_norm = rms_norm_scalar;
    k->glu = glu_scalar;
    k->quantize = quantize_scalar;
    k->add = add_scalar;
    k->axpy = axpy_scalar;
    k->softmax = softmax_scalar;
    k->to_f16 = to_f16_scalar;
    k->to_q8_0 = to_q8_0_scalar;
}
