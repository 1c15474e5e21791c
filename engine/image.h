/* Internal: the image, a file of the cache directory that holds a model's weights as they lie in
 * the host's memory, so that a later start maps them instead of reading and rearranging.
 *
 * A page of text says whose image it is; the pieces follow in the order in which they were asked
 * for, each at a multiple of 64 bytes. Numbers and layouts are this machine's: an image is never
 * moved. */
#ifndef TN_IMAGE_H
#define TN_IMAGE_H

#include "model.h"

typedef struct tn_image tn_image;

/* Finds the image of a model read from files and maps it where it is of these files, as they are
 * now, and of this build and layout; otherwise tn_image_write makes it anew. *out is NULL where
 * there can be none: no cache directory, or a model in memory. TN_ENOMEM. */
tn_status tn_image_open(tn_image **out, const tn_model *m, tn_error *err);
bool tn_image_is_mapped(const tn_image *im);
/* The next piece of a mapped image; before its first use, ask tn_image_is_used_up. */
const void *tn_image_next(tn_image *im, size_t bytes);
/* Whether the pieces asked for are what a mapped image has, no less and no more. */
bool tn_image_is_used_up(const tn_image *im);
/* Remembers a piece for tn_image_write; data is not copied. False when memory is short. */
bool tn_image_add(tn_image *im, const void *data, size_t bytes);
/* Writes all pieces to a new file, then puts it in the old one's place. TN_EIO leaves the old one.
 */
tn_status tn_image_write(tn_image *im, tn_error *err);
const char *tn_image_path(const tn_image *im);
size_t tn_image_bytes(const tn_image *im);
void tn_image_close(tn_image *im);

#endif
