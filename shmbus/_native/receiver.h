/* Receiver: what Consumer (subscribers) and Claimer (workers) have in common: the guard, the wait, the methods. */
#ifndef SHMBUS_RECEIVER_H
#define SHMBUS_RECEIVER_H

#include "python.h"

typedef struct Receiver Receiver;

typedef PyObject *(*receiver_take)(Receiver *self); /* one event, Nothing, or NULL with an exception */

typedef struct receiver_kind {
    const char *name;             /* in messages: "subscriber", "worker" */
    int (*prepare)(Receiver *);   /* before anything is asked for: a worker acks what it handed out */
    receiver_take take;           /* an event */
    receiver_take take_message;   /* the tuple of which a Message is made */
    bool (*ready)(Receiver *);    /* something may be there; called without the GIL */
    void (*drop_all)(Receiver *); /* let go of rings and memory */
} receiver_kind;

struct Receiver {
    PyObject_HEAD guard guard;
    bus_lines lines;
    const receiver_kind *kind; /* NULL before init */
    PyObject *decode;          /* callable, or None for raw bytes */
    PyObject *window;
    PyObject *held_error; /* met behind events that had to be returned first; the next call raises it */
    uint64_t spin_ns;
};

int receiver_init(Receiver *self, const receiver_kind *kind, PyObject *segment, unsigned topic, PyObject *decode);
int receiver_refresh(Receiver *self);
int receiver_check(Receiver *self);
PyObject *receiver_enter(Receiver *self, receiver_take take);
int receiver_wake_publisher(Receiver *self, const Ring *ring);
bool receiver_stale(const Receiver *self);

extern PyTypeObject *receiver_base;

#endif
