/* The device side of exec: the operations of a transformer as launches on one stream. */
#include "exec_device.h"
#include "exec_sizes.h"
#include "sides.h"
#include "stream.h"

#include <math.h>
#include <string.h>

/* ---- buffers --------------------------------------------------------------------------------- */

typedef struct arena {
    char *base; /* NULL: only count */
    size_t used;
} arena;

static void *take(arena *a, int64_t count, size_t size)
{
    void *p = a->base ? a->base + a->used : NULL;
    a->used += ((size_t)count * size + TN_DEVICE_ALIGN - 1) / TN_DEVICE_ALIGN * TN_DEVICE_ALIGN;
    return p;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static bool quantised(const tn_dweight *w)
{
    return w->type != TN_TYPE_F32 && w->type != TN_TYPE_F16 && w->type != TN_TYPE_BF16;
}

/* A large weight is dequantised in pieces. */
static void need_product(tn_dev *d, uint32_t type, int64_t w_rows, int64_t cols)
{
    int64_t rows = TN_DEQUANTISED_BYTES / (cols * (int64_t)sizeof(float)) + 1;
    if (rows > w_rows) rows = w_rows;
    const size_t bytes = d->ops->gemm_bytes(type, d->n_batch, rows, cols);
    if (bytes > d->workspace_bytes) d->workspace_bytes = bytes;
}

static void need_workspace(tn_dev *d, const tn_dweight *w)
{
    if (tn_on_device(w)) need_product(d, w->type, w->rows, w->cols);
}

/* What may come to the device later. Of experts one is multiplied at a time. */
static void need_moving(tn_dev *d, int32_t layer)
{
    const tn_layer *y = &d->m->layers[layer];
    const tn_weight *const w[3] = {&y->ffn_gate, &y->ffn_up, &y->ffn_down};
    const int64_t n = d->m->hp.n_expert ? d->m->hp.n_expert : 1;
    for (int i = 0; i < 3 && (d->layers[layer].moves || d->m->hp.n_expert); i++)
        need_product(d, w[i]->type, w[i]->rows / n, w[i]->cols);
}

/* What may be carried there for a batch. */
static void need_streamed(tn_dev *d, int32_t layer)
{
    const tn_layer *y = &d->m->layers[layer];
    const tn_weight *const attn[4] = {&y->attn_q, &y->attn_k, &y->attn_v, &y->attn_output};
    const int64_t n = tn_streamer_neurons(d->segment->streamer, layer);
    for (int i = 0; i < 4 && d->layers[layer].projects; i++)
        need_product(d, attn[i]->type, tn_streamer_rows(d->segment->streamer, attn[i]),
                     attn[i]->cols);
    if (!n) return;
    need_product(d, y->ffn_gate.type, n, d->m->hp.n_embd);
    need_product(d, y->ffn_up.type, n, d->m->hp.n_embd);
    need_product(d, y->ffn_down.type, d->m->hp.n_embd, n);
}

static void measure_workspace(tn_dev *d)
{
    for (int32_t i = d->segment->first; i < d->segment->end; i++) {
        const tn_layer_device *y = &d->layers[i];
        const tn_dweight *const w[] = {&y->attn_q,       &y->attn_k,   &y->attn_v, &y->attn_output,
                                       &y->ffn_gate_inp, &y->ffn_gate, &y->ffn_up, &y->ffn_down};
        for (int j = 0; j < (d->m->hp.n_expert ? 5 : 8); j++)
            need_workspace(d, w[j]);
        need_moving(d, i);
        need_streamed(d, i);
    }
    if (d->has_head) need_workspace(d, &d->m->on_device.output);
}

static void lay_out_experts(tn_dev *d, arena *a)
{
    const tn_hparams *hp = &d->m->hp;
    const int64_t n = d->n_batch;
    if (!hp->n_expert) return;
    d->router = take(a, n * hp->n_expert, sizeof *d->router);
    d->choices = take(a, hp->n_layers * n * d->used, sizeof *d->choices);
    d->chosen = d->choices;
    d->expert = take(a, n * d->used, sizeof *d->expert);
    d->choice_weight = take(a, n * d->used, sizeof *d->choice_weight);
    d->where = take(a, (int64_t)hp->n_layers * hp->n_expert, sizeof *d->where);
    d->slots = take(a, n * d->used * hp->n_embd, sizeof *d->slots);
    d->rows_there = take(a, 2 * n * d->used, sizeof *d->rows_there);
}

static void lay_out(tn_dev *d, arena *a)
{
    const tn_hparams *hp = &d->m->hp;
    const int64_t n = d->n_batch, n_q = (int64_t)hp->n_head * hp->head_dim_k;
    const int64_t in_cols = max64(hp->n_embd, (int64_t)hp->n_head * hp->head_dim_v);
    d->numbers = take(a, 2 * n, sizeof *d->numbers);
    d->rows = take(a, n * hp->n_embd, sizeof *d->rows);
    d->in = take(a, n * in_cols, sizeof *d->in);
    d->in_q = take(a, n * in_cols, sizeof *d->in_q);
    d->in_scale = take(a, n * (in_cols / 32 + 1), sizeof *d->in_scale);
    d->queries = take(a, n * n_q, sizeof *d->queries);
    d->k = take(a, n * hp->n_head_kv * hp->head_dim_k, sizeof *d->k);
    d->v = take(a, n * hp->n_head_kv * hp->head_dim_v, sizeof *d->v);
    d->out = take(a, n * hp->n_embd, sizeof *d->out);
    d->other = take(a, n * hp->n_embd, sizeof *d->other);
    d->gate = take(a, n * d->used * hp->n_ff, sizeof *d->gate);
    d->up = take(a, n * d->used * hp->n_ff, sizeof *d->up);
    d->hidden_q = take(a, n * d->used * hp->n_ff, sizeof *d->hidden_q);
    d->hidden_scale = take(a, n * d->used * (hp->n_ff / 32 + 1), sizeof *d->hidden_scale);
    for (int i = 0; i < 2; i++)
        d->angles[i] = take(a, n * hp->n_rot, sizeof *d->angles[i]);
    d->partial = take(
        a,
        (int64_t)d->ops->attend_bytes(TN_MATVEC_MAX, hp->n_head, hp->head_dim_v, TN_MAX_SPLITS), 1);
    lay_out_experts(d, a);
    if (d->has_head)
        d->logits = take(a, d->logit_rows * d->m->on_device.output.rows, sizeof *d->logits);
    d->workspace = take(a, (int64_t)d->workspace_bytes, 1);
}

tn_status tn_dev_find_experts(tn_dev *d, tn_error *err)
{
    const tn_hparams *hp = &d->m->hp;
    const size_t n = (size_t)hp->n_layers * (size_t)hp->n_expert;
    if (!n) return TN_OK;
    int32_t *where = tn_alloc(d->m->a, n, sizeof *where);
    if (!where) return tn_fail_nomem(err, n * sizeof *where, "the table of experts");
    for (size_t i = 0; i < n; i++) {
        const size_t layer = i / (size_t)hp->n_expert;
        const int32_t rank =
            tn_expert_rank(&d->m->layers[layer], (int32_t)(i % (size_t)hp->n_expert));
        const tn_dweight *w = &d->layers[layer].ffn_gate;
        where[i] = tn_on_device(w) && rank >= w->rows / hp->n_ff ? -1 : rank;
    }
    tn_status s = d->api->upload(d->device, d->where, where, n * sizeof *where, err);
    tn_free(d->m->a, where);
    return s;
}

static tn_status alloc_pinned(tn_dev *d, tn_error *err)
{
    void *numbers, *logits, *choices;
    const size_t head = d->has_head ? (size_t)d->m->on_device.output.rows : 0;
    tn_status s = d->api->alloc_pinned(
        d->device, (size_t)d->n_batch * 2 * sizeof *d->pinned_numbers, "token ids", &numbers, err);
    if (s) return s;
    d->pinned_numbers = numbers;
    if (head) {
        s = d->api->alloc_pinned(d->device, (size_t)d->logit_rows * head * sizeof *d->pinned_logits,
                                 "logits", &logits, err);
        if (s) return s;
        d->pinned_logits = logits;
    }
    if (!d->m->hp.n_expert) return TN_OK;
    s = d->api->alloc_pinned(d->device,
                             (size_t)d->m->hp.n_layers * (size_t)d->n_batch * (size_t)d->used *
                                 sizeof *d->pinned_choices,
                             "chosen experts", &choices, err);
    if (!s) d->pinned_choices = choices;
    return s;
}

tn_status tn_dev_init(tn_dev *d, const tn_model *m, int32_t segment, const tn_kv *kv,
                      int32_t n_batch, tn_error *err)
{
    const tn_model_device *there = &m->on_device;
    tn_device *device = there->segment[segment].device;
    *d = (tn_dev){.m = m, .layers = there->layers, .kv = kv, .device = device};
    d->segment = &there->segment[segment];
    d->has_head = segment == there->n_segments - 1 && tn_on_device(&there->output);
    d->api = device->api;
    d->ops = device->ops;
    d->n_batch = n_batch;
    d->used = m->hp.n_expert ? m->hp.n_expert_used : 1;
    d->logit_rows = (int32_t)(TN_LOGIT_BYTES / (m->hp.n_vocab * (int64_t)sizeof(float)));
    if (d->logit_rows < TN_MATVEC_MAX) d->logit_rows = TN_MATVEC_MAX;
    if (d->logit_rows > n_batch) d->logit_rows = n_batch;
    measure_workspace(d);
    arena a = {NULL, 0};
    lay_out(d, &a);
    tn_status s = d->api->alloc(device, a.used, "the activations", &d->arena, err);
    if (s) return s;
    a = (arena){d->arena, 0};
    lay_out(d, &a);
    s = tn_dev_find_experts(d, err);
    if (!s) s = alloc_pinned(d, err);
    if (!s) s = d->api->stream_create(device, &d->stream, err);
    if (!s && there->n_segments > 1) s = d->api->event_create(device, false, &d->handed, err);
    return s;
}

void tn_dev_free(tn_dev *d)
{
    if (!d->device) return;
    d->api->stream_destroy(d->device, d->stream);
    d->api->event_destroy(d->device, d->handed);
    d->api->free_pinned(d->device, d->pinned_choices);
    d->api->free_pinned(d->device, d->pinned_logits);
    d->api->free_pinned(d->device, d->pinned_numbers);
    d->api->free(d->device, d->arena);
}

/* ---- launches -------------------------------------------------------------------------------- */

/* Notes how a launch went; those after a failure are not made. */
static void did(tn_dev *d, tn_status s, const char *what)
{
    if (s && !d->status)
        d->status = tn_fail(d->err, s == TN_EDEVICE ? s : TN_EINTERNAL, -1,
                            "the device could not start %s", what);
}

static tn_dacts acts(float *f, int8_t *q, tn_dscale *scale, int64_t n, int64_t cols)
{
    return (tn_dacts){.n = n, .cols = cols, .f = f, .f_stride = cols, .q = q, .scale = scale};
}

/* What products read from `in`; q8: also in 8 bits. */
static tn_dacts input(const tn_dev *d, int64_t cols, bool q8)
{
    return acts(d->in, q8 ? d->in_q : NULL, q8 ? d->in_scale : NULL, d->n, cols);
}

static tn_dacts hidden(const tn_dev *d, int64_t cols, bool q8)
{
    return acts(d->gate, q8 ? d->hidden_q : NULL, q8 ? d->hidden_scale : NULL, d->n * d->used,
                cols);
}

/* Whether a product with n vectors reads them in 8 bits: many go to float16 instead. */
static bool reads_q8(const tn_dev *d, const tn_dweight *w)
{
    return tn_on_device(w) && quantised(w) && (d->n <= TN_MATVEC_MAX || d->m->hp.n_expert);
}

static void quantize(tn_dev *d, const tn_dacts *x)
{
    if (!d->status && x->q) did(d, d->ops->quantize(d->stream, x), "rounding");
}

/* The same as follows, for any number of vectors, of which float32 is read. */
static void batch_product(tn_dev *d, const tn_dweight *w, const tn_dacts *x, float *y,
                          int64_t y_stride, const float *bias, bool add)
{
    const tn_dgemm a = {.w = *w,
                        .x = *x,
                        .y = y,
                        .y_stride = y_stride,
                        .bias = bias,
                        .add = add,
                        .workspace = d->workspace,
                        .workspace_bytes = d->workspace_bytes};
    if (!d->status) did(d, d->ops->gemm(d->stream, &a), "a product of a batch");
}

/* y = W x + bias, added to what y has where `add`. */
static void product(tn_dev *d, const tn_dweight *w, const tn_dacts *x, float *y, int64_t y_stride,
                    const float *bias, bool add)
{
    if (d->status) return;
    if (x->n <= TN_MATVEC_MAX) {
        const tn_dmatvec a = {
            .w = *w, .x = *x, .y = y, .y_stride = y_stride, .bias = bias, .add = add};
        did(d, d->ops->matvec(d->stream, &a), "a product");
        return;
    }
    batch_product(d, w, x, y, y_stride, bias, add);
}

/* y[item] = W[expert] x[item / per_token]; with `up` through the activation. */
static void expert_product(tn_dev *d, const tn_dweight *w, const tn_dweight *up, const tn_dacts *x,
                           float *y, int64_t rows, int32_t per_token)
{
    if (d->status) return;
    tn_dmatvec a = {.w = *w,
                    .act = d->m->arch->activation,
                    .x = *x,
                    .y = y,
                    .y_stride = rows,
                    .expert = d->expert,
                    .n_items = d->n * d->used,
                    .rows = rows,
                    .per_token = per_token};
    if (up) a.up = *up;
    did(d, d->ops->matvec(d->stream, &a), "a product with experts");
}

/* in = norm(x) of n rows. */
static void norm(tn_dev *d, float *x, const float *weight, int64_t n, bool q8)
{
    const int64_t cols = d->m->hp.n_embd;
    tn_dnorm a = {.x = x, .x_stride = cols, .w = weight, .eps = d->m->hp.eps};
    a.y = acts(d->in, q8 ? d->in_q : NULL, q8 ? d->in_scale : NULL, n, cols);
    if (!d->status) did(d, d->ops->norm(d->stream, &a), "a norm");
}

/* h += out, through the optional norm. */
static void residual(tn_dev *d, const float *post_norm)
{
    const int64_t cols = d->m->hp.n_embd;
    tn_dnorm a = {.x = d->h, .x_stride = cols, .r = d->out, .r_stride = cols, .r_norm = post_norm};
    a.eps = d->m->hp.eps;
    a.y = (tn_dacts){.n = d->n, .cols = cols};
    if (!d->status) did(d, d->ops->norm(d->stream, &a), "a residual sum");
}

/* h += post_norm(W x + bias) */
static void product_residual(tn_dev *d, const tn_dweight *w, const tn_dacts *x, const float *bias,
                             const float *post_norm)
{
    product(d, w, x, post_norm ? d->out : d->h, d->m->hp.n_embd, bias, !post_norm);
    if (post_norm) residual(d, post_norm);
}

/* ---- copies ---------------------------------------------------------------------------------- */

void tn_dev_upload(tn_dev *d, void *to, const void *from, int64_t count)
{
    if (!d->status)
        d->status = d->api->upload_async(d->device, d->stream, to, from, (size_t)count * 4, d->err);
}

void tn_dev_download(tn_dev *d, void *to, const void *from, int64_t count)
{
    if (!d->status)
        d->status =
            d->api->download_async(d->device, d->stream, to, from, (size_t)count * 4, d->err);
}

void tn_dev_hand_over(tn_dev *d, tn_dev *to, bool h, void *between)
{
    const int64_t n = d->n * d->m->hp.n_embd;
    const bool direct = h && d->api->reaches(d->device, to->device);
    if (direct && !d->status)
        d->status = d->api->copy_peer(d->device, d->stream, to->device, to->h, d->h,
                                      (size_t)n * sizeof *d->h, d->err);
    else if (h)
        tn_dev_download(d, between, d->h, n);
    if (!d->status) d->status = d->api->event_record(d->device, d->handed, d->stream, d->err);
    if (!d->status && !to->status)
        to->status = to->api->event_wait(to->device, to->stream, d->handed, to->err);
    if (h && !direct && !d->status) tn_dev_upload(to, to->h, between, n);
}

tn_status tn_dev_sync(tn_dev *d)
{
    const tn_status s = d->api->stream_sync(d->device, d->stream, d->status ? NULL : d->err);
    if (s && !d->status) d->status = s;
    return d->status;
}

/* ---- begin, embed ---------------------------------------------------------------------------- */

void tn_dev_set(tn_dev *d, const int32_t *tokens, int64_t n, int64_t pos0)
{
    d->n = d->batch_n = n;
    d->pos = d->numbers;
    d->tokens = d->numbers + n;
    d->h = d->rows;
    d->q = d->queries;
    d->begun = false;
    for (int64_t i = 0; i < n; i++) {
        d->pinned_numbers[i] = (int32_t)(pos0 + i);
        d->pinned_numbers[n + i] = tokens[i];
    }
    d->n_splits =
        tn_dev_splits(d->api->info(d->device)->processors, d->m->hp.n_head_kv, n, pos0 + n - 1);
    d->status = TN_OK;
}

void tn_dev_begin(tn_dev *d)
{
    const tn_model *m = d->m;
    if (d->begun) return;
    d->begun = true;
    tn_dev_upload(d, d->numbers, d->pinned_numbers, 2 * d->n);
    for (int i = 0; i < 2 && !d->status; i++)
        if (m->rope[i].inv_freq)
            did(d,
                d->ops->rope_table(d->stream, d->angles[i], d->pos, d->n, d->segment->inv_freq[i],
                                   m->hp.n_rot, m->rope[i].magnitude),
                "a rope table");
}

void tn_dev_keep_last(tn_dev *d, int64_t n)
{
    const tn_hparams *hp = &d->m->hp;
    const int64_t drop = d->n - n;
    d->h += drop * hp->n_embd;
    d->q += drop * hp->n_head * hp->head_dim_k;
    d->pos += drop;
    d->n = n;
}

void tn_dev_embed(tn_dev *d)
{
    const int64_t n = d->m->hp.n_embd;
    const float scale = d->m->arch->scaled_embed ? sqrtf((float)n) : 1.0f;
    if (!d->status)
        did(d,
            d->ops->gather(d->stream, &d->m->on_device.token_embd, d->tokens, d->n, scale, d->h, n),
            "the embedding");
}

/* ---- attention ------------------------------------------------------------------------------- */

void tn_dev_attn_norm(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    norm(d, d->h, y->attn_norm, d->n,
         reads_q8(d, &y->attn_q) || reads_q8(d, &y->attn_k) || reads_q8(d, &y->attn_v));
}

void tn_dev_project(tn_dev *d, const tn_dweight *w, const float *bias, float *y)
{
    const tn_dacts x = input(d, w->cols, reads_q8(d, w));
    product(d, w, &x, y, w->rows, bias, false);
}

void tn_dev_project_rows(tn_dev *d, const tn_dweight *w, float *y, int64_t stride)
{
    const tn_dacts x = input(d, w->cols, false);
    product(d, w, &x, y, stride, NULL, false);
}

void tn_dev_finish_qkv(tn_dev *d, int32_t layer)
{
    const tn_hparams *hp = &d->m->hp;
    const tn_layer_device *y = &d->layers[layer];
    const tn_drope a = {.q = d->q,
                        .k = d->k,
                        .v = d->v,
                        .q_stride = (int64_t)hp->n_head * hp->head_dim_k,
                        .k_stride = (int64_t)hp->n_head_kv * hp->head_dim_k,
                        .v_stride = (int64_t)hp->n_head_kv * hp->head_dim_v,
                        .n = (int32_t)d->n,
                        .n_head = hp->n_head,
                        .q_norm = y->attn_q_norm,
                        .k_norm = y->attn_k_norm,
                        .eps = hp->eps,
                        .style = d->m->arch->rope,
                        .n_rot = hp->n_rot,
                        .cs = d->angles[d->m->layers[layer].rope - d->m->rope],
                        .kv = tn_kv_device_layer(d->kv, layer),
                        .pos = d->pos};
    if (!d->status) did(d, d->ops->rope_append(d->stream, &a), "rope");
}

/* Products of the same vectors. Of few, those of the first one's type are one launch. */
static void project_all(tn_dev *d, const tn_dproduct *p, int n)
{
    tn_dmatvec a = {.w = p[0].w, .y = p[0].y, .y_stride = p[0].y_stride, .bias = p[0].bias};
    int more = 0;
    for (int i = 1; i < n; i++)
        if (d->n <= TN_MATVEC_MAX && p[i].w.type == a.w.type)
            a.more[more++] = p[i];
        else
            tn_dev_project(d, &p[i].w, p[i].bias, p[i].y);
    a.x = input(d, a.w.cols, reads_q8(d, &a.w));
    if (more == 0)
        tn_dev_project(d, &a.w, a.bias, a.y);
    else if (!d->status)
        did(d, d->ops->matvec(d->stream, &a), "a product");
}

void tn_dev_qkv(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    const tn_dproduct p[1 + TN_MATVEC_MORE] = {
        {y->attn_q, d->q, y->attn_q.rows, y->attn_q_bias},
        {y->attn_k, d->k, y->attn_k.rows, y->attn_k_bias},
        {y->attn_v, d->v, y->attn_v.rows, y->attn_v_bias}};
    tn_dev_attn_norm(d, layer);
    project_all(d, p, 1 + TN_MATVEC_MORE);
    tn_dev_finish_qkv(d, layer);
}

/* Rows [first, first + a->n) of the batch. */
static void attend_some(tn_dev *d, tn_dattend a, int64_t first, int64_t n)
{
    a.q += first * a.q_stride;
    a.out += first * a.out_stride;
    a.pos += first;
    a.n = (int32_t)n;
    if (!d->status) did(d, d->ops->attend(d->stream, &a), "attention");
}

void tn_dev_attend(tn_dev *d, int32_t layer)
{
    const tn_hparams *hp = &d->m->hp;
    const tn_dattend a = {.kv = tn_kv_device_layer(d->kv, layer),
                          .q = d->q,
                          .q_stride = (int64_t)hp->n_head * hp->head_dim_k,
                          .out = d->in,
                          .out_stride = (int64_t)hp->n_head * hp->head_dim_v,
                          .n = (int32_t)d->n,
                          .n_head = hp->n_head,
                          .scale = hp->attn_scale,
                          .window = d->m->layers[layer].local ? hp->n_swa : 0,
                          .pos = d->pos,
                          .n_splits = d->n_splits,
                          .workspace = d->partial};
    const tn_device_shape shape = {.head_dim_k = hp->head_dim_k, .head_dim_v = hp->head_dim_v};
    if (d->n > TN_MATVEC_MAX && d->ops->can_do(TN_DOP_ATTEND_TILES, a.kv.type, shape)) {
        if (!d->status) did(d, d->ops->attend_tiles(d->stream, &a), "attention of a batch");
        return;
    }
    for (int64_t t = 0; t < d->n; t += TN_MATVEC_MAX)
        attend_some(d, a, t, d->n - t < TN_MATVEC_MAX ? d->n - t : TN_MATVEC_MAX);
}

void tn_dev_attn_out(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    const tn_dacts x = input(d, y->attn_output.cols, reads_q8(d, &y->attn_output));
    quantize(d, &x);
    product_residual(d, &y->attn_output, &x, y->attn_output_bias, y->post_attention_norm);
}

/* ---- FFN ------------------------------------------------------------------------------------- */

void tn_dev_ffn_norm(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    norm(d, d->h, y->ffn_norm, d->n,
         reads_q8(d, &y->ffn_gate) || reads_q8(d, &y->ffn_up) || reads_q8(d, &y->ffn_gate_inp));
}

void tn_dev_half(tn_dev *d, const tn_dweight *w, const float *bias, float *y)
{
    const tn_hparams *hp = &d->m->hp;
    const tn_dacts x = input(d, hp->n_embd, reads_q8(d, w));
    if (hp->n_expert)
        expert_product(d, w, NULL, &x, y, hp->n_ff, d->used);
    else
        product(d, w, &x, y, w->rows, bias, false);
}

static void glu(tn_dev *d, int64_t n, int64_t cols)
{
    if (!d->status)
        did(d,
            d->ops->glu(d->stream, d->gate, cols, d->up, cols, n, cols, d->m->arch->activation),
            "an activation");
}

void tn_dev_glu(tn_dev *d)
{
    glu(d, d->n * d->used, d->m->hp.n_ff);
}

void tn_dev_ffn_in(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    tn_dev_ffn_norm(d, layer);
    if (d->status) return;
    if (d->n > TN_MATVEC_MAX || y->ffn_gate.type != y->ffn_up.type) {
        tn_dev_half(d, &y->ffn_gate, y->ffn_gate_bias, d->gate);
        tn_dev_half(d, &y->ffn_up, y->ffn_up_bias, d->up);
        glu(d, d->n, y->ffn_gate.rows);
        return;
    }
    const tn_dmatvec a = {.w = y->ffn_gate,
                          .up = y->ffn_up,
                          .act = d->m->arch->activation,
                          .x = input(d, d->m->hp.n_embd, reads_q8(d, &y->ffn_gate)),
                          .y = d->gate,
                          .y_stride = y->ffn_gate.rows,
                          .bias = y->ffn_gate_bias,
                          .up_bias = y->ffn_up_bias};
    did(d, d->ops->matvec(d->stream, &a), "a gated product");
}

void tn_dev_ffn_out(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    const tn_dacts x = hidden(d, y->ffn_down.cols, reads_q8(d, &y->ffn_down));
    quantize(d, &x);
    product_residual(d, &y->ffn_down, &x, y->ffn_down_bias, y->post_ffw_norm);
}

static const float *from(const float *bias, int64_t first)
{
    return bias ? bias + first : NULL;
}

void tn_dev_ffn_part(tn_dev *d, int32_t layer, const tn_dweight *gate, const tn_dweight *up,
                     const tn_dweight *down, int64_t first, bool add)
{
    const tn_layer_device *y = &d->layers[layer];
    tn_dev_half(d, gate, from(y->ffn_gate_bias, first), d->gate);
    tn_dev_half(d, up, from(y->ffn_up_bias, first), d->up);
    glu(d, d->n, gate->rows);
    const tn_dacts x = hidden(d, gate->rows, false);
    product(d, down, &x, d->out, d->m->hp.n_embd, NULL, add);
}

/* h += post_norm(out + bias) */
static void add_out(tn_dev *d, const float *bias, const float *post_norm)
{
    const int64_t n = d->m->hp.n_embd;
    if (bias && !d->status)
        did(d, d->ops->axpby(d->stream, d->out, n, 1.0f, NULL, n, 0.0f, bias, d->n, n), "a bias");
    residual(d, post_norm);
}

void tn_dev_attn_end(tn_dev *d, int32_t layer)
{
    add_out(d, d->layers[layer].attn_output_bias, d->layers[layer].post_attention_norm);
}

void tn_dev_ffn_end(tn_dev *d, int32_t layer)
{
    add_out(d, d->layers[layer].ffn_down_bias, d->layers[layer].post_ffw_norm);
}

/* ---- experts --------------------------------------------------------------------------------- */

void tn_dev_route(tn_dev *d, int32_t layer)
{
    const tn_hparams *hp = &d->m->hp;
    const tn_layer_device *y = &d->layers[layer];
    d->chosen = d->choices + layer * d->batch_n * d->used;
    tn_dev_ffn_norm(d, layer);
    const tn_dacts x = input(d, hp->n_embd, reads_q8(d, &y->ffn_gate_inp));
    product(d, &y->ffn_gate_inp, &x, d->router, hp->n_expert, NULL, false);
    const tn_droute a = {.scores = d->router,
                         .scores_stride = hp->n_expert,
                         .n = (int32_t)d->n,
                         .n_expert = hp->n_expert,
                         .used = d->used,
                         .gating = TN_GATING_SOFTMAX,
                         .renormalise = true,
                         .scale = hp->expert_scale,
                         .where = d->where + (int64_t)layer * hp->n_expert,
                         .expert = d->expert,
                         .chosen = d->chosen,
                         .weight = d->choice_weight};
    if (!d->status) did(d, d->ops->route(d->stream, &a), "routing");
}

void tn_dev_fetch_choices(tn_dev *d)
{
    const int64_t each = d->batch_n * d->used, first = d->segment->first * each;
    tn_dev_download(d, d->pinned_choices + first, d->choices + first,
                    (d->segment->end - d->segment->first) * each);
}

void tn_dev_experts_in(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    const int64_t n_ff = d->m->hp.n_ff;
    if (y->ffn_gate.type != y->ffn_up.type) {
        tn_dev_half(d, &y->ffn_gate, NULL, d->gate);
        tn_dev_half(d, &y->ffn_up, NULL, d->up);
        glu(d, d->n * d->used, n_ff);
        return;
    }
    const tn_dacts x = input(d, d->m->hp.n_embd, reads_q8(d, &y->ffn_gate));
    expert_product(d, &y->ffn_gate, &y->ffn_up, &x, d->gate, n_ff, d->used);
}

/* The weighted sum of the experts' results into y, or onto it. */
static void sum_experts(tn_dev *d, int32_t layer, float *y, bool add)
{
    const tn_layer_device *w = &d->layers[layer];
    const int64_t n = d->m->hp.n_embd;
    const tn_dacts x = hidden(d, d->m->hp.n_ff, reads_q8(d, &w->ffn_down));
    quantize(d, &x);
    expert_product(d, &w->ffn_down, NULL, &x, d->slots, n, 1);
    if (!d->status)
        did(d,
            d->ops->combine(d->stream, y, n, d->slots, n, NULL, d->choice_weight, d->used, d->n, n,
                            add),
            "a sum of experts");
}

void tn_dev_take_rows(tn_dev *d, const int32_t *rows, int64_t n_rows)
{
    const int64_t cols = d->m->hp.n_embd;
    const tn_dweight in = {.type = TN_TYPE_F32,
                           .rows = d->n,
                           .cols = cols,
                           .plane = {(uint8_t *)d->in},
                           .stride = {cols * (int64_t)sizeof *d->in}};
    tn_dev_upload(d, d->rows_there, rows, 2 * d->n * d->used);
    if (n_rows && !d->status)
        did(d, d->ops->gather(d->stream, &in, d->rows_there, n_rows, 1.0f, d->slots, cols),
            "a choice of rows");
}

void tn_dev_expert(tn_dev *d, const tn_dweight *gate, const tn_dweight *up, const tn_dweight *down,
                   int64_t first, int64_t n)
{
    const int64_t cols = d->m->hp.n_embd, n_ff = d->m->hp.n_ff;
    float *rows = d->slots + first * cols;
    const tn_dacts x = acts(rows, NULL, NULL, n, cols), g = acts(d->gate, NULL, NULL, n, n_ff);
    batch_product(d, gate, &x, d->gate, n_ff, NULL, false);
    batch_product(d, up, &x, d->up, n_ff, NULL, false);
    glu(d, n, n_ff);
    batch_product(d, down, &g, rows, cols, NULL, false);
}

void tn_dev_sum_rows(tn_dev *d)
{
    const int64_t n = d->m->hp.n_embd;
    if (!d->status)
        did(d,
            d->ops->combine(d->stream, d->out, n, d->slots, n, d->rows_there + d->n * d->used,
                            d->choice_weight, d->used, d->n, n, false),
            "a sum of experts");
}

void tn_dev_experts_out(tn_dev *d, int32_t layer)
{
    const float *post_norm = d->layers[layer].post_ffw_norm;
    sum_experts(d, layer, post_norm ? d->out : d->h, !post_norm);
    if (post_norm) residual(d, post_norm);
}

/* ---- shared work ----------------------------------------------------------------------------- */

void tn_dev_share(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    if (d->m->hp.n_expert) {
        sum_experts(d, layer, d->out, false);
        return;
    }
    const tn_dacts x = hidden(d, y->ffn_down.cols, reads_q8(d, &y->ffn_down));
    quantize(d, &x);
    product(d, &y->ffn_down, &x, d->out, d->m->hp.n_embd, NULL, false);
}

void tn_dev_join(tn_dev *d, int32_t layer)
{
    const tn_layer_device *y = &d->layers[layer];
    const int64_t n = d->m->hp.n_embd;
    if (!d->status)
        did(d,
            d->ops->axpby(d->stream, d->out, n, 1.0f, d->other, n, 1.0f, y->ffn_down_bias, d->n, n),
            "a join");
    residual(d, y->post_ffw_norm);
}

/* ---- head ------------------------------------------------------------------------------------ */

/* Logits of rows [first, first + n_rows), here. */
static void compute_logits(tn_dev *d, int64_t first, int64_t n_rows)
{
    const tn_model *m = d->m;
    const tn_dweight *w = &m->on_device.output;
    const bool q8 = quantised(w) && n_rows <= TN_MATVEC_MAX;
    norm(d, d->h + first * m->hp.n_embd, m->on_device.output_norm, n_rows, q8);
    tn_dacts x = input(d, m->hp.n_embd, q8);
    x.n = n_rows;
    product(d, w, &x, d->logits, w->rows, NULL, false);
    if (m->hp.logit_softcap > 0.0f && !d->status)
        did(d, d->ops->softcap(d->stream, d->logits, w->rows, n_rows, w->rows, m->hp.logit_softcap),
            "the soft cap");
}

void tn_dev_head(tn_dev *d, int64_t first, int64_t n_rows)
{
    compute_logits(d, first, n_rows);
    tn_dev_download(d, d->pinned_logits, d->logits, n_rows * d->m->on_device.output.rows);
}

/* In `other`, which nothing uses any more: the token, and its logit. */
void tn_dev_best(tn_dev *d, int64_t row)
{
    const int64_t n = d->m->on_device.output.rows;
    compute_logits(d, row, 1);
    if (!d->status)
        did(d,
            d->ops->argmax(d->stream, d->logits, n, 1, n, (int32_t *)(void *)d->other,
                           d->other + 1),
            "the choice of a token");
    tn_dev_download(d, d->pinned_logits, d->other, 2);
}
