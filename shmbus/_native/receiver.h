/* Receiver: what Consumer (subscribers) and Claimer (workers) have in common: the guard, the wait, the methods. */
#ifndef SHMBUS_RECEIVER_H
#define SHMBUS_RECEIVER_H

#include "record.h"

typedef struct Receiver Receiver;

typedef PyObject *(*receiver_take)(Receiver *self); /* one event, Nothing, or NULL with an exception */

typedef struct asker { /* who asks for events: a task of an event loop, or a thread; see asker.c */
    uint64_t thread;   /* never used twice; 0 for a task */
    PyObject *task;    /* NULL for a thread */
} asker;

typedef struct call {   /* one that takes events */
    struct call *outer; /* in whose wait a signal handler has made this one */
    unsigned long attending;
    PyObject *ask; /* what _ask() has returned, NULL: it is asked now */
    asker by;
    uint64_t asked;     /* what was handed out before is done with */
    Py_ssize_t most;    /* events of a list, or of rows */
    receiver_take each; /* what a list is of */
    bool iterates;      /* by next() */
} call;

typedef struct receiver_kind {
    const char *name;             /* in messages: "subscriber", "worker" */
    int (*prepare)(Receiver *);   /* before anything is asked for: a worker acks what it handed out */
    receiver_take take;           /* an event */
    receiver_take take_message;   /* the tuple of which a Message is made */
    receiver_take take_rows;      /* Rows, in place where they stay until the next call */
    receiver_take take_copies;    /* Rows of their own */
    bool (*ready)(Receiver *);    /* something may be there; called without the GIL */
    uint64_t (*due)(Receiver *);  /* CLOCK_MONOTONIC when something will be, UINT64_MAX; called without the GIL */
    int (*end)(Receiver *);       /* nothing more will be asked for: a worker gives back what it claimed ahead */
    int (*pass_on)(Receiver *);   /* a wake-up that may have been ours is another one's */
    void (*drop_all)(Receiver *); /* let go of rings and memory */
} receiver_kind;

enum idle { IDLE_ADAPTIVE, IDLE_PARK, IDLE_SPIN };

typedef struct waiting { /* see wait.c */
    Py_buffer semaphore; /* a sem_t of the handle's own */
    word *parked;        /* NULL: no place to sleep */
    uint64_t bit;
    enum idle idle;
    bool crowded;
    uint64_t version;   /* of the document, at the last look after the bus */
    uint64_t care_ns;   /* CLOCK_MONOTONIC of the next one */
    uint64_t gap_ns;    /* smoothed: between the events on either side of a wait */
    uint64_t credit_ns; /* what a spin may take longer than usual */
    unsigned parks;
} waiting;

struct Receiver {
    PyObject_HEAD guard guard;
    bus_lines lines;
    const receiver_kind *kind; /* NULL before init */
    PyObject *decode;          /* callable, or None for raw bytes */
    const RecordCodec *record; /* whose it is, NULL: another's; payloads are rows then */
    PyObject *window;
    PyObject *buffers;       /* list that the decoder finds the buffers of an event in; NULL: the topic has no pool */
    PyObject *held_error;    /* met behind events that had to be returned first; the next call raises it */
    call *call;              /* the one that runs, NULL: none; one at a time */
    unsigned long attending; /* the thread whose signal handlers run in its wait; they may use the handle */
    uint64_t event_ns;       /* what the last event was stamped with */
    waiting waiting;
    latency_line *latency; /* NULL: nothing is sampled */
    bool waited;           /* the last look came back with nothing, after its spin */
    PyObject *seen;        /* callable, NULL: nobody wants to know of events before they are decoded */
};

int receiver_traverse(PyObject *object, visitproc visit, void *arg);
int receiver_clear(PyObject *object);
int receiver_init(Receiver *self, const receiver_kind *kind, PyObject *segment, unsigned topic, PyObject *decode);
int receiver_refresh(Receiver *self);
int receiver_check(Receiver *self);
RARE int receiver_open(Receiver *self, PyObject **pool, Ring *ring, const record *record, bool copy, uint64_t *body);
PyObject *receiver_flatten(Receiver *self, PyObject **pool, Ring *ring, const unsigned char *payload, uint64_t length);
RARE PyObject *receiver_decode(Receiver *self, Ring *ring, const record *record, uint64_t body, unsigned char **copy);
PyObject *receiver_buffers_into(PyObject *self, PyObject *list);
int receiver_wake_publisher(Receiver *self, Ring *ring, uint64_t waiting);
bool receiver_stale(const Receiver *self);
void receiver_sample(Receiver *self, const record *record);
PyObject *receiver_sample_into(PyObject *self, PyObject *line);
void receiver_tell(Receiver *self, const record *record, PyObject *publisher);

/* An event is about to be handed out for the first time. What follows a wait is always sampled, so that a slow topic is
 * seen whole; of a fast one it is one event in LATENCY_WEIGHT. */
static inline void receiver_handing_out(Receiver *self, const record *record) {
    if (self->waited || latency_chosen(record->sequence))
        receiver_sample(self, record);
}

PyObject *receiver_obtain(Receiver *self, call *c, receiver_take take, uint64_t deadline);
PyObject *receiver_nothing(PyObject *object, PyObject *timeout);

/* Rows: see rows.c. */
typedef struct Rows Rows;
Rows *rows_in_place(Ring *ring, const row_run *run, uint32_t size);
Rows *rows_new(uint32_t size, Py_ssize_t most);
unsigned char *rows_grow(Rows *self, uint64_t more);
uint64_t rows_count(const Rows *self);
PyObject *receiver_next_rows(PyObject *object, PyObject *most);
PyObject *receiver_poll_rows(PyObject *object, PyObject *args);
PyObject *receiver_take_rows(PyObject *object, PyObject *args);

int asker_now(asker *by, bool loops);
int asker_of(PyObject *ask, call *c);
PyObject *asker_ask(const asker *by, uint64_t asked);
bool asker_ended(const asker *by);
void asker_drop(asker *by);

PyObject *wait_for(Receiver *self, receiver_take take, uint64_t deadline);
int wait_care(Receiver *self);
int wait_deadline(PyObject *timeout, uint64_t *deadline);
PyObject *wait_bind(PyObject *object, PyObject *args);
void wait_unbind(Receiver *self);

extern PyTypeObject *receiver_base;

#endif
