/* Sampling: from logits to one token. Candidates are ordered only as far as a step needs it, so
 * that a vocabulary of 262,144 costs little more than reading it. */
#include "model.h"
#include "philox.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* Ahead of others where its logit is higher, or equal and its id lower. */
typedef struct cand {
    float logit;
    int32_t id;
} cand;

struct tn_sampler {
    const tn_allocator *a;
    tn_sampler_options opt; /* .bias is our copy */
    tn_logit_bias *bias;
    atomic_flag busy;
    uint64_t draws;
    int32_t *history; /* accepted tokens, oldest first; what the window cannot reach is dropped */
    size_t n_history, cap_history;
    int32_t n_vocab; /* length of the three buffers below */
    float *logits;   /* biased and penalised */
    int32_t *counts; /* occurrences in the window; all zero between calls */
    cand *cands;
};

/* The first n candidates remain; the first `sorted` of them are the best ones, in order. */
typedef struct pool {
    cand *c;
    size_t n, sorted;
} pool;

enum { heap_max = 512 }; /* top_k up to this many are selected by a heap */

static inline bool ahead(cand x, cand y)
{
    return x.logit > y.logit || (x.logit == y.logit && x.id < y.id);
}

static bool lock(tn_sampler *s)
{
    return !atomic_flag_test_and_set_explicit(&s->busy, memory_order_acquire);
}

static void unlock(tn_sampler *s)
{
    atomic_flag_clear_explicit(&s->busy, memory_order_release);
}

static tn_status fail_busy(tn_error *err)
{
    return tn_fail(err, TN_EBUSY, -1,
                   "the sampler is in use by another thread; use one per thread");
}

/* ---- options --------------------------------------------------------------------------------- */

/* False for NaN. */
static bool within(double v, double lo, double hi)
{
    return v >= lo && v <= hi;
}

/* An option, the GGUF key that sets it, and what it may be. */
typedef struct range {
    const char *option, *key;
    double lo, hi;
    const char *allowed;
} range;

static const range ranges[] = {
    {"temperature", "general.sampling.temp", 0, 1e6, "0 (greedy) to 1e6"},
    {"top_k", "general.sampling.top_k", 0, INT32_MAX, "0 (off) or more"},
    {"top_p", "general.sampling.top_p", 0, 1, "0 to 1 (off)"},
    {"min_p", "general.sampling.min_p", 0, 1, "0 (off) to 1"},
    {"repeat_penalty", "general.sampling.penalty_repeat", 1e-3, 1e3, "0.001 to 1000, 1 = off"},
    {"penalty_last_n", "general.sampling.penalty_last_n", -1, INT32_MAX,
     "-1 (all), 0 (off) or a number of tokens"},
    {"presence_penalty", NULL, -1e3, 1e3, "-1000 to 1000, 0 = off"},
    {"frequency_penalty", NULL, -1e3, 1e3, "-1000 to 1000, 0 = off"},
};
enum { n_ranges = sizeof ranges / sizeof ranges[0], r_top_k = 1, r_last_n = 5 };

static void option_values(const tn_sampler_options *o, double v[n_ranges])
{
    const double all[n_ranges] = {o->temperature,
                                  o->top_k,
                                  o->top_p,
                                  o->min_p,
                                  o->repeat_penalty,
                                  o->penalty_last_n,
                                  o->presence_penalty,
                                  o->frequency_penalty};
    memcpy(v, all, sizeof all);
}

static tn_status check_options(const tn_sampler_options *o, tn_error *err)
{
    double v[n_ranges];
    option_values(o, v);
    for (int i = 0; i < n_ranges; i++)
        if (!within(v[i], ranges[i].lo, ranges[i].hi))
            return tn_fail(err, TN_EARG, -1, "sampler option %s is %g; allowed: %s",
                           ranges[i].option, v[i], ranges[i].allowed);
    if (o->n_bias && !o->bias)
        return tn_fail(err, TN_EARG, -1, "sampler option bias is NULL, but n_bias is %zu",
                       o->n_bias);
    for (size_t i = 0; i < o->n_bias; i++) {
        const tn_logit_bias b = o->bias[i];
        if (b.token < 0 || !(b.bias <= FLT_MAX))
            return tn_fail(
                err, TN_EARG, -1,
                "sampler option bias: entry %zu gives token %d a bias of %g; use a token id "
                "of 0 or more and a finite number or -infinity",
                i, (int)b.token, (double)b.bias);
    }
    return TN_OK;
}

