/* tenon chat: the conversation's commands and its loop. */
#include "line.h"
#include "prompt.h"
#include "talk.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef struct chat {
    tn_talk t;
    tn_line *line;
    char *preset;           /* what the next line starts with */
    bool leave, had_signal; /* had_signal: the last thing typed was Ctrl-C */
    int code;
} chat;

static const char *skip_space(const char *s)
{
    return s + strspn(s, " \t");
}

static void answer(chat *c)
{
    c->code = tn_talk_answer(&c->t);
    /* A person can shorten the conversation or take the system message back; a script cannot. */
    const bool refused = c->code == TN_EXIT_FULL || c->code == TN_EXIT_USAGE;
    if (refused && c->t.interactive) c->code = TN_EXIT_OK;
    if (c->code) c->leave = true;
}

static void send(chat *c, const char *text)
{
    tn_talk_add(&c->t, "user", text);
    answer(c);
}

/* ---- commands -------------------------------------------------------------------------------- */

static void cmd_exit(chat *c, const char *arg)
{
    (void)arg;
    c->leave = true;
}

static void cmd_clear(chat *c, const char *arg)
{
    (void)arg;
    tn_talk_clear(&c->t);
    tn_note("the conversation is empty");
}

/* Forgets the last question with its answer. */
static bool undo(chat *c)
{
    const tn_talk *t = &c->t;
    if (!tn_talk_last_user(t)) {
        tn_say("there is no message to go back to");
        return false;
    }
    while (t->n && strcmp(t->messages[t->n - 1].role, "user") != 0)
        tn_talk_drop_last(&c->t, 1);
    tn_talk_drop_last(&c->t, 1);
    return true;
}

static void cmd_undo(chat *c, const char *arg)
{
    (void)arg;
    if (undo(c)) tn_note("the last message and its answer are forgotten");
}

/* Undoes the last turn and hands out its question, freed by the caller. */
static char *take_back(chat *c)
{
    const char *last = tn_talk_last_user(&c->t);
    char *text = last ? strdup(last) : NULL;
    if (!undo(c)) return NULL;
    return text;
}

static void cmd_retry(chat *c, const char *arg)
{
    (void)arg;
    char *text = take_back(c);
    if (text) send(c, text);
    free(text);
}

static void cmd_edit(chat *c, const char *arg)
{
    char *text = take_back(c);
    if (text && *arg) send(c, arg);
    if (*arg || !text) {
        free(text);
        return;
    }
    c->preset = text;
}

static void cmd_system(chat *c, const char *arg)
{
    tn_talk_set_system(&c->t, arg);
    tn_note(*arg ? "the system message is set" : "there is no system message");
}

/* /file PATH [text]: the text, then the file. A path with spaces stands in double quotes. */
static void cmd_file(chat *c, const char *arg)
{
    const bool quoted = *arg == '"';
    const char *path = arg + quoted;
    const size_t n = strcspn(path, quoted ? "\"" : " \t");
    char *name = strndup(path, n), *text;
    const char *rest = skip_space(path + n + (quoted && path[n] == '"'));
    size_t len;
    if (!n || !name) {
        tn_say("name a file, as in /file notes.txt Summarise this");
    } else if (tn_text_read(name, &text, &len) == TN_EXIT_OK) {
        char *message = NULL;
        if (memchr(text, 0, len))
            tn_say("'%s' is not a text: it holds a zero byte", name);
        else if (asprintf(&message, "%s%s%s", rest, *rest ? "\n\n" : "", text) >= 0)
            send(c, message);
        free(message);
        free(text);
    }
    free(name);
}

static void print_params(const chat *c)
{
    tn_sampler_options o;
    tn_error err = {0};
    if (tn_sampler_settings(&o, &c->t.set, c->t.s.model, &err) != TN_OK) {
        tn_say("%s", err.msg);
        return;
    }
    tn_note("top-k %d, top-p %g, min-p %g, temp %g | repeat-penalty %g, presence-penalty %g, "
            "frequency-penalty %g, repeat-last-n %d",
            (int)o.top_k, (double)o.top_p, (double)o.min_p, (double)o.temperature,
            (double)o.repeat_penalty, (double)o.presence_penalty, (double)o.frequency_penalty,
            (int)o.penalty_last_n);
    tn_note("seed %llu, plus 1 for each answer (%llu so far) | predict %d | context %d",
            (unsigned long long)o.seed, (unsigned long long)c->t.n_answers,
            c->t.set.predict == TN_UNSET ? -1 : (int)c->t.set.predict,
            (int)tn_context_capacity(c->t.s.ctx));
}

