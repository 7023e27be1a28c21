/* Work rings for the scenes: offering, claiming, reclaiming, and what must hold in the end. */
#include "world.h"

#define GENERATION 5u
#define FRESH_OWNER 200u

static unsigned char outgoing[1024];

static job *job_of(uint64_t sequence) {
    if (sequence < FIRST_SEQUENCE || sequence - FIRST_SEQUENCE >= MAX_JOBS)
        fail("K2: event %llu was never offered", (unsigned long long)sequence);
    return &the.work.jobs[sequence - FIRST_SEQUENCE];
}

static bool given_up(unsigned actor) { return is_dead(actor) || (the.work.reclaimed & (1ull << actor)); }

void make_work(uint64_t start, uint32_t length) {
    workshop *w = &the.work;
    uint64_t size = work_size(CAPACITY);
    if (work_format(arena, size, CAPACITY, 1, FIRST_SEQUENCE, start) != RING_OK ||
        ring_open(&w->view, arena, size, RING_WORK) != RING_OK || work_writer_open(&w->writer, &w->view) != RING_OK)
        fail("no ring");
    name_region(arena, size, RING_WORK, "work");
    w->length = length;
    w->committed = FIRST_SEQUENCE;
    for (unsigned i = 0; i < MAX_JOBS; i++)
        w->jobs[i].holder = NO_HOLDER;
    make_lines();
}

/* ---- the publisher, actor 0 ---- */

static int wait_for_room(workshop *w) {
    ring_header *h = w->view.header;
    STORE_SEQ(&h->need, record_span(w->length));
    STORE_SEQ(&h->waiting, 1); /* SYNC room */
    int status = work_reserve(&w->writer, w->length);
    if (status == RING_FULL)
        return sleep_on(&the.semaphores[0]) ? RING_EMPTY : RING_FULL;
    return status;
}

bool offer(enum when_full how) {
    workshop *w = &the.work;
    bool waited = false;
    for (;;) {
        unsigned long before = moment();
        int status = work_reserve(&w->writer, w->length);
        if (status == RING_FULL && how == FULL_WAIT) {
            status = wait_for_room(w);
            waited = true;
        }
        if (status == RING_OK)
            break;
        if (status == RING_CORRUPT)
            fail("the publisher finds a healthy ring corrupt");
        if (status == RING_FULL && (how != FULL_SPIN || !spin(before)))
            return false;
    }
    if (waited)
        stop_waiting(w->view.header);
    fill(outgoing, w->length, w->writer.sequence);
    part p = {.payload = outgoing, .payload_length = w->length, .time_ns = w->writer.sequence};
    work_write(&w->writer, &p);
    work_commit(&w->writer);
    w->committed = w->writer.sequence;
    return true;
}

/* ---- workers ---- */

/* K1, K3, and the attempt: it only grows, by one for each claim (and for one that a death cut short). */
static void note_claim(unsigned self, const claim *c) {
    job *j = job_of(c->record.sequence);
    if (j->holder != NO_HOLDER && !given_up(j->holder))
        fail("K1: event %llu is held by actors %u and %u", (unsigned long long)c->record.sequence, j->holder, self);
    if (j->done)
        fail("K3: event %llu was done already", (unsigned long long)c->record.sequence);
    bool losses = anybody_dead() || the.work.reclaimed;
    if (j->claims > j->nacks && !losses)
        fail("K3: event %llu is delivered twice", (unsigned long long)c->record.sequence);
    if (c->attempt <= j->attempt || c->attempt > j->attempt + 1u + losses)
        fail("attempt %u follows attempt %u", c->attempt, j->attempt);
    j->attempt = (unsigned char)c->attempt;
    j->holder = (unsigned char)self;
    j->claims++;
}

bool take_job(unsigned self, claim *out) {
    int status = work_claim(&the.work.view, self, GENERATION, out);
    if (status == RING_CORRUPT)
        fail("worker %u finds a healthy ring corrupt", self);
    if (status != RING_OK)
        return false;
    note_claim(self, out);
    if (out->record.length != the.work.length ||
        !body_is_whole(out->record.body, out->record.length, out->record.sequence, true))
        fail("B1: claimed event %llu is not whole", (unsigned long long)out->record.sequence);
    return true;
}

bool finish_job(unsigned self, const claim *c) {
    job *j = job_of(c->record.sequence);
    j->finishing = true;
    bool done = work_done(&the.work.view, c) == RING_OK;
    if (!done && !given_up(self))
        fail("K1: the claim of actor %u on event %llu went away", self, (unsigned long long)c->record.sequence);
    if (!done)
        return false;
    if (j->done++)
        fail("K3: event %llu is done twice", (unsigned long long)c->record.sequence);
    if (j->holder != self && !given_up(self))
        fail("K1: actor %u acked what it does not hold", self);
    if (j->holder != self && j->holder != NO_HOLDER)
        fail("K1: actor %u acked the claim of actor %u", self, j->holder);
    j->holder = NO_HOLDER;
    return true;
}

