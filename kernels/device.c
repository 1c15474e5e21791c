/* Finds and opens the plug-in that holds a device's code.
 *
 * It is looked for beside the file that this code is in (libtenon.so, or the program it is linked
 * into), then where that file is installed or was built. The plug-in stays loaded: a GPU's runtime
 * does not like to be unloaded. */
#include "device.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *plugin_name(tn_device_kind kind)
{
    return kind == TN_DEVICE_EMULATED ? "libtenon-emu.so" : "libtenon-cuda.so";
}

/* The folder of the file this code was loaded from, without links, with a slash at its end. */
static bool own_folder(char path[PATH_MAX])
{
    static const char here;
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname || !info.dli_fname[0]) return false;
    ssize_t n = -1;
    if (!strchr(info.dli_fname, '/')) /* a program started through $PATH */
        n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n > 0)
        path[n] = 0;
    else if (!realpath(info.dli_fname, path))
        return false;
    char *slash = strrchr(path, '/');
    if (!slash) return false;
    slash[1] = 0;
    return true;
}

/* Whether a driver for the kind is installed. To learn that from the plug-in for GPUs takes as long
 * as loading cuBLAS does, at every start. */
static bool has_driver(tn_device_kind kind)
{
    return kind == TN_DEVICE_EMULATED ||
           dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE) != NULL;
}

/* The entry of a plug-in; *why is the loader's sentence if it does not open. */
static const tn_device_plugin *open_file(const char *file, char *why, size_t why_bytes)
{
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const tn_device_plugin *p = handle ? dlsym(handle, TN_DEVICE_PLUGIN_SYMBOL) : NULL;
    if (!p) {
        const char *text = dlerror();
        snprintf(why, why_bytes, "%.399s", text ? text : file);
    }
    return p;
}

static tn_status find(tn_device_kind kind, const tn_device_plugin **out, tn_error *err)
{
    static const char *const folders[] = {"", "../", "../lib/", "../lib/tenon/", "build/release/"};
    const char *name = plugin_name(kind);
    char own[PATH_MAX], file[PATH_MAX + 64], why[400] = "";
    if (!own_folder(own))
        return tn_fail(err, TN_EUNSUPPORTED, -1, "the folder to look for %s in is unknown", name);
    for (size_t i = 0; i < sizeof folders / sizeof *folders && !why[0]; i++) {
        snprintf(file, sizeof file, "%s%s%s", own, folders[i], name);
        if (access(file, R_OK) != 0) continue;
        if (!has_driver(kind))
            return tn_fail(err, TN_EDEVICE, -1,
                           "no CUDA device can be used: no driver is installed (libcuda.so.1)");
        const tn_device_plugin *p = open_file(file, why, sizeof why);
        if (!p) continue;
        if (p->version != TN_DEVICE_PLUGIN_VERSION || p->kind != kind)
            return tn_fail(err, TN_EUNSUPPORTED, -1, "%s belongs to another version of tenon",
                           file);
        *out = p;
        return TN_OK;
    }
    if (why[0]) return tn_fail(err, TN_EUNSUPPORTED, -1, "%s does not load: %s", name, why);
    return tn_fail(err, TN_EUNSUPPORTED, -1,
                   "there is no %s beside %s: build it with 'make CUDA=%s'", name, own,
                   kind == TN_DEVICE_EMULATED ? "emu" : "1");
}

tn_status tn_device_count(tn_device_kind kind, int *n, tn_error *err)
{
    const tn_device_plugin *p;
    *n = 0;
    tn_status s = find(kind, &p, err);
    return s < 0 ? s : p->count(n, err);
}

tn_status tn_device_open(const tn_device_options *options, tn_device **d, tn_error *err)
{
    const tn_device_plugin *p;
    *d = NULL;
    tn_status s = find(options->kind, &p, err);
    return s < 0 ? s : p->open(options, d, err);
}
