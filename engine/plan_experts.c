/* From counts of chosen experts to what the cost model asks for.
 *
 * A token meets n_used different experts of a layer. Counts give each one's chance; how many of a
 * group are met together they do not give. Of all distributions with these chances the one with the
 * largest entropy is taken: a set of n_used experts is met in proportion to the product of its
 * experts' odds (conditional Bernoulli sampling: Chen, Dempster and Liu, Biometrika 1994). With
 * equal chances every set is as likely. Sums over sets are elementary symmetric polynomials of the
 * odds, built up expert by expert. */
#include "plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    least_tokens = 64, /* counted in a layer: fewer say nothing */
    prior_tokens = 64, /* as many more are thought to have met every expert alike */
    most_rounds = 200
};

double tn_shape_hit_share(const tn_shape_layer *l, int32_t units)
{
    if (l->use) return l->use->sum[units] / l->n_used;
    return l->ffn_bytes ? (double)tn_shape_ffn_bytes(l, units) / (double)l->ffn_bytes : 0;
}

/* ---- one layer ------------------------------------------------------------------------------- */

/* One block of memory, what is larger first. */
static tn_expert_use *new_use(int32_t n, int32_t used, const tn_allocator *a)
{
    const size_t table = (size_t)(n + 1) * (size_t)(used + 1);
    const size_t doubles = 3 * (size_t)n + 1 + 2 * table;
    tn_expert_use *u;
    const size_t bytes = sizeof(tn_expert_use) + doubles * sizeof(double) +
                         (size_t)n * (sizeof *u->count + sizeof *u->order + sizeof *u->rank);
    u = tn_alloc(a, 1, bytes);
    if (!u) return NULL;
    u->chance = (double *)(u + 1);
    u->odds = u->chance + n;
    u->sum = u->odds + n;
    u->rest = u->sum + n + 1;
    u->hits = u->rest + table;
    u->count = (uint64_t *)(void *)(u->hits + table);
    u->order = (int32_t *)(void *)(u->count + n);
    u->rank = u->order + n;
    return u;
}

/* By falling count, equal ones as in the file. */
static void sort(tn_expert_use *u, const uint64_t *count, int32_t n)
{
    for (int32_t e = 0; e < n; e++) {
        int32_t at = e;
        for (; at > 0 && count[e] > count[u->order[at - 1]]; at--)
            u->order[at] = u->order[at - 1];
        u->order[at] = e;
    }
    for (int32_t r = 0; r < n; r++)
        u->rank[u->order[r]] = r;
}

/* first[e][h]: the sum over sets of h of the first e experts; rest[e][h]: of those from e on. */
static void add_sets(double *to, const double *from, double odds, int32_t used)
{
    to[0] = from[0];
    for (int32_t h = 1; h <= used; h++)
        to[h] = from[h] + odds * from[h - 1];
}

static void sum_sets(const tn_expert_use *u, double *first, int32_t n, int32_t used)
{
    const int32_t row = used + 1;
    memset(first, 0, (size_t)row * sizeof *first);
    memset(u->rest + (int64_t)n * row, 0, (size_t)row * sizeof *u->rest);
    first[0] = u->rest[(int64_t)n * row] = 1;
    for (int32_t e = 0; e < n; e++)
        add_sets(first + (int64_t)(e + 1) * row, first + (int64_t)e * row, u->odds[e], used);
    for (int32_t e = n - 1; e >= 0; e--)
        add_sets(u->rest + (int64_t)e * row, u->rest + (int64_t)(e + 1) * row, u->odds[e], used);
}

/* The sum over sets of h experts without e. */
static double sets_without(const tn_expert_use *u, const double *first, int32_t e, int32_t h,
                           int32_t used)
{
    const int32_t row = used + 1;
    const double *before = first + (int64_t)e * row, *after = u->rest + (int64_t)(e + 1) * row;
    double sum = 0;
    for (int32_t i = 0; i <= h; i++)
        sum += before[i] * after[h - i];
    return sum;
}