/* Reads one number of the file; *v untouched if the key is absent. */
static tn_status read_key(const tn_gguf *g, int i, double *v, tn_error *err)
{
    const tn_gguf_key *k = tn_gguf_find(g, ranges[i].key);
    if (!k) return TN_OK;
    if (i == r_top_k || i == r_last_n) {
        int64_t n;
        if (k->kind == TN_GGUF_ARRAY || !tn_gguf_value_i64(k, 0, &n))
            return tn_fail(err, TN_EFORMAT, k->offset, "key '%s' is no integer", ranges[i].key);
        *v = (double)n;
        if (i == r_top_k && n < 0) *v = 0; /* how files spell "off" */
    } else {
        float f = 0;
        const tn_status s = tn_gguf_get_f32(g, ranges[i].key, &f, err);
        if (s) return s;
        *v = f;
    }
    if (!within(*v, ranges[i].lo, ranges[i].hi))
        return tn_fail(err, TN_EFORMAT, k->offset, "key '%s' is %g; allowed: %s", ranges[i].key, *v,
                       ranges[i].allowed);
    return TN_OK;
}

tn_status tn_sampler_defaults(const tn_model *model, tn_sampler_options *opt, tn_error *err)
{
    if (!opt) return tn_fail(err, TN_EARG, -1, "tn_sampler_defaults: opt is NULL");
    tn_sampler_options o = {.struct_size = sizeof o,
                            .temperature = 0.8f,
                            .top_k = 40,
                            .top_p = 0.95f,
                            .min_p = 0.05f,
                            .repeat_penalty = 1,
                            .penalty_last_n = 64};
    if (model) {
        double v[n_ranges];
        option_values(&o, v);
        for (int i = 0; i < n_ranges; i++) {
            if (!ranges[i].key) continue;
            const tn_status s = read_key(tn_model_gguf(model), i, &v[i], err);
            if (s) return s;
        }
        o.temperature = (float)v[0];
        o.top_k = (int32_t)v[r_top_k];
        o.top_p = (float)v[2];
        o.min_p = (float)v[3];
        o.repeat_penalty = (float)v[4];
        o.penalty_last_n = (int32_t)v[r_last_n];
    }
    *opt = o;
    return TN_OK;
}

/* ---- life ------------------------------------------------------------------------------------ */

static tn_status read_options(tn_sampler_options *o, const tn_sampler_options *opt, tn_error *err)
{
    const tn_status s = tn_sampler_defaults(NULL, o, err);
    if (s || !opt) return s;
    if (opt->struct_size < sizeof opt->struct_size || opt->struct_size > 4096)
        return tn_fail(err, TN_EARG, -1,
                       "tn_sampler_options: struct_size is %zu; set it to sizeof the struct",
                       opt->struct_size);
    memcpy(o, opt, opt->struct_size < sizeof *o ? opt->struct_size : sizeof *o);
    return check_options(o, err);
}

tn_status tn_sampler_new(tn_sampler **out, const tn_engine *engine, const tn_sampler_options *opt,
                         tn_error *err)
{
    if (!out) return tn_fail(err, TN_EARG, -1, "tn_sampler_new: out is NULL");
    *out = NULL;
    if (!engine) return tn_fail(err, TN_EARG, -1, "tn_sampler_new: engine is NULL");
    tn_sampler_options o;
    const tn_status status = read_options(&o, opt, err);
    if (status) return status;
    const tn_allocator *a = tn_engine_allocator(engine);
    tn_sampler *s = tn_alloc(a, 1, sizeof *s);
    if (!s) return tn_fail_nomem(err, sizeof *s, "the sampler");
    s->a = a;
    s->opt = o;
    atomic_flag_clear(&s->busy);
    s->bias = tn_alloc(a, o.n_bias, sizeof *s->bias);
    if (!s->bias) {
        tn_sampler_free(s);
        return tn_fail_nomem(err, o.n_bias * sizeof *s->bias, "the logit biases");
    }
    if (o.n_bias) memcpy(s->bias, o.bias, o.n_bias * sizeof *s->bias);
    s->opt.bias = s->bias;
    *out = s;
    return TN_OK;
}

