#include "calibrate_internal.h"
#include "file.h"
#include "hardware.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    cols = 4096, /* of the matrices */
    grain = 64,  /* rows handed out at once */
    kv_heads = 8,
    group = 4, /* query heads per KV head */
    head_dim = 128,
    page_size = 256,
    most_passes = 15,
    attend_chunks = 32,
    filler = 0x3c /* as a float of any width: an ordinary number */
};
static const size_t least_set = 64u << 20, most_set = 512u << 20;
static const double patience = 0.025; /* seconds per figure, at least one pass */

typedef struct bench {
    const tn_engine *e;
    tn_pool *pool;
    int threads;
    void *set; /* working set, larger than the caches */
    size_t set_bytes;
    float *x, *y; /* [512][cols] */
    tn_q8 *q;
    void **pages;
    double op_s;
} bench;

typedef void (*pass_fn)(const bench *b, void *arg);

static int by_value(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return a < b ? -1 : a > b;
}

void tn_bench_sort(double *t, int n)
{
    qsort(t, (size_t)n, sizeof *t, by_value);
}

/* Seconds of one pass, the median of as many as patience allows after one to warm up. */
static double measure(const bench *b, pass_fn pass, void *arg)
{
    double t[most_passes], start = tn_now(), spent = 0;
    int n = 0;
    pass(b, arg);
    if (tn_now() - start > 8 * patience) return tn_now() - start;
    while (n < most_passes && (n < 3 || spent < patience)) {
        start = tn_now();
        pass(b, arg);
        t[n] = tn_now() - start;
        spent += t[n++];
    }
    tn_bench_sort(t, n);
    return t[n / 2];
}

/* ---- products -------------------------------------------------------------------------------- */

typedef struct product {
    tn_weight w;
    tn_acts x;
    tn_matmul_fn fn;
    const bench *b;
} product;

static void product_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const product *p = arg;
    p->fn(&p->w, &p->x, p->b->y, p->w.rows, begin, end, p->b->e->scratch[worker]);
}

static void product_pass(const bench *b, void *arg)
{
    tn_pool_run(b->pool, product_task, arg, ((product *)arg)->w.rows, grain);
}

/* Prepares n vectors times `rows` rows (0 = the whole working set); false if there is no kernel. */
static bool prepare(const bench *b, product *p, uint32_t type, int64_t rows, int64_t n)
{
    const tn_kernels *k = &b->e->kernels;
    size_t row_bytes;
    if (!tn_type_get(type)->matmul || !tn_type_row_bytes(type, cols, &row_bytes)) return false;
    const tn_layout packed = tn_engine_packed(b->e);
    const tn_layout layout = k->repack[packed][type] ? packed : TN_LAYOUT_ROWS;
    const int64_t most = (int64_t)(b->set_bytes / row_bytes) / grain * grain;
    if (!rows || rows > most) rows = most;
    *p = (product){.w = {.type = type,
                         .layout = layout,
                         .rows = rows,
                         .cols = cols,
                         .row_bytes = row_bytes,
                         .data = b->set},
                   .x = {.n = n, .cols = cols, .f = b->x, .f_stride = cols, .q = b->q},
                   .fn = k->matmul[layout][type],
                   .b = b};
    return p->fn != NULL;
}

static double matvec_rate(const bench *b, uint32_t type)
{
    product p;
    if (!prepare(b, &p, type, 0, 1)) return 0;
    return (double)p.w.row_bytes * (double)p.w.rows / measure(b, product_pass, &p);
}

/* One pass of an ordinary product, for what disturbs it. */
static double one_product(void *arg)
{
    const bench *b = arg;
    product p;
    if (!prepare(b, &p, TN_TYPE_Q4_K, 0, 1)) return 0;
    return measure(b, product_pass, &p);
}

