/* tenon plan: where a model's tensors would go, and how fast it would be. */
#include "session.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double MiB = 1024.0 * 1024.0;
enum { bar_width = 40 };

/* ---- options --------------------------------------------------------------------------------- */

/* How many devices a name of --device stands for; 0: it is not given, or "none". */
static int32_t count_devices(const char *name)
{
    int32_t n = 1;
    if (!name || strcmp(name, "none") == 0) return 0;
    if (strncmp(name, "emu:", 4) == 0) return (int32_t)strtol(name + 4, NULL, 10);
    for (; *name; name++)
        n += *name == ',';
    return n;
}

int tn_plan_options(tn_placement_options *o, const tn_settings *set)
{
    *o = (tn_placement_options){.struct_size = sizeof *o,
                                .hardware = set->hardware,
                                .plan_file = set->plan,
                                .place = set->places,
                                .n_place = set->n_places,
                                .request = set->request,
                                .n_ctx = set->ctx == TN_UNSET ? 0 : set->ctx,
                                .n_batch = set->batch == TN_UNSET ? 0 : set->batch,
                                .threads = set->threads == TN_UNSET ? 0 : set->threads,
                                .kv = tn_settings_kv(set, TN_KV_F16),
                                .fixed = set->fixed,
                                .load = (tn_load_mode)set->load,
                                .n_devices = count_devices(set->device)};
    int code = TN_EXIT_OK;
    if (set->vram) code = tn_options_sizes("vram", set->vram, o->vram, TN_PLACEMENT_DEVICES);
    if (!code && set->ram) code = tn_options_sizes("ram", set->ram, &o->ram, 1);
    return code;
}

/* ---- text ------------------------------------------------------------------------------------ */

static void print_prediction(FILE *out, const char *name, const tn_placement_prediction *p)
{
    fprintf(out, "  %-12s %10.2f %10.2f %10.1f   ", name, p->request_s, p->ttft_s,
            p->prefill_tok_s);
    for (int32_t i = 0; i < p->n_depths; i++)
        fprintf(out, " %9.2f", p->decode_tok_s[i]);
    fprintf(out, "\n");
}

static void print_table(FILE *out, const tn_settings *set, const tn_placement *p,
                        const tn_placement_info *f)
{
    fprintf(
        out,
        "\npredicted     request s   first s   prompt/s    decode tok/s at live depth\n  %-45s   ",
        "");
    for (int32_t i = 0; i < f->predicted.n_depths; i++)
        fprintf(out, " %9lld", (long long)f->predicted.depth[i]);
    fprintf(out, "\n");
    print_prediction(out, f->chosen, &f->predicted);
    bool fits;
    tn_placement_prediction c;
    const char *name;
    for (size_t i = 0; (name = tn_placement_candidate(p, i, &fits, &c)); i++) {
        if (strcmp(name, f->chosen) == 0) continue;
        if (fits)
            print_prediction(out, name, &c);
        else
            fprintf(out, "  %-12s does not fit%s\n", name,
                    set->n_places ? ", or not with these rules" : "");
    }
    if (f->predicted.streamed_from)
        fprintf(out,
                "  prefill: FFN weights of the host are streamed to the device from batches of "
                "%lld tokens on\n",
                (long long)f->predicted.streamed_from);
}

static int print_memory(FILE *out, const tn_placement *p, const tn_placement_info *f)
{
    fprintf(out,
            "\nmemory, MiB      budget      used   weights        KV   buffers   masters  KV if "
            "full\n");
    for (int32_t d = 0; d <= f->n_devices; d++) {
        tn_placement_memory m;
        tn_error err = {0};
        const int32_t device = d < f->n_devices ? d : -1;
        const tn_status s = tn_placement_get_memory(p, device, &m, &err);
        if (s) return tn_session_fail(s, &err);
        char name[16];
        snprintf(name, sizeof name, device < 0 ? "host" : "device %d", device);
        const uint64_t used = m.weight_bytes + m.kv_bytes + m.buffer_bytes + m.master_bytes;
        fprintf(out, "  %-10s %11.0f %9.0f %9.0f %9.0f %9.0f %9.0f %11.0f   %s\n", name,
                (double)m.budget_bytes / MiB, (double)used / MiB, (double)m.weight_bytes / MiB,
                (double)m.kv_bytes / MiB, (double)m.buffer_bytes / MiB,
                (double)m.master_bytes / MiB, (double)m.kv_full_bytes / MiB, m.name);
    }
    return TN_EXIT_OK;
}

