/* Packer: an event and its arrays become a payload, and buffers of the publisher's pool. See parcels.c for what is written.
 *
 * A subclass in Python encodes, and knows every kind of array; what it has seen once is done here.
 *   encode(event)         the event as bytes; what msgspec does not know comes to `extend`, whatever has buffers to `_add`
 *   wait(packing)         there is no room in the pool: a payload once there is, or NOTHING
 *   _extend_other(value)  what `extend` has not seen
 *   _flat(source)         the bytes of a short source that is no buffer in C order
 *   _write(source, lease) the same for a long one, into the pool
 *
 * While an event is encoded its buffers are noted with the thread that encodes it: any code may run meanwhile, and publish.
 * Between a look at the pool and the last byte that is written there no code but this runs. */
#include "pools.h"

#include <structmember.h>

#define FEW 2
#define SIDES 4
#define KINDS 4

typedef struct seen { /* the kind of an array, and what stands for it in its event */
    unsigned number;
    int sides;
    Py_ssize_t shape[SIDES];
    PyObject *dtype, *extension;
} seen;

typedef struct Packer {
    PyObject_HEAD Pool *pool;
    PyObject *encode, *wait;
    PyObject *ndarray; /* NumPy's class, once an array was seen */
    PyObject *known;   /* {(number, dtype, shape): extension} of such arrays */
    PyObject *shapes;  /* {(shape, dtype): (class, sides, dtype, bytes)} of what `lend` was asked for */
    seen last[KINDS];  /* of them, by their number */
    record_room room;
    uint64_t spill; /* bytes past which the encoded event goes into the pool */
} Packer;

typedef struct Packing {                 /* an event that is encoded, and its buffers, which have yet to find room */
    PyObject_HEAD struct Packing *outer; /* what its thread encoded when this began */
    Packer *packer;
    PyObject *event, *body;
    unsigned count, room;
    piece *pieces, few[FEW];
} Packing;

static PyTypeObject *packing_type;
static _Thread_local Packing *current __attribute__((tls_model("initial-exec"))); /* what this thread encodes */
static PyObject *dtype_name, *shape_name, *names_name;

/* ---- buffers ---- */

static int make_room(Packing *self) {
    if (self->count < self->room)
        return 0;
    unsigned room = self->room * 2;
    piece *grown = PyMem_Realloc(self->pieces == self->few ? NULL : self->pieces, room * sizeof(piece));
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    if (self->pieces == self->few)
        memcpy(grown, self->few, sizeof(self->few));
    self->pieces = grown;
    self->room = room;
    return 0;
}

/* A buffer of the event that is encoded: its number is the count before. `view` is what may lie in a loan; where the bytes of
 * the source are known, `bytes` is them, and taken over. */
static int add_piece(Packing *packing, PyObject *source, PyObject *view, uint64_t length, Py_buffer *bytes) {
    piece one = {.length = length};
    int status = 0;
    if (length > packing->packer->room.small)
        status = lease_of(packing->packer->pool, view, &one.lease);
    if (status == 0 && one.lease) {
        Py_buffer *seen = bytes ? bytes : &one.view;
        if (!bytes && PyObject_GetBuffer(source, &one.view, PyBUF_STRIDES) < 0)
            status = -1;
        else if (!lease_has(one.lease, seen, &one.offset))
            Py_CLEAR(one.lease);
    }
    if (status == 0)
        status = make_room(packing); /* only now: the code that ran may have encoded more of it */
    if (status == 0) {
        if (bytes)
            one.view = *bytes;
        one.source = Py_NewRef(one.lease ? view : source); /* what becomes read-only is what was given */
        packing->pieces[packing->count++] = one;
        return 0;
    }
    Py_XDECREF((PyObject *)one.lease);
    PyBuffer_Release(&one.view);
    if (bytes)
        PyBuffer_Release(bytes);
    return -1;
}

static Packing *being_encoded(const Packer *self) {
    for (Packing *one = current; one; one = one->outer)
        if (one->packer == self)
            return one;
    PyErr_SetString(PyExc_RuntimeError, "no event is being encoded here");
    return NULL;
}

static bool is_like(const seen *last, unsigned number, const PyObject *dtype, const Py_buffer *view) {
    bool same = last->number == number && last->dtype == dtype && last->sides == view->ndim && view->ndim <= SIDES;
    for (int i = 0; same && i < view->ndim; i++)
        same = last->shape[i] == view->shape[i];
    return same;
}

