/* The two kinds of tokenizers on small vocabularies whose ids can be told by hand: special tokens,
 * flags of the file, merging, normalisation, invalid UTF-8; and the public calls around them. */
#include "gguf_check.h"

#include "../engine/model.h"
#include "../engine/tokenizer_internal.h"
#include "vocab_build.h"

#include <time.h>

/* ---- the llama kind ---- */

TEST(llama_merges_by_score_and_falls_back_to_bytes)
{
    opened o = open_vocab(&llama_vocab);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "", false), "");
    CHECK_STR(tokens(&o, "abc", false), "11 8"); /* the best pair first: ab, then _ab */
    CHECK_STR(tokens(&o, "bc", false), "5 10");
    CHECK_STR(tokens(&o, " a", false), "15 6");          /* the prefix stands before a space, too */
    CHECK_STR(tokens(&o, "\xC3\xA9", false), "5 13 14"); /* bytes */
    CHECK_STR(tokens(&o, "\xC3\xBC", false), "5 17");
    CHECK_STR(tokens(&o, "\n", false), "5 16");
    CHECK_STR(tokens(&o, "Z", false), "5 0");        /* neither token nor byte: unknown */
    CHECK_STR(tokens(&o, U2581 "b", false), "15 7"); /* U+2581 is a space */
    close_vocab(&o);
}

TEST(llama_tokens_that_are_alike)
{
    test_token t[sizeof llama_tokens / sizeof *llama_tokens];
    memcpy(t, llama_tokens, sizeof t);
    test_vocab v = llama_vocab;
    v.tokens = t;
    v.space_prefix = 0;
    t[9] = (test_token){"bc", NORMAL, 0.0f}; /* of equal scores the left pair counts */
    t[10] = (test_token){"ab", NORMAL, -0.0f};
    t[12] = (test_token){"a ", NORMAL, 9}; /* no text has a plain space: they are U+2581 */
    t[17] = (test_token){"<0x0A>", BYTE, 0}; /* of two tokens for a byte the first counts */
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "abc", false), "10 8");
    CHECK_STR(tokens(&o, "a b", false), "6 5 7");
    CHECK_STR(tokens(&o, "\n", false), "16");
    CHECK_STR(tokens(&o, "aZ", false), "6 0");
    close_vocab(&o);
    v.id_key = "tokenizer.ggml.unknown_token_id";
    v.id = UINT32_MAX; /* none */
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "aZ", false), "6");
    close_vocab(&o);
}

/* SentencePiece gives one unknown token for a run of unknown characters. */
TEST(a_run_of_unknown_characters_is_one_token)
{
    char text[64];
    opened o = open_vocab(&llama_vocab);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "ZYaX", false), "5 0 6 0");
    CHECK_STR(tokens(&o, "Z!!YX", false), "5 0 4 5 0"); /* not across a special token */
    CHECK_STR(tokens(&o, "Z<unk>", true), "1 5 0 0");
    memset(text, 'Z', sizeof text); /* longer than what is merged in one piece */
    text[40] = 'a';
    text[63] = 0;
    CHECK_STR(tokens(&o, text, false), "5 0 6 0");
    close_vocab(&o);
    test_vocab v = llama_vocab;
    v.space_prefix = 0;
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "<unk>ZY", true), "1 0 0");
    close_vocab(&o);
}

TEST(special_tokens_come_from_text_only_when_asked)
{
    opened o = open_vocab(&llama_vocab);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "a!!b", false), "5 6 4 5 7"); /* user-defined: always */
    CHECK_STR(tokens(&o, "a</s>b", false), "5 6 0 7");
    CHECK_STR(tokens(&o, "a</s>b", true), "1 5 6 2 5 7");
    CHECK_STR(tokens(&o, "<unk>", false), "5 0");
    CHECK_STR(tokens(&o, "<|im_end|>", true), "1 3");
    CHECK_STR(tokens(&o, "", true), "1");
    /* content cannot complete what a template began */
    const tn_piece p[] = {{"a</", 3, true}, {"s>", 2, false}, {"</s", 3, true}, {">", 1, true}};
    CHECK_STR(tokens_of(o.v, p, 2, 0), "5 6 0");
    CHECK_STR(tokens_of(o.v, p + 2, 2, 0), "2");
    const tn_piece words[] = {{"a", 1, true}, {"b", 1, false}, {"!", 1, false}, {"!", 1, true}};
    CHECK_STR(tokens_of(o.v, words, 4, 0), "11 4"); /* words and user-defined tokens run across */
    close_vocab(&o);
}

