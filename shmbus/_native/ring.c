/* Broadcast ring, the publisher's side: layout, records, publishing, joining. See ring.h for what must hold. */
#include "ring.h"

#include <string.h>

/* ---- layout ---- */

static bool power_of_two(uint64_t value) { return value && !(value & (value - 1)); }

static uint64_t page_round(uint64_t bytes) { return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1); }

static bool capacity_ok(uint64_t capacity) {
    return power_of_two(capacity) && capacity >= MIN_CAPACITY && capacity <= MAX_CAPACITY;
}

uint64_t ring_size(uint64_t capacity) { return capacity_ok(capacity) ? sizeof(broadcast_segment) + capacity : 0; }

/* Counters may start anywhere (`first_sequence`, `start`), so that a test reaches what takes a year otherwise. */
int ring_format(void *base, uint64_t size, uint64_t capacity, uint64_t ring_id, uint64_t first_sequence,
                uint64_t start) {
    if (!capacity_ok(capacity) || size < ring_size(capacity) || start % RECORD_ALIGN)
        return RING_CORRUPT;
    ring_header *h = base;
    memset(base, 0, sizeof(broadcast_segment));
    h->layout_version = LAYOUT_VERSION;
    h->kind = RING_BROADCAST;
    h->capacity = capacity;
    h->slots = MAX_SUBSCRIBERS;
    h->ring_id = ring_id;
    ring_view view = {h, (unsigned char *)base + sizeof(broadcast_segment), capacity, MAX_SUBSCRIBERS};
    STORE_RELAXED(word_at(&view, start), first_sequence); /* F: the frontier */
    STORE_RELAXED(&h->oldest, start);
    STORE_RELAXED(&h->intent, start + RECORD_ALIGN);
    STORE_RELAXED(&h->tail, start);
    STORE_RELAXED(&h->position, start);
    h->magic = RING_MAGIC;
    return RING_OK;
}

int ring_open(ring_view *view, void *base, uint64_t size, uint32_t kind) {
    const ring_header *h = base;
    if (size < PAGE || h->magic != RING_MAGIC || h->layout_version != LAYOUT_VERSION)
        return RING_FOREIGN;
    uint64_t capacity = h->capacity, slots = h->slots;
    if (h->kind != kind || !capacity_ok(capacity))
        return RING_CORRUPT;
    uint64_t data = sizeof(broadcast_segment);
    if (kind == RING_WORK)
        data = page_round(PAGE + WORK_TABLES(capacity));
    if (slots != (kind == RING_WORK ? WORK_DESCRIPTORS(capacity) : MAX_SUBSCRIBERS) || size < data + capacity)
        return RING_CORRUPT;
    *view = (ring_view){base, (unsigned char *)base + data, capacity, slots};
    return RING_OK;
}

/* Sequence of the record that begins at a boundary in [oldest, tail]; the caller knows that the boundary is pinned, or
 * validates afterwards. */
int ring_sequence_at(const ring_view *view, uint64_t position, uint64_t *sequence) {
    if (position % RECORD_ALIGN)
        return RING_CORRUPT;
    *sequence = LOAD_ACQUIRE(word_at(view, position));
    return RING_OK;
}

/* ---- records ---- */

/* Release, word by word: whoever reads one of these words while it overtakes them also sees the intent that was stored
 * before (SYNC intent), and so learns that what it read is not whole. */
static void put(word *at, const void *from, uint64_t bytes) {
    const unsigned char *source = from;
    uint64_t value;
    for (; bytes >= LINE; bytes -= LINE) {
        if (bytes > 2 * AHEAD_LIMIT) /* longer than what was asked for beforehand */
            PREFETCH_WRITE((const unsigned char *)at + AHEAD_LIMIT);
#pragma GCC unroll 8
        for (int i = 0; i < LINE / 8; i++, source += 8) {
            memcpy(&value, source, 8);
            STORE_RELEASE(at++, value);
        }
    }
    for (; bytes >= 8; bytes -= 8, source += 8) {
        memcpy(&value, source, 8);
        STORE_RELEASE(at++, value);
    }
    if (bytes) {
        value = 0;
        memcpy(&value, source, bytes);
        STORE_RELEASE(at, value);
    }
}

