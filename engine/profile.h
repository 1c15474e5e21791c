/* Internal: what a machine can do, as far as placement cares. Plain data: copied freely, owns
 * nothing. Rates are bytes per second of weights (or KV) as they are stored, factors are within (0,
 * 1]. */
#ifndef TN_PROFILE_H
#define TN_PROFILE_H

#include "hardware.h"
#include "../gguf/mem.h"
#include "../gguf/types.h"
#include "../kernels/topology.h"

enum {
    TN_MAX_DEVICES = 8,
    TN_PROFILE_TEXT = 160,
    TN_PROFILE_SOURCES = 24,
    TN_PROFILE_SCALING = 16
};

/* Storage of the KV cache; numbered as in tn_kv_type. */
typedef enum tn_kv_kind { TN_KV_KIND_F16, TN_KV_KIND_F32, TN_KV_KIND_Q8_0, TN_KV_KINDS } tn_kv_kind;

/* Batch sizes at which prefill rates are known; between them they are interpolated in log n. */
enum { TN_BATCH_SMALL = 32, TN_BATCH_LARGE = 512 };

/* One side: the host with its chosen threads, or one device. */
typedef struct tn_side_rates {
    double matvec[TN_TYPE_COUNT]; /* bytes/s of a weight times one vector */
    double kv[TN_KV_KINDS];       /* bytes/s of KV read by attention */
    double flops[2];              /* FLOP/s of products with 32 and with 512 vectors */
    double op_s; /* floor of one operation: a launch, a fork and join of the team */
} tn_side_rates;

typedef struct tn_profile_device {
    char name[TN_PROFILE_TEXT];
    uint64_t memory_bytes;   /* of the card */
    uint64_t reserved_bytes; /* not for us: driver context, libraries, display, margin */
    tn_side_rates rate;
    double pinned, pageable;     /* host to device copies, bytes/s */
    double cross_s, cross_p95_s; /* there and back of a small vector, host woken: X */
    tn_pci_link link;            /* 0 where it is not known */
} tn_profile_device;

typedef struct tn_profile_host {
    char name[TN_PROFILE_TEXT];
    uint64_t memory_bytes, reserved_bytes;
    int32_t cores;   /* physical (performance) cores */
    int32_t threads; /* with which the rates hold */
    tn_side_rates rate;
    /* Rates with other thread counts, relative to `threads`; ascending, interpolated, may be empty.
     */
    struct {
        int32_t threads;
        double factor;
    } scaling[TN_PROFILE_SCALING];
    int32_t n_scaling;
    /* Kinds of cores, the fastest first, and NUMA nodes; none where that is not known. */
    struct {
        int32_t cores, processors, mhz; /* processors and mhz 0: not known */
    } kind[TN_CPU_KINDS];
    struct {
        int32_t cores;
        uint64_t memory_bytes; /* 0: not known */
    } node[TN_CPU_NODES];
    int32_t n_kinds, n_nodes;
} tn_profile_host;

/* What is left of a rate while the other party works. Each pair must sum to at least 1: beside each
 * other is never slower than one after the other. */
typedef struct tn_profile_contended {
    double host_beside_copy, copy_beside_host;
    double host_beside_device, device_beside_host;
} tn_profile_contended;

typedef struct tn_profile {
    char name[TN_PROFILE_TEXT];
    char label[TN_PROFILE_TEXT]; /* "measured", or "assumed" where figures are published ones */
    char key[TN_PROFILE_TEXT];   /* identifies hardware and kernel build; "" for shipped profiles */
    tn_profile_host host;
    tn_profile_device device[TN_MAX_DEVICES];
    int32_t n_devices;
    tn_profile_contended contended;
    struct {
        char figure[64], text[TN_PROFILE_TEXT]; /* where it is from */
    } source[TN_PROFILE_SOURCES];
    int32_t n_sources;
} tn_profile;

/* A shipped profile by name; false if there is none. Any thread. */
bool tn_profile_shipped(tn_profile *out, const char *name);
/* Name of shipped profile i, NULL after the last. */
const char *tn_profile_shipped_name(size_t i);
/* An ordinary desktop without a device, for machines that have not been measured: 4 cores on DDR4.
 */
void tn_profile_generic(tn_profile *out);

/* TN_EFORMAT naming the figure that is outside its range ("devices[0].pinned_gb_s"). */
tn_status tn_profile_check(const tn_profile *p, const char *where, tn_error *err);
/* What all host rates are multiplied with when `threads` compute (0 = the profile's own number). */
double tn_profile_scale(const tn_profile_host *h, int32_t threads);
/* FLOP/s for batches of n vectors. */
double tn_profile_flops(const tn_side_rates *r, int64_t n);

/* json_profile.c. Strict: unknown, missing and mistyped keys are TN_EFORMAT and named. `where` is
 * the file's name, for messages. */
tn_status tn_profile_parse(tn_profile *out, const char *text, size_t len, const char *where,
                           tn_error *err);
/* *out is freed by the caller through a. */
tn_status tn_profile_json(const tn_profile *p, char **out, const tn_allocator *a, tn_error *err);

#endif
