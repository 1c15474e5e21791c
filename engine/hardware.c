#include "hardware.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

static FILE *open_below(const char *root, const char *path)
{
    char full[512];
    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full) return NULL;
    return fopen(full, "re"); /* kernel interfaces, not files on a disk */
}

/* First number in a kernel file, or `none`. */
static uint64_t read_number(const char *root, const char *path, uint64_t none)
{
    FILE *f = open_below(root, path);
    uint64_t value = none;
    if (!f) return none;
    if (fscanf(f, "%" SCNu64, &value) != 1) value = none;
    fclose(f);
    return value;
}

/* The number behind a name that begins a line of a kernel file, 0 if there is none. */
static uint64_t read_named(const char *root, const char *path, const char *name)
{
    FILE *f = open_below(root, path);
    char line[128];
    uint64_t value = 0;
    const size_t n = strlen(name);
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, n) == 0 && sscanf(line + n, " %" SCNu64, &value) == 1) break;
    if (f) fclose(f);
    return value;
}

/* What a control group has left of its limit, at least 1; cached pages of files make way. */
static uint64_t group_available(uint64_t limit, uint64_t used, uint64_t cached)
{
    used = used > cached ? used - cached : 0;
    return limit > used ? limit - used : 1;
}

uint64_t tn_host_memory_read(const char *root)
{
    static const char v2[] = "/sys/fs/cgroup/memory.stat",
                      v1[] = "/sys/fs/cgroup/memory/memory.stat";
    const uint64_t none = UINT64_MAX;
    const uint64_t available = read_named(root, "/proc/meminfo", "MemAvailable:") * 1024;
    uint64_t group = none, limit = read_number(root, "/sys/fs/cgroup/memory.max", none);
    if (limit != none)
        group = group_available(limit, read_number(root, "/sys/fs/cgroup/memory.current", 0),
                                read_named(root, v2, "inactive_file ") +
                                    read_named(root, v2, "active_file "));
    limit = read_number(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes", none);
    if (group == none && limit != none)
        group = group_available(
            limit, read_number(root, "/sys/fs/cgroup/memory/memory.usage_in_bytes", 0),
            read_named(root, v1, "total_inactive_file ") +
                read_named(root, v1, "total_active_file "));
    return group < available ? group : available;
}

uint64_t tn_host_memory_available(void)
{
    struct sysinfo si;
    const uint64_t bytes = tn_host_memory_read("");
    if (bytes || sysinfo(&si)) return bytes;
    return (uint64_t)si.freeram * si.mem_unit;
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
        const uint64_t level = read_number("", path, 0);
        if (!level) break;
        info->caches[i].level = (int)level;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        info->caches[i].bytes = read_number("", path, 0) * 1024; /* written as "32K" */
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