static double flops(const bench *b, int64_t n)
{
    product p;
    int64_t rows = 256 * b->threads;
    if (rows < 1024) rows = 1024;
    if (rows * 512 > 512 * cols) rows = cols; /* y has room for 512 x cols results */
    if (!prepare(b, &p, TN_TYPE_Q4_K, rows, n)) return 0;
    return 2.0 * cols * (double)p.w.rows * (double)n / measure(b, product_pass, &p);
}

/* ---- attention ------------------------------------------------------------------------------- */

typedef struct attention {
    tn_attend a;
    const bench *b;
} attention;

static void attend_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const attention *r = arg;
    for (int64_t i = begin; i < end; i++)
        r->b->e->kernels.attend(&r->a, (int32_t)(i / r->a.n_chunks), 0, 1, i % r->a.n_chunks,
                                r->b->e->scratch[worker]);
}

static void attend_pass(const bench *b, void *arg)
{
    const attention *r = arg;
    tn_pool_run(b->pool, attend_task, arg, kv_heads * r->a.n_chunks, 1);
    for (int32_t h = 0; h < r->a.n_head; h++)
        b->e->kernels.attend_join(&r->a, 0, h);
}

static double kv_rate(const bench *b, uint32_t type)
{
    const tn_type_info *t = tn_type_get(type);
    const size_t page = (size_t)kv_heads * page_size * head_dim / t->block * t->bytes;
    const int64_t n_pages = (int64_t)(b->set_bytes / (2 * page)), n = n_pages * page_size;
    for (int64_t i = 0; i < 2 * n_pages; i++)
        b->pages[i] = (char *)b->set + (size_t)i * page;
    attention r = {.b = b};
    r.a = (tn_attend){
        .kv = {type, page_size, kv_heads, head_dim, head_dim, b->pages, b->pages + n_pages},
        .q = b->x,
        .q_stride = cols,
        .out = b->y,
        .out_stride = cols,
        .n = 1,
        .pos0 = n - 1,
        .n_head = kv_heads * group,
        .scale = 0.1f};
    r.a.chunk = ((n + attend_chunks - 1) / attend_chunks + 63) / 64 * 64;
    r.a.n_chunks = (n + r.a.chunk - 1) / r.a.chunk;
    r.a.partial = b->y + cols;
    return 2.0 * (double)n_pages * (double)page / measure(b, attend_pass, &r);
}

/* ---- everything ------------------------------------------------------------------------------ */

static const double spin_s = 5e-6;

/* Busy for a known time, so that what a pass takes beyond it is fork and join. */
static void spin(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)arg, (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const double start = tn_now();
        while (tn_now() - start < spin_s) {
        }
    }
}

static void op_pass(const bench *b, void *arg)
{
    (void)arg;
    for (int i = 0; i < 100; i++)
        tn_pool_run(b->pool, spin, NULL, b->threads, 1);
}

static size_t working_set(void)
{
    tn_host_info h;
    size_t cache = 0;
    tn_host_info_get(&h);
    for (int i = 0; i < h.n_caches; i++)
        if (h.caches[i].bytes > cache) cache = h.caches[i].bytes;
    size_t set = 4 * cache;
    if (set < least_set) set = least_set;
    if (set > most_set) set = most_set;
    const uint64_t available = tn_host_memory_available();
    while (available && set > available / 8 && set > (8u << 20))
        set /= 2;
    return set;
}

static void release(bench *b)
{
    const tn_allocator *a = &b->e->a;
    tn_free(a, b->set);
    tn_free(a, b->x);
    tn_free(a, b->y);
    tn_free(a, b->q);
    tn_free(a, b->pages);
}

