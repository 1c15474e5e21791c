#include "options.h"

#include "peer.h"
#include "place.h"
#include "term.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define F(field) offsetof(tn_bench_settings, field)
#define BIG 2147483647.0

const tn_bench_option tn_bench_options[] = {
    {'m', "model", "FILE", TN_BENCH_REPEAT, F(models), 0, 0,
     "the model; may be repeated; also without -m"},
    {0, "synthetic", "SHAPE:TYPE", TN_BENCH_REPEAT, F(synthetic), 0, 0,
     "random weights in a real shape, such as llama-1b:q4_k_m; may be repeated"},
    {'p', "n-prompt", "LIST", TN_BENCH_INTS, F(prompt), 0, BIG,
     "prompt lengths to measure (pp), default 512, 0 = none"},
    {'n', "n-gen", "LIST", TN_BENCH_INTS, F(generate), 0, BIG,
     "numbers of generated tokens to measure (tg), default 128, 0 = none"},
    {0, "pg", "P,N", TN_BENCH_REPEAT, F(pairs), 0, 0,
     "a prompt of P tokens and N generated after it, each part on its own row; may be repeated"},
    {'d', "depth", "LIST", TN_BENCH_INTS, F(depth), 0, BIG,
     "tokens in the context before each test, default 0"},
    {'t', "threads", "LIST", TN_BENCH_INTS, F(threads), 0, 1024,
     "compute threads, 0 = physical cores (default)"},
    {'b', "batch", "LIST", TN_BENCH_INTS, F(batch), 1, 65535,
     "prompt tokens evaluated at once, default 512"},
    {0, "kv", "LIST", TN_BENCH_WORDS, F(kv), 0, 0,
     "types of the KV cache: f16 (default), f32, q8_0"},
    {0, "isa", "LIST", TN_BENCH_WORDS, F(isa), 0, 0,
     "highest instruction set to use: scalar, avx2, ...; default best (all of this CPU)"},
    {0, "load", "LIST", TN_BENCH_WORDS, F(load), 0, 0,
     "how to load: auto (default), read into memory, map the file"},
    {0, "load-time", NULL, TN_BENCH_FLAG, F(load_time), 0, 0,
     "measure opening the model, with the file in the page cache and without"},
    {'r', "runs", "N", TN_BENCH_INT, F(runs), 1, 10000, "measured runs of every test, default 5"},
    {0, "warmup", "N", TN_BENCH_INT, F(warmup), 0, 10000,
     "run a test until its last three runs agree within 2 %, at most N times, default 8"},
    {0, "no-hash", NULL, TN_BENCH_FLAG, F(no_hash), 0, 0,
     "leave the model's sha256 out of the report: saves reading a large file"},
    {0, "text", "FILE", TN_BENCH_TEXT, F(text), 0, 0,
     "take prompts from this text instead of the built-in one"},
    {0, "random", NULL, TN_BENCH_FLAG, F(random), 0, 0, "take random tokens instead of text"},
    {0, "seed", "N", TN_BENCH_INT, F(seed), 0, BIG, "of --random, default 1"},
    {0, "peer", "COMMAND", TN_BENCH_REPEAT, F(peers), 0, 0,
     "alternate with another program's benchmark (llama-bench, or with {model} {prompt} {generate} "
     "{depth} {threads} {batch}) and print ratios; may be repeated"},
    {0, "placements", "LIST", TN_BENCH_WORDS, F(placements), 0, 0,
     "ways to place the model at the same device memory: layers, ffn-host, ffn-blocks, water-fill, "
     "all-host, auto (what the planner chooses), manual:FILE (a plan, or a rule "
     "REGEX=host|device a line); measured on --device, or only predicted for --hardware"},
    {0, "device", "NAME", TN_BENCH_TEXT, F(device), 0, 0,
     "device to use: cuda, cuda:1, cuda:0,1 (several), emu, emu:2 (emulated: its rows are labelled "
     "so)"},
    {0, "throttle", "GBPS", TN_BENCH_FLOAT, F(throttle), 1e-6, 1e6,
     "with --device: make it as slow as one that reads GBPS GB/s; its rows are labelled so"},
    {0, "place", "REGEX=SIDE", TN_BENCH_REPEAT, F(places), 0, 0,
     "with --device: tensors whose name matches go to SIDE: host, device or split:X; may be "
     "repeated"},
    {0, "hardware", "NAME|FILE", TN_BENCH_TEXT, F(hardware), 0, 0,
     "hardware profile that --placements plan for, as in tenon plan; with --device default what is "
     "measured here"},
    {0, "vram", "LIST", TN_BENCH_WORDS, F(vram), 0, 0,
     "device memory that --placements or --device may use, such as "
     "8G,12G; of each device where there "
     "are several; default all"},
    {'o', "output", "md|csv|json|jsonl", TN_BENCH_CHOICE, F(format), 0, 0,
     "form of the report, default md"},
    {0, "out", "FILE", TN_BENCH_TEXT, F(out), 0, 0,
     "write the report to FILE; a table still goes to a terminal"},
    {0, "svg", "FILE", TN_BENCH_TEXT, F(svg), 0, 0,
     "draw speed over depth (or bars, with one depth) into FILE"},
    {0, "compare", NULL, TN_BENCH_FLAG, F(compare), 0, 0,
     "compare two JSON reports: --compare OLD NEW; exit code 1 if NEW is slower"},
    {0, "threshold", "PERCENT", TN_BENCH_FLOAT, F(threshold), 0, 100,
     "how much slower is a regression for --compare, default 5"},
    {'h', "help", NULL, TN_BENCH_FLAG, F(help), 0, 0, "print this help and exit"},
    {0, "version", NULL, TN_BENCH_FLAG, F(version), 0, 0, "print version and build and exit"},
    {0, "generate", "man", TN_BENCH_TEXT, F(generate_what), 0, 0, NULL},
};
enum { n_table = sizeof tn_bench_options / sizeof *tn_bench_options };
const size_t tn_bench_n_options = n_table;

