/* libFuzzer target: vocabularies and texts. The first byte of the input chooses a small vocabulary
 * of vocab_build.h (bit 0), whether it is damaged (bit 1), and whether control tokens are parsed
 * (bits 2 and 3, for the halves of the text); the second chooses the pre-tokenizer. In a damaged
 * vocabulary the third says how many patches follow, as (offset, value) in three bytes each. The
 * rest is text. */
#include "../engine/tokenizer_internal.h"
#include "gguf_check.h"
#include "vocab_build.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *p;
    size_t n;
} input;

static unsigned take(input *in)
{
    if (in->n == 0) return 0;
    in->n--;
    return *in->p++;
}

static void damage(gb *b, input *in)
{
    for (unsigned n = take(in); n > 0; n--) {
        const size_t at = take(in), high = take(in);
        b->p[(at | high << 8) % b->n] = (uint8_t)take(in);
    }
}

/* The words are the text, piece by piece. */
static bool next_word(void *user, const char *s, size_t n)
{
    const char **at = user;
    if (n == 0 || s != *at) abort();
    *at += n;
    return true;
}

static void check_words(const tn_vocab *v, const input *text)
{
    size_t invalid = 0;
    const size_t n = tn_utf8_clean((const char *)text->p, text->n, NULL, &invalid);
    if (!v->pre || invalid > 0 || n != text->n) return;
    const char *at = (const char *)text->p;
    if (tn_pre_split(v->pre, at, n, next_word, &at, NULL)) return;
    if (at != (const char *)text->p + n) abort();
}

static void tokenize(const tn_vocab *v, const input *text, unsigned parse)
{
    const size_t half = text->n / 2;
    const char *s = (const char *)text->p;
    const tn_piece p[] = {{s, half, parse & 1}, {s + half, text->n - half, parse >> 1 & 1}};
    int32_t *ids = NULL;
    size_t n = 0, invalid = 0;
    tn_error err = {0};
    const tn_status st =
        tn_vocab_tokenize_pieces(v, p, 2, TN_TOKENIZE_ADD_SPECIAL, &ids, &n, &invalid, &err);
    if (st ? ids || err.code != st || !*err.msg : invalid > text->n) abort();
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= v->n) abort();
        /* without being asked for, control tokens stand at the ends alone */
        if (!parse && i > 0 && i + 1 < n && v->tokens[ids[i]].attr == TN_TOKEN_CONTROL &&
            ids[i] != v->unknown)
            abort();
    }
    tn_free(v->a, ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    const unsigned choice = take(&in);
    size_t n_names = 0;
    while (tn_pre_name(n_names))
        n_names++;
    test_vocab v = choice & 1 ? bpe_vocab : llama_vocab;
    v.pre = tn_pre_name(take(&in) % n_names);
    opened o = {0};
    watch w = {0};
    const tn_allocator a = watched(&w);
    tn_error err = {0};
    build_vocab(&o.bytes, &v);
    if (choice & 2) damage(&o.bytes, &in);
    const tn_status st = open_bytes(&o, &a, &err);
    if ((st == TN_OK) != (o.v != NULL)) abort();
    if (st && (err.code != st || !*err.msg)) abort();
    if (o.v) {
        check_words(o.v, &in);
        tokenize(o.v, &in, choice >> 2 & 3);
    }
    close_vocab(&o);
    if (w.live || w.largest > 64 << 20) abort();
    return 0;
}
