/* Engines: options, levels, and what they say about themselves. */
#include "golden.h"

#include "../engine/model.h"
#include "../kernels/kernels.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static tn_status try_engine(tn_engine_options o, tn_engine **e, tn_error *err)
{
    o.struct_size = sizeof o;
    memset(err, 0, sizeof *err);
    *e = (tn_engine *)err; /* must become NULL */
    return tn_engine_new(e, &o, err);
}

TEST(options_out_of_range_are_refused_by_name)
{
    static const struct {
        tn_engine_options o;
        const char *word;
    } bad[] = {
        {{.threads = -1}, "threads"},
        {{.threads = 1 << 20}, "threads"},
        {{.isa = "sse9"}, "sse9"},
        {{.isa = ""}, "isa"},
        {{.allocator = {.user = NULL, .free = (void (*)(void *, void *))1}}, "allocator"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tn_engine *e;
        tn_error err;
        CHECK_INT(try_engine(bad[i].o, &e, &err), TN_EARG);
        CHECK(e == NULL);
        CHECK_INT(err.code, TN_EARG);
        CHECK_MSG(strstr(err.msg, bad[i].word), "case %zu: %s", i, err.msg);
    }
    tn_engine *e;
    CHECK_INT(tn_engine_new(&e, &(tn_engine_options){.struct_size = 0}, NULL), TN_EARG);
    CHECK_INT(tn_engine_new(&e, &(tn_engine_options){.struct_size = 1 << 20}, NULL), TN_EARG);
    tn_engine_free(NULL);
}

TEST(a_level_this_cpu_lacks_is_unsupported)
{
    static const struct {
        const char *name;
        unsigned needs;
    } levels[] = {{"scalar", 0},
                  {"avx2", TN_ISA_AVX2},
                  {"avxvnni", TN_ISA_AVXVNNI},
                  {"avx512", TN_ISA_AVX512 | TN_ISA_VNNI512}};
    const unsigned have = tn_isa_detect();
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        const bool can = (levels[i].needs & have) == levels[i].needs;
        tn_engine *e;
        tn_error err;
        const tn_status s = try_engine((tn_engine_options){.isa = levels[i].name}, &e, &err);
        CHECK_INT(s, can ? TN_OK : TN_EUNSUPPORTED);
        if (!s)
            CHECK_STR(tn_engine_isa(e), levels[i].name);
        else
            CHECK_MSG(strstr(err.msg, levels[i].name), "%s", err.msg);
        tn_engine_free(e);
    }
}

TEST(an_old_programs_shorter_options_are_enough)
{
    /* threads is the last member that this program knows of; isa behind it is garbage. */
    tn_engine_options o = {.struct_size = offsetof(tn_engine_options, isa), .threads = 1};
    memset((char *)&o + o.struct_size, 0x5a, sizeof o - o.struct_size);
    tn_engine *e;
    REQUIRE(tn_engine_new(&e, &o, NULL) == TN_OK);
    CHECK_INT(tn_engine_threads(e), 1);
    tn_engine_free(e);
}

TEST(threads_are_those_asked_for)
{
    static const int asked[] = {0, 1, 2, 5};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        tn_engine *e;
        tn_error err;
        REQUIRE(try_engine((tn_engine_options){.threads = asked[i]}, &e, &err) == TN_OK);
        if (asked[i])
            CHECK_INT(tn_engine_threads(e), asked[i]);
        else
            CHECK(tn_engine_threads(e) >= 1);
        tn_engine_free(e);
    }
}

static void keep_line(void *user, tn_log_level level, const char *line)
{
    char *kept = user;
    if (level == TN_LOG_WARN) snprintf(kept, 200, "%s", line);
}

TEST(a_context_beyond_training_is_logged)
{
    char line[200] = "";
    tn_engine *e;
    tn_model *m;
    tn_context *c;
    tn_error err;
    REQUIRE(try_engine((tn_engine_options){.log = keep_line, .log_user = line}, &e, &err) == TN_OK);
    REQUIRE(tn_model_open(&m, e, "tests/data/arch/llama/model-f16.gguf", NULL, &err) == TN_OK);
    tn_context_options co = {.struct_size = sizeof co, .n_ctx = 512};
    REQUIRE(tn_context_new(&c, m, &co, &err) == TN_OK);
    CHECK_STR(line, "");
    tn_context_free(c);
    co.n_ctx = 1000;
    REQUIRE(tn_context_new(&c, m, &co, &err) == TN_OK);
    CHECK_MSG(strstr(line, "1000") && strstr(line, "512"), "logged: '%s'", line);
    tn_context_free(c);
    tn_model_close(m);
    tn_engine_free(e);
}

