/* Messages, progress, signals and the end of standard output: what is mutable and belongs to the
 * process as a whole. */
#ifndef TN_BENCH_TERM_H
#define TN_BENCH_TERM_H

#include "../engine/tenon.h"

#include <stdio.h>

/* Exit codes, those of sysexits.h where they fit. */
enum {
    TN_EXIT_OK = 0,
    TN_EXIT_SLOWER = 1, /* --compare found a regression */
    TN_EXIT_USAGE = 64,
    TN_EXIT_MODEL = 65, /* broken or unsupported model or input */
    TN_EXIT_NOFILE = 66,
    TN_EXIT_INTERNAL = 70,
    TN_EXIT_MEMORY = 71,
    TN_EXIT_IO = 74,
    TN_EXIT_SIGNAL = 128 /* + the signal's number */
};

/* Once, first of all: signals are caught, a closed pipe is an error instead of a death. */
void tn_bench_init(void);
/* The signal that asked to stop, or 0. */
int tn_bench_signal(void);
/* A tn_cancel_fn that answers tn_bench_signal(). */
bool tn_bench_cancel(void *user);
/* Exit code of a failed call of the library. */
int tn_bench_exit_code(tn_status status);

/* One line on stderr, "tenon-bench: " before it. Clears the progress line first. */
void tn_bench_say(const char *fmt, ...) TN_PRINTF(1, 2);
bool tn_bench_err_is_terminal(void);
/* Draws `done` of `total` seconds of expected work, only on a terminal; `what` runs now. */
void tn_bench_progress(double done, double total, const char *what);
void tn_bench_progress_clear(void);

/* Flushes f, which is `name`. TN_EXIT_OK, or TN_EXIT_IO after saying why. */
int tn_bench_flush(FILE *f, const char *name);
/* "3 s", "2 min 05 s", "1 h 20 min". Returns text. */
const char *tn_bench_duration(double seconds, char text[32]);
/* Seconds on a monotonic clock. */
double tn_bench_clock(void);
/* malloc, realloc, strdup that end the program with TN_EXIT_MEMORY. */
void *tn_bench_alloc(size_t bytes);
void *tn_bench_realloc(void *p, size_t bytes);
char *tn_bench_strdup(const char *s);

#endif
