/* What becomes of a ring without a publisher: who is owed something, what can be freed. See retire.h for what must hold. */
#include "retire.h"

/* ---- spans ---- */

typedef struct spans {
    span *out;
    unsigned count;
} spans;

static void add_span(spans *s, uint64_t offset, uint64_t end) {
    if (offset < end)
        s->out[s->count++] = (span){offset, end - offset};
}

/* The whole pages of an area that wraps, from byte `from` on for `length` bytes; both may be any. The area begins on a
 * page, and has a page or more. */
static void add_wrapped(spans *s, uint64_t base, uint64_t area, uint64_t from, uint64_t length) {
    uint64_t begin = ((from & (area - 1)) + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    uint64_t end = ((from & (area - 1)) + length) & ~(uint64_t)(PAGE - 1);
    if (area < PAGE || begin >= end)
        return;
    add_span(s, base + begin, base + (end < area ? end : area));
    if (end > area)
        add_span(s, base + (begin > area ? begin - area : 0), base + end - area);
}

static uint64_t records_at(const ring_view *view) { return (uint64_t)(view->data - (unsigned char *)view->header); }

/* ---- broadcast ---- */

/* Who of the slots `among` has events left. The caller knows which of them belong to subscribers that live. */
int ring_owed_of(const ring_view *view, uint64_t among, ring_owed *out) {
    *out = (ring_owed){0};
    for (uint64_t left = among & LOAD_SEQ(&view->header->members); left; left &= left - 1) {
        unsigned slot = (unsigned)__builtin_ctzll(left);
        uint64_t bit = left & (~left + 1);
        ring_terms t;
        if (ring_terms_of(view, slot, &t) != RING_OK)
            return RING_CORRUPT;
        if (!t.depth)
            continue;
        const cursor_slot *s = slot_of(view, slot);
        if (!LOAD_ACQUIRE(&s->lossy) || LOAD_SEQ(&view->header->reliable) & bit)
            out->reliable |= bit;
        else if (LOAD_SEQ(&s->attached) == SLOT_ATTACHED)
            out->attached |= bit;
        else
            out->unopened |= bit;
    }
    return RING_OK;
}

/* Takes a slot from a reader that has not opened it: false if it has. */
bool ring_give_up(const ring_view *view, unsigned slot) {
    uint64_t seen = 0;
    return slot < MAX_SUBSCRIBERS && (CAS_SEQ(&slot_of(view, slot)->attached, &seen, SLOT_GIVEN_UP) ||
                                      seen == SLOT_GIVEN_UP); /* R2: one of the two wins */
}

/* The least position that a member may still look at; `oldest` where that cannot be told. The position of a lossy reader
 * is never ahead of it, so it looks at nothing below. */
static uint64_t hindmost(const ring_view *view, uint64_t oldest, uint64_t tail) {
    uint64_t least = tail;
    for (uint64_t left = LOAD_SEQ(&view->header->members); left; left &= left - 1) {
        const cursor_slot *s = slot_of(view, (unsigned)__builtin_ctzll(left));
        uint64_t position = LOAD_ACQUIRE(LOAD_ACQUIRE(&s->lossy) ? &s->position : &s->cursor); /* SYNC cursor */
        if (position < oldest || position > tail)
            return oldest;
        if (position < least)
            least = position;
    }
    return least;
}

/* True if a member may stand below `oldest`: a lossy one looks at the record there before it finds out, wherever that
 * lies, and a reliable one was pinned just before `oldest` passed it. */
static bool lapped(const ring_view *view, uint64_t oldest) {
    for (uint64_t left = LOAD_SEQ(&view->header->members); left; left &= left - 1) {
        const cursor_slot *s = slot_of(view, (unsigned)__builtin_ctzll(left));
        if (LOAD_ACQUIRE(LOAD_ACQUIRE(&s->lossy) ? &s->position : &s->cursor) < oldest)
            return true;
    }
    return false;
}

/* Bytes that ring_trim would give way. */
uint64_t ring_slack(const ring_view *view) {
    uint64_t oldest = LOAD_ACQUIRE(&view->header->oldest), tail = LOAD_ACQUIRE(&view->header->tail);
    return oldest < tail ? hindmost(view, oldest, tail) - oldest : 0;
}

/* Gives up the history: moves `oldest` to the record that the hindmost member reads next, and `intent` a ring further, so
 * that whoever looks below finds itself overrun. Over the records one by one: a member may say what it likes. */
int ring_trim(const ring_view *view) {
    uint64_t oldest = LOAD_ACQUIRE(&view->header->oldest), tail = LOAD_ACQUIRE(&view->header->tail);
    uint64_t to = hindmost(view, oldest, tail), intent = LOAD_ACQUIRE(&view->header->intent);
    if (oldest > tail || tail - oldest > view->capacity)
        return RING_CORRUPT;
    for (record r; oldest < to; oldest = r.end) {
        unsigned kind;
        if (record_header(view, oldest, tail, &r, &kind) != RING_OK)
            return RING_CORRUPT;
        if (r.end > to)
            break;
    }
    STORE_RELEASE(&view->header->oldest, oldest); /* SYNC oldest: whoever sees the intent sees this */
    if (intent < oldest + view->capacity)
        STORE_SEQ(&view->header->intent, oldest + view->capacity); /* SYNC intent: before the pages go */
    return RING_OK;
}

/* Pages that hold no slot in use, and no byte from `oldest` to the frontier. */
unsigned ring_spare(const ring_view *view, span *out) {
    spans s = {out, 0};
    uint64_t members = LOAD_SEQ(&view->header->members);
    for (uint64_t page = PAGE; page < sizeof(broadcast_segment); page += PAGE) {
        uint64_t first = (page - PAGE) / sizeof(cursor_slot), last = (page - 1) / sizeof(cursor_slot);
        uint64_t here = (last + 1 < 64 ? (1ull << (last + 1)) - 1 : ~0ull) & ~((1ull << first) - 1);
        if (!(members & here))
            add_span(&s, page, page + PAGE);
    }
    uint64_t oldest = LOAD_ACQUIRE(&view->header->oldest), end = LOAD_ACQUIRE(&view->header->tail) + RECORD_ALIGN;
    if (end - oldest < view->capacity && !lapped(view, oldest))
        add_wrapped(&s, records_at(view), view->capacity, end, view->capacity - (end - oldest));
    return s.count;
}

/* ---- work ---- */

/* Where the first record lies that is not DONE; the end of the last one when all are. */
static uint64_t first_kept(const ring_view *view, uint64_t end) {
    uint64_t gate = LOAD_SEQ(&view->header->gate), tail = LOAD_ACQUIRE(&view->header->tail); /* SYNC gate */
    if (gate >= tail)
        return end;
    const descriptor *table = (const descriptor *)((const unsigned char *)view->header + PAGE);
    return POSITION_OF(LOAD_RELAXED(&table[gate & (view->slots - 1)].place));
}

uint64_t work_slack(const ring_view *view) {
    uint64_t end = LOAD_ACQUIRE(&view->header->position), kept = first_kept(view, end);
    uint64_t freed = LOAD_RELAXED(&view->header->intent);
    return kept > freed && kept <= end && end - kept <= view->capacity ? kept - freed : 0;
}

/* Notes what work_spare is about to free. */
void work_trim(const ring_view *view) {
    STORE_RELAXED(&view->header->intent, LOAD_RELAXED(&view->header->intent) + work_slack(view));
}

/* Pages without a record that is not DONE, or its note, and without a descriptor that was ever used: a hint may lie below
 * the gate. */
unsigned work_spare(const ring_view *view, span *out) {
    spans s = {out, 0};
    uint64_t first = LOAD_ACQUIRE(&view->header->oldest), tail = LOAD_ACQUIRE(&view->header->tail);
    uint64_t end = LOAD_ACQUIRE(&view->header->position), kept = first_kept(view, end);
    uint64_t gate = LOAD_SEQ(&view->header->gate), table = view->slots * sizeof(descriptor);
    if (tail - first < view->slots)
        add_wrapped(&s, PAGE, table, tail * sizeof(descriptor), (view->slots - (tail - first)) * sizeof(descriptor));
    if (gate <= tail && tail - gate < view->slots)
        add_wrapped(&s, PAGE + table, view->slots * sizeof(note), tail * sizeof(note),
                    (view->slots - (tail - gate)) * sizeof(note));
    if (kept <= end && end - kept <= view->capacity)
        add_wrapped(&s, records_at(view), view->capacity, end, view->capacity - (end - kept));
    return s.count;
}
