/* Mapping: shared memory of a file, as a buffer. Unlike mmap.mmap it keeps no descriptor: a process maps as many rings as
 * it has memory for. Its memory is there until it is closed and the last buffer taken from it has been released. */
#include "python.h"

#include <sys/mman.h>

typedef struct Mapping {
    PyObject_HEAD void *memory; /* NULL once it is unmapped */
    Py_ssize_t size;
    Py_ssize_t exports;
    bool writable, closed;
} Mapping;

static void unmap(Mapping *self) {
    if (self->memory)
        munmap(self->memory, (size_t)self->size);
    self->memory = NULL;
}

/* Mapping(descriptor, size, writable): the descriptor stays its owner's. */
static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int fd, writable;
    Py_ssize_t size;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "inp:Mapping", &fd, &size, &writable))
        return NULL;
    if (size <= 0)
        return PyErr_Format(PyExc_ValueError, "nothing to map: size=%zd", size);
    Mapping *self = (Mapping *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    void *memory = mmap(NULL, (size_t)size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    self->memory = memory;
    self->size = size;
    self->writable = writable;
    return (PyObject *)self;
}

static void mapping_dealloc(PyObject *object) {
    unmap((Mapping *)object);
    object_free(object);
}

static int mapping_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    Mapping *self = (Mapping *)object;
    if (self->closed) {
        PyErr_SetString(ClosedError, "the mapping is closed");
        return -1;
    }
    if (PyBuffer_FillInfo(view, object, self->memory, self->size, !self->writable, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void mapping_releasebuffer(PyObject *object, Py_buffer *view) {
    (void)view;
    Mapping *self = (Mapping *)object;
    if (--self->exports == 0 && self->closed)
        unmap(self);
}

static PyObject *mapping_close(PyObject *object, PyObject *unused) {
    (void)unused;
    Mapping *self = (Mapping *)object;
    self->closed = true;
    if (!self->exports)
        unmap(self);
    Py_RETURN_NONE;
}

static Py_ssize_t mapping_length(PyObject *object) { return ((Mapping *)object)->size; }

/* A number at an index, a copy as bytes for a slice: what is shared may change under a view. */
static PyObject *mapping_get(PyObject *object, PyObject *key) {
    PyObject *view = PyMemoryView_FromObject(object), *item = view ? PyObject_GetItem(view, key) : NULL;
    PyObject *result = item && PySlice_Check(key) ? PyBytes_FromObject(item) : Py_XNewRef(item);
    Py_XDECREF(item);
    Py_XDECREF(view);
    return result;
}

static int mapping_set(PyObject *object, PyObject *key, PyObject *value) {
    PyObject *view = PyMemoryView_FromObject(object);
    int status = -1;
    if (view)
        status =
            value ? PyObject_SetItem(view, key, value) : PyObject_DelItem(view, key); /* which says that it cannot */
    Py_XDECREF(view);
    return status;
}

static PyMethodDef methods[] = {
    {"close", mapping_close, METH_NOARGS, "Unmap, or leave that to the last buffer taken from it. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_new, mapping_new},
                              {Py_tp_dealloc, mapping_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "Shared memory of a file, as a buffer that keeps no descriptor."},
                              {Py_bf_getbuffer, mapping_getbuffer},
                              {Py_bf_releasebuffer, mapping_releasebuffer},
                              {Py_mp_length, mapping_length},
                              {Py_mp_subscript, mapping_get},
                              {Py_mp_ass_subscript, mapping_set},
                              {0, NULL}};

static PyType_Spec spec = {
    .name = "shmbus._core.Mapping", .basicsize = sizeof(Mapping), .flags = Py_TPFLAGS_DEFAULT, .slots = slots};

int mapping_add(PyObject *module) { return type_add(module, &spec, NULL) ? 0 : -1; }
