/* The built-in prompt text: the first chapters of Alice's Adventures in Wonderland (1865). */
#ifndef TN_BENCH_TEXT_H
#define TN_BENCH_TEXT_H

#include <stdint.h>

extern const char tn_bench_text[];
extern const uint64_t tn_bench_text_len; /* bytes */

#endif