/* ---- values ---------------------------------------------------------------------------------- */

static void ints_add(tn_bench_ints *list, int32_t value)
{
    list->at = tn_bench_realloc(list->at, (list->n + 1) * sizeof *list->at);
    list->at[list->n++] = value;
}

void tn_bench_words_add(tn_bench_words *list, const char *word, size_t len)
{
    list->at = tn_bench_realloc(list->at, (list->n + 1) * sizeof *list->at);
    char *copy = tn_bench_alloc(len + 1);
    memcpy(copy, word, len);
    list->at[list->n++] = copy;
}

char *tn_bench_words_join(const tn_bench_words *list, const char *none)
{
    size_t bytes = 1;
    if (list->n == 0) return tn_bench_strdup(none);
    for (size_t i = 0; i < list->n; i++)
        bytes += strlen(list->at[i]) + 1;
    char *text = tn_bench_alloc(bytes), *end = text;
    for (size_t i = 0; i < list->n; i++) {
        if (i) *end++ = ',';
        end = stpcpy(end, list->at[i]);
    }
    return text;
}

/* A number at *p, moved behind it. */
static bool read_int(const char **p, double min, double max, int64_t *out)
{
    char *end;
    if (**p < '0' || **p > '9') return false;
    errno = 0;
    *out = strtoll(*p, &end, 10);
    *p = end;
    return !errno && (double)*out >= min && (double)*out <= max;
}

