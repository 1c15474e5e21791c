/* tenon inspect: metadata and tensors of a GGUF file. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

enum { shown_elements = 6, shown_chars = 200 };

/* A string as shown: on one line, cut after a while. */
static void print_string(const char *s, size_t shown, size_t len)
{
    tn_outf("\"");
    for (size_t i = 0, start = 0; i <= shown; i++) {
        if (i < shown && s[i] != '\n' && s[i] != '\t') continue;
        tn_out(s + start, i - start);
        if (i < shown) tn_outf(s[i] == '\n' ? "\\n" : "\\t");
        start = i + 1;
    }
    if (shown < len)
        tn_outf("\" ... (%zu bytes)", len);
    else
        tn_outf("\"");
}

static int print_value(const tn_inspect *in, uint64_t key, uint64_t element, bool string)
{
    char text[shown_chars + 1];
    size_t n;
    tn_error err = {0};
    const tn_status status = tn_inspect_value(in, key, element, text, sizeof text, &n, &err);
    if (status && status != TN_EFULL) return tn_session_fail(status, &err);
    size_t shown = n < shown_chars ? n : shown_chars;
    /* Not in the middle of a character. */
    while (n > shown && shown > 0 && ((unsigned char)text[shown - 1] & 0xC0) == 0x80)
        shown--;
    if (n > shown && shown > 0 && (unsigned char)text[shown - 1] >= 0xC0) shown--;
    if (string)
        print_string(text, shown, n);
    else
        tn_out(text, shown);
    return TN_EXIT_OK;
}

static int print_key(const tn_inspect *in, uint64_t i)
{
    tn_inspect_key k;
    tn_error err = {0};
    const tn_status status = tn_inspect_get_key(in, i, &k, &err);
    if (status) return tn_session_fail(status, &err);
    const bool array = strcmp(k.kind, "array") == 0, string = strcmp(k.element, "string") == 0;
    tn_outf("  ");
    tn_out(k.name, k.name_len);
    if (array)
        tn_outf(" (%s[%llu]) = [", k.element, (unsigned long long)k.n);
    else
        tn_outf(" (%s) = ", k.kind);
    const uint64_t n = k.n < shown_elements ? k.n : shown_elements;
    for (uint64_t e = 0; e < n; e++) {
        if (e) tn_outf(", ");
        const int code = print_value(in, i, e, string);
        if (code) return code;
    }
    tn_outf(array ? n < k.n ? ", ...]\n" : "]\n" : "\n");
    return TN_EXIT_OK;
}

static int print_tensor(const tn_inspect *in, uint64_t i, uint32_t n_parts)
{
    tn_inspect_tensor t;
    tn_error err = {0};
    const tn_status status = tn_inspect_get_tensor(in, i, &t, &err);
    if (status) return tn_session_fail(status, &err);
    char shape[96] = "";
    for (uint32_t d = 0; d < t.n_dims; d++) {
        const size_t at = strlen(shape);
        snprintf(shape + at, sizeof shape - at, "%s%llu", d ? " x " : "",
                 (unsigned long long)t.shape[d]);
    }
    tn_outf("  ");
    tn_out(t.name, t.name_len);
    tn_outf("%*s %-6s %-22s %14llu bytes at %llu", t.name_len < 30 ? (int)(30 - t.name_len) : 0, "",
            t.type, shape, (unsigned long long)t.bytes, (unsigned long long)t.offset);
    if (n_parts > 1) tn_outf(" of part %u", t.part + 1);
    tn_outf("\n");
    return TN_EXIT_OK;
}

static int print_text(const tn_inspect *in, const char *path)
{
    tn_inspect_info f = {.struct_size = sizeof f};
    tn_error err = {0};
    const tn_status status = tn_inspect_get_info(in, &f, &err);
    if (status) return tn_session_fail(status, &err);
    tn_outf("%s: GGUF v%u, %llu bytes in %u file%s, data aligned to %llu\n", path, f.version,
            (unsigned long long)f.file_bytes, f.n_parts, f.n_parts > 1 ? "s" : "",
            (unsigned long long)f.alignment);
    tn_outf("\nmetadata: %llu entries\n", (unsigned long long)f.n_keys);
    int code = TN_EXIT_OK;
    for (uint64_t i = 0; !code && i < f.n_keys; i++)
        code = print_key(in, i);
    tn_outf("\ntensors: %llu, %llu weights in %llu bytes\n", (unsigned long long)f.n_tensors,
            (unsigned long long)f.n_params, (unsigned long long)f.tensor_bytes);
    for (uint64_t i = 0; !code && i < f.n_tensors; i++)
        code = print_tensor(in, i, f.n_parts);
    return code;
}

static int print_json(const tn_inspect *in)
{
    char *text;
    tn_error err = {0};
    const tn_status status = tn_inspect_json(in, &text, &err);
    if (status) return tn_session_fail(status, &err);
    tn_out(text, strlen(text));
    tn_out("\n", 1);
    tn_inspect_string_free(in, text);
    return TN_EXIT_OK;
}

int tn_cmd_inspect(const tn_settings *set)
{
    tn_inspect *in;
    tn_error err = {0};
    const tn_status status = tn_inspect_open(&in, set->model, NULL, &err);
    if (status) return tn_session_fail(status, &err);
    const int code = set->json ? print_json(in) : print_text(in, set->model);
    tn_inspect_close(in);
    return code;
}
