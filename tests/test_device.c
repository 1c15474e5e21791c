/* The device table: memory and its limits, copies, streams, events, graphs, flags, faults, two
 * devices. Runs on the emulated device; with --cuda on a GPU. */
#include "../kernels/device_ops.h"
#include "../kernels/emu/emu.h"
#include "harness.h"

#include <unistd.h>

static tn_device_kind kind = TN_DEVICE_EMULATED;
#define NEEDS_EMULATION                                                                            \
    do {                                                                                           \
        if (kind != TN_DEVICE_EMULATED) SKIP("only the emulated device can be told to do this");   \
    } while (0)

static tn_error err;
/* Fails with the device's own sentence. */
#define OK(call)                                                                                   \
    do {                                                                                           \
        err.msg[0] = 0;                                                                            \
        tn_status ok_ = (call);                                                                    \
        if (ok_ != TN_OK) FAIL("%s: %d, %s", #call, ok_, err.msg);                                 \
    } while (0)

static tn_device *open_device(int index, size_t limit)
{
    tn_device_options o = {kind, index, limit, NULL};
    tn_device *d = NULL;
    OK(tn_device_open(&o, &d, &err));
    return d;
}

/* Everything given back, or the next test would start with a surprise. */
static void close_clean(tn_device *d)
{
    tn_device_memory m;
    OK(d->api->memory(d, &m, &err));
    CHECK_INT(m.used_bytes, 0);
    CHECK_INT(m.allocations, 0);
    CHECK_INT(m.pinned_bytes, 0);
    d->api->close(d);
}

static size_t used(tn_device *d)
{
    tn_device_memory m = {0};
    OK(d->api->memory(d, &m, &err));
    return m.used_bytes;
}

/* Changes the emulated device's settings until put back. */
static tn_emu_settings settings_of(tn_device *d)
{
    tn_emu_settings s;
    d->api->emu->get(&s);
    return s;
}

/* ---- opening --------------------------------------------------------------------------------- */

TEST(opens_and_tells)
{
    tn_device *d = open_device(0, 0);
    REQUIRE(d);
    const tn_device_info *i = d->api->info(d);
    CHECK_INT(i->kind, kind);
    CHECK_INT(i->index, 0);
    CHECK(i->name[0]);
    CHECK(i->capability >= 75);
    CHECK(i->processors >= 1);
    CHECK(i->shared_bytes >= 48 << 10);
    CHECK(i->total_bytes >= (size_t)1 << 30);
    if (kind == TN_DEVICE_EMULATED) CHECK_STR(i->name, "emulated CUDA device");
    CHECK_INT(d->api->emu != NULL, kind == TN_DEVICE_EMULATED);
    close_clean(d);
}

TEST(counts_and_refuses_an_index)
{
    int n = -1;
    OK(tn_device_count(kind, &n, &err));
    CHECK(n >= 1);
    tn_device_options o = {kind, n, 0, NULL};
    tn_device *d = NULL;
    CHECK_INT(tn_device_open(&o, &d, &err), TN_EARG);
    CHECK(d == NULL);
    CHECK_MSG(strstr(err.msg, "there is no device"), "%s", err.msg);
    o.index = -1;
    CHECK_INT(tn_device_open(&o, &d, NULL), TN_EARG);
}

static void *no_alloc(void *user, size_t bytes, size_t align)
{
    (void)user, (void)bytes, (void)align;
    return NULL;
}
static void no_free(void *user, void *p)
{
    (void)user, (void)p;
}
TEST(open_without_host_memory)
{
    tn_allocator none = {no_alloc, no_free, NULL};
    tn_device_options o = {kind, 0, 0, &none};
    tn_device *d = NULL;
    CHECK_INT(tn_device_open(&o, &d, &err), TN_ENOMEM);
    CHECK(d == NULL);
}

/* ---- memory ---------------------------------------------------------------------------------- */

TEST(accounts_to_the_byte)
{
    tn_device *d = open_device(0, 0);
    REQUIRE(d);
    void *a = NULL, *b = NULL, *none = NULL;
    OK(d->api->alloc(d, 1000, "a", &a, &err));
    CHECK_INT(used(d), 1000);
    OK(d->api->alloc(d, 1 << 20, "b", &b, &err));
    OK(d->api->alloc(d, 0, "nothing", &none, &err));
    CHECK(none != NULL);
    CHECK_INT(used(d), 1000 + (1 << 20));
    CHECK_INT((uintptr_t)a % 256, 0);
    CHECK_INT((uintptr_t)b % 256, 0);
    d->api->free(d, a);
    CHECK_INT(used(d), 1 << 20);
    d->api->free(d, NULL);
    d->api->free(d, b);
    d->api->free(d, none);
    close_clean(d);
}

TEST(limit_is_kept_and_told)
{
    const size_t mib = 1 << 20;
    tn_device *d = open_device(0, 10 * mib);
    REQUIRE(d);
    void *a = NULL, *b = NULL;
    OK(d->api->alloc(d, 6 * mib, "weights", &a, &err));
    CHECK_INT(d->api->alloc(d, 6 * mib, "the KV cache", &b, &err), TN_EDEVICE);
    CHECK(b == NULL);
    CHECK_MSG(strstr(err.msg, "out of device memory: 2.0 MiB missing for the KV cache"), "%s",
              err.msg);
    CHECK_INT(used(d), 6 * mib);
    OK(d->api->alloc(d, 4 * mib, "what just fits", &b, &err));
    void *c = NULL;
    CHECK_INT(d->api->alloc(d, 1, "one byte", &c, &err), TN_EDEVICE);
    CHECK_MSG(strstr(err.msg, ": 0.1 MiB missing for one byte (0.1 MiB asked for, 0.0 MiB"), "%s",
              err.msg);
    d->api->free(d, a);
    OK(d->api->alloc(d, 6 * mib, "again", &a, &err));
    d->api->free(d, a);
    d->api->free(d, b);
    close_clean(d);
}

TEST(device_without_room)
{
    NEEDS_EMULATION;
    const size_t mib = 1 << 20;
    tn_device *d = open_device(0, 0);
    REQUIRE(d);
    tn_emu_settings before = settings_of(d), s = before;
    s.memory_bytes = 8 * mib;
    d->api->emu->set(&s);
    void *a = NULL, *b = NULL;
    tn_device_memory m = {0};
    OK(d->api->alloc(d, 5 * mib, "a", &a, &err));
    OK(d->api->memory(d, &m, &err));
    CHECK_INT(m.free_bytes, 3 * mib);
    CHECK_INT(d->api->alloc(d, 5 * mib, "b", &b, &err), TN_EDEVICE);
    CHECK_MSG(strstr(err.msg, "2.0 MiB missing for b"), "%s", err.msg);
    CHECK_INT(d->api->alloc(d, SIZE_MAX / 2, "far too much", &b, &err), TN_EDEVICE);
    d->api->free(d, a);
    d->api->emu->set(&before);
    close_clean(d);
}

/* Many allocations of odd sizes, given back in another order: nothing overlaps, nothing is lost. */
TEST(allocations_do_not_overlap)
{
    enum { N = 60 };
    tn_device *d = open_device(0, 0);
    REQUIRE(d);
    unsigned char *p[N] = {0}, host[5000];
    size_t bytes[N], sum = 0;
    uint64_t seed = 1;
    for (int i = 0; i < 3 * N; i++) {
        int k = (int)(test_rand(&seed) % N);
        if (p[k]) {
            OK(d->api->download(d, host, p[k], bytes[k], &err));
            for (size_t j = 0; j < bytes[k]; j++)
                if (host[j] != (unsigned char)k) {
                    FAIL("byte %zu of block %d has changed", j, k);
                    break;
                }
            d->api->free(d, p[k]);
            sum -= bytes[k];
            p[k] = NULL;
        } else {
            bytes[k] = 1 + test_rand(&seed) % sizeof host;
            OK(d->api->alloc(d, bytes[k], "a block", (void **)&p[k], &err));
            memset(host, k, bytes[k]);
            OK(d->api->upload(d, p[k], host, bytes[k], &err));
            sum += bytes[k];
        }
        CHECK_INT(used(d), sum);
    }
    for (int k = 0; k < N; k++)
        d->api->free(d, p[k]);
    close_clean(d);
}

TEST(pinned_memory)
{
    tn_device *d = open_device(0, 0);
    REQUIRE(d);
    void *p = NULL;
    tn_device_memory m = {0};
    OK(d->api->alloc_pinned(d, 12345, "staging", &p, &err));
    OK(d->api->memory(d, &m, &err));
    CHECK_INT(m.pinned_bytes, 12345);
    memset(p, 1, 12345);
    static _Alignas(4096) unsigned char own[8192];
    OK(d->api->pin(d, own, sizeof own, &err));
    OK(d->api->memory(d, &m, &err));
    CHECK_INT(m.pinned_bytes, 12345 + sizeof own);
    CHECK_INT(d->api->pin(d, own, sizeof own, &err), TN_EDEVICE);
    d->api->unpin(d, own);
    d->api->free_pinned(d, p);
    d->api->free_pinned(d, NULL);
    close_clean(d);
}

/* ---- copies and streams ---------------------------------------------------------------------- */

/* A device with a stream, two blocks of device memory and two of pinned memory, n bytes each. */
typedef struct rig {
    tn_device *d;
    tn_stream *s;
    unsigned char *a, *b, *in, *out;
    size_t n;
} rig;

static bool rig_up(rig *r, size_t n)
{
    memset(r, 0, sizeof *r);
    r->n = n;
    r->d = open_device(0, 0);
    if (!r->d) return false;
    OK(r->d->api->stream_create(r->d, &r->s, &err));
    OK(r->d->api->alloc(r->d, n, "a", (void **)&r->a, &err));
    OK(r->d->api->alloc(r->d, n, "b", (void **)&r->b, &err));
    OK(r->d->api->alloc_pinned(r->d, n, "in", (void **)&r->in, &err));
    OK(r->d->api->alloc_pinned(r->d, n, "out", (void **)&r->out, &err));
    if (!r->s || !r->a || !r->b || !r->in || !r->out) return false;
    for (size_t i = 0; i < n; i++)
        r->in[i] = (unsigned char)(i * 7 + 1);
    memset(r->out, 0, n);
    return true;
}
static void rig_down(rig *r)
{
    r->d->api->stream_destroy(r->d, r->s);
    r->d->api->free(r->d, r->a);
    r->d->api->free(r->d, r->b);
    r->d->api->free_pinned(r->d, r->in);
    r->d->api->free_pinned(r->d, r->out);
    close_clean(r->d);
}

TEST(copies)
{
    rig r;
    REQUIRE(rig_up(&r, 100001));
    const tn_device_api *api = r.d->api;
    OK(api->upload_async(r.d, r.s, r.a, r.in, r.n, &err));
    OK(api->copy_async(r.d, r.s, r.b, r.a, r.n, &err));
    OK(api->fill_async(r.d, r.s, r.b + 10, 0x55, 20, &err));
    OK(api->download_async(r.d, r.s, r.out, r.b, r.n, &err));
    OK(api->upload_async(r.d, r.s, r.a, r.in, 0, &err));
    OK(api->stream_sync(r.d, r.s, &err));
    memset(r.in + 10, 0x55, 20);
    CHECK(memcmp(r.in, r.out, r.n) == 0);
    unsigned char pageable[64];
    OK(api->download(r.d, pageable, r.a + 3, sizeof pageable, &err));
    CHECK_INT(pageable[0], 3 * 7 + 1);
    memset(pageable, 9, sizeof pageable);
    OK(api->upload(r.d, r.a + 1, pageable, sizeof pageable, &err));
    OK(api->download(r.d, r.out, r.a, 66, &err));
    CHECK_INT(r.out[0], 1);
    CHECK_INT(r.out[1], 9);
    CHECK_INT(r.out[64], 9);
    CHECK_INT(r.out[65], (unsigned char)(65 * 7 + 1));
    rig_down(&r);
}

/* What upload and download promise although the memory is pinned and the device dawdles. */
TEST(upload_and_download_are_done_when_they_return)
{
    NEEDS_EMULATION;
    rig r;
    REQUIRE(rig_up(&r, 4096));
    const tn_emu_settings before = settings_of(r.d);
    tn_emu_settings s = before;
    s.delay_us = 5000;
    r.d->api->emu->set(&s);
    OK(r.d->api->upload(r.d, r.a, r.in, r.n, &err));
    memset(r.in, 42, r.n);
    OK(r.d->api->download(r.d, r.out, r.a, r.n, &err));
    CHECK_INT(r.out[0], 1);
    CHECK_INT(r.out[r.n - 1], (unsigned char)((r.n - 1) * 7 + 1));
    r.d->api->emu->set(&before);
    rig_down(&r);
}

/* A stream that waits for a flag shows that calls return at once and that other streams go on. */
TEST(streams_are_asynchronous)
{
    rig r;
    REQUIRE(rig_up(&r, 4096));
    const tn_device_api *api = r.d->api;
    uint32_t *flag = NULL;
    tn_stream *other = NULL;
    bool done = true;
    OK(api->alloc_pinned(r.d, 64, "a flag", (void **)&flag, &err));
    OK(api->stream_create(r.d, &other, &err));
    *flag = 0;
    OK(api->flag_wait(r.d, r.s, flag, 1, &err));
    OK(api->upload_async(r.d, r.s, r.a, r.in, r.n, &err));
    OK(api->fill_async(r.d, other, r.b, 3, r.n, &err));
    OK(api->stream_sync(r.d, other, &err));
    OK(api->stream_query(r.d, other, &done, &err));
    CHECK(done);
    OK(api->stream_query(r.d, r.s, &done, &err));
    CHECK(!done);
    memset(r.in, 42, r.n); /* not copied yet, so this is what arrives */
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
    OK(api->stream_sync(r.d, r.s, &err));
    OK(api->download(r.d, r.out, r.a, r.n, &err));
    CHECK_INT(r.out[0], 42);
    CHECK_INT(r.out[r.n - 1], 42);
    api->stream_destroy(r.d, other);
    api->stream_destroy(r.d, NULL);
    api->free_pinned(r.d, flag);
    rig_down(&r);
}

TEST(events_order_streams)
{
    rig r;
    REQUIRE(rig_up(&r, 4096));
    const tn_device_api *api = r.d->api;
    uint32_t *flag = NULL;
    tn_stream *other = NULL;
    tn_event *first = NULL, *second = NULL;
    OK(api->alloc_pinned(r.d, 64, "a flag", (void **)&flag, &err));
    OK(api->stream_create(r.d, &other, &err));
    OK(api->event_create(r.d, true, &first, &err));
    OK(api->event_create(r.d, true, &second, &err));
    *flag = 0;
    OK(api->event_record(r.d, first, r.s, &err));
    OK(api->event_sync(r.d, first, &err));
    OK(api->flag_wait(r.d, r.s, flag, 1, &err));
    OK(api->upload_async(r.d, r.s, r.a, r.in, r.n, &err));
    OK(api->event_record(r.d, second, r.s, &err));
    OK(api->event_wait(r.d, other, second, &err));
    OK(api->download_async(r.d, other, r.out, r.a, r.n, &err));
    bool done = true;
    usleep(2000);
    OK(api->stream_query(r.d, other, &done, &err));
    CHECK(!done);
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
    OK(api->stream_sync(r.d, other, &err));
    CHECK(memcmp(r.in, r.out, r.n) == 0);
    OK(api->event_sync(r.d, second, &err));
    float ms = -1;
    OK(api->event_elapsed(r.d, first, second, &ms, &err));
    CHECK(ms >= 1.9); /* whatever the machine does: the sleep above lies between them */
    api->event_destroy(r.d, first);
    api->event_destroy(r.d, second);
    api->event_destroy(r.d, NULL);
    api->stream_destroy(r.d, other);
    api->free_pinned(r.d, flag);
    rig_down(&r);
}

/* ---- graphs and flags ------------------------------------------------------------------------ */

/* Records once, then replays: memory as it is at each launch. */
static void replays(bool memory_ops)
{
    rig r;
    REQUIRE(rig_up(&r, 4096));
    const tn_device_api *api = r.d->api;
    CHECK_INT(api->info(r.d)->memory_ops, memory_ops);
    uint32_t *flags = NULL; /* 0: the host's part is there; 16: the device's is */
    tn_graph *g = NULL;
    OK(api->alloc_pinned(r.d, 128, "flags", (void **)&flags, &err));
    memset(flags, 0, 128);
    OK(api->graph_begin(r.d, r.s, &err));
    OK(api->flag_wait(r.d, r.s, &flags[0], 1, &err));
    OK(api->upload_async(r.d, r.s, r.a, r.in, r.n, &err));
    OK(api->download_async(r.d, r.s, r.out, r.a, r.n, &err));
    OK(api->flag_write(r.d, r.s, &flags[0], 0, &err));
    OK(api->flag_write(r.d, r.s, &flags[16], 1, &err));
    OK(api->graph_end(r.d, r.s, &g, &err));
    REQUIRE(g);
    CHECK_INT(r.out[0], 0); /* recorded, not done */
    for (int i = 1; i <= 5; i++) {
        OK(api->graph_launch(r.d, g, r.s, &err));
        memset(r.in, i, r.n);
        __atomic_store_n(&flags[0], 1, __ATOMIC_RELEASE);
        while (!__atomic_load_n(&flags[16], __ATOMIC_ACQUIRE))
            usleep(50);
        CHECK_INT(r.out[0], i);
        CHECK_INT(r.out[r.n - 1], i);
        __atomic_store_n(&flags[16], 0, __ATOMIC_RELEASE);
    }
    OK(api->stream_sync(r.d, r.s, &err));
    CHECK_INT(flags[0], 0);
    api->graph_destroy(r.d, g);
    api->graph_destroy(r.d, NULL);
    api->free_pinned(r.d, flags);
    rig_down(&r);
}
TEST(graph_replays_with_flags)
{
    replays(true);
}

static void set_memory_ops(bool on)
{
    tn_device *d = open_device(0, 0);
    if (!d) return;
    tn_emu_settings s = settings_of(d);
    s.memory_ops = on;
    d->api->emu->set(&s);
    d->api->close(d);
}
TEST(graph_replays_with_host_functions)
{
    NEEDS_EMULATION;
    set_memory_ops(false);
    replays(false);
    set_memory_ops(true);
}

/* Two streams in one recording. */
TEST(graph_forks_and_joins)
{
    rig r;
    REQUIRE(rig_up(&r, 4096));
    const tn_device_api *api = r.d->api;
    tn_stream *side = NULL;
    tn_event *fork = NULL, *join = NULL;
    tn_graph *g = NULL;
    OK(api->stream_create(r.d, &side, &err));
    OK(api->event_create(r.d, false, &fork, &err));
    OK(api->event_create(r.d, false, &join, &err));
    OK(api->graph_begin(r.d, r.s, &err));
    OK(api->upload_async(r.d, r.s, r.a, r.in, r.n, &err));
    OK(api->event_record(r.d, fork, r.s, &err));
    OK(api->event_wait(r.d, side, fork, &err));
    OK(api->copy_async(r.d, side, r.b, r.a, r.n / 2, &err));
    OK(api->fill_async(r.d, r.s, r.b + r.n / 2, 8, r.n / 2, &err));
    OK(api->event_record(r.d, join, side, &err));
    OK(api->event_wait(r.d, r.s, join, &err));
    OK(api->download_async(r.d, r.s, r.out, r.b, r.n, &err));
    OK(api->graph_end(r.d, r.s, &g, &err));
    REQUIRE(g);
    for (int i = 1; i < 4; i++) {
        memset(r.in, 20 + i, r.n);
        OK(api->graph_launch(r.d, g, r.s, &err));
        OK(api->stream_sync(r.d, r.s, &err));
        CHECK_INT(r.out[0], 20 + i);
        CHECK_INT(r.out[r.n / 2 - 1], 20 + i);
        CHECK_INT(r.out[r.n / 2], 8);
    }
    api->graph_destroy(r.d, g);
    api->event_destroy(r.d, fork);
    api->event_destroy(r.d, join);
    api->stream_destroy(r.d, side);
    rig_down(&r);
}

/* Flags count upwards past the end of 32 bits. */
static void wrap_around(void)
{
    rig r;
    REQUIRE(rig_up(&r, 64));
    const tn_device_api *api = r.d->api;
    uint32_t *flag = NULL;
    OK(api->alloc_pinned(r.d, 64, "a flag", (void **)&flag, &err));
    *flag = 0xffffffffu;
    OK(api->flag_wait(r.d, r.s, flag, 0xfffffff0u, &err)); /* passed already */
    OK(api->flag_write(r.d, r.s, flag, 0, &err));          /* one more than before */
    OK(api->flag_wait(r.d, r.s, flag, 0xfffffff8u, &err)); /* passed still */
    OK(api->stream_sync(r.d, r.s, &err));
    CHECK_INT(*flag, 0);
    api->free_pinned(r.d, flag);
    rig_down(&r);
}
TEST(flags_wrap_around)
{
    wrap_around();
}
TEST(flags_wrap_around_in_host_functions)
{
    NEEDS_EMULATION;
    set_memory_ops(false);
    wrap_around();
    set_memory_ops(true);
}

/* ---- faults ---------------------------------------------------------------------------------- */

/* Allocates, copies, records, replays; gives everything back however far it came. */
static tn_status session(tn_device *d, tn_error *e)
{
    const tn_device_api *api = d->api;
    void *a = NULL, *b = NULL, *h = NULL;
    unsigned char host[100] = {1, 2, 3};
    tn_stream *s = NULL;
    tn_graph *g = NULL;
    tn_status r = api->stream_create(d, &s, e);
    if (r == TN_OK) r = api->alloc(d, 100, "a", &a, e);
    if (r == TN_OK) r = api->alloc(d, 100, "b", &b, e);
    if (r == TN_OK) r = api->alloc_pinned(d, 100, "h", &h, e);
    if (r == TN_OK) r = api->upload(d, a, host, sizeof host, e);
    if (r == TN_OK) r = api->graph_begin(d, s, e);
    if (r == TN_OK) {
        tn_status q = api->copy_async(d, s, b, a, 100, e);
        if (q == TN_OK) q = api->fill_async(d, s, (char *)b + 50, 7, 50, e);
        if (q == TN_OK) q = api->download_async(d, s, h, b, 100, e);
        r = api->graph_end(d, s, &g, q == TN_OK ? e : NULL);
        if (q < 0 && r == TN_OK) FAIL("the end of a broken recording succeeds");
    }
    for (int i = 0; i < 2 && r == TN_OK; i++)
        r = api->graph_launch(d, g, s, e);
    if (r == TN_OK) r = api->stream_sync(d, s, e);
    if (r == TN_OK) r = api->download(d, host, b, sizeof host, e);
    if (r == TN_OK && (((unsigned char *)h)[2] != 3 || host[99] != 7)) r = TN_EINTERNAL;
    api->graph_destroy(d, g);
    api->stream_destroy(d, s);
    api->free(d, a);
    api->free(d, b);
    api->free_pinned(d, h);
    return r;
}

static void every_fault(tn_device_fault what, uint64_t want, const char *sentence)
{
    tn_device *d = open_device(0, 0);
    REQUIRE(d);
    uint64_t before = d->api->fail_at(d, what, 0);
    OK(session(d, &err));
    uint64_t calls = d->api->fail_at(d, what, 0) - before;
    CHECK_INT(calls, want);
    for (uint64_t k = 1; k <= calls; k++) {
        d->api->fail_at(d, what, k);
        err.msg[0] = 0;
        CHECK_INT(session(d, &err), TN_EDEVICE);
        CHECK_MSG(strstr(err.msg, sentence), "call %llu: %s", (unsigned long long)k, err.msg);
        CHECK_INT(used(d), 0);
        OK(session(d, &err)); /* nothing is broken by it */
    }
    close_clean(d);
}
TEST(every_allocation_may_fail)
{
    every_fault(TN_FAULT_ALLOC, 3, "MiB missing for");
}
TEST(every_copy_may_fail)
{
    every_fault(TN_FAULT_COPY, 5, "failed on device 0");
}
TEST(every_launch_may_fail)
{
    every_fault(TN_FAULT_LAUNCH, 2, "launching a graph failed on device 0");
}

/* ---- several devices ------------------------------------------------------------------------- */

static void between(bool peers)
{
    int n = 0;
    OK(tn_device_count(kind, &n, &err));
    if (n < 2) SKIP("there is one device only");
    const size_t bytes = 3 << 20;
    tn_device *d0 = open_device(0, 64 << 20), *d1 = open_device(1, 32 << 20);
    REQUIRE(d0 && d1);
    tn_emu_settings kept = {0};
    if (kind == TN_DEVICE_EMULATED) {
        kept = settings_of(d0);
        tn_emu_settings s = kept;
        s.peers = peers;
        d0->api->emu->set(&s);
    }
    void *a = NULL, *b = NULL, *big = NULL;
    unsigned char *h = malloc(bytes), *back = calloc(1, bytes);
    tn_stream *s = NULL;
    REQUIRE(h && back);
    uint64_t seed = 5;
    for (size_t i = 0; i < bytes; i++)
        h[i] = (unsigned char)test_rand(&seed);
    OK(d0->api->stream_create(d0, &s, &err));
    OK(d0->api->alloc(d0, bytes, "a", &a, &err));
    OK(d1->api->alloc(d1, bytes, "b", &b, &err));
    CHECK_INT(used(d0), bytes);
    CHECK_INT(used(d1), bytes);
    CHECK_INT(d1->api->alloc(d1, 32 << 20, "too much", &big, &err), TN_EDEVICE); /* its own limit */
    OK(d0->api->upload(d0, a, h, bytes, &err));
    OK(d0->api->copy_peer(d0, s, d1, b, a, bytes, &err));
    OK(d0->api->stream_sync(d0, s, &err));
    OK(d1->api->download(d1, back, b, bytes, &err));
    CHECK(memcmp(h, back, bytes) == 0);
    d0->api->stream_destroy(d0, s);
    d0->api->free(d0, a);
    d1->api->free(d1, b);
    if (kind == TN_DEVICE_EMULATED) d0->api->emu->set(&kept);
    close_clean(d0);
    close_clean(d1);
    free(h);
    free(back);
}
TEST(copy_to_a_peer)
{
    between(true);
}
TEST(copy_bounced_between_devices)
{
    NEEDS_EMULATION;
    between(false);
}

/* One recording over two devices: a stream of the second one takes part from its wait for an event,
 * copies what it was given onwards in its own memory, runs a kernel there, and hands it back. */
TEST(graph_over_two_devices)
{
    enum { N = 1000 };
    tn_devices l = {0};
    int n = 0;
    OK(tn_device_count(kind, &n, &err));
    if (n < 2) SKIP("there is one device only");
    OK(tn_devices_open(&l, kind == TN_DEVICE_EMULATED ? "emu:2" : "cuda:0,1", NULL, NULL, &err));
    REQUIRE(l.n == 2);
    tn_device *d0 = l.at[0], *d1 = l.at[1];
    const tn_device_api *api = d0->api;
    if (!api->reaches(d0, d1) || !api->reaches(d1, d0)) {
        tn_devices_close(&l);
        SKIP("the devices cannot reach each other's memory");
    }
    float *h = NULL, *a = NULL, *b = NULL;
    tn_stream *s0 = NULL, *s1 = NULL;
    tn_event *fork = NULL, *join = NULL, *other = NULL;
    tn_graph *g = NULL;
    OK(api->alloc_pinned(d0, N * sizeof *h, "h", (void **)&h, &err));
    OK(api->alloc(d0, N * sizeof *a, "a", (void **)&a, &err));
    OK(api->alloc(d1, N * sizeof *b, "b", (void **)&b, &err));
    OK(api->stream_create(d0, &s0, &err));
    OK(api->stream_create(d1, &s1, &err));
    OK(api->event_create(d0, false, &fork, &err));
    OK(api->event_create(d1, false, &join, &err));
    OK(api->event_create(d1, false, &other, &err));
    CHECK_INT(api->event_record(d0, other, s0, &err), TN_EDEVICE); /* an event of another device */
    OK(api->graph_begin(d0, s0, &err));
    OK(api->upload_async(d0, s0, a, h, N * sizeof *h, &err));
    OK(api->copy_peer(d0, s0, d1, b, a, N * sizeof *h, &err));
    OK(api->event_record(d0, fork, s0, &err));
    OK(api->event_wait(d1, s1, fork, &err));
    OK(d1->ops->axpby(s1, b, N, 3, NULL, 0, 0, NULL, 1, N));
    OK(api->copy_peer(d1, s1, d0, a, b, N * sizeof *h, &err));
    OK(api->event_record(d1, join, s1, &err));
    OK(api->event_wait(d0, s0, join, &err));
    OK(api->download_async(d0, s0, h, a, N * sizeof *h, &err));
    OK(api->graph_end(d0, s0, &g, &err));
    REQUIRE(g);
    for (int i = 0; i < N; i++)
        h[i] = (float)i;
    for (int times = 3; times <= 27; times *= 3) {
        OK(api->graph_launch(d0, g, s0, &err));
        OK(api->stream_sync(d0, s0, &err));
        CHECK_MSG(h[0] == 0 && h[1] == (float)times && h[N - 1] == (float)(times * (N - 1)),
                  "%g %g %g", (double)h[0], (double)h[1], (double)h[N - 1]);
    }
    api->graph_destroy(d0, g);
    api->event_destroy(d0, fork);
    api->event_destroy(d1, join);
    api->event_destroy(d1, other);
    api->stream_destroy(d0, s0);
    api->stream_destroy(d1, s1);
    api->free_pinned(d0, h);
    api->free(d0, a);
    api->free(d1, b);
    CHECK_INT(used(d0) + used(d1), 0);
    tn_devices_close(&l);
}

TEST(names_of_devices)
{
    NEEDS_EMULATION;
    static const char *const bad[] = {
        "",        "emu:",    "emu:0",      "emu:9",   "emu:x",
        "emu:2,3", "emu:2 ",  "emulated",   "cuda:",   "cuda:-1",
        "cuda:1,", "cuda:,1", "cuda:0,1,0", "cuda:64", "cuda:0,1,2,3,4,5,6,7,8",
        "rocm",    "none"};
    tn_devices l;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        l.n = 77;
        CHECK_MSG(tn_devices_open(&l, bad[i], NULL, NULL, &err) == TN_EARG, "'%s'", bad[i]);
        CHECK_MSG(strstr(err.msg, bad[i]) && strstr(err.msg, "use cuda"), "%s", err.msg);
        CHECK_INT(l.n, 0);
    }
    const size_t mib = 1 << 20, limits[TN_DEVICES] = {64 * mib, 32 * mib, 0};
    OK(tn_devices_open(&l, "emu:3", limits, NULL, &err));
    REQUIRE(l.n == 3);
    for (int i = 0; i < 3; i++) {
        tn_device_memory m = {0};
        CHECK_INT(l.at[i]->api->info(l.at[i])->index, i);
        OK(l.at[i]->api->memory(l.at[i], &m, &err));
        CHECK_INT(m.limit_bytes, limits[i] ? limits[i] : SIZE_MAX);
    }
    tn_devices_close(&l);
    CHECK_INT(l.n, 0);
    CHECK_INT(tn_devices_open(&l, "emu", limits, NULL, &err), TN_EARG); /* two limits, one device */
    CHECK_MSG(strstr(err.msg, "memory limit for device 1, but 'emu' stands for 1"), "%s", err.msg);
    OK(tn_devices_open(&l, "emu:8", NULL, NULL, &err));
    CHECK_INT(l.n, 8);
    tn_devices_close(&l);
}