bool tn_bench_ints_read(tn_bench_ints *list, const char *text, double min, double max)
{
    enum { most = 1000 };
    for (const char *p = text;; p++) {
        int64_t first, last, step = 1;
        bool times = false;
        if (!read_int(&p, min, max, &first)) return false;
        last = first;
        if (*p == '-') {
            p++;
            if (!read_int(&p, min, max, &last) || last < first) return false;
            times = *p == '*';
            if (*p == '*' || *p == '+') {
                p++;
                if (!read_int(&p, times ? 2 : 1, BIG, &step) || (times && first == 0)) return false;
            }
        }
        for (int64_t v = first; v <= last; v = times ? v * step : v + step) {
            if (list->n >= most) return false;
            ints_add(list, (int32_t)v);
        }
        if (!*p) return true;
        if (*p != ',') return false;
    }
}

static int bad(const tn_bench_option *o, const char *value, const char *want)
{
    tn_bench_say("option --%s: '%s' is not %s; see --help", o->name, value, want);
    return TN_EXIT_USAGE;
}

static int read_ints(tn_bench_ints *list, const tn_bench_option *o, const char *value)
{
    char want[160];
    if (tn_bench_ints_read(list, value, o->min, o->max)) return TN_EXIT_OK;
    snprintf(want, sizeof want,
             "a list of whole numbers from %.10g to %.10g, such as 1,2 "
             "or 1-4 or 0-4096+1024 or 1-64*2",
             o->min, o->max);
    return bad(o, value, want);
}

static int read_words(tn_bench_words *list, const tn_bench_option *o, const char *value)
{
    for (const char *p = value;; p++) {
        const size_t len = strcspn(p, ",");
        if (len == 0) return bad(o, value, "a list of words separated by commas");
        tn_bench_words_add(list, p, len);
        p += len;
        if (!*p) return TN_EXIT_OK;
    }
}

static int read_number(const tn_bench_option *o, const char *value, double *out)
{
    char *end, want[80];
    const bool whole = o->kind == TN_BENCH_INT;
    errno = 0;
    *out = whole ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (end != value && !*end && !errno && *out >= o->min && *out <= o->max) return TN_EXIT_OK;
    snprintf(want, sizeof want, "a%s number from %.10g to %.10g", whole ? " whole" : "", o->min,
             o->max);
    return bad(o, value, want);
}

static int read_choice(int32_t *out, const tn_bench_option *o, const char *value)
{
    const size_t len = strlen(value);
    int32_t n = 0;
    for (const char *c = o->arg; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL, n++) {
        if (len == 0 || strncmp(c, value, len) != 0 || (c[len] != '|' && c[len] != 0)) continue;
        *out = n;
        return TN_EXIT_OK;
    }
    return bad(o, value, o->arg);
}

static int store(tn_bench_settings *s, const tn_bench_option *o, const char *value)
{
    void *p = (char *)s + o->field;
    double number;
    int code;
    switch (o->kind) {
    case TN_BENCH_FLAG: *(bool *)p = true; return TN_EXIT_OK;
    case TN_BENCH_TEXT: *(const char **)p = value; return TN_EXIT_OK;
    case TN_BENCH_INTS: return read_ints(p, o, value);
    case TN_BENCH_WORDS: return read_words(p, o, value);
    case TN_BENCH_CHOICE: return read_choice(p, o, value);
    case TN_BENCH_REPEAT:
        if (!*value) return bad(o, value, "a name");
        tn_bench_words_add(p, value, strlen(value));
        return TN_EXIT_OK;
    case TN_BENCH_INT:
        if (!(code = read_number(o, value, &number))) *(int32_t *)p = (int32_t)number;
        return code;
    case TN_BENCH_FLOAT:
        if (!(code = read_number(o, value, &number))) *(double *)p = number;
        return code;
    }
    return TN_EXIT_INTERNAL;
}

/* ---- the command line ------------------------------------------------------------------------ */

