/* One context that walks to growing depths, and the tests that run from where it stands. */
#ifndef TN_BENCH_MEASURE_H
#define TN_BENCH_MEASURE_H

#include "../engine/tenon.h"

typedef struct tn_bench_samples {
    double *at;
    size_t n;
} tn_bench_samples;
void tn_bench_samples_add(tn_bench_samples *s, double value);

/* The token at every position of a sequence: the text repeated without end. Depth d always means
 * the first d of these, and a prompt at depth d the next ones. */
typedef struct tn_bench_tokens {
    int32_t *at;
    size_t n; /* >= 1 */
} tn_bench_tokens;
/* Tokens of a text (with bos where the model wants it), or n random ones if text is NULL or the
 * model has no tokenizer. Freed by the caller. */
tn_status tn_bench_tokens_make(tn_bench_tokens *out, const tn_model *model, const char *text,
                               size_t len, uint64_t seed, tn_error *err);
static inline int32_t tn_bench_token(const tn_bench_tokens *t, int64_t position)
{
    return t->at[(size_t)position % t->n];
}

/* Brings ctx to `depth`: rewinds, or evaluates what is missing, so that a sweep over depths costs
 * one pass and not one refill per cell. TN_EFULL, TN_ENOMEM, TN_ECANCELED. */
tn_status tn_bench_walk(tn_context *ctx, const tn_bench_tokens *tokens, int32_t depth,
                        tn_error *err);

/* Evaluates n tokens as one prompt. *seconds: until its logits are there. */
tn_status tn_bench_prompt(tn_context *ctx, const tn_bench_tokens *tokens, int32_t n,
                          double *seconds, tn_error *err);
/* Evaluates n tokens one by one; which ones is known beforehand, so no sampling is timed.
 * token_s[n] (may be NULL): seconds of each. */
tn_status tn_bench_generate(tn_context *ctx, const tn_bench_tokens *tokens, int32_t n,
                            double *seconds, double *token_s, tn_error *err);

/* Index of the largest logit, and what it takes to find it is part of the time to first token. */
int32_t tn_bench_argmax(const float *logits, int32_t n);

#endif
