/* Scenes in which workers park and are woken, one by another (SYNC chain): as producer.c, claims.c, wake.c and wait.c do it
 * on the same words. */
#include "world.h"

static word *parked(void) { return &the.group->parked[0]; }

/* wakers_wake of wake.c */
static void wake(uint64_t most) {
    for (uint64_t bits = LOAD_SEQ(parked()); bits && most; bits &= bits - 1) {
        uint64_t bit = bits & (~bits + 1);
        if (!(AND_SEQ(parked(), ~bit) & bit)) /* SYNC park */
            continue;
        post((unsigned)__builtin_ctzll(bit));
        most--;
    }
}

/* wake_group of producer.c, after records from `first` on were committed */
static void tell(const workshop *w, uint64_t first) {
    uint64_t any = LOAD_SEQ(parked()); /* SYNC park */
    if (any && work_fresh(&w->view, first))
        wake(w->writer.sequence - first);
}

static bool any_ready(void) {
    for (unsigned i = 0; i < the.shops; i++)
        if (work_ready(&the.work[i].view))
            return true;
    return false;
}

/* claims_pass_on of claims.c */
static void pass_on(void) {
    if (LOAD_SEQ(parked()) && any_ready()) /* SYNC park */
        wake(1);
}

/* claim_from of claims.c */
static unsigned claim_from(workshop *w, unsigned self, claim *held, unsigned prefetch) {
    unsigned got = 0;
    while (got < prefetch && work_ready(&w->view))
        got += take_job(w, self, &held[got]);
    return got;
}

typedef struct hands { /* of one worker */
    workshop *from;
    claim held[2];
    unsigned current, prefetch;
} hands;

/* claim_some of claims.c: how many it holds now */
static unsigned claim_some(unsigned self, hands *h) {
    for (unsigned looked = 0; looked < the.shops; looked++) {
        h->current = (h->current + 1) % the.shops;
        h->from = &the.work[h->current];
        unsigned got = claim_from(h->from, self, h->held, h->prefetch);
        if (got) {
            pass_on();
            return got;
        }
    }
    return 0;
}

/* Nobody will post. Without a death nothing may be ready then; nor once the supervisor has seen to one: before that, the
 * sleep is over after a second. */
static bool overslept(unsigned self) {
    bool ready = any_ready();
    if (ready && (!anybody_dead() || the.repaired))
        fail("W1: worker %u sleeps with work ready and no post coming", self);
    return ready;
}

static bool end_of_sleep(unsigned self, bool woken) {
    AND_SEQ(parked(), ~(1ull << self));
    return woken || overslept(self);
}

/* park of wait.c; false: this is the end. */
static bool park(unsigned self) {
    AND_SEQ(&the.semaphores[self], 0);
    OR_SEQ(parked(), 1ull << self); /* SYNC park */
    bool woken = any_ready() || sleep_on(&the.semaphores[self]);
    return end_of_sleep(self, woken);
}

static void finish_all_of(unsigned self, hands *h, unsigned got) {
    for (unsigned i = 0; i < got; i++)
        finish_job(h->from, self, &h->held[i]);
}

static void work_and_park(unsigned self, unsigned prefetch) {
    hands h = {.prefetch = prefetch};
    unsigned got;
    do
        while ((got = claim_some(self, &h)))
            finish_all_of(self, &h, got);
    while (park(self));
}

static void work_or_park(unsigned self) { work_and_park(self, 1); }

static void work_two_or_park(unsigned self) { work_and_park(self, 2); }

/* Sleeps since before the scene began. */
static void sleep_then_work(unsigned self) {
    bool woken = sleep_on(&the.semaphores[self]);
    if (end_of_sleep(self, woken))
        work_or_park(self);
}

/* Its jobs last until nobody else can do anything any more. Whoever sleeps then has nothing to do. */
static void toil(unsigned self) {
    sleep_on(&the.semaphores[MAX_ACTORS + self]);
    if (any_ready() && LOAD_SEQ(parked()) && (!anybody_dead() || the.repaired))
        fail("W1: worker %u is busy, another one sleeps with work ready and no post coming", self);
}

static void toil_or_park(unsigned self) {
    hands h = {.prefetch = 1};
    do
        while (claim_some(self, &h)) {
            toil(self);
            finish_job(h.from, self, &h.held[0]);
        }
    while (park(self));
}

/* Was about to sleep when what is there came. */
static void park_or_toil(unsigned self) {
    if (park(self))
        toil_or_park(self);
}

/* Sleeps since before the scene began. */
static void sleep_then_toil(unsigned self) {
    bool woken = sleep_on(&the.semaphores[self]);
    if (end_of_sleep(self, woken))
        toil_or_park(self);
}

static void look_once(unsigned self) {
    hands h = {.prefetch = 1};
    finish_all_of(self, &h, claim_some(self, &h));
}

/* Its wait ends by an error, or it is cancelled: it does not look again. */
static void give_up_or_work(unsigned self) {
    hands h = {.prefetch = 1};
    unsigned got = claim_some(self, &h);
    finish_all_of(self, &h, got);
    if (!got && park(self))
        pass_on(); /* give_up of receiver.c */
}

/* Gives back the first one, and wakes somebody. */
static void return_or_park(unsigned self) {
    hands h = {.prefetch = 1};
    if (claim_some(self, &h)) {
        return_job(h.from, self, &h.held[0]);
        wake(1);
    }
    work_or_park(self);
}

