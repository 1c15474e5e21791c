/* Shared by the tests of the GGUF reader: watched memory, guarded bytes, and what must hold for any
 * bytes whatever. */
#ifndef TN_GGUF_CHECK_H
#define TN_GGUF_CHECK_H

#include "harness.h"

#include "gguf_build.h"

#include <sys/mman.h>
#include <unistd.h>

/* Fails the fail_at-th allocation (from 1; 0 = none) and counts what is live. */
typedef struct watch {
    long fail_at, count, live;
    size_t largest;
} watch;

static inline void *watch_alloc(void *user, size_t bytes, size_t align)
{
    watch *w = user;
    if (++w->count == w->fail_at) return NULL;
    void *p = NULL;
    if (posix_memalign(&p, align, bytes) != 0) return NULL;
    if (bytes > w->largest) w->largest = bytes;
    w->live++;
    return p;
}
static inline void watch_free(void *user, void *p)
{
    ((watch *)user)->live--;
    free(p);
}
static inline tn_allocator watched(watch *w)
{
    return (tn_allocator){watch_alloc, watch_free, w};
}

/* Bytes that end at a page which must not be touched, so that reading past them kills the test. */
typedef struct guarded {
    uint8_t *map, *p;
    size_t map_bytes;
} guarded;

static inline guarded guard(const void *src, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded g = {.map_bytes = (n + page - 1) / page * page + page};
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + g.map_bytes - page, page, PROT_NONE)) abort();
    g.p = g.map + g.map_bytes - page - n;
    if (n) memcpy(g.p, src, n);
    return g;
}
static inline void unguard(guarded *g)
{
    munmap(g->map, g->map_bytes);
}

/* Parses guarded bytes with watched memory; checks what must hold for any bytes whatever. */
static inline tn_status parse_any(const uint8_t *p, size_t n, bool header_only, tn_error *err)
{
    watch w = {0};
    tn_allocator a = watched(&w);
    tn_gguf_options opt = {sizeof opt, header_only, &a};
    tn_gguf *g = NULL;
    *err = (tn_error){.offset = -2};
    tn_status st = tn_gguf_parse(&g, p, n, "f.gguf", &opt, err);
    if (st == TN_OK) {
        CHECK(gguf_walk(g));
    } else {
        CHECK(g == NULL && err->code == st && strlen(err->msg) > 10);
        CHECK(st == TN_EFORMAT || st == TN_EUNSUPPORTED);
        CHECK(err->offset >= 0 && (uint64_t)err->offset <= n);
        CHECK_MSG(strncmp(err->msg, "f.gguf: ", 8) == 0, "no file name in: %s", err->msg);
    }
    tn_gguf_close(g);
    CHECK_INT(w.live, 0);
    /* A record takes at most 4 times its bytes in the file, and arrays double. */
    CHECK_MSG(w.largest <= 2048 + 8 * n, "%zu bytes allocated for a file of %zu", w.largest, n);
    return st;
}

static inline tn_status parse_guarded(const gb *b, bool header_only, tn_error *err)
{
    guarded g = guard(b->p, b->n);
    tn_status st = parse_any(g.p, b->n, header_only, err);
    unguard(&g);
    return st;
}

static inline tn_gguf *must_parse(const gb *b)
{
    tn_gguf *g = NULL;
    tn_error err = {0};
    if (tn_gguf_parse(&g, b->p, b->n, "dir/model.gguf", NULL, &err) != TN_OK) FAIL("%s", err.msg);
    return g;
}

/* Refused with this status and a message that contains all the words ("a|b|c"). */
static inline void check_refused(const char *id, const gb *b, tn_status want, const char *words)
{
    tn_error err;
    char copy[200];
    tn_status st = parse_guarded(b, false, &err);
    CHECK_MSG(st == want, "%s: status %d, want %d (%s)", id, st, want, st ? err.msg : "accepted");
    if (st == TN_OK) return;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *save = NULL, *w = strtok_r(copy, "|", &save); w; w = strtok_r(NULL, "|", &save))
        CHECK_MSG(strstr(err.msg, w), "%s: no '%s' in: %s", id, w, err.msg);
}

#endif
