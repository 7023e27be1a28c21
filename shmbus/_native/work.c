/* Work ring: see work.h for what must hold, layout.h for the claim word. */
#include "claim_word.h"

#include <string.h>

/* ---- layout ---- */

uint64_t work_size(uint64_t capacity) {
    if (!ring_size(capacity))
        return 0;
    uint64_t table = PAGE + WORK_TABLES(capacity);
    return ((table + PAGE - 1) & ~(uint64_t)(PAGE - 1)) + capacity;
}

/* The segment comes zeroed: every claim word is CLAIM_FREE of lap 0, which nobody claims and no gate passes. */
int work_format(void *base, uint64_t size, uint64_t capacity, uint64_t ring_id, uint64_t first_sequence,
                uint64_t start) {
    if (!work_size(capacity) || size < work_size(capacity) || start % RECORD_ALIGN)
        return RING_CORRUPT;
    ring_header *h = base;
    memset(base, 0, sizeof(*h));
    h->layout_version = LAYOUT_VERSION;
    h->kind = RING_WORK;
    h->capacity = capacity;
    h->slots = WORK_DESCRIPTORS(capacity);
    h->ring_id = ring_id;
    STORE_RELAXED(&h->tail, first_sequence);
    STORE_RELAXED(&h->gate, first_sequence);
    STORE_RELAXED(&h->oldest, first_sequence); /* first on the books */
    STORE_RELAXED(&h->next, first_sequence & SEQUENCE_MASK);
    STORE_RELAXED(&h->position, start);
    h->magic = RING_MAGIC;
    return RING_OK;
}

/* ---- publisher ---- */

int work_writer_open(work_writer *w, const ring_view *view) {
    *w = (work_writer){.view = *view,
                       .head = LOAD_RELAXED(&view->header->position),
                       .sequence = LOAD_RELAXED(&view->header->tail),
                       .gate = LOAD_RELAXED(&view->header->gate)};
    w->start = w->head;
    return w->gate == w->sequence && w->head % RECORD_ALIGN == 0 ? RING_OK : RING_CORRUPT;
}

/* Takes over a newer gate, if it is one that can be. */
static int refresh_gate(work_writer *w) {
    uint64_t gate = LOAD_SEQ(&w->view.header->gate); /* SYNC gate */
    if (gate < w->gate || gate > w->sequence)
        return RING_CORRUPT;
    w->gate = gate;
    uint64_t start = gate == w->sequence ? w->head : position_of(&w->view, gate);
    if (start < w->start || start > w->head)
        return RING_CORRUPT;
    w->start = start;
    uint64_t used = w->head - start, slots = (w->sequence - gate) * DESCRIBED;
    if (used < slots)
        used = slots; /* of the descriptors, in bytes of the records that they are for */
    if (used > w->peak)
        w->peak = used;
    return RING_OK;
}

/* Most bytes that were not done, at any look since the last call, this one among them. */
int work_peak(work_writer *w, uint64_t *peak) {
    int status = refresh_gate(w);
    *peak = w->peak;
    w->peak = 0;
    return status;
}

/* A record that does not fit before the end of the ring begins at the next lap; descriptors know where. */
static uint64_t place(const ring_view *view, uint64_t head, uint64_t span) {
    uint64_t room = view->capacity - (head & (view->capacity - 1));
    return room < span ? head + room : head;
}

int work_reserve(work_writer *w, uint64_t length) {
    uint64_t span = record_span(length), end = place(&w->view, w->head, span) + span;
    if (end - w->start <= w->view.capacity && w->sequence - w->gate < w->view.slots)
        return RING_OK;
    if (refresh_gate(w) != RING_OK)
        return RING_CORRUPT;
    return end - w->start <= w->view.capacity && w->sequence - w->gate < w->view.slots ? RING_OK : RING_FULL;
}

void work_write(work_writer *w, const part *part) {
    uint64_t padded = (part->headers_length + 7u) & ~(uint64_t)7;
    uint64_t span = record_span(padded + part->payload_length);
    uint64_t position = place(&w->view, w->head, span);
    descriptor *d = descriptor_of(&w->view, w->sequence);
    record_write(w->view.data + (position & (w->view.capacity - 1)), w->sequence, RECORD_EVENT, part);
    STORE_RELAXED(&d->place, PLACE(position, part->lane));
    STORE_RELEASE(&d->claim, WORD(lap_of(&w->view, w->sequence), CLAIM_READY, 0, 0, 0)); /* SYNC claim */
    w->head = position + span;
    w->sequence++;
    record_prefetch_write(&w->view, w->head, span);
}

