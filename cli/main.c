/* tenon: chat with GGUF models and look into them. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

static int print_version(const tn_settings *set)
{
    tn_error err = {0};
    tn_engine *engine;
    const tn_engine_options opt = {
        .struct_size = sizeof opt, .threads = 1, .isa = set->isa, .device = set->device};
    const tn_status status = tn_engine_new(&engine, &opt, &err);
    if (status) return tn_session_fail(status, &err);
    tn_outf("tenon %s\ncommit %s\nisa %s (this CPU has", tn_version(),
            *tn_commit() ? tn_commit() : "unknown", tn_engine_isa(engine));
    for (int i = 0; tn_isa_level(i); i++)
        tn_outf(" %s", tn_isa_level(i));
    tn_outf(")\ndevices %s\n", tn_engine_devices(engine));
    tn_engine_free(engine);
    return TN_EXIT_OK;
}

static int dispatch(const tn_settings *set)
{
    static int (*const run[TN_CMD_COUNT])(const tn_settings *) = {
        [TN_CMD_CHAT] = tn_cmd_chat,       [TN_CMD_RUN] = tn_cmd_run,
        [TN_CMD_INSPECT] = tn_cmd_inspect, [TN_CMD_TOKENIZE] = tn_cmd_tokenize,
        [TN_CMD_LOGITS] = tn_cmd_logits,   [TN_CMD_PERPLEXITY] = tn_cmd_perplexity,
        [TN_CMD_PLAN] = tn_cmd_plan,       [TN_CMD_CALIBRATE] = tn_cmd_calibrate,
    };
    if (set->help) {
        tn_help_print(stdout, set->command);
        return TN_EXIT_OK;
    }
    if (set->version) return print_version(set);
    if (!set->generate) return run[set->command](set);
    if (tn_help_generate(stdout, set->generate)) return TN_EXIT_OK;
    tn_say("option --generate: '%s' is not man, bash, zsh or fish", set->generate);
    return TN_EXIT_USAGE;
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
    tn_settings set;
    tn_term_init();
    prepare_openblas();
    int code = tn_options_read(&set, argc, argv);
    if (!code) code = dispatch(&set);
    const int written = tn_out_finish();
    return code ? code : written;
}
