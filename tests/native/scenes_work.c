/* Scenes on the work ring: publisher, workers, reclaimers. Workers are actors 1 to 3; actor n claims as owner n. */
#include "world.h"

static void work_off(unsigned count) {
    claim c;
    while (count--)
        if (!take_job(the.work, 3, &c) || !finish_job(the.work, 3, &c))
            fail("nothing to do in the set-up");
}

/* ---- programs ---- */

static void offer_two(unsigned self) {
    (void)self;
    if (offer(the.work, FULL_SPIN))
        offer(the.work, FULL_SPIN);
}

static void offer_three(unsigned self) {
    offer_two(self);
    offer(the.work, FULL_SPIN); /* no room: it looks at the gate once more */
}

static void offer_one(unsigned self) {
    (void)self;
    offer(the.work, FULL_SPIN);
}

static void wait_one(unsigned self) {
    (void)self;
    offer(the.work, FULL_WAIT);
}

/* Takes and acks until everything is done, or nobody can bring anything any more. */
static void work(unsigned self) {
    claim c;
    while (open_jobs()) {
        unsigned long before = moment();
        if (take_job(the.work, self, &c))
            finish_job(the.work, self, &c);
        else if (!spin(before))
            return;
    }
}

static void work_one(unsigned self) {
    claim c;
    if (take_job(the.work, self, &c))
        finish_job(the.work, self, &c);
}

static void return_then_work(unsigned self) {
    claim c;
    if (take_job(the.work, self, &c))
        return_job(the.work, self, &c);
    work(self);
}

static void return_one(unsigned self) {
    claim c;
    if (take_job(the.work, self, &c))
        return_job(the.work, self, &c);
}

/* Reads once more what it holds, as a message does whose payload is asked for late. */
static void read_and_finish_kept(unsigned self) {
    claim c = *kept(self);
    if (work_read(&the.work->view, &c) != RING_OK || !body_is_whole(c.record.body, BIG, c.record.sequence, true))
        fail("K1: event %llu was overwritten while it was held", (unsigned long long)c.record.sequence);
    finish_job(the.work, self, &c);
}

static void return_kept(unsigned self) { return_job(the.work, self, kept(self)); }

/* The publisher looks only once the worker has done enough, or has nothing left: SYNC room. */
static void work_and_settle(unsigned self) {
    claim c;
    uint64_t acked = 0;
    const ring_header *h = the.work->view.header;
    while (open_jobs()) {
        unsigned long before = moment();
        bool got = work_ready(&the.work->view) && take_job(the.work, self, &c);
        if (got && finish_job(the.work, self, &c))
            acked++;
        if (acked && (!got || acked * 4 >= LOAD_RELAXED(&h->tail) - LOAD_RELAXED(&h->gate))) {
            acked = 0;
            if (ring_release_publisher(&the.work->view))
                post(0);
        }
        if (!got && !spin(before))
            return;
    }
}

static void reclaim_first(unsigned self) {
    (void)self;
    reclaim(1);
}

/* A whole lap of the ring goes by in one step, unless somebody holds its first record. */
static void lap(unsigned self) {
    claim c;
    begin_burst();
    for (unsigned i = 0; i < 64; i++)
        if (!take_job(the.work, self, &c) || !finish_job(the.work, self, &c) || !offer(the.work, FULL_GIVE_UP))
            break;
    end_burst();
}

static void look(unsigned self) {
    (void)self;
    work_terms t;
    if (work_terms_of(&the.work->view, &t) != RING_OK)
        fail("books: those of the group cannot be read");
    if (t.offered != t.done + t.depth + t.refused || t.claimed > t.depth || t.offered > the.target - FIRST_SEQUENCE)
        fail("books: the sum is not exact while others run");
}

/* ---- set-ups ---- */

static void build_empty(void) {
    make_work(FAR, BIG);
    the.target = FIRST_SEQUENCE + 2;
}

static void build_two(void) {
    build_small_work();
    offer_many(2);
}

static void build_three(void) {
    build_small_work();
    offer_many(3);
    the.target++;
}

static void build_dead(void) { /* worker 1 died with two of three */
    build_three();
    keep(1);
    keep(1);
    the.reclaimed = 1u << 1;
}

static void build_kept(void) { /* workers 1 and 2 hold the first two of four that fill the ring */
    make_work(FAR, BIG);
    offer_many(4);
    keep(1);
    keep(2);
    the.target = FIRST_SEQUENCE + 6;
}

static void build_full(void) {
    make_work(FAR, BIG);
    offer_many(4);
    the.target = FIRST_SEQUENCE + 5;
}

