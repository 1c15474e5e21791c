/* Carries weights from the file to their final place and layout, on all threads. */
#include "engine.h"
#include "hardware.h"
#include "image.h"
#include "later.h"
#include "load.h"
#include "placement.h"
#include "sides.h"
#include "synthetic.h"

#include "../kernels/repack.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* Bytes of file a job covers at most: small enough to balance, large enough to read well. */
enum { job_bytes = TN_SCRATCH_BYTES };

/* ---- read or mapped -------------------------------------------------------------------------- */

/* Memory that weights want, for each byte of them, before READ is chosen over MAP. A plan has
 * counted what else there is to hold. */
static const double headroom = 1.2, planned_headroom = 1.0;

bool tn_load_maps(tn_load_mode mode, bool planned, uint64_t host_bytes, uint64_t available)
{
    if (mode != TN_LOAD_AUTO && mode != TN_LOAD_LATER) return mode == TN_LOAD_MAP;
    const double wanted = (double)host_bytes * (planned ? planned_headroom : headroom);
    return available && wanted > (double)available;
}

uint64_t tn_load_host_bytes(const tn_load *l)
{
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < tn_gguf_n_tensors(l->m->gguf); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(l->m->gguf, i);
        if (l->place && !l->place[i].host) continue;
        bytes += l->exact ? t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3] * 4 : t->bytes;
    }
    return bytes;
}

/* Aloud where a plan counted on weights being read. */
static void say_mapped(const tn_load *l, uint64_t bytes, uint64_t available)
{
    const double mib = 1 << 20;
    if (l->opt->load == TN_LOAD_MAP || !l->opt->plan) return;
    tn_engine_log(
        l->m->engine, TN_LOG_WARN,
        "%s: the host's weights need %.0f MiB and %.0f are free: the file is mapped, which is "
        "slower than planned",
        l->m->name, (double)bytes / mib, (double)available / mib);
}