static void offer_and_tell(unsigned self) {
    workshop *w = &the.work[self];
    uint64_t first = w->writer.sequence;
    if (offer(w, FULL_SPIN))
        tell(w, first);
}

static void offer_and_tell_twice(unsigned self) {
    offer_and_tell(self);
    offer_and_tell(self);
}

static void offer_batch_and_tell(unsigned self) {
    workshop *w = &the.work[self];
    uint64_t first = w->writer.sequence;
    offer_batch(w, 2);
    tell(w, first);
}

static void offer_batch_and_one(unsigned self) {
    offer_batch_and_tell(self);
    offer_and_tell(self);
}

/* The supervisor, after a death: takes the dead's bits and claims away, and posts everybody, parked by the bits or not:
 * the dead may have cleared one and not yet posted. */
static void repair(unsigned self) {
    (void)self;
    for (unsigned a = 0; a < MAX_ACTORS; a++)
        if (is_dead(a)) {
            AND_SEQ(parked(), ~(1ull << a));
            reclaim(a);
        }
    for (unsigned a = 1; a < MAX_ACTORS; a++)
        post(a);
    the.repaired = true;
}

/* ---- set-ups ---- */

static void build_rings(void) { /* of actors 0 and 1, an event each */
    for (int i = 0; i < 2; i++)
        make_work(FAR, 104);
    the.target = FIRST_SEQUENCE + 1;
}

static void build_rings_busy(void) { /* two events on the second ring, and worker 3 sleeps */
    build_rings();
    for (int i = 0; i < 2; i++)
        offer(&the.work[1], FULL_GIVE_UP);
    the.work[1].publisher = 0;
    OR_SEQ(parked(), 1ull << 3);
}

static void build_batch(void) {
    build_small_work();
    the.target++;
}

/* The same, and worker 2 sleeps. What lowered `next` has woken worker 1, which is about to look. */
static void build_low_parked(void) {
    uint64_t count;
    build_small_work();
    offer_many(1);
    keep(3);
    work_reclaim(&the.work->view, 99, 1, &count);
    OR_SEQ(parked(), 1ull << 2);
}

/* Without a death nothing is left over. */
static void verify_parked(void) {
    if (!anybody_dead() && open_jobs())
        fail("W1: %llu events are left undone", (unsigned long long)open_jobs());
    verify_work();
}

#define PUBLISHER(program) {'P', "publisher", program, true, false}
#define WORKER(letter, program) {letter, "worker", program, true, false}
#define SUPERVISOR {'S', "supervisor", repair, true, true}

const scene chain_scenes[] = {
    {"work-park",
     "two workers park while two events are offered one by one, and one of the three may die",
     build_small_work,
     verify_parked,
     {PUBLISHER(offer_and_tell_twice), WORKER('A', work_or_park), WORKER('B', work_or_park), SUPERVISOR},
     {2, 1},
     {3, 2}},
    {"work-park-poll",
     "a worker looks once and goes away while another parks",
     build_small_work,
     verify_parked,
     {PUBLISHER(offer_and_tell_twice), WORKER('A', look_once), WORKER('B', work_or_park), SUPERVISOR},
     {2, 1},
     {4, 2}},
    {"work-park-low",
     "a woken worker finds nothing where `next` was lowered to, and goes away while another sleeps",
     build_low_parked,
     verify_parked,
     {PUBLISHER(offer_and_tell), WORKER('A', look_once), WORKER('B', sleep_then_work), WORKER('C', finish_kept)},
     {2, 1},
     {3, 2}},
    {"work-park-busy",
     "two workers park, and are busy with what they take for as long as anything else can happen",
     build_small_work,
     verify_parked,
     {PUBLISHER(offer_and_tell_twice), WORKER('A', toil_or_park), WORKER('B', toil_or_park), SUPERVISOR},
     {2, 1},
     {3, 2}},
    {"work-park-busy-rings",
     "one publisher's ring has two events, the other adds one; one worker looks, one is about to park, one sleeps",
     build_rings_busy,
     verify_parked,
     {PUBLISHER(offer_and_tell), WORKER('A', park_or_toil), WORKER('B', toil_or_park), WORKER('C', sleep_then_toil)},
     {2, 0},
     {3, 1}},
    {"work-park-nack",
     "a worker gives back what it took while another parks",
     build_small_work,
     verify_parked,
     {PUBLISHER(offer_and_tell_twice), WORKER('A', return_or_park), WORKER('B', work_or_park), SUPERVISOR},
     {2, 1},
     {3, 2}},
    {"work-park-end",
     "a woken worker ends its wait without a look, and passes the wake-up on",
     build_small_work,
     verify_parked,
     {PUBLISHER(offer_and_tell_twice), WORKER('A', give_up_or_work), WORKER('B', work_or_park), SUPERVISOR},
     {2, 1},
     {4, 2}},
    {"work-park-batch",
     "a batch of two and one more event, one worker prefetches two",
     build_batch,
     verify_parked,
     {PUBLISHER(offer_batch_and_one), WORKER('A', work_two_or_park), WORKER('B', work_or_park), SUPERVISOR},
     {2, 1},
     {3, 2}},
    {"work-park-rings",
     "two workers park on the rings of two publishers",
     build_rings,
     verify_parked,
     {PUBLISHER(offer_and_tell),
      {'Q', "publisher", offer_and_tell, true, false},
      WORKER('A', work_or_park),
      WORKER('B', work_or_park)},
     {2, 1},
     {3, 1}},
    {0},
};
