/* Internal: what this machine has. Probing only; measuring belongs to calibration. */
#ifndef TN_HARDWARE_H
#define TN_HARDWARE_H

#include <stdint.h>

/* A card's link to the host. */
typedef struct tn_pci_link {
    double gt_s, most_gt_s; /* transfers per second and lane, 10^9; now, and what both ends can */
    int width, most_width;  /* lanes */
} tn_pci_link;

/* Reads /sys/bus/pci/devices/ADDRESS ("0000:65:00.0") below root ("" for the real /sys, another
 * directory in tests); what cannot be told is 0. Cards that idle run slower:
 * look right after work. */
void tn_pci_link_read(tn_pci_link *link, const char *root, const char *address);

/* Host memory that can be allocated without swapping, in bytes: the kernel's estimate, capped by
 * what the control group has left, whose cached pages of files count as free. 0 if it cannot be
 * told. */
uint64_t tn_host_memory_available(void);
/* The same from the files below root, which is "" but in tests. 0: there is none, or they do not
 * tell. */
uint64_t tn_host_memory_read(const char *root);

enum { TN_HOST_CACHES = 8 };

/* What cannot be told is 0 or "". */
typedef struct tn_host_info {
    char cpu[96];     /* "AMD EPYC 7763 64-Core Processor" */
    char kernel[160]; /* "Linux 6.1.0-18-amd64 x86_64" */
    int n_processors; /* online, as the system counts them */
    uint64_t memory_bytes;
    int n_caches;
    struct {
        int level;
        char type[16]; /* "Data", "Instruction", "Unified" */
        uint64_t bytes;
    } caches[TN_HOST_CACHES]; /* of the first processor */
} tn_host_info;

/* Reads /proc and /sys. Any thread. */
void tn_host_info_get(tn_host_info *info);

#endif
