/* The host side of exec: the operations of a transformer on the pool. Decode of one token takes
 * five loops of the pool a layer (q/k/v, attention, its output, gate/up, down), and one more that
 * joins the pieces of a long context; what lies between them is too short to share and runs in the
 * calling thread. */
#include "exec_host.h"
#include "exec_packed.h"
#include "sides.h"

#include <math.h>
#include <string.h>

enum {
    attend_chunks = 32,     /* pieces of the context in decode, at most */
    attend_pieces = 128,    /* the same of all KV heads: each prepares the query anew */
    attend_unit = 64,       /* positions: pieces are multiples, see tn_attend */
    attend_wide_unit = 128, /* the same for several tokens, whose pieces cost more to join */
    attend_least = 16,      /* tokens of an item, where there are more */
    attend_items = 8,       /* of a prompt, to divide among threads, where it is long enough */
    attend_alone = 1 << 14, /* floats that are joined before a loop of the pool is worth it */
    least_tile = 1 << 18,   /* floats */
    least_parts = 1 << 14,  /* floats */
};

bool tn_host_reads_q8(const tn_weight *w)
{
    return w->type != TN_TYPE_F32 && w->type != TN_TYPE_F16 && w->type != TN_TYPE_BF16;
}

/* ---- buffers --------------------------------------------------------------------------------- */

/* A layout of many arrays in one allocation: first called with base NULL to count. */
typedef struct arena {
    char *base;
    size_t used;
} arena;

