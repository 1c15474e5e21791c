/* The planner against exhaustive search, and what every plan must satisfy. */
#include "plan_random.h"
#include "scarce.h"

#include <time.h>

static const tn_allocator *const heap = &tn_default_allocator;

/* ---- exhaustive search ----------------------------------------------------------------------- */

typedef struct option {
    double cost;
    uint64_t live, full, host;
} option;

typedef struct search {
    const tn_cost *k;
    bool elastic, host_only;
    int n_places;
    option *opt[32][2 * TN_MAX_DEVICES]; /* [stage][place]: [units] */
    int n_opt[32];
    uint64_t cap[TN_MAX_DEVICES], ram;
    double best;
} search;

/* Adds the stages from `stage` on; live and full are what the current device already holds. */
static void search_from(search *s, int stage, int place, double cost, uint64_t live, uint64_t full,
                        uint64_t host)
{
    const int n_layers = s->k->s->n_layers;
    if (cost >= s->best) return;
    if (stage > n_layers) {
        s->best = cost;
        return;
    }
    for (int q = 0; q < s->n_places; q++) {
        if (stage == n_layers && q != place) continue;
        if (place >= 0 && q / 2 < place / 2) continue;
        const int from = place >= 0 && place % 2 ? place / 2 : TN_HOST,
                  to = q % 2 ? q / 2 : TN_HOST;
        const double hop = s->host_only ? 0 : tn_cost_move_request(s->k, from, to);
        const bool same = place >= 0 && place / 2 == q / 2;
        for (int u = 0; u < s->n_opt[stage]; u++) {
            const option *o = &s->opt[stage][q][u];
            const uint64_t l = (same ? live : 0) + o->live, f = (same ? full : 0) + o->full;
            if ((s->elastic && l > s->cap[q / 2]) || f > s->cap[q / 2] || host + o->host > s->ram)
                continue;
            search_from(s, stage + 1, q, cost + hop + o->cost, l, f, host + o->host);
        }
        if (s->host_only) break;
    }
}

static option layer_option(const search *s, int l, int d, bool home, int units)
{
    const tn_cost *k = s->k;
    const tn_shape_layer *y = &k->s->layer[l];
    uint64_t attn = 0;
    for (int32_t j = 0; j < y->n; j++) {
        const tn_shape_tensor *t = &k->s->tensor[k->s->of_layer[y->first + j]];
        if (t->part < TN_PART_GATE || t->part > TN_PART_DOWN) attn += t->bytes;
    }
    const uint64_t ffn = tn_shape_ffn_bytes(y, units);
    const uint64_t kv_live = tn_shape_kv_bytes(y, &k->c, tn_cost_live(k));
    const uint64_t kv_full = tn_shape_kv_bytes(y, &k->c, k->c.n_ctx);
    return (option){tn_cost_layer_request(k, l, d, home, units), (home ? attn + kv_live : 0) + ffn,
                    (home ? attn + kv_full : 0) + (s->elastic ? 0 : ffn),
                    (home ? 0 : attn + kv_full) + (s->elastic ? y->ffn_bytes : y->ffn_bytes - ffn)};
}

static search prepare(const tn_cost *k, bool elastic, bool host_only)
{
    search s = {.k = k, .elastic = elastic, .host_only = host_only, .best = INFINITY};
    const tn_shape *m = k->s;
    s.n_places = host_only ? 1 : 2 * k->p->n_devices;
    for (int i = 0; i <= m->n_layers; i++) {
        const bool head = i == m->n_layers;
        s.n_opt[i] = host_only ? 1 : (head ? m->head_units : m->layer[i].n_units) + 1;
        for (int q = 0; q < s.n_places; q++) {
            s.opt[i][q] = malloc((size_t)s.n_opt[i] * sizeof(option));
            for (int u = 0; u < s.n_opt[i]; u++) {
                const int d = host_only ? TN_HOST : q / 2;
                const uint64_t bytes = m->tensor[m->head].bytes, on = tn_shape_head_bytes(m, u);
                s.opt[i][q][u] = head ? (option){tn_cost_head_request(k, d, q % 2, u), on, on,
                                                 m->tied ? bytes : bytes - on}
                                      : layer_option(&s, i, d, q % 2, u);
            }
        }
    }
    for (int d = 0; d < k->p->n_devices; d++)
        if (tn_cost_budget(k, d) > tn_cost_device_buffers(k))
            s.cap[d] = tn_cost_budget(k, d) - tn_cost_device_buffers(k);
    const uint64_t ram = tn_cost_host_budget(k), used = tn_cost_host_buffers(k);
    s.ram = ram > used ? ram - used : 0;
    return s;
}

