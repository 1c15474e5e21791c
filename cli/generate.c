#include "generate.h"

#include "term.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

const char *tn_stop_name(tn_stop reason)
{
    static const char *const names[] = {"eos",          "stop-string", "length",
                                        "context-full", "interrupted", "output"};
    return names[reason];
}

uint64_t tn_random_seed(void)
{
    uint32_t seed; /* 32 bits: short enough to type again */
    if (getrandom(&seed, sizeof seed, 0) == (ssize_t)sizeof seed) return seed;
    return (uint64_t)time(NULL);
}

static void override(float *value, float given)
{
    if (!isnan(given)) *value = given;
}

tn_status tn_sampler_settings(tn_sampler_options *o, const tn_settings *set, const tn_model *model,
                              tn_error *err)
{
    const tn_status status = tn_sampler_defaults(model, o, err);
    if (status) return status;
    override(&o->temperature, set->temp);
    override(&o->top_p, set->top_p);
    override(&o->min_p, set->min_p);
    override(&o->repeat_penalty, set->repeat_penalty);
    override(&o->presence_penalty, set->presence_penalty);
    override(&o->frequency_penalty, set->frequency_penalty);
    if (set->top_k != TN_UNSET) o->top_k = set->top_k;
    if (set->repeat_last_n != TN_UNSET) o->penalty_last_n = set->repeat_last_n;
    o->seed = set->seed;
    return TN_OK;
}

tn_status tn_sampler_prepare(tn_sampler **out, const tn_engine *engine, const tn_settings *set,
                             const tn_sampler_options *o, const int32_t *ids, size_t n,
                             tn_error *err)
{
    tn_logit_bias bias[TN_MAX_REPEATS];
    for (size_t i = 0; i < set->n_bias; i++)
        bias[i] = (tn_logit_bias){set->bias[i].token, set->bias[i].bias};
    tn_sampler_options with_bias = *o;
    with_bias.bias = bias;
    with_bias.n_bias = set->n_bias;
    tn_status status = tn_sampler_new(out, engine, &with_bias, err);
    for (size_t i = 0; !status && i < n; i++)
        status = tn_sampler_accept(*out, ids[i], err);
    return status;
}

bool tn_is_emulated(const tn_engine *engine)
{
    return strcmp(tn_engine_devices(engine), "emu") == 0;
}

const char *tn_speed_label(const tn_engine *engine)
{
    const char *label = tn_engine_label(engine);
    return strcmp(label, "measured") == 0 ? NULL : label;
}

