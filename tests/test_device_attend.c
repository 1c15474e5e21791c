/* Attention on the device: rope, head norms, KV append, decoding and tiles, over paged caches of
 * every type, against the definition in double precision. Pages that must not be read are absent,
 * positions that must not be read hold NaN. */
#include "device_lib.h"

/* ---- a paged cache on the device ------------------------------------------------------------- */

typedef struct cache {
    tn_dkv kv;
    int64_t len, n_pages; /* of each sequence */
    int n_seq;
    size_t k_bytes, page_bytes;
    uint8_t *pages;  /* on the device, one after the other in a scrambled order */
    int32_t *where;  /* [n_seq][n_pages] which one; -1: absent */
    float *value[2]; /* [n_seq][n_head_kv][len][dim] as stored */
} cache;

static void store_row(const tn_dkv *kv, uint8_t *page, int64_t head, int64_t slot, int32_t dim,
                      const float *x, float *stored)
{
    const size_t at = ((size_t)head * (size_t)kv->page_size + (size_t)slot) * (size_t)dim;
    uint8_t *scales = page + (size_t)kv->n_head_kv * (size_t)kv->page_size * (size_t)dim;
    for (int32_t i = 0; i < dim; i++) {
        const uint16_t h = tn_f32_to_f16(x[i]);
        stored[i] = x[i];
        if (kv->type == TN_TYPE_F32) memcpy(page + 4 * (at + (size_t)i), &x[i], 4);
        if (kv->type == TN_TYPE_F16) {
            memcpy(page + 2 * (at + (size_t)i), &h, 2);
            stored[i] = tn_f16_to_f32(h);
        }
    }
    for (int32_t i = 0; kv->type == TN_TYPE_Q8_0 && i < dim; i += 32) {
        float amax = 0;
        for (int j = 0; j < 32; j++)
            if (!(fabsf(x[i + j]) <= amax)) amax = fabsf(x[i + j]);
        const uint16_t d = tn_f32_to_f16(amax / 127);
        const float step = tn_f16_to_f32(d);
        memcpy(scales + (at + (size_t)i) / 32 * 2, &d, 2);
        for (int j = 0; j < 32; j++) {
            const float r = step > 0 ? rintf(x[i + j] / step) : 0;
            const int8_t q = (int8_t)(r > 127 ? 127 : r < -127 ? -127 : isnan(r) ? 0 : r);
            memcpy(page + at + (size_t)i + (size_t)j, &q, 1);
            stored[i + j] = step * q;
        }
    }
}

