/* Ends: what a put and a get of a queue come to as a rule, in one call each. Whatever is out of the ordinary, which is all
 * that waits, grows, shuts down or lies beside the ring, is Python's: see shmbus/queues, whose callables are handed over.
 *
 * Handles are used by their public methods, as Python would: here is neither a ring nor a pointer into one, but for the
 * words of the queue (queues/_words.py), which stay mapped as long as an end is there.
 *
 * Order   put: SHUT, publish, SHUT. Bounded: own bit, bits of others, what is in, publish, own bit (queues/_putting.py).
 *         get: SHUT, receive, ack, ROOM_AWAITED, SHUT. What is received and not acked is given back by a death. */
#include "plain.h"

enum opcode { STACK_GLOBAL = 0x93, MEMOIZE = 0x94, BINGET = 'h', LONG_BINGET = 'j' }; /* of pickles, protocol 4 and 5 */

enum need { /* what is Python's; the first of each is told by `goes_by` and None until then */
            PUBLISH = 0,
            REST,       /* (payload, block, timeout): put what was not */
            OVER,       /* (): raises, for nothing more may be put */
            LATE,       /* (): raises, for nobody may get what was put */
            REFUSALS,   /* exceptions of publish that are for REST */
            DUMPS,      /* pickle.dumps; None: payloads are the values */
            OPTIONS,    /* (protocol, what says no to large buffers, ("buffer_callback",)) */
            NAMED,      /* (value, expected): the pickle by reducers */
            SLOW,       /* set of types that go by reducers at once */
            REGISTERED, /* dict: while something is in it all do */
            ACQUIRE,    /* bounded: the lock of this process's bit */
            RELEASE,
            AT_MOST, /* (): how many are in, or more */
            PUTTER_NEEDS,

            RECEIVE = 0,
            ACK,
            CLAIM,  /* (block, seconds from the start or None): get what was not there at once */
            BESIDE, /* (event, block, timeout): acks a note; (event, its file or None) */
            UNFOLD, /* (event, file) */
            MISSES, /* exceptions of receive that are for CLAIM */
            LOADS,  /* pickle.loads; None: values are the events */
            TAKE,   /* the lock of the worker */
            GIVE,
            ROOM,  /* (): somebody waits for room */
            LAST,  /* (): the queue may be at its end */
            BOUND, /* seconds that one receive may take */
            GETTER_NEEDS,
};

typedef struct End {
    PyObject_HEAD PyObject *need[PUTTER_NEEDS > GETTER_NEEDS ? PUTTER_NEEDS : GETTER_NEEDS];
    Py_buffer words;
    word *shut, *awaited; /* awaited: a getter's */
    uint64_t late;        /* bits of SHUT; a putter's, like the rest */
    long long maxsize;    /* 0: no bound, or not told yet */
    word *putting, *used;
    uint64_t bit, alone; /* ours in `putting`; `used` as long as its word is all there is */
} End;

#define NEEDS (sizeof(((End *)0)->need) / sizeof(PyObject *))

/* The word at an offset; NULL with IndexError. */
static word *shared_word(const End *self, Py_ssize_t offset) {
    if (offset >= 0 && offset % 8 == 0 && offset <= self->words.len - 8)
        return (word *)((unsigned char *)self->words.buf + offset);
    PyErr_Format(PyExc_IndexError, "no word at offset %zd of %zd bytes", offset, self->words.len);
    return NULL;
}

/* Takes the callables by name; those after `first` that are not given are None until then. */
static int needs_from(End *self, PyObject *given, const char *const *names, int count) {
    Py_ssize_t found = 0;
    for (int i = 0; i < count; i++) {
        PyObject *one = given ? PyDict_GetItemString(given, names[i]) : NULL;
        found += one != NULL;
        self->need[i] = Py_NewRef(one ? one : Py_None);
    }
    if (found == (given ? PyDict_Size(given) : 0))
        return 0;
    PyErr_SetString(PyExc_TypeError, "no such need of an end");
    return -1;
}

/* Calls with whatever is raised put aside: that wins. */
static int call_always(PyObject *callable) {
    PyObject *error = PyErr_Occurred() ? error_take() : NULL, *done = call_none(callable);
    int status = done && !error ? 0 : -1;
    Py_XDECREF(done);
    if (error)
        error_restore(error);
    return status;
}

/* Whether a lock was free, and is ours now; -1. */
static int acquired(PyObject *acquire) {
    PyObject *result = call_one(acquire, Py_False);
    int status = result ? PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return status;
}

/* Nothing for what was raised, if it is one of those. */
static PyObject *nothing_for(PyObject *refusals, PyObject *result) {
    if (result || !PyErr_ExceptionMatches(refusals))
        return result;
    PyErr_Clear();
    return Py_NewRef(Nothing);
}