void record_write(unsigned char *at, uint64_t sequence, unsigned kind, const part *part) {
    uint64_t padded = (part->headers_length + 7u) & ~(uint64_t)7;
    uint64_t length = padded + part->payload_length;
    word *words = (word *)at;
    STORE_RELEASE(&words[0], sequence);
    STORE_RELEASE(&words[1], RECORD_META(length, kind, part->flags, part->headers_length | part->follow));
    STORE_RELEASE(&words[2], part->time_ns);
    if (padded)
        put(words + 3, part->headers, part->headers_length);
    put(words + 3 + padded / 8, part->payload, part->payload_length);
}

/* The same without headers, as quick as memory is. What `put` says holds on x86-64 for stores of any width: none is seen
 * before the intent, which was stored with a full barrier, and what a reader gets of a record that overtakes it, torn or not,
 * it does not believe. */
void record_write_row(unsigned char *at, uint64_t sequence, const part *part) {
#if defined(__x86_64__) && !defined(SHMBUS_HOOKS) && !defined(__SANITIZE_THREAD__)
    word *words = (word *)at;
    STORE_RELEASE(&words[0], sequence);
    STORE_RELEASE(&words[1], RECORD_META(part->payload_length, RECORD_EVENT, part->flags, part->follow));
    STORE_RELEASE(&words[2], part->time_ns);
    memcpy(at + RECORD_HEADER, part->payload, part->payload_length);
    __asm__ volatile("" ::: "memory");
#else
    record_write(at, sequence, RECORD_EVENT, part);
#endif
}

/* Reads the header of the record at `position` once, on local copies, and checks it against the ring and `end`. */
int record_header(const ring_view *view, uint64_t position, uint64_t end, record *out, unsigned *kind) {
    uint64_t offset = position & (view->capacity - 1), room = view->capacity - offset;
    if (position % RECORD_ALIGN)
        return RING_CORRUPT;
    if (room < RECORD_HEADER) { /* too little for a header: padding without one */
        *kind = RECORD_PAD;
        out->sequence = LOAD_ACQUIRE(word_at(view, position));
        out->end = position + room;
        return out->end <= end ? RING_OK : RING_CORRUPT;
    }
    word *words = word_at(view, position);
    out->sequence = LOAD_ACQUIRE(&words[0]);
    uint64_t meta = LOAD_ACQUIRE(&words[1]);
    out->time_ns = LOAD_ACQUIRE(&words[2]);
    out->length = (uint32_t)meta;
    out->headers = (uint32_t)(meta >> 48);
    out->flags = (uint32_t)(meta >> 40) & 0xff;
    out->follow = out->flags & RECORD_RUN ? out->headers : 0;
    out->headers -= out->follow;
    out->body = (const unsigned char *)(words + 3);
    out->end = position + record_span(out->length);
    *kind = (unsigned)(meta >> 32) & 0xff;
    if (record_span(out->length) > room || out->end > end || ((out->headers + 7u) & ~7u) > out->length)
        return RING_CORRUPT;
    if (*kind == RECORD_PAD) /* reaches to the end of the ring, and never begins a lap: so never two in a row */
        return offset && record_span(out->length) == room ? RING_OK : RING_CORRUPT;
    return *kind == RECORD_EVENT ? RING_OK : RING_CORRUPT;
}

int record_read(const ring_view *view, uint64_t position, uint64_t end, record *out) {
    unsigned kind;
    int status = record_header(view, position, end, out, &kind);
    return status == RING_OK && kind != RECORD_EVENT ? RING_CORRUPT : status;
}

/* ---- publisher ---- */

static uint64_t chunk_of(const ring_view *view) { return view->capacity / CHUNKS; }

static uint64_t chunk_floor(const ring_view *view, uint64_t position) { return position & ~(chunk_of(view) - 1); }

static uint64_t *mark_of(ring_writer *w, uint64_t position) {
    return &w->marks[position / chunk_of(&w->view) % (2 * CHUNKS)];
}

/* A record ends at `head`. (A difference, for a hostile tail may be anything.) */
static void advance(ring_writer *w, uint64_t head) {
    w->head = head;
    for (; (int64_t)(head - w->marked) >= 0; w->marked += chunk_of(&w->view))
        *mark_of(w, w->marked) = head;
}

