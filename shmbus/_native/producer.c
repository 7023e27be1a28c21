/* Producer: what Publisher inherits. Encode, reserve in every ring, write, commit, look who is parked, with no Python
 * frame in between unless something is out of the ordinary: then one of the hooks is called, and the attempt starts again.
 *
 *   _shrink([(line, most bytes used), ...])  these rings are mostly empty; line -1: the broadcast ring
 *   _too_large(size, most)  no ring holds that: makes them larger, or raises
 *   _refresh()            membership of the topic changed
 *   _make_room(length, since, committed)  a ring is full, for this call since then (CLOCK_MONOTONIC in ns): True to try
 *                         again, False to drop; or raises Full
 *   _post(group, slot)    a subscriber (group -1) or a worker sleeps: see wake.c
 *   _encode_headers(h)    bytes for the headers of one event
 *   _foreign(event)       another class than the topic's: a weak reference to it if that is admitted; or raises
 *   _refused(event, e)    what the encoder, or the decoder that validates, raised, in words
 *   _suspect(event)       `finite` says no: raises, if that is so */
#include "producer.h"

/* ---- rings ---- */

static void drop_group(group_out *group) {
    wakers_clear(&group->workers);
    Py_DECREF((PyObject *)group->ring);
    Py_XDECREF(group->key);
}

static void drop_groups(group_out *groups, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        drop_group(&groups[i]);
    PyMem_Free(groups);
}

/* A ring that goes unmaps its memory, and with that other threads run: they find nothing left to drop. */
static void drop_rings(PyObject *object) {
    Producer *self = (Producer *)object;
    group_out *groups = self->groups;
    unsigned count = self->group_count;
    self->groups = NULL;
    self->group_count = 0;
    self->keyed = 0;
    drop_groups(groups, count);
    wakers_clear(&self->subscribers);
    notes_drop(self);
    Py_CLEAR(self->ring);
    lines_unbind(&self->lines);
}

static bool all_bytes(PyObject *tuple) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(tuple); i++)
        if (!PyBytes_Check(PyTuple_GetItem(tuple, i))) {
            PyErr_SetString(PyExc_TypeError, "suspects are bytes");
            return false;
        }
    return true;
}

static void find_maximum(Producer *self);

static int producer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment",     "topic",    "ring",     "encode", "accepts", "expected",
                            "encode_into", "validate", "suspects", "finite", NULL};
    Producer *self = (Producer *)object;
    PyObject *segment, *ring, *encode, *accepts, *expected, *into = Py_None, *validate = Py_None, *suspects = NULL,
                                                            *finite = Py_None;
    unsigned topic;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOOO!O|OOO!O", names, &segment, &topic, &ring, &encode,
                                     &PyTuple_Type, &accepts, &expected, &into, &validate, &PyTuple_Type, &suspects,
                                     &finite))
        return -1;
    if (self->ring) {
        PyErr_SetString(PyExc_RuntimeError, "a producer is made once");
        return -1;
    }
    if (!ring_checked(ring, RING_BROADCAST, true) || lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    guard_init(&self->guard, drop_rings);
    self->encode = Py_NewRef(encode);
    self->record = record_of(encode);
    self->into = Py_NewRef(into);
    self->scratch = PyByteArray_FromStringAndSize(NULL, 0);
    self->accepts = Py_NewRef(accepts);
    self->adopted = PyList_New(0);
    self->validate = Py_NewRef(validate);
    self->finite = Py_NewRef(finite);
    self->suspects = suspects ? Py_NewRef(suspects) : PyTuple_New(0);
    self->type_error = Py_NewRef(expected);
    self->ring = (Ring *)Py_NewRef(ring);
    if (!self->scratch || !self->adopted || !self->suspects || !all_bytes(self->suspects) ||
        wakers_init(&self->subscribers, -1, MAX_SUBSCRIBERS) < 0)
        return -1;
    find_maximum(self);
    return ring_writer_open(&self->writer, &self->ring->view) == RING_OK ? 0 : corrupt(self->ring, "tail cannot be");
}

