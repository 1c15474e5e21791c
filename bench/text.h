/* The built-in prompt text: the first chapters of Alice's Adventures in Wonderland (1865). */
#ifndef TN_BENCH_TEXT_H
#define TN_BENCH_TEXT_H

extern const char tn_bench_text[], tn_bench_text_end[];

#endif
