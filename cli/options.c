#include "options.h"

#include "term.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define C(name) (1u << TN_CMD_##name)
#define ALL                                                                                        \
    (C(CHAT) | C(RUN) | C(INSPECT) | C(TOKENIZE) | C(LOGITS) | C(PERPLEXITY) | C(PLAN) |           \
     C(CALIBRATE))
#define TALK (C(CHAT) | C(RUN))
#define EVAL (TALK | C(LOGITS) | C(PERPLEXITY))
#define F(field) offsetof(tn_settings, field)
#define BIG 2147483647.0

const tn_command_info tn_commands[TN_CMD_COUNT] = {
    {"chat", "MODEL", "talk with a model",
     "Reads messages from the terminal, or one a line from a pipe, and streams the answers. "
     "/help lists the commands of a conversation. Ctrl-C stops an answer; a second one on an "
     "empty line leaves."},
    {"run", "MODEL", "answer one prompt and exit",
     "The prompt comes from -p, --file or standard input. It is a user's message where the model "
     "has a chat template, otherwise (and with --raw) a text to continue. Standard output carries "
     "only the model's text; with --json one event a line: start, token (id, text, logprob), text "
     "(what a stop string held back), stop (reason, counts, seconds)."},
    {"inspect", "FILE", "show metadata and tensors of a GGUF file",
     "Reads only the header, so it is quick on any size of file and also shows files tenon cannot "
     "run."},
    {"tokenize", "MODEL", "turn text into token ids",
     "Reads standard input (or -p, --file) and prints the ids of the whole text on one line. With "
     "--json each input line is a JSON string and each output line a JSON array of ids."},
    {"logits", "MODEL", "write raw logits for given tokens",
     "Writes float32, little-endian, one row of the whole vocabulary per token, to --out."},
    {"perplexity", "MODEL", "measure how well a model predicts a text",
     "The text is cut into chunks of --ctx tokens, the second half of each is scored. Ends with "
     "'perplexity: X +/- Y' (one standard error)."},
    {"plan", "MODEL", "show where a model's tensors would go and how fast it would be",
     "Reads only the header. MODEL is a GGUF file, or SHAPE:TYPE for a shape tenon knows, such as "
     "llama-70b:q4_k_m. --hardware answers for a machine one does not own; without it the plan is "
     "for this machine. --json prints everything, and --plan replays "
     "what it printed. --svg FILE (or "
     "--out FILE) draws the picture."},
    {"calibrate", "", "measure what this machine can do",
     "Takes a second or two, prints the hardware profile as JSON (plan --hardware reads it) and "
     "keeps it in $XDG_CACHE_HOME/tenon, where plan finds it. With "
     "--hardware nothing is measured: that "
     "profile is printed, with the source of each figure."},
};

