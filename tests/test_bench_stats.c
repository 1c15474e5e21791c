/* The benchmark's statistics against published tables and worked examples, and its SHA-256. */
#include "harness.h"

#include "../bench/sha256.h"
#include "../bench/stats.h"

#define N(a) (sizeof(a) / sizeof *(a))

TEST(median_and_mad)
{
    const double odd[] = {100, 2, 3, 1, 4}, even[] = {1, 4, 2, 8};
    const tn_bench_summary a = tn_bench_summarise(odd, 5), b = tn_bench_summarise(even, 4);
    CHECK_NEAR(a.median, 3, 0);
    CHECK_NEAR(a.mad, 1, 0);
    CHECK_NEAR(a.min, 1, 0);
    CHECK_NEAR(a.max, 100, 0);
    CHECK_NEAR(a.mean, 22, 0);
    CHECK_NEAR(b.median, 3, 0);
    CHECK_NEAR(b.mad, 1.5, 0);
}

TEST(too_few_samples)
{
    const double one[] = {7};
    const tn_bench_summary none = tn_bench_summarise(NULL, 0), single = tn_bench_summarise(one, 1);
    CHECK(isnan(none.median) && isnan(none.mad) && isnan(none.low) && isnan(none.min));
    CHECK_NEAR(single.median, 7, 0);
    CHECK_NEAR(single.mad, 0, 0);
    CHECK(isnan(single.low) && isnan(single.high));
    CHECK(isnan(tn_bench_quantile(NULL, 0, 0.5)));
}

/* As quantile(c(1,2,3,4,10), c(.5,.95,.99,1)) of R gives them. */
TEST(quantiles)
{
    const double x[] = {10, 1, 3, 2, 4};
    CHECK_NEAR(tn_bench_quantile(x, 5, 0.5), 3, 0);
    CHECK_NEAR(tn_bench_quantile(x, 5, 0.95), 8.8, 1e-12);
    CHECK_NEAR(tn_bench_quantile(x, 5, 0.99), 9.76, 1e-12);
    CHECK_NEAR(tn_bench_quantile(x, 5, 1), 10, 0);
    CHECK_NEAR(tn_bench_quantile(x, 5, 0), 1, 0);
}

/* Ranks of the sign test's interval at 95 %, from the usual tables. */
TEST(interval_of_the_median)
{
    static const struct {
        size_t n;
        double low, high;
    } known[] = {{6, 1, 6},   {8, 1, 8},   {9, 2, 8},    {10, 2, 9},   {15, 4, 12},
                 {20, 6, 15}, {25, 8, 18}, {50, 18, 33}, {100, 40, 61}};
    double x[100];
    for (size_t k = 0; k < N(known); k++) {
        for (size_t i = 0; i < known[k].n; i++)
            x[i] = (double)(known[k].n - i);
        const tn_bench_summary s = tn_bench_summarise(x, known[k].n);
        CHECK_NEAR(s.low, known[k].low, 0);
        CHECK_NEAR(s.high, known[k].high, 0);
    }
}

TEST(interval_of_many_samples)
{
    enum { n = 5000 };
    double *x = malloc(n * sizeof *x);
    REQUIRE(x);
    for (int i = 0; i < n; i++)
        x[i] = i + 1;
    const tn_bench_summary s = tn_bench_summarise(x, n);
    CHECK_NEAR(s.low, 2500.5 - 1.96 * sqrt(n) / 2, 3);
    CHECK_NEAR(s.high, 2500.5 + 1.96 * sqrt(n) / 2, 3);
    free(x);
}

/* exp(mean +- 2.77645 sd / sqrt(5)) of the logarithms, worked out apart. */
TEST(interval_of_five)
{
    const double x[] = {10, 12, 11, 13, 9.5}, wide[] = {1, 1, 1, 1, 50};
    const tn_bench_summary s = tn_bench_summarise(x, 5);
    CHECK_NEAR(s.low, 9.40086, 1e-3);
    CHECK_NEAR(s.high, 13, 0); /* the largest sample is above 12.934 */
    const tn_bench_summary w = tn_bench_summarise(wide, 5);
    CHECK(w.low > 0 && w.low < 1 && w.high >= 50);
}

TEST(settles_when_three_agree)
{
    const double x[] = {5, 1.0, 1.01, 1.019}, y[] = {1, 1, 1.03}, z[] = {1, 1};
    CHECK(tn_bench_settled(x, 4, 0.02));
    CHECK(!tn_bench_settled(x, 3, 0.02));
    CHECK(!tn_bench_settled(y, 3, 0.02));
    CHECK(!tn_bench_settled(z, 2, 0.02));
}

