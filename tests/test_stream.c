/* Prefill streaming: from some number of tokens on, a batch's FFN weights are carried from the host
 * to the device, or a part of them while the host computes the rest. On the emulated device unless
 * --cuda is given. */
#include "golden.h"

#include "../engine/engine.h"
#include "../engine/model.h"
#include "../engine/pin.h"
#include "../engine/placement.h"
#include "../engine/plan_chain.h"
#include "../engine/plan_cost.h"
#include "../kernels/emu/emu.h"

static const char *device = "emu";

enum { n_batch = 48, page = 16 };

/* The sanitizers are slow: a sample will do for them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { sample = 3 };
#else
enum { sample = 1 };
#endif

/* ---- a plan under which batches cross over --------------------------------------------------- */

static void set_all(json_t *object, double value)
{
    const char *key;
    json_t *old;
    json_object_foreach(object, key, old) json_real_set(old, value);
}

/* A machine without fixed costs whose host is bound by arithmetic: with weights of b bytes,
 * streaming pays from about b * host_flops / (2 * 1e7) tokens on. kept: what the host and copies to
 * the device keep of their speed beside each other; with a half, sharing never pays. JSON, freed by
 * the caller. */
static char *machine(double host_flops, double kept)
{
    char *text = NULL;
    if (tn_hardware_json("rtx3060-ddr4", &text, NULL)) return NULL;
    json_t *j = json_loads(text, 0, NULL);
    tn_hardware_string_free(text);
    json_t *host = json_object_get(j, "host");
    json_t *card = json_array_get(json_object_get(j, "devices"), 0);
    set_all(json_object_get(host, "prefill_tflops"), host_flops * 1e-12);
    json_real_set(json_object_get(card, "pinned_gb_s"), 0.01);
    json_real_set(json_object_get(card, "pageable_gb_s"), 0.01);
    json_real_set(json_object_get(host, "op_us"), 0);
    json_real_set(json_object_get(card, "op_us"), 0);
    json_real_set(json_object_get(card, "crossing_us"), 0);
    json_real_set(json_object_get(card, "crossing_p95_us"), 0);
    set_all(json_object_get(j, "contended"), kept);
    text = json_dumps(j, 0);
    json_decref(j);
    return text;
}

static tn_placement *plan_to_load(const char *path, const char *place, char *hardware,
                                  int32_t granule, tn_load_mode load)
{
    tn_placement *p = NULL;
    tn_error err = {0};
    const tn_placement_options o = {.struct_size = sizeof o,
                                    .hardware = hardware,
                                    .place = &place,
                                    .n_place = 1,
                                    .n_ctx = 96,
                                    .n_batch = n_batch,
                                    .kv = TN_KV_F32,
                                    .vram = {8 << 20},
                                    .granule = granule,
                                    .page_size = page,
                                    .load = load};
    if (!hardware || tn_placement_open(&p, path, &o, &err)) FAIL("%s: %s", path, err.msg);
    free(hardware);
    return p;
}

static tn_placement *plan_for(const char *path, const char *place, char *hardware, int32_t granule)
{
    return plan_to_load(path, place, hardware, granule, TN_LOAD_AUTO);
}

static tn_placement *plan(const char *path, const char *place, double host_flops, int32_t granule)
{
    return plan_for(path, place, machine(host_flops, 0.5), granule);
}

/* ---- running it ------------------------------------------------------------------------------ */

static tn_status open_planned(run *r, const char *path, const tn_placement *p, int threads,
                              tn_cancel_fn cancel, void *user, tn_error *err)
{
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = threads, .device = device};
    const tn_load_mode load = p->planned.c.mapped ? TN_LOAD_MAP : TN_LOAD_AUTO;
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p, .load = load};
    const tn_context_options co = {.struct_size = sizeof co,
                                   .n_ctx = 96,
                                   .n_batch = n_batch,
                                   .kv = TN_KV_F32,
                                   .page_size = page,
                                   .cancel = cancel,
                                   .user = user};
    memset(r, 0, sizeof *r);
    tn_status s = tn_engine_new(&r->engine, &eo, err);
    if (!s) s = tn_model_open(&r->model, r->engine, path, &mo, err);
    CHECK(s || load != TN_LOAD_MAP || !r->model->pins);
    return s ? s : tn_context_new(&r->ctx, r->model, &co, err);
}

static uint64_t streamed(const run *r)
{
    tn_stats s = {.struct_size = sizeof s};
    CHECK_INT(tn_context_stats(r->ctx, &s, NULL), TN_OK);
    return s.streamed_bytes;
}

