/* Merging: the best pair of neighbours becomes one token until no pair can.
 *
 * "Best" is the lowest rank, and among equals the leftmost pair. Both kinds work alike; they differ
 * in how a pair's rank is found: by its text (llama), or by its two tokens (BPE).
 * Short words are searched from end to end at every step. Long ones (the llama kind has texts of
 * megabytes without a boundary) keep, for every rank that occurs, a list of the pairs of that rank
 * in text order: pairs of one rank are mostly merged in one sweep, so that this takes near-linear
 * time and touches memory in order, where a heap of pairs would jump about. */
#include "tokenizer_internal.h"

#include <limits.h>
#include <string.h>

enum { short_word = 48, no_rank = INT32_MAX };

/* A stretch of text that is one token so far, and the pair it forms with the next one. */
typedef struct tn_symbol {
    int32_t start;         /* byte offset in the word */
    int32_t prev, next;    /* neighbours, -1 at the ends */
    int32_t id;            /* -1: no token has this text */
    int32_t rank, merged;  /* of the pair (this, next): no_rank if it does not merge */
    int32_t before, after; /* neighbours in the rank's list, -1 at the ends */
} tn_symbol;

typedef struct tn_bucket {
    int32_t head, tail; /* -1: empty */
    bool queued;        /* the rank is in the heap */
    bool unsorted;
} tn_bucket;

void tn_merger_free(tn_merger *m)
{
    tn_free(m->v->a, m->symbols);
    tn_free(m->v->a, m->buckets);
    tn_free(m->v->a, m->heap);
}

/* Rank of merging two neighbours whose text is s[0, n), and the token it makes. */
static inline int32_t pair_rank(const tn_vocab *v, int32_t left, int32_t right, const char *s,
                                size_t n, int32_t *id)
{
    if (v->kind == TN_VOCAB_LLAMA) {
        *id = n <= v->max_bytes ? tn_vocab_find(v, s, n) : -1;
        return *id < 0 ? no_rank : v->tokens[*id].rank;
    }
    if (left < 0 || right < 0) return no_rank;
    const tn_pair_table *t = &v->pairs;
    for (size_t i = (size_t)tn_pair_hash(left, right) & t->mask;; i = (i + 1) & t->mask) {
        const struct tn_pair_slot *p = &t->slots[i];
        if (p->left == left && p->right == right) {
            *id = p->id;
            return p->rank;
        }
        if (p->left < 0) return no_rank;
    }
}

/* Length of the first symbol at s: a byte (BPE) or a character (llama). */
static inline size_t symbol_bytes(const tn_vocab *v, const char *s, size_t n)
{
    size_t bad;
    return v->kind == TN_VOCAB_BPE ? 1 : tn_utf8_step(s, n, &bad);
}

static inline int32_t symbol_id(const tn_vocab *v, const char *s, size_t n)
{
    if (v->kind == TN_VOCAB_BPE) return v->byte_id[(uint8_t)*s];
    return tn_vocab_find(v, s, n);
}

/* Appends the unknown token; a run of unknown symbols is one, as in SentencePiece. */
static bool emit_unknown(tn_merger *m)
{
    const int32_t unknown = m->v->unknown;
    const tn_ids *out = m->out;
    if (unknown < 0 || (out->n > m->first && out->ids[out->n - 1] == unknown)) return true;
    return tn_ids_push(m->out, unknown);
}

/* Appends a symbol without token as its bytes, or as the unknown token. */
static bool emit_bytes(tn_merger *m, const char *s, size_t n)
{
    static const char space[] = "\xE2\x96\x81"; /* what ' ' stands for in the llama kind */
    const tn_vocab *v = m->v;
    if (v->kind == TN_VOCAB_BPE) return true;
    if (n == 1 && *s == ' ') {
        s = space;
        n = sizeof space - 1;
    }
    for (size_t i = 0; i < n; i++)
        if (v->byte_id[(uint8_t)s[i]] < 0) return emit_unknown(m);
    for (size_t i = 0; i < n; i++)
        if (!tn_ids_push(m->out, v->byte_id[(uint8_t)s[i]])) return false;
    return true;
}

static inline bool emit(tn_merger *m, int32_t id, const char *s, size_t n)
{
    return id >= 0 ? tn_ids_push(m->out, id) : emit_bytes(m, s, n);
}

/* ---- short words ---- */

typedef struct short_symbols {
    int32_t start[short_word + 1]; /* start[n] is the end of the word */
    int32_t id[short_word], rank[short_word], merged[short_word];
    int n;
} short_symbols;

