/* Mat-vecs of the types with blocks of 32. */
#include "matvec.h"

tn_status tn_cuda_matvec_small(cudaStream_t s, const tn_dmatvec *a)
{
    switch (a->w.type) {
    case TN_TYPE_Q4_0: return matvec_launch<TN_TYPE_Q4_0>(s, a);
    case TN_TYPE_Q4_1: return matvec_launch<TN_TYPE_Q4_1>(s, a);
    case TN_TYPE_Q5_0: return matvec_launch<TN_TYPE_Q5_0>(s, a);
    case TN_TYPE_Q5_1: return matvec_launch<TN_TYPE_Q5_1>(s, a);
    case TN_TYPE_Q8_0: return matvec_launch<TN_TYPE_Q8_0>(s, a);
    default: return TN_EUNSUPPORTED;
    }
}
