/* Tokenizers: published vocabularies against the ids that llama.cpp and the models' own libraries
 * give (data/vocab), pieces of every pre-tokenizer against the field's regular expressions, and
 * merging against an obvious version of itself. All vocabularies: test_vocabs.py; small ones by
 * hand: test_tokenizer_kinds.c; broken ones, short memory and threads: test_vocab.c. */
#include "gguf_check.h"

#include "../engine/model.h"
#include "../engine/tokenizer_internal.h"
#include "vocab_build.h"

#include <jansson.h>
#include <time.h>

#define DATA "tests/data/vocab/"

/* ---- helpers ---- */

static opened open_file(const char *path)
{
    opened o = {0};
    tn_error err = {0};
    const tn_gguf_options opt = {sizeof opt, true, NULL};
    if (tn_gguf_open(&o.g, path, &opt, &err) ||
        tn_vocab_new(&o.v, o.g, &tn_default_allocator, &err))
        FAIL("%s", err.msg);
    return o;
}

static json_t *load_json(const char *path)
{
    json_error_t e;
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (!j) FAIL("%s: %s", path, e.text);
    return j;
}

static bool same_ids(const json_t *want, const int32_t *ids, size_t n)
{
    if (json_array_size(want) != n) return false;
    for (size_t i = 0; i < n; i++)
        if (json_integer_value(json_array_get(want, i)) != ids[i]) return false;
    return true;
}

static void check_ids(const tn_vocab *v, const char *what, const json_t *s, unsigned flags,
                      bool parse, const json_t *want)
{
    const tn_piece p = {json_string_value(s), json_string_length(s), parse};
    int32_t *ids = NULL;
    size_t n = 0;
    tn_error err = {0};
    CHECK_MSG(!tn_vocab_tokenize_pieces(v, &p, 1, flags, &ids, &n, NULL, &err), "%s: %s", what,
              err.msg);
    CHECK_MSG(same_ids(want, ids, n), "%s: '%s' gives %s", what, p.text, ids_text(ids, n));
    tn_free(&tn_default_allocator, ids);
}

/* ---- published vocabularies ---- */

static void check_vocab(const json_t *all, const char *name)
{
    char path[100];
    snprintf(path, sizeof path, DATA "%s.gguf", name);
    opened o = open_file(path);
    const json_t *strings = json_object_get(all, "strings");
    const json_t *want = json_object_get(json_object_get(all, "tokens"), name);
    CHECK_INT(json_array_size(want), 300);
    for (size_t i = 0; o.v && i < json_array_size(want); i++) {
        const json_t *s = json_array_get(strings, i), *w = json_array_get(want, i);
        check_ids(o.v, name, s, 0, false, json_array_get(w, 0));
        check_ids(o.v, name, s, TN_TOKENIZE_ADD_SPECIAL, true, json_array_get(w, 1));
    }
    close_vocab(&o);
}

TEST(real_vocabularies_of_both_kinds_give_the_recorded_ids)
{
    json_t *all = load_json(DATA "tokens.json");
    REQUIRE(all);
    check_vocab(all, "llama-spm");
    check_vocab(all, "gpt-2");
    json_decref(all);
}

TEST(vocabularies_of_the_small_models_give_the_recorded_ids)
{
    static const char *const names[] = {"gemma3",  "llama", "llama3", "mistral",
                                        "mixtral", "qwen2", "qwen3",  "qwen3moe"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[100];
        snprintf(path, sizeof path, "tests/data/arch/%s/golden.json", names[i]);
        json_t *golden = load_json(path);
        snprintf(path, sizeof path, "tests/data/arch/%s/model-f16.gguf", names[i]);
        opened o = open_file(path);
        const json_t *list = json_object_get(json_object_get(golden, "tokenizer_tests"), "tests");
        CHECK_MSG(json_array_size(list) > 0, "%s has no tests", names[i]);
        for (size_t k = 0; o.v && k < json_array_size(list); k++) {
            const json_t *t = json_array_get(list, k);
            check_ids(o.v, names[i], json_object_get(t, "text"), 0, true,
                      json_object_get(t, "tokens"));
        }
        close_vocab(&o);
        json_decref(golden);
    }
}

/* ---- pre-tokenizers ---- */

typedef struct pieces {
    size_t bytes, n, chars[4096];
} pieces;

