/* Profiles of machines: the shipped ones, and what every profile must satisfy.
 *
 * The shipped profiles are not measured. They are published figures of the parts times efficiencies
 * that well-written kernels reach; each figure's source is part of the profile. */
#include "profile.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double GB = 1e9, TFLOP = 1e12, us = 1e-6, GiB = 1024.0 * 1024.0 * 1024.0;

/* Shares of the published peaks that are assumed to be reached. */
static const double device_share = 0.85, host_share = 0.80, device_kv_share = 0.75,
                    tensor_share = 0.55, small_batch_share = 0.35, kv_per_core = 2.5e9,
                    flops_per_core = 9e10, copy_kept = 0.95;

/* Published figures of a machine. */
typedef struct machine {
    const char *name, *gpu, *cpu, *link;
    int n_gpus;
    double vram_gib, gpu_gb_s, gpu_tflops; /* dense FP16 with FP32 accumulation */
    int sockets, lanes;
    double gt_s;
    double pinned_gb_s, pageable_gb_s;     /* commonly measured on that link */
    double ram_gib, ram_gb_s;              /* peak of all channels */
    int cores;
    double core_factor; /* arithmetic of a core relative to an AVX2 desktop core */
    double cross_us, gpu_reserved_mib;
} machine;

static const machine machines[] = {
    {"rtx3060-ddr4", "GeForce RTX 3060 12 GB", "6 cores, 2 x DDR4-3200", "PCIe 4.0 x16", 1, 12, 360,
     25.6, 1, 16, 16, 22, 9, 32, 51.2, 6, 1.0, 40, 700},
    {"rtx3090-ddr5", "GeForce RTX 3090 24 GB", "8 cores, 2 x DDR5-5600", "PCIe 4.0 x16", 1, 24, 936,
     71, 1, 16, 16, 24, 11, 64, 89.6, 8, 1.2, 40, 700},
    {"rtx4060-laptop", "GeForce RTX 4060 Laptop 8 GB", "8 cores, 2 x DDR5-5200", "PCIe 4.0 x8", 1,
     8, 256, 30, 1, 8, 16, 12, 8, 32, 83.2, 8, 1.0, 50, 700},
    {"rtx4090-ddr5", "GeForce RTX 4090 24 GB", "16 cores, 2 x DDR5-6000", "PCIe 4.0 x16", 1, 24,
     1008, 165, 1, 16, 16, 24, 12, 96, 96, 16, 1.3, 35, 700},
    {"rtx5070ti-ddr5", "GeForce RTX 5070 Ti 16 GB", "8 cores, 2 x DDR5-6000", "PCIe 5.0 x16", 1, 16,
     896, 88, 1, 16, 32, 48, 14, 64, 96, 8, 1.4, 35, 700},
    {"rtx5090-ddr5", "GeForce RTX 5090 32 GB", "16 cores, 2 x DDR5-6400", "PCIe 5.0 x16", 1, 32,
     1792, 209, 1, 16, 32, 50, 15, 128, 102.4, 16, 1.4, 35, 700},
    {"2x-rtx3090-ddr4", "GeForce RTX 3090 24 GB", "16 cores, 4 x DDR4-3200", "PCIe 4.0 x16", 2, 24,
     936, 71, 1, 16, 16, 24, 9, 128, 102.4, 16, 1.0, 40, 700},
    {"h200-server", "H200 141 GB", "48 cores, 8 x DDR5-4800", "PCIe 5.0 x16", 1, 131.3, 4800, 989,
     1, 16, 32, 52, 15, 1024, 307.2, 48, 2.0, 35, 1500},
    {"8x-h200-server", "H200 141 GB", "96 cores, 16 x DDR5-4800", "PCIe 5.0 x16", 8, 131.3, 4800,
     989, 2, 16, 32, 52, 15, 2048, 614.4, 96, 2.0, 40, 1500},
};
enum { n_machines = sizeof machines / sizeof *machines };

/* How fast the host unpacks a type, relative to reading it: narrow formats cost more arithmetic. */
static double host_type_share(uint32_t type)
{
    switch (type) {
    case TN_TYPE_Q6_K:
    case TN_TYPE_Q5_K:
    case TN_TYPE_Q3_K: return 0.95;
    case TN_TYPE_Q2_K: return 0.85;
    default: break;
    }
    const tn_type_info *t = tn_type_get(type);
    return t->matmul ? 1.0 : 0.6; /* types without a tuned kernel */
}

static void set_rates(tn_side_rates *r, double bytes_s, bool host)
{
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block) r->matvec[i] = bytes_s * (host ? host_type_share(i) : 1.0);
}

