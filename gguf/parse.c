/* GGUF bytes -> keys and tensor directory. No I/O; every byte is taken as hostile. */
#include "internal.h"

#include "cursor.h"
#include "types.h"

#include <limits.h>
#include <string.h>

/* Bytes of the smallest record of each kind: what bounds a count by the bytes that are there. */
enum {
    min_key_bytes = 8 + 1 + 4 + 1,
    min_tensor_bytes = 8 + 1 + 4 + 8 + 4 + 8,
    min_string_bytes = 8
};
/* Index slots and part numbers are 32 bits wide. */
static const uint64_t max_records = INT32_MAX;

typedef struct reader {
    tn_gguf *g;
    tn_cursor c;
    tn_error *err;
    const char *file; /* how messages call it */
} reader;

static tn_status fail_magic(const reader *r, const uint8_t *bytes, size_t size)
{
    static const struct {
        const char *start, *what;
    } known[] = {
        {"lmgg", "an old GGML file; convert the original model to GGUF"},
        {"fmgg", "an old GGMF file; convert the original model to GGUF"},
        {"tjgg", "an old GGJT file; convert the original model to GGUF"},
        {"FUGG", "a GGUF file with its bytes swapped; fetch it again"},
        {"PK\x03\x04", "a zip archive (a PyTorch checkpoint?); convert the model to GGUF"},
        {"version https://git-lfs", "a Git LFS pointer; fetch the model with 'git lfs pull'"},
        {"<!DOCTYPE", "a web page; fetch the model itself"},
        {"<html", "a web page; fetch the model itself"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t n = strlen(known[i].start);
        if (size >= n && memcmp(bytes, known[i].start, n) == 0)
            return tn_fail(r->err, TN_EFORMAT, 0, "%s: not a GGUF file but %s", r->file,
                           known[i].what);
    }
    return tn_fail(r->err, TN_EFORMAT, 0,
                   "%s: not a GGUF file: it starts with bytes %02X %02X %02X %02X, not 'GGUF'",
                   r->file, bytes[0], bytes[1], bytes[2], bytes[3]);
}

static tn_status check_version(const reader *r)
{
    uint32_t v = r->g->version;
    if (v == 2 || v == 3) return TN_OK;
    if (v == 0x02000000u || v == 0x03000000u)
        return tn_fail(r->err, TN_EUNSUPPORTED, 4,
                       "%s: a big-endian GGUF file (version %u); only little-endian files are "
                       "supported, convert it with gguf-py's gguf_convert_endian",
                       r->file, v >> 24);
    if (v == 1)
        return tn_fail(r->err, TN_EUNSUPPORTED, 4,
                       "%s: GGUF version 1 is not supported (2 and 3 are); convert the model again",
                       r->file);
    return tn_fail(r->err, v > 3 && v < 256 ? TN_EUNSUPPORTED : TN_EFORMAT, 4,
                   "%s: GGUF version %u is not known (2 and 3 are supported)", r->file, v);
}

/* Reads magic, version and counts, and bounds the counts by the bytes that are there. */
static tn_status parse_header(reader *r, uint64_t *n_keys, uint64_t *n_tensors)
{
    const uint8_t *magic = tn_cursor_take(&r->c, 4);
    if (magic && memcmp(magic, "GGUF", 4) != 0) return fail_magic(r, magic, r->c.size);
    r->g->version = tn_cursor_u32(&r->c);
    if (!r->c.failed) {
        tn_status st = check_version(r);
        if (st != TN_OK) return st;
    }
    *n_tensors = tn_cursor_u64(&r->c);
    *n_keys = tn_cursor_u64(&r->c);
    if (r->c.failed)
        return tn_fail(r->err, TN_EFORMAT, (int64_t)r->c.error_pos,
                       "%s: the file ends after %zu bytes, in the 24-byte header of a GGUF file",
                       r->file, r->c.size);
    size_t left = tn_cursor_left(&r->c);
    if (*n_keys > max_records || *n_keys > left / min_key_bytes)
        return tn_fail(r->err, TN_EFORMAT, 16,
                       "%s: the header at byte 16 counts %llu keys, which cannot fit into the %zu "
                       "bytes that follow",
                       r->file, (unsigned long long)*n_keys, left);
    left -= (size_t)*n_keys * min_key_bytes;
    if (*n_tensors > max_records || *n_tensors > left / min_tensor_bytes)
        return tn_fail(r->err, TN_EFORMAT, 8,
                       "%s: the header at byte 8 counts %llu tensors, which cannot fit into the "
                       "%zu bytes that follow",
                       r->file, (unsigned long long)*n_tensors, left);
    return TN_OK;
}

/* Error for the cursor's failure inside record `number` (0-based) of the kind `what`. */
static tn_status fail_truncated(const reader *r, const char *what, uint64_t number, int64_t start)
{
    return tn_fail(r->err, TN_EFORMAT, (int64_t)r->c.error_pos,
                   "%s: the file ends inside %s %llu, which starts at byte %lld: %llu bytes are "
                   "needed at byte %zu, %zu are left",
                   r->file, what, (unsigned long long)number, (long long)start,
                   (unsigned long long)r->c.error_need, r->c.error_pos, r->c.size - r->c.error_pos);
}

/* Reads a name. On a cursor failure returns TN_OK: the caller checks the cursor once per record. */
static tn_status parse_name(reader *r, const char *what, size_t max, uint64_t number, tn_str *name)
{
    int64_t start = (int64_t)r->c.pos;
    uint64_t len = tn_cursor_u64(&r->c);
    if (r->c.failed) return TN_OK;
    if (len == 0 || len > max)
        return tn_fail(r->err, TN_EFORMAT, start,
                       "%s: %s %llu at byte %lld has a name of %llu bytes; 1 to %zu are allowed",
                       r->file, what, (unsigned long long)number, (long long)start,
                       (unsigned long long)len, max);
    const uint8_t *p = tn_cursor_take(&r->c, len);
    if (!p) return TN_OK;
    *name = (tn_str){(const char *)p, (size_t)len};
    if (!tn_gguf_name_valid(*name))
        return tn_fail(r->err, TN_EFORMAT, start,
                       "%s: %s %llu at byte %lld has the name '%s', which is no valid UTF-8 text",
                       r->file, what, (unsigned long long)number, (long long)start,
                       tn_gguf_quote(*name).text);
    return TN_OK;
}

static tn_status check_bools(const reader *r, const tn_gguf_key *k)
{
    for (size_t i = 0; i < k->data_bytes; i++)
        if (k->data[i] > 1)
            return tn_gguf_fail_key(r->g, k, r->err, TN_EFORMAT,
                                    "element %zu is a BOOL of value %u; only 0 and 1 are allowed",
                                    i, k->data[i]);
    return TN_OK;
}

/* Moves past the k->n values of k->element and notes where they are. */
static tn_status parse_values(reader *r, tn_gguf_key *k)
{
    size_t left = tn_cursor_left(&r->c), start = r->c.pos;
    size_t size = tn_gguf_kind_bytes(k->element);
    if (k->n > left / (size ? size : min_string_bytes))
        return tn_gguf_fail_key(r->g, k, r->err, TN_EFORMAT,
                                "%llu values of type %s cannot fit into the %zu bytes left in the "
                                "file",
                                (unsigned long long)k->n, tn_gguf_kind_name(k->element), left);
    if (size)
        tn_cursor_take(&r->c, k->n * size);
    else
        tn_cursor_skip_strings(&r->c, k->n);
    if (r->c.failed)
        return tn_gguf_fail_key(r->g, k, r->err, TN_EFORMAT,
                                "the file ends inside its value: %llu bytes are needed at byte "
                                "%zu, %zu are left",
                                (unsigned long long)r->c.error_need, r->c.error_pos,
                                r->c.size - r->c.error_pos);
    k->data = r->c.data + start;
    k->data_bytes = r->c.pos - start;
    return k->element == TN_GGUF_BOOL ? check_bools(r, k) : TN_OK;
}

static tn_status parse_key(reader *r, uint64_t number, tn_gguf_key *k)
{
    *k = (tn_gguf_key){.offset = (int64_t)r->c.pos, .n = 1};
    tn_status st = parse_name(r, "key", TN_GGUF_MAX_KEY_NAME, number, &k->name);
    if (st != TN_OK) return st;
    uint32_t kind = tn_cursor_u32(&r->c), element = kind;
    if (kind == TN_GGUF_ARRAY) {
        element = tn_cursor_u32(&r->c);
        k->n = tn_cursor_u64(&r->c);
    }
    if (r->c.failed) return fail_truncated(r, "key", number, k->offset);
    if (kind == TN_GGUF_ARRAY && element == TN_GGUF_ARRAY)
        return tn_gguf_fail_key(r->g, k, r->err, TN_EUNSUPPORTED,
                                "an array of arrays; nested arrays are not supported");
    if (element > TN_GGUF_F64)
        return tn_gguf_fail_key(r->g, k, r->err, TN_EFORMAT, "unknown %s type %u",
                                kind == TN_GGUF_ARRAY ? "element" : "value", element);
    k->kind = (tn_gguf_kind)kind;
    k->element = (tn_gguf_kind)element;
    return parse_values(r, k);
}

static tn_status parse_keys(reader *r, uint64_t n)
{
    tn_gguf *g = r->g;
    for (uint64_t i = 0; i < n; i++) {
        void *keys = g->keys;
        if (!tn_grow(g->alloc, &keys, &g->cap_keys, g->n_keys, g->n_keys + 1, sizeof *g->keys))
            return tn_fail_nomem(r->err, 2 * g->cap_keys * sizeof *g->keys, "metadata keys");
        g->keys = keys;
        tn_status st = parse_key(r, i, &g->keys[i]);
        if (st != TN_OK) return st;
        g->n_keys++;
    }
    size_t dup = 0;
    tn_status st = tn_gguf_index_build(g, &g->key_index, g->keys, g->n_keys, sizeof *g->keys, &dup,
                                       r->err);
    if (st == TN_EFORMAT)
        return tn_gguf_fail_key(g, &g->keys[dup], r->err, TN_EFORMAT,
                                "the key occurs a second time");
    return st;
}

static tn_status parse_alignment(reader *r)
{
    tn_gguf *g = r->g;
    g->alignment = TN_GGUF_DEFAULT_ALIGNMENT;
    const tn_gguf_key *k = tn_gguf_find(g, "general.alignment");
    if (!k) return TN_OK;
    if (k->kind != TN_GGUF_U32)
        return tn_gguf_fail_key(g, k, r->err, TN_EFORMAT, "found %s where U32 is needed",
                                tn_gguf_kind_name(k->kind));
    uint32_t a = tn_load_u32(k->data);
    if (a < TN_GGUF_MIN_ALIGNMENT || a > TN_GGUF_MAX_ALIGNMENT || (a & (a - 1)) != 0)
        return tn_gguf_fail_key(g, k, r->err, TN_EFORMAT,
                                "the alignment is %u; a power of two from %d to %d is needed", a,
                                TN_GGUF_MIN_ALIGNMENT, TN_GGUF_MAX_ALIGNMENT);
    g->alignment = a;
    return TN_OK;
}

/* Refuses types that have no size, then computes t->bytes from type and shape. */
static tn_status measure_tensor(const reader *r, tn_gguf_tensor *t)
{
    const tn_type_info *type = tn_type_get(t->type);
    if (!type)
        return tn_gguf_fail_tensor(r->g, t, r->err, TN_EUNSUPPORTED,
                                   "unknown type %u; the file may be newer than this program",
                                   t->type);
    if (type->block == 0)
        return tn_gguf_fail_tensor(r->g, t, r->err, TN_EUNSUPPORTED,
                                   "type %s was removed from the format; convert the model again",
                                   type->name);
    if (t->shape[0] % type->block != 0)
        return tn_gguf_fail_tensor(r->g, t, r->err, TN_EFORMAT,
                                   "its rows of %llu elements are no whole number of %s blocks of "
                                   "%u",
                                   (unsigned long long)t->shape[0], type->name, type->block);
    size_t row;
    uint64_t elements = t->shape[0];
    bool ok = tn_type_row_bytes(t->type, t->shape[0], &row);
    t->bytes = ok ? row : 0;
    for (uint32_t d = 1; ok && d < TN_GGUF_MAX_DIMS; d++)
        ok = tn_mul_u64(t->bytes, t->shape[d], &t->bytes) &&
             tn_mul_u64(elements, t->shape[d], &elements);
    /* Elements are bounded too, so that the size of a copy in a wider type cannot overflow. */
    if (!ok || t->bytes > INT64_MAX || elements > INT64_MAX / 8)
        return tn_gguf_fail_tensor(r->g, t, r->err, TN_EFORMAT,
                                   "its shape %llu x %llu x %llu x %llu is too large",
                                   (unsigned long long)t->shape[0],
                                   (unsigned long long)t->shape[1],
                                   (unsigned long long)t->shape[2],
                                   (unsigned long long)t->shape[3]);
    return TN_OK;
}

/* One directory entry; t->offset is still relative to the start of the tensor data. */
static tn_status parse_tensor(reader *r, uint64_t number, tn_gguf_tensor *t)
{
    *t = (tn_gguf_tensor){.header_offset = (int64_t)r->c.pos, .shape = {1, 1, 1, 1}};
    tn_status st = parse_name(r, "tensor", TN_GGUF_MAX_TENSOR_NAME, number, &t->name);
    if (st != TN_OK) return st;
    t->n_dims = tn_cursor_u32(&r->c);
    if (!r->c.failed && (t->n_dims < 1 || t->n_dims > TN_GGUF_MAX_DIMS))
        return tn_gguf_fail_tensor(r->g, t, r->err, TN_EFORMAT,
                                   "it has %u dimensions; 1 to %d are allowed", t->n_dims,
                                   TN_GGUF_MAX_DIMS);
    for (uint32_t d = 0; d < t->n_dims && !r->c.failed; d++) t->shape[d] = tn_cursor_u64(&r->c);
    t->type = tn_cursor_u32(&r->c);
    t->offset = tn_cursor_u64(&r->c);
    if (r->c.failed) return fail_truncated(r, "tensor", number, t->header_offset);
    for (uint32_t d = 0; d < t->n_dims; d++)
        if (t->shape[d] == 0)
            return tn_gguf_fail_tensor(r->g, t, r->err, TN_EFORMAT, "dimension %u is zero", d);
    return measure_tensor(r, t);
}

/* Turns the relative offset into one from the start of the file, and checks the extent. */
static tn_status place_tensor(const reader *r, tn_gguf_tensor *t, uint64_t data_start)
{
    const tn_gguf *g = r->g;
    if (t->offset % g->alignment != 0)
        return tn_gguf_fail_tensor(g, t, r->err, TN_EFORMAT,
                                   "its data offset %llu is no multiple of the alignment %llu",
                                   (unsigned long long)t->offset, (unsigned long long)g->alignment);
    uint64_t start, end;
    if (!tn_add_u64(data_start, t->offset, &start) || !tn_add_u64(start, t->bytes, &end) ||
        end > INT64_MAX)
        return tn_gguf_fail_tensor(g, t, r->err, TN_EFORMAT, "its data offset %llu is too large",
                                   (unsigned long long)t->offset);
    if (!g->header_only && end > r->c.size)
        return tn_gguf_fail_tensor(g, t, r->err, TN_EFORMAT,
                                   "its data, bytes %llu to %llu, are not all in the file of %zu "
                                   "bytes; the file is cut short or damaged, fetch it again",
                                   (unsigned long long)start, (unsigned long long)end, r->c.size);
    t->offset = start;
    return TN_OK;
}

static void sift_down(const tn_gguf_tensor *t, size_t *heap, size_t i, size_t n)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && t[heap[child + 1]].offset > t[heap[child]].offset) child++;
        if (t[heap[child]].offset <= t[heap[i]].offset) return;
        size_t swap = heap[i];
        heap[i] = heap[child];
        heap[child] = swap;
    }
}

