/* Scenes in which a reader joins a ring beside its publisher. */
#include "world.h"

/* A ring whose history fills it: the next event overwrites the oldest one. */
static void build_history(void) {
    make_source(0, FAR, BIG);
    for (int i = 0; i < 3; i++)
        publish(0, FULL_GIVE_UP);
    the.target = FIRST_SEQUENCE + 5;
}

/* The same with small records, several to an announced chunk. */
static void build_small_history(void) {
    make_source(0, FAR + 40, 101);
    for (int i = 0; i < 31; i++)
        publish(0, FULL_GIVE_UP);
    the.target = FIRST_SEQUENCE + 34;
}

static void build_second(void) {
    build_history();
    join(0, 0, false, false);
}

static void publish_to_target(unsigned self) {
    (void)self;
    while (the.sources[0].committed < the.target && publish(0, FULL_SPIN))
        ;
}

static void join_oldest(unsigned self) {
    join(self - 1, 0, false, true);
    watch_until(self - 1, the.target);
}

static void join_latest(unsigned self) {
    join(self - 1, 0, false, false);
    watch_until(self - 1, the.target);
}

static void join_lossy_oldest(unsigned self) {
    join(self - 1, 0, true, true);
    watch_until(self - 1, the.target);
}

static void join_lossy_latest(unsigned self) {
    join(self - 1, 0, true, false);
    watch_until(self - 1, the.target);
}

static void join_and_leave(unsigned self) {
    join(self - 1, 0, false, true);
    take(self - 1);
    the.watchers[self - 1].joined = false;
    ring_leave(&the.sources[0].view, self - 1);
}

/* A lossy reader that has not looked since the ring was full. */
static void build_sleeper(void) {
    make_source(0, FAR, BIG);
    join(0, 0, true, false);
    for (int i = 0; i < 3; i++)
        publish(0, FULL_GIVE_UP);
    the.target = FIRST_SEQUENCE + 5;
}

/* The same, overrun by now: it stands below `oldest`. */
static void build_overrun(void) {
    make_source(0, FAR, BIG);
    join(0, 0, true, false);
    for (int i = 0; i < 5; i++)
        publish(0, FULL_GIVE_UP);
    the.target = FIRST_SEQUENCE + 7;
}

/* Small records, several to an announced chunk, and padding at the end of the lap. */
static void build_small_sleeper(void) {
    make_source(0, FAR + 40, 101);
    join(0, 0, true, false);
    for (int i = 0; i < 31; i++)
        publish(0, FULL_GIVE_UP);
    the.target = FIRST_SEQUENCE + 34;
}

static void regate_and_watch(unsigned self) {
    regate(self - 1);
    watch_until(self - 1, the.target);
}

static void regate_later(unsigned self) {
    take(self - 1);
    regate_and_watch(self);
}

static void look_thrice(unsigned self) {
    (void)self;
    for (int i = 0; i < 3; i++)
        look_at_books(0);
}

/* A ring that its publisher leaves for another, in which the reader that holds it up is lossy. */
static void build_left(void) {
    make_source(0, FAR, BIG);
    make_source(1, FAR + 512, BIG);
    join(0, 0, false, false);
    join(1, 1, true, false);
    the.watchers[1].actor = the.watchers[0].actor;
    the.sources[1].publisher = the.sources[0].publisher;
    for (int i = 0; i < 3; i++)
        publish(0, FULL_GIVE_UP);
    the.target = FIRST_SEQUENCE + 4;
}

/* Full: it goes on in the other one. It writes the first no more, so what its reader reads in place stays. */
static void leave_behind(unsigned self) {
    (void)self;
    if (publish(0, FULL_GIVE_UP))
        return; /* the reader has woken */
    ring_ungate(&the.sources[0].view, 1u << 0);
    for (int i = 0; i < 5; i++)
        publish(1, FULL_SPIN);
}

static void wake_up(unsigned self) {
    (void)self;
    while (take(0))
        ;
    regate(1);
    while (take(1))
        ;
}