static double finish(search *s)
{
    for (int i = 0; i <= s->k->s->n_layers; i++)
        for (int q = 0; q < s->n_places; q++)
            free(s->opt[i][q]);
    return s->best;
}

static double exhaustive(const tn_cost *k, bool elastic, bool host_only)
{
    search s = prepare(k, elastic, host_only);
    search_from(&s, 0, -1, 0, 0, 0, 0);
    return finish(&s);
}

/* ---- dynamic programme ----------------------------------------------------------------------- */

enum { most_lines = 400000 };

/* What some stages cost and use of one device, ending at a place. */
typedef struct line {
    option o;
    int place;
} line;

static int by_cost(const void *x, const void *y)
{
    const line *a = x, *b = y;
    if (a->place != b->place) return a->place - b->place;
    return a->o.cost < b->o.cost ? -1 : a->o.cost > b->o.cost;
}

/* Drops the lines that another at the same place beats in everything. */
static int keep_best(line *l, int n)
{
    int kept = 0, start = 0;
    qsort(l, (size_t)n, sizeof *l, by_cost);
    for (int i = 0; i < n; i++) {
        bool beaten = false;
        if (i && l[i].place != l[i - 1].place) start = kept;
        for (int j = kept - 1; j >= start && !beaten; j--)
            beaten = l[j].o.live <= l[i].o.live && l[j].o.full <= l[i].o.full &&
                     l[j].o.host <= l[i].o.host;
        if (!beaten) l[kept++] = l[i];
    }
    return kept;
}

/* To the byte, for one device: every way to use memory that no other beats, stage after stage. */
static double programme(const tn_cost *k, bool elastic, bool host_only)
{
    search s = prepare(k, elastic, host_only);
    line *now = malloc(most_lines * sizeof *now), *next = malloc(most_lines * sizeof *next);
    int n = 1;
    now[0] = (line){{0, 0, 0, 0}, 0};
    for (int i = 0; i <= k->s->n_layers; i++) {
        int m = 0;
        for (int j = 0; j < n; j++)
            for (int q = 0; q < s.n_places; q++) {
                if (i == k->s->n_layers && q != now[j].place) continue;
                const double hop = host_only ? 0
                                             : tn_cost_move_request(k, now[j].place ? 0 : TN_HOST,
                                                                    q ? 0 : TN_HOST);
                for (int u = 0; u < s.n_opt[i]; u++) {
                    const option *o = &s.opt[i][q][u], *b = &now[j].o;
                    const option sum = {b->cost + hop + o->cost, b->live + o->live,
                                        b->full + o->full, b->host + o->host};
                    if ((elastic && sum.live > s.cap[0]) || sum.full > s.cap[0] || sum.host > s.ram)
                        continue;
                    if (!elastic) next[m] = (line){{sum.cost, 0, sum.full, sum.host}, q};
                    if (elastic) next[m] = (line){sum, q};
                    if (++m == most_lines) m = keep_best(next, m);
                }
            }
        n = keep_best(next, m);
        line *swap = now;
        now = next;
        next = swap;
    }
    for (int j = 0; j < n; j++)
        s.best = fmin(s.best, now[j].o.cost);
    free(now);
    free(next);
    return finish(&s);
}

typedef double oracle(const tn_cost *k, bool elastic, bool host_only);

static double best_of_all(const tn_cost *k, oracle *ask)
{
    const double elastic = k->c.fixed ? INFINITY : ask(k, true, false);
    const double with = isfinite(elastic) ? elastic : ask(k, false, false);
    return fmin(with, ask(k, false, true));
}

