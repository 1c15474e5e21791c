/* What the device table's objects hold, for the files of this folder. */
#ifndef TN_CUDA_IMPL_H
#define TN_CUDA_IMPL_H

#include "gpu.h"
#include "../device.h"

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

struct tn_cuda_device : tn_device {
    tn_allocator allocator;
    tn_device_info about;
    size_t limit_bytes;         /* SIZE_MAX: none */
    cudaStream_t copies;        /* of upload and download */
    struct cublasContext *blas; /* NULL until it is needed, if it could not be made before:
                                   blas.h */

    /* Of a device that is made slow: throttle.cu. */
    struct {
        double extra;             /* bytes read for each that an op reads; 0: none */
        void *ballast;            /* NULL: it never was made slow */
        unsigned long long *read; /* on the device: words of the ballast read so far */
        std::atomic<uint64_t> next; /* word of the ballast at which the next read begins */
    } slow;

    std::mutex lock; /* for what follows */
    size_t used_bytes, pinned_bytes;
    std::unordered_map<void *, size_t> allocated, pinned; /* bytes as asked for */

    struct fault {
        std::atomic<uint64_t> calls, fail_at; /* so far; the number of the call that fails */
    } faults[3];
};

struct tn_flag_step; /* device_stream.cu */

struct tn_stream {
    tn_cuda_device *device;
    cudaStream_t stream;
    std::vector<tn_flag_step *> steps; /* of the capture under way */
    bool capturing;
    tn_status broken; /* what failed in the capture under way */
};

struct tn_event {
    tn_cuda_device *device;
    cudaEvent_t event;
};

struct tn_graph {
    tn_cuda_device *device;
    cudaGraphExec_t exec;
    std::vector<tn_flag_step *> steps;
};

/* ---- for ops --------------------------------------------------------------------------------- */

/* Makes the stream's device the thread's current one and returns CUDA's stream. Every op calls it
 * first; tn_cuda_launched then speaks of this stream. */
cudaStream_t tn_cuda_stream(tn_stream *s);
/* Whether the launch just made (or the cuBLAS call) was accepted: TN_OK or TN_EDEVICE. Called after
 * every one of them; this is where tests make launches fail. */
tn_status tn_cuda_launched(void);

/* ---- between the files of the device table --------------------------------------------------- */

static inline tn_cuda_device *tn_cuda(tn_device *d)
{
    return static_cast<tn_cuda_device *>(d);
}

/* Makes it the calling thread's current device. */
bool tn_cuda_enter(tn_cuda_device *d);
/* TN_EDEVICE with "WHAT failed on DEVICE: CUDA's words (its name)". */
tn_status tn_cuda_fail(tn_cuda_device *d, tn_error *err, const char *what, cudaError_t e);
/* Counts a call; true if it is the one that a test makes fail. */
bool tn_cuda_fault(tn_cuda_device *d, tn_device_fault what);
/* Counts a call and fails it if a test wants so, else turns CUDA's result into a status. The
 * failure breaks the stream's capture; s may be NULL. */
tn_status tn_cuda_result(tn_cuda_device *d, tn_stream *s, tn_error *err, const char *what,
                         cudaError_t e);

/* The stream that tn_cuda_launched speaks of; NULL: none, where it is no op that launches. */
void tn_cuda_set_launching(tn_stream *s);
/* throttle.cu. Gives the ballast back, if there is one. */
void tn_cuda_end_throttle(tn_cuda_device *d);

/* Whether the driver's stream memory operations work, also in graphs; tried in s. */
bool tn_cuda_has_memory_ops(cudaStream_t s);
/* device_blas.cu. The handle, made now if there is none yet; of the current device. */
bool tn_cuda_open_blas(tn_cuda_device *d);
void tn_cuda_close_blas(tn_cuda_device *d);

void tn_cuda_fill_memory(tn_device_api *api);  /* device_memory.cu */
void tn_cuda_fill_streams(tn_device_api *api); /* device_stream.cu */
void tn_cuda_fill_throttle(tn_device_api *api); /* throttle.cu */

#endif
