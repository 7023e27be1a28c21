/* Producer: what Publisher inherits. Encode, reserve in every ring, write, commit, look who is parked, with no Python
 * frame in between unless something is out of the ordinary: then one of the hooks is called, and the attempt starts again.
 *
 *   _refresh()            membership of the topic changed
 *   _make_room(length, first, committed)  a ring is full: True to try again, False to drop; or raises Full
 *   _post(group, slot)    a subscriber (group -1) or a worker sleeps: see wake.c
 *   _encode_headers(h)    bytes for the headers of one event
 *
 * Between the last hook and the commit nothing runs but this code under the GIL, so threads may share a Producer. */
#include "producer.h"

/* ---- rings ---- */

static int producer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment", "topic", "ring", "encode", "accepts", "expected", "encode_into", NULL};
    Producer *self = (Producer *)object;
    PyObject *segment, *ring, *encode, *accepts, *expected, *into = Py_None;
    unsigned topic;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOOO!O|O", names, &segment, &topic, &ring, &encode, &PyTuple_Type,
                                     &accepts, &expected, &into))
        return -1;
    if (self->ring) {
        PyErr_SetString(PyExc_RuntimeError, "a producer is made once");
        return -1;
    }
    if (!ring_checked(ring, RING_BROADCAST, true) || lines_bind(&self->lines, segment, topic) < 0)
        return -1;
    self->guard = (guard){.fork_generation = fork_generation, .ready = true};
    self->encode = Py_NewRef(encode);
    self->into = Py_NewRef(into);
    self->scratch = PyByteArray_FromStringAndSize(NULL, 0);
    self->accepts = Py_NewRef(accepts);
    self->type_error = Py_NewRef(expected);
    self->ring = (Ring *)Py_NewRef(ring);
    if (!self->scratch || wakers_init(&self->subscribers, -1, MAX_SUBSCRIBERS) < 0)
        return -1;
    return ring_writer_open(&self->writer, &self->ring->view) == RING_OK ? 0 : corrupt(self->ring, "tail cannot be");
}

static int producer_traverse(PyObject *object, visitproc visit, void *arg) {
    Producer *self = (Producer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->encode);
    Py_VISIT(self->into);
    Py_VISIT(self->accepts);
    Py_VISIT(self->type_error);
    return 0;
}

static void drop_group(group_out *group) {
    wakers_clear(&group->workers);
    Py_DECREF((PyObject *)group->ring);
}

static void drop_rings(Producer *self) {
    while (self->group_count)
        drop_group(&self->groups[--self->group_count]);
    wakers_clear(&self->subscribers);
    Py_CLEAR(self->ring);
    lines_unbind(&self->lines);
}

static int producer_clear(PyObject *object) {
    Producer *self = (Producer *)object;
    self->guard.closed = true;
    drop_rings(self);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->into);
    Py_CLEAR(self->scratch);
    Py_CLEAR(self->accepts);
    Py_CLEAR(self->type_error);
    return 0;
}

static void producer_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    producer_clear(object);
    object_free(object);
}

static group_out *group_of(Producer *self, const Ring *ring) {
    for (unsigned i = 0; i < self->group_count; i++)
        if (self->groups[i].ring == ring)
            return &self->groups[i];
    return NULL;
}