/* Says "stop" at the call number `at`, which any thread may make, and follows the progress. */
typedef struct stopper {
    atomic_long calls;
    long at;
    uint64_t done, total;
    bool falls; /* progress went back, or beyond the whole */
} stopper;

static bool stop_at(void *user)
{
    stopper *s = user;
    return atomic_fetch_add(&s->calls, 1) + 1 == s->at;
}

static void follow(void *user, uint64_t done, uint64_t total)
{
    stopper *s = user;
    s->falls |= done < s->done || done > total || (s->total && total != s->total);
    s->done = done;
    s->total = total;
}

TEST(opening_is_canceled_at_every_moment)
{
    tn_engine *e;
    tn_error err;
    long canceled = 0;
    REQUIRE(try_engine((tn_engine_options){.threads = 2}, &e, &err) == TN_OK);
    for (tn_status s = TN_ECANCELED; s == TN_ECANCELED; canceled++) {
        stopper stop = {.at = canceled + 1};
        const tn_model_options mo = {.struct_size = sizeof mo, .load = TN_LOAD_READ,
                                     .progress = follow, .cancel = stop_at, .user = &stop};
        tn_model *m = (tn_model *)&stop;
        memset(&err, 0, sizeof err);
        s = tn_model_open(&m, e, "tests/data/quant/Q4_K_S.gguf", &mo, &err);
        CHECK_INT(s, stop.calls < stop.at ? TN_OK : TN_ECANCELED);
        CHECK((s == TN_OK) == (m != NULL) && err.code == s && !stop.falls);
        CHECK(s || (stop.total > 0 && stop.done == stop.total));
        tn_model_close(m);
    }
    CHECK_MSG(canceled > 3, "asked %ld times", canceled - 1);
    tn_engine_free(e);
}

/* Sees who asks whether to cancel, that is, who takes a piece of reading; and makes the first
 * allocation after that, which is the vocabulary's, wait until somebody else has taken one. */
typedef struct meeting {
    pthread_t opener;
    atomic_bool here, elsewhere, read, allocated, met;
} meeting;

static bool note_reader(void *user)
{
    meeting *m = user;
    atomic_store(pthread_equal(pthread_self(), m->opener) ? &m->here : &m->elsewhere, true);
    return false;
}

static void note_end(void *user, uint64_t done, uint64_t total)
{
    if (done == total) atomic_store(&((meeting *)user)->read, true);
}

static void *waiting_alloc(void *user, size_t bytes, size_t align)
{
    meeting *m = user;
    const bool opener = pthread_equal(pthread_self(), m->opener);
    if ((m->here || m->elsewhere) && !m->read && !atomic_exchange(&m->allocated, true)) {
        for (int i = 0; i < 20000 && !(opener ? m->elsewhere : m->here); i++) usleep(500);
        m->met = opener ? m->elsewhere : m->here;
    }
    return tn_default_allocator.alloc(NULL, bytes, align);
}

static void waiting_free(void *user, void *p)
{
    (void)user;
    tn_default_allocator.free(NULL, p);
}

TEST(threads_read_weights_while_one_reads_the_vocabulary)
{
    meeting meet = {.opener = pthread_self()};
    tn_engine *e;
    tn_model *m = NULL;
    tn_error err;
    const tn_engine_options eo = {
        .threads = 2, .allocator = {.user = &meet, .alloc = waiting_alloc, .free = waiting_free}};
    REQUIRE(try_engine(eo, &e, &err) == TN_OK);
    const tn_model_options mo = {.struct_size = sizeof mo, .load = TN_LOAD_READ,
                                 .progress = note_end, .cancel = note_reader, .user = &meet};
    CHECK_INT(tn_model_open(&m, e, "tests/data/quant/Q4_K_S.gguf", &mo, &err), TN_OK);
    CHECK(m && tn_model_vocab(m));
    CHECK_MSG(meet.allocated, "the vocabulary was not read beside the weights");
    CHECK_MSG(meet.met, "one thread did all the reading");
    tn_model_close(m);
    tn_engine_free(e);
}

/* The most memory this process has had in RAM, in bytes; 0 where that is unknown. */
static size_t peak_memory(void)
{
    char line[128];
    size_t kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %zu", &kib) == 1) break;
    if (f) fclose(f);
    return kib << 10;
}

