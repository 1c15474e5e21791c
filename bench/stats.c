#include "stats.h"

#include "term.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A sorted copy, freed by the caller. */
static double *sorted(const double *samples, size_t n)
{
    double *s = tn_bench_alloc(n * sizeof *s);
    if (n) memcpy(s, samples, n * sizeof *s);
    qsort(s, n, sizeof *s, by_value);
    return s;
}

static double sorted_quantile(const double *s, size_t n, double q)
{
    if (n == 0) return NAN;
    const double at = q * (double)(n - 1);
    const size_t i = (size_t)at;
    return i + 1 < n ? s[i] + (at - (double)i) * (s[i + 1] - s[i]) : s[n - 1];
}

double tn_bench_quantile(const double *samples, size_t n, double q)
{
    double *s = sorted(samples, n);
    const double value = sorted_quantile(s, n, q);
    free(s);
    return value;
}

/* How many samples to leave out at each end so that P(median inside) is still >= 95 %, or -1: the
 * number below the median is binomial(n, 1/2). */
static int sign_test_rank(size_t n)
{
    double term = pow(0.5, (double)n), tail = 0; /* C(n, k) / 2^n */
    int rank = -1;
    if (term == 0) { /* n > 1000: the normal approximation is exact enough */
        return (int)floor((double)n / 2 - 1.959964 * sqrt((double)n) / 2) - 1;
    }
    for (size_t k = 0; k < n / 2; k++) {
        tail += term;
        if (!(2 * tail <= 0.05)) break;
        rank = (int)k;
        term *= (double)(n - k) / (double)(k + 1);
    }
    return rank;
}

/* Student's t, two-sided 95 %, for n = 2..5; of the logarithms where there are any, because a speed
 * cannot be negative. */
static void student(const double *s, size_t n, tn_bench_summary *out)
{
    static const double t[] = {NAN, NAN, 12.7062, 4.3027, 3.1824, 2.7764};
    const bool logs = out->min > 0;
    double mean = 0, sum = 0;
    for (size_t i = 0; i < n; i++)
        mean += (logs ? log(s[i]) : s[i]) / (double)n;
    for (size_t i = 0; i < n; i++)
        sum += pow((logs ? log(s[i]) : s[i]) - mean, 2);
    const double half = t[n] * sqrt(sum / (double)(n - 1) / (double)n);
    const double low = mean - half, high = mean + half;
    out->low = fmin(out->min, logs ? exp(low) : low);
    out->high = fmax(out->max, logs ? exp(high) : high);
}

