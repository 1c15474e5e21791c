/* Starts a model from the mapped file and carries its weights to memory after the first batch:
 * fresh memory for a model costs more than the evaluation of a short prompt. */
#include "later.h"
#include "engine.h"
#include "load.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* A weight, and what it becomes. */
typedef struct arrival {
    tn_weight *w;
    const void *data;
    tn_layout layout;
} arrival;

struct tn_later {
    arrival *arrivals;
    size_t n, cap;
    struct tn_load_job *jobs;
    size_t n_jobs;
    uint64_t bytes;
    bool begun; /* the first batch has been evaluated, or at least begun */
};

/* One page in so many bytes is asked for. */
enum { sample_bytes = 2 << 20 };

/* False, too, where the system does not tell. */
static bool has_byte(int fd, off_t at)
{
#ifdef RWF_NOWAIT
    char byte;
    struct iovec v = {.iov_base = &byte, .iov_len = 1};
    return preadv2(fd, &v, 1, at, RWF_NOWAIT) == 1;
#else
    return fd < 0 && at < 0;
#endif
}

static bool is_cached(int fd)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || !has_byte(fd, st.st_size - 1)) return false;
    for (off_t at = 0; at < st.st_size; at += sample_bytes)
        if (!has_byte(fd, at)) return false;
    return true;
}

bool tn_later_may(const tn_load *l)
{
    const tn_gguf *g = l->m->gguf;
    if (l->opt->load != TN_LOAD_LATER || l->map || l->exact || l->random || l->m->engine->device)
        return false;
    for (size_t i = 0; i < tn_gguf_parts(g); i++)
        if (!is_cached(tn_gguf_part_fd(g, (uint32_t)i))) return false;
    return true;
}

bool tn_later_add(tn_load *l, tn_weight *w, const tn_gguf_tensor *t)
{
    tn_model *m = l->m;
    if (!m->later && !(m->later = tn_alloc(m->a, 1, sizeof *m->later))) return false;
    struct tn_later *y = m->later;
    if (!tn_grow(m->a, (void **)&y->arrivals, &y->cap, y->n, y->n + 1, sizeof *y->arrivals))
        return false;
    y->arrivals[y->n++] = (arrival){w, w->data, w->layout};
    w->data = tn_gguf_tensor_data(m->gguf, t);
    w->layout = TN_LAYOUT_ROWS;
    return true;
}

void tn_later_keep(tn_load *l)
{
    struct tn_later *y = l->m->later;
    y->jobs = l->jobs;
    y->n_jobs = l->n_jobs;
    y->bytes = l->total_bytes;
    l->jobs = NULL;
    l->n_jobs = 0;
}

void tn_later_drop(const void *bytes, size_t n)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = (uintptr_t)bytes / page * page;
    const uintptr_t end = ((uintptr_t)bytes + n + page - 1) / page * page;
    madvise((void *)begin, end - begin, MADV_DONTNEED); /* advice: may be refused */
}

/* Where jobs meet, a page fault may have brought back what the neighbour had dropped. */
static void drop_all(const tn_model *m)
{
    const struct tn_later *y = m->later;
    for (size_t i = 0; i < y->n_jobs; i++) {
        const struct tn_load_job *j = &y->jobs[i];
        tn_later_drop(tn_gguf_tensor_data(m->gguf, j->tensor) + j->file_offset,
                      (size_t)j->n_rows * j->file->row_bytes);
    }
}

static tn_status carry(tn_model *m, tn_cancel_fn cancel, void *user, tn_error *err)
{
    const struct tn_later *y = m->later;
    const tn_model_options opt = {.struct_size = sizeof opt, .cancel = cancel, .user = user};
    tn_load l = {.m = m, .opt = &opt, .err = err, .arriving = true, .total_bytes = y->bytes};
    const tn_status s = tn_load_jobs(&l, y->jobs, y->n_jobs);
    if (s) return s;
    for (size_t i = 0; i < y->n; i++) {
        y->arrivals[i].w->data = y->arrivals[i].data;
        y->arrivals[i].w->layout = y->arrivals[i].layout;
    }
    if (m->tied) m->output = m->token_embd;
    drop_all(m);
    return TN_OK;
}

tn_status tn_later_arrive(tn_model *m, tn_cancel_fn cancel, void *user, double *seconds,
                          tn_error *err)
{
    *seconds = 0;
    if (!m->later) return TN_OK;
    if (!m->later->begun) {
        m->later->begun = true;
        return TN_OK;
    }
    const double start = tn_now();
    const tn_status s = carry(m, cancel, user, err);
    if (s) return s;
    *seconds = tn_now() - start;
    m->load_s = m->load_s + *seconds;
    tn_engine_log(m->engine, TN_LOG_INFO,
                  "weights: %.0f MiB of the mapped file are in memory now (%.2f s)",
                  (double)m->later->bytes / (1 << 20), *seconds);
    tn_later_free(m);
    return TN_OK;
}

void tn_later_free(tn_model *m)
{
    if (!m->later) return;
    tn_free(m->a, m->later->arrivals);
    tn_free(m->a, m->later->jobs);
    tn_free(m->a, m->later);
    m->later = NULL;
}