static int producer_traverse(PyObject *object, visitproc visit, void *arg) {
    Producer *self = (Producer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->encode);
    Py_VISIT(self->into);
    Py_VISIT(self->accepts);
    Py_VISIT(self->adopted);
    Py_VISIT(self->validate);
    Py_VISIT(self->finite);
    Py_VISIT(self->type_error);
    Py_VISIT(self->who);
    for (unsigned i = 0; i < self->group_count; i++)
        Py_VISIT(self->groups[i].key);
    return 0;
}

static int producer_clear(PyObject *object) {
    Producer *self = (Producer *)object;
    self->guard.closed = true;
    drop_rings(object);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->into);
    Py_CLEAR(self->scratch);
    Py_CLEAR(self->accepts);
    Py_CLEAR(self->adopted);
    Py_CLEAR(self->validate);
    Py_CLEAR(self->finite);
    Py_CLEAR(self->suspects);
    Py_CLEAR(self->type_error);
    return 0;
}

static void producer_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    producer_clear(object);
    guard_clear(&((Producer *)object)->guard);
    object_free(object);
}

static group_out *group_of(Producer *self, const Ring *ring) {
    for (unsigned i = 0; i < self->group_count; i++)
        if (self->groups[i].ring->id == ring->id) /* not by the object: it may be a second map of the ring */
            return &self->groups[i];
    return NULL;
}

/* Goes on in another broadcast ring, which begins where the last one ends. */
static int move_to(Producer *self, Ring *ring, Ring **left) {
    ring_writer fresh;
    if (ring->id == self->ring->id)
        return 0;
    if (ring_writer_open(&fresh, &ring->view) != RING_OK || fresh.sequence != self->writer.sequence)
        return corrupt(ring, "it does not begin where the last one ends");
    *left = self->ring;
    STORE_SEQ(&(*left)->view.header->need, 0);
    self->ring = (Ring *)Py_NewRef((PyObject *)ring);
    self->writer = fresh;
    self->roomy = (roomy){0};
    return 0;
}

static void find_maximum(Producer *self) {
    self->maximum = record_maximum(self->ring->view.capacity);
    for (unsigned i = 0; i < self->group_count; i++)
        if (record_maximum(self->groups[i].ring->view.capacity) < self->maximum)
            self->maximum = record_maximum(self->groups[i].ring->view.capacity);
}

/* A group as _set_groups is told of it; its ring is still the caller's. */
static int open_group(Producer *self, PyObject *told, group_out *out) {
    PyObject *ring, *key = Py_None;
    if (!PyArg_ParseTuple(told, "OI|O", &ring, &out->line, &key) || !ring_checked(ring, RING_WORK, true) ||
        (key != Py_None && keys_check(key) < 0))
        return -1;
    out->key = key != Py_None ? key : NULL;
    if (!lines_group(&self->lines, out->line)) {
        PyErr_Format(PyExc_IndexError, "no group line %u", out->line);
        return -1;
    }
    out->ring = (Ring *)ring;
    if (!group_of(self, out->ring) && work_writer_open(&out->writer, &out->ring->view) != RING_OK)
        return corrupt(out->ring, "gate and tail cannot be");
    out->shown = out->writer.sequence;
    return 0;
}

/* _set_groups(routed, [(WorkRing, line[, key]), ...], ring=None, epoch=None): the groups from now on; writers of rings that stay
 * are kept. The broadcast ring, and the epoch that all of it belongs to, go with them in one step, so that no other thread
 * writes into a ring that its consumers let go of. */
