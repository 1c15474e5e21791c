/* Reading the interleaved layouts in plain C: what its bytes mean, dequantisation, and the scalar
 * products.
 */
#include "repack.h"

#include "f16.h"

#include <string.h>

static uint32_t dword(const uint8_t *p, int row)
{
    uint32_t v;
    memcpy(&v, p + 4 * row, sizeof v);
    return v;
}

static float half(const uint8_t *p, int row)
{
    uint16_t h;
    memcpy(&h, p + 2 * row, sizeof h);
    return tn_f16_to_f32(h);
}

/* `width` bits at `shift` of each byte of v, moved to bit `to`. */
static uint32_t bits(uint32_t v, int shift, int width, int to)
{
    return (v >> shift & 0x01010101u * ((1u << width) - 1)) << to;
}

/* A row's dwords of the eight quant vectors of a step. */
static void unpack(tn_group_shape s, const uint8_t *step, int row, uint32_t v[8])
{
    uint32_t a[8];
    for (int i = 0; i < s.bits; i++)
        a[i] = dword(step + 4 * s.rows * i, row);
    switch (s.bits) {
    case 2:
        for (int j = 0; j < 8; j++)
            v[j] = bits(a[j / 4], 2 * (j % 4), 2, 0);
        break;
    case 3:
        for (int j = 0; j < 6; j++)
            v[j] = bits(a[j / 2], 3 * (j % 2), 3, 0);
        v[6] = bits(a[0], 6, 2, 0) | bits(a[1], 7, 1, 2);
        v[7] = bits(a[2], 6, 2, 0) | bits(a[1], 6, 1, 2);
        break;
    case 4:
        for (int j = 0; j < 8; j++)
            v[j] = bits(a[j % 4], 4 * (j / 4), 4, 0);
        break;
    case 5:
        for (int j = 0; j < 5; j++)
            v[j] = bits(a[j], 0, 5, 0);
        v[5] = bits(a[0], 5, 3, 0) | bits(a[1], 6, 2, 3);
        v[6] = bits(a[2], 5, 3, 0) | bits(a[3], 6, 2, 3);
        v[7] = bits(a[4], 5, 3, 0) | bits(a[1], 5, 1, 3) | bits(a[3], 5, 1, 4);
        break;
    case 6:
        for (int j = 0; j < 8; j++) {
            const uint32_t *k = a + 3 * (j / 4);
            v[j] = j % 4 < 3 ? bits(k[j % 4], 0, 6, 0)
                             : bits(k[0], 6, 2, 4) | bits(k[1], 6, 2, 2) | bits(k[2], 6, 2, 0);
        }
        break;
    default: memcpy(v, a, sizeof a); break;
    }
}

/* Scale and minimum number i (of 8) of a Q4_K or Q5_K row, from its 12 packed bytes. */
static void scale_min(const uint8_t *s, int i, int *scale, int *min)
{
    *scale = i < 4 ? s[i] & 63 : (s[4 + i] & 15) | s[i - 4] >> 6 << 4;
    *min = i < 4 ? s[4 + i] & 63 : s[4 + i] >> 4 | s[i] >> 6 << 4;
}

