/* AVX2 forms of the small operations. Quantisation and conversion agree with scalar_ops.c bit for
 * bit, the others up to rounding. */
#include "kernels.h"

#include "../gguf/blocks.h"
#include "avx_glu.h"
#include "f16.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* The two rotations of one head: pairs from i on, 8 (4) at a time; returns the pairs done. */
static int32_t rope_neox_head(float *x, int32_t half, const float *cs)
{
    int32_t i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 p = _mm256_loadu_ps(cs + 2 * i), q = _mm256_loadu_ps(cs + 2 * i + 8);
        __m256 c = _mm256_shuffle_ps(p, q, 0x88), s = _mm256_shuffle_ps(p, q, 0xdd);
        c = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(c), 0xd8));
        s = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(s), 0xd8));
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + i + half, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
    }
    return i;
}

static int32_t rope_norm_head(float *x, int32_t half, const float *cs)
{
    int32_t i = 0;
    for (; i + 4 <= half; i += 4) {
        __m256 p = _mm256_loadu_ps(cs + 2 * i), v = _mm256_loadu_ps(x + 2 * i);
        __m256 swapped = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), _mm256_movehdup_ps(p));
        _mm256_storeu_ps(x + 2 * i, _mm256_fmaddsub_ps(v, _mm256_moveldup_ps(p), swapped));
    }
    return i;
}

static void rope_avx2(float *x, int32_t n_heads, int32_t head_dim, int32_t n_rot,
                      tn_rope_style style, const float *cs)
{
    if (style == TN_ROPE_NONE) return;
    const int32_t half = n_rot / 2, step = style == TN_ROPE_NORM ? 1 : half;
    for (int32_t h = 0; h < n_heads; h++, x += head_dim) {
        int32_t i =
            style == TN_ROPE_NORM ? rope_norm_head(x, half, cs) : rope_neox_head(x, half, cs);
        for (; i < half; i++) {
            float *a = style == TN_ROPE_NORM ? x + 2 * i : x + i;
            float c = cs[2 * i], s = cs[2 * i + 1], xa = a[0], xb = a[step];
            a[0] = xa * c - xb * s;
            a[step] = xa * s + xb * c;
        }
    }
}

static double sum_squares(const float *x, int64_t n)
{
    __m256d acc[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                      _mm256_setzero_pd()};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 4; j++) {
            __m256d v = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * j));
            acc[j] = _mm256_fmadd_pd(v, v, acc[j]);
        }
    __m256d s = _mm256_add_pd(_mm256_add_pd(acc[0], acc[1]), _mm256_add_pd(acc[2], acc[3]));
    __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    double sum = _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

static void rms_norm_avx2(float *y, const float *x, const float *w, int64_t n, float eps)
{
    const float factor = (float)(1 / sqrt(sum_squares(x, n) / (double)n + (double)eps));
    const __m256 f = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), f);
        _mm256_storeu_ps(y + i, w ? _mm256_mul_ps(v, _mm256_loadu_ps(w + i)) : v);
    }
    for (; i < n; i++) y[i] = w ? x[i] * factor * w[i] : x[i] * factor;
}

static void glu_avx2(float *gate, const float *up, int64_t n, tn_activation act)
{
    glu(gate, up, n, act);
}

/* ---- quantisation ---------------------------------------------------------------------------- */

/* Rounds 16 values with one step; the sum of the four results is the sum of all. */
static inline __m128i quantize_half(int8_t *q, __m256 a, __m256 b, __m256 step)
{
    __m256i i = _mm256_cvtps_epi32(_mm256_div_ps(a, step));
    __m256i j = _mm256_cvtps_epi32(_mm256_div_ps(b, step));
    __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(i, j), 0xd8);
    w = _mm256_max_epi16(_mm256_min_epi16(w, _mm256_set1_epi16(127)), _mm256_set1_epi16(-127));
    __m128i lo = _mm256_castsi256_si128(w), hi = _mm256_extracti128_si256(w, 1);
    _mm_storeu_si128((__m128i *)(void *)q, _mm_packs_epi16(lo, hi));
    return _mm_madd_epi16(_mm_add_epi16(lo, hi), _mm_set1_epi16(1));
}

