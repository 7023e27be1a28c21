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

/* One part: (Lease, offset, length), or bytes. Writes its slip; bytes go to `*inner`. */
static int put_part(Parcel *self, PyObject *part, slip *out, unsigned char **inner, const unsigned char *start) {
    PyObject *lease;
    unsigned long long offset, length;
    if (PyBytes_Check(part)) {
        uint64_t size = (uint64_t)PyBytes_Size(part);
        *out = (slip){SLIP_INLINE, 0, (uint64_t)(*inner - start), size};
        memcpy(*inner, PyBytes_AsString(part), size);
        *inner += size;
        return 0;
    }
    if (!PyArg_ParseTuple(part, "O!KK", lease_type, &lease, &offset, &length))
        return -1;
    const Lease *one = (Lease *)lease;
    if (one->pool != self->pool || !one->loan || length > one->slip.length || offset > one->slip.length - length) {
        PyErr_SetString(PyExc_ValueError, "not a part of this pool");
        return -1;
    }
    *out = (slip){one->slip.block, one->slip.generation, offset, length};
    self->block[self->blocks++] = one->slip.block;
    self->pool->uses[one->slip.block]++;
    return 0;
}

static int fill(Parcel *self, PyObject *parts, PyObject *body, bool spilled) {
    Py_ssize_t count = PyTuple_Size(parts);
    uint64_t inner = 0, head = (uint64_t)count | (spilled ? SLIP_BODY : 0);
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyBytes_Check(PyTuple_GetItem(parts, i)))
            inner += (uint64_t)PyBytes_Size(PyTuple_GetItem(parts, i));
    uint64_t slips = 8 + (uint64_t)count * sizeof(slip), tail = spilled ? 0 : (uint64_t)PyBytes_Size(body);
    self->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(slips + inner + tail));
    self->block = PyMem_Calloc((size_t)count, sizeof(uint64_t));
    if (!self->bytes || !self->block) {
        PyErr_NoMemory();
        return -1;
    }
    unsigned char *start = (unsigned char *)PyBytes_AsString(self->bytes), *at = start + slips;
    memcpy(start, &head, 8);
    for (Py_ssize_t i = 0; i < count; i++) {
        slip one;
        if (put_part(self, PyTuple_GetItem(parts, i), &one, &at, start) < 0)
            return -1;
        memcpy(start + 8 + (size_t)i * sizeof(slip), &one, sizeof(one));
    }
    if (tail)
        memcpy(at, PyBytes_AsString(body), tail);
    return 0;
}

/* Parcel(pool, (part, ...), body): body is bytes, or None if it is the last part. */
static PyObject *parcel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *pool, *parts, *body;
    if (!PyArg_ParseTuple(args, "O!O!O:Parcel", pool_type, &pool, &PyTuple_Type, &parts, &body))
        return NULL;
    Py_ssize_t count = PyTuple_Size(parts);
    if (!((Pool *)pool)->uses || !(PyBytes_Check(body) || body == Py_None))
        return PyErr_Format(PyExc_TypeError, "a parcel is of a publisher's pool, and of bytes");
    if (count < 1 || count > (Py_ssize_t)MAX_SLIPS)
        return PyErr_Format(PyExc_ValueError, "an event has at most %u buffers, not %zd", MAX_SLIPS, count);
    Parcel *self = (Parcel *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->pool = (Pool *)Py_NewRef(pool);
    if (fill(self, parts, body, body == Py_None) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
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

static PyType_Slot slots[] = {{Py_tp_new, parcel_new},
                              {Py_tp_dealloc, parcel_dealloc},
                              {Py_sq_length, parcel_length},
                              {Py_tp_doc, "A payload with what lies beside it, until it is published."},
                              {0, NULL}};

static PyType_Spec spec = {
    .name = "shmbus._core.Parcel", .basicsize = sizeof(Parcel), .flags = Py_TPFLAGS_DEFAULT, .slots = slots};

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
