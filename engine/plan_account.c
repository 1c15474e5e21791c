/* What a plan amounts to: the elastic boundary, memory, predicted times. */
#include "plan_chain.h"

#include <math.h>
#include <string.h>

/* Prices that differ by no more are equal, and the first layer serves: a move touches few layers.
 */
static const double tie = 1e-6;

/* ---- the boundary ---------------------------------------------------------------------------- */

/* Decode time of each layer's FFN for every number of units, shared by layers that are alike. */
typedef struct curves {
    const tn_plan *plan;
    const tn_cost *k;
    double **of;                   /* [n_layers]: [n_units + 1], or NULL where units do not move */
    bool *owner;                   /* [n_layers] */
    uint64_t room[TN_MAX_DEVICES]; /* for units that move */
    uint64_t used[TN_MAX_DEVICES];
} curves;

static bool movable(const tn_plan *plan, const tn_cost *k, int32_t l)
{
    int32_t fixed, n_modes;
    return plan->layer[l].device != TN_HOST &&
           tn_cost_ffn_kind(k, l, &fixed, &n_modes) == TN_FFN_FREE;
}

static bool same_curve(const curves *c, int32_t x, int32_t y)
{
    const tn_plan_layer *a = &c->plan->layer[x], *b = &c->plan->layer[y];
    return c->of[y] && c->k->s->layer[x].cls == c->k->s->layer[y].cls && a->attn == b->attn &&
           a->device == b->device;
}

static bool make_curve(curves *c, int32_t l, const tn_allocator *a)
{
    if (!movable(c->plan, c->k, l)) return true;
    for (int32_t j = l - 1; j >= 0; j--)
        if (same_curve(c, l, j)) {
            c->of[l] = c->of[j];
            return true;
        }
    const tn_shape_layer *y = &c->k->s->layer[l];
    double *t = tn_alloc(a, (size_t)y->n_units + 1, sizeof *t);
    if (!t) return false;
    for (int32_t u = 0; u <= y->n_units; u++)
        t[u] = tn_cost_ffn(c->k, l, c->plan->layer[l].device, c->plan->layer[l].attn, u, 1);
    c->of[l] = t;
    c->owner[l] = true;
    return true;
}

/* Bytes on device d that do not move while `live` tokens are held; the KV alone in *kv. */
static uint64_t rigid(const tn_plan *plan, const tn_cost *k, int32_t d, int64_t live, uint64_t *kv)
{
    uint64_t bytes = 0;
    *kv = 0;
    for (int32_t l = 0; l < plan->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        if (y->device != d) continue;
        bytes += tn_cost_attn_bytes(k, l, y->attn);
        if (y->attn) *kv += tn_shape_kv_bytes(&k->s->layer[l], &k->c, live);
        if (!movable(plan, k, l)) bytes += tn_cost_ffn_device_bytes(k, l, y->ffn_mode);
    }
    if (tn_plan_head_device(plan) == d) bytes += tn_shape_head_bytes(k->s, plan->head_units);
    for (int32_t i = 0; k->fixed && d == 0 && i < k->s->n_tensors; i++)
        if (k->s->tensor[i].layer < 0 && i != k->s->head && k->fixed[i] > 0)
            bytes += k->s->tensor[i].bytes;
    return bytes;
}

/* The next drop of a layer: one unit, or from `whole` all the way down to where it pays again. */
static double drop_price(const curves *c, int32_t l, int32_t units)
{
    const tn_shape_layer *y = &c->k->s->layer[l];
    const double more = c->of[l][units - 1] - c->of[l][units];
    const uint64_t bytes = tn_shape_ffn_bytes(y, units) - tn_shape_ffn_bytes(y, units - 1);
    return more / (double)bytes;
}

static void drop_units(curves *c, int32_t d, int32_t *units)
{
    while (c->used[d] > c->room[d]) {
        double best = 0;
        int32_t at = -1;
        for (int32_t l = 0; l < c->plan->n_layers; l++) {
            if (!c->of[l] || c->plan->layer[l].device != d || units[l] == 0) continue;
            const double price = drop_price(c, l, units[l]);
            if (at < 0 || price < best - tie * fabs(best)) best = price, at = l;
        }
        if (at < 0) return;
        const tn_shape_layer *y = &c->k->s->layer[at];
        c->used[d] -= tn_shape_ffn_bytes(y, units[at]) - tn_shape_ffn_bytes(y, units[at] - 1);
        units[at]--;
    }
}

