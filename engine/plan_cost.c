#include "plan_cost.h"

#include <math.h>
#include <string.h>

enum {
    attn_ops = 4,
    ffn_ops = 2,
    max_used = 512,
    stream_least = 9 /* tokens: fewer are a matter of mat-vecs, which the host does as well */
};

static const double pinned_share_of_ram = 0.5; /* no more of it is page-locked */

/* ---- rates ----------------------------------------------------------------------------------- */

static const tn_side_rates *rates(const tn_cost *k, int d)
{
    return d == TN_HOST ? &k->p->host.rate : &k->p->device[d].rate;
}

static double scale(const tn_cost *k, int d)
{
    return d == TN_HOST ? k->host_scale : 1.0;
}

static double op_floor(const tn_cost *k, int d)
{
    return rates(k, d)->op_s;
}

double tn_cost_met(const tn_shape_layer *l, int32_t from, int32_t to, int64_t n)
{
    if (!l->use) return (to - from) * (1.0 - pow(1.0 - (double)l->n_used / l->n_expert, (double)n));
    if (n == 1) return l->use->sum[to] - l->use->sum[from];
    double met = 0;
    for (int32_t e = from; e < to; e++)
        met -= expm1((double)n * log1p(-l->use->chance[e]));
    return met;
}

/* Vectors that a matrix of the tensor is multiplied with at once when n tokens are evaluated. */
static int64_t vectors(const tn_shape_layer *l, int64_t n)
{
    const int64_t each = l && l->n_expert ? n * l->n_used / l->n_expert : n;
    return each > 1 ? each : 1;
}

/* A token's choices among those experts, expected number. */
static double chosen(const tn_shape_layer *l, int32_t from, int32_t to)
{
    return (tn_shape_hit_share(l, to) - tn_shape_hit_share(l, from)) * l->n_used;
}

/* Products of n vectors on one side, bound by bytes or by arithmetic: a share of the tensor is
 * read, and a share of its weights is multiplied with each vector. experts: the layer of a tensor
 * of experts, else NULL. */
static double product_time(const tn_cost *k, const tn_shape_tensor *t, int d, int64_t n,
                           const tn_shape_layer *experts, double read, double used)
{
    const double by_bytes = read * (double)t->bytes / (rates(k, d)->matvec[t->type] * scale(k, d));
    if (n == 1 || t->part == TN_PART_NORM || t->part == TN_PART_FFN_NORM) return by_bytes;
    const double flops = tn_profile_flops(rates(k, d), vectors(experts, n));
    return fmax(by_bytes, 2.0 * used * (double)t->params * (double)n / (flops * scale(k, d)));
}

/* All of a tensor; of experts what n tokens meet. */
static double tensor_time(const tn_cost *k, const tn_shape_tensor *t, int d, int64_t n)
{
    const tn_shape_layer *l = t->layer >= 0 ? &k->s->layer[t->layer] : NULL;
    if (t->n_expert <= 1 || !l || !l->n_expert) return product_time(k, t, d, n, NULL, 1, 1);
    return product_time(k, t, d, n, l, tn_cost_met(l, 0, l->n_expert, n) / l->n_expert,
                        (double)l->n_used / l->n_expert);
}

void tn_cost_init(tn_cost *k, const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                  const float *fixed)
{
    *k = (tn_cost){.s = s, .p = p, .c = *c, .fixed = fixed};
    k->host_scale = tn_profile_scale(&p->host, c->threads);
    tn_cost_pin(k, c->mapped ? 0 : c->pinned > 0 ? c->pinned : tn_cost_pinned(k, s->weight_bytes));
    k->device_buffers = tn_cost_device_buffers(k);
}

uint64_t tn_cost_pin_limit(uint64_t memory_bytes)
{
    return (uint64_t)(pinned_share_of_ram * (double)memory_bytes);
}

double tn_cost_pinned(const tn_cost *k, uint64_t bytes)
{
    const double limit = (double)tn_cost_pin_limit(k->p->host.memory_bytes);
    return limit < (double)bytes ? limit / (double)bytes : 1.0;
}

