/* Help, man page and completions, all from the tables in options.c. */
#include "options.h"

#include "../engine/tenon.h"

#include <string.h>

static bool belongs(const tn_option *o, tn_command command)
{
    return o->help && (command == TN_CMD_COUNT || o->commands & 1u << command);
}

static void print_option(FILE *out, const tn_option *o)
{
    char left[64];
    snprintf(left, sizeof left, "%c%c%s --%s%s%s", o->letter ? '-' : ' ',
             o->letter ? o->letter : ' ', o->letter ? "," : " ", o->name, o->arg ? " " : "",
             o->arg ? o->arg : "");
    fprintf(out, strlen(left) < 26 ? "  %-26s %s\n" : "  %s\n                             %s\n",
            left, o->help);
}

/* Breaks a paragraph at spaces so that it fits a terminal. */
static void print_wrapped(FILE *out, const char *text)
{
    enum { width = 79 };
    while (strlen(text) > width) {
        size_t n = width;
        while (n > 0 && text[n] != ' ')
            n--;
        if (n == 0) break;
        fprintf(out, "%.*s\n", (int)n, text);
        text += n + 1;
    }
    fprintf(out, "%s\n", text);
}

void tn_help_print(FILE *out, tn_command command)
{
    if (command == TN_CMD_COUNT) {
        fprintf(out,
                "tenon runs GGUF language models.\n\nusage: tenon COMMAND MODEL [options]\n\n");
        for (int i = 0; i < TN_CMD_COUNT; i++)
            fprintf(out, "  %-26s %s\n", tn_commands[i].name, tn_commands[i].summary);
        fprintf(out, "  %-26s %s\n", "COMMAND --help", "what a command does and its options");
        fprintf(out, "  %-26s %s\n", "--version", "version, build and devices");
        return;
    }
    const tn_command_info *c = &tn_commands[command];
    fprintf(out, "usage: tenon %s %s [options]\n\n", c->name, c->args);
    print_wrapped(out, c->text);
    fprintf(out, "\n");
    for (size_t i = 0; i < tn_n_options; i++)
        if (belongs(&tn_options[i], command)) print_option(out, &tn_options[i]);
}

/* ---- man page -------------------------------------------------------------------------------- */

static void roff(FILE *out, const char *s)
{
    if (*s == '.' || *s == '\'') fputs("\\&", out);
    for (; *s; s++) {
        if (*s == '-' || *s == '\\') fputc('\\', out);
        fputc(*s, out);
    }
}

static void man_option(FILE *out, const tn_option *o)
{
    fprintf(out, ".TP\n.B ");
    if (o->letter) fprintf(out, "\\-%c\\fR, \\fB", o->letter);
    fprintf(out, "\\-\\-");
    roff(out, o->name);
    if (o->arg) fprintf(out, " \\fI%s", o->arg);
    fprintf(out, "\n");
    roff(out, o->help);
    fprintf(out, " (");
    const char *comma = "";
    for (int i = 0; i < TN_CMD_COUNT; i++) {
        if (!(o->commands & 1u << i)) continue;
        fprintf(out, "%s%s", comma, tn_commands[i].name);
        comma = ", ";
    }
    fprintf(out, ")\n");
}

static void man_codes(FILE *out)
{
    static const char *const codes[][2] = {
        {"0", "success"},
        {"64", "wrong usage"},
        {"65", "broken or unsupported model or input"},
        {"66", "a file does not exist"},
        {"70", "a bug in tenon"},
        {"71", "out of memory"},
        {"74", "reading or writing failed"},
        {"75", "the context is full"},
        {"130, 143", "stopped by SIGINT, SIGTERM"},
    };
    fprintf(out, ".SH EXIT STATUS\n");
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        fprintf(out, ".TP\n.B %s\n%s\n", codes[i][0], codes[i][1]);
}

static void man(FILE *out)
{
    fprintf(out, ".TH TENON 1 \"\" \"tenon %s\" \"User Commands\"\n", tn_version());
    fprintf(out, ".SH NAME\ntenon \\- run GGUF language models\n");
    fprintf(out, ".SH SYNOPSIS\n.B tenon\n.I COMMAND MODEL\n[options]\n.SH COMMANDS\n");
    for (int i = 0; i < TN_CMD_COUNT; i++) {
        fprintf(out, ".TP\n.B %s \\fI%s\n", tn_commands[i].name, tn_commands[i].args);
        roff(out, tn_commands[i].text);
        fprintf(out, "\n");
    }
    fprintf(out, ".SH OPTIONS\n");
    for (size_t i = 0; i < tn_n_options; i++)
        if (tn_options[i].help) man_option(out, &tn_options[i]);
    man_codes(out);
    fprintf(out, ".SH FILES\n.TP\n.I $XDG_STATE_HOME/tenon/history\n"
                 "What was typed into tenon chat; ~/.local/state where the variable is not set.\n"
                 ".TP\n.I $XDG_CACHE_HOME/tenon/hardware.json\n"
                 "What tenon calibrate measured; ~/.cache where the variable is not set.\n");
    fprintf(out, ".SH ENVIRONMENT\n.B NO_COLOR\nturns colour off when not empty.\n");
}

/* ---- completions ----------------------------------------------------------------------------- */

/* " one two" for every command or option that belongs to it. */
static void bash_words(FILE *out, tn_command command)
{
    for (size_t i = 0; i < tn_n_options; i++)
        if (belongs(&tn_options[i], command)) fprintf(out, " --%s", tn_options[i].name);
}