const tn_option tn_options[] = {
    {'m', "model", "FILE", TN_OPT_TEXT, F(model), 0, 0, ALL, NULL},
    {'p', "prompt", "TEXT", TN_OPT_TEXT, F(prompt), 0, 0, TALK | C(TOKENIZE),
     "prompt (chat: the first message)"},
    {'f', "file", "FILE", TN_OPT_TEXT, F(file), 0, 0, C(RUN) | C(TOKENIZE) | C(PERPLEXITY),
     "text from a file, - is standard input; after -p where both are given"},
    {0, "system", "TEXT", TN_OPT_TEXT, F(system), 0, 0, TALK, "system message"},
    {'n', "predict", "N", TN_OPT_INT, F(predict), -1, BIG, TALK,
     "generate at most N tokens, -1 = until the model ends (default)"},
    {'c', "ctx", "N", TN_OPT_INT, F(ctx), 0, 1 << 30, EVAL | C(PLAN),
     "context in tokens (32k = 32,768), 0 = what the model was trained for (perplexity: chunk, "
     "default 512)"},
    {'t', "threads", "N", TN_OPT_INT, F(threads), 0, 1024, EVAL | C(PLAN) | C(CALIBRATE),
     "compute threads, 0 = physical cores"},
    {'s', "seed", "N", TN_OPT_SEED, F(seed), 0, 0, TALK, "seed of the sampler, default random"},
    {0, "temp", "X", TN_OPT_FLOAT, F(temp), 0, 1e6, TALK, "temperature, 0 = greedy"},
    {0, "top-k", "N", TN_OPT_INT, F(top_k), 0, BIG, TALK, "keep the N likeliest tokens, 0 = off"},
    {0, "top-p", "X", TN_OPT_FLOAT, F(top_p), 0, 1, TALK, "keep the likeliest mass X, 1 = off"},
    {0, "min-p", "X", TN_OPT_FLOAT, F(min_p), 0, 1, TALK,
     "drop tokens below X times the likeliest, 0 = off"},
    {0, "repeat-penalty", "X", TN_OPT_FLOAT, F(repeat_penalty), 1e-3, 1e3, TALK,
     "divide logits of recent tokens, 1 = off"},
    {0, "repeat-last-n", "N", TN_OPT_INT, F(repeat_last_n), -1, BIG, TALK,
     "tokens the penalties look back, -1 = all"},
    {0, "presence-penalty", "X", TN_OPT_FLOAT, F(presence_penalty), -1e3, 1e3, TALK,
     "subtract once from recent tokens, 0 = off"},
    {0, "frequency-penalty", "X", TN_OPT_FLOAT, F(frequency_penalty), -1e3, 1e3, TALK,
     "subtract per occurrence, 0 = off"},
    {0, "logit-bias", "ID=X", TN_OPT_BIAS, F(bias), 0, 0, TALK,
     "add X to a token's logit, -inf bans it; may be repeated"},
    {0, "stop", "TEXT", TN_OPT_STOP, F(stops), 0, 0, TALK, "stop before TEXT; may be repeated"},
    {0, "template", "NAME", TN_OPT_TEXT, F(format), 0, 0, TALK, "built-in chat format to use"},
    {0, "raw", NULL, TN_OPT_FLAG, F(raw), 0, 0, C(RUN), "continue the text, no chat template"},
    {0, "shift", NULL, TN_OPT_FLAG, F(shift), 0, 0, C(CHAT),
     "when the context is full drop the oldest turns"},
    {0, "no-history", NULL, TN_OPT_FLAG, F(no_history), 0, 0, C(CHAT), "keep no history file"},
    {0, "json", NULL, TN_OPT_FLAG, F(json), 0, 0,
     C(RUN) | C(INSPECT) | C(TOKENIZE) | C(PERPLEXITY) | C(PLAN),
     "JSON output (run: one event a line; tokenize: each line in is a JSON string)"},
    {0, "jsonl", NULL, TN_OPT_FLAG, F(json), 0, 0, C(TOKENIZE), NULL},
    {0, "add-special", NULL, TN_OPT_FLAG, F(add_special), 0, 0, C(TOKENIZE),
     "add bos and eos as the file asks for"},
    {0, "parse-special", NULL, TN_OPT_FLAG, F(parse_special), 0, 0, C(TOKENIZE) | C(RUN),
     "text that spells a control token becomes that token (run: with --raw)"},
    {0, "tokens", "LIST", TN_OPT_TEXT, F(tokens), 0, 0, C(LOGITS),
     "ids separated by commas or spaces; @FILE, - is standard input"},
    {'o', "out", "FILE", TN_OPT_TEXT, F(out), 0, 0, C(LOGITS) | C(PLAN),
     "where to write, - is standard output (plan: a picture as SVG)"},
    {0, "kv", "f16|f32|q8_0", TN_OPT_CHOICE, F(kv), 0, 0, EVAL | C(PLAN),
     "type of the KV cache, default f16 (logits, --exact: f32, which rounds activations less, "
     "too)"},
    {0, "exact", NULL, TN_OPT_FLAG, F(exact), 0, 0, EVAL,
     "dequantised weights, float32 activations: slow reference"},
    {0, "kl", NULL, TN_OPT_FLAG, F(kl), 0, 0, C(PERPLEXITY),
     "mean KL divergence to the exact weights"},
    {0, "load", "auto|read|map|image", TN_OPT_CHOICE, F(load), 0, 0, EVAL | C(PLAN),
     "read into memory, map the file (do not change it meanwhile), or map an image of the "
     "rearranged weights, made the first time in the cache directory; auto: by the memory that is "
     "free; chat and run "
     "map the file for the first word and then read it, where it is cached"},
    {'b', "batch", "N", TN_OPT_INT, F(batch), 1, 65535, EVAL | C(PLAN),
     "tokens evaluated at once, default 512"},
    {0, "isa", "LEVEL", TN_OPT_TEXT, F(isa), 0, 0, EVAL | C(TOKENIZE) | C(CALIBRATE),
     "highest instruction set to use: scalar, avx2, ..."},
    {0, "device", "NAME", TN_OPT_TEXT, F(device), 0, 0, EVAL | C(CALIBRATE) | C(PLAN),
     "cuda, cuda:1 (its number), cuda:0,1 (several), none, or emu, emu:2 (emulated, for tests); "
     "default cuda where there is one"},
    {0, "throttle", "GBPS", TN_OPT_FLOAT, F(throttle), 1e-6, 1e6, EVAL | C(CALIBRATE), NULL},
    {0, "place", "REGEX=SIDE", TN_OPT_PLACE, F(places), 0, 0, EVAL | C(PLAN),
     "tensors whose name matches go to SIDE: host, device or split:X; may be repeated"},
    {0, "vram", "SIZE", TN_OPT_TEXT, F(vram), 0, 0, EVAL | C(PLAN),
     "device memory to use, buffers included: 12G, 8000M; one a device, separated by commas; "
     "default what is free, less a reserve"},
    {0, "ram", "SIZE", TN_OPT_TEXT, F(ram), 0, 0, EVAL | C(PLAN), "host memory to use"},
    {0, "for", "REQUEST", TN_OPT_TEXT, F(request), 0, 0, EVAL | C(PLAN),
     "what is to be fast: chat (default), long, batch, or PROMPT+GENERATED[@DEPTH] tokens"},
    {0, "plan", "FILE|fixed", TN_OPT_TEXT, F(plan), 0, 0, EVAL | C(PLAN),
     "replay a plan that `tenon plan --json` printed; fixed: plan for a full context, so that no "
     "weights move as it grows"},
    {0, "fixed", NULL, TN_OPT_FLAG, F(fixed), 0, 0, EVAL | C(PLAN), NULL},
    {0, "hardware", "NAME|FILE", TN_OPT_TEXT, F(hardware), 0, 0, EVAL | C(PLAN) | C(CALIBRATE),
     "a hardware profile: shipped (rtx3060-ddr4, rtx4090-ddr5, h200-server, ...) or a JSON file"},
    {0, "svg", "FILE", TN_OPT_TEXT, F(svg), 0, 0, C(PLAN), NULL},
    {'v', "verbose", NULL, TN_OPT_FLAG, F(verbose), 0, 0, ALL, "more messages on standard error"},
    {'h', "help", NULL, TN_OPT_FLAG, F(help), 0, 0, ALL, "print help and exit"},
    {0, "version", NULL, TN_OPT_FLAG, F(version), 0, 0, ALL,
     "print version, build and devices and exit"},
    {0, "generate", "WHAT", TN_OPT_TEXT, F(generate), 0, 0, ALL, NULL},
};
const size_t tn_n_options = sizeof tn_options / sizeof *tn_options;

