/* BroadcastRing and WorkRing: one segment each, as the control plane sees it (membership, reclaim, books, `tail`). */
#include "python.h"

#include <fcntl.h>
#include <structmember.h>
#include <sys/stat.h>

static PyTypeObject *broadcast_type, *work_type;

/* ---- common to both ---- */

static int ring_buffer(Ring *self, PyObject *segment, uint32_t kind) {
    self->writable = PyObject_GetBuffer(segment, &self->buffer, PyBUF_WRITABLE) == 0;
    if (!self->writable) {
        PyErr_Clear();
        if (PyObject_GetBuffer(segment, &self->buffer, PyBUF_SIMPLE) < 0)
            return -1;
    }
    self->open = true;
    int status = ring_open(&self->view, self->buffer.buf, (uint64_t)self->buffer.len, kind);
    if (status == RING_FOREIGN)
        PyErr_SetString(LayoutMismatchError, "a ring segment of another layout version, or of another program");
    else if (status != RING_OK)
        PyErr_SetString(CorruptSegmentError, "ring segment: kind, capacity or size cannot be");
    if (status == RING_OK)
        self->id = self->view.header->ring_id;
    return status == RING_OK ? 0 : -1;
}

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *segment;
    if (!PyArg_ParseTuple(args, "O", &segment))
        return NULL;
    Ring *self = (Ring *)PyType_GenericAlloc(type, 0);
    if (self && ring_buffer(self, segment, type == work_type ? RING_WORK : RING_BROADCAST) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void ring_dealloc(PyObject *object) {
    Ring *self = (Ring *)object;
    if (self->weak)
        PyObject_ClearWeakRefs(object);
    if (self->open)
        PyBuffer_Release(&self->buffer);
    Py_XDECREF(self->post);
    object_free(object);
}

Ring *ring_checked(PyObject *object, uint32_t kind, bool writable) {
    PyTypeObject *type = kind == RING_WORK ? work_type : broadcast_type;
    if (Py_TYPE(object) != type) {
        PyErr_Format(PyExc_TypeError, "expected a %s", kind == RING_WORK ? "WorkRing" : "BroadcastRing");
        return NULL;
    }
    Ring *ring = (Ring *)object;
    if (writable && !ring->writable) {
        PyErr_SetString(AccessError, "the ring is attached read-only");
        return NULL;
    }
    return ring;
}

static PyObject *format_ring(PyObject *args, PyObject *kwargs, bool work) {
    static char *names[] = {"segment", "capacity", "ring_id", "sequence", "position", NULL};
    PyObject *segment;
    unsigned long long capacity, id, sequence = 1, position = 0;
    Py_buffer buffer;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKK|KK:format", names, &segment, &capacity, &id, &sequence,
                                     &position))
        return NULL;
    if (PyObject_GetBuffer(segment, &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    int status = (work ? work_format : ring_format)(buffer.buf, (uint64_t)buffer.len, capacity, id, sequence, position);
    PyBuffer_Release(&buffer);
    if (status == RING_OK)
        Py_RETURN_NONE;
    PyErr_Format(PyExc_ValueError, "cannot lay out a ring: capacity=%llu position=%llu", capacity, position);
    return NULL;
}

static PyObject *broadcast_format(PyObject *type, PyObject *args, PyObject *kwargs) {
    (void)type;
    return format_ring(args, kwargs, false);
}

static PyObject *work_format_(PyObject *type, PyObject *args, PyObject *kwargs) {
    (void)type;
    return format_ring(args, kwargs, true);
}

static PyObject *size_for(PyObject *arg, bool work) {
    unsigned long long capacity = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLongLong(work ? work_size(capacity) : ring_size(capacity));
}

static PyObject *broadcast_size(PyObject *type, PyObject *arg) {
    (void)type;
    return size_for(arg, false);
}

static PyObject *work_size_(PyObject *type, PyObject *arg) {
    (void)type;
    return size_for(arg, true);
}

static PyObject *maximum_for(PyObject *type, PyObject *arg) {
    (void)type;
    unsigned long long capacity = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(record_maximum(capacity));
}

static PyObject *release_publisher(PyObject *object, PyObject *unused) {
    (void)unused;
    Ring *self = (Ring *)object;
    return self->writable ? PyBool_FromLong(ring_release_publisher(&self->view)) : Py_NewRef(Py_False);
}

/* listen(flags): the publisher of the ring waits for what its consumers do. */
static PyObject *ring_listen(PyObject *object, PyObject *flags) {
    unsigned long waiting = PyLong_AsUnsignedLong(flags);
    Ring *self = (Ring *)object;
    if (PyErr_Occurred() || !ring_checked(object, self->view.header->kind, true))
        return NULL;
    STORE_SEQ(&self->view.header->waiting, waiting); /* SYNC room */
    Py_RETURN_NONE;
}

/* ---- retired rings ---- */

/* Frees pages of the segment through a descriptor of its file: how many bytes, -1. Looks first whether they are there,
 * for this is asked again and again. */
static long long punch(const Ring *self, int descriptor, const span *spans, unsigned count) {
    struct stat status;
    uint64_t spare = 0;
    for (unsigned i = 0; i < count; i++)
        spare += spans[i].length;
    if (fstat(descriptor, &status) == 0 && (uint64_t)status.st_blocks * 512 + spare <= (uint64_t)self->buffer.len)
        return 0;
    for (unsigned i = 0; i < count; i++)
        if (fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)spans[i].offset,
                      (off_t)spans[i].length) < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    return (long long)spare;
}

