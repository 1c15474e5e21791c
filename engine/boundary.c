/* What of a model's FFNs is on the device, and how that follows the contexts. */
#include "boundary.h"
#include "engine.h"

#include <stdio.h>
#include <string.h>

enum {
    reserve_bytes = 64 << 20 /* left free where no limit was asked for */
};

typedef struct member {
    tn_kv *kv;
    int64_t cap;
} member;

/* What moves on the device of one segment. */
typedef struct edge {
    tn_device *d;
    tn_carrier *carrier; /* NULL: nothing does */
    uint64_t held;       /* bytes of what is there */
    uint64_t limit;      /* bytes that everything on the device may take */
} edge;

struct tn_boundary {
    tn_boundary *next; /* of the engine's */
    tn_model *m;
    const tn_placement *place;
    tn_plan plan;  /* a view of the placement's or of `again`, and may drop below its own units */
    tn_plan again; /* made with other rates than the placement's */
    tn_profile *refitted; /* these rates; NULL: none are needed yet */
    tn_drift drift;
    edge edges[TN_DEVICES]; /* of each segment */
    int32_t n_edges;
    int32_t *units, *want; /* [n_layers] on the device, and what a move aims at */
    void **memory;         /* [n_layers] gate, up and down; NULL: none */
    member *members;
    size_t n_members, cap_members;
    int64_t level; /* tokens; -1: look again */
    uint64_t version;
    int64_t n_units; /* that move, on either side */
    /* Written in the engine's turn, read at any time. */
    _Atomic int64_t units_there;
    _Atomic uint64_t dropped, promoted, replans;
};

/* ---- making ---------------------------------------------------------------------------------- */

static tn_status measure(edge *y, tn_error *err)
{
    tn_device_memory m;
    const tn_status s = y->d->api->memory(y->d, &m, err);
    if (s) return s;
    const uint64_t all = m.used_bytes + m.free_bytes;
    y->limit = m.limit_bytes;
    if (m.limit_bytes == SIZE_MAX) y->limit = all > reserve_bytes ? all - reserve_bytes : 0;
    return TN_OK;
}

static bool moves_in(const tn_model *m, int32_t first, int32_t end)
{
    for (int32_t l = first; l < end; l++)
        if (m->on_device.layers[l].moves) return true;
    return false;
}

static tn_status fill(tn_boundary *b, tn_error *err)
{
    const size_t n = (size_t)b->m->hp.n_layers;
    b->units = tn_alloc(b->m->a, n, sizeof *b->units);
    b->want = tn_alloc(b->m->a, n, sizeof *b->want);
    b->memory = tn_alloc(b->m->a, n, sizeof *b->memory);
    if (!b->units || !b->want || !b->memory)
        return tn_fail_nomem(err, n * sizeof *b->memory, "the elastic boundary");
    for (size_t l = 0; l < n; l++)
        if (b->m->on_device.layers[l].moves) b->n_units += b->place->shape.layer[l].n_units;
    b->n_edges = b->m->on_device.n_segments;
    tn_status s = TN_OK;
    for (int32_t i = 0; i < b->n_edges && !s; i++) {
        const tn_segment *y = &b->m->on_device.segment[i];
        b->edges[i].d = y->device;
        if (moves_in(b->m, y->first, y->end))
            s = tn_carrier_new(&b->edges[i].carrier, b->m, i, tn_carrier_capacity(b->m, y), err);
        if (!s) s = measure(&b->edges[i], err);
    }
    return s;
}

tn_status tn_boundary_new(tn_boundary **out, tn_model *m, const tn_placement *p, tn_error *err)
{
    *out = NULL;
    if (!moves_in(m, 0, m->hp.n_layers)) return TN_OK;
    tn_boundary *b = tn_alloc(m->a, 1, sizeof *b);
    if (!b) return tn_fail_nomem(err, sizeof *b, "the elastic boundary");
    b->m = m;
    b->place = p;
    b->plan = p->planned.plan;
    b->plan.dropping = true;
    b->level = -1;
    const tn_status s = fill(b, err);
    b->next = m->engine->boundaries;
    m->engine->boundaries = b;
    if (s)
        tn_boundary_free(b);
    else
        *out = b;
    return s;
}