static void cmd_params(chat *c, const char *arg)
{
    char *pairs = strdup(arg), *rest = NULL;
    for (char *p = pairs ? strtok_r(pairs, " \t", &rest) : NULL; p;
         p = strtok_r(NULL, " \t", &rest)) {
        char *value = strchr(p, '=');
        if (!value) {
            tn_say("write a parameter as name=value, as in /params temp=0.5");
            free(pairs);
            return;
        }
        *value++ = 0;
        tn_options_set(&c->t.set, p, value);
    }
    free(pairs);
    print_params(c);
}

/* The last answer's speed beside the plan's. */
static void note_prediction(const chat *c, const tn_stats *st)
{
    tn_placement_info f = {.struct_size = sizeof f};
    const int64_t live = tn_generation_depth(c->t.s.ctx, st);
    if (!c->t.s.placed.plan || !st->decode_tokens || st->decode_s <= 0) return;
    if (tn_placement_get_info(c->t.s.placed.plan, &f, NULL)) return;
    tn_note("decoding: %s %.1f tok/s, predicted %.1f tok/s (%s, %lld tokens live)",
            tn_engine_label(c->t.s.engine), (double)st->decode_tokens / st->decode_s,
            tn_placed_rate(&c->t.s.placed, live), f.hardware, (long long)live);
}

static void cmd_stats(chat *c, const char *arg)
{
    (void)arg;
    tn_stats st = {.struct_size = sizeof st};
    tn_context_stats(c->t.s.ctx, &st, NULL);
    const char *label = tn_speed_label(c->t.s.engine);
    tn_note("last answer%s%s%s: prompt %llu tokens in %.2f s, generated %llu tokens in %.2f s",
            label ? " (" : "", label ? label : "", label ? ")" : "",
            (unsigned long long)st.prefill_tokens, st.prefill_s,
            (unsigned long long)st.decode_tokens, st.decode_s);
    tn_note("weights read: host %.1f MiB, device %.1f MiB | hops %llu, waited %.2f s",
            (double)st.host.weight_bytes / 1048576, (double)st.device.weight_bytes / 1048576,
            (unsigned long long)st.hops, st.join_wait_s);
    tn_note("memory: weights %.1f MiB, context %.1f MiB | loaded in %.2f s | context %d/%d | %zu "
            "messages",
            (double)st.model_bytes_held / 1048576, (double)st.kv_bytes_held / 1048576, st.load_s,
            (int)tn_context_length(c->t.s.ctx), (int)tn_context_capacity(c->t.s.ctx), c->t.n);
    if (st.experts_chosen)
        tn_note("experts: %.1f %% of %llu choices on the device",
                100.0 * (double)st.experts_on_device / (double)st.experts_chosen,
                (unsigned long long)st.experts_chosen);
    if (st.units)
        tn_note(
            "moving with the context: %llu of %llu slabs or experts on the device | %llu dropped, "
            "%llu promoted%s",
            (unsigned long long)st.units_on_device, (unsigned long long)st.units,
            (unsigned long long)st.units_dropped, (unsigned long long)st.units_promoted,
            st.replans ? " | planned again after a drift" : "");
    note_prediction(c, &st);
}

static void cmd_plan(chat *c, const char *arg)
{
    (void)arg;
    if (c->t.s.placed.plan)
        tn_plan_print(c->t.s.placed.plan, &c->t.set);
    else
        tn_note("no plan: everything is on the host");
}

static void cmd_help(chat *c, const char *arg);

