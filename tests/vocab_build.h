/* Small vocabularies for the tests of the tokenizers, written as GGUF headers. */
#ifndef TN_VOCAB_BUILD_H
#define TN_VOCAB_BUILD_H

#include "../engine/tokenizer.h"
#include "gguf_build.h"
#include "harness.h"

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };

typedef struct test_token {
    const char *text;
    int type;
    float score;
} test_token;

typedef struct test_vocab {
    const char *kind, *pre, *arch, *name; /* pre, arch, name: NULL = no such key */
    const test_token *tokens;
    uint64_t n_tokens;
    const char *const *merges;
    uint64_t n_merges;
    int bos, eos;              /* -1: no such key */
    int add_bos, add_eos;      /* -1: no such key */
    int space_prefix, squeeze; /* -1: no such key */
    const char *id_key;        /* one more U32 key, NULL: none */
    uint32_t id;
} test_vocab;

static inline void build_arrays(gb *b, const test_vocab *v)
{
    gb_array(b, "tokenizer.ggml.tokens", TN_GGUF_STRING, v->n_tokens);
    for (uint64_t i = 0; i < v->n_tokens; i++)
        gb_str(b, v->tokens[i].text);
    gb_array(b, "tokenizer.ggml.token_type", TN_GGUF_I32, v->n_tokens);
    for (uint64_t i = 0; i < v->n_tokens; i++)
        gb_u32(b, (uint32_t)v->tokens[i].type);
    gb_array(b, "tokenizer.ggml.scores", TN_GGUF_F32, v->n_tokens);
    for (uint64_t i = 0; i < v->n_tokens; i++)
        gb_f32(b, v->tokens[i].score);
    gb_array(b, "tokenizer.ggml.merges", TN_GGUF_STRING, v->n_merges);
    for (uint64_t i = 0; i < v->n_merges; i++)
        gb_str(b, v->merges[i]);
}

static inline void build_bool(gb *b, const char *key, int value, uint64_t *n)
{
    if (value < 0) return;
    gb_key(b, key, TN_GGUF_BOOL);
    gb_u8(b, (uint64_t)value);
    ++*n;
}

