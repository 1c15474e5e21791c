/* A build without device code (CUDA=off): this program is linked with nodevice.c in device.c's
 * place, whatever the rest of the build has. */
#include "../engine/tenon.h"
#include "../kernels/device.h"
#include "harness.h"

static tn_error err;

TEST(there_are_no_devices)
{
    for (tn_device_kind kind = TN_DEVICE_CUDA; kind <= TN_DEVICE_EMULATED; kind++) {
        const tn_device_options o = {.kind = kind};
        tn_device *d = (tn_device *)&err;
        int n = -1;
        CHECK_INT(tn_device_count(kind, &n, &err), TN_EUNSUPPORTED);
        CHECK_INT(n, 0);
        CHECK_MSG(strstr(err.msg, "build it without CUDA=off"), "%s", err.msg);
        CHECK_INT(tn_device_open(&o, &d, &err), TN_EUNSUPPORTED);
        CHECK(d == NULL);
        CHECK_INT(tn_device_open(&o, &d, NULL), TN_EUNSUPPORTED);
    }
}

TEST(a_device_that_was_asked_for_is_an_error)
{
    static const char *const names[] = {"cuda", "emu", "emu:2", "cuda:0,1"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        tn_devices list;
        tn_engine *e = (tn_engine *)&err;
        const tn_engine_options o = {.struct_size = sizeof o, .threads = 1, .device = names[i]};
        CHECK_INT(tn_devices_open(&list, names[i], NULL, NULL, &err), TN_EUNSUPPORTED);
        CHECK_INT(list.n, 0);
        CHECK_INT(tn_engine_new(&e, &o, &err), TN_EUNSUPPORTED);
        CHECK_MSG(e == NULL && strstr(err.msg, "CUDA=off"), "%s: %s", names[i], err.msg);
    }
    tn_devices list;
    CHECK_INT(tn_devices_open(&list, "rocm", NULL, NULL, &err), TN_EARG);
}

TEST(models_run_on_the_host)
{
    static const int32_t tokens[] = {1, 2, 3};
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 1};
    const tn_context_options co = {.struct_size = sizeof co, .n_ctx = 16};
    tn_engine *e = NULL;
    tn_model *m = NULL;
    tn_context *c = NULL;
    REQUIRE(tn_engine_new(&e, &eo, &err) == TN_OK);
    CHECK_STR(tn_engine_devices(e), "none");
    CHECK_INT(tn_model_open(&m, e, "tests/data/arch/llama/model-f16.gguf", NULL, &err), TN_OK);
    if (m) CHECK_INT(tn_context_new(&c, m, &co, &err), TN_OK);
    if (c) CHECK_INT(tn_context_eval(c, tokens, 3, &err), TN_OK);
    CHECK(c && tn_context_logits(c));
    tn_context_free(c);
    tn_model_close(m);
    tn_engine_free(e);
}

TEST_MAIN
