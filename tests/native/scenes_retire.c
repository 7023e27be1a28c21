/* Scenes on rings whose publisher is gone: the holder of the bus lock trims them, frees pages and gives slots up, beside
 * those who still read. A freed page is one that reads as zeros from one access to the next, as the kernel has it. */
#include "world.h"

#include "retire.h"

#define TWO_PAGES (2 * CAPACITY) /* so that one can go while the other is read */

static void free_pages(const ring_view *view, const span *spans, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        word *words = (word *)((unsigned char *)view->header + spans[i].offset);
        begin_burst();
        for (uint64_t at = 0; at < spans[i].length / sizeof(word); at++)
            STORE_RELAXED(&words[at], 0);
        end_burst();
    }
}

/* ---- broadcast ---- */

static void make_wide_source(uint64_t start) {
    source *s = &the.sources[0];
    uint64_t size = ring_size(TWO_PAGES);
    if (ring_format(arena, size, TWO_PAGES, 1, FIRST_SEQUENCE, start) != RING_OK ||
        ring_open(&s->view, arena, size, RING_BROADCAST) != RING_OK ||
        ring_writer_open(&s->writer, &s->view) != RING_OK)
        fail("no ring");
    name_region(arena, size, RING_BROADCAST, "ring");
    s->length = BIG;
    s->committed = FIRST_SEQUENCE;
    make_lines();
}

static void publish_some(unsigned events) {
    while (events--)
        publish(0, FULL_GIVE_UP);
    the.target = the.sources[0].committed;
}

/* A reliable and a lossy reader have the end of one page to read, which can go then, and most of the other. */
static void build_trim(void) {
    make_wide_source(FAR + 2 * 1024);
    join(0, 0, false, false);
    join(1, 0, true, false);
    publish_some(5);
}

/* The frontier is alone on its page, and the other page has been read. */
static void build_frontier(void) {
    make_wide_source(FAR);
    join(0, 0, false, false);
    join(1, 0, true, false);
    publish_some(4);
}

/* All is read, and the history goes under somebody who keeps no cursor. */
static void build_trim_tap(void) {
    build_trim();
    while (take(0) | take(1))
        ;
}

/* A lossy reader that was overtaken stands on what was announced and never written. */
static void build_trim_lapped(void) {
    make_wide_source(FAR);
    join(0, 0, true, false);
    publish_some(9);
    for (int i = 0; i < 9; i++)
        publish(0, FULL_GIVE_UP);
    the.target = the.sources[0].committed;
}

static void sweep(unsigned self) {
    (void)self;
    span spans[SPARE_SPANS];
    const ring_view *view = &the.sources[0].view;
    for (int i = 0; i < 2; i++) {
        if (ring_trim(view) != RING_OK)
            fail("a healthy ring cannot be trimmed");
        free_pages(view, spans, ring_spare(view, spans));
    }
}

static void tap(unsigned self) {
    (void)self;
    static unsigned char body[1024];
    ring_reader r;
    record got;
    if (ring_tap_open(&r, &the.sources[0].view, true) != RING_OK)
        fail("a tap cannot open a healthy ring");
    for (int i = 0; i < 4; i++) {
        int status = ring_peek(&r, &got);
        if (status == RING_OK && (status = ring_copy(&r, &got, body)) == RING_OK) {
            if (got.length != BIG || !body_is_whole(body, BIG, got.sequence, false))
                fail("B1: the tap got event %llu in pieces", (unsigned long long)got.sequence);
            ring_advance(&r, &got);
        }
        if (status == RING_CORRUPT)
            fail("the tap finds a healthy ring corrupt");
    }
}

static void watch(unsigned self) { watch_until(self - 1, the.target); }

static void read_books(unsigned self) {
    (void)self;
    look_at_books(0);
}

/* R1: nobody lost anything, and whoever comes now reads on from `oldest`. */
static void verify_trimmed(void) {
    const source *s = &the.sources[0];
    for (unsigned i = 0; i < MAX_WATCHERS; i++) {
        const watcher *w = &the.watchers[i];
        ring_terms t;
        if (!w->joined)
            continue;
        if (ring_terms_of(&s->view, w->slot, &t) != RING_OK)
            fail("books: those of watcher %u cannot be read", i);
        if (t.offered != the.target - w->first || t.delivered != w->delivered || t.overrun < w->lost)
            fail("books: watcher %u got %llu of %llu, they say %llu", i, (unsigned long long)w->delivered,
                 (unsigned long long)t.offered, (unsigned long long)t.delivered);
        if (!is_dead(w->actor) && (t.depth || t.delivered + t.overrun != t.offered))
            fail("R1: watcher %u stopped with %llu events unread", i, (unsigned long long)t.depth);
        if (!is_dead(w->actor) && the.target - w->first <= 8 && t.overrun)
            fail("R1: %llu events of watcher %u went with their pages", (unsigned long long)t.overrun, i);
    }
    ring_reader r;
    record got;
    if (ring_join(&s->view, FRESH_SLOT, false, true) != RING_OK ||
        ring_reader_open(&r, &s->view, FRESH_SLOT) != RING_OK)
        fail("B3: nobody can join any more");
    while (ring_peek(&r, &got) == RING_OK)
        ring_advance(&r, &got);
    if (r.sequence != the.target)
        fail("B3: a fresh reader stops before event %llu", (unsigned long long)r.sequence);
}

