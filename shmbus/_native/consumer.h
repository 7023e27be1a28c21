/* Consumer: what consumer.c (the Python type) and consumer_rows.c (arrays) share. */
#ifndef SHMBUS_CONSUMER_H
#define SHMBUS_CONSUMER_H

#include "receiver.h"

#define TURN 64 /* events from one ring before the next gets its turn */

typedef struct source {
    Ring *ring;
    PyObject *publisher; /* its name */
    PyObject *origin;    /* what the ids of its events begin with */
    PyObject *pool;      /* NULL: not asked for; None: gone */
    ring_reader reader;
} source;

typedef struct Consumer {
    Receiver base;
    source *sources;
    Py_ssize_t count, current;
    Py_ssize_t retired; /* of them, at the front and in the order of their ids: read first, and let go of when dry */
    Py_ssize_t more;    /* true: there are retired rings that are not among them yet */
    int turn;
    bool latest;         /* the newest event of each ring alone */
    unsigned char *copy; /* of a lossy reader's record */
    uint64_t copy_size;
    row_run shown;     /* handed out in place, and consumed when the next is asked for; count 0: none */
    uint64_t shown_in; /* id of its ring */
} Consumer;

typedef struct found { /* one event, still unconsumed */
    source *source;
    record record;
    uint64_t body; /* of one with buffers: where the event begins */
} found;

Py_ssize_t consumer_index_of(const Consumer *self, uint64_t ring_id);
int consumer_settle(Consumer *self, source *s);
int consumer_find(Consumer *self, found *out);
void consumer_consume(Consumer *self, found *f);
PyObject *consumer_undecodable(Consumer *self, found *f);

source *consumer_settle_shown(Consumer *self);
PyObject *consumer_take_rows(Receiver *base);
PyObject *consumer_take_copies(Receiver *base);

/* What a reader of the newest event passes over is booked before that is consumed. */
static inline void consumer_skip(const found *f) {
    if (f->source->reader.latest)
        ring_skip(&f->source->reader, &f->record, realtime_ns());
}

/* Time to look after a waiting publisher: a quarter is free, or, for one that waits for it, all that we know of is
 * received. (Relaxed: the look that finds nothing comes soon, and the publisher's sleep is bounded.) */
static inline bool consumer_worth_settling(const source *s) {
    const ring_reader *r = &s->reader;
    return r->position - r->settled > r->view.capacity / 4 ||
           (r->position == r->tail && LOAD_RELAXED(&r->view.header->waiting) & WAITS_LAST);
}

#endif
