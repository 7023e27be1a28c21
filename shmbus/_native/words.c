/* Single shared words for Python: 64 bits, sequentially consistent, bounds and alignment checked. */
#include "python.h"

static word *word_in(Py_buffer *buffer, PyObject *object, Py_ssize_t offset, int flags) {
    if (PyObject_GetBuffer(object, buffer, flags) < 0)
        return NULL;
    if (offset >= 0 && offset % 8 == 0 && offset <= buffer->len - 8)
        return (word *)((unsigned char *)buffer->buf + offset);
    PyErr_Format(PyExc_IndexError, "no word at offset %zd of %zd bytes", offset, buffer->len);
    PyBuffer_Release(buffer);
    return NULL;
}

static PyObject *words_load(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object;
    Py_ssize_t offset;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "On:load", &object, &offset))
        return NULL;
    word *at = word_in(&buffer, object, offset, PyBUF_SIMPLE);
    if (!at)
        return NULL;
    uint64_t value = LOAD_SEQ(at);
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(value);
}

enum change { CHANGE_STORE, CHANGE_ADD, CHANGE_OR, CHANGE_AND };

static PyObject *apply(PyObject *args, const char *format, enum change how) {
    PyObject *object;
    Py_ssize_t offset;
    unsigned long long value;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, format, &object, &offset, &value))
        return NULL;
    word *at = word_in(&buffer, object, offset, PyBUF_WRITABLE);
    if (!at)
        return NULL;
    uint64_t before = 0;
    if (how == CHANGE_STORE)
        STORE_SEQ(at, value);
    else if (how == CHANGE_ADD)
        before = ADD_SEQ(at, value);
    else if (how == CHANGE_OR)
        before = OR_SEQ(at, value);
    else
        before = AND_SEQ(at, value);
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(before);
}

static PyObject *words_store(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *before = apply(args, "OnK:store", CHANGE_STORE);
    if (!before)
        return NULL;
    Py_DECREF(before);
    Py_RETURN_NONE;
}

static PyObject *words_add_to(PyObject *module, PyObject *args) {
    (void)module;
    return apply(args, "OnK:fetch_add", CHANGE_ADD);
}

static PyObject *words_or(PyObject *module, PyObject *args) {
    (void)module;
    return apply(args, "OnK:fetch_or", CHANGE_OR);
}

static PyObject *words_and(PyObject *module, PyObject *args) {
    (void)module;
    return apply(args, "OnK:fetch_and", CHANGE_AND);
}

static PyObject *host_time(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(host_ns());
}

static PyMethodDef methods[] = {
    {"host_ns", host_time, METH_NOARGS, "host_ns(): CLOCK_MONOTONIC of the host, whatever the time namespace."},
    {"load", words_load, METH_VARARGS, "load(buffer, offset): the word there."},
    {"store", words_store, METH_VARARGS, "store(buffer, offset, value)"},
    {"fetch_add", words_add_to, METH_VARARGS, "fetch_add(buffer, offset, value): the word before."},
    {"fetch_or", words_or, METH_VARARGS, "fetch_or(buffer, offset, bits): the word before."},
    {"fetch_and", words_and, METH_VARARGS, "fetch_and(buffer, offset, bits): the word before."},
    {NULL, NULL, 0, NULL},
};

int words_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
