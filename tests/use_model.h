/* What a program does with a model from memory, in small: for the tests and the fuzz target of bad
 * input. Any bytes must end in an error or a model that runs. */
#ifndef TN_TEST_USE_MODEL_H
#define TN_TEST_USE_MODEL_H

#include "../engine/tenon.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* More memory than this for one small file is a finding. */
enum { use_memory_limit = 64 << 20 };

typedef struct use_memory {
    size_t used; /* bytes asked for since the engine was made or this was set to 0 */
    long live;   /* allocations not yet freed */
} use_memory;

static inline void *use_alloc(void *user, size_t bytes, size_t align)
{
    use_memory *m = user;
    void *p = NULL;
    if ((m->used += bytes) > use_memory_limit) {
        fprintf(stderr, "a small file takes %zu bytes\n", m->used);
        abort();
    }
    if (posix_memalign(&p, align < sizeof p ? sizeof p : align, bytes) != 0) return NULL;
    m->live++;
    return p;
}
static inline void use_free(void *user, void *p)
{
    if (p) ((use_memory *)user)->live--;
    free(p);
}

/* An engine of one thread whose memory is counted; aborts if there is none. */
static inline tn_engine *use_engine(use_memory *m)
{
    tn_engine *engine;
    const tn_engine_options eo = {
        .struct_size = sizeof eo, .threads = 1, .allocator = {use_alloc, use_free, m}};
    if (tn_engine_new(&engine, &eo, NULL) != TN_OK) abort();
    return engine;
}

/* Tokenises, evaluates a prompt and a token, detokenises, and asks for what a chat needs. Fine if
 * any of it is refused. */
static inline void use_open_model(tn_model *model)
{
    const tn_context_options co = {.struct_size = sizeof co, .n_ctx = 16, .page_size = 16};
    tn_context *ctx = NULL;
    tn_detokenizer *d = NULL;
    const char *text;
    int32_t ids[16];
    size_t n = 0, len;
    if (tn_tokenize(model, "a abc\nA\xff", 8, TN_TOKENIZE_ADD_SPECIAL, ids, 12, &n, NULL, NULL))
        n = 0;
    if (n == 0) ids[n++] = 1;
    if (tn_context_new(&ctx, model, &co, NULL) == TN_OK &&
        tn_context_eval(ctx, ids, (int32_t)n, NULL) == TN_OK) {
        if (!tn_context_logits(ctx)) abort();
        (void)tn_context_eval(ctx, ids, 1, NULL);
    }
    tn_context_free(ctx);
    if (tn_detokenizer_new(&d, model, 0, NULL) == TN_OK)
        for (size_t i = 0; i < n; i++) (void)tn_detokenizer_push(d, ids[i], &text, &len, NULL);
    tn_detokenizer_free(d);
    tn_sampler_options o;
    const tn_message hello = {"user", "a<s>"};
    (void)tn_sampler_defaults(model, &o, NULL);
    (void)tn_chat_tokens(model, NULL, &hello, 1, true, ids, 16, &n, NULL);
}

/* Opens and uses; aborts where the promises of tenon.h are broken. *err is why it is refused. */
static inline tn_status use_model(tn_engine *engine, const void *bytes, size_t size,
                                  tn_load_mode load, tn_error *err)
{
    const tn_model_options mo = {.struct_size = sizeof mo, .load = load};
    tn_model *model = NULL;
    const tn_status s = tn_model_open_memory(&model, engine, bytes, size, "file.gguf", &mo, err);
    if ((s == TN_OK) != (model != NULL)) abort();
    if (s == TN_OK) {
        use_open_model(model);
    } else if (s != TN_EFORMAT && s != TN_EUNSUPPORTED) {
        fprintf(stderr, "status %d: %s\n", (int)s, err->msg);
        abort();
    } else if (err->code != s || strncmp(err->msg, "file.gguf", 9) != 0) {
        fprintf(stderr, "no file name, or another status: %s\n", err->msg);
        abort();
    }
    tn_model_close(model);
    return s;
}

#endif
