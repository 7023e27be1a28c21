/* Scenes on the broadcast ring whose readers were there before. */
#include "world.h"

static void fill_ring(unsigned events) {
    while (events--)
        publish(0, FULL_GIVE_UP);
}

/* Three big records lie in the ring, unread: the next one fits once the first is gone. */
static void crowded(uint64_t start, bool lossy) {
    make_source(0, start, BIG);
    join(0, 0, lossy, false);
    fill_ring(3);
    the.target = FIRST_SEQUENCE + 5;
}

static void build_reliable(void) { crowded(FAR, false); }

static void build_refuse(void) {
    build_reliable();
    the.target++;
}

static void build_padding(void) { crowded(FAR + CAPACITY - 4 * 1024 - 16, false); }

static void build_lossy(void) { crowded(FAR, true); }

static void build_lapped(void) {
    crowded(FAR, true);
    the.target = FIRST_SEQUENCE + 8;
}

static void build_two(void) {
    make_source(0, FAR + 512, BIG);
    join(0, 0, false, false);
    join(1, 0, false, false);
    fill_ring(2);
    the.target = FIRST_SEQUENCE + 4;
}

static void build_mixed(void) {
    make_source(0, FAR, BIG);
    join(0, 0, false, false);
    join(1, 0, true, false);
    fill_ring(3);
    the.target = FIRST_SEQUENCE + 5;
}

/* Odd lengths, several to an announced chunk. */
static void build_small(void) {
    make_source(0, FAR + 40, 101);
    join(0, 0, true, false);
    fill_ring(30);
    the.target = FIRST_SEQUENCE + 33;
}

static void publish_two(unsigned self) {
    (void)self;
    if (publish(0, FULL_SPIN))
        publish(0, FULL_SPIN);
}

static void publish_three(unsigned self) {
    publish_two(self);
    publish(0, FULL_SPIN);
}

static void publish_five(unsigned self) {
    publish_three(self);
    publish_two(self);
}

static void wait_two(unsigned self) {
    (void)self;
    if (publish(0, FULL_WAIT))
        publish(0, FULL_WAIT);
}

static void refuse_three(unsigned self) {
    (void)self;
    for (int i = 0; i < 3; i++)
        publish(0, FULL_REFUSE);
}

static void watch(unsigned self) { watch_until(self - 1, the.target); }

static void watch_four(unsigned self) {
    for (int i = 0; i < 4; i++)
        take(self - 1);
}

static void look(unsigned self) {
    (void)self;
    look_at_books(0);
}

static void spoil(unsigned self) {
    for (int i = 0; i < 3; i++)
        take_undecodable(self - 1);
}

static void spoil_and_watch(unsigned self) {
    take(self - 1);
    take_undecodable(self - 1);
    watch(self);
}

static void verify_wait(void) {
    verify_broadcast();
    if (!anybody_dead() && the.sources[0].committed != the.target)
        fail("W1: the publisher sleeps with room in the ring");
}

static void verify_refused(void) {
    uint64_t refused = LOAD_SEQ(&the.sources[0].view.header->refused);
    the.target = FIRST_SEQUENCE; /* what the reader leaves is not owed */
    verify_broadcast();
    if (refused - the.sources[0].refused > (is_dead(0) ? 1 : 0))
        fail("books: %llu refused, the publisher counted %llu", (unsigned long long)refused,
             (unsigned long long)the.sources[0].refused);
}

static void verify_spoilt(void) {
    the.target = FIRST_SEQUENCE;
    verify_broadcast();
}

/* ---- taps and batches ---- */

static void tap(unsigned self) {
    (void)self;
    static unsigned char body[1024];
    const source *s = &the.sources[0];
    ring_reader r;
    record got;
    if (ring_tap_open(&r, &s->view, true) != RING_OK)
        fail("a tap cannot open a healthy ring");
    for (int i = 0; i < 4; i++) {
        int status = ring_peek(&r, &got);
        if (status == RING_OK && (status = ring_copy(&r, &got, body)) == RING_OK) {
            if (got.length != s->length || !body_is_whole(body, got.length, got.sequence, false))
                fail("B1: the tap got event %llu in pieces", (unsigned long long)got.sequence);
            ring_advance(&r, &got);
        }
        if (status == RING_CORRUPT)
            fail("the tap finds a healthy ring corrupt");
    }
}

static void build_batch(void) {
    make_source(0, FAR, BIG);
    join(0, 0, true, false);
    fill_ring(1);
    the.target = FIRST_SEQUENCE + 7;
}

static void build_latest(void) {
    crowded(FAR, true);
    the.watchers[0].reader.latest = true;
}

static void build_latest_passing(void) {
    build_latest();
    the.watchers[0].passing = true;
}

static void build_latest_lapped(void) {
    build_lapped();
    the.watchers[0].reader.latest = true;
}

/* A lap later other words lie where the newest record began. */
static void build_latest_odd(void) {
    make_source(0, FAR + 512, 700);
    join(0, 0, true, false);
    fill_ring(3);
    the.target = FIRST_SEQUENCE + 8;
    the.watchers[0].reader.latest = true;
}