/* As ring_rows. */
uint64_t work_rows(const work_writer *w, uint64_t length) {
    uint64_t span = record_span(length), room = w->view.capacity - (w->head & (w->view.capacity - 1));
    uint64_t left = w->start + w->view.capacity - w->head, free = w->view.slots - (w->sequence - w->gate);
    uint64_t count = (left < room ? left : room) / span;
    count = count < free ? count : free;
    return count ? count : 1;
}

void work_write_rows(work_writer *w, const part *first, uint64_t count) {
    part part = *first;
    uint64_t span = record_span(part.payload_length), position = place(&w->view, w->head, span);
    for (uint64_t i = 0; i < count; i++, position += span) {
        descriptor *d = descriptor_of(&w->view, w->sequence);
        record_write_row(w->view.data + (position & (w->view.capacity - 1)), w->sequence, &part);
        STORE_RELAXED(&d->place, PLACE(position, part.lane));
        STORE_RELEASE(&d->claim, WORD(lap_of(&w->view, w->sequence), CLAIM_READY, 0, 0, 0)); /* SYNC claim */
        w->sequence++;
        part.payload = (const unsigned char *)part.payload + part.payload_length;
        part.time_ns++;
    }
    w->head = position;
}

void work_commit(work_writer *w) {
    STORE_RELAXED(&w->view.header->position, w->head);
    STORE_SEQ(&w->view.header->tail, w->sequence); /* SYNC tail; seq_cst against parked: SYNC park */
}

/* Bytes that the publisher could still write now; 0 when the descriptors are used up. */
uint64_t work_room(const ring_view *view) {
    uint64_t gate = LOAD_SEQ(&view->header->gate), tail = LOAD_ACQUIRE(&view->header->tail);
    uint64_t head = LOAD_ACQUIRE(&view->header->position);
    if (gate >= tail)
        return view->capacity;
    uint64_t used = head - position_of(view, gate);
    return used < view->capacity && tail - gate < view->slots ? view->capacity - used : 0;
}

/* ---- workers ---- */

/* True if a look at the ring is worth it. Whoever has raised the hint asks this afterwards and, if so, looks again or has
 * a parked worker look; nobody parks while it is true. So a record above the hint is one that somebody will look at. */
bool work_ready(const ring_view *view) {
    uint64_t hint = LOAD_SEQ(&view->header->next);
    return behind(hint, LOAD_SEQ(&view->header->tail)) != 0; /* SYNC tail, SYNC chain */
}

/* For the publisher, after it has committed records from `first` on: true if nothing was waiting before them, so that it
 * is the one to wake a worker. Either it sees here that the hint has come up to `first`, or whoever raised it sees the
 * new tail (SYNC chain). */
bool work_fresh(const ring_view *view, uint64_t first) { return behind(LOAD_SEQ(&view->header->next), first) == 0; }

/* Lowers the hint to `sequence` where it is above, and changes its tag in any case: a raise that was computed before
 * this line fails its CAS, so a word made READY before the call is never skipped. */
void work_lower_next(const ring_view *view, uint64_t sequence) {
    uint64_t hint = LOAD_SEQ(&view->header->next), lowered;
    do {
        uint64_t low = behind(hint, sequence) ? hint : sequence;
        lowered = ((hint >> SEQUENCE_BITS) + 1) << SEQUENCE_BITS | (low & SEQUENCE_MASK);
    } while (!CAS_SEQ(&view->header->next, &hint, lowered));
}

/* Reads again the record of a claim that is still ours. */
int work_read(const ring_view *view, claim *claim) {
    uint64_t sequence = claim->record.sequence;
    if (LOAD_ACQUIRE(&descriptor_of(view, sequence)->claim) != claim->word)
        return RING_LOST;
    return read_claimed(view, sequence, &claim->record);
}

/* Copies the body of a claim's record, for a worker whose claim others may take meanwhile: RING_LOST if they did, and what
 * was copied may be anything. Acquire, so that the look at the claim word stays below: who reads a word of the next lap
 * sees that the claim is over (SYNC claim, gate). */
int work_copy(const ring_view *view, const claim *claim, void *into) {
    const record *r = &claim->record;
    word *from = (word *)r->body;
    unsigned char *to = into;
    for (uint64_t done = 0; done < r->length; done += 8) {
        uint64_t value = LOAD_ACQUIRE(from++);
        memcpy(to + done, &value, 8);
    }
    return LOAD_RELAXED(&descriptor_of(view, r->sequence)->claim) == claim->word ? RING_OK : RING_LOST;
}

