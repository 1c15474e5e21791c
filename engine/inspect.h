/* Internal: what tn_inspect and its JSON share. */
#ifndef TN_INSPECT_H
#define TN_INSPECT_H

#include "tenon.h"
#include "../gguf/gguf.h"
#include "../gguf/mem.h"

struct tn_inspect {
    tn_allocator a;
    tn_gguf *gguf;
};

/* "u32", "string", ...; NULL never. */
const char *tn_inspect_kind_name(tn_gguf_kind kind);
/* Element i of a number or bool entry as text ("true", "-3", "0.5"); its length. */
enum { TN_INSPECT_NUMBER_CHARS = 40 };
size_t tn_inspect_number(const tn_gguf_key *k, uint64_t i, char text[TN_INSPECT_NUMBER_CHARS]);

#endif
