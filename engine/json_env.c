/* Machine, build and engine as JSON: what a measurement must be published with. */
#include "engine.h"
#include "hardware.h"
#include "json_text.h"

static json_t *caches(const tn_host_info *h)
{
    json_t *list = json_array();
    bool ok = list != NULL;
    for (int i = 0; ok && i < h->n_caches; i++)
        ok = json_array_append_new(list, json_pack("{s:i, s:s, s:I}", "level", h->caches[i].level,
                                                   "type", h->caches[i].type, "bytes",
                                                   (json_int_t)h->caches[i].bytes)) == 0;
    if (ok) return list;
    json_decref(list);
    return NULL;
}

static json_t *machine(const tn_host_info *h)
{
    return json_pack("{s:s, s:i, s:o, s:I, s:I, s:s}", "cpu", h->cpu, "processors", h->n_processors,
                     "caches", caches(h), "memory_bytes", (json_int_t)h->memory_bytes,
                     "memory_available_bytes", (json_int_t)tn_host_memory_available(), "kernel",
                     h->kernel);
}

static json_t *build(void)
{
    return json_pack("{s:s, s:s, s:s, s:s}", "version", tn_version(), "commit", tn_commit(),
                     "compiler", __VERSION__, "flags", tn_flags());
}

static json_t *engine(const tn_engine *e)
{
    return json_pack("{s:i, s:s, s:s}", "threads", tn_engine_threads(e), "isa", tn_engine_isa(e),
                     "devices", tn_engine_devices(e));
}

static json_t *device(const tn_device_info *d)
{
    return json_pack("{s:s, s:b, s:i, s:i, s:i, s:I, s:I, s:i, s:i, s:f, s:f}", "name", d->name,
                     "emulated", d->kind == TN_DEVICE_EMULATED, "index", d->index, "capability",
                     d->capability, "processors", d->processors, "memory_bytes",
                     (json_int_t)d->total_bytes, "l2_bytes", (json_int_t)d->l2_bytes,
                     "driver_version", d->driver_version, "cuda_version", d->api_version,
                     "throttle_gb_per_second", d->throttle * 1e-9, "slower", d->slower);
}

/* As their driver describes them. */
static json_t *devices(const tn_engine *e)
{
    json_t *list = json_array();
    bool ok = list != NULL;
    for (int i = 0; ok && i < e->devices.n; i++)
        ok =
            json_array_append_new(list, device(e->devices.at[i]->api->info(e->devices.at[i]))) == 0;
    if (ok) return list;
    json_decref(list);
    return NULL;
}

tn_status tn_env_json(const tn_engine *e, char **out, tn_error *err)
{
    tn_host_info h;
    tn_host_info_get(&h);
    return tn_json_text(json_pack("{s:o, s:o, s:o, s:o}", "machine", machine(&h), "build", build(),
                                  "engine", engine(e), "devices", devices(e)),
                        JSON_COMPACT, &e->a, out, err);
}
