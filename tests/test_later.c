/* TN_LOAD_LATER: the first batch is computed from the mapped file, weights are carried to memory
 * before the second, and the bits are those of weights that were read at once. */
#include "golden.h"

#include "../engine/engine.h"
#include "../engine/model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static const char quant[] = "tests/data/quant/Q4_K_S.gguf"; /* tied; Q4_K, Q5_K and Q6_K */

/* Whether the page cache has the byte at `at`, as far as the file system tells. */
static bool has_byte(const char *path, off_t at)
{
    char byte;
    struct iovec v = {&byte, 1};
    const int fd = open(path, O_RDONLY);
    const bool yes = fd >= 0 && preadv2(fd, &v, 1, at, RWF_NOWAIT) == 1;
    close(fd);
    return yes;
}

/* Brings the file to the page cache, from where the system may have taken it. */
static void read_all(const char *path)
{
    static char bytes[1 << 20];
    const int fd = open(path, O_RDONLY);
    while (fd >= 0 && read(fd, bytes, sizeof bytes) > 0)
        ;
    close(fd);
}

#define NEEDS_PAGE_CACHE(path)                                                                     \
    read_all(path);                                                                                \
    if (!has_byte(path, 0)) SKIP("this file system does not tell what the page cache has")

/* KiB of the file at path that are in this process's memory; -1: it is not mapped. */
static long resident(const char *path)
{
    char line[512];
    long kib, sum = -1;
    bool ours = false;
    FILE *f = fopen("/proc/self/smaps", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (strchr(line, '-') < strchr(line, ' ') && strchr(line, '-')) ours = strstr(line, path);
        if (ours && sscanf(line, "Rss: %ld", &kib) == 1) sum = (sum < 0 ? 0 : sum) + kib;
    }
    if (f) fclose(f);
    return sum;
}

static bool eval(run *r, const int32_t *tokens, int32_t n)
{
    tn_error err = {0};
    const tn_status s = tn_context_eval(r->ctx, tokens, n, &err);
    CHECK_MSG(s == TN_OK, "%s", err.msg);
    return s == TN_OK;
}

/* Batches of the sizes given; logits after each must be the same bits with both. */
static void check_bits(const char *path, run_options o, const int32_t *sizes, int n_sizes)
{
    int32_t tokens[64];
    run read, later;
    for (int i = 0; i < 64; i++)
        tokens[i] = (i * 37 + 5) % 300;
    o.load = TN_LOAD_READ; /* which reads the file */
    if (!run_open(&read, path, &o)) return;
    o.load = TN_LOAD_LATER;
    if (!run_open(&later, path, &o)) return;
    CHECK_MSG(later.model->later && !read.model->later, "%s does not wait", path);
    const size_t bytes = (size_t)run_vocab(&read) * sizeof(float);
    for (int i = 0, at = 0; i < n_sizes; at += sizes[i++]) {
        if (!eval(&read, tokens + at, sizes[i]) || !eval(&later, tokens + at, sizes[i])) break;
        CHECK_MSG(!later.model->later == (i > 0), "%s: evaluation %d", path, i);
        const float *a = tn_context_logits(read.ctx), *b = tn_context_logits(later.ctx);
        CHECK_MSG(!isnan(a[0]) && memcmp(a, b, bytes) == 0, "%s, %s: evaluation %d of %d tokens",
                  path, o.isa ? o.isa : "best", i, (int)sizes[i]);
    }
    run_close(&read);
    run_close(&later);
}

TEST(first_and_later_batches_have_the_bits_of_weights_that_were_read)
{
    static const char *const paths[] = {
        quant, "tests/data/quant/Q4_0.gguf", "tests/data/quant/BF16.gguf",
        "tests/data/arch/qwen3moe/model-f16.gguf", "tests/data/arch/gemma3/model-f16.gguf"};
    static const int32_t one[] = {1, 1, 7}, few[] = {3, 1, 1}, many[] = {40, 1, 9};
    NEEDS_PAGE_CACHE(quant);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        check_bits(paths[i], (run_options){0}, one, 3);
        check_bits(paths[i], (run_options){.n_batch = 4}, few, 3);
        check_bits(paths[i], (run_options){0}, many, 3);
    }
    for (int i = 0; tn_isa_level(i); i++)
        check_bits(quant, (run_options){.isa = tn_isa_level(i)}, many, 2);
    check_bits(quant, (run_options){.kv = TN_KV_F32}, few, 3);
}

