/* The module table: constants of the layout, errors, and the guards that handles share. */
#include "python.h"

#include <pthread.h>
#include <time.h>

PyObject *CorruptSegmentError, *LayoutMismatchError, *EventTypeError, *ClosedError, *ForkedError;
PyObject *ReclaimedError, *AccessError, *Nothing;
unsigned fork_generation;

/* ---- guards ---- */

int guard_check(const guard *g, const char *what) {
    if (g->fork_generation != fork_generation) {
        PyErr_Format(ForkedError, "this %s was opened before fork(): open the bus again in the child", what);
        return -1;
    }
    if (!g->ready || g->closed) {
        PyErr_Format(ClosedError, "the %s is closed", what);
        return -1;
    }
    return 0;
}

/* A decoder may run Python code, and with it another thread, between looking at an event and consuming it. */
int guard_enter(guard *g, const char *what) {
    if (guard_check(g, what) < 0)
        return -1;
    if (g->busy) {
        PyErr_Format(PyExc_RuntimeError, "the %s is in use by another thread: open one for each", what);
        return -1;
    }
    g->busy = true;
    return 0;
}

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

/* ---- the module ---- */

static void count_fork(void) { fork_generation++; }

static int load_errors(void) {
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
    return module ? 0 : -1;
}

static int add_constants(PyObject *module) {
    const struct {
        const char *name;
        long long value;
    } constants[] = {
        {"LAYOUT_VERSION", LAYOUT_VERSION},
        {"MAX_TOPICS", MAX_TOPICS},
        {"MAX_GROUPS", MAX_GROUPS},
        {"MAX_SUBSCRIBERS", MAX_SUBSCRIBERS},
        {"MAX_WORKERS", MAX_WORKERS},
        {"MAX_CONSUMERS", MAX_CONSUMERS},
        {"MAX_ATTEMPT", MAX_ATTEMPT},
        {"MAX_HEADERS", MAX_HEADERS},
        {"MIN_CAPACITY", MIN_CAPACITY},
        {"MAX_CAPACITY", MAX_CAPACITY},
        {"BUS_BYTES", sizeof(bus_segment)},
        {"BUS_MAGIC", BUS_MAGIC},
        {"BUS_BOOT_ID", offsetof(bus_header, boot_id)},
        {"BUS_PID_NAMESPACE", offsetof(bus_header, pid_namespace)},
        {"BUS_LAYOUT_VERSION", offsetof(bus_header, layout_version)},
        {"BUS_CREATED", offsetof(bus_header, created_ns)},
        {"BUS_VERSION", offsetof(bus_header, version)},
        {"BUS_HOLDER", offsetof(bus_header, holder)},
        {"BUS_SUPERVISOR_PID", offsetof(bus_header, supervisor_pid)},
        {"BUS_SUPERVISOR_START", offsetof(bus_header, supervisor_start)},
        {"BUS_SUPERVISOR_BEAT", offsetof(bus_header, supervisor_beat)},
        {"BUS_SUPERVISOR_SPAWNED", offsetof(bus_header, supervisor_spawned)},
        {"BUS_REMOVED", offsetof(bus_header, removed)},
        {"TOPIC_LINES", offsetof(bus_segment, topics)},
        {"TOPIC_EPOCH", offsetof(topic_line, epoch)},
        {"TOPIC_PARKED", offsetof(topic_line, parked)},
        {"TOPIC_AWAITING", offsetof(topic_line, awaiting)},
        {"GROUP_LINES", offsetof(bus_segment, groups)},
        {"GROUP_PARKED", offsetof(group_line, parked)},
        {"GROUP_AWAITING", offsetof(group_line, awaiting)},
        {"CONSUMER_LINES", offsetof(bus_segment, consumers)},
        {"CONSUMER_STALLED", offsetof(consumer_line, stalled_since_ns)},
        {"LATENCY_LINES", offsetof(bus_segment, latencies)},
        {"LATENCY_BYTES", sizeof(latency_line)},
        {"LATENCY_SINCE", offsetof(latency_line, since_ns)},
        {"LATENCY_BUCKETS", LATENCY_BUCKETS},
        {"LATENCY_WEIGHT", LATENCY_WEIGHT},
        {"LINE", LINE},
        {"DOCUMENTS", offsetof(bus_segment, documents)},
        {"DOCUMENT_BYTES", DOCUMENT_BYTES},
        {"DOCUMENT_LENGTH", offsetof(document_slot, length)},
        {"DOCUMENT_CHECKSUM", offsetof(document_slot, checksum)},
        {"DOCUMENT_BODY", offsetof(document_slot, bytes)},
        {"RING_WAITING", offsetof(ring_header, waiting)},
        {"RING_NEED", offsetof(ring_header, need)},
    };
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++) {
        PyObject *value = PyLong_FromLongLong(constants[i].value);
        int status = value ? PyModule_AddObjectRef(module, constants[i].name, value) : -1;
        Py_XDECREF(value);
        if (status < 0)
            return -1;
    }
    return 0;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "shmbus._core",
                                        .m_doc = "Memory: layout, rings, claims.", .m_size = -1};

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *module = PyModule_Create(&definition);
    if (!module || load_errors() < 0 || add_constants(module) < 0 || rings_add(module) < 0 || window_add(module) < 0 ||
        words_add(module) < 0 || latencies_add(module) < 0 || producer_add(module) < 0 || receiver_add(module) < 0 ||
        consumer_add(module) < 0 || claimer_add(module) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    Nothing = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    if (!Nothing || PyModule_AddObjectRef(module, "NOTHING", Nothing) < 0 || pthread_atfork(NULL, NULL, count_fork)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