static PyObject *producer_set_groups(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    PyObject *list, *broadcast = NULL;
    unsigned long long epoch = self->lines.epoch;
    unsigned keyed = 0;
    int routed;
    Ring *left = NULL;
    if (!PyArg_ParseTuple(args, "pO!|OK:_set_groups", &routed, &PyList_Type, &list, &broadcast, &epoch) ||
        guard_check(&self->guard, "publisher") < 0)
        return NULL;
    if (broadcast && !ring_checked(broadcast, RING_BROADCAST, true))
        return NULL;
    Py_ssize_t count = PyList_Size(list);
    if (count > MAX_GROUPS)
        return PyErr_Format(PyExc_ValueError, "%zd groups, at most %d", count, MAX_GROUPS);
    group_out *fresh = PyMem_Calloc((size_t)count + 1, sizeof(group_out)), *gone = self->groups;
    if (!fresh)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++)
        if (open_group(self, PyList_GetItem(list, i), &fresh[i]) < 0) {
            PyMem_Free(fresh);
            return NULL;
        }
    if (broadcast && move_to(self, (Ring *)broadcast, &left) < 0) {
        PyMem_Free(fresh);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        group_out *old = group_of(self, fresh[i].ring);
        if (old) { /* a group has the key that it was made with */
            PyObject *key = fresh[i].key;
            fresh[i] = *old;
            fresh[i].key = key;
            old->workers = (wakers){0};
        }
        Py_INCREF((PyObject *)fresh[i].ring);
        keyed += Py_XNewRef(fresh[i].key) != NULL;
    }
    unsigned before = self->group_count;
    self->keyed = keyed;
    self->groups = fresh;
    self->group_count = (unsigned)count;
    self->routed = routed || count;
    self->lines.epoch = epoch;
    self->changes++;
    find_maximum(self);
    drop_groups(gone, before);
    Py_XDECREF((PyObject *)left);
    Py_RETURN_NONE;
}

/* _seen_epoch(): the epoch that the membership about to be read belongs to, or a later one. */
static PyObject *producer_seen_epoch(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    if (guard_check(&self->guard, "publisher") < 0)
        return NULL;
    self->lines.epoch = LOAD_SEQ(&self->lines.topic->epoch); /* SYNC epoch: before the document is read */
    Py_RETURN_NONE;
}

/* _epoch(): the epoch that the membership about to be read belongs to, or a later one: for _set_groups. */
static PyObject *producer_epoch(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    if (guard_check(&self->guard, "publisher") < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(
        LOAD_SEQ(&self->lines.topic->epoch)); /* SYNC epoch: before the document is read */
}

/* _freeze(): no thread writes before it has called _refresh. */
static PyObject *producer_freeze(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Producer *)object)->lines.epoch = UINT64_MAX;
    Py_RETURN_NONE;
}

/* _may_shrink(floor, ns): a ring larger than `floor` that was mostly empty for so long is told to `_shrink`. */
static PyObject *producer_may_shrink(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    unsigned long long floor, ns;
    if (!PyArg_ParseTuple(args, "KK:_may_shrink", &floor, &ns))
        return NULL;
    self->floor = floor;
    self->shrink_ns = ns;
    Py_RETURN_NONE;
}

/* ---- what hooks use ---- */

static uint64_t waiting(const Producer *self) {
    return (self->blocked[0] ? WAITS_THREAD : 0) | (self->blocked[1] ? WAITS_TASK : 0) |
           (self->flushing ? WAITS_LAST : 0);
}

static void set_waiting(Producer *self, uint64_t need, uint64_t waiting) {
    self->needy = need != 0;
    STORE_SEQ(&self->ring->view.header->need, need);
    STORE_SEQ(&self->ring->view.header->waiting, waiting); /* SYNC room */
    for (unsigned i = 0; i < self->group_count; i++) {
        STORE_SEQ(&self->groups[i].ring->view.header->need, need);
        STORE_SEQ(&self->groups[i].ring->view.header->waiting, waiting); /* SYNC room */
    }
}

static int place(PyObject *arg) {
    long task = PyLong_AsLong(arg);
    return PyErr_Occurred() ? -1 : task != 0;
}

