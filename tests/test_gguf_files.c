/* Opening GGUF files from disk: single files, split models, and what is no file at all. */
#include "gguf_check.h"

#include "../gguf/types.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

static char dir[64];

/* A fresh directory for one case. */
static bool make_dir(void)
{
    snprintf(dir, sizeof dir, "%s/tn-gguf-XXXXXX", P_tmpdir);
    return mkdtemp(dir) != NULL;
}
static const char *path_of(const char *name)
{
    static char path[2][512];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}
static void write_file(const char *name, const void *p, size_t n)
{
    FILE *f = fopen(path_of(name), "wb");
    if (!f || (n && fwrite(p, 1, n, f) != n) || fclose(f)) abort();
}
static void remove_dir(const char *const *names, int n)
{
    for (int i = 0; i < n; i++) unlink(path_of(names[i]));
    CHECK_MSG(rmdir(dir) == 0, "files are left in %s", dir);
}

/* How a split model is written; the fields that tests spoil. */
typedef struct split {
    uint32_t no[3], count[3], announced;
    const char *names[3]; /* tensor in each part */
} split;

static const split good = {{0, 1, 2}, {3, 3, 3}, 4, {"a", "b", "c"}};
static const char *const files[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                    "m-00003-of-00003.gguf", "plain.gguf", "x-00001-of-00002.gguf"};

/* Part 1 has two tensors, the others one; every byte of a tensor's data is its part's number. */
static void build_part(gb *b, const split *s, uint32_t part)
{
    bool first = part == 0;
    gb_header(b, 3, first ? 2 : 1, first ? 4 : 3);
    if (first) gb_key_str(b, "general.architecture", "llama");
    gb_key(b, "split.no", TN_GGUF_U16), gb_u16(b, s->no[part]);
    gb_key(b, "split.count", TN_GGUF_U16), gb_u16(b, s->count[part]);
    gb_key(b, "split.tensors.count", TN_GGUF_I32), gb_u32(b, s->announced);
    gb_tensor1(b, s->names[part], 8, TN_TYPE_F32, 0);
    if (first) gb_tensor1(b, "second", 8, TN_TYPE_F32, 32);
    gb_pad(b, 32);
    memset(gb_zeros(b, first ? 64 : 32), (int)part + 1, first ? 64 : 32);
}
static void write_split(const split *s)
{
    for (uint32_t i = 0; i < 3; i++) {
        gb b = {0};
        build_part(&b, s, i);
        write_file(files[i], b.p, b.n);
        gb_free(&b);
    }
}

static void open_fails(const char *name, tn_status want, const char *words)
{
    tn_gguf *g = NULL;
    tn_error err = {0};
    tn_status st = tn_gguf_open(&g, path_of(name), NULL, &err);
    CHECK_MSG(st == want, "%s: status %d, want %d: %s", name, st, want, err.msg);
    CHECK(!g && err.code == st);
    CHECK_MSG(strstr(err.msg, words), "no '%s' in: %s", words, err.msg);
    tn_gguf_close(g);
}

static int open_descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) != -1;
    return n;
}

/* How often the address space holds a file of our folder. */
static int mappings(void)
{
    char line[600];
    int n = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f)) n += strstr(line, dir) != NULL;
    if (f) fclose(f);
    return n;
}

TEST(one_file)
{
    REQUIRE(make_dir());
    gb b = {0};
    gb_header(&b, 3, 1, 1);
    gb_key_u32(&b, "k", 5);
    gb_tensor1(&b, "t", 4, TN_TYPE_F32, 0);
    gb_pad(&b, 32);
    memset(gb_zeros(&b, 16), 0xAB, 16);
    write_file("plain.gguf", b.p, b.n);
    int before = open_descriptors();
    tn_gguf *g = NULL;
    tn_error err = {0};
    tn_gguf_options opt = {sizeof opt, false, NULL};
    CHECK_INT(tn_gguf_open(&g, path_of("plain.gguf"), &opt, &err), TN_OK);
    REQUIRE(g);
    CHECK(gguf_walk(g));
    CHECK_INT(tn_gguf_parts(g), 1);
    CHECK_STR(tn_gguf_part_path(g, 0), path_of("plain.gguf"));
    size_t size = 0;
    const uint8_t *p = tn_gguf_part_data(g, 0, &size);
    CHECK(size == b.n && memcmp(p, b.p, size) == 0);
    CHECK(tn_gguf_tensor_data(g, tn_gguf_tensor_at(g, 0))[15] == 0xAB);
    uint8_t byte = 0;
    const tn_gguf_tensor *t = tn_gguf_tensor_at(g, 0);
    CHECK(pread(tn_gguf_part_fd(g, 0), &byte, 1, (off_t)t->offset) == 1 && byte == 0xAB);
    CHECK(!tn_gguf_part_path(g, 1) && tn_gguf_part_fd(g, 1) == -1);
    CHECK(!tn_gguf_part_data(g, 1, &size));
    CHECK_INT(size, 0);
    CHECK_INT(open_descriptors(), before + 1);
    CHECK_INT(mappings(), 1);
    tn_gguf_close(g);
    CHECK_INT(open_descriptors(), before);
    CHECK_INT(mappings(), 0);
    truncate(path_of("plain.gguf"), (off_t)b.n - 1);
    open_fails("plain.gguf", TN_EFORMAT, "plain.gguf: tensor 't' at byte 41: its data");
    opt.header_only = true;
    CHECK_INT(tn_gguf_open(&g, path_of("plain.gguf"), &opt, &err), TN_OK);
    tn_gguf_close(g);
    CHECK_INT(open_descriptors(), before);
    gb_free(&b);
    remove_dir(files + 3, 1);
}

