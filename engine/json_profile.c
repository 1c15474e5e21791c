/* Hardware profiles as JSON. */
#include "json_read.h"
#include "json_text.h"
#include "profile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double GB = 1e9, TFLOP = 1e12, us = 1e-6;
static const char *const format = "tenon-profile-1";
static const char *const kv_names[TN_KV_KINDS] = {"f16", "f32", "q8_0"};

/* ---- writing --------------------------------------------------------------------------------- */

static json_t *matvec(const tn_side_rates *r)
{
    json_t *j = json_object();
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block)
            json_object_set_new(j, tn_type_get(i)->name, json_real(r->matvec[i] / GB));
    return j;
}

/* The keys both sides have. */
static json_t *rates(const tn_side_rates *r, const char *name, uint64_t memory, uint64_t reserved)
{
    json_t *kv = json_object();
    for (int i = 0; i < TN_KV_KINDS; i++)
        json_object_set_new(kv, kv_names[i], json_real(r->kv[i] / GB));
    return json_pack("{s:s, s:I, s:I, s:o, s:o, s:{s:f, s:f}, s:f}", "name", name, "memory_bytes",
                     (json_int_t)memory, "reserved_bytes", (json_int_t)reserved, "matvec_gb_s",
                     matvec(r), "kv_gb_s", kv, "prefill_tflops", "32", r->flops[0] / TFLOP, "512",
                     r->flops[1] / TFLOP, "op_us", r->op_s / us);
}

static void add_cores(json_t *j, const tn_profile_host *h)
{
    json_t *kinds = json_array(), *nodes = json_array();
    for (int32_t i = 0; i < h->n_kinds; i++)
        json_array_append_new(kinds,
                              json_pack("{s:i, s:i, s:i}", "cores", h->kind[i].cores, "processors",
                                        h->kind[i].processors, "mhz", h->kind[i].mhz));
    for (int32_t i = 0; i < h->n_nodes; i++)
        json_array_append_new(nodes,
                              json_pack("{s:i, s:I}", "cores", h->node[i].cores, "memory_bytes",
                                        (json_int_t)h->node[i].memory_bytes));
    json_object_set_new(j, "kinds", kinds);
    json_object_set_new(j, "nodes", nodes);
}

static json_t *host_json(const tn_profile_host *h)
{
    json_t *j = rates(&h->rate, h->name, h->memory_bytes, h->reserved_bytes);
    json_object_set_new(j, "cores", json_integer(h->cores));
    json_object_set_new(j, "threads", json_integer(h->threads));
    json_t *scaling = json_array();
    for (int32_t i = 0; i < h->n_scaling; i++)
        json_array_append_new(scaling, json_pack("{s:i, s:f}", "threads", h->scaling[i].threads,
                                                 "factor", h->scaling[i].factor));
    json_object_set_new(j, "scaling", scaling);
    add_cores(j, h);
    return j;
}

static json_t *device_json(const tn_profile_device *d)
{
    json_t *j = rates(&d->rate, d->name, d->memory_bytes, d->reserved_bytes);
    json_object_set_new(j, "pinned_gb_s", json_real(d->pinned / GB));
    json_object_set_new(j, "pageable_gb_s", json_real(d->pageable / GB));
    json_object_set_new(j, "crossing_us", json_real(d->cross_s / us));
    json_object_set_new(j, "crossing_p95_us", json_real(d->cross_p95_s / us));
    json_object_set_new(j, "pcie",
                        json_pack("{s:f, s:i, s:f, s:i}", "gt_s", d->link.gt_s, "width",
                                  d->link.width, "most_gt_s", d->link.most_gt_s, "most_width",
                                  d->link.most_width));
    return j;
}