static void free_buffers(tn_sampler *s)
{
    tn_free(s->a, s->logits);
    tn_free(s->a, s->counts);
    tn_free(s->a, s->cands);
    s->logits = NULL;
    s->counts = NULL;
    s->cands = NULL;
    s->n_vocab = 0;
}

void tn_sampler_free(tn_sampler *s)
{
    if (!s) return;
    free_buffers(s);
    tn_free(s->a, s->history);
    tn_free(s->a, s->bias);
    tn_free(s->a, s);
}

void tn_sampler_reset(tn_sampler *s)
{
    if (!s || !lock(s)) return;
    s->n_history = 0;
    s->draws = 0;
    unlock(s);
}

static bool has_penalties(const tn_sampler_options *o)
{
    return o->penalty_last_n != 0 &&
           (o->repeat_penalty != 1 || o->presence_penalty != 0 || o->frequency_penalty != 0);
}

static tn_status append(tn_sampler *s, int32_t token, tn_error *err)
{
    const size_t window = s->opt.penalty_last_n < 0 ? SIZE_MAX : (size_t)s->opt.penalty_last_n;
    if (s->n_history >= window && s->n_history - window >= window) {
        memmove(s->history, s->history + (s->n_history - window), window * sizeof *s->history);
        s->n_history = window;
    }
    void *p = s->history;
    if (!tn_grow(s->a, &p, &s->cap_history, s->n_history, s->n_history + 1, sizeof *s->history))
        return tn_fail_nomem(err, (s->n_history + 1) * sizeof *s->history, "the sampler's history");
    s->history = p;
    s->history[s->n_history++] = token;
    return TN_OK;
}

tn_status tn_sampler_accept(tn_sampler *s, int32_t token, tn_error *err)
{
    if (!s) return tn_fail(err, TN_EARG, -1, "tn_sampler_accept: the sampler is NULL");
    if (token < 0) return tn_fail(err, TN_EARG, -1, "token %d is negative", (int)token);
    if (!has_penalties(&s->opt)) return TN_OK;
    if (!lock(s)) return fail_busy(err);
    const tn_status status = append(s, token, err);
    unlock(s);
    return status;
}

/* ---- bias and penalties ---------------------------------------------------------------------- */

static tn_status reserve(tn_sampler *s, int32_t n_vocab, tn_error *err)
{
    if (s->n_vocab == n_vocab) return TN_OK;
    free_buffers(s);
    const size_t n = (size_t)n_vocab;
    s->logits = tn_alloc_raw(s->a, n, sizeof *s->logits);
    s->counts = tn_alloc(s->a, n, sizeof *s->counts);
    s->cands = tn_alloc_raw(s->a, n, sizeof *s->cands);
    if (!s->logits || !s->counts || !s->cands) {
        free_buffers(s);
        return tn_fail_nomem(err, n * (sizeof *s->logits + sizeof *s->counts + sizeof *s->cands),
                             "the sampler's buffers");
    }
    s->n_vocab = n_vocab;
    return TN_OK;
}

/* Copies the logits; refuses NaN and +infinity by token. */
static tn_status copy_logits(tn_sampler *s, const float *logits, tn_error *err)
{
    bool good = true;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        good &= logits[i] <= FLT_MAX;
        s->logits[i] = logits[i];
    }
    for (int32_t i = 0; !good && i < s->n_vocab; i++)
        if (!(logits[i] <= FLT_MAX))
            return tn_fail(
                err, TN_EINTERNAL, -1,
                "the logit of token %d is %s: the forward pass went wrong (a damaged model "
                "file, or a bug in tenon)",
                (int)i, logits[i] != logits[i] ? "NaN" : "infinite");
    return TN_OK;
}

static tn_status add_bias(tn_sampler *s, tn_error *err)
{
    for (size_t i = 0; i < s->opt.n_bias; i++)
        if (s->bias[i].token >= s->n_vocab)
            return tn_fail(err, TN_EARG, -1,
                           "sampler option bias names token %d, but the vocabulary has %d tokens",
                           (int)s->bias[i].token, (int)s->n_vocab);
    for (size_t i = 0; i < s->opt.n_bias; i++) {
        float *l = &s->logits[s->bias[i].token];
        *l = fminf(*l + s->bias[i].bias, FLT_MAX);
    }
    return TN_OK;
}

static float penalise(float l, int32_t count, const tn_sampler_options *o)
{
    l = l > 0 ? l / o->repeat_penalty : l * o->repeat_penalty;
    l -= o->presence_penalty + (float)count * o->frequency_penalty;
    return fminf(l, FLT_MAX);
}

