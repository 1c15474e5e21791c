#include "text.h"

/* The path is seen from the top of the tree, where make runs. */
__asm__(".pushsection .rodata\n"
        ".globl tn_bench_text\n"
        ".globl tn_bench_text_end\n"
        "tn_bench_text:\n"
        ".incbin \"bench/alice.txt\"\n"
        "tn_bench_text_end:\n"
        ".byte 0\n"
        ".popsection\n");
