/* Claims of one worker: taken, decoded, acked, given back. See claimer.c for the hooks, work.h for what must hold. */
#include "claimer.h"

/* ---- sources ---- */

void claims_drop_source(Claimer *self, Py_ssize_t index) {
    source gone = self->sources[index];
    memmove(&self->sources[index], &self->sources[index + 1], sizeof(source) * (size_t)(self->count - index - 1));
    self->count--;
    self->retired -= index < self->retired;
    self->current = 0;
    Py_DECREF((PyObject *)gone.ring);
    Py_DECREF(gone.publisher);
    Py_DECREF(gone.origin);
    Py_XDECREF(gone.pool);
    PyMem_Free(gone.memory);
}

source *claims_source(Claimer *self, uint64_t ring_id) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->sources[i].ring->id == ring_id)
            return &self->sources[i];
    return NULL;
}

/* Moves a source among those without a publisher, so that these are claimed from in the order in which they were written. */
void claims_retire(Claimer *self, Py_ssize_t index) {
    source s = self->sources[index];
    Py_ssize_t at = self->retired;
    if (index < at)
        return;
    while (at > 0 && self->sources[at - 1].ring->id > s.ring->id)
        at--;
    memmove(&self->sources[at + 1], &self->sources[at], sizeof(source) * (size_t)(index - at));
    self->sources[at] = s;
    self->retired++;
    self->current = 0;
}

/* How many of them have something to claim; one that is dry may get something back. */
Py_ssize_t claims_retired_left(const Claimer *self) {
    Py_ssize_t left = 0;
    for (Py_ssize_t i = 0; i < self->retired; i++)
        left += work_ready(&self->sources[i].ring->view);
    return left;
}

static void give_back(Claimer *self, const held *h, bool unseen) {
    if (self->base.guard.fork_generation == fork_generation)
        claims_give_back(self, h->ring, &h->claim, unseen); /* what was reclaimed meanwhile is no longer ours to give */
}

/* Gives back what was claimed ahead, and handed to nobody: that has cost no attempt. */
static void give_back_ahead(Claimer *self) {
    while (self->handed < self->held_count) {
        held h = self->held[self->handed++];
        give_back(self, &h, true);
        Py_DECREF((PyObject *)h.ring);
    }
}

/* Gives back what was handed out and not acked. */
static void give_back_out(Claimer *self) {
    handed *out = self->out;
    Py_ssize_t count = self->out_count;
    self->out = NULL;
    self->out_count = self->out_size = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        give_back(self, &out[i].held, false);
        asker_drop(&out[i].by);
        Py_DECREF((PyObject *)out[i].held.ring);
    }
    PyMem_Free(out);
}

void claims_drop_all(Claimer *self) {
    give_back_out(self);
    give_back_ahead(self);
    while (self->count)
        claims_drop_source(self, self->count - 1);
    lanes_drop(self);
    wakers_clear(&self->siblings);
    PyMem_Free(self->sources); /* from here on no Python code, and no other thread that comes to drop */
    PyMem_Free(self->held);
    PyMem_Free(self->copy);
    self->sources = NULL;
    self->held = NULL;
    self->copy = NULL;
    self->copy_size = 0;
    self->held_size = self->held_count = self->handed = 0;
}

/* Nothing more will be asked for. */
int claims_end(Claimer *self) {
    give_back_ahead(self);
    return claims_pass_on(self);
}

/* ---- claims ---- */

/* Looks after a waiting publisher: always when nothing is left, and once a quarter of the records is acked. */
int claims_settle(Claimer *self, Ring *ring, bool dry) {
    const ring_header *h = ring->view.header;
    if (!dry && ring->acked * 4 < LOAD_RELAXED(&h->tail) - LOAD_RELAXED(&h->gate))
        return 0;
    ring->acked = 0;
    uint64_t waiting = ring_release_publisher(&ring->view); /* SYNC room */
    return waiting ? receiver_wake_publisher(&self->base, ring, waiting) : 0;
}

static int lost(uint64_t sequence) {
    PyErr_Format(ReclaimedError, "event %llu was given to another worker: this one was taken for dead, or was too slow",
                 (unsigned long long)sequence);
    return -1;
}

static bool is_of(const handed *h, const asker *by, uint64_t asked) {
    return h->by.task == by->task && h->by.thread == by->thread && h->number < asked;
}

