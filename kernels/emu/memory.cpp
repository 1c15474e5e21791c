/* Device memory: one reserved address range a device, accounting, protection from host code;
 * pinned host memory. */
#include "internal.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace emu
{

static const size_t ARENA_BYTES = (size_t)32 << 30; /* reserved, not used */
static const size_t PAGE = 4096, ALIGN = 512, GAP_BYTES = 512, SLACK_BYTES = 1 << 20;

struct arena {
    char *base;
    size_t used;                        /* bytes allocated, rounded up to ALIGN each */
    size_t reached;                     /* what has ever been in use; beyond it nothing is mapped */
    std::map<char *, size_t> allocated; /* address, bytes */
};
static arena arenas[TN_EMU_DEVICES];
static std::map<char *, size_t> pinned;
static std::set<std::pair<int, int>> peers;
static std::mutex lock;
static int n_open; /* streams at work */
static thread_local int device_now;
static thread_local cudaError_t last_error;

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) & ~(to - 1);
}

int current_device()
{
    return device_now;
}
cudaError_t set_error(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}

/* ---- protection ------------------------------------------------------------------------------ */

int device_of(const void *p)
{
    for (int d = 0; d < TN_EMU_DEVICES; d++) {
        const char *base = arenas[d].base;
        if (base && (const char *)p >= base && (const char *)p < base + ARENA_BYTES) return d;
    }
    return -1;
}
bool is_device(const void *p)
{
    return device_of(p) >= 0;
}

/* Says what happened; the access then faults again and ends the process where a debugger sees it.
 */
static void on_fault(int number, siginfo_t *info, void *)
{
    static const char text[] =
        "EMU ERROR: access to device memory by host code, or to memory that is not allocated\n";
    if (is_device(info->si_addr)) (void)!write(2, text, sizeof text - 1);
    signal(number, SIG_DFL);
}

static void protect(int access)
{
    for (arena &a : arenas)
        if (a.reached) mprotect(a.base, a.reached, access);
}
void device_open()
{
    std::lock_guard<std::mutex> hold(lock);
    if (n_open++ == 0 && settings.protect) protect(PROT_READ | PROT_WRITE);
}
void device_close()
{
    std::lock_guard<std::mutex> hold(lock);
    if (--n_open == 0 && settings.protect) protect(PROT_NONE);
}

static bool arena_make(arena &a)
{
    if (a.base) return true;
    void *p =
        mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
    a.base = (char *)p;
    return true;
}

/* Maps the arena up to `end`. Everything new is poisoned until it is allocated. */
static void arena_reach(arena &a, size_t end)
{
    end = round_up(end + SLACK_BYTES, PAGE);
    if (end <= a.reached) return;
    mprotect(a.base + a.reached, end - a.reached,
             settings.protect && !n_open ? PROT_NONE : PROT_READ | PROT_WRITE);
    ASAN_POISON_MEMORY_REGION(a.base + a.reached, end - a.reached);
    a.reached = end;
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* The live allocation that p lies in or just behind. */
static const std::pair<char *const, size_t> *find(const arena &a, const void *p)
{
    auto it = a.allocated.upper_bound((char *)p);
    if (it == a.allocated.begin()) return nullptr;
    --it;
    return (const char *)p <= it->first + it->second ? &*it : nullptr;
}

void check_range(const void *p, size_t bytes, bool device, const char *what)
{
    std::lock_guard<std::mutex> hold(lock);
    int d = device_of(p);
    if ((d >= 0) != device)
        host_error("%s: %p is a %s pointer", what, p, d >= 0 ? "device" : "host");
    if (d < 0) return;
    auto *at = find(arenas[d], p);
    if (!at) host_error("%s: %p is not allocated", what, p);
    if ((const char *)p + bytes > at->first + at->second)
        host_error("%s: %zu bytes at offset %zd run over an allocation of %zu", what, bytes,
                   (const char *)p - at->first, at->second);
}

static bool pinned_locked(const void *p)
{
    auto it = pinned.upper_bound((char *)p);
    if (it == pinned.begin()) return false;
    --it;
    return (const char *)p < it->first + it->second;
}
bool is_pinned(const void *p)
{
    std::lock_guard<std::mutex> hold(lock);
    return pinned_locked(p);
}
bool peer_enabled(int device, int peer)
{
    std::lock_guard<std::mutex> hold(lock);
    return device == peer || peers.count({device, peer});
}

void check_pointer(const void *p, const char *kernel, int argument)
{
    if (!p) return;
    std::lock_guard<std::mutex> hold(lock);
    int d = device_of(p);
    if (d < 0) {
        if (!pinned_locked(p))
            host_error("kernel %s, argument %d: %p is pageable host memory", kernel, argument, p);
        return;
    }
    if (!find(arenas[d], p))
        host_error("kernel %s, argument %d: %p is not in a live allocation", kernel, argument, p);
    if (d != device_now && !peers.count({device_now, d}))
        host_error("kernel %s on device %d, argument %d: %p belongs to device %d", kernel,
                   device_now, argument, p, d);
}

void check_words(const uint64_t *words, size_t n, const char *kernel, int argument)
{
    for (size_t i = 0; i < n; i++) {
        const void *p = (const void *)(uintptr_t)words[i];
        if (is_device(p)) check_pointer(p, kernel, argument);
    }
}

} // namespace emu

using namespace emu;

/* ---- devices --------------------------------------------------------------------------------- */