static tn_status acquire(bench *b, tn_engine *e, tn_error *err)
{
    const size_t n = 512 * cols;
    *b = (bench){.e = e, .pool = e->pool, .threads = e->n_threads, .set_bytes = working_set()};
    b->set = tn_alloc_raw(&e->a, b->set_bytes, 1);
    b->x = tn_alloc(&e->a, n, sizeof *b->x);
    b->y = tn_alloc(&e->a, n, sizeof *b->y);
    b->q = tn_alloc(&e->a, n / 32, sizeof *b->q);
    b->pages =
        tn_alloc(&e->a, b->set_bytes / (kv_heads * page_size * head_dim) + 2, sizeof *b->pages);
    if (!b->set || !b->x || !b->y || !b->q || !b->pages) {
        release(b);
        return tn_fail_nomem(err, b->set_bytes, "calibration");
    }
    memset(b->set, filler, b->set_bytes);
    for (size_t i = 0; i < n; i++)
        b->x[i] = (float)(i % 17) / 17 - 0.5f;
    e->kernels.quantize(b->q, b->x, (int64_t)n);
    return TN_OK;
}

/* The slowest of the measured types stands for those without a kernel: nothing runs on them. */
static void measure_types(const bench *b, tn_side_rates *r)
{
    double slowest = 1e15;
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++) {
        r->matvec[i] = tn_type_get(i)->block ? matvec_rate(b, i) : 0;
        if (r->matvec[i] > 0 && r->matvec[i] < slowest) slowest = r->matvec[i];
    }
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block && !(r->matvec[i] > 0)) r->matvec[i] = slowest;
}

/* Rates with 1, 2, 4, ... threads relative to all of them. */
static tn_status measure_scaling(const bench *b, tn_profile_host *h, tn_error *err)
{
    h->n_scaling = 0;
    for (int n = 1; n < b->threads && h->n_scaling < TN_PROFILE_SCALING - 1; n *= 2) {
        bench fewer = *b;
        fewer.threads = n;
        const tn_status s = tn_pool_new(&fewer.pool, n, NULL, &b->e->a, err);
        if (s) return s;
        h->scaling[h->n_scaling].threads = n;
        h->scaling[h->n_scaling++].factor =
            matvec_rate(&fewer, TN_TYPE_Q4_K) / h->rate.matvec[TN_TYPE_Q4_K];
        tn_pool_free(fewer.pool);
    }
    h->scaling[h->n_scaling].threads = b->threads;
    h->scaling[h->n_scaling++].factor = 1;
    return TN_OK;
}

void tn_bench_source(tn_profile *p, const char *figure, const char *text)
{
    snprintf(p->source[p->n_sources].figure, sizeof p->source->figure, "%s", figure);
    snprintf(p->source[p->n_sources++].text, sizeof p->source->text, "%s", text);
}

static void set_cores(tn_profile_host *h)
{
    tn_cpu_set allowed;
    tn_topology t;
    tn_topology_allowed(&allowed);
    tn_topology_read(&t, "", &allowed);
    h->n_kinds = t.n_kinds;
    h->n_nodes = t.n_nodes;
    for (int i = 0; i < t.n_kinds; i++) {
        h->kind[i].cores = t.kind[i].cores;
        h->kind[i].processors = t.kind[i].processors;
        h->kind[i].mhz = t.kind[i].mhz;
    }
    for (int i = 0; i < t.n_nodes; i++) {
        h->node[i].cores = t.node[i].cores;
        h->node[i].memory_bytes = t.node[i].memory_bytes;
    }
}

/* Memory that is free now; the rest is somebody else's. */
static void set_memory(tn_profile_host *h)
{
    tn_host_info info;
    tn_host_info_get(&info);
    const uint64_t available = tn_host_memory_available();
    h->memory_bytes = info.memory_bytes > available ? info.memory_bytes : available;
    h->reserved_bytes = h->memory_bytes - available;
}

