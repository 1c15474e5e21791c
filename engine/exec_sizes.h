/* Internal: sizes that execution allocates and the planner counts. */
#ifndef TN_EXEC_SIZES_H
#define TN_EXEC_SIZES_H

#include <stdint.h>

enum {
    TN_DEVICE_ALIGN = 256,           /* of arrays in one allocation */
    TN_LOGIT_BYTES = 4 << 20,        /* of logits computed at once */
    TN_DEQUANTISED_BYTES = 64 << 20, /* of a weight as float32, at once */
    TN_MAX_SPLITS = 32,              /* of a context in attention, for TN_MATVEC_MAX tokens; fewer
                                        tokens may have more, in the same buffer */
    TN_CARRIED_BYTES = 4 << 20,      /* of weights in one buffer, unless a row is longer */
    TN_CARRIED_ROWS = 8,             /* of the host's interleaved layout: travel together */
    TN_STREAMED_ROWS = 64            /* of a projection, at least */
};

/* KV pages that layers with a window need: of the window before a batch, of the batch, and one
 * because both may begin anywhere in a page. */
static inline int64_t tn_kv_ring(int64_t window, int64_t n_batch, int64_t page_size)
{
    return (window + n_batch + page_size - 1) / page_size + 1;
}

#endif