static void compare(oracle *ask, uint64_t seed, int n_layers, int n_devices, bool experts,
                    int *partial, int *feasible, int *counted)
{
    tn_shape s;
    tn_planned out;
    tn_constraints c;
    tn_error err = {0};
    const uint64_t first = seed;
    const test_model m = random_model(&seed, n_layers, experts);
    const tn_profile p = random_profile(&seed, n_devices);
    REQUIRE(test_shape(&s, &m, 16) == TN_OK);
    if (experts && seed % 2) REQUIRE(test_count(&s, &seed, 2)); /* met unequally often */
    for (int l = 0; l < n_layers; l++)
        *counted += s.layer[l].use != NULL;
    random_constraints(&seed, &s, &p, &c);
    const tn_status status = tn_plan_make(&out, &s, &p, &c, heap, &err);
    CHECK_MSG(status == TN_OK, "seed %llu: %s", (unsigned long long)first, err.msg);
    if (status == TN_OK) {
        tn_cost k;
        tn_cost_init(&k, &s, &p, &out.c, NULL);
        const double best = best_of_all(&k, ask);
        CHECK_MSG(out.optimum.feasible == (bool)isfinite(best), "seed %llu: feasible %d, best %g",
                  (unsigned long long)first, out.optimum.feasible, best);
        if (out.optimum.feasible && isfinite(best)) {
            (*feasible)++;
            for (int l = 0; l < s.n_layers; l++)
                if (out.optimum.layer[l].units > 0 &&
                    out.optimum.layer[l].units < s.layer[l].n_units)
                    (*partial)++;
            const double got = out.optimum.predicted.request_s;
            CHECK_MSG(out.gap <= 1e-9 * (1 + 1e-6), "seed %llu: gap %g", (unsigned long long)first,
                      out.gap);
            CHECK_MSG(fabs(got - best) <= 1e-9 * best, "seed %llu: optimum %.12g, oracle %.12g",
                      (unsigned long long)first, got, best);
        }
        tn_planned_free(&out);
    }
    tn_shape_free(&s);
}

TEST(optimum_equals_exhaustive_search)
{
    int partial = 0, feasible = 0, counted = 0;
    for (uint64_t i = 0; i < 240 && tn_failures == 0; i++)
        compare(exhaustive, 1000 + i, 2 + (int)(i % 2), 1, i % 4 == 3, &partial, &feasible,
                &counted);
    CHECK_MSG(feasible >= 200, "only %d cases fit", feasible);
    CHECK_MSG(counted >= 30, "only %d layers have counters", counted);
    CHECK_MSG(partial >= 60, "only %d layers are split", partial);
}

TEST(optimum_equals_exhaustive_search_on_two_devices)
{
    int partial = 0, feasible = 0, counted = 0;
    for (uint64_t i = 0; i < 60 && tn_failures == 0; i++)
        compare(exhaustive, 5000 + i, 2, 2, i % 4 == 3, &partial, &feasible, &counted);
    CHECK_MSG(feasible >= 40 && partial >= 10, "%d cases fit, %d layers are split", feasible,
              partial);
}

TEST(optimum_equals_a_dynamic_programme)
{
    int partial = 0, feasible = 0, counted = 0;
    for (uint64_t i = 0; i < 40 && tn_failures == 0; i++)
        compare(programme, 7000 + i, 6 + (int)(i % 5), 1, i % 4 == 3, &partial, &feasible,
                &counted);
    CHECK_MSG(feasible >= 30 && partial >= 30, "%d cases fit, %d layers are split", feasible,
              partial);
}

/* ---- properties ------------------------------------------------------------------------------ */

/* Device memory from the shares of all tensors and the KV, without the planner's own tables. */
static void check_budget(const tn_planned *out, const tn_shape *s, const tn_profile *p,
                         const int32_t *units, int64_t live, const char *what)
{
    tn_cost k;
    tn_cost_init(&k, s, p, &out->c, NULL);
    for (int d = 0; d < p->n_devices; d++) {
        double bytes = 0;
        for (int l = 0; l < s->n_layers; l++) {
            if (out->plan.layer[l].device != d) continue;
            const tn_shape_layer *y = &s->layer[l];
            for (int32_t j = 0; j < y->n; j++) {
                const int32_t i = s->of_layer[y->first + j];
                const bool ffn =
                    s->tensor[i].part >= TN_PART_GATE && s->tensor[i].part <= TN_PART_DOWN;
                if (!ffn) bytes += (double)out->plan.share[i] * (double)s->tensor[i].bytes;
            }
            bytes += (double)tn_shape_ffn_bytes(y, units[l]);
            if (out->plan.layer[l].attn)
                bytes += (double)tn_shape_kv_bytes(y, &out->c, live);
        }
        if (out->plan.layer[s->n_layers - 1].device == d)
            bytes += (double)tn_shape_head_bytes(s, out->plan.head_units);
        if (bytes > 0) bytes += (double)tn_cost_device_buffers(&k);
        CHECK_MSG(bytes <= (double)tn_cost_budget(&k, d),
                  "%s: device %d holds %.0f of %llu bytes at %lld", what, d, bytes,
                  (unsigned long long)tn_cost_budget(&k, d), (long long)live);
    }
    const tn_plan_memory *h = &out->plan.host;
    CHECK_MSG(h->weights + h->kv + h->buffers + h->masters <= h->budget, "%s: the host is over",
              what);
}

