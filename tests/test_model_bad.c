/* Damaged models, whole: every truncation and every flipped bit of the header of a tiny model of each
 * architecture ends in an error that names the file, or in a model that runs. */
#include "tiny_model.h"
#include "use_model.h"

/* Bytes before the data of the first tensor. */
static size_t header_size(const uint8_t *bytes, size_t size)
{
    tn_gguf *g = NULL;
    if (tn_gguf_parse(&g, bytes, size, "tiny", NULL, NULL) != TN_OK) return 0;
    const size_t n = (size_t)(tn_gguf_tensor_data(g, tn_gguf_tensor_at(g, 0)) - bytes);
    tn_gguf_close(g);
    return n;
}

typedef struct damaged {
    tn_gguf_writer *writer;
    const uint8_t *bytes;
    uint8_t *copy; /* [size], what is damaged */
    size_t size, header;
    use_memory memory;
    tn_engine *engine;
    long opened, refused;
} damaged;

static bool begin(damaged *d, const tiny_kind *k)
{
    memset(d, 0, sizeof *d);
    tiny_model(k, &d->writer, &d->bytes, &d->size);
    d->header = header_size(d->bytes, d->size);
    d->copy = malloc(d->size);
    d->engine = use_engine(&d->memory);
    if (!d->copy) abort();
    memcpy(d->copy, d->bytes, d->size);
    CHECK_MSG(d->size <= 65536 && d->header > 0, "%s: %zu bytes", k->arch, d->size);
    const tn_status s = use_model(d->engine, d->bytes, d->size, TN_LOAD_READ);
    CHECK_MSG(s == TN_OK, "%s: the undamaged model is refused", k->arch);
    return s == TN_OK;
}

static void try_one(damaged *d, const void *bytes, size_t size)
{
    const long live = d->memory.live;
    d->memory.used = 0;
    /* READ and MAP take turns. */
    const tn_load_mode load = (d->opened + d->refused) % 2 ? TN_LOAD_MAP : TN_LOAD_READ;
    if (use_model(d->engine, bytes, size, load) == TN_OK) d->opened++;
    else d->refused++;
    CHECK_MSG(d->memory.live == live, "%ld allocations leaked", d->memory.live - live);
}

static void end(damaged *d)
{
    tn_engine_free(d->engine);
    CHECK_INT(d->memory.live, 0);
    free(d->copy);
    tn_gguf_writer_free(d->writer);
}

TEST(every_truncation)
{
    for (int i = 0; i < n_tiny_kinds; i++) {
        damaged d;
        if (begin(&d, &tiny_kinds[i]))
            for (size_t n = 0; n < d.size; n++) {
                uint8_t *exact = malloc(n + !n); /* so that a sanitizer sees a read past the end */
                if (!exact) abort();
                memcpy(exact, d.bytes, n);
                try_one(&d, exact, n);
                free(exact);
            }
        CHECK_MSG(d.opened == 0, "%s: %ld truncated files were opened", tiny_kinds[i].arch, d.opened);
        end(&d);
    }
}

TEST(every_flipped_bit_of_the_header)
{
    for (int i = 0; i < n_tiny_kinds; i++) {
        damaged d;
        if (begin(&d, &tiny_kinds[i]))
            for (size_t bit = 0; bit < d.header * 8; bit++) {
                d.copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
                try_one(&d, d.copy, d.size);
                d.copy[bit / 8] = d.bytes[bit / 8];
            }
        CHECK_MSG(d.opened > 0 && d.refused > d.opened, "%s: %ld opened, %ld refused",
                  tiny_kinds[i].arch, d.opened, d.refused);
        end(&d);
    }
}

/* Weights are data: any bits are a model, at worst one whose logits are no numbers. */
TEST(damaged_weights_do_not_matter)
{
    for (int i = 0; i < n_tiny_kinds; i++) {
        damaged d;
        if (begin(&d, &tiny_kinds[i])) {
            memset(d.copy + d.header, 0xff, d.size - d.header);
            try_one(&d, d.copy, d.size);
            memset(d.copy + d.header, 0, d.size - d.header);
            try_one(&d, d.copy, d.size);
        }
        end(&d);
    }
}

TEST_MAIN
