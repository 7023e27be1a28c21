/* Work ring: one publisher, one group, each record to one of its workers.
 *
 * Layout      layout.h: ring_header, descriptors (one per sequence), then `capacity` bytes of records.
 * Writers     The publisher writes records, positions, READY words and tail; everything else changes by CAS: claim words
 *             and the `next` hint by any worker or reclaimer, the gate by anyone.
 * Invariants  K1  a record is held by at most one live worker: the claim word names it.
 *             K2  no record is lost: the gate passes DONE words only, and the publisher never passes the gate.
 *             K3  no record is delivered twice unless a worker died or gave it back.
 *             N   next <= first READY sequence, or somebody who made a word READY has not lowered it yet (and whoever
 *                 follows a reclaim that died lowers it again).
 * Crash order Publisher: record, position, claim word, tail. Worker: counter, claim word, gate. Reclaim: claim words,
 *             next. A death between any two leaves words that say what is held.
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
} work_writer;

typedef struct claim {
    record record;
    uint64_t word; /* as we wrote it: ack and nack expect it unchanged */
    unsigned attempt;
} claim;

typedef struct work_terms {
    uint64_t offered, done, depth, claimed, refused, rejected, undecodable;
    uint64_t oldest_ns;  /* CLOCK_REALTIME of the first event that is not done, 0 when there is none */
    uint64_t first_open; /* its sequence */
} work_terms;

uint64_t work_size(uint64_t capacity);
int work_format(void *base, uint64_t size, uint64_t capacity, uint64_t ring_id, uint64_t first_sequence,
                uint64_t start);

int work_writer_open(work_writer *w, const ring_view *view);
int work_reserve(work_writer *w, uint64_t length);
void work_write(work_writer *w, const part *part);
void work_commit(work_writer *w);
uint64_t work_room(const ring_view *view);

bool work_ready(const ring_view *view);
bool work_fresh(const ring_view *view, uint64_t first);
int work_claim(const ring_view *view, unsigned owner, unsigned generation, claim *out);
int work_read(const ring_view *view, claim *claim);
int work_done(const ring_view *view, const claim *claim);
int work_give_back(const ring_view *view, const claim *claim);
void work_count_loss(const ring_view *view, bool rejected, uint64_t sequence, uint64_t now_ns);
int work_reclaim(const ring_view *view, unsigned owner, unsigned generation, uint64_t *count);
uint64_t work_held(const ring_view *view, unsigned owner, unsigned generation);
int work_terms_of(const ring_view *view, work_terms *out);

#endif
