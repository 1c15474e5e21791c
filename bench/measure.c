#include "measure.h"

#include "term.h"

#include <stdlib.h>
#include <string.h>

void tn_bench_samples_add(tn_bench_samples *s, double value)
{
    s->at = tn_bench_realloc(s->at, (s->n + 1) * sizeof *s->at);
    s->at[s->n++] = value;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static tn_status random_tokens(tn_bench_tokens *out, const tn_model *model, uint64_t seed,
                               tn_error *err)
{
    enum { n_random = 16384 };
    tn_model_info info = {.struct_size = sizeof info};
    const tn_status s = tn_model_get_info(model, &info, err);
    if (s) return s;
    out->at = tn_bench_alloc(n_random * sizeof *out->at);
    out->n = n_random;
    for (size_t i = 0; i < n_random; i++)
        out->at[i] = (int32_t)(next_random(&seed) % (uint64_t)info.n_vocab);
    return TN_OK;
}

tn_status tn_bench_tokens_make(tn_bench_tokens *out, const tn_model *model, const char *text,
                               size_t len, uint64_t seed, tn_error *err)
{
    *out = (tn_bench_tokens){0};
    if (!text) return random_tokens(out, model, seed, err);
    const unsigned flags = TN_TOKENIZE_ADD_SPECIAL;
    size_t n = 0;
    tn_status s = tn_tokenize(model, text, len, flags, NULL, 0, &n, NULL, err);
    if (s == TN_EUNSUPPORTED) return random_tokens(out, model, seed, err);
    if (s && s != TN_EFULL) return s;
    out->at = tn_bench_alloc(n * sizeof *out->at);
    out->n = n;
    s = n ? tn_tokenize(model, text, len, flags, out->at, n, &n, NULL, err) : TN_OK;
    if (!s && n) return TN_OK;
    free(out->at);
    *out = (tn_bench_tokens){0};
    return s ? s : random_tokens(out, model, seed, err);
}

/* The n tokens that follow the context's; freed by the caller. */
static int32_t *next_tokens(const tn_context *ctx, const tn_bench_tokens *tokens, int32_t n)
{
    int32_t *ids = tn_bench_alloc((size_t)n * sizeof *ids);
    const int64_t first = tn_context_length(ctx);
    for (int32_t i = 0; i < n; i++)
        ids[i] = tn_bench_token(tokens, first + i);
    return ids;
}

tn_status tn_bench_walk(tn_context *ctx, const tn_bench_tokens *tokens, int32_t depth,
                        tn_error *err)
{
    const int32_t length = tn_context_length(ctx);
    double seconds;
    if (length > depth) return tn_context_rewind(ctx, depth, err);
    return length < depth ? tn_bench_prompt(ctx, tokens, depth - length, &seconds, err) : TN_OK;
}

tn_status tn_bench_prompt(tn_context *ctx, const tn_bench_tokens *tokens, int32_t n,
                          double *seconds, tn_error *err)
{
    int32_t *ids = next_tokens(ctx, tokens, n);
    const double start = tn_bench_clock();
    const tn_status s = tn_context_eval(ctx, ids, n, err);
    *seconds = tn_bench_clock() - start;
    free(ids);
    return s;
}

tn_status tn_bench_generate(tn_context *ctx, const tn_bench_tokens *tokens, int32_t n,
                            double *seconds, double *token_s, tn_error *err)
{
    int32_t *ids = next_tokens(ctx, tokens, n);
    const double start = tn_bench_clock();
    double last = start;
    tn_status s = TN_OK;
    for (int32_t i = 0; i < n && !s; i++) {
        s = tn_context_eval(ctx, &ids[i], 1, err);
        const double now = tn_bench_clock();
        if (token_s) token_s[i] = now - last;
        last = now;
    }
    *seconds = last - start;
    free(ids);
    return s;
}

int32_t tn_bench_argmax(const float *logits, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}
