/* Overrides: which tensor goes where because the user says so. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "plan.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { max_match_steps = 200000 };

/* The side at the end of a rule, "host", "device" or "split:X": its share, or -1. */
static double read_side(const char *s, size_t len)
{
    if (len == 4 && memcmp(s, "host", 4) == 0) return 0;
    if (len == 6 && memcmp(s, "device", 6) == 0) return 1;
    if (len <= 6 || len > 38 || memcmp(s, "split:", 6) != 0) return -1;
    char number[33], *end;
    memcpy(number, s + 6, len - 6);
    number[len - 6] = 0;
    if (number[0] < '.' || number[0] > '9') return -1; /* no sign, space, inf or nan */
    const double x = strtod(number, &end);
    return *end == 0 && x >= 0 && x <= 1 ? x : -1;
}

/* The next rule of text[at, len): it ends at the first comma after a valid side, because regular
 * expressions may hold commas themselves. False if there is none. */
static bool next_rule(const char *text, size_t len, size_t at, size_t *equals, size_t *end)
{
    for (size_t i = at; i <= len; i++) {
        if (i < len && text[i] != ',') continue;
        size_t eq = i;
        while (eq > at && text[eq - 1] != '=')
            eq--;
        if (eq == at || read_side(text + eq, i - eq) < 0) continue;
        *equals = eq - 1;
        *end = i;
        return true;
    }
    return false;
}

/* "=WORD," within what would be a regular expression: a misspelt side, such as "a=gpu,b=host". What
 * follows "(?=" or "<=" is no side. NULL if there is none. */
static const char *wrong_side(const char *text, size_t len)
{
    for (size_t comma = 1; comma < len; comma++) {
        if (text[comma] != ',') continue;
        size_t word = comma;
        while (word > 0 && (isalnum((unsigned char)text[word - 1]) || strchr(":.", text[word - 1])))
            word--;
        if (word < 2 || word == comma || text[word - 1] != '=') continue;
        if (!strchr("?<", text[word - 2])) return text + word;
    }
    return NULL;
}

static tn_status compile(tn_rule *rule, tn_error *err)
{
    int code;
    PCRE2_SIZE offset;
    rule->code = pcre2_compile((PCRE2_SPTR)rule->regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code,
                               &offset, NULL);
    if (rule->code) return TN_OK;
    char why[120];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return tn_fail(err, code == PCRE2_ERROR_NOMEMORY ? TN_ENOMEM : TN_EARG, -1,
                   "--place: '%.200s' is no regular expression: %s at character %zu", rule->regex,
                   why, (size_t)offset);
}

static tn_status add_rule(tn_rules *r, const char *regex, size_t len, double share, tn_error *err)
{
    if (len == 0)
        return tn_fail(err, TN_EARG, -1,
                       "--place: a rule has no regular expression before its '='");
    if (!tn_grow(r->a, (void **)&r->rule, &r->cap, r->n, r->n + 1, sizeof *r->rule))
        return tn_fail_nomem(err, sizeof *r->rule, "the placement rules");
    tn_rule *rule = &r->rule[r->n];
    *rule = (tn_rule){tn_strndup(r->a, regex, len), NULL, share};
    if (!rule->regex) return tn_fail_nomem(err, len, "a placement rule");
    r->n++; /* from here on tn_rules_free() frees it */
    return compile(rule, err);
}

tn_status tn_rules_add(tn_rules *r, const char *text, tn_error *err)
{
    const size_t len = strlen(text);
    if (!r->a) r->a = &tn_default_allocator;
    for (size_t at = 0, equals = 0, end = 0;; at = end + 1) {
        const bool found = next_rule(text, len, at, &equals, &end);
        const char *wrong = found ? wrong_side(text + at, equals - at) : text + at;
        if (wrong)
            return tn_fail(err, TN_EARG, -1,
                           "--place: '%.200s' %s host, device or split:X with X from 0 to 1 "
                           "(expected REGEX=SIDE[,REGEX=SIDE...])",
                           wrong, found ? "does not begin with" : "does not end in");
        const double share = read_side(text + equals + 1, end - equals - 1);
        const tn_status s = add_rule(r, text + at, equals - at, share, err);
        if (s || end == len) return s;
    }
}

