/* Guards: which calls of a handle run, and its end.
 *
 * A call holds what its handle has, rings and bus segment, as long as it runs, in whatever thread; Python code may run in
 * it, and with that any other thread. close() closes the guard, so that no further call begins and what sleeps wakes up,
 * waits until none runs, and lets go then. Changed under the interpreter's lock only, but for the wait.
 *
 * A thread that is inside of a call, in a decoder, a hook or a signal handler, never waits for one: two could wait for each
 * other. What it closes is closed once the last call has ended, by whoever ends it.
 *
 *   _close_late()   close(), when it had to be put off */
#define _GNU_SOURCE /* sem_clockwait */
#include "python.h"

#include <time.h>

#define SECOND 1000000000ull

_Thread_local unsigned guard_depth;

static unsigned long exit_thread; /* that of the interpreter's exit, 0 before it; see exiting */
static uint64_t exit_deadline;

void guard_init(guard *g, void (*drop)(PyObject *)) {
    *g = (guard){.fork_generation = fork_generation, .ready = true, .drop = drop};
    sem_init(&g->idle, 0, 0);
}

/* Before the memory of the handle goes. */
void guard_clear(guard *g) {
    if (g->ready)
        sem_destroy(&g->idle);
    g->ready = false;
}

/* True in every thread but the one that ends the interpreter: what it closes is not theirs to hear of. */
bool guard_exiting(void) { return exit_thread && exit_thread != PyThread_get_thread_ident(); }

/* Says why a handle takes no call. */
int guard_refuse(const guard *g, const char *what) {
    if (g->fork_generation != fork_generation)
        PyErr_Format(ForkedError, "this %s was opened before fork(): open the bus again in the child", what);
    else if (guard_exiting())
        PyErr_SetNone(PyExc_SystemExit); /* ends a thread without a word, and frees what it holds on its way */
    else
        PyErr_Format(ClosedError, "the %s is closed", what);
    return -1;
}

/* The same for what a call does to its own handle: that goes on when another thread has closed it meanwhile. */
int guard_check_inside(const guard *g, const char *what) {
    bool inside = guard_depth && g->users && g->fork_generation == fork_generation;
    return inside ? 0 : guard_check(g, what);
}

/* The last call of a closed handle has ended: what was put off until then. */
void guard_finish(guard *g, PyObject *handle) {
    for (; g->waiters; g->waiters--)
        sem_post(&g->idle);
    if (g->released)
        g->drop(handle);
    if (!g->departing)
        return;
    g->departing = false;
    PyObject *error = PyErr_Occurred() ? error_take() : NULL; /* no Python code runs beside a raised error */
    PyObject *done = PyObject_CallMethod(handle, "_close_late", NULL);
    if (!done)
        PyErr_WriteUnraisable(handle);
    Py_XDECREF(done);
    if (error)
        error_restore(error);
}

/* Lets go of rings and memory, at once or when the last call ends. In a forked child the calls of the parent's other
 * threads never end; what they used goes with the handle. */
void guard_release(guard *g, PyObject *handle) {
    g->closed = true;
    g->released = true;
    if (!g->users || (g->fork_generation != fork_generation && !guard_depth))
        g->drop(handle);
}

/* Waits until no call of a closed handle runs: True; False if that cannot be waited for, and close() will be called again
 * when the last one ends, or, at the interpreter's exit, not at all; NULL if a signal handler raised. */
PyObject *guard_quiet(guard *g) {
    while (g->users && g->fork_generation == fork_generation) {
        uint64_t now = monotonic_ns(), until = now + SECOND;
        if (exit_thread && until > exit_deadline)
            until = exit_deadline;
        if (guard_depth || now >= until) {
            g->departing = guard_depth > 0;
            Py_RETURN_FALSE;
        }
        struct timespec end = {.tv_sec = (time_t)(until / SECOND), .tv_nsec = (long)(until % SECOND)};
        g->waiters++;
        Py_BEGIN_ALLOW_THREADS;
        sem_clockwait(&g->idle, CLOCK_MONOTONIC, &end);
        Py_END_ALLOW_THREADS;
        g->waiters -= g->waiters > 0; /* nothing to do if guard_finish has posted it */
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
    Py_RETURN_TRUE;
}

/* ---- the interpreter's exit ---- */

/* exit_begins(seconds): this thread ends the interpreter, and waits for the calls of others no longer than that in all. */
static PyObject *exit_begins(PyObject *module, PyObject *arg) {
    (void)module;
    double seconds = PyFloat_AsDouble(arg);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    exit_thread = PyThread_get_thread_ident();
    exit_deadline = monotonic_ns() + (uint64_t)(seconds * 1e9);
    Py_RETURN_NONE;
}

static PyObject *exiting(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyBool_FromLong(guard_exiting());
}

static PyMethodDef methods[] = {
    {"exit_begins", exit_begins, METH_O, "exit_begins(seconds): what is closed from now on is closed by the exit."},
    {"exiting", exiting, METH_NOARGS, "exiting(): true in every other thread once the interpreter's exit has begun."},
    {NULL, NULL, 0, NULL},
};

int guard_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
