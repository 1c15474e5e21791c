/* Every class of mistake by which GGUF readers are known to have been broken, as a file built byte
 * by byte. The identifiers are those of the reports; L# and ggml# are llama.cpp's and ggml's. */
#include "gguf_check.h"

#include "../gguf/types.h"

static gb file; /* what the case under way has built; check() frees it */

static void check(const char *id, tn_status want, const char *words)
{
    CHECK_MSG(file.n < 8192, "%s: %zu bytes", id, file.n);
    check_refused(id, &file, want, words);
    gb_free(&file);
}
static void refused(const char *id, const char *words)
{
    check(id, TN_EFORMAT, words);
}

/* A file of one tensor with `data` bytes behind the header. */
static void one_tensor(const char *name, uint32_t n_dims, const uint64_t *shape, uint32_t type,
                       uint64_t offset, size_t data)
{
    gb_header(&file, 3, 1, 0);
    gb_tensor(&file, name, n_dims, shape, type, offset);
    gb_pad(&file, 32);
    gb_zeros(&file, data);
}

static void begin_key(const char *name, uint32_t kind)
{
    gb_header(&file, 3, 0, 1);
    gb_key(&file, name, kind);
}

TEST(magic_and_version)
{
    gb_bytes(&file, "GGUF", 4);
    refused("CVE-2024-39720", "f.gguf: the file ends after 4 bytes|24-byte header");
    refused("empty", "ends after 0 bytes");
    gb_bytes(&file, "GGUX\3\0\0\0", 8);
    refused("magic", "not a GGUF file|47 47 55 58");
    gb_bytes(&file, "tjgg\3\0\0\0", 8);
    refused("ggjt", "old GGJT file|convert");
    gb_bytes(&file, "lmgg\3\0\0\0", 8);
    refused("ggml", "old GGML file");
    gb_bytes(&file, "PK\3\4....", 8);
    refused("zip", "zip archive");
    gb_bytes(&file, "version https://git-lfs.github.com/spec/v1\n", 43);
    refused("lfs", "Git LFS pointer");
    gb_bytes(&file, "<!DOCTYPE html>", 15);
    refused("html", "web page");
    gb_header(&file, 1, 0, 0);
    check("version 1", TN_EUNSUPPORTED, "version 1|convert");
    gb_header(&file, 0x03000000, 0, 0);
    check("big-endian", TN_EUNSUPPORTED, "big-endian|version 3");
    gb_header(&file, 0x02000000, 0, 0);
    check("big-endian", TN_EUNSUPPORTED, "big-endian|version 2");
    gb_header(&file, 4, 0, 0);
    check("version 4", TN_EUNSUPPORTED, "version 4 is not known");
    gb_header(&file, 0, 0, 0);
    refused("version 0", "version 0");
    gb_header(&file, 0x7FFFFFFF, 0, 0);
    refused("version", "version 2147483647");
}

TEST(counts_that_cannot_be)
{
    static const uint64_t counts[] = {1, 2, 1000, 1ull << 31, (1ull << 32) + 1, 1ull << 58,
                                      UINT64_MAX / 88 + 1, INT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        gb_header(&file, 3, 0, counts[i]);
        gb_zeros(&file, 13);
        refused("CVE-2024-23605", "at byte 16 counts|keys, which cannot fit into the 13 bytes");
        gb_header(&file, 3, counts[i], 0);
        gb_zeros(&file, 32);
        refused("CVE-2024-21836", "at byte 8 counts|tensors, which cannot fit into the 32 bytes");
    }
    /* Each fits alone, not both. */
    gb_header(&file, 3, 1, 1);
    gb_zeros(&file, 33);
    refused("both counts", "1 tensors, which cannot fit into the 19 bytes");
    /* A count that fits by size, but the records are longer. */
    gb_header(&file, 3, 0, 2);
    gb_key_u32(&file, "first", 1);
    gb_zeros(&file, 10);
    refused("L#27188", "key 1 at byte 45|a name of 0 bytes");
    gb_header(&file, 3, 0, 2);
    gb_key_str(&file, "first", "a value long enough to hide it");
    refused("short", "the file ends inside key 1, which starts at byte 79: 8 bytes are needed");
}

