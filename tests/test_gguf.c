/* The GGUF parser: files built byte by byte, right and wrong. Known attacks:
 * test_gguf_bad.c. Files on disk: test_gguf_files.c. */
#include "gguf_check.h"

#include "../gguf/cursor.h"
#include "../gguf/types.h"
#include "../gguf/write.h"

#include <dirent.h>

/* ---- files that are right ---- */

/* Every scalar kind, every array kind, three tensors. */
static void build_everything(gb *b, uint32_t version)
{
    gb_header(b, version, 3, 26);
    gb_key(b, "u8", TN_GGUF_U8), gb_u8(b, 0xFE);
    gb_key(b, "i8", TN_GGUF_I8), gb_u8(b, 0x80);
    gb_key(b, "u16", TN_GGUF_U16), gb_u16(b, 0xFEDC);
    gb_key(b, "i16", TN_GGUF_I16), gb_u16(b, 0x8001);
    gb_key(b, "u32", TN_GGUF_U32), gb_u32(b, 0xFEDCBA98);
    gb_key(b, "i32", TN_GGUF_I32), gb_u32(b, (uint32_t)-5);
    gb_key(b, "f32", TN_GGUF_F32), gb_f32(b, -1.5f);
    gb_key(b, "bool", TN_GGUF_BOOL), gb_u8(b, 1);
    gb_key_str(b, "str", "h\xC3\xA9llo");
    gb_key(b, "u64", TN_GGUF_U64), gb_u64(b, UINT64_MAX);
    gb_key(b, "i64", TN_GGUF_I64), gb_u64(b, (uint64_t)INT64_MIN);
    gb_key(b, "f64", TN_GGUF_F64), gb_f64(b, 0.1);
    gb_array(b, "a.u8", TN_GGUF_U8, 3), gb_u8(b, 1), gb_u8(b, 2), gb_u8(b, 255);
    gb_array(b, "a.i8", TN_GGUF_I8, 2), gb_u8(b, 255), gb_u8(b, 127);
    gb_array(b, "a.u16", TN_GGUF_U16, 2), gb_u16(b, 1), gb_u16(b, 65535);
    gb_array(b, "a.i16", TN_GGUF_I16, 2), gb_u16(b, 1), gb_u16(b, 65535);
    gb_array(b, "a.u32", TN_GGUF_U32, 2), gb_u32(b, 7), gb_u32(b, UINT32_MAX);
    gb_array(b, "a.i32", TN_GGUF_I32, 2), gb_u32(b, 7), gb_u32(b, UINT32_MAX);
    gb_array(b, "a.f32", TN_GGUF_F32, 2), gb_f32(b, 0.25f), gb_f32(b, -1e30f);
    gb_array(b, "a.bool", TN_GGUF_BOOL, 3), gb_u8(b, 1), gb_u8(b, 0), gb_u8(b, 1);
    gb_array(b, "a.str", TN_GGUF_STRING, 3), gb_str(b, "one"), gb_str(b, ""), gb_str(b, "three");
    gb_array(b, "a.u64", TN_GGUF_U64, 2), gb_u64(b, 9), gb_u64(b, UINT64_MAX);
    gb_array(b, "a.i64", TN_GGUF_I64, 2), gb_u64(b, 9), gb_u64(b, UINT64_MAX);
    gb_array(b, "a.f64", TN_GGUF_F64, 1), gb_f64(b, 1e300);
    gb_array(b, "a.empty", TN_GGUF_STRING, 0);
    gb_key_u32(b, "general.alignment", 64);
    uint64_t shape[4] = {64, 2, 3, 2};
    gb_tensor(b, "w", 4, shape, TN_TYPE_Q8_0, 0);
    gb_tensor1(b, "v", 3, TN_TYPE_F32, 1664);
    gb_tensor1(b, "h", 5, TN_TYPE_F16, 1728);
    gb_pad(b, 64);
    for (int i = 0; i < 1738; i++) gb_u8(b, (uint64_t)i);
}