static bool note_piece(void *user, const char *s, size_t n)
{
    pieces *p = user;
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((uint8_t)s[i] & 0xC0) != 0x80;
    if (p->n < 4096) p->chars[p->n] = chars;
    p->n++;
    p->bytes += n;
    return true;
}

static tn_pre *new_pre(const char *name)
{
    tn_pre *pre = NULL;
    tn_pre_row row = {0};
    tn_error err = {0};
    if (!tn_pre_find((tn_str){name, strlen(name)}, &row))
        FAIL("no row %s", name);
    else if (tn_pre_new(&pre, row.steps, &tn_default_allocator, &err))
        FAIL("%s: %s", name, err.msg);
    return pre;
}

static void check_pieces(const tn_pre *pre, const char *name, const json_t *text,
                         const json_t *want)
{
    static pieces p;
    p.n = p.bytes = 0;
    tn_error err = {0};
    CHECK_MSG(
        !tn_pre_split(pre, json_string_value(text), json_string_length(text), note_piece, &p, &err),
        "%s: %s", name, err.msg);
    bool same = p.n == json_array_size(want) && p.bytes == json_string_length(text);
    for (size_t i = 0; same && i < p.n; i++)
        same = json_integer_value(json_array_get(want, i)) == (json_int_t)p.chars[i];
    CHECK_MSG(same, "%s cuts '%s' wrongly", name, json_string_value(text));
}

TEST(pieces_are_those_of_the_original_patterns)
{
    json_t *all = load_json(DATA "splits.json"), *row;
    REQUIRE(all);
    const json_t *texts = json_object_get(all, "texts");
    const char *name;
    size_t n = 0;
    json_object_foreach(json_object_get(all, "rows"), name, row)
    {
        tn_pre *pre = new_pre(name);
        CHECK_INT(json_array_size(row), json_array_size(texts));
        for (size_t i = 0; pre && i < json_array_size(texts); i++)
            check_pieces(pre, name, json_array_get(texts, i), json_array_get(row, i));
        tn_pre_free(pre);
        n++;
    }
    CHECK_INT(n, 19);
    json_decref(all);
}

/* Where a number ends no word its digits are not grouped from the right: pieces that the Python
 * package tokenizers 0.23.3 cuts with the pattern of tiny_aya. */
TEST(letters_in_circles_and_squares_continue_a_word)
{
    static const struct {
        const char *text;
        size_t first;
    } cases[] = {{"4567\u24b6", 3}, {"4567\u24e9", 3}, {"4567\U0001f130", 3}, {"4567\U0001f149", 3},
                 {"4567\U0001f150", 3}, {"4567\U0001f189", 3}, {"4567\u24ea", 1},
                 {"4567\U0001f14a", 1}, {"4567", 1}, {"4567x", 3}};
    tn_pre *pre = new_pre("tiny_aya");
    REQUIRE(pre);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pieces p = {0};
        const char *s = cases[i].text;
        CHECK_INT(tn_pre_split(pre, s, strlen(s), note_piece, &p, NULL), TN_OK);
        CHECK_MSG(p.chars[0] == cases[i].first, "'%s': %zu digits", s, p.chars[0]);
    }
    tn_pre_free(pre);
}

/* A quadratic pattern would not end within the runner's patience, a limit that is too low is an
 * error. */
TEST(every_pre_tokenizer_cuts_long_runs)
{
    static const char *const runs[] = {
        "a",        "A",  "1",  ".",   " ",  "\n", "\xC3\xA9", "aaa ", "\xE4\xB8\xAD",
        "\xCC\x80", "'s", "\t", " \n", "Aa", "1a", "a "};
    const size_t n = 1 << 18;
    char *s = malloc(n + 1);
    for (size_t k = 0; tn_pre_name(k); k++) {
        tn_pre *pre = new_pre(tn_pre_name(k));
        for (size_t r = 0; pre && r < sizeof runs / sizeof *runs; r++) {
            const size_t len = strlen(runs[r]), whole = n / len * len;
            for (size_t i = 0; i < whole; i++)
                s[i] = runs[r][i % len];
            s[whole] = 'x'; /* a run that does not end the text is the harder one */
            for (size_t end = whole; end <= whole + 1; end++) {
                static pieces p;
                p.n = p.bytes = 0;
                tn_error err = {0};
                CHECK_MSG(!tn_pre_split(pre, s, end, note_piece, &p, &err), "%s, run of '%s': %s",
                          tn_pre_name(k), runs[r], err.msg);
                CHECK_INT(p.bytes, end);
            }
        }
        tn_pre_free(pre);
    }
    free(s);
}

