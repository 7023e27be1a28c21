/* Revive: what a decoder of arrays asks for, at every event: the value that an extension stands for, and whether a field may
 * hold it. What was looked at once is done here; all else by the callables of a Reviver.
 *
 *   revive(code, data, buffers)   the value of an extension
 *   wants(expected, value)        what becomes of a value in a field of that type; raises what is wrong
 *
 * `alike` is what the first has found to be right of a description: {bytes: (number, class, shape, dtype, nbytes)}. */
#include "pools.h"

#include <structmember.h>

#define ACCEPTED 8

typedef struct accepted { /* values of a class and dtype are right for a type */
    PyObject *expected, *type, *dtype;
} accepted;

typedef struct Reviver {
    PyObject_HEAD PyObject *buffers, *alike, *revive, *wants;
    long code; /* of an array's extension */
    unsigned count;
    accepted known[ACCEPTED];
} Reviver;

static PyObject *dtype_name;

/* The array of a description that is known, if its buffer has the bytes for it; NULL without an exception: it has not. */
static PyObject *known_array(const Reviver *self, PyObject *data) {
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *described = PyBytes_FromStringAndSize(view.buf, view.len);
    PyBuffer_Release(&view);
    PyObject *known = described ? PyDict_GetItemWithError(self->alike, described) : NULL; /* borrowed */
    Py_XDECREF(described);
    if (!known)
        return NULL;
    Py_ssize_t number = PyLong_AsSsize_t(PyTuple_GetItem(known, 0));
    if (number >= PyList_Size(self->buffers))
        return NULL;
    PyObject *buffer = Py_NewRef(PyList_GetItem(self->buffers, number)), *array = NULL;
    int same = PyObject_RichCompareBool(PyTuple_GetItem(buffer, 2), PyTuple_GetItem(known, 4), Py_EQ);
    if (same > 0) {
        Py_INCREF(known);
        array = PyObject_CallFunctionObjArgs(PyTuple_GetItem(known, 1), PyTuple_GetItem(known, 2),
                                             PyTuple_GetItem(known, 3), PyTuple_GetItem(buffer, 0),
                                             PyTuple_GetItem(buffer, 1), NULL);
        Py_DECREF(known);
    }
    Py_DECREF(buffer);
    return array;
}

/* revive(code, data): a decoder's ext_hook. */
static PyObject *reviver_revive(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Reviver *self = (Reviver *)object;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "revive(code, data)");
    if (PyLong_Check(args[0]) && PyLong_AsLong(args[0]) == self->code) {
        PyObject *array = known_array(self, args[1]);
        if (array || PyErr_Occurred())
            return array;
    }
    return PyObject_CallFunctionObjArgs(self->revive, args[0], args[1], self->buffers, NULL);
}

/* wants(expected, value): its dec_hook. */
static PyObject *reviver_wants(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Reviver *self = (Reviver *)object;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "wants(expected, value)");
    for (unsigned i = 0; i < self->count; i++) {
        const accepted *one = &self->known[i];
        if (one->expected != args[0] || one->type != (PyObject *)Py_TYPE(args[1]))
            continue;
        PyObject *dtype = PyObject_GetAttr(args[1], dtype_name);
        bool same = dtype == one->dtype;
        Py_XDECREF(dtype);
        if (!dtype)
            return NULL;
        if (same)
            return Py_NewRef(args[1]);
    }
    return call_two(self->wants, args[0], args[1]);
}

/* accept(expected, class, dtype): values of that class and dtype are right for the type, and need no look. */
static PyObject *reviver_accept(PyObject *object, PyObject *args) {
    Reviver *self = (Reviver *)object;
    accepted one;
    if (!PyArg_ParseTuple(args, "OOO:accept", &one.expected, &one.type, &one.dtype))
        return NULL;
    if (self->count < ACCEPTED) {
        Py_INCREF(one.expected);
        Py_INCREF(one.type);
        Py_INCREF(one.dtype);
        self->known[self->count++] = one;
    }
    Py_RETURN_NONE;
}

/* Reviver(buffers, code, alike, revive, wants) */
static PyObject *reviver_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *buffers, *alike, *revive, *wants;
    long code;
    if (kwargs || !PyArg_ParseTuple(args, "O!lO!OO:Reviver", &PyList_Type, &buffers, &code, &PyDict_Type, &alike,
                                    &revive, &wants))
        return NULL;
    Reviver *self = (Reviver *)PyType_GenericAlloc(type, 0);
    if (self) {
        self->code = code;
        self->buffers = Py_NewRef(buffers);
        self->alike = Py_NewRef(alike);
        self->revive = Py_NewRef(revive);
        self->wants = Py_NewRef(wants);
    }
    return (PyObject *)self;
}

static int reviver_traverse(PyObject *object, visitproc visit, void *arg) {
    Reviver *self = (Reviver *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->buffers);
    Py_VISIT(self->revive);
    Py_VISIT(self->wants);
    for (unsigned i = 0; i < self->count; i++)
        Py_VISIT(self->known[i].expected);
    return 0;
}

/* A decoder that is in use stays whole: the cycle through its hooks is broken at what they do not need to end. */
static int reviver_clear(PyObject *object) {
    Reviver *self = (Reviver *)object;
    PyObject *none = Py_NewRef(Py_None), *wants = self->wants;
    self->wants = none;
    Py_DECREF(wants);
    return 0;
}

static void reviver_dealloc(PyObject *object) {
    Reviver *self = (Reviver *)object;
    PyObject_GC_UnTrack(object);
    for (unsigned i = 0; i < self->count; i++) {
        Py_DECREF(self->known[i].expected);
        Py_DECREF(self->known[i].type);
        Py_DECREF(self->known[i].dtype);
    }
    Py_XDECREF(self->buffers);
    Py_XDECREF(self->alike);
    Py_XDECREF(self->revive);
    Py_XDECREF(self->wants);
    object_free(object);
}

static PyMethodDef methods[] = {{"revive", METHOD(reviver_revive), METH_FASTCALL, NULL},
                                {"wants", METHOD(reviver_wants), METH_FASTCALL, NULL},
                                {"accept", reviver_accept, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};

static PyType_Slot slots[] = {{Py_tp_new, reviver_new},
                              {Py_tp_dealloc, reviver_dealloc},
                              {Py_tp_traverse, reviver_traverse},
                              {Py_tp_clear, reviver_clear},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "What a decoder of arrays asks for at every event."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Reviver",
                           .basicsize = sizeof(Reviver),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

int revivers_add(PyObject *module) {
    dtype_name = PyUnicode_InternFromString("dtype");
    return dtype_name && type_add(module, &spec, NULL) ? 0 : -1;
}