void tn_boundary_free(tn_boundary *b)
{
    if (!b) return;
    const tn_allocator *a = b->m->a;
    tn_boundary **at = &b->m->engine->boundaries;
    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    for (int32_t l = 0; b->memory && l < b->m->hp.n_layers; l++) {
        tn_device *d = b->edges[tn_segment_of(&b->m->on_device, l)].d;
        if (b->memory[l]) d->api->free(d, b->memory[l]);
    }
    for (int32_t i = 0; i < b->n_edges; i++)
        tn_carrier_free(b->edges[i].carrier);
    tn_plan_free(&b->again, a);
    tn_free(a, b->refitted);
    tn_free(a, b->members);
    tn_free(a, b->memory);
    tn_free(a, b->want);
    tn_free(a, b->units);
    tn_free(a, b);
}

tn_status tn_boundary_join(tn_boundary *b, tn_kv *kv, int64_t cap, tn_error *err)
{
    if (!tn_grow(b->m->a, (void **)&b->members, &b->cap_members, b->n_members, b->n_members + 1,
                 sizeof *b->members))
        return tn_fail_nomem(err, sizeof *b->members, "the elastic boundary");
    b->members[b->n_members++] = (member){kv, cap};
    b->level = -1; /* the context's buffers are new on the device */
    return TN_OK;
}

void tn_boundary_leave(tn_boundary *b, tn_kv *kv)
{
    for (size_t i = 0; i < b->n_members; i++) {
        if (b->members[i].kv != kv) continue;
        b->members[i] = b->members[--b->n_members];
        b->level = -1;
        return;
    }
}

/* ---- bytes ----------------------------------------------------------------------------------- */

typedef struct ffn {
    tn_dweight gate, up, down;
    size_t bytes;
} ffn;

static int32_t segment_of(const tn_boundary *b, int32_t layer)
{
    return tn_segment_of(&b->m->on_device, layer);
}

/* The first units of a layer as they lie at base. */
static ffn lay_out(const tn_boundary *b, int32_t l, int32_t units, char *base)
{
    const tn_hparams *hp = &b->m->hp;
    const tn_layer *y = &b->m->layers[l];
    const tn_shape_layer *z = &b->place->shape.layer[l];
    const bool whole = units == z->n_units;
    const int64_t experts = hp->n_expert ? units : 1;
    const int64_t neurons = whole || hp->n_expert ? hp->n_ff : (int64_t)units * z->granule;
    const int64_t rows = experts * neurons, down_rows = experts * hp->n_embd;
    const size_t gate = tn_dweight_bytes(y->ffn_gate.type, rows, hp->n_embd);
    const size_t up = tn_dweight_bytes(y->ffn_up.type, rows, hp->n_embd);
    ffn f = {.bytes = gate + up + tn_dweight_bytes(y->ffn_down.type, down_rows, neurons)};
    if (!base) return f;
    f.gate = tn_dweight_at(base, y->ffn_gate.type, rows, hp->n_embd);
    f.up = tn_dweight_at(base + gate, y->ffn_up.type, rows, hp->n_embd);
    f.down = tn_dweight_at(base + gate + up, y->ffn_down.type, down_rows, neurons);
    return f;
}

static uint64_t bytes_of(const tn_boundary *b, int32_t l, int32_t units)
{
    return units ? lay_out(b, l, units, NULL).bytes : 0;
}

static int64_t pages(const tn_kv *kv, int64_t positions)
{
    return (positions + kv->page_size - 1) / kv->page_size;
}

/* Tokens live in all contexts, in whole pages, and what they may hold. */
static int64_t live_tokens(const tn_boundary *b, int64_t *cap)
{
    int64_t live = 0;
    *cap = 0;
    for (size_t i = 0; i < b->n_members; i++) {
        const member *m = &b->members[i];
        live += pages(m->kv, tn_kv_live(m->kv)) * m->kv->page_size;
        *cap += pages(m->kv, m->cap) * m->kv->page_size;
    }
    return live;
}

/* Pages of positions that room is kept for anyhow: what is live or still held. */
static size_t pages_kept(const tn_kv *kv, int32_t segment)
{
    const size_t live = (size_t)pages(kv, tn_kv_live(kv)), now = kv->dev[segment].n_pages;
    return live > now ? live : now;
}

/* Bytes of KV of a segment that room is kept for at a level: what is live or still held, and as
 * many pages as bring it to the level, whichever context they go to. */
