/* Requests for cache lines, exactly where they are written: the compiler would move a prefetch of
 * its own and gather several, and many at once fill the queue of the first level, where loads wait
 * behind them. Addresses need not be valid. */
#ifndef TN_AVX_FETCH_H
#define TN_AVX_FETCH_H

#include <stdint.h>

/* Asks for the line at p, to the second level: measured, what lies in DRAM is read 10 % faster than
 * with requests to the first, and what lies in L3 as fast. */
static inline __attribute__((always_inline)) void fetch(const void *p)
{
    __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)p));
}

/* The same to the first level: fetch() brought it to the second, and while the queue to memory is
 * full of what is fetched, a load that waits for the second waits long. So does this, which comes
 * before fetch() therefore: measured, the other way round costs 3 to 6 %. */
static inline __attribute__((always_inline)) void fetch_near(const void *p)
{
    __asm__ volatile("prefetcht0 %0" : : "m"(*(const char *)p));
}

/* Brings [p + near, p + near + bytes) near, and asks for as much at p + far. */
static inline __attribute__((always_inline)) void fetch_stream(const void *p, int64_t bytes,
                                                               int64_t near, int64_t far)
{
    for (int64_t i = 0; i < bytes; i += 64) {
        fetch_near((const char *)p + i + near);
        fetch((const char *)p + i + far);
    }
}

#endif