/* _set_groups(routed, [(WorkRing, line), ...]): the groups from now on; writers of rings that stay are kept. */
static PyObject *producer_set_groups(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    PyObject *list;
    int routed;
    if (!PyArg_ParseTuple(args, "pO!:_set_groups", &routed, &PyList_Type, &list) ||
        guard_check(&self->guard, "publisher") < 0)
        return NULL;
    Py_ssize_t count = PyList_Size(list);
    if (count > MAX_GROUPS)
        return PyErr_Format(PyExc_ValueError, "%zd groups, at most %d", count, MAX_GROUPS);
    group_out fresh[MAX_GROUPS];
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *ring;
        unsigned line;
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "OI", &ring, &line) || !ring_checked(ring, RING_WORK, true))
            return NULL;
        if (!lines_group(&self->lines, line))
            return PyErr_Format(PyExc_IndexError, "no group line %u", line);
        fresh[i] = (group_out){.ring = (Ring *)ring, .line = line};
        if (!group_of(self, (Ring *)ring) && work_writer_open(&fresh[i].writer, &((Ring *)ring)->view) != RING_OK) {
            corrupt((Ring *)ring, "gate and tail cannot be");
            return NULL;
        }
        fresh[i].shown = fresh[i].writer.sequence;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        group_out *old = group_of(self, fresh[i].ring);
        if (old) {
            fresh[i] = *old;
            old->workers = (wakers){0};
        }
        Py_INCREF((PyObject *)fresh[i].ring);
    }
    for (unsigned i = 0; i < self->group_count; i++)
        drop_group(&self->groups[i]);
    memcpy(self->groups, fresh, sizeof(group_out) * (size_t)count);
    self->group_count = (unsigned)count;
    self->routed = routed || count;
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

/* ---- one event ---- */

static int reserve_all(Producer *self, uint64_t length) {
    int status = ring_reserve(&self->writer, length);
    self->fits = status == RING_OK;
    for (unsigned i = 0; i < self->group_count && status >= 0; i++) {
        int one = work_reserve(&self->groups[i].writer, length);
        self->groups[i].fits = one == RING_OK;
        if (one != RING_OK)
            status = one;
    }
    if (status < 0)
        corrupt(self->ring, "cursors, gate or records cannot be");
    return status;
}

static void commit_all(Producer *self) {
    ring_commit(&self->writer);
    for (unsigned i = 0; i < self->group_count; i++)
        work_commit(&self->groups[i].writer);
}

/* A batch wakes as many workers as it has records, unless others were waiting before it: then somebody is on the way, and
 * wakes the next one (SYNC chain). */
static int wake_group(Producer *self, group_out *g) {
    group_line *line = lines_group(&self->lines, g->line);
    uint64_t first = g->shown, count = g->writer.sequence - first, any = 0;
    g->shown = g->writer.sequence;
    for (int w = 0; line && w < MAX_WORKERS / 64; w++)
        any |= LOAD_SEQ(&line->parked[w]); /* SYNC park */
    if (!any || !count || !work_fresh(&g->ring->view, first))
        return 0;
    if (!g->workers.posts && wakers_init(&g->workers, (int)g->line, MAX_WORKERS) < 0)
        return -1;
    return wakers_wake((PyObject *)self, &self->guard, &g->workers, line->parked, line->awaiting, MAX_WORKERS / 64,
                       count);
}

static int wake_all(Producer *self) {
    topic_line *line = self->lines.topic;
    int status = 0;
    if (LOAD_SEQ(&line->parked)) /* SYNC park */
        status = wakers_wake((PyObject *)self, &self->guard, &self->subscribers, &line->parked, &line->awaiting, 1,
                             MAX_SUBSCRIBERS);
    for (unsigned i = 0; i < self->group_count && status >= 0; i++)
        status = wake_group(self, &self->groups[i]);
    return status < 0 ? -1 : 0;
}

/* Writes where there is room, and counts a refusal where there is none. */
static bool write_all(Producer *self, const part *part) {
    bool all = self->fits;
    if (self->fits)
        ring_write(&self->writer, part);
    else
        ring_refuse(&self->ring->view, self->writer.sequence, 1, part->time_ns);
    for (unsigned i = 0; i < self->group_count; i++) {
        group_out *g = &self->groups[i];
        if (g->fits)
            work_write(&g->writer, part);
        else
            ring_refuse(&g->ring->view, g->writer.sequence, 1, part->time_ns);
        all = all && g->fits;
    }
    if (!self->routed)
        STORE_RELAXED(&self->ring->view.header->unrouted, LOAD_RELAXED(&self->ring->view.header->unrouted) + 1);
    return all;
}

typedef struct batch {  /* one call of publish or publish_many; threads may share the Producer */
    uint64_t pending;   /* written, not yet committed */
    uint64_t committed; /* events of this call that are in */
    bool waited;
} batch;

