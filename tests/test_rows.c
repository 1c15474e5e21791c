/* Which kernel rows of a product get: mapped rows and many tokens go through the interleaved
 * layout, with the bits that loaded weights give, whatever the range of rows; nothing behind them
 * is read. */
#include "../engine/exec_host.h"
#include "kernel_cases.h"

enum { rows = 300, cols = 256, most_tokens = 33 }; /* two whole pieces, and a group that is not
                                                      full */

typedef struct fixture {
    tn_engine e;
    tn_model m;
    tn_host h;
    guarded packed, scratch;
    float *buffer;
    void *at;
    float y[most_tokens * rows], want[most_tokens * rows];
} fixture;

static void set_up(fixture *f, unsigned isa)
{
    memset(f, 0, sizeof *f);
    tn_kernels_init(&f->e.kernels, isa);
    f->packed = guarded_new(128 * cols / 32 * sizeof(tn_block_q8_0), 64);
    f->scratch = guarded_new(TN_SCRATCH_BYTES, 64);
    f->buffer = (float *)(void *)f->packed.data;
    f->at = f->scratch.data;
    f->e.scratch = &f->at;
    f->h = (tn_host){
        .m = &f->m, .e = &f->e, .kern = &f->e.kernels, .repacked = &f->buffer, .parts = 1};
}

static void tear_down(fixture *f)
{
    guarded_free(&f->packed);
    guarded_free(&f->scratch);
}

/* Rows [row0, row1) of the product against the same rows by the kernel that serves loaded weights
 * (many tokens, or rows that wait to be loaded) or the file's rows (few). */
static void check_range(fixture *f, const tn_weight *w, const tn_acts *x, int64_t row0,
                        int64_t row1)
{
    const size_t n = (size_t)x->n * rows;
    for (size_t i = 0; i < n; i++) f->y[i] = NAN;
    tn_host_rows(&f->h, w, x, f->y + row0, rows, row0, row1, 0);
    for (int64_t t = 0; t < x->n; t++)
        for (int64_t r = 0; r < rows; r++) {
            const float got = f->y[t * rows + r], want = f->want[t * rows + r];
            const bool right = r < row0 || r >= row1 ? isnan(got) : memcmp(&got, &want, 4) == 0;
            if (right) continue;
            FAIL("%s, %d tokens, rows %d to %d: row %d is %g, want %g", tn_type_get(w->type)->name,
                 (int)x->n, (int)row0, (int)row1, (int)r, (double)got, (double)want);
            return;
        }
}

static void check_type(fixture *f, uint32_t type, int64_t n, uint64_t *seed)
{
    guarded mem, mem_packed = {0};
    const tn_weight w = make_weight(&mem, type, rows, cols, FILL_RANDOM, 0, seed);
    const bool packs = n >= TN_MANY_TOKENS || f->m.later;
    const tn_layout layout = packs ? tn_engine_packed(&f->e) : TN_LAYOUT_ROWS;
    const tn_weight v = layout ? make_packed(&mem_packed, &f->e.kernels, layout, &w) : w;
    test_acts a = make_acts(n, cols, ACT_RANDOM, seed);
    f->e.kernels.matmul[layout][type](&v, &a.x, f->want, rows, 0, rows, f->at);
    check_range(f, &w, &a.x, 0, rows);
    check_range(f, &w, &a.x, 128, rows);
    check_range(f, &w, &a.x, 256, rows);
    check_range(f, &w, &a.x, 0, 128);
    free_acts(&a);
    if (mem_packed.map) guarded_free(&mem_packed);
    guarded_free(&mem);
}

TEST(mapped_rows_give_the_bits_of_loaded_ones)
{
    static const unsigned levels[] = {TN_ISA_SCALAR, TN_ISA_AVX2, ~0u};
    static const int64_t tokens[] = {1, TN_MANY_TOKENS - 1, TN_MANY_TOKENS, most_tokens};
    static fixture f;
    uint64_t seed = 3;
    for (size_t l = 0; l < 2 * sizeof levels / sizeof *levels; l++) {
        set_up(&f, levels[l / 2]);
        f.m.later = l % 2 ? (void *)&f : NULL;
        for (uint32_t type = 0; type < TN_TYPE_COUNT; type++)
            for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
                if (f.e.kernels.repack[TN_LAYOUT_R8][type]) check_type(&f, type, tokens[i], &seed);
        tear_down(&f);
    }
}

/* Columns of wider rows: a split ffn_down on the host. */
TEST(rows_that_lie_apart_are_left_as_they_are)
{
    static fixture f;
    guarded mem;
    uint64_t seed = 4;
    set_up(&f, ~0u);
    tn_weight w = make_weight(&mem, TN_TYPE_Q8_0, rows, cols, FILL_RANDOM, 0, &seed);
    test_acts a = make_acts(most_tokens, cols / 2, ACT_RANDOM, &seed);
    w.data = (const char *)w.data + w.row_bytes / 2;
    w.cols /= 2;
    f.e.kernels.matmul[TN_LAYOUT_ROWS][w.type](&w, &a.x, f.want, rows, 0, rows, f.at);
    check_range(&f, &w, &a.x, 0, rows);
    free_acts(&a);
    guarded_free(&mem);
    tear_down(&f);
}

/* Two vectors a token: the sum of the products with both, in pieces of 64 rows, or of all with one
 * token. */
static void check_parts(fixture *f, uint32_t type, int64_t n, uint64_t *seed)
{
    static float sums[128 * most_tokens], y[2 * most_tokens * rows];
    float *list = sums;
    guarded mem;
    const tn_weight w = make_weight(&mem, type, rows, cols, FILL_RANDOM, 0, seed);
    test_acts a = make_acts(2 * n, cols, ACT_RANDOM, seed);
    tn_acts x = a.x;
    tn_host_rows(&f->h, &w, &a.x, y, rows, 0, rows, 0);
    x.n = n;
    for (int64_t t = 0; t < n; t++)
        for (int64_t r = 0; r < rows; r++)
            f->want[t * rows + r] = y[2 * t * rows + r] + y[(2 * t + 1) * rows + r];
    f->h.parts = 2;
    f->h.part_sums = &list;
    f->h.part_floats = 128 * n;
    check_range(f, &w, &x, 0, rows);
    check_range(f, &w, &x, 128, 160);
    f->h.parts = 1;
    free_acts(&a);
    guarded_free(&mem);
}

TEST(products_with_both_parts_are_added_up)
{
    static const uint32_t types[] = {TN_TYPE_Q4_1, TN_TYPE_Q4_K, TN_TYPE_Q8_0};
    static fixture f;
    uint64_t seed = 5;
    set_up(&f, ~0u);
    for (size_t i = 0; i < 3; i++) {
        check_parts(&f, types[i], 1, &seed);
        check_parts(&f, types[i], TN_MANY_TOKENS / 2, &seed);
        check_parts(&f, types[i], most_tokens, &seed);
    }
    tear_down(&f);
}

TEST_MAIN
