/* Claimer: what claimer.c (the Python type) and claims.c (what it does) share. */
#ifndef SHMBUS_CLAIMER_H
#define SHMBUS_CLAIMER_H

#include "receiver.h"

typedef struct source {
    Ring *ring;
    PyObject *publisher;
    PyObject *post; /* posts it */
    uint64_t acked; /* since the last look at a waiting publisher */
} source;

typedef struct held {
    uint64_t ring_id;
    claim claim;
} held;

typedef struct Claimer {
    Receiver base;
    source *sources;
    Py_ssize_t count, current;
    unsigned owner, generation, max_deliver, prefetch;
    group_line *line;
    wakers siblings;
    held *held;
    Py_ssize_t held_count, handed, held_size;
} Claimer;

void claims_drop_source(Claimer *self, Py_ssize_t index);
source *claims_source(Claimer *self, uint64_t ring_id);
void claims_drop_all(Claimer *self);
int claims_settle(Claimer *self, source *s, bool dry);
int claims_ack(Claimer *self);
int claims_next(Claimer *self);
int claims_pass_on(Claimer *self);
bool claims_ready(const Claimer *self);
PyObject *claims_decode(Claimer *self);
void claims_take_off(Claimer *self);

/* The claim at `held[handed]` is about to be handed out; a redelivery is late by the death or the nack before it. */
static inline void claims_sample(Claimer *self) {
    const claim *c = &self->held[self->handed].claim;
    if (c->attempt == 1)
        receiver_handing_out(&self->base, &c->record);
}

#endif
