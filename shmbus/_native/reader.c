/* Broadcast ring, the subscribers' side: reading, losses, books. See ring.h for what must hold. */
#include "ring.h"

#include <string.h>

/* ---- reader ---- */

/* RING_LOST: the ring was given up, and what it held is on the books. */
int ring_reader_open(ring_reader *r, const ring_view *view, unsigned slot) {
    if (slot >= MAX_SUBSCRIBERS)
        return RING_CORRUPT;
    cursor_slot *s = slot_of(view, slot);
    uint64_t seen = 0;
    if (!CAS_SEQ(&s->attached, &seen, SLOT_ATTACHED) && seen == SLOT_GIVEN_UP) /* R2: one of the two wins */
        return RING_LOST;
    *r = (ring_reader){.view = *view, .slot = s, .lossy = LOAD_ACQUIRE(&s->lossy) != 0};
    r->by_sequence = r->lossy;
    r->position = r->lossy ? LOAD_ACQUIRE(&s->join_position) : LOAD_ACQUIRE(&s->cursor);
    r->tail = r->settled = r->position;
    if (r->lossy)
        r->sequence = LOAD_ACQUIRE(&s->join_sequence);
    else if (ring_sequence_at(view, r->position, &r->sequence) != RING_OK)
        return RING_CORRUPT;
    return r->position % RECORD_ALIGN ? RING_CORRUPT : RING_OK;
}

int ring_tap_open(ring_reader *r, const ring_view *view, bool oldest) {
    word *start = oldest ? &view->header->oldest : &view->header->tail;
    *r = (ring_reader){.view = *view, .lossy = true};
    for (int tries = 0; tries < RING_PATIENCE; tries++) {
        r->position = r->tail = LOAD_ACQUIRE(start);
        if (ring_sequence_at(view, r->position, &r->sequence) != RING_OK)
            break;
        if (LOAD_ACQUIRE(&view->header->intent) <= r->position + view->capacity)
            return RING_OK;
    }
    return RING_CORRUPT;
}

static bool intact(const ring_reader *r, uint64_t position) {
    return LOAD_ACQUIRE(&r->view.header->intent) <= position + r->view.capacity; /* SYNC intent */
}

/* Puts a lapped reader on the oldest intact record; its loss is the gap between the sequences. */
static int resume(ring_reader *r) {
    for (int tries = 0; tries < 64; tries++) {
        uint64_t position = LOAD_ACQUIRE(&r->view.header->oldest), sequence; /* SYNC oldest */
        if (ring_sequence_at(&r->view, position, &sequence) != RING_OK)
            return RING_CORRUPT;
        if (!intact(r, position))
            continue;
        if (position < r->position || sequence < r->sequence)
            return RING_CORRUPT;
        r->lost_first = r->sequence;
        r->lost_last = sequence - 1;
        r->position = r->tail = position; /* the tail that we know may lie below: look again */
        r->sequence = sequence;
        return r->lost_last >= r->lost_first ? RING_OVERRUN : RING_OK; /* only padding went */
    }
    uint64_t intent = LOAD_ACQUIRE(&r->view.header->intent); /* SYNC intent: `oldest` is never a ring behind it */
    if (LOAD_ACQUIRE(&r->view.header->oldest) + r->view.capacity < intent)
        return RING_CORRUPT;
    return RING_EMPTY; /* the publisher laps us faster than we look; the next call tries again */
}

/* A lossy reader becomes reliable where it stands, or, if that is overwritten, on the oldest intact record: RING_OK;
 * RING_OVERRUN: ring_overrun is to book what went. It is the joiner of ring_join with its position for a gate: its slot
 * stays one by sequences, so that books and gate are right at every step. */