/* Positions [first, len) of every sequence hold random values, all others NaN. */
static cache make_cache(tn_dkv kv, int n_seq, int64_t len, int64_t first, uint64_t *seed)
{
    cache c = {
        .kv = kv, .len = len, .n_seq = n_seq, .n_pages = (len + kv.page_size - 1) / kv.page_size};
    c.k_bytes = tn_dkv_bytes(kv.type, kv.page_size, kv.n_head_kv, kv.head_dim_k);
    c.page_bytes = c.k_bytes + tn_dkv_bytes(kv.type, kv.page_size, kv.n_head_kv, kv.head_dim_v);
    const int64_t all = n_seq * c.n_pages;
    uint8_t *bytes = malloc((size_t)all * c.page_bytes);
    memset(bytes, 0xff, (size_t)all * c.page_bytes);
    c.where = malloc((size_t)all * sizeof *c.where);
    void **table = malloc((size_t)all * sizeof *table);
    c.pages = device_new((size_t)all * c.page_bytes, NULL);
    for (int w = 0; w < 2; w++)
        c.value[w] = calloc((size_t)n_seq * (size_t)kv.n_head_kv * (size_t)len *
                                (size_t)(w ? kv.head_dim_v : kv.head_dim_k),
                            sizeof(float));
    for (int64_t p = 0; p < all; p++) {
        const int64_t page = (p * 7 + 3) % all; /* a permutation unless 7 divides all */
        const bool absent = (p % c.n_pages + 1) * kv.page_size <= first;
        c.where[p] = (int32_t)(all % 7 ? page : p);
        table[p] = absent ? NULL : c.pages + (size_t)c.where[p] * c.page_bytes;
        for (int w = 0; w < 2; w++)
            for (int64_t h = 0; h < kv.n_head_kv; h++)
                for (int64_t slot = 0; slot < kv.page_size; slot++) {
                    const int64_t pos = p % c.n_pages * kv.page_size + slot;
                    const int32_t dim = w ? kv.head_dim_v : kv.head_dim_k;
                    float x[256], stored[256];
                    for (int i = 0; i < dim; i++)
                        x[i] = pos < first || pos >= len ? NAN : test_randf(seed);
                    store_row(&kv, bytes + (size_t)c.where[p] * c.page_bytes + (w ? c.k_bytes : 0),
                              h, slot, dim, x, stored);
                    if (pos < len)
                        memcpy(c.value[w] + ((p / c.n_pages * kv.n_head_kv + h) * len + pos) * dim,
                               stored, (size_t)dim * sizeof(float));
                }
        if (absent) c.where[p] = -1;
    }
    tn_error err = {0};
    if (dev->api->upload(dev, c.pages, bytes, (size_t)all * c.page_bytes, &err))
        FAIL("%s", err.msg);
    c.kv.pages = device_new((size_t)all * sizeof *table, table);
    c.kv.pages_stride = c.n_pages;
    c.kv.k_at = 0;
    c.kv.v_at = (int64_t)c.k_bytes;
    free(bytes);
    free(table);
    return c;
}

static void free_cache(cache *c)
{
    free(c->where);
    free(c->value[0]);
    free(c->value[1]);
}

/* ---- attention ------------------------------------------------------------------------------- */

typedef struct attend_case {
    uint32_t type;
    int32_t page, n_head, n_head_kv, dim_k, dim_v, window, n, pos0, splits;
    float softcap;
    bool sinks, several; /* several sequences at positions of their own */
    bool tiles;
} attend_case;

typedef struct attend_data {
    cache c;
    tn_dattend a;
    float *q, *sinks;
    int32_t *pos, *seq;
} attend_data;

/* The definition in double; *scale: the sum of weight * |v|. */
static void attend_reference(const attend_case *k, const attend_data *d, int t, int h, double *want,
                             double *scale)
{
    const int32_t kv_head = h / (k->n_head / k->n_head_kv), pos = d->pos[t];
    const int32_t lo = k->window > 0 && pos + 1 > k->window ? pos + 1 - k->window : 0;
    const int64_t base = ((d->seq ? d->seq[t] : 0) * k->n_head_kv + kv_head) * d->c.len;
    double *w = malloc((size_t)(pos + 1) * sizeof *w), max = -INFINITY, sum = 0;
    for (int32_t j = lo; j <= pos; j++) {
        w[j] = 0;
        for (int32_t i = 0; i < k->dim_k; i++)
            w[j] += (double)d->q[t * d->a.q_stride + h * k->dim_k + i] *
                    (double)d->c.value[0][(base + j) * k->dim_k + i];
        w[j] *= (double)d->a.scale;
        if (k->softcap > 0) w[j] = k->softcap * tanh(w[j] / k->softcap);
        if (w[j] > max) max = w[j];
    }
    if (k->sinks && d->sinks[h] > max) max = d->sinks[h];
    if (k->sinks) sum += exp(d->sinks[h] - max);
    for (int32_t j = lo; j <= pos; j++)
        sum += w[j] = exp(w[j] - max);
    for (int32_t i = 0; i < k->dim_v; i++) {
        want[i] = scale[i] = 0;
        for (int32_t j = lo; j <= pos; j++) {
            const double x = w[j] / sum * (double)d->c.value[1][(base + j) * k->dim_v + i];
            want[i] += x;
            scale[i] += fabs(x);
        }
    }
    free(w);
}

