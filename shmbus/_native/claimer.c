/* Claimer: what Worker inherits. Claims records of the group's rings, hands them out, and acks what was handed out when
 * the next one is asked for.
 *
 *   _refresh()                                            membership of the topic changed
 *   _exhausted(ring, n, word, attempt, time, publisher, origin)  attempts are used up: dead-letter it, settle the claim
 *   _undecodable(same, error)                             dead-letter it, settle the claim, raise DecodeError
 *   _wake_publisher(ring_id)                              a publisher waits for the room that was freed
 *   _post(group, slot)                                    a sibling sleeps: see wake.c
 *   _care(), _nothing(timeout)                            see wait.c; raises Empty or ClosedError
 *
 * What this worker claimed and did not pass on to a Message is in `held`, claimed ahead, or in `out`, handed out. A kill at
 * any point leaves claim words with our slot and generation, which reclaim gives back.
 *
 * One call at a time takes events, while any thread may settle: that uses no pointer into a list of the handle after Python
 * code has run, and a ring by a reference. */
#include "claimer.h"

/* _add_source(ring, publisher, retired=False, origin=""). */
static PyObject *claimer_add_source(PyObject *object, PyObject *args) {
    Claimer *self = (Claimer *)object;
    PyObject *ring, *publisher, *origin = NULL;
    int retired = 0;
    if (!PyArg_ParseTuple(args, "OU|pU:_add_source", &ring, &publisher, &retired, &origin) ||
        !ring_checked(ring, RING_WORK, true) || receiver_check(&self->base) < 0)
        return NULL;
    if (claims_source(self, ((Ring *)ring)->id))
        Py_RETURN_NONE; /* a refresh that was cut short has added it */
    source *grown = PyMem_Realloc(self->sources, sizeof(source) * (size_t)(self->count + 1));
    if (!grown)
        return PyErr_NoMemory();
    self->sources = grown;
    self->sources[self->count++] = (source){.ring = (Ring *)Py_NewRef(ring),
                                            .publisher = Py_NewRef(publisher),
                                            .origin = Py_NewRef(origin ? origin : Py_None)};
    if (self->keys)
        self->keys->dry = false;
    if (retired)
        claims_retire(self, self->count - 1);
    Py_RETURN_NONE;
}

