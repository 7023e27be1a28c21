/* Threads on the plain C strata, without hooks: built with -fsanitize=thread, address and undefined by tools/sanitize.py.
 *
 *   stress [--short]
 *
 * One publisher feeds a broadcast ring and a work ring. Two reliable readers (in place, by plain loads), a lossy one, one
 * that joins, becomes reliable if it was lossy, and leaves all the time, three workers, one that keeps dying, and an observer that reads the books. In the
 * end contents, order and books must be exact. What the threads tell each other beside the rings is relaxed, so that it
 * hides no missing order from the thread sanitizer. */
#include "demand.h"
#include "ring.h"
#include "work.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CAPACITY (4 * MIN_CAPACITY)
#define FIRST 1000u
#define START ((1ull << 32) - 64 * CAPACITY) /* positions pass 2^32 */
#define DYING 9u                             /* owner */
#define JOINER_SLOT 5u                       /* readers have 0, 1 and 2 */
#define SPOIL_EVERY 97u                      /* this event does not decode, for reader 1 */
#define WATCHDOG_S 1800u                     /* seconds; a hang is a failure */

typedef struct reader_result {
    uint64_t delivered, lost, undecodable;
} reader_result;

static ring_view broadcast, work;
static uint64_t events;
static reader_result results[3];
static _Atomic uint64_t joins, reclaims, looks;
static _Atomic bool finished; /* everything is published */
static _Atomic unsigned char *done_count;
static _Atomic uint64_t all_done;

/* ---- contents ---- */

static uint32_t length_of(uint64_t sequence) { return (uint32_t)(sequence * 2654435761u % 1500); }

static unsigned char byte_of(uint64_t sequence, uint32_t index) { return (unsigned char)(sequence * 31 + index * 7); }

static void fill(unsigned char *body, uint64_t sequence) {
    for (uint32_t i = 0; i < length_of(sequence); i++)
        body[i] = byte_of(sequence, i);
}

static bool whole(const unsigned char *body, uint32_t length, uint64_t sequence) {
    if (length != length_of(sequence))
        return false;
    for (uint32_t i = 0; i < length; i++)
        if (body[i] != byte_of(sequence, i))
            return false;
    return true;
}

/* ---- publisher ---- */

static void *publisher(void *unused) {
    unsigned char body[2048];
    ring_writer ring;
    work_writer jobs;
    DEMAND(ring_writer_open(&ring, &broadcast) == RING_OK, "the ring cannot be written");
    DEMAND(work_writer_open(&jobs, &work) == RING_OK, "the work ring cannot be written");
    for (uint64_t sequence = FIRST; sequence < FIRST + events; sequence++) {
        uint32_t length = length_of(sequence);
        part p = {.payload = body, .payload_length = length, .time_ns = sequence};
        fill(body, sequence);
        int status;
        while ((status = ring_reserve(&ring, length)) == RING_FULL)
            sched_yield();
        DEMAND(status == RING_OK, "the publisher finds its ring corrupt");
        ring_write(&ring, &p);
        if (sequence % 3 == 0 || sequence + 1 == FIRST + events)
            ring_commit(&ring);
        else if (sequence % 3 == 1 && length < 700)
            continue; /* goes out with the next: a batch */
        else
            ring_commit(&ring);
        while (jobs.sequence <= sequence) {
            uint64_t next = jobs.sequence;
            part job = {.payload = body, .payload_length = length_of(next), .time_ns = next};
            while ((status = work_reserve(&jobs, job.payload_length)) == RING_FULL)
                sched_yield();
            DEMAND(status == RING_OK, "the publisher finds the work ring corrupt");
            fill(body, next);
            work_write(&jobs, &job);
            work_commit(&jobs);
        }
    }
    atomic_store_explicit(&finished, true, RELAXED);
    return unused;
}

/* ---- readers ---- */

/* Takes one event or books one loss; false when there is nothing. `next` is what comes now, in order. */
static bool take(ring_reader *r, uint64_t *next, bool spoils, reader_result *result) {
    unsigned char copy[2048];
    record got;
    int status = ring_peek(r, &got);
    const unsigned char *body = got.body;
    if (status == RING_OK && r->lossy) {
        body = copy;
        DEMAND(got.length <= sizeof copy, "event of %u bytes", got.length);
        status = ring_copy(r, &got, copy);
    }
    if (status == RING_OVERRUN) {
        DEMAND(r->lost_first == *next, "lost from %llu, not from %llu", (unsigned long long)r->lost_first,
               (unsigned long long)*next);
        result->lost += r->lost_last - r->lost_first + 1;
        *next = r->lost_last + 1;
        ring_overrun(r, 1);
        return true;
    }
    DEMAND(status >= 0, "a reader finds its ring corrupt");
    if (status == RING_EMPTY) {
        ring_settle(r);
        return false;
    }
    DEMAND(got.sequence == *next && whole(body, got.length, got.sequence), "event %llu instead of %llu, or in pieces",
           (unsigned long long)got.sequence, (unsigned long long)*next);
    ++*next;
    if (spoils && got.sequence % SPOIL_EVERY == 0) {
        ring_undecodable(r, &got, 1);
        result->undecodable++;
    } else {
        ring_advance(r, &got);
        result->delivered++;
    }
    return true;
}