/* Bytes of layer l's FFN, or of its experts that a batch has met, that only the host has. */
static uint64_t layer_bytes(const run *r, int32_t l)
{
    const tn_model *m = r->model;
    const tn_layer *y = &m->layers[l];
    const int64_t n_ff = m->hp.n_ff, there = m->on_device.layers[l].ffn_gate.rows;
    const uint64_t all = (uint64_t)n_ff * (y->ffn_gate.row_bytes + y->ffn_up.row_bytes) +
                         (uint64_t)m->hp.n_embd * y->ffn_down.row_bytes;
    uint64_t counts[8], met = 0;
    if (!m->hp.n_expert) return all * (uint64_t)(n_ff - there) / (uint64_t)n_ff;
    CHECK_INT(tn_context_experts(r->ctx, l, counts, m->hp.n_expert, NULL), TN_OK);
    for (int64_t e = there / n_ff; e < m->hp.n_expert; e++)
        met += counts[e] > 0;
    return met * all;
}

static uint64_t host_bytes(const run *r)
{
    uint64_t bytes = 0;
    for (int32_t l = 0; l < r->model->hp.n_layers; l++)
        if (r->model->layers[l].ffn_gate.data) bytes += layer_bytes(r, l);
    return bytes;
}

/* Logits of n tokens in one batch; NULL after a failure. */
static float *batch(const golden *g, const tn_placement *p, int32_t n, int threads, uint64_t *bytes,
                    uint64_t *all)
{
    run r;
    tn_error err = {0};
    float *out = malloc((size_t)n * (size_t)g->n_vocab * sizeof *out);
    for (size_t i = 0; out && i < (size_t)n * (size_t)g->n_vocab; i++)
        out[i] = NAN;
    rows_sink sink = {out, g->n_vocab};
    tn_status s = open_planned(&r, g->path, p, threads, NULL, NULL, &err);
    if (!s) s = tn_context_eval_all(r.ctx, g->tokens, n, 0, keep_rows, &sink, &err);
    if (!s) *bytes = streamed(&r);
    if (!s) *all = host_bytes(&r);
    run_close(&r);
    if (!s) return out;
    FAIL("%s, %d tokens: %s", g->path, n, err.msg);
    free(out);
    return NULL;
}

/* Batches below, at and above the crossover that the plan tells. alike: it is
 * that of all layers. */
static void check_crossover(const golden *g, const tn_placement *p, bool alike, double max_abs,
                            double rms)
{
    const int32_t from = (int32_t)p->planned.plan.predicted.streamed_from;
    CHECK_MSG(from > 10 && from <= 30, "%s: streamed from %d tokens on", g->path, from);
    const int32_t sizes[] = {from - 1, from, from + 1, from + 15};
    for (int i = 0; i < 4 && from > 10 && from <= 30; i++) {
        uint64_t bytes = 0, all = 0;
        float *got = batch(g, p, sizes[i], 2, &bytes, &all);
        if (!got) continue;
        const distance d = compare(got, g->logits, (size_t)sizes[i] * (size_t)g->n_vocab);
        CHECK_MSG(d.max_abs <= max_abs && d.rms <= rms, "%s, %d tokens: off by %g, rms %g", g->path,
                  sizes[i], d.max_abs, d.rms);
        CHECK(all > 0);
        const bool some = i && i < 3 && !alike && bytes > 0 && bytes < all;
        CHECK_MSG(some || bytes == (i ? all : 0), "%s: %llu of %llu bytes for %d tokens",
                  g->path, (unsigned long long)bytes, (unsigned long long)all, sizes[i]);
        free(got);
    }
}

TEST(batches_cross_over)
{
    static const char *const archs[] = {"llama", "llama-bias", "gemma3", "qwen3"};
    static const char *const places[] = {"ffn_(gate|up|down)=host,.*=device",
                                         "ffn_(gate|up|down)=split:0.4,.*=device",
                                         "ffn_(gate|up|down)=host,blk.1.*=host,.*=device"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i += sample) {
        golden g;
        if (!golden_load(&g, archs[i])) return;
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            tn_placement *p = plan(g.path, places[k], 2e8, 16);
            if (!p) continue;
            check_crossover(&g, p, k < 2, g.tolerance, g.tolerance);
            tn_placement_close(p);
        }
        golden_free(&g);
    }
}