static uint64_t kv_bytes(const tn_boundary *b, int32_t segment, int64_t level)
{
    uint64_t bytes = 0, most = 0, dearest = 0; /* most: of layers with windows; dearest: per
                                                  position */
    int64_t held = 0;
    for (size_t i = 0; i < b->n_members; i++) {
        const tn_kv *kv = b->members[i].kv;
        const size_t n = pages_kept(kv, segment);
        bytes += tn_kv_device_pages_bytes(kv, segment, n);
        held += (int64_t)n * kv->page_size;
    }
    const int64_t more = level > held ? level - held : 0;
    for (size_t i = 0; i < b->n_members; i++) {
        const tn_kv *kv = b->members[i].kv;
        const tn_kv_device *d = &kv->dev[segment];
        const size_t n = pages_kept(kv, segment), size = (size_t)kv->page_size;
        const uint64_t each = (d->page_bytes[TN_KV_GLOBAL] + size - 1) / size;
        const size_t then = tn_kv_held(kv, TN_KV_LOCAL, n + (size_t)pages(kv, more));
        most += (uint64_t)(then - tn_kv_held(kv, TN_KV_LOCAL, n)) * d->page_bytes[TN_KV_LOCAL];
        if (each > dearest) dearest = each;
    }
    return bytes + most + (uint64_t)more * dearest;
}

static uint64_t kv_held(const tn_boundary *b, int32_t segment)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < b->n_members; i++) {
        const tn_kv *kv = b->members[i].kv;
        bytes += tn_kv_device_pages_bytes(kv, segment, kv->dev[segment].n_pages);
    }
    return bytes;
}

/* Bytes of a segment's units, were all of them on the device. */
static uint64_t movable(const tn_boundary *b, int32_t segment)
{
    const tn_segment *y = &b->m->on_device.segment[segment];
    uint64_t bytes = 0;
    for (int32_t l = y->first; l < y->end; l++)
        if (b->m->on_device.layers[l].moves)
            bytes += bytes_of(b, l, b->place->shape.layer[l].n_units);
    return bytes;
}

/* Other models with contexts on the same device: the bytes of their units now and were all there,
 * and of KV that they may still ask for at their levels. */
typedef struct neighbours {
    uint64_t held, movable, kv;
} neighbours;

static neighbours look_around(const tn_boundary *b, const tn_device *d)
{
    neighbours n = {0, 0, 0};
    for (const tn_boundary *o = b->m->engine->boundaries; o; o = o->next)
        for (int32_t i = 0; i < o->n_edges && o != b && o->n_members; i++) {
            if (o->edges[i].d != d) continue;
            n.held += o->edges[i].held;
            n.movable += movable(o, i);
            n.kv += kv_bytes(o, i, o->level) - kv_held(o, i);
        }
    return n;
}

/* Bytes that a segment's units may take at a level: what is left to all models' units, in
 * proportion to what they have. */
static tn_status room_at(const tn_boundary *b, int32_t segment, int64_t level, uint64_t *room,
                         tn_error *err)
{
    const edge *y = &b->edges[segment];
    const neighbours n = look_around(b, y->d);
    tn_device_memory m;
    const tn_status s = y->d->api->memory(y->d, &m, err);
    if (s) return s;
    const uint64_t other = m.used_bytes - y->held - n.held - kv_held(b, segment) +
                           kv_bytes(b, segment, level) + n.kv;
    const uint64_t left = y->limit > other ? y->limit - other : 0, mine = movable(b, segment);
    *room = n.movable ? (uint64_t)((double)left * (double)mine / (double)(mine + n.movable)) : left;
    return TN_OK;
}

/* ---- choosing -------------------------------------------------------------------------------- */

static const tn_profile *machine(const tn_boundary *b)
{
    return b->refitted ? b->refitted : &b->place->profile;
}

/* want = the plan's units in room[segment] bytes; bytes[segment]: what they take as they lie on the
 * device. */
static tn_status want_in(tn_boundary *b, const uint64_t room[TN_DEVICES],
                         uint64_t bytes[TN_DEVICES], tn_error *err)
{
    const tn_placement *p = b->place;
    uint64_t rooms[TN_MAX_DEVICES] = {0};
    for (int32_t i = 0; i < b->n_edges; i++)
        rooms[b->m->on_device.segment[i].index] = room[i];
    const tn_status s = tn_plan_boundary_in(&b->plan, &p->shape, machine(b), &p->planned.c, rooms,
                                            b->want, b->m->a, err);
    memset(bytes, 0, TN_DEVICES * sizeof *bytes);
    for (int32_t l = 0; l < b->m->hp.n_layers && !s; l++)
        if (b->m->on_device.layers[l].moves) bytes[segment_of(b, l)] += bytes_of(b, l, b->want[l]);
    return s;
}

