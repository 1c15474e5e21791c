/* OpenBLAS: right against double precision, and the same from four callers at once as from one. */
#include "harness.h"

#include "../engine/tenon.h"
#include "../kernels/blas.h"

#include <pthread.h>

static const char *why;

/* As a program does: an OpenBLAS older than the CPU would choose a core of long ago. */
static tn_blas *open_or_null(void)
{
    tn_blas *b = NULL;
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    if (tn_openblas_core()) setenv("OPENBLAS_CORETYPE", tn_openblas_core(), 0);
    tn_blas_open(&b, &tn_default_allocator, &why);
    return b;
}

typedef struct problem {
    const tn_blas *b;
    int64_t rows, cols, n, x_stride, y_stride;
    float *w, *x, *y;
} problem;

static const float CANARY = -77.25f;

static problem make(const tn_blas *b, int64_t rows, int64_t cols, int64_t n, uint64_t seed)
{
    problem p = {b, rows, cols, n, cols + 3, rows + 5, NULL, NULL, NULL};
    p.w = malloc((size_t)(rows * cols) * sizeof(float));
    p.x = malloc((size_t)(n * p.x_stride) * sizeof(float));
    p.y = malloc((size_t)(n * p.y_stride) * sizeof(float));
    for (int64_t i = 0; i < rows * cols; i++) p.w[i] = test_randf(&seed);
    for (int64_t i = 0; i < n * p.x_stride; i++) p.x[i] = test_randf(&seed);
    for (int64_t i = 0; i < n * p.y_stride; i++) p.y[i] = CANARY;
    return p;
}

static void drop(problem *p)
{
    free(p->w), free(p->x), free(p->y);
}

static void multiply(const problem *p, float *y)
{
    tn_blas_matmul(p->b, p->w, p->rows, p->cols, p->x, p->x_stride, p->n, y, p->y_stride);
}

TEST(against_double_precision)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {3, 5, 2}, {64, 64, 64}, {100, 33, 1},
                                        {257, 129, 65}, {512, 300, 40}};
    tn_blas *b = open_or_null();
    if (!b) SKIP(why);
    CHECK(strstr(tn_blas_describe(b), "OpenBLAS") == tn_blas_describe(b));
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        problem p = make(b, shapes[s][0], shapes[s][1], shapes[s][2], s);
        multiply(&p, p.y);
        for (int64_t t = 0; t < p.n; t++)
            for (int64_t r = 0; r < p.y_stride; r++) {
                double want = (double)CANARY, sum = 0;
                for (int64_t c = 0; r < p.rows && c < p.cols; c++) {
                    const double term =
                        (double)p.w[r * p.cols + c] * (double)p.x[t * p.x_stride + c];
                    want = c ? want + term : term;
                    sum += fabs(term);
                }
                CHECK_NEAR((double)p.y[t * p.y_stride + r], want, 1e-6 * sum);
            }
        drop(&p);
    }
    tn_blas_close(b);
}

static void *repeat(void *arg)
{
    const problem *p = arg;
    const size_t bytes = (size_t)(p->n * p->y_stride) * sizeof(float);
    float *y = malloc(bytes);
    memcpy(y, p->y, bytes);
    void *wrong = NULL;
    for (int i = 0; i < 30 && !wrong; i++) {
        for (int64_t t = 0; t < p->n; t++)
            memset(y + t * p->y_stride, 0xff, (size_t)p->rows * sizeof(float));
        multiply(p, y);
        if (memcmp(y, p->y, bytes) != 0) wrong = arg;
    }
    free(y);
    return wrong;
}

TEST(four_callers_at_once)
{
    tn_blas *b = open_or_null();
    if (!b) SKIP(why);
    problem p[4];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        p[i] = make(b, 200 + 31 * i, 150 + 17 * i, 90 + 13 * i, 100 + (uint64_t)i);
        multiply(&p[i], p[i].y);
    }
    for (int i = 0; i < 4; i++) REQUIRE(pthread_create(&thread[i], NULL, repeat, &p[i]) == 0);
    for (int i = 0; i < 4; i++) {
        void *wrong = NULL;
        pthread_join(thread[i], &wrong);
        CHECK_MSG(!wrong, "caller %d got another result than alone", i);
        drop(&p[i]);
    }
    tn_blas_close(b);
}

static void *no_memory(void *user, size_t bytes, size_t align)
{
    (void)user, (void)bytes, (void)align;
    return NULL;
}

TEST(opening_and_closing)
{
    tn_allocator none = tn_default_allocator;
    tn_blas *b = (tn_blas *)&none;
    none.alloc = no_memory;
    tn_blas_open(&b, &none, &why);
    CHECK(b == NULL && why && strlen(why) > 0);
    for (int i = 0; i < 3; i++) tn_blas_close(open_or_null());
    tn_blas_open(&b, &tn_default_allocator, NULL);
    CHECK((b != NULL) == (why == NULL));
    tn_blas_close(b);
    tn_blas_close(NULL);
}

TEST(old_cores)
{
    CHECK(tn_blas_core_is_old("Prescott"));
    CHECK(tn_blas_core_is_old("Sandybridge"));
    CHECK(!tn_blas_core_is_old("Haswell"));
    CHECK(!tn_blas_core_is_old("Zen"));
    CHECK(!tn_blas_core_is_old("SkylakeX"));
    CHECK(!tn_blas_core_is_old("a core of the future"));
    CHECK(!tn_blas_core() || !tn_blas_core_is_old(tn_blas_core()));
}

TEST_MAIN
