/* Parcels: payloads whose buffers lie beside the record.
 *
 *   0       8                     then              then
 *   +-------+---------------------+-----------------+--------------+
 *   | count | slips, 32 bytes each| small buffers   | encoded event|    SLIP_BODY in the count: the event itself is
 *   +-------+---------------------+-----------------+--------------+    the last slip, and nothing follows
 *
 * A Parcel is made by a publisher, and gives its extents back unless it is sent. */
#include "pools.h"

PyTypeObject *parcel_type;

/* ---- out ---- */

static void parcel_dealloc(PyObject *object) {
    Parcel *self = (Parcel *)object;
    for (unsigned i = 0; self->block && i < self->blocks; i++)
        if (self->pool->fork_generation == fork_generation)
            pool_unuse(self->pool, self->block[i]);
    PyMem_Free(self->block);
    Py_XDECREF((PyObject *)self->pool);
    Py_XDECREF(self->bytes);
    object_free(object);
}

static Py_ssize_t parcel_length(PyObject *object) { return PyBytes_Size(((Parcel *)object)->bytes); }

typedef struct writing { /* a buffer, and the extent that its bytes are to be copied into */
    Py_buffer from;
    slip to;
} writing;

static void remember(Parcel *self, const slip *one) {
    self->block[self->blocks++] = one->block;
    self->pool->uses[one->block]++;
}

/* A part of a loan: (Lease, offset, length). */
static int put_loan(Parcel *self, PyObject *part, slip *out) {
    PyObject *lease;
    unsigned long long offset, length;
    if (!PyArg_ParseTuple(part, "O!KK", lease_type, &lease, &offset, &length))
        return POOL_ERROR;
    const Lease *one = (Lease *)lease;
    if (one->pool != self->pool || !one->loan || length > one->slip.length || offset > one->slip.length - length) {
        PyErr_SetString(PyExc_ValueError, "not a part of this pool");
        return POOL_ERROR;
    }
    *out = (slip){one->slip.block, one->slip.generation, offset, length};
    remember(self, out);
    return RING_OK;
}

/* Any other buffer, in C order: an extent of its own. No lease is needed: until it is sent the extent is the parcel's. */
static int put_buffer(Parcel *self, PyObject *part, slip *out, writing **copies) {
    writing *copy = *copies;
    if (PyObject_GetBuffer(part, &copy->from, PyBUF_C_CONTIGUOUS) < 0)
        return POOL_ERROR;
    ++*copies; /* whose view is released, whatever comes */
    if (pool_take(self->pool, (uint64_t)copy->from.len, &copy->to) != RING_OK)
        return RING_FULL;
    remember(self, &copy->to);
    *out = (slip){copy->to.block, copy->to.generation, 0, copy->to.length};
    return RING_OK;
}

/* Writes the record, and finds room for what is to be copied: RING_OK, RING_FULL, POOL_ERROR. */
static int fill(Parcel *self, PyObject *parts, PyObject *body, writing **copies) {
    Py_ssize_t count = PyTuple_Size(parts);
    bool spilled = body == Py_None;
    uint64_t inner = 0, head = (uint64_t)count | (spilled ? SLIP_BODY : 0);
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyBytes_Check(PyTuple_GetItem(parts, i)))
            inner += (uint64_t)PyBytes_Size(PyTuple_GetItem(parts, i));
    uint64_t slips = 8 + (uint64_t)count * sizeof(slip), tail = spilled ? 0 : (uint64_t)PyBytes_Size(body);
    self->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(slips + inner + tail));
    self->block = PyMem_Calloc((size_t)count, sizeof(uint64_t));
    if (!self->bytes || !self->block) {
        PyErr_NoMemory();
        return POOL_ERROR;
    }
    unsigned char *start = (unsigned char *)PyBytes_AsString(self->bytes), *at = start + slips;
    memcpy(start, &head, 8);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *part = PyTuple_GetItem(parts, i);
        slip one;
        int status = RING_OK;
        if (PyBytes_Check(part)) {
            one = (slip){SLIP_INLINE, 0, (uint64_t)(at - start), (uint64_t)PyBytes_Size(part)};
            memcpy(at, PyBytes_AsString(part), one.length);
            at += one.length;
        } else {
            status = PyTuple_Check(part) ? put_loan(self, part, &one) : put_buffer(self, part, &one, copies);
        }
        if (status != RING_OK)
            return status;
        memcpy(start + 8 + (size_t)i * sizeof(slip), &one, sizeof(one));
    }
    if (tail)
        memcpy(at, PyBytes_AsString(body), tail);
    return RING_OK;
}