static inline void quantize_block(tn_q8 *y, const float *x)
{
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    __m256 v[4];
    __m256i a[4];
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        a[i] = _mm256_and_si256(_mm256_castps_si256(v[i]), no_sign);
    }
    /* Magnitudes order like integers, and then whatever is not finite is the largest. */
    a[0] = _mm256_max_epi32(a[0], a[1]);
    a[2] = _mm256_max_epi32(a[2], a[3]);
    __m256i m = _mm256_max_epi32(_mm256_permute2x128_si256(a[0], a[2], 0x20),
                                 _mm256_permute2x128_si256(a[0], a[2], 0x31));
    m = _mm256_max_epi32(m, _mm256_shuffle_epi32(m, 0x4e));
    m = _mm256_max_epi32(m, _mm256_shuffle_epi32(m, 0xb1));
    /* Lanes 0 and 1 of the following: the two halves. */
    __m128i top = _mm_unpacklo_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    __m128 h = _mm_div_ps(_mm_castsi128_ps(top), _mm_set1_ps(127));
    __m128 d = _mm_div_ps(_mm_max_ps(h, _mm_shuffle_ps(h, h, 0xb1)), _mm_set1_ps(127));
    const bool finite =
        _mm_cvtsi128_si32(_mm_max_epi32(top, _mm_shuffle_epi32(top, 1))) < 0x7f800000;
    if (!finite || _mm_cvtss_f32(d) < FLT_MIN) {
        const float s = finite ? 0 : NAN;
        *y = (tn_q8){.d = s, .m = {1, 1}, .s = {s, s}};
        return;
    }
    __m128 k = _mm_round_ps(_mm_div_ps(h, d), _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    k = _mm_min_ps(_mm_max_ps(k, _mm_set1_ps(1)), _mm_set1_ps(127));
    __m256 step = _mm256_broadcastss_ps(_mm_mul_ps(d, k));
    __m128i sum0 = quantize_half(y->q, v[0], v[1], step);
    step = _mm256_broadcastss_ps(_mm_mul_ps(d, _mm_movehdup_ps(k)));
    __m128i sum1 = quantize_half(y->q + 16, v[2], v[3], step);
    __m128i sum = _mm_hadd_epi32(_mm_hadd_epi32(sum0, sum1), _mm_setzero_si128());
    __m128i mi = _mm_cvtps_epi32(k);
    const int32_t both = _mm_cvtsi128_si32(_mm_packs_epi32(mi, mi));
    memcpy(y->m, &both, sizeof y->m);
    y->d = _mm_cvtss_f32(d);
    _mm_storel_pi((__m64 *)(void *)y->s, _mm_mul_ps(d, _mm_cvtepi32_ps(_mm_mullo_epi32(mi, sum))));
}

void tn_quantize_avx2(tn_q8 *q, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n / 32; i++) quantize_block(&q[i], x + 32 * i);
}

/* ---- vectors --------------------------------------------------------------------------------- */

static void add_avx2(float *y, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

static void axpy_avx2(float *y, const float *x, float a, int64_t n)
{
    const __m256 va = _mm256_set1_ps(a);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i,
                         _mm256_fmadd_ps(va, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] += a * x[i];
}

/* max_ps returns its second operand if one is NaN: with the score second, a later score hides a
 * NaN, but exp of that score keeps it, and the sum carries it to all. */
static float softmax_max(const float *x, int64_t n)
{
    __m256 m = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) m = _mm256_max_ps(m, _mm256_loadu_ps(x + i));
    if (i < n) {
        __m256i k = first8(n - i);
        __m256 v = _mm256_maskload_ps(x + i, k);
        m = _mm256_max_ps(m, _mm256_blendv_ps(m, v, _mm256_castsi256_ps(k)));
    }
    return max8(m);
}

/* e^(x - max) in place for the lanes of k, all 8 if k is NULL; returns them, other lanes 0. */
static inline __m256 softmax_exp(float *x, __m256 max, const __m256i *k)
{
    if (!k) {
        __m256 e = v_exp(_mm256_sub_ps(_mm256_loadu_ps(x), max));
        _mm256_storeu_ps(x, e);
        return e;
    }
    __m256 e = v_exp(_mm256_sub_ps(_mm256_maskload_ps(x, *k), max));
    _mm256_maskstore_ps(x, *k, e);
    return _mm256_and_ps(e, _mm256_castsi256_ps(*k));
}

static void softmax_avx2(float *x, int64_t n)
{
    const float max = softmax_max(x, n);
    const __m256 vmax = _mm256_set1_ps(max == -INFINITY ? 0 : max); /* all -inf: all 0 */
    const __m256i tail = first8(n % 8);
    __m256d lo = _mm256_setzero_pd(), hi = _mm256_setzero_pd();
    for (int64_t i = 0; i < n; i += 8) {
        __m256 e = softmax_exp(x + i, vmax, i + 8 <= n ? NULL : &tail);
        lo = _mm256_add_pd(lo, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
        hi = _mm256_add_pd(hi, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
    }
    const __m256d s = _mm256_add_pd(lo, hi);
    const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    const double sum = _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
    if (sum == 0) return;
    const float factor = (float)(1 / sum);
    const __m256 f = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), f));
    for (; i < n; i++) x[i] *= factor;
}

static void to_f16_avx2(uint16_t *y, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
    for (; i < n; i++) y[i] = tn_f32_to_f16(x[i]);
}

static inline void to_q8_0_block(tn_block_q8_0 *y, const float *x)
{
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_setzero_si256(); /* magnitudes order like integers, as in quantize_block */
    __m256 v[4];
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(v[i]), no_sign));
    }
    __m128i top = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    const float amax = _mm_cvtss_f32(_mm_castsi128_ps(top));
    y->d = tn_f32_to_f16(amax < 127 * 65520.0f ? amax / 127 : NAN);
    const float d = tn_f16_to_f32(y->d);
    if (!(d > 0)) {
        memset(y->qs, 0, sizeof y->qs);
        return;
    }
    quantize_half(y->qs, v[0], v[1], _mm256_set1_ps(d));
    quantize_half(y->qs + 16, v[2], v[3], _mm256_set1_ps(d));
}

static void to_q8_0_avx2(tn_block_q8_0 *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n / TN_QK; i++) to_q8_0_block(&y[i], x + TN_QK * i);
}

void tn_kernels_avx2_ops(tn_kernels *k)
{
    k->rope = rope_avx2;
    k->rms_norm = rms_norm_avx2;
    k->glu = glu_avx2;
    k->quantize = tn_quantize_avx2;
    k->add = add_avx2;
    k->axpy = axpy_avx2;
    k->softmax = softmax_avx2;
    k->to_f16 = to_f16_avx2;
    k->to_q8_0 = to_q8_0_avx2;
}
