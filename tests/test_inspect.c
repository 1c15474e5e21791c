/* tn_inspect: what it tells, and that it survives every failing allocation. */
#include "harness.h"
#include "scarce.h"

#include "../engine/tenon.h"

#include <jansson.h>

static const char *const model = "tests/data/arch/llama/model-f16.gguf";

/* The inspection and jansson take from one account. */
static scarce account;

static void *count_json_alloc(size_t bytes)
{
    return scarce_alloc(&account, bytes ? bytes : 1, 16);
}

static void count_json_free(void *p)
{
    scarce_free(&account, p);
}

static const tn_allocator counting = {scarce_alloc, scarce_free, &account};

TEST(tells_about_the_file)
{
    tn_inspect *in;
    tn_error err = {0};
    REQUIRE(tn_inspect_open(&in, model, NULL, &err) == TN_OK);
    tn_inspect_info f = {.struct_size = sizeof f};
    CHECK(tn_inspect_get_info(in, &f, &err) == TN_OK);
    CHECK_INT(f.version, 3);
    CHECK_INT(f.n_parts, 1);
    CHECK_INT(f.n_keys, 28);
    CHECK_INT(f.n_tensors, 30);
    CHECK_INT(f.n_params, 160192);
    CHECK_INT(f.file_bytes, 332160);
    tn_inspect_tensor t;
    CHECK(tn_inspect_get_tensor(in, 0, &t, &err) == TN_OK);
    CHECK_INT(t.name_len, strlen("output.weight"));
    CHECK(memcmp(t.name, "output.weight", t.name_len) == 0);
    CHECK_STR(t.type, "F16");
    CHECK_INT(t.shape[0], 64);
    CHECK_INT(t.shape[1], 384);
    CHECK_INT(t.shape[2], 1);
    CHECK_INT(t.bytes, 49152);
    CHECK(tn_inspect_get_tensor(in, 30, &t, &err) == TN_EARG);
    tn_inspect_close(in);
}

TEST(values_as_text)
{
    tn_inspect *in;
    tn_error err = {0};
    char text[16];
    size_t n;
    REQUIRE(tn_inspect_open(&in, model, NULL, &err) == TN_OK);
    CHECK(tn_inspect_value(in, 0, 0, text, sizeof text, &n, &err) == TN_OK);
    CHECK_STR(text, "llama");
    CHECK_INT(n, 5);
    CHECK(tn_inspect_value(in, 11, 0, text, sizeof text, &n, &err) == TN_OK);
    CHECK_STR(text, "1e-05"); /* a float32: not 9.99999975e-06 */
    CHECK(tn_inspect_value(in, 0, 0, text, 3, &n, &err) == TN_EFULL);
    CHECK_STR(text, "ll");
    CHECK_INT(n, 5);
    CHECK(tn_inspect_value(in, 0, 0, NULL, 0, &n, &err) == TN_EFULL);
    CHECK(tn_inspect_value(in, 0, 1, text, sizeof text, &n, &err) == TN_EARG);
    CHECK(tn_inspect_value(in, 28, 0, text, sizeof text, &n, &err) == TN_EARG);
    tn_inspect_key k;
    CHECK(tn_inspect_get_key(in, 20, &k, &err) == TN_OK);
    CHECK_STR(k.kind, "array");
    CHECK_STR(k.element, "string");
    CHECK_INT(k.n, 384);
    CHECK(tn_inspect_value(in, 20, 383, text, sizeof text, &n, &err) == TN_OK);
    tn_inspect_close(in);
}

TEST(json_holds_everything)
{
    tn_inspect *in;
    tn_error err = {0};
    char *text;
    REQUIRE(tn_inspect_open(&in, model, NULL, &err) == TN_OK);
    REQUIRE(tn_inspect_json(in, &text, &err) == TN_OK);
    json_t *j = json_loads(text, 0, NULL);
    REQUIRE(j);
    CHECK_INT(json_object_size(json_object_get(j, "metadata")), 28);
    CHECK_INT(json_array_size(json_object_get(j, "tensors")), 30);
    const json_t *scores = json_object_get(json_object_get(j, "metadata"), "tokenizer.ggml.scores");
    CHECK_INT(json_array_size(json_object_get(scores, "values")), 384);
    json_decref(j);
    tn_inspect_string_free(in, text);
    tn_inspect_close(in);
}

TEST(missing_file_says_so)
{
    tn_inspect *in = (tn_inspect *)&account;
    tn_error err = {0};
    CHECK(tn_inspect_open(&in, "tests/data/no-such.gguf", NULL, &err) == TN_ENOENT);
    CHECK(in == NULL);
    CHECK(strstr(err.msg, "no-such.gguf") != NULL);
}

/* Opens and writes JSON with `allowed` allocations. */
static tn_status attempt(long allowed)
{
    tn_inspect *in;
    tn_error err = {0};
    char *text = NULL;
    account.left = allowed;
    tn_status s = tn_inspect_open(&in, model, &counting, &err);
    if (s) {
        CHECK(in == NULL);
        return s;
    }
    s = tn_inspect_json(in, &text, &err);
    CHECK((text == NULL) == (s != TN_OK));
    tn_inspect_string_free(in, text);
    tn_inspect_close(in);
    return s;
}

TEST(every_allocation_may_fail)
{
    json_set_alloc_funcs(count_json_alloc, count_json_free);
    tn_status s = TN_ENOMEM;
    long k = 0;
    for (; s != TN_OK && k < 100000; k++) {
        account.live = 0;
        s = attempt(k);
        CHECK_MSG(s == TN_OK || s == TN_ENOMEM, "allocation %ld failing gives status %d", k,
                  (int)s);
        CHECK_MSG(account.live == 0, "allocation %ld failing leaks %ld blocks", k, account.live);
        if (tn_failures) break;
    }
    json_set_alloc_funcs(malloc, free);
    CHECK(s == TN_OK);
    CHECK_MSG(k > 100, "only %ld allocations", k);
}

TEST_MAIN
