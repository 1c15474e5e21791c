/* The device table: memory, streams, events, graphs, flags of one GPU, or of the emulated device.
 *
 * The device's code is a plug-in, a shared object beside libtenon or the program: libtenon-cuda.so
 * for a GPU, libtenon-emu.so for the emulated device. So the same program starts on machines
 * without a driver. device.c finds and opens it; built with CUDA=off, nodevice.c says that there is
 * none.
 *
 *     tn_device *d;
 *     if (tn_device_open(&options, &d, err) < 0) return ...;
 *     d->api->alloc(d, bytes, "layer 3", &p, err);
 *     d->ops->...                                    (device_ops.h)
 *
 * Everything that takes a stream is asynchronous: it returns when it is queued, and reports what is
 * known by then; what fails later is reported by the next call that waits (stream_sync, upload,
 * download, event_sync). Every failure is TN_EDEVICE unless said otherwise, with a sentence.
 *
 * Threads: alloc, free and their pinned forms from any thread; a stream, an event or a graph
 * belongs to one thread at a time. Pointers to device memory are plain void *, never dereferenced
 * by host code; memory is aligned to 256 bytes. Pinned memory is accessible to host and device
 * alike. */
#ifndef TN_DEVICE_H
#define TN_DEVICE_H

#include "../gguf/mem.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_device tn_device;
typedef struct tn_stream tn_stream; /* operations of one stream run in order */
typedef struct tn_event tn_event;   /* a moment in a stream */
typedef struct tn_graph tn_graph;   /* recorded operations, launched as one */

typedef enum tn_device_kind { TN_DEVICE_CUDA = 0, TN_DEVICE_EMULATED = 1 } tn_device_kind;

typedef struct tn_device_options {
    tn_device_kind kind;
    int index;                     /* from 0, as the driver counts */
    size_t memory_limit;           /* bytes that alloc hands out at most; 0 = no limit of ours */
    const tn_allocator *allocator; /* for bookkeeping on the host; NULL = malloc */
} tn_device_options;

typedef struct tn_device_info {
    tn_device_kind kind;
    int index;
    char name[128];     /* "NVIDIA H100 80GB HBM3", "emulated CUDA device" */
    char pci[16];       /* its place on the bus, "0000:65:00.0"; "" where it has none */
    int capability;     /* compute capability * 10: 75, 90, 120 */
    int processors;     /* streaming multiprocessors */
    size_t total_bytes; /* memory of the device */
    size_t l2_bytes;
    size_t shared_bytes;             /* shared memory a block may ask for */
    int driver_version, api_version; /* 13000 = 13.0 */
    bool memory_ops;                 /* flags are served by the hardware, not by host functions */
    double throttle; /* bytes per second that it was slowed to; 0: it was not */
    double slower;   /* by that factor: what it reads at most divided by throttle; else 1 */
} tn_device_info;

typedef struct tn_device_memory {
    size_t used_bytes;  /* by alloc, to the byte as asked for */
    size_t limit_bytes; /* of tn_device_options; SIZE_MAX = none */
    size_t free_bytes;  /* what the driver says is free; other programs take part in that */
    size_t allocations; /* live ones */
    size_t pinned_bytes;
} tn_device_memory;

/* What tests make fail. */
typedef enum tn_device_fault {
    TN_FAULT_ALLOC = 0, /* alloc, alloc_pinned, pin */
    TN_FAULT_COPY = 1,  /* upload, download, copy, fill, in all forms */
    TN_FAULT_LAUNCH = 2 /* kernel and graph launches */
} tn_device_fault;

