/* What the files of cases share. */
#ifndef EMU_BUGS_CASES_H
#define EMU_BUGS_CASES_H

#include "emu_bugs.h"

#include <unistd.h>

inline cudaStream_t s1, s2;

template <class T> inline T *device(size_t n)
{
    void *p = nullptr;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) _exit(99);
    return (T *)p;
}
template <class T> inline T *pinned(size_t n)
{
    void *p = nullptr;
    if (cudaHostAlloc(&p, n * sizeof(T), cudaHostAllocMapped) != cudaSuccess) _exit(99);
    memset(p, 0, n * sizeof(T));
    return (T *)p;
}
inline void up(void *to, const void *from, size_t bytes, cudaStream_t s = s1)
{
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s);
}
inline void down(void *to, const void *from, size_t bytes, cudaStream_t s = s1)
{
    cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s);
    cudaStreamSynchronize(s);
}
/* Whether n floats on the device are what f says. */
template <class F> inline bool holds(const float *p, int n, F f)
{
    float *h = pinned<float>((size_t)n);
    down(h, p, (size_t)n * sizeof(float));
    for (int i = 0; i < n; i++)
        if (!(h[i] == f(i))) return false;
    return true;
}

#define CASE(name)                                                                                 \
    {                                                                                              \
#name, name < false>, name < true>                                                         \
    }

#endif
