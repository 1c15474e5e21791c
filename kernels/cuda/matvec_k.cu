/* Mat-vecs of the types with super-blocks of 256. */
#include "matvec.h"

tn_status tn_cuda_matvec_k(cudaStream_t s, const tn_dmatvec *a)
{
    switch (a->w.type) {
    case TN_TYPE_Q2_K: return matvec_launch<TN_TYPE_Q2_K>(s, a);
    case TN_TYPE_Q3_K: return matvec_launch<TN_TYPE_Q3_K>(s, a);
    case TN_TYPE_Q4_K: return matvec_launch<TN_TYPE_Q4_K>(s, a);
    case TN_TYPE_Q5_K: return matvec_launch<TN_TYPE_Q5_K>(s, a);
    case TN_TYPE_Q6_K: return matvec_launch<TN_TYPE_Q6_K>(s, a);
    default: return TN_EUNSUPPORTED;
    }
}