/* _block(task), _unblock(task): a thread, or a task, begins and ends to wait for room. */
static PyObject *producer_block(PyObject *object, PyObject *arg) {
    Producer *self = (Producer *)object;
    int task = place(arg);
    if (task < 0 || guard_check(&self->guard, "publisher") < 0)
        return NULL;
    self->blocked[task]++;
    Py_RETURN_NONE;
}

/* Nobody needs room any more, unless others wait. */
void producer_content(Producer *self) {
    if (self->ring && self->guard.fork_generation == fork_generation)
        set_waiting(self, waiting(self) ? LOAD_SEQ(&self->ring->view.header->need) : 0, waiting(self));
}

/* Whoever waits still is told of room as before: it looks again after this. */
static PyObject *producer_unblock(PyObject *object, PyObject *arg) {
    Producer *self = (Producer *)object;
    int task = place(arg);
    if (task < 0)
        return NULL;
    self->blocked[task] -= self->blocked[task] > 0;
    producer_content(self);
    Py_RETURN_NONE;
}

/* _rested(): a thread has slept, and looks again. It needs what it needed, and who looks at the books sees it wait, until
 * its call finds room, or gives up: see publish.c. */
static PyObject *producer_rested(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    self->blocked[0] -= self->blocked[0] > 0;
    if (self->ring && self->guard.fork_generation == fork_generation)
        set_waiting(self, LOAD_SEQ(&self->ring->view.header->need), waiting(self));
    Py_RETURN_NONE;
}

/* _flushing(more): so many more of those that wait, a negative number when they have done; what `waiting` is to say. */
static PyObject *producer_flushing(PyObject *object, PyObject *arg) {
    Producer *self = (Producer *)object;
    long more = PyLong_AsLong(arg);
    if (PyErr_Occurred())
        return NULL;
    self->flushing += (unsigned)more;
    return PyLong_FromUnsignedLongLong(waiting(self));
}

/* _within(callable, *args): calls it as one call of this handle, which close() waits for. */
static PyObject *producer_within(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Producer *self = (Producer *)object;
    if (!count) {
        PyErr_SetString(PyExc_TypeError, "_within(callable, *args)");
        return NULL;
    }
    if (guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    return guard_leave(&self->guard, object, call_many(args[0], args + 1, count - 1));
}

/* (true if the broadcast ring has room, bitmap of its blocking slots, [lines of groups without room]). */
static PyObject *lacking(Producer *self, uint64_t length) {
    if (publish_reserve(self, length) < 0)
        return NULL;
    uint64_t slots = self->fits ? 0 : ring_blocking(&self->ring->view, ring_need(&self->writer, length));
    PyObject *fits = self->fits ? Py_True : Py_False, *lines = PyList_New(0);
    unsigned full[MAX_GROUPS], count = 0;
    for (unsigned i = 0; i < self->group_count; i++) /* the list may let others run, who look for themselves */
        if (!self->groups[i].fits)
            full[count++] = self->groups[i].line;
    for (unsigned i = 0; lines && i < count; i++) {
        PyObject *line = PyLong_FromUnsignedLong(full[i]);
        if (!line || PyList_Append(lines, line) < 0)
            Py_CLEAR(lines);
        Py_XDECREF(line);
    }
    return lines ? Py_BuildValue("(OKN)", fits, (unsigned long long)slots, lines) : NULL;
}

static int length_of(Producer *self, PyObject *arg, uint64_t *length) {
    *length = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? -1 : guard_check(&self->guard, "publisher");
}

/* _lacking(length): which rings have no room. */
static PyObject *producer_lacking(PyObject *object, PyObject *arg) {
    uint64_t length;
    return length_of((Producer *)object, arg, &length) < 0 ? NULL : lacking((Producer *)object, length);
}

/* _full(length): the same, having announced the need and raised the waiting flags, so that whoever frees room afterwards
 * sees the flag. */
static PyObject *producer_full(PyObject *object, PyObject *arg) {
    Producer *self = (Producer *)object;
    uint64_t length;
    if (length_of(self, arg, &length) < 0)
        return NULL;
    set_waiting(self, ring_need(&self->writer, length), waiting(self));
    return lacking(self, length);
}

/* _refuse(): an event that finds no room in the pool goes nowhere, and is on everybody's books as refused. */
PyObject *producer_refuse(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    sender by = {0};
    if (guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    if (self->who && notes_ask(self, &by) < 0)
        return guard_leave(&self->guard, object, NULL);
    uint64_t now = realtime_ns();
    self->fits = false;
    for (unsigned i = 0; i < self->group_count; i++)
        self->groups[i].fits = false;
    notes_take(self, &by);
    ring_refuse(&self->ring->view, self->writer.sequence, 1, now);
    for (unsigned i = 0; i < self->group_count; i++)
        ring_refuse(&self->groups[i].ring->view, self->groups[i].writer.sequence, 1, now);
    return guard_leave(&self->guard, object, Py_NewRef(Py_None));
}

/* _shut(), _quiet(), _release(): as a Receiver has them. */
static PyObject *producer_shut(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Producer *)object)->guard.closed = true;
    Py_RETURN_NONE;
}

