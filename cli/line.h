/* Messages typed by a person, or lines from a pipe. On a terminal libedit edits them (where tenon
 * was built with it) and remembers them in a history file. */
#ifndef TN_CLI_LINE_H
#define TN_CLI_LINE_H

#include <stdbool.h>

typedef enum tn_line_result {
    TN_LINE_TEXT,
    TN_LINE_END,         /* end of input */
    TN_LINE_CLEARED,     /* a signal while something was typed */
    TN_LINE_INTERRUPTED, /* a signal on an empty line */
    TN_LINE_FAILED       /* reading failed; it has been said */
} tn_line_result;

typedef struct tn_line tn_line;

/* history: keep a history file under XDG_STATE_HOME. Never NULL. */
tn_line *tn_line_new(bool history);
void tn_line_free(tn_line *l);
/* True if a person is typing. */
bool tn_line_is_terminal(const tn_line *l);
/* Reads one message; `\` at the end of a line and Alt-Enter put a newline into it, a paste is part
 * of it whole. preset (may be NULL) is what the line holds at first. *text is freed by the caller.
 */
tn_line_result tn_line_read(tn_line *l, const char *prompt, const char *preset, char **text);

#endif
