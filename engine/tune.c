#include "tune.h"

#include <math.h>

enum { least_threads = 4, first_tokens = 8, trial_tokens = 4 };
/* A token this much slower than the best count's ends a trial; a count must gain this much. */
static const double clearly_slower = 1.25, worth_it = 0.98;

static void try_count(tn_tune *t, int threads)
{
    t->threads = threads;
    t->least_s = INFINITY;
    t->n_tokens = 0;
}

void tn_tune_begin(tn_tune *t, int threads)
{
    *t = (tn_tune){.best = threads, .best_s = INFINITY, .settled = threads < least_threads};
    try_count(t, threads);
}

static void settle(tn_tune *t)
{
    t->threads = t->best;
    t->settled = true;
}

void tn_tune_note(tn_tune *t, double seconds)
{
    if (t->settled) return;
    t->n_tokens++;
    t->least_s = fmin(t->least_s, seconds);
    const bool first = isinf(t->best_s);
    if (!first && t->least_s > clearly_slower * t->best_s) {
        settle(t);
        return;
    }
    if (t->n_tokens < (first ? first_tokens : trial_tokens)) return;
    if (!first && !(t->least_s < worth_it * t->best_s)) {
        settle(t);
        return;
    }
    t->best = t->threads;
    t->best_s = t->least_s;
    if (t->best * 3 / 4 < 1)
        settle(t);
    else
        try_count(t, t->best * 3 / 4);
}
