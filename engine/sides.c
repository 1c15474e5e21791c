/* Which side holds each tensor. Rules name tensors; what they leave open goes to the device. A plan
 * names all of them. */
#include "sides.h"
#include "engine.h"
#include "placement.h"

#include <stdio.h>
#include <string.h>

enum { default_granule = 256 };

/* ---- tensors --------------------------------------------------------------------------------- */

typedef struct maker {
    tn_load *l;
    const tn_placement *plan; /* NULL: rules */
    tn_rules rules;
    double *share; /* [n_tensors] of the device */
    bool *matched; /* [rules] */
    int64_t granule;
} maker;

/* That of the plan, which was made for the same tensors in the same order. */
static tn_status planned_share(const maker *k, int64_t i, const char *name, double *share)
{
    const tn_shape *s = &k->plan->shape;
    if (i >= s->n_tensors || strcmp(s->tensor[i].name, name) != 0)
        return tn_fail(k->l->err, TN_EARG, -1, "%s: the plan is for another model: it has no '%s'",
                       k->l->m->name, name);
    *share = (double)k->plan->planned.plan.share[i];
    return TN_OK;
}

/* That of the first rule which matches the name; without one, all of it. */
static tn_status find_share(maker *k, const tn_gguf_tensor *t, double *share)
{
    char name[96];
    snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
    if (k->plan) return planned_share(k, t - tn_gguf_tensor_at(k->l->m->gguf, 0), name, share);
    const int rule = tn_rules_match(&k->rules, name);
    *share = 1;
    if (rule == -1) return TN_OK;
    if (rule < 0)
        return tn_fail(k->l->err, TN_EARG, -1, "place: matching '%s' takes too long", name);
    *share = k->rules.rule[rule].share;
    k->matched[rule] = true;
    return TN_OK;
}

