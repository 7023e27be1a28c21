/* Receiver: see receiver.h. One call at a time takes events, a second one is turned away; whatever a call was asked for, it
 * keeps itself, and writes nothing into the handle before it is let in. */
#include "receiver.h"

#define LOT 64 /* events that are gathered before a list takes them: one that grows is copied again and again */

/* ---- life ---- */

static void drop_all(PyObject *object) {
    Receiver *self = (Receiver *)object;
    if (self->kind)
        self->kind->drop_all(self);
    wait_unbind(self);
    lines_unbind(&self->lines);
}

int receiver_init(Receiver *self, const receiver_kind *kind, PyObject *segment, unsigned topic, PyObject *decode) {
    if (self->kind) {
        PyErr_Format(PyExc_RuntimeError, "a %s is made once", kind->name);
        return -1;
    }
    if (lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    self->kind = kind;
    self->decode = Py_NewRef(decode);
    self->record = record_of(decode);
    self->window = window_new();
    if (!self->window)
        return -1;
    guard_init(&self->guard, drop_all);
    return 0;
}

int receiver_traverse(PyObject *object, visitproc visit, void *arg) {
    Receiver *self = (Receiver *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->decode);
    Py_VISIT(self->held_error);
    Py_VISIT(self->buffers);
    Py_VISIT(self->seen);
    return 0;
}

int receiver_clear(PyObject *object) {
    Receiver *self = (Receiver *)object;
    self->guard.closed = true;
    drop_all(object);
    Py_CLEAR(self->decode);
    Py_CLEAR(self->window);
    Py_CLEAR(self->held_error);
    Py_CLEAR(self->buffers);
    Py_CLEAR(self->seen);
    return 0;
}

static void receiver_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    receiver_clear(object);
    guard_clear(&((Receiver *)object)->guard);
    object_free(object);
}

/* ---- what the two kinds use ---- */

static const char *name_of(const Receiver *self) { return self->kind ? self->kind->name : "handle"; }

int receiver_check(Receiver *self) { return guard_check(&self->guard, name_of(self)); }

bool receiver_stale(const Receiver *self) {
    return LOAD_SEQ(&self->lines.topic->epoch) != self->lines.epoch; /* SYNC epoch; seq_cst for who parks: SYNC park */
}

/* Tells what `_tell_headers` was given of an event that is about to be decoded. As a decoder it may run any code but
 * another call of this handle; what it raises is no reason to keep the event back. */
void receiver_tell(Receiver *self, const record *r, PyObject *publisher) {
    PyObject *seen = Py_NewRef(self->seen), *name = Py_NewRef(publisher ? publisher : Py_None);
    PyObject *result = PyObject_CallFunction(seen, "y#KOK", (const char *)r->body, (Py_ssize_t)r->headers,
                                             (unsigned long long)r->sequence, name, (unsigned long long)r->time_ns);
    if (!result)
        PyErr_WriteUnraisable(seen);
    Py_XDECREF(result);
    Py_DECREF(name);
    Py_DECREF(seen);
}

/* _tell_headers(callable): from now on it is called with headers, sequence, publisher and stamp of each event, but of rows
 * that arrays take; None: no more. */
static PyObject *receiver_tell_to(PyObject *object, PyObject *seen) {
    Receiver *self = (Receiver *)object;
    if (receiver_check(self) < 0)
        return NULL;
    Py_XSETREF(self->seen, seen == Py_None ? NULL : Py_NewRef(seen));
    Py_RETURN_NONE;
}

int receiver_refresh(Receiver *self) {
    if (!receiver_stale(self))
        return 0;
    if (call_hook((PyObject *)self, "_refresh") == 0)
        return receiver_check(self);
    self->lines.epoch = UINT64_MAX; /* it may have got half-way: the next call does it again */
    return -1;
}