static void check_i64(const tn_gguf *g, const char *key, uint64_t i, int64_t want)
{
    int64_t v = 0;
    const tn_gguf_key *k = tn_gguf_find(g, key);
    CHECK_MSG(k && tn_gguf_value_i64(k, i, &v) && v == want, "%s[%d]: %lld, want %lld", key, (int)i,
              (long long)v, (long long)want);
}
static void check_f64(const tn_gguf *g, const char *key, uint64_t i, double want)
{
    double v = 0;
    const tn_gguf_key *k = tn_gguf_find(g, key);
    CHECK_MSG(k && tn_gguf_value_f64(k, i, &v) && v == want, "%s[%d]: %g", key, (int)i, v);
}
static void check_str(const tn_gguf *g, const char *key, uint64_t i, const char *want)
{
    tn_str s = {"", 0};
    const tn_gguf_key *k = tn_gguf_find(g, key);
    CHECK_MSG(k && tn_gguf_value_str(k, i, &s) && s.len == strlen(want) &&
                  memcmp(s.data, want, s.len) == 0,
              "%s[%d] is '%.*s'", key, (int)i, (int)s.len, s.data);
}

TEST(every_kind_in_both_versions)
{
    for (uint32_t version = 2; version <= 3; version++) {
        gb b = {0};
        build_everything(&b, version);
        tn_gguf *g = must_parse(&b);
        REQUIRE(g);
        CHECK_INT(tn_gguf_version(g), version);
        CHECK_INT(tn_gguf_n_keys(g), 26);
        CHECK_INT(tn_gguf_alignment(g), 64);
        check_i64(g, "u8", 0, 254), check_i64(g, "i8", 0, -128);
        check_i64(g, "u16", 0, 0xFEDC), check_i64(g, "i16", 0, -32767);
        check_i64(g, "u32", 0, 0xFEDCBA98), check_i64(g, "i32", 0, -5);
        check_i64(g, "i64", 0, INT64_MIN);
        check_f64(g, "f32", 0, -1.5), check_f64(g, "f64", 0, 0.1);
        check_str(g, "str", 0, "h\xC3\xA9llo");
        check_i64(g, "a.u8", 2, 255), check_i64(g, "a.i8", 0, -1), check_i64(g, "a.i8", 1, 127);
        check_i64(g, "a.u16", 1, 65535), check_i64(g, "a.i16", 1, -1);
        check_i64(g, "a.u32", 1, UINT32_MAX), check_i64(g, "a.i32", 1, -1);
        check_i64(g, "a.u64", 0, 9), check_i64(g, "a.i64", 1, -1);
        check_f64(g, "a.f32", 0, 0.25), check_f64(g, "a.f32", 1, (double)-1e30f);
        check_f64(g, "a.f64", 0, 1e300);
        check_str(g, "a.str", 0, "one"), check_str(g, "a.str", 1, "");
        check_str(g, "a.str", 2, "three");
        bool v = true;
        CHECK(tn_gguf_value_bool(tn_gguf_find(g, "a.bool"), 1, &v) && !v);
        CHECK(tn_gguf_value_bool(tn_gguf_find(g, "a.bool"), 2, &v) && v);
        CHECK_INT(tn_gguf_find(g, "a.empty")->n, 0);
        CHECK_INT(tn_gguf_find(g, "a.str")->data_bytes, 3 * 8 + 8);
        CHECK_INT(tn_gguf_find(g, "u8")->offset, 24);
        CHECK(!tn_gguf_find(g, "nothing") && !tn_gguf_find(g, ""));
        CHECK(gguf_walk(g));
        tn_gguf_close(g);
        gb_free(&b);
    }
}

TEST(tensors_and_their_data)
{
    gb b = {0};
    build_everything(&b, 3);
    tn_gguf *g = must_parse(&b);
    REQUIRE(g);
    CHECK_INT(tn_gguf_n_tensors(g), 3);
    const tn_gguf_tensor *w = tn_gguf_find_tensor(g, "w"), *v = tn_gguf_tensor_at(g, 1);
    REQUIRE(w && v && !tn_gguf_find_tensor(g, "x"));
    CHECK(w->shape[0] == 64 && w->shape[1] == 2 && w->shape[2] == 3 && w->shape[3] == 2);
    CHECK_INT(w->bytes, 2 * 34 * 12);
    CHECK_INT(v->bytes, 12);
    CHECK(v->n_dims == 1 && v->shape[1] == 1 && v->shape[3] == 1);
    CHECK_INT(w->offset % 64, 0);
    CHECK_INT(v->offset - w->offset, 1664);
    const uint8_t *data = tn_gguf_tensor_data(g, v);
    CHECK(data && data == b.p + v->offset && data[0] == (1664 & 255) && data[1] == (1665 & 255));
    CHECK_INT(tn_gguf_parts(g), 1);
    CHECK_INT(tn_gguf_part_fd(g, 0), -1);
    CHECK_STR(tn_gguf_part_path(g, 0), "dir/model.gguf");
    tn_gguf_close(g);
    gb_free(&b);
}

