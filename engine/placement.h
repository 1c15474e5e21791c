/* Internal: what is behind a tn_placement, for the parts of the library that carry plans out. */
#ifndef TN_PLACEMENT_H
#define TN_PLACEMENT_H

#include "plan.h"
#include "tenon.h"

struct tn_placement {
    tn_allocator a;
    tn_shape shape;
    tn_profile profile;
    tn_planned planned;
};

/* Whether units of a layer's FFN may move between the sides, as far as rules and plan go; and
 * whether they do: the host then has all of it. */
bool tn_placement_free(const tn_placement *p, int32_t layer);
bool tn_placement_moves(const tn_placement *p, int32_t layer);

#endif