bool tn_is_sampling(const tn_option *o)
{
    return o->commands == (TALK) && o->field != F(system) && o->field != F(format);
}

enum { n_table = sizeof tn_options / sizeof *tn_options };

static void set_defaults(tn_settings *s)
{
    *s = (tn_settings){.command = TN_CMD_COUNT, .kv = TN_UNSET, .load = 0};
    for (size_t i = 0; i < n_table; i++) {
        void *p = (char *)s + tn_options[i].field;
        if (tn_options[i].kind == TN_OPT_INT) *(int32_t *)p = TN_UNSET;
        if (tn_options[i].kind == TN_OPT_FLOAT) *(float *)p = NAN;
    }
}

static int bad(const tn_settings *s, const tn_option *o, const char *value, const char *want)
{
    const char *cmd = s->command < TN_CMD_COUNT ? tn_commands[s->command].name : "";
    tn_say("option --%s: '%s' is not %s; see 'tenon %s%s--help'", o->name, value, want, cmd,
           *cmd ? " " : "");
    return TN_EXIT_USAGE;
}

static int read_number(const tn_settings *s, const tn_option *o, const char *value, double *out)
{
    char *end, want[80];
    errno = 0;
    *out = o->kind == TN_OPT_INT ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (o->kind == TN_OPT_INT && end != value && (*end == 'k' || *end == 'K')) *out *= 1024, end++;
    if (end != value && !*end && !errno && *out >= o->min && *out <= o->max) return TN_EXIT_OK;
    snprintf(want, sizeof want, "a%s from %.10g to %.10g",
             o->kind == TN_OPT_INT ? " whole number" : " number", o->min, o->max);
    return bad(s, o, value, want);
}