/* Looked up by dtype and shape, and remembered as the last one of its number: a new reference; NULL: it was never seen.
 * A dtype with fields is looked up each time, for they may be renamed. */
static PyObject *look_up(Packer *self, Packing *packing, PyObject *value, PyObject *dtype, const Py_buffer *view) {
    PyObject *number = PyLong_FromUnsignedLong(packing->count), *shape = PyObject_GetAttr(value, shape_name);
    PyObject *key = number && shape ? PyTuple_Pack(3, number, dtype, shape) : NULL;
    PyObject *extension = key ? Py_XNewRef(PyDict_GetItemWithError(self->known, key)) : NULL;
    Py_XDECREF(number);
    Py_XDECREF(shape);
    Py_XDECREF(key);
    PyObject *names = extension ? PyObject_GetAttr(dtype, names_name) : NULL;
    Py_XDECREF(names);
    if (!names)
        Py_CLEAR(extension);
    if (names != Py_None)
        return extension;
    seen *last = &self->last[packing->count % KINDS], before = *last;
    *last = (seen){packing->count, view->ndim, {0}, Py_NewRef(dtype), Py_NewRef(extension)};
    for (int i = 0; i < view->ndim && i < SIDES; i++)
        last->shape[i] = view->shape[i];
    Py_XDECREF(before.dtype);
    Py_XDECREF(before.extension);
    return extension;
}

/* The extension of an array of a kind that was seen under this number; NULL: it was not. */
static PyObject *known_extension(Packer *self, Packing *packing, PyObject *value) {
    Py_buffer view;
    PyObject *dtype = PyObject_GetAttr(value, dtype_name), *extension = NULL;
    if (!dtype || PyObject_GetBuffer(value, &view, PyBUF_STRIDES) < 0) {
        Py_XDECREF(dtype);
        return NULL;
    }
    const seen *last = &self->last[packing->count % KINDS];
    extension = is_like(last, packing->count, dtype, &view) ? Py_NewRef(last->extension)
                                                            : look_up(self, packing, value, dtype, &view);
    Py_DECREF(dtype);
    if (!extension)
        PyBuffer_Release(&view);
    if (extension && add_piece(packing, value, value, (uint64_t)view.len, &view) < 0)
        Py_CLEAR(extension);
    return extension;
}

/* extend(value): what msgspec is to write for a value that it does not know. */
static PyObject *packer_extend(PyObject *object, PyObject *value) {
    Packer *self = (Packer *)object;
    Packing *packing = being_encoded(self);
    if (!packing)
        return NULL;
    if ((PyObject *)Py_TYPE(value) == self->ndarray) {
        PyObject *extension = known_extension(self, packing, value);
        if (extension || PyErr_Occurred())
            return extension;
    }
    return PyObject_CallMethod(object, "_extend_other", "(O)", value);
}

/* _add(source, view, length): one more buffer of the event that is encoded; its number. `source` has the bytes, or writes
 * them; `view` is what may lie in a loan. */
static PyObject *packer_add(PyObject *object, PyObject *args) {
    PyObject *source, *view;
    unsigned long long length;
    Packing *packing = being_encoded((Packer *)object);
    if (!packing || !PyArg_ParseTuple(args, "OOK:_add", &source, &view, &length))
        return NULL;
    return add_piece(packing, source, view, length, NULL) < 0 ? NULL : PyLong_FromUnsignedLong(packing->count - 1);
}

/* ---- finding room ---- */

/* A source whose bytes do not lie in C order is written by the subclass: where that is short at once, into bytes of its own.
 * 0, and its view has its bytes or it is to be written; -1. */
static int look_at(Packer *packer, piece *one) {
    for (int again = 0;; again++) {
        if (!one->view.obj && PyObject_CheckBuffer(one->source) &&
            PyObject_GetBuffer(one->source, &one->view, PyBUF_STRIDES) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_BufferError))
                return -1;
            PyErr_Clear(); /* it has suboffsets */
        }
        if (one->view.obj && PyBuffer_IsContiguous(&one->view, 'C') && (uint64_t)one->view.len == one->length)
            return 0;
        PyBuffer_Release(&one->view);
        if (one->length > packer->room.small)
            return 0;
        PyObject *flat = again ? NULL : PyObject_CallMethod((PyObject *)packer, "_flat", "(O)", one->source);
        if (again)
            PyErr_Format(PyExc_BufferError, "a buffer has not the bytes that it says: length=%llu",
                         (unsigned long long)one->length);
        if (!flat)
            return -1;
        Py_XSETREF(one->source, flat);
    }
}

