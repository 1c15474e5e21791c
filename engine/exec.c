/* Runs each operation on the side that holds its weights, keeps the sticky status, and counts. */
#include "exec.h"
#include "exec_host.h"

struct tn_exec {
    const tn_model *m;
    tn_host host;
    tn_batch batch;
    int64_t n, pos0; /* rows still computed */
    tn_status status;
    tn_side_stats on_host;
    double started; /* when the host began the running operation */
};

tn_status tn_exec_new(tn_exec **out, const tn_model *m, const tn_kv *kv, int32_t n_batch,
                      tn_error *err)
{
    *out = NULL;
    tn_exec *x = tn_alloc(m->a, 1, sizeof *x);
    if (!x) return tn_fail_nomem(err, sizeof *x, "the executor");
    x->m = m;
    tn_status s = tn_host_init(&x->host, m, kv, n_batch, err);
    if (s)
        tn_exec_free(x);
    else
        *out = x;
    return s;
}

void tn_exec_free(tn_exec *x)
{
    if (!x) return;
    tn_host_free(&x->host);
    tn_free(x->m->a, x);
}

/* False if there is nothing to do: after a failure, or when no row is left. */
static bool host_begin(tn_exec *x)
{
    if (x->status || !x->n) return false;
    x->started = tn_now();
    return true;
}

static void host_end(tn_exec *x)
{
    x->on_host.seconds += tn_now() - x->started;
}

static void count(tn_exec *x, const tn_weight *w)
{
    x->on_host.weight_bytes += (uint64_t)w->rows * w->row_bytes;
}

void tn_exec_begin(tn_exec *x, const tn_batch *b)
{
    x->batch = *b;
    x->n = b->n;
    x->pos0 = b->pos0;
    x->status = TN_OK;
    if (!host_begin(x)) return;
    tn_host_begin(&x->host, b->tokens, b->n, b->pos0);
    host_end(x);
}

void tn_exec_keep_last(tn_exec *x, int64_t n)
{
    if (!host_begin(x)) return;
    tn_host_keep_last(&x->host, n);
    x->pos0 += x->n - n;
    x->n = n;
    host_end(x);
}

void tn_exec_embed(tn_exec *x)
{
    if (!host_begin(x)) return;
    tn_host_embed(&x->host);
    x->on_host.weight_bytes += (uint64_t)x->n * x->m->token_embd.row_bytes;
    host_end(x);
}

void tn_exec_qkv(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    const tn_layer *y = &x->m->layers[layer];
    tn_host_qkv(&x->host, layer);
    count(x, &y->attn_q);
    count(x, &y->attn_k);
    count(x, &y->attn_v);
    host_end(x);
}

void tn_exec_attend(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    const tn_hparams *hp = &x->m->hp;
    tn_host_attend(&x->host, layer);
    int64_t keys = x->pos0 + x->n;
    if (x->m->layers[layer].local && keys > hp->n_swa + x->n - 1) keys = hp->n_swa + x->n - 1;
    x->on_host.kv_bytes +=
        (uint64_t)keys * tn_kv_position_bytes(hp, x->host.kv->type) / (uint64_t)hp->n_layers;
    host_end(x);
}

void tn_exec_attn_out(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    tn_host_attn_out(&x->host, layer);
    count(x, &x->m->layers[layer].attn_output);
    host_end(x);
}

void tn_exec_ffn_in(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    tn_host_ffn_in(&x->host, layer);
    count(x, &x->m->layers[layer].ffn_gate);
    count(x, &x->m->layers[layer].ffn_up);
    host_end(x);
}

void tn_exec_ffn_out(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    tn_host_ffn_out(&x->host, layer);
    count(x, &x->m->layers[layer].ffn_down);
    host_end(x);
}

void tn_exec_route(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    tn_host_route(&x->host, layer);
    count(x, &x->m->layers[layer].ffn_gate_inp);
    host_end(x);
}

void tn_exec_experts_in(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    tn_host_experts_in(&x->host, layer);
    for (int32_t i = 0; i < x->host.n_groups; i++) {
        count(x, &x->host.groups[i].gate);
        count(x, &x->host.groups[i].up);
    }
    host_end(x);
}

void tn_exec_experts_out(tn_exec *x, int32_t layer)
{
    if (!host_begin(x)) return;
    tn_host_experts_out(&x->host, layer);
    for (int32_t i = 0; i < x->host.n_groups; i++)
        count(x, &x->host.groups[i].down);
    host_end(x);
}

tn_status tn_exec_layer_done(tn_exec *x)
{
    const tn_batch *b = &x->batch;
    if (!x->status && b->cancel && b->cancel(b->user))
        x->status = tn_fail(b->err, TN_ECANCELED, -1, "the evaluation was canceled");
    return x->status;
}

tn_status tn_exec_head(tn_exec *x, int64_t first, int64_t n_rows, float *logits)
{
    if (!host_begin(x)) return x->status;
    tn_host_head(&x->host, first, n_rows, logits);
    count(x, &x->m->output);
    host_end(x);
    return x->status;
}

void tn_exec_stats(const tn_exec *x, tn_stats *s)
{
    s->host = x->on_host;
}

void tn_exec_stats_reset(tn_exec *x)
{
    x->on_host = (tn_side_stats){0};
}