static void *take(arena *a, int64_t count, size_t size)
{
    void *p = a->base ? a->base + a->used : NULL;
    a->used += ((size_t)count * size + 63) / 64 * 64;
    return p;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Whether products of the FFN's first half read 8-bit (q8) or float32 (f32) inputs, and its second;
 * the most columns of an unquantised matrix, and of one in F16 or BF16, routers left out; the
 * longest quantised row that lies as in the file. */
typedef struct readers {
    bool in_q8, in_f32, down_q8, down_f32;
    int64_t f32_cols, wide_cols;
    size_t mapped_bytes;
} readers;

static void note_mapped(readers *r, const tn_weight *w)
{
    const bool mapped = w->data && w->layout == TN_LAYOUT_ROWS && tn_host_reads_q8(w);
    if (mapped && w->row_bytes > r->mapped_bytes) r->mapped_bytes = w->row_bytes;
}

static void note_matrix(readers *r, const tn_weight *w)
{
    note_mapped(r, w);
    if (tn_host_reads_q8(w)) return;
    r->f32_cols = max64(r->f32_cols, w->cols);
    if (w->type != TN_TYPE_F32) r->wide_cols = max64(r->wide_cols, w->cols);
}

/* The rows of a split matrix are no longer next to each other. */
static void note_down(readers *r, const tn_weight *w, const tn_layer_device *d)
{
    note_matrix(r, w);
    if ((d->moves || d->streams || tn_is_split(w, &d->ffn_down)) && !tn_host_reads_q8(w))
        r->wide_cols = max64(r->wide_cols, w->cols);
}

static readers find_readers(const tn_model *m)
{
    readers r = {0};
    for (int32_t i = 0; i < m->hp.n_layers; i++) {
        const tn_layer *y = &m->layers[i];
        const bool gate = tn_host_reads_q8(&y->ffn_gate), up = tn_host_reads_q8(&y->ffn_up);
        r.in_q8 |= gate || up;
        r.in_f32 |= !gate || !up;
        r.down_q8 |= tn_host_reads_q8(&y->ffn_down);
        r.down_f32 |= !tn_host_reads_q8(&y->ffn_down);
        note_matrix(&r, &y->attn_q);
        note_matrix(&r, &y->attn_k);
        note_matrix(&r, &y->attn_v);
        note_matrix(&r, &y->attn_output);
        note_matrix(&r, &y->ffn_gate);
        note_matrix(&r, &y->ffn_up);
        note_mapped(&r, &y->ffn_gate_inp);
        note_down(&r, &y->ffn_down, &m->on_device.layers[i]);
    }
    note_matrix(&r, &m->output);
    return r;
}

static void lay_out_experts(tn_host *h, arena *a, readers r)
{
    const tn_hparams *hp = &h->m->hp;
    const int64_t n = h->n_batch, slots = n * h->used;
    h->groups = take(a, max64(hp->n_expert, 1), sizeof *h->groups);
    if (!hp->n_expert) return;
    h->router = take(a, n * hp->n_expert, sizeof *h->router);
    h->choice = take(a, slots, sizeof *h->choice);
    h->choice_weight = take(a, slots, sizeof *h->choice_weight);
    h->expert = take(a, slots, sizeof *h->expert);
    h->slot_item = take(a, slots, sizeof *h->slot_item);
    h->slot_token = take(a, slots, sizeof *h->slot_token);
    h->slot_weight = take(a, slots, sizeof *h->slot_weight);
    h->slots = take(a, hp->n_expert + 1, sizeof *h->slots);
    h->there = take(a, hp->n_expert, sizeof *h->there);
    h->rows_there = take(a, 2 * slots, sizeof *h->rows_there);
    if (r.in_f32) h->slot_in = take(a, slots * hp->n_embd, sizeof *h->slot_in);
    if (r.in_q8) h->slot_q = take(a, h->parts * slots * (hp->n_embd / 32), sizeof *h->slot_q);
}

/* [threads] buffers of n floats each. */
static float **take_per_thread(tn_host *h, arena *a, int64_t n)
{
    float **list = take(a, h->e->n_threads, sizeof *list);
    for (int i = 0; i < h->e->n_threads; i++) {
        float *p = take(a, n, sizeof *p);
        if (list) list[i] = p;
    }
    return list;
}

/* What only layers on both sides need. */
static void lay_out_shared(tn_host *h, arena *a)
{
    const tn_model *m = h->m;
    bool mixed = false;
    if (!m->on_device.n_segments) return;
    h->other = take(a, (int64_t)h->n_batch * m->hp.n_embd, sizeof *h->other);
    for (int32_t i = 0; i < m->hp.n_layers; i++)
        mixed |= tn_sides_of(&m->layers[i], &m->on_device.layers[i]).ffn == TN_MIXED;
    if (!mixed) return;
    h->gate = take(a, (int64_t)h->n_batch * h->used * m->hp.n_ff, sizeof *h->gate);
    h->up = take(a, (int64_t)h->n_batch * h->used * m->hp.n_ff, sizeof *h->up);
}

static void lay_out(tn_host *h, arena *a, readers r)
{
    const tn_hparams *hp = &h->m->hp;
    const int64_t n = h->n_batch, n_q = (int64_t)hp->n_head * hp->head_dim_k;
    const int64_t n_att = (int64_t)hp->n_head * hp->head_dim_v, parts = n * h->parts;
    const int64_t in_cols = max64(hp->n_embd, n_att);
    h->h = take(a, n * hp->n_embd, sizeof *h->h);
    h->in = take(a, n * in_cols, sizeof *h->in);
    h->in_q = take(a, parts * (in_cols / 32 + 1), sizeof *h->in_q);
    const bool many = parts >= TN_MANY_TOKENS, pack = parts >= TN_PACK_TOKENS;
    if (pack) h->in_packed.data = take(a, parts * (in_cols / 32), TN_PACKED_BYTES);
    h->q = take(a, n * max64(n_q, hp->n_embd), sizeof *h->q);
    h->out = h->q;
    h->k = take(a, n * hp->n_head_kv * hp->head_dim_k, sizeof *h->k);
    h->v = take(a, n * hp->n_head_kv * hp->head_dim_v, sizeof *h->v);
    h->used = hp->n_expert ? hp->n_expert_used : 1;
    if (r.down_f32) h->hidden = take(a, n * h->used * hp->n_ff, sizeof *h->hidden);
    if (r.down_q8) h->hidden_q = take(a, parts * h->used * (hp->n_ff / 32), sizeof *h->hidden_q);
    if (r.down_q8 && pack && !hp->n_expert)
        h->hidden_packed.data = take(a, parts * (hp->n_ff / 32), TN_PACKED_BYTES);
    for (int i = 0; i < 2; i++)
        h->angles[i] = take(a, n * hp->n_rot, sizeof *h->angles[i]);
    lay_out_experts(h, a, r);
    lay_out_shared(h, a);
    h->tile_floats = max64(least_tile, 2 * tn_host_grain(n) * n);
    h->tile = take_per_thread(h, a, h->tile_floats);
    if (h->blas && r.wide_cols) h->wide = take_per_thread(h, a, tn_host_grain(n) * r.wide_cols);
    if ((many || h->m->later) && r.mapped_bytes) {
        const size_t bytes = (size_t)tn_host_grain(parts) * r.mapped_bytes;
        h->repacked = take_per_thread(h, a, (int64_t)(bytes / sizeof(float)) + 1);
    }
    h->part_floats = max64(least_parts, parts * TN_PACKED_GRAIN);
    if (h->parts > 1) h->part_sums = take_per_thread(h, a, h->part_floats);
    /* At the end, where address sanitizers see what goes beyond. */
    h->partial =
        take(a, (int64_t)hp->n_head * attend_chunks * (2 + hp->head_dim_v), sizeof *h->partial);
}

tn_status tn_host_init(tn_host *h, const tn_model *m, const tn_kv *kv, int32_t n_batch,
                       tn_error *err)
{
    *h = (tn_host){
        .m = m, .e = m->engine, .kern = &m->engine->kernels, .kv = kv, .n_batch = n_batch};
    h->parts = kv->type == TN_TYPE_F32 ? 2 : 1;
    const readers r = find_readers(m);
    if (r.f32_cols && n_batch >= TN_MANY_TOKENS) {
        tn_status s = tn_engine_open_blas(h->e, err);
        if (s) return s;
        h->blas = h->e->blas;
    }
    arena a = {NULL, 0};
    lay_out(h, &a, r);
    tn_device *d = m->on_device.segment[0].device;
    /* Pinned, where the device copies from and to it. */
    tn_status s = TN_OK;
    if (d)
        s = d->api->alloc_pinned(d, a.used, "activations", &h->arena, err);
    else if (!(h->arena = tn_alloc_raw(m->a, a.used, 1)))
        s = tn_fail_nomem(err, a.used, "activations");
    if (s) return s;
    a = (arena){h->arena, 0};
    lay_out(h, &a, r);
    return TN_OK;
}

void tn_host_free(tn_host *h)
{
    if (!h->m) return;
    tn_device *d = h->m->on_device.segment[0].device;
    if (d)
        d->api->free_pinned(d, h->arena);
    else
        tn_free(h->m->a, h->arena);
}

/* ---- products -------------------------------------------------------------------------------- */

/* Up to three products with the same input, as one loop over pieces of their rows. */
typedef struct products {
    tn_host *h;
    const tn_acts *x;
    int n;
    const tn_weight *w[3];
    float *y[3];
    int64_t y_stride; /* 0: the rows of w */
    int64_t grain;
} products;

static int64_t pieces(const tn_weight *w, int64_t grain)
{
    return (w->rows + grain - 1) / grain;
}

/* Pieces [begin, end) of those of matrix i that belong to a NUMA node; returns
 * how many those are. */
static int64_t node_rows(const products *p, int i, int node, int64_t begin, int64_t end, int worker)
{
    const tn_weight *w = p->w[i];
    const tn_pool *pool = p->h->e->pool;
    const int64_t all = pieces(w, p->grain), first = tn_pool_node_first(pool, node, all);
    const int64_t n = tn_pool_node_first(pool, node + 1, all) - first;
    if (begin >= n || end <= 0) return n;
    const int64_t row0 = (first + (begin > 0 ? begin : 0)) * p->grain;
    int64_t row1 = (first + (end < n ? end : n)) * p->grain;
    if (row1 > w->rows) row1 = w->rows;
    tn_host_rows(p->h, w, p->x, p->y[i] + row0, p->y_stride ? p->y_stride : w->rows, row0, row1,
                 worker);
    return n;
}

/* All matrices' pieces of one node, then those of the next: a node's threads own what its memory
 * holds. */
static void products_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const products *p = arg;
    for (int node = 0; node < tn_pool_nodes_count(p->h->e->pool); node++)
        for (int i = 0; i < p->n; i++) {
            const int64_t n = node_rows(p, i, node, begin, end, worker);
            begin -= n;
            end -= n;
        }
}

