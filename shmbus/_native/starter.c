/* Starter: a detached process, started from whatever process this is: many threads, a debugger that has its own os.fork, PID 1.
 * Nothing of Python runs in between, and nothing but system calls between a clone and its exec.
 *
 *   start_process(path, argv, environment, gaps)  -> 0, or the pid of its keeper
 *   adopts_orphans()                              -> whether orphans below this process become its children
 *
 * Nobody but us learns of it: a child that signals nothing at its end is invisible to wait(), waitpid(-1) and SIGCHLD handlers.
 * An exec takes that property away, so the process itself is never our child. Two ways:
 *
 *   detached  we -> intermediate (shares our memory while we stand still, exits at once) -> process. The orphan is init's.
 *   kept      where orphans come back to us (PID 1, a subreaper): we -> keeper -> process. The keeper is a fork of us that
 *             never execs, lets go of our descriptors and of all memory in `gaps`, and ends when the process has ended.
 *             Whoever started it reaps it, by waitpid(pid, WNOHANG | __WALL).
 *
 * The process begins as from a login: default signal actions, nothing blocked, a session of its own, niceness 0 if that
 * can be, every core, umask 077, "/", the standard descriptors on /dev/null and no others. */
#define _GNU_SOURCE /* clone, and what only Linux has */
#include "python.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK 65536       /* bytes, of each of the two that run between clone and exec */
#define GAPS 512          /* at most; they lie on the keeper's stack */
#define CORES 8192        /* bits; the kernel takes those that there are */
#define DESCRIPTORS 65536 /* closed one by one where there is no close_range (before Linux 5.9) */

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

typedef struct gap { /* of addresses, between what the keeper goes on using */
    size_t start, length;
} gap;

typedef struct job {
    const char *path;
    char **argv, **environment;
    char *stacks;
    gap gaps[GAPS];
    int gap_count;
    volatile int error; /* errno of what went wrong behind the clone, 0 when the process runs */
} job;

/* ---- behind the clone: system calls only ---- */

static void close_from(unsigned first) {
    if (syscall(SYS_close_range, first, ~0u, 0) < 0)
        for (unsigned fd = first; fd < DESCRIPTORS; fd++)
            close((int)fd);
}

static int become(void *argument) {
    job *j = argument;
    struct sigaction plain = {.sa_handler = SIG_DFL};
    struct sched_param none = {0};
    unsigned char cores[CORES / 8];
    sigset_t nothing;
    for (int number = 1; number < NSIG; number++)
        sigaction(number, &plain, NULL);
    setsid();
    umask(077);
    close_from(0);
    if (open("/dev/null", O_RDWR) == 0 && dup(0) == 1)
        dup(0);
    if (sched_getscheduler(0) != SCHED_OTHER)
        sched_setscheduler(0, SCHED_OTHER, &none);
    if (getpriority(PRIO_PROCESS, 0) != 0)
        setpriority(PRIO_PROCESS, 0, 0);
    memset(cores, 0xff, sizeof(cores));
    syscall(SYS_sched_setaffinity, 0, sizeof(cores), cores);
    sigemptyset(&nothing);
    if (chdir("/") == 0 && sigprocmask(SIG_SETMASK, &nothing, NULL) == 0)
        execve(j->path, j->argv, j->environment);
    j->error = errno;
    _exit(127);
}

/* The child shares our memory, and we stand still until it has called exec or ended. */
static int run(int (*what)(void *), job *j, int which, int flags) {
    int pid = clone(what, j->stacks + (which + 1) * STACK, CLONE_VM | CLONE_VFORK | flags, j);
    if (pid < 0)
        j->error = errno;
    return pid;
}

static int detach(void *argument) {
    run(become, argument, 1, SIGCHLD);
    _exit(0);
}

/* The memory goes last, and with it everything but the stack, what the thread itself has, and the libraries' own: from
 * then on no function may be called that was not called before, nor any that looks at memory. */
static _Noreturn void keep(job *j, int report) {
    gap gaps[GAPS];
    int count = j->gap_count;
    setsid();
    prctl(PR_SET_NAME, "shmbus-keeper");
    if (chdir("/") < 0 || dup2(report, 0) < 0)
        _exit(1);
    close_from(1);
    run(become, j, 1, SIGCHLD);
    int error = j->error;
    if (write(0, &error, sizeof(error)) != sizeof(error) || error)
        _exit(1);
    close(0);
    memcpy(gaps, j->gaps, sizeof(gaps));
    for (int i = 0; i < count; i++)
        syscall(SYS_munmap, gaps[i].start, gaps[i].length);
    while (syscall(SYS_wait4, -1, NULL, __WALL, NULL) > 0)
        ;
    for (;;)
        syscall(SYS_exit_group, 0);
}