static PyObject *producer_quiet(PyObject *object, PyObject *unused) {
    (void)unused;
    return guard_quiet(&((Producer *)object)->guard);
}

static PyObject *producer_release(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    if (self->guard.ready)
        guard_release(&self->guard, object);
    self->guard.closed = true;
    Py_RETURN_NONE;
}

static PyObject *producer_closed(PyObject *object, void *unused) {
    (void)unused;
    return PyBool_FromLong(((Producer *)object)->guard.closed);
}

static PyGetSetDef getset[] = {{"closed", producer_closed, NULL, "True after close().", NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"publish", METHOD(producer_publish), METH_FASTCALL | METH_KEYWORDS, "publish(event, *, headers=None)"},
    {"publish_many", producer_publish_many, METH_O, "publish_many(events)"},
    {"_set_groups", producer_set_groups, METH_VARARGS, NULL},
    {"_seen_epoch", producer_seen_epoch, METH_NOARGS, NULL},
    {"_epoch", producer_epoch, METH_NOARGS, NULL},
    {"_freeze", producer_freeze, METH_NOARGS, NULL},
    {"_may_shrink", producer_may_shrink, METH_VARARGS, NULL},
    {"_full", producer_full, METH_O, NULL},
    {"_lacking", producer_lacking, METH_O, NULL},
    {"_block", producer_block, METH_O, NULL},
    {"_unblock", producer_unblock, METH_O, NULL},
    {"_rested", producer_rested, METH_NOARGS, NULL},
    {"_flushing", producer_flushing, METH_O, NULL},
    {"_within", METHOD(producer_within), METH_FASTCALL, NULL},
    {"_refuse", producer_refuse, METH_NOARGS, NULL},
    {"_encode", producer_encode, METH_VARARGS, NULL},
    {"_note_in", producer_note_in, METH_VARARGS, NULL},
    {"_put", producer_put, METH_VARARGS, NULL},
    {"_encode_many", producer_encode_many, METH_O, NULL},
    {"_put_many", producer_put_many, METH_VARARGS, NULL},
    {"_publish_rows", producer_publish_rows, METH_O, NULL},
    {"_shut", producer_shut, METH_NOARGS, NULL},
    {"_quiet", producer_quiet, METH_NOARGS, NULL},
    {"_foreign", encoding_foreign, METH_O, NULL},
    {"_refused", encoding_refused, METH_VARARGS, NULL},
    {"_release", producer_release, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_init, producer_init},
                              {Py_tp_new, PyType_GenericNew},
                              {Py_tp_dealloc, producer_dealloc},
                              {Py_tp_traverse, producer_traverse},
                              {Py_tp_clear, producer_clear},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, getset},
                              {Py_tp_doc, "The path of an event into its rings."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Producer",
                           .basicsize = sizeof(Producer),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

int producer_add(PyObject *module) { return type_add(module, &spec, NULL) ? 0 : -1; }