/* Lets go of what `lay` took: what is to be written has no place yet. */
static void unlay(Packing *self) {
    for (unsigned i = 0; i < self->count; i++)
        if (self->pieces[i].laid) {
            self->pieces[i].laid = false;
            Py_CLEAR(self->pieces[i].lease);
        }
}

static int lay(Packing *self, piece *one) {
    int status = pool_lend(self->packer->pool, one->length, &one->lease);
    one->laid = status == RING_OK;
    one->offset = 0;
    return status;
}

static int write_laid(Packing *self) {
    for (unsigned i = 0; i < self->count; i++) {
        piece *one = &self->pieces[i];
        PyObject *done = one->laid ? PyObject_CallMethod((PyObject *)self->packer, "_write", "OO", one->source,
                                                         (PyObject *)one->lease)
                                   : Py_NewRef(Py_None);
        if (!done)
            return -1;
        Py_DECREF(done);
    }
    return 0;
}

/* What lies in loans is published: nobody here writes into it any more. */
static int seal(const Packing *self, Parcel *parcel) {
    for (unsigned i = 0; i < self->count; i++) {
        const piece *one = &self->pieces[i];
        if (!one->lease || one->laid)
            continue;
        if (!parcel->loan && !(parcel->loan = PyMem_Malloc(self->count * sizeof(Lease *)))) {
            PyErr_NoMemory();
            return -1;
        }
        parcel->loan[parcel->loans++] = (Lease *)Py_NewRef((PyObject *)one->lease);
        if (lease_seal(one->lease, one->source, !one->view.readonly) < 0)
            return -1;
    }
    return 0;
}

/* The parcel of what was looked at; RING_FULL: there is no room, and nothing has changed. */
static int make_parcel(Packing *self, unsigned count, PyObject *body, Parcel **out) {
    int status = pool_publishes(self->packer->pool) ? RING_OK : POOL_ERROR; /* any code may have run */
    for (unsigned i = 0; status == RING_OK && i < count; i++)
        if (!self->pieces[i].lease && !self->pieces[i].view.obj)
            status = lay(self, &self->pieces[i]);
    if (status == RING_OK)
        status = parcel_make(self->packer->pool, &self->packer->room, self->pieces, count, body, out);
    if (status == RING_OK && (write_laid(self) < 0 || seal(self, *out) < 0))
        status = POOL_ERROR;
    if (status != RING_OK) {
        PyObject *error = PyErr_Occurred() ? error_take() : NULL; /* what goes now makes arrays writable again */
        Py_XDECREF((PyObject *)*out);
        *out = NULL;
        if (error)
            error_restore(error);
    }
    unlay(self);
    return status;
}

/* place(): the payload of an event that is encoded: bytes, or a Parcel; None: there is no room, and nothing has changed. */
static PyObject *packing_place(PyObject *object, PyObject *unused) {
    (void)unused;
    Packing *self = (Packing *)object;
    if (!self->body)
        return PyErr_Format(PyExc_RuntimeError, "this event is placed, or was given up");
    bool spills = (uint64_t)PyBytes_Size(self->body) > self->packer->spill;
    unsigned count = self->count + spills;
    if (!count)
        return Py_NewRef(self->body);
    if (count > MAX_SLIPS)
        return PyErr_Format(PyExc_ValueError, "an event has at most %u buffers, not %u", MAX_SLIPS, count);
    if (make_room(self) < 0)
        return NULL;
    piece *last = &self->pieces[self->count];
    *last = (piece){.source = self->body, .length = (uint64_t)PyBytes_Size(self->body)};
    int status = RING_OK;
    for (unsigned i = 0; status == RING_OK && i < count; i++)
        if (!self->pieces[i].lease && look_at(self->packer, &self->pieces[i]) < 0)
            status = POOL_ERROR;
    Parcel *parcel = NULL;
    if (status == RING_OK)
        status = make_parcel(self, count, spills ? NULL : self->body, &parcel);
    PyBuffer_Release(&last->view);
    return status == RING_FULL ? Py_NewRef(Py_None) : (PyObject *)parcel;
}

