/* Rows of a worker: claims that lie one behind the other are handed out as one array, and acked together. */
#include "claimer.h"

/* The claim at `held[handed]` if it goes on where a run ends, and may be handed out. */
static const claim *next_of(const Claimer *self, const Ring *ring, const claim *first, const row_run *run) {
    const held *h = &self->held[self->handed];
    const record *r = &h->claim.record;
    uint64_t start = r->end - record_span(r->length);
    return h->ring == ring && h->claim.attempt <= self->max_deliver && run_takes(run, &first->record, r, start)
               ? &h->claim
               : NULL;
}

/* Claims one more from a ring: 1, 0 if nothing is ready, -1. */
static int claim_one_more(Claimer *self, Ring *ring) {
    if (self->keys) /* of whichever ring; one that does not go on where the run ends waits for its turn */
        return lanes_claim_some(self, 1) == 1;
    for (unsigned vain = 0; work_ready(&ring->view);) {
        if (claims_held_room(self) < 0)
            return -1;
        held *h = &self->held[self->held_count];
        int status = work_claim(&ring->view, self->owner, self->generation, &h->claim);
        if (status == RING_EMPTY && vain++ < RING_PATIENCE)
            continue; /* others were faster: SYNC chain */
        if (status != RING_OK)
            return corrupt(ring, "a claimed record cannot be");
        h->ring = (Ring *)Py_NewRef((PyObject *)ring);
        self->held_count++;
        return 1;
    }
    return 0;
}

/* Hands out the claim at `held[handed]`, for which there is room. */
static void hand_out(Claimer *self) {
    claims_sample(self);
    claims_hand_out(self);
}

/* A claim whose payload is no row is told of: -1. */
static int check_row(Claimer *self) {
    const record *r = &self->held[self->handed].claim.record;
    uint64_t padded = (r->headers + 7u) & ~(uint64_t)7;
    if (record_fits(self->base.record, r->length - padded) == 0)
        return 0;
    claims_undecodable(self);
    return -1;
}

/* The next claim to be handed out, which is a row, and room for it: 1, 0 when there is nothing, -1. */
static int next_row(Claimer *self) {
    int status = claims_next(self);
    return status <= 0 ? status : check_row(self) < 0 || claims_hand_room(self) < 0 ? -1 : 1;
}

/* Claims that go on where the run ends, up to `most` in all. One that does not stays claimed ahead, for the next array. */
static int extend(Claimer *self, Ring *ring, const claim *first, uint64_t most, row_run *run) {
    uint64_t before = run->count;
    int status = 1;
    while (status > 0 && run->count < most) {
        if (self->handed == self->held_count) {
            self->handed = self->held_count = 0;
            status = claim_one_more(self, ring);
            if (status <= 0)
                break;
        }
        const claim *next = next_of(self, ring, first, run);
        if (!next || (status = claims_hand_room(self) < 0 ? -1 : 1) < 0)
            break;
        run->end += run->stride;
        run->count++;
        hand_out(self);
    }
    if (run->count > before && claims_pass_on(self) < 0) /* SYNC chain */
        status = -1;
    return status < 0 ? -1 : 0;
}

/* Rows in place: they stay until they are acked, by whoever asks for the next. */
PyObject *claims_take_rows(Receiver *base) {
    Claimer *self = (Claimer *)base;
    if (self->expires)
        return claims_take_copies(base);
    int status = next_row(self);
    if (status <= 0)
        return status < 0 ? NULL : Py_NewRef(Nothing);
    claim first = self->held[self->handed].claim;
    Ring *ring = (Ring *)Py_NewRef((PyObject *)self->held[self->handed].ring);
    row_run run = run_of(&first.record, first.record.end - record_span(first.record.length));
    hand_out(self);
    if (extend(self, ring, &first, (uint64_t)base->call->most, &run) < 0)
        error_hold(&base->held_error); /* what was claimed is handed out first */
    base->event_ns = run_time(&run, run.count - 1);
    Rows *rows = rows_in_place(ring, &run, base->record->size);
    Py_DECREF((PyObject *)ring);
    return (PyObject *)rows;
}

/* Rows of their own: for who may lose its claims meanwhile, and for receive_array. */
PyObject *claims_take_copies(Receiver *base) {
    Claimer *self = (Claimer *)base;
    uint32_t size = base->record->size;
    Rows *rows = rows_new(size, base->call->most);
    int status = rows ? 1 : -1;
    while (status > 0 && !base->held_error && rows_count(rows) < (uint64_t)base->call->most) {
        status = next_row(self);
        if (status <= 0)
            break;
        const record *r = &self->held[self->handed].claim.record;
        unsigned char *to = rows_grow(rows, 1);
        if (!to) {
            status = -1;
            break;
        }
        memcpy(to, r->body + ((r->headers + 7u) & ~7u), size);
        base->event_ns = r->time_ns;
        hand_out(self);
    }
    if (rows && rows_count(rows)) {
        if (status < 0)
            error_hold(&base->held_error);
        return (PyObject *)rows;
    }
    Py_XDECREF((PyObject *)rows);
    return status < 0 ? NULL : Py_NewRef(Nothing);
}