/* The boundary at many depths: within budget, falling with depth, the same whatever came before. */
static void check_boundary(const tn_planned *out, const tn_shape *s, const tn_profile *p,
                           const char *what)
{
    int32_t units[200], again[200];
    uint64_t before = UINT64_MAX;
    REQUIRE(s->n_layers <= 200);
    for (int i = 0; i <= 8; i++) {
        const int64_t live = out->c.n_ctx * i / 8 > 0 ? out->c.n_ctx * i / 8 : 1;
        REQUIRE(tn_plan_boundary(&out->plan, s, p, &out->c, live, units, heap, NULL) == TN_OK);
        check_budget(out, s, p, units, live, what);
        uint64_t sum = 0;
        for (int l = 0; l < s->n_layers; l++)
            sum += tn_shape_ffn_bytes(&s->layer[l], units[l]);
        /* Whole layers may pay more than the bytes they take, hence one layer of slack. */
        CHECK_MSG(sum <= before || sum - before <= s->layer[0].ffn_bytes, "%s: grows at %lld", what,
                  (long long)live);
        before = sum;
        REQUIRE(tn_plan_boundary(&out->plan, s, p, &out->c, live, again, heap, NULL) == TN_OK);
        CHECK(memcmp(units, again, (size_t)s->n_layers * sizeof *units) == 0);
    }
}

static const struct {
    const char *name;
    const test_model *model;
} real[] = {{"8b", &model_8b},
            {"70b", &model_70b},
            {"405b", &model_405b},
            {"30b-a3b", &model_30b_a3b},
            {"gemma-27b", &model_gemma_27b}};
enum { n_real = sizeof real / sizeof *real };

/* The sanitizer is slow: a sample of the machines will do for it. */
#ifdef __SANITIZE_ADDRESS__
enum { sample = 4 };
#else
enum { sample = 1 };
#endif

TEST(real_shapes_on_shipped_machines)
{
    int partial = 0, elastic = 0, proven = 0, fit = 0;
    for (int i = 0; i < n_real; i++) {
        tn_shape s;
        REQUIRE(test_shape(&s, real[i].model, 0) == TN_OK);
        for (size_t j = (size_t)i % sample; tn_profile_shipped_name(j); j += sample) {
            tn_profile p;
            tn_planned out;
            tn_error err = {0};
            char what[80];
            snprintf(what, sizeof what, "%s on %s", real[i].name, tn_profile_shipped_name(j));
            REQUIRE(tn_profile_shipped(&p, tn_profile_shipped_name(j)));
            CHECK(tn_profile_check(&p, what, &err) == TN_OK);
            const tn_constraints c = {.n_ctx = 32768};
            REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, &err) == TN_OK);
            if (!out.optimum.feasible) {
                CHECK_MSG(out.plan.short_bytes > 0 && out.n_remedies > 0,
                          "%s: does not fit, no word", what);
                tn_planned_free(&out);
                continue;
            }
            CHECK_MSG(out.gap <= 1e-4, "%s: gap %g", what, out.gap);
            proven += out.gap <= 1.001e-9;
            fit++;
            for (int k = 0; k < out.n_candidates; k++)
                CHECK_MSG(!out.candidate[k].feasible || out.optimum.predicted.request_s <=
                                                            out.candidate[k].predicted.request_s,
                          "%s: %s is better than the optimum", what,
                          tn_strategy_name(out.candidate[k].strategy));
            CHECK(out.plan.predicted.request_s <= 1.03 * out.optimum.predicted.request_s);
            for (int l = 0; l < s.n_layers; l++)
                if (out.plan.layer[l].units > 0 && out.plan.layer[l].units < s.layer[l].n_units)
                    partial++;
            elastic += out.plan.dropping;
            uint64_t copies = 0;
            for (int l = 0; l < s.n_layers && out.plan.dropping; l++)
                copies += tn_shape_ffn_bytes(&s.layer[l], out.plan.layer[l].units);
            CHECK_INT(out.plan.host.masters, copies);
            check_boundary(&out, &s, &p, what);
            tn_planned_free(&out);
        }
        tn_shape_free(&s);
    }
    CHECK_MSG(sample > 1 || (partial > 100 && elastic > 5), "%d split layers, %d elastic plans",
              partial, elastic);
    CHECK_MSG(proven >= fit - 3, "%d of %d plans are proven to be the best", proven, fit);
}