TEST(header_only_needs_no_data)
{
    gb b = {0};
    build_everything(&b, 3);
    tn_error err;
    size_t whole = b.n;
    b.n -= 1738;
    CHECK_INT(parse_guarded(&b, true, &err), TN_OK);
    CHECK_INT(parse_guarded(&b, false, &err), TN_EFORMAT);
    b.n = whole;
    tn_gguf_options opt = {.header_only = true};
    tn_gguf *g = NULL;
    CHECK_INT(tn_gguf_parse(&g, b.p, b.n, "x", &opt, &err), TN_OK);
    REQUIRE(g);
    CHECK(!tn_gguf_tensor_data(g, tn_gguf_tensor_at(g, 0)));
    tn_gguf_close(g);
    gb_free(&b);
}

TEST(a_file_without_keys_and_tensors)
{
    gb b = {0};
    tn_error err;
    gb_header(&b, 3, 0, 0);
    CHECK_INT(parse_guarded(&b, false, &err), TN_OK);
    tn_gguf *g = must_parse(&b);
    REQUIRE(g);
    CHECK(!tn_gguf_find(g, "general.architecture") && !tn_gguf_find_tensor(g, "t"));
    CHECK_INT(tn_gguf_alignment(g), 32);
    tn_gguf_close(g);
    gb_free(&b);
}

/* ---- typed accessors ---- */

static void check_kind_error(tn_status st, const tn_error *err, const char *words)
{
    CHECK_INT(st, TN_EFORMAT);
    CHECK_MSG(st != TN_OK && strstr(err->msg, words), "no '%s' in: %s", words, err->msg);
}

TEST(integers_accept_integers_only)
{
    gb b = {0};
    build_everything(&b, 3);
    tn_gguf *g = must_parse(&b);
    REQUIRE(g);
    tn_error err;
    uint32_t u = 77;
    uint64_t u64 = 78;
    CHECK_INT(tn_gguf_get_u32(g, "absent", &u, &err), TN_OK);
    CHECK_INT(u, 77);
    CHECK(tn_gguf_get_u32(g, "u8", &u, &err) == TN_OK && u == 254);
    CHECK(tn_gguf_get_u32(g, "u32", &u, &err) == TN_OK && u == 0xFEDCBA98);
    CHECK(tn_gguf_get_u64(g, "u64", &u64, &err) == TN_OK && u64 == UINT64_MAX);
    u = 77;
    check_kind_error(tn_gguf_get_u32(g, "i32", &u, &err), &err, "-5 is negative");
    check_kind_error(tn_gguf_get_u64(g, "i64", &u64, &err), &err, "is negative");
    check_kind_error(tn_gguf_get_u32(g, "u64", &u, &err), &err, "18446744073709551615 is too la");
    check_kind_error(tn_gguf_get_u32(g, "f32", &u, &err), &err, "found F32 where an integer");
    check_kind_error(tn_gguf_get_u32(g, "bool", &u, &err), &err, "found BOOL where an integer");
    check_kind_error(tn_gguf_get_u32(g, "a.u8", &u, &err), &err, "found ARRAY of U8 where an int");
    check_kind_error(tn_gguf_get_u32(g, "str", &u, &err), &err,
                     "model.gguf: key 'str' at byte 162: found STRING where an integer is needed");
    CHECK_INT(err.offset, 162);
    CHECK_INT(u, 77);
    CHECK_INT(tn_gguf_get_u32(g, "str", &u, NULL), TN_EFORMAT);
    tn_gguf_close(g);
    gb_free(&b);
}

