/* tenon calibrate: measures this machine and keeps the result where plan finds it. */
#include "generate.h"
#include "session.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

char *tn_cache_dir(void)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *path;
    int n = -1;
    if (cache && *cache == '/')
        n = asprintf(&path, "%s/tenon", cache);
    else if (home && *home == '/')
        n = asprintf(&path, "%s/.cache/tenon", home);
    return n < 0 ? NULL : path;
}

char *tn_cache_dir_make(void)
{
    char *dir = tn_cache_dir();
    bool made = dir != NULL;
    for (char *s = dir; made && *s; s++) {
        if (s == dir || (*s != '/' && s[1])) continue;
        const char end = *s;
        if (end == '/') *s = 0; /* a parent; otherwise the last folder itself */
        made = mkdir(dir, 0700) == 0 || errno == EEXIST;
        *s = end;
    }
    if (made || !dir) return dir;
    tn_say("warning: %s: cannot be made; what is measured is not kept", dir);
    free(dir);
    return NULL;
}

/* A shipped profile, to be read or changed. */
static int print_shipped(const char *name)
{
    char *text;
    tn_error err = {0};
    const tn_status s = tn_hardware_json(name, &text, &err);
    if (s) return tn_session_fail(s, &err);
    tn_out(text, strlen(text));
    tn_out("\n", 1);
    tn_hardware_string_free(text);
    return TN_EXIT_OK;
}

int tn_cmd_calibrate(const tn_settings *set)
{
    if (set->hardware) return print_shipped(set->hardware);
    tn_engine *engine = NULL;
    tn_error err = {0};
    char *dir = tn_cache_dir_make(), *text = NULL;
    const tn_engine_options opt = {.struct_size = sizeof opt,
                                   .threads = set->threads == TN_UNSET ? 0 : set->threads,
                                   .isa = set->isa,
                                   .device = set->device,
                                   .throttle = isnan(set->throttle) ? 0 : set->throttle * 1e9,
                                   .cache_dir = dir};
    tn_status s = tn_engine_new(&engine, &opt, &err);
    if (!s) s = tn_engine_calibrate(engine, true, &text, &err);
    if (!s) {
        tn_out(text, strlen(text));
        tn_out("\n", 1);
        if (dir && strcmp(tn_engine_label(engine), "measured") == 0)
            tn_note("kept in %s/hardware.json", dir);
        else if (dir && !tn_is_emulated(engine))
            tn_note("kept in %s/hardware-throttled.json", dir);
        tn_string_free(engine, text);
    }
    tn_engine_free(engine);
    free(dir);
    return s ? tn_session_fail(s, &err) : TN_EXIT_OK;
}
