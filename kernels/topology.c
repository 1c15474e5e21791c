#include "topology.h"

#include "pool.h"

#include <ctype.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MASK_WORDS = 128, PATH_BYTES = 4352, TEXT_BYTES = 4096 };

/* The start of a small text file; false if there is none. */
static bool read_text(const char *root, const char *path, char *text, size_t bytes)
{
    char full[PATH_BYTES + 256];
    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full) return false;
    FILE *f = fopen(full, "r");
    if (!f) return false;
    size_t n = fread(text, 1, bytes - 1, f);
    fclose(f);
    text[n] = 0;
    return n > 0;
}

static bool has(const uint64_t *mask, size_t n_words, unsigned long cpu)
{
    return cpu / 64 < n_words && (mask[cpu / 64] >> (cpu % 64) & 1);
}

/* ---- cores ----------------------------------------------------------------------------------- */

/* Adds a list such as "0-3,8" to mask. False if it is not one. */
static bool parse_list(const char *s, uint64_t *mask, size_t n_words)
{
    while (isdigit((unsigned char)*s)) {
        char *end;
        unsigned long first = strtoul(s, &end, 10), last = first;
        if (*end == '-') last = strtoul(end + 1, &end, 10);
        for (unsigned long c = first; c <= last && c < n_words * 64; c++)
            mask[c / 64] |= (uint64_t)1 << (c % 64);
        s = *end == ',' ? end + 1 : end;
    }
    return *s == 0 || *s == '\n';
}

/* Whether `cpu` is the first of its hardware threads among those allowed. */
static bool is_first_sibling(const char *root, unsigned long cpu, const uint64_t *mask,
                             size_t n_words)
{
    char path[128], text[TEXT_BYTES];
    uint64_t list[MASK_WORDS] = {0};
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%lu/topology/thread_siblings_list",
             cpu);
    if (!read_text(root, path, text, sizeof text) || !parse_list(text, list, MASK_WORDS))
        return true;
    for (unsigned long c = 0; c < cpu; c++)
        if (has(list, MASK_WORDS, c) && has(mask, n_words, c)) return false;
    return true;
}

/* Cuts mask to the performance cores of a hybrid processor, unless none would be left. */
static void keep_performance_cores(const char *root, uint64_t *mask, size_t n_words)
{
    char text[TEXT_BYTES];
    uint64_t fast[MASK_WORDS] = {0}, any = 0;
    if (!read_text(root, "/sys/devices/cpu_core/cpus", text, sizeof text) ||
        !parse_list(text, fast, MASK_WORDS))
        return;
    for (size_t i = 0; i < n_words; i++) any |= mask[i] & fast[i];
    for (size_t i = 0; any && i < n_words; i++) mask[i] &= fast[i];
}

/* ---- control groups -------------------------------------------------------------------------- */

/* Lowers *limit to quota / period, in whole processors. */
static void apply_quota(long long quota, long long period, int *limit)
{
    if (quota <= 0 || period <= 0) return;
    long long n = quota / period;
    if (n < *limit) *limit = n < 1 ? 1 : (int)n;
}

/* Applies the limits of one group directory, version 1 or 2. */
static void apply_directory(const char *root, const char *dir, bool v1, int *limit)
{
    char path[PATH_BYTES], text[256], text2[256];
    long long quota, period;
    snprintf(path, sizeof path, "%.4000s/%s", dir, v1 ? "cpu.cfs_quota_us" : "cpu.max");
    if (!read_text(root, path, text, sizeof text)) return;
    if (!v1) {
        if (sscanf(text, "%lld %lld", &quota, &period) == 2) apply_quota(quota, period, limit);
        return;
    }
    snprintf(path, sizeof path, "%.4000s/cpu.cfs_period_us", dir);
    if (!read_text(root, path, text2, sizeof text2)) return;
    if (sscanf(text, "%lld", &quota) == 1 && sscanf(text2, "%lld", &period) == 1)
        apply_quota(quota, period, limit);
}

/* The group `group` below `mount` and all its ancestors: each may limit. */
static void apply_group(const char *root, const char *mount, const char *group, bool v1, int *limit)
{
    char dir[PATH_BYTES];
    snprintf(dir, sizeof dir, "%.200s%.3700s", mount, group);
    const size_t top = strlen(mount) < 200 ? strlen(mount) : 200;
    for (;;) {
        apply_directory(root, dir, v1, limit);
        char *slash = strrchr(dir + top, '/');
        if (!slash) return;
        *slash = 0;
    }
}

static bool names_cpu(const char *controllers)
{
    for (const char *s = controllers; *s; s += strcspn(s, ","), s += *s == ',')
        if (strncmp(s, "cpu", 3) == 0 && (s[3] == ',' || s[3] == 0)) return true;
    return false;
}

/* Lines of /proc/self/cgroup are "id:controllers:path"; version 2 has no controllers. */
static void apply_cgroups(const char *root, int *limit)
{
    char text[TEXT_BYTES], mount[256], *save = NULL;
    if (!read_text(root, "/proc/self/cgroup", text, sizeof text)) return;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *controllers = strchr(line, ':'),
             *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        controllers++;
        if (!*controllers) {
            apply_group(root, "/sys/fs/cgroup", group, false, limit);
        } else if (names_cpu(controllers)) {
            snprintf(mount, sizeof mount, "/sys/fs/cgroup/%.200s", controllers);
            apply_group(root, mount, group, true, limit);
        }
    }
}

int tn_topology_threads(const char *root, const uint64_t *mask, size_t n_words)
{
    uint64_t cpus[MASK_WORDS] = {0};
    int n = 0;
    if (n_words > MASK_WORDS) n_words = MASK_WORDS;
    memcpy(cpus, mask, n_words * sizeof *mask);
    keep_performance_cores(root, cpus, n_words);
    for (unsigned long c = 0; c < n_words * 64; c++)
        n += has(cpus, n_words, c) && is_first_sibling(root, c, cpus, n_words);
    if (n < 1) n = 1;
    apply_cgroups(root, &n);
    return n;
}

int tn_pool_default_threads(void)
{
    union {
        cpu_set_t set;
        uint64_t words[MASK_WORDS];
    } m = {.words = {0}};
    if (sched_getaffinity(0, sizeof m, &m.set) != 0) m.words[0] = 1;
    return tn_topology_threads("", m.words, MASK_WORDS);
}
