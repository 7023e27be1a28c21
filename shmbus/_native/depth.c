/* Depth: for who asks before each event how much a group is owed: two methods of WorkRing, and one look at all rings of a
 * group. They read, and change nothing. */
#include "python.h"

#include "work.h"

/* depth(): (events that are not done, how many of them somebody holds); a part of terms(), for who asks often. */
PyObject *work_depth(PyObject *object, PyObject *unused) {
    (void)unused;
    work_terms t;
    if (work_terms_of(&((Ring *)object)->view, &t) != RING_OK) {
        corrupt((Ring *)object, "gate and tail cannot be");
        return NULL;
    }
    return Py_BuildValue("(KK)", (unsigned long long)t.depth, (unsigned long long)t.claimed);
}

static uint64_t span_of(const Ring *ring) {
    const ring_header *h = ring->view.header;
    uint64_t tail = LOAD_SEQ(&h->tail), gate = LOAD_SEQ(&h->gate);
    return gate < tail ? tail - gate : 0;
}

/* span(): events from the first that is not done on: never fewer than depth(), and read off two words. */
PyObject *work_span(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(span_of((Ring *)object));
}

static int epoch_is(PyObject *memory, Py_ssize_t at, long long wanted) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(memory, &buffer, PyBUF_SIMPLE) < 0)
        return -1;
    bool inside = at >= 0 && at % 8 == 0 && at <= buffer.len - 8;
    int same = inside && (long long)LOAD_SEQ((word *)((unsigned char *)buffer.buf + at)) == wanted;
    PyBuffer_Release(&buffer);
    return same;
}

/* spans(rings, memory, offset, epoch): the sum of their spans; -1 unless the word there is `epoch` before and after. */
static PyObject *spans(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *rings, *memory;
    Py_ssize_t at;
    long long epoch;
    if (!PyArg_ParseTuple(args, "O!OnL:spans", &PyList_Type, &rings, &memory, &at, &epoch))
        return NULL;
    int same = epoch < 0 ? 0 : epoch_is(memory, at, epoch);
    uint64_t sum = 0;
    for (Py_ssize_t i = 0; same > 0 && i < PyList_Size(rings); i++) {
        const Ring *ring = ring_checked(PyList_GetItem(rings, i), RING_WORK, false);
        if (!ring)
            return NULL;
        sum += span_of(ring);
    }
    if (same > 0)
        same = epoch_is(memory, at, epoch);
    return same < 0 ? NULL : PyLong_FromLongLong(same ? (long long)sum : -1);
}

static PyMethodDef methods[] = {
    {"spans", spans, METH_VARARGS, "spans(rings, memory, offset, epoch): the sum; -1 where the epoch is another."},
    {NULL, NULL, 0, NULL},
};

int depth_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