TEST(flags_of_the_file_are_obeyed)
{
    test_vocab v = llama_vocab;
    v.space_prefix = 0;
    v.add_bos = 0;
    v.add_eos = 1;
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "abc", true), "12 2");
    close_vocab(&o);
    v.squeeze = 1;
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "  a   b ", false), "6 5 7");
    CHECK_STR(tokens(&o, U2581 "  a" U2581 U2581 "b" U2581, false), "15 6 15 7"); /* ' ' alone */
    close_vocab(&o);
    v = llama_vocab;
    v.name = "My Phi-3 thing";
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "<|im_end|> \n a<s> a<unk> a", true), "1 3 5 6 1 15 6 0 15 6");
    close_vocab(&o);
}

/* Old files call every token normal. */
TEST(special_tokens_named_by_id_need_no_type)
{
    test_token t[sizeof llama_tokens / sizeof *llama_tokens];
    memcpy(t, llama_tokens, sizeof t);
    test_vocab v = llama_vocab;
    v.tokens = t;
    t[0].type = t[1].type = t[2].type = NORMAL;
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "a<s>b</s>", true), "1 5 6 1 5 7 2");
    CHECK_STR(tokens(&o, "a<s>", false), "5 6 0");
    CHECK_INT(o.v->tokens[0].attr, TN_TOKEN_UNKNOWN);
    CHECK_INT(o.v->tokens[2].attr, TN_TOKEN_CONTROL);
    CHECK_INT(o.v->tokens[2].n_bytes, 0);
    close_vocab(&o);
    v.bos = 12; /* "abc" is a word, whatever the file says */
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "a", true), "12 5 6");
    CHECK_INT(o.v->tokens[12].attr, TN_TOKEN_NORMAL);
    close_vocab(&o);
    test_token b[sizeof bpe_tokens / sizeof *bpe_tokens];
    memcpy(b, bpe_tokens, sizeof b);
    v = bpe_vocab;
    v.tokens = b;
    v.pre = "llama-bpe"; /* words that are tokens become them: not this one */
    b[1] = (test_token){"<!>", NORMAL, 0};
    v.eos = 1;
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "<!>", false), "17");
    CHECK_STR(tokens(&o, "<!>", true), "0 1");
    close_vocab(&o);
}

TEST(of_overlapping_special_tokens_the_first_and_longest_counts)
{
    test_token t[sizeof llama_tokens / sizeof *llama_tokens];
    memcpy(t, llama_tokens, sizeof t);
    test_vocab v = llama_vocab;
    v.tokens = t;
    v.space_prefix = 0;
    t[1].text = "!!a"; /* longer than 4, and before it in the vocabulary */
    t[2].text = "!ab!!!!";
    v.eos = 8;
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "!!ab", true), "1 1 7");
    CHECK_STR(tokens(&o, "!!ab", false), "4 9");
    CHECK_STR(tokens(&o, "!!!ab!!!!", true), "1 4 2");
    CHECK_STR(tokens(&o, "!!!!ab!!!!", true), "1 4 1 7 4 4");
    close_vocab(&o);
}

TEST(ends_of_a_generation)
{
    test_token t[sizeof llama_tokens / sizeof *llama_tokens];
    memcpy(t, llama_tokens, sizeof t);
    test_vocab v = llama_vocab;
    v.tokens = t;
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK(o.v->end[2] && o.v->end[3] && !o.v->end[1] && !o.v->end[4]);
    close_vocab(&o);
    t[3].type = USER;
    t[4] = (test_token){"</s>", USER, 0}; /* a tag of HTML in such models */
    t[2].text = "<end>";
    v.eos = 8;
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK(o.v->end[3] && !o.v->end[4] && !o.v->end[2] && o.v->end[8]);
    close_vocab(&o);
    v.eos = 3; /* a type that the file gives stays */
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK(o.v->end[3]);
    CHECK_INT(o.v->tokens[3].attr, TN_TOKEN_USER_DEFINED);
    close_vocab(&o);
    t[3].type = NORMAL;
    v.eos = 8;
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK(!o.v->end[3]);
    close_vocab(&o);
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    for (int i = 0; i < 2; i++) {
        v.id_key = keys[i];
        v.id = 7;
        o = open_vocab(&v);
        REQUIRE(o.v);
        CHECK_MSG(o.v->end[7] && o.v->end[8] && !o.v->end[6], "%s", keys[i]);
        close_vocab(&o);
    }
}

