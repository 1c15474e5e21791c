/* The test harness: every test program defines cases with TEST() and ends with TEST_MAIN.
 * Prints one line per failing check and closes with "N passed, N failed[, N skipped]" counting
 * cases. */
#ifndef TN_HARNESS_H
#define TN_HARNESS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tn_test {
    const char *name;
    void (*run)(void);
    struct tn_test *next;
} tn_test;

static tn_test *tn_tests, **tn_tests_end = &tn_tests;
static int tn_failures;         /* failed checks of the running case */
static const char *tn_skipped;  /* why the running case was skipped */

#define TEST(id)                                                                                   \
    static void id(void);                                                                          \
    __attribute__((constructor)) static void register_##id(void)                                   \
    {                                                                                              \
        static tn_test t = {#id, id, NULL};                                                        \
        *tn_tests_end = &t;                                                                        \
        tn_tests_end = &t.next;                                                                    \
    }                                                                                              \
    static void id(void)

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        if (++tn_failures <= 20) {                                                                 \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) FAIL("not true: %s", #cond);                                                  \
    } while (0)
#define CHECK_MSG(cond, ...)                                                                       \
    do {                                                                                           \
        if (!(cond)) FAIL(__VA_ARGS__);                                                            \
    } while (0)
/* Stops the case: what follows would make no sense. */
#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            FAIL("not true: %s", #cond);                                                           \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#define CHECK_INT(got, want)                                                                       \
    do {                                                                                           \
        long long g_ = (long long)(got), w_ = (long long)(want);                                   \
        if (g_ != w_) FAIL("%s is %lld, want %lld", #got, g_, w_);                                 \
    } while (0)
#define CHECK_STR(got, want) \
    do { \
        const char *g_ = (got), *w_ = (want); \
        if (!g_ || strcmp(g_, w_) != 0) \
            FAIL("%s is \"%s\", want \"%s\"", #got, g_ ? g_ : "(null)", w_); \
    } while (0)
/* |got - want| <= tol, and false for NaN. */
#define CHECK_NEAR(got, want, tol)                                                                 \
    do {                                                                                           \
        double g_ = (got), w_ = (want), t_ = (tol);                                                \
        if (!(fabs(g_ - w_) <= t_)) FAIL("%s is %.9g, want %.9g within %.3g", #got, g_, w_, t_);   \
    } while (0)
#define SKIP(why)                                                                                  \
    do {                                                                                           \
        tn_skipped = (why);                                                                        \
        return;                                                                                    \
    } while (0)

/* Seeded generator for test data (splitmix64): the same on every machine. */
static inline uint64_t test_rand(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
/* Uniform in [-1, 1). */
static inline float test_randf(uint64_t *state)
{
    return (float)((double)(test_rand(state) >> 11) * (2.0 / 9007199254740992.0) - 1.0);
}

static inline int tn_test_main(int argc, char **argv)
{
    int passed = 0, failed = 0, skipped = 0;
    for (tn_test *t = tn_tests; t; t = t->next) {
        if (argc > 1 && !strstr(t->name, argv[1])) continue;
        tn_failures = 0;
        tn_skipped = NULL;
        t->run();
        if (tn_failures) {
            failed++;
            fprintf(stderr, "FAILED %s (%d checks)\n", t->name, tn_failures);
        } else if (tn_skipped) {
            skipped++;
            fprintf(stderr, "skipped %s: %s\n", t->name, tn_skipped);
        } else {
            passed++;
        }
    }
    printf("%d passed, %d failed", passed, failed);
    if (skipped) printf(", %d skipped", skipped);
    printf("\n");
    return failed != 0;
}
#define TEST_MAIN                                                                                  \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return tn_test_main(argc, argv);                                                           \
    }

#endif
