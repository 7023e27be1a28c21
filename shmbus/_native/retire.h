/* A retired ring: its publisher is closed or dead, and what is in it is all that there will be. Whoever holds the bus
 * lock then stands in for the publisher, gives a ring up for lossy readers that never came, and frees what nobody will
 * look at any more.
 *
 * Layout      layout.h. Pages are those of the segment; the header's stays whatever happens.
 * Writers     The lock holder writes oldest and intent, in place of the publisher; `attached` changes by CAS beside the
 *             reader that opens the ring.
 * Invariants  R1  every page that a member may still look at stays: its slot, the records from `oldest` to the frontier,
 *                 the descriptors that were ever used, the records and notes from the gate on.
 *             R2  a reader has opened its slot, or the slot was given up: never both.
 * Crash order oldest, intent, pages: a death in between leaves pages that go at the next attempt. A slot is given up
 *             before the document has it: a death in between leaves a ring whose reader does not come, until the next
 *             sweep.
 */
#ifndef SHMBUS_RETIRE_H
#define SHMBUS_RETIRE_H

#include "work.h"

typedef struct ring_owed { /* bitmaps of slots that have something left to receive */
    uint64_t reliable;
    uint64_t attached; /* lossy, and their readers have the ring open */
    uint64_t unopened; /* lossy, and they do not */
} ring_owed;

typedef struct span { /* whole pages of a segment, in bytes */
    uint64_t offset, length;
} span;

#define SPARE_SPANS 8 /* five pages of cursor slots one by one, two runs of records, one to spare */

int ring_owed_of(const ring_view *view, uint64_t among, ring_owed *out);
bool ring_give_up(const ring_view *view, unsigned slot);
uint64_t ring_slack(const ring_view *view);
int ring_trim(const ring_view *view);
unsigned ring_spare(const ring_view *view, span *out);

uint64_t work_slack(const ring_view *view);
void work_trim(const ring_view *view);
unsigned work_spare(const ring_view *view, span *out);

#endif
