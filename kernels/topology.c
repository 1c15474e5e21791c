#include "topology.h"

#include "pool.h"

#include <ctype.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4352, TEXT_BYTES = 4096 };
static const double kind_share = 0.8; /* of the next faster kind's speed: less is another kind */

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

static bool has(const tn_cpu_set *set, unsigned long cpu)
{
    return cpu / 64 < TN_CPU_WORDS && (set->word[cpu / 64] >> (cpu % 64) & 1);
}

static void put(tn_cpu_set *set, unsigned long cpu)
{
    set->word[cpu / 64] |= (uint64_t)1 << (cpu % 64);
}

/* ---- processors ------------------------------------------------------------------------------ */

/* Adds a list such as "0-3,8" to set. False if it is not one. */
static bool parse_list(const char *s, tn_cpu_set *set)
{
    while (isdigit((unsigned char)*s)) {
        char *end;
        unsigned long first = strtoul(s, &end, 10), last = first;
        if (*end == '-') last = strtoul(end + 1, &end, 10);
        for (unsigned long c = first; c <= last && c < TN_CPU_WORDS * 64; c++) put(set, c);
        s = *end == ',' ? end + 1 : end;
    }
    return *s == 0 || *s == '\n';
}

/* Reads such a list; an empty set where there is none. */
static bool read_list(const char *root, const char *path, tn_cpu_set *set)
{
    char text[TEXT_BYTES];
    memset(set, 0, sizeof *set);
    if (read_text(root, path, text, sizeof text) && parse_list(text, set)) return true;
    memset(set, 0, sizeof *set);
    return false;
}

static int read_int(const char *root, const char *path)
{
    char text[32];
    int v;
    return read_text(root, path, text, sizeof text) && sscanf(text, "%d", &v) == 1 ? v : 0;
}

static int read_cpu_int(const char *root, unsigned long cpu, const char *file)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%lu/%s", cpu, file);
    return read_int(root, path);
}

/* Whether `cpu` is the first of its hardware threads among those allowed. */
static bool is_first_sibling(const char *root, unsigned long cpu, const tn_cpu_set *allowed)
{
    char path[128];
    tn_cpu_set list;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%lu/topology/thread_siblings_list",
             cpu);
    if (!read_list(root, path, &list)) return true;
    for (unsigned long c = 0; c < cpu; c++)
        if (has(&list, c) && has(allowed, c)) return false;
    return true;
}

/* ---- kinds ----------------------------------------------------------------------------------- */

/* How fast processors are beside each other, in whatever the system tells: the kinds of a hybrid
 * processor, capacities, or highest clocks. */
typedef struct speeds {
    const char *root;
    bool hybrid;
    tn_cpu_set fast, slow;
} speeds;

static int speed_of(const speeds *s, unsigned long cpu)
{
    if (s->hybrid) return has(&s->fast, cpu) ? 3 : has(&s->slow, cpu) ? 1 : 2;
    const int capacity = read_cpu_int(s->root, cpu, "cpu_capacity");
    return capacity ? capacity : read_cpu_int(s->root, cpu, "cpufreq/cpuinfo_max_freq");
}

static int mhz_of(const char *root, unsigned long cpu)
{
    return read_cpu_int(root, cpu, "cpufreq/cpuinfo_max_freq") / 1000;
}

static void add_to_kind(const char *root, tn_cpu_kind *k, unsigned long cpu,
                        const tn_cpu_set *allowed)
{
    const int mhz = mhz_of(root, cpu);
    put(&k->set, cpu);
    k->processors++;
    k->cores += is_first_sibling(root, cpu, allowed);
    if (mhz > k->mhz) k->mhz = mhz;
}