/* Acks what an asker was handed before it asked. All of it, even if one was lost. */
int claims_ack(Claimer *self, const asker *by, uint64_t asked) {
    Py_ssize_t kept = 0;
    uint64_t missing = 0, acked = 0;
    for (Py_ssize_t i = 0; i < self->out_count; i++) { /* no Python code runs here: `by` keeps the task */
        handed *h = &self->out[i];
        if (!is_of(h, by, asked)) {
            self->out[kept++] = *h;
            continue;
        }
        if (claims_done(self, h->held.ring, &h->held.claim) != RING_OK)
            missing = h->held.claim.record.sequence;
        else
            acked = ++h->held.ring->acked;
        asker_drop(&h->by);
        Py_DECREF((PyObject *)h->held.ring);
    }
    self->out_count = kept;
    int status = missing ? lost(missing) : 0;
    for (Py_ssize_t i = 0; acked && i < self->count && status == 0; i++)
        if (self->sources[i].ring->acked)
            status = claims_settle(self, self->sources[i].ring, false);
    return status;
}

/* The same for the askers that have ended. To ask one of them runs Python code. */
int claims_ack_ended(Claimer *self) {
    int status = 0;
    for (Py_ssize_t i = 0; i < self->out_count && status == 0; i++) {
        asker by = {.thread = self->out[i].by.thread, .task = Py_XNewRef(self->out[i].by.task)};
        if (asker_ended(&by)) {
            status = claims_ack(self, &by, UINT64_MAX);
            i = -1;
        }
        asker_drop(&by);
    }
    return status;
}

/* Room for one more that is handed out, before it is decoded. */
int claims_hand_room(Claimer *self) {
    if (self->out_count < self->out_size)
        return 0;
    Py_ssize_t size = self->out_size ? self->out_size * 2 : 16;
    handed *grown = PyMem_Realloc(self->out, sizeof(handed) * (size_t)size);
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    self->out = grown;
    self->out_size = size;
    return 0;
}

/* The claim at `held[handed]` was decoded for the asker of this call; there is room. */
void claims_hand_out(Claimer *self) {
    const asker *by = &self->base.call->by;
    self->out[self->out_count++] = (handed){.held = self->held[self->handed++],
                                            .by = {.thread = by->thread, .task = Py_XNewRef(by->task)},
                                            .number = self->handed_out++};
}

int claims_held_room(Claimer *self) {
    if (self->held_count < self->held_size)
        return 0;
    Py_ssize_t size = self->held_size ? self->held_size * 2 : 16;
    held *grown = PyMem_Realloc(self->held, sizeof(held) * (size_t)size);
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    self->held = grown;
    self->held_size = size;
    return 0;
}

/* Claims up to `prefetch` records from one source: how many, or -1. */
static int claim_from(Claimer *self, source *s) {
    unsigned got = 0, vain = 0;
    if (work_delayed(&s->ring->view) && work_promote(&s->ring->view, host_ns()) == RING_CORRUPT)
        return corrupt(s->ring, "gate and tail cannot be");
    while (got < self->prefetch && work_ready(&s->ring->view)) {
        if (claims_held_room(self) < 0)
            return -1;
        held *h = &self->held[self->held_count];
        int status = work_claim(&s->ring->view, self->owner, self->generation, &h->claim);
        if (status == RING_EMPTY && vain++ < RING_PATIENCE)
            continue; /* others were faster; what came since is ours to look at (SYNC chain) */
        if (status != RING_OK)
            return corrupt(s->ring, "a claimed record cannot be");
        h->ring = (Ring *)Py_NewRef((PyObject *)s->ring);
        self->held_count++;
        got++;
        vain = 0;
    }
    return (int)got;
}

bool claims_ready(const Claimer *self) {
    if (self->keys)
        return lanes_ready(self);
    for (Py_ssize_t i = 0; i < self->count; i++) {
        const ring_view *view = &self->sources[i].ring->view;
        if (work_ready(view) || (work_delayed(view) && work_is_due(work_due(view), host_ns())))
            return true;
    }
    return self->more; /* in a ring that we do not have yet */
}

/* When a delayed event is due, UINT64_MAX: none is. */
uint64_t claims_due(const Claimer *self) {
    uint64_t first = UINT64_MAX;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        uint64_t due = work_due(&self->sources[i].ring->view); /* SYNC due */
        if (due && due < first)
            first = due;
    }
    return first == UINT64_MAX ? first : host_to_own_ns(first);
}

/* A publisher wakes a worker for the first event of a backlog only. Every claim wakes one for the next (SYNC chain), and so
 * does whoever was woken and will not look, maybe for a ring that it does not know yet. */
int claims_pass_on(Claimer *self) {
    uint64_t parked = 0;
    for (int i = 0; i < MAX_WORKERS / 64; i++)
        parked |= LOAD_SEQ(&self->line->parked[i]); /* SYNC park */
    if (!parked || !(claims_ready(self) || receiver_stale(&self->base)))
        return 0;
    return wakers_wake((PyObject *)self, &self->siblings, self->line->parked, self->line->awaiting, MAX_WORKERS / 64,
                       1);
}