/* _retire_source(ring_id): its publisher is gone. */
static PyObject *claimer_retire_source(PyObject *object, PyObject *arg) {
    Claimer *self = (Claimer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    source *s = claims_source(self, id);
    if (s)
        claims_retire(self, s - self->sources);
    Py_RETURN_NONE;
}

/* _retired_left(): how many retired rings among the sources have something to claim. */
static PyObject *claimer_retired_left(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromSsize_t(claims_retired_left((Claimer *)object));
}

/* _more_retired(more): true has `_refresh` called again once those that are there are dry, before younger rings. */
static PyObject *claimer_more_retired(PyObject *object, PyObject *more) {
    ((Claimer *)object)->more = PyObject_IsTrue(more) > 0;
    Py_RETURN_NONE;
}

static PyObject *claimer_drop_source(PyObject *object, PyObject *arg) {
    Claimer *self = (Claimer *)object;
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    source *s = claims_source(self, id);
    if (s)
        claims_drop_source(self, s - self->sources);
    Py_RETURN_NONE;
}

enum settle_how { HOW_ACK, HOW_NACK, HOW_REJECT, HOW_UNDECODABLE };

static claim claim_of(unsigned long long sequence, unsigned long long claim_word) {
    return (claim){.word = claim_word, .record = {.sequence = sequence}};
}

/* Gives back a claim: at once, or after `delay_ns`. 1, 0 if it is not ours any more, -1. */
static int settle_back(Claimer *self, Ring *ring, const claim *c, uint64_t delay_ns, bool unseen) {
    bool first = false;
    int status = delay_ns ? claims_delay(self, ring, c, host_ns() + delay_ns, unseen, &first)
                          : claims_give_back(self, ring, c, unseen);
    if (status != RING_OK)
        return 0;
    return (first ? claims_wake_all(self) : claims_pass_on(self)) < 0 ? -1 : 1;
}

static int settle_claim(Claimer *self, Ring *ring, const claim *c, int how) {
    ring_header *h = ring->view.header;
    claim probe = *c;
    if (work_read(&ring->view, &probe) == RING_LOST)
        return 0;
    if (how != HOW_ACK)
        work_count_loss(how == HOW_REJECT ? &h->rejected : &h->undecodable, c->record.sequence, realtime_ns());
    if (claims_done(self, ring, c) != RING_OK)
        return 0;
    ring->acked++;
    return (self->keys && lanes_tell(self) < 0) || claims_settle(self, ring, false) < 0 ? -1 : 1;
}

/* _settle(ring_id, sequence, word, how, delay_ns=0, unseen=False): false if the claim is not ours any more. From any
 * thread. `unseen`: what is given back was handed to nobody, and costs no attempt. */
static PyObject *claimer_settle(PyObject *object, PyObject *args) {
    Claimer *self = (Claimer *)object;
    unsigned long long ring_id, sequence, claim_word, delay_ns = 0;
    int how, unseen = 0;
    if (!PyArg_ParseTuple(args, "KKKi|Kp:_settle", &ring_id, &sequence, &claim_word, &how, &delay_ns, &unseen) ||
        guard_enter_inside(&self->base.guard, "worker") < 0)
        return NULL;
    source *s = claims_source(self, ring_id);
    int status = 0;
    if (s) {
        Ring *ring = (Ring *)Py_NewRef((PyObject *)s->ring);
        claim c = claim_of(sequence, claim_word);
        status = how == HOW_NACK ? settle_back(self, ring, &c, delay_ns, unseen) : settle_claim(self, ring, &c, how);
        Py_DECREF((PyObject *)ring);
    }
    return guard_leave(&self->base.guard, object, status < 0 ? NULL : PyBool_FromLong(status));
}

/* _give_back(ring_id, sequence, word): for close(), when no call runs any more and before the rings are let go of. */
static PyObject *claimer_give_back(PyObject *object, PyObject *args) {
    Claimer *self = (Claimer *)object;
    unsigned long long ring_id, sequence, claim_word;
    if (!PyArg_ParseTuple(args, "KKK:_give_back", &ring_id, &sequence, &claim_word))
        return NULL;
    source *s = claims_source(self, ring_id);
    if (s && self->base.guard.fork_generation == fork_generation) {
        claim c = claim_of(sequence, claim_word);
        claims_give_back(self, s->ring, &c, false);
    }
    Py_RETURN_NONE;
}

/* A part of a record that we hold, as bytes; None if it is not ours any more. */
static PyObject *held_part(PyObject *object, PyObject *args, const char *format, bool headers) {
    Claimer *self = (Claimer *)object;
    unsigned long long ring_id, sequence, claim_word;
    if (!PyArg_ParseTuple(args, format, &ring_id, &sequence, &claim_word) ||
        guard_check_inside(&self->base.guard, "worker") < 0)
        return NULL;
    source *s = claims_source(self, ring_id);
    claim c = claim_of(sequence, claim_word);
    if (!s || work_read(&s->ring->view, &c) != RING_OK)
        Py_RETURN_NONE;
    uint64_t padded = (c.record.headers + 7u) & ~(uint64_t)7;
    uint64_t from = headers ? 0 : padded, to = headers ? c.record.headers : c.record.length;
    PyObject *part = !headers && c.record.flags & RECORD_POOLED
                         ? claims_flatten(self, s, &c.record)
                         : PyBytes_FromStringAndSize((const char *)c.record.body + from, (Py_ssize_t)(to - from));
    s = claims_source(self, ring_id);
    if (!part || part == Py_None || (s && work_read(&s->ring->view, &c) == RING_OK))
        return part;
    Py_DECREF(part); /* others took the claim meanwhile: it may be of another record */
    Py_RETURN_NONE;
}

/* _payload(ring_id, sequence, word): the payload of a record that we hold. */
static PyObject *claimer_payload(PyObject *object, PyObject *args) {
    return held_part(object, args, "KKK:_payload", false);
}

/* _headers(ring_id, sequence, word): its headers. */
static PyObject *claimer_headers(PyObject *object, PyObject *args) {
    return held_part(object, args, "KKK:_headers", true);
}

static int ask_now(Claimer *self, asker *by, bool loops) {
    int status = asker_now(by, loops);
    self->in_loops = self->in_loops || (status == 0 && by->task);
    return status;
}

static PyObject *claimer_iter(PyObject *object) {
    asker by;
    if (ask_now((Claimer *)object, &by, true) < 0)
        return NULL;
    asker_drop(&by);
    return Py_NewRef(object);
}

/* ack(): acks what this thread or task was handed, and what those were that have ended, without asking for more. */
static PyObject *claimer_ack(PyObject *object, PyObject *unused) {
    (void)unused;
    Claimer *self = (Claimer *)object;
    asker by;
    if (guard_enter(&self->base.guard, "worker") < 0)
        return NULL;
    int status = ask_now(self, &by, true);
    if (status == 0) {
        status = claims_ack(self, &by, UINT64_MAX);
        status = status == 0 ? claims_ack_ended(self) : status;
        if (self->keys && lanes_tell(self) < 0)
            status = -1;
        asker_drop(&by);
    }
    return guard_leave(&self->base.guard, object, status < 0 ? NULL : Py_NewRef(Py_None));
}

/* oldest_first(): from now on. */
static PyObject *claimer_oldest_first(PyObject *object, PyObject *unused) {
    (void)unused;
    ((Claimer *)object)->oldest_first = true;
    Py_RETURN_NONE;
}

/* _ask(): who asks, and when: for _poll. */
static PyObject *claimer_ask(PyObject *object, PyObject *unused) {
    (void)unused;
    asker by;
    if (ask_now((Claimer *)object, &by, true) < 0)
        return NULL;
    PyObject *ask = asker_ask(&by, ((Claimer *)object)->handed_out);
    asker_drop(&by);
    return ask;
}

/* ---- the kind ---- */

static int prepare(Receiver *base) {
    Claimer *self = (Claimer *)base;
    call *c = base->call;
    if ((c->ask ? asker_of(c->ask, c) : ask_now(self, &c->by, !c->iterates || self->in_loops)) < 0)
        return -1;
    return self->out_count ? claims_ack(self, &c->by, c->ask ? c->asked : UINT64_MAX) : 0;
}

static PyObject *take(Receiver *base) {
    Claimer *self = (Claimer *)base;
    int status = claims_next(self);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *event = claims_hand_room(self) < 0 ? NULL : claims_decode(self);
    if (event) {
        claims_sample(self);
        claims_hand_out(self);
    }
    return event;
}

/* (event, sequence, publisher, time_ns, headers, attempt, ring_id, word, origin), Nothing, or NULL. The claim is the
 * message's from now on. */
static PyObject *take_message(Receiver *base) {
    Claimer *self = (Claimer *)base;
    int status = claims_next(self);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    PyObject *event = claims_decode(self), *result = NULL;
    if (!event)
        return NULL;
    const held *h = &self->held[self->handed];
    const record *r = &h->claim.record;
    source *s = claims_source(self, h->ring->id);
    result = Py_BuildValue("(NKOKy#IKKO)", event, (unsigned long long)r->sequence, s ? s->publisher : Py_None,
                           (unsigned long long)r->time_ns, r->body, (Py_ssize_t)r->headers, h->claim.attempt,
                           (unsigned long long)h->ring->id, (unsigned long long)h->claim.word, s ? s->origin : Py_None);
    if (result) {
        claims_sample(self);
        claims_take_off(self);
    }
    return result;
}

static bool ready(Receiver *base) { return claims_ready((Claimer *)base) || receiver_stale(base); }

static uint64_t due(Receiver *base) { return claims_due((Claimer *)base); }

static int end(Receiver *base) { return claims_end((Claimer *)base); }

static int pass_on(Receiver *base) { return claims_pass_on((Claimer *)base); }

static void drop_all(Receiver *base) { claims_drop_all((Claimer *)base); }

static const receiver_kind kind = {"worker", prepare, take, take_message, claims_take_rows, claims_take_copies,
                                   ready,    due,     end,  pass_on,      drop_all};

static int claimer_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segment",    "topic",       "decode",   "group",   "owner",
                            "generation", "max_deliver", "prefetch", "expires", NULL};
    Claimer *self = (Claimer *)object;
    PyObject *segment, *decode;
    unsigned topic, group, generation, max_deliver, prefetch;
    unsigned long owner;
    int expires = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOIkIII|p", names, &segment, &topic, &decode, &group, &owner,
                                     &generation, &max_deliver, &prefetch, &expires))
        return -1;
    if (owner >= MAX_WORKERS || group >= MAX_GROUPS || !prefetch) {
        PyErr_Format(PyExc_ValueError, "no group line %u or worker slot %lu, or nothing to prefetch: prefetch=%u",
                     group, owner, prefetch);
        return -1;
    }
    if (receiver_init(&self->base, &kind, segment, topic, decode) < 0 ||
        wakers_init(&self->siblings, (int)group, MAX_WORKERS) < 0)
        return -1;
    self->line = lines_group(&self->base.lines, group);
    self->owner = (unsigned)owner;
    self->generation = generation;
    self->max_deliver = max_deliver;
    self->prefetch = prefetch;
    self->expires = expires;
    return 0;
}

