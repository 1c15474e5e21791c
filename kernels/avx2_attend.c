/* AVX2 attention: avx_attend.h with vectors of 8 floats. */
#include "avx_attend.h"

void tn_attend_avx2(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                    void *scratch)
{
    if (attend_fits(a))
        attend_item(a, kv_head, t0, t1, c, scratch);
    else
        tn_attend_scalar(a, kv_head, t0, t1, c, scratch);
}

static void attend_join_avx2(const tn_attend *a, int64_t t, int32_t h)
{
    const int32_t dim = a->kv.head_dim_v;
    if (dim % 8) {
        tn_attend_join_scalar(a, t, h);
        return;
    }
    float *out = a->out + t * a->out_stride + (int64_t)h * dim, max = -INFINITY, sum = 0;
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const float *part = tn_attend_partial(a, t, h, c);
        if (part[1] != 0 && part[0] > max) max = part[0];
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const float *part = tn_attend_partial(a, t, h, c);
        if (part[1] == 0) continue;
        const float weight = expf(part[0] - max);
        const __m256 w = _mm256_set1_ps(weight);
        sum += weight * part[1];
        for (int32_t i = 0; i < dim; i += 8)
            _mm256_storeu_ps(out + i, _mm256_fmadd_ps(w, _mm256_loadu_ps(part + 2 + i),
                                                      _mm256_loadu_ps(out + i)));
    }
    const __m256 f = _mm256_set1_ps(sum == 0 ? 0 : 1 / sum);
    for (int32_t i = 0; i < dim; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(out + i), f));
}

void tn_kernels_avx2_attend(tn_kernels *k)
{
    k->attend = tn_attend_avx2;
    k->attend_join = attend_join_avx2;
}
