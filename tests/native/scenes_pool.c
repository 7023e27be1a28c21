/* Scenes on a pool: its publisher allocates, ships and takes back, beside those who look at extents in place, who copy,
 * and who are killed with an extent in hand.
 *
 * X1 nobody who was owed an extent, or holds it, sees another event's bytes. X2 what is owed to nobody and looked at by
 * nobody can be used again. X4 a copy that is said to be whole is. */
#include "world.h"

#include <string.h>

#define EVENTS 3u /* one more than blocks */
#define BLOCKS 2u
#define SLIP_BYTES (8 + sizeof(slip))

static unsigned char *const base = arena + 0x8000; /* behind the ring */

/* ---- set-up ---- */

static void make_pool(void) {
    larder *p = &the.pool;
    uint64_t size = pool_size(BLOCKS * POOL_BLOCK);
    if (pool_format(base, size, BLOCKS * POOL_BLOCK, 7) != RING_OK || pool_open(&p->view, base, size) != RING_OK)
        fail("no pool");
    pool_writer_open(&p->writer, &p->view, &p->used);
    name_region(base, size, 0, "pool");
    for (unsigned i = 0; i < MAX_ACTORS; i++)
        if (pool_enter(&p->view, i + 1, i) != (int)i)
            fail("no holder %u", i);
}

static void build_views(void) {
    make_source(0, FAR, SLIP_BYTES);
    make_pool();
    join(0, 0, false, false);
    join(1, 0, false, false);
}

static void build_copies(void) {
    make_source(0, FAR, SLIP_BYTES);
    make_pool();
    join(0, 0, true, false);
}

static void build_left(void) {
    make_source(0, FAR, SLIP_BYTES);
    make_pool();
    join(0, 0, false, false);
}

static void build_claims(void) {
    make_work(FAR, SLIP_BYTES);
    make_pool();
}

/* ---- the bytes of an extent: its first and its last word ---- */

static word *at(uint64_t block, unsigned last) {
    return (word *)(the.pool.view.data + block * POOL_BLOCK) + (last ? POOL_BLOCK / 8 - 1 : 0);
}

static void write_bytes(uint64_t block, uint64_t value) {
    STORE_RELAXED(at(block, 0), value);
    STORE_RELAXED(at(block, 1), value);
}

static bool bytes_are(uint64_t block, uint64_t value) {
    return LOAD_RELAXED(at(block, 0)) == value && LOAD_RELAXED(at(block, 1)) == value;
}

/* ---- publisher ---- */

static bool owed(unsigned i) {
    if (the.shops)
        return work_owed(&the.work->view, the.pool.out[i].sequence, NULL);
    return pool_debtors(&the.sources[0].view, the.pool.out[i].end) != 0;
}

/* What shipping.c does: events that are owed to nobody end, and what has ended is used again once nobody looks at it. */
static void collect(void) {
    larder *p = &the.pool;
    for (unsigned i = 0; i < p->ended;) {
        if (pool_reuse(&p->writer, p->over[i]))
            p->over[i] = p->over[--p->ended];
        else
            i++;
    }
    for (unsigned i = 0; i < p->shipped;) {
        if (owed(i)) {
            i++;
            continue;
        }
        uint64_t block = p->out[i].block;
        pool_end(&p->writer, block);
        p->out[i] = p->out[--p->shipped];
        if (!pool_reuse(&p->writer, block))
            p->over[p->ended++] = block;
    }
}

static void send(const slip *one) {
    larder *p = &the.pool;
    unsigned char payload[SLIP_BYTES] = {1};
    memcpy(payload + 8, one, sizeof(*one));
    p->out[p->shipped].block = one->block;
    part part = {.payload = payload, .payload_length = sizeof(payload), .flags = RECORD_POOLED};
    if (the.shops) {
        work_writer *w = &the.work->writer;
        if (work_reserve(w, sizeof(payload)) != RING_OK)
            fail("no room for the record");
        work_write(w, &part);
        p->out[p->shipped].sequence = w->sequence - 1;
        p->shipped++;
        work_commit(w);
        return;
    }
    ring_writer *w = &the.sources[0].writer;
    if (ring_reserve(w, sizeof(payload)) != RING_OK)
        fail("no room for the record");
    ring_write(w, &part);
    p->out[p->shipped].end = w->head;
    p->shipped++;
    ring_commit(w);
}

static void ship(unsigned self) {
    (void)self;
    for (uint64_t i = 0; i < EVENTS; i++) {
        slip one;
        for (;;) {
            unsigned long before = moment();
            collect();
            if (pool_allocate(&the.pool.writer, POOL_BLOCK, 1, true, &one) == RING_OK)
                break;
            if (!spin(before))
                return; /* somebody is dead, and nobody has seen to it yet */
        }
        write_bytes(one.block, FIRST_SEQUENCE + i);
        send(&one);
    }
}

/* ---- who looks ---- */

