#include "engine.h"
#include "model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Names of ISA levels, lowest first; a level includes everything below it. */
static const struct {
    const char *name;
    unsigned mask;
} levels[] = {
    {"scalar", TN_ISA_SCALAR},
    {"avx2", TN_ISA_AVX2},
    {"avxvnni", TN_ISA_AVX2 | TN_ISA_AVXVNNI},
    {"avx512", TN_ISA_AVX2 | TN_ISA_AVX512 | TN_ISA_VNNI512},
};

double tn_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

tn_status tn_options_copy(void *dst, size_t dst_size, const void *src, const char *what,
                          tn_error *err)
{
    memset(dst, 0, dst_size);
    if (!src) return TN_OK;
    size_t size;
    memcpy(&size, src, sizeof size);
    if (size < sizeof size || size > 4096)
        return tn_fail(err, TN_EARG, -1, "%s: struct_size is %zu; set it to sizeof the struct",
                       what, size);
    memcpy(dst, src, size < dst_size ? size : dst_size);
    return TN_OK;
}

void tn_engine_log(const tn_engine *e, tn_log_level level, const char *fmt, ...)
{
    if (!e->log) return;
    char line[500];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    e->log(e->log_user, level, line);
}

static tn_status isa_mask(const char *name, unsigned *mask, tn_error *err)
{
    unsigned have = tn_isa_detect();
    *mask = have;
    if (!name) return TN_OK;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (strcmp(levels[i].name, name) != 0) continue;
        if ((levels[i].mask & have) != levels[i].mask)
            return tn_fail(err, TN_EUNSUPPORTED, -1, "isa '%s': this CPU does not have it", name);
        *mask = levels[i].mask;
        return TN_OK;
    }
    return tn_fail(err, TN_EARG, -1, "isa '%s' is unknown; use scalar, avx2, avxvnni or avx512",
                   name);
}

static tn_status open_devices(tn_engine *e, const char *name, const size_t *limits, tn_error *err)
{
    if (!name) return TN_OK;
    const tn_status s = tn_devices_open(&e->devices, name, limits, &e->a, err);
    e->device = e->devices.at[0];
    return s;
}

static tn_status throttle_devices(tn_engine *e, double rate, tn_error *err)
{
    if (rate == 0) return TN_OK;
    if (!e->device)
        return tn_fail(err, TN_EARG, -1, "throttle: the engine was opened without a device");
    for (int i = 0; i < e->devices.n; i++) {
        tn_device *d = e->devices.at[i];
        const tn_status s = d->api->throttle(d, rate, err);
        if (s) return s;
        tn_engine_log(e, TN_LOG_INFO,
                      "device %d is throttled to %.4g GB/s: what waits for its memory "
                      "takes %.3g times as long",
                      i, rate * 1e-9, d->api->info(d)->slower);
    }
    return TN_OK;
}

static void name_speeds(tn_engine *e, double throttle)
{
    const bool emulated = strcmp(tn_engine_devices(e), "emu") == 0;
    const char *what = emulated ? "emulated" : throttle > 0 ? "" : "measured";
    snprintf(e->label, sizeof e->label, "%s", what);
    if (throttle > 0)
        snprintf(e->label, sizeof e->label, "%s%sthrottled to %.4g GB/s", what, *what ? ", " : "",
                 throttle * 1e-9);
}

/* The threads of each NUMA node own the rows that lie in its memory (tn_load_order). */
static tn_status new_pool(tn_engine *e, tn_error *err)
{
    tn_topology t;
    tn_cpu_set allowed;
    tn_pool_nodes nodes;
    tn_topology_allowed(&allowed);
    tn_topology_read(&t, "", &allowed);
    tn_pool_nodes_of(&nodes, &t, e->n_threads);
    if (nodes.n > 1)
        tn_engine_log(e, TN_LOG_INFO, "%d threads on %d NUMA nodes", e->n_threads, nodes.n);
    return tn_pool_new(&e->pool, e->n_threads, &nodes, &e->a, err);
}

static tn_status alloc_scratch(tn_engine *e, tn_error *err)
{
    e->scratch = tn_alloc(&e->a, (size_t)e->n_threads, sizeof *e->scratch);
    if (!e->scratch) return tn_fail_nomem(err, sizeof *e->scratch, "thread scratch");
    for (int i = 0; i < e->n_threads; i++) {
        e->scratch[i] = tn_alloc_raw(&e->a, TN_SCRATCH_BYTES, 1);
        if (!e->scratch[i]) return tn_fail_nomem(err, TN_SCRATCH_BYTES, "thread scratch");
    }
    return TN_OK;
}

