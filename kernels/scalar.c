/* Products with row-major weights and their dequantisation: obvious, never tuned. Every other level
 * is compared with these.
 *
 * All quantised types reduce to one form: 32 weights are 32 small integers q with a scale and an
 * offset per half, value = a[h] * q - b[h]. What differs per type is how a block is unpacked. */
#include "f16.h"
#include "kernels.h"

#include "../gguf/blocks.h"

typedef struct unpacked {
    int8_t q[32];
    float a[2], b[2];
} unpacked;

/* Unpacks the 32 weights from element 32 * i on of the block (or super-block) at `block`. */
typedef void (*unpack_fn)(unpacked *u, const void *block, int i);

/* ---- small blocks ---------------------------------------------------------------------------- */

static void set_scale(unpacked *u, float a, float b)
{
    u->a[0] = u->a[1] = a;
    u->b[0] = u->b[1] = b;
}

static void nibbles(int8_t q[32], const uint8_t qs[16], int offset)
{
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((qs[j] & 15) - offset);
        q[j + 16] = (int8_t)((qs[j] >> 4) - offset);
    }
}

static void add_fifth_bits(int8_t q[32], const uint8_t qh[4])
{
    for (int j = 0; j < 32; j++)
        q[j] = (int8_t)(q[j] + ((qh[j / 8] >> (j % 8) & 1) << 4));
}

static void unpack_q4_0(unpacked *u, const void *block, int i)
{
    tn_block_q4_0 b;
    memcpy(&b, block, sizeof b);
    (void)i;
    nibbles(u->q, b.qs, 8);
    set_scale(u, tn_f16_to_f32(b.d), 0);
}

static void unpack_q4_1(unpacked *u, const void *block, int i)
{
    tn_block_q4_1 b;
    memcpy(&b, block, sizeof b);
    (void)i;
    nibbles(u->q, b.qs, 0);
    set_scale(u, tn_f16_to_f32(b.d), -tn_f16_to_f32(b.m));
}

static void unpack_q5_0(unpacked *u, const void *block, int i)
{
    tn_block_q5_0 b;
    memcpy(&b, block, sizeof b);
    (void)i;
    nibbles(u->q, b.qs, 16);
    add_fifth_bits(u->q, b.qh);
    set_scale(u, tn_f16_to_f32(b.d), 0);
}

static void unpack_q5_1(unpacked *u, const void *block, int i)
{
    tn_block_q5_1 b;
    memcpy(&b, block, sizeof b);
    (void)i;
    nibbles(u->q, b.qs, 0);
    add_fifth_bits(u->q, b.qh);
    set_scale(u, tn_f16_to_f32(b.d), -tn_f16_to_f32(b.m));
}

static void unpack_q8_0(unpacked *u, const void *block, int i)
{
    tn_block_q8_0 b;
    memcpy(&b, block, sizeof b);
    (void)i;
    memcpy(u->q, b.qs, sizeof u->q);
    set_scale(u, tn_f16_to_f32(b.d), 0);
}

/* ---- super-blocks ---------------------------------------------------------------------------- */

/* Two bits per weight as Q2_K and Q3_K store them. */
static void two_bits(int8_t q[32], const uint8_t qs[64], int i)
{
    for (int l = 0; l < 32; l++)
        q[l] = (int8_t)(qs[32 * (i / 4) + l] >> (2 * (i % 4)) & 3);
}

static void unpack_q2_k(unpacked *u, const void *block, int i)
{
    tn_block_q2_k b;
    memcpy(&b, block, sizeof b);
    two_bits(u->q, b.qs, i);
    for (int h = 0; h < 2; h++) {
        uint8_t sc = b.scales[2 * i + h];
        u->a[h] = tn_f16_to_f32(b.d) * (float)(sc & 15);
        u->b[h] = tn_f16_to_f32(b.dmin) * (float)(sc >> 4);
    }
}

static void unpack_q3_k(unpacked *u, const void *block, int i)
{
    tn_block_q3_k b;
    memcpy(&b, block, sizeof b);
    two_bits(u->q, b.qs, i);
    for (int l = 0; l < 32; l++)
        u->q[l] = (int8_t)(u->q[l] - (b.hmask[l] >> i & 1 ? 0 : 4));
    for (int h = 0; h < 2; h++) {
        int s = 2 * i + h;
        int low = b.scales[s % 8] >> (4 * (s / 8)) & 15;
        int high = b.scales[8 + s % 4] >> (2 * (s / 4)) & 3;
        u->a[h] = tn_f16_to_f32(b.d) * (float)((low | high << 4) - 32);
        u->b[h] = 0;
    }
}

/* The 6-bit scale and minimum of 32 weights as Q4_K and Q5_K store them. */
static void scale_min(const uint8_t s[12], int i, int *scale, int *min)
{
    if (i < 4) {
        *scale = s[i] & 63;
        *min = s[4 + i] & 63;
    } else {
        *scale = (s[4 + i] & 15) | (s[i - 4] >> 6) << 4;
        *min = s[4 + i] >> 4 | (s[i] >> 6) << 4;
    }
}

static void scale_45(unpacked *u, uint16_t d, uint16_t dmin, const uint8_t scales[12], int i)
{
    int scale, min;
    scale_min(scales, i, &scale, &min);
    set_scale(u, tn_f16_to_f32(d) * (float)scale, tn_f16_to_f32(dmin) * (float)min);
}

static void unpack_q4_k(unpacked *u, const void *block, int i)
{
    tn_block_q4_k b;
    memcpy(&b, block, sizeof b);
    for (int l = 0; l < 32; l++)
        u->q[l] = (int8_t)(b.qs[32 * (i / 2) + l] >> (4 * (i % 2)) & 15);
    scale_45(u, b.d, b.dmin, b.scales, i);
}