static void print_bar(FILE *out, double share, bool fancy)
{
    const int n = (int)lround(share * bar_width);
    for (int i = 0; i < bar_width; i++)
        fprintf(out, "%s", i < n ? fancy ? "█" : "#" : fancy ? "░" : ".");
}

static bool same_row(const tn_placement_row *a, const tn_placement_row *b)
{
    return a->device == b->device && a->attn == b->attn && a->of == b->of &&
           (a->units == 0) == (b->units == 0) && (a->units == a->of) == (b->units == b->of);
}

/* A row per layer; reasons where they change. */
static int print_rows(FILE *out, const tn_placement *p, const tn_placement_info *f)
{
    tn_placement_row last = {.device = -2};
    const bool fancy = isatty(fileno(out));
    fprintf(out, "\n%-7s %-9s %-*s  on the device%s\n", "layer", "attention", bar_width,
            "feed-forward", f->n_devices > 1 ? " (which)" : "");
    for (int32_t l = 0; l <= f->n_layers; l++) {
        tn_placement_row r;
        tn_error err = {0};
        const tn_status s = tn_placement_get_row(p, l, &r, &err);
        if (s) return tn_session_fail(s, &err);
        const bool head = l == f->n_layers;
        char name[16];
        snprintf(name, sizeof name, head ? "head" : "%d", l);
        fprintf(out, "%-7s %-9s ", name, head ? "" : r.attn ? "device" : "host");
        print_bar(out, r.ffn_share, fancy);
        if (r.of)
            fprintf(out, "  %d/%d %s", r.units, r.of,
                    head        ? "rows/1024"
                    : r.experts ? "experts"
                                : "slabs");
        if (r.of && f->experts_counted && r.hit_share > 0 && r.hit_share < 1)
            fprintf(out, " (%.0f %% of choices)", 100 * r.hit_share);
        if (!r.of) fprintf(out, "  %.0f %% by single tensors", 100 * r.ffn_share);
        if (f->n_devices > 1) fprintf(out, " (%d)", r.device);
        if (head || !same_row(&r, &last))
            fprintf(out, "  %s%s%s", r.attn_reason, *r.attn_reason ? "; " : "", r.ffn_reason);
        fprintf(out, "\n");
        last = r;
    }
    return TN_EXIT_OK;
}

static void print_notes(FILE *out, const tn_placement *p)
{
    const char *text;
    for (size_t i = 0; (text = tn_placement_note(p, TN_PLACEMENT_PRICE, i, NULL)); i++)
        fprintf(out, "%s%s\n", i ? "  " : "\nprices\n  ", text);
}

void tn_plan_say_short(const tn_placement *p, const tn_placement_info *f)
{
    const char *text;
    double seconds;
    tn_say("this does not fit: %.0f MiB are missing", ceil((double)f->short_bytes / MiB));
    for (size_t i = 0; (text = tn_placement_note(p, TN_PLACEMENT_REMEDY, i, &seconds)); i++)
        tn_say("  it would with %s: the request would take %.1f s", text, seconds);
}

static void say_warnings(const tn_placement *p)
{
    const char *text;
    for (size_t i = 0; (text = tn_placement_note(p, TN_PLACEMENT_WARNING, i, NULL)); i++)
        tn_say("warning: %s", text);
}

/* How good the plan is, as far as that is proven. */
static void print_quality(FILE *out, const tn_placement_info *f)
{
    const bool best = strcmp(f->chosen, "optimum") == 0, exact = f->gap <= 1e-9;
    if (f->optimum_s <= 0) return;
    if (!best)
        fprintf(out, ", %.1f %% above the optimum",
                100 * fmax(0, f->predicted.request_s / f->optimum_s - 1));
    if (exact)
        fprintf(out, best ? ", proven to be the best" : ", which is proven");
    else
        fprintf(out, ", %sproven within %.2g %%", best ? "" : "which is ", 100 * f->gap);
}

