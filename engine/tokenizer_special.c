/* Tokens that are found by their spelling: user-defined and control tokens. */
#include "tokenizer_internal.h"

#include <string.h>

/* ---- finding them in a text ---- */

static int compare_texts(const tn_vocab *v, int32_t x, int32_t y)
{
    const tn_vocab_token *a = &v->tokens[x], *b = &v->tokens[y];
    const int c = memcmp(a->text, b->text, a->n_text < b->n_text ? a->n_text : b->n_text);
    if (c) return c;
    if (a->n_text != b->n_text) return a->n_text < b->n_text ? -1 : 1;
    return x < y ? -1 : 1;
}

/* Heapsort: in place, and no input makes it slow. */
static void sort_ids(const tn_vocab *v, int32_t *ids, int32_t n)
{
    for (int32_t start = n / 2 - 1, end = n - 1; end > 0;) {
        int32_t i = start;
        if (start >= 0) {
            start--;
        } else {
            const int32_t top = ids[0];
            ids[0] = ids[end];
            ids[end--] = top;
            i = 0;
        }
        const int32_t moved = ids[i];
        for (int32_t child; (child = 2 * i + 1) <= end; i = child) {
            if (child < end && compare_texts(v, ids[child], ids[child + 1]) < 0) child++;
            if (compare_texts(v, moved, ids[child]) >= 0) break;
            ids[i] = ids[child];
        }
        ids[i] = moved;
    }
}

tn_status tn_matcher_build(tn_matcher *m, const tn_vocab *v, unsigned attrs, tn_error *err)
{
    for (int32_t id = 0; id < v->n; id++)
        m->n += (v->tokens[id].attr & attrs) != 0 && v->tokens[id].n_text > 0;
    m->ids = tn_alloc_raw(v->a, (size_t)m->n, sizeof *m->ids);
    if (!m->ids) return tn_fail_nomem(err, (size_t)m->n * sizeof *m->ids, "the vocabulary");
    int32_t n = 0;
    for (int32_t id = 0; id < v->n; id++)
        if ((v->tokens[id].attr & attrs) && v->tokens[id].n_text > 0) m->ids[n++] = id;
    sort_ids(v, m->ids, n);
    for (int32_t i = 0, byte = 0; byte <= 256; byte++) {
        while (i < n && (uint8_t)v->tokens[m->ids[i]].text[0] < byte)
            i++;
        m->first[byte] = i;
    }
    for (int32_t i = 0; i < n; i++) {
        const tn_vocab_token *t = &v->tokens[m->ids[i]];
        const unsigned row = (uint8_t)t->text[0] * 32u;
        if (t->n_text == 1)
            memset(m->pairs + row, 0xFF, 32);
        else
            m->pairs[row + (uint8_t)t->text[1] / 8] |= (uint8_t)(1u << (uint8_t)t->text[1] % 8);
    }
    return TN_OK;
}

/* First index in ids[lo, hi) whose byte `at` is above c (or not below it). All share the bytes
 * before. */
static int32_t bound(const tn_vocab *v, const int32_t *ids, int32_t lo, int32_t hi, size_t at,
                     uint8_t c, bool above)
{
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        const uint8_t b = (uint8_t)v->tokens[ids[mid]].text[at];
        if (b < c || (above && b == c))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int32_t tn_matcher_longest(const tn_matcher *m, const tn_vocab *v, const char *s, size_t n,
                           size_t n_parse)
{
    int32_t best = -1, lo = m->first[(uint8_t)s[0]], hi = m->first[(uint8_t)s[0] + 1];
    for (size_t at = 1; lo < hi; at++) {
        for (; lo < hi && v->tokens[m->ids[lo]].n_text == at; lo++)
            if (v->tokens[m->ids[lo]].attr == TN_TOKEN_USER_DEFINED || at <= n_parse)
                best = m->ids[lo];
        if (at == n) break;
        lo = bound(v, m->ids, lo, hi, at, (uint8_t)s[at], false);
        hi = bound(v, m->ids, lo, hi, at, (uint8_t)s[at], true);
    }
    return best;
}

/* ---- ends of a generation ---- */

/* Special tokens that end a turn or a text in the models of the field. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
    /* "<|end_of_sentence|>" of DeepSeek, with U+FF5C for the bars and U+2581 for the underscores */
    "<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
};

/* The special token with that text, -1 if there is none. Models that declare it user-defined mean
 * it all the same, but for </s>, which is a tag of HTML there. */
static int32_t find_special(const tn_vocab *v, const char *text)
{
    const size_t n = strlen(text);
    for (int32_t i = 0; i < v->match[1].n; i++) {
        const int32_t id = v->match[1].ids[i];
        const tn_vocab_token *t = &v->tokens[id];
        if (t->n_text != n || memcmp(t->text, text, n) != 0) continue;
        if (t->attr == TN_TOKEN_CONTROL) return id;
        if (t->attr == TN_TOKEN_USER_DEFINED && strcmp(text, "</s>") != 0) return id;
    }
    return -1;
}

void tn_vocab_mark_ends(tn_vocab *v)
{
    for (size_t i = 0; i < sizeof end_texts / sizeof *end_texts; i++) {
        const int32_t id = find_special(v, end_texts[i]);
        if (id >= 0) v->end[id] = true;
    }
    /* Where <|return|> and <|call|> end a turn, <|end|> only ends a message. */
    const int32_t end = find_special(v, "<|end|>");
    if (end >= 0 && ((find_special(v, "<|return|>") >= 0 && find_special(v, "<|call|>") >= 0) ||
                     (find_special(v, "<|calls|>") >= 0 && find_special(v, "<|flush|>") >= 0)))
        v->end[end] = false;
}
