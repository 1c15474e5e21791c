/* Token ids to text, a whole UTF-8 character at a time. */
#include "model.h"
#include "tokenizer_internal.h"

#include <stdatomic.h>
#include <string.h>

struct tn_detokenizer {
    const tn_vocab *v;
    unsigned flags;
    char held[4]; /* start of a character whose rest is to come */
    size_t n_held;
    bool started;     /* something but control tokens was pushed */
    char *raw, *text; /* held and new bytes; what is handed out */
    size_t cap_raw, cap_text;
    atomic_flag busy;
};

tn_status tn_detokenizer_new(tn_detokenizer **out, const tn_model *model, unsigned flags,
                             tn_error *err)
{
    *out = NULL;
    const tn_vocab *v = tn_model_vocab(model);
    if (!v) return tn_fail(err, TN_EUNSUPPORTED, -1, "the model has no tokenizer");
    tn_detokenizer *d = tn_alloc(v->a, 1, sizeof *d);
    if (!d) return tn_fail_nomem(err, sizeof *d, "a detokenizer");
    d->v = v;
    d->flags = flags;
    atomic_flag_clear(&d->busy);
    *out = d;
    return TN_OK;
}

void tn_detokenizer_free(tn_detokenizer *d)
{
    if (!d) return;
    tn_free(d->v->a, d->raw);
    tn_free(d->v->a, d->text);
    tn_free(d->v->a, d);
}

/* The bytes that the token adds. */
static const char *token_bytes(tn_detokenizer *d, int32_t id, size_t *n)
{
    const tn_vocab_token *t = &d->v->tokens[id];
    const bool hidden = t->attr == TN_TOKEN_CONTROL || t->attr == TN_TOKEN_UNKNOWN;
    const bool spelled = hidden && (d->flags & TN_DETOKENIZE_SPECIAL);
    const char *s = spelled ? t->text : t->bytes;
    *n = spelled ? t->n_text : t->n_bytes;
    if (hidden && !spelled) return s;
    const bool first = !d->started;
    d->started = true;
    if (first && !hidden && d->v->kind == TN_VOCAB_LLAMA && d->v->add_space_prefix && *n > 0 &&
        *s == ' ' && !(d->flags & TN_DETOKENIZE_KEEP_SPACE)) {
        s++;
        --*n;
    }
    return s;
}

/* True if s[0, n) may yet become one character. */
static bool incomplete(const char *s, size_t n)
{
    size_t bad;
    const uint8_t c = (uint8_t)*s;
    const size_t need = c < 0xC2 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 1;
    return n < need && tn_utf8_step(s, n, &bad) == 0 && bad == n;
}

/* Bytes at the end of s[0, n) that wait for more. */
static size_t waiting(const char *s, size_t n)
{
    for (size_t k = 1; k <= n && k <= 3; k++)
        if (((uint8_t)s[n - k] & 0xC0) == 0xC0) return incomplete(s + n - k, k) ? k : 0;
    return 0;
}

static tn_status push(tn_detokenizer *d, int32_t id, const char **text, size_t *len, tn_error *err)
{
    const tn_vocab *v = d->v;
    if (id < 0 || id >= v->n)
        return tn_fail(err, TN_EARG, -1, "token %d is outside the vocabulary of %d", (int)id,
                       (int)v->n);
    const bool started = d->started;
    size_t n, invalid = 0;
    const char *s = token_bytes(d, id, &n);
    const size_t total = d->n_held + n;
    if (!tn_grow(v->a, (void **)&d->raw, &d->cap_raw, 0, total + 1, 1) ||
        !tn_grow(v->a, (void **)&d->text, &d->cap_text, 0, 3 * total + 1, 1)) {
        d->started = started;
        return tn_fail_nomem(err, 4 * total, "the text of a token");
    }
    memcpy(d->raw, d->held, d->n_held);
    memcpy(d->raw + d->n_held, s, n);
    d->n_held = waiting(d->raw, total);
    memcpy(d->held, d->raw + total - d->n_held, d->n_held);
    *len = tn_utf8_clean(d->raw, total - d->n_held, d->text, &invalid);
    *text = d->text;
    return TN_OK;
}

tn_status tn_detokenizer_push(tn_detokenizer *d, int32_t id, const char **text, size_t *len,
                              tn_error *err)
{
    *text = "";
    *len = 0;
    if (atomic_flag_test_and_set(&d->busy))
        return tn_fail(err, TN_EBUSY, -1, "the detokenizer is in use by another call");
    const tn_status s = push(d, id, text, len, err);
    atomic_flag_clear(&d->busy);
    return s;
}

tn_status tn_detokenizer_finish(tn_detokenizer *d, const char **text, size_t *len, tn_error *err)
{
    *text = "";
    *len = 0;
    if (atomic_flag_test_and_set(&d->busy))
        return tn_fail(err, TN_EBUSY, -1, "the detokenizer is in use by another call");
    if (d->n_held) {
        *text = "\xEF\xBF\xBD";
        *len = 3;
    }
    d->n_held = 0;
    d->started = false;
    atomic_flag_clear(&d->busy);
    return TN_OK;
}
