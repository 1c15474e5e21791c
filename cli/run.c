/* tenon run: one prompt, one answer. Standard output carries nothing but the model's text, or one
 * JSON event a line. */
#include "generate.h"
#include "prompt.h"
#include "session.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct one_turn {
    tn_session s;
    const tn_settings *set;
    bool chat; /* the prompt is a user's message */
    int32_t *ids;
    size_t n;
    tn_sampler_options sampling;
    tn_sampler *sampler;
    char last; /* character written */
} one_turn;

/* Takes j. */
static bool print_event(json_t *j)
{
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)); /* all digits of a float */
    const bool ok = text && tn_out(text, strlen(text)) && tn_out("\n", 1) && tn_out_flush();
    free(text);
    json_decref(j);
    return ok;
}

static bool print_start(const one_turn *t)
{
    const tn_sampler_options *o = &t->sampling;
    return print_event(json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:I, s:{s:f, s:i, s:f, s:f, s:f, s:f, s:f, s:i}}", "event",
        "start", "model", t->set->model, "arch", t->s.info.arch, "context",
        tn_context_capacity(t->s.ctx), "prompt_tokens", (int)t->n, "seed", (json_int_t)o->seed,
        "sampling", "temp", (double)o->temperature, "top_k", (int)o->top_k, "top_p",
        (double)o->top_p, "min_p", (double)o->min_p, "repeat_penalty", (double)o->repeat_penalty,
        "presence_penalty", (double)o->presence_penalty, "frequency_penalty",
        (double)o->frequency_penalty, "repeat_last_n", (int)o->penalty_last_n));
}

static bool emit_text(void *user, const tn_generated *piece)
{
    one_turn *t = user;
    if (piece->len) t->last = piece->text[piece->len - 1];
    return tn_out(piece->text, piece->len) && tn_out_flush();
}

static bool emit_event(void *user, const tn_generated *piece)
{
    (void)user;
    if (piece->id < 0)
        return print_event(
            json_pack("{s:s, s:s%}", "event", "text", "text", piece->text, piece->len));
    return print_event(json_pack("{s:s, s:i, s:s%, s:f}", "event", "token", "id", (int)piece->id,
                                 "text", piece->text, piece->len, "logprob",
                                 (double)piece->logprob));
}

static bool print_stop(const one_turn *t, const tn_generation *g, const tn_stats *st)
{
    return print_event(json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:b, s:s}", "event", "stop", "reason",
        tn_stop_name(g->reason), "prompt_tokens", (int)t->n, "generated_tokens", (int)g->n_tokens,
        "context_used", (int)tn_context_length(t->s.ctx), "load_seconds", st->load_s,
        "prompt_seconds", st->prefill_s, "generation_seconds", st->decode_s,
        "prompt_tokens_per_second", tn_rate(st->prefill_tokens, st->prefill_s),
        "generated_tokens_per_second", tn_rate(st->decode_tokens, st->decode_s), "emulated",
        (int)tn_is_emulated(t->s.engine), "label", tn_engine_label(t->s.engine)));
}

static int chat_ids(one_turn *t, const char *prompt)
{
    const tn_message all[2] = {{"system", t->set->system}, {"user", prompt}};
    const tn_message *from = t->set->system ? all : all + 1;
    const size_t count = t->set->system ? 2 : 1;
    tn_error err = {0};
    size_t cap = 0;
    tn_status status;
    do {
        cap = t->n;
        t->ids = tn_realloc(t->ids, cap * sizeof *t->ids);
        status = tn_chat_tokens(t->s.model, t->set->format, from, count, true, cap ? t->ids : NULL,
                                cap, &t->n, &err);
    } while (status == TN_EFULL && t->n > cap);
    return status ? tn_session_fail(status, &err) : TN_EXIT_OK;
}

/* What is wrong with the prompt, or NULL. */
static const char *find_fault(const one_turn *t, const char *prompt, size_t len)
{
    if (len == 0 && !t->set->raw) return "the prompt is empty";
    if (t->chat && memchr(prompt, 0, len)) return "the prompt is not a text: it holds a zero byte";
    return NULL;
}

