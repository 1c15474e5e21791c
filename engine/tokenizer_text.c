/* UTF-8 and normalisation. */
#include "tokenizer_internal.h"

#include <string.h>
#include <utf8proc.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* Allowed range of the second byte: excludes overlong forms, surrogates, and what is above
 * U+10FFFF. */
static bool second_ok(uint8_t first, uint8_t c)
{
    switch (first) {
    case 0xE0: return c >= 0xA0 && c <= 0xBF;
    case 0xED: return c >= 0x80 && c <= 0x9F;
    case 0xF0: return c >= 0x90 && c <= 0xBF;
    case 0xF4: return c >= 0x80 && c <= 0x8F;
    default: return (c & 0xC0) == 0x80;
    }
}

size_t tn_utf8_step(const char *s, size_t n, size_t *bad)
{
    const uint8_t *p = (const uint8_t *)s;
    *bad = 1;
    if (p[0] < 0x80) return 1;
    const size_t need = p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;
    if (!need || n < 2 || !second_ok(p[0], p[1])) return 0;
    size_t i = 2;
    while (i < need && i < n && (p[i] & 0xC0) == 0x80)
        i++;
    *bad = i;
    return i == need ? need : 0;
}

size_t tn_utf8_clean(const char *s, size_t n, char *dst, size_t *n_invalid)
{
    size_t to = 0;
    for (size_t i = 0; i < n;) {
        size_t bad, len = tn_utf8_step(s + i, n - i, &bad);
        const char *from = len ? s + i : replacement;
        const size_t put = len ? len : sizeof replacement - 1;
        if (dst) memcpy(dst + to, from, put);
        if (!len) *n_invalid += bad;
        to += put;
        i += len ? len : bad;
    }
    return to;
}

size_t tn_utf8_put(char *dst, uint32_t c)
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)dst);
}

/* True if every character is below U+0300: nothing there decomposes or combines in NFC. */
static bool surely_nfc(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)s[i] >= 0xCC) return false;
    return true;
}

/* Canonical order of one run of combining marks: stable, by counting, since runs may be long. */
static void order_marks(utf8proc_int32_t *c, size_t n, utf8proc_int32_t *spare)
{
    size_t count[257] = {0};
    for (size_t i = 0; i < n; i++)
        count[utf8proc_get_property(c[i])->combining_class + 1]++;
    for (size_t k = 1; k < 257; k++)
        count[k] += count[k - 1];
    for (size_t i = 0; i < n; i++)
        spare[count[utf8proc_get_property(c[i])->combining_class]++] = c[i];
    memcpy(c, spare, n * sizeof *c);
}

/* utf8proc orders marks by exchanging neighbours, quadratic in the run, so that is done here. */
static void order_all(utf8proc_int32_t *c, size_t n, utf8proc_int32_t *spare)
{
    for (size_t i = 0; i < n;) {
        size_t end = i;
        bool sorted = true;
        int last = 0;
        for (int k; end < n && (k = utf8proc_get_property(c[end])->combining_class) != 0; end++) {
            sorted = sorted && k >= last;
            last = k;
        }
        if (!sorted) order_marks(c + i, end - i, spare);
        i = end > i ? end : i + 1;
    }
}

/* Code points of s after canonical decomposition, unordered; c NULL = only count. */
static size_t decompose(const char *s, size_t n, utf8proc_int32_t *c)
{
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t cp, parts[8];
        int boundary = 0;
        i += (size_t)utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i),
                                      &cp);
        const utf8proc_ssize_t k =
            utf8proc_decompose_char(cp, parts, 8, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
        if (c) memcpy(c + count, parts, (size_t)k * sizeof *c);
        count += (size_t)k;
    }
    return count;
}

tn_status tn_nfc(const tn_allocator *a, const char *s, size_t n, const char **out, size_t *n_out,
                 tn_error *err)
{
    *out = s;
    *n_out = n;
    if (surely_nfc(s, n)) return TN_OK;
    const size_t count = decompose(s, n, NULL);
    utf8proc_int32_t *c = tn_alloc_raw(a, count, 2 * sizeof *c);
    if (!c) return tn_fail_nomem(err, 2 * count * sizeof *c, "normalising a text");
    decompose(s, n, c);
    order_all(c, count, c + count);
    const utf8proc_ssize_t k =
        utf8proc_normalize_utf32(c, (utf8proc_ssize_t)count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    char *text = tn_alloc_raw(a, (size_t)k, 4);
    if (text) {
        *out = text;
        *n_out = 0;
        for (utf8proc_ssize_t i = 0; i < k; i++)
            *n_out += tn_utf8_put(text + *n_out, (uint32_t)c[i]);
    }
    tn_free(a, c);
    return text ? TN_OK : tn_fail_nomem(err, (size_t)k * 4, "normalising a text");
}
