/* Receiver: see receiver.h. One thread at a time: the busy flag turns a second one away, and a close() that comes while
 * a method runs is carried out when that ends. */
#include "receiver.h"

/* ---- life ---- */

int receiver_init(Receiver *self, const receiver_kind *kind, PyObject *segment, unsigned topic, PyObject *decode) {
    if (self->kind) {
        PyErr_Format(PyExc_RuntimeError, "a %s is made once", kind->name);
        return -1;
    }
    if (lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    self->kind = kind;
    self->decode = Py_NewRef(decode);
    self->window = window_new();
    self->guard = (guard){.fork_generation = fork_generation, .ready = self->window != NULL};
    return self->window ? 0 : -1;
}

static void drop_all(Receiver *self) {
    if (self->kind)
        self->kind->drop_all(self);
    lines_unbind(&self->lines);
}

static int receiver_traverse(PyObject *object, visitproc visit, void *arg) {
    Receiver *self = (Receiver *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->decode);
    Py_VISIT(self->held_error);
    return 0;
}

static int receiver_clear(PyObject *object) {
    Receiver *self = (Receiver *)object;
    self->guard.closed = true;
    drop_all(self);
    Py_CLEAR(self->decode);
    Py_CLEAR(self->window);
    Py_CLEAR(self->held_error);
    return 0;
}

static void receiver_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    receiver_clear(object);
    object_free(object);
}

/* ---- what the two kinds use ---- */

int receiver_check(Receiver *self) { return guard_check(&self->guard, self->kind ? self->kind->name : "handle"); }

bool receiver_stale(const Receiver *self) {
    return LOAD_SEQ(&self->lines.topic->epoch) != self->lines.epoch; /* SYNC epoch; seq_cst for who parks: SYNC park */
}

int receiver_refresh(Receiver *self) {
    if (!receiver_stale(self))
        return 0;
    if (call_hook((PyObject *)self, "_refresh") == 0)
        return receiver_check(self);
    self->lines.epoch = UINT64_MAX; /* it may have got half-way: the next call does it again */
    return -1;
}