int ring_writer_open(ring_writer *w, const ring_view *view) {
    uint64_t tail = LOAD_RELAXED(&view->header->tail), oldest = LOAD_RELAXED(&view->header->oldest);
    *w = (ring_writer){.view = *view,
                       .limit = LOAD_RELAXED(&view->header->intent),
                       .newest = LOAD_RELAXED(&view->header->position),
                       .oldest = oldest,
                       .gate = oldest};
    w->marked_from = w->marked = chunk_floor(view, tail + chunk_of(view) - 1);
    advance(w, tail);
    if (tail % RECORD_ALIGN || oldest > tail || tail - oldest > view->capacity || w->limit - tail > view->capacity)
        return RING_CORRUPT;
    w->gate_version = UINT64_MAX; /* no scan yet */
    return ring_sequence_at(view, tail, &w->sequence);
}

/* The slowest reliable cursor, or `none` (the publisher's end) where nobody gates. One below `oldest` is a joiner's that
 * was pinned just before `oldest` passed it, and gates like any other. A cursor that cannot be is a corrupt segment's,
 * and gates at the oldest record: a hostile subscriber may stop its publisher, but not make it write out of bounds. */
static uint64_t slowest(const ring_view *view, uint64_t oldest, uint64_t none) {
    uint64_t gate = none;
    uint64_t members = LOAD_SEQ(&view->header->members) & LOAD_SEQ(&view->header->reliable);
    for (; members; members &= members - 1) {
        uint64_t cursor = gate_at(slot_of(view, (unsigned)__builtin_ctzll(members))); /* SYNC cursor */
        if (cursor > none || none - cursor > view->capacity)
            cursor = oldest;
        if (cursor < gate)
            gate = cursor;
    }
    return gate;
}

static void scan(ring_writer *w) {
    w->gate_version = LOAD_SEQ(&w->view.header->gate_version); /* before the cursors: SYNC join */
    w->gate = slowest(&w->view, w->oldest, w->head);
    if (w->head - w->gate > w->peak)
        w->peak = w->head - w->gate;
}

/* Most bytes that reliable subscribers had yet to receive, at any look since the last call, this one among them. */
uint64_t ring_peak(ring_writer *w) {
    scan(w);
    uint64_t peak = w->peak;
    w->peak = 0;
    return peak;
}

/* Moves `oldest` past every record that positions below `intent` will overwrite. It begins at what is remembered: to
 * walk over a whole chunk of records, which lie in other caches, took 15 us. */
static int retire(ring_writer *w, uint64_t intent) {
    uint64_t chunk = intent > w->view.capacity ? chunk_floor(&w->view, intent - w->view.capacity) : 0;
    if (chunk >= w->marked_from && chunk < w->marked && *mark_of(w, chunk) > w->oldest)
        w->oldest = *mark_of(w, chunk);
    while (w->oldest + w->view.capacity < intent) {
        record r;
        unsigned kind;
        if (record_header(&w->view, w->oldest, w->head, &r, &kind) != RING_OK)
            return RING_CORRUPT;
        w->oldest = r.end;
    }
    STORE_RELEASE(&w->view.header->oldest, w->oldest); /* SYNC oldest: whoever sees the intent sees this */
    return RING_OK;
}

/* Announces an intent that covers `end`, a chunk further where there is room, so that most events announce nothing. */
static int announce(ring_writer *w, uint64_t end) {
    uint64_t capacity = w->view.capacity, want = chunk_floor(&w->view, end + chunk_of(&w->view));
    for (int again = 0; again < 2; again++) {
        if (want > w->gate + capacity || LOAD_SEQ(&w->view.header->gate_version) != w->gate_version)
            scan(w);
        if (want > w->gate + capacity)
            want = w->gate + capacity;
        if (end > want && !again)
            return RING_FULL;
        if (end > want)
            break; /* what the first round announced must be taken back */
        if (want > LOAD_RELAXED(&w->view.header->tail) + capacity)
            ring_commit(w); /* a batch longer than the ring: `oldest` must not pass `tail` */
        if (retire(w, want) != RING_OK)
            return RING_CORRUPT;
        STORE_SEQ(&w->view.header->intent, want); /* SYNC intent */
        w->limit = want;
        /* Either this load sees the joiner, or the joiner's load of intent, after its own store, sees the line above. */
        if (LOAD_SEQ(&w->view.header->gate_version) == w->gate_version) /* SYNC join */
            return RING_OK;
        scan(w);
        if (want <= w->gate + capacity)
            return RING_OK;
        want = end; /* a joiner gates us: take back what nobody has written yet */
    }
    uint64_t floor = w->head + RECORD_ALIGN; /* written already: a joiner must not take it for intact */
    if (want > w->gate + capacity)
        want = w->gate + capacity;
    w->limit = want > floor ? want : floor;
    STORE_SEQ(&w->view.header->intent, w->limit);
    return w->limit >= end ? RING_OK : RING_FULL;
}

