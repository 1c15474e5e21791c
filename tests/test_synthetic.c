/* Random models in real shapes: every header parses and binds, and a small one runs. */
#include "golden.h"

#include "../engine/engine.h"
#include "../engine/hardware.h"
#include "../engine/model.h"
#include "../engine/synthetic.h"

static const struct {
    const char *name;
    double billions; /* of weights, as the models' names and cards tell, tied heads counted once */
} shapes[] = {
    {"tiny-llama", 0.001836}, {"tiny-moe", 0.003811},
    {"llama-135m", 0.1345},   {"llama-1b", 1.236},        {"llama-3b", 3.213},
    {"llama-8b", 8.03},       {"llama-70b", 70.55},       {"llama-405b", 405.9},
    {"mistral-7b", 7.248},    {"mixtral-8x7b", 46.7},     {"qwen2-7b", 7.616},
    {"qwen3-0.6b", 0.596},    {"qwen3-8b", 8.19},         {"qwen3-32b", 32.76},
    {"qwen3-30b-a3b", 30.53}, {"qwen3-235b-a22b", 235.1}, {"gemma3-270m", 0.2681},
    {"gemma3-1b", 1.0},       {"gemma3-27b", 27.0},
};

/* Binds without reading weights; vectors are filled at random. False after reporting a failure. */
static bool binds(tn_model *m, tn_error *err)
{
    static const tn_model_options none = {.struct_size = sizeof none};
    tn_load l = {.m = m, .opt = &none, .map = true, .random = true, .err = err};
    l.used = calloc(tn_gguf_n_tensors(m->gguf), sizeof *l.used);
    const tn_status s = l.used ? tn_model_bind(&l) : TN_ENOMEM;
    free(l.used);
    return s == TN_OK;
}

static void check_shape(tn_engine *e, const char *name, const char *type, double billions)
{
    tn_error err = {0};
    void *bytes = NULL;
    size_t size;
    tn_model m = {.engine = e, .a = &e->a, .name = (char *)name};
    const tn_gguf_options header = {sizeof header, true, NULL};
    if (tn_synthetic_header(&bytes, &size, name, type, &e->a, &err) ||
        tn_gguf_parse(&m.gguf, bytes, size, name, &header, &err)) {
        FAIL("%s %s: %s", name, type, err.msg);
        tn_free(&e->a, bytes);
        return;
    }
    tn_str arch = {NULL, 0};
    CHECK_INT(tn_gguf_get_str(m.gguf, "general.architecture", &arch, &err), TN_OK);
    m.arch = tn_arch_find(arch);
    CHECK_MSG(m.arch && binds(&m, &err), "%s %s: %s", name, type, err.msg);
    double n = 0;
    for (uint64_t i = 0; i < tn_gguf_n_tensors(m.gguf); i++) {
        const uint64_t *s = tn_gguf_tensor_at(m.gguf, i)->shape;
        n += (double)s[0] * (double)s[1] * (double)s[2] * 1e-9;
    }
    CHECK_NEAR(n, billions, 0.004 * billions);
    for (size_t i = 0; i < m.n_owned; i++)
        tn_free(m.a, m.owned[i]);
    tn_free(m.a, m.owned);
    tn_gguf_close(m.gguf);
    tn_free(&e->a, bytes);
}

TEST(every_shape_parses_and_binds)
{
    static const char *const types[] = {"q4_0", "q8_0",   "f16",    "q2_k",   "q3_k",  "q4_k",
                                        "q6_k", "q4_k_s", "q4_k_m", "Q5_K_M", "q5_k_s"};
    tn_engine *e;
    REQUIRE(tn_engine_new(&e, NULL, NULL) == TN_OK);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            check_shape(e, shapes[i].name, types[t], shapes[i].billions);
    tn_engine_free(e);
}

