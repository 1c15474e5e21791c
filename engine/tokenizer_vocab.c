/* The vocabulary: `tokenizer.ggml.*` keys -> one arena of token bytes and flat tables. Every value
 * in the file is taken as hostile. Nothing is copied that the file can lend. */
#include "tokenizer_internal.h"

#include <limits.h>
#include <math.h>
#include <string.h>
#include <strings.h>

/* Token types as numbered in the file. */
enum { type_normal = 1, type_unknown, type_control, type_user_defined, type_unused, type_byte };

static const int32_t max_records = 1 << 26; /* tokens, merges */

typedef struct builder {
    tn_vocab *v;
    const tn_gguf *g;
    const tn_gguf_key *tokens, *types, *scores, *merges;
    tn_error *err;
} builder;

static tn_status fail_key(const builder *b, const tn_gguf_key *k, const char *what)
{
    return tn_fail(b->err, TN_EFORMAT, k->offset, "%s: key '%.*s' at byte %lld %s",
                   tn_gguf_part_path(b->g, 0), (int)k->name.len, k->name.data, (long long)k->offset,
                   what);
}

/* ---- tokens ---- */

/* An array key that must be there, with elements of the kind. */
static tn_status get_array(builder *b, const tn_gguf_key **out, const char *name, tn_gguf_kind kind,
                           bool needed)
{
    *out = tn_gguf_find(b->g, name);
    if (!*out && needed)
        return tn_fail(b->err, TN_EFORMAT, -1,
                       "%s: key '%s' is missing: the file has no vocabulary",
                       tn_gguf_part_path(b->g, 0), name);
    if (!*out) return TN_OK;
    if ((*out)->kind != TN_GGUF_ARRAY || (*out)->element != kind)
        return fail_key(b, *out,
                        kind == TN_GGUF_STRING ? "is no array of strings"
                        : kind == TN_GGUF_F32  ? "is no array of F32"
                                               : "is no array of I32");
    if ((*out)->n > (uint64_t)max_records) return fail_key(b, *out, "has too many elements");
    return TN_OK;
}

/* Bytes of a llama token: U+2581 stands for a space. */
static uint32_t decode_llama(char *dst, const char *s, uint32_t n)
{
    uint32_t to = 0;
    for (uint32_t i = 0; i < n;) {
        const bool space = n - i >= 3 && memcmp(s + i, "\xE2\x96\x81", 3) == 0;
        dst[to++] = space ? ' ' : s[i];
        i += space ? 3 : 1;
    }
    return to;
}

