/* The sampler: the generator, each option by hand, the draw's distribution, recorded streams. The
 * defaults that files hold: test_sample_file.c. */
#include "harness.h"
#include "scarce.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../engine/philox.h"

#include <pthread.h>

static tn_engine engine;

static tn_sampler_options defaults(void)
{
    tn_sampler_options o;
    tn_sampler_defaults(NULL, &o, NULL);
    return o;
}

/* Everything off, temperature 1. */
static tn_sampler_options plain(void)
{
    tn_sampler_options o = defaults();
    o.temperature = 1;
    o.top_k = 0;
    o.top_p = 1;
    o.min_p = 0;
    return o;
}

static tn_sampler *sampler(const tn_sampler_options *o)
{
    engine.a = tn_default_allocator;
    tn_sampler *s;
    tn_error err = {0};
    if (tn_sampler_new(&s, &engine, o, &err)) FAIL("tn_sampler_new: %s", err.msg);
    return s;
}

static int32_t next(tn_sampler *s, const float *logits, int32_t n)
{
    int32_t t = -1;
    tn_error err = {0};
    if (tn_sampler_sample(s, logits, n, &t, NULL, &err)) FAIL("tn_sampler_sample: %s", err.msg);
    return t;
}

/* Bit i set: token i came up in 2,000 draws. */
static unsigned seen(const tn_sampler_options *o, const float *logits, int32_t n)
{
    tn_sampler *s = sampler(o);
    unsigned mask = 0;
    for (int i = 0; s && i < 2000; i++)
        mask |= 1u << next(s, logits, n);
    tn_sampler_free(s);
    return mask;
}

/* Greedy choice after accepting tokens. */
static int32_t greedy_after(tn_sampler_options o, const float *logits, int32_t n,
                            const int32_t *accepted, size_t n_accepted)
{
    o.temperature = 0;
    tn_sampler *s = sampler(&o);
    if (!s) return -1;
    for (size_t i = 0; i < n_accepted; i++)
        CHECK_INT(tn_sampler_accept(s, accepted[i], NULL), TN_OK);
    const int32_t t = next(s, logits, n);
    tn_sampler_free(s);
    return t;
}

/* ---- generator ---- */

/* The known answers published with Random123 for philox4x32, 10 rounds. */
TEST(philox_known_answers)
{
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        tn_philox4x32(known[i].ctr, known[i].key, out);
        for (int j = 0; j < 4; j++)
            CHECK_INT(out[j], known[i].out[j]);
    }
}

/* Computed by an independent program from the definition in philox.h. */
TEST(philox_uniform)
{
    CHECK_NEAR(tn_philox_uniform(0, 0), 0.88052019788861424, 0);
    CHECK_NEAR(tn_philox_uniform(42, 0), 0.46858651833910492, 0);
    CHECK_NEAR(tn_philox_uniform(42, 1), 0.32706338120338474, 0);
    CHECK_NEAR(tn_philox_uniform(0xffffffff12345678u, 1ull << 33), 0.97059052131313106, 0);
}

/* ---- recorded streams ---- */

typedef struct stream {
    struct {
        uint64_t seed;
        float temperature;
        int32_t top_k;
        float top_p, min_p, repeat, presence, frequency;
        int32_t last_n;
    } o;
    int32_t tokens[24];
} stream;

/* Computed by an independent program, which sorts everything, in double precision. */
static const stream streams[] = {
    {{42, 0.8f, 40, 0.95f, 0.05f, 1, 0, 0, 0},
     {4934, 2291, 1042, 1042, 315,  687,  285,  4363, 3527, 4363, 1042, 4798,
      1731, 654,  285,  728,  1731, 4934, 1318, 3716, 1318, 4798, 2370, 2477}},
    {{42, 1, 0, 1, 0, 1, 0, 0, 0},
     {4642, 1341, 4908, 4931, 1421, 3009, 2553, 2486, 426,  2803, 2255, 652,
      3397, 2170, 227,  4461, 3198, 4535, 261,  2383, 2878, 267,  3730, 3668}},
    {{(1ull << 40) + 3, 1.3f, 2000, 0.9f, 0, 1, 0, 0, 0},
     {4931, 3435, 2986, 2316, 3775, 4339, 2485, 4053, 491,  748,  963, 2622,
      3646, 697,  297,  1936, 3719, 4968, 960,  3350, 4733, 4460, 810, 3281}},
    {{9, 0.7f, 0, 1, 0.02f, 1, 0, 0, 0},
     {104,  4854, 793,  4140, 3287, 426,  2158, 1779, 4809, 285, 2370, 4461,
      4461, 3084, 3440, 98,   4783, 2337, 3739, 293,  4407, 109, 2291, 117}},
    {{5, 0.8f, 10, 0.95f, 0.05f, 1.3f, 0.5f, 0.25f, 6},
     {98,   4176, 4376, 2275, 1006, 1731, 728,  687,  98,   2291, 3287, 148,
      4363, 728,  687,  3716, 4376, 98,   3287, 4798, 1731, 1006, 3716, 3527}},
};