/* ---- the BPE kind ---- */

TEST(bpe_merges_by_rank_within_words)
{
    opened o = open_vocab(&bpe_vocab);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "abc", false), "3 9"); /* "b c" before "a b" */
    CHECK_STR(tokens(&o, "ab abc", false), "8 10 9");
    CHECK_STR(tokens(&o, " ab1 a", false), "6 8 7 10"); /* "a b" before "_ a" */
    CHECK_STR(tokens(&o, "!!!", false), "2 17");
    CHECK_STR(tokens(&o, "<|im_end|>a", true), "1 3"); /* no bos unless the file asks */
    CHECK_STR(tokens(&o, "aZb", false), "3 4");        /* a byte without a token vanishes */
    close_vocab(&o);
    test_vocab v = bpe_vocab;
    v.pre = "llama-bpe"; /* whole words first, and a bos */
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "abc abc", true), "0 12 10 9");
    close_vocab(&o);
    v.pre = NULL; /* "default" */
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "abc", true), "3 9");
    close_vocab(&o);
}

TEST(bpe_merges_that_are_alike)
{
    test_token t[sizeof bpe_tokens / sizeof *bpe_tokens];
    memcpy(t, bpe_tokens, sizeof t);
    static const char *const merges[] = {"a b", "b c", "a b", "c a"};
    test_vocab v = bpe_vocab;
    v.tokens = t;
    v.merges = merges;
    v.n_merges = sizeof merges / sizeof *merges;
    t[1] = (test_token){"ca", CONTROL, 0};
    opened o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "abc", false), "8 5"); /* of a pair's two ranks the first counts */
    CHECK_STR(tokens(&o, "ca", false), "5 3");  /* no control token comes from merging */
    CHECK_STR(tokens(&o, "ca", true), "1");
    close_vocab(&o);
}

TEST(some_models_normalise)
{
    opened o = open_vocab(&bpe_vocab);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "e\xCC\x81", false), "13 18 19");
    close_vocab(&o);
    test_vocab v = bpe_vocab;
    v.pre = "qwen2";
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o,
                     "e\xCC\x81"
                     "a",
                     false),
              "16 3");
    close_vocab(&o);
    v.pre = NULL;
    v.arch = "gptneox";
    o = open_vocab(&v);
    REQUIRE(o.v);
    CHECK_STR(tokens(&o, "e\xCC\x81", false), "16");
    close_vocab(&o);
}

TEST(normalisation_orders_long_runs_of_marks)
{
    const size_t n = 300000;
    char *s = malloc(1 + 2 * n);
    s[0] = 'q';
    for (size_t i = 0; i < n; i++) { /* class 230 and 220 by turns: the worst order */
        s[1 + 2 * i] = (char)0xCC;
        s[2 + 2 * i] = i % 2 ? (char)0xA3 : (char)0x87;
    }
    const char *out;
    size_t n_out;
    tn_error err = {0};
    CHECK_INT(tn_nfc(&tn_default_allocator, s, 1 + 2 * n, &out, &n_out, &err), TN_OK);
    CHECK_INT(n_out, 1 + 2 * n);
    bool sorted = true;
    for (size_t i = 0; i < n; i++)
        sorted = sorted && (uint8_t)out[2 + 2 * i] == (i < n / 2 ? 0xA3 : 0x87);
    CHECK(sorted);
    tn_free(&tn_default_allocator, (void *)out);
    free(s);
}

/* ---- invalid UTF-8 ---- */

