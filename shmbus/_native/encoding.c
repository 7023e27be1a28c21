/* Encoding: an event, checked and turned into bytes, before anything of it is written. */
#include "producer.h"

static int check_type(Producer *self, PyObject *event) {
    Py_ssize_t count = TUPLE_SIZE(self->accepts);
    for (Py_ssize_t i = 0; i < count; i++)
        if ((PyObject *)Py_TYPE(event) == TUPLE_ITEM(self->accepts, i))
            return 0;
    if (!count)
        return 0;
    PyObject *name = PyType_GetQualName(Py_TYPE(event));
    if (name)
        PyErr_Format(EventTypeError, "%S, got %U", self->type_error, name);
    Py_XDECREF(name);
    return -1;
}

/* Bytes of a payload, which is what an encoder returned, or the scratch. */
int encoding_bytes(Producer *self, PyObject *payload, part *out) {
    if (PyBytes_Check(payload)) {
        out->payload = BYTES_DATA(payload);
        out->payload_length = (uint64_t)BYTES_SIZE(payload);
    } else if (payload == self->scratch) {
        out->payload = ARRAY_DATA(payload);
        out->payload_length = (uint64_t)ARRAY_SIZE(payload);
    } else {
        PyErr_Format(EventTypeError, "%S, got no bytes from its encoder", self->type_error);
        return -1;
    }
    return 0;
}

/* The subclass raises EventTooLargeError, which carries the values. */
static int check_size(Producer *self, uint64_t headers, uint64_t length) {
    uint64_t maximum = record_maximum(self->ring->view.capacity), size = ((headers + 7) & ~(uint64_t)7) + length;
    if (size <= maximum)
        return 0;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_too_large", "KK", (unsigned long long)size,
                                           (unsigned long long)maximum);
    Py_XDECREF(result);
    return -1;
}

/* The bytes of a raw topic's event. What is too large is refused before it is copied: it may be larger than memory. */
static PyObject *raw_bytes(Producer *self, PyObject *event, uint64_t headers) {
    Py_buffer view;
    if (PyBytes_CheckExact(event))
        return Py_NewRef(event);
    if (PyObject_GetBuffer(event, &view, PyBUF_FULL_RO) < 0)
        return NULL;
    Py_ssize_t length = view.len;
    PyBuffer_Release(&view);
    if (guard_check(&self->guard, "publisher") < 0) /* a buffer may be made by Python code */
        return NULL;
    return check_size(self, headers, (uint64_t)length) < 0 ? NULL : PyBytes_FromObject(event);
}

/* Encodes an event into a new bytes object, or into the scratch if that is `mine`; raw topics pass bytes through. */
static PyObject *encode_as(Producer *self, PyObject *event, uint64_t headers, bool mine) {
    if (self->encode == Py_None)
        return raw_bytes(self, event, headers);
    if (!mine)
        return call_one(self->encode, event);
    PyObject *done = call_two(self->into, event, self->scratch);
    Py_XDECREF(done);
    return done ? Py_NewRef(self->scratch) : NULL;
}

/* The event's payload; a new reference. The encoder may run Python code, which may close us. */
PyObject *encoding_one(Producer *self, PyObject *event, uint64_t headers, bool mine) {
    part p;
    PyObject *payload = check_type(self, event) < 0 ? NULL : encode_as(self, event, headers, mine);
    if (payload && (guard_check(&self->guard, "publisher") < 0 || encoding_bytes(self, payload, &p) < 0 ||
                    check_size(self, headers, p.payload_length) < 0))
        Py_CLEAR(payload);
    return payload;
}

/* The payloads of all events, as a list of bytes objects. */
PyObject *encoding_many(Producer *self, PyObject *events) {
    PyObject *iterator = PyObject_GetIter(events), *payloads = iterator ? PyList_New(0) : NULL, *event;
    while (payloads && (event = PyIter_Next(iterator))) {
        PyObject *payload = encoding_one(self, event, 0, false);
        if (!payload || PyList_Append(payloads, payload) < 0)
            Py_CLEAR(payloads);
        Py_XDECREF(payload);
        Py_DECREF(event);
    }
    Py_XDECREF(iterator);
    if (PyErr_Occurred())
        Py_CLEAR(payloads);
    return payloads;
}
