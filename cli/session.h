/* What most commands begin with: an engine, a model, a context; and how their failures end. */
#ifndef TN_CLI_SESSION_H
#define TN_CLI_SESSION_H

#include "options.h"
#include "term.h"

/* What a session carries out. */
typedef struct tn_placed {
    tn_placement *plan; /* NULL = none */
    bool host_only;     /* nothing is on the device */
} tn_placed;

typedef struct tn_session {
    tn_engine *engine;
    tn_model *model;
    tn_context *ctx;
    tn_model_info info;
    tn_placed placed;
    tn_progress loading, evaluating;
} tn_session;

/* The program's exit code for a library failure. */
int tn_exit_code(tn_status status);
/* Says err on stderr and returns the exit code; a cancelled call is the pending signal's. */
int tn_session_fail(tn_status status, const tn_error *err);

/* placed.c. Makes the plan for a machine (as tn_placement_options say), or reads it from --plan,
 * and says it in a line. TN_EXIT_OK, or the exit code after saying why; it is to be given back
 * either way. */
int tn_placed_make(tn_placed *r, const tn_settings *set, const char *hardware);
void tn_placed_free(tn_placed *r);
/* Tokens a second that the plan predicts with so many in the context: between the depths it was
 * made for, times are taken as even. 0 without a plan. */
double tn_placed_rate(const tn_placed *r, int64_t live);
/* What emulated devices stand for where no hardware is named: a card that one can buy. */
#define TN_EMULATED_HARDWARE "rtx3060-ddr4"
/* plan.c. The planner's options; an exit code as above. */
int tn_plan_options(tn_placement_options *o, const tn_settings *set);
/* plan.c. Prints a plan as `tenon plan` does, on stderr; an exit code. */
int tn_plan_print(const tn_placement *p, const tn_settings *set);
/* plan.c. Says what is missing and what would help, of a plan that does not fit. */
void tn_plan_say_short(const tn_placement *p, const tn_placement_info *f);

/* Engine and model. TN_EXIT_OK, or the exit code after saying why; the session is to be closed
 * either way. */
int tn_session_open(tn_session *s, const tn_settings *set, bool vocab_only);
/* A context of n_ctx tokens (0 = the model's own). */
int tn_session_context(tn_session *s, const tn_settings *set, int32_t n_ctx, tn_kv_type kv);
void tn_session_close(tn_session *s);
/* Opens a second model on the session's engine. */
int tn_session_model(tn_session *s, const tn_settings *set, tn_model **model, bool vocab_only,
                     bool exact);

/* The settings' KV type, or the given one. */
tn_kv_type tn_settings_kv(const tn_settings *set, tn_kv_type otherwise);

/* The ids of a text in memory of their own. */
int tn_session_tokenize(const tn_session *s, const char *text, size_t len, unsigned flags,
                        int32_t **ids, size_t *n);

/* The commands. Each returns the program's exit code. */
int tn_cmd_chat(const tn_settings *set);
int tn_cmd_run(const tn_settings *set);
int tn_cmd_inspect(const tn_settings *set);
int tn_cmd_tokenize(const tn_settings *set);
int tn_cmd_logits(const tn_settings *set);
int tn_cmd_perplexity(const tn_settings *set);
int tn_cmd_plan(const tn_settings *set);
int tn_cmd_calibrate(const tn_settings *set);

/* calibrate.c. Where the XDG base directory specification puts measurements, freed by the caller;
 * NULL if there is no home. */
char *tn_cache_dir(void);
/* The same, made where it is missing; NULL with a warning if that is not possible. */
char *tn_cache_dir_make(void);

#endif
