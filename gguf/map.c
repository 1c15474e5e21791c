/* Opening and closing files: the only I/O in this folder. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* gguf-split writes five digits. */
enum { max_parts = 99999 };

static tn_status fail_errno(const char *path, const char *doing, int code, tn_error *err)
{
    bool missing = code == ENOENT || code == ENOTDIR;
    return tn_fail(err, missing ? TN_ENOENT : TN_EIO, -1, "cannot %s '%.300s': %s", doing, path,
                   missing ? "there is no such file" : strerror(code));
}

/* Opens a regular file for reading; O_NONBLOCK so that a FIFO is refused instead of waited for. */
static tn_status open_file(const char *path, int *fd, size_t *size, tn_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*fd < 0) return fail_errno(path, "open", errno, err);
    struct stat st;
    tn_status status = TN_OK;
    if (fstat(*fd, &st) != 0)
        status = fail_errno(path, "examine", errno, err);
    else if (S_ISDIR(st.st_mode))
        status = tn_fail(err, TN_EIO, -1,
                         "'%.300s' is a directory; name the .gguf file itself", path);
    else if (!S_ISREG(st.st_mode))
        status = tn_fail(err, TN_EIO, -1, "'%.300s' is not a regular file", path);
    if (status == TN_OK)
        *size = (size_t)st.st_size;
    else
        close(*fd);
    return status;
}

static void release_part(tn_gguf_part *p)
{
    if (p->mapped) munmap((void *)(uintptr_t)p->data, p->size);
    if (p->fd >= 0) close(p->fd);
    p->mapped = false;
    p->fd = -1;
}

static tn_status open_part(tn_gguf **out, const char *path, const tn_gguf_options *opt,
                           tn_error *err)
{
    *out = NULL;
    tn_gguf_part p = {.fd = -1};
    tn_status st = open_file(path, &p.fd, &p.size, err);
    if (st != TN_OK) return st;
    if (p.size > 0) {
        void *data = mmap(NULL, p.size, PROT_READ, MAP_PRIVATE, p.fd, 0);
        if (data == MAP_FAILED) {
            st = errno == ENOMEM ? tn_fail_nomem(err, p.size, "mapping the file's address range")
                                 : fail_errno(path, "map", errno, err);
        } else {
            p.data = data;
            p.mapped = true;
        }
    }
    if (st == TN_OK) st = tn_gguf_parse(out, p.data, p.size, path, opt, err);
    if (st != TN_OK) {
        release_part(&p);
        return st;
    }
    (*out)->parts[0].fd = p.fd;
    (*out)->parts[0].mapped = p.mapped;
    return TN_OK;
}

void tn_gguf_close(tn_gguf *g)
{
    if (!g) return;
    for (size_t i = 0; i < g->n_parts; i++) release_part(&g->parts[i]);
    tn_gguf_free(g);
}

/* The three numbers that describe a split model; absent keys count as a file by itself. */
typedef struct split {
    uint32_t no, count;
    uint64_t tensors;
} split;

static tn_status read_split(const tn_gguf *g, split *s, tn_error *err)
{
    *s = (split){.no = 0, .count = 1, .tensors = UINT64_MAX};
    tn_status st = tn_gguf_get_u32(g, "split.no", &s->no, err);
    if (st == TN_OK) st = tn_gguf_get_u32(g, "split.count", &s->count, err);
    if (st == TN_OK) st = tn_gguf_get_u64(g, "split.tensors.count", &s->tensors, err);
    /* A count of 0 is how some writers say "not split". */
    if (st == TN_OK && s->count == 0) s->count = 1;
    return st;
}

/* Turns "x-00001-of-00003.gguf" into the name of part `no` (0-based); false if the name of part 1
 * does not end that way. buffer holds at least strlen(path) + 1 bytes. */
static bool part_path(const char *path, uint32_t no, uint32_t count, char *buffer)
{
    char first[40], part[40];
    int n = snprintf(first, sizeof first, "-00001-of-%05u.gguf", count);
    int m = snprintf(part, sizeof part, "-%05u-of-%05u.gguf", no + 1, count);
    size_t len = strlen(path);
    if (n != m || len < (size_t)n || strcmp(path + len - (size_t)n, first) != 0) return false;
    memcpy(buffer, path, len - (size_t)n);
    memcpy(buffer + len - (size_t)n, part, (size_t)m + 1);
    return true;
}