/* Lets go of the event and its buffers. Whoever waited for room in vain may have us still, in a traceback. */
static void let_go(Packing *self) {
    while (self->count) {
        piece one = self->pieces[--self->count];
        PyBuffer_Release(&one.view);
        Py_DECREF(one.source);
        Py_XDECREF((PyObject *)one.lease);
    }
    Py_CLEAR(self->event);
    Py_CLEAR(self->body);
}

/* pack(event): its payload, which is what a Producer's encoder returns; NOTHING where `wait` says so. */
static PyObject *packer_pack(PyObject *object, PyObject *event) {
    Packer *self = (Packer *)object;
    if (!self->pool || !self->encode || !self->wait)
        return PyErr_Format(PyExc_RuntimeError, "a packer without pool, encoder or `wait`");
    Packing *packing = (Packing *)PyType_GenericAlloc(packing_type, 0);
    if (!packing)
        return NULL;
    packing->packer = (Packer *)Py_NewRef(object);
    packing->event = Py_NewRef(event);
    packing->pieces = packing->few;
    packing->room = FEW;
    packing->outer = (Packing *)Py_XNewRef((PyObject *)current);
    current = packing;
    packing->body = call_one(self->encode, event);
    current = packing->outer;
    PyObject *payload = NULL;
    if (packing->body && !PyBytes_Check(packing->body))
        PyErr_SetString(PyExc_TypeError, "an event is encoded as bytes");
    else if (packing->body)
        payload = packing_place((PyObject *)packing, NULL);
    if (payload == Py_None)
        Py_XSETREF(payload, call_one(self->wait, (PyObject *)packing));
    let_go(packing);
    Py_DECREF((PyObject *)packing);
    return payload;
}

/* lend(shape, dtype): a new array in the pool, if it is of a kind in `_shapes` and there is room; None. */
static PyObject *packer_lend(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Packer *self = (Packer *)object;
    if (count != 2 || !self->pool)
        return PyErr_Format(PyExc_TypeError, "lend(shape, dtype)");
    PyObject *key = PyTuple_Pack(2, args[0], args[1]);
    PyObject *known = key ? Py_XNewRef(PyDict_GetItemWithError(self->shapes, key)) : NULL, *array = NULL;
    Py_XDECREF(key);
    if (!known)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    Lease *lease = NULL;
    int status = pool_publishes(self->pool)
                     ? pool_lend(self->pool, PyLong_AsUnsignedLongLong(PyTuple_GetItem(known, 3)), &lease)
                     : POOL_ERROR;
    if (status == RING_OK)
        array = PyObject_CallFunctionObjArgs(PyTuple_GetItem(known, 0), PyTuple_GetItem(known, 1),
                                             PyTuple_GetItem(known, 2), (PyObject *)lease, NULL);
    Py_XDECREF((PyObject *)lease);
    Py_DECREF(known);
    return status == RING_FULL ? Py_NewRef(Py_None) : array;
}

/* ---- types ---- */

static PyObject *packing_wanted(PyObject *object, void *unused) {
    (void)unused;
    const Packing *self = (Packing *)object;
    uint64_t length = self->body ? (uint64_t)PyBytes_Size(self->body) : 0, blocks = 0, inner;
    bool spills = length > self->packer->spill;
    if (spills)
        blocks += pool_blocks(length);
    for (unsigned i = 0; i < self->count; i++)
        if (!self->pieces[i].lease && self->pieces[i].length > self->packer->room.small)
            blocks += pool_blocks(self->pieces[i].length);
    uint64_t shared = parcel_shared(&self->packer->room, self->pieces, self->count, self->count + spills,
                                    spills ? 0 : length, &inner);
    blocks += shared ? pool_blocks(shared) : 0;
    return PyLong_FromUnsignedLongLong(blocks * POOL_BLOCK);
}

static void packing_dealloc(PyObject *object) {
    Packing *self = (Packing *)object;
    let_go(self);
    if (self->pieces != self->few)
        PyMem_Free(self->pieces);
    Py_XDECREF((PyObject *)self->outer);
    Py_XDECREF((PyObject *)self->packer);
    object_free(object);
}

