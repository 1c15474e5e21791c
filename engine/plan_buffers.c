/* What a device holds beside weights and KV as the planner counts them, to be never less than what
 * execution asks for: its buffers (exec_device.c), what weights are carried in (boundary_copy.c,
 * exec_stream.c, load_device.c), and what they take more in the device's layout than in the file.
 */
#include "exec_sizes.h"
#include "plan_cost.h"

#include "../kernels/device_ops.h"

enum { page_align = 512 /* of an allocation, at most */ };

static uint64_t padded(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static bool is_ffn_matrix(const tn_shape_tensor *t)
{
    return t->part >= TN_PART_GATE && t->part <= TN_PART_DOWN && t->rows > 1;
}

/* ---- layout ---------------------------------------------------------------------------------- */

/* Bytes of a matrix on the device; of one that it cannot hold, those of the file. */
static uint64_t device_bytes(const tn_shape_tensor *t, int64_t rows, int64_t cols)
{
    const uint64_t bytes = tn_dweight_bytes(t->type, rows, cols);
    return padded(bytes || !rows || !cols ? bytes : t->bytes, TN_DEVICE_ALIGN);
}

static uint64_t excess(uint64_t device, uint64_t file)
{
    return device > file ? device - file : 0;
}

/* Of a tensor that is there as a whole. Vectors are there in float32, wherever their layer is. */
static uint64_t tensor_excess(const tn_shape_tensor *t)
{
    if (t->rows <= 1) return padded(t->params * sizeof(float), TN_DEVICE_ALIGN);
    const int64_t n = t->n_expert > 1 ? t->n_expert : 1;
    return excess(device_bytes(t, (int64_t)t->rows * n, (int64_t)t->cols), t->bytes);
}

/* A tensor's part of `units` of its layer's FFN. */
static uint64_t part_bytes(const tn_shape_layer *y, const tn_shape_tensor *t, int32_t units)
{
    const int64_t rows = (int64_t)t->rows, cols = (int64_t)t->cols;
    if (y->n_expert) return device_bytes(t, rows * units, cols);
    if (units >= y->n_units) return device_bytes(t, rows, cols);
    const int64_t neurons = (int64_t)units * y->granule;
    return t->part == TN_PART_DOWN ? device_bytes(t, rows, neurons)
                                   : device_bytes(t, neurons, cols);
}

/* The most that any number of units takes more than the planner counts. */
static uint64_t ffn_excess(const tn_shape *s, const tn_shape_layer *y)
{
    uint64_t most = 0;
    for (int32_t u = 1; u <= y->n_units; u++) {
        uint64_t bytes = 3 * page_align; /* they may be one allocation, or a part of one */
        for (int32_t j = 0; j < y->n; j++) {
            const tn_shape_tensor *t = &s->tensor[s->of_layer[y->first + j]];
            if (is_ffn_matrix(t)) bytes += part_bytes(y, t, u);
        }
        most = larger(most, excess(bytes, tn_shape_ffn_bytes(y, u)));
    }
    return most;
}

/* How many layers are like this one, the first of its class; 0: it is not the first. */
static uint64_t first_of_class(const tn_shape *s, int32_t l)
{
    uint64_t alike = 1;
    for (int32_t i = 0; i < s->n_layers; i++) {
        if (i == l || s->layer[i].cls != s->layer[l].cls) continue;
        if (i < l) return 0;
        alike++;
    }
    return alike;
}

static uint64_t layout_excess(const tn_shape *s)
{
    uint64_t sum = 0;
    for (int32_t i = 0; i < s->n_tensors; i++)
        if (!is_ffn_matrix(&s->tensor[i])) sum += tensor_excess(&s->tensor[i]);
    for (int32_t l = 0; l < s->n_layers; l++) {
        const uint64_t alike = first_of_class(s, l);
        if (alike) sum += alike * ffn_excess(s, &s->layer[l]);
    }
    const tn_shape_tensor *head = &s->tensor[s->head]; /* its rows are in units of 16 */
    return sum + 16 * (head->bytes / head->rows + 1) + 4 * TN_DEVICE_ALIGN;
}

/* ---- buffers --------------------------------------------------------------------------------- */

/* Of a product with n vectors; kernels/cuda/gemm.cu. */
static uint64_t product_bytes(const tn_shape_tensor *t, int64_t n)
{
    const uint64_t cols = t->cols, block = (uint64_t)tn_type_get(t->type)->block;
    const uint64_t rows = smaller(t->rows, TN_DEQUANTISED_BYTES / (cols * sizeof(float)) + 1);
    if (t->type == TN_TYPE_F32) return 0;
    if (block == 1) return padded(rows * ((cols + 3) / 4 * 16), TN_DEVICE_ALIGN);
    return TN_DEVICE_ALIGN + padded((uint64_t)n * cols * 2, TN_DEVICE_ALIGN) +
           padded(rows * cols * 2, TN_DEVICE_ALIGN);
}

static uint64_t workspace_bytes(const tn_cost *k)
{
    uint64_t most = 0;
    for (int32_t i = 0; i < k->s->n_tensors; i++)
        if (k->s->tensor[i].rows > 1)
            most = larger(most, product_bytes(&k->s->tensor[i], k->c.n_batch));
    return most;
}

typedef struct widths {
    uint64_t queries, values, kv, experts, used;
} widths;

static widths widest(const tn_shape *s)
{
    widths w = {.used = 1};
    for (int32_t l = 0; l < s->n_layers; l++) {
        const tn_shape_layer *y = &s->layer[l];
        w.queries = larger(w.queries, (uint64_t)y->n_head * (uint64_t)y->head_dim);
        w.values = larger(w.values, (uint64_t)y->n_head * (uint64_t)y->value_dim);
        w.kv = larger(w.kv, y->kv_elements);
        w.experts = larger(w.experts, (uint64_t)y->n_expert);
        w.used = larger(w.used, (uint64_t)y->n_used);
    }
    return w;
}

static uint64_t take(uint64_t count, uint64_t size)
{
    return padded(count * size, TN_DEVICE_ALIGN);
}

static uint64_t expert_bytes(const tn_cost *k, const widths *w)
{
    const uint64_t n = (uint64_t)k->c.n_batch, layers = (uint64_t)k->s->n_layers;
    if (!w->experts) return 0;
    return take(n * w->experts, 4) + take(layers * n * w->used, 4) + 2 * take(n * w->used, 4) +
           take(layers * w->experts, 4) + take(n * w->used * (uint64_t)k->s->n_embd, 4) +
           take(2 * n * w->used, 4);
}

static uint64_t head_bytes(const tn_cost *k)
{
    const uint64_t n = (uint64_t)k->c.n_batch, vocab = (uint64_t)k->s->n_vocab;
    const uint64_t rows = larger(TN_LOGIT_BYTES / (vocab * sizeof(float)), TN_MATVEC_MAX);
    return take(smaller(rows, n) * vocab, sizeof(float));
}

/* The executor's one allocation, as exec_device.c lays it out. */
static uint64_t activations(const tn_cost *k)
{
    const widths w = widest(k->s);
    const uint64_t n = (uint64_t)k->c.n_batch, embd = (uint64_t)k->s->n_embd;
    const uint64_t in = larger(embd, w.values), ff = (uint64_t)k->s->n_ff_max * w.used;
    return take(2 * n, 4) + 3 * take(n * embd, 4) + take(n * in, 4) + take(n * in, 1) +
           take(n * (in / 32 + 1), sizeof(tn_dscale)) + take(n * w.queries, 4) + take(n * w.kv, 4) +
           TN_DEVICE_ALIGN + 2 * take(n * ff, 4) + take(n * ff, 1) +
           take(n * w.used * ((uint64_t)k->s->n_ff_max / 32 + 1), sizeof(tn_dscale)) +
           2 * take(n * w.queries, 4) / larger(1, (uint64_t)k->s->layer[0].n_head) +
           2 * TN_DEVICE_ALIGN +
           take(TN_MATVEC_MAX * TN_MAX_SPLITS * (w.values + 2 * w.values), 4) +
           expert_bytes(k, &w) + head_bytes(k) + workspace_bytes(k);
}

/* ---- weights on their way -------------------------------------------------------------------- */

/* One of the buffers that a whole matrix travels in. */
static uint64_t buffer_bytes(const tn_shape *s, bool ffn)
{
    uint64_t most = 0;
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const tn_shape_tensor *t = &s->tensor[i];
        if (t->rows <= 1 || (ffn && !is_ffn_matrix(t))) continue;
        const uint64_t row = larger(t->bytes / (t->rows * larger((uint64_t)t->n_expert, 1)), 1);
        most = larger(most, larger(smaller(t->bytes, TN_CARRIED_BYTES), TN_CARRIED_ROWS * row));
    }
    return padded(most, page_align);
}

