/* Threads, warps and blocks of the emulated device, as a kernel's code needs them.
 * Only the holder of the device lock runs kernel code, so the running thread is a plain global. */
#ifndef TN_EMU_THREAD_H
#define TN_EMU_THREAD_H

#include "vector.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Functions that instrumented kernels inline but that are the emulator's own business. */
#ifdef __SANITIZE_THREAD__
#define TN_EMU_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define TN_EMU_UNSEEN
#endif

namespace emu
{

/* Where in the source a thread waits. A call's default arguments name the caller's line. */
struct site {
    const char *file;
    int line;
};
#define TN_EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct warp;
struct fiber;

enum waiting { NOT_WAITING, AT_BARRIER, AT_COLLECTIVE };

struct thread {
    uint3 id;
    int lane;
    struct warp *warp;
    struct fiber *fiber; /* once it has started */
    site at;             /* while waiting */
    void *arg;           /* of the collective */
    uint32_t mask;       /* of the collective */
    enum waiting waiting;
    bool started, done;
};

struct warp {
    uint32_t ready, live, arrived; /* bits of lanes */
    unsigned generation;           /* collectives so far */
    int first;                     /* index of lane 0 among the block's threads */
    struct thread *threads;        /* of the block */
    struct thread &lane(int l)
    {
        return threads[first + l];
    }
};

extern struct thread *current;
extern uint3 block_index;
extern dim3 block_dim, grid_dim;
extern unsigned char *dynamic_shared;

/* Ends the process, naming kernel, block and thread. */
[[noreturn]] void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

void block_barrier(site at);
/* Called by the last lane to arrive, for the whole warp; may touch every lane's arg. */
typedef void (*collective_fn)(struct warp &w, uint32_t mask);
/* Waits for all lanes of mask. fence: orders memory among them, as __syncwarp does. */
void collective(uint32_t mask, site at, void *arg, collective_fn fn, bool fence);

/* The block's variable `key`, filled with NaN when first asked for. */
void *shared_variable(const void *key, size_t bytes, const char *name);

TN_EMU_UNSEEN inline int lane()
{
    return current->lane;
}

const uint32_t FULL_WARP = 0xffffffffu;

} // namespace emu

#define threadIdx (emu::current->id)
#define blockIdx emu::block_index
#define blockDim emu::block_dim
#define gridDim emu::grid_dim
constexpr int warpSize = 32;

#define SHARED(type, name, dims)                                                                   \
    typedef type emu_type_##name dims;                                                             \
    static char emu_key_##name;                                                                    \
    emu_type_##name &name =                                                                        \
        *(emu_type_##name *)emu::shared_variable(&emu_key_##name, sizeof(emu_type_##name), #name)
#define SHARED_DYN(type, name) type *name = reinterpret_cast<type *>(emu::dynamic_shared)

inline void __syncthreads(TN_EMU_SITE)
{
    emu::block_barrier({file, line});
}
inline void __syncwarp(uint32_t mask = emu::FULL_WARP, TN_EMU_SITE)
{
    emu::collective(mask, {file, line}, nullptr, nullptr, true);
}

/* ---- shuffles and votes ---------------------------------------------------------------------- */

namespace emu
{

struct shuffle_arg {
    uint64_t value, result;
    int source; /* lane */
};
void shuffle_done(struct warp &w, uint32_t mask);

struct vote_arg {
    bool predicate;
    uint32_t ballot;
};
void vote_done(struct warp &w, uint32_t mask);

template <class V> TN_EMU_UNSEEN inline V shuffle(uint32_t mask, V v, int source, site at)
{
    static_assert(sizeof(V) <= 8, "a shuffle moves at most 8 bytes");
    shuffle_arg s = {0, 0, source};
    memcpy(&s.value, &v, sizeof v);
    collective(mask, at, &s, shuffle_done, false);
    memcpy(&v, &s.result, sizeof v);
    return v;
}
TN_EMU_UNSEEN inline uint32_t ballot(uint32_t mask, bool predicate, site at)
{
    vote_arg v = {predicate, 0};
    collective(mask, at, &v, vote_done, false);
    return v.ballot;
}

/* First lane of the group of `width` lanes that this lane belongs to. */
TN_EMU_UNSEEN inline int group(int width)
{
    if (width <= 0 || width > 32 || width & (width - 1)) fail("shuffle of width %d", width);
    return lane() & ~(width - 1);
}
TN_EMU_UNSEEN inline int source_up(int delta, int width)
{
    return lane() - delta >= group(width) ? lane() - delta : lane();
}
TN_EMU_UNSEEN inline int source_down(int delta, int width)
{
    return lane() + delta < group(width) + width ? lane() + delta : lane();
}
TN_EMU_UNSEEN inline int source_xor(int bits, int width)
{
    return (lane() ^ bits) < group(width) + width ? lane() ^ bits : lane();
}

} // namespace emu

template <class V> inline V __shfl_sync(uint32_t mask, V v, int source, int width = 32, TN_EMU_SITE)
{
    return emu::shuffle(mask, v, emu::group(width) + (source & (width - 1)), {file, line});
}
template <class V>
inline V __shfl_up_sync(uint32_t mask, V v, unsigned delta, int width = 32, TN_EMU_SITE)
{
    return emu::shuffle(mask, v, emu::source_up((int)delta, width), {file, line});
}
template <class V>
inline V __shfl_down_sync(uint32_t mask, V v, unsigned delta, int width = 32, TN_EMU_SITE)
{
    return emu::shuffle(mask, v, emu::source_down((int)delta, width), {file, line});
}
template <class V>
inline V __shfl_xor_sync(uint32_t mask, V v, int bits, int width = 32, TN_EMU_SITE)
{
    return emu::shuffle(mask, v, emu::source_xor(bits, width), {file, line});
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, TN_EMU_SITE)
{
    return emu::ballot(mask, predicate != 0, {file, line});
}
inline int __any_sync(uint32_t mask, int predicate, TN_EMU_SITE)
{
    return emu::ballot(mask, predicate != 0, {file, line}) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, TN_EMU_SITE)
{
    return emu::ballot(mask, predicate == 0, {file, line}) == 0;
}

#endif
