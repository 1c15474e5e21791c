/* Runs every case of emu_bugs_block.cu and emu_bugs_host.cu as a process of its own, correct and
 * with its bug, in every mode of this build, and checks that the bug is noticed where it must be
 * and the correct form never is.
 *
 * Modes of a plain build: threads in ascending, descending and random order, streams that dawdle.
 * Under a sanitizer there is one: ascending. */
#include "emu_bugs.h"
#include "../kernels/emu/emu.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

enum { PLAIN, REVERSE, RANDOM, DELAY, ASAN, TSAN_MODE, N_MODES };
static const char *const mode_names[N_MODES] = {"plain", "reverse", "random",
                                                "delay", "asan",    "tsan"};

#if defined(__SANITIZE_ADDRESS__)
static const int first_mode = ASAN, last_mode = ASAN;
#elif defined(TN_EMU_TSAN) /* this file is not instrumented, the cases are */
static const int first_mode = TSAN_MODE, last_mode = TSAN_MODE;
#else
static const int first_mode = PLAIN, last_mode = DELAY;
#endif

/* How a bug shows: E the emulated device says so, W the result is wrong, A and T the sanitizers, U
 * the one for undefined behaviour. Each column lists what counts as noticed in that mode; "" = not
 * asked for there. */
static const struct {
    const char *name;
    const char *noticed[N_MODES];
} expected[] = {
    /* name                      plain reverse random delay asan  tsan */
    {"barrier_missing", {"W", "W", "W", "W", "W", "T"}},
    {"barrier_after_missing", {"W", "W", "W", "W", "W", "T"}},
    {"barrier_divergent", {"E", "E", "E", "E", "E", "E"}},
    {"exit_before_barrier", {"E", "E", "E", "E", "E", "E"}},
    {"global_overrun", {"", "", "", "", "A", ""}},
    {"shared_overrun", {"", "", "", "", "AU", ""}},
    {"race_of_blocks", {"", "", "", "", "", "T"}},
    {"race_of_synced_blocks", {"", "", "", "", "", "T"}},
    {"shared_uninitialised", {"W", "W", "W", "W", "W", ""}},
    {"shared_taken_for_zero", {"W", "W", "W", "W", "W", ""}},
    {"dynamic_taken_for_zero", {"W", "W", "W", "W", "W", "W"}},
    {"device_taken_for_zero", {"W", "W", "W", "W", "W", "W"}},
    {"pinned_taken_for_zero", {"W", "W", "W", "W", "W", "W"}},
    {"shuffle_without_lanes", {"E", "E", "E", "E", "E", "E"}},
    {"shuffle_from_outside", {"E", "E", "E", "E", "E", "E"}},
    {"syncwarp_missing", {"", "", "", "", "", "T"}},
    {"dynamic_overrun", {"", "", "", "", "A", ""}},
    {"host_reads_device", {"E", "E", "E", "E", "EA", "ET"}},
    {"host_pointer_to_kernel", {"E", "E", "E", "E", "E", "E"}},
    {"copy_overrun", {"E", "E", "E", "E", "E", "E"}},
    {"event_missing", {"", "", "", "W", "", "WT"}},
    {"source_reused_early", {"", "", "", "W", "", "WT"}},
    {"synchronise_missing", {"", "", "", "W", "", "WT"}},
    {"freed_pointer_to_kernel", {"E", "E", "E", "E", "E", "E"}},
    {"host_copies_device", {"E", "E", "E", "E", "EA", "ET"}},
    {"flag_never_reset", {"W", "W", "W", "", "W", "WT"}},
    {"freed_slab_used", {"W", "W", "W", "W", "A", "W"}},
    {"page_off_by_one", {"W", "W", "W", "W", "W", "W"}},
    {"ring_overrun", {"", "", "", "W", "", ""}},
    {"half_overflow", {"W", "W", "W", "W", "W", "W"}},
    {"products_in_parts", {"W", "W", "W", "W", "W", "W"}},
    {"async_copy_early", {"W", "W", "W", "W", "W", "WT"}},
    {"async_copy_never_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"graph_of_freed_memory", {"E", "E", "E", "E", "E", "E"}},
    {"fork_not_joined", {"E", "E", "E", "E", "E", "E"}},
    {"join_too_early", {"", "", "", "W", "", "T"}},
    {"wrong_device", {"E", "E", "E", "E", "E", "E"}},
    {"freed_slab_in_struct", {"E", "E", "E", "E", "E", "E"}},
    {"wrong_device_in_struct", {"E", "E", "E", "E", "E", "E"}},
    {"graph_of_freed_slab", {"E", "E", "E", "E", "E", "E"}},
    {"shared_not_allowed", {"W", "W", "W", "W", "W", "W"}},
    {"allocation_recorded", {"E", "E", "E", "E", "E", "E"}},
    {"load_misaligned", {"", "", "", "", "U", ""}},
    {"grid_too_high", {"W", "W", "W", "W", "W", ""}},
    {"freed_while_used", {"E", "E", "E", "E", "E", "E"}},
    {"freed_while_copied", {"E", "E", "E", "E", "E", "E"}},
    {"freed_while_in_struct", {"E", "E", "E", "E", "E", "E"}},
    {"freed_while_host_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"freed_while_host_works", {"E", "E", "E", "E", "E", "E"}},
    {"allocated_while_host_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"pinned_allocated_while_host_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"pinned_freed_while_host_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"registered_while_host_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"unregistered_while_host_awaited", {"E", "E", "E", "E", "E", "E"}},
    {"unregistered_while_copied", {"E", "E", "E", "E", "E", "E"}},
};

/* ---- one case, in the child ------------------------------------------------------------------ */

static const struct emu_case *find(const struct emu_case *c, const char *name)
{
    while (c->name && strcmp(c->name, name))
        c++;
    return c->name ? c : nullptr;
}

static int child(const char *name, bool bug, int mode)
{
    tn_emu_settings s;
    tn_emu.get(&s);
    s.schedule = mode == REVERSE ? 1 : mode == RANDOM ? 7 : 0;
    s.delay_us = mode == DELAY ? 3000 : 0;
    tn_emu.set(&s);
    const struct emu_case *c = find(emu_block_cases, name);
    if (!c) c = find(emu_host_cases, name);
    if (!c) return 2;
    if (emu_case_run(c, bug)) return 0;
    fprintf(stderr, "wrong result\n");
    return 1;
}

/* ---- the parent ------------------------------------------------------------------------------ */

/* A bug between threads shows if the system lets them run as they mostly would: where it does not
 * show it gets a few more chances. The correct form gets none. */
enum { CHANCES = 5 };

/* Runs the case and returns what was noticed: one of E W A T U, S for a signal without a word, X
 * for an exit code without one, '-' for nothing. *text gets what it printed. */
static char run(const char *self, const char *name, bool bug, int mode, std::string *text)
{
    int ends[2];
    if (pipe(ends)) return 'X';
    pid_t pid = fork();
    if (pid == 0) {
        char number[16];
        snprintf(number, sizeof number, "%d", mode);
        dup2(ends[1], 2);
        close(ends[0]);
        alarm(120);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
        setenv("TSAN_OPTIONS", "halt_on_error=1:report_bugs=1", 1);
        execl(self, self, name, bug ? "bug" : "correct", number, (char *)nullptr);
        _exit(98);
    }
    close(ends[1]);
    char part[4096];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) text->append(part, (size_t)n);
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    if (text->find("EMU ERROR") != std::string::npos) return 'E';
    if (text->find("AddressSanitizer") != std::string::npos) return 'A';
    if (text->find("ThreadSanitizer") != std::string::npos) return 'T';
    if (text->find("runtime error:") != std::string::npos) return 'U';
    if (text->find("wrong result") != std::string::npos) return 'W';
    if (WIFSIGNALED(status)) return 'S';
    return WEXITSTATUS(status) ? 'X' : '-';
}

int main(int argc, char **argv)
{
    if (argc == 4) return child(argv[1], !strcmp(argv[2], "bug"), atoi(argv[3]));
    int passed = 0, failed = 0;
    for (const auto &e : expected) {
        if (argc == 2 && !strstr(e.name, argv[1])) continue;
        bool somewhere = false;
        for (const char *how : e.noticed) somewhere = somewhere || *how;
        for (int mode = first_mode; mode <= last_mode; mode++) {
            std::string quiet, loud;
            char correct = run("/proc/self/exe", e.name, false, mode, &quiet);
            char bug = e.noticed[mode][0] ? '-' : 0;
            for (int i = 0; i < CHANCES && bug == '-'; i++)
                bug = run("/proc/self/exe", e.name, true, mode, &loud);
            bool ok = somewhere && correct == '-' && (!bug || strchr(e.noticed[mode], bug));
            if (!ok)
                fprintf(stderr, "FAILED %s, %s: correct '%c', with the bug '%c' (want %s)\n%s%s",
                        e.name, mode_names[mode], correct, bug ? bug : '.', e.noticed[mode],
                        quiet.c_str(), loud.c_str());
            ok ? passed++ : failed++;
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
