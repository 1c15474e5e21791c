/* Test matrices for the kernels: seeded weights and activations of every type, laid out so that
 * they end at an unreadable page. */
#ifndef TN_KERNEL_CASES_H
#define TN_KERNEL_CASES_H

#include "harness.h"

#include "../gguf/blocks.h"
#include "../kernels/f16.h"
#include "../kernels/kernels.h"
#include "../kernels/repack.h"

#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- memory that faults behind its end ------------------------------------------------------- */

typedef struct guarded {
    void *map;
    size_t map_bytes;
    uint8_t *data; /* `bytes` bytes; the byte behind them, plus at most `align` - 1, cannot be
                      read */
} guarded;

static inline guarded guarded_new(size_t bytes, size_t align)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE),
                 body = (bytes + align + page - 1) / page * page;
    guarded g = {NULL, body + page, NULL};
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect((char *)g.map + body, page, PROT_NONE) != 0) {
        perror("guarded memory");
        exit(2);
    }
    g.data = (uint8_t *)g.map + (body - bytes) / align * align;
    return g;
}

static inline void guarded_free(guarded *g)
{
    munmap(g->map, g->map_bytes);
    *g = (guarded){0};
}

/* ---- weights --------------------------------------------------------------------------------- */

typedef enum weight_fill {
    FILL_RANDOM,   /* any bits, scales of either sign and mixed sizes */
    FILL_ZERO,     /* all bytes 0x00 */
    FILL_ONES,     /* all bytes 0xff but for the float16 scales */
    FILL_0X80,     /* all bytes 0x80 but for the scales: -128 in Q8_0 and Q6_K's scales */
    FILL_TINY,     /* random bits, subnormal scales */
    FILL_COUNT
} weight_fill;

/* Offsets of the float16 scales of a block, -1 for none. */
static inline void scale_offsets(uint32_t type, int at[2])
{
    at[0] = 0;
    at[1] = -1;
    switch (type) {
    case TN_TYPE_Q4_1: at[1] = offsetof(tn_block_q4_1, m); break;
    case TN_TYPE_Q5_1: at[1] = offsetof(tn_block_q5_1, m); break;
    case TN_TYPE_Q4_K:
    case TN_TYPE_Q5_K: at[1] = offsetof(tn_block_q4_k, dmin); break;
    case TN_TYPE_Q2_K:
        at[0] = offsetof(tn_block_q2_k, d);
        at[1] = offsetof(tn_block_q2_k, dmin);
        break;
    case TN_TYPE_Q3_K: at[0] = offsetof(tn_block_q3_k, d); break;
    case TN_TYPE_Q6_K: at[0] = offsetof(tn_block_q6_k, d); break;
    default: break;
    }
}

static inline void put_u16(uint8_t *to, uint16_t v)
{
    memcpy(to, &v, sizeof v);
}

static inline uint16_t random_scale(weight_fill fill, uint64_t *seed)
{
    if (fill == FILL_ZERO) return 0;
    if (fill == FILL_TINY) return (uint16_t)(test_rand(seed) & 0x83ff);
    return tn_f32_to_f16(test_randf(seed) * (test_rand(seed) % 4 ? 0.02f : 0.5f));
}

/* Fills `n` blocks of a quantised type at `to`. */
static inline void fill_blocks(uint8_t *to, uint32_t type, size_t n, weight_fill fill,
                               uint64_t *seed)
{
    static const int constant[FILL_COUNT] = {-1, 0x00, 0xff, 0x80, -1};
    const size_t bytes = tn_type_get(type)->bytes;
    int at[2];
    scale_offsets(type, at);
    for (size_t i = 0; i < n; i++, to += bytes) {
        for (size_t j = 0; j < bytes; j++)
            to[j] = (uint8_t)(constant[fill] < 0 ? (int)(test_rand(seed) & 255) : constant[fill]);
        for (int s = 0; s < 2; s++)
            if (at[s] >= 0) put_u16(to + at[s], random_scale(fill, seed));
    }
}

/* Fills n unquantised weights. */
static inline void fill_floats(uint8_t *to, uint32_t type, size_t n, weight_fill fill,
                               uint64_t *seed)
{
    for (size_t i = 0; i < n; i++) {
        float f = test_randf(seed);
        if (fill == FILL_ZERO) f = 0;
        if (fill == FILL_ONES) f = -1.5f;
        if (fill == FILL_0X80) f = -0.0f;
        if (fill == FILL_TINY) f *= 1e-6f;
        uint16_t h = type == TN_TYPE_F16 ? tn_f32_to_f16(f) : tn_f32_to_bf16(f);
        if (type == TN_TYPE_F32) memcpy(to + 4 * i, &f, 4);
        else put_u16(to + 2 * i, h);
    }
}

static inline bool is_quantised(uint32_t type)
{
    return tn_type_get(type)->block > 1;
}

/* A row-major matrix that ends `before_end` bytes before an unreadable page. */
static inline tn_weight make_weight(guarded *mem, uint32_t type, int64_t rows, int64_t cols,
                                    weight_fill fill, size_t before_end, uint64_t *seed)
{
    tn_weight w = {.type = type, .layout = TN_LAYOUT_ROWS, .rows = rows, .cols = cols};
    if (!tn_type_row_bytes(type, (uint64_t)cols, &w.row_bytes)) abort();
    *mem = guarded_new((size_t)rows * w.row_bytes + before_end, 1);
    w.data = mem->data;
    const size_t n = (size_t)rows * (size_t)cols / tn_type_get(type)->block;
    if (is_quantised(type)) fill_blocks(mem->data, type, n, fill, seed);
    else fill_floats(mem->data, type, n, fill, seed);
    return w;
}

