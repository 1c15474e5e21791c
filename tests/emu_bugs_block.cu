/* Bugs of device code within a block, each beside its correct form: the emulated device's own test.
 *
 * Case n with BUG must be noticed in the modes that emu_bugs.cpp lists for it, without BUG it must
 * be silent in all. A case returns whether its result is right. */
#include "emu_bugs_cases.h"

template <bool BUG> __global__ void exchange(float *out)
{
    SHARED(float, s, [64]);
    s[threadIdx.x] = (float)threadIdx.x;
    if (!BUG) __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
template <bool BUG> static bool barrier_missing()
{
    float *d = device<float>(64);
    LAUNCH(exchange<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int i) { return 63.0f - (float)i; });
}

template <bool BUG> __global__ void tiles(float *out)
{
    SHARED(float, s, [64]);
    float a = 0;
    for (int t = 0; t < 4; t++) {
        s[threadIdx.x] = (float)(t * 64 + (int)threadIdx.x);
        __syncthreads();
        a += s[63 - threadIdx.x];
        if (!BUG) __syncthreads();
    }
    out[threadIdx.x] = a;
}
template <bool BUG> static bool barrier_after_missing()
{
    float *d = device<float>(64);
    LAUNCH(tiles<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int i) { return 4.0f * (63.0f - (float)i) + 64 * 6; });
}