/* Posts the publisher of a ring, whose waiting flag the caller has cleared, where `waiting` says. */
int receiver_wake_publisher(Receiver *self, Ring *ring, uint64_t waiting) {
    const char *hook = "_wake_publisher";
    PyObject *post = NULL, *task = NULL;
    waiting &= WAITS_THREAD | WAITS_TASK;
    bool posted = waiting == WAITS_TASK;
    Py_INCREF((PyObject *)ring);
    if (!posted && !(posted = ring->post && post_call(ring->post)) &&
        (post = PyObject_CallMethod((PyObject *)self, hook, "K", (unsigned long long)ring->id))) {
        PyObject *before = ring->post;
        ring->post = post == Py_None ? NULL : Py_NewRef(post);
        Py_XDECREF(before);
        posted = true;
    }
    if (posted && (waiting & WAITS_TASK)) {
        task = PyObject_CallMethod((PyObject *)self, "_call_publisher", "K", (unsigned long long)ring->id);
        posted = task != NULL;
    }
    Py_XDECREF(post);
    Py_XDECREF(task);
    Py_DECREF((PyObject *)ring);
    return posted ? 0 : -1;
}

/* ---- one call ---- */

/* A decoder may run Python code, and with it another thread, between looking at an event and consuming it: one call at a
 * time, but for those that signal handlers make while one waits. */
static int enter(Receiver *self, call *c) {
    if (self->call && guard_check(&self->guard, name_of(self)) == 0 && self->attending != PyThread_get_thread_ident()) {
        PyErr_Format(PyExc_RuntimeError, "the %s is in use by another thread: open one for each", name_of(self));
        return -1;
    }
    if (guard_enter(&self->guard, name_of(self)) < 0)
        return -1;
    c->outer = self->call;
    c->attending = self->attending;
    self->call = c;
    self->attending = 0;
    return 0;
}

static PyObject *leave(Receiver *self, PyObject *result) {
    call *c = self->call;
    self->attending = c->attending;
    self->call = c->outer;
    asker_drop(&c->by);
    return guard_leave(&self->guard, (PyObject *)self, result);
}

static PyObject *take_checked(Receiver *self, receiver_take take) {
    return error_raise_held(&self->held_error) ? NULL : take(self);
}

/* After cancel() no wait begins, and none that would have found something at once. */
static PyObject *cancelled(Receiver *self) { return self->kind->end(self) < 0 ? NULL : Py_NewRef(Nothing); }

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
PyObject *receiver_obtain(Receiver *self, call *c, receiver_take take, uint64_t deadline) {
    if (enter(self, c) < 0)
        return NULL;
    if (self->kind->prepare(self) < 0)
        return leave(self, NULL);
    if (deadline && self->guard.cancelled)
        take = cancelled;
    PyObject *found = take_checked(self, take);
    if (found == Nothing && !deadline) {
        self->waited = true;
        if (take != cancelled && wait_care(self) < 0)
            Py_CLEAR(found);
    }
    if (found != Nothing || !deadline)
        return leave(self, found);
    Py_DECREF(found);
    found = wait_for(self, take, deadline);
    if (!found || found == Nothing)
        found = give_up(self, found);
    return leave(self, found);
}

/* ---- methods ---- */

static receiver_take taker(PyObject *object) {
    const receiver_kind *kind = ((Receiver *)object)->kind;
    return kind ? kind->take : NULL; /* without a kind the guard is not ready, and nothing is called */
}

/* What to raise for Nothing: the subclass knows. */
PyObject *receiver_nothing(PyObject *object, PyObject *timeout) {
    if (((Receiver *)object)->guard.closed && guard_exiting()) {
        PyErr_SetNone(PyExc_SystemExit);
        return NULL;
    }
    PyObject *result = PyObject_CallMethod(object, "_nothing", "(O)", timeout);
    if (result)
        PyErr_SetString(PyExc_SystemError, "_nothing returned");
    Py_XDECREF(result);
    return NULL;
}

/* What an asker has asked for, once: _poll(ask=None), _poll_message(ask=None); see asker.c. */
static PyObject *poll(PyObject *object, PyObject *const *args, Py_ssize_t count, receiver_take take) {
    call c = {0};
    if (count > 1) {
        PyErr_SetString(PyExc_TypeError, "_poll(ask=None)");
        return NULL;
    }
    if (count && args[0] != Py_None)
        c.ask = args[0];
    return receiver_obtain((Receiver *)object, &c, take, 0);
}

static PyObject *receiver_poll(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    return poll(object, args, count, taker(object));
}

static receiver_take message_taker(PyObject *object) {
    const receiver_kind *kind = ((Receiver *)object)->kind;
    return kind ? kind->take_message : NULL;
}

