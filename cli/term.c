#include "term.h"

#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t pending, n_signals, continued;
static int wake = -1; /* eventfd a handler writes to, so that tn_input_wait() returns */
static int out_errno; /* first failure of standard output */
static bool out_reported, out_terminal, err_terminal;

static void wake_up(void)
{
    const int code = errno;
    const uint64_t one = 1;
    if (write(wake, &one, sizeof one) < 0) errno = code; /* full: it is readable already */
    errno = code;
}

/* A program that no longer listens can still be stopped: the third signal ends it at once. */
static void on_signal(int number)
{
    pending = number;
    wake_up();
    if (++n_signals >= 3) _exit(TN_EXIT_SIGNAL + number);
}

static void on_continue(int number)
{
    (void)number;
    continued = 1;
    wake_up();
}

void tn_term_init(void)
{
    out_terminal = isatty(STDOUT_FILENO);
    err_terminal = isatty(STDERR_FILENO);
    wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    /* Writes go on after a signal; reads wait in tn_input_wait(), which a signal on any thread
     * ends. */
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    a.sa_handler = on_continue;
    sigaction(SIGCONT, &a, NULL);
    a.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &a, NULL);
}

int tn_signal_pending(void)
{
    return pending;
}

void tn_signal_clear(void)
{
    pending = 0;
    n_signals = 0;
}

void tn_input_wait(int fd)
{
    struct pollfd both[2] = {{.fd = fd, .events = POLLIN}, {.fd = wake, .events = POLLIN}};
    while (!pending && !continued) {
        uint64_t count;
        const int n = poll(both, 2, -1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 || both[0].revents) return;
        /* A wake-up may be left from a signal that has been dealt with. */
        if (both[1].revents && read(wake, &count, sizeof count) < 0 && errno != EAGAIN) return;
    }
}

bool tn_signal_continued(void)
{
    const bool was = continued;
    continued = 0;
    return was;
}

bool tn_signal_cancel(void *user)
{
    (void)user;
    return pending != 0;
}

bool tn_out_is_terminal(void)
{
    return out_terminal;
}

bool tn_err_is_terminal(void)
{
    return err_terminal;
}

/* ---- visible text ---------------------------------------------------------------------------- */

/* Length of the UTF-8 character at s and its code point; 0 if broken. */
static size_t decode(const unsigned char *s, size_t left, uint32_t *c)
{
    const size_t n = s[0] < 0x80   ? 1
                     : s[0] < 0xC2 ? 0
                     : s[0] < 0xE0 ? 2
                     : s[0] < 0xF0 ? 3
                     : s[0] < 0xF5 ? 4
                                   : 0;
    if (n == 0 || n > left) return 0;
    *c = n == 1 ? s[0] : s[0] & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        *c = *c << 6 | (s[i] & 0x3F);
    }
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    return *c < smallest[n] || *c > 0x10FFFF || (*c >= 0xD800 && *c < 0xE000) ? 0 : n;
}

static bool is_unsafe(uint32_t c)
{
    if (c < 0x20) return c != '\n' && c != '\t';
    return (c >= 0x7F && c < 0xA0) || (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

void tn_visible(const char *text, size_t len, void (*put)(void *user, const char *s, size_t n),
                void *user)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t plain = 0; /* start of what can be put as it is */
    for (size_t i = 0; i < len;) {
        uint32_t c = 0;
        const size_t n = decode(s + i, len - i, &c);
        if (n && !is_unsafe(c)) {
            i += n;
            continue;
        }
        if (i > plain) put(user, text + plain, i - plain);
        char shown[16];
        if (!n)
            snprintf(shown, sizeof shown, "\\x%02x", s[i]);
        else if (c < 0x20)
            snprintf(shown, sizeof shown, "\xE2\x90%c", (int)(0x80 + c)); /* U+2400 + c */
        else if (c == 0x7F)
            snprintf(shown, sizeof shown, "\xE2\x90\xA1");
        else
            snprintf(shown, sizeof shown, "\\u%04x", (unsigned)c);
        put(user, shown, strlen(shown));
        i += n ? n : 1;
        plain = i;
    }
    if (len > plain) put(user, text + plain, len - plain);
}

static void put_stream(void *stream, const char *s, size_t n)
{
    if (fwrite(s, 1, n, stream) != n && stream == stdout && !out_errno) out_errno = errno;
}

bool tn_out(const char *text, size_t len)
{
    if (tn_out_is_terminal())
        tn_visible(text, len, put_stream, stdout);
    else
        put_stream(stdout, text, len);
    return !out_errno;
}

/* The text of a format in memory of its own. */
static char *format(const char *fmt, va_list ap)
{
    char *text;
    if (vasprintf(&text, fmt, ap) < 0) exit(TN_EXIT_MEMORY);
    return text;
}

bool tn_outf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = format(fmt, ap);
    va_end(ap);
    const bool ok = tn_out(text, strlen(text));
    free(text);
    return ok;
}

