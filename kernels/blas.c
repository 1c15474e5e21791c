#include "blas.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

/* The C interface of OpenBLAS as its manual gives it; its header is not needed to build. */
enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
typedef void (*sgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                         const float *a, int lda, const float *b, int ldb, float beta, float *c,
                         int ldc);
typedef void (*set_threads_fn)(int n);
typedef int (*get_int_fn)(void);
typedef char *(*get_text_fn)(void);

struct tn_blas {
    const tn_allocator *a;
    sgemm_fn sgemm;
    char text[96];
};

/* What is asked of the library once it is open. */
typedef struct entries {
    sgemm_fn sgemm;
    set_threads_fn set_threads;
    get_int_fn get_parallel;
    get_text_fn get_config, get_core;
} entries;

/* The pthread build by its own directory first: the plain name may lead to the serial or the OpenMP
 * build, whichever the system's alternatives prefer. */
static const char *const names[] = {
#if defined(__x86_64__)
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
#elif defined(__aarch64__)
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
#endif
    "libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so"};

/* Loading the library starts a thread and takes buffers per processor, and it raises SIGINT where
 * it cannot: then it must not be loaded. */
static bool room_for_it(void)
{
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    const size_t bytes = (size_t)(n > 0 ? n + 1 : 2) << 26;
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) munmap(p, bytes);
    return p != MAP_FAILED;
}

/* Never unloaded again: its threads and thread-local data do not survive that in all versions. */
static void *open_library(void)
{
    for (size_t i = 0; i < sizeof names / sizeof *names && room_for_it(); i++) {
        void *lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (lib) return lib;
    }
    return NULL;
}

/* dlsym gives an object pointer; C has no cast from it to a function pointer, POSIX has this. */
static bool symbol(void *lib, const char *name, void *fn)
{
    void *p = dlsym(lib, name);
    memcpy(fn, &p, sizeof p);
    return p != NULL;
}

bool tn_blas_core_is_old(const char *core)
{
    static const char *const old[] = {
        "Unknown",   "Katmai",     "Coppermine",   "Northwood",     "Prescott",  "Banias",
        "Atom",      "Core2",      "Penryn",       "Dunnington",    "Nehalem",   "Sandybridge",
        "Athlon",    "Opteron",    "Opteron_SSE3", "Opteron(SSE3)", "Barcelona", "Bobcat",
        "Bulldozer", "Piledriver", "Steamroller",  "Nano"};
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        if (strcasecmp(core, old[i]) == 0) return true;
    return false;
}

static bool cpu_has_avx2(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

const char *tn_blas_core(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
#endif
    return cpu_has_avx2() ? "Haswell" : NULL;
}

/* NULL, or why this library cannot serve. */
static const char *refuse(void *lib, entries *e)
{
    if (!symbol(lib, "cblas_sgemm", &e->sgemm) ||
        !symbol(lib, "openblas_set_num_threads", &e->set_threads) ||
        !symbol(lib, "openblas_get_parallel", &e->get_parallel) ||
        !symbol(lib, "openblas_get_config", &e->get_config) ||
        !symbol(lib, "openblas_get_corename", &e->get_core))
        return "the OpenBLAS found lacks functions that tenon needs; install the package "
               "libopenblas0-pthread";
    if (e->get_parallel() == 0)
        return "the OpenBLAS found is the serial build, which computes wrongly when called from "
               "several threads; install the package libopenblas0-pthread";
    if (strstr(e->get_config(), "USE64BITINT"))
        return "the OpenBLAS found uses 64-bit integers in its interface; install the package "
               "libopenblas0-pthread";
    if (cpu_has_avx2() && tn_blas_core_is_old(e->get_core()))
        return "OpenBLAS chose kernels for a processor without AVX2, several times slower than "
               "this one allows; set OPENBLAS_CORETYPE=Haswell (or SkylakeX) in the environment";
    return NULL;
}

tn_status tn_blas_open(tn_blas **out, const tn_allocator *a, const char **why)
{
    const char *unused;
    if (!why) why = &unused;
    *out = NULL;
    void *lib = open_library();
    entries e;
    *why = lib ? refuse(lib, &e)
               : "OpenBLAS was not found, or there is too little memory for it; the package "
                 "libopenblas0-pthread has it (optional)";
    if (*why) return TN_OK;
    tn_blas *b = tn_alloc(a, 1, sizeof *b);
    if (!b) {
        *why = "out of memory";
        return TN_ENOMEM;
    }
    e.set_threads(1);
    b->a = a;
    b->sgemm = e.sgemm;
    /* The configuration reads "OpenBLAS 0.3.21 NO_LAPACKE ..." */
    char name[24] = "OpenBLAS", version[24] = "";
    sscanf(e.get_config(), "%23s %23s", name, version);
    snprintf(b->text, sizeof b->text, "%s %s %.32s %s", name, version, e.get_core(),
             e.get_parallel() == 1 ? "pthread" : "OpenMP");
    *out = b;
    return TN_OK;
}

void tn_blas_close(tn_blas *b)
{
    if (b) tn_free(b->a, b);
}

const char *tn_blas_describe(const tn_blas *b)
{
    return b->text;
}

/* OpenBLAS counts in int: rows and tokens go in parts that fit. cols and the strides are dimensions
 * of a model and fit by its validation. */
void tn_blas_matmul(const tn_blas *b, const float *w, int64_t rows, int64_t cols, const float *x,
                    int64_t x_stride, int64_t n, float *y, int64_t y_stride)
{
    const int64_t part = INT_MAX / 2;
    for (int64_t t = 0; t < n; t += part)
        for (int64_t r = 0; r < rows; r += part)
            b->sgemm(ROW_MAJOR, NO_TRANS, TRANS, (int)(n - t < part ? n - t : part),
                     (int)(rows - r < part ? rows - r : part), (int)cols, 1, x + t * x_stride,
                     (int)x_stride, w + r * cols, (int)cols, 0, y + t * y_stride + r,
                     (int)y_stride);
}
