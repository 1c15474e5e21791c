/* Pre-tokenizers: how a text is cut into the words within which BPE merges. One table; PCRE2 runs
 * it.
 *
 * Names are those of tokenizer.ggml.pre, patterns those of the models' own tokenizer files. A row
 * with several steps applies them one after the other, each to the pieces that the one before left;
 * matches and what lies between them are pieces alike. Where an original pattern would take time
 * quadratic in the text, what stands here is linear and cuts at the same places. */
#include "tokenizer_internal.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* ---- the table ---- */

/* White space as Unicode has it; PCRE2's \s takes U+180E too. */
#define WIDE "\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define WS "\\x09-\\x0d\\x20" WIDE
#define INLINE "\\x09\\x0b\\x0c\\x20" WIDE /* white space that ends no line */
#define S "[" WS "]"
#define NOT_S "[^" WS "]"
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES S "+(?!" NOT_S ")|" S "+"
#define LINES S "*[\\r\\n]+"
/* Characters that start a word of letters: anything that is no line end, letter or number. */
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" SPACES
/* The family of llama3 and qwen2; numbers: how many digits make a word. */
#define LETTERS_AND(numbers)                                                                       \
    LEAD "\\p{L}+|" numbers "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" LINES "|" SPACES
#define LLAMA3(numbers) CONTRACTION "|" LETTERS_AND(numbers)
/* The family of gpt-4o: words begin where the letter case rises. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(tail, numbers, symbols)                                                              \
    LEAD UPPER "*" LOWER "+" tail "|" LEAD UPPER "+" LOWER "*" tail "|" numbers "| ?[^" WS         \
               "\\p{L}\\p{N}]+" symbols "|" LINES "|" SPACES
#define GPT4O CASED(CONTRACTION "?", "\\p{N}{1,3}", "[\\r\\n/]*")
/* The same without Han characters, which form words of their own: PCRE2 cannot intersect classes,
 * so these name the complement. */
#define UPPER_NOT_HAN "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}]"
#define LOWER_NOT_HAN "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}]"
#define KIMI                                                                                       \
    "\\p{sc:Han}+|" LEAD UPPER_NOT_HAN "*" LOWER_NOT_HAN "+" CONTRACTION "?|" LEAD UPPER_NOT_HAN   \
    "+" LOWER_NOT_HAN "*" CONTRACTION "?|\\p{N}{1,3}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" LINES     \
    "|" SPACES
#define ASCII_SYMBOL "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
#define DEEPSEEK3_WORD                                                                             \
    ASCII_SYMBOL "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+"
#define DEEPSEEK3 DEEPSEEK3_WORD "[\\r\\n]*|" LINES "|" SPACES
#define CJK_KANA "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"
#define CJK_WIDE "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define BLOOM " ?[^(" WS "|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"
#define PUNCTUATION "[\\p{P}$+<=>^~|`]+"
/* Cased letters as deepseek-llm lists them. */
#define DEEPSEEK_LETTERS                                                                           \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{"    \
    "293}"                                                                                         \
    "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}"          \
    "\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{"    \
    "52f}"                                                                                         \
    "\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{"     \
    "1cba}"                                                                                        \
    "\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}"                 \
    "\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}"                 \
    "\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}"         \
    "\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}"        \
    "\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}"        \
    "\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}" \
    "-\\x{212d}"                                                                                   \
    "\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}"         \
    "\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}"         \
    "\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}"                 \
    "\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}"                 \
    "\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}"             \
    "\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}"         \
    "\\x{1e900}-\\x{1e943}"

static const tn_pre_step fallback[] = {{"[\\p{P}$+<=>^~|]+", false},
                                       {GPT2, false},
                                       {"\\p{N}+", false},
                                       {"[0-9][0-9][0-9]", false},
                                       {0}};
static const tn_pre_step gpt2[] = {{GPT2, false}, {0}};
static const tn_pre_step gpt2_digits[] = {{"\\p{N}", false}, {GPT2, false}, {0}};
static const tn_pre_step llama3[] = {{LLAMA3("\\p{N}{1,3}"), false}, {0}};
static const tn_pre_step qwen2[] = {{LLAMA3("\\p{N}"), false}, {0}};
static const tn_pre_step minicpm5[] = {{"\\p{N}{1,3}", false}, {LLAMA3("\\p{N}+"), false}, {0}};
static const tn_pre_step laguna[] = {{"[^\\n]+|\\n+", false}, {LLAMA3("\\p{N}"), false}, {0}};
static const tn_pre_step ufakzeka[] = {{LETTERS_AND("\\p{N}"), false}, {0}};
static const tn_pre_step qwen35[] = {{CONTRACTION "|" LEAD "[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS
                                                  "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES "|" SPACES,
                                      false},
                                     {0}};
