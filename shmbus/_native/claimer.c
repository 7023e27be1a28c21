/* Claimer: what Worker inherits. Claims records of the group's rings, hands them out, and acks what was handed out when
 * the next one is asked for.
 *
 *   _refresh()                                            membership of the topic changed
 *   _exhausted(ring, n, word, attempt, time, publisher)   attempts are used up: dead-letter it, settle the claim
 *   _undecodable(same, error)                             dead-letter it, settle the claim, raise DecodeError
 *   _wake_publisher(ring_id)                              a publisher waits for the room that was freed
 *   _next_slow(), _receive_slow(t)                        nothing there: wait
 *
 * `held` lists what this worker claimed and did not pass on to a Message: first what was handed out, then what was
 * prefetched. A kill at any point leaves claim words with our slot and generation, which reclaim gives back. */
#include "python.h"

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
    PyObject_HEAD guard guard;
    bus_lines lines;
    PyObject *decode;
    PyObject *window;
    source *sources;
    Py_ssize_t count, current;
    unsigned owner, generation, max_deliver, prefetch;
    held *held;
    Py_ssize_t held_count, handed, held_size;
    uint64_t spin_ns;
    PyObject *held_error;
} Claimer;

/* ---- sources ---- */

static int claimer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment", "topic", "decode", "owner", "generation", "max_deliver", "prefetch", NULL};
    Claimer *self = (Claimer *)object;
    PyObject *segment, *decode;
    unsigned topic, owner, generation, max_deliver, prefetch;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOIIII", names, &segment, &topic, &decode, &owner, &generation,
                                     &max_deliver, &prefetch))
        return -1;
    if (self->window || owner >= MAX_WORKERS || !prefetch) {
        PyErr_SetString(PyExc_ValueError, "a claimer is made once, with a worker slot and prefetch >= 1");
        return -1;
    }
    if (lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    self->guard = (guard){.fork_generation = fork_generation};
    self->owner = owner;
    self->generation = generation;
    self->max_deliver = max_deliver;
    self->prefetch = prefetch;
    self->decode = Py_NewRef(decode);
    self->window = window_new();
    return self->window ? 0 : -1;
}

static void drop_source(Claimer *self, Py_ssize_t index) {
    source gone = self->sources[index];
    self->sources[index] = self->sources[--self->count];
    self->current = 0;
    Py_DECREF((PyObject *)gone.ring);
    Py_DECREF(gone.publisher);
}

static source *source_of(Claimer *self, uint64_t ring_id) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->sources[i].ring->id == ring_id)
            return &self->sources[i];
    return NULL;
}

/* Gives back everything that is still held; what was reclaimed meanwhile is no longer ours to give. */
static void give_back_all(Claimer *self) {
    if (self->guard.fork_generation == fork_generation)
        for (Py_ssize_t i = 0; i < self->held_count; i++) {
            source *s = source_of(self, self->held[i].ring_id);
            if (s)
                work_give_back(&s->ring->view, &self->held[i].claim);
        }
    self->held_count = self->handed = 0;
}

static void drop_all(Claimer *self) {
    give_back_all(self);
    while (self->count)
        drop_source(self, self->count - 1);
    PyMem_Free(self->sources);
    PyMem_Free(self->held);
    self->sources = NULL;
    self->held = NULL;
    self->held_size = 0;
    lines_unbind(&self->lines);
}

static int claimer_traverse(PyObject *object, visitproc visit, void *arg) {
    Claimer *self = (Claimer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->decode);
    Py_VISIT(self->held_error);
    return 0;
}

static int claimer_clear(PyObject *object) {
    Claimer *self = (Claimer *)object;
    self->guard.closed = true;
    drop_all(self);
    Py_CLEAR(self->decode);
    Py_CLEAR(self->window);
    Py_CLEAR(self->held_error);
    return 0;
}

static void claimer_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    claimer_clear(object);
    object_free(object);
}

static PyObject *claimer_add_source(PyObject *object, PyObject *args) {
    Claimer *self = (Claimer *)object;
    PyObject *ring, *publisher;
    if (!PyArg_ParseTuple(args, "OU:_add_source", &ring, &publisher) || !ring_checked(ring, RING_WORK, true) ||
        guard_check(&self->guard, "worker") < 0)
        return NULL;
    source *grown = PyMem_Realloc(self->sources, sizeof(source) * (size_t)(self->count + 1));
    if (!grown)
        return PyErr_NoMemory();
    self->sources = grown;
    self->sources[self->count++] = (source){.ring = (Ring *)Py_NewRef(ring), .publisher = Py_NewRef(publisher)};
    Py_RETURN_NONE;
}