/* Bytes behind head that a record of `length` bytes (headers and payload) takes, with padding and the frontier. */
uint64_t ring_need(const ring_writer *w, uint64_t length) {
    uint64_t span = record_span(length), room = w->view.capacity - (w->head & (w->view.capacity - 1));
    return span + (room < span ? room : 0) + RECORD_ALIGN;
}

int ring_reserve(ring_writer *w, uint64_t length) {
    uint64_t end = w->head + ring_need(w, length);
    return end <= w->limit ? RING_OK : announce(w, end);
}

/* Writes one reserved record; nobody sees it before ring_commit. */
void ring_write(ring_writer *w, const part *part) {
    uint64_t padded = (part->headers_length + 7u) & ~(uint64_t)7;
    uint64_t span = record_span(padded + part->payload_length);
    uint64_t offset = w->head & (w->view.capacity - 1), room = w->view.capacity - offset;
    if (room < span) {
        word *words = (word *)(w->view.data + offset);
        STORE_RELEASE(&words[0], w->sequence);
        if (room >= RECORD_HEADER) {
            STORE_RELEASE(&words[1], (room - RECORD_HEADER) | (uint64_t)RECORD_PAD << 32);
            STORE_RELEASE(&words[2], 0);
        }
        advance(w, w->head + room);
        offset = 0;
    }
    record_write(w->view.data + offset, w->sequence, RECORD_EVENT, part);
    w->newest = w->head;
    advance(w, w->head + span);
    w->sequence++;
    record_prefetch_write(&w->view, w->head, span);
}

/* How many records of `length` bytes can be written one behind the other, once there is room for one: what is announced and
 * left of the lap. At least one. */
uint64_t ring_rows(const ring_writer *w, uint64_t length) {
    uint64_t span = record_span(length), room = w->view.capacity - (w->head & (w->view.capacity - 1));
    uint64_t ahead = w->limit - RECORD_ALIGN - w->head;
    uint64_t count = (ahead < room ? ahead : room) / span;
    if (count > MAX_HEADERS)
        count = MAX_HEADERS;  /* what a record can say that follows */
    return count ? count : 1; /* behind padding */
}

/* Writes so many records, no more than ring_rows says, whose payloads lie one behind the other, each stamped a nanosecond
 * after the one before. Each tells how many follow, so that who takes them all need not look at each of them. */
void ring_write_rows(ring_writer *w, const part *first, uint64_t count) {
    if (count == 1) {
        ring_write(w, first);
        return;
    }
    part part = *first;
    uint64_t span = record_span(part.payload_length), head = w->head, sequence = w->sequence;
    unsigned char *at = w->view.data + (head & (w->view.capacity - 1));
    part.flags = RECORD_RUN;
    for (uint64_t left = count; left > 0; left--) {
        part.follow = (uint32_t)left - 1;
        record_write_row(at, sequence++, &part);
        at += span;
        part.payload = (const unsigned char *)part.payload + part.payload_length;
        part.time_ns++;
    }
    w->sequence = sequence;
    w->newest = head + (count - 1) * span;
    while ((int64_t)(w->newest + span - w->marked) >= 0)
        advance(w, head + (w->marked - head + span - 1) / span * span);
    advance(w, w->newest + span);
}

/* The hint goes before the tail, whose store takes the line of both away from the readers. */
void ring_commit(ring_writer *w) {
    STORE_RELAXED(&w->view.header->position, w->newest);
    STORE_RELEASE(word_at(&w->view, w->head), w->sequence); /* F, before tail */
    STORE_SEQ(&w->view.header->tail, w->head);              /* SYNC tail; seq_cst against parked: SYNC park */
}

/* Counts events that found no room, and were not written. `sequence` is what the next one will get. */
void ring_refuse(const ring_view *view, uint64_t sequence, uint64_t count, uint64_t time_ns) {
    ring_header *h = view->header;
    uint64_t before = LOAD_RELAXED(&h->refused);
    if (!before) {
        STORE_RELAXED(&h->refused_first, sequence);
        STORE_RELAXED(&h->refused_first_ns, time_ns);
    }
    STORE_RELAXED(&h->refused_last, sequence);
    STORE_RELAXED(&h->refused_last_ns, time_ns);
    STORE_RELEASE(&h->refused, before + count);
}