static PyObject *broadcast_shrink(PyObject *object, PyObject *args) {
    Ring *self = (Ring *)object;
    span spans[SPARE_SPANS];
    int descriptor, history;
    if (!PyArg_ParseTuple(args, "ip:shrink", &descriptor, &history) || !ring_checked(object, RING_BROADCAST, true))
        return NULL;
    if (!history && ring_trim(&self->view) != RING_OK) {
        corrupt(self, "records cannot be");
        return NULL;
    }
    long long freed = punch(self, descriptor, spans, ring_spare(&self->view, spans));
    return freed < 0 ? NULL : PyLong_FromLongLong(freed);
}

static PyObject *work_shrink(PyObject *object, PyObject *args) {
    Ring *self = (Ring *)object;
    span spans[SPARE_SPANS];
    int descriptor, history;
    if (!PyArg_ParseTuple(args, "ip:shrink", &descriptor, &history) || !ring_checked(object, RING_WORK, true))
        return NULL;
    long long freed = punch(self, descriptor, spans, work_spare(&self->view, spans));
    if (freed < 0)
        return NULL;
    work_trim(&self->view);
    return PyLong_FromLongLong(freed);
}

static PyObject *broadcast_slack(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(ring_slack(&((Ring *)object)->view));
}

static PyObject *work_slack_(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(work_slack(&((Ring *)object)->view));
}

static PyObject *ring_get(PyObject *object, void *which) {
    Ring *self = (Ring *)object;
    return PyLong_FromUnsignedLongLong(which ? self->view.capacity : self->id);
}

static PyGetSetDef ring_getset[] = {{"ring_id", ring_get, NULL, NULL, NULL},
                                    {"capacity", ring_get, NULL, NULL, (void *)1},
                                    {NULL, NULL, NULL, NULL, NULL}};

static PyObject *refused_losses(const ring_header *h) {
    return Py_BuildValue("(KKKKK)", LOAD_ACQUIRE(&h->refused), LOAD_RELAXED(&h->refused_first),
                         LOAD_RELAXED(&h->refused_last), LOAD_RELAXED(&h->refused_first_ns),
                         LOAD_RELAXED(&h->refused_last_ns));
}

/* ---- BroadcastRing ---- */

static Ring *writable(PyObject *object) {
    return ring_checked(object, Py_TYPE(object) == work_type ? RING_WORK : RING_BROADCAST, true);
}

