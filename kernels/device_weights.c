/* Sizes and views of what lies on the device: host arithmetic, built with and without a device. */
#include "device_ops.h"

/* Bytes of 256 columns in each plane; kernels/cuda/weights.h says what they hold. */
static const uint16_t plane_bytes[TN_TYPE_COUNT][TN_DPLANES] = {
    [TN_TYPE_F32] = {1024},
    [TN_TYPE_F16] = {512},
    [TN_TYPE_BF16] = {512},
    [TN_TYPE_Q4_0] = {128, 0, 0, 16},
    [TN_TYPE_Q4_1] = {128, 0, 0, 32},
    [TN_TYPE_Q5_0] = {128, 32, 0, 16},
    [TN_TYPE_Q5_1] = {128, 32, 0, 32},
    [TN_TYPE_Q8_0] = {256, 0, 0, 16},
    [TN_TYPE_Q2_K] = {64, 0, 16, 4},
    [TN_TYPE_Q3_K] = {64, 32, 12, 2},
    [TN_TYPE_Q4_K] = {128, 0, 12, 4},
    [TN_TYPE_Q5_K] = {128, 32, 12, 4},
    [TN_TYPE_Q6_K] = {128, 64, 16, 2},
};

enum { row_align = 16, plane_align = 256 };

static bool known(uint32_t type, int64_t rows, int64_t cols)
{
    return type < TN_TYPE_COUNT && plane_bytes[type][0] && rows > 0 && cols > 0 &&
           cols % tn_type_get(type)->block == 0 && cols < INT64_MAX / 2048;
}

static int64_t row_stride(uint32_t type, int plane, int64_t cols)
{
    const int64_t bytes = cols * plane_bytes[type][plane] / 256;
    return (bytes + row_align - 1) / row_align * row_align;
}

/* Offset behind a plane that starts at `at`; false on overflow. */
static bool plane_end(size_t at, int64_t rows, int64_t stride, size_t *end)
{
    size_t bytes;
    return tn_mul_size((size_t)rows, (size_t)stride, &bytes) && tn_add_size(at, bytes, end) &&
           tn_add_size(*end, plane_align - 1, end) &&
           (*end = *end / plane_align * plane_align, true);
}

size_t tn_dweight_bytes(uint32_t type, int64_t rows, int64_t cols)
{
    size_t at = 0;
    if (!known(type, rows, cols)) return 0;
    for (int p = 0; p < TN_DPLANES; p++)
        if (!plane_end(at, rows, row_stride(type, p, cols), &at)) return 0;
    return at;
}

tn_dweight tn_dweight_at(void *base, uint32_t type, int64_t rows, int64_t cols)
{
    tn_dweight w = {.type = type, .rows = rows, .cols = cols};
    size_t at = 0;
    for (int p = 0; p < TN_DPLANES; p++) {
        w.stride[p] = row_stride(type, p, cols);
        if (w.stride[p]) w.plane[p] = (uint8_t *)base + at;
        plane_end(at, rows, w.stride[p], &at);
    }
    return w;
}

tn_dweight tn_dweight_rows(const tn_dweight *w, int64_t row0, int64_t n)
{
    tn_dweight v = *w;
    v.rows = n;
    for (int p = 0; p < TN_DPLANES; p++)
        if (v.plane[p]) v.plane[p] += row0 * v.stride[p];
    return v;
}

tn_dweight tn_dweight_cols(const tn_dweight *w, int64_t col0, int64_t n)
{
    tn_dweight v = *w;
    v.cols = n;
    for (int p = 0; p < TN_DPLANES; p++)
        if (v.plane[p]) v.plane[p] += col0 * plane_bytes[w->type][p] / 256;
    return v;
}

size_t tn_dkv_bytes(uint32_t type, int32_t page_size, int32_t n_head_kv, int32_t dim)
{
    const size_t n = (size_t)page_size * (size_t)n_head_kv * (size_t)dim;
    switch (type) {
    case TN_TYPE_F32: return 4 * n;
    case TN_TYPE_F16: return 2 * n;
    case TN_TYPE_Q8_0: return n + n / 16;
    default: return 0;
    }
}
