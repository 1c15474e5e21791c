/* The command line: one table of options, read by getopt_long and printed as help and man page. */
#ifndef TN_BENCH_OPTIONS_H
#define TN_BENCH_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Whole numbers and words, in the order given. */
typedef struct tn_bench_ints {
    int32_t *at;
    size_t n;
} tn_bench_ints;
typedef struct tn_bench_words {
    char **at;
    size_t n;
} tn_bench_words;

typedef enum tn_bench_format {
    TN_BENCH_MD,
    TN_BENCH_CSV,
    TN_BENCH_JSON,
    TN_BENCH_JSONL
} tn_bench_format;

typedef struct tn_bench_settings {
    tn_bench_words models, synthetic; /* files; SHAPE:TYPE */
    tn_bench_ints prompt, generate, depth, threads, batch;
    tn_bench_words pairs;         /* P,N of prompt + generation */
    tn_bench_words kv, isa, load; /* names */
    int32_t runs, warmup;
    bool load_time, random, no_hash;
    int32_t seed;
    const char *text, *out, *svg, *generate_what;
    int32_t format; /* tn_bench_format */
    bool compare;
    double threshold; /* percent */
    tn_bench_words peers;
    tn_bench_words placements, vram; /* names; sizes */
    const char *hardware, *device;
    double throttle; /* GB/s; 0 = as it is */
    tn_bench_words places; /* rules for the device */
    bool help, version;
    tn_bench_words rest; /* arguments that are no options: models, or two files to compare */
} tn_bench_settings;

typedef enum tn_bench_kind {
    TN_BENCH_FLAG,
    TN_BENCH_TEXT,
    TN_BENCH_INT,
    TN_BENCH_FLOAT,
    TN_BENCH_INTS,   /* list of numbers and ranges */
    TN_BENCH_WORDS,  /* list of words */
    TN_BENCH_REPEAT, /* one word, the option may be repeated */
    TN_BENCH_CHOICE
} tn_bench_kind;

typedef struct tn_bench_option {
    char letter;      /* 0 = none */
    const char *name; /* without dashes */
    const char *arg;  /* name of the value; choices are "a|b|c"; NULL for flags */
    tn_bench_kind kind;
    size_t field; /* offset in tn_bench_settings */
    double min, max;
    const char *help; /* NULL = hidden */
} tn_bench_option;

extern const tn_bench_option tn_bench_options[];
extern const size_t tn_bench_n_options;

/* Reads the command line. TN_EXIT_OK, or TN_EXIT_USAGE after saying on stderr what is wrong. */
int tn_bench_options_read(tn_bench_settings *s, int argc, char **argv);
void tn_bench_options_free(tn_bench_settings *s);

/* Adds what a list says: numbers and ranges separated by commas, "512", "1-4", "0-4096+1024",
 * "1-64*2". False if it says anything else, or a number outside [min, max]. */
bool tn_bench_ints_read(tn_bench_ints *list, const char *text, double min, double max);
void tn_bench_words_add(tn_bench_words *list, const char *word, size_t len);
void tn_bench_words_free(tn_bench_words *list);
/* The words with commas between them, or `none`; freed by the caller. */
char *tn_bench_words_join(const tn_bench_words *list, const char *none);

/* help.c */
void tn_bench_help_print(FILE *out);
void tn_bench_man_print(FILE *out);

#endif
