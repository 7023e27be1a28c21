/* Askers: on whose behalf a worker is asked for events. What one was handed is done with when the same one asks again: a
 * thread, or, where an event loop runs in it, the task. An asker is known by what is never used twice: a thread by the
 * number of its interpreter state, for the system gives away its ids again; a task by itself.
 *
 * A coroutine asks when it is made: on asyncio.wait_for or a task of its own it may run as another task than the one that
 * made it. Hence `ask`: the tuple (task or None, thread, what had been handed out by then). */
#include "receiver.h"

static PyObject *running_loop, *current_task; /* of asyncio; NULL until that is imported: no loop runs before */

static bool find_asyncio(void) {
    static PyObject *name;
    if (!name && !(name = PyUnicode_InternFromString("asyncio")))
        PyErr_Clear();
    PyObject *module = name ? PyDict_GetItemWithError(PyImport_GetModuleDict(), name) : NULL;
    if (!module)
        return false;
    Py_INCREF(module);
    running_loop = PyObject_GetAttrString(module, "_get_running_loop");
    current_task = running_loop ? PyObject_GetAttrString(module, "current_task") : NULL;
    Py_DECREF(module);
    if (current_task)
        return true;
    Py_CLEAR(running_loop); /* another thread is importing it right now */
    PyErr_Clear();
    return false;
}

/* Until 3.12 a thread that has ever run a loop says so in its dict, which is quicker to ask. */
static bool no_loop_ever(void) {
#if PY_VERSION_HEX < 0x030D0000
    static PyObject *key;
    if (!key && !(key = PyUnicode_InternFromString("__asyncio_running_event_loop__")))
        PyErr_Clear();
    PyObject *dict = PyThreadState_GetDict();
    return dict && key && !PyDict_GetItemWithError(dict, key);
#else
    return false;
#endif
}

/* The task that runs, a new reference in `task`, or NULL; -1: asyncio raised. */
static int task_now(PyObject **task) {
    *task = NULL;
    if (no_loop_ever() || !(running_loop || find_asyncio()))
        return 0;
    PyObject *loop = PyObject_CallNoArgs(running_loop);
    if (loop && loop != Py_None && !(*task = call_one(current_task, loop)))
        Py_CLEAR(loop);
    int status = loop ? 0 : -1;
    Py_XDECREF(loop);
    if (*task == Py_None)
        Py_CLEAR(*task); /* a callback of the loop */
    return status;
}

/* Who asks now; `loops`: it may be a task. */
int asker_now(asker *by, bool loops) {
    by->task = NULL;
    if (loops && task_now(&by->task) < 0)
        return -1;
    by->thread = by->task ? 0 : PyThreadState_GetID(PyThreadState_Get());
    return 0;
}

void asker_drop(asker *by) { Py_CLEAR(by->task); }

PyObject *asker_ask(const asker *by, uint64_t asked) {
    return Py_BuildValue("(OKK)", by->task ? by->task : Py_None, (unsigned long long)by->thread,
                         (unsigned long long)asked);
}

int asker_of(PyObject *ask, call *c) {
    PyObject *task;
    unsigned long long thread, asked;
    if (!PyArg_ParseTuple(ask, "OKK:ask", &task, &thread, &asked))
        return -1;
    c->by = (asker){.thread = thread, .task = task == Py_None ? NULL : Py_NewRef(task)};
    c->asked = asked;
    return 0;
}

static bool says(PyObject *task, const char *question) {
    PyObject *answer = PyObject_CallMethod(task, question, NULL);
    bool yes = answer == Py_True;
    Py_XDECREF(answer);
    return yes;
}

/* A task that has returned, and not raised. Not by exception(), for asyncio logs those that nobody has asked for. */
static bool returned(PyObject *task) {
    PyObject *error = NULL;
    if (says(task, "done") && !says(task, "cancelled"))
        error = PyObject_GetAttrString(task, "_exception");
    bool none = error == Py_None;
    Py_XDECREF(error);
    PyErr_Clear();
    return none;
}

static bool thread_lives(uint64_t thread) {
#ifdef Py_LIMITED_API /* for the syntax check */
    return thread != 0;
#else
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state && PyThreadState_GetID(state) != thread)
        state = PyThreadState_Next(state);
    return state != NULL;
#endif
}

/* Nobody works any more on what a task was handed that has returned, or a thread that has ended; or somebody else does, who
 * was given it. Of a task that was cancelled, or has raised, that cannot be said. */
bool asker_ended(const asker *by) { return by->task ? returned(by->task) : !thread_lives(by->thread); }
