/* Internal: whether tokens take as long as was predicted. Pure: measured times come in, a verdict
 * comes out. */
#ifndef TN_DRIFT_H
#define TN_DRIFT_H

#include <stdbool.h>
#include <stdint.h>

enum { TN_DRIFT_TOKENS = 64 };

/* What a decoded token takes: the host's own work, and all of it from begin to end. Seconds. */
typedef struct tn_token_time {
    double host_s, total_s;
} tn_token_time;

typedef struct tn_drift {
    int32_t tokens;
    int64_t depth; /* sum of the tokens' positions */
    tn_token_time sum;
} tn_drift;

/* Adds a token at a position. True: TN_DRIFT_TOKENS are together, and are to be judged. */
bool tn_drift_add(tn_drift *d, int64_t depth, tn_token_time measured);

typedef enum tn_drift_verdict { TN_DRIFT_NONE, TN_DRIFT_HOST, TN_DRIFT_DEVICE } tn_drift_verdict;
/* Compares the mean of the window with what was predicted for one token of it, then starts the
 * window anew. Which side is off by more than 15 %, the host first, because its time is known by
 * itself and the device's is what remains; *factor: measured over predicted time. A side that is
 * less than a quarter of the token is never blamed. */
tn_drift_verdict tn_drift_judge(tn_drift *d, tn_token_time predicted, double *factor);

#endif