static attend_data make_attend(const attend_case *k, uint64_t *seed)
{
    attend_data d = {0};
    const int n_seq = k->several ? k->n : 1, len = k->pos0 + k->n;
    const int32_t first =
        k->window > 0 && !k->several && k->pos0 + 1 > k->window ? k->pos0 + 1 - k->window : 0;
    const tn_dkv kv = {.type = k->type,
                       .page_size = k->page,
                       .n_head_kv = k->n_head_kv,
                       .head_dim_k = k->dim_k,
                       .head_dim_v = k->dim_v};
    d.c = make_cache(kv, n_seq, len, first, seed);
    d.pos = malloc((size_t)k->n * sizeof *d.pos);
    d.seq = k->several ? malloc((size_t)k->n * sizeof *d.seq) : NULL;
    for (int t = 0; t < k->n; t++) {
        d.pos[t] = k->several ? (k->pos0 * t + 5) % len : k->pos0 + t;
        if (k->several) d.seq[t] = (t * 2 + 1) % k->n;
    }
    d.a = (tn_dattend){.kv = d.c.kv,
                       .n = k->n,
                       .n_head = k->n_head,
                       .window = k->window,
                       .softcap = k->softcap,
                       .n_splits = k->splits,
                       .scale = 3.0f / sqrtf((float)k->dim_k),
                       .q_stride = padded((int64_t)k->n_head * k->dim_k) + 4,
                       .out_stride = padded((int64_t)k->n_head * k->dim_v) + 8};
    d.q = random_floats((size_t)(k->n * d.a.q_stride), 2, seed);
    d.sinks = random_floats((size_t)k->n_head, 2, seed);
    d.a.q = device_floats((size_t)(k->n * d.a.q_stride), d.q);
    d.a.out = device_floats((size_t)(k->n * d.a.out_stride), NULL);
    d.a.pos = device_new((size_t)k->n * sizeof *d.pos, d.pos);
    if (d.seq) d.a.seq = device_new((size_t)k->n * sizeof *d.seq, d.seq);
    if (k->sinks) d.a.sinks = device_floats((size_t)k->n_head, d.sinks);
    if (!k->tiles)
        d.a.workspace = device_new(ops->attend_bytes(k->n, k->n_head, k->dim_v, k->splits), NULL);
    return d;
}

/* Float32 throughout, but tensor cores see q, k, v and the weights in 11 bits: scores up to about
 * 15 then are off by 15 / 2048 * 2, and so are the weights, relatively. */
static double attend_tolerance(const attend_case *k)
{
    return k->tiles && k->type != TN_TYPE_F32 ? 1.2e-2 : 4e-6;
}

static void check_attend(const attend_case *k, uint64_t *seed)
{
    attend_data d = make_attend(k, seed);
    double want[256], scale[256];
    CHECK_INT((k->tiles ? ops->attend_tiles : ops->attend)(stream, &d.a), TN_OK);
    float *got = device_get(d.a.out, (size_t)(k->n * d.a.out_stride) * sizeof *got);
    for (int t = 0; t < k->n; t++) {
        for (int h = 0; h < k->n_head && tn_failures < 5; h++) {
            attend_reference(k, &d, t, h, want, scale);
            const float *o = got + t * d.a.out_stride + h * k->dim_v;
            for (int i = 0; i < k->dim_v; i++)
                if (!(fabs(o[i] - want[i]) <= attend_tolerance(k) * scale[i] + 1e-30)) {
                    FAIL("%s type %s page %d heads %d/%d dims %d/%d window %d n %d pos %d splits "
                         "%d: token %d "
                         "head %d [%d] is %.9g, want %.9g, magnitudes %g",
                         k->tiles ? "tiles" : "decode", tn_type_get(k->type)->name, k->page,
                         k->n_head, k->n_head_kv, k->dim_k, k->dim_v, k->window, k->n, d.pos[t],
                         k->splits, t, h, i, (double)o[i], want[i], scale[i]);
                    break;
                }
        }
        for (int64_t i = (int64_t)k->n_head * k->dim_v; i < d.a.out_stride; i++)
            CHECK_MSG(isnan(got[t * d.a.out_stride + i]), "attention writes between rows");
    }
    free(got);
    free(d.q);
    free(d.sinks);
    free(d.pos);
    free(d.seq);
    done("attend");
    free_cache(&d.c);
}