int ring_regate(ring_reader *r) {
    ring_header *h = r->view.header;
    uint64_t first = r->sequence;
    if (!r->lossy || !r->slot)
        return RING_OK;
    STORE_SEQ(&r->slot->position, r->position);
    OR_SEQ(&h->reliable, 1ull << (r->slot - slot_of(&r->view, 0)));
    ADD_SEQ(&h->gate_version, 1); /* SYNC join */
    for (int tries = 0; tries < RING_PATIENCE; tries++) {
        if (LOAD_SEQ(&h->intent) <= r->position + r->view.capacity) { /* SYNC join */
            r->lossy = false;                                         /* pinned: what is read in place stays */
            r->settled = r->position;
            r->lost_first = first;
            r->lost_last = r->sequence - 1;
            return r->sequence == first ? RING_OK : RING_OVERRUN;
        }
        if (resume(r) == RING_CORRUPT)
            break;
        STORE_SEQ(&r->slot->position, r->position);
    }
    return RING_CORRUPT;
}

/* The last event of [at, tail): RING_OK; RING_EMPTY if it is overwritten meanwhile. */
static int last_from(const ring_reader *r, uint64_t at, record *out) {
    bool found = false;
    for (record one; at < r->tail; at = one.end) {
        unsigned kind;
        int status = record_header(&r->view, at, r->tail, &one, &kind);
        if (r->tail - at > r->view.capacity || !intact(r, at))
            return RING_EMPTY;
        if (status != RING_OK)
            return RING_CORRUPT;
        if (kind == RECORD_EVENT) {
            *out = one;
            found = true;
        }
    }
    return found && out->sequence >= r->sequence ? RING_OK : RING_CORRUPT;
}

#define COMMIT_LOOKS 8 /* at a hint that is not below the tail yet: a commit takes nanoseconds */

/* ring_peek for who wants the newest event alone. The header says where that lies, or, for a moment, an older one; the
 * walk from there is as long as one batch. While a commit is under way it says what is not there yet, and for good in the
 * ring of a publisher that died there. What is skipped is booked with what is consumed (ring_skip). */
static int peek_newest(ring_reader *r, record *out) {
    const ring_header *h = r->view.header;
    for (int tries = 0; tries < 64; tries++) {
        uint64_t newest = LOAD_RELAXED(&h->position);
        r->tail = LOAD_ACQUIRE(&h->tail); /* SYNC tail: what begins below it is there */
        if (r->tail <= r->position)
            return r->tail == r->position ? RING_EMPTY : RING_CORRUPT;
        if (newest >= r->tail && tries < COMMIT_LOOKS)
            continue;
        int status = last_from(r, newest > r->position && newest < r->tail ? newest : r->position, out);
        if (status != RING_EMPTY)
            return status;
    }
    int status = resume(r);
    return status == RING_OK ? RING_EMPTY : status;
}

/* The next event's record, not yet consumed: RING_OK, RING_EMPTY, RING_OVERRUN (call again), RING_CORRUPT. A reliable
 * reader decodes it in place; a lossy one takes a copy by ring_copy. */
int ring_peek(ring_reader *r, record *out) {
    if (r->latest)
        return peek_newest(r, out);
    for (;;) {
        if (r->position == r->tail) {
            r->tail = LOAD_ACQUIRE(&r->view.header->tail); /* SYNC tail */
            if (r->position == r->tail)
                return RING_EMPTY;
            uint64_t ahead = r->tail - r->position;
            if (r->tail < r->position || (!r->lossy && ahead > r->view.capacity))
                return RING_CORRUPT;
        }
        unsigned kind;
        int status = record_header(&r->view, r->position, r->tail, out, &kind);
        if (r->lossy && !intact(r, r->position)) {
            status = resume(r);
            if (status == RING_OK)
                continue;
            return status;
        }
        if (status != RING_OK || out->sequence != r->sequence)
            return RING_CORRUPT;
        if (kind == RECORD_EVENT) {
            if (out->end != r->tail)
                record_prefetch(&r->view, out->end, record_span(out->length));
            return RING_OK;
        }
        r->position = out->end;
    }
}