void tn_cost_pin(tn_cost *k, double share)
{
    k->pinned = share >= 1.0;
    if (k->pinned) share = 1.0;
    for (int32_t d = 0; d < k->p->n_devices; d++)
        k->link[d] =
            1.0 / (share / k->p->device[d].pinned + (1.0 - share) / k->p->device[d].pageable);
}

double tn_cost_join(double x, double y, double x_kept, double y_kept)
{
    if (!(x > 0)) return y;
    if (!(y > 0)) return x;
    const double x_ends = x / x_kept, y_ends = y / y_kept;
    return x_ends < y_ends ? x_ends + y - x_ends * y_kept : y_ends + x - y_ends * x_kept;
}

static double join_sides(const tn_cost *k, double host, double device)
{
    return tn_cost_join(host, device, k->p->contended.host_beside_device,
                        k->p->contended.device_beside_host);
}

double tn_cost_hop(const tn_cost *k, int d, int64_t n)
{
    const tn_profile_device *dev = &k->p->device[d];
    const double bytes =
        n > 1 ? (double)n * k->s->n_embd * sizeof(float) : 0; /* one vector: latency */
    return 0.5 * dev->cross_s + bytes / dev->pinned;
}

double tn_cost_move(const tn_cost *k, int from, int to, int64_t n)
{
    if (from == to) return 0;
    return (from == TN_HOST ? 0 : tn_cost_hop(k, from, n)) +
           (to == TN_HOST ? 0 : tn_cost_hop(k, to, n));
}

double tn_cost_attended(int64_t start, int64_t n, int64_t window)
{
    const int64_t full = start + n; /* token i attends to min(start + i + 1, window) positions */
    if (!window || full <= window)
        return (double)n * (double)start + 0.5 * (double)n * (double)(n + 1);
    if (start >= window) return (double)n * (double)window;
    const int64_t before = window - start;
    return tn_cost_attended(start, before, 0) + (double)(n - before) * (double)window;
}

/* ---- overrides ------------------------------------------------------------------------------- */

static float fixed_share(const tn_cost *k, int32_t i)
{
    return k->fixed ? k->fixed[i] : NAN;
}

static bool is_ffn(const tn_shape_tensor *t)
{
    return t->part >= TN_PART_GATE && t->part <= TN_PART_DOWN;
}

static const tn_shape_tensor *tensor_of(const tn_cost *k, int32_t l, int32_t j, int32_t *index)
{
    *index = k->s->of_layer[k->s->layer[l].first + j];
    return &k->s->tensor[*index];
}

tn_ffn_kind tn_cost_ffn_kind(const tn_cost *k, int32_t l, int32_t *fixed_units, int32_t *n_modes)
{
    int32_t i, n = 0, n_fixed = 0;
    float share = NAN;
    bool equal = true;
    const tn_shape_layer *layer = &k->s->layer[l];
    *fixed_units = 0;
    *n_modes = 1;
    for (int32_t j = 0; j < layer->n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (!is_ffn(t) || t->rows <= 1) continue;
        n++;
        const float f = fixed_share(k, i);
        if (isnan(f)) continue;
        if (n_fixed && f != share) equal = false;
        share = f;
        n_fixed++;
    }
    if (n_fixed == 0) return TN_FFN_FREE;
    if (n_fixed < n || !equal) {
        *n_modes = 1 << (n - n_fixed);
        return TN_FFN_MIXED;
    }
    *fixed_units = share <= 0   ? 0
                   : share >= 1 ? layer->n_units
                                : (int32_t)lround(share * layer->n_units);
    return TN_FFN_FIXED;
}

double tn_cost_share(const tn_cost *k, int32_t i, bool home, int32_t units)
{
    const tn_shape_tensor *t = &k->s->tensor[i];
    const float f = fixed_share(k, i);
    if (t->layer < 0) return isnan(f) ? 0 : f;
    int32_t fixed_units, n_modes;
    if (!is_ffn(t)) return isnan(f) ? home : f;
    const tn_shape_layer *layer = &k->s->layer[t->layer];
    if (tn_cost_ffn_kind(k, t->layer, &fixed_units, &n_modes) != TN_FFN_MIXED)
        return layer->ffn_bytes
                   ? (double)tn_shape_ffn_bytes(layer, units) / (double)layer->ffn_bytes
                   : 0;
    if (!isnan(f)) return f;
    int bit = 0, j;
    for (int32_t m = 0; m < layer->n; m++) {
        const tn_shape_tensor *u = tensor_of(k, t->layer, m, &j);
        if (j == i) break;
        if (is_ffn(u) && u->rows > 1 && isnan(fixed_share(k, j))) bit++;
    }
    return units >> bit & 1;
}