static void describe(tn_profile *p, const tn_engine *e, size_t set_bytes)
{
    tn_host_info info;
    char text[TN_PROFILE_TEXT];
    tn_host_info_get(&info);
    snprintf(p->name, sizeof p->name, "this machine");
    snprintf(p->label, sizeof p->label, "measured");
    snprintf(p->host.name, sizeof p->host.name, "%s", *info.cpu ? info.cpu : "unknown processor");
    tn_calibration_key(tn_engine_isa(e), tn_flags(), p->key);
    p->host.threads = e->n_threads;
    p->host.cores = tn_pool_default_threads();
    set_cores(&p->host);
    p->contended = (tn_profile_contended){1, 1, 1, 1}; /* there is nobody to contend with */
    set_memory(&p->host);
    tn_bench_source(p, "host.memory_bytes",
                    "the kernel's estimate and the limit of the control group");
    snprintf(text, sizeof text,
             "measured: median of passes over %zu MiB; types without a kernel: as the slowest",
             set_bytes >> 20);
    tn_bench_source(p, "host.cores",
                    "the kernel's word on kinds, clocks and nodes of those allowed");
    tn_bench_source(p, "host.matvec_gb_s", text);
    tn_bench_source(p, "host.kv_gb_s", "measured");
    tn_bench_source(p, "host.prefill_tflops", "measured with Q4_K");
    tn_bench_source(p, "host.op_us", "measured: fork and join of the team");
}

static tn_status measure_host(tn_profile *p, const bench *b, tn_error *err)
{
    tn_side_rates *r = &p->host.rate;
    measure_types(b, r);
    r->kv[TN_KV_KIND_F16] = kv_rate(b, TN_TYPE_F16);
    r->kv[TN_KV_KIND_F32] = kv_rate(b, TN_TYPE_F32);
    r->kv[TN_KV_KIND_Q8_0] = kv_rate(b, TN_TYPE_Q8_0);
    r->flops[0] = flops(b, TN_BATCH_SMALL);
    /* A slow machine need not prove at length that it is slow. */
    const double seconds = 2.0 * cols * cols * TN_BATCH_LARGE / r->flops[0];
    r->flops[1] = seconds > 4 ? r->flops[0] : flops(b, TN_BATCH_LARGE);
    r->op_s = fmax(0, measure(b, op_pass, NULL) / 100 - spin_s);
    return measure_scaling(b, &p->host, err);
}

tn_status tn_calibrate(tn_profile *out, tn_engine *e, tn_error *err)
{
    bench b;
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&e->turn);
    tn_pool_use(e->pool, e->n_threads);
    tn_status s = acquire(&b, e, err);
    if (!s) {
        describe(out, e, b.set_bytes);
        s = measure_host(out, &b, err);
        if (!s && e->device) s = tn_calibrate_device(out, e, one_product, &b, err);
        release(&b);
    }
    pthread_mutex_unlock(&e->turn);
    return s ? s : tn_profile_check(out, "calibration", err);
}

/* ---- the cache ------------------------------------------------------------------------------- */

/* FNV-1a. */
static uint32_t mix(uint32_t h, const char *text)
{
    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 0x01000193u;
    return h;
}

void tn_calibration_key(const char *isa, const char *flags, char key[TN_PROFILE_TEXT])
{
    tn_host_info h;
    tn_host_info_get(&h);
    /* The whole of the commit: its end says that there were changes. */
    const uint32_t build = mix(mix(mix(0x811c9dc5u, tn_commit()), __VERSION__), flags);
    snprintf(key, TN_PROFILE_TEXT, "%.60s, %d cores, %s, tenon %s %.12s, build %08x", h.cpu,
             tn_pool_default_threads(), isa, tn_version(), tn_commit(), (unsigned)build);
}

char *tn_calibration_path(const char *dir, bool throttled, const tn_allocator *a)
{
    static const char most[] = "/hardware-throttled.json";
    char *path = tn_alloc(a, strlen(dir) + sizeof most, 1);
    if (path) sprintf(path, "%s%s", dir, throttled ? most : "/hardware.json");
    return path;
}