static PyObject *claimer_drop_source(PyObject *object, PyObject *arg) {
    Claimer *self = (Claimer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    source *s = source_of(self, id);
    if (s)
        drop_source(self, s - self->sources);
    Py_RETURN_NONE;
}

static PyObject *claimer_seen_epoch(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    if (guard_check(&self->guard, "worker") < 0)
        return NULL;
    self->lines.epoch = LOAD_SEQ(&self->lines.topic->epoch); /* SYNC epoch: before the document is read */
    Py_RETURN_NONE;
}

/* ---- claims ---- */

/* Looks after a waiting publisher: always when nothing is left, and once a quarter of the records is acked. */
static int settle(Claimer *self, source *s, bool dry) {
    const ring_header *h = s->ring->view.header;
    if (!dry && s->acked * 4 < LOAD_RELAXED(&h->tail) - LOAD_RELAXED(&h->gate))
        return 0;
    s->acked = 0;
    if (!ring_release_publisher(&s->ring->view)) /* SYNC room */
        return 0;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_wake_publisher", "K", (unsigned long long)s->ring->id);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int lost(uint64_t sequence) {
    PyErr_Format(ReclaimedError, "event %llu was given to another worker: this one was taken for dead",
                 (unsigned long long)sequence);
    return -1;
}

/* Acks what was handed out. All of it, even if one was lost. */
static int ack_handed(Claimer *self) {
    int status = 0;
    Py_ssize_t handed = self->handed;
    self->handed = 0;
    for (Py_ssize_t i = 0; i < handed; i++) {
        source *s = source_of(self, self->held[i].ring_id);
        if (!s || work_done(&s->ring->view, &self->held[i].claim) != RING_OK)
            status = lost(self->held[i].claim.record.sequence);
        else
            s->acked++;
    }
    self->held_count -= handed;
    memmove(self->held, self->held + handed, sizeof(held) * (size_t)self->held_count);
    for (Py_ssize_t i = 0; handed && i < self->count && status == 0; i++)
        if (self->sources[i].acked)
            status = settle(self, &self->sources[i], false);
    return status;
}

static int held_room(Claimer *self) {
    if (self->held_count < self->held_size)
        return 0;
    Py_ssize_t size = self->held_size ? self->held_size * 2 : 16;
    held *grown = PyMem_Realloc(self->held, sizeof(held) * (size_t)size);
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    self->held = grown;
    self->held_size = size;
    return 0;
}

/* Claims up to `prefetch` records from one source: how many, or -1. */
static int claim_from(Claimer *self, source *s) {
    unsigned got = 0;
    while (got < self->prefetch) {
        if (held_room(self) < 0)
            return -1;
        held *h = &self->held[self->held_count];
        int status = work_claim(&s->ring->view, self->owner, self->generation, &h->claim);
        if (status == RING_EMPTY)
            break;
        if (status != RING_OK)
            return corrupt(s->ring, "a claimed record cannot be");
        h->ring_id = s->ring->id;
        self->held_count++;
        got++;
    }
    return (int)got;
}

static int refresh(Claimer *self) {
    if (LOAD_ACQUIRE(&self->lines.topic->epoch) == self->lines.epoch) /* SYNC epoch */
        return 0;
    return call_hook((PyObject *)self, "_refresh") < 0 ? -1 : guard_check(&self->guard, "worker");
}

/* Makes sure that something is prefetched: 1, 0 when there is nothing, -1. Each call begins with the next source. */
static int claim_some(Claimer *self) {
    if (self->held_count > self->handed)
        return 1;
    if (refresh(self) < 0)
        return -1;
    for (Py_ssize_t looked = 0; looked < self->count; looked++) {
        self->current = (self->current + 1) % self->count;
        source *s = &self->sources[self->current];
        int got = work_ready(&s->ring->view) ? claim_from(self, s) : 0;
        if (got)
            return got < 0 ? -1 : 1;
        if (s->acked && settle(self, s, true) < 0)
            return -1;
    }
    return 0;
}

/* Calls a hook with what there is to know about the claim at `held[handed]`, and takes the claim off the list: the hook
 * settles it. */
static int pass_on(Claimer *self, const char *hook, PyObject *error) {
    held h = self->held[self->handed];
    source *s = source_of(self, h.ring_id);
    self->held_count--;
    memmove(self->held + self->handed, self->held + self->handed + 1,
            sizeof(held) * (size_t)(self->held_count - self->handed));
    if (!s)
        return 0;
    PyObject *result =
        PyObject_CallMethod((PyObject *)self, hook, error ? "KKKIKOO" : "KKKIKO", (unsigned long long)h.ring_id,
                            (unsigned long long)h.claim.record.sequence, (unsigned long long)h.claim.word,
                            h.claim.attempt, (unsigned long long)h.claim.record.time_ns, s->publisher, error);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* The next claim that is to be handed out, at `held[handed]`: 1, 0 when there is nothing, -1. */
static int next_claim(Claimer *self) {
    if (error_raise_held(&self->held_error))
        return -1;
    for (;;) {
        int status = claim_some(self);
        if (status <= 0 || self->held[self->handed].claim.attempt <= self->max_deliver)
            return status;
        if (pass_on(self, "_exhausted", NULL) < 0)
            return -1;
    }
}

/* Decodes the claim at `held[handed]`. */
static PyObject *decode(Claimer *self) {
    const record *r = &self->held[self->handed].claim.record;
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    PyObject *event = window_decode(self->window, self->decode, r->body + padded, r->length - padded);
    if (event || !PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return event;
    PyObject *error = error_take();
    if (pass_on(self, "_undecodable", error) == 0)
        PyErr_SetString(PyExc_SystemError, "_undecodable returned");
    Py_XDECREF(error);
    return NULL;
}

static PyObject *leave(Claimer *self, PyObject *result) {
    self->guard.busy = false;
    if (self->guard.closed)
        drop_all(self);
    return result;
}

static bool something(Claimer *self) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (work_ready(&self->sources[i].ring->view))
            return true;
    return LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch;
}

static bool spin(Claimer *self) {
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

/* One event, Nothing, or NULL; the caller has acked what was handed out before. */
static PyObject *take(Claimer *self) {
    int status = next_claim(self);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *event = decode(self);
    if (event)
        self->handed++;
    return event;
}

static PyObject *poll(PyObject *object, bool may_spin) {
    Claimer *self = (Claimer *)object;
    if (guard_enter(&self->guard, "worker") < 0)
        return NULL;
    PyObject *event = ack_handed(self) < 0 ? NULL : take(self);
    if (event == Nothing && may_spin && spin(self)) {
        Py_DECREF(event);
        event = guard_check(&self->guard, "worker") < 0 ? NULL : take(self);
    }
    return leave(self, event);
}

/* ---- methods ---- */

static PyObject *claimer_poll(PyObject *object, PyObject *unused) {
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

static PyObject *claimer_next(PyObject *object) {
    const guard *g = &((Claimer *)object)->guard;
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

/* _take(maximum): a list of what is there now, all acked by the next call. An error in the middle waits for that call. */
static PyObject *claimer_take(PyObject *object, PyObject *arg) {
    Claimer *self = (Claimer *)object;
    Py_ssize_t maximum = PyLong_AsSsize_t(arg);
    if (PyErr_Occurred() || guard_enter(&self->guard, "worker") < 0)
        return NULL;
    PyObject *list = ack_handed(self) < 0 ? NULL : PyList_New(0);
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

/* _poll_message(): (event, sequence, publisher, time_ns, headers, attempt, ring_id, word), or Nothing. The claim is the
 * message's from now on. */
static PyObject *claimer_poll_message(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    if (guard_enter(&self->guard, "worker") < 0)
        return NULL;
    int status = ack_handed(self) < 0 ? -1 : next_claim(self);
    if (status == 0 && spin(self) && guard_check(&self->guard, "worker") == 0)
        status = next_claim(self);
    if (status <= 0)
        return leave(self, PyErr_Occurred() ? NULL : Py_NewRef(Nothing));
    PyObject *event = decode(self), *result = NULL;
    if (!event)
        return leave(self, NULL);
    held h = self->held[self->handed];
    source *s = source_of(self, h.ring_id);
    result = Py_BuildValue("(NKOKy#IKK)", event, (unsigned long long)h.claim.record.sequence,
                           s ? s->publisher : Py_None, (unsigned long long)h.claim.record.time_ns, h.claim.record.body,
                           (Py_ssize_t)h.claim.record.headers, h.claim.attempt, (unsigned long long)h.ring_id,
                           (unsigned long long)h.claim.word);
    if (result) {
        self->held_count--;
        memmove(self->held + self->handed, self->held + self->handed + 1,
                sizeof(held) * (size_t)(self->held_count - self->handed));
    }
    return leave(self, result);
}

/* ack(): acks what was handed out, without asking for more. */
static PyObject *claimer_ack(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    if (guard_enter(&self->guard, "worker") < 0)
        return NULL;
    int status = ack_handed(self);
    return leave(self, status < 0 ? NULL : Py_NewRef(Py_None));
}

enum settle_how { HOW_ACK, HOW_NACK, HOW_REJECT, HOW_UNDECODABLE };

static claim claim_of(unsigned long long sequence, unsigned long long claim_word) {
    return (claim){.word = claim_word, .record = {.sequence = sequence}};
}

/* _settle(ring_id, sequence, word, how): false if the claim is not ours any more. */
static PyObject *claimer_settle(PyObject *object, PyObject *args) {
    Claimer *self = (Claimer *)object;
    unsigned long long ring_id, sequence, claim_word;
    int how;
    if (!PyArg_ParseTuple(args, "KKKi:_settle", &ring_id, &sequence, &claim_word, &how) ||
        guard_check(&self->guard, "worker") < 0)
        return NULL;
    source *s = source_of(self, ring_id);
    if (!s)
        Py_RETURN_FALSE;
    claim c = claim_of(sequence, claim_word);
    if (how == HOW_REJECT || how == HOW_UNDECODABLE)
        work_count_loss(&s->ring->view, how == HOW_REJECT, sequence, realtime_ns());
    int status = how == HOW_NACK ? work_give_back(&s->ring->view, &c) : work_done(&s->ring->view, &c);
    if (status == RING_OK && how != HOW_NACK) {
        s->acked++;
        if (settle(self, s, false) < 0)
            return NULL;
    }
    return PyBool_FromLong(status == RING_OK);
}

/* _payload(ring_id, sequence, word): the payload of a record that we hold, as bytes; None if it is not ours any more. */
static PyObject *claimer_payload(PyObject *object, PyObject *args) {
    Claimer *self = (Claimer *)object;
    unsigned long long ring_id, sequence, claim_word;
    if (!PyArg_ParseTuple(args, "KKK:_payload", &ring_id, &sequence, &claim_word) ||
        guard_check(&self->guard, "worker") < 0)
        return NULL;
    source *s = source_of(self, ring_id);
    claim c = claim_of(sequence, claim_word);
    if (!s || work_read(&s->ring->view, &c) != RING_OK)
        Py_RETURN_NONE;
    uint64_t padded = (c.record.headers + 7u) & ~(uint64_t)7;
    return PyBytes_FromStringAndSize((const char *)c.record.body + padded, (Py_ssize_t)(c.record.length - padded));
}

static PyObject *claimer_ready(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    if (guard_check(&self->guard, "worker") < 0)
        return NULL;
    return PyBool_FromLong(something(self));
}

/* _cancel(): iteration ends, in whatever thread it runs. */
static PyObject *claimer_cancel(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Claimer *)object)->guard.cancelled = true;
    Py_RETURN_NONE;
}

static PyObject *claimer_release(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    self->guard.closed = true;
    if (!self->guard.busy)
        drop_all(self);
    Py_RETURN_NONE;
}

static PyObject *claimer_closed(PyObject *object, void *which) {
    const guard *g = &((Claimer *)object)->guard;
    return PyBool_FromLong(which ? g->cancelled : g->closed);
}

static PyObject *claimer_get_spin(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Claimer *)object)->spin_ns);
}

static int claimer_set_spin(PyObject *object, PyObject *value, void *unused) {
    (void)unused;
    unsigned long long spin_ns = value ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    ((Claimer *)object)->spin_ns = spin_ns;
    return 0;
}

static PyGetSetDef getset[] = {{"closed", claimer_closed, NULL, "True after close().", NULL},
                               {"cancelled", claimer_closed, NULL, "True after cancel().", (void *)1},
                               {"_spin_ns", claimer_get_spin, claimer_set_spin, NULL, NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"try_receive", try_receive, METH_NOARGS, "try_receive(): the next event, or None."},
    {"receive", METHOD(receive), METH_FASTCALL | METH_KEYWORDS, "receive(timeout=None): the next event, or Empty."},
    {"ack", claimer_ack, METH_NOARGS, "ack(): acks what was handed out, without asking for more."},
    {"_poll", claimer_poll, METH_NOARGS, NULL},
    {"_take", claimer_take, METH_O, NULL},
    {"_poll_message", claimer_poll_message, METH_NOARGS, NULL},
    {"_settle", claimer_settle, METH_VARARGS, NULL},
    {"_payload", claimer_payload, METH_VARARGS, NULL},
    {"_ready", claimer_ready, METH_NOARGS, NULL},
    {"_add_source", claimer_add_source, METH_VARARGS, NULL},
    {"_drop_source", claimer_drop_source, METH_O, NULL},
    {"_seen_epoch", claimer_seen_epoch, METH_NOARGS, NULL},
    {"_cancel", claimer_cancel, METH_NOARGS, NULL},
    {"_release", claimer_release, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_init, claimer_init},
                              {Py_tp_new, PyType_GenericNew},
                              {Py_tp_dealloc, claimer_dealloc},
                              {Py_tp_traverse, claimer_traverse},
                              {Py_tp_clear, claimer_clear},
                              {Py_tp_iter, PyObject_SelfIter},
                              {Py_tp_iternext, claimer_next},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, getset},
                              {Py_tp_doc, "The path of an event to one of a group's workers."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Claimer",
                           .basicsize = sizeof(Claimer),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

int claimer_add(PyObject *module) { return type_add(module, &spec) ? 0 : -1; }
