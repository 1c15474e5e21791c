/* A machine on which the planner splits tiny models. */
#ifndef TN_TEST_SLOW_MACHINE_H
#define TN_TEST_SLOW_MACHINE_H

#include "../engine/tenon.h"

#include <jansson.h>

static void set_all(json_t *object, double value)
{
    const char *key;
    json_t *old;
    json_object_foreach(object, key, old) json_real_set(old, value);
}

/* A machine on which splits of tiny models pay: slow memory, and no fixed costs. JSON, freed by the
 * caller. */
static char *slow_machine(void)
{
    char *text = NULL;
    if (tn_hardware_json("rtx3060-ddr4", &text, NULL)) return NULL;
    json_t *j = json_loads(text, 0, NULL);
    tn_hardware_string_free(text);
    json_t *host = json_object_get(j, "host");
    json_t *card = json_array_get(json_object_get(j, "devices"), 0);
    set_all(json_object_get(host, "matvec_gb_s"), 0.004);
    set_all(json_object_get(host, "kv_gb_s"), 0.0004);
    set_all(json_object_get(host, "prefill_tflops"), 6e-6); /* batches of 16 are streamed */
    set_all(json_object_get(card, "matvec_gb_s"), 0.04);
    set_all(json_object_get(card, "kv_gb_s"), 0.04);
    json_real_set(json_object_get(host, "op_us"), 0);
    json_real_set(json_object_get(card, "op_us"), 0);
    json_real_set(json_object_get(card, "crossing_us"), 0);
    json_real_set(json_object_get(card, "crossing_p95_us"), 0);
    text = json_dumps(j, 0);
    json_decref(j);
    return text;
}

#endif
