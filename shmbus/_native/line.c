/* The line before the bus lock (_shm/lives.py): sleeping until a word changes and waking who sleeps, by futex(2) on the low
 * half of a 64-bit word; and the turn that a thread of this process has. No event goes through here. */
#include "python.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the low half of a word is its first");

static uint32_t *half_in(Py_buffer *buffer, PyObject *object, Py_ssize_t offset) {
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if (offset >= 0 && offset % 8 == 0 && offset <= buffer->len - 8)
        return (uint32_t *)((unsigned char *)buffer->buf + offset);
    PyErr_Format(PyExc_IndexError, "no word at offset %zd of %zd bytes", offset, buffer->len);
    PyBuffer_Release(buffer);
    return NULL;
}

/* await_change(buffer, offset, seen, seconds, bits): sleeps while the low half of the word is `seen`, until a wake with one
 * of these bits, the time or a signal. */
static PyObject *await_change(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object;
    Py_ssize_t offset;
    unsigned long long seen;
    unsigned bits;
    double seconds;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "OnKdI:await_change", &object, &offset, &seen, &seconds, &bits))
        return NULL;
    uint32_t *at = half_in(&buffer, object, offset);
    if (!at)
        return NULL;
    uint64_t until = monotonic_ns() + (uint64_t)((seconds < 0 ? 0 : seconds) * 1e9);
    struct timespec deadline = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    long status;
    int error;
    Py_BEGIN_ALLOW_THREADS;
    status = syscall(SYS_futex, at, FUTEX_WAIT_BITSET, (uint32_t)seen, &deadline, NULL, bits);
    error = errno;
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&buffer);
    if (status < 0 && error == EINTR && PyErr_CheckSignals() < 0)
        return NULL;
    if (status == 0 || error == EAGAIN || error == ETIMEDOUT || error == EINTR)
        Py_RETURN_NONE;
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static long futex_wake(word *at, unsigned bits) {
    return syscall(SYS_futex, (uint32_t *)at, FUTEX_WAKE_BITSET, INT32_MAX, NULL, NULL, bits);
}

/* wake(buffer, offset, bits): wakes all who wait for a change of the word with one of these bits; how many. */
static PyObject *wake(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object;
    Py_ssize_t offset;
    unsigned bits;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "OnI:wake", &object, &offset, &bits))
        return NULL;
    uint32_t *at = half_in(&buffer, object, offset);
    if (!at)
        return NULL;
    long woken = futex_wake((word *)at, bits);
    PyBuffer_Release(&buffer);
    return woken < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(woken);
}

/* ---- the turn of a thread ---- */

static unsigned long attribute(PyObject *object, const char *name) {
    PyObject *value = PyObject_GetAttrString(object, name);
    unsigned long number = value ? PyLong_AsUnsignedLong(value) : 0;
    Py_XDECREF(value);
    return number;
}

static int set_owner(PyObject *lives, unsigned long thread) {
    PyObject *value = PyLong_FromUnsignedLong(thread);
    int status = value ? PyObject_SetAttrString(lives, "_owner", value) : -1;
    Py_XDECREF(value);
    return status;
}

static PyObject *turn_call(PyObject *lives, const char *method, PyObject *argument) {
    PyObject *turn = PyObject_GetAttrString(lives, "_turn"), *result = NULL;
    if (turn)
        result = PyObject_CallMethod(turn, method, argument ? "(O)" : NULL, argument);
    Py_XDECREF(turn);
    return result;
}

/* take_turn(lives): true if this thread has the turn now; it does not wait. */
static PyObject *take_turn(PyObject *module, PyObject *lives) {
    (void)module;
    PyObject *taken = turn_call(lives, "acquire", Py_False);
    if (taken == Py_True && set_owner(lives, PyThread_get_thread_ident()) < 0)
        Py_CLEAR(taken);
    return taken;
}

static int free_lock(PyObject *lives) {
    unsigned long descriptor = attribute(lives, "_descriptor");
    if (PyErr_Occurred())
        return -1;
    struct flock ticket = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LIVES_LINE, .l_len = 0};
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LIVES_LOCK, .l_len = 1};
    fcntl((int)descriptor, F_SETLK, &ticket); /* what could fail has freed both long ago: a closed descriptor */
    fcntl((int)descriptor, F_SETLK, &lock);
    Py_buffer buffer;
    PyObject *map = PyObject_GetAttrString(lives, "_map");
    int status = map && map != Py_None ? PyObject_GetBuffer(map, &buffer, PyBUF_WRITABLE) : -1;
    Py_XDECREF(map);
    if (status < 0 || (size_t)buffer.len < sizeof(lives_file))
        return status;
    lives_file *file = buffer.buf;
    ADD_SEQ(&file->releases, 1); /* after the lock is free: the system call before it orders them */
    futex_wake(&file->releases, 1u << LOAD_SEQ(&file->next) % (LINE_THREADS) | 1u << LINE_THREADS);
    PyBuffer_Release(&buffer);
    return 0;
}

/* leave_turn(lives): frees the lock, wakes who is next, and gives up the turn, if this thread has it: in one step for all
 * Python code, so that no signal handler gets in between. */
static PyObject *leave_turn(PyObject *module, PyObject *lives) {
    (void)module;
    unsigned long owner = attribute(lives, "_owner");
    if (PyErr_Occurred())
        return NULL;
    if (owner != PyThread_get_thread_ident())
        Py_RETURN_FALSE;
    if (free_lock(lives) < 0)
        PyErr_Clear(); /* the file is closed, and so the lock is free */
    PyObject *done = set_owner(lives, 0) < 0 ? NULL : turn_call(lives, "release", NULL);
    Py_XDECREF(done);
    return done ? Py_NewRef(Py_True) : NULL;
}

static PyMethodDef methods[] = {
    {"await_change", await_change, METH_VARARGS, "await_change(buffer, offset, seen, seconds, bits)"},
    {"take_turn", take_turn, METH_O, "take_turn(lives): true if this thread has the turn now."},
    {"leave_turn", leave_turn, METH_O, "leave_turn(lives): frees lock and turn, if this thread has them."},
    {"wake", wake, METH_VARARGS, "wake(buffer, offset, bits): how many were woken."},
    {NULL, NULL, 0, NULL},
};

int line_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