/* A slot number from Python: IndexError for one that there is not. */
static int slot_number(unsigned long slot, unsigned slots, const char *what) {
    if (PyErr_Occurred() || slot < slots)
        return PyErr_Occurred() ? -1 : 0;
    PyErr_Format(PyExc_IndexError, "no %s %lu", what, slot);
    return -1;
}

static PyObject *broadcast_join(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"slot", "lossy", "oldest", NULL};
    unsigned long slot;
    int lossy = 0, oldest = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "k|pp:join", names, &slot, &lossy, &oldest) ||
        slot_number(slot, MAX_SUBSCRIBERS, "slot") < 0 || !writable(object))
        return NULL;
    if (ring_join(&((Ring *)object)->view, (unsigned)slot, lossy, oldest) == RING_OK)
        Py_RETURN_NONE;
    corrupt((Ring *)object, "no boundary to join at");
    return NULL;
}

static PyObject *broadcast_leave(PyObject *object, PyObject *arg) {
    unsigned long slot = PyLong_AsUnsignedLong(arg);
    if (slot_number(slot, MAX_SUBSCRIBERS, "slot") < 0 || !writable(object))
        return NULL;
    ring_leave(&((Ring *)object)->view, (unsigned)slot);
    Py_RETURN_NONE;
}

static PyObject *broadcast_ungate(PyObject *object, PyObject *arg) {
    unsigned long long slots = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred() || !writable(object))
        return NULL;
    ring_ungate(&((Ring *)object)->view, slots);
    Py_RETURN_NONE;
}

/* Before a slot of a retired ring is taken: its page may have been freed. */
static PyObject *broadcast_reserve(PyObject *object, PyObject *args) {
    int descriptor;
    unsigned long slot;
    if (!PyArg_ParseTuple(args, "ik:reserve", &descriptor, &slot) || slot_number(slot, MAX_SUBSCRIBERS, "slot") < 0 ||
        !writable(object))
        return NULL;
    off_t at = (off_t)(offsetof(broadcast_segment, cursors) + slot * sizeof(cursor_slot));
    if (fallocate(descriptor, FALLOC_FL_KEEP_SIZE, at, sizeof(cursor_slot)) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *broadcast_owed(PyObject *object, PyObject *arg) {
    unsigned long long among = PyLong_AsUnsignedLongLong(arg);
    Ring *self = (Ring *)object;
    ring_owed owed;
    if (PyErr_Occurred())
        return NULL;
    if (ring_owed_of(&self->view, among, &owed) != RING_OK) {
        corrupt(self, "cursor outside of the ring");
        return NULL;
    }
    return Py_BuildValue("(KKK)", owed.reliable, owed.attached, owed.unopened);
}

static PyObject *broadcast_give_up(PyObject *object, PyObject *arg) {
    unsigned long slot = PyLong_AsUnsignedLong(arg);
    if (slot_number(slot, MAX_SUBSCRIBERS, "slot") < 0 || !writable(object))
        return NULL;
    return PyBool_FromLong(ring_give_up(&((Ring *)object)->view, (unsigned)slot));
}

static PyObject *broadcast_info(PyObject *object, PyObject *unused) {
    (void)unused;
    Ring *self = (Ring *)object;
    const ring_header *h = self->view.header;
    uint64_t tail = LOAD_ACQUIRE(&h->tail), sequence;
    uint64_t oldest = LOAD_ACQUIRE(&h->oldest);
    if (ring_sequence_at(&self->view, tail, &sequence) != RING_OK) {
        corrupt(self, "tail is no boundary");
        return NULL;
    }
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsK}", "tail", tail, "sequence", sequence, "oldest", oldest, "intent",
                         LOAD_ACQUIRE(&h->intent), "members", LOAD_ACQUIRE(&h->members), "reliable",
                         LOAD_ACQUIRE(&h->reliable), "need", LOAD_ACQUIRE(&h->need), "waiting",
                         LOAD_ACQUIRE(&h->waiting), "refused", LOAD_ACQUIRE(&h->refused), "unrouted",
                         LOAD_ACQUIRE(&h->unrouted), "room", ring_room(&self->view));
}

