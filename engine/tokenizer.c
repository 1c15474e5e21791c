/* Text to token ids: invalid bytes are replaced, special tokens cut out, the rest is merged. */
#include "model.h"
#include "tokenizer_internal.h"

#include <string.h>

/* A text with, for every stretch, whether it can spell control tokens. */
typedef struct source {
    const char *text;
    size_t n;
    char *owned; /* text, where it had to be made */
    struct stretch {
        size_t end;
        bool parse;
    } * stretches;
    size_t n_stretches;
} source;

typedef struct tokenizer {
    const tn_vocab *v;
    tn_ids out;
    tn_merger merger;
    char *scratch; /* spelled word or changed fragment */
    size_t cap_scratch;
    bool after_special;
    tn_error *err;
} tokenizer;

static tn_status fail_memory(tokenizer *t, size_t bytes)
{
    return tn_fail_nomem(t->err, bytes, "the tokens of a text");
}

/* ---- the text ---- */

static tn_status collect(source *src, const tn_vocab *v, const tn_piece *p, size_t n_pieces,
                         size_t *n_invalid, tn_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        if (p[i].len > TN_MAX_TEXT_BYTES)
            return tn_fail(err, TN_EARG, -1, "a text of %zu bytes is too long to tokenise",
                           p[i].len);
        total += tn_utf8_clean(p[i].text, p[i].len, NULL, n_invalid);
        if (total > TN_MAX_TEXT_BYTES)
            return tn_fail(err, TN_EARG, -1, "a text of %zu bytes is too long to tokenise", total);
    }
    src->stretches = tn_alloc_raw(v->a, n_pieces, sizeof *src->stretches);
    if (!src->stretches) return tn_fail_nomem(err, n_pieces * sizeof *src->stretches, "a text");
    src->n = total;
    src->n_stretches = n_pieces;
    if (n_pieces == 1 && *n_invalid == 0) {
        src->text = p->text;
        src->stretches[0] = (struct stretch){total, p->parse_special};
        return TN_OK;
    }
    src->text = src->owned = tn_alloc_raw(v->a, total, 1);
    if (!src->owned) return tn_fail_nomem(err, total, "a text");
    size_t at = 0, again = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        at += tn_utf8_clean(p[i].text, p[i].len, src->owned + at, &again);
        src->stretches[i] = (struct stretch){at, p[i].parse_special};
    }
    return TN_OK;
}

/* ---- text between special tokens ---- */

static bool reserve(tokenizer *t, size_t n)
{
    return n <= t->cap_scratch || tn_grow(t->v->a, (void **)&t->scratch, &t->cap_scratch, 0, n, 1);
}

/* Llama kind: U+2581 and ' ' are one, a space stands in front, extra ones may go: a ' ' behind
 * another or in front, and every space at the end. */
static tn_status llama_fragment(tokenizer *t, const char *s, size_t n)
{
    const tn_vocab *v = t->v;
    if (!reserve(t, n + 1)) return fail_memory(t, n + 1);
    size_t to = 0;
    if (v->add_space_prefix && t->after_special) t->scratch[to++] = ' ';
    const bool squeeze = v->squeeze_spaces;
    bool after_space = true;
    for (size_t i = 0; i < n;) {
        const bool block = n - i >= 3 && memcmp(s + i, "\xE2\x96\x81", 3) == 0;
        const bool extra = squeeze && after_space && s[i] == ' ';
        after_space = s[i] == ' ';
        if (!extra) t->scratch[to++] = block ? ' ' : s[i];
        i += block ? 3 : 1;
    }
    while (squeeze && to > 0 && t->scratch[to - 1] == ' ')
        to--;
    return to == 0 || tn_merge_word(&t->merger, t->scratch, to) ? TN_OK : fail_memory(t, to);
}

/* A word of the pre-tokenizer. */
static bool bpe_word(void *user, const char *s, size_t n)
{
    tokenizer *t = user;
    const tn_vocab *v = t->v;
    if (v->ignore_merges && n <= v->max_bytes) {
        const int32_t id = tn_vocab_find_bytes(v, s, n);
        if (id >= 0) return tn_ids_push(&t->out, id);
    }
    return tn_merge_word(&t->merger, s, n);
}

static tn_status bpe_fragment(tokenizer *t, const char *s, size_t n)
{
    const tn_vocab *v = t->v;
    if (!v->nfc) return tn_pre_split(v->pre, s, n, bpe_word, t, t->err);
    const char *text;
    size_t n_text;
    tn_status st = tn_nfc(v->a, s, n, &text, &n_text, t->err);
    if (!st) st = tn_pre_split(v->pre, text, n_text, bpe_word, t, t->err);
    if (text != s) tn_free(v->a, (void *)text);
    return st;
}

static tn_status fragment(tokenizer *t, const char *s, size_t n)
{
    if (n == 0) return TN_OK;
    tn_status st = t->v->kind == TN_VOCAB_LLAMA ? llama_fragment(t, s, n) : bpe_fragment(t, s, n);
    t->after_special = false;
    return st;
}

/* ---- all of it ---- */

static size_t skip_spaces(const source *src, size_t at)
{
    while (at < src->n &&
           (src->text[at] == ' ' || (src->text[at] >= '\t' && src->text[at] <= '\r')))
        at++;
    return at;
}