static const uint32_t kv_types[] = {TN_TYPE_F32, TN_TYPE_F16, TN_TYPE_Q8_0};

TEST(decode_shapes)
{
    NEED_DEVICE;
    uint64_t seed = 1;
    static const attend_case cases[] = {
        {.page = 16,
         .n_head = 4,
         .n_head_kv = 2,
         .dim_k = 32,
         .dim_v = 32,
         .n = 1,
         .pos0 = 0,
         .splits = 1},
        {.page = 16,
         .n_head = 9,
         .n_head_kv = 3,
         .dim_k = 64,
         .dim_v = 64,
         .n = 1,
         .pos0 = 76,
         .splits = 2},
        {.page = 32,
         .n_head = 4,
         .n_head_kv = 4,
         .dim_k = 128,
         .dim_v = 128,
         .n = 2,
         .pos0 = 70,
         .splits = 3},
        {.page = 256,
         .n_head = 8,
         .n_head_kv = 1,
         .dim_k = 128,
         .dim_v = 64,
         .n = 1,
         .pos0 = 300,
         .splits = 8},
        {.page = 16,
         .n_head = 11,
         .n_head_kv = 1,
         .dim_k = 96,
         .dim_v = 96,
         .n = 1,
         .pos0 = 40,
         .splits = 5},
        {.page = 64,
         .n_head = 6,
         .n_head_kv = 3,
         .dim_k = 256,
         .dim_v = 256,
         .n = 1,
         .pos0 = 65,
         .splits = 2},
        {.page = 16,
         .n_head = 5,
         .n_head_kv = 1,
         .dim_k = 64,
         .dim_v = 64,
         .n = 1,
         .pos0 = 100,
         .splits = 4,
         .window = 33},
        {.page = 16,
         .n_head = 4,
         .n_head_kv = 2,
         .dim_k = 32,
         .dim_v = 32,
         .n = 3,
         .pos0 = 46,
         .splits = 2,
         .window = 16,
         .softcap = 5},
        {.page = 16,
         .n_head = 4,
         .n_head_kv = 2,
         .dim_k = 64,
         .dim_v = 64,
         .n = 2,
         .pos0 = 33,
         .splits = 64,
         .sinks = true},
        {.page = 64, /* more parts than tiles of keys; all but one of the parts have keys */
         .n_head = 2,
         .n_head_kv = 1,
         .dim_k = 32,
         .dim_v = 64,
         .n = 1,
         .pos0 = 32 * 127 - 1,
         .splits = 128,
         .sinks = true},
        {.page = 16,
         .n_head = 4,
         .n_head_kv = 2,
         .dim_k = 32,
         .dim_v = 32,
         .n = 5,
         .pos0 = 50,
         .splits = 3,
         .several = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int t = 0; t < 3; t++) {
            attend_case k = cases[i];
            k.type = kv_types[t];
            check_attend(&k, &seed);
        }
    for (int t = 0; t < 2; t++) { /* heads that are no multiple of 32 */
        check_attend(&(attend_case){.type = kv_types[t],
                                    .page = 16,
                                    .n_head = 2,
                                    .n_head_kv = 1,
                                    .dim_k = 80,
                                    .dim_v = 80,
                                    .n = 1,
                                    .pos0 = 50,
                                    .splits = 2},
                     &seed);
        check_attend(&(attend_case){.type = kv_types[t],
                                    .page = 16,
                                    .n_head = 4,
                                    .n_head_kv = 2,
                                    .dim_k = 16,
                                    .dim_v = 24,
                                    .n = 1,
                                    .pos0 = 35,
                                    .splits = 2},
                     &seed);
    }
}

TEST(tile_shapes)
{
    NEED_DEVICE;
    uint64_t seed = 2;
    static const attend_case cases[] = {
        {.page = 16, .n_head = 2, .n_head_kv = 1, .dim_k = 32, .dim_v = 32, .n = 1, .pos0 = 0},
        {.page = 16, .n_head = 3, .n_head_kv = 1, .dim_k = 64, .dim_v = 64, .n = 40, .pos0 = 0},
        {.page = 16, .n_head = 2, .n_head_kv = 2, .dim_k = 128, .dim_v = 128, .n = 17, .pos0 = 37},
        {.page = 256, .n_head = 2, .n_head_kv = 1, .dim_k = 96, .dim_v = 64, .n = 70, .pos0 = 5},
        {.page = 32, .n_head = 1, .n_head_kv = 1, .dim_k = 256, .dim_v = 256, .n = 19, .pos0 = 20},
        {.page = 16,
         .n_head = 2,
         .n_head_kv = 1,
         .dim_k = 32,
         .dim_v = 32,
         .n = 80,
         .pos0 = 50,
         .window = 20},
        {.page = 16,
         .n_head = 2,
         .n_head_kv = 1,
         .dim_k = 64,
         .dim_v = 64,
         .n = 33,
         .pos0 = 9,
         .softcap = 6,
         .window = 13},
        {.page = 16,
         .n_head = 4,
         .n_head_kv = 2,
         .dim_k = 32,
         .dim_v = 32,
         .n = 21,
         .pos0 = 3,
         .sinks = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int t = 0; t < 3; t++) {
            attend_case k = cases[i];
            k.type = kv_types[t];
            k.tiles = true;
            check_attend(&k, &seed);
        }
    for (int t = 0; t < 2; t++)
        check_attend(&(attend_case){.type = kv_types[t],
                                    .page = 16,
                                    .n_head = 2,
                                    .n_head_kv = 1,
                                    .dim_k = 80,
                                    .dim_v = 80,
                                    .n = 20,
                                    .pos0 = 7,
                                    .tiles = true},
                     &seed);
}

TEST(attend_refuses)
{
    NEED_DEVICE;
    uint64_t seed = 3;
    const attend_case k = {.type = TN_TYPE_F16,
                           .page = 16,
                           .n_head = 4,
                           .n_head_kv = 2,
                           .dim_k = 32,
                           .dim_v = 32,
                           .n = 1,
                           .pos0 = 3,
                           .splits = 1};
    attend_data d = make_attend(&k, &seed);
    tn_dattend a = d.a;
    a.n_splits = 129;
    CHECK_INT(ops->attend(stream, &a), TN_EARG);
    a = d.a;
    a.n_head = 3;
    CHECK_INT(ops->attend(stream, &a), TN_EARG);
    a = d.a;
    a.kv.head_dim_k = 36;
    CHECK_INT(ops->attend(stream, &a), TN_EARG);
    CHECK_INT(ops->attend_tiles(stream, &a), TN_EARG);
    const tn_device_shape bad = {.head_dim_k = 36, .head_dim_v = 32},
                          good = {.head_dim_k = 96, .head_dim_v = 64};
    CHECK(!ops->can_do(TN_DOP_ATTEND, TN_TYPE_F16, bad));
    CHECK(ops->can_do(TN_DOP_ATTEND, TN_TYPE_Q8_0, good));
    CHECK(!ops->can_do(TN_DOP_ATTEND, TN_TYPE_Q4_0, good));
    free(d.q);
    free(d.sinks);
    free(d.pos);
    done("refuses");
    free_cache(&d.c);
}

/* ---- rope and append ------------------------------------------------------------------------- */

TEST(rope_table)
{
    NEED_DEVICE;
    enum { n = 5, n_rot = 20 };
    static const int32_t pos[n] = {0, 1, 77, 4096, 131071};
    float inv_freq[n_rot / 2];
    for (int i = 0; i < n_rot / 2; i++)
        inv_freq[i] = (float)pow(10000, -2.0 * i / n_rot);
    float *cs = device_floats(n * n_rot, NULL);
    CHECK_INT(ops->rope_table(stream, cs, device_new(sizeof pos, pos), n,
                              device_floats(n_rot / 2, inv_freq), n_rot, 1.25f),
              TN_OK);
    float *got = device_get(cs, n * n_rot * sizeof *got);
    for (int t = 0; t < n; t++)
        for (int i = 0; i < n_rot / 2; i++) {
            const double angle = (double)((float)pos[t] * inv_freq[i]);
            CHECK_NEAR(got[(t * n_rot / 2 + i) * 2], 1.25 * cos(angle), 5e-7);
            CHECK_NEAR(got[(t * n_rot / 2 + i) * 2 + 1], 1.25 * sin(angle), 5e-7);
        }
    free(got);
    done("rope_table");
}

typedef struct rope_case {
    uint32_t type; /* TN_TYPE_COUNT: no cache */
    int32_t n, n_head, n_head_kv, dim_k, dim_v, n_rot, page;
    tn_rope_style style;
    bool norms, several;
} rope_case;

/* What the host makes of a head. */
static void turn(const rope_case *k, float *x, const float *norm, const float *cs)
{
    if (k->norms) host.rms_norm(x, x, norm, k->dim_k, 1e-5f);
    host.rope(x, 1, k->dim_k, k->n_rot, k->style, cs);
}

/* Row of K (which 0) or V as it lies in the cache. */
static void read_row(const cache *c, const uint8_t *pages, int which, int seq, int32_t pos,
                     int32_t h, float *out)
{
    const tn_dkv *kv = &c->kv;
    const int32_t dim = which ? kv->head_dim_v : kv->head_dim_k;
    const uint8_t *page = pages +
                          (size_t)c->where[seq * c->n_pages + pos / kv->page_size] * c->page_bytes +
                          (which ? c->k_bytes : 0);
    const size_t at =
        ((size_t)h * (size_t)kv->page_size + (size_t)(pos % kv->page_size)) * (size_t)dim;
    const uint8_t *scales = page + (size_t)kv->n_head_kv * (size_t)kv->page_size * (size_t)dim;
    for (size_t i = 0; i < (size_t)dim; i++) {
        uint16_t b;
        if (kv->type == TN_TYPE_F32)
            memcpy(&out[i], page + 4 * (at + i), 4);
        else if (kv->type == TN_TYPE_F16)
            memcpy(&b, page + 2 * (at + i), 2), out[i] = tn_f16_to_f32(b);
        else
            memcpy(&b, scales + (at + i) / 32 * 2, 2),
                out[i] = tn_f16_to_f32(b) * (int8_t)page[at + i];
    }
}

/* Rounding of the cache's type for a value of a row with maximum amax. */
static double stored_error(uint32_t type, double v, double amax)
{
    const double f = 2e-6 * amax;
    if (type == TN_TYPE_F16) return f + fabs(v) / 2048 + 1e-7;
    return type == TN_TYPE_Q8_0 ? f + amax / 127 * 0.52 : f;
}

static void check_row(const rope_case *k, const char *what, const float *got, const float *want,
                      int32_t dim, uint32_t type)
{
    double amax = 0;
    for (int i = 0; i < dim; i++)
        amax = fmax(amax, fabs((double)want[i]));
    for (int i = 0; i < dim && tn_failures < 5; i++)
        CHECK_MSG(fabs((double)got[i] - (double)want[i]) <= stored_error(type, want[i], amax),
                  "rope %s, type %d, style %d, dims %d/%d, n_rot %d: [%d] is %.9g, want %.9g", what,
                  (int)k->type, (int)k->style, k->dim_k, k->dim_v, k->n_rot, i, (double)got[i],
                  (double)want[i]);
}

static void check_rope(const rope_case *k, uint64_t *seed)
{
    const bool cached = k->type != TN_TYPE_COUNT;
    const int n_seq = k->several ? k->n : 1, len = 40;
    const int64_t qs = k->n_head * k->dim_k + 1, ks = k->n_head_kv * k->dim_k + 2,
                  vs = k->n_head_kv * k->dim_v + 3;
    tn_dkv kv = {.type = cached ? k->type : TN_TYPE_F32,
                 .page_size = k->page,
                 .n_head_kv = k->n_head_kv,
                 .head_dim_k = k->dim_k,
                 .head_dim_v = k->dim_v};
    cache c = make_cache(kv, n_seq, len, 0, seed);
    float *q = random_floats((size_t)(k->n * qs), 1, seed),
          *kk = random_floats((size_t)(k->n * ks), 1, seed);
    float *v = random_floats((size_t)(k->n * vs), 1, seed),
          *norm = random_floats((size_t)k->dim_k, 1, seed);
    float *cs = random_floats((size_t)(k->n * k->n_rot), 1, seed);
    int32_t pos[16], seq[16];
    for (int t = 0; t < k->n; t++)
        pos[t] = k->several ? (t * 11 + 2) % len : 14 + t, seq[t] = k->several ? t : 0;
    tn_drope a = {.q = device_floats((size_t)(k->n * qs), q),
                  .k = device_floats((size_t)(k->n * ks), kk),
                  .v = device_floats((size_t)(k->n * vs), v),
                  .q_stride = qs,
                  .k_stride = ks,
                  .v_stride = vs,
                  .n = k->n,
                  .n_head = k->n_head,
                  .eps = 1e-5f,
                  .style = k->style,
                  .n_rot = k->n_rot,
                  .cs = device_floats((size_t)(k->n * k->n_rot), cs),
                  .kv = c.kv,
                  .pos = device_new(sizeof pos, pos)};
    if (!cached) a.kv.pages = NULL;
    if (k->several) a.seq = device_new(sizeof seq, seq);
    if (k->norms) a.q_norm = a.k_norm = device_floats((size_t)k->dim_k, norm);
    CHECK_INT(ops->rope_append(stream, &a), TN_OK);
    float *got_q = device_get(a.q, (size_t)(k->n * qs) * sizeof *got_q);
    float *got_k = device_get(a.k, (size_t)(k->n * ks) * sizeof *got_k);
    uint8_t *pages = device_get(c.pages, (size_t)(n_seq * c.n_pages) * c.page_bytes);
    for (int t = 0; t < k->n; t++) {
        for (int h = 0; h < k->n_head; h++) {
            turn(k, q + t * qs + h * k->dim_k, norm, cs + t * k->n_rot);
            check_row(k, "q", got_q + t * qs + h * k->dim_k, q + t * qs + h * k->dim_k, k->dim_k,
                      TN_TYPE_F32);
        }
        CHECK(got_q[t * qs + qs - 1] == q[t * qs + qs - 1]);
        for (int h = 0; h < k->n_head_kv; h++) {
            float row[256], *x = kk + t * ks + h * k->dim_k;
            if (cached) CHECK(memcmp(got_k + t * ks + h * k->dim_k, x, (size_t)k->dim_k * 4) == 0);
            turn(k, x, norm, cs + t * k->n_rot);
            if (cached) read_row(&c, pages, 0, seq[t], pos[t], h, row);
            check_row(k, "k", cached ? row : got_k + t * ks + h * k->dim_k, x, k->dim_k,
                      cached ? k->type : TN_TYPE_F32);
            if (!cached) continue;
            read_row(&c, pages, 1, seq[t], pos[t], h, row);
            check_row(k, "v", row, v + t * vs + h * k->dim_v, k->dim_v, k->type);
        }
    }
    /* The neighbours are as before. */
    for (int h = 0; h < k->n_head_kv; h++) {
        float row[256];
        const int32_t other = k->several ? pos[0] + 1 : 13;
        read_row(&c, pages, 0, seq[0], other, h, row);
        CHECK(memcmp(row, c.value[0] + ((int64_t)h * len + other) * k->dim_k,
                     (size_t)k->dim_k * 4) == 0);
    }
    free(q), free(kk), free(v), free(norm), free(cs), free(got_q), free(got_k), free(pages);
    done("rope");
    free_cache(&c);
}

TEST(rope_append)
{
    NEED_DEVICE;
    uint64_t seed = 4;
    static const uint32_t caches[] = {TN_TYPE_COUNT, TN_TYPE_F32, TN_TYPE_F16, TN_TYPE_Q8_0};
    for (int i = 0; i < 4; i++)
        for (int style = TN_ROPE_NONE; style <= TN_ROPE_NEOX; style++) {
            rope_case k = {.type = caches[i],
                           .n = 3,
                           .n_head = 3,
                           .n_head_kv = 1,
                           .dim_k = 64,
                           .dim_v = 64,
                           .n_rot = 64,
                           .page = 16,
                           .style = (tn_rope_style)style};
            check_rope(&k, &seed);
            k = (rope_case){.type = caches[i],
                            .n = 4,
                            .n_head = 4,
                            .n_head_kv = 2,
                            .dim_k = 96,
                            .dim_v = 32,
                            .n_rot = 40,
                            .page = 32,
                            .style = (tn_rope_style)style,
                            .norms = true,
                            .several = true};
            check_rope(&k, &seed);
            k = (rope_case){.type = caches[i],
                            .n = 1,
                            .n_head = 2,
                            .n_head_kv = 2,
                            .dim_k = 256,
                            .dim_v = 256,
                            .n_rot = 256,
                            .page = 16,
                            .style = (tn_rope_style)style,
                            .norms = true};
            check_rope(&k, &seed);
        }
    for (int i = 0; i < 3; i++)
        check_rope(&(rope_case){.type = caches[i],
                                .n = 2,
                                .n_head = 2,
                                .n_head_kv = 1,
                                .dim_k = 80,
                                .dim_v = 16,
                                .n_rot = 30,
                                .page = 16,
                                .style = TN_ROPE_NEOX},
                   &seed);
}

/* A recorded decode step: positions come from device memory, so the graph follows them. */
TEST(graph_follows_positions)
{
    NEED_DEVICE;
    uint64_t seed = 5;
    tn_error err = {0};
    const attend_case k = {.type = TN_TYPE_F16,
                           .page = 16,
                           .n_head = 4,
                           .n_head_kv = 2,
                           .dim_k = 32,
                           .dim_v = 32,
                           .n = 1,
                           .pos0 = 90,
                           .splits = 3};
    attend_data d = make_attend(&k, &seed);
    tn_graph *g = NULL;
    CHECK_INT(dev->api->graph_begin(dev, stream, &err), TN_OK);
    CHECK_INT(ops->attend(stream, &d.a), TN_OK);
    CHECK_INT(dev->api->graph_end(dev, stream, &g, &err), TN_OK);
    static const int32_t positions[] = {90, 0, 31, 64};
    for (int i = 0; i < 4; i++) {
        double want[32], scale[32];
        d.pos[0] = positions[i];
        CHECK_INT(dev->api->upload(dev, (void *)(uintptr_t)d.a.pos, d.pos, sizeof *d.pos, &err),
                  TN_OK);
        CHECK_INT(dev->api->graph_launch(dev, g, stream, &err), TN_OK);
        float *got = device_get(d.a.out, 4 * 32 * sizeof *got);
        for (int h = 0; h < 4; h++) {
            attend_reference(&k, &d, 0, h, want, scale);
            for (int j = 0; j < 32; j++)
                CHECK_NEAR(got[h * 32 + j], want[j], 4e-6 * scale[j]);
        }
        free(got);
    }
    dev->api->graph_destroy(dev, g);
    free(d.q);
    free(d.sinks);
    free(d.pos);
    done("graph");
    free_cache(&d.c);
}

DEVICE_MAIN
