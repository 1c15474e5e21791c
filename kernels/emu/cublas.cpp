/* cuBLAS on the emulated device: operands are converted to float32 and multiplied by OpenBLAS
 * through blas.h, or by plain loops where there is none and under the thread sanitizer. Every
 * element is read and written by code that the sanitizers see. */
#include "stream.h"
#include "cublas.h"

#include "../blas.h"

#include <vector>

using namespace emu;

struct cublasContext {
    cudaStream_t stream;
    tn_blas *blas; /* NULL: plain loops */
    cublasMath_t math;
};

namespace
{

struct matrix {
    const void *p;
    cudaDataType type;
    long long row, col; /* elements between neighbours in a column, in a row */
};

size_t bytes_of(cudaDataType t)
{
    return t == CUDA_R_32F ? 4 : 2;
}

float load(const matrix &m, long long i, long long j)
{
    long long at = i * m.row + j * m.col;
    if (m.type == CUDA_R_32F) return ((const float *)m.p)[at];
    uint16_t h = ((const uint16_t *)m.p)[at];
    return m.type == CUDA_R_16F ? tn_f16_to_f32(h) : tn_bf16_to_f32(h);
}
void store(void *c, cudaDataType t, long long at, float v)
{
    if (t == CUDA_R_32F)
        ((float *)c)[at] = v;
    else
        ((uint16_t *)c)[at] = t == CUDA_R_16F ? tn_f32_to_f16(v) : tn_f32_to_bf16(v);
}

/* n elements from number `at` on, `step` apart. */
void load_line(float *out, const matrix &m, long long at, long long step, size_t n)
{
    const float *f = (const float *)m.p;
    const uint16_t *h = (const uint16_t *)m.p;
    if (m.type == CUDA_R_32F)
        for (size_t i = 0; i < n; i++)
            out[i] = f[at + (long long)i * step];
    else if (m.type == CUDA_R_16F)
        for (size_t i = 0; i < n; i++)
            out[i] = __half2float(half{h[at + (long long)i * step]});
    else
        for (size_t i = 0; i < n; i++)
            out[i] = tn_bf16_to_f32(h[at + (long long)i * step]);
}

struct product {
    int m, n, k;
    float alpha, beta;
    matrix a, b;
    void *c;
    cudaDataType c_type;
    long long ldc;
    bool tf32;
};

/* Rounded to the 11 bits that TF32 has. */
void round_to_tf32(std::vector<float> &v)
{
    for (float &f : v) {
        uint32_t u;
        memcpy(&u, &f, 4);
        if ((u & 0x7f800000) == 0x7f800000) continue;
        u = (u + 0x1000) & ~0x1fffu;
        memcpy(&f, &u, 4);
    }
}

void multiply(const tn_blas *blas, const product &p)
{
    /* w[r] = row r of A, x[t] = column t of B, both of length k: y[t][r] = C(r, t) */
    size_t m = (size_t)p.m, n = (size_t)p.n, k = (size_t)p.k;
    std::vector<float> w(m * k), x(n * k), y(m * n);
    for (size_t r = 0; r < m; r++)
        load_line(&w[r * k], p.a, (long long)r * p.a.row, p.a.col, k);
    for (size_t t = 0; t < n; t++)
        load_line(&x[t * k], p.b, (long long)t * p.b.col, p.b.row, k);
    if (p.tf32) {
        round_to_tf32(w);
        round_to_tf32(x);
    }
    if (blas) {
        tn_blas_matmul(blas, w.data(), p.m, p.k, x.data(), p.k, p.n, y.data(), p.m);
    } else {
        for (size_t t = 0; t < n; t++)
            for (size_t r = 0; r < m; r++) {
                float sum = 0;
                for (size_t i = 0; i < k; i++)
                    sum += w[r * k + i] * x[t * k + i];
                y[t * m + r] = sum;
            }
    }
    for (size_t t = 0; t < n; t++)
        for (size_t r = 0; r < m; r++) {
            long long at = (long long)t * p.ldc + (long long)r;
            float v = p.alpha * y[t * m + r];
            if (p.beta != 0)
                v += p.beta * load({p.c, p.c_type, 1, p.ldc}, (long long)r, (long long)t);
            store(p.c, p.c_type, at, v);
        }
}

matrix view(const void *p, cudaDataType type, cublasOperation_t op, int ld)
{
    if (op == CUBLAS_OP_T) return {p, type, ld, 1};
    return {p, type, 1, ld};
}

} // namespace