/* A copy of w with its offsets and minima zeroed: value = scale * q alone. */
static inline tn_weight without_offsets(guarded *mem, const tn_weight *w)
{
    tn_weight v = *w;
    int at[2] = {0, -1};
    if (is_quantised(w->type)) scale_offsets(w->type, at);
    *mem = guarded_new((size_t)w->rows * w->row_bytes, 1);
    memcpy(mem->data, w->data, (size_t)w->rows * w->row_bytes);
    const size_t block = tn_type_get(w->type)->bytes, n = (size_t)w->rows * w->row_bytes / block;
    for (size_t i = 0; i < n && at[1] >= 0; i++) put_u16(mem->data + i * block + at[1], 0);
    v.data = mem->data;
    return v;
}

/* The same weights in an interleaved layout, by the kernel table's repack. */
static inline tn_weight make_packed(guarded *mem, const tn_kernels *k, tn_layout layout,
                                    const tn_weight *rows)
{
    tn_weight w = *rows;
    const int64_t n = tn_layout_rows(layout), padded = (w.rows + n - 1) / n * n;
    *mem = guarded_new((size_t)padded * w.row_bytes, 64);
    for (int64_t r = 0; r < w.rows; r += n)
        k->repack[layout][w.type](mem->data + (size_t)r * w.row_bytes,
                                  (const uint8_t *)rows->data + (size_t)r * w.row_bytes,
                                  w.rows - r < n ? w.rows - r : n, w.cols);
    w.layout = layout;
    w.data = mem->data;
    return w;
}

/* A matrix in R8 slab-major, by the loader's own way of cutting groups. */
static inline tn_weight make_slabs(guarded *mem, const tn_weight *r8, int64_t slab)
{
    tn_weight w = *r8;
    w.slab = slab;
    w.slab_rows = (w.rows + 7) / 8 * 8;
    *mem = guarded_new((size_t)w.slab_rows * w.row_bytes, 64);
    memset(mem->data, 0xa5, (size_t)w.slab_rows * w.row_bytes);
    w.data = mem->data;
    for (int64_t r = 0; r < w.rows; r += 8)
        tn_group_to_slabs(&w, r, (const char *)r8->data + (size_t)r * w.row_bytes);
    return w;
}

/* The least columns of a slab: a whole block and whole steps of interleaved rows. */
static inline int64_t least_slab(uint32_t type)
{
    return tn_type_get(type)->block < 32 ? 32 : tn_type_get(type)->block;
}

/* ---- activations ----------------------------------------------------------------------------- */

typedef enum act_fill {
    ACT_RANDOM,
    ACT_EXTREME, /* all -127 and 127, half scales up to 127 */
    ACT_MAX,     /* all 127, half scales 127 */
    ACT_ZERO,
    ACT_COUNT,
    ACT_LARGE, /* random, scales near the ends of float32 */
    ACT_SMALL
} act_fill;

static inline void fill_q8(tn_q8 *x, act_fill fill, uint64_t *seed)
{
    const float unit = fill == ACT_LARGE ? 1e30f : fill == ACT_SMALL ? 2e-35f : 1e-3f;
    x->d = fill == ACT_ZERO ? 0 : (test_randf(seed) + 1.001f) * unit;
    for (int h = 0; h < 2; h++) {
        int sum = 0;
        x->m[h] = (int16_t)(fill == ACT_ZERO  ? 1
                            : fill == ACT_MAX ? 127
                                              : 1 + test_rand(seed) % 127);
        for (int j = 16 * h; j < 16 * h + 16; j++) {
            int q = (int)(test_rand(seed) % 255) - 127;
            if (fill == ACT_EXTREME) q = q < 0 ? -127 : 127;
            x->q[j] = (int8_t)(fill == ACT_MAX ? 127 : fill == ACT_ZERO ? 0 : q);
            sum += x->q[j];
        }
        x->s[h] = x->d * (float)(x->m[h] * sum);
    }
}

typedef struct test_acts {
    tn_acts x;
    guarded f, q;
} test_acts;

/* n vectors in both forms; the two are unrelated, a kernel reads only one of them. */
static inline test_acts make_acts(int64_t n, int64_t cols, act_fill fill, uint64_t *seed)
{
    test_acts a = {.x = {.n = n, .cols = cols, .f_stride = cols + 3}};
    const size_t n_f = (size_t)((n - 1) * a.x.f_stride + cols), n_q = (size_t)(n * (cols / 32));
    a.f = guarded_new(n_f * sizeof(float), sizeof(float));
    a.q = guarded_new(n_q * sizeof(tn_q8), 1);
    float *f = (float *)a.f.data;
    for (size_t i = 0; i < n_f; i++)
        f[i] = fill == ACT_ZERO ? 0 : test_randf(seed) * (fill == ACT_RANDOM ? 1 : 1e6f);
    for (size_t i = 0; i < n_q; i++) fill_q8(&((tn_q8 *)a.q.data)[i], fill, seed);
    a.x.f = f;
    a.x.q = (tn_q8 *)a.q.data;
    return a;
}

static inline void free_acts(test_acts *a)
{
    guarded_free(&a->f);
    guarded_free(&a->q);
}

/* Element c of vector t as a kernel for `type` sees it. */
static inline double act_value(const tn_acts *x, uint32_t type, int64_t t, int64_t c)
{
    if (!is_quantised(type)) return x->f[t * x->f_stride + c];
    const tn_q8 *b = &x->q[t * (x->cols / 32) + c / 32];
    return (double)b->d * b->m[c % 32 / 16] * b->q[c % 32];
}

#endif
