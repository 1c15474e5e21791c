/* Status codes and the error record shared by every layer; part of the public
 * API through tenon.h. */
#ifndef TN_STATUS_H
#define TN_STATUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TN_API __attribute__((visibility("default")))
#define TN_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define TN_API
#define TN_PRINTF(fmt, args)
#endif

/* Result of a call. 0 is success, every failure is negative. Values never change meaning. */
typedef enum tn_status {
    TN_OK = 0,
    TN_EIO = -1,          /* reading or writing a file failed */
    TN_EFORMAT = -2,      /* the file breaks the format */
    TN_EUNSUPPORTED = -3, /* well-formed, but this build cannot run it */
    TN_ENOMEM = -4,       /* out of host memory */
    TN_EARG = -5,         /* an argument is outside its contract */
    TN_EDEVICE = -6,      /* the device failed or ran out of memory */
    TN_EFULL = -7,        /* the tokens do not fit into the context */
    TN_EBUSY = -8,        /* the object is in use by another call */
    TN_ECANCELED = -9,    /* the caller's cancel callback asked to stop */
    TN_ENOENT = -10,      /* the file does not exist */
    TN_EINTERNAL = -11    /* a bug in tenon */
} tn_status;

/* What went wrong, filled by every failing call that is given one. Plain data owned by the caller;
 * msg is a complete sentence naming file, key, tensor or option and, where possible, the remedy. */
typedef struct tn_error {
    tn_status code;
    int64_t offset; /* byte offset in the file, or -1 */
    char msg[500];
} tn_error;

/* Short constant name of a status, "out of memory" for TN_ENOMEM. Any thread; never NULL. */
TN_API const char *tn_status_name(tn_status status);

/* Memory the library allocates comes from here. alloc returns `bytes` bytes aligned to `align`
 * (a power of two up to 4096) or NULL; free gets what alloc returned, or NULL.
 * Both may be called from any thread at once. */
typedef struct tn_allocator {
    void *(*alloc)(void *user, size_t bytes, size_t align);
    void (*free)(void *user, void *p);
    void *user;
} tn_allocator;

#ifdef __cplusplus
}
#endif
#endif