/* The second device does not open: the first is given back. */
static int n_allocs, fail_alloc;
static void *count_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    void *p = ++n_allocs == fail_alloc ? NULL : tn_default_allocator.alloc(NULL, bytes, align);
    if (!p) n_allocs--;
    return p;
}
static void count_free(void *user, void *p)
{
    (void)user;
    if (p) n_allocs--;
    tn_default_allocator.free(NULL, p);
}
TEST(all_devices_open_or_none)
{
    NEEDS_EMULATION;
    const tn_allocator counting = {count_alloc, count_free, NULL};
    tn_devices l;
    n_allocs = 0;
    fail_alloc = 2;
    CHECK_INT(tn_devices_open(&l, "emu:2", NULL, &counting, &err), TN_ENOMEM);
    CHECK_INT(l.n, 0);
    CHECK(!l.at[0] && !l.at[1]);
    CHECK_INT(n_allocs, 0);
    fail_alloc = 0;
    OK(tn_devices_open(&l, "emu:2", NULL, &counting, &err));
    CHECK_INT(n_allocs, 2);
    tn_devices_close(&l);
    CHECK_INT(n_allocs, 0);
}

int main(int argc, char **argv)
{
    const bool cuda = argc > 1 && strcmp(argv[1], "--cuda") == 0;
    if (cuda) kind = TN_DEVICE_CUDA;
    int n;
    if (tn_device_count(kind, &n, &err) && strstr(err.msg, "knows no devices")) {
        printf("0 passed, 0 failed, 1 skipped\n"); /* a build without device code */
        return 0;
    }
    return tn_test_main(argc - cuda, argv + cuda);
}
