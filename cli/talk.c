#include "talk.h"

#include <stdlib.h>
#include <string.h>

/* ---- messages -------------------------------------------------------------------------------- */

static char *copy(const char *s)
{
    const size_t n = strlen(s) + 1;
    return memcpy(tn_malloc(n), s, n);
}

static void insert(tn_talk *t, size_t at, const char *role, const char *content)
{
    if (t->n == t->cap)
        t->messages = tn_realloc(t->messages, (t->cap = 2 * t->cap + 8) * sizeof *t->messages);
    memmove(t->messages + at + 1, t->messages + at, (t->n - at) * sizeof *t->messages);
    t->messages[at] = (tn_message){role, copy(content)};
    t->n++;
}

static void remove_at(tn_talk *t, size_t at)
{
    free((char *)(uintptr_t)t->messages[at].content);
    t->n--;
    memmove(t->messages + at, t->messages + at + 1, (t->n - at) * sizeof *t->messages);
}

static size_t first_turn(const tn_talk *t)
{
    return t->n && strcmp(t->messages[0].role, "system") == 0 ? 1 : 0;
}

void tn_talk_add(tn_talk *t, const char *role, const char *content)
{
    insert(t, t->n, role, content);
}

void tn_talk_drop_last(tn_talk *t, size_t count)
{
    for (; count && t->n > first_turn(t); count--)
        remove_at(t, t->n - 1);
}

const char *tn_talk_last_user(const tn_talk *t)
{
    for (size_t i = t->n; i > 0; i--)
        if (strcmp(t->messages[i - 1].role, "user") == 0) return t->messages[i - 1].content;
    return NULL;
}

void tn_talk_set_system(tn_talk *t, const char *text)
{
    if (first_turn(t)) remove_at(t, 0);
    if (text && *text) insert(t, 0, "system", text);
}