/* Moves the file and the tensors of p (freed in any case) to the end of g. */
static tn_status merge_part(tn_gguf *g, tn_gguf *p, tn_error *err)
{
    void *parts = g->parts, *tensors = g->tensors;
    bool ok = tn_grow(g->alloc, &parts, &g->cap_parts, g->n_parts, g->n_parts + 1,
                      sizeof *g->parts);
    g->parts = parts;
    ok = ok && tn_grow(g->alloc, &tensors, &g->cap_tensors, g->n_tensors,
                       g->n_tensors + p->n_tensors, sizeof *g->tensors);
    g->tensors = tensors;
    if (!ok) {
        size_t bytes = p->n_tensors * sizeof *g->tensors;
        tn_gguf_close(p);
        return tn_fail_nomem(err, bytes, "the tensor list");
    }
    for (size_t i = 0; i < p->n_tensors; i++) {
        g->tensors[g->n_tensors] = p->tensors[i];
        g->tensors[g->n_tensors++].part = (uint32_t)g->n_parts;
    }
    g->parts[g->n_parts++] = p->parts[0];
    p->n_parts = 0;
    tn_gguf_close(p);
    return TN_OK;
}

/* Opens part `no` and checks that it says of itself what its name says. */
static tn_status add_part(tn_gguf *g, uint32_t no, const split *whole, const tn_gguf_options *opt,
                          tn_error *err)
{
    const char *first = g->parts[0].path;
    char *path = tn_alloc_raw(g->alloc, strlen(first) + 1, 1);
    if (!path) return tn_fail_nomem(err, strlen(first) + 1, "a path");
    part_path(first, no, whole->count, path);
    tn_gguf *p;
    tn_status st = open_part(&p, path, opt, err);
    if (st == TN_ENOENT)
        tn_fail(err, st, -1, "part %u of %u is missing: there is no file '%.300s'", no + 1,
                whole->count, path);
    tn_free(g->alloc, path);
    if (st != TN_OK) return st;
    split s;
    st = read_split(p, &s, err);
    if (st == TN_OK && (s.no != no || s.count != whole->count))
        st = tn_fail(err, TN_EFORMAT, -1,
                     "%s: the file says it is part %llu of %u, but its name says part %u of %u",
                     tn_gguf_label(p), s.no + 1ull, s.count, no + 1, whole->count);
    if (st != TN_OK) {
        tn_gguf_close(p);
        return st;
    }
    return merge_part(g, p, err);
}

/* The tensors of all parts are there: counts them and indexes them by name. */
static tn_status join_tensors(tn_gguf *g, const split *whole, tn_error *err)
{
    if (whole->tensors != UINT64_MAX && whole->tensors != g->n_tensors)
        return tn_gguf_fail_key(g, tn_gguf_find(g, "split.tensors.count"), err, TN_EFORMAT,
                                "%llu tensors announced, but the %u parts hold %zu",
                                (unsigned long long)whole->tensors, whole->count, g->n_tensors);
    size_t dup = 0;
    tn_status st = tn_gguf_index_build(g, &g->tensor_index, g->tensors, g->n_tensors,
                                       sizeof *g->tensors, &dup, err);
    if (st != TN_EFORMAT) return st;
    return tn_gguf_fail_tensor(g, &g->tensors[dup], err, TN_EFORMAT,
                               "part %u holds a tensor of that name a second time",
                               g->tensors[dup].part + 1);
}

static tn_status open_rest(tn_gguf *g, const tn_gguf_options *opt, tn_error *err)
{
    split whole;
    tn_status st = read_split(g, &whole, err);
    if (st != TN_OK || whole.count == 1) return st;
    if (whole.no != 0)
        return tn_fail(err, TN_EFORMAT, -1,
                       "%s: this is part %llu of %u; open part 1, the others are found beside it",
                       tn_gguf_label(g), whole.no + 1ull, whole.count);
    if (whole.count > max_parts)
        return tn_gguf_fail_key(g, tn_gguf_find(g, "split.count"), err, TN_EFORMAT,
                                "%u parts; at most %d are supported", whole.count, max_parts);
    char *path = tn_alloc_raw(g->alloc, strlen(g->parts[0].path) + 1, 1);
    if (!path) return tn_fail_nomem(err, strlen(g->parts[0].path) + 1, "a path");
    bool named = part_path(g->parts[0].path, 0, whole.count, path);
    tn_free(g->alloc, path);
    if (!named)
        return tn_fail(err, TN_EFORMAT, -1,
                       "%s: part 1 of %u; to find the others its name must end in "
                       "-00001-of-%05u.gguf, give it back its first name",
                       tn_gguf_label(g), whole.count, whole.count);
    for (uint32_t no = 1; no < whole.count && st == TN_OK; no++)
        st = add_part(g, no, &whole, opt, err);
    return st == TN_OK ? join_tensors(g, &whole, err) : st;
}

tn_status tn_gguf_open(tn_gguf **out, const char *path, const tn_gguf_options *opt, tn_error *err)
{
    if (!out || !path) return tn_fail(err, TN_EARG, -1, "tn_gguf_open: out or path is NULL");
    tn_gguf *g;
    *out = NULL;
    tn_status st = open_part(&g, path, opt, err);
    if (st != TN_OK) return st;
    st = open_rest(g, opt, err);
    if (st != TN_OK)
        tn_gguf_close(g);
    else
        *out = g;
    return st;
}