static int three(Py_ssize_t count, Py_ssize_t wanted, const char *what) {
    if (count == wanted)
        return 0;
    PyErr_SetString(PyExc_TypeError, what);
    return -1;
}

/* ---- putting ---- */

/* Whether a pickle may have a STACK_GLOBAL. It follows upon the name, a str: written and memoized, or got from the memo. */
static bool names_something(const unsigned char *data, Py_ssize_t size) {
    const unsigned char *at = data, *end = data + size;
    while ((at = memchr(at, STACK_GLOBAL, (size_t)(end - at)))) {
        if ((at - data >= 1 && at[-1] == MEMOIZE) || (at - data >= 2 && at[-2] == BINGET) ||
            (at - data >= 5 && at[-5] == LONG_BINGET))
            return true;
        at++;
    }
    return false;
}

static PyObject *plain_pickle(PyObject *dumps, PyObject *value, PyObject *options) {
#ifdef Py_LIMITED_API
    (void)options;
    return call_one(dumps, value);
#else
    PyObject *args[] = {NULL, value, TUPLE_ITEM(options, 0), TUPLE_ITEM(options, 1)};
    return PyObject_Vectorcall(dumps, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, TUPLE_ITEM(options, 2));
#endif
}

/* Without pickle where that is not needed; as `pickle.dumps` makes it, unless it names something, for which there may be a reducer. */
static PyObject *pickle_of(End *self, PyObject *value) {
    PyObject *bytes = plain_encode(value);
    if (bytes || PyErr_Occurred())
        return bytes;
    int slow = PyDict_Size(self->need[REGISTERED]) ? 1 : PySet_Contains(self->need[SLOW], (PyObject *)Py_TYPE(value));
    if (slow)
        return slow < 0 ? NULL : call_two(self->need[NAMED], value, Py_True);
    PyObject *data = plain_pickle(self->need[DUMPS], value, self->need[OPTIONS]);
    if (!data && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* a reducer may know how */
        return call_two(self->need[NAMED], value, Py_True);
    }
    if (!data || !names_something((const unsigned char *)BYTES_DATA(data), BYTES_SIZE(data)))
        return data;
    Py_DECREF(data);
    return call_two(self->need[NAMED], value, Py_False);
}

/* What `publish` returns; Nothing: it is for REST; NULL. */
static PyObject *publish_bounded(End *self, PyObject *publish, PyObject *payload) {
    int alone = acquired(self->need[ACQUIRE]); /* one of this process at a time: its bit is one */
    if (alone <= 0)
        return alone < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *result = NULL, *span = NULL;
    uint64_t others = OR_SEQ(self->putting, self->bit) & ~self->bit;
    if (LOAD_SEQ(self->used) != self->alone)
        result = Py_NewRef(Nothing);
    else if ((span = call_none(self->need[AT_MOST]))) {
        long long there = PyLong_AsLongLong(span);
        if (there >= 0 && there + __builtin_popcountll(others) < self->maxsize)
            result = nothing_for(self->need[REFUSALS], call_one(publish, payload));
        else if (!PyErr_Occurred())
            result = Py_NewRef(Nothing);
    }
    Py_XDECREF(span);
    AND_SEQ(self->putting, ~self->bit);
    if (call_always(self->need[RELEASE]) < 0)
        Py_CLEAR(result);
    return result;
}

static PyObject *publish_payload(End *self, PyObject *payload) {
    if (self->need[DUMPS] != Py_None && !PyBytes_Check(payload))
        return Py_NewRef(Nothing);                      /* a pickle with buffers beside it */
    PyObject *publish = Py_NewRef(self->need[PUBLISH]); /* another thread may go on in a larger ring */
    PyObject *result = publish == Py_None ? Py_NewRef(Nothing)
                       : self->maxsize    ? publish_bounded(self, publish, payload)
                                          : nothing_for(self->need[REFUSALS], call_one(publish, payload));
    Py_DECREF(publish);
    return result;
}

/* put(value, block, timeout). */
static PyObject *putter_put(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    End *self = (End *)object;
    if (three(count, 3, "put(value, block, timeout)") < 0)
        return NULL;
    if (LOAD_SEQ(self->shut))
        return call_none(self->need[OVER]);
    PyObject *payload = self->need[DUMPS] == Py_None ? Py_NewRef(args[0]) : pickle_of(self, args[0]);
    PyObject *done = payload ? publish_payload(self, payload) : NULL;
    if (done == Nothing) {
        PyObject *rest[] = {payload, args[1], args[2]};
        Py_DECREF(done);
        done = call_many(self->need[REST], rest, 3);
    }
    Py_XDECREF(payload);
    if (!done)
        return NULL;
    Py_DECREF(done);
    return LOAD_SEQ(self->shut) & self->late ? call_none(self->need[LATE]) : Py_NewRef(Py_None);
}

