/* Internal: how often each expert of a model was chosen, kept across runs for the planner. */
#ifndef TN_EXPERTS_H
#define TN_EXPERTS_H

#include "../gguf/mem.h"

/* Choices since they were first counted; older ones weigh less. Expert e of layer l is
 * n[l * n_expert + e], as the file numbers them. */
typedef struct tn_expert_counts {
    const tn_allocator *a;
    int32_t n_layers, n_expert;
    uint64_t *n;
} tn_expert_counts;

enum { TN_EXPERTS_LAYERS = 2048, TN_EXPERTS_EACH = 4096 };

/* All zero. TN_ENOMEM. */
tn_status tn_expert_counts_make(tn_expert_counts *c, int32_t n_layers, int32_t n_expert,
                                const tn_allocator *a, tn_error *err);
void tn_expert_counts_free(tn_expert_counts *c);

/* "DIR/experts-HASH.json", freed by the caller; NULL = no memory. */
char *tn_experts_path(const char *dir, const char *hash, const tn_allocator *a);
/* Reads such a file. TN_ENOENT: there is none; TN_EIO; TN_EFORMAT: it is none, or of another model;
 * TN_ENOMEM. *out is to be freed where TN_OK. */
tn_status tn_experts_read(tn_expert_counts *out, const char *path, const char *hash,
                          const tn_allocator *a, tn_error *err);
/* Adds what was counted to what the file holds (nothing, where it is none or of another model:
 * *broken says that) and replaces it as a whole. Where a layer has more than TN_EXPERTS_MOST
 * choices, all of its counts are halved first, so that numbers stay small and habits may change.
 * TN_EIO, TN_ENOMEM. */
enum { TN_EXPERTS_MOST = 1 << 24 };
tn_status tn_experts_keep(const tn_expert_counts *counted, const char *path, const char *hash,
                          bool *broken, const tn_allocator *a, tn_error *err);

/* json_experts.c */
tn_status tn_experts_json(const tn_expert_counts *c, const char *hash, char **out,
                          const tn_allocator *a, tn_error *err);
tn_status tn_experts_parse(tn_expert_counts *out, const char *text, size_t len, const char *where,
                           const char *hash, const tn_allocator *a, tn_error *err);

#endif
