#include "prompt.h"

#include "term.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int from_file(const char *path, bool trim, char **text, size_t *len)
{
    const int code = tn_read_file(path, text, len);
    if (!code && trim && *len && (*text)[*len - 1] == '\n') (*text)[--*len] = 0;
    return code;
}

static char *copy(const char *s, size_t *len)
{
    *len = strlen(s);
    return memcpy(tn_malloc(*len + 1), s, *len + 1);
}

int tn_prompt_read(const tn_settings *set, bool trim, char **text, size_t *len)
{
    if (!set->prompt && !set->file) {
        if (isatty(STDIN_FILENO) && trim) {
            tn_say("there is no prompt: give -p TEXT, --file FILE, or pipe a text in");
            return TN_EXIT_USAGE;
        }
        return from_file("-", trim, text, len);
    }
    if (!set->file) {
        *text = copy(set->prompt, len);
        return TN_EXIT_OK;
    }
    const int code = from_file(set->file, trim, text, len);
    if (code || !set->prompt) return code;
    const size_t first = strlen(set->prompt);
    char *both = tn_malloc(first + 1 + *len + 1);
    memcpy(both, set->prompt, first);
    both[first] = '\n';
    memcpy(both + first + 1, *text, *len + 1);
    free(*text);
    *text = both;
    *len += first + 1;
    return TN_EXIT_OK;
}
