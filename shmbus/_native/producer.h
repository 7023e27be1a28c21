/* Producer: what producer.c (the Python type), encoding.c (what it writes) and publish.c (where) share. */
#ifndef SHMBUS_PRODUCER_H
#define SHMBUS_PRODUCER_H

#include "record.h"

typedef struct roomy { /* of a ring that may shrink: since when it is mostly empty, and how full it was at most since */
    uint64_t since_ns, peak;
} roomy;

typedef struct group_out {
    Ring *ring;
    work_writer writer;
    wakers workers;
    uint64_t shown; /* sequence of the first record that its workers were not told of */
    unsigned line;
    bool fits;
    roomy roomy;
    PyObject *key; /* of its events, as keys.c takes it; NULL: it has none */
} group_out;

typedef struct sender { /* the span that sends an event, as `_note_in` is told of it */
    uint64_t trace[2], span, sampled;
} sender;

typedef struct Producer {
    PyObject_HEAD guard guard;
    bus_lines lines;
    PyObject *encode;          /* callable, or None for raw bytes */
    const RecordCodec *record; /* whose it is, NULL: another's; events are rows then */
    PyObject *into;            /* callable that encodes into a bytearray, or None */
    PyObject *scratch;         /* that bytearray; `scratch_busy` from the encoder's start until its bytes are written */
    PyObject *accepts;         /* tuple of exact types; empty: unchecked */
    PyObject *adopted;         /* list of weak references to further ones */
    PyObject *validate;        /* callable that every payload must pass, or None */
    PyObject *suspects;        /* tuple of bytes; an event whose payload has one of them must be `finite` */
    PyObject *finite;          /* callable, asked about such events */
    PyObject *type_error;
    Ring *ring;
    ring_writer writer;
    wakers subscribers;
    roomy roomy;
    uint64_t maximum;   /* bytes of a record that every ring can hold */
    uint64_t floor;     /* capacity below which no ring shrinks, 0: none does */
    uint64_t shrink_ns; /* how long it must have been mostly empty */
    group_out *groups;
    unsigned group_count;
    unsigned keyed;      /* of them, those with a key */
    unsigned changes;    /* of the groups */
    unsigned blocked[2]; /* threads and tasks that wait for room */
    unsigned flushing;   /* of them, those that wait for all to be received */
    uint64_t cared_ns;   /* CLOCK_REALTIME of the last look after the bus */
    uint64_t stamped_ns; /* time_ns of the last event */
    PyObject *who;       /* callable that tells who sends now, NULL: it is not traced; `notes` is open otherwise */
    int notes;
    bool routed, fits, scratch_busy;
    bool needy; /* the rings say that it needs room */
} Producer;

typedef struct rows { /* events that are encoded, one behind the other */
    unsigned char *bytes;
    size_t count, room;
} rows;

PyObject *encoding_foreign(PyObject *self, PyObject *event);
PyObject *encoding_refused(PyObject *self, PyObject *args);
int encoding_bytes(Producer *self, PyObject *payload, part *out);
PyObject *encoding_one(Producer *self, PyObject *event, uint64_t headers, bool mine);
PyObject *encoding_headers(Producer *self, PyObject *given);
PyObject *encoding_many(Producer *self, PyObject *events);
int encoding_row(Producer *self, PyObject *event, uint64_t headers, unsigned char *row);
int encoding_rows(Producer *self, PyObject *events, rows *out);
int encoding_rows_given(Producer *self, PyObject *given, Py_buffer *view);

/* The lanes of the events of one call, in each group that has a key: found before anything of it is written, and again when
 * the groups have changed. */
typedef struct lanes_of {
    union {
        PyObject *event;
        PyObject *events;          /* a list or tuple */
        const unsigned char *rows; /* of a record topic */
    };
    enum { OF_NOTHING, OF_EVENT, OF_EVENTS, OF_ROWS } of; /* which of them; of nothing no key is to be had */
    unsigned groups, changes;
    Py_ssize_t total, at; /* how many, and which one is next */
    uint16_t *lane;       /* by event and group; NULL: not found yet */
} lanes_of;

int keys_find(Producer *self, lanes_of *lanes);
int keys_check(PyObject *key);

static inline void keys_drop(const lanes_of *lanes) {
    if (RARELY(lanes->lane))
        PyMem_Free(lanes->lane);
}

static inline unsigned keys_lane(const lanes_of *lanes, unsigned group) {
    return lanes->lane[(size_t)lanes->at * lanes->groups + group];
}

static inline bool keys_known(const Producer *self, const lanes_of *lanes) {
    return !self->keyed || (lanes->lane && lanes->changes == self->changes);
}

int notes_ask(Producer *self, sender *by);
void notes_take(Producer *self, const sender *by);
void notes_drop(Producer *self);
PyObject *producer_note_in(PyObject *object, PyObject *args);
PyObject *producer_refuse(PyObject *object, PyObject *unused);
int publish_reserve(Producer *self, uint64_t length);
void producer_content(Producer *self);
PyObject *producer_publish(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *producer_publish_many(PyObject *object, PyObject *events);
PyObject *producer_encode(PyObject *object, PyObject *args);
PyObject *producer_put(PyObject *object, PyObject *args);
PyObject *producer_encode_many(PyObject *object, PyObject *events);
PyObject *producer_put_many(PyObject *object, PyObject *args);
PyObject *producer_publish_rows(PyObject *object, PyObject *rows);

#endif