static void run_products(products *p)
{
    int64_t n = 0;
    p->grain = p->x->packed ? TN_PACKED_GRAIN : tn_host_grain(p->x->n);
    for (int i = 0; i < p->n; i++)
        if (!tn_host_reads_q8(p->w[i])) p->grain = tn_host_grain(p->x->n);
    for (int i = 0; i < p->n; i++)
        n += pieces(p->w[i], p->grain);
    tn_pool_run(p->h->e->pool, products_task, p, n, 1);
}

void tn_host_product(tn_host *h, const tn_weight *w, const tn_acts *x, float *y)
{
    products p = {.h = h, .x = x, .n = 1, .w = {w}, .y = {y}};
    run_products(&p);
}

static tn_acts input(const tn_host *h, int64_t cols)
{
    const tn_acts x = {.n = h->n, .cols = cols, .f = h->in, .f_stride = cols, .q = h->in_q};
    return tn_packed_with(x, &h->in_packed);
}

tn_acts tn_host_hidden(const tn_host *h, int64_t first, int64_t n)
{
    const int64_t n_ff = h->n_hidden;
    const tn_acts x = {.n = n,
                       .cols = n_ff,
                       .f_stride = n_ff,
                       .f = h->hidden ? h->hidden + first * n_ff : NULL,
                       .q = h->hidden_q ? h->hidden_q + h->parts * first * (n_ff / 32) : NULL};
    return tn_packed_with(x, &h->hidden_packed);
}

