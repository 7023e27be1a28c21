/* Broadcast rings for the scenes: publishing, watching, and what must hold in the end. */
#include "world.h"

#include <string.h>

world the;

static unsigned char bodies[MAX_WATCHERS][1024], outgoing[2][4096];
static unsigned char *const lines = arena + 0x1c000; /* behind all rings */

/* ---- contents ---- */

static uint64_t content(uint64_t sequence, uint64_t index) {
    return (sequence + 1) * 0x9e3779b97f4a7c15ull + index * 0xff51afd7ed558ccdull;
}

void fill(unsigned char *body, uint32_t length, uint64_t sequence) {
    for (uint32_t at = 0; at < length; at += 8) {
        uint64_t value = content(sequence, at / 8);
        memcpy(body + at, &value, length - at < 8 ? length - at : 8);
    }
}

/* `shared`: in the ring, where the core's reliable readers load the body in place. The words before which another actor
 * may come between are accesses like any other; what lies between two of them is read at one go. */
bool body_is_whole(const void *body, uint32_t length, uint64_t sequence, bool shared) {
    const unsigned char *bytes = body;
    for (uint32_t at = 0; at < length; at += 8) {
        uint64_t value = content(sequence, at / 8), seen;
        if (shared && (at == 0 || (at + RECORD_HEADER) % 512 == 0))
            (void)LOAD_RELAXED((const word *)(bytes + at));
        if (length - at < 8)
            return memcmp(&value, bytes + at, length - at) == 0;
        memcpy(&seen, bytes + at, 8);
        if (seen != value)
            return false;
    }
    return true;
}

/* ---- set-up ---- */

void make_lines(void) {
    the.topic = (topic_line *)lines;
    the.group = (group_line *)(lines + LINE);
    the.semaphores = (word *)(lines + 2 * LINE);
    the.clock = &the.topic->reserved[0];
    name_region(lines, LINE, 0, "topic");
    name_region(lines + LINE, LINE, 0, "group");
    name_region(lines + 2 * LINE, LINE, 0, "semaphore");
}

void make_source(unsigned index, uint64_t start, uint32_t length) {
    static const char *const labels[] = {"ring", "ring2"};
    source *s = &the.sources[index];
    unsigned char *base = arena + index * 0x8000;
    uint64_t size = ring_size(CAPACITY);
    if (ring_format(base, size, CAPACITY, index + 1, FIRST_SEQUENCE, start) != RING_OK ||
        ring_open(&s->view, base, size, RING_BROADCAST) != RING_OK || ring_writer_open(&s->writer, &s->view) != RING_OK)
        fail("no ring");
    name_region(base, size, RING_BROADCAST, labels[index]);
    s->length = length;
    s->committed = FIRST_SEQUENCE;
    s->publisher = index;
    if (!the.topic)
        make_lines();
}

void open_watcher(unsigned index, unsigned source, unsigned slot, bool lossy) {
    watcher *w = &the.watchers[index];
    if (ring_reader_open(&w->reader, &the.sources[source].view, slot) != RING_OK)
        fail("watcher %u: its cursor is no boundary", index);
    *w = (watcher){.reader = w->reader, .source = &the.sources[source], .slot = slot, .lossy = lossy, .joined = true};
    w->actor = index + 1;
    w->first = w->reader.sequence;
}

void join(unsigned index, unsigned source, bool lossy, bool oldest) {
    if (ring_join(&the.sources[source].view, index, lossy, oldest) != RING_OK)
        fail("watcher %u cannot join a healthy ring", index);
    open_watcher(index, source, index, lossy);
}

/* ---- publishing ---- */

/* What gates at this moment, without an access that others could come before. */
static uint64_t peek_gate(const cursor_slot *s) {
    return *(const uint64_t *)(*(const uint64_t *)&s->lossy ? &s->position : &s->cursor);
}

/* B2, which must hold whenever a commit is visible. */
static void check_gates(const source *s) {
    uint64_t tail = *(uint64_t *)&s->view.header->tail;
    for (unsigned i = 0; i < MAX_WATCHERS; i++) {
        const watcher *w = &the.watchers[i];
        uint64_t cursor = w->joined ? peek_gate(slot_of(&s->view, w->slot)) : 0;
        if (w->joined && w->source == s && !w->lossy && tail - cursor > s->view.capacity)
            fail("B2: tail %llu overtakes the cursor %llu of watcher %u", (unsigned long long)tail,
                 (unsigned long long)cursor, i);
    }
}