/* "<0xAB>" -> 0xAB; -1 if the text is something else. */
static int parse_byte(const char *s, uint32_t n)
{
    int value = 0;
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    for (int i = 3; i < 5; i++) {
        const char c = s[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

static tn_token_attr attr_of_type(int64_t type)
{
    switch (type) {
    case type_unknown: return TN_TOKEN_UNKNOWN;
    case type_control: return TN_TOKEN_CONTROL;
    case type_user_defined: return TN_TOKEN_USER_DEFINED;
    case type_unused: return TN_TOKEN_UNUSED;
    case type_byte: return TN_TOKEN_BYTE;
    default: return TN_TOKEN_NORMAL;
    }
}

/* Fills one token; *to is where its bytes go. */
static tn_status read_token(builder *b, int32_t id, tn_str s, char **to)
{
    tn_vocab *v = b->v;
    tn_vocab_token *t = &v->tokens[id];
    int64_t type = type_normal;
    if (b->types) tn_gguf_value_i64(b->types, (uint64_t)id, &type);
    if (s.len > TN_MAX_TOKEN_BYTES)
        return fail_key(b, b->tokens, "has a token of more than 64 KiB");
    *t = (tn_vocab_token){s.data, *to, (uint32_t)s.len, 0, 0, (uint8_t)attr_of_type(type), true};
    const int byte = parse_byte(s.data, t->n_text);
    if (t->attr == TN_TOKEN_BYTE) {
        if (byte < 0)
            return fail_key(b, b->types, "calls a token a byte whose text is not like <0x0A>");
        **to = (char)byte;
        t->n_bytes = 1;
        if (v->byte_id[byte] < 0) v->byte_id[byte] = id;
    } else if (t->attr != TN_TOKEN_CONTROL && t->attr != TN_TOKEN_UNKNOWN) {
        if (v->kind == TN_VOCAB_LLAMA)
            t->n_bytes = decode_llama(*to, s.data, t->n_text);
        else if (t->attr == TN_TOKEN_USER_DEFINED)
            memcpy(*to, s.data, t->n_bytes = t->n_text);
        else
            t->n_bytes = tn_decode_byte_level(*to, s.data, t->n_text);
    }
    t->mergeable = s.len > 0 && (t->attr == TN_TOKEN_NORMAL || t->attr == TN_TOKEN_USER_DEFINED ||
                                 t->attr == TN_TOKEN_UNUSED);
    /* In the llama kind a text never holds a plain space: spaces are spelled U+2581. */
    if (v->kind == TN_VOCAB_LLAMA && memchr(s.data, ' ', s.len)) t->mergeable = false;
    *to += t->n_bytes;
    return TN_OK;
}

static tn_status read_tokens(builder *b)
{
    tn_vocab *v = b->v;
    tn_status s = get_array(b, &b->tokens, "tokenizer.ggml.tokens", TN_GGUF_STRING, true);
    if (!s) s = get_array(b, &b->types, "tokenizer.ggml.token_type", TN_GGUF_I32, false);
    if (s) return s;
    if (b->tokens->n == 0) return fail_key(b, b->tokens, "is empty");
    if (b->types && b->types->n != b->tokens->n)
        return fail_key(b, b->types, "has another number of elements than there are tokens");
    v->n = (int32_t)b->tokens->n;
    v->tokens = tn_alloc_raw(v->a, (size_t)v->n, sizeof *v->tokens);
    v->arena = tn_alloc_raw(v->a, b->tokens->data_bytes, 1);
    v->end = tn_alloc(v->a, (size_t)v->n, sizeof *v->end);
    if (!v->tokens || !v->arena || !v->end)
        return tn_fail_nomem(b->err, (size_t)v->n * sizeof *v->tokens, "the vocabulary");
    memset(v->byte_id, 0xFF, sizeof v->byte_id);
    char *to = v->arena;
    size_t pos = 0;
    tn_str text;
    for (int32_t id = 0; !s && tn_gguf_str_walk(b->tokens, &pos, &text); id++)
        s = read_token(b, id, text, &to);
    return s ? s : tn_vocab_index_texts(v, b->err);
}

/* ---- scores ---- */

typedef struct scored {
    float score;
    int32_t id;
} scored;

/* Order-preserving bits of -score: ascending keys are descending scores. */
static uint32_t score_key(float score)
{
    uint32_t u;
    memcpy(&u, &score, 4);
    return u & 0x80000000u ? u : ~u & 0x7FFFFFFFu;
}

/* Sorts by score_key with two passes over 16 bits each; spare has room for n. */
static void sort_scores(scored *p, scored *spare, int32_t n, uint32_t *count)
{
    for (int shift = 0; shift < 32; shift += 16) {
        memset(count, 0, 65537 * sizeof *count);
        for (int32_t i = 0; i < n; i++)
            count[(score_key(p[i].score) >> shift & 0xFFFF) + 1]++;
        for (int k = 1; k <= 65536; k++)
            count[k] += count[k - 1];
        for (int32_t i = 0; i < n; i++)
            spare[count[score_key(p[i].score) >> shift & 0xFFFF]++] = p[i];
        memcpy(p, spare, (size_t)n * sizeof *p);
    }
}

static tn_status read_scores(builder *b)
{
    tn_vocab *v = b->v;
    tn_status s = get_array(b, &b->scores, "tokenizer.ggml.scores", TN_GGUF_F32, true);
    if (s) return s;
    if (b->scores->n != b->tokens->n)
        return fail_key(b, b->scores, "has another number of elements than there are tokens");
    const size_t n = (size_t)v->n;
    scored *p = tn_alloc_raw(v->a, 2 * n, sizeof *p);
    uint32_t *count = p ? tn_alloc_raw(v->a, 65537, sizeof *count) : NULL;
    if (!count) {
        tn_free(v->a, p);
        return tn_fail_nomem(b->err, 2 * n * sizeof *p, "the scores of the vocabulary");
    }
    for (int32_t i = 0; !s && i < v->n; i++) {
        double score = 0;
        tn_gguf_value_f64(b->scores, (uint64_t)i, &score);
        p[i] = (scored){(float)score, i};
        if (isnan(score)) s = fail_key(b, b->scores, "holds a NaN");
    }
    if (!s) sort_scores(p, p + n, v->n, count);
    int32_t rank = 0;
    for (int32_t i = 0; !s && i < v->n; i++) {
        if (i > 0 && p[i].score != p[i - 1].score) rank++;
        v->tokens[p[i].id].rank = rank;
    }
    v->n_ranks = rank + 1;
    tn_free(v->a, p);
    tn_free(v->a, count);
    return s;
}

/* ---- special tokens ---- */

static tn_status read_merges(builder *b)
{
    tn_status s = get_array(b, &b->merges, "tokenizer.ggml.merges", TN_GGUF_STRING, true);
    return s ? s : tn_vocab_index_merges(b->v, b->merges, b->err);
}

static tn_status read_id(builder *b, const char *name, int32_t *id)
{
    const tn_gguf_key *k = tn_gguf_find(b->g, name);
    uint32_t value = UINT32_MAX;
    tn_status s = tn_gguf_get_u32(b->g, name, &value, b->err);
    if (s || !k) return s;
    if (value == UINT32_MAX) { /* how -1, "none", is spelled in a U32 */
        *id = -1;
        return TN_OK;
    }
    if (value >= (uint32_t)b->v->n) return fail_key(b, k, "is no token of the vocabulary");
    *id = (int32_t)value;
    return TN_OK;
}

/* Old files give the special tokens that they name by id no type of their own. Only what looks like
 * one is taken for one: a text as people write it must stay text. */
static void set_type(tn_vocab *v, int32_t id, tn_token_attr attr)
{
    tn_vocab_token *t = id < 0 ? NULL : &v->tokens[id];
    if (!t || t->attr != TN_TOKEN_NORMAL || t->n_text < 3) return;
    const char first = t->text[0], last = t->text[t->n_text - 1];
    if (!(first == '<' && last == '>') && !(first == '[' && last == ']')) return;
    t->attr = (uint8_t)attr;
    t->mergeable = false;
    t->n_bytes = 0;
}

static tn_status read_specials(builder *b, int32_t *eot, int32_t *eom)
{
    tn_vocab *v = b->v;
    const bool llama = v->kind == TN_VOCAB_LLAMA;
    v->bos = llama && v->n > 2 ? 1 : -1;
    v->eos = llama && v->n > 2 ? 2 : -1;
    v->unknown = llama ? 0 : -1;
    tn_status s = read_id(b, "tokenizer.ggml.bos_token_id", &v->bos);
    if (!s) s = read_id(b, "tokenizer.ggml.eos_token_id", &v->eos);
    if (!s) s = read_id(b, "tokenizer.ggml.unknown_token_id", &v->unknown);
    if (!s) s = read_id(b, "tokenizer.ggml.eot_token_id", eot);
    if (!s) s = read_id(b, "tokenizer.ggml.eom_token_id", eom);
    if (!s) s = tn_gguf_get_bool(b->g, "tokenizer.ggml.add_bos_token", &v->add_bos, b->err);
    if (!s) s = tn_gguf_get_bool(b->g, "tokenizer.ggml.add_eos_token", &v->add_eos, b->err);
    if (s) return s;
    const int32_t ids[] = {v->bos, v->eos, *eot, *eom};
    for (int i = 0; i < 4; i++)
        set_type(v, ids[i], TN_TOKEN_CONTROL);
    set_type(v, v->unknown, TN_TOKEN_UNKNOWN);
    return TN_OK;
}

static void mark_ends(tn_vocab *v, int32_t eot, int32_t eom)
{
    tn_vocab_mark_ends(v);
    if (v->eos >= 0) v->end[v->eos] = true;
    if (eot >= 0) v->end[eot] = true;
    if (eom >= 0) v->end[eom] = true;
}

/* ---- all of it ---- */

static bool same(tn_str s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static tn_status read_kind(builder *b, tn_pre_row *row)
{
    tn_str kind = {"", 0}, pre = {"default", 7};
    tn_status s = tn_gguf_get_str(b->g, "tokenizer.ggml.model", &kind, b->err);
    if (!s) s = tn_gguf_get_str(b->g, "tokenizer.ggml.pre", &pre, b->err);
    if (s) return s;
    const tn_gguf_key *k = tn_gguf_find(b->g, "tokenizer.ggml.model");
    if (same(kind, "llama")) {
        b->v->kind = TN_VOCAB_LLAMA;
        return TN_OK;
    }
    if (!same(kind, "gpt2"))
        return tn_fail(b->err, TN_EUNSUPPORTED, k ? k->offset : -1,
                       "%s: tokenizer kind '%.*s' is not supported (llama and gpt2 are)",
                       tn_gguf_part_path(b->g, 0), (int)(kind.len < 60 ? kind.len : 60), kind.data);
    b->v->kind = TN_VOCAB_BPE;
    if (tn_pre_find(pre, row)) return TN_OK;
    k = tn_gguf_find(b->g, "tokenizer.ggml.pre");
    return tn_fail(b->err, TN_EUNSUPPORTED, k ? k->offset : -1,
                   "%s: pre-tokenizer '%.*s' is not supported", tn_gguf_part_path(b->g, 0),
                   (int)(pre.len < 60 ? pre.len : 60), pre.data);
}

/* True if s contains text, in any letter case. */
static bool contains(tn_str s, const char *text)
{
    const size_t n = strlen(text);
    for (size_t i = 0; i + n <= s.len; i++)
        if (strncasecmp(s.data + i, text, n) == 0) return true;
    return false;
}

/* Phi-3's special tokens, but for three, take the white space behind them. */
static tn_status strip_phi3(builder *b)
{
    tn_vocab *v = b->v;
    v->strips = tn_alloc(v->a, (size_t)v->n, sizeof *v->strips);
    if (!v->strips) return tn_fail_nomem(b->err, (size_t)v->n, "the vocabulary");
    for (int32_t i = 0; i < v->match[1].n; i++) {
        const int32_t id = v->match[1].ids[i];
        const tn_str s = {v->tokens[id].text, v->tokens[id].n_text};
        v->strips[id] = !same(s, "<unk>") && !same(s, "<s>") && !same(s, "<|endoftext|>");
    }
    return TN_OK;
}

/* What no key says, but the models' own tokenizers do. */
static tn_status read_habits(builder *b)
{
    tn_str name = {"", 0}, arch = {"", 0};
    tn_status s = tn_gguf_get_str(b->g, "general.name", &name, b->err);
    if (!s) s = tn_gguf_get_str(b->g, "general.architecture", &arch, b->err);
    if (s) return s;
    if (same(arch, "gptneox")) b->v->nfc = true;
    return contains(name, "phi-3") || contains(name, "phi3") ? strip_phi3(b) : TN_OK;
}

static tn_status read_all(builder *b)
{
    tn_vocab *v = b->v;
    tn_pre_row row = {0};
    int32_t eot = -1, eom = -1;
    tn_status s = read_kind(b, &row);
    if (s) return s;
    v->add_bos = v->add_space_prefix = v->kind == TN_VOCAB_LLAMA;
    v->add_bos |= row.add_bos;
    v->nfc = row.nfc;
    v->ignore_merges = row.ignore_merges;
    s = tn_gguf_get_bool(b->g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, b->err);
    if (!s)
        s = tn_gguf_get_bool(b->g, "tokenizer.ggml.remove_extra_whitespaces", &v->squeeze_spaces,
                             b->err);
    if (!s) s = read_tokens(b);
    if (!s) s = read_specials(b, &eot, &eom);
    if (!s) s = v->kind == TN_VOCAB_LLAMA ? read_scores(b) : read_merges(b);
    if (!s) s = tn_matcher_build(&v->match[0], v, TN_TOKEN_USER_DEFINED, b->err);
    if (!s)
        s = tn_matcher_build(&v->match[1], v,
                             TN_TOKEN_USER_DEFINED | TN_TOKEN_CONTROL | TN_TOKEN_UNKNOWN, b->err);
    if (!s) mark_ends(v, eot, eom);
    if (!s) s = read_habits(b);
    if (!s && row.steps) s = tn_pre_new(&v->pre, row.steps, v->a, b->err);
    return s;
}

tn_status tn_vocab_new(tn_vocab **out, const tn_gguf *g, const tn_allocator *a, tn_error *err)
{
    *out = NULL;
    builder b = {.g = g, .err = err};
    b.v = tn_alloc(a, 1, sizeof *b.v);
    if (!b.v) return tn_fail_nomem(err, sizeof *b.v, "the vocabulary");
    b.v->a = a;
    b.v->gguf = g;
    const tn_status s = read_all(&b);
    if (s) {
        tn_vocab_free(b.v);
        return s;
    }
    *out = b.v;
    return TN_OK;
}

void tn_vocab_free(tn_vocab *v)
{
    if (!v) return;
    tn_pre_free(v->pre);
    tn_free(v->a, v->match[0].ids);
    tn_free(v->a, v->match[1].ids);
    tn_free(v->a, v->pairs.slots);
    tn_free(v->a, v->texts.slots);
    tn_free(v->a, v->tokens);
    tn_free(v->a, v->arena);
    tn_free(v->a, v->end);
    tn_free(v->a, v->strips);
    tn_free(v->a, v);
}

int32_t tn_vocab_size(const tn_vocab *v)
{
    return v->n;
}