/* ---- merging ---- */

/* The obvious version: looks at every pair for every merge. Fills ids, returns their number. */
static size_t merge_obviously(const tn_vocab *v, const char *s, size_t n, int32_t *ids)
{
    int32_t start[600], id[600];
    size_t count = n;
    for (size_t i = 0; i < n; i++) {
        start[i] = (int32_t)i;
        id[i] = v->kind == TN_VOCAB_BPE ? v->byte_id[(uint8_t)s[i]] : tn_vocab_find(v, s + i, 1);
    }
    start[n] = (int32_t)n;
    for (;;) {
        int32_t best = -1, best_rank = INT32_MAX, best_id = -1;
        for (size_t i = 0; i + 1 < count; i++) {
            int32_t rank = INT32_MAX, made = -1;
            if (v->kind == TN_VOCAB_LLAMA) {
                made = tn_vocab_find(v, s + start[i], (size_t)(start[i + 2] - start[i]));
                if (made >= 0) rank = v->tokens[made].rank;
            } else {
                for (size_t k = 0; k <= v->pairs.mask; k++) {
                    const struct tn_pair_slot *p = &v->pairs.slots[k];
                    if (p->left != id[i] || p->right != id[i + 1] || p->left < 0) continue;
                    rank = p->rank;
                    made = p->id;
                }
            }
            if (rank >= best_rank) continue;
            best = (int32_t)i;
            best_rank = rank;
            best_id = made;
        }
        if (best < 0) break;
        id[best] = best_id;
        memmove(id + best + 1, id + best + 2, (count - (size_t)best - 2) * sizeof *id);
        memmove(start + best + 1, start + best + 2, (count - (size_t)best - 1) * sizeof *start);
        count--;
    }
    memcpy(ids, id, count * sizeof *ids);
    return count;
}

/* Random tokens over "abc" with few scores, so that ties, and merges that open better ones, abound.
 */
static void random_tokens(uint64_t *seed, test_token *t, char text[][8], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t len = i < 3 ? 1 : 2 + test_rand(seed) % 5;
        for (size_t k = 0; k < len; k++)
            text[i][k] = (char)('a' + (i < 3 ? i : test_rand(seed) % 3));
        text[i][len] = 0;
        t[i] = (test_token){text[i], NORMAL, -(float)(test_rand(seed) % 6)};
    }
}

/* All ways to put two tokens together to a third, in random order. */
static uint64_t random_merges(uint64_t *seed, const test_token *t, size_t n, char text[][20],
                              const char **list, size_t cap)
{
    uint64_t count = 0;
    for (size_t a = 0; a < n; a++)
        for (size_t b = 0; b < n && count < cap; b++) {
            char whole[20];
            bool there = false;
            snprintf(whole, sizeof whole, "%s%s", t[a].text, t[b].text);
            for (size_t k = 0; k < n; k++)
                there = there || strcmp(t[k].text, whole) == 0;
            if (!there) continue;
            snprintf(text[count], 20, "%s %s", t[a].text, t[b].text);
            list[count] = text[count];
            count++;
        }
    for (uint64_t i = count; i > 1; i--) {
        const uint64_t k = test_rand(seed) % i;
        const char *swap = list[k];
        list[k] = list[i - 1];
        list[i - 1] = swap;
    }
    return count;
}

static void check_merging(const tn_vocab *v, uint64_t *seed)
{
    char s[600];
    int32_t want[600];
    const size_t n = 1 + test_rand(seed) % 500, period = 1 + test_rand(seed) % n;
    for (size_t i = 0; i < n; i++)
        s[i] = i < period ? (char)('a' + test_rand(seed) % 3) : s[i - period];
    const size_t n_want = merge_obviously(v, s, n, want);
    tn_ids out = {.a = &tn_default_allocator};
    tn_merger m = {.v = v, .out = &out};
    CHECK(tn_merge_word(&m, s, n));
    bool same = out.n == n_want && memcmp(out.ids, want, n_want * sizeof *want) == 0;
    CHECK_MSG(same, "%zu characters give %zu tokens, want %zu: %s", n, out.n, n_want,
              ids_text(out.ids, out.n));
    /* the scratch of one word serves the next */
    CHECK(tn_merge_word(&m, s, n));
    CHECK(out.n == 2 * n_want && memcmp(out.ids + n_want, want, n_want * sizeof *want) == 0);
    tn_merger_free(&m);
    tn_free(&tn_default_allocator, out.ids);
}