static void add_source(tn_profile *p, const char *figure, const char *fmt, ...) TN_PRINTF(3, 4);
static void add_source(tn_profile *p, const char *figure, const char *fmt, ...)
{
    if (p->n_sources == TN_PROFILE_SOURCES) return;
    va_list ap;
    va_start(ap, fmt);
    snprintf(p->source[p->n_sources].figure, sizeof p->source->figure, "%s", figure);
    vsnprintf(p->source[p->n_sources].text, sizeof p->source->text, fmt, ap);
    va_end(ap);
    p->n_sources++;
}

/* One kind of cores, evenly over the sockets. */
static void set_cores(tn_profile_host *h, int cores, int sockets)
{
    h->cores = h->threads = cores;
    h->n_kinds = 1;
    h->kind[0].cores = cores;
    h->n_nodes = sockets;
    for (int i = 0; i < sockets; i++) {
        h->node[i].cores = cores / sockets;
        h->node[i].memory_bytes = h->memory_bytes / (uint64_t)sockets;
    }
}

static void set_host(tn_profile *p, const char *cpu, int cores, int sockets, double core_factor,
                     double ram_gib, double ram_gb_s)
{
    tn_profile_host *h = &p->host;
    const double peak = ram_gb_s * GB, attend = kv_per_core * cores * core_factor;
    snprintf(h->name, sizeof h->name, "%s", cpu);
    h->memory_bytes = (uint64_t)(ram_gib * GiB);
    h->reserved_bytes = (uint64_t)(4 * GiB);
    set_cores(h, cores, sockets);
    set_rates(&h->rate, peak * host_share, true);
    h->rate.kv[TN_KV_KIND_F16] = fmin(attend, 0.6 * peak);
    h->rate.kv[TN_KV_KIND_F32] = fmin(1.5 * attend, 0.7 * peak);
    h->rate.kv[TN_KV_KIND_Q8_0] = fmin(0.7 * attend, 0.5 * peak);
    h->rate.flops[1] = flops_per_core * cores * core_factor;
    h->rate.flops[0] = 0.8 * h->rate.flops[1];
    h->rate.op_s = 4 * us;
    add_source(p, "host.memory_bytes",
               "a common size with this card; 4 GiB for the system, assumed");
    add_source(p, "host.cores",
               "maker's data sheets of processors of this class: %d cores; %d NUMA node%s assumed",
               cores, sockets, sockets == 1 ? "" : "s");
    add_source(p, "host.matvec_gb_s",
               "memory's published peak %.1f GB/s x %.2f, assumed; less for "
               "types that take more unpacking",
               ram_gb_s, host_share);
    add_source(p, "host.kv_gb_s", "assumed: %.1f GB/s a core", kv_per_core * core_factor / GB);
    add_source(p, "host.prefill_tflops", "assumed: %.2f TFLOP/s a core, %d cores",
               flops_per_core * core_factor / TFLOP, cores);
    add_source(p, "host.op_us", "assumed: fork and join of a spinning team");
}

static void set_devices(tn_profile *p, const machine *m)
{
    tn_profile_device d = {.cross_s = m->cross_us * us, .cross_p95_s = 1.5 * m->cross_us * us};
    snprintf(d.name, sizeof d.name, "%s", m->gpu);
    d.memory_bytes = (uint64_t)(m->vram_gib * GiB);
    d.reserved_bytes = (uint64_t)(m->gpu_reserved_mib * 1024 * 1024);
    d.link = (tn_pci_link){m->gt_s, m->gt_s, m->lanes, m->lanes};
    d.pinned = m->pinned_gb_s * GB;
    d.pageable = m->pageable_gb_s * GB;
    set_rates(&d.rate, m->gpu_gb_s * GB * device_share, false);
    for (int i = 0; i < TN_KV_KINDS; i++)
        d.rate.kv[i] = m->gpu_gb_s * GB * device_kv_share;
    d.rate.flops[1] = m->gpu_tflops * TFLOP * tensor_share;
    d.rate.flops[0] = d.rate.flops[1] * small_batch_share;
    d.rate.op_s = 2 * us;
    p->n_devices = m->n_gpus;
    for (int i = 0; i < m->n_gpus; i++)
        p->device[i] = d;
    add_source(p, "devices.memory_bytes",
               "maker's data sheet; reserve for context and display assumed");
    add_source(p, "devices.matvec_gb_s", "maker's data sheet: %.0f GB/s x %.2f, assumed",
               m->gpu_gb_s, device_share);
    add_source(p, "devices.kv_gb_s", "the same peak x %.2f, assumed", device_kv_share);
    add_source(
        p, "devices.prefill_tflops",
        "data sheet: %.1f TFLOP/s dense FP16 with FP32 sums x %.2f at 512, x %.2f of that at 32",
        m->gpu_tflops, tensor_share, small_batch_share);
    add_source(p, "devices.pcie", "maker's data sheet: %s", m->link);
    add_source(p, "devices.pinned_gb_s", "commonly reported for %s", m->link);
    add_source(p, "devices.pageable_gb_s", "commonly reported for copies from unpinned memory");
    add_source(p, "devices.crossing_us", "assumed: mapped flags and a spinning team");
    add_source(p, "devices.op_us", "assumed: a kernel inside a graph");
}