static const struct {
    const char *name, *args, *help;
    void (*run)(chat *c, const char *arg);
} commands[] = {
    {"help", "", "this list", cmd_help},
    {"exit", "", "leave (also Ctrl-D)", cmd_exit},
    {"clear", "", "forget the conversation, keep the system message", cmd_clear},
    {"undo", "", "forget the last message and its answer", cmd_undo},
    {"retry", "", "answer the last message anew", cmd_retry},
    {"edit", "[TEXT]", "change the last message, or replace it by TEXT", cmd_edit},
    {"system", "[TEXT]", "set the system message, or remove it", cmd_system},
    {"file", "PATH [TEXT]", "send TEXT with a file's content", cmd_file},
    {"params", "[NAME=VALUE]", "show or change sampling, as in temp=0.5", cmd_params},
    {"stats", "", "times and memory", cmd_stats},
    {"plan", "", "what is on the device, and how fast that should be", cmd_plan},
};

static void cmd_help(chat *c, const char *arg)
{
    (void)c;
    (void)arg;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        tn_note("/%-8s %-14s %s", commands[i].name, commands[i].args, commands[i].help);
    tn_note("\\ at the end of a line or Alt-Enter: a new line | Ctrl-C: stop the answer");
}

static void run_command(chat *c, const char *text)
{
    const size_t n = strcspn(text + 1, " \t\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strlen(commands[i].name) != n || strncmp(commands[i].name, text + 1, n) != 0) continue;
        commands[i].run(c, skip_space(text + 1 + n));
        return;
    }
    tn_say("there is no command /%.*s; /help lists them", (int)(n < 40 ? n : 40), text + 1);
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void take_text(chat *c, const char *text)
{
    if (text[0] == '/')
        run_command(c, text);
    else if (text[strspn(text, " \t\n")])
        send(c, text);
}

/* What a signal means: leave on SIGTERM, in a script, and on the second Ctrl-C in a row on an empty
 * line; the first may have stopped an answer. */
static void take_signal(chat *c, bool empty_line)
{
    const int signal = tn_signal_pending();
    if (signal != SIGINT || !c->t.interactive || (empty_line && c->had_signal)) {
        c->code = TN_EXIT_SIGNAL + (signal ? signal : SIGINT);
        c->leave = true;
        return;
    }
    if (empty_line) tn_note("Ctrl-C again or /exit leaves");
    c->had_signal = true;
    tn_signal_clear();
}

static void loop(chat *c)
{
    while (!c->leave) {
        char *text = NULL;
        const tn_line_result r = tn_line_read(c->line, "> ", c->preset, &text);
        free(c->preset);
        c->preset = NULL;
        if (r == TN_LINE_TEXT) {
            c->had_signal = false;
            take_text(c, text);
            free(text);
            if (tn_signal_pending()) take_signal(c, false);
        } else if (r == TN_LINE_CLEARED || r == TN_LINE_INTERRUPTED) {
            take_signal(c, r == TN_LINE_INTERRUPTED);
        } else {
            c->leave = true;
            c->code = r == TN_LINE_FAILED ? TN_EXIT_IO : TN_EXIT_OK;
        }
    }
}

static void greet(const chat *c)
{
    const tn_model_info *info = &c->t.s.info;
    if (!c->t.interactive) return;
    const int threads = tn_engine_threads(c->t.s.engine);
    tn_note("%s %s, %.0f M weights, %.0f MiB | context %d | %d thread%s | seed %llu",
            *info->name ? info->name : info->arch, info->type, (double)info->n_params * 1e-6,
            (double)info->weight_bytes / 1048576, (int)tn_context_capacity(c->t.s.ctx), threads,
            threads == 1 ? "" : "s", (unsigned long long)c->t.set.seed);
    tn_note("/help lists the commands, /exit leaves");
}

int tn_cmd_chat(const tn_settings *set)
{
    chat c = {0};
    c.code = tn_talk_open(&c.t, set);
    if (!c.code) {
        c.line = tn_line_new(!set->no_history);
        c.t.interactive = tn_line_is_terminal(c.line);
        greet(&c);
        if (set->prompt) take_text(&c, set->prompt);
        if (tn_signal_pending()) take_signal(&c, false);
        loop(&c);
        tn_line_free(c.line);
    }
    free(c.preset);
    tn_talk_close(&c.t);
    return c.code;
}