/* ---- before it, without the interpreter's lock ---- */

static void start_detached(job *j) {
    int pid = run(detach, j, 0, 0);
    while (pid > 0 && waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
        ;
}

/* A pipe whose ends are above 2: what another thread prints meanwhile is no report. */
static int pipe_above(int ends[2]) {
    int low[2];
    if (pipe2(low, O_CLOEXEC) < 0)
        return -1;
    ends[0] = fcntl(low[0], F_DUPFD_CLOEXEC, 3);
    ends[1] = fcntl(low[1], F_DUPFD_CLOEXEC, 3);
    int code = errno;
    close(low[0]);
    close(low[1]);
    if (ends[0] >= 0 && ends[1] >= 0)
        return 0;
    close(ends[0] >= 0 ? ends[0] : ends[1]);
    errno = code;
    return -1;
}

static int start_kept(job *j) {
    int ends[2], error = 0;
    if (pipe_above(ends) < 0) {
        j->error = errno;
        return 0;
    }
    int pid = (int)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
    if (pid == 0)
        keep(j, ends[1]);
    if (pid < 0)
        j->error = errno;
    close(ends[1]);
    ssize_t got = 0;
    while (pid > 0 && (got = read(ends[0], &error, sizeof(error))) < 0 && errno == EINTR)
        ;
    close(ends[0]);
    if (pid > 0)
        j->error = got == sizeof(error) ? error : ECHILD; /* it was killed */
    while (pid > 0 && j->error && waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
        ;
    return pid;
}

static int start(job *j, bool kept) {
    sigset_t all, before;
    int pid = 0;
    j->stacks = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (j->stacks == MAP_FAILED) {
        j->error = errno;
        return 0;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* our handlers are not for the child to run */
    if (kept)
        pid = start_kept(j);
    else
        start_detached(j);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(j->stacks, 2 * STACK);
    return pid;
}

/* ---- for Python ---- */

/* The strings of a list of bytes, which must outlive them; NULL and an exception. */
static char **strings(PyObject *list) {
    Py_ssize_t count = PyList_Size(list);
    char **result = count < 0 ? NULL : PyMem_Calloc((size_t)count + 1, sizeof(char *));
    for (Py_ssize_t i = 0; result && i < count; i++)
        if (!(result[i] = PyBytes_AsString(PyList_GetItem(list, i)))) {
            PyMem_Free(result);
            return NULL;
        }
    if (!result && !PyErr_Occurred())
        PyErr_NoMemory();
    return result;
}

static int take_gaps(job *j, PyObject *list) {
    Py_ssize_t count = PyList_Size(list);
    if (count < 0 || count > GAPS) {
        PyErr_Format(PyExc_ValueError, "%zd gaps, at most %d", count, GAPS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t start, length;
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "nn", &start, &length))
            return -1;
        j->gaps[i] = (gap){(size_t)start, (size_t)length};
    }
    j->gap_count = (int)count;
    return 0;
}

static PyObject *start_process(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *argv, *environment, *gaps, *result = NULL;
    job *j = PyMem_Calloc(1, sizeof(job));
    if (!j)
        return PyErr_NoMemory();
    if (PyArg_ParseTuple(args, "yO!O!O:start_process", &j->path, &PyList_Type, &argv, &PyList_Type, &environment,
                         &gaps) &&
        (gaps == Py_None || take_gaps(j, gaps) == 0) && (j->argv = strings(argv)) &&
        (j->environment = strings(environment))) {
        int pid;
        Py_BEGIN_ALLOW_THREADS;
        pid = start(j, gaps != Py_None);
        Py_END_ALLOW_THREADS;
        errno = j->error;
        result = j->error ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(pid);
    }
    PyMem_Free(j->argv);
    PyMem_Free(j->environment);
    PyMem_Free(j);
    return result;
}

static PyObject *adopts_orphans(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    int subreaper = 0;
    return PyBool_FromLong(getpid() == 1 || (prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0 && subreaper));
}

/* Where the keeper's own memory is: on this stack, and beside this thread's errno. */
static PyObject *own_addresses(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    char here;
    return Py_BuildValue("nn", (Py_ssize_t)(intptr_t)&here, (Py_ssize_t)(intptr_t)&errno);
}

static PyMethodDef methods[] = {
    {"start_process", start_process, METH_VARARGS,
     "start_process(path, argv, environment, gaps): pid of the keeper, or 0."},
    {"adopts_orphans", adopts_orphans, METH_NOARGS,
     "adopts_orphans(): whether orphans become children of this process."},
    {"own_addresses", own_addresses, METH_NOARGS, "own_addresses(): addresses that this thread's code stands on."},
    {NULL, NULL, 0, NULL},
};

int starter_add(PyObject *module) { return PyModule_AddFunctions(module, methods); }
