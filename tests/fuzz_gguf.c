/* libFuzzer target: any bytes through the GGUF reader, then every accessor, then the writer.
 * Build with clang -fsanitize=fuzzer,address,undefined; seeds in tests/corpus/gguf. The first byte
 * of the input chooses header_only, the rest is the file. */
#include "../gguf/write.h"
#include "gguf_build.h"

#include <stdlib.h>

/* More memory than this for one input is a finding. */
enum { memory_limit = 64 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *limited_alloc(void *user, size_t bytes, size_t align)
{
    size_t *used = user;
    void *p = NULL;
    if ((*used += bytes) > memory_limit) abort();
    return posix_memalign(&p, align, bytes) == 0 ? p : NULL;
}
static void limited_free(void *user, void *p)
{
    (void)user;
    free(p);
}

/* What was read can be written, and then reads the same. */
static void write_again(const tn_gguf *g, const tn_allocator *a)
{
    tn_gguf_writer *w = tn_gguf_writer_new(a);
    const uint8_t *bytes;
    size_t size;
    if (!w) abort();
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++) tn_gguf_writer_copy(w, tn_gguf_key_at(g, i));
    if (tn_gguf_writer_finish(w, &bytes, &size, NULL) != TN_OK) abort();
    tn_gguf *again = NULL;
    if (tn_gguf_parse(&again, bytes, size, "again", NULL, NULL) != TN_OK) abort();
    if (tn_gguf_n_keys(again) != tn_gguf_n_keys(g)) abort();
    tn_gguf_close(again);
    tn_gguf_writer_free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    size_t used = 0;
    tn_allocator a = {limited_alloc, limited_free, &used};
    tn_gguf_options opt = {sizeof opt, data[0] & 1, &a};
    tn_gguf *g = NULL;
    tn_error err = {0};
    tn_status st = tn_gguf_parse(&g, data + 1, size - 1, "fuzz", &opt, &err);
    if ((st == TN_OK) != (g != NULL)) abort();
    if (st == TN_OK) {
        if (!gguf_walk(g)) abort();
        write_again(g, &a);
    } else if (err.code != st || err.offset < 0 || (size_t)err.offset >= size) {
        abort();
    }
    tn_gguf_close(g);
    return 0;
}