/* ---- a slot to open or to give up ---- */

static void build_deal(void) {
    make_source(0, FAR, BIG);
    if (ring_join(&the.sources[0].view, 0, true, false) != RING_OK)
        fail("nobody can join");
    publish_some(3);
}

static void settle_if_unopened(void) {
    ring_owed owed;
    const ring_view *view = &the.sources[0].view;
    if (ring_owed_of(view, 1, &owed) != RING_OK)
        fail("a healthy ring owes nobody knows what");
    if (owed.unopened && !owed.attached && ring_give_up(view, 0))
        the.settled = true;
}

static void give_up(unsigned self) {
    (void)self;
    settle_if_unopened();
}

static void come(unsigned self) {
    ring_reader r;
    int status = ring_reader_open(&r, &the.sources[0].view, 0);
    the.lost = status == RING_LOST;
    if (status != RING_OK)
        return;
    the.opened = true;
    open_watcher(self - 1, 0, 0, true);
    watch_until(self - 1, the.target);
}

/* R2: what was settled was read by nobody, and what nobody has read is settled sooner or later. */
static void verify_deal(void) {
    if (!the.settled)
        settle_if_unopened(); /* the next sweep, if the last one died */
    if (the.settled && the.opened)
        fail("R2: the slot was opened and given up");
    if (!is_dead(1) && !the.settled && the.watchers[0].delivered != 3)
        fail("R2: the reader is owed %llu events and will not come",
             (unsigned long long)(3 - the.watchers[0].delivered));
    if (!anybody_dead() && the.lost != the.settled)
        fail("R2: the reader thinks that it was given up, and it was not");
}

/* ---- work ---- */

static void build_trim_work(void) {
    workshop *w = &the.work[0];
    uint64_t size = work_size(TWO_PAGES);
    if (work_format(arena, size, TWO_PAGES, 1, FIRST_SEQUENCE, FAR + 2 * 1024) != RING_OK ||
        ring_open(&w->view, arena, size, RING_WORK) != RING_OK || work_writer_open(&w->writer, &w->view) != RING_OK)
        fail("no ring");
    name_region(arena, size, RING_WORK, "work");
    the.shops = 1;
    w->length = BIG;
    w->committed = FIRST_SEQUENCE;
    for (unsigned i = 0; i < MAX_JOBS; i++)
        w->jobs[i].holder = NO_HOLDER;
    make_lines();
    offer_batch(w, 6);
}

static void sweep_work(unsigned self) {
    (void)self;
    span spans[SPARE_SPANS];
    const ring_view *view = &the.work[0].view;
    for (int i = 0; i < 2; i++) {
        free_pages(view, spans, work_spare(view, spans));
        work_trim(view);
    }
}

/* Takes two at a time, and is done with the second first. */
static void work_crosswise(unsigned self) {
    claim first, second;
    while (take_job(the.work, self, &first)) {
        if (take_job(the.work, self, &second))
            finish_job(the.work, self, &second);
        if (work_read(&the.work->view, &first) != RING_OK ||
            !body_is_whole(first.record.body, BIG, first.record.sequence, true))
            fail("R1: event %llu went while it was held", (unsigned long long)first.record.sequence);
        finish_job(the.work, self, &first);
    }
}

static void work_back(unsigned self) {
    claim c;
    if (take_job(the.work, self, &c))
        return_job(the.work, self, &c);
    work_crosswise(self);
}

#define SWEEPER(program) {'V', "sweeper", program, true, false}

const scene retire_scenes[] = {
    {"trim",
     "a retired ring is trimmed beside a reliable and a lossy reader",
     build_trim,
     verify_trimmed,
     {SWEEPER(sweep), {'R', "reader", watch, true, false}, {'L', "lossy reader", watch, true, false}},
     {2, 0},
     {3, 1}},
    {"trim-frontier",
     "the same where the frontier alone is left",
     build_frontier,
     verify_trimmed,
     {SWEEPER(sweep), {'R', "reader", watch, true, false}, {'L', "lossy reader", watch, true, false}},
     {2, 0},
     {3, 1}},
    {"trim-lapped",
     "the same beside a lossy reader that was overtaken before",
     build_trim_lapped,
     verify_trimmed,
     {SWEEPER(sweep), {'L', "lossy reader", watch, true, false}},
     {2, 1},
     {3, 2}},
    {"trim-books",
     "books are read while a retired ring is trimmed",
     build_trim,
     verify_trimmed,
     {SWEEPER(sweep),
      {'R', "reader", watch, true, false},
      {'L', "lossy reader", watch, true, false},
      {'O', "observer", read_books, false, false}},
     {1, 0},
     {2, 0}},
    {"trim-tap",
     "the history goes while a tap reads it",
     build_trim_tap,
     verify_trimmed,
     {SWEEPER(sweep), {'T', "tap", tap, false, false}},
     {2, 1},
     {3, 2}},
    {"give-up",
     "a slot is given up while its reader comes",
     build_deal,
     verify_deal,
     {SWEEPER(give_up), {'L', "lossy reader", come, true, false}},
     {3, 2},
     {4, 3}},
    {"trim-work",
     "a retired work ring gives way behind two workers",
     build_trim_work,
     verify_work,
     {SWEEPER(sweep_work), {'W', "worker", work_crosswise, true, false}, {'X', "worker", work_back, true, false}},
     {1, 0},
     {2, 1}},
    {0},
};
