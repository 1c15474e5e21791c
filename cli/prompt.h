/* The text a command works on: -p, --file, or standard input. */
#ifndef TN_CLI_PROMPT_H
#define TN_CLI_PROMPT_H

#include "options.h"

/* -p, then the file, with a newline between them where both are given; standard input where neither
 * is. `trim` drops one newline at the end of a file or of standard input: programs that write text
 * end it so. The text is freed by the caller. TN_EXIT_OK or an exit code after saying why. */
int tn_prompt_read(const tn_settings *set, bool trim, char **text, size_t *len);

#endif
