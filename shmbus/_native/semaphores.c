/* Semaphores: what the sleeping end of a channel needs of the C library (wait.c sleeps by itself). posix_ipc has none of
 * it: see _shm/waker.py. A semaphore is a buffer of SEMAPHORE_BYTES; it stays mapped for as long as one of these runs. */
#define _GNU_SOURCE /* sem_clockwait */
#include "python.h"

#include <errno.h>
#include <semaphore.h>
#include <stdint.h>
#include <time.h>

#define SECOND 1000000000ull

static sem_t *semaphore_in(Py_buffer *buffer, PyObject *object) {
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if ((size_t)buffer->len >= sizeof(sem_t) && (uintptr_t)buffer->buf % _Alignof(sem_t) == 0)
        return buffer->buf;
    PyErr_Format(PyExc_ValueError, "no semaphore in %zd bytes", buffer->len);
    PyBuffer_Release(buffer);
    return NULL;
}

static PyObject *semaphore_init(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer buffer;
    sem_t *semaphore = semaphore_in(&buffer, object);
    if (!semaphore)
        return NULL;
    int status = sem_init(semaphore, 1, 0);
    PyBuffer_Release(&buffer);
    return status < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

static PyObject *semaphore_post(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer buffer;
    sem_t *semaphore = semaphore_in(&buffer, object);
    if (!semaphore)
        return NULL;
    sem_post(semaphore); /* EOVERFLOW: of two thousand million posts it needs no more */
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyObject *semaphore_drain(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer buffer;
    sem_t *semaphore = semaphore_in(&buffer, object);
    if (!semaphore)
        return NULL;
    unsigned long count = 0;
    while (sem_trywait(semaphore) == 0)
        count++;
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLong(count);
}

/* Once: a signal ends it, so that its handler runs and what it raises goes up. By the monotonic clock. */
static PyObject *semaphore_wait(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object;
    double seconds;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "Od:semaphore_wait", &object, &seconds))
        return NULL;
    sem_t *semaphore = semaphore_in(&buffer, object);
    if (!semaphore)
        return NULL;
    uint64_t until = monotonic_ns() + (seconds > 0 ? (uint64_t)((seconds < 1e9 ? seconds : 1e9) * 1e9) : 0);
    struct timespec end = {.tv_sec = (time_t)(until / SECOND), .tv_nsec = (long)(until % SECOND)};
    int status, code;
    Py_BEGIN_ALLOW_THREADS;
    status = sem_clockwait(semaphore, CLOCK_MONOTONIC, &end);
    code = status ? errno : 0;
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&buffer);
    if (status == 0)
        Py_RETURN_TRUE;
    if (code == EINTR && PyErr_CheckSignals() < 0)
        return NULL;
    if (code == EINTR || code == ETIMEDOUT)
        Py_RETURN_FALSE;
    errno = code;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyMethodDef methods[] = {
    {"semaphore_init", semaphore_init, METH_O, "semaphore_init(buffer): one between processes, at zero."},
    {"semaphore_post", semaphore_post, METH_O, "semaphore_post(buffer)"},
    {"semaphore_drain", semaphore_drain, METH_O, "semaphore_drain(buffer): take every post; how many there were."},
    {"semaphore_wait", semaphore_wait, METH_VARARGS, "semaphore_wait(buffer, seconds): True when posted."},
    {NULL, NULL, 0, NULL},
};

int semaphores_add(PyObject *module) {
    return PyModule_AddIntConstant(module, "SEMAPHORE_BYTES", sizeof(sem_t)) < 0
               ? -1
               : PyModule_AddFunctions(module, methods);
}