static inline void rank_short(const tn_vocab *v, short_symbols *w, int i, const char *s)
{
    w->rank[i] = pair_rank(v, w->id[i], w->id[i + 1], s + w->start[i],
                           (size_t)(w->start[i + 2] - w->start[i]), &w->merged[i]);
}

static bool merge_short(tn_merger *m, const char *s, short_symbols *w)
{
    for (int i = 0; i + 1 < w->n; i++)
        rank_short(m->v, w, i, s);
    while (w->n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < w->n; i++)
            if (w->rank[i] < w->rank[best]) best = i;
        if (w->rank[best] == no_rank) break;
        w->id[best] = w->merged[best];
        const size_t after = (size_t)(w->n - best - 2);
        memmove(&w->id[best + 1], &w->id[best + 2], after * sizeof *w->id);
        memmove(&w->rank[best + 1], &w->rank[best + 2], after * sizeof *w->rank);
        memmove(&w->merged[best + 1], &w->merged[best + 2], after * sizeof *w->merged);
        memmove(&w->start[best + 1], &w->start[best + 2], (after + 1) * sizeof *w->start);
        w->n--;
        if (best > 0) rank_short(m->v, w, best - 1, s);
        if (best + 1 < w->n) rank_short(m->v, w, best, s);
    }
    for (int i = 0; i < w->n; i++)
        if (!emit(m, w->id[i], s + w->start[i], (size_t)(w->start[i + 1] - w->start[i])))
            return false;
    return true;
}

/* ---- long words ---- */