/* Announces the need, looks again, and sleeps until a consumer posts: what the publisher's slow path does. */
static int wait_for_room(source *s, unsigned self) {
    ring_header *h = s->view.header;
    STORE_SEQ(&h->need, ring_need(&s->writer, s->length));
    the.raised++;
    STORE_SEQ(&h->waiting, 1); /* SYNC room */
    int status = ring_reserve(&s->writer, s->length);
    if (status == RING_FULL && !sleep_on(&the.semaphores[self])) {
        the.asleep |= 1u << self;
        return RING_FULL;
    }
    return status == RING_FULL ? RING_EMPTY : status;
}

void stop_waiting(ring_header *h) {
    STORE_SEQ(&h->need, 0);
    STORE_SEQ(&h->waiting, 0);
}

static bool make_room(unsigned index, enum when_full how) {
    source *s = &the.sources[index];
    bool waited = false;
    for (;;) {
        unsigned long before = moment();
        int status = ring_reserve(&s->writer, s->length);
        if (status == RING_FULL && how == FULL_WAIT) {
            status = wait_for_room(s, index);
            waited = true;
        }
        if (status == RING_OK) {
            if (waited)
                stop_waiting(s->view.header);
            return true;
        }
        if (status == RING_CORRUPT)
            fail("the publisher finds a healthy ring corrupt");
        if (status == RING_FULL && how == FULL_REFUSE) {
            ring_refuse(&s->view, s->writer.sequence, 1, 7);
            s->refused++;
        }
        if (status == RING_FULL && (how != FULL_SPIN || !spin(before)))
            return false;
    }
}

static void write_one(unsigned index) {
    source *s = &the.sources[index];
    fill(outgoing[index], s->length, s->writer.sequence);
    part p = {.payload = outgoing[index], .payload_length = s->length, .time_ns = s->writer.sequence};
    ring_write(&s->writer, &p);
}

bool publish(unsigned index, enum when_full how) {
    source *s = &the.sources[index];
    if (!make_room(index, how))
        return false;
    write_one(index);
    ring_commit(&s->writer);
    s->committed = s->writer.sequence;
    check_gates(s);
    return true;
}

/* One commit for all, as publish_many does. */
void publish_batch(unsigned index, unsigned count) {
    source *s = &the.sources[index];
    while (count-- && make_room(index, FULL_SPIN))
        write_one(index);
    ring_commit(&s->writer);
    s->committed = s->writer.sequence;
    check_gates(s);
}

/* As many rows at once as there is room for, one commit for all, as publish_array does. */
void publish_rows(unsigned index, unsigned count) {
    source *s = &the.sources[index];
    while (count && make_room(index, FULL_SPIN)) {
        uint64_t some = ring_rows(&s->writer, s->length);
        some = some < count ? some : count;
        if (some * s->length > sizeof(outgoing[index]))
            some = sizeof(outgoing[index]) / s->length;
        for (uint64_t i = 0; i < some; i++)
            fill(outgoing[index] + i * s->length, s->length, s->writer.sequence + i);
        part p = {.payload = outgoing[index], .payload_length = s->length, .time_ns = s->writer.sequence};
        ring_write_rows(&s->writer, &p, some);
        count -= (unsigned)some;
    }
    ring_commit(&s->writer);
    s->committed = s->writer.sequence;
    check_gates(s);
}

/* ---- watching ---- */

void post(unsigned actor) { ADD_SEQ(&the.semaphores[actor], 1); }

static void settle(watcher *w) {
    if (!ring_settle(&w->reader))
        return;
    if (the.raised-- == 0)
        fail("W1: two posts for one wait");
    post(0);
}

static bool overrun(watcher *w) {
    ring_overrun(&w->reader, 9);
    w->lost += w->reader.lost_last - w->reader.lost_first + 1;
    return true;
}

static bool check_whole(const watcher *w, const record *r, const void *body, bool shared) {
    if (r->length != w->source->length || !body_is_whole(body, r->length, r->sequence, shared))
        fail("B1: event %llu is not whole", (unsigned long long)r->sequence);
    return true;
}

/* Takes the next event, or books a loss; false when there is nothing. */
bool take(unsigned index) {
    watcher *w = &the.watchers[index];
    record r;
    uint64_t newest = w->source->committed; /* before it looks */
    int status = ring_peek(&w->reader, &r);
    if (status == RING_OK && w->lossy) {
        status = ring_copy(&w->reader, &r, bodies[index]);
        if (status == RING_OK)
            check_whole(w, &r, bodies[index], false);
    } else if (status == RING_OK)
        check_whole(w, &r, r.body, true);
    if (status == RING_OVERRUN)
        return overrun(w);
    if (status == RING_CORRUPT)
        fail("watcher %u finds a healthy ring corrupt", index);
    if (status == RING_EMPTY) {
        settle(w);
        return false;
    }
    if (w->passing) {
        uint64_t from = w->reader.sequence;
        ring_supersede(&w->reader, &r, 9);
        w->lost += r.sequence + 1 - from;
        settle(w);
        return true;
    }
    if (w->reader.latest) {
        if (r.sequence + 1 < newest)
            fail("L: event %llu is not the newest, %llu", (unsigned long long)r.sequence,
                 (unsigned long long)newest - 1);
        uint64_t skipped = r.sequence - w->reader.sequence;
        ring_skip(&w->reader, &r, 9);
        w->lost += skipped;
    }
    if (r.sequence != w->first + w->delivered + w->lost + w->undecodable)
        fail("B4: watcher %u got event %llu out of order", index, (unsigned long long)r.sequence);
    ring_advance(&w->reader, &r);
    w->delivered++;
    if (w->reader.position - w->reader.settled > CAPACITY / 4)
        settle(w);
    return true;
}

