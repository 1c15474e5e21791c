/* The device table: memory and its limits, copies, streams, events, graphs, flags, faults, two
 * devices. On the emulated device unless told otherwise. */
#include "../kernels/device.h"
#include "harness.h"

static tn_device *open_or_fail(int index, size_t limit)
{
    tn_device_options o = {TN_DEVICE_EMULATED, index, limit, NULL};
    tn_device *d = NULL;
    tn_error err = {0};
    if (tn_device_open(&o, &d, &err) < 0) FAIL("%s", err.msg);
    return d;
}

TEST(opens_and_tells)
{
    tn_device *d = open_or_fail(0, 0);
    REQUIRE(d);
    CHECK_STR(d->api->info(d)->name, "emulated CUDA device");
    d->api->close(d);
}

TEST_MAIN
