/* What the files of the Python stratum share: errors, the ring object, the guards that every handle has.
 * The sources compile against the full API for speed, and pass a syntax check against the limited API of 3.11. */
#ifndef SHMBUS_PYTHON_H
#define SHMBUS_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <semaphore.h>
#include <string.h>

#include "lane.h"
#include "latency.h"
#include "retire.h"
#include "ring.h"
#include "work.h"

#ifdef Py_LIMITED_API
#define call_one(callable, argument) PyObject_CallFunctionObjArgs((callable), (argument), NULL)
#define call_many(callable, arguments, count)                                                                          \
    ((void)(arguments), (void)(count), PyObject_CallNoArgs(callable)) /* for the syntax check */
#define call_none(callable) PyObject_CallFunctionObjArgs((callable), NULL)
#define call_two(callable, first, second) PyObject_CallFunctionObjArgs((callable), (first), (second), NULL)
#define BYTES_DATA PyBytes_AsString
#define BYTES_SIZE PyBytes_Size
#define ARRAY_DATA PyByteArray_AsString
#define ARRAY_SIZE PyByteArray_Size
#define LIST_SET PyList_SetItem
#define TUPLE_SIZE PyTuple_Size
#define TUPLE_ITEM PyTuple_GetItem
#define Py_XSETREF(place, value)                                                                                       \
    do {                                                                                                               \
        PyObject *before_ = (place);                                                                                   \
        (place) = (value);                                                                                             \
        Py_XDECREF(before_);                                                                                           \
    } while (0)
#else
#define BYTES_DATA PyBytes_AS_STRING
#define BYTES_SIZE PyBytes_GET_SIZE
#define ARRAY_DATA PyByteArray_AS_STRING
#define ARRAY_SIZE PyByteArray_GET_SIZE
#define LIST_SET PyList_SET_ITEM
#define TUPLE_SIZE PyTuple_GET_SIZE
#define TUPLE_ITEM PyTuple_GET_ITEM
#define call_one(callable, argument) PyObject_CallOneArg((callable), (argument))
#define call_many(callable, arguments, count) PyObject_Vectorcall((callable), (arguments), (size_t)(count), NULL)
#define call_none(callable) PyObject_CallNoArgs(callable)
#define call_two(callable, first, second)                                                                              \
    PyObject_Vectorcall((callable), (PyObject *[]){NULL, (first), (second)} + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET,   \
                        NULL)
#endif

#define METHOD(f) ((PyCFunction)(void (*)(void))(f))

extern PyObject *CorruptSegmentError, *LayoutMismatchError, *EventTypeError, *ClosedError, *ForkedError;
extern PyObject *ReclaimedError, *AccessError, *Nothing;
extern unsigned fork_generation; /* counts up in every forked child: handles of the parent's time are not ours */

typedef struct Ring {             /* BroadcastRing and WorkRing: a checked view that keeps its mapping alive */
    PyObject_HEAD PyObject *weak; /* references to it: who looks for a ring that is mapped keeps none mapped */
    Py_buffer buffer;
    ring_view view;
    uint64_t id;
    bool open, writable;
    PyObject *post; /* posts its publisher, NULL before it was needed */
    uint64_t acked; /* by this process, since its last look at a waiting publisher */
} Ring;

typedef struct guard { /* first thing that every method of a handle looks at: see guard.c */
    unsigned fork_generation;
    bool ready, released, departing;
    _Atomic bool closed, cancelled; /* looked at without the interpreter's lock too */
    unsigned users, waiters;        /* calls that run, in any thread; threads that wait for their end */
    sem_t idle;
    void (*drop)(PyObject *handle); /* lets go of rings and memory */
} guard;

typedef struct bus_lines { /* the two lines of the bus segment that a handle reads */
    Py_buffer buffer;
    topic_line *topic;
    uint64_t epoch; /* of the topic, at the last refresh */
} bus_lines;