cudaError_t cudaGetLastError()
{
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError()
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorPeerAccessAlreadyEnabled: return "cudaErrorPeerAccessAlreadyEnabled";
    case cudaErrorHostMemoryAlreadyRegistered: return "cudaErrorHostMemoryAlreadyRegistered";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    }
    return "unknown error";
}
const char *cudaGetErrorString(cudaError_t e)
{
    return cudaGetErrorName(e);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    return cudaDriverGetVersion(version);
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = settings.devices;
    return *n > 0 ? cudaSuccess : set_error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= settings.devices) return set_error(cudaErrorInvalidDevice);
    device_now = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device)
{
    *device = device_now;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    if (device < 0 || device >= settings.devices) return set_error(cudaErrorInvalidDevice);
    *p = cudaDeviceProp();
    strcpy(p->name, "emulated CUDA device");
    p->totalGlobalMem = settings.memory_bytes;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    p->major = GPU_ARCH / 100;
    p->minor = GPU_ARCH / 10 % 10;
    p->multiProcessorCount = 1;
    p->canMapHostMemory = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr a, int)
{
    *value = a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)SHARED_MAX : 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = settings.peers && device != peer;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned)
{
    if (!settings.peers || peer == device_now) return set_error(cudaErrorInvalidDevice);
    std::lock_guard<std::mutex> hold(lock);
    return peers.insert({device_now, peer}).second ? cudaSuccess
                                                   : set_error(cudaErrorPeerAccessAlreadyEnabled);
}

/* ---- allocation ------------------------------------------------------------------------------ */

/* First fit, with a gap between allocations. */
static char *place(const arena &a, size_t need)
{
    char *at = a.base;
    for (auto &other : a.allocated) {
        if ((size_t)(other.first - at) >= need + GAP_BYTES) break;
        at = other.first + round_up(other.second, ALIGN) + GAP_BYTES;
    }
    return at;
}

/* NaN, for what has no value yet or no more. */
static void fill(char *at, size_t bytes)
{
    char *lo = (char *)((uintptr_t)at & ~(uintptr_t)(PAGE - 1));
    size_t pages = round_up((size_t)(at - lo) + bytes, PAGE);
    mprotect(lo, pages, PROT_READ | PROT_WRITE);
    memset(at, 0xff, bytes);
    if (settings.protect && !n_open) mprotect(lo, pages, PROT_NONE);
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    not_while_recording("cudaMalloc");
    check_wait(device_now, nullptr, 0, "cudaMalloc");
    std::lock_guard<std::mutex> hold(lock);
    arena &a = arenas[device_now];
    size_t need = round_up(bytes ? bytes : 1, ALIGN);
    if (!arena_make(a) || need < bytes || need > settings.memory_bytes ||
        a.used > settings.memory_bytes - need)
        return set_error(cudaErrorMemoryAllocation);
    char *at = place(a, need);
    if ((size_t)(at - a.base) + need + SLACK_BYTES > ARENA_BYTES - PAGE)
        return set_error(cudaErrorMemoryAllocation);
    arena_reach(a, (size_t)(at - a.base) + need);
    a.allocated[at] = bytes;
    a.used += need;
    ASAN_UNPOISON_MEMORY_REGION(at, bytes);
    if (settings.poison) fill(at, bytes);
    *p = at;
    return cudaSuccess;
}

/* Before `what` gives memory back: of a device, or pinned (-1). */
static void wait_for_streams(int device, const void *p, const char *what)
{
    not_while_recording(what);
    size_t bytes = 0; /* of what is not allocated, which is an error of its own */
    {
        std::lock_guard<std::mutex> hold(lock);
        const auto &all = device < 0 ? pinned : arenas[device].allocated;
        auto it = all.find((char *)p);
        if (it != all.end()) bytes = it->second;
    }
    check_wait(device, p, bytes, what);
    cudaDeviceSynchronize();
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    wait_for_streams(device_of(p), p, "cudaFree");
    std::lock_guard<std::mutex> hold(lock);
    int d = device_of(p);
    if (d < 0) host_error("cudaFree: %p is a host pointer", p);
    auto it = arenas[d].allocated.find((char *)p);
    if (it == arenas[d].allocated.end()) host_error("cudaFree: %p is not allocated", p);
    if (settings.poison) fill((char *)p, it->second);
    ASAN_POISON_MEMORY_REGION(p, it->second);
    arenas[d].used -= round_up(it->second ? it->second : 1, ALIGN);
    arenas[d].allocated.erase(it);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    std::lock_guard<std::mutex> hold(lock);
    *total = settings.memory_bytes;
    *free = *total > arenas[device_now].used ? *total - arenas[device_now].used : 0;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    not_while_recording("cudaHostAlloc");
    check_wait(-1, nullptr, 0, "cudaHostAlloc");
    if (posix_memalign(p, PAGE, bytes ? bytes : 1)) return set_error(cudaErrorMemoryAllocation);
    if (settings.poison) memset(*p, 0xff, bytes);
    std::lock_guard<std::mutex> hold(lock);
    pinned[(char *)*p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p)
{
    if (!p) return cudaSuccess;
    wait_for_streams(-1, p, "cudaFreeHost");
    std::lock_guard<std::mutex> hold(lock);
    if (!pinned.erase((char *)p)) host_error("cudaFreeHost: %p was not allocated by it", p);
    free(p);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    not_while_recording("cudaHostRegister");
    check_wait(-1, nullptr, 0, "cudaHostRegister");
    std::lock_guard<std::mutex> hold(lock);
    if (pinned_locked(p)) return set_error(cudaErrorHostMemoryAlreadyRegistered);
    pinned[(char *)p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p)
{
    wait_for_streams(-1, p, "cudaHostUnregister");
    std::lock_guard<std::mutex> hold(lock);
    if (!pinned.erase((char *)p)) host_error("cudaHostUnregister: %p is not registered", p);
    return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    if (!is_pinned(host)) return set_error(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}
