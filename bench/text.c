#include "text.h"

/* The path is seen from the top of the tree, where make runs. */
__asm__(".pushsection .rodata\n"
        ".globl tn_bench_text\n"
        ".globl tn_bench_text_len\n"
        "tn_bench_text:\n"
        ".incbin \"bench/alice.txt\"\n"
        "1: .byte 0\n"
        ".balign 8\n"
        "tn_bench_text_len: .quad 1b - tn_bench_text\n"
        ".popsection\n");
