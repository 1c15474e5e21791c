#include "hardware.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

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

/* First line of a file without its newline, "" if there is none. */
static void read_line(const char *path, char *line, size_t size)
{
    FILE *f = fopen(path, "re");
    line[0] = 0;
    if (!f) return;
    if (!fgets(line, (int)size, f)) line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    fclose(f);
}

static void find_cpu_name(char *name, size_t size)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (!value || strncmp(line, "model name", 10) != 0) continue;
        value += strspn(value, ": \t");
        snprintf(name, size, "%.*s", (int)strcspn(value, "\n"), value);
        break;
    }
    if (f) fclose(f);
}

static void find_caches(tn_host_info *info)
{
    for (int i = 0; i < TN_HOST_CACHES; i++) {
        char path[96], text[32];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        const uint64_t level = read_number(path, 0);
        if (!level) break;
        info->caches[i].level = (int)level;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        info->caches[i].bytes = read_number(path, 0) * 1024; /* written as "32K" */
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        read_line(path, text, sizeof text);
        snprintf(info->caches[i].type, sizeof info->caches[i].type, "%.15s", text);
        info->n_caches = i + 1;
    }
}

void tn_host_info_get(tn_host_info *info)
{
    struct utsname u;
    struct sysinfo si;
    memset(info, 0, sizeof *info);
    if (uname(&u) == 0)
        snprintf(info->kernel, sizeof info->kernel, "%.40s %.70s %.40s", u.sysname, u.release,
                 u.machine);
    if (sysinfo(&si) == 0) info->memory_bytes = (uint64_t)si.totalram * si.mem_unit;
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    info->n_processors = n > 0 ? (int)n : 0;
    find_cpu_name(info->cpu, sizeof info->cpu);
    find_caches(info);
}

static double link_figure(const char *root, const char *address, const char *file)
{
    char path[512], line[64];
    double v;
    if (!*address || snprintf(path, sizeof path, "%s/sys/bus/pci/devices/%s/%s", root, address,
                              file) >= (int)sizeof path)
        return 0;
    read_line(path, line, sizeof line);
    return sscanf(line, "%lf", &v) == 1 && v > 0 && v < 1000 ? v : 0; /* "16.0 GT/s PCIe" */
}

void tn_pci_link_read(tn_pci_link *link, const char *root, const char *address)
{
    link->gt_s = link_figure(root, address, "current_link_speed");
    link->most_gt_s = link_figure(root, address, "max_link_speed");
    link->width = (int)link_figure(root, address, "current_link_width");
    link->most_width = (int)link_figure(root, address, "max_link_width");
}
