/* Consumer: what Subscriber inherits. Looks into every ring of the topic in turn, decodes in place (reliable) or from a
 * copy (lossy), and moves the cursor once the event exists.
 *
 *   _refresh()                          membership of the topic changed
 *   _gap(publisher, first, last)        a lossy subscriber was overrun; may raise GapError
 *   _undecodable(publisher, n, error)   raises DecodeError; the event is consumed and counted already
 *   _wake_publisher(ring_id)            a publisher waits for the room that was freed
 *   _next_slow(), _receive_slow(t)      nothing there: wait
 *
 * One thread at a time: the busy flag turns a second one away. */
#include "python.h"

#define TURN 64 /* events from one ring before the next gets its turn */

typedef struct source {
    Ring *ring;
    PyObject *publisher; /* its name */
    ring_reader reader;
} source;

typedef struct Consumer {
    PyObject_HEAD guard guard;
    bus_lines lines;
    PyObject *decode; /* callable, or None for raw bytes */
    PyObject *window;
    source *sources;
    Py_ssize_t count, current;
    int turn;
    unsigned char *copy; /* of a lossy reader's record */
    uint64_t copy_size;
    uint64_t spin_ns;
    PyObject *held_error; /* met behind events that had to be returned first; the next call raises it */
} Consumer;

typedef struct found { /* one event, still unconsumed */
    source *source;
    record record;
} found;

/* ---- sources ---- */

static int consumer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment", "topic", "decode", NULL};
    Consumer *self = (Consumer *)object;
    PyObject *segment, *decode;
    unsigned topic;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIO", names, &segment, &topic, &decode))
        return -1;
    if (self->window) {
        PyErr_SetString(PyExc_RuntimeError, "a consumer is made once");
        return -1;
    }
    if (lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    self->guard = (guard){.fork_generation = fork_generation, .ready = true};
    self->decode = Py_NewRef(decode);
    self->window = window_new();
    return self->window ? 0 : -1;
}

static void drop_source(Consumer *self, Py_ssize_t index) {
    source gone = self->sources[index];
    self->sources[index] = self->sources[--self->count];
    self->current = 0;
    Py_DECREF((PyObject *)gone.ring);
    Py_DECREF(gone.publisher);
}

static void drop_all(Consumer *self) {
    while (self->count)
        drop_source(self, self->count - 1);
    PyMem_Free(self->sources);
    PyMem_Free(self->copy);
    self->sources = NULL;
    self->copy = NULL;
    self->copy_size = 0;
    lines_unbind(&self->lines);
}

static int consumer_traverse(PyObject *object, visitproc visit, void *arg) {
    Consumer *self = (Consumer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->decode);
    Py_VISIT(self->held_error);
    return 0;
}

static int consumer_clear(PyObject *object) {
    Consumer *self = (Consumer *)object;
    self->guard.closed = true;
    drop_all(self);
    Py_CLEAR(self->decode);
    Py_CLEAR(self->window);
    Py_CLEAR(self->held_error);
    return 0;
}

static void consumer_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    consumer_clear(object);
    object_free(object);
}

static PyObject *consumer_add_source(PyObject *object, PyObject *args) {
    Consumer *self = (Consumer *)object;
    PyObject *ring, *publisher;
    unsigned slot;
    if (!PyArg_ParseTuple(args, "OIU:_add_source", &ring, &slot, &publisher) ||
        !ring_checked(ring, RING_BROADCAST, true) || guard_check(&self->guard, "subscriber") < 0)
        return NULL;
    source *grown = PyMem_Realloc(self->sources, sizeof(source) * (size_t)(self->count + 1));
    if (!grown)
        return PyErr_NoMemory();
    self->sources = grown;
    source *s = &self->sources[self->count];
    if (slot >= MAX_SUBSCRIBERS)
        return PyErr_Format(PyExc_IndexError, "no slot %lu", slot);
    if (ring_reader_open(&s->reader, &((Ring *)ring)->view, (unsigned)slot) != RING_OK) {
        corrupt((Ring *)ring, "cursor is no boundary");
        return NULL;
    }
    s->ring = (Ring *)Py_NewRef(ring);
    s->publisher = Py_NewRef(publisher);
    self->count++;
    Py_RETURN_NONE;
}