/* A piece of a layer that is streamed: a unit of its FFN, or some rows of a projection; and the
 * largest matrix of it. */
static void piece_bytes(const tn_shape *s, uint64_t *piece, uint64_t *matrix)
{
    *piece = *matrix = 0;
    for (int32_t l = 0; l < s->n_layers; l++) {
        const tn_shape_layer *y = &s->layer[l];
        uint64_t unit = 0;
        for (int32_t j = 0; j < y->n; j++) {
            const tn_shape_tensor *t = &s->tensor[s->of_layer[y->first + j]];
            if (t->rows <= 1) continue;
            const uint64_t bytes = is_ffn_matrix(t) && y->n_units
                                       ? part_bytes(y, t, 1)
                                       : device_bytes(t, TN_STREAMED_ROWS, (int64_t)t->cols);
            const uint64_t row = t->bytes / (t->rows * larger((uint64_t)t->n_expert, 1)) + 1;
            if (is_ffn_matrix(t)) unit += bytes;
            *piece = larger(*piece, bytes);
            *matrix = larger(*matrix, larger(bytes, TN_CARRIED_ROWS * row));
        }
        *piece = larger(*piece, unit);
    }
}

/* Their pages are apart from other layers', see kv.h. */
static bool has_windows(const tn_shape *s)
{
    for (int32_t l = 0; l < s->n_layers; l++)
        if (s->layer[l].window) return true;
    return false;
}

uint64_t tn_cost_device_buffers(const tn_cost *k)
{
    uint64_t piece, matrix;
    piece_bytes(k->s, &piece, &matrix);
    const uint64_t pages = (uint64_t)((k->c.n_ctx + k->c.page_size - 1) / k->c.page_size);
    const uint64_t streams = 2 * padded(piece, page_align) + 2 * padded(matrix, page_align);
    const uint64_t tables = 1 + has_windows(k->s);
    const uint64_t running = padded(activations(k), page_align) + streams +
                             2 * buffer_bytes(k->s, true) +
                             tables * (padded(8 * pages, page_align) + pages * (page_align - 1));
    const uint64_t loading = 2 * buffer_bytes(k->s, false);
    return layout_excess(k->s) + larger(running, loading) + 4 * page_align;
}
