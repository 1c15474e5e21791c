/* Internal: small files that were named to the library, as a whole. */
#ifndef TN_FILE_H
#define TN_FILE_H

#include "../gguf/mem.h"

/* Reads a file of fewer than `most` bytes into memory of the caller's; a zero follows. TN_ENOENT,
 * TN_EIO, TN_EFORMAT (too large for `what`), TN_ENOMEM. */
tn_status tn_file_read(const char *path, size_t most, const char *what, char **text, size_t *len,
                       const tn_allocator *a, tn_error *err);
/* Replaces a file by a text: whoever reads meanwhile sees the one or the other. TN_EIO, TN_ENOMEM.
 */
tn_status tn_file_replace(const char *path, const char *text, const tn_allocator *a, tn_error *err);

#endif
