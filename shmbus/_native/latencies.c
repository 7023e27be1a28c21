/* Latency lines in the Python stratum: what handles sample, what `stat` reads, and the buckets for tests. */
#include "receiver.h"

/* ---- handles ---- */

/* Samples an event that receiver_handing_out has chosen. */
void receiver_sample(Receiver *self, const record *record) {
    uint64_t weight = self->waited ? 1 : LATENCY_WEIGHT;
    self->waited = false;
    if (!self->latency || !self->lines.topic || record->time_ns < LOAD_RELAXED(&self->latency->since_ns))
        return;
    uint64_t now = realtime_ns();
    latency_record(self->latency, now > record->time_ns ? now - record->time_ns : 0, weight);
}

static int line_number(PyObject *arg, unsigned long *line) {
    *line = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred())
        return -1;
    if (*line < MAX_CONSUMERS)
        return 0;
    PyErr_Format(PyExc_IndexError, "no latency line %lu", *line);
    return -1;
}

/* _sample_into(line): from now on this handle samples into the line of its consumer. */
PyObject *receiver_sample_into(PyObject *object, PyObject *arg) {
    Receiver *self = (Receiver *)object;
    unsigned long line;
    if (receiver_check(self) < 0 || line_number(arg, &line) < 0)
        return NULL;
    self->latency = &((bus_segment *)self->lines.buffer.buf)->latencies[line];
    Py_RETURN_NONE;
}

/* ---- lines ---- */

/* A line of a bus segment; the caller releases the buffer. */
static bool line_of(Py_buffer *buffer, PyObject *segment, PyObject *number, int flags, latency_line **out) {
    unsigned long line;
    if (line_number(number, &line) < 0 || PyObject_GetBuffer(segment, buffer, flags) < 0)
        return false;
    if ((size_t)buffer->len >= sizeof(bus_segment)) {
        *out = &((bus_segment *)buffer->buf)->latencies[line];
        return true;
    }
    PyErr_Format(CorruptSegmentError, "bus segment of %zd bytes has no latency line %lu", buffer->len, line);
    PyBuffer_Release(buffer);
    return false;
}

static PyObject *terms(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *segment, *number;
    Py_buffer buffer;
    latency_line *line;
    latency_terms t;
    if (!PyArg_ParseTuple(args, "OO:latency_terms", &segment, &number) ||
        !line_of(&buffer, segment, number, PyBUF_SIMPLE, &line))
        return NULL;
    bool sampled = latency_terms_of(line, &t);
    PyBuffer_Release(&buffer);
    if (!sampled)
        Py_RETURN_NONE;
    return Py_BuildValue("{sKsKsKsK}", "count", t.count, "p50_ns", t.p50_ns, "p99_ns", t.p99_ns, "max_ns", t.max_ns);
}

static PyObject *record_one(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *segment, *number;
    unsigned long long ns, weight;
    Py_buffer buffer;
    latency_line *line;
    if (!PyArg_ParseTuple(args, "OOKK:latency_record", &segment, &number, &ns, &weight) ||
        !line_of(&buffer, segment, number, PyBUF_WRITABLE, &line))
        return NULL;
    latency_record(line, ns, weight);
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyObject *bucket(PyObject *module, PyObject *arg) {
    (void)module;
    unsigned long long ns = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(latency_bucket(ns));
}

static PyObject *bound(PyObject *module, PyObject *arg) {
    (void)module;
    unsigned long number = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred())
        return NULL;
    if (number < LATENCY_BUCKETS)
        return PyLong_FromUnsignedLongLong(latency_bound((unsigned)number));
    return PyErr_Format(PyExc_IndexError, "no bucket %lu", number);
}

static PyMethodDef methods[] = {
    {"latency_terms", terms, METH_VARARGS, "latency_terms(segment, line): count, quantiles and maximum, or None."},
    {"latency_record", record_one, METH_VARARGS, "latency_record(segment, line, ns, weight): add a sample."},
    {"latency_bucket", bucket, METH_O, "latency_bucket(ns): the bucket that it falls into."},
    {"latency_bound", bound, METH_O, "latency_bound(bucket): the largest latency in it."},
    {NULL, NULL, 0, NULL},
};

int latencies_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
