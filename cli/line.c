#include "line.h"

#include "term.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef TN_HAVE_EDIT
#include "edit.h"
#endif

struct tn_line {
    char input[4096]; /* bytes read ahead, in plain mode only */
    size_t from, to;
    bool terminal;
#ifdef TN_HAVE_EDIT
    tn_edit *edit; /* NULL: plain */
#endif
};

tn_line *tn_line_new(bool history)
{
    tn_line *l = tn_malloc(sizeof *l);
    memset(l, 0, sizeof *l);
    l->terminal = isatty(STDIN_FILENO);
#ifdef TN_HAVE_EDIT
    if (l->terminal && tn_err_is_terminal()) l->edit = tn_edit_new(history);
#else
    (void)history;
#endif
    return l;
}

void tn_line_free(tn_line *l)
{
    if (!l) return;
#ifdef TN_HAVE_EDIT
    tn_edit_free(l->edit);
#endif
    free(l);
}

bool tn_line_is_terminal(const tn_line *l)
{
    return l->terminal;
}

typedef struct buffer {
    char *data;
    size_t len, cap;
} buffer;

static void append(buffer *b, const char *s, size_t n)
{
    if (b->len + n + 1 > b->cap) b->data = tn_realloc(b->data, b->cap = 2 * (b->len + n + 1));
    if (n) memcpy(b->data + b->len, s, n);
    b->len += n;
    b->data[b->len] = 0;
}

/* Programs of another system end lines with CR LF. */
static void drop_return(buffer *b)
{
    if (b->len && b->data[b->len - 1] == '\r') b->data[--b->len] = 0;
}

/* One line without its end, by read(2): unlike stdio it can wait for a signal as well. */
static tn_line_result read_plain(tn_line *l, buffer *b)
{
    for (;;) {
        char *start = l->input + l->from, *end = memchr(start, '\n', l->to - l->from);
        append(b, start, end ? (size_t)(end - start) : l->to - l->from);
        l->from = end ? (size_t)(end - l->input) + 1 : l->to;
        if (end) {
            drop_return(b);
            return TN_LINE_TEXT;
        }
        tn_input_wait(STDIN_FILENO);
        tn_signal_continued(); /* nothing to restore in plain mode */
        const ssize_t n = tn_signal_pending() ? -1 : read(STDIN_FILENO, l->input, sizeof l->input);
        l->from = 0;
        l->to = n > 0 ? (size_t)n : 0;
        if (n == 0) return b->len ? TN_LINE_TEXT : TN_LINE_END;
        if (n > 0) continue;
        if (tn_signal_pending()) return b->len ? TN_LINE_CLEARED : TN_LINE_INTERRUPTED;
        tn_say("cannot read standard input: %s", strerror(errno));
        return TN_LINE_FAILED;
    }
}

static tn_line_result read_line(tn_line *l, const char *prompt, const char *preset, buffer *b)
{
#ifdef TN_HAVE_EDIT
    if (l->edit) {
        char *text = NULL;
        const tn_line_result r = tn_edit_read(l->edit, prompt, preset, &text);
        if (r == TN_LINE_TEXT) append(b, text, strlen(text));
        free(text);
        return r;
    }
#endif
    if (preset) append(b, preset, strlen(preset)); /* what is typed is added to it */
    if (l->terminal) {
        fprintf(stderr, "%s%s", prompt, preset ? preset : "");
        fflush(stderr);
    }
    return read_plain(l, b);
}

tn_line_result tn_line_read(tn_line *l, const char *prompt, const char *preset, char **text)
{
    buffer b = {0};
    tn_line_result r;
    append(&b, "", 0);
    for (;;) {
        r = read_line(l, prompt, preset, &b);
        if (r != TN_LINE_TEXT || b.len == 0 || b.data[b.len - 1] != '\\') break;
        b.data[b.len - 1] = '\n';
        prompt = ". ";
        preset = NULL;
    }
    if (r == TN_LINE_END && b.len) r = TN_LINE_TEXT;
    if (r == TN_LINE_TEXT) {
#ifdef TN_HAVE_EDIT
        if (l->edit) tn_edit_remember(l->edit, b.data);
#endif
        *text = b.data;
        return r;
    }
    free(b.data);
    return r;
}