/* Scale number i (of 16) of a Q3_K row, from its 12 packed bytes. */
static int scale_q3(const uint8_t *s, int i)
{
    return ((s[i % 8] >> 4 * (i / 8) & 15) | (s[8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32;
}

/* Scales of 32 columns of a K type; j is the step in the unit. */
static void read_scales(uint32_t type, tn_group_shape s, const uint8_t *unit, int j, int row,
                        tn_group_step *out)
{
    float d = half(unit, row), dmin = half(unit + 2 * s.rows, row);
    uint8_t b[16] = {0};
    for (int k = 0; k < (s.head - s.scales) / (4 * s.rows); k++) {
        uint32_t v = dword(unit + s.scales + 4 * s.rows * k, row);
        memcpy(b + 4 * k, &v, sizeof v);
    }
    for (int h = 0; h < 2; h++) {
        int i = 2 * j + h, scale, min;
        out->m[h] = 0;
        switch (type) {
        case TN_TYPE_Q2_K:
            out->d[h] = d * (float)(b[i] & 15);
            out->m[h] = dmin * (float)(b[i] >> 4);
            break;
        case TN_TYPE_Q3_K: out->d[h] = d * (float)scale_q3(b, i); break;
        case TN_TYPE_Q6_K: out->d[h] = d * (float)(int8_t)b[i]; break;
        default:
            scale_min(b, j, &scale, &min);
            out->d[h] = d * (float)scale;
            out->m[h] = dmin * (float)min;
            break;
        }
    }
}

/* Where column c is: the quant vector, and the byte in the row's dword. */
static int vector_of(int32_t rows, int c)
{
    return rows == 8 ? c % 16 / 2 : c / 4;
}
static int byte_of(int32_t rows, int c)
{
    return rows == 8 ? c / 16 * 2 + c % 2 : c % 4;
}

void tn_group_read(uint32_t type, int32_t rows, const void *group, int64_t step, int row,
                   tn_group_step *out)
{
    tn_group_shape s = tn_group_shape_of(type, rows);
    int64_t per_unit = s.cols / 32;
    const uint8_t *unit = (const uint8_t *)group + tn_unit_bytes(s) * (step / per_unit);
    int j = (int)(step % per_unit), offset = tn_quant_offset(type);
    uint32_t v[8];
    unpack(s, unit + s.head + tn_step_bytes(s) * j, row, v);
    for (int c = 0; c < 32; c++) {
        uint8_t q = (uint8_t)(v[vector_of(rows, c)] >> 8 * byte_of(rows, c));
        out->q[c] = (int16_t)(type == TN_TYPE_Q8_0 && rows == 8 ? (int8_t)q : q - offset);
    }
    if (s.cols == 256) {
        read_scales(type, s, unit, j, row, out);
        return;
    }
    bool has_min = type == TN_TYPE_Q4_1 || type == TN_TYPE_Q5_1;
    out->d[0] = out->d[1] = half(unit, row);
    out->m[0] = out->m[1] = has_min ? -half(unit + 2 * rows, row) : 0;
}

static void read_step(const tn_weight *w, int64_t row, int64_t step, tn_group_step *out)
{
    const int32_t rows = tn_layout_rows(w->layout);
    const int64_t per = tn_group_shape_of(w->type, rows).cols / 32, first = step / per * per;
    const tn_group_run run = tn_group_run_at(w->type, rows, w, first);
    tn_group_read(w->type, rows, run.at + row / rows * run.next, step - first, (int)(row % rows),
                  out);
}

void tn_group_to_slabs(const tn_weight *w, int64_t row, const void *group)
{
    const char *from = group;
    for (int64_t b = 0; b < w->cols / 32;) {
        const tn_group_run run = tn_group_run_at(w->type, 8, w, b);
        memcpy((char *)run.at + row / 8 * run.next, from, (size_t)run.next);
        from += run.next;
        b = run.end;
    }
}

static void dequantize(const tn_weight *w, int64_t row, float *out)
{
    for (int64_t b = 0; b < w->cols / 32; b++) {
        tn_group_step s;
        read_step(w, row, b, &s);
        for (int c = 0; c < 32; c++)
            out[32 * b + c] = s.d[c / 16] * (float)s.q[c] - s.m[c / 16];
    }
}

/* 32 columns of a row times an activation block. */
static double dot(const tn_group_step *s, const tn_q8 *a)
{
    double sum = 0;
    for (int h = 0; h < 2; h++) {
        int32_t i = 0;
        for (int c = 16 * h; c < 16 * h + 16; c++)
            i += s->q[c] * a->q[c];
        sum += (double)s->d[h] * a->d * (i * a->m[h]) - (double)s->m[h] * a->s[h];
    }
    return sum;
}

void tn_group_matmul(const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride, int64_t row0,
                     int64_t row1, void *scratch)
{
    (void)scratch;
    int64_t blocks = w->cols / 32;
    for (int64_t t = 0; t < x->n; t++)
        for (int64_t r = row0; r < row1; r++) {
            double sum = 0;
            for (int64_t b = 0; b < blocks; b++) {
                tn_group_step s;
                read_step(w, r, b, &s);
                sum += dot(&s, x->q + t * blocks + b);
            }
            y[t * y_stride + r] = (float)sum;
        }
}

void tn_kernels_repack(tn_kernels *k)
{
    k->packed = TN_LAYOUT_R8;
    for (int layout = TN_LAYOUT_R8; layout <= TN_LAYOUT_R16; layout++)
        for (uint32_t type = 0; type < TN_TYPE_COUNT; type++) {
            if (!tn_group_shape_of(type, 8).cols) continue;
            k->repack[layout][type] = tn_group_repack((tn_layout)layout, type);
            k->dequantize[layout][type] = dequantize;
            k->matmul[layout][type] = tn_group_matmul;
        }
}
