/* Keeps a model's weights, rearranged for this machine, in a file, and maps that file. */
#include "image.h"
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { head_bytes = 4096, piece_align = 64 };

typedef struct piece {
    const void *data;
    size_t bytes, at; /* at: offset in the file */
} piece;

struct tn_image {
    const tn_allocator *a;
    char *path;
    char head[head_bytes]; /* whose image it is; in the file followed by its size, and zeros */
    char *map;             /* NULL: not there, or another's */
    size_t bytes;          /* of the file, or of the pieces so far */
    size_t next;           /* offset of the next piece */
    piece *pieces;         /* to be written */
    size_t n_pieces, cap_pieces;
};

/* ---- whose image it is ----------------------------------------------------------------------- */

static const uint64_t hash_start = 0xcbf29ce484222325u;

static uint64_t mix(uint64_t hash, const void *data, size_t n)
{
    for (const unsigned char *p = data; n--; p++)
        hash = (hash ^ *p) * 0x100000001b3u; /* FNV-1a */
    return hash;
}

/* Of the files, as `make` would know them: a file that was written again is another one. */
static bool hash_files(const tn_gguf *g, uint64_t *hash)
{
    *hash = hash_start;
    for (size_t i = 0; i < tn_gguf_parts(g); i++) {
        const int fd = tn_gguf_part_fd(g, (uint32_t)i);
        struct stat st;
        if (fd < 0 || fstat(fd, &st) != 0) return false;
        const int64_t id[] = {(int64_t)st.st_dev, (int64_t)st.st_ino, (int64_t)st.st_size,
                              (int64_t)st.st_mtim.tv_sec, (int64_t)st.st_mtim.tv_nsec};
        *hash = mix(*hash, id, sizeof id);
    }
    return true;
}

static void describe(tn_image *im, const tn_model *m, const char *model, uint64_t files)
{
    snprintf(im->head, sizeof im->head,
             "tenon image 1: weights as they lie in memory; may be deleted, is made again\n"
             "tenon %s %s, layout %d\nmodel %.3000s\nfiles %016llx\n",
             tn_version(), tn_commit(), (int)tn_engine_packed(m->engine), model,
             (unsigned long long)files);
}

static void complete_head(const tn_image *im, size_t bytes, char head[head_bytes])
{
    memset(head, 0, head_bytes);
    snprintf(head, head_bytes, "%.3900sbytes %zu\n", im->head, bytes);
}

/* One image a model and layout: DIR/NAME-HASH.LAYOUT.image, the hash being of the whole path. */
static char *path_of(const tn_model *m, const char *model)
{
    const char *dir = m->engine->cache_dir, *slash = strrchr(model, '/');
    const size_t n = strlen(dir) + 240;
    char *path = tn_alloc(m->a, n, 1);
    if (path)
        snprintf(path, n, "%s/%.180s-%016llx.r%d.image", dir, slash ? slash + 1 : model,
                 (unsigned long long)mix(hash_start, model, strlen(model)),
                 (int)tn_layout_rows(tn_engine_packed(m->engine)));
    return path;
}

/* ---- reading it ------------------------------------------------------------------------------ */

static bool is_ours(const tn_image *im, int fd, size_t *bytes)
{
    char head[head_bytes], ours[head_bytes];
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < head_bytes) return false;
    if (pread(fd, head, sizeof head, 0) != head_bytes) return false;
    *bytes = (size_t)st.st_size;
    complete_head(im, *bytes, ours);
    return memcmp(head, ours, sizeof head) == 0;
}

static void map_file(tn_image *im)
{
    size_t bytes;
    const int fd = open(im->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    if (is_ours(im, fd, &bytes)) {
        void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p != MAP_FAILED) {
            im->map = p;
            im->bytes = bytes;
            madvise(p, bytes, MADV_WILLNEED); /* advice: may be refused */
        }
    }
    close(fd);
}

tn_status tn_image_open(tn_image **out, const tn_model *m, tn_error *err)
{
    char model[PATH_MAX];
    uint64_t files;
    *out = NULL;
    if (!m->engine->cache_dir || !hash_files(m->gguf, &files) || !realpath(m->name, model))
        return TN_OK;
    tn_image *im = tn_alloc(m->a, 1, sizeof *im);
    if (!im) return tn_fail_nomem(err, sizeof *im, "the image");
    im->a = m->a;
    im->next = im->bytes = head_bytes;
    describe(im, m, model, files);
    im->path = path_of(m, model);
    if (!im->path) {
        tn_image_close(im);
        return tn_fail_nomem(err, sizeof model, "the image's name");
    }
    map_file(im);
    *out = im;
    return TN_OK;
}

bool tn_image_is_mapped(const tn_image *im)
{
    return im->map != NULL;
}

static size_t aligned(size_t offset)
{
    return (offset + piece_align - 1) / piece_align * piece_align;
}

const void *tn_image_next(tn_image *im, size_t bytes)
{
    const size_t at = aligned(im->next);
    im->next = at + bytes;
    return im->map + at;
}

bool tn_image_is_used_up(const tn_image *im)
{
    return im->next == im->bytes;
}

/* ---- writing it ------------------------------------------------------------------------------ */

bool tn_image_add(tn_image *im, const void *data, size_t bytes)
{
    if (!tn_grow(im->a, (void **)&im->pieces, &im->cap_pieces, im->n_pieces, im->n_pieces + 1,
                 sizeof *im->pieces))
        return false;
    const size_t at = aligned(im->next);
    im->pieces[im->n_pieces++] = (piece){data, bytes, at};
    im->bytes = im->next = at + bytes;
    return true;
}

static bool put(int fd, const void *data, size_t bytes, size_t at)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = pwrite(fd, (const char *)data + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

/* On the disk before it gets its name: a loss of power must not leave an image full of holes. */
static bool write_pieces(const tn_image *im, int fd)
{
    char head[head_bytes];
    complete_head(im, im->bytes, head);
    const int full = posix_fallocate(fd, 0, (off_t)im->bytes);
    if (full) {
        errno = full;
        return false;
    }
    bool ok = put(fd, head, sizeof head, 0);
    for (size_t i = 0; ok && i < im->n_pieces; i++)
        ok = put(fd, im->pieces[i].data, im->pieces[i].bytes, im->pieces[i].at);
    return ok && fdatasync(fd) == 0;
}

tn_status tn_image_write(tn_image *im, tn_error *err)
{
    const size_t n = strlen(im->path) + 8;
    char *temporary = tn_alloc(im->a, n, 1);
    if (!temporary) return tn_fail_nomem(err, n, "the image's name");
    snprintf(temporary, n, "%s.XXXXXX", im->path);
    const int fd = mkostemp(temporary, O_CLOEXEC);
    bool ok = fd >= 0 && write_pieces(im, fd);
    ok = ok && rename(temporary, im->path) == 0;
    tn_status s = ok ? TN_OK : tn_fail(err, TN_EIO, -1, "%s: %s", im->path, strerror(errno));
    if (!ok && fd >= 0) unlink(temporary);
    if (fd >= 0) close(fd);
    tn_free(im->a, temporary);
    return s;
}

const char *tn_image_path(const tn_image *im)
{
    return im->path;
}

size_t tn_image_bytes(const tn_image *im)
{
    return im->bytes;
}

void tn_image_close(tn_image *im)
{
    if (!im) return;
    if (im->map) munmap(im->map, im->bytes);
    tn_free(im->a, im->pieces);
    tn_free(im->a, im->path);
    tn_free(im->a, im);
}