void guard_init(guard *g, void (*drop)(PyObject *));
void guard_clear(guard *g);
int guard_check_inside(const guard *g, const char *what);
void guard_release(guard *g, PyObject *handle);
PyObject *guard_quiet(guard *g);
bool guard_exiting(void);
int guard_refuse(const guard *g, const char *what);
void guard_finish(guard *g, PyObject *handle);

/* Calls that this thread is inside of. */
extern _Thread_local unsigned guard_depth __attribute__((tls_model("initial-exec"), visibility("hidden")));

static inline int guard_check(const guard *g, const char *what) {
    return g->fork_generation == fork_generation && g->ready && !g->closed ? 0 : guard_refuse(g, what);
}

static inline int guard_enter(guard *g, const char *what) {
    if (guard_check(g, what) < 0)
        return -1;
    g->users++;
    guard_depth++;
    return 0;
}

static inline int guard_enter_inside(guard *g, const char *what) {
    if (guard_check_inside(g, what) < 0)
        return -1;
    g->users++;
    guard_depth++;
    return 0;
}

/* Ends a call; `result` passes through. */
static inline PyObject *guard_leave(guard *g, PyObject *handle, PyObject *result) {
    guard_depth--;
    if (--g->users == 0 && g->closed)
        guard_finish(g, handle);
    return result;
}
int lines_bind(bus_lines *lines, PyObject *segment, unsigned topic);
void lines_unbind(bus_lines *lines);
group_line *lines_group(const bus_lines *lines, unsigned group);
int call_hook(PyObject *self, const char *name);
PyObject *error_take(void);
void error_restore(PyObject *error);
void error_hold(PyObject **slot);
bool error_raise_held(PyObject **slot);
PyObject *timeout_argument(PyObject *const *args, Py_ssize_t count, PyObject *names);
int corrupt(const Ring *ring, const char *what);
PyObject *work_depth(PyObject *ring, PyObject *unused); /* depth.c */
PyObject *work_span(PyObject *ring, PyObject *unused);
uint64_t realtime_ns(void);
uint64_t monotonic_ns(void);
uint64_t host_ns(void);
uint64_t host_to_own_ns(uint64_t ns);
void cpu_relax(void);

Ring *ring_checked(PyObject *object, uint32_t kind, bool writable);
PyTypeObject *type_add(PyObject *module, PyType_Spec *spec, PyTypeObject *base);
void object_free(PyObject *self);

/* Decoding: a buffer that decoders may look at for as long as one call. */
PyObject *window_new(void);
PyObject *window_decode(PyObject **window, PyObject *decode, const void *bytes, uint64_t length, PyObject *owner,
                        unsigned char **copy);

/* Waking: see wake.c. */
typedef struct wakers {
    PyObject *posts; /* list by slot: a callable that posts its semaphore, None before it was needed */
    int group;       /* line of the group, -1 for the topic's subscribers */
} wakers;

bool post_call(PyObject *post);
int wakers_init(wakers *w, int group, unsigned slots);
void wakers_clear(wakers *w);
int wakers_wake(PyObject *self, const wakers *w, word *parked, word *awaiting, unsigned count, uint64_t most);

int lanes_of_buffer(PyObject *object, lane_table **table); /* NULL for None */
PyObject *work_take_back(PyObject *ring, PyObject *args);  /* lanes.c */

int common_begin(void);
int guard_add(PyObject *module);
int rings_add(PyObject *module);
int lanes_add(PyObject *module);
int tap_add(PyObject *module);
int window_add(PyObject *module);
int words_add(PyObject *module);
int line_add(PyObject *module);
int mapping_add(PyObject *module);
int pools_add(PyObject *module);
int parcels_add(PyObject *module);
int packers_add(PyObject *module);
int revivers_add(PyObject *module);
int semaphores_add(PyObject *module);
int signals_add(PyObject *module);
int starter_add(PyObject *module);
int latencies_add(PyObject *module);
int producer_add(PyObject *module);
int receiver_add(PyObject *module);
int consumer_add(PyObject *module);
int claimer_add(PyObject *module);
int record_add(PyObject *module);
int rows_add(PyObject *module);
int ends_add(PyObject *module);
int depth_add(PyObject *module);
int plain_add(PyObject *module);

#endif