static void *reader(void *argument) {
    unsigned slot = (unsigned)(uintptr_t)argument;
    ring_reader r;
    DEMAND(ring_reader_open(&r, &broadcast, slot) == RING_OK, "slot %u cannot be read", slot);
    for (uint64_t next = FIRST; next < FIRST + events;)
        if (!take(&r, &next, slot == 1, &results[slot]))
            sched_yield();
    return NULL;
}

/* A lossy reader is reliable from here on: what it loses now is in `take`'s order, and nothing after that. */
static void regate(ring_reader *r, uint64_t *next) {
    int status = ring_regate(r);
    DEMAND(status >= 0, "a lossy reader cannot become reliable");
    if (status == RING_OVERRUN) {
        DEMAND(r->lost_first == *next, "lost from %llu", (unsigned long long)r->lost_first);
        *next = r->lost_last + 1;
        ring_overrun(r, 1);
    }
}

static void *joiner(void *unused) {
    for (unsigned round = 0; !atomic_load_explicit(&finished, RELAXED); round++) {
        ring_reader r;
        reader_result result = {0};
        bool lossy = round % 3 == 2;
        DEMAND(ring_join(&broadcast, JOINER_SLOT, lossy, round % 2) == RING_OK, "a healthy ring cannot be joined");
        DEMAND(ring_reader_open(&r, &broadcast, JOINER_SLOT) == RING_OK, "what was joined cannot be read");
        uint64_t next = r.sequence;
        for (unsigned i = 0; i < 40; i++) {
            if (i == 20 && lossy) {
                regate(&r, &next);
                result.lost = 0;
            }
            if (!take(&r, &next, false, &result))
                sched_yield();
        }
        DEMAND(result.lost == 0 || !lossy, "%llu events lost by a reader that was reliable",
               (unsigned long long)result.lost);
        ring_leave(&broadcast, JOINER_SLOT);
        atomic_fetch_add_explicit(&joins, 1, RELAXED);
    }
    return unused;
}

static void *observer(void *unused) {
    while (!atomic_load_explicit(&finished, RELAXED)) {
        ring_terms t;
        work_terms w;
        for (unsigned slot = 0; slot < 3; slot++) {
            DEMAND(ring_terms_of(&broadcast, slot, &t) == RING_OK, "the books of slot %u cannot be read", slot);
            DEMAND(t.offered == t.delivered + t.depth + t.overrun + t.undecodable && t.offered <= events,
                   "the books of slot %u do not balance", slot);
        }
        DEMAND(work_terms_of(&work, &w) == RING_OK, "the group's books cannot be read");
        DEMAND(w.offered == w.done + w.depth && w.offered <= events, "the group's books do not balance");
        atomic_fetch_add_explicit(&looks, 1, RELAXED);
        sched_yield();
    }
    return unused;
}

/* ---- workers ---- */

static void finish(const claim *c) {
    uint64_t index = c->record.sequence - FIRST;
    DEMAND(work_done(&work, c) == RING_OK, "the claim on %llu went away", (unsigned long long)c->record.sequence);
    DEMAND(atomic_fetch_add_explicit(&done_count[index], 1, RELAXED) == 0, "event %llu is done twice",
           (unsigned long long)c->record.sequence);
    atomic_fetch_add_explicit(&all_done, 1, RELAXED);
}

static bool take_job(unsigned owner, unsigned generation, claim *c) {
    int status = work_ready(&work) ? work_claim(&work, owner, generation, c) : RING_EMPTY;
    DEMAND(status >= 0, "worker %u finds the work ring corrupt", owner);
    if (status != RING_OK)
        return false;
    DEMAND(whole(c->record.body, c->record.length, c->record.sequence), "claimed event %llu is in pieces",
           (unsigned long long)c->record.sequence);
    return true;
}