TEST(floats_bools_and_strings_keep_to_their_kind)
{
    gb b = {0};
    build_everything(&b, 3);
    tn_gguf *g = must_parse(&b);
    REQUIRE(g);
    tn_error err;
    float f = 3;
    bool v = false;
    tn_str s = {"x", 1};
    CHECK(tn_gguf_get_f32(g, "absent", &f, &err) == TN_OK && f == 3.0f);
    CHECK(tn_gguf_get_f32(g, "f32", &f, &err) == TN_OK && f == -1.5f);
    CHECK(tn_gguf_get_f32(g, "f64", &f, &err) == TN_OK && f == 0.1f);
    check_kind_error(tn_gguf_get_f32(g, "u8", &f, &err), &err, "found U8 where a floating-point");
    check_kind_error(tn_gguf_get_f32(g, "a.f32", &f, &err), &err, "found ARRAY of F32 where a fl");
    CHECK(tn_gguf_get_bool(g, "absent", &v, &err) == TN_OK && !v);
    CHECK(tn_gguf_get_bool(g, "bool", &v, &err) == TN_OK && v);
    check_kind_error(tn_gguf_get_bool(g, "u8", &v, &err), &err, "found U8 where BOOL");
    check_kind_error(tn_gguf_get_bool(g, "a.bool", &v, &err), &err, "ARRAY of BOOL where BOOL");
    CHECK(tn_gguf_get_str(g, "absent", &s, &err) == TN_OK && s.len == 1);
    CHECK(tn_gguf_get_str(g, "str", &s, &err) == TN_OK && s.len == 6);
    check_kind_error(tn_gguf_get_str(g, "u8", &s, &err), &err, "found U8 where STRING");
    check_kind_error(tn_gguf_get_str(g, "a.str", &s, &err), &err, "ARRAY of STRING where STRING");
    tn_gguf_close(g);
    gb_free(&b);
}

TEST(floats_that_are_not_finite_are_refused)
{
    const double bad[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, 1e39, -1e300};
    for (int i = 0; i < 8; i++) {
        gb b = {0};
        gb_header(&b, 3, 0, 1);
        if (i < 5)
            gb_key(&b, "x", TN_GGUF_F64), gb_f64(&b, bad[i]);
        else
            gb_key(&b, "x", TN_GGUF_F32), gb_f32(&b, (float)bad[i - 5]);
        tn_gguf *g = must_parse(&b);
        REQUIRE(g);
        float f = 3;
        tn_error err;
        check_kind_error(tn_gguf_get_f32(g, "x", &f, &err), &err, "not a finite 32-bit number");
        CHECK(f == 3.0f);
        tn_gguf_close(g);
        gb_free(&b);
    }
}

TEST(elements_are_bounded_and_typed)
{
    gb b = {0};
    build_everything(&b, 3);
    tn_gguf *g = must_parse(&b);
    REQUIRE(g);
    int64_t i = 5;
    double d = 5;
    bool v = true;
    tn_str s = {"x", 1};
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "a.u8"), 3, &i));
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "a.u8"), UINT64_MAX, &i));
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "u8"), 1, &i));
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "a.f32"), 0, &i));
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "a.bool"), 0, &i));
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "a.str"), 0, &i));
    CHECK(!tn_gguf_value_i64(tn_gguf_find(g, "a.u64"), 1, &i));
    CHECK(!tn_gguf_value_f64(tn_gguf_find(g, "a.i32"), 0, &d));
    CHECK(!tn_gguf_value_f64(tn_gguf_find(g, "a.f32"), 2, &d));
    CHECK(!tn_gguf_value_bool(tn_gguf_find(g, "a.u8"), 0, &v));
    CHECK(!tn_gguf_value_bool(tn_gguf_find(g, "a.bool"), 3, &v));
    CHECK(!tn_gguf_value_str(tn_gguf_find(g, "a.str"), 3, &s));
    CHECK(!tn_gguf_value_str(tn_gguf_find(g, "a.empty"), 0, &s));
    CHECK(!tn_gguf_value_str(tn_gguf_find(g, "a.u8"), 0, &s));
    size_t pos = 0;
    int n = 0;
    while (tn_gguf_str_walk(tn_gguf_find(g, "a.str"), &pos, &s)) n++;
    CHECK_INT(n, 3);
    pos = 0;
    CHECK(!tn_gguf_str_walk(tn_gguf_find(g, "a.u8"), &pos, &s));
    CHECK(i == 5 && d == 5.0 && v);
    tn_gguf_close(g);
    gb_free(&b);
}

/* ---- damage ---- */