/* Of layers that are on the device for good, because the host does not have them. */
static uint64_t settled_bytes(const tn_boundary *b, const tn_segment *y)
{
    const tn_placement *p = b->place;
    uint64_t bytes = 0;
    for (int32_t l = y->first; l < y->end; l++)
        if (tn_placement_free(p, l) && !tn_placement_moves(p, l))
            bytes += p->shape.layer[l].ffn_bytes;
    return bytes;
}

/* The plan counts bytes of the file, and would drop what has settled; so it may have to be asked
 * for a little less than there is. */
static tn_status choose(tn_boundary *b, int64_t level, tn_error *err)
{
    uint64_t room[TN_DEVICES] = {0}, ask[TN_DEVICES] = {0}, bytes[TN_DEVICES] = {0};
    tn_status s = TN_OK;
    for (int32_t i = 0; i < b->n_edges && !s; i++) {
        s = room_at(b, i, level, &room[i], err);
        ask[i] = room[i] + settled_bytes(b, &b->m->on_device.segment[i]);
    }
    for (bool again = true; !s && again;) {
        s = want_in(b, ask, bytes, err);
        again = false;
        for (int32_t i = 0; i < b->n_edges && !s; i++) {
            if (bytes[i] <= room[i] || ask[i] == 0) continue;
            const uint64_t over = bytes[i] - room[i];
            ask[i] = ask[i] > over ? ask[i] - over : 0;
            again = true;
        }
    }
    return s;
}

/* ---- moving ---------------------------------------------------------------------------------- */

static void drop(tn_boundary *b, int32_t l)
{
    edge *at = &b->edges[segment_of(b, l)];
    tn_layer_device *y = &b->m->on_device.layers[l];
    at->held -= bytes_of(b, l, b->units[l]);
    at->d->api->free(at->d, b->memory[l]);
    b->memory[l] = NULL;
    b->units_there -= b->units[l];
    b->units[l] = 0;
    y->ffn_gate = y->ffn_up = y->ffn_down = (tn_dweight){0};
    b->version++;
}

static tn_status upload(tn_boundary *b, int32_t l, int32_t units, const ffn *f, tn_error *err)
{
    const tn_hparams *hp = &b->m->hp;
    const tn_layer *y = &b->m->layers[l];
    const tn_weight *const from[3] = {&y->ffn_gate, &y->ffn_up, &y->ffn_down};
    const tn_dweight *const to[3] = {&f->gate, &f->up, &f->down};
    tn_carrier *carrier = b->edges[segment_of(b, l)].carrier;
    tn_status s = TN_OK;
    for (int i = 0; i < 3 && !s; i++) {
        if (!hp->n_expert) s = tn_carrier_carry(carrier, to[i], from[i], err);
        const int64_t rows = i < 2 ? hp->n_ff : hp->n_embd;
        for (int32_t e = 0; hp->n_expert && e < units && !s; e++) {
            const tn_weight expert = tn_expert(from[i], tn_expert_at(y, e), rows);
            const tn_dweight part = tn_dweight_rows(to[i], e * rows, rows);
            s = tn_carrier_carry(carrier, &part, &expert, err);
        }
    }
    return s;
}

/* A layer of which nothing is on the device; it stays so where memory is short after all. */
static tn_status promote(tn_boundary *b, int32_t l, int32_t units, tn_error *err)
{
    edge *at = &b->edges[segment_of(b, l)];
    tn_device *d = at->d;
    tn_layer_device *y = &b->m->on_device.layers[l];
    void *memory;
    if (d->api->alloc(d, bytes_of(b, l, units), "moving weights", &memory, NULL)) return TN_OK;
    const ffn f = lay_out(b, l, units, memory);
    const tn_status s = upload(b, l, units, &f, err);
    if (s) {
        d->api->free(d, memory);
        return s;
    }
    b->memory[l] = memory;
    at->held += f.bytes;
    b->units[l] = units;
    b->units_there += units;
    y->ffn_gate = f.gate;
    y->ffn_up = f.up;
    y->ffn_down = f.down;
    b->version++;
    return TN_OK;
}