static bool is_file(const tn_option *o)
{
    return o->arg && strcmp(o->arg, "FILE") == 0;
}

static void bash(FILE *out)
{
    fprintf(out, "# bash completion for tenon\n_tenon()\n{\n"
                 "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=\n"
                 "    COMPREPLY=()\n    case $prev in\n");
    for (size_t i = 0; i < tn_n_options; i++) {
        const tn_option *o = &tn_options[i];
        if (!o->help || !o->arg || is_file(o)) continue;
        fprintf(out, "    --%s) ", o->name);
        if (o->kind == TN_OPT_CHOICE) {
            fprintf(out, "COMPREPLY=($(compgen -W '");
            for (const char *s = o->arg; *s; s++)
                fputc(*s == '|' ? ' ' : *s, out);
            fprintf(out, "' -- \"$cur\")); ");
        }
        fprintf(out, "return;;\n");
    }
    fprintf(out, "    esac\n    if ((COMP_CWORD == 1)); then\n        words='");
    for (int i = 0; i < TN_CMD_COUNT; i++)
        fprintf(out, "%s ", tn_commands[i].name);
    fprintf(
        out,
        "--help --version'\n    elif [[ $cur == -* ]]; then\n        case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < TN_CMD_COUNT; i++) {
        fprintf(out, "        %s) words='", tn_commands[i].name);
        bash_words(out, (tn_command)i);
        fprintf(out, "';;\n");
    }
    fprintf(out, "        esac\n    fi\n    if [[ $words ]]; then\n"
                 "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n    else\n"
                 "        compopt -o filenames\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n"
                 "    fi\n}\ncomplete -F _tenon tenon\n");
}

/* Text inside single quotes, with one more character that must be escaped by a backslash. */
static void quoted(FILE *out, const char *s, const char *escape)
{
    for (; *s; s++) {
        if (*s == '\'') {
            fputs("'\\''", out);
            continue;
        }
        if (strchr(escape, *s)) fputc('\\', out);
        fputc(*s, out);
    }
}

static void zsh_option(FILE *out, const tn_option *o)
{
    fprintf(out, " \\\n            '--%s[", o->name);
    quoted(out, o->help, "[]:\\");
    fprintf(out, "]");
    if (o->kind == TN_OPT_CHOICE) {
        fprintf(out, ":value:(");
        for (const char *s = o->arg; *s; s++)
            fputc(*s == '|' ? ' ' : *s, out);
        fprintf(out, ")");
    } else if (o->arg) {
        fprintf(out, ":%s:%s", o->arg, is_file(o) ? "_files" : " ");
    }
    fprintf(out, "'");
}

static void zsh(FILE *out)
{
    fprintf(out, "#compdef tenon\n_tenon()\n{\n    if ((CURRENT == 2)); then\n"
                 "        local -a commands=(");
    for (int i = 0; i < TN_CMD_COUNT; i++) {
        fprintf(out, "'%s:", tn_commands[i].name);
        quoted(out, tn_commands[i].summary, ":\\");
        fprintf(out, "' ");
    }
    fprintf(out, ")\n        _describe command commands\n        _arguments --help --version\n"
                 "        return\n    fi\n    local command=$words[2]\n"
                 "    shift words; ((CURRENT--))\n    case $command in\n");
    for (int c = 0; c < TN_CMD_COUNT; c++) {
        fprintf(out, "    %s)\n        _arguments", tn_commands[c].name);
        for (size_t i = 0; i < tn_n_options; i++)
            if (belongs(&tn_options[i], (tn_command)c)) zsh_option(out, &tn_options[i]);
        fprintf(out, " \\\n            '1:model:_files';;\n");
    }
    fprintf(out, "    esac\n}\n_tenon \"$@\"\n");
}

static void fish(FILE *out)
{
    fprintf(out, "# fish completion for tenon\n");
    for (int i = 0; i < TN_CMD_COUNT; i++) {
        fprintf(out, "complete -c tenon -n __fish_use_subcommand -f -a %s -d '",
                tn_commands[i].name);
        quoted(out, tn_commands[i].summary, "");
        fprintf(out, "'\n");
    }
    for (size_t i = 0; i < tn_n_options; i++) {
        const tn_option *o = &tn_options[i];
        if (!o->help) continue;
        fprintf(out, "complete -c tenon -n '__fish_seen_subcommand_from");
        for (int c = 0; c < TN_CMD_COUNT; c++)
            if (o->commands & 1u << c) fprintf(out, " %s", tn_commands[c].name);
        fprintf(out, "' -l %s", o->name);
        if (o->letter) fprintf(out, " -s %c", o->letter);
        if (o->arg) fprintf(out, is_file(o) ? " -r -F" : " -x");
        if (o->kind == TN_OPT_CHOICE) {
            fprintf(out, " -a '");
            for (const char *s = o->arg; *s; s++)
                fputc(*s == '|' ? ' ' : *s, out);
            fprintf(out, "'");
        }
        fprintf(out, " -d '");
        quoted(out, o->help, "");
        fprintf(out, "'\n");
    }
}

bool tn_help_generate(FILE *out, const char *what)
{
    static const struct {
        const char *name;
        void (*print)(FILE *out);
    } all[] = {{"man", man}, {"bash", bash}, {"zsh", zsh}, {"fish", fish}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(all[i].name, what) != 0) continue;
        all[i].print(out);
        return true;
    }
    return false;
}