TEST(every_truncation_is_refused)
{
    gb b = {0};
    build_everything(&b, 3);
    for (size_t n = 0; n < b.n; n++) {
        gb part = {.p = b.p, .n = n};
        tn_error err;
        CHECK_MSG(parse_guarded(&part, false, &err) == TN_EFORMAT, "%zu of %zu bytes", n, b.n);
        parse_guarded(&part, true, &err);
    }
    gb_free(&b);
}

TEST(every_flipped_bit_is_survived)
{
    gb b = {0};
    build_everything(&b, 3);
    guarded g = guard(b.p, b.n);
    size_t refused = 0, header = b.n - 1738;
    for (size_t bit = 0; bit < header * 8; bit++) {
        tn_error err;
        g.p[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        refused += parse_any(g.p, b.n, false, &err) != TN_OK;
        g.p[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    CHECK_MSG(refused > header * 8 / 4, "only %zu of %zu flips refused", refused, header * 8);
    unguard(&g);
    gb_free(&b);
}

TEST(random_damage_is_survived)
{
    gb b = {0};
    build_everything(&b, 2);
    guarded g = guard(b.p, b.n);
    uint64_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        tn_error err;
        memcpy(g.p, b.p, b.n);
        for (uint64_t i = test_rand(&seed) % 6 + 1; i > 0; i--) {
            static const uint8_t edge[] = {0, 1, 2, 9, 0x7F, 0x80, 0xFF, 0x20};
            size_t at = test_rand(&seed) % (b.n - 1738);
            g.p[at] = edge[test_rand(&seed) % 8];
        }
        parse_any(g.p, b.n, round & 1, &err);
    }
    unguard(&g);
    gb_free(&b);
}

TEST(every_failing_allocation_is_reported)
{
    gb b = {0};
    build_everything(&b, 3);
    /* Two tensors in reverse order, so that the check for overlaps has to sort. */
    gb r = {0};
    gb_header(&r, 3, 2, 0);
    gb_tensor1(&r, "b", 8, TN_TYPE_F32, 32);
    gb_tensor1(&r, "a", 8, TN_TYPE_F32, 0);
    gb_pad(&r, 32);
    gb_zeros(&r, 64);
    const gb *files[] = {&b, &r};
    for (int f = 0; f < 2; f++) {
        long k = 1;
        for (tn_status st = TN_ENOMEM; st != TN_OK; k++) {
            watch w = {.fail_at = k};
            tn_allocator a = watched(&w);
            tn_gguf_options opt = {.allocator = &a};
            tn_gguf *g = NULL;
            tn_error err = {0};
            st = tn_gguf_parse(&g, files[f]->p, files[f]->n, "x", &opt, &err);
            if (st != TN_OK) CHECK(st == TN_ENOMEM && !g && strstr(err.msg, "out of memory"));
            tn_gguf_close(g);
            CHECK_INT(w.live, 0);
            REQUIRE(k < 1000);
        }
        CHECK_MSG(k > 6, "only %ld allocations", k);
    }
    gb_free(&b);
    gb_free(&r);
}

/* The fuzzer's inputs: what it once found interesting must stay harmless. */
TEST(corpus_is_survived)
{
    DIR *d = opendir("tests/corpus/gguf");
    REQUIRE(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char path[400];
        uint8_t bytes[65536];
        snprintf(path, sizeof path, "tests/corpus/gguf/%s", e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!f) continue;
        size_t size = fread(bytes, 1, sizeof bytes, f);
        fclose(f);
        n++;
        CHECK_MSG(size > 0 && size < sizeof bytes, "%s: %zu bytes", path, size);
        if (size == 0) continue;
        guarded g = guard(bytes + 1, size - 1);
        tn_error err;
        parse_any(g.p, size - 1, bytes[0] & 1, &err);
        unguard(&g);
    }
    closedir(d);
    CHECK_MSG(n >= 5, "only %d files in the corpus", n);
}

/* ---- names, hashing, order ---- */

TEST(many_names_are_found_and_a_late_duplicate_is_refused)
{
    enum { n = 50000 };
    gb b = {0};
    char name[32];
    gb_header(&b, 3, n, n);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "key.%d", i);
        gb_key_u32(&b, name, (uint32_t)i);
    }
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "t.%d", i);
        gb_tensor1(&b, name, 8, TN_TYPE_F32, 32ull * (uint64_t)(n - 1 - i));
    }
    size_t header = b.n;
    gb_pad(&b, 32);
    gb_zeros(&b, 32 * n);
    tn_gguf *g = must_parse(&b);
    REQUIRE(g);
    for (int i = 0; i < n; i += 37) {
        uint32_t v = 0;
        snprintf(name, sizeof name, "key.%d", i);
        CHECK(tn_gguf_get_u32(g, name, &v, NULL) == TN_OK && v == (uint32_t)i);
        snprintf(name, sizeof name, "t.%d", i);
        CHECK(tn_gguf_find_tensor(g, name) == tn_gguf_tensor_at(g, (uint64_t)i));
    }
    tn_gguf_close(g);
    /* The last tensor's name, "t.49999", becomes that of an earlier one. */
    memcpy(b.p + header - 8 - 4 - 8 - 4 - 5, "12345", 5);
    check_refused("late duplicate", &b, TN_EFORMAT, "tensor 't.12345'|second time");
    gb_free(&b);
}

