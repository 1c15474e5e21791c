/* The op table of the CUDA device. */
#include "ops.h"
#include "kv.h"

static bool can_do(tn_device_op op, uint32_t type, tn_device_shape shape)
{
    const tn_type_info *t = tn_type_get(type);
    switch (op) {
    case TN_DOP_MATVEC:
    case TN_DOP_GEMM:
    case TN_DOP_GATHER: return t && t->matmul && shape.cols > 0 && shape.cols % t->block == 0;
    case TN_DOP_REPACK_R8:
        return t && t->matmul && t->block > 1 && shape.cols > 0 && shape.cols % t->block == 0;
    case TN_DOP_ATTEND:
    case TN_DOP_ATTEND_TILES: return tn_cuda_kv_valid(type, shape.head_dim_k, shape.head_dim_v);
    case TN_DOP_ROUTE:
        return shape.cols >= 1 && shape.cols <= 1024 && shape.used >= 1 && shape.used <= 64 &&
               shape.used <= shape.cols;
    default: return false;
    }
}

const tn_device_ops *tn_cuda_ops(void)
{
    static const tn_device_ops ops = {can_do,
                                      tn_cuda_repack,
                                      tn_cuda_repack_r8,
                                      tn_cuda_gather,
                                      tn_cuda_matvec,
                                      tn_cuda_gemm,
                                      tn_cuda_gemm_bytes,
                                      tn_cuda_norm,
                                      tn_cuda_quantize,
                                      tn_cuda_glu,
                                      tn_cuda_axpby,
                                      tn_cuda_softcap,
                                      tn_cuda_rope_table,
                                      tn_cuda_rope_append,
                                      tn_cuda_attend,
                                      tn_cuda_attend_tiles,
                                      tn_cuda_attend_bytes,
                                      tn_cuda_route,
                                      tn_cuda_combine,
                                      tn_cuda_argmax,
                                      tn_cuda_top_k,
                                      tn_cuda_read,
                                      tn_cuda_multiply};
    return &ops;
}
