/* Chat formats: conversations as text and tokens, natively, in the formats of the common families.
 */
#include "template.h"

#include "model.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* Where a system message goes. */
enum system_place {
    system_turn,       /* a turn of its own */
    system_first_user, /* in front of the first user message */
    system_last_user,  /* in front of the last message, if that is the user's */
    system_none        /* the format has none */
};

/* What happens to thoughts (<think>...</think>) in assistant messages. */
enum thoughts { keep_thoughts, cut_thoughts, cut_old_trimmed, cut_old_newlines, qwen3_thoughts };

enum {
    trim_system = 1,
    trim_user = 2,
    trim_assistant = 4,
    trim_all = 7,
    alternate = 8,     /* user and assistant must take turns */
    later_system = 16, /* system messages may come anywhere */
    skip_empty = 32,   /* an empty first system message is as none */
    skip_empty_later = 64
};

/* One format. In literals \1 is the text of the bos token, \2 of eos, \3 today as "02 Jan 2026". */
typedef struct format {
    const char *name;
    const char *begin;
    const char *system[2], *user[2], *assistant[2]; /* before and after a content */
    const char *header;                             /* what makes the assistant speak */
    const char *otherwise;                          /* printed in its place if it shall not */
    const char *no_system; /* printed if the conversation has none, and the template gives none */
    const char *later[2];  /* later system turns, where they look different */
    unsigned flags;
    enum system_place place;
    enum thoughts thoughts;
} format;

#define CHATML                                                                                     \
    .system = {"<|im_start|>system\n", "<|im_end|>\n"},                                            \
    .user = {"<|im_start|>user\n", "<|im_end|>\n"},                                                \
    .assistant = {"<|im_start|>assistant\n", "<|im_end|>\n"}
#define CHATML_HEADER "<|im_start|>assistant\n"
#define LLAMA3(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA31_DATES "Cutting Knowledge Date: December 2023\nToday Date: "
#define LLAMA3_TURNS                                                                               \
    .user = {LLAMA3("user"), "<|eot_id|>"}, .assistant = {LLAMA3("assistant"), "<|eot_id|>"},      \
    .header = LLAMA3("assistant")
#define KIMI(kind, role) "<|im_" kind "|>" role "<|im_middle|>"
#define COHERE(role) "<|START_OF_TURN_TOKEN|><|" role "_TOKEN|>"
#define GRANITE(role) "<|start_of_role|>" role "<|end_of_role|>"