#define LONG_COPY (64u << 10) /* bytes past which other threads run meanwhile; a switch costs as much as 1 KiB */

/* Copies each buffer into the runs of its extent: false if somebody writes into our table. */
static bool copy_in(const pool_view *view, const writing *copies, const writing *end) {
    for (const writing *one = copies; one < end; one++) {
        const unsigned char *from = one->from.buf;
        uint64_t block = one->to.block, left = one->to.length;
        for (run run; left && pool_next_run(view, &block, &run);) {
            uint64_t some = run.blocks * POOL_BLOCK < left ? run.blocks * POOL_BLOCK : left;
            memcpy(view->data + run.block * POOL_BLOCK, from, some);
            from += some, left -= some;
        }
        if (left)
            return false;
    }
    return true;
}

static int write_copies(Parcel *self, const writing *copies, const writing *end) {
    uint64_t total = 0;
    for (const writing *one = copies; one < end; one++)
        total += one->to.length;
    PyThreadState *others = total > LONG_COPY ? PyEval_SaveThread() : NULL;
    bool done = copy_in(&self->pool->view, copies, end);
    if (others)
        PyEval_RestoreThread(others);
    if (!done)
        PyErr_Format(CorruptSegmentError, "pool %llu: an extent cannot be", (unsigned long long)self->pool->id);
    return done ? RING_OK : POOL_ERROR;
}

/* Pool.pack((part, ...), body): a Parcel, or None where there is no room: then nothing has changed. A part is bytes, which
 * go into the record; (Lease, offset, length); or a buffer, which is copied. `body` is bytes, or None if it is the last
 * part. */
PyObject *parcel_pack(PyObject *object, PyObject *args) {
    Pool *pool = (Pool *)object;
    PyObject *parts, *body;
    if (!pool_publishes(pool) || !PyArg_ParseTuple(args, "O!O:pack", &PyTuple_Type, &parts, &body))
        return NULL;
    Py_ssize_t count = PyTuple_Size(parts);
    if (!(PyBytes_Check(body) || body == Py_None))
        return PyErr_Format(PyExc_TypeError, "the body of a parcel is bytes");
    if (count < 1 || count > (Py_ssize_t)MAX_SLIPS)
        return PyErr_Format(PyExc_ValueError, "an event has at most %u buffers, not %zd", MAX_SLIPS, count);
    Parcel *self = (Parcel *)PyType_GenericAlloc(parcel_type, 0);
    writing few[4], *copies = count <= 4 ? few : PyMem_Calloc((size_t)count, sizeof(writing)), *end = copies;
    int status = self && copies ? RING_OK : POOL_ERROR;
    if (status != RING_OK) {
        PyErr_NoMemory();
    } else {
        self->pool = (Pool *)Py_NewRef(object);
        status = fill(self, parts, body, &end);
        if (status == RING_OK && end > copies)
            status = write_copies(self, copies, end);
    }
    for (writing *one = copies; one < end; one++)
        PyBuffer_Release(&one->from);
    if (copies != few)
        PyMem_Free(copies);
    if (status == RING_OK)
        return (PyObject *)self;
    Py_XDECREF((PyObject *)self);
    return status == RING_FULL ? Py_NewRef(Py_None) : NULL;
}

/* The bytes of a payload that is a Parcel: 0; -1 for anything else. */
int parcel_part(PyObject *payload, part *out) {
    if (Py_TYPE(payload) != parcel_type)
        return -1;
    PyObject *bytes = ((Parcel *)payload)->bytes;
    out->payload = PyBytes_AsString(bytes);
    out->payload_length = (uint64_t)PyBytes_Size(bytes);
    out->flags = RECORD_POOLED;
    return 0;
}

