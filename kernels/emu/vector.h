/* CUDA's vector types and dim3. */
#ifndef TN_EMU_VECTOR_H
#define TN_EMU_VECTOR_H

#define TN_EMU_VECTOR(type, name, align2, align4)                                                  \
    struct __attribute__((aligned(align2))) name##2                                                \
    {                                                                                              \
        type x, y;                                                                                 \
    };                                                                                             \
    struct name##3                                                                                 \
    {                                                                                              \
        type x, y, z;                                                                              \
    };                                                                                             \
    struct __attribute__((aligned(align4))) name##4                                                \
    {                                                                                              \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    inline name##2 make_##name##2(type x, type y)                                                  \
    {                                                                                              \
        return {x, y};                                                                             \
    }                                                                                              \
    inline name##3 make_##name##3(type x, type y, type z)                                          \
    {                                                                                              \
        return {x, y, z};                                                                          \
    }                                                                                              \
    inline name##4 make_##name##4(type x, type y, type z, type w)                                  \
    {                                                                                              \
        return {x, y, z, w};                                                                       \
    }
TN_EMU_VECTOR(float, float, 8, 16)
TN_EMU_VECTOR(int, int, 8, 16)
TN_EMU_VECTOR(unsigned, uint, 8, 16)
TN_EMU_VECTOR(signed char, char, 2, 4)
TN_EMU_VECTOR(unsigned char, uchar, 2, 4)
TN_EMU_VECTOR(short, short, 4, 8)
TN_EMU_VECTOR(unsigned short, ushort, 4, 8)
TN_EMU_VECTOR(long long, longlong, 16, 16)
TN_EMU_VECTOR(unsigned long long, ulonglong, 16, 16)
TN_EMU_VECTOR(double, double, 16, 16)
#undef TN_EMU_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#endif