static void find_kinds(tn_topology *t, const char *root, const tn_cpu_set *allowed)
{
    int speed[TN_CPU_WORDS * 64];
    speeds s = {.root = root};
    s.hybrid = read_list(root, "/sys/devices/cpu_core/cpus", &s.fast);
    read_list(root, "/sys/devices/cpu_lowpower/cpus", &s.slow);
    for (unsigned long c = 0; c < TN_CPU_WORDS * 64; c++)
        speed[c] = has(allowed, c) ? speed_of(&s, c) : -1;
    while (t->n_kinds < TN_CPU_KINDS) {
        int top = -1;
        for (unsigned long c = 0; c < TN_CPU_WORDS * 64; c++)
            if (speed[c] > top) top = speed[c];
        if (top < 0) return;
        const bool last = t->n_kinds == TN_CPU_KINDS - 1;
        tn_cpu_kind *k = &t->kind[t->n_kinds++];
        for (unsigned long c = 0; c < TN_CPU_WORDS * 64; c++) {
            if (speed[c] < 0 || (!last && speed[c] < kind_share * top)) continue;
            add_to_kind(root, k, c, allowed);
            speed[c] = -1;
        }
    }
}

/* ---- nodes ----------------------------------------------------------------------------------- */

static uint64_t node_memory(const char *root, unsigned long number)
{
    char path[96], text[TEXT_BYTES];
    unsigned long long kib;
    snprintf(path, sizeof path, "/sys/devices/system/node/node%lu/meminfo", number);
    if (!read_text(root, path, text, sizeof text)) return 0;
    const char *total = strstr(text, "MemTotal:");
    return total && sscanf(total, "MemTotal: %llu", &kib) == 1 ? kib * 1024 : 0;
}

static void fill_node(tn_cpu_node *n, const char *root, const tn_cpu_set *has_it,
                      const tn_cpu_set *allowed)
{
    for (unsigned long c = 0; c < TN_CPU_WORDS * 64; c++) {
        if (!has(has_it, c) || !has(allowed, c)) continue;
        put(&n->set, c);
        n->processors++;
        n->cores += is_first_sibling(root, c, allowed);
    }
}

static void find_nodes(tn_topology *t, const char *root, const tn_cpu_set *allowed)
{
    tn_cpu_set online, of;
    read_list(root, "/sys/devices/system/node/online", &online);
    for (unsigned long i = 0; i < TN_CPU_WORDS * 64 && t->n_nodes < TN_CPU_NODES; i++) {
        char path[96];
        if (!has(&online, i)) continue;
        tn_cpu_node *n = &t->node[t->n_nodes++];
        snprintf(path, sizeof path, "/sys/devices/system/node/node%lu/cpulist", i);
        read_list(root, path, &of);
        n->number = (int)i;
        n->memory_bytes = node_memory(root, i);
        fill_node(n, root, &of, allowed);
    }
    if (t->n_nodes) return;
    t->n_nodes = 1;
    fill_node(&t->node[0], root, allowed, allowed);
}

void tn_topology_read(tn_topology *t, const char *root, const tn_cpu_set *allowed)
{
    memset(t, 0, sizeof *t);
    find_kinds(t, root, allowed);
    find_nodes(t, root, allowed);
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
    tn_topology t = {.n_kinds = 0};
    tn_cpu_set allowed = {{0}};
    memcpy(allowed.word, mask, (n_words < TN_CPU_WORDS ? n_words : TN_CPU_WORDS) * sizeof *mask);
    find_kinds(&t, root, &allowed);
    int n = t.n_kinds ? t.kind[0].cores : 1;
    if (n < 1) n = 1;
    apply_cgroups(root, &n);
    return n;
}

void tn_topology_allowed(tn_cpu_set *allowed)
{
    union {
        cpu_set_t set;
        tn_cpu_set cpus;
    } m = {.cpus = {{0}}};
    if (sched_getaffinity(0, sizeof m, &m.set) != 0) m.cpus.word[0] = 1;
    *allowed = m.cpus;
}

int tn_pool_default_threads(void)
{
    tn_cpu_set allowed;
    tn_topology_allowed(&allowed);
    return tn_topology_threads("", allowed.word, TN_CPU_WORDS);
}