TEST(merging_equals_the_obvious_way)
{
    enum { n = 40, max_merges = 400 };
    uint64_t seed = 7;
    for (int round = 0; round < 60; round++) {
        test_token t[n];
        char text[n][8], merge_text[max_merges][20];
        const char *merges[max_merges];
        random_tokens(&seed, t, text, n);
        test_vocab v = {"llama", "gpt-2", NULL, NULL, t, n, merges, 0, -1, -1, 0, 0, -1, -1,
                        NULL, 0};
        v.n_merges = random_merges(&seed, t, n, merge_text, merges, max_merges);
        for (int kind = 0; kind < 2; kind++) {
            v.kind = kind ? "gpt2" : "llama";
            opened o = open_vocab(&v);
            for (int i = 0; o.v && i < 8; i++)
                check_merging(o.v, &seed);
            close_vocab(&o);
        }
    }
}

/* ---- timing ---- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* CPU seconds for 16 MiB of each run. */
static void bench_vocab(const tn_vocab *v, const char *name)
{
    static const char *const runs[] = {"a", "A", "1", ".", " ", "\n", "\xC3\xA9", "aaa "};
    const size_t n = 16 << 20;
    char *s = malloc(n);
    printf("%-24s", name);
    for (size_t r = 0; s && r < sizeof runs / sizeof *runs; r++) {
        for (size_t i = 0; i < n; i++)
            s[i] = runs[r][i % strlen(runs[r])];
        const tn_piece p = {s, n, false};
        int32_t *ids = NULL;
        size_t n_ids = 0;
        tn_error err = {0};
        const double start = seconds();
        if (tn_vocab_tokenize_pieces(v, &p, 1, 0, &ids, &n_ids, NULL, &err)) puts(err.msg);
        printf(" %6.2f", seconds() - start);
        tn_free(&tn_default_allocator, ids);
    }
    putchar('\n');
    fflush(stdout);
    free(s);
}

static bool same_as_earlier(size_t k)
{
    tn_pre_row row, earlier;
    tn_pre_find((tn_str){tn_pre_name(k), strlen(tn_pre_name(k))}, &row);
    for (size_t i = 0; i < k; i++) {
        tn_pre_find((tn_str){tn_pre_name(i), strlen(tn_pre_name(i))}, &earlier);
        if (row.steps == earlier.steps && row.nfc == earlier.nfc &&
            row.ignore_merges == earlier.ignore_merges)
            return true;
    }
    return false;
}

/* test_tokenizer --bench [NAME]: every pre-tokenizer, over the vocabulary of gpt-2. */
static int bench(const char *only)
{
    opened spm = open_file(DATA "llama-spm.gguf"), gpt2 = open_file(DATA "gpt-2.gguf");
    printf("%-24s %6s %6s %6s %6s %6s %6s %6s %6s  CPU seconds for 16 MiB\n", "", "a", "A", "1",
           ".", "space", "\\n", "e'", "aaa ");
    if (!only) bench_vocab(spm.v, "llama-spm");
    for (size_t k = 0; tn_pre_name(k); k++) {
        const char *name = tn_pre_name(k);
        tn_vocab v = *gpt2.v;
        tn_pre_row row = {0};
        if (only ? strcmp(name, only) != 0 : same_as_earlier(k)) continue;
        tn_pre_find((tn_str){name, strlen(name)}, &row);
        v.pre = new_pre(name);
        v.nfc = row.nfc;
        v.ignore_merges = row.ignore_merges;
        bench_vocab(&v, name);
        tn_pre_free(v.pre);
    }
    close_vocab(&spm);
    close_vocab(&gpt2);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench(argc > 2 ? argv[2] : NULL);
    return tn_test_main(argc, argv);
}
