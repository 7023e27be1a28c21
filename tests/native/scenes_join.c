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
    {0},
};
