/* Pool: holders, holds, and what a slip says. See pool.h; extents.c allocates. */
#include "pool.h"

#include <string.h>

static uint64_t table_bytes(uint64_t blocks) { return (blocks * sizeof(extent) + PAGE - 1) / PAGE * PAGE; }

uint64_t pool_size(uint64_t bytes) {
    uint64_t blocks = pool_blocks(bytes);
    return POOL_TABLE + table_bytes(blocks) + blocks * POOL_BLOCK;
}

/* Lays out a pool in memory that is all zero and that nobody else sees yet. */
int pool_format(void *base, uint64_t size, uint64_t bytes, uint64_t pool_id) {
    if (!bytes || bytes > MAX_POOL || size < pool_size(bytes))
        return RING_CORRUPT;
    pool_header *h = base;
    h->magic = POOL_MAGIC;
    h->layout_version = LAYOUT_VERSION;
    h->pool_id = pool_id;
    h->blocks = pool_blocks(bytes);
    return RING_OK;
}

int pool_open(pool_view *view, void *base, uint64_t size) {
    pool_header *h = base;
    if (size < POOL_TABLE || h->magic != POOL_MAGIC || h->layout_version != LAYOUT_VERSION)
        return RING_FOREIGN;
    uint64_t blocks = h->blocks;
    if (!blocks || blocks > MAX_POOL / POOL_BLOCK || size != pool_size(blocks * POOL_BLOCK))
        return RING_CORRUPT;
    unsigned char *table = (unsigned char *)base + POOL_TABLE;
    *view = (pool_view){.header = h, .extents = (extent *)table, .data = table + table_bytes(blocks), .blocks = blocks};
    return RING_OK;
}

/* ---- holders ---- */

/* A number for one mapping of a process: its bit in every extent; -1: all are taken. */
int pool_enter(const pool_view *view, uint64_t life, uint64_t consumer) {
    for (int i = 0; i < POOL_HOLDERS; i++) {
        pool_holder *holder = &view->header->holders[i];
        uint64_t nobody = 0;
        if (LOAD_RELAXED(&holder->life) == 0 && CAS_SEQ(&holder->life, &nobody, life)) {
            STORE_RELAXED(&holder->consumer, consumer);
            return i;
        }
    }
    return -1;
}

/* Gives the number back; all of its bits are cleared. */
void pool_leave(const pool_view *view, unsigned holder) { STORE_SEQ(&view->header->holders[holder].life, 0); }

/* Clears all that a dead holder has set, then its number: how many extents it held. May be done again. */
uint64_t pool_forget(const pool_view *view, unsigned holder) {
    uint64_t count = 0, high = LOAD_ACQUIRE(&view->header->high), bit = 1ull << holder % 64;
    if (high > view->blocks)
        high = view->blocks;
    for (uint64_t block = 0; block < high; block++) {
        word *holds = &view->extents[block].holds[holder / 64];
        if (LOAD_RELAXED(holds) & bit) {
            AND_SEQ(holds, ~bit); /* SYNC extent */
            count++;
        }
    }
    pool_leave(view, holder);
    return count;
}

/* ---- holds ---- */

/* Sets a holder's bit and looks whether the extent still is what it was: RING_OK; RING_LOST, and no bit, if it was freed;
 * RING_CORRUPT for one that never was. */
int pool_hold(const pool_view *view, unsigned holder, uint64_t block, uint64_t generation) {
    if (block >= view->blocks || generation % 2 == 0)
        return RING_CORRUPT;
    extent *e = &view->extents[block];
    word *holds = &e->holds[holder / 64];
    uint64_t bit = 1ull << holder % 64;
    OR_SEQ(holds, bit);                      /* SYNC extent */
    uint64_t now = LOAD_SEQ(&e->generation); /* SYNC extent */
    if (now == generation)
        return RING_OK;
    AND_SEQ(holds, ~bit);
    return now > generation ? RING_LOST : RING_CORRUPT;
}

/* Clears it; true if the publisher waits for that, and is to be posted by the caller. */
bool pool_let_go(const pool_view *view, unsigned holder, uint64_t block) {
    AND_SEQ(&view->extents[block].holds[holder / 64], ~(1ull << holder % 64)); /* SYNC extent, views */
    uint64_t waiting = LOAD_SEQ(&view->header->waiting);                       /* SYNC views */
    return waiting && CAS_SEQ(&view->header->waiting, &waiting, 0);
}

