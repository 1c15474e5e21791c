/* tenon tokenize: text to token ids. */
#include "prompt.h"
#include "session.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static unsigned flags_of(const tn_settings *set)
{
    return (set->add_special ? TN_TOKENIZE_ADD_SPECIAL : 0) |
           (set->parse_special ? TN_TOKENIZE_PARSE_SPECIAL : 0);
}

static int print_ids(const tn_session *s, const tn_settings *set, const char *text, size_t len)
{
    int32_t *ids;
    size_t n;
    const int code = tn_session_tokenize(s, text, len, flags_of(set), &ids, &n);
    if (code) return code;
    const char *between = set->json ? ", " : " ";
    if (set->json) tn_out("[", 1);
    for (size_t i = 0; i < n; i++) {
        char number[16];
        const int k = snprintf(number, sizeof number, "%s%d", i ? between : "", (int)ids[i]);
        if (!tn_out(number, (size_t)k)) break;
    }
    free(ids);
    tn_outf(set->json ? "]\n" : "\n");
    return tn_signal_pending() ? TN_EXIT_SIGNAL + tn_signal_pending() : TN_EXIT_OK;
}

static int json_line(const tn_session *s, const tn_settings *set, const char *line, size_t len,
                     size_t number)
{
    json_error_t why;
    json_t *j = json_loadb(line, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!json_is_string(j)) {
        tn_say("line %zu of the input is not a JSON string%s%s", number, j ? "" : ": ",
               j ? "" : why.text);
        json_decref(j);
        return TN_EXIT_MODEL;
    }
    const int code = print_ids(s, set, json_string_value(j), json_string_length(j));
    json_decref(j);
    return code;
}

static int json_lines(const tn_session *s, const tn_settings *set, const char *text, size_t len)
{
    int code = TN_EXIT_OK;
    size_t number = 1;
    for (size_t start = 0; !code && start < len; number++) {
        const char *end = memchr(text + start, '\n', len - start);
        const size_t n = end ? (size_t)(end - text) - start : len - start;
        code = json_line(s, set, text + start, n, number);
        start += n + 1;
    }
    return code;
}

int tn_cmd_tokenize(const tn_settings *set)
{
    tn_session s = {0};
    char *text = NULL;
    size_t len = 0;
    int code = tn_prompt_read(set, false, &text, &len);
    if (!code) code = tn_session_open(&s, set, true);
    if (!code) code = set->json ? json_lines(&s, set, text, len) : print_ids(&s, set, text, len);
    free(text);
    tn_session_close(&s);
    return code;
}