const char *tn_openblas_core(void)
{
    return tn_blas_core();
}

tn_status tn_engine_open_blas(tn_engine *e, tn_error *err)
{
    const char *why = NULL;
    tn_status s = TN_OK;
    const bool first = !e->blas_tried;
    if (first) s = tn_blas_open(&e->blas, &e->a, &why);
    e->blas_tried |= s == TN_OK;
    if (s) return tn_fail_nomem(err, 1, "OpenBLAS");
    if (first)
        tn_engine_log(e, TN_LOG_INFO, "unquantised weights: %s",
                      e->blas ? tn_blas_describe(e->blas) : why);
    return TN_OK;
}

tn_status tn_engine_new(tn_engine **out, const tn_engine_options *options, tn_error *err)
{
    *out = NULL;
    tn_engine_options opt;
    tn_status s = tn_options_copy(&opt, sizeof opt, options, "tn_engine_options", err);
    if (s) return s;
    if (opt.threads < 0 || opt.threads > 1024)
        return tn_fail(err, TN_EARG, -1, "threads is %d; use 0 (physical cores) to 1024",
                       opt.threads);
    if (!opt.allocator.alloc != !opt.allocator.free)
        return tn_fail(err, TN_EARG, -1, "allocator: set both alloc and free, or neither");
    unsigned mask;
    if ((s = isa_mask(opt.isa, &mask, err))) return s;

    const tn_allocator a = opt.allocator.alloc ? opt.allocator : tn_default_allocator;
    tn_engine *e = tn_alloc(&a, 1, sizeof *e);
    if (!e) return tn_fail_nomem(err, sizeof *e, "the engine");
    e->a = a;
    e->log = opt.log;
    e->log_user = opt.log_user;
    e->n_threads = opt.threads ? opt.threads : tn_pool_default_threads();
    pthread_mutex_init(&e->turn, NULL);
    tn_kernels_init(&e->kernels, mask);
    s = alloc_scratch(e, err);
    if (!s && opt.cache_dir &&
        !(e->cache_dir = tn_strndup(&a, opt.cache_dir, strlen(opt.cache_dir))))
        s = tn_fail_nomem(err, strlen(opt.cache_dir), "the cache directory's name");
    if (!s) s = new_pool(e, err);
    if (!s) s = open_devices(e, opt.device, opt.vram_limits, err);
    if (!s) s = throttle_devices(e, opt.throttle, err);
    if (!s) name_speeds(e, opt.throttle);
    /* Beside a device, times tell of other things as well; a node's threads go with its memory. */
    if (!s) e->tunes = !opt.threads && !e->device && tn_pool_nodes_count(e->pool) == 1;
    if (s) {
        tn_engine_free(e);
        return s;
    }
    *out = e;
    return TN_OK;
}

void tn_engine_free(tn_engine *e)
{
    if (!e) return;
    const tn_allocator a = e->a;
    tn_devices_close(&e->devices);
    tn_free(&a, e->cache_dir);
    tn_pool_free(e->pool);
    tn_blas_close(e->blas);
    for (int i = 0; e->scratch && i < e->n_threads; i++) tn_free(&a, e->scratch[i]);
    tn_free(&a, e->scratch);
    pthread_mutex_destroy(&e->turn);
    tn_free(&a, e);
}

int tn_engine_threads(const tn_engine *e)
{
    return e->n_threads;
}

const char *tn_isa_name(unsigned mask)
{
    const char *name = levels[0].name;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if ((levels[i].mask & mask) == levels[i].mask) name = levels[i].name;
    return name;
}

const char *tn_isa_level(int i)
{
    const unsigned have = tn_isa_detect();
    for (size_t j = 0; j < sizeof levels / sizeof *levels; j++)
        if ((levels[j].mask & have) == levels[j].mask && i-- == 0) return levels[j].name;
    return NULL;
}

const char *tn_engine_isa(const tn_engine *e)
{
    return tn_isa_name(e->kernels.isa);
}

const char *tn_engine_devices(const tn_engine *e)
{
    if (!e->device) return "none";
    return e->device->api->info(e->device)->kind == TN_DEVICE_EMULATED ? "emu" : "cuda";
}

const char *tn_engine_label(const tn_engine *e)
{
    return e->label;
}

const tn_allocator *tn_engine_allocator(const tn_engine *e)
{
    return &e->a;
}

void tn_string_free(const tn_engine *e, char *s)
{
    tn_free(&e->a, s);
}