/* Copies a peeked record's body (`length` bytes, rounded up to eight) out of a ring that may overtake us. */
int ring_copy(ring_reader *r, const record *record, void *into) {
    word *from = (word *)record->body;
    unsigned char *to = into;
    for (uint64_t done = 0; done < record->length; done += 8) {
        uint64_t value = LOAD_ACQUIRE(from++); /* acquire, so that the load of intent below stays below */
        memcpy(to + done, &value, 8);
    }
    if (intact(r, record->end - record_span(record->length)))
        return RING_OK;
    int status = resume(r);
    return status == RING_OK ? RING_EMPTY : status;
}

/* What the books go by, and, where that is another word, the gate: after them, so that nothing is overwritten which they
 * take for unread. */
static inline void store_cursor(const ring_reader *r) {
    if (r->lossy)
        STORE_RELAXED(&r->slot->position, r->position);
    STORE_RELEASE(&r->slot->cursor, r->by_sequence ? r->sequence : r->position); /* SYNC cursor */
    if (RARELY(r->by_sequence != r->lossy))
        STORE_RELEASE(&r->slot->position, r->position); /* SYNC cursor */
}

/* Consumes a peeked record. */
void ring_advance(ring_reader *r, const record *record) {
    r->position = record->end;
    r->sequence++;
    if (r->slot)
        store_cursor(r);
}

/* The record of that sequence, whose second word but for RECORD_RUN is `meta`; it says how many follow. */
static bool row_at(word *at, uint64_t sequence, uint64_t meta, uint64_t *follow) {
    uint64_t found = LOAD_RELAXED(&at[1]);
    *follow = 0;
    if (found & RECORD_META(0, 0, RECORD_RUN, 0)) {
        *follow = found >> 48;
        found &= ~RECORD_META(0, 0, RECORD_RUN, MAX_HEADERS);
    }
    return LOAD_RELAXED(&at[0]) == sequence && found == meta;
}

/* The records from a peeked one on that have the same length and the same bytes of headers, up to `most`: a run ends with
 * the lap, with padding, and where the next record is another one. For reliable readers, whose records stay where they
 * are; it is consumed by ring_advance_run. */
int ring_run(ring_reader *r, const record *first, uint64_t most, row_run *out) {
    uint64_t tail = LOAD_ACQUIRE(&r->view.header->tail); /* SYNC tail */
    if (r->lossy || tail < first->end || tail - r->position > r->view.capacity)
        return RING_CORRUPT;
    r->tail = tail;
    *out = run_of(first, r->position);
    uint64_t offset = r->position & (r->view.capacity - 1), words = out->stride / 8;
    uint64_t room = r->view.capacity - offset < tail - r->position ? r->view.capacity - offset : tail - r->position;
    if (most > room / out->stride)
        most = room / out->stride;
    word *next = word_at(&r->view, r->position);
    uint64_t meta = RECORD_META(first->length, RECORD_EVENT, first->flags & ~RECORD_RUN, first->headers);
    for (uint64_t follow = first->follow, left;;) {
        uint64_t more = follow < most - out->count ? follow : most - out->count;
        /* What follows is as it says if the last of it is: those in between stay out of this core's way. */
        if (more && row_at(next + more * words, out->sequence + out->count - 1 + more, meta, &left) &&
            left >= follow - more) {
            out->even += out->count == 1 ? more : 0;
            out->count += more;
            next += more * words;
        }
        if (out->count == most || !row_at(next += words, out->sequence + out->count, meta, &follow))
            break; /* whatever it is, ring_peek says so */
        out->count++;
    }
    out->end = r->position + out->count * out->stride;
    return RING_OK;
}

/* Consumes a run. */
void ring_advance_run(ring_reader *r, const row_run *run) {
    r->position = run->end;
    r->sequence = run->sequence + run->count;
    if (r->slot)
        store_cursor(r);
}

/* Adds a loss in the scratch pair and flips: a kill leaves either the old books or the new, and `last` moves the
 * effective cursor even if the cursor store below never happens. */
