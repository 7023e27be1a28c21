/* Signals: the mask of the calling thread, as the bytes of a sigset_t. `signal.pthread_sigmask` makes a member of an enum of
 * every signal that is in it, which took five times as long as all else that a holder of the bus lock does.
 *
 * As there, handlers of what was let in have run when a call returns, and what they raise it raises. */
#include "python.h"

#include <errno.h>
#include <signal.h>

static PyObject *changed(int how, const sigset_t *mask) {
    int error = pthread_sigmask(how, mask, NULL);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyErr_CheckSignals() < 0 ? NULL : Py_NewRef(Py_None);
}

/* signal_mask(): what is held off now. */
static PyObject *signal_mask(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    sigset_t mask;
    sigemptyset(&mask); /* the system writes fewer bytes than the type has */
    int error = pthread_sigmask(SIG_BLOCK, NULL, &mask);
    if (!error)
        return PyBytes_FromStringAndSize((const char *)&mask, sizeof(mask));
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *hold_signals(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    sigset_t all;
    sigfillset(&all);
    return changed(SIG_BLOCK, &all);
}

static PyObject *set_signal_mask(PyObject *module, PyObject *bytes) {
    (void)module;
    sigset_t mask;
    if (!PyBytes_Check(bytes) || PyBytes_Size(bytes) != (Py_ssize_t)sizeof(mask)) {
        PyErr_SetString(PyExc_TypeError, "set_signal_mask(mask): what signal_mask() has returned");
        return NULL;
    }
    memcpy(&mask, PyBytes_AsString(bytes), sizeof(mask));
    return changed(SIG_SETMASK, &mask);
}

static PyMethodDef methods[] = {
    {"signal_mask", signal_mask, METH_NOARGS, "signal_mask(): what this thread holds off."},
    {"hold_signals", hold_signals, METH_NOARGS, "hold_signals(): hold off all there are."},
    {"set_signal_mask", set_signal_mask, METH_O, "set_signal_mask(mask): as signal_mask() was."},
    {NULL, NULL, 0, NULL},
};

int signals_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
