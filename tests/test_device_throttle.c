/* A device made slow: what it reads besides is counted to the word, and results
 * are what they were. */
#include "device_lib.h"

static tn_error err;

/* Slows the device to about a third of what it reads (less where it is measured on a busy machine);
 * returns how many bytes it then reads for each that an op does. */
static double slow_down(void)
{
    const tn_device_info *i = dev->api->info(dev);
    CHECK_INT(dev->api->throttle(dev, 1, &err), TN_OK);
    tn_status s = TN_EARG;
    for (double rate = i->throttle * i->slower / 3; s == TN_EARG && rate > 1; rate /= 2)
        s = dev->api->throttle(dev, rate, &err);
    CHECK_MSG(s == TN_OK, "%s", err.msg);
    CHECK(i->throttle > 1 && i->slower > 1);
    return i->slower - 1;
}

static void as_it_is(void)
{
    CHECK_INT(dev->api->throttle(dev, 0, &err), TN_OK);
    CHECK(dev->api->info(dev)->throttle == 0 && dev->api->info(dev)->slower == 1);
}

static int64_t words_read(void)
{
    uint64_t bytes = 1;
    CHECK_MSG(dev->api->throttled_bytes(dev, &bytes, &err) == TN_OK, "%s", err.msg);
    CHECK(bytes % 16 == 0);
    return (int64_t)(bytes / 16);
}

static int64_t words_for(double bytes, double extra)
{
    return (int64_t)floor(bytes * extra / 16 + 0.5);
}

/* ---- mat-vecs -------------------------------------------------------------------------------- */

enum { rows = 6, n_experts = 3, cols = 512, n = 3 };

static tn_dmatvec make_matvec(uint32_t type, bool glu, bool experts, uint64_t *seed)
{
    static const int32_t choice[6] = {2, -1, 0, 1, -1, -1};
    const int64_t all = experts ? n_experts * rows : rows;
    const size_t bytes = tn_dweight_bytes(type, all, cols);
    float *x = random_floats(n * cols, 1, seed), *y = random_floats(6 * rows, 1, seed);
    uint8_t *w = calloc(1, bytes);
    for (size_t i = 0; i < bytes; i += 3) /* as float16 and float32 small numbers */
        w[i] = (uint8_t)(test_rand(seed) % 48);
    tn_dmatvec a = {.w = tn_dweight_at(device_new(bytes, w), type, all, cols),
                    .x = {.n = n, .cols = cols, .f_stride = cols},
                    .y_stride = rows,
                    .add = !glu && !experts};
    a.x.f = device_floats(n * cols, x);
    a.x.q = device_new(n * cols, NULL);
    a.x.scale = device_new(n * cols / 32 * sizeof *a.x.scale, NULL);
    CHECK_INT(ops->quantize(stream, &a.x), TN_OK);
    a.y = device_floats(6 * rows, y);
    if (glu) a.up = a.w;
    if (experts) {
        a.expert = device_new(sizeof choice, choice);
        a.n_items = 6;
        a.rows = rows;
        a.per_token = 2;
    }
    free(x);
    free(y);
    free(w);
    return a;
}

/* Twice from the same y, and at the device's own speed first. */
static void check_matvec(uint32_t type, bool glu, bool experts, double extra, uint64_t *seed)
{
    size_t row;
    uint64_t same = *seed;
    tn_type_row_bytes(type, cols, &row);
    const size_t bytes = 6 * rows * sizeof(float);
    const tn_dmatvec a = make_matvec(type, glu, experts, &same),
                     b = make_matvec(type, glu, experts, seed);
    const int64_t before = words_read();
    CHECK_INT(ops->matvec(stream, &a), TN_OK);
    const int64_t slow = words_read() - before;
    CHECK_INT(slow, words_for((double)row * rows * (glu ? 2 : 1), extra) * (experts ? 3 : 1));
    as_it_is();
    CHECK_INT(ops->matvec(stream, &b), TN_OK);
    CHECK_INT(words_read() - before, slow);
    void *got = device_get(a.y, bytes), *want = device_get(b.y, bytes);
    CHECK_MSG(memcmp(got, want, bytes) == 0, "%s: another result", tn_type_get(type)->name);
    free(got);
    free(want);
    done("throttled");
}

TEST(matvecs_read_more_and_compute_the_same)
{
    NEED_DEVICE;
    static const uint32_t types[] = {TN_TYPE_Q4_K, TN_TYPE_Q8_0, TN_TYPE_F32};
    uint64_t seed = 1;
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++)
            check_matvec(types[i], k == 1, k == 2, slow_down(), &seed);
}

/* ---- attention ------------------------------------------------------------------------------- */

