/* Counts how often each expert of each layer is chosen, wherever that happens; and tells what has
 * been counted. */
#include "exec_internal.h"

#include <string.h>

static void count(tn_exec *x, int32_t layer, const int32_t *chosen, int64_t rows)
{
    const int64_t first = (int64_t)layer * x->m->hp.n_expert;
    uint64_t *n = x->experts + first, *kept = x->m->chosen.n ? x->m->chosen.n + first : NULL;
    const tn_layer *y = &x->m->layers[layer];
    const tn_dweight *there = &x->m->on_device.layers[layer].ffn_down;
    const int64_t on_device = tn_on_device(there) ? there->rows / x->m->hp.n_embd : 0;
    for (int64_t i = 0; i < rows * x->host.used; i++) {
        n[chosen[i]]++;
        if (kept) kept[chosen[i]]++;
        x->experts_there += tn_expert_rank(y, chosen[i]) < on_device;
    }
    x->experts_chosen += (uint64_t)(rows * x->host.used);
}

void tn_exec_count_here(tn_exec *x, int32_t layer)
{
    count(x, layer, x->host.choice, x->host.n);
}

void tn_exec_fetch_choices(tn_exec *x, int32_t layer)
{
    bool any = false;
    if (!x->dev || layer != x->dev->segment->end - 1) return;
    for (int32_t l = x->dev->segment->first; l <= layer; l++)
        any |= x->sides[l].router == TN_ON_DEVICE;
    if (!any) return;
    tn_dev_fetch_choices(x->dev);
    const unsigned from = 1u << (x->dev - x->devs);
    if (x->mode == TN_EXEC_RECORD) {
        x->rec.choices |= from;
    } else {
        x->choices_coming |= from;
        x->busy = true;
    }
}

/* The last layer has seen the kept rows only. */
void tn_exec_count_there(tn_exec *x)
{
    const int32_t last = x->m->hp.n_layers - 1;
    const unsigned from = x->choices_coming;
    x->choices_coming = 0;
    for (int32_t l = 0; l <= last && from; l++) {
        const int32_t segment = tn_segment_of(&x->m->on_device, l);
        const tn_dev *d = &x->devs[segment];
        if (from & 1u << segment && x->sides[l].router == TN_ON_DEVICE)
            count(x, l, d->pinned_choices + l * d->batch_n * d->used, l < last ? d->batch_n : d->n);
    }
}

void tn_exec_stats(const tn_exec *x, tn_stats *s)
{
    s->host = x->on_host;
    s->device = x->on_device;
    s->hops = x->hops;
    s->join_wait_s = x->join_wait_s;
    s->streamed_bytes = x->streamed_bytes;
    s->experts_chosen = x->experts_chosen;
    s->experts_on_device = x->experts_there;
}

const uint64_t *tn_exec_experts(const tn_exec *x, int32_t layer)
{
    return x->experts ? x->experts + (int64_t)layer * x->m->hp.n_expert : NULL;
}

void tn_exec_stats_reset(tn_exec *x)
{
    x->on_host = x->on_device = (tn_side_stats){0};
    x->hops = 0;
    x->streamed_bytes = 0;
    x->join_wait_s = 0;
    x->experts_chosen = x->experts_there = 0;
    const size_t n_experts = (size_t)x->m->hp.n_layers * (size_t)x->m->hp.n_expert;
    if (x->experts) memset(x->experts, 0, n_experts * sizeof *x->experts);
}
