/* The flat tables behind a vocabulary: text -> token, and pair of tokens -> merge. */
#include "tokenizer_internal.h"

#include <stdio.h>
#include <string.h>

/* ---- the byte-level alphabet ---- */

/* The byte that a character of the byte-level alphabet stands for, -1 if it is none of it.
 * Printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 on. */
static int byte_of_char(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF))
        return (int)c;
    if (c < 0x100 || c > 0x143) return -1;
    c -= 0x100;
    return c < 0x21 ? (int)c : c < 0x21 + 0x22 ? (int)(c - 0x21 + 0x7F) : 0xAD;
}
static uint32_t char_of_byte(uint8_t b)
{
    if (byte_of_char(b) == b) return b;
    return b < 0x21 ? 0x100u + b : b == 0xAD ? 0x143u : 0x121u + b - 0x7F;
}

/* Bytes of a byte-level token; characters outside the alphabet stand for themselves. */
uint32_t tn_decode_byte_level(char *dst, const char *s, uint32_t n)
{
    uint32_t to = 0;
    for (uint32_t i = 0; i < n;) {
        const uint8_t c = (uint8_t)s[i];
        int byte = -1;
        if (c < 0x80)
            byte = byte_of_char(c);
        else if (c >= 0xC2 && c <= 0xC5 && i + 1 < n && ((uint8_t)s[i + 1] & 0xC0) == 0x80)
            byte = byte_of_char((c & 0x1Fu) << 6 | (s[i + 1] & 0x3Fu));
        dst[to++] = byte >= 0 ? (char)byte : s[i];
        i += byte >= 0 && c >= 0x80 ? 2 : 1;
    }
    return to;
}

/* ---- text -> token ---- */

