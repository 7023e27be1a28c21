/* Keys: what a publisher finds of an event for the groups that have one, and the lane that it is hashed to.
 *
 * A key is told as (names, resolve): the path of a field, and a callable that is asked where the path is not one of
 * attributes and dicts, or what is there is neither int, str nor bytes: resolve(event) is one of these, or None.
 *
 * Every publisher of a bus, whatever its process and Python, must hash a key alike. */
#include "producer.h"

#define FNV_OFFSET 0xcbf29ce484222325ull
#define FNV_PRIME 0x100000001b3ull

static unsigned lane_of_number(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return (unsigned)((value ^ (value >> 31)) >> (64 - LANE_BITS));
}

static unsigned lane_of_bytes(const char *bytes, Py_ssize_t length) {
    uint64_t hash = FNV_OFFSET;
    for (Py_ssize_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * FNV_PRIME;
    return lane_of_number(hash);
}

/* A key as _set_groups is told of it. */
int keys_check(PyObject *key) {
    PyObject *names, *resolve;
    if (!PyTuple_Check(key) || !PyArg_ParseTuple(key, "O!O", &PyTuple_Type, &names, &resolve))
        return PyErr_Occurred() ? -1 : (PyErr_SetString(PyExc_TypeError, "a key is (names, resolve)"), -1);
    for (Py_ssize_t i = 0; i < PyTuple_Size(names); i++)
        if (!PyUnicode_Check(PyTuple_GetItem(names, i))) {
            PyErr_SetString(PyExc_TypeError, "the path of a key is of str");
            return -1;
        }
    return 0;
}

/* What stands at a path of attributes and dicts: a new reference; NULL, without an exception, if it is not to be had so. */
static PyObject *look_up(PyObject *names, PyObject *event) {
    PyObject *value = Py_NewRef(event);
    for (Py_ssize_t i = 0; value && i < PyTuple_Size(names); i++) {
        PyObject *name = PyTuple_GetItem(names, i), *next;
        if (PyDict_CheckExact(value))
            next = Py_XNewRef(PyDict_GetItemWithError(value, name));
        else
            next = PyObject_GetAttr(value, name);
        Py_DECREF(value);
        value = next;
    }
    if (!value)
        PyErr_Clear();
    return value;
}

#define NO_LANE (-2) /* of no simple value */

static int lane_of_value(PyObject *value) {
    if (value == Py_None)
        return 0;
    if (PyLong_CheckExact(value)) {
        int beyond;
        long long number = PyLong_AsLongLongAndOverflow(value, &beyond);
        return beyond ? NO_LANE : (int)lane_of_number((uint64_t)number);
    }
    if (PyBytes_CheckExact(value))
        return (int)lane_of_bytes(BYTES_DATA(value), BYTES_SIZE(value));
    if (PyUnicode_CheckExact(value)) {
        Py_ssize_t length;
        const char *text = PyUnicode_AsUTF8AndSize(value, &length);
        if (text)
            return (int)lane_of_bytes(text, length);
        PyErr_Clear(); /* a lone surrogate */
    }
    return NO_LANE;
}

/* The lane of an event: -1 with an exception. */
static int lane_of_event(PyObject *key, PyObject *event) {
    PyObject *value = look_up(PyTuple_GetItem(key, 0), event);
    int lane = value ? lane_of_value(value) : NO_LANE;
    Py_XDECREF(value);
    if (lane != NO_LANE)
        return lane;
    value = call_one(PyTuple_GetItem(key, 1), event);
    if (!value)
        return -1;
    lane = lane_of_value(value);
    Py_DECREF(value);
    return lane == NO_LANE ? 0 : lane;
}

static PyObject *event_at(const Producer *self, const lanes_of *lanes, Py_ssize_t i) {
    if (lanes->of == OF_EVENT)
        return Py_NewRef(lanes->event);
    if (lanes->of == OF_ROWS)
        return record_decode_payload(self->record, lanes->rows + (size_t)i * self->record->size, self->record->size);
    if (lanes->of == OF_EVENTS && i < PyList_Size(lanes->events))
        return Py_NewRef(PyList_GetItem(lanes->events, i));
    return Py_NewRef(Py_None);
}

/* The lanes of one event: 1; 0 if the groups have changed meanwhile; -1. */
static int find_one(Producer *self, const lanes_of *lanes, PyObject *event, uint16_t *out) {
    for (unsigned i = 0; i < lanes->groups; i++) {
        PyObject *key = Py_XNewRef(self->groups[i].key);
        int lane = key ? lane_of_event(key, event) : 0;
        Py_XDECREF(key);
        if (lane < 0 || guard_check(&self->guard, "publisher") < 0) /* a lookup may be Python code */
            return -1;
        if (lanes->changes != self->changes)
            return 0;
        out[i] = (uint16_t)lane;
    }
    return 1;
}

/* Finds the lanes of all that is still to be written. May run Python code: nothing is pending. */
int keys_find(Producer *self, lanes_of *lanes) {
    int found = 0;
    while (!found) {
        lanes->changes = self->changes;
        lanes->groups = self->group_count;
        PyMem_Free(lanes->lane);
        lanes->lane = PyMem_Calloc((size_t)lanes->total * lanes->groups + 1, sizeof(uint16_t));
        if (!lanes->lane) {
            PyErr_NoMemory();
            return -1;
        }
        found = 1;
        for (Py_ssize_t i = lanes->at; found > 0 && i < lanes->total; i++) {
            PyObject *event = event_at(self, lanes, i);
            found = event ? find_one(self, lanes, event, lanes->lane + (size_t)i * lanes->groups) : -1;
            Py_XDECREF(event);
        }
    }
    return found < 0 ? -1 : 0;
}
