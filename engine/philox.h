/* Internal: Philox4x32-10, the counter-based random generator of Salmon, Moraes, Dror and Shaw,
 * "Parallel random numbers: as easy as 1, 2, 3" (SC11). Pure integer arithmetic: the same numbers
 * on every machine. */
#ifndef TN_PHILOX_H
#define TN_PHILOX_H

#include <stdint.h>

/* out[4] = the block of counter ctr[4] under key[2]. */
static inline void tn_philox4x32(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Draw number `draw` of the stream `seed`: uniform in [0, 1), a multiple of 2^-53.
 * key = {low, high word of seed}, counter = {low, high word of draw, 0, 0}; the upper 53 bits of
 * out[1] * 2^32 + out[0]. */
static inline double tn_philox_uniform(uint64_t seed, uint64_t draw)
{
    const uint32_t ctr[4] = {(uint32_t)draw, (uint32_t)(draw >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];
    tn_philox4x32(ctr, key, out);
    return (double)(((uint64_t)out[1] << 32 | out[0]) >> 11) * (1.0 / 9007199254740992.0);
}

#endif