static void set_contended(tn_profile *p, double ram_gb_s, double pinned_gb_s)
{
    tn_profile_contended *c = &p->contended;
    const double left = ram_gb_s * GB * (host_share + 0.05) - pinned_gb_s * GB * copy_kept;
    c->copy_beside_host = copy_kept;
    c->host_beside_copy = fmin(0.95, fmax(0.3, left / (ram_gb_s * GB * host_share)));
    c->host_beside_device = 0.97;
    c->device_beside_host = 0.98;
    add_source(p, "contended",
               "assumed: a copy takes its bytes from the memory's peak; a busy device "
               "and a busy host share power");
}

const char *tn_profile_shipped_name(size_t i)
{
    return i < n_machines ? machines[i].name : NULL;
}

bool tn_profile_shipped(tn_profile *out, const char *name)
{
    for (size_t i = 0; i < n_machines; i++) {
        const machine *m = &machines[i];
        if (strcmp(m->name, name) != 0) continue;
        memset(out, 0, sizeof *out);
        snprintf(out->name, sizeof out->name, "%s", name);
        snprintf(out->label, sizeof out->label, "assumed from published figures");
        set_host(out, m->cpu, m->cores, m->sockets, m->core_factor, m->ram_gib, m->ram_gb_s);
        set_devices(out, m);
        set_contended(out, m->ram_gb_s, m->pinned_gb_s);
        return true;
    }
    return false;
}

void tn_profile_generic(tn_profile *out)
{
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "generic-host");
    snprintf(out->label, sizeof out->label, "assumed: an ordinary desktop, not this machine");
    set_host(out, "4 cores, 2 x DDR4-2666", 4, 1, 1.0, 16, 42.7);
    set_contended(out, 42.7, 0);
}

/* ---- checks ---------------------------------------------------------------------------------- */

typedef struct checker {
    const char *where;
    tn_error *err;
    tn_status status;
} checker;

/* Everything a profile holds is a number within a range; NaN is in none. */
static void in_range(checker *c, const char *prefix, const char *figure, double v, double lo,
                     double hi)
{
    if (c->status || (v >= lo && v <= hi)) return;
    c->status = tn_fail(c->err, TN_EFORMAT, -1, "%s: figure '%s%s' is %g, expected %g to %g",
                        c->where, prefix, figure, v, lo, hi);
}

static void check_rates(checker *c, const char *prefix, const tn_side_rates *r)
{
    char name[48];
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++) {
        if (!tn_type_get(i)->block) continue;
        snprintf(name, sizeof name, "matvec_gb_s.%s", tn_type_get(i)->name);
        in_range(c, prefix, name, r->matvec[i] / GB, 1e-6, 1e6);
    }
    in_range(c, prefix, "kv_gb_s.f16", r->kv[TN_KV_KIND_F16] / GB, 1e-6, 1e6);
    in_range(c, prefix, "kv_gb_s.f32", r->kv[TN_KV_KIND_F32] / GB, 1e-6, 1e6);
    in_range(c, prefix, "kv_gb_s.q8_0", r->kv[TN_KV_KIND_Q8_0] / GB, 1e-6, 1e6);
    in_range(c, prefix, "prefill_tflops.32", r->flops[0] / TFLOP, 1e-9, 1e6);
    in_range(c, prefix, "prefill_tflops.512", r->flops[1] / TFLOP, 1e-9, 1e6);
    in_range(c, prefix, "op_us", r->op_s / us, 0, 1e6);
}

static void check_device(checker *c, int32_t i, const tn_profile_device *d)
{
    char prefix[24];
    snprintf(prefix, sizeof prefix, "devices[%d].", i);
    in_range(c, prefix, "memory_bytes", (double)d->memory_bytes, 1, 1e15);
    in_range(c, prefix, "reserved_bytes", (double)d->reserved_bytes, 0, (double)d->memory_bytes);
    check_rates(c, prefix, &d->rate);
    in_range(c, prefix, "pinned_gb_s", d->pinned / GB, 1e-6, 1e6);
    in_range(c, prefix, "pageable_gb_s", d->pageable / GB, 1e-6, 1e6);
    in_range(c, prefix, "crossing_us", d->cross_s / us, 0, 1e6);
    in_range(c, prefix, "crossing_p95_us", d->cross_p95_s / us, 0, 1e6);
    in_range(c, prefix, "pcie.gt_s", d->link.gt_s, 0, 1000);
    in_range(c, prefix, "pcie.most_gt_s", d->link.most_gt_s, 0, 1000);
    in_range(c, prefix, "pcie.width", d->link.width, 0, 64);
    in_range(c, prefix, "pcie.most_width", d->link.most_width, 0, 64);
}

