/* Claims of a worker whose group has a key: lane.h says what must hold.
 *
 * A publisher wakes a worker for every event of such a group, for what comes first may be somebody else's to do. Whoever
 * frees a lane in which more is READY looks itself, or wakes one who does; so no chain is needed, and nobody who finds
 * nothing wakes the next. */
#include "claimer.h"

/* _key_lanes(segment): the lanes of the group. Before the first call that takes events. */
PyObject *claimer_key_lanes(PyObject *object, PyObject *segment) {
    Claimer *self = (Claimer *)object;
    if (receiver_check(&self->base) < 0 || self->keys)
        return self->keys ? PyErr_Format(PyExc_RuntimeError, "the lanes are given once") : NULL;
    keyed *keys = PyMem_Calloc(1, sizeof(keyed));
    if (!keys)
        return PyErr_NoMemory();
    if (PyObject_GetBuffer(segment, &keys->buffer, PyBUF_WRITABLE) < 0) {
        PyMem_Free(keys);
        return NULL;
    }
    int status = lane_open(&keys->table, keys->buffer.buf, (uint64_t)keys->buffer.len);
    if (status != RING_OK) {
        PyErr_SetString(status == RING_FOREIGN ? LayoutMismatchError : CorruptSegmentError, "no lanes of this layout");
        PyBuffer_Release(&keys->buffer);
        PyMem_Free(keys);
        return NULL;
    }
    keys->look.table = keys->table;
    self->keys = keys;
    Py_RETURN_NONE;
}

void lanes_drop(Claimer *self) {
    keyed *keys = self->keys;
    self->keys = NULL;
    if (!keys)
        return;
    PyBuffer_Release(&keys->buffer);
    PyMem_Free(keys->look.rings);
    PyMem_Free(keys);
}

/* ---- settling ---- */

static void note_freed(keyed *keys, int status, unsigned lane) {
    if (status == RING_OK && keys->due_count < MANY_FREED)
        keys->due[keys->due_count++] = lane;
}

int lanes_done(Claimer *self, Ring *ring, const claim *c) {
    unsigned lane;
    int status = lane_done(self->keys->table, &ring->view, c, &lane);
    note_freed(self->keys, status, lane);
    return status;
}

int lanes_give_back(Claimer *self, Ring *ring, const claim *c, bool unseen) {
    unsigned lane;
    int status = lane_give_back(self->keys->table, &ring->view, c, unseen, &lane);
    note_freed(self->keys, status, lane);
    return status;
}

int lanes_delay(Claimer *self, Ring *ring, const claim *c, uint64_t due_ns, bool unseen, bool *first) {
    unsigned lane;
    int status = lane_delay(self->keys->table, &ring->view, c, due_ns, unseen, first, &lane);
    note_freed(self->keys, status, lane); /* another publisher's event may be next */
    return status;
}

/* ---- waking ---- */

static uint64_t wanted(const Claimer *self) {
    const keyed *keys = self->keys;
    uint64_t count = keys->due_count == MANY_FREED || keys->many ? MAX_WORKERS : 0;
    for (unsigned i = 0; i < keys->due_count && count < MAX_WORKERS; i++)
        for (Py_ssize_t s = 0; s < self->count; s++)
            if (lane_wanted(keys->table, &self->sources[s].ring->view, keys->due[i])) {
                count++;
                break;
            }
    return count;
}

/* Whoever is parked looks at the lanes that we have freed, where more is READY and nobody has it. */
int lanes_tell(Claimer *self) {
    keyed *keys = self->keys;
    uint64_t parked = 0, count;
    if (!keys->due_count && !keys->many)
        return 0;
    for (int i = 0; i < MAX_WORKERS / 64; i++)
        parked |= LOAD_SEQ(&self->line->parked[i]); /* SYNC park, lane */
    count = parked ? wanted(self) : 0;
    keys->due_count = 0;
    keys->many = false;
    return !count ? 0
                  : wakers_wake((PyObject *)self, &self->siblings, self->line->parked, self->line->awaiting,
                                MAX_WORKERS / 64, count);
}

/* ---- looking ---- */

static bool is_due(const ring_view *view) { return work_delayed(view) && work_is_due(work_due(view), host_ns()); }

/* A look that found nothing finds nothing again before one of these words has changed, each of which was read before. */
bool lanes_ready(const Claimer *self) {
    const keyed *keys = self->keys;
    if (keys->dry && LOAD_SEQ(&keys->table->freed) != keys->look.freed) /* SYNC lane */
        return true;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        const source *s = &self->sources[i];
        if (keys->dry ? lane_changed(&s->seen) : work_ready(&s->ring->view))
            return true;
        if (is_due(&s->ring->view))
            return true;
    }
    return false;
}

