/* Internal: JSON documents as text. Included by engine/json_*.c only.
 *
 * jansson's own allocations go through malloc: its hooks are global state, which a library must not
 * set. Documents here are small and live for one call; the text goes to the caller's allocator. */
#ifndef TN_JSON_TEXT_H
#define TN_JSON_TEXT_H

#include "../gguf/mem.h"

#include <jansson.h>

/* Writes doc (consumed; NULL means that memory was short while it was built) in a form chosen by
 * jansson's flags. *out is zero-terminated and freed with a. TN_ENOMEM. */
tn_status tn_json_text(json_t *doc, size_t flags, const tn_allocator *a, char **out, tn_error *err);

#endif