/* Exact: two groups of five apart, 2 of C(10,5) = 252; R's example of placentas in wilcox.test
 * (one-sided p = 0.1272); scipy's example of ages (p = 14/126). */
TEST(mann_whitney_exact)
{
    const double a[] = {1, 2, 3, 4, 5}, b[] = {6, 7, 8, 9, 10};
    CHECK_NEAR(tn_bench_mann_whitney(a, 5, b, 5), 2.0 / 252, 1e-12);
    CHECK_NEAR(tn_bench_mann_whitney(b, 5, a, 5), 2.0 / 252, 1e-12);
    const double x[] = {0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46};
    const double y[] = {1.15, 0.88, 0.90, 0.74, 1.21};
    CHECK_NEAR(tn_bench_mann_whitney(x, 10, y, 5), 2 * 0.1272, 1e-4);
    const double men[] = {19, 22, 16, 29, 24}, women[] = {20, 11, 17, 12};
    CHECK_NEAR(tn_bench_mann_whitney(men, 5, women, 4), 14.0 / 126, 1e-12);
}

TEST(mann_whitney_with_ties)
{
    const double a[] = {1, 2, 2, 3, 5, 5, 7}, b[] = {2, 4, 5, 8, 9, 9, 10, 11}, same[] = {4, 4, 4};
    CHECK_NEAR(tn_bench_mann_whitney(a, 7, b, 8), 0.0411808545, 1e-9);
    CHECK_NEAR(tn_bench_mann_whitney(same, 3, same, 3), 1, 0);
    CHECK_NEAR(tn_bench_mann_whitney(a, 0, b, 8), 1, 0);
}

/* Exact up to 20 x 20; beyond, the normal approximation is close to the exact value (both worked
 * out apart, by counting). */
TEST(mann_whitney_of_many)
{
    double a[21], b[21];
    for (int i = 0; i < 21; i++) {
        a[i] = i;
        b[i] = i + 4.5;
    }
    CHECK_NEAR(tn_bench_mann_whitney(a, 20, b, 20), 0.0304112560, 1e-9);
    CHECK_NEAR(tn_bench_mann_whitney(a, 21, b, 21), 0.033587, 0.002);
}

/* C = 3 for two groups of five (tables of the Mann-Whitney interval): the third smallest and third
 * largest of the 25 ratios. */
TEST(ratio_and_its_interval)
{
    const double a[] = {10, 10.1, 10.2, 10.3, 10.4}, b[] = {20, 20.3, 20.5, 20.9, 21};
    const tn_bench_ratio r = tn_bench_compare_samples(a, 5, b, 5);
    CHECK_NEAR(r.ratio, 20.5 / 10.2, 1e-12);
    CHECK_NEAR(r.low, 20.3 / 10.4, 1e-12); /* after 20/10.4 and 20/10.3 */
    CHECK_NEAR(r.high, 21 / 10.1, 1e-12);  /* before 20.9/10 and 21/10 */
    CHECK_NEAR(r.p, 2.0 / 252, 1e-12);
    const tn_bench_ratio few = tn_bench_compare_samples(a, 3, b, 3);
    CHECK(isnan(few.low) && isnan(few.high) && few.ratio > 1);
    CHECK_NEAR(few.p, 0.1, 1e-12);
    CHECK(isnan(tn_bench_compare_samples(a, 0, b, 3).ratio));
}

static void hash(const char *s, size_t n, size_t piece, const char *want)
{
    char hex[65];
    tn_bench_sha256 h;
    tn_bench_sha256_init(&h);
    for (size_t i = 0; i < n; i += piece)
        tn_bench_sha256_add(&h, s + i, n - i < piece ? n - i : piece);
    tn_bench_sha256_end(&h, hex);
    CHECK_STR(hex, want);
}

/* Published vectors, and lengths around the padding by Python's hashlib. */
TEST(sha256)
{
    static const struct {
        size_t n;
        const char *want;
    } known[] = {
        {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"},
        {56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"},
        {63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34"},
        {64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"},
        {65, "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0"},
        {119, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb"},
        {1000, "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3"},
    };
    char a[1000];
    memset(a, 'a', sizeof a);
    hash("abc", 3, 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (size_t k = 0; k < N(known); k++) {
        hash(a, known[k].n, known[k].n + 1, known[k].want);
        hash(a, known[k].n, 7, known[k].want);
    }
}

TEST_MAIN
