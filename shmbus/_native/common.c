/* What the files of the Python stratum share: errors, the lines of a bus segment, clocks, types. See python.h. */
#include "python.h"

#include <pthread.h>
#include <stdio.h>
#include <time.h>

PyObject *CorruptSegmentError, *LayoutMismatchError, *EventTypeError, *ClosedError, *ForkedError;
PyObject *ReclaimedError, *AccessError, *Nothing;
unsigned fork_generation;

int lines_bind(bus_lines *lines, PyObject *segment, unsigned topic) {
    if (PyObject_GetBuffer(segment, &lines->buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if (topic >= MAX_TOPICS || (size_t)lines->buffer.len < sizeof(bus_segment)) {
        PyBuffer_Release(&lines->buffer);
        PyErr_Format(CorruptSegmentError, "bus segment of %zd bytes has no topic line %u", lines->buffer.len, topic);
        return -1;
    }
    lines->topic = &((bus_segment *)lines->buffer.buf)->topics[topic];
    lines->epoch = UINT64_MAX; /* refresh at first use */
    return 0;
}

void lines_unbind(bus_lines *lines) {
    if (lines->topic)
        PyBuffer_Release(&lines->buffer);
    lines->topic = NULL;
}

group_line *lines_group(const bus_lines *lines, unsigned group) {
    return group < MAX_GROUPS && lines->topic ? &((bus_segment *)lines->buffer.buf)->groups[group] : NULL;
}

int call_hook(PyObject *self, const char *name) {
    PyObject *result = PyObject_CallMethod(self, name, NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Takes the raised exception, with its traceback, out of the interpreter's hands. */
PyObject *error_take(void) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (error && trace)
        PyException_SetTraceback(error, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return error;
}

/* An error that was met behind events which had to be returned first: the next call raises it. */
void error_hold(PyObject **slot) {
    PyObject *before = *slot;
    *slot = error_take();
    Py_XDECREF(before);
}

/* Raises an error that was taken, in place of any other. */
void error_restore(PyObject *error) {
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
}

bool error_raise_held(PyObject **slot) {
    PyObject *error = *slot;
    if (!error)
        return false;
    *slot = NULL;
    error_restore(error);
    return true;
}

PyObject *timeout_argument(PyObject *const *args, Py_ssize_t count, PyObject *names) {
    Py_ssize_t keywords = names ? PyTuple_Size(names) : 0;
    if (count + keywords == 0)
        return Py_None;
    if (count + keywords == 1 && (!keywords || !PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "timeout")))
        return args[0];
    PyErr_SetString(PyExc_TypeError, "receive(timeout=None)");
    return NULL;
}

int corrupt(const Ring *ring, const char *what) {
    PyErr_Format(CorruptSegmentError, "ring %llu: %s", (unsigned long long)ring->id, what);
    return -1;
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t realtime_ns(void) { return clock_ns(CLOCK_REALTIME); }

uint64_t monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* By how much this process's time namespace shifts CLOCK_MONOTONIC; 0 where the kernel has none. Times that processes
 * share are those of the host. */
static int64_t namespace_shift_ns(void) {
    static unsigned generation = UINT32_MAX;
    static int64_t shift;
    if (generation == fork_generation)
        return shift;
    long long seconds = 0, rest = 0;
    FILE *file = fopen("/proc/self/timens_offsets", "re");
    if (file && fscanf(file, "monotonic %lld %lld", &seconds, &rest) != 2)
        seconds = rest = 0;
    if (file)
        fclose(file);
    shift = seconds * 1000000000 + rest;
    generation = fork_generation;
    return shift;
}

uint64_t host_ns(void) { return monotonic_ns() - (uint64_t)namespace_shift_ns(); }

uint64_t host_to_own_ns(uint64_t ns) { return ns + (uint64_t)namespace_shift_ns(); }

void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

PyTypeObject *type_add(PyObject *module, PyType_Spec *spec, PyTypeObject *base) {
    PyObject *bases = base ? PyTuple_Pack(1, (PyObject *)base) : NULL;
    PyObject *type = base && !bases ? NULL : PyType_FromSpecWithBases(spec, bases);
    const char *dot = strrchr(spec->name, '.');
    Py_XDECREF(bases);
    if (!type || PyModule_AddObjectRef(module, dot + 1, type) < 0)
        return NULL;
    return (PyTypeObject *)type;
}

/* Last step of every dealloc: instances of heap types own a reference to their type. */
void object_free(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---- at the start ---- */

static void count_fork(void) { fork_generation++; }

int common_begin(void) {
    const struct {
        PyObject **error;
        const char *name;
    } errors[] = {
        {&CorruptSegmentError, "CorruptSegmentError"},
        {&LayoutMismatchError, "LayoutMismatchError"},
        {&EventTypeError, "EventTypeError"},
        {&ClosedError, "ClosedError"},
        {&ForkedError, "ForkedError"},
        {&ReclaimedError, "ReclaimedError"},
        {&AccessError, "AccessError"},
    };
    PyObject *module = PyImport_ImportModule("shmbus.errors");
    for (size_t i = 0; module && i < sizeof(errors) / sizeof(errors[0]); i++)
        if (!(*errors[i].error = PyObject_GetAttrString(module, errors[i].name)))
            Py_CLEAR(module);
    Py_XDECREF(module);
    Nothing = module ? PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type) : NULL;
    if (!Nothing)
        return -1;
    if (pthread_atfork(NULL, NULL, count_fork)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}
