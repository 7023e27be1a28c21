/* Waiting: spin, then park. Python code runs for signals, and about once a second to look after the bus.
 *
 *   _care()   looks after the bus; true if more processes share it than there are cores
 *
 * Beside guard.c the one place of _core that blocks, and never with the interpreter's lock: a handle sleeps on its own semaphore, which
 * anybody may post. By sem_clockwait, for posix_ipc waits by the wall clock and drops what a signal handler raises.
 *
 * Park (SYNC park): take the posts of earlier parks, set the bit, look at all rings again, sleep at most BOUND_NS, clear
 * the bit. Whoever clears a bit posts; one that comes too late ends the next sleep early, and is taken there.
 *
 * An adaptive handle spins while events come so closely that a wake-up would cost more than the spin. It learns from the
 * times that the publishers stamped, not from how long it slept: that has the wake-up in it, and who parks once would
 * never spin again. */
#define _GNU_SOURCE /* sem_clockwait; every C library that has it lets it be asked for so */
#include "receiver.h"

#include <errno.h>
#include <sched.h>
#include <semaphore.h>
#include <time.h>

#define SECOND 1000000000ull
#define BOUND_NS SECOND    /* of one sleep: what a wake-up that died with its sender costs */
#define SPIN_NS 20000u     /* about what a wake-up costs on both sides: to spin for longer never pays back */
#define PERSIST_NS 60000u  /* when events that came closely stop: a wake-up makes all that follow late */
#define CREDIT_NS 5000000u /* at most, on top of it where every process has a core: a sender may have lost its own */
#define CREDIT_SHARE 4     /* a part of the time in which events came closely, less that of the time in between */
#define SPIN_ALWAYS_NS 200000u /* of one turn of an IDLE_SPIN handle; between two of them signals are handled */
#define GAP_LIMIT_NS (10u * SPIN_NS)
#define GAP_SHARE 32 /* of a long gap in what is learnt */
#define PROBE_NS (8u * SPIN_NS)
#define PROBE_EVERY 7u

/* ---- what is learnt ---- */

/* Events stamped `before` and `after` stood on either side of a wait. A short gap is believed at once, a long one bit by
 * bit, and never for once: to park once too often costs more than to spin once too often. */
static void learn(waiting *w, uint64_t before, uint64_t after) {
    uint64_t gap = after > before ? after - before : 0;
    if (gap <= SPIN_NS) {
        w->gap_ns = gap;
        w->credit_ns = w->credit_ns < CREDIT_NS ? w->credit_ns + gap / CREDIT_SHARE : CREDIT_NS;
    } else {
        w->gap_ns += (gap < GAP_LIMIT_NS ? gap : GAP_LIMIT_NS) / GAP_SHARE - w->gap_ns / GAP_SHARE;
        w->credit_ns -= gap / CREDIT_SHARE < w->credit_ns ? gap / CREDIT_SHARE : w->credit_ns;
    }
}

/* Two who answer each other make the gap by their own waiting: now and then one spins to see what it would be. */
static uint64_t spin_for(waiting *w) {
    if (w->idle == IDLE_SPIN)
        return SPIN_ALWAYS_NS;
    if (w->idle == IDLE_ADAPTIVE && w->gap_ns <= SPIN_NS)
        return PERSIST_NS + (w->crowded ? 0 : w->credit_ns);
    bool probe = w->gap_ns < PROBE_NS && ++w->parks % PROBE_EVERY == 0;
    return w->idle == IDLE_ADAPTIVE && probe ? SPIN_NS : 0;
}

/* ---- without the interpreter's lock ---- */

static bool ended(const Receiver *self) { return self->guard.closed || self->guard.cancelled; }

/* Where processes share the cores, one that has nothing to do lets the next one run. And after a while in any case: who
 * is waited for may be ready on this very core, while another one is free. */
static bool spin(Receiver *self, uint64_t now, uint64_t until) {
    bool crowded = self->waiting.crowded;
    uint64_t yield_at = crowded ? now : now + SPIN_NS;
    int looks = crowded ? 1 : 32; /* between two readings of the clock */
    do {
        for (int i = 0; i < looks; i++) {
            if (self->kind->ready(self) || ended(self))
                return true;
            cpu_relax();
        }
        if (now >= yield_at)
            sched_yield();
        now = monotonic_ns();
    } while (now < until);
    return false;
}

static void park(Receiver *self, uint64_t until) {
    const waiting *w = &self->waiting;
    sem_t *own = w->semaphore.buf;
    while (sem_trywait(own) == 0)
        ;
    OR_SEQ(w->parked, w->bit); /* SYNC park */
    uint64_t due = self->kind->due(self);
    if (due < until)
        until = due;
    struct timespec end = {.tv_sec = (time_t)(until / SECOND), .tv_nsec = (long)(until % SECOND)};
    if (!self->kind->ready(self) && !ended(self))
        sem_clockwait(own, CLOCK_MONOTONIC, &end); /* posted, interrupted or over: the caller looks in any case */
    AND_SEQ(w->parked, ~w->bit);
}

/* ---- one wait ---- */