tn_status tn_load_choose(tn_load *l)
{
    const uint64_t bytes = tn_load_host_bytes(l), available = tn_host_memory_available();
    const double gib = 1 << 30;
    tn_host_info h;
    if (l->map) return TN_OK;
    l->map = !l->random && !l->exact && tn_load_maps(l->opt->load, l->opt->plan, bytes, available);
    if (l->map) say_mapped(l, bytes, available);
    l->later = tn_later_may(l);
    tn_host_info_get(&h);
    /* The kernel would hand out the addresses, and kill the process later. */
    if (l->map || !h.memory_bytes || bytes <= h.memory_bytes) return TN_OK;
    return tn_fail(l->err, TN_ENOMEM, -1,
                   "%s: the weights need %.1f GiB of memory, this machine has %.1f", l->m->name,
                   (double)bytes / gib, (double)h.memory_bytes / gib);
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *tn_load_alloc(tn_load *l, size_t bytes)
{
    tn_model *m = l->m;
    if (!tn_grow(m->a, (void **)&m->owned, &m->cap_owned, m->n_owned, m->n_owned + 1,
                 sizeof(void *)))
        return NULL;
    void *p = tn_alloc_raw(m->a, bytes, 1);
    if (p) m->owned[m->n_owned++] = p;
    return p;
}

/* As tn_load_alloc; where there is a device, of pages that nothing else is on, so that they can be
 * pinned. */
static void *load_pages(tn_load *l, size_t bytes)
{
    if (!l->m->engine->device) return tn_load_alloc(l, bytes);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t all;
    char *p = tn_add_size(bytes, 2 * page, &all) ? tn_load_alloc(l, all) : NULL;
    return p ? p + (page - (uintptr_t)p % page) % page : NULL;
}

static const tn_kernels *kernels(const tn_load *l)
{
    return &l->m->engine->kernels;
}

static tn_status check_type(tn_load *l, const tn_gguf_tensor *t, tn_weight *w)
{
    const tn_type_info *info = tn_type_get(t->type);
    if (!info || !info->matmul)
        return tn_fail(l->err, TN_EUNSUPPORTED, t->header_offset,
                       "%s: tensor '%.*s' has type %s, which tenon cannot compute with yet",
                       l->m->name, (int)t->name.len, t->name.data, info ? info->name : "?");
    size_t row_bytes;
    if (!tn_type_row_bytes(t->type, t->shape[0], &row_bytes))
        return tn_fail(l->err, TN_EFORMAT, t->header_offset,
                       "%s: tensor '%.*s': %llu columns are no multiple of the block of %s",
                       l->m->name, (int)t->name.len, t->name.data, (unsigned long long)t->shape[0],
                       info->name);
    *w = (tn_weight){.type = t->type, .layout = TN_LAYOUT_ROWS, .cols = (int64_t)t->shape[0],
                     .rows = (int64_t)(t->shape[1] * t->shape[2]), .row_bytes = row_bytes};
    return TN_OK;
}

/* ---- reading one job ------------------------------------------------------------------------- */

static tn_status read_file(const tn_load *l, const struct tn_load_job *j, void *dst, size_t bytes,
                           tn_error *err)
{
    const tn_gguf *g = l->m->gguf;
    int fd = tn_gguf_part_fd(g, j->tensor->part);
    size_t done = 0, offset = j->tensor->offset + j->file_offset;
    if (fd < 0) {
        memcpy(dst, tn_gguf_tensor_data(g, j->tensor) + j->file_offset, bytes);
        return TN_OK;
    }
    while (done < bytes) {
        ssize_t n = pread(fd, (char *)dst + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return tn_fail(err, TN_EIO, (int64_t)(offset + done),
                           "%s: cannot read tensor '%.*s': %s",
                           tn_gguf_part_path(g, j->tensor->part), (int)j->tensor->name.len,
                           j->tensor->name.data, n ? strerror(errno) : "the file ends early");
        done += (size_t)n;
    }
    return TN_OK;
}

static tn_status fetch(const tn_load *l, const struct tn_load_job *j, void *dst, tn_error *err)
{
    const size_t bytes = (size_t)j->n_rows * j->file->row_bytes;
    if (!l->random) return read_file(l, j, dst, bytes, err);
    tn_synthetic_fill(dst, j->file->type, bytes, j->tensor->offset + j->file_offset);
    return TN_OK;
}

/* Rows of the file, `from`, to where they go. uncut: room for a group before it
 * is cut into slabs. */
static void place_rows(const tn_load *l, const struct tn_load_job *j, const char *from, char *uncut)
{
    const size_t row_bytes = j->file->row_bytes;
    if (j->to_f32) {
        tn_weight rows = *j->file;
        rows.data = from;
        for (int64_t r = 0; r < j->n_rows; r++)
            kernels(l)->dequantize[TN_LAYOUT_ROWS][rows.type](
                &rows, r, (float *)(void *)j->dst + r * rows.cols);
        return;
    }
    if (j->layout == TN_LAYOUT_ROWS) {
        memcpy(j->dst, from, (size_t)j->n_rows * row_bytes);
        return;
    }
    const int64_t group = tn_layout_rows(j->layout);
    for (int64_t r = 0; r < j->n_rows; r += group) {
        char *to = j->slabs ? uncut : j->dst + (size_t)r * row_bytes;
        kernels(l)->repack[j->layout][j->file->type](to, from + (size_t)r * row_bytes,
                                                     j->n_rows - r < group ? j->n_rows - r : group,
                                                     j->file->cols);
        if (j->slabs) tn_group_to_slabs(j->slabs, j->row0 + r, to);
    }
}

static tn_status run_job(const tn_load *l, const struct tn_load_job *j, char *bounce, tn_error *err)
{
    const size_t bytes = (size_t)j->n_rows * j->file->row_bytes;
    if (l->arriving) {
        const void *from = tn_gguf_tensor_data(l->m->gguf, j->tensor) + j->file_offset;
        place_rows(l, j, from, bounce);
        tn_later_drop(from, bytes);
        return TN_OK;
    }
    if (j->layout == TN_LAYOUT_ROWS && !j->to_f32) return fetch(l, j, j->dst, err);
    const tn_status s = fetch(l, j, bounce, err);
    if (!s) place_rows(l, j, bounce, bounce + bytes);
    return s;
}

/* ---- queueing -------------------------------------------------------------------------------- */

static bool queue(tn_load *l, struct tn_load_job job)
{
    if (!tn_grow(l->m->a, (void **)&l->jobs, &l->cap_jobs, l->n_jobs, l->n_jobs + 1, sizeof job))
        return false;
    l->jobs[l->n_jobs++] = job;
    l->total_bytes += (size_t)job.n_rows * job.file->row_bytes;
    return true;
}

/* Splits one matrix of a tensor into jobs of whole groups of rows. */
static bool queue_matrix(tn_load *l, const tn_gguf_tensor *t, const tn_weight *file, size_t offset,
                         int64_t rows, const tn_weight *w, char *dst)
{
    int64_t step = (int64_t)(job_bytes / file->row_bytes) / 16 * 16;
    if (step < 16) step = 16;
    for (int64_t r = 0; r < rows; r += step) {
        struct tn_load_job j = {.tensor = t, .file = file, .layout = w->layout, .to_f32 = l->exact};
        j.file_offset = offset + (size_t)r * file->row_bytes;
        j.n_rows = rows - r < step ? rows - r : step;
        if (w->slab) j.slabs = w;
        j.row0 = r;
        j.rows = rows;
        j.dst = dst + (size_t)r * w->row_bytes;
        if (!queue(l, j)) return false;
    }
    return true;
}

/* Slab-major, where parts of it may travel in slabs. */
static void cut_into_slabs(const tn_load *l, tn_weight *w, const tn_gguf_tensor *t)
{
    const tn_tensor_place *p = tn_load_place(l, t);
    if (!p || w->layout != TN_LAYOUT_R8 || !p->slab || p->slab >= w->cols) return;
    w->slab = p->slab;
    w->slab_rows = tn_expert_rows(w, w->rows);
}

/* The host's copy of a matrix: memory for it and its jobs, or the pages of a file. */
static tn_status bind_host(tn_load *l, tn_weight *w, const tn_gguf_tensor *t, const tn_weight *file,
                           int64_t count, bool row_major)
{
    if (l->map) {
        w->data = tn_gguf_tensor_data(l->m->gguf, t);
        return TN_OK;
    }
    const tn_layout packed = tn_engine_packed(l->m->engine);
    if (!l->exact && !row_major && kernels(l)->repack[packed][w->type]) w->layout = packed;
    cut_into_slabs(l, w, t);
    const int64_t rows = w->rows / count;
    const size_t stride = (size_t)tn_expert_rows(w, rows);
    size_t bytes;
    if (!tn_mul_size(stride * (size_t)count, w->row_bytes, &bytes))
        return tn_fail_nomem(l->err, SIZE_MAX, "a tensor");
    if (l->m->image && tn_image_is_mapped(l->m->image)) {
        w->data = tn_image_next(l->m->image, bytes);
        return TN_OK;
    }
    char *dst = load_pages(l, bytes);
    if (!dst || (l->m->image && !tn_image_add(l->m->image, dst, bytes)))
        return tn_fail_nomem(l->err, bytes, "a tensor");
    w->data = dst;
    l->m->held_bytes += bytes;
    for (int64_t e = 0; e < count; e++)
        if (!queue_matrix(l, t, file, (size_t)e * (size_t)rows * file->row_bytes, rows, w,
                          dst + (size_t)e * stride * w->row_bytes))
            return tn_fail_nomem(l->err, sizeof *l->jobs, "the load queue");
    if (l->later && !tn_later_add(l, w, t))
        return tn_fail_nomem(l->err, sizeof *w, "the load queue");
    return TN_OK;
}

tn_status tn_load_weight(tn_load *l, tn_weight *w, tn_dweight *d, const tn_gguf_tensor *t,
                         int32_t n_experts, bool row_major)
{
    tn_status s = check_type(l, t, w);
    if (s || l->check) return s;
    tn_weight *file = tn_load_alloc(l, sizeof *file);
    if (!file) return tn_fail_nomem(l->err, sizeof *file, "a tensor");
    *file = *w;
    if (l->exact) {
        w->type = TN_TYPE_F32;
        w->row_bytes = (size_t)w->cols * sizeof(float);
    }
    const tn_tensor_place *p = tn_load_place(l, t);
    if (p && p->rows) s = tn_load_device_weight(l, d, t, file, w->type, p);
    if (!s && (!p || p->host)) s = bind_host(l, w, t, file, n_experts ? n_experts : 1, row_major);
    return s;
}

tn_status tn_load_vector(tn_load *l, float **v, float **d, const tn_gguf_tensor *t)
{
    tn_weight w;
    tn_status s = check_type(l, t, &w);
    if (s || l->check) return s;
    float *out = tn_load_alloc(l, (size_t)w.cols * sizeof *out);
    char *raw = tn_alloc_raw(l->m->a, w.row_bytes, 1);
    if (!out || !raw) s = tn_fail_nomem(l->err, w.row_bytes, "a vector");
    struct tn_load_job j = {.tensor = t, .file = &w, .n_rows = 1};
    if (!s) s = fetch(l, &j, raw, l->err);
    if (!s) {
        w.data = raw;
        kernels(l)->dequantize[TN_LAYOUT_ROWS][w.type](&w, 0, out);
        *v = out;
        l->m->held_bytes += (size_t)w.cols * sizeof *out;
    }
    tn_free(l->m->a, raw);
    const tn_tensor_place *p = tn_load_place(l, t);
    return s || !d ? s : tn_load_device_vector(l, p ? p->segment : 0, d, out, w.cols);
}

/* ---- running --------------------------------------------------------------------------------- */

typedef struct load_run {
    tn_load *l;
    const struct tn_load_job *jobs;
    size_t *order; /* [jobs], by the NUMA node that should touch their memory first */
    char **bounce; /* [threads] */
    atomic_int failed;
    _Atomic uint64_t done;
    tn_error *errs; /* [threads] */
    tn_status *status;
    tn_beside_fn beside; /* the first item, before the jobs; or NULL */
} load_run;

/* A job; NULL: what is done beside them. */
static tn_status run_item(load_run *r, const struct tn_load_job *j, int worker)
{
    tn_load *l = r->l;
    tn_error *err = &r->errs[worker];
    if (l->opt->cancel && l->opt->cancel(l->opt->user))
        return tn_fail(err, TN_ECANCELED, -1, "%s: loading was canceled", l->m->name);
    if (!j) return r->beside(l->m, err);
    const tn_status s = run_job(l, j, r->bounce[worker], err);
    if (s) return s;
    const uint64_t bytes = (uint64_t)j->n_rows * j->file->row_bytes;
    const uint64_t done = atomic_fetch_add(&r->done, bytes) + bytes;
    if (l->opt->progress && worker == 0) l->opt->progress(l->opt->user, done, l->total_bytes);
    return TN_OK;
}

static void load_task(void *arg, int64_t begin, int64_t end, int worker)
{
    load_run *r = arg;
    const int64_t first_job = r->beside != NULL;
    for (int64_t i = begin; i < end && !atomic_load(&r->failed); i++) {
        const tn_status s =
            run_item(r, i < first_job ? NULL : &r->jobs[r->order[i - first_job]], worker);
        if (!s) continue;
        r->status[worker] = s;
        atomic_store(&r->failed, 1);
    }
}

static size_t bounce_bytes(const struct tn_load_job *jobs, size_t n_jobs)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n_jobs; i++) {
        /* Rows as in the file, and a group of them that has yet to be cut into slabs. */
        const int64_t rows = jobs[i].n_rows + (jobs[i].slabs ? tn_layout_rows(jobs[i].layout) : 0);
        const size_t need = (size_t)rows * jobs[i].file->row_bytes;
        if (need > bytes) bytes = need;
    }
    return bytes;
}