TEST(what_is_no_file)
{
    REQUIRE(make_dir());
    int before = open_descriptors();
    open_fails("absent.gguf", TN_ENOENT, "absent.gguf': there is no such file");
    open_fails("", TN_EIO, "is a directory");
    write_file("plain.gguf", "", 0);
    open_fails("plain.gguf", TN_EFORMAT, "plain.gguf: the file ends after 0 bytes");
    open_fails("plain.gguf/below", TN_ENOENT, "no such file");
    CHECK(mkfifo(path_of("fifo"), 0600) == 0);
    open_fails("fifo", TN_EIO, "not a regular file");
    CHECK(symlink(path_of("loop"), path_of("loop")) == 0);
    open_fails("loop", TN_EIO, strerror(ELOOP));
    char longer[300];
    memset(longer, 'n', 299);
    longer[299] = 0;
    open_fails(longer, TN_EIO, strerror(ENAMETOOLONG));
    if (geteuid() != 0) {
        chmod(path_of("plain.gguf"), 0);
        open_fails("plain.gguf", TN_EIO, strerror(EACCES));
    }
    CHECK_INT(open_descriptors(), before);
    const char *const names[] = {"plain.gguf", "fifo", "loop"};
    remove_dir(names, 3);
}

TEST(split_model)
{
    REQUIRE(make_dir());
    int before = open_descriptors();
    write_split(&good);
    for (int header_only = 0; header_only < 2; header_only++) {
        tn_gguf_options opt = {.header_only = header_only};
        tn_gguf *g = NULL;
        tn_error err = {0};
        CHECK_MSG(tn_gguf_open(&g, path_of(files[0]), &opt, &err) == TN_OK, "%s", err.msg);
        REQUIRE(g);
        CHECK(gguf_walk(g));
        CHECK_INT(tn_gguf_parts(g), 3);
        CHECK_INT(tn_gguf_n_keys(g), 4);
        CHECK_INT(tn_gguf_n_tensors(g), 4);
        CHECK_STR(tn_gguf_part_path(g, 2), path_of(files[2]));
        static const char *const names[] = {"a", "second", "b", "c"};
        for (uint64_t i = 0; i < 4; i++) {
            const tn_gguf_tensor *t = tn_gguf_find_tensor(g, names[i]);
            REQUIRE(t && t == tn_gguf_tensor_at(g, i));
            uint32_t part = i < 2 ? 0 : (uint32_t)i - 1;
            CHECK_INT(t->part, part);
            uint8_t byte = 0;
            CHECK(pread(tn_gguf_part_fd(g, part), &byte, 1, (off_t)t->offset + 31) == 1);
            CHECK_INT(byte, part + 1);
            const uint8_t *data = tn_gguf_tensor_data(g, t);
            CHECK(header_only ? !data : data[31] == part + 1);
        }
        tn_gguf_close(g);
        CHECK_INT(open_descriptors(), before);
    }
    remove_dir(files, 3);
}