cublasStatus_t cublasCreate(cublasHandle_t *h)
{
    *h = new cublasContext();
    TSAN(return CUBLAS_STATUS_SUCCESS;)
    tn_blas_open(&(*h)->blas, &tn_default_allocator, nullptr);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t h)
{
    if (h->stream) h->stream->drain();
    tn_blas_close(h->blas);
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t s)
{
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode)
{
    h->math = mode;
    return CUBLAS_STATUS_SUCCESS;
}

/* The last element of an operand is inside its allocation too. */
static void check_operand(const void *p, cudaDataType type, int rows, int cols, int ld,
                          const char *what)
{
    check_range(p, ((size_t)(cols - 1) * (size_t)ld + (size_t)rows) * bytes_of(type), true, what);
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                            int n, int k, const void *alpha, const void *a, cudaDataType a_type,
                            int lda, const void *b, cudaDataType b_type, int ldb, const void *beta,
                            void *c, cudaDataType c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm)
{
    return cublasGemmStridedBatchedEx(h, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type,
                                      ldb, 0, beta, c, c_type, ldc, 0, 1, compute, algorithm);
}

cublasStatus_t cublasSgemm(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                           int n, int k, const float *alpha, const float *a, int lda,
                           const float *b, int ldb, const float *beta, float *c, int ldc)
{
    return cublasGemmEx(h, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta,
                        c, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
    const void *alpha, const void *a, cudaDataType a_type, int lda, long long a_step, const void *b,
    cudaDataType b_type, int ldb, long long b_step, const void *beta, void *c, cudaDataType c_type,
    int ldc, long long c_step, int batches, cublasComputeType_t, cublasGemmAlgo_t)
{
    if (!h || !h->stream) host_error("cuBLAS: no stream has been set");
    int a_rows = op_a == CUBLAS_OP_N ? m : k, b_rows = op_b == CUBLAS_OP_N ? k : n;
    if (m < 0 || n < 0 || k < 0 || lda < a_rows || ldb < b_rows || ldc < m || a_type != b_type)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (c_type != CUDA_R_32F && c_type != a_type) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!m || !n || !batches) return CUBLAS_STATUS_SUCCESS;
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    for (int i = 0; i < batches; i++) {
        const char *ai = (const char *)a + i * a_step * (long long)bytes_of(a_type);
        const char *bi = (const char *)b + i * b_step * (long long)bytes_of(b_type);
        char *ci = (char *)c + i * c_step * (long long)bytes_of(c_type);
        check_operand(ai, a_type, a_rows, op_a == CUBLAS_OP_N ? k : m, lda, "cuBLAS: A");
        check_operand(bi, b_type, b_rows, op_b == CUBLAS_OP_N ? n : k, ldb, "cuBLAS: B");
        check_operand(ci, c_type, m, n, ldc, "cuBLAS: C");
        product p = {
            m,  n,      k,  scale, keep, view(ai, a_type, op_a, lda), view(bi, b_type, op_b, ldb),
            ci, c_type, ldc, h->math == CUBLAS_TF32_TENSOR_OP_MATH && a_type == CUDA_R_32F};
        const tn_blas *blas = h->blas;
        h->stream->push([=](replay *) { multiply(blas, p); });
    }
    return CUBLAS_STATUS_SUCCESS;
}