/* The node whose threads own the middle row of a job in a product. */
static int node_of(const tn_pool *p, const struct tn_load_job *j)
{
    const int64_t row = j->row0 + j->n_rows / 2;
    int k = 0;
    while (k + 1 < tn_pool_nodes_count(p) && row >= tn_pool_node_first(p, k + 1, j->rows)) k++;
    return k;
}

void tn_load_order(const tn_pool *p, const struct tn_load_job *jobs, size_t n_jobs, size_t *order)
{
    size_t n = 0;
    for (int k = 0; k < tn_pool_nodes_count(p); k++)
        for (size_t i = 0; i < n_jobs; i++)
            if (node_of(p, &jobs[i]) == k) order[n++] = i;
}

static tn_status run_all(tn_load *l, load_run *r, size_t n_jobs)
{
    tn_engine *e = l->m->engine;
    size_t bytes = bounce_bytes(r->jobs, n_jobs);
    for (int i = 0; i < e->n_threads; i++)
        if (!(r->bounce[i] = tn_alloc_raw(&e->a, bytes, 1)))
            return tn_fail_nomem(l->err, bytes, "a read buffer");
    tn_load_order(e->pool, r->jobs, n_jobs, r->order);
    if (!l->arriving) pthread_mutex_lock(&e->turn);
    tn_pool_use(e->pool, e->n_threads);
    tn_pool_run(e->pool, load_task, r, (int64_t)n_jobs + (r->beside != NULL), 1);
    if (!l->arriving) pthread_mutex_unlock(&e->turn);
    l->done_bytes = atomic_load(&r->done);
    for (int i = 0; i < e->n_threads; i++)
        if (r->status[i]) {
            if (l->err) *l->err = r->errs[i];
            return r->status[i];
        }
    return TN_OK;
}