/* Takes a run in place, as an array shows it: looked at when it is handed out and again before it is consumed. */
bool take_run(unsigned index, unsigned most) {
    watcher *w = &the.watchers[index];
    record r;
    row_run run;
    int status = ring_peek(&w->reader, &r);
    if (status == RING_EMPTY) {
        settle(w);
        return false;
    }
    if (status != RING_OK || ring_run(&w->reader, &r, most, &run) != RING_OK)
        fail("watcher %u finds a healthy ring corrupt", index);
    if (run.count > most || run.sequence != w->first + w->delivered)
        fail("B4: watcher %u got a run of %llu from event %llu", index, (unsigned long long)run.count,
             (unsigned long long)run.sequence);
    for (uint64_t i = 0; i < 2 * run.count; i++) {
        uint64_t row = i % run.count;
        if (r.length != w->source->length || run_time(&run, row) != run.sequence + row ||
            !body_is_whole(run.payload + row * run.stride, r.length, run.sequence + row, true))
            fail("B1: event %llu is not whole in its run", (unsigned long long)(run.sequence + row));
    }
    ring_advance_run(&w->reader, &run);
    w->delivered += run.count;
    if (w->reader.position - w->reader.settled > CAPACITY / 4)
        settle(w);
    return true;
}

/* Takes what is there as an event that does not decode. */
void take_undecodable(unsigned index) {
    watcher *w = &the.watchers[index];
    record r;
    int status = ring_peek(&w->reader, &r);
    if (status == RING_OVERRUN)
        overrun(w);
    if (status == RING_OK) {
        ring_undecodable(&w->reader, &r, 11);
        w->undecodable++;
    }
}

void watch_until(unsigned index, uint64_t sequence) {
    watcher *w = &the.watchers[index];
    while (w->reader.sequence < sequence) {
        unsigned long before = moment();
        if (!take(index) && !spin(before))
            return;
    }
}

/* Becomes reliable; what it lost before is lost, and from here on it loses nothing. */
void regate(unsigned index) {
    watcher *w = &the.watchers[index];
    int status = ring_regate(&w->reader);
    if (status == RING_OVERRUN)
        overrun(w);
    else if (status != RING_OK)
        fail("watcher %u cannot become reliable in a healthy ring", index);
    w->lossy = false;
    w->regated = true;
}

/* Reads the books as stats() does, beside everything that goes on. */
void look_at_books(unsigned index) {
    const watcher *w = &the.watchers[index];
    ring_terms t;
    if (ring_terms_of(&w->source->view, w->slot, &t) != RING_OK)
        fail("books: those of watcher %u on a healthy ring cannot be read", index);
    if (t.offered < t.refused || t.offered != t.delivered + t.depth + t.overrun + t.refused + t.undecodable)
        fail("books: the sum is not exact while others run");
    uint64_t most = the.target - w->first + t.refused;
    if (t.offered > most || t.delivered > most || t.depth > most || t.overrun > most)
        fail("books: offered %llu, delivered %llu, depth %llu, overrun %llu of at most %llu events",
             (unsigned long long)t.offered, (unsigned long long)t.delivered, (unsigned long long)t.depth,
             (unsigned long long)t.overrun, (unsigned long long)most);
}

/* ---- what must hold in the end ---- */

/* A publisher that is not in the middle of announcing has announced nothing that a reliable reader may still need. */
void check_intent(unsigned index) {
    const source *s = &the.sources[index];
    uint64_t intent = LOAD_SEQ(&s->view.header->intent);
    for (unsigned i = 0; i < MAX_WATCHERS && !is_dead(s->publisher); i++) {
        const watcher *w = &the.watchers[i];
        if (w->joined && w->source == s && !w->lossy && intent > gate_at(slot_of(&s->view, w->slot)) + CAPACITY)
            fail("B2: intent %llu is beyond the gate of watcher %u", (unsigned long long)intent, i);
    }
}

