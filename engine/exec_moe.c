/* The host side of exec, layers with experts: routing, grouping of a batch by expert, and the sum
 * of the chosen experts. Only chosen experts are read. */
#include "exec_host.h"
#include "sides.h"

#include <math.h>
#include <string.h>

/* ---- routing --------------------------------------------------------------------------------- */

/* The `used` largest scores in falling order, ties to the lower index; then their weights: a
 * softmax over all experts, renormalised over the chosen, which is a softmax over the chosen. */
static void choose(const tn_hparams *hp, const float *score, int32_t *choice, float *weight)
{
    const int32_t used = hp->n_expert_used;
    int32_t n = 0;
    for (int32_t e = 0; e < hp->n_expert; e++) {
        int32_t at = n;
        while (at > 0 && score[e] > score[choice[at - 1]])
            at--;
        if (at == used) continue;
        const int32_t kept = n < used ? n : used - 1;
        memmove(choice + at + 1, choice + at, (size_t)(kept - at) * sizeof *choice);
        choice[at] = e;
        if (n < used) n++;
    }
    float sum = 0.0f;
    for (int32_t i = 0; i < used; i++)
        sum += weight[i] = expf(score[choice[i]] - score[choice[0]]);
    for (int32_t i = 0; i < used; i++)
        weight[i] = weight[i] / sum * hp->expert_scale;
}

/* Sorts the (token, choice) pairs by expert: a counting sort, so tokens stay in order. */
void tn_host_sort_experts(tn_host *h)
{
    const int32_t n_expert = h->m->hp.n_expert;
    memset(h->slots, 0, ((size_t)n_expert + 1) * sizeof *h->slots);
    for (int64_t i = 0; i < h->n * h->used; i++)
        h->slots[h->choice[i] + 1]++;
    for (int32_t e = 0; e < n_expert; e++)
        h->slots[e + 1] += h->slots[e];
    for (int64_t i = 0; i < h->n * h->used; i++) {
        const int32_t s = h->slots[h->choice[i]]++;
        h->slot_token[s] = (int32_t)(i / h->used);
        h->slot_item[s] = (int32_t)i;
    }
    /* Every entry has moved on to where its expert ends. */
    memmove(h->slots + 1, h->slots, (size_t)n_expert * sizeof *h->slots);
    h->slots[0] = 0;
}

static void gather_task(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    tn_host *h = arg;
    const int64_t n = h->m->hp.n_embd, blocks = h->parts * (n / 32);
    for (int64_t s = begin; s < end; s++) {
        const int64_t t = h->slot_token[s];
        if (h->there[h->choice[h->slot_item[s]]]) continue;
        h->slot_weight[s] = h->choice_weight[h->slot_item[s]];
        if (h->slot_in) memcpy(h->slot_in + s * n, h->in + t * n, (size_t)n * sizeof *h->in);
        if (h->slot_q)
            memcpy(h->slot_q + s * blocks, h->in_q + t * blocks, (size_t)blocks * sizeof *h->in_q);
    }
}

static void make_groups(tn_host *h, const tn_layer *y)
{
    const tn_hparams *hp = &h->m->hp;
    h->skip = 0;
    h->n_hidden = hp->n_ff;
    h->n_groups = 0;
    for (int32_t e = 0; e < hp->n_expert; e++) {
        const int64_t first = h->slots[e], n = h->slots[e + 1] - first, d = hp->n_embd;
        if (!n || h->there[e]) continue;
        tn_host_group *g = &h->groups[h->n_groups++];
        g->gate = tn_expert(&y->ffn_gate, e, hp->n_ff);
        g->up = tn_expert(&y->ffn_up, e, hp->n_ff);
        g->down = tn_expert(&y->ffn_down, e, hp->n_embd);
        g->first = first;
        g->x = (tn_acts){.n = n,
                         .cols = d,
                         .f_stride = d,
                         .f = h->slot_in ? h->slot_in + first * d : NULL,
                         .q = h->slot_q ? h->slot_q + h->parts * first * (d / 32) : NULL};
    }
}

/* The choice as the device needs it: of a split layer it has only the first experts. */
static void map_choice(tn_host *h, const tn_layer *y, const tn_dweight *there)
{
    const bool split = tn_is_split(&y->ffn_gate, there);
    const int64_t n = split ? there->rows / h->m->hp.n_ff : h->m->hp.n_expert;
    for (int64_t i = 0; i < h->n * h->used; i++) {
        const int32_t rank = tn_expert_rank(y, h->choice[i]);
        h->expert[i] = rank < n ? rank : -1;
    }
}

void tn_host_route(tn_host *h, int32_t layer)
{
    const tn_layer *y = &h->m->layers[layer];
    const tn_hparams *hp = &h->m->hp;
    const bool q8 = tn_host_reads_q8(&y->ffn_gate) || tn_host_reads_q8(&y->ffn_up) ||
                    tn_host_reads_q8(&y->ffn_gate_inp);
    tn_host_norm(h, y->ffn_norm, q8, NULL);
    const tn_acts x = {
        .n = h->n, .cols = hp->n_embd, .f = h->in, .f_stride = hp->n_embd, .q = h->in_q};
    tn_host_product(h, &y->ffn_gate_inp, &x, h->router);
    for (int64_t t = 0; t < h->n; t++)
        choose(hp, h->router + t * hp->n_expert, h->choice + t * h->used,
               h->choice_weight + t * h->used);
    map_choice(h, y, &h->m->on_device.layers[layer].ffn_gate);
}