/* White space is cut into long pieces, so the search for a line end must not start anew in each. */
static const tn_pre_step jais2[] = {
    {CONTRACTION "|" LEAD "\\p{L}+|\\p{N}{1,3}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|(?<![" INLINE
                 "])" LINES "|" S "{512}(?!" NOT_S ")|" S "{256}(?!" NOT_S ")|" S "{128}(?!" NOT_S
                 ")|" S "{64}(?!" NOT_S ")|" S "{32}(?!" NOT_S ")|" S "{16}(?!" NOT_S ")|" S
                 "{8}(?!" NOT_S ")|" S "{4}(?!" NOT_S ")|" S "{1,2}(?!" NOT_S ")|" S,
     false},
    {0}};
static const tn_pre_step bailing[] = {{CONTRACTION "|" LEAD "\\p{L}+|\\p{N}| ?[^" WS
                                                   "\\p{L}\\p{N}]+[\\r\\n]*|" S "*[\\r\\n]|" SPACES,
                                       false},
                                      {0}};
static const tn_pre_step seed_coder[] = {
    {CONTRACTION "|" LEAD "\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+|" LINES "|" SPACES, false},
    {0}};
/* The original's letters are (?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+. */
static const tn_pre_step exaone_moe[] = {
    {CONTRACTION "|" LEAD "\\p{L}(?:[\\p{L}\\p{M}]++| (?=\\p{L}))*+|\\p{N}| ?[^" WS
                 "\\p{L}\\p{N}]+[\\r\\n/]?|" S "*[\\r\\n]|" SPACES,
     false},
    {0}};
static const tn_pre_step deepseek_llm[] = {
    {"[\\r\\n]", false},
    {S "?[" DEEPSEEK_LETTERS "]+", false},
    {S "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
     false},
    {"(?<!" S ")" S "++\\z", false},
    {CJK_WIDE, false},
    {"\\p{N}+", false},
    {0}};
static const tn_pre_step deepseek_coder[] = {{"[\\r\\n]", false},   {S "?\\p{L}+", false},
                                             {S "?\\p{P}+", false}, {CJK_WIDE, false},
                                             {"\\p{N}", false},     {0}};
static const tn_pre_step deepseek3[] = {
    {"\\p{N}{1,3}", false}, {CJK_KANA, false}, {DEEPSEEK3, false}, {0}};
static const tn_pre_step spark[] = {{"\\p{N}{1,3}", false},
                                    {CJK_KANA, false},
                                    {DEEPSEEK3_WORD "|[\\r\\n]|" SPACES, false},
                                    {"\\p{N}", false},
                                    {0}};
static const tn_pre_step youtu[] = {
    {"[\\x{ac00}-\\x{d7a3}\\x{3131}-\\x{318e}]+|[\\x{ff01}\\x{2026}\\x{201c}\\x{201d}\\x{2018}\\x{"
     "2019}"
     "\\x{2014}\\x{ff1a}\\x{ff1b}\\x{ff0c}\\x{3001}-\\x{303f}\\x{fe30}-\\x{fe4f}]+|"
     "[\\x{3105}-\\x{312f}]+|" CJK_KANA,
     false},
    {CASED(CONTRACTION "?", "\\p{N}", "[\\r\\n/]*"), false},
    {0}};
static const tn_pre_step falcon[] = {
    {PUNCTUATION, false}, {GPT2, false}, {"[0-9][0-9][0-9]", false}, {0}};
static const tn_pre_step bloom[] = {{BLOOM, false}, {0}};
static const tn_pre_step viking[] = {{BLOOM, false}, {"\\p{N}", false}, {0}};
static const tn_pre_step tekken[] = {{CASED("", "\\p{N}", "[\\r\\n/]*"), false}, {0}};
static const tn_pre_step gpt4o[] = {{GPT4O, false}, {0}};
static const tn_pre_step kimi[] = {{KIMI, false}, {0}};
static const tn_pre_step chameleon[] = {{"<sentinel:[0-9]+>", false},
                                        {"(?:IMGIMG)[A-I]{1,4}Z", false},
                                        {"[\\t\\n]|    |  ", false},
                                        {"\\p{N}", false},
                                        {"[\\p{P}!-/:-@\\[-`{-~]", false},
                                        {GPT2, false},
                                        {0}};