void tn_rules_free(tn_rules *r)
{
    for (size_t i = 0; i < r->n; i++) {
        pcre2_code_free(r->rule[i].code);
        tn_free(r->a, r->rule[i].regex);
    }
    if (r->a) tn_free(r->a, r->rule);
    *r = (tn_rules){.a = r->a};
}

/* 1 match, 0 none, -1 failed. */
static int matches(const tn_rule *rule, const char *name, pcre2_match_context *mc)
{
    pcre2_match_data *md = pcre2_match_data_create_from_pattern(rule->code, NULL);
    if (!md) return -1;
    const int n = pcre2_match(rule->code, (PCRE2_SPTR)name, strlen(name), 0, 0, md, mc);
    pcre2_match_data_free(md);
    return n >= 0 ? 1 : n == PCRE2_ERROR_NOMATCH ? 0 : -1;
}

int tn_rules_match(const tn_rules *r, const char *name)
{
    pcre2_match_context *mc = pcre2_match_context_create(NULL);
    if (!mc) return -2;
    pcre2_set_match_limit(mc, max_match_steps);
    int found = -1;
    for (size_t i = 0; i < r->n && found == -1; i++) {
        const int m = matches(&r->rule[i], name, mc);
        if (m) found = m > 0 ? (int)i : -2;
    }
    pcre2_match_context_free(mc);
    return found;
}

/* ---- near names ------------------------------------------------------------------------------ */

/* Edits between two words of up to 63 characters. */
static int distance(const char *a, size_t n, const char *b, size_t m)
{
    int line[64];
    if (n > 63 || m > 63) return 64;
    for (size_t j = 0; j <= m; j++)
        line[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = line[0];
        line[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            const int up = line[j], best = up < line[j - 1] ? up + 1 : line[j - 1] + 1;
            const int same = diagonal + (a[i - 1] != b[j - 1]);
            line[j] = same < best ? same : best;
            diagonal = up;
        }
    }
    return line[m];
}

/* The part of a name that says what a tensor is: "attn_q" of "blk.3.attn_q.weight". */
static tn_str stem(tn_str name)
{
    size_t at = 0, n = 0;
    if (name.len > 4 && memcmp(name.data, "blk.", 4) == 0) {
        at = 4;
        while (at < name.len && isdigit((unsigned char)name.data[at]))
            at++;
        if (at < name.len && name.data[at] == '.') at++;
    }
    while (at + n < name.len && name.data[at + n] != '.')
        n++;
    return (tn_str){name.data + at, n};
}

/* The longest word of a regular expression. */
static size_t longest_word(const char *regex, const char **start)
{
    static const char word[] = "abcdefghijklmnopqrstuvwxyz_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    size_t best = 0;
    *start = regex;
    for (const char *s = regex; *s;) {
        const size_t n = strspn(s, word);
        if (n > best) best = n, *start = s;
        s += n ? n : 1;
    }
    return best;
}

/* Adds the names at exactly `edits` from the word to a list of up to 3. */
static void add_near(tn_str want, int edits, const tn_names *names, char *out, size_t cap,
                     int *found)
{
    for (int64_t i = 0; i < names->n && *found < 3; i++) {
        const tn_str have = stem(names->at(names->of, i));
        const size_t used = strlen(out);
        char name[64] = "";
        if (have.len >= sizeof name || distance(want.data, want.len, have.data, have.len) != edits)
            continue;
        memcpy(name, have.data, have.len);
        if (strstr(out, name) || used + have.len + 3 > cap) continue;
        snprintf(out + used, cap - used, "%s%s", used ? ", " : "", name);
        (*found)++;
    }
}

void tn_rules_near(const tn_rule *rule, const tn_names *names, char *out, size_t cap)
{
    tn_str want;
    want.len = longest_word(rule->regex, &want.data);
    int found = 0;
    out[0] = 0;
    for (int edits = 0; want.len > 1 && edits <= (want.len > 6 ? 3 : 2); edits++)
        add_near(want, edits, names, out, cap, &found);
}