/* Bytes that the publisher could still write now, as anyone can compute them. */
uint64_t ring_room(const ring_view *view) {
    uint64_t oldest = LOAD_ACQUIRE(&view->header->oldest), tail = LOAD_ACQUIRE(&view->header->tail);
    uint64_t used = tail - slowest(view, oldest, tail);
    return used < view->capacity ? view->capacity - used : 0;
}

/* Bitmap of the reliable subscribers that keep the publisher from writing `need` bytes. */
uint64_t ring_blocking(const ring_view *view, uint64_t need) {
    uint64_t members = LOAD_SEQ(&view->header->members) & LOAD_SEQ(&view->header->reliable), result = 0;
    uint64_t tail = LOAD_ACQUIRE(&view->header->tail);
    for (uint64_t left = members; left; left &= left - 1) {
        uint64_t cursor = gate_at(slot_of(view, (unsigned)__builtin_ctzll(left)));
        if (cursor <= tail && tail + need > cursor + view->capacity)
            result |= left & (~left + 1);
    }
    return result;
}

/* Bitmap of the reliable subscribers that have not received all below `position`. */
uint64_t ring_behind(const ring_view *view, uint64_t position) {
    uint64_t members = LOAD_SEQ(&view->header->members) & LOAD_SEQ(&view->header->reliable), result = 0;
    for (uint64_t left = members; left; left &= left - 1)
        if (gate_at(slot_of(view, (unsigned)__builtin_ctzll(left))) < position) /* SYNC room */
            result |= left & (~left + 1);
    return result;
}

/* ---- joining, under the bus lock ---- */

static void clear(void *words, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof(word); i++)
        STORE_RELAXED(&((word *)words)[i], 0);
}

/* Store the cursor, publish the slot, bump gate_version, re-read intent, and move up if the publisher was faster. */
int ring_join(const ring_view *view, unsigned slot, bool lossy, bool oldest) {
    if (slot >= MAX_SUBSCRIBERS)
        return RING_CORRUPT;
    ring_header *h = view->header;
    cursor_slot *s = slot_of(view, slot);
    uint64_t bit = 1ull << slot, sequence = 0;
    clear(s->losses, sizeof(s->losses));
    STORE_RELAXED(&s->flip, 0);
    STORE_RELAXED(&s->attached, 0);
    STORE_RELAXED(&s->lossy, lossy);
    STORE_RELAXED(&s->refused_base, LOAD_ACQUIRE(&h->refused));
    word *start = oldest ? &h->oldest : &h->tail;
    uint64_t position = LOAD_ACQUIRE(start);
    STORE_SEQ(&s->cursor, position);
    if (!lossy)
        OR_SEQ(&h->reliable, bit);
    OR_SEQ(&h->members, bit);
    ADD_SEQ(&h->gate_version, 1); /* SYNC join */
    for (int tries = 0;; tries++) {
        if (tries == RING_PATIENCE || ring_sequence_at(view, position, &sequence) != RING_OK)
            return RING_CORRUPT;
        if (LOAD_SEQ(&h->intent) <= position + view->capacity) /* SYNC join */
            break; /* a reliable joiner is pinned from here on, and the sequence was read before this line */
        position = LOAD_ACQUIRE(start); /* SYNC oldest */
        STORE_SEQ(&s->cursor, position);
    }
    STORE_RELAXED(&s->join_position, position);
    STORE_RELAXED(&s->position, position);
    STORE_RELAXED(&s->join_sequence, sequence);
    if (lossy)
        STORE_SEQ(&s->cursor, sequence);
    return RING_OK;
}

void ring_leave(const ring_view *view, unsigned slot) {
    uint64_t keep = ~(1ull << (slot % MAX_SUBSCRIBERS));
    AND_SEQ(&view->header->members, keep); /* members first: a slot is reliable only while it is a member */
    AND_SEQ(&view->header->reliable, keep);
}

/* These hold nobody back any more in a ring that its publisher has left, and are owed nothing of its pool; what the ring
 * has is theirs to read all the same. */
void ring_ungate(const ring_view *view, uint64_t slots) { AND_SEQ(&view->header->reliable, ~slots); }