/* _drop_source(ring_id): let go of a ring that the document no longer has. */
static PyObject *consumer_drop_source(PyObject *object, PyObject *arg) {
    Consumer *self = (Consumer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->sources[i].ring->id == id) {
            drop_source(self, i);
            break;
        }
    Py_RETURN_NONE;
}

static PyObject *consumer_seen_epoch(PyObject *object, PyObject *unused) {
    (void)unused;
    Consumer *self = (Consumer *)object;
    if (guard_check(&self->guard, "subscriber") < 0)
        return NULL;
    self->lines.epoch = LOAD_SEQ(&self->lines.topic->epoch); /* SYNC epoch: before the document is read */
    Py_RETURN_NONE;
}

/* ---- one event ---- */

static int settle(Consumer *self, source *s) {
    if (!ring_settle(&s->reader))
        return 0;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_wake_publisher", "K", (unsigned long long)s->ring->id);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Books an overrun and tells the subscriber. The hook may change the sources: the caller starts again. */
static int overrun(Consumer *self, source *s) {
    uint64_t first = s->reader.lost_first, last = s->reader.lost_last;
    ring_overrun(&s->reader, realtime_ns());
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_gap", "OKK", s->publisher, (unsigned long long)first,
                                           (unsigned long long)last);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int copy_room(Consumer *self, uint64_t length) {
    uint64_t needed = (length + 7) & ~(uint64_t)7;
    if (needed <= self->copy_size)
        return 0;
    unsigned char *grown = PyMem_Realloc(self->copy, needed);
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    self->copy = grown;
    self->copy_size = needed;
    return 0;
}

/* Peeks one source: 1 found, 0 nothing, -1 exception, 2 start again. */
static int peek(Consumer *self, source *s, found *out) {
    int status = ring_peek(&s->reader, &out->record);
    if (status == RING_OK && s->reader.lossy) {
        if (copy_room(self, out->record.length) < 0)
            return -1;
        status = ring_copy(&s->reader, &out->record, self->copy);
        out->record.body = self->copy;
    }
    out->source = s;
    if (status == RING_OK)
        return 1;
    if (status == RING_OVERRUN)
        return overrun(self, s) < 0 ? -1 : 2;
    return status == RING_EMPTY ? 0 : corrupt(s->ring, "a record or its header cannot be");
}

/* The next event in any ring: 1 found, 0 nothing, -1 exception. */
static int find(Consumer *self, found *out) {
    if (error_raise_held(&self->held_error))
        return -1;
restart:
    if (LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch) { /* SYNC epoch */
        if (call_hook((PyObject *)self, "_refresh") < 0 || guard_check(&self->guard, "subscriber") < 0)
            return -1;
    }
    for (Py_ssize_t looked = 0; looked < self->count; looked++) {
        if (self->turn >= TURN || looked) {
            self->turn = 0;
            self->current = (self->current + 1) % self->count;
        }
        source *s = &self->sources[self->current];
        int status = peek(self, s, out);
        if (status == 2)
            goto restart;
        if (status)
            return status;
        if (settle(self, s) < 0)
            return -1;
    }
    return 0;
}

static void consume(Consumer *self, found *f) {
    ring_reader *r = &f->source->reader;
    ring_advance(r, &f->record);
    self->turn++;
}

/* Decodes what was found. The sources may have moved while the decoder ran Python code: busy keeps them. */
static PyObject *decode(Consumer *self, found *f) {
    uint64_t padded = (f->record.headers + 7u) & ~(uint64_t)7;
    bool copied = f->source->reader.lossy;
    PyObject *event = window_decode(&self->window, self->decode, f->record.body + padded, f->record.length - padded,
                                    (PyObject *)f->source->ring, copied ? &self->copy : NULL);
    if (!self->copy)
        self->copy_size = 0;
    if (event || !PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return event;
    PyObject *error = error_take();
    uint64_t sequence = f->record.sequence;
    PyObject *publisher = Py_NewRef(f->source->publisher);
    ring_undecodable(&f->source->reader, &f->record, realtime_ns());
    PyObject *result =
        PyObject_CallMethod((PyObject *)self, "_undecodable", "OKO", publisher, (unsigned long long)sequence, error);
    if (result)
        PyErr_SetString(PyExc_SystemError, "_undecodable returned");
    Py_XDECREF(result);
    Py_DECREF(publisher);
    Py_XDECREF(error);
    return NULL;
}

static bool quarter_freed(const source *s) {
    return s->reader.position - s->reader.settled > s->ring->view.capacity / 4;
}

/* Finishes a method that entered the guard; a close() that came meanwhile is carried out now. */
static PyObject *leave(Consumer *self, PyObject *result) {
    self->guard.busy = false;
    if (self->guard.closed)
        drop_all(self);
    return result;
}

/* One event, Nothing, or NULL with an exception. */
static PyObject *take(Consumer *self) {
    found f;
    int status = find(self, &f);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *event = decode(self, &f);
    if (!event)
        return NULL;
    consume(self, &f);
    if (quarter_freed(f.source) && settle(self, f.source) < 0)
        PyErr_WriteUnraisable((PyObject *)self); /* the event is out: it must reach the caller */
    return event;
}

static bool something(Consumer *self) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (LOAD_ACQUIRE(&self->sources[i].ring->view.header->tail) != self->sources[i].reader.position)
            return true;
    return LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch;
}

/* Looks for up to `spin_ns` without the GIL; true if there may be something. */
static bool spin(Consumer *self) {
    bool seen = false;
    if (!self->spin_ns)
        return false;
    Py_BEGIN_ALLOW_THREADS;
    uint64_t until = monotonic_ns() + self->spin_ns;
    do {
        for (int i = 0; i < 32 && !(seen = something(self)) && !self->guard.closed; i++)
            cpu_relax();
    } while (!seen && !self->guard.closed && monotonic_ns() < until);
    Py_END_ALLOW_THREADS;
    return seen;
}

static PyObject *poll(PyObject *object, bool may_spin) {
    Consumer *self = (Consumer *)object;
    if (guard_enter(&self->guard, "subscriber") < 0)
        return NULL;
    PyObject *event = take(self);
    if (event == Nothing && may_spin && spin(self)) {
        Py_DECREF(event);
        event = guard_check(&self->guard, "subscriber") < 0 ? NULL : take(self);
    }
    return leave(self, event);
}

/* ---- methods ---- */

static PyObject *consumer_poll(PyObject *object, PyObject *unused) {
    (void)unused;
    return poll(object, true);
}

static PyObject *try_receive(PyObject *object, PyObject *unused) {
    (void)unused;
    PyObject *event = poll(object, false);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    Py_RETURN_NONE;
}

static PyObject *consumer_next(PyObject *object) {
    const guard *g = &((Consumer *)object)->guard;
    if ((g->closed || g->cancelled) && g->fork_generation == fork_generation)
        return NULL; /* the end of the iteration */
    PyObject *event = poll(object, true);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return PyObject_CallMethod(object, "_next_slow", NULL);
}

static PyObject *receive(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    PyObject *timeout = timeout_argument(args, count, names);
    if (!timeout)
        return NULL;
    PyObject *event = poll(object, true);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return PyObject_CallMethod(object, "_receive_slow", "O", timeout);
}

/* _take(maximum): a list of what is there now. An error in the middle waits for the next call, so that the events before
 * it reach the caller. */
static PyObject *consumer_take(PyObject *object, PyObject *arg) {
    Consumer *self = (Consumer *)object;
    Py_ssize_t maximum = PyLong_AsSsize_t(arg);
    if (PyErr_Occurred() || guard_enter(&self->guard, "subscriber") < 0)
        return NULL;
    PyObject *list = PyList_New(0);
    while (list && PyList_Size(list) < maximum) {
        PyObject *event = take(self);
        if (!event || event == Nothing || PyList_Append(list, event) < 0) {
            Py_XDECREF(event);
            break;
        }
        Py_DECREF(event);
    }
    if (PyErr_Occurred() && list && PyList_Size(list))
        error_hold(&self->held_error);
    else if (PyErr_Occurred())
        Py_CLEAR(list);
    return leave(self, list);
}

/* _poll_message(): (event, sequence, publisher, time_ns, headers or None), or Nothing. */
static PyObject *consumer_poll_message(PyObject *object, PyObject *unused) {
    (void)unused;
    Consumer *self = (Consumer *)object;
    if (guard_enter(&self->guard, "subscriber") < 0)
        return NULL;
    found f;
    int status = find(self, &f);
    if (status == 0 && spin(self) && guard_check(&self->guard, "subscriber") == 0)
        status = find(self, &f);
    if (status <= 0)
        return leave(self, PyErr_Occurred() ? NULL : Py_NewRef(Nothing));
    PyObject *event = decode(self, &f), *result = NULL;
    if (event)
        result = Py_BuildValue("(NKOKy#)", event, (unsigned long long)f.record.sequence, f.source->publisher,
                               (unsigned long long)f.record.time_ns, f.record.body, (Py_ssize_t)f.record.headers);
    if (result) {
        consume(self, &f);
        if (quarter_freed(f.source) && settle(self, f.source) < 0)
            PyErr_WriteUnraisable(object);
    }
    return leave(self, result);
}

static PyObject *consumer_ready(PyObject *object, PyObject *unused) {
    (void)unused;
    Consumer *self = (Consumer *)object;
    if (guard_check(&self->guard, "subscriber") < 0)
        return NULL;
    return PyBool_FromLong(something(self));
}

/* _cancel(): iteration ends, in whatever thread it runs. */
static PyObject *consumer_cancel(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Consumer *)object)->guard.cancelled = true;
    Py_RETURN_NONE;
}