TEST(key_names)
{
    static const uint64_t lengths[] = {65536, 1ull << 31, 1ull << 32, INT64_MAX, UINT64_MAX - 7,
                                       UINT64_MAX};
    begin_key("", TN_GGUF_U32);
    gb_u32(&file, 1);
    refused("empty name", "key 0 at byte 24 has a name of 0 bytes");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        gb_header(&file, 3, 0, 1);
        gb_u64(&file, lengths[i]);
        gb_zeros(&file, 64);
        refused("CVE-2024-23496", "key 0 at byte 24|1 to 65535 are allowed");
    }
    gb_header(&file, 3, 0, 1);
    gb_u64(&file, 65535);
    gb_zeros(&file, 64);
    refused("CVE-2025-0312", "ends inside key 0|65535 bytes are needed at byte 32, 64 are left");
    begin_key("bad\xFFname", TN_GGUF_U32);
    gb_u32(&file, 1);
    refused("UTF-8", "key 0 at byte 24|'bad\\xFFname'|no valid UTF-8");
    gb_header(&file, 3, 0, 1);
    gb_strn(&file, "a\0b", 3);
    gb_u32(&file, TN_GGUF_U32), gb_u32(&file, 1);
    refused("zero byte", "a\\x00b|no valid UTF-8");
    gb_header(&file, 3, 0, 3);
    gb_key_u32(&file, "same", 1), gb_key_u32(&file, "other", 1), gb_key_u32(&file, "same", 2);
    refused("duplicate", "key 'same' at byte 65|second time");
}

TEST(value_types)
{
    static const uint32_t kinds[] = {13, 14, 255, 256, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        begin_key("k", kinds[i]);
        gb_zeros(&file, 16);
        refused("CVE-2024-25664", "key 'k' at byte 24|unknown value type");
        gb_header(&file, 3, 0, 1);
        gb_array(&file, "k", kinds[i], 1);
        gb_zeros(&file, 16);
        refused("CVE-2024-25665", "key 'k' at byte 24|unknown element type");
    }
    gb_header(&file, 3, 0, 1);
    gb_array(&file, "k", TN_GGUF_ARRAY, 1);
    gb_zeros(&file, 64);
    check("nested", TN_EUNSUPPORTED, "key 'k' at byte 24|nested arrays");
    for (int v = 2; v < 256; v += 253) {
        begin_key("flag", TN_GGUF_BOOL);
        gb_u8(&file, (uint64_t)v);
        refused("bool", "key 'flag'|BOOL of value");
        gb_header(&file, 3, 0, 1);
        gb_array(&file, "flags", TN_GGUF_BOOL, 3);
        gb_u8(&file, 1), gb_u8(&file, 0), gb_u8(&file, (uint64_t)v);
        refused("bools", "key 'flags'|element 2 is a BOOL of value");
    }
}

TEST(string_and_array_lengths)
{
    static const uint64_t lengths[] = {5, 1ull << 31, 1ull << 32, (1ull << 61) + 1, 1ull << 62,
                                       1ull << 63, UINT64_MAX - 3, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        begin_key("s", TN_GGUF_STRING);
        gb_u64(&file, lengths[i]);
        gb_zeros(&file, 4);
        refused("CVE-2025-66960", "key 's' at byte 24: the file ends inside its value|4 are left");
        gb_header(&file, 3, 0, 1);
        gb_array(&file, "a", TN_GGUF_STRING, 2);
        gb_str(&file, "fine");
        gb_u64(&file, lengths[i]);
        gb_zeros(&file, 4);
        refused("CVE-2025-0315", "key 'a' at byte 24: the file ends inside its value|4 are left");
        for (uint32_t kind = 0; kind <= TN_GGUF_F64; kind++) {
            if (kind == TN_GGUF_ARRAY) continue;
            gb_header(&file, 3, 0, 1);
            gb_array(&file, "a", kind, lengths[i]);
            gb_zeros(&file, 4);
            refused("CVE-2024-21825", "key 'a' at byte 24|cannot fit into the 4 bytes left");
        }
    }
    for (uint32_t kind = 0; kind <= TN_GGUF_F64; kind++) {
        if (kind == TN_GGUF_STRING || kind == TN_GGUF_ARRAY) continue;
        begin_key("longname", kind);
        refused("CVE-2024-12055", "key 'longname'|1 values of type|cannot fit into the 0 bytes");
    }
}

