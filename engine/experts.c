/* Counters of experts in a file of the caller's cache directory. */
#include "experts.h"

#include "file.h"

#include <stdio.h>
#include <string.h>

enum { max_file = 64 << 20 };

tn_status tn_expert_counts_make(tn_expert_counts *c, int32_t n_layers, int32_t n_expert,
                                const tn_allocator *a, tn_error *err)
{
    const size_t n = (size_t)n_layers * (size_t)n_expert;
    *c = (tn_expert_counts){a, n_layers, n_expert, tn_alloc(a, n ? n : 1, sizeof *c->n)};
    return c->n ? TN_OK : tn_fail_nomem(err, n * sizeof *c->n, "counters of experts");
}

void tn_expert_counts_free(tn_expert_counts *c)
{
    if (c->a) tn_free(c->a, c->n);
    *c = (tn_expert_counts){.a = NULL};
}

char *tn_experts_path(const char *dir, const char *hash, const tn_allocator *a)
{
    static const char form[] = "%s/experts-%s.json";
    char *path = tn_alloc(a, strlen(dir) + strlen(hash) + sizeof form, 1);
    if (path) sprintf(path, form, dir, hash);
    return path;
}

tn_status tn_experts_read(tn_expert_counts *out, const char *path, const char *hash,
                          const tn_allocator *a, tn_error *err)
{
    char *text;
    size_t len;
    tn_status s = tn_file_read(path, max_file, "counters of experts", &text, &len, a, err);
    if (s) return s;
    s = tn_experts_parse(out, text, len, path, hash, a, err);
    tn_free(a, text);
    return s;
}

/* Halves a layer until it is small enough. */
static void fade(uint64_t *n, int32_t n_expert)
{
    for (;;) {
        uint64_t sum = 0;
        for (int32_t e = 0; e < n_expert; e++)
            sum += n[e];
        if (sum <= TN_EXPERTS_MOST) return;
        for (int32_t e = 0; e < n_expert; e++)
            n[e] /= 2;
    }
}

static void add(tn_expert_counts *to, const tn_expert_counts *from)
{
    const int32_t each = to->n_expert;
    for (int32_t l = 0; l < to->n_layers; l++) {
        uint64_t *n = to->n + (int64_t)l * each;
        for (int32_t e = 0; e < each; e++)
            n[e] += from->n[(int64_t)l * each + e];
        fade(n, each);
    }
}

tn_status tn_experts_keep(const tn_expert_counts *counted, const char *path, const char *hash,
                          bool *broken, const tn_allocator *a, tn_error *err)
{
    tn_expert_counts all = {.a = NULL};
    tn_error ignored = {0};
    char *text = NULL;
    tn_status s = tn_experts_read(&all, path, hash, a, &ignored);
    if (s == TN_OK && (all.n_layers != counted->n_layers || all.n_expert != counted->n_expert)) {
        tn_expert_counts_free(&all);
        s = TN_EFORMAT;
    }
    *broken = s == TN_EFORMAT;
    if (s == TN_EFORMAT || s == TN_ENOENT)
        s = tn_expert_counts_make(&all, counted->n_layers, counted->n_expert, a, err);
    else if (s && err)
        *err = ignored;
    if (s) return s;
    add(&all, counted);
    s = tn_experts_json(&all, hash, &text, a, err);
    if (!s) s = tn_file_replace(path, text, a, err);
    tn_free(a, text);
    tn_expert_counts_free(&all);
    return s;
}
