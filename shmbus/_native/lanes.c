/* Lane segments, for the two who hold the bus lock: who makes a group with a key, and who reclaims. What workers do with them
 * is in claims_lanes.c. */
#include "python.h"

/* The lanes of a group with a key, in a buffer that is released at once: the caller has the segment. */
int lanes_of_buffer(PyObject *object, lane_table **table) {
    Py_buffer buffer;
    *table = NULL;
    if (object == Py_None)
        return 0;
    if (PyObject_GetBuffer(object, &buffer, PyBUF_WRITABLE) < 0)
        return -1;
    int status = lane_open(table, buffer.buf, (uint64_t)buffer.len);
    PyBuffer_Release(&buffer);
    if (status != RING_OK)
        PyErr_SetString(status == RING_FOREIGN ? LayoutMismatchError : CorruptSegmentError, "no lanes of this layout");
    return status == RING_OK ? 0 : -1;
}

/* Of WorkRing. */
PyObject *work_take_back(PyObject *object, PyObject *args) {
    unsigned long long sequence, word;
    PyObject *lanes = Py_None;
    lane_table *table;
    if (!PyArg_ParseTuple(args, "KK|O:take_back", &sequence, &word, &lanes) || !ring_checked(object, RING_WORK, true) ||
        lanes_of_buffer(lanes, &table) < 0)
        return NULL;
    claim c = {.word = word, .record = {.sequence = sequence}};
    const ring_view *view = &((Ring *)object)->view;
    int status = table ? lane_take_back(table, view, &c) : work_give_back(view, &c, false);
    return PyBool_FromLong(status == RING_OK);
}

static PyObject *lanes_size(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(lane_size());
}

static PyObject *lanes_format(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer buffer;
    unsigned long long id;
    if (!PyArg_ParseTuple(args, "w*K:lanes_format", &buffer, &id))
        return NULL;
    int status = lane_format(buffer.buf, (uint64_t)buffer.len, id);
    PyBuffer_Release(&buffer);
    if (status == RING_OK)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "too small for lanes");
    return NULL;
}

static PyObject *lanes_free(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object;
    unsigned owner, generation;
    lane_table *table;
    if (!PyArg_ParseTuple(args, "OII:lanes_free", &object, &owner, &generation) || lanes_of_buffer(object, &table) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(table ? lane_free_all(table, owner, generation) : 0);
}

static PyMethodDef functions[] = {
    {"lanes_size", lanes_size, METH_NOARGS, "lanes_size(): bytes of a lane segment."},
    {"lanes_format", lanes_format, METH_VARARGS, "lanes_format(segment, group): all of them free."},
    {"lanes_free", lanes_free, METH_VARARGS,
     "lanes_free(segment, owner, generation): free what it holds, once its claims are given back; how many."},
    {NULL, NULL, 0, NULL},
};

int lanes_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