bool tn_cost_home_allowed(const tn_cost *k, int32_t l, bool home)
{
    bool here = false, there = false;
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        const float f = fixed_share(k, i);
        if (!t->kv || t->rows <= 1 || (f != 0.0f && f != 1.0f)) continue;
        if ((f == 1.0f) == home)
            here = true;
        else
            there = true;
    }
    return here || !there;
}

bool tn_cost_attn_plain(const tn_cost *k, int32_t l, bool home)
{
    int32_t i;
    for (int32_t j = 0; k->fixed && j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        const float f = k->fixed[i];
        if (!is_ffn(t) && !isnan(f) && f != (home ? 1.0f : 0.0f)) return false;
    }
    return true;
}

uint64_t tn_cost_attn_bytes(const tn_cost *k, int32_t l, bool home)
{
    uint64_t bytes = 0;
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (!is_ffn(t)) bytes += (uint64_t)ceil(tn_cost_share(k, i, home, 0) * (double)t->bytes);
    }
    return bytes;
}

uint64_t tn_cost_ffn_device_bytes(const tn_cost *k, int32_t l, int32_t units)
{
    int32_t fixed_units, n_modes, i;
    if (tn_cost_ffn_kind(k, l, &fixed_units, &n_modes) != TN_FFN_MIXED)
        return tn_shape_ffn_bytes(&k->s->layer[l], units);
    uint64_t bytes = 0;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (is_ffn(t))
            bytes += (uint64_t)ceil(tn_cost_share(k, i, false, units) * (double)t->bytes);
    }
    return bytes;
}

/* ---- op after op ----------------------------------------------------------------------------- */

/* Time of a run of ops from home back to home, each group where its shares say. */
static double walk_time(const tn_cost *k, const tn_walk_op *op, int n_ops, int d, bool home,
                        int64_t n)
{
    double total = 0;
    bool on_device = home;
    for (int i = 0; i < n_ops;) {
        double host = 0, device = 0;
        const int group = op[i].group;
        for (; i < n_ops && op[i].group == group; i++) {
            host += (1 - op[i].share) * op[i].host_s;
            device += op[i].share * op[i].device_s;
        }
        if (host > 0 && device > 0) {
            total += 2 * tn_cost_hop(k, d, n) + join_sides(k, host, device);
            continue;
        }
        if (on_device != (device > 0)) total += tn_cost_hop(k, d, n);
        on_device = device > 0;
        total += host + device;
    }
    return total + (on_device != home ? tn_cost_hop(k, d, n) : 0);
}

static void add_op(tn_walk_op *op, int *n_ops, double device_s, double host_s, double share,
                   int group)
{
    if (*n_ops < TN_WALK_OPS) op[(*n_ops)++] = (tn_walk_op){device_s, host_s, share, group};
}

/* Adds the tensors of one part as one group; their floor is one operation. */
static void add_part(const tn_cost *k, int32_t l, int d, bool home, int32_t mode, int64_t n,
                     tn_part part, int group, tn_walk_op *op, int *n_ops)
{
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (t->part != part ||
            (t->part != TN_PART_NORM && t->part != TN_PART_FFN_NORM && t->rows <= 1))
            continue;
        add_op(op, n_ops, d == TN_HOST ? 0 : tensor_time(k, t, d, n) + op_floor(k, d),
               tensor_time(k, t, TN_HOST, n) + op_floor(k, TN_HOST),
               tn_cost_share(k, i, home, mode), group);
    }
}

static double attend_time(const tn_cost *k, int32_t l, int d, int64_t n, double attended)
{
    const tn_shape_layer *y = &k->s->layer[l];
    const tn_side_rates *r = rates(k, d);
    /* A batch reads the KV it attends to once per 64 queries; its scores are arithmetic. */
    const double reads = n > 64 ? 64.0 : (double)n;
    const double read = attended / reads * tn_kv_kind_bytes(k->c.kv, y->kv_elements) /
                        (r->kv[k->c.kv] * scale(k, d));
    if (n == 1) return read;
    const double flops = 4.0 * attended * y->n_head * y->head_dim;
    return fmax(read, flops / (tn_profile_flops(r, n) * scale(k, d)));
}