static void tell(const tn_boundary *b, const char *why, int32_t l, int32_t before)
{
    tn_engine_log(b->m->engine, TN_LOG_INFO,
                  "boundary: %s: layer %d has %d of %d %s on the device, had %d", why, l,
                  b->units[l], b->place->shape.layer[l].n_units,
                  b->m->hp.n_expert ? "experts" : "slabs", before);
}

static tn_status move_layer(tn_boundary *b, int32_t l, int64_t live, tn_error *err)
{
    char why[50];
    const int32_t before = b->units[l], after = b->want[l];
    if (before) drop(b, l);
    const tn_status s = after ? promote(b, l, after, err) : TN_OK;
    const int32_t now = b->units[l];
    if (now < before)
        b->dropped += (uint64_t)(before - now);
    else
        b->promoted += (uint64_t)(now - before);
    snprintf(why, sizeof why, "%lld tokens live", (long long)live);
    tell(b, why, l, before);
    return s;
}

/* What shrinks goes first, and makes room for what grows. */
static tn_status apply(tn_boundary *b, int64_t live, tn_error *err)
{
    tn_status s = TN_OK;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t l = 0; l < b->m->hp.n_layers && !s; l++) {
            if (!b->m->on_device.layers[l].moves || b->want[l] == b->units[l]) continue;
            if ((b->want[l] < b->units[l]) == (pass == 0)) s = move_layer(b, l, live, err);
        }
    return s;
}

/* Whether the level is another for so many tokens; *level receives it. */
static bool new_level(const tn_boundary *b, int64_t live, int64_t cap, int64_t *level)
{
    const int64_t page = b->members[0].kv->page_size;
    *level = tn_plan_level(&b->plan, page, cap, live);
    return b->level < 0 || *level > b->level ||
           *level + tn_plan_level_step(page, cap) < b->level;
}

/* Whether what is to be at a level fits beside what other models have at the moment: they may have
 * taken more than is their part now. */
static tn_status fits(const tn_boundary *b, int64_t level, bool *yes, tn_error *err)
{
    tn_status s = TN_OK;
    *yes = true;
    for (int32_t i = 0; i < b->n_edges && !s; i++) {
        const edge *y = &b->edges[i];
        const tn_segment *z = &b->m->on_device.segment[i];
        tn_device_memory m;
        s = y->d->api->memory(y->d, &m, err);
        if (s) return s;
        uint64_t then = m.used_bytes - y->held + kv_bytes(b, i, level) - kv_held(b, i);
        for (int32_t l = z->first; l < z->end; l++)
            if (b->m->on_device.layers[l].moves) then += bytes_of(b, l, b->want[l]);
        *yes &= then <= y->limit;
    }
    return s;
}

tn_status tn_boundary_move(tn_boundary *b, tn_error *err)
{
    int64_t cap, level;
    if (!b->n_members || b->m->engine->arriving) return TN_OK;
    const int64_t live = live_tokens(b, &cap);
    if (!new_level(b, live, cap, &level)) return TN_OK;
    for (size_t i = 0; i < b->n_members; i++)
        tn_kv_trim(b->members[i].kv);
    bool room = true;
    tn_status s = choose(b, level, err);
    if (!s) s = fits(b, level, &room, err);
    if (!room) tn_boundary_give_way(b->m->engine, b);
    if (!s) s = apply(b, live, err);
    b->level = s ? -1 : level;
    b->drift = (tn_drift){0}; /* a window is of one placement */
    return s;
}

bool tn_boundary_clear(tn_boundary *b, int32_t short_of)
{
    edge *y = short_of < 0 ? NULL : &b->edges[short_of];
    bool any = false;
    tn_device_memory m;
    if (y && y->d->api->memory(y->d, &m, NULL) == TN_OK && m.used_bytes < y->limit)
        y->limit = m.used_bytes;
    for (int32_t l = 0; l < b->m->hp.n_layers; l++) {
        const int32_t before = b->units[l];
        if (!before) continue;
        b->dropped += (uint64_t)before;
        drop(b, l);
        tell(b, "memory is short for something else", l, before);
        any = true;
    }
    b->level = -1;
    return any;
}

bool tn_boundary_give_way(tn_engine *e, const tn_boundary *except)
{
    bool any = false;
    for (tn_boundary *b = e->boundaries; b; b = b->next)
        if (b != except) any |= tn_boundary_clear(b, -1);
    return any;
}

