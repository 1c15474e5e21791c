#include "term.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t pending, n_signals;
static bool err_terminal, drawn;
static double last_drawn;
static const FILE *complained; /* about this one, once is enough */

/* A program that no longer listens can still be stopped: the third signal ends it at once. */
static void on_signal(int number)
{
    pending = number;
    if (++n_signals >= 3) _exit(TN_EXIT_SIGNAL + number);
}

void tn_bench_init(void)
{
    err_terminal = isatty(STDERR_FILENO);
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    a.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &a, NULL);
}

int tn_bench_signal(void)
{
    return pending;
}

bool tn_bench_cancel(void *user)
{
    (void)user;
    return pending != 0;
}

int tn_bench_exit_code(tn_status status)
{
    switch (status) {
    case TN_OK: return TN_EXIT_OK;
    case TN_EIO: return TN_EXIT_IO;
    case TN_ENOENT: return TN_EXIT_NOFILE;
    case TN_ENOMEM: return TN_EXIT_MEMORY;
    case TN_EARG: return TN_EXIT_USAGE;
    case TN_ECANCELED: return TN_EXIT_SIGNAL + (pending ? pending : SIGINT);
    case TN_EFORMAT:
    case TN_EUNSUPPORTED:
    case TN_EFULL: return TN_EXIT_MODEL;
    default: return TN_EXIT_INTERNAL;
    }
}

bool tn_bench_err_is_terminal(void)
{
    return err_terminal;
}

void tn_bench_progress_clear(void)
{
    if (drawn) fputs("\r\033[K", stderr);
    drawn = false;
}

void tn_bench_say(const char *fmt, ...)
{
    va_list ap;
    tn_bench_progress_clear();
    fputs("tenon-bench: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void tn_bench_progress(double done, double total, const char *what)
{
    enum { width = 24 };
    const double now = tn_bench_clock();
    if (!err_terminal || now - last_drawn < 0.1) return;
    last_drawn = now;
    const double part = total > 0 && done < total ? done / total : 1;
    const int filled = (int)(part * width);
    char left[32];
    fprintf(stderr, "\r[%.*s%*s] %3.0f %%, about %s left: %s\033[K", filled,
            "########################", width - filled, "", part * 100,
            tn_bench_duration(total - done, left), what);
    fflush(stderr);
    drawn = true;
}

int tn_bench_flush(FILE *f, const char *name)
{
    errno = 0;
    if (fflush(f) == 0 && !ferror(f)) return TN_EXIT_OK;
    if (f != complained) tn_bench_say("cannot write %s: %s", name, strerror(errno ? errno : EIO));
    complained = f;
    return TN_EXIT_IO;
}

const char *tn_bench_duration(double seconds, char text[32])
{
    const long s = seconds > 0 ? (long)(seconds + 0.5) : 0;
    if (s < 60)
        snprintf(text, 32, "%ld s", s);
    else if (s < 3600)
        snprintf(text, 32, "%ld min %02ld s", s / 60, s % 60);
    else
        snprintf(text, 32, "%ld h %02ld min", s / 3600, s % 3600 / 60);
    return text;
}

double tn_bench_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *require(void *p)
{
    if (p) return p;
    tn_bench_say("out of memory");
    exit(TN_EXIT_MEMORY);
}

void *tn_bench_alloc(size_t bytes)
{
    return require(calloc(1, bytes ? bytes : 1));
}

void *tn_bench_realloc(void *p, size_t bytes)
{
    return require(realloc(p, bytes ? bytes : 1));
}

char *tn_bench_strdup(const char *s)
{
    return require(strdup(s));
}
