/* AVX-512 attention: avx_attend.h with vectors of 16 floats, and many rows with VNNI as
 * avx512_attend_lanes.h. Heads that are no multiple of 16 are left to AVX2. */
#include "avx_attend.h"
#include "avx512_attend_f16.h"
#include "avx512_attend_q8.h"

/* Many rows in integers. False where they are few, the cache is F32, or attend_f16 says so: others
 * have to do the whole item then. */
static bool attend_wide(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                        void *scratch)
{
    const int64_t rows = (t1 - t0) * (a->n_head / a->kv.n_head_kv);
    if (t1 - t0 <= 1 || rows <= MAX_ONE) return false;
    if (a->kv.type == TN_TYPE_F16) return attend_f16(a, kv_head, t0, t1, c, scratch);
    if (a->kv.type == TN_TYPE_Q8_0) attend_q8(a, kv_head, t0, t1, c, scratch);
    return a->kv.type == TN_TYPE_Q8_0;
}

static void attend_avx512(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1, int64_t c,
                          void *scratch)
{
    if (!attend_fits(a))
        tn_attend_avx2(a, kv_head, t0, t1, c, scratch);
    else if (!attend_wide(a, kv_head, t0, t1, c, scratch))
        attend_item(a, kv_head, t0, t1, c, scratch);
}

/* Without VNNI. */
static void attend_avx512_float(const tn_attend *a, int32_t kv_head, int64_t t0, int64_t t1,
                                int64_t c, void *scratch)
{
    if (!attend_fits(a) || a->kv.type == TN_TYPE_Q8_0)
        tn_attend_avx2(a, kv_head, t0, t1, c, scratch);
    else
        attend_item(a, kv_head, t0, t1, c, scratch);
}

void tn_kernels_avx512_attend(tn_kernels *k)
{
    k->attend = k->isa & TN_ISA_VNNI512 ? attend_avx512 : attend_avx512_float;
}