/* Commits what is pending, and wakes whom it concerns, before a hook runs. An error that is raised stays so. */
static int flush(Producer *self, batch *b) {
    if (!b->pending)
        return 0;
    PyObject *error = PyErr_Occurred() ? error_take() : NULL; /* no Python code runs beside a raised error */
    commit_all(self);
    b->committed += b->pending;
    int status = wake_all(self);
    b->pending = 0;
    if (error)
        error_restore(error);
    return error ? -1 : status;
}

/* Runs the hook that an attempt needs: 1 to try again, 0 to drop, -1. */
static int ask(Producer *self, bool stale, uint64_t length, batch *b) {
    PyObject *result = stale ? PyObject_CallMethod((PyObject *)self, "_refresh", NULL)
                             : PyObject_CallMethod((PyObject *)self, "_make_room", "KOK", (unsigned long long)length,
                                                   b->waited ? Py_False : Py_True, (unsigned long long)b->committed);
    if (!result && stale)
        self->lines.epoch = UINT64_MAX; /* it may have got half-way: the next call does it again */
    b->waited = b->waited || !stale;
    int again = result ? stale || PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return again < 0 || guard_check(&self->guard, "publisher") < 0 ? -1 : again;
}

/* Room for one record in every ring: 1; 0: where `fits` says; -1: an exception. */
static int acquire(Producer *self, uint64_t length, batch *b) {
    for (;;) {
        bool stale = LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch; /* SYNC epoch */
        int status = stale ? RING_EMPTY : reserve_all(self, length);
        if (status == RING_OK)
            return 1;
        if (flush(self, b) < 0 || status < 0)
            return -1;
        int again = ask(self, stale, length, b);
        if (again < 0)
            return -1;
        if (!again) { /* the policy is to drop; another thread may have changed anything while it was asked */
            if (LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch)
                continue;
            status = reserve_all(self, length);
            return status < 0 ? -1 : status == RING_OK;
        }
    }
}

static PyObject *publish_bytes(Producer *self, PyObject *payload, const void *headers, uint32_t headers_length) {
    part p = {.headers = headers, .headers_length = headers_length};
    batch one = {0};
    if (encoding_bytes(self, payload, &p) < 0 ||
        acquire(self, p.payload_length + ((headers_length + 7u) & ~(uint64_t)7), &one) < 0)
        return NULL;
    p.time_ns = realtime_ns();
    bool all = write_all(self, &p);
    commit_all(self);
    uint64_t sequence = self->writer.sequence - 1;
    if (wake_all(self) < 0)
        return NULL;
    return all ? PyLong_FromUnsignedLongLong(sequence) : Py_NewRef(Py_None);
}

static PyObject *publish(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    Producer *self = (Producer *)object;
    Py_ssize_t keywords = names ? PyTuple_Size(names) : 0;
    if (guard_check(&self->guard, "publisher") < 0)
        return NULL;
    if (count != 1 || keywords > 1 ||
        (keywords && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "headers") != 0)) {
        PyErr_SetString(PyExc_TypeError, "publish(event, *, headers=None)");
        return NULL;
    }
    PyObject *headers = NULL, *payload, *result = NULL;
    if (keywords && args[1] != Py_None) {
        headers = PyObject_CallMethod(object, "_encode_headers", "(O)", args[1]);
        if (!headers)
            return NULL;
        if (!PyBytes_Check(headers) || PyBytes_Size(headers) > MAX_HEADERS) {
            PyErr_Format(PyExc_ValueError, "headers are at most %u bytes", MAX_HEADERS);
            Py_DECREF(headers);
            return NULL;
        }
    }
    uint32_t length = headers ? (uint32_t)PyBytes_Size(headers) : 0;
    bool mine =
        self->into != Py_None && !self->scratch_busy; /* another thread, or the encoder's own code, may have it */
    self->scratch_busy = self->scratch_busy || mine;
    payload = encoding_one(self, args[0], length, mine);
    if (payload)
        result = publish_bytes(self, payload, headers ? PyBytes_AsString(headers) : NULL, length);
    if (mine)
        self->scratch_busy = false;
    Py_XDECREF(payload);
    Py_XDECREF(headers);
    return result;
}

