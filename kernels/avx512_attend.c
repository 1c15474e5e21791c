/* AVX-512 attention: avx_attend.h with vectors of 16 floats, and many rows with a Q8_0 cache as
 * avx512_attend_q8.h. Heads that are no multiple of 16 are left to AVX2. */
#include "avx_attend.h"
#include "avx512_attend_q8.h"

static void attend_avx512(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                          void *scratch)
{
    const int64_t rows = (t1 - t0) * (a->n_head / a->kv.n_head_kv);
    if (!attend_fits(a))
        tn_attend_avx2(a, kv_head, t0, t1, c, scratch);
    else if (a->kv.type == TN_TYPE_Q8_0 && t1 - t0 > 1 && rows > MAX_ONE)
        attend_lanes(a, kv_head, t0, t1, c, scratch);
    else
        attend_item(a, kv_head, t0, t1, c, scratch);
}

/* Products with a Q8_0 cache need VNNI. */
static void attend_avx512_float(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1,
                                int64_t c, void *scratch)
{
    if (a->kv.type == TN_TYPE_Q8_0)
        tn_attend_avx2(a, kv_head, t0, t1, c, scratch);
    else
        attend_avx512(a, kv_head, t0, t1, c, scratch);
}

void tn_kernels_avx512_attend(tn_kernels *k)
{
    k->attend = k->isa & TN_ISA_VNNI512 ? attend_avx512 : attend_avx512_float;
}