TEST(alignment)
{
    static const uint32_t bad[] = {0, 1, 2, 4, 7, 9, 33, 48, 131072, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        gb_header(&file, 3, 0, 1);
        gb_key_u32(&file, "general.alignment", bad[i]);
        refused("CVE-2025-0317, ggml#1516", "key 'general.alignment' at byte 24|a power of two");
    }
    static const uint32_t kinds[] = {TN_GGUF_U64, TN_GGUF_I32, TN_GGUF_F32};
    for (size_t i = 0; i < 3; i++) {
        begin_key("general.alignment", kinds[i]);
        gb_u64(&file, 32);
        refused("alignment kind", "'general.alignment'|where U32 is needed");
    }
    for (uint32_t good = 8; good <= 65536; good *= 2) {
        tn_error err;
        gb_header(&file, 3, 1, 1);
        gb_key_u32(&file, "general.alignment", good);
        gb_tensor1(&file, "t", 2, TN_TYPE_F32, 0);
        gb_pad(&file, good);
        gb_zeros(&file, 8);
        CHECK_MSG(parse_guarded(&file, false, &err) == TN_OK, "%u", good);
        gb_free(&file);
    }
}

TEST(tensor_names)
{
    uint64_t n = 8;
    char name[66];
    memset(name, 't', 65);
    name[65] = 0;
    one_tensor("", 1, &n, TN_TYPE_F32, 0, 32);
    refused("CVE-2024-41130", "tensor 0 at byte 24 has a name of 0 bytes");
    one_tensor(name, 1, &n, TN_TYPE_F32, 0, 32);
    refused("long name", "tensor 0 at byte 24 has a name of 65 bytes; 1 to 64");
    one_tensor("\xC3(", 1, &n, TN_TYPE_F32, 0, 32);
    refused("UTF-8", "tensor 0 at byte 24|no valid UTF-8");
    name[64] = 0;
    tn_error err;
    one_tensor(name, 1, &n, TN_TYPE_F32, 0, 32);
    CHECK_INT(parse_guarded(&file, false, &err), TN_OK);
    gb_free(&file);
    gb_header(&file, 3, 2, 0);
    gb_tensor1(&file, "same", 8, TN_TYPE_F32, 0), gb_tensor1(&file, "same", 8, TN_TYPE_F32, 32);
    gb_pad(&file, 32);
    gb_zeros(&file, 64);
    refused("duplicate", "tensor 'same' at byte 60|second time");
}

