/* Several segments, by moving the cuts between them.
 *
 * At one price or another, stages that are alike are all in the same segment, so prices find few of
 * the ways to share them out. But between given cuts every segment is a chain of its own, which is
 * solved well. So the cuts are moved as long as that gains. Host memory is looked at in the end. */
#include "plan_solve_internal.h"

#include <string.h>

enum { max_parts = 400 };

/* A stretch of stages as the whole of one segment. */
typedef struct part {
    int32_t begin, n, segment;
    double cost;       /* +infinity: it does not fit */
    tn_choice *choice; /* [n] at places 0 and 1 */
} part;

typedef struct cutter {
    solver *s;
    tn_chain sub;
    int32_t *cls;   /* [n_stages + 1] */
    tn_menu *menu;  /* [n_classes + 1][2] the last: of leaving for the next segment */
    tn_mode out[2]; /* its modes */
    double hop[6];  /* [3][2] as in a chain */
    part *part;     /* [max_parts] what has been solved */
    int32_t n_parts;
    bool no_memory;
} cutter;

/* ---- a segment ------------------------------------------------------------------------------- */

static bool same_menu(const tn_menu *a, const tn_menu *b)
{
    for (int32_t i = 0; i < a->n && a->n == b->n; i++)
        if (a->mode[i].cost != b->mode[i].cost ||
            memcmp(a->mode[i].use, b->mode[i].use, sizeof a->mode[i].use) != 0)
            return false;
    return a->n == b->n;
}

/* Whether the same stages cost and use the same in either segment; the first is like no other. */
static bool alike(const tn_chain *c, int32_t d, int32_t e)
{
    const int32_t np = c->n_places;
    if (d == e) return true;
    if (d == 0 || e == 0) return false;
    for (int u = 0; u < TN_USE_HOST; u++)
        if (c->cap[u][d] != c->cap[u][e]) return false;
    for (int32_t i = 0; i < 2 * c->n_classes; i++)
        if (!same_menu(&c->menu[i / 2 * np + 2 * d + i % 2], &c->menu[i / 2 * np + 2 * e + i % 2]))
            return false;
    for (int i = 0; i < 4; i++)
        if (c->hop[(2 * d + i / 2) * np + 2 * d + i % 2] !=
            c->hop[(2 * e + i / 2) * np + 2 * e + i % 2])
            return false;
    return true;
}

/* What was solved before, for the same classes in a row; the last stage is a class of its own. */
static part *known(const cutter *k, int32_t d, int32_t begin, int32_t n)
{
    const tn_chain *c = k->s->c;
    for (int32_t i = 0; i < k->n_parts; i++) {
        part *p = &k->part[i];
        if (p->n == n && alike(c, p->segment, d) &&
            memcmp(c->cls + p->begin, c->cls + begin, (size_t)n * sizeof *c->cls) == 0)
            return p;
    }
    return NULL;
}

/* The first stage comes from the host, or in a later segment from its device. */
static void set_chain(cutter *k, int32_t d, int32_t begin, int32_t n)
{
    const tn_chain *c = k->s->c;
    const int32_t np = c->n_places, last = c->n_classes;
    const bool ends = begin + n == c->n_stages;
    memcpy(k->cls, c->cls + begin, (size_t)n * sizeof *k->cls);
    k->cls[n] = last;
    for (int32_t side = 0; side < 2; side++) {
        for (int32_t i = 0; i < c->n_classes; i++)
            k->menu[2 * i + side] = c->menu[i * np + 2 * d + side];
        for (int32_t to = 0; to < 2; to++)
            k->hop[2 * side + to] = c->hop[(2 * d + side) * np + 2 * d + to];
        k->hop[4 + side] = c->hop[(d ? 2 * d + 1 : np) * np + 2 * d + side];
        k->out[side].cost = ends ? 0 : c->hop[(2 * d + side) * np + 2 * d + 3];
        k->menu[2 * last + side] = (tn_menu){&k->out[side], 1};
    }
    k->sub.n_stages = n + !ends;
    for (int u = 0; u < TN_USES; u++)
        k->sub.cap[u][0] = c->cap[u][row(2 * d, u)];
}