/* Heap sort of the numbers 0..n-1 by data offset: no recursion, no hidden memory, no bad input. */
static void sort_by_offset(const tn_gguf_tensor *t, size_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++) order[i] = i;
    for (size_t i = n / 2; i-- > 0;) sift_down(t, order, i, n);
    for (size_t end = n; end-- > 1;) {
        size_t swap = order[0];
        order[0] = order[end];
        order[end] = swap;
        sift_down(t, order, 0, end);
    }
}

static tn_status fail_overlap(const reader *r, const tn_gguf_tensor *a, const tn_gguf_tensor *b)
{
    return tn_gguf_fail_tensor(r->g, b, r->err, TN_EFORMAT,
                               "its data start at byte %llu, inside those of tensor '%s', bytes "
                               "%llu to %llu",
                               (unsigned long long)b->offset, tn_gguf_quote(a->name).text,
                               (unsigned long long)a->offset,
                               (unsigned long long)(a->offset + a->bytes));
}

static tn_status check_overlap(const reader *r)
{
    const tn_gguf *g = r->g;
    const tn_gguf_tensor *t = g->tensors;
    bool ordered = true;
    for (size_t i = 1; i < g->n_tensors && ordered; i++)
        ordered = t[i - 1].offset + t[i - 1].bytes <= t[i].offset;
    if (ordered) return TN_OK;
    size_t *order = tn_alloc_raw(g->alloc, g->n_tensors, sizeof *order);
    if (!order) return tn_fail_nomem(r->err, g->n_tensors * sizeof *order, "checking tensors");
    sort_by_offset(t, order, g->n_tensors);
    tn_status st = TN_OK;
    for (size_t i = 1; i < g->n_tensors && st == TN_OK; i++) {
        const tn_gguf_tensor *a = &t[order[i - 1]], *b = &t[order[i]];
        if (a->offset + a->bytes > b->offset) st = fail_overlap(r, a, b);
    }
    tn_free(g->alloc, order);
    return st;
}