TEST(attention_reads_more_of_what_is_live)
{
    NEED_DEVICE;
    enum { page = 32, heads = 2, dim = 32 };
    static const int32_t pos[2] = {5, 20};
    static const uint32_t types[] = {TN_TYPE_F16, TN_TYPE_F32, TN_TYPE_Q8_0};
    uint64_t seed = 2;
    float *q = random_floats(2 * heads * dim, 1, &seed);
    for (int i = 0; i < 6; i++) {
        const uint32_t type = types[i / 2];
        const int window = i % 2 ? 8 : 0;
        const size_t half = tn_dkv_bytes(type, page, heads, dim), bytes = 2 * heads * dim * 4;
        uint8_t *kv = calloc(2, half);
        for (size_t k = 0; k < 2 * half; k += 2)
            kv[k] = (uint8_t)(test_rand(&seed) % 16);
        void *at = device_new(2 * half, kv);
        tn_dattend a = {.kv = {type, page, heads, dim, dim, device_new(sizeof at, &at), 1, 0,
                               (int64_t)half},
                        .q = device_floats(2 * heads * dim, q),
                        .q_stride = heads * dim,
                        .out = device_floats(2 * heads * dim, NULL),
                        .out_stride = heads * dim,
                        .n = 2,
                        .n_head = heads,
                        .scale = 0.1f,
                        .window = window,
                        .pos = device_new(sizeof pos, pos),
                        .n_splits = 1,
                        .workspace = device_new(ops->attend_bytes(2, heads, dim, 1), NULL)};
        CHECK_INT(ops->attend(stream, &a), TN_OK);
        void *want = device_get(a.out, bytes);
        const double each = 2.0 * (double)half / page * slow_down() / 16;
        const int64_t before = words_read();
        CHECK_INT(ops->attend(stream, &a), TN_OK);
        const int64_t live = window ? 8 : 21;
        CHECK_INT(words_read() - before, (int64_t)(6 * each) + (int64_t)((double)live * each));
        void *got = device_get(a.out, bytes);
        CHECK(memcmp(got, want, bytes) == 0);
        as_it_is();
        free(got);
        free(want);
        free(kv);
        done("throttled attention");
    }
    free(q);
}

/* ---- the rest -------------------------------------------------------------------------------- */

/* More than the ballast holds on the emulated device: it is read in turn. */
TEST(reads_are_slow_and_batches_are_not)
{
    NEED_DEVICE;
    enum { bytes = 1 << 20 };
    uint64_t seed = 3;
    uint32_t *words = calloc(1, bytes), none = 0;
    words[77] = 5;
    const void *p = device_new(bytes, words);
    uint32_t *sum = device_new(sizeof *sum, &none);
    const double extra = slow_down();
    const int64_t before = words_read();
    CHECK_INT(ops->read(stream, p, bytes, sum), TN_OK);
    CHECK_INT(words_read() - before, words_for(bytes, extra));
    uint32_t *got = device_get(sum, sizeof *sum);
    CHECK_INT(*got, 5);
    free(got);
    free(words);
    const tn_dmatvec v = make_matvec(TN_TYPE_Q8_0, false, false, &seed);
    tn_dgemm g = {.w = v.w, .x = v.x, .y = v.y, .y_stride = rows};
    g.workspace_bytes = ops->gemm_bytes(TN_TYPE_Q8_0, n, rows, cols);
    g.workspace = device_new(g.workspace_bytes, NULL);
    const int64_t now = words_read();
    for (g.path = TN_GEMM_F16; g.path <= TN_GEMM_INT8; g.path++)
        CHECK_INT(ops->gemm(stream, &g), TN_OK);
    CHECK_INT(words_read(), now);
    as_it_is();
    done("throttled reads");
}

TEST(graphs_record_it)
{
    NEED_DEVICE;
    uint64_t seed = 4;
    size_t row;
    tn_graph *g = NULL;
    tn_dmatvec v = make_matvec(TN_TYPE_Q4_K, true, false, &seed);
    tn_type_row_bytes(TN_TYPE_Q4_K, cols, &row);
    const double extra = slow_down();
    device_sync();
    const int64_t before = words_read();
    CHECK_INT(dev->api->graph_begin(dev, stream, &err), TN_OK);
    CHECK_INT(ops->matvec(stream, &v), TN_OK);
    CHECK_INT(dev->api->graph_end(dev, stream, &g, &err), TN_OK);
    CHECK_INT(words_read(), before);
    for (int i = 0; i < 3 && g; i++)
        CHECK_INT(dev->api->graph_launch(dev, g, stream, &err), TN_OK);
    device_sync();
    CHECK_INT(words_read() - before, 3 * words_for((double)row * rows * 2, extra));
    dev->api->graph_destroy(dev, g);
    as_it_is();
    done("throttled graphs");
}

TEST(faster_than_it_is_cannot_be_had)
{
    NEED_DEVICE;
    static const double bad[] = {1e18, -1, NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        err.msg[0] = 0;
        CHECK_INT(dev->api->throttle(dev, bad[i], &err), TN_EARG);
        CHECK_MSG(strstr(err.msg, "cannot be slowed"), "%g: '%s'", bad[i], err.msg);
        CHECK(dev->api->info(dev)->throttle == 0 && dev->api->info(dev)->slower == 1);
    }
    tn_device_memory m;
    CHECK(dev->api->memory(dev, &m, &err) == TN_OK && m.used_bytes == 0 && m.allocations == 0);
}

TEST(no_memory_for_it_is_said)
{
    NEED_DEVICE;
    if (!dev->api->emu) SKIP("only the emulated device can be made so small");
    tn_emu_settings was, s;
    dev->api->emu->get(&was);
    s = was;
    s.memory_bytes = 1 << 19;
    dev->api->emu->set(&s);
    tn_device *d = NULL;
    const tn_device_options o = {.kind = TN_DEVICE_EMULATED, .index = 1};
    CHECK_INT(tn_device_open(&o, &d, &err), TN_OK);
    CHECK_INT(d->api->throttle(d, 1, &err), TN_EDEVICE);
    CHECK_MSG(strstr(err.msg, "1.0 MiB missing"), "'%s'", err.msg);
    dev->api->emu->set(&was);
    CHECK_INT(d->api->throttle(d, 1, &err), TN_OK);
    d->api->close(d);
}

DEVICE_MAIN
