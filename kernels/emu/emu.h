/* The emulated device as a test instrument: how it behaves, and what it has counted. Plain C.
 *
 * An error of device code or of the code that drives it (a divergent barrier, a copy past the end
 * of an allocation, host code that reads device memory, ...) prints "EMU ERROR" and a sentence on
 * stderr and aborts the process: nothing else in tenon does. */
#ifndef TN_EMU_H
#define TN_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_emu_settings {
    int schedule;        /* which thread runs next: 0 ascending, 1 descending, else a random seed */
    int delay_us;        /* streams sleep before each operation: for half of this at least,
                            at most for all of it */
    bool protect;        /* host code cannot touch device memory while no stream works */
    bool poison;         /* fresh device and shared memory is NaN */
    bool memory_ops;     /* streams can wait for and write flags; else it says "not supported" */
    bool peers;          /* devices can access each other's memory */
    int devices;         /* how many there are, up to TN_EMU_DEVICES */
    size_t memory_bytes; /* of each device */
    int flag_wait_ms;    /* waiting longer for a flag is an error: nobody will write it */
} tn_emu_settings;

enum { TN_EMU_DEVICES = 8 };

typedef struct tn_emu_counters {
    uint64_t launches, blocks, threads, barriers, collectives, switches;
    uint64_t pageable; /* copies in streams from or to memory that is not pinned */
    uint64_t strided;  /* copies of several pieces in one */
    uint64_t downloaded; /* bytes copied from devices to the host */
    uint64_t graphs;     /* recordings made ready to be launched */
} tn_emu_counters;

/* The control of an emulated device, reached through tn_device_api. Settings belong to the process
 * and change only while no stream has work; any thread. */
typedef struct tn_emu_control {
    void (*get)(tn_emu_settings *s);
    void (*set)(const tn_emu_settings *s);
    void (*count)(tn_emu_counters *c);
    /* The k-th thing that streams of a device do from now on (kernels, copies, flags, host
     * functions, those of graphs, too) breaks it: that one and all later ones are not done, and who
     * waits for a stream or an event learns it, as after an illegal access. Until the next call; k
     * 0: never. Call it while no stream of the device has work. */
    void (*break_at)(int device, uint64_t k);
} tn_emu_control;
extern const tn_emu_control tn_emu;

#ifdef __cplusplus
}
#endif
#endif