/* Experts are carried that tokens have chosen, and no others. */
TEST(batches_with_experts_cross_over)
{
    static const char *const archs[] = {"mixtral", "qwen3moe"};
    static const char *const places[] = {
        "ffn_(gate|up|down)_exps=host,.*=device", "ffn_(gate|up|down)_exps=split:0.4,.*=device",
        "ffn_gate_inp=host,ffn_(gate|up|down)_exps=host,.*=device"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < 2; i++) {
        golden g;
        if (!golden_load(&g, archs[i])) return;
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            tn_placement *p = plan(g.path, places[k], i ? 8e7 : 5e7, 16);
            if (!p) continue;
            check_crossover(&g, p, true, g.tolerance, g.tolerance);
            tn_placement_close(p);
        }
        golden_free(&g);
    }
}

/* ---- shared ---------------------------------------------------------------------------------- */

enum { n_shared = 16 }; /* tokens: fewer make activations cheap beside weights */

/* A batch of which the host computes about as much as is carried. */
static void check_shared(const char *arch, const char *place, double host_flops)
{
    golden g;
    uint64_t bytes = 0, all = 0, again = 0;
    if (!golden_load(&g, arch)) return;
    tn_placement *p = plan_for(g.path, place, machine(host_flops, 0.95), 16);
    float *a = p ? batch(&g, p, n_shared, 1, &bytes, &all) : NULL;
    float *b = p ? batch(&g, p, n_shared, 3, &again, &all) : NULL;
    const size_t n = n_shared * (size_t)g.n_vocab;
    const distance d = a ? compare(a, g.logits, n) : (distance){NAN, NAN};
    CHECK_MSG(d.max_abs <= g.tolerance, "%s, %s: off by %g", arch, place, d.max_abs);
    CHECK_MSG(5 * bytes > all && 5 * bytes < 4 * all, "%s, %s: %llu of %llu bytes", arch, place,
              (unsigned long long)bytes, (unsigned long long)all);
    CHECK(a && b && again == bytes && memcmp(a, b, n * sizeof *a) == 0);
    free(a);
    free(b);
    tn_placement_close(p);
    golden_free(&g);
}

TEST(host_and_device_share_what_the_host_has)
{
    static const char *const dense[] = {"ffn_(gate|up|down)=host,.*=device",
                                        "ffn_(gate|up|down)=split:0.3,.*=device",
                                        "ffn_(gate|up|down)=host,blk.1.*=host,.*=device"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < 3; i++) {
        check_shared(i == 1 ? "llama-bias" : "gemma3", dense[i], 1.6e8);
        if (i == 2) break; /* these are of dense models */
        check_shared(i ? "mixtral" : "qwen3moe",
                     i ? "ffn_(gate|up|down)_exps=split:0.25,.*=device"
                       : "ffn_(gate|up|down)_exps=host,.*=device",
                     i ? 4e7 : 6e7);
    }
}

/* ---- mapped files ---------------------------------------------------------------------------- */

/* What the planner thinks n tokens do in a layer whose FFN is the host's. */
static tn_prefill_way planned_way(const tn_placement *p, int32_t l, int32_t n)
{
    tn_cost k;
    const tn_plan_layer *y = &p->planned.plan.layer[l];
    tn_cost_init(&k, &p->shape, &p->profile, &p->planned.c, NULL);
    return tn_cost_prefill(&k, l, y->device, y->attn, 0, n).way;
}

/* A machine on which pinned weights travel twice as fast as others. */
static char *slow_pages(void)
{
    char *text = machine(1e8, 0.95);
    json_t *j = text ? json_loads(text, 0, NULL) : NULL;
    free(text);
    json_real_set(
        json_object_get(json_array_get(json_object_get(j, "devices"), 0), "pageable_gb_s"), 0.005);
    text = json_dumps(j, 0);
    json_decref(j);
    return text;
}

