/* Rows of a product on the host, in one thread: which kernel they get. */
#include "exec_host.h"

#include <string.h>

int64_t tn_host_grain(int64_t n)
{
    return n < TN_MANY_TOKENS ? 32 : 128;
}

tn_weight tn_host_part(const tn_weight *w, int64_t row0, int64_t row1)
{
    tn_weight part = *w;
    part.rows = row1 - row0;
    if (w->slab)
        part.row0 += row0;
    else
        part.data = (const char *)w->data + (size_t)row0 * w->row_bytes;
    return part;
}

tn_weight tn_host_cols(const tn_weight *w, int64_t col0)
{
    tn_weight part = *w;
    const tn_type_info *t = tn_type_get(w->type);
    const int64_t rows = w->slab ? w->slab_rows : tn_layout_rows(w->layout);
    part.cols = w->cols - col0;
    part.data = (const char *)w->data + (size_t)(col0 / t->block * t->bytes * rows);
    return part;
}

/* Unquantised weights and many tokens. The pieces are the same whoever computes them, because
 * OpenBLAS promises no order of sums that is independent of the shape. */
static void blas_rows(tn_host *h, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                      int worker)
{
    const int64_t piece = tn_host_grain(x->n);
    const bool dense = w->type == TN_TYPE_F32 && w->row_bytes == (size_t)w->cols * sizeof(float);
    for (int64_t row = 0; row < w->rows; row += piece) {
        const int64_t n = w->rows - row < piece ? w->rows - row : piece;
        const float *rows = dense ? (const float *)w->data + row * w->cols : h->wide[worker];
        for (int64_t i = 0; !dense && i < n; i++)
            h->kern->dequantize[w->layout][w->type](w, row + i, h->wide[worker] + i * w->cols);
        tn_blas_matmul(h->blas, rows, n, w->cols, x->f, x->f_stride, x->n, y + row, y_stride);
    }
}

/* Those of a split ffn_down lie too far apart for being repacked. Rows that wait in a mapped file
 * are repacked for few tokens, too: whether they wait depends on the page cache,
 * and bits must not. */
tn_layout tn_host_layout(const tn_host *h, const tn_weight *w, int64_t n)
{
    const tn_layout best = tn_engine_packed(h->e);
    size_t bytes;
    const bool repack = h->repacked && (n >= TN_MANY_TOKENS || h->m->later) &&
                        w->layout == TN_LAYOUT_ROWS &&
                        tn_host_reads_q8(w) && h->kern->repack[best][w->type] &&
                        tn_type_row_bytes(w->type, (uint64_t)w->cols, &bytes) &&
                        bytes == w->row_bytes;
    return repack ? best : w->layout;
}

/* Quantised rows as they lie in a mapped file, and many tokens: repacking a piece of them once is
 * cheap, and the kernels of interleaved rows are fast and give the bits that
 * loaded weights give. */
static void repacked_rows(tn_host *h, const tn_weight *w, tn_layout layout, const tn_acts *x,
                          float *y, int64_t y_stride, int worker)
{
    const int64_t piece = tn_host_grain(x->n), group = tn_layout_rows(layout);
    for (int64_t row = 0; row < w->rows; row += piece) {
        tn_weight part = tn_host_part(w, row, row + piece < w->rows ? row + piece : w->rows);
        for (int64_t r = 0; r < part.rows; r += group)
            h->kern->repack[layout][w->type](
                (char *)h->repacked[worker] + (size_t)r * w->row_bytes,
                (const char *)part.data + (size_t)r * w->row_bytes,
                part.rows - r < group ? part.rows - r : group, w->cols);
        part.layout = layout;
        part.data = h->repacked[worker];
        h->kern->matmul[layout][w->type](&part, x, y + row, y_stride, 0, part.rows,
                                         h->e->scratch[worker]);
    }
}

/* All rows of w times the vectors of x, whatever they are. */
static void all_rows(tn_host *h, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                     int worker)
{
    const tn_layout layout = tn_host_layout(h, w, x->n);
    if (layout != w->layout)
        repacked_rows(h, w, layout, x, y, y_stride, worker);
    else
        h->kern->matmul[layout][w->type](w, x, y, y_stride, 0, w->rows, h->e->scratch[worker]);
}

/* Activations in two parts are twice as many vectors; the products with both are added up. */
static void rows_in_parts(tn_host *h, const tn_weight *w, const tn_acts *x, float *y,
                          int64_t y_stride, int worker)
{
    tn_acts parts = *x;
    parts.n = x->n * h->parts;
    float *sum = h->part_sums[worker];
    const int64_t step = h->part_floats / parts.n / TN_PACKED_GRAIN * TN_PACKED_GRAIN;
    for (int64_t row = 0; row < w->rows; row += step) {
        const int64_t n = w->rows - row < step ? w->rows - row : step;
        const tn_weight piece = tn_host_part(w, row, row + n);
        all_rows(h, &piece, &parts, sum, n, worker);
        for (int64_t t = 0; t < x->n; t++) {
            h->kern->add(sum + 2 * t * n, sum + (2 * t + 1) * n, n);
            memcpy(y + t * y_stride + row, sum + 2 * t * n, (size_t)n * sizeof *y);
        }
    }
}

void tn_host_rows(tn_host *h, const tn_weight *w, const tn_acts *x, float *y, int64_t y_stride,
                  int64_t row0, int64_t row1, int worker)
{
    const tn_weight part = tn_host_part(w, row0, row1);
    if (h->blas && x->n >= TN_MANY_TOKENS && !tn_host_reads_q8(w))
        blas_rows(h, &part, x, y, y_stride, worker);
    else if (h->parts > 1 && tn_host_reads_q8(w))
        rows_in_parts(h, &part, x, y, y_stride, worker);
    else
        all_rows(h, &part, x, y, y_stride, worker);
}
