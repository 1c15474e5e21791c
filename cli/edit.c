#ifdef TN_HAVE_EDIT

#include "edit.h"

#include "term.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

enum {
    max_history = 1000,
    inline_chars = 800, /* a longer paste, or one of more lines, is shown as a placeholder */
    inline_lines = 8,
    preset_key = 0x1D /* Ctrl-]: what our own input function sends to have the preset inserted */
};

typedef struct paste {
    wchar_t *text, *shown;
} paste;

struct tn_edit {
    EditLine *el;
    HistoryW *history;
    char *history_path; /* NULL: no file */
    wchar_t *prompt, *preset;
    bool preset_due, brackets, have_cooked;
    struct termios cooked, editing; /* the terminal as it was, and as libedit wants it */
    bool interrupted, was_empty;
    paste *pastes;
    size_t n_pastes, cap_pastes;
};

/* ---- text ------------------------------------------------------------------------------------ */

static wchar_t *widen(const char *s)
{
    const size_t cap = strlen(s) + 1;
    wchar_t *w = tn_malloc(cap * sizeof *w);
    if (mbstowcs(w, s, cap) != (size_t)-1) return w;
    free(w);
    return NULL;
}

static char *narrow(const wchar_t *w)
{
    const size_t cap = wcslen(w) * MB_CUR_MAX + 1;
    char *s = tn_malloc(cap);
    if (wcstombs(s, w, cap) == (size_t)-1) *s = 0;
    return s;
}

/* ---- input ----------------------------------------------------------------------------------- */

static tn_edit *self(EditLine *el)
{
    void *e = NULL;
    el_wget(el, EL_CLIENTDATA, &e);
    return e;
}

static void set_brackets(const tn_edit *e, bool on)
{
    if (!e->brackets) return;
    fputs(on ? "\033[?2004h" : "\033[?2004l", stderr);
    fflush(stderr);
}

/* After Ctrl-Z and fg the shell has left the terminal as it likes it. */
static void take_terminal_back(tn_edit *e)
{
    tcsetattr(STDIN_FILENO, TCSADRAIN, &e->editing);
    set_brackets(e, true);
    el_wset(e->el, EL_REFRESH);
}

/* libedit's source of characters: returns at once when a signal comes. */
static int next_char(EditLine *el, wchar_t *c)
{
    tn_edit *e = self(el);
    if (e->preset_due) {
        e->preset_due = false;
        *c = preset_key;
        return 1;
    }
    mbstate_t state = {0};
    tcgetattr(STDIN_FILENO, &e->editing);
    for (;;) {
        char byte;
        tn_input_wait(STDIN_FILENO);
        if (tn_signal_continued()) {
            take_terminal_back(e);
            continue;
        }
        const ssize_t n = tn_signal_pending() ? -1 : read(STDIN_FILENO, &byte, 1);
        if (tn_signal_pending()) {
            const LineInfoW *line = el_wline(el);
            e->interrupted = true;
            e->was_empty = line->lastchar == line->buffer;
            return -1;
        }
        if (n <= 0) return (int)n;
        const size_t used = mbrtowc(c, &byte, 1, &state);
        if (used == (size_t)-2) continue;
        if (used == (size_t)-1) {
            memset(&state, 0, sizeof state);
            *c = 0xFFFD;
        }
        return 1;
    }
}

static wchar_t *show_prompt(EditLine *el)
{
    return self(el)->prompt;
}

static unsigned char insert_newline(EditLine *el, wint_t key)
{
    (void)key;
    return el_winsertstr(el, L"\n") == 0 ? CC_REFRESH : CC_ERROR;
}

static unsigned char insert_preset(EditLine *el, wint_t key)
{
    (void)key;
    tn_edit *e = self(el);
    if (!e->preset) return CC_ERROR;
    const int rc = el_winsertstr(el, e->preset);
    free(e->preset);
    e->preset = NULL;
    return rc == 0 ? CC_REFRESH : CC_ERROR;
}

/* Reads up to the end of a bracketed paste. NULL if the input ends. */
static wchar_t *read_paste(EditLine *el)
{
    static const wchar_t end[] = L"\033[201~";
    enum { end_len = 6 };
    size_t n = 0, cap = 256;
    wchar_t *text = tn_malloc(cap * sizeof *text), c;
    while (el_wgetc(el, &c) == 1) {
        if (n + 1 == cap) text = tn_realloc(text, (cap *= 2) * sizeof *text);
        text[n++] = c == '\r' ? '\n' : c ? c : 0xFFFD;
        if (n < end_len || wmemcmp(text + n - end_len, end, end_len) != 0) continue;
        text[n - end_len] = 0;
        return text;
    }
    free(text);
    return NULL;
}