TEST(invalid_utf8_is_replaced_and_counted)
{
    static const struct {
        const char *in, *out;
        size_t n, invalid;
    } c[] = {
        {"a\xFF"
         "b",
         "a\xEF\xBF\xBD"
         "b",
         3, 1},
        {"\xE2\x82", "\xEF\xBF\xBD", 2, 2},
        {"\xE2\x82x", "\xEF\xBF\xBDx", 3, 2},
        {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD", 2, 2},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", 3, 3},
        {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", 4, 4},
        {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80", 4, 0},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        char got[40] = {0};
        size_t invalid = 0;
        const size_t n = tn_utf8_clean(c[i].in, c[i].n, NULL, &invalid);
        CHECK_INT(invalid, c[i].invalid);
        CHECK_INT(tn_utf8_clean(c[i].in, c[i].n, got, &invalid), n);
        CHECK_STR(got, c[i].out);
    }
    opened o = open_vocab(&bpe_vocab);
    REQUIRE(o.v);
    const tn_piece p[] = {{"a\xFF", 2, false}, {"\xC3", 1, false}, {"\xA9", 1, false}};
    int32_t *ids;
    size_t n, invalid = 99;
    CHECK_INT(tn_vocab_tokenize_pieces(o.v, p, 3, 0, &ids, &n, &invalid, NULL), TN_OK);
    CHECK_INT(invalid, 3);
    tn_free(&tn_default_allocator, ids);
    close_vocab(&o);
}

/* ---- the public calls ---- */

typedef struct served {
    tn_engine *e;
    tn_model *m;
    gb bytes;
} served;

static served serve(const test_vocab *v)
{
    served s = {0};
    tn_error err = {0};
    const tn_model_options opt = {.struct_size = sizeof opt, .vocab_only = true};
    build_vocab(&s.bytes, v);
    if (tn_engine_new(&s.e, NULL, &err) ||
        tn_model_open_memory(&s.m, s.e, s.bytes.p, s.bytes.n, "v.gguf", &opt, &err))
        FAIL("%s", err.msg);
    return s;
}
static void unserve(served *s)
{
    tn_model_close(s->m);
    tn_engine_free(s->e);
    gb_free(&s->bytes);
}

/* How many tokens at the start of a conversation are <s>. */
static size_t count_bos(const test_vocab *v, const char *format)
{
    static const tn_message m = {"user", "a"};
    served s = serve(v);
    int32_t ids[256];
    size_t n = 0, bos = 0;
    tn_error err = {0};
    if (!s.m || tn_chat_tokens(s.m, format, &m, 1, true, ids, 256, &n, &err)) FAIL("%s", err.msg);
    while (bos < n && ids[bos] == 1)
        bos++;
    unserve(&s);
    return bos;
}

TEST(a_conversation_begins_with_one_bos)
{
    test_vocab v = llama_vocab;
    CHECK_INT(count_bos(&v, "chatml"), 1);     /* the format has none, the file asks for it */
    CHECK_INT(count_bos(&v, "mistral-v1"), 1); /* both */
    v.add_bos = 0;
    CHECK_INT(count_bos(&v, "chatml"), 0);
    CHECK_INT(count_bos(&v, "mistral-v1"), 1);
}

/* Whether the text is of today, which may begin while the test runs. */
static bool has_date(const char *text, time_t when)
{
    char date[40];
    struct tm tm;
    gmtime_r(&when, &tm);
    strftime(date, sizeof date, "Today Date: %d %b %Y\n", &tm);
    return strstr(text, date) != NULL;
}

TEST(a_conversation_as_text)
{
    static const tn_message m = {"user", "a"};
    served s = serve(&llama_vocab);
    REQUIRE(s.m);
    char text[600];
    size_t n = 0, again = 0;
    tn_error err = {0};
    const time_t before = time(NULL);
    CHECK_INT(tn_chat_text(s.m, "llama3.2", &m, 1, true, NULL, 0, &n, &err), TN_EFULL);
    REQUIRE(n > 100 && n < sizeof text);
    memset(text, 'x', sizeof text);
    CHECK_INT(tn_chat_text(s.m, "llama3.2", &m, 1, true, text, n, &again, &err), TN_EFULL);
    CHECK_INT(text[0], 'x');
    CHECK_INT(tn_chat_text(s.m, "llama3.2", &m, 1, true, text, n + 1, &again, &err), TN_OK);
    CHECK_INT(again, n);
    CHECK_INT(strlen(text), n);
    CHECK(has_date(text, before) || has_date(text, time(NULL)));
    int32_t ids[600];
    CHECK_INT(tn_chat_tokens(s.m, "chatml", &m, 1, true, NULL, 0, &n, &err), TN_EFULL);
    CHECK_INT(tn_chat_tokens(s.m, "chatml", &m, 1, true, ids, n - 1, &again, &err), TN_EFULL);
    CHECK_INT(tn_chat_tokens(s.m, "chatml", &m, 1, true, ids, n, &again, &err), TN_OK);
    CHECK_INT(tn_chat_tokens(NULL, "chatml", &m, 1, true, ids, n, &again, &err), TN_EARG);
    CHECK_INT(tn_chat_tokens(s.m, "chatml", NULL, 1, true, ids, n, &again, &err), TN_EARG);
    CHECK_INT(tn_chat_text(s.m, "chatml", &m, 1, true, NULL, 9, &again, &err), TN_EARG);
    CHECK_INT(tn_chat_text(s.m, "chatml", &m, 1, true, text, 9, NULL, &err), TN_EARG);
    unserve(&s);
}

TEST(public_calls_keep_their_promises)
{
    served s = serve(&llama_vocab);
    REQUIRE(s.m);
    int32_t ids[8] = {-7, -7, -7, -7};
    size_t n = 0, invalid = 0, n_bytes = 9, n_text = 9;
    tn_error err = {0};
    const char *bytes, *text;
    tn_token_attr attr;
    CHECK_INT(tn_tokenize(s.m, "abc", 3, TN_TOKENIZE_ADD_SPECIAL, ids, 2, &n, NULL, &err),
              TN_EFULL);
    CHECK_INT(n, 3);
    CHECK_INT(ids[0], -7);
    CHECK_INT(tn_tokenize(s.m, "abc", 3, 0, NULL, 0, &n, NULL, &err), TN_EFULL);
    CHECK_INT(n, 2);
    CHECK_INT(tn_tokenize(s.m, "abc\xFF", 4, TN_TOKENIZE_ADD_SPECIAL, ids, 8, &n, &invalid, &err),
              TN_OK);
    CHECK_STR(ids_text(ids, n), "1 11 8 0");
    CHECK_INT(invalid, 1);
    CHECK_INT(tn_token_get(s.m, 11, &bytes, &n_bytes, &text, &n_text, &attr, &err), TN_OK);
    CHECK(n_bytes == 3 && memcmp(bytes, " ab", 3) == 0 && n_text == 5 && attr == TN_TOKEN_NORMAL);
    CHECK_INT(tn_token_get(s.m, 13, &bytes, &n_bytes, NULL, NULL, &attr, &err), TN_OK);
    CHECK(n_bytes == 1 && *bytes == (char)0xC3 && attr == TN_TOKEN_BYTE);
    CHECK_INT(tn_token_get(s.m, 3, NULL, &n_bytes, &text, &n_text, &attr, &err), TN_OK);
    CHECK(n_bytes == 0 && n_text == 10 && memcmp(text, "<|im_end|>", 10) == 0 &&
          attr == TN_TOKEN_CONTROL);
    CHECK_INT(tn_token_get(s.m, -1, NULL, NULL, NULL, NULL, NULL, &err), TN_EARG);
    CHECK_INT(tn_token_get(s.m, 18, NULL, NULL, NULL, NULL, NULL, &err), TN_EARG);
    CHECK_INT(tn_token_bos(s.m), 1);
    CHECK_INT(tn_token_eos(s.m), 2);
    CHECK(tn_token_is_end(s.m, 2) && tn_token_is_end(s.m, 3) && !tn_token_is_end(s.m, 6));
    CHECK(!tn_token_is_end(s.m, -1) && !tn_token_is_end(s.m, 18));
    unserve(&s);
}

TEST(bpe_tokens_stand_for_their_bytes)
{
    served s = serve(&bpe_vocab);
    REQUIRE(s.m);
    const char *bytes;
    size_t n;
    CHECK_INT(tn_token_get(s.m, 16, &bytes, &n, NULL, NULL, NULL, NULL), TN_OK);
    CHECK(n == 2 && memcmp(bytes, "\xC3\xA9", 2) == 0);
    CHECK_INT(tn_token_get(s.m, 11, &bytes, &n, NULL, NULL, NULL, NULL), TN_OK);
    CHECK(n == 3 && memcmp(bytes, " ab", 3) == 0);
    CHECK(tn_token_is_end(s.m, 0) && tn_token_is_end(s.m, 1));
    unserve(&s);
}

/* Only a control token ends a generation by its text, and <|end|> not where <|return|> does. */
TEST(ends_are_known_by_text_and_type)
{
    static const test_token t[] = {{"a", NORMAL, 0},
                                   {"<|end|>", CONTROL, 0},
                                   {"<|return|>", CONTROL, 0},
                                   {"<|call|>", CONTROL, 0},
                                   {"<|im_end|>", NORMAL, 0}};
    test_vocab v = {"llama", NULL, NULL, NULL, t, 5, NULL, 0, -1, 0, -1, -1, -1, -1, NULL, 0};
    served s = serve(&v);
    REQUIRE(s.m);
    CHECK(!tn_token_is_end(s.m, 1) && tn_token_is_end(s.m, 2) && tn_token_is_end(s.m, 3));
    CHECK(!tn_token_is_end(s.m, 4) && tn_token_is_end(s.m, 0));
    unserve(&s);
}

static void check_detokenized(const tn_model *m, unsigned flags, const int32_t *ids, size_t n,
                              const char *want)
{
    tn_detokenizer *d;
    char got[200];
    size_t at = 0, len;
    const char *text;
    REQUIRE(tn_detokenizer_new(&d, m, flags, NULL) == TN_OK);
    for (size_t i = 0; i < n; i++) {
        CHECK_INT(tn_detokenizer_push(d, ids[i], &text, &len, NULL), TN_OK);
        memcpy(got + at, text, len);
        at += len;
        got[at++] = '|';
    }
    CHECK_INT(tn_detokenizer_finish(d, &text, &len, NULL), TN_OK);
    memcpy(got + at, text, len);
    got[at + len] = 0;
    CHECK_STR(got, want);
    tn_detokenizer_free(d);
}

TEST(detokenizer_streams_whole_characters)
{
    served s = serve(&llama_vocab);
    REQUIRE(s.m);
    check_detokenized(s.m, 0, (int32_t[]){1, 11, 5, 6, 3}, 5, "|ab| |a||");
    check_detokenized(s.m, TN_DETOKENIZE_KEEP_SPACE, (int32_t[]){11, 6}, 2, " ab|a|");
    check_detokenized(s.m, TN_DETOKENIZE_SPECIAL, (int32_t[]){1, 6, 3}, 3, "<s>|a|<|im_end|>|");
    check_detokenized(s.m, 0, (int32_t[]){6, 13, 14}, 3, "a||\xC3\xA9|");
    check_detokenized(s.m, 0, (int32_t[]){13, 6}, 2,
                      "|\xEF\xBF\xBD"
                      "a|");
    check_detokenized(s.m, 0, (int32_t[]){14, 6}, 2, "\xEF\xBF\xBD|a|");
    check_detokenized(s.m, 0, (int32_t[]){6, 13}, 2, "a||\xEF\xBF\xBD");
    check_detokenized(s.m, 0, (int32_t[]){13, 13, 14}, 3, "|\xEF\xBF\xBD|\xC3\xA9|");
    check_detokenized(s.m, 0, (int32_t[]){4, 0}, 2, "!!||");
    tn_detokenizer *d;
    const char *text;
    size_t len;
    tn_error err = {0};
    REQUIRE(tn_detokenizer_new(&d, s.m, 0, NULL) == TN_OK);
    CHECK_INT(tn_detokenizer_push(d, 99, &text, &len, &err), TN_EARG);
    tn_detokenizer_free(d);
    unserve(&s);
}

TEST_MAIN