enum { stream_vocab = 5000 };

static tn_sampler_options stream_options(const stream *r)
{
    tn_sampler_options o = defaults();
    o.seed = r->o.seed;
    o.temperature = r->o.temperature;
    o.top_k = r->o.top_k;
    o.top_p = r->o.top_p;
    o.min_p = r->o.min_p;
    o.repeat_penalty = r->o.repeat;
    o.presence_penalty = r->o.presence;
    o.frequency_penalty = r->o.frequency;
    o.penalty_last_n = r->o.last_n;
    return o;
}

static void stream_logits(float *logits)
{
    uint64_t state = 7;
    for (int i = 0; i < stream_vocab; i++)
        logits[i] = test_randf(&state) * 8;
}

TEST(recorded_streams)
{
    static float logits[stream_vocab], before[stream_vocab];
    stream_logits(logits);
    memcpy(before, logits, sizeof before);
    for (size_t r = 0; r < sizeof streams / sizeof streams[0]; r++) {
        const tn_sampler_options o = stream_options(&streams[r]);
        tn_sampler *s = sampler(&o);
        REQUIRE(s);
        for (int turn = 0; turn < 2; turn++) {
            for (int i = 0; i < 24; i++) {
                const int32_t t = next(s, logits, stream_vocab);
                CHECK_MSG(t == streams[r].tokens[i], "stream %zu turn %d draw %d: %d, want %d", r,
                          turn, i, (int)t, (int)streams[r].tokens[i]);
                tn_sampler_accept(s, t, NULL);
            }
            tn_sampler_reset(s);
        }
        tn_sampler_free(s);
    }
    CHECK(memcmp(before, logits, sizeof before) == 0);
}

TEST(seeds_differ)
{
    static float logits[stream_vocab];
    stream_logits(logits);
    tn_sampler_options o = plain();
    tn_sampler *s = sampler(&o);
    o.seed = 1;
    tn_sampler *t = sampler(&o);
    REQUIRE(s && t);
    int same = 0;
    for (int i = 0; i < 64; i++)
        same += next(s, logits, stream_vocab) == next(t, logits, stream_vocab);
    CHECK(same < 16);
    tn_sampler_free(s);
    tn_sampler_free(t);
}

/* ---- the draw ---- */

/* Pearson's statistic of 20,000 draws against softmax(logits / temperature). */
static double chi_square(const float *logits, int32_t n, float temperature, uint64_t seed)
{
    enum { draws = 20000 };
    tn_sampler_options o = plain();
    o.temperature = temperature;
    o.seed = seed;
    tn_sampler *s = sampler(&o);
    double p[64], sum = 0, chi = 0;
    int count[64] = {0};
    for (int i = 0; i < draws; i++)
        count[next(s, logits, n)]++;
    for (int i = 0; i < n; i++)
        sum += p[i] = exp((double)logits[i] / (double)temperature);
    for (int i = 0; i < n; i++) {
        const double want = draws * p[i] / sum;
        chi += (count[i] - want) * (count[i] - want) / want;
    }
    tn_sampler_free(s);
    return chi;
}

/* 11 degrees of freedom: 31.3 is exceeded by chance once in 1,000. */
TEST(draw_follows_the_softmax)
{
    const float logits[12] = {0, 1, 2, -1, 0.5f, 0.5f, 1.5f, -0.5f, 0.25f, 1, 0, 2};
    for (uint64_t seed = 0; seed < 4; seed++) {
        CHECK(chi_square(logits, 12, 1, seed) < 31.3);
        CHECK(chi_square(logits, 12, 0.7f, seed) < 31.3);
        CHECK(chi_square(logits, 12, 2, seed) < 31.3);
    }
}

