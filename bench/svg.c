#include "svg.h"

#include "term.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    page_width = 900,
    left = 70,        /* of the plot, for the scale's numbers */
    plot_width = 520, /* the legend stands right of it */
    plot_height = 240,
    panel_height = 340,
    bar_height = 22,
    bar_left = 330 /* of the bars, for their names */
};

/* Colours that people with any colour vision tell apart (Okabe and Ito). */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                      "#e69f00", "#56b4e9", "#000000"};
enum { n_colours = sizeof colours / sizeof *colours };

typedef struct panel {
    const tn_bench_report *r;
    const tn_bench_row **rows; /* in the report's order */
    size_t n;
    const char *title;
    double top; /* on the page */
} panel;

static void escaped(FILE *f, const char *s)
{
    for (; *s; s++) {
        if (*s == '<')
            fputs("&lt;", f);
        else if (*s == '&')
            fputs("&amp;", f);
        else
            fputc((unsigned char)*s < ' ' ? ' ' : *s, f);
    }
}

static void text_at(FILE *f, double x, double y, const char *anchor, const char *s)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    escaped(f, s);
    fprintf(f, "</text>\n");
}

static double median_of(const tn_bench_row *row)
{
    return tn_bench_quantile(row->rate.at, row->rate.n, 0.5);
}

/* What tells the row from others: everything but the depth that the sweep varies. */
static void series_name(const tn_bench_report *r, const tn_bench_row *row, char *text, size_t cap)
{
    tn_bench_row flat = *row;
    char test[64];
    flat.params.depth = 0;
    size_t n = (size_t)snprintf(text, cap, "%s", tn_bench_test_name(&flat, test));
#define SAY(condition, ...)                                                                        \
    if ((condition) && n < cap) n += (size_t)snprintf(text + n, cap - n, __VA_ARGS__)
    const json_t *model = json_array_get(r->models, row->model);
    const char *label = json_string_value(json_object_get(model, "label"));
    SAY(json_array_size(r->models) > 1, ", %.40s", label ? label : "");
    SAY(row->peer != NULL, ", %.30s", row->engine);
    SAY(row->params.placement != NULL, ", %.40s", row->params.placement);
    SAY(row->label && strcmp(row->label, "measured") != 0, ", %s", row->label);
    SAY(r->set->vram.n > 1, ", %s", row->params.vram);
    SAY(r->set->threads.n > 1, ", %d thread%s", row->threads_used,
        row->threads_used == 1 ? "" : "s");
    SAY(r->set->batch.n > 1, ", batch %d", row->params.batch);
    SAY(r->set->kv.n > 1, ", KV %s", row->params.kv);
    SAY(r->set->isa.n > 1, ", %s", row->isa_used ? row->isa_used : row->params.isa);
    SAY(r->set->load.n > 1, ", load %s", row->params.load);
#undef SAY
}

/* The smallest of 1, 2, 5 times a power of ten that is at least x. */
static double round_up(double x)
{
    const double power = pow(10, floor(log10(x)));
    const double steps[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++)
        if (x <= steps[i] * power * (1 + 1e-9)) return steps[i] * power;
    return 10 * power;
}

static double largest(const panel *p, bool depth)
{
    double most = 0;
    for (size_t i = 0; i < p->n; i++)
        most = fmax(most, depth ? p->rows[i]->params.depth : median_of(p->rows[i]));
    return most;
}

/* ---- lines ----------------------------------------------------------------------------------- */

typedef struct scale {
    double x, y, top; /* pixels per token, per tok/s; y of the plot's upper edge */
} scale;

static void axes(FILE *f, const panel *p, const scale *s, double deepest, double fastest)
{
    char number[32];
    const double bottom = s->top + plot_height;
    const double y_step = round_up(fastest / 5), x_step = round_up(deepest / 6);
    for (int i = 0; i * y_step <= fastest; i++) {
        const double v = i * y_step;
        fprintf(f, "<path class=\"grid\" d=\"M%d %.1fh%d\"/>\n", left, bottom - v * s->y,
                plot_width);
        snprintf(number, sizeof number, "%.10g", v);
        text_at(f, left - 8, bottom - v * s->y + 4, "end", number);
    }
    for (int i = 0; i * x_step <= deepest; i++) {
        const double v = i * x_step;
        snprintf(number, sizeof number, "%.10g", v);
        text_at(f, left + v * s->x, bottom + 18, "middle", number);
    }
    text_at(f, left + plot_width / 2.0, bottom + 36, "middle", "tokens in the context");
    text_at(f, left, s->top - 12, "start", p->title);
}

