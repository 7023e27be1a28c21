/* Publishing: the path of an event that is encoded into every ring: reserve, write, commit, look who is parked. See
 * producer.c for the hooks.
 *
 * Between the last hook and the commit nothing runs but this code under the GIL, so threads may share a Producer. A hook or
 * a post lets others run: what is used after one is looked up again, or held by a reference. */
#include "pools.h"

typedef struct batch {  /* one call of publish or publish_many; threads may share the Producer */
    uint64_t pending;   /* written, not yet committed */
    uint64_t committed; /* events of this call that are in */
    uint64_t since;     /* CLOCK_MONOTONIC in ns when it first found no room, 0: it has not */
    lanes_of lanes;
    bool patient; /* whoever called it waits for room, or drops */
    bool drop;
} batch;

int publish_reserve(Producer *self, uint64_t length) {
    int status = ring_reserve(&self->writer, length);
    self->fits = status == RING_OK;
    for (unsigned i = 0; i < self->group_count && status >= 0; i++) {
        int one = work_reserve(&self->groups[i].writer, length);
        self->groups[i].fits = one == RING_OK;
        if (one != RING_OK)
            status = one;
    }
    if (status < 0)
        corrupt(self->ring, "cursors, gate or records cannot be");
    return status;
}

static void commit_all(Producer *self) {
    ring_commit(&self->writer);
    for (unsigned i = 0; i < self->group_count; i++)
        work_commit(&self->groups[i].writer);
}

/* A batch wakes as many workers as it has records, unless others were waiting before it: then somebody is on the way, and
 * wakes the next one (SYNC chain). `g` is another group's once somebody was posted. */
static int wake_group(Producer *self, group_out *g) {
    group_line *line = lines_group(&self->lines, g->line);
    if (!g->workers.posts) { /* to make a list may let others run, who set the groups */
        wakers fresh;
        unsigned seen = self->changes;
        if (wakers_init(&fresh, (int)g->line, MAX_WORKERS) < 0)
            return -1;
        if (seen != self->changes) {
            wakers_clear(&fresh);
            return 0;
        }
        g->workers = fresh;
    }
    uint64_t first = g->shown, count = g->writer.sequence - first, any = 0;
    g->shown = g->writer.sequence;
    for (int w = 0; line && w < MAX_WORKERS / 64; w++)
        any |= LOAD_SEQ(&line->parked[w]); /* SYNC park */
    if (!any || !count ||
        !(g->key || work_fresh(&g->ring->view, first))) /* what waits may be no other worker's to do */
        return 0;
    return wakers_wake((PyObject *)self, &g->workers, line->parked, line->awaiting, MAX_WORKERS / 64, count);
}

static int wake_all(Producer *self) {
    topic_line *line = self->lines.topic;
    int status = 0;
    if (LOAD_SEQ(&line->parked)) /* SYNC park */
        status = wakers_wake((PyObject *)self, &self->subscribers, &line->parked, &line->awaiting, 1, MAX_SUBSCRIBERS);
    unsigned seen = self->changes;
    for (unsigned i = 0; i < self->group_count && status >= 0; i++) {
        status = wake_group(self, &self->groups[i]);
        if (seen != self->changes) { /* another thread has set them meanwhile: who was told already is not told again */
            seen = self->changes;
            i = UINT32_MAX;
        }
    }
    return status < 0 ? -1 : 0;
}

/* The stamp of the next event: grows strictly within a publisher, whatever the clock does and whichever ring it goes to, so
 * that bus, publisher and stamp name an event. */
static uint64_t stamp(Producer *self, uint64_t now_ns) {
    return self->stamped_ns = now_ns > self->stamped_ns ? now_ns : self->stamped_ns + 1;
}