static PyObject *consumer_release(PyObject *object, PyObject *unused) {
    (void)unused;
    Consumer *self = (Consumer *)object;
    self->guard.closed = true;
    if (!self->guard.busy)
        drop_all(self);
    Py_RETURN_NONE;
}

static PyObject *consumer_closed(PyObject *object, void *which) {
    const guard *g = &((Consumer *)object)->guard;
    return PyBool_FromLong(which ? g->cancelled : g->closed);
}

static PyObject *consumer_get_spin(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Consumer *)object)->spin_ns);
}

static int consumer_set_spin(PyObject *object, PyObject *value, void *unused) {
    (void)unused;
    unsigned long long spin_ns = value ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    ((Consumer *)object)->spin_ns = spin_ns;
    return 0;
}

static PyGetSetDef getset[] = {{"closed", consumer_closed, NULL, "True after close().", NULL},
                               {"cancelled", consumer_closed, NULL, "True after cancel().", (void *)1},
                               {"_spin_ns", consumer_get_spin, consumer_set_spin, NULL, NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"try_receive", try_receive, METH_NOARGS, "try_receive(): the next event, or None."},
    {"receive", METHOD(receive), METH_FASTCALL | METH_KEYWORDS, "receive(timeout=None): the next event, or Empty."},
    {"_poll", consumer_poll, METH_NOARGS, NULL},
    {"_take", consumer_take, METH_O, NULL},
    {"_poll_message", consumer_poll_message, METH_NOARGS, NULL},
    {"_ready", consumer_ready, METH_NOARGS, NULL},
    {"_add_source", consumer_add_source, METH_VARARGS, NULL},
    {"_drop_source", consumer_drop_source, METH_O, NULL},
    {"_seen_epoch", consumer_seen_epoch, METH_NOARGS, NULL},
    {"_cancel", consumer_cancel, METH_NOARGS, NULL},
    {"_release", consumer_release, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_init, consumer_init},
                              {Py_tp_new, PyType_GenericNew},
                              {Py_tp_dealloc, consumer_dealloc},
                              {Py_tp_traverse, consumer_traverse},
                              {Py_tp_clear, consumer_clear},
                              {Py_tp_iter, PyObject_SelfIter},
                              {Py_tp_iternext, consumer_next},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, getset},
                              {Py_tp_doc, "The path of an event out of the rings of a topic."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Consumer",
                           .basicsize = sizeof(Consumer),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

int consumer_add(PyObject *module) { return type_add(module, &spec) ? 0 : -1; }
