/* Internal to tokenizer*.c: the vocabulary's tables and what its parts say to each other. */
#ifndef TN_TOKENIZER_INTERNAL_H
#define TN_TOKENIZER_INTERNAL_H

#include "tokenizer.h"

/* Longest token text, and longest text to tokenise: positions are 32 bits wide. */
enum { TN_MAX_TOKEN_BYTES = 1 << 16, TN_MAX_PRE_STEPS = 6 };
#define TN_MAX_TEXT_BYTES ((size_t)INT32_MAX / 2)

typedef enum tn_vocab_kind {
    TN_VOCAB_LLAMA, /* merges the best-scored pair; what is left over becomes bytes */
    TN_VOCAB_BPE    /* words of a pre-tokenizer; merges by rank */
} tn_vocab_kind;

typedef struct tn_vocab_token {
    const char *text;  /* as the file spells it, inside the file */
    const char *bytes; /* what it stands for, inside the arena */
    uint32_t n_text, n_bytes;
    int32_t rank;   /* llama kind: place in the order of scores, equal scores have equal ranks */
    uint8_t attr;   /* tn_token_attr */
    bool mergeable; /* text can become this token by merging */
} tn_vocab_token;

/* Open-addressing table: text -> token. */
typedef struct tn_text_table {
    uint64_t seed;
    size_t mask;
    struct tn_text_slot {
        uint32_t hash;
        int32_t id; /* -1 = free */
    } * slots;
} tn_text_table;

/* Open-addressing table: two neighbours -> the rank of their merge and what it makes. */
typedef struct tn_pair_table {
    size_t mask;
    struct tn_pair_slot {
        int32_t left, right; /* left -1 = free */
        int32_t rank, id;
    } * slots;
} tn_pair_table;

/* Finds tokens that are spelled out in a text: ids in the order of their bytes. */
typedef struct tn_matcher {
    int32_t *ids;
    int32_t first[257]; /* ids[first[b]] is the first that starts with byte b */
    uint8_t
        pairs[8192]; /* bit set: some token starts with these two bytes, or is the first alone */
    int32_t n;
} tn_matcher;

/* A pre-tokenizer: every step cuts the pieces of the step before at the matches of its pattern. */
typedef struct tn_pre_step {
    const char *pattern;
    bool threes; /* cut each match further, into groups of three from its end */
} tn_pre_step;
typedef struct tn_pre_row {
    const tn_pre_step *steps; /* ends with a NULL pattern */
    bool ignore_merges;       /* a word that is a token becomes it whatever the merges say */
    bool add_bos;             /* default of tokenizer.ggml.add_bos_token */
    bool nfc;                 /* the model's own tokenizer normalises */
} tn_pre_row;

typedef struct tn_pre tn_pre; /* a row's compiled patterns */

struct tn_vocab {
    const tn_allocator *a;
    const tn_gguf *gguf;
    tn_vocab_kind kind;
    int32_t n, n_ranks;
    uint32_t max_bytes;     /* of the longest mergeable token, as spelled in the table */
    tn_vocab_token *tokens; /* [n] */
    char *arena;            /* the tokens' bytes */
    tn_text_table texts;
    tn_pair_table pairs;
    tn_matcher match[2]; /* user-defined tokens; these and control tokens */
    tn_pre *pre;
    int32_t byte_id[256]; /* token of a single byte, -1 if there is none */
    bool *end;            /* [n] ends a generation */
    int32_t bos, eos, unknown;
    bool add_bos, add_eos, add_space_prefix, squeeze_spaces, nfc, ignore_merges;
    bool *strips; /* [n] white space behind the special token belongs to it; NULL: nowhere */
};

/* Growing list of token ids. */
typedef struct tn_ids {
    const tn_allocator *a;
    int32_t *ids;
    size_t n, cap;
} tn_ids;

static inline bool tn_ids_push(tn_ids *out, int32_t id)
{
    if (out->n == out->cap &&
        !tn_grow(out->a, (void **)&out->ids, &out->cap, out->n, out->n + 1, sizeof *out->ids))
        return false;
    out->ids[out->n++] = id;
    return true;
}

/* ---- tokenizer_tables.c ---- */