static tn_status parse_tensors(reader *r, uint64_t n)
{
    tn_gguf *g = r->g;
    for (uint64_t i = 0; i < n; i++) {
        void *tensors = g->tensors;
        if (!tn_grow(g->alloc, &tensors, &g->cap_tensors, g->n_tensors, g->n_tensors + 1,
                     sizeof *g->tensors))
            return tn_fail_nomem(r->err, 2 * g->cap_tensors * sizeof *g->tensors,
                                 "the tensor list");
        g->tensors = tensors;
        tn_status st = parse_tensor(r, i, &g->tensors[i]);
        if (st != TN_OK) return st;
        g->n_tensors++;
    }
    size_t dup = 0;
    tn_status st = tn_gguf_index_build(g, &g->tensor_index, g->tensors, g->n_tensors,
                                       sizeof *g->tensors, &dup, r->err);
    if (st == TN_EFORMAT)
        return tn_gguf_fail_tensor(g, &g->tensors[dup], r->err, TN_EFORMAT,
                                   "a tensor of that name occurs a second time");
    uint64_t data_start;
    if (st == TN_OK && !tn_align_u64(r->c.pos, g->alignment, &data_start))
        st = tn_fail(r->err, TN_EFORMAT, (int64_t)r->c.pos, "%s: the header is too large", r->file);
    for (size_t i = 0; st == TN_OK && i < g->n_tensors; i++)
        st = place_tensor(r, &g->tensors[i], data_start);
    return st == TN_OK ? check_overlap(r) : st;
}

