/* Carries a plan out: what the planner decided for each layer, as rules for the engine. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

enum { rule_chars = 80, rules_per_layer = 2 };

/* "=host", "=device" or "=split:SHARE" behind a regular expression. */
static void set_side(char *rule, double share)
{
    const size_t n = strlen(rule);
    if (share <= 0)
        snprintf(rule + n, rule_chars - n, "=host");
    else if (share >= 1)
        snprintf(rule + n, rule_chars - n, "=device");
    else
        snprintf(rule + n, rule_chars - n, "=split:%.6f", share);
}

/* Memory for n rules behind those of the user, which decide first. */
static bool make_room(tn_placed *r, const tn_settings *set, size_t n)
{
    r->list = malloc((set->n_places + n) * sizeof *r->list);
    r->text = calloc(n, rule_chars);
    if (!r->list || !r->text) return false;
    for (size_t i = 0; i < set->n_places; i++)
        r->list[i] = set->places[i];
    r->n = set->n_places;
    return true;
}

static char *next_rule(tn_placed *r, const tn_settings *set)
{
    char *rule = r->text + (r->n - set->n_places) * rule_chars;
    r->list[r->n++] = rule;
    return rule;
}

static void layer_rules(tn_placed *r, const tn_settings *set, int32_t layer,
                        const tn_placement_row *row)
{
    char *attn = next_rule(r, set), *ffn = next_rule(r, set);
    snprintf(attn, rule_chars, "^blk\\.%d\\.(attn_|ffn_gate_inp)", layer); /* a router is small */
    set_side(attn, row->attn);
    snprintf(ffn, rule_chars, "^blk\\.%d\\.ffn_", layer);
    set_side(ffn, row->ffn_share);
}

/* Whether the model has a head of its own; otherwise the token embedding is the head. */
static int has_head(const char *path, bool *has)
{
    tn_inspect *in;
    tn_error err = {0};
    tn_inspect_tensor t = {0};
    *has = false;
    const tn_status s = tn_inspect_open(&in, path, NULL, &err);
    if (s) return tn_session_fail(s, &err);
    for (uint64_t i = 0; !*has && tn_inspect_get_tensor(in, i, &t, NULL) == TN_OK; i++)
        *has = t.name_len == 13 && memcmp(t.name, "output.weight", 13) == 0;
    tn_inspect_close(in);
    return TN_EXIT_OK;
}

static int head_rules(tn_placed *r, const tn_settings *set, const tn_placement_row *row)
{
    bool head;
    const int code = has_head(set->model, &head);
    if (code) return code;
    char *output = next_rule(r, set), *embd = next_rule(r, set);
    snprintf(output, rule_chars, head ? "^output\\.weight" : "^token_embd\\.weight");
    set_side(output, row->ffn_share);
    /* Of the embedding one row is read for each token. */
    snprintf(embd, rule_chars, "^(token_embd|output_norm)\\.weight=host");
    return TN_EXIT_OK;
}

static int make_rules(tn_placed *r, const tn_settings *set, const tn_placement *p, int32_t n_layers)
{
    tn_error err = {0};
    tn_placement_row row;
    if (!make_room(r, set, (size_t)(n_layers + 1) * rules_per_layer)) {
        tn_say("out of memory for %d layers", n_layers);
        return TN_EXIT_MEMORY;
    }
    r->host_only = set->n_places == 0;
    for (int32_t l = 0; l <= n_layers; l++) {
        const tn_status s = tn_placement_get_row(p, l, &row, &err);
        if (s) return tn_session_fail(s, &err);
        if (row.device > 0) {
            tn_say("the plan needs device %d, and only one can be used", row.device);
            return TN_EXIT_USAGE;
        }
        r->host_only &= !row.attn && row.ffn_share <= 0;
        if (l == n_layers) return head_rules(r, set, &row);
        /* The user's rules have placed all of its tensors. */
        if (row.of > 0) layer_rules(r, set, l, &row);
    }
    return TN_EXIT_INTERNAL;
}

/* One line of what is about to happen. */
static void say_plan(const tn_placement *p, const tn_placement_info *f)
{
    tn_placement_row row;
    int32_t attn = 0;
    double share = 0;
    for (int32_t l = 0; l < f->n_layers; l++) {
        if (tn_placement_get_row(p, l, &row, NULL)) continue;
        attn += row.attn;
        share += row.ffn_share / f->n_layers;
    }
    tn_say("plan %s for %s: attention of %d of %d layers and %.0f %% of the FFNs on the device",
           f->chosen, f->hardware, attn, f->n_layers, 100 * share);
}

int tn_placed_make(tn_placed *r, const tn_settings *set, const char *hardware)
{
    tn_placement_options opt;
    tn_error err = {0};
    memset(r, 0, sizeof *r);
    int code = tn_plan_options(&opt, set);
    if (code) return code;
    opt.hardware = hardware;
    opt.fixed = true;
    /* Room for what a plan does not know to the byte: buffers that carry weights to the device. */
    if (opt.vram[0] && opt.vram[0] < UINT64_MAX) opt.vram[0] -= opt.vram[0] / 32;
    tn_status s = tn_placement_open(&r->plan, set->model, &opt, &err);
    if (s) return tn_session_fail(s, &err);
    tn_placement_info f = {.struct_size = sizeof f};
    s = tn_placement_get_info(r->plan, &f, &err);
    if (s) {
        code = tn_session_fail(s, &err);
    } else if (!f.feasible) {
        tn_say("the plan does not fit: %.1f MiB are missing; `tenon plan` names remedies",
               (double)f.short_bytes / (1024 * 1024));
        code = TN_EXIT_MEMORY;
    } else {
        say_plan(r->plan, &f);
        code = make_rules(r, set, r->plan, f.n_layers);
    }
    return code;
}

void tn_placed_free(tn_placed *r)
{
    free(r->list);
    free(r->text);
    tn_placement_close(r->plan);
    memset(r, 0, sizeof *r);
}
