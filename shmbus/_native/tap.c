/* Tap: reads a broadcast ring without a cursor of its own, as `tail` does; it leaves no trace. */
#include "python.h"

#include "pool.h"

typedef struct Tap {
    PyObject_HEAD Ring *ring;
    ring_reader reader;
} Tap;

static PyObject *tap_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *ring;
    int oldest = 0;
    if (!PyArg_ParseTuple(args, "O|p:Tap", &ring, &oldest) || !ring_checked(ring, RING_BROADCAST, false))
        return NULL;
    Tap *self = (Tap *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->ring = (Ring *)Py_NewRef(ring);
    if (ring_tap_open(&self->reader, &self->ring->view, oldest) != RING_OK) {
        corrupt(self->ring, "no boundary to read from");
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void tap_dealloc(PyObject *object) {
    Py_XDECREF((PyObject *)((Tap *)object)->ring);
    object_free(object);
}

static PyObject *tap_record(Tap *self, const record *r) {
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    PyObject *copy = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(((uint64_t)r->length + 7) & ~(uint64_t)7));
    if (!copy)
        return NULL;
    const char *body = PyBytes_AsString(copy);
    int status = ring_copy(&self->reader, r, (void *)body);
    if (status != RING_OK) {
        Py_DECREF(copy);
        return status == RING_OVERRUN
                   ? Py_BuildValue("(KKOO)", self->reader.lost_first, self->reader.lost_last, Py_None, Py_None)
                   : Py_NewRef(Py_None);
    }
    uint64_t skip = 0; /* of one with buffers the event is told, and not they */
    const unsigned char *payload = (const unsigned char *)body + padded;
    if (r->flags & RECORD_POOLED && pool_body(payload, r->length - padded, &skip) != RING_OK)
        skip = r->length - padded;
    PyObject *result = Py_BuildValue("(KKy#y#)", r->sequence, r->time_ns, body, (Py_ssize_t)r->headers, payload + skip,
                                     (Py_ssize_t)(r->length - padded - skip));
    Py_DECREF(copy);
    if (result)
        ring_advance(&self->reader, r);
    return result;
}

static PyObject *tap_read(PyObject *object, PyObject *unused) {
    (void)unused;
    Tap *self = (Tap *)object;
    record r;
    int status = ring_peek(&self->reader, &r);
    if (status == RING_OK)
        return tap_record(self, &r);
    if (status == RING_OVERRUN)
        return Py_BuildValue("(KKOO)", self->reader.lost_first, self->reader.lost_last, Py_None, Py_None);
    if (status == RING_EMPTY)
        Py_RETURN_NONE;
    corrupt(self->ring, "record header cannot be");
    return NULL;
}

static PyMethodDef tap_methods[] = {
    {"read", tap_read, METH_NOARGS,
     "(sequence, time_ns, headers, payload), (first, last, None, None) for a gap, or None."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tap_slots[] = {{Py_tp_new, tap_new},
                                  {Py_tp_dealloc, tap_dealloc},
                                  {Py_tp_methods, tap_methods},
                                  {Py_tp_doc, "Tap(ring, oldest=False): reads without a slot, and leaves no trace."},
                                  {0, NULL}};

static PyType_Spec tap_spec = {
    .name = "shmbus._core.Tap", .basicsize = sizeof(Tap), .flags = Py_TPFLAGS_DEFAULT, .slots = tap_slots};

int tap_add(PyObject *module) { return type_add(module, &tap_spec, NULL) ? 0 : -1; }