void tn_talk_clear(tn_talk *t)
{
    tn_talk_drop_last(t, t->n);
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* The conversation as ids, freed by the caller. */
static tn_status format(const tn_talk *t, int32_t **ids, size_t *n, tn_error *err)
{
    size_t cap = 0;
    tn_status status;
    *n = 0;
    *ids = NULL;
    do {
        cap = *n;
        if (cap) *ids = tn_realloc(*ids, cap * sizeof **ids);
        status =
            tn_chat_tokens(t->s.model, t->set.format, t->messages, t->n, true, *ids, cap, n, err);
    } while (status == TN_EFULL && *n > cap);
    return status;
}

/* Tokens to keep free for the answer when old turns are dropped. */
static size_t answer_room(const tn_talk *t)
{
    const size_t quarter = (size_t)tn_context_capacity(t->s.ctx) / 4;
    return t->set.predict > 0 && (size_t)t->set.predict < quarter ? (size_t)t->set.predict
                                                                  : quarter;
}

/* Removes the oldest question with its answer. False if only the last question is left. */
static bool drop_oldest_turn(tn_talk *t)
{
    const size_t first = first_turn(t);
    if (first + 1 >= t->n) return false;
    do
        remove_at(t, first);
    while (first + 1 < t->n && strcmp(t->messages[first].role, "user") != 0);
    return true;
}

/* The conversation as ids that fit, old turns dropped if the user allowed it. */
static int fit(tn_talk *t, int32_t **ids, size_t *n)
{
    const size_t capacity = (size_t)tn_context_capacity(t->s.ctx);
    size_t dropped = 0, before = 0;
    for (;;) {
        tn_error err = {0};
        const tn_status status = format(t, ids, n, &err);
        if (status) {
            free(*ids);
            return tn_session_fail(status, &err);
        }
        if (!before) before = *n;
        if (*n + (t->set.shift ? answer_room(t) : 1) <= capacity) break;
        if (!t->set.shift || !drop_oldest_turn(t)) {
            if (*n + 1 <= capacity) break;
            free(*ids);
            tn_say("the conversation needs %zu tokens, the context holds %zu: /undo, /clear, or "
                   "start with "
                   "a larger -c%s",
                   *n, capacity, t->set.shift ? "" : " or with --shift");
            return TN_EXIT_FULL;
        }
        free(*ids);
        dropped++;
    }
    if (dropped)
        tn_say("the context is full: dropped the %zu oldest turn%s (%zu tokens)", dropped,
               dropped > 1 ? "s" : "", before - *n);
    return TN_EXIT_OK;
}

/* ---- answering ------------------------------------------------------------------------------- */

typedef struct answer {
    char *text;
    size_t len, cap;
} answer;

static bool show(void *user, const tn_generated *piece)
{
    answer *a = user;
    if (a->len + piece->len + 1 > a->cap)
        a->text = tn_realloc(a->text, a->cap = 2 * (a->len + piece->len + 1));
    memcpy(a->text + a->len, piece->text, piece->len);
    a->len += piece->len;
    a->text[a->len] = 0;
    return tn_out(piece->text, piece->len) && tn_out_flush();
}

/* Evaluates what the context does not hold yet. */
static tn_status feed(tn_talk *t, const int32_t *ids, size_t n, tn_error *err)
{
    const int32_t *held = tn_context_tokens(t->s.ctx);
    const size_t length = (size_t)tn_context_length(t->s.ctx);
    size_t same = 0;
    while (same < length && same + 1 < n && held[same] == ids[same])
        same++;
    tn_status status = tn_context_rewind(t->s.ctx, (int32_t)same, err);
    if (status) return status;
    tn_context_stats_reset(t->s.ctx);
    t->s.evaluating.label = t->interactive ? "reading" : NULL;
    status = tn_context_eval(t->s.ctx, ids + same, (int32_t)(n - same), err);
    tn_progress_clear(&t->s.evaluating);
    t->s.evaluating.label = NULL;
    return status;
}

static tn_status make_sampler(tn_talk *t, tn_sampler **sampler, const int32_t *ids, size_t n,
                              tn_error *err)
{
    tn_sampler_options o;
    const tn_status status = tn_sampler_settings(&o, &t->set, t->s.model, err);
    if (status) return status;
    o.seed += t->n_answers++;
    return tn_sampler_prepare(sampler, t->s.engine, &t->set, &o, ids, n, err);
}

static void tell_full(const tn_talk *t)
{
    tn_say("the context of %d tokens is full, the answer is cut off%s",
           (int)tn_context_capacity(t->s.ctx),
           t->set.shift ? "" : "; --shift lets old turns be dropped");
}

static tn_status generate(tn_talk *t, const int32_t *ids, size_t n, tn_generation *g, tn_error *err)
{
    answer a = {0};
    tn_sampler *sampler = NULL;
    tn_status status = make_sampler(t, &sampler, ids, n, err);
    *g = (tn_generation){.model = t->s.model,
                         .ctx = t->s.ctx,
                         .sampler = sampler,
                         .set = &t->set,
                         .emit = show,
                         .user = &a};
    if (!status) status = tn_generate(g, err);
    if (!status) {
        if (!a.len || a.text[a.len - 1] != '\n') tn_out("\n", 1);
        tn_talk_add(t, "assistant", a.text ? a.text : "");
    }
    tn_sampler_free(sampler);
    free(a.text);
    return status;
}

int tn_talk_answer(tn_talk *t)
{
    tn_error err = {0};
    tn_generation g;
    int32_t *ids;
    size_t n;
    int code = fit(t, &ids, &n);
    if (code) {
        tn_talk_drop_last(t, 1);
        return code;
    }
    tn_status status = feed(t, ids, n, &err);
    if (!status) status = generate(t, ids, n, &g, &err);
    free(ids);
    if (status) tn_talk_drop_last(t, 1);
    if (status == TN_ECANCELED)
        tn_note("stop: interrupted before the answer; the message is forgotten");
    if (status) return status == TN_ECANCELED ? TN_EXIT_OK : tn_session_fail(status, &err);
    code = tn_out_finish();
    if (code) return code;
    tn_generation_report(&g, &t->s);
    if (g.reason != TN_STOP_FULL) return TN_EXIT_OK;
    tell_full(t);
    return t->interactive ? TN_EXIT_OK : TN_EXIT_FULL;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Fails early where the model's chat format is not known. */
static int check_format(const tn_talk *t)
{
    static const tn_message probe = {"user", "?"};
    tn_error err = {0};
    size_t n;
    const tn_status status =
        tn_chat_tokens(t->s.model, t->set.format, &probe, 1, true, NULL, 0, &n, &err);
    return status == TN_OK || status == TN_EFULL ? TN_EXIT_OK : tn_session_fail(status, &err);
}

int tn_talk_open(tn_talk *t, const tn_settings *set)
{
    memset(t, 0, sizeof *t);
    t->set = *set;
    if (!t->set.has_seed) t->set.seed = tn_random_seed();
    int code = tn_session_open(&t->s, set, false);
    if (!code) code = check_format(t);
    if (!code)
        code = tn_session_context(&t->s, set, set->ctx > 0 ? set->ctx : 0,
                                  tn_settings_kv(set, set->exact ? TN_KV_F32 : TN_KV_F16));
    if (!code) tn_talk_set_system(t, set->system);
    return code;
}

void tn_talk_close(tn_talk *t)
{
    while (t->n)
        remove_at(t, t->n - 1);
    free(t->messages);
    tn_session_close(&t->s);
}