/* "12G", "8000M", "1T" or bytes; false if it is none of these. *end is what follows. */
static bool read_size(const char *text, const char **end, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char *after;
    if ((*text < '0' || *text > '9') && *text != '.') return false;
    double v = strtod(text, &after);
    const char *unit = *after ? strchr(units, *after & ~0x20) : NULL;
    if (unit && *after >= 'A') {
        for (const char *u = units; u <= unit; u++)
            v *= 1024;
        after++;
        if (*after == 'i') after++;
        if (*after == 'B') after++;
    }
    *end = after;
    *bytes = (uint64_t)v;
    return v >= 0 && v < 1e15;
}

int tn_options_sizes(const char *option, const char *text, uint64_t *bytes, size_t n)
{
    size_t i = 0;
    const char *s = text;
    for (; s && i < n; i++) {
        if (!read_size(s, &s, &bytes[i]) || (*s && *s != ',')) break;
        if (bytes[i] == 0) bytes[i] = UINT64_MAX; /* "0" is nothing at all, not the default */
        if (!*s) return TN_EXIT_OK;
        s++;
    }
    tn_say("option --%s: '%s' is no size such as 12G or 8000M%s", option, text,
           n > 1 ? ", or several separated by commas" : "");
    return TN_EXIT_USAGE;
}

static int read_place(tn_settings *s, const tn_option *o, const char *value)
{
    if (s->n_places == TN_MAX_REPEATS) return bad(s, o, value, "possible: there are 64 already");
    s->places[s->n_places++] = value;
    return TN_EXIT_OK;
}

static int read_seed(tn_settings *s, const tn_option *o, const char *value)
{
    char *end;
    errno = 0;
    s->seed = strtoull(value, &end, 10);
    s->has_seed = true;
    const bool digits = end != value && !*end && !errno && value[0] >= '0' && value[0] <= '9';
    if (digits && s->seed <= INT64_MAX) return TN_EXIT_OK;
    return bad(s, o, value, "a whole number of up to 63 bits");
}

static int read_choice(tn_settings *s, const tn_option *o, const char *value)
{
    const size_t len = strlen(value);
    int32_t n = 0;
    for (const char *c = o->arg; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL, n++) {
        if (strncmp(c, value, len) != 0 || (c[len] != '|' && c[len] != 0) || len == 0) continue;
        *(int32_t *)((char *)s + o->field) = n;
        return TN_EXIT_OK;
    }
    return bad(s, o, value, o->arg);
}