/* ---- what is done token by token ------------------------------------------------------------- */

typedef struct norm_run {
    tn_host *h;
    const float *x, *weight;
    int64_t n_tokens;
    bool to_q8;
} norm_run;

static void norm_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    const norm_run *r = arg;
    tn_host *h = r->h;
    const int64_t n = h->m->hp.n_embd;
    for (int64_t t = begin; t < end; t++) {
        h->kern->rms_norm(h->in + t * n, r->x + t * n, r->weight, n, h->m->hp.eps);
        if (r->to_q8)
            tn_host_round(h, &h->in_packed, h->in_q, h->in + t * n, r->n_tokens, n / 32, t, 0,
                          n / 32);
    }
}

static void run_norm(norm_run *r, const tn_weight *reader)
{
    tn_packed_begin(r->h, &r->h->in_packed, r->to_q8 ? reader : NULL, r->n_tokens);
    tn_pool_run(r->h->e->pool, norm_task, r, r->n_tokens, 1);
}

void tn_host_norm(tn_host *h, const float *weight, bool to_q8, const tn_weight *reader)
{
    norm_run r = {h, h->h, weight, h->n, to_q8};
    run_norm(&r, reader);
}

typedef struct quantize_run {
    tn_host *h;
    int64_t cols;
} quantize_run;

static void quantize_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    const quantize_run *r = arg;
    const tn_host *h = r->h;
    const int64_t blocks = r->cols / 32;
    for (int64_t t = begin; t < end; t++)
        tn_host_round(h, &h->in_packed, h->in_q, h->in + t * r->cols, h->n, blocks, t, 0, blocks);
}

typedef struct residual_run {
    tn_host *h;
    const float *other, *bias, *post_norm;
} residual_run;

static void residual_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    const residual_run *r = arg;
    const tn_kernels *kern = r->h->kern;
    const int64_t n = r->h->m->hp.n_embd;
    for (int64_t t = begin; t < end; t++) {
        float *out = r->h->out + t * n;
        if (r->other) kern->add(out, r->other + t * n, n);
        if (r->bias) kern->add(out, r->bias, n);
        if (r->post_norm) kern->rms_norm(out, out, r->post_norm, n, r->h->m->hp.eps);
        kern->add(r->h->h + t * n, out, n);
    }
}

void tn_host_residual(tn_host *h, const float *other, const float *bias, const float *post_norm)
{
    residual_run r = {h, other, bias, post_norm};
    tn_pool_run(h->e->pool, residual_task, &r, h->n, 1);
}

/* ---- begin, embed ---------------------------------------------------------------------------- */

void tn_host_begin(tn_host *h, const int32_t *tokens, int64_t n, int64_t pos0)
{
    const tn_model *m = h->m;
    h->tokens = tokens;
    h->n = n;
    h->pos0 = pos0;
    for (int i = 0; i < 2; i++)
        if (m->rope[i].inv_freq) tn_rope_table(&m->rope[i], m->hp.n_rot, pos0, n, h->angles[i]);
}

