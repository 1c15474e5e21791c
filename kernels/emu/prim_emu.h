/* The portable twins of cuda/prim.h, which documents them. */
#ifndef TN_EMU_PRIM_H
#define TN_EMU_PRIM_H

#include "cuda_emu.h"

namespace emu
{

void sum_done(struct warp &w, uint32_t mask);
void sum_int_done(struct warp &w, uint32_t mask);
void max_done(struct warp &w, uint32_t mask);
void min_done(struct warp &w, uint32_t mask);

/* Reduction over groups of `width` lanes. */
struct reduce_arg {
    float v;
    int width;
};
TN_EMU_UNSEEN inline float reduce(float v, int width, collective_fn fn, site at)
{
    reduce_arg r = {v, width};
    collective(FULL_WARP, at, &r, fn, false);
    return r.v;
}
TN_EMU_UNSEEN inline int reduce(int v, collective_fn fn, site at)
{
    collective(FULL_WARP, at, &v, fn, false);
    return v;
}

struct mma_s8_arg {
    int *d;
    const int *a, *b;
};
void mma_s8_done(struct warp &w, uint32_t mask);
void mma_s8_small_done(struct warp &w, uint32_t mask);
struct mma_16_arg {
    float *d;
    const uint32_t *a, *b;
};
void mma_f16_done(struct warp &w, uint32_t mask);
void mma_f16_half_done(struct warp &w, uint32_t mask);

/* A copy that waits in its thread until it has to be there. */
struct later {
    void *to;
    const void *from;
    int group;
    bool valid; /* else zeros */
};
void copy_later(void *shared, const void *device, bool valid);
void copies_commit();
/* Takes the copies of all but the `newest` groups; the caller makes them. */
const later *copies_due(int newest, int *n);

/* Matrix `i` of an ldmatrix: each lane has given the address of its row. The reads are the kernel's
 * own, so that the sanitizers see them. */
struct ldmatrix_arg {
    const void *row;
    const void *rows[32];
};
void ldmatrix_done(struct warp &w, uint32_t mask);
template <int N, bool TRANS> inline void ldmatrix(uint32_t *r, const void *row, site at)
{
    ldmatrix_arg m;
    m.row = row;
    collective(FULL_WARP, at, &m, ldmatrix_done, false);
    for (int i = 0; i < N; i++) {
        uint16_t pair[2];
        for (int j = 0; j < 2; j++) {
            int q = lane() % 4 * 2 + j, g = lane() / 4, from = TRANS ? q : g, e = TRANS ? g : q;
            pair[j] = ((const uint16_t *)m.rows[8 * i + from])[e];
        }
        memcpy(&r[i], pair, sizeof r[i]);
    }
}

} // namespace emu

inline float warp_sum(float v, TN_EMU_SITE)
{
    return emu::reduce(v, 32, emu::sum_done, {file, line});
}
inline int warp_sum(int v, TN_EMU_SITE)
{
    return emu::reduce(v, emu::sum_int_done, {file, line});
}
inline float warp_max(float v, TN_EMU_SITE)
{
    return emu::reduce(v, 32, emu::max_done, {file, line});
}
inline float warp_min(float v, TN_EMU_SITE)
{
    return emu::reduce(v, 32, emu::min_done, {file, line});
}
template <int N> inline float group_sum(float v, TN_EMU_SITE)
{
    return emu::reduce(v, N, emu::sum_done, {file, line});
}
template <int N> inline float group_max(float v, TN_EMU_SITE)
{
    return emu::reduce(v, N, emu::max_done, {file, line});
}

inline void mma_m8n8k16_s8(int d[2], int a, int b, TN_EMU_SITE)
{
    emu::mma_s8_arg m = {d, &a, &b};
    emu::collective(emu::FULL_WARP, {file, line}, &m, emu::mma_s8_small_done, false);
}
inline void mma_m16n8k8_f16(float d[4], const uint32_t a[2], uint32_t b, TN_EMU_SITE)
{
    emu::mma_16_arg m = {d, a, &b};
    emu::collective(emu::FULL_WARP, {file, line}, &m, emu::mma_f16_half_done, false);
}
#if GPU_ARCH >= 800
inline void mma_m16n8k16_s8(int d[4], const int a[2], int b, TN_EMU_SITE)
{
    emu::mma_s8_arg m = {d, a, &b};
    emu::collective(emu::FULL_WARP, {file, line}, &m, emu::mma_s8_done, false);
}
inline void mma_m16n8k16_f16(float d[4], const uint32_t a[4], const uint32_t b[2], TN_EMU_SITE)
{
    emu::mma_16_arg m = {d, a, b};
    emu::collective(emu::FULL_WARP, {file, line}, &m, emu::mma_f16_done, false);
}
#endif

inline void ldmatrix_x4(uint32_t r[4], const void *row, TN_EMU_SITE)
{
    emu::ldmatrix<4, false>(r, row, {file, line});
}
inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, TN_EMU_SITE)
{
    emu::ldmatrix<4, true>(r, row, {file, line});
}
inline void ldmatrix_x2(uint32_t r[2], const void *row, TN_EMU_SITE)
{
    emu::ldmatrix<2, false>(r, row, {file, line});
}

inline void cp_async16(void *shared, const void *device, bool valid = true)
{
#if GPU_ARCH >= 800
    emu::copy_later(shared, device, valid);
#else
    *(int4 *)shared = valid ? *(const int4 *)device : make_int4(0, 0, 0, 0);
#endif
}
inline void cp_async_commit()
{
    emu::copies_commit();
}
template <int N> inline void cp_async_wait()
{
    int n;
    const emu::later *c = emu::copies_due(N, &n);
    for (int i = 0; i < n; i++)
        *(int4 *)c[i].to = c[i].valid ? *(const int4 *)c[i].from : make_int4(0, 0, 0, 0);
}

#endif