static const wchar_t *fold(tn_edit *e, wchar_t *text, size_t lines)
{
    if (e->n_pastes == e->cap_pastes)
        e->pastes = tn_realloc(e->pastes, (e->cap_pastes += 8) * sizeof *e->pastes);
    wchar_t shown[80];
    swprintf(shown, 80, L"[paste %zu: %zu lines, %zu characters]", e->n_pastes + 1, lines,
             wcslen(text));
    paste *p = &e->pastes[e->n_pastes++];
    *p = (paste){text, wcsdup(shown)};
    return p->shown ? p->shown : L"";
}

static unsigned char insert_paste(EditLine *el, wint_t key)
{
    (void)key;
    wchar_t *text = read_paste(el);
    if (!text) return CC_ERROR;
    size_t lines = 1;
    for (const wchar_t *s = text; *s; s++)
        lines += *s == '\n';
    const bool folded = lines > inline_lines || wcslen(text) > inline_chars;
    const int rc = el_winsertstr(el, folded ? fold(self(el), text, lines) : text);
    if (!folded) free(text);
    return rc == 0 ? CC_REFRESH : CC_ERROR;
}

/* ---- history --------------------------------------------------------------------------------- */

/* Makes every folder of a path that ends in a file's name. */
static bool make_folders(char *path)
{
    for (char *s = strchr(path + 1, '/'); s; s = strchr(s + 1, '/')) {
        *s = 0;
        const bool ok = mkdir(path, 0700) == 0 || errno == EEXIST;
        *s = '/';
        if (!ok) return false;
    }
    return true;
}

/* Where the XDG base directory specification puts it. NULL if there is no home. */
static char *history_path(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *path;
    int n = -1;
    if (state && *state == '/')
        n = asprintf(&path, "%s/tenon/history", state);
    else if (home && *home == '/')
        n = asprintf(&path, "%s/.local/state/tenon/history", home);
    return n < 0 ? NULL : path;
}

static void open_history(tn_edit *e, bool with_file)
{
    HistEventW ev;
    e->history = history_winit();
    if (!e->history) return;
    history_w(e->history, &ev, H_SETSIZE, max_history);
    history_w(e->history, &ev, H_SETUNIQUE, 1);
    el_wset(e->el, EL_HIST, history_w, e->history);
    e->history_path = with_file ? history_path() : NULL;
    if (!e->history_path) return;
    history_w(e->history, &ev, H_LOAD, e->history_path);
}

/* A new file takes the old one's place, so that a reader never sees half of one; mkstemp makes it
 * readable by its owner only. */
static void save_history(tn_edit *e)
{
    char *temporary;
    if (!e->history_path || !make_folders(e->history_path)) return;
    if (asprintf(&temporary, "%s.XXXXXX", e->history_path) < 0) return;
    const int fd = mkstemp(temporary);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    HistEventW ev;
    if (file) {
        const bool ok = history_w(e->history, &ev, H_SAVE_FP, file) >= 0;
        if (fclose(file) != 0 || !ok || rename(temporary, e->history_path) != 0) unlink(temporary);
    } else if (fd >= 0) {
        close(fd);
        unlink(temporary);
    }
    free(temporary);
}