static void build_latest_batch(void) {
    build_batch();
    the.watchers[0].reader.latest = true;
}

static void publish_batch_of_six(unsigned self) {
    (void)self;
    publish_batch(0, 6);
}

static void join_in_batch(unsigned self) {
    join(self - 1, 0, false, true);
    watch(self);
}

#define PUBLISHER(program) {'P', "publisher", program, true, false}
#define READER(program) {'R', "reader", program, true, false}

const scene ring_scenes[] = {
    {"reliable",
     "a reliable reader frees the room that the publisher needs",
     build_reliable,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch)},
     {3, 1},
     {4, 2}},
    {"padding",
     "the same where a record leaves too little room for padding with a header",
     build_padding,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch)},
     {3, 1},
     {4, 2}},
    {"lossy",
     "the publisher overruns a lossy reader",
     build_lossy,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch)},
     {3, 1},
     {4, 2}},
    {"lapped",
     "the publisher overtakes a lossy reader by more than a lap",
     build_lapped,
     verify_broadcast,
     {PUBLISHER(publish_five), READER(watch)},
     {2, 0},
     {3, 2}},
    {"latest",
     "a reader of the newest event skips what came before",
     build_latest,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch), {'O', "observer", look, false, false}},
     {1, 1},
     {3, 1}},
    {"latest-passing",
     "a reader of the newest event passes over a ring whose publisher went on in another one",
     build_latest_passing,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch), {'O', "observer", look, false, false}},
     {1, 1},
     {3, 1}},
    {"latest-lapped",
     "the publisher laps a reader of the newest event",
     build_latest_lapped,
     verify_broadcast,
     {PUBLISHER(publish_five), READER(watch)},
     {2, 1},
     {3, 2}},
    {"latest-odd",
     "the same, and the records of the next lap begin elsewhere",
     build_latest_odd,
     verify_broadcast,
     {PUBLISHER(publish_five), READER(watch)},
     {2, 1},
     {3, 2}},
    {"latest-batch",
     "a reader of the newest event beside a batch that is longer than the ring",
     build_latest_batch,
     verify_broadcast,
     {PUBLISHER(publish_batch_of_six), READER(watch)},
     {2, 1},
     {3, 2}},
    {"small",
     "a lossy reader is overrun by chunks of small records",
     build_small,
     verify_broadcast,
     {PUBLISHER(publish_three), READER(watch)},
     {2, 1},
     {3, 2}},
    {"two-readers",
     "the slower of two reliable readers gates",
     build_two,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch), {'S', "reader", watch, true, false}},
     {1, 0},
     {3, 1}},
    {"mixed",
     "a reliable and a lossy reader",
     build_mixed,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch), {'L', "lossy reader", watch, true, false}},
     {1, 0},
     {3, 1}},
    {"wait",
     "a publisher sleeps until a reader frees room",
     build_reliable,
     verify_wait,
     {PUBLISHER(wait_two), READER(watch)},
     {3, 1},
     {4, 2}},
    {"wait-two",
     "a publisher sleeps until the slower of two readers frees room",
     build_two,
     verify_wait,
     {PUBLISHER(wait_two), READER(watch), {'S', "reader", watch, true, false}},
     {1, 0},
     {3, 1}},
    {"refuse",
     "a publisher counts what finds no room",
     build_refuse,
     verify_refused,
     {PUBLISHER(refuse_three), READER(watch_four), {'O', "observer", look, false, false}},
     {2, 1},
     {3, 2}},
    {"spoilt",
     "a reader books three events that do not decode",
     build_reliable,
     verify_spoilt,
     {PUBLISHER(publish_two), READER(spoil), {'O', "observer", look, false, false}},
     {1, 1},
     {3, 1}},
    {"lossy-books",
     "a lossy reader books losses of both kinds",
     build_lossy,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(spoil_and_watch), {'O', "observer", look, false, false}},
     {1, 1},
     {3, 1}},
    {"books",
     "stats are read while a reliable reader and the publisher go on",
     build_reliable,
     verify_broadcast,
     {PUBLISHER(publish_two), READER(watch), {'O', "observer", look, false, false}},
     {2, 0},
     {3, 1}},
    {"tap",
     "a tap reads beside the publisher",
     build_lossy,
     verify_spoilt,
     {PUBLISHER(publish_two), {'T', "tap", tap, false, false}},
     {3, 1},
     {4, 2}},
    {"batch",
     "one batch is longer than the ring",
     build_batch,
     verify_broadcast,
     {PUBLISHER(publish_batch_of_six), READER(watch)},
     {2, 1},
     {3, 2}},
    {"batch-join",
     "a reader joins during a batch that is longer than the ring",
     build_batch,
     verify_broadcast,
     {PUBLISHER(publish_batch_of_six), READER(watch), {'J', "joiner", join_in_batch, true, false}},
     {1, 0},
     {2, 1}},
    {0},
};