/* getopt_long's own forms of the table: long options return their row + 256. */
static void getopt_tables(struct option longs[n_table + 1], char shorts[2 * n_table + 2])
{
    char *p = shorts;
    *p++ = ':'; /* a missing value is told apart from an unknown option */
    for (int i = 0; i < n_table; i++) {
        const tn_bench_option *o = &tn_bench_options[i];
        longs[i] =
            (struct option){o->name, o->arg ? required_argument : no_argument, NULL, 256 + i};
        if (!o->letter) continue;
        *p++ = o->letter;
        if (o->arg) *p++ = ':';
    }
    longs[n_table] = (struct option){NULL, 0, NULL, 0};
    *p = 0;
}

static const tn_bench_option *find(int c)
{
    if (c >= 256) return &tn_bench_options[c - 256];
    for (int i = 0; i < n_table; i++)
        if (tn_bench_options[i].letter == c) return &tn_bench_options[i];
    return NULL;
}

static void default_ints(tn_bench_ints *list, int32_t value)
{
    if (list->n == 0) ints_add(list, value);
}

static void default_words(tn_bench_words *list, const char *value)
{
    if (list->n == 0) tn_bench_words_add(list, value, strlen(value));
}

static void set_defaults(tn_bench_settings *s)
{
    /* --pg alone measures that alone. */
    default_ints(&s->prompt, s->pairs.n ? 0 : 512);
    default_ints(&s->generate, s->pairs.n ? 0 : 128);
    default_ints(&s->depth, 0);
    default_ints(&s->threads, 0);
    default_ints(&s->batch, 512);
    default_words(&s->kv, "f16");
    default_words(&s->isa, "best");
    default_words(&s->load, "auto");
}

static int check_words(const tn_bench_words *list, const char *name, const char *one,
                       const char *two, const char *three)
{
    for (size_t i = 0; i < list->n; i++) {
        const char *w = list->at[i];
        if (strcmp(w, one) == 0 || strcmp(w, two) == 0 || strcmp(w, three) == 0) continue;
        tn_bench_say("option --%s: '%s' is unknown; see --help", name, w);
        return TN_EXIT_USAGE;
    }
    return TN_EXIT_OK;
}

static int wrong(const char *why)
{
    tn_bench_say("%s", why);
    return TN_EXIT_USAGE;
}

/* Placements are carried out on a device, or predicted for the hardware of a profile. */
static int check_device(const tn_bench_settings *s)
{
    const bool planned = s->placements.n > 0;
    if (planned && s->load_time) return wrong("--load-time goes without --placements");
    if (planned && s->places.n) return wrong("--placements and --place contradict each other");
    if (!s->device) {
        if (s->places.n) return wrong("--place needs a --device");
        if (s->throttle > 0) return wrong("--throttle needs a --device");
        if (planned && s->peers.n) return wrong("--peer needs something measured: name a --device");
        if (planned != (s->hardware != NULL) || (s->vram.n && !planned))
            return wrong("--placements needs --device NAME to measure or --hardware NAME to "
                         "predict, and --vram and --hardware need --placements");
    } else if (s->hardware && !planned) {
        return wrong("--hardware says what --placements plan for; --place goes without it");
    }
    return TN_EXIT_OK;
}

static int check_placements(const tn_bench_settings *s)
{
    uint64_t bytes;
    for (size_t i = 0; i < s->placements.n; i++) {
        if (tn_bench_place_known(s->placements.at[i])) continue;
        tn_bench_say("option --placements: '%s' is unknown; see --help", s->placements.at[i]);
        return TN_EXIT_USAGE;
    }
    for (size_t i = 0; i < s->vram.n; i++) {
        if (tn_bench_size_read(s->vram.at[i], &bytes)) continue;
        tn_bench_say("option --vram: '%s' is no size such as 12G or 8000M", s->vram.at[i]);
        return TN_EXIT_USAGE;
    }
    return check_device(s);
}