void tn_host_keep_last(tn_host *h, int64_t n)
{
    const tn_hparams *hp = &h->m->hp;
    const int64_t drop = h->n - n, n_q = (int64_t)hp->n_head * hp->head_dim_k;
    /* Rows move to the front, where every operation expects them. */
    memmove(h->h, h->h + drop * hp->n_embd, (size_t)(n * hp->n_embd) * sizeof *h->h);
    memmove(h->q, h->q + drop * n_q, (size_t)(n * n_q) * sizeof *h->q);
    h->tokens += drop;
    h->pos0 += drop;
    h->n = n;
}

static void embed_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    tn_host *h = arg;
    const tn_weight *w = &h->m->token_embd;
    const int64_t n = h->m->hp.n_embd;
    const float scale = h->m->arch->scaled_embed ? sqrtf((float)n) : 1.0f;
    for (int64_t t = begin; t < end; t++) {
        float *x = h->h + t * n;
        h->kern->dequantize[w->layout][w->type](w, h->tokens[t], x);
        for (int64_t i = 0; scale != 1.0f && i < n; i++)
            x[i] *= scale;
    }
}

void tn_host_embed(tn_host *h)
{
    tn_pool_run(h->e->pool, embed_task, h, h->n, 1);
}

/* ---- attention ------------------------------------------------------------------------------- */

typedef struct qkv_run {
    tn_host *h;
    int32_t layer;
} qkv_run;

/* Bias, norm and rotation of one token's query or key heads. */
static void finish_heads(const tn_host *h, const tn_layer *y, float *x, int32_t n_heads,
                         const float *bias, const float *norm, const float *angles)
{
    const tn_hparams *hp = &h->m->hp;
    if (bias) h->kern->add(x, bias, (int64_t)n_heads * hp->head_dim_k);
    for (int32_t i = 0; norm && i < n_heads; i++) {
        float *head = x + (int64_t)i * hp->head_dim_k;
        h->kern->rms_norm(head, head, norm, hp->head_dim_k, hp->eps);
    }
    (void)y;
    h->kern->rope(x, n_heads, hp->head_dim_k, hp->n_rot, h->m->arch->rope, angles);
}

static void finish_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    const qkv_run *r = arg;
    const tn_host *h = r->h;
    const tn_hparams *hp = &h->m->hp;
    const tn_layer *y = &h->m->layers[r->layer];
    const int64_t n_k = (int64_t)hp->n_head_kv * hp->head_dim_k;
    const int64_t n_v = (int64_t)hp->n_head_kv * hp->head_dim_v;
    for (int64_t t = begin; t < end; t++) {
        const float *angles = h->angles[y->rope - h->m->rope] + t * hp->n_rot;
        float *q = h->q + t * hp->n_head * hp->head_dim_k, *k = h->k + t * n_k, *v = h->v + t * n_v;
        finish_heads(h, y, q, hp->n_head, y->attn_q_bias, y->attn_q_norm, angles);
        finish_heads(h, y, k, hp->n_head_kv, y->attn_k_bias, y->attn_k_norm, angles);
        if (y->attn_v_bias) h->kern->add(v, y->attn_v_bias, n_v);
        tn_kv_put(h->kv, h->kern, r->layer, h->pos0 + t, k, v);
    }
}

void tn_host_attn_norm(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    const bool q8 = tn_host_reads_q8(&y->attn_q) || tn_host_reads_q8(&y->attn_k) ||
                    tn_host_reads_q8(&y->attn_v);
    tn_host_norm(h, y->attn_norm, q8, &y->attn_q);
}

void tn_host_finish_qkv(tn_host *h, int32_t layer)
{
    qkv_run r = {h, layer};
    tn_pool_run(h->e->pool, finish_task, &r, h->n, 1);
}

void tn_host_qkv(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    tn_host_attn_norm(h, layer);
    const tn_acts x = input(h, h->m->hp.n_embd);
    products p = {.h = h,
                  .x = &x,
                  .n = 3,
                  .w = {&y->attn_q, &y->attn_k, &y->attn_v},
                  .y = {h->q, h->k, h->v}};
    run_products(&p);
    tn_host_finish_qkv(h, layer);
}