/* Rearranging takes no more than one tensor beside the model. */
TEST(opening_needs_little_more_memory_than_the_model)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("sanitizers have memory of their own");
#endif
    const size_t embedding = (size_t)49152 * 576 * 18 / 32;
    run r = {0};
    tn_error err;
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (!f || fputs("5", f) < 0 || fclose(f) != 0) SKIP("the peak cannot be reset");
    const size_t before = peak_memory();
    REQUIRE(try_engine((tn_engine_options){.threads = 2}, &r.engine, &err) == TN_OK);
    REQUIRE(tn_model_open_synthetic(&r.model, r.engine, "llama-135m", "q4_0", NULL, &err) == TN_OK);
    tn_model_info info = {.struct_size = sizeof info};
    REQUIRE(tn_model_get_info(r.model, &info, NULL) == TN_OK);
    const size_t grown = peak_memory() - before;
    CHECK_MSG(grown > info.weight_bytes / 2 && grown < info.weight_bytes + embedding,
              "%.1f MiB for a model of %.1f", (double)grown / (1 << 20),
              (double)info.weight_bytes / (1 << 20));
    run_close(&r);
}

/* Takes a byte from the file as soon as its weights are to be read. */
static bool cut_short(void *path)
{
    struct stat st;
    if (stat(path, &st)) abort();
    if (st.st_size % 32 == 0 && truncate(path, st.st_size - 1)) abort();
    return false;
}

TEST(a_file_that_ends_early_is_an_error)
{
    char path[] = "/tmp/tenon-engine-XXXXXX";
    char *bytes = malloc(1 << 21);
    FILE *from = fopen("tests/data/quant/Q4_K_S.gguf", "rb");
    const int fd = mkstemp(path);
    REQUIRE(bytes && from && fd >= 0);
    const size_t size = fread(bytes, 1, 1 << 21, from);
    CHECK(write(fd, bytes, size) == (ssize_t)size);
    close(fd);
    fclose(from);
    free(bytes);
    tn_engine *e;
    tn_model *m = NULL;
    tn_error err = {0};
    REQUIRE(try_engine((tn_engine_options){.threads = 1}, &e, &err) == TN_OK);
    const tn_model_options mo = {
        .struct_size = sizeof mo, .load = TN_LOAD_READ, .cancel = cut_short, .user = path};
    CHECK_INT(tn_model_open(&m, e, path, &mo, &err), TN_EIO);
    CHECK_MSG(!m && strstr(err.msg, path) && strstr(err.msg, "the file ends early"), "%s", err.msg);
    tn_engine_free(e);
    unlink(path);
}

static const char *text_at(const json_t *j, const char *object, const char *key)
{
    const char *s = json_string_value(json_object_get(json_object_get(j, object), key));
    return s ? s : "(none)";
}

TEST(the_environment_is_one_json_object)
{
    tn_engine *e;
    tn_error err;
    char *text = NULL;
    REQUIRE(try_engine((tn_engine_options){.threads = 2, .isa = "scalar"}, &e, &err) == TN_OK);
    REQUIRE(tn_env_json(e, &text, &err) == TN_OK);
    json_error_t jerr;
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &jerr);
    CHECK_MSG(j, "%s: %s", text, jerr.text);
    CHECK_STR(text_at(j, "build", "version"), tn_version());
    CHECK_STR(text_at(j, "build", "commit"), tn_commit());
    CHECK(strlen(text_at(j, "build", "compiler")) > 0);
    CHECK_STR(text_at(j, "engine", "isa"), "scalar");
    CHECK_STR(text_at(j, "engine", "devices"), tn_engine_devices(e));
    const json_t *engine = json_object_get(j, "engine"), *machine = json_object_get(j, "machine");
    CHECK_INT(json_integer_value(json_object_get(engine, "threads")), 2);
    CHECK(strstr(text_at(j, "machine", "kernel"), "Linux"));
    CHECK(json_string_value(json_object_get(machine, "cpu")) != NULL);
    CHECK(json_integer_value(json_object_get(machine, "processors")) >= 1);
    CHECK(json_integer_value(json_object_get(machine, "memory_bytes")) > 1 << 20);
    CHECK(json_is_array(json_object_get(machine, "caches")));
    json_decref(j);
    tn_string_free(e, text);
    tn_engine_free(e);
}

TEST_MAIN