/* Seconds a token loses for each byte, when a layer's last of so many units goes. */
static double price(const tn_cost *k, const tn_plan *plan, int32_t l, int32_t units)
{
    const tn_plan_layer *y = &plan->layer[l];
    const double more = tn_cost_ffn(k, l, y->device, y->attn, units - 1, 1) -
                        tn_cost_ffn(k, l, y->device, y->attn, units, 1);
    return more / (double)(tn_shape_ffn_bytes(&k->s->layer[l], units) -
                           tn_shape_ffn_bytes(&k->s->layer[l], units - 1));
}

/* No layer that keeps all its units would have lost less than one that has lost some; *told: pairs
 * of which that says something. */
static void check_order(const tn_planned *out, const tn_shape *s, const tn_profile *p, int *told)
{
    const tn_plan *plan = &out->plan;
    tn_cost k;
    int32_t units[200];
    tn_cost_init(&k, s, p, &out->c, NULL);
    REQUIRE(tn_plan_boundary(plan, s, p, &out->c, out->c.n_ctx, units, heap, NULL) == TN_OK);
    for (int32_t a = 0; a < s->n_layers; a++)
        for (int32_t b = 0; b < s->n_layers && units[a] < plan->layer[a].units; b++) {
            if (units[b] != plan->layer[b].units || units[b] == 0) continue;
            if (plan->layer[a].device != plan->layer[b].device) continue;
            const double lost = price(&k, plan, a, units[a] + 1),
                         kept = price(&k, plan, b, units[b]);
            CHECK_MSG(kept >= lost - 1e-5 * fabs(lost), "layer %d lost %g, layer %d would lose %g",
                      a, lost, b, kept);
            *told += kept > 1.01 * lost;
        }
}

TEST(the_least_valuable_units_are_dropped_first)
{
    int told = 0, dropping = 0;
    for (uint64_t i = 0; i < 120; i++) {
        uint64_t seed = 4000 + i;
        tn_shape s;
        tn_planned out;
        tn_constraints c;
        const test_model m = random_model(&seed, 5, i % 3 == 2);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        random_constraints(&seed, &s, &p, &c);
        c.fixed = false;
        if (tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK) {
            if (out.plan.feasible && out.plan.dropping) {
                check_order(&out, &s, &p, &told);
                dropping++;
            }
            tn_planned_free(&out);
        }
        tn_shape_free(&s);
    }
    CHECK_MSG(told > 20 && dropping > 10, "%d pairs, %d plans", told, dropping);
}