/* About once a second, and whenever the document has changed. */
static int care(Receiver *self, uint64_t now) {
    waiting *w = &self->waiting;
    uint64_t version = LOAD_RELAXED(&((bus_segment *)self->lines.buffer.buf)->header.version);
    if (now < w->care_ns && version == w->version)
        return 0;
    PyObject *crowded = PyObject_CallMethod((PyObject *)self, "_care", NULL);
    if (!crowded)
        return -1;
    w->crowded = crowded == Py_True;
    w->version = version;
    w->care_ns = now + BOUND_NS;
    Py_DECREF(crowded);
    return 0;
}

/* The same for a look that does not wait: who only ever polls looks after the bus too. */
int wait_care(Receiver *self) { return self->waiting.parked ? care(self, monotonic_ns()) : 0; }

/* Lets signal handlers run, which may use the handle, close it, or fork; no other thread may meanwhile. */
static int attend(Receiver *self) {
    self->attending = PyThread_get_thread_ident();
    int status = PyErr_CheckSignals();
    self->attending = 0;
    if (status == 0 && self->guard.fork_generation != fork_generation)
        status = receiver_check(self);
    return status;
}

/* Waits once, at most until `deadline`: 1 to look again, 0 when that or the handle's end has come; -1. */
static int wait_once(Receiver *self, uint64_t deadline) {
    uint64_t now = monotonic_ns();
    if (ended(self) || !self->waiting.parked)
        return 0;
    if (care(self, now) < 0)
        return -1;
    if (ended(self) || now >= deadline)
        return 0;
    uint64_t until = deadline - now > BOUND_NS ? now + BOUND_NS : deadline, budget = spin_for(&self->waiting);
    Py_BEGIN_ALLOW_THREADS;
    bool seen = budget && spin(self, now, now + budget < until ? now + budget : until);
    self->waited = self->waited || !seen;
    if (!seen && self->waiting.idle != IDLE_SPIN) {
        self->waiting.credit_ns = 0;
        park(self, until);
    }
    Py_END_ALLOW_THREADS;
    return attend(self) < 0 ? -1 : !ended(self);
}

/* Looks by `take` and waits, in turns, after a look that found Nothing. What it returns is `take`'s, or Nothing at the
 * deadline and at the handle's end. */
PyObject *wait_for(Receiver *self, receiver_take take, uint64_t deadline) {
    uint64_t before = self->event_ns;
    for (;;) {
        int status = wait_once(self, deadline);
        if (status <= 0)
            return status < 0 ? NULL : Py_NewRef(Nothing);
        PyObject *found = take(self);
        if (found != Nothing) {
            learn(&self->waiting, before, self->event_ns);
            return found;
        }
        Py_DECREF(found);
    }
}

/* The deadline of a wait of `timeout` seconds; 0 for one that does not wait, UINT64_MAX for None: for ever. */
int wait_deadline(PyObject *timeout, uint64_t *deadline) {
    *deadline = UINT64_MAX;
    if (timeout == Py_None)
        return 0;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (seconds != seconds) {
        PyErr_Format(PyExc_ValueError, "a timeout is a number of seconds: timeout=%R", timeout);
        return -1;
    }
    if (seconds <= 0)
        *deadline = 0;
    else if (seconds < 1e9)
        *deadline = monotonic_ns() + (uint64_t)(seconds * 1e9);
    return 0;
}

/* ---- a place to sleep ---- */

/* _bind(semaphore, offset, bit, idle): where to sleep, which bit of the bus segment's word at `offset` says so, and how to
 * wait. Until then nothing waits. */
PyObject *wait_bind(PyObject *object, PyObject *args) {
    static const char *const names[] = {"adaptive", "park", "spin"};
    Receiver *self = (Receiver *)object;
    PyObject *semaphore;
    Py_ssize_t offset;
    unsigned long long bit;
    const char *idle;
    if (!PyArg_ParseTuple(args, "OnKs:_bind", &semaphore, &offset, &bit, &idle) || receiver_check(self) < 0)
        return NULL;
    if (offset < 0 || offset % 8 || offset > self->lines.buffer.len - 8 || self->waiting.parked)
        return PyErr_Format(PyExc_IndexError, "no free place to sleep at offset %zd", offset);
    enum idle mode = IDLE_ADAPTIVE;
    while (mode <= IDLE_SPIN && strcmp(names[mode], idle) != 0)
        mode++;
    if (mode > IDLE_SPIN)
        return PyErr_Format(PyExc_ValueError, "no way to wait: idle=%s", idle);
    if (PyObject_GetBuffer(semaphore, &self->waiting.semaphore, PyBUF_WRITABLE) < 0)
        return NULL;
    if ((size_t)self->waiting.semaphore.len < sizeof(sem_t)) {
        PyBuffer_Release(&self->waiting.semaphore);
        return PyErr_Format(PyExc_ValueError, "no semaphore in %zd bytes", self->waiting.semaphore.len);
    }
    self->waiting.idle = mode;
    self->waiting.bit = bit;
    self->waiting.parked = (word *)((unsigned char *)self->lines.buffer.buf + offset);
    Py_RETURN_NONE;
}

void wait_unbind(Receiver *self) {
    if (self->waiting.parked)
        PyBuffer_Release(&self->waiting.semaphore);
    self->waiting.parked = NULL;
}