static void *worker(void *argument) {
    unsigned owner = (unsigned)(uintptr_t)argument;
    claim c;
    for (unsigned turn = 0; atomic_load_explicit(&all_done, RELAXED) < events; turn++)
        if (!take_job(owner, 1, &c))
            sched_yield();
        else if (turn % 16)
            finish(&c);
        else
            DEMAND(work_give_back(&work, &c, turn & 32) == RING_OK, "a claim went away");
    return NULL;
}

/* Claims a few, acks one of them, dies; its generation is reclaimed and the next begins. */
static void *dying(void *unused) {
    for (unsigned generation = 1; atomic_load_explicit(&all_done, RELAXED) < events; generation++) {
        claim c;
        uint64_t count, held = 0;
        for (unsigned i = 0; i < 3; i++)
            if (take_job(DYING, generation, &c) && held++ == 0)
                finish(&c);
        DEMAND(work_reclaim(&work, DYING, generation, &count) == RING_OK, "nothing can be reclaimed");
        DEMAND(count == (held ? held - 1 : 0), "%llu reclaimed, %llu held", (unsigned long long)count,
               (unsigned long long)held);
        atomic_fetch_add_explicit(&reclaims, count, RELAXED);
        if (!held)
            sched_yield();
    }
    return unused;
}

/* ---- the run ---- */

static void *segment(uint64_t size) {
    void *base = aligned_alloc(PAGE, size);
    DEMAND(base, "no memory");
    memset(base, 0, size);
    return base;
}

static void make_rings(void) {
    uint64_t size = ring_size(CAPACITY), jobs = work_size(CAPACITY);
    void *ring = segment(size), *table = segment(jobs);
    DEMAND(ring_format(ring, size, CAPACITY, 1, FIRST, START) == RING_OK &&
               ring_open(&broadcast, ring, size, RING_BROADCAST) == RING_OK &&
               work_format(table, jobs, CAPACITY, 2, FIRST, START) == RING_OK &&
               ring_open(&work, table, jobs, RING_WORK) == RING_OK,
           "rings cannot be made");
    for (unsigned slot = 0; slot < 3; slot++)
        DEMAND(ring_join(&broadcast, slot, slot == 2, false) == RING_OK, "slot %u cannot be joined", slot);
    done_count = calloc(events, 1);
    DEMAND(done_count, "no memory");
}

static void check_books(void) {
    for (unsigned slot = 0; slot < 3; slot++) {
        ring_terms t;
        const reader_result *r = &results[slot];
        DEMAND(ring_terms_of(&broadcast, slot, &t) == RING_OK, "the books of slot %u cannot be read", slot);
        DEMAND(t.offered == events && t.depth == 0 && t.delivered == r->delivered && t.overrun == r->lost &&
                   t.undecodable == r->undecodable && t.offered == t.delivered + t.overrun + t.undecodable,
               "the books of slot %u: delivered %llu of %llu, lost %llu of %llu", slot, (unsigned long long)t.delivered,
               (unsigned long long)r->delivered, (unsigned long long)t.overrun, (unsigned long long)r->lost);
    }
    work_terms w;
    DEMAND(work_terms_of(&work, &w) == RING_OK && w.done == events && w.depth == 0, "the group did %llu of %llu",
           (unsigned long long)w.done, (unsigned long long)events);
}

int main(int argc, char **argv) {
    typedef struct role {
        void *(*run)(void *);
        uintptr_t argument;
    } role;
    static const role roles[] = {{publisher, 0}, {reader, 0}, {reader, 1}, {reader, 2}, {joiner, 0},
                                 {worker, 1},    {worker, 2}, {worker, 3}, {dying, 0},  {observer, 0}};
    enum { COUNT = sizeof roles / sizeof *roles };
    pthread_t threads[COUNT];
    bool brief = argc > 1 && !strcmp(argv[1], "--short");
    events = brief ? 20000 : 400000;
    alarm(WATCHDOG_S);
    make_rings();
    for (unsigned i = 0; i < COUNT; i++)
        DEMAND(pthread_create(&threads[i], NULL, roles[i].run, (void *)roles[i].argument) == 0, "no thread");
    for (unsigned i = 0; i < COUNT; i++)
        pthread_join(threads[i], NULL);
    check_books();
    printf("%llu events, %llu lost by the lossy reader, %llu joins, %llu claims reclaimed, %llu looks at the books\n",
           (unsigned long long)events, (unsigned long long)results[2].lost, (unsigned long long)joins,
           (unsigned long long)reclaims, (unsigned long long)looks);
    free((void *)done_count);
    free(broadcast.header);
    free(work.header);
    return 0;
}
