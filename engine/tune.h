/* How many threads decode one token fastest, found online. Decode is bound by memory, and a few
 * cores can saturate it; more then only get into each other's way. Pure arithmetic on durations. */
#ifndef TN_TUNE_H
#define TN_TUNE_H

#include <stdbool.h>

typedef struct tn_tune {
    int threads;        /* to use for the next token; 0: not begun */
    int best;           /* the count that has been fastest so far */
    double best_s;      /* its time per token */
    double least_s;     /* of the tokens with `threads` */
    int n_tokens;       /* with `threads` */
    bool settled;       /* nothing more will be tried */
} tn_tune;

/* All threads first: the first tokens are never an experiment. Below four threads nothing is tried:
 * with so few each is worth more than it costs. */
void tn_tune_begin(tn_tune *t, int threads);

/* After a token that took `seconds` with t->threads. Counts of three quarters of the best are
 * tried, each for a few tokens, for as long as that makes tokens faster; one that is clearly slower
 * is given up after its first token. The least time of a count stands for it, because what disturbs
 * a token only adds to its time. */
void tn_tune_note(tn_tune *t, double seconds);

#endif
