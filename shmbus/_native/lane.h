/* Lanes: a group with a key hands out the events of one key one at a time, and in each publisher's order.
 *
 * Layout      layout.h: lane_table, one to a group; the lane of a record stands in its descriptor, beside the position.
 * Writers     The publisher writes the lane of a record before its claim word. A lane changes by CAS: from 0 by the worker
 *             that will claim, to 0 by whoever took that claim's word out of CLAIMED; the lock holder makes it its own.
 * Invariants  L1  the lane of a CLAIMED record is held, by whoever the claim word names; so no two are CLAIMED at once.
 *             L2  while its lane is free no READY or DELAYED record lies below `next`; above it stands where `next` says.
 *             L3  who claims a record has held its lane since before it looked again whether anything came back (the tag of
 *                 `next`) to this ring, or to one that its publisher wrote before: nothing of the lane is open there.
 *             L4  a lane is free, or somebody who lives holds it and will look (or wake who does) when it frees it, or a
 *                 reclaim will.
 * Crash order Lane, claim word. Claim word, next, lane, freed. A death in between leaves a lane of the dead, or of nobody,
 *             and the next reclaim frees it, after the claims.
 *
 * `next` cannot pass what may not be had yet. So a worker remembers what it passed over, and looks at that and at what is new:
 *             M   of what is READY or DELAYED below `to` all is listed, or the tag of `next` has changed since (or will, before
 *                 its lane is free: L3).
 */
#ifndef SHMBUS_LANE_H
#define SHMBUS_LANE_H

#include "work.h"

enum { LANE_AGAIN = 5 }; /* something came back meanwhile: the whole look begins anew */

#ifndef LANE_MEMORY /* a harness has less */
#define LANE_MEMORY 128u
#endif

typedef struct
    lane_memory {   /* of one worker and one ring, in its own memory: what its looks passed over. Zeroed, it is empty */
    uint64_t tag;   /* of `next` */
    uint64_t freed; /* of the table, before the last look */
    uint64_t to;
    unsigned count;
    struct {
        uint64_t sequence;
        unsigned lane;
    } passed[LANE_MEMORY]; /* in their order; more of them, and `to` stands still */
} lane_memory;

typedef struct lane_ring { /* one ring as a look found it */
    const ring_view *view;
    uint64_t hint, tail;
} lane_ring;

typedef struct lane_look { /* of one worker, in its own memory: one look over its rings, one after the other */
    lane_table *table;
    uint64_t me;
    uint64_t freed;        /* of the table, before this look */
    uint32_t round;        /* of the marks that hold for the ring that is looked at */
    uint32_t before;       /* of those that hold for all that follow in this look */
    uint32_t marks[LANES]; /* the round in which a record of the lane was met that has to come first */
    lane_ring *rings;      /* those that come before the ring, in their order; room for all, and one more */
    unsigned count;        /* of them */
} lane_look;

uint64_t lane_size(void);
int lane_format(void *base, uint64_t size, uint64_t group_id);
int lane_open(lane_table **table, void *base, uint64_t size);

void lane_begin(lane_look *look);
void lane_next(lane_look *look, bool before);
int lane_claim(lane_look *look, const ring_view *view, lane_memory *memory, unsigned owner, unsigned generation,
               claim *out);
bool lane_changed(const lane_ring *ring);
bool lane_wanted(const lane_table *table, const ring_view *view, unsigned lane);

int lane_done(lane_table *table, const ring_view *view, const claim *claim, unsigned *lane);
int lane_give_back(lane_table *table, const ring_view *view, const claim *claim, bool unseen, unsigned *lane);
int lane_delay(lane_table *table, const ring_view *view, const claim *claim, uint64_t due_ns, bool unseen, bool *first,
               unsigned *lane);
int lane_reclaim(lane_table *table, const ring_view *view, unsigned owner, unsigned generation, uint64_t *count);
int lane_take_back(lane_table *table, const ring_view *view, const claim *claim);
uint64_t lane_free_all(lane_table *table, unsigned owner, unsigned generation);

#endif