static tn_status add_penalties(tn_sampler *s, tn_error *err)
{
    const tn_sampler_options *o = &s->opt;
    if (!has_penalties(o)) return TN_OK;
    size_t n = s->n_history;
    if (o->penalty_last_n > 0 && n > (size_t)o->penalty_last_n) n = (size_t)o->penalty_last_n;
    const int32_t *window = s->history + (s->n_history - n);
    for (size_t i = 0; i < n; i++)
        if (window[i] >= s->n_vocab)
            return tn_fail(err, TN_EARG, -1,
                           "token %d was accepted, but the vocabulary has %d tokens",
                           (int)window[i], (int)s->n_vocab);
    for (size_t i = 0; i < n; i++)
        s->counts[window[i]]++;
    for (size_t i = 0; i < n; i++) {
        const int32_t id = window[i];
        if (!s->counts[id]) continue;
        s->logits[id] = penalise(s->logits[id], s->counts[id], o);
        s->counts[id] = 0;
    }
    return TN_OK;
}

/* ---- order ----------------------------------------------------------------------------------- */

/* Restores "every parent is behind its children" below i: the worst candidate is c[0]. */
static void sift_down(cand *c, size_t n, size_t i)
{
    const cand x = c[i];
    for (;;) {
        size_t j = 2 * i + 1;
        if (j >= n) break;
        if (j + 1 < n && ahead(c[j], c[j + 1])) j++;
        if (!ahead(x, c[j])) break;
        c[i] = c[j];
        i = j;
    }
    c[i] = x;
}

static void heapify(cand *c, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(c, n, i);
}

/* Best first; n log n in the worst case. */
static void heap_sort(cand *c, size_t n)
{
    heapify(c, n);
    for (size_t m = n; m > 1; m--) {
        const cand worst = c[0];
        c[0] = c[m - 1];
        c[m - 1] = worst;
        sift_down(c, m - 1, 0);
    }
}

static cand median3(cand x, cand y, cand z)
{
    if (ahead(y, x)) {
        const cand t = x;
        x = y;
        y = t;
    }
    return ahead(z, x) ? x : ahead(z, y) ? z : y;
}

/* Moves the k best of c[n] to its front, in no order. All candidates differ by id, so none are
 * equal. */
static void select_best(cand *c, size_t n, size_t k)
{
    size_t lo = 0, hi = n; /* the cut lies in [lo, hi] */
    while (hi - lo > 1 && k > lo && k < hi) {
        const cand pivot = median3(c[lo], c[lo + (hi - lo) / 2], c[hi - 1]);
        size_t i = lo, j = hi - 1;
        for (;;) {
            while (ahead(c[i], pivot))
                i++;
            while (ahead(pivot, c[j]))
                j--;
            if (i >= j) break;
            const cand t = c[i];
            c[i++] = c[j];
            c[j--] = t;
        }
        if (k <= i)
            hi = i;
        else
            lo = i + (i == j); /* i == j: the pivot itself, in its final place */
    }
}

/* Makes candidate i available in its sorted place. */
static void sort_to(pool *p, size_t i)
{
    while (i >= p->sorted) {
        const size_t rest = p->n - p->sorted;
        size_t chunk = p->sorted ? p->sorted : 256;
        if (chunk > rest) chunk = rest;
        select_best(p->c + p->sorted, rest, chunk);
        heap_sort(p->c + p->sorted, chunk);
        p->sorted += chunk;
    }
}

/* ---- filters --------------------------------------------------------------------------------- */

/* The k best logits above -infinity, sorted. Ids rise, so equal logits never replace an earlier
 * one. */
static void gather_top_k(const float *l, int32_t n, size_t k, pool *p)
{
    int32_t i = 0;
    for (; i < n && p->n < k; i++)
        if (l[i] > -INFINITY) p->c[p->n++] = (cand){l[i], i};
    heapify(p->c, p->n);
    for (; i < n; i++) {
        if (!(l[i] > p->c[0].logit)) continue;
        p->c[0] = (cand){l[i], i};
        sift_down(p->c, p->n, 0);
    }
    heap_sort(p->c, p->n);
    p->sorted = p->n;
}