tn_bench_summary tn_bench_summarise(const double *samples, size_t n)
{
    tn_bench_summary out = {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    if (n == 0) return out;
    double *s = sorted(samples, n), sum = 0;
    out.median = sorted_quantile(s, n, 0.5);
    out.min = s[0];
    out.max = s[n - 1];
    for (size_t i = 0; i < n; i++)
        sum += s[i];
    out.mean = sum / (double)n;
    const int rank = sign_test_rank(n);
    if (rank >= 0) {
        out.low = s[rank];
        out.high = s[n - 1 - (size_t)rank];
    } else if (n >= 2) {
        student(s, n, &out);
    }
    for (size_t i = 0; i < n; i++)
        s[i] = fabs(s[i] - out.median);
    qsort(s, n, sizeof *s, by_value);
    out.mad = sorted_quantile(s, n, 0.5);
    free(s);
    return out;
}

bool tn_bench_settled(const double *samples, size_t n, double part)
{
    if (n < 3) return false;
    const tn_bench_summary s = tn_bench_summarise(samples + n - 3, 3);
    return s.max - s.min <= part * s.median;
}

/* ---- two groups of samples ------------------------------------------------------------------- */

/* cumulative[u] = P(U <= u) for u = 0 .. na * nb without ties; freed by the caller. Counts the ways
 * to pick na of na + nb ranks by their sum: count[k][u], k picked so far. */
static double *exact_distribution(size_t na, size_t nb)
{
    const size_t top = na * nb;
    double *count = tn_bench_alloc((na + 1) * (top + 1) * sizeof *count);
    count[0] = 1;
    for (size_t item = 0; item < na + nb; item++) {
        /* Picking rank `item` as the k-th of the first group adds item - (k - 1) to U: the members
         * of the second group below it. */
        for (size_t k = item + 1 < na ? item + 1 : na; k >= 1; k--) {
            const size_t adds = item - (k - 1);
            if (adds > nb) continue;
            for (size_t u = adds; u <= top; u++)
                count[k * (top + 1) + u] += count[(k - 1) * (top + 1) + u - adds];
        }
    }
    double *cumulative = tn_bench_alloc((top + 1) * sizeof *cumulative), total = 0;
    for (size_t u = 0; u <= top; u++)
        cumulative[u] = total += count[na * (top + 1) + u];
    for (size_t u = 0; u <= top; u++)
        cumulative[u] /= total;
    free(count);
    return cumulative;
}

/* U of the first group: pairs in which it is larger, ties count one half. */
static double mann_whitney_u(const double *a, size_t na, const double *b, size_t nb, bool *ties)
{
    double u = 0;
    for (size_t i = 0; i < na; i++) {
        for (size_t j = 0; j < nb; j++) {
            u += a[i] > b[j] ? 1 : a[i] == b[j] ? 0.5 : 0;
            if (a[i] == b[j]) *ties = true;
        }
    }
    return u;
}

/* Sum of t^3 - t over groups of t equal samples. */
static double tie_term(const double *a, size_t na, const double *b, size_t nb)
{
    double *all = tn_bench_alloc((na + nb) * sizeof *all), term = 0;
    memcpy(all, a, na * sizeof *all);
    memcpy(all + na, b, nb * sizeof *all);
    qsort(all, na + nb, sizeof *all, by_value);
    for (size_t i = 0, end; i < na + nb; i = end) {
        for (end = i + 1; end < na + nb && all[end] == all[i];)
            end++;
        const double t = (double)(end - i);
        term += t * t * t - t;
    }
    free(all);
    return term;
}

static double normal_p(double u, const double *a, size_t na, const double *b, size_t nb)
{
    const double n = (double)(na + nb), pairs = (double)na * (double)nb;
    const double var = pairs / 12 * (n + 1 - tie_term(a, na, b, nb) / (n * (n - 1)));
    if (!(var > 0)) return 1; /* all samples are equal */
    const double z = fmax(0, fabs(u - pairs / 2) - 0.5) / sqrt(var);
    return fmin(1, erfc(z / sqrt(2)));
}

enum { exact_pairs = 400 };

double tn_bench_mann_whitney(const double *a, size_t na, const double *b, size_t nb)
{
    if (na == 0 || nb == 0) return 1;
    bool ties = false;
    const double u = mann_whitney_u(a, na, b, nb, &ties);
    if (ties || na * nb > exact_pairs) return normal_p(u, a, na, b, nb);
    double *cumulative = exact_distribution(na, nb);
    const size_t smaller = (size_t)fmin(u, (double)(na * nb) - u);
    const double p = fmin(1, 2 * cumulative[smaller]);
    free(cumulative);
    return p;
}

/* How many pairwise ratios to leave out at each end, or -1 if no interval reaches 95 %. */
static long pairs_to_drop(size_t na, size_t nb)
{
    if (na * nb > exact_pairs) {
        const double pairs = (double)na * (double)nb, var = pairs * (double)(na + nb + 1) / 12;
        return (long)floor(pairs / 2 - 1.959964 * sqrt(var) - 0.5);
    }
    double *cumulative = exact_distribution(na, nb);
    long drop = -1;
    for (size_t u = 0; u < na * nb && cumulative[u] <= 0.025; u++)
        drop = (long)u;
    free(cumulative);
    return drop;
}

tn_bench_ratio tn_bench_compare_samples(const double *a, size_t na, const double *b, size_t nb)
{
    tn_bench_ratio out = {NAN, NAN, NAN, tn_bench_mann_whitney(a, na, b, nb)};
    if (na == 0 || nb == 0) return out;
    out.ratio = tn_bench_quantile(b, nb, 0.5) / tn_bench_quantile(a, na, 0.5);
    const long drop = pairs_to_drop(na, nb);
    if (drop < 0) return out;
    double *all = tn_bench_alloc(na * nb * sizeof *all);
    for (size_t i = 0; i < na; i++)
        for (size_t j = 0; j < nb; j++)
            all[i * nb + j] = b[j] / a[i];
    qsort(all, na * nb, sizeof *all, by_value);
    out.low = all[drop];
    out.high = all[na * nb - 1 - (size_t)drop];
    free(all);
    return out;
}