static void unpack_q5_k(unpacked *u, const void *block, int i)
{
    tn_block_q5_k b;
    memcpy(&b, block, sizeof b);
    for (int l = 0; l < 32; l++)
        u->q[l] = (int8_t)((b.qs[32 * (i / 2) + l] >> (4 * (i % 2)) & 15) |
                           (b.qh[l] >> i & 1) << 4);
    scale_45(u, b.d, b.dmin, b.scales, i);
}

static void unpack_q6_k(unpacked *u, const void *block, int i)
{
    tn_block_q6_k b;
    memcpy(&b, block, sizeof b);
    const int n = i / 4, j = i % 4;
    for (int l = 0; l < 32; l++) {
        int low = b.ql[64 * n + 32 * (j % 2) + l] >> (4 * (j / 2)) & 15;
        int high = b.qh[32 * n + l] >> (2 * j) & 3;
        u->q[l] = (int8_t)((low | high << 4) - 32);
    }
    for (int h = 0; h < 2; h++) {
        u->a[h] = tn_f16_to_f32(b.d) * (float)b.scales[2 * i + h];
        u->b[h] = 0;
    }
}

/* ---- quantised weights ----------------------------------------------------------------------- */

static const unpack_fn unpack_of[TN_TYPE_COUNT] = {
    [TN_TYPE_Q4_0] = unpack_q4_0, [TN_TYPE_Q4_1] = unpack_q4_1, [TN_TYPE_Q5_0] = unpack_q5_0,
    [TN_TYPE_Q5_1] = unpack_q5_1, [TN_TYPE_Q8_0] = unpack_q8_0, [TN_TYPE_Q2_K] = unpack_q2_k,
    [TN_TYPE_Q3_K] = unpack_q3_k, [TN_TYPE_Q4_K] = unpack_q4_k, [TN_TYPE_Q5_K] = unpack_q5_k,
    [TN_TYPE_Q6_K] = unpack_q6_k,
};

static const uint8_t *row_at(const tn_weight *w, int64_t row)
{
    return (const uint8_t *)w->data + (size_t)row * w->row_bytes;
}

/* Weights 32 * k ... of the row at `row`. */
static void unpack(unpacked *u, const tn_weight *w, const uint8_t *row, int64_t k)
{
    const tn_type_info *t = tn_type_get(w->type);
    const int64_t per_block = t->block / 32;
    unpack_of[w->type](u, row + (size_t)(k / per_block) * t->bytes, (int)(k % per_block));
}

static void dequantize_quant(const tn_weight *w, int64_t row, float *out)
{
    unpacked u;
    for (int64_t k = 0; k < w->cols / 32; k++) {
        unpack(&u, w, row_at(w, row), k);
        for (int j = 0; j < 32; j++)
            out[32 * k + j] = u.a[j / 16] * (float)u.q[j] - u.b[j / 16];
    }
}

/* Sum of 32 products: integers per half, then the scales. */
static double dot_block(const unpacked *u, const tn_q8 *x)
{
    double sum = 0;
    for (int h = 0; h < 2; h++) {
        int32_t s = 0;
        for (int j = 16 * h; j < 16 * h + 16; j++) s += u->q[j] * x->q[j];
        sum += (double)u->a[h] * x->d * (s * x->m[h]) - (double)u->b[h] * x->s[h];
    }
    return sum;
}

static void matmul_quant(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                         int64_t row0, int64_t row1, void *scratch)
{
    (void)scratch;
    const int64_t n_blocks = x->cols / 32;
    unpacked u;
    for (int64_t r = row0; r < row1; r++)
        for (int64_t t = 0; t < x->n; t++) {
            double sum = 0;
            for (int64_t k = 0; k < n_blocks; k++) {
                unpack(&u, w, row_at(w, r), k);
                sum += dot_block(&u, &x->q[t * n_blocks + k]);
            }
            y[t * y_stride + r] = (float)sum;
        }
}

/* ---- unquantised weights --------------------------------------------------------------------- */

static float element(const tn_weight *w, const uint8_t *row, int64_t c)
{
    float f;
    uint16_t h;
    if (w->type == TN_TYPE_F32) {
        memcpy(&f, row + 4 * (size_t)c, sizeof f);
        return f;
    }
    memcpy(&h, row + 2 * (size_t)c, sizeof h);
    return w->type == TN_TYPE_F16 ? tn_f16_to_f32(h) : tn_bf16_to_f32(h);
}

static void dequantize_float(const tn_weight *w, int64_t row, float *out)
{
    for (int64_t c = 0; c < w->cols; c++) out[c] = element(w, row_at(w, row), c);
}

static void matmul_float(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                         int64_t row0, int64_t row1, void *scratch)
{
    (void)scratch;
    for (int64_t r = row0; r < row1; r++)
        for (int64_t t = 0; t < x->n; t++) {
            double sum = 0;
            for (int64_t c = 0; c < w->cols; c++)
                sum += (double)element(w, row_at(w, r), c) * x->f[t * x->f_stride + c];
            y[t * y_stride + r] = (float)sum;
        }
}

void tn_kernels_scalar(tn_kernels *k)
{
    for (uint32_t id = 0; id < TN_TYPE_COUNT; id++) {
        if (!tn_type_get(id)->matmul) continue;
        const bool quant = unpack_of[id] != NULL;
        k->matmul[TN_LAYOUT_ROWS][id] = quant ? matmul_quant : matmul_float;
        k->dequantize[TN_LAYOUT_ROWS][id] = quant ? dequantize_quant : dequantize_float;
    }
}
