/* The image of rearranged weights: made once, mapped from then on, made anew for other weights; the
 * numbers that come out are those of weights read into memory, bit for bit. */
#include "harness.h"
#include "scarce.h"

#include "../engine/tenon.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { n_tokens = 3, name_max = 600 };

/* A folder of its own with a copy of a model and a cache directory. */
typedef struct place {
    char dir[64], model[128], cache[128], image[name_max];
} place;

static size_t copy_file(const char *from, const char *to)
{
    static char bytes[4 << 20];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    if (!in || !out) abort();
    const size_t n = fread(bytes, 1, sizeof bytes, in);
    if (fwrite(bytes, 1, n, out) != n || !feof(in)) abort();
    fclose(in);
    if (fclose(out)) abort();
    return n;
}

static void place_make(place *p, const char *model)
{
    strcpy(p->dir, "/tmp/tenon-image-XXXXXX");
    if (!mkdtemp(p->dir)) abort();
    snprintf(p->model, sizeof p->model, "%s/model.gguf", p->dir);
    snprintf(p->cache, sizeof p->cache, "%s/cache", p->dir);
    if (mkdir(p->cache, 0700)) abort();
    copy_file(model, p->model);
}

/* The only file of the cache directory beside counters of experts; false where there is none, or
 * more than one. */
static bool find_image(place *p)
{
    int n = 0;
    DIR *d = opendir(p->cache);
    if (!d) abort();
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && strncmp(e->d_name, "experts-", 8) != 0 && ++n)
            snprintf(p->image, sizeof p->image, "%s/%.255s", p->cache, e->d_name);
    closedir(d);
    return n == 1;
}

static void place_remove(place *p)
{
    char name[sizeof p->cache + 256];
    DIR *d = opendir(p->cache);
    if (!d) abort();
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(name, sizeof name, "%s/%.255s", p->cache, e->d_name);
        if (e->d_name[0] != '.' && unlink(name)) abort();
    }
    closedir(d);
    unlink(p->model);
    rmdir(p->cache);
    if (rmdir(p->dir)) FAIL("%s: something is left", p->dir);
}

/* What the log says about the image, or that there is none. */
static void keep_line(void *line, tn_log_level level, const char *text)
{
    (void)level;
    if (strstr(text, "mapped from") || strstr(text, "kept")) snprintf(line, name_max, "%s", text);
}

/* Logits of three tokens in *out, NULL to be freed otherwise; the log's line in `line`. */
static tn_status logits_of(const place *p, const char *cache, tn_load_mode load, const char *isa,
                           float **out, char line[name_max], tn_error *err)
{
    static const int32_t tokens[n_tokens] = {5, 9, 2};
    tn_engine *e = NULL;
    tn_model *m = NULL;
    tn_context *ctx = NULL;
    line[0] = 0;
    *out = NULL;
    const tn_engine_options eo = {.struct_size = sizeof eo,
                                  .threads = 2,
                                  .isa = isa,
                                  .cache_dir = cache,
                                  .log = keep_line,
                                  .log_user = line};
    const tn_model_options mo = {.struct_size = sizeof mo, .load = load};
    tn_status s = tn_engine_new(&e, &eo, err);
    if (!s) s = tn_model_open(&m, e, p->model, &mo, err);
    if (!s) s = tn_context_new(&ctx, m, NULL, err);
    if (!s) s = tn_context_eval(ctx, tokens, n_tokens, err);
    if (!s) {
        tn_model_info info = {.struct_size = sizeof info};
        tn_model_get_info(m, &info, NULL);
        const size_t bytes = (size_t)info.n_vocab * sizeof(float);
        if (!(*out = malloc(bytes))) abort();
        memcpy(*out, tn_context_logits(ctx), bytes);
    }
    tn_context_free(ctx);
    tn_model_close(m);
    tn_engine_free(e);
    return s;
}

static size_t n_vocab_of(const place *p)
{
    tn_engine *e;
    tn_model *m;
    const tn_engine_options eo = {.struct_size = sizeof eo, .threads = 1};
    if (tn_engine_new(&e, &eo, NULL) || tn_model_open(&m, e, p->model, NULL, NULL)) abort();
    tn_model_info info = {.struct_size = sizeof info};
    tn_model_get_info(m, &info, NULL);
    tn_model_close(m);
    tn_engine_free(e);
    return (size_t)info.n_vocab;
}