TEST(names_are_made_visible_in_messages)
{
    gb b = {0};
    gb_header(&b, 3, 0, 1);
    gb_key(&b, "a\x1B[2J\xC2\x9Bz", 99);
    check_refused("escape", &b, TN_EFORMAT, "key 'a\\x1B[2J\\xC2\\x9Bz' at byte 24|type 99");
    gb_free(&b);
    gb_header(&b, 3, 0, 1);
    char name[3001];
    memset(name, 'n', 3000);
    name[3000] = 0;
    gb_key(&b, name, 99);
    check_refused("long", &b, TN_EFORMAT, "nnn...' at byte 24: unknown value type 99");
    gb_free(&b);
}

TEST(utf8_in_names)
{
    static const struct {
        const char *name;
        bool ok;
    } cases[] = {
        {"\xC3\xA9", true},          {"\xE2\x82\xAC", true},     {"\xF0\x9F\x98\x80", true},
        {"\xF4\x8F\xBF\xBF", true},  {"\xED\x9F\xBF", true},     {"\x80", false},
        {"\xC3", false},             {"\xC0\x80", false},        {"\xC1\xBF", false},
        {"\xE0\x9F\xBF", false},     {"\xED\xA0\x80", false},    {"\xF0\x8F\xBF\xBF", false},
        {"\xF4\x90\x80\x80", false}, {"\xF5\x80\x80\x80", false}, {"\xE2\x82", false},
        {"\xE2\x82 ", false},        {"\xFF", false},            {"a\xF0\x9F\x98", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gb b = {0};
        tn_error err;
        gb_header(&b, 3, 0, 1);
        gb_key_u32(&b, cases[i].name, 1);
        CHECK_MSG((parse_guarded(&b, false, &err) == TN_OK) == cases[i].ok, "case %zu", i);
        gb_free(&b);
    }
}

TEST(cursor_fails_once_and_for_good)
{
    const uint8_t bytes[] = {1, 2, 3, 4, 5, 6};
    tn_cursor c;
    tn_cursor_init(&c, bytes, sizeof bytes);
    CHECK_INT(tn_cursor_u32(&c), 0x04030201);
    CHECK_INT(tn_cursor_left(&c), 2);
    CHECK_INT(tn_cursor_u32(&c), 0);
    CHECK(c.failed && c.error_pos == 4 && c.error_need == 4);
    CHECK_INT(tn_cursor_u8(&c), 0);
    CHECK(!tn_cursor_take(&c, 0) && !tn_cursor_skip_strings(&c, 1));
    CHECK(c.error_pos == 4 && c.error_need == 4 && tn_cursor_left(&c) == 0);
    tn_cursor_init(&c, bytes, sizeof bytes);
    CHECK(!tn_cursor_take(&c, UINT64_MAX) && c.error_need == UINT64_MAX);
    uint64_t v = 5;
    CHECK(!tn_add_u64(UINT64_MAX, 1, &v) && !tn_mul_u64(1ull << 32, 1ull << 32, &v));
    CHECK(!tn_align_u64(UINT64_MAX - 3, 8, &v) && v == 5);
    CHECK(tn_align_u64(17, 8, &v) && v == 24 && tn_align_u64(24, 8, &v) && v == 24);
}

TEST(arguments_are_checked)
{
    tn_error err;
    tn_gguf *g = (tn_gguf *)&err;
    CHECK_INT(tn_gguf_parse(NULL, "", 0, "x", NULL, &err), TN_EARG);
    CHECK_INT(tn_gguf_parse(&g, NULL, 5, "x", NULL, &err), TN_EARG);
    CHECK(!g);
    CHECK_INT(tn_gguf_parse(&g, NULL, 0, NULL, NULL, &err), TN_EFORMAT);
    CHECK(strstr(err.msg, "(memory)"));
    CHECK_INT(tn_gguf_open(&g, NULL, NULL, &err), TN_EARG);
    tn_gguf_close(NULL);
}

/* ---- the writer ---- */

static void write_everything(tn_gguf_writer *w)
{
    const float row[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const int32_t ids[] = {5, -6};
    const tn_str words[] = {{"a", 1}, {"", 0}, {"b\0c", 3}};
    tn_gguf_writer_alignment(w, 64);
    tn_gguf_writer_str(w, "general.architecture", "llama");
    tn_gguf_writer_u32(w, "u32", 7);
    tn_gguf_writer_int(w, "i8", TN_GGUF_I8, -128);
    tn_gguf_writer_int(w, "u64", TN_GGUF_U64, INT64_MAX);
    tn_gguf_writer_f32(w, "f32", 0.5f);
    tn_gguf_writer_bool(w, "bool", true);
    tn_gguf_writer_array(w, "ids", TN_GGUF_I32, 2, ids);
    tn_gguf_writer_strings(w, "words", 3, words);
    tn_gguf_writer_tensor(w, "one", TN_TYPE_F32, 1, (uint64_t[]){3}, row);
    tn_gguf_writer_tensor(w, "two", TN_TYPE_F32, 2, (uint64_t[]){4, 2}, row);
}

TEST(writer_round_trip)
{
    tn_gguf_writer *w = tn_gguf_writer_new(NULL), *again = tn_gguf_writer_new(NULL);
    const uint8_t *p, *p2;
    size_t n, n2;
    tn_error err;
    write_everything(w);
    REQUIRE(tn_gguf_writer_finish(w, &p, &n, &err) == TN_OK);
    tn_gguf *g = must_parse(&(gb){.p = (uint8_t *)(uintptr_t)p, .n = n});
    REQUIRE(g);
    CHECK(gguf_walk(g));
    check_str(g, "general.architecture", 0, "llama");
    check_i64(g, "u32", 0, 7), check_i64(g, "i8", 0, -128), check_i64(g, "u64", 0, INT64_MAX);
    check_f64(g, "f32", 0, 0.5), check_i64(g, "ids", 1, -6), check_str(g, "words", 0, "a");
    tn_str s;
    CHECK(tn_gguf_value_str(tn_gguf_find(g, "words"), 2, &s) && s.len == 3 && s.data[2] == 'c');
    const tn_gguf_tensor *two = tn_gguf_find_tensor(g, "two");
    REQUIRE(two);
    float f[8];
    memcpy(f, tn_gguf_tensor_data(g, two), sizeof f);
    CHECK(two->offset % 64 == 0 && f[0] == 1.0f && f[7] == 8.0f && two->shape[1] == 2);
    for (uint64_t i = 0; i < tn_gguf_n_keys(g); i++)
        tn_gguf_writer_copy(again, tn_gguf_key_at(g, i));
    CHECK_INT(tn_gguf_writer_finish(again, &p2, &n2, &err), TN_OK);
    size_t keys_end = (size_t)tn_gguf_tensor_at(g, 0)->header_offset;
    CHECK(n2 >= keys_end && memcmp(p + 16, p2 + 16, keys_end - 16) == 0);
    tn_gguf_close(g);
    tn_gguf_writer_free(w);
    tn_gguf_writer_free(again);
}

TEST(writer_knows_the_range_of_every_integer)
{
    static const struct {
        tn_gguf_kind kind;
        int64_t min, max;
    } kinds[] = {
        {TN_GGUF_U8, 0, UINT8_MAX},          {TN_GGUF_I8, INT8_MIN, INT8_MAX},
        {TN_GGUF_U16, 0, UINT16_MAX},        {TN_GGUF_I16, INT16_MIN, INT16_MAX},
        {TN_GGUF_U32, 0, UINT32_MAX},        {TN_GGUF_I32, INT32_MIN, INT32_MAX},
        {TN_GGUF_I64, INT64_MIN, INT64_MAX}, {TN_GGUF_U64, 0, INT64_MAX},
    };
    for (size_t i = 0; i < 8; i++) {
        int64_t min = kinds[i].min, max = kinds[i].max;
        for (int round = 0; round < 3; round++) {
            if (round && max == INT64_MAX && (round == 1 || min == INT64_MIN)) continue;
            tn_gguf_writer *w = tn_gguf_writer_new(NULL);
            const uint8_t *p = NULL;
            size_t n = 0;
            tn_gguf_writer_int(w, "min", kinds[i].kind, round == 2 ? min - 1 : min);
            tn_gguf_writer_int(w, "max", kinds[i].kind, round == 1 ? max + 1 : max);
            tn_status st = tn_gguf_writer_finish(w, &p, &n, NULL);
            CHECK_MSG(st == (round ? TN_EARG : TN_OK), "kind %zu, round %d: %d", i, round, st);
            tn_gguf *g = st ? NULL : must_parse(&(gb){.p = (uint8_t *)(uintptr_t)p, .n = n});
            if (g) check_i64(g, "min", 0, min), check_i64(g, "max", 0, max);
            tn_gguf_close(g);
            tn_gguf_writer_free(w);
        }
    }
}

TEST(writer_makes_header_only_files_and_refuses_nonsense)
{
    tn_error err;
    const uint8_t *p;
    size_t n;
    tn_gguf_writer *w = tn_gguf_writer_new(NULL);
    tn_gguf_writer_tensor(w, "huge", TN_TYPE_Q4_K, 2, (uint64_t[]){16384, 128256}, NULL);
    tn_gguf_writer_tensor(w, "next", TN_TYPE_F32, 1, (uint64_t[]){16384}, NULL);
    CHECK_INT(tn_gguf_writer_finish(w, &p, &n, &err), TN_OK);
    CHECK(n < 200);
    tn_gguf_options opt = {.header_only = true};
    tn_gguf *g = NULL;
    CHECK_INT(tn_gguf_parse(&g, p, n, "x", &opt, &err), TN_OK);
    if (g) CHECK_INT(tn_gguf_tensor_at(g, 0)->bytes, 16384ll / 256 * 144 * 128256);
    tn_gguf_close(g);
    tn_gguf_writer_free(w);
    for (int i = 0; i < 6; i++) {
        w = tn_gguf_writer_new(NULL);
        if (i == 0) tn_gguf_writer_int(w, "k", TN_GGUF_U8, 256);
        if (i == 1) tn_gguf_writer_int(w, "k", TN_GGUF_F32, 1);
        if (i == 2) tn_gguf_writer_array(w, "k", TN_GGUF_STRING, 1, "x");
        if (i == 3) tn_gguf_writer_tensor(w, "k", TN_TYPE_Q4_K, 1, (uint64_t[]){255}, NULL);
        if (i == 4) tn_gguf_writer_alignment(w, 48);
        if (i == 5) {
            tn_gguf_writer_tensor(w, "a", TN_TYPE_F32, 1, (uint64_t[]){1}, NULL);
            tn_gguf_writer_tensor(w, "k", TN_TYPE_F32, 1, (uint64_t[]){1}, "1234");
        }
        CHECK_MSG(tn_gguf_writer_finish(w, &p, &n, &err) == TN_EARG, "case %d", i);
        tn_gguf_writer_free(w);
    }
}

TEST(writer_survives_failing_allocations)
{
    long k = 1;
    for (tn_status st = TN_ENOMEM; st != TN_OK; k++) {
        watch m = {.fail_at = k};
        tn_allocator a = watched(&m);
        tn_gguf_writer *w = tn_gguf_writer_new(&a);
        const uint8_t *p;
        size_t n;
        tn_error err = {0};
        if (w) {
            write_everything(w);
            st = tn_gguf_writer_finish(w, &p, &n, &err);
            if (st != TN_OK) CHECK(st == TN_ENOMEM && err.code == TN_ENOMEM);
        }
        tn_gguf_writer_free(w);
        CHECK_INT(m.live, 0);
        REQUIRE(k < 1000);
    }
    CHECK(k > 5);
}

TEST_MAIN
