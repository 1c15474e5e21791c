/* Internal to exec.c and exec_join.c: the state of an executor, moving activations between the
 * sides, and recording a decoded token for replay. */
#ifndef TN_EXEC_INTERNAL_H
#define TN_EXEC_INTERNAL_H

#include "exec.h"
#include "exec_device.h"
#include "exec_host.h"
#include "sides.h"

/* What may have to cross. Valid on one side, or on both after it crossed. */
typedef enum tn_act {
    TN_ACT_H,
    TN_ACT_Q,
    TN_ACT_K,
    TN_ACT_V,
    TN_ACT_ATTENDED, /* what attn_output reads */
    TN_ACT_GATE,
    TN_ACT_UP,
    TN_ACT_CHOSEN, /* experts of each token; */
    TN_ACT_EXPERT, /* as those on the device count them; */
    TN_ACT_WEIGHT, /* and their weights */
    TN_ACTS
} tn_act;

/* Work of the host, done at once or recorded. arg: usually the layer. */
typedef void (*tn_host_op)(tn_exec *x, int32_t arg);

typedef enum tn_step_kind {
    TN_STEP_OP,
    TN_STEP_WAIT,   /* until the device has written flag `arg` */
    TN_STEP_SIGNAL, /* lets the device go past flag `arg` */
    TN_STEP_LAUNCH, /* of piece `arg` */
    TN_STEP_POLL    /* asks whether to stop */
} tn_step_kind;

typedef struct tn_step {
    tn_step_kind kind;
    tn_host_op op;
    int32_t arg;
} tn_step;

/* What one device does of a token from when the residual stream comes to it until it leaves. */
typedef struct tn_piece {
    tn_graph *graph;
    tn_dev *dev, *from; /* from: NULL, or where the token was before */
    bool h;             /* the residual stream comes from there */
} tn_piece;

enum { TN_PIECES = TN_DEVICES + 2 }; /* the last device may embed, and then the first begins
                                        again */

/* One decoded token: what devices do as graphs, what the host does as a list. They meet at flags,
 * one for each hand-over, which are 0 when a token begins.
 *
 * Each piece is a graph of its own, launched by the host when its turn has come, rather than one
 * graph over all devices: a piece is then as it would be with one device (its flags may be host
 * functions, its faults are its own device's), and the hand-over between pieces is the same call as
 * without a recording, whether the devices reach each other or not. Before the launch of a piece
 * the host has done all of its work for those before, so that no piece can wait for another. */
typedef struct tn_recording {
    tn_piece pieces[TN_PIECES];
    int32_t n_pieces; /* 0: nothing recorded */
    tn_step *steps;
    size_t n_steps, cap_steps;
    uint32_t *flags; /* pinned, flag_stride apart */
    int32_t n_flags, cap_flags;
    int32_t n_splits;        /* of all devices, that the graph was made for */
    bool best;               /* likewise, see tn_batch */
    tn_side_stats on_device; /* of one token, without KV */
    uint64_t hops;
    unsigned choices; /* bits 1 << device: its choices of experts are fetched */
} tn_recording;

/* How a batch goes through an FFN. */
typedef enum tn_way {
    TN_WAY_IN_PLACE, /* each tensor where it is */
    TN_WAY_DEVICE,   /* all on the device, what the host has being carried there */
    TN_WAY_BOTH      /* a part on the device, the rest on the host */
} tn_way;

typedef enum tn_exec_mode {
    TN_EXEC_DIRECT,
    TN_EXEC_RECORD, /* between begin and head of a token */
    TN_EXEC_REPLAY
} tn_exec_mode;

