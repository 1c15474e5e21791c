/* tenon-bench: how fast a model runs on this machine. */
#include "compare.h"
#include "options.h"
#include "sweep.h"
#include "term.h"

#include "../engine/tenon.h"

#include <stdlib.h>
#include <string.h>

static int dispatch(const tn_bench_settings *set, int argc, char **argv)
{
    if (set->help) {
        tn_bench_help_print(stdout);
        return TN_EXIT_OK;
    }
    if (set->version) {
        printf("tenon-bench %s\ncommit %s\n", tn_version(), *tn_commit() ? tn_commit() : "unknown");
        return TN_EXIT_OK;
    }
    if (set->generate_what && strcmp(set->generate_what, "man") == 0) {
        tn_bench_man_print(stdout);
        return TN_EXIT_OK;
    }
    if (set->generate_what) {
        tn_bench_say("option --generate: '%s' is not man", set->generate_what);
        return TN_EXIT_USAGE;
    }
    if (set->compare) return tn_bench_compare(set);
    return tn_bench_sweep(set, argc, argv);
}

/* One thread: ours call it side by side, and it ends the program where it cannot start its own. A
 * core that the user has set stays. */
static void prepare_openblas(void)
{
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    if (tn_openblas_core()) setenv("OPENBLAS_CORETYPE", tn_openblas_core(), 0);
}

int main(int argc, char **argv)
{
    tn_bench_settings set;
    tn_bench_init();
    prepare_openblas();
    int code = tn_bench_options_read(&set, argc, argv);
    if (!code) code = dispatch(&set, argc, argv);
    const int written = tn_bench_flush(stdout, "standard output");
    tn_bench_options_free(&set);
    return code && code != TN_EXIT_SLOWER ? code : written ? written : code;
}
