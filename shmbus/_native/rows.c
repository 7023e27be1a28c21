/* Rows: memory that an array looks at, or owns. In place it is a run of a ring, whose mapping stays as long as the array or
 * anything made of it does; what the publisher writes there once the run is consumed is seen, and nothing else is. */
#include "receiver.h"

#include <stddef.h>
#include <structmember.h>

struct Rows {
    PyObject_HEAD Ring *ring;   /* NULL: the memory is its own */
    const unsigned char *bytes; /* in the ring */
    unsigned char *own;
    uint32_t size;
    unsigned long long count, stride, room;
    Py_ssize_t most;
};

static PyTypeObject *rows_type;

#define FIRST_ROOM 1024 /* rows, of however many may come */

Rows *rows_in_place(Ring *ring, const row_run *run, uint32_t size) {
    Rows *self = (Rows *)PyType_GenericAlloc(rows_type, 0);
    if (!self)
        return NULL;
    self->ring = (Ring *)Py_NewRef((PyObject *)ring);
    self->bytes = run->payload;
    self->size = size;
    self->count = run->count;
    self->stride = run->stride;
    return self;
}

/* Rows of their own, of `size` bytes each; `most` is how many there may be. */
Rows *rows_new(uint32_t size, Py_ssize_t most) {
    Rows *self = (Rows *)PyType_GenericAlloc(rows_type, 0);
    if (self) {
        self->size = size;
        self->stride = size;
        self->most = most;
    }
    return self;
}

/* Room for more rows at the end, which count from now on. */
unsigned char *rows_grow(Rows *self, uint64_t more) {
    uint64_t needed = self->count + more, room = self->room ? self->room * 2 : FIRST_ROOM;
    if (needed > self->room) {
        if (room > (uint64_t)self->most)
            room = (uint64_t)self->most;
        if (room < needed)
            room = needed;
        unsigned char *grown = room > PY_SSIZE_T_MAX / self->size ? NULL : PyMem_Realloc(self->own, room * self->size);
        if (!grown) {
            PyErr_NoMemory();
            return NULL;
        }
        self->own = grown;
        self->room = room;
    }
    self->count = needed;
    return self->own + (needed - more) * self->size;
}

uint64_t rows_count(const Rows *self) { return self->count; }

static void rows_dealloc(PyObject *object) {
    Rows *self = (Rows *)object;
    Py_XDECREF((PyObject *)self->ring);
    PyMem_Free(self->own);
    object_free(object);
}

static int rows_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    Rows *self = (Rows *)object;
    const unsigned char *bytes = self->ring ? self->bytes : self->own;
    uint64_t length = self->count ? (self->count - 1) * self->stride + self->size : 0;
    return PyBuffer_FillInfo(view, object, (void *)bytes, (Py_ssize_t)length, self->ring != NULL, flags);
}

static PyMemberDef members[] = {
    {"count", T_ULONGLONG, offsetof(Rows, count), READONLY, "Rows."},
    {"stride", T_ULONGLONG, offsetof(Rows, stride), READONLY, "Bytes from one row to the next."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_dealloc, rows_dealloc},
                              {Py_tp_members, members},
                              {Py_tp_doc, "Rows of a ring, read-only, or copies of them."},
                              {Py_bf_getbuffer, rows_getbuffer},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Rows",
                           .basicsize = sizeof(Rows),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           .slots = slots};

int rows_add(PyObject *module) {
    rows_type = type_add(module, &spec, NULL);
    return rows_type ? 0 : -1;
}

/* ---- methods of a Receiver ---- */

static bool takes_rows(const Receiver *self) {
    if (self->kind && self->record)
        return true;
    PyErr_SetString(PyExc_TypeError, "rows are of a topic with codec='record'");
    return false;
}

/* _next_rows(most): waits; Nothing at the handle's end. */
PyObject *receiver_next_rows(PyObject *object, PyObject *most) {
    Receiver *self = (Receiver *)object;
    call c = {.most = PyLong_AsSsize_t(most)};
    if ((c.most < 1 && PyErr_Occurred()) || !takes_rows(self))
        return NULL;
    return receiver_obtain(self, &c, self->kind->take_rows, UINT64_MAX);
}

/* _poll_rows(ask, most): once, for an asker. */
PyObject *receiver_poll_rows(PyObject *object, PyObject *args) {
    Receiver *self = (Receiver *)object;
    call c = {0};
    PyObject *ask;
    if (!PyArg_ParseTuple(args, "On:_poll_rows", &ask, &c.most) || !takes_rows(self))
        return NULL;
    c.ask = ask == Py_None ? NULL : ask;
    return receiver_obtain(self, &c, self->kind->take_rows, 0);
}

/* _take_rows(most, timeout): Rows of their own. */
PyObject *receiver_take_rows(PyObject *object, PyObject *args) {
    Receiver *self = (Receiver *)object;
    call c = {0};
    PyObject *timeout;
    uint64_t deadline;
    if (!PyArg_ParseTuple(args, "nO:_take_rows", &c.most, &timeout) || wait_deadline(timeout, &deadline) < 0 ||
        !takes_rows(self))
        return NULL;
    PyObject *rows = receiver_obtain(self, &c, self->kind->take_copies, deadline);
    if (rows != Nothing)
        return rows;
    Py_DECREF(rows);
    return receiver_nothing(object, timeout);
}