/* The header of a file with this vocabulary and nothing else. */
static inline void build_vocab(gb *b, const test_vocab *v)
{
    uint64_t n = 5;
    gb_header(b, 3, 0, 0);
    gb_key_str(b, "tokenizer.ggml.model", v->kind);
    build_arrays(b, v);
    const char *names[] = {"tokenizer.ggml.pre", "general.architecture", "general.name"};
    const char *values[] = {v->pre, v->arch, v->name};
    for (int i = 0; i < 3; i++) {
        if (values[i]) gb_key_str(b, names[i], values[i]);
        n += values[i] != NULL;
    }
    if (v->bos >= 0) gb_key_u32(b, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    if (v->eos >= 0) gb_key_u32(b, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    if (v->id_key) gb_key_u32(b, v->id_key, v->id);
    n += (v->bos >= 0) + (v->eos >= 0) + (v->id_key != NULL);
    build_bool(b, "tokenizer.ggml.add_bos_token", v->add_bos, &n);
    build_bool(b, "tokenizer.ggml.add_eos_token", v->add_eos, &n);
    build_bool(b, "tokenizer.ggml.add_space_prefix", v->space_prefix, &n);
    build_bool(b, "tokenizer.ggml.remove_extra_whitespaces", v->squeeze, &n);
    for (int i = 0; i < 8; i++)
        b->p[16 + i] = (uint8_t)(n >> (8 * i));
}

#define U2581 "\xE2\x96\x81"

/* ids: 0 <unk> 1 <s> 2 </s> 3 <|im_end|> 4 "!!" 5.. */
static const test_token llama_tokens[] = {
    {"<unk>", UNKNOWN, 0},      {"<s>", CONTROL, 0}, {"</s>", CONTROL, 0},
    {"<|im_end|>", CONTROL, 0}, {"!!", USER, 0},     {U2581, NORMAL, -9},
    {"a", NORMAL, -9},          {"b", NORMAL, -9},   {"c", NORMAL, -9},
    {"ab", NORMAL, -1},         {"bc", NORMAL, -1},  {U2581 "ab", NORMAL, -2},
    {"abc", NORMAL, -5},        {"<0xC3>", BYTE, 0}, {"<0xA9>", BYTE, 0},
    {U2581 U2581, NORMAL, -3},  {"<0x0A>", BYTE, 0}, {"\xC3\xBC", NORMAL, -9},
};
static const test_vocab llama_vocab = {
    "llama", NULL, NULL, NULL, llama_tokens, sizeof llama_tokens / sizeof *llama_tokens,
    NULL,    0,    1,    2,    -1,           -1,
    -1,      -1,   NULL, 0};

#define SPACE "\xC4\xA0" /* U+0120: ' ' in the byte-level alphabet */
/* ids: 0 <|endoftext|> 1 <|im_end|> 2 "!!" 3.. ; 14 and 15 are the bytes of U+00E9 */
static const test_token bpe_tokens[] = {
    {"<|endoftext|>", CONTROL, 0},
    {"<|im_end|>", CONTROL, 0},
    {"!!", USER, 0},
    {"a", NORMAL, 0},
    {"b", NORMAL, 0},
    {"c", NORMAL, 0},
    {SPACE, NORMAL, 0},
    {"1", NORMAL, 0},
    {"ab", NORMAL, 0},
    {"bc", NORMAL, 0},
    {SPACE "a", NORMAL, 0},
    {SPACE "ab", NORMAL, 0},
    {"abc", NORMAL, 0},
    {"e", NORMAL, 0},
    {"\xC3\x83", NORMAL, 0},
    {"\xC2\xA9", NORMAL, 0},
    {"\xC3\x83\xC2\xA9", NORMAL, 0},
    {"!", NORMAL, 0},
    {"\xC3\x8C", NORMAL, 0},
    {"\xC4\xA3", NORMAL, 0},
};
static const char *const bpe_merges[] = {"b c", "a b", SPACE " a", SPACE "a b",
                                         "\xC3\x83 \xC2\xA9"};
static const test_vocab bpe_vocab = {"gpt2",     "gpt-2",
                                     NULL,       NULL,
                                     bpe_tokens, sizeof bpe_tokens / sizeof *bpe_tokens,
                                     bpe_merges, sizeof bpe_merges / sizeof *bpe_merges,
                                     0,          0,
                                     -1,         -1,
                                     -1,         -1,
                                     NULL,       0};

/* ---- opened vocabularies ---- */

typedef struct opened {
    tn_gguf *g;
    tn_vocab *v;
    gb bytes;
} opened;

static inline void close_vocab(opened *o)
{
    tn_vocab_free(o->v);
    tn_gguf_close(o->g);
    gb_free(&o->bytes);
}

static inline tn_status open_bytes(opened *o, const tn_allocator *a, tn_error *err)
{
    const tn_gguf_options opt = {sizeof opt, true, a};
    tn_status s = tn_gguf_parse(&o->g, o->bytes.p, o->bytes.n, "v.gguf", &opt, err);
    return s ? s : tn_vocab_new(&o->v, o->g, a, err);
}

static inline opened open_vocab(const test_vocab *v)
{
    opened o = {0};
    tn_error err = {0};
    build_vocab(&o.bytes, v);
    if (open_bytes(&o, &tn_default_allocator, &err)) FAIL("%s", err.msg);
    return o;
}

/* ---- ids ---- */

/* The ids as "1 2 3". */
static inline const char *ids_text(const int32_t *ids, size_t n)
{
    static char text[4000];
    size_t at = 0;
    text[0] = 0;
    for (size_t i = 0; i < n && at < sizeof text - 20; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%d", i ? " " : "", (int)ids[i]);
    return text;
}

static inline const char *tokens_of(const tn_vocab *v, const tn_piece *p, size_t n, unsigned flags)
{
    int32_t *ids;
    size_t n_ids;
    static tn_error err;
    if (tn_vocab_tokenize_pieces(v, p, n, flags, &ids, &n_ids, NULL, &err)) return err.msg;
    const char *text = ids_text(ids, n_ids);
    tn_free(&tn_default_allocator, ids);
    return text;
}

static inline const char *tokens(const opened *o, const char *s, bool special)
{
    const tn_piece p = {s, strlen(s), special};
    return tokens_of(o->v, &p, 1, special ? TN_TOKENIZE_ADD_SPECIAL : 0);
}

#endif