/* Pages of a file are never pinned: planner and execution know it and agree about every batch. */
TEST(mapped_weights_travel_as_planned)
{
    static const char *const place = "ffn_(gate|up|down)=host,.*=device";
    golden g;
    int shared = 0, differ = 0, streams = 0;
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    tn_placement *read = plan_to_load(g.path, place, slow_pages(), 16, TN_LOAD_READ);
    tn_placement *map = plan_to_load(g.path, place, slow_pages(), 16, TN_LOAD_MAP);
    REQUIRE(read && map);
    for (int32_t n = 10; n <= 40; n += 2) {
        uint64_t bytes = 1, all = 0;
        const tn_prefill_way way = planned_way(map, 0, n);
        shared += planned_way(read, 0, n) == TN_PREFILL_SHARE;
        differ += planned_way(read, 0, n) != way;
        streams += way == TN_PREFILL_STREAM;
        float *got = batch(&g, map, n, 2, &bytes, &all);
        const distance d = got ? compare(got, g.logits, (size_t)n * (size_t)g.n_vocab)
                               : (distance){NAN, NAN};
        CHECK_MSG(d.max_abs <= g.tolerance, "%d tokens: off by %g", n, d.max_abs);
        CHECK_MSG(way != TN_PREFILL_SHARE && bytes == (way == TN_PREFILL_STREAM ? all : 0),
                  "%d tokens, way %d: %llu of %llu bytes", n, (int)way, (unsigned long long)bytes,
                  (unsigned long long)all);
        free(got);
    }
    CHECK_MSG(shared > 3 && differ > 3 && streams > 3 && streams < 14, "%d shared, %d differ, %d",
              shared, differ, streams);
    tn_placement_close(read);
    tn_placement_close(map);
    golden_free(&g);
}

/* What the host is to hold decides, and a plan has counted all else. */
TEST(a_file_is_mapped_where_memory_is_short)
{
    const uint64_t gib = 1 << 30;
    CHECK(!tn_load_maps(TN_LOAD_AUTO, false, 10 * gib, 12 * gib));
    CHECK(tn_load_maps(TN_LOAD_AUTO, false, 10 * gib, 12 * gib - 1));
    CHECK(!tn_load_maps(TN_LOAD_AUTO, true, 10 * gib, 10 * gib));
    CHECK(tn_load_maps(TN_LOAD_AUTO, true, 10 * gib, 10 * gib - 1));
    CHECK(!tn_load_maps(TN_LOAD_AUTO, false, 10 * gib, 0));
    CHECK(tn_load_maps(TN_LOAD_MAP, false, 1, gib) && !tn_load_maps(TN_LOAD_READ, true, gib, 1));
}

TEST(what_is_on_devices_alone_needs_no_memory_of_the_host)
{
    golden g;
    tn_model m = {.name = NULL};
    if (!golden_load(&g, "llama") || tn_gguf_open(&m.gguf, g.path, NULL, NULL)) return;
    const uint64_t n = tn_gguf_n_tensors(m.gguf);
    tn_tensor_place *place = calloc(n, sizeof *place);
    tn_load l = {.m = &m};
    uint64_t all = 0, odd = 0;
    for (uint64_t i = 0; place && i < n; i++) {
        all += tn_gguf_tensor_at(m.gguf, i)->bytes;
        if ((place[i].host = i % 2)) odd += tn_gguf_tensor_at(m.gguf, i)->bytes;
    }
    CHECK_INT(tn_load_host_bytes(&l), all);
    l.place = place;
    CHECK_INT(tn_load_host_bytes(&l), odd);
    free(place);
    tn_gguf_close(m.gguf);
    golden_free(&g);
}

/* ---- projections ----------------------------------------------------------------------------- */

static uint64_t matrix_bytes(const tn_shape_layer *y, const tn_shape *s)
{
    uint64_t bytes = 0;
    for (int32_t j = 0; j < y->n; j++) {
        const tn_shape_tensor *t = &s->tensor[s->of_layer[y->first + j]];
        if (strstr(t->name, "attn_") && t->rows > 1) bytes += t->bytes;
    }
    return bytes;
}

/* A layer whose attention is the host's: a batch's projections are the device's, few tokens' are
 * not. */
TEST(projections_of_the_hosts_attention_are_streamed)
{
    static const char *const archs[] = {"llama-bias", "gemma3", "qwen3"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < 3; i++) {
        golden g;
        uint64_t bytes = 0, few = 1, ffn;
        if (!golden_load(&g, archs[i])) return;
        tn_placement *p = plan(g.path, "blk.1.attn=host,.*=device", 2e7, 16);
        float *a = p ? batch(&g, p, 40, 2, &bytes, &ffn) : NULL;
        float *b = p ? batch(&g, p, 8, 2, &few, &ffn) : NULL;
        const distance d =
            a ? compare(a, g.logits, 40 * (size_t)g.n_vocab) : (distance){NAN, NAN};
        CHECK_MSG(d.max_abs <= g.tolerance, "%s: off by %g", archs[i], d.max_abs);
        CHECK_MSG(b && few == 0, "%llu bytes for 8 tokens", (unsigned long long)few);
        CHECK_MSG(p && bytes == matrix_bytes(&p->shape.layer[1], &p->shape), "%s: %llu bytes",
                  archs[i], (unsigned long long)bytes);
        free(a);
        free(b);
        tn_placement_close(p);
        golden_free(&g);
    }
}

