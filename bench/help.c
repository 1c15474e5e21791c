/* Help and man page, both from the table in options.c. */
#include "options.h"

#include "../engine/tenon.h"

#include <string.h>

/* The text in lines of at most `width`, all but the first indented. */
static void print_wrapped(FILE *out, const char *text, size_t width, int indent)
{
    while (strlen(text) > width) {
        size_t n = width;
        while (n > 0 && text[n] != ' ')
            n--;
        if (n == 0) break;
        fprintf(out, "%.*s\n%*s", (int)n, text, indent, "");
        text += n + 1;
    }
    fprintf(out, "%s\n", text);
}

void tn_bench_help_print(FILE *out)
{
    fprintf(out,
            "usage: tenon-bench [options] -m MODEL\n"
            "       tenon-bench --compare OLD.json NEW.json\n\n"
            "Measures how fast a model runs. LIST is numbers and ranges: 512 or 1,2,4 or\n"
            "1-4 or 0-4096+1024 or 1-64*2, and more of it where the option is repeated; every\n"
            "combination is measured.\n\n");
    for (size_t i = 0; i < tn_bench_n_options; i++) {
        const tn_bench_option *o = &tn_bench_options[i];
        char left[64];
        if (!o->help) continue;
        snprintf(left, sizeof left, "%c%c%s --%s%s%s", o->letter ? '-' : ' ',
                 o->letter ? o->letter : ' ', o->letter ? "," : " ", o->name, o->arg ? " " : "",
                 o->arg ? o->arg : "");
        if (strlen(left) < 27)
            fprintf(out, "  %-27s ", left);
        else
            fprintf(out, "  %s\n%30s", left, "");
        print_wrapped(out, o->help, 50, 30);
    }
}

static void roff(FILE *out, const char *s)
{
    if (*s == '.' || *s == '\'') fputs("\\&", out);
    for (; *s; s++) {
        if (*s == '-' || *s == '\\') fputc('\\', out);
        fputc(*s, out);
    }
}

static void man_option(FILE *out, const tn_bench_option *o)
{
    fprintf(out, ".TP\n.B ");
    if (o->letter) fprintf(out, "\\-%c\\fR, \\fB", o->letter);
    fprintf(out, "\\-\\-");
    roff(out, o->name);
    if (o->arg) fprintf(out, " \\fI%s", o->arg);
    fprintf(out, "\n");
    roff(out, o->help);
    fprintf(out, "\n");
}

void tn_bench_man_print(FILE *out)
{
    static const char *const codes[][2] = {
        {"0", "success; rows that could not be measured say why"},
        {"1", "\\-\\-compare found a regression"},
        {"64", "wrong usage"},
        {"65", "broken or unsupported model or report"},
        {"66", "a file does not exist"},
        {"70", "a bug in tenon"},
        {"71", "out of memory"},
        {"74", "reading or writing failed"},
        {"130, 143", "stopped by SIGINT, SIGTERM; what was finished is printed"},
    };
    fprintf(out, ".TH TENON-BENCH 1 \"\" \"tenon %s\" \"User Commands\"\n", tn_version());
    fprintf(out, ".SH NAME\ntenon-bench \\- measure how fast a language model runs\n"
                 ".SH SYNOPSIS\n.B tenon-bench\n[options] \\fB\\-m\\fR \\fIMODEL\\fR\n.br\n"
                 ".B tenon-bench \\-\\-compare\n.I OLD.json NEW.json\n.SH DESCRIPTION\n"
                 "LIST is numbers and ranges separated by commas: 512, 1\\-4, 0\\-4096+1024, "
                 "1\\-64*2. Every combination is measured.\n.SH OPTIONS\n");
    for (size_t i = 0; i < tn_bench_n_options; i++)
        if (tn_bench_options[i].help) man_option(out, &tn_bench_options[i]);
    fprintf(out, ".SH EXIT STATUS\n");
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        fprintf(out, ".TP\n.B %s\n%s\n", codes[i][0], codes[i][1]);
    fprintf(out, ".SH SEE ALSO\n.BR tenon (1)\n");
}