bool tn_calibration_read(tn_profile *out, const char *path, const char *key, const tn_allocator *a)
{
    enum { most = 256 << 10 };
    char *text;
    size_t len;
    if (tn_file_read(path, most, "a profile", &text, &len, a, NULL)) return false;
    const bool ok = tn_profile_parse(out, text, len, path, NULL) == TN_OK &&
                    strncmp(out->key, key, strlen(key)) == 0 &&
                    (!out->key[strlen(key)] || out->key[strlen(key)] == ',');
    tn_free(a, text);
    if (ok) set_memory(&out->host);
    return ok;
}

tn_status tn_calibration_write(const tn_profile *p, const char *path, const tn_allocator *a,
                               tn_error *err)
{
    char *text = NULL;
    tn_status s = tn_profile_json(p, &text, a, err);
    if (!s) s = tn_file_replace(path, text, a, err);
    tn_free(a, text);
    return s;
}

static bool is_throttled(const tn_engine *e)
{
    return e->device && e->device->api->info(e->device)->throttle > 0;
}

/* The key of host and devices; false where the measurement is not to be kept: an emulated device is
 * never taken for a real one. */
static bool full_key(const tn_engine *e, char key[TN_PROFILE_TEXT])
{
    tn_calibration_key(tn_engine_isa(e), tn_flags(), key);
    if (!e->device) return true;
    bool emulated = false;
    if (is_throttled(e)) { /* first: names may be cut short */
        const size_t used = strlen(key);
        snprintf(key + used, TN_PROFILE_TEXT - used, ", throttled to %.6g GB/s",
                 e->device->api->info(e->device)->throttle * 1e-9);
    }
    for (int i = 0; i < e->devices.n; i++) {
        const tn_device_info *info = e->devices.at[i]->api->info(e->devices.at[i]);
        size_t used = strlen(key);
        if (i == 0) /* it may compile our kernels, and serves all of them */
            snprintf(key + used, TN_PROFILE_TEXT - used, ", driver %d", info->driver_version);
        used = strlen(key);
        snprintf(key + used, TN_PROFILE_TEXT - used, ", %.40s", info->name);
        emulated |= info->kind == TN_DEVICE_EMULATED;
    }
    return !emulated;
}

/* Where a measurement was not asked for, one that cannot be kept is still good. */
static tn_status keep_profile(tn_engine *e, const tn_profile *p, const char *path, bool asked,
                              tn_error *err)
{
    tn_error local = {0};
    const tn_status s = tn_calibration_write(p, path, &e->a, &local);
    if (s == TN_EIO && !asked) {
        tn_engine_log(e, TN_LOG_WARN, "what was measured is not kept: %s", local.msg);
        return TN_OK;
    }
    if (s && err) *err = local;
    return s;
}

tn_status tn_engine_calibrate(tn_engine *e, bool again, char **json, tn_error *err)
{
    tn_profile *p = tn_alloc(&e->a, 1, sizeof *p);
    char key[TN_PROFILE_TEXT], *path = NULL;
    tn_status s = p ? TN_OK : tn_fail_nomem(err, sizeof *p, "the profile");
    const bool keep = full_key(e, key) && e->cache_dir;
    *json = NULL;
    if (!s && keep && !(path = tn_calibration_path(e->cache_dir, is_throttled(e), &e->a)))
        s = tn_fail_nomem(err, strlen(e->cache_dir), "the profile's name");
    const bool cached = !s && !again && path && tn_calibration_read(p, path, key, &e->a) &&
                        strcmp(p->key, key) == 0 && p->host.threads == e->n_threads;
    if (!s && !cached) s = tn_calibrate(p, e, err);
    if (!s && !cached) memcpy(p->key, key, sizeof key);
    if (!s && !cached && path) s = keep_profile(e, p, path, again, err);
    if (!s) s = tn_profile_json(p, json, &e->a, err);
    tn_free(&e->a, path);
    tn_free(&e->a, p);
    return s;
}