/* A delayed event is due before those that the others know of: each of them looks, and sleeps again, no longer than until
 * then (SYNC due). */
int claims_wake_all(Claimer *self) {
    return wakers_wake((PyObject *)self, &self->siblings, self->line->parked, self->line->awaiting, MAX_WORKERS / 64,
                       MAX_WORKERS);
}

/* Claims from the rings whose publishers are gone, the oldest first: as claim_some, 2 to start again with more of them.
 * One in which all is done is let go of; in one that is dry somebody may still give something back. */
static int claim_retired(Claimer *self) {
    for (Py_ssize_t i = 0; i < self->retired;) {
        int got = claim_from(self, &self->sources[i]);
        if (got)
            return got < 0 || claims_pass_on(self) < 0 ? -1 : 1;
        const ring_header *h = self->sources[i].ring->view.header;
        if (LOAD_SEQ(&h->gate) == LOAD_SEQ(&h->tail)) /* SYNC gate */
            claims_drop_source(self, i);
        else
            i++;
    }
    if (!self->more)
        return 0;
    self->more = 0;
    self->base.lines.epoch = UINT64_MAX; /* the next ones, please */
    return 2;
}

/* The source whose first READY record is the oldest, and when that was published; NULL when nothing is READY. */
static source *oldest(const Claimer *self, uint64_t *time_ns) {
    source *found = NULL;
    uint64_t at;
    *time_ns = UINT64_MAX;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        const ring_view *view = &self->sources[i].ring->view;
        if (work_delayed(view))
            work_promote(view, host_ns()); /* one that cannot be is told by the claim */
        if (work_ready(view) && work_peek(view, &at) == RING_OK && at < *time_ns) {
            found = &self->sources[i];
            *time_ns = at;
        }
    }
    return found;
}

#define LOOKS 8 /* siblings may take the oldest from under us for ever */

/* Claims the oldest of all rings: as claim_some. What was out before another one was begun is there for the look after the
 * one that found that: so two looks must agree. */
static int claim_oldest(Claimer *self) {
    uint64_t at, before = 0;
    source *s = self->sources;
    for (int look = 0; self->count == 1 ? look == 0 : (s = oldest(self, &at)) != NULL; look++) {
        if (self->count > 1 && at != before && look % LOOKS != LOOKS - 1) {
            before = at;
            continue;
        }
        int got = claim_from(self, s);
        if (got)
            return got < 0 || claims_pass_on(self) < 0 ? -1 : 1;
        before = 0;
    }
    return 0;
}

/* Makes sure that something is prefetched: 1, 0 when there is nothing, -1. Each call begins with the next source. */
static int claim_some(Claimer *self) {
    if (self->held_count > self->handed)
        return self->keys && lanes_tell(self) < 0 ? -1 : 1;
    self->held_count = self->handed = 0;
restart:
    if (receiver_refresh(&self->base) < 0)
        return -1;
    if (self->keys) {
        int status = lanes_claim_some(self, self->prefetch);
        if (status == 2)
            goto restart;
        return status;
    }
    if (self->oldest_first && self->count) {
        int status = claim_oldest(self);
        if (status)
            return status;
    }
    if (self->retired | self->more) {
        int status = claim_retired(self);
        if (status == 2)
            goto restart;
        if (status)
            return status;
    }
    Py_ssize_t first = self->retired, active = self->count - first;
    for (Py_ssize_t looked = 0; looked < active; looked++) {
        self->current = self->current + 1 < active ? self->current + 1 : 0;
        source *s = &self->sources[first + self->current];
        int got = self->oldest_first ? 0 : claim_from(self, s);
        if (got)
            return got < 0 || claims_pass_on(self) < 0 ? -1 : 1;
        if (s->ring->acked && claims_settle(self, s->ring, true) < 0)
            return -1;
    }
    return 0;
}

/* Takes the claim at `held[handed]` off the list: it is somebody else's to settle. */
void claims_take_off(Claimer *self) { Py_DECREF((PyObject *)self->held[self->handed++].ring); }

/* Calls a hook with what there is to know about the claim at `held[handed]`, and takes the claim off the list: the hook
 * settles it. */