static void series(FILE *f, const panel *p, const scale *s, const char *name, int number)
{
    char other[200];
    const char *colour = colours[number % n_colours];
    const double bottom = s->top + plot_height;
    fprintf(f, "<path class=\"line\" stroke=\"%s\" d=\"", colour);
    char move = 'M';
    for (size_t i = 0; i < p->n; i++) {
        series_name(p->r, p->rows[i], other, sizeof other);
        if (strcmp(other, name) != 0) continue;
        fprintf(f, "%c%.1f %.1f", move, left + p->rows[i]->params.depth * s->x,
                bottom - median_of(p->rows[i]) * s->y);
        move = 'L';
    }
    fprintf(f, "\"/>\n");
    for (size_t i = 0; i < p->n; i++) {
        series_name(p->r, p->rows[i], other, sizeof other);
        if (strcmp(other, name) != 0) continue;
        fprintf(f, "<circle fill=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>\n", colour,
                left + p->rows[i]->params.depth * s->x, bottom - median_of(p->rows[i]) * s->y);
    }
    const double y = s->top + 12 + 18 * number;
    fprintf(f, "<path class=\"line\" stroke=\"%s\" d=\"M%d %.1fh18\"/>\n", colour,
            left + plot_width + 16, y - 4);
    text_at(f, left + plot_width + 40, y, "start", name);
}

static double draw_lines(FILE *f, const panel *p)
{
    const double deepest = largest(p, true), fastest = round_up(largest(p, false));
    const scale s = {plot_width / deepest, plot_height / fastest, p->top + 40};
    axes(f, p, &s, deepest, fastest);
    int n = 0;
    for (size_t i = 0; i < p->n; i++) {
        char name[200], other[200];
        bool seen = false;
        series_name(p->r, p->rows[i], name, sizeof name);
        for (size_t k = 0; k < i && !seen; k++) {
            series_name(p->r, p->rows[k], other, sizeof other);
            seen = strcmp(name, other) == 0;
        }
        if (!seen) series(f, p, &s, name, n++);
    }
    return panel_height;
}

/* ---- bars ------------------------------------------------------------------------------------ */

static double draw_bars(FILE *f, const panel *p)
{
    const double width = page_width - bar_left - 90, fastest = largest(p, false);
    double y = p->top + 28;
    text_at(f, 12, y, "start", p->title);
    for (size_t i = 0; i < p->n; i++) {
        char name[200], number[32];
        const double value = median_of(p->rows[i]);
        y += bar_height;
        series_name(p->r, p->rows[i], name, sizeof name);
        text_at(f, bar_left - 8, y, "end", name);
        fprintf(f, "<rect fill=\"%s\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n",
                colours[0], bar_left, y - 13, width * value / fastest, bar_height - 6);
        snprintf(number, sizeof number, value >= 100 ? "%.0f" : "%.2f", value);
        text_at(f, bar_left + width * value / fastest + 6, y, "start", number);
    }
    return y + 20 - p->top;
}

/* ---- the page -------------------------------------------------------------------------------- */

static bool belongs(const tn_bench_row *row, bool prompt)
{
    const bool is_prompt = row->what == TN_BENCH_PROMPT || row->what == TN_BENCH_PAIR_PROMPT;
    return !row->error && !tn_bench_is_load(row) && is_prompt == prompt && median_of(row) > 0;
}

static bool several_depths(const panel *p)
{
    for (size_t i = 1; i < p->n; i++)
        if (p->rows[i]->params.depth != p->rows[0]->params.depth) return true;
    return false;
}

/* Returns the height on the page. */
static double draw(FILE *f, const tn_bench_report *r, bool prompt, double top)
{
    panel p = {.r = r, .top = top};
    p.rows = tn_bench_alloc(r->rows.n * sizeof(void *));
    for (size_t i = 0; i < r->rows.n; i++)
        if (belongs(&r->rows.at[i], prompt)) p.rows[p.n++] = &r->rows.at[i];
    p.title = prompt ? "Prompt, tokens per second" : "Generation, tokens per second";
    double height = 0;
    if (p.n) height = several_depths(&p) ? draw_lines(f, &p) : draw_bars(f, &p);
    free(p.rows);
    return height;
}

int tn_bench_svg_write(const char *path, const tn_bench_report *r)
{
    FILE *f = fopen(path, "we"), *nowhere = fopen("/dev/null", "we");
    if (!f || !nowhere) {
        tn_bench_say("cannot write %s: %s", path, strerror(errno));
        if (f) fclose(f);
        if (nowhere) fclose(nowhere);
        return TN_EXIT_IO;
    }
    const double one = draw(nowhere, r, true, 0), two = draw(nowhere, r, false, 0);
    fclose(nowhere);
    const double height = one + two + 20;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" "
            "viewBox=\"0 0 %d %.0f\">\n<style>text{font:12px sans-serif}"
            ".line{fill:none;stroke-width:2}.grid{stroke:#ddd}</style>\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            page_width, height, page_width, height);
    draw(f, r, true, 0);
    draw(f, r, false, one);
    fprintf(f, "</svg>\n");
    const int code = tn_bench_flush(f, path);
    fclose(f);
    return code;
}
