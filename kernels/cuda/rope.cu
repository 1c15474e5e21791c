/* Between the projections and attention: head norms, rotation, KV append. */
#include "kv.h"
#include "ops.h"

__global__ void rope_table(float *cs, const int32_t *pos, const float *inv_freq, int pairs,
                           float magnitude, int64_t n)
{
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * pairs) return;
    const float angle = (float)pos[at / pairs] * inv_freq[at % pairs];
    cs[2 * at] = cosf(angle) * magnitude;
    cs[2 * at + 1] = sinf(angle) * magnitude;
}

struct RopeArgs {
    float *q, *k, *v;
    int64_t q_stride, k_stride, v_stride;
    int n_head, n_head_kv;
    const float *q_norm, *k_norm;
    float eps;
    int style, n_rot;
    const float *cs;
    KvPlane kp, vp;
    const int32_t *pos, *seq;
    int heads; /* of one token, over q, k and v */
};

/* x[dim] normed and rotated to out. By one warp. */
__device__ __forceinline__ void turn_head(float *out, const float *x, int dim, const float *norm,
                                          float eps, int style, int n_rot, const float *cs)
{
    const int lane = threadIdx.x % 32, pairs = style == TN_ROPE_NONE ? 0 : n_rot / 2;
    float factor = 1;
    if (norm) {
        float sum = 0;
        for (int i = lane; i < dim; i += 32)
            sum += x[i] * x[i];
        factor = 1.0f / sqrtf(warp_sum(sum) / (float)dim + eps);
    }
    for (int i = lane; i < pairs; i += 32) {
        const int ia = style == TN_ROPE_NORM ? 2 * i : i;
        const int ib = style == TN_ROPE_NORM ? 2 * i + 1 : i + pairs;
        float a = x[ia] * factor, b = x[ib] * factor;
        if (norm) {
            a *= norm[ia];
            b *= norm[ib];
        }
        const float c = cs[2 * i], s = cs[2 * i + 1];
        out[ia] = a * c - b * s;
        out[ib] = a * s + b * c;
    }
    for (int i = 2 * pairs + lane; i < dim; i += 32)
        out[i] = norm ? x[i] * factor * norm[i] : x[i];
}

/* x[dim] to its place in the cache. By one warp. */
__device__ __forceinline__ void append_head(const KvPlane &p, int seq, int pos, int head,
                                            const float *x)
{
    uint8_t *page = kv_page(p, seq, pos);
    const int64_t row = kv_offset(p, head, pos);
    for (int i = threadIdx.x % 32; i < p.dim; i += 32) {
        if (p.type == TN_TYPE_F32)
            ((float *)page)[row + i] = x[i];
        else if (p.type == TN_TYPE_F16)
            ((half *)page)[row + i] = __float2half(x[i]);
        else {
            const half d = __float2half(warp_max(fabsf(x[i])) / 127.0f);
            const float step = __half2float(d);
            const int r = step > 0 ? __float2int_rn(x[i] / step) : 0;
            page[row + i] = (uint8_t)(r > 127 ? 127 : r < -127 ? -127 : r);
            if (i % 32 == 0) memcpy(kv_scales(p, page) + (row + i) / 32, &d, 2);
        }
    }
}

/* One warp a head of a token; heads of q come first, then k, then v. */
__global__ void __launch_bounds__(128) rope_heads(RopeArgs a)
{
    SHARED(float, heads, [4][256]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int h = (int)blockIdx.x * 4 + warp, n_q = a.q ? a.n_head : 0;
    const int64_t t = blockIdx.y;
    if (h >= a.heads) return;
    const bool is_q = h < n_q, is_v = !is_q && h >= n_q + a.n_head_kv;
    const int head = is_q ? h : is_v ? h - n_q - a.n_head_kv : h - n_q;
    const int dim = is_v ? a.vp.dim : a.kp.dim;
    float *x = (is_q   ? a.q + t * a.q_stride
                : is_v ? a.v + t * a.v_stride
                       : a.k + t * a.k_stride) +
               (int64_t)head * dim;
    float *out = heads[warp];
    const float *norm = is_q ? a.q_norm : is_v ? nullptr : a.k_norm;
    turn_head(out, x, dim, norm, a.eps, is_v ? TN_ROPE_NONE : a.style, a.n_rot,
              a.cs + t * (a.n_rot / 2) * 2);
    __syncwarp();
    if (is_q || !a.kp.pages)
        for (int i = lane; i < dim; i += 32)
            x[i] = out[i];
    else
        append_head(is_v ? a.vp : a.kp, a.seq ? a.seq[t] : 0, a.pos[t], head, out);
}

tn_status tn_cuda_rope_table(tn_stream *stream, float *cs, const int32_t *pos, int64_t n,
                             const float *inv_freq, int32_t n_rot, float magnitude)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    const int pairs = n_rot / 2;
    if (n < 1 || pairs < 1) return TN_EARG;
    LAUNCH(rope_table, (unsigned)((n * pairs + 127) / 128), 128, 0, s, cs, pos, inv_freq, pairs,
           magnitude, n);
    return tn_cuda_launched();
}

static bool valid(const tn_drope *a)
{
    const tn_dkv *kv = &a->kv;
    if (a->n < 1 || a->n > 65535 || (!a->q && !a->k) || !a->k != !a->v) return false;
    if (kv->head_dim_k < 1 || kv->head_dim_k > 256 || kv->head_dim_v < 1 || kv->head_dim_v > 256)
        return false;
    if (a->style != TN_ROPE_NONE &&
        (!a->cs || a->n_rot < 2 || a->n_rot % 2 || a->n_rot > kv->head_dim_k))
        return false;
    if (!kv->pages || !a->k) return true;
    return a->pos && kv->page_size >= 16 && !(kv->page_size & (kv->page_size - 1)) &&
           tn_cuda_kv_valid(kv->type, kv->head_dim_k, kv->head_dim_v);
}

tn_status tn_cuda_rope_append(tn_stream *stream, const tn_drope *a)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (!valid(a)) return TN_EARG;
    RopeArgs r = {};
    r.q = a->q, r.k = a->k, r.v = a->v;
    r.q_stride = a->q_stride, r.k_stride = a->k_stride, r.v_stride = a->v_stride;
    r.n_head = a->n_head, r.n_head_kv = a->kv.n_head_kv;
    r.q_norm = a->q_norm, r.k_norm = a->k_norm, r.eps = a->eps;
    r.style = a->style, r.n_rot = a->n_rot, r.cs = a->cs;
    r.kp = tn_cuda_kv_plane(a->kv, false), r.vp = tn_cuda_kv_plane(a->kv, true);
    r.pos = a->pos, r.seq = a->seq;
    /* Without a cache v has nothing to become. */
    r.heads = (a->q ? a->n_head : 0) + (a->k ? a->kv.n_head_kv * (a->kv.pages ? 2 : 1) : 0);
    LAUNCH(rope_heads, dim3((unsigned)((r.heads + 3) / 4), (unsigned)a->n), 128, 0, s, r);
    return tn_cuda_launched();
}
