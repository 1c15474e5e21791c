/* Internal: weights of the host whose pages are locked, so that a device copies them by itself, at
 * the rate of pinned memory and without a thread of ours. Where the system refuses, or beyond half
 * of the machine's memory, weights stay as they are and travel through the carrier's buffers. */
#ifndef TN_PIN_H
#define TN_PIN_H

#include "model.h"
#include "placement.h"

typedef struct tn_pins tn_pins;

/* Locks what the plan p moves or streams of the layers, of a model that has been loaded under it
 * into memory of its own; *out is NULL where there are none. What is refused is logged, no error.
 * TN_ENOMEM. */
tn_status tn_pins_new(tn_pins **out, tn_model *m, const tn_placement *p, tn_error *err);
void tn_pins_free(tn_pins *p); /* before the weights; NULL is fine */
/* Whether all of a matrix that begins there, or of experts in one, is pinned. */
bool tn_pins_have(const tn_pins *p, const void *weights);
/* Of those bytes, the share that is pinned; 1 where there are none. */
double tn_pins_share(const tn_pins *p);

#endif
