/* Vocabularies that are broken, memory that is short, threads that share. */
#include "gguf_check.h"

#include "../engine/tokenizer_internal.h"
#include "vocab_build.h"

#include <pthread.h>

/* ---- broken files ---- */

static void check_broken(const char *what, gb *b, tn_status want, const char *word)
{
    opened o = {.bytes = *b};
    watch w = {0};
    const tn_allocator a = watched(&w);
    tn_error err = {.offset = -2};
    const tn_status s = open_bytes(&o, &a, &err);
    CHECK_MSG(s == want && !o.v, "%s: status %d, want %d (%s)", what, s, want, err.msg);
    CHECK_MSG(strstr(err.msg, word) && strncmp(err.msg, "v.gguf: ", 8) == 0, "%s: no '%s' in: %s",
              what, word, err.msg);
    CHECK_MSG(err.code == want && err.offset > 0, "%s: offset %lld", what, (long long)err.offset);
    close_vocab(&o);
    CHECK_INT(w.live, 0);
    *b = (gb){0};
}

static void check_broken_vocab(const char *what, test_vocab v, tn_status want, const char *word)
{
    gb b = {0};
    build_vocab(&b, &v);
    check_broken(what, &b, want, word);
}

TEST(broken_vocabularies_are_refused_by_name)
{
    test_vocab v = llama_vocab;
    v.kind = "bert";
    check_broken_vocab("kind", v, TN_EUNSUPPORTED, "'bert'");
    v = bpe_vocab;
    v.pre = "llama-9";
    check_broken_vocab("pre-tokenizer", v, TN_EUNSUPPORTED, "'llama-9'");
    v = bpe_vocab;
    v.bos = 20;
    check_broken_vocab("bos", v, TN_EFORMAT, "bos_token_id");
    v = bpe_vocab;
    v.merges = (const char *[]){"a b", "a q"};
    v.n_merges = 2;
    check_broken_vocab("merge of an unknown token", v, TN_EFORMAT, "merge 1 ");
    v.merges = (const char *[]){"b c", "b a"};
    check_broken_vocab("merge to an unknown token", v, TN_EFORMAT, "merge 1 ");
    v.merges = (const char *[]){"ab", "a b"};
    check_broken_vocab("merge without a space", v, TN_EFORMAT, "merge 0 ");
    v = llama_vocab;
    v.tokens = (const test_token[]){{"<unk>", UNKNOWN, 0}, {"a", NORMAL, NAN}, {"b", NORMAL, 0}};
    v.n_tokens = 3;
    check_broken_vocab("NaN", v, TN_EFORMAT, "NaN");
    v.tokens = (const test_token[]){{"<unk>", UNKNOWN, 0}, {"a", BYTE, 0}, {"b", NORMAL, 0}};
    check_broken_vocab("byte", v, TN_EFORMAT, "token_type");
    v.n_tokens = 0;
    check_broken_vocab("empty", v, TN_EFORMAT, "tokens");
}

/* Arrays of another length or kind than the tokens. */
TEST(arrays_must_fit_together)
{
    static const struct {
        const char *what, *key;
        uint32_t element;
        uint64_t n;
    } c[] = {{"short scores", "tokenizer.ggml.scores", TN_GGUF_F32, 1},
             {"long scores", "tokenizer.ggml.scores", TN_GGUF_F32, 3},
             {"integer scores", "tokenizer.ggml.scores", TN_GGUF_I32, 2},
             {"short types", "tokenizer.ggml.token_type", TN_GGUF_I32, 1},
             {"float types", "tokenizer.ggml.token_type", TN_GGUF_F32, 2}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        gb b = {0};
        gb_header(&b, 3, 0, i < 3 ? 3 : 4);
        gb_key_str(&b, "tokenizer.ggml.model", "llama");
        gb_array(&b, "tokenizer.ggml.tokens", TN_GGUF_STRING, 2), gb_str(&b, "a"), gb_str(&b, "b");
        gb_array(&b, c[i].key, c[i].element, c[i].n), gb_zeros(&b, 4 * c[i].n);
        if (i >= 3) gb_array(&b, "tokenizer.ggml.scores", TN_GGUF_F32, 2), gb_zeros(&b, 8);
        check_broken(c[i].what, &b, TN_EFORMAT, c[i].key);
    }
}

/* Opens what there is and uses it; false if memory is left over. */
static tn_status use_bytes(const gb *b, const tn_allocator *a)
{
    opened o = {.bytes = *b};
    tn_error err = {0};
    int32_t *ids = NULL;
    size_t n;
    tn_status s = open_bytes(&o, a, &err);
    const tn_piece p = {"ab abc!!<|im_end|>\n  e\xCC\x81 1a\xFF", 24, true};
    if (!s) s = tn_vocab_tokenize_pieces(o.v, &p, 1, TN_TOKENIZE_ADD_SPECIAL, &ids, &n, NULL, &err);
    if (s) CHECK_MSG(strlen(err.msg) > 10 && err.code == s, "status %d without a message", s);
    tn_free(a, ids);
    o.bytes = (gb){0};
    close_vocab(&o);
    return s;
}