int tn_cost_walk_qkv(const tn_cost *k, int32_t l, int d, bool home, int64_t n,
                     tn_walk_op op[TN_WALK_OPS])
{
    int n_ops = 0;
    add_part(k, l, d, home, 0, n, TN_PART_NORM, 0, op, &n_ops);
    add_part(k, l, d, home, 0, n, TN_PART_QKV, 1, op, &n_ops);
    return n_ops;
}

int tn_cost_walk_attend(const tn_cost *k, int32_t l, int d, bool home, int64_t n, double attended,
                        tn_walk_op op[TN_WALK_OPS])
{
    int n_ops = 0;
    add_op(op, &n_ops, d == TN_HOST ? 0 : attend_time(k, l, d, n, attended) + op_floor(k, d),
           attend_time(k, l, TN_HOST, n, attended) + op_floor(k, TN_HOST), home, 0);
    add_part(k, l, d, home, 0, n, TN_PART_OUT, 1, op, &n_ops);
    add_part(k, l, d, home, 0, n, TN_PART_FFN_NORM, 2, op, &n_ops);
    add_part(k, l, d, home, 0, n, TN_PART_ROUTER, 3, op, &n_ops);
    add_part(k, l, d, home, 0, n, TN_PART_SHARED, 3, op, &n_ops);
    return n_ops;
}

int tn_cost_walk_ffn(const tn_cost *k, int32_t l, int d, bool home, int32_t mode, int64_t n,
                     tn_walk_op op[TN_WALK_OPS])
{
    int n_ops = 0;
    add_part(k, l, d, home, mode, n, TN_PART_GATE, 0, op, &n_ops);
    add_part(k, l, d, home, mode, n, TN_PART_UP, 0, op, &n_ops);
    add_part(k, l, d, home, mode, n, TN_PART_DOWN, 1, op, &n_ops);
    return n_ops;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Parts [from, to] of the attention part on one side. */
static double attn_weights(const tn_cost *k, int32_t l, int d, int64_t n, tn_part from, tn_part to)
{
    double sum = 0;
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (t->part >= from && t->part <= to) sum += tensor_time(k, t, d, n);
    }
    return sum;
}

static bool is_last(const tn_cost *k, int32_t l)
{
    return l == k->s->n_layers - 1;
}

/* Of the projections what a batch needs: after the last layer's KV only one token goes on. */
static bool is_projection(const tn_cost *k, int32_t l, const tn_shape_tensor *t)
{
    return t->rows > 1 &&
           (t->part == TN_PART_QKV || (t->part == TN_PART_OUT && !is_last(k, l)));
}

uint64_t tn_cost_projections(const tn_cost *k, int32_t l)
{
    uint64_t bytes = 0;
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (is_projection(k, l, t)) bytes += t->bytes;
    }
    return bytes;
}

int tn_cost_attn_hops(const tn_cost *k, int32_t l)
{
    return is_last(k, l) ? 2 : 5;
}

/* Of n tokens on one side, when alone. */
static double projections(const tn_cost *k, int32_t l, int d, int64_t n)
{
    double sum = 0;
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (is_projection(k, l, t)) sum += tensor_time(k, t, d, n);
    }
    return sum;
}

static double streamed_projections(const tn_cost *k, int32_t l, int d, int64_t n)
{
    return tn_cost_attn_hops(k, l) * tn_cost_hop(k, d, n) +
           fmax(projections(k, l, d, n), (double)tn_cost_projections(k, l) / k->link[d]);
}

bool tn_cost_attn_streams(const tn_cost *k, int32_t l, int d, bool home, int64_t n)
{
    return !home && d != TN_HOST && n >= stream_least && tn_cost_attn_plain(k, l, home) &&
           streamed_projections(k, l, d, n) < projections(k, l, TN_HOST, n);
}

