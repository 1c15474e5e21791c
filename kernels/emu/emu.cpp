/* Settings, counters and errors of the emulated device. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

namespace emu
{

static const tn_emu_settings DEFAULTS = {
    0, 0, true, true, true, true, TN_EMU_DEVICES, (size_t)2 << 30, 60000};
tn_emu_settings settings = DEFAULTS;
tn_emu_counters counters;

void fail(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const char *kernel = running_kernel();
    fprintf(stderr, "EMU ERROR");
    if (kernel) {
        uint3 b = block_index, t = current->id;
        fprintf(stderr, " in kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", kernel, b.x, b.y, b.z,
                t.x, t.y, t.z);
    }
    fprintf(stderr, ": ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}

void host_error(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "EMU ERROR: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}

static void get(tn_emu_settings *s)
{
    *s = settings;
}
static void set(const tn_emu_settings *s)
{
    settings = *s;
}
static void count(tn_emu_counters *c)
{
    *c = counters;
}

} // namespace emu

extern "C" const tn_emu_control tn_emu = {emu::get, emu::set, emu::count, emu::break_at};