static void gather(const float *l, int32_t n, size_t k, pool *p)
{
    if (k > 0 && k <= heap_max) {
        gather_top_k(l, n, k, p);
        return;
    }
    for (int32_t i = 0; i < n; i++)
        if (l[i] > -INFINITY) p->c[p->n++] = (cand){l[i], i};
    if (k > 0 && k < p->n) {
        select_best(p->c, p->n, k);
        p->n = k;
    }
}

/* Weight of a candidate in the softmax at a temperature; 0 where it cannot matter in a double. */
static inline double weight(float logit, float max, double inv_temp)
{
    const double x = ((double)logit - (double)max) * inv_temp;
    return x < -50 ? 0 : exp(x);
}

static double total_weight(const pool *p, float max, double inv_temp)
{
    double sum = 0;
    for (size_t i = 0; i < p->n; i++)
        sum += weight(p->c[i].logit, max, inv_temp);
    return sum;
}

/* Number of best candidates whose weights first exceed (or, if reach, attain) `target`; all if
 * none. */
static size_t count_to(pool *p, float max, double inv_temp, double target, bool reach)
{
    double sum = 0;
    for (size_t i = 0; i < p->n; i++) {
        sort_to(p, i);
        const double w = weight(p->c[i].logit, max, inv_temp);
        if (w == 0) return i; /* and so are all that follow */
        sum += w;
        if (sum > target || (reach && sum >= target)) return i + 1;
    }
    return p->n;
}

static void keep_top_p(pool *p, float max, float top_p)
{
    if (!(top_p < 1)) return;
    p->n = count_to(p, max, 1, top_p * total_weight(p, max, 1), true);
}

static void keep_min_p(pool *p, float max, float min_p)
{
    if (!(min_p > 0)) return;
    const double least = (double)max + log(min_p);
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++)
        if (p->c[i].logit >= least) p->c[n++] = p->c[i];
    p->n = n;
    if (p->sorted > n) p->sorted = n;
}

/* ---- the chain ------------------------------------------------------------------------------- */

static int32_t argmax(const float *l, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (l[i] > l[best]) best = i;
    return best;
}

static int32_t draw(tn_sampler *s, float max)
{
    const tn_sampler_options *o = &s->opt;
    pool p = {s->cands, 0, 0};
    gather(s->logits, s->n_vocab, (size_t)o->top_k, &p);
    keep_top_p(&p, max, o->top_p);
    keep_min_p(&p, max, o->min_p);
    const double inv_temp = 1.0 / (double)o->temperature;
    const double u = tn_philox_uniform(o->seed, s->draws++);
    const double target = u * total_weight(&p, max, inv_temp);
    return p.c[count_to(&p, max, inv_temp, target, false) - 1].id;
}

/* ln of the token's share in the plain softmax. */
static float log_prob(const float *l, int32_t n, int32_t token)
{
    const float max = l[argmax(l, n)];
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        const float x = l[i] - max;
        if (x > -40) sum += (double)expf(x);
    }
    return (float)((double)l[token] - (double)max - log(sum));
}

static tn_status sample(tn_sampler *s, const float *logits, int32_t n_vocab, int32_t *token,
                        tn_error *err)
{
    tn_status status = reserve(s, n_vocab, err);
    if (!status) status = copy_logits(s, logits, err);
    if (!status) status = add_bias(s, err);
    if (!status) status = add_penalties(s, err);
    if (status) return status;
    const int32_t best = argmax(s->logits, n_vocab);
    const float max = s->logits[best];
    if (!(max > -INFINITY))
        return tn_fail(err, TN_EINTERNAL, -1, "no token can be chosen: every logit is -infinity%s",
                       s->opt.n_bias ? " (after the logit biases)" : "");
    *token = s->opt.temperature > 0 ? draw(s, max) : best;
    return TN_OK;
}

tn_status tn_sampler_sample(tn_sampler *s, const float *logits, int32_t n_vocab, int32_t *token,
                            float *logprob, tn_error *err)
{
    if (!s || !logits || !token || n_vocab < 1)
        return tn_fail(
            err, TN_EARG, -1,
            "tn_sampler_sample: sampler, logits and token must not be NULL, n_vocab is %d",
            (int)n_vocab);
    if (!lock(s)) return fail_busy(err);
    int32_t id = 0;
    const tn_status status = sample(s, logits, n_vocab, &id, err);
    unlock(s);
    if (status) return status;
    *token = id;
    if (logprob) *logprob = log_prob(logits, n_vocab, id);
    return TN_OK;
}
