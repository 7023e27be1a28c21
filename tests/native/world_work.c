/* Work rings for the scenes: offering, claiming, reclaiming, and what must hold in the end. */
#include "world.h"

#define GENERATION 5u
#define FRESH_OWNER 200u

static unsigned char outgoing[MAX_SHOPS][4096];

static job *job_of(workshop *w, uint64_t sequence) {
    if (sequence < FIRST_SEQUENCE || sequence - FIRST_SEQUENCE >= MAX_JOBS)
        fail("K2: event %llu was never offered", (unsigned long long)sequence);
    return &w->jobs[sequence - FIRST_SEQUENCE];
}

static bool given_up(unsigned actor) { return is_dead(actor) || (the.reclaimed & (1ull << actor)); }

/* One more ring; the publisher of the n-th is actor n. */
void make_work(uint64_t start, uint32_t length) {
    static const char *const labels[] = {"work", "work2"};
    unsigned index = the.shops++;
    workshop *w = &the.work[index];
    unsigned char *base = arena + index * 0x8000;
    uint64_t size = work_size(CAPACITY);
    if (work_format(base, size, CAPACITY, index + 1, FIRST_SEQUENCE, start) != RING_OK ||
        ring_open(&w->view, base, size, RING_WORK) != RING_OK || work_writer_open(&w->writer, &w->view) != RING_OK)
        fail("no ring");
    name_region(base, size, RING_WORK, labels[index]);
    w->publisher = index;
    w->length = length;
    w->committed = FIRST_SEQUENCE;
    for (unsigned i = 0; i < MAX_JOBS; i++)
        w->jobs[i].holder = NO_HOLDER;
    if (!the.topic)
        make_lines();
}

/* ---- publishers ---- */

static int wait_for_room(workshop *w) {
    ring_header *h = w->view.header;
    STORE_SEQ(&h->need, record_span(w->length));
    STORE_SEQ(&h->waiting, 1); /* SYNC room */
    int status = work_reserve(&w->writer, w->length);
    if (status == RING_FULL)
        return sleep_on(&the.semaphores[w->publisher]) ? RING_EMPTY : RING_FULL;
    return status;
}

static void write_one(workshop *w) {
    fill(outgoing[w->publisher], w->length, w->writer.sequence);
    part p = {.payload = outgoing[w->publisher], .payload_length = w->length, .time_ns = w->writer.sequence};
    p.lane = the.lanes ? the.lane[(w->writer.sequence - FIRST_SEQUENCE) % sizeof(the.lane)] : 0;
    work_write(&w->writer, &p);
}

static void commit(workshop *w) {
    work_commit(&w->writer);
    w->committed = w->writer.sequence;
}

bool offer(workshop *w, enum when_full how) {
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
    write_one(w);
    commit(w);
    return true;
}

/* One commit for all; there is room. */
void offer_batch(workshop *w, unsigned count) {
    for (; count; count--) {
        if (work_reserve(&w->writer, w->length) != RING_OK)
            fail("no room for a batch");
        write_one(w);
    }
    commit(w);
}

/* The same for rows, as many at once as there is room for. */
void offer_rows(workshop *w, unsigned count) {
    unsigned char *rows = outgoing[w->publisher];
    while (count) {
        unsigned long before = moment();
        int status = work_reserve(&w->writer, w->length);
        if (status == RING_CORRUPT)
            fail("the publisher finds a healthy ring corrupt");
        if (status == RING_FULL && !spin(before))
            break;
        if (status != RING_OK)
            continue;
        uint64_t some = work_rows(&w->writer, w->length);
        some = some < count ? some : count;
        for (uint64_t i = 0; i < some; i++)
            fill(rows + i * w->length, w->length, w->writer.sequence + i);
        part p = {.payload = rows, .payload_length = w->length, .time_ns = w->writer.sequence};
        work_write_rows(&w->writer, &p, some);
        count -= (unsigned)some;
    }
    commit(w);
}

/* ---- workers ---- */