/* True of a tail that cannot be: the publisher passes the gate by the descriptors that there are, and no further. */
static bool tail_beyond_gate(const ring_view *view, uint64_t tail) {
    uint64_t gate = LOAD_SEQ(&view->header->gate); /* after the tail: it may have grown since, which only hides */
    return gate <= tail && tail - gate > view->slots;
}

/* Tries to claim a record: RING_OK, RING_EMPTY if it is not READY, RING_CORRUPT. `hint` is what `next` held before. */
static int claim_one(const ring_view *view, uint64_t sequence, uint64_t hint, unsigned holder, claim *out) {
    descriptor *d = descriptor_of(view, sequence);
    uint64_t seen = LOAD_ACQUIRE(&d->claim); /* SYNC claim */
    while (STATE_OF(seen) == CLAIM_READY && LAP_OF(seen) == lap_of(view, sequence)) {
        unsigned attempt = ATTEMPT_OF(seen) < MAX_ATTEMPT ? ATTEMPT_OF(seen) + 1 : MAX_ATTEMPT;
        unsigned spared = SPARED_OF(seen);
        if (spared)
            work_keep_spared(view, sequence, spared);
        uint64_t mine = WORD(LAP_OF(seen), CLAIM_CLAIMED, attempt, 0, 0) | holder;
        if (!CAS_SEQ(&d->claim, &seen, mine))
            continue; /* seen is what it is now */
        CAS_SEQ(&view->header->next, &hint, (hint & ~SEQUENCE_MASK) | ((sequence + 1) & SEQUENCE_MASK));
        *out = (claim){.word = mine, .attempt = attempt < MAX_ATTEMPT && spared < attempt ? attempt - spared : attempt};
        int status = read_claimed(view, sequence, &out->record);
        if (status != RING_OK)
            out->record.sequence = sequence;
        return status;
    }
    return RING_EMPTY;
}

/* When the first READY record was published: RING_OK, or RING_EMPTY; for who compares rings, and claims then. It may be
 * somebody else's meanwhile: the claim word tells, which is looked at again behind the time (acquire, as in work_copy). The
 * position is masked, for nobody has checked it. */
int work_peek(const ring_view *view, uint64_t *time_ns) {
    uint64_t hint = LOAD_SEQ(&view->header->next);
    uint64_t tail = LOAD_SEQ(&view->header->tail); /* SYNC tail */
    uint64_t back = behind(hint, tail), from = tail - (back < view->slots ? back : view->slots);
    for (uint64_t sequence = from; sequence < tail; sequence++) {
        descriptor *d = descriptor_of(view, sequence);
        uint64_t seen = LOAD_ACQUIRE(&d->claim); /* SYNC claim */
        if (STATE_OF(seen) != CLAIM_READY || LAP_OF(seen) != lap_of(view, sequence))
            continue;
        uint64_t position = POSITION_OF(LOAD_ACQUIRE(&d->place));
        *time_ns = LOAD_ACQUIRE(word_at(view, (position + RECORD_TIME) & ~(uint64_t)7));
        if (LOAD_RELAXED(&d->claim) == seen)
            return RING_OK;
    }
    if (from < tail) /* as in work_claim */
        CAS_SEQ(&view->header->next, &hint, (hint & ~SEQUENCE_MASK) | (tail & SEQUENCE_MASK));
    return RING_EMPTY;
}

/* Claims the first READY record, and counts the attempt. The claim holds until done, given back or reclaimed. The caller
 * asks work_ready afterwards (SYNC chain). */
int work_claim(const ring_view *view, unsigned owner, unsigned generation, claim *out) {
    unsigned holder = (owner & 0xff) << 16 | (generation & 0xffff);
    uint64_t hint = LOAD_SEQ(&view->header->next);
    uint64_t tail = LOAD_SEQ(&view->header->tail); /* SYNC tail */
    uint64_t back = behind(hint, tail), from = tail - (back < view->slots ? back : view->slots);
    /* below the slots all is DONE: the publisher passed */
    for (uint64_t sequence = from; sequence < tail; sequence++) {
        int status = claim_one(view, sequence, hint, holder, out);
        if (status != RING_EMPTY)
            return status;
    }
    if (from < tail && tail_beyond_gate(view, tail))
        return RING_CORRUPT;
    if (from < tail) /* or work_ready would say so for ever, and nobody park */
        CAS_SEQ(&view->header->next, &hint, (hint & ~SEQUENCE_MASK) | (tail & SEQUENCE_MASK));
    return RING_EMPTY;
}

