#include "peer.h"

#include "source.h"
#include "term.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a growing text -------------------------------------------------------------------------- */

typedef struct text {
    char *at;
    size_t len;
} text;

static void append(text *t, const char *s, size_t len)
{
    t->at = tn_bench_realloc(t->at, t->len + len + 1);
    memcpy(t->at + t->len, s, len);
    t->len += len;
    t->at[t->len] = 0;
}

static void appendf(text *t, const char *fmt, ...) TN_PRINTF(2, 3);
static void appendf(text *t, const char *fmt, ...)
{
    char part[200];
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(part, sizeof part, fmt, ap);
    va_end(ap);
    append(t, part, n < (int)sizeof part ? (size_t)n : sizeof part - 1);
}

/* One word for the shell, whatever is in it. */
static void append_quoted(text *t, const char *s)
{
    append(t, "'", 1);
    for (; *s; s++) {
        if (*s == '\'')
            append(t, "'\\''", 4);
        else
            append(t, s, 1);
    }
    append(t, "'", 1);
}

/* ---- the command ----------------------------------------------------------------------------- */

static bool has_placeholder(const char *command)
{
    static const char *const names[] = {"{model}",   "{prompt}", "{generate}", "{depth}",
                                        "{threads}", "{batch}",  "{kv}"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strstr(command, names[i])) return true;
    return false;
}

static char *fill_in(const char *command, const tn_bench_peer_test *test)
{
    const struct {
        const char *name;
        int32_t value;
    } numbers[] = {{"{prompt}", test->n_prompt},
                   {"{generate}", test->n_gen},
                   {"{depth}", test->depth},
                   {"{threads}", test->threads},
                   {"{batch}", test->batch}};
    text out = {0};
    while (*command) {
        size_t used = 0;
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !used; i++) {
            const size_t len = strlen(numbers[i].name);
            if (strncmp(command, numbers[i].name, len) != 0) continue;
            appendf(&out, "%d", numbers[i].value);
            used = len;
        }
        if (!used && strncmp(command, "{model}", 7) == 0) {
            append_quoted(&out, test->model);
            used = 7;
        }
        if (!used && strncmp(command, "{kv}", 4) == 0) {
            append_quoted(&out, test->kv);
            used = 4;
        }
        if (!used) append(&out, command, used = 1);
        command += used;
    }
    return out.at;
}

/* The program is the first word that sets no variable. */
const char *tn_bench_peer_name(const char *command)
{
    const char *word = command + strspn(command, " ");
    size_t len = strcspn(word, " ");
    while (memchr(word, '=', len)) {
        word += len + strspn(word + len, " ");
        len = strcspn(word, " ");
    }
    const char *slash = memrchr(word, '/', len);
    return slash ? slash + 1 : word;
}

char *tn_bench_peer_label(char *const *commands, size_t n, size_t i)
{
    const char *name = tn_bench_peer_name(commands[i]);
    text out = {0};
    size_t same = 0;
    for (size_t k = 0; k < n; k++)
        same += strcmp(tn_bench_peer_name(commands[k]), name) == 0;
    append(&out, name, strlen(name));
    if (same > 1) appendf(&out, " [%zu]", i + 1);
    return out.at;
}

/* "llama-bench" of "A=1 /x/llama-bench -fa 1". */
static void program_name(const char *command, char name[64])
{
    const char *program = tn_bench_peer_name(command);
    snprintf(name, 64, "%.*s", (int)strcspn(program, " "), program);
}

static bool is_llama(const char *command)
{
    char name[64];
    program_name(command, name);
    return strstr(name, "llama-bench") && !has_placeholder(command);
}

bool tn_bench_peer_has_depth(const char *command)
{
    tn_error err;
    char *said = NULL;
    size_t len;
    if (!is_llama(command)) return true;
    text ask = {0};
    appendf(&ask, "%.*s", (int)(tn_bench_peer_name(command) - command), command);
    const char *name = tn_bench_peer_name(command);
    append(&ask, name, strcspn(name, " "));
    append(&ask, " --help 2>&1", 12);
    const bool ran = !tn_bench_peer_run(ask.at, &said, &len, &err);
    const bool has = !ran || !strstr(said, "-gp") || strstr(said, "--n-depth");
    free(said);
    free(ask.at);
    return has;
}

static bool is_sweep(const char *command)
{
    char name[64];
    program_name(command, name);
    return strstr(name, "sweep-bench") && !has_placeholder(command);
}

/* Positions from one measurement of sweep-bench to the next: its prompts' length as well. */
static int32_t sweep_step(const tn_bench_peer_test *test)
{
    if (test->n_prompt) return test->n_prompt;
    int32_t a = test->depth, b = test->batch; /* their greatest common divisor */
    while (a) {
        const int32_t rest = b % a;
        b = a;
        a = rest;
    }
    return b;
}

