/* Parcels: payloads whose buffers lie beside the record.
 *
 *   0       8                     then              then
 *   +-------+---------------------+-----------------+--------------+
 *   | count | slips, 32 bytes each| small buffers   | encoded event|    SLIP_BODY in the count: the event itself is
 *   +-------+---------------------+-----------------+--------------+    the last slip, and nothing follows
 *
 * Small buffers that would make a record too long share an extent. A Parcel is made by a publisher (packer.c), and gives its
 * extents back unless it is sent. */
#include "pools.h"

PyTypeObject *parcel_type;

/* ---- out ---- */

static bool is_inner(const piece *piece, uint64_t small) { return !piece->lease && piece->length <= small; }

static void remember(Parcel *self, const slip *one) {
    self->block[self->blocks++] = one->block;
    self->pool->uses[one->block]++;
}

/* Where the bytes of a piece are: in a lease of ours, or in an extent of its own, which is to be copied into. No lease is
 * needed there: until it is sent the extent is the parcel's. */
static int place(Parcel *self, const piece *piece, slip *out) {
    const Lease *lease = piece->lease;
    int status = RING_OK;
    if (lease)
        *out = (slip){lease->slip.block, lease->slip.generation, piece->offset, piece->length};
    else
        status = pool_take(self->pool, piece->length, out);
    if (status == RING_OK)
        remember(self, out);
    return status;
}

static uint64_t aligned(uint64_t bytes) { return (bytes + 15) & ~(uint64_t)15; } /* for any dtype */

/* Bytes of the extent that the small buffers share; 0: they fit into the record, which takes so many of them. */
uint64_t parcel_shared(const record_room *room, const piece *pieces, unsigned count, uint64_t slips, uint64_t tail,
                       uint64_t *inner) {
    uint64_t shared = 0;
    *inner = 0;
    for (unsigned i = 0; i < count; i++)
        if (is_inner(&pieces[i], room->small)) {
            *inner += pieces[i].length;
            shared += aligned(pieces[i].length);
        }
    if (8 + slips * sizeof(slip) + *inner + tail <= room->most)
        return 0;
    *inner = 0;
    return shared;
}

/* Writes the record, and finds room for what is to be copied: RING_OK, RING_FULL, POOL_ERROR. */
static int fill(Parcel *self, const record_room *room, const piece *pieces, unsigned count, PyObject *body) {
    uint64_t inner, head = count | (body ? 0 : SLIP_BODY);
    uint64_t slips = 8 + count * sizeof(slip), tail = body ? (uint64_t)PyBytes_Size(body) : 0;
    uint64_t shared = parcel_shared(room, pieces, count, count, tail, &inner);
    slip side = {0};
    self->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(slips + inner + tail));
    self->block = PyMem_Calloc(count, sizeof(uint64_t));
    if (!self->bytes || !self->block) {
        PyErr_NoMemory();
        return POOL_ERROR;
    }
    if (shared) {
        int status = pool_take(self->pool, shared, &side);
        if (status != RING_OK)
            return status;
        remember(self, &side);
    }
    unsigned char *start = (unsigned char *)PyBytes_AsString(self->bytes), *at = start + slips;
    memcpy(start, &head, 8);
    for (unsigned i = 0; i < count; i++) {
        slip one = {SLIP_INLINE, 0, (uint64_t)(at - start), pieces[i].length};
        if (is_inner(&pieces[i], room->small) && shared && one.length) {
            one = (slip){side.block, side.generation, side.offset, one.length};
            side.offset += aligned(one.length);
        } else if (is_inner(&pieces[i], room->small)) {
            memcpy(at, pieces[i].view.buf, one.length);
            at += one.length;
        } else {
            int status = place(self, &pieces[i], &one);
            if (status != RING_OK)
                return status;
        }
        memcpy(start + 8 + i * sizeof(slip), &one, sizeof(one));
    }
    if (tail)
        memcpy(at, PyBytes_AsString(body), tail);
    return RING_OK;
}

#define LONG_COPY (64u << 10) /* bytes past which other threads run meanwhile; a switch costs as much as 1 KiB */