/* What a layer gains per byte with one unit more, or with all of them; *to is the better number. */
static double gain(const curves *c, int32_t l, int32_t units, uint64_t room, int32_t *to)
{
    const tn_shape_layer *y = &c->k->s->layer[l];
    double best = 0;
    const int32_t steps[2] = {units + 1, y->n_units};
    for (int i = 0; i < 2; i++) {
        const uint64_t bytes = tn_shape_ffn_bytes(y, steps[i]) - tn_shape_ffn_bytes(y, units);
        const double less = c->of[l][units] - c->of[l][steps[i]];
        if (bytes == 0 || bytes > room || !(less / (double)bytes > best)) continue;
        best = less / (double)bytes;
        *to = steps[i];
    }
    return best;
}

static void promote_units(curves *c, int32_t d, int32_t *units)
{
    for (;;) {
        double best = 0;
        int32_t at = -1, to = 0, n = 0;
        for (int32_t l = 0; l < c->plan->n_layers; l++) {
            if (!c->of[l] || c->plan->layer[l].device != d || units[l] == c->k->s->layer[l].n_units)
                continue;
            const double g = gain(c, l, units[l], c->room[d] - c->used[d], &n);
            if (g > best + tie * best) best = g, at = l, to = n;
        }
        if (at < 0) return;
        const tn_shape_layer *y = &c->k->s->layer[at];
        c->used[d] += tn_shape_ffn_bytes(y, to) - tn_shape_ffn_bytes(y, units[at]);
        units[at] = to;
    }
}

/* room: for units that move. */
static void move_units(curves *c, const uint64_t room[TN_MAX_DEVICES], int32_t *units)
{
    for (int32_t d = 0; d < c->k->p->n_devices; d++) {
        c->room[d] = room[d];
        c->used[d] = 0;
        for (int32_t l = 0; l < c->plan->n_layers; l++)
            if (c->of[l] && c->plan->layer[l].device == d)
                c->used[d] += tn_shape_ffn_bytes(&c->k->s->layer[l], units[l]);
        if (c->used[d] > c->room[d] && c->plan->dropping)
            drop_units(c, d, units);
        else if (c->used[d] < c->room[d])
            promote_units(c, d, units);
    }
}

tn_status tn_plan_units_in(const tn_plan *plan, const tn_cost *k,
                           const uint64_t room[TN_MAX_DEVICES], int32_t *units,
                           const tn_allocator *a, tn_error *err)
{
    for (int32_t l = 0; l < plan->n_layers; l++)
        units[l] = plan->layer[l].ffn_mode;
    if (!plan->elastic || k->c.fixed) return TN_OK;
    curves c = {.plan = plan, .k = k};
    c.of = tn_alloc(a, (size_t)plan->n_layers, sizeof *c.of);
    c.owner = tn_alloc(a, (size_t)plan->n_layers, sizeof *c.owner);
    bool ok = c.of && c.owner;
    for (int32_t l = 0; l < plan->n_layers && ok; l++)
        ok = make_curve(&c, l, a);
    if (ok) move_units(&c, room, units);
    for (int32_t l = 0; c.of && c.owner && l < plan->n_layers; l++)
        if (c.owner[l]) tn_free(a, c.of[l]);
    tn_free(a, c.of);
    tn_free(a, c.owner);
    return ok ? TN_OK : tn_fail_nomem(err, (size_t)plan->n_layers * sizeof *c.of, "the boundary");
}

tn_status tn_plan_units(const tn_plan *plan, const tn_cost *k, int64_t live, int32_t *units,
                        const tn_allocator *a, tn_error *err)
{
    uint64_t room[TN_MAX_DEVICES] = {0};
    for (int32_t l = 0; l < plan->n_layers; l++)
        units[l] = plan->layer[l].ffn_mode;
    if (live == (int64_t)plan->live) return TN_OK;
    for (int32_t d = 0; d < k->p->n_devices; d++) {
        uint64_t kv;
        const uint64_t other = rigid(plan, k, d, live, &kv) + k->device_buffers;
        const uint64_t budget = tn_cost_budget(k, d);
        room[d] = budget > other + kv ? budget - other - kv : 0;
    }
    return tn_plan_units_in(plan, k, room, units, a, err);
}

/* ---- levels ---------------------------------------------------------------------------------- */