/* Opens as an image; the numbers are those of `want`, and the log says `said`. */
static void check_open(const place *p, const char *isa, const float *want, size_t n,
                       const char *said)
{
    float *got;
    char line[name_max];
    tn_error err = {0};
    CHECK_MSG(logits_of(p, p->cache, TN_LOAD_IMAGE, isa, &got, line, &err) == TN_OK, "%s", err.msg);
    if (!got) return;
    CHECK_MSG(memcmp(got, want, n * sizeof *got) == 0, "%s %s: other numbers", p->model, said);
    CHECK_MSG(strstr(line, said), "log says '%s', want '%s'", line, said);
    free(got);
}

static float *read_logits(const place *p, const char *isa)
{
    float *want;
    char line[name_max];
    tn_error err = {0};
    if (logits_of(p, NULL, TN_LOAD_READ, isa, &want, line, &err)) FAIL("%s", err.msg);
    return want;
}

TEST(the_second_start_maps_what_the_first_has_kept)
{
    static const char *const models[] = {
        "tests/data/quant/Q4_K_S.gguf", "tests/data/quant/Q4_0.gguf", "tests/data/quant/BF16.gguf",
        "tests/data/arch/mixtral/model-f16.gguf", "tests/data/arch/gemma3/model-f16.gguf"};
    static const char *const isa[] = {NULL, "scalar"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (int k = 0; k < 2; k++) {
            place p;
            place_make(&p, models[i]);
            float *want = read_logits(&p, isa[k]);
            const size_t n = n_vocab_of(&p);
            if (want) {
                check_open(&p, isa[k], want, n, "kept in");
                CHECK(find_image(&p));
                check_open(&p, isa[k], want, n, "mapped from");
                CHECK(find_image(&p));
            }
            free(want);
            place_remove(&p);
        }
}

/* Processors differ in layouts, where their levels do; each has an image of its own. */
TEST(one_level_leaves_the_image_of_another_alone)
{
    place p;
    place_make(&p, "tests/data/quant/Q5_K_S.gguf");
    float *best = read_logits(&p, NULL), *scalar = read_logits(&p, "scalar");
    REQUIRE(best && scalar);
    const size_t n = n_vocab_of(&p);
    check_open(&p, NULL, best, n, "kept in");
    check_open(&p, "scalar", scalar, n, "");
    check_open(&p, NULL, best, n, "mapped from");
    check_open(&p, "scalar", scalar, n, "mapped from");
    free(best);
    free(scalar);
    place_remove(&p);
}

/* Flips a bit of the byte at `at` from the start of a file, or from its end where at < 0. */
static void flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    if (!f || fseek(f, at, at < 0 ? SEEK_END : SEEK_SET)) abort();
    const int c = fgetc(f);
    if (c == EOF || fseek(f, -1, SEEK_CUR) || fputc(c ^ 64, f) == EOF || fclose(f)) abort();
}

TEST(the_image_is_what_is_computed_with)
{
    place p;
    place_make(&p, "tests/data/quant/Q8_0.gguf");
    float *want = read_logits(&p, NULL), *got;
    char line[name_max];
    tn_error err = {0};
    REQUIRE(want);
    const size_t n = n_vocab_of(&p);
    check_open(&p, NULL, want, n, "kept in");
    REQUIRE(find_image(&p));
    for (long at = 4096; at < 4096 + 4000; at++)
        flip(p.image, at);
    CHECK(logits_of(&p, p.cache, TN_LOAD_IMAGE, NULL, &got, line, &err) == TN_OK);
    CHECK(got && memcmp(got, want, n * sizeof *got) != 0);
    free(got);
    free(want);
    place_remove(&p);
}

TEST(another_file_or_a_damaged_image_is_made_anew)
{
    place p;
    struct stat st;
    place_make(&p, "tests/data/quant/Q4_K_S.gguf");
    float *want = read_logits(&p, NULL);
    REQUIRE(want);
    const size_t n = n_vocab_of(&p);
    check_open(&p, NULL, want, n, "kept in");
    REQUIRE(find_image(&p) && stat(p.image, &st) == 0);
    CHECK_INT(st.st_mode & 0777, 0600);
    CHECK(truncate(p.image, st.st_size - 1) == 0);
    check_open(&p, NULL, want, n, "kept in");
    CHECK(truncate(p.image, 100) == 0);
    check_open(&p, NULL, want, n, "kept in");
    flip(p.image, 15); /* the version of the form */
    check_open(&p, NULL, want, n, "kept in");
    check_open(&p, NULL, want, n, "mapped from");
    const struct timespec other[2] = {{1, 0}, {1, 0}};
    CHECK(utimensat(AT_FDCWD, p.model, other, 0) == 0);
    check_open(&p, NULL, want, n, "kept in");
    flip(p.model, -1000); /* other weights: writing sets the time */
    free(want);
    want = read_logits(&p, NULL);
    REQUIRE(want);
    check_open(&p, NULL, want, n, "kept in");
    check_open(&p, NULL, want, n, "mapped from");
    free(want);
    place_remove(&p);
}

