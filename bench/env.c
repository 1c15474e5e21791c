#include "env.h"

#include "gpu.h"
#include "row.h"
#include "watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* A string value; null where s is empty or no UTF-8. */
static void set_text(json_t *o, const char *key, const char *s)
{
    json_t *value = s && *s ? json_string(s) : NULL;
    json_object_set_new(o, key, value ? value : json_null());
}

static void set_number(json_t *o, const char *key, double x)
{
    if (isfinite(x) && floor(x) == x && fabs(x) < 9e15)
        json_object_set_new(o, key, json_integer((json_int_t)x));
    else
        json_object_set_new(o, key, tn_bench_number(x));
}

static void trim(char *s)
{
    for (size_t n = strlen(s); n > 0 && strchr(" \t\n\"", s[n - 1]); n--)
        s[n - 1] = 0;
}

/* First line of a file of the kernel, "" if there is none. */
static const char *read_line(const char *path, char text[256])
{
    FILE *f = fopen(path, "re");
    *text = 0;
    if (!f) return text;
    if (!fgets(text, 256, f)) *text = 0;
    fclose(f);
    trim(text);
    return text;
}

/* What follows `key` and one separator in a file of lines, "" if no line starts with it. */
static const char *read_field(const char *path, const char *key, char text[256])
{
    char line[1024];
    const size_t len = strlen(key);
    FILE *f = fopen(path, "re");
    *text = 0;
    while (f && !*text && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, len) != 0) continue;
        const char *value = line + len + strspn(line + len, " \t:=\"");
        snprintf(text, 256, "%.*s", 255, value);
        trim(text);
    }
    if (f) fclose(f);
    return text;
}

/* The word in brackets of "always [madvise] never". */
static void set_choice(json_t *o, const char *key, const char *path)
{
    char text[256];
    read_line(path, text);
    char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;
    if (close) *close = 0;
    set_text(o, key, close ? open + 1 : text);
}

#define CPU "/sys/devices/system/cpu/"

static json_t *clocks(void)
{
    json_t *o = json_object();
    char text[256];
    set_text(o, "governor", read_line(CPU "cpu0/cpufreq/scaling_governor", text));
    set_text(o, "driver", read_line(CPU "cpu0/cpufreq/scaling_driver", text));
    set_number(o, "min_mhz", tn_bench_read_number(CPU "cpu0/cpufreq/cpuinfo_min_freq", NAN) / 1000);
    set_number(o, "max_mhz", tn_bench_read_number(CPU "cpu0/cpufreq/cpuinfo_max_freq", NAN) / 1000);
    read_field("/proc/cpuinfo", "cpu MHz", text);
    set_number(o, "now_mhz", *text ? strtod(text, NULL) : NAN);
    set_number(o, "turbo_off", tn_bench_read_number(CPU "intel_pstate/no_turbo", NAN));
    set_number(o, "boost", tn_bench_read_number(CPU "cpufreq/boost", NAN));
    set_number(
        o, "power_cap_watts",
        tn_bench_read_number("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw", NAN) /
            1e6);
    return o;
}

static json_t *caches(void)
{
    json_t *list = json_array();
    for (int i = 0; i < 8; i++) {
        char path[128], size[256], text[256];
        snprintf(path, sizeof path, CPU "cpu0/cache/index%d/size", i);
        if (!*read_line(path, size)) break;
        json_t *o = json_object();
        snprintf(path, sizeof path, CPU "cpu0/cache/index%d/level", i);
        set_number(o, "level", tn_bench_read_number(path, NAN));
        snprintf(path, sizeof path, CPU "cpu0/cache/index%d/type", i);
        set_text(o, "type", read_line(path, text));
        set_text(o, "size", size);
        snprintf(path, sizeof path, CPU "cpu0/cache/index%d/shared_cpu_list", i);
        set_text(o, "shared_by_cpus", read_line(path, text));
        json_array_append_new(list, o);
    }
    return list;
}

/* Whether a hypervisor runs this machine, by the CPU's flag; null where there are no flags. */
static json_t *is_virtual(void)
{
    char line[8192];
    bool found = false;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && !found && fgets(line, sizeof line, f))
        found = strncmp(line, "flags", 5) == 0;
    if (f) fclose(f);
    return found ? json_boolean(strstr(line, " hypervisor") != NULL) : json_null();
}