static PyObject *receiver_poll_message(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    return poll(object, args, count, message_taker(object));
}

/* _next_message(): waits; Nothing at the handle's end. */
static PyObject *receiver_next_message(PyObject *object, PyObject *unused) {
    (void)unused;
    call c = {0};
    return receiver_obtain((Receiver *)object, &c, message_taker(object), UINT64_MAX);
}

/* _take_message(timeout): raises what `_nothing` does. */
static PyObject *receiver_take_message(PyObject *object, PyObject *timeout) {
    uint64_t deadline;
    call c = {0};
    if (wait_deadline(timeout, &deadline) < 0)
        return NULL;
    PyObject *found = receiver_obtain((Receiver *)object, &c, message_taker(object), deadline);
    if (found != Nothing)
        return found;
    Py_DECREF(found);
    return receiver_nothing(object, timeout);
}

/* _finish(ask): the handle was cancelled: what the asker was handed is done, and nothing more is asked for. */
static PyObject *receiver_finish(PyObject *object, PyObject *ask) {
    call c = {.ask = ask == Py_None ? NULL : ask};
    return receiver_obtain((Receiver *)object, &c, cancelled, 0);
}

static PyObject *try_receive(PyObject *object, PyObject *unused) {
    (void)unused;
    call c = {0};
    PyObject *event = receiver_obtain((Receiver *)object, &c, taker(object), 0);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    Py_RETURN_NONE;
}

static PyObject *receiver_next(PyObject *object) {
    Receiver *self = (Receiver *)object;
    call c = {.iterates = true};
    if (self->guard.closed && self->guard.fork_generation == fork_generation && !guard_exiting())
        return NULL; /* the end of the iteration */
    PyObject *event = receiver_obtain(self, &c, taker(object), UINT64_MAX);
    if (!event && self->guard.closed && PyErr_ExceptionMatches(ClosedError))
        PyErr_Clear(); /* closed by another thread while we looked: the end as well */
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    if (guard_exiting())
        PyErr_SetNone(PyExc_SystemExit);
    return NULL;
}

static PyObject *receive(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    PyObject *timeout = timeout_argument(args, count, names);
    uint64_t deadline;
    call c = {0};
    if (!timeout || wait_deadline(timeout, &deadline) < 0)
        return NULL;
    PyObject *event = receiver_obtain((Receiver *)object, &c, taker(object), deadline);
    if (event != Nothing)
        return event;
    Py_DECREF(event);
    return receiver_nothing(object, timeout);
}

/* Gathers up to `most` events that are there now. An error waits for the next call, so that the events before it reach
 * the caller. */
