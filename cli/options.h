/* The command line: one table of options, read by getopt_long and printed as help, man page and
 * completions. */
#ifndef TN_CLI_OPTIONS_H
#define TN_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Exit codes, those of sysexits.h where they fit. */
enum {
    TN_EXIT_OK = 0,
    TN_EXIT_USAGE = 64,
    TN_EXIT_MODEL = 65, /* broken or unsupported model or input */
    TN_EXIT_NOFILE = 66,
    TN_EXIT_INTERNAL = 70,
    TN_EXIT_MEMORY = 71,
    TN_EXIT_IO = 74,
    TN_EXIT_FULL = 75,   /* the context is full */
    TN_EXIT_SIGNAL = 128 /* + the signal's number */
};

typedef enum tn_command {
    TN_CMD_CHAT,
    TN_CMD_RUN,
    TN_CMD_INSPECT,
    TN_CMD_TOKENIZE,
    TN_CMD_LOGITS,
    TN_CMD_PERPLEXITY,
    TN_CMD_PLAN,
    TN_CMD_CALIBRATE,
    TN_CMD_COUNT
} tn_command;

/* Ints not given are TN_UNSET, floats not given are NaN, texts NULL. */
#define TN_UNSET INT32_MIN
enum { TN_MAX_REPEATS = 64 };

typedef struct tn_bias_option {
    int32_t token;
    float bias;
} tn_bias_option;

typedef struct tn_settings {
    tn_command command;
    const char *model, *prompt, *file, *system, *format, *isa, *tokens, *out, *generate;
    float throttle; /* GB/s; NaN: no */
    const char *device, *hardware, *plan, *vram, *ram, *request, *svg;
    int32_t predict, ctx, batch, threads, top_k, repeat_last_n;
    int32_t kv, load; /* number of the choice */
    uint64_t seed;
    bool has_seed;
    float temp, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    bool raw, json, shift, no_history, add_special, parse_special, exact, kl, fixed, verbose;
    bool help, version;
    const char *stops[TN_MAX_REPEATS];
    size_t n_stops;
    tn_bias_option bias[TN_MAX_REPEATS];
    size_t n_bias;
    const char *places[TN_MAX_REPEATS];
    size_t n_places;
} tn_settings;

typedef enum tn_opt_kind {
    TN_OPT_FLAG,
    TN_OPT_TEXT,
    TN_OPT_INT,
    TN_OPT_FLOAT,
    TN_OPT_SEED,
    TN_OPT_CHOICE,
    TN_OPT_STOP,
    TN_OPT_BIAS,
    TN_OPT_PLACE
} tn_opt_kind;

typedef struct tn_option {
    char letter;      /* 0 = none */
    const char *name; /* without dashes */
    const char *arg;  /* name of the value; choices are "a|b|c"; NULL for flags */
    tn_opt_kind kind;
    size_t field;      /* offset in tn_settings */
    double min, max;   /* of numbers */
    unsigned commands; /* bit per tn_command; 0 = before a command; hidden: no help */
    const char *help;  /* NULL = hidden */
} tn_option;

typedef struct tn_command_info {
    const char *name, *args, *summary, *text;
} tn_command_info;

extern const tn_option tn_options[];
extern const size_t tn_n_options;
extern const tn_command_info tn_commands[TN_CMD_COUNT];

/* Reads the command line. Returns TN_EXIT_OK, or TN_EXIT_USAGE after saying on stderr what is
 * wrong. */
int tn_options_read(tn_settings *s, int argc, char **argv);

/* Whether the option shapes the choice of tokens, and so may be changed between two answers. */
bool tn_is_sampling(const tn_option *o);
/* Changes a sampling parameter by its option's name. TN_EXIT_USAGE after saying why not. */
int tn_options_set(tn_settings *s, const char *name, const char *value);

/* Sizes such as "12G" or "8000M", separated by commas, into bytes[n]; what is not given stays as it
 * is, 0 becomes UINT64_MAX. TN_EXIT_USAGE after saying why not. */
int tn_options_sizes(const char *option, const char *text, uint64_t *bytes, size_t n);

/* help.c. Help of one command, or of the program with command == TN_CMD_COUNT. */
void tn_help_print(FILE *out, tn_command command);
/* "man", "bash", "zsh" or "fish"; false if `what` is none of these. */
bool tn_help_generate(FILE *out, const char *what);

#endif
