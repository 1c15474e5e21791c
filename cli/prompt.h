/* The text a command works on: -p, --file, or standard input. */
#ifndef TN_CLI_PROMPT_H
#define TN_CLI_PROMPT_H

#include "options.h"

/* A file ("-": standard input) without what programs put around a text: a byte order mark, and one
 * line end (LF or CR LF). What is between stays as it is. The text ends with a zero byte and is
 * freed by the caller. TN_EXIT_OK or an exit code after saying why. */
int tn_text_read(const char *path, char **text, size_t *len);
/* -p, then the file, with a newline between them where both are given; standard input where neither
 * is. `trim`: as tn_text_read; otherwise every byte counts. */
int tn_prompt_read(const tn_settings *set, bool trim, char **text, size_t *len);

#endif
