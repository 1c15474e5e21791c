#include "hardware.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

/* First number in a kernel file, or `none`. These are kernel interfaces, not files on a disk. */
static uint64_t read_number(const char *path, uint64_t none)
{
    FILE *f = fopen(path, "re");
    uint64_t value = none;
    if (!f) return none;
    if (fscanf(f, "%" SCNu64, &value) != 1) value = none;
    fclose(f);
    return value;
}

static uint64_t meminfo_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1) break;
    if (f) fclose(f);
    if (kib) return kib * 1024;
    struct sysinfo si;
    return sysinfo(&si) == 0 ? (uint64_t)si.freeram * si.mem_unit : 0;
}

uint64_t tn_host_memory_available(void)
{
    uint64_t available = meminfo_available();
    const uint64_t none = UINT64_MAX;
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max", none);
    uint64_t used = read_number("/sys/fs/cgroup/memory.current", 0);
    if (limit == none) {
        limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", none);
        used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", 0);
    }
    if (limit != none && limit > used && limit - used < available) available = limit - used;
    return available;
}
