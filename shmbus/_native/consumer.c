/* Consumer: what Subscriber inherits. Looks into every ring of the topic in turn, decodes in place (reliable) or from a
 * copy (lossy), and moves the cursor once the event exists.
 *
 *   _refresh()                          membership of the topic changed
 *   _gap(publisher, first, last)        a lossy subscriber was overrun; may raise GapError
 *   _undecodable(publisher, n, error)   raises DecodeError; the event is consumed and counted already
 *   _pool(ring_id)                      see unpack.c
 *   _wake_publisher(ring_id)            a publisher waits for the room that was freed; returns what posts it again
 *   _care(), _nothing(timeout)          see wait.c; raises Empty or ClosedError
 */
#include "consumer.h"

#include "pools.h"

/* ---- sources ---- */

static void drop_source(Consumer *self, Py_ssize_t index) {
    source gone = self->sources[index];
    memmove(&self->sources[index], &self->sources[index + 1], sizeof(source) * (size_t)(self->count - index - 1));
    self->count--;
    self->retired -= index < self->retired;
    self->current = 0;
    Py_DECREF((PyObject *)gone.ring);
    Py_DECREF(gone.publisher);
    Py_DECREF(gone.origin);
    Py_XDECREF(gone.pool);
}

static void drop_all(Receiver *base) {
    Consumer *self = (Consumer *)base;
    if (base->guard.fork_generation == fork_generation)
        consumer_settle_shown(self);
    while (self->count)
        drop_source(self, self->count - 1);
    PyMem_Free(self->sources);
    PyMem_Free(self->copy);
    self->sources = NULL;
    self->copy = NULL;
    self->copy_size = 0;
}

Py_ssize_t consumer_index_of(const Consumer *self, uint64_t ring_id) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->sources[i].ring->id == ring_id)
            return i;
    return -1;
}

/* Moves a source among those without a publisher, so that these are read in the order in which they were written. */
static void retire(Consumer *self, Py_ssize_t index) {
    source s = self->sources[index];
    Py_ssize_t at = self->retired;
    if (index < at)
        return;
    while (at > 0 && self->sources[at - 1].ring->id > s.ring->id)
        at--;
    memmove(&self->sources[at + 1], &self->sources[at], sizeof(source) * (size_t)(index - at));
    self->sources[at] = s;
    self->retired++;
    self->current = 0;
}

/* _add_source(ring, slot, publisher, retired=False, origin=""): false for a ring that was given up before we came to it. */
static PyObject *consumer_add_source(PyObject *object, PyObject *args) {
    Consumer *self = (Consumer *)object;
    PyObject *ring, *publisher, *origin = NULL;
    unsigned long slot;
    int retired = 0;
    if (!PyArg_ParseTuple(args, "OkU|pU:_add_source", &ring, &slot, &publisher, &retired, &origin) ||
        !ring_checked(ring, RING_BROADCAST, true) || receiver_check(&self->base) < 0)
        return NULL;
    if (consumer_index_of(self, ((Ring *)ring)->id) >= 0)
        Py_RETURN_TRUE; /* a refresh that was cut short has added it */
    source *grown = PyMem_Realloc(self->sources, sizeof(source) * (size_t)(self->count + 1));
    if (!grown)
        return PyErr_NoMemory();
    self->sources = grown;
    source *s = &self->sources[self->count];
    if (slot >= MAX_SUBSCRIBERS)
        return PyErr_Format(PyExc_IndexError, "no slot %lu", slot);
    int status = ring_reader_open(&s->reader, &((Ring *)ring)->view, (unsigned)slot);
    if (status == RING_LOST)
        Py_RETURN_FALSE;
    if (status != RING_OK) {
        corrupt((Ring *)ring, "cursor is no boundary");
        return NULL;
    }
    s->reader.latest = self->latest && s->reader.lossy;
    s->ring = (Ring *)Py_NewRef(ring);
    s->publisher = Py_NewRef(publisher);
    s->origin = Py_NewRef(origin ? origin : Py_None);
    s->pool = NULL;
    self->count++;
    if (retired)
        retire(self, self->count - 1);
    Py_RETURN_TRUE;
}