TEST(logprob_is_of_the_plain_softmax)
{
    static float logits[stream_vocab];
    stream_logits(logits);
    double sum = 0;
    for (int i = 0; i < stream_vocab; i++)
        sum += exp((double)logits[i]);
    tn_sampler_options o = defaults();
    const tn_logit_bias bias = {17, 100};
    o.bias = &bias;
    o.n_bias = 1;
    tn_sampler *s = sampler(&o);
    REQUIRE(s);
    int32_t t;
    float lp = NAN;
    CHECK_INT(tn_sampler_sample(s, logits, stream_vocab, &t, &lp, NULL), TN_OK);
    CHECK_INT(t, 17);
    CHECK_NEAR(lp, (double)logits[17] - log(sum), 1e-5);
    tn_sampler_free(s);
}

/* ---- options by hand ---- */

TEST(greedy_takes_the_lowest_id_of_equals)
{
    const float logits[6] = {1, 3, -2, 3, 3, 0};
    CHECK_INT(greedy_after(plain(), logits, 6, NULL, 0), 1);
}

TEST(top_k_keeps_the_best_and_lowest_ids)
{
    const float logits[6] = {1, 2, 2, 2, 1, 3};
    tn_sampler_options o = plain();
    o.top_k = 1;
    CHECK_INT(seen(&o, logits, 6), 1 << 5);
    o.top_k = 3;
    CHECK_INT(seen(&o, logits, 6), 1 << 5 | 1 << 1 | 1 << 2);
    o.top_k = 6;
    CHECK_INT(seen(&o, logits, 6), 63);
    o.top_k = INT32_MAX;
    CHECK_INT(seen(&o, logits, 6), 63);
    o.top_k = 0;
    CHECK_INT(seen(&o, logits, 6), 63);
}

/* ln of 0.5, 0.3, 0.15, 0.05 */
static const float shares[4] = {-0.693147f, -1.203973f, -1.897120f, -2.995732f};

TEST(top_p_keeps_the_smallest_set_that_reaches_it)
{
    tn_sampler_options o = plain();
    o.top_p = 0;
    CHECK_INT(seen(&o, shares, 4), 1);
    o.top_p = 0.49f;
    CHECK_INT(seen(&o, shares, 4), 1);
    o.top_p = 0.51f;
    CHECK_INT(seen(&o, shares, 4), 3);
    o.top_p = 0.79f;
    CHECK_INT(seen(&o, shares, 4), 3);
    o.top_p = 0.81f;
    CHECK_INT(seen(&o, shares, 4), 7);
    o.top_p = 1;
    CHECK_INT(seen(&o, shares, 4), 15);
    o.top_k = 2; /* shares of the remaining: 0.625, 0.375 */
    o.top_p = 0.6f;
    CHECK_INT(seen(&o, shares, 4), 1);
    const float equals[2] = {1, 1};
    o.top_p = 0.5f; /* reached, not exceeded */
    CHECK_INT(seen(&o, equals, 2), 1);
}

TEST(top_p_comes_before_min_p)
{
    tn_sampler_options o = plain();
    o.min_p = 0.2f; /* leaves 0.95 */
    o.top_p = 0.82f;
    CHECK_INT(seen(&o, shares, 4), 7);
}

TEST(top_p_comes_before_temperature)
{
    tn_sampler_options o = plain();
    o.top_p = 0.79f;
    o.temperature = 100;
    CHECK_INT(seen(&o, shares, 4), 3);
}

TEST(min_p_is_relative_to_the_best)
{
    tn_sampler_options o = plain();
    o.min_p = 0.59f;
    CHECK_INT(seen(&o, shares, 4), 3);
    o.min_p = 0.61f;
    CHECK_INT(seen(&o, shares, 4), 1);
    o.min_p = 0.29f;
    CHECK_INT(seen(&o, shares, 4), 7);
    o.min_p = 0.31f;
    o.temperature = 100;
    CHECK_INT(seen(&o, shares, 4), 3);
    o.min_p = 1;
    CHECK_INT(seen(&o, shares, 4), 1);
    const float equals[3] = {1, 0, 1};
    CHECK_INT(seen(&o, equals, 3), 5);
}