/* Copies a buffer to where it is in the runs of an extent: false if somebody writes into our table. */
static bool copy_in(const pool_view *view, const unsigned char *from, const slip *to) {
    uint64_t block = to->block, before = to->offset, left = to->length;
    for (run run; left && pool_next_run(view, &block, &run);) {
        uint64_t bytes = run.blocks * POOL_BLOCK, skipped = before < bytes ? before : bytes;
        uint64_t some = bytes - skipped < left ? bytes - skipped : left;
        memcpy(view->data + run.block * POOL_BLOCK + skipped, from, some);
        before -= skipped, from += some, left -= some;
    }
    return !left;
}

static slip slip_of(const Parcel *self, unsigned i) {
    slip one;
    memcpy(&one, PyBytes_AsString(self->bytes) + 8 + i * sizeof(slip), sizeof(one));
    return one;
}

/* Copies what is neither in the record nor in a lease. */
static int write_copies(Parcel *self, const piece *pieces, unsigned count) {
    uint64_t total = 0;
    bool done = true;
    for (unsigned i = 0; i < count; i++)
        total += pieces[i].lease || slip_of(self, i).block == SLIP_INLINE ? 0 : pieces[i].length;
    PyThreadState *others = total > LONG_COPY ? PyEval_SaveThread() : NULL;
    for (unsigned i = 0; total && i < count; i++) {
        slip one = slip_of(self, i);
        if (!pieces[i].lease && one.block != SLIP_INLINE)
            done = done && copy_in(&self->pool->view, pieces[i].view.buf, &one);
    }
    if (others)
        PyEval_RestoreThread(others);
    if (!done)
        PyErr_Format(CorruptSegmentError, "pool %llu: an extent cannot be", (unsigned long long)self->pool->id);
    return done ? RING_OK : POOL_ERROR;
}

/* A payload with `count` buffers, whose bytes are in a lease, or in C order in their view: RING_OK; RING_FULL, and nothing has
 * changed; POOL_ERROR. Small ones go into the record while it has room. Without a body that is the last of the buffers. */
int parcel_make(Pool *pool, const record_room *room, const piece *pieces, unsigned count, PyObject *body,
                Parcel **out) {
    Parcel *self = (Parcel *)PyType_GenericAlloc(parcel_type, 0);
    if (!self)
        return POOL_ERROR;
    self->pool = (Pool *)Py_NewRef((PyObject *)pool);
    int status = fill(self, room, pieces, count, body);
    if (status == RING_OK)
        status = write_copies(self, pieces, count);
    if (status == RING_OK)
        *out = self;
    else
        Py_DECREF((PyObject *)self);
    return status;
}

/* The event is out, or given up: its loans are writable again unless it, or another, has them. */
static void unseal(Parcel *self) {
    while (self->loans) {
        Lease *one = self->loan[--self->loans];
        lease_unseal(one);
        Py_DECREF((PyObject *)one);
    }
}

/* unseal(): the event is not published. */
static PyObject *parcel_unseal(PyObject *object, PyObject *unused) {
    (void)unused;
    unseal((Parcel *)object);
    Py_RETURN_NONE;
}

static void parcel_dealloc(PyObject *object) {
    Parcel *self = (Parcel *)object;
    if (self->loans) {
        PyObject *error = PyErr_Occurred() ? error_take() : NULL;
        unseal(self);
        if (error)
            error_restore(error);
    }
    for (unsigned i = 0; self->block && i < self->blocks; i++)
        if (self->pool->fork_generation == fork_generation)
            pool_unuse(self->pool, self->block[i]);
    PyMem_Free(self->block);
    PyMem_Free(self->loan);
    Py_XDECREF((PyObject *)self->pool);
    Py_XDECREF(self->bytes);
    object_free(object);
}

static Py_ssize_t parcel_length(PyObject *object) { return PyBytes_Size(((Parcel *)object)->bytes); }

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

static PyMethodDef methods[] = {{"unseal", parcel_unseal, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyType_Slot slots[] = {{Py_tp_dealloc, parcel_dealloc},
                              {Py_tp_methods, methods},
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
    PyObject *from = PyLong_FromUnsignedLongLong(offset), *bytes = PyLong_FromUnsignedLongLong(length);
    PyObject *one = what && from && bytes ? PyTuple_Pack(3, what, from, bytes) : NULL;
    Py_XDECREF(what);
    Py_XDECREF(from);
    Py_XDECREF(bytes);
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