double tn_rate(uint64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

/* "10 tokens, 31.0 tok/s"; without a speed where nothing was measured: a prompt that the context
 * held, a single token that came with the prompt. */
static void counted(char text[64], uint64_t n, double rate)
{
    const int used = snprintf(text, 64, "%llu token%s", (unsigned long long)n, n == 1 ? "" : "s");
    if (rate > 0) snprintf(text + used, 64 - (size_t)used, ", %.1f tok/s", rate);
}

int64_t tn_generation_depth(const tn_context *ctx, const tn_stats *st)
{
    return tn_context_length(ctx) - (int64_t)st->decode_tokens / 2;
}

void tn_generation_report(const tn_generation *g, const tn_session *s)
{
    tn_stats st = {.struct_size = sizeof st};
    if (tn_context_stats(g->ctx, &st, NULL) != TN_OK) return;
    char prompt[64], generated[64], predicted[40] = "";
    counted(prompt, st.prefill_tokens, tn_rate(st.prefill_tokens, st.prefill_s));
    counted(generated, (uint64_t)g->n_tokens, tn_rate(st.decode_tokens, st.decode_s));
    const double rate =
        st.decode_tokens ? tn_placed_rate(&s->placed, tn_generation_depth(g->ctx, &st)) : 0;
    if (rate > 0) snprintf(predicted, sizeof predicted, " (predicted %.1f)", rate);
    const char *label = tn_speed_label(s->engine);
    tn_note("stop: %s | prompt %s | generated %s%s | context %d/%d%s%s", tn_stop_name(g->reason),
            prompt, generated, predicted, (int)tn_context_length(g->ctx),
            (int)tn_context_capacity(g->ctx), label ? " | " : "", label ? label : "");
}

/* ---- stop strings ---------------------------------------------------------------------------- */

/* Text that may yet turn out to begin a stop string. */
typedef struct held {
    char *text;
    size_t len, cap;
} held;

static void hold(held *h, const char *text, size_t len)
{
    if (h->len + len > h->cap) h->text = tn_realloc(h->text, h->cap = 2 * (h->len + len));
    if (len) memcpy(h->text + h->len, text, len);
    h->len += len;
}

/* Start of the earliest stop string inside the held text, or its length. */
static size_t find_stop(const held *h, const tn_settings *set)
{
    size_t at = h->len;
    for (size_t i = 0; i < set->n_stops; i++) {
        const char *hit =
            h->len ? memmem(h->text, h->len, set->stops[i], strlen(set->stops[i])) : NULL;
        if (hit && (size_t)(hit - h->text) < at) at = (size_t)(hit - h->text);
    }
    return at;
}

/* How much of the held text cannot be part of a stop string any more. */
static size_t certain(const held *h, const tn_settings *set)
{
    size_t keep = 0;
    for (size_t i = 0; i < set->n_stops; i++) {
        size_t k = strlen(set->stops[i]) - 1;
        if (k > h->len) k = h->len;
        while (k > keep && memcmp(h->text + h->len - k, set->stops[i], k) != 0)
            k--;
        if (k > keep) keep = k;
    }
    return h->len - keep;
}

static bool emit(tn_generation *g, held *h, size_t n, int32_t id, float logprob)
{
    const tn_generated piece = {id, logprob, h->text ? h->text : "", n};
    const bool ok = g->emit(g->user, &piece);
    if (n) memmove(h->text, h->text + n, h->len - n);
    h->len -= n;
    return ok;
}

/* ---- the loop -------------------------------------------------------------------------------- */

typedef struct loop {
    tn_generation *g;
    bool greedy;  /* every token is the likeliest one, and nobody asks how likely */
    int32_t next; /* then: the coming token, -1 = not known yet */
    tn_detokenizer *detok;
    held held;
    bool done;
    tn_error *err;
} loop;

static void stop(loop *l, tn_stop reason)
{
    l->g->reason = reason;
    l->done = true;
}

static tn_status show(loop *l, int32_t id, float logprob)
{
    tn_generation *g = l->g;
    const char *text;
    size_t len;
    const tn_status status = tn_detokenizer_push(l->detok, id, &text, &len, l->err);
    if (status) return status;
    hold(&l->held, text, len);
    const size_t at = find_stop(&l->held, g->set);
    const bool stopped = at < l->held.len;
    if (!emit(g, &l->held, stopped ? at : certain(&l->held, g->set), id, logprob))
        stop(l, TN_STOP_OUTPUT);
    else if (stopped)
        stop(l, TN_STOP_TEXT);
    return TN_OK;
}

static bool is_greedy(const tn_generation *g)
{
    tn_sampler_options o;
    return !g->set->json && g->set->n_bias == 0 &&
           tn_sampler_settings(&o, g->set, g->model, NULL) == TN_OK && o.temperature == 0 &&
           o.repeat_penalty == 1 && o.presence_penalty == 0 && o.frequency_penalty == 0;
}

static tn_status choose(loop *l, int32_t *id, float *logprob)
{
    tn_generation *g = l->g;
    tn_model_info info = {.struct_size = sizeof info};
    *id = l->next;
    *logprob = 0;
    if (l->next >= 0) return TN_OK;
    tn_status status = tn_model_get_info(g->model, &info, l->err);
    if (!status)
        status = tn_sampler_sample(g->sampler, tn_context_logits(g->ctx), info.n_vocab, id, logprob,
                                   l->err);
    return status ? status : tn_sampler_accept(g->sampler, *id, l->err);
}

/* One token: chosen, shown, evaluated. */
static tn_status step(loop *l)
{
    tn_generation *g = l->g;
    int32_t id;
    float logprob;
    const int32_t limit = g->set->predict == TN_UNSET ? -1 : g->set->predict;
    tn_status status = choose(l, &id, &logprob);
    if (status) return status;
    g->n_tokens++;
    if (tn_token_is_end(g->model, id)) {
        stop(l, TN_STOP_END);
        return TN_OK;
    }
    status = show(l, id, logprob);
    if (status || l->done) return status;
    if (limit >= 0 && g->n_tokens >= limit)
        stop(l, TN_STOP_LENGTH);
    else if (tn_context_length(g->ctx) >= tn_context_capacity(g->ctx))
        stop(l, TN_STOP_FULL);
    else if (tn_signal_pending())
        stop(l, TN_STOP_INTERRUPTED);
    if (l->done) return TN_OK;
    status = l->greedy ? tn_context_eval_best(g->ctx, &id, 1, &l->next, l->err)
                       : tn_context_eval(g->ctx, &id, 1, l->err);
    if (status != TN_ECANCELED) return status;
    stop(l, TN_STOP_INTERRUPTED);
    return TN_OK;
}

/* What was held back, now that nothing follows. */
static tn_status flush(loop *l)
{
    const char *text;
    size_t len;
    if (l->g->reason == TN_STOP_TEXT || l->g->reason == TN_STOP_OUTPUT) return TN_OK;
    const tn_status status = tn_detokenizer_finish(l->detok, &text, &len, l->err);
    if (status) return status;
    hold(&l->held, text, len);
    if (l->held.len && !emit(l->g, &l->held, l->held.len, -1, 0)) l->g->reason = TN_STOP_OUTPUT;
    return TN_OK;
}

tn_status tn_generate(tn_generation *g, tn_error *err)
{
    loop l = {.g = g, .greedy = is_greedy(g), .next = -1, .err = err};
    g->n_tokens = 0;
    tn_status status = tn_detokenizer_new(&l.detok, g->model, g->detokenize, err);
    if (!status && g->set->predict == 0) stop(&l, TN_STOP_LENGTH);
    while (!status && !l.done)
        status = step(&l);
    if (!status) status = flush(&l);
    tn_detokenizer_free(l.detok);
    free(l.held.text);
    return status;
}