/* Writes where there is room, and counts a refusal where there is none. */
static bool write_all(Producer *self, part *part, lanes_of *lanes, const sender *by) {
    bool all = self->fits;
    if (RARELY(by))
        notes_take(self, by);
    if (self->fits)
        ring_write(&self->writer, part);
    else
        ring_refuse(&self->ring->view, self->writer.sequence, 1, part->time_ns);
    for (unsigned i = 0; i < self->group_count; i++) {
        group_out *g = &self->groups[i];
        part->lane = g->key ? keys_lane(lanes, i) : 0;
        if (g->fits)
            work_write(&g->writer, part);
        else
            ring_refuse(&g->ring->view, g->writer.sequence, 1, part->time_ns);
        all = all && g->fits;
    }
    if (!self->routed)
        STORE_RELAXED(&self->ring->view.header->unrouted, LOAD_RELAXED(&self->ring->view.header->unrouted) + 1);
    lanes->at++;
    return all;
}

/* Commits what is pending, and wakes whom it concerns, before a hook runs. An error that is raised stays so. */
static int flush(Producer *self, batch *b) {
    if (!b->pending)
        return 0;
    PyObject *error = PyErr_Occurred() ? error_take() : NULL; /* no Python code runs beside a raised error */
    commit_all(self);
    b->committed += b->pending;
    int status = wake_all(self);
    b->pending = 0;
    if (error)
        error_restore(error);
    return error ? -1 : status;
}

/* Runs the hook that an attempt needs: 1 to try again, 0 to drop, -1. */
static int ask(Producer *self, bool stale, uint64_t length, batch *b) {
    if (!stale && !b->since)
        b->since = monotonic_ns();
    PyObject *result = stale ? PyObject_CallMethod((PyObject *)self, "_refresh", NULL)
                             : PyObject_CallMethod((PyObject *)self, "_make_room", "KKK", (unsigned long long)length,
                                                   (unsigned long long)b->since, (unsigned long long)b->committed);
    if (!result && stale)
        self->lines.epoch = UINT64_MAX; /* it may have got half-way: the next call does it again */
    int again = result ? stale || PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return again < 0 || guard_check(&self->guard, "publisher") < 0 ? -1 : again;
}

#define NO_ROOM 2

/* Room for one record in every ring: 1; 0: where `fits` says; NO_ROOM for who is patient; -1: an exception. */
static int attempt(Producer *self, uint64_t length, batch *b) {
    for (;;) {
        bool stale = LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch; /* SYNC epoch */
        if (RARELY(!stale && !keys_known(self, &b->lanes))) {
            if (flush(self, b) < 0 || keys_find(self, &b->lanes) < 0)
                return -1;
            continue;
        }
        int status = stale ? RING_EMPTY : publish_reserve(self, length);
        if (status == RING_OK)
            return 1;
        if (flush(self, b) < 0 || status < 0)
            return -1;
        if (!stale && b->patient && !b->drop)
            return NO_ROOM;
        int again = !stale && b->drop ? 0 : ask(self, stale, length, b);
        if (again < 0)
            return -1;
        if (!again) { /* the policy is to drop; another thread may have changed anything while it was asked */
            if (LOAD_ACQUIRE(&self->lines.topic->epoch) != self->lines.epoch || !keys_known(self, &b->lanes))
                continue;
            status = publish_reserve(self, length);
            return status < 0 ? -1 : status == RING_OK;
        }
    }
}

static int acquire(Producer *self, uint64_t length, batch *b) {
    int found = attempt(self, length, b);
    if (RARELY(self->needy) && b->since)
        producer_content(self);
    return found;
}

#define CARE_NS 1000000000u
#define MOSTLY_EMPTY 8 /* a ring is, while no more than one part of so many is used */

static bool is_roomy(roomy *r, const ring_view *view, uint64_t peak, uint64_t now_ns) {
    if (peak > view->capacity / MOSTLY_EMPTY || now_ns < r->since_ns)
        r->since_ns = 0;
    if (!r->since_ns) {
        *r = (roomy){.since_ns = now_ns};
        return false;
    }
    r->peak = peak > r->peak ? peak : r->peak;
    return true;
}

