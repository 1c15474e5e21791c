#include "watch.h"

#include "row.h"
#include "term.h"

#include <math.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

double tn_bench_read_number(const char *path, double none)
{
    FILE *f = fopen(path, "re");
    double value;
    if (!f) return none;
    if (fscanf(f, "%lf", &value) != 1) value = none;
    fclose(f);
    return value;
}

static double cpu_seconds(int who)
{
    struct rusage u;
    if (getrusage(who, &u)) return 0;
    return (double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* All CPUs together: user, nice, system, irq and softirq time, without guests counted twice. */
static void read_stat(tn_bench_moment *m)
{
    double user, nice, system, idle, iowait, irq, softirq, steal;
    FILE *f = fopen("/proc/stat", "re");
    if (!f) return;
    if (fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &user, &nice, &system, &idle, &iowait,
               &irq, &softirq, &steal) == 8) {
        const double hz = (double)sysconf(_SC_CLK_TCK);
        m->busy = (user + nice + system + irq + softirq) / hz;
        m->steal = steal / hz;
    }
    fclose(f);
}

/* Seconds that the calling thread was ready but did not run. */
static double read_waited(void)
{
    double ran, waited;
    FILE *f = fopen("/proc/thread-self/schedstat", "re");
    if (!f) return -1;
    const bool ok = fscanf(f, "%lf %lf", &ran, &waited) == 2;
    fclose(f);
    return ok ? waited * 1e-9 : -1;
}

static void read_cpus(tn_bench_moment *m)
{
    for (int i = 0; i < m->cpus; i++) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", i);
        const double mhz = tn_bench_read_number(path, -1000) / 1000;
        if (mhz > m->clock_mhz) m->clock_mhz = mhz;
        static const char *const kinds[] = {"core", "package"};
        for (int k = 0; k < 2; k++) {
            snprintf(path, sizeof path,
                     "/sys/devices/system/cpu/cpu%d/thermal_throttle/%s_throttle_count", i,
                     kinds[k]);
            const double events = tn_bench_read_number(path, -1);
            if (events >= 0) m->throttled = fmax(m->throttled, 0) + events;
        }
    }
}

tn_bench_moment tn_bench_look(void)
{
    tn_bench_moment m = {.busy = -1, .steal = -1, .clock_mhz = -1, .throttled = -1};
    m.cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
    m.wall = tn_bench_clock();
    m.own_cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN);
    m.waited = read_waited();
    m.load = tn_bench_read_number("/proc/loadavg", -1);
    read_stat(&m);
    read_cpus(&m);
    m.gpu = tn_bench_gpu_look();
    return m;
}

/* Percent of `whole`, NaN if either end is unknown. */
static double percent(double before, double after, double whole)
{
    return before >= 0 && after >= 0 && whole > 0 ? 100 * fmax(0, after - before) / whole : NAN;
}

tn_bench_watch tn_bench_watch_make(const tn_bench_moment *before, const tn_bench_moment *after)
{
    const double wall = after->wall - before->wall, all = wall * after->cpus;
    const double own = after->own_cpu - before->own_cpu;
    /* The kernel counts in ticks: two of them are no evidence. */
    const double ticks = 2.0 / (double)sysconf(_SC_CLK_TCK);
    return (tn_bench_watch){
        .others_percent = percent(before->busy, after->busy - own - ticks, all),
        .steal_percent = percent(before->steal, after->steal - ticks, all),
        .waited_percent = percent(before->waited, after->waited, wall),
        .clock_before_mhz = before->clock_mhz > 0 ? before->clock_mhz : NAN,
        .clock_after_mhz = after->clock_mhz > 0 ? after->clock_mhz : NAN,
        .throttle_events = before->throttled >= 0 ? after->throttled - before->throttled : NAN,
        .load = after->load >= 0 ? after->load : NAN,
        .gpu_before_mhz = before->gpu.clock_mhz,
        .gpu_after_mhz = after->gpu.clock_mhz,
        .gpu_slowed = before->gpu.slowed || after->gpu.slowed,
        .gpu_power_cap = before->gpu.power_cap || after->gpu.power_cap,
    };
}

bool tn_bench_watch_verdict(const tn_bench_watch *w, char *text, size_t cap)
{
    char part[100];
    *text = 0;
#define SAY(condition, ...)                                                                        \
    if (condition) {                                                                               \
        snprintf(part, sizeof part, __VA_ARGS__);                                                  \
        if (*text) strncat(text, ", ", cap - strlen(text) - 1);                                    \
        strncat(text, part, cap - strlen(text) - 1);                                               \
    }
    SAY(w->others_percent > 5, "other programs used %.0f %% of the CPUs", w->others_percent)
    SAY(w->steal_percent > 1, "the hypervisor took %.0f %% of the CPUs", w->steal_percent)
    SAY(w->waited_percent > 2, "waited for a CPU %.0f %% of the time", w->waited_percent)
    SAY(fabs(w->clock_after_mhz - w->clock_before_mhz) > 0.05 * w->clock_before_mhz,
        "the clock went from %.0f to %.0f MHz", w->clock_before_mhz, w->clock_after_mhz)
    SAY(fabs(w->gpu_after_mhz - w->gpu_before_mhz) > 0.05 * w->gpu_before_mhz,
        "the GPU's clock went from %.0f to %.0f MHz", w->gpu_before_mhz, w->gpu_after_mhz)
    SAY(w->gpu_slowed, "the GPU slowed down to protect itself")
    SAY(w->throttle_events > 0, "throttled for heat %.0f times", w->throttle_events)
#undef SAY
    return *text != 0;
}

json_t *tn_bench_watch_json(const tn_bench_watch *w)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:b,s:b}", "others_percent",
                     tn_bench_number(w->others_percent), "steal_percent",
                     tn_bench_number(w->steal_percent), "waited_percent",
                     tn_bench_number(w->waited_percent), "clock_before_mhz",
                     tn_bench_number(w->clock_before_mhz), "clock_after_mhz",
                     tn_bench_number(w->clock_after_mhz), "throttle_events",
                     tn_bench_number(w->throttle_events), "load_average", tn_bench_number(w->load),
                     "gpu_clock_before_mhz", tn_bench_number(w->gpu_before_mhz),
                     "gpu_clock_after_mhz", tn_bench_number(w->gpu_after_mhz), "gpu_slowed",
                     w->gpu_slowed, "gpu_power_cap", w->gpu_power_cap);
}

/* Bytes that a line "KEY: N kB" tells. */
static double read_kib(const char *path, const char *format)
{
    char line[200];
    double kib = NAN;
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, format, &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

double tn_bench_peak_rss(void)
{
    return read_kib("/proc/self/status", "VmHWM: %lf");
}

double tn_bench_memory_available(void)
{
    return read_kib("/proc/meminfo", "MemAvailable: %lf");
}

void tn_bench_peak_rss_reset(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "we");
    if (!f) return;
    fputs("5", f);
    fclose(f);
}