tn_status tn_profile_json(const tn_profile *p, char **out, const tn_allocator *a, tn_error *err)
{
    json_t *devices = json_array(), *sources = json_object();
    const tn_profile_contended *c = &p->contended;
    for (int32_t i = 0; i < p->n_devices; i++)
        json_array_append_new(devices, device_json(&p->device[i]));
    for (int32_t i = 0; i < p->n_sources; i++)
        json_object_set_new(sources, p->source[i].figure, json_string(p->source[i].text));
    json_t *doc = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:{s:f, s:f, s:f, s:f}, s:o}", "format",
                            format, "name", p->name, "label", p->label, "key", p->key, "host",
                            host_json(&p->host), "devices", devices, "contended",
                            "host_beside_copy", c->host_beside_copy, "copy_beside_host",
                            c->copy_beside_host, "host_beside_device", c->host_beside_device,
                            "device_beside_host", c->device_beside_host, "sources", sources);
    return tn_json_text(doc, JSON_INDENT(2) | JSON_REAL_PRECISION(9), a, out, err);
}

/* ---- reading --------------------------------------------------------------------------------- */

static void read_text(tn_json_reader *r, const json_t *obj, const char *key, char *out, size_t cap)
{
    const char *s = tn_json_string(r, obj, key);
    if (strlen(s) >= cap) tn_json_fail(r, key, "is too long");
    snprintf(out, cap, "%s", s);
}

/* One rate for every type: by name, or "other" for those that are not named. */
static void read_matvec(tn_json_reader *r, const json_t *obj, tn_side_rates *out)
{
    const json_t *j = tn_json_object(r, obj, "matvec_gb_s");
    const size_t up = tn_json_enter(r, "matvec_gb_s", -1);
    const char *key;
    json_t *value;
    const double other = j && json_object_get(j, "other") ? tn_json_number(r, j, "other") * GB : 0;
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        out->matvec[i] = tn_type_get(i)->block ? other : 0;
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        const int type = tn_type_from_name(key);
        if (strcmp(key, "other") == 0) continue;
        if (type < 0 || !tn_type_get((uint32_t)type)->block)
            tn_json_fail(r, key, "is no quantisation type");
        else
            out->matvec[type] = tn_json_number(r, j, key) * GB;
    }
    for (uint32_t i = 0; !r->status && i < TN_TYPE_COUNT; i++)
        if (tn_type_get(i)->block && !(out->matvec[i] > 0))
            tn_json_fail(r, tn_type_get(i)->name, "is missing (and there is no positive 'other')");
    tn_json_leave(r, up);
}

static void read_rates(tn_json_reader *r, const json_t *obj, tn_side_rates *out)
{
    read_matvec(r, obj, out);
    const json_t *kv = tn_json_object(r, obj, "kv_gb_s");
    size_t up = tn_json_enter(r, "kv_gb_s", -1);
    static const char *const kv_keys[] = {"f16", "f32", "q8_0", NULL};
    tn_json_only(r, kv, kv_keys);
    for (int i = 0; i < TN_KV_KINDS; i++)
        out->kv[i] = tn_json_number(r, kv, kv_names[i]) * GB;
    tn_json_leave(r, up);
    const json_t *flops = tn_json_object(r, obj, "prefill_tflops");
    up = tn_json_enter(r, "prefill_tflops", -1);
    static const char *const flop_keys[] = {"32", "512", NULL};
    tn_json_only(r, flops, flop_keys);
    out->flops[0] = tn_json_number(r, flops, "32") * TFLOP;
    out->flops[1] = tn_json_number(r, flops, "512") * TFLOP;
    tn_json_leave(r, up);
    out->op_s = tn_json_number(r, obj, "op_us") * us;
}

static void read_scaling(tn_json_reader *r, const json_t *obj, tn_profile_host *h)
{
    const json_t *list = tn_json_array(r, obj, "scaling");
    if (json_array_size(list) > TN_PROFILE_SCALING)
        tn_json_fail(r, "scaling", "has too many entries");
    for (size_t i = 0; !r->status && i < json_array_size(list); i++) {
        static const char *const keys[] = {"threads", "factor", NULL};
        const size_t up = tn_json_enter(r, "scaling", (int)i);
        const json_t *j = json_array_get(list, i);
        tn_json_only(r, j, keys);
        h->scaling[i].threads = (int32_t)tn_json_int(r, j, "threads", 1, 4096);
        h->scaling[i].factor = tn_json_number(r, j, "factor");
        h->n_scaling++;
        tn_json_leave(r, up);
    }
}