static tn_status parse_file(reader *r)
{
    uint64_t n_keys = 0, n_tensors = 0;
    tn_status st = parse_header(r, &n_keys, &n_tensors);
    if (st == TN_OK) st = parse_keys(r, n_keys);
    if (st == TN_OK) st = parse_alignment(r);
    if (st == TN_OK) st = parse_tensors(r, n_tensors);
    return st;
}

/* An object with one part that refers to the bytes, or NULL. */
static tn_gguf *new_object(const tn_allocator *a, const void *bytes, size_t size, const char *name)
{
    tn_gguf *g = tn_alloc(a, 1, sizeof *g);
    if (!g) return NULL;
    g->alloc = a;
    tn_gguf_draw_hash_key(g);
    g->parts = tn_alloc(a, 1, sizeof *g->parts);
    char *path = tn_strndup(a, name, strlen(name));
    if (!g->parts || !path) {
        tn_free(a, path);
        tn_gguf_free(g);
        return NULL;
    }
    g->parts[0] = (tn_gguf_part){.path = path, .data = bytes, .size = size, .fd = -1};
    g->n_parts = g->cap_parts = 1;
    return g;
}

tn_status tn_gguf_parse(tn_gguf **out, const void *bytes, size_t size, const char *name,
                        const tn_gguf_options *opt, tn_error *err)
{
    if (!out) return tn_fail(err, TN_EARG, -1, "tn_gguf_parse: out is NULL");
    *out = NULL;
    if (!bytes && size) return tn_fail(err, TN_EARG, -1, "tn_gguf_parse: bytes is NULL");
    const tn_allocator *a = opt && opt->allocator ? opt->allocator : &tn_default_allocator;
    tn_gguf *g = new_object(a, size ? bytes : "", size, name ? name : "(memory)");
    if (!g) return tn_fail_nomem(err, sizeof *g, "a GGUF file");
    g->header_only = opt && opt->header_only;
    reader r = {.g = g, .err = err, .file = tn_gguf_label(g)};
    tn_cursor_init(&r.c, g->parts[0].data, size);
    tn_status st = parse_file(&r);
    if (st != TN_OK)
        tn_gguf_free(g);
    else
        *out = g;
    return st;
}

void tn_gguf_free(tn_gguf *g)
{
    if (!g) return;
    const tn_allocator *a = g->alloc;
    for (size_t i = 0; i < g->n_parts; i++) tn_free(a, g->parts[i].path);
    tn_free(a, g->parts);
    tn_free(a, g->keys);
    tn_free(a, g->tensors);
    tn_free(a, g->key_index.slots);
    tn_free(a, g->tensor_index.slots);
    tn_free(a, g);
}