static slip slip_of(const record *r) {
    slip one;
    memcpy(&one, r->body + 8, sizeof(one));
    return one;
}

static void look(unsigned self, uint64_t block, uint64_t sequence) {
    if (!bytes_are(block, sequence))
        fail("X1: actor %u sees other bytes than those of event %llu", self, (unsigned long long)sequence);
}

static void let_go(unsigned self) {
    larder *p = &the.pool;
    if (!p->held[self])
        return;
    look(self, p->held[self] - 1, p->held_sequence[self]);
    uint64_t block = p->held[self] - 1;
    p->held[self] = 0;
    pool_let_go(&p->view, self, block);
}

/* Takes hold of an event's extent; it is owed to us, so it must be there. */
static void hold(unsigned self, const record *r) {
    slip one = slip_of(r);
    uint64_t runs;
    if (pool_hold(&the.pool.view, self, one.block, one.generation) != RING_OK ||
        pool_check(&the.pool.view, &one, &runs) != RING_OK || runs != 1)
        fail("X1: event %llu is owed to actor %u, and its extent is gone", (unsigned long long)r->sequence, self);
    look(self, one.block, r->sequence);
    the.pool.taken++;
    the.pool.held[self] = one.block + 1;
    the.pool.held_sequence[self] = r->sequence;
}

/* Keeps the view of each event until it has the next. */
static void view_each(unsigned self) {
    watcher *w = &the.watchers[self - 1];
    while (w->delivered < EVENTS) {
        unsigned long before = moment();
        record r;
        int status = ring_peek(&w->reader, &r);
        if (status == RING_EMPTY && spin(before))
            continue;
        if (status != RING_OK)
            break;
        let_go(self);
        hold(self, &r);
        ring_advance(&w->reader, &r);
        w->delivered++;
        look(self, the.pool.held[self] - 1, r.sequence);
    }
    let_go(self);
}

/* Copies, and believes what is said of the copy. */
static void copy_each(unsigned self) {
    static uint64_t copy[POOL_BLOCK / 8];
    watcher *w = &the.watchers[self - 1];
    for (unsigned looks = 0; looks < EVENTS;) {
        unsigned long before = moment();
        record r;
        unsigned char body[SLIP_BYTES + 8];
        int status = ring_peek(&w->reader, &r);
        if (status == RING_EMPTY && spin(before))
            continue;
        if (status != RING_OK)
            break;
        status = ring_copy(&w->reader, &r, body);
        if (status != RING_OK)
            fail("nothing is overwritten in this ring");
        r.body = body;
        slip one = slip_of(&r);
        one.length = 8;
        status = pool_copy(&the.pool.view, &one, copy);
        uint64_t first = copy[0];
        one.offset = POOL_BLOCK - 8;
        if (status == RING_OK)
            status = pool_copy(&the.pool.view, &one, copy);
        if (status == RING_OK && (first != r.sequence || copy[0] != r.sequence))
            fail("X4: a whole copy of event %llu is of another", (unsigned long long)r.sequence);
        if (status == RING_CORRUPT)
            fail("a slip that was published cannot be");
        ring_advance(&w->reader, &r);
        looks++;
    }
}

/* Comes to events that it is not owed, as who joins at the oldest does: holds them, or is told that they are gone. */
static void view_late(unsigned self) {
    watcher *w = &the.watchers[self - 1];
    for (unsigned looks = 0; looks < EVENTS;) {
        unsigned long before = moment();
        record r;
        unsigned char body[SLIP_BYTES + 8];
        int status = ring_peek(&w->reader, &r);
        if (status == RING_EMPTY && spin(before))
            continue;
        if (status != RING_OK || ring_copy(&w->reader, &r, body) != RING_OK)
            break;
        r.body = body;
        slip one = slip_of(&r);
        status = pool_hold(&the.pool.view, self, one.block, one.generation);
        if (status == RING_CORRUPT)
            fail("a slip that was published cannot be");
        if (status == RING_OK) {
            look(self, one.block, r.sequence);
            look(self, one.block, r.sequence);
            pool_let_go(&the.pool.view, self, one.block);
        }
        ring_advance(&w->reader, &r);
        looks++;
    }
}

/* Does not wait for whom it has left behind: what nobody looks at is its own at once. */
static void ship_and_leave(unsigned self) {
    (void)self;
    bool left = false;
    for (uint64_t i = 0; i < EVENTS; i++) {
        slip one;
        unsigned long before = moment();
        collect();
        while (pool_allocate(&the.pool.writer, POOL_BLOCK, 1, true, &one) != RING_OK) {
            if (!left) {
                ring_ungate(&the.sources[0].view, 1u << the.watchers[0].slot);
                left = true;
            } else if (!the.pool.ended) {
                fail("X2: nobody looks at it, and who was left behind holds it");
            } else if (!spin(before)) {
                return;
            }
            before = moment();
            collect();
        }
        write_bytes(one.block, FIRST_SEQUENCE + i);
        send(&one);
    }
}