/* How far the host is from the exact logits in g, which it rounds activations for. */
static distance host_distance(const golden *g)
{
    distance d = {NAN, NAN};
    const run_options o = {.kv = TN_KV_F16}; /* with an F32 cache in two parts, far nearer */
    float *got = run_logits(g->path, &o, g->tokens, g->n, g->n_vocab);
    if (got) d = compare(got, g->logits, (size_t)g->n * (size_t)g->n_vocab);
    free(got);
    return d;
}

/* From the host's interleaved layout. The device's GEMM rounds otherwise, and not farther. */
TEST(quantised_weights_are_streamed)
{
    static const char *const paths[] = {"tests/data/quant/Q4_K_S.gguf",
                                        "tests/data/quant/Q4_0.gguf", "tests/data/quant/Q6_K.gguf"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i += sample) {
        golden g;
        if (!golden_load(&g, "llama")) return;
        snprintf(g.path, sizeof g.path, "%s", paths[i]);
        run r;
        const run_options exact = {.kv = TN_KV_F32, .exact = true};
        if (run_open(&r, g.path, &exact)) {
            g.n_vocab = run_vocab(&r);
            run_close(&r);
            free(g.logits);
            for (int32_t t = 0; t < g.n; t++)
                g.tokens[t] %= g.n_vocab;
            g.logits = run_logits(g.path, &exact, g.tokens, g.n, g.n_vocab);
            tn_placement *p = plan(g.path, "ffn_(gate|up|down)=host,.*=device", 6e8, 32);
            const distance host = g.logits ? host_distance(&g) : (distance){NAN, NAN};
            if (p && g.logits) check_crossover(&g, p, true, 1.5 * host.max_abs, 1.1 * host.rms);
            tn_placement_close(p);
        }
        golden_free(&g);
    }
}

