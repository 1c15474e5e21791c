/* Kernel launches: arguments are converted to the parameters' types and checked at once. */
#ifndef TN_EMU_LAUNCH_H
#define TN_EMU_LAUNCH_H

#include "cuda_api.h"
#include "thread.h"

#include <memory>
#include <tuple>
#include <type_traits>

namespace emu
{

/* A launched kernel's arguments. Owned by the queue; freed by the runtime. They are checked when
 * the kernel is launched, and again in each launch of a graph that holds it. */
struct call {
    virtual void run() const = 0; /* in one thread of the device */
    virtual void check(const char *name) const = 0;
    virtual const void *kernel() const = 0;
    /* Whether an argument, or a word of one, points into [p, p + bytes). */
    virtual bool names(const void *p, size_t bytes) const = 0;
    virtual ~call() {}
};

/* Queues the kernel; the reasons for which a launch fails are reported by cudaGetLastError. */
void enqueue_kernel(cudaStream_t s, const char *name, dim3 grid, dim3 block, size_t shared_bytes,
                    call *c);
/* A pointer argument lies in a live device allocation or in pinned memory, or the process ends. */
void check_pointer(const void *p, const char *kernel, int argument);
/* So does every pointer to device memory among the words of a struct; words that are none of these,
 * such as pointers to host memory, cannot be told from numbers. */
void check_words(const uint64_t *words, size_t n, const char *kernel, int argument);

/* Calls f(words, n) with the 8-byte words of a struct that may hold pointers. Between its members
 * may lie what was on the stack before, and that may look like a pointer: it is cleared where the
 * compiler can do that, else structs are not looked at. */
template <class V, class F> inline void with_words(const V &v, F f)
{
#ifdef __has_builtin
#if __has_builtin(__builtin_clear_padding)
    if constexpr (std::is_class<V>::value && alignof(V) >= alignof(void *)) {
        static_assert(std::is_trivially_copyable<V>::value, "kernels take plain structs");
        V copy;
        uint64_t words[sizeof(V) / sizeof(uint64_t)];
        memcpy(&copy, &v, sizeof v); /* in full, however structs are copied */
        __builtin_clear_padding(&copy);
        memcpy(words, &copy, sizeof words);
        f(words, sizeof words / sizeof *words);
    }
#endif
#endif
}

template <class V> inline void check_argument(const V &v, const char *kernel, int i)
{
    if constexpr (std::is_pointer<V>::value) check_pointer((const void *)v, kernel, i);
    with_words(v, [=](const uint64_t *words, size_t n) { check_words(words, n, kernel, i); });
}

inline bool lies_in(uintptr_t at, const void *p, size_t bytes)
{
    return at >= (uintptr_t)p && at < (uintptr_t)p + bytes;
}

template <class V> inline bool points_into(const V &v, const void *p, size_t bytes)
{
    bool found = false;
    if constexpr (std::is_pointer<V>::value) found = lies_in((uintptr_t)v, p, bytes);
    with_words(v, [&](const uint64_t *words, size_t n) {
        for (size_t i = 0; i < n; i++)
            found = found || lies_in(words[i], p, bytes);
    });
    return found;
}

template <class... P> struct call_of : call {
    void (*fn)(P...);
    std::tuple<P...> args;
    template <class... A> call_of(void (*f)(P...), A &&...a) : fn(f), args(static_cast<P>(a)...) {}
    TN_EMU_UNSEEN void run() const override
    {
        std::apply(fn, args);
    }
    void check(const char *name) const override
    {
        int i = 0;
        std::apply([&](auto &...v) { (check_argument(v, name, i++), ...); }, args);
    }
    const void *kernel() const override
    {
        return (const void *)fn;
    }
    bool names(const void *p, size_t bytes) const override
    {
        return std::apply([=](auto &...v) { return (points_into(v, p, bytes) || ...); }, args);
    }
};

template <class... P, class... A>
inline void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
                   size_t shared_bytes, cudaStream_t s, A &&...a)
{
    static_assert(sizeof...(P) == sizeof...(A), "wrong number of kernel arguments");
    auto *c = new call_of<P...>(kernel, a...);
    c->check(name);
    enqueue_kernel(s, name, grid, block, shared_bytes, c);
}

template <class F> inline cudaError_t allow_shared(F *kernel, size_t bytes)
{
    return emu_func_set_attribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes);
}

} // namespace emu

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                     \
    emu::launch(#kernel, kernel, (grid), (block), (shared_bytes), (stream), __VA_ARGS__)
#define KERNEL(...) (__VA_ARGS__)
#define GPU_ALLOW_SHARED(kernel, bytes) emu::allow_shared(kernel, (bytes))

#endif