typedef struct tn_device_api {
    /* Waits for all streams; streams, events, graphs and memory must have been given back. */
    void (*close)(tn_device *d);
    const tn_device_info *(*info)(const tn_device *d);
    tn_status (*memory)(tn_device *d, tn_device_memory *m, tn_error *err);

    /* `what` names the purpose in the error: "out of device memory: 12.5 MiB missing for the KV
     * cache (...)". bytes == 0 gives a valid pointer. */
    tn_status (*alloc)(tn_device *d, size_t bytes, const char *what, void **p, tn_error *err);
    /* NULL is fine. Waits until the device is idle: so not while one of its streams waits for the
     * host, nor where a stream may still use the memory; the emulated device refuses both. */
    void (*free)(tn_device *d, void *p);
    tn_status (*alloc_pinned)(tn_device *d, size_t bytes, const char *what, void **p,
                              tn_error *err);
    void (*free_pinned)(tn_device *d, void *p); /* as free */
    /* Pins memory that exists, in whole pages; may fail where the system allows no more. */
    tn_status (*pin)(tn_device *d, void *p, size_t bytes, tn_error *err);
    void (*unpin)(tn_device *d, void *p); /* as free */

    /* Copies that have happened when the call returns; host memory of any kind. */
    tn_status (*upload)(tn_device *d, void *to, const void *from, size_t bytes, tn_error *err);
    tn_status (*download)(tn_device *d, void *to, const void *from, size_t bytes, tn_error *err);
    /* Copies in a stream: the host side is pinned and stays untouched until the stream is there. */
    tn_status (*upload_async)(tn_device *d, tn_stream *s, void *to, const void *from, size_t bytes,
                              tn_error *err);
    tn_status (*download_async)(tn_device *d, tn_stream *s, void *to, const void *from,
                                size_t bytes, tn_error *err);
    /* n pieces of `bytes` each, `stride` apart on the host and one after the
     * other on the device. */
    tn_status (*upload_pieces_async)(tn_device *d, tn_stream *s, void *to, const void *from,
                                     size_t bytes, size_t n, size_t stride, tn_error *err);
    tn_status (*copy_async)(tn_device *d, tn_stream *s, void *to, const void *from, size_t bytes,
                            tn_error *err); /* within the device */
    tn_status (*fill_async)(tn_device *d, tn_stream *s, void *to, int byte, size_t bytes,
                            tn_error *err);
    /* From memory of d to memory of `peer`, a device of the same kind, in a stream of d. Directly
     * where the devices can; else through pinned memory, and then it waits for the copy. */
    tn_status (*copy_peer)(tn_device *d, tn_stream *s, tn_device *peer, void *to, const void *from,
                           size_t bytes, tn_error *err);
    /* Whether it is direct: only then can it be recorded in a graph. */
    bool (*reaches)(tn_device *d, tn_device *peer);

    tn_status (*stream_create)(tn_device *d, tn_stream **s, tn_error *err);
    void (*stream_destroy)(tn_device *d, tn_stream *s); /* waits for it; NULL is fine */
    tn_status (*stream_sync)(tn_device *d, tn_stream *s, tn_error *err);
    /* *done = all that was queued has happened */
    tn_status (*stream_query)(tn_device *d, tn_stream *s, bool *done, tn_error *err);

    tn_status (*event_create)(tn_device *d, bool timed, tn_event **e, tn_error *err);
    void (*event_destroy)(tn_device *d, tn_event *e); /* NULL is fine */
    tn_status (*event_record)(tn_device *d, tn_event *e, tn_stream *s, tn_error *err);
    tn_status (*event_sync)(tn_device *d, tn_event *e, tn_error *err);
    /* The stream, of any device of the same kind, goes on when the event has happened. */
    tn_status (*event_wait)(tn_device *d, tn_stream *s, tn_event *e, tn_error *err);
    /* Milliseconds from one timed event to another; both have happened. */
    tn_status (*event_elapsed)(tn_device *d, tn_event *from, tn_event *to, float *ms,
                               tn_error *err);

    /* What is queued from begin to end is recorded instead of done: pointers and arguments as they
     * are then, memory as it is at each launch. Other streams take part from their first wait for
     * an event recorded in the capture; the capturing one waits for them before the end.
     * upload, download and alloc are not allowed meanwhile. After a failure within the capture,
     * graph_end fails and the stream is as before. */
    tn_status (*graph_begin)(tn_device *d, tn_stream *s, tn_error *err);
    tn_status (*graph_end)(tn_device *d, tn_stream *s, tn_graph **g, tn_error *err);
    tn_status (*graph_launch)(tn_device *d, tn_graph *g, tn_stream *s, tn_error *err);
    void (*graph_destroy)(tn_device *d,
                          tn_graph *g); /* no launch may be on its way; NULL is fine */

    /* Hand-over flags, 32 bits each in pinned memory, also in graphs. The stream goes on once
     * (int32_t)(*flag - value) >= 0; it writes when all before in the stream has happened. The host
     * reads and writes them with acquire and release. While a stream waits for the host, memory of
     * its device and pinned memory is neither allocated nor freed: that may wait for the device.
     * In a graph only the stream that is being recorded waits and writes: not one that has joined
     * the recording by an event. */
    tn_status (*flag_wait)(tn_device *d, tn_stream *s, uint32_t *flag, uint32_t value,
                           tn_error *err);
    tn_status (*flag_write)(tn_device *d, tn_stream *s, uint32_t *flag, uint32_t value,
                            tn_error *err);

    /* Makes a fast device slow, for trying what is meant for slower ones: from now on whatever
     * waits for its memory (mat-vecs, decode attention, the op `read`) is followed by reads of
     * other memory, so that it takes as long as where so many bytes are read a second. Results stay
     * the same to the bit; batches (gemm, attend_tiles) and copies keep their speed. The memory
     * read is part of no account of alloc's. 0 makes it as fast as it is. Measures the device for
     * that, so nothing else is under way on it. TN_EARG: the device is no faster than that. */
    tn_status (*throttle)(tn_device *d, double bytes_per_second, tn_error *err);
    /* Bytes that it has read for that. Waits for all streams. */
    tn_status (*throttled_bytes)(tn_device *d, uint64_t *bytes, tn_error *err);

    /* The k-th call of a kind from now on fails (k = 1 the next one), once; 0 switches it off.
     * Returns how many of them there have been since the device was opened. */
    uint64_t (*fail_at)(tn_device *d, tn_device_fault what, uint64_t k);

    /* NULL for a GPU: see emu/emu.h. */
    const struct tn_emu_control *emu;
} tn_device_api;

