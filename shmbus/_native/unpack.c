/* Unpack: how a subscriber or worker comes to the buffers of an event, before it is decoded.
 *
 *   _pool(ring_id)   the Pool of the ring's publisher; None if it is gone, with all that was in it */
#include "pools.h"

/* _buffers_into(list): the list in which the decoder of this handle looks for the buffers of an event. */
PyObject *receiver_buffers_into(PyObject *object, PyObject *list) {
    Receiver *self = (Receiver *)object;
    if (!PyList_CheckExact(list))
        return PyErr_Format(PyExc_TypeError, "a list, please");
    Py_XSETREF(self->buffers, Py_NewRef(list));
    Py_RETURN_NONE;
}

static int ask_pool(Receiver *self, PyObject **pool, Ring *ring) {
    PyObject *found = PyObject_CallMethod((PyObject *)self, "_pool", "K", (unsigned long long)ring->id);
    if (!found)
        return POOL_ERROR;
    if (found != Py_None && Py_TYPE(found) != pool_type) {
        Py_DECREF(found);
        PyErr_SetString(PyExc_TypeError, "_pool returned no Pool");
        return POOL_ERROR;
    }
    Py_XSETREF(*pool, found);
    return RING_OK;
}

/* The buffers of a record into the list, where the event itself begins into `body`: 1; 0: they are gone, and the event
 * with them; -1 with an exception. `*pool` is asked for when it is needed, and the caller keeps it. */
int receiver_open(Receiver *self, PyObject **pool, Ring *ring, const record *record, bool copy, uint64_t *body) {
    uint64_t padded = (record->headers + 7u) & ~(uint64_t)7;
    if (!self->buffers)
        return corrupt(ring, "an event with buffers, on a topic without a pool");
    for (bool asked = false;; asked = true) {
        Pool *known = *pool && *pool != Py_None ? (Pool *)*pool : NULL;
        int status = parcel_open(known, record->body + padded, record->length - padded, copy, self->buffers, body);
        if (status == POOL_WANTED && !asked && !*pool)
            status = ask_pool(self, pool, ring) < 0 ? POOL_ERROR : POOL_WANTED;
        else if (status == POOL_WANTED)
            return 0;
        if (status == RING_OK)
            return 1;
        if (status == RING_LOST)
            return 0;
        if (status != POOL_WANTED)
            return status == POOL_ERROR ? -1 : corrupt(ring, "a buffer of an event cannot be");
    }
}

/* The payload of a record with buffers as bytes that need no pool; None if something of it is gone. */
PyObject *receiver_flatten(Receiver *self, PyObject **pool, Ring *ring, const unsigned char *payload, uint64_t length) {
    if (!*pool && ask_pool(self, pool, ring) < 0)
        return NULL;
    return parcel_flatten(*pool && *pool != Py_None ? (Pool *)*pool : NULL, payload, length);
}

/* Decodes an event whose buffers are in the list, and empties that: what the event kept lives on. */
PyObject *receiver_decode(Receiver *self, Ring *ring, const record *record, uint64_t body, unsigned char **copy) {
    uint64_t padded = (record->headers + 7u) & ~(uint64_t)7;
    PyObject *event;
    if (body == UINT64_MAX) {
        PyObject *last = PyList_GetItem(self->buffers, PyList_Size(self->buffers) - 1);
        event = last ? call_one(self->decode, PyTuple_GetItem(last, 0)) : NULL;
    } else {
        event = window_decode(&self->window, self->decode, record->body + padded + body, record->length - padded - body,
                              (PyObject *)ring, copy);
    }
    PyObject *error = event ? NULL : error_take();
    int status = PyList_SetSlice(self->buffers, 0, PyList_Size(self->buffers), NULL);
    if (error)
        error_restore(error);
    else if (status < 0)
        Py_CLEAR(event);
    return event;
}