static int read_stop(tn_settings *s, const tn_option *o, const char *value)
{
    if (!*value) return bad(s, o, value, "a text");
    if (s->n_stops == TN_MAX_REPEATS) return bad(s, o, value, "possible: there are 64 already");
    s->stops[s->n_stops++] = value;
    return TN_EXIT_OK;
}

static int read_bias(tn_settings *s, const tn_option *o, const char *value)
{
    char *end;
    errno = 0;
    const long long id = strtoll(value, &end, 10);
    const bool id_ok = end != value && *end == '=' && !errno && id >= 0 && id <= INT32_MAX;
    const char *number = id_ok ? end + 1 : value;
    const float bias = id_ok ? strtof(number, &end) : 0;
    if (!id_ok || end == number || *end || isnan(bias) || bias == INFINITY)
        return bad(s, o, value, "of the form ID=X, a token id and a number or -inf");
    if (s->n_bias == TN_MAX_REPEATS) return bad(s, o, value, "possible: there are 64 already");
    s->bias[s->n_bias++] = (tn_bias_option){(int32_t)id, bias};
    return TN_EXIT_OK;
}

static int store(tn_settings *s, const tn_option *o, const char *value)
{
    void *p = (char *)s + o->field;
    double number;
    int code;
    switch (o->kind) {
    case TN_OPT_FLAG: *(bool *)p = true; return TN_EXIT_OK;
    case TN_OPT_TEXT: *(const char **)p = value; return TN_EXIT_OK;
    case TN_OPT_INT:
        if ((code = read_number(s, o, value, &number))) return code;
        *(int32_t *)p = (int32_t)number;
        return TN_EXIT_OK;
    case TN_OPT_FLOAT:
        if ((code = read_number(s, o, value, &number))) return code;
        *(float *)p = (float)number;
        return TN_EXIT_OK;
    case TN_OPT_SEED: return read_seed(s, o, value);
    case TN_OPT_CHOICE: return read_choice(s, o, value);
    case TN_OPT_STOP: return read_stop(s, o, value);
    case TN_OPT_BIAS: return read_bias(s, o, value);
    case TN_OPT_PLACE: return read_place(s, o, value);
    }
    return TN_EXIT_INTERNAL;
}

int tn_options_set(tn_settings *s, const char *name, const char *value)
{
    for (size_t i = 0; i < n_table; i++) {
        const tn_option *o = &tn_options[i];
        const bool number =
            o->kind == TN_OPT_FLOAT || o->kind == TN_OPT_INT || o->kind == TN_OPT_SEED;
        if (number && tn_is_sampling(o) && strcmp(o->name, name) == 0) return store(s, o, value);
    }
    tn_say("there is no sampling parameter '%s'", name);
    return TN_EXIT_USAGE;
}

/* getopt_long's own forms of the table: long options return their row + 256. */
static void getopt_tables(struct option longs[n_table + 1], char shorts[2 * n_table + 2])
{
    char *p = shorts;
    *p++ = ':'; /* a missing value is told apart from an unknown option */
    for (size_t i = 0; i < n_table; i++) {
        const tn_option *o = &tn_options[i];
        longs[i] =
            (struct option){o->name, o->arg ? required_argument : no_argument, NULL, 256 + (int)i};
        if (!o->letter) continue;
        *p++ = o->letter;
        if (o->arg) *p++ = ':';
    }
    longs[n_table] = (struct option){NULL, 0, NULL, 0};
    *p = 0;
}

static const tn_option *find(int c)
{
    if (c >= 256) return &tn_options[c - 256];
    for (size_t i = 0; i < n_table; i++)
        if (tn_options[i].letter == c) return &tn_options[i];
    return NULL;
}

