/* Internal: how load.c (files, the host's layouts) and load_device.c (uploads) work together. */
#ifndef TN_LOAD_H
#define TN_LOAD_H

#include "model.h"

#include "../kernels/pool.h"

/* One piece of reading: n_rows rows of one matrix of a tensor. */
struct tn_load_job {
    const tn_gguf_tensor *tensor;
    const tn_weight *file; /* how the rows lie in the file: type, cols, row_bytes */
    size_t file_offset;    /* bytes from the start of the tensor to the first row */
    int64_t n_rows;
    int64_t row0, rows;    /* the first of them in its matrix, and how many that has; or 0, 0 */
    char *dst;             /* where it goes */
    tn_layout layout;
    const tn_weight *slabs; /* what row0 is of, where that is slab-major; else NULL */
    bool to_f32; /* dequantise on the way */
};

/* Where the threads of several NUMA nodes read: job order[i] is the i-th, so that most rows are
 * first touched, and so kept, by the node that computes them (pool.h). */
void tn_load_order(const tn_pool *p, const struct tn_load_job *jobs, size_t n_jobs, size_t *order);
/* Reads on all threads; the jobs are part of l->total_bytes. */
tn_status tn_load_jobs(tn_load *l, const struct tn_load_job *jobs, size_t n_jobs);

/* Where a tensor goes; NULL: to the host. */
static inline const tn_tensor_place *tn_load_place(const tn_load *l, const tn_gguf_tensor *t)
{
    return l->place ? &l->place[t - tn_gguf_tensor_at(l->m->gguf, 0)] : NULL;
}

/* Queues the device's part of a matrix, which becomes *d in tn_load_device_alloc. file lives as
 * long as the model; type: that of the weights on the device. */
tn_status tn_load_device_weight(tn_load *l, tn_dweight *d, const tn_gguf_tensor *t,
                                const tn_weight *file, uint32_t type, const tn_tensor_place *p);
/* Allocates the memory of all weights on the device, or says how much is missing. */
tn_status tn_load_device_alloc(tn_load *l);
/* Uploads everything queued, through two pinned buffers. */
tn_status tn_load_device_run(tn_load *l);

#endif