TEST(unknown_names_are_answered_with_the_known_ones)
{
    tn_engine *e;
    tn_model *m = (tn_model *)&e;
    tn_error err = {0};
    REQUIRE(tn_engine_new(&e, NULL, NULL) == TN_OK);
    CHECK_INT(tn_model_open_synthetic(&m, e, "llama-9000b", "q4_k", NULL, &err), TN_EARG);
    CHECK(m == NULL);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        CHECK_MSG(strstr(err.msg, shapes[i].name), "no %s in: %s", shapes[i].name, err.msg);
    CHECK_INT(tn_model_open_synthetic(&m, e, "llama-8b", "q4_9", NULL, &err), TN_EARG);
    CHECK(strstr(err.msg, "q4_9") && strstr(err.msg, "q4_k_m"));
    CHECK_INT(tn_model_open_synthetic(&m, e, "llama-8b", "i32", NULL, &err), TN_EARG);
    tn_engine_free(e);
}

/* Weights of every type: finite, centred, of the size that a trained model's have. */
TEST(random_weights_are_sane)
{
    static const uint32_t types[] = {TN_TYPE_F32,  TN_TYPE_F16,  TN_TYPE_BF16, TN_TYPE_Q4_0,
                                     TN_TYPE_Q4_1, TN_TYPE_Q5_0, TN_TYPE_Q5_1, TN_TYPE_Q8_0,
                                     TN_TYPE_Q2_K, TN_TYPE_Q3_K, TN_TYPE_Q4_K, TN_TYPE_Q5_K,
                                     TN_TYPE_Q6_K};
    enum { cols = 256 * 64 };
    static float x[cols];
    static _Alignas(64) char bytes[cols * 4], again[cols * 4];
    tn_kernels k;
    tn_kernels_init(&k, 0);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        tn_weight w = {.type = types[i], .rows = 1, .cols = cols, .data = bytes};
        REQUIRE(tn_type_row_bytes(w.type, cols, &w.row_bytes));
        tn_synthetic_fill(bytes, w.type, w.row_bytes, 7);
        tn_synthetic_fill(again, w.type, w.row_bytes, 7);
        CHECK(memcmp(bytes, again, w.row_bytes) == 0);
        k.dequantize[TN_LAYOUT_ROWS][w.type](&w, 0, x);
        double sum = 0, squares = 0;
        for (int c = 0; c < cols; c++) {
            sum += (double)x[c];
            squares += (double)x[c] * (double)x[c];
        }
        const double mean = sum / cols, deviation = sqrt(squares / cols);
        CHECK_MSG(fabs(mean) <= 0.004 && deviation >= 0.01 && deviation <= 0.04,
                  "%s: mean %g, standard deviation %g", tn_type_get(w.type)->name, mean, deviation);
    }
}

typedef struct sink {
    float *rows;
    int32_t calls, next, n_vocab;
} sink;

static bool keep(void *user, int32_t first, int32_t n, const float *rows)
{
    sink *s = user;
    CHECK_INT(first, s->next);
    memcpy(s->rows + (size_t)first * (size_t)s->n_vocab, rows,
           (size_t)n * (size_t)s->n_vocab * sizeof *rows);
    s->next = first + n;
    s->calls++;
    return true;
}

