/* tenon logits: raw logits of every given token, for comparing engines. */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rows are written as they lie in memory, which must be little-endian"
#endif

static int parse_ids(const char *text, int32_t **ids, size_t *n)
{
    size_t cap = 256;
    *ids = tn_malloc(cap * sizeof **ids);
    *n = 0;
    for (const char *s = text; *(s += strspn(s, ", \t\r\n[]"));) {
        char *end;
        errno = 0;
        const long v = strtol(s, &end, 10);
        if (end == s || errno || v < INT32_MIN || v > INT32_MAX) {
            tn_say("option --tokens: '%.20s' is not a token id", s);
            return TN_EXIT_USAGE;
        }
        if (*n == cap) *ids = tn_realloc(*ids, (cap *= 2) * sizeof **ids);
        (*ids)[(*n)++] = (int32_t)v;
        s = end;
    }
    if (*n) return TN_EXIT_OK;
    tn_say("option --tokens: give at least one token id");
    return TN_EXIT_USAGE;
}

static int read_ids(const tn_settings *set, int32_t **ids, size_t *n)
{
    if (!set->tokens) {
        tn_say("option --tokens is missing: give token ids as in --tokens 1,2,3");
        return TN_EXIT_USAGE;
    }
    const bool from_file = set->tokens[0] == '@' || strcmp(set->tokens, "-") == 0;
    if (!from_file) return parse_ids(set->tokens, ids, n);
    char *text;
    size_t len;
    int code = tn_read_file(set->tokens[0] == '@' ? set->tokens + 1 : "-", &text, &len);
    if (code) return code;
    code = parse_ids(text, ids, n);
    free(text);
    return code;
}

typedef struct writer {
    FILE *file;
    int32_t n_vocab;
    int error; /* errno of the first failure */
} writer;

static bool write_rows(void *user, int32_t first, int32_t n_rows, const float *rows)
{
    (void)first;
    writer *w = user;
    const size_t n = (size_t)n_rows * (size_t)w->n_vocab;
    errno = 0;
    if (fwrite(rows, sizeof *rows, n, w->file) == n) return true;
    w->error = errno ? errno : EIO;
    return false;
}

static int fail_write(const char *path, int code)
{
    tn_say("cannot write '%s': %s", path, strerror(code));
    return TN_EXIT_IO;
}

static int evaluate(tn_session *s, const int32_t *ids, size_t n, const char *path, FILE *file)
{
    writer w = {.file = file, .n_vocab = s->info.n_vocab};
    tn_error err = {0};
    s->evaluating.label = "evaluating";
    const tn_status status = tn_context_eval_all(s->ctx, ids, (int32_t)n, 0, write_rows, &w, &err);
    tn_progress_clear(&s->evaluating);
    if (w.error) return fail_write(path, w.error);
    if (status) return tn_session_fail(status, &err);
    return fflush(file) == 0 ? TN_EXIT_OK : fail_write(path, errno);
}

/* Half a file of numbers looks like a whole one, so a failure leaves none. */
static void remove_partial(const char *path, FILE *file)
{
    struct stat st;
    if (fstat(fileno(file), &st) == 0 && S_ISREG(st.st_mode)) unlink(path);
}

static int write_file(tn_session *s, const int32_t *ids, size_t n, const char *path)
{
    if (strcmp(path, "-") == 0) return evaluate(s, ids, n, "standard output", stdout);
    FILE *file = fopen(path, "wb");
    if (!file) return fail_write(path, errno);
    int code = evaluate(s, ids, n, path, file);
    if (code) remove_partial(path, file);
    if (fclose(file) != 0 && !code) code = fail_write(path, errno);
    return code;
}

int tn_cmd_logits(const tn_settings *set)
{
    int32_t *ids = NULL;
    size_t n = 0;
    if (!set->out) {
        tn_say("option --out is missing: say where to write, as in --out logits.f32");
        return TN_EXIT_USAGE;
    }
    tn_session s = {0};
    int code = read_ids(set, &ids, &n);
    if (!code && n > INT32_MAX) code = TN_EXIT_USAGE;
    if (!code) code = tn_session_open(&s, set, false);
    const int32_t n_ctx = set->ctx > 0 ? set->ctx : (int32_t)n;
    if (!code) code = tn_session_context(&s, set, n_ctx, tn_settings_kv(set, TN_KV_F32));
    if (!code) code = write_file(&s, ids, n, set->out);
    free(ids);
    tn_session_close(&s);
    return code;
}