TEST(bias_moves_and_bans)
{
    const tn_logit_bias bias[] = {{2, 5}, {0, -INFINITY}, {2, 1}};
    const float logits[4] = {9, 2, 0, 2};
    tn_sampler_options o = plain();
    o.bias = bias;
    o.n_bias = 1;
    CHECK_INT(greedy_after(o, logits, 4, NULL, 0), 0);
    o.n_bias = 2;
    CHECK_INT(greedy_after(o, logits, 4, NULL, 0), 2);
    CHECK_INT(seen(&o, logits, 4) & 1, 0);
    o.n_bias = 3; /* both entries of token 2 count */
    const float closer[4] = {9, 5.5f, 0, 2};
    CHECK_INT(greedy_after(o, closer, 4, NULL, 0), 2);
    const tn_logit_bias huge = {0, 3e38f};
    const float large[3] = {3e38f, 0, 0};
    o.bias = &huge;
    o.n_bias = 1;
    CHECK_INT(seen(&o, large, 3), 1);
    const tn_logit_bias both[] = {{0, 3e38f}, {1, 3e38f}}; /* the sums stay finite, and so equal */
    const float pair[3] = {3e38f, 2e38f, 0};
    o.bias = both;
    o.n_bias = 2;
    CHECK_INT(seen(&o, pair, 3), 3);
}

TEST(repeat_penalty_divides_positive_multiplies_negative)
{
    tn_sampler_options o = plain();
    o.repeat_penalty = 2;
    const int32_t zero[] = {0, 0};
    const float positive[3] = {4, 2.5f, 1.5f}, close[3] = {4, 1.9f, 1};
    CHECK_INT(greedy_after(o, positive, 3, zero, 2), 1);
    CHECK_INT(greedy_after(o, close, 3, zero, 2), 0); /* once, however often it occurred */
    const float negative[3] = {-1, -1.9f, -9}, far[3] = {-1, -2.1f, -9};
    CHECK_INT(greedy_after(o, negative, 3, zero, 2), 1);
    CHECK_INT(greedy_after(o, far, 3, zero, 2), 0);
}

TEST(penalised_logits_stay_finite)
{
    const float logits[3] = {1e37f, 2e36f, 0};
    tn_sampler_options o = plain();
    o.repeat_penalty = 0.001f;
    tn_sampler *s = sampler(&o);
    REQUIRE(s);
    unsigned mask = 0;
    for (int32_t t = 0; t < 2; t++)
        CHECK_INT(tn_sampler_accept(s, t, NULL), TN_OK);
    for (int i = 0; i < 64; i++)
        mask |= 1u << next(s, logits, 3);
    CHECK_INT(mask, 3); /* both are the largest float */
    tn_sampler_free(s);
}

TEST(presence_and_frequency_penalties_subtract)
{
    const int32_t seen_tokens[] = {0, 0, 0, 1};
    const float logits[3] = {5, 4.1f, 3.5f};
    tn_sampler_options o = plain();
    o.presence_penalty = 1; /* 4, 3.1, 3.5 */
    CHECK_INT(greedy_after(o, logits, 3, seen_tokens, 4), 0);
    o.presence_penalty = 1.6f; /* 3.4, 2.5, 3.5 */
    CHECK_INT(greedy_after(o, logits, 3, seen_tokens, 4), 2);
    o.presence_penalty = 0;
    o.frequency_penalty = 0.4f; /* 3.8, 3.7, 3.5 */
    CHECK_INT(greedy_after(o, logits, 3, seen_tokens, 4), 0);
    o.frequency_penalty = 0.5f; /* 3.5, 3.6, 3.5 */
    CHECK_INT(greedy_after(o, logits, 3, seen_tokens, 4), 1);
}

TEST(bias_comes_before_penalties)
{
    const tn_logit_bias bias = {0, 4};
    tn_sampler_options o = plain();
    o.repeat_penalty = 2;
    o.bias = &bias;
    o.n_bias = 1;
    const int32_t zero = 0;
    const float logits[2] = {-2, 1.5f}; /* (-2 + 4) / 2 = 1, not -2 * 2 + 4 = 0 */
    CHECK_INT(greedy_after(o, logits, 2, &zero, 1), 1);
    const float lower[2] = {-2, 0.5f};
    CHECK_INT(greedy_after(o, lower, 2, &zero, 1), 0);
}