/* Walks [oldest, tail]: B1, F. Returns the sequence at the tail. */
static uint64_t walk(const source *s) {
    const ring_header *h = s->view.header;
    uint64_t at = LOAD_SEQ(&h->oldest), tail = LOAD_SEQ(&h->tail), expected, frontier;
    if (at > tail || tail - at > CAPACITY || LOAD_SEQ(&h->intent) > at + CAPACITY || LOAD_SEQ(&h->intent) <= tail)
        fail("B1: oldest %llu, tail %llu, intent %llu", (unsigned long long)at, (unsigned long long)tail,
             (unsigned long long)LOAD_SEQ(&h->intent));
    ring_sequence_at(&s->view, at, &expected);
    for (record r; at < tail; at = r.end) {
        unsigned kind;
        if (record_header(&s->view, at, tail, &r, &kind) != RING_OK || r.sequence != expected)
            fail("B1: no whole record at %llu, or F: not event %llu", (unsigned long long)at,
                 (unsigned long long)expected);
        expected += kind == RECORD_EVENT;
        if (kind == RECORD_EVENT && !body_is_whole(r.body, r.length, r.sequence, true))
            fail("B1: event %llu is not whole", (unsigned long long)r.sequence);
    }
    ring_sequence_at(&s->view, tail, &frontier);
    if (frontier != expected)
        fail("F: the frontier says %llu, not %llu", (unsigned long long)frontier, (unsigned long long)expected);
    return expected;
}

/* B3: a reliable subscriber that joins now reads everything from `oldest` on. */
static void read_afresh(const source *s, uint64_t end) {
    ring_reader r;
    record got;
    if (ring_join(&s->view, FRESH_SLOT, false, true) != RING_OK ||
        ring_reader_open(&r, &s->view, FRESH_SLOT) != RING_OK)
        fail("B3: nobody can join any more");
    while (ring_peek(&r, &got) == RING_OK)
        ring_advance(&r, &got);
    if (r.sequence != end)
        fail("B3: a fresh reader stops before event %llu of %llu", (unsigned long long)r.sequence,
             (unsigned long long)end);
}

/* Its publisher, killed between its tail store and our note of it, it may be one ahead
 * of `committed`. */
static void verify_source(unsigned index) {
    const source *s = &the.sources[index];
    check_intent(index);
    uint64_t end = walk(s);
    if (end < s->committed || end > s->writer.sequence || (!is_dead(s->publisher) && end != s->committed))
        fail("the ring ends before event %llu, the publisher before %llu", (unsigned long long)end,
             (unsigned long long)s->committed);
    read_afresh(s, end);
}

/* Compares a watcher's books with what it saw. */
static void verify_watcher(unsigned index) {
    const watcher *w = &the.watchers[index];
    ring_terms t;
    uint64_t end, refused;
    if (!w->joined)
        return;
    refused = LOAD_SEQ(&w->source->view.header->refused);
    if (ring_terms_of(&w->source->view, w->slot, &t) != RING_OK)
        fail("books: those of watcher %u cannot be read", index);
    ring_sequence_at(&w->source->view, LOAD_SEQ(&w->source->view.header->tail), &end);
    if (t.offered != t.delivered + t.depth + t.overrun + t.refused + t.undecodable || t.refused > refused ||
        t.offered - t.refused != end - w->first)
        fail("books: watcher %u was offered %llu, %llu of them refused", index, (unsigned long long)t.offered,
             (unsigned long long)t.refused);
    uint64_t ahead =
        t.delivered - w->delivered; /* a reader that is no longer lossy stores another word after its cursor */
    bool exact = ahead <= (w->regated && is_dead(w->actor) ? 1 : 0) &&
                 t.undecodable - w->undecodable <= (is_dead(w->actor) ? 1 : 0);
    bool losses = t.overrun == (w->regated ? w->lost : 0);
    if (w->lossy)
        losses = t.overrun >= w->lost && t.overrun - w->lost <= end - w->first;
    if (!exact || !losses)
        fail("books: watcher %u got %llu (said %llu), lost %llu (%llu), undecodable %llu (%llu)", index,
             (unsigned long long)w->delivered, (unsigned long long)t.delivered, (unsigned long long)w->lost,
             (unsigned long long)t.overrun, (unsigned long long)w->undecodable, (unsigned long long)t.undecodable);
    if (!anybody_dead() && w->reader.sequence < the.target && t.depth && !the.asleep)
        fail("W1: watcher %u stopped with %llu events unread", index, (unsigned long long)t.depth);
}

void verify_broadcast(void) {
    for (unsigned i = 0; i < 2; i++)
        if (the.sources[i].length)
            verify_source(i);
    for (unsigned i = 0; i < MAX_WATCHERS; i++)
        verify_watcher(i);
}
