#include "prompt.h"

#include "term.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void drop_line_end(char *text, size_t *len)
{
    if (!*len || text[*len - 1] != '\n') return;
    --*len;
    if (*len && text[*len - 1] == '\r') --*len;
    text[*len] = 0;
}

int tn_text_read(const char *path, char **text, size_t *len)
{
    static const char mark[] = "\xef\xbb\xbf";
    const size_t n = sizeof mark - 1;
    const int code = tn_read_file(path, text, len);
    if (code) return code;
    drop_line_end(*text, len);
    if (*len < n || memcmp(*text, mark, n) != 0) return TN_EXIT_OK;
    *len -= n;
    memmove(*text, *text + n, *len + 1);
    return TN_EXIT_OK;
}

static int from_file(const char *path, bool trim, char **text, size_t *len)
{
    return trim ? tn_text_read(path, text, len) : tn_read_file(path, text, len);
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