/* K1, K3, and the attempt: it only grows, by one for each claim (and for one that a death cut short). */
static void note_claim(workshop *w, unsigned self, const claim *c) {
    job *j = job_of(w, c->record.sequence);
    if (j->holder != NO_HOLDER && !given_up(j->holder))
        fail("K1: event %llu is held by actors %u and %u", (unsigned long long)c->record.sequence, j->holder, self);
    if (j->done)
        fail("K3: event %llu was done already", (unsigned long long)c->record.sequence);
    bool losses = anybody_dead() || the.reclaimed;
    if (j->claims > j->nacks && !losses)
        fail("K3: event %llu is delivered twice", (unsigned long long)c->record.sequence);
    unsigned attempt = (unsigned)(c->word >> 24) & MAX_ATTEMPT, told = attempt - j->unseen;
    if (attempt <= j->attempt || attempt > j->attempt + 1u + losses)
        fail("attempt %u follows attempt %u", attempt, j->attempt);
    if (c->attempt < told || c->attempt > told + j->returning)
        fail("attempt %u of event %llu is told as %u, %u were unseen", attempt, (unsigned long long)c->record.sequence,
             c->attempt, j->unseen);
    if (LOAD_SEQ(the.clock) < j->due)
        fail("T: event %llu was delayed, and is delivered too soon", (unsigned long long)c->record.sequence);
    j->due = 0;
    j->attempt = (unsigned char)attempt;
    j->holder = (unsigned char)self;
    j->claims++;
}

/* ---- lanes ---- */

void make_lanes(void) {
    unsigned char *base = arena + MAX_SHOPS * 0x8000;
    if (lane_format(base, lane_size(), 7) != RING_OK || lane_open(&the.lanes, base, lane_size()) != RING_OK)
        fail("no lanes");
    name_region(base, lane_size(), 0, "lanes");
}

/* As it stands, with no access that others could come between. */
static uint64_t now_at(const word *w) { return *(const volatile uint64_t *)w; }

static const descriptor *descriptor_at(const workshop *w, uint64_t sequence) {
    return (const descriptor *)((unsigned char *)w->view.header + PAGE) + (sequence & (w->view.slots - 1));
}

/* L1, and the order: when a record is claimed all that came before in its lane is DONE, and nobody has another one. A ring
 * that comes before another one is of the same publisher. */
static void check_lane(const workshop *of, const claim *c) {
    unsigned lane = LANE_OF(now_at(&descriptor_at(of, c->record.sequence)->place));
    for (const workshop *w = the.work; w < the.work + the.shops; w++)
        for (uint64_t sequence = FIRST_SEQUENCE; sequence < w->writer.sequence; sequence++) {
            uint64_t seen = now_at(&descriptor_at(w, sequence)->claim);
            unsigned state = (unsigned)(seen >> 36) & 7;
            if (LANE_OF(now_at(&descriptor_at(w, sequence)->place)) != lane ||
                (w == of && sequence == c->record.sequence))
                continue;
            if ((w < of || (w == of && sequence < c->record.sequence)) && state != CLAIM_DONE)
                fail("L3: event %llu of ring %u is claimed before event %llu of its lane",
                     (unsigned long long)c->record.sequence, (unsigned)(of - the.work), (unsigned long long)sequence);
            if (state == CLAIM_CLAIMED && !given_up((unsigned)(seen >> 16) & 0xff))
                fail("L1: two of one lane are claimed at once");
        }
}

/* One look at a ring, with what was met before: as lane_claim. */
int look_at(lane_look *look, workshop *w, unsigned self, claim *out) {
    lane_memory *memory = &the.memory[self < MAX_ACTORS ? self : MAX_ACTORS][w - the.work];
    int status = lane_claim(look, &w->view, memory, self, GENERATION, out);
    if (status == RING_CORRUPT)
        fail("worker %u finds a healthy ring corrupt", self);
    if (status == RING_OK) {
        check_lane(w, out);
        note_claim(w, self, out);
    }
    return status;
}

static bool take_from(workshop *w, unsigned self, claim *out) {
    lane_ring rings[2];
    lane_look look = {.table = the.lanes, .rings = rings};
    int status = LANE_AGAIN;
    while (status == LANE_AGAIN) {
        lane_begin(&look);
        lane_next(&look, false);
        status = look_at(&look, w, self, out);
    }
    return status == RING_OK;
}

/* L4: in the end, when the dead are seen to. */
void verify_lanes(void) {
    for (unsigned lane = 0; lane < LANES; lane++)
        if (now_at(&the.lanes->lanes[lane]))
            fail("L4: lane %u is held by nobody who lives", lane);
}

bool take_job(workshop *w, unsigned self, claim *out) {
    if (the.lanes)
        return take_from(w, self, out);
    int status = work_claim(&w->view, self, GENERATION, out);
    if (status == RING_CORRUPT)
        fail("worker %u finds a healthy ring corrupt", self);
    if (status != RING_OK)
        return false;
    note_claim(w, self, out);
    if (out->record.length != w->length ||
        !body_is_whole(out->record.body, out->record.length, out->record.sequence, true))
        fail("B1: claimed event %llu is not whole", (unsigned long long)out->record.sequence);
    return true;
}