/* Tensors on either side, op after op. Between the halves all is at home, where attention is. */
static double attn_walk(const tn_cost *k, int32_t l, int d, bool home, int64_t n, int64_t n_out,
                        double attended)
{
    tn_walk_op op[TN_WALK_OPS];
    int n_ops = tn_cost_walk_qkv(k, l, d, home, n, op);
    const double qkv = walk_time(k, op, n_ops, d, home, n);
    if (!n_out) return qkv;
    n_ops = tn_cost_walk_attend(k, l, d, home, n_out, attended, op);
    return qkv + walk_time(k, op, n_ops, d, home, n_out);
}

double tn_cost_attn(const tn_cost *k, int32_t l, int d, bool home, int64_t n, int64_t n_out,
                    double attended)
{
    if (d != TN_HOST && !tn_cost_attn_plain(k, l, home))
        return attn_walk(k, l, d, home, n, n_out, attended);
    const int side = home ? d : TN_HOST;
    double qkv = op_floor(k, side) + attn_weights(k, l, side, n, TN_PART_NORM, TN_PART_QKV);
    if (tn_cost_attn_streams(k, l, d, home, n))
        qkv += streamed_projections(k, l, d, n) - projections(k, l, TN_HOST, n);
    if (!n_out) return qkv;
    return qkv + (attn_ops - 1) * op_floor(k, side) +
           attn_weights(k, l, side, n_out, TN_PART_OUT, TN_PART_SHARED) +
           attend_time(k, l, side, n_out, attended);
}

/* ---- FFN ------------------------------------------------------------------------------------- */

double tn_cost_ffn_side(const tn_cost *k, int32_t l, int d, int64_t n)
{
    double sum = 0;
    int32_t i;
    for (int32_t j = 0; j < k->s->layer[l].n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (is_ffn(t)) sum += tensor_time(k, t, d, n);
    }
    return sum;
}

double tn_cost_ffn_part(const tn_cost *k, int32_t l, int d, int32_t from, int32_t to, int64_t n)
{
    const tn_shape_layer *y = &k->s->layer[l];
    const double share =
        (double)(tn_shape_ffn_bytes(y, to) - tn_shape_ffn_bytes(y, from)) / (double)y->ffn_bytes;
    if (!y->n_expert || from >= to) return share * tn_cost_ffn_side(k, l, d, n);
    const double read = tn_cost_met(y, from, to, n) / y->n_expert,
                 used = chosen(y, from, to) / y->n_expert;
    double sum = 0;
    int32_t i;
    for (int32_t j = 0; j < y->n; j++) {
        const tn_shape_tensor *t = tensor_of(k, l, j, &i);
        if (!is_ffn(t)) continue;
        sum += t->n_expert > 1 ? product_time(k, t, d, n, y, read, used)
                               : share * product_time(k, t, d, n, NULL, 1, 1);
    }
    return sum;
}

void tn_cost_hits(const tn_shape_layer *l, int32_t units, double *pmf)
{
    const int e = l->n_expert, u = l->n_used;
    if (l->use) {
        memcpy(pmf, l->use->hits + (int64_t)units * (u + 1), (size_t)(u + 1) * sizeof *pmf);
        return;
    }
    memset(pmf, 0, (size_t)(u + 1) * sizeof *pmf);
    /* Hypergeometric, in logarithms: u different experts are drawn, `units` of e are ours. */
    const double all = lgamma(e + 1.0) - lgamma(u + 1.0) - lgamma(e - u + 1.0);
    for (int h = 0; h <= u; h++) {
        const int m = u - h, rest = e - units;
        if (h > units || m > rest) continue;
        const double ours = lgamma(units + 1.0) - lgamma(h + 1.0) - lgamma(units - h + 1.0);
        const double theirs = lgamma(rest + 1.0) - lgamma(m + 1.0) - lgamma(rest - m + 1.0);
        pmf[h] = exp(ours + theirs - all);
    }
}

/* Mean over the experts a token may meet of the time until both sides are done. */
static double experts_time(const tn_cost *k, int32_t l, int d, int32_t units)
{
    const tn_shape_layer *y = &k->s->layer[l];
    double pmf[max_used + 1], mean = 0;
    const double host = tn_cost_ffn_side(k, l, TN_HOST, 1) / y->n_used;
    const double device = tn_cost_ffn_side(k, l, d, 1) / y->n_used;
    if (y->n_used > max_used) return host * y->n_used;
    tn_cost_hits(y, units, pmf);
    for (int h = 0; h <= y->n_used; h++) {
        const int m = y->n_used - h;
        if (pmf[h] > 0)
            mean += pmf[h] * join_sides(k, m ? m * host + ffn_ops * op_floor(k, TN_HOST) : 0,
                                        h ? h * device + ffn_ops * op_floor(k, d) : 0);
    }
    return mean;
}