TEST(the_same_plan_gives_the_same_bits)
{
    golden g;
    uint64_t bytes = 0, all;
    if (!have_device(device) || !golden_load(&g, "gemma3")) return;
    tn_placement *p = plan(g.path, "ffn_(gate|up|down)=split:0.3,.*=device", 2e8, 16);
    REQUIRE(p);
    float *a = batch(&g, p, 40, 1, &bytes, &all), *b = batch(&g, p, 40, 3, &bytes, &all);
    CHECK(bytes > 0 && a && b && memcmp(a, b, 40 * (size_t)g.n_vocab * sizeof *a) == 0);
    free(a);
    free(b);
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- faults and cancels ---------------------------------------------------------------------- */

static tn_status whole_life(const golden *g, const tn_placement *p, tn_engine *e, uint64_t *bytes,
                            float *logits, tn_error *err)
{
    run r = {.engine = e};
    const tn_model_options mo = {.struct_size = sizeof mo, .plan = p};
    const tn_context_options co = {
        .struct_size = sizeof co, .n_ctx = 96, .n_batch = n_batch, .page_size = page};
    tn_status s = tn_model_open(&r.model, e, g->path, &mo, err);
    if (!s) s = tn_context_new(&r.ctx, r.model, &co, err);
    if (!s) s = tn_context_eval(r.ctx, g->tokens, 40, err);
    if (!s) memcpy(logits, tn_context_logits(r.ctx), (size_t)g->n_vocab * sizeof *logits);
    if (!s) s = tn_context_eval(r.ctx, g->tokens + 40, 1, err);
    if (!s) *bytes = streamed(&r);
    tn_context_free(r.ctx);
    tn_model_close(r.model);
    return s;
}

/* Memory that cannot be pinned is no error: copies go through buffers, the bits are the same.
 * *tolerated: how often that was so. */
static int check_faults(const golden *g, const tn_placement *p, tn_device_fault kind, int step,
                        int *tolerated)
{
    tn_engine *e = NULL;
    const tn_engine_options o = {.struct_size = sizeof o, .threads = 2, .device = device};
    float *first = calloc(2 * (size_t)g->n_vocab, sizeof *first), *got = first + g->n_vocab;
    uint64_t bytes = 0, all = 0;
    if (tn_engine_new(&e, &o, NULL)) return 0;
    CHECK_INT(whole_life(g, p, e, &all, first, NULL), TN_OK);
    int k = 1;
    for (bool failed = true; failed && !tn_failures; k += step) {
        tn_device_memory m = {0};
        tn_error err = {0};
        const uint64_t before = e->device->api->fail_at(e->device, kind, (uint64_t)k);
        const tn_status s = whole_life(g, p, e, &bytes, got, &err);
        failed = e->device->api->fail_at(e->device, kind, 0) >= before + (uint64_t)k;
        CHECK_MSG(!s || s == TN_EDEVICE, "fault %d of kind %d: %d", k, (int)kind, (int)s);
        CHECK_MSG(!s || (kind == TN_FAULT_ALLOC ? says_missing(err.msg) : strlen(err.msg) > 10),
                  "fault %d of kind %d: %s", k, (int)kind, err.msg);
        CHECK_INT(e->device->api->memory(e->device, &m, NULL), TN_OK);
        CHECK_MSG(!m.allocations && !m.used_bytes && !m.pinned_bytes, "fault %d of kind %d leaks",
                  k, (int)kind);
        *tolerated += failed && !s;
        CHECK(s || (bytes == all && !memcmp(first, got, (size_t)g->n_vocab * sizeof *got)));
    }
    CHECK(all > 0);
    tn_engine_free(e);
    free(first);
    return k;
}

TEST(faults_end_in_an_error_and_leave_nothing)
{
    golden g;
    int pins = 0, others = 0;
    if (!have_device(device) || !golden_load(&g, "qwen3")) return;
    tn_placement *p = plan(g.path, "ffn_(gate|up|down)=host,.*=device", 2e8, 16);
    REQUIRE(p);
    CHECK(check_faults(&g, p, TN_FAULT_ALLOC, sample, &pins) > 10);
    CHECK(check_faults(&g, p, TN_FAULT_COPY, 3 * sample, &others) > 40);
    CHECK(check_faults(&g, p, TN_FAULT_LAUNCH, 5 * sample, &others) > 60);
    CHECK_MSG(pins >= 9 / (int)sample && !others, "%d pins were refused, %d faults unseen", pins,
              others);
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- pinned weights -------------------------------------------------------------------------- */

static tn_emu_counters counted(const tn_engine *e)
{
    tn_emu_counters n = {0};
    if (e->device->api->emu) e->device->api->emu->count(&n);
    return n;
}

/* Logits after 40 tokens with so many bytes of weights that may be pinned, 0: as on the machine. */
static float *pinned_life(const golden *g, tn_placement *p, uint64_t limit, uint64_t *pinned)
{
    run r;
    tn_error err = {0};
    tn_device_memory with = {0};
    const uint64_t memory = p->profile.host.memory_bytes;
    float *out = calloc((size_t)g->n_vocab, sizeof *out);
    if (limit) p->profile.host.memory_bytes = 2 * limit;
    tn_status s = open_planned(&r, g->path, p, 2, NULL, NULL, &err);
    p->profile.host.memory_bytes = memory;
    if (!s) s = tn_context_eval(r.ctx, g->tokens, 40, &err); /* there are pages now */
    if (!s) s = tn_context_rewind(r.ctx, 0, &err);
    const tn_emu_counters before = s ? (tn_emu_counters){0} : counted(r.engine);
    if (!s) s = tn_context_eval(r.ctx, g->tokens, 40, &err);
    CHECK_MSG(!s, "%s", err.msg);
    if (!s) {
        const tn_emu_counters after = counted(r.engine);
        /* Columns of pinned weights are copied from where they are. */
        CHECK_INT(after.pageable, before.pageable);
        CHECK(!r.engine->device->api->emu || (after.strided > before.strided) == !limit);
        CHECK(streamed(&r) > 0 && (tn_pins_share(r.model->pins) < 1) == (limit > 0));
        memcpy(out, tn_context_logits(r.ctx), (size_t)g->n_vocab * sizeof *out);
        CHECK_INT(r.engine->device->api->memory(r.engine->device, &with, NULL), TN_OK);
        *pinned = with.pinned_bytes;
    }
    run_close(&r);
    return out;
}

/* All that is streamed is pinned, as far as the limit goes; the way of a copy changes no bit. */
TEST(weights_are_pinned_as_far_as_the_limit_goes)
{
    golden g;
    uint64_t all = 0, some = 0, none = 0;
    const uint64_t limit = 5 * 4096;
    if (!have_device(device) || !golden_load(&g, "qwen3")) return;
    tn_placement *p = plan(g.path, "ffn_(gate|up|down)=host,.*=device", 2e8, 16);
    REQUIRE(p);
    float *a = pinned_life(&g, p, 0, &all), *b = pinned_life(&g, p, limit, &some),
          *c = pinned_life(&g, p, 1, &none);
    const size_t n = (size_t)g.n_vocab * sizeof *a;
    CHECK(memcmp(a, b, n) == 0 && memcmp(a, c, n) == 0);
    CHECK_MSG(all > some && some > none && some - none <= limit, "%llu, %llu, %llu bytes",
              (unsigned long long)all, (unsigned long long)some, (unsigned long long)none);
    /* All of it is what the planner counted, and the rest of each matrix's last page. */
    tn_cost k;
    float *fixed = tn_plan_fixed(&p->planned.plan, &p->shape, &tn_default_allocator);
    REQUIRE(fixed);
    tn_cost_init(&k, &p->shape, &p->profile, &p->planned.c, fixed);
    const uint64_t carried = tn_plan_carried(&p->planned.plan, &k);
    CHECK_MSG(carried > 0 && all - none >= carried && all - none < carried + 3 * 3 * 4096,
              "%llu bytes are carried, %llu are pinned", (unsigned long long)carried,
              (unsigned long long)(all - none));
    tn_free(&tn_default_allocator, fixed);
    for (int32_t l = 0; l < p->shape.n_layers; l++)
        all -= p->shape.layer[l].ffn_bytes;
    CHECK_MSG(all >= none, "%llu of %llu bytes are left", (unsigned long long)all,
              (unsigned long long)none);
    free(a);
    free(b);
    free(c);
    tn_placement_close(p);
    golden_free(&g);
}

/* ---- slabs of down --------------------------------------------------------------------------- */

/* Copies to a device as they are asked for. */
static struct {
    tn_device_api api;
    const tn_device_api *real;
    struct {
        const void *from;
        size_t bytes;
    } copy[1000];
    size_t n, strided;
} seen;

static tn_status see_copy(tn_device *d, tn_stream *s, void *to, const void *from, size_t bytes,
                          tn_error *err)
{
    if (seen.n < sizeof seen.copy / sizeof *seen.copy) {
        seen.copy[seen.n].from = from;
        seen.copy[seen.n].bytes = bytes;
    }
    seen.n++;
    return seen.real->upload_async(d, s, to, from, bytes, err);
}

static tn_status see_pieces(tn_device *d, tn_stream *s, void *to, const void *from, size_t bytes,
                            size_t n, size_t stride, tn_error *err)
{
    seen.strided++;
    return seen.real->upload_pieces_async(d, s, to, from, bytes, n, stride, err);
}

static void look_at_copies(tn_device *d)
{
    seen.n = seen.strided = 0;
    seen.real = d->api;
    seen.api = *d->api;
    seen.api.upload_async = see_copy;
    seen.api.upload_pieces_async = see_pieces;
    d->api = &seen.api;
}

static int copies_of(const void *from, size_t bytes)
{
    int n = 0;
    for (size_t i = 0; i < seen.n; i++)
        n += seen.copy[i].from == from && seen.copy[i].bytes == bytes;
    return n;
}

/* Every slab of a layer's down has been copied once, as one extent; returns how many there are. */
static int check_slabs(const tn_weight *w, int64_t slab)
{
    const tn_type_info *t = tn_type_get(w->type);
    const size_t rows = (size_t)(w->rows + 7) / 8 * 8;
    const char *at = w->data;
    int n = 0;
    CHECK(w->layout == TN_LAYOUT_R8 && w->slab == slab && w->slab_rows == (int64_t)rows);
    for (int64_t c = 0; c < w->cols; c += slab, n++) {
        const int64_t cols = w->cols - c < slab ? w->cols - c : slab;
        const size_t bytes = rows * (size_t)(cols / t->block) * t->bytes;
        CHECK_MSG(copies_of(at, bytes) == 1, "%d copies of %zu bytes at column %d",
                  copies_of(at, bytes), bytes, (int)c);
        at += bytes;
    }
    return n;
}

TEST(a_slab_of_down_is_one_copy)
{
    enum { slab = 96 };
    golden g;
    run r;
    tn_error err = {0};
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    snprintf(g.path, sizeof g.path, "tests/data/quant/Q4_0.gguf");
    tn_placement *p = plan(g.path, "ffn_(gate|up|down)=host,.*=device", 6e8, slab);
    REQUIRE(p);
    tn_status s = open_planned(&r, g.path, p, 2, NULL, NULL, &err);
    if (!s) look_at_copies(r.engine->device);
    const int32_t n_vocab = s ? 1 : run_vocab(&r);
    for (int32_t t = 0; t < g.n; t++)
        g.tokens[t] %= n_vocab;
    if (!s) s = tn_context_eval(r.ctx, g.tokens, 40, &err);
    CHECK_MSG(!s, "%s", err.msg);
    CHECK(streamed(&r) > 0 && seen.n < sizeof seen.copy / sizeof *seen.copy);
    CHECK_INT(seen.strided, 0);
    REQUIRE(!s && r.model->hp.n_layers > 1 && r.model->hp.n_ff % slab);
    for (int32_t l = 0; l + 1 < r.model->hp.n_layers; l++) /* of the last, one token's FFN is
                                                              left */
        CHECK(check_slabs(&r.model->layers[l].ffn_down, slab) > 2);
    r.engine->device->api = seen.real;
    run_close(&r);
    tn_placement_close(p);
    golden_free(&g);
}

/* How down lies at a level of the CPU, with a device and without. */
static void check_layout(const char *isa, bool with_device)
{
    const char *place = "ffn=host";
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 1,
                                  .isa = isa,
                                  .device = with_device ? device : NULL};
    const tn_model_options mo = {.struct_size = sizeof mo,
                                 .place = &place,
                                 .n_place = with_device,
                                 .granule = with_device ? 64 : 0};
    tn_engine *e = NULL;
    tn_model *m = NULL;
    tn_error err = {0};
    tn_status s = tn_engine_new(&e, &eo, &err);
    if (!s) s = tn_model_open(&m, e, "tests/data/quant/Q4_0.gguf", &mo, &err);
    CHECK_MSG(!s, "%s", err.msg);
    for (int32_t l = 0; !s && l < m->hp.n_layers; l++) {
        const tn_weight *w = &m->layers[l].ffn_down, *up = &m->layers[l].ffn_up;
        CHECK_INT(w->layout, with_device ? TN_LAYOUT_R8 : e->kernels.packed);
        CHECK_INT(w->slab, with_device ? 64 : 0);
        CHECK(up->layout == w->layout && !up->slab);
    }
    tn_model_close(m);
    tn_engine_free(e);
}

TEST(down_lies_in_slabs_at_every_level_where_there_is_a_device)
{
    static const char *const levels[] = {NULL, "scalar", "avx2"};
    if (!have_device(device)) return;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (levels[i] && levels[i][0] == 'a' && !(tn_isa_detect() & TN_ISA_AVX2)) continue;
        check_layout(levels[i], true);
        check_layout(levels[i], false);
    }
}

