/* Scenes of a group with a key: records of one lane are handed out one at a time and in their order (lane.h). Records are of
 * the lanes that `the.lane` says, one after the other. */
#include "world.h"

#define SOON 10u /* ticks */

/* ---- programs ---- */

static bool look(unsigned self, claim *out) {
    if (work_delayed(&the.work->view))
        promote(the.work, self);
    return take_job(the.work, self, out);
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

static void return_one_then_work(unsigned self) {
    claim c;
    if (look(self, &c))
        return_job(the.work, self, &c);
    work_on(self);
}

static void delay_one_then_work(unsigned self) {
    claim c;
    bool first;
    if (look(self, &c))
        delay_job(the.work, self, &c, SOON, &first);
    work_on(self);
}

static void pass_time(unsigned self) {
    (void)self;
    STORE_SEQ(the.clock, SOON);
}

static void offer_two(unsigned self) {
    (void)self;
    offer_many(2);
}

static void observe(unsigned self) { (void)self; }

static void return_kept(unsigned self) { return_job(the.work, self, kept(self)); }

static void delay_kept(unsigned self) {
    bool first;
    delay_job(the.work, self, kept(self), SOON, &first);
}

static void look_once(unsigned self) {
    claim c;
    if (look(self, &c))
        finish_job(the.work, self, &c);
}

static void reclaim_first(unsigned self) {
    (void)self;
    reclaim(1);
}

/* The supervisor: worker 1 has held its event for too long. */
static void take_back(unsigned self) {
    (void)self;
    claim c = *kept(1);
    the.reclaimed |= 1u << 1;
    lane_take_back(the.lanes, &the.work->view, &c);
}

/* What the next one to hold the lock does. */
static void repair(void) {
    uint64_t count;
    for (unsigned i = 0; i < the.shops; i++)
        lane_reclaim(the.lanes, &the.work[i].view, 0, 0, &count);
    lane_free_all(the.lanes, 0, 0);
}

/* ---- two rings of one publisher: the first one is retired ---- */

static bool take_either(unsigned self, claim *out, workshop **from) {
    lane_ring rings[3];
    lane_look look_ = {.table = the.lanes, .rings = rings};
    int status = LANE_AGAIN;
    while (status == LANE_AGAIN) {
        lane_begin(&look_);
        lane_next(&look_, true);
        *from = &the.work[0];
        status = look_at(&look_, *from, self, out);
        if (status != RING_EMPTY)
            continue;
        look_.count++;
        lane_next(&look_, false);
        *from = &the.work[1];
        status = look_at(&look_, *from, self, out);
    }
    return status == RING_OK;
}

static void work_on_both(unsigned self) {
    claim c;
    workshop *from;
    while (open_jobs()) {
        unsigned long before = moment();
        if (take_either(self, &c, &from))
            finish_job(from, self, &c);
        else if (!spin(before))
            return;
    }
}

/* ---- parking, as claims_lanes.c and wait.c do it ---- */

static word *parked(void) { return &the.group->parked[0]; }

static void work_or_park(unsigned self) {
    claim c;
    for (;;) {
        lane_ring rings[2];
        lane_look look_ = {.table = the.lanes, .rings = rings};
        uint64_t freed = LOAD_SEQ(&the.lanes->freed); /* SYNC lane: before the lanes */
        lane_begin(&look_);
        lane_next(&look_, false);
        int status = look_at(&look_, the.work, self, &c);
        if (status == RING_OK)
            finish_job(the.work, self, &c);
        if (status != RING_EMPTY)
            continue;
        AND_SEQ(&the.semaphores[self], 0);
        OR_SEQ(parked(), 1ull << self); /* SYNC park */
        bool ready = LOAD_SEQ(&the.lanes->freed) != freed || lane_changed(&rings[0]);
        bool woken = ready || sleep_on(&the.semaphores[self]);
        AND_SEQ(parked(), ~(1ull << self));
        if (!woken) /* nobody will post any more */
            break;
    }
    if (!anybody_dead() && lane_wanted(the.lanes, &the.work->view, 0))
        fail("L4: worker %u sleeps, and nobody tells it of what was waited for", self);
}

/* lanes_tell of claims_lanes.c */
static void tell(unsigned lane) {
    if (!LOAD_SEQ(parked()) || !lane_wanted(the.lanes, &the.work->view, lane)) /* SYNC park, lane */
        return;
    for (uint64_t bits = LOAD_SEQ(parked()); bits; bits &= bits - 1) {
        uint64_t bit = bits & (~bits + 1);
        if (AND_SEQ(parked(), ~bit) & bit) {
            post((unsigned)__builtin_ctzll(bit));
            return;
        }
    }
}

static void finish_kept_and_tell(unsigned self) {
    if (finish_job(the.work, self, kept(self)))
        tell(0);
}

static void return_kept_and_tell(unsigned self) {
    if (return_job(the.work, self, kept(self)))
        tell(0);
}

/* ---- set-ups ---- */

static void build(const char *lanes, unsigned offered) {
    make_work(FAR, 104);
    make_lanes();
    for (unsigned i = 0; lanes[i]; i++)
        the.lane[i] = (unsigned char)(lanes[i] - 'a');
    the.target = FIRST_SEQUENCE + offered;
    offer_many(offered);
}

static void build_three(void) { build("aab", 3); }

static void build_same(void) { build("aaa", 3); }

static void build_kept(void) {
    build_three();
    keep(1);
}

static void build_kept_same(void) {
    build_same();
    keep(1);
}

static void build_kept_many(void) {
    build("aaaab", 5);
    keep(1);
}

static void build_kept_two(void) {
    build("aa", 2);
    keep(1);
}

static void build_two_then_two(void) {
    build("abab", 2);
    the.target = FIRST_SEQUENCE + 2;
}

static void build_slow(void) {
    build_kept();
    the.contested = true;
}

static void build_rings(const char *lanes, unsigned offered) {
    build(lanes, offered);
    keep(1);
    make_work(FAR, 104);
    for (unsigned i = 0; i < offered; i++)
        if (!offer(&the.work[1], FULL_GIVE_UP))
            fail("no room in the set-up");
}

static void build_both(void) { build_rings("a", 1); }

static void build_both_two(void) { build_rings("ab", 2); }

static void verify(void) {
    repair();
    verify_work();
    verify_lanes();
}

static void verify_all_done(void) {
    if (!anybody_dead() && open_jobs())
        fail("L4: %llu events are left undone though nobody holds up their lanes", (unsigned long long)open_jobs());
    verify();
}

#define OBSERVER {'O', "observer", observe, false, false}
#define TIME {'T', "time", pass_time, false, false}
#define WORKER(letter, program) {letter, "worker", program, true, false}

const scene lane_scenes[] = {
    {"lane",
     "two workers, three records, two of them of one lane",
     build_three,
     verify_all_done,
     {OBSERVER, WORKER('A', work_on), WORKER('B', work_on)},
     {2, 1},
     {3, 2}},
    {"lane-same",
     "three records of one lane",
     build_same,
     verify_all_done,
     {OBSERVER, WORKER('A', work_on), WORKER('B', work_on)},
     {2, 1},
     {4, 2}},
    {"lane-pass",
     "a lane is freed while another passes over what waits for it",
     build_kept_same,
     verify_all_done,
     {OBSERVER, WORKER('A', finish_kept), WORKER('B', work_on)},
     {2, 1},
     {4, 2}},
    {"lane-publish",
     "a publisher goes on meanwhile",
     build_two_then_two,
     verify,
     {{'P', "publisher", offer_two, true, false}, WORKER('A', work_on), WORKER('B', work_on)},
     {2, 1},
     {3, 1}},
    {"lane-memory",
     "more is passed over than there is room for to remember",
     build_kept_many,
     verify_all_done,
     {OBSERVER, WORKER('A', finish_kept), WORKER('B', work_on)},
     {2, 1},
     {3, 1}},
    {"lane-nack",
     "what is given back comes before the others of its lane",
     build_kept,
     verify_all_done,
     {OBSERVER, WORKER('A', return_kept), WORKER('B', work_on), WORKER('C', look_once)},
     {2, 1},
     {3, 1}},
    {"lane-nack-both",
     "both give back what they took, and go on",
     build_three,
     verify_all_done,
     {OBSERVER, WORKER('A', return_one_then_work), WORKER('B', return_one_then_work)},
     {2, 1},
     {3, 2}},
    {"lane-delay",
     "what is given back for later holds up the others of its lane",
     build_three,
     verify_all_done,
     {TIME, WORKER('A', delay_one_then_work), WORKER('B', work_on)},
     {2, 1},
     {3, 1}},
    {"lane-delay-look",
     "what is kept is given back for later while two look",
     build_kept_two,
     verify,
     {TIME, WORKER('A', delay_kept), WORKER('B', look_once), WORKER('C', look_once)},
     {2, 1},
     {3, 1}},
    {"lane-reclaim",
     "the lane of a dead worker goes back with its record",
     build_three,
     verify,
     {OBSERVER,
      WORKER('A', work_on),
      {'B', "worker", work_on, false, false},
      {'C', "reclaimer", reclaim_first, false, true}},
     {2, 1},
     {3, 2}},
    {"lane-slow",
     "a record is taken back from a slow worker, which acks it at the same time",
     build_slow,
     verify_all_done,
     {OBSERVER, WORKER('A', finish_kept), WORKER('B', work_on), {'S', "supervisor", take_back, true, false}},
     {2, 1},
     {3, 1}},
    {"lane-rings",
     "what is given back to a ring comes before what its publisher wrote into the next",
     build_both,
     verify,
     {OBSERVER, WORKER('A', return_kept), WORKER('B', work_on_both), WORKER('C', work_on_both)},
     {2, 1},
     {3, 1}},
    {"lane-rings-memory",
     "what was passed over in one ring waits for what comes back to the one before",
     build_both_two,
     verify_all_done,
     {OBSERVER, WORKER('A', return_kept), WORKER('B', work_on_both)},
     {2, 1},
     {3, 1}},
    {"lane-park",
     "a worker parks while another frees the lane that it waits for",
     build_kept_two,
     verify_all_done,
     {OBSERVER, WORKER('A', finish_kept_and_tell), WORKER('B', work_or_park)},
     {3, 1},
     {4, 2}},
    {"lane-park-nack",
     "a worker parks while another gives back what it waits for",
     build_kept_two,
     verify_all_done,
     {OBSERVER, WORKER('A', return_kept_and_tell), WORKER('B', work_or_park)},
     {3, 1},
     {4, 2}},
    {0},
};