static double decode_ffn(const tn_cost *k, int32_t l, int d, bool home, int32_t units)
{
    const tn_shape_layer *y = &k->s->layer[l];
    const double x = d == TN_HOST ? 0 : 2 * tn_cost_hop(k, d, 1);
    if (units <= 0 || d == TN_HOST)
        return (home ? x : 0) + tn_cost_ffn_side(k, l, TN_HOST, 1) + ffn_ops * op_floor(k, TN_HOST);
    if (units >= y->n_units)
        return (home ? 0 : x) + tn_cost_ffn_side(k, l, d, 1) + ffn_ops * op_floor(k, d);
    if (y->n_expert) return x + experts_time(k, l, d, units);
    const double f = (double)tn_shape_ffn_bytes(y, units) / (double)y->ffn_bytes;
    return x + join_sides(
                   k, (1 - f) * tn_cost_ffn_side(k, l, TN_HOST, 1) + ffn_ops * op_floor(k, TN_HOST),
                   f * tn_cost_ffn_side(k, l, d, 1) + ffn_ops * op_floor(k, d));
}

double tn_cost_choice(const tn_cost *k, int32_t l, int d)
{
    return k->s->layer[l].n_expert ? 2 * tn_cost_hop(k, d, 1) : 0;
}

/* What a batch of n tokens asks of an FFN with units on both sides. */
typedef struct parts {
    double device_s, host_s; /* each side's own share, when alone */
    double rest_s;           /* the host's share, on the device */
    double copy_s;           /* of the host's share to the device */
    double hops_s;           /* of activations for the host's part: both ways */
    double choice_s;         /* of experts, which the host groups, to the host and back */
} parts;

static parts prefill_parts(const tn_cost *k, int32_t l, int d, int32_t units, int64_t n)
{
    const tn_shape_layer *y = &k->s->layer[l];
    const double f = (double)tn_shape_ffn_bytes(y, units) / (double)y->ffn_bytes;
    const double carried =
        y->n_expert ? tn_cost_met(y, units, y->n_units, n) / y->n_expert : 1 - f;
    return (parts){
        .device_s = tn_cost_ffn_part(k, l, d, 0, units, n),
        .host_s = tn_cost_ffn_part(k, l, TN_HOST, units, y->n_units, n),
        .rest_s = tn_cost_ffn_part(k, l, d, units, y->n_units, n),
        .copy_s = carried * (double)y->ffn_bytes / k->link[d],
        .hops_s = 2 * tn_cost_hop(k, d, n),
        .choice_s = tn_cost_choice(k, l, d),
    };
}

/* How long host, device and the copies to it take together, from what each takes alone. */
static double join_three(const tn_cost *k, double host, double device, double copy)
{
    const tn_profile_contended *c = &k->p->contended;
    double now = 0;
    while (host > 0 || device > 0 || copy > 0) {
        const double host_speed =
            fmin(device > 0 ? c->host_beside_device : 1, copy > 0 ? c->host_beside_copy : 1);
        const double device_speed = host > 0 ? c->device_beside_host : 1;
        const double copy_speed = host > 0 ? c->copy_beside_host : 1;
        double step = INFINITY;
        if (host > 0) step = fmin(step, host / host_speed);
        if (device > 0) step = fmin(step, device / device_speed);
        if (copy > 0) step = fmin(step, copy / copy_speed);
        now += step;
        host -= step * host_speed * (1 + 1e-12);
        device -= step * device_speed * (1 + 1e-12);
        copy -= step * copy_speed * (1 + 1e-12);
    }
    return now;
}

/* The part of the host's share with which it is done together with the slower of the copies and the
 * device. */