static int read_command(tn_settings *s, const char *word)
{
    for (int i = 0; i < TN_CMD_COUNT; i++)
        if (strcmp(tn_commands[i].name, word) == 0) s->command = (tn_command)i;
    if (s->command != TN_CMD_COUNT) return TN_EXIT_OK;
    tn_say("'%s' is not a command; 'tenon --help' lists them", word);
    return TN_EXIT_USAGE;
}

static int read_model(tn_settings *s, const char *word)
{
    if (s->model) {
        tn_say("'%s' is one argument too many: the model is '%s'", word, s->model);
        return TN_EXIT_USAGE;
    }
    s->model = word;
    return TN_EXIT_OK;
}

/* Says what is wrong with a word that getopt_long() does not take. */
static int refuse(int c, const char *word, const struct option *longs)
{
    const bool is_long = strncmp(word, "--", 2) == 0;
    char like[160] = "";
    for (; is_long && longs->name; longs++)
        if (strncmp(longs->name, word + 2, strcspn(word + 2, "=")) == 0)
            snprintf(like + strlen(like), sizeof like - strlen(like), " --%s", longs->name);
    if (c == ':')
        tn_say("option %s needs a value; see --help", word);
    else if (is_long && optopt)
        tn_say("option %s takes no value; see --help", word);
    else if (*like)
        tn_say("option %s is short for more than one:%s", word, like);
    else
        tn_say("option %s is unknown; see --help", word);
    return TN_EXIT_USAGE;
}

/* All options and words from argv[first] on; *given: a bit for each row of the table. */
static int read_words(tn_settings *s, int argc, char **argv, int first, unsigned long long *given)
{
    struct option longs[n_table + 1];
    char shorts[2 * n_table + 2];
    int code = TN_EXIT_OK;
    getopt_tables(longs, shorts);
    opterr = 0;
    optind = first;
    for (int c; !code && (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (c == '?' || c == ':')
            return refuse(c, argv[optind > first ? optind - 1 : first], longs);
        const tn_option *o = find(c);
        if (!o) return TN_EXIT_INTERNAL;
        if (s->command < TN_CMD_COUNT && !(o->commands & 1u << s->command)) {
            const char *command = tn_commands[s->command].name;
            tn_say("option --%s does not belong to 'tenon %s'; see 'tenon %s --help'", o->name,
                   command, command);
            return TN_EXIT_USAGE;
        }
        *given |= 1ull << (o - tn_options);
        code = store(s, o, optarg);
    }
    for (; !code && optind < argc; optind++)
        code = read_model(s, argv[optind]);
    return code;
}

/* A model where the command takes one, and only there. */
static int check_model(const tn_settings *s)
{
    const char *command = tn_commands[s->command].name, *args = tn_commands[s->command].args;
    if (!s->model == !*args) return TN_EXIT_OK;
    if (s->model)
        tn_say("'%s' is one argument too many: see 'tenon %s --help'", s->model, command);
    else
        tn_say("name the model: 'tenon %s %s'", command, args);
    return TN_EXIT_USAGE;
}

int tn_options_read(tn_settings *s, int argc, char **argv)
{
    int first = 1, code = TN_EXIT_OK;
    unsigned long long given = 0;
    set_defaults(s);
    if (argc > 1 && argv[1][0] != '-') {
        if ((code = read_command(s, argv[1]))) return code;
        first = 2;
    }
    code = read_words(s, argc, argv, first, &given);
    if (code || s->help || s->version || s->generate) return code;
    if (s->plan && strcmp(s->plan, "fixed") == 0) {
        s->fixed = true;
        s->plan = NULL;
    }
    if (s->command != TN_CMD_COUNT) return check_model(s);
    tn_say("%s", given ? "name a command first, as in 'tenon run MODEL -p TEXT'"
                       : "name a command; 'tenon --help' lists them");
    return TN_EXIT_USAGE;
}
