#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int tn_exit_code(tn_status status)
{
    switch (status) {
    case TN_OK: return TN_EXIT_OK;
    case TN_EIO: return TN_EXIT_IO;
    case TN_EFORMAT:
    case TN_EUNSUPPORTED: return TN_EXIT_MODEL;
    case TN_ENOMEM:
    case TN_EDEVICE: return TN_EXIT_MEMORY;
    case TN_EARG: return TN_EXIT_USAGE;
    case TN_EFULL: return TN_EXIT_FULL;
    case TN_ENOENT: return TN_EXIT_NOFILE;
    case TN_ECANCELED: return TN_EXIT_SIGNAL + tn_signal_pending();
    case TN_EBUSY:
    case TN_EINTERNAL: break;
    }
    return TN_EXIT_INTERNAL;
}

int tn_session_fail(tn_status status, const tn_error *err)
{
    if (status != TN_ECANCELED) tn_say("%s", err->msg[0] ? err->msg : tn_status_name(status));
    return tn_exit_code(status);
}

static void show_log(void *verbose, tn_log_level level, const char *line)
{
    if (level == TN_LOG_WARN)
        tn_say("warning: %s", line);
    else if (*(const bool *)verbose)
        tn_note("%s", line);
}

/* Where somebody waits for the first word it comes first; the other commands
 * measure, or take long. */
static tn_load_mode load_mode(const tn_settings *set)
{
    const bool waits = set->command == TN_CMD_CHAT || set->command == TN_CMD_RUN;
    return waits && set->load == TN_LOAD_AUTO ? TN_LOAD_LATER : (tn_load_mode)set->load;
}

int tn_session_model(tn_session *s, const tn_settings *set, tn_model **model, bool vocab_only,
                     bool exact)
{
    tn_error err = {0};
    s->loading = (tn_progress){.label = exact ? "loading exact weights" : "loading"};
    const tn_model_options opt = {
        .struct_size = sizeof opt,
        .load = load_mode(set),
        .vocab_only = vocab_only,
        .exact = exact,
        .place = set->places,
        .n_place = vocab_only || s->placed.plan ? 0 : set->n_places,
        .plan = vocab_only ? NULL : s->placed.plan,
        .progress = tn_progress_draw,
        .cancel = tn_signal_cancel,
        .user = &s->loading,
    };
    const tn_status status = tn_model_open(model, s->engine, set->model, &opt, &err);
    tn_progress_clear(&s->loading);
    return status ? tn_session_fail(status, &err) : TN_EXIT_OK;
}

static bool has_device(const tn_session *s)
{
    return strcmp(tn_engine_devices(s->engine), "none") != 0;
}

/* Each device's memory to use, 0 = all of it. */
static int read_vram(const tn_settings *set, size_t vram[TN_ENGINE_DEVICES])
{
    uint64_t bytes[TN_ENGINE_DEVICES] = {0};
    const int code =
        set->vram ? tn_options_sizes("vram", set->vram, bytes, TN_ENGINE_DEVICES) : TN_EXIT_OK;
    for (int i = 0; !code && i < TN_ENGINE_DEVICES; i++) {
        if (bytes[i] > SIZE_MAX / 2) {
            tn_say("option --vram: without device memory there is nothing for --device to do");
            return TN_EXIT_USAGE;
        }
        vram[i] = (size_t)bytes[i];
    }
    return code;
}

/* Without --device this machine's GPU, where it has one that works; "none" wants none. */
static int open_engine(tn_session *s, const tn_settings *set, tn_engine_options *opt,
                       bool want_device)
{
    tn_error err = {0};
    const bool look = want_device && !opt->device;
    if (look) opt->device = "cuda";
    tn_status status = tn_engine_new(&s->engine, opt, &err);
    if (look && (status == TN_EUNSUPPORTED || status == TN_EDEVICE)) {
        if (set->verbose) tn_note("no device is used: %s", err.msg);
        opt->device = NULL;
        opt->throttle = 0;
        memset(opt->vram_limits, 0, sizeof opt->vram_limits);
        err = (tn_error){0};
        status = tn_engine_new(&s->engine, opt, &err);
    }
    return status ? tn_session_fail(status, &err) : TN_EXIT_OK;
}

/* Options that say what a device is to do need one. */
static int check_device(const tn_session *s, const tn_settings *set)
{
    const char *without = set->n_places ? "place" : set->vram ? "vram" : set->plan ? "plan" : NULL;
    if (!without && set->hardware) without = "hardware";
    if (!without && !isnan(set->throttle)) without = "throttle";
    if (!without || has_device(s)) return TN_EXIT_OK;
    tn_say("option --%s: there is no device; name one with --device", without);
    return TN_EXIT_USAGE;
}

/* A plan, which fills in what the user's rules leave open: for the machine as it was measured,
 * once. The emulated device stands for a card that one can buy. */
static int make_plan(tn_session *s, const tn_settings *set)
{
    const bool emulated = strcmp(tn_engine_devices(s->engine), "emu") == 0;
    tn_error err = {0};
    char *measured = NULL;
    const char *machine = set->hardware ? set->hardware : emulated ? TN_EMULATED_HARDWARE : NULL;
    if (set->exact && !set->plan && !set->hardware) return TN_EXIT_OK;
    if (machine || set->plan) return tn_placed_make(&s->placed, set, machine);
    free(tn_cache_dir_make());
    const tn_status status = tn_engine_calibrate(s->engine, false, &measured, &err);
    if (status) return tn_session_fail(status, &err);
    const int code = tn_placed_make(&s->placed, set, measured);
    tn_string_free(s->engine, measured);
    return code;
}