static inline uint64_t fold(uint64_t a, uint64_t b)
{
    const unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static inline uint64_t load(const char *s, size_t n)
{
    uint64_t w = 0;
    uint32_t lo, hi;
    if (n >= 8) {
        memcpy(&w, s, 8);
    } else if (n >= 4) { /* two overlapping halves */
        memcpy(&lo, s, 4);
        memcpy(&hi, s + n - 4, 4);
        w = (uint64_t)hi << 32 | lo;
    } else if (n > 0) {
        w = (uint64_t)(uint8_t)s[0] | (uint64_t)(uint8_t)s[n / 2] << 8 |
            (uint64_t)(uint8_t)s[n - 1] << 16;
    }
    return w;
}

static inline uint64_t text_hash(uint64_t seed, const char *s, size_t n)
{
    uint64_t h = seed ^ n * 0xA0761D6478BD642Fu;
    for (; n > 8; n -= 8, s += 8)
        h = fold(h ^ load(s, 8), 0xE7037ED1A0B428DBu);
    return fold(h ^ load(s, n), 0x8EBC6AF09C88C6E3u);
}

static inline bool equal(const char *a, const char *b, size_t n)
{
    for (; n > 8; n -= 8, a += 8, b += 8)
        if (load(a, 8) != load(b, 8)) return false;
    return load(a, n) == load(b, n);
}

/* The text under which a token is in the table. */
static inline const char *table_text(const tn_vocab *v, const tn_vocab_token *t, uint32_t *n)
{
    *n = v->kind == TN_VOCAB_LLAMA ? t->n_bytes : t->n_text;
    return v->kind == TN_VOCAB_LLAMA ? t->bytes : t->text;
}

static inline size_t first_slot(const tn_vocab *v, uint64_t hash)
{
    return (size_t)(hash >> 32) & v->texts.mask;
}

/* Slot of the text, or the free one where it belongs. */
static inline struct tn_text_slot *find_slot(const tn_vocab *v, const char *s, size_t n,
                                             uint64_t hash)
{
    for (size_t i = first_slot(v, hash);; i = (i + 1) & v->texts.mask) {
        struct tn_text_slot *slot = &v->texts.slots[i];
        if (slot->id < 0) return slot;
        if (slot->hash != (uint32_t)hash) continue;
        uint32_t len;
        const char *text = table_text(v, &v->tokens[slot->id], &len);
        if (len == n && equal(text, s, n)) return slot;
    }
}

int32_t tn_vocab_find(const tn_vocab *v, const char *s, size_t n)
{
    const int32_t id = find_slot(v, s, n, text_hash(v->texts.seed, s, n))->id;
    return id >= 0 && v->tokens[id].mergeable ? id : -1;
}

int32_t tn_vocab_find_bytes(const tn_vocab *v, const char *s, size_t n)
{
    char text[2 * TN_MAX_TOKEN_BYTES];
    size_t to = 0;
    if (n > TN_MAX_TOKEN_BYTES) return -1;
    for (size_t i = 0; i < n; i++) {
        const uint8_t b = (uint8_t)s[i];
        if (b > 0x20 && b < 0x7F)
            text[to++] = (char)b;
        else
            to += tn_utf8_put(text + to, char_of_byte(b));
    }
    return tn_vocab_find(v, text, to);
}

/* A power of two, at least 4/3 of the records. */
static size_t table_slots(size_t n)
{
    size_t slots = 16;
    while (slots * 3 < n * 4)
        slots *= 2;
    return slots;
}

tn_status tn_vocab_index_texts(tn_vocab *v, tn_error *err)
{
    const size_t n = table_slots((size_t)v->n), bytes = n * sizeof *v->texts.slots;
    v->texts.slots = tn_alloc_raw(v->a, n, sizeof *v->texts.slots);
    if (!v->texts.slots) return tn_fail_nomem(err, bytes, "the vocabulary");
    v->texts.mask = n - 1;
    /* Where the loader puts things: a file cannot know which texts will collide. */
    v->texts.seed = fold((uint64_t)(uintptr_t)v->texts.slots, 0x9E3779B97F4A7C15u);
    memset(v->texts.slots, 0xFF, bytes); /* id -1 everywhere */
    for (int32_t id = 0; id < v->n; id++) {
        uint32_t len;
        const char *s = table_text(v, &v->tokens[id], &len);
        const uint64_t hash = text_hash(v->texts.seed, s, len);
        struct tn_text_slot *slot = find_slot(v, s, len, hash);
        /* Of two tokens with one text the first counts, but a mergeable one before any other. */
        if (slot->id < 0 || (v->tokens[id].mergeable && !v->tokens[slot->id].mergeable))
            *slot = (struct tn_text_slot){(uint32_t)hash, id};
        if (v->tokens[id].mergeable && len > v->max_bytes) v->max_bytes = len;
    }
    return TN_OK;
}

/* ---- pair -> merge ---- */

/* A merge on its way into the table. Everything it touches lies scattered in memory, so a batch of
 * merges goes through each stage together, fetching ahead what the next stage reads. */
enum { batch = 32, short_merge = 64 };

typedef struct pending {
    int32_t rank, id[3]; /* of the left part, the right part, and both together */
    const char *s[3];
    size_t n[3];
    uint64_t hash[3];
    char whole[short_merge];
} pending;

typedef struct merge_reader {
    tn_vocab *v;
    const tn_gguf_key *key;
    tn_error *err;
    pending p[batch];
    int n;
    char long_whole[2 * TN_MAX_TOKEN_BYTES];
} merge_reader;

static void add_pair(tn_pair_table *t, int32_t left, int32_t right, int32_t rank, int32_t id)
{
    size_t i = (size_t)tn_pair_hash(left, right) & t->mask;
    for (; t->slots[i].left >= 0; i = (i + 1) & t->mask)
        if (t->slots[i].left == left && t->slots[i].right == right) return; /* the first counts */
    t->slots[i] = (struct tn_pair_slot){left, right, rank, id};
}

static void fetch_texts(const tn_vocab *v, const pending *p)
{
    for (int k = 0; k < 3; k++) {
        const int32_t id = v->texts.slots[first_slot(v, p->hash[k])].id;
        if (id >= 0) __builtin_prefetch(v->tokens[id].text);
    }
}

static tn_status flush(merge_reader *r)
{
    tn_vocab *v = r->v;
    const tn_pair_table *t = &v->pairs;
    for (int i = 0; i < r->n; i++)
        for (int k = 0; k < 3; k++) {
            const int32_t id = v->texts.slots[first_slot(v, r->p[i].hash[k])].id;
            if (id >= 0) __builtin_prefetch(&v->tokens[id]);
        }
    for (int i = 0; i < r->n; i++)
        fetch_texts(v, &r->p[i]);
    for (int i = 0; i < r->n; i++) {
        pending *p = &r->p[i];
        for (int k = 0; k < 3; k++) {
            p->id[k] = find_slot(v, p->s[k], p->n[k], p->hash[k])->id;
            if (p->id[k] >= 0) continue;
            return tn_fail(
                r->err, TN_EFORMAT, r->key->offset,
                "%s: key 'tokenizer.ggml.merges' at byte %lld: merge %d names an unknown token",
                tn_gguf_part_path(v->gguf, 0), (long long)r->key->offset, (int)p->rank);
        }
        __builtin_prefetch(&t->slots[(size_t)tn_pair_hash(p->id[0], p->id[1]) & t->mask], 1);
    }
    for (int i = 0; i < r->n; i++) {
        const pending *p = &r->p[i];
        /* Text never becomes a control token by merging. */
        if (v->tokens[p->id[2]].mergeable)
            add_pair(&v->pairs, p->id[0], p->id[1], p->rank, p->id[2]);
    }
    r->n = 0;
    return TN_OK;
}

static tn_status read_merge(merge_reader *r, int32_t rank, tn_str s)
{
    const char *space = s.len > 2 ? memchr(s.data + 1, ' ', s.len - 2) : NULL;
    if (!space || s.len > sizeof r->long_whole)
        return tn_fail(r->err, TN_EFORMAT, r->key->offset,
                       "%s: key 'tokenizer.ggml.merges' at byte %lld: merge %d is not two tokens",
                       tn_gguf_part_path(r->v->gguf, 0), (long long)r->key->offset, (int)rank);
    pending *p = &r->p[r->n++];
    char *whole = s.len > short_merge ? r->long_whole : p->whole;
    p->rank = rank;
    p->n[0] = (size_t)(space - s.data);
    p->n[1] = s.len - p->n[0] - 1;
    p->n[2] = s.len - 1;
    p->s[0] = s.data;
    p->s[1] = space + 1;
    p->s[2] = whole;
    memcpy(whole, s.data, p->n[0]);
    memcpy(whole + p->n[0], space + 1, p->n[1]);
    for (int k = 0; k < 3; k++) {
        p->hash[k] = text_hash(r->v->texts.seed, p->s[k], p->n[k]);
        __builtin_prefetch(&r->v->texts.slots[first_slot(r->v, p->hash[k])]);
    }
    return r->n == batch || whole == r->long_whole ? flush(r) : TN_OK;
}

tn_status tn_vocab_index_merges(tn_vocab *v, const tn_gguf_key *merges, tn_error *err)
{
    const size_t n = table_slots((size_t)merges->n), bytes = n * sizeof *v->pairs.slots;
    v->n_ranks = (int32_t)merges->n;
    v->pairs.mask = n - 1;
    v->pairs.slots = tn_alloc_raw(v->a, n, sizeof *v->pairs.slots);
    merge_reader *r = v->pairs.slots ? tn_alloc_raw(v->a, 1, sizeof *r) : NULL;
    if (!r) return tn_fail_nomem(err, bytes, "the merges of the vocabulary");
    memset(v->pairs.slots, 0xFF, bytes); /* left -1 everywhere */
    r->v = v;
    r->key = merges;
    r->err = err;
    r->n = 0;
    size_t pos = 0;
    tn_str text;
    tn_status s = TN_OK;
    for (int32_t rank = 0; !s && tn_gguf_str_walk(merges, &pos, &text); rank++)
        s = read_merge(r, rank, text);
    if (!s) s = flush(r);
    tn_free(v->a, r);
    for (int i = 0; i < 256; i++) {
        char c[4];
        v->byte_id[i] = tn_vocab_find(v, c, tn_utf8_put(c, char_of_byte((uint8_t)i)));
    }
    return s;
}
