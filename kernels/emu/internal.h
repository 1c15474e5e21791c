/* What the parts of the emulated device's runtime share. The runtime itself is never built with
 * -fsanitize=thread: its own accesses would look like races of the kernels'. */
#ifndef TN_EMU_INTERNAL_H
#define TN_EMU_INTERNAL_H

#include "cuda_emu.h"
#include "prim_emu.h"
#include "emu.h"

#ifdef __SANITIZE_ADDRESS__
#define TN_EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define TN_EMU_ASAN 0
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

/* Set by the build where kernels are compiled with -fsanitize=thread. Each thread of a block then
 * is a fiber to the sanitizer, ordered by barriers, __syncwarp, the start and the end of the
 * kernel. */
#ifdef TN_EMU_TSAN
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *sync);
void __tsan_release(void *sync);
}
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif

namespace emu
{

extern tn_emu_settings settings;
extern tn_emu_counters counters;

/* Like fail, for errors of host code: `what` is the call. */
[[noreturn]] void host_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Largest dynamic shared memory of a block, as on hardware of GPU_ARCH. */
const size_t SHARED_DEFAULT = 48 << 10;
const size_t SHARED_MAX = GPU_ARCH >= 900   ? 227 << 10
                          : GPU_ARCH == 860 ? 99 << 10
                          : GPU_ARCH == 890 ? 99 << 10
                          : GPU_ARCH >= 800 ? 163 << 10
                                            : 64 << 10;

/* The kernel whose thread is calling, or NULL. */
const char *running_kernel();
void run_kernel(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const call &c);

/* Copies a thread has still to wait for: at the start of a block, at the end of each thread. */
void copies_reset(int n_threads);
void copies_check(int thread);
/* Index of a thread in its block. */
int thread_index(const thread *t);

/* While at least one stream works, device memory can be accessed. */
void device_open();
void device_close();
/* Ends the process unless [p, p + bytes) lies in one live allocation of a device (`device`) or
 * outside of all devices' memory. */
void check_range(const void *p, size_t bytes, bool device, const char *what);
bool is_device(const void *p);
bool is_pinned(const void *p);
int device_of(const void *p);
int current_device();
bool peer_enabled(int device, int peer);
/* Ends the process while the calling thread records a graph: `what` may have to wait for streams,
 * or is not recorded, which is not what its caller wants. */
void not_while_recording(const char *what);
cudaError_t set_error(cudaError_t e);
/* stream.cpp. Ends the process if `what`, a call that waits for the device or may (-1: for all) and
 * that gives [p, p + bytes) back, if anything, meets a stream that still uses this memory or that
 * waits for the host. */
void check_wait(int device, const void *p, size_t bytes, const char *what);
/* stream.cpp. See tn_emu_control. */
void break_at(int device, uint64_t k);
bool is_broken(int device);

} // namespace emu

#endif
