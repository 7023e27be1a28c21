/* Scenes on rows: runs of a broadcast ring in place, and records that are written many at once. */
#include "world.h"

#define ROW 360u /* bytes of a body: ten records of 384 bytes and padding fill a ring */

static void build(uint64_t start, uint32_t length, unsigned events, bool lossy) {
    make_source(0, start, length);
    join(0, 0, lossy, false);
    publish_batch(0, events);
}

/* Unread rows up to where one more finds no room: of 512 bytes, eight of which fill a ring but for the frontier. */
static void build_full(void) {
    build(FAR, 488, 6, false);
    the.target = FIRST_SEQUENCE + 10;
}

/* Runs end with the lap, exactly and before padding. */
static void build_lap(void) {
    build(FAR + CAPACITY - 3 * 128, 104, 3, false);
    the.target = FIRST_SEQUENCE + 7;
}

static void build_padding(void) {
    build(FAR + CAPACITY - 2 * 384 - 16, ROW, 1, false);
    the.target = FIRST_SEQUENCE + 5;
}

/* Short rows, four of which one announcement covers: a run is found by its first and its last, and cut by who takes three. */
static void build_run(void) {
    build(FAR, 40, 2, false);
    the.target = FIRST_SEQUENCE + 10;
}

static void build_lossy(void) {
    build(FAR, 232, 12, true); /* 256 bytes each, as many as one announcement goes further */
    the.target = FIRST_SEQUENCE + 18;
}

static void build_work(void) {
    make_work(FAR + CAPACITY - 2 * 384 - 16, ROW);
    offer_batch(the.work, 8);
    the.target = FIRST_SEQUENCE + 12;
}

static void publish_four(unsigned self) {
    (void)self;
    publish_rows(0, 4);
}

static void publish_six(unsigned self) {
    (void)self;
    publish_rows(0, 6);
}

static void publish_eight(unsigned self) {
    (void)self;
    publish_rows(0, 8);
}

static void offer_four(unsigned self) {
    (void)self;
    offer_rows(the.work, 4);
}

static void take_runs(unsigned self) {
    const watcher *w = &the.watchers[self - 1];
    while (w->reader.sequence < the.target) {
        unsigned long before = moment();
        if (!take_run(self - 1, 3) && !spin(before))
            return;
    }
}

/* Both kinds of access on one cursor. */
static void take_both(unsigned self) {
    const watcher *w = &the.watchers[self - 1];
    while (w->reader.sequence < the.target) {
        unsigned long before = moment();
        bool found = take_run(self - 1, 2);
        if (!(found ? take(self - 1) : found) && !spin(before))
            return;
    }
}

static void watch(unsigned self) { watch_until(self - 1, the.target); }

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

#define PUBLISHER(program) {'P', "publisher", program, true, false}
#define READER(program) {'R', "reader", program, true, false}

const scene row_scenes[] = {
    {"rows",
     "runs in place free the room that rows need",
     build_full,
     verify_broadcast,
     {PUBLISHER(publish_four), READER(take_runs)},
     {2, 1},
     {3, 2}},
    {"rows-run",
     "a run is as long as its first row says, and taken in parts",
     build_run,
     verify_broadcast,
     {PUBLISHER(publish_eight), READER(take_runs)},
     {2, 1},
     {3, 2}},
    {"rows-lap",
     "a run ends with the lap",
     build_lap,
     verify_broadcast,
     {PUBLISHER(publish_four), READER(take_runs)},
     {2, 1},
     {3, 2}},
    {"rows-padding",
     "a run ends before padding, and rows go on behind it",
     build_padding,
     verify_broadcast,
     {PUBLISHER(publish_four), READER(take_both)},
     {2, 1},
     {3, 2}},
    {"rows-lossy",
     "rows overrun a lossy reader",
     build_lossy,
     verify_broadcast,
     {PUBLISHER(publish_six), READER(watch)},
     {2, 1},
     {3, 2}},
    {"rows-work",
     "rows go to workers",
     build_work,
     verify_work,
     {PUBLISHER(offer_four), {'W', "worker", work, true, false}},
     {1, 0},
     {2, 1}},
    {0},
};
