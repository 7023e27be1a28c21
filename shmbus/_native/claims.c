/* Claims of one worker: taken, decoded, acked, given back. See claimer.c for the hooks, work.h for what must hold. */
#include "claimer.h"

/* ---- sources ---- */

void claims_drop_source(Claimer *self, Py_ssize_t index) {
    source gone = self->sources[index];
    self->sources[index] = self->sources[--self->count];
    self->current = 0;
    Py_DECREF((PyObject *)gone.ring);
    Py_DECREF(gone.publisher);
    Py_XDECREF(gone.post);
}

source *claims_source(Claimer *self, uint64_t ring_id) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->sources[i].ring->id == ring_id)
            return &self->sources[i];
    return NULL;
}

/* Gives back everything that is still held; what was reclaimed meanwhile is no longer ours to give. */
static void give_back_all(Claimer *self) {
    if (self->base.guard.fork_generation == fork_generation)
        for (Py_ssize_t i = 0; i < self->held_count; i++) {
            source *s = claims_source(self, self->held[i].ring_id);
            if (s)
                work_give_back(&s->ring->view, &self->held[i].claim);
        }
    self->held_count = self->handed = 0;
}

void claims_drop_all(Claimer *self) {
    give_back_all(self);
    while (self->count)
        claims_drop_source(self, self->count - 1);
    PyMem_Free(self->sources);
    PyMem_Free(self->held);
    wakers_clear(&self->siblings);
    self->sources = NULL;
    self->held = NULL;
    self->held_size = 0;
}

/* ---- claims ---- */

/* Looks after a waiting publisher: always when nothing is left, and once a quarter of the records is acked. */
int claims_settle(Claimer *self, source *s, bool dry) {
    const ring_header *h = s->ring->view.header;
    if (!dry && s->acked * 4 < LOAD_RELAXED(&h->tail) - LOAD_RELAXED(&h->gate))
        return 0;
    s->acked = 0;
    return ring_release_publisher(&s->ring->view) ? receiver_wake_publisher(&self->base, s->ring, &s->post)
                                                  : 0; /* SYNC room */
}

static int lost(uint64_t sequence) {
    PyErr_Format(ReclaimedError, "event %llu was given to another worker: this one was taken for dead",
                 (unsigned long long)sequence);
    return -1;
}

/* Acks what was handed out. All of it, even if one was lost. */
int claims_ack(Claimer *self) {
    int status = 0;
    Py_ssize_t handed = self->handed;
    self->handed = 0;
    for (Py_ssize_t i = 0; i < handed; i++) {
        source *s = claims_source(self, self->held[i].ring_id);
        if (!s || work_done(&s->ring->view, &self->held[i].claim) != RING_OK)
            status = lost(self->held[i].claim.record.sequence);
        else
            s->acked++;
    }
    self->held_count -= handed;
    memmove(self->held, self->held + handed, sizeof(held) * (size_t)self->held_count);
    for (Py_ssize_t i = 0; handed && i < self->count && status == 0; i++)
        if (self->sources[i].acked)
            status = claims_settle(self, &self->sources[i], false);
    return status;
}

static int held_room(Claimer *self) {
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
    while (got < self->prefetch && work_ready(&s->ring->view)) {
        if (held_room(self) < 0)
            return -1;
        held *h = &self->held[self->held_count];
        int status = work_claim(&s->ring->view, self->owner, self->generation, &h->claim);
        if (status == RING_EMPTY && vain++ < RING_PATIENCE)
            continue; /* others were faster; what came since is ours to look at (SYNC chain) */
        if (status != RING_OK)
            return corrupt(s->ring, "a claimed record cannot be");
        h->ring_id = s->ring->id;
        self->held_count++;
        got++;
        vain = 0;
    }
    return (int)got;
}

bool claims_ready(const Claimer *self) {
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (work_ready(&self->sources[i].ring->view))
            return true;
    return false;
}

/* A publisher wakes a worker for the first event of a backlog only. Every claim wakes one for the next (SYNC chain), and so
 * does whoever was woken and will not look, maybe for a ring that it does not know yet. While the handle is busy a
 * close() is put off, so that even then the wake-up is not lost with it. */
int claims_pass_on(Claimer *self) {
    uint64_t parked = 0;
    if (!self->base.lines.topic)
        return 0; /* closed by a signal handler in the middle of a wait */
    for (int i = 0; i < MAX_WORKERS / 64; i++)
        parked |= LOAD_SEQ(&self->line->parked[i]); /* SYNC park */
    if (!parked || !(claims_ready(self) || receiver_stale(&self->base)))
        return 0;
    const guard *g = &self->base.guard;
    return wakers_wake((PyObject *)self, g->busy ? NULL : g, &self->siblings, self->line->parked, self->line->awaiting,
                       MAX_WORKERS / 64, 1);
}

/* Makes sure that something is prefetched: 1, 0 when there is nothing, -1. Each call begins with the next source. */
static int claim_some(Claimer *self) {
    if (self->held_count > self->handed)
        return 1;
    if (receiver_refresh(&self->base) < 0)
        return -1;
    for (Py_ssize_t looked = 0; looked < self->count; looked++) {
        self->current = (self->current + 1) % self->count;
        source *s = &self->sources[self->current];
        int got = claim_from(self, s);
        if (got)
            return got < 0 || claims_pass_on(self) < 0 ? -1 : 1;
        if (s->acked && claims_settle(self, s, true) < 0)
            return -1;
    }
    return 0;
}

/* Takes the claim at `held[handed]` off the list: it is somebody else's to settle. */
void claims_take_off(Claimer *self) {
    self->held_count--;
    memmove(self->held + self->handed, self->held + self->handed + 1,
            sizeof(held) * (size_t)(self->held_count - self->handed));
}

/* Calls a hook with what there is to know about the claim at `held[handed]`, and takes the claim off the list: the hook
 * settles it. */
static int pass_on(Claimer *self, const char *hook, PyObject *error) {
    held h = self->held[self->handed];
    source *s = claims_source(self, h.ring_id);
    claims_take_off(self);
    if (!s)
        return 0;
    PyObject *result =
        PyObject_CallMethod((PyObject *)self, hook, error ? "KKKIKOO" : "KKKIKO", (unsigned long long)h.ring_id,
                            (unsigned long long)h.claim.record.sequence, (unsigned long long)h.claim.word,
                            h.claim.attempt, (unsigned long long)h.claim.record.time_ns, s->publisher, error);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* The next claim that is to be handed out, at `held[handed]`: 1, 0 when there is nothing, -1. */
int claims_next(Claimer *self) {
    for (;;) {
        int status = claim_some(self);
        if (status <= 0 || self->held[self->handed].claim.attempt <= self->max_deliver)
            return status;
        if (pass_on(self, "_exhausted", NULL) < 0)
            return -1;
    }
}

/* Decodes the claim at `held[handed]`. */
PyObject *claims_decode(Claimer *self) {
    const record *r = &self->held[self->handed].claim.record;
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    PyObject *event = window_decode(&self->base.window, self->base.decode, r->body + padded, r->length - padded,
                                    (PyObject *)claims_source(self, self->held[self->handed].ring_id)->ring, NULL);
    if (event || !PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return event;
    PyObject *error = error_take();
    if (pass_on(self, "_undecodable", error) == 0)
        PyErr_SetString(PyExc_SystemError, "_undecodable returned");
    Py_XDECREF(error);
    return NULL;
}
