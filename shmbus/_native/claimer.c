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
#include "claimer.h"

/* ---- sources ---- */

static int claimer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment", "topic", "decode", "owner", "generation", "max_deliver", "prefetch", NULL};
    Claimer *self = (Claimer *)object;
    PyObject *segment, *decode;
    unsigned topic, generation, max_deliver, prefetch;
    unsigned long owner;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOkIII", names, &segment, &topic, &decode, &owner, &generation,
                                     &max_deliver, &prefetch))
        return -1;
    if (self->window || owner >= MAX_WORKERS || !prefetch) {
        PyErr_SetString(PyExc_ValueError, "a claimer is made once, with a worker slot and prefetch >= 1");
        return -1;
    }
    if (lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    self->guard = (guard){.fork_generation = fork_generation, .ready = true};
    self->owner = (unsigned)owner;
    self->generation = generation;
    self->max_deliver = max_deliver;
    self->prefetch = prefetch;
    self->decode = Py_NewRef(decode);
    self->window = window_new();
    return self->window ? 0 : -1;
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
    claims_drop_all(self);
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
    source *s = claims_source(self, id);
    if (s)
        claims_drop_source(self, s - self->sources);
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

/* ---- methods ---- */

static PyObject *poll(PyObject *object, bool may_spin) {
    Claimer *self = (Claimer *)object;
    if (guard_enter(&self->guard, "worker") < 0)
        return NULL;
    PyObject *event = claims_ack(self) < 0 ? NULL : claims_take(self);
    if (event == Nothing && may_spin && claims_spin(self)) {
        Py_DECREF(event);
        event = guard_check(&self->guard, "worker") < 0 ? NULL : claims_take(self);
    }
    return claims_leave(self, event);
}

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
    PyObject *list = claims_ack(self) < 0 ? NULL : PyList_New(0);
    while (list && PyList_Size(list) < maximum) {
        PyObject *event = claims_take(self);
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
    return claims_leave(self, list);
}

/* _poll_message(): (event, sequence, publisher, time_ns, headers, attempt, ring_id, word), or Nothing. The claim is the
 * message's from now on. */
static PyObject *claimer_poll_message(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    if (guard_enter(&self->guard, "worker") < 0)
        return NULL;
    int status = claims_ack(self) < 0 ? -1 : claims_next(self);
    if (status == 0 && claims_spin(self) && guard_check(&self->guard, "worker") == 0)
        status = claims_next(self);
    if (status <= 0)
        return claims_leave(self, PyErr_Occurred() ? NULL : Py_NewRef(Nothing));
    PyObject *event = claims_decode(self), *result = NULL;
    if (!event)
        return claims_leave(self, NULL);
    held h = self->held[self->handed];
    source *s = claims_source(self, h.ring_id);
    result = Py_BuildValue("(NKOKy#IKK)", event, (unsigned long long)h.claim.record.sequence,
                           s ? s->publisher : Py_None, (unsigned long long)h.claim.record.time_ns, h.claim.record.body,
                           (Py_ssize_t)h.claim.record.headers, h.claim.attempt, (unsigned long long)h.ring_id,
                           (unsigned long long)h.claim.word);
    if (result) {
        self->held_count--;
        memmove(self->held + self->handed, self->held + self->handed + 1,
                sizeof(held) * (size_t)(self->held_count - self->handed));
    }
    return claims_leave(self, result);
}

/* ack(): acks what was handed out, without asking for more. */
static PyObject *claimer_ack(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    if (guard_enter(&self->guard, "worker") < 0)
        return NULL;
    int status = claims_ack(self);
    return claims_leave(self, status < 0 ? NULL : Py_NewRef(Py_None));
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
    source *s = claims_source(self, ring_id);
    if (!s)
        Py_RETURN_FALSE;
    claim c = claim_of(sequence, claim_word);
    claim probe = c;
    if (work_read(&s->ring->view, &probe) == RING_LOST)
        Py_RETURN_FALSE;
    if (how == HOW_REJECT || how == HOW_UNDECODABLE)
        work_count_loss(&s->ring->view, how == HOW_REJECT, sequence, realtime_ns());
    int status = how == HOW_NACK ? work_give_back(&s->ring->view, &c) : work_done(&s->ring->view, &c);
    if (status == RING_OK && how != HOW_NACK) {
        s->acked++;
        if (claims_settle(self, s, false) < 0)
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
    source *s = claims_source(self, ring_id);
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
    return PyBool_FromLong(claims_ready(self));
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
        claims_drop_all(self);
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