static PyObject *broadcast_terms(PyObject *object, PyObject *arg) {
    unsigned long slot = PyLong_AsUnsignedLong(arg);
    ring_terms t;
    if (slot_number(slot, MAX_SUBSCRIBERS, "slot") < 0)
        return NULL;
    if (ring_terms_of(&((Ring *)object)->view, (unsigned)slot, &t) != RING_OK) {
        corrupt((Ring *)object, "cursor outside of the ring");
        return NULL;
    }
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsK}", "offered", t.offered, "delivered", t.delivered, "depth", t.depth,
                         "overrun", t.overrun, "refused", t.refused, "undecodable", t.undecodable, "oldest_ns",
                         t.oldest_ns, "pending_first", t.pending_first, "pending_last", t.pending_last, "next", t.next);
}

static PyObject *loss_tuple(const loss_record *loss) {
    return Py_BuildValue("(KKKKK)", LOAD_ACQUIRE(&loss->count), LOAD_RELAXED(&loss->first), LOAD_RELAXED(&loss->last),
                         LOAD_RELAXED(&loss->first_ns), LOAD_RELAXED(&loss->last_ns));
}

static PyObject *broadcast_losses(PyObject *object, PyObject *arg) {
    unsigned long slot = PyLong_AsUnsignedLong(arg);
    Ring *self = (Ring *)object;
    if (slot_number(slot, MAX_SUBSCRIBERS, "slot") < 0)
        return NULL;
    const cursor_slot *s = &((broadcast_segment *)self->view.header)->cursors[slot];
    const loss_pair *pair = &s->losses[LOAD_ACQUIRE(&s->flip) & 1]; /* SYNC losses */
    return Py_BuildValue("{sNsNsN}", "overrun", loss_tuple(&pair->overrun), "undecodable",
                         loss_tuple(&pair->undecodable), "refused", refused_losses(self->view.header));
}

static PyObject *broadcast_blocking(PyObject *object, PyObject *arg) {
    unsigned long long need = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(ring_blocking(&((Ring *)object)->view, need));
}

static PyObject *broadcast_behind(PyObject *object, PyObject *arg) {
    unsigned long long position = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(ring_behind(&((Ring *)object)->view, position));
}

static PyMethodDef broadcast_methods[] = {
    {"format", METHOD(broadcast_format), METH_VARARGS | METH_KEYWORDS | METH_STATIC,
     "Lay out an empty ring in a segment."},
    {"size", broadcast_size, METH_O | METH_STATIC,
     "Bytes of a segment for `capacity` bytes of records, 0 if it cannot be."},
    {"maximum", maximum_for, METH_O | METH_STATIC, "Largest record body in bytes for a capacity."},
    {"join", METHOD(broadcast_join), METH_VARARGS | METH_KEYWORDS, "Take a cursor slot. Under the bus lock."},
    {"leave", broadcast_leave, METH_O, "Free a cursor slot. Under the bus lock."},
    {"ungate", broadcast_ungate, METH_O, "ungate(slots): they hold nobody back in this ring, which was left."},
    {"info", broadcast_info, METH_NOARGS, "The publisher's words."},
    {"terms", broadcast_terms, METH_O, "The books of one slot."},
    {"losses", broadcast_losses, METH_O, "(count, first, last, first_ns, last_ns) by cause, for one slot."},
    {"blocking", broadcast_blocking, METH_O, "Bitmap of the slots that keep `need` bytes from being written."},
    {"behind", broadcast_behind, METH_O, "Bitmap of the reliable slots that have not received all below a position."},
    {"listen", ring_listen, METH_O, "listen(flags): its publisher waits."},
    {"release_publisher", release_publisher, METH_NOARGS, "Clear a waiting publisher's flag; true: post."},
    {"owed", broadcast_owed, METH_O, "owed(among): slots with events left: (reliable, lossy, lossy and not opened)."},
    {"give_up", broadcast_give_up, METH_O, "Take a slot from a reader that has not opened it; false: it has."},
    {"slack", broadcast_slack, METH_NOARGS, "Bytes that shrinking would free, without the history."},
    {"shrink", broadcast_shrink, METH_VARARGS, "shrink(descriptor, history): free what nobody will read. Retired."},
    {"reserve", broadcast_reserve, METH_VARARGS, "reserve(descriptor, slot): get back the memory of a slot to join."},
    {NULL, NULL, 0, NULL},
};

