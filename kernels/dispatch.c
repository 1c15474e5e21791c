/* Which instruction sets this machine has, and the kernel table for a choice of them. */
#include "kernels.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Register states the operating system saves: bits 1-2 SSE and AVX, 5-7 AVX-512. */
static unsigned saved_states(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned with_avx512(unsigned ebx7, unsigned ecx7)
{
    const unsigned need = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    if ((ebx7 & need) != need) return 0;
    return TN_ISA_AVX512 | (ecx7 & bit_AVX512VNNI ? TN_ISA_VNNI512 : 0);
}

unsigned tn_isa_detect(void)
{
    unsigned a, b, c, d, a7, b7, c7, d7;
    const unsigned need1 = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C, need7 = bit_AVX2 | bit_BMI2;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & need1) != need1) return TN_ISA_SCALAR;
    if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7) || (b7 & need7) != need7) return TN_ISA_SCALAR;
    const unsigned saved = saved_states();
    if ((saved & 0x6) != 0x6) return TN_ISA_SCALAR;
    unsigned isa = TN_ISA_AVX2;
    /* a7: the highest sub-leaf. Bit 4 of eax in sub-leaf 1: AVX-VNNI. */
    if (a7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4)) isa |= TN_ISA_AVXVNNI;
    if ((saved & 0xe6) == 0xe6) isa |= with_avx512(b7, c7);
    return isa;
}

/* AMD's own prefetchers do better alone, see avx2_r8.c. */
static bool wants_prefetch(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b != signature_AMD_ebx;
}

static void add_avx2(tn_kernels *k)
{
    k->prefetch = wants_prefetch();
    tn_kernels_avx2_rows(k);
    tn_kernels_avx2_many(k);
    tn_kernels_avx2_float(k);
    tn_kernels_avx2_ops(k);
    tn_kernels_avx2_attend(k);
    if (k->isa & TN_ISA_AVXVNNI) tn_kernels_avxvnni_many(k);
}

static void add_avx512(tn_kernels *k)
{
    tn_kernels_avx512_ops(k);
    tn_kernels_avx512_attend(k);
    if (!(k->isa & TN_ISA_VNNI512)) return;
    tn_kernels_avx512_many(k);
    tn_kernels_avx512_r16(k);
}

#else

unsigned tn_isa_detect(void)
{
    return TN_ISA_SCALAR;
}

static void add_avx2(tn_kernels *k)
{
    (void)k;
}
static void add_avx512(tn_kernels *k)
{
    (void)k;
}

#endif

void tn_kernels_init(tn_kernels *k, unsigned isa)
{
    memset(k, 0, sizeof *k);
    k->isa = isa & tn_isa_detect();
    tn_kernels_scalar(k);
    tn_kernels_scalar_ops(k);
    tn_kernels_repack(k);
    if (!(k->isa & TN_ISA_AVX2)) return;
    add_avx2(k);
    if (k->isa & TN_ISA_AVX512) add_avx512(k);
}