/* bound(maxsize, putting, bit, used, alone): the words by which it is kept, from now on. */
static PyObject *putter_bound(PyObject *object, PyObject *args) {
    End *self = (End *)object;
    long long maxsize;
    Py_ssize_t putting, used;
    unsigned long long bit, alone;
    if (!PyArg_ParseTuple(args, "LnKnK:bound", &maxsize, &putting, &bit, &used, &alone))
        return NULL;
    word *at = shared_word(self, putting), *all = at ? shared_word(self, used) : NULL;
    if (!all)
        return NULL;
    self->putting = at;
    self->used = all;
    self->bit = bit;
    self->alone = alone;
    self->maxsize = maxsize;
    Py_RETURN_NONE;
}

/* goes_by(publish): from now on; None: by REST. */
static PyObject *putter_goes_by(PyObject *object, PyObject *publish) {
    Py_XSETREF(((End *)object)->need[PUBLISH], Py_NewRef(publish));
    Py_RETURN_NONE;
}

/* Putter(words, shut, late, *, ...): offset of SHUT, bits of it that make a put too late. */
static PyObject *putter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const char *const names[PUTTER_NEEDS] = {"publish", "rest",    "over",   "late", "refusals",
                                                    "dumps",   "options", "named",  "slow", "registered",
                                                    "acquire", "release", "at_most"};
    PyObject *memory;
    Py_ssize_t shut;
    unsigned long long late;
    if (!PyArg_ParseTuple(args, "OnK:Putter", &memory, &shut, &late))
        return NULL;
    End *self = (End *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->late = late;
    if (needs_from(self, kwargs, names, PUTTER_NEEDS) < 0 ||
        PyObject_GetBuffer(memory, &self->words, PyBUF_WRITABLE) < 0 || !(self->shut = shared_word(self, shut)))
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* ---- getting ---- */

static PyObject *received(End *self, PyObject *block, PyObject *timeout) {
    PyObject *zero = NULL, *seconds = timeout == Py_None ? self->need[BOUND] : timeout;
    int blocks = PyObject_IsTrue(block);
    if (blocks > 0 && timeout != Py_None)
        switch (PyObject_RichCompareBool(self->need[BOUND], timeout, Py_LT)) {
        case -1:
            return NULL;
        case 1:
            seconds = self->need[BOUND];
        }
    if (blocks < 0 || (!blocks && !(seconds = zero = PyFloat_FromDouble(0))))
        return NULL;
    PyObject *event = nothing_for(self->need[MISSES], call_one(self->need[RECEIVE], seconds));
    Py_XDECREF(zero);
    return event;
}

/* An event that is acked, and in `file` what it lies in if it is a note; Nothing; NULL. */
static PyObject *acked(End *self, PyObject *const *args, PyObject **file) {
    PyObject *event = received(self, args[0], args[1]), *done = NULL;
    if (!event || event == Nothing)
        return event;
    if (self->need[LOADS] != Py_None && PyBytes_Check(event) && BYTES_SIZE(event) && !BYTES_DATA(event)[0]) {
        PyObject *beside[] = {event, args[0], args[1]}, *pair = call_many(self->need[BESIDE], beside, 3);
        Py_CLEAR(event);
        if (pair && PyTuple_Check(pair) && PyTuple_Size(pair) == 2) {
            event = Py_NewRef(PyTuple_GetItem(pair, 0));
            *file = Py_NewRef(PyTuple_GetItem(pair, 1));
        }
        Py_XDECREF(pair);
        return event;
    }
    if (!(done = call_none(self->need[ACK])))
        Py_CLEAR(event);
    Py_XDECREF(done);
    return event;
}

/* What follows a get: whoever waits for room is told, and whoever waits for the end. */
static int settled(End *self) {
    if (LOAD_SEQ(self->awaited) && call_always(self->need[ROOM]) < 0)
        return -1;
    return LOAD_SEQ(self->shut) ? call_always(self->need[LAST]) : 0;
}

/* get(block, timeout). */
static PyObject *getter_get(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    End *self = (End *)object;
    if (three(count, 2, "get(block, timeout)") < 0)
        return NULL;
    uint64_t began = args[1] == Py_None ? 0 : monotonic_ns();
    PyObject *event = NULL, *file = NULL, *value;
    int alone = self->need[RECEIVE] == Py_None || LOAD_SEQ(self->shut) ? 0 : acquired(self->need[TAKE]);
    if (alone < 0)
        return NULL;
    if (alone) {
        event = acked(self, args, &file);
        if (call_always(self->need[GIVE]) < 0)
            Py_CLEAR(event);
        if (!event) {
            Py_XDECREF(file);
            return NULL;
        }
    }
    if (!alone || event == Nothing) {
        PyObject *since = args[1] == Py_None ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)began / 1e9);
        PyObject *claim[] = {args[0], args[1], since};
        Py_XDECREF(event);
        value = since ? call_many(self->need[CLAIM], claim, 3) : NULL;
        Py_XDECREF(since);
        return value;
    }
    if (settled(self) < 0)
        value = NULL;
    else if (file && file != Py_None)
        value = call_two(self->need[UNFOLD], event, file);
    else
        value = self->need[LOADS] == Py_None              ? Py_NewRef(event)
                : PyBytes_Check(event) && plain_is(event) ? plain_decode(event)
                                                          : call_one(self->need[LOADS], event);
    Py_XDECREF(file);
    Py_DECREF(event);
    return value;
}