static double fair_part(const tn_cost *k, const parts *f)
{
    const tn_profile_contended *c = &k->p->contended;
    const double host = f->host_s / fmin(c->host_beside_copy, c->host_beside_device);
    const double copy = f->copy_s / c->copy_beside_host;
    const double rest = f->rest_s / c->device_beside_host;
    const double own = f->device_s / c->device_beside_host;
    const double by_copy = host + copy > 0 ? copy / (host + copy) : 1;
    const double by_device = host + rest > 0 ? (own + rest) / (host + rest) : 1;
    return fmin(1, fmax(by_copy, by_device));
}

static double share_time(const tn_cost *k, const parts *f, double part)
{
    return f->hops_s + join_three(k, part * f->host_s, f->device_s + (1 - part) * f->rest_s,
                                  (1 - part) * f->copy_s);
}

tn_prefill tn_cost_prefill(const tn_cost *k, int32_t l, int d, bool home, int32_t units, int64_t n)
{
    int32_t fixed, n_modes;
    tn_prefill best = {TN_PREFILL_IN_PLACE, 1, 0};
    if (d == TN_HOST || units >= k->s->layer[l].n_units) return best;
    const parts f = prefill_parts(k, l, d, units, n);
    /* The activations cross where the other side than home takes part. */
    best.seconds = (home || f.device_s > 0 ? f.hops_s : 0) + join_sides(k, f.host_s, f.device_s);
    if (n < stream_least || tn_cost_ffn_kind(k, l, &fixed, &n_modes) == TN_FFN_MIXED) return best;
    const double stream =
        (home ? 0 : f.hops_s) + f.choice_s + fmax(f.device_s + f.rest_s, f.copy_s);
    if (stream < best.seconds) best = (tn_prefill){TN_PREFILL_STREAM, 0, stream};
    if (!k->pinned) return best;
    const double part = fair_part(k, &f), share = share_time(k, &f, part);
    return share < best.seconds ? (tn_prefill){TN_PREFILL_SHARE, part, share} : best;
}

static double prefill_ffn(const tn_cost *k, int32_t l, int d, bool home, int32_t units, int64_t n)
{
    if (d == TN_HOST) return tn_cost_ffn_side(k, l, TN_HOST, n) + ffn_ops * op_floor(k, TN_HOST);
    if (units >= k->s->layer[l].n_units)
        return (home ? 0 : 2 * tn_cost_hop(k, d, n)) + tn_cost_choice(k, l, d) +
               tn_cost_ffn_side(k, l, d, n) + ffn_ops * op_floor(k, d);
    return tn_cost_prefill(k, l, d, home, units, n).seconds + ffn_ops * op_floor(k, TN_HOST);
}

double tn_cost_ffn(const tn_cost *k, int32_t l, int d, bool home, int32_t units, int64_t n)
{
    int32_t fixed, n_modes;
    if (d != TN_HOST && tn_cost_ffn_kind(k, l, &fixed, &n_modes) == TN_FFN_MIXED) {
        tn_walk_op op[TN_WALK_OPS];
        const int n_ops = tn_cost_walk_ffn(k, l, d, home, units, n, op);
        return walk_time(k, op, n_ops, d, home, n);
    }
    return n == 1 ? decode_ffn(k, l, d, home, units) : prefill_ffn(k, l, d, home, units, n);
}

/* ---- head ------------------------------------------------------------------------------------ */

double tn_cost_head(const tn_cost *k, int d, bool home, int32_t units)
{
    const tn_shape_tensor *t = &k->s->tensor[k->s->head];
    const double hop = d == TN_HOST ? 0 : tn_cost_hop(k, d, 1);
    const double f = (double)tn_shape_head_bytes(k->s, units) / (double)t->bytes;
    const double host = f < 1 ? (1 - f) * tensor_time(k, t, TN_HOST, 1) + op_floor(k, TN_HOST) : 0;
    if (units <= 0 || d == TN_HOST) return (home ? hop : 0) + host;
    const double device = f * tensor_time(k, t, d, 1) + op_floor(k, d);
    if (units >= k->s->head_units) return (home ? hop : 2 * hop) + device;
    return 2 * hop + join_sides(k, host, device);
}

/* ---- the request ----------------------------------------------------------------------------- */

