/* Recognising chat templates. A template is reduced to a stream of bytes that does not depend on
 * its layout, and the hash of that stream is looked up among templates whose output has been
 * compared with what Python's jinja2 prints. Guessing from markers would be wrong in ways nobody
 * sees: published templates of one family differ in single spaces. */
#include "template.h"

#include <string.h>

typedef struct known {
    uint64_t id;
    const char *format;
} known;

/* Each row: the template of these models. */
static const known templates[] = {
    {0xfd8e09ab76c97108u, "kimi-k2-instruct"}, /* Kimi K2 Instruct */
    {0x6dbbe5d4ea407a99u, "lfm2"},             /* LFM2 */
    {0x2bd6452c6c4ae3fcu, "lfm2.5"},           /* LFM2.5 */
    {0x264c4e731de15ae3u, "chatml"},           /* Qwen 2.5, MiMo-VL */
    {0xeb5952e82caefc56u, "qwq-nothink"},      /* QwQ, thinking switched off */
    {0x8f980ef8c94cd303u, "qwen3"},            /* Qwen 3 */
    {0x68f5baae3fdc4412u, "chatml"},           /* Qwen 3 Coder */
    {0xbbf414c9317f1d69u, "deepseek-r1"},      /* DeepSeek R1 Distill (Llama) */
    {0xf10de535daf00e55u,
     "deepseek-r1-nothink"}, /* DeepSeek R1 Distill (Qwen), thinking switched off */
    {0x8c0ca09395057051u, "gemma-no-system"},   /* Gemma 2 */
    {0xf48d63e15ca7de1fu, "llama3.1"},          /* Llama 3.1, 3.3 */
    {0x1812bbc268201b9cu, "llama3.2"},          /* Llama 3.2 */
    {0x9e933771862694eau, "phi3.5"},            /* Phi 3.5 */
    {0x0542ab51f8b3e483u, "mistral-v3-tekken"}, /* Mistral Nemo */
    {0x85b4feb3736fa0b3u, "kimi-k2"},           /* Kimi K2 */
    {0x0c2a8de260c2e226u, "chatml"},            /* SmolLM2, Qwen 2 */
    {0x91238de20bf6ce6bu, "phi3-no-system"},    /* Phi 3 mini, first release */
    {0xfba0c6a36f203e7fu, "command-r"},         /* Command R */
    {0xbc7fe2187f4ab434u, "chatml"},            /* OpenHermes 2.5 */
    {0x135d4cdedacf74ddu, "mistral-v1"},        /* Mistral 7B v0.1, v0.2, Mixtral */
    {0xfbc4977fbff6615du, "phi3-bos"},          /* Phi 3 small */
    {0xd069bdff8ff72c4cu, "granite"},           /* Granite 3.0 */
    {0x5dee6fc637c41010u, "mistral-v1-system"}, /* Mistral 7B v0.2, v1 with system */
    {0xe6a5cbe5f1bf7c01u, "mistral-v3"},        /* Mistral Large 2407 */
    {0x9c7a820023e27c20u, "mistral-v7"},        /* Mistral Large 2411 */
    {0xc2e69b4f34588b08u, "phi4"},              /* Phi 4 */
    {0xdf7f8361af42e079u, "granite"},           /* Granite, with tool calls */
    {0x2de22ef686f6ea0fu, "phi3"},              /* Phi 3 mini */
    {0x63852663ad4ae565u, "gemma"},             /* Gemma 3n */
    {0x48862af0902d3c95u, "llama3"},            /* Llama 3, generation prompt defaulted */
    {0x70ca319c8b3f740eu, "llama3"},            /* Llama 3 */
    {0x74fc96115132defcu, "zephyr"},            /* Zephyr, TinyLlama */
    {0xd10358217d7a9c3bu, "chatml"},            /* plain ChatML */
    {0x3f3099117f87f561u, "qwq"},               /* QwQ */
    {0x30e07db9eea0b4edu, "gemma"},             /* Gemma 3 */
    {0x9222c9424c031c2fu, "llama2"},            /* Llama 2 */
};

typedef struct slice {
    const char *p, *end;
} slice;

/* One walk over a template. */
typedef struct reader {
    const char *begin, *p, *end;
    uint64_t hash;
    char last;    /* last byte put */
    bool space;   /* white space was skipped since */
    slice system; /* default system text: replaced where it occurs; p == NULL while unknown */
} reader;