static void print_summary(FILE *out, const tn_settings *set, const tn_placement_info *f)
{
    const double mib = (double)f->weight_bytes / MiB;
    fprintf(out, "%s (%s, %d layers, %.3g %s of weights) on %s\n", set->model, f->arch, f->n_layers,
            mib < 1024 ? mib : mib / 1024, mib < 1024 ? "MiB" : "GiB", f->hardware);
    fprintf(out, "figures of the machine: %s\n", f->label);
    fprintf(out, "context %lld; request of %lld + %lld tokens", (long long)f->n_ctx,
            (long long)f->n_prompt, (long long)f->n_generated);
    if (f->depth) fprintf(out, " after %lld", (long long)f->depth);
    if (!f->feasible) {
        fprintf(out, "\nplan: none fits; this one would need the least\n");
        return;
    }
    fprintf(out, "\nplan: %s", f->chosen);
    print_quality(out, f);
    fprintf(out, "%s\n",
            !f->elastic                 ? ""
            : strcmp(f->chosen, "file") ? "; weights move as the context grows and shrinks"
                                        : "; weights move with the context, but not in a replay by "
                                          "chat and run (--fixed shows that)");
    if (f->hit_share > 0)
        fprintf(out, "experts: %.0f %% of what tokens choose on the device, %s\n",
                100 * f->hit_share,
                f->experts_counted ? "as counted in earlier runs" : "if all are chosen alike");
}

static int print_text(FILE *out, const tn_settings *set, const tn_placement *p,
                      const tn_placement_info *f)
{
    print_summary(out, set, f);
    if (f->feasible) print_table(out, set, p, f);
    int code = print_memory(out, p, f);
    if (!code) code = print_rows(out, p, f);
    if (!code) print_notes(out, p);
    return code;
}

static int print_json(const tn_placement *p)
{
    char *text;
    tn_error err = {0};
    const tn_status s = tn_placement_json(p, &text, &err);
    if (s) return tn_session_fail(s, &err);
    tn_out(text, strlen(text));
    tn_out("\n", 1);
    tn_placement_string_free(p, text);
    return TN_EXIT_OK;
}

/* ---- picture --------------------------------------------------------------------------------- */

enum { row_height = 12, left = 60, attn_width = 90, ffn_width = 420, gap = 6, top = 64 };

static void svg_text(FILE *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '<')
            fputs("&lt;", out);
        else if (*s == '>')
            fputs("&gt;", out);
        else if (*s == '&')
            fputs("&amp;", out);
        else if (*s == '"')
            fputs("&quot;", out);
        else if ((unsigned char)*s >= 0x20)
            fputc(*s, out);
    }
}

static void svg_rect(FILE *out, double x, double y, double w, const char *class, const char *title)
{
    fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" class=\"%s\">", x, y, w,
            row_height - 2, class);
    fputs("<title>", out);
    svg_text(out, title);
    fputs("</title></rect>\n", out);
}

/* Of several devices the row names its own. */
static void svg_row(FILE *out, const tn_placement_row *r, int32_t l, bool head, bool which)
{
    const double y = top + (double)l * row_height, x = left + attn_width + gap;
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", left - gap, y + row_height - 3);
    if (head)
        fputs("head", out);
    else
        fprintf(out, "%d", l);
    if (which && r->device >= 0) fprintf(out, " (%d)", r->device);
    fputs("</text>\n", out);
    if (!head) svg_rect(out, left, y, attn_width, r->attn ? "d" : "h", r->attn_reason);
    svg_rect(out, x, y, ffn_width, "h", r->ffn_reason);
    if (r->ffn_share > 0) svg_rect(out, x, y, ffn_width * r->ffn_share, "d", r->ffn_reason);
}

