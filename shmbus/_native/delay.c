/* What hardly any event needs: claims that nobody saw, and records that are given back for later. See layout.h for the
 * notes, work.h for what must hold (T).
 *
 * Nobody keeps a list: `due` of the ring says when the first may be due, and whoever looks then walks over what is open.
 * Like `next` it is lowered after the word that it is for, with a new tag in any case, so that a raise which was computed
 * before fails; too low costs a walk. */
#include "claim_word.h"

#define DUE_BITS 52 /* ticks of a note; the rest is the attempt */
#define DUE_MASK ((1ull << DUE_BITS) - 1)
#define SPARED_BITS 12

/* ---- claims that nobody saw ---- */

/* Before the claim of a word that says `spared`: what stands there of this lap was in a claim word, and only grows, so
 * a worker that slept cannot take anything back. */
void work_keep_spared(const ring_view *view, uint64_t sequence, unsigned spared) {
    word *at = &note_of(view, sequence)->spared;
    uint64_t fresh = laps_of(view, sequence) << SPARED_BITS | spared, seen = LOAD_RELAXED(at);
    while (seen < fresh && !CAS_SEQ(at, &seen, fresh)) /* SYNC spared */
        ;
}

/* Of a record that is CLAIMED. */
unsigned work_spared(const ring_view *view, uint64_t sequence) {
    uint64_t seen = LOAD_RELAXED(&note_of(view, sequence)->spared); /* SYNC spared: after the claim word */
    return seen >> SPARED_BITS == laps_of(view, sequence) ? (unsigned)seen & ((1u << SPARED_BITS) - 1) : 0;
}

/* ---- delayed records ---- */

/* True if nothing was to come sooner: then the others sleep for too long. */
bool work_lower_due(const ring_view *view, uint64_t ticks) {
    uint64_t hint = LOAD_SEQ(&view->header->due), before, lowered;
    do {
        before = hint & SEQUENCE_MASK;
        uint64_t low = before && before < ticks ? before : ticks;
        lowered = ((hint >> SEQUENCE_BITS) + 1) << SEQUENCE_BITS | low;
    } while (!CAS_SEQ(&view->header->due, &hint, lowered)); /* SYNC due */
    return !before || ticks < before;
}

/* Writes the note of a claim that is ours. One that was taken from us does not overwrite its successor's: whoever has the
 * claim now changed the note after we saw the word, or will find ours there and change it. */
static int write_due(const ring_view *view, const claim *claim, uint64_t ticks) {
    const word *w = &descriptor_of(view, claim->record.sequence)->claim;
    word *at = &note_of(view, claim->record.sequence)->due;
    uint64_t fresh = (uint64_t)ATTEMPT_OF(claim->word) << DUE_BITS | ticks, seen = LOAD_ACQUIRE(at);
    do {
        if (LOAD_RELAXED(w) != claim->word) /* SYNC due: after the note */
            return RING_LOST;
    } while (!CAS_SEQ(at, &seen, fresh));
    return RING_OK;
}

/* Gives back a claim, not to be READY before `due_ns`. `first`: nothing was to come sooner, so whoever is parked must look
 * again, and sleep no longer than until then (SYNC due). */
int work_delay(const ring_view *view, const claim *claim, uint64_t due_ns, bool unseen, bool *first) {
    uint64_t expected = claim->word, sequence = claim->record.sequence;
    uint64_t ticks = (due_ns + (1u << TICK_BITS) - 1) >> TICK_BITS;
    *first = false;
    if (write_due(view, claim, ticks) != RING_OK)
        return RING_LOST;
    unsigned attempt = ATTEMPT_OF(expected), spared = work_spared(view, sequence) + unseen;
    uint64_t delayed = WORD(LAP_OF(expected), CLAIM_DELAYED, attempt, 0, spared < attempt ? spared : attempt);
    if (!CAS_SEQ(&descriptor_of(view, sequence)->claim, &expected, delayed)) /* SYNC claim */
        return RING_LOST;
    *first = work_lower_due(view, ticks);
    return RING_OK;
}

/* True if a DELAYED record has to wait; `ticks` says until when. A note of another attempt, or of another clock, is none. */
static bool waits(const ring_view *view, uint64_t sequence, uint64_t seen, uint64_t now, uint64_t *ticks) {
    uint64_t due = LOAD_RELAXED(&note_of(view, sequence)->due); /* SYNC due: after the claim word */
    *ticks = due & DUE_MASK;
    return due >> DUE_BITS == ATTEMPT_OF(seen) && *ticks > now && *ticks - now <= MAX_DELAY_NS >> TICK_BITS;
}

/* Makes READY what is due, and raises `due` to the first record that has to wait: RING_OK, RING_EMPTY if nothing was. */
int work_promote(const ring_view *view, uint64_t now_ns) {
    uint64_t hint = LOAD_ACQUIRE(&view->header->due), now = now_ns >> TICK_BITS, from, to, first = 0,
             ticks; /* SYNC due */
    if (!work_is_due((hint & SEQUENCE_MASK) << TICK_BITS, now_ns))
        return RING_EMPTY;
    if (work_open_range(view, &from, &to) != RING_OK)
        return RING_CORRUPT;
    uint64_t lowest = to;
    for (uint64_t sequence = from; sequence < to; sequence++) {
        word *w = &descriptor_of(view, sequence)->claim;
        uint64_t seen = LOAD_ACQUIRE(w); /* SYNC claim */
        if (STATE_OF(seen) != CLAIM_DELAYED || LAP_OF(seen) != lap_of(view, sequence))
            continue;
        if (waits(view, sequence, seen, now, &ticks))
            first = first && first < ticks ? first : ticks;
        else if (CAS_SEQ(w, &seen, IN_STATE(seen, CLAIM_READY)) && sequence < lowest)
            lowest = sequence;
    }
    if (lowest < to)
        work_lower_next(view, lowest);
    CAS_SEQ(&view->header->due, &hint, ((hint >> SEQUENCE_BITS) + 1) << SEQUENCE_BITS | (first & SEQUENCE_MASK));
    return lowest < to ? RING_OK : RING_EMPTY;
}