static void verify_left(void) {
    the.target = FIRST_SEQUENCE; /* what it leaves is not owed */
    verify_broadcast();
}

static void watch(unsigned self) { watch_until(self - 1, the.target); }

/* The supervisor takes the dead out; then the publisher has room again, if it lives. */
static void verify_join(void) {
    check_intent(0);
    for (unsigned i = 0; i < MAX_WATCHERS; i++)
        if (is_dead(i + 1)) {
            the.watchers[i].joined = false;
            ring_leave(&the.sources[0].view, i);
            if (!publish(0, FULL_GIVE_UP))
                fail("B2: the publisher has no room though the dead joiner is out");
        }
    verify_broadcast();
    if (!anybody_dead() && the.sources[0].committed != the.target)
        fail("W1: the publisher waits for nobody");
}

#define PUBLISHER {'P', "publisher", publish_to_target, true, false}
#define JOINER(program) {'J', "joiner", program, true, false}

const scene join_scenes[] = {
    {"join-oldest",
     "a reliable reader joins at the oldest event",
     build_history,
     verify_join,
     {PUBLISHER, JOINER(join_oldest)},
     {3, 1},
     {4, 2}},
    {"join-latest",
     "a reliable reader joins at the tail",
     build_history,
     verify_join,
     {PUBLISHER, JOINER(join_latest)},
     {3, 1},
     {4, 2}},
    {"join-lossy",
     "a lossy reader joins at the oldest event",
     build_history,
     verify_join,
     {PUBLISHER, JOINER(join_lossy_oldest)},
     {3, 1},
     {4, 2}},
    {"join-lossy-latest",
     "a lossy reader joins at the tail",
     build_history,
     verify_join,
     {PUBLISHER, JOINER(join_lossy_latest)},
     {3, 1},
     {4, 2}},
    {"join-small",
     "a reliable reader joins at the oldest of many small events",
     build_small_history,
     verify_join,
     {PUBLISHER, JOINER(join_oldest)},
     {2, 1},
     {3, 2}},
    {"join-leave",
     "a reliable reader joins and leaves",
     build_history,
     verify_join,
     {PUBLISHER, JOINER(join_and_leave)},
     {3, 1},
     {4, 2}},
    {"join-second",
     "a second reliable reader joins at the oldest event",
     build_second,
     verify_join,
     {PUBLISHER, {'R', "reader", watch, false, false}, JOINER(join_oldest)},
     {1, 0},
     {3, 1}},
    {"regate",
     "a lossy reader becomes reliable where it stands",
     build_sleeper,
     verify_join,
     {PUBLISHER, {'R', "reader", regate_and_watch, true, false}},
     {3, 1},
     {4, 2}},
    {"regate-later",
     "the same once it has taken an event, or lost some",
     build_sleeper,
     verify_join,
     {PUBLISHER, {'R', "reader", regate_later, true, false}},
     {3, 1},
     {4, 2}},
    {"regate-overrun",
     "a lossy reader that was overrun becomes reliable",
     build_overrun,
     verify_join,
     {PUBLISHER, {'R', "reader", regate_and_watch, true, false}},
     {3, 1},
     {4, 2}},
    {"regate-small",
     "the same among many small events",
     build_small_sleeper,
     verify_join,
     {PUBLISHER, {'R', "reader", regate_and_watch, true, false}},
     {2, 1},
     {3, 2}},
    {"regate-books",
     "the books while a reader becomes reliable",
     build_sleeper,
     verify_join,
     {PUBLISHER, {'R', "reader", regate_and_watch, false, false}, {'B', "books", look_thrice, false, false}},
     {1, -1},
     {2, -1}},
    {"left-behind",
     "a publisher leaves its ring, and a reader in the middle of it, for another",
     build_left,
     verify_left,
     {{'P', "publisher", leave_behind, true, false}, {'R', "reader", wake_up, true, false}},
     {3, 1},
     {4, 2}},
    {0},
};