/* Moves the gate over DONE words, as far as they go. Whoever makes a word DONE looks at the gate afterwards, so the
 * last of two neighbours moves it over both. */
void work_advance_gate(const ring_view *view) {
    uint64_t gate = LOAD_SEQ(&view->header->gate);
    for (;;) {
        uint64_t tail = LOAD_SEQ(&view->header->tail), to = gate;
        while (to < tail && to - gate < view->slots) {
            uint64_t seen = LOAD_SEQ(&descriptor_of(view, to)->claim);
            if (STATE_OF(seen) != CLAIM_DONE || LAP_OF(seen) != lap_of(view, to))
                break;
            to++;
        }
        if (to == gate)
            return;
        if (CAS_SEQ(&view->header->gate, &gate, to)) /* SYNC gate */
            gate = to;
    }
}

int work_done(const ring_view *view, const claim *claim) {
    uint64_t expected = claim->word, sequence = claim->record.sequence;
    uint64_t done = IN_STATE(expected, CLAIM_DONE);
    if (!CAS_SEQ(&descriptor_of(view, sequence)->claim, &expected, done)) /* SYNC claim */
        return RING_LOST;
    work_advance_gate(view);
    return RING_OK;
}

/* `unseen`: the event was handed to nobody, so that this claim is not to count as an attempt. */
int work_give_back(const ring_view *view, const claim *claim, bool unseen) {
    uint64_t expected = claim->word, sequence = claim->record.sequence;
    unsigned attempt = ATTEMPT_OF(expected), spared = work_spared(view, sequence) + unseen;
    uint64_t ready = WORD(LAP_OF(expected), CLAIM_READY, attempt, 0, spared < attempt ? spared : attempt);
    if (!CAS_SEQ(&descriptor_of(view, sequence)->claim, &expected, ready)) /* SYNC claim */
        return RING_LOST;
    work_lower_next(view, sequence);
    return RING_OK;
}

/* Before work_done: the counter splits what is done, so that a death in between counts as delivered or not at all. */
void work_count_loss(loss_record *loss, uint64_t sequence, uint64_t now_ns) {
    if (!LOAD_RELAXED(&loss->first_ns)) {
        STORE_RELAXED(&loss->first, sequence);
        STORE_RELAXED(&loss->first_ns, now_ns);
    }
    STORE_RELAXED(&loss->last, sequence);
    STORE_RELAXED(&loss->last_ns, now_ns);
    ADD_SEQ(&loss->count, 1);
}

/* ---- what is open ---- */

/* The sequences that may not be DONE. The tail is read first: the gate may have grown since, which only hides; the other
 * way round a whole lap may come in between, and a sound ring look corrupt. */
int work_open_range(const ring_view *view, uint64_t *from, uint64_t *to) {
    uint64_t tail = LOAD_SEQ(&view->header->tail), gate = LOAD_SEQ(&view->header->gate);
    *from = gate;
    *to = gate < tail ? tail : gate;
    return *to - gate > view->slots || (gate > tail && gate > LOAD_SEQ(&view->header->tail)) ? RING_CORRUPT : RING_OK;
}

static bool holds(const ring_view *view, uint64_t sequence, uint64_t seen, unsigned holder) {
    return STATE_OF(seen) == CLAIM_CLAIMED && HOLDER_OF(seen) == holder && LAP_OF(seen) == lap_of(view, sequence);
}

/* Makes READY what `owner` of `generation` holds, the attempt kept, and lowers `next` and `due` in any case, so that a
 * reclaim cut short by another death is simply done again. Only for proven deaths. */
int work_reclaim(const ring_view *view, unsigned owner, unsigned generation, uint64_t *count) {
    unsigned holder = (owner & 0xff) << 16 | (generation & 0xffff);
    uint64_t from, to;
    *count = 0;
    if (work_open_range(view, &from, &to) != RING_OK)
        return RING_CORRUPT;
    for (uint64_t sequence = from; sequence < to; sequence++) {
        word *w = &descriptor_of(view, sequence)->claim;
        uint64_t seen = LOAD_ACQUIRE(w);
        if (!holds(view, sequence, seen, holder))
            continue;
        uint64_t ready = WORD(LAP_OF(seen), CLAIM_READY, ATTEMPT_OF(seen), 0, work_spared(view, sequence));
        *count += CAS_SEQ(w, &seen, ready);
    }
    work_lower_next(view, from);
    work_lower_due(view, 1); /* long over: whoever looks next finds out what is delayed */
    work_advance_gate(view); /* the dead may have acked without moving it */
    return RING_OK;
}