/* Fills v->texts from v->tokens. */
tn_status tn_vocab_index_texts(tn_vocab *v, tn_error *err);
/* Fills v->pairs and byte_id from `tokenizer.ggml.merges`. */
tn_status tn_vocab_index_merges(tn_vocab *v, const tn_gguf_key *merges, tn_error *err);
/* Bytes of a byte-level token; characters outside the alphabet stand for themselves. */
uint32_t tn_decode_byte_level(char *dst, const char *s, uint32_t n);

/* The mergeable token with that text in the table's spelling, or -1. */
int32_t tn_vocab_find(const tn_vocab *v, const char *s, size_t n);
/* BPE: the mergeable token that stands for these bytes, or -1. */
int32_t tn_vocab_find_bytes(const tn_vocab *v, const char *s, size_t n);
static inline uint64_t tn_pair_hash(int32_t left, int32_t right)
{
    const uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const uint64_t h = key * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

/* ---- tokenizer_special.c ---- */

/* Makes m find the tokens with one of the attributes. */
tn_status tn_matcher_build(tn_matcher *m, const tn_vocab *v, unsigned attrs, tn_error *err);
/* The longest token spelled at s (n >= 1 bytes), -1 if there is none. Tokens that are not
 * user-defined must end within n_parse bytes. */
int32_t tn_matcher_longest(const tn_matcher *m, const tn_vocab *v, const char *s, size_t n,
                           size_t n_parse);
/* False where no token can start: a quick answer for nearly every place in a text. */
static inline bool tn_matcher_may_start(const tn_matcher *m, const char *s, size_t n)
{
    const uint8_t a = (uint8_t)s[0];
    if (n == 1) return m->first[a] < m->first[a + 1];
    return m->pairs[a * 32u + (uint8_t)s[1] / 8] >> (uint8_t)s[1] % 8 & 1;
}
/* Sets v->end for special tokens that are known by their text. */
void tn_vocab_mark_ends(tn_vocab *v);

/* ---- tokenizer_text.c ---- */

/* Bytes of the UTF-8 character at s, n >= 1 bytes left; 0 if there is none, then *bad is the number
 * of bytes that U+FFFD stands for. */
size_t tn_utf8_step(const char *s, size_t n, size_t *bad);
/* Copies text with U+FFFD for what is no UTF-8. dst NULL: only counts. Returns the length. */
size_t tn_utf8_clean(const char *s, size_t n, char *dst, size_t *n_invalid);
/* Writes a code point, returns the number of bytes. */
size_t tn_utf8_put(char *dst, uint32_t c);
/* Normalisation form C of valid UTF-8. *out is s itself if that already is (or surely is) in NFC,
 * else a new string to be freed. TN_ENOMEM. */
tn_status tn_nfc(const tn_allocator *a, const char *s, size_t n, const char **out, size_t *n_out,
                 tn_error *err);

/* ---- tokenizer_pre.c ---- */

/* The row with that name; false if there is none. tn_pre_name: the names, NULL after the last. */
bool tn_pre_find(tn_str name, tn_pre_row *row);
const char *tn_pre_name(size_t i);
tn_status tn_pre_new(tn_pre **out, const tn_pre_step *steps, const tn_allocator *a, tn_error *err);
void tn_pre_free(tn_pre *pre);
/* Calls word for each word of valid UTF-8 in order; a false answer ends with TN_ENOMEM. */
typedef bool (*tn_word_fn)(void *user, const char *s, size_t n);
tn_status tn_pre_split(const tn_pre *pre, const char *s, size_t n, tn_word_fn word, void *user,
                       tn_error *err);

/* ---- tokenizer_merge.c ---- */

typedef struct tn_merger tn_merger;
/* Scratch of one tokenisation, grown as needed. */
struct tn_merger {
    const tn_vocab *v;
    tn_ids *out;
    size_t first; /* index in out of the word's first token */
    struct tn_symbol *symbols;
    size_t cap_symbols;
    struct tn_bucket *buckets; /* [n_ranks] */
    int32_t *heap;             /* [n_ranks] */
    int32_t n_heap;
};
void tn_merger_free(tn_merger *m);
/* Appends the tokens of one word (BPE) or of a text between special tokens (llama, ' ' for U+2581).
 * False when memory is short. */
bool tn_merge_word(tn_merger *m, const char *s, size_t n);

#endif