TEST(flipped_bits_and_cut_files_end_well)
{
    const test_vocab *all[] = {&llama_vocab, &bpe_vocab};
    for (int k = 0; k < 2; k++) {
        gb b = {0};
        build_vocab(&b, all[k]);
        int good = 0;
        for (size_t bit = 0; bit < 8 * b.n; bit++) {
            b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
            watch w = {0};
            const tn_allocator a = watched(&w);
            good += use_bytes(&b, &a) == TN_OK;
            CHECK_INT(w.live, 0);
            b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK(good > 100 && good < (int)(8 * b.n) - 100);
        for (size_t n = 0; n < b.n; n++) {
            gb cut = {.p = b.p, .n = n};
            CHECK(use_bytes(&cut, &tn_default_allocator) < 0);
        }
        gb_free(&b);
    }
}

/* ---- short memory ---- */

static tn_status everything(const test_vocab *v, const tn_allocator *a)
{
    opened o = {0};
    tn_error err = {0};
    int32_t *ids = NULL;
    size_t n;
    char s[200];
    build_vocab(&o.bytes, v);
    for (size_t i = 0; i < sizeof s; i++)
        s[i] = "abc"[i * i % 3];
    const tn_piece p[] = {{s, sizeof s, false}, {"e\xCC\x81 <|im_end|> \xFF", 16, true}};
    tn_status st = open_bytes(&o, a, &err);
    if (!st)
        st = tn_vocab_tokenize_pieces(o.v, p, 2, TN_TOKENIZE_ADD_SPECIAL, &ids, &n, NULL, &err);
    if (st == TN_ENOMEM) CHECK(err.code == TN_ENOMEM && strstr(err.msg, "out of memory"));
    tn_free(a, ids);
    close_vocab(&o);
    return st;
}

TEST(every_allocation_may_fail)
{
    test_vocab qwen = bpe_vocab;
    qwen.pre = "qwen2";
    test_vocab phi = llama_vocab;
    phi.name = "Phi-3";
    const test_vocab *all[] = {&phi, &qwen};
    for (int i = 0; i < 2; i++) {
        tn_status s = TN_ENOMEM;
        long k = 0;
        while (s == TN_ENOMEM && k < 1000) {
            watch w = {.fail_at = ++k};
            const tn_allocator a = watched(&w);
            s = everything(all[i], &a);
            CHECK_MSG(w.live == 0, "allocation %ld fails: %ld left", k, w.live);
        }
        CHECK_INT(s, TN_OK);
        CHECK_MSG(k > 15 && k < 1000, "only %ld allocations", k);
    }
}

TEST(detokenizer_survives_short_memory)
{
    for (long k = 1; k < 40; k++) {
        watch w = {0};
        const tn_engine_options opt = {
            .struct_size = sizeof opt, .threads = 1, .allocator = watched(&w)};
        const tn_model_options vocab_only = {.struct_size = sizeof vocab_only, .vocab_only = true};
        tn_engine *e;
        tn_model *m;
        tn_detokenizer *d;
        gb b = {0};
        build_vocab(&b, &llama_vocab);
        REQUIRE(!tn_engine_new(&e, &opt, NULL));
        REQUIRE(!tn_model_open_memory(&m, e, b.p, b.n, "v", &vocab_only, NULL));
        const long before = w.live;
        w.fail_at = w.count + k;
        tn_status s = tn_detokenizer_new(&d, m, 0, NULL);
        const char *text;
        size_t len;
        tn_error err = {0};
        if (!s) s = tn_detokenizer_push(d, 11, &text, &len, &err);
        if (s == TN_ENOMEM && d) { /* the push left nothing behind: it can be repeated */
            CHECK_INT(tn_detokenizer_push(d, 11, &text, &len, &err), TN_OK);
            CHECK(len == 2 && memcmp(text, "ab", 2) == 0);
        }
        CHECK(s == (k < 4 ? TN_ENOMEM : TN_OK));
        tn_detokenizer_free(d);
        CHECK_INT(w.live, before);
        tn_model_close(m);
        tn_engine_free(e);
        gb_free(&b);
    }
}

/* ---- threads ---- */

static void *tokenize_much(void *user)
{
    const tn_vocab *v = user;
    static const char text[] =
        "abc ab bcabc e\xCC\x81 1 abcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabc";
    const tn_piece p = {text, sizeof text - 1, false};
    size_t sum = 0;
    for (int i = 0; i < 300; i++) {
        int32_t *ids;
        size_t n = 0;
        if (tn_vocab_tokenize_pieces(v, &p, 1, 0, &ids, &n, NULL, NULL)) return NULL;
        for (size_t k = 0; k < n; k++)
            sum = sum * 31 + (size_t)ids[k];
        tn_free(&tn_default_allocator, ids);
    }
    return (void *)(sum | 1);
}

TEST(threads_share_a_vocabulary)
{
    test_vocab v = bpe_vocab;
    v.pre = "qwen2";
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    pthread_t t[4];
    void *want = tokenize_much(o.v), *got;
    CHECK(want != NULL);
    for (int i = 0; i < 4; i++)
        REQUIRE(pthread_create(&t[i], NULL, tokenize_much, o.v) == 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], &got);
        CHECK(got == want);
    }
    close_vocab(&o);
}

TEST_MAIN
