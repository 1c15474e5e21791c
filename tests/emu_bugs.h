/* Between emu_bugs_block.cu and emu_bugs_host.cu, which hold the cases, and emu_bugs.cpp, which
 * runs them. */
#ifndef EMU_BUGS_H
#define EMU_BUGS_H

#include "../kernels/cuda/gpu.h"

struct emu_case {
    const char *name;
    bool (*correct)();
    bool (*wrong)();
};
extern const struct emu_case emu_block_cases[], emu_host_cases[]; /* up to a NULL name */

/* A case of either file, in a process of its own: much of what is wrong ends it. */
bool emu_case_run(const struct emu_case *c, bool bug);

#endif
