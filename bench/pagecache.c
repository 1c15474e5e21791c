#include "pagecache.h"

#include "term.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

char *tn_bench_part_path(const char *path, unsigned i, unsigned n)
{
    char tail[40];
    char *copy = tn_bench_strdup(path);
    snprintf(tail, sizeof tail, "-%05u-of-%05u.gguf", 1u, n);
    const size_t len = strlen(copy), tail_len = strlen(tail);
    if (n <= 1 || len < tail_len || strcmp(copy + len - tail_len, tail) != 0) return copy;
    snprintf(tail, sizeof tail, "-%05u-of-%05u.gguf", i + 1, n);
    memcpy(copy + len - tail_len, tail, tail_len);
    return copy;
}

double tn_bench_cached(const char *path)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NAN;
    void *map = MAP_FAILED;
    if (fstat(fd, &st) == 0 && st.st_size > 0)
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED) return NAN;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t n = ((size_t)st.st_size + page - 1) / page;
    unsigned char *there = tn_bench_alloc(n);
    size_t held = 0;
    const bool ok = mincore(map, (size_t)st.st_size, there) == 0;
    for (size_t i = 0; i < n; i++)
        held += there[i] & 1;
    free(there);
    munmap(map, (size_t)st.st_size);
    return ok ? (double)held / (double)n : NAN;
}

bool tn_bench_drop_cache(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    /* Pages that wait to be written cannot be dropped. */
    fdatasync(fd);
    const bool ok = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
    close(fd);
    return ok;
}

enum { piece = 1 << 20 };

/* A file whose pieces its readers take in turn. */
typedef struct reading {
    int fd;
    atomic_int next;
    atomic_bool failed;
} reading;

static void *read_pieces(void *arg)
{
    reading *r = arg;
    char *buffer = tn_bench_alloc(piece);
    ssize_t n = 1;
    while (n > 0 && !tn_bench_signal())
        n = pread(r->fd, buffer, piece, (off_t)piece * atomic_fetch_add(&r->next, 1));
    if (n < 0) atomic_store(&r->failed, true);
    free(buffer);
    return NULL;
}

double tn_bench_read_seconds(const char *path, int threads)
{
    reading r = {.fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (r.fd < 0 || threads < 1) return NAN;
    pthread_t *ids = tn_bench_alloc((size_t)threads * sizeof *ids);
    const double start = tn_bench_clock();
    int n = 1;
    while (n < threads && pthread_create(&ids[n], NULL, read_pieces, &r) == 0)
        n++;
    read_pieces(&r);
    for (int i = 1; i < n; i++)
        pthread_join(ids[i], NULL);
    const double seconds = tn_bench_clock() - start;
    free(ids);
    close(r.fd);
    return n == threads && !atomic_load(&r.failed) ? seconds : NAN;
}
