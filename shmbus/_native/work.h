/* Work ring: one publisher, one group, each record to one of its workers.
 *
 * Layout      layout.h: ring_header, descriptors and notes (one per sequence), then `capacity` bytes of records.
 * Writers     The publisher writes records, positions, READY words and tail; everything else changes by CAS: claim words,
 *             notes and the hints `next` and `due` by any worker or reclaimer, the gate by anyone.
 * Invariants  K1  a record is held by at most one live worker: the claim word names it.
 *             K2  no record is lost: the gate passes DONE words only, and the publisher never passes the gate.
 *             K3  no record is delivered twice unless a worker died, gave it back or held it for too long.
 *             N   next <= first READY sequence, or somebody who made a word READY has not lowered it yet (and whoever
 *                 follows a reclaim that died lowers it again).
 *             T   due <= the due time of each DELAYED record, or somebody who made a word DELAYED has not lowered it yet
 *                 (and a reclaim lowers it in any case).
 * Crash order Publisher: record, position, claim word, tail. Worker: counter, claim word, gate; a note before the claim
 *             word that it is for, a hint after it. Reclaim: claim words, next, due. A death between any two leaves words
 *             that say what is held.
 */
#ifndef SHMBUS_WORK_H
#define SHMBUS_WORK_H

#include "ring.h"

typedef struct work_writer {
    ring_view view;
    uint64_t head;     /* position behind the last written record */
    uint64_t sequence; /* of the next record */
    uint64_t gate;     /* local copy; only grows */
    uint64_t start;    /* position of the record at the gate: what may not be overwritten */
    uint64_t peak;     /* as a ring_writer has it */
} work_writer;

typedef struct claim {
    record record;
    uint64_t word;    /* as we wrote it: ack and nack expect it unchanged */
    unsigned attempt; /* without those that nobody saw */
} claim;

typedef struct held_claim { /* of a worker, seen from outside */
    uint64_t sequence, word;
} held_claim;

typedef struct work_terms {
    uint64_t offered, done, depth, claimed, delayed, refused, rejected, undecodable, abandoned;
    uint64_t oldest_ns;  /* CLOCK_REALTIME of the first event that is not done, 0 when there is none */
    uint64_t first_open; /* its sequence */
} work_terms;

uint64_t work_size(uint64_t capacity);
int work_format(void *base, uint64_t size, uint64_t capacity, uint64_t ring_id, uint64_t first_sequence,
                uint64_t start);

int work_writer_open(work_writer *w, const ring_view *view);
int work_reserve(work_writer *w, uint64_t length);
void work_write(work_writer *w, const part *part);
uint64_t work_rows(const work_writer *w, uint64_t length);
void work_write_rows(work_writer *w, const part *first, uint64_t count);
void work_commit(work_writer *w);
uint64_t work_room(const ring_view *view);
int work_peak(work_writer *w, uint64_t *peak);

bool work_ready(const ring_view *view);
bool work_fresh(const ring_view *view, uint64_t first);
int work_claim(const ring_view *view, unsigned owner, unsigned generation, claim *out);
int work_peek(const ring_view *view, uint64_t *time_ns);
int work_read(const ring_view *view, claim *claim);
int work_copy(const ring_view *view, const claim *claim, void *into);
int work_done(const ring_view *view, const claim *claim);
int work_give_back(const ring_view *view, const claim *claim, bool unseen);
void work_count_loss(loss_record *loss, uint64_t sequence, uint64_t now_ns);
int work_reclaim(const ring_view *view, unsigned owner, unsigned generation, uint64_t *count);
uint64_t work_held(const ring_view *view, unsigned owner, unsigned generation, held_claim *into, uint64_t room);
int work_abandon(const ring_view *view, uint64_t now_ns, uint64_t *count);
int work_terms_of(const ring_view *view, work_terms *out);
bool work_owed(const ring_view *view, uint64_t sequence, record *out);

/* ---- delay.c ---- */

/* False if no record is delayed; on the line of `next`, so that a worker with enough to do asks for nothing. */
static inline bool work_delayed(const ring_view *view) { return LOAD_RELAXED(&view->header->due) << 16 != 0; }

/* When the first delayed record may be READY, in ns of CLOCK_MONOTONIC; 0: none is delayed. */
static inline uint64_t work_due(const ring_view *view) {
    return LOAD_SEQ(&view->header->due) << 16 >> 16 << TICK_BITS; /* SYNC due: against parked */
}

static inline bool work_is_due(uint64_t due_ns, uint64_t now_ns) {
    return due_ns && (due_ns <= now_ns || due_ns - now_ns > MAX_DELAY_NS);
}

int work_delay(const ring_view *view, const claim *claim, uint64_t due_ns, bool unseen, bool *first);
int work_promote(const ring_view *view, uint64_t now_ns);

#endif