static void count_loss(ring_reader *r, bool overrun, uint64_t first, uint64_t last, uint64_t now_ns) {
    cursor_slot *s = r->slot;
    uint64_t flip = LOAD_RELAXED(&s->flip);
    loss_pair *from = &s->losses[flip & 1], *to = &s->losses[(flip + 1) & 1];
    for (size_t i = 0; i < sizeof(loss_pair) / sizeof(word); i++)
        STORE_RELAXED(&((word *)to)[i], LOAD_RELAXED(&((word *)from)[i]));
    loss_record *loss = overrun ? &to->overrun : &to->undecodable;
    uint64_t before = LOAD_RELAXED(&loss->count);
    if (!before) {
        STORE_RELAXED(&loss->first, first);
        STORE_RELAXED(&loss->first_ns, now_ns);
    }
    STORE_RELAXED(&loss->last, last);
    STORE_RELAXED(&loss->last_ns, now_ns);
    STORE_RELAXED(&loss->count, before + (last - first + 1));
    STORE_RELEASE(&s->flip, flip + 1); /* SYNC losses */
}

/* Books the overrun that ring_peek or ring_copy just reported. */
void ring_overrun(ring_reader *r, uint64_t now_ns) {
    if (!r->slot)
        return;
    count_loss(r, true, r->lost_first, r->lost_last, now_ns);
    store_cursor(r);
}

/* Steps over a peeked record whose buffers are gone; ring_overrun books it. */
void ring_pass(ring_reader *r, const record *record) {
    r->position = record->end;
    r->sequence = record->sequence + 1;
}

/* Books a peeked record, and what is before it, as passed over. */
void ring_supersede(ring_reader *r, const record *record, uint64_t now_ns) {
    r->lost_first = r->sequence;
    r->lost_last = record->sequence;
    ring_pass(r, record);
    ring_overrun(r, now_ns);
}

/* Books what a peeked record was preferred to; before it is consumed. */
void ring_skip(ring_reader *r, const record *record, uint64_t now_ns) {
    if (record->sequence == r->sequence)
        return;
    count_loss(r, true, r->sequence, record->sequence - 1, now_ns);
    r->sequence = record->sequence;
}

/* Consumes a peeked record that does not decode. */
void ring_undecodable(ring_reader *r, const record *record, uint64_t now_ns) {
    if (r->slot)
        count_loss(r, false, record->sequence, record->sequence, now_ns);
    ring_advance(r, record);
}

/* Clears the flag of a publisher that waits for room; not 0: the caller posts whom it says. */
uint64_t ring_release_publisher(const ring_view *view) {
    uint64_t waiting = LOAD_SEQ(&view->header->waiting); /* SYNC room */
    return waiting && CAS_SEQ(&view->header->waiting, &waiting, 0) ? waiting : 0;
}

/* To be called when the reader has run dry, and at will: looks after a waiting publisher once it has freed a sizeable
 * part. The cursor goes out again with seq_cst, so that one of the two sees the other. */
uint64_t ring_settle(ring_reader *r) {
    if (r->lossy || r->settled == r->position)
        return 0;
    r->settled = r->position;
    STORE_SEQ(r->by_sequence ? &r->slot->position : &r->slot->cursor, r->position); /* SYNC room */
    return ring_release_publisher(&r->view);
}

/* ---- books ---- */

