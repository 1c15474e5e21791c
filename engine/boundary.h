/* Internal: the elastic boundary between the sides of one model. KV pages and what a plan lets move
 * of the FFNs (slabs, or experts) share the device's memory: as contexts grow, the least valuable
 * units are dropped; as they shrink or end, units come back.
 *
 * Each segment of the model has a boundary on its device; they move together.
 *
 * Room is kept for a number of live tokens, the *level*. It follows what is live in steps, and
 * comes down only when a whole step is free (so that a context at the edge of a step does not move
 * weights to and fro). Which units are on the device is tn_plan_boundary_in(), a pure function of
 * the plan and the bytes that are left at a level.
 *
 * The host has all of a layer that moves, so a drop copies nothing back. A layer whose share
 * changes is uploaded anew from there, as one matrix each, which is what kernels are fast with; the
 * plan changes one layer after the other.
 *
 * Several models of one engine share its devices: what memory is left is divided in proportion to
 * what could move of each, and where memory is short all give way.
 *
 * Functions are called with the engine's turn held unless they say otherwise. Moves happen in
 * tn_boundary_move() alone, before an evaluation. */
#ifndef TN_BOUNDARY_H
#define TN_BOUNDARY_H

#include "drift.h"
#include "kv.h"
#include "placement.h"

typedef struct tn_boundary tn_boundary;

/* For a model whose tensors have been loaded under the plan p, which outlives it; *out is NULL
 * where nothing can move. */
tn_status tn_boundary_new(tn_boundary **out, tn_model *m, const tn_placement *p, tn_error *err);
void tn_boundary_free(tn_boundary *b);

/* A cache that shares the device, from now until it leaves. cap: positions it may ever hold. */
tn_status tn_boundary_join(tn_boundary *b, tn_kv *kv, int64_t cap, tn_error *err);
void tn_boundary_leave(tn_boundary *b, tn_kv *kv);

/* Moves what is due for the tokens live now, unless a model arrives. TN_ENOMEM, TN_EDEVICE: what
 * was on the move is on the host, nothing is lost. */
tn_status tn_boundary_move(tn_boundary *b, tn_error *err);
/* Drops everything, where memory is short for something else. short_of: the segment on whose device
 * that was to fit, so there is less memory than was thought; -1: none. False: there was nothing to
 * drop. */
bool tn_boundary_clear(tn_boundary *b, int32_t short_of);
/* Drops everything of the engine's models but one, which may be NULL. False: there was nothing. */
bool tn_boundary_give_way(tn_engine *e, const tn_boundary *except);
/* The same for all of them, for a model that arrives; nothing comes back until it has what it
 * wants. These two take the engine's turn. */
void tn_boundary_make_room(tn_engine *e);
void tn_boundary_has_room(tn_engine *e);
/* Memory has been given back: all of the engine's boundaries look again when they move next. */
void tn_boundary_look_again(tn_engine *e);

/* What a token at a depth should take as things are now. */
tn_status tn_boundary_predict(const tn_boundary *b, int64_t depth, tn_token_time *t, tn_error *err);
/* Notes what a decoded token took. Where a side drifts from the prediction, its rates are refitted
 * and the plan is made again, once; the next move carries it out. Not where the plan is from a
 * file. TN_ENOMEM. */
tn_status tn_boundary_note(tn_boundary *b, int64_t depth, tn_token_time measured, tn_error *err);

/* Changes with every move: whoever remembers where weights are looks again. */
uint64_t tn_boundary_version(const tn_boundary *b);
/* Units on the device and in all; dropped and promoted since the model was opened. Any thread,
 * without waiting for an evaluation: so figures of a move under way may not belong together. */
typedef struct tn_boundary_counts {
    int64_t units, of;
    uint64_t dropped, promoted, replans;
} tn_boundary_counts;
tn_boundary_counts tn_boundary_count(const tn_boundary *b);

/* boundary_copy.c. Carries parts of weights that the host has to the device of a segment, by itself
 * where they are pinned, else through pinned buffers. */
typedef struct tn_carrier tn_carrier;
/* capacity: of each of two buffers, on either side; at least tn_carrier_least of every matrix. */
tn_status tn_carrier_new(tn_carrier **out, tn_model *m, int32_t segment, size_t capacity,
                         tn_error *err);
/* What a boundary wants it to be. */
size_t tn_carrier_capacity(const tn_model *m, const tn_segment *s);
void tn_carrier_free(tn_carrier *c);
/* Fills all of `to` with the first rows and columns of `from`, whose rows begin at row0 in the
 * order of memory (experts are padded); to->rows of them. Returns when it is there, or when nothing
 * writes to it any more. */
tn_status tn_carrier_carry(tn_carrier *c, const tn_dweight *to, const tn_weight *from,
                           tn_error *err);
/* The same from column col0 on, without waiting: it is there when the carrier's stream has come so
 * far. Waits for a buffer where weights are not pinned. */
tn_status tn_carrier_send(tn_carrier *c, const tn_dweight *to, const tn_weight *from, int64_t col0,
                          tn_error *err);
tn_stream *tn_carrier_stream(const tn_carrier *c);
/* Bytes of a buffer that holds at least a group of rows of `cols` columns. */
size_t tn_carrier_least(const tn_weight *w, int64_t cols);

#endif