void tn_edit_remember(tn_edit *e, const char *text)
{
    HistEventW ev;
    wchar_t *wide = *text ? widen(text) : NULL;
    if (e->history && wide && history_w(e->history, &ev, H_ENTER, wide) >= 0) save_history(e);
    free(wide);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Text is UTF-8 whatever the locale says: a bare container has none. */
static bool use_utf8(void)
{
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") == 0) return true;
    return setlocale(LC_CTYPE, "C.UTF-8") != NULL;
}

static void bind_keys(EditLine *el)
{
    static const wchar_t *const keys[][2] = {
        {L"\\e\\r", L"tenon-newline"},       {L"\\e\\n", L"tenon-newline"},
        {L"\\e[200~", L"tenon-paste"},       {L"^]", L"tenon-preset"},
        {L"\\e[H", L"ed-move-to-beg"},       {L"\\e[F", L"ed-move-to-end"},
        {L"\\e[3~", L"ed-delete-next-char"}, {L"^R", L"em-inc-search-prev"},
    };
    el_wset(el, EL_ADDFN, L"tenon-newline", L"put a newline into the message", insert_newline);
    el_wset(el, EL_ADDFN, L"tenon-paste", L"insert a bracketed paste", insert_paste);
    el_wset(el, EL_ADDFN, L"tenon-preset", L"insert the text to edit", insert_preset);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        el_wset(el, EL_BIND, keys[i][0], keys[i][1], NULL);
}

tn_edit *tn_edit_new(bool history)
{
    const char *term = getenv("TERM");
    if (!use_utf8()) return NULL;
    tn_edit *e = tn_malloc(sizeof *e);
    memset(e, 0, sizeof *e);
    e->have_cooked = tcgetattr(STDIN_FILENO, &e->cooked) == 0;
    e->el = el_init("tenon", stdin, stderr, stderr);
    if (!e->el) {
        free(e);
        return NULL;
    }
    e->brackets = term && *term && strcmp(term, "dumb") != 0;
    el_wset(e->el, EL_CLIENTDATA, e);
    el_wset(e->el, EL_EDITOR, L"emacs");
    el_wset(e->el, EL_GETCFN, next_char);
    el_wset(e->el, EL_PROMPT, show_prompt);
    open_history(e, history);
    bind_keys(e->el);
    return e;
}

static void forget_pastes(tn_edit *e)
{
    for (size_t i = 0; i < e->n_pastes; i++) {
        free(e->pastes[i].text);
        free(e->pastes[i].shown);
    }
    e->n_pastes = 0;
}

void tn_edit_free(tn_edit *e)
{
    if (!e) return;
    el_end(e->el);
    if (e->history) history_wend(e->history);
    forget_pastes(e);
    free(e->pastes);
    free(e->history_path);
    free(e->prompt);
    free(e->preset);
    free(e);
}

/* Puts the pastes where their placeholders stand. Takes line. */
static wchar_t *unfold(const tn_edit *e, wchar_t *line)
{
    for (size_t i = 0; i < e->n_pastes; i++) {
        const paste *p = &e->pastes[i];
        const wchar_t *at = p->shown ? wcsstr(line, p->shown) : NULL;
        if (!at) continue;
        const size_t before = (size_t)(at - line), n = wcslen(p->text);
        const wchar_t *after = at + wcslen(p->shown);
        wchar_t *joined = tn_malloc((before + n + wcslen(after) + 1) * sizeof *joined);
        wmemcpy(joined, line, before);
        wmemcpy(joined + before, p->text, n);
        wcscpy(joined + before + n, after);
        free(line);
        line = joined;
    }
    return line;
}

/* libedit shows the prompt first and only then takes the terminal out of line mode, where a Ctrl-D
 * typed in between would be lost: so that is done before. */
static void set_terminal(const tn_edit *e, bool editing)
{
    struct termios mode = e->cooked;
    if (editing) mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    if (e->have_cooked) tcsetattr(STDIN_FILENO, TCSADRAIN, &mode);
}

tn_line_result tn_edit_read(tn_edit *e, const char *prompt, const char *preset, char **text)
{
    free(e->prompt);
    e->prompt = widen(prompt);
    free(e->preset);
    e->preset = preset ? widen(preset) : NULL;
    e->preset_due = e->preset != NULL;
    e->interrupted = false;
    int n = 0;
    set_terminal(e, true);
    set_brackets(e, true);
    const wchar_t *line = el_wgets(e->el, &n);
    set_brackets(e, false);
    set_terminal(e, false);
    if (e->interrupted) {
        fputc('\n', stderr);
        forget_pastes(e);
        return e->was_empty ? TN_LINE_INTERRUPTED : TN_LINE_CLEARED;
    }
    if (!line || n <= 0) {
        fputc('\n', stderr);
        return TN_LINE_END;
    }
    wchar_t *copy = tn_malloc(((size_t)n + 1) * sizeof *copy);
    wmemcpy(copy, line, (size_t)n);
    copy[n] = 0;
    if (copy[n - 1] == '\n') copy[n - 1] = 0;
    copy = unfold(e, copy);
    forget_pastes(e);
    *text = narrow(copy);
    free(copy);
    return TN_LINE_TEXT;
}

#else
typedef int tn_edit_is_not_built;
#endif