/* The vocabulary is large enough for logits to come in several slices of one batch. */
TEST(a_small_one_runs)
{
    enum { n = 100, n_vocab = 49152 };
    tn_engine *e;
    tn_model *m = NULL;
    tn_context *c = NULL;
    tn_error err = {0};
    int32_t tokens[n], ids[4];
    size_t n_ids;
    for (int i = 0; i < n; i++)
        tokens[i] = i * 331 % n_vocab;
    REQUIRE(tn_engine_new(&e, NULL, NULL) == TN_OK);
    CHECK_MSG(tn_model_open_synthetic(&m, e, "llama-135m", "q4_k_m", NULL, &err) == TN_OK, "%s",
              err.msg);
    REQUIRE(m && tn_context_new(&c, m, NULL, &err) == TN_OK);
    CHECK_INT(tn_context_capacity(c), 8192);
    CHECK_INT(tn_tokenize(m, "a", 1, 0, ids, 4, &n_ids, NULL, &err), TN_EUNSUPPORTED);
    sink s = {malloc((size_t)n * n_vocab * sizeof(float)), 0, 0, n_vocab};
    REQUIRE(s.rows);
    CHECK_INT(tn_context_eval_all(c, tokens, n, 0, keep, &s, &err), TN_OK);
    CHECK_MSG(s.calls > 1, "all logits in one slice");
    CHECK_INT(s.next, n);
    double magnitude = 0;
    for (size_t i = 0; i < (size_t)n * n_vocab; i++)
        if (!(fabs((double)s.rows[i]) <= magnitude)) magnitude = fabs((double)s.rows[i]);
    CHECK_MSG(magnitude > 1e-6 && magnitude < 1e4, "largest logit %g", magnitude);
    for (int last = 1; last <= n; last += 33) {
        CHECK_INT(tn_context_rewind(c, 0, NULL), TN_OK);
        CHECK_INT(tn_context_eval(c, tokens, last, &err), TN_OK);
        const float *want = s.rows + (size_t)(last - 1) * n_vocab;
        const distance d = compare(tn_context_logits(c), want, n_vocab);
        CHECK_MSG(d.max_abs <= 0.1 * magnitude, "row %d: off by %g of %g", last, d.max_abs,
                  magnitude);
    }
    free(s.rows);
    tn_context_free(c);
    tn_model_close(m);
    tn_engine_free(e);
}

TEST(what_never_fits_is_refused)
{
    tn_engine *e;
    tn_model *m;
    tn_error err = {0};
    tn_host_info h;
    tn_host_info_get(&h);
    if (h.memory_bytes > 1400ull << 30) SKIP("this machine could hold it");
    REQUIRE(tn_engine_new(&e, NULL, NULL) == TN_OK);
    CHECK_INT(tn_model_open_synthetic(&m, e, "llama-405b", "f32", NULL, &err), TN_ENOMEM);
    CHECK(!m && strstr(err.msg, "llama-405b") && strstr(err.msg, "GiB"));
    tn_engine_free(e);
}

/* Logits after 40 tokens of a model with unquantised weights: large batches go through OpenBLAS,
 * where there is one. */
static bool unquantised_logits(int threads, int32_t n_batch, float *logits)
{
    enum { n = 40, n_vocab = 49152 };
    tn_engine *e = NULL;
    tn_model *m = NULL;
    tn_context *c = NULL;
    int32_t tokens[n];
    for (int i = 0; i < n; i++)
        tokens[i] = i * 331 % n_vocab;
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = threads};
    const tn_context_options co = {.struct_size = sizeof co, .n_batch = n_batch};
    const bool ok = tn_engine_new(&e, &eo, NULL) == TN_OK &&
                    tn_model_open_synthetic(&m, e, "llama-135m", "f16", NULL, NULL) == TN_OK &&
                    tn_context_new(&c, m, &co, NULL) == TN_OK &&
                    tn_context_eval(c, tokens, n, NULL) == TN_OK;
    CHECK(ok);
    if (ok) memcpy(logits, tn_context_logits(c), n_vocab * sizeof *logits);
    tn_context_free(c);
    tn_model_close(m);
    tn_engine_free(e);
    return ok;
}

TEST(unquantised_weights_give_the_same_bits_on_any_number_of_threads)
{
    enum { n_vocab = 49152 };
    static float one[n_vocab], three[n_vocab], small[n_vocab];
    REQUIRE(unquantised_logits(1, 512, one) && unquantised_logits(3, 512, three));
    CHECK(memcmp(one, three, sizeof one) == 0);
    REQUIRE(unquantised_logits(2, 10, small));
    double magnitude = 0;
    for (int i = 0; i < n_vocab; i++)
        magnitude = fmax(magnitude, fabs((double)one[i]));
    const distance d = compare(small, one, n_vocab);
    CHECK_MSG(magnitude > 1e-6 && d.max_abs <= 1e-3 * magnitude, "off by %g of %g", d.max_abs,
              magnitude);
}

TEST_MAIN