enum { mark_text = 1, mark_output, mark_block, mark_string, mark_system, mark_unclosed };

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static void put(reader *r, char c)
{
    if (c == '\r') return;
    r->hash = (r->hash ^ (unsigned char)c) * 0x100000001b3u; /* FNV-1a */
    r->last = c;
}

static void put_all(reader *r, slice s)
{
    while (s.p < s.end)
        put(r, *s.p++);
}

static bool starts_with(slice s, const char *prefix)
{
    const size_t n = strlen(prefix);
    return (size_t)(s.end - s.p) >= n && memcmp(s.p, prefix, n) == 0;
}

static bool ends_with(slice s, const char *suffix)
{
    const size_t n = strlen(suffix);
    return (size_t)(s.end - s.p) >= n && memcmp(s.end - n, suffix, n) == 0;
}

/* True if resolve() of template.c knows every escape in a literal. */
static bool simple_escapes(slice s)
{
    for (; s.p < s.end; s.p++)
        if (*s.p == '\\' && (++s.p == s.end || !strchr("nt'\"\\", *s.p))) return false;
    return true;
}

/* The text between ChatML's system header and its end, if the literal is just that. */
static slice default_system(slice s)
{
    static const char head[] = "<|im_start|>system", tail[] = "<|im_end|>";
    const slice none = {NULL, NULL};
    if (!starts_with(s, head)) return none;
    s.p += sizeof head - 1;
    if (starts_with(s, "\\n"))
        s.p += 2;
    else if (starts_with(s, "\n"))
        s.p++;
    else
        return none;
    if (ends_with(s, "\\n"))
        s.end -= 2;
    else if (ends_with(s, "\n"))
        s.end--;
    else
        return none;
    if (!ends_with(s, tail)) return none;
    s.end -= sizeof tail - 1;
    if (s.p == s.end || memchr(s.p, '|', (size_t)(s.end - s.p))) return none;
    return simple_escapes(s) ? s : none;
}

static void put_string_bytes(reader *r, slice s)
{
    for (; s.p < s.end; s.p++) {
        if (*s.p != '\\' || s.p + 1 == s.end) {
            put(r, *s.p);
            continue;
        }
        s.p++;
        if (*s.p == 'n')
            put(r, '\n');
        else if (*s.p == 't')
            put(r, '\t');
        else {
            if (*s.p != '\'' && *s.p != '"' && *s.p != '\\') put(r, '\\');
            put(r, *s.p);
        }
    }
}

static bool same(slice x, slice y)
{
    return x.end - x.p == y.end - y.p && memcmp(x.p, y.p, (size_t)(x.end - x.p)) == 0;
}

static void put_string(reader *r, slice s)
{
    const slice inner = default_system(s);
    if (inner.p && !r->system.p) r->system = inner;
    put(r, mark_string);
    if (r->system.p && same(s, r->system)) {
        put(r, mark_system);
    } else if (inner.p && same(inner, r->system)) {
        put_string_bytes(r, (slice){s.p, inner.p});
        put(r, mark_system);
        put_string_bytes(r, (slice){inner.end, s.end});
    } else {
        put_string_bytes(r, s);
    }
    put(r, mark_string);
}

/* The literal that starts at the quote r->p; r->p moves behind it. */
static slice read_string(reader *r)
{
    const char quote = *r->p++;
    slice s = {r->p, r->p};
    while (r->p < r->end && *r->p != quote)
        r->p += *r->p == '\\' && r->p + 1 < r->end ? 2 : 1;
    s.end = r->p;
    if (r->p < r->end) r->p++;
    return s;
}

/* x['name'] is x.name. */
static bool read_member(reader *r)
{
    if (*r->p != '[' || !(is_word(r->last) || r->last == ']' || r->last == ')')) return false;
    const char *p = r->p + 1;
    if (p >= r->end || (*p != '\'' && *p != '"')) return false;
    const char quote = *p++;
    const slice name = {p, p};
    while (p < r->end && is_word(*p))
        p++;
    if (p == name.p || p + 1 >= r->end || p[0] != quote || p[1] != ']') return false;
    put(r, '.');
    put_all(r, (slice){name.p, p});
    r->p = p + 2;
    return true;
}

