/* Line editing by libedit: only built where libedit is found. */
#ifndef TN_CLI_EDIT_H
#define TN_CLI_EDIT_H

#include "line.h"

typedef struct tn_edit tn_edit;

/* NULL if libedit cannot be used on this terminal. */
tn_edit *tn_edit_new(bool history);
void tn_edit_free(tn_edit *e);
/* As tn_line_read(), without the joining of lines that end in a backslash. */
tn_line_result tn_edit_read(tn_edit *e, const char *prompt, const char *preset, char **text);
/* Puts a message into the history and its file. */
void tn_edit_remember(tn_edit *e, const char *text);

#endif
