/* Layers with experts: the choice, and the weighted sum of the chosen ones. */
#include "ops.h"

struct RouteArgs {
    const float *scores;
    int64_t scores_stride;
    int n_expert, used, gating;
    const float *bias;
    int renormalise;
    float scale;
    const int32_t *where;
    int32_t *expert, *chosen;
    float *weight;
};

enum { PER_LANE = 32 }; /* so many experts a lane at most */

/* What an expert is chosen by: gates never change the order, so without a bias it is the score. */
__device__ __forceinline__ float rank_of(const RouteArgs &a, float score, float gate, int e)
{
    const float v = a.bias ? gate + a.bias[e] : score;
    return v == v ? v : -INFINITY;
}

/* One warp a token. Lane l looks after the experts l, l + 32, ... */
__global__ void __launch_bounds__(32) route_tokens(RouteArgs a)
{
    const int lane = threadIdx.x, t = blockIdx.x;
    const float *scores = a.scores + t * a.scores_stride;
    float top = -INFINITY, all = 0, chosen_sum = 0;
    for (int e = lane; e < a.n_expert; e += 32)
        top = fmaxf(top, scores[e]);
    top = warp_max(top);
    const bool softmax = a.gating == TN_GATING_SOFTMAX;
    for (int e = lane; e < a.n_expert; e += 32)
        all += softmax ? expf(scores[e] - top) : 0;
    all = warp_sum(all);
    uint32_t taken = 0; /* of this lane's experts */
    for (int i = 0; i < a.used; i++) {
        float best = -INFINITY, best_gate = 0;
        int at = -1;
        for (int k = 0; k * 32 + lane < a.n_expert; k++) {
            const int e = k * 32 + lane;
            if (taken >> k & 1) continue;
            const float s = scores[e];
            const float gate = softmax ? expf(s - top) / all : 1.0f / (1.0f + expf(-s));
            const float rank = rank_of(a, s, gate, e);
            if (at >= 0 && !(rank > best)) continue;
            best = rank;
            best_gate = gate;
            at = k;
        }
        const float winner = warp_max(best);
        const bool here = at >= 0 && best == winner;
        const int e = (int)warp_min(here ? (float)(at * 32 + lane) : 1e9f);
        const bool mine = here && e == at * 32 + lane;
        const float gate = warp_sum(mine ? best_gate : 0);
        if (mine) taken |= 1u << at;
        chosen_sum += gate;
        if (lane) continue;
        a.weight[t * a.used + i] = gate;
        a.expert[t * a.used + i] = a.where ? a.where[e] : e;
        if (a.chosen) a.chosen[t * a.used + i] = e;
    }
    if (lane) return;
    for (int i = 0; i < a.used; i++)
        a.weight[t * a.used + i] *= a.renormalise ? a.scale / chosen_sum : a.scale;
}

__global__ void combine_rows(float *y, int64_t y_stride, const float *x, int64_t x_stride,
                             const int32_t *row_of, const float *weight, int used, int cols,
                             int add)
{
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    const int64_t t = blockIdx.y;
    if (c >= cols) return;
    float v = 0;
    for (int i = 0; i < used; i++) {
        const int64_t row = row_of ? row_of[t * used + i] : t * used + i;
        if (row >= 0) v += weight[t * used + i] * x[row * x_stride + c];
    }
    float *to = y + t * y_stride + c;
    *to = add ? *to + v : v;
}

tn_status tn_cuda_route(tn_stream *stream, const tn_droute *a)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (a->n < 1 || a->n_expert < 1 || a->n_expert > 32 * PER_LANE || a->used < 1 || a->used > 64 ||
        a->used > a->n_expert)
        return TN_EARG;
    const RouteArgs r = {a->scores,      a->scores_stride, a->n_expert,    a->used,
                         (int)a->gating, a->select_bias,   a->renormalise, a->scale,
                         a->where,       a->expert,        a->chosen,      a->weight};
    LAUNCH(route_tokens, (unsigned)a->n, 32, 0, s, r);
    return tn_cuda_launched();
}

tn_status tn_cuda_combine(tn_stream *stream, float *y, int64_t y_stride, const float *x,
                          int64_t x_stride, const int32_t *row_of, const float *weight,
                          int32_t used, int64_t n, int64_t cols, bool add)
{
    const cudaStream_t s = tn_cuda_stream(stream);
    if (n < 1 || n > 65535 || used < 1 || cols < 1 || cols > INT32_MAX / 2) return TN_EARG;
    LAUNCH(combine_rows, dim3((unsigned)((cols + 127) / 128), (unsigned)n), 128, 0, s, y, y_stride,
           x, x_stride, row_of, weight, (int)used, (int)cols, (int)add);
    return tn_cuda_launched();
}