static int64_t index_of(const tn_load *l, int32_t layer, const char *name)
{
    char full[96];
    if (layer < 0)
        snprintf(full, sizeof full, "%s.weight", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    const tn_gguf_tensor *t = tn_gguf_find_tensor(l->m->gguf, full);
    return t ? t - tn_gguf_tensor_at(l->m->gguf, 0) : -1;
}

static bool between(double share)
{
    return share > 0 && share < 1;
}

/* How many of n units in multiples of `step`, leaving something for either side; 0 if that cannot
 * be. */
static int64_t part_of(double share, int64_t n, int64_t step)
{
    const int64_t steps = n / step;
    if (steps < 2) return 0;
    int64_t k = (int64_t)(share * (double)steps + 0.5);
    if (k < 1) k = 1;
    if (k > steps - 1) k = steps - 1;
    return k * step;
}

/* Neurons or experts of a layer that the rules give to the device; 0 where they do not split it. */
static int64_t ruled_part(const maker *k, const int64_t t[3])
{
    const tn_hparams *hp = &k->l->m->hp;
    const double share = k->share[t[0]];
    if (!between(share) || k->share[t[1]] != share || k->share[t[2]] != share) return 0;
    return hp->n_expert ? part_of(share, hp->n_expert, 1) : part_of(share, hp->n_ff, k->granule);
}

/* The same for a plan, in whole units; -1: its tensors are placed one by one. */
static int64_t planned_part(const maker *k, int32_t layer)
{
    const tn_plan_layer *y = &k->plan->planned.plan.layer[layer];
    const tn_shape_layer *z = &k->plan->shape.layer[layer];
    if (y->mixed || y->units == z->n_units) return -1;
    return (int64_t)y->units * (z->n_expert ? 1 : z->granule);
}

/* An FFN is split as a whole, or every tensor of it is on one side. What moves is on the host, see
 * boundary.h. */
static void place_ffn(maker *k, int32_t layer)
{
    const tn_hparams *hp = &k->l->m->hp;
    static const char *const names[2][3] = {{"ffn_gate", "ffn_up", "ffn_down"},
                                            {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}};
    int64_t t[3];
    for (int i = 0; i < 3; i++)
        if ((t[i] = index_of(k->l, layer, names[hp->n_expert > 0][i])) < 0) return;
    if (!hp->n_expert)
        k->l->place[t[2]].slab = k->plan ? k->plan->shape.layer[layer].granule : k->granule;
    const tn_expert_use *use = k->plan ? k->plan->shape.layer[layer].use : NULL;
    for (int i = 0; i < 3 && use; i++)
        k->l->place[t[i]].order = use->order;
    const bool moves = k->plan && tn_placement_moves(k->plan, layer);
    const int64_t part = moves ? 0 : k->plan ? planned_part(k, layer) : ruled_part(k, t);
    if (part < 0 || (!k->plan && !part)) return;
    for (int i = 0; i < 3; i++) {
        tn_tensor_place *p = &k->l->place[t[i]];
        p->host = true;
        if (!part)
            p->rows = p->cols = 0;
        else if (hp->n_expert)
            p->rows = p->rows / hp->n_expert * part;
        else if (i == 2)
            p->cols = part;
        else
            p->rows = part;
    }
}

static void place_head(maker *k)
{
    int64_t t = index_of(k->l, -1, "output");
    if (t < 0) t = index_of(k->l, -1, "token_embd");
    if (t < 0 || !between(k->share[t])) return;
    tn_tensor_place *p = &k->l->place[t];
    const int64_t part = part_of(k->share[t], p->rows, k->plan ? 16 : k->granule);
    if (!part) return;
    p->rows = part;
    p->host = true;
}

/* Neurons that every type of down can be cut at. */
static int64_t granule_of(const tn_load *l)
{
    int64_t g = l->opt->granule ? l->opt->granule : default_granule, block = 16;
    for (int32_t i = 0; i < l->m->hp.n_layers; i++) {
        const int64_t t = index_of(l, i, "ffn_down");
        if (t < 0) continue;
        const tn_type_info *info = tn_type_get(tn_gguf_tensor_at(l->m->gguf, (uint64_t)t)->type);
        if (info && info->block > block) block = info->block; /* all are powers of two */
    }
    return (g + block - 1) / block * block;
}

static tn_status check_device(const maker *k, const tn_gguf_tensor *t)
{
    const tn_device *d = k->l->m->engine->device;
    const tn_device_shape shape = {.cols = (int64_t)t->shape[0]};
    const uint32_t type = k->l->exact ? TN_TYPE_F32 : t->type;
    if (d->ops->can_do(TN_DOP_MATVEC, type, shape)) return TN_OK;
    const tn_type_info *info = tn_type_get(t->type);
    return tn_fail(k->l->err, TN_EUNSUPPORTED, t->header_offset,
                   "%s: the device cannot compute with tensor '%.*s' of type %s and %lld columns; "
                   "place it on the host",
                   k->l->m->name, (int)t->name.len, t->name.data, info ? info->name : "?",
                   (long long)t->shape[0]);
}

/* Rows of activations on the device are whole words of 16 bytes. */
static tn_status check_model(const maker *k)
{
    const tn_hparams *hp = &k->l->m->hp;
    const tn_device *d = k->l->m->engine->device;
    const tn_device_shape route = {.cols = hp->n_expert, .used = hp->n_expert_used};
    if (hp->n_embd % 4 || hp->n_ff % 4)
        return tn_fail(k->l->err, TN_EUNSUPPORTED, -1,
                       "%s: the device computes only with widths that 4 divides, not %d and %d",
                       k->l->m->name, hp->n_embd, hp->n_ff);
    if (hp->n_expert && !d->ops->can_do(TN_DOP_ROUTE, TN_TYPE_F32, route))
        return tn_fail(k->l->err, TN_EUNSUPPORTED, -1,
                       "%s: the device cannot choose %d of %d experts", k->l->m->name,
                       hp->n_expert_used, hp->n_expert);
    return TN_OK;
}

static tn_status place_all(maker *k)
{
    tn_load *l = k->l;
    const uint64_t n = tn_gguf_n_tensors(l->m->gguf);
    tn_status s = TN_OK;
    for (uint64_t i = 0; i < n && !s; i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(l->m->gguf, i);
        s = find_share(k, t, &k->share[i]);
        const bool device = k->share[i] >= 0.5;
        l->place[i] = (tn_tensor_place){.rows = (int64_t)(t->shape[1] * t->shape[2]),
                                        .cols = (int64_t)t->shape[0],
                                        .host = !device};
    }
    for (int32_t i = 0; i < l->m->hp.n_layers && !s; i++)
        place_ffn(k, i);
    if (!s) place_head(k);
    for (uint64_t i = 0; i < n && !s; i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(l->m->gguf, i);
        tn_tensor_place *p = &l->place[i];
        const bool whole =
            p->rows == (int64_t)(t->shape[1] * t->shape[2]) && p->cols == (int64_t)t->shape[0];
        if (p->host && whole) p->rows = p->cols = 0;
        if (p->rows && t->n_dims > 1) s = check_device(k, t);
    }
    return s;
}

static tn_str tensor_name(const void *of, int64_t i)
{
    return tn_gguf_tensor_at(of, (uint64_t)i)->name;
}

static void warn_unmatched(const maker *k)
{
    const tn_gguf *g = k->l->m->gguf;
    const tn_names names = {tensor_name, g, (int64_t)tn_gguf_n_tensors(g)};
    char near_names[100];
    for (size_t i = 0; i < k->rules.n; i++) {
        if (k->matched[i]) continue;
        tn_rules_near(&k->rules.rule[i], &names, near_names, sizeof near_names);
        tn_engine_log(k->l->m->engine, TN_LOG_WARN, "place: no tensor matches '%s'%s%s",
                      k->rules.rule[i].regex, *near_names ? "; near: " : "", near_names);
    }
}

static tn_status make(maker *k)
{
    tn_load *l = k->l;
    const size_t n = (size_t)tn_gguf_n_tensors(l->m->gguf);
    for (size_t i = 0; i < l->opt->n_place; i++) {
        const tn_status s = tn_rules_add(&k->rules, l->opt->place[i], l->err);
        if (s) return s;
    }
    k->share = tn_alloc(l->m->a, n, sizeof *k->share);
    k->matched = tn_alloc(l->m->a, k->rules.n, sizeof *k->matched);
    l->place = tn_alloc(l->m->a, n, sizeof *l->place);
    if (!k->share || !k->matched || !l->place)
        return tn_fail_nomem(l->err, n * sizeof *l->place, "placement");
    k->granule = granule_of(l);
    const tn_status s = check_model(k);
    return s ? s : place_all(k);
}

static tn_status check_plan(const tn_load *l)
{
    const tn_model_options *o = l->opt;
    const tn_placement *p = o->plan;
    if (o->n_place || o->granule)
        return tn_fail(l->err, TN_EARG, -1, "plan: it decides about place and granule");
    if ((uint64_t)p->shape.n_tensors != tn_gguf_n_tensors(l->m->gguf) ||
        p->shape.n_layers != l->m->hp.n_layers)
        return tn_fail(l->err, TN_EARG, -1, "%s: the plan is for another model", l->m->name);
    for (int32_t i = 0; i < p->shape.n_layers; i++)
        if (p->planned.plan.layer[i].device >= l->m->engine->devices.n)
            return tn_fail(l->err, TN_EARG, -1,
                           "%s: the plan needs device %d, and the engine has %d", l->m->name,
                           p->planned.plan.layer[i].device, l->m->engine->devices.n);
    return TN_OK;
}

tn_status tn_sides_make(tn_load *l)
{
    const tn_allocator *a = l->m->a;
    if (!l->m->engine->device) {
        if (!l->opt->n_place && !l->opt->plan) return TN_OK;
        return tn_fail(l->err, TN_EARG, -1, "%s: the engine has no device",
                       l->opt->plan ? "plan" : "place");
    }
    maker k = {.l = l, .plan = l->opt->plan, .rules.a = a};
    tn_status s = k.plan ? check_plan(l) : TN_OK;
    if (!s) s = make(&k);
    if (!s) s = tn_segments_make(l);
    if (!s) warn_unmatched(&k);
    tn_rules_free(&k.rules);
    tn_free(a, k.share);
    tn_free(a, k.matched);
    return s;
}

bool tn_sides_attend(const tn_layer *y)
{
    const bool k = !y->attn_k.data, v = !y->attn_v.data;
    return k == v ? k : !y->attn_output.data;
}

/* Where a weight is computed; the host may have it besides, for when the device drops it. */
static tn_side side_of(const tn_weight *w, const tn_dweight *d)
{
    const bool whole = tn_on_device(d) && d->rows == w->rows && d->cols == w->cols;
    return w->data && !whole ? TN_ON_HOST : TN_ON_DEVICE;
}

tn_sides tn_sides_of(const tn_layer *y, const tn_layer_device *d)
{
    tn_sides s = {.q = side_of(&y->attn_q, &d->attn_q),
                  .k = side_of(&y->attn_k, &d->attn_k),
                  .v = side_of(&y->attn_v, &d->attn_v),
                  .kv = d->attends ? TN_ON_DEVICE : TN_ON_HOST,
                  .out = side_of(&y->attn_output, &d->attn_output),
                  .router = side_of(&y->ffn_gate_inp, &d->ffn_gate_inp),
                  .gate = side_of(&y->ffn_gate, &d->ffn_gate),
                  .up = side_of(&y->ffn_up, &d->ffn_up),
                  .down = side_of(&y->ffn_down, &d->ffn_down)};
    s.attn = s.q == s.k && s.q == s.v && s.q == s.kv ? s.q : TN_MIXED;
    s.ffn = s.gate == s.up && s.gate == s.down ? s.gate : TN_MIXED;
    if (s.gate == TN_ON_HOST && tn_is_split(&y->ffn_gate, &d->ffn_gate)) s.ffn = TN_ON_BOTH;
    return s;
}