bool return_job(unsigned self, const claim *c) {
    job *j = job_of(c->record.sequence);
    if (j->holder == self)
        j->holder = NO_HOLDER;
    j->nacks++;
    bool returned = work_give_back(&the.work.view, c) == RING_OK;
    if (!returned && !given_up(self))
        fail("K1: the claim of actor %u on event %llu went away", self, (unsigned long long)c->record.sequence);
    return returned;
}

void reclaim(unsigned victim) {
    uint64_t count;
    the.work.reclaimed |= 1ull << victim;
    for (unsigned i = 0; i < MAX_JOBS; i++)
        if (the.work.jobs[i].holder == victim)
            the.work.jobs[i].holder = NO_HOLDER;
    if (work_reclaim(&the.work.view, victim, GENERATION, &count) != RING_OK)
        fail("the reclaimer finds a healthy ring corrupt");
    if (work_held(&the.work.view, victim, GENERATION) && is_dead(victim))
        fail("K2: a dead worker still holds something after its reclaim");
}

/* ---- what must hold in the end ---- */

static unsigned state_of(uint64_t sequence) {
    const descriptor *d = (const descriptor *)((unsigned char *)the.work.view.header + PAGE);
    return (unsigned)(LOAD_SEQ(&d[sequence & (the.work.view.slots - 1)].claim) >> 36) & 7;
}

/* Offered events, as far as the actors know, that nobody has done. */
uint64_t open_jobs(void) {
    uint64_t open = 0;
    for (uint64_t sequence = FIRST_SEQUENCE; sequence < the.target; sequence++)
        open += !the.work.jobs[sequence - FIRST_SEQUENCE].done;
    return open;
}

static void verify_terms(uint64_t depth_at_most) {
    work_terms t;
    uint64_t done = 0, tail = LOAD_SEQ(&the.work.view.header->tail);
    for (unsigned i = 0; i < MAX_JOBS; i++)
        done += the.work.jobs[i].done;
    if (work_terms_of(&the.work.view, &t) != RING_OK)
        fail("books: those of the group cannot be read");
    if (t.offered != t.done + t.depth + t.refused || t.offered - t.refused != tail - FIRST_SEQUENCE)
        fail("books: %llu offered, %llu done, %llu open", (unsigned long long)t.offered, (unsigned long long)t.done,
             (unsigned long long)t.depth);
    if (t.done < done || t.done - done > (anybody_dead() ? 1 : 0) || t.depth > depth_at_most)
        fail("books: %llu done, the workers did %llu", (unsigned long long)t.done, (unsigned long long)done);
}

/* The gate stands on the first event that is not done: whoever made one DONE saw to it. */
static void verify_gate(void) {
    uint64_t gate = LOAD_SEQ(&the.work.view.header->gate), tail = LOAD_SEQ(&the.work.view.header->tail);
    if (gate > tail)
        fail("K2: the gate passed the tail");
    for (uint64_t sequence = FIRST_SEQUENCE; sequence < gate; sequence++)
        if (!the.work.jobs[sequence - FIRST_SEQUENCE].done && !the.work.jobs[sequence - FIRST_SEQUENCE].finishing)
            fail("K2: the gate passed event %llu, which is not done", (unsigned long long)sequence);
    if (gate < tail && state_of(gate) == CLAIM_DONE)
        fail("the gate stays before event %llu, which is done", (unsigned long long)gate);
}

/* What a worker that comes last finds: everything that is not done. */
static void finish_all(void) {
    claim c;
    uint64_t tail = LOAD_SEQ(&the.work.view.header->tail), gate = LOAD_SEQ(&the.work.view.header->gate);
    for (uint64_t sequence = gate; sequence < tail; sequence++)
        if (state_of(sequence) == CLAIM_CLAIMED && given_up(the.work.jobs[sequence - FIRST_SEQUENCE].holder))
            fail("K2: event %llu stays with the dead", (unsigned long long)sequence);
    while (take_job(FRESH_OWNER, &c))
        finish_job(FRESH_OWNER, &c);
    if (LOAD_SEQ(&the.work.view.header->gate) != tail)
        fail("K2: event %llu cannot be claimed by anybody (state %u)",
             (unsigned long long)LOAD_SEQ(&the.work.view.header->gate),
             state_of(LOAD_SEQ(&the.work.view.header->gate)));
    verify_terms(0);
}

/* The supervisor sees to the dead first, again if a reclaim was cut short. */
void verify_work(void) {
    uint64_t tail = LOAD_SEQ(&the.work.view.header->tail);
    if (tail < the.work.committed || tail > the.work.writer.sequence || (!is_dead(0) && tail != the.work.committed))
        fail("the ring ends before event %llu", (unsigned long long)tail);
    verify_terms(tail - FIRST_SEQUENCE);
    for (unsigned a = 0; a < MAX_ACTORS; a++)
        if (given_up(a))
            reclaim(a);
    verify_gate();
    verify_terms(tail - FIRST_SEQUENCE);
    finish_all();
}
