/* Several devices under one name. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

/* A number from 0 to TN_DEVICES * TN_DEVICES - 1 in decimal digits; *end is behind it. */
static bool read_number(const char *s, const char **end, int *n)
{
    *n = 0;
    for (*end = s; **end >= '0' && **end <= '9'; ++*end)
        if ((*n = 10 * *n + (**end - '0')) >= TN_DEVICES * TN_DEVICES) return false;
    return *end != s;
}

/* "0,2": the drivers' numbers of devices, each once. */
static bool read_list(const char *s, int index[TN_DEVICES], int *n)
{
    for (*n = 0; *n < TN_DEVICES; s++) {
        if (!read_number(s, &s, &index[*n])) return false;
        for (int i = 0; i < *n; i++)
            if (index[i] == index[*n]) return false;
        ++*n;
        if (*s != ',') return !*s;
    }
    return false;
}

/* What a name says: the kind and the devices' indices. */
static bool read_name(const char *name, tn_device_kind *kind, int index[TN_DEVICES], int *n)
{
    const size_t len = strcspn(name, ":");
    const char *end, *more = name[len] ? name + len + 1 : NULL;
    for (int i = 0; i < TN_DEVICES; i++)
        index[i] = i;
    *n = 1;
    if (len == 4 && memcmp(name, "cuda", 4) == 0) {
        *kind = TN_DEVICE_CUDA;
        return !more || read_list(more, index, n);
    }
    if (len != 3 || memcmp(name, "emu", 3) != 0) return false;
    *kind = TN_DEVICE_EMULATED;
    return !more || (read_number(more, &end, n) && !*end && *n >= 1 && *n <= TN_DEVICES);
}

tn_status tn_devices_open(tn_devices *list, const char *name, const size_t limits[TN_DEVICES],
                          const tn_allocator *allocator, tn_error *err)
{
    tn_device_options o = {.allocator = allocator};
    int index[TN_DEVICES], n;
    memset(list, 0, sizeof *list);
    if (!read_name(name, &o.kind, index, &n))
        return tn_fail(err, TN_EARG, -1,
                       "device '%s' is unknown; use cuda, cuda:1 (its number), cuda:0,1 (several), "
                       "emu or emu:2 (so many emulated ones, up to %d)",
                       name, TN_DEVICES);
    for (int i = n; limits && i < TN_DEVICES; i++)
        if (limits[i])
            return tn_fail(err, TN_EARG, -1,
                           "there is a memory limit for device %d, but '%s' stands for %d", i, name,
                           n);
    for (int i = 0; i < n; i++) {
        o.index = index[i];
        o.memory_limit = limits ? limits[i] : 0;
        const tn_status s = tn_device_open(&o, &list->at[i], err);
        if (s < 0) {
            tn_devices_close(list);
            return s;
        }
        list->n++;
    }
    return TN_OK;
}

void tn_devices_close(tn_devices *list)
{
    while (list->n > 0) {
        tn_device *d = list->at[--list->n];
        d->api->close(d);
    }
    memset(list, 0, sizeof *list);
}