TEST(penalties_see_the_last_n_tokens)
{
    int32_t accepted[40] = {0}; /* 0 first, then 39 times 2 */
    for (int i = 1; i < 40; i++)
        accepted[i] = 2;
    const float logits[3] = {5, 4, 0};
    tn_sampler_options o = plain();
    o.presence_penalty = 2;
    o.penalty_last_n = 40;
    CHECK_INT(greedy_after(o, logits, 3, accepted, 40), 1);
    o.penalty_last_n = 39;
    CHECK_INT(greedy_after(o, logits, 3, accepted, 40), 0);
    o.penalty_last_n = 3;
    CHECK_INT(greedy_after(o, logits, 3, accepted, 40), 0);
    o.penalty_last_n = -1;
    CHECK_INT(greedy_after(o, logits, 3, accepted, 40), 1);
    o.penalty_last_n = 0;
    CHECK_INT(greedy_after(o, logits, 3, accepted, 1), 0);
    static int32_t long_ago[3000]; /* 0 first */
    for (int i = 1; i < 3000; i++)
        long_ago[i] = 2;
    o.penalty_last_n = -1;
    CHECK_INT(greedy_after(o, logits, 3, long_ago, 3000), 1);
}

/* ---- large vocabularies ---- */

static int by_logit(const void *x, const void *y)
{
    const float *const *a = x, *const *b = y;
    return **a < **b ? 1 : **a > **b ? -1 : *a < *b ? -1 : 1;
}

/* The token that the definition gives, with everything sorted. */
static int32_t slow_draw(const float *logits, int32_t n, const tn_sampler_options *o, uint64_t draw)
{
    const float **order = malloc((size_t)n * sizeof *order);
    for (int32_t i = 0; i < n; i++)
        order[i] = logits + i;
    qsort(order, (size_t)n, sizeof *order, by_logit);
    int32_t m = o->top_k && o->top_k < n ? o->top_k : n;
    double sum = 0, part = 0;
    for (int32_t i = 0; i < m; i++)
        sum += exp((double)*order[i] - (double)*order[0]);
    for (int32_t i = 0; i < m && o->top_p < 1; i++) {
        part += exp((double)*order[i] - (double)*order[0]);
        if (part >= (double)o->top_p * sum) m = i + 1;
    }
    const double u = tn_philox_uniform(o->seed, draw), temp = (double)o->temperature;
    sum = part = 0;
    for (int32_t i = 0; i < m; i++)
        sum += exp(((double)*order[i] - (double)*order[0]) / temp);
    int32_t id = -1;
    for (int32_t i = 0; i < m && id < 0; i++) {
        part += exp(((double)*order[i] - (double)*order[0]) / temp);
        if (part > u * sum) id = (int32_t)(order[i] - logits);
    }
    free(order);
    return id;
}

TEST(partial_selection_equals_full_sorting)
{
    enum { n = 40000 };
    static float logits[n];
    static const int32_t top_k[] = {1, 2, 40, 511, 512, 513, 5000, n - 1, 0};
    uint64_t state = 99;
    for (int shape = 0; shape < 4; shape++) {
        for (int i = 0; i < n; i++) {
            const float r = test_randf(&state);
            logits[i] = shape == 0   ? r * 3
                        : shape == 1 ? (float)(i % 5)
                        : shape == 2 ? (float)i / n * 9
                                     : -r * r;
        }
        for (size_t k = 0; k < sizeof top_k / sizeof top_k[0]; k++) {
            tn_sampler_options o = plain();
            o.top_k = top_k[k];
            o.top_p = k & 1 ? 0.9f : 1;
            o.seed = (uint64_t)shape;
            tn_sampler *s = sampler(&o);
            REQUIRE(s);
            for (uint64_t d = 0; d < 3; d++)
                CHECK_INT(next(s, logits, n), slow_draw(logits, n, &o, d));
            tn_sampler_free(s);
        }
    }
}

/* Candidates are sorted piece by piece: each place is drawn at some time. */
TEST(nearly_equal_logits_are_drawn_in_order)
{
    enum { n = 600 };
    float logits[n];
    uint64_t state = 3;
    for (uint64_t seed = 0; seed < 4; seed++) {
        for (int i = 0; i < n; i++)
            logits[i] = test_randf(&state) * 0.01f;
        tn_sampler_options o = plain();
        o.top_p = 0.9999f;
        o.seed = seed;
        tn_sampler *s = sampler(&o);
        REQUIRE(s);
        for (uint64_t d = 0; d < 700; d++)
            CHECK_INT(next(s, logits, n), slow_draw(logits, n, &o, d));
        tn_sampler_free(s);
    }
}