bool pool_held(const pool_view *view, uint64_t block) {
    uint64_t any = 0;
    for (int i = 0; i < POOL_HOLDERS / 64; i++)
        any |= LOAD_SEQ(&view->extents[block].holds[i]); /* SYNC extent */
    return any != 0;
}

/* The run that begins at `*block`; false if there can be none. `*block` becomes the first of the next one, UINT64_MAX: none. */
bool pool_next_run(const pool_view *view, uint64_t *block, run *out) {
    if (*block >= view->blocks)
        return false;
    uint64_t shape = LOAD_ACQUIRE(&view->extents[*block].shape);
    *out = (run){.block = *block, .blocks = (uint32_t)shape};
    *block = (shape >> 32) - 1;
    return out->blocks && out->blocks <= view->blocks - out->block;
}

/* Whether a slip lies within its extent, whose number of runs is told. The extent is held, or what follows is compared. */
int pool_check(const pool_view *view, const slip *slip, uint64_t *runs) {
    uint64_t block = slip->block, total = 0, length;
    run one;
    if (block >= view->blocks || slip->generation % 2 == 0)
        return RING_CORRUPT;
    length = LOAD_ACQUIRE(&view->extents[block].length);
    if (slip->length > length || slip->offset > length - slip->length)
        return RING_CORRUPT;
    for (*runs = 0; block != UINT64_MAX; ++*runs) {
        if (total >= view->blocks || !pool_next_run(view, &block, &one)) /* a circle ends here too */
            return RING_CORRUPT;
        total += one.blocks;
    }
    return total <= view->blocks && length <= total * POOL_BLOCK ? RING_OK : RING_CORRUPT;
}

/* Copies `bytes`; acquire, word by word: what is read later, the generation, was read later. */
static void copy_words(unsigned char *to, const unsigned char *from, uint64_t bytes) {
    uint64_t value, head = (8 - (uintptr_t)from % 8) % 8;
    word *at;
    if (head) { /* from the word that it lies in */
        at = (word *)(from - (8 - head));
        value = LOAD_ACQUIRE(at);
        uint64_t some = head < bytes ? head : bytes;
        memcpy(to, (unsigned char *)&value + (8 - head), some);
        to += some, from += some, bytes -= some;
    }
    for (at = (word *)from; bytes >= 8; bytes -= 8, to += 8) {
        value = LOAD_ACQUIRE(at++);
        memcpy(to, &value, 8);
    }
    if (bytes) {
        value = LOAD_ACQUIRE(at);
        memcpy(to, &value, bytes);
    }
}

/* Copies what a slip names, by a reader that holds nothing: RING_LOST if it was freed meanwhile (X4). */
int pool_copy(const pool_view *view, const slip *slip, void *into) {
    unsigned char *to = into;
    uint64_t runs, block = slip->block, skip = slip->offset, left = slip->length;
    int status = pool_check(view, slip, &runs);
    for (run one; status == RING_OK && left && pool_next_run(view, &block, &one);) {
        uint64_t bytes = one.blocks * POOL_BLOCK;
        uint64_t from = skip < bytes ? skip : bytes, some = bytes - from < left ? bytes - from : left;
        copy_words(to, view->data + one.block * POOL_BLOCK + from, some);
        to += some, left -= some, skip -= from;
        if (block == UINT64_MAX)
            break;
    }
    if (slip->block >= view->blocks)
        return RING_CORRUPT;
    uint64_t now = LOAD_SEQ(&view->extents[slip->block].generation); /* SYNC extent */
    if (now != slip->generation)
        return now > slip->generation ? RING_LOST : RING_CORRUPT;
    return status == RING_OK && left == 0 ? RING_OK : RING_CORRUPT;
}

/* ---- records ---- */

/* The reliable subscribers that stand before a record's end, a bit for each: they are owed what it has. */
uint64_t pool_debtors(const ring_view *ring, uint64_t end) {
    uint64_t slots = 0;
    for (uint64_t left = LOAD_SEQ(&ring->header->reliable); left; left &= left - 1) {
        unsigned slot = (unsigned)__builtin_ctzll(left);
        if ((int64_t)(end - gate_at(slot_of(ring, slot))) > 0) /* SYNC cursor */
            slots |= 1ull << slot;
    }
    return slots;
}

