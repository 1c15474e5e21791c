/* Internal: what this machine has. Probing only; measuring belongs to calibration. */
#ifndef TN_HARDWARE_H
#define TN_HARDWARE_H

#include <stdint.h>

/* Host memory that can be allocated without swapping, in bytes; the kernel's estimate, capped by the
 * cgroup's limit. 0 if it cannot be told. */
uint64_t tn_host_memory_available(void);

#endif