/* NULL: there is no memory, or too much has been solved. */
static const part *solve(cutter *k, int32_t d, int32_t begin, int32_t n)
{
    double gap;
    part *p = known(k, d, begin, n);
    if (p || k->no_memory || k->n_parts == max_parts) return p;
    p = &k->part[k->n_parts];
    *p = (part){.begin = begin, .n = n, .segment = d, .cost = n ? INFINITY : 0};
    p->choice = tn_alloc(k->s->a, (size_t)n + 1, sizeof *p->choice);
    k->no_memory = !p->choice;
    if (k->no_memory) return NULL;
    k->n_parts++;
    set_chain(k, d, begin, n);
    p->choice[0].mode = -1; /* there is no first guess */
    /* The last stage goes with the one before. */
    if (n > (begin + n == k->s->c->n_stages))
        k->no_memory = tn_chain_solve(&k->sub, p->choice, &p->cost, &gap, k->s->a, NULL) != 0;
    return p;
}

static double cost_of(cutter *k, const int32_t *cut, int32_t d)
{
    const part *p = solve(k, d, cut[d], cut[d + 1] - cut[d]);
    return p ? p->cost : INFINITY;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static void offer(cutter *k, const int32_t *cut)
{
    solver *s = k->s;
    for (int32_t d = 0; d < s->c->n_places / 2; d++) {
        const part *p = known(k, d, cut[d], cut[d + 1] - cut[d]);
        if (!p || !isfinite(p->cost)) return;
        for (int32_t i = 0; i < p->n; i++)
            s->blend[cut[d] + i] = (tn_choice){2 * d + p->choice[i].place, p->choice[i].mode};
    }
    if (!isfinite(tn_chain_cost(s->c, s->blend))) return;
    tn_solver_offer(s, s->blend);
}

/* Moves one cut by some stages; true if that gains. */
static bool move(cutter *k, int32_t *cut, int32_t d, int32_t by)
{
    const int32_t old = cut[d];
    if (old + by < cut[d - 1] || old + by > cut[d + 1]) return false;
    const double before = cost_of(k, cut, d - 1) + cost_of(k, cut, d);
    cut[d] = old + by;
    const double after = cost_of(k, cut, d - 1) + cost_of(k, cut, d);
    if (after < before * (1 - TN_SOLVER_EXACT)) return true;
    cut[d] = old;
    return false;
}

static void move_cuts(cutter *k, int32_t *cut)
{
    const int32_t n_segments = k->s->c->n_places / 2;
    for (int32_t by = k->s->c->n_stages / 4; by > 0; by /= 2)
        for (bool moved = true; moved && !k->no_memory;) {
            moved = false;
            for (int32_t d = 1; d < n_segments; d++)
                moved |= move(k, cut, d, by) || move(k, cut, d, -by);
        }
    if (!k->no_memory) offer(k, cut);
}

/* Where the segments of the best known end. */
static void cuts_of(const solver *s, int32_t *cut)
{
    for (int32_t d = 0; d <= s->c->n_places / 2; d++) {
        cut[d] = 0;
        while (cut[d] < s->c->n_stages && s->incumbent[cut[d]].place / 2 < d)
            cut[d]++;
    }
}

/* As their memory is, of all that there is. */
static void even_cuts(const tn_chain *c, int32_t *cut)
{
    double all = 0, sum = 0;
    for (int32_t d = 0; d < c->n_places / 2; d++)
        all += (double)c->cap[TN_USE_FULL][d];
    for (int32_t d = 0; d < c->n_places / 2; d++) {
        cut[d] = (int32_t)(all > 0 ? c->n_stages * sum / all : 0);
        sum += (double)c->cap[TN_USE_FULL][d];
    }
    cut[c->n_places / 2] = c->n_stages;
}

bool tn_solver_cuts(solver *s)
{
    const tn_chain *c = s->c;
    int32_t cut[max_segments + 1];
    cutter k = {.s = s};
    k.cls = tn_alloc(s->a, (size_t)c->n_stages + 1, sizeof *k.cls);
    k.menu = tn_alloc(s->a, 2 * ((size_t)c->n_classes + 1), sizeof *k.menu);
    k.part = tn_alloc(s->a, max_parts, sizeof *k.part);
    k.no_memory = !k.cls || !k.menu || !k.part;
    k.sub = (tn_chain){.n_classes = c->n_classes + 1,
                       .n_places = 2,
                       .cls = k.cls,
                       .menu = k.menu,
                       .hop = k.hop,
                       .quick = true};
    for (int start = 0; start < 2 && !k.no_memory; start++) {
        if (start || !isfinite(s->incumbent_cost))
            even_cuts(c, cut);
        else
            cuts_of(s, cut);
        move_cuts(&k, cut);
    }
    for (int32_t i = 0; i < k.n_parts; i++)
        tn_free(s->a, k.part[i].choice);
    tn_free(s->a, k.part);
    tn_free(s->a, k.menu);
    tn_free(s->a, k.cls);
    return !k.no_memory;
}