static json_t *cpu(void)
{
    json_t *o = json_object();
    char text[256];
    set_text(o, "model", read_field("/proc/cpuinfo", "model name", text));
    char family[256], model[256], stepping[256];
    read_field("/proc/cpuinfo", "cpu family", family);
    read_field("/proc/cpuinfo", "model\t", model);
    read_field("/proc/cpuinfo", "stepping", stepping);
    snprintf(text, sizeof text, "%.20s/%.20s/%.20s", family, model, stepping);
    set_text(o, "family_model_stepping", *family ? text : "");
    set_text(o, "microcode", read_field("/proc/cpuinfo", "microcode", text));
    set_number(o, "cpus_online", (double)sysconf(_SC_NPROCESSORS_ONLN));
    set_text(o, "cpus_allowed", read_field("/proc/self/status", "Cpus_allowed_list", text));
    set_text(o, "cores_per_socket", read_field("/proc/cpuinfo", "cpu cores", text));
    set_number(o, "smt", tn_bench_read_number(CPU "smt/active", NAN));
    json_object_set_new(o, "virtual", is_virtual());
    json_object_set_new(o, "caches", caches());
    json_object_set_new(o, "clock", clocks());
    return o;
}

static json_t *memory(void)
{
    json_t *o = json_object();
    struct sysinfo si;
    char text[256];
    set_number(o, "bytes", sysinfo(&si) == 0 ? (double)si.totalram * si.mem_unit : NAN);
    read_field("/proc/meminfo", "MemAvailable", text);
    set_number(o, "available_bytes", *text ? strtod(text, NULL) * 1024 : NAN);
    set_text(o, "numa_nodes", read_line("/sys/devices/system/node/online", text));
    set_choice(o, "transparent_huge_pages", "/sys/kernel/mm/transparent_hugepage/enabled");
    set_text(o, "cgroup_limit", read_line("/sys/fs/cgroup/memory.max", text));
    set_text(o, "cgroup_cpu_limit", read_line("/sys/fs/cgroup/cpu.max", text));
    return o;
}

static json_t *system_json(void)
{
    json_t *o = json_object();
    struct utsname u;
    char text[512];
    if (uname(&u) == 0) {
        snprintf(text, sizeof text, "%s %s %s", u.sysname, u.release, u.machine);
        set_text(o, "kernel", text);
    }
    set_text(o, "distribution", read_field("/etc/os-release", "PRETTY_NAME", text));
    set_choice(o, "clock_source",
               "/sys/devices/system/clocksource/clocksource0/current_clocksource");
    set_number(o, "autogroup",
               tn_bench_read_number("/proc/sys/kernel/sched_autogroup_enabled", NAN));
    set_number(o, "load_average", tn_bench_read_number("/proc/loadavg", NAN));
    return o;
}

static json_t *build_json(void)
{
    json_t *o = json_object();
    const char *commit = tn_commit(), *dirty = strstr(commit, "-dirty");
    char clean[128];
    snprintf(clean, sizeof clean, "%.*s", dirty ? (int)(dirty - commit) : 100, commit);
    set_text(o, "version", tn_version());
    set_text(o, "commit", clean);
    json_object_set_new(o, "dirty", *commit ? json_boolean(dirty != NULL) : json_null());
#if defined(__clang__)
    set_text(o, "compiler", "clang " __clang_version__);
#else
    set_text(o, "compiler", "gcc " __VERSION__);
#endif
    return o;
}

/* As the driver's kernel module says it; null where there is none. */
static json_t *gpu_driver(void)
{
    char text[256];
    return *read_line("/proc/driver/nvidia/version", text) ? json_string(text) : json_null();
}

void tn_bench_env_fill(json_t *environment, int argc, char **argv)
{
    char date[64];
    const time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
    set_text(environment, "date", date);
    json_t *command = json_array();
    for (int i = 0; i < argc; i++) {
        json_t *word = json_string(argv[i]);
        json_array_append_new(command, word ? word : json_string("?"));
    }
    json_object_set_new(environment, "command", command);
    json_object_set_new(environment, "build", build_json());
    json_object_set_new(environment, "cpu", cpu());
    json_object_set_new(environment, "memory", memory());
    json_object_set_new(environment, "system", system_json());
    json_object_set_new(environment, "gpu_driver", gpu_driver());
    json_object_set_new(environment, "gpus", tn_bench_gpus_json());
}