static const format formats[] = {
    {"chatml", "", CHATML, .header = CHATML_HEADER, .flags = later_system},
    {"qwen3", "", CHATML, .header = CHATML_HEADER, .flags = later_system,
     .thoughts = qwen3_thoughts},
    {"qwq", "", CHATML, .header = CHATML_HEADER "<think>\n", .flags = later_system,
     .thoughts = cut_old_newlines},
    {"qwq-nothink", "", CHATML, .header = CHATML_HEADER "<think>\n</think>", .flags = later_system,
     .thoughts = cut_old_newlines},
    {"lfm2", "\1", CHATML, .header = CHATML_HEADER, .flags = later_system | skip_empty},
    {"lfm2.5", "\1", CHATML, .header = CHATML_HEADER, .flags = later_system | skip_empty,
     .thoughts = cut_old_trimmed},
    {"llama2", "", .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"}, .user = {"\1[INST] ", " [/INST]"},
     .assistant = {" ", " \2"}, .header = "", .flags = alternate | trim_user | trim_assistant,
     .place = system_first_user},
    {"llama3", "\1", .system = {LLAMA3("system"), "<|eot_id|>"}, LLAMA3_TURNS,
     .flags = trim_all | later_system},
    {"llama3.1", "\1", .system = {LLAMA3("system") LLAMA31_DATES "26 Jul 2024\n\n", "<|eot_id|>"},
     LLAMA3_TURNS, .no_system = LLAMA3("system") LLAMA31_DATES "26 Jul 2024\n\n<|eot_id|>",
     .later = {LLAMA3("system"), "<|eot_id|>"}, .flags = trim_all | later_system},
    {"llama3.2", "\1", .system = {LLAMA3("system") LLAMA31_DATES "\3\n\n", "<|eot_id|>"},
     LLAMA3_TURNS, .no_system = LLAMA3("system") LLAMA31_DATES "\3\n\n<|eot_id|>",
     .later = {LLAMA3("system"), "<|eot_id|>"}, .flags = trim_all | later_system},
    {"mistral-v1", "\1", .user = {"[INST] ", " [/INST]"}, .assistant = {"", "\2"}, .header = "",
     .flags = alternate, .place = system_none},
    {"mistral-v1-system", "\1", .system = {"", "\n\n"}, .user = {" [INST] ", " [/INST]"},
     .assistant = {" ", "\2"}, .header = "", .flags = alternate, .place = system_first_user},
    {"mistral-v3", "\1", .system = {"", "\n\n"}, .user = {"[INST] ", "[/INST]"},
     .assistant = {" ", "\2"}, .header = "", .flags = alternate | trim_assistant,
     .place = system_last_user},
    {"mistral-v3-tekken", "\1", .system = {"", "\n\n"}, .user = {"[INST]", "[/INST]"},
     .assistant = {"", "\2"}, .header = "", .flags = alternate, .place = system_last_user},
    {"mistral-v7", "\1", .system = {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"},
     .user = {"[INST] ", "[/INST]"}, .assistant = {" ", "\2"}, .header = "", .flags = later_system},
    {"mistral-v7-tekken", "\1", .system = {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
     .user = {"[INST]", "[/INST]"}, .assistant = {"", "\2"}, .header = "", .flags = later_system},
    {"gemma", "\1", .system = {"", "\n\n"}, .user = {"<start_of_turn>user\n", "<end_of_turn>\n"},
     .assistant = {"<start_of_turn>model\n", "<end_of_turn>\n"}, .header = "<start_of_turn>model\n",
     .flags = alternate | trim_user | trim_assistant, .place = system_first_user},
    {"gemma-no-system", "\1", .user = {"<start_of_turn>user\n", "<end_of_turn>\n"},
     .assistant = {"<start_of_turn>model\n", "<end_of_turn>\n"}, .header = "<start_of_turn>model\n",
     .flags = alternate | trim_user | trim_assistant, .place = system_none},
    {"phi3", "", .system = {"<|system|>\n", "<|end|>\n"}, .user = {"<|user|>\n", "<|end|>\n"},
     .assistant = {"<|assistant|>\n", "<|end|>\n"}, .header = "<|assistant|>\n", .otherwise = "\2",
     .flags = later_system},
    {"phi3.5", "", .system = {"<|system|>\n", "<|end|>\n"}, .user = {"<|user|>\n", "<|end|>\n"},
     .assistant = {"<|assistant|>\n", "<|end|>\n"}, .header = "<|assistant|>\n", .otherwise = "\2",
     .flags = later_system | skip_empty | skip_empty_later},
    {"phi3-bos", "\1", .system = {"<|system|>\n", "<|end|>\n"}, .user = {"<|user|>\n", "<|end|>\n"},
     .assistant = {"<|assistant|>\n", "<|end|>\n"}, .header = "<|assistant|>\n", .otherwise = "\2",
     .flags = later_system},
    {"phi3-no-system", "\1", .user = {"<|user|>\n", "<|end|>\n<|assistant|>\n"},
     .assistant = {"", "<|end|>\n"}, .header = "", .place = system_none},
    {"phi4", "", .system = {"<|im_start|>system<|im_sep|>", "<|im_end|>"},
     .user = {"<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>"},
     .assistant = {"", "<|im_end|>"}, .header = "", .flags = later_system},
    {"zephyr", "", .system = {"<|system|>\n", "\2\n"}, .user = {"<|user|>\n", "\2\n"},
     .assistant = {"<|assistant|>\n", "\2\n"}, .header = "<|assistant|>\n", .flags = later_system},
    {"deepseek-r1", "\1", .system = {"", ""}, .user = {"<｜User｜>", ""},
     .assistant = {"<｜Assistant｜>", "<｜end▁of▁sentence｜>"},
     .header = "<｜Assistant｜><think>\n", .thoughts = cut_thoughts},
    {"deepseek-r1-nothink", "\1", .system = {"", ""}, .user = {"<｜User｜>", ""},
     .assistant = {"<｜Assistant｜>", "<｜end▁of▁sentence｜>"},
     .header = "<｜Assistant｜><think>\n</think>", .thoughts = cut_thoughts},
    {"command-r", "\1", .system = {COHERE("SYSTEM"), "<|END_OF_TURN_TOKEN|>"},
     .user = {COHERE("USER"), "<|END_OF_TURN_TOKEN|>"},
     .assistant = {COHERE("CHATBOT"), "<|END_OF_TURN_TOKEN|>"}, .header = COHERE("CHATBOT"),
     .flags = alternate | trim_user | trim_assistant},
    {"granite", "", .system = {GRANITE("system"), "<|end_of_text|>\n"},
     .user = {GRANITE("user"), "<|end_of_text|>\n"},
     .assistant = {GRANITE("assistant"), "<|end_of_text|>\n"}, .header = GRANITE("assistant"),
     .flags = later_system},
    {"kimi-k2", "", .system = {KIMI("system", "system"), "<|im_end|>"},
     .user = {KIMI("user", "user"), "<|im_end|>"},
     .assistant = {KIMI("assistant", "assistant"), "<|im_end|>"},
     .header = KIMI("assistant", "assistant"),
     .no_system = KIMI("system", "system") "You are a helpful assistant<|im_end|>",
     .flags = later_system},
    {"kimi-k2-instruct", "", .system = {KIMI("system", "system"), "<|im_end|>"},
     .user = {KIMI("user", "user"), "<|im_end|>"},
     .assistant = {KIMI("assistant", "assistant"), "<|im_end|>"},
     .header = KIMI("assistant", "assistant"),
     .no_system = KIMI(
         "system", "system") "You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>\n",
     .flags = later_system},
};
enum { n_formats = sizeof formats / sizeof formats[0] };

static const char *const names[] = {"chatml",      "qwen3",
                                    "qwq",         "qwq-nothink",
                                    "lfm2",        "lfm2.5",
                                    "llama2",      "llama3",
                                    "llama3.1",    "llama3.2",
                                    "mistral-v1",  "mistral-v1-system",
                                    "mistral-v3",  "mistral-v3-tekken",
                                    "mistral-v7",  "mistral-v7-tekken",
                                    "gemma",       "gemma-no-system",
                                    "phi3",        "phi3.5",
                                    "phi3-bos",    "phi3-no-system",
                                    "phi4",        "zephyr",
                                    "deepseek-r1", "deepseek-r1-nothink",
                                    "command-r",   "granite",
                                    "kimi-k2",     "kimi-k2-instruct",
                                    NULL};
_Static_assert(sizeof names / sizeof names[0] == n_formats + 1, "names lists every format");

const char *const *tn_chat_formats(void)
{
    return names;
}

static const format *find_format(const char *name)
{
    for (int i = 0; i < n_formats; i++)
        if (!strcmp(formats[i].name, name)) return &formats[i];
    return NULL;
}

/* ---- text ------------------------------------------------------------------------------------ */

typedef struct text {
    const char *p;
    size_t len;
} text;

static text text_of(const char *s)
{
    return (text){s, strlen(s)};
}

/* Bytes of the white space character at the start, by Python's definition; 0 if there is none. */
static size_t space_at(text t)
{
    const unsigned char *s = (const unsigned char *)t.p;
    if (!t.len) return 0;
    if (s[0] == ' ' || (s[0] >= 9 && s[0] <= 13) || (s[0] >= 0x1c && s[0] <= 0x1f)) return 1;
    if (t.len >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0)) return 2;
    if (t.len < 3 || s[0] < 0xe1 || s[0] > 0xe3) return 0;
    const unsigned c = (s[0] & 15u) << 12 | (s[1] & 63u) << 6 | (s[2] & 63u);
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
                   c == 0x202f || c == 0x205f || c == 0x3000
               ? 3
               : 0;
}

static text trim_left(text t)
{
    for (size_t n; (n = space_at(t)) > 0; t.p += n)
        t.len -= n;
    return t;
}

static text trim_right(text t)
{
    for (;;) {
        size_t n = 0;
        for (size_t k = 1; k <= 3 && k <= t.len && !n; k++)
            if (space_at((text){t.p + t.len - k, k}) == k) n = k;
        if (!n) return t;
        t.len -= n;
    }
}

static text trim(text t)
{
    return trim_right(trim_left(t));
}

static text skip_newlines(text t)
{
    while (t.len && t.p[0] == '\n')
        t.p++, t.len--;
    return t;
}

static text drop_newlines(text t)
{
    while (t.len && t.p[t.len - 1] == '\n')
        t.len--;
    return t;
}

/* Position of what, or t.len. */
static size_t find(text t, const char *what)
{
    const char *p = t.len ? memmem(t.p, t.len, what, strlen(what)) : NULL;
    return p ? (size_t)(p - t.p) : t.len;
}

/* What follows the last occurrence of a mark; everything if there is none. */
static text after_last(text t, const char *mark)
{
    for (size_t i; (i = find(t, mark)) < t.len;) {
        i += strlen(mark);
        t.p += i;
        t.len -= i;
    }
    return t;
}

static bool starts_with(text t, const char *s)
{
    const size_t n = strlen(s);
    return t.len >= n && !memcmp(t.p, s, n);
}

static bool ends_with(text t, const char *s)
{
    const size_t n = strlen(s);
    return t.len >= n && !memcmp(t.p + t.len - n, s, n);
}

/* ---- pieces ---------------------------------------------------------------------------------- */

/* A rendering under way. */
typedef struct out {
    tn_chat *chat;
    const format *f;
    const tn_chat_vars *vars;
    text default_system; /* the template's own; p == NULL if it has none */
} out;

static void put(out *o, text t, bool literal)
{
    tn_chat *c = o->chat;
    if (!t.len || c->out_of_memory) return;
    void *p = c->pieces;
    if (!tn_grow(c->a, &p, &c->cap, c->n, c->n + 1, sizeof *c->pieces)) {
        c->out_of_memory = true;
        return;
    }
    c->pieces = p;
    c->pieces[c->n++] = (tn_piece){t.p, t.len, literal};
}

static void put_literal(out *o, const char *s)
{
    while (s && *s) {
        const size_t n = strcspn(s, "\1\2\3");
        put(o, (text){s, n}, true);
        s += n;
        if (*s == '\1') put(o, (text){o->vars->bos, o->vars->n_bos}, true);
        if (*s == '\2') put(o, (text){o->vars->eos, o->vars->n_eos}, true);
        if (*s == '\3') put(o, text_of(o->chat->date), true);
        if (*s) s++;
    }
}

static void put_turn(out *o, const char *const around[2], text content)
{
    put_literal(o, around[0]);
    put(o, content, false);
    put_literal(o, around[1]);
}

static void put_system(out *o, const char *content, bool first)
{
    const text t = text_of(content);
    if (!t.len && o->f->flags & (first ? skip_empty : skip_empty_later)) return;
    put_turn(o, !first && o->f->later[0] ? o->f->later : o->f->system,
             o->f->flags & trim_system ? trim(t) : t);
}

/* A user turn with the system text in front of its content. */
static void put_merged(out *o, const char *system, text content)
{
    const bool trims = o->f->flags & trim_user;
    const bool blank = !trim(content).len;
    put_literal(o, o->f->user[0]);
    if (*o->f->system[0]) { /* Llama 2 trims the whole */
        put_literal(o, o->f->system[0]);
        put(o, text_of(system), false);
        put_literal(o, blank ? "\n<</SYS>>" : o->f->system[1]);
        put(o, trim_right(content), false);
    } else {
        put(o, text_of(system), false);
        put_literal(o, o->f->system[1]);
        put(o, trims ? trim(content) : content, false);
    }
    put_literal(o, o->f->user[1]);
}

/* Qwen 3: thoughts are kept only after the last user message. */
static void put_qwen3(out *o, text content, bool recent, bool last)
{
    text thoughts = {content.p, 0};
    const size_t end = find(content, "</think>");
    if (end < content.len) {
        thoughts = drop_newlines((text){content.p, end});
        thoughts = skip_newlines(after_last(thoughts, "<think>"));
        content = skip_newlines(after_last(content, "</think>"));
    }
    put_literal(o, o->f->assistant[0]);
    if (recent && (last || thoughts.len)) {
        put_literal(o, "<think>\n");
        put(o, thoughts, false);
        put_literal(o, "\n</think>\n\n");
        content = skip_newlines(content);
    }
    put(o, content, false);
    put_literal(o, o->f->assistant[1]);
}

/* old: an assistant message follows; last: nothing follows; recent: no user message follows. */
static void put_assistant(out *o, const char *content, bool old, bool last, bool recent)
{
    text t = text_of(content);
    switch (o->f->thoughts) {
    case keep_thoughts: break;
    case cut_thoughts: t = after_last(t, "</think>"); break;
    case cut_old_trimmed:
        if (old && find(t, "</think>") < t.len) t = trim(after_last(t, "</think>"));
        break;
    case cut_old_newlines:
        if (!last) t = skip_newlines(after_last(t, "</think>"));
        break;
    case qwen3_thoughts: put_qwen3(o, t, recent, last); return;
    }
    put_turn(o, o->f->assistant, o->f->flags & trim_assistant ? trim(t) : t);
}

/* ---- conversations --------------------------------------------------------------------------- */

static bool is(const tn_message *m, const char *role)
{
    return !strcmp(m->role, role);
}

static tn_status check_roles(const format *f, const tn_message *m, size_t n, tn_error *err)
{
    if (!n) return tn_fail(err, TN_EARG, -1, "the conversation has no messages");
    for (size_t i = 0; i < n; i++) {
        if (!m[i].role || !m[i].content)
            return tn_fail(err, TN_EARG, -1, "message %zu has no %s", i,
                           m[i].role ? "content" : "role");
        if (!is(&m[i], "system") && !is(&m[i], "user") && !is(&m[i], "assistant"))
            return tn_fail(err, TN_EARG, -1,
                           "message %zu has the role '%.40s'; known are system, user and assistant",
                           i, m[i].role);
        if (!is(&m[i], "system")) continue;
        if (f->place == system_none)
            return tn_fail(err, TN_EARG, -1, "chat format '%s' has no system messages", f->name);
        if (i && !(f->flags & later_system))
            return tn_fail(
                err, TN_EARG, -1,
                "message %zu is a system message; chat format '%s' allows only the first "
                "message to be one",
                i, f->name);
    }
    return TN_OK;
}

static tn_status check_order(const format *f, const tn_message *m, size_t n, tn_error *err)
{
    const size_t first = is(&m[0], "system");
    if (f->place != system_turn && n == first)
        return tn_fail(err, TN_EARG, -1,
                       "chat format '%s' needs a user message after the system message", f->name);
    for (size_t i = first; i < n && f->flags & alternate; i++)
        if (is(&m[i], "user") != ((i - first) % 2 == 0))
            return tn_fail(
                err, TN_EARG, -1,
                "message %zu is of the role '%s'; in chat format '%s' user and assistant must "
                "take turns after an optional system message, the user first",
                i, m[i].role, f->name);
    return TN_OK;
}

static void put_first(out *o, const tn_message *m)
{
    const format *f = o->f;
    put_literal(o, f->begin);
    if (f->place != system_turn) return;
    if (is(m, "system")) {
        put_system(o, m->content, true);
    } else if (o->default_system.p) {
        put_literal(o, f->system[0]);
        put(o, o->default_system, true);
        put_literal(o, f->system[1]);
    } else {
        put_literal(o, f->no_system);
    }
}

/* Index of the last user message that is none of Qwen's tool results; n if there is none. */
static size_t last_query(const tn_message *m, size_t n)
{
    for (size_t i = n; i-- > 0;) {
        const text t = text_of(m[i].content);
        if (is(&m[i], "user") &&
            !(starts_with(t, "<tool_response>") && ends_with(t, "</tool_response>")))
            return i;
    }
    return n;
}

static void put_messages(out *o, const tn_message *m, size_t n)
{
    const format *f = o->f;
    const size_t first = is(&m[0], "system"), query = last_query(m, n);
    size_t last_assistant = 0;
    for (size_t i = 0; i < n; i++)
        if (is(&m[i], "assistant")) last_assistant = i;
    for (size_t i = first; i < n; i++) {
        const text t = text_of(m[i].content);
        if (is(&m[i], "system"))
            put_system(o, m[i].content, false);
        else if (is(&m[i], "assistant"))
            put_assistant(o, m[i].content, (i < last_assistant), i + 1 == n, (i > query));
        else if (first && ((f->place == system_first_user && i == 1) ||
                           (f->place == system_last_user && i + 1 == n)))
            put_merged(o, m[0].content, t);
        else
            put_turn(o, f->user, f->flags & trim_user ? trim(t) : t);
    }
}

/* ---- entry ----------------------------------------------------------------------------------- */

static void list_names(char *buf, size_t size)
{
    size_t used = 0;
    buf[0] = 0;
    for (int i = 0; names[i]; i++) {
        const int n = snprintf(buf + used, size - used, "%s%s", i ? ", " : "", names[i]);
        if (n < 0 || (size_t)n >= size - used) return;
        used += (size_t)n;
    }
}

/* The default system text, its escapes resolved. */
static tn_status resolve(out *o, const tn_chat_match *match, tn_error *err)
{
    if (!match->system) return TN_OK;
    char *s = tn_strndup(o->chat->a, match->system, match->n_system), *to = s;
    if (!s) return tn_fail_nomem(err, match->n_system, "the template's system text");
    for (const char *p = s; *p; p++) {
        if (*p == '\\' && p[1]) {
            p++;
            *to++ = *p == 'n' ? '\n' : *p == 't' ? '\t' : *p;
        } else if (*p != '\r') {
            *to++ = *p;
        }
    }
    *to = 0;
    o->chat->owned = s;
    o->default_system = (text){s, (size_t)(to - s)};
    return TN_OK;
}

static tn_status choose(out *o, const char *name, const char *tmpl, size_t len, tn_error *err)
{
    char list[480];
    list_names(list, sizeof list);
    if (name) {
        o->f = find_format(name);
        if (o->f) return TN_OK;
        return tn_fail(err, TN_EARG, -1, "no chat format '%.30s'; --template NAME is one of %s",
                       name, list);
    }
    tn_chat_match match;
    if (!tn_chat_match_template(tmpl, len, &match))
        return tn_fail(
            err, TN_EUNSUPPORTED, -1, "%s; choose with --template NAME: %s",
            len ? "the model's chat template is unknown" : "the model has no chat template", list);
    o->f = find_format(match.format);
    return resolve(o, &match, err);
}

static void print_date(tn_chat *c, const tn_chat_vars *v)
{
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    snprintf(c->date, sizeof c->date, "%02d %.3s %d", v->day % 100,
             months + 3 * ((v->month + 11) % 12), v->year % 10000);
}

tn_status tn_chat_render(tn_chat *chat, const tn_allocator *a, const char *format_name,
                         const char *tmpl, size_t len, const tn_chat_vars *vars,
                         const tn_message *messages, size_t n_messages, bool add_assistant,
                         tn_error *err)
{
    *chat = (tn_chat){.a = a};
    print_date(chat, vars);
    out o = {.chat = chat, .vars = vars};
    tn_status s = choose(&o, format_name, tmpl, len, err);
    if (!s) s = check_roles(o.f, messages, n_messages, err);
    if (!s) s = check_order(o.f, messages, n_messages, err);
    if (!s) {
        put_first(&o, messages);
        put_messages(&o, messages, n_messages);
        put_literal(&o, add_assistant ? o.f->header : o.f->otherwise);
        if (chat->out_of_memory)
            s = tn_fail_nomem(err, chat->n * sizeof *chat->pieces, "the pieces of a conversation");
    }
    if (s) tn_chat_free(chat);
    return s;
}

void tn_chat_free(tn_chat *chat)
{
    tn_free(chat->a, chat->pieces);
    tn_free(chat->a, chat->owned);
    chat->pieces = NULL;
    chat->owned = NULL;
    chat->n = 0;
}

/* ---- public ---------------------------------------------------------------------------------- */

static void token_text(const tn_model *m, int32_t id, const char **s, size_t *n)
{
    *s = "";
    *n = 0;
    if (id >= 0 && tn_token_get(m, id, NULL, NULL, s, n, NULL, NULL)) {
        *s = "";
        *n = 0;
    }
}

/* A conversation in the model's format. Dates are those of UTC: the library reads no environment.
 */
static tn_status render_for(tn_chat *chat, const tn_model *m, const char *format_name,
                            const tn_message *messages, size_t n, bool add_assistant, tn_error *err)
{
    tn_chat_vars v;
    token_text(m, tn_token_bos(m), &v.bos, &v.n_bos);
    token_text(m, tn_token_eos(m), &v.eos, &v.n_eos);
    struct tm now = {0};
    const time_t t = time(NULL);
    gmtime_r(&t, &now);
    v.year = now.tm_year + 1900;
    v.month = now.tm_mon + 1;
    v.day = now.tm_mday;
    tn_str tmpl = {"", 0};
    if (!format_name) {
        const tn_status s =
            tn_gguf_get_str(tn_model_gguf(m), "tokenizer.chat_template", &tmpl, err);
        if (s) return s;
    }
    return tn_chat_render(chat, tn_model_allocator(m), format_name, tmpl.data, tmpl.len, &v,
                          messages, n, add_assistant, err);
}

tn_status tn_chat_text(const tn_model *model, const char *format_name, const tn_message *messages,
                       size_t n_messages, bool add_assistant, char *buf, size_t cap, size_t *n,
                       tn_error *err)
{
    if (!model || !n || (!messages && n_messages) || (!buf && cap))
        return tn_fail(err, TN_EARG, -1, "tn_chat_text: model, messages and n must not be NULL");
    tn_chat chat;
    const tn_status s =
        render_for(&chat, model, format_name, messages, n_messages, add_assistant, err);
    if (s) return s;
    size_t total = 0, used = 0;
    for (size_t i = 0; i < chat.n; i++)
        total += chat.pieces[i].len;
    *n = total;
    for (size_t i = 0; i < chat.n && total < cap; i++) {
        memcpy(buf + used, chat.pieces[i].text, chat.pieces[i].len);
        used += chat.pieces[i].len;
    }
    if (total < cap) buf[total] = 0;
    tn_chat_free(&chat);
    if (total < cap) return TN_OK;
    return tn_fail(err, TN_EFULL, -1,
                   "the text needs %zu bytes and a terminating zero; there is room "
                   "for %zu",
                   total, cap);
}

/* True if the vocabulary asks for a bos token in front of every text. */
static bool adds_bos(const tn_model *m)
{
    int32_t ids[2] = {-1, -1};
    size_t n = 0;
    const tn_status s = tn_tokenize(m, "", 0, TN_TOKENIZE_ADD_SPECIAL, ids, 2, &n, NULL, NULL);
    return !s && n > 0 && ids[0] == tn_token_bos(m);
}

tn_status tn_chat_tokens(const tn_model *model, const char *format_name, const tn_message *messages,
                         size_t n_messages, bool add_assistant, int32_t *ids, size_t cap, size_t *n,
                         tn_error *err)
{
    if (!model || !n || (!messages && n_messages) || (!ids && cap))
        return tn_fail(err, TN_EARG, -1, "tn_chat_tokens: model, messages and n must not be NULL");
    if (!tn_model_vocab(model))
        return tn_fail(err, TN_EUNSUPPORTED, -1, "the model has no tokenizer");
    tn_chat chat;
    tn_status s = render_for(&chat, model, format_name, messages, n_messages, add_assistant, err);
    if (s) return s;
    int32_t *made = NULL;
    size_t n_made = 0;
    s = tn_vocab_tokenize_pieces(tn_model_vocab(model), chat.pieces, chat.n, 0, &made, &n_made,
                                 NULL, err);
    tn_chat_free(&chat);
    if (s) return s;
    const int32_t bos = tn_token_bos(model);
    const size_t extra = bos >= 0 && (!n_made || made[0] != bos) && adds_bos(model);
    *n = n_made + extra;
    if (*n > cap) {
        s = tn_fail(err, TN_EFULL, -1, "the conversation has %zu tokens; there is room for %zu", *n,
                    cap);
    } else {
        if (extra) ids[0] = bos;
        if (n_made) memcpy(ids + extra, made, n_made * sizeof *ids);
    }
    tn_free(tn_model_allocator(model), made);
    return s;
}