/* It measures prompts and generation at every multiple of its step from 0 on: at 0 and the depth.
 */
static char *sweep_command(const char *command, const tn_bench_peer_test *test)
{
    const int32_t step = sweep_step(test), n_gen = test->n_gen ? test->n_gen : 1;
    const int32_t stride = test->depth > step ? test->depth / step : 1;
    text out = {0};
    append(&out, command, strlen(command));
    append(&out, " -m ", 4);
    append_quoted(&out, test->model);
    appendf(&out, " -c %d -b %d -ub %d -n %d", test->depth + (n_gen > step ? n_gen : step),
            test->batch > step ? test->batch : step, step, n_gen);
    appendf(&out,
            " -t %d -tb %d -ctk %s -ctv %s --sweep-stride %d --output-format jsonl "
            "--log-file /dev/null 2>&1",
            test->threads, test->threads, test->kv, test->kv, stride);
    return out.at;
}

const char *tn_bench_peer_cannot(const char *command, const tn_bench_peer_test *test)
{
    if (is_sweep(command) && test->depth % sweep_step(test))
        return "sweep-bench measures at depths that are multiples of the prompt";
    if (test->no_depth && test->n_prompt && test->depth)
        return "this llama-bench has no prompts at a depth";
    return NULL;
}

char *tn_bench_peer_command(const char *command, const tn_bench_peer_test *test)
{
    char name[64];
    program_name(command, name);
    if (has_placeholder(command)) return fill_in(command, test);
    if (is_sweep(command)) return sweep_command(command, test);
    const bool llama = is_llama(command), after = test->no_depth && test->depth;
    if (!llama && !strstr(name, "tenon-bench")) return NULL;
    text out = {0};
    append(&out, command, strlen(command));
    append(&out, " -m ", 4);
    append_quoted(&out, test->model);
    appendf(&out, " -p %d -n %d -t %d -b %d -r 1 -o json", test->n_prompt, after ? 0 : test->n_gen,
            test->threads, test->batch);
    if (after) appendf(&out, " -gp %d,%d", test->depth, test->n_gen);
    if (test->depth && !after) appendf(&out, " -d %d", test->depth);
    if (llama)
        appendf(&out, " -ub %d -ctk %s -ctv %s", test->batch, test->kv, test->kv);
    else
        appendf(&out, " --kv %s --warmup 1 --no-hash", test->kv);
    return out.at;
}

/* ---- its output ------------------------------------------------------------------------------ */

static double number_of(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static double mean_of(const json_t *list)
{
    double sum = 0;
    const size_t n = json_array_size(list);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        sum += json_is_number(v) ? json_number_value(v) : NAN;
    }
    return n ? sum / (double)n : NAN;
}

/* A result of llama-bench has its counts at the top, ours under "parameters". */
static bool matches(const json_t *result, const tn_bench_peer_test *test)
{
    const json_t *p = json_object_get(result, "parameters");
    const json_t *o = p ? p : result;
    const int32_t n_prompt = test->no_depth && test->depth ? test->depth : test->n_prompt;
    return number_of(o, "n_prompt") == n_prompt && number_of(o, "n_gen") == test->n_gen;
}

static double result_rate(const json_t *o)
{
    const double ours = number_of(o, "tokens_per_second");
    if (!isnan(ours)) return ours;
    const double samples = mean_of(json_object_get(o, "samples_ts"));
    return isnan(samples) ? number_of(o, "avg_ts") : samples;
}

/* Of a line of sweep-bench; NaN if it is none, or of another depth. */
static double sweep_rate(const json_t *o, const tn_bench_peer_test *test)
{
    if (number_of(o, "n_kv") != test->depth) return NAN;
    return number_of(o, test->n_prompt ? "speed_pp" : "speed_tg");
}

/* NaN if there is no such result. */
static double find_rate(const json_t *root, const tn_bench_peer_test *test)
{
    const json_t *list = json_is_array(root) ? root : json_object_get(root, "results");
    const size_t n = json_array_size(list);
    for (size_t i = 0; i < n; i++)
        if (matches(json_array_get(list, i), test)) return result_rate(json_array_get(list, i));
    if (!json_is_object(root)) return NAN;
    return matches(root, test) ? result_rate(root) : sweep_rate(root, test);
}

/* The last word of the last line that ends in a number. */
static double last_number(const char *s, size_t len)
{
    double value = NAN;
    const char *end = s + len;
    for (const char *line = s; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) stop = end;
        const char *last = stop;
        while (last > line && strchr(" \t\r", last[-1]))
            last--;
        const char *word = last;
        while (word > line && !strchr(" \t", word[-1]))
            word--;
        char copy[40], *rest;
        snprintf(copy, sizeof copy, "%.*s", last - word < 39 ? (int)(last - word) : 39, word);
        const double v = strtod(copy, &rest);
        if (*copy && !*rest && isfinite(v)) value = v;
        line = stop + 1;
    }
    return value;
}