typedef struct noted { /* a ring that has been mostly empty for long enough, and is larger than it must be */
    int line;
    uint64_t peak;
} noted;

static unsigned note_roomy(noted *out, int line, roomy *r, const ring_view *view, uint64_t peak, uint64_t now_ns,
                           const Producer *self) {
    if (!is_roomy(r, view, peak, now_ns) || view->capacity <= self->floor || now_ns - r->since_ns < self->shrink_ns)
        return 0;
    *out = (noted){line, r->peak};
    *r = (roomy){.since_ns = now_ns};
    return 1;
}

static int tell_roomy(Producer *self, const noted *found, unsigned count) {
    PyObject *list = PyList_New(0), *done = NULL;
    for (unsigned i = 0; list && i < count; i++) {
        PyObject *pair = Py_BuildValue("(iK)", found[i].line, (unsigned long long)found[i].peak);
        if (!pair || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    if (list)
        done = PyObject_CallMethod((PyObject *)self, "_shrink", "(O)", list);
    Py_XDECREF(done);
    Py_XDECREF(list);
    return done ? 0 : -1;
}

/* Rings that have grown, and are mostly empty for long enough, shrink. */
static int look_for_room(Producer *self, uint64_t now_ns) {
    noted *found = PyMem_Malloc(sizeof(noted) * (self->group_count + 1));
    if (!found) {
        PyErr_NoMemory();
        return -1;
    }
    uint64_t peak = ring_peak(&self->writer);
    unsigned count = note_roomy(found, -1, &self->roomy, &self->ring->view, peak, now_ns, self);
    int status = 0;
    for (unsigned i = 0; status == 0 && i < self->group_count; i++) { /* no Python code runs here */
        group_out *g = &self->groups[i];
        if (work_peak(&g->writer, &peak) != RING_OK)
            status = corrupt(g->ring, "gate and tail cannot be");
        else
            count += note_roomy(found + count, (int)g->line, &g->roomy, &g->ring->view, peak, now_ns, self);
    }
    if (status == 0 && count)
        status = tell_roomy(self, found, count);
    PyMem_Free(found);
    return status;
}

/* Once a second, who never waits looks after the bus too: at one word, while a supervisor is at work. */
static int look_after(Producer *self, uint64_t now_ns) {
    uint64_t since = now_ns - self->cared_ns;
    if (since < CARE_NS && (!self->floor || since < self->shrink_ns / MOSTLY_EMPTY))
        return 0;
    const bus_header *bus = &((const bus_segment *)self->lines.buffer.buf)->header;
    uint64_t beat = LOAD_RELAXED(&bus->supervisor_beat);
    self->cared_ns = now_ns;
    if (self->floor && look_for_room(self, now_ns) < 0)
        return -1;
    if (LOAD_RELAXED(&bus->supervisor_life) && (now_ns - beat < BEAT_FRESH_NS || beat - now_ns < BEAT_FRESH_NS))
        return 0;
    return call_hook((PyObject *)self, "_care");
}

static part part_with(PyObject *headers) {
    return (part){.headers = headers ? PyBytes_AsString(headers) : NULL,
                  .headers_length = headers ? (uint32_t)PyBytes_Size(headers) : 0};
}

/* Writes one event that is encoded; Nothing for who is patient, when there is no room. */
static inline PyObject *publish_part(Producer *self, part *p, PyObject *payload, batch *one) {
    sender by, *known = NULL; /* no part of `one`, which is cleared for each event */
    int status = RARELY(self->who) ? notes_ask(self, known = &by) : 0;
    if (status == 0)
        status = acquire(self, p->payload_length + ((p->headers_length + 7u) & ~(uint64_t)7), one);
    if (status < 0 || status == NO_ROOM) {
        keys_drop(&one->lanes);
        return status < 0 ? NULL : Py_NewRef(Nothing);
    }
    uint64_t now_ns = realtime_ns();
    p->time_ns = stamp(self, now_ns);
    bool all = write_all(self, p, &one->lanes, known);
    keys_drop(&one->lanes);
    if (RARELY(p->flags))
        parcel_ship(self, payload);
    commit_all(self);
    uint64_t sequence = self->writer.sequence - 1;
    if (wake_all(self) < 0 || look_after(self, now_ns) < 0)
        return NULL;
    return all ? PyLong_FromUnsignedLongLong(sequence) : Py_NewRef(Py_None);
}

static PyObject *publish_bytes(Producer *self, PyObject *payload, PyObject *headers, batch *one) {
    part p = part_with(headers);
    return encoding_bytes(self, payload, &p) < 0 ? NULL : publish_part(self, &p, payload, one);
}

#define SHORT_ROW 512 /* bytes that are encoded on the stack */

/* A row goes from the event's fields into the rings by way of this buffer alone. */
static PyObject *publish_row(Producer *self, PyObject *event, PyObject *headers) {
    unsigned char local[SHORT_ROW], *row = local;
    part p = part_with(headers);
    batch one = {.lanes = {.event = event, .of = OF_EVENT, .total = 1}};
    uint32_t size = self->record->size;
    if (size > SHORT_ROW && !(row = PyMem_Malloc(size)))
        return PyErr_NoMemory();
    p.payload = row;
    p.payload_length = size;
    PyObject *result = encoding_row(self, event, p.headers_length, row) < 0 ? NULL : publish_part(self, &p, NULL, &one);
    if (row != local)
        PyMem_Free(row);
    return result;
}

static PyObject *publish_one(Producer *self, PyObject *event, PyObject *given) {
    PyObject *headers = NULL, *result = NULL;
    if (given && given != Py_None && !(headers = encoding_headers(self, given)))
        return NULL;
    if (self->record && self->validate == Py_None) {
        result = publish_row(self, event, headers);
        Py_XDECREF(headers);
        return result;
    }
    batch one = {.lanes = {.event = event, .of = OF_EVENT, .total = 1}};
    bool mine =
        self->into != Py_None && !self->scratch_busy; /* another thread, or the encoder's own code, may have it */
    self->scratch_busy = self->scratch_busy || mine;
    PyObject *payload = encoding_one(self, event, headers ? (uint64_t)PyBytes_Size(headers) : 0, mine);
    if (payload)
        result =
            payload == Nothing ? producer_refuse((PyObject *)self, NULL) : publish_bytes(self, payload, headers, &one);
    if (mine)
        self->scratch_busy = false;
    Py_XDECREF(payload);
    Py_XDECREF(headers);
    return result;
}

PyObject *producer_publish(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    Producer *self = (Producer *)object;
    Py_ssize_t keywords = names ? PyTuple_Size(names) : 0;
    if (guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    if (count != 1 || keywords > 1 ||
        (keywords && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "headers") != 0)) {
        PyErr_SetString(PyExc_TypeError, "publish(event, *, headers=None)");
        return guard_leave(&self->guard, object, NULL);
    }
    return guard_leave(&self->guard, object, publish_one(self, args[0], keywords ? args[1] : NULL));
}

/* Writes payloads from `first` on; one commit for as many as fit at once: how many could not go everywhere, or -1. What is in
 * is in `b`, and fewer than all for who is patient. */
static Py_ssize_t publish_all(Producer *self, PyObject *payloads, PyObject *events, Py_ssize_t first, batch *b) {
    Py_ssize_t missed = 0;
    b->lanes = (lanes_of){
        .events = events, .of = events ? OF_EVENTS : OF_NOTHING, .total = PyList_Size(payloads), .at = first};
    uint64_t now_ns = 0;
    int status = guard_check(&self->guard, "publisher");
    for (Py_ssize_t i = first; status >= 0 && i < PyList_Size(payloads); i++) {
        PyObject *payload = Py_NewRef(PyList_GetItem(payloads, i));
        part p = {0};
        status = encoding_bytes(self, payload, &p) < 0 ? -1 : acquire(self, p.payload_length, b);
        if (status >= 0 && status != NO_ROOM) {
            if (!b->pending)
                now_ns = realtime_ns(); /* one look for all that become visible together */
            p.time_ns = stamp(self, now_ns);
            missed += !write_all(self, &p, &b->lanes, NULL);
            if (p.flags)
                parcel_ship(self, payload);
            b->pending++;
        }
        Py_DECREF(payload); /* our list has it still */
        if (status == NO_ROOM)
            break;
    }
    keys_drop(&b->lanes);
    if (status == NO_ROOM)
        return missed;
    return status < 0 || flush(self, b) < 0 || (now_ns && look_after(self, now_ns) < 0) ? -1 : missed;
}

/* How many rows can be written at once where there is room for one everywhere. */
static uint64_t rows_at_once(const Producer *self, uint64_t length, uint64_t most) {
    uint64_t count = ring_rows(&self->writer, length);
    for (unsigned i = 0; i < self->group_count; i++) {
        uint64_t one = work_rows(&self->groups[i].writer, length);
        count = one < count ? one : count;
    }
    return count < most ? count : most;
}

/* Writes them as write_all does. */
static void write_rows(Producer *self, const part *first, uint64_t count) {
    ring_write_rows(&self->writer, first, count);
    for (unsigned i = 0; i < self->group_count; i++)
        work_write_rows(&self->groups[i].writer, first, count);
    self->stamped_ns += count - 1;
    word *unrouted = &self->ring->view.header->unrouted;
    if (!self->routed)
        STORE_RELAXED(unrouted, LOAD_RELAXED(unrouted) + count);
}

/* The same for rows, which nobody else may change or free meanwhile; the sequence of the last one goes into `last`. */
static Py_ssize_t publish_rows(Producer *self, const unsigned char *bytes, size_t count, batch *b, uint64_t *last) {
    Py_ssize_t missed = 0;
    b->lanes = (lanes_of){.rows = bytes, .of = OF_ROWS, .total = (Py_ssize_t)count};
    part p = {.payload = bytes, .payload_length = self->record->size};
    uint64_t now_ns = 0;
    int status = guard_check(&self->guard, "publisher");
    for (uint64_t some; status >= 0 && count; count -= some) {
        some = 1;
        status = acquire(self, p.payload_length, b);
        if (status < 0)
            break;
        if (!b->pending)
            now_ns = realtime_ns(); /* one look for all that become visible together */
        p.time_ns = stamp(self, now_ns);
        if (status == 1 && !self->keyed)
            write_rows(self, &p, some = rows_at_once(self, p.payload_length, count));
        else
            missed += !write_all(self, &p, &b->lanes, NULL);
        *last = self->writer.sequence - 1;
        b->pending += some;
        p.payload = (const unsigned char *)p.payload + some * p.payload_length;
    }
    keys_drop(&b->lanes);
    return status < 0 || flush(self, b) < 0 || (now_ns && look_after(self, now_ns) < 0) ? -1 : missed;
}

static PyObject *publish_many_rows(Producer *self, PyObject *events) {
    rows all = {0};
    batch b = {0};
    uint64_t last;
    Py_ssize_t missed =
        encoding_rows(self, events, &all) < 0 ? -1 : publish_rows(self, all.bytes, all.count, &b, &last);
    PyMem_Free(all.bytes);
    return missed < 0 ? NULL : PyLong_FromUnsignedLongLong(b.committed - (uint64_t)missed);
}

/* _publish_rows(buffer): the sequence of the last row; None if a consumer had to go without one of them. */
PyObject *producer_publish_rows(PyObject *object, PyObject *given) {
    Producer *self = (Producer *)object;
    Py_buffer view;
    if (guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    if (encoding_rows_given(self, given, &view) < 0)
        return guard_leave(&self->guard, object, NULL);
    batch b = {0};
    uint64_t last = self->writer.sequence - 1;
    Py_ssize_t missed = publish_rows(self, view.buf, (size_t)view.len / self->record->size, &b, &last);
    PyBuffer_Release(&view);
    PyObject *result = missed < 0 ? NULL : missed ? Py_NewRef(Py_None) : PyLong_FromUnsignedLongLong(last);
    return guard_leave(&self->guard, object, result);
}

/* Everything is encoded before anything is written. */
PyObject *producer_publish_many(PyObject *object, PyObject *events) {
    Producer *self = (Producer *)object;
    if (guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    if (self->record && self->validate == Py_None)
        return guard_leave(&self->guard, object, publish_many_rows(self, events));
    PyObject *all = PyList_CheckExact(events) && !self->keyed ? Py_NewRef(events) : PySequence_List(events);
    PyObject *payloads = all ? encoding_many(self, all) : NULL, *result = NULL;
    batch b = {0};
    Py_ssize_t missed = payloads ? publish_all(self, payloads, all, 0, &b) : -1;
    if (missed >= 0)
        result = PyLong_FromUnsignedLongLong(b.committed - (uint64_t)missed);
    Py_XDECREF(payloads);
    Py_XDECREF(all);
    return guard_leave(&self->guard, object, result);
}

/* ---- for who waits for room in an event loop ---- */

/* _encode(event, headers): (payload, headers or None) as bytes, for _put; NOTHING where its buffers find no room. */
PyObject *producer_encode(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    PyObject *event, *given, *result = NULL;
    if (!PyArg_ParseTuple(args, "OO:_encode", &event, &given) || guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    PyObject *headers = encoding_headers(self, given);
    if (headers || !PyErr_Occurred()) {
        PyObject *payload = encoding_one(self, event, headers ? (uint64_t)PyBytes_Size(headers) : 0, false);
        if (payload)
            result = payload == Nothing ? payload : Py_BuildValue("(NO)", payload, headers ? headers : Py_None);
    }
    Py_XDECREF(headers);
    return guard_leave(&self->guard, object, result);
}

/* _put((payload, headers), drop, event=None): as publish; NOTHING if there is no room and it is not to be dropped. */
PyObject *producer_put(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    PyObject *payload, *headers, *event = Py_None;
    int drop;
    if (!PyArg_ParseTuple(args, "(OO)p|O:_put", &payload, &headers, &drop, &event) ||
        guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    batch one = {.lanes = {.event = event, .of = OF_EVENT, .total = 1}, .patient = true, .drop = drop};
    return guard_leave(&self->guard, object,
                       publish_bytes(self, payload, PyBytes_Check(headers) ? headers : NULL, &one));
}

/* _encode_many(events): a list for _put_many. */
PyObject *producer_encode_many(PyObject *object, PyObject *events) {
    Producer *self = (Producer *)object;
    if (guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    return guard_leave(&self->guard, object, encoding_many(self, events));
}

/* _put_many(payloads, first, drop, events=None): (how many are in, how many of them could not go everywhere). */
PyObject *producer_put_many(PyObject *object, PyObject *args) {
    Producer *self = (Producer *)object;
    PyObject *payloads, *events = NULL;
    Py_ssize_t first;
    int drop;
    if (!PyArg_ParseTuple(args, "O!np|O!:_put_many", &PyList_Type, &payloads, &first, &drop, &PyList_Type, &events) ||
        guard_enter(&self->guard, "publisher") < 0)
        return NULL;
    batch b = {.patient = true, .drop = drop};
    Py_ssize_t missed = publish_all(self, payloads, events, first, &b);
    return guard_leave(&self->guard, object,
                       missed < 0 ? NULL : Py_BuildValue("(Kn)", (unsigned long long)b.committed, missed));
}
