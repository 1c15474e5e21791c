/* Writes a model of random weights as a file that other programs can open too: a shape the library
 * knows, and a vocabulary of invented words. For `make bench-peers` and for trying things out.
 *
 *     make_model SHAPE:TYPE FILE */
#include "../engine/synthetic.h"
#include "../gguf/gguf.h"
#include "../gguf/types.h"
#include "../gguf/write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { n_special = 3, n_bytes = 256 };

static int fail(const char *what, const tn_error *err)
{
    fprintf(stderr, "make_model: %s\n", err ? err->msg : what);
    return 1;
}

/* SentencePiece's kind: unknown, begin, end, one token for each byte, then words. */
static void write_vocabulary(tn_gguf_writer *w, uint64_t n)
{
    static const char *const special[n_special] = {"<unk>", "<s>", "</s>"};
    static const int32_t kinds[n_special] = {2, 3, 3};
    char(*text)[24] = calloc(n, sizeof *text);
    tn_str *words = calloc(n, sizeof *words);
    float *scores = calloc(n, sizeof *scores);
    int32_t *types = calloc(n, sizeof *types);
    for (uint64_t i = 0; text && words && scores && types && i < n; i++) {
        const bool byte = i >= n_special && i < n_special + n_bytes;
        types[i] = i < n_special ? kinds[i] : byte ? 6 : 1;
        scores[i] = -(float)i;
        if (i < n_special)
            snprintf(text[i], sizeof *text, "%s", special[i]);
        else if (byte)
            snprintf(text[i], sizeof *text, "<0x%02X>", (unsigned)(i - n_special));
        else
            snprintf(text[i], sizeof *text, "w%llu", (unsigned long long)i);
        words[i] = (tn_str){text[i], strlen(text[i])};
    }
    tn_gguf_writer_str(w, "tokenizer.ggml.model", "llama");
    tn_gguf_writer_strings(w, "tokenizer.ggml.tokens", n, words);
    tn_gguf_writer_array(w, "tokenizer.ggml.scores", TN_GGUF_F32, n, scores);
    tn_gguf_writer_array(w, "tokenizer.ggml.token_type", TN_GGUF_I32, n, types);
    tn_gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", 1);
    tn_gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", 2);
    free(types);
    free(scores);
    free(words);
    free(text);
}

/* The header `g` once more, with a vocabulary. */
static tn_gguf_writer *write_header(const tn_gguf *g)
{
    tn_gguf_writer *w = tn_gguf_writer_new(NULL);
    const tn_gguf_tensor *embed = tn_gguf_find_tensor(g, "token_embd.weight");
    for (uint64_t i = 0; w && i < tn_gguf_n_keys(g); i++)
        tn_gguf_writer_copy(w, tn_gguf_key_at(g, i));
    if (w && embed) write_vocabulary(w, embed->shape[1]);
    for (uint64_t i = 0; w && i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        tn_gguf_writer_tensor(w, name, t->type, t->n_dims, t->shape, NULL);
    }
    return w;
}

/* Tensors follow each other in file order, each aligned. */
static bool write_weights(FILE *f, const tn_gguf *g)
{
    bool ok = true;
    for (uint64_t i = 0; ok && i < tn_gguf_n_tensors(g); i++) {
        const tn_gguf_tensor *t = tn_gguf_tensor_at(g, i);
        const size_t padded = (t->bytes + 31) / 32 * 32;
        char *data = calloc(1, padded);
        if (data && t->n_dims == 1) /* a norm */
            for (uint64_t k = 0; k < t->bytes / 4; k++)
                memcpy(data + 4 * k, &(float){1}, 4);
        else if (data)
            tn_synthetic_fill(data, t->type, t->bytes, i + 1);
        ok = data && fwrite(data, 1, padded, f) == padded;
        free(data);
    }
    return ok;
}

int main(int argc, char **argv)
{
    const tn_gguf_options opt = {sizeof opt, true, NULL};
    tn_error err = {0};
    tn_gguf *g = NULL;
    tn_gguf_writer *w = NULL;
    void *header = NULL;
    const uint8_t *bytes = NULL;
    size_t size;
    char *colon = argc == 3 ? strchr(argv[1], ':') : NULL;
    if (!colon) return fail("usage: make_model SHAPE:TYPE FILE", NULL);
    *colon = 0;
    tn_status s =
        tn_synthetic_header(&header, &size, argv[1], colon + 1, &tn_default_allocator, &err);
    if (!s) s = tn_gguf_parse(&g, header, size, argv[1], &opt, &err);
    if (!s && !(w = write_header(g))) return fail("out of memory", NULL);
    if (!s) s = tn_gguf_writer_finish(w, &bytes, &size, &err);
    if (s) return fail(NULL, &err);
    FILE *f = fopen(argv[2], "wbe");
    bool ok = f && fwrite(bytes, 1, size, f) == size;
    for (size_t i = size; ok && i % 32; i++)
        ok = fputc(0, f) == 0;
    ok = ok && write_weights(f, g);
    if (f && fclose(f)) ok = false;
    if (!ok) perror(argv[2]);
    tn_gguf_writer_free(w);
    tn_gguf_close(g);
    tn_free(&tn_default_allocator, header);
    return ok ? 0 : 1;
}