/* Code up to the tag's end, which is left unread. */
static void read_code(reader *r, const char *close)
{
    r->space = false;
    while (r->p < r->end) {
        const slice rest = {r->p, r->end};
        if (starts_with(rest, close) ||
            (*r->p == '-' && starts_with((slice){r->p + 1, r->end}, close)))
            return;
        if (is_space(*r->p)) {
            r->space = true;
            r->p++;
            continue;
        }
        if (*r->p == '\'' || *r->p == '"') {
            put_string(r, read_string(r));
        } else if (!read_member(r)) {
            if (r->space && is_word(*r->p) && is_word(r->last)) put(r, ' ');
            put(r, *r->p++);
        }
        r->space = false;
    }
}

/* Text before a tag that opens at `tag` (= end for the last text), under trim_blocks and
 * lstrip_blocks, as transformers renders. */
static void put_text(reader *r, const char *text, const char *tag)
{
    slice s = {text, tag};
    if (tag + 2 < r->end && tag[2] == '-') {
        while (s.p < s.end && is_space(s.end[-1]))
            s.end--;
    } else if (tag + 1 < r->end && tag[1] != '{' && !(tag + 2 < r->end && tag[2] == '+')) {
        const char *line = s.end;
        while (line > s.p && line[-1] != '\n' && is_space(line[-1]))
            line--;
        if (line > s.p ? line[-1] == '\n' : line == r->begin || line[-1] == '\n') s.end = line;
    }
    if (s.p == s.end) return;
    put(r, mark_text);
    put_all(r, s);
    put(r, mark_text);
}

/* Skips the tag's end and the white space it swallows. */
static void close_tag(reader *r, bool block)
{
    const bool strip = r->p < r->end && *r->p == '-';
    r->p += strip;
    r->p += r->end - r->p < 2 ? r->end - r->p : 2;
    if (strip) {
        while (r->p < r->end && is_space(*r->p))
            r->p++;
    } else if (block) {
        if (r->p < r->end && *r->p == '\r') r->p++;
        if (r->p < r->end && *r->p == '\n') r->p++;
    }
}

static void read_tag(reader *r)
{
    const char kind = r->p[1];
    r->p += 2;
    if (r->p < r->end && (*r->p == '-' || *r->p == '+')) r->p++;
    if (kind == '#') {
        while (r->p < r->end && !starts_with((slice){r->p, r->end}, "#}"))
            r->p++;
        if (r->p[-1] == '-') r->p--;
        close_tag(r, true);
        return;
    }
    put(r, kind == '{' ? mark_output : mark_block);
    read_code(r, kind == '{' ? "}}" : "%}");
    if (r->p == r->end) put(r, mark_unclosed);
    put(r, kind == '{' ? mark_output : mark_block);
    close_tag(r, kind == '%');
}

static void walk(reader *r)
{
    r->hash = 0xcbf29ce484222325u;
    r->last = 0;
    r->p = r->begin;
    const char *text = r->p;
    while (r->p < r->end) {
        const bool tag = *r->p == '{' && r->p + 1 < r->end &&
                         (r->p[1] == '{' || r->p[1] == '%' || r->p[1] == '#');
        if (!tag) {
            r->p++;
            continue;
        }
        put_text(r, text, r->p);
        read_tag(r);
        text = r->p;
    }
    put_text(r, text, r->end);
}

/* Twice: the first walk finds the default system text, which may occur before its header does. */
static uint64_t identify(const char *tmpl, size_t len, slice *system)
{
    if (len && tmpl[len - 1] == '\n') len--;
    reader r = {.begin = tmpl, .end = tmpl + len};
    walk(&r);
    if (r.system.p) walk(&r);
    *system = r.system;
    return r.hash;
}

uint64_t tn_chat_template_id(const char *tmpl, size_t len)
{
    slice system;
    return identify(tmpl, len, &system);
}

bool tn_chat_match_template(const char *tmpl, size_t len, tn_chat_match *match)
{
    if (!len) return false;
    slice system;
    const uint64_t id = identify(tmpl, len, &system);
    for (size_t i = 0; i < sizeof templates / sizeof templates[0]; i++) {
        if (templates[i].id != id) continue;
        match->format = templates[i].format;
        match->system = system.p;
        match->n_system = (size_t)(system.end - system.p);
        return true;
    }
    return false;
}

const char *tn_chat_format_detect(const char *tmpl, size_t len)
{
    tn_chat_match match;
    return tn_chat_match_template(tmpl, len, &match) ? match.format : NULL;
}
