/* Window: the buffer through which a decoder sees one payload, in place. What a decoder keeps a view of (msgspec.Raw,
 * memoryview fields) must outlive the ring's memory: then the payload is decoded again from a copy. */
#include "python.h"

typedef struct Window {
    PyObject_HEAD const void *bytes;
    Py_ssize_t length;
    Py_ssize_t exports;
    PyObject *owner; /* of the memory, once somebody keeps a view of it for good */
    void *copy;
} Window;

static PyTypeObject *window_type;

static int window_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    Window *self = (Window *)object;
    if (PyBuffer_FillInfo(view, object, (void *)self->bytes, self->length, 1, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void window_releasebuffer(PyObject *object, Py_buffer *view) {
    (void)view;
    ((Window *)object)->exports--;
}

static void window_dealloc(PyObject *object) {
    Py_XDECREF(((Window *)object)->owner);
    PyMem_Free(((Window *)object)->copy);
    object_free(object);
}

PyObject *window_new(void) { return PyType_GenericAlloc(window_type, 0); }

static PyObject *decode_copy(PyObject *decode, const void *bytes, uint64_t length) {
    PyObject *copy = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)length);
    PyObject *event = copy ? call_one(decode, copy) : NULL;
    Py_XDECREF(copy);
    return event;
}

/* A decoder keeps a view aside, whatever for: the memory stays with the window, and the handle gets a new one. */
static int window_abandon(PyObject **window, PyObject *owner, unsigned char **copy) {
    Window *self = (Window *)*window;
    PyObject *fresh = window_new();
    if (!fresh)
        return -1;
    self->owner = Py_NewRef(owner);
    if (copy) {
        self->copy = *copy;
        *copy = NULL;
    }
    *window = fresh;
    Py_DECREF((PyObject *)self);
    return 0;
}

/* Decodes `length` bytes that belong to `owner`, or lie in `*copy`, which is given up (NULL) if the decoder keeps it. */
PyObject *window_decode(PyObject **window, PyObject *decode, const void *bytes, uint64_t length, PyObject *owner,
                        unsigned char **copy) {
    if (decode == Py_None)
        return PyBytes_FromStringAndSize(bytes, (Py_ssize_t)length);
    Window *self = (Window *)*window;
    self->bytes = bytes;
    self->length = (Py_ssize_t)length;
    PyObject *event = call_one(decode, *window);
    self->bytes = "";
    self->length = 0;
    if (!self->exports && Py_REFCNT((PyObject *)self) == 1)
        return event;
    if (!event && !self->exports)
        return NULL;
    Py_XDECREF(event); /* it may be the event itself that looks into the ring */
    PyErr_Clear();
    event = decode_copy(decode, bytes, length);
    if (self->exports && window_abandon(window, owner, copy) < 0)
        Py_CLEAR(event);
    return event;
}

static PyType_Slot slots[] = {{Py_tp_dealloc, window_dealloc},
                              {Py_tp_doc, "One payload, for as long as a decoder looks at it."},
                              {Py_bf_getbuffer, window_getbuffer},
                              {Py_bf_releasebuffer, window_releasebuffer},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Window",
                           .basicsize = sizeof(Window),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           .slots = slots};

int window_add(PyObject *module) {
    window_type = type_add(module, &spec, NULL);
    return window_type ? 0 : -1;
}