TEST(dimensions)
{
    static const uint32_t bad_dims[] = {0, 5, 6, 255, 0x40000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad_dims / sizeof *bad_dims; i++) {
        gb_header(&file, 3, 1, 0);
        gb_str(&file, "t");
        gb_u32(&file, bad_dims[i]);
        gb_zeros(&file, 256);
        refused("CVE-2024-21802", "tensor 't' at byte 24|dimensions; 1 to 4 are allowed");
    }
    for (int zero = 0; zero < 4; zero++) {
        uint64_t shape[4] = {32, 2, 2, 2};
        shape[zero] = 0;
        one_tensor("t", 4, shape, TN_TYPE_F32, 0, 1024);
        refused("L#24263", "tensor 't' at byte 24: dimension|is zero");
    }
    static const uint64_t huge[][4] = {
        {INT64_MAX, 1, 1, 1},           {1ull << 63, 2, 1, 1},
        {1ull << 32, 1ull << 32, 1, 1}, {32, 1ull << 59, 1, 1},
        {1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16},
        {3, 0x5555555555555556u, 1, 1}, {1ull << 62, 1, 1, 1},
        {256, (1ull << 56) + 1, 1, 1},  {32, 1, UINT64_MAX, 1},
        {32, 1, 1, UINT64_MAX / 32},
    };
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        one_tensor("t", 4, huge[i], TN_TYPE_F32, 0, 1024);
        refused("L#27203, CVE-2026-33298", "tensor 't' at byte 24|is too large");
    }
    /* The product of the sizes wraps to a small number of blocks. */
    uint64_t wraps[2] = {256, (UINT64_MAX / 144) + 1};
    one_tensor("t", 2, wraps, TN_TYPE_Q4_K, 0, 1024);
    refused("L#27200", "tensor 't'|is too large");
    uint64_t ragged = 100;
    one_tensor("t", 1, &ragged, TN_TYPE_Q4_K, 0, 1024);
    refused("block", "tensor 't'|100 elements|Q4_K blocks of 256");
    ragged = 16;
    one_tensor("t", 1, &ragged, TN_TYPE_Q8_0, 0, 1024);
    refused("block", "tensor 't'|16 elements|Q8_0 blocks of 32");
}

TEST(tensor_types)
{
    uint64_t n = 256;
    static const uint32_t unknown[] = {43, 100, 0x7FFFFFFFu, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        one_tensor("t", 1, &n, unknown[i], 0, 1024);
        check("CVE-2024-25666", TN_EUNSUPPORTED, "tensor 't' at byte 24: unknown type");
    }
    one_tensor("t", 1, &n, 4, 0, 1024);
    check("removed", TN_EUNSUPPORTED,
          "tensor 't' at byte 24: type Q4_2 was removed from the format");
    one_tensor("t", 1, &n, 5, 0, 1024);
    check("removed", TN_EUNSUPPORTED,
          "tensor 't' at byte 24: type Q4_3 was removed from the format");
    for (uint32_t id = 0; id < TN_TYPE_COUNT; id++) {
        const tn_type_info *t = tn_type_get(id);
        tn_error err;
        one_tensor("t", 1, &n, id, 0, 1024 * 4);
        if (t && t->block)
            CHECK_MSG(parse_guarded(&file, false, &err) == TN_OK, "type %u: %s", id, err.msg);
        else
            CHECK_INT(parse_guarded(&file, false, &err), TN_EUNSUPPORTED);
        gb_free(&file);
    }
}

TEST(extents)
{
    uint64_t n = 8;
    tn_error err;
    one_tensor("t", 1, &n, TN_TYPE_F32, 0, 32);
    CHECK_INT(parse_guarded(&file, false, &err), TN_OK);
    gb_free(&file);
    one_tensor("t", 1, &n, TN_TYPE_F32, 0, 31);
    refused("CVE-2026-7482", "tensor 't' at byte 24: its data, bytes 64 to 96|file of 95 bytes");
    one_tensor("t", 1, &n, TN_TYPE_F32, 32, 32);
    refused("CVE-2026-7482", "tensor 't'|bytes 96 to 128, are not all in the file of 96");
    static const uint64_t far[] = {1ull << 40, INT64_MAX - 31, 1ull << 63, UINT64_MAX - 31,
                                   UINT64_MAX - 63, UINT64_MAX - 95};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        one_tensor("t", 1, &n, TN_TYPE_F32, far[i] & ~31ull, 32);
        refused("CVE-2025-53630", "tensor 't' at byte 24");
        if (i == 0) continue;
        one_tensor("t", 1, &n, TN_TYPE_F32, far[i] & ~31ull, 32);
        CHECK_INT(parse_guarded(&file, true, &err), TN_EFORMAT);
        CHECK_MSG(strstr(err.msg, "is too large"), "%s", err.msg);
        gb_free(&file);
    }
    for (uint64_t off = 1; off < 32; off += 5) {
        one_tensor("t", 1, &n, TN_TYPE_F32, off, 96);
        refused("unaligned", "tensor 't' at byte 24|no multiple of the alignment 32");
    }
    /* 2^62 elements in fewer than 2^61 bytes: their size as floats would overflow. */
    uint64_t many[2] = {256, 1ull << 54};
    one_tensor("t", 2, many, TN_TYPE_Q2_K, 0, 32);
    refused("elements", "tensor 't'|is too large");
    /* A whole, small file whose tensor claims exabytes: refused by the extent. */
    n = 1ull << 55;
    one_tensor("t", 1, &n, TN_TYPE_F32, 0, 4096);
    refused("CVE-2026-33298", "tensor 't'|not all in the file");
}