/* Odds with which each expert has its chance; their mean is kept at 1, so that no sum overflows. */
static void fit(tn_expert_use *u, double *first, int32_t n, int32_t used)
{
    for (int32_t e = 0; e < n; e++)
        u->odds[e] = u->chance[e] / (1 - u->chance[e]);
    for (int round = 0; round < most_rounds; round++) {
        double worst = 0, mean = 0;
        sum_sets(u, first, n, used);
        for (int32_t e = 0; e < n; e++) {
            const double with = u->odds[e] * sets_without(u, first, e, used - 1, used);
            const double without = sets_without(u, first, e, used, used);
            const double want = u->chance[e] / (1 - u->chance[e]);
            worst = fmax(worst, fabs(with / (with + without) - u->chance[e]));
            /* Half a step: a whole one goes to and fro where there are two experts. */
            u->hits[e] = u->odds[e] * sqrt(want * without / with); /* not needed yet */
        }
        if (!(worst > 1e-13)) break;
        for (int32_t e = 0; e < n; e++)
            mean += u->hits[e] / n;
        for (int32_t e = 0; e < n; e++)
            u->odds[e] = u->hits[e] / mean;
    }
    sum_sets(u, first, n, used);
}

static void fill_hits(const tn_expert_use *u, const double *first, int32_t n, int32_t used)
{
    const int32_t row = used + 1;
    const double all = u->rest[used];
    for (int32_t e = 0; e <= n; e++)
        for (int32_t h = 0; h <= used; h++)
            u->hits[(int64_t)e * row + h] =
                first[(int64_t)e * row + h] * u->rest[(int64_t)e * row + used - h] / all;
}

static tn_status use_layer(tn_shape *s, tn_shape_layer *y, const uint64_t *count, tn_error *err)
{
    const int32_t n = y->n_expert, used = y->n_used;
    double tokens = 0;
    for (int32_t e = 0; e < n; e++)
        tokens += (double)count[e] / used;
    if (used >= n || tokens < least_tokens) return TN_OK;
    for (int32_t e = 0; e < n; e++)
        if ((double)count[e] > tokens + 1) return TN_OK; /* a token meets an expert once */
    double *first = tn_alloc(s->a, (size_t)(n + 1) * (size_t)(used + 1), sizeof *first);
    tn_expert_use *u = first ? new_use(n, used, s->a) : NULL;
    if (!u) {
        tn_free(s->a, first);
        return tn_fail_nomem(err, (size_t)(n + 1) * (size_t)(used + 1), "the use of experts");
    }
    memcpy(u->count, count, (size_t)n * sizeof *count);
    sort(u, count, n);
    for (int32_t r = 0; r < n; r++)
        u->chance[r] = ((double)count[u->order[r]] + (double)prior_tokens * used / n) /
                       (tokens + prior_tokens);
    for (int32_t r = 0; r < n; r++)
        u->sum[r + 1] = u->sum[r] + u->chance[r];
    fit(u, first, n, used);
    fill_hits(u, first, n, used);
    tn_free(s->a, first);
    y->use = u;
    return TN_OK;
}

tn_status tn_shape_count(tn_shape *s, const tn_expert_counts *c, tn_error *err)
{
    tn_status status = TN_OK;
    for (int32_t l = 0; l < s->n_layers; l++)
        if (c->n_layers != s->n_layers ||
            (s->layer[l].n_expert && s->layer[l].n_expert != c->n_expert))
            return tn_fail(err, TN_EARG, -1,
                           "counters of %d layers with %d experts are not of this model",
                           c->n_layers, c->n_expert);
    for (int32_t l = 0; l < s->n_layers && !status; l++)
        if (s->layer[l].n_expert && !s->layer[l].use)
            status = use_layer(s, &s->layer[l], c->n + (int64_t)l * c->n_expert, err);
    tn_shape_classify(s);
    return status;
}
