/* For tests of device ops: a device, guarded memory on it, comparisons that NaN fails.
 *
 * The device is the emulated one, in three thread schedules; `--cuda` takes a GPU instead. A build
 * without devices (CUDA=off) skips every case; a plug-in that is missing or does not load fails. */
#ifndef TN_DEVICE_LIB_H
#define TN_DEVICE_LIB_H

#include "harness.h"
#include "kernel_cases.h"

#include "../kernels/device_ops.h"
#include "../kernels/emu/emu.h"

static tn_device *dev;
static const tn_device_ops *ops;
static tn_stream *stream;
static tn_kernels host;       /* scalar: the definition */
static const char *no_device; /* why there is none */

/* ---- memory with guards ---------------------------------------------------------------------- */

enum { GUARD = 256, GUARD_BYTE = 0xa5, MAX_BUFFERS = 64 };

typedef struct buffer {
    uint8_t *base;
    size_t bytes;
} buffer;
static buffer buffers[MAX_BUFFERS];
static int n_buffers;

static inline void device_fail(const char *what, const tn_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err->msg);
    exit(2);
}

/* Device memory between two guards; init NULL: filled with NaN. Freed and checked by done(). */
static inline void *device_new(size_t bytes, const void *init)
{
    tn_error err = {0};
    void *base;
    if (n_buffers == MAX_BUFFERS) abort();
    if (dev->api->alloc(dev, bytes + 2 * GUARD, "a test", &base, &err)) device_fail("alloc", &err);
    uint8_t *all = malloc(bytes + 2 * GUARD);
    memset(all, GUARD_BYTE, bytes + 2 * GUARD);
    if (init)
        memcpy(all + GUARD, init, bytes);
    else
        memset(all + GUARD, 0xff, bytes);
    if (dev->api->upload(dev, base, all, bytes + 2 * GUARD, &err)) device_fail("upload", &err);
    free(all);
    buffers[n_buffers++] = (buffer){base, bytes};
    return (uint8_t *)base + GUARD;
}

static inline float *device_floats(size_t n, const float *init)
{
    return device_new(n * sizeof(float), init);
}

static inline void device_sync(void)
{
    tn_error err = {0};
    if (dev->api->stream_sync(dev, stream, &err)) FAIL("stream_sync: %s", err.msg);
}

/* Waits for the stream and copies to memory that the caller frees. */
static inline void *device_get(const void *p, size_t bytes)
{
    tn_error err = {0};
    void *out = malloc(bytes + 1);
    device_sync();
    if (dev->api->download(dev, out, p, bytes, &err)) device_fail("download", &err);
    return out;
}

/* Checks all guards and frees everything. */
static inline void done(const char *what)
{
    tn_error err = {0};
    device_sync();
    for (int i = 0; i < n_buffers; i++) {
        uint8_t guard[GUARD];
        for (int end = 0; end < 2; end++) {
            const uint8_t *at = buffers[i].base + (end ? GUARD + buffers[i].bytes : 0);
            if (dev->api->download(dev, guard, at, GUARD, &err)) device_fail("download", &err);
            for (int j = 0; j < GUARD; j++)
                if (guard[j] != GUARD_BYTE) {
                    FAIL("%s: buffer %d was written %s its memory, byte %d", what, i,
                         end ? "behind" : "before", j);
                    break;
                }
        }
        dev->api->free(dev, buffers[i].base);
    }
    n_buffers = 0;
}

/* ---- data ------------------------------------------------------------------------------------ */

static inline float *random_floats(size_t n, float size, uint64_t *seed)
{
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = size * test_randf(seed);
    return x;
}

/* Rows padded to a multiple of 4 floats, the padding NaN. */
static inline int64_t padded(int64_t cols)
{
    return (cols + 3) / 4 * 4;
}
static inline float *random_rows(int64_t n, int64_t cols, float size, uint64_t *seed)
{
    const int64_t stride = padded(cols);
    float *x = malloc((size_t)(n * stride) * sizeof *x);
    for (int64_t i = 0; i < n * stride; i++)
        x[i] = i % stride < cols ? size * test_randf(seed) : NAN;
    return x;
}

/* ---- comparison ------------------------------------------------------------------------------ */

/* |got - want| <= tol everywhere; says the first that is not. */
static inline bool near_all(const char *what, const float *got, const double *want,
                            const double *tol, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tol[i])) {
            FAIL("%s: [%zu] is %.9g, want %.9g within %.3g", what, i, (double)got[i], want[i],
                 tol[i]);
            return false;
        }
    return true;
}

/* ---- main ------------------------------------------------------------------------------------ */

static inline bool open_device(bool cuda)
{
    static tn_error err;
    const tn_device_options o = {.kind = cuda ? TN_DEVICE_CUDA : TN_DEVICE_EMULATED};
    const tn_status s = tn_device_open(&o, &dev, &err);
    if (s == TN_EUNSUPPORTED && strstr(err.msg, "CUDA=off")) { /* nodevice.c */
        no_device = err.msg;
        return true;
    }
    if (s || dev->api->stream_create(dev, &stream, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return false;
    }
    ops = dev->ops;
    return true;
}

static inline void set_schedule(int schedule)
{
    tn_emu_settings e;
    dev->api->emu->get(&e);
    e.schedule = schedule;
    dev->api->emu->set(&e);
}

#define NEED_DEVICE                                                                                \
    do {                                                                                           \
        if (no_device) SKIP(no_device);                                                            \
    } while (0)

static inline int device_main(int argc, char **argv)
{
    const bool cuda = argc > 1 && strcmp(argv[1], "--cuda") == 0;
    if (cuda) argc--, argv++;
    tn_kernels_init(&host, TN_ISA_SCALAR);
    if (!open_device(cuda)) return 2;
    if (no_device) return tn_test_main(argc, argv);
    int failed = 0;
    static const int schedules[] = {0, 1, 12345}; /* ascending, descending, random */
#ifdef __SANITIZE_THREAD__
    const int n = 1; /* it finds races whatever the order, and is slow */
#else
    const int n = dev->api->emu ? 3 : 1;
#endif
    for (int i = 0; i < n; i++) {
        if (dev->api->emu) set_schedule(schedules[i]);
        failed |= tn_test_main(argc, argv);
    }
    dev->api->stream_destroy(dev, stream);
    dev->api->close(dev);
    return failed;
}
#define DEVICE_MAIN                                                                                \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return device_main(argc, argv);                                                            \
    }

#endif