/* The matrices that are in memory of the model's own. */
static int count_owned(const tn_model *m)
{
    int n = 0;
    const tn_weight *const w[] = {&m->token_embd, &m->output, &m->layers[0].attn_q,
                                  &m->layers[0].ffn_gate, &m->layers[0].ffn_down};
    for (size_t k = 0; k < sizeof w / sizeof *w; k++)
        for (size_t i = 0; i < m->n_owned; i++)
            n += w[k]->data == m->owned[i] && w[k]->layout == tn_engine_packed(m->engine);
    return n;
}

TEST(a_long_prompt_waits_for_its_first_batch_only)
{
    static const int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    run r;
    NEEDS_PAGE_CACHE(quant);
    if (!run_open(&r, quant, &(run_options){.load = TN_LOAD_LATER, .n_batch = 8})) return;
    const double opened = r.model->load_s;
    CHECK_INT(count_owned(r.model), 0);
    if (eval(&r, tokens, 8)) CHECK_INT(count_owned(r.model), 0);
    CHECK(r.model->load_s == opened);
    tn_context_rewind(r.ctx, 0, NULL);
    if (eval(&r, tokens, 9)) CHECK_INT(count_owned(r.model), 5);
    CHECK(r.model->load_s > opened && r.model->output.data == r.model->token_embd.data);
    run_close(&r);
}

/* Memory is that of the model, not twice that. */
TEST(pages_of_the_file_go_as_weights_come)
{
    static const int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    run r;
    NEEDS_PAGE_CACHE(quant);
    if (!run_open(&r, quant, &(run_options){.load = TN_LOAD_LATER})) return;
    eval(&r, tokens, 8);
    const long before = resident(quant);
    eval(&r, tokens, 1);
    const long after = resident(quant);
    CHECK_MSG(before > 300 && after >= 0 && after < before / 3, "%ld, then %ld KiB of the file",
              before, after);
    run_close(&r);
}

typedef struct stopper {
    int calls, at;
} stopper;

static bool stop_at(void *user)
{
    stopper *s = user;
    return ++s->calls == s->at;
}

/* One thread, so that the calls can be counted: which of them stops the arrival, the next
 * evaluation brings everything. */
TEST(an_arrival_is_canceled_at_every_moment)
{
    static const int32_t tokens[6] = {1, 2, 3, 4, 5, 6};
    tn_error err;
    long canceled = 0;
    stopper stop = {0};
    tn_status s = TN_ECANCELED;
    NEEDS_PAGE_CACHE(quant);
    for (int at = 1; s == TN_ECANCELED; at++) {
        run r;
        if (!run_open(&r, quant, &(run_options){.threads = 1, .load = TN_LOAD_LATER})) return;
        tn_context_free(r.ctx);
        const tn_context_options co = {.struct_size = sizeof co, .cancel = stop_at, .user = &stop};
        REQUIRE(tn_context_new(&r.ctx, r.model, &co, &err) == TN_OK);
        stop = (stopper){0};
        CHECK_INT(tn_context_eval(r.ctx, tokens, 6, &err), TN_OK);
        stop = (stopper){.at = at};
        s = tn_context_eval(r.ctx, tokens, 1, &err);
        const bool waits = r.model->later != NULL;
        canceled += s == TN_ECANCELED && waits;
        CHECK((s == TN_OK) == (tn_context_length(r.ctx) == 7) && (s || !waits));
        CHECK_INT(count_owned(r.model), waits ? 0 : 5);
        stop.at = -1;
        CHECK_INT(tn_context_eval(r.ctx, tokens, 1, &err), TN_OK);
        CHECK(!r.model->later && count_owned(r.model) == 5);
        run_close(&r);
    }
    CHECK_MSG(s == TN_OK && canceled > 3, "canceled %ld times", canceled);
}

