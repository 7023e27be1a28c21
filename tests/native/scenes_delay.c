/* Scenes of what is given back unseen, given back for later, taken back from outside, or abandoned with its group. Time is
 * a word that one actor moves on. */
#include "world.h"

#define SOON 10u /* ticks */
#define LATER 20u

static word *parked(void) { return &the.group->parked[0]; }

/* ---- programs ---- */

static void pass_time(unsigned self) {
    (void)self;
    STORE_SEQ(the.clock, SOON);
    STORE_SEQ(the.clock, LATER);
}

static void pass_time_and_stop(unsigned self) {
    (void)self;
    STORE_SEQ(the.clock, SOON);
}

/* claim_from of claims.c: whoever asks looks first what has become due. */
static bool look(unsigned self, claim *out) {
    if (work_delayed(&the.work->view))
        promote(the.work, self);
    return work_ready(&the.work->view) && take_job(the.work, self, out);
}

static void work_on(unsigned self) {
    claim c;
    while (open_jobs()) {
        unsigned long before = moment();
        if (look(self, &c))
            finish_job(the.work, self, &c);
        else if (!spin(before))
            return;
    }
}

static void delay_kept_soon(unsigned self) {
    bool first;
    delay_job(the.work, self, kept(self), SOON, &first);
}

static void delay_kept_later(unsigned self) {
    bool first;
    delay_job(the.work, self, kept(self), LATER, &first);
}

static void delay_one_then_work(unsigned self) {
    claim c;
    bool first;
    if (look(self, &c))
        delay_job(the.work, self, &c, LATER, &first);
    work_on(self);
}

static void look_until_delayed(unsigned self) {
    claim c;
    bool first, done = false;
    while (!done) {
        unsigned long before = moment();
        done = look(self, &c) && delay_job(the.work, self, &c, LATER, &first);
        if (!done && !spin(before))
            return;
    }
    work_on(self);
}

static void look_once(unsigned self) {
    claim c;
    if (look(self, &c))
        finish_job(the.work, self, &c);
}

/* ---- parking ---- */

static bool ready(void) {
    uint64_t due = work_due(&the.work->view) >> TICK_BITS;
    return work_ready(&the.work->view) || (due && due <= LOAD_SEQ(the.clock));
}

/* wait.c: the bit, then the time until which to sleep, then once more what is there. The sleep is over when posted, and
 * when that time has come. */
static bool park(unsigned self) {
    AND_SEQ(&the.semaphores[self], 0);
    OR_SEQ(parked(), 1ull << self);                          /* SYNC park */
    uint64_t due = work_due(&the.work->view) >> TICK_BITS;   /* SYNC due */
    bool woken = ready() || sleep_on(&the.semaphores[self]); /* false: nobody will post any more */
    AND_SEQ(parked(), ~(1ull << self));
    if (!woken && !due && work_due(&the.work->view) && !anybody_dead())
        fail("T: worker %u sleeps, and does not know what will be due", self);
    return woken || ready() || (due && due <= LOAD_SEQ(the.clock));
}

static void work_or_park(unsigned self) {
    claim c;
    do
        while (look(self, &c))
            finish_job(the.work, self, &c);
    while (park(self));
}

/* give_back of claimer.c: whoever is parked looks again, if nothing was to come sooner. */
static void delay_kept_and_tell(unsigned self) {
    bool first;
    if (!delay_job(the.work, self, kept(self), SOON, &first) || !first)
        return;
    for (uint64_t bits = LOAD_SEQ(parked()); bits; bits &= bits - 1) {
        uint64_t bit = bits & (~bits + 1);
        if (AND_SEQ(parked(), ~bit) & bit) /* SYNC park */
            post((unsigned)__builtin_ctzll(bit));
    }
}

/* ---- unseen ---- */

static void return_kept_unseen(unsigned self) { return_unseen(the.work, self, kept(self)); }

static void return_unseen_then_work(unsigned self) {
    claim c;
    if (take_job(the.work, self, &c))
        return_unseen(the.work, self, &c);
    work_on(self);
}

static void reclaim_first(unsigned self) {
    (void)self;
    reclaim(1);
}

/* ---- from outside ---- */

/* The supervisor: worker 1 has held its event for too long. */
static void take_back(unsigned self) {
    (void)self;
    claim c = *kept(1);
    the.reclaimed |= 1u << 1;
    work_give_back(&the.work->view, &c, false);
}

/* And the next one to hold the lock lowers the hints, as after a death there. */
static void take_back_and_repair(unsigned self) {
    uint64_t count;
    take_back(self);
    work_reclaim(&the.work->view, 0, 0, &count);
}

static uint64_t abandoned;

/* The group is removed. */
static void abandon(unsigned self) {
    uint64_t count;
    (void)self;
    the.reclaimed |= 1u << 1 | 1u << 2;
    if (work_abandon(&the.work->view, 1, &count) != RING_OK)
        fail("the remover finds a healthy ring corrupt");
    abandoned = count;
}

static void finish_kept_or_lose_it(unsigned self) { finish_job(the.work, self, kept(self)); }

/* ---- set-ups ---- */

static void build_one_kept(void) {
    build_small_work();
    offer_many(1);
    keep(1);
    the.target = FIRST_SEQUENCE + 1;
}

static void build_two(void) {
    build_small_work();
    offer_many(2);
}

static void build_two_kept(void) {
    build_two();
    keep(1);
    keep(2);
}

static void build_one_delayed(void) { /* the first of two is due soon, the other one is held */
    bool first;
    build_two_kept();
    delay_job(the.work, 2, kept(2), SOON, &first);
}