static void check_cores(checker *c, const tn_profile_host *h)
{
    in_range(c, "host.", "kinds (their number)", h->n_kinds, 0, TN_CPU_KINDS);
    in_range(c, "host.", "nodes (their number)", h->n_nodes, 0, TN_CPU_NODES);
    for (int32_t i = 0; !c->status && i < h->n_kinds; i++) {
        in_range(c, "host.", "kinds.cores", h->kind[i].cores, 1, 8192);
        in_range(c, "host.", "kinds.processors", h->kind[i].processors, 0, 8192);
        in_range(c, "host.", "kinds.mhz", h->kind[i].mhz, 0, 1e5);
    }
    for (int32_t i = 0; !c->status && i < h->n_nodes; i++) {
        in_range(c, "host.", "nodes.cores", h->node[i].cores, 0, 8192);
        in_range(c, "host.", "nodes.memory_bytes", (double)h->node[i].memory_bytes, 0, 1e15);
    }
}

static void check_host(checker *c, const tn_profile_host *h)
{
    check_cores(c, h);
    in_range(c, "host.", "memory_bytes", (double)h->memory_bytes, 1, 1e15);
    in_range(c, "host.", "reserved_bytes", (double)h->reserved_bytes, 0, (double)h->memory_bytes);
    in_range(c, "host.", "cores", h->cores, 1, 4096);
    in_range(c, "host.", "threads", h->threads, 1, 4096);
    check_rates(c, "host.", &h->rate);
    for (int32_t i = 0; i < h->n_scaling; i++) {
        in_range(c, "host.", "scaling", h->scaling[i].factor, 1e-6, 1e3);
        in_range(c, "host.", "scaling (thread counts ascend)", h->scaling[i].threads,
                 i ? h->scaling[i - 1].threads + 1 : 1, 4096);
    }
}

tn_status tn_profile_check(const tn_profile *p, const char *where, tn_error *err)
{
    checker c = {where, err, TN_OK};
    const tn_profile_contended *k = &p->contended;
    check_host(&c, &p->host);
    in_range(&c, "", "devices (their number)", p->n_devices, 0, TN_MAX_DEVICES);
    for (int32_t i = 0; !c.status && i < p->n_devices; i++)
        check_device(&c, i, &p->device[i]);
    in_range(&c, "contended.", "host_beside_copy", k->host_beside_copy, 1e-3, 1);
    in_range(&c, "contended.", "copy_beside_host", k->copy_beside_host, 1e-3, 1);
    in_range(&c, "contended.", "host_beside_device", k->host_beside_device, 1e-3, 1);
    in_range(&c, "contended.", "device_beside_host", k->device_beside_host, 1e-3, 1);
    in_range(&c, "contended.", "host_beside_copy + copy_beside_host",
             k->host_beside_copy + k->copy_beside_host, 1, 2);
    in_range(&c, "contended.", "host_beside_device + device_beside_host",
             k->host_beside_device + k->device_beside_host, 1, 2);
    return c.status;
}

/* ---- interpolation --------------------------------------------------------------------------- */

double tn_profile_scale(const tn_profile_host *h, int32_t threads)
{
    if (threads <= 0 || threads == h->threads) return 1.0;
    if (h->n_scaling == 0) return threads < h->threads ? (double)threads / h->threads : 1.0;
    if (threads <= h->scaling[0].threads)
        return h->scaling[0].factor * threads / h->scaling[0].threads;
    for (int32_t i = 1; i < h->n_scaling; i++) {
        const int32_t lo = h->scaling[i - 1].threads, hi = h->scaling[i].threads;
        if (threads > hi) continue;
        const double t = (double)(threads - lo) / (hi - lo);
        return h->scaling[i - 1].factor * (1 - t) + h->scaling[i].factor * t;
    }
    return h->scaling[h->n_scaling - 1].factor;
}

double tn_profile_flops(const tn_side_rates *r, int64_t n)
{
    if (n <= TN_BATCH_SMALL) return r->flops[0];
    if (n >= TN_BATCH_LARGE) return r->flops[1];
    const double t = log((double)n / TN_BATCH_SMALL) / log((double)TN_BATCH_LARGE / TN_BATCH_SMALL);
    return r->flops[0] * (1 - t) + r->flops[1] * t;
}