/* Letters in circles and squares, part of words to the originals' engine. */
#define FRAMED                                                                                     \
    "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
/* The originals look ahead over all digits at every digit: \d{1,3}(?=(?:\d{3})*\b) and the like. */
static const tn_pre_step tiny_aya[] = {
    {"(?<!\\p{Nd})\\p{Nd}++(?![\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe" FRAMED
     "])",
     true},
    {GPT4O, false},
    {0}};
static const tn_pre_step superbpe[] = {{"\\p{N}+", false}, {"\\p{Nd}+", true}, {0}};
static const tn_pre_step afmoe[] = {
    {"\\p{Nd}+", true},
    {"[\\x{4e00}-\\x{9fff}\\x{3400}-\\x{4dbf}\\x{f900}-\\x{faff}\\x{3040}-\\x{309f}\\x{30a0}-\\x{"
     "30ff}"
     "\\x{ff65}-\\x{ff9f}\\x{2f00}-\\x{2fdf}\\x{e40}-\\x{e7f}\\x{e80}-\\x{eff}\\x{1780}-\\x{17ff}"
     "\\x{1000}-\\x{109f}\\x{aa60}-\\x{aa7f}\\x{a9e0}-\\x{a9ff}\\x{ac00}-\\x{d7af}\\x{1100}-\\x{"
     "11ff}]+",
     false},
    {DEEPSEEK3, false},
    {0}};

enum { merges = 1, bos = 2, nfc = 4 }; /* merges: of words that are tokens ignored */

static const struct {
    const char *name;
    const tn_pre_step *steps;
    unsigned flags;
} table[] = {
    {"default", fallback, 0},
    {"gpt-2", gpt2, 0},
    {"phi-2", gpt2, 0},
    {"gigachat", gpt2, 0},
    {"mellum", gpt2, 0},
    {"a.x-4.0", gpt2, 0},
    {"exaone4", gpt2, 0},
    {"jais", gpt2, 0},
    {"trillion", gpt2, 0},
    {"granite-docling", gpt2, 0},
    {"modern-bert", gpt2, 0},
    {"roberta-bpe", gpt2, 0},
    {"jina-es", gpt2, 0},
    {"jina-de", gpt2, 0},
    {"jina-v1-en", gpt2, 0},
    {"jina-v2-es", gpt2, 0},
    {"jina-v2-de", gpt2, 0},
    {"jina-v2-code", gpt2, 0},
    {"mpt", gpt2, nfc},
    {"olmo", gpt2, nfc},
    {"starcoder", gpt2_digits, 0},
    {"refact", gpt2_digits, 0},
    {"smollm", gpt2_digits, 0},
    {"codeshell", gpt2_digits, 0},
    {"exaone", gpt2_digits, 0},
    {"minerva-7b", gpt2_digits, 0},
    {"mellum2", gpt2_digits, 0},
    {"command-r", gpt2_digits, nfc},
    {"llama-bpe", llama3, merges | bos},
    {"llama3", llama3, merges | bos},
    {"llama-v3", llama3, merges | bos},
    {"falcon3", llama3, merges | bos},
    {"falcon-h1", llama3, merges | bos},
    {"pixtral", llama3, merges | bos},
    {"midm-2.0", llama3, merges | bos},
    {"lfm2", llama3, merges | bos},
    {"jina-v5-nano", llama3, merges | bos},
    {"dbrx", llama3, 0},
    {"smaug-bpe", llama3, 0},
    {"chatglm-bpe", llama3, 0},
    {"glm4", llama3, merges},
    {"glm5", llama3, merges},
    {"qwen2", qwen2, nfc},
    {"deepseek-r1-qwen", qwen2, nfc},
    {"megrez", qwen2, nfc},
    {"kormo", qwen2, nfc},
    {"f2llmv2", qwen2, nfc},
    {"stablelm2", qwen2, nfc},
    {"hunyuan", qwen2, 0},
    {"solar-open", qwen2, 0},
    {"grok-2", qwen2, 0},
    {"qwen35", qwen35, nfc},
    {"minicpm5", minicpm5, merges},
    {"laguna", laguna, 0},
    {"ufakzeka", ufakzeka, 0},
    {"jais-2", jais2, 0},
    {"bailingmoe", bailing, 0},
    {"bailingmoe2", bailing, 0},
    {"llada-moe", bailing, 0},
    {"seed-coder", seed_coder, 0},
    {"exaone-moe", exaone_moe, 0},
    {"deepseek-llm", deepseek_llm, 0},
    {"deepseek-coder", deepseek_coder, 0},
    {"deepseek-v3", deepseek3, 0},
    {"hunyuan-dense", deepseek3, 0},
    {"joyai-llm", deepseek3, 0},
    {"hy_v4", deepseek3, 0},
    {"spark2_5", spark, 0},
    {"youtu", youtu, merges},
    {"falcon", falcon, 0},
    {"bloom", bloom, 0},
    {"poro-chat", bloom, 0},
    {"gpt3-finnish", bloom, 0},
    {"viking", viking, 0},
    {"tekken", tekken, merges | bos},
    {"gpt-4o", gpt4o, 0},
    {"llama4", gpt4o, 0},
    {"kanana2", gpt4o, 0},
    {"talkie", gpt4o, 0},
    {"minimax-m2", gpt4o, 0},
    {"granite-embed-multi-97m", gpt4o, merges},
    {"kimi-k2", kimi, 0},
    {"chameleon", chameleon, bos},
    {"tiny_aya", tiny_aya, 0},
    {"cohere2moe", tiny_aya, 0},
    {"superbpe", superbpe, 0},
    {"afmoe", afmoe, 0},
};

