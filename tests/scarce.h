/* An allocator that runs out: lets some allocations succeed and counts the blocks not given back.
 * Tests let every allocation fail in turn with it. Not for several threads at once. */
#ifndef TN_TEST_SCARCE_H
#define TN_TEST_SCARCE_H

#include "../engine/tenon.h"

#include <stdlib.h>

typedef struct scarce {
    long left; /* how many allocations still succeed */
    long live; /* blocks allocated and not freed */
} scarce;

static void *scarce_alloc(void *user, size_t bytes, size_t align)
{
    scarce *m = user;
    if (m->left <= 0) return NULL;
    m->left--;
    void *p = aligned_alloc(align, (bytes + align - 1) / align * align);
    m->live += p != NULL;
    return p;
}

static void scarce_free(void *user, void *p)
{
    ((scarce *)user)->live -= p != NULL;
    free(p);
}

/* m must outlive the allocator's use. */
static inline tn_allocator scarce_allocator(scarce *m)
{
    return (tn_allocator){scarce_alloc, scarce_free, m};
}

#endif