int64_t tn_cost_live(const tn_cost *k)
{
    const int64_t live = k->c.request.depth + k->c.request.n_prompt + k->c.request.n_gen;
    return live < k->c.n_ctx ? live : k->c.n_ctx;
}

/* Batches of the prompt: n_full of n_batch tokens, then one of the rest. */
static int64_t batches(const tn_cost *k, int64_t *rest)
{
    *rest = k->c.request.n_prompt % k->c.n_batch;
    return k->c.request.n_prompt / k->c.n_batch;
}

int64_t tn_cost_outputs(const tn_cost *k, int32_t l, int64_t n, bool wanted)
{
    return is_last(k, l) ? wanted : n;
}

double tn_cost_attn_request(const tn_cost *k, int32_t l, int d, bool home)
{
    const tn_request *r = &k->c.request;
    const int64_t window = k->s->layer[l].window, start = r->depth + r->n_prompt;
    double sum = 0;
    for (int64_t at = 0; at < r->n_prompt; at += k->c.n_batch) {
        const int64_t n = r->n_prompt - at < k->c.n_batch ? r->n_prompt - at : k->c.n_batch;
        const int64_t n_out = tn_cost_outputs(k, l, n, at + n == r->n_prompt);
        sum += tn_cost_attn(k, l, d, home, n, n_out,
                            tn_cost_attended(r->depth + at + n - n_out, n_out, window));
    }
    if (!r->n_gen) return sum;
    const double mean = tn_cost_attended(start, r->n_gen, window) / (double)r->n_gen;
    return sum + (double)r->n_gen * tn_cost_attn(k, l, d, home, 1, 1, mean);
}

double tn_cost_ffn_request(const tn_cost *k, int32_t l, int d, bool home, int32_t units)
{
    int64_t rest;
    const int64_t full = batches(k, &rest);
    /* Of a prompt only the last token goes through the last FFN, see forward.c. */
    if (is_last(k, l))
        return (double)(k->c.request.n_gen + (k->c.request.n_prompt > 0)) *
               tn_cost_ffn(k, l, d, home, units, 1);
    double sum = (double)k->c.request.n_gen * tn_cost_ffn(k, l, d, home, units, 1);
    if (full) sum += (double)full * tn_cost_ffn(k, l, d, home, units, k->c.n_batch);
    return sum + (rest ? tn_cost_ffn(k, l, d, home, units, rest) : 0);
}

double tn_cost_layer_request(const tn_cost *k, int32_t l, int d, bool home, int32_t units)
{
    return tn_cost_attn_request(k, l, d, home) + tn_cost_ffn_request(k, l, d, home, units);
}

/* The prompt's last token needs the head as well. */
double tn_cost_head_request(const tn_cost *k, int d, bool home, int32_t units)
{
    return (double)(k->c.request.n_gen + (k->c.request.n_prompt > 0)) *
           tn_cost_head(k, d, home, units);
}

double tn_cost_move_request(const tn_cost *k, int from, int to)
{
    int64_t rest;
    const int64_t full = batches(k, &rest);
    return (double)k->c.request.n_gen * tn_cost_move(k, from, to, 1) +
           (full ? (double)full * tn_cost_move(k, from, to, k->c.n_batch) : 0) +
           (rest ? tn_cost_move(k, from, to, rest) : 0);
}

/* ---- buffers --------------------------------------------------------------------------------- */

/* Activations of a batch: residual, normed, attention in and out, FFN hidden twice; and logits. */
static uint64_t activation_bytes(const tn_cost *k)
{
    uint64_t heads = 0, used = 1;
    for (int32_t l = 0; l < k->s->n_layers; l++) {
        const tn_shape_layer *y = &k->s->layer[l];
        const uint64_t h = (uint64_t)y->n_head * (uint64_t)y->head_dim;
        if (h > heads) heads = h;
        if ((uint64_t)y->n_used > used) used = (uint64_t)y->n_used;
    }
    const uint64_t per_token =
        4 * (uint64_t)k->s->n_embd + 3 * heads + 2 * used * (uint64_t)k->s->n_ff_max;
    return 4 * ((uint64_t)k->c.n_batch * per_token + (uint64_t)k->s->n_vocab);
}

uint64_t tn_cost_host_buffers(const tn_cost *k)
{
    return activation_bytes(k) + k->s->embed_bytes;
}