/* The prompt as tokens: a message where there is a chat format, otherwise text to continue. */
static int prepare(one_turn *t, const char *prompt, size_t len)
{
    t->chat = !t->set->raw && (t->s.info.has_chat_template || t->set->format);
    const char *fault = find_fault(t, prompt, len);
    if (fault) {
        tn_say("%s", fault);
        return TN_EXIT_USAGE;
    }
    int code;
    if (t->chat) {
        code = chat_ids(t, prompt);
    } else {
        const unsigned special = t->set->parse_special ? TN_TOKENIZE_PARSE_SPECIAL : 0;
        if (t->set->system) tn_say("warning: --system is ignored: the text is continued as it is");
        code = tn_session_tokenize(&t->s, prompt, len, TN_TOKENIZE_ADD_SPECIAL | special, &t->ids,
                                   &t->n);
    }
    if (code || t->n) return code;
    tn_say("the prompt has no tokens");
    return TN_EXIT_USAGE;
}

static int make_sampler(one_turn *t)
{
    tn_error err = {0};
    tn_status status = tn_sampler_settings(&t->sampling, t->set, t->s.model, &err);
    if (status) return tn_session_fail(status, &err);
    if (!t->set->has_seed && t->sampling.temperature > 0) {
        t->sampling.seed = tn_random_seed();
        if (!t->set->json) tn_note("seed: %llu", (unsigned long long)t->sampling.seed);
    }
    status = tn_sampler_prepare(&t->sampler, t->s.engine, t->set, &t->sampling, t->ids, t->n, &err);
    return status ? tn_session_fail(status, &err) : TN_EXIT_OK;
}

static int finish(one_turn *t, const tn_generation *g)
{
    tn_stats st = {.struct_size = sizeof st};
    tn_context_stats(t->s.ctx, &st, NULL);
    if (t->set->json)
        print_stop(t, g, &st);
    else if (tn_out_is_terminal() && t->last != '\n')
        tn_out("\n", 1);
    const int code = tn_out_finish();
    if (code) return code;
    if (!t->set->json) tn_generation_report(g, &t->s);
    if (g->reason == TN_STOP_INTERRUPTED) return TN_EXIT_SIGNAL + tn_signal_pending();
    if (g->reason != TN_STOP_FULL) return TN_EXIT_OK;
    tn_say("the context of %d tokens is full; a larger one is asked for with -c",
           (int)tn_context_capacity(t->s.ctx));
    return TN_EXIT_FULL;
}

static int answer(one_turn *t)
{
    tn_error err = {0};
    if (t->set->json && !print_start(t)) return tn_out_finish();
    t->s.evaluating.label = "prompt";
    tn_status status = tn_context_eval(t->s.ctx, t->ids, (int32_t)t->n, &err);
    tn_progress_clear(&t->s.evaluating);
    if (status) return tn_session_fail(status, &err);
    t->s.evaluating.label = NULL;
    tn_generation g = {.model = t->s.model,
                       .ctx = t->s.ctx,
                       .sampler = t->sampler,
                       .set = t->set,
                       .detokenize = t->chat ? 0 : TN_DETOKENIZE_KEEP_SPACE,
                       .emit = t->set->json ? emit_event : emit_text,
                       .user = t};
    status = tn_generate(&g, &err);
    return status ? tn_session_fail(status, &err) : finish(t, &g);
}

int tn_cmd_run(const tn_settings *set)
{
    one_turn t = {.set = set, .last = '\n'};
    char *prompt = NULL;
    size_t len = 0;
    int code = tn_prompt_read(set, true, &prompt, &len);
    if (!code) code = tn_session_open(&t.s, set, false);
    if (!code) code = prepare(&t, prompt, len);
    if (!code && t.n > INT32_MAX) code = TN_EXIT_USAGE;
    if (!code)
        code = tn_session_context(&t.s, set, set->ctx > 0 ? set->ctx : 0,
                                  tn_settings_kv(set, set->exact ? TN_KV_F32 : TN_KV_F16));
    if (!code) code = make_sampler(&t);
    if (!code) code = answer(&t);
    tn_sampler_free(t.sampler);
    free(t.ids);
    free(prompt);
    tn_session_close(&t.s);
    return code;
}