/* Room for what is remembered of each ring in one look. */
static int rings_room(Claimer *self) {
    lane_ring *grown = PyMem_Realloc(self->keys->look.rings, sizeof(lane_ring) * (size_t)(self->count + 1));
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    self->keys->look.rings = grown;
    return 0;
}

/* The document has changed, and maybe what the tags of `next` say: see MANY_FREES of lane.c. */
static void forget(Claimer *self) {
    self->keys->epoch = self->base.lines.epoch;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->sources[i].memory)
            self->sources[i].memory->to = self->sources[i].memory->count = 0;
}

#define AGAIN (-2)

/* Claims up to `most` records of one source: how many, AGAIN, or -1. */
static int claim_from(Claimer *self, source *s, unsigned most) {
    keyed *keys = self->keys;
    unsigned got = 0;
    if (!s->memory && !(s->memory = PyMem_Calloc(1, sizeof(lane_memory)))) {
        PyErr_NoMemory();
        return -1;
    }
    if (work_delayed(&s->ring->view)) {
        int status = work_promote(&s->ring->view, host_ns());
        if (status == RING_CORRUPT)
            return corrupt(s->ring, "gate and tail cannot be");
        keys->many = keys->many || status == RING_OK;
    }
    while (got < most) {
        if (claims_held_room(self) < 0)
            return -1;
        held *h = &self->held[self->held_count];
        int status = lane_claim(&keys->look, &s->ring->view, s->memory, self->owner, self->generation, &h->claim);
        s->seen = keys->look.rings[keys->look.count];
        if (status == LANE_AGAIN && !got)
            return AGAIN;
        if (status == RING_EMPTY || status == LANE_AGAIN)
            break;
        if (status != RING_OK)
            return corrupt(s->ring, "a claimed record cannot be");
        h->ring = (Ring *)Py_NewRef((PyObject *)s->ring);
        self->held_count++;
        got++;
    }
    return (int)got;
}

/* Rings whose publishers are gone, or have gone on in another one: what they have open comes first. One in which all is done
 * is let go of, and `dropped` set. As claim_from. */
static int claim_retired(Claimer *self, unsigned most, bool *dropped) {
    for (Py_ssize_t i = 0; i < self->retired;) {
        lane_next(&self->keys->look, true);
        int got = claim_from(self, &self->sources[i], most);
        if (got)
            return got;
        const ring_header *h = self->sources[i].ring->view.header;
        if (LOAD_SEQ(&h->gate) == LOAD_SEQ(&h->tail)) { /* SYNC gate */
            claims_drop_source(self, i);
            *dropped = true;
        } else {
            self->keys->look.count++;
            i++;
        }
    }
    return 0;
}

static int claim_active(Claimer *self, unsigned most) {
    Py_ssize_t first = self->retired, active = self->count - first;
    for (Py_ssize_t looked = 0; looked < active; looked++) {
        self->current = self->current + 1 < active ? self->current + 1 : 0;
        source *s = &self->sources[first + self->current];
        lane_next(&self->keys->look, false);
        int got = claim_from(self, s, most);
        if (got)
            return got;
    }
    return 0;
}

/* What others wait for, once nothing is left for us. Posts let others run: one source at a time is looked up. */
static int settle_dry(Claimer *self) {
    for (Py_ssize_t i = self->retired; i < self->count; i++)
        if (self->sources[i].ring->acked && claims_settle(self, self->sources[i].ring, true) < 0)
            return -1;
    return 0;
}

/* One look over all rings, those first that come first; as claim_some of claims.c, 2 to start again with more rings. */
int lanes_claim_some(Claimer *self, unsigned most) {
    keyed *keys = self->keys;
    bool dropped = false;
    int got = AGAIN;
    if (rings_room(self) < 0)
        return -1;
    if (keys->epoch != self->base.lines.epoch)
        forget(self);
    for (unsigned vain = 0; got == AGAIN && vain < RING_PATIENCE; vain++) {
        keys->dry = false;
        lane_begin(&keys->look);
        got = claim_retired(self, most, &dropped);
        if (!got && !self->more) /* or there are rings between these and the younger ones */
            got = claim_active(self, most);
    }
    if (got == -1)
        return -1;
    if (got == 0 && self->more && dropped) {
        self->more = 0;
        self->base.lines.epoch = UINT64_MAX; /* the next ones, please */
        return 2;
    }
    keys->dry = got == 0;
    if (lanes_tell(self) < 0)
        return -1;
    return got > 0 ? 1 : got == 0 ? settle_dry(self) : 0;
}
