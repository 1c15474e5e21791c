/* The plan that a session carries out. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

/* " (layers 0 to 18 by device 0, 19 to 29 by device 1)"; nothing where there is one device. */
static void list_devices(const tn_placement *p, const tn_placement_info *f, char *out, size_t cap)
{
    tn_placement_row row;
    size_t n = 0;
    int32_t first = 0, device = -1;
    out[0] = 0;
    for (int32_t l = 0; f->n_devices > 1 && l <= f->n_layers && n < cap; l++) {
        if (l < f->n_layers && tn_placement_get_row(p, l, &row, NULL)) return;
        if (l < f->n_layers && row.device == device) continue;
        if (device >= 0)
            n += (size_t)snprintf(out + n, cap - n, "%s%d to %d by device %d",
                                  n ? ", " : " (layers ", first, l - 1, device);
        first = l;
        device = row.device;
    }
    if (n && n < cap) snprintf(out + n, cap - n, ")");
}

/* One line of what is about to happen, after what the planner has to remark. */
static void say_plan(const tn_placement *p, const tn_placement_info *f)
{
    tn_placement_row row;
    char devices[300];
    int32_t attn = 0;
    double share = 0;
    const char *warning;
    for (size_t i = 0; (warning = tn_placement_note(p, TN_PLACEMENT_WARNING, i, NULL)); i++)
        tn_say("warning: %s", warning);
    for (int32_t l = 0; l < f->n_layers; l++) {
        if (tn_placement_get_row(p, l, &row, NULL)) continue;
        attn += row.attn;
        share += row.ffn_share / f->n_layers;
    }
    list_devices(p, f, devices, sizeof devices);
    tn_say(
        "plan %s for %s: attention of %d of %d layers and %.0f %% of the FFNs on the device%s%s%s",
        f->chosen, f->hardware, attn, f->n_layers, 100 * share, *devices ? "s" : "", devices,
        f->elastic ? ", moving with the context" : "");
}

int tn_placed_make(tn_placed *r, const tn_settings *set, const char *hardware)
{
    tn_placement_options opt;
    tn_error err = {0};
    memset(r, 0, sizeof *r);
    int code = tn_plan_options(&opt, set);
    if (code) return code;
    opt.hardware = hardware;
    opt.fixed |= opt.plan_file != NULL;
    char *cache_dir = tn_cache_dir();
    opt.cache_dir = cache_dir;
    tn_status s = tn_placement_open(&r->plan, set->model, &opt, &err);
    free(cache_dir);
    if (s) return tn_session_fail(s, &err);
    tn_placement_info f = {.struct_size = sizeof f};
    s = tn_placement_get_info(r->plan, &f, &err);
    if (s) return tn_session_fail(s, &err);
    if (!f.feasible) {
        tn_plan_say_short(r->plan, &f);
        return TN_EXIT_MEMORY;
    }
    say_plan(r->plan, &f);
    r->host_only = set->n_places == 0 && !f.devices_used;
    return TN_EXIT_OK;
}

double tn_placed_rate(const tn_placed *r, int64_t live)
{
    tn_placement_info f = {.struct_size = sizeof f};
    if (!r->plan || tn_placement_get_info(r->plan, &f, NULL) || !f.predicted.n_depths) return 0;
    const tn_placement_prediction *p = &f.predicted;
    int32_t i = 1;
    while (i < p->n_depths - 1 && p->depth[i] < live)
        i++;
    if (p->n_depths == 1 || p->depth[i] <= p->depth[i - 1]) return p->decode_tok_s[0];
    const double t = (double)(live - p->depth[i - 1]) / (double)(p->depth[i] - p->depth[i - 1]);
    const double share = t < 0 ? 0 : t > 1 ? 1 : t;
    return 1 / ((1 - share) / p->decode_tok_s[i - 1] + share / p->decode_tok_s[i]);
}

void tn_placed_free(tn_placed *r)
{
    tn_placement_close(r->plan);
    memset(r, 0, sizeof *r);
}
