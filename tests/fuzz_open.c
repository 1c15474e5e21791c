/* libFuzzer target: any bytes as a model from memory: header, vocabulary, shapes, weights, a prompt
 * and a token. Seeds are the tiny models of tiny_model.h, which the target itself starts from: the
 * first byte of the input chooses one, what follows is laid over it as (offset, value) pairs of
 * three bytes; with the top bit set the rest of the input is the file. */
#include "tiny_model.h"
#include "use_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void patched(tn_engine *engine, unsigned kind, const uint8_t *data, size_t size)
{
    tn_gguf_writer *w;
    const uint8_t *bytes;
    size_t n;
    tiny_model(&tiny_kinds[kind % n_tiny_kinds], &w, &bytes, &n);
    uint8_t *copy = malloc(n);
    if (!copy) abort();
    memcpy(copy, bytes, n);
    for (; size >= 3; data += 3, size -= 3) copy[(data[0] | (size_t)data[1] << 8) % n] = data[2];
    tn_error err = {0};
    (void)use_model(engine, copy, n, kind & 64 ? TN_LOAD_MAP : TN_LOAD_READ, &err);
    free(copy);
    tn_gguf_writer_free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    use_memory memory = {0};
    tn_engine *engine = use_engine(&memory);
    memory.used = 0;
    tn_error err = {0};
    if (data[0] & 128)
        (void)use_model(engine, data + 1, size - 1, data[0] & 1 ? TN_LOAD_MAP : TN_LOAD_READ, &err);
    else patched(engine, data[0], data + 1, size - 1);
    tn_engine_free(engine);
    if (memory.live) abort();
    return 0;
}
