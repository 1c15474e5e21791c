/* Internal: what an engine owns. */
#ifndef TN_ENGINE_H
#define TN_ENGINE_H

#include "tenon.h"
#include "../kernels/blas.h"
#include "../kernels/device.h"
#include "../kernels/kernels.h"
#include "../kernels/pool.h"

#include <pthread.h>

struct tn_engine {
    tn_allocator a;
    tn_kernels kernels;
    tn_pool *pool;
    tn_blas *blas;         /* NULL: not opened yet, or our own kernels serve */
    bool blas_tried;
    tn_devices devices;
    tn_device *device;     /* the first of them; NULL: none */
    void **scratch;        /* [threads] TN_SCRATCH_BYTES each */
    int n_threads;
    bool tunes;            /* nobody chose n_threads, so decode may use fewer (tune.h) */
    pthread_mutex_t turn;  /* evaluations and loads take turns on the pool */
    struct tn_boundary *boundaries; /* of its models: a list, for who holds the turn */
    int arriving; /* models that look for room on devices: meanwhile nothing moves there */
    char label[64]; /* what its speeds are called */
    char *cache_dir; /* NULL = measurements are not kept */
    tn_log_fn log;
    void *log_user;
    _Atomic int n_models;
};

/* What the host's weights are repacked to; R8 is what devices read, too. */
static inline tn_layout tn_engine_packed(const tn_engine *e)
{
    return e->device ? TN_LAYOUT_R8 : e->kernels.packed;
}
void tn_engine_log(const tn_engine *e, tn_log_level level, const char *fmt, ...) TN_PRINTF(3, 4);
/* Opens OpenBLAS for the engine unless that was tried already; its absence is logged, not an error.
 * With the engine's turn held. TN_ENOMEM. */
tn_status tn_engine_open_blas(tn_engine *e, tn_error *err);
/* Copies a caller's options struct into a zeroed full-size one, honouring its struct_size.
 * Returns TN_EARG if struct_size is zero or not a plausible size. */
tn_status tn_options_copy(void *dst, size_t dst_size, const void *src, const char *what,
                          tn_error *err);
/* Name of the highest ISA level that a mask holds. */
const char *tn_isa_name(unsigned mask);
/* Seconds on a monotonic clock. */
double tn_now(void);
/* version.c. The flags of this build that are not always the same, and CUDA=off. */
const char *tn_flags(void);

#endif