typedef struct attend_run {
    tn_host *h;
    tn_attend a;
    int64_t tile;     /* tokens of an item */
    int64_t per_head; /* items of one KV head: tiles of tokens, or chunks of the context */
} attend_run;

static void attend_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const attend_run *r = arg;
    for (int64_t i = begin; i < end; i++) {
        const int64_t head = i / r->per_head, part = i % r->per_head;
        const int64_t t0 = r->a.chunk ? 0 : part * r->tile, chunk = r->a.chunk ? part : 0;
        const int64_t t1 = t0 + r->tile < r->a.n ? t0 + r->tile : r->a.n;
        r->h->kern->attend(&r->a, (int32_t)head, t0, t1, chunk, r->h->e->scratch[worker]);
    }
}

static void join_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const attend_run *r = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        r->h->kern->attend_join(&r->a, i / r->a.n_head, (int32_t)(i % r->a.n_head));
}

/* A token, or a few: the context is split, into pieces that depend on its length and their number
 * alone; what all pieces leave behind has room as for one token. Pages before a sliding window are
 * skipped by moving the origin. */
static void split_context(attend_run *r, float *partial)
{
    tn_attend *a = &r->a;
    const int64_t page = a->kv.page_size;
    const int64_t lo = a->window && a->pos0 + 1 > a->window ? a->pos0 + 1 - a->window : 0;
    a->kv.k += lo / page;
    a->kv.v += lo / page;
    a->pos0 -= lo / page * page;
    const int64_t span = a->pos0 + a->n, fair = attend_pieces / a->kv.n_head_kv;
    int64_t most = attend_chunks / a->n;
    if (most > fair) most = fair > 1 ? fair : 1;
    const int64_t unit = a->n == 1 ? attend_unit : attend_wide_unit;
    a->chunk = ((span + most - 1) / most + unit - 1) / unit * unit;
    a->n_chunks = (span + a->chunk - 1) / a->chunk;
    a->partial = partial;
    if (a->n_chunks == 1) a->chunk = 0;
    r->per_head = a->chunk ? a->n_chunks : 1;
}

/* Tokens of an item: fewer where there would be too few items for several threads. */
static int64_t tokens_at_once(int64_t n, int64_t n_head_kv)
{
    const int64_t even = n * n_head_kv / attend_items;
    const int64_t tile = (even + attend_least - 1) / attend_least * attend_least;
    return tile < attend_least ? attend_least : tile < TN_ATTEND_TILE ? tile : TN_ATTEND_TILE;
}

void tn_host_attend(tn_host *h, int32_t layer)
{
    const tn_hparams *hp = &h->m->hp;
    const tn_layer *y = &h->m->layers[layer];
    attend_run r = {.h = h, .tile = tokens_at_once(h->n, hp->n_head_kv)};
    r.per_head = (h->n + r.tile - 1) / r.tile;
    r.a = (tn_attend){.kv = tn_kv_layer(h->kv, layer),
                      .q = h->q,
                      .out = h->in,
                      .n = h->n,
                      .q_stride = (int64_t)hp->n_head * hp->head_dim_k,
                      .out_stride = (int64_t)hp->n_head * hp->head_dim_v,
                      .pos0 = h->pos0,
                      .n_head = hp->n_head,
                      .scale = hp->attn_scale,
                      .window = y->local ? hp->n_swa : 0};
    if (h->n <= attend_least) split_context(&r, h->partial);
    tn_pool_run(h->e->pool, attend_task, &r, hp->n_head_kv * r.per_head, 1);
    if (!r.a.chunk) return;
    const int64_t rows = r.a.n * hp->n_head;
    if (rows * r.a.n_chunks * (2 + hp->head_dim_v) < attend_alone)
        join_task(&r, 0, rows, 0);
    else
        tn_pool_run(h->e->pool, join_task, &r, rows, 1);
}

void tn_host_attn_out(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    quantize_run r = {h, y->attn_output.cols};
    tn_packed_begin(h, &h->in_packed, &y->attn_output, h->n);
    if (tn_host_reads_q8(&y->attn_output)) tn_pool_run(h->e->pool, quantize_task, &r, h->n, 1);
    const tn_acts x = input(h, y->attn_output.cols);
    tn_host_product(h, &y->attn_output, &x, h->out);
    tn_host_residual(h, NULL, y->attn_output_bias, y->post_attention_norm);
}