/* ---- WorkRing ---- */

static int owner_of(PyObject *args, const char *format, unsigned *owner, unsigned *generation) {
    unsigned long slot;
    if (!PyArg_ParseTuple(args, format, &slot, generation) || slot_number(slot, MAX_WORKERS, "worker slot") < 0)
        return -1;
    *owner = (unsigned)slot;
    return 0;
}

static PyObject *work_reclaim_(PyObject *object, PyObject *args) {
    unsigned long owner;
    unsigned generation;
    uint64_t count;
    PyObject *lanes = Py_None;
    lane_table *table;
    if (!PyArg_ParseTuple(args, "kI|O:reclaim", &owner, &generation, &lanes) ||
        slot_number(owner, MAX_WORKERS, "worker slot") < 0 || !writable(object) || lanes_of_buffer(lanes, &table) < 0)
        return NULL;
    const ring_view *view = &((Ring *)object)->view;
    int status = table ? lane_reclaim(table, view, (unsigned)owner, generation, &count)
                       : work_reclaim(view, (unsigned)owner, generation, &count);
    if (status != RING_OK) {
        corrupt((Ring *)object, "gate and tail cannot be");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *work_held_(PyObject *object, PyObject *args) {
    unsigned owner, generation;
    if (owner_of(args, "kI:held", &owner, &generation) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(work_held(&((Ring *)object)->view, owner, generation, NULL, 0));
}

static PyObject *claim_list(const held_claim *claims, uint64_t count) {
    PyObject *list = PyList_New(0);
    for (uint64_t i = 0; list && i < count; i++) {
        PyObject *pair = Py_BuildValue("(KK)", claims[i].sequence, claims[i].word);
        if (!pair || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *work_claims(PyObject *object, PyObject *args) {
    const ring_view *view = &((Ring *)object)->view;
    unsigned owner, generation;
    if (owner_of(args, "kI:claims", &owner, &generation) < 0)
        return NULL;
    uint64_t room = work_held(view, owner, generation, NULL, 0);
    held_claim *claims = PyMem_Malloc(sizeof(held_claim) * (room ? room : 1));
    if (!claims)
        return PyErr_NoMemory();
    uint64_t held = work_held(view, owner, generation, claims, room);
    PyObject *list = claim_list(claims, held < room ? held : room);
    PyMem_Free(claims);
    return list;
}

static PyObject *work_abandon_(PyObject *object, PyObject *unused) {
    (void)unused;
    uint64_t count;
    if (!writable(object))
        return NULL;
    if (work_abandon(&((Ring *)object)->view, realtime_ns(), &count) != RING_OK) {
        corrupt((Ring *)object, "gate and tail cannot be");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *work_terms_(PyObject *object, PyObject *unused) {
    (void)unused;
    work_terms t;
    if (work_terms_of(&((Ring *)object)->view, &t) != RING_OK) {
        corrupt((Ring *)object, "gate and tail cannot be");
        return NULL;
    }
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsKsKsK}", "offered", t.offered, "delivered",
                         t.done - t.rejected - t.undecodable - t.abandoned, "depth", t.depth, "claimed", t.claimed,
                         "delayed", t.delayed, "refused", t.refused, "rejected", t.rejected, "undecodable",
                         t.undecodable, "abandoned", t.abandoned, "oldest_ns", t.oldest_ns, "next", t.first_open,
                         "need", LOAD_ACQUIRE(&((Ring *)object)->view.header->need), "room",
                         work_room(&((Ring *)object)->view));
}

static PyObject *work_losses(PyObject *object, PyObject *unused) {
    (void)unused;
    const ring_header *h = ((Ring *)object)->view.header;
    return Py_BuildValue("{sNsNsNsN}", "rejected", loss_tuple(&h->rejected), "undecodable", loss_tuple(&h->undecodable),
                         "abandoned", loss_tuple(&h->abandoned), "refused", refused_losses(h));
}

static PyObject *work_bounds(PyObject *object, PyObject *unused) {
    (void)unused;
    const ring_header *h = ((Ring *)object)->view.header;
    return Py_BuildValue("(KK)", LOAD_SEQ(&h->gate), LOAD_SEQ(&h->tail)); /* SYNC gate, room */
}

static PyMethodDef work_methods[] = {
    {"format", METHOD(work_format_), METH_VARARGS | METH_KEYWORDS | METH_STATIC,
     "Lay out an empty ring in a zeroed segment."},
    {"size", work_size_, METH_O | METH_STATIC,
     "Bytes of a segment for `capacity` bytes of records, 0 if it cannot be."},
    {"reclaim", work_reclaim_, METH_VARARGS,
     "reclaim(owner, generation, lanes=None): give back what a dead worker held; how many."},
    {"held", work_held_, METH_VARARGS, "held(owner, generation): records that a worker holds."},
    {"claims", work_claims, METH_VARARGS, "claims(owner, generation): (sequence, word) of each record that it holds."},
    {"take_back", work_take_back, METH_VARARGS,
     "take_back(sequence, word): give a claim to others, if it still stands."},
    {"abandon", work_abandon_, METH_NOARGS, "Make an end of what is left, and count it as abandoned; how many."},
    {"terms", work_terms_, METH_NOARGS, "The group's books on this ring."},
    {"depth", work_depth, METH_NOARGS, "(events that are not done, those of them that are claimed)."},
    {"span", work_span, METH_NOARGS, "Events from the first that is not done on."},
    {"losses", work_losses, METH_NOARGS, "(count, first, last, first_ns, last_ns) by cause."},
    {"bounds", work_bounds, METH_NOARGS,
     "(gate, tail): the first sequence that is not done, and the one that comes next."},
    {"listen", ring_listen, METH_O, "listen(flags): its publisher waits."},
    {"release_publisher", release_publisher, METH_NOARGS, "Clear a waiting publisher's flag; true: post."},
    {"slack", work_slack_, METH_NOARGS, "Bytes that shrinking would free."},
    {"shrink", work_shrink, METH_VARARGS,
     "shrink(descriptor, history): free what nobody will read. Retired, and under the bus lock."},
    {NULL, NULL, 0, NULL},
};

/* ---- types ---- */

static PyMemberDef ring_members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(Ring, weak), READONLY, NULL},
                                     {NULL, 0, 0, 0, NULL}};
static PyType_Slot broadcast_slots[] = {{Py_tp_new, ring_new},
                                        {Py_tp_dealloc, ring_dealloc},
                                        {Py_tp_methods, broadcast_methods},
                                        {Py_tp_members, ring_members},
                                        {Py_tp_getset, ring_getset},
                                        {Py_tp_doc, "BroadcastRing(segment): a checked view."},
                                        {0, NULL}};
static PyType_Slot work_slots[] = {{Py_tp_new, ring_new},
                                   {Py_tp_dealloc, ring_dealloc},
                                   {Py_tp_methods, work_methods},
                                   {Py_tp_members, ring_members},
                                   {Py_tp_getset, ring_getset},
                                   {Py_tp_doc, "WorkRing(segment): a checked view."},
                                   {0, NULL}};

static PyType_Spec broadcast_spec = {.name = "shmbus._core.BroadcastRing",
                                     .basicsize = sizeof(Ring),
                                     .flags = Py_TPFLAGS_DEFAULT,
                                     .slots = broadcast_slots};
static PyType_Spec work_spec = {
    .name = "shmbus._core.WorkRing", .basicsize = sizeof(Ring), .flags = Py_TPFLAGS_DEFAULT, .slots = work_slots};

int rings_add(PyObject *module) {
    broadcast_type = type_add(module, &broadcast_spec, NULL);
    work_type = type_add(module, &work_spec, NULL);
    return broadcast_type && work_type ? 0 : -1;
}
