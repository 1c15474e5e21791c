/* SHA-256 (FIPS 180-4) of files, so that a report says which model it is about. */
#ifndef TN_BENCH_SHA256_H
#define TN_BENCH_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tn_bench_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} tn_bench_sha256;

void tn_bench_sha256_init(tn_bench_sha256 *h);
void tn_bench_sha256_add(tn_bench_sha256 *h, const void *data, size_t n);
/* hex: 64 digits and a zero. h must not be used after it. */
void tn_bench_sha256_end(tn_bench_sha256 *h, char hex[65]);

/* False if the file cannot be read, or cancel() said so between two pieces. */
bool tn_bench_sha256_file(const char *path, bool (*cancel)(void *user), char hex[65]);

#endif