/* ---- FFN ------------------------------------------------------------------------------------- */

typedef struct gated_run {
    tn_host *h;
    const tn_layer *y;
    int64_t grain, per_group; /* rows of a piece, pieces of a group */
} gated_run;

/* Rows [row0, row1) of the hidden activations of a group, at most what a tile holds. */
static void gated_rows(const gated_run *r, const tn_host_group *g, int64_t row0, int64_t row1,
                       int worker)
{
    tn_host *h = r->h;
    const int64_t rows = row1 - row0, n = g->x.n;
    float *gate = h->tile[worker], *up = gate + n * rows;
    tn_host_rows(h, &g->gate, &g->x, gate, rows, row0, row1, worker);
    tn_host_rows(h, &g->up, &g->x, up, rows, row0, row1, worker);
    for (int64_t t = 0; t < n; t++) {
        const int64_t at = h->skip + row0;
        if (r->y->ffn_gate_bias) h->kern->add(gate + t * rows, r->y->ffn_gate_bias + at, rows);
        if (r->y->ffn_up_bias) h->kern->add(up + t * rows, r->y->ffn_up_bias + at, rows);
    }
    h->kern->glu(gate, up, n * rows, h->m->arch->activation);
    if (tn_host_reads_q8(&g->down)) {
        tn_q8 *q = (tn_q8 *)tn_host_hidden(h, g->first, n).q;
        for (int64_t t = 0; t < n; t++)
            tn_host_round(h, &h->hidden_packed, q, gate + t * rows, n, h->n_hidden / 32, t,
                          row0 / 32, row1 / 32);
        return;
    }
    for (int64_t t = 0; t < n; t++)
        memcpy(h->hidden + (g->first + t) * h->n_hidden + row0, gate + t * rows,
               (size_t)rows * sizeof *gate);
}

static void gated_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const gated_run *r = arg;
    const tn_host *h = r->h;
    const int64_t n_ff = h->n_hidden;
    for (int64_t i = begin; i < end;) {
        const tn_host_group *g = &h->groups[i / r->per_group];
        const int64_t first = i % r->per_group, left = r->per_group - first;
        const int64_t n = end - i < left ? end - i : left;
        int64_t row1 = (first + n) * r->grain;
        const int64_t step = h->tile_floats / (2 * g->x.n) / r->grain * r->grain;
        if (row1 > n_ff) row1 = n_ff;
        for (int64_t row = first * r->grain; row < row1; row += step)
            gated_rows(r, g, row, row + step < row1 ? row + step : row1, worker);
        i += n;
    }
}

void tn_host_gated(tn_host *h, const tn_layer *y)
{
    const bool q8 = tn_host_reads_q8(&y->ffn_gate) && tn_host_reads_q8(&y->ffn_up);
    const int64_t grain = q8 && h->in_packed.fn ? TN_PACKED_GRAIN : tn_host_grain(h->n);
    gated_run r = {h, y, grain, (h->n_hidden + grain - 1) / grain};
    tn_packed_begin(h, &h->hidden_packed, h->m->hp.n_expert ? NULL : &h->groups[0].down, h->n);
    tn_pool_run(h->e->pool, gated_task, &r, r.per_group * h->n_groups, 1);
}

void tn_host_ffn_norm(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    const bool q8 = tn_host_reads_q8(&y->ffn_gate) || tn_host_reads_q8(&y->ffn_up);
    tn_host_norm(h, y->ffn_norm, q8, &y->ffn_gate);
}

/* The dense FFN as one expert. */
static void one_group(tn_host *h, int32_t layer, int64_t skip)
{
    const tn_layer *y = &h->m->layers[layer];
    h->skip = skip;
    h->n_hidden = h->m->hp.n_ff - h->skip;
    h->n_groups = 1;
    h->groups[0] = (tn_host_group){
        .gate = y->ffn_gate, .up = y->ffn_up, .down = y->ffn_down, .x = input(h, h->m->hp.n_embd)};
    if (!h->skip) return;
    h->groups[0].gate = tn_host_part(&y->ffn_gate, h->skip, y->ffn_gate.rows);
    h->groups[0].up = tn_host_part(&y->ffn_up, h->skip, y->ffn_up.rows);
    h->groups[0].down = tn_host_cols(&y->ffn_down, h->skip);
}

