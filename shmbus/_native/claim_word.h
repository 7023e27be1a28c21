/* The claim word of a record and the note beside it, for the two files that change them: work.c and delay.c. See layout.h
 * for the bits, work.h for what must hold. */
#ifndef SHMBUS_CLAIM_WORD_H
#define SHMBUS_CLAIM_WORD_H

#include "work.h"

#define SEQUENCE_BITS 48 /* of the `next` hint, and of ticks in the `due` hint; the rest is the tag */
#define SEQUENCE_MASK ((1ull << SEQUENCE_BITS) - 1)
#define LAP_MASK ((1u << 25) - 1)
#define WORD(lap, state, attempt, owner, generation)                                                                   \
    ((uint64_t)((lap) & LAP_MASK) << 39 | (uint64_t)(state) << 36 | (uint64_t)(attempt) << 24 |                        \
     (uint64_t)(owner) << 16 | (uint64_t)((generation) & 0xffff))
#define LAP_OF(word) ((word) >> 39)
#define STATE_OF(word) ((unsigned)((word) >> 36) & 7)
#define ATTEMPT_OF(word) ((unsigned)((word) >> 24) & 0xfff)
#define HOLDER_OF(word) ((unsigned)(word) & 0xffffff) /* owner slot and generation */
#define SPARED_OF(word) ((unsigned)(word) & 0xfff)    /* of a word without a holder */
#define IN_STATE(word, state) (((word) & ~(7ull << 36)) | (uint64_t)(state) << 36)

static inline descriptor *descriptor_of(const ring_view *view, uint64_t sequence) {
    return (descriptor *)((unsigned char *)view->header + PAGE) + (sequence & (view->slots - 1));
}

static inline note *note_of(const ring_view *view, uint64_t sequence) {
    note *notes = (note *)((descriptor *)((unsigned char *)view->header + PAGE) + view->slots);
    return notes + (sequence & (view->slots - 1));
}

static inline uint64_t position_of(const ring_view *view, uint64_t sequence) {
    return POSITION_OF(LOAD_RELAXED(&descriptor_of(view, sequence)->place));
}

/* Of a record that we hold, or that nobody can overwrite; any other's may be anything. */
static inline unsigned lane_of(const ring_view *view, uint64_t sequence) {
    return LANE_OF(LOAD_RELAXED(&descriptor_of(view, sequence)->place));
}

/* How often the descriptors were gone through. There is a power of two of them, and an event needs this four times: a
 * division of 64 bits takes up to 90 cycles (Intel before Ice Lake). */
static inline uint64_t laps_of(const ring_view *view, uint64_t sequence) {
    return sequence >> __builtin_ctzll(view->slots);
}

static inline uint64_t lap_of(const ring_view *view, uint64_t sequence) { return laps_of(view, sequence) & LAP_MASK; }

/* How far a hint lies behind a sequence, 0 if it does not: modulo what a hint can hold. */
static inline uint64_t behind(uint64_t hint, uint64_t sequence) {
    uint64_t distance = (sequence - hint) & SEQUENCE_MASK;
    return distance >> (SEQUENCE_BITS - 1) ? 0 : distance;
}

/* Reads the record of a sequence that we hold, or that nobody can overwrite. */
static inline int read_claimed(const ring_view *view, uint64_t sequence, record *out) {
    uint64_t position = position_of(view, sequence);
    if (record_read(view, position, position + view->capacity, out) != RING_OK || out->sequence != sequence)
        return RING_CORRUPT;
    return RING_OK;
}

int work_open_range(const ring_view *view, uint64_t *from, uint64_t *to);
void work_lower_next(const ring_view *view, uint64_t sequence);
bool work_lower_due(const ring_view *view, uint64_t ticks);
void work_advance_gate(const ring_view *view);
unsigned work_spared(const ring_view *view, uint64_t sequence);
void work_keep_spared(const ring_view *view, uint64_t sequence, unsigned spared);

#endif
