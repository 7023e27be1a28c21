/* Claimer: what claimer.c (the Python type) and claims.c (what it does) share. */
#ifndef SHMBUS_CLAIMER_H
#define SHMBUS_CLAIMER_H

#include "lane.h"
#include "receiver.h"

typedef struct source {
    Ring *ring;
    PyObject *publisher; /* its name */
    PyObject *origin;    /* what the ids of its events begin with */
    PyObject *pool;      /* NULL: not asked for; None: gone */
    lane_ring seen;      /* of a group with a key: as the last look found it, */
    lane_memory *memory; /* and what it passed over */
} source;

#define MANY_FREED 16

typedef struct keyed { /* of a group with a key: see claims_lanes.c */
    Py_buffer buffer;
    lane_table *table;
    lane_look look;
    uint64_t epoch;           /* of the topic, when something was remembered of its rings */
    bool dry;                 /* the last look found nothing; what is there since tells `freed`, and the sources */
    unsigned due[MANY_FREED]; /* lanes that we have freed, and told nobody of */
    unsigned due_count;       /* MANY_FREED: more than that */
    bool many;                /* several became READY at once */
} keyed;

typedef struct held { /* a claim, and its ring, which it keeps whatever becomes of the source */
    Ring *ring;
    claim claim;
} held;

typedef struct handed { /* a claim that was handed out, and will be acked when `by` asks again */
    held held;
    asker by;
    uint64_t number;
} handed;

typedef struct Claimer {
    Receiver base;
    source *sources;
    Py_ssize_t count, current;
    Py_ssize_t retired; /* of them, at the front and in the order of their ids: claimed from first */
    Py_ssize_t more;    /* true: there are retired rings that are not among them yet */
    unsigned owner, generation, max_deliver, prefetch;
    bool oldest_first;   /* of all rings, not of each alone */
    bool expires;        /* others may take a claim that is held for too long: nothing is decoded in place */
    unsigned char *copy; /* of the record at `held[handed]`, then */
    uint64_t copy_size;
    keyed *keys; /* NULL: the group has no key */
    group_line *line;
    wakers siblings;
    held *held; /* [handed, held_count): claimed ahead; changed by the call that takes events alone */
    Py_ssize_t held_count, handed, held_size;
    struct handed *out; /* in the order in which they were handed out; changed by any thread */
    Py_ssize_t out_count, out_size;
    uint64_t handed_out; /* ever */
    bool in_loops;       /* tasks ask too; until one is seen, iteration looks for none: `for` begins with __iter__ */
} Claimer;

void claims_drop_source(Claimer *self, Py_ssize_t index);
source *claims_source(Claimer *self, uint64_t ring_id);
void claims_retire(Claimer *self, Py_ssize_t index);
Py_ssize_t claims_retired_left(const Claimer *self);
void claims_drop_all(Claimer *self);
int claims_settle(Claimer *self, Ring *ring, bool dry);
int claims_ack(Claimer *self, const asker *by, uint64_t asked);
int claims_ack_ended(Claimer *self);
int claims_hand_room(Claimer *self);
void claims_hand_out(Claimer *self);
int claims_end(Claimer *self);
int claims_next(Claimer *self);
int claims_pass_on(Claimer *self);
int claims_wake_all(Claimer *self);
bool claims_ready(const Claimer *self);
uint64_t claims_due(const Claimer *self);
PyObject *claims_decode(Claimer *self);
PyObject *claims_undecodable(Claimer *self);
int claims_held_room(Claimer *self);
PyObject *claims_take_rows(Receiver *base);
PyObject *claims_take_copies(Receiver *base);
PyObject *claims_flatten(Claimer *self, source *s, const record *r);
void claims_take_off(Claimer *self);

PyObject *claimer_key_lanes(PyObject *object, PyObject *segment);
void lanes_drop(Claimer *self);
int lanes_claim_some(Claimer *self, unsigned most);
bool lanes_ready(const Claimer *self);
int lanes_tell(Claimer *self);
RARE int lanes_done(Claimer *self, Ring *ring, const claim *c);
RARE int lanes_give_back(Claimer *self, Ring *ring, const claim *c, bool unseen);
RARE int lanes_delay(Claimer *self, Ring *ring, const claim *c, uint64_t due_ns, bool unseen, bool *first);

static inline int claims_done(Claimer *self, Ring *ring, const claim *c) {
    return RARELY(self->keys) ? lanes_done(self, ring, c) : work_done(&ring->view, c);
}

static inline int claims_give_back(Claimer *self, Ring *ring, const claim *c, bool unseen) {
    return RARELY(self->keys) ? lanes_give_back(self, ring, c, unseen) : work_give_back(&ring->view, c, unseen);
}

static inline int claims_delay(Claimer *self, Ring *ring, const claim *c, uint64_t due_ns, bool unseen, bool *first) {
    return RARELY(self->keys) ? lanes_delay(self, ring, c, due_ns, unseen, first)
                              : work_delay(&ring->view, c, due_ns, unseen, first);
}

/* The claim at `held[handed]` is about to be handed out; a redelivery is late by the death or the nack before it. */
static inline void claims_sample(Claimer *self) {
    const claim *c = &self->held[self->handed].claim;
    if (c->attempt == 1)
        receiver_handing_out(&self->base, &c->record);
}

#endif