TEST(overlaps)
{
    static const struct {
        uint64_t first, second;
        bool ok;
    } cases[] = {{0, 64, true}, {64, 0, true}, {0, 0, false}, {0, 32, false}, {32, 0, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int header_only = 0; header_only < 2; header_only++) {
            tn_error err;
            gb_header(&file, 3, 2, 0);
            gb_tensor1(&file, "a", 16, TN_TYPE_F32, cases[i].first);
            gb_tensor1(&file, "b", 16, TN_TYPE_F32, cases[i].second);
            gb_pad(&file, 32);
            gb_zeros(&file, 128);
            tn_status st = parse_guarded(&file, header_only, &err);
            CHECK_MSG((st == TN_OK) == cases[i].ok, "case %zu", i);
            if (st) CHECK_MSG(strstr(err.msg, "inside those of tensor"), "%s", err.msg);
            gb_free(&file);
        }
    }
    /* Shuffled, and the one that overlaps is found wherever it is. */
    for (uint64_t bad = 0; bad < 50; bad++) {
        char name[8];
        gb_header(&file, 3, 50, 0);
        for (uint64_t i = 0; i < 50; i++) {
            snprintf(name, sizeof name, "t%d", (int)i);
            gb_tensor1(&file, name, i == bad ? 9 : 8, TN_TYPE_F32, 32 * (i * 37 % 50));
        }
        gb_pad(&file, 32);
        gb_zeros(&file, 32 * 51);
        tn_error err;
        bool last = bad * 37 % 50 == 49;
        CHECK_MSG((parse_guarded(&file, false, &err) == TN_OK) == last, "bad %d", (int)bad);
        gb_free(&file);
    }
}

/* Values that readers trusted: here each typed read refuses, so a caller cannot go wrong. */
TEST(values_read_as_another_kind)
{
    gb_header(&file, 3, 0, 2);
    gb_array(&file, "tokenizer.ggml.token_type", TN_GGUF_U8, 4);
    gb_u32(&file, 0x01010101);
    gb_key(&file, "llama.block_count", TN_GGUF_I32), gb_u32(&file, UINT32_MAX);
    tn_gguf *g = NULL;
    tn_error err;
    REQUIRE(tn_gguf_parse(&g, file.p, file.n, "f.gguf", NULL, &err) == TN_OK);
    const tn_gguf_key *k = tn_gguf_find(g, "tokenizer.ggml.token_type");
    double d;
    int64_t v;
    CHECK(k->element == TN_GGUF_U8 && !tn_gguf_value_f64(k, 0, &d)); /* L#26690 */
    CHECK(tn_gguf_value_i64(k, 3, &v) && v == 1 && !tn_gguf_value_i64(k, 4, &v));
    uint32_t n = 3;
    CHECK_INT(tn_gguf_get_u32(g, "llama.block_count", &n, &err), TN_EFORMAT);
    CHECK_INT(n, 3);
    tn_gguf_close(g);
    gb_free(&file);
}

TEST_MAIN
