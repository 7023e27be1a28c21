/* Window: the buffer through which a decoder sees one payload, in place. What a decoder keeps a view of (msgspec.Raw,
 * memoryview fields) must outlive the ring's memory: then the payload is decoded again from a copy. */
#include "python.h"

typedef struct Window {
    PyObject_HEAD const void *bytes;
    Py_ssize_t length;
    Py_ssize_t exports;
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

PyObject *window_new(void) { return PyType_GenericAlloc(window_type, 0); }

PyObject *window_decode(PyObject *object, PyObject *decode, const void *bytes, uint64_t length) {
    if (decode == Py_None)
        return PyBytes_FromStringAndSize(bytes, (Py_ssize_t)length);
    Window *self = (Window *)object;
    self->bytes = bytes;
    self->length = (Py_ssize_t)length;
    PyObject *event = call_one(decode, object);
    self->bytes = "";
    self->length = 0;
    if (!self->exports && Py_REFCNT(object) == 1)
        return event;
    Py_XDECREF(event);
    if (PyErr_Occurred() && !self->exports)
        return NULL;
    PyErr_Clear();
    PyObject *copy = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)length);
    event = copy ? call_one(decode, copy) : NULL;
    Py_XDECREF(copy);
    return event;
}

static PyType_Slot slots[] = {{Py_tp_dealloc, object_free},
                              {Py_tp_doc, "One payload, for as long as a decoder looks at it."},
                              {Py_bf_getbuffer, window_getbuffer},
                              {Py_bf_releasebuffer, window_releasebuffer},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Window",
                           .basicsize = sizeof(Window),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           .slots = slots};

int window_add(PyObject *module) {
    window_type = type_add(module, &spec);
    return window_type ? 0 : -1;
}
