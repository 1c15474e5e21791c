/* Stands in for device.c in a build with CUDA=off. */
#include "device.h"

static tn_status none(tn_error *err)
{
    return tn_fail(err, TN_EUNSUPPORTED, -1,
                   "this build of tenon knows no devices; build it without CUDA=off");
}

tn_status tn_device_count(tn_device_kind kind, int *n, tn_error *err)
{
    (void)kind;
    *n = 0;
    return none(err);
}

tn_status tn_device_open(const tn_device_options *options, tn_device **d, tn_error *err)
{
    (void)options;
    *d = NULL;
    return none(err);
}
