/* Internal: weights that stay in the mapped file for a model's first evaluation (TN_LOAD_LATER). */
#ifndef TN_LATER_H
#define TN_LATER_H

#include "model.h"

/* Whether weights may stay there: asked for, all on the host and as the file has them, the file in
 * the page cache. Where it is not, threads that read it get it faster than page faults would. */
bool tn_later_may(const tn_load *l);
/* Makes *w what the file has of t, and remembers that it is to become what it was. Its jobs are
 * queued in l. False: out of memory. */
bool tn_later_add(tn_load *l, tn_weight *w, const tn_gguf_tensor *t);
/* Takes the jobs of l, which are not run, to the model. */
void tn_later_keep(tn_load *l);
/* Before each batch, in the engine's turn: before the second carries the weights to memory, on all
 * threads; *seconds: how long that took. TN_ECANCELED, TN_ENOMEM: they stay where they are until
 * the next batch. */
tn_status tn_later_arrive(tn_model *m, tn_cancel_fn cancel, void *user, double *seconds,
                          tn_error *err);
/* Pages of the file that hold these bytes are no longer part of this process's memory. */
void tn_later_drop(const void *bytes, size_t n);
void tn_later_free(tn_model *m);

#endif