static void build_zombie(void) {
    build_two();
    keep(1);
}

static void build_low(void) { /* `next` stands on a record that worker 1 holds, as a reclaim leaves it */
    uint64_t count;
    build_zombie();
    work_reclaim(&the.work->view, 99, 1, &count);
}

static void build_lap(void) { /* all descriptors in use, none held */
    make_work(FAR, 8);
    offer_many(64);
    the.target = FIRST_SEQUENCE + 128;
}

static void build_descriptors(void) { /* the last of them is free, bytes abound */
    make_work(FAR, 8);
    offer_many(60);
    work_off(58);
    offer_many(61);
    the.target = FIRST_SEQUENCE + 123;
}

static void verify_wait(void) {
    if (!anybody_dead() && the.work->committed != the.target)
        fail("W1: the publisher sleeps with room in the ring");
    verify_work();
}

#define PUBLISHER(program) {'P', "publisher", program, true, false}
#define WORKER(letter, program) {letter, "worker", program, true, false}
#define RECLAIMER(after_death) {'C', "reclaimer", reclaim_first, true, after_death}

const scene work_scenes[] = {
    {"work",
     "two workers share what a publisher offers",
     build_empty,
     verify_work,
     {PUBLISHER(offer_two), WORKER('A', work), WORKER('B', work)},
     {1, 1},
     {3, 2}},
    {"compete",
     "two workers compete for two events",
     build_two,
     verify_work,
     {{'-', "nobody", look, false, false}, WORKER('A', work), WORKER('B', work)},
     {3, 1},
     {4, 2}},
    {"nack",
     "one of two workers gives back what it took",
     build_two,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', return_one), WORKER('B', work_one)},
     {3, 1},
     {4, 2}},
    {"nack-race",
     "a claim is given back beside two more",
     build_zombie,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', return_kept), WORKER('B', work_one)},
     {3, 1},
     {4, 2}},
    {"nack-low",
     "a claim is given back that `next` stands on already",
     build_low,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', return_kept), WORKER('B', work_one)},
     {3, 1},
     {4, 2}},
    {"nack-work",
     "both workers go on until all is done",
     build_three,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', return_then_work), WORKER('B', return_then_work)},
     {2, 1},
     {3, 2}},
    {"reclaim",
     "what a dead worker held goes to another",
     build_two,
     verify_work,
     {{'O', "observer", look, false, false},
      WORKER('A', work),
      {'B', "worker", work, false, false},
      {'C', "reclaimer", reclaim_first, false, true}},
     {2, 1},
     {3, 2}},
    {"reclaim-cut",
     "a reclaim is cut short by another death",
     build_dead,
     verify_work,
     {{'O', "observer", look, false, false},
      {'-', "the dead", look, false, false},
      WORKER('B', work),
      RECLAIMER(false)},
     {2, 0},
     {3, 2}},
    {"zombie",
     "a worker taken for dead acks what is no longer its own",
     build_zombie,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', finish_kept), WORKER('B', work), RECLAIMER(false)},
     {2, 1},
     {3, 2}},
    {"zombie-nack",
     "a worker taken for dead gives back what is no longer its own",
     build_zombie,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', return_kept), WORKER('B', work), RECLAIMER(false)},
     {2, 1},
     {3, 2}},
    {"gate",
     "neighbours ack while the publisher needs their room",
     build_kept,
     verify_work,
     {PUBLISHER(offer_three), WORKER('A', finish_kept), WORKER('B', read_and_finish_kept)},
     {3, 1},
     {4, 2}},
    {"lap",
     "a worker sleeps through a lap of the ring",
     build_lap,
     verify_work,
     {{'O', "observer", look, false, false}, WORKER('A', work_one), {'L', "the lap", lap, false, false}},
     {2, 1},
     {3, 1}},
    {"descriptors",
     "descriptors run out before bytes do",
     build_descriptors,
     verify_work,
     {PUBLISHER(offer_two), WORKER('A', work_one)},
     {3, 1},
     {5, 3}},
    {"work-wait",
     "the publisher sleeps until a worker frees room",
     build_full,
     verify_wait,
     {PUBLISHER(wait_one), WORKER('A', work_and_settle)},
     {3, 1},
     {4, 2}},
    {"work-books",
     "stats are read while a worker and the publisher go on",
     build_full,
     verify_work,
     {PUBLISHER(offer_one), WORKER('A', work), {'O', "observer", look, false, false}},
     {2, 1},
     {3, 1}},
    {0},
};
