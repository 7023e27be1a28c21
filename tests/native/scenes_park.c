/* Scenes in which consumers park and publishers wake them: the protocol of the topic line's `parked`, written here as
 * the Python layer performs it on the same words.
 *
 *   park   take the posts of earlier parks, set the bit, look at the rings again, sleep, clear the bit
 *   wake   after the tail: load the bitmap, clear bit by bit; whoever cleared one posts */
#include "world.h"

static word *parked(void) { return &the.topic->parked; }

static bool unread(unsigned self) {
    for (unsigned i = 0; i < MAX_WATCHERS; i++) {
        watcher *w = &the.watchers[i];
        if (w->joined && w->actor == self && LOAD_ACQUIRE(&w->source->view.header->tail) != w->reader.position)
            return true;
    }
    return false;
}

static void wake_all(void) {
    uint64_t bits = LOAD_SEQ(parked()); /* SYNC park */
    for (; bits; bits &= bits - 1) {
        uint64_t bit = bits & (~bits + 1);
        if (AND_SEQ(parked(), ~bit) & bit)
            post((unsigned)__builtin_ctzll(bit));
    }
}

static void publish_and_wake(unsigned self) {
    if (publish(self, FULL_GIVE_UP))
        wake_all();
}

static void publish_two_and_wake(unsigned self) {
    publish_and_wake(self);
    publish_and_wake(self);
}

/* False: nobody will ever post. In a bus that lost somebody the sleep is over after a second, and the supervisor wakes
 * all; in one that did not, nothing may be unread. */
static bool park(unsigned self) {
    uint64_t bit = 1ull << self;
    AND_SEQ(&the.semaphores[self], 0);
    OR_SEQ(parked(), bit); /* SYNC park */
    bool woken = unread(self) || sleep_on(&the.semaphores[self]);
    AND_SEQ(parked(), ~bit);
    if (woken)
        return true;
    if (unread(self) && !anybody_dead())
        fail("W1: actor %u sleeps with an event unread and no post coming", self);
    return unread(self);
}

static bool finished(unsigned self) {
    for (unsigned i = 0; i < MAX_WATCHERS; i++)
        if (the.watchers[i].joined && the.watchers[i].actor == self && the.watchers[i].reader.sequence < the.target)
            return false;
    return true;
}

static void sleeper(unsigned self) {
    while (!finished(self)) {
        bool any = false;
        for (unsigned i = 0; i < MAX_WATCHERS; i++)
            if (the.watchers[i].joined && the.watchers[i].actor == self)
                any = take(i) || any;
        if (!any && !park(self))
            return;
    }
}

/* Without a death no bit is left set. A post that came too late may be: it only ends the next sleep early. */
static void verify_park(void) {
    verify_broadcast();
    if (!anybody_dead() && LOAD_SEQ(parked()))
        fail("W1: a bit is left set");
}

static void build_one(void) {
    make_source(0, FAR, 104);
    join(0, 0, false, false);
    the.target = FIRST_SEQUENCE + 1;
}

static void build_two_events(void) {
    build_one();
    the.target = FIRST_SEQUENCE + 2;
}

static void build_two_sleepers(void) {
    build_one();
    join(1, 0, false, false);
}

static void build_two_publishers(void) {
    build_one();
    make_source(1, FAR, 104);
    join(1, 1, false, false);
    the.watchers[0].actor = the.watchers[1].actor = 2;
}

#define PUBLISHER(program) {'P', "publisher", program, true, false}
#define SLEEPER(letter) {letter, "sleeper", sleeper, true, false}

const scene park_scenes[] = {
    {"park",
     "a reader parks while an event is published",
     build_one,
     verify_park,
     {PUBLISHER(publish_and_wake), SLEEPER('B')},
     {4, 2},
     {6, 4}},
    {"park-again",
     "a reader parks and is woken twice",
     build_two_events,
     verify_park,
     {PUBLISHER(publish_two_and_wake), SLEEPER('B')},
     {4, 2},
     {6, 4}},
    {"park-two",
     "two readers park while an event is published",
     build_two_sleepers,
     verify_park,
     {PUBLISHER(publish_and_wake), SLEEPER('B'), SLEEPER('C')},
     {3, 1},
     {4, 2}},
    {"park-two-publishers",
     "one reader parks on the rings of two publishers",
     build_two_publishers,
     verify_park,
     {PUBLISHER(publish_and_wake), {'Q', "publisher", publish_and_wake, true, false}, SLEEPER('C')},
     {2, 1},
     {4, 2}},
    {0},
};