/* All jobs, and beside them what else there is to do. */
static tn_status read_all(tn_load *l, const struct tn_load_job *jobs, size_t n_jobs,
                          tn_beside_fn beside)
{
    const tn_engine *e = l->m->engine;
    const size_t n = (size_t)e->n_threads;
    load_run r = {.l = l, .jobs = jobs, .done = l->done_bytes, .beside = beside};
    r.bounce = tn_alloc(&e->a, n, sizeof *r.bounce);
    r.errs = tn_alloc(&e->a, n, sizeof *r.errs);
    r.status = tn_alloc(&e->a, n, sizeof *r.status);
    r.order = tn_alloc(&e->a, n_jobs, sizeof *r.order);
    tn_status s = r.bounce && r.errs && r.status && r.order
                      ? run_all(l, &r, n_jobs)
                      : tn_fail_nomem(l->err, n * sizeof *r.errs, "loading");
    for (size_t i = 0; r.bounce && i < n; i++) tn_free(&e->a, r.bounce[i]);
    tn_free(&e->a, r.order);
    tn_free(&e->a, r.bounce);
    tn_free(&e->a, r.errs);
    tn_free(&e->a, r.status);
    return s;
}

tn_status tn_load_jobs(tn_load *l, const struct tn_load_job *jobs, size_t n_jobs)
{
    return read_all(l, jobs, n_jobs, NULL);
}

