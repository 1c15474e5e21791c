/* nvcuda::wmma for 16-bit and float fragments. Which element a lane holds is scrambled on purpose:
 * only what the documentation promises works. */
#ifndef TN_EMU_WMMA_H
#define TN_EMU_WMMA_H

#include "half.h"
#include "thread.h"

#include <type_traits>

namespace nvcuda
{
namespace wmma
{

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class E, class Layout = void> struct fragment {
    static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M;
    static constexpr int cols = std::is_same<Use, matrix_a>::value ? K : N;
    static constexpr int num_elements = rows * cols / 32;
    E x[num_elements];
};

/* Element i of `lane`: for every i a permutation of the lanes. */
inline int element(int lane, int i)
{
    return (lane * 11 + i * 5) % 32 + i * 32;
}
inline float to_float(half h)
{
    return __half2float(h);
}
inline float to_float(__nv_bfloat16 h)
{
    return __bfloat162float(h);
}
inline float to_float(float f)
{
    return f;
}

template <class F, class V> inline void fill_fragment(F &f, V v)
{
    for (auto &e : f.x)
        e = v;
}

template <class P> TN_EMU_UNSEEN inline void check_address(const P *p, unsigned stride)
{
    if ((uintptr_t)p % 32) emu::fail("wmma: the pointer is not 32-byte aligned");
    if (stride * sizeof(P) % 16) emu::fail("wmma: rows are not a multiple of 16 bytes apart");
}

template <class U, int M, int N, int K, class E, class L, class P>
inline void load_matrix_sync(fragment<U, M, N, K, E, L> &f, const P *p, unsigned stride,
                             TN_EMU_SITE)
{
    typedef fragment<U, M, N, K, E, L> F;
    check_address(p, stride);
    for (int i = 0; i < F::num_elements; i++) {
        int e = element(emu::lane(), i), r = e / F::cols, c = e % F::cols;
        f.x[i] = std::is_same<L, col_major>::value ? p[c * stride + r] : p[r * stride + c];
    }
    emu::collective(emu::FULL_WARP, {file, line}, nullptr, nullptr, false);
}

template <int M, int N, int K, class E>
inline void store_matrix_sync(E *p, const fragment<accumulator, M, N, K, E> &f, unsigned stride,
                              layout_t layout, TN_EMU_SITE)
{
    typedef fragment<accumulator, M, N, K, E> F;
    check_address(p, stride);
    for (int i = 0; i < F::num_elements; i++) {
        int e = element(emu::lane(), i), r = e / F::cols, c = e % F::cols;
        p[layout == mem_col_major ? c * stride + r : r * stride + c] = f.x[i];
    }
    emu::collective(emu::FULL_WARP, {file, line}, nullptr, nullptr, false);
}

template <class D, class A, class B, class C> struct mma_arg {
    D *d;
    const A *a;
    const B *b;
    const C *c;
};

template <class D, class A, class B, class C> TN_EMU_UNSEEN void mma_done(emu::warp &w, uint32_t)
{
    static float a[A::rows * A::cols], b[B::rows * B::cols], c[C::rows * C::cols];
    typedef mma_arg<D, A, B, C> arg;
    for (int l = 0; l < 32; l++) {
        const arg *m = (const arg *)w.lane(l).arg;
        for (int i = 0; i < A::num_elements; i++)
            a[element(l, i)] = to_float(m->a->x[i]);
        for (int i = 0; i < B::num_elements; i++)
            b[element(l, i)] = to_float(m->b->x[i]);
        for (int i = 0; i < C::num_elements; i++)
            c[element(l, i)] = to_float(m->c->x[i]);
    }
    for (int m = 0; m < A::rows; m++)
        for (int k = 0; k < A::cols; k++)
            for (int n = 0; n < B::cols; n++)
                c[m * B::cols + n] += a[m * A::cols + k] * b[k * B::cols + n];
    for (int l = 0; l < 32; l++) {
        const arg *m = (const arg *)w.lane(l).arg;
        for (int i = 0; i < D::num_elements; i++)
            m->d->x[i] = c[element(l, i)];
    }
}
template <class D, class A, class B, class C>
inline void mma_sync(D &d, const A &a, const B &b, const C &c, TN_EMU_SITE)
{
    mma_arg<D, A, B, C> arg = {&d, &a, &b, &c};
    emu::collective(emu::FULL_WARP, {file, line}, &arg, mma_done<D, A, B, C>, false);
}

} // namespace wmma
} // namespace nvcuda

#endif