/* How many slips a payload begins with, and where they end. It may change under us: it is read once. */
int pool_slips(const unsigned char *payload, uint64_t length, uint64_t *count, uint64_t *end) {
    uint64_t head;
    if (length < 8)
        return RING_CORRUPT;
    memcpy(&head, payload, 8);
    *count = head;
    uint64_t slips = head & ~SLIP_BODY;
    *end = 8 + slips * sizeof(slip);
    return slips && slips <= MAX_SLIPS && *end <= length ? RING_OK : RING_CORRUPT;
}

/* Whether any extent of a payload was freed since; false for what is no payload with slips. */
bool pool_gone(const pool_view *view, const unsigned char *payload, uint64_t length) {
    uint64_t count, end;
    if (pool_slips(payload, length, &count, &end) != RING_OK)
        return false;
    for (uint64_t i = 0; i < (count & ~SLIP_BODY); i++) {
        slip one;
        memcpy(&one, payload + 8 + i * sizeof(one), sizeof(one));
        if (one.block < view->blocks && LOAD_ACQUIRE(&view->extents[one.block].generation) > one.generation)
            return true;
    }
    return false;
}

/* Where the event begins in a payload, behind its slips and the small buffers; `length` if it lies in the pool itself. */
int pool_body(const unsigned char *payload, uint64_t length, uint64_t *body) {
    uint64_t count;
    if (pool_slips(payload, length, &count, body) != RING_OK)
        return RING_CORRUPT;
    for (uint64_t i = 0; i < (count & ~SLIP_BODY); i++) {
        slip one;
        memcpy(&one, payload + 8 + i * sizeof(one), sizeof(one));
        if (one.block != SLIP_INLINE)
            continue;
        if (one.offset != *body || one.length > length - *body)
            return RING_CORRUPT;
        *body += one.length;
    }
    if (count & SLIP_BODY)
        *body = length;
    return RING_OK;
}

/* Marks the extents of one record that a consumer has yet to let go of. */
static void mark(const pool_view *view, const record *record, uint64_t *bits) {
    uint64_t padded = (record->headers + 7u) & ~(uint64_t)7, count, end;
    if (!(record->flags & RECORD_POOLED) ||
        pool_slips(record->body + padded, record->length - padded, &count, &end) != RING_OK)
        return;
    for (uint64_t i = 0; i < (count & ~SLIP_BODY); i++) {
        slip slip;
        memcpy(&slip, record->body + padded + 8 + i * sizeof(slip), sizeof(slip));
        if (slip.block < view->blocks && LOAD_ACQUIRE(&view->extents[slip.block].generation) == slip.generation)
            bits[slip.block / 64] |= 1ull << slip.block % 64;
    }
}

/* Marks, by their first blocks, the extents that a ring of the publisher owes to somebody: what is there of the rings
 * decides, so this is for who looks from outside. */
int pool_owed(const pool_view *view, const ring_view *ring, bool work, uint64_t *bits) {
    ring_header *h = ring->header;
    uint64_t tail = LOAD_SEQ(&h->tail), position = tail; /* SYNC tail */
    record record;
    if (work) {
        uint64_t gate = LOAD_SEQ(&h->gate);
        if (gate > tail || tail - gate > ring->slots)
            return RING_CORRUPT;
        for (uint64_t sequence = gate; sequence < tail; sequence++)
            if (work_owed(ring, sequence, &record))
                mark(view, &record, bits);
        return RING_OK;
    }
    uint64_t reliable = LOAD_SEQ(&h->reliable);
    for (; reliable; reliable &= reliable - 1) {
        uint64_t cursor = gate_at(slot_of(ring, (unsigned)__builtin_ctzll(reliable))); /* SYNC cursor */
        if (tail - cursor <= ring->capacity && tail - cursor > tail - position)
            position = cursor;
    }
    while (position != tail) {
        unsigned kind;
        if (record_header(ring, position, tail, &record, &kind) != RING_OK)
            return RING_CORRUPT;
        if (kind == RECORD_EVENT)
            mark(view, &record, bits);
        position = record.end;
    }
    return RING_OK;
}