/* Profiles by hand may leave these out. */
static void read_kinds(tn_json_reader *r, const json_t *obj, tn_profile_host *h)
{
    static const char *const keys[] = {"cores", "processors", "mhz", NULL};
    const json_t *list = json_object_get(obj, "kinds") ? tn_json_array(r, obj, "kinds") : NULL;
    if (json_array_size(list) > TN_CPU_KINDS) tn_json_fail(r, "kinds", "has too many entries");
    for (size_t i = 0; !r->status && i < json_array_size(list); i++) {
        const size_t up = tn_json_enter(r, "kinds", (int)i);
        const json_t *j = json_array_get(list, i);
        tn_json_only(r, j, keys);
        h->kind[i].cores = (int32_t)tn_json_int(r, j, "cores", 1, 8192);
        h->kind[i].processors = (int32_t)tn_json_int(r, j, "processors", 0, 8192);
        h->kind[i].mhz = (int32_t)tn_json_int(r, j, "mhz", 0, 100000);
        h->n_kinds++;
        tn_json_leave(r, up);
    }
}

static void read_nodes(tn_json_reader *r, const json_t *obj, tn_profile_host *h)
{
    static const char *const keys[] = {"cores", "memory_bytes", NULL};
    const json_t *list = json_object_get(obj, "nodes") ? tn_json_array(r, obj, "nodes") : NULL;
    if (json_array_size(list) > TN_CPU_NODES) tn_json_fail(r, "nodes", "has too many entries");
    for (size_t i = 0; !r->status && i < json_array_size(list); i++) {
        const size_t up = tn_json_enter(r, "nodes", (int)i);
        const json_t *j = json_array_get(list, i);
        tn_json_only(r, j, keys);
        h->node[i].cores = (int32_t)tn_json_int(r, j, "cores", 0, 8192);
        h->node[i].memory_bytes = (uint64_t)tn_json_int(r, j, "memory_bytes", 0, 1000000000000000);
        h->n_nodes++;
        tn_json_leave(r, up);
    }
}

static void read_link(tn_json_reader *r, const json_t *obj, tn_pci_link *link)
{
    static const char *const keys[] = {"gt_s", "width", "most_gt_s", "most_width", NULL};
    if (!json_object_get(obj, "pcie")) return;
    const json_t *j = tn_json_object(r, obj, "pcie");
    const size_t up = tn_json_enter(r, "pcie", -1);
    tn_json_only(r, j, keys);
    link->gt_s = tn_json_number(r, j, "gt_s");
    link->width = (int)tn_json_int(r, j, "width", 0, 64);
    link->most_gt_s = tn_json_number(r, j, "most_gt_s");
    link->most_width = (int)tn_json_int(r, j, "most_width", 0, 64);
    tn_json_leave(r, up);
}

static void read_host(tn_json_reader *r, const json_t *obj, tn_profile_host *h)
{
    static const char *const keys[] = {"name",    "memory_bytes", "reserved_bytes", "matvec_gb_s",
                                       "kv_gb_s", "op_us",        "prefill_tflops", "cores",
                                       "threads", "scaling",      "kinds",          "nodes",
                                       NULL};
    const size_t up = tn_json_enter(r, "host", -1);
    tn_json_only(r, obj, keys);
    read_text(r, obj, "name", h->name, sizeof h->name);
    h->memory_bytes = (uint64_t)tn_json_int(r, obj, "memory_bytes", 1, 1000000000000000);
    h->reserved_bytes = (uint64_t)tn_json_int(r, obj, "reserved_bytes", 0, 1000000000000000);
    h->cores = (int32_t)tn_json_int(r, obj, "cores", 1, 4096);
    h->threads = (int32_t)tn_json_int(r, obj, "threads", 1, 4096);
    read_rates(r, obj, &h->rate);
    read_scaling(r, obj, h);
    read_kinds(r, obj, h);
    read_nodes(r, obj, h);
    tn_json_leave(r, up);
}

