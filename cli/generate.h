/* The generation loop that run and chat share: sample, show, evaluate, until there is a reason to
 * stop. */
#ifndef TN_CLI_GENERATE_H
#define TN_CLI_GENERATE_H

#include "session.h"

#include "../engine/tenon.h"

typedef enum tn_stop {
    TN_STOP_END,         /* the model ended its turn */
    TN_STOP_TEXT,        /* a stop string */
    TN_STOP_LENGTH,      /* -n */
    TN_STOP_FULL,        /* the context is full */
    TN_STOP_INTERRUPTED, /* a signal */
    TN_STOP_OUTPUT       /* emit() failed */
} tn_stop;
/* "eos", "stop-string", "length", "context-full", "interrupted", "output". */
const char *tn_stop_name(tn_stop reason);

/* A generated token and the text that became certain with it; id -1: text that was held back until
 * the end. Texts in order are the model's text, stop strings left out. */
typedef struct tn_generated {
    int32_t id;
    float logprob;
    const char *text;
    size_t len;
} tn_generated;

typedef struct tn_generation {
    const tn_model *model;
    tn_context *ctx;     /* holds the prompt, logits of its last token ready */
    tn_sampler *sampler; /* has accepted the prompt */
    const tn_settings *set;
    unsigned detokenize;                                 /* flags */
    bool (*emit)(void *user, const tn_generated *piece); /* false = stop */
    void *user;
    /* results */
    tn_stop reason;
    int32_t n_tokens;
} tn_generation;

/* TN_OK with a reason, or a failure of the library. */
tn_status tn_generate(tn_generation *g, tn_error *err);

/* The sampler the settings ask for: the model's defaults, overridden by what was given. */
tn_status tn_sampler_settings(tn_sampler_options *o, const tn_settings *set, const tn_model *model,
                              tn_error *err);
/* Makes it, with the settings' logit biases, and has it accept n tokens. */
tn_status tn_sampler_prepare(tn_sampler **out, const tn_engine *engine, const tn_settings *set,
                             const tn_sampler_options *o, const int32_t *ids, size_t n,
                             tn_error *err);
/* A seed nobody chose. */
uint64_t tn_random_seed(void);

/* The closing line on stderr: why it stopped, speeds beside what a plan predicts, context use.
 * Speeds are those of the context's statistics, under the engine's label where it has one. */
void tn_generation_report(const tn_generation *g, const tn_session *s);
/* Tokens in the context as an answer was generated, on average. */
int64_t tn_generation_depth(const tn_context *ctx, const tn_stats *st);
/* Whether it is the emulated device that computes. */
bool tn_is_emulated(const tn_engine *engine);
/* What speeds have to be labelled with: "emulated", "throttled to 400 GB/s"; NULL: nothing. */
const char *tn_speed_label(const tn_engine *engine);
/* n per second, 0 for no time. */
double tn_rate(uint64_t n, double seconds);

#endif