static Py_ssize_t gather(Receiver *self, PyObject **lot, Py_ssize_t most) {
    Py_ssize_t count = 0;
    while (count < most) {
        PyObject *event = take_checked(self, self->call->each);
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
    PyObject *lot[LOT], *event = self->call->each(self);
    if (!event || event == Nothing)
        return event;
    lot[0] = event;
    Py_ssize_t most = self->call->most, count = 1 + gather(self, lot + 1, (most < LOT ? most : LOT) - 1);
    Py_ssize_t left = most - count;
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

/* What `take` finds, as often as `maximum` says, in a list; Nothing. Arguments: maximum, timeout. */
static PyObject *take_many(PyObject *object, PyObject *args, receiver_take take, PyObject **timeout) {
    uint64_t deadline;
    call c = {.each = take};
    if (!PyArg_ParseTuple(args, "nO", &c.most, timeout) || wait_deadline(*timeout, &deadline) < 0)
        return NULL;
    return receiver_obtain((Receiver *)object, &c, take_list, deadline);
}

/* _take(maximum, timeout): a list of what is there once something is. */
static PyObject *receiver_take_many(PyObject *object, PyObject *args) {
    PyObject *timeout, *list = take_many(object, args, taker(object), &timeout);
    if (list != Nothing)
        return list;
    Py_DECREF(list);
    return receiver_nothing(object, timeout);
}

/* _take_messages(maximum, timeout): the same of messages, as `_poll_message` returns them; Nothing at the deadline and at
 * the handle's end. */
static PyObject *receiver_take_messages(PyObject *object, PyObject *args) {
    PyObject *timeout;
    return take_many(object, args, message_taker(object), &timeout);
}

static PyObject *receiver_ready(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    return receiver_check(self) < 0 ? NULL : PyBool_FromLong(self->kind->ready(self));
}

/* _due(): seconds until something will be there that is delayed, however many; at most those of a sleep. */
static PyObject *receiver_due(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    uint64_t due = self->kind ? self->kind->due(self) : UINT64_MAX, now = monotonic_ns(); /* closed: no sources */
    return PyFloat_FromDouble(due > now ? (double)(due - now) / 1e9 : 0.0);
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

/* _shut(): no call begins from now on, and those that wait end. */
static PyObject *receiver_shut(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Receiver *)object)->guard.closed = true;
    Py_RETURN_NONE;
}

/* _quiet(): see guard_quiet. */
static PyObject *receiver_quiet(PyObject *object, PyObject *unused) {
    (void)unused;
    return guard_quiet(&((Receiver *)object)->guard);
}

static PyObject *receiver_release(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    if (self->guard.ready)
        guard_release(&self->guard, object);
    self->guard.closed = true;
    Py_RETURN_NONE;
}

/* _within(callable, *args): calls it as one call of this handle, which close() waits for. */
static PyObject *receiver_within(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Receiver *self = (Receiver *)object;
    if (!count) {
        PyErr_SetString(PyExc_TypeError, "_within(callable, *args)");
        return NULL;
    }
    if (guard_enter(&self->guard, name_of(self)) < 0)
        return NULL;
    return guard_leave(&self->guard, object, call_many(args[0], args + 1, count - 1));
}

static PyObject *receiver_get(PyObject *object, void *which) {
    const guard *g = &((Receiver *)object)->guard;
    return PyBool_FromLong(which ? g->cancelled : g->closed);
}

/* _pass_on(): a wake-up that was for this handle, which will not look, is another one's. */
static PyObject *receiver_pass_on(PyObject *object, PyObject *unused) {
    (void)unused;
    Receiver *self = (Receiver *)object;
    if (guard_enter(&self->guard, name_of(self)) < 0)
        return NULL;
    return guard_leave(&self->guard, object, self->kind->pass_on(self) < 0 ? NULL : Py_NewRef(Py_None));
}

static PyGetSetDef getset[] = {{"closed", receiver_get, NULL, "True after close().", NULL},
                               {"cancelled", receiver_get, NULL, "True after cancel().", (void *)1},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"try_receive", try_receive, METH_NOARGS, "try_receive(): the next event, or None."},
    {"receive", METHOD(receive), METH_FASTCALL | METH_KEYWORDS, "receive(timeout=None): the next event, or Empty."},
    {"_poll", METHOD(receiver_poll), METH_FASTCALL, NULL},
    {"_take", receiver_take_many, METH_VARARGS, NULL},
    {"_next_rows", receiver_next_rows, METH_O, NULL},
    {"_poll_rows", receiver_poll_rows, METH_VARARGS, NULL},
    {"_take_rows", receiver_take_rows, METH_VARARGS, NULL},
    {"_poll_message", METHOD(receiver_poll_message), METH_FASTCALL, NULL},
    {"_next_message", receiver_next_message, METH_NOARGS, NULL},
    {"_take_messages", receiver_take_messages, METH_VARARGS, NULL},
    {"_take_message", receiver_take_message, METH_O, NULL},
    {"_bind", wait_bind, METH_VARARGS, NULL},
    {"_pass_on", receiver_pass_on, METH_NOARGS, NULL},
    {"_ready", receiver_ready, METH_NOARGS, NULL},
    {"_due", receiver_due, METH_NOARGS, NULL},
    {"_sample_into", receiver_sample_into, METH_O, NULL},
    {"_buffers_into", receiver_buffers_into, METH_O, NULL},
    {"_seen_epoch", receiver_seen_epoch, METH_NOARGS, NULL},
    {"_tell_headers", receiver_tell_to, METH_O, NULL},
    {"_cancel", receiver_cancel, METH_NOARGS, NULL},
    {"_finish", receiver_finish, METH_O, NULL},
    {"_within", METHOD(receiver_within), METH_FASTCALL, NULL},
    {"_shut", receiver_shut, METH_NOARGS, NULL},
    {"_quiet", receiver_quiet, METH_NOARGS, NULL},
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
