#include "sha256.h"

#include "term.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Fractional parts of the cube roots of the first 64 primes. */
static const uint32_t k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t turn(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void add_block(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        const uint32_t one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                             ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        const uint32_t two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                             ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

void tn_bench_sha256_init(tn_bench_sha256 *h)
{
    /* Fractional parts of the square roots of the first 8 primes. */
    *h = (tn_bench_sha256){.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
                                     0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

void tn_bench_sha256_add(tn_bench_sha256 *h, const void *data, size_t n)
{
    const uint8_t *p = data;
    while (n > 0) {
        const size_t held = h->bytes % 64, room = 64 - held, part = n < room ? n : room;
        if (part == 64) {
            add_block(h->state, p);
        } else {
            memcpy(h->block + held, p, part);
            if (part == room) add_block(h->state, h->block);
        }
        h->bytes += part;
        p += part;
        n -= part;
    }
}

void tn_bench_sha256_end(tn_bench_sha256 *h, char hex[65])
{
    const uint64_t bits = h->bytes * 8;
    const uint8_t one = 0x80, zero = 0;
    tn_bench_sha256_add(h, &one, 1);
    while (h->bytes % 64 != 56)
        tn_bench_sha256_add(h, &zero, 1);
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)(bits >> (56 - 8 * i));
    tn_bench_sha256_add(h, length, sizeof length);
    for (int i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08x", (unsigned)h->state[i]);
}

bool tn_bench_sha256_file(const char *path, bool (*cancel)(void *user), char hex[65])
{
    enum { piece = 1 << 20 };
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    tn_bench_sha256 h;
    tn_bench_sha256_init(&h);
    char *buffer = tn_bench_alloc(piece);
    ssize_t n = 0;
    bool stopped = false;
    while (!stopped && (n = read(fd, buffer, piece)) > 0) {
        tn_bench_sha256_add(&h, buffer, (size_t)n);
        stopped = cancel(NULL);
    }
    free(buffer);
    close(fd);
    tn_bench_sha256_end(&h, hex);
    return n == 0 && !stopped;
}