bool tn_out_flush(void)
{
    errno = 0;
    if (fflush(stdout) != 0 && !out_errno) out_errno = errno ? errno : EIO;
    return !out_errno;
}

int tn_out_finish(void)
{
    if (tn_out_flush()) return TN_EXIT_OK;
    if (!out_reported) tn_say("cannot write to standard output: %s", strerror(out_errno));
    out_reported = true;
    return TN_EXIT_IO;
}

static void put_err(const char *before, const char *text, const char *after)
{
    fputs(before, stderr);
    if (tn_err_is_terminal())
        tn_visible(text, strlen(text), put_stream, stderr);
    else
        fputs(text, stderr);
    fputs(after, stderr);
}

void tn_say(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = format(fmt, ap);
    va_end(ap);
    put_err("tenon: ", text, "\n");
    free(text);
}

/* https://no-color.org: set and not empty. */
static bool use_colour(void)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return tn_err_is_terminal() && !(no && *no) && term && *term && strcmp(term, "dumb") != 0;
}

void tn_note(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = format(fmt, ap);
    va_end(ap);
    const bool colour = use_colour();
    put_err(colour ? "\033[2m" : "", text, colour ? "\033[0m\n" : "\n");
    free(text);
}

/* ---- progress -------------------------------------------------------------------------------- */

enum { bar_width = 30 };
static const double redraw_s = 0.1;

void tn_progress_draw(void *progress, uint64_t done, uint64_t total)
{
    tn_progress *p = progress;
    const double now = tn_clock();
    if (!p->label || !tn_err_is_terminal() || total == 0) return;
    if (p->last == 0) p->last = now; /* nothing is drawn for what takes a moment */
    if (now - p->last < redraw_s) return;
    p->last = now;
    p->drawn = true;
    const double part = done < total ? (double)done / (double)total : 1.0;
    char bar[bar_width + 1];
    memset(bar, ' ', bar_width);
    memset(bar, '#', (size_t)(part * bar_width));
    bar[bar_width] = 0;
    fprintf(stderr, "\r%s [%s] %3.0f%%", p->label, bar, part * 100);
    fflush(stderr);
}

void tn_progress_hide(tn_progress *p)
{
    if (p->drawn) {
        fprintf(stderr, "\r%*s\r", (int)strlen(p->label) + bar_width + 9, "");
        fflush(stderr);
    }
    p->drawn = false;
}

void tn_progress_clear(tn_progress *p)
{
    tn_progress_hide(p);
    p->last = 0;
}

double tn_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- files and memory ------------------------------------------------------------------------ */

static int fail_read(const char *path, int code)
{
    tn_say("cannot read '%s': %s", path, strerror(code));
    return code == ENOENT || code == ENOTDIR ? TN_EXIT_NOFILE : TN_EXIT_IO;
}

static int read_all(int fd, const char *path, char **text, size_t *len)
{
    size_t cap = 65536, n = 0;
    char *buf = tn_malloc(cap);
    for (;;) {
        if (n + 1 == cap) buf = tn_realloc(buf, cap *= 2);
        tn_input_wait(fd);
        const ssize_t got = tn_signal_pending() ? -1 : read(fd, buf + n, cap - 1 - n);
        if (got > 0) n += (size_t)got;
        if (got == 0) break;
        if (got > 0) continue;
        const int code = errno;
        free(buf);
        return tn_signal_pending() ? TN_EXIT_SIGNAL + tn_signal_pending() : fail_read(path, code);
    }
    buf[n] = 0;
    *text = buf;
    *len = n;
    return TN_EXIT_OK;
}

int tn_read_file(const char *path, char **text, size_t *len)
{
    if (strcmp(path, "-") == 0) return read_all(STDIN_FILENO, "standard input", text, len);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return fail_read(path, errno);
    const int code = read_all(fd, path, text, len);
    close(fd);
    return code;
}

void *tn_malloc(size_t bytes)
{
    return tn_realloc(NULL, bytes);
}

void *tn_realloc(void *p, size_t bytes)
{
    void *q = realloc(p, bytes ? bytes : 1);
    if (q) return q;
    tn_say("out of memory");
    exit(TN_EXIT_MEMORY);
}