/* Has the publisher of a ring posted, whose waiting flag the caller has cleared. */
int receiver_wake_publisher(Receiver *self, const Ring *ring) {
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_wake_publisher", "K", (unsigned long long)ring->id);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* ---- one call ---- */

static int enter(Receiver *self) { return guard_enter(&self->guard, self->kind ? self->kind->name : "handle"); }

static PyObject *leave(Receiver *self, PyObject *result) {
    self->guard.busy = false;
    if (self->guard.closed)
        drop_all(self);
    return result;
}

/* Looks for up to `spin_ns` without the GIL; true if there may be something. */
static bool spin(Receiver *self) {
    bool seen = false;
    if (!self->spin_ns)
        return false;
    Py_BEGIN_ALLOW_THREADS;
    uint64_t until = monotonic_ns() + self->spin_ns;
    do {
        for (int i = 0; i < 32 && !(seen = self->kind->ready(self)) && !self->guard.closed; i++)
            cpu_relax();
    } while (!seen && !self->guard.closed && monotonic_ns() < until);
    Py_END_ALLOW_THREADS;
    return seen;
}

static PyObject *take_checked(Receiver *self, receiver_take take) {
    return error_raise_held(&self->held_error) ? NULL : take(self);
}

static PyObject *poll(Receiver *self, receiver_take take, bool may_spin) {
    if (enter(self) < 0)
        return NULL;
    PyObject *found = self->kind->prepare(self) < 0 ? NULL : take_checked(self, take);
    if (found == Nothing && may_spin && spin(self)) {
        Py_DECREF(found);
        found = receiver_check(self) < 0 ? NULL : take_checked(self, take);
    }
    return leave(self, found);
}

/* Runs `take` alone under the guard: for methods of one kind. */
PyObject *receiver_enter(Receiver *self, receiver_take take) {
    return enter(self) < 0 ? NULL : leave(self, take(self));
}

/* ---- methods ---- */

static receiver_take taker(PyObject *object) {
    const receiver_kind *kind = ((Receiver *)object)->kind;
    return kind ? kind->take : NULL; /* without a kind the guard is not ready, and nothing is called */
}

static PyObject *receiver_poll(PyObject *object, PyObject *unused) {
    (void)unused;
    return poll((Receiver *)object, taker(object), true);
}

static PyObject *receiver_poll_message(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    return poll(self, self->kind ? self->kind->take_message : NULL, true);
}

static PyObject *try_receive(PyObject *object, PyObject *unused) {
    (void)unused;
    PyObject *event = poll((Receiver *)object, taker(object), false);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    Py_RETURN_NONE;
}

static PyObject *receiver_next(PyObject *object) {
    Receiver *self = (Receiver *)object;
    if ((self->guard.closed || self->guard.cancelled) && self->guard.fork_generation == fork_generation)
        return NULL; /* the end of the iteration */
    PyObject *event = poll(self, taker(object), true);
    if (!event && self->guard.closed && PyErr_ExceptionMatches(ClosedError))
        PyErr_Clear(); /* closed by another thread while we looked: the end as well */
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return PyObject_CallMethod(object, "_next_slow", NULL);
}

static PyObject *receive(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    PyObject *timeout = timeout_argument(args, count, names);
    if (!timeout)
        return NULL;
    PyObject *event = poll((Receiver *)object, taker(object), true);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return PyObject_CallMethod(object, "_receive_slow", "(O)", timeout);
}

/* _take(maximum): a list of what is there now. An error in the middle waits for the next call, so that the events before
 * it reach the caller. */
static PyObject *receiver_take_many(PyObject *object, PyObject *arg) {
    Receiver *self = (Receiver *)object;
    Py_ssize_t maximum = PyLong_AsSsize_t(arg);
    if (PyErr_Occurred() || enter(self) < 0)
        return NULL;
    PyObject *list = self->kind->prepare(self) < 0 ? NULL : PyList_New(0);
    while (list && PyList_Size(list) < maximum) {
        PyObject *event = take_checked(self, self->kind->take);
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

static PyObject *receiver_ready(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    return receiver_check(self) < 0 ? NULL : PyBool_FromLong(self->kind->ready(self));
}

static PyObject *receiver_seen_epoch(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    if (receiver_check(self) < 0)
        return NULL;
    self->lines.epoch = LOAD_SEQ(&self->lines.topic->epoch); /* SYNC epoch: before the document is read */
    Py_RETURN_NONE;
}

/* _cancel(): iteration ends, in whatever thread it runs. */
static PyObject *receiver_cancel(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Receiver *)object)->guard.cancelled = true;
    Py_RETURN_NONE;
}

static PyObject *receiver_release(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    self->guard.closed = true;
    if (!self->guard.busy)
        drop_all(self);
    Py_RETURN_NONE;
}

static PyObject *receiver_get(PyObject *object, void *which) {
    const guard *g = &((Receiver *)object)->guard;
    return PyBool_FromLong(which ? g->cancelled : g->closed);
}

static PyObject *receiver_get_spin(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Receiver *)object)->spin_ns);
}

static int receiver_set_spin(PyObject *object, PyObject *value, void *unused) {
    (void)unused;
    unsigned long long spin_ns = value ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    ((Receiver *)object)->spin_ns = spin_ns;
    return 0;
}

static PyGetSetDef getset[] = {{"closed", receiver_get, NULL, "True after close().", NULL},
                               {"cancelled", receiver_get, NULL, "True after cancel().", (void *)1},
                               {"_spin_ns", receiver_get_spin, receiver_set_spin, NULL, NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"try_receive", try_receive, METH_NOARGS, "try_receive(): the next event, or None."},
    {"receive", METHOD(receive), METH_FASTCALL | METH_KEYWORDS, "receive(timeout=None): the next event, or Empty."},
    {"_poll", receiver_poll, METH_NOARGS, NULL},
    {"_take", receiver_take_many, METH_O, NULL},
    {"_poll_message", receiver_poll_message, METH_NOARGS, NULL},
    {"_ready", receiver_ready, METH_NOARGS, NULL},
    {"_seen_epoch", receiver_seen_epoch, METH_NOARGS, NULL},
    {"_cancel", receiver_cancel, METH_NOARGS, NULL},
    {"_release", receiver_release, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_new, PyType_GenericNew},
                              {Py_tp_dealloc, receiver_dealloc},
                              {Py_tp_traverse, receiver_traverse},
                              {Py_tp_clear, receiver_clear},
                              {Py_tp_iter, PyObject_SelfIter},
                              {Py_tp_iternext, receiver_next},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, getset},
                              {Py_tp_doc, "What subscribers and workers have in common."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Receiver",
                           .basicsize = sizeof(Receiver),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

PyTypeObject *receiver_base;

int receiver_add(PyObject *module) {
    receiver_base = type_add(module, &spec, NULL);
    return receiver_base ? 0 : -1;
}