static int check_pairs(const tn_bench_words *pairs)
{
    for (size_t i = 0; i < pairs->n; i++) {
        tn_bench_ints two = {0};
        const bool ok = tn_bench_ints_read(&two, pairs->at[i], 1, BIG) && two.n == 2 &&
                        !strpbrk(pairs->at[i], "-*+");
        free(two.at);
        if (ok) continue;
        tn_bench_say("option --pg: '%s' is not of the form P,N; see --help", pairs->at[i]);
        return TN_EXIT_USAGE;
    }
    return TN_EXIT_OK;
}

static int check_peers(const tn_bench_words *peers)
{
    for (size_t i = 0; i < peers->n; i++) {
        char *command = tn_bench_peer_command(
            peers->at[i], &(tn_bench_peer_test){.model = "", .kv = "", .batch = 1});
        free(command);
        if (command) continue;
        tn_bench_say(
            "option --peer: '%s' is neither llama-bench nor sweep-bench nor has {model}, {prompt}, "
            "{generate}, {depth}, {threads} or {batch} in it",
            peers->at[i]);
        return TN_EXIT_USAGE;
    }
    return TN_EXIT_OK;
}

static int check(tn_bench_settings *s)
{
    int code;
    if (s->compare) {
        if (s->rest.n == 2) return TN_EXIT_OK;
        tn_bench_say("--compare needs two JSON reports: tenon-bench --compare OLD NEW");
        return TN_EXIT_USAGE;
    }
    for (size_t i = 0; i < s->rest.n; i++)
        tn_bench_words_add(&s->models, s->rest.at[i], strlen(s->rest.at[i]));
    if (s->models.n + s->synthetic.n == 0) {
        tn_bench_say("name a model: tenon-bench -m FILE, or --synthetic SHAPE:TYPE");
        return TN_EXIT_USAGE;
    }
    if ((code = check_peers(&s->peers))) return code;
    if ((code = check_placements(s))) return code;
    if ((code = check_words(&s->kv, "kv", "f16", "f32", "q8_0"))) return code;
    if ((code = check_words(&s->load, "load", "auto", "read", "map"))) return code;
    return check_pairs(&s->pairs);
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
        tn_bench_say("option %s needs a value; see --help", word);
    else if (is_long && optopt)
        tn_bench_say("option %s takes no value; see --help", word);
    else if (*like)
        tn_bench_say("option %s is short for more than one:%s", word, like);
    else
        tn_bench_say("option %s is unknown; see --help", word);
    return TN_EXIT_USAGE;
}

int tn_bench_options_read(tn_bench_settings *s, int argc, char **argv)
{
    struct option longs[n_table + 1];
    char shorts[2 * n_table + 2];
    *s = (tn_bench_settings){.runs = 5, .warmup = 8, .seed = 1, .threshold = 5};
    getopt_tables(longs, shorts);
    opterr = 0;
    optind = 1;
    int code = TN_EXIT_OK;
    for (int c; !code && (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (c == '?' || c == ':') return refuse(c, argv[optind > 1 ? optind - 1 : 1], longs);
        const tn_bench_option *o = find(c);
        code = o ? store(s, o, optarg) : TN_EXIT_INTERNAL;
    }
    for (; !code && optind < argc; optind++)
        tn_bench_words_add(&s->rest, argv[optind], strlen(argv[optind]));
    if (code || s->help || s->version || s->generate_what) return code;
    if ((code = check(s))) return code;
    set_defaults(s);
    return TN_EXIT_OK;
}

void tn_bench_words_free(tn_bench_words *list)
{
    for (size_t i = 0; i < list->n; i++)
        free(list->at[i]);
    free(list->at);
}

void tn_bench_options_free(tn_bench_settings *s)
{
    for (int i = 0; i < n_table; i++) {
        const tn_bench_option *o = &tn_bench_options[i];
        void *p = (char *)s + o->field;
        if (o->kind == TN_BENCH_INTS) free(((tn_bench_ints *)p)->at);
        if (o->kind == TN_BENCH_WORDS || o->kind == TN_BENCH_REPEAT) tn_bench_words_free(p);
    }
    tn_bench_words_free(&s->rest);
}