TEST(vocabularies_may_change)
{
    static const float logits[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    tn_sampler_options o = plain();
    o.temperature = 0;
    tn_sampler *s = sampler(&o);
    REQUIRE(s);
    for (int32_t n = 1; n <= 9; n += 4)
        CHECK_INT(next(s, logits, n), n - 1);
    CHECK_INT(next(s, logits, 2), 1);
    tn_sampler_free(s);
}

/* ---- refusals ---- */

TEST(bad_logits_are_errors)
{
    const float bad[3][3] = {{0, NAN, 1}, {-INFINITY, -INFINITY, -INFINITY}, {0, INFINITY, 1}};
    for (int greedy = 0; greedy < 2; greedy++) {
        tn_sampler_options o = defaults();
        if (greedy) o.temperature = 0;
        tn_sampler *s = sampler(&o);
        REQUIRE(s);
        for (int i = 0; i < 3; i++) {
            tn_error err = {0};
            int32_t t = 77;
            CHECK_INT(tn_sampler_sample(s, bad[i], 3, &t, NULL, &err), TN_EINTERNAL);
            CHECK(strstr(err.msg, i == 1 ? "-infinity" : "token 1"));
            CHECK_INT(t, 77);
        }
        const float one[3] = {-INFINITY, -INFINITY, -90};
        CHECK_INT(next(s, one, 3), 2);
        tn_sampler_free(s);
    }
}

TEST(options_out_of_range_are_named)
{
    tn_sampler_options o[24];
    for (int i = 0; i < 24; i++)
        o[i] = defaults();
    static const char *const name[] = {"temperature",
                                       "temperature",
                                       "temperature",
                                       "top_k",
                                       "top_p",
                                       "top_p",
                                       "min_p",
                                       "min_p",
                                       "repeat_penalty",
                                       "repeat_penalty",
                                       "penalty_last_n",
                                       "presence_penalty",
                                       "frequency_penalty",
                                       "bias",
                                       "bias",
                                       "bias",
                                       "struct_size",
                                       "struct_size"};
    const tn_logit_bias bad[] = {{0, NAN}, {-1, 1}};
    o[0].temperature = -1;
    o[1].temperature = NAN;
    o[2].temperature = INFINITY;
    o[3].top_k = -1;
    o[4].top_p = 1.5f;
    o[5].top_p = NAN;
    o[6].min_p = -0.1f;
    o[7].min_p = 2;
    o[8].repeat_penalty = 0;
    o[9].repeat_penalty = -INFINITY;
    o[10].penalty_last_n = -2;
    o[11].presence_penalty = NAN;
    o[12].frequency_penalty = INFINITY;
    o[13].n_bias = 1;
    o[14].n_bias = 1;
    o[14].bias = &bad[0];
    o[15].n_bias = 1;
    o[15].bias = &bad[1];
    o[16].struct_size = 0;
    o[17].struct_size = 5000;
    for (int i = 0; i < 18; i++) {
        tn_sampler *s = (tn_sampler *)&engine;
        tn_error err = {0};
        CHECK_INT(tn_sampler_new(&s, &engine, &o[i], &err), TN_EARG);
        CHECK_MSG(strstr(err.msg, name[i]), "%d: '%s' does not name %s", i, err.msg, name[i]);
        CHECK(s == NULL);
    }
}

TEST(tokens_outside_the_vocabulary_are_errors)
{
    const tn_logit_bias bias = {3, 1};
    const float logits[3] = {1, 2, 3};
    tn_sampler_options o = plain();
    o.repeat_penalty = 2;
    tn_sampler *s = sampler(&o);
    o.bias = &bias;
    o.n_bias = 1;
    tn_sampler *b = sampler(&o);
    REQUIRE(s && b);
    int32_t t;
    tn_error err = {0};
    CHECK_INT(tn_sampler_sample(b, logits, 3, &t, NULL, &err), TN_EARG);
    CHECK(strstr(err.msg, "token 3"));
    CHECK_INT(tn_sampler_accept(s, -1, NULL), TN_EARG);
    CHECK_INT(tn_sampler_accept(s, 3, NULL), TN_OK);
    CHECK_INT(tn_sampler_sample(s, logits, 3, &t, NULL, NULL), TN_EARG);
    CHECK_INT(tn_sampler_sample(s, logits, 0, &t, NULL, NULL), TN_EARG);
    tn_sampler_free(s);
    tn_sampler_free(b);
}

/* A caller built against a shorter struct gets the defaults of what it does not know. */
TEST(struct_size_limits_what_is_read)
{
    tn_sampler_options o = defaults();
    o.temperature = 0;
    o.repeat_penalty = NAN;
    o.struct_size = offsetof(tn_sampler_options, repeat_penalty);
    tn_sampler *s = sampler(&o);
    REQUIRE(s);
    const float logits[2] = {0, 1};
    CHECK_INT(next(s, logits, 2), 1);
    tn_sampler_free(s);
}

/* ---- memory and threads ---- */

TEST(every_failing_allocation_is_reported)
{
    const tn_logit_bias bias = {1, 1};
    const float logits[4] = {1, 2, 3, 4};
    tn_sampler_options o = defaults();
    o.repeat_penalty = 1.5f;
    o.bias = &bias;
    o.n_bias = 1;
    int k = 0;
    for (tn_status status = TN_ENOMEM; status && k < 20; k++) {
        scarce m = {k, 0};
        engine.a = scarce_allocator(&m);
        tn_sampler *s;
        int32_t t;
        status = tn_sampler_new(&s, &engine, &o, NULL);
        if (!status) status = tn_sampler_accept(s, 2, NULL);
        if (!status) status = tn_sampler_sample(s, logits, 4, &t, NULL, NULL);
        CHECK(status == TN_OK || status == TN_ENOMEM);
        if (!status) {
            m.left = 0; /* nothing is allocated after the first call */
            CHECK_INT(tn_sampler_sample(s, logits, 4, &t, NULL, NULL), TN_OK);
        }
        tn_sampler_free(s);
        CHECK_INT(m.live, 0);
    }
    CHECK_INT(k, 7); /* the sampler, biases, history and three buffers */
}

TEST(the_history_is_as_long_as_the_window)
{
    tn_sampler_options o = defaults();
    o.repeat_penalty = 1.5f;
    o.penalty_last_n = 4;
    scarce m = {1000, 0};
    engine.a = scarce_allocator(&m);
    tn_sampler *s;
    REQUIRE(!tn_sampler_new(&s, &engine, &o, NULL));
    for (int i = 0; i < 64; i++)
        CHECK_INT(tn_sampler_accept(s, i, NULL), TN_OK);
    m.left = 0;
    for (int i = 0; i < 1000; i++)
        CHECK_INT(tn_sampler_accept(s, i, NULL), TN_OK);
    tn_sampler_free(s);
    CHECK_INT(m.live, 0);
}

typedef struct contender {
    tn_sampler *s;
    const float *logits;
    int32_t n;
    int ok, busy, busy_accept, other;
} contender;

static void *contend(void *p)
{
    contender *c = p;
    for (int i = 0; i < 300; i++) {
        int32_t t;
        const tn_status s = tn_sampler_sample(c->s, c->logits, c->n, &t, NULL, NULL);
        c->ok += s == TN_OK;
        c->busy += s == TN_EBUSY;
        const tn_status a = tn_sampler_accept(c->s, i, NULL);
        c->busy_accept += a == TN_EBUSY;
        c->other += (s != TN_OK && s != TN_EBUSY) || (a != TN_OK && a != TN_EBUSY);
    }
    return NULL;
}

TEST(concurrent_use_is_refused)
{
    enum { n = 100000 };
    static float logits[n];
    uint64_t state = 5;
    for (int i = 0; i < n; i++)
        logits[i] = test_randf(&state);
    tn_sampler_options o = defaults();
    o.repeat_penalty = 1.1f;
    contender c[2] = {{.s = sampler(&o), .logits = logits, .n = n}};
    REQUIRE(c[0].s);
    c[1] = c[0];
    pthread_t other;
    REQUIRE(pthread_create(&other, NULL, contend, &c[1]) == 0);
    contend(&c[0]);
    pthread_join(other, NULL);
    CHECK_INT(c[0].other + c[1].other, 0);
    CHECK(c[0].busy + c[1].busy > 0 && c[0].busy_accept + c[1].busy_accept > 0);
    CHECK(c[0].ok + c[1].ok > 0);
    tn_sampler_free(c[0].s);
}

TEST_MAIN