TEST(split_models_that_do_not_fit_together)
{
    REQUIRE(make_dir());
    int before = open_descriptors();
    static const struct {
        split s;
        const char *words;
    } cases[] = {
        {{{0, 2, 1}, {3, 3, 3}, 4, {"a", "b", "c"}},
         "m-00002-of-00003.gguf: the file says it is part 3 of 3"},
        {{{0, 1, 1}, {3, 3, 3}, 4, {"a", "b", "c"}},
         "m-00003-of-00003.gguf: the file says it is part 2"},
        {{{0, 1, 2}, {3, 2, 3}, 4, {"a", "b", "c"}},
         "it is part 2 of 2, but its name says part 2 of 3"},
        {{{0, 1, 2}, {2, 3, 3}, 4, {"a", "b", "c"}},
         "its name must end in -00001-of-00002.gguf"},
        {{{0, 1, 2}, {3, 3, 0}, 4, {"a", "b", "c"}},
         "part 3 of 1, but its name says part 3 of 3"},
        {{{1, 1, 2}, {3, 3, 3}, 4, {"a", "b", "c"}},
         "this is part 2 of 3; open part 1"},
        {{{0, 1, 2}, {3, 3, 3}, 5, {"a", "b", "c"}},
         "'split.tensors.count' at byte 116: 5 tensors announced, but the 3 parts hold 4"},
        {{{0, 1, 2}, {3, 3, 3}, 0x80000000u, {"a", "b", "c"}},
         "is negative"},
        {{{0, 1, 2}, {3, 3, 3}, 4, {"a", "b", "a"}},
         "tensor 'a' at byte 106: part 3 holds a tensor of that name a second"},
        {{{0, 1, 2}, {3, 3, 3}, 4, {"a", "second", "c"}},
         "tensor 'second'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_split(&cases[i].s);
        open_fails(files[0], TN_EFORMAT, cases[i].words);
    }
    write_split(&good);
    open_fails(files[1], TN_EFORMAT, "this is part 2 of 3; open part 1");
    truncate(path_of(files[2]), 100);
    open_fails(files[2], TN_EFORMAT, "m-00003-of-00003.gguf: ");
    open_fails(files[0], TN_EFORMAT, "m-00003-of-00003.gguf: ");
    unlink(path_of(files[1]));
    open_fails(files[0], TN_ENOENT, "part 2 of 3 is missing: there is no file");
    mkdir(path_of(files[1]), 0700);
    open_fails(files[0], TN_EIO, "m-00002-of-00003.gguf' is a directory");
    rmdir(path_of(files[1]));
    CHECK(rename(path_of(files[0]), path_of("plain.gguf")) == 0);
    open_fails("plain.gguf", TN_EFORMAT, "must end in -00001-of-00003.gguf");
    CHECK_INT(open_descriptors(), before);
    remove_dir(files, 4);
}

TEST(split_keys_of_the_wrong_kind)
{
    REQUIRE(make_dir());
    static const char *const keys[] = {"split.no", "split.count", "split.tensors.count"};
    for (int i = 0; i < 3; i++) {
        gb b = {0};
        gb_header(&b, 3, 0, 1);
        gb_key_str(&b, keys[i], "3");
        write_file("plain.gguf", b.p, b.n);
        open_fails("plain.gguf", TN_EFORMAT, "found STRING where an integer is needed");
        gb_free(&b);
    }
    static const uint32_t counts[] = {100000, UINT32_MAX};
    for (int i = 0; i < 2; i++) {
        gb b = {0};
        gb_header(&b, 3, 0, 1);
        gb_key_u32(&b, "split.count", counts[i]);
        write_file("plain.gguf", b.p, b.n);
        open_fails("plain.gguf", TN_EFORMAT, "at most 99999 are supported");
        gb_free(&b);
    }
    /* A count of 0 or 1 is an unsplit file under any name. */
    for (uint32_t count = 0; count < 2; count++) {
        gb b = {0};
        gb_header(&b, 3, 0, 1);
        gb_key_u32(&b, "split.count", count);
        write_file("plain.gguf", b.p, b.n);
        tn_gguf *g = NULL;
        CHECK_INT(tn_gguf_open(&g, path_of("plain.gguf"), NULL, NULL), TN_OK);
        tn_gguf_close(g);
        gb_free(&b);
    }
    remove_dir(files + 3, 1);
}

TEST(every_failing_allocation_closes_all_files)
{
    REQUIRE(make_dir());
    write_split(&good);
    int before = open_descriptors();
    long k = 1;
    for (tn_status st = TN_ENOMEM; st != TN_OK; k++) {
        watch w = {.fail_at = k};
        tn_allocator a = watched(&w);
        tn_gguf_options opt = {.allocator = &a};
        tn_gguf *g = NULL;
        tn_error err = {0};
        st = tn_gguf_open(&g, path_of(files[0]), &opt, &err);
        CHECK_MSG(st == TN_OK || (st == TN_ENOMEM && !g), "allocation %ld: %s", k, err.msg);
        tn_gguf_close(g);
        CHECK_INT(w.live, 0);
        CHECK_INT(open_descriptors(), before);
        if (k > 1000) break;
    }
    CHECK_MSG(k > 20 && k < 1000, "%ld allocations", k);
    remove_dir(files, 3);
}

TEST_MAIN