void tn_host_group_experts(tn_host *h, int32_t layer)
{
    tn_pool_run(h->e->pool, gather_task, h, h->n * h->used, 1);
    make_groups(h, &h->m->layers[layer]);
}

int64_t tn_host_take_rows(tn_host *h)
{
    const int64_t items = h->n * h->used;
    int32_t *token = h->rows_there, *row_of = h->rows_there + items;
    int32_t n = 0;
    memset(token, 0, (size_t)items * sizeof *token);
    for (int64_t i = 0; i < items; i++)
        row_of[i] = -1;
    for (int32_t e = 0; e < h->m->hp.n_expert; e++)
        for (int32_t s = h->slots[e]; s < h->slots[e + 1] && h->there[e]; s++) {
            token[n] = h->slot_token[s];
            row_of[h->slot_item[s]] = n++;
        }
    return n;
}

/* ---- experts --------------------------------------------------------------------------------- */

void tn_host_experts_in(tn_host *h, int32_t layer)
{
    tn_host_gated(h, &h->m->layers[layer]);
}

/* Rows [row0, row1) of the sum over the experts, for all tokens: experts in ascending order, so
 * that the order of the sum does not depend on who computes it. */
static void sum_rows(tn_host *h, int64_t row0, int64_t row1, int worker)
{
    const int64_t rows = row1 - row0, n = h->m->hp.n_embd;
    float *tile = h->tile[worker];
    for (int64_t t = 0; t < h->n; t++)
        memset(h->out + t * n + row0, 0, (size_t)rows * sizeof(float));
    for (int32_t i = 0; i < h->n_groups; i++) {
        const tn_host_group *g = &h->groups[i];
        const tn_acts x = tn_host_hidden(h, g->first, g->x.n);
        tn_host_rows(h, &g->down, &x, tile, rows, row0, row1, worker);
        for (int64_t s = 0; s < x.n; s++)
            h->kern->axpy(h->out + h->slot_token[g->first + s] * n + row0, tile + s * rows,
                          h->slot_weight[g->first + s], rows);
    }
}

typedef struct sum_run {
    tn_host *h;
    int64_t grain;
} sum_run;

static void sum_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const sum_run *r = arg;
    const int64_t n = r->h->m->hp.n_embd, step = r->h->tile_floats / r->h->n / r->grain * r->grain;
    int64_t row1 = end * r->grain < n ? end * r->grain : n;
    for (int64_t row = begin * r->grain; row < row1; row += step)
        sum_rows(r->h, row, row + step < row1 ? row + step : row1, worker);
}

void tn_host_sum_experts(tn_host *h)
{
    sum_run r = {h, tn_host_grain(h->n)};
    tn_pool_run(h->e->pool, sum_task, &r, (h->m->hp.n_embd + r.grain - 1) / r.grain, 1);
}

void tn_host_experts_out(tn_host *h, int32_t layer)
{
    tn_host_sum_experts(h);
    tn_host_residual(h, NULL, NULL, h->m->layers[layer].post_ffw_norm);
}

/* ---- mixed layers ---------------------------------------------------------------------------- */

typedef struct half_run {
    tn_host *h;
    const tn_weight *w; /* of all experts */
    const tn_layer *y;
    float *out; /* [n * used][n_ff] */
    int64_t grain;
} half_run;

/* Rows [row0, row1) of one tensor of every expert, results in the order of choices. */
static void half_rows(const half_run *r, int64_t row0, int64_t row1, int worker)
{
    tn_host *h = r->h;
    const int64_t rows = row1 - row0, n_ff = h->m->hp.n_ff;
    float *tile = h->tile[worker];
    for (int32_t i = 0; i < h->n_groups; i++) {
        const tn_host_group *g = &h->groups[i];
        const tn_weight *w = r->w == &r->y->ffn_gate ? &g->gate : &g->up;
        tn_host_rows(h, w, &g->x, tile, rows, row0, row1, worker);
        for (int64_t s = 0; s < g->x.n; s++)
            memcpy(r->out + h->slot_item[g->first + s] * n_ff + row0, tile + s * rows,
                   (size_t)rows * sizeof *tile);
    }
}

static void half_task(void *arg, int64_t begin, int64_t end, int worker)
{
    const half_run *r = arg;
    const int64_t n = r->h->m->hp.n_ff;
    const int64_t step = r->h->tile_floats / r->h->n / r->grain * r->grain;
    const int64_t row1 = end * r->grain < n ? end * r->grain : n;
    for (int64_t row = begin * r->grain; row < row1; row += step)
        half_rows(r, row, row + step < row1 ? row + step : row1, worker);
}

void tn_host_half(tn_host *h, int32_t layer, const tn_weight *w, const float *bias, float *y)
{
    if (!h->m->hp.n_expert) {
        tn_host_project(h, w, bias, y);
        return;
    }
    half_run r = {h, w, &h->m->layers[layer], y, tn_host_grain(h->n)};
    tn_pool_run(h->e->pool, half_task, &r, (h->m->hp.n_ff + r.grain - 1) / r.grain, 1);
}