/* The open device; what follows is the plug-in's own. */
struct tn_device {
    const tn_device_api *api;
    const struct tn_device_ops *ops; /* device_ops.h */
};

/* Number of devices of a kind. TN_EUNSUPPORTED: there is no plug-in for it; TN_EDEVICE: no driver,
 * or it fails. Either way *n is 0 and err says why. Any thread. */
tn_status tn_device_count(tn_device_kind kind, int *n, tn_error *err);

/* Opens a device; it belongs to the caller and is given back with api->close. TN_EUNSUPPORTED as
 * above, TN_EARG: there is no such index, TN_EDEVICE, TN_ENOMEM. Any thread. */
tn_status tn_device_open(const tn_device_options *options, tn_device **d, tn_error *err);

/* ---- several devices ------------------------------------------------------------------------- */

enum { TN_DEVICES = 8 }; /* at most */

typedef struct tn_devices {
    int n;                     /* 0: none */
    tn_device *at[TN_DEVICES]; /* in the order in which they were named */
} tn_devices;

/* Opens the devices that a name stands for: "cuda" (the first GPU), "cuda:1" (a number, as the
 * driver counts), "cuda:0,2" (several), "emu", "emu:2" (so many emulated devices). limits[i] is the
 * memory limit of at[i], 0 = none; `limits` may be NULL. All or none: *list is empty on failure.
 * TN_EARG: not such a name, a device named twice, or a limit for a device that is not named; else
 * as tn_device_open. Any thread. */
tn_status tn_devices_open(tn_devices *list, const char *name, const size_t limits[TN_DEVICES],
                          const tn_allocator *allocator, tn_error *err);

/* Closes them, last opened first; an empty list is fine. */
void tn_devices_close(tn_devices *list);

/* ---- between device.c and a plug-in ---------------------------------------------------------- */

enum { TN_DEVICE_PLUGIN_VERSION = 5 };

typedef struct tn_device_plugin {
    uint32_t version;
    tn_device_kind kind;
    tn_status (*count)(int *n, tn_error *err);
    tn_status (*open)(const tn_device_options *options, tn_device **d, tn_error *err);
} tn_device_plugin;

/* The one symbol a plug-in exports: `const tn_device_plugin tn_device_plugin_entry`. */
#define TN_DEVICE_PLUGIN_SYMBOL "tn_device_plugin_entry"

#ifdef __cplusplus
}
#endif
#endif