/* Reads in place what its publisher may have left it behind with: it holds an extent, or is told that it is gone. */
static void view_left(unsigned self) {
    watcher *w = &the.watchers[self - 1];
    for (unsigned looks = 0; looks < EVENTS; looks++) {
        unsigned long before = moment();
        record r;
        int status = ring_peek(&w->reader, &r);
        if (status == RING_EMPTY && spin(before)) {
            looks--;
            continue;
        }
        if (status != RING_OK)
            break;
        slip one = slip_of(&r);
        status = pool_hold(&the.pool.view, self, one.block, one.generation);
        if (status == RING_CORRUPT)
            fail("a slip that was published cannot be");
        if (status == RING_OK) {
            look(self, one.block, r.sequence);
            ring_advance(&w->reader, &r);
            look(self, one.block, r.sequence);
            pool_let_go(&the.pool.view, self, one.block);
        } else {
            w->reader.lost_first = w->reader.lost_last = r.sequence;
            ring_pass(&w->reader, &r);
            ring_overrun(&w->reader, 9);
        }
    }
}

/* Claims, looks, is done, and looks once more: what it holds does not go with the claim. */
static void work_each(unsigned self) {
    for (;;) {
        unsigned long before = moment();
        claim c;
        if (!work_ready(&the.work->view) || work_claim(&the.work->view, self, 1, &c) != RING_OK) {
            if (the.pool.taken >= EVENTS || !spin(before))
                break;
            continue;
        }
        let_go(self);
        hold(self, &c.record);
        if (work_done(&the.work->view, &c) != RING_OK)
            fail("a claim of our own is not ours");
    }
    let_go(self);
}

/* ---- the dead ---- */

static void bury(unsigned self) {
    larder *p = &the.pool;
    for (unsigned i = 0; i < MAX_ACTORS; i++) {
        if (i == self || !is_dead(i))
            continue;
        if (the.shops) {
            uint64_t count;
            work_reclaim(&the.work->view, i, 1, &count);
        } else if (i > 0) {
            ring_leave(&the.sources[0].view, the.watchers[i - 1].slot);
        }
        pool_forget(&p->view, i);
        p->held[i] = 0;
    }
}

/* ---- what must hold ---- */

/* X2, of a publisher that lives: all that nobody is owed or looks at can be had again. */
static void verify_pool(void) {
    larder *p = &the.pool;
    if (anybody_dead())
        bury(MAX_ACTORS);
    for (unsigned i = 0; i < MAX_ACTORS; i++)
        if (p->held[i])
            fail("actor %u ended with a view", i);
    if (is_dead(0))
        return;
    unsigned owing = 0;
    collect();
    for (unsigned i = 0; i < p->shipped; i++)
        owing += owed(i);
    if (p->ended || owing != p->shipped || p->writer.free + owing != BLOCKS)
        fail("X2: %llu blocks are free, %u are owed, of %u", (unsigned long long)p->writer.free, owing, BLOCKS);
    if (!anybody_dead() && (owing || (!the.shops && the.watchers[1].joined && p->taken != 2 * EVENTS)))
        fail("X2: events are still owed, and everybody is done");
    for (uint64_t block = 0; block < BLOCKS; block++)
        if (pool_held(&p->view, block))
            fail("X2: a bit of nobody is left");
}

#define PUBLISHER {'P', "publisher", ship, true, false}
#define SUPERVISOR {'V', "supervisor", bury, false, true}

const scene pool_scenes[] = {
    {"pool",
     "two subscribers look at extents, each until it has the next",
     build_views,
     verify_pool,
     {PUBLISHER, {'R', "reader", view_each, true, false}, {'S', "reader", view_each, true, false}, SUPERVISOR},
     {1, 0},
     {2, 1}},
    {"pool-copy",
     "a lossy subscriber copies extents that are used again",
     build_copies,
     verify_pool,
     {PUBLISHER, {'L', "lossy reader", copy_each, true, false}},
     {2, 1},
     {3, 2}},
    {"pool-late",
     "somebody holds extents that it is not owed",
     build_copies,
     verify_pool,
     {PUBLISHER, {'L', "late reader", view_late, true, false}, SUPERVISOR},
     {2, 1},
     {3, 2}},
    {"pool-left",
     "a publisher leaves a reader behind, and does not wait for what its pool owes it",
     build_left,
     verify_pool,
     {{'P', "publisher", ship_and_leave, true, false}, {'R', "reader", view_left, true, false}, SUPERVISOR},
     {2, 1},
     {3, 2}},
    {"pool-work",
     "two workers look at extents beyond their claims",
     build_claims,
     verify_pool,
     {PUBLISHER, {'W', "worker", work_each, true, false}, {'X', "worker", work_each, true, false}, SUPERVISOR},
     {1, 0},
     {2, 1}},
    {0},
};