static int64_t round_up(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

int64_t tn_plan_level_step(int64_t page, int64_t cap)
{
    enum { most = 2048, fraction = 16 };
    const int64_t part = cap / fraction;
    return round_up(part < 1 ? 1 : part < most ? part : most, page);
}

int64_t tn_plan_level(const tn_plan *plan, int64_t page, int64_t cap, int64_t live)
{
    const int64_t planned = round_up((int64_t)plan->live, page);
    int64_t level = round_up(live, tn_plan_level_step(page, cap));
    if (live <= planned && (level > planned || live == 0)) level = planned;
    return level < cap ? level : cap;
}

/* The level of one context that has grown from nothing to `live` tokens. */
static int64_t grown_level(const tn_plan *plan, const tn_constraints *c, int64_t live)
{
    const int64_t page = c->page_size, cap = round_up(c->n_ctx, page);
    const int64_t begin = tn_plan_level(plan, page, cap, 0);
    const int64_t first = tn_plan_level(plan, page, cap, 1);
    const int64_t least = first + tn_plan_level_step(page, cap) < begin ? first : begin;
    const int64_t level = tn_plan_level(plan, page, cap, live);
    return level > least ? level : least;
}

tn_status tn_plan_units_grown(const tn_plan *plan, const tn_cost *k, int64_t live, int32_t *units,
                              const tn_allocator *a, tn_error *err)
{
    const int64_t level = grown_level(plan, &k->c, live), planned = (int64_t)plan->live;
    const bool as_planned = level == round_up(planned, k->c.page_size);
    return tn_plan_units(plan, k, as_planned ? planned : level < k->c.n_ctx ? level : k->c.n_ctx,
                         units, a, err);
}

/* ---- times ----------------------------------------------------------------------------------- */

int tn_plan_head_device(const tn_plan *plan)
{
    return plan->layer[plan->n_layers - 1].device;
}

static int home_of(const tn_plan *plan, int32_t l)
{
    return l >= 0 && plan->layer[l].attn ? plan->layer[l].device : TN_HOST;
}

double tn_plan_step(const tn_plan *plan, const tn_cost *k, int64_t c, const int32_t *units)
{
    double t = 0;
    for (int32_t l = 0; l < plan->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        t += tn_cost_move(k, home_of(plan, l - 1), home_of(plan, l), 1) +
             tn_cost_attn(k, l, y->device, y->attn, 1, 1,
                          tn_cost_attended(c, 1, k->s->layer[l].window)) +
             tn_cost_ffn(k, l, y->device, y->attn, units[l], 1);
    }
    return t + tn_cost_head(k, tn_plan_head_device(plan), plan->layer[plan->n_layers - 1].attn,
                            plan->head_units);
}

double tn_plan_request(const tn_plan *plan, const tn_cost *k)
{
    double t = 0;
    for (int32_t l = 0; l < plan->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        t += tn_cost_move_request(k, home_of(plan, l - 1), home_of(plan, l)) +
             tn_cost_layer_request(k, l, y->device, y->attn, y->ffn_mode);
    }
    return t + tn_cost_head_request(k, tn_plan_head_device(plan),
                                    plan->layer[plan->n_layers - 1].attn, plan->head_units);
}

uint64_t tn_plan_carried(const tn_plan *plan, const tn_cost *k)
{
    uint64_t bytes = 0;
    for (int32_t l = 0; l < plan->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        const uint64_t all = k->s->layer[l].ffn_bytes;
        if (y->device == TN_HOST) continue;
        if (plan->elastic && !k->c.fixed && movable(plan, k, l))
            bytes += plan->dropping ? all : all - tn_cost_ffn_device_bytes(k, l, y->ffn_mode);
        else if (tn_cost_prefill(k, l, y->device, y->attn, 0, k->c.n_batch).way !=
                 TN_PREFILL_IN_PLACE)
            bytes += all - tn_cost_ffn_device_bytes(k, l, y->ffn_mode);
        if (tn_cost_attn_streams(k, l, y->device, y->attn, k->c.n_batch))
            bytes += tn_cost_projections(k, l);
    }
    return bytes;
}

/* The same plan priced for a request of `prompt` tokens and none generated. */
static double prompt_time(const tn_plan *plan, const tn_cost *k, int64_t prompt)
{
    tn_cost other = *k;
    other.c.request.n_prompt = prompt;
    other.c.request.n_gen = 0;
    return tn_plan_request(plan, &other);
}

static bool streams(const tn_plan *plan, const tn_cost *k, int64_t n)
{
    for (int32_t l = 0; l < plan->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        if (tn_cost_prefill(k, l, y->device, y->attn, y->units, n).way != TN_PREFILL_IN_PLACE)
            return true;
    }
    return false;
}

/* The larger the batch, the more it pays. */
static int64_t streamed_from(const tn_plan *plan, const tn_cost *k)
{
    int64_t no = 1, yes = k->c.n_batch;
    if (!streams(plan, k, yes)) return 0;
    while (yes - no > 1) {
        const int64_t n = no + (yes - no) / 2;
        if (streams(plan, k, n))
            yes = n;
        else
            no = n;
    }
    return yes;
}

static tn_status predict(tn_plan *plan, const tn_cost *k, const tn_allocator *a, tn_error *err)
{
    static const int64_t depths[] = {0, 4096, 16384};
    tn_prediction *out = &plan->predicted;
    int32_t *units = tn_alloc(a, (size_t)plan->n_layers, sizeof *units);
    if (!units) return tn_fail_nomem(err, (size_t)plan->n_layers * sizeof *units, "the prediction");
    const tn_request *r = &k->c.request;
    const int64_t prompt = r->n_prompt ? r->n_prompt : 1;
    out->request_s = tn_plan_request(plan, k);
    out->ttft_s = prompt_time(plan, k, prompt);
    out->prefill_tok_s = (double)prompt / out->ttft_s;
    const double prefill = r->n_prompt ? out->ttft_s : 0;
    out->step_s = r->n_gen ? (out->request_s - prefill) / (double)r->n_gen : 0;
    out->streamed_from = streamed_from(plan, k);
    tn_status s = TN_OK;
    for (size_t i = 0; i < sizeof depths / sizeof *depths + 1 && !s; i++) {
        const int64_t depth = i < 3 ? depths[i] : k->c.n_ctx;
        if (i < 3 && depth >= k->c.n_ctx) continue;
        const int64_t before =
            depth < k->c.n_ctx ? depth : k->c.n_ctx - 1; /* the token is live, too */
        s = tn_plan_units_grown(plan, k, before + 1, units, a, err);
        if (s) break;
        out->depth[out->n_depths] = depth;
        out->decode_tok_s[out->n_depths++] = 1.0 / tn_plan_step(plan, k, before, units);
    }
    tn_free(a, units);
    return s;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void fill_shares(tn_plan *plan, const tn_cost *k)
{
    const tn_shape *s = k->s;
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const tn_shape_tensor *t = &s->tensor[i];
        double share = 0;
        if (t->layer >= 0 && plan->layer[t->layer].device != TN_HOST)
            share = tn_cost_share(k, i, plan->layer[t->layer].attn, plan->layer[t->layer].ffn_mode);
        else if (i == s->head)
            share = (double)tn_shape_head_bytes(s, plan->head_units) / (double)t->bytes;
        else if (t->part == TN_PART_HEAD_NORM && (!k->fixed || isnan(k->fixed[i])))
            share = plan->layer[plan->n_layers - 1].attn;
        else if (t->layer < 0)
            share = tn_cost_share(k, i, false, 0);
        plan->share[i] = (float)share;
    }
}

static void device_memory(tn_plan *plan, const tn_cost *k, int32_t d)
{
    tn_plan_memory *m = &plan->device[d];
    uint64_t kv_full;
    m->budget = tn_cost_budget(k, d);
    m->weights = rigid(plan, k, d, k->c.n_ctx, &kv_full);
    m->weights = rigid(plan, k, d, (int64_t)plan->live, &m->kv);
    m->kv_full = kv_full;
    bool serves = m->weights > 0;
    for (int32_t l = 0; l < plan->n_layers; l++) {
        if (plan->layer[l].device != d) continue;
        serves = true; /* batches are streamed to it, if nothing else */
        if (movable(plan, k, l))
            m->weights += tn_shape_ffn_bytes(&k->s->layer[l], plan->layer[l].units);
    }
    m->buffers = serves ? k->device_buffers : 0;
}

static void host_memory(tn_plan *plan, const tn_cost *k)
{
    tn_plan_memory *m = &plan->host;
    m->budget = tn_cost_host_budget(k);
    m->buffers = tn_cost_host_buffers(k) - k->s->embed_bytes;
    m->weights = k->s->weight_bytes;
    for (int32_t d = 0; d < k->p->n_devices; d++)
        m->weights -= plan->device[d].weights;
    if (k->s->tied) m->weights += tn_shape_head_bytes(k->s, plan->head_units);
    for (int32_t l = 0; l < plan->n_layers; l++) {
        const tn_plan_layer *y = &plan->layer[l];
        if (!y->attn)
            m->kv += tn_shape_kv_bytes(&k->s->layer[l], &k->c, k->c.n_ctx);
        if (plan->dropping && movable(plan, k, l))
            m->masters += tn_shape_ffn_bytes(&k->s->layer[l], y->units);
    }
    m->kv_full = m->kv;
}

static uint64_t excess(const tn_plan_memory *m, uint64_t kv)
{
    const uint64_t used = m->weights + kv + m->buffers + m->masters;
    return used > m->budget ? used - m->budget : 0;
}

tn_status tn_plan_account(tn_plan *plan, const tn_cost *k, const tn_allocator *a, tn_error *err)
{
    plan->host = (tn_plan_memory){.budget = 0};
    plan->short_bytes = 0;
    plan->predicted = (tn_prediction){.n_depths = 0};
    fill_shares(plan, k);
    for (int32_t d = 0; d < k->p->n_devices; d++) {
        plan->device[d] = (tn_plan_memory){.budget = 0};
        device_memory(plan, k, d);
        plan->short_bytes += excess(&plan->device[d], plan->device[d].kv);
    }
    host_memory(plan, k);
    plan->short_bytes += excess(&plan->host, plan->host.kv);
    return predict(plan, k, a, err);
}
