/* Stacks and switching between them. */
#ifndef TN_EMU_FIBER_H
#define TN_EMU_FIBER_H

#include "internal.h"

#if !defined(__x86_64__) || defined(TN_EMU_UCONTEXT)
#define TN_EMU_PORTABLE 1
#include <ucontext.h>
#else
#define TN_EMU_PORTABLE 0
#endif

namespace emu
{

const size_t STACK_BYTES = (TN_EMU_ASAN ? 512 : TSAN(true ||) false ? 32 : 128) << 10;

struct fiber {
    void *sp; /* while it is not running */
    char *stack;
    fiber *next; /* of the free ones */
    TSAN(void *tsan;) /* what the thread sanitizer takes for the thread that runs on it */
#if TN_EMU_PORTABLE
    ucontext_t context;
#endif
};

extern fiber main_fiber; /* the stream's thread; only one runs kernels at a time */
extern fiber *running;

/* A fiber that will begin in fiber_main() (block.cpp): a free one, or a new one. */
fiber *fiber_get();
void fiber_put(fiber *f);
void switch_to(fiber *f);
/* To be called before the first switch away from main in each block. */
void fiber_begin();

void fiber_main();

} // namespace emu

#endif