/* goes_by(receive, ack): from now on; None: by CLAIM. */
static PyObject *getter_goes_by(PyObject *object, PyObject *args) {
    End *self = (End *)object;
    PyObject *receive, *ack;
    if (!PyArg_ParseTuple(args, "OO:goes_by", &receive, &ack))
        return NULL;
    Py_XSETREF(self->need[ACK], Py_NewRef(ack));
    Py_XSETREF(self->need[RECEIVE], Py_NewRef(receive));
    Py_RETURN_NONE;
}

/* Getter(words, shut, awaited, *, ...): offsets of SHUT and of ROOM_AWAITED. */
static PyObject *getter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const char *const names[GETTER_NEEDS] = {"receive", "ack",  "claim", "beside", "unfold", "misses",
                                                    "loads",   "take", "give",  "room",   "last",   "bound"};
    PyObject *memory;
    Py_ssize_t shut, awaited;
    if (!PyArg_ParseTuple(args, "Onn:Getter", &memory, &shut, &awaited))
        return NULL;
    End *self = (End *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    if (needs_from(self, kwargs, names, GETTER_NEEDS) < 0 ||
        PyObject_GetBuffer(memory, &self->words, PyBUF_WRITABLE) < 0 || !(self->shut = shared_word(self, shut)) ||
        !(self->awaited = shared_word(self, awaited)))
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* ---- both ---- */

static int end_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    for (size_t i = 0; i < NEEDS; i++)
        Py_VISIT(((End *)object)->need[i]);
    return 0;
}

/* What is needed after this is not callable, and says so. */
static int end_clear(PyObject *object) {
    End *self = (End *)object;
    for (size_t i = 0; i < NEEDS; i++)
        Py_XSETREF(self->need[i], Py_NewRef(Py_None));
    self->maxsize = 0;
    return 0;
}

static void end_dealloc(PyObject *object) {
    End *self = (End *)object;
    PyObject_GC_UnTrack(object);
    for (size_t i = 0; i < NEEDS; i++)
        Py_CLEAR(self->need[i]);
    if (self->words.obj)
        PyBuffer_Release(&self->words);
    object_free(object);
}

static PyMethodDef putter_methods[] = {
    {"put", METHOD(putter_put), METH_FASTCALL, "put(value, block, timeout)"},
    {"bound", putter_bound, METH_VARARGS, "bound(maxsize, putting, bit, used, alone): keep the bound from now on."},
    {"goes_by", putter_goes_by, METH_O, "goes_by(publish): from now on; None: by `rest`."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef getter_methods[] = {
    {"get", METHOD(getter_get), METH_FASTCALL, "get(block, timeout)"},
    {"goes_by", getter_goes_by, METH_VARARGS, "goes_by(receive, ack): from now on; None: by `claim`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot putter_slots[] = {{Py_tp_new, putter_new},
                                     {Py_tp_dealloc, end_dealloc},
                                     {Py_tp_traverse, end_traverse},
                                     {Py_tp_clear, end_clear},
                                     {Py_tp_methods, putter_methods},
                                     {Py_tp_doc, "What a put comes to as a rule."},
                                     {0, NULL}};

static PyType_Slot getter_slots[] = {{Py_tp_new, getter_new},
                                     {Py_tp_dealloc, end_dealloc},
                                     {Py_tp_traverse, end_traverse},
                                     {Py_tp_clear, end_clear},
                                     {Py_tp_methods, getter_methods},
                                     {Py_tp_doc, "What a get comes to as a rule."},
                                     {0, NULL}};

static PyType_Spec putter_spec = {.name = "shmbus._core.Putter",
                                  .basicsize = sizeof(End),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  .slots = putter_slots};

static PyType_Spec getter_spec = {.name = "shmbus._core.Getter",
                                  .basicsize = sizeof(End),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  .slots = getter_slots};

int ends_add(PyObject *module) {
    return type_add(module, &putter_spec, NULL) && type_add(module, &getter_spec, NULL) ? 0 : -1;
}
