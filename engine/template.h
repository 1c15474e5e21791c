/* Internal: chat formats. A model's Jinja template is recognised only if its text is, up to layout,
 * one whose output a built-in format reproduces exactly; it is never interpreted. */
#ifndef TN_TEMPLATE_H
#define TN_TEMPLATE_H

#include "tenon.h"
#include "tokenizer.h"

/* Name of the built-in format that renders as this template does, or NULL. Allocates nothing. */
const char *tn_chat_format_detect(const char *tmpl, size_t len);

/* What recognition found: the format's name, and the system text that the template itself supplies
 * when a conversation has none (a slice of the template, its escapes not yet resolved; NULL =
 * none). */
typedef struct tn_chat_match {
    const char *format;
    const char *system;
    size_t n_system;
} tn_chat_match;
/* False: the template is unknown, *match untouched. */
bool tn_chat_match_template(const char *tmpl, size_t len, tn_chat_match *match);
/* Identity of a template: equal for texts that differ only in comments, quotes, spaces inside tags
 * and the default system text. */
uint64_t tn_chat_template_id(const char *tmpl, size_t len);

/* Variables of a template that do not come from the conversation. */
typedef struct tn_chat_vars {
    const char *bos, *eos; /* text of the tokens, "" if the vocabulary has none */
    size_t n_bos, n_eos;
    int year, month, day; /* month 1-12 */
} tn_chat_vars;

/* A rendered conversation: its text is the pieces one after the other. The format's literals have
 * parse_special set, message contents do not. Pieces point into the messages, the vars, static text
 * and `owned`. Free with tn_chat_free(). */
typedef struct tn_chat {
    const tn_allocator *a;
    tn_piece *pieces;
    size_t n, cap;
    char *owned; /* resolved default system text */
    char date[16];
    bool out_of_memory;
} tn_chat;

/* Renders by `format`, or, if that is NULL, as the template does (len 0 = the model has none).
 * TN_EARG: roles or their order that the format does not know; unknown format name.
 * TN_EUNSUPPORTED: no format and no recognised template. On failure *chat needs no freeing. */
tn_status tn_chat_render(tn_chat *chat, const tn_allocator *a, const char *format, const char *tmpl,
                         size_t len, const tn_chat_vars *vars, const tn_message *messages,
                         size_t n_messages, bool add_assistant, tn_error *err);
void tn_chat_free(tn_chat *chat);

#endif
