#include "drift.h"

#include <math.h>

static const double tolerance = 0.15, least_part = 0.25;

bool tn_drift_add(tn_drift *d, int64_t depth, tn_token_time measured)
{
    d->tokens++;
    d->depth += depth;
    d->sum.host_s += measured.host_s;
    d->sum.total_s += measured.total_s;
    return d->tokens == TN_DRIFT_TOKENS;
}

static bool off(double measured, double predicted, double total, double *factor)
{
    if (!(predicted >= least_part * total)) return false;
    *factor = measured / predicted;
    return fabs(*factor - 1) > tolerance;
}

tn_drift_verdict tn_drift_judge(tn_drift *d, tn_token_time predicted, double *factor)
{
    const double host = d->sum.host_s / d->tokens, total = d->sum.total_s / d->tokens;
    *d = (tn_drift){0};
    *factor = 1;
    if (off(host, predicted.host_s, predicted.total_s, factor)) return TN_DRIFT_HOST;
    if (off(total - host, predicted.total_s - predicted.host_s, predicted.total_s, factor))
        return TN_DRIFT_DEVICE;
    return TN_DRIFT_NONE;
}