static int drop_device(tn_session *s, const tn_settings *set, tn_engine_options *opt)
{
    tn_placed_free(&s->placed);
    tn_engine_free(s->engine);
    s->engine = NULL;
    opt->device = NULL;
    opt->throttle = 0;
    memset(opt->vram_limits, 0, sizeof opt->vram_limits);
    return open_engine(s, set, opt, false);
}

/* A plan of our own may leave the device out, or ask a little too much of it: the host still
 * serves. */
static int open_model(tn_session *s, const tn_settings *set, tn_engine_options *opt,
                      bool vocab_only)
{
    int code = vocab_only ? TN_EXIT_OK : check_device(s, set);
    if (!code && !vocab_only && has_device(s)) code = make_plan(s, set);
    const bool ours = s->placed.plan && !set->plan && !set->hardware;
    if (!code && ours && s->placed.host_only) code = drop_device(s, set, opt);
    if (!code) code = tn_session_model(s, set, &s->model, vocab_only, set->exact);
    if (code != TN_EXIT_MEMORY || !ours || !has_device(s)) return code;
    tn_say("going on without the device");
    code = drop_device(s, set, opt);
    return code ? code : tn_session_model(s, set, &s->model, vocab_only, set->exact);
}

/* Before a long prompt is read for nothing. */
static int check_bias(const tn_session *s, const tn_settings *set)
{
    for (size_t i = 0; i < set->n_bias; i++) {
        if (set->bias[i].token < s->info.n_vocab) continue;
        tn_say("option --logit-bias: there is no token %d, the vocabulary has %d",
               (int)set->bias[i].token, (int)s->info.n_vocab);
        return TN_EXIT_USAGE;
    }
    return TN_EXIT_OK;
}

int tn_session_open(tn_session *s, const tn_settings *set, bool vocab_only)
{
    tn_error err = {0};
    const bool none = vocab_only || (set->device && strcmp(set->device, "none") == 0);
    memset(s, 0, sizeof *s);
    char *cache_dir = set->load == TN_LOAD_IMAGE ? tn_cache_dir_make()
                      : vocab_only                ? NULL
                                                  : tn_cache_dir();
    tn_engine_options opt = {
        .struct_size = sizeof opt,
        .threads = vocab_only                 ? 1
                   : set->threads == TN_UNSET ? 0
                                              : set->threads,
        .isa = set->isa,
        .log = show_log,
        .log_user = (void *)(uintptr_t)&set->verbose,
        .cache_dir = cache_dir,
        .device = none ? NULL : set->device,
        .throttle = none || isnan(set->throttle) ? 0 : set->throttle * 1e9,
    };
    int code = none ? TN_EXIT_OK : read_vram(set, opt.vram_limits);
    if (code) {
        free(cache_dir);
        return code;
    }
    code = open_engine(s, set, &opt, !none);
    if (!code) code = open_model(s, set, &opt, vocab_only);
    free(cache_dir);
    if (code) return code;
    s->info.struct_size = sizeof s->info;
    const tn_status status = tn_model_get_info(s->model, &s->info, &err);
    return status ? tn_session_fail(status, &err) : check_bias(s, set);
}

tn_kv_type tn_settings_kv(const tn_settings *set, tn_kv_type otherwise)
{
    static const tn_kv_type choices[] = {TN_KV_F16, TN_KV_F32, TN_KV_Q8_0}; /* as --kv lists them */
    return set->kv == TN_UNSET ? otherwise : choices[set->kv];
}

int tn_session_context(tn_session *s, const tn_settings *set, int32_t n_ctx, tn_kv_type kv)
{
    tn_error err = {0};
    const tn_context_options opt = {
        .struct_size = sizeof opt,
        .n_ctx = n_ctx,
        .n_batch = set->batch == TN_UNSET ? 0 : set->batch,
        .kv = kv,
        .progress = tn_progress_draw,
        .cancel = tn_signal_cancel,
        .user = &s->evaluating,
    };
    const tn_status status = tn_context_new(&s->ctx, s->model, &opt, &err);
    return status ? tn_session_fail(status, &err) : TN_EXIT_OK;
}

void tn_session_close(tn_session *s)
{
    tn_context_free(s->ctx);
    if (s->info.n_expert) free(tn_cache_dir_make()); /* how often experts were chosen goes there */
    tn_model_close(s->model);
    tn_engine_free(s->engine);
    tn_placed_free(&s->placed);
}

int tn_session_tokenize(const tn_session *s, const char *text, size_t len, unsigned flags,
                        int32_t **ids, size_t *n)
{
    tn_error err = {0};
    size_t cap = len + 8, invalid = 0; /* more tokens than bytes are rare */
    int32_t *list = tn_malloc(cap * sizeof *list);
    tn_status status = tn_tokenize(s->model, text, len, flags, list, cap, n, &invalid, &err);
    if (status == TN_EFULL) {
        cap = *n;
        list = tn_realloc(list, cap * sizeof *list);
        status = tn_tokenize(s->model, text, len, flags, list, cap, n, &invalid, &err);
    }
    if (status) {
        free(list);
        return tn_session_fail(status, &err);
    }
    if (invalid) tn_say("warning: %zu bytes of the text are no UTF-8 and became U+FFFD", invalid);
    *ids = list;
    return TN_EXIT_OK;
}