bool tn_pre_find(tn_str name, tn_pre_row *row)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strlen(table[i].name) != name.len || memcmp(table[i].name, name.data, name.len) != 0)
            continue;
        *row = (tn_pre_row){table[i].steps, (table[i].flags & merges) != 0,
                            (table[i].flags & bos) != 0, (table[i].flags & nfc) != 0};
        return true;
    }
    return false;
}

const char *tn_pre_name(size_t i)
{
    return i < sizeof table / sizeof *table ? table[i].name : NULL;
}

/* ---- running it ---- */

/* What PCRE2 allocates comes from the caller's allocator. */
typedef struct memory {
    const tn_allocator *a;
    bool failed;
} memory;

struct tn_pre {
    const tn_allocator *a;
    memory mem;
    const tn_pre_step *steps;
    pcre2_code *code[TN_MAX_PRE_STEPS];
    bool jit[TN_MAX_PRE_STEPS];
    int n;
};

static void *take(size_t n, void *user)
{
    memory *m = user;
    void *p = tn_alloc_raw(m->a, n, 1);
    if (!p) m->failed = true;
    return p;
}
static void give(void *p, void *user)
{
    tn_free(((memory *)user)->a, p);
}

/* Without JIT (memory may not be made executable everywhere) the same pattern is interpreted. */
static tn_status compile(tn_pre *pre, int i, pcre2_compile_context *cc, tn_error *err)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_NEVER_BACKSLASH_C;
    pre->code[i] = pcre2_compile((PCRE2_SPTR)pre->steps[i].pattern, PCRE2_ZERO_TERMINATED, options,
                                 &code, &at, cc);
    if (pre->mem.failed) return tn_fail_nomem(err, 1, "a pre-tokenizer");
    if (!pre->code[i])
        return tn_fail(
            err, TN_EUNSUPPORTED, -1,
            "PCRE2 refuses a pre-tokenizer's pattern at %zu (error %d); is it older than 10.40?",
            (size_t)at, code);
    pre->jit[i] = pcre2_jit_compile(pre->code[i], PCRE2_JIT_COMPLETE) == 0;
    return pre->mem.failed ? tn_fail_nomem(err, 1, "a pre-tokenizer") : TN_OK;
}

tn_status tn_pre_new(tn_pre **out, const tn_pre_step *steps, const tn_allocator *a, tn_error *err)
{
    *out = NULL;
    tn_pre *pre = tn_alloc(a, 1, sizeof *pre);
    if (!pre) return tn_fail_nomem(err, sizeof *pre, "a pre-tokenizer");
    pre->a = a;
    pre->mem.a = a;
    pre->steps = steps;
    pcre2_general_context *gc = pcre2_general_context_create(take, give, &pre->mem);
    pcre2_compile_context *cc = gc ? pcre2_compile_context_create(gc) : NULL;
    tn_status s = cc ? TN_OK : tn_fail_nomem(err, 1, "a pre-tokenizer");
    for (; !s && steps[pre->n].pattern; pre->n++)
        s = compile(pre, pre->n, cc, err);
    pcre2_compile_context_free(cc);
    pcre2_general_context_free(gc);
    if (s)
        tn_pre_free(pre);
    else
        *out = pre;
    return s;
}

