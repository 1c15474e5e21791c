/* Standard output and error, terminal or not; signals; progress. The only mutable state of the
 * program that is not on the stack is here: what a signal handler must reach. */
#ifndef TN_CLI_TERM_H
#define TN_CLI_TERM_H

#include "../engine/tenon.h"

#include <stdio.h>

/* Once, first of all: signals are caught, a closed pipe is an error instead of a death. */
void tn_term_init(void);

/* The signal that asked to stop since the last clear, or 0. */
int tn_signal_pending(void);
void tn_signal_clear(void);
/* Waits until fd has something to read, or a signal came (any thread may have received it): look at
 * tn_signal_pending() and tn_signal_continued() before reading. */
void tn_input_wait(int fd);
/* Whether the program was stopped and continued (Ctrl-Z, fg) since the last call. */
bool tn_signal_continued(void);
/* tn_cancel_fn that answers tn_signal_pending(). */
bool tn_signal_cancel(void *user);

/* Writes to standard output: as it is into a pipe or file, with control characters made visible on
 * a terminal. False once anything could not be written. */
bool tn_out(const char *text, size_t len);
bool tn_outf(const char *fmt, ...) TN_PRINTF(1, 2);
bool tn_out_flush(void);
/* Flushes. TN_EXIT_OK, or TN_EXIT_IO after saying why on stderr. */
int tn_out_finish(void);
bool tn_out_is_terminal(void);
bool tn_err_is_terminal(void);

/* One line on stderr, "tenon: " before it. */
void tn_say(const char *fmt, ...) TN_PRINTF(1, 2);
/* One line on stderr as it is; dim on a terminal unless NO_COLOR. */
void tn_note(const char *fmt, ...) TN_PRINTF(1, 2);

/* Visible form of text for a terminal: C0 (but newline and tab), DEL, C1, bidi controls and bytes
 * that are no UTF-8 are spelled out. Calls put() with pieces. */
void tn_visible(const char *text, size_t len, void (*put)(void *user, const char *s, size_t n),
                void *user);

/* A progress bar on stderr, only if that is a terminal. tn_progress_fn; user = a tn_progress. */
typedef struct tn_progress {
    const char *label;
    double last; /* when it was drawn */
    bool drawn;
} tn_progress;
void tn_progress_draw(void *progress, uint64_t done, uint64_t total);
/* Makes way for a line of output; the bar comes back with what is drawn next. */
void tn_progress_hide(tn_progress *p);
void tn_progress_clear(tn_progress *p); /* at the end of the work */

/* Seconds on a monotonic clock. */
double tn_clock(void);
/* The whole of a file, "-" = standard input, plus a terminating zero; freed by the caller.
 * TN_EXIT_OK or an exit code after saying why. */
int tn_read_file(const char *path, char **text, size_t *len);
/* malloc and realloc that end the program with TN_EXIT_MEMORY. */
void *tn_malloc(size_t bytes);
void *tn_realloc(void *p, size_t bytes);

#endif
