/* Receiver: see receiver.h. One thread at a time: the busy flag turns a second one away, and a close() that comes while
 * a method runs is carried out when that ends. */
#include "receiver.h"

#define LOT 64 /* events that are gathered before a list takes them: one that grows is copied again and again */

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
    wait_unbind(self);
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

/* Posts the publisher of a ring, whose waiting flag the caller has cleared; `post` keeps what does that. */
int receiver_wake_publisher(Receiver *self, const Ring *ring, PyObject **post) {
    if (post_cached(post))
        return 0;
    PyObject *fresh = PyObject_CallMethod((PyObject *)self, "_wake_publisher", "K", (unsigned long long)ring->id);
    if (!fresh)
        return -1;
    if (fresh == Py_None || *post)
        Py_DECREF(fresh);
    else
        *post = fresh;
    return 0;
}

/* ---- one call ---- */

static int enter(Receiver *self) { return guard_enter(&self->guard, self->kind ? self->kind->name : "handle"); }

static PyObject *leave(Receiver *self, PyObject *result) {
    self->guard.busy = false;
    if (self->guard.closed)
        drop_all(self);
    return result;
}

static PyObject *take_checked(Receiver *self, receiver_take take) {
    return error_raise_held(&self->held_error) ? NULL : take(self);
}

/* Nothing came of a wait: it was cancelled, or a signal handler raised. A wake-up that was under way is for another. */
static PyObject *give_up(Receiver *self, PyObject *found) {
    PyObject *error = found ? NULL : error_take();
    int status = self->kind->pass_on(self);
    if (status < 0 && self->guard.closed)
        PyErr_Clear(); /* the bus may be gone as well */
    else if (status < 0)
        Py_CLEAR(found);
    if (error)
        error_restore(error);
    return found;
}

/* An event; Nothing at the deadline and at the handle's end; NULL. */
static PyObject *obtain(Receiver *self, receiver_take take, uint64_t deadline) {
    if (enter(self) < 0)
        return NULL;
    PyObject *found = self->kind->prepare(self) < 0 ? NULL : take_checked(self, take);
    if (found == Nothing && !deadline)
        self->waited = true;
    if (found != Nothing || !deadline)
        return leave(self, found);
    Py_DECREF(found);
    bool ours = true;
    found = wait_for(self, take, deadline, &ours);
    if (!ours)
        return NULL;
    if (!found || found == Nothing)
        found = give_up(self, found);
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

/* What to raise for Nothing: the subclass knows. */
static PyObject *nothing(PyObject *object, PyObject *timeout) {
    PyObject *result = PyObject_CallMethod(object, "_nothing", "(O)", timeout);
    if (result)
        PyErr_SetString(PyExc_SystemError, "_nothing returned");
    Py_XDECREF(result);
    return NULL;
}

static PyObject *receiver_poll(PyObject *object, PyObject *unused) {
    (void)unused;
    return obtain((Receiver *)object, taker(object), 0);
}

static PyObject *poll_message(PyObject *object, uint64_t deadline) {
    Receiver *self = (Receiver *)object;
    return obtain(self, self->kind ? self->kind->take_message : NULL, deadline);
}

static PyObject *receiver_poll_message(PyObject *object, PyObject *unused) {
    (void)unused;
    return poll_message(object, 0);
}

/* _next_message(): waits; Nothing at the handle's end. */
static PyObject *receiver_next_message(PyObject *object, PyObject *unused) {
    (void)unused;
    return poll_message(object, UINT64_MAX);
}

static PyObject *try_receive(PyObject *object, PyObject *unused) {
    (void)unused;
    PyObject *event = obtain((Receiver *)object, taker(object), 0);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    Py_RETURN_NONE;
}

static PyObject *receiver_next(PyObject *object) {
    Receiver *self = (Receiver *)object;
    if ((self->guard.closed || self->guard.cancelled) && self->guard.fork_generation == fork_generation)
        return NULL; /* the end of the iteration */
    PyObject *event = obtain(self, taker(object), UINT64_MAX);
    if (!event && self->guard.closed && PyErr_ExceptionMatches(ClosedError))
        PyErr_Clear(); /* closed by another thread while we looked: the end as well */
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return NULL;
}

static PyObject *receive(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    PyObject *timeout = timeout_argument(args, count, names);
    uint64_t deadline;
    if (!timeout || wait_deadline(timeout, &deadline) < 0)
        return NULL;
    PyObject *event = obtain((Receiver *)object, taker(object), deadline);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return nothing(object, timeout);
}

/* Gathers up to `most` events that are there now. An error waits for the next call, so that the events before it reach
 * the caller. */
static Py_ssize_t gather(Receiver *self, PyObject **lot, Py_ssize_t most) {
    Py_ssize_t count = 0;
    while (count < most) {
        PyObject *event = take_checked(self, self->kind->take);
        if (!event || event == Nothing) {
            Py_XDECREF(event);
            break;
        }
        lot[count++] = event;
    }
    if (PyErr_Occurred())
        error_hold(&self->held_error);
    return count;
}

/* A list of them, which takes over the references. */
static PyObject *list_of(PyObject **lot, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; i < count; i++)
        if (list)
            LIST_SET(list, i, lot[i]);
        else
            Py_DECREF(lot[i]);
    return list;
}