struct tn_exec {
    const tn_model *m;
    const tn_kv *kv;
    tn_host host;
    tn_dev devs[TN_DEVICES]; /* one for each segment of the model */
    int32_t n_devs;
    tn_dev *dev;      /* the one at work on the running layer; NULL: there is none */
    tn_sides *sides;  /* [n_layers] */
    uint64_t version; /* of the boundary, that sides and recording are made for */
    tn_batch batch;
    int64_t n, pos0; /* rows still computed */
    tn_status status;
    tn_exec_mode mode;
    tn_recording rec;
    bool busy;               /* the device may still be at work on the batch before */
    unsigned valid[TN_ACTS]; /* bits 1 << side */
    unsigned normed;         /* sides whose `in` holds the normed input of the FFN */
    tn_way way;              /* of the running layer's FFN, see exec_batch.c */
    double host_part;        /* in which the host computes this part of its own, */
    int64_t cut;             /* neurons from this one on, */
    int64_t n_rows;          /* and the device so many rows of experts */
    uint64_t streamed_bytes;
    bool grouped;            /* the host has sorted the batch by expert */
    uint64_t experts_chosen, experts_there; /* in all, and of those on the device */
    uint64_t *experts;   /* [n_layers][n_expert] how often chosen; NULL: there are none */
    unsigned choices_coming; /* bits 1 << device: its choices are to be counted after the next
                                sync */
    int64_t head_first, head_rows;
    float *logits; /* where the head goes */
    tn_side_stats on_host, on_device;
    uint64_t hops;
    double join_wait_s;
};

/* ---- exec_join.c ----------------------------------------------------------------------------- */

/* exec_count.c. Counts what the host has just chosen for a layer; has the device's choices of the
 * batch fetched, when its last layer is done; counts them, once they are there. */
void tn_exec_count_here(tn_exec *x, int32_t layer);
void tn_exec_fetch_choices(tn_exec *x, int32_t layer);
void tn_exec_count_there(tn_exec *x);

/* exec_batch.c. Whether the projections of a layer whose attention is the host's are computed on
 * the device for the batch at hand; the projections then, and the residual sum after attention. */
bool tn_exec_projects_there(const tn_exec *x, int32_t layer);
void tn_exec_project_there(tn_exec *x, int32_t layer);
void tn_exec_attn_out_there(tn_exec *x, int32_t layer);

/* How the batch goes through a layer's FFN; and what the device does then: all of it,
 * or its part, whose sum is left in d->out. */
tn_way tn_exec_way(tn_exec *x, int32_t layer);
void tn_exec_batch_there(tn_exec *x, int32_t layer);

/* Does the host's work, or records it. */
void tn_exec_host(tn_exec *x, tn_host_op op, int32_t arg);
/* Notes in the recording that the caller may want to stop here. */
void tn_exec_record_poll(tn_exec *x);
/* Makes an activation valid on a side; notes that it was computed there, and is stale elsewhere. */
void tn_exec_need(tn_exec *x, tn_act a, tn_side side);
void tn_exec_wrote(tn_exec *x, tn_act a, tn_side side);
/* Moves count elements of 4 bytes. The host's later work, or the device's, sees them. */
void tn_exec_to_host(tn_exec *x, void *to, const void *from, int64_t count);
void tn_exec_to_device(tn_exec *x, void *to, const void *from, int64_t count);
/* Waits for the devices; the sticky status. */
tn_status tn_exec_sync(tn_exec *x);
/* Takes over the first failure of a device. */
void tn_exec_look(tn_exec *x);
/* What follows is for another device, where the residual stream goes unless the host has it. */
void tn_exec_hand_over(tn_exec *x, tn_dev *to);

tn_status tn_exec_join_init(tn_exec *x, tn_error *err);
void tn_exec_join_free(tn_exec *x);
/* Chooses the mode of the batch that begins, and starts recording where that is due. */
void tn_exec_choose_mode(tn_exec *x);
/* Ends a recording that failed. */
void tn_exec_abandon(tn_exec *x);
/* Makes a recording invalid. */
void tn_exec_forget(tn_exec *x);
/* Ends a recording with the token complete. */
void tn_exec_recorded(tn_exec *x);
/* Runs the recorded token. Whatever goes wrong, no side is left waiting. */
void tn_exec_replay(tn_exec *x);

#endif