/* The image is a help for the next start; that it cannot be kept is no reason to fail this one. */
static tn_status finish_image(tn_load *l)
{
    tn_error local = {0};
    tn_model *m = l->m;
    if (!m->image) return TN_OK;
    const char *path = tn_image_path(m->image);
    const double mib = (double)tn_image_bytes(m->image) / (1 << 20);
    if (tn_image_is_mapped(m->image)) {
        if (!tn_image_is_used_up(m->image))
            return tn_fail(l->err, TN_EFORMAT, -1,
                           "%s: the file is not as long as the weights; delete it", path);
        tn_engine_log(m->engine, TN_LOG_INFO, "weights: mapped from %s (%.0f MiB)", path, mib);
        return TN_OK;
    }
    const tn_status s = tn_image_write(m->image, &local);
    if (s == TN_OK)
        tn_engine_log(m->engine, TN_LOG_INFO, "weights: kept in %s (%.0f MiB)", path, mib);
    else if (s == TN_EIO)
        tn_engine_log(m->engine, TN_LOG_WARN, "the weights are not kept for the next start: %s",
                      local.msg);
    else if (l->err)
        *l->err = local;
    tn_image_close(m->image);
    m->image = NULL;
    return s == TN_EIO ? TN_OK : s;
}

tn_status tn_load_run(tn_load *l)
{
    /* First, because what does not fit should be said before anything is read. */
    pthread_mutex_lock(&l->m->engine->turn);
    tn_status s = tn_load_device_alloc(l);
    pthread_mutex_unlock(&l->m->engine->turn);
    if (l->m->later) tn_later_keep(l);
    if (!s) s = read_all(l, l->jobs, l->n_jobs, l->beside);
    if (!s) s = tn_load_device_run(l);
    if (!s) s = finish_image(l);
    if (!s && l->opt->progress) l->opt->progress(l->opt->user, l->total_bytes, l->total_bytes);
    return s;
}