static int pass_on(Claimer *self, const char *hook, PyObject *error) {
    const held *h = &self->held[self->handed];
    const record *r = &h->claim.record;
    source *s = claims_source(self, h->ring->id);
    PyObject *told =
        Py_BuildValue(error ? "(KKKIKOOO)" : "(KKKIKOO)", (unsigned long long)h->ring->id,
                      (unsigned long long)r->sequence, (unsigned long long)h->claim.word, h->claim.attempt,
                      (unsigned long long)r->time_ns, s ? s->publisher : Py_None, s ? s->origin : Py_None, error);
    if (!told)
        return -1;
    claims_take_off(self);
    PyObject *method = PyObject_GetAttrString((PyObject *)self, hook);
    PyObject *result = method ? PyObject_CallObject(method, told) : NULL;
    Py_XDECREF(method);
    Py_DECREF(told);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Copies the record at `held[handed]`, whose memory may be another record's once the claim is: 1, 0 if it is lost, -1. */
static int copy_next(Claimer *self) {
    held *h = &self->held[self->handed];
    if (work_read(&h->ring->view, &h->claim) != RING_OK)
        return 0;
    uint64_t needed = (h->claim.record.length + 7) & ~(uint64_t)7;
    if (needed > self->copy_size) {
        unsigned char *grown = PyMem_Realloc(self->copy, needed);
        if (!grown) {
            PyErr_NoMemory();
            return -1;
        }
        self->copy = grown;
        self->copy_size = needed;
    }
    if (work_copy(&h->ring->view, &h->claim, self->copy) != RING_OK)
        return 0;
    h->claim.record.body = self->copy;
    return 1;
}

/* The next claim that is to be handed out, at `held[handed]`: 1, 0 when there is nothing, -1. */
int claims_next(Claimer *self) {
    for (;;) {
        int status = claim_some(self);
        if (status <= 0)
            return status;
        if (self->held[self->handed].claim.attempt <= self->max_deliver) {
            int copied = self->expires ? copy_next(self) : 1;
            if (copied)
                return copied;
            claims_take_off(self); /* it was claimed ahead, and others have it now */
            continue;
        }
        if (pass_on(self, "_exhausted", NULL) < 0)
            return -1;
    }
}

/* The payload of a claim with buffers, as bytes that need no pool. Asking for the pool runs Python code. */
PyObject *claims_flatten(Claimer *self, source *s, const record *r) {
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    Ring *ring = (Ring *)Py_NewRef((PyObject *)s->ring);
    PyObject *pool = Py_XNewRef(s->pool);
    PyObject *flat = receiver_flatten(&self->base, &pool, ring, r->body + padded, r->length - padded);
    Py_XDECREF(pool);
    Py_DECREF((PyObject *)ring);
    return flat;
}

/* The event of the claim at `held[handed]`, which has buffers. */
RARE static PyObject *decode_whole(Claimer *self, Ring *ring, const record *r, unsigned char **copy) {
    source *s = claims_source(self, ring->id);
    PyObject *none = NULL, *pool = s ? Py_XNewRef(s->pool) : NULL;
    uint64_t body;
    int status = receiver_open(&self->base, s ? &pool : &none, ring, r, false, &body);
    if ((s = claims_source(self, ring->id)))
        Py_XSETREF(s->pool, pool);
    else
        Py_XDECREF(pool);
    Py_XDECREF(none);
    if (status == 0) /* nobody frees what a group is owed */
        corrupt(ring, "the buffers of a claimed event are gone");
    return status > 0 ? receiver_decode(&self->base, ring, r, body, copy) : NULL;
}

/* Decodes the claim at `held[handed]`. */
PyObject *claims_decode(Claimer *self) {
    const record *r = &self->held[self->handed].claim.record;
    if (self->base.seen) {
        source *s = claims_source(self, self->held[self->handed].ring->id);
        receiver_tell(&self->base, r, s ? s->publisher : NULL);
        r = &self->held[self->handed].claim.record; /* the table may have moved */
    }
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    Ring *ring = self->held[self->handed].ring;
    unsigned char **copy = self->expires ? &self->copy : NULL;
    PyObject *event = self->base.record ? record_decode_payload(self->base.record, r->body + padded, r->length - padded)
                      : r->flags & RECORD_POOLED
                          ? decode_whole(self, ring, r, copy)
                          : window_decode(&self->base.window, self->base.decode, r->body + padded, r->length - padded,
                                          (PyObject *)ring, copy);
    if (!self->copy)
        self->copy_size = 0;
    if (event || !PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return event;
    return claims_undecodable(self);
}

/* The claim at `held[handed]` does not decode, as the raised error says: the hook settles it, and raises. */
PyObject *claims_undecodable(Claimer *self) {
    PyObject *error = error_take();
    if (pass_on(self, "_undecodable", error) == 0)
        PyErr_SetString(PyExc_SystemError, "_undecodable returned");
    Py_XDECREF(error);
    return NULL;
}