static tn_status scan(tokenizer *t, const source *src)
{
    const tn_vocab *v = t->v;
    size_t done = 0, k = 0, parse_end = 0;
    for (size_t at = 0; at < src->n;) {
        if (at >= parse_end) { /* stretches that follow each other with one rule are one */
            while (k < src->n_stretches && src->stretches[k].end <= at)
                k++;
            const bool parse = src->stretches[k].parse;
            size_t j = k;
            while (j + 1 < src->n_stretches && src->stretches[j + 1].parse == parse)
                j++;
            parse_end = src->stretches[j].end;
        }
        const bool parse = src->stretches[k].parse;
        const tn_matcher *m = &v->match[parse];
        int32_t id = -1;
        if (tn_matcher_may_start(m, src->text + at, src->n - at))
            id = tn_matcher_longest(m, v, src->text + at, src->n - at, parse ? parse_end - at : 0);
        if (id < 0) {
            at++;
            continue;
        }
        tn_status st = fragment(t, src->text + done, at - done);
        if (st) return st;
        if (!tn_ids_push(&t->out, id)) return fail_memory(t, sizeof id);
        t->after_special = true;
        done = at += v->tokens[id].n_text;
        if (v->strips && v->strips[id]) done = at = skip_spaces(src, at);
    }
    return fragment(t, src->text + done, src->n - done);
}

static tn_status run(tokenizer *t, const source *src, unsigned flags)
{
    const tn_vocab *v = t->v;
    const bool add = flags & TN_TOKENIZE_ADD_SPECIAL;
    if (add && v->add_bos && v->bos >= 0 && !tn_ids_push(&t->out, v->bos)) return fail_memory(t, 4);
    tn_status st = scan(t, src);
    if (st) return st;
    if (add && v->add_eos && v->eos >= 0 && !tn_ids_push(&t->out, v->eos)) return fail_memory(t, 4);
    return TN_OK;
}

tn_status tn_vocab_tokenize_pieces(const tn_vocab *v, const tn_piece *pieces, size_t n_pieces,
                                   unsigned flags, int32_t **ids, size_t *n_ids, size_t *n_invalid,
                                   tn_error *err)
{
    source src = {0};
    size_t invalid = 0;
    tokenizer t = {.v = v, .out = {.a = v->a}, .after_special = true, .err = err};
    t.merger = (tn_merger){.v = v, .out = &t.out};
    *ids = NULL;
    *n_ids = 0;
    tn_status st = collect(&src, v, pieces, n_pieces, &invalid, err);
    if (!st) st = run(&t, &src, flags);
    tn_merger_free(&t.merger);
    tn_free(v->a, t.scratch);
    tn_free(v->a, src.stretches);
    tn_free(v->a, src.owned);
    if (st) {
        tn_free(v->a, t.out.ids);
        return st;
    }
    *ids = t.out.ids;
    *n_ids = t.out.n;
    if (n_invalid) *n_invalid = invalid;
    return TN_OK;
}

static tn_status need_vocab(const tn_model *model, tn_error *err)
{
    return tn_model_vocab(model) ? TN_OK
                                 : tn_fail(err, TN_EUNSUPPORTED, -1, "the model has no tokenizer");
}

tn_status tn_tokenize(const tn_model *model, const char *text, size_t len, unsigned flags,
                      int32_t *ids, size_t cap, size_t *n, size_t *n_invalid, tn_error *err)
{
    const tn_vocab *v = tn_model_vocab(model);
    *n = 0;
    tn_status st = need_vocab(model, err);
    if (st) return st;
    const tn_piece piece = {text, len, (flags & TN_TOKENIZE_PARSE_SPECIAL) != 0};
    int32_t *made;
    st = tn_vocab_tokenize_pieces(v, &piece, 1, flags, &made, n, n_invalid, err);
    if (st) return st;
    if (*n > cap)
        st = tn_fail(err, TN_EFULL, -1, "the text has %zu tokens, room was given for %zu", *n, cap);
    else if (*n)
        memcpy(ids, made, *n * sizeof *ids);
    tn_free(v->a, made);
    return st;
}

tn_status tn_token_get(const tn_model *model, int32_t id, const char **bytes, size_t *n_bytes,
                       const char **text, size_t *n_text, tn_token_attr *attr, tn_error *err)
{
    const tn_vocab *v = tn_model_vocab(model);
    tn_status st = need_vocab(model, err);
    if (st) return st;
    if (id < 0 || id >= v->n)
        return tn_fail(err, TN_EARG, -1, "token %d is outside the vocabulary of %d", (int)id,
                       (int)v->n);
    const tn_vocab_token *t = &v->tokens[id];
    if (bytes) *bytes = t->bytes;
    if (n_bytes) *n_bytes = t->n_bytes;
    if (text) *text = t->text;
    if (n_text) *n_text = t->n_text;
    if (attr) *attr = (tn_token_attr)t->attr;
    return TN_OK;
}

int32_t tn_token_bos(const tn_model *model)
{
    const tn_vocab *v = tn_model_vocab(model);
    return v ? v->bos : -1;
}

int32_t tn_token_eos(const tn_model *model)
{
    const tn_vocab *v = tn_model_vocab(model);
    return v ? v->eos : -1;
}

bool tn_token_is_end(const tn_model *model, int32_t id)
{
    const tn_vocab *v = tn_model_vocab(model);
    return v && id >= 0 && id < v->n && v->end[id];
}
