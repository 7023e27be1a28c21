/* Encoding: an event, checked and turned into bytes, before anything of it is written. */
#include "pools.h"

/* Classes that `_foreign` found to be the topic's own in another object: weak references, the last one first. */
static int adopted(Producer *self, PyObject *type) {
    for (Py_ssize_t i = PyList_Size(self->adopted) - 1; i >= 0; i--) {
        PyObject *known = call_none(PyList_GetItem(self->adopted, i));
        Py_XDECREF(known);
        if (!known || known == type)
            return known ? 1 : -1;
        if (known == Py_None && PySequence_DelItem(self->adopted, i) < 0)
            return -1;
    }
    return 0;
}

/* The exact type decides, by pointer. Any other is looked at once: `_foreign` raises, or returns what to remember it by. */
static int check_type(Producer *self, PyObject *event) {
    Py_ssize_t count = TUPLE_SIZE(self->accepts);
    PyObject *type = (PyObject *)Py_TYPE(event);
    for (Py_ssize_t i = 0; i < count; i++)
        if (type == TUPLE_ITEM(self->accepts, i))
            return 0;
    int status = count ? adopted(self, type) : 1;
    if (status)
        return status < 0 ? -1 : 0;
    PyObject *reference = PyObject_CallMethod((PyObject *)self, "_foreign", "(O)", event);
    status = reference ? PyList_Append(self->adopted, reference) : -1;
    Py_XDECREF(reference);
    return status;
}

/* _foreign(event): a Publisher knows more to say. */
PyObject *encoding_foreign(PyObject *self, PyObject *event) {
    PyObject *name = PyType_GetQualName(Py_TYPE(event));
    if (name)
        PyErr_Format(EventTypeError, "%S, got %U", ((Producer *)self)->type_error, name);
    Py_XDECREF(name);
    return NULL;
}

/* _refused(event, error): so does it here; without one the error stays as it is. */
PyObject *encoding_refused(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    Py_RETURN_NONE;
}

/* What an encoder or decoder raised, told by `_refused(event, error)`; what is no Exception passes as it is. */
static void refused(Producer *self, PyObject *event) {
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return;
    PyObject *error = error_take();
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_refused", "OO", event, error);
    if (result)
        error_restore(error);
    else
        Py_DECREF(error);
    Py_XDECREF(result);
}

/* Bytes of a payload, which is what an encoder returned, or the scratch. */
int encoding_bytes(Producer *self, PyObject *payload, part *out) {
    if (PyBytes_Check(payload)) {
        out->payload = BYTES_DATA(payload);
        out->payload_length = (uint64_t)BYTES_SIZE(payload);
    } else if (payload == self->scratch) {
        out->payload = ARRAY_DATA(payload);
        out->payload_length = (uint64_t)ARRAY_SIZE(payload);
    } else if (parcel_part(payload, out) < 0) {
        PyErr_Format(EventTypeError, "%S, got no bytes from its encoder", self->type_error);
        return -1;
    }
    return 0;
}

/* The subclass makes the rings larger, or raises EventTooLargeError, which carries the values. */
static int check_size(Producer *self, uint64_t headers, uint64_t length) {
    uint64_t size = ((headers + 7) & ~(uint64_t)7) + length;
    if (size <= self->maximum)
        return 0;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_too_large", "KK", (unsigned long long)size,
                                           (unsigned long long)self->maximum);
    Py_XDECREF(result);
    if (!result || guard_check(&self->guard, "publisher") < 0)
        return -1;
    if (size <= self->maximum)
        return 0;
    PyErr_SetString(PyExc_SystemError, "_too_large returned");
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

/* An event that was written without complaint as something else, NaN as null in JSON: where the payload has one of the
 * `suspects` in it, `finite(event)` has a look, and `_suspect(event)`, which raises, if it says no. */
static int check_finite(Producer *self, PyObject *event, const part *p) {
    for (Py_ssize_t i = 0; i < TUPLE_SIZE(self->suspects); i++) {
        PyObject *suspect = TUPLE_ITEM(self->suspects, i);
        if (!memmem(p->payload, p->payload_length, BYTES_DATA(suspect), (size_t)BYTES_SIZE(suspect)))
            continue;
        PyObject *finite = call_one(self->finite, event);
        PyObject *done =
            finite == Py_False ? PyObject_CallMethod((PyObject *)self, "_suspect", "(O)", event) : Py_XNewRef(finite);
        Py_XDECREF(finite);
        Py_XDECREF(done);
        return done ? 0 : -1;
    }
    return 0;
}

