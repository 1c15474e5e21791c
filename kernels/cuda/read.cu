/* Reading and nothing else: what the memory gives. */
#include "ops.h"

/* Blocks of a launch: enough loads in flight for any GPU, and few additions to the one sum. */
enum { read_threads = 256, read_blocks = 2048 };

__global__ void read_words(const uint4 *p, int64_t n, uint32_t *sum)
{
    SHARED(uint32_t, part, [read_threads / 32]);
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    uint32_t mine = 0;
#pragma unroll 4
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const uint4 v = p[i];
        mine += v.x + v.y + v.z + v.w;
    }
    mine = (uint32_t)warp_sum((int)mine);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < read_threads / 32; w++)
        mine += part[w];
    atomicAdd(sum, mine); /* one of a block: to one address they wait for each other */
}

tn_status tn_cuda_read(tn_stream *stream, const void *p, size_t bytes, uint32_t *sum)
{
    if (!p || !sum || bytes == 0 || bytes % 16 || (uintptr_t)p % 16) return TN_EARG;
    const int64_t n = (int64_t)(bytes / 16), most = read_blocks;
    const int64_t need = (n + read_threads - 1) / read_threads, grid = need < most ? need : most;
    LAUNCH(read_words, dim3((unsigned)grid), read_threads, 0, tn_cuda_stream(stream),
           (const uint4 *)p, n, sum);
    const tn_status status = tn_cuda_launched();
    return status ? status : tn_cuda_slow_read(stream, bytes);
}