/* Min-heap of the ranks whose buckets are in use. */
static void heap_push(tn_merger *m, int32_t rank)
{
    int32_t i = m->n_heap++;
    for (; i > 0 && m->heap[(i - 1) / 2] > rank; i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = rank;
}
static void heap_pop(tn_merger *m)
{
    const int32_t last = m->heap[--m->n_heap];
    int32_t i = 0;
    for (int32_t child; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap && m->heap[child + 1] < m->heap[child]) child++;
        if (m->heap[child] >= last) break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = last;
}

static void unlink_pair(tn_merger *m, int32_t i)
{
    tn_symbol *y = m->symbols, *p = &y[i];
    if (p->rank == no_rank) return;
    tn_bucket *b = &m->buckets[p->rank];
    *(p->before < 0 ? &b->head : &y[p->before].after) = p->after;
    *(p->after < 0 ? &b->tail : &y[p->after].before) = p->before;
    p->rank = no_rank;
}

static void link_between(tn_merger *m, tn_bucket *b, int32_t i, int32_t before, int32_t after)
{
    tn_symbol *y = m->symbols;
    y[i].before = before;
    y[i].after = after;
    *(before < 0 ? &b->head : &y[before].after) = i;
    *(after < 0 ? &b->tail : &y[after].before) = i;
}

/* Adds the pair at i to its rank's list. Sweeps go from left to right, so the place is nearly
 * always the end, or, in a list being worked off, the first or second place. */
static void link_pair(tn_merger *m, int32_t i)
{
    tn_bucket *b = &m->buckets[m->symbols[i].rank];
    if (!b->queued) heap_push(m, m->symbols[i].rank);
    b->queued = true;
    if (b->head < 0) b->unsorted = false;
    if (b->tail < i) {
        link_between(m, b, i, b->tail, -1);
    } else if (i < b->head) {
        link_between(m, b, i, -1, b->head);
    } else if (i < m->symbols[b->head].after) {
        link_between(m, b, i, b->head, m->symbols[b->head].after);
    } else {
        link_between(m, b, i, b->tail, -1);
        b->unsorted = true;
    }
}

/* Merges two ascending lists along `after`. */
static int32_t merge_lists(tn_symbol *y, int32_t a, int32_t b)
{
    int32_t head = -1, *to = &head;
    while (a >= 0 && b >= 0) {
        int32_t *least = a < b ? &a : &b;
        *to = *least;
        to = &y[*least].after;
        *least = *to;
    }
    *to = a < 0 ? b : a;
    return head;
}

/* Cuts off the ascending run at the head of the list. */
static int32_t cut_run(tn_symbol *y, int32_t head)
{
    int32_t i = head;
    while (y[i].after > i)
        i = y[i].after;
    const int32_t rest = y[i].after;
    y[i].after = -1;
    return rest;
}

/* Natural merge sort; bins[k] holds about 2^k runs. */
static void sort_bucket(tn_symbol *y, tn_bucket *b)
{
    int32_t bins[32], head = -1;
    for (int k = 0; k < 32; k++)
        bins[k] = -1;
    for (int32_t list = b->head; list >= 0;) {
        int32_t run = list;
        list = cut_run(y, run);
        int k = 0;
        for (; k < 31 && bins[k] >= 0; k++) {
            run = merge_lists(y, bins[k], run);
            bins[k] = -1;
        }
        bins[k] = bins[k] < 0 ? run : merge_lists(y, bins[k], run);
    }
    for (int k = 0; k < 32; k++)
        if (bins[k] >= 0) head = head < 0 ? bins[k] : merge_lists(y, head, bins[k]);
    int32_t before = -1;
    b->head = head;
    for (int32_t i = head; i >= 0; i = y[i].after) {
        y[i].before = before;
        before = i;
    }
    b->tail = before;
    b->unsorted = false;
}

static inline void rank_pair(tn_merger *m, int32_t i, const char *s, int32_t end)
{
    tn_symbol *l = &m->symbols[i];
    l->rank = no_rank;
    if (l->next < 0) return;
    const tn_symbol *r = &m->symbols[l->next];
    const int32_t stop = r->next < 0 ? end : m->symbols[r->next].start;
    l->rank = pair_rank(m->v, l->id, r->id, s + l->start, (size_t)(stop - l->start), &l->merged);
    if (l->rank != no_rank) link_pair(m, i);
}

static void merge_pair(tn_merger *m, int32_t i, const char *s, int32_t end)
{
    tn_symbol *y = m->symbols;
    const int32_t p = y[i].prev, j = y[i].next;
    unlink_pair(m, i);
    unlink_pair(m, j);
    y[i].id = y[i].merged;
    y[i].next = y[j].next;
    if (y[j].next >= 0) y[y[j].next].prev = i;
    if (p >= 0) {
        unlink_pair(m, p);
        rank_pair(m, p, s, end);
    }
    rank_pair(m, i, s, end);
}

static bool prepare_long(tn_merger *m, size_t n)
{
    const tn_allocator *a = m->v->a;
    if (n > m->cap_symbols) {
        tn_free(a, m->symbols);
        m->symbols = tn_alloc_raw(a, n, sizeof *m->symbols);
        m->cap_symbols = m->symbols ? n : 0;
    }
    if (!m->heap) m->heap = tn_alloc_raw(a, (size_t)m->v->n_ranks, sizeof *m->heap);
    if (!m->buckets) {
        m->buckets = tn_alloc_raw(a, (size_t)m->v->n_ranks, sizeof *m->buckets);
        for (int32_t i = 0; m->buckets && i < m->v->n_ranks; i++)
            m->buckets[i] = (tn_bucket){-1, -1, false, false};
    }
    return m->symbols && m->heap && m->buckets;
}

/* Makes the symbols; returns how many. */
static int32_t make_symbols(tn_merger *m, const char *s, size_t n)
{
    int32_t count = 0;
    for (size_t at = 0; at < n; count++) {
        const size_t len = symbol_bytes(m->v, s + at, n - at);
        m->symbols[count] = (tn_symbol){
            (int32_t)at, count - 1, count + 1, symbol_id(m->v, s + at, len), no_rank, -1, -1, -1};
        at += len;
    }
    m->symbols[count - 1].next = -1;
    return count;
}

static bool merge_long(tn_merger *m, const char *s, size_t n, size_t n_symbols)
{
    if (!prepare_long(m, n_symbols)) return false;
    const int32_t end = (int32_t)n, count = make_symbols(m, s, n);
    tn_symbol *y = m->symbols;
    for (int32_t i = 0; i < count; i++)
        rank_pair(m, i, s, end);
    while (m->n_heap > 0) {
        tn_bucket *b = &m->buckets[m->heap[0]];
        if (b->head < 0) {
            b->queued = false;
            heap_pop(m);
            continue;
        }
        if (b->unsorted) sort_bucket(y, b);
        merge_pair(m, b->head, s, end);
    }
    for (int32_t i = 0; i >= 0; i = y[i].next) {
        const int32_t stop = y[i].next < 0 ? end : y[y[i].next].start;
        if (!emit(m, y[i].id, s + y[i].start, (size_t)(stop - y[i].start))) return false;
    }
    return true;
}

bool tn_merge_word(tn_merger *m, const char *s, size_t n)
{
    short_symbols w = {.n = 0};
    size_t at = 0, count = 0;
    m->first = m->out->n;
    for (; at < n && count < short_word; count++) {
        const size_t len = symbol_bytes(m->v, s + at, n - at);
        w.start[count] = (int32_t)at;
        w.id[count] = symbol_id(m->v, s + at, len);
        at += len;
    }
    if (at == n) {
        w.start[count] = (int32_t)n;
        w.n = (int)count;
        return merge_short(m, s, &w);
    }
    for (; at < n; count++)
        at += symbol_bytes(m->v, s + at, n - at);
    return merge_long(m, s, n, count);
}