static PyMethodDef methods[] = {
    {"ack", claimer_ack, METH_NOARGS, "ack(): acks what this thread or task was handed, without asking for more."},
    {"oldest_first", claimer_oldest_first, METH_NOARGS, "oldest_first(): of several rings, the oldest event."},
    {"_settle", claimer_settle, METH_VARARGS, NULL},
    {"_ask", claimer_ask, METH_NOARGS, NULL},
    {"_key_lanes", claimer_key_lanes, METH_O, NULL},
    {"_give_back", claimer_give_back, METH_VARARGS, NULL},
    {"_payload", claimer_payload, METH_VARARGS, NULL},
    {"_headers", claimer_headers, METH_VARARGS, NULL},
    {"_add_source", claimer_add_source, METH_VARARGS, NULL},
    {"_drop_source", claimer_drop_source, METH_O, NULL},
    {"_retire_source", claimer_retire_source, METH_O, NULL},
    {"_retired_left", claimer_retired_left, METH_NOARGS, NULL},
    {"_more_retired", claimer_more_retired, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

/* A task that was handed an event refers to whatever its coroutine does, maybe to us. */
static int claimer_traverse(PyObject *object, visitproc visit, void *arg) {
    Claimer *self = (Claimer *)object;
    for (Py_ssize_t i = 0; i < self->out_count; i++)
        Py_VISIT(self->out[i].by.task);
    return receiver_traverse(object, visit, arg);
}

static PyType_Slot slots[] = {{Py_tp_init, claimer_init},
                              {Py_tp_new, PyType_GenericNew},
                              {Py_tp_iter, claimer_iter},
                              {Py_tp_traverse, claimer_traverse},
                              {Py_tp_clear, receiver_clear},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "The path of an event to one of a group's workers."},
                              {0, NULL}};

static PyType_Spec spec = {.name = "shmbus._core.Claimer",
                           .basicsize = sizeof(Claimer),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

int claimer_add(PyObject *module) { return type_add(module, &spec, receiver_base) ? 0 : -1; }