/* The size in the head agrees with the file, but it is not what the model needs. */
TEST(an_image_of_the_wrong_size_is_refused_by_name)
{
    place p;
    char line[name_max], head[4096];
    float *got;
    tn_error err = {0};
    place_make(&p, "tests/data/quant/Q4_0.gguf");
    CHECK(logits_of(&p, p.cache, TN_LOAD_IMAGE, NULL, &got, line, &err) == TN_OK);
    free(got);
    REQUIRE(find_image(&p));
    for (int longer = 0; longer < 2; longer++) {
        struct stat st;
        FILE *f = fopen(p.image, "r+b");
        REQUIRE(f && stat(p.image, &st) == 0 && fread(head, 1, sizeof head, f) == sizeof head);
        char *number = strstr(head, "\nbytes ");
        REQUIRE(number);
        const off_t size = st.st_size + (longer ? 4096 : -2048);
        sprintf(number, "\nbytes %lld\n", (long long)size);
        CHECK(fseek(f, 0, SEEK_SET) == 0 && fwrite(head, 1, sizeof head, f) == sizeof head);
        CHECK(fclose(f) == 0 && truncate(p.image, size) == 0);
        CHECK_INT(logits_of(&p, p.cache, TN_LOAD_IMAGE, NULL, &got, line, &err), TN_EFORMAT);
        CHECK_MSG(strstr(err.msg, p.image), "%s", err.msg);
    }
    place_remove(&p);
}

TEST(where_it_cannot_be_kept_the_model_is_read)
{
    place p;
    char line[name_max], nowhere[name_max + 8];
    float *got;
    tn_error err = {0};
    place_make(&p, "tests/data/quant/Q4_0.gguf");
    snprintf(nowhere, sizeof nowhere, "%s/none", p.dir);
    CHECK_MSG(logits_of(&p, nowhere, TN_LOAD_IMAGE, NULL, &got, line, &err) == TN_OK, "%s",
              err.msg);
    CHECK_MSG(strstr(line, "not kept") && strstr(line, nowhere), "%s", line);
    free(got);
    CHECK_MSG(logits_of(&p, NULL, TN_LOAD_IMAGE, NULL, &got, line, &err) == TN_OK, "%s", err.msg);
    CHECK_MSG(strstr(line, "cannot be kept"), "%s", line);
    free(got);
    CHECK_MSG(logits_of(&p, p.cache, TN_LOAD_AUTO, NULL, &got, line, &err) == TN_OK, "%s", err.msg);
    CHECK(!find_image(&p));
    free(got);
    place_remove(&p);
}

/* Both with the image to be made and with it there. */
TEST(every_allocation_may_fail)
{
    place p;
    place_make(&p, "tests/data/quant/Q4_0.gguf");
    for (int round = 0; round < 2; round++) {
        tn_status s = TN_ENOMEM;
        for (long k = 0; s == TN_ENOMEM; k++) {
            scarce memory = {.left = 1 << 30};
            tn_error err = {0};
            tn_engine *e;
            tn_model *m = NULL;
            const tn_engine_options eo = {.struct_size = sizeof eo,
                                          .threads = 1,
                                          .cache_dir = p.cache,
                                          .allocator = scarce_allocator(&memory)};
            const tn_model_options mo = {.struct_size = sizeof mo, .load = TN_LOAD_IMAGE};
            REQUIRE(tn_engine_new(&e, &eo, &err) == TN_OK);
            memory.left = k;
            s = tn_model_open(&m, e, p.model, &mo, &err);
            CHECK_MSG(s == TN_OK || s == TN_ENOMEM, "%ld: %s", k, err.msg);
            CHECK((s == TN_OK) == (m != NULL));
            tn_model_close(m);
            tn_engine_free(e);
            CHECK_INT(memory.live, 0);
            if (s && round == 0) CHECK(!find_image(&p));
        }
        CHECK_INT(s, TN_OK);
        CHECK(find_image(&p));
    }
    place_remove(&p);
}

TEST_MAIN