void tn_pre_free(tn_pre *pre)
{
    if (!pre) return;
    for (int i = 0; i < TN_MAX_PRE_STEPS; i++)
        pcre2_code_free(pre->code[i]);
    tn_free(pre->a, pre);
}

typedef struct splitter {
    const tn_pre *pre;
    pcre2_match_data *data;
    pcre2_match_context *mc;
    tn_word_fn word;
    void *user;
    tn_error *err;
} splitter;

/* Next match in s[from, n), s being all that the pattern may see. UTF-8 was checked once for all.
 */
static int match(const splitter *r, int step, const char *s, size_t n, size_t from)
{
    const pcre2_code *code = r->pre->code[step];
    if (r->pre->jit[step]) {
        const int rc = pcre2_jit_match(code, (PCRE2_SPTR)s, n, from, 0, r->data, r->mc);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    }
    return pcre2_match(code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->data,
                       r->mc);
}

static tn_status fail_match(const splitter *r, int rc)
{
    if (rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT)
        return tn_fail_nomem(r->err, 1, "cutting a text into words");
    return tn_fail(r->err, TN_EUNSUPPORTED, -1,
                   "the pre-tokenizer gave up on a text (PCRE2 error %d); cut it into shorter ones",
                   rc);
}

static tn_status split(splitter *r, int step, const char *s, size_t n);

/* A match of a step that cuts into threes: the first piece has what is left over. */
static tn_status split_threes(splitter *r, int step, const char *s, size_t n)
{
    size_t chars = 0, bad;
    for (size_t i = 0; i < n; chars++)
        i += tn_utf8_step(s + i, n - i, &bad);
    for (size_t take_chars = chars % 3 ? chars % 3 : 3; n > 0; take_chars = 3) {
        size_t end = 0;
        for (size_t k = 0; k < take_chars; k++)
            end += tn_utf8_step(s + end, n - end, &bad);
        tn_status st = split(r, step, s, end);
        if (st) return st;
        s += end;
        n -= end;
    }
    return TN_OK;
}

/* A single character cannot be cut further. */
static bool is_single(const char *s, size_t n)
{
    const uint8_t c = (uint8_t)*s;
    return n == (c < 0x80 ? 1u : c < 0xE0 ? 2u : c < 0xF0 ? 3u : 4u);
}

/* Hands on s[0, n), n > 0, cut by this step and all that follow. */
static tn_status split(splitter *r, int step, const char *s, size_t n)
{
    if (step == r->pre->n || is_single(s, n))
        return r->word(r->user, s, n) ? TN_OK : tn_fail_nomem(r->err, n, "the tokens of a text");
    const bool threes = r->pre->steps[step].threes;
    size_t done = 0;
    while (done < n) {
        const int rc = match(r, step, s, n, done);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0) return fail_match(r, rc);
        const PCRE2_SIZE *where = pcre2_get_ovector_pointer(r->data);
        const size_t start = where[0], end = where[1];
        if (end <= start) break; /* no pattern of the table matches nothing */
        tn_status st = TN_OK;
        if (start > done) st = split(r, step + 1, s + done, start - done);
        if (!st && threes)
            st = split_threes(r, step + 1, s + start, end - start);
        else if (!st)
            st = split(r, step + 1, s + start, end - start);
        if (st) return st;
        done = end;
    }
    return done < n ? split(r, step + 1, s + done, n - done) : TN_OK;
}

tn_status tn_pre_split(const tn_pre *pre, const char *s, size_t n, tn_word_fn word, void *user,
                       tn_error *err)
{
    if (n == 0) return TN_OK;
    memory mem = {pre->a, false};
    splitter r = {.pre = pre, .word = word, .user = user, .err = err};
    pcre2_general_context *gc = pcre2_general_context_create(take, give, &mem);
    r.mc = gc ? pcre2_match_context_create(gc) : NULL;
    r.data = r.mc ? pcre2_match_data_create(1, gc) : NULL;
    tn_status st = r.data ? TN_OK : tn_fail_nomem(err, 1, "cutting a text into words");
    if (!st) {
        /* Giving back a run of n characters one by one takes n steps: limits follow the length. */
        const uint64_t limit = 10000000 + 64 * (uint64_t)n;
        pcre2_set_match_limit(r.mc, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
        pcre2_set_depth_limit(r.mc, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
        st = split(&r, 0, s, n);
    }
    pcre2_match_data_free(r.data);
    pcre2_match_context_free(r.mc);
    pcre2_general_context_free(gc);
    return st;
}
