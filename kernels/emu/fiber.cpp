#include "fiber.h"

#include <sys/mman.h>

namespace emu
{

fiber main_fiber;
fiber *running = &main_fiber;

static fiber *free_fibers;
static size_t n_fibers;
static const size_t GUARD_BYTES = 4096;
/* Stack tops differ modulo a page, or all threads' hot frames would share a few cache sets. */
static const size_t COLOURS = TSAN(true ||) false ? 1 : 64, COLOUR_BYTES = 320;

#if TN_EMU_ASAN
static const void *main_stack;
static size_t main_stack_bytes;
#endif

void fiber_begin()
{
#if TN_EMU_ASAN
    main_stack = nullptr;
#endif
}

static void arrive()
{
#if TN_EMU_ASAN
    const void *from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &from, &bytes);
    if (!main_stack) { /* the block's first switch comes from main */
        main_stack = from;
        main_stack_bytes = bytes;
    }
#endif
}

static void leave_for(const fiber *f)
{
#if TN_EMU_ASAN
    if (f == &main_fiber)
        __sanitizer_start_switch_fiber(nullptr, main_stack, main_stack_bytes);
    else
        __sanitizer_start_switch_fiber(nullptr, f->stack, STACK_BYTES);
#else
    (void)f;
#endif
}

static void fiber_entry()
{
    arrive();
    fiber_main();
}

#if TN_EMU_PORTABLE

static void set_up(fiber *f, size_t colour)
{
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES - colour;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_entry, 0);
}
static inline void swap(fiber *from, fiber *to)
{
    swapcontext(&from->context, &to->context);
}

#else

/* Saves what the System V ABI lets a callee keep, changes the stack, restores. Leaving by `ret`
 * keeps the processor's return predictor in step. */
extern "C" void tn_emu_swap(void **save, void *load);
asm(".text\n"
    ".globl tn_emu_swap\n"
    ".hidden tn_emu_swap\n"
    ".type tn_emu_swap,@function\n"
    "tn_emu_swap:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp,(%rdi)\n"
    "  movq %rsi,%rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size tn_emu_swap,.-tn_emu_swap\n");

static void set_up(fiber *f, size_t colour)
{
    void **sp = (void **)(f->stack + STACK_BYTES - colour);
    *--sp = nullptr; /* where fiber_entry would return to; aligns the stack as a call does */
    *--sp = (void *)fiber_entry;
    for (int i = 0; i < 6; i++)
        *--sp = nullptr; /* the registers */
    f->sp = sp;
}
static inline void swap(fiber *from, fiber *to)
{
    tn_emu_swap(&from->sp, to->sp);
}

#endif

fiber *fiber_get()
{
    if (free_fibers) {
        fiber *f = free_fibers;
        free_fibers = f->next;
        return f;
    }
    fiber *f = new fiber();
    char *m = (char *)mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) fail("no memory for the stack of a thread");
    mprotect(m, GUARD_BYTES, PROT_NONE);
    f->stack = m + GUARD_BYTES;
    set_up(f, ++n_fibers % COLOURS * COLOUR_BYTES);
    TSAN(f->tsan = __tsan_create_fiber(0);)
    return f;
}

void fiber_put(fiber *f)
{
    f->next = free_fibers;
    free_fibers = f;
}

void switch_to(fiber *f)
{
    counters.switches++;
    fiber *from = running;
    running = f;
    leave_for(f);
    swap(from, f);
    arrive();
}

} // namespace emu