bool finish_job(workshop *w, unsigned self, const claim *c) {
    job *j = job_of(w, c->record.sequence);
    j->finishing = true;
    unsigned lane;
    bool done = (the.lanes ? lane_done(the.lanes, &w->view, c, &lane) : work_done(&w->view, c)) == RING_OK;
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

static job *let_go(workshop *w, unsigned self, const claim *c) {
    job *j = job_of(w, c->record.sequence);
    if (j->holder == self)
        j->holder = NO_HOLDER;
    j->nacks++;
    return j;
}

static bool returned(unsigned self, const claim *c, int status) {
    if (status != RING_OK && !given_up(self))
        fail("K1: the claim of actor %u on event %llu went away", self, (unsigned long long)c->record.sequence);
    return status == RING_OK;
}

static int give_back(const workshop *w, const claim *c, bool unseen) {
    unsigned lane;
    return the.lanes ? lane_give_back(the.lanes, &w->view, c, unseen, &lane) : work_give_back(&w->view, c, unseen);
}

bool return_job(workshop *w, unsigned self, const claim *c) {
    let_go(w, self, c);
    return returned(self, c, give_back(w, c, false));
}

/* Counted before it is done, for others may claim at once. */
bool return_unseen(workshop *w, unsigned self, const claim *c) {
    job *j = let_go(w, self, c);
    j->unseen++;
    j->returning++;
    bool done = returned(self, c, give_back(w, c, true));
    if (!done)
        j->unseen--;
    j->returning--;
    return done;
}

bool delay_job(workshop *w, unsigned self, const claim *c, unsigned due, bool *first) {
    job *j = let_go(w, self, c);
    if (!the.contested)
        j->due = (unsigned char)due;
    uint64_t until = (uint64_t)due << TICK_BITS;
    unsigned lane;
    int status = the.lanes ? lane_delay(the.lanes, &w->view, c, until, false, first, &lane)
                           : work_delay(&w->view, c, until, false, first);
    bool done = returned(self, c, status);
    if (done)
        j->due = (unsigned char)due;
    return done;
}

void promote(workshop *w, unsigned self) {
    if (work_promote(&w->view, LOAD_SEQ(the.clock) << TICK_BITS) == RING_CORRUPT)
        fail("worker %u finds a healthy ring corrupt", self);
}

static void reclaim_ring(workshop *w, unsigned victim) {
    uint64_t count;
    for (unsigned i = 0; i < MAX_JOBS; i++)
        if (w->jobs[i].holder == victim)
            w->jobs[i].holder = NO_HOLDER;
    if ((the.lanes ? lane_reclaim(the.lanes, &w->view, victim, GENERATION, &count)
                   : work_reclaim(&w->view, victim, GENERATION, &count)) != RING_OK)
        fail("the reclaimer finds a healthy ring corrupt");
    if (work_held(&w->view, victim, GENERATION, NULL, 0) && is_dead(victim))
        fail("K2: a dead worker still holds something after its reclaim");
}

void reclaim(unsigned victim) {
    the.reclaimed |= 1ull << victim;
    for (unsigned i = 0; i < the.shops; i++)
        reclaim_ring(&the.work[i], victim);
    if (the.lanes)
        lane_free_all(the.lanes, victim, GENERATION);
}

/* ---- what must hold in the end ---- */

static unsigned state_of(const workshop *w, uint64_t sequence) {
    const descriptor *d = (const descriptor *)((unsigned char *)w->view.header + PAGE);
    return (unsigned)(LOAD_SEQ(&d[sequence & (w->view.slots - 1)].claim) >> 36) & 7;
}

/* Offered events, as far as the actors know, that nobody has done. */
uint64_t open_jobs(void) {
    uint64_t open = 0;
    for (unsigned i = 0; i < the.shops; i++)
        for (uint64_t sequence = FIRST_SEQUENCE; sequence < the.target; sequence++)
            open += !the.work[i].jobs[sequence - FIRST_SEQUENCE].done;
    return open;
}

static void verify_terms(const workshop *w, uint64_t depth_at_most) {
    work_terms t;
    uint64_t done = 0, tail = LOAD_SEQ(&w->view.header->tail);
    for (unsigned i = 0; i < MAX_JOBS; i++)
        done += w->jobs[i].done;
    if (work_terms_of(&w->view, &t) != RING_OK)
        fail("books: those of the group cannot be read");
    if (t.offered != t.done + t.depth + t.refused || t.offered - t.refused != tail - FIRST_SEQUENCE)
        fail("books: %llu offered, %llu done, %llu open", (unsigned long long)t.offered, (unsigned long long)t.done,
             (unsigned long long)t.depth);
    if (t.done < done || t.done - done > (anybody_dead() ? 1 : 0) || t.depth > depth_at_most)
        fail("books: %llu done, the workers did %llu", (unsigned long long)t.done, (unsigned long long)done);
}

/* The gate stands on the first event that is not done: whoever made one DONE saw to it. */
static void verify_gate(const workshop *w) {
    uint64_t gate = LOAD_SEQ(&w->view.header->gate), tail = LOAD_SEQ(&w->view.header->tail);
    if (gate > tail)
        fail("K2: the gate passed the tail");
    for (uint64_t sequence = FIRST_SEQUENCE; sequence < gate; sequence++)
        if (!w->jobs[sequence - FIRST_SEQUENCE].done && !w->jobs[sequence - FIRST_SEQUENCE].finishing)
            fail("K2: the gate passed event %llu, which is not done", (unsigned long long)sequence);
    if (gate < tail && state_of(w, gate) == CLAIM_DONE)
        fail("the gate stays before event %llu, which is done", (unsigned long long)gate);
}

/* T, once all is quiet and the dead are seen to. */
static void verify_due(const workshop *w) {
    uint64_t tail = LOAD_SEQ(&w->view.header->tail), due = work_due(&w->view) >> TICK_BITS;
    const note *notes = (const note *)((unsigned char *)w->view.header + PAGE + w->view.slots * sizeof(descriptor));
    for (uint64_t sequence = LOAD_SEQ(&w->view.header->gate); sequence < tail; sequence++) {
        uint64_t own = LOAD_SEQ(&notes[sequence & (w->view.slots - 1)].due) << 12 >> 12;
        if (state_of(w, sequence) == CLAIM_DELAYED && (!due || due > own))
            fail("T: event %llu is due at %llu, and nobody looks before %llu", (unsigned long long)sequence,
                 (unsigned long long)own, (unsigned long long)due);
    }
}

/* What a worker that comes last finds: everything that is not done. */
static void finish_all(workshop *w) {
    claim c;
    uint64_t tail = LOAD_SEQ(&w->view.header->tail), gate = LOAD_SEQ(&w->view.header->gate);
    for (uint64_t sequence = gate; sequence < tail; sequence++)
        if (state_of(w, sequence) == CLAIM_CLAIMED && given_up(w->jobs[sequence - FIRST_SEQUENCE].holder))
            fail("K2: event %llu stays with the dead", (unsigned long long)sequence);
    verify_due(w);
    STORE_SEQ(the.clock, 250);
    promote(w, FRESH_OWNER);
    while (take_job(w, FRESH_OWNER, &c))
        finish_job(w, FRESH_OWNER, &c);
    gate = LOAD_SEQ(&w->view.header->gate);
    if (gate != tail)
        fail("K2: event %llu cannot be claimed by anybody (state %u)", (unsigned long long)gate, state_of(w, gate));
    verify_terms(w, 0);
}

static void verify_ends(const workshop *w) {
    uint64_t tail = LOAD_SEQ(&w->view.header->tail);
    if (tail < w->committed || tail > w->writer.sequence || (!is_dead(w->publisher) && tail != w->committed))
        fail("the ring ends before event %llu", (unsigned long long)tail);
    verify_terms(w, tail - FIRST_SEQUENCE);
}

/* The supervisor sees to the dead first, again if a reclaim was cut short. */
void verify_work(void) {
    for (unsigned i = 0; i < the.shops; i++)
        verify_ends(&the.work[i]);
    for (unsigned a = 0; a < MAX_ACTORS; a++)
        if (given_up(a))
            reclaim(a);
    for (unsigned i = 0; i < the.shops; i++) {
        workshop *w = &the.work[i];
        verify_gate(w);
        verify_terms(w, LOAD_SEQ(&w->view.header->tail) - FIRST_SEQUENCE);
        finish_all(w);
    }
}

/* ---- set-ups ---- */

void offer_many(unsigned count) {
    while (count--)
        if (!offer(the.work, FULL_GIVE_UP))
            fail("no room in the set-up");
}

/* Setting up: `self` claims the next record and keeps it, as if it had died or slept since. */
static claim keeping[MAX_ACTORS];

claim *kept(unsigned self) { return &keeping[self]; }

void keep(unsigned self) {
    if (!take_job(the.work, self, kept(self)))
        fail("nothing to claim in the set-up");
}

void finish_kept(unsigned self) { finish_job(the.work, self, kept(self)); }

void build_small_work(void) {
    make_work(FAR, 104);
    the.target = FIRST_SEQUENCE + 2;
}
