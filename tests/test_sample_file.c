/* The sampler's defaults: the library's own, and those that a file's general.sampling keys give. */
#include "harness.h"

#include "../engine/model.h"
#include "../gguf/write.h"

/* A model that is nothing but keys. */
static tn_status file_defaults(tn_gguf_writer *w, tn_sampler_options *o, tn_error *err)
{
    const uint8_t *bytes;
    size_t size;
    tn_gguf *g;
    const tn_gguf_options opt = {.struct_size = sizeof opt, .header_only = true};
    tn_status s = tn_gguf_writer_finish(w, &bytes, &size, err);
    if (!s) s = tn_gguf_parse(&g, bytes, size, "test.gguf", &opt, err);
    if (s) {
        FAIL("the test's file: %s", err->msg);
        return s;
    }
    const tn_model m = {.gguf = g};
    s = tn_sampler_defaults(&m, o, err);
    tn_gguf_close(g);
    return s;
}

TEST(defaults_come_from_the_file)
{
    tn_sampler_options o;
    CHECK_INT(tn_sampler_defaults(NULL, &o, NULL), TN_OK);
    CHECK_NEAR(o.temperature, 0.8, 1e-6);
    CHECK_INT(o.top_k, 40);
    CHECK_NEAR(o.top_p, 0.95, 1e-6);
    CHECK_NEAR(o.min_p, 0.05, 1e-6);
    CHECK_NEAR(o.repeat_penalty, 1, 0);
    CHECK_INT(o.penalty_last_n, 64);
    CHECK_INT(o.struct_size, sizeof o);
    tn_gguf_writer *w = tn_gguf_writer_new(NULL);
    tn_gguf_writer_f32(w, "general.sampling.temp", 0.6f);
    tn_gguf_writer_int(w, "general.sampling.top_k", TN_GGUF_I32, 20);
    tn_gguf_writer_f32(w, "general.sampling.top_p", 0.9f);
    tn_gguf_writer_f32(w, "general.sampling.min_p", 0.01f);
    tn_gguf_writer_f32(w, "general.sampling.penalty_repeat", 1.25f);
    tn_gguf_writer_int(w, "general.sampling.penalty_last_n", TN_GGUF_I32, -1);
    tn_error err = {0};
    CHECK_INT(file_defaults(w, &o, &err), TN_OK);
    CHECK_NEAR(o.temperature, 0.6, 1e-6);
    CHECK_INT(o.top_k, 20);
    CHECK_NEAR(o.top_p, 0.9, 1e-6);
    CHECK_NEAR(o.min_p, 0.01, 1e-6);
    CHECK_NEAR(o.repeat_penalty, 1.25, 1e-6);
    CHECK_INT(o.penalty_last_n, -1);
    tn_gguf_writer_free(w);
    w = tn_gguf_writer_new(NULL);
    tn_gguf_writer_int(w, "general.sampling.top_k", TN_GGUF_I32, -1); /* how files spell "off" */
    CHECK_INT(file_defaults(w, &o, &err), TN_OK);
    CHECK_INT(o.top_k, 0);
    tn_gguf_writer_free(w);
}

TEST(bad_defaults_of_the_file_are_named)
{
    static const char *const keys[] = {
        "general.sampling.temp",           "general.sampling.top_k",
        "general.sampling.top_p",          "general.sampling.min_p",
        "general.sampling.penalty_repeat", "general.sampling.penalty_last_n"};
    for (int i = 0; i < 6; i++) {
        tn_gguf_writer *w = tn_gguf_writer_new(NULL);
        if (i == 5)
            tn_gguf_writer_int(w, keys[i], TN_GGUF_I32, -2);
        else
            tn_gguf_writer_f32(w, keys[i], -0.5f); /* for top_k: not an integer */
        tn_sampler_options o = {.top_k = 123};
        tn_error err = {0};
        CHECK_INT(file_defaults(w, &o, &err), TN_EFORMAT);
        CHECK_MSG(strstr(err.msg, keys[i]), "'%s' does not name %s", err.msg, keys[i]);
        CHECK_INT(o.top_k, 123);
        tn_gguf_writer_free(w);
    }
}

TEST_MAIN
