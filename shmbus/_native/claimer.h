/* Claimer: what claimer.c (the Python type) and claims.c (what it does) share. */
#ifndef SHMBUS_CLAIMER_H
#define SHMBUS_CLAIMER_H

#include "receiver.h"

typedef struct source {
    Ring *ring;
    PyObject *publisher;
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
    held *held;
    Py_ssize_t held_count, handed, held_size;
} Claimer;

void claims_drop_source(Claimer *self, Py_ssize_t index);
source *claims_source(Claimer *self, uint64_t ring_id);
void claims_drop_all(Claimer *self);
int claims_settle(Claimer *self, source *s, bool dry);
int claims_ack(Claimer *self);
int claims_next(Claimer *self);
PyObject *claims_decode(Claimer *self);
void claims_take_off(Claimer *self);

#endif