/* How many records a worker holds; the first `room` of them are told. */
uint64_t work_held(const ring_view *view, unsigned owner, unsigned generation, held_claim *into, uint64_t room) {
    unsigned holder = (owner & 0xff) << 16 | (generation & 0xffff);
    uint64_t from, to, held = 0;
    if (work_open_range(view, &from, &to) != RING_OK)
        return 0;
    for (uint64_t sequence = from; sequence < to; sequence++) {
        uint64_t seen = LOAD_ACQUIRE(&descriptor_of(view, sequence)->claim);
        if (!holds(view, sequence, seen, holder))
            continue;
        if (held < room)
            into[held] = (held_claim){sequence, seen};
        held++;
    }
    return held;
}

/* Nobody is to get what is left: makes DONE all that is not, counts it as abandoned, and moves the gate. Each event is
 * either acked or abandoned, whichever CAS came first; the counter goes before the word, and is taken back. */
int work_abandon(const ring_view *view, uint64_t now_ns, uint64_t *count) {
    loss_record *loss = &view->header->abandoned;
    uint64_t from, to;
    *count = 0;
    if (work_open_range(view, &from, &to) != RING_OK)
        return RING_CORRUPT;
    for (uint64_t sequence = from; sequence < to; sequence++) {
        word *w = &descriptor_of(view, sequence)->claim;
        uint64_t seen = LOAD_ACQUIRE(w);
        bool gone = false;
        while (!gone && STATE_OF(seen) != CLAIM_DONE && LAP_OF(seen) == lap_of(view, sequence)) {
            work_count_loss(loss, sequence, now_ns);
            gone = CAS_SEQ(w, &seen, IN_STATE(seen, CLAIM_DONE));
            if (!gone)
                ADD_SEQ(&loss->count, UINT64_MAX);
        }
        *count += gone;
    }
    work_advance_gate(view);
    return RING_OK;
}

/* ---- books ---- */

/* What a counter says of what is done, as far as there is some left. */
static uint64_t part_of(const loss_record *loss, uint64_t *left) {
    uint64_t count = LOAD_ACQUIRE(&loss->count), part = count < *left ? count : *left;
    *left -= part;
    return part;
}

/* The group's books on this ring. What is done comes from the gate and the claim words above it; the counters split it. */
int work_terms_of(const ring_view *view, work_terms *out) {
    const ring_header *h = view->header;
    uint64_t first = LOAD_ACQUIRE(&h->oldest), gate = LOAD_SEQ(&h->gate), tail = LOAD_SEQ(&h->tail);
    *out = (work_terms){.first_open = tail};
    if (gate > tail || first > gate || tail - first > COUNT_LIMIT)
        return RING_CORRUPT;
    if (tail - gate > view->slots) /* the gate moved on while we looked */
        gate = tail - view->slots;
    out->done = gate - first;
    for (uint64_t sequence = gate; sequence < tail; sequence++) {
        uint64_t seen = LOAD_SEQ(&descriptor_of(view, sequence)->claim);
        bool current = LAP_OF(seen) == lap_of(view, sequence);
        if (STATE_OF(seen) == CLAIM_DONE || !current) { /* another lap: done, and used again since */
            out->done++;
            continue;
        }
        out->claimed += STATE_OF(seen) == CLAIM_CLAIMED;
        out->delayed += STATE_OF(seen) == CLAIM_DELAYED;
        if (out->first_open == tail)
            out->first_open = sequence;
    }
    out->refused = LOAD_ACQUIRE(&h->refused);
    if (out->refused > COUNT_LIMIT)
        return RING_CORRUPT;
    out->offered = tail - first + out->refused;
    out->depth = tail - first - out->done;
    uint64_t left = out->done;
    out->rejected = part_of(&h->rejected, &left);
    out->undecodable = part_of(&h->undecodable, &left);
    out->abandoned = part_of(&h->abandoned, &left);
    record r;
    if (out->first_open < tail && read_claimed(view, out->first_open, &r) == RING_OK)
        out->oldest_ns = r.time_ns;
    return RING_OK;
}

/* Whether the group still is owed this event of the ring; `out` is its record, unless it is NULL. */
bool work_owed(const ring_view *view, uint64_t sequence, record *out) {
    if (sequence < LOAD_SEQ(&view->header->gate)) /* SYNC gate */
        return false;
    uint64_t seen = LOAD_SEQ(&descriptor_of(view, sequence)->claim); /* SYNC claim */
    if (LAP_OF(seen) != lap_of(view, sequence) || STATE_OF(seen) == CLAIM_DONE)
        return false;
    return !out || read_claimed(view, sequence, out) == RING_OK;
}