static void read_device(tn_json_reader *r, const json_t *obj, int i, tn_profile_device *d)
{
    static const char *const keys[] = {"name",
                                       "memory_bytes",
                                       "reserved_bytes",
                                       "matvec_gb_s",
                                       "kv_gb_s",
                                       "op_us",
                                       "prefill_tflops",
                                       "pinned_gb_s",
                                       "pageable_gb_s",
                                       "crossing_us",
                                       "crossing_p95_us",
                                       "pcie",
                                       NULL};
    const size_t up = tn_json_enter(r, "devices", i);
    if (!json_is_object(obj)) tn_json_fail(r, "", "must be an object");
    tn_json_only(r, obj, keys);
    read_text(r, obj, "name", d->name, sizeof d->name);
    d->memory_bytes = (uint64_t)tn_json_int(r, obj, "memory_bytes", 1, 1000000000000000);
    d->reserved_bytes = (uint64_t)tn_json_int(r, obj, "reserved_bytes", 0, 1000000000000000);
    read_rates(r, obj, &d->rate);
    d->pinned = tn_json_number(r, obj, "pinned_gb_s") * GB;
    d->pageable = tn_json_number(r, obj, "pageable_gb_s") * GB;
    d->cross_s = tn_json_number(r, obj, "crossing_us") * us;
    d->cross_p95_s = tn_json_number(r, obj, "crossing_p95_us") * us;
    read_link(r, obj, &d->link);
    tn_json_leave(r, up);
}

static void read_contended(tn_json_reader *r, const json_t *obj, tn_profile_contended *c)
{
    static const char *const keys[] = {"host_beside_copy", "copy_beside_host", "host_beside_device",
                                       "device_beside_host", NULL};
    const size_t up = tn_json_enter(r, "contended", -1);
    tn_json_only(r, obj, keys);
    c->host_beside_copy = tn_json_number(r, obj, "host_beside_copy");
    c->copy_beside_host = tn_json_number(r, obj, "copy_beside_host");
    c->host_beside_device = tn_json_number(r, obj, "host_beside_device");
    c->device_beside_host = tn_json_number(r, obj, "device_beside_host");
    tn_json_leave(r, up);
}

static void read_sources(tn_json_reader *r, const json_t *obj, tn_profile *p)
{
    const char *key;
    json_t *value;
    const size_t up = tn_json_enter(r, "sources", -1);
    json_object_foreach((json_t *)(uintptr_t)obj, key, value)
    {
        if (p->n_sources == TN_PROFILE_SOURCES || strlen(key) >= sizeof p->source->figure)
            tn_json_fail(r, key, "is one source too many, or too long a name");
        if (r->status) break;
        snprintf(p->source[p->n_sources].figure, sizeof p->source->figure, "%s", key);
        read_text(r, obj, key, p->source[p->n_sources].text, sizeof p->source->text);
        p->n_sources++;
    }
    tn_json_leave(r, up);
}

static void read_profile(tn_json_reader *r, const json_t *doc, tn_profile *p)
{
    static const char *const keys[] = {"format",  "name",      "label",   "key", "host",
                                       "devices", "contended", "sources", NULL};
    if (strcmp(tn_json_string(r, doc, "format"), format) != 0)
        tn_json_fail(r, "format", "must be \"tenon-profile-1\"");
    tn_json_only(r, doc, keys);
    read_text(r, doc, "name", p->name, sizeof p->name);
    read_text(r, doc, "label", p->label, sizeof p->label);
    read_text(r, doc, "key", p->key, sizeof p->key);
    read_host(r, tn_json_object(r, doc, "host"), &p->host);
    const json_t *devices = tn_json_array(r, doc, "devices");
    if (json_array_size(devices) > TN_MAX_DEVICES)
        tn_json_fail(r, "devices", "has more than 8 entries");
    for (size_t i = 0; !r->status && i < json_array_size(devices); i++)
        read_device(r, json_array_get(devices, i), (int)i, &p->device[p->n_devices++]);
    read_contended(r, tn_json_object(r, doc, "contended"), &p->contended);
    read_sources(r, tn_json_object(r, doc, "sources"), p);
}

tn_status tn_profile_parse(tn_profile *out, const char *text, size_t len, const char *where,
                           tn_error *err)
{
    tn_json_reader r = {.where = where, .err = err};
    memset(out, 0, sizeof *out);
    json_t *doc = tn_json_parse(&r, text, len);
    if (doc) read_profile(&r, doc, out);
    json_decref(doc);
    return r.status ? r.status : tn_profile_check(out, where, err);
}