static PyObject *take_list(Receiver *self) {
    PyObject *lot[LOT], *event = self->kind->take(self);
    if (!event || event == Nothing)
        return event;
    lot[0] = event;
    Py_ssize_t count = 1 + gather(self, lot + 1, (self->many < LOT ? self->many : LOT) - 1), left = self->many - count;
    PyObject *list = list_of(lot, count);
    while (list && count == LOT && left > 0) {
        count = gather(self, lot, left < LOT ? left : LOT);
        left -= count;
        PyObject *more = list_of(lot, count);
        if (!more || PyList_SetSlice(list, PyList_Size(list), PyList_Size(list), more) < 0)
            Py_CLEAR(list);
        Py_XDECREF(more);
    }
    return list;
}

/* _take(maximum, timeout): a list of what is there once something is. */
static PyObject *receiver_take_many(PyObject *object, PyObject *args) {
    Receiver *self = (Receiver *)object;
    Py_ssize_t maximum;
    PyObject *timeout;
    uint64_t deadline;
    if (!PyArg_ParseTuple(args, "nO:_take", &maximum, &timeout) || wait_deadline(timeout, &deadline) < 0)
        return NULL;
    self->many = maximum;
    PyObject *list = obtain(self, take_list, deadline);
    if (list != Nothing)
        return list;
    Py_DECREF(list);
    return nothing(object, timeout);
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

/* _pass_on(): a wake-up that was for this handle, which will not look, is another one's. */
static PyObject *receiver_pass_on(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    if (enter(self) < 0)
        return NULL;
    return leave(self, self->kind->pass_on(self) < 0 ? NULL : Py_NewRef(Py_None));
}

static PyGetSetDef getset[] = {{"closed", receiver_get, NULL, "True after close().", NULL},
                               {"cancelled", receiver_get, NULL, "True after cancel().", (void *)1},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"try_receive", try_receive, METH_NOARGS, "try_receive(): the next event, or None."},
    {"receive", METHOD(receive), METH_FASTCALL | METH_KEYWORDS, "receive(timeout=None): the next event, or Empty."},
    {"_poll", receiver_poll, METH_NOARGS, NULL},
    {"_take", receiver_take_many, METH_VARARGS, NULL},
    {"_poll_message", receiver_poll_message, METH_NOARGS, NULL},
    {"_next_message", receiver_next_message, METH_NOARGS, NULL},
    {"_bind", wait_bind, METH_VARARGS, NULL},
    {"_pass_on", receiver_pass_on, METH_NOARGS, NULL},
    {"_ready", receiver_ready, METH_NOARGS, NULL},
    {"_sample_into", receiver_sample_into, METH_O, NULL},
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