/* `validate` is the topic's decoder: what it takes, receivers take. */
static int check_payload(Producer *self, PyObject *event, PyObject *payload, const part *p) {
    if (check_finite(self, event, p) < 0)
        return -1;
    if (self->validate == Py_None)
        return 0;
    PyObject *decoded = call_one(self->validate, payload);
    Py_XDECREF(decoded);
    if (!decoded)
        refused(self, event);
    return decoded ? 0 : -1;
}

/* The event's payload, a new reference; Nothing where its buffers find no room, and it is not waited for. The encoder may
 * run Python code, which may close us. */
PyObject *encoding_one(Producer *self, PyObject *event, uint64_t headers, bool mine) {
    part p;
    if (check_type(self, event) < 0)
        return NULL;
    PyObject *payload = encode_as(self, event, headers, mine);
    if (!payload)
        refused(self, event);
    else if (payload == Nothing)
        return payload;
    else if (encoding_bytes(self, payload, &p) < 0 || check_payload(self, event, payload, &p) < 0 ||
             guard_check(&self->guard, "publisher") < 0 || check_size(self, headers, p.payload_length) < 0)
        Py_CLEAR(payload);
    return payload;
}

/* The headers of one event as bytes, a new reference, or NULL: without an exception if there are none. */
PyObject *encoding_headers(Producer *self, PyObject *given) {
    if (!given || given == Py_None)
        return NULL;
    PyObject *headers = PyObject_CallMethod((PyObject *)self, "_encode_headers", "(O)", given);
    if (headers && (!PyBytes_Check(headers) || PyBytes_Size(headers) > MAX_HEADERS)) {
        PyErr_Format(PyExc_ValueError, "headers are at most %u bytes", MAX_HEADERS);
        Py_CLEAR(headers);
    }
    return headers;
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

/* ---- rows ---- */

/* The event's row, `size` bytes. What validates runs on payloads: see publish_one. */
int encoding_row(Producer *self, PyObject *event, uint64_t headers, unsigned char *row) {
    if (check_type(self, event) < 0)
        return -1;
    if (record_encode(self->record, event, row) < 0) {
        refused(self, event);
        return -1;
    }
    return guard_check(&self->guard, "publisher") < 0 ? -1 : check_size(self, headers, self->record->size);
}

static unsigned char *rows_room(rows *out, size_t size) {
    if (out->count == out->room) {
        size_t room = out->room ? out->room * 2 : 64;
        unsigned char *grown = PyMem_Realloc(out->bytes, room * size);
        if (!grown) {
            PyErr_NoMemory();
            return NULL;
        }
        out->bytes = grown;
        out->room = room;
    }
    return out->bytes + out->count * size;
}

/* The rows of all events; `out->bytes` is the caller's to free, whatever comes of it. */
int encoding_rows(Producer *self, PyObject *events, rows *out) {
    PyObject *iterator = PyObject_GetIter(events), *event;
    while (iterator && (event = PyIter_Next(iterator))) {
        unsigned char *row = rows_room(out, self->record->size);
        int status = row ? encoding_row(self, event, 0, row) : -1;
        Py_DECREF(event);
        if (status < 0)
            break;
        out->count++;
    }
    Py_XDECREF(iterator);
    return PyErr_Occurred() ? -1 : 0;
}

/* The rows in a buffer, each of which the decoder would take. */
int encoding_rows_given(Producer *self, PyObject *given, Py_buffer *view) {
    if (!self->record) {
        PyErr_SetString(PyExc_TypeError, "rows are for a topic with codec='record'");
        return -1;
    }
    if (PyObject_GetBuffer(given, view, PyBUF_SIMPLE) < 0)
        return -1;
    size_t size = self->record->size, count = (size_t)view->len / size;
    int status = -1;
    if (count * size != (size_t)view->len)
        PyErr_Format(PyExc_ValueError, "%zd bytes are no rows of %zu", view->len, size);
    else if (record_check(self->record, view->buf, count) < 0)
        refused(self, given);
    else
        status = guard_check(&self->guard, "publisher") < 0 ? -1 : check_size(self, 0, size);
    if (status < 0)
        PyBuffer_Release(view);
    return status;
}
