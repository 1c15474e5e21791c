/* Internal: measures a machine with the kernels that will run on it. */
#ifndef TN_CALIBRATE_H
#define TN_CALIBRATE_H

#include "engine.h"
#include "profile.h"

/* What a profile of this machine and build is cached under: processor, cores we may use, ISA level,
 * version, commit, and a hash of commit, compiler and flags (tn_flags). */
void tn_calibration_key(const char *isa, const char *flags, char key[TN_PROFILE_TEXT]);
/* Measures the host with the engine's threads, in a second or two; takes the engine's turn. Memory
 * figures are what is free now. TN_ENOMEM, TN_EINTERNAL (no thread). */
tn_status tn_calibrate(tn_profile *out, tn_engine *e, tn_error *err);
/* The profile in `path`, if it is one and its key begins with this one (a device's name may
 * follow); otherwise false. Host memory as it is now. */
bool tn_calibration_read(tn_profile *out, const char *path, const char *key, const tn_allocator *a);
/* Replaces the file as a whole. TN_EIO, TN_ENOMEM. */
tn_status tn_calibration_write(const tn_profile *p, const char *path, const tn_allocator *a,
                               tn_error *err);
/* "DIR/hardware.json", or of throttled devices, which nobody else is to plan with,
 * "DIR/hardware-throttled.json"; freed by the caller; NULL = no memory. */
char *tn_calibration_path(const char *dir, bool throttled, const tn_allocator *a);

#endif