static void svg_head(FILE *out, const tn_settings *set, const tn_placement_info *f)
{
    const int width = left + attn_width + gap + ffn_width + gap;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"9\">\n"
            "<style>text{fill:#222}.d{fill:#2a7f62}.h{fill:#d9c9a3}</style>\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text x=\"%d\" y=\"18\" "
            "font-size=\"13\">",
            width, top + (f->n_layers + 2) * row_height, left);
    svg_text(out, set->model);
    fputs(" on ", out);
    svg_text(out, f->hardware);
    fprintf(out, "</text>\n<text x=\"%d\" y=\"34\">", left);
    if (f->feasible)
        fprintf(out, "plan: %s, predicted %.2f tok/s", f->chosen, f->predicted.decode_tok_s[0]);
    else
        fprintf(out, "does not fit: %.0f MiB are missing", ceil((double)f->short_bytes / MiB));
    fprintf(out, "; device green, host sand%s</text>\n",
            f->n_devices > 1 ? "; (number of the device)" : "");
    fprintf(
        out,
        "<text x=\"%d\" y=\"%d\">attention, KV</text><text x=\"%d\" y=\"%d\">feed-forward</text>\n",
        left, top - 6, left + attn_width + gap, top - 6);
}

static int write_svg(const char *path, const tn_settings *set, const tn_placement *p,
                     const tn_placement_info *f)
{
    FILE *out = strcmp(path, "-") == 0 ? stdout : fopen(path, "we");
    if (!out) {
        tn_say("%s: %s", path, strerror(errno));
        return TN_EXIT_IO;
    }
    svg_head(out, set, f);
    for (int32_t l = 0; l <= f->n_layers; l++) {
        tn_placement_row r;
        if (tn_placement_get_row(p, l, &r, NULL) == TN_OK)
            svg_row(out, &r, l, l == f->n_layers, f->n_devices > 1);
    }
    fputs("</svg>\n", out);
    const bool failed = fflush(out) != 0 || ferror(out);
    if (!failed && (out == stdout || fclose(out) == 0)) return TN_EXIT_OK;
    tn_say("%s: writing failed: %s", path, strerror(errno));
    return TN_EXIT_IO;
}

int tn_plan_print(const tn_placement *p, const tn_settings *set)
{
    tn_placement_info f = {.struct_size = sizeof f};
    tn_error err = {0};
    const tn_status s = tn_placement_get_info(p, &f, &err);
    return s ? tn_session_fail(s, &err) : print_text(stderr, set, p, &f);
}

/* ---- the command ----------------------------------------------------------------------------- */

int tn_cmd_plan(const tn_settings *set)
{
    tn_placement_options opt;
    tn_placement *p;
    tn_error err = {0};
    const char *picture = set->svg ? set->svg : set->out;
    int code = tn_plan_options(&opt, set);
    if (code) return code;
    if (set->json && picture && strcmp(picture, "-") == 0) {
        tn_say("options --json and --svg -: only one of them can have standard output");
        return TN_EXIT_USAGE;
    }
    char *cache_dir = tn_cache_dir();
    opt.cache_dir = cache_dir;
    if (set->device && !opt.hardware && strncmp(set->device, "emu", 3) == 0)
        opt.hardware = TN_EMULATED_HARDWARE;
    for (int i = 0; set->device && strcmp(set->device, "none") == 0 && i < TN_PLACEMENT_DEVICES;
         i++)
        opt.vram[i] = UINT64_MAX;
    tn_status s = tn_placement_open(&p, set->model, &opt, &err);
    free(cache_dir);
    if (s) return tn_session_fail(s, &err);
    tn_placement_info f = {.struct_size = sizeof f};
    s = tn_placement_get_info(p, &f, &err);
    if (s) code = tn_session_fail(s, &err);
    say_warnings(p);
    if (!code && picture) code = write_svg(picture, set, p, &f);
    if (!code && set->json)
        code = print_json(p);
    else if (!code && !(picture && strcmp(picture, "-") == 0))
        code = print_text(stdout, set, p, &f);
    if (!code && !f.feasible) {
        tn_plan_say_short(p, &f);
        code = TN_EXIT_MEMORY;
    }
    tn_placement_close(p);
    return code;
}
