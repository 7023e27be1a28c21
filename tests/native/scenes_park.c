/* Scenes in which consumers park and publishers wake them: the protocol of the topic line's `parked`, written here as
 * the Python layer performs it on the same words.
 *
 *   park   set the bit, look at the rings again, sleep
 *   wake   after the tail: load the bitmap, clear bit by bit; whoever cleared one posts
 *   unpark clear the own bit; it was clear already: a post is coming, take it */
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

static void unpark(unsigned self) {
    if (!(AND_SEQ(parked(), ~(1ull << self)) & (1ull << self)))
        sleep_on(&the.semaphores[self]);
}

/* False: nobody will ever post. In a bus that lost somebody the sleep is over after a second, and the supervisor wakes
 * all; in one that did not, nothing may be unread. */
static bool park(unsigned self) {
    OR_SEQ(parked(), 1ull << self); /* SYNC park */
    if (unread(self)) {
        unpark(self);
        return true;
    }
    if (sleep_on(&the.semaphores[self]))
        return true;
    bool left = unread(self);
    if (left && !anybody_dead())
        fail("W1: %c sleeps with an event unread and no post coming", 'A' + (int)self);
    if (left)
        AND_SEQ(parked(), ~(1ull << self));
    return left;
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

/* Without a death nobody is left asleep, no bit set, and no post pending. */
static void verify_park(void) {
    verify_broadcast();
    for (unsigned a = 0; a < MAX_ACTORS && !anybody_dead(); a++)
        if (LOAD_SEQ(&the.semaphores[a]))
            fail("W1: a post to actor %u was never taken", a);
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
     {3, 2},
     {6, 4}},
    {"park-again",
     "a reader parks and is woken twice",
     build_two_events,
     verify_park,
     {PUBLISHER(publish_two_and_wake), SLEEPER('B')},
     {3, 2},
     {6, 4}},
    {"park-two",
     "two readers park while an event is published",
     build_two_sleepers,
     verify_park,
     {PUBLISHER(publish_and_wake), SLEEPER('B'), SLEEPER('C')},
     {2, 1},
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