TEST(more_memory_is_never_slower)
{
    for (uint64_t i = 0; i < 60; i++) {
        uint64_t seed = 9000 + i;
        tn_shape s;
        tn_constraints c;
        const test_model m = random_model(&seed, 3, i % 3 == 2);
        const tn_profile p = random_profile(&seed, 1 + (int)(i % 2));
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        random_constraints(&seed, &s, &p, &c);
        c.ram = 0;
        double before = INFINITY;
        for (int step = 0; step < 6; step++) {
            tn_planned out;
            REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
            const double now = out.optimum.feasible ? out.optimum.predicted.request_s : INFINITY;
            CHECK_MSG(now <= before * (1 + 4e-9), "seed %llu: %.12g becomes %.12g",
                      (unsigned long long)(9000 + i), before, now);
            before = now;
            tn_planned_free(&out);
            for (int d = 0; d < p.n_devices; d++)
                c.vram[d] += 5000 + c.vram[d] / 20;
        }
        tn_shape_free(&s);
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Printed, not checked: a busy machine must not fail a test. */
TEST(how_long_405b_takes)
{
    static const char *const machines[] = {"h200-server", "8x-h200-server"};
    tn_shape s;
    REQUIRE(test_shape(&s, &model_405b, 0) == TN_OK);
    for (int i = 0; i < 2; i++) {
        tn_profile p;
        tn_plan plan;
        REQUIRE(tn_profile_shipped(&p, machines[i]));
        tn_constraints c = {.n_ctx = 32768};
        for (int d = 0; i == 1 && d < 8; d++)
            c.vram[d] = 30ull << 30; /* more than one hand full */
        const double start = seconds();
        REQUIRE(tn_plan_candidate(&plan, &s, &p, &c, TN_PLAN_OPTIMUM, heap, NULL) == TN_OK);
        printf("405B on %d device%s: planned in %.2f s\n", p.n_devices, i ? "s" : "",
               seconds() - start);
        CHECK(plan.feasible);
        tn_plan_free(&plan, heap);
    }
    tn_shape_free(&s);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

TEST(kv_is_counted_exactly)
{
    tn_shape s;
    REQUIRE(test_shape(&s, &model_gemma_27b, 0) == TN_OK);
    CHECK_INT(s.layer[0].window, 1024);
    CHECK_INT(s.layer[5].window, 0);
    CHECK_INT(s.layer[11].window, 0);
    const uint64_t position = 2 * 16 * 128; /* K and V elements */
    tn_constraints c = {.n_batch = 512, .page_size = 256, .kv = TN_KV_KIND_F16};
    CHECK_INT(tn_shape_kv_bytes(&s.layer[5], &c, 32768), 32768 * position * 2);
    /* of a layer with a window: it, a batch, and one more page */
    CHECK_INT(tn_shape_kv_bytes(&s.layer[0], &c, 32768), (1024 + 512 + 256) * position * 2);
    CHECK_INT(tn_shape_kv_bytes(&s.layer[0], &c, 1500), 1536 * position * 2);
    CHECK_INT(tn_shape_kv_bytes(&s.layer[0], &c, 300), 512 * position * 2);
    c.n_batch = 100;
    CHECK_INT(tn_shape_kv_bytes(&s.layer[0], &c, 32768), (1024 + 256 + 256) * position * 2);
    c.kv = TN_KV_KIND_F32;
    CHECK_INT(tn_shape_kv_bytes(&s.layer[5], &c, 256), 256 * position * 4);
    c.kv = TN_KV_KIND_Q8_0;
    CHECK_INT(tn_shape_kv_bytes(&s.layer[5], &c, 256), 256 * position / 32 * 34);
    tn_shape_free(&s);
}

TEST(slabs_add_up)
{
    for (uint64_t i = 0; i < 40; i++) {
        uint64_t seed = 77 + i;
        tn_shape s;
        const test_model m = random_model(&seed, 2, i % 4 == 0);
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        const tn_shape_layer *y = &s.layer[0];
        CHECK(y->n_units >= 1 && (y->n_expert || y->granule % 16 == 0));
        CHECK_INT(tn_shape_ffn_bytes(y, 0), 0);
        CHECK_INT(tn_shape_ffn_bytes(y, y->n_units), y->ffn_bytes);
        /* The last slab has the remainder: it is the largest, by less than one slab. */
        const uint64_t last = y->ffn_bytes - tn_shape_ffn_bytes(y, y->n_units - 1);
        CHECK(last >= y->unit_bytes && last < 2 * y->unit_bytes);
        uint64_t ffn = 0;
        for (int32_t t = 0; t < s.n_tensors; t++)
            if (s.tensor[t].layer == 0 && strstr(s.tensor[t].name, "ffn_") &&
                !strstr(s.tensor[t].name, "norm") && !strstr(s.tensor[t].name, "inp"))
                ffn += s.tensor[t].bytes;
        CHECK_INT(y->ffn_bytes, ffn);
        tn_shape_free(&s);
    }
}

TEST(attended_positions_add_up)
{
    for (int64_t window = 0; window < 12; window += 3)
        for (int64_t start = 0; start < 9; start++) {
            int64_t sum = 0;
            for (int64_t n = 0; n < 9; n++) {
                CHECK_NEAR(tn_cost_attended(start, n, window), (double)sum, 1e-9);
                const int64_t next = start + n + 1;
                sum += window && next > window ? window : next;
            }
        }
}

/* The hypergeometric weights against counting every subset of experts. */
TEST(expert_hits_are_counted_exactly)
{
    const tn_shape_layer l = {.n_expert = 7, .n_used = 3};
    for (int units = 0; units <= 7; units++) {
        double pmf[4], want[4] = {0};
        int all = 0;
        for (int set = 0; set < 128; set++) {
            if (__builtin_popcount((unsigned)set) != 3) continue;
            want[__builtin_popcount((unsigned)set & ((1u << units) - 1))]++;
            all++;
        }
        tn_cost_hits(&l, units, pmf);
        for (int h = 0; h <= 3; h++)
            CHECK_NEAR(pmf[h], want[h] / all, 1e-12);
    }
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void refuses(const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                    const char *word1, const char *word2)
{
    tn_planned out;
    tn_error err = {0};
    CHECK(tn_plan_make(&out, s, p, c, heap, &err) == TN_EARG);
    CHECK_MSG(strstr(err.msg, word1) && strstr(err.msg, word2), "'%s' lacks %s or %s", err.msg,
              word1, word2);
}

TEST(contradictions_name_both_sides)
{
    tn_shape s;
    tn_profile p;
    tn_rules rules = {.a = heap};
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    tn_constraints c = {.n_ctx = 1024, .request = {0, 2048, 512}};
    refuses(&s, &p, &c, "--for", "--ctx");
    c.request = (tn_request){100, 800, 200};
    refuses(&s, &p, &c, "--for", "--ctx");
    c = (tn_constraints){.vram = {64ull << 30}};
    refuses(&s, &p, &c, "--vram", "RTX 3060");
    c = (tn_constraints){.vram = {1ull << 30, 1ull << 30}};
    refuses(&s, &p, &c, "--vram", "rtx3060-ddr4");
    tn_profile_generic(&p);
    REQUIRE(tn_rules_add(&rules, "ffn_up=device", NULL) == TN_OK);
    c = (tn_constraints){.rules = &rules};
    refuses(&s, &p, &c, "--place", "generic-host");
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    c.vram[0] = UINT64_MAX;
    refuses(&s, &p, &c, "--place 'ffn_up'", "--device none");
    c.rules = NULL;
    c.kv = TN_KV_KIND_Q8_0;
    s.odd_head_dim = 80;
    tn_constraints full;
    CHECK(tn_constraints_fill(&full, &c, &s, &p, NULL) == TN_EUNSUPPORTED);
    tn_rules_free(&rules);
    tn_shape_free(&s);
}

/* Where the device's buffers are missing too, as there was no use of it, memory
 * of it still helps. */
TEST(a_device_too_small_for_its_buffers_is_a_remedy)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    const tn_constraints c = {.n_ctx = 8192, .vram = {100u << 20}, .ram = 3ull << 30};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(!out.plan.feasible && out.n_remedies == 2);
    /* The options held them back; a machine with less memory would not know them. */
    CHECK(strstr(out.remedy[0].text, "--vram") && strstr(out.remedy[1].text, "--ram"));
    CHECK(out.remedy[0].request_s < out.remedy[1].request_s);
    tn_planned_free(&out);
    p.device[0].memory_bytes = c.vram[0];
    p.host.memory_bytes = c.ram;
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(out.n_remedies == 2 && strstr(out.remedy[0].text, "more device memory") &&
          strstr(out.remedy[1].text, "more host memory"));
    CHECK(!strstr(out.remedy[0].text, "--vram") && !strstr(out.remedy[1].text, "--ram"));
    tn_planned_free(&out);
    tn_shape_free(&s);
}

/* Not even where every weight is on the device. */
TEST(a_host_too_small_for_its_buffers_serves_nothing)
{
    tn_shape s;
    tn_profile p;
    tn_planned out;
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    tn_constraints c = {.n_ctx = 4096, .ram = 1 << 20};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(!out.plan.feasible && out.n_remedies == 1 && strstr(out.remedy[0].text, "more host"));
    c.ram += out.plan.short_bytes;
    tn_planned_free(&out);
    for (int less = 0; less < 2; less++) {
        c.ram -= (uint64_t)less << 20;
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        CHECK_INT(out.plan.feasible, !less);
        tn_planned_free(&out);
    }
    tn_shape_free(&s);
}

/* Weights that stay where they are need no page-locked memory, as in pin.c: half of RAM is less
 * than the model, but not less than what is carried. */
TEST(only_carried_weights_are_page_locked)
{
    tn_shape s;
    tn_profile p;
    tn_planned out[3];
    REQUIRE(test_shape(&s, &model_8b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    const tn_constraints c = {
        .n_ctx = 8192, .n_batch = 64, .vram = {3ull << 30}, .ram = 6ull << 30, .fixed = true};
    static const uint64_t memory[] = {64ull << 30, 7ull << 30, 1ull << 30};
    for (int i = 0; i < 3; i++) {
        p.host.memory_bytes = memory[i];
        REQUIRE(tn_plan_make(&out[i], &s, &p, &c, heap, NULL) == TN_OK);
        CHECK(out[i].plan.feasible && out[i].plan.predicted.streamed_from > 0);
    }
    CHECK(tn_cost_pin_limit(memory[1]) < s.weight_bytes);
    CHECK_INT(tn_cost_pin_limit(memory[0]), memory[0] / 2);
    tn_cost k; /* a third through the ring: bytes take the sum of their times */
    tn_cost_init(&k, &s, &p, &out[0].c, NULL);
    tn_cost_pin(&k, 2.0 / 3);
    CHECK_NEAR(k.link[0] * (2 / p.device[0].pinned + 1 / p.device[0].pageable) / 3, 1, 1e-12);
    CHECK_NEAR(out[1].optimum.predicted.request_s, out[0].optimum.predicted.request_s, 0);
    CHECK(out[1].c.pinned == 1 && out[2].c.pinned > 0.3 && out[2].c.pinned < 0.9);
    CHECK(out[2].optimum.predicted.ttft_s > 1.02 * out[0].optimum.predicted.ttft_s);
    for (int i = 0; i < 3; i++)
        tn_planned_free(&out[i]);
    tn_shape_free(&s);
}

TEST(what_does_not_fit_says_by_how_much)
{
    tn_shape s;
    tn_profile p;
    tn_planned out, again;
    REQUIRE(test_shape(&s, &model_70b, 0) == TN_OK);
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    tn_constraints c = {.n_ctx = 8192};
    REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(!out.plan.feasible && out.plan.short_bytes > 0);
    CHECK(out.n_remedies > 0 && out.n_remedies <= 2 && out.remedy[0].request_s > 0);
    /* With as much more as it asks for (and a mebibyte of rounding) it fits, with much less it does
     * not. */
    c.ram = p.host.memory_bytes - p.host.reserved_bytes + out.plan.short_bytes + (1 << 20);
    REQUIRE(tn_plan_make(&again, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(again.plan.feasible);
    tn_planned_free(&again);
    c.ram -= 256u << 20;
    REQUIRE(tn_plan_make(&again, &s, &p, &c, heap, NULL) == TN_OK);
    CHECK(!again.plan.feasible);
    tn_planned_free(&again);
    tn_planned_free(&out);
    tn_shape_free(&s);
}

/* Of a prompt one token goes through the last FFN, see forward.c. */
TEST(the_last_ffn_is_priced_for_the_last_token_of_a_prompt)
{
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t seed = 300 + i;
        tn_shape s;
        tn_cost k;
        tn_constraints full;
        const test_model m = random_model(&seed, 3, i % 4 == 3);
        const tn_profile p = random_profile(&seed, 1);
        const tn_constraints c = {.n_batch = 64, .page_size = 16, .request = {0, 100, 7}};
        REQUIRE(test_shape(&s, &m, 16) == TN_OK);
        REQUIRE(tn_constraints_fill(&full, &c, &s, &p, NULL) == TN_OK);
        tn_cost_init(&k, &s, &p, &full, NULL);
        for (int32_t u = 0; u <= s.layer[2].n_units; u++) {
            const double one = tn_cost_ffn(&k, 2, 0, true, u, 1);
            const double other = tn_cost_ffn(&k, 1, 0, true, u, 64) +
                                 tn_cost_ffn(&k, 1, 0, true, u, 36) +
                                 7 * tn_cost_ffn(&k, 1, 0, true, u, 1);
            CHECK_NEAR(tn_cost_ffn_request(&k, 2, 0, true, u) / one, 8, 1e-9);
            CHECK_NEAR(tn_cost_ffn_request(&k, 1, 0, true, u) / other, 1, 1e-9);
        }
        CHECK(s.layer[2].cls != s.layer[1].cls);
        tn_shape_free(&s);
    }
}

/* Of two small devices: what is solved between cuts is given back, too. */
static void check_allocations(int n_devices, int layers, long least)
{
    uint64_t seed = 3;
    tn_shape s;
    tn_planned out;
    tn_constraints c;
    const test_model m = random_model(&seed, layers, false);
    const tn_profile p = random_profile(&seed, n_devices);
    REQUIRE(test_shape(&s, &m, 16) == TN_OK);
    random_constraints(&seed, &s, &p, &c);
    tn_status status = TN_ENOMEM;
    long n = 0;
    for (; status != TN_OK && n < 100000 && tn_failures == 0; n++) {
        scarce mem = {n, 0};
        const tn_allocator counting = scarce_allocator(&mem);
        status = tn_plan_make(&out, &s, &p, &c, &counting, NULL);
        CHECK_MSG(status == TN_OK || status == TN_ENOMEM, "allocation %ld: status %d", n,
                  (int)status);
        if (status == TN_OK) tn_planned_free(&out);
        CHECK_MSG(mem.live == 0, "allocation %ld failing leaks %ld blocks", n, mem.live);
    }
    CHECK_MSG(status == TN_OK && n > least, "%ld allocations", n);
    tn_shape_free(&s);
}

TEST(every_allocation_may_fail)
{
    check_allocations(1, 2, 50);
    check_allocations(2, 6, 300);
}

TEST_MAIN