static PyType_Slot slots[] = {{Py_tp_dealloc, parcel_dealloc},
                              {Py_sq_length, parcel_length},
                              {Py_tp_doc, "A payload with what lies beside it, until it is published."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Parcel",
                           .basicsize = sizeof(Parcel),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           .slots = slots};

int parcels_add(PyObject *module) {
    parcel_type = type_add(module, &spec, NULL);
    return parcel_type ? 0 : -1;
}

/* ---- in ---- */

static int append(PyObject *into, PyObject *what, uint64_t offset, uint64_t length) {
    PyObject *one = what ? Py_BuildValue("(NKK)", what, (unsigned long long)offset, (unsigned long long)length) : NULL;
    int status = one ? PyList_Append(into, one) : -1;
    Py_XDECREF(one);
    return status < 0 ? POOL_ERROR : RING_OK;
}

/* Opens the slips of a record: (buffer, offset, length) of each is appended to `into`, and `*body` is where the event
 * begins, UINT64_MAX if that is the last buffer. RING_OK, or no leases at all. */
int parcel_open(Pool *pool, const unsigned char *payload, uint64_t length, bool copy, PyObject *into, uint64_t *body) {
    uint64_t count, end;
    int status = pool_slips(payload, length, &count, &end);
    *body = end;
    for (uint64_t i = 0; status == RING_OK && i < (count & ~SLIP_BODY); i++) {
        slip one; /* a copy: what it says is looked at once */
        Lease *lease = NULL;
        memcpy(&one, payload + 8 + i * sizeof(slip), sizeof(one));
        if (one.block != SLIP_INLINE) {
            status = pool ? lease_take(pool, &one, copy, &lease) : POOL_WANTED;
            if (status == RING_OK)
                status = append(into, (PyObject *)lease, lease->owned ? 0 : one.offset, one.length);
        } else if (one.offset != *body || one.length > length - *body) {
            status = RING_CORRUPT;
        } else {
            status = append(into, PyBytes_FromStringAndSize((const char *)payload + one.offset, (Py_ssize_t)one.length),
                            0, one.length);
            *body += one.length;
        }
    }
    if (status == RING_OK && count & SLIP_BODY)
        *body = UINT64_MAX;
    if (status != RING_OK) {
        PyObject *error = status == POOL_ERROR ? error_take() : NULL; /* what goes now may run code */
        PyList_SetSlice(into, 0, PyList_Size(into), NULL);
        if (error)
            error_restore(error);
    }
    return status;
}

/* The bytes of one buffer: in the record, or in the pool. */
static int fetch(const Pool *pool, const unsigned char *payload, const slip *one, unsigned char *into) {
    if (one->block != SLIP_INLINE)
        return pool_copy(&pool->view, one, into);
    memcpy(into, payload + one->offset, one->length);
    return RING_OK;
}

/* A payload that needs no pool: as bytes, with every buffer in it. None: something of it is gone. */
PyObject *parcel_flatten(const Pool *pool, const unsigned char *payload, uint64_t length) {
    uint64_t count, end, body, size, slips;
    if (pool_slips(payload, length, &count, &end) != RING_OK || pool_body(payload, length, &body) != RING_OK)
        Py_RETURN_NONE;
    slips = count & ~SLIP_BODY;
    size = end + length - body;
    for (uint64_t i = 0; i < slips; i++) {
        slip one;
        memcpy(&one, payload + 8 + i * sizeof(one), sizeof(one));
        if (one.block != SLIP_INLINE && (!pool || one.length > pool->view.blocks * POOL_BLOCK))
            Py_RETURN_NONE;
        size += one.length;
    }
    PyObject *flat = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    unsigned char *start = flat ? (unsigned char *)PyBytes_AsString(flat) : NULL, *at = start + end;
    int status = flat ? RING_OK : RING_CORRUPT;
    for (uint64_t i = 0; status == RING_OK && i < slips; i++) {
        slip one;
        memcpy(&one, payload + 8 + i * sizeof(one), sizeof(one));
        status = fetch(pool, payload, &one, at);
        one = (slip){SLIP_INLINE, 0, (uint64_t)(at - start), one.length};
        at += one.length;
        memcpy(start + 8 + i * sizeof(one), &one, sizeof(one));
    }
    if (status != RING_OK) {
        Py_XDECREF(flat);
        return flat ? Py_NewRef(Py_None) : NULL;
    }
    memcpy(at, payload + body, length - body);
    memcpy(start, &count, 8);
    return flat;
}