/* _drop_source(ring_id): let go of a ring that the document no longer has. */
static PyObject *consumer_drop_source(PyObject *object, PyObject *arg) {
    Consumer *self = (Consumer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t index = consumer_index_of(self, id);
    if (index >= 0)
        drop_source(self, index);
    Py_RETURN_NONE;
}

/* _retire_source(ring_id): its publisher is gone. */
static PyObject *consumer_retire_source(PyObject *object, PyObject *arg) {
    Consumer *self = (Consumer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t index = consumer_index_of(self, id);
    if (index >= 0)
        retire(self, index);
    Py_RETURN_NONE;
}

/* _retired_left(): how many retired rings are among the sources. */
static PyObject *consumer_retired_left(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromSsize_t(((Consumer *)object)->retired);
}

/* _more_retired(more): true has `_refresh` called again once those that are there are dry, before younger rings. */
static PyObject *consumer_more_retired(PyObject *object, PyObject *more) {
    ((Consumer *)object)->more = PyObject_IsTrue(more) > 0;
    Py_RETURN_NONE;
}

/* _regate(ring_id): from now on the ring holds what is not received yet; None, or (publisher, first, last) of what it has
 * lost before that, which is on the books. */
static PyObject *consumer_regate(PyObject *object, PyObject *arg) {
    Consumer *self = (Consumer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred() || receiver_check(&self->base) < 0)
        return NULL;
    Py_ssize_t index = consumer_index_of(self, id);
    source *s = index < 0 ? NULL : &self->sources[index];
    int status = s ? ring_regate(&s->reader) : RING_OK;
    if (status == RING_OK)
        Py_RETURN_NONE;
    if (status != RING_OVERRUN) {
        corrupt(s->ring, "oldest and intent cannot be");
        return NULL;
    }
    ring_overrun(&s->reader, realtime_ns());
    return Py_BuildValue("(OKK)", s->publisher, (unsigned long long)s->reader.lost_first,
                         (unsigned long long)s->reader.lost_last);
}

/* ---- one event ---- */

int consumer_settle(Consumer *self, source *s) {
    uint64_t waiting = ring_settle(&s->reader); /* SYNC room */
    return waiting ? receiver_wake_publisher(&self->base, s->ring, waiting) : 0;
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

/* Whether the publisher of the first retired ring has gone on to another one, and written there. */
static bool superseded(const Consumer *self) {
    for (Py_ssize_t i = 1; i < self->count; i++) {
        const source *s = &self->sources[i];
        if (PyUnicode_Check(s->origin) && PyUnicode_Compare(s->origin, self->sources[0].origin) == 0 &&
            LOAD_ACQUIRE(&s->ring->view.header->tail) > s->reader.position) /* SYNC tail */
            return true;
    }
    return false;
}

/* The next event in a ring whose publisher is gone, the oldest ring first: as peek, 0 when all of them are dry. What was
 * dry once stays so, and is let go of. */
static int find_retired(Consumer *self, found *out) {
    while (self->retired) {
        source *s = &self->sources[0];
        int status = peek(self, s, out);
        if (status == 1 && s->reader.latest && superseded(self))
            ring_supersede(&s->reader, &out->record, realtime_ns());
        else if (status)
            return status;
        if (s->reader.position != LOAD_ACQUIRE(&s->ring->view.header->tail)) /* SYNC tail */
            return 0; /* overrun while it looked: the next call looks again */
        if (consumer_settle(self, s) < 0)
            return -1;
        drop_source(self, 0);
    }
    if (!self->more)
        return 0;
    self->more = 0;
    self->base.lines.epoch = UINT64_MAX; /* the next ones, please */
    return 2;
}

/* The next event in any ring: 1 found, 0 nothing, -1 exception. */
int consumer_find(Consumer *self, found *out) {
    int status;
restart:
    if (receiver_refresh(&self->base) < 0)
        return -1;
    if (self->retired | self->more) {
        if ((status = find_retired(self, out)) == 2)
            goto restart;
        if (status)
            return status;
    }
    Py_ssize_t first = self->retired, active = self->count - first;
    for (Py_ssize_t looked = 0; looked < active; looked++) {
        if (self->turn >= TURN || looked) {
            self->turn = 0;
            self->current = self->current + 1 < active ? self->current + 1 : 0;
        }
        source *s = &self->sources[first + self->current];
        status = peek(self, s, out);
        if (status == 2)
            goto restart;
        if (status)
            return status;
        if (consumer_settle(self, s) < 0)
            return -1;
    }
    return 0;
}

/* Counts what was found, and does not decode, and raises what the hook says. */
PyObject *consumer_undecodable(Consumer *self, found *f) {
    PyObject *error = error_take();
    uint64_t sequence = f->record.sequence;
    consumer_skip(f);
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

/* Decodes what was found. The decoder may run Python code, but no other call of this handle: the sources stay. */
static PyObject *decode(Consumer *self, found *f) {
    if (self->base.seen)
        receiver_tell(&self->base, &f->record, f->source->publisher);
    uint64_t padded = (f->record.headers + 7u) & ~(uint64_t)7;
    unsigned char **copied = f->source->reader.lossy ? &self->copy : NULL;
    const unsigned char *payload = f->record.body + padded;
    uint64_t length = f->record.length - padded;
    PyObject *event = self->base.record ? record_decode_payload(self->base.record, payload, length)
                      : RARELY(f->record.flags & RECORD_POOLED)
                          ? receiver_decode(&self->base, f->source->ring, &f->record, f->body, copied)
                          : window_decode(&self->base.window, self->base.decode, payload, length,
                                          (PyObject *)f->source->ring, copied);
    if (!self->copy)
        self->copy_size = 0;
    if (event || !PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return event;
    return consumer_undecodable(self, f);
}

/* A publisher that waits for room in its pool waits for few events. */
static inline bool awaited(const found *f) {
    return RARELY(f->record.flags & RECORD_POOLED) && LOAD_RELAXED(&f->source->ring->view.header->waiting);
}

/* Consumes what was found; the event is out, so an error in waking a publisher waits for the next call. */
void consumer_consume(Consumer *self, found *f) {
    receiver_handing_out(&self->base, &f->record);
    consumer_skip(f);
    ring_advance(&f->source->reader, &f->record);
    self->base.event_ns = f->record.time_ns;
    self->turn++;
    if ((consumer_worth_settling(f->source) || awaited(f)) && consumer_settle(self, f->source) < 0)
        error_hold(&self->base.held_error);
}

static bool is_gone(const source *s, const record *r) {
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    if (!(r->flags & RECORD_POOLED) || !s->pool)
        return false;
    return s->pool == Py_None || pool_gone(&((Pool *)s->pool)->view, r->body + padded, (uint64_t)r->length - padded);
}

/* The buffers of what was found: 1; 0: they are gone, the event is on the books as overrun, and the next one is to be
 * looked for; -1. */
RARE static int open_buffers(Consumer *self, found *f) {
    source *s = f->source;
    int status = receiver_open(&self->base, &s->pool, s->ring, &f->record, s->reader.lossy, &f->body);
    if (status)
        return status;
    uint64_t first = f->record.sequence, last;
    do { /* what is gone behind it is one gap with it */
        last = f->record.sequence;
        ring_pass(&s->reader, &f->record);
        status = ring_peek(&s->reader, &f->record);
    } while (status == RING_OK && is_gone(s, &f->record));
    if (status != RING_OVERRUN) /* or it goes on with what the ring has lost */
        s->reader.lost_last = last;
    s->reader.lost_first = first;
    return overrun(self, s) < 0 ? -1 : 0;
}

/* The next event, with its buffers: as consumer_find. */
static inline __attribute__((always_inline)) int find_whole(Consumer *self, found *f) {
    int status;
    do
        status = consumer_find(self, f);
    while (status > 0 && RARELY(f->record.flags & RECORD_POOLED) && !(status = open_buffers(self, f)));
    return status;
}

/* ---- the kind ---- */

static int prepare(Receiver *base) {
    Consumer *self = (Consumer *)base;
    source *s = self->shown.count ? consumer_settle_shown(self) : NULL;
    return s && consumer_worth_settling(s) ? consumer_settle(self, s) : 0;
}

static PyObject *take(Receiver *base) {
    Consumer *self = (Consumer *)base;
    found f;
    int status = find_whole(self, &f);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *event = decode(self, &f);
    if (event)
        consumer_consume(self, &f);
    return event;
}

/* (event, sequence, publisher, time_ns, headers, origin), Nothing, or NULL. */
static PyObject *take_message(Receiver *base) {
    Consumer *self = (Consumer *)base;
    found f;
    int status = find_whole(self, &f);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *event = decode(self, &f), *result = NULL;
    if (event)
        result = Py_BuildValue("(NKOKy#O)", event, (unsigned long long)f.record.sequence, f.source->publisher,
                               (unsigned long long)f.record.time_ns, f.record.body, (Py_ssize_t)f.record.headers,
                               f.source->origin);
    if (result)
        consumer_consume(self, &f);
    return result;
}

static int end(Receiver *base) {
    (void)base;
    return 0;
}

static bool ready(Receiver *base) {
    Consumer *self = (Consumer *)base;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (LOAD_SEQ(&self->sources[i].ring->view.header->tail) != self->sources[i].reader.position)
            return true;
    return self->more || receiver_stale(base);
}

static uint64_t due(Receiver *base) {
    (void)base;
    return UINT64_MAX;
}

static int pass_on(Receiver *base) { /* nobody else can take what is ours */
    (void)base;
    return 0;
}

static const receiver_kind kind = {
    "subscriber", prepare, take,    take_message, consumer_take_rows, consumer_take_copies, ready,
    due,          end,     pass_on, drop_all};

static int consumer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment", "topic", "decode", "latest", NULL};
    PyObject *segment, *decode;
    unsigned topic;
    int latest = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIO|p", names, &segment, &topic, &decode, &latest))
        return -1;
    ((Consumer *)object)->latest = latest;
    return receiver_init((Receiver *)object, &kind, segment, topic, decode);
}

/* _ask(): as a worker has it; it is all the same who asks. */
static PyObject *consumer_ask(PyObject *object, PyObject *unused) {
    (void)object;
    (void)unused;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_ask", consumer_ask, METH_NOARGS, NULL},
    {"_add_source", consumer_add_source, METH_VARARGS, NULL},
    {"_drop_source", consumer_drop_source, METH_O, NULL},
    {"_retire_source", consumer_retire_source, METH_O, NULL},
    {"_regate", consumer_regate, METH_O, NULL},
    {"_retired_left", consumer_retired_left, METH_NOARGS, NULL},
    {"_more_retired", consumer_more_retired, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_init, consumer_init},
                              {Py_tp_new, PyType_GenericNew},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "The path of an event out of the rings of a topic."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Consumer",
                           .basicsize = sizeof(Consumer),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, /* garbage collection as in Receiver */
                           .slots = slots};

int consumer_add(PyObject *module) { return type_add(module, &spec, receiver_base) ? 0 : -1; }