/* Packer(pool, small, spill) */
static int packer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    Packer *self = (Packer *)object;
    PyObject *pool;
    unsigned long long small, spill;
    if (kwargs || !PyArg_ParseTuple(args, "O!KK:Packer", pool_type, &pool, &small, &spill))
        return -1;
    if (self->pool) {
        PyErr_SetString(PyExc_RuntimeError, "a packer is made once");
        return -1;
    }
    self->pool = (Pool *)Py_NewRef(pool);
    self->known = PyDict_New();
    self->shapes = PyDict_New();
    self->room = (record_room){small, spill * 2 - spill / 4}; /* an eighth is left for headers */
    self->spill = spill;
    return self->known && self->shapes ? 0 : -1;
}

static int packer_traverse(PyObject *object, visitproc visit, void *arg) {
    Packer *self = (Packer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->encode);
    Py_VISIT(self->wait);
    return 0;
}

static int packer_clear(PyObject *object) {
    Packer *self = (Packer *)object;
    Py_CLEAR(self->encode);
    Py_CLEAR(self->wait);
    return 0;
}

static void packer_dealloc(PyObject *object) {
    Packer *self = (Packer *)object;
    PyObject_GC_UnTrack(object);
    packer_clear(object);
    Py_XDECREF((PyObject *)self->pool);
    Py_XDECREF(self->ndarray);
    Py_XDECREF(self->known);
    Py_XDECREF(self->shapes);
    for (int i = 0; i < KINDS; i++) {
        Py_XDECREF(self->last[i].dtype);
        Py_XDECREF(self->last[i].extension);
    }
    object_free(object);
}

static PyMethodDef packer_methods[] = {{"extend", packer_extend, METH_O, NULL},
                                       {"pack", packer_pack, METH_O, NULL},
                                       {"lend", METHOD(packer_lend), METH_FASTCALL, NULL},
                                       {"_add", packer_add, METH_VARARGS, NULL},
                                       {NULL, NULL, 0, NULL}};

static PyMemberDef packer_members[] = {{"_encode", T_OBJECT, offsetof(Packer, encode), 0, NULL},
                                       {"_wait", T_OBJECT, offsetof(Packer, wait), 0, NULL},
                                       {"_ndarray", T_OBJECT, offsetof(Packer, ndarray), 0, NULL},
                                       {"_known", T_OBJECT, offsetof(Packer, known), READONLY, NULL},
                                       {"_shapes", T_OBJECT, offsetof(Packer, shapes), READONLY, NULL},
                                       {NULL, 0, 0, 0, NULL}};

static PyType_Slot packer_slots[] = {{Py_tp_init, packer_init},
                                     {Py_tp_new, PyType_GenericNew},
                                     {Py_tp_dealloc, packer_dealloc},
                                     {Py_tp_traverse, packer_traverse},
                                     {Py_tp_clear, packer_clear},
                                     {Py_tp_methods, packer_methods},
                                     {Py_tp_members, packer_members},
                                     {Py_tp_doc, "What a publisher with a pool encodes events with."},
                                     {0, NULL}};

static PyType_Spec packer_spec = {.name = "shmbus._core.Packer",
                                  .basicsize = sizeof(Packer),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                                  .slots = packer_slots};

static PyMethodDef packing_methods[] = {{"place", packing_place, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyGetSetDef packing_getset[] = {{"wanted", packing_wanted, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef packing_members[] = {{"event", T_OBJECT, offsetof(Packing, event), READONLY, NULL},
                                        {NULL, 0, 0, 0, NULL}};

static PyType_Slot packing_slots[] = {{Py_tp_dealloc, packing_dealloc},
                                      {Py_tp_members, packing_members},
                                      {Py_tp_methods, packing_methods},
                                      {Py_tp_getset, packing_getset},
                                      {Py_tp_doc, "An event that is encoded, and has yet to find room in the pool."},
                                      {0, NULL}};

static PyType_Spec packing_spec = {.name = "shmbus._core.Packing",
                                   .basicsize = sizeof(Packing),
                                   .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   .slots = packing_slots};

int packers_add(PyObject *module) {
    dtype_name = PyUnicode_InternFromString("dtype");
    shape_name = PyUnicode_InternFromString("shape");
    names_name = PyUnicode_InternFromString("names");
    if (!dtype_name || !shape_name || !names_name)
        return -1;
    packing_type = type_add(module, &packing_spec, NULL);
    return packing_type && type_add(module, &packer_spec, NULL) ? 0 : -1;
}