void tn_boundary_make_room(tn_engine *e)
{
    pthread_mutex_lock(&e->turn);
    e->arriving++;
    tn_boundary_give_way(e, NULL);
    pthread_mutex_unlock(&e->turn);
}

void tn_boundary_has_room(tn_engine *e)
{
    pthread_mutex_lock(&e->turn);
    e->arriving--;
    pthread_mutex_unlock(&e->turn);
}

void tn_boundary_look_again(tn_engine *e)
{
    for (tn_boundary *b = e->boundaries; b; b = b->next)
        b->level = -1;
}

/* ---- drift ----------------------------------------------------------------------------------- */

tn_status tn_boundary_predict(const tn_boundary *b, int64_t depth, tn_token_time *t, tn_error *err)
{
    const tn_placement *p = b->place;
    return tn_plan_token(&b->plan, &p->shape, machine(b), &p->planned.c, depth, b->units,
                         &t->host_s, &t->total_s, b->m->a, err);
}

/* A copy of the machine's rates in which those of one side are slower by the factor. */
static tn_status refit(tn_boundary *b, tn_drift_verdict side, double factor, tn_error *err)
{
    b->refitted = tn_alloc(b->m->a, 1, sizeof *b->refitted);
    if (!b->refitted) return tn_fail_nomem(err, sizeof *b->refitted, "a profile");
    *b->refitted = b->place->profile;
    const int n = side == TN_DRIFT_HOST ? 1 : b->refitted->n_devices;
    for (int d = 0; d < n; d++) {
        tn_side_rates *r =
            side == TN_DRIFT_HOST ? &b->refitted->host.rate : &b->refitted->device[d].rate;
        for (int i = 0; i < TN_TYPE_COUNT; i++)
            r->matvec[i] /= factor;
        for (int i = 0; i < TN_KV_KINDS; i++)
            r->kv[i] /= factor;
        r->op_s *= factor;
    }
    return TN_OK;
}

/* The best plan with these rates, in which only what moves has moved. */
static tn_status plan_again(tn_boundary *b, tn_error *err)
{
    const tn_placement *p = b->place;
    bool *moves = tn_alloc(b->m->a, (size_t)p->shape.n_layers, sizeof *moves);
    if (!moves) return tn_fail_nomem(err, (size_t)p->shape.n_layers, "planning again");
    for (int32_t l = 0; l < p->shape.n_layers; l++)
        moves[l] = b->m->on_device.layers[l].moves;
    const tn_status s = tn_plan_again(&b->again, &b->plan, &p->shape, b->refitted, &p->planned.c,
                                      moves, b->m->a, err);
    tn_free(b->m->a, moves);
    if (s || !b->again.feasible || !b->again.elastic) return s;
    b->plan = b->again;
    b->plan.dropping = true;
    return TN_OK;
}

tn_status tn_boundary_note(tn_boundary *b, int64_t depth, tn_token_time measured, tn_error *err)
{
    tn_token_time predicted;
    double factor;
    if (b->plan.strategy == TN_PLAN_FILE || b->refitted ||
        !tn_drift_add(&b->drift, depth, measured)) return TN_OK;
    tn_status s = tn_boundary_predict(b, b->drift.depth / b->drift.tokens, &predicted, err);
    if (s) return s;
    const tn_drift_verdict side = tn_drift_judge(&b->drift, predicted, &factor);
    if (side == TN_DRIFT_NONE) return TN_OK;
    s = refit(b, side, factor, err);
    b->replans = b->refitted != NULL;
    if (!s) s = plan_again(b, err);
    if (s) return s;
    b->level = -1;
    tn_engine_log(
        b->m->engine, TN_LOG_INFO,
        "drift: over %d tokens the %s took %.2f times as long as predicted: its rates are "
        "refitted, and the plan is made again",
        (int)TN_DRIFT_TOKENS, side == TN_DRIFT_HOST ? "host" : "device", factor);
    return TN_OK;
}

/* ---- looking --------------------------------------------------------------------------------- */

uint64_t tn_boundary_version(const tn_boundary *b)
{
    return b->version;
}

tn_boundary_counts tn_boundary_count(const tn_boundary *b)
{
    return (tn_boundary_counts){.units = b->units_there,
                                .of = b->n_units,
                                .dropped = b->dropped,
                                .promoted = b->promoted,
                                .replans = b->replans};
}
