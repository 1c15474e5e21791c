/* What the last lane to arrive at a collective computes for the whole warp, and delayed copies. */
#include "internal.h"

#include <vector>

namespace emu
{

static void need_full(uint32_t mask, const char *what)
{
    if (mask != FULL_WARP) fail("%s needs a full warp", what);
}

void shuffle_done(warp &w, uint32_t mask)
{
    for (uint32_t m = mask; m; m &= m - 1) {
        const thread &t = w.lane(__builtin_ctz(m));
        shuffle_arg *s = (shuffle_arg *)t.arg;
        if (!(mask >> s->source & 1))
            fail("shuffle at %s:%d reads lane %d, which does not take part (mask %08x)", t.at.file,
                 t.at.line, s->source, mask);
        s->result = ((shuffle_arg *)w.lane(s->source).arg)->value;
    }
}

void vote_done(warp &w, uint32_t mask)
{
    uint32_t ballot = 0;
    for (uint32_t m = mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        if (((vote_arg *)w.lane(l).arg)->predicate) ballot |= 1u << l;
    }
    for (uint32_t m = mask; m; m &= m - 1)
        ((vote_arg *)w.lane(__builtin_ctz(m)).arg)->ballot = ballot;
}

/* The xor tree of the shuffles that stand for it on a GPU, so bit for bit the same. */
template <class F> static void reduce_tree(warp &w, F combine)
{
    float v[32], next[32];
    int width = ((reduce_arg *)w.lane(0).arg)->width;
    for (int l = 0; l < 32; l++)
        v[l] = ((reduce_arg *)w.lane(l).arg)->v;
    for (int m = width / 2; m; m >>= 1) {
        for (int l = 0; l < 32; l++)
            next[l] = combine(v[l], v[l ^ m]);
        memcpy(v, next, sizeof v);
    }
    for (int l = 0; l < 32; l++)
        ((reduce_arg *)w.lane(l).arg)->v = v[l];
}
void sum_done(warp &w, uint32_t mask)
{
    need_full(mask, "warp_sum");
    reduce_tree(w, [](float a, float b) { return a + b; });
}
void max_done(warp &w, uint32_t mask)
{
    need_full(mask, "warp_max");
    reduce_tree(w, [](float a, float b) { return fmaxf(a, b); });
}
void min_done(warp &w, uint32_t mask)
{
    need_full(mask, "warp_min");
    reduce_tree(w, [](float a, float b) { return fminf(a, b); });
}
void sum_int_done(warp &w, uint32_t mask)
{
    need_full(mask, "warp_sum");
    unsigned sum = 0;
    for (int l = 0; l < 32; l++)
        sum += (unsigned)*(int *)w.lane(l).arg;
    for (int l = 0; l < 32; l++)
        *(int *)w.lane(l).arg = (int)sum;
}

/* ---- matrix fragments, laid out as in cuda/prim.h -------------------------------------------- */

void mma_s8_done(warp &w, uint32_t mask)
{
    static int8_t a[16][16], b[16][8];
    need_full(mask, "mma_m16n8k16_s8");
    for (int l = 0; l < 32; l++) {
        const mma_s8_arg *m = (mma_s8_arg *)w.lane(l).arg;
        for (int e = 0; e < 4; e++) {
            for (int i = 0; i < 2; i++)
                a[l / 4 + i * 8][l % 4 * 4 + e] = (int8_t)((unsigned)m->a[i] >> 8 * e);
            b[l % 4 * 4 + e][l / 4] = (int8_t)((unsigned)m->b[0] >> 8 * e);
        }
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + i / 2 * 8, col = l % 4 * 2 + i % 2;
            int *d = &((mma_s8_arg *)w.lane(l).arg)->d[i], sum = *d;
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[k][col];
            *d = sum;
        }
}
void mma_s8_small_done(warp &w, uint32_t mask)
{
    static int8_t a[8][16], b[16][8];
    need_full(mask, "mma_m8n8k16_s8");
    for (int l = 0; l < 32; l++) {
        const mma_s8_arg *m = (mma_s8_arg *)w.lane(l).arg;
        for (int e = 0; e < 4; e++) {
            a[l / 4][l % 4 * 4 + e] = (int8_t)((unsigned)m->a[0] >> 8 * e);
            b[l % 4 * 4 + e][l / 4] = (int8_t)((unsigned)m->b[0] >> 8 * e);
        }
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 2; i++) {
            int *d = &((mma_s8_arg *)w.lane(l).arg)->d[i], sum = *d;
            for (int k = 0; k < 16; k++)
                sum += a[l / 4][k] * b[k][l % 4 * 2 + i];
            *d = sum;
        }
}

/* K columns, 16 or 8 of them. */
template <int K> static void mma_16_done(warp &w)
{
    static float a[16][K], b[K][8];
    for (int l = 0; l < 32; l++) {
        const mma_16_arg *m = (mma_16_arg *)w.lane(l).arg;
        int g = l / 4, q = l % 4;
        for (int i = 0; i < K / 4; i++)
            for (int e = 0; e < 2; e++)
                a[g + i % 2 * 8][2 * q + e + i / 2 * 8] =
                    __half2float(half{(uint16_t)(m->a[i] >> 16 * e)});
        for (int i = 0; i < K / 8; i++)
            for (int e = 0; e < 2; e++)
                b[2 * q + e + 8 * i][g] = __half2float(half{(uint16_t)(m->b[i] >> 16 * e)});
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + i / 2 * 8, col = l % 4 * 2 + i % 2;
            float sum = ((mma_16_arg *)w.lane(l).arg)->d[i];
            for (int k = 0; k < K; k++)
                sum += a[row][k] * b[k][col];
            ((mma_16_arg *)w.lane(l).arg)->d[i] = sum;
        }
}
void mma_f16_done(warp &w, uint32_t mask)
{
    need_full(mask, "mma_m16n8k16_f16");
    mma_16_done<16>(w);
}
void mma_f16_half_done(warp &w, uint32_t mask)
{
    need_full(mask, "mma_m16n8k8_f16");
    mma_16_done<8>(w);
}
void ldmatrix_done(warp &w, uint32_t mask)
{
    need_full(mask, "ldmatrix");
    const void *rows[32];
    for (int l = 0; l < 32; l++) {
        rows[l] = ((ldmatrix_arg *)w.lane(l).arg)->row;
        if ((uintptr_t)rows[l] % 16) fail("ldmatrix: lane %d's row is not 16-byte aligned", l);
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 32; i++) /* no memcpy: the thread sanitizer would see it */
            ((ldmatrix_arg *)w.lane(l).arg)->rows[i] = rows[i];
}

/* ---- asynchronous copies: done as late as a kernel allows ------------------------------------ */

static const int MAX_COPIES = 256; /* of one thread at one time */
struct copies {
    int n, group; /* waiting ones; the group that is being filled */
    later list[MAX_COPIES], due[MAX_COPIES];
};
static std::vector<copies> waiting_copies;
static bool any_copies;

void copies_reset(int n_threads)
{
    if ((int)waiting_copies.size() < n_threads) waiting_copies.resize((size_t)n_threads);
    if (!any_copies) return;
    for (copies &c : waiting_copies)
        c.n = c.group = 0;
    any_copies = false;
}

void copies_check(int thread)
{
    if (any_copies && waiting_copies[thread].n)
        fail("the thread ends with %d copies of cp_async that it never waited for",
             waiting_copies[thread].n);
}

void copy_later(void *shared, const void *device, bool valid)
{
    copies &c = waiting_copies[thread_index(current)];
    any_copies = true;
    if ((uintptr_t)shared % 16 || (uintptr_t)device % 16)
        fail("cp_async: an address is not 16-byte aligned");
    if (c.n == MAX_COPIES) fail("cp_async: more than %d copies are waiting", MAX_COPIES);
    c.list[c.n++] = {shared, device, c.group, valid};
}

void copies_commit()
{
    any_copies = true;
    waiting_copies[thread_index(current)].group++;
}

const later *copies_due(int newest, int *n)
{
    copies &c = waiting_copies[thread_index(current)];
    int due = 0;
    /* No memcpy, no memmove: the thread sanitizer sees those, and blocks are not ordered. */
    for (; due < c.n && c.list[due].group < c.group - newest; due++)
        c.due[due] = c.list[due];
    for (int i = due; i < c.n; i++)
        c.list[i - due] = c.list[i];
    c.n -= due;
    *n = due;
    return c.due;
}

} // namespace emu