static bool waits(const char *path, const tn_engine_options *eo, const tn_model_options *mo)
{
    tn_engine *e;
    tn_model *m = NULL;
    tn_error err = {0};
    if (tn_engine_new(&e, eo, &err)) FAIL("%s", err.msg);
    const tn_status s = tn_model_open(&m, e, path, mo, &err);
    CHECK_MSG(s == TN_OK, "%s", err.msg);
    const bool yes = m && m->later;
    tn_model_close(m);
    tn_engine_free(e);
    return yes;
}

TEST(what_must_be_read_at_once_is)
{
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 1};
    tn_model_options mo = {.struct_size = sizeof mo, .load = TN_LOAD_LATER};
    NEEDS_PAGE_CACHE(quant);
    CHECK(waits(quant, &eo, &mo));
    CHECK(waits(quant, &eo, &mo)); /* and closes without ever having been evaluated */
    mo.exact = true;
    CHECK(!waits(quant, &eo, &mo));
    mo.exact = false;
    mo.vocab_only = true;
    CHECK(!waits(quant, &eo, &mo));
    mo.vocab_only = false;
    mo.load = TN_LOAD_AUTO;
    CHECK(!waits(quant, &eo, &mo));
}

enum { padded_bytes = 24 << 20, piece_bytes = 64 << 10 };

/* A model with zeros behind it, padded_bytes in all, that lies in the page cache and on the disk;
 * written in pieces, as the page cache lets go of what it got at once as a whole. path: a template
 * of mkstemp. -1: cannot be made. */
static int padded_model(char *path)
{
    static char bytes[padded_bytes];
    FILE *from = fopen(quant, "rb");
    const int fd = mkstemp(path);
    bool ok = from && fd >= 0 && fread(bytes, 1, sizeof bytes, from) > 0;
    if (from) fclose(from);
    for (off_t at = 0; ok && at < padded_bytes; at += piece_bytes)
        ok = pwrite(fd, bytes + at, piece_bytes, at) == piece_bytes;
    if (ok && fdatasync(fd) == 0) return fd;
    FAIL("cannot write %s", path);
    return -1;
}

/* Whether the page cache has the byte at `at`, without side effects: reading as above may have the
 * kernel read ahead. */
static bool has_page(int fd, off_t at)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char there = 1;
    void *p = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, at / (off_t)page * (off_t)page);
    CHECK(p != MAP_FAILED && mincore(p, page, &there) == 0);
    munmap(p, page);
    return there & 1;
}

static bool waits_with_defaults(const char *path)
{
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 1};
    const tn_model_options mo = {.struct_size = sizeof mo, .load = TN_LOAD_LATER};
    return waits(path, &eo, &mo);
}

TEST(a_file_that_the_page_cache_lacks_is_read_at_once)
{
    char path[] = "/tmp/tenon-later-XXXXXX";
    char byte;
    const int fd = padded_model(path);
    REQUIRE(fd >= 0);
    CHECK_INT(waits_with_defaults(path), has_byte(path, 0));
    /* The end is farther from the header than the kernel reads ahead. */
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    CHECK(pread(fd, &byte, 1, padded_bytes - 1) == 1);
    const bool lacks = !has_page(fd, padded_bytes / 2);
    if (lacks) CHECK(!waits_with_defaults(path));
    close(fd);
    unlink(path);
    if (!lacks) SKIP("files in /tmp do not leave the page cache");
}

/* The last byte lies behind the last of the pages that are asked for at even distances. */
TEST(a_file_whose_end_the_page_cache_lacks_is_read_at_once)
{
    char path[] = "/tmp/tenon-later-XXXXXX";
    const int fd = padded_model(path);
    REQUIRE(fd >= 0);
    posix_fadvise(fd, padded_bytes - (1 << 20), 0, POSIX_FADV_DONTNEED);
    const bool lacks = !has_page(fd, padded_bytes - 1);
    CHECK(has_page(fd, padded_bytes - (2 << 20)));
    if (lacks) CHECK(!waits_with_defaults(path));
    close(fd);
    unlink(path);
    if (!lacks) SKIP("files in /tmp do not leave the page cache");
}

TEST_MAIN