void tn_host_ffn_in(tn_host *h, int32_t layer, int64_t skip)
{
    tn_host_ffn_norm(h, layer);
    one_group(h, layer, skip);
    tn_host_gated(h, &h->m->layers[layer]);
}

void tn_host_ffn_out(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    const tn_acts x = tn_host_hidden(h, 0, h->n);
    tn_host_product(h, &y->ffn_down, &x, h->out);
    tn_host_residual(h, NULL, y->ffn_down_bias, y->post_ffw_norm);
}

/* ---- shared work ----------------------------------------------------------------------------- */

static void add_bias(tn_host *h, float *y, const float *bias, int64_t cols)
{
    for (int64_t t = 0; bias && t < h->n; t++)
        h->kern->add(y + t * cols, bias, cols);
}

void tn_host_project(tn_host *h, const tn_weight *w, const float *bias, float *y)
{
    const tn_acts x = input(h, w->cols);
    tn_host_product(h, w, &x, y);
    add_bias(h, y, bias, w->rows);
}

typedef struct glu_run {
    tn_host *h;
    bool q8;
} glu_run;

static void glu_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    const tn_host *h = arg;
    const int64_t n_ff = h->m->hp.n_ff;
    h->kern->glu(h->gate + begin * n_ff, h->up + begin * n_ff, (end - begin) * n_ff,
                 h->m->arch->activation);
}

void tn_host_glu(tn_host *h)
{
    tn_pool_run(h->e->pool, glu_task, h, h->n * h->used, 1);
}

/* Slots in the order of experts, where there are any, from what is in the order of choices. */
static void take_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    const glu_run *r = arg;
    const tn_host *h = r->h;
    const int64_t n_ff = h->m->hp.n_ff;
    for (int64_t s = begin; s < end; s++) {
        const float *from = h->gate + (h->m->hp.n_expert ? h->slot_item[s] : s) * n_ff;
        if (r->q8)
            tn_host_round(h, &h->hidden_packed, h->hidden_q, from, h->n * h->used, n_ff / 32, s, 0,
                          n_ff / 32);
        else
            memcpy(h->hidden + s * n_ff, from, (size_t)n_ff * sizeof *from);
    }
}

void tn_host_take_gate(tn_host *h, int32_t layer)
{
    glu_run r = {h, tn_host_reads_q8(&h->m->layers[layer].ffn_down)};
    h->n_hidden = h->m->hp.n_ff;
    tn_packed_begin(h, &h->hidden_packed, NULL, h->n);
    tn_pool_run(h->e->pool, take_task, &r, h->n * h->used, 1);
}

void tn_host_share(tn_host *h, int32_t layer)
{
    (void)layer;
    if (h->m->hp.n_expert) {
        tn_host_sum_experts(h);
        return;
    }
    const tn_acts x = tn_host_hidden(h, 0, h->n);
    tn_host_product(h, &h->groups[0].down, &x, h->out);
}

void tn_host_join(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    tn_host_residual(h, h->other, y->ffn_down_bias, y->post_ffw_norm);
}

/* ---- head ------------------------------------------------------------------------------------ */

void tn_host_head(tn_host *h, int64_t first, int64_t n_rows, int64_t skip, float *logits)
{
    const tn_model *m = h->m;
    const int64_t n_vocab = m->hp.n_vocab;
    norm_run r = {h, h->h + first * m->hp.n_embd, m->output_norm, n_rows,
                  tn_host_reads_q8(&m->output)};
    run_norm(&r, &m->output);
    tn_acts x = input(h, m->hp.n_embd);
    x.n = n_rows;
    const tn_weight w = tn_host_part(&m->output, skip, m->output.rows);
    products p = {.h = h, .x = &x, .n = 1, .w = {&w}, .y = {logits + skip}, .y_stride = n_vocab};
    run_products(&p);
    const float cap = m->hp.logit_softcap;
    for (int64_t t = 0; cap > 0.0f && t < n_rows; t++)
        for (int64_t i = skip; i < n_vocab; i++)
            logits[t * n_vocab + i] = cap * tanhf(logits[t * n_vocab + i] / cap);
}
