/* Greedy decoding with tensors on the device, on the emulated one unless --cuda is given: the
 * likeliest token is that of the logits, wherever it is looked for. */
#include "golden.h"

#include "../engine/engine.h"
#include "../gguf/gguf.h"
#include "../kernels/emu/emu.h"

static const char *device = "emu";

/* The thread sanitizer is slow: one model will do for it. */
#ifdef __SANITIZE_THREAD__
enum { sample = 20 };
#else
enum { sample = 1 };
#endif

static uint64_t downloaded(const run *r)
{
    tn_emu_counters n = {0};
    const tn_emu_control *emu = r->engine->device ? r->engine->device->api->emu : NULL;
    if (emu) emu->count(&n);
    return n.downloaded;
}

/* One context gives logits, the other the likeliest token: of the prompt, and of tokens that are
 * recorded and replayed; in between it gives logits, too. */
static void check_best(const golden *g, const char *place, bool on_device)
{
    run r;
    tn_context *c = NULL;
    tn_error err = {0};
    const run_options o = {
        .kv = TN_KV_F32, .device = device, .page_size = 16, .granule = 16, .place = place};
    const tn_context_options co = {.struct_size = sizeof co, .kv = TN_KV_F32, .page_size = 16};
    if (!run_open(&r, g->path, &o)) return;
    CHECK_INT(tn_context_new(&c, r.model, &co, &err), TN_OK);
    for (int32_t i = 0, n = 20; c && i < 28; i += n, n = 1) {
        int32_t best = -1;
        CHECK_INT(tn_context_eval(r.ctx, g->tokens + i, n, &err), TN_OK);
        const uint64_t before = downloaded(&r);
        const bool plain = i == 23;
        CHECK_INT(plain ? tn_context_eval(c, g->tokens + i, n, &err)
                        : tn_context_eval_best(c, g->tokens + i, n, &best, &err),
                  TN_OK);
        const uint64_t bytes = downloaded(&r) - before;
        const float *logits = tn_context_logits(r.ctx);
        if (plain)
            best = tn_context_logits(c) ? argmax(tn_context_logits(c), g->n_vocab) : -1;
        else
            CHECK(tn_context_logits(c) == NULL);
        CHECK_INT(best, argmax(logits, g->n_vocab));
        if (on_device && r.engine->device->api->emu)
            CHECK_MSG(plain ? bytes >= 4 * (uint64_t)g->n_vocab : bytes == 8,
                      "token %d: %llu bytes came from the device", i, (unsigned long long)bytes);
    }
    CHECK_INT(tn_context_length(c), 28);
    CHECK_INT(tn_context_eval_best(c, g->tokens, 1, NULL, &err), TN_EARG);
    tn_context_free(c);
    run_close(&r);
}

TEST(the_likeliest_token_comes_without_logits)
{
    static const char *const names[] = {"qwen3", "gemma3", "llama"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i += sample) {
        golden g;
        if (!have_device(device) || !golden_load(&g, names[i])) return;
        check_best(&g, ".=device", true);
        check_best(&g, "output=split:0.5,token_embd=split:0.5,ffn_=split:0.4", false);
        check_best(&g, ".=host", false);
        golden_free(&g);
    }
}

/* The model's file with a final norm of one value; freed by the caller. */
static uint8_t *spoiled_file(const char *path, float value, size_t *size)
{
    tn_gguf *file = NULL;
    uint8_t *bytes = NULL;
    if (tn_gguf_open(&file, path, NULL, NULL)) return NULL;
    const tn_gguf_tensor *t = tn_gguf_find_tensor(file, "output_norm.weight");
    const uint8_t *data = tn_gguf_part_data(file, 0, size);
    if (t && t->type == TN_TYPE_F32 && (bytes = malloc(*size))) {
        memcpy(bytes, data, *size);
        for (uint64_t at = 0; at < t->bytes; at += sizeof value)
            memcpy(bytes + t->offset + at, &value, sizeof value);
    }
    tn_gguf_close(file);
    return bytes;
}

/* Where no token is the likeliest that is an error, and the context stays as it was. */
static void check_nan(tn_context *c)
{
    static const int32_t tokens[] = {5, 17, 33};
    tn_error err = {0};
    int32_t best = 77;
    for (int n = 3; n > 0; n -= 2) {
        CHECK_INT(tn_context_eval_best(c, tokens, n, &best, &err), TN_EINTERNAL);
        CHECK_MSG(strstr(err.msg, "no token is the likeliest"), "%s", err.msg);
        CHECK_INT(best, 77);
        CHECK_INT(tn_context_length(c), 0);
    }
}

/* All logits are 0: the lowest id. */
static void check_equal(tn_context *c)
{
    const int32_t token = 5;
    int32_t best = 77;
    CHECK_INT(tn_context_eval_best(c, &token, 1, &best, NULL), TN_OK);
    CHECK_INT(best, 0);
}

static void with_final_norm(float value, void (*check)(tn_context *c))
{
    static const char *const places[] = {".=device", ".=host"};
    size_t size;
    uint8_t *bytes = spoiled_file("tests/data/arch/qwen2/model-f16.gguf", value, &size);
    tn_engine *e = NULL;
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 2, .device = device};
    REQUIRE(bytes && tn_engine_new(&e, &eo, NULL) == TN_OK);
    for (int p = 0; p < 2; p++) {
        const tn_model_options mo = {.struct_size = sizeof mo, .place = &places[p], .n_place = 1};
        tn_model *m = NULL;
        tn_context *c = NULL;
        tn_error err = {0};
        CHECK_INT(tn_model_open_memory(&m, e, bytes, size, "spoiled", &mo, &err), TN_OK);
        if (m) CHECK_INT(tn_context_new(&c, m, NULL, &err), TN_OK);
        if (c) check(c);
        tn_context_free(c);
        tn_model_close(m);
    }
    tn_engine_free(e);
    free(bytes);
}

TEST(no_token_is_the_likeliest_of_nan)
{
    if (have_device(device)) with_final_norm(NAN, check_nan);
}

TEST(the_likeliest_of_equals_is_the_first)
{
    if (have_device(device)) with_final_norm(0.0f, check_equal);
}

int main(int argc, char **argv)
{
    if (take_cuda(&argc, &argv)) device = "cuda";
    return tn_test_main(argc, argv);
}