static bool positive(double x)
{
    return x > 0 && isfinite(x);
}

tn_status tn_bench_peer_parse(const char *s, size_t len, const tn_bench_peer_test *test,
                              double *per_second, tn_error *err)
{
    /* Some builds write notes before the JSON. */
    bool json = false;
    for (size_t i = 0; i < len; i++) {
        if ((i > 0 && s[i - 1] != '\n') || (s[i] != '[' && s[i] != '{')) continue;
        json_t *root = json_loadb(s + i, len - i, JSON_DISABLE_EOF_CHECK, NULL);
        if (!root) continue;
        json = true;
        *per_second = find_rate(root, test);
        json_decref(root);
        if (positive(*per_second)) return TN_OK;
    }
    *per_second = json ? NAN : last_number(s, len);
    if (positive(*per_second)) return TN_OK;
    return tn_bench_fail(err, TN_EFORMAT,
                         json ? "the peer's JSON has no result with n_prompt %d and n_gen %d"
                              : "the peer's output has neither JSON nor a number at the end "
                                "(n_prompt %d, n_gen %d)",
                         test->n_prompt, test->n_gen);
}

/* ---- running --------------------------------------------------------------------------------- */

extern char **environ;

static int start(const char *command, const int out[2], const int err[2], pid_t *pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t defaults;
    char *argv[] = {"sh", "-c", (char *)command, NULL};
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    posix_spawn_file_actions_adddup2(&files, err[1], 2);
    posix_spawnattr_init(&attr);
    sigemptyset(&defaults); /* we ignore SIGPIPE; others may count on it */
    sigaddset(&defaults, SIGPIPE);
    posix_spawnattr_setsigdefault(&attr, &defaults);
    /* A group of its own, so that stopping reaches what the shell started. */
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    const int code = posix_spawn(pid, "/bin/sh", &files, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    return code;
}

/* Reads both until both end or a signal came. */
static void collect(int out, int err, text *out_text, text *err_text)
{
    struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
    text *texts[2] = {out_text, err_text};
    while ((fds[0].fd >= 0 || fds[1].fd >= 0) && !tn_bench_signal()) {
        if (poll(fds, 2, 200) < 0 && errno != EINTR) return;
        for (int i = 0; i < 2; i++) {
            char part[4096];
            if (fds[i].fd < 0 || !fds[i].revents) continue;
            const ssize_t n = read(fds[i].fd, part, sizeof part);
            if (n > 0 && texts[i]->len < 64u << 20) append(texts[i], part, (size_t)n);
            if (n <= 0 && errno != EINTR) fds[i].fd = -1;
        }
    }
}

/* The last line that says something. */
static void last_line(const text *t, char line[200])
{
    *line = 0;
    for (size_t end = t->len; end > 0;) {
        size_t begin = end;
        while (begin > 0 && t->at[begin - 1] != '\n')
            begin--;
        if (end - begin > 1) {
            snprintf(line, 200, "%.*s", (int)(end - begin), t->at + begin);
            return;
        }
        end = begin ? begin - 1 : 0;
    }
}

static tn_status finish(pid_t pid, const char *command, const text *said, tn_error *err)
{
    int status = 0;
    char line[200];
    if (tn_bench_signal()) kill(-pid, SIGTERM);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (tn_bench_signal()) return tn_bench_fail(err, TN_ECANCELED, "interrupted");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return TN_OK;
    last_line(said, line);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return tn_bench_fail(err, TN_ENOENT, "%s", *line ? line : "no such program");
    return tn_bench_fail(err, TN_EIO, "'%.150s' ended with %s %d%s%s", command,
                         WIFSIGNALED(status) ? "signal" : "exit code",
                         WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                         *line ? ": " : "", line);
}

tn_status tn_bench_peer_run(const char *command, char **out_text, size_t *len, tn_error *err)
{
    int out[2] = {-1, -1}, errors[2] = {-1, -1};
    text said = {0}, complained = {0};
    pid_t pid;
    tn_status s = TN_EIO;
    *out_text = NULL;
    append(&said, "", 0);
    const bool pipes = pipe2(out, O_CLOEXEC) == 0 && pipe2(errors, O_CLOEXEC) == 0;
    const int code = pipes ? start(command, out, errors, &pid) : errno;
    if (out[1] >= 0) close(out[1]);
    if (errors[1] >= 0) close(errors[1]);
    if (code == 0) {
        collect(out[0], errors[0], &said, &complained);
        s = finish(pid, command, &complained, err);
    } else {
        tn_bench_fail(err, TN_EIO, "cannot start '%.200s': %s", command, strerror(code));
    }
    if (out[0] >= 0) close(out[0]);
    if (errors[0] >= 0) close(errors[0]);
    free(complained.at);
    if (s) {
        free(said.at);
        return s;
    }
    *out_text = said.at;
    *len = said.len;
    return TN_OK;
}