static void build_delayed_zombie(void) { /* worker 1 was taken for dead; worker 2 delays what it held */
    build_one_kept();
    reclaim(1);
    keep(2);
    the.contested = true;
}

static void build_slow(void) {
    build_two();
    keep(1);
    the.contested = true;
}

static void build_slow_alone(void) {
    build_one_kept();
    the.contested = true;
}

static void build_unseen(void) { /* of what worker 1 holds one claim was unseen */
    build_slow();
    return_unseen(the.work, 1, kept(1));
    keep(1);
}

static void build_abandoned(void) {
    build_two_kept();
    offer_many(1);
    abandoned = 0;
}

/* Each event is acked or abandoned, once, and the gate stands at the end. */
static void verify_abandoned(void) {
    work_terms t;
    uint64_t acked = 0, tail = LOAD_SEQ(&the.work->view.header->tail), count;
    for (unsigned i = 0; i < 3; i++)
        acked += the.work->jobs[i].done;
    if (anybody_dead()) /* the next one to have the lock does it again */
        work_abandon(&the.work->view, 2, &count);
    if (work_terms_of(&the.work->view, &t) != RING_OK || t.depth || LOAD_SEQ(&the.work->view.header->gate) != tail)
        fail("K2: something is left when all is abandoned");
    if (t.offered != 3 || t.done != 3)
        fail("books: %llu offered, %llu done of 3", (unsigned long long)t.offered, (unsigned long long)t.done);
    uint64_t dead = anybody_dead(), gone = t.abandoned + dead;
    if (t.abandoned + acked > 3 + dead || gone + acked < 3 || (!dead && t.abandoned != abandoned))
        fail("books: %llu acked, %llu abandoned of 3", (unsigned long long)acked, (unsigned long long)t.abandoned);
}

static void verify_all_done(void) {
    if (!anybody_dead() && open_jobs())
        fail("T: %llu events are left undone though their time has come", (unsigned long long)open_jobs());
    verify_work();
}

#define TIME {'T', "time", pass_time, false, false}
#define WORKER(letter, program) {letter, "worker", program, true, false}

const scene delay_scenes[] = {
    {"delay",
     "a worker delays what it took, two work until all is done",
     build_two,
     verify_all_done,
     {TIME, WORKER('A', delay_one_then_work), WORKER('B', work_on)},
     {2, 1},
     {3, 2}},
    {"delay-two",
     "one delays an event while another finds out which is due next",
     build_one_delayed,
     verify_work,
     {{'T', "time", pass_time_and_stop, false, false}, WORKER('A', delay_kept_later), WORKER('B', look_once)},
     {3, 1},
     {4, 2}},
    {"delay-sooner",
     "one delays an event, which is due before what is delayed, while another looks",
     build_two_kept,
     verify_work,
     {{'T', "time", pass_time_and_stop, false, false}, WORKER('A', delay_kept_soon), WORKER('B', delay_kept_later)},
     {3, 1},
     {4, 2}},
    {"delay-promote",
     "two find at once that an event is due, while a third is given back for later",
     build_one_delayed,
     verify_work,
     {TIME, WORKER('A', delay_kept_later), WORKER('B', look_once), WORKER('C', look_once)},
     {2, 1},
     {3, 1}},
    {"delay-zombie",
     "a worker taken for dead delays what another one delays",
     build_delayed_zombie,
     verify_all_done,
     {TIME, WORKER('A', delay_kept_soon), WORKER('B', delay_kept_later), WORKER('C', work_on)},
     {2, 1},
     {3, 1}},
    {"delay-park",
     "a worker parks while another gives back an event for later",
     build_one_kept,
     verify_all_done,
     {TIME, WORKER('A', delay_kept_and_tell), WORKER('B', work_or_park)},
     {3, 1},
     {4, 2}},
    {"unseen",
     "two workers give back what they showed to nobody",
     build_two,
     verify_work,
     {TIME, WORKER('A', return_unseen_then_work), WORKER('B', return_unseen_then_work)},
     {2, 1},
     {3, 2}},
    {"unseen-reclaim",
     "what was given back unseen, and claimed again, is reclaimed while its worker gives it back",
     build_unseen,
     verify_work,
     {TIME, WORKER('A', return_kept_unseen), WORKER('B', work_on), {'C', "reclaimer", reclaim_first, true, false}},
     {2, 1},
     {3, 1}},
    {"slow",
     "an event is taken back from a slow worker, which acks it at the same time",
     build_slow,
     verify_work,
     {TIME, WORKER('A', finish_kept_or_lose_it), WORKER('B', work_on), {'S', "supervisor", take_back, true, false}},
     {2, 1},
     {3, 1}},
    {"slow-delay",
     "an event is taken back from a slow worker, which delays it at the same time",
     build_slow,
     verify_work,
     {TIME, WORKER('A', delay_kept_later), WORKER('B', work_on), {'S', "supervisor", take_back, true, false}},
     {2, 1},
     {3, 1}},
    {"slow-delay-both",
     "an event is taken back from a worker that delays it, and delayed by the next one",
     build_slow_alone,
     verify_work,
     {TIME,
      WORKER('A', delay_kept_soon),
      WORKER('B', look_until_delayed),
      {'S', "supervisor", take_back_and_repair, true, false}},
     {2, 1},
     {3, 1}},
    {"abandon",
     "a group is removed while its workers ack and delay",
     build_abandoned,
     verify_abandoned,
     {{'R', "remover", abandon, true, false}, WORKER('A', finish_kept_or_lose_it), WORKER('B', delay_kept_soon)},
     {3, 1},
     {4, 2}},
    {0},
};
