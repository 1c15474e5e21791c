/* AVX-512 attention: avx_attend.h with vectors of 16 floats; heads that are no multiple of them are
 * left to AVX2. */
#include "avx_attend.h"

static void attend_avx512(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                          void *scratch)
{
    if (attend_fits(a))
        attend_item(a, kv_head, t0, t1, c, scratch);
    else
        tn_attend_avx2(a, kv_head, t0, t1, c, scratch);
}

void tn_kernels_avx512_attend(tn_kernels *k)
{
    k->attend = attend_avx512;
}
