/* Internal: a model's vocabulary and the two kinds of tokenizer over it: SentencePiece-style
 * (`llama`) and byte-level BPE (`gpt2`). Immutable after tn_vocab_new(); any thread may read it. */
#ifndef TN_TOKENIZER_H
#define TN_TOKENIZER_H

#include "tenon.h"
#include "../gguf/gguf.h"
#include "../gguf/mem.h"

typedef struct tn_vocab tn_vocab;

/* Reads the `tokenizer.ggml.*` keys. g must outlive the vocabulary. TN_EFORMAT (broken keys, with
 * byte offset), TN_EUNSUPPORTED (tokenizer kind or pre-tokenizer, by name), TN_ENOMEM. */
tn_status tn_vocab_new(tn_vocab **out, const tn_gguf *g, const tn_allocator *a, tn_error *err);
void tn_vocab_free(tn_vocab *v); /* NULL is fine */
int32_t tn_vocab_size(const tn_vocab *v);

/* A part of a text. Only where parse_special is set can it spell control tokens. Owns nothing. */
typedef struct tn_piece {
    const char *text;
    size_t len;
    bool parse_special;
} tn_piece;

/* Tokens of the text that the pieces make one after the other; flags as in tn_tokenize, whose
 * PARSE_SPECIAL is each piece's own. *ids is freed by the caller with the vocabulary's allocator.
 * n_invalid (may be NULL) counts bytes that were no UTF-8. */
tn_status tn_vocab_tokenize_pieces(const tn_vocab *v, const tn_piece *pieces, size_t n_pieces,
                                   unsigned flags, int32_t **ids, size_t *n_ids, size_t *n_invalid,
                                   tn_error *err);

#endif