/* After each layer; afterwards the batch gives what it would have. */
TEST(canceled_batches_leave_nothing_behind)
{
    golden g;
    run r;
    tn_error err = {0};
    canceler c = {0, 0};
    if (!have_device(device) || !golden_load(&g, "llama")) return;
    tn_placement *p = plan(g.path, "ffn_(gate|up|down)=host,.*=device", 2e8, 16);
    REQUIRE(p);
    CHECK_MSG(!open_planned(&r, g.path, p, 2, cancel_once, &c, &err), "%s", err.msg);
    int canceled = 0;
    tn_status s = r.ctx ? TN_ECANCELED : TN_OK;
    while (s == TN_ECANCELED) {
        c = (canceler){0, c.at + 1};
        s = tn_context_eval(r.ctx, g.tokens, 40, &err);
        canceled += s == TN_ECANCELED;
    }
    CHECK_INT(s, TN_OK);
    CHECK(canceled > 2 && streamed(&r) > 0);
    if (!s) {
        const distance d = compare(tn_context_logits(r.ctx), g.logits + 39 * (size_t)g.n_vocab,
                                   (size_t)g.n_vocab);
        CHECK_MSG(d.max_abs <= g.tolerance, "off by %g", d.max_abs);
    }
    run_close(&r);
    tn_placement_close(p);
    golden_free(&g);
}

int main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) device = "cuda";
#ifdef __SANITIZE_THREAD__ /* the others take minutes and order the same streams */
    char *sample_of[] = {argv[0], "the_same_plan", NULL};
    if (argc < 2) return tn_test_main(2, sample_of);
#endif
    return tn_test_main(argc, argv);
}