/* Everything is encoded before anything is written; one commit for as many as fit at once. */
static PyObject *publish_many(PyObject *object, PyObject *events) {
    Producer *self = (Producer *)object;
    PyObject *payloads = guard_check(&self->guard, "publisher") < 0 ? NULL : encoding_many(self, events);
    batch b = {0};
    uint64_t missed = 0, now_ns = 0;
    int status = !payloads || guard_check(&self->guard, "publisher") < 0 ? -1 : 0;
    for (Py_ssize_t i = 0; status >= 0 && i < PyList_Size(payloads); i++) {
        PyObject *payload = PyList_GetItem(payloads, i);
        part p = {.payload = BYTES_DATA(payload), .payload_length = (uint64_t)BYTES_SIZE(payload)};
        status = acquire(self, p.payload_length, &b);
        if (status < 0)
            break;
        if (!b.pending)
            now_ns = realtime_ns(); /* one for all that become visible together */
        p.time_ns = now_ns;
        missed += !write_all(self, &p);
        b.pending++;
    }
    Py_XDECREF(payloads);
    if (status < 0 || flush(self, &b) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(b.committed - missed);
}

/* ---- what hooks use ---- */

static void set_waiting(Producer *self, uint64_t need, uint64_t waiting) {
    STORE_SEQ(&self->ring->view.header->need, need);
    STORE_SEQ(&self->ring->view.header->waiting, waiting); /* SYNC room */
    for (unsigned i = 0; i < self->group_count; i++) {
        STORE_SEQ(&self->groups[i].ring->view.header->need, need);
        STORE_SEQ(&self->groups[i].ring->view.header->waiting, waiting); /* SYNC room */
    }
}

/* _full(length): (bitmap of the broadcast ring's blocking slots, [lines of groups without room]). Announces the need,
 * raises the waiting flags, and looks again, so that whoever frees room afterwards sees the flag. */
static PyObject *producer_full(PyObject *object, PyObject *arg) {
    Producer *self = (Producer *)object;
    unsigned long long length = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred() || guard_check(&self->guard, "publisher") < 0)
        return NULL;
    set_waiting(self, ring_need(&self->writer, length), 1);
    if (reserve_all(self, length) < 0)
        return NULL;
    PyObject *lines = PyList_New(0);
    for (unsigned i = 0; lines && i < self->group_count; i++) {
        PyObject *line = self->groups[i].fits ? NULL : PyLong_FromUnsignedLong(self->groups[i].line);
        if (line && PyList_Append(lines, line) < 0)
            Py_CLEAR(lines);
        Py_XDECREF(line);
    }
    uint64_t slots = self->fits ? 0 : ring_blocking(&self->ring->view, ring_need(&self->writer, length));
    return lines ? Py_BuildValue("(OKN)", self->fits ? Py_True : Py_False, (unsigned long long)slots, lines) : NULL;
}

static PyObject *producer_unblock(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    if (guard_check(&self->guard, "publisher") < 0)
        return NULL;
    set_waiting(self, 0, 0);
    Py_RETURN_NONE;
}

static PyObject *producer_release(PyObject *object, PyObject *unused) {
    (void)unused;
    Producer *self = (Producer *)object;
    self->guard.closed = true;
    drop_rings(self);
    Py_RETURN_NONE;
}

static PyObject *producer_closed(PyObject *object, void *unused) {
    (void)unused;
    return PyBool_FromLong(((Producer *)object)->guard.closed);
}

static PyGetSetDef getset[] = {{"closed", producer_closed, NULL, "True after close().", NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef methods[] = {
    {"publish", METHOD(publish), METH_FASTCALL | METH_KEYWORDS, "publish(event, *, headers=None)"},
    {"publish_many", publish_many, METH_O, "publish_many(events)"},
    {"_set_groups", producer_set_groups, METH_VARARGS, NULL},
    {"_seen_epoch", producer_seen_epoch, METH_NOARGS, NULL},
    {"_full", producer_full, METH_O, NULL},
    {"_unblock", producer_unblock, METH_NOARGS, NULL},
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