static uint64_t above(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

static uint64_t time_at(const ring_view *view, uint64_t position, uint64_t tail) {
    for (int tries = 0; tries < 2 && position < tail; tries++) {
        record r;
        unsigned kind;
        if (record_header(view, position, tail, &r, &kind) != RING_OK)
            return 0;
        if (kind == RECORD_EVENT)
            return r.time_ns;
        position = r.end;
    }
    return 0;
}

/* One consumer's books. Cursor before tail, so that depth is never negative; every term comes from sequences, and the
 * two counters only split what lies behind the cursor. */
int ring_terms_of(const ring_view *view, unsigned slot, ring_terms *out) {
    if (slot >= MAX_SUBSCRIBERS)
        return RING_CORRUPT;
    *out = (ring_terms){0};
    cursor_slot *s = slot_of(view, slot);
    uint64_t join = LOAD_ACQUIRE(&s->join_sequence), lossy = LOAD_ACQUIRE(&s->lossy), cursor, position, next;
    loss_pair *losses = &s->losses[LOAD_ACQUIRE(&s->flip) & 1]; /* SYNC losses */
    uint64_t overrun = LOAD_ACQUIRE(&losses->overrun.count), overrun_last = LOAD_ACQUIRE(&losses->overrun.last);
    uint64_t undecodable = LOAD_ACQUIRE(&losses->undecodable.count);
    uint64_t undecodable_last = LOAD_ACQUIRE(&losses->undecodable.last);
    /* Before the cursor, which goes before it: what lies between the two went before the gate was set. */
    bool gated = lossy && LOAD_SEQ(&view->header->reliable) >> slot & 1;
    uint64_t gate = LOAD_ACQUIRE(&s->position); /* SYNC cursor */
    next = position = cursor = LOAD_ACQUIRE(&s->cursor);
    for (int tries = 0; !lossy; tries++) { /* a position is pinned, and its sequence there, while the cursor stays */
        if (ring_sequence_at(view, position, &next) != RING_OK || tries == RING_PATIENCE)
            return RING_CORRUPT;
        cursor = LOAD_ACQUIRE(&s->cursor);
        if (cursor == position)
            break;
        position = cursor;
    }
    if (overrun && overrun_last + 1 > next)
        next = overrun_last + 1;
    if (undecodable && undecodable_last + 1 > next)
        next = undecodable_last + 1;
    uint64_t kept_sequence, tail_sequence, oldest, kept, tail;
    kept = oldest = LOAD_ACQUIRE(&view->header->oldest);
    if (gated && LOAD_ACQUIRE(&view->header->intent) <= gate + view->capacity) /* `oldest` may pass it for a moment */
        kept = gate;
    if (ring_sequence_at(view, kept, &kept_sequence) != RING_OK)
        return RING_CORRUPT;
    for (int tries = 0;;
         tries++) { /* the frontier is overwritten by a record of the same sequence, then maybe lapped */
        tail = LOAD_ACQUIRE(&view->header->tail);
        if (ring_sequence_at(view, tail, &tail_sequence) != RING_OK || tries == 64)
            return RING_CORRUPT;
        if (LOAD_ACQUIRE(&view->header->intent) <= tail + view->capacity)
            break;
    }
    if (lossy && LOAD_ACQUIRE(&view->header->intent) <= kept + view->capacity && kept_sequence > next) {
        out->pending_first = next;
        out->pending_last = kept_sequence - 1;
        overrun += kept_sequence - next; /* overwritten already; its reader will find out */
        next = kept_sequence;
    }
    if (next < join)
        next = join;
    if (tail_sequence < next)
        return RING_CORRUPT;
    out->next = next;
    uint64_t gone = next - join, refused = LOAD_ACQUIRE(&view->header->refused);
    out->overrun = overrun < gone ? overrun : gone;
    out->undecodable = undecodable < gone - out->overrun ? undecodable : gone - out->overrun;
    out->delivered = gone - out->overrun - out->undecodable;
    out->depth = tail_sequence - next;
    out->refused = above(refused, LOAD_ACQUIRE(&s->refused_base));
    if (tail_sequence - join > COUNT_LIMIT || out->refused > COUNT_LIMIT)
        return RING_CORRUPT;
    out->offered = tail_sequence - join + out->refused;
    uint64_t from = lossy ? LOAD_RELAXED(&s->position) : position;
    if (from < oldest || from > tail)
        from = oldest;
    out->oldest_ns = out->depth ? time_at(view, from, tail) : 0;
    return RING_OK;
}
