/* Internal: sizes of buffers on a device that execution allocates and the planner counts. */
#ifndef TN_EXEC_SIZES_H
#define TN_EXEC_SIZES_H

enum {
    TN_DEVICE_ALIGN = 256,           /* of arrays in one allocation */
    TN_LOGIT_BYTES = 4 << 20,        /* of logits computed at once */
    TN_DEQUANTISED_BYTES = 64 << 20, /* of a weight as float32, at once */
    TN_MAX_SPLITS = 32,              /* of a context in attention */
    TN_CARRIED_BYTES = 4 << 20,      /* of weights in one buffer, unless a row is longer */
    TN_CARRIED_ROWS = 8,             /* of the host's interleaved layout: travel together */
    TN_STREAMED_ROWS = 64            /* of a projection, at least */
};

#endif