template <bool BUG> __global__ void two_barriers(float *out)
{
    if (BUG && threadIdx.x < 32) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 1;
        __syncthreads();
    }
}
template <bool BUG> static bool barrier_divergent()
{
    float *d = device<float>(64);
    LAUNCH(two_barriers<BUG>, 1, 64, 0, s1, d);
    return holds(d, BUG ? 0 : 64, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void leaves(float *out, int n)
{
    if (BUG && (int)threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
template <bool BUG> static bool exit_before_barrier()
{
    float *d = device<float>(64);
    LAUNCH(leaves<BUG>, 1, 64, 0, s1, d, 40);
    return holds(d, BUG ? 40 : 64, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void one_past(float *out)
{
    out[threadIdx.x + (BUG && threadIdx.x == 63 ? 1 : 0)] = 1;
}
template <bool BUG> static bool global_overrun()
{
    float *d = device<float>(64);
    LAUNCH(one_past<BUG>, 1, 64, 0, s1, d);
    return holds(d, 63, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void shared_past(float *out)
{
    SHARED(float, s, [64]);
    s[threadIdx.x + (BUG ? 1 : 0)] = 1;
    __syncthreads();
    if (threadIdx.x) out[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> static bool shared_overrun()
{
    float *d = device<float>(64);
    LAUNCH(shared_past<BUG>, 1, 64, 0, s1, d);
    return holds(d + 1, 63, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void count(float *out)
{
    if (threadIdx.x) return;
    if (BUG)
        *out += 1;
    else
        atomicAdd(out, 1.0f);
}
template <bool BUG> static bool race_of_blocks()
{
    float *d = device<float>(64);
    cudaMemsetAsync(d, 0, 64 * sizeof(float), s1);
    LAUNCH(count<BUG>, 4, 32, 0, s1, d);
    return holds(d, 1, [](int) { return 4.0f; });
}

/* Barriers order the threads of a block, not blocks. */
template <bool BUG> __global__ void count_synced(float *out)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        if (BUG)
            *out += 1;
        else
            atomicAdd(out, 1.0f);
    }
    __syncthreads();
}
template <bool BUG> static bool race_of_synced_blocks()
{
    float *d = device<float>(64);
    cudaMemsetAsync(d, 0, 64 * sizeof(float), s1);
    LAUNCH(count_synced<BUG>, 4, 64, 0, s1, d);
    return holds(d, 1, [](int) { return 4.0f; });
}

template <bool BUG> __global__ void half_filled(float *out)
{
    SHARED(float, s, [64]);
    if (!BUG || threadIdx.x < 63) s[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
template <bool BUG> static bool shared_uninitialised()
{
    float *d = device<float>(64);
    LAUNCH(half_filled<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int) { return 1.0f; });
}

/* What nobody has written would do if it were zero: it is not. */
template <bool BUG> __device__ void sum_first(float *s, float *out)
{
    if (!BUG || threadIdx.x < 60) s[threadIdx.x] = threadIdx.x < 60 ? 1.0f : 0.0f;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < 64; i++)
        sum += s[i];
    out[threadIdx.x] = sum;
}
template <bool BUG> __global__ void sum_shared(float *out)
{
    SHARED(float, s, [64]);
    sum_first<BUG>(s, out);
}
template <bool BUG> __global__ void sum_dynamic(float *out)
{
    SHARED_DYN(float, s);
    sum_first<BUG>(s, out);
}
template <bool BUG> static bool shared_taken_for_zero()
{
    float *d = device<float>(64);
    LAUNCH(sum_shared<BUG>, 1, 64, 0, s1, d);
    return holds(d, 64, [](int) { return 60.0f; });
}
template <bool BUG> static bool dynamic_taken_for_zero()
{
    float *d = device<float>(64);
    LAUNCH(sum_dynamic<BUG>, 1, 64, 64 * sizeof(float), s1, d);
    return holds(d, 64, [](int) { return 60.0f; });
}
template <bool BUG> static bool device_taken_for_zero()
{
    float *d = device<float>(64);
    if (!BUG) cudaMemsetAsync(d, 0, 64 * sizeof(float), s1);
    LAUNCH(count<false>, 4, 32, 0, s1, d);
    return holds(d, 1, [](int) { return 4.0f; });
}
template <bool BUG> static bool pinned_taken_for_zero()
{
    void *p = nullptr;
    float *d = device<float>(64);
    if (cudaHostAlloc(&p, 64 * sizeof(float), cudaHostAllocMapped) != cudaSuccess) _exit(99);
    if (!BUG) memset(p, 0, 64 * sizeof(float));
    up(d, p, 64 * sizeof(float));
    return holds(d, 64, [](int) { return 0.0f; });
}

template <bool BUG> __global__ void half_warp(float *out)
{
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16) v += __shfl_xor_sync(BUG ? 0xffffffffu : 0xffffu, v, 1);
    out[threadIdx.x] = v;
}
template <bool BUG> static bool shuffle_without_lanes()
{
    float *d = device<float>(32);
    LAUNCH(half_warp<BUG>, 1, 32, 0, s1, d);
    return holds(d, 32, [](int i) { return i < 16 ? (float)(i + (i ^ 1)) : (float)i; });
}

template <bool BUG> __global__ void absent_source(float *out)
{
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16) v += __shfl_down_sync(0xffffu, v, 8, BUG ? 32 : 16);
    out[threadIdx.x] = v;
}
template <bool BUG> static bool shuffle_from_outside()
{
    float *d = device<float>(32);
    LAUNCH(absent_source<BUG>, 1, 32, 0, s1, d);
    return holds(d, 16, [](int i) { return (float)(i + (i < 8 ? i + 8 : i)); });
}

template <bool BUG> __global__ void shuffle_orders(float *out)
{
    SHARED(float, s, [32]);
    s[threadIdx.x] = (float)threadIdx.x;
    float one = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    if (!BUG) __syncwarp();
    out[threadIdx.x] = s[31 - threadIdx.x] + one;
}
template <bool BUG> static bool syncwarp_missing()
{
    float *d = device<float>(32);
    LAUNCH(shuffle_orders<BUG>, 1, 32, 0, s1, d);
    return holds(d, 32, [](int i) { return 32.0f - (float)i; });
}

template <bool BUG> __global__ void dynamic_past(float *out)
{
    SHARED_DYN(float, s);
    s[threadIdx.x + (BUG ? 64 : 0)] = 1;
    out[threadIdx.x] = 1;
}
template <bool BUG> static bool dynamic_overrun()
{
    float *d = device<float>(64);
    LAUNCH(dynamic_past<BUG>, 1, 64, 64 * sizeof(float), s1, d);
    return holds(d, 64, [](int) { return 1.0f; });
}

template <bool BUG> static bool shared_not_allowed()
{
    float *d = device<float>(64);
    if (!BUG) GPU_ALLOW_SHARED(dynamic_past<false>, 64 << 10);
    LAUNCH(dynamic_past<false>, 1, 64, 64 << 10, s1, d);
    return holds(d, 64, [](int) { return 1.0f; });
}

template <bool BUG> __global__ void half_sum(const float *x, float *out, int n)
{
    float f = 0;
    half h = __float2half(0.0f);
    for (int i = 0; i < n; i++) {
        f += x[i];
        h = __hadd(h, __float2half(x[i]));
    }
    *out = BUG ? __half2float(h) : f;
}
template <bool BUG> static bool half_overflow()
{
    float *d = device<float>(5), *h = pinned<float>(4);
    for (int i = 0; i < 4; i++)
        h[i] = 20000;
    up(d, h, 4 * sizeof(float));
    LAUNCH(half_sum<BUG>, 1, 1, 0, s1, d, d + 4, 4);
    return holds(d + 4, 1, [](int) { return 80000.0f; });
}

template <bool BUG> __global__ void copy_through(const float *x, float *out)
{
    SHARED(__align__(16) float, s, [128]);
    cp_async16(&s[4 * threadIdx.x], x + 4 * threadIdx.x);
    cp_async_commit();
    if (!BUG) cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++)
        out[4 * threadIdx.x + i] = s[127 - 4 * threadIdx.x - i];
    cp_async_wait<0>();
}
template <bool BUG> static bool async_copy_early()
{
    float *d = device<float>(256), *h = pinned<float>(128);
    for (int i = 0; i < 128; i++)
        h[i] = (float)i;
    up(d, h, 128 * sizeof(float));
    LAUNCH(copy_through<BUG>, 1, 32, 0, s1, d, d + 128);
    return holds(d + 128, 128, [](int i) { return 127.0f - (float)i; });
}

template <bool BUG> __global__ void copy_lost(const float *x, float *out)
{
    SHARED(__align__(16) float, s, [128]);
    cp_async16(&s[4 * threadIdx.x], x + 4 * threadIdx.x);
    cp_async_commit();
    if (!BUG) cp_async_wait<0>();
    out[threadIdx.x] = 1;
}
template <bool BUG> static bool async_copy_never_awaited()
{
    float *d = device<float>(256);
    LAUNCH(copy_lost<BUG>, 1, 32, 0, s1, d, d + 128);
    return holds(d + 128, 32, [](int) { return 1.0f; });
}

/* A GPU reads 16 bytes at once only where they are aligned to as many. */
template <bool BUG> __global__ void wide_loads(const float *x, float *out)
{
    const float4 v = *(const float4 *)(x + 4 * threadIdx.x + (BUG ? 1 : 0));
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
template <bool BUG> static bool load_misaligned()
{
    float *d = device<float>(256), *h = pinned<float>(160);
    for (int i = 0; i < 160; i++)
        h[i] = (float)i;
    up(d, h, 160 * sizeof(float));
    LAUNCH(wide_loads<BUG>, 1, 32, 0, s1, d, d + 192);
    return holds(d + 192, 32, [](int i) { return 16.0f * (float)i + (BUG ? 10 : 6); });
}

/* What is put together from the products that older hardware has is what newer hardware computes.
 * The bug: rows 8 to 15 and the second half of the columns change places. */
template <bool BUG> __global__ void products(int *out)
{
    const int l = (int)threadIdx.x, x = BUG ? 2 : 1;
    int a[2], b = (int)((uint32_t)l * 0x07050301u - 0x21436587u), d[8];
    uint32_t fa[4], fb[2];
    float f[8] = {};
    for (int i = 0; i < 4; i++)
        fa[i] = 0x3c003800u + (uint32_t)(l * 64 + i * 4096);
    for (int i = 0; i < 2; i++) {
        a[i] = (int)((uint32_t)l * 0x01030507u + (uint32_t)i * 0x11213141u);
        fb[i] = 0x38003c00u + (uint32_t)(l * 32 + i * 8192);
    }
    const int other[2] = {a[BUG ? 1 : 0], a[BUG ? 0 : 1]};
    const uint32_t fother[4] = {fa[0], fa[x], fa[3 - x], fa[3]};
    mma_m16n8k16_f16(f, fa, fb);
    mma_m16n8k16_f16_parts(f + 4, fother, fb);
    for (int i = 0; i < 8; i++)
        d[i] = i;
    mma_m16n8k16_s8(d, a, b);
    mma_m16n8k16_s8_parts(d + 4, other, b);
    for (int i = 0; i < 4; i++) {
        out[8 * l + i] = f[i] == f[i + 4] && f[i] != 0;
        out[8 * l + 4 + i] = d[i] == d[i + 4] - 4;
    }
}
template <bool BUG> static bool products_in_parts()
{
    int *d = device<int>(256), *h = pinned<int>(256);
    LAUNCH(products<BUG>, 1, 32, 0, s1, d);
    down(h, d, 256 * sizeof(int));
    for (int i = 0; i < 256; i++)
        if (!h[i]) return false;
    return true;
}

const struct emu_case emu_block_cases[] = {
    CASE(barrier_missing),
    CASE(barrier_after_missing),
    CASE(barrier_divergent),
    CASE(exit_before_barrier),
    CASE(global_overrun),
    CASE(shared_overrun),
    CASE(race_of_blocks),
    CASE(race_of_synced_blocks),
    CASE(shared_uninitialised),
    CASE(shared_taken_for_zero),
    CASE(dynamic_taken_for_zero),
    CASE(device_taken_for_zero),
    CASE(pinned_taken_for_zero),
    CASE(shuffle_without_lanes),
    CASE(shuffle_from_outside),
    CASE(syncwarp_missing),
    CASE(dynamic_overrun),
    CASE(shared_not_allowed),
    CASE(half_overflow),
    CASE(products_in_parts),
    CASE(async_copy_early),
    CASE(async_copy_never_awaited),
    CASE(load_misaligned),
    {nullptr, nullptr, nullptr}};
