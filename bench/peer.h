/* Benchmarks of other programs, run between our own runs: how to call them and what they say. */
#ifndef TN_BENCH_PEER_H
#define TN_BENCH_PEER_H

#include "../engine/tenon.h"

/* The test that the other program shall run. */
typedef struct tn_bench_peer_test {
    const char *model; /* path */
    const char *kv;    /* "f16", "f32", "q8_0" */
    int32_t n_prompt, n_gen, depth, threads, batch;
    bool no_depth; /* a llama-bench without -d: see tn_bench_peer_has_depth */
} tn_bench_peer_test;

/* A command for the shell, freed by the caller. Of `command`, the user's words:
 *   - those with {model}, {prompt}, {generate}, {depth}, {threads}, {batch} or {kv} get the values;
 *   - a program called llama-bench (or *llama-bench*) gets its options for one run and JSON;
 *   - a program called llama-sweep-bench (ik_llama.cpp's; or *sweep-bench*) and one called
 * tenon-bench (another build) as well. NULL if it is none of these. test->no_depth:
 * tn_bench_peer_has_depth said no; then a depth goes with generation only. */
char *tn_bench_peer_command(const char *command, const tn_bench_peer_test *test);

/* Whether a program knows what depth is: all do but forks of llama-bench whose --help names -gp and
 * no --n-depth (ik_llama.cpp's). Those generate at a depth with -gp DEPTH,N, and measure no prompt
 * there. */
bool tn_bench_peer_has_depth(const char *command);

/* Why a program cannot run the test, NULL if it can. */
const char *tn_bench_peer_cannot(const char *command, const tn_bench_peer_test *test);

/* The user's words from the name of the program on, without the folder it lies in: reports are
 * published. Points into `command`. */
const char *tn_bench_peer_name(const char *command);

/* The same for the peer number i of a list, with its number behind it where another of the list has
 * the same name, "llama-bench -fa 1 [2]"; freed by the caller. */
char *tn_bench_peer_label(char *const *commands, size_t n, size_t i);

/* Tokens per second that an output tells: `llama-bench -o json` (or jsonl) of llama.cpp and its
 * forks, sweep-bench's JSON lines, tenon-bench's JSON, or a plain number as the last word of the
 * last line that has one. TN_EFORMAT with a reason. */
tn_status tn_bench_peer_parse(const char *s, size_t len, const tn_bench_peer_test *test,
                              double *per_second, tn_error *err);

/* Runs the command in a shell. *text is what it wrote to standard output, zero-terminated, freed by
 * the caller; its standard error is quoted in the message when it fails. TN_EIO, TN_ENOENT (no such
 * program), TN_ECANCELED. */
tn_status tn_bench_peer_run(const char *command, char **text, size_t *len, tn_error *err);

#endif
